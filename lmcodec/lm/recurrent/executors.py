"""The recurrent model outside the kernel, behind the seam of `lm.interface`: the definition, and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmcodec.lm.interface import LanguageModel, Session
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.model import IntegerModel

if TYPE_CHECKING:
    from lmcodec.lm.recurrent.torch_backend import TorchNetwork


class _Recurrent(LanguageModel):
    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.start_tokens = model.config.bos, model.config.mid


class Reference(_Recurrent):
    """The definition: hundreds of times slower than the kernel."""

    def session(self, n_stream: int) -> Session:
        return _ReferenceSession(self.model, n_stream)


class _ReferenceSession(Session):
    def __init__(self, model: IntegerModel, n_stream: int) -> None:
        self._model = model
        self._state = reference.start(model, np.zeros(n_stream, bool))

    def begin(self, stream: int, cut: bool) -> None:
        self._state.h[:, stream] = self._model.start[int(cut)]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return reference.step(self._model, tokens, self._state)

    def run(self, tokens: np.ndarray) -> np.ndarray:
        return reference.sequence(self._model, tokens, self._state)


class Torch(_Recurrent):
    """The model in torch.

    Args:
        model: what to run.
        device: "cpu", "cuda" or "cuda:n".
        known: what the self-test must answer.

    Raises:
        ConfigError: there is no such device.
        Corrupt: the device gives another answer.
    """

    def __init__(self, model: IntegerModel, device: str, known: str) -> None:
        super().__init__(model)
        from lmcodec.lm.recurrent.torch_backend import TorchNetwork

        self._network = TorchNetwork(model, device)
        self._network.self_test(known)

    def session(self, n_stream: int) -> Session:
        return _TorchSession(self._network, n_stream)


class _TorchSession(Session):
    def __init__(self, network: TorchNetwork, n_stream: int) -> None:
        self._network = network
        self._state = network.start(np.zeros(n_stream, bool))

    def begin(self, stream: int, cut: bool) -> None:
        fresh = self._network.start(np.array([cut]))
        h = self._state.h.clone()
        h[:, stream] = fresh.h[:, 0]
        self._state.h = h

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._network.step(tokens, self._state).cpu().numpy()

    def run(self, tokens: np.ndarray) -> np.ndarray:
        return self._network.sequence(tokens, self._state).cpu().numpy()
