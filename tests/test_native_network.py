"""The kernel's executor against the definition, `lmcodec.lm.recurrent.reference`: the same integers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from integer_models import GOLDEN, golden_expected, golden_hashes, golden_input
from test_kernel_builds import BUILDS, NATIVE, WARNINGS

from lmcodec import _kernel
from lmcodec.errors import ConfigError, Corrupt
from lmcodec.lm import decisions
from lmcodec.lm.recurrent import native, reference, tables
from lmcodec.lm.recurrent.model import (
    BIAS_MAX,
    MULTIPLIER_MAX,
    STATE_MAX,
    WEIGHT_MAX,
    IntegerModel,
    Layer,
    Linear,
    shapes,
)
from lmcodec.lm.recurrent.native import NativeNetwork, NativeSession, chosen_isa
from lmcodec.lm.recurrent.shape import RecurrentConfig
from lmcodec.lm.vocab import Vocabulary

ISAS = _kernel.network_isas()
DRIVER_BUILDS = {**BUILDS, "thread sanitizer": ["-O1", "-g", "-fsanitize=thread"]}
DRIVER_SOURCES = [
    *NATIVE.glob("gemm*.cpp"),
    NATIVE / "recurrent.cpp",
    NATIVE / "table_memory.cpp",
    Path(__file__).with_name("network_driver.cpp"),
]
# V, D, L, R, M: mostly multiples of nothing, below and above a panel of 64 outputs, and whole panels.
SHAPES = [
    (300, 48, 1, 33, 70),
    (257, 20, 3, 16, 0),
    (321, 100, 2, 70, 33),
    (384, 64, 1, 64, 128),
    (256, 17, 1, 95, 1),
]
EXTREMES = ["most", "least", "mixed", "small shift", "large shift"]
# Multiplier and shift that bring random sums to the scale of what follows.
SCALES = {
    "embed": (12_000, 5),
    "in": (30_000, 22),
    "up": (30_000, 22),
    "out": (40_000, 12),
    "down": (40_000, 14),
}
SCALES["head"] = (40_000, 21)


def vocabulary(n: int) -> Vocabulary:
    pairs = [bytes([97 + i // 26, 97 + i % 26]) for i in range(n - 256)]
    return Vocabulary(sorted({bytes([b]) for b in range(256)} | set(pairs)))


def assemble(config: RecurrentConfig, made: dict[str, Linear], start: np.ndarray) -> IntegerModel:
    layers = tuple(
        Layer(*(made.get(f"layers.{i}.{part}") for part in ("in", "out", "up", "down")))  # type: ignore[arg-type]
        for i in range(config.n_layer)
    )
    return IntegerModel(config, vocabulary(config.vocab_size), made["embed"], layers, made["head"], start)


@cache
def random_model(v: int, d: int, n_layer: int, r: int, m: int, seed: int = 1) -> IntegerModel:
    rng = np.random.default_rng(seed)
    config = RecurrentConfig(v, d, n_layer, r, m)
    made = {}
    for name, (n, k, biased) in shapes(config).items():
        scale, shift = SCALES[name.split(".")[-1]]
        made[name] = Linear(
            rng.integers(-WEIGHT_MAX, WEIGHT_MAX + 1, (n, k), np.int8),
            rng.integers(-40_000, 40_001, n, np.int32) if biased else None,
            rng.integers(scale // 2, scale + 1, n).astype(np.uint16),
            shift,
        )
    start = rng.integers(-STATE_MAX // 4, STATE_MAX // 4, (2, n_layer, r), np.int32)
    return assemble(config, made, start)


def extreme_model(kind: str) -> IntegerModel:
    """Every number at a bound of its own."""
    rng = np.random.default_rng(7)
    config = RecurrentConfig(300, 2096, 1, 40, 70)
    sign = {"most": 1, "least": -1}.get(kind, 0)
    made = {}
    for name, (n, k, biased) in shapes(config).items():

        def signs(*shape: int) -> np.ndarray:
            return np.full(shape, sign) if sign else rng.choice([-1, 1], shape)

        shift = {"small shift": 12, "large shift": 40}.get(kind, int(rng.integers(12, 41)))
        shift = shift if name != "embed" else (0 if kind != "large shift" else 40)
        weight = (signs(n, k) * WEIGHT_MAX).astype(np.int8)
        bias = (signs(n) * BIAS_MAX).astype(np.int32) if biased else None
        made[name] = Linear(weight, bias, np.full(n, MULTIPLIER_MAX, np.uint16), shift)
    start = np.full((2, 1, 40), STATE_MAX, np.int32)
    start[0] *= -1
    return assemble(config, made, start)


def random_tokens(model: IntegerModel, t: int, b: int) -> np.ndarray:
    return (
        np.random.default_rng(t * 1000 + b).integers(0, model.config.vocab_size + 2, (t, b)).astype(np.int32)
    )


def cuts(b: int) -> np.ndarray:
    return np.arange(b) % 3 == 1


def check_same_bits(model: IntegerModel, isa: str, t: int, b: int) -> None:
    """Logits, frequencies, sums and states of the definition, step by step and all positions at once."""
    tokens = random_tokens(model, t, b)
    state = reference.start(model, cuts(b))
    logits = reference.sequence(model, tokens, state)
    freq = decisions.frequencies(logits)
    network = NativeNetwork(model, isa)
    assert network.isa == isa

    whole = network.start(cuts(b))
    found, weighed = np.empty_like(logits), np.empty_like(freq)
    whole.run(tokens, found, weighed)
    assert (found == logits).all()
    assert (weighed == freq).all()
    assert (whole.state == state.h).all()

    session = network.start(cuts(b))
    in_place = _kernel.RecurrentSession(network.kernel, b)  # frequencies where the logits were
    helped = _kernel.RecurrentSession(network.kernel, b, helped=True)
    for stream, cut in enumerate(cuts(b)):
        in_place.begin(stream, bool(cut))
        helped.begin(stream, bool(cut))
    for i in range(t):
        session.step(tokens[i])
        in_place.step(tokens[i].astype(np.uint32))
        helped.step(tokens[i].astype(np.uint32))
        assert (session.logits() == logits[i]).all()
        assert (session.frequencies() == freq[i]).all()
        assert (in_place.frequencies() == freq[i]).all()
        assert (helped.frequencies() == freq[i]).all()
    assert (session.state == state.h).all()
    assert (in_place.state == state.h).all()
    assert (helped.state == state.h).all()

    cum = decisions.cumulate(freq[-1])
    rng = np.random.default_rng(5)
    v = model.config.vocab_size
    ends = [0, 1, 63, 64, 65, 128, v - 1, v]
    spans = [(low, high) for low in ends for high in ends if low <= high]
    spans += [tuple(sorted(pair)) for pair in rng.integers(0, v + 1, (50, 2)).tolist()]
    for low, high in spans:
        stream = int(rng.integers(b))
        assert session.span(stream, low, high) == cum[stream, high] - cum[stream, low], (stream, low, high)
        assert in_place.cum(stream, high) == cum[stream, high], (stream, high)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_models(shape: tuple[int, int, int, int, int], isa: str) -> None:
    check_same_bits(random_model(*shape), isa, 6, 5)


def test_the_random_models_are_alive() -> None:
    """Sums of a scale where errors show: not all activations at a bound, not all frequencies 1."""
    for shape in SHAPES:
        model = random_model(*shape)
        state = reference.start(model, cuts(5))
        logits = reference.sequence(model, random_tokens(model, 6, 5), state)
        freq = decisions.frequencies(logits)
        assert len(np.unique(freq)) > 500, shape
        assert (freq > 1).mean() > 0.3, shape
        assert len(np.unique(state.h)) > 0.8 * state.h.size, shape


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("b", [1, 2, 3, 7, 16, 64, 128])
def test_streams(b: int, isa: str) -> None:
    check_same_bits(random_model(*SHAPES[0]), isa, 3, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("b", [1, 2, 5])
def test_a_second_thread_takes_panels(b: int, isa: str) -> None:
    """Of products with one panel, with odd numbers of them and many; until it has taken a part for sure."""
    network = NativeNetwork(random_model(1100, 100, 2, 70, 200), isa)
    plain = _kernel.RecurrentSession(network.kernel, b)
    helped = _kernel.RecurrentSession(network.kernel, b, helped=True)
    tokens = random_tokens(network.model, 64, b).astype(np.uint32)
    end = time.monotonic() + 20
    n_step = 0
    while n_step < 64 or (helped.n_helped < 1000 and time.monotonic() < end):
        for session in (plain, helped):
            session.step(tokens[n_step % 64])
        assert (helped.frequencies() == plain.frequencies()).all()
        assert helped.cum(b - 1, 1100) == plain.cum(b - 1, 1100)
        n_step += 1
    assert (helped.state == plain.state).all()
    assert plain.n_helped == 0
    assert helped.n_helped > 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("t", "b"), [(300, 1), (90, 3), (5, 100)])
def test_sequences_of_several_pieces(t: int, b: int, isa: str) -> None:
    model = random_model(*SHAPES[2])
    tokens = random_tokens(model, t, b)
    state = reference.start(model, cuts(b))
    expected = reference.sequence(model, tokens, state)
    session = NativeNetwork(model, isa).start(cuts(b))
    assert (session.sequence(tokens[: t // 3]) == expected[: t // 3]).all()
    session.step(tokens[t // 3])
    assert (session.logits() == expected[t // 3]).all()
    assert (session.sequence(tokens[t // 3 + 1 :]) == expected[t // 3 + 1 :]).all()
    assert (session.state == state.h).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes(kind: str, isa: str) -> None:
    check_same_bits(extreme_model(kind), isa, 3, 4)


@pytest.mark.parametrize("isa", ISAS)
def test_a_zero_stream_and_wide_logits(isa: str) -> None:
    """Where the norm divides by its smallest and largest sum, and frequencies fall to 1 and stay 2^24."""
    model = random_model(*SHAPES[0])
    for weight, shift in ((0, 5), (1, 20), (63, 0)):
        embed = replace(model.embed, weight=np.full_like(model.embed.weight, weight), shift=shift)
        silent = replace(model.layers[0].out, multiplier=np.zeros_like(model.layers[0].out.multiplier))
        layer = replace(model.layers[0], out=silent)
        check_same_bits(replace(model, embed=embed, layers=(layer,)), isa, 2, 2)
    for shift in (12, 16, 26, 40):
        check_same_bits(replace(model, head=replace(model.head, shift=shift)), isa, 2, 2)
    flat = replace(model.head, multiplier=np.zeros_like(model.head.multiplier))
    check_same_bits(replace(model, head=flat), isa, 2, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_likeliest_token_is_at_the_end(shape: tuple[int, int, int, int, int], isa: str) -> None:
    """Also when all logits are negative: what pads the rows is no token."""
    model = random_model(*shape)
    for token in (-1, -2, 0):
        bias = np.full(shape[0], -BIAS_MAX, np.int32)
        bias[token] = -BIAS_MAX // 2
        check_same_bits(replace(model, head=replace(model.head, bias=bias)), isa, 1, 2)


@pytest.mark.parametrize("isa", ISAS)
def test_a_stream_so_small_that_the_norms_constant_counts(isa: str) -> None:
    model = random_model(300, 48, 1, 33, 0)
    silent = replace(model.layers[0].out, multiplier=np.zeros(48, np.uint16))
    layers = (replace(model.layers[0], out=silent),)
    for multiplier in (1, 2, 3):
        embed = replace(model.embed, multiplier=np.full(302, multiplier, np.uint16), shift=5)
        check_same_bits(replace(model, embed=embed, layers=layers), isa, 3, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_residual_stream_stops_at_its_bound(sign: int, isa: str) -> None:
    """Driven over the bound by the recurrence, then back to near 0 by the MLP, where its last bit shows."""
    model = random_model(300, 48, 1, 64, 70)
    layer = model.layers[0]
    most = np.full(48, MULTIPLIER_MAX, np.uint16)
    bias = np.repeat(np.array([127, 0, 127], np.int32), 64)
    into = Linear(np.zeros_like(layer.into.weight), bias, np.full(192, 4096, np.uint16), 12)
    out = Linear(np.full_like(layer.out.weight, sign * WEIGHT_MAX), None, most, 12)
    assert layer.up is not None
    assert layer.down is not None
    up = Linear(np.zeros_like(layer.up.weight), np.full(70, 127, np.int32), np.full(70, 4096, np.uint16), 12)
    back = (61_836 + np.arange(48) % 3).astype(np.uint16)  # 70 * 126 * 63 * 61836 / 2^12 = 2^23 + 48
    down = Linear(np.full_like(layer.down.weight, -sign * WEIGHT_MAX), None, back, 12)
    embed = replace(model.embed, weight=np.full_like(model.embed.weight, sign * WEIGHT_MAX))
    embed = replace(embed, multiplier=np.full(302, MULTIPLIER_MAX, np.uint16), shift=0)
    driven = replace(
        model, embed=embed, layers=(Layer(into, out, up, down),), start=np.full_like(model.start, STATE_MAX)
    )
    check_same_bits(driven, isa, 2, 2)


@pytest.mark.parametrize("isa", ISAS)
def test_every_gate(isa: str) -> None:
    """All 255 x 255 pairs of a gate's argument and an input, by a recurrence without weights."""
    model = random_model(300, 48, 1, 255, 0)
    gates = np.arange(-127, 128)
    into = model.layers[0].into
    unit = Linear(np.zeros_like(into.weight), np.zeros_like(into.bias), np.full(765, 4096, np.uint16), 12)
    for v in (-127, -1, 0, 1, 100, 127):
        bias = np.concatenate([gates, np.full(255, v), gates[::-1]]).astype(np.int32)
        layer = replace(model.layers[0], into=replace(unit, bias=bias))
        check_same_bits(replace(model, layers=(layer,)), isa, 3, 2)


