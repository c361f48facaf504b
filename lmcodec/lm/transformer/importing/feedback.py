"""Rounding with feedback: each weight takes in the errors of those of its row that are rounded already.

A row's error e costs e H e^T, with H the Gram matrix of the product's inputs (`calibrate.py`), which rounding
each weight by itself ignores. With H + d I = L D L^T, L with a unit diagonal, that cost is the sum of D_k
(e L)_k^2: so columns are rounded from the last to the first, column k after adding the errors of the later
ones times L's column k, and (e L)_k is no more than what that rounding leaves (GPTQ, LDLQ).

The functions here say in which order the kernel computes (native/rounding.cpp), every operation rounded by
itself, so that every machine makes the same integers: `factor` in binary64, `rounded` in binary32.
"""

from __future__ import annotations

import numpy as np

from lmcodec import _kernel
from lmcodec.lm.transformer.model import WEIGHT_MAX

DAMPING = 2.0**-7  # d: of the mean of H's diagonal

f32 = np.float32


def damped(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """H + d I in binary64 of (K, K) int64 H, and d. Of zeros, the unit matrix."""
    total = int(np.trace(gram))
    mean = total / len(gram) if total else 1 / DAMPING
    damping = mean * DAMPING
    matrix = gram.astype(np.float64)
    matrix[np.diag_indices(len(gram))] += damping
    return matrix, damping


def factor(gram: np.ndarray, portable: bool = False) -> np.ndarray:
    """(K, K) float32, of which row k holds behind the diagonal what L has below that of column k.

    Args:
        gram: H, (K, K) int64.
        portable: by the kernel's portable loops: the same numbers.
    """
    matrix, damping = damped(gram)
    _kernel.factor_gram(matrix, damping, portable)
    return matrix.astype(f32)


def rounded(x: np.ndarray, factor: np.ndarray, portable: bool = False) -> np.ndarray:
    """(N, K) int8 of (N, K) float32 in units of their rows' scales, within +-63."""
    codes = np.empty(x.shape, np.int8)
    _kernel.round_with_feedback(np.ascontiguousarray(x), factor, codes, portable)
    return codes


def factor_by_definition(gram: np.ndarray) -> np.ndarray:
    """What `factor` gives."""
    matrix, damping = damped(gram)
    for k in range(len(matrix)):
        row = matrix[k, k + 1 :].copy()
        matrix[k, k + 1 :] = row / max(matrix[k, k], damping)
        matrix[k + 1 :, k + 1 :] -= matrix[k, k + 1 :, None] * row
    return matrix.astype(f32)


def rounded_by_definition(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What `rounded` gives."""
    target = x.copy()
    codes = np.empty(x.shape, np.int8)
    for k in reversed(range(x.shape[1])):
        nearest = np.rint(np.clip(target[:, k], f32(-WEIGHT_MAX), f32(WEIGHT_MAX)))
        target[:, :k] += (x[:, k] - nearest)[:, None] * factor[:k, k]
        codes[:, k] = nearest.astype(np.int8)
    return codes
