"""Files for other libraries: what they open, and files that are complete or not there."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lmcodec.codec import Compressor, Decompressor
from lmcodec.file import LMFile

# Those of LMFile, without what to open and how.
OPTIONS = frozenset(inspect.signature(LMFile).parameters) - {"file", "mode"}
_WRITING = OPTIONS.intersection(inspect.signature(Compressor).parameters)
_READING = OPTIONS.intersection(inspect.signature(Decompressor).parameters)


def _known(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no such option of lmcodec.open")


def reading_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that are of reading.

    Raises:
        TypeError, ValueError: one is unknown or out of range.
    """
    _known(options)
    chosen = {name: value for name, value in options.items() if name in _READING}
    Decompressor(**chosen)
    return chosen


def writing_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that are of writing.

    Raises:
        TypeError, ValueError: one is unknown or out of range.
    """
    _known(options)
    # Executor and model may be given for reading alone: a level without a model refuses them.
    chosen = {name: value for name, value in options.items() if name in _WRITING}
    Compressor(**chosen)
    return chosen


class WrappedFile(LMFile):
    """A compressed file over one that another library opened, which it closes with itself.

    The other library often keeps no hold of its own file, and what is uploaded when it is closed would stay
    where it is. Before its first byte is written the file says that it can tell its place: who wraps it as
    text begins with a byte order mark where the encoding has one.
    """

    _takes_fp = True

    def __init__(self, file: Any, mode: str = "rb", **options: Any) -> None:
        chosen = reading_options(options) if mode[:1] == "r" else writing_options(options)
        if mode[:1] == "a":
            with suppress(AttributeError, OSError, ValueError):
                file.seek(0, os.SEEK_END)  # fsspec's files say that they stand at the start
        super().__init__(file, mode, **chosen)
        if self._output is not None:
            self._told = int(self._appends)

    def write(self, data: Any) -> int:
        self._told = None
        return super().write(data)


def opener(options: dict[str, Any]) -> Callable[..., WrappedFile]:
    """A function (file, mode, ...) that opens with these options where the caller gives no others."""

    def open_wrapped(file: Any, mode: str = "rb", **given: Any) -> WrappedFile:
        return WrappedFile(file, mode.replace("t", ""), **{**options, **given})

    return open_wrapped
