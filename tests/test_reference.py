"""The definition of the integer model against exact arithmetic, and at the ends of its bounds."""

from __future__ import annotations

import dataclasses
import decimal
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from integer_models import (
    GOLDEN,
    Draw,
    alternate_cuts,
    golden_expected,
    random_model,
    random_tokens,
    random_vocabulary,
    reference_hashes,
)

from lmcodec.errors import Corrupt
from lmcodec.lm import decisions
from lmcodec.lm import tables as shared_tables
from lmcodec.lm.recurrent import reference, tables
from lmcodec.lm.recurrent.model import (
    BIAS_MAX,
    MULTIPLIER_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    STATE_MAX,
    WEIGHT_MAX,
    IntegerModel,
    Linear,
)
from lmcodec.lm.recurrent.shape import MAX_FAN_IN

INT32 = 1 << 31
STREAM_MAX = (1 << 23) - 1
Z = np.arange(-127, 128)


def halves_up(numerator: int, shift: int) -> int:
    """numerator / 2^shift to the nearest, halves up, by division."""
    return (2 * numerator + 2**shift) // (2 * 2**shift)


def clipped(value: int, bound: int) -> int:
    return max(-bound, min(bound, value))


# Products


def exact_product(u: np.ndarray, linear: Linear) -> list[list[int]]:
    """(B, K) activations to (B, N), with Python's integers."""
    bias = [0] * len(linear.weight) if linear.bias is None else linear.bias.tolist()
    rows = list(zip(linear.weight.tolist(), bias, linear.multiplier.tolist(), strict=True))
    return [
        [halves_up((sum(map(int.__mul__, w, x)) + b) * m, linear.shift) for w, b, m in rows]
        for x in u.tolist()
    ]


@pytest.mark.parametrize("shift", [SHIFT_MIN, 13, 27, SHIFT_MAX])
@pytest.mark.parametrize("bias", [-BIAS_MAX, 0, BIAS_MAX, None])
@pytest.mark.parametrize("k", [1, 17, MAX_FAN_IN])
def test_product_at_the_extremes(k: int, bias: int | None, shift: int) -> None:
    weight = np.full((4, k), WEIGHT_MAX, np.int8)
    weight[1::2] *= -1
    linear = Linear(
        weight,
        None if bias is None else np.full(4, bias, np.int32),
        np.array([MULTIPLIER_MAX, MULTIPLIER_MAX, 1, 0], np.uint16),
        shift,
    )
    u = np.array([[127] * k, [-127] * k, [0] * k], np.int32)
    found = reference.product(u, linear)
    assert found.dtype == np.int32
    assert found.tolist() == exact_product(u, linear)
    assert abs(found.astype(np.int64)).max() < 1 << 29


def test_product_sums_reach_their_bound() -> None:
    """The proof of exactness in float32 has no slack for a wider matrix."""
    sums = 127 * WEIGHT_MAX * MAX_FAN_IN
    assert sums < 1 << 24 < 127 * WEIGHT_MAX * (MAX_FAN_IN + 16)
    assert sums + BIAS_MAX < 1 << 25
    assert halves_up((sums + BIAS_MAX) * MULTIPLIER_MAX, SHIFT_MIN) < 1 << 29
    assert halves_up(WEIGHT_MAX * MULTIPLIER_MAX, 0) < 1 << 22


@pytest.mark.parametrize("seed", range(8))
def test_product_on_random_numbers(seed: int) -> None:
    draw = Draw(seed)
    n, k, shift = (int(draw.integers(*bounds, 1)[0]) for bounds in ((1, 9), (1, 99), (SHIFT_MIN, SHIFT_MAX)))
    linear = Linear(
        draw.integers(-WEIGHT_MAX, WEIGHT_MAX, (n, k), np.int8),
        draw.integers(-BIAS_MAX, BIAS_MAX, n, np.int32),
        draw.integers(0, MULTIPLIER_MAX, n, np.uint16),
        shift,
    )
    u = draw.integers(-127, 127, (5, k), np.int32)
    assert reference.product(u, linear).tolist() == exact_product(u, linear)


