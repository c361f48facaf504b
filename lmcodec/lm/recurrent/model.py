"""An integer model in memory: weights, multipliers, start states; what every executor runs.

Knows neither how it was trained nor how its file looks (`file.py`) nor how it runs (`reference.py`). The
bounds checked here are those that FORMAT.md section 6.3 proves the arithmetic with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from lmcodec.errors import Corrupt
from lmcodec.lm.recurrent.shape import RecurrentConfig
from lmcodec.lm.vocab import Vocabulary

ARITHMETIC = 1  # version of FORMAT.md section 6: another one gives other integers
WEIGHT_MAX = 63
BIAS_MAX = 1 << 24
MULTIPLIER_MAX = 65_535
SHIFT_MIN, SHIFT_MAX = 12, 40  # of a matrix; a table's may begin at 0
STATE_MAX = 1 << 26
SHAPE = tuple(sorted(f.name for f in fields(RecurrentConfig)))


@dataclass(frozen=True)
class Linear:
    """A matrix product and its requantisation: (x W^T + bias) * multiplier / 2^shift, rounded halves up.

    Attributes:
        weight: (N, K) int8, |w| <= 63.
        bias: (N,) int32, |b| <= 2^24, in units of the product's sums; None for none.
        multiplier: (N,) uint16.
        shift: of the whole tensor, 12 to 40 (0 to 40 for a table, whose row is taken as the sum).
    """

    weight: np.ndarray
    bias: np.ndarray | None
    multiplier: np.ndarray
    shift: int


@dataclass(frozen=True)
class Layer:
    """A recurrence (R channels) and an MLP (M, may be 0) on a residual stream of width D.

    Attributes:
        into: (3R, D) with bias: z and o in steps of 2^-4, v in steps of 2^-5.
        out: (D, R), steps of 2^-12.
        up: (M, D) with bias, steps of 2^-5; None without an MLP.
        down: (D, M), steps of 2^-12; None without an MLP.
    """

    into: Linear
    out: Linear
    up: Linear | None
    down: Linear | None


@dataclass(frozen=True)
class IntegerModel:
    """A network whose every output is defined to the bit.

    Attributes:
        config: its shape.
        vocabulary: V tokens.
        embed: (V + 2, D) table, steps of 2^-12.
        layers: L of them.
        head: (V, D) with bias, steps of 2^-8 of a binary logarithm.
        start: (2, L, R) int32, steps of 2^-17: states before the first token of a document, and of a text cut
            out of the middle of one.
        mixer: what mixing with context models begins with, as a profile's file (lmcodec.profile); may be
            empty.
        card: what the model is, as JSON values: data, steps, bits per byte, licence. No part of the identity.

    Raises:
        Corrupt: a shape or a bound does not hold.
    """

    config: RecurrentConfig
    vocabulary: Vocabulary
    embed: Linear
    layers: tuple[Layer, ...]
    head: Linear
    start: np.ndarray
    mixer: bytes = b""
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config.vocab_size != len(self.vocabulary):
            raise Corrupt(
                f"model of {self.config.vocab_size} tokens with a vocabulary of {len(self.vocabulary)}"
            )
        expected = shapes(self.config)
        found = self.tensors()
        if list(found) != list(expected):
            raise Corrupt(f"model has tensors {', '.join(found)}; expected {', '.join(expected)}")
        for name, linear in found.items():
            _check_linear(name, linear, *expected[name])
        shape = (2, self.config.n_layer, self.config.recurrent)
        if self.start.shape != shape or self.start.dtype != np.int32:
            raise Corrupt(
                f"start states: {self.start.dtype} of shape {self.start.shape}, expected int32 {shape}"
            )
        if self.start.size and _magnitude(self.start) > STATE_MAX:
            raise Corrupt(f"a start state is {_magnitude(self.start)}, at most {STATE_MAX} is allowed")

    def tensors(self) -> dict[str, Linear]:
        """All tensors by name, in the canonical order."""
        found = {"embed": self.embed}
        for i, layer in enumerate(self.layers):
            found |= {f"layers.{i}.in": layer.into, f"layers.{i}.out": layer.out}
            if layer.up is not None:
                found[f"layers.{i}.up"] = layer.up
            if layer.down is not None:
                found[f"layers.{i}.down"] = layer.down
        return found | {"head": self.head}

    @property
    def n_weight(self) -> int:
        """Weights in all tensors."""
        return sum(t.weight.size for t in self.tensors().values())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical content (FORMAT.md section 6.6), in hexadecimal."""
        digest = hashlib.sha256()
        shape = {name: getattr(self.config, name) for name in SHAPE}
        config = json.dumps(shape, sort_keys=True, separators=(",", ":")).encode()
        for part in (b"lmcodec model %d\0" % ARITHMETIC, config, self.vocabulary.pack()):
            digest.update(len(part).to_bytes(8, "little") + part)
        for linear in self.tensors().values():
            digest.update(linear.shift.to_bytes(1, "little"))
            digest.update(np.ascontiguousarray(linear.weight).data)
            digest.update(linear.multiplier.astype("<u2").data)
            if linear.bias is not None:
                digest.update(linear.bias.astype("<i4").data)
        digest.update(np.ascontiguousarray(self.start, "<i4").data)
        digest.update(self.mixer)
        return digest.hexdigest()

    @property
    def model_id(self) -> str:
        """First 8 bytes of `sha256`, 16 hexadecimal digits: what a frame's header names."""
        return self.sha256[:16]


def shapes(config: RecurrentConfig) -> dict[str, tuple[int, int, bool]]:
    """Rows N, columns K and whether there is a bias, of every tensor in the canonical order."""
    v, d, r, m = config.vocab_size, config.dim, config.recurrent, config.mlp
    expected = {"embed": (v + 2, d, False)}
    for i in range(config.n_layer):
        expected |= {f"layers.{i}.in": (3 * r, d, True), f"layers.{i}.out": (d, r, False)}
        if m:
            expected |= {f"layers.{i}.up": (m, d, True), f"layers.{i}.down": (d, m, False)}
    return expected | {"head": (v, d, True)}


def _magnitude(values: np.ndarray) -> int:
    return max(-int(values.min()), int(values.max()))


def _check_linear(name: str, linear: Linear, n: int, k: int, biased: bool) -> None:
    w, b, m = linear.weight, linear.bias, linear.multiplier
    if w.shape != (n, k) or w.dtype != np.int8:
        raise Corrupt(f"{name}: weights are {w.dtype} of shape {w.shape}, expected int8 of shape {(n, k)}")
    if _magnitude(w) > WEIGHT_MAX:
        raise Corrupt(f"{name}: a weight is {_magnitude(w)}, at most {WEIGHT_MAX} is allowed")
    if m.shape != (n,) or m.dtype != np.uint16:
        raise Corrupt(f"{name}: multipliers are {m.dtype} of shape {m.shape}, expected uint16 of ({n},)")
    if (b is not None) != biased:
        raise Corrupt(f"{name}: {'no ' if biased else 'a '}bias, expected {'one' if biased else 'none'}")
    if b is not None:
        if b.shape != (n,) or b.dtype != np.int32:
            raise Corrupt(f"{name}: biases are {b.dtype} of shape {b.shape}, expected int32 of ({n},)")
        if _magnitude(b) > BIAS_MAX:
            raise Corrupt(f"{name}: a bias is {_magnitude(b)}, at most {BIAS_MAX} is allowed")
    low = 0 if name == "embed" else SHIFT_MIN
    if not low <= linear.shift <= SHIFT_MAX:
        raise Corrupt(f"{name}: shift {linear.shift}, expected {low} to {SHIFT_MAX}")
