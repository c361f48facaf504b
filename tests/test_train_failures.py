"""Every failure that a rented machine may meet: what the trainer does then, and what stays on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_corpus

pytest.importorskip("torch")

import torch
from test_train import check_same_bits, project, train, weights

from lmcodec.errors import ConfigError
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint, lanes, loop, net, optim, scan, shards, step
from lmcodec.train.config import TrainConfig, load_config
from lmcodec.train.exports import load_export
from lmcodec.train.loss import cross_entropy
from lmcodec.train.net import Net, WeightRounding, rounded, rounded_together

assert project  # a fixture

SHORT = ("run.steps=30", "run.log_every=5", "run.validate_every=10")


def log_of(project: Path, name: str) -> str:
    return (project / name / "log.txt").read_text(encoding="utf-8")


class Poison:
    """A loss that is not a number at chosen calls."""

    def __init__(self, when: Callable[[int], bool]) -> None:
        self.when = when
        self.n_call = 0

    def __call__(self, *arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.n_call += 1
        loss, nats = cross_entropy(*arguments, **options)
        if self.when(self.n_call):
            return loss * torch.nan, nats * torch.nan
        return loss, nats


# Steps that are not finite


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    more = (f"optimiser.kind={kind}", "optimiser.ema=0.0", "optimiser.decay=0.0")
    train(project, "run", *more, "run.steps=8")
    before = weights(project, "run")
    monkeypatch.setattr(step, "cross_entropy", Poison(lambda n: True))
    train(project, "run", *more, "run.steps=9")
    check_same_bits(
        {n: t for n, t in before.items() if not n.startswith("average/")},
        {n: t for n, t in weights(project, "run").items() if not n.startswith("average/")},
    )
    assert "1 step(s) before step 9 were not finite and changed nothing" in log_of(project, "run")


def test_a_run_goes_on_after_single_steps_that_are_not_finite(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "cross_entropy", Poison(lambda n: n % 4 == 0))
    assert train(project, "run", *SHORT) == "finished"
    assert "back to the last good weights" not in log_of(project, "run")
    row = checkpoint.load(project / "run" / "checkpoint")[1]["curve"][-1]
    assert 0 < row["train"] < 5
    assert row["trained_nbytes"] > 0


def test_many_in_a_row_take_the_run_back_with_half_the_rates(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "cross_entropy", Poison(lambda n: 11 <= n <= 17))
    assert train(project, "run", *SHORT) == "finished"
    assert "5 steps in a row were not finite: back to the last good weights, rates times 0.5" in log_of(
        project, "run"
    )
    assert checkpoint.load(project / "run" / "checkpoint")[1]["rate_factor"] < 1


def test_a_loss_that_explodes_takes_the_run_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def thrown(n: int) -> bool:
        if n == 16:  # as a step of an absurd rate would have it
            with torch.no_grad():
                for trainer in trainers:
                    trainer.net.w_head.normal_(std=30)
        return False

    trainers: list[loop.Trainer] = []
    original = loop.Trainer.run

    def run(self: loop.Trainer) -> str:
        trainers.append(self)
        return original(self)

    monkeypatch.setattr(loop.Trainer, "run", run)
    monkeypatch.setattr(step, "cross_entropy", Poison(thrown))
    assert train(project, "run", *SHORT) == "finished"
    assert "back to the last good weights, rates times 0.5" in log_of(project, "run")
    assert checkpoint.load(project / "run" / "checkpoint")[1]["curve"][-1]["train"] < 5


def test_a_run_that_is_never_finite_ends_with_one_line_and_its_best_export(
    project: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project, "run", "run.steps=10", "run.validate_every=10")
    best = checkpoint.load(project / "run" / "export")[0]
    monkeypatch.setattr(step, "cross_entropy", Poison(lambda n: True))
    with pytest.raises(ConfigError, match=r"not finite, and half the rates .* lower optimiser\.lr"):
        train(project, "run", "run.steps=100", "run.log_every=5")
    check_same_bits(best, checkpoint.load(project / "run" / "export")[0])
    assert all(torch.isfinite(t).all() for t in weights(project, "run").values())


# What may not work on a device


def capture_with(monkeypatch: pytest.MonkeyPatch, capture: step.Capture) -> None:
    """Let runs capture their steps by `capture`, as they do on CUDA."""
    original = step.Stepper.__init__

    def init(self: step.Stepper, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **(options | {"capture": capture}))

    monkeypatch.setattr(step.Stepper, "__init__", init)


def test_a_captured_step_is_the_step(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_replay = 0

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            nonlocal n_replay
            n_replay += 1
            work()

        return replay

    train(project, "plain", *SHORT)
    capture_with(monkeypatch, capture)
    train(project, "captured", *SHORT)
    assert n_replay == 30 - step.WARM_STEPS
    check_same_bits(weights(project, "plain"), weights(project, "captured"))
    n_replay = 0  # where rounding begins on the way, the step is captured anew
    train(project, "rounded", *SHORT, "quantise.weights_from=10")
    assert n_replay == 30 - 2 * step.WARM_STEPS


def test_a_capture_that_fails_is_reported_and_done_without(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    train(project, "plain", *SHORT)
    capture_with(monkeypatch, capture)
    train(project, "run", *SHORT)
    assert "cannot be captured as a graph (RuntimeError: operation not permitted" in log_of(project, "run")
    check_same_bits(weights(project, "plain"), weights(project, "run"))


def test_a_compiler_that_fails_is_reported_and_done_without(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(function: Any = None, **options: Any) -> Any:
        def broken(*arguments: Any) -> Any:
            raise RuntimeError("the compiler crashed")

        return (lambda f: broken) if function is None else broken

    train(project, "plain", *SHORT)
    monkeypatch.setattr(net.torch, "compile", compile)
    monkeypatch.setattr(loop.shutil, "which", lambda name: "a compiler")
    train(project, "run", *SHORT, "run.compile=true")
    assert "fused element work failed (RuntimeError: the compiler crashed)" in log_of(project, "run")
    check_same_bits(weights(project, "plain"), weights(project, "run"))


def test_without_a_compiler_the_reason_is_reported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    train(project, "run", "run.steps=1", "run.compile=true")
    assert "no C++ compiler" in log_of(project, "run")


def test_a_probe_takes_the_smallest_of_the_fast_lanes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(project / "tiny.toml")
    lines: list[str] = []
    assert lanes.probe_lanes(config, torch.device("cpu"), lines.append, (2, 4)) in (2, 4)
    assert "K tokens/s" in lines[0]

    def speed(config: TrainConfig, device: torch.device, n_lane: int) -> float:
        if n_lane > 128:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nSee")
        return {32: 50.0, 64: 80.0, 128: 85.0}[n_lane]

    monkeypatch.setattr(lanes, "_speed", speed)
    assert lanes.probe_lanes(config, torch.device("cpu"), lines.append) == 64
    assert lines[1] == "probe of 256 lanes: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert lanes.probe_lanes(config, torch.device("cpu"), lines.append, (256,)) == lanes.DEFAULT
    assert lanes.choose_lanes(config, torch.device("cpu"), lines.append) == lanes.DEFAULT
    # A run keeps what was probed when it goes on.
    train(project, "run", "data.lanes=0", "run.steps=1")
    monkeypatch.setattr(loop, "choose_lanes", lambda *arguments: 7)
    train(project, "run", "data.lanes=0", "run.steps=2")
    assert checkpoint.load(project / "run" / "checkpoint")[1]["identity"]["lanes"] == lanes.DEFAULT


def test_rates_follow_the_batch(project: Path) -> None:
    assert train(project, "run", "run.steps=1", "optimiser.batch=32") == "finished"
    config = load_config(project / "tiny.toml", {"optimiser.batch": 32})  # a step has 4 * 32
    trainer = loop.Trainer(
        config,
        base=project,
        shards_dirs=[project / "shards"],
        run_dir=project / "none",
        report=lambda line: None,
    )
    peaks = [group["peak"] for o in trainer._optimisers for group in o.param_groups]
    assert peaks == [2 * config.optimiser.matrix_lr, *[2 * config.optimiser.lr] * 2]


# Scans


@pytest.mark.parametrize("n_position", [1, 2, 3, 31, 32, 33, 100])
def test_scans_equal_the_loop(n_position: int) -> None:
    generator = torch.Generator().manual_seed(n_position)
    a = torch.rand(n_position, 3, 50, generator=generator)
    v, grad = (torch.randn(n_position, 3, 50, generator=generator) for _ in range(2))
    h0 = torch.randn(3, 50, generator=generator)
    names = ["chunked", "triton"] if os.environ.get("TRITON_INTERPRET") else ["chunked"]
    for name in names:
        forward, backward = scan.SCANS[name]
        torch.testing.assert_close(forward(a, v, h0), scan.scan_loop(a, v, h0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backward(a, grad), scan.scan_loop_backward(a, grad), rtol=1e-5, atol=1e-5)


def test_triton_kernels_equal_the_loop_in_its_interpreter() -> None:
    if scan.triton is None:
        pytest.skip("Triton is not installed: a CPU build of torch comes without it")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "scans_equal"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert result.returncode == 0, result.stdout


def test_a_scan_that_fails_its_probe_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert scan.probe_scan(torch.device("cpu")) == ("loop", "")
    monkeypatch.setattr(scan, "triton", None)
    assert scan.probe_scan(cuda) == ("chunked", "Triton is not installed")
    monkeypatch.setattr(scan, "triton", scan)
    # Where tensors stay on the CPU the probe runs as far as the kernels.
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *arguments: self)

    def raises(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("ptxas exited with 255\nmore")

    monkeypatch.setattr(scan, "scan_triton", raises, raising=False)
    name, reason = scan.probe_scan(cuda)
    assert (name, reason) == ("chunked", "Triton's scan failed: RuntimeError: ptxas exited with 255")
    monkeypatch.setattr(scan, "scan_triton", lambda a, v, h0: v, raising=False)
    monkeypatch.setattr(scan, "scan_triton_backward", lambda a, grad: grad, raising=False)
    name, reason = scan.probe_scan(cuda)
    assert name == "chunked"
    assert reason.startswith("Triton's scan differs from the loop by ")
    monkeypatch.setattr(scan, "scan_triton", scan.scan_loop, raising=False)
    monkeypatch.setattr(scan, "scan_triton_backward", scan.scan_loop_backward, raising=False)
    assert scan.probe_scan(cuda) == ("triton", "")


@pytest.mark.parametrize(("step_", "table_step"), [(0.0, 0.0), (0.2, 0.25), (0.0, 0.25)])
def test_weights_rounded_together_are_those_rounded_one_by_one(step_: float, table_step: float) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"embed": (40, 32), "a": (96, 32), "b": (32, 32), "c": (32, 48), "w_head": (38, 32)}
    ws = [torch.randn(s, generator=generator) * 10.0**-i for i, s in enumerate(shapes.values())]
    ws[1][3] *= 1e-5  # a row far smaller than the others
    rounding = WeightRounding(63, step_, table_step)
    together = rounded_together(ws, list(shapes), rounding, torch.bfloat16)
    for w, name, found in zip(ws, shapes, together, strict=True):
        assert torch.equal(rounded(w, name, rounding, torch.bfloat16), found), name


def test_an_optimiser_that_is_told_of_an_infinity_leaves_everything(project: Path) -> None:
    config = load_config(project / "tiny.toml")
    network = Net(config.model)
    optimisers = optim.make_optimisers(dict(network.named_parameters()), config.optimiser, torch.float32)
    for bad in (0.0, 1.0):
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        for p in network.parameters():
            p.grad = torch.full_like(p, torch.nan) if bad else torch.ones_like(p)
        for optimiser in optimisers:
            optimiser.found_inf = torch.tensor(bad)
            optimiser.step()
        same = [torch.equal(before[n], p) for n, p in network.named_parameters()]
        assert all(same) if bad else not any(same)


# Time


class Clock:
    """A clock that advances by a fixed time whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now

    def strftime(self, form: str) -> str:
        return "00:00:00"


