"""Texts to measure: the files that operands name, and the documents in them."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

STDIN = "-"
READ_NBYTES = 1 << 20


class Problem(NamedTuple):
    """An operand, or a folder in it, that holds no file to measure."""

    name: str
    message: str


def find_files(operands: tuple[str, ...]) -> Iterator[str | Problem]:
    """The files of operands in their order: files, folders with all that is in them, patterns, `-`.

    A folder's files come in the order of their names, without links and special files. A pattern (`*`, `?`,
    `[]`, `**` for folders in folders) stands for files; it is one only where nothing has it for a name.
    """
    for operand in operands:
        if operand == STDIN or (os.path.lexists(operand) and not os.path.isdir(operand)):
            yield operand
        elif os.path.isdir(operand):
            yield from in_folder(operand)
        elif glob.has_magic(operand):
            paths = [path for path in sorted(glob.glob(operand, recursive=True)) if os.path.isfile(path)]
            yield from paths
            if not paths:
                yield Problem(operand, "matches no file")
        else:
            yield operand


def in_folder(folder: str) -> Iterator[str | Problem]:
    """The files in a folder and in its folders, without links and special files; what cannot be listed."""
    found = False
    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(inside) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            found = True
            yield Problem(inside, error.strerror or str(error))
            continue
        folders += [e.path for e in reversed(entries) if e.is_dir(follow_symlinks=False)]
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                found = True
                yield entry.path
    if not found:
        yield Problem(folder, "holds no file")


class Documents:
    """The documents of a text that zero bytes separate, each as pieces; empty ones are left out.

    Args:
        read: called for the next bytes of the text, gives none at its end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._chunk, self._at = b"", 0  # read last, and what of it has been given out

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        """What of a document is not taken is passed over."""
        while self._skip_zeros():
            pieces = self._pieces()
            yield pieces
            deque(pieces, maxlen=0)

    def _skip_zeros(self) -> bool:
        """Whether there is another document."""
        while self._at < len(self._chunk) or self._next():
            if self._chunk[self._at]:
                return True
            self._at += 1
        return False

    def _next(self) -> bool:
        self._chunk, self._at = self._read(), 0
        return bool(self._chunk)

    def _pieces(self) -> Iterator[bytes]:
        while self._at < len(self._chunk) or self._next():
            begin, end = self._at, self._chunk.find(b"\0", self._at)
            self._at = len(self._chunk) if end < 0 else end
            if self._at > begin:
                yield self._chunk[begin : self._at]
            if end >= 0:
                return
