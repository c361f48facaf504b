"""The rental of a GPU machine: planned and run in miniature, with every failure that it must survive.

A machine is a folder with a copy of the tree and what a call carries. The trainer is the real one in the
end-to-end test, and a script that fails on command in the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import write_corpus

pytest.importorskip("torch")

import torch

from lmcodec.errors import ConfigError, LmcodecError
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint, shards
from lmcodec.train.corpus import CATEGORIES

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_run.py"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and signals of POSIX")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    return module


gpu_run = _load()

CONFIG = """
name = "tiny"
[model]
vocab_size = {size}
dim = 32
n_layer = 2
recurrent = 32
mlp = 48
[data]
vocab = "vocab.lmv"
lanes = 4
window = 32
validation_nbytes = 600
[optimiser]
warmup = 5
decay = 0.5
[run]
threads = 1
log_every = 5
compile = false
"""


def make_tree(folder: Path, corpora: Path, vocabulary: Vocabulary) -> Path:
    """A checkout with a configuration, a vocabulary and, ignored, token shards."""
    folder.mkdir()
    (folder / "vocab.lmv").write_bytes(vocabulary.pack())
    (folder / "tiny.toml").write_text(CONFIG.format(size=len(vocabulary)), encoding="utf-8")
    (folder / ".gitignore").write_text("/shards/\n", encoding="utf-8")
    list(shards.prepare(vocabulary, folder / "shards", corpora=corpora, processes=2))
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    corpora = write_corpus(tmp_path_factory.mktemp("more"), seed=3, n_document=120)
    return make_tree(tmp_path_factory.mktemp("trees") / "tree", corpora, vocabulary)


SMALL = (
    *("--device", "cpu", "--download-limit", "1", "--start-seconds", "2", "--reserve-seconds", "2"),
    *("--tail-seconds", "6", "--startup-seconds", "6", "--check-seconds", "12", "--validate-seconds", "1"),
    *("--speed", "1", "--preset", "1"),
)


def plan_in(tree: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The plan made by the command line in `tree`."""
    monkeypatch.chdir(tree)
    assert gpu_run.main(["plan", "tiny.toml", *SMALL, *arguments]) == 0
    return gpu_run.Plan.read(tree / "shards" / "gpu" / "common" / "plan.json")


# Planning.


def documents_in(folders: list[Path], vocabulary: Vocabulary, held: bool) -> dict[str, list[bytes]]:
    corpus = shards.load(folders, vocabulary, dict.fromkeys(CATEGORIES, 1.0))
    return {
        c: [
            d.tokens[d.start[i] : d.start[i + 1]].tobytes()
            for i in range(len(d.validation))
            if d.validation[i] == held
        ]
        for c, d in corpus.items()
    }


