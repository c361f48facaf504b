"""Bits per byte: agreement with real frames and with the network, over files, documents and processes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_vocabulary
from integer_models import random_model
from test_lm_codec import NOISE, TEXT, NeverSmaller, model_file, run, tiny_model, with_profiles  # noqa: F401
from test_trace import HOW, KIB, MIXED, ROWS

import lmcodec
from lmcodec import engine
from lmcodec.codec import Compressor, compress
from lmcodec.lm import store
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.measure import processes
from lmcodec.measure.bpb import Measurement, Meter, bits_per_byte
from lmcodec.measure.processes import Outcome, Task, measure_all
from lmcodec.measure.texts import Documents, Problem, find_files
from lmcodec.measure.trace import surprisal, trace


@pytest.fixture(autouse=True)
def _tiny(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    for name in ("LMCODEC_LEVEL", "LMCODEC_ISA", "LMCODEC_CODER"):
        monkeypatch.delenv(name, raising=False)


# Figures


@pytest.mark.parametrize("how", HOW, ids=str)
def test_figures_agree_with_frames_and_traces(how: dict[str, Any]) -> None:
    found = bits_per_byte(MIXED, **how)
    traced = trace(MIXED, **how)
    assert found.nbytes == len(MIXED)
    assert found.frame_nbytes == len(compress(MIXED, **how))
    assert found.mix_bits is not None
    # A trace has the coder's rounding in it, some 10^-4 bits a decision.
    assert 0 <= traced.bits.sum() - found.mix_bits < 1e-3 * 9 * len(MIXED)
    assert found.frame_bpb == 8 * found.frame_nbytes / len(MIXED)
    assert found.mix_bpb == found.mix_bits / len(MIXED)
    assert found.gap_bpb == pytest.approx(found.frame_bpb - found.mix_bpb)
    if how.get("level", 6) < 3 or how.get("method") in ("cm", "stored"):
        assert (found.n_token, found.network_bits, found.network_bpb, found.bits_per_token) == (None,) * 4
        return
    assert found.network_bits is not None
    assert found.n_token is not None
    assert found.n_token >= len(traced.token_id)
    assert found.bits_per_token == found.network_bits / found.n_token
    alone = bits_per_byte(MIXED, **how, network_only=True)
    assert (alone.frame_nbytes, alone.mix_bits, alone.frame_bpb, alone.mix_bpb, alone.gap_bpb) == (None,) * 5
    assert alone.n_token == found.n_token
    if not how.get("solid"):  # blocks of a chain begin in the middle of a document
        assert alone.network_bits == pytest.approx(found.network_bits, rel=1e-12)


def test_the_networks_figure_is_what_its_blocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block is coded with it, and where it is not."""
    apart = bits_per_byte(TEXT).network_bits
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    traced = trace(TEXT)
    assert [b.method for b in traced.blocks] == ["lm+cm"]
    assert bits_per_byte(TEXT).network_bits == pytest.approx(traced.lm_bits.sum(), rel=1e-12)
    assert apart == pytest.approx(traced.lm_bits.sum(), rel=1e-12)


def test_surprisal_is_the_traces_bits() -> None:
    for how in HOW[1:5]:
        found = lmcodec.surprisal(np.frombuffer(MIXED, np.uint8), **how)
        assert found.shape == (len(MIXED),)
        assert found.dtype == np.float64
        assert (found == trace(MIXED, **how).bits).all()
    assert surprisal(b"").shape == (0,)
    assert (surprisal(NOISE, 1) == 8).all()


def uniform(model: IntegerModel) -> IntegerModel:
    """The model, all of whose tokens are equally likely."""
    zero = np.zeros_like(model.head.weight)
    bias = None if model.head.bias is None else np.zeros_like(model.head.bias)
    return replace(model, head=replace(model.head, weight=zero, bias=bias))


