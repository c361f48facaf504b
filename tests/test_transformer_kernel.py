"""The kernel's transformer against the definition, `lmcodec.lm.transformer.reference`: the same integers."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_kernel_builds import BUILDS, NATIVE, WARNINGS, Build
from transformer_models import SHAPES, assemble, random_model, random_tokens

from lmcodec import _kernel
from lmcodec.errors import ConfigError, Corrupt
from lmcodec.lm import decisions, tables
from lmcodec.lm.interface import external
from lmcodec.lm.transformer import native, reference
from lmcodec.lm.transformer.executors import Reference
from lmcodec.lm.transformer.model import Linear, TransformerModel
from lmcodec.lm.transformer.native import NativeTransformer
from lmcodec.lm.transformer.shape import ACTIVATIONS, TransformerConfig

ISAS = _kernel.network_isas()
# Nothing may be fused: as CMakeLists.txt has it.
EXACT = ["-ffp-contract=off"]
DRIVER_BUILDS = {**BUILDS, "thread sanitizer": ["-O1", "-g", "-fsanitize=thread"]}
DRIVER_SOURCES = [
    *NATIVE.glob("gemm*.cpp"),
    *NATIVE.glob("transformer*.cpp"),
    NATIVE / "table_memory.cpp",
    Path(__file__).with_name("transformer_driver.cpp"),
]
SMOLLM2 = TransformerConfig(49_152, 576, 30, 9, 3, 64, 1536, tied=True)


def check_same_bits(model: TransformerModel, isa: str, t: int, b: int) -> np.ndarray:
    """Logits and frequencies of the definition, step by step and all positions at once."""
    tokens = random_tokens(model, t, b)
    logits = reference.sequence(model, tokens, reference.start(model, b))
    freq = decisions.frequencies(logits)
    network = NativeTransformer(model, isa)
    assert network.isa == isa

    found, weighed = np.empty_like(logits), np.empty_like(freq)
    network.session(b).run(tokens, found, weighed)
    assert (found == logits).all()
    assert (weighed == freq).all()

    session = network.session(b)
    in_place = _kernel.TransformerSession(network.kernel, b)  # frequencies where the logits were
    for i in range(t):
        session.step(tokens[i])
        in_place.step(tokens[i].astype(np.uint32))
        assert (session.logits() == logits[i]).all()
        assert (session.frequencies() == freq[i]).all()
        assert (in_place.frequencies() == freq[i]).all()
    cum = decisions.cumulate(freq[-1])
    rng = np.random.default_rng(5)
    for low, high in np.sort(rng.integers(0, model.config.vocab_size + 1, (50, 2))).tolist():
        stream = int(rng.integers(b))
        assert session.span(stream, low, high) == cum[stream, high] - cum[stream, low], (stream, low, high)
    return logits


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_models(shape: str, isa: str) -> None:
    """Past three windows."""
    model = random_model(**SHAPES[shape])
    check_same_bits(model, isa, 3 * model.config.window + 7, 2)


def test_the_random_models_are_alive() -> None:
    """Logits of a scale where errors show, and attention that sees the past."""
    for shape in ("plain", "all options", "wide MLP"):
        model = random_model(**SHAPES[shape])
        tokens = random_tokens(model, 40, 2)
        tokens[:, 1] = tokens[:, 0]
        tokens[-16, 1] ^= 1
        logits = reference.sequence(model, tokens, reference.start(model, 2))
        assert len(np.unique(logits)) > 500
        assert (logits[-1, 0] != logits[-1, 1]).mean() > 0.5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("b", [1, 2, 7, 128])
def test_streams(b: int, isa: str) -> None:
    check_same_bits(random_model(**SHAPES["all options"]), isa, 3 if b == 128 else 23, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("t", "b"), [(300, 1), (90, 3), (5, 100)])
def test_sequences_of_several_pieces(t: int, b: int, isa: str) -> None:
    model = random_model(**SHAPES["no sinks"])
    tokens = random_tokens(model, t, b)
    expected = reference.sequence(model, tokens, reference.start(model, b))
    session = NativeTransformer(model, isa).session(b)
    assert (session.sequence(tokens[: t // 3]) == expected[: t // 3]).all()
    session.step(tokens[t // 3])
    assert (session.logits() == expected[t // 3]).all()
    assert (session.sequence(tokens[t // 3 + 1 :]) == expected[t // 3 + 1 :]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_window_of_many_blocks(isa: str) -> None:
    """Positions in many blocks of the cache, and angles beyond the lower table's."""
    model = random_model(n_layer=1, dim=16, n_head=2, n_kv_head=1, head_dim=8, mlp=8, window=700)
    t = 1600
    tokens = random_tokens(model, t, 1)
    expected = reference.sequence(model, tokens, reference.start(model, 1))
    session = NativeTransformer(model, isa).session(1)
    assert (session.sequence(tokens) == expected).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("shared", [1, 2, 3, 4, 5, 6, 8, 9, 17])
