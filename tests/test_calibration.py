"""Weights rounded with regard to what goes into their products: the kernel against the definitions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from test_importing import random_tensors, write_folder
from transformer_models import SHAPES, random_model, random_tokens

from lmcodec import _kernel
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.importing import calibrate, feedback, quantise
from lmcodec.lm.transformer.importing.build import import_model
from lmcodec.lm.transformer.importing.source import Source, open_source
from lmcodec.lm.transformer.model import SCALE_MIN, WEIGHT_MAX, Linear, TransformerModel

f32 = np.float32
WIDTHS = (1, 2, 3, 4, 5, 17, 47, 48, 49, 100, 150)  # about the kernel's tiles of 4, 8 and 48


def correlated(n: int, k: int, seed: int = 0) -> np.ndarray:
    """(N, K) int8 codes, half of whose columns are like the other half."""
    rng = np.random.default_rng((n, k, seed))
    codes = rng.integers(-63, 64, (n, k))
    codes[:, : k // 2] += codes[:, k - k // 2 :]
    return codes.astype(np.int8)


def cost(error: np.ndarray, products: np.ndarray) -> float:
    return float((error @ products.astype(np.float64) * error).sum())


# --- the kernel and the definition ---


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("k", WIDTHS)
def test_the_kernel_factors_and_rounds_as_defined(k: int, portable: bool) -> None:
    products = calibrate.gram(correlated(200, k))
    factor, defined = feedback.factor(products, portable), feedback.factor_by_definition(products)
    behind = np.triu_indices(k, 1)
    assert (factor[behind] == defined[behind]).all()
    rng = np.random.default_rng(k)
    for n in (1, 15, 16, 37):
        x = (rng.standard_normal((n, k)) * 25).clip(-WEIGHT_MAX, WEIGHT_MAX).astype(f32)
        assert (feedback.rounded(x, factor, portable) == feedback.rounded_by_definition(x, defined)).all()


@pytest.mark.parametrize("codes", [np.zeros((40, 9), np.int8), np.full((40, 9), -127, np.int8)])
def test_inputs_without_rank_are_factored_as_defined(codes: np.ndarray) -> None:
    products = calibrate.gram(codes)
    factor, defined = feedback.factor(products), feedback.factor_by_definition(products)
    behind = np.triu_indices(9, 1)
    assert np.isfinite(factor).all()
    assert (factor[behind] == defined[behind]).all()


def test_without_inputs_each_weight_is_rounded_by_itself() -> None:
    factor = feedback.factor(np.zeros((33, 33), np.int64))
    x = np.random.default_rng(0).uniform(-WEIGHT_MAX, WEIGHT_MAX, (20, 33)).astype(f32)
    x[0, :4] = 0.5, 1.5, -0.5, -2.5  # ties go to the even one
    assert (feedback.rounded(x, factor) == np.rint(x)).all()


def test_feedback_costs_less_than_rounding_each_weight_by_itself() -> None:
    products = calibrate.gram(correlated(500, 96))
    x = (np.random.default_rng(1).standard_normal((64, 96)) * 20).clip(-63, 63).astype(f32)
    alone = cost(x - np.rint(x), products)
    assert cost(x - feedback.rounded(x, feedback.factor(products)), products) < 0.8 * alone


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        _kernel.factor_gram(np.zeros((3, 4)), 1.0)
    for least in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="pivot"):
            _kernel.factor_gram(np.zeros((3, 3)), least)
    with pytest.raises(ValueError, match="shapes"):
        _kernel.round_with_feedback(np.zeros((2, 3), f32), np.zeros((4, 4), f32), np.zeros((2, 3), np.int8))


def test_sums_of_products_are_exact_over_many_rows() -> None:
    codes = np.full((3000, 3), 127, np.int8)
    codes[:, 1] = -127
    wide = codes.astype(np.int64)
    assert (calibrate.gram(codes) == wide.T @ wide).all()


# --- a layer by itself ---


@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_alone_takes_what_it_takes_in_its_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More positions than the window, and than pass at once (256 rows); learned ones: all there are."""
    model = random_model(**SHAPES[name])
    tokens = random_tokens(model, model.config.n_position or 60, 5)
    x = calibrate.embedded(model, tokens)
    found = []
    for i, layer in enumerate(model.layers):
        seen = calibrate.run_layer(model, i, layer, x)
        found += seen[:-1]
    found.append(seen[-1])
    weights = [linear.weight for linear in model.linears().values()]
    expected = []
    sums = reference.sums

    def spy(u: np.ndarray, w: np.ndarray) -> np.ndarray:
        if any(w is weight for weight in weights):
            expected.append(u.reshape(-1, u.shape[-1]))
        return sums(u, w)

    monkeypatch.setattr(reference, "sums", spy)
    reference.sequence(model, tokens, reference.start(model, 5))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()


