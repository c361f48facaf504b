"""Models outside the kernel write and read the frames of the kernel's own, byte for byte."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from integer_models import random_model

from lmcodec import _kernel
from lmcodec import coder as range_coder
from lmcodec.lm import store, tables
from lmcodec.lm.decisions import cumulate, frequencies
from lmcodec.lm.interface import LanguageModel, Session, external
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.executors import Reference, Torch
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.lm.recurrent.native import NativeNetwork
from lmcodec.lm.vocab import Vocabulary

TEXT = b"The quick brown fox jumps over the lazy dog. " * 9 + bytes(range(256))


def token_loop(
    model: IntegerModel, network: _kernel.LanguageModel, streams: int, groups: int
) -> _kernel.TokenLoop:
    coding = _kernel.TokenCoding(network, *model.vocabulary.flat(), tables.log2())
    return _kernel.TokenLoop(coding, None, streams, groups)


def decisions_of(coder: _kernel.TokenLoop, model: IntegerModel, streams: int) -> tuple[bytes, bytes]:
    """Bits and probabilities of TEXT."""
    borders = [s * len(TEXT) // streams for s in range(streams + 1)]
    pieces = [model.vocabulary.segment(TEXT[a:b]) for a, b in pairwise(borders)]
    coder.begin_encode(np.frombuffer(TEXT, np.uint8), np.concatenate(pieces))
    bits, p16 = np.empty(1 << 16, np.uint8), np.empty(1 << 16, np.uint16)
    n = coder.encode(bits, p16)
    assert coder.done
    return bits[:n].tobytes(), p16[:n].tobytes()


def decode_with(coder: _kernel.TokenLoop, bits: bytes, p16: bytes) -> bytes:
    """TEXT from its bits, the probabilities compared on the way."""
    out = np.zeros(len(TEXT), np.uint8)
    coder.begin_decode(out, np.zeros(0, np.uint8))
    for bit, p in zip(bits, np.frombuffer(p16, np.uint16).tolist(), strict=True):
        assert coder.p == p
        coder.push(bit)
    assert coder.done
    return out.tobytes()


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    return random_model(5)


@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (2, 1), (5, 2)])
@pytest.mark.parametrize("executor", ["reference", "torch"])
def test_frames_are_those_of_the_kernel(
    model: IntegerModel, executor: str, streams: int, groups: int
) -> None:
    if executor == "torch":
        pytest.importorskip("torch")
        outside: LanguageModel = Torch(model, "cpu", reference.compute_known_answer(model))
    else:
        outside = Reference(model)
    inside = NativeNetwork(model).kernel
    bits, p16 = decisions_of(token_loop(model, inside, streams, groups), model, streams)
    made = external(outside)
    assert decisions_of(token_loop(model, made, streams, groups), model, streams) == (bits, p16)
    assert decode_with(token_loop(model, made, streams, groups), bits, p16) == TEXT


@pytest.mark.parametrize("streams", [1, 3])
def test_a_vocabulary_beyond_16_bits(model: IntegerModel, streams: int) -> None:
    """70,000 tokens, one of 300 bytes: decisions and sums beyond 2^40, beside context models and alone."""
    strings = (
        {bytes([b]) for b in range(256)} | {i.to_bytes(3, "little") for i in range(69_743)} | {b"a" * 300}
    )
    vocabulary = Vocabulary(sorted(strings))
    assert len(vocabulary) > 65_536
    draw = np.random.default_rng(1)
    text = draw.integers(0, 256, 500, np.uint8).tobytes() + b"a" * 700 + bytes(range(90))
    data = np.frombuffer(text, np.uint8)
    borders = [s * len(text) // streams for s in range(streams + 1)]
    tokens = np.concatenate([vocabulary.segment(text[a:b]) for a, b in pairwise(borders)])
    scripted = Scripted(model, draw.integers(-900, 900, len(vocabulary), np.int32))
    scripted.vocabulary = vocabulary
    scripted.start_tokens = len(vocabulary), len(vocabulary) + 1
    coding = _kernel.TokenCoding(external(scripted), *vocabulary.flat(), tables.log2())
    lm_profile = store.load(store.find("base")).profiles[0].kernel
    for profile in (None, lm_profile):
        coder = _kernel.TokenLoop(coding, profile, streams, 1)
        coder.begin_encode(data, tokens)
        bits, p16 = np.empty(1 << 16, np.uint8), np.empty(1 << 16, np.uint16)
        n = coder.encode(bits, p16)
        encoder = range_coder.Encoder()
        encoder.encode(bits[:n], p16[:n])
        out = np.zeros(len(text), np.uint8)
        coder.reset()
        coder.begin_decode(out, np.frombuffer(encoder.finish(), np.uint8))
        assert coder.decode(1 << 16)
        assert coder.done
        assert out.tobytes() == text


class Scripted(LanguageModel, Session):
    """A model of the simplest kind: a logit for each token, the same everywhere."""

    def __init__(self, model: IntegerModel, logits: np.ndarray) -> None:
        self.vocabulary = model.vocabulary
        self.start_tokens = len(self.vocabulary), len(self.vocabulary) + 7
        self.logits = logits
        self.begun: list[tuple[int, bool]] = []
        self.first: np.ndarray | None = None

    def session(self, n_stream: int) -> Session:
        return self

    def begin(self, stream: int, cut: bool) -> None:
        self.begun.append((stream, cut))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        if self.first is None:
            self.first = tokens.copy()
        return np.broadcast_to(self.logits, (len(tokens), len(self.logits)))


def test_a_model_of_ten_lines(model: IntegerModel) -> None:
    """Sessions need no more than begin() and step(); start tokens are the model's."""
    v = len(model.vocabulary)
    scripted = Scripted(model, np.arange(v, dtype=np.int32) % 700)
    bits, p16 = decisions_of(token_loop(model, external(scripted), 2, 1), model, 2)
    assert scripted.begun == [(0, False), (1, True)]
    assert scripted.first is not None
    assert scripted.first.tolist() == [v, v + 7]
    assert decode_with(token_loop(model, external(scripted), 2, 1), bits, p16) == TEXT


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (np.zeros(9, np.int32), ValueError, r"int32 logits of shape \(T, B, V\)"),
        (np.zeros(300, np.float32), TypeError, "logits are float32, expected int32"),
        (np.full(300, (1 << 24) + 1, np.int32), ValueError, "beyond 2"),
        (np.full(300, -(1 << 24) - 1, np.int32), ValueError, "beyond 2"),
    ],
)
def test_wrong_logits_are_refused(
    model: IntegerModel, logits: np.ndarray, error: type[Exception], message: str
) -> None:
    if len(logits) == 300:
        logits = np.resize(logits, len(model.vocabulary))
    coder = token_loop(model, external(Scripted(model, logits)), 1, 1)
    with pytest.raises(error, match=message):
        decisions_of(coder, model, 1)
    # The coder is as after a reset.
    coder.reset()