def test_parts_are_a_fair_sample_and_lose_no_document(
    tree: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_in(tree, monkeypatch, "--minutes", "2", "--commands", "2", "--upload-limit", "1")
    gpu = tree / "shards" / "gpu"
    assert sorted(p.name for p in gpu.iterdir()) == ["common", "part-1", "part-2", "rescue"]
    whole = documents_in([tree / "shards"], vocabulary, held=False)
    held = documents_in([tree / "shards"], vocabulary, held=True)
    assert any(held.values())
    parts = [gpu / "common", gpu / "part-1", gpu / "part-2"]
    assert documents_in(parts, vocabulary, held=True) == held
    assert {c: sorted(d) for c, d in documents_in(parts, vocabulary, held=False).items()} == {
        c: sorted(d) for c, d in whole.items()
    }
    first, second = (documents_in([p], vocabulary, held=False) for p in parts[1:])
    for c in CATEGORIES:
        sizes = [sum(map(len, part[c])) for part in (first, second)]
        assert 0.8 < sizes[0] / sizes[1] < 1.25
    # The calls are printed as they are to be made.
    printed = capsys.readouterr().out
    for command in plan.commands:
        assert f"carry: {' '.join(command.carry)}\n" in printed
        assert f"run --folder shards/gpu --command {command.number} --out" in printed
        assert f"timeout: {command.timeout} s" in printed
    assert "carry: shards/gpu/common shards/gpu/rescue shards/gpu/home" in printed


@pytest.mark.parametrize("limit", ["0.12", "0.2"])
def test_what_a_call_carries_fits_the_limit(
    tree: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    plan = plan_in(tree, monkeypatch, "--minutes", "2", "--commands", "2", "--upload-limit", limit)
    size = sum(n for n, _ in gpu_run.tree_files(tree))
    for command in plan.commands:
        carried = sum(p.stat().st_size for name in command.carry for p in (tree / name).iterdir())
        assert 0.7 * float(limit) < (size + carried) / 2**20 <= float(limit)
    taken = documents_in(
        [tree / c for command in plan.commands for c in command.carry[1:]], vocabulary, False
    )
    whole = documents_in([tree / "shards"], vocabulary, held=False)
    assert sum(map(len, taken.values())) < sum(map(len, whole.values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upload-limit", "0.01"], "upload limit of 0.01 MiB leaves no room for text: the tree has"),
        (["--upload-limit", "0.055"], "no document of category|does not fit"),
        (["--download-files", "1"], "download limits of 1 files of 1 MiB, 64 MiB in all, do not let it come"),
        (["--minutes", "0.5"], "leave a command no time to train"),
        (["--minutes", "0"], "larger than 0"),
        (["--commands", "0"], "at least 1"),
        (["--to", "../elsewhere"], "outside the tree"),
        (["--to", "shards"], "name another folder with --to"),
        (["--init", "no-export"], "no-export"),
        (["--shards", "nothing"], "no shards of category"),
        (["--set", "model.size=3"], "unknown key"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_clear_line(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tree)
    assert gpu_run.main(["plan", "tiny.toml", *SMALL, "--minutes", "2", *arguments]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


LIMITS = gpu_run.Limits(15, 10, 64 << 20, 8, 16 << 20, 64 << 20)
TIMES = gpu_run.Times(90, 5e6, 5e6, 30, 30, 25, 30, 90, 45, 2.5e6)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_time_of_a_rental_is_divided_and_nothing_is_left(n: int) -> None:
    commands = gpu_run.divide_time(LIMITS, TIMES, 14 << 20, [50 << 20] * n, 33_000_000)
    assert commands[0].before == pytest.approx(90 + (64 << 20) / 5e6)
    for a, b in pairwise(commands):
        assert b.before == pytest.approx(a.before + a.seconds + a.after)
        assert b.seconds > a.seconds - 30  # more text is there, more time goes to it
    last = commands[-1]
    assert last.before + last.seconds + last.after == pytest.approx(900)
    assert all(c.seconds <= 590 and c.timeout <= 600 for c in commands)
    assert last.after > 30


def test_commands_without_enough_time_are_refused() -> None:
    with pytest.raises(ConfigError, match="no time to train"):
        gpu_run.divide_time(LIMITS, TIMES, 14 << 20, [50 << 20] * 14, 33_000_000)


def test_text_is_taken_by_weight_as_far_as_there_is_some() -> None:
    available, packed = {"a": 100.0, "b": 1000.0, "c": 1000.0}, dict.fromkeys("abc", 0.5)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    taken, passes = gpu_run.choose_text(available, packed, weights, 350.0, 8000.0)
    assert taken == pytest.approx({"a": 100, "b": 200, "c": 400}, rel=1e-6)
    assert passes == pytest.approx(10)
    # No more than the time can use.
    taken, passes = gpu_run.choose_text(available, packed, weights, 1e6, 400.0)
    assert taken == pytest.approx({"a": 100, "b": 100, "c": 200}, rel=1e-6)
    assert passes == pytest.approx(1)


# Shards in several folders.


def test_shards_of_several_folders_are_joined_in_order(
    tree: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    weights = {"tech_docs": 1.0}
    whole = shards.load(tree / "shards", vocabulary, weights)["tech_docs"]
    dealt = shards.deal(whole, [0.3, 0.2])
    for k, numbers in enumerate(dealt):
        (tmp_path / str(k)).mkdir()
        part = shards.select(whole, numbers, vocabulary)
        assert shards.write(tmp_path / str(k), "tech_docs", part, vocabulary, preset=0)
    joined = shards.load([tmp_path / "1", tmp_path / "0"], vocabulary, weights)["tech_docs"]
    expected = shards.select(whole, np.concatenate((dealt[1], dealt[0])), vocabulary)
    for name in ("tokens", "start", "validation"):
        assert (getattr(joined, name) == getattr(expected, name)).all()
    assert joined.n_byte == expected.n_byte
    shares = [expected.start[len(dealt[1])], expected.start[-1] - expected.start[len(dealt[1])]]
    train = sum(whole.start[i + 1] - whole.start[i] for i in np.flatnonzero(~whole.validation))
    assert shares[0] / train == pytest.approx(0.2, abs=0.03)
    assert shares[1] / train == pytest.approx(0.3, abs=0.03)
    for folders, error in (([], "no folder"), ([tmp_path / "0"] * 2, "named twice")):
        with pytest.raises(ConfigError, match=error):
            shards.load(folders, vocabulary, weights)
    (tmp_path / "0" / "tech_docs-00.lms.xz").write_bytes(b"damaged" * 9)
    with pytest.raises(LmcodecError, match="damaged shard"):
        shards.load([tmp_path / "1", tmp_path / "0"], vocabulary, weights)


def test_a_category_is_written_in_shards_of_limited_size(
    tree: Path, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shards.load(tree / "shards", vocabulary, {"tech_docs": 1.0})["tech_docs"]
    monkeypatch.setattr(shards, "MAX_SHARD_TOKENS", 5000)
    paths = shards.write(tmp_path, "tech_docs", whole, vocabulary, preset=0)
    assert [p.name for p in paths] == [f"tech_docs-{i:02d}.lms.xz" for i in range(len(paths))]
    assert len(paths) > 5
    assert all(len(shards.parse_shard(p, vocabulary)[1].tokens) <= 5000 for p in paths)
    again = shards.load(tmp_path, vocabulary, {"tech_docs": 1.0})["tech_docs"]
    assert (again.tokens == whole.tokens).all()
    assert (again.start == whole.start).all()
    assert (again.validation == whole.validation).all()


# Commands with a trainer that fails.

FAKE = """
import json, os, shutil, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
arguments = sys.argv[1:]
run = Path(arguments[arguments.index("--run-dir") + 1])
settings = dict(a.split("=", 1) for a, flag in zip(arguments[1:], arguments) if flag == "--set")
tried = here / "tried.json"
attempts = json.loads(tried.read_text()) if tried.exists() else []
modes = (here / "modes").read_text().split()
mode = modes[min(len(attempts), len(modes) - 1)]
try:
    import triton
    has_triton = True
except ImportError as error:
    has_triton = "switched off" not in str(error)
attempts.append({"mode": mode, "run": run.name, "settings": settings, "triton": has_triton,
                 "shards": arguments[arguments.index("--shards") + 1].split(os.pathsep)})
tried.write_text(json.dumps(attempts))
run.mkdir(parents=True, exist_ok=True)
began = time.time()
stopped = []
if mode in ("hang", "deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

def export(k):
    print("valid", k, flush=True)
    shutil.rmtree(run / "writing", ignore_errors=True)
    shutil.copytree(here / f"export-{k}", run / "writing")
    if (run / "export").exists():
        (run / "export").rename(run / "old")
    (run / "writing").rename(run / "export")
    shutil.rmtree(run / "old", ignore_errors=True)
    (run / "curve.csv").write_text("step\\n" * k)

def save(seconds):
    (run / "checkpoint").mkdir(exist_ok=True)
    (run / "checkpoint" / "writing").write_text(
        json.dumps({"content": {"document": {"seconds": seconds, "step": 10}}}))
    (run / "checkpoint" / "writing").rename(run / "checkpoint" / "manifest.json")

if mode == "crash":
    sys.exit("no such device")
if mode == "accident":  # before the first checkpoint
    print("12:00:00  step     20/1,000  0.1 MB", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
export(1)
save(1.0)
if mode == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "torn":  # killed between two renames, and the disk lost a page
    time.sleep(0.5)
    shutil.copytree(here / "export-2", run / "export.old")
    (run / "export" / "piece-000").write_bytes(b"x")
    (run / "export" / "manifest.json").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "hang":
    time.sleep(1000)
time.sleep(0.3)
export(2)
if mode == "quick":
    save(2.0)
    sys.exit()
while mode == "deaf" or not (stopped or time.time() - began > 60 * float(settings["run.command_minutes"])):
    print("step", flush=True)
    time.sleep(0.1)
save(2.0)
export(3)
"""


@pytest.fixture
def machine(tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which the trainer is a script that does what the file `modes` says, attempt by attempt."""
    (tmp_path / "vocab.lmv").write_bytes(vocabulary.pack())
    (tmp_path / "tiny.toml").write_text(CONFIG.format(size=len(vocabulary)), encoding="utf-8")
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    for k, quality in enumerate((4.0, 3.0, 2.0), 1):
        document = {"model": {"dim": 32}, "curve_last": {f"valid_{c}": quality for c in CATEGORIES}}
        checkpoint.save(tmp_path / f"export-{k}", {"w": torch.full((9,), quality)}, document)
    write_plan(tmp_path)
    for name in ("part-1", "part-2"):
        (tmp_path / "shards" / "gpu" / name).mkdir()
    monkeypatch.setattr(gpu_run, "TRAINER", [sys.executable, str(tmp_path / "fake.py")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_plan(folder: Path, seconds: float = 5.0, **limits: int) -> None:
    numbers = {"download_files": 8, "download_nbytes": 1 << 20, "download_total_nbytes": 1 << 22} | limits
    times = gpu_run.Times(1, 1e6, 1e6, 4, 0.5, 2.0, 1, 1.2, 1, 1e4)
    commands = [
        gpu_run.Command(k, [], 1 + (seconds + 1) * (k - 1), seconds, 1, int(seconds + 2)) for k in (1, 2)
    ]
    plan = gpu_run.Plan(
        "tiny.toml", "shards/gpu", "cpu", [], gpu_run.Limits(0.25, 0.2, 1 << 20, **numbers), times, commands
    )
    common = folder / "shards" / "gpu" / "common"
    common.mkdir(parents=True, exist_ok=True)
    plan.write(common / "plan.json")


def command(machine: Path, modes: str, *arguments: str, number: int = 1) -> tuple[int, list[dict[str, Any]]]:
    """Exit status of a command on the machine, and the attempts to train that it made."""
    (machine / "modes").write_text(modes, encoding="utf-8")
    (machine / "tried.json").unlink(missing_ok=True)
    shutil.rmtree(machine / "out", ignore_errors=True)
    work = ["--out", str(machine / "out"), "--work", str(machine / "work")]
    status = gpu_run.main(["run", "--command", str(number), "--skip-checks", *work, *arguments])
    tried = machine / "tried.json"
    return status, json.loads(tried.read_text(encoding="utf-8")) if tried.exists() else []


def brought(machine: Path) -> float:
    """Quality of the export that came home."""
    _, document = checkpoint.load(machine / "out" / "export")
    return float(document["curve_last"]["valid_html_pages"])


def log(machine: Path) -> str:
    return (machine / "out" / "log.txt").read_text(encoding="utf-8")


def test_a_command_ends_in_time_and_brings_the_best_export(machine: Path) -> None:
    began = time.time()
    status, tried = command(machine, "good")
    assert status == 0
    assert time.time() - began < 5 + 1
    assert [a["mode"] for a in tried] == ["good"]
    assert brought(machine) == 2.0
    names = sorted(p.relative_to(machine / "out").as_posix() for p in (machine / "out").rglob("*.*"))
    assert names == ["curve.csv", "export/manifest.json", "log.txt", "state.json"]
    settings = tried[0]["settings"]
    assert settings["data.more"] == "true"
    assert "data.lanes" not in settings  # only a GPU is probed
    assert 0.02 < float(settings["run.command_minutes"]) <= 3 / 60
    # The schedule is for both commands' training.
    assert 4 / 60 < float(settings["run.minutes"]) < 6 / 60
    # The next command brings its part and goes on.
    shutil.rmtree(machine / "shards" / "gpu" / "part-1")
    status, tried = command(machine, "good", number=2)
    assert status == 0
    assert [Path(s).name for s in tried[0]["shards"]] == ["part-1", "part-2"]
    assert tried[0]["run"] == "run-1"
    assert "run.init" not in tried[0]["settings"]
    assert "from 2 s of the run" in log(machine)


@pytest.mark.parametrize(
    ("modes", "expected", "quality"),
    [
        ("die quick", ["die", "quick"], 3.0),
        ("crash crash quick", ["crash", "crash", "quick"], 3.0),
        ("hang quick", ["hang", "quick"], 3.0),
        ("hang", ["hang", "hang"], 4.0),
        ("deaf", ["deaf"], 3.0),
        ("torn torn", ["torn"], 3.0),
    ],
)
def test_what_a_failing_trainer_exported_comes_home(
    machine: Path, modes: str, expected: list[str], quality: float
) -> None:
    began = time.time()
    status, tried = command(machine, modes)
    assert status == 0
    assert time.time() - began < 5 + 1.5
    assert [a["mode"] for a in tried][: len(expected)] == expected
    assert brought(machine) == quality


def test_each_failure_takes_the_next_surer_way(machine: Path) -> None:
    status, tried = command(machine, "crash crash crash crash quick")
    assert status == 0
    ways = [(a["settings"].get("run.graph"), a["settings"].get("run.compile"), a["triton"]) for a in tried]
    off = "false"
    assert [w[:2] for w in ways] == [(None, None), (off, None), (off, off), (off, off), (off, off)]
    assert [w[2] for w in ways[3:]] == [False, False]
    assert [a["run"] for a in tried] == ["run-1"] * 4 + ["run-2"]
    # The next command stays with what worked.
    _, tried = command(machine, "quick", number=2)
    assert tried[0]["run"] == "run-2"
    assert not tried[0]["triton"]


def test_an_accident_is_no_reason_to_train_otherwise(machine: Path) -> None:
    _, tried = command(machine, "die die accident accident quick")
    graphs = [a["settings"].get("run.graph") for a in tried]
    assert graphs == [None, None, None, None, "false"]
    assert {a["run"] for a in tried} == {"run-1"}


def test_a_trainer_that_never_starts_ends_with_an_error_and_its_log(machine: Path) -> None:
    status, tried = command(machine, "crash")
    assert status == 1
    assert len(tried) == gpu_run.MAX_ATTEMPTS
    assert log(machine).count("no such device") == len(tried)
    assert not (machine / "out" / "export").exists()


def lose(machine: Path, *parts: str) -> None:
    """What came home is carried to a fresh machine, with these parts."""
    gpu = machine / "shards" / "gpu"
    shutil.rmtree(gpu / "home", ignore_errors=True)
    shutil.copytree(machine / "out", gpu / "home")
    shutil.rmtree(machine / "work")
    for name in ("part-1", "part-2", "rescue"):
        shutil.rmtree(gpu / name, ignore_errors=True)
    for name in parts:
        (gpu / name).mkdir()


def test_a_lost_machine_begins_from_the_export_at_home(machine: Path) -> None:
    command(machine, "crash good")
    lose(machine, "rescue")
    status, tried = command(machine, "die good", number=2)
    assert "it is a fresh one" in log(machine)
    assert [Path(s).name for s in tried[0]["shards"]] == ["rescue"]
    assert tried[0]["settings"]["run.init"].endswith('home/export"')
    # What is known of this kind of machine holds still.
    assert tried[0]["settings"]["run.graph"] == "false"
    # No export that is worse than what is at home comes.
    assert status == 0
    assert brought(machine) == 2.0
    assert "an export of 4.0000 bpb stays" in log(machine)


@pytest.mark.parametrize("damage", ["none", "no export", "damaged", "state"])
def test_a_lost_machine_without_a_sound_export_begins_anew(machine: Path, damage: str) -> None:
    command(machine, "quick")
    lose(machine, "part-2")
    home = machine / "shards" / "gpu" / "home"
    if damage == "none":
        shutil.rmtree(home)
    elif damage == "no export":
        shutil.rmtree(home / "export")
    elif damage == "damaged":
        (home / "export" / "piece-000").write_bytes(b"other")
    if damage == "state":
        (home / "state.json").write_text("[1, 2", encoding="utf-8")
    status, tried = command(machine, "quick", number=2)
    assert status == 0
    assert ("run.init" in tried[0]["settings"]) == (damage == "state")
    assert [Path(s).name for s in tried[0]["shards"]] == ["part-2"]


def test_no_text_is_said_at_once(machine: Path) -> None:
    for name in ("part-1", "part-2"):
        shutil.rmtree(machine / "shards" / "gpu" / name)
    began = time.time()
    status, tried = command(machine, "good")
    assert (status, tried) == (1, [])
    assert "no text on this machine: name shards/gpu/common and a part of it in carry" in log(machine)
    assert time.time() - began < 2
    shutil.rmtree(machine / "shards" / "gpu")
    shutil.rmtree(machine / "work")
    status, _ = command(machine, "good")
    assert status == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--command", "0", "--out", "out"], "numbered from 1"),
        (["--command", "1", "--out", ""], "--out is empty"),
        (["--command", "1", "--out", "out", "--folder", "nothing"], "no plan there"),
    ],
)
def test_a_command_that_cannot_run_is_one_clear_line(
    machine: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(p.name for p in machine.iterdir())
    assert gpu_run.main(["run", "--work", str(machine / "work"), *arguments]) == 1
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in machine.iterdir()) == before


def test_the_clock_of_the_rental_rules(machine: Path) -> None:
    # Told that less is left than planned, the last command ends earlier; with nothing left it does not train.
    began = time.time()
    status, tried = command(machine, "good", "--left", "4.5", number=2)
    assert status == 0
    assert time.time() - began < 4.5
    assert 60 * float(tried[0]["settings"]["run.command_minutes"]) < 1.6
    status, tried = command(machine, "good", "--left", "1", number=2)
    assert tried == []
    assert brought(machine) == 2.0  # of the command before


@pytest.mark.parametrize(
    ("began", "left", "expected"),
    [
        (None, None, 6.0),  # as planned: 5 s of work, 1 s for what comes after
        (-11.0, None, 4.0),  # the state knows better
        (-9000.0, None, 6.0),  # of another rental
        (9000.0, None, 6.0),  # of a clock that runs otherwise
        (-11.0, 3.0, 3.0),  # who knows it says it
    ],
)
def test_what_is_left_of_a_rental(
    machine: Path, began: float | None, left: float | None, expected: float
) -> None:
    write_plan(machine)
    now = time.time()
    (machine / "work").mkdir()
    if began is not None:
        (machine / "work" / "state.json").write_text(json.dumps({"began": now + began}), encoding="utf-8")
    plan = gpu_run.Plan.read(machine / "shards" / "gpu" / "common" / "plan.json")
    options = argparse.Namespace(
        command=2, work=machine / "work", out=machine / "out", left=left, skip_checks=True
    )
    runner = gpu_run.Runner(plan, options, now)
    assert runner.ends - now == pytest.approx(expected)
    assert runner.deadline <= runner.ends - plan.commands[1].after + 1e-6
    assert runner.train_until == pytest.approx(runner.deadline - plan.times.tail)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lanes_are_probed_on_a_gpu_alone(machine: Path, device: str) -> None:
    write_plan(machine, seconds=20)
    path = machine / "shards" / "gpu" / "common" / "plan.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"device": device}), encoding="utf-8"
    )
    _, tried = command(machine, "crash crash crash crash quick")
    lanes = [(a["settings"].get("data.lanes"), a["settings"].get("optimiser.batch")) for a in tried]
    if device == "cpu":
        assert lanes == [(None, None)] * 5
    else:
        assert lanes == [("0", "128")] * 4 + [("64", "128")]


@pytest.mark.parametrize("files", [2, 3, 4, 8])
def test_what_comes_home_keeps_the_download_limits(machine: Path, files: int) -> None:
    write_plan(machine, download_files=files, download_nbytes=2000, download_total_nbytes=5000)
    (machine / "work").mkdir()
    (machine / "work" / "log.txt").write_text("an old line\n" * 1000, encoding="utf-8")
    assert command(machine, "quick")[0] == 0
    found = [p for p in (machine / "out").rglob("*") if p.is_file()]
    assert len(found) == min(files, 5)
    assert max(p.stat().st_size for p in found) <= 2000
    assert sum(p.stat().st_size for p in found) <= 5000
    assert brought(machine) == 3.0
    assert all(len(p.relative_to(machine / "out").parts) <= 3 for p in found)


def test_an_export_that_may_not_come_home_is_said(machine: Path) -> None:
    write_plan(machine, download_files=1)
    assert command(machine, "quick")[0] == 1
    assert "more than may come home" in log(machine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_loses_no_export(machine: Path, number: signal.Signals) -> None:
    write_plan(machine, seconds=60)
    (machine / "modes").write_text("good quick", encoding="utf-8")
    start = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('gpu_run', sys.argv[1]); "
        "m = importlib.util.module_from_spec(spec); sys.modules['gpu_run'] = m; spec.loader.exec_module(m); "
        "m.TRAINER = [sys.executable, sys.argv[2]]; sys.exit(m.main(sys.argv[3:]))"
    )
    work = ["--skip-checks", "--out", str(machine / "out"), "--work", str(machine / "work")]
    arguments = [str(SCRIPT), str(machine / "fake.py"), "run", "--command", "1", *work]
    process = subprocess.Popen([sys.executable, "-I", "-c", start, *arguments])
    while not (machine / "out" / "export").is_dir() and process.poll() is None:
        time.sleep(0.1)
    # What is in the output already is complete, though the command has not ended.
    assert brought(machine) in (3.0, 4.0)
    process.send_signal(number)
    assert process.wait(30) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert brought(machine) in ((2.0,) if number == signal.SIGTERM else (3.0, 4.0))
    # The training process that a killed command left behind does not keep the next one from the run.
    assert gpu_run.main(["run", "--command", "2", *work]) == 0
    assert ("still runs: SIGTERM" in log(machine)) == (number == signal.SIGKILL)
    assert [a["mode"] for a in json.loads((machine / "tried.json").read_text(encoding="utf-8"))] == [
        "good",
        "quick",
    ]
    assert "from 2 s of the run" in log(machine)


def test_checks_that_fail_hang_or_crash_cost_no_training(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "check.py").write_text(
        "import sys, time\n"
        "if sys.argv[2] == 'exact': time.sleep(100)\n"
        "if sys.argv[2] == 'scan': sys.exit('differs')\n"
        "print('fine')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(gpu_run, "__file__", str(machine / "check.py"))
    (machine / "modes").write_text("good", encoding="utf-8")
    write_plan(machine, seconds=9)
    began = time.time()
    work = ["--out", str(machine / "out"), "--work", str(machine / "work")]
    assert gpu_run.main(["run", "--command", "1", *work]) == 0
    assert time.time() - began < 10
    assert "check exact: not done" in log(machine)
    assert "check scan: FAILED (status 1): differs" in log(machine)
    assert "check speed: passed: fine" in log(machine)
    assert not json.loads((machine / "tried.json").read_text(encoding="utf-8"))[0]["triton"]
    # They are done once a machine.
    (machine / "log.txt").unlink(missing_ok=True)
    assert gpu_run.main(["run", "--command", "2", *work]) == 0
    assert log(machine).count("check exact") == 1


# End to end, with the trainer.

BLOCK = """
import importlib.abc, sys

BLOCKED = {"click", "constriction", "lmcodec._kernel", "matplotlib"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ImportError(f"{name}: not on this machine")

sys.meta_path.insert(0, Block())
"""
# A scan that is wrong, for the check to find.
SABOTAGE = """
if "check" in sys.orig_argv and "scan" in sys.orig_argv:
    import lmcodec.train.scan as scan
    right = scan.linear_scan
    scan.linear_scan = lambda a, v, h0: right(a, v, h0) * 1.001
"""


class Machine:
    """A machine: a folder to which the tree and what a call carries are copied."""

    def __init__(self, folder: Path, tree: Path, python: Path) -> None:
        self.folder, self.tree = folder, tree
        self.environment = {**os.environ, "PYTHONPATH": str(python)}

    def call(self, number: int, carry: list[str], *arguments: str) -> subprocess.Popen[bytes]:
        root = self.folder / "tree"
        shutil.rmtree(root, ignore_errors=True)
        for _, name in gpu_run.tree_files(self.tree):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.tree / name, root / name)
        for name in carry:
            shutil.copytree(self.tree / name, root / name)
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        (self.folder / "work" / "training.txt").unlink(missing_ok=True)
        script = [sys.executable, str(SCRIPT), "run", "--folder", "shards/gpu", "--command", str(number)]
        return subprocess.Popen(
            [*script, "--out", str(self.folder / "out"), "--work", str(self.folder / "work"), *arguments],
            cwd=root,
            env=self.environment,
        )

    def log(self) -> str:
        return (self.folder / "out" / "log.txt").read_text(encoding="utf-8")

    def wait_for_steps(self, process: subprocess.Popen[bytes], n_validation: int) -> None:
        """Until the training process has validated so often and gone on."""
        text = self.folder / "work" / "training.txt"
        while process.poll() is None:
            said = text.read_text(encoding="utf-8") if text.exists() else ""
            if said.count("  valid  ") >= n_validation and "  step " in said.rpartition("  valid  ")[2]:
                return
            time.sleep(0.05)


def test_a_rental_in_miniature(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ("--minutes", "5", "--commands", "2", "--upload-limit", "0.3", "--check-seconds", "60")
    plan = plan_in(tree, monkeypatch, *limits)
    python = tmp_path / "python"
    python.mkdir()
    (python / "sitecustomize.py").write_text(BLOCK + SABOTAGE, encoding="utf-8")
    first = Machine(tmp_path / "first", tree, python)
    home = tree / "shards" / "gpu" / "home"

    # A bare machine, on which a check fails; the command is ended by a signal.
    process = first.call(1, plan.commands[0].carry)
    first.wait_for_steps(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    log = first.log()
    assert "check exact: passed: small.lmm on cpu: the known answer" in log
    assert "check scan: FAILED" in log
    assert "training without a graph, compilation and Triton" in log
    tensors, document = checkpoint.load(first.folder / "out" / "export")
    assert document["name"] == "tiny"
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    rows = (first.folder / "out" / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("step,")
    assert len(rows) > 1
    shutil.copytree(first.folder / "out", home)

    # The same machine brings the second part and goes on; the training process is killed, and goes on again.
    process = first.call(2, plan.commands[1].carry)
    first.wait_for_steps(process, 1)
    state = gpu_run.State.read(first.folder / "work" / "state.json")
    os.kill(state.pid, signal.SIGKILL)
    killed = state.pid
    while process.poll() is None and state.pid in (0, killed):
        time.sleep(0.05)
        state = gpu_run.State.read(first.folder / "work" / "state.json") or state
    first.wait_for_steps(process, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    log = first.log()
    assert "training died by SIGKILL" in log
    assert log.count("s of the run") == 2
    assert [p.name for p in (first.folder / "work").glob("run-*")] == ["run-1"]
    steps = [
        int(row.split(",")[0])
        for row in (first.folder / "out" / "curve.csv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    assert steps == sorted(set(steps))
    assert len(steps) > len(rows) - 1

    # The machine is lost: a fresh one begins from what came home of the first command, and ends in time.
    second = Machine(tmp_path / "second", tree, python)
    rescue = [f"shards/gpu/{name}" for name in ("common", "rescue", "home")]
    began = time.time()
    status = second.call(2, rescue, "--left", "40", "--skip-checks").wait()
    assert time.time() - began < 41
    log = second.log()
    assert "it is a fresh one" in log
    assert f"from {second.folder / 'work' / 'home' / 'export'}" in log
    assert status == 0 or "stays: at home" in log
    shutil.rmtree(home)
