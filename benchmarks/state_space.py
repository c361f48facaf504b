"""Mamba-2 in the manner of arithmetic 2: what an exact definition of a state space model would give and cost.

    python benchmarks/state_space.py [--positions 1000] [--long 8192] [--kernel]

No kind of model in the package: an experiment that says whether one is worth its work. A random small model
of transformers is imported as transformers of FORMAT.md section 9 are (matrices rotated, 7 bits a weight,
inputs in 8 bits), and its step is defined in NumPy: binary32 operations in the order written here, sums over
the state in a stated order, exponentials and logarithms by polynomials. Reported are the divergence of
next-token distributions from those of transformers in float32, for three ways to hold and read the state; how
it grows over a long text; the bytes of state and the operations beside the products; and with `--kernel` how
long moving and reading the state of real shapes takes in C.

Nothing here is bound to a file or a frame, and no integer it gives is promised.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.lm.transformer.importing.quantise import linear
from lmcodec.lm.transformer.model import Linear
from lmcodec.lm.transformer.reference import (
    ONE,
    ZERO,
    embed,
    exp_of_negative,
    hold,
    normalise,
    product,
    silu,
    to_integer,
)

f32 = np.float32
LOGIT_MAX = 1 << 22
LOGIT_SCALE = f32(256 / np.log(2))  # steps of 2^-8 of a binary logarithm
# log1p(e) = 2 artanh(s) with s = e / (2 + e) <= 1/3: s times a polynomial of s^2, within 2^-25.
ARTANH_TERMS = tuple(f32(1 / k) for k in (1, 3, 5, 7, 9, 11, 13))
READINGS = ("halved", "codes", "state16")

# Shapes of published models: layers, width, heads, head width, state, vocabulary (Dao and Gu, 2024).
SHAPES = {
    "Mamba-2 130M": (24, 768, 24, 64, 128, 50_288),
    "Mamba-2 370M": (48, 1024, 32, 64, 128, 50_288),
    "Mamba-2 1.3B": (48, 2048, 64, 64, 128, 50_288),
}


@dataclass(frozen=True)
class Layer:
    """One block; C = H P + 2 G N channels go through the convolution."""

    norm: np.ndarray  # (D,)
    project: Linear  # (2 H P + 2 G N + H, D): gates, channels, time steps
    conv: np.ndarray  # (K, C), oldest position first
    conv_bias: np.ndarray  # (C,)
    dt_bias: np.ndarray  # (H,)
    rate: np.ndarray  # (H,), positive
    skip: np.ndarray  # (H,)
    gate_norm: np.ndarray  # (H P,)
    out: Linear  # (D, H P)


@dataclass(frozen=True)
class StateSpaceModel:
    """A Mamba-2 with H heads of P channels and N states each, B and C in G groups."""

    n_head: int
    head_dim: int
    n_state: int
    n_group: int
    eps: np.float32
    dt_limit: tuple[np.float32, np.float32]
    embed: Linear
    layers: tuple[Layer, ...]
    norm: np.ndarray
    head: Linear

    @property
    def state_nbytes(self) -> int:
        """Of one stream, with the last inputs of the convolutions."""
        inputs = sum(layer.conv[1:].size for layer in self.layers)
        return 4 * (len(self.layers) * self.n_head * self.head_dim * self.n_state + inputs)


@dataclass
class State:
    """Of B streams."""

    h: list[np.ndarray]  # (B, H, P, N) float32 for each layer
    inputs: list[np.ndarray]  # (B, K - 1, C)


def imported(network: Any) -> StateSpaceModel:
    """A `Mamba2ForCausalLM` of transformers."""
    c, trunk = network.config, network.backbone

    def vector(x: Any) -> np.ndarray:
        return x.detach().float().numpy().copy()

    def matrix(x: Any) -> Linear:
        w = vector(x)
        return linear(*w.shape, lambda a, b: w[a:b])

    layers = []
    for block in trunk.layers:
        m = block.mixer
        width = m.conv1d.weight.shape[0]
        bias = np.zeros(width, f32) if m.conv1d.bias is None else vector(m.conv1d.bias)
        log_rate = vector(m.A_log)
        size = exp_of_negative(np.abs(log_rate))
        layers.append(
            Layer(
                vector(block.norm.weight),
                matrix(m.in_proj.weight),
                np.ascontiguousarray(vector(m.conv1d.weight)[:, 0].T),
                bias,
                vector(m.dt_bias),
                np.where(log_rate > 0, ONE / size, size),
                vector(m.D),
                vector(m.norm.weight),
                matrix(m.out_proj.weight),
            )
        )
    low, high = (f32(min(x, 2.0**20)) for x in c.time_step_limit)
    return StateSpaceModel(
        *(c.num_heads, c.head_dim, c.state_size, c.n_groups),
        f32(c.layer_norm_epsilon),
        (low, high),
        matrix(trunk.embeddings.weight),
        tuple(layers),
        vector(trunk.norm_f.weight),
        matrix(network.lm_head.weight),
    )


def start(model: StateSpaceModel, n_stream: int) -> State:
    shape = n_stream, model.n_head, model.head_dim, model.n_state
    return State(
        [np.zeros(shape, f32) for _ in model.layers],
        [np.zeros((n_stream, len(x.conv) - 1, x.conv.shape[1]), f32) for x in model.layers],
    )


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x): max(x, 0) + log1p(e^-|x|)."""
    e = exp_of_negative(np.abs(x))
    s = e / (ONE + ONE + e)
    q = s * s
    p = np.full_like(q, ARTANH_TERMS[-1])
    for term in ARTANH_TERMS[-2::-1]:
        p = p * q + term
    return np.maximum(x, ZERO) + (s + s) * p


