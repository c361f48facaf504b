"""Import of pretrained models: families, sources, quantisation, rotary angles, tokenizers, hostile sources.

Models are small and random, made from transformers' configurations; nothing is downloaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcodec.errors import ConfigError, Corrupt, LmcodecError, Truncated, Unsupported
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.importing import families, quantise, rotary, tokens
from lmcodec.lm.transformer.importing.build import Imported, import_model, sorted_tokens
from lmcodec.lm.transformer.importing.source import open_source
from lmcodec.lm.transformer.model import TransformerModel
from lmcodec.lm.transformer.segment import Segmenter

f32 = np.float32

# --- a small tokenizer ---

MISSING = (0x04, 0xF1)  # bytes that it has no token for
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "e r", "a n", "an d", "Ġ and", "Ġ Ġ", "Ċ Ċ", "Ã ©"]
SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "head_dim": 16,
}


def tokenizer_json() -> dict[str, Any]:
    alphabet = [c for c, b in tokens.byte_level().items() if b not in MISSING]
    texts = [*alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {text: i + 3 for i, text in enumerate(texts)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **special}
            for i, text in enumerate(["<|endoftext|>", "<|im_start|>", "<unk>"])
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


N_ROW = 3 + 256 - len(MISSING) + len(MERGES)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], kind: str = "F32") -> None:
    header, at, parts = {}, 0, []
    for name, values in tensors.items():
        data = np.ascontiguousarray(values, "<f4").tobytes()
        if kind == "BF16":
            data = (np.frombuffer(data, "<u4") >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def random_tensors(seed: int = 1, tied: bool = True, **family: bool) -> dict[str, np.ndarray]:
    """A Llama of `SHAPE`, under transformers' names."""
    rng = np.random.default_rng(seed)
    d, e, f = SHAPE["hidden_size"], SHAPE["head_dim"], SHAPE["intermediate_size"]
    sizes = {"q_proj": (4 * e, d), "k_proj": (2 * e, d), "v_proj": (2 * e, d), "o_proj": (d, 4 * e)}
    found = {"model.embed_tokens.weight": rng.normal(0, 0.4, (N_ROW, d))}
    for i in range(SHAPE["num_hidden_layers"]):
        inner = f"model.layers.{i}."
        for name, (n, k) in sizes.items():
            found[f"{inner}self_attn.{name}.weight"] = rng.normal(0, k**-0.5, (n, k))
        for name, (n, k) in {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}.items():
            found[f"{inner}mlp.{name}.weight"] = rng.normal(0, k**-0.5, (n, k))
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{inner}{name}.weight"] = rng.uniform(0.5, 1.5, d)
    found["model.norm.weight"] = rng.uniform(0.5, 1.5, d)
    if not tied:
        found["lm_head.weight"] = rng.normal(0, 0.4, (N_ROW, d))
    return {name: values.astype(f32) for name, values in found.items()}


def write_folder(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, config: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": "llama", "vocab_size": N_ROW, "tie_word_embeddings": True, **SHAPE}
    (folder / "config.json").write_text(json.dumps(content | (config or {})), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", tensors if tensors is not None else random_tensors())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("importing") / "tiny")


@pytest.fixture(scope="module")
def imported(folder: Path) -> Imported:
    return import_model(open_source(str(folder)))


# --- sources ---


def test_the_card_says_where_a_model_comes_from(imported: Imported) -> None:
    card = imported.model.card
    assert card["source"] == "tiny"
    assert card["licence"] == "apache-2.0"
    assert len(card["sha256"]) == 64
    assert "benchmark" in card["note"]
    assert card["options"]["window"] == 1024
    assert card["options"]["sinks"] == 4


def test_shards_and_one_file_give_one_model(imported: Imported, tmp_path: Path) -> None:
    tensors = random_tensors()
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, own in shards.items():
        write_safetensors(tmp_path / shard, {name: tensors[name] for name in own})
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )
    assert import_model(open_source(str(tmp_path))).model.model_id == imported.model.model_id
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(Corrupt, match=r"b\.safetensors is missing"):
        open_source(str(tmp_path))


def test_options_belong_to_the_id(folder: Path, imported: Imported) -> None:
    other = import_model(open_source(str(folder)), window=64, sinks=2).model
    assert other.config.window == 64
    assert other.config.sinks == 2
    assert other.model_id != imported.model.model_id


def test_bf16_is_read_exactly(tmp_path: Path) -> None:
    tensors = {
        name: (values.view(np.uint32) & 0xFFFF0000).view(f32) for name, values in random_tensors().items()
    }
    full = import_model(open_source(str(write_folder(tmp_path / "full", tensors)))).model
    write_safetensors(write_folder(tmp_path / "half") / "model.safetensors", tensors, "BF16")
    half = import_model(open_source(str(tmp_path / "half"))).model
    assert half.model_id == full.model_id


def test_progress_counts_every_matrix(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = open_source(str(folder))
    import_model(source, progress=lambda done, total: seen.append((done, total)), calibrated=False)
    assert seen == [(n, 13) for n in range(1, 14)]


def break_header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def broken(data: bytes) -> bytes:
        (n,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + n])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + n :]

    return broken


