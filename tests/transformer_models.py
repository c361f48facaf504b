"""Small random transformers, for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from lmcodec.lm.transformer.model import WEIGHT_MAX, Layer, Linear, TransformerModel
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

    def norm(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    layers = tuple(
        Layer(
            norm(c.dim),
            linear(c.n_qkv, c.dim, c.qkv_bias),
            norm(c.head_dim) if c.qk_norm else None,
            norm(c.head_dim) if c.qk_norm else None,
            linear(c.dim, c.n_head * c.head_dim),
            norm(c.dim),
            linear(2 * c.mlp, c.dim),
            linear(c.dim, c.mlp),
        )
        for _ in range(c.n_layer)
    )
    embed = linear(c.vocab_size + 2, c.dim)
    head = linear(c.vocab_size, c.dim, True)
    if c.tied:
        head = Linear(embed.weight[: c.vocab_size], embed.scale[: c.vocab_size], head.bias)
    angle = 10_000.0 ** (-np.arange(c.head_dim // 2) / (c.head_dim // 2))
    rotary = np.stack((np.cos(angle), np.sin(angle)))
    return TransformerModel(c, vocabulary(c.vocab_size), embed, layers, norm(c.dim), head, rotary)


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
