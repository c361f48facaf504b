"""Configurations, checkpoints, runs: one clear error each; a killed run ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_corpus

pytest.importorskip("torch")

import torch

from lmcodec.errors import BadMagic, ConfigError, Corrupt, LmcodecError, ModelNotFound, Truncated
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint, shards
from lmcodec.train.average import average
from lmcodec.train.config import load_config
from lmcodec.train.exports import load_export
from lmcodec.train.start import start

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
steps = 40
threads = 1
log_every = 10
validate_every = 20
checkpoint_minutes = 0
compile = false
"""


@pytest.fixture
def project(tmp_path: Path, tiny_corpora: Path, vocabulary: Vocabulary) -> Path:
    """A folder with a vocabulary, shards and a configuration."""
    (tmp_path / "vocab.lmv").write_bytes(vocabulary.pack())
    list(shards.prepare(vocabulary, tmp_path / "shards", corpora=tiny_corpora, processes=2))
    (tmp_path / "tiny.toml").write_text(CONFIG.format(size=len(vocabulary)), encoding="utf-8")
    return tmp_path


def train(project: Path, name: str, *assignments: str) -> str:
    return start(project / "tiny.toml", run_dir=project / name, assignments=list(assignments))


def weights(project: Path, name: str) -> dict[str, torch.Tensor]:
    tensors, _ = checkpoint.load(project / name / "checkpoint")
    return tensors


