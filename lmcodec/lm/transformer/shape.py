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
    "n_position": (0, MAX_ATTENDED - 16),
    "sliding_window": (0, MAX_ATTENDED - 16),
    "sliding_sinks": (0, 16),
}
_BOOLEANS = (
    *("qkv_bias", "qk_norm", "tied", "pre_norm", "post_norm", "parallel", "qk_norm_whole", "gated"),
    *("out_bias", "mlp_bias"),
)
NORMS = ("rms", "layer")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
MIN_CAP, MAX_CAP = 1.0, 2.0**22  # of scores and logits, in their steps


@dataclass(frozen=True)
class TransformerConfig:
    """A causal transformer: Llama's, and what the members from `norm` on make of it.

    Those members are no part of a file or of an identity where they have their defaults.

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
        norm: "rms", or "layer": subtracts the mean and has a bias.
        pre_norm: attention and MLP take normalised inputs.
        post_norm: what they give is normalised before it is added.
        parallel: the MLP's input is the attention's, not what that gives.
        qk_norm_whole: with `qk_norm`, all heads' queries are normalised together, and all keys.
        gated: the MLP has gates; otherwise F units.
        activation: of gates or units: "silu", "gelu", or "gelu_tanh", its approximation.
        out_bias: attention's output product has biases.
        mlp_bias: the MLP's products have biases.
        score_cap: c of c * tanh(score / c), in steps of a score, a binary32; 0 for none.
        logit_cap: the same of logits.
        n_position: P, rows of a table of learned positions, even; 0 for none. W is P then, S is 0, and no
            layer rotates.
        sliding: layers that see `sliding_window` tokens, turned by angles of their own, ascending.
        sliding_window: at most W; 0 if there are no such layers.
        sliding_sinks: first tokens that these layers see always, at most S.
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
    norm: str = "rms"
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    qk_norm_whole: bool = False
    gated: bool = True
    activation: str = "silu"
    out_bias: bool = False
    mlp_bias: bool = False
    score_cap: float = 0.0
    logit_cap: float = 0.0
    n_position: int = 0
    sliding: tuple[int, ...] = ()
    sliding_window: int = 0
    sliding_sinks: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"model.{name} is {value!r}, expected an integer from {low} to {high}")
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"model.{name} is {getattr(self, name)!r}, expected true or false")
        for name, known in (("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )
        for name, low_value, high_value, none in (
            ("norm_eps", 2.0**-40, 1.0, None),
            ("score_scale", 2.0**-20, 1024.0, None),
            ("logit_scale", 2.0**-10, 65536.0, None),
            ("score_cap", MIN_CAP, MAX_CAP, 0.0),
            ("logit_cap", MIN_CAP, MAX_CAP, 0.0),
        ):
            value = getattr(self, name)
            within = isinstance(value, float) and (value == none or low_value <= value <= high_value)
            if not within or not _is_binary32(value):
                raise ConfigError(
                    f"model.{name} is {value!r}, expected a binary32 from {low_value!r} to {high_value!r}"
                    + ("" if none is None else " or 0.0")
                )
        if self.n_head % self.n_kv_head:
            raise ConfigError(f"model.n_head is {self.n_head}, no multiple of n_kv_head, {self.n_kv_head}")
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim is {self.head_dim}, expected an even number")
        if self.n_head * self.head_dim > MAX_FAN_IN:
            raise ConfigError(f"model.n_head * head_dim is {self.n_head * self.head_dim}, over {MAX_FAN_IN}")
        self._check_layers("no_rotary")
        self._check_layers("sliding")
        self._check_options()
        if self.n_weight > MAX_WEIGHTS:
            raise ConfigError(f"the model has {self.n_weight} weights, over {MAX_WEIGHTS}")

    def _check_layers(self, name: str) -> None:
        layers = getattr(self, name)
        if not isinstance(layers, tuple) or not all(type(i) is int and 0 <= i < self.n_layer for i in layers):
            raise ConfigError(f"model.{name} is {layers!r}, expected numbers of layers")
        if any(a >= b for a, b in pairwise(layers)):
            raise ConfigError(f"model.{name} is {layers!r}, expected ascending numbers")

    def _check_options(self) -> None:
        """Only what a known family needs together is allowed."""
        if not self.pre_norm and not self.post_norm:
            raise ConfigError("model.pre_norm and post_norm are both false")
        if self.parallel and (self.post_norm or not self.pre_norm):
            raise ConfigError("model.parallel needs pre_norm and no post_norm")
        if self.norm == "layer" and (self.post_norm or self.qk_norm):
            raise ConfigError("model.norm is layer, which goes with neither post_norm nor qk_norm")
        if self.qk_norm_whole and not self.qk_norm:
            raise ConfigError("model.qk_norm_whole needs qk_norm")
        if not self.sliding and (self.sliding_window or self.sliding_sinks):
            raise ConfigError(
                "model.sliding_window and sliding_sinks are of layers, of which sliding has none"
            )
        if self.sliding and not (16 <= self.sliding_window <= self.window):
            raise ConfigError(f"model.sliding_window is {self.sliding_window}, expected 16 to {self.window}")
        if self.sliding_sinks > self.sinks:
            raise ConfigError(f"model.sliding_sinks is {self.sliding_sinks}, expected 0 to {self.sinks}")
        if self.n_position:
            if self.n_position % 2 or self.n_position != self.window or self.sinks:
                raise ConfigError(
                    f"model.n_position is {self.n_position}, expected the window's, even, and no sinks"
                )
            if len(self.no_rotary) != self.n_layer or self.sliding:
                raise ConfigError("model.n_position needs layers that neither rotate nor slide")

    @property
    def half(self) -> int:
        """Tokens that a stream is fed again when it has had all learned positions."""
        return self.n_position // 2

    def room(self, n: int) -> int:
        """How many tokens a stream with learned positions that has taken `n` takes before it restarts."""
        return self.n_position - n if n < self.n_position else self.half - (n - self.n_position) % self.half

    def restarts(self, n: int) -> bool:
        """Whether a stream that has taken `n` tokens is fed the last `half` of them again."""
        return bool(self.n_position) and n >= self.n_position and (n - self.n_position) % self.half == 0

    def place(self, n: int) -> int:
        """The position of a stream's token number `n`."""
        return n if not self.n_position or n < self.n_position else self.n_position - self.room(n)

    @property
    def n_up(self) -> int:
        """Rows of the MLP's first product."""
        return 2 * self.mlp if self.gated else self.mlp

    @property
    def n_rotary(self) -> int:
        """Rows of the rotary angles: cosines and sines, of sliding layers others."""
        return 4 if self.sliding else 2

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
        table = self.vocab_size + 2 + self.n_position
        return table * self.dim + self.n_layer * self._n_layer_weight + head

    @property
    def cache_nbytes(self) -> int:
        """Bytes of keys and values, with their scales, that one stream takes at most."""
        position = self.n_layer * self.n_kv_head * 2 * (self.head_dim + 4)
        return (self.window + self.sinks) * position

    @property
    def _n_layer_weight(self) -> int:
        return self.dim * (self.n_qkv + self.n_head * self.head_dim + self.n_up + self.mlp)

    def as_json(self) -> dict[str, Any]:
        """The members of the file's header, as JSON values: those from `norm` on unless they are defaults."""
        values = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if member.name in ALWAYS or value != member.default:
                values[member.name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TransformerConfig:
        """The inverse of `as_json`.

        Raises:
            ConfigError: there is no such shape, or it would be written otherwise.
        """
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        config = cls(**found)
        if written := values.keys() - config.as_json().keys():
            raise ConfigError(f"model.{min(written)} is given with its default value")
        return config


ALWAYS = tuple(member.name for member in fields(TransformerConfig))[:16]  # members up to `no_rotary`


def _is_binary32(value: float) -> bool:
    return struct.unpack("<f", struct.pack("<f", value))[0] == value