@pytest.mark.parametrize("streams", [1, 4])
def test_a_uniform_model_takes_log2_of_its_vocabulary(
    tmp_path: Path, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of V takes log2(V) bits to within 0.05 %, and exactly where the vocabulary is the 256 bytes.

    Stretches are rounded to 1/256, which changes a decision's odds by a factor of e^(1/512) at most and its
    length by 0.0029 bits, up or down; and where a stream ends, no decision says that the token does. With the
    bytes alone every decision is even: nothing is rounded, nothing is left out.
    """
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    path = tmp_path / "uniform.lmm"
    path.write_bytes(recurrent_file.pack(uniform(with_profiles(tiny_model()))))
    found = bits_per_byte(TEXT, model=path, streams=streams)
    assert found.n_token is not None
    assert found.n_token < 0.9 * len(TEXT)
    assert found.bits_per_token == pytest.approx(math.log2(300), rel=5e-4)
    bytes_only = make_vocabulary([])
    made = random_model(3, vocab_size=256, dim=24, n_layer=1, recurrent=19, mlp=20)
    path.write_bytes(recurrent_file.pack(uniform(with_profiles(replace(made, vocabulary=bytes_only)))))
    found = bits_per_byte(TEXT, model=path, streams=streams)
    assert (found.n_token, found.network_bits) == (len(TEXT), 8.0 * len(TEXT))
    assert (trace(TEXT, model=path, streams=streams).lm_bits == 8).all()


def test_a_model_without_profiles_is_measured_alone(tmp_path: Path, model_file: Path) -> None:  # noqa: F811
    path = tmp_path / "bare.lmm"
    path.write_bytes(recurrent_file.pack(tiny_model()))
    found = bits_per_byte(TEXT, model=path)
    assert found == bits_per_byte(TEXT, model=model_file, network_only=True)
    assert found.frame_bpb is None
    with pytest.raises(lmcodec.Unsupported, match="no profile"):
        surprisal(TEXT, model=path)
    # Method lm needs none.
    found = bits_per_byte(TEXT, model=path, method="lm")
    assert found.frame_nbytes == len(compress(TEXT, model=path, method="lm"))
    assert surprisal(TEXT, model=path, method="lm").sum() == pytest.approx(found.mix_bits, rel=1e-3)


def test_an_empty_text() -> None:
    found = bits_per_byte(b"")
    assert found == Measurement(0, 0, len(compress(b"")), 0.0, 0.0)
    assert found.frame_bpb is not None
    assert math.isnan(found.frame_bpb)
    assert found.bits_per_token is not None
    assert math.isnan(found.bits_per_token)


def test_sums() -> None:
    a, b = Measurement(5, 2, 9, 7.5, 8.25), Measurement(3, 1, 4, 0.5, 0.25)
    assert a + b == Measurement(8, 3, 13, 8.0, 8.5)
    assert a + replace(b, network_bits=None) == Measurement(8, 3, 13, 8.0, None)


def test_wrong_arguments() -> None:
    for how, error in (
        ({"level": 10}, ValueError),
        ({"level": 2, "model": "small"}, ValueError),
        ({"level": 2, "network_only": True}, ValueError),
        ({"block_size": "4M"}, TypeError),
        ({"streams": 0}, ValueError),
        ({"groups": 2}, ValueError),
        ({"threads": 0}, ValueError),
        ({"model": "no such model"}, lmcodec.ModelNotFound),
        ({"method": "zip"}, ValueError),
        ({"method": "lm", "level": 2}, ValueError),
        ({"method": "cm", "model": "small"}, ValueError),
        ({"method": "cm", "network_only": True}, ValueError),
    ):
        for function in (bits_per_byte, surprisal):
            if function is bits_per_byte or "network_only" not in how:
                with pytest.raises(error):
                    function(TEXT, **how)
    with pytest.raises(TypeError, match="bytes-like"):
        bits_per_byte("text")


# A meter


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    at = 0
    while at < len(data):
        n = rng.choice([1, 7, 400, 3000])
        yield data[at : at + n]
        at += n


@pytest.mark.parametrize("network_only", [False, True])
def test_one_meter_measures_many_texts(network_only: bool) -> None:
    """Each as a fresh meter does, in whatever pieces it comes; also after a text that could not be read."""
    how: dict[str, Any] = {"block_size": KIB, "streams": 2, "network_only": network_only}
    meter = Meter(**how)
    texts = [MIXED, TEXT[:1500], b"", ROWS, MIXED]
    for seed, text in enumerate(texts):
        assert meter.measure(pieces(text, seed)) == Meter(**how).measure([text])

        def breaks(text: bytes = text) -> Iterator[bytes]:
            yield text[:2500]
            raise OSError("cannot be read")

        with pytest.raises(OSError, match="cannot be read"):
            meter.measure(breaks())


def test_content_size_is_what_the_frame_says() -> None:
    for content_size in (None, len(MIXED)):
        packer = Compressor(1, block_size=KIB, content_size=content_size)
        packed = packer.compress(MIXED) + packer.flush()
        found = Meter(1, block_size=KIB).measure([MIXED], content_size=content_size)
        assert found.frame_nbytes == len(packed)
    with pytest.raises(ValueError, match="content_size"):
        Meter(1).measure([MIXED], content_size=7)


def test_a_meter_holds_a_few_blocks_of_a_text() -> None:
    taken = done = most = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken, most
        for _ in range(40):
            taken += KIB
            most = max(most, taken - done)
            yield NOISE[:KIB]

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes

    found = Meter(1, block_size=KIB, threads=1).measure(endless(), progress=progress)
    assert found.nbytes == taken == done == 40 * KIB
    assert most <= 4 * KIB


# Texts


def test_documents() -> None:
    """What zero bytes separate, however the text comes; empty ones are none."""
    rng = random.Random(1)
    for _ in range(400):
        data = bytes(rng.choice(b"\0\0ab") for _ in range(rng.randrange(14)))
        n = rng.randrange(1, 6)
        expected = [document for document in data.split(b"\0") if document]
        for skip in (False, True):
            file = io.BytesIO(data)
            found = [
                b"" if skip and number % 2 else b"".join(document)
                for number, document in enumerate(Documents(partial(file.read, n)))
            ]
            assert found == [b"" if skip and i % 2 else d for i, d in enumerate(expected)]


def test_find_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/b.txt", "a/c/d.txt", "a/.hidden", "a/e.md", "x[1].txt", "x1.txt", "link-me"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    Path("empty/inside").mkdir(parents=True)
    if hasattr(os, "symlink"):
        os.symlink("../link-me", "a/link")
    joined = os.path.join

    def found(*operands: str) -> list[str | Problem]:
        return list(find_files(operands))

    folder = [joined("a", ".hidden"), joined("a", "b.txt"), joined("a", "e.md"), joined("a", "c", "d.txt")]
    assert found("a") == folder
    assert found("-", "x1.txt", "a") == ["-", "x1.txt", *folder]
    assert found(joined("a", "**", "*.txt")) == [joined("a", "b.txt"), joined("a", "c", "d.txt")]
    assert found(joined("a", "*")) == sorted(str(p) for p in Path("a").glob("[!.]*") if p.is_file())
    assert found("x[1].txt", "x?.txt") == ["x[1].txt", "x1.txt"]
    assert found("no such") == ["no such"]  # for who opens it to say
    assert found("no*such") == [Problem("no*such", "matches no file")]
    assert found("empty") == [Problem("empty", "holds no file")]


# Processes

OPTIONS: dict[str, Any] = {"level": 3, "block_size": KIB, "threads": 1}


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    made = []
    for i, text in enumerate([TEXT[:1500], MIXED, b"", b"\0".join([TEXT[:700], ROWS[:900], b"", b"x"])]):
        path = tmp_path / f"{i}.txt"
        path.write_bytes(text)
        made.append(Task(str(path)))
    shares = [Task(made[3].path, True, share, 2) for share in (0, 1)]
    return [*made, *shares, Task(str(tmp_path / "none")), Task(str(tmp_path))]


def test_processes_find_what_one_finds(tasks: list[Task]) -> None:
    seen: list[int] = []
    here = measure_all(tasks, OPTIONS, progress=seen.append)
    there_seen: list[int] = []
    assert measure_all(tasks, OPTIONS, n_process=2, progress=there_seen.append) == here
    assert sorted(there_seen) == sorted(seen)
    assert sum(seen) == sum(m.nbytes for outcome in here for _, m in outcome.texts)
    assert [number for outcome in here[4:6] for number, _ in outcome.texts] == [0, 2, 1]
    assert [outcome.error for outcome in here[:6]] == [None] * 6
    assert [outcome.error for outcome in here[6:]] == ["No such file or directory", "Is a directory"]
    assert here[1].texts[0][1] == Meter(**OPTIONS).measure([MIXED])


def test_a_process_that_dies_takes_its_text_along(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    dies = f"""
import os
import lmcodec.measure.processes as processes
real = processes.measure_task
processes.measure_task = lambda m, t, s: os._exit(3) if t.path == {tasks[1].path!r} else real(m, t, s)
processes.serve(json.loads(sys.argv[2]))"""
    program = processes._PROGRAM
    monkeypatch.setattr(processes, "_PROGRAM", program[: program.rindex("from ")] + dies)
    some = tasks[:3]
    here = measure_all(some, OPTIONS)
    here[1] = Outcome(error="the process that measured it ended by status 3 (--jobs 1 needs less memory)")
    assert measure_all(some, OPTIONS, n_process=2) == here


def test_a_process_ends_with_its_asker(tasks: list[Task]) -> None:
    command = processes._Process(OPTIONS)._command
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = child.communicate(json.dumps(tasks[0]).encode() + b"\n", timeout=60)
    assert child.returncode == 0
    assert all(json.loads(line) is not None for line in out.splitlines())


def test_processes_are_the_same_package(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program put another folder with an lmcodec first on its path, such as the source folder."""
    (tmp_path / "lmcodec").mkdir()
    (tmp_path / "lmcodec" / "__init__.py").write_bytes(b"raise ImportError('the wrong one')")
    monkeypatch.syspath_prepend(tmp_path)
    assert measure_all(tasks, OPTIONS, n_process=2) == measure_all(tasks, OPTIONS)


# Command line


def test_measure_agrees_with_compress_to_the_byte(
    model_file: Path,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for i, text in enumerate([TEXT, MIXED, NOISE]):
        (tmp_path / f"{i}.txt").write_bytes(text)
    small = ["--block-size", "1K"]
    alone = ["--method", "lm", "--model", model_file]
    for options in (["--level", "1"], ["--model", model_file], small, [*small, "--solid"], alone):
        assert run("measure", "--json", *options, tmp_path) == 0
        found = json.loads(capfd.readouterr().out)
        for entry in found["files"]:
            level = [f"-{options[1]}"] if options[0] == "--level" else options
            assert run("compress", "-f", *level, entry["file"]) == 0
            packed = Path(entry["file"] + ".lmz")
            assert entry["frame_nbytes"] == packed.stat().st_size
            packed.unlink()
        assert found["total"]["frame_nbytes"] == sum(entry["frame_nbytes"] for entry in found["files"])
        with_model = found["total_with_model"]
        if options[0] == "--level":
            assert with_model is found["model"] is None
        else:
            assert found["model"]["nbytes"] == model_file.stat().st_size
            assert with_model["frame_nbytes"] == found["total"]["frame_nbytes"] + model_file.stat().st_size


def test_forms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Table, JSON and CSV say the same of files, of documents and in total."""
    documents = [TEXT[:900], ROWS[:800], TEXT[900:1000]]
    (tmp_path / "many").write_bytes(b"\0".join(documents) + b"\0")
    (tmp_path / "one").write_bytes(ROWS)
    assert run("measure", "--split-documents", "--json", tmp_path) == 0
    found = json.loads(capfd.readouterr().out)
    many, one = found["files"]
    expected = [Meter().measure([document]) for document in documents]
    assert [d["frame_nbytes"] for d in many["documents"]] == [m.frame_nbytes for m in expected]
    assert many["nbytes"] == sum(map(len, documents))
    whole = reduce(add, [*expected, Meter().measure([ROWS])])
    assert found["total"]["nbytes"] == whole.nbytes
    assert found["total"]["network_bpb"] == pytest.approx(whole.network_bpb, abs=1e-6)
    assert run("measure", "--split-documents", "--csv", tmp_path) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    kinds = [row["kind"] for row in rows]
    assert kinds == ["document"] * 3 + ["file", "document", "file", "total", "total_with_model"]
    for row, figures in zip(
        rows,
        [*many["documents"], many, *one["documents"], one, found["total"], found["total_with_model"]],
        strict=True,
    ):
        figures = {key: str(value) for key, value in figures.items() if key not in ("file", "documents")}
        assert {key: row[key] for key in figures} == figures
    assert run("measure", "--split-documents", tmp_path) == 0
    head, *lines = capfd.readouterr().out.splitlines()
    assert head.split() == ["Documents", "Bytes", "Tokens", "Frame", "bpb", "Mix", "Gap", "Network", "File"]
    assert lines[0].split()[:2] == ["3", f"{many['nbytes']:,}"]
    assert lines[2].split()[4] == f"{found['total']['frame_bpb']:.4f}"
    assert "with the model's" in lines[3]
    assert run("measure", "--network-only", tmp_path) == 0
    assert capfd.readouterr().out.splitlines()[0].split() == ["Bytes", "Tokens", "Network", "File"]
    assert run("measure", "--level", "1", tmp_path / "one") == 0
    head, *lines = capfd.readouterr().out.splitlines()
    assert head.split() == ["Bytes", "Frame", "bpb", "Mix", "Gap", "File"]
    assert len(lines) == 1


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(TEXT)
    Path("folder").mkdir()
    Path("empty").write_bytes(b"")
    wrong = ["none", "folder", "n*ne"]
    if Path("/proc/self/mem").exists():
        wrong.append("/proc/self/mem")
    assert run("measure", "--level", "1", *wrong, "empty", "text", "text") == 1
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2  # a file that is named twice is measured once
    assert sorted(line.split(": ")[1] for line in err.splitlines()) == sorted([*wrong, "empty"])
    assert run("measure", "--json", "--level", "1", *wrong, "text") == 1
    assert sorted(f["file"] for f in json.loads(capfd.readouterr().out)["failed"]) == sorted(wrong)
    assert run("measure", "--level", "1", "empty") == 2
    assert capfd.readouterr().out == ""
    for form in ("--json", "--csv"):
        assert run("measure", form, "--level", "1", "none") == 1
    found, heading, *rows = capfd.readouterr().out.rpartition("kind,file,")
    assert json.loads(found)["total"] is None
    assert heading == "kind,file,"  # of a table that is empty
    assert len("".join(rows).splitlines()) == 1
    for options, part in (
        (["--level", "2", "--model", "small"], "--model does not go together with --level 2"),
        (["--level", "1", "--network-only"], "--network-only does not go together with --level 1"),
        (["--model", "none"], "none: neither a shipped model"),
        (["--method", "lm", "--level", "2"], "--method lm does not go together with --level 2"),
        (["--method", "cm", "--network-only"], "--network-only does not go together with --method cm"),
        (["--method", "stored", "--model", "small"], "--model does not go together with --method stored"),
    ):
        assert run("measure", *options, "text") == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert part in line
    assert run("measure", "--json", "--csv", "text") == 1


def test_a_model_without_profiles_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.lmm").write_bytes(recurrent_file.pack(tiny_model()))
    (tmp_path / "text").write_bytes(TEXT)
    assert run("measure", "--model", tmp_path / "bare.lmm", tmp_path / "text") == 0
    out, err = capfd.readouterr()
    assert "no profile" in err
    assert out.splitlines()[0].split() == ["Bytes", "Tokens", "Network", "File"]


def test_jobs(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcodec.cli import measure as command

    monkeypatch.setattr(command, "_SEVERAL_NBYTES", 100)
    (tmp_path / "a").write_bytes(b"\0".join(TEXT[i : i + 300] for i in range(0, 1800, 300)))
    (tmp_path / "b").write_bytes(MIXED)
    outs = []
    for jobs in (1, 2):
        for options in (["--split-documents", tmp_path / "a"], [tmp_path]):
            assert run("measure", "--level", "3", "--json", "--jobs", jobs, *options) == 0
            outs.append(capfd.readouterr().out)
    assert outs[:2] == outs[2:]


def test_standard_input_and_a_closed_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-m", "lmcodec", "measure", "--level", "1"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LMCODEC")}
    done = subprocess.run([*command, "--json"], input=TEXT, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["files"]
    assert (entry["file"], entry["frame_nbytes"]) == ("(stdin)", len(compress(TEXT, 1)))
    if os.name == "posix":
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*command, "-"], input=TEXT, stdout=write, stderr=subprocess.PIPE, env=environment
        )
        os.close(write)
        assert done.returncode == -13
        assert done.stderr == b""
