"""torch computes the integers of arithmetic 2, stepwise and in parallel, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from transformer_models import SHAPES, random_model, random_tokens

from lmcodec.errors import ConfigError, Unsupported
from lmcodec.lm import interface
from lmcodec.lm.decisions import frequencies
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.executors import Torch
from lmcodec.lm.transformer.torch_backend import TorchTransformer
from lmcodec.testing import check_model

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another on a busy machine take longer than the work; one test has more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@devices
@pytest.mark.parametrize("shape", SHAPES)
def test_the_integers_of_the_definition(shape: str, device: str) -> None:
    model = random_model(**SHAPES[shape])
    tokens = random_tokens(model, 50, 3)
    expected = reference.sequence(model, tokens, reference.start(model, 3))
    network = TorchTransformer(model, device)
    network.self_test(reference.compute_known_answer(model))
    logits = network.sequence(tokens, network.start(3))
    assert (logits.cpu().numpy() == expected).all()
    assert (network.frequencies(logits).cpu().numpy() == frequencies(expected)).all()
    state = network.start(3)
    steps = [network.step(row, state).cpu().numpy() for row in tokens]
    assert (np.stack(steps) == expected).all()
    network.begin(state, 1)
    again = network.sequence(tokens, state).cpu().numpy()
    assert (again[:, 1] == expected[:, 1]).all()


@devices
def test_streams_that_begin_at_other_times(device: str) -> None:
    model = random_model()
    tokens = random_tokens(model, 60, 2)
    network = TorchTransformer(model, device)
    state, expected_state = network.start(2), reference.start(model, 2)
    for t, row in enumerate(tokens):
        if t % 23 == 22:
            network.begin(state, t % 2)
            reference.begin(expected_state, t % 2)
        expected = reference.step(model, row, expected_state)
        assert (network.step(row, state).cpu().numpy() == expected).all()


def test_settings_of_the_caller() -> None:
    """Threads, subnormal numbers, fewer bits in products: none changes an integer."""
    model = random_model(**SHAPES["all options"])
    tokens = random_tokens(model, 30, 2)
    expected = reference.sequence(model, tokens, reference.start(model, 2))
    network = TorchTransformer(model)
    n_thread, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(3)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network.sequence(tokens, network.start(2))
    finally:
        torch.set_num_threads(n_thread)
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision(precision)
    assert (logits.numpy() == expected).all()


def test_another_answer_is_refused() -> None:
    with pytest.raises(Unsupported, match="self-test"):
        TorchTransformer(random_model()).self_test("0" * 64)


def test_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="meta"):
        TorchTransformer(random_model(), "meta")


@devices
def test_sums_are_those_of_its_frequencies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interface.SUM_ROWS, device, 40)
    model = random_model()
    check_model(Torch(model, device, reference.compute_known_answer(model)), frames=False)
