"""The training loop: one code path for CPU and CUDA.

A run lives in a folder: `checkpoint/` (resumes exactly), `curve.csv` and, at the end, `curve.png`, `export/`
(averaged weights, written at each validation that is the best so far). Stopping it, by a signal, a limit of
time or a crash, loses at most what came after the last checkpoint; the same command goes on from there.
"""

from __future__ import annotations

import csv
import ctypes
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

from lmcodec.errors import ConfigError, Corrupt, reason_of
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint, scan, shards
from lmcodec.train.config import TrainConfig
from lmcodec.train.curve import draw
from lmcodec.train.exports import load_export, save_export
from lmcodec.train.grow import grow
from lmcodec.train.lanes import choose_lanes
from lmcodec.train.loss import NATS_TO_BITS, nats_of
from lmcodec.train.net import Net, WeightRounding
from lmcodec.train.optim import Muon, make_optimisers
from lmcodec.train.step import Counts, Stepper, capture_graph

# So many steps in a row that are not finite, or a training loss so far above the best, take the run back to
# its last good weights with half the rates; so many times in a row with no good step between end it.
MOST_SKIPPED = 5
EXPLODED_FACTOR, EXPLODED_BPB = 1.5, 0.3
MOST_TURNS = 3


@dataclasses.dataclass
class Tally:
    """Bits and bytes per category.

    Attributes:
        bits: (n_category,) float64.
        nbytes: (n_category,) float64.
    """

    bits: np.ndarray
    nbytes: np.ndarray

    @classmethod
    def zero(cls, n_category: int) -> Tally:
        return cls(np.zeros(n_category), np.zeros(n_category))

    @property
    def bpb(self) -> float:
        """Bits per byte over all categories."""
        return float(self.bits.sum() / max(self.nbytes.sum(), 1.0))

    def per_category(self) -> list[float | None]:
        """Bits per byte of each category; None where nothing was seen."""
        pairs = zip(self.bits.tolist(), self.nbytes.tolist(), strict=True)
        return [round(bits / nbytes, 5) if nbytes else None for bits, nbytes in pairs]


