"""How far a file is: what is done, at what rate, and how long the rest will take.

The codec works on several blocks of some MiB at once, for a minute or so each: bytes that it took say little.
What its engines say of the blocks at work does, and for the ratio the blocks that came out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcodec.errors import LmcodecError

if TYPE_CHECKING:
    from lmcodec.frame import FrameWalk


def printable(name: str) -> str:
    """A file's name as one printable line: bytes that are no text and control characters are escaped."""

    def escaped(c: str) -> str:
        if "\udc80" <= c <= "\udcff":  # how Python holds a byte that is no text
            return f"\\x{ord(c) - 0xDC00:02x}"
        return c if c.isprintable() else c.encode("unicode_escape").decode()

    return "".join(map(escaped, name)) or "''"


def width_of(text: str) -> int:
    """Columns that a terminal takes for printable text; where terminals differ, the most that one takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    def columns(c: str) -> int:
        if c == "\ufe0f":  # makes an emoji of the sign before it, which is then wide
            return 1
        if unicodedata.category(c) in ("Mn", "Me"):  # drawn over the sign before it
            return 0
        is_flag = "\U0001f1e6" <= c <= "\U0001f1ff"  # one letter of a flag
        return 2 if is_flag or unicodedata.east_asian_width(c) in "WF" else 1

    return sum(map(columns, text))


def clipped(text: str, width: int) -> str:
    """As much of the text's beginning as fits."""
    text = text[: max(width, 0)] if text.isascii() else text
    while width_of(text) > max(width, 0):
        text = text[:-1]
    return text


def encodable(text: str, encoding: str) -> str:
    """The text as a stream of that encoding will show it: what it has no form for is escaped."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def size_text(nbytes: float) -> str:
    """Bytes with a binary unit, three digits or so."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while nbytes >= 1000 and len(units) > 1:
        nbytes /= 1024
        del units[0]
    return f"{nbytes:.{0 if units[0] == 'B' or nbytes >= 100 else 1}f} {units[0]}"


