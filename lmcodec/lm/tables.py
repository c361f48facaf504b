"""Tables that all kinds of language models share, made with integers alone. FORMAT.md section 6.2.

Every table is read-only. Their SHA-256 is in FORMAT.md, so that an implementation can check its own.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np

ONE = 1 << 128  # fixed point of the computations below: errors stay below 2^-110


def rounded(value: int, scale: int) -> int:
    """value / 2^128 * scale, to the nearest, halves up."""
    return (2 * value * scale + ONE) // (2 * ONE)


def frozen(values: list[int] | np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    table = np.array(values, dtype)
    table.setflags(write=False)
    return table


@cache
def exp2_coarse() -> np.ndarray:
    """(16,) int32: 2^15 * 2^(-a/16)."""
    return frozen([rounded(_power_of_two(16 * a), 1 << 15) for a in range(16)], np.int32)


@cache
def exp2_fine() -> np.ndarray:
    """(16,) int32: 2^16 * 2^(-b/256)."""
    return frozen([rounded(_power_of_two(b), 1 << 16) for b in range(16)], np.int32)


@cache
def exp2() -> np.ndarray:
    """(256,) int32: coarse[f >> 4] * fine[f & 15] >> 7, about 2^24 * 2^(-f/256); the first is 2^24."""
    f = np.arange(256)
    product = exp2_coarse().astype(np.int64)[f >> 4] * exp2_fine()[f & 15]  # <= 2^31
    table = (product >> 7).astype(np.int32)
    table.setflags(write=False)
    return table


def _power_of_two(f: int) -> int:
    """2^(-f/256) * 2^128, 0 <= f < 256."""
    root = ONE // 2  # 2^-1, then 2^-1/2, ...
    value = ONE
    for bit in range(7, -1, -1):
        root = isqrt(root * ONE)  # 2^-(1/2), 2^-(1/4), ... = 2^-(2^bit / 256)
        if f >> bit & 1:
            value = value * root // ONE
    return value


@cache
def log2() -> np.ndarray:
    """(1024,) int32: log2(1 + (i + 1/2) / 1024) * 2^16, to the nearest."""
    # ln((d + 1) / (d - 1)) = 2 atanh(1/d): from 2048 to 2049, then by steps of 2. Three terms of the series,
    # the next one is below 2^-79, in steps of 2^-60: the sums are right to 2^-48.
    d = np.arange(2048, 4096, 2, dtype=np.int64)
    d[0] = 4097
    term = (1 << 60) // d
    atanh = term.copy()
    for n in (3, 5):
        term //= d * d
        atanh += term // n
    # 2 / ln 2 = 1 / atanh(1/3)
    half_ln2 = sum(ONE // ((2 * n + 1) * 3 ** (2 * n + 1)) for n in range(40))
    sums = np.cumsum(atanh).tolist()
    return frozen([rounded((s << 68) * ONE // half_ln2, 1 << 16) for s in sums], np.int32)
