"""Bits per byte of text under any causal language model of transformers, in floats.

A document begins with the model's start token and is cut into windows of at most `window` tokens, each of
which predicts at most `stride` new ones: but for the first window, a token sees at least window - stride
tokens before it. Two figures come of it, both divided by the bytes of the document as they are in the file:

- *bits*: tokens that spell every byte, control tokens read as text, as frames would code them;
- *harness*: the rolling log likelihood of EleutherAI's lm-evaluation-harness: the tokens of the model's own
  tokenizer, windows that do not overlap (one token of context at a border), after its BOS token, or EOS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcodec.codec import byte_view
from lmcodec.errors import ConfigError, LmcodecError
from lmcodec.lm import outside
from lmcodec.measure.blocks import frees_on_error

WINDOW = 2048  # tokens of a window, unless asked for otherwise or the model knows fewer positions
LACKING_BITS = 24.0  # of a byte that no token of the model spells, about what a frame takes for it
_ROWS = 128  # positions whose logits are weighed at once


@dataclass(frozen=True)
class CausalMeasurement:
    """What a text takes under a model, or several together (`+`).

    Attributes:
        nbytes: of the text.
        n_token: that spell it.
        bits: that these tokens take.
        n_lacking: bytes among them that no token of the model spells, of LACKING_BITS each.
        harness_n_token: tokens of the model's own tokenizer; None where it has none, or the text is no UTF-8.
        harness_bits: that these take by the definition of lm-evaluation-harness; None likewise.
    """

    nbytes: int
    n_token: int
    bits: float
    n_lacking: int = 0
    harness_n_token: int | None = None
    harness_bits: float | None = None

    @property
    def bpb(self) -> float:
        """Bits per byte; NaN for an empty text."""
        return self.bits / self.nbytes if self.nbytes else math.nan

    @property
    def harness_bpb(self) -> float | None:
        """Bits per byte as lm-evaluation-harness defines it."""
        if self.harness_bits is None:
            return None
        return self.harness_bits / self.nbytes if self.nbytes else math.nan

    @property
    def bits_per_token(self) -> float:
        return self.bits / self.n_token if self.n_token else math.nan

    def __add__(self, other: CausalMeasurement) -> CausalMeasurement:
        """Both texts together. What either does not have, the sum has not."""
        has_both = self.harness_bits is not None and other.harness_bits is not None
        return CausalMeasurement(
            self.nbytes + other.nbytes,
            self.n_token + other.n_token,
            self.bits + other.bits,
            self.n_lacking + other.n_lacking,
            (self.harness_n_token or 0) + (other.harness_n_token or 0) if has_both else None,
            (self.harness_bits or 0) + (other.harness_bits or 0) if has_both else None,
        )


def windows(n: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """The windows over n tokens: what each sees and predicts.

    Yields:
        (a, b, k): inputs a to b - 1 (input 0 is the start token, input i + 1 token i); its last k positions
        predict tokens b - k to b - 1. Every token is predicted once.
    """
    done = min(n, window)
    if n:
        yield 0, done, done
    while done < n:
        k = min(stride, n - done)
        done += k
        yield max(0, done - window), done, k


class CausalMeter:
    """Measures texts under one model.

    Args:
        model: of `outside.load_model`, or its name with the prefix hf:.
        window: tokens of a window; None for 2,048, or fewer where the model knows fewer positions.
        stride: tokens that a window predicts beyond those before it; None for half a window.
        options: of `outside.load_model`, where a name is given.

    Attributes:
        model: the model.
        window, stride: in tokens.
        begin_id, harness_begin_id: what documents begin with, in either definition; None for the second where
            the model has no tokenizer of its own.

    Raises:
        ConfigError: window or stride is out of range, or the model is not of this kind.
    """

    def __init__(
        self, model: Any, *, window: int | None = None, stride: int | None = None, **options: Any
    ) -> None:
        given: Any = outside.load_model(model, **options) if isinstance(model, str) else model
        self.model: Any = given
        if not hasattr(given, "torch_model"):
            raise ConfigError(
                "only a model of transformers (hf:PATH or hf:OWNER/NAME) is measured in windows"
            )
        most = given.most_positions
        self.window = min(WINDOW, most or WINDOW) if window is None else window
        if not 1 <= self.window <= (most or 1 << 22):
            raise ConfigError(f"window is {self.window}, expected 1 to {most or 1 << 22}")
        self.stride = max(self.window // 2, 1) if stride is None else stride
        if not 1 <= self.stride <= self.window:
            raise ConfigError(f"stride is {self.stride}, expected 1 to the window, {self.window}")
        self.begin_id: int = given.begin_id
        self._tokenizer, self.harness_begin_id = given.own_tokenizer()

    @property
    def context(self) -> str:
        """What a token sees, in a sentence."""
        return (
            f"each document begins with token {self.begin_id}; windows of {self.window} tokens, "
            f"{self.stride} new ones each, so that a token beyond the first {self.window} sees at least "
            f"{self.window - self.stride} tokens before it"
        )

    @frees_on_error
    def measure(self, data: Any, progress: Callable[[int], object] | None = None) -> CausalMeasurement:
        """One document.

        Args:
            data: any buffer.
            progress: called with bytes that are done.
        """
        with byte_view(data) as view:
            text = bytes(view)
        tokens = self.model.segment(text)
        ids = self.model.ids[tokens]
        lacking = ids < 0
        told = 0

        def tell(share: float) -> None:
            nonlocal told
            if progress:
                now = int(share * len(text))
                progress(now - told)
                told = now

        found = self._encoded(text)
        n_all = len(ids) + (len(found) if found is not None else 0)
        fed = np.where(lacking, self.begin_id, ids)
        costs = self._bits(self.begin_id, fed, self.stride, lambda n: tell(n / max(n_all, 1)))
        bits = float(costs[~lacking].sum()) + LACKING_BITS * int(lacking.sum())
        harness_bits = None
        if found is not None and self.harness_begin_id is not None:
            begin, n = self.harness_begin_id, len(ids)
            costs = self._bits(begin, found, self.window, lambda done: tell((n + done) / max(n_all, 1)))
            harness_bits = float(costs.sum())
        tell(1.0)
        return CausalMeasurement(
            len(text),
            len(ids),
            bits,
            int(lacking.sum()),
            None if harness_bits is None or found is None else len(found),
            harness_bits,
        )

    def _encoded(self, text: bytes) -> np.ndarray | None:
        """Ids of the model's own tokenizer, control tokens in the text read as such; None without."""
        if self._tokenizer is None:
            return None
        try:
            return np.array(self._tokenizer(text.decode()), np.int64)
        except UnicodeDecodeError:
            return None

    def _bits(self, begin: int, ids: np.ndarray, stride: int, done: Callable[[int], object]) -> np.ndarray:
        """(n,) float64: what each of (n,) ids takes after those before it."""
        import torch

        model = self.model
        inputs = np.concatenate(([begin], ids)).astype(np.int64)
        costs = np.empty(len(ids))
        for a, b, k in windows(len(ids), self.window, stride):
            with model.computing():
                given = torch.tensor(inputs[a:b], device=model.device)[None]
                wanted = torch.tensor(ids[b - k : b], device=model.device)
                logits = model.forward(given, k)  # (k, rows)
                for at in range(0, k, _ROWS):
                    rows = torch.log_softmax(logits[at : at + _ROWS].float(), dim=-1)
                    chosen = rows.gather(1, wanted[at : at + _ROWS, None])[:, 0]
                    low = b - k + at
                    costs[low : low + len(chosen)] = -chosen.double().cpu().numpy() / math.log(2)
            done(b)
        if not np.isfinite(costs).all():
            raise LmcodecError(f"{model.name}: a token's probability is 0, or not a number")
        return costs


@frees_on_error
def model_bits_per_byte(
    data: Any, model: Any, *, window: int | None = None, stride: int | None = None, **options: Any
) -> CausalMeasurement:
    """Bits per byte of `data` (any buffer) under a causal model of transformers, beside the harness's.

    Args:
        data: one document.
        model: hf:PATH or hf:OWNER/NAME, or what `load_model` made of it.
        window, stride, options: see `CausalMeter`.

    Raises:
        LmcodecError: the model is not there, cannot be loaded or cannot run.
    """
    return CausalMeter(model, window=window, stride=stride, **options).measure(data)
