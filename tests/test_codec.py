"""compress and decompress, Compressor and Decompressor: round trips, limits, damage, threads."""

from __future__ import annotations

import array
import bz2
import io
import mmap
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import corruption
import numpy as np
import pytest
from corruption import DeflateEngine, check_corrupt, in_pieces
from hypothesis import given
from hypothesis import strategies as st

import lmcodec
from lmcodec import codec, engine, frame
from lmcodec.codec import (
    Compressor,
    Decompressor,
    compress,
    decompress,
    frame_info,
    pipeline,
    scan,
)
from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, LmcodecError, ModelNotFound, Truncated
from lmcodec.frame import Block, FrameHeader, Method
from lmcodec.lm import store

KIB = 1024
TEXT = b"".join(b"%d bottles of beer on the wall\n" % i for i in range(400))  # 12 KB
NOISE = random.Random(5).randbytes(3000)


ENGINE, MEMORY_NBYTES = engine.Engine, engine.memory_nbytes


@pytest.fixture
def _real_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Engine", ENGINE)
    monkeypatch.setattr(engine, "memory_nbytes", MEMORY_NBYTES)


@pytest.fixture(scope="module", autouse=True)
def _deflate() -> Iterator[None]:
    """A fast engine: what is tested here is what lies around it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Engine", DeflateEngine)
        patch.setattr(engine, "memory_nbytes", corruption.deflate_memory_nbytes)
        patch.setattr(store, "SHIPPED", {})
        patch.delenv(store.MODEL_VARIABLE, raising=False)
        yield


contents = (
    st.binary(max_size=5000)
    | st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=20), st.integers(0, 600))
    | st.builds(lambda a, b, c: TEXT[:a] + NOISE[:b] + TEXT[a:c], *[st.integers(0, 12_000)] * 3)
)
options = st.fixed_dictionaries(
    {
        "level": st.integers(1, 9),
        "block_size": st.none() | st.integers(KIB, 3 * KIB),
        "threads": st.none() | st.integers(1, 4),
        "solid": st.booleans(),
        "streams": st.none() | st.integers(2, 4),
        "groups": st.just(1),
    }
) | st.fixed_dictionaries({"streams": st.integers(2, 4), "groups": st.just(2), "block_size": st.just(KIB)})


def feed(compressor: Compressor, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [compressor.compress(data[a:b]) for a, b in pairwise(edges)]
    return b"".join(pieces) + compressor.flush()


# Round trips


@given(contents, options, st.integers(1, 4))
def test_roundtrip(data: bytes, how: dict[str, Any], threads: int) -> None:
    packed = compress(data, **how)
    assert decompress(packed, threads=threads) == data
    assert decompress(packed + packed) == data + data
    info = frame_info(packed)
    assert info.nbytes == len(packed)
    assert info.original_nbytes == len(data)
    assert scan(io.BytesIO(packed)) == [info]


@pytest.mark.usefixtures("_real_engine")
@pytest.mark.parametrize("solid", [False, True])
@pytest.mark.parametrize("level", [1, 2])
def test_roundtrip_with_the_real_engine(level: int, solid: bool) -> None:
    data = TEXT[: 5 * KIB] + NOISE[:KIB] + TEXT[5 * KIB :]
    for streams, groups in ((1, 1), (3, 2)):
        how: dict[str, Any] = {"block_size": 2 * KIB, "solid": solid, "streams": streams, "groups": groups}
        packed = compress(data, level, **how, threads=3)
        assert packed == compress(data, level, **how, threads=1)
        assert len(packed) < len(data) / 2
        assert decompress(packed, threads=3) == in_pieces(packed, piece=100, max_length=999) == data


@given(contents, options, st.integers(1, 4), st.lists(st.integers(0, 20_000), max_size=5))
def test_a_frame_depends_neither_on_threads_nor_on_how_the_data_comes(
    data: bytes, how: dict[str, Any], threads: int, cuts: list[int]
) -> None:
    packed = compress(data, **how)
    assert compress(data, **how | {"threads": threads}) == packed
    assert feed(Compressor(**how, content_size=len(data)), data, cuts) == packed
    # Without the size, the frames differ in that field alone (and where a header's size stands in the index).
    unsized = feed(Compressor(**how), data, cuts)
    ours, theirs = frame_info(packed), frame_info(unsized)
    assert theirs.content_size is None
    assert ours.blocks == theirs.blocks
    assert (ours.content_size is None) == (len(ours.blocks or ()) == 1)
    assert len(packed) - len(unsized) == ours.header_nbytes - theirs.header_nbytes


@given(contents, options, st.integers(1, 2000), st.integers(-1, 3000), st.binary(max_size=5))
def test_any_split_of_input_and_output_decodes_the_same(
    data: bytes, how: dict[str, Any], piece: int, max_length: int, after: bytes
) -> None:
    packed = compress(data, **how)
    assert in_pieces(packed, piece=piece, max_length=max_length or 1) == data
    decompressor = Decompressor()
    assert decompressor.decompress(packed + after) == data
    assert decompressor.eof
    assert decompressor.unused_data == after


@given(st.lists(st.tuples(st.binary(max_size=2500), st.sampled_from([0, 1, 2])), max_size=6), st.booleans())
def test_flushes_anywhere(steps: list[tuple[bytes, int]], solid: bool) -> None:
    """After a flush all that was written can be decoded."""
    compressor = Compressor(block_size=KIB, solid=solid, threads=2)
    assert compressor.last_mode == Compressor.FLUSH_FRAME
    packed = data = b""
    for piece, mode in steps:
        packed += compressor.compress(piece, mode)
        data += piece
        assert compressor.last_mode == mode
        if mode:
            assert readable(codec.FrameReader(io.BytesIO(packed).read)) == data
    packed += compressor.flush()
    assert decompress(packed) == data


def readable(reader: codec.FrameReader) -> bytes:
    """What can be read of frames whose last one may be cut."""
    out = b""
    try:
        while piece := reader.read(1000):
            out += piece
    except Truncated:
        pass
    return out


BUFFERS: list[Any] = [
    b"some bytes" * 20,
    bytearray(b"some bytes" * 20),
    memoryview(b"some bytes" * 20)[3:150],
    memoryview(b"some bytes" * 20)[::2],
    array.array("i", range(100)),
    array.array("d"),
    np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    np.arange(60).reshape(6, 10)[:, ::3],
    np.asfortranarray(np.arange(60).reshape(6, 10)),
    np.arange(60, dtype=">u2"),
    np.zeros((0, 7)),
]


@pytest.mark.parametrize("data", BUFFERS, ids=lambda data: type(data).__name__)
def test_any_buffer_is_taken(data: Any) -> None:
    original = memoryview(data).tobytes()
    packed = compress(data)
    assert decompress(packed) == original
    compressor = Compressor()
    assert compressor.compress(data) + compressor.flush() == packed
    held = array.array("B", packed)
    assert decompress(held) == Decompressor().decompress(held) == original
    held.append(0)  # nothing still holds the buffer
    with mmap.mmap(-1, len(packed)) as mapped:
        mapped[:] = packed
        assert decompress(mapped) == original
        assert frame_info(mapped).nbytes == len(packed)


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_other_objects_are_refused_and_do_no_harm(data: Any) -> None:
    compressor, decompressor = Compressor(), Decompressor()
    for call in (compress, decompress, frame_info, compressor.compress, decompressor.decompress):
        with pytest.raises(TypeError, match=f"bytes-like object is needed, not {type(data).__name__}"):
            call(data)
    assert decompressor.decompress(compressor.compress(b"x") + compressor.flush()) == b"x"


# The shape of frames


@pytest.mark.parametrize("make", [bytes, lambda n: (TEXT * 2000)[:n], lambda n: (NOISE * 6000)[:n]])
def test_overhead(make: Any) -> None:
    """FORMAT.md section 2.2: at most 18 bytes up to 16,384 and at most 22 above, one model byte included."""
    for nbytes in (0, 1, 2, 127, 128, 129, 16_383, 16_384, 16_385, 2**21 + 1, 2**24):
        packed = compress(make(nbytes), block_size=2**24)
        (block,) = frame_info(packed).blocks or ()
        overhead = len(packed) - block.payload_nbytes + 1
        assert overhead <= (18 if nbytes <= 16_384 else 22)
        assert len(packed) <= nbytes + (13 if nbytes <= 16_384 else 15)


def test_empty_and_tiny_frames() -> None:
    assert compress(b"") == bytes.fromhex("b54c4d5a01 c1") + Block(Method.END, last=True).pack()
    stored = Block(Method.STORED, 1, 1, last=True).pack(b"a", b"a")
    assert compress(b"a") == bytes.fromhex("b54c4d5a01 c1") + stored


@pytest.mark.parametrize("solid", [False, True])
def test_several_blocks_have_an_index(solid: bool) -> None:
    data = TEXT[:2000] + NOISE[:1024] + TEXT[: 3 * KIB]
    info = frame_info(compress(data, block_size=KIB, solid=solid))
    assert info.content_size == len(data)
    assert info.flags == frame.Flag.CONTENT_SIZE | frame.Flag.INDEX
    blocks = info.blocks or ()
    assert [b.method for b in blocks] == [Method.CM] * 2 + [Method.STORED] + [Method.CM] * 3
    # A stored block breaks the chain.
    assert [b.continues for b in blocks] == [solid and chain for chain in (0, 1, 0, 0, 1, 1)]
    assert [b.last for b in blocks] == [False] * 5 + [True]
    assert sum(b.original_nbytes for b in blocks) == len(data)


def test_one_block_has_neither_index_nor_size_unless_flushed() -> None:
    assert frame_info(compress(TEXT)).flags == 0
    assert frame_info(compress(TEXT[:KIB], block_size=KIB)).flags == 0
    compressor = Compressor()
    packed = compressor.compress(TEXT, Compressor.FLUSH_BLOCK)
    assert Decompressor().decompress(packed) == TEXT
    info = frame_info(packed + compressor.flush())
    assert info.flags == frame.Flag.INDEX
    assert [b.method for b in info.blocks or ()] == [Method.CM, Method.END]


def test_levels_and_streams() -> None:
    def only_block(**how: Any) -> Block:
        (block,) = frame_info(compress(how.pop("data", TEXT), **how)).blocks or ()
        return block

    assert [only_block(level=level).profile for level in range(1, 10)] == [3] + [2] * 8
    assert [only_block(level=level).enlarge for level in range(1, 10)] == [0] * 6 + [1, 2, 3]
    assert only_block().engine == (Method.CM, 2, 1, 1, 0)
    assert only_block(streams=4, groups=2).engine == (Method.CM, 2, 4, 2, 0)
    large = b"ab" * (256 * KIB)
    assert only_block(level=1, data=large).engine == (Method.CM, 3, 2, 1, 0)
    assert only_block(level=1, data=large[:-1]).engine == (Method.CM, 3, 1, 1, 0)


def test_no_more_streams_than_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORMAT.md section 3; such a block cannot continue one of more streams."""
    monkeypatch.setattr(DeflateEngine, "encode", lambda self, data: b"")
    compressor = Compressor(streams=4, groups=2, solid=True, block_size=KIB)
    packed = compressor.compress(bytes(2 * KIB + 1)) + compressor.flush()
    blocks = frame_info(packed).blocks or ()
    assert [(b.streams, b.groups, b.continues) for b in blocks] == [(4, 2, 0), (4, 2, 1), (1, 1, 0)]


