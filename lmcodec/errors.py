"""The one exception family of the package.

Every error that bad input can cause derives from `LmcodecError`, so that a caller catches one class and a
command line prints one line. Messages say what was found, where, and what to do. Each is made of its message
alone, so that it passes between processes and can be raised again with a place before it.
"""

from __future__ import annotations

import contextlib


class LmcodecError(Exception):
    """Base class of every error that input, files or configuration can cause."""


class BadMagic(LmcodecError):
    """The data is not of the kind that was asked for: its first bytes say otherwise."""


class TrailingData(BadMagic):
    """Whole frames, and then something that is neither a frame nor padding of zero bytes."""


class Unsupported(LmcodecError):
    """The data is of a version, method or flag that this version does not know."""


class Corrupt(LmcodecError):
    """The data was damaged: a check, a bound or an order rule does not hold."""


class Truncated(LmcodecError):
    """The data ends before it should."""


class ModelNotFound(LmcodecError):
    """A model, vocabulary or corpus that is needed is not there, or is another one."""


class PriorNotFound(LmcodecError):
    """A prior that the data needs is not given."""


class LimitExceeded(LmcodecError):
    """A size is larger than the limit the caller set."""


class ConfigError(LmcodecError):
    """A configuration names an unknown key or holds a value out of range."""


class KernelMissing(LmcodecError, ImportError):
    """The native kernel cannot be imported; an ImportError as well."""

    @classmethod
    def of(cls, folder: str, reason: str) -> KernelMissing:
        """The error for a package whose kernel cannot be imported.

        Args:
            folder: of the package.
            reason: what the import said.
        """
        if "No module named" in reason:
            return cls(
                f"{folder} has no native kernel: it is the source folder, not the installed package; run "
                "Python in another folder, or install in place with: pip install -e ."
            )
        return cls(
            f"{folder}: its native kernel cannot be loaded ({reason}); reinstall lmcodec for this Python"
        )


def clear_frames(error: BaseException) -> None:
    """Drop the variables of this package's calls, and of theirs, that an error came through and have ended.

    Its traceback still says where they were; without this, it would keep alive all that they worked with for
    as long as the error is kept. The caller's own calls keep theirs.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        found = pending.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        pending += [found.__cause__, found.__context__]
        traceback, ours = found.__traceback__, False
        while traceback is not None:
            ours = ours or str(traceback.tb_frame.f_globals.get("__name__")).startswith("lmcodec.")
            if ours:
                with contextlib.suppress(RuntimeError):  # a call that is still under way
                    traceback.tb_frame.clear()
            traceback = traceback.tb_next


def one_line(error: LmcodecError | OSError) -> str:
    """What a command line prints of an error that bad input or the system caused."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)


def reason_of(error: BaseException) -> str:
    """An error of a library, a compiler or a driver in one line: its kind and the first line it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
