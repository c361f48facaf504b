"""The definition of arithmetic 2: stepwise and parallel, batches, windows, bounds; what it approximates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformer_models import SHAPES, random_model, random_tokens

from lmcodec.errors import ConfigError, Corrupt
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.model import LARGEST, SCALE_MIN, Linear, TransformerModel
from lmcodec.lm.transformer.shape import MAX_POSITION, TransformerConfig

shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
def test_steps_give_what_sequences_give(shape: str) -> None:
    """Past the window's end, and in whatever pieces."""
    model = random_model(**SHAPES[shape])
    tokens = random_tokens(model, 60, 3)
    whole = reference.sequence(model, tokens, reference.start(model, 3))
    state = reference.start(model, 3)
    steps = np.stack([reference.step(model, row, state) for row in tokens])
    assert (steps == whole).all()
    state = reference.start(model, 3)
    pieces = [reference.sequence(model, part, state) for part in np.split(tokens, (1, 24, 25))]
    assert (np.concatenate(pieces) == whole).all()


@shapes
def test_streams_do_not_see_one_another(shape: str) -> None:
    model = random_model(**SHAPES[shape])
    tokens = random_tokens(model, 40, 4)
    whole = reference.sequence(model, tokens, reference.start(model, 4))
    for b in range(4):
        alone = reference.sequence(model, tokens[:, b : b + 1], reference.start(model, 1))
        assert (alone[:, 0] == whole[:, b]).all()


def test_a_stream_begins_anew_among_others() -> None:
    model = random_model()
    tokens = random_tokens(model, 40, 2)
    state = reference.start(model, 2)
    reference.sequence(model, tokens, state)
    reference.begin(state, 1)
    again = reference.sequence(model, tokens, state)
    assert (again[:, 1] == reference.sequence(model, tokens, reference.start(model, 2))[:, 1]).all()
    assert (again[:, 0] != reference.sequence(model, tokens, reference.start(model, 2))[:, 0]).any()


def test_a_window_and_the_sinks_are_all_that_is_seen() -> None:
    """With one layer the tokens before them change nothing; those in them do."""
    model = random_model(n_layer=1, window=16, sinks=2)
    tokens = random_tokens(model, 50, 1)
    last = reference.sequence(model, tokens, reference.start(model, 1))[-1]

    def changed(at: int) -> bool:
        other = tokens.copy()
        other[at] = (other[at] + 1) % 300
        return bool((reference.sequence(model, other, reference.start(model, 1))[-1] != last).any())

    assert [changed(at) for at in (0, 1)] == [True, True]
    assert not any(changed(at) for at in range(2, 34))
    assert all(changed(at) for at in (34, 40, 49))


