"""Compressed files: `open` and `LMFile`, in the manner of gzip, bz2 and compression.zstd.

Moves bytes between a file and the objects of `codec`, and finds its way in files that can seek by their
indexes; what the bytes of a frame mean is in `frame`.
"""

from __future__ import annotations

import atexit
import builtins
import codecs
import gc
import io
import os
import select
import stat
import sys
import threading
import weakref
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, ClassVar, Literal, cast, overload

from lmcodec import frame
from lmcodec.codec import (
    AUTO,
    DEFAULT_LEVEL,
    READ_NBYTES,
    Compressor,
    FrameReader,
    byte_view,
    read_fully,
    scan,
    stored_frame,
)
from lmcodec.codec.base import Base, BasePath
from lmcodec.codec.prior import Priors
from lmcodec.errors import LimitExceeded, LmcodecError, TrailingData, Truncated
from lmcodec.lm.executor import KERNEL
from lmcodec.lm.store import FilePath as ModelPath

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SKIP_NBYTES = 1 << 20
_BLOCK_NBYTES = 16  # that a block takes in a map
_FRAME_NBYTES = 512  # that a frame takes beside its blocks
_MAX_MAP_NBYTES = 64 << 20  # some two million blocks; a file of more is read from the start
_EMPTY_NBYTES = 1 << 12  # a file of more holds more than frames that hold nothing


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


class FileMap:
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
    ) -> FileMap | None:
        """Follow the indexes from the end to the start.

        None if one is missing, does not hold or tells of more blocks than a file that keeps to `max_output`
        has: reading from the start will say what is wrong.

        Raises:
            LimitExceeded: the map takes more than `memory_limit`.
        """
        found: list[_IndexedFrame] = []
        nbytes, n_total, fields_nbytes = end, 0, 0
        # A block holds a byte, but for one of each frame.
        n_most = sys.maxsize if max_output is None else 2 * max_output + 1
        try:
            while end > 0:
                end = _without_padding(read_at, end)
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
                fields_nbytes += max(header_nbytes - frame.PLAIN_FRAME_HEADER_NBYTES, 0)
                need = n_total * _BLOCK_NBYTES + (len(found) + 1) * _FRAME_NBYTES + 2 * index_nbytes
                need += fields_nbytes
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
                header = frame.read_header(read_at, start)
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
        """The frame and its block from which to decode up to `original_offset`, which lies before the end."""
        indexed = self._frames[bisect_right(self._starts, original_offset) - 1]
        block = bisect_right(indexed.original_offsets, original_offset) - 1
        while block and self._continues(indexed, block, read_at):
            block -= 1
        return indexed, block

    def blocks(self) -> Iterator[tuple[frame.FrameHeader, int, int, int]]:
        """Of every block: its frame's header, where it lies, its bytes, where its original begins."""
        for indexed in self._frames:
            offsets, originals = indexed.block_offsets, indexed.original_offsets
            for i in range(len(offsets) - 1):
                if originals[i + 1] > originals[i]:
                    yield indexed.header, offsets[i], offsets[i + 1] - offsets[i], originals[i]

    def _continues(self, indexed: _IndexedFrame, block: int, read_at: Any) -> bool:
        return frame.continues(read_at(indexed.block_offsets[block], 1))


def _without_padding(read_at: Any, end: int) -> int:
    """Where the zero bytes begin that end at `end`."""
    while end > 0:
        n = min(end, READ_NBYTES)
        piece = read_at(end - n, n).rstrip(b"\0")
        end -= n - len(piece)
        if piece:
            break
    return end


