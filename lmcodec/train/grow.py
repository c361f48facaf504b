"""A larger network that computes what a smaller one does: the start of a run from a smaller export.

Widening by zeros and deepening by layers that add nothing (Chen et al., Net2Net, ICLR 2016; Chen et al.,
bert2BERT, ACL 2022, for networks with a residual stream). Every path that reaches the residual stream or the
logits from a new channel begins with zeros on one side and random weights on the other, so that the function
is the old one, yet every new weight gets a gradient within two steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmcodec.errors import ConfigError
from lmcodec.train.net import Layer, Net
from lmcodec.train.net_config import NetConfig

NEW_WEIGHT_SHARE = 0.5  # random weights of new inputs, as a share of a fresh network's


def grow(source: Net, config: NetConfig, seed: int) -> Net:
    """A network of the shape `config` with the function of `source`.

    Args:
        source: the smaller network; its vocabulary's size, token shift, attention and bigrams must be those
            of `config`.
        config: no dimension smaller than `source`'s.
        seed: of the weights of new channels.

    Returns:
        a network on the CPU; its logits are those of `source` up to rounding.

    Raises:
        ConfigError: if a dimension would shrink, or a part differs.
    """
    old = source.config
    for name in ("vocab_size", "shift", "attention", "bigram"):
        if getattr(old, name) != getattr(config, name):
            raise ConfigError(
                f"cannot grow model.{name} from {getattr(old, name)} to {getattr(config, name)}: it must stay"
            )
    for name in ("dim", "n_layer", "recurrent", "mlp"):
        if getattr(old, name) > getattr(config, name):
            raise ConfigError(
                f"cannot shrink model.{name} from {getattr(old, name)} to {getattr(config, name)}"
            )
    net = Net(config, seed)
    with torch.no_grad():
        # RMS over more channels, the new ones 0, makes the old ones larger by the root of the widths' ratio.
        scale = (old.dim / config.dim) ** 0.5
        _widen_table(net.embed, source.embed)
        if config.bigram:
            _widen_table(net.bigram, source.bigram)
        _widen_inputs(net.w_head, source.w_head, scale)
        net.b_head.copy_(source.b_head)
        for i, layer in enumerate(net.layers):
            assert isinstance(layer, Layer)
            if i < old.n_layer:
                smaller = source.layers[i]
                assert isinstance(smaller, Layer)
                _grow_layer(layer, smaller, scale)
            else:
                layer.w_out.zero_()
                if config.mlp:
                    layer.w_down.zero_()
    net.eval()
    return net


def _widen_table(new: Tensor, old: Tensor) -> None:
    """Rows (N, D) of a table: new channels are 0."""
    new.zero_()
    new[:, : old.shape[1]] = old


def _widen_inputs(new: Tensor, old: Tensor, scale: float) -> None:
    """Matrix (N, K) on the residual stream: new rows and columns are random, the old ones scaled."""
    new.mul_(NEW_WEIGHT_SHARE)
    new[: old.shape[0], : old.shape[1]] = old * scale


def _widen_outputs(new: Tensor, old: Tensor) -> None:
    """Matrix (D, K) into the residual stream: new rows and columns are 0."""
    new.zero_()
    new[: old.shape[0], : old.shape[1]] = old


def _grow_layer(new: Layer, old: Layer, scale: float) -> None:
    n_part = 3  # z, v, o lie one after another in the rows of w_in
    for part_new, part_old in zip(new.w_in.chunk(n_part), old.w_in.chunk(n_part), strict=True):
        _widen_inputs(part_new, part_old, scale)
    for bias_new, bias_old in zip(new.b_in.chunk(n_part), old.b_in.chunk(n_part), strict=True):
        bias_new[: len(bias_old)] = bias_old
    _widen_outputs(new.w_out, old.w_out)
    if hasattr(old, "w_up"):
        _widen_inputs(new.w_up, old.w_up, scale)
        new.b_up[: len(old.b_up)] = old.b_up
        _widen_outputs(new.w_down, old.w_down)
    elif hasattr(new, "w_up"):
        new.w_down.zero_()
    for name in ("mix_in", "mix_up"):
        if hasattr(old, name):
            getattr(new, name)[: len(getattr(old, name))] = getattr(old, name)
