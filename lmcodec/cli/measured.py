"""What the two ways of `lmcodec measure` share: operands, errors by name, and what reports are made of."""

from __future__ import annotations

import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Generic, TypeVar

from lmcodec.cli.console import Console
from lmcodec.cli.operate import ERROR, OK, WARNING
from lmcodec.cli.safe_file import Stdout, StdoutClosed
from lmcodec.errors import LmcodecError, one_line

_BITS, _BPB = 3, 6  # decimals for programs

M = TypeVar("M")  # a measurement; those of several texts are added


@dataclass
class Report(Generic[M]):
    """What was measured, with which settings, and what was not.

    Attributes:
        settings: for programs.
        split: documents were measured apart.
        by_row: they are the texts of records.
        files: names and measurements of the texts in each: one, or with `split` one for every document. They
            are numbered from 1 on: records by their rows, what zero bytes separate one after another.
        failed: names and reasons.
    """

    settings: dict[str, Any]
    split: bool
    by_row: bool = field(default=False, kw_only=True)
    files: list[tuple[str, dict[int, M]]] = field(default_factory=list, kw_only=True)
    failed: list[tuple[str, str]] = field(default_factory=list, kw_only=True)

    def total(self) -> M:
        return together(text for _, texts in self.files for text in texts.values())

    def documents(self) -> int:
        return sum(len(texts) for _, texts in self.files)

    def rows(self) -> Iterator[tuple[str, str, int | None, M]]:
        """For CSV: kind, file and number of the document of every measurement, the total at the end."""
        for name, texts in self.files:
            if self.split:
                for number, text in texts.items():
                    yield "document", name, number, text
            yield "file", name, None, together(texts.values())
        if self.files:
            yield "total", "", None, self.total()

    def entries(self, figures: Callable[[M], dict[str, Any]]) -> list[dict[str, Any]]:
        """For JSON: an object for every file. Bytes of a name that are no text are "\\udc80" to "\\udcff"."""
        found = []
        for name, texts in self.files:
            entry: dict[str, Any] = {"file": name, **figures(together(texts.values()))}
            if self.split:
                entry["documents"] = [
                    {"row": number, **figures(text)} if self.by_row else figures(text)
                    for number, text in texts.items()
                ]
            found.append(entry)
        return found

    def failures(self) -> list[dict[str, str]]:
        return [{"file": name, "error": error} for name, error in self.failed]


def together(texts: Iterable[M]) -> M:
    """The measurement of all of them."""
    return reduce(add, texts)


def bits(value: float | None) -> float | None:
    """For programs; None for what is none, or of no text."""
    return _rounded(value, _BITS)


def bpb(value: float | None) -> float | None:
    """The same of bits per byte."""
    return _rounded(value, _BPB)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or math.isnan(value) else round(value, digits)


R = TypeVar("R", bound=Report[Any])


class Measuring(ABC, Generic[R]):
    """Measures operands, says what cannot be measured, and prints.

    Args:
        console: for messages.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = OK

    def run(self, paths: tuple[str, ...], form: Callable[[R], str]) -> int:
        """Measure and print what `form` makes of the report; returns the exit status."""
        try:
            report = self._measure(paths)
            Stdout().write(form(report).encode("utf-8", "backslashreplace"))
        except StdoutClosed:
            raise
        except (LmcodecError, OSError) as error:
            self._fail(None, one_line(error))
        except MemoryError:
            self._fail(None, "out of memory")
        except Exception as error:  # our bug
            self._fail(None, f"internal error, please report it: {type(error).__name__}: {error}")
        return self.status

    @abstractmethod
    def _measure(self, paths: tuple[str, ...]) -> R: ...

    def _fail(self, name: str | None, message: str) -> None:
        self.status = ERROR
        self.console.error(None if name is None else _shown(name), message)

    def _find(self, paths: tuple[str, ...], report: R) -> list[tuple[str, int | None]]:
        """The files of the operands with their sizes, None if unknown; the others are in the report."""
        from lmcodec.measure.records import find_tables
        from lmcodec.measure.texts import Problem, find_files

        sizes: list[tuple[str, int | None]] = []
        for found in (find_tables if report.by_row else find_files)(paths):
            if isinstance(found, Problem):
                self._fail(found.name, found.message)
                report.failed.append((found.name, found.message))
            else:
                sizes.append((found, _size(found)))
        return sizes

    def _keep(
        self, name: str, texts: dict[int, Any], error: str | None, report: R, n_without: int = 0
    ) -> None:
        """What a file gave, and how many records without a text it has."""
        if error is not None:
            self._fail(name, error)
            report.failed.append((_shown(name), error))
            return
        if texts:
            report.files.append((_shown(name), texts))
        if n_without:
            n_row = n_without + len(texts)
            self._warn(name, f"{n_without:,} of {n_row:,} rows hold no text (null or empty), left out")
        elif not texts:
            self._warn(name, "is empty, left out")

    def _warn(self, name: str, message: str) -> None:
        self.console.warning(_shown(name), message)
        self.status = self.status or WARNING


def total_nbytes(sizes: Iterable[int | None]) -> int | None:
    """Of all files; None if that of any is unknown."""
    sizes = list(sizes)
    known = [nbytes for nbytes in sizes if nbytes is not None]
    return sum(known) if len(known) == len(sizes) else None


def _shown(name: str) -> str:
    return "(stdin)" if name == "-" else name


def _size(name: str) -> int | None:
    """Bytes of a file; None if that is unknown, 0 if it cannot be read."""
    try:
        status = os.stat(name) if name != "-" else os.fstat(0)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None
