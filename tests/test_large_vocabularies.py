"""Vocabularies beyond 65,536 tokens, from a tokenizer that is trained here to frames, by every executor.

A small random model of Qwen2's shape; 70,000 tokens, with -m slow 150,000. With even probabilities the sum of
all frequencies is beyond 2^40.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_importing import write_safetensors

import lmcodec
from lmcodec import _kernel
from lmcodec.lm import decisions
from lmcodec.lm.transformer import file, reference
from lmcodec.lm.transformer.importing.build import Imported, import_model
from lmcodec.lm.transformer.importing.source import open_source
from lmcodec.lm.transformer.native import NativeTransformer
from lmcodec.lm.transformer.segment import Segmenter

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
}
SIZES = [pytest.param(70_000), pytest.param(150_000, marks=pytest.mark.slow)]


def words(n: int, seed: int) -> list[str]:
    """Made of syllables, so that longer tokens are made of shorter ones."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ai", "en")]
    picked = rng.integers(0, len(syllables), (n, 4))
    length = rng.integers(2, 5, n)
    return ["".join(syllables[i] for i in row[:k]) for row, k in zip(picked, length, strict=True)]


def train_tokenizer(n: int) -> dict[str, Any]:
    """Qwen's kind: byte-level BPE, a regular expression before it, one control token."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        min_frequency=1,
        show_progress=False,
    )
    made = words(3 * n // 2, 1)
    lines = (" ".join(made[at : at + 1000]) for at in range(0, len(made), 1000))
    tokenizer.train_from_iterator(lines, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def import_random(folder: Path, tokenizer: dict[str, Any], n_row: int, size: float) -> Imported:
    """Qwen2 with more rows than tokens, as Qwen's have; `size`: of the embedding."""
    rng = np.random.default_rng(2)
    d, e, f = SHAPE["hidden_size"], SHAPE["head_dim"], SHAPE["intermediate_size"]
    sizes: dict[str, tuple[int, ...]] = {
        **{
            f"self_attn.{name}.weight": (n, d)
            for name, n in (("q_proj", 2 * e), ("k_proj", e), ("v_proj", e))
        },
        **{f"self_attn.{name}.bias": (n,) for name, n in (("q_proj", 2 * e), ("k_proj", e), ("v_proj", e))},
        "self_attn.o_proj.weight": (d, 2 * e),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    tensors = {f"model.layers.0.{name}": rng.normal(0, 0.3, shape) for name, shape in sizes.items()}
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        tensors[f"{name}.weight"] = np.ones(d)
    tensors["model.embed_tokens.weight"] = rng.normal(0, 1, (n_row, d)) * size
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    config = {"model_type": "qwen2", "vocab_size": n_row, "tie_word_embeddings": True, **SHAPE}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    mixer = (Path(lmcodec.__file__).parent / "models" / "imported.lmp").read_bytes()
    return import_model(open_source(str(folder)), window=32, mixer=mixer)


@pytest.fixture(scope="module", params=SIZES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, dict[str, Any]]:
    return tmp_path_factory.mktemp("vocabulary"), request.param, train_tokenizer(request.param)


@pytest.mark.parametrize("size", [0.5, 0.0])
def test_from_a_tokenizer_to_frames(made: tuple[Path, int, dict[str, Any]], size: float) -> None:
    folder, n, tokenizer = made
    found = import_random(folder / f"of {size}", tokenizer, n + 128, size)
    model = found.model
    v = model.config.vocab_size
    assert v == n - 1  # without the control token
    assert v > 65_536

    # Segmentation is the tokenizer's.
    data = (" ".join(words(150, 3)) + "\r\n\0 é <|endoftext|> \U0001f600").encode() + b"\xff\xfe"
    text = json.dumps(found.tokenizer).encode()
    tokens = Segmenter(model.vocabulary, lambda: text)(data)
    assert model.vocabulary.restore(tokens) == data
    assert (tokens > 65_535).any()
    assert len(tokens) < len(data) / 3

    # Every executor, step by step and all positions at once.
    fed = np.concatenate(([model.config.start[0]], tokens[:40]))[:, None].astype(np.int64)
    logits = reference.sequence(model, fed, reference.start(model, 1))
    freq = decisions.frequencies(logits)
    total = freq[-1, 0].sum(dtype=np.uint64)
    if size == 0:
        assert total == v << 24
        assert total > 1 << 40
    for isa in _kernel.network_isas():
        network = NativeTransformer(model, isa)
        got, weighed = np.empty_like(logits), np.empty_like(freq)
        network.session(1).run(fed, got, weighed)
        assert (got == logits).all()
        assert (weighed == freq).all()
        session = network.session(1)
        for row, expected in zip(fed[:5], freq, strict=False):
            session.step(row)
            assert (session.frequencies() == expected).all()
        assert session.span(0, 0, v) == freq[4, 0].sum(dtype=np.uint64)

    # Frames.
    path = folder / f"{size}.lmm"
    path.write_bytes(b"".join(map(bytes, file.pack(model, found.tokenizer))))
    for method in ("lm", "lm+cm"):
        frame = lmcodec.compress(data, model=path, method=method)
        assert lmcodec.decompress(frame, model=path) == data
    frames = {
        lmcodec.compress(data[:200], model=path, method="lm", executor=executor)
        for executor in ("kernel", "numpy", "torch")
    }
    assert len(frames) == 1