def check_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_run_learns_draws_its_curve_and_resumes_exactly(project: Path, kind: str) -> None:
    assignment = f"optimiser.kind={kind}"
    assert train(project, "whole", assignment) == "finished"
    header, *rows = (project / "whole" / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("step,trained_nbytes,seconds,train,")
    assert len(rows) == 2
    assert float(rows[1].split(",")[3]) < float(rows[0].split(",")[3]) < 8
    assert (project / "whole" / "curve.png").read_bytes().startswith(b"\x89PNG")
    # Stopped after the first step, then gone on with.
    assert "limit" in train(project, "parts", assignment, "run.command_minutes=1e-9")
    assert train(project, "parts", assignment) == "finished"
    check_same_bits(weights(project, "whole"), weights(project, "parts"))


@pytest.mark.parametrize(
    "shape",
    [
        ("model.mlp=0",),
        ("model.shift=false",),
        ("model.bigram=64",),
        ("model.attention=8", "model.dim=64", "quantise.activations_from=-1"),
    ],
)
def test_every_shape_resumes(project: Path, shape: tuple[str, ...]) -> None:
    assignments = (*shape, "run.steps=4", "run.validate_every=4")
    train(project, "whole", *assignments)
    train(project, "parts", *assignments, "run.command_minutes=1e-9")
    train(project, "parts", *assignments)
    check_same_bits(weights(project, "whole"), weights(project, "parts"))


def test_distillation_resumes(project: Path) -> None:
    train(project, "teacher", "run.steps=3", "run.validate_every=3")
    assignments = ('distill.teacher="teacher/export"', "run.steps=4", "run.validate_every=4")
    train(project, "whole", *assignments)
    train(project, "parts", *assignments, "run.command_minutes=1e-9")
    with pytest.raises(ConfigError, match="another run: teacher"):
        train(project, "parts")
    train(project, "parts", *assignments)
    check_same_bits(weights(project, "whole"), weights(project, "parts"))


def test_other_text_is_not_gone_on_with(project: Path, vocabulary: Vocabulary) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    write_corpus(project / "other", seed=2)
    list(shards.prepare(vocabulary, project / "shards", corpora=project / "other", processes=2))
    with pytest.raises(ConfigError, match="another run: text"):
        train(project, "run")


def test_an_incomplete_copy_of_a_checkpoint_is_not_a_fresh_start(project: Path) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    (project / "run" / "checkpoint" / "manifest.json").unlink()
    with pytest.raises(Truncated, match=r"run/checkpoint: checkpoint without manifest\.json"):
        train(project, "run")


def test_a_hostile_export_costs_no_memory(project: Path, vocabulary: Vocabulary) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    tensors, document = checkpoint.load(project / "run" / "export")
    document["model"] |= {"dim": 2096, "n_layer": 64, "bigram": 1 << 20}
    checkpoint.save(project / "hostile", tensors, document)
    with pytest.raises(Corrupt, match="names or shapes"):
        load_export(project / "hostile", vocabulary)


def test_the_bare_trainer_reports_errors_of_files_in_one_line(project: Path) -> None:
    (project / "file").write_text("", encoding="utf-8")
    line = [sys.executable, "-I", "-m", "lmcodec.train", str(project / "tiny.toml"), "--run-dir"]
    result = subprocess.run(
        [*line, str(project / "file")], capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("lmcodec train: ")
    assert len(result.stderr.splitlines()) == 1


def test_two_processes_in_one_folder_are_refused(project: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (project / "run").mkdir()
    with open(project / "run" / "lock", "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process trains in this folder"):
            train(project, "run")


def test_validation_between_progress_lines(project: Path) -> None:
    """A validation that follows a resume before any progress line reports what was trained since."""
    assert "limit" in train(project, "run", "run.command_minutes=1e-9")
    assert train(project, "run", "run.steps=9", "run.validate_every=4", "run.log_every=100") == "finished"
    lines = (project / "run" / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 1 + 3  # steps 1; 4, 8, 9


def command(project: Path, name: str) -> list[str]:
    return [
        *(sys.executable, "-I", "-m", "lmcodec.train", str(project / "tiny.toml")),
        *("--run-dir", str(project / name)),
        *("--set", "run.steps=150"),
    ]


def wait_for(path: Path, process: subprocess.Popen[str], text: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if path.exists() and text in path.read_text(encoding="utf-8"):
            return
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.01)
    raise AssertionError(f"no {text!r} in {path}")


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(project: Path) -> None:
    subprocess.run(command(project, "whole"), check=True, capture_output=True)
    process = subprocess.Popen(command(project, "killed"), encoding="utf-8", stdout=subprocess.DEVNULL)
    wait_for(project / "killed" / "log.txt", process, "step     10/")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(project, "killed"), check=True, capture_output=True)
    assert "resumed at step" in (project / "killed" / "log.txt").read_text(encoding="utf-8")
    check_same_bits(weights(project, "whole"), weights(project, "killed"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_cleanly(project: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command(project, "run"), encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(project / "run" / "log.txt", process, "step     10/")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"by {number.name}; the same command goes on from here" in output
    assert checkpoint.newest(project / "run") is not None


def test_validation_alone_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    before = weights(project, "run")
    end = start(project / "tiny.toml", run_dir=project / "run", validate=True)
    assert end == "validated"
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "  valid  " in line and " bytes " in line
    ]
    assert len(lines) == 9
    assert "all" in lines[-1]
    assert lines[-1].endswith(" bpb")
    check_same_bits(before, weights(project, "run"))


def test_export_initialises_a_run_and_a_teacher(project: Path, vocabulary: Vocabulary) -> None:
    train(project, "teacher")
    net, document = load_export(project / "teacher" / "export", vocabulary)
    assert document["step"] == 40
    assert net.config.dim == 32
    assert (
        train(project, "more", 'run.init="teacher/export"', "run.steps=5", "run.validate_every=5")
        == "finished"
    )
    row = checkpoint.load(project / "more" / "checkpoint")[1]["curve"][-1]
    assert row["train"] < 3.5  # goes on from what was learned: a fresh network begins above 8
    assert train(project, "student", 'distill.teacher="teacher/export"', "model.dim=16") == "finished"
    larger = ["model.dim=48", "model.n_layer=3", "run.steps=5", "run.validate_every=5"]
    assert train(project, "grown", 'run.init="teacher/export"', *larger) == "finished"
    assert checkpoint.load(project / "grown" / "checkpoint")[1]["curve"][-1]["train"] < 3.5
    with pytest.raises(ConfigError, match=r"teacher.export: cannot shrink model.dim from 32 to 16"):
        train(project, "wrong", 'run.init="teacher/export"', "model.dim=16")
    with pytest.raises(ModelNotFound, match="no checkpoint"):
        train(project, "none", 'run.init="nowhere"')


def test_the_mean_of_exports(project: Path, vocabulary: Vocabulary) -> None:
    train(project, "a", "run.steps=3")
    train(project, "b", 'run.init="a/export"', "run.steps=3", "data.seed=2")
    folders = [project / "a" / "export", project / "b" / "export"]
    average(folders, project / "mean", vocabulary, [1, 3])
    a, b, mean = (checkpoint.load(folder)[0] for folder in [*folders, project / "mean"])
    for name, tensor in mean.items():
        expected = (a[name].double() * 0.25 + b[name].double() * 0.75).to(tensor.dtype)
        assert torch.equal(tensor, expected), name
    assert load_export(project / "mean", vocabulary)[1]["averaged"] == [1, 3]
    train(project, "more", 'run.init="mean"', "run.steps=2")
    average(folders[:1] * 2, project / "same", vocabulary)
    check_same_bits(checkpoint.load(project / "same")[0], a)

    train(project, "wide", "run.steps=2", "model.mlp=64")
    wrong: list[tuple[list[Path], list[float] | None, str]] = [
        (folders[:1], None, "1 export to average, expected two or more"),
        (folders, [1], "1 shares of 2 exports, expected one each or none"),
        (folders, [1, 0], "share 0, expected a positive number"),
        (folders, [1, float("nan")], "share nan, expected a positive number"),
        ([folders[0], project / "wide" / "export"], None, "model is "),
        ([folders[0], project / "a" / "checkpoint"], None, "the state of a run, not its weights"),
    ]
    for exports, shares, message in wrong:
        with pytest.raises(ConfigError, match=message):
            average(exports, project / "none", vocabulary, shares)
    with pytest.raises(ModelNotFound, match="no checkpoint there"):
        average([folders[0], project / "nowhere"], project / "none", vocabulary)
    assert not (project / "none").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.lr=1.0", "unknown key 'optimizer'; did you mean 'optimiser'"),
        ("optimiser.warm_up=3", "unknown key 'optimiser.warm_up'; did you mean 'optimiser.warmup'"),
        ('run.steps="many"', "'run.steps' is 'many', expected int"),
        ("run.steps=0", "'run.steps' is 0, expected 1 to"),
        ("run.compile=1", "'run.compile' is 1, expected bool"),
        ('run.precision="fp8"', "expected one of bf16, float32"),
        ("data.weights.poems=3", "unknown category 'data.weights.poems'"),
        ("data.weights.structured=-1", "expected a positive number"),
        ("model=3", "expected a table"),
        ("model.dim=5", "model.dim is 5, expected an integer from 16"),
        ("model.vocab_size=400", "model.vocab_size is 400, but the vocabulary has"),
        ("quantise.levels=64", "'quantise.levels' is 64"),
        ('data.vocab="none.lmv"', "no such vocabulary file"),
        ("nonsense", "expected KEY=VALUE"),
        ("optimiser.beta1=1.5", "'optimiser.beta1' is 1.5"),
        ("optimiser.weight_decay=-1", "'optimiser.weight_decay' is -1"),
        ("run.threads=-1", "'run.threads' is -1"),
        ("run.seed=99999999999999999999999", "'run.seed' is 99999999999999999999999"),
        ("run.minutes=" + "9" * 400, "'run.minutes' is 999"),
        ("run.minutes=nan", "'run.minutes' is nan"),
        ("data.weights.structured=inf", "expected a positive number"),
        ('name="../up"', "'name' is '../up'"),
        ("model.attention=8", "model.attention needs a model.dim of at least 64"),
    ],
)
def test_one_clear_error_for_a_wrong_configuration(project: Path, assignment: str, message: str) -> None:
    with pytest.raises(LmcodecError) as error:
        train(project, "run", assignment)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_attention_is_refused_with_rounding(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.toml: model\.attention has no integer definition"):
        train(project, "run", "model.attention=8", "model.dim=64")


def test_broken_files_are_named(project: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("name = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load_config(bad)
    with pytest.raises(ModelNotFound, match="cannot read"):
        load_config(tmp_path / "none.toml")
    bad.write_text('name = "x"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="'model' is missing"):
        load_config(bad)


def test_shards_of_another_vocabulary_are_refused(project: Path) -> None:
    other = Vocabulary(sorted({bytes([b]) for b in range(256)} | {b"xx"}))
    (project / "vocab.lmv").write_bytes(other.pack())
    with pytest.raises(ModelNotFound, match=r"lms\.xz: shard of vocabulary .* run 'lmcodec train prepare'"):
        train(project, "run", f"model.vocab_size={len(other)}")


def test_damaged_checkpoints_are_refused(project: Path) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    folder = project / "run" / "checkpoint"
    piece, manifest = folder / "piece-000", folder / "manifest.json"
    whole, text = piece.read_bytes(), manifest.read_text(encoding="utf-8")
    error: type[LmcodecError]
    for content, error in (
        (whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], Corrupt),
        (whole[:-1], Truncated),
    ):
        piece.write_bytes(content)
        with pytest.raises(error, match="piece-000"):
            train(project, "run")
    piece.unlink()
    with pytest.raises(Truncated, match="missing"):
        train(project, "run")
    piece.write_bytes(whole)
    for changed, error in (
        (text[:-40], Corrupt),
        (text.replace("lmcodec-checkpoint-1", "other"), BadMagic),
        (text.replace('"position": 0', '"position": 8'), Corrupt),
    ):
        assert changed != text
        manifest.write_text(changed, encoding="utf-8")
        with pytest.raises(error, match="run/checkpoint"):
            train(project, "run")
    # Well sealed, but not what a run writes.
    manifest.write_text(text, encoding="utf-8")
    tensors, document = checkpoint.load(folder)
    for broken_tensors, broken_document in (
        ({n: t for n, t in tensors.items() if n != "net/b_head"}, document),
        ({n: t for n, t in tensors.items() if n != "optimiser/embed/exp_avg"}, document),
        (tensors | {"net/embed": tensors["net/embed"][:1]}, document),
        (tensors, {k: v for k, v in document.items() if k != "reader"}),
        (tensors, document | {"step": "many"}),
        (tensors, document | {"reader": document["reader"] | {"lanes": [[0, 9, 9, 0]] * 4}}),
        (tensors, document | {"reader": document["reader"] | {"next": [10**9] * 8}}),
    ):
        checkpoint.save(folder, broken_tensors, broken_document)
        with pytest.raises(Corrupt, match="checkpoint"):
            train(project, "run")
    checkpoint.save(folder, tensors, document)
    with pytest.raises(ConfigError, match="checkpoint of another run: model"):
        train(project, "run", "model.mlp=64")
    assert train(project, "run") == "finished"


def test_checkpoint_pieces_stay_below_their_limit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(9_000_000, dtype=torch.float32),
        "b": torch.tensor(3, dtype=torch.int64),
        "c": torch.zeros(0, 4),
        "d": torch.randn(7).bfloat16(),
    }
    checkpoint.save(tmp_path / "c", tensors, {"x": 1})
    sizes = [p.stat().st_size for p in (tmp_path / "c").glob("piece-*")]
    assert len(sizes) == 3
    assert max(sizes) <= 15 << 20
    loaded, document = checkpoint.load(tmp_path / "c")
    check_same_bits(tensors, loaded)
    assert document == {"x": 1}


def test_a_crash_while_replacing_leaves_a_checkpoint(project: Path) -> None:
    train(project, "run", "run.steps=2", "run.validate_every=2")
    folder = project / "run"
    os.rename(folder / "checkpoint", folder / "checkpoint.old")
    (folder / "checkpoint.writing").mkdir()
    (folder / "checkpoint.writing" / "piece-000").write_bytes(b"half")
    assert checkpoint.newest(folder) == folder / "checkpoint.old"
    assert train(project, "run", "run.steps=4", "run.validate_every=4") == "finished"
