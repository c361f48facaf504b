"""What callers give: numbers in range, buffers, files that read in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import index as as_int
from typing import Any


def number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` if it is a whole number in range.

    Raises:
        TypeError, ValueError
    """
    try:
        value = as_int(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be {bounds}, not {value}")
    return value


def optional(name: str, value: Any, low: int, high: int | None = None) -> int | None:
    return None if value is None else number(name, value, low, high)


def positive(name: str, value: Any) -> float:
    """`value` if it is a number above 0.

    Raises:
        TypeError, ValueError
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return float(value)


def byte_view(data: Any) -> memoryview:
    """The bytes of any object with the buffer protocol, in C order; copied only if they are not contiguous.

    Raises:
        TypeError: if `data` is not such an object.
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is needed, not {type(data).__name__}") from None
    if view.nbytes == 0:
        return memoryview(b"")  # cast refuses a shape with a zero
    try:
        return view.cast("B")
    except (TypeError, NotImplementedError):
        return memoryview(view.tobytes())


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_fully(read: Callable[[int], Any], nbytes: int) -> bytes:
    """`nbytes` bytes of what may give fewer at a time; fewer only where it ends."""
    data = bytes(read(nbytes))
    while len(data) < nbytes and (more := read(nbytes - len(data))):
        data += more
    return data
