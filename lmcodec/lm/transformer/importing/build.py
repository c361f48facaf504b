"""From a source to a model: tensor by tensor, block of rows by block of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcodec.errors import Corrupt, LmcodecError
from lmcodec.lm.transformer.importing import calibrate
from lmcodec.lm.transformer.importing.arranged import Arranged
from lmcodec.lm.transformer.importing.families import Plan, plan
from lmcodec.lm.transformer.importing.quantise import linear
from lmcodec.lm.transformer.importing.source import Source, open_source
from lmcodec.lm.transformer.importing.tokens import Tokens
from lmcodec.lm.transformer.model import (
    LARGEST,
    SMALLEST,
    Layer,
    Linear,
    TransformerModel,
    vector_shapes,
)
from lmcodec.lm.transformer.shape import TransformerConfig
from lmcodec.lm.vocab import Vocabulary

NOTE = "imported; its training text is not known in full and may contain any benchmark's"
Progress = Callable[[int, int], None]  # matrices done, and in all
Parts = list[tuple[int, calibrate.Rows]]  # of a matrix, as `calibrate.refined` takes them
Counted = Callable[[str, Linear, Parts], Linear]


@dataclass(frozen=True)
class Imported:
    """A model, and the JSON of the tokenizer that segments text for it; None if there is none."""

    model: TransformerModel
    tokenizer: dict[str, Any] | None


@dataclass(frozen=True)
class _File:
    """As `kinds.ImportedFile`."""

    imported: Imported

    @property
    def model_id(self) -> str:
        return self.imported.model.model_id

    @property
    def has_tokenizer(self) -> bool:
        return self.imported.tokenizer is not None

    def pack(self) -> list[Any]:
        from lmcodec.lm.transformer import file

        return file.pack(self.imported.model, self.imported.tokenizer)


def import_source(
    source: str,
    *,
    download: bool = False,
    revision: str | None = None,
    window: int | None = None,
    sinks: int | None = None,
    mixer: bytes = b"",
    card: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    calibrated: bool = True,
) -> _File:
    """As `kinds.Importer.import_source`."""
    opened = open_source(source, download, revision)
    return _File(import_model(opened, window, sinks, mixer, card, progress, calibrated))


def import_model(
    source: Source,
    window: int | None = None,
    sinks: int | None = None,
    mixer: bytes = b"",
    card: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    calibrated: bool = False,
) -> Imported:
    """Import a pretrained model.

    Args:
        source: where it comes from.
        window: W; None for the default.
        sinks: S; None for the default.
        mixer: what mixing with context models begins with, as profiles' files; may be empty.
        card: further members of the model's card.
        progress: called after each matrix; one that is rounded twice counts twice.
        calibrated: weights are rounded with regard to what goes into their products (`calibrate`); if not,
            each by itself, which is done sooner.

    Raises:
        Unsupported: the model computes what arithmetic 2 does not.
        Corrupt: a tensor is missing, or has another shape or a value that is not finite.
    """
    try:
        return _import(source, window, sinks, mixer, card or {}, progress, calibrated)
    except LmcodecError as error:
        raise type(error)(f"{source.where}: {error}") from None


def _import(
    source: Source,
    window: int | None,
    sinks: int | None,
    mixer: bytes,
    card: dict[str, Any],
    progress: Progress,
    calibrated: bool,
) -> Imported:
    planned = plan(source.config, window, sinks, source.names, source.converted)
    source = Arranged(source, planned.views)
    found = source.tokens()
    strings, ids = sorted_tokens(found, planned.n_row)
    config = planned.shape(len(strings))
    total = 4 * config.n_layer + 2 - config.tied + (config.n_position > 0)
    if calibrated:
        total += 4 * config.n_layer + 1
    done = 0
    parts_of: dict[str, Parts] = {}  # of the matrices, by their names in the model

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def counted(name: str, made: Linear, parts: Parts) -> Linear:
        parts_of[name] = parts
        count()
        return made

    embed, head = _ends(source, planned, config, ids, found.begin, counted)
    position = None
    if config.n_position:
        shape = config.n_position, config.dim
        position = counted(
            "position",
            linear(*shape, lambda a, b: source.take("model.position.weight", shape, slice(a, b))),
            [],
        )
    layers = tuple(_layer(source, config, i, counted) for i in range(config.n_layer))
    norm = _vector(source, "model.norm.weight", config.dim)
    norm_bias = _vector(source, "model.norm.bias", config.dim) if config.norm == "layer" else None
    options: dict[str, Any] = {"window": config.window, "sinks": config.sinks}
    if calibrated:
        options["calibration"] = calibrate.SAID
    full_card = {**source.card, "sha256": source.sha256(), "note": NOTE, "options": options, **card}
    model = TransformerModel(
        config,
        Vocabulary(strings),
        embed,
        layers,
        norm,
        head,
        planned.rotary,
        mixer,
        full_card,
        position,
        norm_bias,
    )
    if calibrated:
        model = calibrate.refined(model, parts_of, calibrate.sample(model), count)
    return Imported(model, found.tokenizer)


def sorted_tokens(found: Tokens, n_row: int) -> tuple[list[bytes], np.ndarray]:
    """The vocabulary in its order.

    Args:
        found: the source's.
        n_row: rows of its embedding; ids beyond them are left out.

    Returns:
        V byte strings, strictly increasing, all single bytes among them; and (V,) ids, -1 for a byte that
        no id spells. Of ids that spell the same the first is taken that does not merely stand for a byte.
    """
    ids: dict[bytes, int] = {}
    usual = (i for i in range(len(found.strings)) if i not in found.weak)
    for i in [*usual, *sorted(found.weak)]:
        if i < min(n_row, len(found.strings)) and found.strings[i]:
            ids.setdefault(found.strings[i], i)
    for byte in range(256):
        ids.setdefault(bytes([byte]), -1)
    strings = sorted(ids)
    return strings, np.array([ids[string] for string in strings], np.int64)


def _ends(
    source: Source,
    planned: Plan,
    config: TransformerConfig,
    ids: np.ndarray,
    begin: tuple[int, int],
    counted: Counted,
) -> tuple[Linear, Linear]:
    """The embedding, with the two rows that begin a stream, and the head."""
    if max(begin) >= planned.n_row:
        raise Corrupt(f"token {max(begin)} begins a text, the embedding has {planned.n_row} rows")
    shape = planned.n_row, config.dim

    def rows(own: str, name: str, wanted: np.ndarray) -> Linear:
        def part(low: int, high: int) -> np.ndarray:
            chosen = wanted[low:high]
            values = source.take(name, shape, np.maximum(chosen, 0))
            return np.where(chosen[:, None] >= 0, values, np.float32(0))

        return counted(own, linear(len(wanted), config.dim, part), [(len(wanted), part)])

    embed = rows("embed", "model.embed_tokens.weight", np.concatenate((ids, begin)))
    n_token = len(ids)
    # A byte that no token spells has the least logit there is: its row is 0, and its bias is -2^40.
    own = np.float32(0)
    if planned.head_bias and "lm_head.bias" in source.names:
        own = _vector(source, "lm_head.bias", planned.n_row)[np.maximum(ids, 0)]
    bias = np.where(ids >= 0, own, -LARGEST)
    if config.tied:
        return embed, Linear(embed.weight[:n_token], embed.scale[:n_token], bias)
    made = rows("head", "lm_head.weight", ids)
    return embed, Linear(made.weight, made.scale, bias)


def _layer(source: Source, config: TransformerConfig, i: int, counted: Counted) -> Layer:
    c = config
    inner = f"model.layers.{i}."
    queries, keys = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    attention = {"q_proj": queries, "k_proj": keys, "v_proj": keys}

    def stacked(matrix: str, parts: dict[str, int], k: int, biased: bool = False) -> Linear:
        names = [(f"{inner}{name}", n) for name, n in parts.items()]
        for name, _ in names:
            if not biased and f"{name}.bias" in source.names:
                values = source.take(f"{name}.bias", source.shape(f"{name}.bias"))
                if values.any():
                    raise Corrupt(f"tensor {name}.bias is a bias, which the family does not have")
        own: Parts = []
        for name, n in names:
            own.append(
                (n, lambda a, b, name=name, n=n: source.take(f"{name}.weight", (n, k), slice(a, b)))  # type: ignore[misc]
            )
        found = [linear(n, k, rows) for n, rows in own]
        bias = None
        if biased:
            bias = np.concatenate([_vector(source, f"{name}.bias", n) for name, n in names])
        return counted(
            f"layers.{i}.{matrix}",
            Linear(
                np.concatenate([part.weight for part in found]),
                np.concatenate([part.scale for part in found]),
                bias,
            ),
            own,
        )

    # The source's names of vectors.
    names = {
        "attention_norm": "input_layernorm.weight",
        "attention_norm_bias": "input_layernorm.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "post_attention_norm": "post_attention_norm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "mlp_norm_bias": "post_attention_layernorm.bias",
        "post_mlp_norm": "post_mlp_norm.weight",
    }
    sizes = vector_shapes(c)
    vectors = {
        name: _vector(source, inner + own, sizes[f"layers.{i}.{name}"])
        for name, own in names.items()
        if f"layers.{i}.{name}" in sizes
    }
    gates = {"mlp.gate_proj": c.mlp} if c.gated else {}
    return Layer(
        qkv=stacked("qkv", {f"self_attn.{name}": n for name, n in attention.items()}, c.dim, c.qkv_bias),
        out=stacked("out", {"self_attn.o_proj": c.dim}, queries, c.out_bias),
        gate_up=stacked("gate_up", {**gates, "mlp.up_proj": c.mlp}, c.dim, c.mlp_bias),
        down=stacked("down", {"mlp.down_proj": c.dim}, c.mlp, c.mlp_bias),
        **{"attention_norm": None, "mlp_norm": None, "q_norm": None, "k_norm": None, **vectors},
    )


def _vector(source: Source, name: str, n: int) -> np.ndarray:
    """A norm or a bias; what is smaller than 2^-60 is 0."""
    values = source.take(name, (n,))
    return np.where(np.abs(values) < SMALLEST, np.float32(0), values)
