"""The transformer outside the kernel, behind the seam of `lm.interface`: the definition."""

from __future__ import annotations

import numpy as np

from lmcodec.lm.interface import LanguageModel, Session
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import TransformerModel


class Reference(LanguageModel):
    """The definition: hundreds of times slower than the kernel."""

    def __init__(self, model: TransformerModel) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.start_tokens = model.config.start

    def session(self, n_stream: int) -> Session:
        return _ReferenceSession(self.model, n_stream)


class _ReferenceSession(Session):
    def __init__(self, model: TransformerModel, n_stream: int) -> None:
        self._model = model
        self._state = reference.start(model, n_stream)

    def begin(self, stream: int, cut: bool) -> None:
        reference.begin(self._state, stream)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return reference.step(self._model, tokens, self._state)

    def run(self, tokens: np.ndarray) -> np.ndarray:
        return reference.sequence(self._model, tokens, self._state)
