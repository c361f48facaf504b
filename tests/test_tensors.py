"""Tensors of compressed files, each read alone."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmcodec
from lmcodec import planes
from lmcodec.errors import BadMagic, Corrupt, LmcodecError
from lmcodec.frame import Method
from lmcodec.tensors import TensorFile, save

SOURCE = np.random.default_rng(7)
ARRAYS: dict[str, np.ndarray] = {
    "embed": SOURCE.standard_normal((300, 64)).astype(np.float32),
    "half": SOURCE.standard_normal((200, 50)).astype(np.float16),
    "wide": SOURCE.standard_normal((40, 50)),
    "ids": SOURCE.integers(-5, 5, (4000,)),
    "scalar": np.float32(3.5).reshape(()),
    "nothing": np.empty((0, 5), np.float32),
    "mask": SOURCE.random((333,)) < 0.5,
    "bits": (SOURCE.standard_normal((120, 90)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
    "eight": SOURCE.integers(20, 60, (70, 70)).astype(np.uint8),
    "norm": np.ones(64, np.float32),
}
DTYPES = {"bits": "BF16", "eight": "F8_E4M3"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "model.safetensors.lmz"
    save(path, ARRAYS, dtypes=DTYPES, metadata={"format": "np"}, level=1)
    return path


def check(file: TensorFile) -> None:
    assert list(file) == list(ARRAYS)
    assert len(file) == len(ARRAYS)
    for name, array in ARRAYS.items():
        assert file.shape(name) == array.shape
        found = file[name]
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()
        if name not in DTYPES:
            assert found.dtype == array.dtype
    assert (file.dtype("bits"), file.dtype("eight"), file.dtype("embed")) == ("BF16", "F8_E4M3", "F32")


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_arrays_come_back(path: Path, threads: int | None) -> None:
    with lmcodec.tensors.open(path, threads=threads) as file:
        assert file.format == "safetensors"
        check(file)
        assert "embed" in file
        assert "missing" not in file
        with pytest.raises(KeyError):
            file["missing"]
    with pytest.raises(ValueError, match="closed"):
        file["embed"]


def test_the_original_is_a_safetensors_file(path: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors")
    original = lmcodec.decompress(path.read_bytes())
    with lmcodec.open(path) as file:
        assert file.read() == original
    loaded = {name: bytes(tensor["data"]) for name, tensor in package.deserialize(original)}
    assert loaded == {name: array.tobytes() for name, array in ARRAYS.items()}
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(original)
    with lmcodec.tensors.open(plain) as uncompressed:
        check(uncompressed)
        kept = uncompressed["embed"]
    assert kept.sum() == ARRAYS["embed"].sum()
    assert not kept.flags.writeable


def test_a_tensor_is_read_without_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    plain = planes.PlaneEngine.decode_into

    def counted(self: Any, payload: Any, out: Any) -> None:
        decoded.append(len(out))
        plain(self, payload, out)

    monkeypatch.setattr(planes.PlaneEngine, "decode_into", counted)
    with lmcodec.tensors.open(path) as file:
        decoded.clear()
        assert file["half"].tobytes() == ARRAYS["half"].tobytes()
    assert decoded == [ARRAYS["half"].nbytes]


def test_damage_of_one_tensor_is_its_own(path: Path, tmp_path: Path) -> None:
    info = lmcodec.frame_info(path.read_bytes())
    assert info.blocks is not None
    at = info.header_nbytes
    data = bytearray(path.read_bytes())
    for block in info.blocks:
        if block.method == Method.TENSOR and block.original_nbytes == ARRAYS["half"].nbytes:
            data[at + block.nbytes // 2] ^= 4
        at += block.nbytes
    broken = tmp_path / "broken.lmz"
    broken.write_bytes(data)
    with lmcodec.tensors.open(broken) as file:
        with pytest.raises(Corrupt, match="block"):
            file["half"]
        assert file["embed"].tobytes() == ARRAYS["embed"].tobytes()


@pytest.mark.parametrize("options", [{"solid": True}, {"method": "cm"}, {"block_size": 1024}])
def test_other_frames_of_tensors_are_read_too(options: dict[str, Any], path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lmz"
    other.write_bytes(lmcodec.compress(lmcodec.decompress(path.read_bytes()), 1, **options))
    with lmcodec.tensors.open(other) as file:
        check(file)


def test_numpy_and_gguf_files(tmp_path: Path) -> None:
    array = np.asfortranarray(SOURCE.standard_normal((70, 90)))
    np.savez(tmp_path / "a.npz", first=array, second=np.arange(5000)[::-1])
    np.save(tmp_path / "a.npy", array.astype(">f4"))
    np.save(tmp_path / "s.npy", np.zeros(50, [("x", "<f4"), ("y", "<i2")]))
    for name in ("a.npz", "a.npy", "s.npy"):
        (tmp_path / f"{name}.lmz").write_bytes(lmcodec.compress((tmp_path / name).read_bytes(), 1))
    with lmcodec.tensors.open(tmp_path / "a.npz.lmz") as file:
        assert (file.format, [*file]) == ("npz", ["first", "second"])
        assert (file["first"] == array).all()
        assert (file["second"] == np.arange(5000)[::-1]).all()
    with lmcodec.tensors.open(tmp_path / "a.npy.lmz") as file:
        assert (file["array"] == array.astype(">f4")).all()
    with lmcodec.tensors.open(tmp_path / "s.npy.lmz") as file:
        assert file["array"].nbytes == 300


def test_files_of_something_else(tmp_path: Path) -> None:
    for name, data in [("text.lmz", lmcodec.compress(b"text")), ("text", b"a text"), ("empty", b"")]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LmcodecError, match=f"{name}: .*no tensors") as raised:
            lmcodec.tensors.open(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(BadMagic):
        lmcodec.tensors.open(tmp_path / "text")
    header = json.dumps({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}).encode()
    (tmp_path / "bad").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(Corrupt, match=r"bad: safetensors header: .* the file has"):
        lmcodec.tensors.open(tmp_path / "bad")


def test_flips_and_cuts(path: Path, tmp_path: Path) -> None:
    source = np.random.default_rng(8)
    good = path.read_bytes()
    broken = tmp_path / "broken.lmz"
    for _ in range(150):
        data = bytearray(good)
        if source.random() < 0.3:
            del data[int(source.integers(1, len(data))) :]
        else:
            data[int(source.integers(len(data)))] ^= 1 << int(source.integers(8))
        broken.write_bytes(data)
        try:
            with lmcodec.tensors.open(broken) as file:
                for name in file:
                    assert file[name].tobytes() == ARRAYS[name].tobytes()
        except LmcodecError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_threads_share_a_file(path: Path) -> None:
    wrong: list[str] = []
    with lmcodec.tensors.open(path, threads=2) as file:

        def work() -> None:
            wrong.extend(n for n in list(file) * 3 if file[n].tobytes() != ARRAYS[n].tobytes())

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        save(tmp_path / "a", {"w": np.array(["text"])})
    with pytest.raises(ValueError, match="float32 is not BF16"):
        save(tmp_path / "a", {"w": np.ones(3, np.float32)}, dtypes={"w": "BF16"})


def test_big_endian_and_strided_arrays_are_saved(tmp_path: Path) -> None:
    array = np.arange(20_000, dtype=">f4").reshape(100, 200)[::2, ::3]
    save(tmp_path / "a.lmz", {"w": array}, level=1)
    with lmcodec.tensors.open(tmp_path / "a.lmz") as file:
        assert (file["w"] == array).all()
