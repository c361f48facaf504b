"""The way of a block through the rooms of the codec is short."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lmcodec
from lmcodec.coder import Encoder

PACKAGE = str(Path(lmcodec.__file__).parent)
TEXT = b"A block's way from the call to the words of the range coder. " * 16


def calls_of(frame: FrameType | None) -> Iterator[str]:
    """The package's calls that are under way, the newest first."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back


def way_to_the_coder(monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[list[str]]:
    """From `lmcodec.compress` on, across threads, the calls under way when a coder gets decisions."""
    ways: list[list[str]] = []
    before: dict[threading.Thread, list[str]] = {}
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        own = before.get(threading.current_thread(), [])
        before[thread] = own + list(calls_of(sys._getframe()))[::-1]
        start(thread)

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is Encoder.encode.__code__:
            ways.append(before.get(threading.current_thread(), []) + list(calls_of(frame))[::-1])

    lmcodec.compress(TEXT, **how)  # loads what is loaded once
    monkeypatch.setattr(threading.Thread, "start", started)
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        lmcodec.compress(TEXT, **how)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert ways
    return ways


def test_a_block_reaches_the_coder_in_eight_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/ARCHITECTURE.md draws it."""
    (way,) = way_to_the_coder(monkeypatch, level=1)
    assert way == [
        "compressor.compress",
        "compressor.compress",
        "pipeline.start",
        "pipeline.start",
        "pipeline._run",
        "levels.encode_block",
        "engine.encode",
        "coder.encode",
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_so_does_one_with_a_language_model(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a helper tries the second method beside the first, that has four calls more."""
    ways = way_to_the_coder(monkeypatch, level=3, threads=threads)
    assert sorted(map(len, ways)) == ([8, 8] if threads == 1 else [8, 12])
