"""Checkpoints and weights-only exports: named tensors and a JSON document, in pieces, without pickle.

A checkpoint is a folder: `manifest.json` (format, the JSON document, for each tensor its dtype, shape and
position, for each piece its size and SHA-256) and `piece-000`, `piece-001`, … of at most 15 MiB, which hold
the tensors' little-endian bytes one after another. A folder is written under another name and renamed when it
is complete, so that a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
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
    manifest = {"format": FORMAT, "document": dict(document), "tensors": index, "pieces": pieces}
    with open(temporary / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        if old.exists():
            shutil.rmtree(old)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of the checkpoint in `folder`.

    Raises:
        ModelNotFound: there is no checkpoint.
        BadMagic: the manifest is of another format.
        Truncated: a piece is missing or short.
        Corrupt: a piece or the manifest is damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"{folder}: no checkpoint there (no manifest.json)") from None
    except (ValueError, UnicodeDecodeError):
        raise Corrupt(f"{path}: damaged manifest: not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadMagic(f"{path}: not a checkpoint of format {FORMAT}")
    try:
        data = bytearray()
        for i, piece in enumerate(manifest["pieces"]):
            piece_path = folder / f"piece-{i:03d}"
            if not piece_path.is_file():
                raise Truncated(f"{piece_path}: piece of the checkpoint is missing")
            content = piece_path.read_bytes()
            if len(content) != piece["nbytes"]:
                raise Truncated(f"{piece_path}: {len(content)} bytes, expected {piece['nbytes']}")
            if hashlib.sha256(content).hexdigest() != piece["sha256"]:
                raise Corrupt(f"{piece_path}: damaged piece: its SHA-256 differs from the manifest's")
            data += content
        tensors = {}
        for name, entry in manifest["tensors"].items():
            dtype = _DTYPES[entry["dtype"]]
            shape = [int(n) for n in entry["shape"]]
            count = 1
            for n in shape:
                count *= n
            tensors[name] = (
                torch.frombuffer(data, dtype=dtype, count=count, offset=int(entry["position"]))
                .clone()
                .reshape(shape)
                if count
                else torch.empty(shape, dtype=dtype)
            )
        return tensors, dict(manifest["document"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Corrupt(f"{path}: damaged manifest: {error!r}") from None


def newest(folder: Path) -> Path | None:
    """The checkpoint in a run's folder, or the one that a crash left while it was being replaced."""
    for name in ("checkpoint", "checkpoint.old"):
        if (folder / name / "manifest.json").is_file():
            return folder / name
    return None