class _Input:
    """The file that frames are read from, of which only `read` is needed."""

    def __init__(self, fp: Any) -> None:
        self._fp = fp
        self._read = fp.read
        # A buffered file's read waits until it has as much as it was asked for; read1 takes what is there.
        self._read1 = getattr(fp, "read1", None)
        self.seekable = self._can_seek()
        self._poll = self._poller()

    def _can_seek(self) -> bool:
        try:
            return bool(self._fp.seekable()) and self._fp.tell() >= 0
        except (AttributeError, OSError, TypeError):
            return False

    def _poller(self) -> Any:
        """What asks whether there is something to read; None for a file on disk, or for what cannot tell."""
        try:
            fd = self._fp.fileno()
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                return lambda: poll.poll(0)
            select.select([fd], [], [], 0)  # of Windows: sockets only
            return lambda: select.select([fd], [], [], 0)[0]
        except (AttributeError, OSError, TypeError, ValueError):
            return None

    def read(self, nbytes: int) -> Any:
        if self._read1 is not None:
            try:
                return self._read1(nbytes)
            except (io.UnsupportedOperation, NotImplementedError):
                self._read1 = None
        return self._read(nbytes)

    def ready(self) -> bool:
        """Whether `read` returns at once."""
        try:
            return self.seekable if self._poll is None else bool(self._poll())
        except (OSError, ValueError):
            return False


class _Decoded(io.RawIOBase):
    """The original of a file of frames, as a raw stream; io.BufferedReader does the rest.

    Attributes:
        trailing: what follows the frames is not one: this was met, and counts as the end. Who reads past it
            is to be told.
    """

    def __init__(self, fp: BinaryIO, limits: dict[str, Any]) -> None:
        self._fp = fp
        self._input = _Input(fp)
        self._frames = FrameReader(self._input.read, ready=self._input.ready, **limits)
        self._map_limits = limits["max_output"], limits["memory_limit"]
        self._base = fp.tell() if self._input.seekable else 0  # where the first frame starts
        self._map: FileMap | None = None
        self._mapped = False
        self._original_nbytes: int | None = None  # known once the end was met
        self.trailing: TrailingData | None = None

    def close(self) -> None:
        if not self.closed and hasattr(self, "_frames"):
            self._frames.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._input.seekable

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view, view.cast("B") as out:
            data = self._read(len(out))
            out[: len(data)] = data
            return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(partial(self._read, _SKIP_NBYTES), b""))

    def _read(self, size: int) -> bytes:
        if self.trailing is not None:
            return b""
        try:
            data = self._frames.read(size)
        except Truncated as error:
            raise TruncatedFile(str(error)) from None
        except TrailingData as error:
            self.trailing, data = TrailingData(str(error)), b""
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
                self.trailing = None
            return
        self.trailing = None
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

    def _read_map(self) -> FileMap | None:
        if not self._mapped:
            here = self._fp.tell()
            end = self._fp.seek(0, io.SEEK_END) - self._base
            self._fp.seek(here)
            self._map = FileMap.read(self._read_at, end, *self._map_limits)
            self._mapped = True
        return self._map

    def _read_at(self, at: int, nbytes: int) -> bytes:
        here = self._fp.tell()
        self._fp.seek(self._base + at)
        data = read_fully(self._fp.read, nbytes)
        self._fp.seek(here)
        return data


