"""Checkpoints and weights-only exports: named tensors and a JSON document, in pieces, without pickle.

A checkpoint is a folder: `manifest.json` (format, the JSON document, for each tensor its dtype, shape and
position, for each piece its size and SHA-256, all under a SHA-256 of their own) and `piece-000`, `piece-001`,
… of at most 15 MiB, which hold the tensors' little-endian bytes one after another. A folder is written under
another name and renamed when it is complete, so that a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmcodec.errors import BadMagic, Corrupt, ModelNotFound, Truncated

FORMAT = "lmcodec-checkpoint-1"
PIECE_NBYTES = 15 << 20
MAX_MANIFEST_NBYTES = 4 << 20
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save(folder: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and document to `folder`, replacing what is there once all is on disk."""
    temporary = folder.with_name(folder.name + ".writing")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    index: dict[str, Any] = {}
    pieces: list[dict[str, Any]] = []
    buffer = bytearray()
    position = 0

    def flush() -> None:
        data = bytes(buffer[:PIECE_NBYTES])
        del buffer[:PIECE_NBYTES]
        with open(temporary / f"piece-{len(pieces):03d}", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        pieces.append({"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})

    for name, tensor in tensors.items():
        t = tensor.detach().to("cpu").contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes()
        index[name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "position": position}
        position += len(data)
        buffer += data
        while len(buffer) >= PIECE_NBYTES:
            flush()
    if buffer:
        flush()
    content = {"document": dict(document), "tensors": index, "pieces": pieces}
    manifest = {"format": FORMAT, "sha256": _seal(content), "content": content}
    with open(temporary / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(temporary)
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        if old.exists():
            shutil.rmtree(old)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the folder's entries to disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of the checkpoint in `folder`, or of what a crash left while replacing it.

    Raises:
        ModelNotFound: there is no checkpoint.
        BadMagic: the manifest is of another format.
        Truncated: a piece is missing or short.
        Corrupt: a piece or the manifest is damaged.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and (old / "manifest.json").is_file():
        folder = old
    path = folder / "manifest.json"
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_MANIFEST_NBYTES + 1)
        if len(text) > MAX_MANIFEST_NBYTES:
            raise Corrupt(f"{path}: manifest of more than {MAX_MANIFEST_NBYTES} bytes")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"{folder}: no checkpoint there (no manifest.json)") from None
    except (ValueError, RecursionError):
        raise Corrupt(f"{path}: damaged manifest: not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadMagic(f"{path}: not a checkpoint of format {FORMAT}")
    content = manifest.get("content")
    if not isinstance(content, dict) or manifest.get("sha256") != _seal(content):
        raise Corrupt(f"{path}: damaged manifest: its SHA-256 differs")
    try:
        data = bytearray()
        for i, piece in enumerate(content["pieces"]):
            data += _read_piece(folder / f"piece-{i:03d}", int(piece["nbytes"]), piece["sha256"])
        tensors = {}
        left = len(data)  # tensors do not overlap: together they have no more bytes than the pieces
        for name, entry in content["tensors"].items():
            dtype = _DTYPES[entry["dtype"]]
            shape = [int(n) for n in entry["shape"]]
            count = math.prod(shape)
            left -= count * dtype.itemsize
            if left < 0:
                raise ValueError("its tensors have more bytes than its pieces")
            if count:
                flat = torch.frombuffer(data, dtype=dtype, count=count, offset=int(entry["position"]))
                tensors[name] = flat.clone().reshape(shape)
            else:
                tensors[name] = torch.empty(shape, dtype=dtype)
        return tensors, dict(content["document"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise Corrupt(f"{path}: manifest does not fit its pieces: {error!r}") from None


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_piece(path: Path, nbytes: int, sha256: str) -> bytes:
    if not path.is_file():
        raise Truncated(f"{path}: piece of the checkpoint is missing")
    found = path.stat().st_size
    if found != nbytes or not 0 <= nbytes <= PIECE_NBYTES:
        raise Truncated(f"{path}: {found} bytes, expected {nbytes}, at most {PIECE_NBYTES}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Corrupt(f"{path}: damaged piece: its SHA-256 differs from the manifest's")
    return data


def newest(folder: Path) -> Path | None:
    """The checkpoint in a run's folder, or the one that a crash left while it was being replaced.

    Raises:
        Truncated: if what is there lacks its manifest: an incomplete copy is not taken for a fresh start.
    """
    for name in ("checkpoint", "checkpoint.old"):
        if (folder / name).exists():
            if not (folder / name / "manifest.json").is_file():
                raise Truncated(f"{folder / name}: checkpoint without manifest.json; complete or remove it")
            return folder / name
    return None
