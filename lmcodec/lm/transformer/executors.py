"""The transformer outside the kernel, behind the seam of `lm.interface`: the definition, and torch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from lmcodec.lm.interface import LanguageModel, Session
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import TransformerModel

if TYPE_CHECKING:
    from lmcodec.lm.transformer.torch_backend import TorchTransformer


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


class Torch(LanguageModel):
    """The model in torch.

    Args:
        model: what to run.
        device: "cpu", "cuda" or "cuda:n".
        known: what the self-test must answer.

    Raises:
        ConfigError: there is no such device.
        Unsupported: the device gives another answer.
    """

    def __init__(self, model: TransformerModel, device: str, known: str) -> None:
        from lmcodec.lm.transformer.torch_backend import TorchTransformer

        self.vocabulary = model.vocabulary
        self.start_tokens = model.config.start
        self._network = TorchTransformer(model, device)
        self._network.self_test(known)
        self._lock = threading.Lock()  # blocks in several threads share the device and torch's settings

    def session(self, n_stream: int) -> Session:
        return _TorchSession(self._network, n_stream, self._lock)


class _TorchSession(Session):
    def __init__(self, network: TorchTransformer, n_stream: int, lock: threading.Lock) -> None:
        self._network, self._lock = network, lock
        self._state = network.start(n_stream)

    def begin(self, stream: int, cut: bool) -> None:
        self._network.begin(self._state, stream)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._network.step(tokens, self._state).cpu().numpy()

    def run(self, tokens: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._network.sequence(tokens, self._state).cpu().numpy()
