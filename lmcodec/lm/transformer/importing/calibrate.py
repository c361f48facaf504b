"""What goes into a model's products, on a text: Gram matrices in integers, by the exact forward pass.

Layer by layer: the residual stream of all positions of the text is kept, a layer is run on it alone to see
what its products take, and again when its weights are what they will be.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import SCALE_MIN, Layer, Linear, TransformerModel
from lmcodec.lm.transformer.native import NativeTransformer
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

_ROWS = 1040  # 127 * 127 * 1040 < 2^24: sums of so many products are exact in float32, in any order


def gram(codes: np.ndarray) -> np.ndarray:
    """(K, K) int64: the sum over (N, K) int8 codes of each with each."""
    total = np.zeros((codes.shape[1], codes.shape[1]), np.int64)
    for at in range(0, len(codes), _ROWS):
        part = codes[at : at + _ROWS].astype(np.float32)
        total += (part.T @ part).astype(np.int64)
    return total


class Calibration:
    """The residual stream at all positions of a text.

    Args:
        config: of the model.
        embed: its embedding.
        norm: what stands before its head.
        rotary: as `TransformerModel` has it.
        tokens: (T, B) of B streams, the first of each one that begins a text.
    """

    def __init__(
        self, config: TransformerConfig, embed: Linear, norm: np.ndarray, rotary: np.ndarray, tokens: np.ndarray
    ) -> None:
        self._config, self._norm, self._rotary = config, norm, rotary
        self._x = np.ascontiguousarray(reference.embed(embed, tokens))
        self._head = np.empty(0, np.int8)

    def inputs(self, i: int, layer: Layer) -> list[np.ndarray]:
        """Codes of what goes into layer i's qkv, out, gate_up and down: (T B, K) int8 each."""
        return self._pass(i, layer, self._x.copy())

    def move_on(self, i: int, layer: Layer) -> None:
        """Through layer i."""
        self._pass(i, layer, self._x)

    def head(self) -> np.ndarray:
        """Likewise what goes into the head."""
        return self._head

    def _pass(self, i: int, layer: Layer, x: np.ndarray) -> list[np.ndarray]:
        c = self._config
        n_row = x.shape[0] * x.shape[1]
        config = replace(
            c, n_layer=1, vocab_size=256, tied=True, no_rotary=(0,) if i in c.no_rotary else ()
        )
        empty = Linear(np.zeros((258, c.dim), np.int8), np.full(258, SCALE_MIN))
        head = Linear(empty.weight[:256], empty.scale[:256], np.zeros(256, np.float32))
        vocabulary = Vocabulary([bytes([b]) for b in range(256)])
        model = TransformerModel(config, vocabulary, empty, (layer,), self._norm, head, self._rotary)
        session = NativeTransformer(model).session(x.shape[1], helped=True)
        widths = c.dim, c.n_head * c.head_dim, c.dim, c.mlp, c.dim
        codes = [np.empty((n_row, k), np.int8) for k in widths]
        scales = [np.empty(n_row, np.float32) for _ in widths]
        session.kernel.pass_layers(x, list(zip(codes, scales, strict=True)))
        self._head, self.scales = codes.pop(), scales
        return codes
