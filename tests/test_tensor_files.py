"""Files of tensors are recognised by what they hold, checked strictly, and compressed whatever they hold."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcodec
from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, LmcodecError, Truncated, Unsupported
from lmcodec.frame import Method
from lmcodec.tensor_files import gguf, safetensors
from lmcodec.tensor_files.layout import Tensor, record_nbytes
from lmcodec.tensor_files.recognise import format_of, parse, recognise


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda at, nbytes: data[at : at + nbytes]


def safetensors_file(header: Any, data: bytes = b"", text: str = "") -> bytes:
    packed = (text or json.dumps(header)).encode()
    return len(packed).to_bytes(8, "little") + packed + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.05


def gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(
    infos: list[tuple[str, list[int], int, int]], data: bytes, keys: list[bytes] | None = None
) -> bytes:
    """Infos: name, dimensions (fastest first), type, offset."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys or [])) + b"".join(keys or [])
    for name, shape, kind, offset in infos:
        head += gguf_text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + data


def methods(frame: bytes) -> list[Method]:
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    return [block.method for block in info.blocks]


# What is recognised


def test_safetensors_tensors_lie_where_the_format_says() -> None:
    weight = normal(30, 40)
    header = {
        "__metadata__": {"a": "b"},
        "w": entry("F32", [30, 40], 0, 4800),
        "odd": entry("F4", [7], 4800, 4804),
    }
    data = safetensors_file(header, weight.tobytes() + b"1234")
    name, tensors = parse(reader(data), len(data))
    begin = len(data) - 4804
    assert name == "safetensors"
    assert [(t.name, t.dtype, t.shape, t.offset - begin, t.nbytes) for t in tensors] == [
        ("w", "F32", (30, 40), 0, 4800),
        ("odd", "F4", (7,), 4800, 4),
    ]
    assert tensors[0].row_nbytes == 160
    assert tensors[1].layout is None  # of a type that is not known: bytes


def test_gguf_blocks_are_those_of_the_gguf_package() -> None:
    package = pytest.importorskip("gguf")
    for number, (name, n_element, layout) in gguf.TYPES.items():
        kind = package.GGMLQuantizationType(number)
        assert (kind.name, package.GGML_QUANT_SIZES[kind]) == (name, (n_element, record_nbytes(layout)))


def test_gguf_tensors_of_a_file_that_the_gguf_package_wrote(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_array("names", ["one", "two"])
    writer.add_array("sizes", [1, 2, 3])
    writer.add_tensor("w", normal(8, 64))
    writer.add_tensor("h", normal(5, 32, seed=1).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    name, tensors = parse(reader(data), len(data))
    assert name == "GGUF"
    assert [(t.name, t.dtype, t.shape) for t in tensors] == [("w", "F32", (8, 64)), ("h", "F16", (5, 32))]
    assert data[tensors[0].offset : tensors[0].end] == normal(8, 64).tobytes()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">u2", "|i1", "|b1", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(dtype: str, order: Any) -> None:
    array = np.asarray(normal(20, 30) * 50, order=order).astype(dtype, order="K")
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    name, (tensor,) = parse(reader(data), len(data))
    assert (name, tensor.shape, tensor.nbytes, tensor.is_fortran) == (
        "npy",
        (20, 30),
        array.nbytes,
        order == "F",
    )
    assert data[tensor.offset : tensor.end] == array.tobytes("A")
    assert tensor.row_nbytes == array.nbytes // (30 if order == "F" else 20)
    assert lmcodec.decompress(lmcodec.compress(data, 1)) == data


def test_npz_members_that_are_stored_count() -> None:
    file = io.BytesIO()
    np.savez(file, a=normal(40, 50), b=np.arange(7))
    data = file.getvalue()
    name, tensors = parse(reader(data), len(data))
    assert (name, [t.name for t in tensors]) == ("npz", ["a", "b"])
    file = io.BytesIO()
    np.savez_compressed(file, a=normal(40, 50))
    assert recognise(reader(file.getvalue()), len(file.getvalue())) is None


def test_a_structured_array_is_records_of_fields() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(50, [("x", "<f4"), ("y", ">i2", (3,)), ("z", "S5")]))
    _, (tensor,) = parse(reader(file.getvalue()))
    assert tensor.layout is not None
    assert [tuple(f) for f in tensor.layout] == [
        (4, True, False, 1),
        (2, False, True, 3),
        (1, False, False, 5),
    ]


def test_pickles_are_bytes_and_it_is_said_why() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", b"cos\nsystem\n")
        archive.writestr("model/data/0", normal(100, 100).tobytes())
    for data in (file.getvalue(), pickle.dumps({"w": [1.0] * 50}, 4)):
        found = recognise(reader(data), len(data))
        assert found is not None
        assert found.regions(1 << 20) == []
        assert "unpickling" in found.describe()
        assert lmcodec.decompress(lmcodec.compress(data, 1)) == data


def test_names_say_nothing(tmp_path: Path) -> None:
    text = b"A text that is called as a model is. " * 30
    assert recognise(reader(text), len(text)) is None
    assert Method.TENSOR not in methods(lmcodec.compress(text, 1))


# What is refused


HOSTILE_SAFETENSORS = {
    "overlaps": ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456", "overlap"),
    "a gap": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 4, 6)}, b"123456", "no tensor's"),
    "a gap first": ({"a": entry("U8", [2], 2, 4)}, b"1234", "no tensor's"),
    "bytes after": ({"a": entry("U8", [2], 0, 2)}, b"1234", "the file has"),
    "beyond the end": ({"a": entry("U8", [9], 0, 9)}, b"1234", "the file has"),
    "an overflow of shapes": ({"a": entry("F32", [2**31, 2**31, 2**31], 0, 4)}, b"1234", "more elements"),
    "one that wraps to the size": ({"a": entry("U8", [2**63, 2], 0, 0)}, b"", "shape"),
    "an overflow of offsets": ({"a": entry("U8", [4], 2**64, 2**64 + 4)}, b"1234", "places"),
    "a negative size": ({"a": entry("U8", [-4], 0, 4)}, b"1234", "shape"),
    "a size that is true": ({"a": {**entry("U8", [1], 0, 1), "shape": [True]}}, b"1", "shape"),
    "a size that is a float": ({"a": {**entry("U8", [1], 0, 1), "shape": [1.0]}}, b"1", "shape"),
    "another size than its shape's": ({"a": entry("F32", [2], 0, 4)}, b"1234", "take 8 bytes, not 4"),
    "an end before its begin": ({"a": entry("U8", [0], 4, 0)}, b"1234", "before its begin"),
    "too many dimensions": ({"a": entry("U8", [1] * 100, 0, 1)}, b"1", "dimensions"),
    "three offsets": ({"a": {**entry("U8", [1], 0, 1), "data_offsets": [0, 1, 2]}}, b"1", "places"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1", "expected dtype"),
    "another member": ({"a": {**entry("U8", [1], 0, 1), "x": 1}}, b"1", "expected dtype"),
    "a dtype that is a number": ({"a": {**entry("U8", [1], 0, 1), "dtype": 3}}, b"1", "dtype"),
    "an entry that is a list": ({"a": [1]}, b"", "expected dtype"),
}