def test_rates_have_decayed_when_the_time_is_over(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = step.Stepper.step

    def record(self: step.Stepper, window: shards.Window, rate: float, memory: float) -> None:
        rates.append(rate)
        original(self, window, rate, memory)

    monkeypatch.setattr(step.Stepper, "step", record)
    monkeypatch.setattr(loop, "time", Clock(1.0))
    options = ("run.steps=1000000", "run.minutes=2", "optimiser.decay=0.5", "optimiser.warmup=1")
    # Two commands, the first ended by its own limit: the time of both counts.
    assert "limit of 0.7 minutes" in train(project, "run", *options, "run.command_minutes=0.7")
    assert rates[-1] == 1.0
    assert train(project, "run", *options) == "finished"
    assert 0 < rates[-1] < 0.1
    assert rates == sorted(rates, reverse=True)
    seconds = checkpoint.load(project / "run" / "checkpoint")[1]["seconds"]
    assert 120 <= seconds < 130


def test_validation_follows_time_as_well(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", Clock(1.0))
    train(project, "run", "run.steps=40", "run.validate_every=1000", "run.validate_minutes=0.2")
    steps = [row["step"] for row in checkpoint.load(project / "run" / "checkpoint")[1]["curve"]]
    assert len(steps) > 3
    assert steps[-1] == 40


def test_a_command_counts_its_time_from_its_start(project: Path) -> None:
    from lmcodec.train.start import start

    options = ["run.command_minutes=1.0", "run.steps=1000"]
    began = time.monotonic() - 61
    end = start(project / "tiny.toml", run_dir=project / "run", assignments=options, started=began)
    assert end == "the limit of 1 minutes"
    assert checkpoint.load(project / "run" / "checkpoint")[1]["step"] == 1


# Exports


def test_the_best_export_stays(
    project: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 2.0, 2.5, 4.0])
    original = loop.Trainer.validate

    def validate(self: loop.Trainer) -> loop.Tally:
        tally = original(self)
        tally.bits[:] = next(scores) * tally.nbytes
        return tally

    monkeypatch.setattr(loop.Trainer, "validate", validate)
    train(
        *(project, "run", "run.steps=40", "run.validate_every=10", 'run.export_dir="kept"'),
        f'run.export_dir="{project / "kept"}"',
    )
    assert load_export(project / "kept", vocabulary)[1]["step"] == 20
    assert not (project / "run" / "export").exists()
    assert checkpoint.load(project / "run" / "checkpoint")[1]["best"] == 2.0


def test_more_text_is_gone_on_with_where_that_is_asked_for(project: Path, vocabulary: Vocabulary) -> None:
    write_corpus(project / "other", seed=2)
    list(shards.prepare(vocabulary, project / "second", corpora=project / "other", processes=2))
    train(project, "run", "run.steps=5", "run.validate_every=5")
    both = f"{project / 'shards'}{os.pathsep}{project / 'second'}"
    options = [f'data.shards="{both}"', "run.steps=10", "run.validate_every=5"]
    with pytest.raises(ConfigError, match=r"another run: text .* data\.more = true goes on with other text"):
        train(project, "run", *options)
    assert train(project, "run", *options, "data.more=true") == "finished"
    assert "resumed at step 5 with other text" in log_of(project, "run")
    train(project, "run", *options, "data.more=true", "run.steps=12")  # now the text is the same
    assert log_of(project, "run").count("with other text") == 1
    with pytest.raises(ConfigError, match="another run: model, text"):
        train(project, "run", "data.more=true", "model.mlp=64", "run.steps=15")


# Killed at each phase. The child sends itself the signal at the n-th call of a function of the trainer.

KILL = """
import os, signal, sys
from pathlib import Path
from lmcodec.train import checkpoint, curve, loop, shards, step
from lmcodec.train.start import start

owner, name, n = {owner}, {name!r}, {n}
original = getattr(owner, name)
count = 0

def killed(*arguments, **options):
    global count
    count += 1
    if count == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, killed)
start(Path(sys.argv[1]), run_dir=Path(sys.argv[2]), assignments=sys.argv[3:])
"""

PHASES = {
    "loading the text": ("shards", "load", 1, False),
    "building the network": ("loop", "Stepper", 1, False),
    "the first step": ("step.Stepper", "step", 1, False),
    "a step after a validation": ("step.Stepper", "step", 25, True),
    "the first validation": ("loop.Trainer", "validate", 1, False),
    "the second validation": ("loop.Trainer", "validate", 2, True),
    "the first export": ("loop", "save_export", 1, False),
    "the second export": ("loop", "save_export", 2, True),
    "an export's pieces": ("checkpoint.os", "fsync", 3, False),
    "a checkpoint's pieces": ("checkpoint.os", "fsync", 60, True),
    "a folder before its renaming": ("checkpoint", "_sync_folder", 30, True),
    "an export while it is replaced": ("checkpoint.Path", "rename", 3, True),
    "drawing the curve": ("loop", "draw", 1, True),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_at_any_phase_leaves_its_best_export_and_goes_on(
    project: Path, vocabulary: Vocabulary, phase: str
) -> None:
    owner, name, n, exported = PHASES[phase]
    code = textwrap.dedent(KILL.format(owner=owner, name=name, n=n))
    run = [str(project / "tiny.toml"), str(project / "run"), "run.steps=40", "run.validate_every=10"]
    if phase == "an export while it is replaced":
        run.append("run.checkpoint_minutes=1000")
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, *run],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    if exported:
        _, document = load_export(project / "run" / "export", vocabulary)
        assert document["step"] >= 10
    else:
        assert not (project / "run" / "export").exists()
        assert not (project / "run" / "export.old").exists()
    assert train(project, "run", "run.steps=40", "run.validate_every=10") == "finished"
    assert load_export(project / "run" / "export", vocabulary)[1]["step"] == 40
