"""Small random transformers of arithmetic 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcodec.lm.transformer.model import Layer, Linear, TransformerModel
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "every-option": {"tied": True, "qkv_bias": True, "qk_norm": True, "no_rotary": (1,)},
    "odd": {"dim": 37, "mlp": 53, "n_head": 3, "n_kv_head": 1, "head_dim": 6, "vocab_size": 301},
    "no-sinks": {"sinks": 0, "n_kv_head": 4},
    "wide-mlp": {"dim": 36, "mlp": 2100, "n_layer": 1},
    "wide": {"dim": 2304, "n_layer": 1, "mlp": 8},
    "least": {"dim": 1, "mlp": 1, "n_head": 1, "n_kv_head": 1, "head_dim": 2, "n_layer": 1},
    "large-head": {"head_dim": 256, "n_head": 1, "n_kv_head": 1},
}


def random_transformer(seed: int = 0, *, gain: float = 1, **shape: Any) -> TransformerModel:
    """A model whose weights are uniform and whose logits have some bits of entropy.

    Args:
        seed: of the weights.
        gain: of the norms.
        shape: members of a TransformerConfig that differ from a small one's.
    """
    rng = np.random.default_rng(seed)
    small = {
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
    c = TransformerConfig(**(small | shape))

    def linear(n: int, k: int, biased: bool = False) -> Linear:
        weight = rng.integers(-63, 64, (n, k)).astype(np.int8)
        scale = ((0.5 + rng.random(n)) / (37 * np.sqrt(k) * (k & -k))).astype(np.float32)
        return Linear(weight, scale, rng.standard_normal(n).astype(np.float32) if biased else None)

    def vector(n: int) -> np.ndarray:
        return (gain + 0.1 * rng.standard_normal(n)).astype(np.float32)

    layers = tuple(
        Layer(
            vector(c.dim),
            linear(c.n_qkv, c.dim, c.qkv_bias),
            vector(c.head_dim) if c.qk_norm else None,
            vector(c.head_dim) if c.qk_norm else None,
            linear(c.dim, c.n_head * c.head_dim),
            vector(c.dim),
            linear(2 * c.mlp, c.dim),
            linear(c.dim, c.mlp),
        )
        for _ in range(c.n_layer)
    )
    embed = linear(c.vocab_size + 2, c.dim)
    head = linear(c.vocab_size, c.dim, True)
    if c.tied:
        head = Linear(embed.weight[: c.vocab_size], embed.scale[: c.vocab_size], head.bias)
    angle = 1e4 ** (-np.arange(c.head_dim // 2) / (c.head_dim // 2))
    strings = [bytes([i]) for i in range(256)] + [b"th%d" % i for i in range(c.vocab_size - 256)]
    rotary = np.stack((np.cos(angle), np.sin(angle)))
    return TransformerModel(c, Vocabulary(sorted(strings)), embed, layers, vector(c.dim), head, rotary)


def random_tokens(model: TransformerModel, n_step: int, n_stream: int, seed: int = 0) -> np.ndarray:
    """(T, B) tokens that begin with the starts in turn."""
    tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, (n_step, n_stream))
    tokens[0] = [model.config.start[b % 2] for b in range(n_stream)]
    return tokens