def halved(x: np.ndarray) -> np.ndarray:
    """(...) sums of (..., n), n a power of two: the upper half is added to the lower until one is left."""
    while x.shape[-1] > 1:
        n = x.shape[-1] // 2
        x = x[..., :n] + x[..., n:]
    return x[..., 0]


def _codes(x: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers within +-most, and (..., 1) scales, of rows."""
    top = np.maximum(np.abs(x).max(axis=-1, keepdims=True), f32(2.0**-40))
    return to_integer(x * (f32(most) / top), most), top / f32(most)


def step(model: StateSpaceModel, tokens: np.ndarray, state: State, reading: str = "halved") -> np.ndarray:
    """(B, V) int32 logits after (B,) tokens; the state moves on.

    `reading`: "halved" sums the state's products with C in binary32 by halves; "codes" quantises each row of
    the state and C to 8 bits for reading, so that the sum is one of integers; "state16" keeps the state in
    16 bits with a scale a row, and reads it by halves.
    """
    m = model
    n_stream, width, groups = len(tokens), m.n_head * m.head_dim, m.n_group * m.n_state
    x = embed(m.embed, tokens)
    for i, layer in enumerate(m.layers):
        y = product(normalise(x, layer.norm, m.eps), layer.project)
        gate, new, dt = np.split(y, (width, 2 * width + 2 * groups), axis=-1)
        taps = np.concatenate((state.inputs[i], new[:, None]), axis=1)  # (B, K, C)
        state.inputs[i] = taps[:, 1:]
        mixed = taps[:, 0] * layer.conv[0]
        for k in range(1, len(layer.conv)):
            mixed = mixed + taps[:, k] * layer.conv[k]
        mixed = hold(silu(hold(mixed + layer.conv_bias)))
        u, b, c = np.split(mixed, (width, width + groups), axis=-1)
        u = u.reshape(n_stream, m.n_head, m.head_dim)
        # Of each head: its group's.
        b, c = (
            np.repeat(v.reshape(n_stream, m.n_group, m.n_state), m.n_head // m.n_group, axis=1)[:, :, None]
            for v in (b, c)
        )
        dt = np.clip(softplus(dt + layer.dt_bias), *m.dt_limit)  # (B, H)
        decay = exp_of_negative(dt * layer.rate)[..., None, None]
        h = hold(state.h[i] * decay + hold(dt[..., None] * u)[..., None] * b)
        if reading == "state16":
            kept, scale = _codes(h, 32_767)
            h = kept.astype(f32) * scale
        state.h[i] = h
        if reading == "codes":
            kept, scale = _codes(h, 127)
            wanted, by = _codes(c, 127)
            total = (kept.astype(np.int64) * wanted).sum(axis=-1)  # below 2^14 N
            read = total.astype(f32) * scale[..., 0] * by[..., 0]
        else:
            read = halved(h * c)
        read = hold(read + layer.skip[:, None] * u).reshape(n_stream, width)
        gated = hold(read * silu(gate)).reshape(n_stream, m.n_group, -1)
        gated = normalise(gated, layer.gate_norm.reshape(m.n_group, -1), m.eps)
        x = hold(x + product(gated.reshape(n_stream, width), layer.out))
    return to_integer(product(normalise(x, m.norm, m.eps), m.head) * LOGIT_SCALE, LOGIT_MAX)


def run(model: StateSpaceModel, tokens: np.ndarray, reading: str = "halved") -> np.ndarray:
    """(B, T, V) logits of (B, T) tokens in nats, float64."""
    state = start(model, len(tokens))
    logits = [step(model, row, state, reading) for row in tokens.T]
    return np.stack(logits, axis=1) * (np.log(2) / 256)


def random_network(
    n_token: int, dim: int, n_layer: int, head_dim: int, n_state: int, n_group: int, seed: int
) -> Any:
    """A random `Mamba2ForCausalLM` whose next-token distributions are far from even and depend on its state.

    As transformers makes them, what is read from the state is a thirtieth of what is passed beside it.
    """
    import torch
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(seed)
    config = Mamba2Config(
        vocab_size=n_token,
        hidden_size=dim,
        num_hidden_layers=n_layer,
        head_dim=head_dim,
        num_heads=2 * dim // head_dim,
        state_size=n_state,
        n_groups=n_group,
        chunk_size=32,
        tie_word_embeddings=False,
    )
    network = Mamba2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for block in network.backbone.layers:
            for norm in (block.norm, block.mixer.norm):
                norm.weight += 0.1 * torch.randn_like(norm.weight)
            block.mixer.conv1d.bias += 0.1 * torch.randn_like(block.mixer.conv1d.bias)
            width = 2 * dim
            block.mixer.in_proj.weight[2 * width : 2 * width + 2 * n_group * n_state] *= 5  # B and C
            block.mixer.D *= 0.1
            block.mixer.out_proj.weight *= 4
        network.lm_head.weight.normal_(std=(5 / dim) ** 0.5)
    return network


def floats(network: Any, tokens: np.ndarray, part: int = 512) -> np.ndarray:
    """What transformers gives in float32: (B, T, V), as float64."""
    import torch

    cache, found = None, []
    with torch.no_grad():
        for at in range(0, tokens.shape[1], part):
            ids = torch.from_numpy(tokens[:, at : at + part])
            out = network(ids, use_cache=True, **({} if cache is None else {"cache": cache}))
            cache = out.cache
            found.append(out.logits.double().numpy())
    return np.concatenate(found, axis=1)


def divergence(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """KL of next-token distributions at each position, in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def entropy(logits: np.ndarray) -> float:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1).mean())


