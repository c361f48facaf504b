"""Families beyond Llama's: what their parts compute, that a wrong reading shows, frames of each of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_importing import FAMILIES, N_ROW, logits_of, make, mean_kl, tokenizer_json
from test_transformer_kernel import ISAS, check_same_bits
from transformer_models import SHAPES, random_model, random_tokens

import lmcodec
from lmcodec.errors import ConfigError, LmcodecError, Unsupported
from lmcodec.lm.transformer import file, reference
from lmcodec.lm.transformer.importing import families
from lmcodec.lm.transformer.importing.build import Imported, import_model, sorted_tokens
from lmcodec.lm.transformer.importing.source import open_source
from lmcodec.lm.transformer.model import Linear, TransformerModel

f32 = np.float32
OWN = ("gemma2", "gemma3", "olmo2", "phi", "neox", "gpt2", "positions")  # of SHAPES
TEXT = "the end and in a tree, an er\r\n\0 the é ".encode() * 20


# --- functions ---


def wide() -> np.ndarray:
    sizes = 2.0 ** np.arange(-60, 41)
    return np.concatenate((np.linspace(-12, 12, 40_001), sizes, -sizes, [0.0, -0.0])).astype(f32)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_activations_are_the_functions(name: str, function: Callable[[float], float]) -> None:
    x = wide()
    with np.errstate(all="raise", under="ignore"):
        got = reference.ACTIVATIONS[name](x)
    expected = np.array([function(v) for v in x.tolist()])
    assert np.isfinite(got).all()
    assert (np.abs(got - expected) <= 3e-7 * np.maximum(1, np.abs(expected))).all()


def test_a_cap_is_a_tangent() -> None:
    x = wide()
    for cap in (1.0, 30.0, 18_466.0, 2.0**22):
        with np.errstate(all="raise", under="ignore"):
            got = reference.capped(x, f32(cap))
        assert np.abs(got).max() <= cap
        assert (np.abs(got - cap * np.tanh(x.astype(float) / cap)) <= 4e-7 * cap).all()


@pytest.mark.parametrize("n", [1, 2, 3, 17, 48, 600])
def test_layer_norm_is_the_function(n: int) -> None:
    rng = np.random.default_rng(n)
    x, weight, bias = (rng.normal(size=(5, n)).astype(f32) + f32(3), *rng.normal(size=(2, n)).astype(f32))
    got = reference.layer_normalise(x, weight, bias, f32(1e-5))
    d = x - x.astype(float).mean(axis=1, keepdims=True)
    expected = d / np.sqrt((d * d).mean(axis=1, keepdims=True) + 1e-5) * weight + bias
    assert np.abs(got - expected).max() < 1e-5


# --- bounds ---


def extreme(model: TransformerModel, scale: float, size: float | None) -> TransformerModel:
    """Every scale, and every vector and bias, at a bound."""

    def linear(matrix: Linear) -> Linear:
        bias = matrix.bias
        if bias is not None and size is not None:
            bias = np.copysign(f32(size), bias).astype(f32)
        return Linear(matrix.weight, np.full_like(matrix.scale, scale), bias)

    def vector(values: np.ndarray | None) -> np.ndarray | None:
        if values is None or size is None:
            return values
        return np.copysign(f32(size), values).astype(f32)

    def layer(own: Any) -> Any:
        parts = {name: getattr(own, name) for name in own.__dataclass_fields__}
        changed = {
            name: linear(part) if isinstance(part, Linear) else vector(part) for name, part in parts.items()
        }
        return replace(own, **changed)

    norm = vector(model.norm)
    assert norm is not None
    embed, head = linear(model.embed), linear(model.head)
    return replace(
        model,
        embed=embed,
        head=head,
        layers=tuple(map(layer, model.layers)),
        norm=norm,
        norm_bias=vector(model.norm_bias),
        position=None if model.position is None else linear(model.position),
    )


@pytest.mark.parametrize("size", [None, 0.0, 2.0**-60, 2.0**40])
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-20, 2.0**40])
@pytest.mark.parametrize("shape", OWN)
def test_extremes(shape: str, scale: float, size: float | None) -> None:
    """No NaN, no infinity, and the same integers from every executor."""
    model = extreme(random_model(**SHAPES[shape]), scale, size)
    tokens = random_tokens(model, 20, 2)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        reference.sequence(model, tokens, reference.start(model, 2))
    for isa in ISAS:
        check_same_bits(model, isa, 20, 2)


def test_a_byte_that_is_no_token_has_the_least_logit_in_spite_of_a_cap() -> None:
    model = random_model(**SHAPES["gemma2"])
    bias = model.head.bias
    assert bias is not None
    bias = bias.copy()
    bias[[0, 299]] = -(2.0**40)
    model = replace(model, head=replace(model.head, bias=bias))
    for isa in ISAS:
        logits = check_same_bits(model, isa, 20, 2)
        assert (logits[..., [0, 299]] == -reference.LOGIT_MAX).all()
        assert (np.abs(logits[..., 1:299]) <= 700).all()


# --- learned positions ---


def test_a_stream_restarts_with_its_last_half() -> None:
    """After P tokens the logits are those of a stream that begins with the last P / 2."""
    model = random_model(**(SHAPES["gpt2"] | {"dim": 48}))
    p, half = model.config.n_position, model.config.half
    tokens = random_tokens(model, p + 2 * half + 3, 1)
    logits = reference.sequence(model, tokens, reference.start(model, 1))
    for restart in (p, p + half, p + 2 * half):
        again = reference.sequence(model, tokens[restart - half : restart + half], reference.start(model, 1))
        n = len(tokens[restart : restart + half])
        assert (logits[restart : restart + n] == again[half : half + n]).all()
    # Before the first one nothing is forgotten, after it the first tokens are.
    other = tokens.copy()
    other[1] = (other[1] + 1) % 300
    changed = (reference.sequence(model, other, reference.start(model, 1)) != logits).any(axis=(1, 2))
    assert changed[1:p].all()
    assert not changed[p:].any()


@pytest.mark.parametrize("isa", ISAS)
def test_streams_restart_at_other_times(isa: str) -> None:
    """Streams that begin anew among others, in steps and in runs of any length."""
    from lmcodec.lm.transformer.native import NativeTransformer

    model = random_model(**SHAPES["positions"])
    for b in (1, 3, 100):
        tokens = random_tokens(model, 90, b)
        state, session = reference.start(model, b), NativeTransformer(model, isa).session(b)
        at = 0
        for n in (5, 1, 17, 1, 1, 40, 7, 18) if b < 100 else (20, 3):
            expected = reference.sequence(model, tokens[at : at + n], state)
            if n == 1:
                session.step(tokens[at])
                assert (session.logits() == expected[0]).all()
            else:
                assert (session.sequence(tokens[at : at + n]) == expected).all()
            at += n
            reference.begin(state, at % b)
            session.begin(at % b)


def test_torch_restarts_at_other_times() -> None:
    torch = pytest.importorskip("torch")
    from lmcodec.lm.transformer.torch_backend import TorchTransformer

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = random_model(**SHAPES["gpt2"])
    tokens = random_tokens(model, 90, 3)
    network = TorchTransformer(model)
    state, expected_state = network.start(3), reference.start(model, 3)
    at = 0
    for n in (5, 1, 17, 1, 40, 26):
        expected = reference.sequence(model, tokens[at : at + n], expected_state)
        assert (network.sequence(tokens[at : at + n], state).numpy() == expected).all()
        at += n
        network.begin(state, at % 3)
        reference.begin(expected_state, at % 3)
    torch.set_num_threads(before)


def test_a_restart_takes_more_rows_than_one_pass() -> None:
    from lmcodec.lm.transformer.native import NativeTransformer

    model = random_model(
        **{**SHAPES["gpt2"], "n_position": 620, "window": 620, "n_layer": 1, "no_rotary": (0,)}
    )
    tokens = random_tokens(model, 1000, 1)
    expected = reference.sequence(model, tokens, reference.start(model, 1))
    network = NativeTransformer(model)
    assert (network.session(1).sequence(tokens) == expected).all()
    session = network.session(1)
    for row, wanted in zip(tokens, expected, strict=True):
        session.step(row)
        assert (session.logits()[0] == wanted[0]).all()


# --- against transformers ---


def imported_family(name: str, folder: Path, **options: Any) -> tuple[Any, Imported]:
    model = make(FAMILIES[name][0], **FAMILIES[name][1])
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    return model, import_model(open_source(str(folder)), **options)


@pytest.mark.parametrize("name", ["gpt2", "gemma3 sliding", "neox", "olmo2"])
def test_families_are_rounded_with_feedback(name: str, tmp_path: Path) -> None:
    """Matrices on their side are read by two threads; layers slide, positions are learned."""
    _, plain = imported_family(name, tmp_path)
    found = import_model(open_source(str(tmp_path)), calibrated=True).model
    assert found.model_id == import_model(open_source(str(tmp_path)), calibrated=True).model.model_id
    for one, other in zip(plain.model.layers, found.layers, strict=True):
        for matrix in ("qkv", "out", "gate_up", "down"):
            before, after = getattr(one, matrix).weight, getattr(other, matrix).weight
            assert (before != after).any()
            assert np.abs(before.astype(int) - after).max() <= 8


def changed(**members: Any) -> Callable[[TransformerModel], TransformerModel]:
    return lambda model: replace(model, config=replace(model.config, **members))


def without_positions(model: TransformerModel) -> TransformerModel:
    assert model.position is not None
    return replace(model, position=replace(model.position, weight=model.position.weight * 0))


WRONG: list[tuple[str, str, Callable[[TransformerModel], TransformerModel]]] = [
    ("gemma2", "scores without a cap", changed(score_cap=0.0)),
    ("gemma2", "logits without a cap", changed(logit_cap=0.0)),
    ("gemma2", "another function", changed(activation="silu")),
    ("gemma2 sliding", "a longer window", changed(sliding_window=22)),
    ("gemma3 sliding", "the same angles", lambda m: replace(m, rotary=m.rotary[[0, 1, 0, 1]])),
    ("phi", "one after another", changed(parallel=False)),
    ("phi", "no rotation", changed(no_rotary=(0, 1, 2))),
    ("phi", "another function", changed(activation="silu")),
    ("neox", "one after another", changed(parallel=False)),
    ("neox", "no rotation", changed(no_rotary=(0, 1, 2))),
    ("gpt2", "no positions", without_positions),
    ("granite", "another multiplier", changed(score_scale=46.25)),
]


@pytest.mark.parametrize(("name", "what", "change"), WRONG, ids=[f"{n}: {w}" for n, w, _ in WRONG])
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_a_wrong_reading_shows(
    name: str, what: str, change: Callable[[TransformerModel], TransformerModel], tmp_path: Path
) -> None:
    """The divergence is some times that of the right one."""
    import torch

    model, found = imported_family(name, tmp_path)
    source = open_source(str(tmp_path))
    _, order = sorted_tokens(source.tokens(), N_ROW)
    ids = np.random.default_rng(1).choice(order[order >= 0], 96)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    kept = order >= 0

    def kl(own: TransformerModel) -> float:
        return mean_kl(logits_of(own, ids, order)[:, kept], expected[:, order[kept]])

    right = kl(found.model)
    wrong = kl(change(found.model))
    print(f"{name}, {what}: mean KL {right:.6f} nats, wrong {wrong:.6f}")
    assert wrong > 5 * right


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][0] not in ("Llama", "Mistral")])
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_frames_of_a_family(name: str, tmp_path: Path) -> None:
    """From the folder to a file and to frames, past the window's end; the same in every executor."""
    mixer = (Path(lmcodec.__file__).parent / "models" / "imported.lmp").read_bytes()
    _, found = imported_family(name, tmp_path, window=16, mixer=mixer)
    path = tmp_path / "own.lmm"
    path.write_bytes(b"".join(map(bytes, file.pack(found.model, found.tokenizer))))
    for isa in ISAS:
        check_same_bits(found.model, isa, 40, 2)
    for method in ("lm", "lm+cm"):
        frame = lmcodec.compress(TEXT, model=path, method=method)
        assert lmcodec.decompress(frame, model=path) == TEXT
    frames = {
        executor: lmcodec.compress(TEXT[:120], model=path, method="lm", executor=executor)
        for executor in ("kernel", "numpy", "torch")
    }
    assert len(set(frames.values())) == 1
    assert lmcodec.decompress(frames["torch"], model=path, executor="numpy") == TEXT[:120]