def test_an_error_of_the_model_comes_through(model: IntegerModel) -> None:
    class Failing(Scripted):
        def step(self, tokens: np.ndarray) -> np.ndarray:
            raise OSError("the device is gone")

    coder = token_loop(model, external(Failing(model, np.zeros(1, np.int32))), 3, 1)
    with pytest.raises(OSError, match="the device is gone"):
        decisions_of(coder, model, 3)
    with pytest.raises(OSError, match="the device is gone"):
        coder.begin_decode(np.zeros(len(TEXT), np.uint8), np.zeros(0, np.uint8))


def test_start_tokens_are_no_tokens_of_the_vocabulary(model: IntegerModel) -> None:
    scripted = Scripted(model, np.zeros(1, np.int32))
    scripted.start_tokens = 3, 4
    with pytest.raises(ValueError, match="a start token is one of the vocabulary"):
        external(scripted)


class Summing(Scripted):
    """Also gives sums, of which a test may spoil one."""

    sum_rows = 40
    wrong: Any = None

    def sums(self, tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
        below = cumulate(frequencies(self.run(tokens))).reshape(tokens.size, -1)
        row, low, high = spans.T
        found = below[row, high] - below[row, low]
        return found if self.wrong is None else self.wrong(found)


@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (3, 2), (60, 1)])  # 60: more than sum_rows
def test_sums_alone_make_the_same_decisions(model: IntegerModel, streams: int, groups: int) -> None:
    logits = np.random.default_rng(5).integers(-4000, 4000, len(model.vocabulary)).astype(np.int32)
    found = [
        decisions_of(token_loop(model, external(kind(model, logits)), streams, groups), model, streams)
        for kind in (Scripted, Summing)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda sums: sums.astype(np.int64), "uint64"),
        (lambda sums: sums[:-1], "as many contiguous uint64 sums as there are spans"),
        (lambda sums: sums * 0, "out of range"),
        (lambda sums: sums + np.uint64(1 << 50), "out of range"),
    ],
)
def test_wrong_sums_are_refused(wrong: Any, message: str, model: IntegerModel) -> None:
    session = Summing(model, np.zeros(len(model.vocabulary), np.int32))
    session.wrong = wrong
    coder = token_loop(model, external(session), 1, 1)
    with pytest.raises((TypeError, ValueError), match=message):
        decisions_of(coder, model, 1)
