"""The recurrent model outside the kernel, behind the seam of `lm.interface`: the definition, and torch."""

from __future__ import annotations

import threading

import numpy as np

from lmcodec.lm.executor import EXECUTORS
from lmcodec.lm.interface import SESSION_STREAM_MAX, DeviceSession, LanguageModel, Session, require_answer
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.lm.recurrent.shape import RecurrentConfig


class _Recurrent(LanguageModel):
    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.start_tokens = model.config.bos, model.config.mid


class Reference(_Recurrent):
    """The definition: hundreds of times slower than the kernel.

    Args:
        model: what to run.
        known: what the self-test must answer; None for no test.

    Raises:
        Corrupt: this NumPy gives another answer.
    """

    def __init__(self, model: IntegerModel, known: str | None = None) -> None:
        super().__init__(model)
        if known is None:
            return
        found = reference.compute_known_answer(model)
        require_answer(found, known, model.model_id, f"NumPy {np.__version__}")

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
        self._lock = threading.Lock()  # blocks in several threads share the device and torch's settings

    def session(self, n_stream: int) -> Session:
        return _TorchSession(self._network, self._network.start(np.zeros(n_stream, bool)), self._lock)


class _TorchSession(DeviceSession):
    def begin(self, stream: int, cut: bool) -> None:
        fresh = self._network.start(np.array([cut]))
        h = self._state.h.clone()
        h[:, stream] = fresh.h[:, 0]
        self._state.h = h


def outside(model: IntegerModel, executor: str, known: str) -> LanguageModel:
    """The model as an executor other than the kernel's computes it.

    Args:
        executor: of `lm.executor.EXECUTORS`.
        known: what the self-test must answer.

    Raises:
        ConfigError: torch finds no such device.
        Corrupt: another answer came out.
    """
    device = EXECUTORS[executor]
    return Reference(model, known) if device is None else Torch(model, device, known)


_PIECE_ROWS, _PIECE_LOGITS = 256, 1 << 22  # native/external_model.cpp: positions of a piece, at most
_TOKEN_NBYTES = 48  # a position: logits while they are made and in the kernel, frequencies, their sums
_CHANNEL_NBYTES = 64  # a position: int64 and float32 of the widest layers


def outside_nbytes(shape: RecurrentConfig) -> int:
    """What computing outside of the kernel takes for each block at work, at most."""
    rows = max(min(_PIECE_ROWS, _PIECE_LOGITS // shape.vocab_size), SESSION_STREAM_MAX)
    widest = shape.dim + 3 * shape.recurrent + shape.mlp
    return rows * (_TOKEN_NBYTES * shape.vocab_size + _CHANNEL_NBYTES * widest)
