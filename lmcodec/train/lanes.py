"""How many texts to read side by side: the fastest number that fits, from a probe of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from lmcodec.errors import reason_of
from lmcodec.train.config import TrainConfig
from lmcodec.train.net import Net, WeightRounding
from lmcodec.train.optim import make_optimisers
from lmcodec.train.shards import Window
from lmcodec.train.step import Capture, Stepper

CANDIDATES = (32, 64, 128, 256, 512)
DEFAULT = 16  # where nothing is probed
# A smaller batch is worth more updates: the smallest within so much of the best speed is taken.
WORTH = 0.92
PROBE_SECONDS = 20.0


def choose_lanes(config: TrainConfig, device: torch.device, report: Callable[[str], None]) -> int:
    """Lanes for a run of `config` on `device`.

    On CUDA some steps of each candidate are timed, on random tokens and uncompiled: compiling each shape
    would take longer than it is worth, and what is fused takes less memory, not more. On the CPU the number
    of lanes hardly changes the speed, so that nothing is probed.
    """
    if device.type != "cuda":
        return DEFAULT
    return probe_lanes(config, device, report)


def probe_lanes(
    config: TrainConfig,
    device: torch.device,
    report: Callable[[str], None],
    candidates: tuple[int, ...] = CANDIDATES,
) -> int:
    """The smallest of `candidates` whose speed is within `WORTH` of the best one's."""
    speeds: dict[int, float] = {}
    began = time.monotonic()
    for lanes in candidates:
        if speeds and time.monotonic() - began > PROBE_SECONDS:
            break
        try:
            speeds[lanes] = _speed(config, device, lanes)
        except Exception as error:  # out of memory, as a rule
            report(f"probe of {lanes} lanes: {reason_of(error)}")
            break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if not speeds:
        report(f"no probe succeeded: {DEFAULT} lanes")
        return DEFAULT
    report(
        "probe: "
        + ", ".join(f"{lanes} lanes {speed / 1e3:.0f} K tokens/s" for lanes, speed in speeds.items())
    )
    return min(lanes for lanes, speed in speeds.items() if speed >= WORTH * max(speeds.values()))


def _speed(config: TrainConfig, device: torch.device, lanes: int) -> float:
    """Tokens a second of plain steps of so many lanes."""
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    stepper = random_stepper(config, device, lanes, dtype, compiled=False)
    window = random_window(config, lanes)
    stepper.step(window, 0.0, 1.0)
    stepper.read()  # waits for the device
    n_step = 3
    began = time.perf_counter()
    for _ in range(n_step):
        stepper.step(window, 0.0, 1.0)
    stepper.read()
    return n_step * window.targets.size / (time.perf_counter() - began)


def random_stepper(
    config: TrainConfig,
    device: torch.device,
    lanes: int,
    dtype: torch.dtype,
    *,
    compiled: bool,
    rounded: bool = True,
    capture: Capture | None = None,
    report: Callable[[str], None] = print,
) -> Stepper:
    """A stepper of a new network of the configuration's shape, for measuring it."""
    net, average = Net(config.model, compiled=compiled).to(device), Net(config.model).to(device)
    average.ops = net.ops
    q = config.quantise
    for n in (net, average):
        n.dtype = dtype
        n.quantise(rounded, WeightRounding(q.levels, q.step, q.table_step) if rounded else WeightRounding())
    return Stepper(
        net,
        average,
        make_optimisers(dict(net.named_parameters()), config.optimiser, dtype),
        torch.full((config.model.vocab_size,), 3, device=device),
        n_category=1,
        lanes=lanes,
        window=config.data.window,
        clip=config.optimiser.clip,
        capture=capture,
        report=report,
    )


def random_window(config: TrainConfig, lanes: int, seed: int = 1) -> Window:
    """A window of random tokens; the time of a step does not depend on them."""
    rng = np.random.default_rng(seed)
    shape = (config.data.window, lanes)
    inputs, targets = (rng.integers(0, config.model.vocab_size, shape, np.int32) for _ in range(2))
    return Window(inputs, targets, np.zeros(shape, bool), np.zeros(shape, np.uint8))
