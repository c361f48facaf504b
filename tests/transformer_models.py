"""Small random transformers, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from lmcodec.lm.transformer.model import (
    WEIGHT_MAX,
    Linear,
    TransformerModel,
    layers,
    shapes,
    vector_shapes,
)
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "dim": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "head_dim": 16,
    "mlp": 96,
    "window": 16,
    "sinks": 2,
}
# Every option, widths that are multiples of nothing, one head and many, heads of 2 to 256, rows over 2,048.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all options": {"tied": True, "qkv_bias": True, "qk_norm": True, "no_rotary": (1,)},
    "odd widths": {"vocab_size": 321, "dim": 37, "mlp": 70, "head_dim": 2},
    "no sinks": {"n_head": 6, "head_dim": 80, "window": 21, "sinks": 0},
    "seven heads": {"vocab_size": 257, "dim": 80, "n_head": 7, "n_kv_head": 1, "head_dim": 64, "mlp": 33},
    "wide head": {"dim": 192, "n_head": 1, "n_kv_head": 1, "head_dim": 256, "window": 33, "sinks": 16},
    "wide MLP": {"dim": 17, "head_dim": 6, "mlp": 2500, "tied": True, "qk_norm": True},
    "narrow": {"dim": 1, "n_head": 1, "n_kv_head": 1, "head_dim": 2, "mlp": 1, "window": 17, "sinks": 1},
    # What families have.
    "gemma2": {
        "post_norm": True,
        "activation": "gelu_tanh",
        "score_cap": 300.0,
        "logit_cap": 700.0,
        "tied": True,
    },
    "gemma3": {
        "n_layer": 3,
        "post_norm": True,
        "activation": "gelu_tanh",
        "qk_norm": True,
        "window": 25,
        "sliding": (0, 2),
        "sliding_window": 18,
        "sliding_sinks": 1,
    },
    "olmo2": {
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": True,
        "qk_norm_whole": True,
        "head_dim": 18,
        "sliding": (1,),
        "sliding_window": 16,
        "dim": 43,
    },
    "phi": {
        "norm": "layer",
        "parallel": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
        "dim": 50,
        "mlp": 101,
    },
    "neox": {"norm": "layer", "qkv_bias": True, "gated": False, "activation": "gelu", "dim": 16, "mlp": 19},
    "gpt2": {
        "norm": "layer",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "gated": False,
        "activation": "gelu",
        "n_position": 18,
        "window": 18,
        "sinks": 0,
        "no_rotary": (0, 1),
        "dim": 3,
    },
    "positions": {"n_position": 16, "window": 16, "sinks": 0, "no_rotary": (0, 1), "activation": "gelu"},
}


def vocabulary(n: int) -> Vocabulary:
    pairs = [bytes([97 + i // 26, 97 + i % 26]) for i in range(n - 256)]
    return Vocabulary(sorted({bytes([b]) for b in range(256)} | set(pairs)))


def assemble(config: TransformerConfig, rng: np.random.Generator, size: float = 1.0) -> TransformerModel:
    """A model with random weights, norms about 1 and biases of a standard deviation of 1."""
    c = config

    def linear(n: int, k: int, biased: bool = False) -> Linear:
        weight = rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, (n, k)).astype(np.int8)
        scale = (size * (rng.random(n) * 0.002 + 0.0005)).astype(np.float32)
        return Linear(weight, scale, rng.standard_normal(n).astype(np.float32) if biased else None)

    def vector(name: str, n: int) -> np.ndarray:
        centre = 0 if name.endswith("bias") else 1
        return (centre + 0.1 * rng.standard_normal(n)).astype(np.float32)

    linears = {name: linear(*shape) for name, shape in shapes(c).items()}
    vectors = {name: vector(name, n) for name, n in vector_shapes(c).items()}
    embed, head = linears["embed"], linears["head"]
    if c.tied:
        head = Linear(embed.weight[: c.vocab_size], embed.scale[: c.vocab_size], head.bias)
    angle = 10_000.0 ** (-np.arange(c.head_dim // 2) / (c.head_dim // 2))
    rotary = np.stack((np.cos(angle), np.sin(angle), np.cos(angle * 0.3), np.sin(angle * 0.3))[: c.n_rotary])
    return TransformerModel(
        c,
        vocabulary(c.vocab_size),
        embed,
        layers(c, linears, vectors),
        vectors["norm"],
        head,
        rotary,
        position=linears.get("position"),
        norm_bias=vectors.get("norm_bias"),
    )


@cache
def _random_model(shape: tuple[tuple[str, Any], ...], seed: int) -> TransformerModel:
    return assemble(TransformerConfig(**dict(shape)), np.random.default_rng(seed))


def random_model(seed: int = 1, **changes: Any) -> TransformerModel:
    """`SMALL` with changes."""
    return _random_model(tuple((SMALL | changes).items()), seed)


def random_tokens(model: TransformerModel, t: int, b: int, seed: int = 0) -> np.ndarray:
    """(T, B) tokens; the first ones begin documents and texts from the middle of one."""
    rng = np.random.default_rng((t, b, seed))
    tokens = rng.integers(0, model.config.vocab_size + 2, (t, b))
    tokens[0] = np.resize(model.config.start, b)
    return tokens
