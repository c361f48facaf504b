"""Whatever computes the language model: the frames are the same, and each reads those of the others."""

from __future__ import annotations

import io
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_codec import _nothing_shipped, model_file  # noqa: F401

import lmcodec
from lmcodec.cli.lmz import main
from lmcodec.codec import Compressor, Decompressor, compress, decompress, frame_info
from lmcodec.engine import lm_memory_nbytes
from lmcodec.errors import ConfigError, Corrupt, LimitExceeded, LmcodecError
from lmcodec.frame import Method
from lmcodec.lm import executor as executors
from lmcodec.lm import interface, store
from lmcodec.lm.interface import DeviceSession
from lmcodec.lm.recurrent.executors import Reference

TEXT = b"The men and the walrus: what they said is not for the record. \xff\xfe " * 40 + bytes(range(256))
EXECUTORS = ["kernel", "numpy", "torch"]


def has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


HERE = EXECUTORS if has_torch() else EXECUTORS[:2]


@pytest.mark.parametrize(
    "how",
    [
        {"level": 3, "method": "lm+cm"},
        {"method": "lm", "streams": 5, "groups": 2},
        {"method": "lm+cm", "block_size": 1024, "threads": 3},
        {"method": "lm+cm", "block_size": 1024, "solid": True},
        {"method": "lm+cm", "threads": 1},
    ],
)
def test_frames_do_not_depend_on_the_executor(how: dict[str, Any], model_file: Path) -> None:  # noqa: F811
    frames = {compress(TEXT, model=model_file, executor=name, **how) for name in HERE}
    (frame,) = frames
    assert any(block.method >= Method.LM_CM for block in frame_info(frame).blocks or ())
    for name, threads in product(HERE, (1, 2)):
        assert decompress(frame, model=model_file, executor=name, threads=threads) == TEXT


@pytest.mark.parametrize("name", HERE)
def test_every_way_in_and_out_takes_it(name: str, model_file: Path) -> None:  # noqa: F811
    how: dict[str, Any] = {"model": model_file, "executor": name}
    compressor = Compressor(method="lm", **how)
    frame = compressor.compress(TEXT[:900]) + compressor.flush()
    assert frame == compress(TEXT[:900], method="lm", model=model_file)
    assert Decompressor(**how).decompress(frame) == TEXT[:900]
    target = io.BytesIO()
    with lmcodec.open(target, "wb", method="lm", **how) as file:
        file.write(TEXT[:900])
        file.flush()
        file.write(TEXT[900:1800])
    with lmcodec.open(io.BytesIO(target.getvalue()), **how) as file:
        assert file.read() == TEXT[:1800]


@pytest.mark.skipif(not has_torch(), reason="torch is not installed")
@pytest.mark.parametrize("method", ["lm", "lm+cm"])
def test_no_logits_leave_the_device_when_encoding(
    method: Any,
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = compress(TEXT, method=method, streams=3, model=model_file)
    monkeypatch.setitem(interface.SUM_ROWS, "cpu", 100)  # as on a GPU

    def refuse(self: DeviceSession, tokens: np.ndarray) -> np.ndarray:
        raise AssertionError("logits were asked for")

    monkeypatch.setattr(DeviceSession, "run", refuse)
    monkeypatch.setattr(DeviceSession, "step", refuse)
    assert compress(TEXT, method=method, streams=3, model=model_file, executor="torch") == expected


def test_each_is_loaded_once_by_itself(model_file: Path) -> None:  # noqa: F811
    source = store.find(model_file)
    loaded = [store.load(source, executor=name) for name in HERE]
    assert [model.executor for model in loaded] == HERE
    assert [store.load(source, executor=name) for name in HERE] == loaded
    assert len({model.model_id for model in loaded}) == 1
    kernel, outside = loaded[:2]
    assert kernel.may_be_helped
    assert not outside.may_be_helped
    # Memory is counted, and the limit holds.
    assert lm_memory_nbytes(outside, 1, 1000) > lm_memory_nbytes(kernel, 1, 1000)
    frame = compress(TEXT, method="lm", model=model_file)
    (block,) = frame_info(frame).blocks or ()
    limit = lm_memory_nbytes(kernel, None, len(TEXT)) + 2 * block.payload_nbytes
    assert decompress(frame, model=model_file, memory_limit=limit) == TEXT
    with pytest.raises(LimitExceeded, match="raise memory_limit"):
        decompress(frame, model=model_file, memory_limit=limit, executor="numpy")


def test_what_is_no_executor_is_refused(model_file: Path) -> None:  # noqa: F811
    for call in (lambda **how: compress(b"", **how), lambda **how: decompress(b"", **how)):
        with pytest.raises(ValueError, match="executor must be kernel, numpy, torch, torch-cuda, not 'gpu'"):
            call(executor="gpu")
        with pytest.raises(TypeError, match="executor must be a str, not int"):
            call(executor=1)
    with pytest.raises(ValueError, match="level 1 uses no language model: executor numpy has nothing to"):
        compress(TEXT, 1, executor="numpy")
    with pytest.raises(ValueError, match="method cm uses no language model: executor numpy has nothing to"):
        compress(TEXT, method="cm", executor="numpy")
    # What a frame needs is for the frame to say.
    assert decompress(compress(TEXT, 1), executor="numpy") == TEXT


def test_where_torch_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch, model_file: Path) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("torch", "torch-cuda"):
        with pytest.raises(ConfigError, match=f"^executor {name} needs PyTorch, which is not installed; pip"):
            compress(TEXT, model=model_file, executor=name)
        with pytest.raises(ConfigError, match="needs PyTorch"):
            Decompressor(executor=name)


