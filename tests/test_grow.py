"""Growing a network: the larger one computes what the smaller one did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from lmcodec.errors import ConfigError
from lmcodec.train.grow import grow
from lmcodec.train.loss import cross_entropy
from lmcodec.train.net import Net
from lmcodec.train.net_config import NetConfig

SMALL = NetConfig(vocab_size=300, dim=32, n_layer=2, recurrent=24, mlp=40)
LARGER: dict[str, dict[str, Any]] = {
    "dim": {"dim": 56},
    "recurrent": {"recurrent": 40},
    "mlp": {"mlp": 64},
    "layers": {"n_layer": 4},
    "all": {"dim": 48, "recurrent": 32, "mlp": 50, "n_layer": 3},
}


def trained(config: NetConfig) -> Net:
    """A network whose every weight differs from its first value."""
    net = Net(config, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return net


def logits(net: Net, n_position: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, 300, (n_position, 3), generator=generator, dtype=torch.int32)
    begins = torch.zeros(n_position, 3, dtype=torch.bool)
    begins[0] = True
    hidden, _ = net(tokens, begins, net.start(3))
    return net.logits(hidden)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("larger", LARGER.values(), ids=LARGER)
def test_function_is_kept(larger: dict[str, Any], shift: bool) -> None:
    source = trained(replace(SMALL, shift=shift))
    grown = grow(source, replace(source.config, **larger), seed=1)
    assert grown.config != source.config
    assert torch.allclose(logits(grown), logits(source), atol=2e-4)


def test_an_mlp_can_be_added() -> None:
    source = trained(replace(SMALL, mlp=0))
    assert torch.allclose(logits(grow(source, SMALL, seed=1)), logits(source), atol=2e-4)


def test_every_new_weight_learns() -> None:
    net = grow(trained(SMALL), replace(SMALL, **LARGER["all"]), seed=1)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(3):
        optimiser.zero_grad()
        tokens = torch.arange(240, dtype=torch.int32).reshape(80, 3)
        hidden, _ = net(tokens, torch.zeros(80, 3, dtype=torch.bool), net.start(3))
        loss, _ = cross_entropy(hidden.reshape(-1, 48), net.head(), torch.arange(240) % 300)
        loss.backward()
        optimiser.step()
    old = {"embed": 32, "layers.0.w_in": 32, "layers.0.w_out": 24, "layers.2.w_out": 0, "layers.2.w_down": 0}
    for name, n_old in (old | {"w_head": 32}).items():
        moved = net.get_parameter(name)[:, n_old:].ne(before[name][:, n_old:])
        assert moved.any(dim=0).all(), name


SMALLER: list[dict[str, Any]] = [
    {"dim": 16},
    {"n_layer": 1},
    {"mlp": 0},
    {"shift": True},
    {"vocab_size": 301},
]


@pytest.mark.parametrize("change", SMALLER)
def test_what_cannot_grow_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"model.{next(iter(change))}"):
        grow(trained(SMALL), replace(SMALL, **change), seed=1)
