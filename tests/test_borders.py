"""Texts at the edges: borders inside characters, no valid UTF-8, one byte, 100 MB of one symbol.

Over frames, and over blocks that are coded with the language model whether or not that is smaller.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

import lmcodec
from lmcodec import engine
from lmcodec.engine import Engine, LmEngine
from lmcodec.frame import Method
from lmcodec.lm import store

HASHES = runpy.run_path(str(Path(__file__).with_name("golden") / "hashes.py"))
MODEL: Path = HASHES["MODEL"]
LEVELS = [1, 2, 3, 6]
KIB = 1024

# Each of these is refused by a UTF-8 decoder at its first byte, or cut short.
INVALID = {
    "continuation bytes": b"\x80\xbf\x9f\xa0",
    "bytes that never occur": b"\xfe\xff\xf5\xc0",
    "overlong": b"\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf",
    "surrogates": b"\xed\xa0\x80\xed\xbf\xbf\xed\xa0\xbd\xed\xb8\x80",
    "beyond the last character": b"\xf4\x90\x80\x80\xf7\xbf\xbf\xbf",
    "five and six bytes": b"\xf8\x88\x80\x80\x80\xfc\x84\x80\x80\x80\x80",
    "cut short": b"\xf0\x9f\x98",
    "two that are cut short": b"\xe6\x96\xf0\xa0",
    "UTF-16": "text, 文字, 😀".encode("utf-16"),
    "Latin-1 among UTF-8": "naïve ".encode("latin-1") + "überzählig ".encode(),
}


class NeverSmaller(Engine):
    """Method cm that never wins."""

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(data)


@cache
def model() -> store.Model:
    return store.load(store.find(MODEL))


def inside_character(data: bytes, at: int) -> bool:
    return at < len(data) and 0x80 <= data[at] < 0xC0


def check_blocks(data: bytes, *shape: int) -> None:
    """A block comes back under every profile with a language model and without."""
    makes: list[Callable[[], Engine | LmEngine]] = [partial(LmEngine, model(), n, *shape) for n in (1, 2)]
    if shape[0] <= 4:
        makes.append(partial(Engine, 1, *shape))
    for make in makes:
        payload = make().encode(data)
        assert make().decode(payload, len(data)) == data


def check_frame(data: bytes, level: int, **how: int | bool) -> set[Method]:
    """A frame comes back, with one thread and with two; returns its blocks' methods."""
    named = {"model": MODEL} if level > 2 else {}
    packed = lmcodec.compress(data, level, **named, **how)  # type: ignore[arg-type]
    for threads in (1, 2):
        assert lmcodec.decompress(packed, threads=threads, **named) == data  # type: ignore[arg-type]
    return {block.method for block in lmcodec.frame_info(packed).blocks or ()}


def wide_text(shift: int, nbytes: int) -> bytes:
    """Characters of four bytes alone, after `shift` others."""
    characters = "".join(word for word in HASHES["WIDE"] if len(word.encode()) >= 4 * len(word))
    assert len(characters) >= 5
    return ("a" * shift + characters * (nbytes // 16)).encode()[:nbytes]


@pytest.mark.parametrize("shift", range(4))
def test_stream_borders_inside_characters(shift: int) -> None:
    for nbytes in (400, 401, 402, 403):
        data = wide_text(shift, nbytes)
        cut = set()
        for streams, groups in ((2, 1), (3, 2), (7, 2), (64, 1)):
            cut |= {inside_character(data, s * nbytes // streams) for s in range(1, streams)}
            check_blocks(data, streams, groups)
        assert cut == {True, False}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("solid", [False, True])
def test_block_borders_inside_characters(level: int, solid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if level > 2:
        monkeypatch.setattr(engine, "Engine", NeverSmaller)
    methods, places = set(), set()
    for shift in range(4):
        data = wide_text(shift, 3 * KIB + 10)
        places.add((KIB - shift) % 4)  # of the border in a character
        methods |= check_frame(data, level, block_size=KIB, solid=solid, streams=3)
    assert places == {0, 1, 2, 3}
    # The last block has 10 bytes.
    assert methods - {Method.STORED} == {Method.LM_CM if level > 2 else Method.CM}


@pytest.mark.parametrize("name", INVALID)
def test_no_valid_utf8(name: str) -> None:
    unit = INVALID[name]
    with pytest.raises(UnicodeDecodeError):
        unit.decode()
    for data in (unit, unit * 40, unit[::-1] * 9 + b"text " * 9 + unit):
        for streams in {1, 2, min(5, len(data))}:
            check_blocks(data, streams)
    for level in LEVELS:
        check_frame(unit * 200, level, block_size=KIB)


def test_one_byte() -> None:
    for byte in range(0, 256, 15):
        check_blocks(bytes([byte]), 1)
    for level in LEVELS:
        for byte in (0, 10, 97, 127, 128, 255):
            check_frame(bytes([byte]), level)


@pytest.mark.parametrize("level", LEVELS)
def test_few_bytes(level: int) -> None:
    """Fewer than there are streams, and one more; the last character of a text alone in a block."""
    text = "ab😀c".encode()
    for n in range(len(text) + 1):
        check_frame(text[:n], level, streams=4, groups=2)
        check_frame(wide_text(0, KIB + n), level, block_size=KIB)


@pytest.mark.slow
def test_100_megabytes_of_one_symbol() -> None:
    """At the default level; equal blocks are coded once (test_repeats.py)."""
    data = b"a" * 100_000_000
    packed = lmcodec.compress(data)
    assert len(packed) < 5000
    assert lmcodec.decompress(packed) == data
