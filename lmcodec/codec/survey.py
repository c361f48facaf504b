"""FrameInfo, frame_info and scan: what frames hold, without decoding them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from lmcodec import frame
from lmcodec.codec.arguments import byte_view, read_fully
from lmcodec.errors import Corrupt, TrailingData, Truncated
from lmcodec.frame import Block, Compact, Extension, Flag, FrameWalk

if TYPE_CHECKING:
    from lmcodec.lm.bound import Fingerprint

_READ_NBYTES = 128 << 10


@dataclass(frozen=True)
class FrameInfo:
    """A frame's header and, where the whole frame is there, its blocks.

    Attributes:
        offset: of the frame, in bytes.
        version: of the format.
        flags: of the header.
        model_id: see `frame.FrameHeader`.
        content_size: original bytes as the header says; None if it does not.
        header_nbytes: of the frame header.
        blocks: every block's header, an end block included; None if the frame is cut.
        nbytes: of the whole frame; None if it is cut.
        extensions: extension fields of the header.
        compact: of a compact frame what its header says, which names its prior; else None.
    """

    offset: int
    version: int
    flags: Flag
    model_id: int | bytes | None
    content_size: int | None
    header_nbytes: int
    blocks: tuple[Block, ...] | None = field(default=None, repr=False)
    nbytes: int | None = None
    extensions: tuple[Extension, ...] = ()
    compact: Compact | None = None

    @property
    def environment(self) -> Fingerprint | None:
        """What an environment-bound frame says of its environment; None of all others.

        Raises:
            Corrupt: it does not say it in the form that it should.
        """
        data = frame.environment_of(self.extensions)
        if data is None:
            return None
        from lmcodec.lm.bound import Fingerprint

        return Fingerprint.parse(data)

    @property
    def original_nbytes(self) -> int | None:
        """Original bytes as the blocks say, or else the header."""
        if self.blocks is None:
            return self.content_size
        return sum(block.original_nbytes for block in self.blocks)


def survey(read_at: Callable[[int, int], bytes], start: int, end: int) -> FrameInfo:
    """The frame at `start` of data that ends at `end`, from its headers and index; payloads are not read."""
    header = frame.read_header(read_at, start)
    if header is None:
        raise Truncated(
            f"the data ends at offset {end}, inside a frame header; the rest of the file is missing"
        )
    walk = FrameWalk(header)
    blocks = []
    at = start + header.nbytes
    info = FrameInfo(
        start,
        frame.VERSION,
        header.flags,
        header.model_id,
        header.content_size,
        header.nbytes,
        extensions=header.extensions,
        compact=header.compact,
    )
    while not walk.ended:
        where = f"block {walk.n_block + 1} at offset {at}"
        head = read_at(at, frame.MAX_BLOCK_HEADER_NBYTES)
        block = header.parse_block(head, where, walk.previous)
        if block is None:
            return info
        walk.admit(block, where)
        blocks.append(block)
        at += block.nbytes
    tail = walk.tail()
    if at + len(tail) > end:
        return info
    if read_at(at, len(tail)) != tail:
        raise Corrupt(f"index at offset {at}: does not agree with the blocks before it; the data is damaged")
    return replace(info, blocks=tuple(blocks), nbytes=at + len(tail) - start)


def frame_info(data: Any) -> FrameInfo:
    """What the frame at the start of `data` (any buffer) says; its header is enough.

    Raises:
        BadMagic, Truncated, Corrupt, Unsupported: if the header, or a block header that is there, is not one.
    """
    with byte_view(data) as view:
        return survey(lambda at, nbytes: bytes(view[at : at + nbytes]), 0, len(view))


def scan(fileobj: BinaryIO) -> list[FrameInfo]:
    """The frames of a file that can seek, from where it stands; it stands there again afterwards.

    Block headers are read and payloads skipped: the time depends on the number of blocks, and damage inside
    payloads is not seen.

    Raises:
        BadMagic, Truncated, Corrupt, Unsupported: if the frames do not follow one another to the end.
    """
    frames, trailing = scan_to_trailing(fileobj)
    if trailing is not None:
        raise trailing
    return frames


def scan_to_trailing(fileobj: BinaryIO) -> tuple[list[FrameInfo], TrailingData | None]:
    """As `scan`, but where something else than a frame follows the frames, that error is returned as well."""
    base = fileobj.tell()
    end = fileobj.seek(0, os.SEEK_END) - base

    def read_at(at: int, nbytes: int) -> bytes:
        fileobj.seek(base + at)
        return read_fully(fileobj.read, nbytes)

    try:
        frames: list[FrameInfo] = []
        at = 0
        while at < end or not frames:
            try:
                info = survey(read_at, at, end)
            except TrailingData as error:
                return frames, error
            if info.nbytes is None:
                raise Truncated(
                    f"the data ends at offset {end}, inside the frame at {at}; the rest is missing"
                )
            frames.append(info)
            at += info.nbytes
            while at < end:
                piece = read_at(at, _READ_NBYTES)
                n_zero = len(piece) - len(piece.lstrip(b"\0"))
                at += n_zero
                if not piece or n_zero < len(piece):
                    break
        return frames, None
    finally:
        fileobj.seek(base)
