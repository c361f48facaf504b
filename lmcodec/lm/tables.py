"""The integer model's tables, made with integers alone: no libm takes part. FORMAT.md section 6.2.

Every table is read-only. Their SHA-256 is in FORMAT.md, so that an implementation can check its own.
"""

from __future__ import annotations

import hashlib
from functools import cache
from math import isqrt

import numpy as np

from lmcodec.lm.config import MAX_FAN_IN

_ONE = 1 << 128  # fixed point of the computations below: errors stay below 2^-110


@cache
def _sigmoids() -> list[int]:
    """sigmoid(z / 16) * 2^128 for z = -127 to 127."""
    step, term, n = 0, _ONE, 0
    while term:  # the series of e^(-1/16)
        step += -term if n & 1 else term
        n += 1
        term //= 16 * n
    exps = [_ONE]  # e^(-n/16)
    for _ in range(127):
        exps.append(exps[-1] * step // _ONE)
    upper = [_ONE * _ONE // (_ONE + e) for e in exps]
    lower = [e * _ONE // (_ONE + e) for e in exps]
    return lower[:0:-1] + upper


def _rounded(value: int, scale: int) -> int:
    """value / 2^128 * scale, to the nearest, halves up."""
    return (2 * value * scale + _ONE) // (2 * _ONE)


def _frozen(values: list[int] | np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    table = np.array(values, dtype)
    table.setflags(write=False)
    return table


@cache
def decay() -> np.ndarray:
    """(255,) int32: sigmoid(z / 16) * 2^16 for z = -127 to 127. The recurrence's a and the output gate."""
    return _frozen([_rounded(p, 1 << 16) for p in _sigmoids()], np.int32)


@cache
def input_scale() -> np.ndarray:
    """(255,) int32: sqrt(1 - a^2 + 1e-7) * 2^16 with a = sigmoid(z / 16), for z = -127 to 127."""
    tiny = _ONE * _ONE // 10_000_000
    squares = [(_ONE - p) * (_ONE + p) + tiny for p in _sigmoids()]  # times 2^256
    return _frozen([_rounded(isqrt(square), 1 << 16) for square in squares], np.int32)


@cache
def relu2() -> np.ndarray:
    """(128,) int8: m^2 / 128 to the nearest, for m = 0 to 127."""
    return _frozen([(m * m + 64) >> 7 for m in range(128)], np.int8)


@cache
def rsqrt() -> np.ndarray:
    """(12288,) int32: 2^31 / sqrt((i + 1/2) 2^18) for i = 4096 to 16383; 2^15 to 2^16."""
    # 2^31 / sqrt((2i + 1) 2^17) = sqrt(2^45 / (2i + 1)); with 2 bits more, then rounded.
    square = (1 << 49) // np.arange(2 * 4096 + 1, 2 * 16384, 2, dtype=np.int64)
    root = np.sqrt(square).astype(np.int64)  # whatever a machine makes of it, integers put it right
    root -= root * root > square
    root += (root + 1) * (root + 1) <= square
    return _frozen(root + 2 >> 2, np.int32)


@cache
def norm_scale(dim: int) -> int:
    """floor(1024 sqrt(dim)): 64 steps of 1/16 times the root of the width. Below 2^16."""
    assert dim <= MAX_FAN_IN
    return isqrt(dim << 20)


@cache
def exp2_coarse() -> np.ndarray:
    """(16,) int32: 2^15 * 2^(-a/16)."""
    return _frozen([_rounded(_power_of_two(16 * a), 1 << 15) for a in range(16)], np.int32)


@cache
def exp2_fine() -> np.ndarray:
    """(16,) int32: 2^16 * 2^(-b/256)."""
    return _frozen([_rounded(_power_of_two(b), 1 << 16) for b in range(16)], np.int32)


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
    root = _ONE // 2  # 2^-1, then 2^-1/2, ...
    value = _ONE
    for bit in range(7, -1, -1):
        root = isqrt(root * _ONE)  # 2^-(1/2), 2^-(1/4), ... = 2^-(2^bit / 256)
        if f >> bit & 1:
            value = value * root // _ONE
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
    half_ln2 = sum(_ONE // ((2 * n + 1) * 3 ** (2 * n + 1)) for n in range(40))
    sums = np.cumsum(atanh).tolist()
    return _frozen([_rounded((s << 68) * _ONE // half_ln2, 1 << 16) for s in sums], np.int32)


@cache
def digest() -> str:
    """SHA-256 of all tables one after another as little-endian int32, in hexadecimal."""
    tables = (decay(), input_scale(), relu2(), rsqrt(), exp2_coarse(), exp2_fine(), log2())
    return hashlib.sha256(b"".join(t.astype("<i4").tobytes() for t in tables)).hexdigest()
