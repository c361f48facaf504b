"""What every byte costs: a trace adds up to the real frame, and a part of it is a part of the whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_codec import NOISE, TEXT, NeverSmaller, model_file  # noqa: F401

import lmcodec
from lmcodec import _kernel, coder, engine
from lmcodec.codec import compress, frame_info
from lmcodec.engine import Engine, LmEngine
from lmcodec.lm import decisions, store
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import reference
from lmcodec.measure.trace import Trace, trace

KIB = 1024
# Text, noise that is stored and rows: the last block is short.
ROWS = "".join(f"{i},{i * i % 97},{i % 7}\r\n" for i in range(300)).encode()
MIXED = TEXT[:1800] + NOISE[:2300] + ROWS[:3000] + "überzählig 文字".encode() * 20
HOW: list[dict[str, Any]] = [
    {},
    {"block_size": KIB},
    {"block_size": KIB, "solid": True},
    {"block_size": 2 * KIB, "streams": 3, "groups": 2},
    {"level": 1, "block_size": KIB, "streams": 4},
    {"level": 2, "solid": True, "block_size": KIB, "streams": 2, "groups": 2},
    {"method": "lm", "block_size": 2 * KIB},
    {"method": "lm+cm", "block_size": 2 * KIB, "solid": True},
    {"method": "cm", "block_size": 2 * KIB},
    {"method": "stored"},
]


@pytest.fixture(autouse=True)
def _tiny(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def check_adds_up(data: bytes, **how: Any) -> Trace:
    """A trace is of the frame that compress makes, and its bits are its blocks' payloads."""
    packed = compress(data, **how)
    traced = trace(data, **how)
    assert traced.frame_nbytes == len(packed)
    blocks = [b for b in frame_info(packed).blocks or () if b.original_nbytes]
    assert [
        (b.nbytes, b.payload_nbytes, b.profile, b.streams, b.continues, b.frame_nbytes) for b in traced.blocks
    ] == [(b.original_nbytes, b.payload_nbytes, b.profile, b.streams, b.continues, b.nbytes) for b in blocks]
    assert (
        sum(b.nbytes for b in traced.blocks)
        == traced.nbytes
        == len(data)
        == len(traced.bits)
        == len(traced.lm_bits)
    )
    for b in traced.blocks:
        here = slice(b.offset, b.offset + b.nbytes)
        assert abs(traced.bits[here].sum() / 8 - b.payload_nbytes) <= 8
        assert np.isnan(traced.lm_bits[here]).all() == (not b.method.startswith("lm"))
        assert np.isfinite(traced.lm_bits[here]).all() == b.method.startswith("lm")
    return traced


@pytest.mark.parametrize("how", HOW, ids=str)
def test_bits_add_up_to_real_blocks(how: dict[str, Any]) -> None:
    methods = {b.method for b in check_adds_up(MIXED, **how).blocks}
    if how == HOW[1]:
        assert methods == {"stored", "cm", "lm+cm"}
    check_adds_up(b"a", **how | ({} if "streams" not in how else {"streams": 1, "groups": 1}))
    check_adds_up(b"", **how)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_range_is_a_part_of_the_whole(how: dict[str, Any]) -> None:
    whole = trace(MIXED, alternatives=2, **how)
    rng = random.Random(4)
    ranges = [sorted(rng.choices(range(len(MIXED)), k=2)) for _ in range(3)]
    for begin, end in [
        (0, KIB),
        (0, 1),
        (KIB, 2 * KIB),
        (len(MIXED) - 1, None),
        (-9, -3),
        (7, 7),
        (9, 2),
        *ranges,
    ]:
        part = trace(MIXED, alternatives=2, begin=begin, end=end, **how)
        here = slice(part.begin, part.end)
        assert MIXED[here] == MIXED[begin:end]
        assert part.nbytes == len(MIXED[begin:end])
        assert same(part.bits, whole.bits[here])
        assert same(part.lm_bits, whole.lm_bits[here])
        inside = (whole.token_begin >= part.begin) & (whole.token_begin < part.end)
        for name in ("token_begin", "token_id", "token_p", "alternative_id", "alternative_p"):
            assert same(getattr(part, name), getattr(whole, name)[inside]), name
        touched = [b for b in whole.blocks if b.offset < part.end and b.offset + b.nbytes > part.begin]
        assert list(part.blocks) == (touched if part.nbytes else [])
        assert part.frame_nbytes in (None, whole.frame_nbytes)


