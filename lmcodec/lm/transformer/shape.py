"""The shape of a transformer, and its cost: what executors, the importer and the model file need to know.

Knows no weights and no state. FORMAT.md section 9.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from lmcodec.errors import ConfigError

MAX_VOCAB = 1 << 20
MAX_FAN_IN = 65_536  # K: |activation| <= 127 and |weight| <= 63 give sums below 2^29
MAX_HEAD_DIM = 1024  # 127 * 127 * 1024 < 2^24: scores are exact in float32
MAX_LAYERS = 1024
MAX_ATTENDED = 16_384  # window and sinks together: probabilities of 15 bits are at least 1 for the likeliest
MAX_WEIGHTS = 1 << 33
MAX_POSITION = 1 << 22  # positions of a stream are below it

_LIMITS = {
    "vocab_size": (256, MAX_VOCAB),
    "dim": (1, MAX_FAN_IN),
    "n_layer": (1, MAX_LAYERS),
    "n_head": (1, 1024),
    "n_kv_head": (1, 1024),
    "head_dim": (2, MAX_HEAD_DIM),
    "mlp": (1, MAX_FAN_IN),
    "window": (16, MAX_ATTENDED - 16),
    "sinks": (0, 16),
}


@dataclass(frozen=True)
class TransformerConfig:
    """A causal transformer of the Llama family.

    Attributes:
        vocab_size: V, tokens that are predicted; the embedding has two rows more, `start[0]` and `start[1]`.
        dim: D, width of the residual stream.
        n_layer: L.
        n_head: H, heads of queries.
        n_kv_head: G, heads of keys and values; divides H.
        head_dim: E, width of a head, even.
        mlp: F, width of the gated MLP.
        window: W, tokens that a query sees, itself among them.
        sinks: S, first tokens of a stream that it sees always.
        norm_eps: added to a mean square, a binary32 from 2^-40 to 1.
        score_scale: what a score is multiplied by, a binary32: 256 * log2(e) / sqrt(E) for most models.
        logit_scale: what a logit is multiplied by, a binary32: 256 * log2(e) for most models.
        qkv_bias: queries, keys and values have biases.
        qk_norm: every head's query and key is normalised before it is rotated.
        tied: the head's matrix is the embedding's first V rows.
        no_rotary: layers whose queries and keys are not rotated, ascending.
    """

    vocab_size: int
    dim: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    mlp: int
    window: int = 1024
    sinks: int = 4
    norm_eps: float = 2.0**-17
    score_scale: float = 46.25
    logit_scale: float = 369.25
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    no_rotary: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"model.{name} is {value!r}, expected an integer from {low} to {high}")
        for name in ("qkv_bias", "qk_norm", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"model.{name} is {getattr(self, name)!r}, expected true or false")
        for name, low_value, high_value in (
            ("norm_eps", 2.0**-40, 1.0),
            ("score_scale", 2.0**-20, 1024.0),
            ("logit_scale", 2.0**-10, 65536.0),
        ):
            value = getattr(self, name)
            if (
                not isinstance(value, float)
                or not low_value <= value <= high_value
                or not _is_binary32(value)
            ):
                raise ConfigError(
                    f"model.{name} is {value!r}, expected a binary32 from {low_value!r} to {high_value!r}"
                )
        if self.n_head % self.n_kv_head:
            raise ConfigError(f"model.n_head is {self.n_head}, no multiple of n_kv_head, {self.n_kv_head}")
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim is {self.head_dim}, expected an even number")
        if self.n_head * self.head_dim > MAX_FAN_IN:
            raise ConfigError(f"model.n_head * head_dim is {self.n_head * self.head_dim}, over {MAX_FAN_IN}")
        layers = self.no_rotary
        if not isinstance(layers, tuple) or not all(type(i) is int and 0 <= i < self.n_layer for i in layers):
            raise ConfigError(f"model.no_rotary is {layers!r}, expected numbers of layers")
        if any(a >= b for a, b in pairwise(layers)):
            raise ConfigError(f"model.no_rotary is {layers!r}, expected ascending numbers")
        if self.n_weight > MAX_WEIGHTS:
            raise ConfigError(f"the model has {self.n_weight} weights, over {MAX_WEIGHTS}")

    @property
    def start(self) -> tuple[int, int]:
        """Rows of the embedding that begin a document, and a text from the middle of one."""
        return self.vocab_size, self.vocab_size + 1

    @property
    def n_qkv(self) -> int:
        """Rows of the product that gives queries, keys and values."""
        return (self.n_head + 2 * self.n_kv_head) * self.head_dim

    @property
    def macs_per_token(self) -> int:
        """Multiply-accumulates of the matrix products of one step of one stream, attention not counted."""
        return self.n_layer * self._n_layer_weight + self.dim * self.vocab_size

    @property
    def n_weight(self) -> int:
        """Weights in matrices and tables."""
        head = 0 if self.tied else self.vocab_size * self.dim
        return (self.vocab_size + 2) * self.dim + self.n_layer * self._n_layer_weight + head

    @property
    def cache_nbytes(self) -> int:
        """Bytes of keys and values, with their scales, that one stream takes at most."""
        position = self.n_layer * self.n_kv_head * 2 * (self.head_dim + 4)
        return (self.window + self.sinks) * position

    @property
    def _n_layer_weight(self) -> int:
        return self.dim * (self.n_qkv + self.n_head * self.head_dim + 3 * self.mlp)

    def as_json(self) -> dict[str, Any]:
        """The members of the file's header, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"no_rotary": list(self.no_rotary)}


def _is_binary32(value: float) -> bool:
    return struct.unpack("<f", struct.pack("<f", value))[0] == value
