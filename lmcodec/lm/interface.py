"""What the codec needs of a language model, for models whose steps are computed outside the kernel.

A model predicts the next token of B streams at once and gives integer logits; the kernel makes frequencies of
them (FORMAT.md section 6.4) and does everything else. Since frames hold only what follows from these
integers, any executor that gives the same ones (NumPy, torch on a CPU or a GPU) writes and reads the same
frames. `native/language_model.h` is the same seam for models inside the kernel.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec.errors import Corrupt
from lmcodec.lm import tables
from lmcodec.lm.vocab import Buffer, Vocabulary

if TYPE_CHECKING:
    from lmcodec import _kernel

LOGIT_MAX = 1 << 24  # largest magnitude of a logit
SESSION_STREAM_MAX = 128
# By the kind of device. On a GPU as many positions as fit into 1 GB share what starting the operations takes.
# On a CPU the kernel makes frequencies of logits sooner than torch does.
SUM_ROWS = {"cuda": 1024}


class Session(ABC):
    """The states of B streams. One thread at a time.

    Attributes:
        sum_rows: positions that `sums` answers for at once, B at least; 0 for a session without `sums`.
    """

    sum_rows: int = 0

    @abstractmethod
    def begin(self, stream: int, cut: bool) -> None:
        """Stream `stream` begins: before the first token of a document, or (cut) in the middle of one.

        It is stepped next by the model's start token for the two cases.
        """

    @abstractmethod
    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Move every stream on by one token.

        Args:
            tokens: (B,) uint32, each a token of the vocabulary or a start token. Of streams that are over,
                any.

        Returns:
            (B, V) int32 logits of the next tokens, in the order of the sorted vocabulary, steps of 2^-8 of a
            binary logarithm, |logit| <= 2^24.
        """

    def run(self, tokens: np.ndarray) -> np.ndarray:
        """Move every stream on by T tokens: the same integers as T calls of `step`.

        Args:
            tokens: (T, B) uint32, in time order.

        Returns:
            (T, B, V) int32 logits.
        """
        return np.stack([self.step(row) for row in tokens])

    def sums(self, tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """Move every stream on by T tokens, and give sums of frequencies alone.

        What encoding asks for where `sum_rows` is not 0: logits and frequencies (FORMAT.md section 6.4) stay
        on the device that makes them, and a few hundred bytes a token leave it in place of V numbers.

        Args:
            tokens: (T, B) uint32, in time order, T * B <= max(B, `sum_rows`).
            spans: (n, 3) uint32: position t * B + b, and tokens low and high > low. Ascending by positions.

        Returns:
            (n,) uint64 sums of the frequencies of tokens low to high - 1.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no sums")


class LanguageModel(ABC):
    """What predicts tokens. Immutable; several sessions may be open.

    `vocabulary`, `start_tokens` and `session` make one; with a `model_id` it writes and reads frames as well
    (`compress(data, model=MODEL)`). `lmcodec.testing.check_model` says whether it keeps what it promises.

    Attributes:
        vocabulary: V byte strings, sorted.
        start_tokens: what a stream is stepped by first, at the start of a document and in the middle of one:
            numbers from V on, the model's own business.
        model_id: names what is computed, to the bit: any text that another model, or another version, does
            not have. Frames hold a hash of it. Empty: the model makes no frames.
        exact: whether every machine computes the same integers. One that cannot promise that is a
            `lmcodec.lm.bound.BoundModel`.
        nbytes: that the model takes in memory.
        stream_nbytes: that a session takes for each stream at most, logits not counted.
        macs_per_token: multiply-accumulates of one step of one stream: how much work it is.
        steps_at_once: positions that `Session.run` is asked for at once, at most. Between two calls the work
            can be given up; 1 where a step takes long.
    """

    vocabulary: Vocabulary
    start_tokens: tuple[int, int]
    model_id: str = ""
    exact: bool = True
    nbytes: int = 0
    stream_nbytes: int = 0
    macs_per_token: int = 0
    steps_at_once: int = 256

    @abstractmethod
    def session(self, n_stream: int) -> Session:
        """States of B = `n_stream` streams, 1 to 128."""

    def segment(self, data: Buffer) -> np.ndarray:
        """(m,) uint32 tokens that spell `data`; any will do, good ones make small frames."""
        return self.vocabulary.segment(data)


class DeviceSession(Session):
    """A session of a network that computes on a device, which blocks in several threads share.

    Args:
        network: with `step` and `sequence` of tokens and a state, which give tensors, `frequencies` of their
            logits, and its `device`.
        state: the streams', as the network has it.
        lock: of the device.
    """

    def __init__(self, network: Any, state: Any, lock: threading.Lock) -> None:
        self._network, self._state, self._lock = network, state, lock
        self.sum_rows = SUM_ROWS.get(network.device.type, 0)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """As `Session.step`."""
        with self._lock:
            return self._network.step(tokens, self._state).cpu().numpy()

    def run(self, tokens: np.ndarray) -> np.ndarray:
        """As `Session.run`."""
        with self._lock:
            return self._network.sequence(tokens, self._state).cpu().numpy()

    def sums(self, tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """As `Session.sums`."""
        from lmcodec.lm.torch_device import span_sums

        with self._lock:
            logits = self._network.sequence(tokens, self._state)
            return span_sums(logits.flatten(0, 1), self._network.frequencies, spans)


def require_answer(found: str, known: str, model_id: str, who: str) -> None:
    """Refuse what answers a self-test otherwise than the model's file says.

    Args:
        found, known: answers, hexadecimal.
        model_id: of the model.
        who: answers.

    Raises:
        Corrupt: they differ.
    """
    if found != known:
        raise Corrupt(
            f"model {model_id} fails its self-test: {who} answers {found[:16]}, expected {known[:16]}; its "
            "file is damaged or this build computes wrongly"
        )


class _ForKernel:
    """A session as the kernel calls it: what it gives is contiguous."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.sum_rows = session.sum_rows

    def begin(self, stream: int, cut: bool) -> None:
        self._session.begin(stream, cut)

    def run(self, tokens: np.ndarray) -> np.ndarray:
        logits = self._session.step(tokens[0])[None] if len(tokens) == 1 else self._session.run(tokens)
        if logits.dtype != np.int32:
            raise TypeError(f"logits are {logits.dtype}, expected int32")
        return np.ascontiguousarray(logits)

    def sums(self, tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
        found = self._session.sums(tokens, spans)
        if found.dtype != np.uint64:
            raise TypeError(f"sums are {found.dtype}, expected uint64")
        return np.ascontiguousarray(found)


def external(model: LanguageModel, isa: str = "") -> _kernel.ExternalModel:
    """`model` as the kernel's loop of blocks takes it.

    Args:
        model: computed outside the kernel.
        isa: of the sums of frequencies, one of `_kernel.network_isas()`; by default the best.
    """
    from lmcodec import _kernel

    return _kernel.ExternalModel(
        len(model.vocabulary),
        *model.start_tokens,
        lambda n_stream: _ForKernel(model.session(n_stream)),
        tables.exp2_coarse(),
        tables.exp2_fine(),
        isa,
        model.steps_at_once,
    )
