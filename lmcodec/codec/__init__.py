"""Bytes to frames and back, in rooms that are named for their job.

`levels`: what a level means, and the choice of a block's method. `spec`: how a block is coded. `base`: the
file that a frame's tensors are coded against. `pipeline`:
blocks at work in threads, and the engines kept for reuse. `compressor`, `decompressor`: the two directions.
`prior`, `cover`: text that messages begin with; the choice of it. `records`: files of records.
`survey`: what frames hold, without decoding them. `proof`: frames of models in floats are decoded before they
are given out. `salvage`: what of damaged frames is sound. `arguments`: checks of what callers give.

What the bytes of a frame mean is in `frame`, how a block is coded in `engine`. The surface is that of
compression.zstd in Python 3.14.
"""

from __future__ import annotations

from lmcodec.codec.arguments import available_cpus, byte_view, read_fully
from lmcodec.codec.compressor import Compressor, compress, stored_frame
from lmcodec.codec.decompressor import READ_NBYTES, Decompressor, FrameReader, decompress
from lmcodec.codec.levels import (
    AUTO,
    DEFAULT_BLOCK_NBYTES,
    DEFAULT_LEVEL,
    LEVELS,
    METHODS,
    MIN_BLOCK_NBYTES,
    Level,
    lm_streams,
)
from lmcodec.codec.prior import Prior
from lmcodec.codec.survey import FrameInfo, frame_info, scan, scan_to_trailing

__all__ = [
    "AUTO",
    "DEFAULT_BLOCK_NBYTES",
    "DEFAULT_LEVEL",
    "LEVELS",
    "METHODS",
    "MIN_BLOCK_NBYTES",
    "READ_NBYTES",
    "Compressor",
    "Decompressor",
    "FrameInfo",
    "FrameReader",
    "Level",
    "Prior",
    "available_cpus",
    "byte_view",
    "compress",
    "decompress",
    "frame_info",
    "lm_streams",
    "read_fully",
    "scan",
    "scan_to_trailing",
    "stored_frame",
]
