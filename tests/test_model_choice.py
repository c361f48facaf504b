"""A large model is a candidate: pieces of a frame's first block choose between it and the level's own.

The shipped models stand for large ones: what is large is a number of multiply-accumulates.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lmcodec import compress, decompress, frame_info
from lmcodec.cli import lmz as front
from lmcodec.codec import Compressor, levels, lm_streams
from lmcodec.frame import Method
from lmcodec.lm import store

ROOT = Path(__file__).resolve().parents[1]
SMALL, BASE = 3, 5  # numbers
PROSE = b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 3


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both shipped models are large."""
    monkeypatch.setattr(store, "LARGE_MACS", 1000)


@pytest.fixture(scope="module")
def prose() -> bytes:
    return (ROOT / "LICENSE").read_bytes()


def test_the_better_one_of_two_is_taken(prose: bytes) -> None:
    """`base` knows more than `small`: asked for or not."""
    for level, asked, expected in (
        (6, "small", BASE),
        (3, "base", BASE),
        (6, "base", BASE),
        (3, "small", SMALL),
    ):
        packed = compress(prose, level, model=asked)
        assert frame_info(packed).model_id == expected, (level, asked)
        assert decompress(packed) == prose


def test_the_choice_can_be_read(prose: bytes) -> None:
    compressor = Compressor(6, model="small")
    assert compressor.last_choice is None
    packed = compressor.compress(prose) + compressor.flush()
    choice = compressor.last_choice
    assert choice is not None
    assert (choice.asked.name, choice.other.name, choice.model.name) == ("small", "base", "base")
    assert choice.other_nbytes < choice.asked_nbytes < choice.sample_nbytes == min(len(prose), 8192)
    assert choice.describe() == (
        f"model base: of {choice.sample_nbytes:,} bytes it makes {choice.other_nbytes:,}, "
        f"small {choice.asked_nbytes:,}"
    )
    assert decompress(packed) == prose


def test_who_insists_gets_the_model(prose: bytes) -> None:
    for how in ({"model_only": True}, {"method": "lm+cm"}, {"method": "lm"}):
        compressor = Compressor(6, model="small", **how)
        packed = compressor.compress(prose) + compressor.flush()
        assert frame_info(packed).model_id == SMALL, how
        assert compressor.last_choice is None


def test_every_frame_has_its_own_choice(prose: bytes) -> None:
    noise = random.Random(1).randbytes(3000)
    compressor = Compressor(6, model="small")
    for data in (prose, noise, prose):
        packed = compressor.compress(data) + compressor.flush()
        assert decompress(packed) == data


def test_a_frame_of_several_blocks_has_one_model(prose: bytes) -> None:
    compressor = Compressor(6, model="small", block_size=4096, threads=2)
    packed = compressor.compress(prose) + compressor.flush()
    info = frame_info(packed)
    assert info.model_id == BASE
    assert len(info.blocks or ()) > 2
    assert decompress(packed) == prose


def test_a_model_that_is_not_large_is_taken_as_it_is(prose: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LARGE_MACS", 1 << 40)
    assert frame_info(compress(prose, 6, model="small")).model_id == SMALL


def test_no_block_is_coded_on_trial(prose: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that is larger than its pieces, the better one of the two methods alone is used."""
    keys = []
    original = levels._candidates

    def seen(*arguments: Any) -> Any:
        keys.append(original(*arguments))
        return keys[-1]

    monkeypatch.setattr(levels, "_candidates", seen)
    text = prose * 3  # over 16 KiB
    packed = compress(text, 6, model="base", block_size=1 << 20)
    assert [len(key) for key in keys] == [1]
    assert decompress(packed) == text
    rows = b"".join(b"%08d,%d\n" % (i, i * i % 97) for i in range(4000))
    keys.clear()
    packed = compress(rows, 6, model="base")
    assert [[spec.method for spec in key] for key in keys] == [[Method.CM]]
    assert decompress(packed) == rows


def test_streams_by_size_and_by_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    model = store.load(store.find("base"))
    plan = levels.LEVELS[6]
    assert [lm_streams(n << 10, plan, model) for n in (1, 16, 31, 32, 128, 256, 1024)] == [
        1,
        1,
        1,
        2,
        8,
        16,
        16,
    ]
    assert [lm_streams(1 << 20, levels.LEVELS[n], model) for n in (7, 8, 9)] == [4, 2, 1]
    monkeypatch.setattr(levels, "LARGE_STREAMS_NBYTES", 5 * model.stream_nbytes)
    assert lm_streams(1 << 20, plan, model) == 4
    packed = compress(PROSE * 600, 6, model="base", model_only=True, method="lm+cm")
    blocks = frame_info(packed).blocks
    assert blocks is not None
    assert (blocks[0].streams, blocks[0].groups) == (4, 1)


def run_lmz(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        front.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_the_command_says_what_was_taken(
    tmp_path: Path, prose: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(prose)
    assert run_lmz("-v", "-k", "--model", "small", path) == 0
    assert "a.txt: model base: of 8,192 bytes it makes" in capfd.readouterr().err
    assert run_lmz("-f", "-v", "-k", "--model", "small", "--model-only", path) == 0
    assert "it makes" not in capfd.readouterr().err
    assert frame_info((tmp_path / "a.txt.lmz").read_bytes()).model_id == SMALL
    assert run_lmz("-1", "--model-only", path) == 1
    assert "--model-only does not go together with -1" in capfd.readouterr().err
