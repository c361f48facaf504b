"""What of damaged frames is sound: every block whose check holds, and where something is missing.

Two things show where blocks begin: the headers, which follow one another, and the index at a frame's end.
Where the one is damaged the other helps; where both are, block headers are looked for byte by byte. A block
counts as sound only if its check does, so nothing is given out that was not compressed so.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lmcodec import frame
from lmcodec.codec.base import Base
from lmcodec.codec.decompressor import Decompressor
from lmcodec.errors import (
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    PriorNotFound,
    Unsupported,
)
from lmcodec.frame import MAGIC, Block, FrameHeader, Method
from lmcodec.lm.bound import OtherEnvironment
from lmcodec.lm.executor import KERNEL

_CHUNK_NBYTES = 1 << 20
_N_FOLLOWING = 2  # block headers that follow one that is looked for byte by byte
# Bytes that a block header can begin with.
_FIRST = frozenset(b for b in range(64) if b & 7 in frozenset(Method))


@dataclass(frozen=True)
class Gap:
    """Something that cannot be given back.

    Attributes:
        offset, nbytes: what of the file is damaged or missing; 0 bytes if the file ends too early.
        original_offset: how many bytes were given out before.
        original_nbytes: how many are missing there; None if nothing says.
        reason: one line.
    """

    offset: int
    nbytes: int
    original_offset: int
    original_nbytes: int | None
    reason: str


@dataclass(frozen=True)
class _Indexed:
    """A frame as its index, whose check holds, tells of it."""

    start: int  # of the frame
    first: int  # of its first block
    end: int
    entries: tuple[tuple[int, int], ...]


def _reason(error: LmcodecError) -> str:
    """What it says, without the place, which a gap names itself."""
    return str(error).partition(": ")[2] or str(error)


class _Salvage:
    def __init__(
        self,
        read_at: Callable[[int, int], bytes],
        end: int,
        max_output: int | None,
        max_cpu_seconds: float | None,
        options: dict[str, Any],
    ) -> None:
        self._read_at, self._end = read_at, end
        self._max_output, self._options = max_output, options
        self._max_cpu_seconds, self._begun = max_cpu_seconds, time.process_time()
        self._decompressor: Decompressor | None = None
        self._given = 0

    # One block

    def _open(self, header: FrameHeader) -> Decompressor:
        options = dict(self._options)
        if self._max_cpu_seconds is not None:
            left = self._max_cpu_seconds - (time.process_time() - self._begun)
            if left <= 0:
                raise LimitExceeded(
                    f"decoding has taken {self._max_cpu_seconds:g} seconds of processor time, which is the "
                    "limit; raise max_cpu_seconds"
                )
            options["max_cpu_seconds"] = left
        decompressor = Decompressor(**options)
        # Of the header only the model and what it is bound to matter: what the frame as a whole should hold
        # may not be there.
        plain = FrameHeader(model_id=header.model_id, extensions=header.extensions, compact=header.compact)
        decompressor.decompress(plain.pack())
        return decompressor

    def _decode(self, header: FrameHeader, block: Block, at: int) -> bytes | str:
        """The original of the block at `at`, or why there is none."""
        if block.method == Method.END:
            return b""
        total = self._given + block.original_nbytes
        if self._max_output is not None and total > self._max_output:
            raise LimitExceeded(
                f"offset {at}: the data holds at least {total} bytes, the limit is {self._max_output}; raise "
                "max_output if you trust it"
            )
        if block.continues and self._decompressor is None:
            return "it continues a block that is damaged"
        decompressor, self._decompressor = self._decompressor, None
        if decompressor is None or not block.continues:
            decompressor = self._open(header)
        try:
            original = decompressor.decompress(self._read_at(at, block.nbytes))
        except (ModelNotFound, PriorNotFound, LimitExceeded, ConfigError, OtherEnvironment):
            raise
        except LmcodecError as error:
            return _reason(error)
        if len(original) != block.original_nbytes:
            return "it cannot be decoded"
        if not block.last:
            self._decompressor = decompressor
        return original

    def _block(self, at: int, end: int, header: FrameHeader, previous: Block | None) -> Block | None:
        """The block header at `at`, if there is one that can be read and a block that ends before `end`.

        Raises:
            Corrupt, Unsupported: there is something else.
        """
        head = self._read_at(at, frame.MAX_BLOCK_HEADER_NBYTES)
        block = header.parse_block(head, "block", previous)
        return None if block is None or at + block.nbytes > end else block

    # Frames

    def run(self) -> Iterator[bytes | Gap]:
        indexed = self._indexes()
        starts = [found.start for found in indexed]
        at = 0
        while at < self._end:
            i = bisect_left(starts, at)
            upcoming = indexed[i] if i < len(indexed) else None
            if upcoming is not None and upcoming.start == at:
                yield from self._by_index(upcoming)
                at = upcoming.end
            else:
                end = self._end if upcoming is None else upcoming.start
                at = yield from self._by_headers(at, end)
            self._decompressor = None

    def _indexes(self) -> list[_Indexed]:
        """The frames whose index holds, in their order; none overlaps another."""
        found: list[_Indexed] = []
        for at in self._find(frame.FOOTER_MAGIC, 0, self._end):
            end = at + len(frame.FOOTER_MAGIC)
            nbytes = frame.parse_footer(self._read_at(end - frame.FOOTER_NBYTES, frame.FOOTER_NBYTES))
            index_at = end - frame.FOOTER_NBYTES - (nbytes or 0)
            if nbytes is None or index_at < (found[-1].end if found else 0):
                continue
            try:
                index = frame.parse_index(self._read_at(index_at, end - index_at), index_at)
            except Corrupt:
                continue
            first = index_at - sum(entry[0] for entry in index.entries)
            start = first - index.header_nbytes
            if start >= (found[-1].end if found else 0):
                found.append(_Indexed(start, first, end, tuple(index.entries)))
        return found

    def _find(self, pattern: bytes, start: int, end: int) -> Iterator[int]:
        """Where `pattern` lies between `start` and `end`."""
        for place, chunk in self._chunks(start, end, overlap=len(pattern) - 1):
            at = chunk.find(pattern)
            while at >= 0:
                yield place + at
                at = chunk.find(pattern, at + 1)

    def _chunks(self, start: int, end: int, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
        """Where each begins, and the bytes between `start` and `end`, the first `overlap` of the next too."""
        for at in range(start, end, _CHUNK_NBYTES):
            yield at, self._read_at(at, min(_CHUNK_NBYTES + overlap, end - at))

    def _headers_to_try(self, indexed: _Indexed) -> Iterator[FrameHeader]:
        """The frame's header; if it is damaged, what it may have been: a block's check tells."""
        try:
            header = frame.read_header(self._read_at, indexed.start)
            if header is not None and header.nbytes == indexed.first - indexed.start:
                yield header
                return
        except LmcodecError:
            pass
        yield from self._guesses()

    def _guesses(self) -> Iterator[FrameHeader]:
        from lmcodec.lm import store

        given = self._options.get("model")
        if given is not None:
            limit, executor = self._options.get("memory_limit"), self._options.get("executor", KERNEL)
            yield FrameHeader(model_id=bytes.fromhex(store.id_of(store.find(given), limit, executor)))
        for number in store.SHIPPED:
            yield FrameHeader(model_id=number)
        yield FrameHeader()

    def _by_index(self, indexed: _Indexed) -> Iterator[bytes | Gap]:
        candidates = list(self._headers_to_try(indexed))
        if len(candidates) > 1:
            # No bytes of the original are in it.
            nbytes = indexed.first - indexed.start
            yield Gap(indexed.start, nbytes, self._given, 0, "the frame header is damaged")
        at = indexed.first
        previous: Block | None = None
        for number, (nbytes, original_nbytes) in enumerate(indexed.entries, 1):
            result: bytes | str = "its header is damaged"
            for header in list(candidates):
                try:
                    block = self._block(at, at + nbytes, header, previous)
                except (Corrupt, Unsupported):
                    block = None
                if block is None or (block.nbytes, block.original_nbytes) != (nbytes, original_nbytes):
                    previous = None
                    continue
                result = self._decode(header, block, at)
                previous = block
                if isinstance(result, bytes):
                    if block.method.needs_model:
                        candidates = [header]
                    break
            if isinstance(result, str):
                self._decompressor = None
                yield Gap(at, nbytes, self._given, original_nbytes, f"block {number}: {result}")
            elif result:
                self._given += len(result)
                yield result
            at += nbytes

    def _by_headers(self, start: int, end: int) -> Generator[bytes | Gap, None, int]:
        """What stands before `end` and has no index that holds, up to the next frame; returns its end."""
        if self._read_at(start, 1) == bytes([frame.COMPACT_MAGIC]):
            found = yield from self._compact(start, end)
            if found is not None:
                return found
        following = next(self._find(MAGIC, start, end), end)
        if following > start and not any(chunk.strip(b"\0") for _, chunk in self._chunks(start, following)):
            return following  # padding
        reason, header, at = "here is no frame", None, start
        if following == start:
            try:
                header, reason = frame.read_header(self._read_at, start), "the file ends in a frame header"
            except (Corrupt, Unsupported) as error:
                reason = _reason(error)
        if header is not None:
            at += header.nbytes
        else:
            # Blocks may be there: of a model that ships, if they need one.
            header = next(self._guesses())
            at = self._resynchronise(start + 1, end, header)
            yield Gap(start, at - start, self._given, None, reason)
            if at == end or self._read_at(at, len(MAGIC)) == MAGIC:
                return at
        given_before = self._given
        number, known = 1, True
        previous: Block | None = None
        while at < end:
            try:
                block, reason = self._block(at, end, header, previous), "it is cut"
            except (Corrupt, Unsupported) as error:
                block, reason = None, _reason(error)
            if block is None:
                self._decompressor = previous = None
                following = self._resynchronise(at + 1, end, header)
                yield Gap(at, following - at, self._given, None, f"block {number}: {reason}")
                known = False
                if following == end or self._read_at(following, len(MAGIC)) == MAGIC:
                    at = following
                    break
                at, number = following, number + 1
                continue
            result = self._decode(header, block, at)
            if isinstance(result, str):
                self._decompressor = None
                yield Gap(at, block.nbytes, self._given, block.original_nbytes, f"block {number}: {result}")
                given_before -= block.original_nbytes
            elif result:
                self._given += len(result)
                yield result
            at += block.nbytes
            previous, number = block, number + 1
            if block.last and not isinstance(result, str):
                return (yield from self._after_last(header, at, end))
        size = header.content_size
        missing = None if size is None else size - (self._given - given_before)
        if missing is None or missing > 0:
            known_size = missing if known else None
            yield Gap(at, 0, self._given, known_size, f"the frame at offset {start} has no end")
        return at

    def _compact(self, start: int, end: int) -> Generator[bytes | Gap, None, int | None]:
        """The compact frame at `start`; returns its end, None if there is none."""
        try:
            header = frame.read_header(self._read_at, start)
            at = start + frame.COMPACT_HEADER_NBYTES
            block = None if header is None else self._block(at, end, header, None)
        except (Corrupt, Unsupported):
            return None
        if header is None or block is None:
            return None
        result = self._decode(header, block, at)
        if isinstance(result, str):
            nbytes = at + block.nbytes - start
            yield Gap(start, nbytes, self._given, block.original_nbytes, f"compact frame: {result}")
        elif result:
            self._given += len(result)
            yield result
        return at + block.nbytes

    def _after_last(self, header: FrameHeader, at: int, end: int) -> Generator[bytes | Gap, None, int]:
        """What follows the last block of a frame without an index that holds; returns its end."""
        if not header.has_index:
            return at
        following = next(self._find(MAGIC, at, end), end)
        footer = next(self._find(frame.FOOTER_MAGIC, at, following), None)
        if footer is not None:
            following = footer + len(frame.FOOTER_MAGIC)
        yield Gap(at, following - at, self._given, 0, "the index is damaged or cut")
        return following

    def _resynchronise(self, start: int, end: int, header: FrameHeader) -> int:
        """Where the next frame begins, or a block header that others follow; `end` if there is none."""
        limit = next(self._find(MAGIC, start, end), end)
        for at, chunk in self._chunks(start, limit):
            for i, byte in enumerate(chunk, at):
                if byte in _FIRST and self._leads_on(i, limit, header):
                    return i
        return limit

    def _leads_on(self, at: int, end: int, header: FrameHeader) -> bool:
        """Whether there is a header of an independent block at `at`, and others where they should be."""
        previous: Block | None = None
        for _ in range(1 + _N_FOLLOWING):
            try:
                block = self._block(at, end, header, previous)
            except (Corrupt, Unsupported):
                return False
            if block is None or (previous is None and (block.continues or block.method == Method.END)):
                return False
            at += block.nbytes
            if block.last:
                return previous is not None or block.method != Method.STORED
            previous = block
        return True


def salvage(
    read_at: Callable[[int, int], bytes],
    end: int,
    *,
    max_output: int | None = None,
    max_cpu_seconds: float | None = None,
    **options: Any,
) -> Iterator[bytes | Gap]:
    """Give out what of a damaged file of frames is sound, in order, and a `Gap` wherever something is not.

    Args:
        read_at: returns what stands at an offset, up to a number of bytes.
        end: bytes of the file.
        max_output, max_cpu_seconds: of all together, as for `Decompressor`.
        options: `memory_limit`, `threads`, `model`, `executor`, `any_environment`, `prior`, `base`, as for
            `Decompressor`.

    Raises:
        ModelNotFound, PriorNotFound, LimitExceeded: as `Decompressor`; what is not damaged is not passed
            over.
    """
    options["base"] = Base.of(options.get("base"))
    return _Salvage(read_at, end, max_output, max_cpu_seconds, options).run()


def merged(gaps: Iterator[Gap] | list[Gap]) -> list[Gap]:
    """Gaps of which one begins where the one before ends, in the file and in the original, become one."""
    out: list[Gap] = []
    for gap in gaps:
        last = out[-1] if out else None
        if (
            last is not None
            and last.original_offset == gap.original_offset
            and last.offset + last.nbytes == gap.offset
        ):
            known = None not in (last.original_nbytes, gap.original_nbytes)
            total = (last.original_nbytes or 0) + (gap.original_nbytes or 0) if known else None
            out[-1] = replace(last, nbytes=last.nbytes + gap.nbytes, original_nbytes=total)
        else:
            out.append(gap)
    return out
