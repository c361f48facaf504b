"""The recurrent model's own tables, made with integers alone. FORMAT.md section 6.2."""

from __future__ import annotations

import hashlib
from functools import cache
from math import isqrt

import numpy as np

from lmcodec.lm.recurrent.shape import MAX_FAN_IN
from lmcodec.lm.tables import ONE, exp2_coarse, exp2_fine, frozen, log2, rounded


@cache
def _sigmoids() -> list[int]:
    """sigmoid(z / 16) * 2^128 for z = -127 to 127."""
    step, term, n = 0, ONE, 0
    while term:  # the series of e^(-1/16)
        step += -term if n & 1 else term
        n += 1
        term //= 16 * n
    exps = [ONE]  # e^(-n/16)
    for _ in range(127):
        exps.append(exps[-1] * step // ONE)
    upper = [ONE * ONE // (ONE + e) for e in exps]
    lower = [e * ONE // (ONE + e) for e in exps]
    return lower[:0:-1] + upper


@cache
def decay() -> np.ndarray:
    """(255,) int32: sigmoid(z / 16) * 2^16 for z = -127 to 127. The recurrence's a and the output gate."""
    return frozen([rounded(p, 1 << 16) for p in _sigmoids()], np.int32)


@cache
def input_scale() -> np.ndarray:
    """(255,) int32: sqrt(1 - a^2 + 1e-7) * 2^16 with a = sigmoid(z / 16), for z = -127 to 127."""
    tiny = ONE * ONE // 10_000_000
    squares = [(ONE - p) * (ONE + p) + tiny for p in _sigmoids()]  # times 2^256
    return frozen([rounded(isqrt(square), 1 << 16) for square in squares], np.int32)


@cache
def relu2() -> np.ndarray:
    """(128,) int8: m^2 / 128 to the nearest, for m = 0 to 127."""
    return frozen([(m * m + 64) >> 7 for m in range(128)], np.int8)


@cache
def rsqrt() -> np.ndarray:
    """(12288,) int32: 2^31 / sqrt((i + 1/2) 2^18) for i = 4096 to 16383; 2^15 to 2^16."""
    # 2^31 / sqrt((2i + 1) 2^17) = sqrt(2^45 / (2i + 1)); with 2 bits more, then rounded.
    square = (1 << 49) // np.arange(2 * 4096 + 1, 2 * 16384, 2, dtype=np.int64)
    root = np.sqrt(square).astype(np.int64)  # whatever a machine makes of it, integers put it right
    root -= root * root > square
    root += (root + 1) * (root + 1) <= square
    return frozen(root + 2 >> 2, np.int32)


@cache
def norm_scale(dim: int) -> int:
    """floor(1024 sqrt(dim)): 64 steps of 1/16 times the root of the width. Below 2^16."""
    assert dim <= MAX_FAN_IN
    return isqrt(dim << 20)


@cache
def digest() -> str:
    """SHA-256 of all tables one after another as little-endian int32, in hexadecimal."""
    tables = (decay(), input_scale(), relu2(), rsqrt(), exp2_coarse(), exp2_fine(), log2())
    return hashlib.sha256(b"".join(t.astype("<i4").tobytes() for t in tables)).hexdigest()
