"""Weights-only exports: what a run leaves behind for others to begin from, and how they are read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmcodec.errors import ConfigError, Corrupt, ModelNotFound
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint
from lmcodec.train.export import float_network
from lmcodec.train.net import WEIGHT_MAX, Net, WeightRounding
from lmcodec.train.net_config import NetConfig


def save_export(
    folder: Path,
    net: Net,
    vocabulary: Vocabulary,
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the weights of `net` alone, rounded to `dtype`, replacing what is in `folder` once all is there.

    Args:
        folder: of the export, in pieces as a checkpoint has them.
        net: trained, with the rounding that it was trained with.
        vocabulary: what it predicts.
        about: what the export says of itself besides its shape and rounding: name, step, trained_nbytes, ...
        dtype: of the tensors.
    """
    document = {
        "model": dataclasses.asdict(net.config),
        "vocab_id": vocabulary.vocab_id,
        "rounded_activations": net.quantise_activations,
        "weight_levels": net.rounding.levels,
        "weight_step": net.rounding.step,
        "table_step": net.rounding.table_step,
        **about,
    }
    checkpoint.save(folder, {n: p.to(dtype) for n, p in net.named_parameters()}, document)


def load_export(folder: Path, vocabulary: Vocabulary) -> tuple[Net, dict[str, Any]]:
    """The network of a weights-only export or of a model file, and what it says of itself.

    Raises:
        ModelNotFound: there is none, or it was trained over another vocabulary.
        ConfigError: it is a run's checkpoint.
        Corrupt: its tensors do not fit its shape.
    """
    if folder.is_file():
        return _load_integer(folder, vocabulary)
    tensors, document = checkpoint.load(folder)
    if "rounded_activations" not in document:
        raise ConfigError(f"{folder}: the state of a run, not its weights; name {folder.parent / 'export'}")
    if document.get("vocab_id") != vocabulary.vocab_id:
        raise ModelNotFound(
            f"{folder}: export over vocabulary {document.get('vocab_id')}, expected {vocabulary.vocab_id}"
        )
    try:
        config = NetConfig(**document["model"])
        with torch.device("meta"):  # shapes first: a hostile one must not cost memory
            expected = {n: p.shape for n, p in Net(config, allocate=False).named_parameters()}
        if {n: t.shape for n, t in tensors.items()} != expected:
            raise ValueError("names or shapes of its tensors differ")
        net = Net(config)
        net.load_state_dict({n: t.float() for n, t in tensors.items()})
        net.quantise(bool(document["rounded_activations"]), _rounding_of(document))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Corrupt(f"{folder}: export does not fit its shape: {str(error).splitlines()[0]}") from None
    net.eval()
    return net, document


def _load_integer(path: Path, vocabulary: Vocabulary) -> tuple[Net, dict[str, Any]]:
    model = recurrent_file.load(path).model
    if model.vocabulary != vocabulary:
        raise ModelNotFound(
            f"{path}: model over vocabulary {model.vocabulary.vocab_id}, expected {vocabulary.vocab_id}"
        )
    document = {"name": path.stem, "step": 0, "trained_nbytes": 0, **model.card}
    return float_network(model), document


def _rounding_of(document: dict[str, Any]) -> WeightRounding:
    levels = int(document["weight_levels"])
    step, table_step = float(document.get("weight_step", 0)), float(document.get("table_step", 0))
    if not (0 <= levels <= WEIGHT_MAX and 0 <= step < 100 and 0 <= table_step < 100):
        raise ValueError(f"rounding by {levels} levels and steps of {step} and {table_step}")
    return WeightRounding(levels, step, table_step)