class _Output:
    """The frames that go into a file. It lives until it is closed, whatever becomes of the LMFile.

    Where nobody closes that, its finalizer does, or else the end of the interpreter. The file that is written
    to must not be finalized before: this object keeps it from being part of what the collector takes.

    A process that is forked off inherits the object, and what its parent has not written yet. It ends no
    frame of its parent's: to a file that it does not write to itself it adds nothing.

    A finalizer or a signal handler may call it while the same thread is within a call: what it asks for is
    done after that.

    Args:
        file: whose data it is, for as long as it lives.
        owns_fp: close `fp`, too.
    """

    _open: ClassVar[dict[int, _Output]] = {}
    _child_pid: ClassVar[int] = 0  # of the process whose end multiprocessing sees to
    _ending: ClassVar[bool] = False  # the interpreter ends: nothing will end a frame but the next write

    def __init__(self, file: LMFile, fp: Any, owns_fp: bool, compressor: Compressor) -> None:
        self._file, self._owns_fp = weakref.ref(file), owns_fp
        self.fp = fp
        self._compressor = compressor
        self._has_frame = False
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._is_closed = False
        self._at_work, self._waiting = False, deque[Callable[[], None]]()
        self._open[id(self)] = self
        self._end_with_child()

    @classmethod
    def _end_with_child(cls) -> None:
        """Let a process that multiprocessing forked off end all frames: it calls no other exit handlers."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is None or multiprocessing.parent_process() is None:
            return
        if cls._child_pid != os.getpid():
            from multiprocessing.util import Finalize

            cls._child_pid = os.getpid()
            Finalize(None, cls.end_all, exitpriority=-1000)  # after those of others

    @property
    def inherited(self) -> bool:
        """Whether another process opened this, and this one has not written to it."""
        return self._pid != os.getpid()

    def write(self, data: memoryview) -> None:
        if self.inherited:
            if self._ending:
                return  # what a wrapper held when this process was forked off, and holds in its parent
            self._pid, self._lock = os.getpid(), threading.RLock()
            self._at_work = False
            self._waiting.clear()
            self._end_with_child()
        with self._lock:
            self._do(partial(self._write, memoryview(bytes(data)) if self._at_work else data))

    def _write(self, data: memoryview) -> None:
        between_frames = self._compressor.usable and self._compressor.last_mode == Compressor.FLUSH_FRAME
        if sys.meta_path is None and between_frames:  # finalizers, while the interpreter is taken apart
            self._put(stored_frame(data))
            self._flush_fp()
            return
        ends = self._ending
        mode = Compressor.FLUSH_FRAME if ends else Compressor.CONTINUE
        self._put(self._compressor.compress(data, mode))
        if ends:
            self._flush_fp()

    def flush(self, mode: int) -> None:
        if not self.inherited:
            self._do(partial(self._flush, mode))

    def _flush(self, mode: int) -> None:
        if self._compressor.last_mode not in (mode, Compressor.FLUSH_FRAME):
            self._put(self._compressor.flush(mode))
        self._flush_fp()

    def close(self) -> None:
        """End the frame, and close the file that is written to, if that is to be closed."""
        if self.inherited:
            self._close_fp()
        else:
            self._do(self._close)

    def finalize(self) -> None:
        """End the frame: nobody has the LMFile any more but a finalizer that may write to it, or close it."""
        if not self.inherited:
            self._do(self._end_and_flush)
        self._open.pop(id(self), None)

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self.close()

    def _close(self) -> None:
        try:
            self._end()
        finally:
            self._close_fp()

    def _close_fp(self) -> None:
        self._is_closed = True
        self._open.pop(id(self), None)
        if self._owns_fp and hasattr(self.fp, "close"):
            self.fp.close()

    def _do(self, work: Callable[[], None]) -> None:
        """Now, or when this thread has done what it is doing here."""
        with self._lock:
            if self._at_work:
                self._waiting.append(work)
                return
            self._at_work = True
            try:
                try:
                    work()
                finally:
                    while self._waiting:
                        self._waiting.popleft()()
            finally:
                self._at_work = False

    def _end(self) -> None:
        # A file that nothing was written to holds an empty frame.
        is_open = not self._has_frame or self._compressor.last_mode != Compressor.FLUSH_FRAME
        if is_open and self._compressor.usable:
            self._put(self._compressor.flush())

    def _end_and_flush(self) -> None:
        self._end()
        self._flush_fp()

    def _flush_fp(self) -> None:
        if hasattr(self.fp, "flush"):
            self.fp.flush()

    def _put(self, data: bytes) -> None:
        self._has_frame |= bool(data)
        with self._compressor.unusable_if_this_fails():  # a frame with a hole must not go on
            raw = isinstance(self.fp, io.RawIOBase)  # takes nothing, where it would have to wait
            while data:
                n = self.fp.write(data)
                if not isinstance(n, int) or isinstance(self.fp, io.BufferedIOBase):
                    if raw:
                        raise BlockingIOError("the file takes no data now: LMFile needs one that waits")
                    return
                if n <= 0:
                    raise OSError(f"the file took {n} of {len(data)} bytes")
                data = data[n:]

    @classmethod
    def end_all(cls) -> None:
        """End all frames, at the interpreter's end. What is written later is a frame for each write."""
        cls._ending = True
        for output in list(cls._open.values()):
            try:
                output._end_with_interpreter()
            except BaseException as error:
                if sys.stderr is not None:
                    name = getattr(output.fp, "name", output.fp)
                    print(
                        f"lmcodec: {name}: nobody closed it, and at the interpreter's end it could not be "
                        f"completed: {type(error).__name__}: {error}",
                        file=sys.stderr,
                    )

    def _end_with_interpreter(self) -> None:
        if self.inherited:
            return
        file = self._file()
        if file is not None:
            with file.passing_flushes():
                _flush_wrappers(file)
        # Another thread may be writing, and may do so for ever.
        if not self._lock.acquire(timeout=10):
            raise TimeoutError("another thread is writing to the file")
        try:
            self._do(self._end_and_flush)
        finally:
            self._lock.release()


