"""From a trained network to the integer model of its quantisation-aware forward pass."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcodec.errors import ConfigError
from lmcodec.lm.decisions import LOGIT_BITS
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import model as integer
from lmcodec.lm.recurrent.reference import NORM_EPS
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import net as floating
from lmcodec.train.net import Layer, Net
from lmcodec.train.net_config import NetConfig

STREAM_STEP = 2.0**-12
LOGIT_STEP = math.log(2) / (1 << LOGIT_BITS)  # nats
HIDDEN_OUTPUT_STEP = 2.0**-3  # of relu²

assert round(floating.NORM_EPS / STREAM_STEP**2) == NORM_EPS


def integer_model(
    net: Net, vocabulary: Vocabulary, card: dict[str, Any] | None = None
) -> integer.IntegerModel:
    """The integer model of a network that was trained with rounding.

    Args:
        net: trained with rounded activations; its `rounding` chooses the integer weights.
        vocabulary: what it predicts.
        card: what the model says of itself.

    Raises:
        Unsupported: the network has a part without an integer definition.
        ConfigError: it was trained without rounding, or a scale is out of the format's range.
    """
    config = net.config.exported()
    if not net.quantise_activations or not net.rounding.levels:
        raise ConfigError(
            "the network was trained without rounding; train its last part with quantise.*_from"
        )
    steps, layers = _steps(net.config.recurrent), []
    for i, module in enumerate(net.layers):
        assert isinstance(module, Layer)
        mlp = net.config.mlp > 0
        layers.append(
            integer.Layer(
                into=_linear(net, f"layers.{i}.w_in", *steps["in"], module.b_in),
                out=_linear(net, f"layers.{i}.w_out", *steps["out"]),
                up=_linear(net, f"layers.{i}.w_up", *steps["up"], module.b_up) if mlp else None,
                down=_linear(net, f"layers.{i}.w_down", *steps["down"]) if mlp else None,
            )
        )
    return integer.IntegerModel(
        config=config,
        vocabulary=vocabulary,
        embed=_linear(net, "embed", *steps["embed"], least_shift=0),
        layers=tuple(layers),
        head=_linear(net, "w_head", *steps["head"], net.b_head),
        start=np.zeros((2, net.config.n_layer, net.config.recurrent), np.int32),
        card=card or {},
    )


def pack_export(
    folder: Path, vocab: Path | None = None, card: dict[str, Any] | None = None, mixer: bytes = b""
) -> bytes:
    """The model file of a run.

    Args:
        folder: of the run or of its export.
        vocab: vocabulary file; None for the shipped one.
        card: what the model says of itself, beside what the export says.
        mixer: profiles of the context models beside it.

    Raises:
        LmcodecError: the export is damaged, or as `integer_model` and `lm.recurrent.file.pack`.
    """
    from lmcodec.train.exports import load_export

    if (folder / "export" / "manifest.json").is_file():
        folder = folder / "export"
    vocabulary = Vocabulary.load(vocab)
    net, document = load_export(folder, vocabulary)
    known = {key: document[key] for key in ("name", "step", "trained_nbytes") if key in document}
    model = integer_model(net, vocabulary, known | (card or {}))
    return recurrent_file.pack(replace(model, mixer=mixer))


def float_network(model: integer.IntegerModel) -> Net:
    """The network that `model` is the integer model of, its weights rounded: for training to go on from."""
    net = Net(NetConfig(**asdict(model.config)), allocate=False)
    steps = _steps(model.config.recurrent)
    with torch.no_grad():
        for name, linear in model.tensors().items():
            layer, _, part = name.rpartition(".")
            step_in, step_out = steps[part]
            prefix = f"{layer}." if layer else ""
            target = net.get_parameter(part if part == "embed" else f"{prefix}w_{part}")
            factor = torch.from_numpy(linear.multiplier.astype(np.float64)) / 2.0**linear.shift
            scale = (factor * step_out / step_in).unsqueeze(1)  # (N, 1)
            target.copy_(torch.from_numpy(linear.weight).double() * scale)
            if linear.bias is not None:
                bias = torch.from_numpy(linear.bias).double() * scale.squeeze(1) * step_in
                net.get_parameter(f"{prefix}b_{part}").copy_(bias)
    net.quantise(True, floating.WeightRounding(integer.WEIGHT_MAX))
    net.eval()
    return net


def _steps(recurrent: int) -> dict[str, tuple[float, float | Tensor]]:
    """Steps of what enters each kind of product and of what leaves it."""
    gates = torch.full((3 * recurrent,), floating.GATE_STEP, dtype=torch.float64)
    gates[recurrent : 2 * recurrent] = floating.INPUT_STEP
    return {
        "embed": (1.0, STREAM_STEP),
        "in": (floating.NORM_STEP, gates),
        "out": (floating.OUTPUT_STEP, STREAM_STEP),
        "up": (floating.NORM_STEP, floating.HIDDEN_STEP),
        "down": (HIDDEN_OUTPUT_STEP, STREAM_STEP),
        "head": (floating.NORM_STEP, LOGIT_STEP),
    }


def _linear(
    net: Net,
    name: str,
    step_in: float,
    step_out: float | Tensor,
    bias: Tensor | None = None,
    least_shift: int = integer.SHIFT_MIN,
) -> integer.Linear:
    """A tensor of the network with its integer weights, and what brings its sums to the next step."""
    w = net.get_parameter(name).detach()
    scales = net.rounding.scale(w, name)
    if bias is not None:  # a bias must fit, too: next to one so large the row's weights hardly count
        least = bias.detach().abs() / (step_in * integer.BIAS_MAX)
        scales = torch.maximum(scales, least.unsqueeze(1))
    weight = (w / scales).round_()
    scale = scales.double().flatten()  # (N,)
    factor = (scale * step_in / torch.as_tensor(step_out, dtype=torch.float64)).cpu().numpy()
    # The largest multiplier takes all 16 bits, if the shift allows it.
    shift = min(15 - math.frexp(float(factor.max()))[1] + 1, integer.SHIFT_MAX)
    while np.rint(factor.max() * 2.0**shift) > integer.MULTIPLIER_MAX:
        shift -= 1
    if shift < least_shift:
        raise ConfigError(f"{name}: weights of scale {float(scale.max()):.3g} are too large for the format")
    sums = None
    if bias is not None:
        sums = np.rint(bias.detach().double().cpu().numpy() / (scale.cpu().numpy() * step_in))
        sums = np.clip(sums, -integer.BIAS_MAX, integer.BIAS_MAX).astype(np.int32)
    return integer.Linear(
        weight.to(torch.int8).cpu().numpy(), sums, np.rint(factor * 2.0**shift).astype(np.uint16), shift
    )
