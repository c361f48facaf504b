"""Seeded random integer models, small enough for the NumPy definition; what tests of every executor run.

    python tests/integer_models.py [--force] [--out FILE]

writes tests/golden/integer-model.json: for each of GOLDEN hashes of what the definition computes. They change
only with the arithmetic's version, by --force. The models' numbers come from PCG64's raw words, whose stream
NumPy guarantees.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.lm import decisions
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.model import (
    BIAS_MAX,
    MULTIPLIER_MAX,
    SHIFT_MIN,
    STATE_MAX,
    WEIGHT_MAX,
    IntegerModel,
    Layer,
    Linear,
)
from lmcodec.lm.recurrent.shape import RecurrentConfig
from lmcodec.lm.vocab import Vocabulary

_WEIGHT_RMS = 36  # of uniform weights
# Typical size of what enters and of what leaves a product: an ordinary model keeps every value in the middle
# of its range, so that few are clipped and few are zero.
_NORM_RMS, _GATE_RMS, _HIDDEN_RMS, _STREAM_RMS, _LOGIT_RMS = 16, 30, 20, 3000, 700

Shape = int | tuple[int, ...]


class Draw:
    """A seeded source of integers."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.PCG64(seed)

    def integers(self, low: int, high: int, shape: Shape, dtype: Any = np.int64) -> np.ndarray:
        """Uniform integers from low to high, both included, of that shape and dtype."""
        raw = np.asarray(self._words.random_raw(shape), np.uint64) >> np.uint64(11)
        return ((raw % np.uint64(high - low + 1)).astype(np.int64) + low).astype(dtype)

    def choice(self, values: list[int], shape: Shape, dtype: Any = np.int64) -> np.ndarray:
        """Uniform choices from `values`."""
        return np.array(values, dtype)[self.integers(0, len(values) - 1, shape)]


def random_vocabulary(draw: Draw, size: int) -> Vocabulary:
    """All single bytes and `size` - 256 two-byte strings."""
    codes = np.argsort(draw.integers(0, 1 << 40, 1 << 16), kind="stable")[: size - 256].tolist()
    return Vocabulary(sorted({bytes([b]) for b in range(256)} | {code.to_bytes(2, "big") for code in codes}))


def random_model(
    seed: int,
    vocab_size: int = 300,
    dim: int = 48,
    n_layer: int = 2,
    recurrent: int = 33,
    mlp: int = 70,
    extreme: bool = False,
    card: dict[str, Any] | None = None,
) -> IntegerModel:
    """A model with random content; the same for the same arguments, with every version of NumPy.

    Args:
        seed: of all its numbers.
        vocab_size: 256 to 65,536.
        dim, n_layer, recurrent, mlp: its shape.
        extreme: weights, biases, multipliers and start states at the ends of their ranges, smallest shifts:
            most values are clipped. Otherwise they lie in the middle of their ranges.
        card: what the model says of itself.
    """
    draw = Draw(seed)
    config = RecurrentConfig(vocab_size, dim, n_layer, recurrent, mlp)
    vocabulary = random_vocabulary(draw, vocab_size)

    def linear(
        n: int, k: int, size_in: float, size_out: float, bias: bool = False, table: bool = False
    ) -> Linear:
        if extreme:
            weight = draw.choice([-WEIGHT_MAX, WEIGHT_MAX], (n, k), np.int8)
            same = draw.integers(0, 2, n) == 0  # a third of the rows all of one sign, a few all zero
            weight[same] = weight[same, :1]
            weight[draw.integers(0, 15, n) == 0] = 0
            multiplier = draw.choice([0, 1, MULTIPLIER_MAX, MULTIPLIER_MAX], n, np.uint16)
            bound, shift = BIAS_MAX, 0 if table else SHIFT_MIN
            b = draw.choice([-bound, -1, 0, bound], n, np.int32) if bias else None
            return Linear(weight, b, multiplier, shift)
        weight = draw.integers(-WEIGHT_MAX, WEIGHT_MAX, (n, k), np.int8)
        sums = size_in * _WEIGHT_RMS * (1 if table else math.sqrt(k))
        # Multipliers of 2^13 to 2^15 and the shift that makes the middle one fit.
        shift = max(round(math.log2((3 << 13) * sums / size_out)), 0 if table else SHIFT_MIN)
        multiplier = draw.integers(1 << 13, 1 << 15, n, np.uint16)
        b = draw.integers(-int(sums), int(sums), n, np.int32) if bias else None
        return Linear(weight, b, multiplier, shift)

    embed = linear(vocab_size + 2, dim, 1, _STREAM_RMS, table=True)
    layers = tuple(
        Layer(
            into=linear(3 * recurrent, dim, _NORM_RMS, _GATE_RMS, bias=True),
            out=linear(dim, recurrent, _NORM_RMS, _STREAM_RMS),
            up=linear(mlp, dim, _NORM_RMS, _HIDDEN_RMS, bias=True) if mlp else None,
            down=linear(dim, mlp, _HIDDEN_RMS / 4, _STREAM_RMS) if mlp else None,
        )
        for _ in range(n_layer)
    )
    head = linear(vocab_size, dim, _NORM_RMS, _LOGIT_RMS, bias=True)
    shape = (2, n_layer, recurrent)
    if extreme:
        start = draw.choice([-STATE_MAX, 0, STATE_MAX], shape, np.int32)
    else:
        start = draw.integers(-(1 << 19), 1 << 19, shape, np.int32)
    mixer = bytes(draw.integers(0, 255, 24, np.uint8))
    return IntegerModel(config, vocabulary, embed, layers, head, start, mixer, card or {})