def test_tokens_spell_the_blocks() -> None:
    traced = trace(MIXED, block_size=KIB, streams=3)
    assert traced.model is not None
    strings = traced.model.vocabulary.strings
    spelled = {b.offset: b"" for b in traced.blocks if b.method == "lm+cm"}
    for at, token in zip(traced.token_begin.tolist(), traced.token_id.tolist(), strict=True):
        assert MIXED[at : at + len(strings[token])] == strings[token]
        spelled[at // KIB * KIB] += strings[token]
    assert spelled
    assert spelled == {at: MIXED[at : at + KIB] for at in spelled}


@pytest.mark.parametrize(
    ("how", "cuts"),
    [({"streams": 2}, {0: False, 600: True}), ({"block_size": KIB, "solid": True}, {0: False, KIB: True})],
    ids=["streams", "chain"],
)
def test_alternatives_are_the_networks(
    how: dict[str, Any], cuts: dict[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They and the tokens' probabilities are those of the definition, token after token.

    Args:
        cuts: where the network begins anew, and whether in the middle of a document.
    """
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    data = TEXT[:1200]
    traced = trace(data, alternatives=5, **how)
    assert traced.model is not None
    assert traced.token_p is not None
    assert traced.alternative_id is not None
    assert traced.alternative_p is not None
    made = recurrent_file.load(traced.model.path).model
    before = -1
    for i, (at, token) in enumerate(zip(traced.token_begin.tolist(), traced.token_id.tolist(), strict=True)):
        if at in cuts:
            state = reference.start(made, np.array([cuts.pop(at)]))
            before = made.config.mid if at else made.config.bos
        freq = decisions.frequencies(reference.step(made, np.array([before]), state))[0].astype(float)
        order = sorted(range(len(freq)), key=lambda t: (-freq[t], t))[:5]
        assert traced.token_p[i] == freq[token] / freq.sum()
        assert traced.alternative_id[i].tolist() == order
        assert same(traced.alternative_p[i], freq[order] / freq.sum())
        before = token
    assert not cuts


def test_a_part_is_of_a_frame_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There naming a model costs a block nothing, in a frame of one block up to nine bytes."""
    made = trace(b"a").model
    assert made is not None

    class Close(Engine):
        def encode(self, data: bytes | memoryview) -> bytes:
            return bytes(len(LmEngine(made, 2).encode(data)) + 4)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "Engine", Close)
    data = TEXT[: 3 * KIB]
    assert [b.method for b in trace(data[:KIB], block_size=KIB).blocks] == ["cm"]
    assert [b.method for b in trace(data, block_size=KIB).blocks] == ["lm+cm"] * 3
    for begin in (0, KIB, 2 * KIB):
        (block,) = trace(data, block_size=KIB, begin=begin, end=begin + 1).blocks
        assert (block.offset, block.method) == (begin, "lm+cm")


def test_the_networks_bits_are_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """By decisions it is what the tokens' probabilities say, up to the rounding of stretches to 1/256."""
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    traced = trace(TEXT, alternatives=1)
    assert traced.token_p is not None
    by_tokens = -np.log2(traced.token_p).sum()
    assert abs(traced.lm_bits.sum() / by_tokens - 1) < 0.002


def test_code_lengths() -> None:
    lengths = coder.code_lengths()
    assert np.isnan(lengths[[0, 1 << 16]]).all()
    assert (2.0 ** -lengths[1 : 1 << 16] + 2.0 ** -lengths[(1 << 16) + 1 :] == 1).all()
    for p16, shares in ((1, (2**24 - 257, 257)), (32768, (2**23, 2**23)), (65535, (256, 2**24 - 256))):
        assert [2.0 ** -lengths[bit << 16 | p16] * 2**24 for bit in (0, 1)] == pytest.approx(
            shares, rel=1e-12
        )


@pytest.mark.parametrize("p16", [1, 300, 32767, 32768, 65000, 65535, None])
def test_spent_bits_are_the_coders_words(p16: int | None) -> None:
    """However many decisions there are, and in however small parts they come."""
    rng = np.random.default_rng(3)
    n = 50_000 if p16 else 1_500_000
    p = rng.integers(1, 65536, n).astype(np.uint16) if p16 is None else np.full(n, p16, np.uint16)
    bits = (rng.random(n) < p / 65536).astype(np.uint8)
    bits[:40] = rng.random(40) < 0.5
    encoder, spend = coder.Encoder(), coder.SpentBits()
    encoder.encode(bits, p)
    nbytes = len(encoder.finish())
    ideal = coder.code_lengths()[bits.astype(int) << 16 | p]
    spent = np.concatenate([spend(bits[at : at + 30], p[at : at + 30]) for at in range(0, n, 30)])
    assert (spent >= ideal - 1e-12).all()
    assert abs(spent.sum() / 8 - nbytes) <= 8
    if p16 is None:
        assert nbytes - ideal.sum() / 8 > 16  # which is why they are there


def test_what_the_kernel_refuses_of_widths() -> None:
    def widths(p16: list[int], start: int, room: int = 2) -> int:
        outputs = np.empty(room, np.uint64), np.empty(room, np.uint64)
        return _kernel.range_widths(np.ones(2, np.uint8), np.array(p16, np.uint16), start, *outputs)

    assert widths([32768, 32768], 1 << 63) == 1 << 61
    assert widths([32768, 32768], 1 << 32) == 1 << 62
    for wrong in (([1, 0], 1 << 40), ([1, 1], 0xFFFFFFFF), ([1], 1 << 40), ([1, 1], 1 << 40, 1)):
        with pytest.raises(ValueError):
            widths(*wrong)


def test_an_engine_that_traces_is_as_one_that_encodes() -> None:
    """The same decisions, and the next block comes out as after encoding."""
    made = trace(b"a").model
    assert made is not None
    for new in (lambda: Engine(1, 2, 2), lambda: LmEngine(made, 2, 3, 2)):
        one, other = new(), new()
        for data in (TEXT[:900], ROWS[:700], TEXT[500:1400]):
            encoder = coder.Encoder()
            places = []
            for some in other.trace(data):
                encoder.encode(some.bits, some.p16)
                places.append(some.offset.copy())
            assert encoder.finish() == one.encode(data)
            offsets = np.concatenate(places)
            assert offsets.max() < len(data)
            assert (some.network_p16 is None) == isinstance(one, Engine)
        one.reset()
        other.reset()


def test_wrong_arguments() -> None:
    for how, error in (
        ({"level": 0}, ValueError),
        ({"level": "6"}, TypeError),
        ({"level": 1, "model": "small"}, ValueError),
        ({"block_size": 7}, ValueError),
        ({"streams": 129}, ValueError),
        ({"alternatives": -1}, ValueError),
        ({"alternatives": 257}, ValueError),
        ({"alternatives": 1.5}, TypeError),
        ({"begin": "0"}, TypeError),
        ({"model": "no such model"}, lmcodec.ModelNotFound),
    ):
        with pytest.raises(error):
            trace(TEXT, **how)
    with pytest.raises(TypeError):
        trace("text")
