"""How fast weights of a large model are encoded and decoded, and what they take.

    python benchmarks/weight_coding.py [--layers 30] [--sigma 12] [--threads 2] [--rounds 3]

The tensors have the shapes of a transformer of 135 million weights (SmolLM2-135M: a table of 49,152 x 576,
then 30 layers of 576 with a hidden width of 1,536); the weights are normal deviates, rounded and held within
63. Printed: bits a weight beside the entropy of the whole, seconds and millions of weights a second (the
fastest round), processor time, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from lmcodec.lm import weight_coding

TABLE = (49_152, 576)
LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


def draw(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    normal = rng.standard_normal(shape, np.float32)
    normal *= sigma
    return np.clip(np.rint(normal, out=normal), -63, 63, out=normal).astype(np.int8)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fastest(name: str, n_weight: int, rounds: int, work: Callable[[], object]) -> None:
    found = []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - start, time.process_time() - cpu))
    wall, cpu = min(found)
    print(
        f"{name:<28}{wall:8.2f} s, {n_weight / wall / 1e6:8.1f} M/s, {cpu:6.2f} s of processor time, "
        f"peak {peak_mib():.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sigma", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    tensors = [draw(rng, shape, options.sigma) for shape in [TABLE, *LAYER * options.layers]]
    n_weight = sum(w.size for w in tensors)
    count = sum(np.bincount(w.ravel().view(np.uint8), minlength=256) for w in tensors)
    share = count[count > 0] / n_weight
    print(f"{n_weight:,} weights, peak {peak_mib():.0f} MiB with them in memory")
    threads = options.threads
    fastest(f"encode, {threads} threads", n_weight, 1, lambda: weight_coding.encode_weights(tensors, threads))
    coded = weight_coding.encode_weights(tensors, threads)
    nbytes = len(coded.data) + len(weight_coding.pack_tables(coded))
    entropy = -(share * np.log2(share)).sum()
    print(f"{8 * nbytes / n_weight:.4f} bits a weight, tables included; entropy {entropy:.4f}")
    for n_thread, portable in ((threads, False), (1, False), (threads, True)):
        name = f"decode, {n_thread} threads{', portable' * portable}"
        decode = partial(weight_coding.decode_weights, coded, n_thread, portable)
        fastest(name, n_weight, options.rounds, decode)


if __name__ == "__main__":
    main()
