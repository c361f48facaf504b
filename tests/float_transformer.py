"""A transformer of Llama's kind in binary64, with the codec's window and sinks, which its integers are near.

Independent of the codec's reference: it takes a source's own tensors, and nothing is rounded.
"""

from __future__ import annotations

import numpy as np

from lmcodec.lm.transformer.importing.source import Source


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _turned(x: np.ndarray, position: np.ndarray, theta: float) -> np.ndarray:
    """(T, H, E) heads turned by their positions."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), axis=-1
    )


def logits(source: Source, ids: np.ndarray, window: int, sinks: int) -> np.ndarray:
    """(T, rows of the embedding) float64 logits in nats after each of (T,) ids."""
    c = source.config
    n, eps = len(ids), c["rms_norm_eps"]
    heads, groups, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    theta = c["rope_parameters"]["rope_theta"]

    def take(name: str) -> np.ndarray:
        return source.read(name, slice(None)).astype(np.float64)

    embedding = take("model.embed_tokens.weight")
    x = embedding[ids]
    t = np.arange(n)
    near = (t <= t[:, None]) & (t > t[:, None] - window)
    far = (t <= t[:, None]) & (t < sinks) & ~near
    for i in range(c["num_hidden_layers"]):
        inner = f"model.layers.{i}."
        y = _norm(x, take(inner + "input_layernorm.weight"), eps)
        q = (y @ take(inner + "self_attn.q_proj.weight").T).reshape(n, heads, width)
        k = (y @ take(inner + "self_attn.k_proj.weight").T).reshape(n, groups, width)
        v = (y @ take(inner + "self_attn.v_proj.weight").T).reshape(n, groups, width)
        key = _turned(k, t, theta)
        close, distant = _turned(q, t, theta), _turned(q, np.minimum(t, window), theta)
        out = np.empty((n, heads, width))
        for h in range(heads):
            g = h * groups // heads
            score = np.where(far, distant[:, h] @ key[:, g].T, close[:, h] @ key[:, g].T) / np.sqrt(width)
            score = np.where(near | far, score, -np.inf)
            p = np.exp(score - score.max(axis=1, keepdims=True))
            out[:, h] = (p / p.sum(axis=1, keepdims=True)) @ v[:, g]
        x = x + out.reshape(n, -1) @ take(inner + "self_attn.o_proj.weight").T
        y = _norm(x, take(inner + "post_attention_layernorm.weight"), eps)
        gate, up = y @ take(inner + "mlp.gate_proj.weight").T, y @ take(inner + "mlp.up_proj.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ take(inner + "mlp.down_proj.weight").T
    return _norm(x, take("model.norm.weight"), eps) @ embedding.T