def with_norm(**members: Any) -> Callable[[bytes], bytes]:
    return break_header(lambda header: header["model.norm.weight"].update(members))


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], type[LmcodecError], str]] = {
    "empty": (lambda data: b"", Truncated, "0 bytes and a header of 0"),
    "cut": (lambda data: data[:-100], Truncated, "ends at byte"),
    "cut header": (lambda data: data[:100], Truncated, "has 100 bytes and a header of"),
    "absurd header": (lambda data: b"\xff" * 8 + data[8:], Truncated, "a header of 18446744073709551615"),
    "no JSON": (lambda data: data[:8] + b"x" + data[9:], Corrupt, "its header is not JSON"),
    "no object": (lambda data: struct.pack("<Q", 2) + b"[]" + data, Corrupt, "its header is no object"),
    "no place": (
        break_header(lambda h: h["model.norm.weight"].pop("data_offsets")),
        Corrupt,
        "no type, shape",
    ),
    "absurd shape": (with_norm(shape=[1 << 40, 1 << 40]), Corrupt, "its shape"),
    "negative": (with_norm(data_offsets=[-4, 188]), Corrupt, "no list of sizes"),
    "true": (with_norm(shape=[True]), Corrupt, "no list of sizes"),
    "other size": (with_norm(shape=[47]), Corrupt, "has 192 bytes"),
    "integers": (with_norm(dtype="I32"), Unsupported, "is of type I32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_end_in_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    change, kind, message = HOSTILE[name]
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(LmcodecError) as caught:
        open_source(str(tmp_path))
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", lambda w: w * f32("nan"), "not finite"),
        ("model.layers.2.mlp.down_proj.weight", lambda w: w * f32("inf"), "not finite"),
        ("model.norm.weight", lambda w: w * f32(1e20), "larger than 2\\^40"),
        ("model.norm.weight", lambda w: w[:-1], r"shape \(47,\), expected \(48,\)"),
        ("model.layers.0.self_attn.k_proj.weight", lambda w: w.T, "shape"),
        ("model.layers.0.self_attn.k_proj.weight", lambda w: None, "missing"),
    ],
)
def test_hostile_tensors_end_in_one_line(
    name: str, change: Callable[[np.ndarray], np.ndarray | None], message: str, tmp_path: Path
) -> None:
    tensors = random_tensors()
    with np.errstate(invalid="ignore"):
        changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(Corrupt, match=message):
        import_model(open_source(str(write_folder(tmp_path, tensors))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom"}, "model_type 'bloom' is not known"),
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not known"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "predicts no next tokens"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        ({"num_local_experts": 8}, "num_local_experts is 8.*mixture of experts"),
        ({"alibi": True}, "alibi is True.*biased by distance"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm is True"),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "model_type 'olmo' is not known"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not known"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "phi3", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"model_type": "gpt_neox", "rotary_pct": 0.3}, "rotates 3 elements of each head"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"quantization_config": {"quant_method": "gptq"}}, "another program has quantised"),
        ({"auto_map": {"AutoModel": "x.y"}}, "code that comes with a model is not run"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'.*length of a text"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=message) as caught:
        import_model(open_source(str(write_folder(tmp_path, config=config))))
    assert "\n" not in str(caught.value)


def test_sliding_attention_bounds_the_window() -> None:
    base = {"vocab_size": N_ROW, **SHAPE}
    assert families.plan(base | {"model_type": "mistral", "sliding_window": 100}).members["window"] == 100
    assert families.plan(base | {"model_type": "mistral", "sliding_window": None}).members["window"] == 1024
    qwen = base | {"model_type": "qwen2", "sliding_window": 100, "use_sliding_window": False}
    assert families.plan(qwen).members["window"] == 1024
    with pytest.raises(ConfigError, match="slides over 100 tokens"):
        families.plan(base | {"model_type": "mistral", "sliding_window": 100}, window=101)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder or file"):
        open_source(str(tmp_path / "none" / "at" / "all"))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        open_source(str(tmp_path))
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(Unsupported, match="pickled"):
        open_source(str(pickled))
    (write_folder(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(Unsupported, match="pickled"):
        open_source(str(tmp_path))


# --- quantisation and rotary angles ---


@given(st.integers(1, 5), st.sampled_from([1, 6, 16, 48, 64, 96]), st.integers(0, 9))
def test_rows_are_rotated_as_the_definition_says(n: int, k: int, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(n, k)).astype(f32)
    assert (quantise.rotated(w) == reference.rotate(w) / f32(k & -k)).all()


def test_quantisation_of_extremes() -> None:
    w = np.zeros((4, 16), f32)
    w[1] = 1e-40
    w[2] = 2.0**40
    w[3, 0] = -1
    codes, scale = quantise.quantised(w)
    assert (codes[:2] == 0).all()
    assert (scale[:2] == f32(2.0**-40)).all()
    assert np.abs(codes).max() == 63
    assert (codes[3] == -63).all()


def exact_inverse(settings: dict[str, Any], head_dim: int) -> np.ndarray:
    angles, _ = rotary.rotary(settings, head_dim)
    return np.arctan2(angles[1], angles[0])


@pytest.mark.parametrize(
    "settings_",
    [
        {"rope_theta": 10000.0},
        {"rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0},
        {
            "rope_theta": 500000.0,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    ],
)
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_angles_are_those_of_transformers(settings_: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = settings_.get("original_max_position_embeddings", 8192)
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=int(original * settings_.get("factor", 1)),
        rope_parameters={"rope_type": "default", **settings_},
    )
    angles, score = rotary.rotary(settings_, 64)
    kind = settings_.get("rope_type", "default")
    if kind == "default":
        expected, attention = 10000.0 ** (-np.arange(0, 64, 2) / 64), 1.0
    else:
        inverse, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        expected = inverse.numpy()
    assert np.abs(np.arctan2(angles[1], angles[0]) / expected - 1).max() < 1e-5
    assert math.isclose(float(score), attention**2, rel_tol=1e-6)


def test_angles_are_correctly_rounded() -> None:
    angles, score = rotary.rotary({"rope_theta": 10000.0}, 4)
    assert score == 1
    # cos 1, sin 1, cos 0.01, sin 0.01 to the nearest binary64.
    assert angles.ravel().tolist() == [
        0.5403023058681398,
        0.9999500004166653,
        0.8414709848078965,
        0.009999833334166664,
    ]


# --- vocabulary and segmentation ---


def test_vocabulary_has_every_byte_and_no_control_token(imported: Imported) -> None:
    model = imported.model
    strings = model.vocabulary.strings
    assert b" the" in strings
    assert not any(b"endoftext" in string for string in strings)
    assert len(strings) == N_ROW - 3 + len(MISSING)
    for byte in MISSING:
        token = model.vocabulary.index[bytes([byte])]
        assert not model.embed.weight[token].any()
        assert model.head.bias is not None
        assert model.head.bias[token] == f32(-(2.0**40))


def test_a_missing_byte_has_the_least_logit(imported: Imported) -> None:
    model = imported.model
    logits = reference.step(model, np.array([model.config.start[0]]), reference.start(model, 1))[0]
    token = model.vocabulary.index[bytes([MISSING[0]])]
    assert logits[token] == -reference.LOGIT_MAX
    assert np.sort(logits)[len(MISSING)] > -reference.LOGIT_MAX


def test_of_equal_strings_the_real_token_is_kept() -> None:
    found = tokens.Tokens([b"", b"A", b"B", b"A", b"B"], {1}, (0, 0), None)
    strings, ids = sorted_tokens(found, 5)
    assert ids[strings.index(b"A")] == 3  # 1 merely stands for the byte
    assert ids[strings.index(b"B")] == 2  # the first of equals
    assert ids[strings.index(b"C")] == -1


def segmenter_of(imported: Imported) -> Segmenter:
    text = json.dumps(imported.tokenizer).encode()
    return Segmenter(imported.model.vocabulary, lambda: text)


def test_text_is_segmented_by_the_tokenizer(imported: Imported) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers import Tokenizer

    text = "the end and in a tree, an er\n\n  the <|endoftext|> \u00e9 the"
    plain = Tokenizer.from_str(json.dumps(imported.tokenizer))
    expected = [tokens.from_byte_level(str(plain.id_to_token(i))) for i in plain.encode(text).ids]
    vocabulary = imported.model.vocabulary
    made = [vocabulary.strings[t] for t in segmenter_of(imported)(text.encode())]
    assert made == expected
    assert b"".join(made) == text.encode()


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode())))
def test_any_bytes_round_trip(imported: Imported, data: bytes) -> None:
    made = segmenter_of(imported)(data)
    assert made.dtype == np.uint32
    assert imported.model.vocabulary.restore(made) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        b"\r\n\r\n",
        b"\xff\xfe",
        "\u2581 \ufeff\u0301e".encode(),
        b"a\x04b",
        "\U0004ffff".encode(),
    ],
)
def test_awkward_bytes_round_trip(imported: Imported, data: bytes) -> None:
    data = b"the and " + data + b" in the"
    assert imported.model.vocabulary.restore(segmenter_of(imported)(data)) == data


