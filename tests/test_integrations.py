"""Other libraries with `.lmz`: each hook as its users use it, with the real library where it is installed."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import lmcodec
from lmcodec import integrations
from lmcodec.frame import MAGIC
from lmcodec.integrations import log_files
from lmcodec.lm.folder import complete_file

LINES = "".join(f"line {i}: é\n" for i in range(200))


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_lines(name: str = "lines.txt.lmz", encoding: str = "utf-8") -> str:
    with lmcodec.open(name, "wt", level=1, encoding=encoding, newline="") as file:
        file.write(LINES)
    return name


def text_of(name: str, encoding: str = "utf-8") -> str:
    with lmcodec.open(name, "rt", encoding=encoding, newline="") as file:
        return file.read()


def run_python(code: str, *arguments: str) -> str:
    """In a process of its own: what libraries import there may warn."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# Registering


def test_registering_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="not with nope"):
        integrations.register("nope")
    with pytest.raises(ValueError, match="with nothing"):
        integrations.register()
    with pytest.raises(TypeError, match="colour: no such option"):
        integrations.register("shutil", colour=3)
    with pytest.raises(ValueError, match="level must be"):
        integrations.register("shutil", level=10)
    with pytest.raises(TypeError, match="zarr takes no options"):
        integrations.register("zarr", level=2)


def test_the_package_loads_no_library() -> None:
    libraries = "{'fsspec', 'smart_open', 'numcodecs', 'zarr', 'joblib', 'datasets', 'numpy', 'tarfile'}"
    loaded = run_python(f"import sys, lmcodec.integrations; print({libraries} & {{*sys.modules}})")
    assert loaded == "set()\n"


def test_entry_points_lead_to_the_codecs() -> None:
    found = {e.group: e for e in entry_points(name="lmcodec") if e.group.endswith(".codecs")}
    if not found:
        pytest.skip("lmcodec is not installed")
    for group, library in (("numcodecs.codecs", "numcodecs"), ("zarr.codecs", "zarr")):
        pytest.importorskip(library)
        assert found[group].load().__name__ == "LmcodecCodec"


