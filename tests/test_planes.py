"""Blocks of numbers: any bytes come back under any layout, and what is damaged is said to be."""

from __future__ import annotations

import io
import random
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import format_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcodec
from lmcodec import _kernel
from lmcodec.codec.levels import judge_numbers
from lmcodec.codec.spec import Numbers
from lmcodec.errors import Corrupt, LimitExceeded, LmcodecError
from lmcodec.frame import Block, Method
from lmcodec.planes import PlaneEngine, memory_nbytes
from lmcodec.tensor_files.layout import Field, Layout, record_nbytes

F32, BF16, F64, I8 = Field(4, True), Field(2, True), Field(8, True), Field(1)
LAYOUTS: dict[str, Layout] = {
    "F32": (F32,),
    "BF16": (BF16,),
    "F64": (F64,),
    "F8": (Field(1, True),),
    "I8": (I8,),
    "I64": (Field(8),),
    "big F32": (Field(4, True, True),),
    "C64": (F32, F32),
    "Q4_1": (BF16, BF16, Field(1, length=16)),
    "Q8_K": (F32, Field(1, length=256), Field(2, length=16)),
    "odd": (Field(1, length=3), Field(8, is_big=True), Field(4, True, length=2)),
}


def gaussian(nbytes: int, layout: Layout, seed: int = 0) -> bytes:
    """Floats where the layout has floats, else small numbers."""
    source = np.random.default_rng(seed)
    if layout == (BF16,):
        values = (source.standard_normal(nbytes // 2 + 1).astype(np.float32) * 0.02).view(np.uint32) >> 16
        return values.astype("<u2").tobytes()[:nbytes]
    if any(field.is_float for field in layout):
        floats = source.standard_normal(nbytes // 4 + 1).astype(np.float32) * 0.02
        return floats.tobytes()[:nbytes]
    return source.integers(0, 9, nbytes, np.uint8).tobytes()


def check_roundtrip(data: bytes, layout: Layout, row_nbytes: int = 0, contexts: bool = True) -> bytes:
    """Every instruction set gives the same; a decoder of FORMAT.md alone restores it."""
    payload = PlaneEngine(layout, row_nbytes, contexts=contexts).encode(data)
    assert PlaneEngine(layout, row_nbytes, contexts=contexts, portable=True).encode(data) == payload
    assert PlaneEngine().decode(payload, len(data)) == data
    assert PlaneEngine(portable=True).decode(payload, len(data)) == data
    return payload


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("nbytes", [600, 4095, 40_000, 70_001])
def test_roundtrip(name: str, nbytes: int) -> None:
    layout = LAYOUTS[name]
    data = gaussian(nbytes, layout)
    for contexts in (False, True):
        payload = check_roundtrip(data, layout, 100 * record_nbytes(layout), contexts)
        if nbytes == 40_000:
            assert reference.decode_numbers(payload, nbytes) == data


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.booleans(), st.integers(1, 9)),
        min_size=1,
        max_size=16,
    ),
    st.binary(min_size=1, max_size=3000),
    st.integers(0, 200),
    st.integers(1, 40),
)
def test_any_bytes_under_any_layout(fields: Any, data: bytes, row: int, repeat: int) -> None:
    layout = tuple(Field(*field) for field in fields)
    data *= repeat
    if len(data) < record_nbytes(layout):
        data += bytes(record_nbytes(layout))
    check_roundtrip(data, layout, row * record_nbytes(layout))


def modes(payload: bytes, layout: Layout, nbytes: int) -> set[int]:
    """Modes of planes that the decoder of FORMAT.md meets."""
    seen: set[int] = set()
    plain = reference.decode_plane

    def watched(reader: Any, *arguments: Any, **named: Any) -> bytes:
        seen.add(reader.data[reader.at])
        return plain(reader, *arguments, **named)

    reference.decode_plane = watched
    try:
        reference.decode_numbers(payload, nbytes)
    finally:
        reference.decode_plane = plain
    return seen


def matrix(n_row: int, n_column: int) -> bytes:
    """Rows and columns of several sizes, in bfloat16."""
    source = np.random.default_rng(1)
    values = source.standard_normal((n_row, n_column)) * 2.0 ** source.integers(-5, 5, (n_row, 1))
    values *= 2.0 ** source.integers(-3, 3, (1, n_column))
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def test_rows_and_columns_are_contexts() -> None:
    data = matrix(300, 128)
    payload = check_roundtrip(data, (BF16,), 256)
    assert 3 in modes(payload, (BF16,), len(data))
    assert len(payload) < 0.93 * len(PlaneEngine((BF16,), 0).encode(data))


def test_bytes_above_are_contexts() -> None:
    data = gaussian(400_000, (BF16,))
    payload = check_roundtrip(data, (BF16,))
    assert 4 in modes(payload, (BF16,), len(data))
    assert len(payload) < len(PlaneEngine((BF16,), contexts=False).encode(data)) < 0.68 * len(data)


