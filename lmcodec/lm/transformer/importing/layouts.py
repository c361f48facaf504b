"""How the families name and store what `build` asks for by Llama's names.

Beyond Llama's, `build` knows `model.position`, and of each layer `post_attention_norm` and `post_mlp_norm`.
Multipliers of embeddings, of what is added to the residual stream and of logits are folded into matrices and
scales, so that the arithmetic knows none. The elements of a head that are rotated become pairs E / 2 apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from lmcodec.lm.transformer.importing.arranged import View, part_of

HEADS = frozenset({"lm_head.weight", "embed_out.weight"})
_QKV = ("q_proj", "k_proj", "v_proj")
_FUSED = "self_attn.qkv_proj"  # as Phi-3 and GGUF files name it


@dataclass(frozen=True)
class Scales:
    """What a family multiplies by.

    Attributes:
        embed: embeddings.
        residual: what is added to the residual stream.
        attention: scores; None for 1 / sqrt(heads), or if that is None 1 / sqrt(E).
        heads: see `attention`.
        logit: logits.
    """

    embed: Decimal = Decimal(1)
    residual: Decimal = Decimal(1)
    attention: Decimal | None = None
    heads: Decimal | None = None
    logit: Decimal = Decimal(1)

    def score(self, head_dim: int) -> Decimal:
        """What scalar products of queries and keys are multiplied by."""
        if self.attention is not None:
            return self.attention
        return 1 / (Decimal(head_dim) if self.heads is None else self.heads).sqrt()


def views(
    kind: str,
    members: dict[str, Any],
    n_rotary: int,
    row_scale: float,
    scales: Scales,
    converted: bool,
    learned: int | None = None,
) -> dict[str, View]:
    """Views of all tensors that are not simply there.

    Args:
        kind: the family.
        members: of the shape.
        n_rotary: how many elements of each head are rotated.
        row_scale: what these are multiplied by, in queries and keys.
        scales: of the family.
        converted: the source is a GGUF file.
        learned: rows of the table of learned positions, of a family that has one.
    """
    found = {} if converted and kind in ("gpt2", "gpt_neox") else _outer(kind)
    if kind == "gpt2":
        names = ("transformer.wpe.weight", "wpe.weight", "model.position.weight")
        found["model.position.weight"] = View(names, np.arange(members["n_position"]), learned)
    for i in range(members["n_layer"]):
        layer = _layer(kind, f"model.layers.{i}.", i, members, converted)
        _rotate_first(layer, f"model.layers.{i}.self_attn.", members, n_rotary, row_scale)
        if scales.residual != 1:
            for name in ("self_attn.o_proj.", "mlp.down_proj."):
                for part in ("weight", "bias"):
                    own = f"model.layers.{i}.{name}{part}"
                    layer[own] = View((own,), times=float(scales.residual))
        found |= layer
    if scales.embed != 1:
        name = "model.embed_tokens.weight"
        found[name] = View((name,), times=float(scales.embed))
    if kind.startswith("gemma") and not converted:
        found["model.norm.weight"] = View(("model.norm.weight",), plus=1)
    return found


def _outer(kind: str) -> dict[str, View]:
    if kind == "phi":
        return {
            f"model.norm.{part}": View((f"model.final_layernorm.{part}", f"model.norm.{part}"))
            for part in ("weight", "bias")
        }
    if kind == "gpt2":
        inner = {f"model.norm.{part}": f"ln_f.{part}" for part in ("weight", "bias")}
        inner["model.embed_tokens.weight"] = "wte.weight"
        return {name: View((f"transformer.{own}", own)) for name, own in inner.items()}
    if kind == "gpt_neox":
        return {
            "model.embed_tokens.weight": View(("gpt_neox.embed_in.weight",)),
            "lm_head.weight": View(("lm_head.weight", "embed_out.weight")),
            "model.norm.weight": View(("gpt_neox.final_layer_norm.weight",)),
            "model.norm.bias": View(("gpt_neox.final_layer_norm.bias",)),
        }
    return {}


def _layer(kind: str, inner: str, i: int, members: dict[str, Any], converted: bool) -> dict[str, View]:
    """Of one layer."""
    heads, groups, head_dim, mlp = (members[name] for name in ("n_head", "n_kv_head", "head_dim", "mlp"))
    both = ("weight", "bias")
    found: dict[str, View] = {}

    def named(names: dict[str, tuple[str, ...]], **how: Any) -> None:
        for name, own in names.items():
            for part in both:
                found[f"{inner}{name}.{part}"] = View(tuple(f"{stem}.{part}" for stem in own), **how)

    def stacked(own: str, on_its_side: bool = False) -> None:
        """Queries, keys and values of one tensor."""
        sizes = heads * head_dim, groups * head_dim, groups * head_dim
        at = 0
        for name, n in zip(_QKV, sizes, strict=True):
            for part in both:
                view = View((f"{own}.{part}",), on_its_side=on_its_side and part == "weight")
                found[f"{inner}self_attn.{name}.{part}"] = part_of(view, np.arange(at, at + n), sum(sizes))
            at += n

    if kind in ("gemma2", "gemma3_text", "olmo2") and not converted:
        named(
            {
                "post_attention_norm": (f"{inner}post_attention_layernorm",),
                "post_attention_layernorm": (f"{inner}pre_feedforward_layernorm",),
                "post_mlp_norm": (f"{inner}post_feedforward_layernorm",),
            }
        )
    if kind.startswith("gemma") and not converted:
        norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        for name in (*norms, "post_attention_norm", "post_mlp_norm"):
            own = f"{inner}{name}.weight"
            found[own] = View(found[own].names if own in found else (own,), plus=1)
    if kind == "phi3":
        stacked(f"{inner}{_FUSED}")
        names = tuple(f"{inner}mlp.{name}.weight" for name in ("gate_up_proj", "up_proj"))
        for n, name in enumerate(("gate_proj", "up_proj")):
            rows = np.arange(n * mlp, (n + 1) * mlp)
            found[f"{inner}mlp.{name}.weight"] = View(names, rows, 2 * mlp)
    if kind == "phi":
        named(
            {
                "self_attn.o_proj": (f"{inner}self_attn.dense", f"{inner}self_attn.o_proj"),
                "mlp.up_proj": (f"{inner}mlp.fc1", f"{inner}mlp.up_proj"),
                "mlp.down_proj": (f"{inner}mlp.fc2", f"{inner}mlp.down_proj"),
                "post_attention_layernorm": (f"{inner}input_layernorm",),  # one norm for both
            }
        )
    if kind in ("gpt2", "gpt_neox") and converted:
        stacked(f"{inner}{_FUSED}")
    elif kind == "gpt2":
        _gpt2_layer(found, inner, f"h.{i}.", heads * head_dim)
    elif kind == "gpt_neox":
        own = f"gpt_neox.layers.{i}."
        named(
            {
                "input_layernorm": (f"{own}input_layernorm",),
                "post_attention_layernorm": (f"{own}post_attention_layernorm",),
                "self_attn.o_proj": (f"{own}attention.dense",),
                "mlp.up_proj": (f"{own}mlp.dense_h_to_4h",),
                "mlp.down_proj": (f"{own}mlp.dense_4h_to_h",),
            }
        )
        rows = np.arange(3 * heads * head_dim).reshape(heads, 3, head_dim)  # head by head
        for n, name in enumerate(_QKV):
            for part in both:
                view = View((f"{own}attention.query_key_value.{part}",))
                found[f"{inner}self_attn.{name}.{part}"] = part_of(view, rows[:, n].ravel(), rows.size)
    return found


def _gpt2_layer(found: dict[str, View], inner: str, own: str, width: int) -> None:
    """GPT-2's matrices have inputs as rows; its names have a prefix or not."""

    def view(name: str, on_its_side: bool = False) -> View:
        return View((f"transformer.{own}{name}", f"{own}{name}"), on_its_side=on_its_side)

    names = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
    matrices = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
    for part in ("weight", "bias"):
        for name, stem in names.items():
            found[f"{inner}{name}.{part}"] = view(f"{stem}.{part}")
        for name, stem in matrices.items():
            found[f"{inner}{name}.{part}"] = view(f"{stem}.{part}", part == "weight")
        for n, name in enumerate(_QKV):
            rows = np.arange(n * width, (n + 1) * width)
            whole = view(f"attn.c_attn.{part}", part == "weight")
            found[f"{inner}self_attn.{name}.{part}"] = part_of(whole, rows, 3 * width)