def test_a_definition_that_answers_otherwise_is_refused(
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmcodec.lm.recurrent.reference.compute_known_answer", lambda model: "0" * 64)
    monkeypatch.setattr(store, "_loaded", {})
    with pytest.raises(Corrupt, match=r"fails its self-test: NumPy \S+ answers 0{16}, expected"):
        compress(TEXT, model=model_file, executor="numpy")


def test_an_error_of_an_executor_comes_through(
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: Reference, n_stream: int) -> None:
        raise LmcodecError("the device is gone")

    frame = compress(TEXT, method="lm", model=model_file)
    store.load(store.find(model_file), executor="numpy")
    monkeypatch.setattr(Reference, "session", fails)
    for threads in (1, 2):
        how: dict[str, Any] = {"model": model_file, "executor": "numpy", "threads": threads}
        with pytest.raises(LmcodecError, match="the device is gone"):
            compress(TEXT, method="lm", **how)
        with pytest.raises(LmcodecError, match="the device is gone"):
            decompress(frame, **how)


# The command line


def run(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_a_device_that_is_not_there_is_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(TEXT)
    assert run("--device", "cuda", "--model", model_file, *files) == 1
    line = r"lmz: --device cuda: executor torch-cuda needs a CUDA device, and PyTorch \S+ finds none here\n"
    assert re.fullmatch(line, capfd.readouterr().err)
    assert sorted(tmp_path.iterdir()) == files
    assert run("--device", "cpu", "--model", model_file, *files) == 0
    assert run("-d", "-c", "--device", "cuda", "--model", model_file, f"{files[0]}.lmz") == 1
    assert re.fullmatch(line, capfd.readouterr().err)
    assert run("-t", "--device", "cpu", "--model", model_file, f"{files[0]}.lmz") == 0
    assert run("--device", "cuda", "-1", "-f", files[0]) == 1
    expected = "lmz: --device cuda does not go together with -1, which uses no language model\n"
    assert capfd.readouterr().err == expected
    assert run("--device", "gpu", files[0]) == 1
    assert "'gpu' is not one of 'cpu', 'cuda'" in capfd.readouterr().err


def test_the_command_line_hands_it_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,  # noqa: F811
) -> None:
    """With a device of torch's in place of CUDA."""
    pytest.importorskip("torch")
    monkeypatch.setitem(executors.OF_DEVICE, "cuda", "torch")
    loaded: list[str] = []
    load = store._load

    def noted(source: store.Source, memory_limit: int | None, executor: str) -> store.Model:
        loaded.append(executor)
        return load(source, memory_limit, executor)

    monkeypatch.setattr(store, "_load", noted)
    monkeypatch.setattr(store, "_loaded", {})
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    assert run("--device", "cuda", "--method", "lm", "--verify", "--model", model_file, path) == 0
    packed = Path(f"{path}.lmz")
    assert packed.read_bytes() == compress(TEXT, method="lm", model=model_file)
    assert loaded == ["torch", "kernel"]
    monkeypatch.setattr(store, "_loaded", {})
    path.unlink()
    assert run("-d", "--device", "cuda", "--model", model_file, packed) == 0
    assert path.read_bytes() == TEXT
    assert loaded == ["torch", "kernel", "torch"]
