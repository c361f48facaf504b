"""Speed of a training step and where its time goes.

    python benchmarks/train_step.py [--config FILE] [--device cuda [--graph]] [--lanes B ...] [--eager]

Prints KB/s, the rate of the matrix products over the whole step, and the rate of plain products of the same
shapes on the same machine (what the matrix units give). Tokens are random: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import lmcodec.train
from lmcodec.train import scan
from lmcodec.train.config import TrainConfig, load_config
from lmcodec.train.lanes import DEFAULT, random_stepper, random_window
from lmcodec.train.loop import keep_freed_memory
from lmcodec.train.net_config import NetConfig
from lmcodec.train.step import capture_graph

ENGLISH = 3.27  # bytes per token of English prose under the shipped vocabulary


def product_rate(config: NetConfig, n: int, dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-accumulates a second of the step's products alone: forward and both gradients."""
    shapes = [(3 * config.recurrent, config.dim), (config.dim, config.recurrent)]
    if config.mlp:
        shapes += [(config.mlp, config.dim), (config.dim, config.mlp)]
    work = [(n, rows, columns, config.n_layer) for rows, columns in shapes]
    chunk = 8192 if device.type == "cuda" else 512
    work.append((chunk, config.vocab_size, config.dim, max(n // chunk, 1)))
    seconds = macs = 0.0
    for m, rows, columns, times in work:
        x, w = (torch.randn(k, columns, dtype=dtype, device=device) for k in (m, rows))
        g = torch.randn(m, rows, dtype=dtype, device=device)
        for repeat in range(4):
            if repeat == 1:
                synchronise(device)
                began = time.perf_counter()
            _ = x @ w.t()
            _ = g @ w
            _ = g.t() @ x
        synchronise(device)
        seconds += (time.perf_counter() - began) / 3 * times
        macs += 3.0 * m * rows * columns * times
    return macs / seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    configs = Path(lmcodec.train.__file__).parent / "configs"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=configs / "small.toml")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--lanes", type=int, nargs="+", help="one number or several, measured in turn")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--graph", action="store_true", help="capture the step as a CUDA graph")
    parser.add_argument("--float", action="store_true", help="no rounding")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    device = torch.device(options.device)
    config = load_config(options.config)
    keep_freed_memory()
    name, reason = scan.probe_scan(device)
    scan.use_scan(device.type, name)
    how = ["eager" if options.eager else "compiled", "float" if options.float else "rounded", f"{name} scan"]
    if options.graph:
        how.append("graph")
    print(
        f"{config.name}: {config.model.macs_per_token / ENGLISH / 1e6:.2f} M multiply-accumulates per byte "
        f"of English, {device}, {torch.get_num_threads()} threads, {', '.join(how)}"
        + (f" ({reason})" if reason else ""),
        flush=True,
    )
    for lanes in options.lanes or [config.data.lanes or DEFAULT]:
        measure(config, device, lanes, options)


def measure(config: TrainConfig, device: torch.device, lanes: int, options: argparse.Namespace) -> None:
    """Print the speed of steps of so many lanes."""
    model, window = config.model, config.data.window
    began = time.perf_counter()
    stepper = random_stepper(
        config,
        device,
        lanes,
        torch.bfloat16,
        compiled=not options.eager,
        rounded=not options.float,
        capture=capture_graph if options.graph else None,
    )
    data = random_window(config, lanes)

    def step() -> None:
        stepper.step(data, 1e-6, 0.999)

    for _ in range(5):
        step()
    stepper.read()  # waits for the device
    warm = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    stepper.read()
    seconds = (time.perf_counter() - began) / options.steps
    tokens = window * lanes
    rate = 3 * model.macs_per_token * tokens / seconds
    peak = product_rate(model, tokens, torch.bfloat16, device)
    print(
        f"{tokens} tokens a step: {seconds * 1e3:.1f} ms a step, "
        f"{tokens * ENGLISH / seconds / 1e3:.1f} KB/s of English, "
        f"{rate / 1e9:.0f} G multiply-accumulates/s; products alone {peak / 1e9:.0f} G/s: "
        f"{rate / peak:.0%} of what the matrix units give; warm after {warm:.1f} s",
        flush=True,
    )
    if options.profile:
        with torch.profiler.profile() as profile:
            step()
            step()
            stepper.read()
        by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=70), flush=True)


if __name__ == "__main__":
    main()