def test_positions_that_share_keys(shared: int, sinks: int, isa: str) -> None:
    """Heads of a group, of one position or of several, past the end of the ring that holds the window."""
    model = random_model(
        n_layer=1, dim=16, n_head=shared, n_kv_head=1, head_dim=34, mlp=8, window=19, sinks=sinks
    )
    for t, b in ((300, 1), (11, 3)):
        tokens = random_tokens(model, t, b)
        expected = reference.sequence(model, tokens, reference.start(model, b))
        session = NativeTransformer(model, isa).session(b)
        assert (session.sequence(tokens[: t // 2]) == expected[: t // 2]).all()
        assert (session.sequence(tokens[t // 2 :]) == expected[t // 2 :]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_stream_that_begins_anew(isa: str) -> None:
    """What is left of the one before in the cache is not seen, however far either is."""
    model = random_model(**SHAPES["all options"])
    for first, second in ((3, 50), (45, 4), (50, 50)):
        tokens = random_tokens(model, first + second, 3)
        state = reference.start(model, 3)
        session = NativeTransformer(model, isa).session(3)
        for part in (slice(0, first), slice(first, first + second)):
            assert (session.sequence(tokens[part]) == reference.sequence(model, tokens[part], state)).all()
            reference.begin(state, 1)
            session.begin(1, True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("b", [1, 2, 5])
def test_a_second_thread_takes_a_part(b: int, isa: str) -> None:
    model = random_model(vocab_size=900, dim=96, mlp=200, n_head=8, n_kv_head=4)
    network = NativeTransformer(model, isa)
    plain, helped = network.session(b), network.session(b, helped=True)
    tokens = random_tokens(model, 64, b)
    expected = plain.sequence(tokens)
    end = time.monotonic() + 20
    while helped.kernel.n_helped < 1000 and time.monotonic() < end:
        for stream in range(b):
            helped.begin(stream)
        assert (helped.sequence(tokens) == expected).all()
    for stream in range(b):
        helped.begin(stream)
    for row, wanted in zip(tokens, expected, strict=True):
        helped.step(row)
        assert (helped.logits() == wanted).all()
    assert plain.kernel.n_helped == 0
    assert helped.kernel.n_helped > 0


def scaled(model: TransformerModel, change: Any) -> TransformerModel:
    """`change(name, linear)` in place of every matrix."""
    made = {name: change(name, linear) for name, linear in model.linears().items()}
    layers = tuple(
        replace(layer, **{part: made[f"layers.{i}.{part}"] for part in ("qkv", "out", "gate_up", "down")})
        for i, layer in enumerate(model.layers)
    )
    return replace(model, embed=made["embed"], layers=layers, head=made["head"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [2.0**-40, 2.0**-20, 1.0, 2.0**20, 2.0**40])
def test_extreme_scales(size: float, isa: str) -> None:
    """Every scale at a bound, then every second one."""
    model = random_model(qkv_bias=True)
    for step in (1, 2):

        def change(name: str, linear: Linear, step: int = step) -> Linear:
            scale = linear.scale.copy()
            scale[::step] = size
            return replace(linear, scale=scale)

        check_same_bits(scaled(model, change), isa, 20, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight", [0, 63, -63])
def test_equal_weights(weight: int, isa: str) -> None:
    model = random_model(qkv_bias=True)
    check_same_bits(scaled(model, lambda _, t: replace(t, weight=np.full_like(t.weight, weight))), isa, 20, 2)
    zero_rows = scaled(
        model, lambda _, t: replace(t, weight=t.weight * (np.arange(len(t.weight)) % 3 > 0)[:, None])
    )
    check_same_bits(zero_rows, isa, 20, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [2.0**-60, 2.0**-30, 2.0**40])
def test_extreme_norms_and_biases(size: float, isa: str) -> None:
    model = random_model(qkv_bias=True, qk_norm=True)

    def changed(vector: Any) -> Any:
        return None if vector is None else (np.sign(vector) * np.float32(size)).astype(np.float32)

    layers = tuple(
        replace(
            layer,
            attention_norm=changed(layer.attention_norm),
            q_norm=changed(layer.q_norm),
            k_norm=changed(layer.k_norm),
            mlp_norm=changed(layer.mlp_norm),
            qkv=replace(layer.qkv, bias=changed(layer.qkv.bias)),
        )
        for layer in model.layers
    )
    check_same_bits(replace(model, layers=layers, norm=changed(model.norm)), isa, 20, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_rows(sign: int, isa: str) -> None:
    """Sums of 65,536 products, each as large as it can be: one unit, rotated, is +-127 everywhere."""
    model = random_model(n_layer=1, dim=16, n_head=1, n_kv_head=1, head_dim=16, mlp=65_536)
    layer = model.layers[0]
    gate_up = np.zeros_like(layer.gate_up.weight)
    gate_up[[0, 65_536]] = layer.gate_up.weight[[0, 65_536]]
    down = np.full_like(layer.down.weight, 63 * sign)
    changed = replace(
        layer,
        gate_up=replace(layer.gate_up, weight=gate_up),
        down=replace(layer.down, weight=down, scale=np.full(16, 2.0**-30, np.float32)),
    )
    check_same_bits(replace(model, layers=(changed,)), isa, 2, 7)


@pytest.mark.parametrize("isa", ISAS)
def test_the_likeliest_token_is_at_the_end(isa: str) -> None:
    """Also when all logits are negative: what pads the rows is no token."""
    for vocab_size in (257, 300, 320):
        model = random_model(vocab_size=vocab_size, tied=True)
        for token in (-1, 0):
            bias = np.full(vocab_size, -(2.0**13), np.float32)
            bias[token] = -(2.0**12)
            check_same_bits(replace(model, head=replace(model.head, bias=bias)), isa, 1, 2)


@pytest.mark.parametrize("isa", ISAS)
def test_one_token_over_and_over(isa: str) -> None:
    """One probability takes almost all: its upper byte counts."""
    model = random_model(qkv_bias=True, window=40, score_scale=1024.0)
    tokens = random_tokens(model, 90, 2)
    expected = reference.sequence(model, tokens, reference.start(model, 2))
    assert (NativeTransformer(model, isa).session(2).sequence(tokens) == expected).all()
    even = random_model(qkv_bias=True, window=40, score_scale=2.0**-20)
    expected = reference.sequence(even, tokens, reference.start(even, 2))
    assert (NativeTransformer(even, isa).session(2).sequence(tokens) == expected).all()


ROUNDINGS = {
    "x86_64": {"downward": 0x400, "upward": 0x800, "toward zero": 0xC00},
    "aarch64": {"upward": 0x400000, "downward": 0x800000, "toward zero": 0xC00000},
}


@contextmanager
def other_floats(rounding: int, flush: bool) -> Iterator[ctypes.CDLL]:
    torch = pytest.importorskip("torch")
    libm = ctypes.CDLL(None if sys.platform == "darwin" else "libm.so.6")
    before = libm.fegetround()
    torch.set_flush_denormal(flush)
    assert libm.fesetround(rounding) == 0
    try:
        yield libm
    finally:
        libm.fesetround(before)
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("rounding", ["downward", "upward", "toward zero"])
def test_other_floats_in_the_process(rounding: str, flush: bool, isa: str) -> None:
    """A rounding mode and FTZ/DAZ that another library has set change nothing, and stay as they were."""
    modes = ROUNDINGS.get({"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()))
    if modes is None or sys.platform == "win32":
        pytest.skip("no way to set a rounding mode here")
    small = assemble(TransformerConfig(300, 48, 2, 4, 2, 16, 96, 16, 2), np.random.default_rng(3), 2.0**-25)
    for model in (random_model(**SHAPES["all options"]), small):
        tokens = random_tokens(model, 40, 3)
        expected = reference.sequence(model, tokens, reference.start(model, 3))
        known = reference.compute_known_answer(model)
        with other_floats(modes[rounding], flush) as libm:
            network = NativeTransformer(model, isa)
            found = network.session(3).sequence(tokens)
            helped = network.session(3, helped=True)
            for _ in range(3):
                for stream in range(3):
                    helped.begin(stream)
                by_two = helped.sequence(tokens)
            network.self_test(known)
            assert libm.fegetround() == modes[rounding]
        assert (found == expected).all()
        assert (by_two == expected).all()


def test_self_test() -> None:
    model = random_model()
    known = reference.compute_known_answer(model)
    for isa in ISAS:
        NativeTransformer(model, isa).self_test(known)
        weight = model.layers[0].qkv.weight.copy()
        weight[5, 7] = -weight[5, 7] or 1
        changed = replace(
            model,
            layers=(
                replace(model.layers[0], qkv=replace(model.layers[0].qkv, weight=weight)),
                model.layers[1],
            ),
        )
        with pytest.raises(Corrupt, match=rf"{changed.model_id} fails its self-test.*{isa}"):
            NativeTransformer(changed, isa).self_test(known)


def test_the_definition_behind_the_seam() -> None:
    model = random_model()
    tokens = random_tokens(model, 30, 3).astype(np.uint32)
    outside = external(Reference(model)).session(3)
    inside = NativeTransformer(model).kernel.session(3)
    found, expected = (np.empty((30, 3, 300), np.uint32) for _ in range(2))
    for stream, cut in enumerate((False, True, False)):
        outside.begin(stream, cut)
        inside.begin(stream, cut)
    outside.run(tokens, expected)
    inside.run(tokens, found)
    assert (found == expected).all()
    assert (
        external(Reference(model)).start_token(True)
        == NativeTransformer(model).kernel.start_token(True)
        == 301
    )


def test_cancel() -> None:
    model = random_model()
    cancel = _kernel.Cancel()
    session = _kernel.TransformerSession(NativeTransformer(model).kernel, 2, cancel=cancel)
    session.step(np.zeros(2, np.uint32))
    cancel.set()
    with pytest.raises(_kernel.Cancelled):
        session.step(np.zeros(2, np.uint32))
    with pytest.raises(_kernel.Cancelled):
        session.run(np.zeros((2, 2), np.uint32), None)


def test_what_a_session_refuses() -> None:
    network = NativeTransformer(random_model())
    session = network.session(2)
    for tokens in ([0], [0, 302], [0, 0, 0]):
        with pytest.raises(ValueError):
            session.step(np.array(tokens))
    with pytest.raises(ValueError, match="expected one token"):
        session.run(np.zeros((3, 1), np.uint32))
    with pytest.raises(ValueError, match="shape"):
        session.run(np.zeros((3, 2), np.uint32), logits=np.zeros((3, 2, 299), np.int32))
    for n_stream in (0, 129, -1):
        with pytest.raises(ValueError, match="streams"):
            network.session(n_stream)
    with pytest.raises(ValueError, match="more than 4194304 tokens"):
        session.run(np.zeros((1 << 22, 2), np.uint32)[:1].repeat((1 << 22) + 1, axis=0))
    with pytest.raises(ConfigError, match="mmx"):
        NativeTransformer(random_model(), "mmx")


def kernel_arguments(model: TransformerModel) -> dict[str, Any]:
    linears = model.linears()
    tensors: list[Any] = [(t.weight, t.scale, t.bias) for t in linears.values()]
    if model.config.tied:
        tensors[-1] = (None, None, model.head.bias)
    return {
        "shape": model.config.as_json(),
        "tensors": tensors,
        "vectors": list(model.vectors().values()),
        "rotary": model.rotary,
        "exp2_coarse": tables.exp2_coarse(),
        "exp2_fine": tables.exp2_fine(),
    }


def build(arguments: dict[str, Any]) -> _kernel.TransformerModel:
    return _kernel.TransformerModel(
        **{**arguments, "shape": _kernel.TransformerShape(**arguments["shape"])}, isa="scalar"
    )


@pytest.mark.parametrize("tied", [False, True])
def test_what_the_kernel_refuses_of_a_model(tied: bool) -> None:
    """Every bound that the arithmetic rests on, though model.py has checked them before."""
    good = kernel_arguments(random_model(qkv_bias=True, qk_norm=True, tied=tied, no_rotary=(1,)))
    build(good)
    bad_shapes = {
        "vocab_size": (255, (1 << 20) + 1, -1),
        "dim": (0, 65_537, 47),
        "n_layer": (0, 1025, 3),
        "n_head": (0, 3, 1025, -4),
        "n_kv_head": (0, 4, 3),
        "head_dim": (0, 1, 15, 1026, 18),
        "mlp": (0, 65_537, 97),
        "window": (15, 16_369),
        "sinks": (-1, 17),
        "norm_eps": (0.0, 2.0, float("nan"), float("inf")),
        "score_scale": (0.0, 2048.0, float("nan"), -1.0),
        "logit_scale": (0.0, 1e6, float("nan")),
        "qkv_bias": (False,),
        "qk_norm": (False,),
        "tied": (not tied,),
        "no_rotary": ([2], [1, 1], [1, 0], [-1]),
    }
    for name, values in bad_shapes.items():
        for value in values:
            with pytest.raises(ValueError):
                build({**good, "shape": {**good["shape"], name: value}})
    check_parts_are_refused(good)


def check_parts_are_refused(good: dict[str, Any]) -> None:
    """Every tensor and every vector with a value, a shape or a bias that is not the model's."""
    value: float
    for i, (weight, scale, bias) in enumerate(good["tensors"]):
        bad: list[tuple[Any, Any, Any]] = []
        if weight is not None:
            for value in (64, -64, 127, -128):
                changed = weight.copy()
                changed[-1, -1] = value
                bad.append((changed, scale, bias))
            for value in (0, -1, 2.0**-41, 2.0**41, np.nan, np.inf):
                changed = scale.copy()
                changed[-1] = value
                bad.append((weight, changed, bias))
            bad += [(weight[:-1], scale[:-1], bias), (weight, scale[:-1], bias)]
            bad += [(np.ascontiguousarray(weight[:, 1:]), scale, bias), (None, scale, bias)]
        if bias is not None:
            for value in (2.0**-61, -(2.0**41), np.nan, np.inf):
                changed = bias.copy()
                changed[-1] = value
                bad.append((weight, scale, changed))
        bad.append((weight, scale, np.zeros(len(weight), np.float32) if bias is None else None))
        for tensor in bad:
            tensors = list(good["tensors"])
            tensors[i] = tensor
            with pytest.raises(ValueError):
                build({**good, "tensors": tensors})
    for i, vector in enumerate(good["vectors"]):
        for values in (
            vector[1:],
            np.append(vector, vector[:1]),
            *(np.append(vector[1:], np.float32(x)) for x in (np.nan, np.inf, 2.0**41, 2.0**-61)),
        ):
            vectors = list(good["vectors"])
            vectors[i] = values
            with pytest.raises(ValueError):
                build({**good, "vectors": vectors})
    rotary = good["rotary"].copy()
    rotary[0, 1] += 2.0**-45
    for changed in (rotary, rotary * np.nan, rotary[:, :-1].copy(), rotary[:1].copy()):
        with pytest.raises(ValueError):
            build({**good, "rotary": changed})
    for name in ("tensors", "vectors"):
        with pytest.raises(ValueError):
            build({**good, name: good[name][:-1]})


OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gemma2": {
        "post_norm": (False,),
        "score_cap": (0.5, -1.0, float("nan"), float("inf"), 1e7),
        "logit_cap": (0.5, -1.0, float("nan"), float("inf"), 1e7),
        "norm": ("layer", "batch"),
        "activation": ("relu", ""),
        "parallel": (True,),
        "qk_norm_whole": (True,),
        "gated": (False,),
        "out_bias": (True,),
        "mlp_bias": (True,),
        "n_position": (16,),
        "pre_norm": (False,),
        "sliding_window": (16,),
        "sliding_sinks": (1,),
    },
    "gemma3": {
        "sliding": ([], [3], [1, 1], [1, 0], [-1]),
        "sliding_window": (0, 15, 26, -1),
        "sliding_sinks": (-1, 3),
        "n_position": (16, 25),
    },
    "olmo2": {"qk_norm_whole": (False,), "pre_norm": (True,), "post_norm": (False,)},
    "phi": {"norm": ("rms",), "post_norm": (True,), "pre_norm": (False,), "qk_norm": (True,)},
    "gpt2": {
        "n_position": (0, 17, 20, -18, 16),
        "window": (20,),
        "sinks": (1,),
        "no_rotary": ([], [1]),
        "sliding": ([0],),
    },
}


def with_shape(model: TransformerModel, shape: dict[str, Any]) -> TransformerModel:
    members: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}
    return replace(model, config=TransformerConfig(**members))


@pytest.mark.parametrize("shape", OPTIONS)
def test_what_the_kernel_refuses_of_options(shape: str) -> None:
    good = kernel_arguments(random_model(**SHAPES[shape]))
    build(good)
    for name, values in OPTIONS[shape].items():
        for value in values:
            changed = {**good["shape"], name: value}
            with pytest.raises(ValueError):
                build({**good, "shape": changed})
            with pytest.raises((ConfigError, Corrupt)):  # and so does Python
                with_shape(random_model(**SHAPES[shape]), changed)
    check_parts_are_refused(good)


def test_memory() -> None:
    """Known before anything is allocated, and near what is taken."""
    cache = SMOLLM2.cache_nbytes
    for n_stream in (1, 16, 128):
        steps, runs = (native.session_memory_nbytes(SMOLLM2, n_stream, runs) for runs in (False, True))
        assert n_stream * cache <= steps <= runs
        assert steps <= 1.25 * n_stream * cache + 40_000_000, n_stream
    assert SMOLLM2.n_weight <= native.memory_nbytes(SMOLLM2) <= 1.1 * SMOLLM2.n_weight + 4_000_000
    gpt2 = TransformerConfig(
        50_257,
        768,
        12,
        12,
        12,
        64,
        3072,
        sinks=0,
        tied=True,
        no_rotary=tuple(range(12)),
        norm="layer",
        gated=False,
        n_position=1024,
    )
    assert gpt2.n_weight <= native.memory_nbytes(gpt2) <= 1.1 * gpt2.n_weight + 4_000_000
    assert gpt2.cache_nbytes <= native.session_memory_nbytes(gpt2, 1, False)
    with pytest.raises(ValueError):
        native.session_memory_nbytes(SMOLLM2, 129, True)


# Other builds


def model_bytes(model: TransformerModel) -> bytes:
    """As transformer_driver.cpp reads it."""
    c = model.config
    numbers = [c.vocab_size, c.dim, c.n_layer, c.n_head, c.n_kv_head, c.head_dim, c.mlp, c.window, c.sinks]
    numbers += [c.qkv_bias, c.qk_norm, c.tied, len(c.no_rotary), *c.no_rotary]
    numbers += [c.norm == "layer", c.pre_norm, c.post_norm, c.parallel, c.qk_norm_whole, c.gated]
    numbers += [ACTIVATIONS.index(c.activation), c.out_bias, c.mlp_bias]
    numbers += [c.n_position, c.sliding_window, c.sliding_sinks, len(c.sliding), *c.sliding]
    floats = [c.norm_eps, c.score_scale, c.logit_scale, c.score_cap, c.logit_cap]
    parts = [np.array(numbers, np.int32), np.array(floats, np.float32)]
    parts.append(np.array([len(model.linears())], np.int32))
    for name, t in model.linears().items():
        weighted = name != "head" or not c.tied
        parts.append(np.array([*t.weight.shape, weighted, t.bias is not None], np.int32))
        parts += [t.weight, t.scale] if weighted else []
        parts += [] if t.bias is None else [t.bias]
    parts.append(np.array([len(model.vectors())], np.int32))
    for vector in model.vectors().values():
        parts += [np.array([len(vector)], np.int32), vector]
    parts += [model.rotary, tables.exp2_coarse(), tables.exp2_fine()]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def tokens_bytes(tokens: np.ndarray) -> bytes:
    return np.array(tokens.shape, np.uint32).tobytes() + tokens.astype(np.uint32).tobytes()


def expected_bytes(model: TransformerModel, tokens: np.ndarray) -> bytes:
    logits = reference.sequence(model, tokens, reference.start(model, tokens.shape[1]))
    return logits.tobytes() + decisions.frequencies(logits).tobytes()


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "O0" else pytest.mark.slow) for name in DRIVER_BUILDS],
)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or sys.platform == "win32":
        pytest.skip("no C++ compiler that takes the options of g++")
    if not NATIVE.is_dir():
        pytest.skip(f"{NATIVE} is missing: the tests of a checkout")
    folder = tmp_path_factory.mktemp("transformer")
    binary = folder / "driver"
    flags = ["-std=c++17", "-pthread", *WARNINGS, *EXACT, f"-I{NATIVE}", *DRIVER_BUILDS[request.param]]
    run = subprocess.run(
        [compiler, *flags, *DRIVER_SOURCES, "-o", binary], capture_output=True, encoding="utf-8"
    )
    if "sanitize" in " ".join(flags) and "cannot find" in run.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert run.returncode == 0, run.stderr
    return Build(binary, folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_other_builds(driver: Build, shape: str) -> None:
    model = random_model(**SHAPES[shape])
    model_file = driver.file(model_bytes(model))
    for t, b in ((model.config.window * 2 + 5, 2), (2, 9)):
        tokens = random_tokens(model, t, b)
        expected = expected_bytes(model, tokens)
        tokens_file = driver.file(tokens_bytes(tokens))
        for isa in driver("isas").decode().split():
            assert driver("run", model_file, tokens_file, isa) == expected, isa
            assert driver("run", model_file, tokens_file, isa, "upward") == expected, isa


def test_instruction_sets_of_other_builds(driver: Build) -> None:
    isas = driver("isas").decode().split()
    if not os.environ.get("LMCODEC_TEST_RUNNER"):
        assert isas == ISAS
    elif "aarch64" in os.environ["LMCODEC_TEST_RUNNER"]:
        assert isas == ["neon", "scalar"]


@pytest.mark.parametrize("shape", ["SmolLM2", *SHAPES])
def test_no_number_of_streams_takes_more_than_is_said(shape: str) -> None:
    """The limits of a caller count a block and its streams; a session's memory is no straight line."""
    config = SMOLLM2 if shape == "SmolLM2" else random_model(**SHAPES[shape]).config
    block, stream = native.session_bound(config)
    assert stream >= 1
    takes = [native.session_memory_nbytes(config, n, True) for n in range(1, 129)]
    assert all(nbytes <= block + n * stream for n, nbytes in enumerate(takes, 1))
    assert takes[0] == block + stream
