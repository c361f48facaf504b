"""logging: rotated log files are compressed, by the `namer` and the `rotator` of a rotating handler."""

from __future__ import annotations

import logging.handlers
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from lmcodec.file import LMFile
from lmcodec.integrations.files import writing_options
from lmcodec.lm.folder import complete_file

SUFFIX = ".lmz"
LEVEL = 1  # whoever logs waits meanwhile

Handler = TypeVar("Handler", bound=logging.handlers.BaseRotatingHandler)


def namer(name: str) -> str:
    """The name of a rotated file."""
    return name + SUFFIX


def make_rotator(**options: Any) -> Callable[[str, str], None]:
    """A rotator with options of `lmcodec.open`, such as `level`."""
    options = {"level": LEVEL, **options}
    writing_options(options)

    def compress(source: str, dest: str) -> None:
        with open(source, "rb") as original, complete_file(dest) as file:
            shutil.copystat(source, file.name)
            with LMFile(file, "wb", **options) as packed:
                shutil.copyfileobj(original, packed, 1 << 20)
                nbytes = packed.tell()
            if os.fstat(original.fileno()).st_size != nbytes:
                raise OSError("it changed while it was read")
            file.flush()
            shutil.copystat(source, file.name)  # the times

    def rotate(source: str, dest: str) -> None:
        """Compress `source` to `dest`; `source` is removed when that is safe on the disk.

        If it cannot be compressed, a line on stderr says why and it is moved as it is: no record is lost, and
        handlers, which make room for a rotated file before they call this, lose no older file either.
        """
        if not os.path.exists(source):
            return
        try:
            compress(source, dest)
        except Exception as error:
            os.replace(source, dest)
            if sys.stderr is not None:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"lmcodec: {source}: moved to {dest} without compressing it: {reason}", file=sys.stderr)
            return
        os.unlink(source)

    return rotate


rotator = make_rotator()


def compress_rotated(handler: Handler, **options: Any) -> Handler:
    """Have a `RotatingFileHandler` or `TimedRotatingFileHandler` compress what it rotates; returns it.

    Args:
        options: of `lmcodec.open`; level 1 by default.
    """
    handler.namer = namer
    handler.rotator = make_rotator(**options)
    return handler