def _flush_wrappers(file: Any) -> None:
    """Let the files that stand before `file`, such as an io.TextIOWrapper, pass on what they hold."""
    for outer in gc.get_referrers(file):
        if isinstance(outer, io.IOBase) and not outer.closed and outer.writable():
            _flush_wrappers(outer)
            outer.flush()


# Others, logging among them, may write when this was called: they are kept, too, as frames of their own.
atexit.register(_Output.end_all)


class LMFile(io.BufferedIOBase):
    """A compressed file that reads or writes as its original.

    Concatenated frames read as one. Leaving a `with` block closes the file, and closing ends the frame,
    whatever happened inside: what was written before can be read. A file that nobody closes is closed when it
    is dropped, and at the latest when the interpreter ends. Not for several threads at once.

    Args:
        file: a path, or a binary file object, which is left open when this one is closed.
        mode: r, w, x (must not exist) or a (append a frame), with or without b.
        level, block_size, threads, solid, content_size, streams, groups, model, method, executor, prior,
            base: of writing, see `Compressor`.
        max_output, memory_limit, max_ratio, max_cpu_seconds, threads, model, executor, any_environment,
            prior, base: of reading, see `Decompressor`.

    Raises:
        TypeError, ValueError: if an argument is out of range.
        ModelNotFound: if there is no such model.
        OSError: as the built-in open.
    """

    FLUSH_BLOCK = Compressor.FLUSH_BLOCK
    FLUSH_FRAME = Compressor.FLUSH_FRAME

    # What an object has that was never opened.
    _fp: BinaryIO | None = None
    _owns_fp = False
    _takes_fp = False  # a file object that is given is closed with this one
    _output: _Output | None = None
    _decoded: _Decoded | None = None
    _reader: io.BufferedReader | None = None
    _position = 0
    _told: int | None = None  # what tell says while a text file is made
    _appends = False  # something stands before what is written
    _passes_flushes = False  # what a wrapper flushes is written on, without ending a block

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
        model: ModelPath | None = None,
        method: str = AUTO,
        executor: str = KERNEL,
        any_environment: bool = False,
        prior: Priors = None,
        base: BasePath | Base | None = None,
    ) -> None:
        if mode not in ("r", "rb", "w", "wb", "x", "xb", "a", "ab"):
            raise ValueError(f"mode must be r, w, x or a, with or without b, not {mode!r}")
        self._mode = "rb" if mode[0] == "r" else "wb"
        compressor = None
        if mode[0] != "r":
            compressor = Compressor(
                level,
                block_size=block_size,
                threads=threads,
                solid=solid,
                content_size=content_size,
                streams=streams,
                groups=groups,
                model=model,
                method=method,
                executor=executor,
                prior=prior,  # type: ignore[arg-type]
                base=base,
            )
        if isinstance(file, (str, bytes, os.PathLike)):
            # Without a buffer where it is written: what is in one would be written again by a forked process.
            buffering = -1 if compressor is None else 0
            self._fp = cast(BinaryIO, builtins.open(file, mode[0] + "b", buffering))  # noqa: SIM115
            self._owns_fp = True
        elif hasattr(file, "read" if mode[0] == "r" else "write"):
            self._fp, self._owns_fp = file, self._takes_fp
        else:
            raise TypeError(f"file must be a path or a binary file object, not {type(file).__name__}")
        if compressor is not None:
            self._output = _Output(self, self._fp, self._owns_fp, compressor)
            self._appends = mode[0] == "a" and self._holds_something(file)
        else:
            limits = {
                "max_output": max_output,
                "memory_limit": memory_limit,
                "max_ratio": max_ratio,
                "max_cpu_seconds": max_cpu_seconds,
                "threads": threads,
                "model": model,
                "executor": executor,
                "any_environment": any_environment,
                "prior": prior,
                "base": base,
            }
            try:
                self._decoded = _Decoded(self._fp, limits)
                self._reader = io.BufferedReader(self._decoded, READ_NBYTES)
            except BaseException:
                self.close()
                raise

    def _holds_something(self, file: FilePath | BinaryIO) -> bool:
        """Whether there is a text before what is appended: more than frames that hold nothing."""
        try:
            fp = cast(BinaryIO, self._fp)
            is_path = isinstance(file, (str, bytes, os.PathLike))
            nbytes = fp.seek(0, io.SEEK_END) if is_path else fp.tell()
            if not is_path or not 0 < nbytes <= _EMPTY_NBYTES:
                return nbytes > 0
            with builtins.open(cast(FilePath, file), "rb") as written:
                return any(info.original_nbytes for info in scan(written))
        except (AttributeError, OSError, LmcodecError):
            return True

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
        output, reader = self._output, self._reader
        self._output = self._reader = self._decoded = None
        if output is not None:
            output.close()
            return
        try:
            if reader is not None:
                reader.close()
        finally:
            if self._owns_fp and hasattr(fp, "close"):
                fp.close()

    def __del__(self) -> None:
        # That of io.IOBase would say nothing of data that could not be written. Where the collector takes
        # this and a wrapper of it, the wrapper may be finalized after it, and pass on then what it holds.
        output = self._output
        if output is None or type(self).close is not LMFile.close:
            self.close()
        else:
            output.finalize()

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
        return self._told is not None or (self._reader is not None and self._reader.seekable())

    def tell(self) -> int:
        """Where reading or writing is in the original."""
        self._file()
        if self._told is not None:
            return self._told
        return self._reader.tell() if self._reader is not None else self._position

    @contextmanager
    def telling_start(self) -> Iterator[None]:
        """Meanwhile a file that is written says that it can seek, and whether it stands at its start.

        An io.TextIOWrapper asks that when it is made, and begins a text with a byte order mark only there.
        """
        if self._output is not None:
            self._told = int(self._appends)
        try:
            yield
        finally:
            self._told = None

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

    def _require_end(self, wanted: bool = True) -> None:
        """Where nothing is left of the original, but something was `wanted`, refuse what follows frames."""
        if wanted and self._decoded is not None and self._decoded.trailing is not None:
            raise TrailingData(str(self._decoded.trailing))

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes of the original, all that are left if negative or None; b"" at the end.

        Raises:
            EOFError: if the file ends inside a frame (the error is a `Truncated` as well).
            TrailingData: if something else than zero bytes follows the frames, and what they hold was read
                before, or all was asked for.
            LmcodecError: if it is damaged, of another version, or beyond a limit.
        """
        size = -1 if size is None else size
        data = self._source().read(size)
        if not data or size < 0:
            self._require_end(size != 0)
        return data

    def read1(self, size: int = -1) -> bytes:
        """Up to `size` bytes with at most one block decoded to get them; a buffer's worth if negative.

        A block is given out as soon as it is all there: of a file that is being written, what was flushed.
        """
        data = self._source().read1(READ_NBYTES if size < 0 else size)
        if not data:
            self._require_end(size != 0)
        return data

    def readinto(self, buffer: Any) -> int:
        n = self._source().readinto(buffer)
        if not n:
            self._require_end(memoryview(buffer).nbytes > 0)
        return n

    def readinto1(self, buffer: Any) -> int:
        n = self._source().readinto1(buffer)
        if not n:
            self._require_end(memoryview(buffer).nbytes > 0)
        return n

    def readline(self, size: int | None = -1) -> bytes:
        line = self._source().readline(-1 if size is None else size)
        if not line:
            self._require_end(size != 0)
        return line

    def peek(self, size: int = -1) -> bytes:
        """At least one byte, unless at the end, without moving on."""
        data = self._source().peek(size)
        if not data:
            self._require_end()
        return data

    def __next__(self) -> bytes:
        line = self.readline()
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
        self._file()
        if self._output is None:
            raise io.UnsupportedOperation("the file was opened for reading")
        with byte_view(data) as view:
            if len(view):
                self._output.write(view)
                self._position += len(view)
            return len(view)

    def flush(self, mode: int = FLUSH_BLOCK) -> None:
        """End the block, so that all that was written can be read, or (FLUSH_FRAME) the frame.

        An ended block costs some ten bytes; the next one goes on from what was learned, see
        `Compressor.flush`. Nothing happens where nothing was written since, or when reading.
        """
        self._file()
        if self._output is not None and not self._passes_flushes:
            self._output.flush(mode)

    @property
    def inherited(self) -> bool:
        """Whether another process opened this for writing, and this one has not written to it."""
        return self._output is not None and self._output.inherited

    @contextmanager
    def passing_flushes(self) -> Iterator[None]:
        """Meanwhile a wrapper's flush passes on its data and ends no block."""
        self._passes_flushes = True
        try:
            yield
        finally:
            self._passes_flushes = False


