"""The experiment with state space models: what its figures rest on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("transformers")

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "state_space.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("state_space", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["state_space"] = module
    spec.loader.exec_module(module)
    return module


state_space = _load()
f32 = np.float32


@pytest.mark.filterwarnings("ignore")  # of transformers and torch
@pytest.mark.parametrize("n_group", [1, 2])
def test_it_computes_what_transformers_does(n_group: int) -> None:
    network = state_space.random_network(300, 32, 2, 16, 16, n_group, seed=3)
    model = state_space.imported(network)
    tokens = np.random.default_rng(1).integers(0, 300, (2, 60))
    expected = state_space.floats(network, tokens, part=25)
    for reading in state_space.READINGS:
        kl = state_space.divergence(state_space.run(model, tokens, reading), expected)
        assert kl.mean() < 0.02
    # A wrong reading of the model is far off: rates or skips left out.
    for name in ("rate", "skip"):
        layers = [
            state_space.Layer(**{**vars(layer), name: getattr(layer, name) * f32(0.2)})
            for layer in model.layers
        ]
        other = state_space.StateSpaceModel(**{**vars(model), "layers": tuple(layers)})
        assert state_space.divergence(state_space.run(other, tokens), expected).mean() > 0.05


@pytest.mark.filterwarnings("ignore")
def test_streams_do_not_see_one_another() -> None:
    model = state_space.imported(state_space.random_network(300, 32, 2, 16, 16, 1, seed=4))
    tokens = np.random.default_rng(2).integers(0, 300, (3, 30))
    together = state_space.run(model, tokens)
    assert (state_space.run(model, tokens[1:2])[0] == together[1]).all()


def test_softplus() -> None:
    x = np.concatenate((np.linspace(-70, 70, 20_001), [0, 1e-9, -1e-9])).astype(f32)
    right = np.logaddexp(0, x.astype(np.float64))
    assert (np.abs(state_space.softplus(x) - right) <= 2e-7 * (1 + np.abs(x)) * right).all()
    assert state_space.softplus(np.array([-(2.0**40), 2.0**40], f32)).tolist() == [
        pytest.approx(0, abs=1e-34),
        2.0**40,
    ]


def test_sums_by_halves_have_one_order() -> None:
    x = np.array([1, 2.0**-24, -1, 2.0**-24], f32)  # (1 + -1) + (2^-24 + 2^-24)
    assert state_space.halved(x) == f32(2.0**-23)
