"""A folder with config.json, safetensors and tokenizer.json, as transformers writes it.

A safetensors file is the length of a header (8 bytes), the header (JSON: of each tensor its type, shape and
place) and the tensors. Files are mapped into memory; nothing is allocated for a number that was not checked.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, LmcodecError, Truncated, Unsupported
from lmcodec.lm.transformer.importing import tokens
from lmcodec.lm.transformer.importing.source import Source, digest_of

_MAX_HEADER_NBYTES = 100_000_000  # the format's own bound
_MAX_JSON_NBYTES = 1 << 27
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class _Tensor:
    file: Path
    data: np.ndarray
    kind: str


class SafetensorsFolder(Source):
    """See `open_folder`."""

    def __init__(self, folder: Path, where: str) -> None:
        self.where = where
        self._folder = folder
        self.config = read_json(folder / "config.json")
        self._tensors: dict[str, _Tensor] = {}
        files = sorted(folder.glob("*.safetensors"))
        if (index := folder / "model.safetensors.index.json").exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise Corrupt(f"{index.name} has no weight_map")
            files = [_inside(folder, shard) for shard in sorted(set(map(str, shards.values())))]
        if not files:
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt"))
            raise Unsupported(
                "its weights are pickled (.bin), which is not read; convert them to safetensors"
                if pickled
                else "has no *.safetensors"
            )
        for file in files:
            for name, tensor in _read_file(file).items():
                if name in self._tensors:
                    raise Corrupt(f"tensor {name} is in {self._tensors[name].file.name} and {file.name}")
                self._tensors[name] = tensor
        self._files = [*files, folder / "config.json", folder / "tokenizer.json"]
        if not (folder / "tokenizer.json").is_file():
            raise Unsupported(
                "has no tokenizer.json; transformers' save_pretrained of a fast tokenizer writes it"
            )
        self.card = {"source": folder.resolve().name}
        if licence := _licence(folder):
            self.card["licence"] = licence

    def sha256(self) -> str:
        """As `Source.sha256`."""
        return digest_of(self._files)

    @property
    def names(self) -> set[str]:
        """As `Source.names`."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Source.shape`."""
        return self._tensors[name].data.shape

    def read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """As `Source.read`."""
        tensor = self._tensors[name]
        values = np.array(tensor.data[rows])
        if tensor.kind == "BF16":
            return (values.astype("<u4") << 16).view("<f4").astype(np.float32)
        return values.astype(np.float32)

    def tokens(self) -> tokens.Tokens:
        """As `Source.tokens`."""
        settings = self._folder / "tokenizer_config.json"
        return tokens.from_json(
            read_json(self._folder / "tokenizer.json"),
            read_json(settings) if settings.exists() else {},
            self.config,
        )


def open_folder(folder: Path, where: str | None = None) -> SafetensorsFolder:
    """The model in a folder.

    Raises:
        Unsupported: its weights or its tokenizer are in another form.
        Corrupt, Truncated: a file is damaged.
    """
    where = where or os.fspath(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{where}: has no config.json; a folder of a model has one")
    try:
        return SafetensorsFolder(folder, where)
    except LmcodecError as error:
        raise type(error)(f"{where}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Corrupt: it holds none.
    """
    if path.stat().st_size > _MAX_JSON_NBYTES:
        raise Corrupt(f"{path.name} has {path.stat().st_size} bytes, at most {_MAX_JSON_NBYTES} are read")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Corrupt(f"{path.name} is not JSON") from None
    if not isinstance(found, dict):
        raise Corrupt(f"{path.name} holds no object")
    return found


def _inside(folder: Path, name: str) -> Path:
    """The folder's file of that name, which an index file gives."""
    if os.path.basename(name) != name or not name.endswith(".safetensors"):
        raise Corrupt(f"its index names {name[:80]!r}, which is no file of the folder")
    if not (folder / name).is_file():
        raise Corrupt(f"{name} is missing, which its index names")
    return folder / name


def _read_file(path: Path) -> dict[str, _Tensor]:
    nbytes = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        header_nbytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_nbytes > nbytes - 8:
            raise Truncated(f"{path.name} has {nbytes} bytes and a header of {header_nbytes}")
        if header_nbytes > _MAX_HEADER_NBYTES:
            raise Corrupt(f"{path.name} has a header of {header_nbytes} bytes, at most {_MAX_HEADER_NBYTES}")
        try:
            header = json.loads(file.read(header_nbytes))
        except (ValueError, RecursionError):
            raise Corrupt(f"{path.name}: its header is not JSON") from None
    if not isinstance(header, dict):
        raise Corrupt(f"{path.name}: its header is no object")
    if nbytes == 8 + header_nbytes:
        raise Corrupt(f"{path.name} holds no tensors")
    data = np.memmap(path, np.uint8, "r", 8 + header_nbytes)
    return {
        name: _tensor(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"
    }


def _tensor(path: Path, name: str, entry: Any, data: np.memmap[Any, Any]) -> _Tensor:
    what = f"{path.name}: tensor {name[:80]}"
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise Corrupt(f"{what} has no type, shape and place") from None
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end)) or len(shape) > 8:
        raise Corrupt(f"{what} has a shape or a place that is no list of sizes")
    if kind not in _TYPES:
        raise Unsupported(f"{what} is of type {str(kind)[:20]}; {', '.join(_TYPES)} are read")
    size = _TYPES[kind].itemsize
    for n in shape:
        size *= n
    if end - begin != size:
        raise Corrupt(f"{what} has {end - begin} bytes, its shape {shape} needs {size}")
    if end > len(data):
        raise Truncated(f"{what} ends at byte {end}, the file's tensors have {len(data)}")
    return _Tensor(path, data[begin:end].view(_TYPES[kind]).reshape(shape), kind)


def _licence(folder: Path) -> str | None:
    """What the front matter of README.md says."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as file:
            start = file.read(1 << 14)
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", start, re.DOTALL)
    found = re.search(r"^license:\s*([^\n#]{1,80})", front[1], re.MULTILINE) if front else None
    return found[1].strip().strip("'\"") if found else None
