"""Training text as it lies on disk: categories of documents in xz files, one zero byte between documents.

`CATEGORIES` fixes the order and numbers of the categories everywhere. The folder is `LMCODEC_CORPORA` (its
`train/` holds the text), by default `../shared/corpora`. Validation documents are chosen by the hash of their
content alone, so that the choice stays when documents are added or reordered.
"""

from __future__ import annotations

import hashlib
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

from lmcodec.errors import Corrupt, ModelNotFound

# category -> stems of its files in train/
CATEGORIES: dict[str, tuple[str, ...]] = {
    "english_books": ("english_books-1", "english_books-2"),
    "tech_docs": ("tech_docs",),
    "encyclopedic": ("encyclopedic",),
    "web_short": ("web_short",),
    "source_code": ("source_code",),
    "structured": ("structured",),
    "multilingual": ("multilingual", "multilingual-2"),
    "html_pages": ("html_pages",),
}

# Shares of the training bytes. Other languages weigh the most next to books: they are where the shipped
# networks win least.
DEFAULT_WEIGHTS = {
    "english_books": 24.0,
    "tech_docs": 15.0,
    "encyclopedic": 9.0,
    "web_short": 13.0,
    "source_code": 13.0,
    "structured": 8.0,
    "multilingual": 20.0,
    "html_pages": 2.0,
}

VALIDATION_SHARE = 1 / 64  # of the documents, by hash


def corpora_dir() -> Path:
    """The folder of the corpora: `LMCODEC_CORPORA`, by default `../shared/corpora`."""
    return Path(os.environ.get("LMCODEC_CORPORA", "../shared/corpora"))


def category_files(category: str, folder: Path | None = None) -> list[Path]:
    """The xz files of a category.

    Raises:
        ModelNotFound: if one is missing; the message names it and the environment variable.
    """
    train = (folder if folder is not None else corpora_dir()) / "train"
    paths = [train / f"{stem}.txt.xz" for stem in CATEGORIES[category]]
    for path in paths:
        if not path.is_file():
            raise ModelNotFound(
                f"{path}: training corpus '{category}' is missing; set LMCODEC_CORPORA to the folder that "
                "holds train/"
            )
    return paths


def documents(path: Path) -> Iterator[bytes]:
    """The documents of one xz file, in order, without the zero bytes; empty ones are left out.

    Raises:
        Corrupt: if the file is not a sound xz file.
    """
    try:
        with lzma.open(path) as file:
            rest = b""
            while block := file.read(1 << 22):
                *whole, rest = (rest + block).split(b"\0")
                yield from (d for d in whole if d)
            if rest:
                yield rest
    except (lzma.LZMAError, EOFError) as error:
        raise Corrupt(f"{path}: damaged xz data: {error}") from None


def document_hash(document: bytes) -> float:
    """A number in [0, 1) from the document's SHA-256: documents below `VALIDATION_SHARE` are held out."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64