def _rotate_first(
    layer: dict[str, View], inner: str, members: dict[str, Any], n_rotary: int, row_scale: float
) -> None:
    """Elements 0 to R - 1 of a head turn by pairs R / 2 apart: put each pair E / 2 apart, the rest between.

    Scalar products are the same in any order that queries and keys share.
    """
    head_dim = members["head_dim"]
    if n_rotary == head_dim:
        return
    half, rest = n_rotary // 2, (head_dim - n_rotary) // 2
    one = np.concatenate(
        (
            np.arange(half),
            n_rotary + np.arange(rest),
            half + np.arange(half),
            n_rotary + rest + np.arange(rest),
        )
    )
    times = np.where(one < n_rotary, row_scale, 1.0)
    for name, n in (("q_proj", members["n_head"]), ("k_proj", members["n_kv_head"])):
        order = (np.arange(n)[:, None] * head_dim + one).ravel()
        for part in ("weight", "bias"):
            own = f"{inner}{name}.{part}"
            view = layer.get(own, View((own,)))
            rows = order if view.rows is None else view.rows[order]
            n_row = len(order) if view.n_row is None else view.n_row
            scale: float | np.ndarray = np.tile(times, n) if row_scale != 1 else 1.0
            layer[own] = View(view.names, rows, n_row, view.on_its_side, times=scale)