class Trainer:
    """One run.

    Args:
        config: what to do.
        base: folder that the configuration's relative paths start from.
        shards_dirs: folders of the token shards.
        run_dir: folder of the run.
        report: receives progress lines.
        started: `time.monotonic()` from which `run.command_minutes` counts; now if None.

    Raises:
        LmcodecError: one of its kinds, if vocabulary, shards, teacher or checkpoint are missing or wrong.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        base: Path,
        shards_dirs: Sequence[Path],
        run_dir: Path,
        report: Callable[[str], None],
        started: float | None = None,
    ) -> None:
        keep_freed_memory()
        self.config = config
        self.run_dir = run_dir
        self._report = report
        self._started = time.monotonic() if started is None else started
        run, data = config.run, config.data
        if run.threads:
            torch.set_num_threads(run.threads)
        self.device = _device(run.device)
        self.dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        self.vocabulary = Vocabulary.load(base / data.vocab if data.vocab else None)
        if config.model.vocab_size != len(self.vocabulary):
            raise ConfigError(
                f"model.vocab_size is {config.model.vocab_size}, but the vocabulary has "
                f"{len(self.vocabulary)} tokens"
            )
        found = checkpoint.newest(run_dir)
        tensors, document = checkpoint.load(found) if found is not None else ({}, {})
        self._choose_scan()
        self.teacher: Net | None = None
        if config.distill.teacher:
            self.teacher, _ = load_export(base / config.distill.teacher, self.vocabulary)
            self.teacher.to(self.device).dtype = self.dtype
        self.lanes = data.lanes or _lanes_of(document) or choose_lanes(config, self.device, report)
        self.categories = list(data.weights)
        corpus = shards.load(shards_dirs, self.vocabulary, data.weights)
        self._corpus_fingerprint = {c: docs.fingerprint() for c, docs in corpus.items()}
        self._corpus = corpus
        self.reader = self._make_reader(0)
        self._validation = [
            shards.validation_windows(
                corpus[c],
                self.vocabulary.nbytes,
                bos=config.model.bos,
                n_lane=self.lanes,
                n_position=data.window,
                n_byte=data.validation_nbytes,
                category=i,
            )
            for i, c in enumerate(self.categories)
        ]
        compiled = run.compile and self._may_compile()
        self.net = Net(config.model, run.seed, compiled).to(self.device)
        self.average = Net(config.model, run.seed).to(self.device)
        for net in (self.net, self.average):
            net.dtype = self.dtype
        for other in (self.average, self.teacher):
            if other is not None:
                other.ops = self.net.ops
        self._parameters = dict(self.net.named_parameters())
        self._names = {id(p): n for n, p in self._parameters.items()}
        tokens, per_step = config.optimiser.batch, self.lanes * data.window
        self._batches = per_step / tokens if tokens else 1.0  # steps of the batch that the rates are for
        self._optimisers = make_optimisers(
            self._parameters, config.optimiser, self.dtype, scale=min(max(self._batches**0.5, 0.25), 4.0)
        )
        self._nbytes = torch.tensor(self.vocabulary.nbytes.astype(np.int64), device=self.device)
        self._stepper = Stepper(
            self.net,
            self.average,
            self._optimisers,
            self._nbytes,
            n_category=len(self.categories),
            lanes=self.lanes,
            window=data.window,
            clip=config.optimiser.clip,
            teacher=self.teacher,
            share=config.distill.share,
            capture=capture_graph if self.device.type == "cuda" and run.graph else None,
            report=report,
        )
        self.step = 0
        self.seconds = 0.0
        self.trained_nbytes = 0
        self._generation = 0  # how often the text was enlarged
        # Since the last progress line, and of the line before it.
        self._pending, self._last = (Tally.zero(len(self.categories)) for _ in range(2))
        self._curve: list[dict[str, float | None]] = []
        self._best = math.inf  # validation of the export
        self._rate_factor = 1.0
        self._least_train = math.inf
        self._turns = 0  # back to the last good weights, with no good step since
        self._stop = ""
        if found is not None:
            self._resume(found, tensors, document)
        elif run.init:
            self._initialise(base / run.init)

    def _make_reader(self, generation: int) -> shards.Reader:
        data, model = self.config.data, self.config.model
        return shards.Reader(
            self._corpus,
            data.weights,
            n_lane=self.lanes,
            n_position=data.window,
            seed=data.seed + (generation << 32),
            bos=model.bos,
            mid=model.mid,
        )

    def _choose_scan(self) -> None:
        name, reason = scan.probe_scan(self.device)
        scan.use_scan(self.device.type, name)
        if reason:
            self._report(f"{reason}: the recurrence is scanned by the {name} scan in plain torch")

    def _may_compile(self) -> bool:
        """Whether there is something to compile with; that it works is seen at the first step."""
        if self.device.type == "cuda":
            reason = "" if scan.triton is not None else "Triton is not installed"
        else:
            compilers = ("cl",) if sys.platform == "win32" else (os.environ.get("CXX", "g++"), "clang++")
            found = any(shutil.which(name) for name in compilers)
            reason = "" if found else f"no C++ compiler ({' or '.join(compilers)})"
        if reason:
            self._report(f"{reason}: the element work runs unfused, slower")
        return not reason

    # Checkpoints.

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to continue."""
        data = self.config.data
        return {
            "model": dataclasses.asdict(self.config.model),
            "vocab_id": self.vocabulary.vocab_id,
            "lanes": self.lanes,
            "window": data.window,
            "data_seed": data.seed,
            "weights": data.weights,
            "text": self._corpus_fingerprint,
            "optimiser": self.config.optimiser.kind,
            "teacher": self.config.distill.teacher,
        }

    def _weights_and_moments(self) -> dict[str, Tensor]:
        """Copies of all that a step changes but the recurrent state."""
        return {n: t.detach().clone() for n, t in self._tensors_of_run().items()}

    def _tensors_of_run(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {f"net/{n}": p for n, p in self._parameters.items()}
        tensors |= {f"average/{n}": p for n, p in self.average.named_parameters()}
        for optimiser in self._optimisers:
            for p, state in optimiser.state.items():
                tensors |= {
                    f"optimiser/{self._names[id(p)]}/{k}": torch.as_tensor(t) for k, t in state.items()
                }
        return tensors

    def save(self) -> None:
        """Write the checkpoint."""
        self._collect()
        tensors = self._tensors_of_run()
        tensors |= {f"state/{n}": t for n, t in self._stepper.state.items()}
        tensors |= {f"teacher_state/{n}": t for n, t in self._stepper.teacher_state.items()}
        document = {
            "identity": self._identity(),
            "step": self.step,
            "seconds": self.seconds,
            "trained_nbytes": self.trained_nbytes,
            "reader": self.reader.state(),
            "generation": self._generation,
            "curve": self._curve,
            "best": self._best if math.isfinite(self._best) else None,
            "rate_factor": self._rate_factor,
        }
        checkpoint.save(self.run_dir / "checkpoint", tensors, document)

    def _resume(self, folder: Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        mine, its = self._identity(), document.get("identity")
        differing = [k for k in mine if not isinstance(its, dict) or its.get(k) != mine[k]]
        other_text = differing == ["text"]
        if differing and not (other_text and self.config.data.more):
            advice = "; data.more = true goes on with other text" if other_text else ""
            raise ConfigError(
                f"{folder}: checkpoint of another run: {', '.join(differing)} differ(s) from the "
                f"configuration; choose another run folder, or begin from its export with run.init{advice}"
            )
        try:
            with torch.no_grad():
                for name, p in self._parameters.items():
                    p.copy_(_fitting(tensors, f"net/{name}", p))
                for name, p in self.average.named_parameters():
                    p.copy_(_fitting(tensors, f"average/{name}", p))
                if not other_text:
                    for state, prefix in (
                        (self._stepper.state, "state/"),
                        (self._stepper.teacher_state, "teacher_state/"),
                    ):
                        for name, t in state.items():
                            t.copy_(_fitting(tensors, prefix + name, t))
            for optimiser in self._optimisers:
                for group in optimiser.param_groups:
                    for p in group["params"]:
                        name = self._names[id(p)]
                        like = {"momentum": p}
                        if not isinstance(optimiser, Muon):
                            like = {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p}
                        optimiser.state[p] = {
                            k: _fitting(tensors, f"optimiser/{name}/{k}", t).to(self.device)
                            for k, t in like.items()
                        }
            self.step = int(document["step"])
            self.seconds = float(document["seconds"])
            self.trained_nbytes = int(document["trained_nbytes"])
            self._curve = list(document["curve"])
            best = document.get("best")
            self._best = math.inf if best is None else float(best)
            self._rate_factor = float(document.get("rate_factor", 1.0))
            self._generation = int(document.get("generation", 0)) + other_text
            if self._generation:
                self.reader = self._make_reader(self._generation)
            if not other_text:
                self.reader.restore(document["reader"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Corrupt(f"{folder}: checkpoint lacks or misfits an entry: {error!r}") from None
        self._report(f"resumed at step {self.step:,}" + (" with other text" if other_text else ""))

    def _initialise(self, folder: Path) -> None:
        source, _ = load_export(folder, self.vocabulary)
        if source.config != self.config.model:
            try:
                source = grow(source, self.config.model, self.config.run.seed)
            except ConfigError as error:
                raise ConfigError(f"{folder}: {error}") from None
        self.net.load_state_dict(source.state_dict())
        self.average.load_state_dict(source.state_dict())
        self._report(f"weights from {folder}")

    def export(self, folder: Path | None = None, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Write the averaged weights alone, rounded to `dtype`; training can begin from them."""
        folder = folder or self._export_dir
        self._quantise(self.average)
        about = {
            "name": self.config.name,
            "step": self.step,
            "trained_nbytes": self.trained_nbytes,
            "curve_last": self._curve[-1] if self._curve else {},
        }
        save_export(folder, self.average, self.vocabulary, about, dtype)
        return folder

    @property
    def _export_dir(self) -> Path:
        return Path(self.config.run.export_dir) if self.config.run.export_dir else self.run_dir / "export"

    # One step.

    @property
    def progress(self) -> float:
        """Share of the run that is done, in steps or in time, whichever is more."""
        run = self.config.run
        in_time = self.seconds / (run.minutes * 60) if run.minutes else 0.0
        return min(max(self.step / run.steps, in_time), 1.0)

    def _rate(self) -> float:
        o = self.config.optimiser
        up = min(1.0, (self.step + 1) / max(o.warmup, 1))
        down = min(1.0, (1.0 - self.progress) / o.decay) if o.decay else 1.0
        return up * max(down, 0.0) * self._rate_factor

    def _quantise(self, net: Net) -> None:
        q = self.config.quantise
        net.quantise(
            0 <= q.activations_from <= self.step,
            WeightRounding(q.levels, q.step, q.table_step)
            if 0 <= q.weights_from <= self.step
            else WeightRounding(),
        )

    def train_step(self) -> None:
        """One window: forward, backward, update. The device may still be at work on it afterwards."""
        self._quantise(self.net)
        # A short memory at first, so that the random start does not linger in the average.
        ema = self.config.optimiser.ema**self._batches
        memory = min(ema, (self.step + 2) / (self.step + 11))
        self._stepper.step(self.reader.next(), self._rate(), memory)
        self.step += 1

    def _collect(self) -> Counts:
        """Read what the steps counted since the last reading into the pending tally."""
        counts = self._stepper.read()
        self._pending.bits += counts.bits
        self._pending.nbytes += counts.nbytes
        self.trained_nbytes += int(counts.nbytes.sum())
        if counts.n_skipped:
            self._report(
                f"{counts.n_skipped} step(s) before step {self.step:,} were not finite and changed nothing"
            )
        return counts

    def _look_back(self, longest: int) -> None:
        """Return to the last good weights if the run has left the ground.

        Raises:
            ConfigError: it did so again and again with no good step between.
        """
        bpb = self._pending.bpb if self._pending.nbytes.any() else math.inf
        exploded = bpb > EXPLODED_FACTOR * self._least_train + EXPLODED_BPB
        if longest < MOST_SKIPPED and not exploded:
            self._least_train = min(self._least_train, bpb)
            self._turns = 0
            return
        what = f"{longest} steps in a row were not finite"
        if longest < MOST_SKIPPED:
            what = f"training text takes {bpb:.3f} bpb, the best was {self._least_train:.3f}"
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise ConfigError(
                f"at step {self.step:,} {what}, and half the rates did not help {MOST_TURNS} times in a row: "
                "lower optimiser.lr or matrix_lr; checkpoint and best export stand"
            )
        self._rate_factor /= 2
        with torch.no_grad():
            for name, t in self._tensors_of_run().items():
                if name in self._good:
                    t.copy_(self._good[name])
                else:  # a moment that had not begun
                    t.zero_()
        self._stepper.reset()
        self._report(f"{what}: back to the last good weights, rates times {self._rate_factor:g}")

    @torch.no_grad()
    def validate(self) -> Tally:
        """Bits and bytes of the held-out documents under the averaged weights."""
        self._quantise(self.average)
        return self._stepper.guarded(self._validate)

    def _validate(self) -> Tally:
        tally = Tally.zero(len(self.categories))
        weights = self.average.weights()
        head = self.average.head(weights)
        for i, (windows, counts) in enumerate(self._validation):
            state = self.average.start(self.lanes, self.device)
            bits = torch.zeros((), dtype=torch.float64, device=self.device)
            for window, count in zip(windows, counts, strict=True):
                inputs = torch.from_numpy(window.inputs).to(self.device)
                targets = torch.from_numpy(window.targets).to(self.device).long().reshape(-1)
                begins = torch.from_numpy(window.begins).to(self.device)
                hidden, state = self.average(inputs, begins, state, weights)
                inside = torch.from_numpy(count.reshape(-1)).to(self.device)
                nats = nats_of(hidden.reshape(-1, hidden.shape[-1]), head, targets, self.dtype)
                bits += torch.where(inside, nats, 0.0).double().sum() * NATS_TO_BITS
                tally.nbytes[i] += self.vocabulary.nbytes[window.targets[count]].sum()
            tally.bits[i] = float(bits)
        return tally

    def report_validation(self) -> None:
        """Report bits per byte of each category under the averaged weights, and over all of them."""
        tally = self.validate()
        for c, v, nbytes in zip(self.categories, tally.per_category(), tally.nbytes.tolist(), strict=True):
            self._report(
                f"valid  {c:14s} {int(nbytes):>10,} bytes  " + ("-" if v is None else f"{v:.4f} bpb")
            )
        self._report(f"valid  {'all':14s} {int(tally.nbytes.sum()):>10,} bytes  {tally.bpb:.4f} bpb")

    # The run.

    def run(self) -> str:
        """Train to the end or until stopped; returns why it ended ("finished" or what stopped it)."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        model = self.config.model
        self._report(
            f"{self.config.name}: {self.net.n_parameter():,} parameters, {model.macs_per_token:,} "
            f"multiply-accumulates a token, {self.device}, {torch.get_num_threads()} threads, "
            f"{self.lanes} lanes of {self.config.data.window}"
        )
        with self._lock(), self._signals():
            try:
                stopped_by_signal = self._train()
                if stopped_by_signal and math.isfinite(self._best):
                    pass  # the export of the last validation stands: who sends a signal does not want to wait
                elif not self._curve or self._curve[-1]["step"] != self.step:
                    self._record()
                self.save()
            finally:
                self._draw()
        if self._stop:
            self._report(f"stopped at step {self.step:,} by {self._stop}; the same command goes on from here")
        return self._stop or "finished"

    def _train(self) -> bool:
        """Steps until the run ends or is stopped; whether a signal stopped it."""
        run = self.config.run
        self._good = self._weights_and_moments()
        began = saved = validated = time.monotonic()
        before = self.seconds
        since, since_nbytes, since_step = began, self.trained_nbytes, self.step
        while self.progress < 1 and not self._stop:
            self.train_step()
            now = time.monotonic()
            self.seconds = before + now - began
            ends = self.progress >= 1
            if self.step % run.log_every == 0 or ends:
                counts = self._collect()  # waits for the device
                now = time.monotonic()
                self.seconds = before + now - began
                speed = (self.trained_nbytes - since_nbytes) / max(now - since, 1e-9)
                left = (now - since) / (self.step - since_step) * (run.steps - self.step)
                if run.minutes:
                    left = min(left, run.minutes * 60 - self.seconds)
                self._report(
                    f"step {self.step:>6,}/{run.steps:,}  {self.trained_nbytes / 1e6:7.1f} MB  "
                    f"{speed / 1e3:7.1f} KB/s  train {self._pending.bpb:.4f} bpb  rate {self._rate():.3f}  "
                    f"left {_clock(max(left, 0))}"
                )
                self._look_back(counts.longest)
                self._last, self._pending = self._pending, Tally.zero(len(self.categories))
                since, since_nbytes, since_step = now, self.trained_nbytes, self.step
            late = bool(run.validate_minutes) and now - validated > run.validate_minutes * 60
            if self.step % run.validate_every == 0 or late or ends:
                self._record()
                # What validation took is no part of the speed.
                validated = time.monotonic()
                since += validated - now
            if run.command_minutes and not ends and now - self._started > run.command_minutes * 60:
                self._stop = f"the limit of {run.command_minutes:g} minutes"
                return False
            if time.monotonic() - saved > run.checkpoint_minutes * 60:
                self.save()
                saved = time.monotonic()
        return bool(self._stop)

    def _record(self) -> None:
        """Validate, add a row to the curve, and write the export if it is the best so far."""
        self._collect()
        train = self._pending if self._pending.nbytes.any() else self._last
        valid = self.validate()
        shares = np.array([self.config.data.weights[c] for c in self.categories])
        seen = valid.nbytes > 0
        each = valid.bits[seen] / valid.nbytes[seen]
        score = float((each * shares[seen]).sum() / shares[seen].sum()) if seen.any() else math.inf
        row: dict[str, float | None] = {
            "step": self.step,
            "trained_nbytes": self.trained_nbytes,
            "seconds": round(self.seconds, 1),
            "train": round(train.bpb, 5),
            "valid": round(score, 5) if math.isfinite(score) else None,
        }
        for c, t, v in zip(self.categories, train.per_category(), valid.per_category(), strict=True):
            row[f"train_{c}"] = t
            row[f"valid_{c}"] = v
        self._curve.append(row)
        for kind in ("valid", "train"):
            values = [(c, row[f"{kind}_{c}"]) for c in self.categories]
            line = "  ".join(f"{c} {v:.4f}" for c, v in values if v is not None)
            self._report(f"{kind}  {line}  mean {row[kind] or math.nan:.4f} bpb")
        temporary = self.run_dir / "curve.csv.writing"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), restval="")
            writer.writeheader()
            writer.writerows(self._curve)
        temporary.replace(self.run_dir / "curve.csv")
        if score < self._best or not (self._export_dir / "manifest.json").exists():
            self._best = min(score, self._best)
            self.export()
        if score < EXPLODED_FACTOR * self._best:
            self._good = self._weights_and_moments()

    def _draw(self) -> None:
        if not self._curve:
            return
        try:
            draw(self._curve, self.categories, self.config.name, self.run_dir / "curve.png")
        except Exception as error:  # a picture must not cost a run
            self._report(f"the curve could not be drawn: {reason_of(error)}")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time in a run's folder: two would destroy each other's checkpoint."""
        if fcntl is None:
            yield
            return
        with open(self.run_dir / "lock", "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.run_dir}: another process trains in this folder; wait for it, or choose "
                    "another --run-dir"
                ) from None
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step in hand."""

        def stop(number: int, frame: Any) -> None:
            self._stop = signal.Signals(number).name

        old = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, stop)
        except ValueError:  # not in the main thread: nothing to catch
            pass
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _fitting(tensors: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The tensor of that name, which must have the shape of `like`."""
    t = tensors[name]
    if t.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {tuple(like.shape)}")
    return t


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is 'cuda', but torch finds no CUDA device; use 'cpu' or 'auto'")
    return torch.device(name)


def _lanes_of(document: Mapping[str, Any]) -> int:
    """Lanes that a checkpoint's run was begun with; 0 without one."""
    identity = document.get("identity")
    lanes = identity.get("lanes") if isinstance(identity, dict) else 0
    return lanes if isinstance(lanes, int) and 0 < lanes <= 65_536 else 0


def keep_freed_memory() -> None:
    """Let glibc keep freed tensors: returning and faulting them in again costs a tenth of a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 1 << 28)  # M_TOP_PAD
    except (OSError, AttributeError):
        pass  # another C library


def _clock(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{int(seconds) % 60:02d}s"


def write_report_line(path: Path) -> Callable[[str], None]:
    """A reporter that prints a line and appends it to a log."""

    def report(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')}  {line}"
        print(stamped, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    return report


def describe(config: TrainConfig) -> str:
    """The configuration as one line of JSON, for logs."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)
