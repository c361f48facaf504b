"""The training loop: one code path for CPU and CUDA.

A run lives in a folder: `checkpoint/` (resumes exactly), `curve.csv` and `curve.png`, `export/` (averaged
weights, written when the run ends). Stopping it, by a signal, the wall-clock limit or a crash, loses at most
what came after the last checkpoint; the same command goes on from there.
"""

from __future__ import annotations

import csv
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
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

from lmcodec.errors import ConfigError, Corrupt, ModelNotFound
from lmcodec.lm import weights
from lmcodec.lm.recurrent.shape import NetConfig
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint, shards
from lmcodec.train.config import TrainConfig
from lmcodec.train.curve import draw
from lmcodec.train.export import float_network
from lmcodec.train.grow import grow
from lmcodec.train.loss import NATS_TO_BITS, cross_entropy, nats_of
from lmcodec.train.net import WEIGHT_MAX, Net, State, WeightRounding
from lmcodec.train.optim import Muon

MATRICES = ("w_in", "w_out", "w_up", "w_down")  # of a layer, in a parameter's last name


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
        shards_dir: folder of the token shards.
        run_dir: folder of the run.
        report: receives progress lines.

    Raises:
        LmcodecError: one of its kinds, if vocabulary, shards, teacher or checkpoint are missing or wrong.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        base: Path,
        shards_dir: Path,
        run_dir: Path,
        report: Callable[[str], None],
    ) -> None:
        keep_freed_memory()
        self.config = config
        self.run_dir = run_dir
        self._report = report
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
        self.categories = list(data.weights)
        corpus = shards.load(shards_dir, self.vocabulary, data.weights)
        self._nbytes = torch.tensor(self.vocabulary.nbytes.astype(np.int64), device=self.device)
        self._corpus_fingerprint = {c: docs.fingerprint() for c, docs in corpus.items()}
        tokens = {"bos": config.model.bos, "mid": config.model.mid}
        self.reader = shards.Reader(
            corpus, data.weights, n_lane=data.lanes, n_position=data.window, seed=data.seed, **tokens
        )
        self._validation = [
            shards.validation_windows(
                corpus[c],
                self.vocabulary.nbytes,
                bos=config.model.bos,
                n_lane=data.lanes,
                n_position=data.window,
                n_byte=data.validation_nbytes,
                category=i,
            )
            for i, c in enumerate(self.categories)
        ]
        compiled = run.compile and _can_compile(self.device)
        if run.compile and not compiled:
            report("no compiler for this device: the element work runs unfused, slower")
        self.net = Net(config.model, run.seed, compiled).to(self.device)
        self.average = Net(config.model, run.seed).to(self.device)
        self.average.ops = self.net.ops
        for net in (self.net, self.average):
            net.dtype = self.dtype
        self._parameters = dict(self.net.named_parameters())
        self._names = {id(p): n for n, p in self._parameters.items()}
        self._optimisers = self._make_optimisers()
        self.state = self.net.start(data.lanes, self.device)
        self.teacher: Net | None = None
        self._teacher_state: State = {}
        if config.distill.teacher:
            self.teacher, _ = load_export(base / config.distill.teacher, self.vocabulary)
            self.teacher.to(self.device).dtype = self.dtype
            self.teacher.ops = self.net.ops
            self._teacher_state = self.teacher.start(data.lanes, self.device)
        self.step = 0
        self.seconds = 0.0
        self.trained_nbytes = 0
        self._curve: list[dict[str, float | None]] = []
        self._stop = ""
        found = checkpoint.newest(run_dir)
        if found is not None:
            self._resume(found)
        elif run.init:
            self._initialise(base / run.init)

    def _make_optimisers(self) -> list[torch.optim.Optimizer]:
        o = self.config.optimiser
        matrices = [p for n, p in self._parameters.items() if n.rsplit(".", 1)[-1] in MATRICES]
        tables = [p for n, p in self._parameters.items() if n in ("embed", "w_head", "bigram")]
        chosen = {id(p) for p in matrices + tables}
        vectors = [p for p in self._parameters.values() if id(p) not in chosen]
        groups = [
            {"params": tables, "lr": o.lr, "weight_decay": o.table_decay},
            {"params": vectors, "lr": o.lr, "weight_decay": 0.0},
        ]
        optimisers: list[torch.optim.Optimizer] = []
        if o.kind == "muon":
            parts = {
                p: 3 for n, p in self._parameters.items() if n.startswith("layers.") and n.endswith("w_in")
            }
            dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
            optimisers.append(
                Muon(
                    matrices,
                    lr=o.matrix_lr,
                    momentum=o.momentum,
                    weight_decay=o.weight_decay,
                    parts=parts,
                    dtype=dtype,
                )
            )
        else:
            groups.append({"params": matrices, "lr": o.matrix_lr, "weight_decay": o.weight_decay})
        optimisers.append(torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=1e-9, fused=True))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["peak"] = group["lr"]
        return optimisers

    # Checkpoints.

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to continue."""
        data = self.config.data
        return {
            "model": dataclasses.asdict(self.config.model),
            "vocab_id": self.vocabulary.vocab_id,
            "lanes": data.lanes,
            "window": data.window,
            "data_seed": data.seed,
            "weights": data.weights,
            "text": self._corpus_fingerprint,
            "optimiser": self.config.optimiser.kind,
            "teacher": self.config.distill.teacher,
        }

    def save(self) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {f"net/{n}": p for n, p in self._parameters.items()}
        tensors |= {f"average/{n}": p for n, p in self.average.named_parameters()}
        tensors |= {f"state/{n}": t for n, t in self.state.items()}
        tensors |= {f"teacher_state/{n}": t for n, t in self._teacher_state.items()}
        for optimiser in self._optimisers:
            for p, state in optimiser.state.items():
                tensors |= {
                    f"optimiser/{self._names[id(p)]}/{k}": torch.as_tensor(t) for k, t in state.items()
                }
        document = {
            "identity": self._identity(),
            "step": self.step,
            "seconds": self.seconds,
            "trained_nbytes": self.trained_nbytes,
            "reader": self.reader.state(),
            "curve": self._curve,
        }
        checkpoint.save(self.run_dir / "checkpoint", tensors, document)

    def _resume(self, folder: Path) -> None:
        tensors, document = checkpoint.load(folder)
        mine, its = self._identity(), document.get("identity")
        if its != mine:
            differing = [k for k in mine if not isinstance(its, dict) or its.get(k) != mine[k]]
            raise ConfigError(
                f"{folder}: checkpoint of another run: {', '.join(differing)} differ(s) from the "
                "configuration; choose another run folder, or begin from its export with run.init"
            )
        try:
            with torch.no_grad():
                for name, p in self._parameters.items():
                    p.copy_(_fitting(tensors, f"net/{name}", p))
                for name, p in self.average.named_parameters():
                    p.copy_(_fitting(tensors, f"average/{name}", p))
            for target, prefix in ((self.state, "state/"), (self._teacher_state, "teacher_state/")):
                for name, t in target.items():
                    target[name] = _fitting(tensors, prefix + name, t).to(self.device)
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
            self.reader.restore(document["reader"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Corrupt(f"{folder}: checkpoint lacks or misfits an entry: {error!r}") from None
        self._report(f"resumed at step {self.step:,}")

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
        folder = folder or self.run_dir / "export"
        self._quantise(self.average)
        tensors = {n: p.to(dtype) for n, p in self.average.named_parameters()}
        document = {
            "model": dataclasses.asdict(self.config.model),
            "vocab_id": self.vocabulary.vocab_id,
            "name": self.config.name,
            "step": self.step,
            "trained_nbytes": self.trained_nbytes,
            "rounded_activations": self.average.quantise_activations,
            "weight_levels": self.average.rounding.levels,
            "weight_step": self.average.rounding.step,
            "table_step": self.average.rounding.table_step,
            "curve_last": self._curve[-1] if self._curve else {},
        }
        checkpoint.save(folder, tensors, document)
        return folder

    # One step.

    def _rate(self) -> float:
        o, total = self.config.optimiser, self.config.run.steps
        up = min(1.0, (self.step + 1) / max(o.warmup, 1))
        falling = o.decay * total
        down = min(1.0, (total - self.step) / falling) if falling else 1.0
        return up * max(down, 0.0)

    def _quantise(self, net: Net) -> None:
        q = self.config.quantise
        net.quantise(
            0 <= q.activations_from <= self.step,
            WeightRounding(q.levels, q.step, q.table_step)
            if 0 <= q.weights_from <= self.step
            else WeightRounding(),
        )

    def _tensors(self, window: shards.Window) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.from_numpy(window.inputs).to(self.device, non_blocking=True),
            torch.from_numpy(window.targets).to(self.device, non_blocking=True).long().reshape(-1),
            torch.from_numpy(window.begins).to(self.device, non_blocking=True),
        )

    def train_step(self, tally: Tally) -> None:
        """One window: forward, backward, update; adds its bits to `tally`."""
        window = self.reader.next()
        inputs, targets, begins = self._tensors(window)
        self._quantise(self.net)
        hidden, self.state = self.net(inputs, begins, self.state)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                seen, self._teacher_state = self.teacher(inputs, begins, self._teacher_state)
                teacher = (seen.reshape(-1, seen.shape[-1]), self.teacher.head())
        loss, nats = cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            self.net.head(),
            targets,
            teacher=teacher,
            share=self.config.distill.share,
            dtype=self.dtype,
        )
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.config.optimiser.clip)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            raise ConfigError(
                f"loss or gradient is not finite at step {self.step + 1}: lower optimiser.lr or matrix_lr; "
                "the last checkpoint stands"
            )
        rate = self._rate()
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate
            optimiser.step()
        self.step += 1
        # A short memory at first, so that the random start does not linger in the average.
        memory = min(self.config.optimiser.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self._parameters.values()), 1 - memory)
        self._count(tally, nats, targets, window.category)

    def _count(self, tally: Tally, nats: Tensor, targets: Tensor, category: np.ndarray) -> None:
        n_category = len(self.categories)
        where = torch.from_numpy(category.reshape(-1).astype(np.int64)).to(self.device)
        bits = torch.zeros(n_category, dtype=torch.float64, device=self.device)
        bits.index_add_(0, where, nats.double() * NATS_TO_BITS)
        nbytes = torch.bincount(where, self._nbytes[targets].double(), minlength=n_category)
        counted = torch.stack((bits, nbytes)).cpu().numpy()
        tally.bits += counted[0]
        tally.nbytes += counted[1]
        self.trained_nbytes += int(counted[1].sum())

    @torch.no_grad()
    def validate(self) -> Tally:
        """Bits and bytes of the held-out documents under the averaged weights."""
        tally = Tally.zero(len(self.categories))
        self._quantise(self.average)
        head = self.average.head()
        for i, (windows, counts) in enumerate(self._validation):
            state = self.average.start(self.config.data.lanes, self.device)
            for window, count in zip(windows, counts, strict=True):
                inputs, targets, begins = self._tensors(window)
                hidden, state = self.average(inputs, begins, state)
                inside = torch.from_numpy(count.reshape(-1)).to(self.device)
                nats = nats_of(hidden.reshape(-1, hidden.shape[-1]), head, targets, self.dtype)
                tally.bits[i] += float(nats[inside].double().sum()) * NATS_TO_BITS
                tally.nbytes[i] += float(self._nbytes[targets[inside]].sum())
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
        run = self.config.run
        self.run_dir.mkdir(parents=True, exist_ok=True)
        model = self.config.model
        self._report(
            f"{self.config.name}: {self.net.n_parameter():,} parameters, {model.macs_per_token:,} "
            f"multiply-accumulates a token, {self.device}, {torch.get_num_threads()} threads"
        )
        began = saved = time.monotonic()
        before = self.seconds
        since, since_nbytes, since_step = began, self.trained_nbytes, self.step
        tally = last = Tally.zero(len(self.categories))
        with self._lock(), self._signals():
            while self.step < run.steps and not self._stop:
                self.train_step(tally)
                now = time.monotonic()
                self.seconds = before + now - began
                if self.step % run.log_every == 0 or self.step == run.steps:
                    speed = (self.trained_nbytes - since_nbytes) / max(now - since, 1e-9)
                    left = (now - since) / (self.step - since_step) * (run.steps - self.step)
                    self._report(
                        f"step {self.step:>6,}/{run.steps:,}  {self.trained_nbytes / 1e6:7.1f} MB  "
                        f"{speed / 1e3:7.1f} KB/s  train {tally.bpb:.4f} bpb  rate {self._rate():.3f}  "
                        f"left {_clock(left)}"
                    )
                    last, tally = tally, Tally.zero(len(self.categories))
                    since, since_nbytes, since_step = now, self.trained_nbytes, self.step
                if self.step % run.validate_every == 0 or self.step == run.steps:
                    self._record(tally if tally.nbytes.any() else last)
                    # What validation took is no part of the speed.
                    since += time.monotonic() - now
                if run.minutes and now - began > run.minutes * 60 and self.step < run.steps:
                    self._stop = f"the limit of {run.minutes:g} minutes"
                if time.monotonic() - saved > run.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
            self.save()
            self.export()
        if self._stop:
            self._report(f"stopped at step {self.step:,} by {self._stop}; the same command goes on from here")
        return self._stop or "finished"

    def _record(self, train: Tally) -> None:
        valid = self.validate()
        row: dict[str, float | None] = {
            "step": self.step,
            "trained_nbytes": self.trained_nbytes,
            "seconds": round(self.seconds, 1),
            "train": round(train.bpb, 5),
        }
        for c, t, v in zip(self.categories, train.per_category(), valid.per_category(), strict=True):
            row[f"train_{c}"] = t
            row[f"valid_{c}"] = v
        self._curve.append(row)
        for kind in ("valid", "train"):
            values = [(c, row[f"{kind}_{c}"]) for c in self.categories]
            self._report(f"{kind}  " + "  ".join(f"{c} {v:.4f}" for c, v in values if v is not None) + " bpb")
        with open(self.run_dir / "curve.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(self._curve)
        draw(self._curve, self.categories, self.config.name, self.run_dir / "curve.png")

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


def load_export(folder: Path, vocabulary: Vocabulary) -> tuple[Net, dict[str, Any]]:
    """The network of a weights-only export or of a model file, and what it says of itself.

    Raises:
        ModelNotFound: there is none, or it was trained over another vocabulary.
        ConfigError: it is a run's checkpoint.
        Corrupt: its tensors do not fit its shape.
    """
    if folder.is_file():
        return _load_integer(folder, vocabulary)
    tensors, document = checkpoint.load(folder)
    if "rounded_activations" not in document:
        raise ConfigError(f"{folder}: the state of a run, not its weights; name {folder.parent / 'export'}")
    if document.get("vocab_id") != vocabulary.vocab_id:
        raise ModelNotFound(
            f"{folder}: export over vocabulary {document.get('vocab_id')}, expected {vocabulary.vocab_id}"
        )
    try:
        config = NetConfig(**document["model"])
        with torch.device("meta"):  # shapes first: a hostile one must not cost memory
            expected = {n: p.shape for n, p in Net(config, allocate=False).named_parameters()}
        if {n: t.shape for n, t in tensors.items()} != expected:
            raise ValueError("names or shapes of its tensors differ")
        net = Net(config)
        net.load_state_dict({n: t.float() for n, t in tensors.items()})
        net.quantise(bool(document["rounded_activations"]), _rounding_of(document))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Corrupt(f"{folder}: export does not fit its shape: {str(error).splitlines()[0]}") from None
    net.eval()
    return net, document


def _load_integer(path: Path, vocabulary: Vocabulary) -> tuple[Net, dict[str, Any]]:
    model = weights.load(path).model
    if model.vocabulary != vocabulary:
        raise ModelNotFound(
            f"{path}: model over vocabulary {model.vocabulary.vocab_id}, expected {vocabulary.vocab_id}"
        )
    document = {"name": path.stem, "step": 0, "trained_nbytes": 0, **model.card}
    return float_network(model), document


def _rounding_of(document: dict[str, Any]) -> WeightRounding:
    levels = int(document["weight_levels"])
    step, table_step = float(document.get("weight_step", 0)), float(document.get("table_step", 0))
    if not (0 <= levels <= WEIGHT_MAX and 0 <= step < 100 and 0 <= table_step < 100):
        raise ValueError(f"rounding by {levels} levels and steps of {step} and {table_step}")
    return WeightRounding(levels, step, table_step)


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


def _can_compile(device: torch.device) -> bool:
    if device.type == "cuda":
        from lmcodec.train.scan import triton

        return triton is not None
    if sys.platform == "win32":
        return shutil.which("cl") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None or shutil.which("clang++") is not None


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
