"""What this machine can do, and how far from it each stage of coding is.

    python benchmarks/limits.py [FILE] [--levels 1 2 5 6] [--nbytes 1048576] [--runs 1] [--model NAME]

Measures once, on one thread: int8 products by the fastest of PyTorch's ways (`torch._int_mm`, which is
oneDNN, and the quantised linear layer of its engines) at the shapes of the model and 1 to 256 rows, beside
the kernel's own; reading from caches and memory; reads at random lines of a table of 32 MiB, one after
another and fetched ahead (limits.cpp, compiled here). Then it profiles FILE as `lmcodec bench --profile`
does and prints for each stage the time that its counted work would take at the machine's limit: products at
the faster of the library's rate and the kernel's best at as many rows; cache lines looked up, fetched
ahead; bytes of weights, frequencies and states read from the second cache. The last is a floor: it leaves
out all arithmetic. Stages without a limit are arithmetic on single values. Without PyTorch only the
kernel's own rate limits products.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec import _kernel
from lmcodec.lm import store
from lmcodec.lm.recurrent.model import shapes
from lmcodec.lm.store import Model
from lmcodec.measure.blocks import model_of
from lmcodec.measure.machine import describe
from lmcodec.measure.timing import STAGES, BlockTiming, time_block
from lmcodec.profile import Profile, load

ROWS = (1, 4, 16, 64, 256)
SEQUENCE_ROWS = 256  # positions that encoding takes at once
L2 = "read_512"
REPEATS = 7


def memory_limits() -> dict[str, float]:
    """What limits.cpp prints."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise SystemExit("no C++ compiler is on the PATH: set CXX")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "limits")
        source = str(Path(__file__).with_suffix(".cpp"))
        subprocess.run([compiler, "-std=c++17", "-O3", "-march=native", source, "-o", program], check=True)
        run = subprocess.run([program], check=True, capture_output=True, encoding="utf-8")
    return {name: float(value) for name, value in (line.split() for line in run.stdout.splitlines())}


def best_seconds(work: Callable[[], Any], seconds: float = 0.02) -> float:
    """Of the fastest of some repeats, each of several calls."""
    work()
    best = float("inf")
    for _ in range(REPEATS):
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds / REPEATS or not count:
            work()
            count += 1
        best = min(best, spent / count)
    return best


def library_rates(model: Model) -> dict[int, float]:
    """Multiply-accumulates a second of PyTorch's int8 products by rows; empty without PyTorch."""
    try:
        import torch
    except ImportError:
        print("\nPyTorch is missing: the kernel's own products are the limit")
        return {}
    torch.set_num_threads(1)
    products = [(n, k) for name, (n, k, _) in shapes(model.header.config).items() if name != "embed"]
    rates = {}
    for rows in ROWS:
        spent = 0.0
        for n, k in products:
            u = torch.randint(-127, 128, (rows, k), dtype=torch.int8)
            w = torch.randint(-63, 64, (n, k), dtype=torch.int8)
            ways = [best_seconds(lambda u=u, w=w: torch._int_mm(u, w.t()))]  # type: ignore[misc]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantised tensors are on their way out of PyTorch
                for name in {"x86", "fbgemm", "onednn"} & {*torch.backends.quantized.supported_engines}:
                    torch.backends.quantized.engine = name
                    floats = torch.randn(rows, k), torch.randn(n, k)
                    quantised = torch.quantize_per_tensor(floats[0], 0.05, 64, torch.quint8)
                    weight = torch.quantize_per_tensor(floats[1], 0.05, 0, torch.qint8)
                    packed = torch.ops.quantized.linear_prepack(weight, None)
                    linear = torch.ops.quantized.linear
                    ways.append(best_seconds(lambda a=quantised, p=packed, f=linear: f(a, p, 0.1, 64)))  # type: ignore[misc]
            spent += min(ways)
        rates[rows] = rows * sum(n * k for n, k in products) / spent
    return rates