@pytest.mark.parametrize("name", HOSTILE_SAFETENSORS)
def test_hostile_safetensors(name: str) -> None:
    """One clear line from the reader of tensors; compressed as bytes all the same."""
    header, data, message = HOSTILE_SAFETENSORS[name]
    file = safetensors_file(header, data)
    with pytest.raises(Corrupt, match=message) as raised:
        parse(reader(file), len(file))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    found = recognise(reader(file), len(file))
    assert found is not None
    assert message in found.describe()
    assert lmcodec.decompress(lmcodec.compress(file, 1)) == file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": %s, "a": %s}', "twice"),
        ('{"a": {"dtype": "U8", "dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}', "twice"),
        ("{" * 9, "not JSON"),
        ('{"a": ' + "[" * 100_000 + "}", "not JSON"),
        ('{"a": 1' + "0" * 9999 + "}", "not JSON|expected dtype"),
        ('{"a": NaN}', "expected dtype"),
        ("{}x", "not JSON"),
    ],
)
def test_hostile_json(text: str, message: str) -> None:
    text = text.replace("%s", json.dumps(entry("U8", [0], 0, 0)))
    file = safetensors_file(None, text=text)
    with pytest.raises(Corrupt, match=message) as raised:
        parse(reader(file), len(file))
    assert len(str(raised.value)) < 300
    assert lmcodec.decompress(lmcodec.compress(file, 1)) == file