# What it costs.

STATE_OPERATIONS = 9  # an element: two products, a sum, hold's four; its product with C, and the sum of those

KERNEL = """
#include <stddef.h>
/* For each of `heads` rows of P x N states, T times: h = hold(h * a + u * b), y = sum of h * c by halves.
   N is a power of two up to 256. */
void move(float *h, const float *a, const float *u, const float *b, const float *c, float *y,
          size_t heads, size_t p, size_t n, size_t times) {
    const float most = 0x1p40f, least = 0x1p-60f;
    for (size_t i = 0; i < heads; ++i, h += p * n)
        for (size_t at = 0; at < times; ++at)
            for (size_t j = 0; j < p; ++j) {
                float t[256], *row = h + j * n;
                const float decay = a[i], in = u[i * p + j];
                for (size_t k = 0; k < n; ++k) {
                    float v = row[k] * decay + in * b[k];
                    v = v > most ? most : v;
                    v = v < -most ? -most : v;
                    const float size = v < 0 ? -v : v;
                    v = size < least ? 0 : v;
                    row[k] = v;
                    t[k] = v * c[k];
                }
                for (size_t m = n / 2; m; m /= 2)
                    for (size_t k = 0; k < m; ++k) t[k] += t[k + m];
                y[i * p + j] = t[0];
            }
}
"""


