"""The kernel's executor of transformers: the integers of `reference.py`, hundreds of times faster.

Products take int8 weights by AMX, AVX-512 VNNI, AVX2, NEON's dot product or portable C++, whichever the
machine has (native/gemm.h); the rest of a step is binary32 and integers beside them (native/transformer.h).
Knows no file and no coder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from lmcodec import _kernel
from lmcodec.lm import tables
from lmcodec.lm.interface import SESSION_STREAM_MAX, require_answer
from lmcodec.lm.isa import chosen_isa
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import Linear, TransformerModel
from lmcodec.lm.transformer.shape import TransformerConfig

_AMX_STREAMS = 6  # of the self-test, whose 8 positions then fill a pair of tiles and half of another


def kernel_shape(config: TransformerConfig) -> _kernel.TransformerShape:
    """The shape as the kernel takes it.

    Raises:
        ValueError: it is not within the kernel's bounds.
    """
    return _kernel.TransformerShape(**config.as_json())


def memory_nbytes(config: TransformerConfig) -> int:
    """Bytes that a `NativeTransformer` takes, at most, without the model that it is made from."""
    return kernel_shape(config).memory_nbytes()


def session_memory_nbytes(config: TransformerConfig, n_stream: int, runs: bool) -> int:
    """Bytes that a session takes.

    Args:
        config: the model's shape.
        n_stream: B, 1 to 128.
        runs: whether many positions pass at once (`run`), or only steps are taken.
    """
    return kernel_shape(config).session_memory_nbytes(n_stream, runs)


@lru_cache(maxsize=16)
def session_bound(config: TransformerConfig) -> tuple[int, int]:
    """Bytes a block and bytes a stream: no session of any number of streams takes more than their sum.

    A session grows faster with its streams where their positions share what is on its way through the layers;
    that of a tiny model even shrinks at first.
    """
    one = session_memory_nbytes(config, 1, True)
    grown = (
        -((one - session_memory_nbytes(config, n, True)) // (n - 1)) for n in range(2, SESSION_STREAM_MAX + 1)
    )
    each = max(1, *grown)
    return one - each, each


class NativeTransformer:
    """A transformer laid out for the machine's instruction set. Immutable; sessions may run on any thread.

    Args:
        model: the network; its arrays are copied.
        isa: one of `_kernel.network_isas()`; by default what LMCODEC_ISA names, or the best.

    Attributes:
        model: the network.
        isa: the instruction set in use.
        kernel: the native object, for what runs in the kernel itself.

    Raises:
        ConfigError: the machine has no such instruction set.
    """

    def __init__(self, model: TransformerModel, isa: str | None = None) -> None:
        self.model = model
        self.isa = chosen_isa(isa)
        linears = model.linears()
        if model.config.tied:
            head = linears.pop("head")
            arrays = [*map(_arrays, linears.values()), (None, None, _contiguous(head.bias))]
        else:
            arrays = [*map(_arrays, linears.values())]
        self.kernel = _kernel.TransformerModel(
            kernel_shape(model.config),
            arrays,
            [np.ascontiguousarray(vector) for vector in model.vectors().values()],
            np.ascontiguousarray(model.rotary),
            tables.exp2_coarse(),
            tables.exp2_fine(),
            self.isa,
        )

    def session(self, n_stream: int, timed: bool = False, helped: bool = False) -> NativeSession:
        """The states of B = `n_stream` streams, 1 to 128, before their first tokens.

        Args:
            n_stream: how many.
            timed: measure where the time goes.
            helped: a second thread takes a part.
        """
        return NativeSession(self, n_stream, timed, helped)

    def self_test(self, known: str) -> None:
        """Run the known tokens and compare.

        Args:
            known: what `reference.compute_known_answer` gives for this model.

        Raises:
            Corrupt: another answer came out.
        """
        for found in self._answers():
            require_answer(found, known, self.model.model_id, f"this machine ({self.isa})")

    def _answers(self) -> Iterator[str]:
        """Known answers: of all positions at once and step by step; few rows and many take other loops."""
        tokens = reference.known_tokens(self.model)
        n_copy = (_AMX_STREAMS if self.isa == "amx" else tokens.shape[1]) // tokens.shape[1]
        freq = np.empty((len(tokens), n_copy * tokens.shape[1], self.model.config.vocab_size), np.uint32)
        self.session(n_copy * tokens.shape[1]).run(np.tile(tokens, n_copy), freq=freq)
        for at in range(0, freq.shape[1], tokens.shape[1]):
            yield _answer(freq[:, at : at + tokens.shape[1]])
        stepped = self.session(tokens.shape[1])
        for position, row in enumerate(tokens):
            stepped.step(row)
            freq[position, : tokens.shape[1]] = stepped.frequencies()
        yield _answer(freq[:, : tokens.shape[1]])


def _answer(freq: np.ndarray) -> str:
    return hashlib.sha256(freq.astype("<u4").tobytes()).hexdigest()


def _contiguous(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.ascontiguousarray(values)


def _arrays(linear: Linear) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    return _contiguous(linear.weight), _contiguous(linear.scale), _contiguous(linear.bias)


class NativeSession:
    """Keys and values of B streams, and what their last step gave. One thread at a time.

    Made by `NativeTransformer.session`.

    Attributes:
        kernel: the native object.
    """

    def __init__(
        self, network: NativeTransformer, n_stream: int, timed: bool = False, helped: bool = False
    ) -> None:
        self._n_token = network.model.config.vocab_size
        self.kernel = _kernel.TransformerSession(network.kernel, n_stream, True, timed, helped)

    def begin(self, stream: int, cut: bool = False) -> None:
        """Stream `stream` begins anew; it is stepped next by a start token."""
        self.kernel.begin(stream, cut)

    def step(self, tokens: np.ndarray) -> None:
        """Move on by (B,) tokens, each < V + 2.

        Raises:
            ValueError: a token is out of range, not as many as there are streams, or a stream is at its
                largest position.
        """
        self.kernel.step(np.ascontiguousarray(tokens, np.uint32))

    def logits(self) -> np.ndarray:
        """(B, V) int32 logits of the tokens after the last step's."""
        return self.kernel.logits()

    def frequencies(self) -> np.ndarray:
        """(B, V) uint32 frequencies of the tokens after the last step's."""
        return self.kernel.frequencies()

    def span(self, stream: int, low: int, high: int) -> int:
        """Sum of a stream's frequencies of tokens low to high - 1 after the last step."""
        return self.kernel.span(stream, low, high)

    def sequence(self, tokens: np.ndarray) -> np.ndarray:
        """(T, B, V) int32 logits at T positions, all in memory: what T calls of `step` give."""
        logits = np.empty((*tokens.shape, self._n_token), np.int32)
        self.run(tokens, logits=logits)
        return logits

    def run(
        self, tokens: np.ndarray, logits: np.ndarray | None = None, freq: np.ndarray | None = None
    ) -> None:
        """Move on by T tokens a stream, all positions of a piece at once.

        Args:
            tokens: (T, B), each < V + 2.
            logits: (T, B, V) int32 that is filled, or None.
            freq: (T, B, V) uint32 that is filled, or None.

        Raises:
            ValueError: a token is out of range, a shape does not fit, or a stream would pass its largest
                position.
        """
        self.kernel.run(np.ascontiguousarray(tokens, np.uint32), logits, freq)
