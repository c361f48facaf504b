"""Tensors that are coded against those of another file."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import format_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcodec
from lmcodec import _kernel
from lmcodec.codec.base import Base
from lmcodec.errors import BadMagic, ConfigError, Corrupt, LmcodecError, ModelNotFound
from lmcodec.frame import ExtensionType, FrameHeader, base_of
from lmcodec.planes import PlaneEngine
from lmcodec.tensor_files.layout import Field


def file_of(arrays: dict[str, tuple[str, np.ndarray]]) -> bytes:
    header, at = {}, 0
    for name, (dtype, array) in arrays.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for _, a in arrays.values())


def bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.astype("<f4").view("<u4") >> 16).astype("<u2")


def checkpoints() -> tuple[bytes, bytes]:
    """One, and a later one: a tensor more, one that is new, one that is as it was."""
    source = np.random.default_rng(1)
    weight, half = source.standard_normal((300, 100)) * 0.05, source.standard_normal((100, 90))
    frozen, other = source.standard_normal((50, 60)), source.standard_normal((200, 40))
    before = {
        "w": ("F32", weight.astype("<f4")),
        "h": ("BF16", bfloat16(half)),
        "frozen": ("F16", frozen.astype("<f2")),
        "other": ("F32", other.astype("<f4")),
    }
    after = {
        "new": ("F32", source.standard_normal((10, 30)).astype("<f4")),
        "h": ("BF16", bfloat16(half + source.standard_normal(half.shape) * 1e-3)),
        "w": ("F32", (weight + source.standard_normal(weight.shape) * 1e-4).astype("<f4")),
        "frozen": ("F16", frozen.astype("<f2")),
        "other": ("F32", source.standard_normal((200, 40)).astype("<f4")),
    }
    return file_of(before), file_of(after)


BEFORE, AFTER = checkpoints()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "before.safetensors"
    path.write_bytes(BEFORE)
    return path


@pytest.mark.parametrize("level", [1, 2, 6])
@pytest.mark.parametrize("block_size", [None, 1 << 14])
def test_comes_back_and_is_smaller(level: int, block_size: int | None, base: Path) -> None:
    frame = lmcodec.compress(AFTER, level, base=base, block_size=block_size)
    assert lmcodec.decompress(frame, base=base) == AFTER
    assert len(frame) < 0.8 * len(lmcodec.compress(AFTER, level, block_size=block_size))
    data = base_of(lmcodec.frame_info(frame).extensions)
    assert data is not None
    assert data.startswith(Base(base).digest)


def test_by_the_format_alone(base: Path) -> None:
    frame = lmcodec.compress(AFTER, 1, base=base)
    assert reference.decode(frame, None, BEFORE) == AFTER
    with pytest.raises(reference.FormatError, match="another base"):
        reference.decode(frame, None, AFTER)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.booleans(),
    st.binary(min_size=24, max_size=900),
    st.integers(0, 99),
)
def test_any_numbers_against_any(width: int, is_float: bool, is_big: bool, data: bytes, seed: int) -> None:
    near = bytearray(data)
    source = random.Random(seed)
    for _ in range(source.randrange(9)):
        near[source.randrange(len(near))] = source.choice([0, 127, 128, 255, source.randrange(256)])
    layout = (Field(width, is_float, is_big), Field(1, length=3))

    def view(at: int, nbytes: int) -> memoryview:
        assert at == 77
        return memoryview(near)[:nbytes]

    payload = PlaneEngine(layout, base_at=77, base=view).encode(data)
    assert PlaneEngine(base=view).decode(payload, len(data)) == data
    assert PlaneEngine(base=view, portable=True).decode(payload, len(data)) == data
    assert reference.decode_numbers(payload, len(data), bytes(77) + bytes(near)) == data
    with pytest.raises(Corrupt, match="names none"):
        PlaneEngine().decode(payload, len(data))


def test_a_base_that_is_missing_or_another(base: Path, tmp_path: Path) -> None:
    frame = lmcodec.compress(AFTER, 1, base=base)
    other = tmp_path / "other.safetensors"
    other.write_bytes(BEFORE[:-1] + b"x")
    shorter = tmp_path / "shorter"
    shorter.write_bytes(BEFORE[:-1])
    for file, message in [
        (None, "name it with base="),
        (other, "is not the file"),
        (shorter, "is not the file"),
    ]:
        with pytest.raises(ModelNotFound, match=message) as raised:
            lmcodec.decompress(frame, base=file)
        assert "\n" not in str(raised.value)
        assert Base(base).digest.hex() in str(raised.value)


def test_what_cannot_be_a_base(base: Path, tmp_path: Path) -> None:
    for name, data, error, message in [
        ("text", b"a text", BadMagic, "the base .*text: no tensors"),
        ("empty", b"", ConfigError, "is empty"),
        ("lmz", lmcodec.compress(BEFORE, 1), ConfigError, "is compressed"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error, match=message):
            lmcodec.compress(AFTER, 1, base=tmp_path / name)
    with pytest.raises(FileNotFoundError):
        lmcodec.compress(AFTER, 1, base=tmp_path / "missing")
    with pytest.raises(ValueError, match="makes no sense"):
        lmcodec.compress(AFTER, 1, base=base, method="cm")


def test_a_frame_that_needs_no_base_names_none(base: Path) -> None:
    text = b"No tensors at all. " * 50
    frame = lmcodec.compress(text, 1, base=base)
    assert frame == lmcodec.compress(text, 1)


def test_files_seek_and_tensors(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "after.lmz"
    with lmcodec.open(path, "wb", level=1, base=base) as file:
        file.write(AFTER)
    with lmcodec.open(path, base=base) as file:
        file.seek(len(AFTER) - 500)
        assert file.read() == AFTER[-500:]
        file.seek(100)
        assert file.read(60_000) == AFTER[100:60_100]
    with lmcodec.tensors.open(path, base=base) as tensors:
        assert tensors["w"].tobytes() in AFTER
    with lmcodec.tensors.open(path) as tensors, pytest.raises(ModelNotFound, match="base="):
        tensors["w"]


def test_a_frame_that_names_no_base_has_no_differences(base: Path) -> None:
    """Nor does a place beyond the base's end, or a field of another form, do harm."""
    frame = lmcodec.compress(AFTER, 1, base=base)
    info = lmcodec.frame_info(frame)
    rest = frame[info.header_nbytes :]
    bare = FrameHeader(info.content_size, None, True).pack()
    with pytest.raises(Corrupt, match="names none"):
        lmcodec.decompress(bare + rest, base=base)
    for data in (b"", bytes(32), bytes(33) + b"\1"):
        field = [e.__class__(ExtensionType.BASE, data, True) for e in info.extensions]
        with pytest.raises(LmcodecError):
            lmcodec.decompress(
                FrameHeader(info.content_size, None, True, tuple(field)).pack() + rest, base=base
            )
    payload = _kernel.encode_planes(
        np.zeros(80, np.uint8), np.zeros(80, np.uint8), [(4, True, False, 1)], base_at=len(BEFORE) - 79
    )
    with pytest.raises(Corrupt, match="its base has"):
        PlaneEngine(base=Base(base).view).decode(payload, 80)