# fsspec


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_fsspec_infers_text(encoding: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    integrations.register("fsspec", level=1)
    with fsspec.open("a.txt.lmz", "wt", compression="infer", encoding=encoding, newline="") as file:
        file.write(LINES)
    assert Path("a.txt.lmz").read_bytes().startswith(MAGIC)
    assert text_of("a.txt.lmz", encoding) == LINES
    with fsspec.open("a.txt.lmz", "rt", compression="infer", encoding=encoding, newline="") as file:
        assert file.read() == LINES
    with fsspec.open("a.txt.lmz", "at", compression="lmcodec", encoding=encoding, newline="") as file:
        file.write("more\n")
    assert text_of("a.txt.lmz", encoding) == LINES + "more\n"


def test_fsspec_closes_the_file_beneath() -> None:
    """What is uploaded when it is closed would stay where it is, where only the compressed file is kept."""
    fsspec = pytest.importorskip("fsspec")
    integrations.register("fsspec", level=1)
    file = fsspec.open("memory://under/x.lmz", mode="wb", compression="infer").open()
    file.write(b"text" * 100)
    file.close()
    with fsspec.open("memory://under/x.lmz", mode="rb", compression="infer") as read:
        assert read.read() == b"text" * 100
        assert read.seekable()


def test_fsspec_keeps_the_limits() -> None:
    fsspec = pytest.importorskip("fsspec")
    integrations.register("fsspec", max_output=100)
    write_lines()
    with fsspec.open("lines.txt.lmz", compression="infer") as file, pytest.raises(lmcodec.LimitExceeded):
        file.read()
    integrations.register("fsspec")


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")
def test_pandas_reads_and_writes() -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("fsspec")
    integrations.register("fsspec", level=1)
    frame = pandas.DataFrame({"n": range(20), "text": ["a, b"] * 20})
    url, storage = f"local://{Path.cwd() / 'table.csv.lmz'}", {"compression": "infer"}
    frame.to_csv(url, index=False, storage_options=storage)
    assert Path("table.csv.lmz").read_bytes().startswith(MAGIC)
    assert pandas.read_csv(url, storage_options=storage).equals(frame)
    with lmcodec.open("table.csv.lmz") as file:
        assert pandas.read_csv(file).equals(frame)


def test_dask_reads_in_threads_and_processes() -> None:
    pytest.importorskip("dask.bag")
    write_lines()
    code = """
import functools, dask, dask.bag, lmcodec.integrations
if __name__ == "__main__":
    lmcodec.integrations.register("fsspec", level=1)
    bag = dask.bag.read_text("lines.txt.lmz", compression="infer")
    initializer = functools.partial(lmcodec.integrations.register, "fsspec")
    with dask.config.set({"multiprocessing.initializer": initializer, "num_workers": 1}):
        print(bag.count().compute(scheduler="processes"))
    bag.to_textfiles("part-*.txt.lmz", compression="infer", scheduler="threads")
"""
    Path("count.py").write_text(code, "utf-8")
    run = subprocess.run([sys.executable, "count.py"], capture_output=True, text=True, encoding="utf-8")
    assert (run.stdout, run.returncode) == ("200\n", 0), run.stderr
    assert (
        text_of("part-0.txt.lmz").splitlines()
        == [piece for line in LINES.splitlines() for piece in (line, "")][: 2 * len(LINES.splitlines()) - 1]
    )


def test_datasets_reads_and_streams() -> None:
    pytest.importorskip("datasets")
    write_lines()
    with lmcodec.open("records.jsonl.lmz", "wt", level=1) as file:
        file.writelines(json.dumps({"text": f"record {i}"}) + "\n" for i in range(5))
    code = """
import lmcodec.integrations
lmcodec.integrations.register("datasets")
from datasets import load_dataset
print(len(load_dataset("text", data_files="lines.txt.lmz", cache_dir="cache")["train"]))
print(load_dataset("json", data_files="records.jsonl.lmz", cache_dir="cache")["train"][4]["text"])
streamed = load_dataset("json", data_files="records.jsonl.lmz", streaming=True, cache_dir="cache")
print([record["text"] for record in streamed["train"]][-1])
"""
    assert run_python(code) == "200\nrecord 4\nrecord 4\n"


# smart_open


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_smart_open(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    smart_open = pytest.importorskip("smart_open")
    integrations.register("smart_open", level=1)
    integrations.register("smart_open", level=2)
    assert caplog.records == []  # no warning of the handler that was there
    with smart_open.open("a.txt.lmz", "w", encoding=encoding, newline="") as file:
        file.write(LINES)
    assert text_of("a.txt.lmz", encoding) == LINES
    assert lmcodec.frame_info(Path("a.txt.lmz").read_bytes()).blocks[0].profile == 2  # type: ignore[index]
    with smart_open.open("a.txt.lmz", encoding=encoding, newline="") as file:
        assert file.read() == LINES
    with smart_open.open("a.txt.lmz", mode="rb") as file:
        assert file.readline() == "line 0: é\n".encode(encoding) or encoding == "utf-16"


@pytest.mark.parametrize("library", ["fsspec", "smart_open"])
@pytest.mark.parametrize("mode", ["w", "wb"])
@pytest.mark.parametrize("ends", ["", "1 / 0", "f.me = f; del f"], ids=["end", "exception", "cycle"])
def test_what_nobody_closes_is_written(library: str, mode: str, ends: str) -> None:
    pytest.importorskip(library)
    text = mode == "w"
    how = {"encoding": "utf-8"} if text else {}
    infer = ".open()" if library == "fsspec" else ""
    options = how | ({"compression": "infer"} if library == "fsspec" else {})
    code = f"""
import {library}, lmcodec.integrations
lmcodec.integrations.register({library!r}, level=1)
f = {library}.open("a.lmz", {mode!r}, **{options!r}){infer}
f.write({("text" if text else b"text")!r} * 1000)
{ends}
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert (run.returncode != 0) == (ends == "1 / 0"), run.stderr
    assert lmcodec.decompress(Path("a.lmz").read_bytes()) == b"text" * 1000


# numcodecs, zarr


def test_numcodecs() -> None:
    numcodecs = pytest.importorskip("numcodecs")
    numpy = pytest.importorskip("numpy")
    integrations.register("numcodecs")
    codec = numcodecs.get_codec({"id": "lmcodec", "level": 1})
    array = numpy.arange(1000, dtype="<i4").reshape(10, 100)
    coded = codec.encode(array)
    assert bytes(coded).startswith(MAGIC)
    out = numpy.empty_like(array)
    codec.decode(coded, out)
    assert (out == array).all()
    assert bytes(codec.decode(coded)) == array.tobytes()
    assert bytes(codec.decode(codec.encode(b""))) == b""
    assert numcodecs.get_codec(json.loads(json.dumps(codec.get_config()))) == codec
    assert codec.get_config() == {"id": "lmcodec", "level": 1}
    with pytest.raises(lmcodec.LimitExceeded):
        codec.decode(coded, numpy.empty(10, "u1"))
    with pytest.raises(ValueError, match="has 4000 bytes, the buffer given for it 5000"):
        codec.decode(coded, numpy.empty(5000, "u1"))
    with pytest.raises(lmcodec.Corrupt):
        codec.decode(coded[:-30] + b"\xff" + coded[-29:])
    with pytest.raises(ValueError, match="level must be"):
        numcodecs.get_codec({"id": "lmcodec", "level": 0})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version: int) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    numpy = pytest.importorskip("numpy")
    integrations.register("numcodecs", "zarr")
    chosen: Any = {"name": "lmcodec", "configuration": {"level": 1}}
    if version == 2:
        from lmcodec.integrations.numcodecs import LmcodecCodec

        chosen = LmcodecCodec(level=1)
    values = numpy.arange(400).reshape(20, 20)
    array = zarr.create_array(
        "a.zarr", shape=values.shape, chunks=(10, 10), dtype="i8", zarr_format=version, compressors=chosen
    )
    array[:] = values
    assert (zarr.open_array("a.zarr", mode="r")[:] == values).all()
    chunks = [path for path in Path("a.zarr").rglob("*") if path.is_file() and path.name[0] != "."]
    assert sum(path.read_bytes().startswith(MAGIC) for path in chunks) == 4


# joblib


def test_joblib() -> None:
    joblib = pytest.importorskip("joblib")
    integrations.register("joblib", level=1)
    value = {"text": LINES, "list": list(range(100))}
    joblib.dump(value, "value.lmz")
    joblib.dump(value, "value.bin", compress=("lmcodec", 2))
    for name in ("value.lmz", "value.bin"):
        assert Path(name).read_bytes().startswith(MAGIC)
        assert joblib.load(name) == value


# tarfile, shutil


@pytest.fixture
def tree() -> Path:
    for name in ("a.txt", "inner/b.txt", "inner/c.bin"):
        path = Path("tree", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3000)
    return Path("tree")


@pytest.mark.parametrize("mode", ["w", "w|", "x", "w:lmz"])
def test_tarfile_open(tree: Path, mode: str) -> None:
    with lmcodec.tarfile_open("t.tar.lmz", mode, level=1, format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree)
    for how in ("r", "r|"):
        with lmcodec.tarfile_open("t.tar.lmz", how) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        assert found == {p.as_posix(): p.read_bytes() for p in tree.rglob("*.*")}
    with lmcodec.open("t.tar.lmz") as file, tarfile.open(fileobj=file) as plain:  # the two lines
        assert "tree/a.txt" in plain.getnames()
    with open("t.tar.lmz", "rb") as under:
        with lmcodec.tarfile_open(under) as tar:
            assert tar.getmember("tree/inner/b.txt").size == 3000 * len("inner/b.txt")
        assert not under.closed


def test_tarfile_open_refuses() -> None:
    for mode in ("a", "r:gz", "", "rb"):
        with pytest.raises(ValueError, match="mode must be"):
            lmcodec.tarfile_open("t.tar.lmz", mode)
    with lmcodec.open("t.tar.lmz", "wb", level=1) as file:
        file.write(b"no tar file" * 100)
    with pytest.raises(tarfile.ReadError):
        lmcodec.tarfile_open("t.tar.lmz")
    os.rename("t.tar.lmz", "moved")  # it is closed
    with lmcodec.tarfile_open("t.tar.lmz", "x", level=1), pytest.raises(FileExistsError):
        lmcodec.tarfile_open("t.tar.lmz", "x")


@pytest.fixture
def lmztar() -> Iterator[None]:
    integrations.register("shutil", level=1)
    integrations.register("shutil", level=1)
    yield
    shutil.unregister_archive_format("lmztar")
    shutil.unregister_unpack_format("lmztar")


@pytest.mark.usefixtures("lmztar")
def test_shutil_packs_and_unpacks(tree: Path) -> None:
    for _ in range(2):  # the second archive does not hold the first
        name = shutil.make_archive(str(tree / "archive"), "lmztar", tree)
        assert name == str(Path("tree/archive.tar.lmz").absolute())
        shutil.unpack_archive(name, "out")
        assert {p.relative_to("out").as_posix() for p in Path("out").rglob("*.*")} == {
            "a.txt",
            "inner/b.txt",
            "inner/c.bin",
        }
    assert Path("out/inner/b.txt").read_bytes() == Path("tree/inner/b.txt").read_bytes()
    assert sorted(os.listdir(tree)) == ["a.txt", "archive.tar.lmz", "inner"]
    name = shutil.make_archive("part", "lmztar", base_dir="tree/inner")
    with lmcodec.tarfile_open(name) as tar:
        assert tar.getnames() == ["tree/inner", "tree/inner/b.txt", "tree/inner/c.bin"]


@pytest.mark.usefixtures("lmztar")
def test_shutil_leaves_no_half_archive(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("whole.tar.lmz").write_bytes(b"what was there")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(OSError, match="no space left"):
        shutil.make_archive("whole", "lmztar", tree)
    assert sorted(os.listdir()) == ["tree", "whole.tar.lmz"]
    assert Path("whole.tar.lmz").read_bytes() == b"what was there"


@pytest.mark.usefixtures("lmztar")
def test_shutil_refuses_what_lands_elsewhere() -> None:
    with lmcodec.tarfile_open("evil.tar.lmz", "w", level=1) as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    if hasattr(tarfile, "data_filter"):
        with pytest.raises(tarfile.FilterError):
            shutil.unpack_archive("evil.tar.lmz", "out")
    assert not Path("outside").exists()
    Path("no.tar.lmz").write_bytes(b"plain")
    with pytest.raises(shutil.ReadError, match="not lmcodec data"):
        shutil.unpack_archive("no.tar.lmz", "out")


# logging


def handler_named(name: str, **options: Any) -> logging.handlers.RotatingFileHandler:
    handler = logging.handlers.RotatingFileHandler(name, maxBytes=2000, backupCount=20, encoding="utf-8")
    return log_files.compress_rotated(handler, **options)


def records(n: int) -> Iterator[logging.LogRecord]:
    for i in range(n):
        yield logging.makeLogRecord({"msg": f"record {i}: something happened"})


def rotated(name: str) -> list[str]:
    """All records, the oldest first."""
    older = sorted(Path.cwd().glob(f"{name}.*"), key=lambda path: -int(path.name.split(".")[2]))
    texts = []
    for path in older:
        data = path.read_bytes()
        texts.append(lmcodec.decompress(data) if path.suffix == ".lmz" and data[:4] == MAGIC else data)
    return [*b"".join(texts).decode().splitlines(), *Path(name).read_text("utf-8").splitlines()]


def test_rotated_logs_are_compressed() -> None:
    handler = handler_named("app.log", level=2)
    for record in records(200):
        handler.handle(record)
    handler.close()
    assert rotated("app.log") == [f"record {i}: something happened" for i in range(200)]
    older = [path for path in os.listdir() if path != "app.log"]
    assert len(older) >= 3
    assert all(name.endswith(".lmz") and Path(name).read_bytes()[:4] == MAGIC for name in older)


def test_timed_logs_are_compressed_and_the_oldest_removed() -> None:
    handler = logging.handlers.TimedRotatingFileHandler("app.log", when="S", backupCount=2)
    log_files.compress_rotated(handler)
    for i in range(4):
        handler.handle(logging.makeLogRecord({"msg": f"record {i}"}))
        handler.rolloverAt -= 3600  # an hour is over; the rotated file's name says so
        Path(f"app.log.2020-01-0{i + 1}_00-00-00.lmz").write_bytes(b"")
    handler.close()
    older = [name for name in os.listdir() if name != "app.log"]
    assert all(name.endswith(".lmz") for name in older)
    assert len(older) <= 4


def test_a_log_that_cannot_be_compressed_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(log_files.shutil, "copyfileobj", fail)
    handler = handler_named("app.log")
    for record in records(200):
        handler.handle(record)
    handler.close()
    said = capsys.readouterr().err
    assert "moved to" in said
    assert "no space left" in said
    assert "Traceback" not in said
    assert rotated("app.log") == [f"record {i}: something happened" for i in range(200)]


def test_a_rotated_log_has_its_sources_mode_and_times() -> None:
    Path("a.log").write_bytes(b"secret\n")
    os.chmod("a.log", 0o600)
    os.utime("a.log", (10**9, 10**9))
    log_files.rotator("a.log", "a.log.1.lmz")
    status = os.stat("a.log.1.lmz")
    assert status.st_mtime == 10**9
    assert os.name != "posix" or status.st_mode & 0o777 == 0o600
    assert not Path("a.log").exists()
    log_files.rotator("a.log", "a.log.1.lmz")  # nothing to rotate: what is there stays
    assert text_of("a.log.1.lmz") == "secret\n"


def test_files_are_complete_or_not_there() -> None:
    def interrupted() -> None:
        with complete_file("x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir() == []
    with complete_file("x") as file:
        file.write(b"whole")
        assert not Path("x").exists()
    assert Path("x").read_bytes() == b"whole"