def test_requantisation_rounds_halves_up() -> None:
    linear = Linear(np.eye(7, dtype=np.int8), None, np.full(7, 1 << 11, np.uint16), 12)
    u = np.array([[-5, -3, -1, 0, 1, 3, 5]], np.int32)  # halves of -2.5 to 2.5
    assert reference.product(u, linear).tolist() == [[-2, -1, 0, 0, 1, 2, 3]]


@pytest.mark.parametrize("shift", [0, 1, SHIFT_MIN, SHIFT_MAX])
def test_embedding(shift: int) -> None:
    """The first layer sees the table's rows, scaled: from a head of one-hot weights the norm is read."""
    model = random_model(1, n_layer=1, mlp=0)
    embed = Linear(model.embed.weight.copy(), None, model.embed.multiplier.copy(), shift)
    embed.weight[:2] = np.array([[WEIGHT_MAX], [-WEIGHT_MAX]])
    embed.multiplier[:3] = MULTIPLIER_MAX, MULTIPLIER_MAX, 0
    tokens = np.array([[0, 1, 2, 3, model.config.bos, model.config.mid]])
    rows = [
        [halves_up(w * int(embed.multiplier[t]), shift) for w in embed.weight[t].tolist()] for t in tokens[0]
    ]
    dead = replace(model.layers[0].out, multiplier=np.zeros_like(model.layers[0].out.multiplier))
    model = replace(model, embed=embed, layers=(replace(model.layers[0], out=dead),))
    logits = reference.sequence(model, tokens, reference.start(model, np.zeros(6, bool)))
    x = np.array([rows], np.int32)
    assert x.tolist() == [rows]
    assert (logits == reference.product(reference.normalise(x), model.head)).all()


# Residual stream and norm