def exact_logits(model: TransformerModel, tokens: np.ndarray) -> np.ndarray:
    """What the integers approximate: float64, no quantised activation, one stream within the window."""
    c = model.config

    def rotated(x: np.ndarray) -> np.ndarray:
        width = x.shape[-1]
        n = width & -width
        hadamard = np.array([[1.0]])
        while len(hadamard) < n:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        return (x.reshape(*x.shape[:-1], -1, n) @ hadamard).reshape(x.shape)

    def product(x: np.ndarray, linear: Linear) -> np.ndarray:
        y = rotated(x) @ (linear.weight * linear.scale.astype(float)[:, None]).T
        return y if linear.bias is None else y + linear.bias

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c.norm_eps) * weight

    def turn(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        angle = at[:, None, None] * np.arctan2(model.rotary[1], model.rotary[0])
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate(
            (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), axis=-1
        )

    n = len(tokens)
    at = np.arange(n)
    x = rotated(model.embed.weight[tokens] * model.embed.scale.astype(float)[tokens][:, None])
    for i, layer in enumerate(model.layers):
        assert layer.attention_norm is not None
        assert layer.mlp_norm is not None
        y = product(norm(x, layer.attention_norm), layer.qkv).reshape(n, -1, c.head_dim)
        q, k, v = np.split(y, (c.n_head, c.n_head + c.n_kv_head), axis=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        if i not in c.no_rotary:
            q, k = turn(q, at), turn(k, at)
        k, v = (np.repeat(a, c.n_head // c.n_kv_head, axis=1) for a in (k, v))
        score = np.einsum("the,nhe->htn", q, k) * c.score_scale / 256
        score = np.where(at[None, :, None] >= at, score, -np.inf)
        p = np.exp2(score - score.max(axis=-1, keepdims=True))
        mean = np.einsum("htn,nhe->the", p / p.sum(axis=-1, keepdims=True), v).reshape(n, -1)
        x = x + product(mean, layer.out)
        gate, up = np.split(product(norm(x, layer.mlp_norm), layer.gate_up), 2, axis=-1)
        x = x + product(gate / (1 + np.exp(-gate)) * up, layer.down)
    return product(norm(x, model.norm), model.head) * c.logit_scale


@pytest.mark.parametrize("shape", ["plain", "all options", "no sinks", "wide MLP"])
def test_the_integers_are_near_what_they_stand_for(shape: str) -> None:
    """Mean divergence of the next token's distribution: activations, keys and values have 8 bits."""
    model = random_model(**(SHAPES[shape] | {"window": 64}))
    tokens = random_tokens(model, 48, 1)
    got = reference.sequence(model, tokens, reference.start(model, 1))[:, 0] / 256
    expected = exact_logits(model, tokens[:, 0]) / 256

    def log_p(logits: np.ndarray) -> np.ndarray:
        top = logits.max(axis=-1, keepdims=True)
        return logits - top - np.log2(np.exp2(logits - top).sum(axis=-1, keepdims=True))

    p, q = log_p(expected), log_p(got)
    assert expected.std() > 0.5
    assert (np.exp2(p) * (p - q)).sum(axis=-1).mean() < 0.01


def test_silu_is_the_function() -> None:
    x = np.concatenate((np.linspace(-90, 90, 20_001), [0, -0.0, 2.0**-60, -(2.0**40), 2.0**40]))
    got = reference.silu(x.astype(np.float32)).astype(float)
    x = x.astype(np.float32).astype(float)
    expected = x / (1 + np.exp(-np.clip(x, -80, None)))
    # The power's argument, up to 116, has 24 bits.
    assert (np.abs(got - expected) <= 1e-5 * np.abs(expected) + 1e-35).all()
    near = np.abs(x) < 4
    assert (np.abs(got - expected)[near] <= 1e-6 * np.abs(expected[near])).all()


def test_extremes_stay_finite() -> None:
    """Scales and vectors at their bounds, zeros: no NaN, no infinity, no warning of NumPy's."""
    model = random_model(n_layer=1)
    layer = model.layers[0]
    tokens = random_tokens(model, 20, 2)

    def scaled(linear: Linear, scale: float, weight: int | None = None) -> Linear:
        w = linear.weight if weight is None else np.full_like(linear.weight, weight)
        return Linear(w, np.full_like(linear.scale, scale), linear.bias)

    for scale in (float(SCALE_MIN), float(LARGEST)):
        for weight in (None, 63, 0):
            for gain in (float(LARGEST), 2.0**-60, 0.0):
                vector = np.full_like(model.norm, gain)
                extreme = replace(
                    layer,
                    attention_norm=vector,
                    mlp_norm=vector,
                    qkv=scaled(layer.qkv, scale, weight),
                    out=scaled(layer.out, scale, weight),
                    gate_up=scaled(layer.gate_up, scale, weight),
                    down=scaled(layer.down, scale, weight),
                )
                with np.errstate(divide="raise", over="raise", invalid="raise"):
                    logits = reference.sequence(
                        replace(
                            model,
                            embed=scaled(model.embed, scale, weight),
                            layers=(extreme,),
                            norm=vector,
                            head=scaled(model.head, scale, weight),
                        ),
                        tokens,
                        reference.start(model, 2),
                    )
                assert np.abs(logits).max() <= reference.LOGIT_MAX


def test_positions_end() -> None:
    model = random_model()
    state = reference.start(model, 1)
    state.n[:] = MAX_POSITION - 1
    reference.step(model, np.array([0]), state)
    with pytest.raises(ValueError, match="4194304"):
        reference.step(model, np.array([0]), state)


def test_angles_are_those_of_the_positions() -> None:
    model = random_model()
    at = np.array([0, 1, 1023, 1024, 1025, 123_456, MAX_POSITION - 1])
    cosine, sine = reference.angles(model, at)
    angle = at[:, None] * np.arctan2(model.rotary[1], model.rotary[0])
    assert np.abs(cosine - np.cos(angle)).max() < 1e-6
    assert np.abs(sine - np.sin(angle)).max() < 1e-6


def test_the_identity_is_of_everything_but_the_card() -> None:
    model = random_model()
    assert replace(model, card={"a": 1}).model_id == model.model_id
    layer = replace(model.layers[1], mlp_norm=model.layers[1].mlp_norm * np.float32(2))
    others = [
        replace(model, norm=model.norm * np.float32(2)),
        replace(model, layers=(model.layers[0], layer)),
        replace(model, mixer=b"x"),
        replace(model, config=replace(model.config, window=17)),
        replace(model, rotary=model.rotary[:, ::-1].copy()),
    ]
    assert len({other.model_id for other in [model, *others]}) == 6


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("vocab_size", 255),
        ("dim", 65_537),
        ("dim", True),
        ("head_dim", 3),
        ("n_kv_head", 3),
        ("window", 15),
        ("sinks", 17),
        ("norm_eps", 0.1),
        ("norm_eps", 0.0),
        ("score_scale", float("nan")),
        ("tied", 1),
        ("no_rotary", (1, 1)),
        ("no_rotary", (2,)),
        ("no_rotary", [0]),
    ],
)
def test_a_shape_out_of_bounds_is_refused(member: str, value: object) -> None:
    shape = {"vocab_size": 256, "dim": 8, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "head_dim": 2, "mlp": 4}
    with pytest.raises(ConfigError, match=member.split("_", maxsplit=1)[0]):
        TransformerConfig(**(shape | {member: value}))  # type: ignore[arg-type]


def test_a_value_out_of_bounds_is_refused() -> None:
    model = random_model()
    embed = model.embed

    def with_scale(value: float) -> Linear:
        scale = embed.scale.copy()
        scale[7] = value
        return Linear(embed.weight, scale)

    for value in (np.nan, np.inf, 0.0, -1.0, 2.0**-41, 2.0**41):
        with pytest.raises(Corrupt, match="embed: a scale"):
            replace(model, embed=with_scale(value))
    weight = embed.weight.copy()
    weight[3, 3] = -64
    with pytest.raises(Corrupt, match="embed: a weight is 64"):
        replace(model, embed=Linear(weight, embed.scale))
    for value in (np.nan, np.inf, 2.0**-61, 2.0**41):
        norm = model.norm.copy()
        norm[0] = value
        with pytest.raises(Corrupt, match="norm: a value"):
            replace(model, norm=norm)
    with pytest.raises(Corrupt, match="rotary"):
        replace(model, rotary=model.rotary * 1.001)
