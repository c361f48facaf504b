"""Float matrices as the int8 ones of FORMAT.md section 9: rotated along K, a scale a row, |w| <= 63.

Binary32 operations alone, each elementwise and in a stated order, so that the same matrix gives the same
integers everywhere: the rotation (FORMAT.md 9), divided by its length; a row's largest magnitude / 63 as its
scale, at least 2^-40; each weight / scale to the nearest integer, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lmcodec.lm.transformer.model import SCALE_MIN, WEIGHT_MAX, Linear

_PIECE = 1 << 22  # weights at once

f32 = np.float32


def rotated(w: np.ndarray) -> np.ndarray:
    """(N, K) float32: the rows as `reference.rotate` gives them, divided by the length of a rotation.

    The same additions, on columns instead of rows, where they are quick.
    """
    n_row, k = w.shape
    n, h = k & -k, 1
    x = np.array(w.reshape(-1, n).T, order="C")  # (n, N K / n)
    y = np.empty_like(x)
    while h < n:
        pairs, out = x.reshape(n // (2 * h), 2, -1), y.reshape(n // (2 * h), 2, -1)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        x, y = y, x
        h *= 2
    return (x.T / f32(n)).reshape(n_row, k)


def quantised(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) int8 weights and (N,) float32 scales of (N, K) float32."""
    x = rotated(w)
    scale = np.maximum(np.abs(x).max(axis=1) / f32(WEIGHT_MAX), SCALE_MIN)
    codes = np.clip(np.rint(x / scale[:, None]), f32(-WEIGHT_MAX), f32(WEIGHT_MAX))
    return codes.astype(np.int8), scale


def in_units(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, K) float32, rotated, in units of their rows' scales, within +-63."""
    return np.clip(rotated(w) / scale[:, None], f32(-WEIGHT_MAX), f32(WEIGHT_MAX))


def pieces(n: int, k: int) -> Iterator[tuple[int, int]]:
    """Rows of an (N, K) matrix that are made at once: the first, and the one after the last."""
    step = max(1, _PIECE // k)
    for at in range(0, n, step):
        yield at, min(at + step, n)


def linear(n: int, k: int, rows: Callable[[int, int], np.ndarray], bias: np.ndarray | None = None) -> Linear:
    """The matrix whose rows a to b - 1 `rows(a, b)` gives as float32; it is asked for all of them in turn."""
    weight, scale = np.empty((n, k), np.int8), np.empty(n, f32)
    for low, high in pieces(n, k):
        weight[low:high], scale[low:high] = quantised(rows(low, high))
    return Linear(weight, scale, bias)