def test_self_test() -> None:
    model = random_model(*SHAPES[0])
    known = reference.compute_known_answer(model)
    for isa in ISAS:
        NativeNetwork(model, isa).self_test(known)
        weight = model.layers[0].into.weight.copy()
        weight[5, 7] = -weight[5, 7] or 1
        layer = replace(model.layers[0], into=replace(model.layers[0].into, weight=weight))
        changed = replace(model, layers=(layer,))
        with pytest.raises(Corrupt, match=rf"{changed.model_id} fails its self-test.*{isa}"):
            NativeNetwork(changed, isa).self_test(known)


class Flawed(NativeSession):
    """Wrong in the last stream's last state, after one way of moving on."""

    way = ""
    used = ""

    def step(self, tokens: np.ndarray) -> None:
        self.used = "step"
        super().step(tokens)

    def run(
        self, tokens: np.ndarray, logits: np.ndarray | None = None, freq: np.ndarray | None = None
    ) -> None:
        self.used = f"run of {tokens.size}"
        super().run(tokens, logits, freq)

    @property
    def state(self) -> np.ndarray:
        state = super().state
        state[-1, -1, -1] += self.used == self.way
        return state


@pytest.mark.parametrize("isa", ["amx", ISAS[0]])
def test_self_test_takes_every_way(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions at once, with AMX more rows than a pair of tiles has, and step by step."""
    monkeypatch.setattr(native, "NativeSession", Flawed)
    model = random_model(*SHAPES[0])
    known = reference.compute_known_answer(model)
    network = NativeNetwork(model)
    network.isa = isa
    network.self_test(known)
    for way in ("run of 48" if isa == "amx" else "run of 16", "step"):
        monkeypatch.setattr(Flawed, "way", way)
        with pytest.raises(Corrupt, match="fails its self-test"):
            network.self_test(known)


def test_which_isa() -> None:
    assert ISAS[-1] == "scalar"
    for name in ISAS:
        with mock.patch.dict(os.environ, LMCODEC_ISA=name):
            assert NativeNetwork(random_model(*SHAPES[0])).isa == name
    assert chosen_isa("scalar") == "scalar"
    with mock.patch.dict(os.environ, LMCODEC_ISA=""):
        assert chosen_isa() == ISAS[0]
    missing = [name for name in ("amx", "avx512vnni", "avx2", "neon") if name not in ISAS]
    assert missing  # no processor has them all
    for name in (*missing, "AVX2", "sse2"):
        with pytest.raises(ConfigError, match=rf"^{name}: .*scalar.*unset"):
            chosen_isa(name)
        with (
            mock.patch.dict(os.environ, LMCODEC_ISA=name),
            pytest.raises(ConfigError, match=rf"^LMCODEC_ISA={name}: .*scalar.*unset"),
        ):
            NativeNetwork(random_model(*SHAPES[0]))


@pytest.mark.parametrize(
    ("isas", "meant"),
    [
        (["amx", "avx512vnni", "avx2", "scalar"], "avx512vnni"),
        (["avx512vnni", "avx2", "scalar"], "avx512vnni"),
        (["avx2", "scalar"], "avx2"),
    ],
)
def test_the_mixers_avx512(isas: list[str], meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It forces AVX-512, not what is better still."""
    monkeypatch.setattr(_kernel, "network_isas", lambda: isas)
    monkeypatch.setattr(_kernel, "mixing_isas", lambda: ["avx512", "avx2", "scalar"])
    assert chosen_isa("avx512") == meant
    monkeypatch.setattr(_kernel, "mixing_isas", lambda: ["avx2", "scalar"])
    with pytest.raises(ConfigError, match=r"^avx512: not an instruction set"):
        chosen_isa("avx512")


@pytest.mark.parametrize(("isas", "meant"), [(["neon", "scalar"], "neon"), (["scalar"], "scalar")])
def test_the_mixers_neon(isas: list[str], meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's needs the dot product, the mixer's does not."""
    monkeypatch.setattr(_kernel, "network_isas", lambda: isas)
    monkeypatch.setattr(_kernel, "mixing_isas", lambda: ["neon", "scalar"])
    assert chosen_isa("neon") == meant


def test_what_is_refused() -> None:
    model = random_model(*SHAPES[0])
    network = NativeNetwork(model)
    session = network.start(cuts(3))
    before = session.state
    for tokens in ([0, 0], [0, 302, 0], [0, -1, 0]):
        with pytest.raises((ValueError, OverflowError)):
            session.step(np.array(tokens))
    with pytest.raises(ValueError):
        session.run(np.full((2, 3), 302))
    with pytest.raises(ValueError):
        session.run(np.zeros((2, 3)), logits=np.empty((2, 3, 299), np.int32))
    for low, high in ((-1, 3), (3, 2), (0, 301)):
        with pytest.raises(ValueError):
            session.span(0, low, high)
    with pytest.raises(ValueError):
        session.span(3, 0, 1)
    for b in (0, 129):
        with pytest.raises(ValueError):
            network.start(cuts(b))
    with pytest.raises(ValueError, match="keeps no logits"):
        _kernel.RecurrentSession(network.kernel, 1).logits()
    assert (session.state == before).all()


def test_the_kernel_checks_the_bounds_too() -> None:
    """The products' exactness rests on them, whoever makes the arrays."""
    model = random_model(*SHAPES[0])

    def build(**changes: np.ndarray | int) -> None:
        broken = replace(model.head)  # past the checks of IntegerModel
        for name, value in changes.items():
            object.__setattr__(broken, name, value)
        loose = replace(model)
        object.__setattr__(loose, "head", broken)
        NativeNetwork(loose)

    build()
    weight, bias = model.head.weight.copy(), model.head.bias.copy()  # type: ignore[union-attr]
    weight[-1, -1], bias[-1] = 64, BIAS_MAX + 1
    for changes in (
        {"weight": weight},
        {"bias": bias},
        {"shift": 11},
        {"shift": 41},
        {"weight": weight[:-1]},
    ):
        with pytest.raises(ValueError):
            build(**changes)


def model_bytes(model: IntegerModel) -> bytes:
    """As network_driver.cpp reads it."""
    c = model.config
    parts = [np.array([c.vocab_size, c.dim, c.n_layer, c.recurrent, c.mlp], np.int32)]
    for t in model.tensors().values():
        parts += [np.array([*t.weight.shape, t.bias is not None, t.shift], np.int32), t.weight]
        parts += [t.bias] if t.bias is not None else []
        parts.append(t.multiplier)
    parts += [model.start, tables.decay(), tables.input_scale(), tables.relu2(), tables.rsqrt()]
    parts += [tables.exp2_coarse(), tables.exp2_fine(), np.array([tables.norm_scale(c.dim)], np.int32)]
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("build", DRIVER_BUILDS)
def test_builds_without_python(build: str, tmp_path: Path) -> None:
    """Other optimisation and sanitizers; LMCODEC_TEST_RUNNER may name what runs the binaries of CXX."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler or sys.platform == "win32" or not NATIVE.is_dir():
        pytest.skip("needs a checkout and a C++ compiler that takes the options of g++")
    binary = tmp_path / "driver"
    flags = ["-std=c++17", "-pthread", *WARNINGS, f"-I{NATIVE}", *DRIVER_BUILDS[build]]
    command: list[str | Path] = [compiler, *flags, *DRIVER_SOURCES, "-o", binary]
    built = subprocess.run(command, capture_output=True, encoding="utf-8")
    if "sanitize" in " ".join(flags) and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr

    def run(*arguments: str | Path) -> bytes:
        command = [*os.environ.get("LMCODEC_TEST_RUNNER", "").split(), binary, *arguments]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    isas = run("isas").decode().split()
    assert isas[-1] == "scalar"
    cases = [(random_model(*shape), 3, 7) for shape in SHAPES]
    cases += [(random_model(*SHAPES[2]), 70, 4), (random_model(*SHAPES[0]), 2, 128)]
    cases += [(extreme_model(kind), 2, 3) for kind in EXTREMES]
    for model, t, b in cases:
        tokens = random_tokens(model, t, b)
        state = reference.start(model, cuts(b))
        freq = decisions.frequencies(reference.sequence(model, tokens, state))
        expected = 2 * freq.tobytes() + decisions.cumulate(freq).tobytes() + 2 * state.h.tobytes()
        (tmp_path / "model").write_bytes(model_bytes(model))
        head = np.array([t, b, *cuts(b)], np.uint32)
        (tmp_path / "tokens").write_bytes(head.tobytes() + tokens.astype(np.uint32).tobytes())
        for isa in isas:
            assert run("run", tmp_path / "model", tmp_path / "tokens", isa) == expected, isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_hashes(name: str, isa: str) -> None:
    model, tokens, cut = golden_input(name)
    expected = golden_expected(name)
    network = NativeNetwork(model, isa)
    network.self_test(expected["known_answer"])
    session = network.start(cut)
    freq = np.empty((*tokens.shape, model.config.vocab_size), np.uint32)
    session.run(tokens, freq=freq)
    assert golden_hashes(model, freq, session.state, expected["known_answer"]) == expected
