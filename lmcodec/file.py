"""Compressed files: `open` and `LMFile`, in the manner of gzip, bz2 and compression.zstd.

Moves bytes between a file and the objects of `codec`, and finds its way in files that can seek by their
indexes; what the bytes of a frame mean is in `frame`.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast, overload

from lmcodec import frame
from lmcodec.codec import AUTO, DEFAULT_LEVEL, READ_NBYTES, Compressor, FrameReader, byte_view
from lmcodec.errors import LimitExceeded, LmcodecError, Truncated

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SKIP_NBYTES = 1 << 20
_BLOCK_NBYTES = 16  # that a block takes in a map
_FRAME_NBYTES = 512  # that a frame takes beside its blocks
_MAX_MAP_NBYTES = 64 << 20  # some two million blocks; a file of more is read from the start


class TruncatedFile(Truncated, EOFError):
    """A file that ends inside a frame; an EOFError as well, as it is with gzip."""


@dataclass(frozen=True)
class _IndexedFrame:
    """A frame in a file as its index tells: where each block starts, in the file and in the original.

    Both arrays end with where the last block does; offsets count from where the first frame starts.
    """

    offset: int
    header: frame.FrameHeader
    block_offsets: array[int]
    original_offsets: array[int]


class _Entries(Collection[tuple[int, int]]):
    """The (bytes, original bytes) of the first blocks of a frame, as its index has them."""

    def __init__(self, indexed: _IndexedFrame, n_block: int) -> None:
        self._indexed, self._n_block = indexed, n_block

    def __len__(self) -> int:
        return self._n_block

    def __iter__(self) -> Iterator[tuple[int, int]]:
        offsets, originals = self._indexed.block_offsets, self._indexed.original_offsets
        for i in range(self._n_block):
            yield offsets[i + 1] - offsets[i], originals[i + 1] - originals[i]

    def __contains__(self, entry: object) -> bool:
        return any(entry == own for own in self)


class _FileMap:
    """Frames that all have an index: where to start decoding for any offset of the original.

    Every number is checked against the file's size and the limits before an index is read.
    """

    def __init__(self, nbytes: int, frames: list[_IndexedFrame]) -> None:
        self.nbytes = nbytes
        self._frames = frames
        self._starts = [f.original_offsets[0] for f in frames]
        self.original_nbytes = frames[-1].original_offsets[-1]

    @classmethod
    def read(
        cls, read_at: Any, end: int, max_output: int | None = None, memory_limit: int | None = None
    ) -> _FileMap | None:
        """Follow the indexes from the end to the start.

        None if one is missing, does not hold or tells of more blocks than a file that keeps to `max_output`
        has: reading from the start will say what is wrong.

        Raises:
            LimitExceeded: the map takes more than `memory_limit`.
        """
        found: list[_IndexedFrame] = []
        nbytes, n_total = end, 0
        # A block holds a byte, but for one of each frame.
        n_most = sys.maxsize if max_output is None else 2 * max_output + 1
        try:
            while end > 0:
                footer_at = end - frame.FOOTER_NBYTES
                if footer_at < 0:
                    return None
                index_nbytes = frame.parse_footer(read_at(footer_at, frame.FOOTER_NBYTES))
                if index_nbytes is None or index_nbytes > footer_at:
                    return None
                index_at = footer_at - index_nbytes
                head = frame.parse_index_head(read_at(index_at, frame.INDEX_HEAD_NBYTES), index_at)
                if head is None:
                    return None
                header_nbytes, n_block, entries_at = head
                n_total += n_block
                room = index_at - header_nbytes  # for the blocks
                need = n_total * _BLOCK_NBYTES + (len(found) + 1) * _FRAME_NBYTES + 2 * index_nbytes
                if (
                    n_total > n_most
                    or need > _MAX_MAP_NBYTES
                    or n_block * frame.MIN_BLOCK_NBYTES > room
                    or not 2 * n_block <= index_nbytes - entries_at <= frame.MAX_ENTRY_NBYTES * n_block
                ):
                    return None
                if memory_limit is not None and need > memory_limit:
                    raise LimitExceeded(
                        f"index at offset {index_at}: finding blocks by it takes {need} bytes of memory, the "
                        f"limit is {memory_limit}; raise memory_limit, or read from the start"
                    )
                blocks, originals = array("Q", [0]), array("Q", [0])
                for block_nbytes, original_nbytes in frame.parse_entries(
                    read_at(index_at, end - index_at), index_at
                ):
                    if block_nbytes > room - blocks[-1] or original_nbytes > frame.MAX_BLOCK_NBYTES:
                        return None
                    blocks.append(blocks[-1] + block_nbytes)
                    originals.append(originals[-1] + original_nbytes)
                start = room - blocks[-1]
                header = frame.parse_header(read_at(start, frame.MAX_FRAME_HEADER_NBYTES), start)
                if header is None or header.nbytes != header_nbytes:
                    return None
                found.append(_IndexedFrame(start, header, blocks, originals))
                end = start
        except LimitExceeded:
            raise
        except LmcodecError:
            return None
        original_offset = 0
        for indexed in reversed(found):
            first = indexed.offset + indexed.header.nbytes
            for i in range(len(indexed.block_offsets)):
                indexed.block_offsets[i] += first
                indexed.original_offsets[i] += original_offset
            original_offset = indexed.original_offsets[-1]
        return cls(nbytes, found[::-1]) if found else None

    def find(self, original_offset: int, read_at: Any) -> tuple[_IndexedFrame, int]:
        """The frame and its block from which to decode up to `original_offset`, which lies before the end.

        Raises:
            LmcodecError: if what lies there is not the header of a block.
        """
        indexed = self._frames[bisect_right(self._starts, original_offset) - 1]
        block = bisect_right(indexed.original_offsets, original_offset) - 1
        while block and self._continues(indexed, block, read_at):
            block -= 1
        return indexed, block

    def _continues(self, indexed: _IndexedFrame, block: int, read_at: Any) -> bool:
        offset = indexed.block_offsets[block]
        head = read_at(offset, frame.MAX_BLOCK_HEADER_NBYTES)
        has_model = indexed.header.model_id is not None
        parsed = frame.parse_block(head, f"block {block + 1} at offset {offset}", has_model=has_model)
        return parsed is not None and parsed.continues


class _Decoded(io.RawIOBase):
    """The original of a file of frames, as a raw stream; io.BufferedReader does the rest."""

    def __init__(self, fp: BinaryIO, limits: dict[str, Any]) -> None:
        self._fp = fp
        self._frames = FrameReader(fp.read, **limits)
        self._map_limits = limits["max_output"], limits["memory_limit"]
        self._base = fp.tell() if self.seekable() else 0  # where the first frame starts
        self._map: _FileMap | None = None
        self._mapped = False
        self._original_nbytes: int | None = None  # known once the end was met

    def close(self) -> None:
        if not self.closed and hasattr(self, "_frames"):
            self._frames.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return hasattr(self._fp, "seekable") and self._fp.seekable()

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view, view.cast("B") as out:
            data = self._read(len(out))
            out[: len(data)] = data
            return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._read(_SKIP_NBYTES), b""))

    def _read(self, size: int) -> bytes:
        try:
            data = self._frames.read(size)
        except Truncated as error:
            raise TruncatedFile(str(error)) from None
        if size and not data:
            self._original_nbytes = self._frames.original_offset
        return data

    def tell(self) -> int:
        return self._frames.original_offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move in the original; beyond its end counts as its end."""
        if not self.seekable():
            raise io.UnsupportedOperation("the underlying file cannot seek")
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            offset += self._size()
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"cannot seek to {offset}, before the start")
        if offset != self.tell():
            self._approach(offset)
            while self.tell() < offset and self._read(min(offset - self.tell(), _SKIP_NBYTES)):
                pass
        return self.tell()

    def _approach(self, offset: int) -> None:
        """Jump to where decoding up to `offset` is best begun, unless going on from here is as good."""
        file_map = self._read_map()
        if file_map is None:
            if offset < self.tell():
                self._fp.seek(self._base)
                self._frames.jump(0, 0)
            return
        if offset >= file_map.original_nbytes:
            self._fp.seek(self._base + file_map.nbytes)
            self._frames.jump(file_map.nbytes, file_map.original_nbytes)
            return
        indexed, block = file_map.find(offset, self._read_at)
        start = indexed.original_offsets[block]
        if not start <= self.tell() <= offset:
            self._fp.seek(self._base + indexed.block_offsets[block])
            before = _Entries(indexed, block)
            self._frames.jump(indexed.block_offsets[block], start, indexed.header, before)

    def _size(self) -> int:
        file_map = self._read_map()
        if file_map is not None:
            return file_map.original_nbytes
        if self._original_nbytes is None:
            while self._read(_SKIP_NBYTES):
                pass
        assert self._original_nbytes is not None
        return self._original_nbytes

    def _read_map(self) -> _FileMap | None:
        if not self._mapped:
            here = self._fp.tell()
            end = self._fp.seek(0, io.SEEK_END) - self._base
            self._fp.seek(here)
            self._map = _FileMap.read(self._read_at, end, *self._map_limits)
            self._mapped = True
        return self._map

    def _read_at(self, at: int, nbytes: int) -> bytes:
        here = self._fp.tell()
        self._fp.seek(self._base + at)
        data = self._fp.read(nbytes)
        self._fp.seek(here)
        return data