class _TextFile(io.TextIOWrapper):
    """Text over an LMFile, to which every write is passed on at once: nothing is left here to be lost.

    Closing it ends the frame without ending a block first, as a flush would.
    """

    def __init__(self, binary: LMFile, encoding: str | None, errors: str | None, newline: str | None) -> None:
        self._encoder: codecs.IncrementalEncoder | None = None
        with binary.telling_start():
            super().__init__(cast(Any, binary), encoding, errors, newline, write_through=True)
        # These encodings leave ASCII by a sequence of bytes and have to come back to it at the end, which a
        # TextIOWrapper does not see to: what is appended would be read as something else.
        if binary.writable() and codecs.lookup(self.encoding).name.startswith(("iso2022", "hz")):
            self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors or "strict")

    def write(self, text: str) -> int:
        n = super().write(text)
        if self._encoder is not None:
            self._encoder.encode(text)
        return n

    def close(self) -> None:
        if self.closed:
            return
        encoder, self._encoder = self._encoder, None
        with cast(LMFile, self.buffer).passing_flushes():
            try:
                if encoder is not None and not cast(LMFile, self.buffer).inherited:
                    self.flush()
                    self.buffer.write(encoder.encode("", True))
            finally:
                super().close()

    def __del__(self) -> None:
        # That of io.IOBase would say nothing of data that could not be written.
        try:
            closed = self.closed
        except ValueError:  # it never was a file
            return
        if not closed:
            self.close()


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
    # A warning of encoding=None names our caller's line.
    encoding = io.text_encoding(encoding)  # type: ignore[attr-defined]
    binary = LMFile(filename, mode.replace("t", "", 1), **options)
    try:
        return _TextFile(binary, encoding, errors, newline)
    except BaseException:
        binary.close()
        raise
