"""Speed of the kernel's transformer: tokens a second of many positions at once and of steps, and where the time goes.

The model is random, of SmolLM2-135M's shape unless told otherwise: what a step costs does not depend on the
weights, but for probabilities: random keys make them even, so that no block of values is left out.

    python benchmarks/transformer_speed.py [--layers 30] [--isa avx2] [--repeats 3] [--context 1024]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lmcodec import _kernel
from lmcodec.lm.transformer.model import Layer, Linear, TransformerModel
from lmcodec.lm.transformer.native import NativeTransformer, session_memory_nbytes
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

BANDWIDTH_NBYTES = 1 << 28


def random_model(config: TransformerConfig) -> TransformerModel:
    """Weights, scales and norms of the size that trained ones have."""
    rng = np.random.default_rng(1)

    def linear(n: int, k: int, biased: bool = False) -> Linear:
        weight = rng.integers(-63, 64, (n, k), np.int8)
        scale = (rng.uniform(0.5, 1.5, n) / (37 * np.sqrt(k * (k & -k)))).astype(np.float32)
        return Linear(weight, scale, np.zeros(n, np.float32) if biased else None)

    c = config
    ones = np.ones(c.dim, np.float32)
    layers = tuple(
        Layer(
            ones,
            linear(c.n_qkv, c.dim),
            None,
            None,
            linear(c.dim, c.n_head * c.head_dim),
            ones,
            linear(2 * c.mlp, c.dim),
            linear(c.dim, c.mlp),
        )
        for _ in range(c.n_layer)
    )
    embed = linear(c.vocab_size + 2, c.dim)
    head = Linear(
        embed.weight[: c.vocab_size], embed.scale[: c.vocab_size], np.zeros(c.vocab_size, np.float32)
    )
    angle = 100_000.0 ** (-np.arange(c.head_dim // 2) / (c.head_dim // 2))
    strings = [bytes([i]) for i in range(256)]
    strings += [bytes([97 + i // 256 // 256, i // 256 % 256, i % 256]) for i in range(c.vocab_size - 256)]
    rotary = np.stack((np.cos(angle), np.sin(angle)))
    return TransformerModel(c, Vocabulary(sorted(strings)), embed, layers, ones, head, rotary)


def bandwidth() -> float:
    """Bytes a second that one core reads."""
    data = np.ones(BANDWIDTH_NBYTES // 8, np.int64)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        data.max()
        best = min(best, time.perf_counter() - begin)
    return BANDWIDTH_NBYTES / best


def measure(
    network: NativeTransformer, streams: int, helped: bool, runs: bool, context: int, repeats: int
) -> None:
    """Prints a line: the best of `repeats`, after `context` positions of each stream."""
    config = network.model.config
    rng = np.random.default_rng(2)
    session = _kernel.TransformerSession(network.kernel, streams, False, True, helped)
    filled = rng.integers(0, config.vocab_size, (context, streams), np.uint32)
    if context:
        session.run(filled, None)
    n_step = max(1, 384 // streams) if runs else max(4, 32 // streams)
    best, shares = 0.0, ""
    for _ in range(repeats):
        tokens = rng.integers(0, config.vocab_size, (n_step, streams), np.uint32)
        before, attention = session.times, session.attention_seconds
        begin = time.perf_counter()
        if runs:
            session.run(tokens, None)
        else:
            for row in tokens:
                session.step(row)
        seconds = time.perf_counter() - begin
        speed = tokens.size / seconds
        if speed > best:
            best = speed
            products, elements, frequencies = (b - a for a, b in zip(before, session.times, strict=True))
            attention = session.attention_seconds - attention
            parts = (products, attention, elements - attention, frequencies)
            shares = " ".join(f"{100 * part / seconds:5.1f}" for part in parts)
            rate = config.macs_per_token * tokens.size / products / 1e9
    print(
        f"{'run ' if runs else 'step'} {2 if helped else 1} thread{'s' if helped else ' '} {streams:4d} streams "
        f"{best:8.0f} tokens/s   {shares} %   products {rate:4.0f} G/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=1024, help="positions of each stream that come before")
    parser.add_argument("--streams", type=int, nargs="*", default=None)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--what", choices=("run", "step", "both"), default="both")
    options = parser.parse_args()
    config = TransformerConfig(
        options.vocab, 576, options.layers, 9, 3, 64, 1536, tied=True, norm_eps=2.0**-17, score_scale=46.25
    )
    begin = time.perf_counter()
    network = NativeTransformer(random_model(config), options.isa)
    weights = config.n_weight
    print(
        f"{network.isa}, {config.macs_per_token / 1e6:.0f} M multiply-accumulates a token and up to "
        f"{2 * config.n_layer * config.n_head * config.head_dim * options.context / 1e6:.0f} M of attention, made in "
        f"{time.perf_counter() - begin:.1f} s"
    )
    read = bandwidth()
    print(f"one core reads {read / 1e9:.1f} GB/s: {weights / read * 1e3:.2f} ms for the weights of a step")
    print(f"a session of 16 streams takes {session_memory_nbytes(config, 16, True) / 1e6:.0f} MB")
    print("time: products, attention, other elements, frequencies")
    for threads in options.threads:
        if options.what != "step":
            for streams in options.streams or (1, 8, 16):
                measure(network, streams, threads == 2, True, options.context, options.repeats)
        if options.what != "run":
            for streams in options.streams or (1, 8, 16, 32):
                measure(network, streams, threads == 2, False, options.context, options.repeats)


if __name__ == "__main__":
    main()