def time_text(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def ratio_text(original_nbytes: int, compressed_nbytes: int) -> str:
    """Bits per byte of the original, and the compressed size as a share of it."""
    if not original_nbytes:
        return "-"
    return f"{8 * compressed_nbytes / original_nbytes:.3f} bpb, {compressed_nbytes / original_nbytes:.1%}"


def named_line(name: str, figures: str, width: int) -> str:
    """A line of progress of at most `width` columns; of a long name its end is left, or nothing."""
    name, room = printable(name), width - width_of(figures) - 2
    if width_of(name) > room:
        name = "…" + _end(name, room - 1) if room > 8 else ""
    return clipped(f"{name}  {figures}".lstrip(), width)


def _end(text: str, width: int) -> str:
    """As much of the text's end as fits, not beginning with a sign that is drawn over another."""
    end = text[max(len(text) - 4 * width, 0) :]
    while width_of(end) > width or (end and not width_of(end[0])):
        end = end[1:]
    return end


def first_that_fits(texts: Sequence[str], width: int) -> str:
    """The first of several texts, or the last one."""
    return next((text for text in texts if width_of(text) <= width), texts[-1])


class BlockEnds:
    """Finds where the blocks of frames end, in compressed data that comes in pieces.

    Attributes:
      ends: (compressed bytes, original bytes) up to the end of every block seen, counted from the start.
    """

    def __init__(self) -> None:
        self.ends: deque[tuple[int, int]] = deque()
        self._pending = bytearray()
        self._offset = self._original_nbytes = 0
        self._skip_nbytes = 0  # to the next header
        self._walk: FrameWalk | None = None
        self._is_lost = False

    def feed(self, data: bytes) -> None:
        self._pending += data
        try:
            while not self._is_lost and self._step():
                pass
        except LmcodecError:  # for the decoder to report
            self._is_lost = True
        if self._is_lost:
            self._pending.clear()

    def _step(self) -> bool:
        """Pass one item; False if it takes more data."""
        from lmcodec import frame

        if self._skip_nbytes:
            nbytes = min(self._skip_nbytes, len(self._pending))
            del self._pending[:nbytes]
            self._offset += nbytes
            self._skip_nbytes -= nbytes
            return not self._skip_nbytes
        if self._walk is None:
            header = frame.parse_header(self._pending, self._offset)
            if header is None:
                return False
            self._walk = frame.FrameWalk(header)
            self._skip_nbytes = header.nbytes
        elif self._walk.ended:
            self._skip_nbytes = len(self._walk.tail())
            self._walk = None
        else:
            head = bytes(self._pending[: frame.MAX_BLOCK_HEADER_NBYTES])
            block = self._walk.header.parse_block(head, "block", self._walk.previous)
            if block is None:
                return False
            self._walk.admit(block, "block")
            self._skip_nbytes = block.nbytes
            self._original_nbytes += block.original_nbytes
            self.ends.append((self._offset + block.nbytes, self._original_nbytes))
        return True


class Progress:
    """Counts what one file took and gave, in the thread that computes; another one may ask for the line.

    Args:
      name: of the file.
      total_nbytes: of the input, None if unknown.
      decoding: whether the input is the compressed side.
      metered: follow the blocks, for `line`.
    """

    def __init__(self, name: str, total_nbytes: int | None, *, decoding: bool, metered: bool = True) -> None:
        self.name, self.total_nbytes, self._decoding = name, total_nbytes, decoding
        self.original_nbytes = self.compressed_nbytes = 0
        self.started = time.monotonic()
        self._blocks = BlockEnds() if metered else None
        self._done = 0, 0, self.started  # compressed, original bytes of blocks that are done; when they were
        self._position: Callable[[], tuple[int, int]] | None = None
        self._most = 0

    def follow(self, position: Callable[[], tuple[int, int]] | None) -> None:
        """Ask `position` for the bytes that are done, parts of blocks included.

        Args:
            position: gives those of the original and those of the frames, which are 0 where they are not
                known before a block is done. None when the work has ended: what it worked with is let go.
        """
        self._position = position

    def original(self, data: bytes) -> None:
        self.original_nbytes += len(data)
        self._advance()

    def compressed(self, data: bytes) -> None:
        self.compressed_nbytes += len(data)
        if self._blocks:
            self._blocks.feed(data)
            self._advance()

    def _advance(self) -> None:
        """A block is done when both its sides have passed."""
        ends = self._blocks.ends if self._blocks else ()
        while ends and ends[0][0] <= self.compressed_nbytes and ends[0][1] <= self.original_nbytes:
            self._done = (*ends.popleft(), time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def summary(self) -> str:
        """Sizes, ratio and time of a file that is done."""
        sides = [self.original_nbytes, self.compressed_nbytes]
        before, after = reversed(sides) if self._decoding else sides
        return f"{before:,} -> {after:,} bytes, {ratio_text(*sides)}, {self.seconds:.1f} s"

    def line(self, width: int) -> str:
        """Bytes, share, ratio, rate and time left, or what of it fits, at most `width` columns."""
        compressed, original, when = self._done
        done = compressed if self._decoding else original
        position = self._position  # the thread that computes may let go of it
        if position:
            inside = position()
            if all(inside):
                original, compressed = inside
            if inside[self._decoding] > done:
                done, when = inside[self._decoding], time.monotonic()
        done = self._most = max(self._most, done)
        short = amount = size_text(done)
        if self.total_nbytes:
            short = f"{100 * done // self.total_nbytes}%"  # 100 when all is done, not before
            amount += f" of {size_text(self.total_nbytes)} ({short})"
        ratio, speed, left = [], [], time_text(self.seconds)
        if original:
            ratio = [ratio_text(original, compressed)]
        if done:
            rate = done / max(when - self.started, 1e-3)
            speed = [f"{size_text(rate)}/s"]
            if self.total_nbytes:
                seconds = (self.total_nbytes - done) / rate - (time.monotonic() - when)
                left = f"{time_text(max(seconds, 0))} left"
        choices = [
            [amount, *ratio, *speed, left],
            [amount, *speed, left],
            [short, *speed, left],
            [short, left],
            [short],
        ]
        return named_line(self.name, first_that_fits(["  ".join(parts) for parts in choices], width), width)
