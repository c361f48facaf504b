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


def _exp_minus(numerator: int, denominator: int) -> int:
    """e^(-numerator/denominator) * 2^128, for 0 <= numerator/denominator < 8, by the series of e^(-x/16)."""
    x = numerator * _ONE // (denominator * 16)
    total, term, n = 0, _ONE, 0
    while term:
        total += -term if n & 1 else term
        n += 1
        term = term * x // (_ONE * n)
    for _ in range(4):
        total = total * total // _ONE
    return total


def _rounded(value: int, scale: int) -> int:
    """value / 2^128 * scale, to the nearest, halves up."""
    return (2 * value * scale + _ONE) // (2 * _ONE)


def _frozen(values: list[int], dtype: type[np.generic]) -> np.ndarray:
    table = np.array(values, dtype)
    table.setflags(write=False)
    return table


@cache
def decay() -> np.ndarray:
    """(255,) int32: sigmoid(z / 16) * 2^16 for z = -127 to 127. The recurrence's a and the output gate."""
    values = []
    for z in range(-127, 128):
        e = _exp_minus(abs(z), 16)
        p = (_ONE if z >= 0 else e) * _ONE // (_ONE + e)
        values.append(_rounded(p, 1 << 16))
    return _frozen(values, np.int32)


@cache
def input_scale() -> np.ndarray:
    """(255,) int32: sqrt(1 - a^2 + 1e-7) * 2^16 with a = sigmoid(z / 16), for z = -127 to 127."""
    values = []
    for z in range(-127, 128):
        e = _exp_minus(abs(z), 16)
        p = (_ONE if z >= 0 else e) * _ONE // (_ONE + e)
        square = (_ONE - p) * (_ONE + p) + _ONE * _ONE // 10_000_000  # times 2^256
        values.append(_rounded(isqrt(square), 1 << 16))
    return _frozen(values, np.int32)


@cache
def relu2() -> np.ndarray:
    """(128,) int8: m^2 / 128 to the nearest, for m = 0 to 127."""
    return _frozen([(m * m + 64) >> 7 for m in range(128)], np.int8)


@cache
def rsqrt() -> np.ndarray:
    """(12288,) int32: 2^31 / sqrt((i + 1/2) 2^18) for i = 4096 to 16383; 2^15 to 2^16."""
    # 2^31 / sqrt((2i + 1) 2^17) = sqrt(2^45 / (2i + 1)); with 2 bits more, then rounded.
    return _frozen([(isqrt((1 << 49) // (2 * i + 1)) + 2) >> 2 for i in range(4096, 16384)], np.int32)


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
    values = []
    for i in range(1024):
        x = _ONE + (2 * i + 1) * _ONE // 2048
        bits = 0
        for _ in range(17):  # one more than wanted, then rounded
            x = x * x // _ONE
            bits <<= 1
            if x >= 2 * _ONE:
                bits |= 1
                x //= 2
        values.append((bits + 1) >> 1)
    return _frozen(values, np.int32)


@cache
def digest() -> str:
    """SHA-256 of all tables one after another as little-endian int32, in hexadecimal."""
    tables = (decay(), input_scale(), relu2(), rsqrt(), exp2_coarse(), exp2_fine(), log2())
    return hashlib.sha256(b"".join(t.astype("<i4").tobytes() for t in tables)).hexdigest()
