"""A second thread beside the coding of a block: the same bytes in both directions."""

from __future__ import annotations

import contextlib
import random
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_codec import NOISE, TEXT, model, model_file  # noqa: F401

from lmcodec.codec import compress, decompress, frame_info, lm_streams
from lmcodec.codec.pipeline import Pipeline
from lmcodec.engine import LmEngine
from lmcodec.errors import LmcodecError
from lmcodec.lm.store import Model

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2), (8, 2), (16, 2), (17, 1), (128, 2)]
TEXTS = {"text": TEXT, "noise": NOISE, "short": TEXT[:130], "uneven": TEXT[:500] + NOISE[:7]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("profile", [1, None], ids=["mixed", "alone"])
def test_the_same_bytes(model: Model, profile: int | None, shape: tuple[int, int]) -> None:  # noqa: F811
    plain, helped = LmEngine(model, profile, *shape), LmEngine(model, profile, *shape)
    helped.helped = True
    for text in TEXTS.values():  # one continues the other
        payload = plain.encode(text)
        assert helped.encode(text) == payload
    for engine, text in product((plain, helped), TEXTS.values()):
        engine.reset()
        payload = engine.encode(text)
        engine.reset()
        assert engine.decode(payload, len(text)) == text
        (plain if engine is helped else helped).reset()
        assert (plain if engine is helped else helped).decode(payload, len(text)) == text


def test_it_may_change_from_block_to_block(model: Model) -> None:  # noqa: F811
    rng = random.Random(4)
    one, other = LmEngine(model, 1, 4, 2), LmEngine(model, 1, 4, 2)
    payloads = []
    for text in TEXTS.values():
        one.helped = rng.random() < 0.5
        payloads.append(one.encode(text))
    for text, payload in zip(TEXTS.values(), payloads, strict=True):
        other.helped = rng.random() < 0.5
        assert other.decode(payload, len(text)) == text


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (8, 2)], ids=str)
def test_blocks_that_are_left_or_damaged(model: Model, shape: tuple[int, int]) -> None:  # noqa: F811
    engine = LmEngine(model, 1, *shape)
    engine.helped = True
    payload = engine.encode(TEXT)
    rng = random.Random(6)
    for _ in range(40):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        engine.reset()
        cut = bytes(damaged[: rng.randrange(len(damaged) + 1)])
        with contextlib.suppress(LmcodecError):
            assert len(engine.decode(cut, len(TEXT))) == len(TEXT)
        engine.reset()

    def begin_decode(engine: LmEngine = engine) -> None:
        out, words = np.zeros(len(TEXT), np.uint8), np.frombuffer(payload, np.uint8)
        engine._loop.begin_decode(out, words, True)
        assert engine._loop.decode(1000)

    for begin in (partial(engine._begin_encode, TEXT), begin_decode):
        engine.reset()
        begin()  # left after its beginning, its thread at work
        engine.reset()
        assert engine.decode(payload, len(TEXT)) == TEXT
    engine.reset()
    begin_decode()
    del engine


def test_frames_do_not_depend_on_threads(model: Model, model_file: Path) -> None:  # noqa: F811
    text = (TEXT * 300)[: 600 << 10]
    frames = {compress(text, method="lm+cm", model=model_file, threads=threads) for threads in (1, 2, 3)}
    assert len(frames) == 1
    (frame,) = frames
    (block,) = frame_info(frame).blocks or ()
    assert (block.streams, block.groups) == (lm_streams(len(text)), 2)
    for threads in (1, 2):
        assert decompress(frame, model=model_file, threads=threads) == text


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_threads_share_a_block_with_a_model(
    threads: int,
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two such blocks at a time would be no faster than both threads on one; without a model they are."""
    most = [0]
    start = Pipeline.start

    def counted(self: Pipeline, *arguments: Any, **named: Any) -> None:
        start(self, *arguments, **named)
        most[0] = max(most[0], self.n_at_work)

    monkeypatch.setattr(Pipeline, "start", counted)
    text = TEXT * (4096 // len(TEXT) + 1)
    for method, asked, expected in (
        ("lm+cm", model_file, 1 if threads == 2 else threads),
        ("cm", None, threads),
    ):
        frame = compress(text, method=method, block_size=1024, threads=threads, model=asked)
        assert most[0] == expected
        most[0] = 0
        assert decompress(frame, threads=threads, model=asked) == text
        assert most[0] == expected
        most[0] = 0
