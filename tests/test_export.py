"""Integer models from trained networks: the same weights, and nearly the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from lmcodec.errors import ConfigError, ModelNotFound, Unsupported
from lmcodec.lm import decisions
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import reference
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.export import LOGIT_STEP, integer_model
from lmcodec.train.exports import load_export
from lmcodec.train.net import Net, WeightRounding, rounded
from lmcodec.train.net_config import NetConfig

VOCABULARY = Vocabulary(sorted([bytes([b]) for b in range(256)] + [b"%d" % i for i in range(10, 54)]))
CONFIG = NetConfig(vocab_size=300, dim=40, n_layer=3, recurrent=32, mlp=56)
ROUNDINGS = {
    "7 bits": WeightRounding(63),
    "4 bits": WeightRounding(7),
    "step": WeightRounding(63, 0.3, 0.5),
}


def make_net(rounding: WeightRounding, config: NetConfig = CONFIG) -> Net:
    net = Net(config, seed=2)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            elif name.endswith(("w_out", "w_down", "w_head")):
                p.mul_(4)
    net.quantise(True, rounding)
    return net.eval()


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_weights_are_those_of_the_forward_pass(rounding: WeightRounding) -> None:
    net = make_net(rounding)
    model = integer_model(net, VOCABULARY)
    names = {"embed": "embed", "head": "w_head"} | {
        f"layers.{i}.{a}": f"layers.{i}.w_{b}"
        for i in range(3)
        for a, b in (("in", "in"), ("out", "out"), ("up", "up"), ("down", "down"))
    }
    for name, linear in model.tensors().items():
        w = net.get_parameter(names[name]).detach()
        scale = rounding.scale(w, names[name])
        integers = rounded(w, names[name], rounding, torch.float32).detach() / scale
        assert torch.equal(integers.round(), torch.from_numpy(linear.weight).float()), name


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_logits_and_states_are_those_of_the_forward_pass(rounding: WeightRounding) -> None:
    """Up to the roundings that only the integer model makes, of the residual stream and the state.

    They move one 8-bit value in a thousand by one step; what that moves in turn is about as large, after some
    layers, as the error of rounding to 8 bits in the first place: 2 % of a value's spread, without direction.
    """
    net = make_net(rounding)
    model = integer_model(net, VOCABULARY)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 300, (30, 4)).astype(np.int32)
    tokens[0] = model.config.bos
    begins = torch.zeros(30, 4, dtype=torch.bool)
    begins[0] = True
    with torch.no_grad():
        hidden, after = net(torch.from_numpy(tokens), begins, net.start(4))
        expected = net.logits(hidden).numpy() / LOGIT_STEP
    state = reference.start(model, np.zeros(4, bool))
    found = reference.sequence(model, tokens, state)
    assert expected.std() > 100
    assert np.abs(found - expected).mean() < 0.05 * expected.std()
    h = after["h1"].numpy() * 2.0**17
    assert np.abs(state.h[1] - h).mean() < 0.05 * h.std()
    # The cross-entropy that counts: bits of the tokens that follow.
    target = tokens[1:, :, None].astype(np.intp)
    p = np.exp2(expected[:-1] / 256)
    p /= p.sum(axis=-1, keepdims=True)
    freq = decisions.frequencies(found[:-1]).astype(np.float64)
    freq /= freq.sum(axis=-1, keepdims=True)
    bits = [-np.log2(np.take_along_axis(q, target, -1)).sum() for q in (p, freq)]
    assert abs(bits[1] / bits[0] - 1) < 0.005


def test_one_bias_far_above_the_weights_is_kept() -> None:
    net = make_net(WeightRounding(63))
    with torch.no_grad():
        layer = net.layers[0]
        layer.w_up[3] *= 1e-7
        layer.b_up[3] = 2.0
    model = integer_model(net, VOCABULARY)
    up = model.layers[0].up
    assert up is not None
    assert up.bias is not None
    constant = int(up.bias[3]) * int(up.multiplier[3]) / 2**up.shift
    assert abs(constant - 2.0 * 32) < 0.5


def test_what_has_no_integer_definition_is_refused() -> None:
    for part in ({"shift": True}, {"bigram": 64}):
        net = make_net(WeightRounding(63), replace(CONFIG, **part))
        with pytest.raises(Unsupported, match=f"model.{next(iter(part))} has no integer definition"):
            integer_model(net, VOCABULARY)
    with pytest.raises(Unsupported, match=r"model.attention has no integer definition"):
        replace(CONFIG, attention=64, dim=64).exported()
    net = make_net(WeightRounding(63))
    net.quantise(False, WeightRounding(63))
    with pytest.raises(ConfigError, match="without rounding"):
        integer_model(net, VOCABULARY)
    net.quantise(True, WeightRounding())
    with pytest.raises(ConfigError, match="without rounding"):
        integer_model(net, VOCABULARY)


def test_a_scale_out_of_range_is_refused() -> None:
    net = make_net(WeightRounding(63))
    with torch.no_grad():
        net.w_head.mul_(1e4)
    with pytest.raises(ConfigError, match=r"w_head.*too large"):
        integer_model(net, VOCABULARY)


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_training_goes_on_from_an_integer_model(rounding: WeightRounding, tmp_path: Path) -> None:
    net = make_net(rounding)
    model = integer_model(net, VOCABULARY, {"step": 7})
    path = tmp_path / "a.lmm"
    path.write_bytes(recurrent_file.pack(model))
    restored, document = load_export(path, VOCABULARY)
    assert document["step"] == 7
    for name, p in net.named_parameters():
        expected = rounded(p.detach(), name, rounding, torch.float32) if p.dim() == 2 else p.detach()
        # Multipliers have 16 bits, less where a row's scale is smaller; a bias is a multiple of a sum's unit.
        assert torch.allclose(
            restored.get_parameter(name), expected, rtol=0.01, atol=1e-4 if p.dim() == 2 else 1e-2
        ), name
    with pytest.raises(ModelNotFound, match="over vocabulary"):
        load_export(path, Vocabulary.load())