def pieces_json() -> dict[str, Any]:
    """As Llama 2's: bytes beside pieces, a space put before the text."""
    texts = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "\u2581",
        "t",
        "h",
        "e",
        "th",
        "the",
    ]
    texts += ["\u2581the", "a"]
    return {
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "special": True,
                "normalized": False,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
            for i, text in enumerate(texts[:3])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]],
        },
    }


def test_pieces_of_sentencepiece() -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    found = tokens.from_json(pieces_json(), {"bos_token": "<s>", "add_bos_token": True}, {})
    assert found.begin == (1, 1)
    strings, ids = sorted_tokens(found, 300)
    assert ids[strings.index(b"t")] == found.strings.index(b"t", 259)
    from lmcodec.lm.vocab import Vocabulary

    vocabulary, text = Vocabulary(strings), json.dumps(found.tokenizer).encode()
    cut = Segmenter(vocabulary, lambda: text)
    made = [vocabulary.strings[t] for t in cut(b"the the\xc3\xa9 a<s>")]
    assert made == [b"the", b" the", b"\xc3", b"\xa9", b" ", b"a", b"<", b"s", b">"]
    data = "a\u2581the \u2581\u2581".encode()
    assert vocabulary.restore(cut(data)) == data


def test_other_tokenizers_are_refused() -> None:
    found = tokenizer_json()
    found["model"]["type"] = "Unigram"
    with pytest.raises(Unsupported, match="of kind Unigram"):
        tokens.from_json(found, {}, {})
    found["model"] = {"type": "BPE", "vocab": {"a": -1}}
    with pytest.raises(Corrupt, match="an id that is no number"):
        tokens.from_json(found, {}, {})


