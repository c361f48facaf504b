"""A GGUF file, read with the package `gguf`. Tensors are dequantised in binary32, as that package defines it.

llama.cpp stores the queries and keys of some architectures with the pairs of a rotation side by side; they
are read in transformers' order, in which the two halves of a head hold them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, LmcodecError, Unsupported, reason_of
from lmcodec.lm.transformer.importing import tokens
from lmcodec.lm.transformer.importing.source import Source, digest_of

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# Architectures, the families they are, and whether the pairs of a rotation are side by side.
_FAMILIES = {
    "llama": ("llama", True),
    "smollm3": ("smollm3", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3": ("gemma3_text", False),
    "olmo2": ("olmo2", False),
    "granite": ("granite", True),
    "minicpm": ("minicpm", True),
    "phi2": ("phi", False),
    "phi3": ("phi3", False),
    "gpt2": ("gpt2", False),
    "gptneox": ("gpt_neox", False),
}
_PARTLY_ROTATED = ("phi2", "phi3", "gptneox")
# Llama.cpp's own knowledge of the largest models, whose scores are scaled by the heads' mean width.
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.bias": "output.bias",
    "model.position.weight": "position_embd.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "post_attention_norm": "post_attention_norm",
    "post_mlp_norm": "post_ffw_norm",
}
_CONTROL, _UNKNOWN, _USER_DEFINED, _UNUSED, _BYTE = 3, 2, 4, 5, 6  # of tokenizer.ggml.token_type
# Regular expressions of pre-tokenizers by the names that llama.cpp gives them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "qwen35": _QWEN2,
}
_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r")


class GgufFile(Source):
    """See `open_file`."""

    converted = True

    def __init__(self, path: Path) -> None:
        import gguf

        self.where = os.fspath(path)
        self._gguf = gguf
        try:
            reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self._facts = {
                name: field.contents()
                for name, field in reader.fields.items()
                if not name.startswith("tokenizer.chat_template")
            }
        except Exception as error:  # a damaged file makes the package raise many kinds
            raise Corrupt(f"is no sound GGUF file ({reason_of(error)})") from None
        self._architecture = self._fact("general.architecture", str)
        if self._architecture not in _FAMILIES:
            raise Unsupported(
                f"GGUF architecture {self._architecture[:40]!r} is not known (known: {', '.join(_FAMILIES)})"
            )
        for name, tensor in self._tensors.items():
            if tensor.tensor_type.name not in TYPES:
                raise Unsupported(
                    f"tensor {name} is of type {tensor.tensor_type.name}; {', '.join(TYPES)} are read"
                )
        self._inner_to_outer = self._names()
        self.config = self._config()
        self._path = path
        self.card = {"source": path.name}
        for key, name in (("licence", "general.license"), ("model", "general.name")):
            if isinstance(self._facts.get(name), str):
                self.card[key] = self._facts[name]

    def sha256(self) -> str:
        """As `Source.sha256`."""
        return digest_of([self._path])

    @property
    def names(self) -> set[str]:
        """As `Source.names`."""
        return set(self._inner_to_outer)

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Source.shape`."""
        return tuple(int(n) for n in self._tensors[self._inner_to_outer[name]].shape[::-1])

    def read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """As `Source.read`."""
        from gguf.quants import dequantize

        tensor = self._tensors[self._inner_to_outer[name]]
        found = np.arange(self.shape(name)[0])
        which = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        if _FAMILIES[self._architecture][1] and (".q_proj." in name or ".k_proj." in name):
            heads = self.config[which]
            if len(found) % (2 * heads):
                raise Corrupt(f"tensor {name} has {len(found)} rows for {heads} heads")
            found = found.reshape(heads, -1, 2).swapaxes(1, 2).ravel()
        return np.array(dequantize(tensor.data[found[rows]], tensor.tensor_type), np.float32)

    def tokens(self) -> tokens.Tokens:
        """As `Source.tokens`."""
        kind = self._fact("tokenizer.ggml.model", str)
        texts = self._fact("tokenizer.ggml.tokens", list)
        types = self._facts.get("tokenizer.ggml.token_type", [1] * len(texts))
        if len(types) != len(texts) or not all(isinstance(text, str) for text in texts):
            raise Corrupt(f"{len(texts)} tokens with {len(types)} types")
        if kind not in ("gpt2", "llama"):
            raise Unsupported(f"tokenizer of kind {kind[:40]!r}; known are gpt2 and llama")
        spell = tokens.from_byte_level if kind == "gpt2" else tokens.from_piece
        strings = []
        for text, of in zip(texts, types, strict=True):
            if of in (_CONTROL, _UNKNOWN, _UNUSED):
                strings.append(b"")
            else:
                strings.append(tokens.plain(text) if of == _USER_DEFINED else spell(text))
        weak = {i for i, of in enumerate(types) if of == _BYTE}
        begin = self._begin(texts, strings)
        if kind == "gpt2":
            tokenizer = self._byte_level(texts)
        else:
            tokenizer = self._pieces(texts, types)
        return tokens.Tokens(strings, weak, (begin, begin), tokenizer)

    def _fact(self, name: str, of: type) -> Any:
        value = self._facts.get(name)
        if not isinstance(value, of):
            raise Corrupt(f"{name} is {'missing' if value is None else type(value).__name__}")
        return value

    def _names(self) -> dict[str, str]:
        """GGUF's names of tensors by transformers'."""
        found = {name: outer for name, outer in _OUTER.items() if outer in self._tensors}
        factors = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
        known = {*factors, *found.values()}
        for name in self._tensors:
            layer, _, rest = name.removeprefix("blk.").partition(".")
            stem, _, kind = rest.rpartition(".")
            for inner, outer in _INNER.items():
                if name.startswith("blk.") and stem == outer:
                    found[f"model.layers.{layer}.{inner}.{kind}"] = name
                    known.add(name)
        if unknown := set(self._tensors) - known:
            raise Unsupported(f"tensor {min(unknown)[:80]} has no part in the architectures that are known")
        return found

    def _config(self) -> dict[str, Any]:
        """What config.json would say."""
        arch = self._architecture

        def fact(name: str, of: type = int) -> Any:
            return self._fact(f"{arch}.{name}", of)

        heads = fact("attention.head_count")
        width = fact("embedding_length")
        get = self._facts.get
        if get(f"{arch}.expert_count"):
            raise Unsupported("is a mixture of experts, which is not known")
        head_dim = get(f"{arch}.attention.key_length", width // max(heads, 1))
        if get(f"{arch}.attention.value_length", head_dim) != head_dim:
            raise Unsupported("has values of another width than its keys, which is not known")
        n_rotary = get(f"{arch}.rope.dimension_count", head_dim)
        if n_rotary != head_dim and arch not in _PARTLY_ROTATED:
            raise Unsupported("rotates a part of each head only, which is not known")
        rope = {"rope_theta": get(f"{arch}.rope.freq_base", 10000.0), "rope_type": "default"}
        scaling = get(f"{arch}.rope.scaling.type", "none")
        if scaling != "none":
            rope |= {
                "rope_type": scaling,
                "factor": get(f"{arch}.rope.scaling.factor"),
                "original_max_position_embeddings": get(f"{arch}.rope.scaling.original_context_length"),
            }
        if "rope_freqs.weight" in self._tensors:
            rope["factors"] = self._tensors["rope_freqs.weight"].data.astype(np.float64).ravel().tolist()
        if n_rotary != head_dim and type(n_rotary) is int and head_dim:
            rope["partial_rotary_factor"] = n_rotary / head_dim
        if "rope_factors_short.weight" in self._tensors:
            short = self._tensors["rope_factors_short.weight"].data.astype(np.float64).ravel().tolist()
            original = get(f"{arch}.rope.scaling.original_context_length", get(f"{arch}.context_length"))
            rope |= {
                "rope_type": "longrope",
                "short_factor": short,
                "original_max_position_embeddings": original,
                "attention_factor": get(f"{arch}.rope.scaling.attn_factor"),
            }
        if window := get(f"{arch}.attention.sliding_window"):
            rope_window = {"sliding_window": window, "use_sliding_window": True}
        else:
            rope_window = {}
        config = {
            "model_type": _FAMILIES[arch][0],
            "hidden_size": width,
            "num_hidden_layers": fact("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get(f"{arch}.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": fact("feed_forward_length"),
            "max_position_embeddings": get(f"{arch}.context_length"),
            "rope_parameters": rope,
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "bos_token_id": get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": get("tokenizer.ggml.eos_token_id"),
            **rope_window,
        }
        if "token_embd.weight" in self._tensors:
            config["vocab_size"] = int(self._tensors["token_embd.weight"].shape[-1])
        if arch == "smollm3":
            config["no_rope_layer_interval"] = 4
        return config | self._own_members(config)

    def _own_members(self, config: dict[str, Any]) -> dict[str, Any]:
        """What some architectures have beside the others."""
        arch = self._architecture

        def fact(name: str) -> float:
            return self._fact(f"{arch}.{name}", float)

        def given(names: dict[str, str]) -> dict[str, Any]:
            found = {member: self._facts.get(f"{arch}.{name}") for member, name in names.items()}
            return {member: value for member, value in found.items() if value is not None}

        if arch in ("phi2", "gpt2", "gptneox"):
            found: dict[str, Any] = {"layer_norm_eps": fact("attention.layer_norm_epsilon")}
            if arch == "gpt2":
                found["n_inner"] = config["intermediate_size"]
            return found | given({"use_parallel_residual": "use_parallel_residual"})
        found = {"rms_norm_eps": fact("attention.layer_norm_rms_epsilon")}
        if arch in ("gemma2", "gemma3"):
            heads = max(config["num_attention_heads"], 1)
            is_largest = config["num_hidden_layers"] == _LARGEST[arch]
            found["query_pre_attn_scalar"] = (
                config["hidden_size"] / heads if is_largest else config["head_dim"]
            )
            found |= given(
                {
                    "attn_logit_softcapping": "attn_logit_softcapping",
                    "final_logit_softcapping": "final_logit_softcapping",
                    "rope_local_base_freq": "rope.freq_base_swa",
                }
            )
        if arch == "granite":
            found |= given(
                {
                    "embedding_multiplier": "embedding_scale",
                    "residual_multiplier": "residual_scale",
                    "attention_multiplier": "attention.scale",
                    "logits_scaling": "logit_scale",
                }
            )
        if arch == "minicpm":
            found |= {"scale_emb": fact("embedding_scale"), "residual_multiplier": fact("residual_scale")}
            found["logits_scaling"] = fact("logit_scale")
        return found

    def _begin(self, texts: list[str], strings: list[bytes]) -> int:
        """The token that begins a text, as `tokens` says."""
        get = self._facts.get
        bos, eos = get("tokenizer.ggml.bos_token_id"), get("tokenizer.ggml.eos_token_id")
        adds = get("tokenizer.ggml.add_bos_token", get("tokenizer.ggml.model") == "llama")
        end = texts.index("<|endoftext|>") if "<|endoftext|>" in texts else None
        newline = strings.index(b"\n") if b"\n" in strings else None
        order = [bos if adds else None, newline, end, eos, bos]
        chosen = next((i for i in order if type(i) is int and 0 <= i < len(texts)), None)
        if chosen is None:
            raise Unsupported("names no token that begins or ends a text")
        return chosen

    def _byte_level(self, texts: list[str]) -> dict[str, Any] | None:
        merges = self._facts.get("tokenizer.ggml.merges")
        if not isinstance(merges, list) or not merges:
            return None
        pre = self._facts.get("tokenizer.ggml.pre", "default")
        before: list[dict[str, Any]] = []
        if pre in _SPLITS:
            split = {"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated"}
            before.append({**split, "invert": False})
        elif pre in _BY_DIGIT:
            before.append({"type": "Digits", "individual_digits": True})
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        before.append({**level, "use_regex": pre not in _SPLITS})
        return _tokenizer(
            texts,
            [merge.split(" ", 1) for merge in merges],
            {"type": "Sequence", "pretokenizers": before},
            {"ignore_merges": pre in ("llama-bpe", "llama3", "llama-v3")},
        )

    def _pieces(self, texts: list[str], types: list[int]) -> dict[str, Any] | None:
        """Merges of sentencepiece's BPE from the scores of the pieces: the likelier result first."""
        scores = self._facts.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or len(scores) != len(texts):
            return None
        index = {text: i for i, (text, of) in enumerate(zip(texts, types, strict=True)) if of == 1}
        merges = []
        for text, i in index.items():
            pairs = [(text[:n], text[n:]) for n in range(1, len(text))]
            pairs = [(a, b) for a, b in pairs if a in index and b in index]
            pairs.sort(key=lambda pair: (index[pair[0]], index[pair[1]]))
            merges += [(scores[i], [a, b]) for a, b in pairs]
        merges.sort(key=lambda merge: -merge[0])  # stable
        found = _tokenizer(
            texts, [pair for _, pair in merges], None, {"byte_fallback": True, "fuse_unk": True}
        )
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": tokens.SPACE}
        return {**found, "normalizer": replace}


def _tokenizer(
    texts: list[str], merges: list[list[str]], before: dict[str, Any] | None, members: dict[str, Any]
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **members,
        "vocab": {text: i for i, text in enumerate(texts)},
        "merges": merges,
    }
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": [], "pre_tokenizer": before, "model": model}


def open_file(path: Path) -> GgufFile:
    """The model in a GGUF file.

    Raises:
        ConfigError: the package gguf is missing.
        Unsupported: its architecture or a type of its tensors is not known.
        Corrupt: it is damaged.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError(f"{path}: a GGUF file needs the package gguf; pip install 'lmcodec[hf]'") from None
    try:
        return GgufFile(path)
    except LmcodecError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None
    except (json.JSONDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from None
