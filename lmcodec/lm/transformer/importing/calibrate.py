"""A model's weights rounded anew, with regard to what goes into its products (`feedback.py`).

The text for that is the model's own: tokens drawn from its frequencies by an integer generator, so that no
text comes with the importer, and a model of another language has one in it. It goes through the model layer
by layer: the residual stream of all positions is kept, a layer is run on it alone to see what its products
take, and again when its weights are what they will be. Every pass is the exact one of FORMAT.md section 9,
what is summed of it are integers: one model gives the same weights on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import numpy as np

from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.importing import feedback, quantise
from lmcodec.lm.transformer.model import SCALE_MIN, Layer, Linear, TransformerModel
from lmcodec.lm.transformer.native import NativeTransformer
from lmcodec.lm.vocab import Vocabulary

STREAMS, POSITIONS = 16, 256
SAID = f"{STREAMS * POSITIONS} tokens drawn from the model"  # in the card
_ROWS = 1040  # 127 * 127 * 1040 < 2^24: sums of so many products are exact in float32, in any order
_THREADS = 2
_LAYER = ("down", "gate_up", "qkv", "out")  # matrices, those that take longest first
_INPUTS = ("qkv", "out", "gate_up", "down")  # in the order of a pass

# Rows a to b - 1 of a matrix as float32, before any rounding.
Rows = Callable[[int, int], np.ndarray]


def sample(model: TransformerModel, n_step: int = POSITIONS, n_stream: int = STREAMS) -> np.ndarray:
    """(T, B) tokens that the model goes on with, after each of its two starts in turn.

    The token at t of stream b is the first whose frequency, with all before it, exceeds r mod their sum; r is
    the number that the first 8 bytes, the least first, of the SHA-256 of "lmcodec calibration t b" are.
    """
    config = model.config
    if config.n_position:  # texts that no restart cuts
        n_step = min(n_step, config.n_position)
    else:  # the same numbers in less memory: nothing leaves a window of as many positions as there are
        window = max(16, min(config.window, n_step))
        config = replace(config, window=window, sliding_window=min(config.sliding_window, window))
    session = NativeTransformer(replace(model, config=config)).session(n_stream, helped=True)
    tokens = np.empty((n_step, n_stream), np.int64)
    tokens[0] = np.resize(model.config.start, n_stream)
    for t in range(1, n_step):
        session.step(tokens[t - 1])
        for b, freq in enumerate(session.frequencies()):
            upto = freq.cumsum(dtype=np.uint64)
            digest = hashlib.sha256(b"lmcodec calibration %d %d" % (t, b)).digest()
            drawn = int.from_bytes(digest[:8], "little") % int(upto[-1])
            tokens[t, b] = np.searchsorted(upto, np.uint64(drawn), side="right")
    return tokens


def gram(codes: np.ndarray) -> np.ndarray:
    """(K, K) int64: the sum over (N, K) int8 codes of each with each."""
    total = np.zeros((codes.shape[1], codes.shape[1]), np.int64)
    for at in range(0, len(codes), _ROWS):
        part = codes[at : at + _ROWS].astype(np.float32)
        total += (part.T @ part).astype(np.int64)
    return total


def embedded(model: TransformerModel, tokens: np.ndarray) -> np.ndarray:
    """(T, B, D) float32 values of the residual stream before the first layer, of (T, B) tokens.

    T is at most P where positions are learned.
    """
    x = reference.embed(model.embed, tokens)
    if model.position is not None:
        at = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
        x = reference.hold(x + reference.embed(model.position, at))
    return np.ascontiguousarray(x)


def run_layer(model: TransformerModel, i: int, layer: Layer, x: np.ndarray) -> list[np.ndarray]:
    """Move (T, B, D) values of the residual stream of whole texts through `layer` in place of layer i.

    Args:
        model: whose shape, norms and angles are used.
        i: the layer's number.
        layer: its weights.
        x: float32, contiguous; changed in place.

    Returns:
        Codes of what went into qkv, out, gate_up and down, and of what would go into the head: (T B, K) int8.
    """
    c = model.config
    n_row, n_token = x.shape[0] * x.shape[1], 256
    lists = {f.name: getattr(c, f.name) for f in fields(c) if isinstance(getattr(c, f.name), tuple)}
    own: dict[str, Any] = {name: (0,) if i in numbers else () for name, numbers in lists.items()}  # of layers
    rotary = model.rotary
    if c.sliding and i not in c.sliding:
        own |= {"sliding_window": 0, "sliding_sinks": 0}
        rotary = rotary[:2]
    config = replace(c, n_layer=1, vocab_size=n_token, tied=True, **own)
    unused = Linear(np.zeros((n_token + 2, c.dim), np.int8), np.full(n_token + 2, SCALE_MIN))
    head = Linear(unused.weight[:n_token], unused.scale[:n_token], np.zeros(n_token, np.float32))
    vocabulary = Vocabulary([bytes([b]) for b in range(n_token)])
    alone = replace(
        model,
        config=config,
        vocabulary=vocabulary,
        embed=unused,
        layers=(layer,),
        head=head,
        rotary=rotary,
    )
    session = NativeTransformer(alone).session(x.shape[1], helped=True)
    widths = c.dim, c.n_head * c.head_dim, c.dim, c.mlp, c.dim
    seen = [(np.empty((n_row, k), np.int8), np.empty(n_row, np.float32)) for k in widths]
    session.kernel.pass_layers(x, seen)
    return [codes for codes, _ in seen]


def refined(
    model: TransformerModel,
    rows: Mapping[str, Sequence[tuple[int, Rows]]],
    tokens: np.ndarray,
    progress: Callable[[], None] = lambda: None,
) -> TransformerModel:
    """The model with the weights of its layers and of its head rounded anew.

    Args:
        model: with the weights and the scales of `quantise`; the scales stay.
        rows: of each of its matrices, by name, parts of so many rows that follow one another, as the source
            has them. Of a tied head "embed" is used.
        tokens: (T, B), as `sample` gives them.
        progress: called after each matrix.
    """
    x = embedded(model, tokens)
    layers = []
    codes: list[np.ndarray] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for i, layer in enumerate(model.layers):
            seen = dict(zip(_INPUTS, run_layer(model, i, layer, x.copy()), strict=False))

            def one(
                name: str, i: int = i, layer: Layer = layer, seen: dict[str, np.ndarray] = seen
            ) -> Linear:
                found = _rounded(getattr(layer, name), rows[f"layers.{i}.{name}"], gram(seen[name]))
                progress()
                return found

            new: dict[str, Any] = dict(zip(_LAYER, pool.map(one, _LAYER), strict=True))
            layers.append(replace(layer, **new))
            codes = run_layer(model, i, layers[-1], x)
    tied, n_token = model.config.tied, model.config.vocab_size
    old = model.embed if tied else model.head
    with ThreadPoolExecutor(_THREADS) as pool:
        made = _rounded(old, rows["embed" if tied else "head"], gram(codes[-1]), pool.map)
    progress()
    head = Linear(made.weight[:n_token], made.scale[:n_token], model.head.bias)
    return replace(model, layers=tuple(layers), head=head, embed=made if tied else model.embed)


def _rounded(
    old: Linear,
    parts: Sequence[tuple[int, Rows]],
    products: np.ndarray,
    run: Callable[..., Iterable[None]] = map,
) -> Linear:
    """`old` with other weights. run: as `map`, for the pieces."""
    factor = feedback.factor(products)
    weight = np.empty_like(old.weight)
    if sum(n for n, _ in parts) != len(weight):
        raise ValueError(f"parts of {sum(n for n, _ in parts)} rows for a matrix of {len(weight)}")
    starts = accumulate((n for n, _ in parts), initial=0)
    pieces = [
        (start, low, high, rows)
        for start, (n, rows) in zip(starts, parts, strict=False)
        for low, high in quantise.pieces(n, weight.shape[1])
    ]

    def piece(of: tuple[int, int, int, Rows]) -> None:
        start, low, high, rows = of
        at = slice(start + low, start + high)
        weight[at] = feedback.rounded(quantise.in_units(rows(low, high), old.scale[at]), factor)

    for _ in run(piece, pieces):
        pass
    return replace(old, weight=weight)
