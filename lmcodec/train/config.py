"""A training run, described by one TOML file.

Every key is checked: an unknown one, one of another type, or a value out of range is a `ConfigError` that
names the file, the key and what was expected.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from lmcodec.errors import ConfigError, ModelNotFound
from lmcodec.train.corpus import CATEGORIES, DEFAULT_WEIGHTS
from lmcodec.train.net_config import NetConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        shards: folder of shards; `LMCODEC_SHARDS` and the command line take precedence.
        vocab: file of the vocabulary, relative to the configuration; empty for the shipped one.
        lanes: B, texts read side by side; 0 for what a probe of some seconds finds fastest on a GPU.
        window: T, positions of a step.
        seed: of cuts and shuffles.
        more: whether a checkpoint may be gone on with though the text is another: weights, optimiser, step
            and time are kept, the reader starts anew.
        validation_nbytes: held-out bytes per category.
        weights: share of each category, in bytes.
    """

    shards: str = "shards"
    vocab: str = ""
    lanes: int = 16
    window: int = 512
    seed: int = 1
    more: bool = False
    validation_nbytes: int = 200_000
    weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))


@dataclass(frozen=True)
class QuantiseConfig:
    """When rounding enters the forward pass.

    Attributes:
        activations_from: step from which activations are rounded; -1 for never.
        weights_from: step from which weights are rounded; -1 for never.
        levels: largest integer weight, at most 63.
        step: of the integer weights as a share of a row's root mean square; 0 for the largest weight /
            levels.
        table_step: likewise for the embedding; 0 for the same.
    """

    activations_from: int = 0
    weights_from: int = 0
    levels: int = 63
    step: float = 0.0
    table_step: float = 0.0


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser and schedule.

    The rate rises over `warmup` steps, stays, and falls linearly to zero over the last `decay` share of the
    run, so that a run can be extended from any checkpoint before its decay. How much of the run is done is
    its steps done / `run.steps` or its time used / `run.minutes`, whichever is more.

    Where `batch` is set and a step has k times as many tokens, all rates are sqrt(k) times the given ones (at
    most 4 times: Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022), and
    `ema` is taken to the power k.

    Attributes:
        kind: "muon" (matrices inside layers; AdamW for the rest) or "adamw".
        lr: AdamW's rate for embedding, output and vectors.
        matrix_lr: rate for the matrices inside layers, under either kind.
        weight_decay: decoupled, for matrices inside layers.
        table_decay: decoupled, for embedding and output.
        beta1, beta2: AdamW's.
        momentum: Muon's.
        clip: largest norm of the gradient.
        warmup: steps.
        decay: share of the run.
        ema: decay of the averaged weights per step.
        batch: tokens of a step that the rates are meant for; 0 for however many there are.
    """

    kind: str = "muon"
    lr: float = 0.003
    matrix_lr: float = 0.02
    weight_decay: float = 0.1
    table_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    momentum: float = 0.95
    clip: float = 1.0
    warmup: int = 100
    decay: float = 0.3
    ema: float = 0.998
    batch: int = 0


@dataclass(frozen=True)
class DistillConfig:
    """A teacher over the same vocabulary.

    Attributes:
        teacher: weights-only export of the teacher, relative to the configuration; empty for none.
        share: of the teacher's distribution in the target.
    """

    teacher: str = ""
    share: float = 0.5


@dataclass(frozen=True)
class RunConfig:
    """How the run goes.

    Attributes:
        steps: in all, at most.
        threads: of torch on the CPU; 0 for its default.
        device: "cpu", "cuda" or "auto".
        precision: of the matrix products, "bf16" or "float32".
        compile: fuse the element work with torch.compile where a compiler is at hand and works.
        graph: capture the step as a CUDA graph where that works.
        seed: of the initial weights.
        checkpoint_minutes: between checkpoints.
        validate_every: steps between validations.
        validate_minutes: between validations at most; 0 for no such limit.
        log_every: steps between progress lines.
        minutes: of the whole run, over all commands that went on with it; 0 for no limit. When they are over
            the run is finished, its rates decayed.
        command_minutes: from the start of this command; 0 for no limit. The run stops cleanly and resumes
            later.
        export_dir: folder of the best export so far; empty for `export` in the run's folder.
        init: weights-only export to begin from, relative to the configuration; empty for none. One of a
            smaller network is grown to this one's shape (train/grow.py).
    """

    steps: int = 1000
    threads: int = 0
    device: str = "auto"
    precision: str = "bf16"
    compile: bool = True
    graph: bool = True
    seed: int = 1
    checkpoint_minutes: float = 5.0
    validate_every: int = 500
    validate_minutes: float = 0.0
    log_every: int = 20
    minutes: float = 0.0
    command_minutes: float = 0.0
    export_dir: str = ""
    init: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: str
    model: NetConfig
    data: DataConfig = field(default_factory=DataConfig)
    quantise: QuantiseConfig = field(default_factory=QuantiseConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    run: RunConfig = field(default_factory=RunConfig)


_RANGES: dict[str, tuple[float, float]] = {
    "data.lanes": (0, 65_536),
    "data.window": (2, 65_536),
    "data.validation_nbytes": (1, 1 << 30),
    "data.seed": (0, 2**63),
    "quantise.activations_from": (-1, 1e9),
    "quantise.weights_from": (-1, 1e9),
    "optimiser.weight_decay": (0, 10),
    "optimiser.table_decay": (0, 10),
    "optimiser.beta1": (0, 0.999999),
    "optimiser.beta2": (0, 0.999999),
    "run.threads": (0, 4096),
    "run.seed": (0, 2**63),
    "quantise.levels": (1, 63),
    "quantise.step": (0, 10),
    "quantise.table_step": (0, 10),
    "optimiser.lr": (0, 1),
    "optimiser.matrix_lr": (0, 1),
    "optimiser.decay": (0, 1),
    "optimiser.ema": (0, 1),
    "optimiser.momentum": (0, 1),
    "optimiser.clip": (1e-9, 1e9),
    "optimiser.warmup": (0, 1e9),
    "optimiser.batch": (0, 1e9),
    "distill.share": (0, 1),
    "run.steps": (1, 1e9),
    "run.log_every": (1, 1e9),
    "run.validate_every": (1, 1e9),
    "run.checkpoint_minutes": (0, 1e6),
    "run.minutes": (0, 1e6),
    "run.command_minutes": (0, 1e6),
    "run.validate_minutes": (0, 1e6),
}
_CHOICES = {
    "optimiser.kind": ("muon", "adamw"),
    "run.device": ("auto", "cpu", "cuda"),
    "run.precision": ("bf16", "float32"),
}

T = TypeVar("T")


def _build(cls: type[T], table: dict[str, Any], prefix: str) -> T:
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{prefix}{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown key '{name}'; {hint}")
        hint_type = hints[key]
        if is_dataclass(hint_type):
            if not isinstance(value, dict):
                raise ConfigError(f"'{name}' is {value!r}, expected a table [{name}]")
            values[key] = _build(hint_type, value, f"{name}.")  # type: ignore[arg-type]
            continue
        values[key] = _checked(name, value, hint_type)
    for key, f in known.items():
        if key not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"key '{prefix}{key}' is missing")
    return cls(**values)


def _checked(name: str, value: Any, kind: Any) -> Any:
    if name == "data.weights":
        return _checked_weights(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"'{name}' is {value!r}, expected {kind.__name__}")
    if name in _RANGES:
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise ConfigError(f"'{name}' is {value!r}, expected {low:g} to {high:g}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"'{name}' is {value!r}, expected one of {', '.join(_CHOICES[name])}")
    return value


def _checked_weights(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise ConfigError("'data.weights' must be a table of category = share")
    for category, share in value.items():
        if category not in CATEGORIES:
            raise ConfigError(f"unknown category 'data.weights.{category}'; known: {', '.join(CATEGORIES)}")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1e9:
            raise ConfigError(f"'data.weights.{category}' is {share!r}, expected a positive number")
    return {c: float(value[c]) for c in CATEGORIES if c in value}


def _check_together(config: TrainConfig) -> None:
    """Rules over more than one key."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", config.name):
        raise ConfigError(f"'name' is {config.name!r}, expected letters, digits, '.', '_' and '-'")
    if config.model.attention and config.quantise.activations_from >= 0:
        raise ConfigError(
            "model.attention has no integer definition: set quantise.activations_from = -1 to train in float"
        )


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ModelNotFound: if the file cannot be read.
        ConfigError: if it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFound(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The run described by the TOML file at `path`.

    Args:
        path: of the file.
        overrides: values by dotted key ("run.minutes") that take precedence.

    Raises:
        ModelNotFound: if the file cannot be read.
        ConfigError: if it is not TOML, or a key or value is wrong; the message names the file and the key.
    """
    table = read_toml(path)
    for dotted, value in (overrides or {}).items():
        *tables, key = dotted.split(".")
        if tables == ["data", "weights"] and isinstance(table.get("data", {}), dict):
            table.setdefault("data", {}).setdefault("weights", dict(DEFAULT_WEIGHTS))
        inner = table
        for name in tables:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{path}: '{name}' is not a table")
        inner[key] = value
    try:
        config = _build(TrainConfig, table, "")
        _check_together(config)
        return config
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Overrides by dotted key from KEY=VALUE texts, values in TOML's notation or plain words.

    Raises:
        ConfigError: if one has no '='.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"'--set {assignment}': expected KEY=VALUE, as in run.minutes=30")
        try:
            result[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            result[key.strip()] = text
    return result