def test_flips(base: Path) -> None:
    frame = lmcodec.compress(AFTER, 1, base=base)
    source, opened = random.Random(2), Base(base)
    for _ in range(150):
        broken = bytearray(frame)
        broken[source.randrange(len(broken))] ^= 1 << source.randrange(8)
        with pytest.raises(LmcodecError):
            lmcodec.decompress(bytes(broken), base=opened)


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "lmcodec", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_commands(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "after.safetensors"
    path.write_bytes(AFTER)
    made = run("compress", "-1", "-v", "--verify", "--base", base, path)
    assert made.returncode == 0, made.stderr
    assert "safetensors: 5 tensors" in made.stderr
    packed = f"{path}.lmz"
    missing = run("test", packed)
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert "--base FILE" in missing.stderr
    assert run("test", "--base", base, packed).returncode == 0
    wrong = run("test", "--base", path, packed)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "base" in run("list", packed).stdout
    assert Base(base).digest.hex() in run("list", "-v", packed).stdout
    assert Base(base).digest.hex() in run("list", "--json", packed).stdout
    absent = run("test", "--base", tmp_path / "absent", packed)
    assert (absent.returncode, absent.stderr.count("\n")) == (1, 1)
    path.unlink()
    assert run("decompress", "--base", base, packed).returncode == 0
    assert path.read_bytes() == AFTER
    assert run("decompress", "-f", "--salvage", "--base", base, packed).returncode == 0
    assert path.read_bytes() == AFTER
