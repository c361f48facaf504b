"""From integer logits to binary decisions, in NumPy and integers alone: FORMAT.md sections 6.4 and 6.5.

What every kind of language model ends with, whatever gives its logits. V is at most 2^20 and a frequency at
most 2^24, so that sums are at most 2^44.
"""

from __future__ import annotations

import numpy as np

from lmcodec.lm import tables

LOGIT_BITS = 8  # logits are in steps of 2^-8 of a binary logarithm
TOP_BITS = 24  # the likeliest token's frequency is 2^24
LOG2_BITS = 16
STRETCH_MAX = 3071  # Q8 of a natural logarithm: within the mixer's +-12
_LN2 = 45426  # ln 2 * 2^16


def frequencies(logits: np.ndarray) -> np.ndarray:
    """Frequencies of the tokens: 2^24 for the likeliest, 1 at least.

    Args:
        logits: (..., V) int32.

    Returns:
        (..., V) uint32.
    """
    below = logits.max(axis=-1, keepdims=True).astype(np.int64) - logits
    shift = np.minimum(below >> LOGIT_BITS, 31)
    return np.maximum(tables.exp2()[below & 255] >> shift, 1).astype(np.uint32)


def cumulate(freq: np.ndarray) -> np.ndarray:
    """Exclusive prefix sums: (..., V) uint32 to (..., V + 1) uint64. At most 2^20 * 2^24."""
    cum = np.zeros((*freq.shape[:-1], freq.shape[-1] + 1), np.uint64)
    np.cumsum(freq, axis=-1, dtype=np.uint64, out=cum[..., 1:])
    return cum


def log2(span: np.ndarray) -> np.ndarray:
    """Binary logarithm of sums of frequencies, 1 to 2^44, in steps of 2^-16: int64."""
    span = span.astype(np.int64)
    bits = bit_length(span) - 1
    index = np.where(bits >= 10, span >> np.maximum(bits - 10, 0), span << np.maximum(10 - bits, 0)) & 1023
    return (bits << LOG2_BITS) + tables.log2()[index]


def stretch(one: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """ln(p / (1 - p)) of a decision from the sums of frequencies on its two sides.

    Args:
        one, zero: (...) sums, 1 to 2^44.

    Returns:
        (...) int32, Q8, within +-3071.
    """
    odds = (log2(one) - log2(zero)) * _LN2  # below 2^38
    return np.clip((odds + (1 << 23)) >> 24, -STRETCH_MAX, STRETCH_MAX).astype(np.int32)


def bit_length(value: np.ndarray) -> np.ndarray:
    """Bits of positive int64 numbers, as int64."""
    bits = np.zeros_like(value)
    for k in (32, 16, 8, 4, 2, 1):
        large = value >= np.int64(1) << k
        bits += np.where(large, k, 0)
        value = np.where(large, value >> k, value)
    return bits + 1
