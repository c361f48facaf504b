"""An imported transformer in memory: what every executor runs. FORMAT.md section 9.

Knows neither how it was imported nor how its file looks nor how it runs (`reference.py`). The bounds checked
here are those that FORMAT.md section 9 proves the arithmetic with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lmcodec.errors import Corrupt
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

ARITHMETIC = 2  # version of FORMAT.md section 9: another one gives other integers
WEIGHT_MAX = 63
LARGEST = np.float32(2.0**40)  # of values; scales lie in [SCALE_MIN, LARGEST]
SCALE_MIN = np.float32(2.0**-40)
SMALLEST = np.float32(2.0**-60)  # of values that are not 0


@dataclass(frozen=True)
class Linear:
    """A matrix product with the rotated, quantised input: float(sum) * scale * the input's scale + bias.

    Attributes:
        weight: (N, K) int8, |w| <= 63, rotated along K.
        scale: (N,) float32, 2^-40 to 2^40.
        bias: (N,) float32, each 0 or 2^-60 to 2^40 in size; None for none.
    """

    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Layer:
    """Attention and an MLP on a residual stream of width D. What the shape has not is None.

    Attributes:
        attention_norm: (D,) float32, if `pre_norm`.
        qkv: ((H + 2 G) E, D): queries, keys, values, head by head.
        q_norm, k_norm: (E,) float32, or of all heads' (H E,) and (G E,), if `qk_norm`.
        out: (D, H E).
        mlp_norm: (D,) float32, if `pre_norm`.
        gate_up: (2 F, D): the F gates, then the F values; if not `gated` (F, D).
        down: (D, F).
        attention_norm_bias, mlp_norm_bias: (D,) float32, of a norm "layer".
        post_attention_norm, post_mlp_norm: (D,) float32, if `post_norm`.
    """

    attention_norm: np.ndarray | None
    qkv: Linear
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    out: Linear
    mlp_norm: np.ndarray | None
    gate_up: Linear
    down: Linear
    attention_norm_bias: np.ndarray | None = None
    mlp_norm_bias: np.ndarray | None = None
    post_attention_norm: np.ndarray | None = None
    post_mlp_norm: np.ndarray | None = None


MATRICES = ("qkv", "out", "gate_up", "down")  # of a layer, in the canonical order
VECTORS = (
    *("attention_norm", "attention_norm_bias", "q_norm", "k_norm", "post_attention_norm"),
    *("mlp_norm", "mlp_norm_bias", "post_mlp_norm"),
)


@dataclass(frozen=True)
class TransformerModel:
    """A transformer whose every output is defined to the bit.

    Attributes:
        config: its shape.
        vocabulary: V tokens.
        embed: (V + 2, D), no bias; its rows are rotated.
        layers: L of them.
        norm: (D,) float32, before the head.
        head: (V, D) with bias; if `tied`, its weights and scales are the embedding's first V rows.
        rotary: (2, E / 2) float64: cosine and sine of the angle that one position turns each pair by; with
            `sliding` (4, E / 2), those of the sliding layers at the end.
        mixer: what mixing with context models begins with, as a profile's file; may be empty.
        card: what the model is, as JSON values. No part of the identity.
        position: (P, D), no bias, its rows are rotated; None without learned positions.
        norm_bias: (D,) float32, of a norm "layer".

    Raises:
        Corrupt: a shape or a bound does not hold.
    """

    config: TransformerConfig
    vocabulary: Vocabulary
    embed: Linear
    layers: tuple[Layer, ...]
    norm: np.ndarray
    head: Linear
    rotary: np.ndarray
    mixer: bytes = b""
    card: dict[str, Any] = field(default_factory=dict)
    position: Linear | None = None
    norm_bias: np.ndarray | None = None

    def __post_init__(self) -> None:
        c = self.config
        if c.vocab_size != len(self.vocabulary):
            raise Corrupt(f"model of {c.vocab_size} tokens with a vocabulary of {len(self.vocabulary)}")
        if len(self.layers) != c.n_layer:
            raise Corrupt(f"model has {len(self.layers)} layers, expected {c.n_layer}")
        expected = shapes(c)
        matrices = self.linears()
        if ("position" in matrices) != bool(c.n_position):
            raise Corrupt("position: a table of positions, expected none, or none, expected one")
        for name, linear in matrices.items():
            _check_linear(name, linear, *expected[name])
        wanted = vector_shapes(c)
        found = self.vectors()
        for name, vector in found.items():
            if name not in wanted:
                raise Corrupt(f"{name}: the model's shape has no such vector")
            _check_vector(name, vector, wanted[name])
        if missing := set(wanted) - set(found):
            raise Corrupt(f"{min(missing)} is missing")
        if self.rotary.shape != (c.n_rotary, c.head_dim // 2) or self.rotary.dtype != np.float64:
            raise Corrupt(f"rotary: {self.rotary.dtype} of shape {self.rotary.shape}")
        square = self.rotary[::2] * self.rotary[::2] + self.rotary[1::2] * self.rotary[1::2]
        if not (np.abs(square - 1) <= 2.0**-50).all():
            raise Corrupt("rotary: a cosine and its sine are not those of an angle")

    def linears(self) -> dict[str, Linear]:
        """All matrices by name, in the canonical order; the head of a tied model, too."""
        found = {"embed": self.embed}
        if self.position is not None:
            found["position"] = self.position
        for i, layer in enumerate(self.layers):
            found |= {f"layers.{i}.{name}": getattr(layer, name) for name in MATRICES}
        return found | {"head": self.head}

    def vectors(self) -> dict[str, np.ndarray]:
        """All norms by name, in the canonical order."""
        found: dict[str, np.ndarray] = {}
        for i, layer in enumerate(self.layers):
            vectors = {f"layers.{i}.{name}": getattr(layer, name) for name in VECTORS}
            found |= {name: vector for name, vector in vectors.items() if vector is not None}
        found["norm"] = self.norm
        return found if self.norm_bias is None else found | {"norm_bias": self.norm_bias}

    @property
    def n_weight(self) -> int:
        """Weights in all tensors, a tied head not counted."""
        return self.config.n_weight

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical content (FORMAT.md section 9.8), in hexadecimal."""
        digest = hashlib.sha256()
        shape = json.dumps(self.config.as_json(), sort_keys=True, separators=(",", ":")).encode()
        for part in (b"lmcodec model %d\0" % ARITHMETIC, shape, self.vocabulary.pack()):
            digest.update(len(part).to_bytes(8, "little") + part)
        for name, linear in self.linears().items():
            if name != "head" or not self.config.tied:
                digest.update(np.ascontiguousarray(linear.weight).data)
                digest.update(linear.scale.astype("<f4").data)
            if linear.bias is not None:
                digest.update(linear.bias.astype("<f4").data)
        for vector in self.vectors().values():
            digest.update(vector.astype("<f4").data)
        digest.update(self.rotary.astype("<f8").data)
        digest.update(self.mixer)
        return digest.hexdigest()

    @property
    def model_id(self) -> str:
        """First 8 bytes of `sha256`, 16 hexadecimal digits: what a frame's header names."""
        return self.sha256[:16]


