"""Which models are known, and what their config.json means in the terms of `TransformerConfig`.

What the definition cannot compute is refused by name: nothing is imported that would be another model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, Unsupported
from lmcodec.lm.transformer.importing import layouts
from lmcodec.lm.transformer.importing.arranged import View
from lmcodec.lm.transformer.importing.rotary import CONTEXT, number, rotary, single
from lmcodec.lm.transformer.shape import TransformerConfig

FAMILIES = {
    "llama": "Llama 2 and 3, TinyLlama, SmolLM and SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text",
    "olmo2": "OLMo 2",
    "granite": "Granite 3",
    "minicpm": "MiniCPM",
    "phi": "Phi-1, Phi-1.5 and Phi-2",
    "phi3": "Phi-3, Phi-3.5 and Phi-4",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
}
GEMMAS = ("gemma", "gemma2", "gemma3_text")
LAYER_NORMS = ("phi", "gpt2", "gpt_neox")
# Members that mean another computation unless they have one of these values.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_softcapping": (None,),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "use_alibi": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (None,),
    "use_bidirectional_attention": (None, False),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "position_embedding_type": (None, "absolute", "rope"),
    "sparse_attention": (False,),
}
# Members that a family computes.
_COMPUTED: dict[str, tuple[str, ...]] = {
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3_text": ("attn_logit_softcapping", "final_logit_softcapping"),
    "minicpm": ("auto_map",),  # its code is known, and is not run
    "phi3": ("auto_map",),
}
_WHY = {
    "quantization_config": "weights that another program has quantised are not read",
    "auto_map": "code that comes with a model is not run",
    "alibi": "attention would be biased by distance",
    "use_alibi": "attention would be biased by distance",
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "add_cross_attention": "attention to another text",
    "is_encoder_decoder": "attention to another text",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_NAMES = {  # of members of config.json, by family where they differ
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "layer_norm_eps": "layer_norm_epsilon",
    },
}


@dataclass(frozen=True)
class Plan:
    """What is to be imported.

    Attributes:
        members: of the result's shape, but for its number of tokens, which is not known yet.
        rotary: (2, E / 2) float64, with sliding layers (4, E / 2).
        n_row: of the embedding.
        views: how tensors come from the source's.
        head_bias: the head has a bias in the source.
    """

    members: dict[str, Any]
    rotary: np.ndarray
    n_row: int
    views: dict[str, View] = field(default_factory=dict)
    head_bias: bool = False

    def shape(self, n_token: int) -> TransformerConfig:
        """The shape with a vocabulary of `n_token`.

        Raises:
            Unsupported: it is larger than the arithmetic holds for.
        """
        try:
            return TransformerConfig(vocab_size=n_token, **self.members)
        except ConfigError as error:
            raise Unsupported(str(error)) from None


def plan(
    config: dict[str, Any],
    window: int | None = None,
    sinks: int | None = None,
    names: Collection[str] = ("lm_head.weight",),
    converted: bool = False,
) -> Plan:
    """What a config.json asks for.

    Args:
        config: its content.
        window: W; by default 1,024, or less where the model's attention slides or its positions end.
        sinks: S; by default 4.
        names: of the source's tensors.
        converted: they are those of a GGUF file, which has some parts in another form.

    Raises:
        Unsupported: another model than those of `FAMILIES`, or one that computes otherwise.
        Corrupt: a member is missing or out of range.
        ConfigError: the window is larger than the model's.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise Unsupported(f"model_type {str(kind)[:40]!r} is not known; known are {', '.join(FAMILIES)}")
    config = config | {to: config[own] for to, own in _NAMES.get(kind, {}).items() if own in config}
    _refuse_others(config, kind)
    heads = _integer(config, "num_attention_heads")
    width = _integer(config, "hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None or kind in LAYER_NORMS:
        if width % heads:
            raise Corrupt(f"hidden_size is {width}, no multiple of num_attention_heads, {heads}")
        config = {**config, "head_dim": width // heads}
    head_dim = _integer(config, "head_dim")
    if head_dim % 2:
        raise Unsupported(f"head_dim is {head_dim}, which is odd")
    n_layer = _integer(config, "num_hidden_layers")
    groups = None if kind in ("gpt2", "gpt_neox") else config.get("num_key_value_heads")
    tied = _flag(config, "tie_word_embeddings", kind in (*GEMMAS, "gpt2"))
    tied = tied or layouts.HEADS.isdisjoint(names)
    members: dict[str, Any] = {
        "dim": width,
        "n_layer": n_layer,
        "n_head": heads,
        "n_kv_head": heads if groups is None else _integer(config, "num_key_value_heads"),
        "head_dim": head_dim,
        "mlp": _mlp(config, kind, width),
        "tied": tied,
        **_norms(config, kind),
        **_products(config, kind),
    }
    if kind == "gpt2":
        members |= _positions(config, n_layer, window, sinks)
        angles, n_rotary = np.repeat([[1.0], [0.0]], head_dim // 2, axis=1), head_dim
        score = Decimal(1)
    else:
        members |= {"window": _window(config, kind, window), "sinks": 4 if sinks is None else sinks}
        angles, n_rotary, score = _rotation(config, kind, head_dim, members)
    scales = _scales(config, kind, width, n_layer, converted)
    row_scale = Decimal(1)
    if n_rotary < head_dim and score != 1:
        if members["qk_norm"]:
            raise Unsupported("scales a part of normalised queries and keys, which is not known")
        row_scale, score = score.sqrt(), Decimal(1)  # of the rotated part only
    with localcontext(CONTEXT):
        to_log2 = 256 / Decimal(2).ln()
        members["score_scale"] = single(to_log2 * scales.score(head_dim) * score)
        members["logit_scale"] = single(to_log2 * scales.logit / (scales.embed if tied else 1))
    for name, member in (
        ("score_cap", "attn_logit_softcapping"),
        ("logit_cap", "final_logit_softcapping"),
    ):
        if config.get(member) is not None:
            cap = number(member, config[member], 2.0**-8, 11_000)
            members[name] = single(to_log2 * cap)
    learned = config.get("max_position_embeddings")
    views = layouts.views(kind, members, n_rotary, float(row_scale), scales, converted, learned)
    return Plan(members, angles, _integer(config, "vocab_size"), views, kind == "phi")


def _refuse_others(config: dict[str, Any], kind: str) -> None:
    classes = _list(config, "architectures")
    if classes and not str(classes[0]).endswith(("ForCausalLM", "GPT2LMHeadModel")):
        raise Unsupported(
            f"is a {str(classes[0])[:60]}, which predicts no next tokens (expected a ...ForCausalLM)"
        )
    for name, allowed in _PLAIN.items():
        if name in _COMPUTED.get(kind, ()):
            continue
        if (value := config.get(name, allowed[0])) not in allowed:
            why = f": {_WHY[name]}" if name in _WHY else ""
            raise Unsupported(f"{name} is {str(value)[:40]}, which is not known{why}")


def _norms(config: dict[str, Any], kind: str) -> dict[str, Any]:
    layer = kind in LAYER_NORMS
    name = "layer_norm_eps" if layer else "rms_norm_eps"
    default = 1e-5 if layer or kind in ("olmo2", "phi3") else 1e-6
    after = kind in ("gemma2", "gemma3_text", "olmo2")
    members: dict[str, Any] = {
        "norm_eps": single(number(name, config.get(name, default), 2.0**-40, 1)),
        "qk_norm": kind in ("qwen3", "gemma3_text", "olmo2"),
    }
    if layer:
        members["norm"] = "layer"
    if after:
        members["post_norm"] = True
    if kind == "olmo2":
        members |= {"pre_norm": False, "qk_norm_whole": True}
    if kind == "phi" or (kind == "gpt_neox" and _flag(config, "use_parallel_residual", True)):
        members["parallel"] = True
    return members


def _products(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Biases, gates, and what is between the MLP's products."""
    members: dict[str, Any]
    if kind in LAYER_NORMS:
        biased = _flag(config, "attention_bias", True)
        members = {"qkv_bias": biased, "out_bias": biased, "mlp_bias": True, "gated": False}
    else:
        biased = _flag(config, "attention_bias", False)
        members = {"qkv_bias": biased or kind == "qwen2"}
        if biased and kind != "qwen2":
            members["out_bias"] = True
        if _flag(config, "mlp_bias", False):
            members["mlp_bias"] = True
    if kind in GEMMAS:
        name = config.get("hidden_activation") or "gelu_pytorch_tanh"
    else:
        default = {"phi": "gelu_new", "gpt2": "gelu_new", "gpt_neox": "gelu"}.get(kind, "silu")
        name = config.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise Unsupported(
            f"hidden_act is {str(name)[:40]}, which is not known (known: {', '.join(_ACTIVATIONS)})"
        )
    if _ACTIVATIONS[name] != "silu":
        members["activation"] = _ACTIVATIONS[name]
    return members


def _scales(config: dict[str, Any], kind: str, width: int, n_layer: int, converted: bool) -> layouts.Scales:
    """What embeddings, sums, scores and logits are multiplied by."""

    def given(name: str, default: float) -> Decimal:
        return number(name, config.get(name, default), 2.0**-20, 2.0**20)

    with localcontext(CONTEXT):
        if kind in GEMMAS:
            half = config.get("dtype", config.get("torch_dtype")) == "bfloat16"
            root = single(Decimal(width).sqrt())
            scalar = None if kind == "gemma" else given("query_pre_attn_scalar", 256)
            return layouts.Scales(embed=Decimal(_bfloat16(root) if half else root), heads=scalar)
        if kind == "granite":
            return layouts.Scales(
                embed=given("embedding_multiplier", 1),
                residual=given("residual_multiplier", 1),
                attention=given("attention_multiplier", 1),
                logit=1 / given("logits_scaling", 1),
            )
        if kind == "minicpm":
            if converted:
                residual, logit = given("residual_multiplier", 1), 1 / given("logits_scaling", 1)
            else:
                residual = given("scale_depth", 1) / Decimal(n_layer).sqrt()
                logit = given("dim_model_base", width) / width
            return layouts.Scales(embed=given("scale_emb", 1), residual=residual, logit=logit)
    return layouts.Scales()


def _bfloat16(value: float) -> float:
    """To the nearest bfloat16, ties to even."""
    bits = int(np.array(value, np.float32).view(np.uint32))
    bits += 0x7FFF + (bits >> 16 & 1)
    return float(np.array(bits & 0xFFFF0000, np.uint32).view(np.float32))


def _positions(config: dict[str, Any], n_layer: int, window: int | None, sinks: int | None) -> dict[str, Any]:
    """Of learned positions: W is how many of them are used."""
    trained = _integer(config, "max_position_embeddings")
    if sinks:
        raise ConfigError(f"--sinks {sinks}: a model with learned positions has none; leave the option out")
    if window is not None and (window > trained or window % 2):
        raise ConfigError(
            f"--window {window}: the model has {trained} learned positions; ask for an even number up to that"
        )
    n = min(1024, trained // 2 * 2) if window is None else window
    return {"n_position": n, "window": n, "sinks": 0, "no_rotary": tuple(range(n_layer))}


def _rotation(
    config: dict[str, Any], kind: str, head_dim: int, members: dict[str, Any]
) -> tuple[np.ndarray, int, Decimal]:
    """Angles, how many elements of a head are rotated, and what scores are multiplied by for it."""
    settings = _rope(config, kind)
    layers = _sliding_layers(config, kind, members["n_layer"]) if kind in GEMMAS else ()
    n_rotary = _rotated(config, settings, kind, head_dim)
    window = members["window"] if kind in ("phi3", "minicpm") else 0
    angles, score = rotary(settings, n_rotary, settings.get("factors", ()), window)
    without = _without_rotary(config, members["n_layer"]) if kind == "smollm3" else ()
    if without and score != 1:
        raise Unsupported("scales its rotated scores and has layers without rotation, which is not known")
    members["no_rotary"] = without
    angles = _padded(angles, head_dim)
    if layers:
        width = config.get("sliding_window", 4096)
        if type(width) is not int or width < 1:
            raise Corrupt(f"config.json: sliding_window is {str(width)[:40]}, expected a positive integer")
        local, local_score = rotary(_rope(config, kind, "sliding_attention"), n_rotary)
        if local_score != score:
            raise Unsupported("scales scores in some of its layers only, which is not known")
        local = _padded(local, head_dim)
        if width < members["window"]:
            members |= {"sliding": layers, "sliding_window": width, "sliding_sinks": 0}
        elif (local != angles).any():
            members |= {"sliding": layers, "sliding_window": members["window"]}
            members["sliding_sinks"] = members["sinks"]
        if "sliding" in members:
            angles = np.concatenate((angles, local))
    return angles, n_rotary, score


def _padded(angles: np.ndarray, head_dim: int) -> np.ndarray:
    """Angles of 0 for the pairs that are not rotated."""
    padded = np.zeros((2, head_dim // 2))
    padded[0] = 1
    padded[:, : angles.shape[1]] = angles
    return padded


def _rotated(config: dict[str, Any], settings: dict[str, Any], kind: str, head_dim: int) -> int:
    """How many elements of a head are rotated: the first ones."""
    default = {"phi": 0.5, "gpt_neox": 0.25}.get(kind, 1.0)
    part = settings.get(
        "partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct"))
    )
    share = number("partial_rotary_factor", default if part is None else part, 2.0**-10, 1)
    if kind not in ("phi", "gpt_neox", "phi3") and share != 1:
        raise Unsupported(f"partial_rotary_factor is {float(share)}, which this family is not known to have")
    n = int(head_dim * float(share))
    if n < 2 or n % 2:
        raise Unsupported(f"rotates {n} elements of each head, which is no even number")
    return n


def _mlp(config: dict[str, Any], kind: str, width: int) -> int:
    if kind != "gpt2":
        return _integer(config, "intermediate_size")
    return 4 * width if config.get("n_inner") is None else _integer(config, "n_inner")


def _flag(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    return default if value is None else bool(value)


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


def _rope(config: dict[str, Any], kind: str, layers: str = "full_attention") -> dict[str, Any]:
    """Theta and scaling, wherever a version of transformers writes them; of `layers` where they differ."""
    slides = kind == "gemma3_text" and layers == "sliding_attention"
    default = 1_000_000.0 if kind == "gemma3_text" else 10_000.0
    theta = config.get("rope_theta", config.get("rotary_emb_base")) or default
    if slides:
        theta = config.get("rope_local_base_freq") or 10_000.0
    found: dict[str, Any] = {"rope_theta": theta}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if value is None or (slides and name == "rope_scaling"):
            continue
        if not isinstance(value, dict):
            raise Corrupt(f"config.json: {name} is no object")
        if any(isinstance(member, dict) for member in value.values()):
            if kind not in GEMMAS or not isinstance(value.get(layers, {}), dict):
                raise Unsupported(f"{name} differs between layers, which is not known")
            value = value.get(layers, {})
        elif slides:
            continue
        found |= {key: member for key, member in value.items() if member is not None}
    scaling = found.get("rope_type", found.get("type"))
    if scaling in ("llama3", "yarn", "longrope", "su"):
        longest = config.get("max_position_embeddings")
        original = config.get("original_max_position_embeddings", longest)
        found.setdefault("original_max_position_embeddings", original)
        found["longest"] = longest
    return found


def _sliding_layers(config: dict[str, Any], kind: str, n_layer: int) -> tuple[int, ...]:
    """Layers whose attention slides: listed, or all but every second or sixth."""
    if kind == "gemma":
        return ()
    kinds = _list(config, "layer_types")
    if not kinds:
        period = 2 if kind == "gemma2" else config.get("sliding_window_pattern", 6)
        if type(period) is not int or period < 1:
            raise Corrupt("config.json: sliding_window_pattern is no positive integer")
        return tuple(i for i in range(n_layer) if (i + 1) % period)
    if len(kinds) != n_layer:
        raise Corrupt(f"config.json: layer_types has {len(kinds)} layers, expected {n_layer}")
    return tuple(i for i, name in enumerate(kinds) if name == "sliding_attention")


def _window(config: dict[str, Any], kind: str, asked: int | None) -> int:
    """W, which no sliding layer may see less than, unless sliding layers have a window of their own."""
    slides = config.get("sliding_window")
    if kind in GEMMAS:
        slides = None
    if config.get("use_sliding_window", kind in ("mistral", "phi3")) is False:
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
