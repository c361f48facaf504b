"""Where a pretrained model comes from: what the importer asks of a folder or a file, whatever its format.

Nothing here runs code of a model, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, Unsupported
from lmcodec.lm.transformer.importing.tokens import Tokens

_ALL = slice(None)


class Source(ABC):
    """A pretrained model. Tensors have the names that transformers gives them.

    Attributes:
        where: what error messages begin with.
        config: what a config.json says of the model.
        card: facts of the source for the model's card: JSON values.
        converted: its tensors are those of a GGUF file, which has some parts in another form.
    """

    where: str
    config: dict[str, Any]
    card: dict[str, Any]
    converted: bool = False

    @abstractmethod
    def sha256(self) -> str:
        """Of its files (`digest_of`), in hexadecimal."""

    @property
    @abstractmethod
    def names(self) -> set[str]:
        """Of the tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, one of `names`."""

    @abstractmethod
    def read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows of a tensor, a part of a vector: float32, whatever they hold."""

    @abstractmethod
    def tokens(self) -> Tokens:
        """The vocabulary and what is known of the tokenizer."""

    def take(self, name: str, shape: tuple[int, ...], rows: slice | np.ndarray = _ALL) -> np.ndarray:
        """Some rows of the tensor, which must have this shape and finite values of at most 2^40.

        Raises:
            Corrupt: it is missing, or has another shape, or other values.
        """
        if name not in self.names:
            raise Corrupt(f"tensor {name} is missing")
        if self.shape(name) != shape:
            raise Corrupt(f"tensor {name} has the shape {self.shape(name)}, expected {shape}")
        values = self.read(name, rows)
        if not (np.abs(values) <= np.float32(2.0**40)).all():  # NaN is not
            raise Corrupt(f"tensor {name} has a value that is not finite, or larger than 2^40")
        return values


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of one file; of several, of the lines that `sha256sum` prints for them, sorted by name."""
    lines = []
    for path in sorted(files, key=lambda path: path.name):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
        lines.append(f"{digest.hexdigest()}  {path.name}\n")
    return lines[0][:64] if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()


def open_source(source: str, download: bool = False, revision: str | None = None) -> Source:
    """The model that the user names: a folder, a GGUF file, or a model of the Hugging Face hub.

    Args:
        source: a path or a hub id, OWNER/NAME.
        download: fetch a hub model; otherwise only the local cache is looked into.
        revision: of a hub model.

    Raises:
        ConfigError: there is no such source, or a package is missing.
        Unsupported: it is in a format that is not read.
        Corrupt: it is damaged.
    """
    from lmcodec.lm.transformer.importing import gguf_file, hub, safetensors_folder

    path = Path(source)
    if path.exists():
        if download or revision is not None:
            raise ConfigError(f"{source}: is a path; --download and --revision are for models of the hub")
        if path.is_dir():
            return safetensors_folder.open_folder(path)
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"GGUF":
            return gguf_file.open_file(path)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            raise Unsupported(f"{source}: may hold pickled code, which is not read; use safetensors or GGUF")
        if path.suffix == ".safetensors":
            raise Unsupported(f"{source}: name the folder, which has config.json and the tokenizer, too")
        raise Unsupported(f"{source}: neither a folder nor a GGUF file (it begins with {start!r})")
    if hub.is_id(source):
        return hub.open_model(source, download, revision)
    raise ConfigError(f"{source}: no such folder or file, and no hub id of the form OWNER/NAME")