class LMFile(io.BufferedIOBase):
    """A compressed file that reads or writes as its original.

    Concatenated frames read as one. Leaving a `with` block closes the file, and closing ends the frame,
    whatever happened inside: what was written before can be read. Not for several threads at once.

    Args:
        file: a path, or a binary file object, which is left open when this one is closed.
        mode: r, w, x (must not exist) or a (append a frame), with or without b.
        level, block_size, threads, solid, content_size, streams, groups, model, method: of writing, see
            `Compressor`.
        max_output, memory_limit, max_ratio, max_cpu_seconds, threads, model: of reading, see `Decompressor`.

    Raises:
        TypeError, ValueError: if an argument is out of range.
        ModelNotFound: if there is no such model.
        OSError: as the built-in open.
    """

    FLUSH_BLOCK = Compressor.FLUSH_BLOCK
    FLUSH_FRAME = Compressor.FLUSH_FRAME

    def __init__(
        self,
        file: FilePath | BinaryIO,
        mode: str = "r",
        *,
        level: int = DEFAULT_LEVEL,
        block_size: int | None = None,
        threads: int | None = None,
        solid: bool = False,
        content_size: int | None = None,
        streams: int | None = None,
        groups: int | None = None,
        max_output: int | None = None,
        memory_limit: int | None = None,
        max_ratio: float | None = None,
        max_cpu_seconds: float | None = None,
        model: str | os.PathLike[str] | None = None,
        method: str = AUTO,
    ) -> None:
        self._fp: BinaryIO | None = None
        self._owns_fp = False
        self._reader: io.BufferedReader | None = None
        self._compressor: Compressor | None = None
        self._position = 0
        self._has_frame = False
        self._closing = False
        if mode not in ("r", "rb", "w", "wb", "x", "xb", "a", "ab"):
            raise ValueError(f"mode must be r, w, x or a, with or without b, not {mode!r}")
        self._mode = "rb" if mode[0] == "r" else "wb"
        if mode[0] != "r":
            self._compressor = Compressor(
                level,
                block_size=block_size,
                threads=threads,
                solid=solid,
                content_size=content_size,
                streams=streams,
                groups=groups,
                model=model,
                method=method,
            )
        if isinstance(file, (str, bytes, os.PathLike)):
            self._fp = cast(BinaryIO, builtins.open(file, mode[0] + "b"))  # noqa: SIM115
            self._owns_fp = True
        elif hasattr(file, "read" if mode[0] == "r" else "write"):
            self._fp = file
        else:
            raise TypeError(f"file must be a path or a binary file object, not {type(file).__name__}")
        if mode[0] == "r":
            limits = {
                "max_output": max_output,
                "memory_limit": memory_limit,
                "max_ratio": max_ratio,
                "max_cpu_seconds": max_cpu_seconds,
                "threads": threads,
                "model": model,
            }
            try:
                self._reader = io.BufferedReader(_Decoded(self._fp, limits), READ_NBYTES)
            except BaseException:
                self.close()
                raise

    # Both directions

    @property
    def closed(self) -> bool:
        return self._fp is None

    @property
    def name(self) -> Any:
        """The name of the underlying file, "" if it has none."""
        return getattr(self._file(), "name", "")

    @property
    def mode(self) -> str:
        """rb or wb."""
        return self._mode

    def close(self) -> None:
        """End the frame and close what was opened here; closing again does nothing."""
        fp, self._fp = self._fp, None
        if fp is None:
            return
        try:
            if self._reader is not None:
                self._reader.close()
            elif self._compressor is not None and self._compressor.usable and self._frame_is_open():
                self._write_out(fp, self._compressor, self._compressor.flush())
        finally:
            self._reader = self._compressor = None
            if self._owns_fp:
                fp.close()

    def fileno(self) -> int:
        return self._file().fileno()

    def readable(self) -> bool:
        self._file()
        return self._mode == "rb"

    def writable(self) -> bool:
        self._file()
        return self._mode == "wb"

    def seekable(self) -> bool:
        self._file()
        return self._reader is not None and self._reader.seekable()

    def tell(self) -> int:
        """Where reading or writing is in the original."""
        self._file()
        return self._reader.tell() if self._reader is not None else self._position

    def _file(self) -> BinaryIO:
        if self._fp is None:
            raise ValueError("I/O operation on closed file")
        return self._fp

    # Reading

    def _source(self) -> io.BufferedReader:
        self._file()
        if self._reader is None:
            raise io.UnsupportedOperation("the file was opened for writing")
        return self._reader

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes of the original, all that are left if negative or None; b"" at the end.

        Raises:
            EOFError: if the file ends inside a frame (the error is a `Truncated` as well).
            LmcodecError: if it is damaged, of another version, or beyond a limit.
        """
        return self._source().read(-1 if size is None else size)

    def read1(self, size: int = -1) -> bytes:
        """Up to `size` bytes with at most one block decoded to get them; a buffer's worth if negative."""
        return self._source().read1(READ_NBYTES if size < 0 else size)

    def readinto(self, buffer: Any) -> int:
        return self._source().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        return self._source().readinto1(buffer)

    def readline(self, size: int | None = -1) -> bytes:
        return self._source().readline(-1 if size is None else size)

    def peek(self, size: int = -1) -> bytes:
        """At least one byte, unless at the end, without moving on."""
        return self._source().peek(size)

    def __next__(self) -> bytes:
        line = self._source().readline()
        if not line:
            raise StopIteration
        return line

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` of the original, counted from the start, from here (1) or from the end (2).

        Where every frame has an index, only blocks needed are decoded; otherwise all from the start may be.

        Raises:
            io.UnsupportedOperation: when writing, or if the underlying file cannot seek.
        """
        return self._source().seek(offset, whence)

    # Writing

    def write(self, data: Any) -> int:
        """Compress `data` (any buffer); returns its number of bytes."""
        fp = self._file()
        if self._compressor is None:
            raise io.UnsupportedOperation("the file was opened for reading")
        with byte_view(data) as view:
            if len(view):
                self._write_out(fp, self._compressor, self._compressor.compress(view))
                self._position += len(view)
            return len(view)

    def flush(self, mode: int = FLUSH_BLOCK) -> None:
        """End the block, so that all that was written can be read, or (FLUSH_FRAME) the frame.

        An ended block costs compression. Nothing happens where nothing was written since, or when reading.
        """
        fp = self._file()
        if self._compressor is None or self._closing:
            return
        if self._compressor.last_mode not in (mode, self.FLUSH_FRAME):
            self._write_out(fp, self._compressor, self._compressor.flush(mode))
        if hasattr(fp, "flush"):
            fp.flush()

    def _frame_is_open(self) -> bool:
        """Whether a frame must be ended; a file that nothing was written to holds an empty one."""
        assert self._compressor is not None
        return not self._has_frame or self._compressor.last_mode != self.FLUSH_FRAME

    def _write_out(self, fp: BinaryIO, compressor: Compressor, data: bytes) -> None:
        self._has_frame |= bool(data)
        with compressor.unusable_if_this_fails():  # a frame with a hole must not go on
            raw = isinstance(fp, io.RawIOBase)  # takes less than it is given, or nothing, as it likes
            while data:
                n_written = fp.write(data)
                if raw and n_written is None:
                    raise BlockingIOError("the file takes no data now: LMFile needs one that waits")
                data = data[n_written:] if raw else b""


class _TextFile(io.TextIOWrapper):
    """Text over an LMFile. Closing it ends the frame without ending a block first, as a flush would."""

    def close(self) -> None:
        if not self.closed:
            self.buffer._closing = True  # type: ignore[attr-defined]
        super().close()


@overload
def open(
    filename: FilePath | BinaryIO,
    mode: Literal["r", "rb", "w", "wb", "x", "xb", "a", "ab"] = "rb",
    **options: Any,
) -> LMFile: ...
@overload
def open(
    filename: FilePath | BinaryIO,
    mode: Literal["rt", "wt", "xt", "at"],
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> io.TextIOWrapper: ...
@overload
def open(filename: FilePath | BinaryIO, mode: str, **options: Any) -> LMFile | io.TextIOWrapper: ...
def open(
    filename: FilePath | BinaryIO,
    mode: str = "rb",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> LMFile | io.TextIOWrapper:
    """Open a compressed file as bytes or text.

    Args:
        filename: a path, or a binary file object, which is left open when this one is closed.
        mode: r, w, x or a, with b (the default) or t.
        encoding, errors, newline: of text, as for the built-in open.
        options: level, block_size, threads, max_output, model, ...: see `LMFile`.

    Raises:
        TypeError, ValueError: if an argument is out of range or makes no sense with the others.
    """
    if "t" not in mode:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"{name} makes no sense in binary mode: add t to mode {mode!r}")
        return LMFile(filename, mode, **options)
    if "b" in mode:
        raise ValueError(f"mode must have b or t, not both: {mode!r}")
    binary = LMFile(filename, mode.replace("t", "", 1), **options)
    try:
        return _TextFile(cast(Any, binary), encoding, errors, newline)
    except BaseException:
        binary.close()
        raise
