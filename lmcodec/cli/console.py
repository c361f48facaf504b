"""What a command says on stderr: messages of one line each and, on a terminal, a line of progress."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Protocol

from lmcodec.cli.progress import Progress, clipped, encodable, printable
from lmcodec.cli.safe_file import StdoutClosed, die_by, supervise

_ERASE = "\r\x1b[K"
_FIRST_DRAW_S = 0.3  # what is over sooner needs no progress


class Drawn(Protocol):
    """Something whose progress a line can show."""

    @property
    def seconds(self) -> float:
        """Since it began."""

    def line(self, width: int) -> str:
        """At most `width` columns of a terminal."""


class Console:
    """Messages and progress of one command.

    Args:
      program: how the lines begin.
      verbosity: 0; less hides warnings (-1) and errors (-2), more shows what was done.
      progress: draw progress; never where stderr is no terminal, or one that cannot erase a line.
    """

    def __init__(self, program: str, verbosity: int = 0, *, progress: bool = False) -> None:
        self.program, self.verbosity = program, verbosity
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._draws = progress and verbosity >= 0 and is_terminal(2) and _erases()
        self._lock = threading.Lock()
        self._progress: Drawn | None = None
        self._is_drawn = False

    def error(self, name: str | None, message: str) -> None:
        self._message(-1, name, message)

    def warning(self, name: str | None, message: str) -> None:
        self._message(0, name, message)

    def info(self, name: str | None, message: str) -> None:
        self._message(1, name, message)

    def _message(self, verbosity: int, name: str | None, message: str) -> None:
        if self.verbosity < verbosity:
            return
        # A message may quote a name: it stays one line.
        line = f"{self.program}: {'' if name is None else f'{printable(name)}: '}{printable(message)}\n"
        with self._lock:
            self._write((_ERASE if self._is_drawn else "") + line)
            self._is_drawn = False

    def supervise(self, work: Callable[[], int]) -> int:
        """Return `work()`, run in a thread of its own; its warnings are shown, its errors raised.

        A fatal signal removes the unfinished output and kills; so does a closed standard output.
        """
        failure: list[BaseException] = []

        def guarded() -> int:
            try:
                return work()
            except BaseException as error:
                failure.append(error)
                return 1
            finally:
                self.end()

        show = warnings.showwarning
        warnings.showwarning = lambda message, *_: self.warning(None, str(message))
        try:
            status = supervise(guarded, self.draw, self.erase)
        finally:
            warnings.showwarning = show
        for error in failure:
            if not isinstance(error, StdoutClosed):
                raise error
            if hasattr(signal, "SIGPIPE"):
                die_by(signal.SIGPIPE)
        return status

    def begin(self, name: str, total_nbytes: int | None, *, decoding: bool) -> Progress:
        """Count a file's progress, which `draw` shows until `end`."""
        shown = encodable(printable(name), self._encoding)
        progress = Progress(shown, total_nbytes, decoding=decoding, metered=self._draws)
        self.follow(progress)
        return progress

    def follow(self, progress: Drawn) -> None:
        """Let `draw` show `progress` until `end`."""
        self._progress = progress

    def end(self) -> None:
        with self._lock:
            self._progress = None
            self.erase()

    def draw(self) -> None:
        """Show the progress of the file in hand."""
        if not self._draws:
            return
        with self._lock:
            if self._progress and self._progress.seconds >= _FIRST_DRAW_S:
                width = _width() - 1  # in the last column some terminals begin another line
                line = self._progress.line(width)
                if encodable("…", self._encoding) != "…":
                    line = line.replace("…", "~")
                self._write(_ERASE + clipped(encodable(line, self._encoding), width))
                self._is_drawn = True

    def erase(self) -> None:
        """Remove the line of progress. Takes no lock: a dying process calls it."""
        if self._is_drawn:
            self._write(_ERASE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # there is nowhere left to say it
            os.write(2, text.encode(self._encoding, "backslashreplace"))


def is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _erases() -> bool:
    """Whether the terminal knows escape sequences, as far as its name says."""
    return os.environ.get("TERM", "") not in ("dumb", "unknown")


def _width() -> int:
    """The terminal's columns, or fewer if the environment's COLUMNS asks for that."""
    asked = os.environ.get("COLUMNS", "")
    widths = [int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0]
    with contextlib.suppress(OSError):
        widths.append(os.get_terminal_size(2).columns)
    return min((width for width in widths if width > 0), default=80)
