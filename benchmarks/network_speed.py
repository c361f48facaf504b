"""Speed of the native network and where its time goes.

    python benchmarks/network_speed.py [--isa NAME] [--seconds S] [--shape small|base] [--streams B ...]
                                       [--helped]

Prints, for random weights, the microseconds a token, the multiply-accumulates a second, and the shares of the
products (with their requantisation), of the work on single elements (norms, gates, recurrence, embedding) and
of the frequencies with their sums. `seq` is the sequence mode that encoding uses. One thread; with `--helped`
a second one takes a part of every product of a step, the shares being one thread's all the same. The best of
several repeats: what the machine does when nothing else runs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lmcodec import _kernel
from lmcodec.lm.recurrent.model import IntegerModel, Layer, Linear, shapes
from lmcodec.lm.recurrent.native import NativeNetwork
from lmcodec.lm.recurrent.shape import RecurrentConfig
from lmcodec.lm.vocab import Vocabulary

SHAPES = {
    "small": RecurrentConfig(6144, 320, 2, 320, 880),
    "base": RecurrentConfig(6144, 448, 3, 448, 960),
}
STREAMS = [1, 4, 8, 16, 32, 64, 128]
SEQUENCE_STREAMS = [1, 16]
REPEATS = 5


def random_model(config: RecurrentConfig) -> IntegerModel:
    """A network of random weights whose activations are of the scale of a trained one's."""
    rng = np.random.default_rng(1)
    scales = {"embed": (8000, 5), "in": (20_000, 22), "up": (20_000, 22), "out": (20_000, 12)}
    scales |= {"down": (20_000, 14), "head": (30_000, 22)}
    made = {}
    for name, (n, k, biased) in shapes(config).items():
        multiplier, shift = scales[name.split(".")[-1]]
        weight = rng.integers(-63, 64, (n, k), np.int8)
        made[name] = Linear(
            weight, np.zeros(n, np.int32) if biased else None, np.full(n, multiplier, np.uint16), shift
        )
    layers = tuple(
        Layer(*(made.get(f"layers.{i}.{part}") for part in ("in", "out", "up", "down")))  # type: ignore[arg-type]
        for i in range(config.n_layer)
    )
    strings = {bytes([b]) for b in range(256)}
    pairs = (bytes([a, b]) for a in range(256) for b in range(256))
    while len(strings) < config.vocab_size:
        strings.add(next(pairs))
    start = np.zeros((2, config.n_layer, config.recurrent), np.int32)
    return IntegerModel(config, Vocabulary(sorted(strings)), made["embed"], layers, made["head"], start)


def measure(network: NativeNetwork, streams: int, sequence: bool, seconds: float, helped: bool) -> None:
    """Time one mode and print a line."""
    config = network.model.config
    kernel = network.kernel
    rng = np.random.default_rng(2)
    n_step = max(1, 1024 // streams)
    tokens = rng.integers(0, config.vocab_size, (n_step, streams)).astype(np.uint32)
    session = _kernel.RecurrentSession(kernel, streams, helped=helped)

    def work(session: _kernel.RecurrentSession) -> None:
        if sequence:
            session.run(tokens, None, None)
        else:
            for row in tokens:
                session.step(row)

    best = float("inf")
    for _ in range(REPEATS):
        count, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds or not count:
            work(session)
            count += 1
        best = min(best, spent / (count * tokens.size))
    timed = _kernel.RecurrentSession(kernel, streams, timed=True)
    work(timed)
    shares = np.array(timed.times) / sum(timed.times)
    name = f"{'seq ' if sequence else ''}{streams}"
    print(
        f"{name:>8} {best * 1e6:9.2f} {config.macs_per_token / best / 1e9:9.1f}"
        + "".join(f"{share * 100:8.1f}" for share in shares),
        flush=True,
    )


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", help="one of: " + ", ".join(_kernel.network_isas()))
    parser.add_argument("--seconds", type=float, default=0.05, help="a repeat's least duration")
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS)
    parser.add_argument("--helped", action="store_true", help="steps on two threads")
    arguments = parser.parse_args()
    for name in arguments.shape or SHAPES:
        network = NativeNetwork(random_model(SHAPES[name]), arguments.isa)
        config = SHAPES[name]
        print(
            f"{name}: D={config.dim} R={config.recurrent} M={config.mlp} L={config.n_layer} "
            f"V={config.vocab_size}, {config.macs_per_token / 1e6:.2f} M MAC a token, {network.isa}"
        )
        print(f"{'streams':>8} {'us/token':>9} {'G MAC/s':>9} {'prod %':>7} {'elem %':>7} {'freq %':>7}")
        for streams in arguments.streams:
            measure(network, streams, False, arguments.seconds, arguments.helped)
        for streams in SEQUENCE_STREAMS:
            measure(network, streams, True, arguments.seconds, False)


if __name__ == "__main__":
    main()