def test_a_header_that_says_it_is_huge_costs_nothing() -> None:
    file = (1 << 39).to_bytes(8, "little") + b'{"a"' + bytes(1000)
    tracemalloc.start()
    with pytest.raises(LimitExceeded, match="16777216"):
        parse(reader(file), len(file))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    cut = safetensors_file({"a": entry("U8", [4], 0, 4)})[:20]
    with pytest.raises(Truncated):
        parse(reader(cut), len(cut))
    assert lmcodec.decompress(lmcodec.compress(file, 1)) == file


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), Unsupported, "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), Unsupported, "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), Corrupt, "which no file has"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**20, 0), Truncated, "within a field"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), Corrupt, "a string"),
        (gguf_file([], b"", [gguf_text("k") + struct.pack("<I", 77)]), Corrupt, "type 77"),
        (
            gguf_file([], b"", [gguf_text("k") + struct.pack("<IIQ", 9, 4, 2**61)]),
            LmcodecError,
            "GGUF header",
        ),
        (
            gguf_file([], b"", [gguf_text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9]),
            Corrupt,
            "type 9",
        ),
        (
            gguf_file([], b"", [gguf_text("general.alignment") + struct.pack("<II", 4, 0)]),
            Corrupt,
            "alignment",
        ),
        (gguf_file([("w", [2**40, 2**40], 0, 0)], b""), Corrupt, "more elements"),
        (gguf_file([("w", [4], 0, 0)], b"1234"), Corrupt, "the file has"),
        (gguf_file([("w", [1], 0, 2**63)], b"1234"), Corrupt, "begins at"),
        (gguf_file([("w", [33], 2, 0)], bytes(99)), Corrupt, "whole blocks"),
        (gguf_file([("w", [1], 0, 0), ("w", [1], 0, 32)], bytes(99)), Corrupt, "named"),
        (gguf_file([("v", [2], 0, 0), ("w", [1], 0, 4)], bytes(99)), Corrupt, "overlap"),
        (gguf_file([("w", [1] * 9, 0, 0)], bytes(9)), Corrupt, "9 dimensions"),
    ],
)
def test_hostile_gguf(file: bytes, error: type[LmcodecError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        parse(reader(file), len(file))
    assert "\n" not in str(raised.value)
    assert lmcodec.decompress(lmcodec.compress(file, 1)) == file


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode("latin-1") + data


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"), Unsupported, "not one of numbers"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"), Corrupt, "takes 12 bytes, 0"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}"), Corrupt, "shape"),
        (npy("{'descr': '<f4', 'fortran_order': 1, 'shape': (3,)}"), Corrupt, "order"),
        (npy("{'descr': '<f4', 'shape': (3,)}"), Corrupt, "expected descr"),
        (
            npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}"),
            Corrupt,
            "more elements",
        ),
        (npy("__import__('os').system('true')"), Corrupt, "no dictionary"),
        (npy("(" * 5000), Corrupt, "no dictionary"),
        (b"\x93NUMPY\1\0\xff\xff", Corrupt, "begin"),
        (b"\x93NUMPY\1\0\xff\xff{}{}", Truncated, "are there"),
        (b"\x93NUMPY\7\0\xff\xff{}{}", Unsupported, "version 7"),
    ],
)
def test_hostile_npy(file: bytes, error: type[LmcodecError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(reader(file), len(file))
    assert lmcodec.decompress(lmcodec.compress(file, 1)) == file


def test_other_data_holds_no_tensors() -> None:
    with pytest.raises(BadMagic, match="safetensors, GGUF"):
        parse(reader(b"text"), 4)
    assert format_of(b"") is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damaged_headers_raise_nothing_else(seed: int) -> None:
    source = random.Random(seed)
    file = io.BytesIO()
    np.savez(file, a=normal(4, 5), b=np.arange(7))
    good = [
        safetensors_file({"a": entry("F32", [2, 3], 0, 24), "b": entry("I8", [5], 24, 29)}, bytes(29)),
        gguf_file(
            [("v", [32], 2, 0), ("w", [4], 0, 32)], bytes(64), [gguf_text("k") + struct.pack("<II", 4, 1)]
        ),
        file.getvalue(),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(12)),
    ]
    data = bytearray(source.choice(good))
    for _ in range(source.randint(1, 4)):
        data[source.randrange(min(len(data), 200))] = source.randrange(256)
    del data[source.randint(8, len(data)) :]
    with contextlib.suppress(LmcodecError):
        parse(reader(bytes(data)), len(data))
    found = recognise(reader(bytes(data)), len(data))
    for region in [] if found is None else found.regions(1 << 20):
        assert 0 <= region.offset < region.end <= len(data)


# How it is cut


def cut(shapes: list[tuple[str, list[int], int]], block_nbytes: int) -> list[tuple[int, int, int]]:
    header, at = {}, 0
    for i, (dtype, shape, nbytes) in enumerate(shapes):
        header[f"t{i}"] = entry(dtype, shape, at, at + nbytes)
        at += nbytes
    data = safetensors_file(header, bytes(at))
    found = recognise(reader(data), len(data))
    assert found is not None
    first = len(data) - at
    return [(r.offset - first, r.nbytes, r.piece_nbytes) for r in found.regions(block_nbytes)]


def test_each_tensor_has_blocks_of_its_own() -> None:
    large = ("F32", [1000, 100], 400_000)
    assert cut([large, large], 1 << 20) == [(0, 400_000, 400_000), (400_000, 400_000, 400_000)]
    # Pieces are whole rows, of one length.
    assert cut([large], 1 << 18) == [(0, 400_000, 200_000)]
    # Small neighbours of one type share a block; what is smaller yet is bytes like others.
    small = ("F32", [300], 1200)
    assert cut([small, small, large, ("I64", [1], 8)], 1 << 20) == [(0, 2400, 2400), (2400, 400_000, 400_000)]


def test_tensor_is_a_value() -> None:
    assert Tensor("a", "F32", (2, 3), 0, 24).row_nbytes == 12
    assert Tensor("a", "F32", (0, 3), 0, 0).row_nbytes == 0
    assert safetensors.header_nbytes(b"\2\0\0\0\0\0\0\0{") == 2