def compiled(folder: Path) -> Callable[..., None] | None:
    """The C function, or None without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    (folder / "state.c").write_text(KERNEL, encoding="utf-8")
    flags = ["-O3", "-march=native", "-ffp-contract=off", "-mprefer-vector-width=512", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "state.c", "-o", "state.so"], cwd=folder, check=True)
    move = ctypes.CDLL(str(folder / "state.so")).move
    pointer = np.ctypeslib.ndpointer(f32, flags="C_CONTIGUOUS")
    move.argtypes = [pointer] * 6 + [ctypes.c_size_t] * 4
    move.restype = None
    return move


def seconds_of(move: Callable[..., None], n_head: int, p: int, n: int, n_layer: int, positions: int) -> float:
    """Processor seconds a token: `positions` at once, layer by layer; 1 is a step, its state in memory."""
    rng = np.random.default_rng(1)
    h = rng.standard_normal((n_layer, n_head, p, n)).astype(f32)
    a = np.full(n_head, 0.97, f32)
    u, b, c = (rng.standard_normal(size).astype(f32) for size in (n_head * p, n, n))
    y = np.empty(n_head * p, f32)
    best = np.inf
    for _ in range(5):
        began = time.process_time()
        for layer in h:
            move(layer, a, u, b, c, y, n_head, p, n, positions)
        best = min(best, (time.process_time() - began) / positions)
    return best


def costs() -> list[str]:
    lines = ["model | products, M | state, M | MB a stream | operations beside the products of the state, M"]
    for name, (n_layer, dim, n_head, p, n, n_token) in SHAPES.items():
        width = n_head * p
        products = n_layer * dim * (2 * width + 2 * n + n_head + width) + dim * n_token
        elements = n_layer * width * n
        lines.append(
            f"{name} | {products / 1e6:.0f} | {elements / 1e6:.2f} | {4e-6 * elements:.1f} | "
            f"{STATE_OPERATIONS * elements / 1e6:.0f}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--long", type=int, default=8192, help="positions of the long text; 0 for none")
    parser.add_argument("--kernel", action="store_true", help="time the state of real shapes in C")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    shapes = {
        "width 48, 3 layers": (400, 48, 3, 16, 32, 1),
        "width 64, 2 groups": (400, 64, 3, 16, 64, 2),
        "width 256, heads of 64, 128 states": (400, 256, 4, 64, 128, 1),
    }
    for name, shape in shapes.items():
        network = random_network(*shape, seed=1)
        model = imported(network)
        tokens = rng.integers(0, shape[0], (2, options.positions // 2))
        expected = floats(network, tokens)
        print(f"{name}: entropy {entropy(expected):.2f} nats, {model.state_nbytes:,} bytes a stream")
        for reading in READINGS:
            logits = run(model, tokens, reading)
            kl = divergence(logits, expected)
            same = (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean()
            print(f"  {reading:8} mean KL {kl.mean():.6f} nats, likeliest equal {same:.1%}", flush=True)
    if options.long:
        network = random_network(400, 64, 3, 16, 64, 1, seed=2)
        model = imported(network)
        tokens = rng.integers(0, 400, (1, options.long))
        expected = floats(network, tokens)
        for reading in READINGS:
            kl = divergence(run(model, tokens, reading), expected)[0]
            parts = ", ".join(f"{part.mean():.6f}" for part in np.array_split(kl, 8))
            print(f"long text, {reading}: mean KL of eighths {parts}", flush=True)
    print("\n".join(costs()))
    if options.kernel:
        with tempfile.TemporaryDirectory() as folder:
            move = compiled(Path(folder))
            if move is None:
                print("no C compiler")
                return
            for name, (n_layer, _, n_head, p, n, _) in SHAPES.items():
                each = seconds_of(move, n_head, p, n, n_layer, 1), seconds_of(move, n_head, p, n, n_layer, 64)
                print(f"{name}: {1e3 * each[0]:.2f} ms a token stepwise, {1e3 * each[1]:.2f} ms many at once")


if __name__ == "__main__":
    main()