def random_tokens(seed: int, model: IntegerModel, n_position: int, n_stream: int) -> np.ndarray:
    """(T, B) int32 tokens: first `bos` or `mid` in turn, then any of the V + 2."""
    tokens = Draw(seed).integers(0, model.config.vocab_size + 1, (n_position, n_stream), np.int32)
    tokens[0] = np.where(alternate_cuts(n_stream), model.config.mid, model.config.bos)
    return tokens


def alternate_cuts(n_stream: int) -> np.ndarray:
    """(B,) bool: every other stream begins in the middle of a document."""
    return np.arange(n_stream) % 2 == 1


GOLDEN_PATH = Path(__file__).with_name("golden") / "integer-model.json"
GOLDEN_POSITIONS, GOLDEN_STREAMS = 24, 3
# Arguments of `random_model`.
GOLDEN: dict[str, dict[str, Any]] = {
    "ordinary": {"seed": 101},
    "no-mlp": {"seed": 102, "dim": 31, "n_layer": 1, "recurrent": 17, "mlp": 0},
    "deep": {"seed": 103, "dim": 64, "n_layer": 5, "recurrent": 64, "mlp": 128, "vocab_size": 512},
    "extreme": {"seed": 104, "dim": 77, "n_layer": 3, "extreme": True},
}


def golden_input(name: str) -> tuple[IntegerModel, np.ndarray, np.ndarray]:
    """A golden model, (T, B) int32 tokens, (B,) bool cuts."""
    model = random_model(**GOLDEN[name])
    tokens = random_tokens(GOLDEN[name]["seed"] + 1000, model, GOLDEN_POSITIONS, GOLDEN_STREAMS)
    return model, tokens, alternate_cuts(GOLDEN_STREAMS)


def golden_hashes(model: IntegerModel, freq: np.ndarray, h: np.ndarray, known_answer: str) -> dict[str, str]:
    """What is committed of a run over `golden_input`.

    Args:
        model: that ran.
        freq: (T, B, V) frequencies.
        h: (L, B, R) states after the last position.
        known_answer: of the same executor.
    """
    return {
        "model": model.sha256,
        "frequencies": hashlib.sha256(np.asarray(freq, "<u4").tobytes()).hexdigest(),
        "states": hashlib.sha256(np.asarray(h, "<i4").tobytes()).hexdigest(),
        "known_answer": known_answer,
    }


def golden_expected(name: str) -> dict[str, str]:
    """The committed hashes of a golden model."""
    assert GOLDEN_PATH.is_file(), f"{GOLDEN_PATH} is missing: python tests/integer_models.py writes it"
    expected: dict[str, str] = json.loads(GOLDEN_PATH.read_text(encoding="utf-8"))[name]
    return expected


def reference_hashes(name: str) -> dict[str, str]:
    """What the definition gives for a golden model."""
    model, tokens, cut = golden_input(name)
    state = reference.start(model, cut)
    freq = decisions.frequencies(reference.sequence(model, tokens, state))
    return golden_hashes(model, freq, state.h, reference.compute_known_answer(model))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="replace hashes that differ")
    parser.add_argument("--out", type=Path, default=GOLDEN_PATH)
    options = parser.parse_args(arguments)
    text = json.dumps({name: reference_hashes(name) for name in GOLDEN}, indent=2) + "\n"
    if options.out.exists() and options.out.read_text(encoding="utf-8") != text and not options.force:
        sys.exit(f"{options.out}: would change; it does so only with the arithmetic's version, by --force")
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