# --- against transformers ---


GPT2_SHAPE = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, "attn_implementation": "eager"}


def make(name: str, **members: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    shape = GPT2_SHAPE if name == "GPT2" else SHAPE
    config = getattr(transformers, f"{name}Config")(
        vocab_size=N_ROW, initializer_range=0.2, **{**shape, **members}
    )
    torch.manual_seed(1)
    kind = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(name, f"{name}ForCausalLM")
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                is_norm = "norm" in parameter_name or ".ln_" in parameter_name
                parameter.add_(torch.randn_like(parameter) * (0.2 if is_norm else 0.5))
    return model


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "pad_token_id": None}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {
            "query_pre_attn_scalar": 24,
            "sliding_window": 4096,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",
        },
    ),
    "gemma2 sliding": ("Gemma2", {"sliding_window": 20, "attn_implementation": "eager"}),
    "gemma3": ("Gemma3Text", {"query_pre_attn_scalar": 16, "sliding_window": 4096, "pad_token_id": None}),
    "gemma3 sliding": (
        "Gemma3Text",
        {
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 16,
            "attn_implementation": "eager",
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            },
        },
    ),
    "olmo2": ("Olmo2", {"head_dim": 12}),
    "granite": (
        "Granite",
        {
            "head_dim": 12,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("Phi3", {"head_dim": 12, "pad_token_id": None}),
    "phi3 longrope": (
        "Phi3",
        {
            "head_dim": 12,
            "pad_token_id": None,
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5, 2.0],
                "long_factor": [4.0, 5.0, 8.0],
            },
        },
    ),
    "phi": ("Phi", {"head_dim": 12, "partial_rotary_factor": 0.5}),
    "gpt2": ("GPT2", {}),
    "gpt2 untied": ("GPT2", {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 100}),
    "neox": ("GPTNeoX", {"head_dim": 12, "rotary_pct": 0.5}),
    "neox one after another": (
        "GPTNeoX",
        {"head_dim": 12, "rotary_pct": 1.0, "use_parallel_residual": False},
    ),
}
MOST_KL = 0.02  # nats: mean of next-token distributions; these models give 0.0005 to 0.012
LESS_KL = 0.006  # of models of another kind, where less is enough to hide a wrong reading