def test_content_size_must_be_true() -> None:
    for promised in (9, 11):
        compressor = Compressor(content_size=promised)
        with pytest.raises(ValueError, match=f"content_size said {promised} bytes, got 10"):
            compressor.compress(b"0123456789", Compressor.FLUSH_FRAME)
    compressor = Compressor(content_size=10)
    assert decompress(compressor.compress(b"0123456789") + compressor.flush()) == b"0123456789"
    assert decompress(compressor.compress(b"the next frame") + compressor.flush()) == b"the next frame"


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"level": 0}, "level must be 1 to 9, not 0"),
        ({"level": 10}, "level must be 1 to 9, not 10"),
        ({"block_size": 1023}, "block_size must be 1024 to 16777216, not 1023"),
        ({"block_size": 2**24 + 1}, "block_size"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"streams": 5}, "streams must be 1 to 4, not 5"),
        ({"streams": 0}, "streams must be 1 to 4, not 0"),
        ({"groups": 3}, "groups must be 1 to 2, not 3"),
        ({"groups": 2}, "groups must be at most streams, not 2 of 1"),
    ],
)
def test_arguments_out_of_range(how: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compress(b"", **how)
    name = text.split()[0]
    with pytest.raises(TypeError, match=f"{name} must be an int, not str"):
        compress(b"", **{name: "1"})  # type: ignore[arg-type]


def test_other_arguments() -> None:
    with pytest.raises(ValueError, match="content_size must be 0 to"):
        Compressor(content_size=-1)
    for make in (Decompressor, lambda **how: decompress(compress(b""), **how)):
        for name in ("max_output", "memory_limit", "threads"):
            with pytest.raises(ValueError, match=f"{name} must be at least"):
                make(**{name: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be"):
        Compressor().compress(b"", 3)
    with pytest.raises(ValueError, match="mode must be"):
        Compressor().flush(Compressor.CONTINUE)
    with pytest.raises(TypeError, match="max_length must be an int"):
        Decompressor().decompress(b"", 1.5)  # type: ignore[arg-type]


# Decompressor


def test_it_behaves_as_bz2_does() -> None:
    """The same calls on both, for a frame of one block: the same states and results."""
    ours: Any = Decompressor()
    theirs: Any = bz2.BZ2Decompressor()
    a, b = compress(TEXT), bz2.compress(TEXT)

    def both(x: bytes, y: bytes, *arguments: int) -> None:
        assert ours.decompress(x, *arguments) == theirs.decompress(y, *arguments)
        assert (ours.eof, ours.needs_input, ours.unused_data) == (
            theirs.eof,
            theirs.needs_input,
            theirs.unused_data,
        )

    assert (ours.eof, ours.needs_input, ours.unused_data) == (False, True, b"")
    both(b"", b"")
    both(a[:30], b[:30])
    both(a[30:] + b"after", b[30:] + b"after", 100)
    both(b"", b"", 0)
    both(b"", b"", 5000)
    both(b"", b"", len(TEXT))
    for decompressor in (ours, theirs):
        with pytest.raises(EOFError):
            decompressor.decompress(b"")
    assert ours.unused_data == b"after"


def test_max_length_is_exact_and_the_end_follows_at_once() -> None:
    packed = compress(TEXT, block_size=KIB)
    decompressor = Decompressor(threads=1)
    pieces = [decompressor.decompress(packed, 1000)]
    while not decompressor.eof:
        assert not decompressor.needs_input
        pieces.append(decompressor.decompress(b"", 1000))
    assert [len(piece) for piece in pieces] == [1000] * (len(TEXT) // 1000) + [len(TEXT) % 1000]
    empty = Decompressor()
    assert empty.decompress(compress(b""), 0) == b""
    assert empty.eof


def test_all_that_came_is_given_out() -> None:
    packed = compress(TEXT, block_size=KIB)
    edges = list(
        np.cumsum([frame_info(packed).header_nbytes, *(b.nbytes for b in frame_info(packed).blocks or ())])
    )
    decompressor = Decompressor(threads=4)
    out = decompressor.decompress(packed[: edges[5]])
    assert out == TEXT[: 5 * KIB]
    assert decompressor.needs_input
    assert decompressor.decompress(packed[edges[5] : edges[6] - 1]) == b""
    assert decompressor.decompress(packed[edges[6] - 1 : edges[6]]) == TEXT[5 * KIB : 6 * KIB]


def test_blocks_before_a_damaged_one_are_given_out_first() -> None:
    packed = bytearray(compress(TEXT, block_size=KIB))
    packed[len(packed) // 2] ^= 1
    for threads in (1, 3):
        decompressor = Decompressor(threads=threads)
        pieces = [decompressor.decompress(packed, 100)]
        with pytest.raises(Corrupt, match="block"):
            pieces.extend(iter(partial(decompressor.decompress, b"", 100), b""))
        out = b"".join(pieces)
        assert len(out) % KIB == 0
        assert len(out) >= 4 * KIB
        assert out == TEXT[: len(out)]


def failed(error: type[Exception], call: Any, *arguments: Any) -> None:
    with pytest.raises(error):
        call(*arguments)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"failed and cannot go on \\({error.__name__}"):
            call(b"")


def test_unusable_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    failed(BadMagic, Decompressor().decompress, b"what?")
    failed(Corrupt, Decompressor().decompress, compress(b"abc")[:-1] + b"x")
    failed(LimitExceeded, Decompressor(max_output=2).decompress, compress(b"abc"))
    packed = compress(TEXT)

    def fail(*_: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr(DeflateEngine, "encode", fail)
    monkeypatch.setattr(DeflateEngine, "decode", fail)
    failed(MemoryError, Decompressor().decompress, packed)
    compressor = Compressor()
    assert compressor.usable
    assert compressor.compress(TEXT) == b""
    with pytest.raises(MemoryError):
        compressor.flush()
    with pytest.raises(ValueError, match=r"this Compressor failed and cannot go on \(MemoryError\)"):
        compressor.compress(b"")
    assert not compressor.usable


# Limits


def test_max_output(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = DeflateEngine.decode

    def counted(self: DeflateEngine, payload: bytes, nbytes: int) -> bytes:
        decoded.append(nbytes)
        return decode(self, payload, nbytes)

    monkeypatch.setattr(DeflateEngine, "decode", counted)
    sized = compress(TEXT, block_size=KIB)
    unsized = feed(Compressor(block_size=KIB), TEXT, [])
    one = compress(TEXT)
    for packed, most in ((sized, 0), (unsized, 2), (one, 0)):
        decoded.clear()
        with pytest.raises(LimitExceeded, match="max_output"):
            decompress(packed, max_output=2 * KIB + 10)
        assert len(decoded) <= most
        assert decompress(packed, max_output=len(TEXT)) == TEXT
    with pytest.raises(LimitExceeded, match=f"{2 * len(TEXT)} bytes"):
        decompress(one + one, max_output=2 * len(TEXT) - 1)
    assert decompress(one + one, max_output=2 * len(TEXT)) == TEXT + TEXT


def test_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress(TEXT, block_size=4 * KIB)
    payload_nbytes = [block.payload_nbytes for block in frame_info(packed).blocks or ()]
    needs = [corruption.deflate_memory_nbytes(2, 4 * KIB) + 2 * nbytes for nbytes in payload_nbytes]
    assert decompress(packed, memory_limit=max(needs)) == TEXT
    stored = compress(NOISE)
    monkeypatch.setattr(engine, "Engine", None)  # nothing is allocated
    with pytest.raises(LimitExceeded, match=f"block 1 at offset 8: .* {needs[0]} bytes.* memory_limit"):
        decompress(packed, memory_limit=needs[0] - 1)
    assert decompress(stored, memory_limit=3000) == NOISE
    with pytest.raises(LimitExceeded):
        decompress(stored, memory_limit=2999)


class Counted(DeflateEngine):
    """Counts engines at work at once, and those made."""

    lock = threading.Lock()
    at_work = most = made = 0

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        Counted.made += 1

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytes:
        with self.lock:
            Counted.at_work += 1
            Counted.most = max(self.most, self.at_work)
        time.sleep(0.002)
        with self.lock:
            Counted.at_work -= 1
        return super().decode(payload, nbytes)


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ({"threads": 1}, 1),
        ({"threads": 3}, 3),
        ({"threads": 8, "memory_limit": 3 * (corruption.deflate_memory_nbytes(2, KIB) + 2 * KIB)}, 3),
        ({"memory_limit": corruption.deflate_memory_nbytes(2, KIB) + 2 * KIB}, 1),
        ({}, 2),
    ],
)
def test_threads_stay_within_memory(how: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress(TEXT * 2, block_size=KIB)
    monkeypatch.setattr(engine, "Engine", Counted)
    monkeypatch.setattr(pipeline, "available_cpus", lambda: 16)
    monkeypatch.setattr(
        "lmcodec.codec.decompressor.DECODE_BUDGET_NBYTES",
        2 * (corruption.deflate_memory_nbytes(2, KIB) + 2 * KIB),
    )
    for decode in (decompress, lambda data, **how: Decompressor(**how).decompress(data)):
        Counted.most = Counted.made = 0
        assert decode(packed, **how) == TEXT * 2
        assert Counted.most == most
        assert Counted.made <= most


def test_engines_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From block to block and from frame to frame."""
    monkeypatch.setattr(engine, "Engine", Counted)
    Counted.made = 0
    packed = compress(TEXT, block_size=KIB, threads=2)
    assert Counted.made == 2
    assert decompress(packed * 3, threads=2) == TEXT * 3
    assert Counted.made == 4


def test_engines_of_other_kinds_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of all kinds one after another never keep more engines than threads."""
    packed = b"".join(compress(TEXT, level, block_size=4 * KIB) for level in (1, 2, 1))
    monkeypatch.setattr(engine, "Engine", Counted)
    Counted.made = 0
    pipelines: list[pipeline.Pipeline] = []

    class Noted(pipeline.Pipeline):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pipelines.append(self)

    monkeypatch.setattr("lmcodec.codec.decompressor.Pipeline", Noted)
    assert decompress(packed, threads=2) == TEXT * 3
    assert Counted.made == 6
    assert max(len(each._seats) for each in pipelines) == 2


def test_idle_engines_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four engines on small blocks is memory for one on a large block."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Watched(Counted):
        def __init__(self, *arguments: int) -> None:
            super().__init__(*arguments)
            alive.add(self)

        def decode(self, payload: bytes | memoryview, nbytes: int) -> bytes:
            most[nbytes] = max(most.get(nbytes, 0), len(alive))
            return super().decode(payload, nbytes)

    most: dict[int, int] = {}
    packed = compress(bytes(8 * KIB), block_size=KIB) + compress(bytes(1 << 20))
    monkeypatch.setattr(engine, "Engine", Watched)
    monkeypatch.setattr(engine, "memory_nbytes", lambda profile, nbytes, *_: nbytes)
    for decode in (decompress, lambda data, **how: codec.FrameReader(io.BytesIO(data).read, **how).read()):
        assert decode(packed, threads=4, memory_limit=(1 << 20) + 64 * KIB) == bytes(8 * KIB + (1 << 20))
        assert most == {KIB: 4, 1 << 20: 1}
        most.clear()


# Damage


def flushed(*pieces: bytes) -> bytes:
    """A frame whose blocks hold these pieces, and an end block."""
    compressor = Compressor()
    return b"".join(compressor.compress(p, Compressor.FLUSH_BLOCK) for p in pieces) + compressor.flush()


HAMLET = b"to be or not to be, to be or not to be"
SMALL_FRAMES: dict[str, Callable[[], list[tuple[bytes, bytes]]]] = {
    "empty": lambda: [(compress(b""), b"")],
    "stored": lambda: [(compress(b"stored!"), b"stored!")],
    "cm": lambda: [(compress(HAMLET), HAMLET)],
    "streams": lambda: [(compress(HAMLET * 2, streams=4, groups=2), HAMLET * 2)],
    "flushed": lambda: [(flushed(HAMLET, b"is", HAMLET), HAMLET + b"is" + HAMLET)],
    "content size": lambda: [(compress(bytes(2 * KIB) + b"end", block_size=KIB), bytes(2 * KIB) + b"end")],
    "solid": lambda: [(compress(bytes(KIB) + HAMLET, block_size=KIB, solid=True), bytes(KIB) + HAMLET)],
    "concatenated": lambda: [(compress(b"1st"), b"1st"), (flushed(HAMLET), HAMLET), (compress(b""), b"")],
}


@pytest.mark.parametrize("kind", SMALL_FRAMES)
def test_damage_is_never_silent(kind: str) -> None:
    check_corrupt(*SMALL_FRAMES[kind]())


@pytest.mark.usefixtures("_real_engine")
@pytest.mark.parametrize("kind", ["cm", *(pytest.param(k, marks=pytest.mark.slow) for k in SMALL_FRAMES)])
def test_damage_of_real_frames_is_never_silent(kind: str) -> None:
    check_corrupt(*SMALL_FRAMES[kind]())


@given(contents, st.data())
def test_damage_of_larger_frames_is_never_silent(data: bytes, draw: st.DataObject) -> None:
    packed = bytearray(compress(data, block_size=KIB))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(packed) - 1))
        packed[at : at + draw.draw(st.integers(0, 4))] = draw.draw(st.binary(max_size=4))
    try:
        assert decompress(packed, max_output=1 << 20) == data
    except LmcodecError as error:
        text = str(error)
        assert text
        assert "\n" not in text


@pytest.mark.parametrize("tail", [b"\1", b"garbage", b"\xb5LMx"])
def test_what_follows_the_last_frame(tail: bytes) -> None:
    packed = compress(TEXT)
    with pytest.raises(BadMagic, match=f"offset {len(packed)}: "):
        decompress(packed + tail)
    with pytest.raises(Truncated, match=f"ends at offset {len(packed) + 2}, inside a frame header"):
        decompress(packed + b"\xb5L")


def test_messages_say_where() -> None:
    packed = compress(TEXT, block_size=4 * KIB)
    blocks = frame_info(packed).blocks or ()
    at = frame_info(packed).header_nbytes + blocks[0].nbytes
    with pytest.raises(Truncated, match=f"ends at offset {at + 20}, inside block 2"):
        decompress(packed[: at + 20])
    with pytest.raises(Truncated, match=f"ends at offset {len(packed) - 1}, inside the index"):
        decompress(packed[:-1])
    with pytest.raises(Corrupt, match=f"block 2 at offset {at}: "):
        decompress(packed[: at + 20] + b"???" + packed[at + 23 :])
    with pytest.raises(Corrupt, match="index at offset"):
        decompress(packed[:-1] + b"?")
    with pytest.raises(Truncated, match="offset 0"):
        decompress(b"")


def test_frames_that_need_a_model_are_refused_by_its_name() -> None:
    end = Block(Method.END, last=True).pack()
    needs = Block(Method.LM_CM, 10, 5, 1, 1, 1, last=True).pack(b"0123456789", b"01234")
    for model, name in ((7, "model 7"), (bytes(range(8)), "model 0001020304050607")):
        header = FrameHeader(model_id=model).pack()
        with pytest.raises(ModelNotFound, match=f"^block 1 at offset {len(header)}: needs {name}"):
            decompress(header + needs)
        assert frame_info(header + needs).model_id == model
        assert decompress(header + end) == b""  # none of its blocks needs it


@pytest.mark.parametrize(
    "tail",
    [
        frame.pack_index(7, 2, bytes([60, 100, 5, 0])),
        frame.pack_index(6, 1, bytes([60, 100, 5, 0])),
        b"",
    ],
)
def test_an_index_that_is_not_the_blocks(tail: bytes) -> None:
    """A decoder that has read the blocks MUST compare the index with what it met."""
    body = FrameHeader(has_index=True).pack()
    body += Block(Method.STORED, 3, 3).pack(b"abc", b"abc") + Block(Method.END, last=True).pack()
    good = body + frame.pack_index(6, 2, bytes([9, 3, 5, 0]))
    assert decompress(good) == b"abc"
    assert frame_info(good).nbytes == len(good)
    for call in (decompress, frame_info, lambda data: scan(io.BytesIO(data))):
        if tail:
            with pytest.raises(Corrupt, match="index at offset 20"):
                call(body + tail + bytes(9))
        elif call is not frame_info:
            with pytest.raises(Truncated):
                call(body)


# frame_info and scan


def test_frame_info_needs_the_header_only() -> None:
    packed = compress(TEXT, block_size=KIB)
    whole = frame_info(packed + b"anything")
    assert whole.nbytes == len(packed)
    assert whole.version == 1
    for length in range(len(packed)):
        if length < whole.header_nbytes:
            with pytest.raises(Truncated):
                frame_info(packed[:length])
        else:
            cut = frame_info(packed[:length])
            assert cut.blocks is cut.nbytes is None
            assert cut.content_size == cut.original_nbytes == len(TEXT)
    with pytest.raises(BadMagic):
        frame_info(b"%PDF")


def test_scan_walks_all_frames_and_leaves_the_file_where_it_was() -> None:
    frames = [compress(TEXT, block_size=KIB), compress(b""), compress(NOISE), compress(TEXT, 1)]
    file = io.BytesIO(b"before" + b"".join(frames))
    file.seek(6)
    infos = scan(file)
    assert file.tell() == 6
    assert [info.nbytes for info in infos] == [len(packed) for packed in frames]
    assert [info.offset for info in infos] == [0, *np.cumsum([len(packed) for packed in frames])[:-1]]
    assert [len(info.blocks or ()) for info in infos] == [len(TEXT) // KIB + 1, 1, 1, 1]
    for length in (0, 3, 20, len(frames[0]) - 1, len(frames[0]) + 8):
        with pytest.raises(Truncated):
            scan(io.BytesIO(b"".join(frames)[:length]))
    with pytest.raises(BadMagic, match=f"offset {len(frames[0])}"):
        scan(io.BytesIO(frames[0] + b"garbage"))


# Threads


def test_eight_threads_at_once() -> None:
    def work(seed: int) -> None:
        data = random.Random(seed).randbytes(500) + TEXT[seed:] * 2
        for _ in range(3):
            packed = compress(data, block_size=KIB, threads=2)
            if packed != serial[seed] or decompress(packed, threads=2) != data:
                wrong.append(seed)

    wrong: list[int] = []
    serial = [
        compress(random.Random(seed).randbytes(500) + TEXT[seed:] * 2, block_size=KIB, threads=1)
        for seed in range(8)
    ]
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


INTERRUPTED = """
import os, signal, sys, threading, time
from lmcodec import codec, engine

class Slow:
    def __init__(self, *_): pass
    def encode(self, data):
        for _ in range(6000):
            time.sleep(0.01)
            if self.cancel.is_set: raise RuntimeError("cancelled")

engine.Engine, engine.memory_nbytes = Slow, lambda *_: 0
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    codec.compress(bytes(10_000), 2, block_size=1024, threads=THREADS)
except KeyboardInterrupt:
    print("interrupted")
while len(threading.enumerate()) > 1: time.sleep(0.01)
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_an_interrupt_gets_through_and_the_program_ends(threads: int) -> None:
    code = INTERRUPTED.replace("THREADS", str(threads))
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, encoding="utf-8", timeout=30, check=True
    )
    assert (run.stdout, run.stderr) == ("interrupted\n", "")


CONSTANT_MEMORY = """
import io, resource, sys
sys.path.insert(0, sys.argv[1])
import corruption
from lmcodec import codec, engine, file

engine.Engine, engine.memory_nbytes = corruption.DeflateEngine, corruption.deflate_memory_nbytes

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

chunk = bytes(range(256)) * 4096
with file.LMFile(sys.argv[2], "w", level=2, threads=2, block_size=1 << 20) as out:
    out.write(chunk)
    start = peak()
    for _ in range(700): out.write(chunk)
with file.LMFile(sys.argv[2], threads=2) as source:
    while source.read(1 << 20): pass
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_a_long_stream_takes_constant_memory(tmp_path: Any) -> None:
    folder = corruption.__file__.rpartition("/")[0]
    run = subprocess.run(
        [sys.executable, "-I", "-c", CONSTANT_MEMORY, folder, str(tmp_path / "long.lmz")],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert int(run.stdout) < 40  # MiB, of 700


def test_public_names() -> None:
    for name in lmcodec.__all__:
        assert getattr(lmcodec, name) is not None
        assert name in dir(lmcodec)
    assert lmcodec.compress is compress
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = lmcodec.compres  # type: ignore[attr-defined]
