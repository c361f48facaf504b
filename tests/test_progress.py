"""Progress from inside blocks: it moves all the time, never falls, and is complete only at the end."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest

import lmcodec
from lmcodec.cli.progress import Progress
from lmcodec.codec import Compressor, Decompressor, FrameReader, levels
from lmcodec.engine import Engine, LmEngine

TEXT = b"".join(
    b"line %d of a text that is compressed, %d words long\n" % (i, i * i % 97) for i in range(1200)
)


class Watched:
    """What `position` says whenever an engine has done a part of its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.position: Callable[[], Any] | None = None
        self.seen: list[Any] = []
        lock = threading.Lock()

        def watch(kind: type[Engine] | type[LmEngine]) -> None:
            advance = kind._advance

            def watched(engine: Any) -> None:
                advance(engine)
                if self.position:
                    with lock:
                        self.seen.append(self.position())

            monkeypatch.setattr(kind, "_advance", watched)

        watch(Engine)
        watch(LmEngine)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


CASES: dict[str, dict[str, Any]] = {
    "level 1": {"level": 1},
    "level 1, two streams": {"level": 1, "streams": 2},
    "several blocks": {"level": 1, "block_size": 8192},
    "several blocks, two threads": {"level": 1, "block_size": 8192, "threads": 2},
    "a chain": {"level": 1, "block_size": 8192, "solid": True},
    "two trials, one after another": {"level": 6, "threads": 1},
    "two trials at once": {"level": 6, "threads": 2},
    "a model beside the context models": {"level": 6, "method": "lm+cm", "threads": 1},
    "a model alone": {"level": 6, "method": "lm", "threads": 2},
}


def data_of(case: dict[str, Any]) -> bytes:
    return TEXT if case["level"] == 1 else TEXT[:12_000]


@pytest.mark.parametrize("name", CASES)
def test_compressing(name: str, watched: Watched) -> None:
    case = CASES[name]
    data = data_of(case)
    compressor = Compressor(**case)
    assert compressor.position == 0
    watched.position = lambda: compressor.position
    frame = compressor.compress(data, Compressor.FLUSH_FRAME)
    assert lmcodec.decompress(frame) == data
    assert watched.seen == sorted(watched.seen)
    assert all(0 <= n <= len(data) for n in watched.seen)
    assert len({n for n in watched.seen if 0 < n < len(data)}) >= len(data) // 4000
    assert max(b - a for a, b in zip([0, *watched.seen], watched.seen, strict=False)) < len(data) // 4
    assert compressor.position == len(data)


@pytest.mark.parametrize("name", CASES)
def test_decompressing(name: str, watched: Watched) -> None:
    case = CASES[name]
    data = data_of(case)
    frames = lmcodec.compress(data, **case) * 2
    reader = FrameReader(io.BytesIO(frames).read, threads=case.get("threads"))
    watched.position = lambda: reader.position
    assert reader.read() == 2 * data
    originals, inputs = ([pair[i] for pair in watched.seen] for i in (0, 1))
    assert originals == sorted(originals)
    assert inputs == sorted(inputs)
    assert all(n <= 2 * len(data) for n in originals)
    assert len(set(originals)) >= len(data) // 4000
    assert reader.position == (2 * len(data), len(frames))


def test_a_large_block_is_sampled_first(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's trials count too, and what it rules out brings the end nearer."""
    monkeypatch.setattr(levels, "SAMPLED_NBYTES", 8192)
    monkeypatch.setattr(levels, "SAMPLE_NBYTES", 1024)
    for clear in (0.0, 100.0):  # the model's trial alone, both
        monkeypatch.setattr(levels, "LM_CLEAR", clear)
        monkeypatch.setattr(levels, "CM_CLEAR", 0.0)
        watched.seen.clear()
        compressor = Compressor(6, threads=1)
        watched.position = lambda it=compressor: it.position
        compressor.compress(TEXT[:16_000], Compressor.FLUSH_FRAME)
        assert watched.seen == sorted(watched.seen)
        assert len(set(watched.seen)) > 8
        assert compressor.position == 16_000


def test_nothing_at_work_is_nothing_left() -> None:
    assert Compressor(1).position == 0
    assert Decompressor().position == (0, 0)
    compressor = Compressor(1)
    compressor.compress(b"pending")
    assert compressor.position == 0
    for data in (b"", b"x", bytes(range(256)) * 40):  # no block, stored ones
        compressor = Compressor(1, method="stored")
        frame = compressor.compress(data, Compressor.FLUSH_FRAME)
        assert compressor.position == len(data)
        decompressor = Decompressor()
        assert decompressor.decompress(frame) == data
        assert decompressor.position == (len(data), len(frame))


def test_the_line_moves_inside_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    done = [0, 0]
    encoding = Progress("file", 1 << 20, decoding=False)
    encoding.follow(lambda: (done[0], 0))
    encoding.original(bytes(1 << 20))
    clock += 2
    assert encoding.line(100) == "file  0 B of 1.0 MiB (0%)  0:00:02"
    done[0] = 1 << 19
    assert encoding.line(100) == "file  512 KiB of 1.0 MiB (50%)  256 KiB/s  0:00:02 left"
    done[0] = 1 << 18  # a block that was taken and is not counted yet
    assert "(50%)" in encoding.line(100)
    done[0] = (1 << 20) - 1
    assert "(99%)" in encoding.line(100)
    done[0] = 1 << 20
    assert "(100%)" in encoding.line(100)
    decoding = Progress("file", 1000, decoding=True)
    decoding.follow(lambda: (done[0], done[1]))
    clock += 1
    done[:] = [4000, 500]
    assert decoding.line(100) == "file  500 B of 1.0 KiB (50%)  1.000 bpb, 12.5%  500 B/s  0:00:01 left"