def shapes(config: TransformerConfig) -> dict[str, tuple[int, int, bool]]:
    """Rows N, columns K and whether there is a bias, of every matrix in the canonical order."""
    c = config
    expected = {"embed": (c.vocab_size + 2, c.dim, False)}
    if c.n_position:
        expected["position"] = (c.n_position, c.dim, False)
    for i in range(c.n_layer):
        expected |= {
            f"layers.{i}.qkv": (c.n_qkv, c.dim, c.qkv_bias),
            f"layers.{i}.out": (c.dim, c.n_head * c.head_dim, c.out_bias),
            f"layers.{i}.gate_up": (c.n_up, c.dim, c.mlp_bias),
            f"layers.{i}.down": (c.dim, c.mlp, c.mlp_bias),
        }
    return expected | {"head": (c.vocab_size, c.dim, True)}


def vector_shapes(config: TransformerConfig) -> dict[str, int]:
    """The length of every norm, in the canonical order."""
    c = config
    biased = c.norm == "layer"
    heads = (c.n_head, c.n_kv_head) if c.qk_norm_whole else (1, 1)
    each = {
        "attention_norm": c.dim if c.pre_norm else 0,
        "attention_norm_bias": c.dim if c.pre_norm and biased else 0,
        "q_norm": heads[0] * c.head_dim if c.qk_norm else 0,
        "k_norm": heads[1] * c.head_dim if c.qk_norm else 0,
        "post_attention_norm": c.dim if c.post_norm else 0,
        "mlp_norm": c.dim if c.pre_norm else 0,
        "mlp_norm_bias": c.dim if c.pre_norm and biased else 0,
        "post_mlp_norm": c.dim if c.post_norm else 0,
    }
    expected = {f"layers.{i}.{name}": n for i in range(c.n_layer) for name, n in each.items() if n}
    return expected | {"norm": c.dim} | ({"norm_bias": c.dim} if biased else {})


def layers(
    config: TransformerConfig, linears: dict[str, Linear], vectors: dict[str, np.ndarray]
) -> tuple[Layer, ...]:
    """The layers of matrices and vectors by their names; what is not there is None."""

    def parts(i: int) -> dict[str, Any]:
        matrices = {name: linears[f"layers.{i}.{name}"] for name in MATRICES}
        return matrices | {name: vectors.get(f"layers.{i}.{name}") for name in VECTORS}

    return tuple(Layer(**parts(i)) for i in range(config.n_layer))


def _check_vector(name: str, vector: np.ndarray, n: int) -> None:
    if vector.shape != (n,) or vector.dtype != np.float32:
        raise Corrupt(f"{name}: {vector.dtype} of shape {vector.shape}, expected float32 of ({n},)")
    size = np.abs(vector)
    if not ((size <= LARGEST) & ((size >= SMALLEST) | (size == 0))).all():  # NaN is neither
        raise Corrupt(f"{name}: a value is neither 0 nor 2^-60 to 2^40 in size")


def _check_linear(name: str, linear: Linear, n: int, k: int, biased: bool) -> None:
    w, scale = linear.weight, linear.scale
    if w.shape != (n, k) or w.dtype != np.int8:
        raise Corrupt(f"{name}: weights are {w.dtype} of shape {w.shape}, expected int8 of shape {(n, k)}")
    largest = max(-int(w.min()), int(w.max()))
    if largest > WEIGHT_MAX:
        raise Corrupt(f"{name}: a weight is {largest}, at most {WEIGHT_MAX} is allowed")
    if scale.shape != (n,) or scale.dtype != np.float32:
        raise Corrupt(f"{name}: scales are {scale.dtype} of shape {scale.shape}, expected float32 of ({n},)")
    if not ((scale >= SCALE_MIN) & (scale <= LARGEST)).all():
        raise Corrupt(f"{name}: a scale is not within 2^-40 to 2^40")
    if (linear.bias is not None) != biased:
        raise Corrupt(f"{name}: {'no ' if biased else 'a '}bias, expected {'one' if biased else 'none'}")
    if linear.bias is not None:
        _check_vector(f"{name}'s bias", linear.bias, n)
