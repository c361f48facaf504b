"""Compressors that Python brings or finds installed, as programs, for machines without the real ones.

    python -I -m lmcodec.measure.stand_in FAMILY LEVEL compress|decompress IN OUT

A process that does what the program of that family does, start-up of the interpreter included. Each reads the
whole file. Their results are marked as Python's, and speeds and memory are not the programs' own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# family -> module that codes it
MODULES = {
    "gzip": "gzip",
    "bzip2": "bz2",
    "xz": "lzma",
    "zstd": "zstandard",
    "brotli": "brotli",
    "ppmd": "pyppmd",
}
PPMD_MEMORY_NBYTES = 256 << 20


def available(family: str) -> bool:
    """Whether this Python has what codes the family."""
    return family in MODULES and find_spec(MODULES[family]) is not None


def _coders(family: str, level: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    module: Any = import_module(MODULES[family])
    if family == "gzip":
        return lambda data: module.compress(data, int(level), mtime=0), module.decompress
    if family == "bzip2":
        return lambda data: module.compress(data, int(level)), module.decompress
    if family == "xz":
        preset = int(level.rstrip("e")) | (module.PRESET_EXTREME if level.endswith("e") else 0)
        return lambda data: module.compress(data, preset=preset), module.decompress
    if family == "zstd":
        return module.ZstdCompressor(level=int(level)).compress, module.ZstdDecompressor().decompress
    if family == "brotli":
        return lambda data: module.compress(data, quality=int(level), lgwin=24), module.decompress
    order, memory = int(level), PPMD_MEMORY_NBYTES

    def compress(data: bytes) -> bytes:
        # PPMd has no end mark: eight bytes say how much to decode.
        encoder = module.Ppmd7Encoder(order, memory)
        return len(data).to_bytes(8, "little") + encoder.encode(data) + encoder.flush()

    def decompress(data: bytes) -> bytes:
        nbytes = int.from_bytes(data[:8], "little")
        return bytes(module.Ppmd7Decoder(order, memory).decode(data[8:], nbytes))

    return compress, decompress


def main(arguments: list[str]) -> None:
    """Compress or decompress IN to OUT."""
    family, level, verb, source, target = arguments
    compress, decompress = _coders(family, level)
    data = Path(source).read_bytes()
    Path(target).write_bytes((compress if verb == "compress" else decompress)(data))


if __name__ == "__main__":
    main(sys.argv[1:])