def test_noise_and_constants_are_no_work() -> None:
    noise = random.Random(3).randbytes(50_000)
    assert modes(check_roundtrip(noise, (Field(2),)), (Field(2),), 50_000) == {0}
    assert len(check_roundtrip(bytes(1 << 16), (F64,))) < 24


def test_all_256_values_and_one_that_is_rare() -> None:
    data = bytes(range(256)) + bytes([7]) * 100_000
    check_roundtrip(data, (I8,))
    check_roundtrip(data[::-1], (I8,))


def test_the_largest_block() -> None:
    data = gaussian(1 << 24, (F32,))
    payload = PlaneEngine((F32,), 4096).encode(data)
    assert PlaneEngine().decode(payload, len(data)) == data
    with pytest.raises(ValueError, match="16 MiB"):
        PlaneEngine((F32,)).encode(data + b"1")
    with pytest.raises(ValueError, match="one record"):
        PlaneEngine((F32,)).encode(b"123")


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 1000, 4097, 99_999])
def test_crc32_is_that_of_zlib(n: int) -> None:
    data = random.Random(n).randbytes(n)
    for value in (0, 1, 0xFFFFFFFF, 0xDEADBEEF):
        assert _kernel.crc32(data, value) == zlib.crc32(data, value)


# Damage


def payloads() -> Iterator[tuple[bytes, int]]:
    for layout, nbytes in [((BF16,), 9000), (LAYOUTS["Q4_1"], 9001), ((I8,), 5000), ((F32,), 600)]:
        data = gaussian(nbytes, layout)
        yield PlaneEngine(layout, 0).encode(data), nbytes
    yield PlaneEngine((BF16,), 256).encode(matrix(160, 128)), 160 * 256


@pytest.mark.parametrize("portable", [False, True])
def test_damaged_payloads(portable: bool) -> None:
    """They are refused, or give other bytes, for which blocks have a check; nothing is read beyond them."""
    source = random.Random(4)
    refused = 0
    for payload, nbytes in payloads():
        for _ in range(1500):
            broken = bytearray(payload)
            for _ in range(source.randint(1, 3)):
                at = source.randrange(min(len(broken), source.choice([40, 400, len(broken)])))
                broken[at] = source.choice([broken[at] ^ 1 << source.randrange(8), 0, 255, 128])
            if source.random() < 0.3:
                del broken[source.randrange(len(broken)) :]
            try:
                assert len(PlaneEngine(portable=portable).decode(bytes(broken), nbytes)) == nbytes
            except Corrupt:
                refused += 1
        for other in (1, nbytes - 1, nbytes + 1, 2 * nbytes):
            try:
                PlaneEngine(portable=portable).decode(payload, other)
            except Corrupt:
                refused += 1
    assert refused > 4000


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x20",  # reserved bits
        b"\x10\x00\x00\x01\x01\x00",  # a difference, without a base
        b"\x00\x10\x01\x01\x00",
        b"\x00\x00\x00\x01\x00",  # no elements
        b"\x00\x03\x81\x20\x01\x00",  # 4097 of 8 bytes
        b"\x00\x00\x01\x05",  # a mode
        b"\x00\x00\x01\x04\x02\x10",  # no plane above
        b"\x00\x00\x01\x03\x09\x01",  # nine contexts
        b"\x00\x00\x01\x03\x02\x00",  # rows of nothing
        b"\x00\x00\x01\x03\x02\x90\x00",  # a longer form
        b"\x00\x00\x01\x02\x05\x04",  # a table that ends before it begins
        b"\x00\x00\x01\x02\x00\x00\xff\x1f",  # frequencies of less than 4096
        b"\x00\x00\x01\x02\x00\x00\x80\x20\xff\xff\x7f",  # words
        b"\x00\x00\x01\x01\x00\x00",  # a byte too many
    ],
)
def test_payloads_that_are_none(payload: bytes) -> None:
    for portable in (False, True):
        with pytest.raises(Corrupt):
            PlaneEngine(portable=portable).decode(payload, 100)


def frame_of_numbers() -> bytes:
    header = (
        b"\x93NUMPY\1\0\x76\0"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (60, 50)}".ljust(117)
        + b"\n"
    )
    original = header + gaussian(12_000, (F32,))
    frame = lmcodec.compress(original, 1)
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    assert Method.TENSOR in [block.method for block in info.blocks]
    assert lmcodec.decompress(frame) == original
    return frame


def test_flips_and_cuts_of_frames() -> None:
    frame = frame_of_numbers()
    original = lmcodec.decompress(frame)
    source = random.Random(5)
    for _ in range(300):
        broken = bytearray(frame)
        at = source.randrange(len(broken))
        broken[at] ^= 1 << source.randrange(8)
        with pytest.raises(LmcodecError):
            lmcodec.decompress(bytes(broken))
        with pytest.raises(LmcodecError):
            lmcodec.decompress(frame[:at])
    assert lmcodec.decompress(frame) == original