def minicpm_folder(folder: Path) -> Any:
    """MiniCPM is Granite by other names, of which transformers has no class."""
    model = make(
        "Granite",
        head_dim=12,
        embedding_multiplier=3.0,
        residual_multiplier=0.9 / math.sqrt(3),
        logits_scaling=48 / 12,
        attention_multiplier=12**-0.5,
        tie_word_embeddings=True,
    )
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for member in (
        *("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier"),
        *("model_type", "architectures"),
    ):
        config.pop(member)
    config |= {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
        "scale_emb": 3.0,
        "scale_depth": 0.9,
        "dim_model_base": 12,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    return model


@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_minicpm_is_granite_by_other_names(tmp_path: Path) -> None:
    import torch

    model = minicpm_folder(tmp_path)
    source = open_source(str(tmp_path))
    found = import_model(source).model
    _, order = sorted_tokens(source.tokens(), N_ROW)
    ids = np.random.default_rng(1).choice(order[order >= 0], 96)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    kept = order >= 0
    kl = mean_kl(logits_of(found, ids, order)[:, kept], expected[:, order[kept]])
    print(f"minicpm: mean KL {kl:.6f} nats")
    assert kl < 0.005


# --- what is refused ---


@pytest.mark.parametrize(
    ("config", "options", "kind", "message"),
    [
        ({"model_type": "gpt2"}, {"window": 300}, ConfigError, "256 learned positions"),
        ({"model_type": "gpt2"}, {"window": 33}, ConfigError, "even number"),
        ({"model_type": "gpt2"}, {"sinks": 2}, ConfigError, "--sinks 2.*learned positions"),
        ({"model_type": "gpt2", "n_positions": 8}, {}, Unsupported, "window"),
        ({"model_type": "gemma3_text", "sliding_window": 8}, {}, Unsupported, "sliding_window is 8"),
        (
            {
                "model_type": "phi3",
                "original_max_position_embeddings": 512,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            },
            {},
            Unsupported,
            "beyond 512 tokens.*smaller --window",
        ),
        ({"model_type": "gemma2", "query_pre_attn_scalar": "x"}, {}, LmcodecError, "query_pre_attn_scalar"),
        ({"model_type": "granite", "residual_multiplier": 0}, {}, LmcodecError, "residual_multiplier is 0"),
        ({"model_type": "gemma2", "final_logit_softcapping": -1.0}, {}, LmcodecError, "softcapping is -1.0"),
        ({"model_type": "phimoe"}, {}, Unsupported, "'phimoe' is not known"),
        ({"model_type": "granitemoe"}, {}, Unsupported, "'granitemoe' is not known"),
        ({"model_type": "minicpm", "num_experts": 8}, {}, Unsupported, "mixture of experts"),
        ({"model_type": "bloom"}, {}, Unsupported, "'bloom' is not known"),
    ],
)
def test_options_that_are_not_known(
    config: dict[str, Any], options: dict[str, Any], kind: type[LmcodecError], message: str
) -> None:
    base = {
        "vocab_size": N_ROW,
        "hidden_size": 64,
        "n_embd": 64,
        "num_hidden_layers": 2,
        "n_layer": 2,
        "num_attention_heads": 4,
        "n_head": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "n_positions": 256,
        "head_dim": 16,
    }
    with pytest.raises(kind, match=message) as caught:
        families.plan(base | config, **options).shape(N_ROW)
    assert "\n" not in str(caught.value)


def test_longrope_fits_a_small_window() -> None:
    config = {
        "model_type": "phi3",
        "vocab_size": N_ROW,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 512,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    }
    found = families.plan(config, window=512)
    plain = families.plan(config | {"rope_scaling": None}, window=512)
    assert (found.rotary == plain.rotary).all()
    ratio = 1 + math.log(8) / math.log(512)
    assert math.isclose(found.members["score_scale"], plain.members["score_scale"] * ratio, rel_tol=1e-6)
