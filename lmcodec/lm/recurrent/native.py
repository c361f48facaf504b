"""The kernel's executor of integer models: the integers of `reference.py`, hundreds of times faster.

Products take int8 weights by AMX, AVX-512 VNNI, AVX2, NEON's dot product or portable C++, whichever the
machine has (native/gemm.h); the rest of a step is fixed point beside them (native/recurrent.h). Knows no file
and no coder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmcodec import _kernel
from lmcodec.lm.interface import require_answer
from lmcodec.lm.isa import chosen_isa
from lmcodec.lm.recurrent import reference, tables
from lmcodec.lm.recurrent.model import IntegerModel

_AMX_STREAMS = (
    6  # of the self-test, whose 8 positions then fill a pair of tiles (32 rows) and half of another
)


class NativeNetwork:
    """An integer model laid out for the machine's instruction set. Immutable; sessions may run on any thread.

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

    def __init__(self, model: IntegerModel, isa: str | None = None) -> None:
        self.model = model
        self.isa = chosen_isa(isa)
        shape = model.config
        self.kernel = _kernel.RecurrentModel(
            shape.vocab_size,
            shape.dim,
            shape.n_layer,
            shape.recurrent,
            shape.mlp,
            [
                (
                    np.ascontiguousarray(t.weight),
                    None if t.bias is None else np.ascontiguousarray(t.bias),
                    np.ascontiguousarray(t.multiplier),
                    t.shift,
                )
                for t in model.tensors().values()
            ],
            np.ascontiguousarray(model.start),
            (
                tables.decay(),
                tables.input_scale(),
                tables.relu2(),
                tables.rsqrt(),
                tables.exp2_coarse(),
                tables.exp2_fine(),
                tables.norm_scale(shape.dim),
            ),
            self.isa,
        )

    def start(self, cut: np.ndarray, timed: bool = False) -> NativeSession:
        """The states before the first token of B streams, 1 to 128.

        Args:
            cut: (B,) bool, whether a stream begins in the middle of a document (see `reference.start`).
            timed: measure where the time goes.
        """
        return NativeSession(self, cut, timed)

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
        cut = np.array([False, True])
        n_copy = (_AMX_STREAMS if self.isa == "amx" else len(cut)) // len(cut)
        freq = np.empty((len(tokens), n_copy * len(cut), len(self.model.vocabulary)), np.uint32)
        whole = self.start(np.tile(cut, n_copy))
        whole.run(np.tile(tokens, n_copy), freq=freq)
        state = whole.state
        for at in range(0, n_copy * len(cut), len(cut)):
            streams = slice(at, at + len(cut))
            yield reference.known_answer(freq[:, streams], reference.State(state[:, streams]))
        stepped = self.start(cut)
        for position, row in enumerate(tokens):
            stepped.step(row)
            freq[position, : len(cut)] = stepped.frequencies()
        yield reference.known_answer(freq[:, : len(cut)], reference.State(stepped.state))


class NativeSession:
    """States of B streams, and what their last step gave. One thread at a time.

    Made by `NativeNetwork.start`.

    Attributes:
        kernel: the native object.
    """

    def __init__(self, network: NativeNetwork, cut: np.ndarray, timed: bool = False) -> None:
        self._n_token = network.model.config.vocab_size
        self.kernel = _kernel.RecurrentSession(network.kernel, len(cut), True, timed)
        for stream, middle in enumerate(cut):
            self.kernel.begin(stream, bool(middle))

    def step(self, tokens: np.ndarray) -> None:
        """Move on by (B,) tokens, each < V + 2.

        Raises:
            ValueError: a token is out of range, or not as many as there are streams.
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

    @property
    def state(self) -> np.ndarray:
        """(L, B, R) int32 recurrent states, a copy."""
        return self.kernel.state

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
            ValueError: a token is out of range, or a shape does not fit.
        """
        self.kernel.run(np.ascontiguousarray(tokens, np.uint32), logits, freq)
