"""The mean of several exports' weights: runs that began from the same weights often do better together.

Averaging along and between runs of one beginning: Izmailov et al., "Averaging Weights Leads to Wider Optima
and Better Generalization" (2018); Wortsman et al., "Model soups" (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmcodec.errors import ConfigError
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import checkpoint
from lmcodec.train.exports import load_export

# What exports must agree in, apart from their tensors' names and shapes.
_SAME = ("model", "vocab_id", "rounded_activations", "weight_levels", "weight_step", "table_step")


def average(
    folders: Sequence[Path], out: Path, vocabulary: Vocabulary, shares: Sequence[float] | None = None
) -> None:
    """Write the mean of the exports in `folders` to the folder `out`, as an export.

    It says of itself what the last of them does, but for the curve, which is not its own.

    Args:
      folders: two or more, of one shape and vocabulary.
      shares: of each, positive; they need not sum to 1. By default equal.

    Raises:
      ConfigError: fewer than two, another number of shares, a share that is not positive, exports that
        differ in more than their weights, or a model file, which holds integers.
      ModelNotFound, Corrupt: as `load_export`.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} export to average, expected two or more")
    if shares is not None and len(shares) != len(folders):
        raise ConfigError(f"{len(shares)} shares of {len(folders)} exports, expected one each or none")
    parts = list(shares) if shares is not None else [1.0] * len(folders)
    for part in parts:
        if not 0 < part < 1e9:
            raise ConfigError(f"share {part}, expected a positive number")
    documents = []
    for folder in folders:
        if folder.is_file():
            raise ConfigError(f"{folder}: a model file, whose weights are integers; name a run's export")
        documents.append(load_export(folder, vocabulary)[1])
    for key in _SAME:
        for folder, document in zip(folders, documents, strict=True):
            if document.get(key) != documents[0].get(key):
                raise ConfigError(
                    f"{folder}: {key} is {document.get(key)}, of {folders[0]} {documents[0].get(key)}"
                )
    total = sum(parts)
    mean: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for folder, part in zip(folders, parts, strict=True):
        for name, tensor in checkpoint.load(folder)[0].items():
            share = tensor.double() * (part / total)
            mean[name] = mean[name] + share if name in mean else share
            dtypes[name] = tensor.dtype
    document = {**documents[-1], "curve_last": {}, "averaged": parts}
    checkpoint.save(out, {name: tensor.to(dtypes[name]) for name, tensor in mean.items()}, document)