def test_a_pass_of_another_shape_is_refused() -> None:
    model = random_model()
    c = model.config
    from lmcodec.lm.transformer.native import NativeTransformer

    kernel = NativeTransformer(model).session(2).kernel
    widths = [*(c.dim, c.n_head * c.head_dim, c.dim, c.mlp) * c.n_layer, c.dim]

    def seen(rows: int, widths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.empty((rows, k), np.int8), np.empty(rows, f32)) for k in widths]

    x = np.zeros((3, 2, c.dim), f32)
    kernel.pass_layers(x, seen(6, widths))
    for wrong in (seen(5, widths), seen(6, widths[:-1]), seen(6, [*widths[:-1], c.dim + 1])):
        with pytest.raises(ValueError):
            kernel.pass_layers(x, wrong)
    with pytest.raises(ValueError):
        kernel.pass_layers(np.zeros((3, 1, c.dim), f32), seen(3, widths))
    kernel.step(np.zeros(2, np.uint32))  # and the session is as usable as before


# --- the whole ---


def test_sampled_tokens_are_those_of_the_definition() -> None:
    model = random_model()
    tokens = calibrate.sample(model, 6, 3)
    state = reference.start(model, 3)
    from lmcodec.lm.decisions import frequencies

    assert tokens[0].tolist() == [300, 301, 300]
    for t in range(1, 6):
        freq = frequencies(reference.step(model, tokens[t - 1], state))
        for b in range(3):
            digest = hashlib.sha256(f"lmcodec calibration {t} {b}".encode()).digest()
            left = int.from_bytes(digest[:8], "little") % int(freq[b].sum(dtype=np.uint64))
            token = 0
            while left >= freq[b, token]:
                left -= int(freq[b, token])
                token += 1
            assert tokens[t, b] == token


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    tensors = random_tensors()
    if not request.param:
        rng = np.random.default_rng(5)
        tensors["lm_head.weight"] = rng.standard_normal(tensors["model.embed_tokens.weight"].shape).astype(
            f32
        )
    folder = tmp_path_factory.mktemp("calibration") / "tiny"
    return write_folder(folder, tensors, {"tie_word_embeddings": request.param}), request.param


def test_an_import_is_what_the_definition_makes_and_costs_less(both: tuple[Path, bool]) -> None:
    folder, tied = both
    source = open_source(str(folder))
    plain = import_model(source).model
    found = import_model(source, calibrated=True).model
    again = import_model(open_source(str(folder)), calibrated=True).model
    assert found.model_id == again.model_id != plain.model_id
    tokens = calibrate.sample(plain)
    assert tokens.shape == (calibrate.POSITIONS, calibrate.STREAMS)
    x = reference.embed(plain.embed, tokens)
    for i, (old, new) in enumerate(zip(plain.layers, found.layers, strict=True)):
        seen = dict(
            zip(
                ("qkv", "out", "gate_up", "down"),
                calibrate.run_layer(plain, i, old, x.copy())[:4],
                strict=True,
            )
        )
        for name, codes in seen.items():
            check(getattr(old, name), getattr(new, name), source_rows(source, i, name), codes)
        seen_by_head = calibrate.run_layer(plain, i, new, x)[-1]
    assert np.array_equal(found.head.bias, plain.head.bias)  # type: ignore[arg-type]
    assert (found.head.weight != plain.head.weight).any()
    assert (found.head.scale == plain.head.scale).all()
    assert (found.embed.weight == plain.embed.weight).all() != tied
    if tied:
        assert (found.head.weight == found.embed.weight[: found.config.vocab_size]).all()
    assert plain.head.bias is not None
    missing = plain.head.bias < 0  # bytes without a token stay rows of zeros
    assert missing.any()
    assert not found.head.weight[missing].any()
    assert seen_by_head.shape == (tokens.size, found.config.dim)


def source_rows(source: Source, i: int, name: str) -> np.ndarray:
    names = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }[name]
    return np.concatenate([source.read(f"model.layers.{i}.{own}.weight", slice(None)) for own in names])


def check(old: Linear, new: Linear, rows: np.ndarray, codes: np.ndarray) -> None:
    products = calibrate.gram(codes)
    x = quantise.in_units(rows, old.scale)
    assert (old.weight == np.rint(x)).all()
    assert (new.scale == old.scale).all()
    assert (new.weight == feedback.rounded_by_definition(x, feedback.factor_by_definition(products))).all()
    assert cost(x - new.weight, products) < cost(x - old.weight, products)


def test_progress_counts_matrices_that_are_rounded_twice(both: tuple[Path, bool]) -> None:
    folder, tied = both
    seen: list[tuple[int, int]] = []
    found = import_model(
        open_source(str(folder)), calibrated=True, progress=lambda done, total: seen.append((done, total))
    )
    n_layer, ends = found.model.config.n_layer, 1 if tied else 2
    total = 4 * n_layer + ends + 4 * n_layer + 1
    assert [done for done, _ in seen] == list(range(1, total + 1))
    assert {total for _, total in seen} == {total}


def test_the_card_says_what_was_done(both: tuple[Path, bool]) -> None:
    source = open_source(str(both[0]))
    assert (
        import_model(source, calibrated=True).model.card["options"]["calibration"]
        == "4096 tokens drawn from the model"
    )
    assert "calibration" not in import_model(source).model.card["options"]


def test_scales_of_rows_of_zeros_are_the_least(both: tuple[Path, bool]) -> None:
    found: TransformerModel = import_model(open_source(str(both[0])), calibrated=True).model
    assert found.head.bias is not None
    assert (found.head.scale[found.head.bias < 0] == SCALE_MIN).all()
