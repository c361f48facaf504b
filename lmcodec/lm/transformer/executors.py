"""The transformer outside the kernel, behind the seam of `lm.interface`: the definition, and torch."""

from __future__ import annotations

import threading

import numpy as np

from lmcodec.lm.interface import DeviceSession, LanguageModel, Session, require_answer
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import TransformerModel


class Reference(LanguageModel):
    """The definition: hundreds of times slower than the kernel.

    Args:
        model: what to run.
        known: what the self-test must answer; None for no test.

    Raises:
        Corrupt: this NumPy gives another answer.
    """

    def __init__(self, model: TransformerModel, known: str | None = None) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.start_tokens = model.config.start
        if known is not None:
            found = reference.compute_known_answer(model)
            require_answer(found, known, model.model_id, f"NumPy {np.__version__}")

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
        return _TorchSession(self._network, self._network.start(n_stream), self._lock)


class _TorchSession(DeviceSession):
    def begin(self, stream: int, cut: bool) -> None:
        self._network.begin(self._state, stream)
