"""Which models are known, and what their config.json means in the terms of `TransformerConfig`.

What the definition cannot compute is refused by name: nothing is imported that would be another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, Unsupported
from lmcodec.lm.transformer.importing.rotary import CONTEXT, number, rotary, single
from lmcodec.lm.transformer.shape import TransformerConfig

FAMILIES = {
    "llama": "Llama 2 and 3, TinyLlama, SmolLM and SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
# Members that mean another computation unless they have one of these values.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_softcapping": (None,),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (False,),
}
_WHY = {
    "quantization_config": "weights that another program has quantised are not read",
    "auto_map": "code that comes with a model is not run",
    "attention_bias": "its output product would have a bias, which arithmetic 2 has not",
}


@dataclass(frozen=True)
class Plan:
    """What is to be imported.

    Attributes:
        config: of the result, whose number of tokens is not known yet: it is given to `shape`.
        rotary: (2, E / 2) float64.
        n_row: of the embedding.
    """

    members: dict[str, Any]
    rotary: np.ndarray
    n_row: int

    def shape(self, n_token: int) -> TransformerConfig:
        """The shape with a vocabulary of `n_token`.

        Raises:
            Unsupported: it is larger than the arithmetic holds for.
        """
        try:
            return TransformerConfig(vocab_size=n_token, **self.members)
        except ConfigError as error:
            raise Unsupported(str(error)) from None


def plan(config: dict[str, Any], window: int | None = None, sinks: int | None = None) -> Plan:
    """What a config.json asks for.

    Args:
        config: its content.
        window: W; by default 1,024, or less where the model's attention slides.
        sinks: S; by default 4.

    Raises:
        Unsupported: another model than those of `FAMILIES`, or one that computes otherwise.
        Corrupt: a member is missing or out of range.
        ConfigError: the window is larger than the model's.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise Unsupported(f"model_type {str(kind)[:40]!r} is not known; known are {', '.join(FAMILIES)}")
    classes = _list(config, "architectures")
    if classes and not str(classes[0]).endswith("ForCausalLM"):
        raise Unsupported(
            f"is a {str(classes[0])[:60]}, which predicts no next tokens (expected a ...ForCausalLM)"
        )
    for name, allowed in _PLAIN.items():
        if (value := config.get(name, allowed[0])) not in allowed:
            why = f": {_WHY[name]}" if name in _WHY else ""
            raise Unsupported(f"{name} is {str(value)[:40]}, which is not known{why}")
    heads = _integer(config, "num_attention_heads")
    width = _integer(config, "hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None:
        if width % heads:
            raise Corrupt(f"hidden_size is {width}, no multiple of num_attention_heads, {heads}")
        config = {**config, "head_dim": width // heads}
    head_dim = _integer(config, "head_dim")
    if head_dim % 2:
        raise Unsupported(f"head_dim is {head_dim}, which is odd")
    n_layer = _integer(config, "num_hidden_layers")
    settings = _rope(config)
    angles, score = rotary(settings, head_dim, settings.get("factors", ()))
    without = _without_rotary(config, n_layer) if kind == "smollm3" else ()
    if without and score != 1:
        raise Unsupported("scales its rotated scores and has layers without rotation, which is not known")
    groups = config.get("num_key_value_heads")
    with localcontext(CONTEXT):
        to_log2 = 256 / Decimal(2).ln()
        score_scale = single(to_log2 / Decimal(head_dim).sqrt() * score)
        logit_scale = single(to_log2)
    members = {
        "dim": width,
        "n_layer": n_layer,
        "n_head": heads,
        "n_kv_head": heads if groups is None else _integer(config, "num_key_value_heads"),
        "head_dim": head_dim,
        "mlp": _integer(config, "intermediate_size"),
        "window": _window(config, window),
        "sinks": 4 if sinks is None else sinks,
        "norm_eps": single(number("rms_norm_eps", config.get("rms_norm_eps", 1e-6), 2.0**-40, 1)),
        "score_scale": score_scale,
        "logit_scale": logit_scale,
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "tied": bool(config.get("tie_word_embeddings", False)),
        "no_rotary": without,
    }
    return Plan(members, angles, _integer(config, "vocab_size"))


def _integer(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise Corrupt(f"config.json: {name} is {str(value)[:40]}, expected a positive integer")
    return value


def _list(config: dict[str, Any], name: str) -> list[Any]:
    """A list of config.json, empty if it has none.

    Raises:
        Corrupt: it is something else.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, list):
        raise Corrupt(f"config.json: {name} is no list")
    return value or []


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Theta and scaling, wherever a version of transformers writes them."""
    found: dict[str, Any] = {"rope_theta": config.get("rope_theta") or 10000.0}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise Corrupt(f"config.json: {name} is no object")
        if any(isinstance(member, dict) for member in value.values()):
            raise Unsupported(f"{name} differs between layers, which is not known")
        found |= {key: member for key, member in value.items() if member is not None}
    if found.get("rope_type", found.get("type")) in ("llama3", "yarn"):
        found.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    if found.get("partial_rotary_factor", 1) != 1:
        raise Unsupported("rotates a part of each head only, which is not known")
    return found


def _window(config: dict[str, Any], asked: int | None) -> int:
    """W, which no sliding layer may see less than."""
    slides = config.get("sliding_window")
    if config.get("use_sliding_window", config.get("model_type") == "mistral") is False:
        slides = None
    kinds = set(map(str, _list(config, "layer_types")))
    if kinds - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"has layers of {str(min(kinds))[:40]!r}, which are not known")
    if kinds == {"full_attention"}:
        slides = None
    if slides is None:
        return 1024 if asked is None else asked
    if type(slides) is not int or slides < 1:
        raise Corrupt(f"config.json: sliding_window is {str(slides)[:40]}, expected a positive integer")
    if asked is None:
        return min(1024, slides)
    if asked > slides:
        raise ConfigError(
            f"--window {asked}: the model's attention slides over {slides} tokens; ask for no more"
        )
    return asked


def _without_rotary(config: dict[str, Any], n_layer: int) -> tuple[int, ...]:
    """Layers without rotation: `no_rope_layers` holds 1 for those that rotate, 0 for those that don't."""
    flags = config.get("no_rope_layers")
    if flags is None:
        interval = config.get("no_rope_layer_interval", 4)
        if type(interval) is not int or interval < 1:
            raise Corrupt("config.json: no_rope_layer_interval is no positive integer")
        flags = [int((i + 1) % interval != 0) for i in range(n_layer)]
    if not isinstance(flags, list) or len(flags) != n_layer or set(flags) - {0, 1}:
        raise Corrupt(f"config.json: no_rope_layers is no list of {n_layer} zeros and ones")
    return tuple(i for i, rotates in enumerate(flags) if not rotates)