def test_limits_hold_before_anything_is_allocated() -> None:
    frame = frame_of_numbers()
    with pytest.raises(LimitExceeded, match="memory"):
        lmcodec.decompress(frame, memory_limit=1 << 20)
    with pytest.raises(LimitExceeded, match="max_output"):
        lmcodec.decompress(frame, max_output=5000)
    block = Block(Method.TENSOR, 1 << 24, 10, last=True)
    bomb = lmcodec.compress(b"")[:6] + block.pack(b"", b"0123456789")
    with pytest.raises(LimitExceeded, match="memory"):
        lmcodec.decompress(bomb, memory_limit=memory_nbytes(1 << 23))
    with pytest.raises(Corrupt):
        lmcodec.decompress(bomb)


def test_work_that_is_cancelled_ends() -> None:
    data = gaussian(1 << 24, (BF16,))
    payload = PlaneEngine((BF16,), 0).encode(data)
    for work in (lambda e: e.encode(data), lambda e: e.decode(payload, len(data))):
        engine = PlaneEngine((BF16,), 0)
        engine.cancel = cancel = _kernel.Cancel()
        cancel.set()
        begin = time.monotonic()
        with pytest.raises(_kernel.Cancelled):
            work(engine)
        assert time.monotonic() - begin < 5


# The choice of the method


def test_repetitions_are_for_other_methods() -> None:
    numbers = Numbers((F32,))
    once = gaussian(4096, (F32,))
    assert judge_numbers(gaussian(1 << 20, (F32,)), numbers).by_planes
    assert not judge_numbers(once * 200, numbers).by_planes
    assert not judge_numbers(np.arange(100_000, dtype="<i4").tobytes(), Numbers((Field(4),))).by_planes
    assert not judge_numbers(b"12", numbers).by_planes


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAY = np.frombuffer(gaussian(3_000_000, (F32,)), "<f4")[:749_000].reshape(7000, 107)


@pytest.mark.parametrize("level", [1, 2, 3, 6, 9])
def test_every_level_finds_numbers(level: int) -> None:
    data = npy(ARRAY[:400])
    frame = lmcodec.compress(data, level)
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    assert [block.method for block in info.blocks][1:] == [Method.TENSOR]
    assert lmcodec.decompress(frame) == data


def test_threads_pieces_and_the_way_of_coming_change_no_byte() -> None:
    data = npy(ARRAY)
    frames = {lmcodec.compress(data, 1, threads=threads, block_size=1 << 19) for threads in (1, 2, 3)}
    compressor = lmcodec.Compressor(1, block_size=1 << 19, content_size=len(data))
    pieces = [compressor.compress(data[at : at + 77_777]) for at in range(0, len(data), 77_777)]
    frames.add(b"".join([*pieces, compressor.flush()]))
    assert len(frames) == 1
    (frame,) = frames
    assert lmcodec.decompress(frame, threads=3) == data
    with lmcodec.open(io.BytesIO(frame)) as file:
        for at in (len(data) - 9, 0, 1_234_567, 128):
            file.seek(at)
            assert file.read(4321) == data[at : at + 4321]


def test_numbers_that_repeat_take_no_language_model() -> None:
    data = npy(np.tile(ARRAY[:8], (60, 1)))
    info = lmcodec.frame_info(lmcodec.compress(data, 6))
    assert info.blocks is not None
    assert [block.method for block in info.blocks][1:] == [Method.CM]


@pytest.mark.parametrize("options", [{"method": "cm"}, {"method": "stored"}])
def test_a_method_that_is_asked_for_is_the_only_one(options: dict[str, Any]) -> None:
    data = npy(ARRAY[:100])
    info = lmcodec.frame_info(lmcodec.compress(data, 1, **options))
    assert info.blocks is not None
    assert Method.TENSOR not in [block.method for block in info.blocks]


@pytest.mark.parametrize("step", [1000, 4096, 50_001])
@pytest.mark.parametrize("solid", [False, True])
def test_flushes_within_numbers(step: int, solid: bool) -> None:
    data = npy(ARRAY[:120]) + b"and text after it, " * 20
    compressor = lmcodec.Compressor(1, solid=solid, block_size=1 << 16)
    out, restored = b"", lmcodec.Decompressor()
    for at in range(0, len(data), step):
        piece = compressor.compress(data[at : at + step], compressor.FLUSH_BLOCK)
        assert restored.decompress(piece) == data[at : at + step]
        out += piece
    assert lmcodec.decompress(out + compressor.flush()) == data


def test_solid_frames_go_on_after_numbers() -> None:
    text = b"Text before and after numbers. " * 100
    data = npy(ARRAY[:300]) + text * 3
    frame = lmcodec.compress(data, 2, solid=True, block_size=2048)
    assert lmcodec.decompress(frame) == data


def test_many_threads_at_once() -> None:
    data = npy(ARRAY[:1000])
    frame = lmcodec.compress(data, 1)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(3):
            if lmcodec.compress(data, 1) != frame or lmcodec.decompress(frame) != data:
                wrong.append("other bytes")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
