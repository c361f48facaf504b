"""Manifests of corpora: files, sizes, hashes, licences, and whether a shipped model has seen them.

The manifests are the JSON files of the top-level folder `corpora`, in the package as `lmcodec/corpora`.
They hold no text. Nothing is downloaded: whoever has a corpus can see whether it is the one that others
measure on.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lmcodec
from lmcodec.errors import ConfigError, Corrupt, ModelNotFound

_PACKAGE = Path(lmcodec.__file__).parent
_CHUNK_NBYTES = 1 << 20
# Checks of a manifest's file, the strongest first.
CHECKS = ("sha256", "md5", "crc32", "adler32")
_DIGITS = {"sha256": 64, "md5": 32, "crc32": 8, "adler32": 8}

Kind = Literal["sound", "size only", "missing", "differs", "extra"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class File:
    """A corpus's file.

    Attributes:
      name: in the corpus's folder.
      nbytes: its size.
      checks: lower-case hexadecimal digests by name, of CHECKS; empty where none is published.
      optional: an edition of the corpus may lack it.
    """

    name: str
    nbytes: int
    checks: Mapping[str, str]
    optional: bool = False


@dataclass(frozen=True)
class Corpus:
    """A manifest.

    Attributes:
      name: of the corpus; the manifest's file is NAME.json.
      title, published, licence: for people.
      seen: whether a shipped model was trained on it: "no", "in part" or "yes"; why, in `seen_note`.
      note: what else must be known, or empty.
      sources: where sizes and hashes come from.
      ignore: names in its folder that are no part of it.
    """

    name: str
    title: str
    published: str
    licence: str
    seen: str
    seen_note: str
    note: str
    sources: tuple[str, ...]
    ignore: frozenset[str]
    files: tuple[File, ...]

    @property
    def nbytes(self) -> int:
        """Of all files that are not optional."""
        return sum(file.nbytes for file in self.files if not file.optional)


@dataclass(frozen=True)
class Finding:
    """What `verify` found of a file."""

    kind: Kind
    name: str
    text: str


def manifest_folder() -> Path:
    """The folder of the manifests: in the installed package, or beside it in a source tree.

    Raises:
      ModelNotFound: neither is there.
    """
    for folder in (_PACKAGE / "corpora", _PACKAGE.parent / "corpora"):
        if (folder / "canterbury.json").is_file():
            return folder
    raise ModelNotFound(f"the manifests of the corpora are missing beside {_PACKAGE}")


def names() -> list[str]:
    """The corpora that there are manifests of."""
    return sorted(path.stem for path in manifest_folder().glob("*.json"))


def load(name: str) -> Corpus:
    """Read a manifest.

    Raises:
      ConfigError: there is none of that name.
      Corrupt: it is not a manifest.
    """
    known = names()
    if name not in known:
        raise ConfigError(f"no corpus is called {name!r}: {', '.join(known)}")
    return parse((manifest_folder() / f"{name}.json").read_bytes(), f"{name}.json")


def parse(data: bytes, where: str) -> Corpus:
    """A manifest's content.

    Raises:
      Corrupt: it is not a manifest; the message begins with `where`.
    """
    try:
        document = json.loads(data)
        files = tuple(_file(entry) for entry in document["files"])
        corpus = Corpus(
            **{key: document[key] for key in ("name", "title", "published", "licence", "seen", "seen_note")},
            note=document.get("note", ""),
            sources=tuple(document["sources"]),
            ignore=frozenset(document.get("ignore", ())),
            files=files,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Corrupt(f"{where}: not a manifest ({type(error).__name__}: {error})") from None
    if not files or len({file.name for file in files}) != len(files):
        raise Corrupt(f"{where}: no files, or two of one name")
    return corpus


def _file(entry: Any) -> File:
    checks = {key: entry[key] for key in CHECKS if key in entry}
    for key, digest in checks.items():
        if len(digest) != _DIGITS[key] or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{entry['name']}: {key} {digest!r}")
    name, nbytes = entry["name"], entry["nbytes"]
    if not isinstance(name, str) or "/" in name or not isinstance(nbytes, int) or nbytes < 1:
        raise ValueError(f"{name!r}, {nbytes!r} bytes")
    return File(name, nbytes, checks, entry.get("optional", False))


def identify(folder: Path) -> Corpus:
    """The corpus most of whose files have names that are in a folder.

    Raises:
      ConfigError: there is none with any.
      OSError: the folder cannot be read.
    """
    there = {path.name.casefold() for path in folder.iterdir()}

    def share(corpus: Corpus) -> float:
        return sum(file.name.casefold() in there for file in corpus.files) / len(corpus.files)

    best = max(map(load, names()), key=share)
    if not share(best):
        raise ConfigError(f"{folder}: none of the known corpora's files are here ({', '.join(names())})")
    return best


def verify(folder: Path, corpus: Corpus) -> list[Finding]:
    """Compare a folder with a corpus: its files in order, then what else is there.

    Names may differ in case. The strongest digest that the manifest has is computed; where it has no SHA-256,
    all it has.

    Raises:
      OSError: the folder cannot be read.
    """
    there = {path.name: path for path in sorted(folder.iterdir())}
    folded = {name.casefold(): name for name in reversed(there)}
    findings, taken = [], set()
    for file in corpus.files:
        name = file.name if file.name in there else folded.get(file.name.casefold(), "")
        if not name:
            if not file.optional:
                findings.append(Finding("missing", file.name, f"{file.nbytes:,} bytes"))
            continue
        taken.add(name)
        findings.append(_compare(there[name], file))
    for name in there:
        if name not in taken and name not in corpus.ignore:
            findings.append(Finding("extra", name, "no file of this corpus"))
    return findings


def _compare(path: Path, file: File) -> Finding:
    checks = {"sha256": file.checks["sha256"]} if "sha256" in file.checks else dict(file.checks)
    try:
        nbytes = path.stat().st_size
        if nbytes != file.nbytes:
            return Finding("differs", file.name, f"{nbytes:,} bytes, expected {file.nbytes:,}")
        found = digests(path, tuple(checks))
    except OSError as error:
        return Finding("differs", file.name, error.strerror or str(error))
    for key, digest in checks.items():
        if found[key] != digest:
            return Finding("differs", file.name, f"{key} {found[key]}, expected {digest}")
    if not checks:
        return Finding("size only", file.name, f"{nbytes:,} bytes; no digest is published")
    return Finding("sound", file.name, ", ".join(checks))


def digests(path: Path, which: tuple[str, ...]) -> dict[str, str]:
    """Digests of a file, hexadecimal, in one pass.

    Raises:
      OSError: it cannot be read.
    """
    # MD5 where a publisher gives nothing better: it tells damage, not malice.
    hashes = {key: hashlib.new(key, usedforsecurity=False) for key in which if key in ("sha256", "md5")}
    crc, adler = 0, 1
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            for value in hashes.values():
                value.update(chunk)
            if "crc32" in which:
                crc = zlib.crc32(chunk, crc)
            if "adler32" in which:
                adler = zlib.adler32(chunk, adler)
    found = {key: value.hexdigest() for key, value in hashes.items()}
    return found | {"crc32": f"{crc:08x}", "adler32": f"{adler:08x}"}