LLAMAS = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3")


def logits_of(model: TransformerModel, ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(T, V) logits in nats of the tokens that stand for (T,) ids."""
    token_of = {i: t for t, i in enumerate(order.tolist()) if i >= 0}
    made = np.array([token_of[i] for i in ids.tolist()])
    return reference.sequence(model, made[:, None], reference.start(model, 1))[:, 0] * (math.log(2) / 256)


def mean_kl(logits: np.ndarray, expected: np.ndarray) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_a_family_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    """Mean KL of next-token distributions, random models of width 48."""
    import torch

    model = make(FAMILIES[name][0], **FAMILIES[name][1])
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    source = open_source(str(tmp_path))
    found = import_model(source).model
    _, order = sorted_tokens(source.tokens(), N_ROW)
    ids = np.random.default_rng(1).choice(order[order >= 0], 96)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    kept = order >= 0
    logits = logits_of(found, ids, order)[:, kept]
    kl = mean_kl(logits, expected[:, order[kept]])
    agreement = (logits.argmax(axis=1) == expected[:, order[kept]].argmax(axis=1)).mean()
    print(f"{name}: mean KL {kl:.6f} nats, top-1 {agreement:.1%}")
    assert kl < (MOST_KL if FAMILIES[name][0] in LLAMAS else LESS_KL)


@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_another_family_computes_otherwise(tmp_path: Path) -> None:
    """The bound above is one that a wrong reading of a model fails: here its biases are left out."""
    import torch

    model = make("Qwen2", tie_word_embeddings=True)
    expected_tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    for name in expected_tensors:
        if name.endswith("bias"):
            expected_tensors[name] = expected_tensors[name] * f32(0)
    source = open_source(
        str(write_folder(tmp_path, expected_tensors, {"model_type": "qwen2", "rms_norm_eps": 1e-6}))
    )
    _, order = sorted_tokens(source.tokens(), N_ROW)
    ids = np.random.default_rng(1).choice(order[order >= 0], 96)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    kept = order >= 0
    logits = logits_of(import_model(source).model, ids, order)[:, kept]
    assert mean_kl(logits, expected[:, order[kept]]) > 3 * MOST_KL


# --- GGUF ---


def add_tokens(writer: Any) -> None:
    found = tokenizer_json()
    by_id = {i: text for text, i in found["model"]["vocab"].items()}
    by_id |= {entry["id"]: entry["content"] for entry in found["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([by_id[i] for i in range(N_ROW)])
    writer.add_token_types([3 if i < 3 else 1 for i in range(N_ROW)])
    writer.add_token_merges(MERGES)


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    kind: str = "F32",
    arch: str = "llama",
    extra: dict[str, tuple[np.ndarray, Any]] | None = None,
    pieces: list[str] | None = None,
) -> None:
    """As llama.cpp's converter writes a model, the pairs of rotations side by side."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf.quants import quantize

    from lmcodec.lm.transformer.importing.gguf_file import _INNER, _OUTER

    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_key_length(SHAPE["head_dim"])
    writer.add_value_length(SHAPE["head_dim"])
    writer.add_rope_dimension_count(SHAPE["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    if pieces is None:
        add_tokens(writer)
    else:
        writer.add_tokenizer_model("llama")
        padded = [*pieces, *(f"unused {i}" for i in range(N_ROW - len(pieces)))][:N_ROW]
        writer.add_token_list(padded)
        writer.add_token_scores([float(-i) for i in range(N_ROW)])
        kinds = [2, 3, 3, *[6] * 256, *[1] * (N_ROW - 259)]
        writer.add_token_types(
            [5 if text.startswith("unused") else of for text, of in zip(padded, kinds, strict=True)]
        )
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for name, (blocks, raw) in (extra or {}).items():
        writer.add_tensor(name, blocks, raw_dtype=raw)
    for name, values in tensors.items():
        if name in _OUTER:
            own = _OUTER[name]
        else:
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            stem, _, last = rest.rpartition(".")
            own = f"blk.{layer}.{_INNER[stem]}.{last}"
        if ".q_proj." in name or ".k_proj." in name:
            heads = SHAPE["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            values = values.reshape(heads, 2, SHAPE["head_dim"] // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 1 or kind == "F32" or values.shape[1] % 32:
            writer.add_tensor(own, np.ascontiguousarray(values))
        else:
            of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(own, quantize(np.ascontiguousarray(values), of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_and_safetensors_give_one_model(imported: Imported, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", random_tensors())
    found = import_model(open_source(str(tmp_path / "tiny.gguf")))
    assert found.model.model_id == imported.model.model_id
    text = b"the end and in a tree"
    assert segmenter_of(found)(text).tolist() == segmenter_of(imported)(text).tolist()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_types_of_gguf(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf.quants import dequantize, quantize

    tensors = random_tensors()
    write_gguf(tmp_path / "tiny.gguf", tensors, kind)
    source = open_source(str(tmp_path / "tiny.gguf"))
    name = "model.layers.1.mlp.down_proj.weight"  # of 96 columns
    of = gguf.GGMLQuantizationType[kind]
    expected = dequantize(quantize(tensors[name], of), of)
    assert (source.take(name, tensors[name].shape) == expected).all()
    assert import_model(source).model.n_weight > 0


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_blocks_of_256(kind: str, tmp_path: Path) -> None:
    """The package writes none of these: random bytes with a finite scale are as good."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf.quants import dequantize

    from lmcodec.lm.transformer.importing.gguf_file import GgufFile

    of = gguf.GGMLQuantizationType[kind]
    nbytes = gguf.GGML_QUANT_SIZES[of][1]
    blocks = np.random.default_rng(1).integers(0, 256, (48, nbytes), np.uint8)
    scale = np.array([0.01], np.float16).view(np.uint8)
    for at in (0, 2) if kind == "Q4_K" else (nbytes - 2,):
        blocks[:, at : at + 2] = scale
    tensors = random_tensors()
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    write_gguf(tmp_path / "tiny.gguf", tensors, extra={"blk.1.ffn_down.weight": (blocks, of)})
    source = open_source(str(tmp_path / "tiny.gguf"))
    assert isinstance(source, GgufFile)
    name = "model.layers.1.mlp.down_proj.weight"
    assert source.shape(name) == (48, 256)
    assert (source.take(name, (48, 256), slice(5, 9)) == dequantize(blocks, of)[5:9]).all()


def test_pieces_in_gguf(tmp_path: Path) -> None:
    """A vocabulary of sentencepiece has scores and no merges."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    texts = list(pieces_json()["model"]["vocab"])
    write_gguf(tmp_path / "tiny.gguf", random_tensors(), pieces=texts)
    source = open_source(str(tmp_path / "tiny.gguf"))
    found = source.tokens()
    assert found.begin == (1, 1)  # BOS
    strings, _ = sorted_tokens(found, N_ROW)
    from lmcodec.lm.vocab import Vocabulary

    vocabulary, text = Vocabulary(strings), json.dumps(found.tokenizer).encode()
    made = [vocabulary.strings[t] for t in Segmenter(vocabulary, lambda: text)(b"the the\xc3\xa9 a<s>")]
    assert made == [b"the", b" the", b"\xc3", b"\xa9", b" ", b"a", b"<", b"s", b">"]


def test_hostile_gguf_ends_in_one_line(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", random_tensors())
    data = (tmp_path / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for n in (4, 8, 24, 100, 3000, len(data) // 2):
        cut.write_bytes(data[:n])
        with pytest.raises(LmcodecError) as caught:
            import_model(open_source(str(cut)))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(cut))
    write_gguf(tmp_path / "other.gguf", random_tensors(), arch="bloom")
    with pytest.raises(Unsupported, match="'bloom' is not known"):
        open_source(str(tmp_path / "other.gguf"))


# Architectures of GGUF: a family's model, and what llama.cpp's converter calls its tensors beyond Llama's.
_STACKED = "attn_qkv"
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "gemma": ("gemma", {}, {}),
    "gemma2": (
        "gemma2",
        {"query_pre_attn_scalar": 16},
        {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
    "gemma3": (
        "gemma3",
        {"sliding_window": 20, "layer_types": ["sliding_attention"] * 3},
        {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
    ),
    "olmo2": (
        "olmo2",
        {},
        {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    ),
    "granite": ("granite", {}, {}),
    "phi3": ("phi3", {}, {"self_attn.qkv_proj": _STACKED, "mlp.gate_up_proj": "ffn_up"}),
    "phi3 longrope": ("phi3", {}, {"self_attn.qkv_proj": _STACKED, "mlp.gate_up_proj": "ffn_up"}),
    "phi": ("phi2", {}, {"self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}),
    "gpt2": (
        "gpt2",
        {},
        {
            "ln_1": "attn_norm",
            "ln_2": "ffn_norm",
            "attn.c_attn": _STACKED,
            "attn.c_proj": "attn_output",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
    ),
    "neox": (
        "gptneox",
        {},
        {
            "post_attention_layernorm": "ffn_norm",
            "attention.query_key_value": _STACKED,
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
    ),
}
GGUF_OUTER = {
    "model.embed_tokens": "token_embd",
    "transformer.wte": "token_embd",
    "gpt_neox.embed_in": "token_embd",
    "transformer.wpe": "position_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "transformer.ln_f": "output_norm",
    "gpt_neox.final_layer_norm": "output_norm",
    "lm_head": "output",
    "embed_out": "output",
}


def convert_to_gguf(path: Path, model: Any, arch: str, own: dict[str, str]) -> None:
    """As llama.cpp's converter writes it."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from lmcodec.lm.transformer.importing.gguf_file import _INNER

    config = model.config
    width, heads, n_layer = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head_dim = width // heads if arch in ("gpt2", "gptneox", "phi2") else getattr(config, "head_dim", None)
    head_dim = head_dim or width // heads
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(n_layer)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width if arch == "gpt2" else config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_context_length(config.max_position_embeddings)
    if arch not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if arch.startswith("gemma"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("gpt2", "gptneox", "phi2"):
        name = "layer_norm_epsilon" if arch == "gpt2" else "layer_norm_eps"
        writer.add_layer_norm_eps(getattr(config, name))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None) or {}
    if arch == "gemma3":
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
    elif rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(head_dim * (rope.get("partial_rotary_factor") or 1)))
        if rope["rope_type"] == "longrope":
            ratio = config.max_position_embeddings / config.original_max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
            writer.add_rope_scaling_attn_factors(
                math.sqrt(1 + math.log(ratio) / math.log(config.original_max_position_embeddings))
            )
            for kind in ("short", "long"):
                factors = np.array(rope[f"{kind}_factor"], f32)
                writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    if arch == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    add_tokens(writer)
    for name, parameter in model.state_dict().items():
        values = parameter.numpy()
        stem, _, part = name.rpartition(".")
        if stem == "lm_head" and config.tie_word_embeddings:
            continue
        if arch.startswith("gemma") and stem.endswith("norm"):
            values = values + f32(1)
        if arch == "granite" and stem.endswith(("q_proj", "k_proj")):
            n = heads if stem.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(n, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if arch == "gptneox" and stem.endswith("query_key_value"):
            values = values.reshape(heads, 3, head_dim, -1).swapaxes(0, 1).reshape(values.shape)
        if arch == "gpt2" and values.ndim == 2 and ".h." in name:
            values = values.T
        if stem in GGUF_OUTER:
            to = GGUF_OUTER[stem]
        else:
            layer, inner = re.fullmatch(r"[a-z_]+\.(?:layers|h)\.(\d+)\.(.*)", stem).groups()  # type: ignore[union-attr]
            if inner.endswith(("rotary_emb", "attention.bias", "attn.bias")) or "rotary" in inner:
                continue
            to = f"blk.{layer}.{own.get(inner, _INNER.get(inner))}"
        writer.add_tensor(f"{to}.{part}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_architectures_of_gguf_give_what_a_folder_gives(name: str, tmp_path: Path) -> None:
    arch, changes, own = ARCHITECTURES[name]
    model = make(FAMILIES[name][0], **(FAMILIES[name][1] | changes))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    expected = import_model(open_source(str(tmp_path))).model
    convert_to_gguf(tmp_path / "model.gguf", model, arch, own)
    found = import_model(open_source(str(tmp_path / "model.gguf"))).model
    assert found.config == expected.config
    assert found.model_id == expected.model_id


ODD: list[Any] = [None, -1, 0, 3, 1.5, "x", [], [7], {}, {"a": []}, True, 1 << 70, float("inf"), float("nan")]
ODD.append(10**400)
MEMBERS = [
    *SHAPE,
    *(
        "architectures",
        "model_type",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    ),
    *("layer_types", "sliding_window", "use_sliding_window", "tie_word_embeddings", "no_rope_layers"),
    *("no_rope_layer_interval", "hidden_act", "bos_token_id", "eos_token_id", "quantization_config"),
]


MORE_MEMBERS = [
    *("n_embd", "n_layer", "n_head", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon"),
    *("layer_norm_eps", "use_parallel_residual", "attention_bias", "mlp_bias", "hidden_activation"),
    *("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "query_pre_attn_scalar", "dtype"),
    *("attn_logit_softcapping", "final_logit_softcapping", "rope_local_base_freq", "sliding_window_pattern"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    *("scale_emb", "scale_depth", "dim_model_base", "original_max_position_embeddings"),
]


def check_ends_in_one_line(call: Callable[[], Any]) -> None:
    """It succeeds, or ends in one clear line."""
    said = ""
    try:
        found = call()
    except LmcodecError as error:
        said = str(error)
    else:
        if isinstance(found, families.Plan):  # whose angles the model's own check accepts
            square = found.rotary[::2] ** 2 + found.rotary[1::2] ** 2
            said = "" if (np.abs(square - 1) <= 2.0**-50).all() else "\n"
    assert "\n" not in said


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("name", [*MEMBERS, *MORE_MEMBERS])
def test_odd_members_of_a_config_end_in_one_line(name: str, family: str) -> None:
    base = {"model_type": family, "vocab_size": N_ROW, **SHAPE, "n_positions": 256}
    base |= {"n_embd": 48, "n_layer": 3, "n_head": 4}
    for value in ODD:
        check_ends_in_one_line(lambda value=value: families.plan(base | {name: value}).shape(300))  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize(
    "name",
    [
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "rope_theta", "truncate"),
    ],
)
def test_odd_scalings_end_in_one_line(name: str, kind: str) -> None:
    base = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for value in [*ODD, 1, 1e-3, 1e6, 1e12]:
        scaling = base | {"original_max_position_embeddings": 64, name: value}
        config = {"model_type": "llama", "vocab_size": N_ROW, **SHAPE, "rope_scaling": scaling}
        check_ends_in_one_line(lambda config=config: families.plan(config))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["short_factor", "factor", "attention_factor", "type"])
@pytest.mark.parametrize("kind", ["phi3", "minicpm"])
def test_odd_longropes_end_in_one_line(kind: str, name: str) -> None:
    base = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for value in [
        *ODD,
        10**400,
        [10**400] * 8,
        [None] * 8,
        ["1"] * 8,
        [float("nan")] * 8,
        [1.0] * 7,
        [0] * 8,
    ]:
        config = {"model_type": kind, "vocab_size": N_ROW, **SHAPE, "max_position_embeddings": 4096}
        config["rope_scaling"] = base | {name: value}
        check_ends_in_one_line(lambda config=config: families.plan(config))  # type: ignore[misc]


@pytest.mark.parametrize("where", ["model", "added_tokens", "pre_tokenizer", "normalizer", "post_processor"])
def test_odd_members_of_a_tokenizer_end_in_one_line(where: str) -> None:
    for value in [
        *ODD,
        [None],
        [{}],
        {"type": "BPE", "vocab": {"a": "b"}},
        {"type": "Sequence", "pretokenizers": 1},
    ]:
        check_ends_in_one_line(
            lambda value=value: tokens.from_json(tokenizer_json() | {where: value}, {}, {})  # type: ignore[misc]
        )
