"""Speed of a training step and where its time goes.

    python benchmarks/train_step.py [--config FILE] [--lanes B] [--eager] [--profile]

Prints KB/s, the rate of the matrix products over the whole step, and the rate of plain products of the same
shapes on the same machine (what the matrix units give). Tokens are random: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import lmcodec.train
from lmcodec.lm.recurrent.shape import NetConfig
from lmcodec.train.config import load_config
from lmcodec.train.loop import MATRICES, keep_freed_memory
from lmcodec.train.loss import cross_entropy
from lmcodec.train.net import Net, WeightRounding
from lmcodec.train.optim import Muon

ENGLISH = 3.27  # bytes per token of English prose under the shipped vocabulary


def product_rate(config: NetConfig, n: int, dtype: torch.dtype) -> float:
    """Multiply-accumulates a second of the step's products alone: forward and both gradients."""
    shapes = [(3 * config.recurrent, config.dim), (config.dim, config.recurrent)]
    if config.mlp:
        shapes += [(config.mlp, config.dim), (config.dim, config.mlp)]
    work = [(n, rows, columns, config.n_layer) for rows, columns in shapes]
    work.append((512, config.vocab_size, config.dim, n // 512))
    seconds = macs = 0.0
    for m, rows, columns, times in work:
        x, w = torch.randn(m, columns, dtype=dtype), torch.randn(rows, columns, dtype=dtype)
        g = torch.randn(m, rows, dtype=dtype)
        for repeat in range(4):
            if repeat == 1:
                began = time.perf_counter()
            _ = x @ w.t()
            _ = g @ w
            _ = g.t() @ x
        seconds += (time.perf_counter() - began) / 3 * times
        macs += 3.0 * m * rows * columns * times
    return macs / seconds


def main() -> None:
    configs = Path(lmcodec.train.__file__).parent / "configs"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=configs / "small.toml")
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--float", action="store_true", help="no rounding")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    config = load_config(options.config)
    model, window = config.model, config.data.window
    lanes = options.lanes or config.data.lanes
    keep_freed_memory()
    net = Net(model, compiled=not options.eager)
    net.dtype = torch.bfloat16
    net.quantise(not options.float, WeightRounding(0 if options.float else 63))
    matrices = [p for n, p in net.named_parameters() if n.split(".")[-1] in MATRICES]
    others = [p for p in net.parameters() if all(p is not m for m in matrices)]
    optimisers = [Muon(matrices, lr=1e-3), torch.optim.AdamW(others, lr=1e-4, fused=True)]
    inputs = torch.randint(0, model.vocab_size, (window, lanes), dtype=torch.int32)
    targets = torch.randint(0, model.vocab_size, (window * lanes,))
    begins = torch.zeros(window, lanes, dtype=torch.bool)
    state = net.start(lanes)

    def step() -> None:
        nonlocal state
        hidden, state = net(inputs, begins, state)
        loss, _ = cross_entropy(hidden.flatten(0, 1), net.head(), targets, dtype=torch.bfloat16)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    seconds = (time.perf_counter() - began) / options.steps
    tokens = window * lanes
    rate = 3 * model.macs_per_token * tokens / seconds
    peak = product_rate(model, tokens, torch.bfloat16)
    print(
        f"{config.name}: {model.macs_per_token / ENGLISH / 1e6:.2f} M multiply-accumulates per byte of "
        f"English, {torch.get_num_threads()} threads, {tokens} tokens a step, "
        f"{'eager' if options.eager else 'compiled'}, {'float' if options.float else 'rounded'}"
    )
    print(
        f"{seconds * 1e3:.0f} ms a step, {tokens * ENGLISH / seconds / 1e3:.1f} KB/s of English, "
        f"{rate / 1e9:.0f} G multiply-accumulates/s; products alone {peak / 1e9:.0f} G/s: "
        f"{rate / peak:.0%} of what the matrix units give"
    )
    if options.profile:
        with torch.profiler.profile() as profile:
            step()
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


if __name__ == "__main__":
    main()
