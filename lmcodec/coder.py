"""The range coder, behind two verbs: constriction writes the words, and can read them back one by one.

Coding is in decisions: a bit and the probability of a 1 in 65536ths. FORMAT.md section 4 fixes the words.
constriction does not have a wheel for every system: where it is not installed, the kernel writes the same
words (native/range_encoder.h). The kernel always reads them by itself (native/range_decoder.h).
Knows nothing of models.

Source: constriction's queue coder, https://docs.rs/constriction (Martin, "Range encoding", 1979).
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from lmcodec import _kernel
from lmcodec.errors import ConfigError, Corrupt

NO_WORDS = "the payload is no sequence of coder words: the block is damaged"

_WORD_NBYTES = 4


def use_constriction() -> bool:
    """Whether `LMCODEC_CODER=constriction` asks for decoding outside the kernel (slow; the same bytes)."""
    return os.environ.get("LMCODEC_CODER", "") == "constriction"


@cache
def _stream() -> Any:
    """constriction's coders; None where it cannot be imported. Once asked for, they need no import."""
    try:
        import constriction  # here: decoding has no need of it
    except ImportError:
        return None
    return constriction.stream


class _ConstrictionEncoder:
    """constriction's encoder, taking decisions as the kernel's does."""

    def __init__(self, stream: Any) -> None:
        self._encoder = stream.queue.RangeEncoder()
        self.pos, self.get_compressed = self._encoder.pos, self._encoder.get_compressed
        # Rows of two probabilities: Bernoulli's words, in half the time that its one parameter takes.
        self._model = stream.model.Categorical(perfect=False, lazy=True)

    def encode(self, bits: np.ndarray, p16: np.ndarray) -> None:
        assert p16.min() >= 1  # constriction would panic
        probabilities = np.empty((len(p16), 2))
        np.multiply(p16, 2.0**-16, out=probabilities[:, 1])
        np.subtract(1.0, probabilities[:, 1], out=probabilities[:, 0])
        self._encoder.encode(bits.astype(np.int32), self._model, probabilities)


def _words_encoder(few: bool = False) -> _ConstrictionEncoder | _kernel.RangeEncoder:
    asked = os.environ.get("LMCODEC_CODER", "")
    stream = None if asked == "kernel" or (few and not asked) else _stream()
    return _kernel.RangeEncoder() if stream is None else _ConstrictionEncoder(stream)


class Encoder:
    """Writes decisions; `finish` returns the payload.

    By constriction where it is installed. By the kernel elsewhere, where `LMCODEC_CODER=kernel` asks for that
    and where there are few decisions, for which constriction takes longer to begin; the bytes are the same.

    Args:
        few: there will be a few thousand decisions.
    """

    def __init__(self, few: bool = False) -> None:
        self._encoder = _words_encoder(few)

    def encode(self, bits: np.ndarray, p16: np.ndarray) -> None:
        """Code bits (n,) uint8 of 0 and 1 under p16 (n,) uint16, probabilities of a 1 in 65536ths, from 1."""
        if len(bits):
            self._encoder.encode(bits, p16)

    def finish(self) -> bytes:
        """The words as big-endian bytes, cut to the shortest string that decodes with zeros behind it."""
        n_word, (lower, range_) = self._encoder.pos()
        words = self._encoder.get_compressed().astype(">u4").tobytes()
        whole = words[: n_word * _WORD_NBYTES]
        tail = words[n_word * _WORD_NBYTES :].ljust(8, b"\0")
        # Where the coder closed without a carry into the words before, any value of [lower, lower + range)
        # will do: the one that ends in most zero bytes is taken.
        if lower <= int.from_bytes(tail, "big"):
            for n_byte in range(8):
                step = 1 << (64 - 8 * n_byte)
                value = -(-lower // step) * step
                if value < min(lower + range_, 1 << 64):
                    tail = value.to_bytes(8, "big")
                    break
        return (whole + tail).rstrip(b"\0")


@cache
def code_lengths() -> np.ndarray:
    """(131072,) float64: bits that coding a decision takes, at `bit << 16 | p16` (FORMAT.md section 4).

    The ideal, -log2 of the probability. NaN where p16 is 0, which no decision has.
    """
    p16 = np.arange(1 << 16)
    one = 256 * p16 + (p16 < 1 << 15)  # in 2^24ths
    shares = np.concatenate([(1 << 24) - one, one]) / (1 << 24)
    shares[[0, 1 << 16]] = np.nan
    lengths: np.ndarray = -np.log2(shares)
    lengths.flags.writeable = False
    return lengths


class SpentBits:
    """What coding a block's decisions takes, the coder's rounding of its interval included.

    Called with bits and p16 as `Encoder.encode`, in the same order; gives (n,) float64 bits, each at least
    the ideal length, by some 10^-4 on average. All of a block's together, divided by 8, are the bytes of its
    payload to within 8, however long it is.
    """

    def __init__(self) -> None:
        self._range = (1 << 64) - 1

    def __call__(self, bits: np.ndarray, p16: np.ndarray) -> np.ndarray:
        before, after = np.empty(len(bits), np.uint64), np.empty(len(bits), np.uint64)
        self._range = _kernel.range_widths(bits, p16, self._range, before, after)
        spent: np.ndarray = np.log2(before / after)
        return spent


class Decoder:
    """Reads decisions one at a time, by constriction: the oracle of the kernel's own decoder."""

    def __init__(self, payload: bytes | memoryview) -> None:
        stream = _stream()
        if stream is None:
            raise ConfigError(
                "LMCODEC_CODER=constriction: constriction is not installed; unset LMCODEC_CODER"
            )
        # Words past the end are zero; two of them are enough for the state to be filled at any time.
        padded = bytes(payload) + bytes(-len(payload) % _WORD_NBYTES + 2 * _WORD_NBYTES)
        words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._decoder = stream.queue.RangeDecoder(words)
        self._model = stream.model.Bernoulli(perfect=False)

    def decode(self, p16: int) -> int:
        """The next bit, coded under `p16`.

        Raises:
          Corrupt: no encoder writes such words.
        """
        try:
            return int(self._decoder.decode(self._model, np.array([p16 / 65536.0]))[0])
        except AssertionError:  # how constriction says that the words are invalid
            raise Corrupt(NO_WORDS) from None