def test_residual_stream_is_held() -> None:
    x = np.array([STREAM_MAX, -STREAM_MAX, STREAM_MAX, -5, 0], np.int32)
    y = np.array([(1 << 29) - 1, -(1 << 29), -(1 << 29), 3, STREAM_MAX + 1], np.int32)
    expected = [clipped(a + b, STREAM_MAX) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert reference.add(x, y).tolist() == expected


# Their norms at widths 33 and 2096 show whether the factor is rounded or cut.
BY_A_HAIR = [
    [-843559, -223676, 857132, -747247, -10727, -211027, -46040, 387341],
    [942694, 354152, -282810, -990369, -911343, -295929, -270895, -569484],
]


def norm_vectors(dim: int) -> np.ndarray:
    """(n, dim) int32: the smallest and largest sums of squares, spikes, and sizes of every order."""
    draw = Draw(dim)
    signs = draw.choice([-1, 1], dim)
    spikes = [np.eye(1, dim, k, dtype=np.int64)[0] * v for k in (0, dim - 1) for v in (1, -77, STREAM_MAX)]
    ladder = [draw.integers(-(1 << b), 1 << b, dim).clip(-STREAM_MAX, STREAM_MAX) for b in range(24)]
    full = [np.full(dim, STREAM_MAX), np.full(dim, -STREAM_MAX), STREAM_MAX * signs, signs]
    hair = np.zeros((2, dim), np.int64)
    hair[:, :8] = BY_A_HAIR
    return np.array([np.zeros(dim, np.int64), *full, *spikes, *ladder, *hair], np.int32)


@pytest.mark.parametrize("dim", [16, 17, 48, 100, 512, MAX_FAN_IN])
def test_norm_is_within_its_error(dim: int) -> None:
    """|n - exact| <= 1/2 + |exact| * relative error.

    Relative errors: half a table step of 2^18 in m >= 2^30 under a root, 2^-14 (and its square); half a
    unit of a root of 2^15, 2^-16; the floor of norm_scale; half a unit of a factor of 2^15 norm_scale / 2^8.
    """
    x = norm_vectors(dim)
    n = reference.normalise(x)
    assert n.dtype == np.int32
    assert abs(n).max() <= 127
    with decimal.localcontext() as context:
        context.prec = 40
        scale = tables.norm_scale(dim)
        relative = Decimal(2) ** -14 + Decimal(2) ** -27 + Decimal(2) ** -16 + Decimal(1) / scale
        relative = (relative + Decimal(1) / (scale << 8)) * (1 + Decimal(2) ** -11)
        for row, found in zip(x.tolist(), n.tolist(), strict=True):
            s = sum(v * v for v in row) + 17 * dim
            factor = 16 * (Decimal(dim) / s).sqrt()
            for v, got in {*zip(row, found, strict=True)}:
                exact = v * factor
                wrong = abs(got - exact)
                clip = abs(got) == 127 and abs(exact) * (1 + relative) >= Decimal("126.5")
                assert wrong <= Decimal("0.5") + abs(exact) * relative or (clip and got * exact > 0)


def exact_norm(row: list[int]) -> list[int]:
    """The norm's steps with Python's integers."""
    s = sum(v * v for v in row) + 17 * len(row)
    e = s.bit_length() - 31
    e -= e % 2
    m = s * 2**-e if e < 0 else s // 2**e
    assert 1 << 30 <= m < 1 << 32
    factor = halves_up(int(tables.rsqrt()[m // 2**18 - 4096]) * tables.norm_scale(len(row)), 8)
    assert factor < 1 << 25
    assert 18 <= 29 + e // 2 <= 42
    return [clipped(halves_up(v * factor, 29 + e // 2), 127) for v in row]


@pytest.mark.parametrize("dim", [16, 33, MAX_FAN_IN])
def test_norm_to_the_bit(dim: int) -> None:
    x = norm_vectors(dim)
    assert reference.normalise(x).tolist() == [exact_norm(row) for row in x.tolist()]


def test_norm_of_known_vectors() -> None:
    assert not reference.normalise(np.zeros((1, 16), np.int32)).any()
    full = np.full((1, MAX_FAN_IN), STREAM_MAX, np.int32)
    assert reference.normalise(full).tolist() == [[16] * MAX_FAN_IN]
    assert reference.normalise(-full).tolist() == [[-16] * MAX_FAN_IN]
    spike = np.eye(1, MAX_FAN_IN, 5, dtype=np.int32) * STREAM_MAX  # 16 sqrt(2096) = 732 is clipped
    assert reference.normalise(spike).tolist() == (np.eye(1, MAX_FAN_IN, 5, dtype=np.int32) * 127).tolist()


def test_bit_length() -> None:
    values = [v for b in range(62) for v in (1 << b, (2 << b) - 1, (1 << b) + 1)]
    found = decisions.bit_length(np.array(values, np.int64))
    assert found.tolist() == [v.bit_length() for v in values]


# Recurrence


def exact_recurrence(z: list[int], v: list[int], h: int) -> list[int]:
    """One channel's states, with Python's integers."""
    states = []
    for zt, vt in zip(z, v, strict=True):
        a, s = int(tables.decay()[zt + 127]), int(tables.input_scale()[zt + 127])
        h = halves_up(a * h + s * vt * 4096, 16)
        states.append(h)
    return states


def fixed_point() -> int:
    """No state passes it that has not begun above it.

    If |h| <= F for F >= (s 127 2^12 + 2^15) / (2^16 - a) for every table entry, then
    |h'| <= (a F + s 127 2^12 + 2^15) / 2^16 <= F.
    """
    pairs = zip(tables.decay().tolist(), tables.input_scale().tolist(), strict=True)
    return max((s * 127 * 4096 + (1 << 15)) // (65536 - a) for a, s in pairs)


def test_fixed_point_is_within_the_docstring() -> None:
    assert 1.17 * 2**25 < fixed_point() < 1.19 * 2**25 < STATE_MAX


@pytest.mark.parametrize("h", [0, 1, -1, STATE_MAX, -STATE_MAX])
def test_recurrence_to_the_bit(h: int) -> None:
    draw = Draw(abs(h) % 7)
    z, v = draw.integers(-127, 127, (300, 3, 8)), draw.integers(-127, 127, (300, 3, 8))
    z[:, 1], z[:100, 2], v[:, 1, :4] = 127, -127, 127
    start = np.full((3, 8), h, np.int32)
    states = reference.recur(z, v, start)
    assert states.dtype == np.int32
    for b, r in np.ndindex(3, 8):
        assert states[:, b, r].tolist() == exact_recurrence(z[:, b, r].tolist(), v[:, b, r].tolist(), h)


def test_states_never_pass_the_fixed_point() -> None:
    """Every gate argument held with the largest inputs until nothing moves, from rest and from +-2^26."""
    bound = fixed_point()
    h = np.repeat([[0], [0], [STATE_MAX], [-STATE_MAX]], 255, axis=1).astype(np.int32)  # (4, 255)
    n_position = 2000
    z = np.broadcast_to(Z, (n_position, 4, 255))
    v = np.broadcast_to(np.array([127, -127, 127, -127])[:, None], (n_position, 4, 255))
    for _ in range(30):
        states = reference.recur(z, v, h)
        assert (abs(states[:, :2]) <= bound).all()
        assert (abs(states) <= STATE_MAX).all()
        if (states[0] == h).all():
            break
        h = states[-1]
    else:
        pytest.fail("states still move")
    assert h[0].max() > bound - 4000  # the bound is nearly reached: by the rounding's 2^15 / (2^16 - a)
    assert (abs(h) <= bound).all()


def test_states_within_bounds_stay_there_whatever_comes() -> None:
    bound = fixed_point()
    for h, v in ((bound, 127), (-bound, -127), (bound, -127)):
        states = reference.recur(Z[None, None], np.full((1, 1, 255), v), np.full((1, 255), h, np.int32))
        assert (abs(states) <= bound).all()


def test_gate_to_the_bit() -> None:
    h = np.array([0, 1, -1, 1 << 12, -(1 << 12), 1 << 20, -(1 << 20), STATE_MAX, -STATE_MAX], np.int32)
    found = reference.gate(h[:, None], np.broadcast_to(Z, (len(h), 255)))
    sigmoid = tables.decay().tolist()
    expected = [[clipped(halves_up(x * s, 29), 127) for s in sigmoid] for x in h.tolist()]
    assert found.tolist() == expected
    assert found.dtype == np.int32
    assert {found.min(), found.max()} == {-127, 127}


# Frequencies and stretch


def exact_frequencies(logits: list[int]) -> list[int]:
    exp2 = shared_tables.exp2().tolist()
    top = max(logits)
    return [max(exp2[(top - x) % 256] // 2 ** min((top - x) // 256, 64), 1) for x in logits]


def test_frequencies_to_the_bit() -> None:
    draw = Draw(3)
    huge = (1 << 29) - 1
    rows = [
        *draw.integers(-3000, 3000, (4, 700)).tolist(),
        [0] * 300 + list(range(-400, 0)),
        [huge] + [-huge] * 699,
        [-huge] * 700,
        list(range(-6400, -5700)),
        [0, -255, -256, -257, -24 * 256, -25 * 256, -31 * 256, -32 * 256 - 1, *[-33 * 256] * 692],
    ]
    found = decisions.frequencies(np.array(rows, np.int32))
    assert found.dtype == np.uint32
    assert found.tolist() == [exact_frequencies(row) for row in rows]
    assert (found.max(axis=-1) == 1 << 24).all()
    assert found.min() == 1


def test_frequencies_follow_the_logits() -> None:
    logits = np.arange(-33 * 256, 1, dtype=np.int32)
    assert (np.diff(decisions.frequencies(logits).astype(np.int64)) >= 0).all()
    # A shift of all logits changes nothing.
    assert (decisions.frequencies(logits + 12345) == decisions.frequencies(logits)).all()


def test_sums_at_the_extremes() -> None:
    equal = np.full((2, 65536), -7, np.int32)
    equal[1, 1:] = -(1 << 29) + 1  # one huge
    cum = decisions.cumulate(decisions.frequencies(equal))
    assert cum.dtype == np.uint64
    assert cum.shape == (2, 65537)
    assert cum[:, 0].tolist() == [0, 0]
    assert cum[:, -1].tolist() == [1 << 40, (1 << 24) + 65535]
    assert cum[0].tolist() == list(range(0, (1 << 40) + 1, 1 << 24))


def log2_spans() -> list[int]:
    draw = Draw(11)
    random = [int(x) for b in range(1, 40) for x in draw.integers(1 << b, 2 << b, 20)]
    edges = [x for b in range(1, 41) for x in ((1 << b) - 1, 1 << b, (1 << b) + 1) if x <= 1 << 40]
    return sorted({1, 1023, 1024, 1025, 2047, 2048, 1 << 40, *range(1, 3000), *random, *edges})


def test_log2() -> None:
    """To the bit, monotone, and at most half a table step (46.2) and half a unit from the logarithm."""
    spans = log2_spans()
    found = decisions.log2(np.array(spans, np.uint64)).tolist()
    table = tables.log2().tolist()
    for span, got in zip(spans, found, strict=True):
        bits = span.bit_length() - 1
        assert got == bits * 65536 + table[span * 1024 // 2**bits % 1024]
    assert found == sorted(found)
    with decimal.localcontext() as context:
        context.prec = 30
        ln2 = Decimal(2).ln()
        errors = [abs(got - 65536 * Decimal(x).ln() / ln2) for x, got in zip(spans, found, strict=True)]
    assert max(errors) <= Decimal("46.7")
    assert found[0] == 46  # of 1: a table entry stands for the middle of its span
    assert found[-1] == 40 * 65536 + 46


def test_stretch_is_near_the_logarithm() -> None:
    draw = Draw(12)
    one = np.array([1, 1 << 40, 1023, 1024, 5, 1, *draw.integers(1, 1 << 40, 200)], np.uint64)
    zero = np.array([1, 1 << 40, 1024, 1023, 9, 7, *draw.integers(1, 1 << 22, 200)], np.uint64)
    found = decisions.stretch(one, zero)
    assert found.dtype == np.int32
    with decimal.localcontext() as context:
        context.prec = 30
        for a, b, got in zip(one.tolist(), zero.tolist(), found.tolist(), strict=True):
            exact = 256 * (Decimal(a) / Decimal(b)).ln()
            # Two logarithms' errors are 2 * 46.7 * ln 2 / 2^8 = 0.26, rounding 0.5, ln 2 itself 0.02.
            assert abs(got - max(min(exact, 3071), -3071)) < Decimal("0.78")


def test_stretch_is_clipped() -> None:
    top = np.array([1 << 40], np.uint64)
    assert decisions.stretch(top, np.array([1], np.uint64)).tolist() == [3071]
    assert decisions.stretch(np.array([1], np.uint64), top).tolist() == [-3071]
    below = decisions.stretch(np.array([160_000], np.uint64), np.array([1], np.uint64))[0]
    assert 3066 <= below <= 3069


def test_stretch_is_antisymmetric() -> None:
    """Exactly: a half would need logarithms whose difference is a multiple of 2^22, 64 in their steps."""
    most = int(decisions.log2(np.array([1 << 40], np.uint64))[0])
    difference = np.arange(most + 1)  # all there are
    scaled = difference * 45426
    assert ((scaled + (1 << 23)) >> 24 == -((-scaled + (1 << 23)) >> 24)).all()
    spans = np.array(log2_spans(), np.uint64)[::7]
    a, b = np.meshgrid(spans, spans)
    assert (decisions.stretch(a, b) == -decisions.stretch(b, a)).all()


# The whole network

SHAPES: list[dict[str, Any]] = [
    {},
    {"dim": 16, "n_layer": 1, "recurrent": 16, "mlp": 1},
    {"dim": 53, "n_layer": 3, "recurrent": 29, "mlp": 0},
    {"extreme": True},
]


def run(model: IntegerModel, tokens: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    state = reference.start(model, cut)
    return reference.sequence(model, tokens, state), state.h


@pytest.mark.parametrize("shape", SHAPES)
def test_stepwise_is_the_sequence(shape: dict[str, Any]) -> None:
    model = random_model(5, **shape)
    tokens, cut = random_tokens(6, model, 12, 3), alternate_cuts(3)
    logits, h = run(model, tokens, cut)
    assert logits.dtype == h.dtype == np.int32
    state = reference.start(model, cut)
    for t, row in enumerate(tokens):
        assert (reference.step(model, row, state) == logits[t]).all()
    assert (state.h == h).all()
    # And any split in between.
    state = reference.start(model, cut)
    parts = [reference.sequence(model, part, state) for part in np.split(tokens, [1, 5, 6])]
    assert (np.concatenate(parts) == logits).all()
    assert (state.h == h).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_streams_do_not_see_one_another(shape: dict[str, Any]) -> None:
    model = random_model(7, **shape)
    tokens, cut = random_tokens(8, model, 10, 5), alternate_cuts(5)
    logits, h = run(model, tokens, cut)
    for chosen in ([0], [4], [3, 1], [2, 2, 0, 4]):
        alone, alone_h = run(model, tokens[:, chosen], cut[chosen])
        assert (alone == logits[:, chosen]).all()
        assert (alone_h == h[:, chosen]).all()


def test_start_states_and_copies() -> None:
    model = random_model(9)
    state = reference.start(model, np.array([True, False, True]))
    assert state.h.shape == (2, 3, 33)
    assert state.h.dtype == np.int32
    for b, kind in enumerate((1, 0, 1)):
        assert (state.h[:, b] == model.start[kind]).all()
    copy, before = state.copy(), state.h.copy()
    reference.step(model, np.array([model.config.mid, model.config.bos, 5]), state)
    assert (copy.h == before).all()
    assert (copy.h != state.h).any()
    assert (model.start == random_model(9).start).all()


def exact_logits(model: IntegerModel, tokens: list[int], cut: bool) -> list[list[int]]:
    """One stream through the whole network, with Python's integers alone."""

    def product(u: list[int], linear: Linear) -> list[int]:
        return exact_product(np.array([u]), linear)[0]

    r = model.config.recurrent
    states = model.start[int(cut)].tolist()
    logits = []
    for token in tokens:
        multiplier = int(model.embed.multiplier[token])
        x = [halves_up(w * multiplier, model.embed.shift) for w in model.embed.weight[token].tolist()]
        for i, layer in enumerate(model.layers):
            p = [clipped(y, 127) for y in product(exact_norm(x), layer.into)]
            z, v, o = p[:r], p[r : 2 * r], p[2 * r :]
            states[i] = [exact_recurrence([a], [b], h)[0] for a, b, h in zip(z, v, states[i], strict=True)]
            sigmoid = [int(tables.decay()[a + 127]) for a in o]
            gated = [clipped(halves_up(h * s, 29), 127) for h, s in zip(states[i], sigmoid, strict=True)]
            x = [clipped(a + b, STREAM_MAX) for a, b in zip(x, product(gated, layer.out), strict=True)]
            if layer.up is not None and layer.down is not None:
                m = [max(0, min(127, y)) for y in product(exact_norm(x), layer.up)]
                y = product([halves_up(a * a, 7) for a in m], layer.down)
                x = [clipped(a + b, STREAM_MAX) for a, b in zip(x, y, strict=True)]
        logits.append(product(exact_norm(x), model.head))
    return logits


@pytest.mark.parametrize("shape", SHAPES)
def test_network_to_the_bit(shape: dict[str, Any]) -> None:
    model = random_model(10, **shape)
    tokens, cut = random_tokens(11, model, 5, 2), alternate_cuts(2)
    logits, _ = run(model, tokens, cut)
    for b in range(2):
        assert logits[:, b].tolist() == exact_logits(model, tokens[:, b].tolist(), bool(cut[b]))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_hashes(name: str) -> None:
    assert reference_hashes(name) == golden_expected(name)


# Validation and identity


def changed(model: IntegerModel, tensor: str, **fields: Any) -> IntegerModel:
    """The model with fields of one tensor replaced: "embed", "head" or a layer's attribute (of layer 1)."""
    if tensor in ("embed", "head"):
        return replace(model, **{tensor: replace(getattr(model, tensor), **fields)})
    layer = replace(model.layers[1], **{tensor: replace(getattr(model.layers[1], tensor), **fields)})
    return replace(model, layers=(model.layers[0], layer))


NAMES = {"embed": "embed", "head": "head", "into": "layers.1.in", "out": "layers.1.out"}
NAMES |= {"up": "layers.1.up", "down": "layers.1.down"}


def with_first(values: np.ndarray, first: int) -> np.ndarray:
    copy = values.copy()
    copy.flat[0] = first
    return copy


@pytest.mark.parametrize("tensor", NAMES)
def test_each_bound_is_checked(tensor: str) -> None:
    model = random_model(12)
    good: Linear = model.tensors()[NAMES[tensor]]
    low = 0 if tensor == "embed" else 12
    bad: list[tuple[dict[str, Any], str]] = [
        ({"weight": good.weight[:-1]}, "weights are int8 of shape"),
        ({"weight": good.weight[:, 1:]}, "weights are int8 of shape"),
        ({"weight": good.weight[None]}, "weights are int8 of shape"),
        ({"weight": good.weight.astype(np.int16)}, "weights are int16"),
        ({"weight": with_first(good.weight, 64)}, "a weight is 64, at most 63"),
        ({"weight": with_first(good.weight, -64)}, "a weight is 64, at most 63"),
        ({"weight": with_first(good.weight, -128)}, "a weight is 128, at most 63"),
        ({"multiplier": good.multiplier.astype(np.int32)}, "multipliers are int32"),
        ({"multiplier": good.multiplier[:-1]}, "multipliers are uint16 of shape"),
        ({"shift": low - 1}, f"shift {low - 1}, expected {low} to 40"),
        ({"shift": 41}, f"shift 41, expected {low} to 40"),
    ]
    if good.bias is None:
        bad.append(({"bias": np.zeros(len(good.weight), np.int32)}, "a bias, expected none"))
    else:
        bad += [
            ({"bias": None}, "no bias, expected one"),
            ({"bias": good.bias.astype(np.int64)}, "biases are int64"),
            ({"bias": good.bias[1:]}, "biases are int32 of shape"),
            ({"bias": with_first(good.bias, (1 << 24) + 1)}, "a bias is 16777217, at most 16777216"),
            ({"bias": with_first(good.bias, -(1 << 24) - 1)}, "a bias is 16777217, at most 16777216"),
            ({"bias": with_first(good.bias, -(1 << 31))}, "a bias is 2147483648, at most 16777216"),
        ]
    for fields, message in bad:
        with pytest.raises(Corrupt) as caught:
            changed(model, tensor, **fields)
        assert str(caught.value).startswith(f"{NAMES[tensor]}: {message}")
    # What lies on a bound is accepted.
    for fields in ({"weight": with_first(good.weight, -63)}, {"shift": low}, {"shift": 40}):
        changed(model, tensor, **fields)
    if good.bias is not None:
        changed(model, tensor, bias=with_first(good.bias, -(1 << 24)))


def test_missing_and_surplus_tensors_are_refused() -> None:
    model = random_model(13)
    with pytest.raises(Corrupt, match=r"tensors embed, .*head; expected embed, "):
        replace(model, layers=model.layers[:1])
    with pytest.raises(Corrupt, match=r"expected embed, "):
        replace(model, layers=(*model.layers, model.layers[0]))
    with pytest.raises(Corrupt, match=r"expected embed, .*layers\.0\.down"):
        replace(model, layers=(replace(model.layers[0], down=None), model.layers[1]))
    with pytest.raises(Corrupt, match=r"layers\.0\.up"):
        replace(model, config=replace(model.config, mlp=0))


def test_start_states_are_checked() -> None:
    model = random_model(14)
    for start, message in (
        (model.start[0], r"start states.* int32 of shape \(2, 33\), expected .*\(2, 2, 33\)"),
        (model.start.astype(np.int64), "start states.* int64"),
        (with_first(model.start, STATE_MAX + 1), "a start state is 67108865, at most 67108864"),
        (with_first(model.start, -STATE_MAX - 1), "a start state is 67108865, at most 67108864"),
        (with_first(model.start, -INT32), "a start state is 2147483648, at most 67108864"),
    ):
        with pytest.raises(Corrupt, match=message):
            replace(model, start=start)
    replace(model, start=with_first(model.start, -STATE_MAX))


def test_vocabulary_must_fit() -> None:
    model = random_model(15)
    with pytest.raises(Corrupt, match="model of 300 tokens with a vocabulary of 301"):
        replace(model, vocabulary=random_vocabulary(Draw(1), 301))


def test_identity_is_the_content() -> None:
    model = random_model(17)
    assert random_model(17).sha256 == model.sha256
    assert model.model_id == model.sha256[:16]
    assert replace(model, card={"name": "other"}).sha256 == model.sha256

    others = [
        replace(model, vocabulary=random_vocabulary(Draw(2), 300)),
        replace(model, start=with_first(model.start, int(model.start.flat[0]) + 1)),
        replace(model, mixer=model.mixer + b"\0"),
        replace(model, mixer=b""),
        # The same numbers in other layers.
        replace(model, layers=model.layers[::-1]),
    ]
    for tensor, name in NAMES.items():
        linear = model.tensors()[name]
        others += [
            changed(model, tensor, weight=with_first(linear.weight, int(linear.weight.flat[0]) ^ 1)),
            changed(model, tensor, multiplier=with_first(linear.multiplier, 7)),
            changed(model, tensor, shift=linear.shift + 1),
        ]
        if linear.bias is not None:
            others.append(changed(model, tensor, bias=with_first(linear.bias, 7)))
    ids = {model.model_id, *(other.model_id for other in others)}
    assert len(ids) == len(others) + 1
    # Nor does it matter how the arrays lie in memory.
    bias = np.repeat(model.head.bias, 2)[::2] if model.head.bias is not None else None
    fortran = changed(model, "head", weight=np.asfortranarray(model.head.weight), bias=bias)
    assert replace(fortran, start=np.asfortranarray(model.start)).sha256 == model.sha256


def test_identity_covers_every_field() -> None:
    """A field that is added to the model must enter its identity, or be said not to."""
    fields = {f.name for f in dataclasses.fields(IntegerModel)}
    assert fields == {"config", "vocabulary", "embed", "layers", "head", "start", "mixer", "card"}
    assert {f.name for f in dataclasses.fields(Linear)} == {"weight", "bias", "multiplier", "shift"}


def test_known_answer() -> None:
    model = random_model(18)
    tokens = reference.known_tokens(model)
    assert tokens.shape == (8, 2)
    assert tokens[0].tolist() == [model.config.bos, model.config.mid]
    assert len({*tokens.flat}) > 12
    assert tokens.min() >= 0
    logits, h = run(model, tokens, np.array([False, True]))
    freq = decisions.frequencies(logits)
    known = reference.compute_known_answer(model)
    assert known == reference.known_answer(freq, reference.State(h))
    other = reference.State(with_first(h, int(h.flat[0]) + 1))
    assert known != reference.known_answer(freq, other)
    assert known != reference.known_answer(with_first(freq, int(freq.flat[0]) + 1), reference.State(h))
    assert known != reference.compute_known_answer(random_model(19))
