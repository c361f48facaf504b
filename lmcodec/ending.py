"""What must happen before the interpreter ends, and after a fork: no thread may be leaving the kernel then.

CPython ends a thread that wants to go on while the interpreter ends, wherever it is, and from within C++ that
aborts the process. One handler does everything in order: a program's own handlers run before it or after it,
and those that run after it find that blocks are coded in the thread that asks.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable

_before_end: list[Callable[[], object]] = []
_after_fork: list[Callable[[], object]] = []


def register(
    before_end: Callable[[], object], after_fork: Callable[[], object], *, first: bool = False
) -> None:
    """Have functions called before the interpreter ends, and in the child of a fork.

    Args:
        first: before the others, not after them.
    """
    _before_end.insert(0 if first else len(_before_end), before_end)
    _after_fork.append(after_fork)


def _call(functions: list[Callable[[], object]]) -> None:
    for function in functions:
        function()


atexit.register(_call, _before_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _call(_after_fork))
