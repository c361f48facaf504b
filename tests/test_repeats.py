"""Blocks that are the same as the one before are not coded again, and no byte of a frame shows it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lmcodec import codec, engine
from lmcodec.codec import Compressor, compress, decompress, frame_info, levels, pipeline
from lmcodec.errors import LmcodecError
from lmcodec.lm import store

KIB = 1024
A, B, ZEROS = b"a" * KIB, b"b" * KIB, bytes(KIB)
NOISE = random.Random(1).randbytes(KIB)
TEXT = b"the walrus and the ocean " * 41


class Counting(engine.Engine):
    """Counts blocks coded."""

    encoded: list[bytes]
    decoded: list[int]

    def encode(self, data: bytes | memoryview) -> bytes:
        self.encoded.append(bytes(data))
        return super().encode(data)

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        self.decoded.append(nbytes)
        return super().decode(payload, nbytes)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(store, "SHIPPED", {})
    monkeypatch.delenv(store.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(engine, "Engine", Counting)
    monkeypatch.setattr(Counting, "encoded", [], raising=False)
    monkeypatch.setattr(Counting, "decoded", [], raising=False)
    return Counting


FRAMES: dict[str, list[bytes]] = {
    "one symbol": [A] * 6,
    "zeros, whose payload is empty": [ZEROS] * 6,
    "another between": [A, A, B, A, A, B, B, ZEROS, ZEROS],
    "a shorter last one": [A, A, A[:700]],
    "zeros, a shorter last one": [ZEROS, ZEROS, ZEROS[:700]],
    "noise": [NOISE, NOISE, A, A, NOISE],
    "what repeats too little": [TEXT[:KIB]] * 4,
}


def frames_of(blocks: list[bytes], **how: Any) -> list[bytes]:
    """With one thread and more, independent and solid, one frame or several of the same Compressor."""
    data = b"".join(blocks)
    made = [compress(data, 1, block_size=KIB, threads=threads, **how) for threads in (1, 3)]
    for solid in (False, True):
        compressor = Compressor(1, block_size=KIB, solid=solid, threads=1, **how)
        end = compressor.FLUSH_FRAME
        # A frame's first block repeats the last frame's only one; the next one continues it.
        made += [compressor.compress(blocks[0], end), compressor.compress(data, end)]
        made.append(compressor.compress(data, compressor.FLUSH_BLOCK) + compressor.compress(data, end))
    return made


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("streams", [1, 3])
def test_no_byte_shows_it(name: str, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of(FRAMES[name], streams=streams)
    for module in (levels, pipeline):
        monkeypatch.setattr(module, "REPEAT_SHARE", 1 << 40)
    assert frames_of(FRAMES[name], streams=streams) == frames


@pytest.mark.parametrize("name", FRAMES)
def test_they_come_back(name: str) -> None:
    blocks = FRAMES[name]
    data = b"".join(blocks)
    frames = frames_of(blocks)
    for threads in (1, 3):
        assert decompress(b"".join(frames), threads=threads) == b"".join(
            [data, data, *[blocks[0], data, data + data] * 2]
        )


def test_how_often_they_are_coded(counting: type[Counting]) -> None:
    """Once, where one thread codes them; what is not kept as often as it comes."""
    for name, n_encoded, n_decoded in (
        ("one symbol", 1, 1),
        ("zeros, whose payload is empty", 1, 1),
        ("another between", 5, 5),
        ("a shorter last one", 2, 2),
        ("noise", 4, 1),
        ("what repeats too little", 4, 4),
    ):
        packed = compress(b"".join(FRAMES[name]), 1, block_size=KIB, threads=1)
        assert len(counting.encoded) == n_encoded, name
        decompress(packed, threads=1)
        assert len(counting.decoded) == n_decoded, name
        counting.encoded.clear()
        counting.decoded.clear()


def test_a_repeated_block_is_checked() -> None:
    """Its header, its flags and its check are its own."""
    packed = bytearray(compress(A * 3, 1, block_size=KIB))
    blocks = frame_info(packed).blocks or ()
    assert [block.last for block in blocks] == [False, False, True]
    assert len({block.payload_nbytes for block in blocks}) == 1
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 1
        with pytest.raises(LmcodecError):
            decompress(damaged, threads=1)
    assert decompress(packed, threads=1) == A * 3


def test_what_was_given_out_is_the_callers(counting: type[Counting]) -> None:
    decompressor = codec.Decompressor(threads=1)
    packed = compress(A * 4, 1, block_size=KIB)
    assert decompressor.decompress(packed, max_length=3 * KIB) == A * 3
    assert decompressor.decompress(b"") == A
    assert counting.decoded == [KIB]