def kernel_rates(model: Model) -> dict[int, float]:
    """The same of the kernel's products, requantisation and all; 256 rows as a sequence."""
    rates = {}
    rng = np.random.default_rng(1)
    for rows in ROWS:
        streams = min(rows, 16) if rows == SEQUENCE_ROWS else rows
        tokens = rng.integers(0, model.header.config.vocab_size, (rows // streams, streams)).astype(np.uint32)
        best = float("inf")
        for _ in range(REPEATS * max(1, 64 // rows)):
            session = _kernel.RecurrentSession(model.network, streams, False, True)
            session.run(tokens, None, None)
            best = min(best, session.times[0])
        rates[rows] = model.macs_per_token * rows / best
    return rates


def profile_of(found: BlockTiming, model: Model | None) -> Profile | None:
    if found.method == "cm":
        return load(found.profile)
    return None if found.method != "lm+cm" or model is None else model.profile(found.profile)


def stage_limits(
    found: BlockTiming,
    model: Model | None,
    memory: dict[str, float],
    rates: dict[int, float],
    *,
    encoding: bool,
) -> dict[str, float]:
    """Seconds a byte that the counted work of stages needs at least."""
    tokens, decisions = found.n_token / found.nbytes, found.n_decision / found.nbytes
    l2 = memory[L2]
    limits: dict[str, float] = {}
    if found.n_token and model is not None:
        shape = model.header.config
        rows = SEQUENCE_ROWS if encoding else -(-found.streams // found.groups)
        nearest = min(ROWS, key=lambda n: abs(n.bit_length() - rows.bit_length()))
        limits["products"] = found.macs_per_byte / rates[nearest]
        # A norm reads int32 and writes bytes, twice a layer; the recurrence reads three gates and its state,
        # and writes this and a byte; an embedding becomes int32.
        layer = 2 * 5 * shape.dim + (3 + 8 + 1) * shape.recurrent
        limits["elements"] = tokens * (shape.n_layer * layer + 10 * shape.dim) / l2
        limits["frequencies"] = tokens * 8 * shape.vocab_size / l2
        # Two spans, each of two sums of half a block of 64 frequencies.
        limits["sums"] = decisions * 2 * 2 * 128 / l2
    chosen = profile_of(found, model)
    if chosen is not None:
        n_context = len(chosen.spec["contexts"])
        weights = len(chosen.spec["selectors"]) * chosen.kernel.n_input * 4
        # A line for each context and nibble, those of a lookup fetched ahead together.
        line_ns = memory["batch_48_ns" if n_context > 30 else "batch_16_ns"]
        limits["lookup"] = 2 * n_context * line_ns * 1e-9
        limits["predict"] = decisions * weights / l2
        limits["update"] = decisions * 2 * weights / l2
    return limits


def print_stages(
    found: BlockTiming, model: Model | None, memory: dict[str, float], rates: dict[int, float]
) -> None:
    how = f"{found.method}, streams: {found.streams}, groups: {found.groups}"
    print(f"level {found.level} ({how}), {found.packed_nbytes:,} bytes, µs a byte\n")
    print("| | in | limit | × | out | limit | × |\n|---|---:|---:|---:|---:|---:|---:|")
    ways = [(way, stage_limits(found, model, memory, rates, encoding=way is found.encode))
            for way in (found.encode, found.decode)]  # fmt: skip
    for name, title in STAGES.items():
        cells = []
        for way, limits in ways:
            spent = way.stages[name] / found.nbytes
            limit = limits.get(name)
            cells += [f"{spent * 1e6:.3f}" if spent else ""]
            cells += [f"{limit * 1e6:.3f}", f"{spent / limit:.1f}"] if spent and limit else ["", ""]
        if any(cells):
            print(f"| {title} | " + " | ".join(cells) + " |")
    totals = [cell for way, _ in ways for cell in (f"{way.seconds / found.nbytes * 1e6:.3f}", "", "")]
    print("| all | " + " | ".join(totals) + " |\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="without it only the machine is measured")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 5, 6])
    parser.add_argument("--nbytes", type=int, default=1 << 20)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--model", help="of the products' shapes and of levels 3 to 9")
    options = parser.parse_args()
    data = options.file.read_bytes()[: options.nbytes] if options.file else b""

    for key, value in describe().items():
        print(f"- {key}: {value}")
    memory = memory_limits()
    print("\n| one thread | |\n|---|---:|")
    for name, value in memory.items():
        if name.startswith("read"):
            print(f"| reading {int(name[5:]):,} KiB, GB/s | {value / 1e9:.1f} |")
    print(f"| a read at a random line of 32 MiB, ns | {memory['random_ns']:.1f} |")
    for batch in (16, 48):
        print(f"| the same, {batch} fetched ahead together, ns a line | {memory[f'batch_{batch}_ns']:.1f} |")

    source = store.default(options.model, ("base", "small"))
    rates: dict[int, float] = {}
    if source is not None:
        model = store.load(source)
        library, own = library_rates(model), kernel_rates(model)
        rates = {rows: max(library.get(rows, 0), own[rows]) for rows in ROWS}
        head = " | ".join(f"{rows} rows" for rows in ROWS)
        print(f"\n| int8 products, G multiply-accumulates/s | {head} |\n|---|" + "---:|" * len(ROWS))
        for name, row in ((f"{source.path.stem} by PyTorch", library), (f"by the kernel ({model.isa})", own)):
            if row:
                print(f"| {name} | " + " | ".join(f"{row[rows] / 1e9:.0f}" for rows in ROWS) + " |")
    print()
    for level in options.levels if data else ():
        found = time_block(data, level, model=options.model if level > 2 else None, runs=options.runs)
        print_stages(found, model_of(level, options.model if level > 2 else None), memory, rates)


if __name__ == "__main__":
    main()
