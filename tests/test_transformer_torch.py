"""torch computes the integers of arithmetic 2, stepwise and in parallel, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from replaying import Launches, RecordedReplay
from transformer_models import SHAPES, random_model, random_tokens

from lmcodec.errors import ConfigError, Unsupported
from lmcodec.lm import interface, torch_device
from lmcodec.lm.decisions import frequencies
from lmcodec.lm.transformer import reference
from lmcodec.lm.transformer.executors import Torch
from lmcodec.lm.transformer.torch_backend import TorchState, TorchTransformer
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


# A step as one graph


def replayed(state: TorchState) -> RecordedReplay:
    """Lets the state's steps be replayed as a CUDA graph replays them."""
    kept = [state.at, state.position, state.codes, state.scale, state.recent, state.given]
    state.replay = RecordedReplay(kept)
    return state.replay


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_a_graph_of_its_buffers(shape: str) -> None:
    """The operations of the fourth step give all later ones: rolling windows, restarts, new streams."""
    model = random_model(**SHAPES[shape])
    tokens = random_tokens(model, 70, 3)
    network = TorchTransformer(model)
    state, expected_state = network.start(3), reference.start(model, 3)
    replay = replayed(state)
    for t, row in enumerate(tokens):
        if t in (29, 41):
            network.begin(state, t % 3)
            reference.begin(expected_state, t % 3)
        expected = reference.step(model, row, expected_state)
        assert (network.step(row, state).numpy() == expected).all(), t
    assert replay.captured
    assert replay.n_replay == len(tokens) - replay.WARM_UP


def test_steps_and_sequences_share_a_graphs_state() -> None:
    model = random_model(**SHAPES["gpt2"])
    tokens = random_tokens(model, 100, 2)
    network = TorchTransformer(model)
    state, expected_state = network.start(2), reference.start(model, 2)
    replayed(state)
    at = 0
    while at < len(tokens):
        n = (1, 1, 1, 1, 1, 13, 1, 5)[at % 8]
        part = tokens[at : at + n]
        expected = reference.sequence(model, part, expected_state)
        found = network.step(part[0], state)[None] if n == 1 else network.sequence(part, state)
        assert (found.numpy() == expected).all()
        at += n


def with_layers(shape: str, n_layer: int) -> dict[str, Any]:
    """The shape with another number of layers; one of them slides if any does."""
    options = SHAPES[shape] | {"n_layer": n_layer}
    if "sliding" in options:
        options["sliding"] = (0,)
    if "n_position" in options:
        options["no_rotary"] = tuple(range(n_layer))
    return options


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_starts_few_operations(shape: str) -> None:
    """Of every layer at most 285; written operation by operation it would be 390 and more."""
    n_launch = []
    for n_layer in (3, 4):
        network = TorchTransformer(random_model(**with_layers(shape, n_layer)))
        state = network.start(2)
        with torch.no_grad(), Launches() as launches:
            network.one_step(state)
        n_launch.append(launches.counts.total())
    each = n_launch[1] - n_launch[0]
    print(f"{shape}: {each} a layer, {n_launch[0] - 3 * each} beside")
    assert each <= 285
    assert n_launch[0] - 3 * each <= 160


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_needs_neither_data_nor_the_host(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that holds no data: no branch depends on it, no tensor comes from the host."""
    monkeypatch.setattr(torch_device, "find", torch.device)
    network = TorchTransformer(random_model(**SHAPES[shape]), "meta")
    state = network.start(2)
    with torch.no_grad():
        network.one_step(state)  # constants are there from the first call on
        with Launches() as launches:
            logits = network.one_step(state)
    assert logits.shape == (2, network.model.config.vocab_size)
    assert launches.devices == {"meta"}
    assert launches.counts["scalar_tensor"] == launches.counts["lift_fresh"] == launches.n_read_back == 0


# What becomes of a capture, with a device that has none or fails.


class FailingReplay(RecordedReplay):
    def _capture(self, function: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")


def test_where_a_capture_fails_steps_go_on(recwarn: pytest.WarningsRecorder) -> None:
    model = random_model()
    tokens = random_tokens(model, 20, 2)
    network = TorchTransformer(model)
    state = network.start(2)
    state.replay = FailingReplay([])
    expected = reference.sequence(model, tokens, reference.start(model, 2))
    found = [network.step(row, state).numpy() for row in tokens]
    assert (np.stack(found) == expected).all()
    assert [str(w.message) for w in recwarn] == [
        "cpu captures no graph of a step, which takes longer without: RuntimeError: operation not permitted "
        "when stream is capturing"
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_captures_steps(shape: str, recwarn: pytest.WarningsRecorder) -> None:
    model = random_model(**SHAPES[shape])
    tokens = random_tokens(model, 70, 3)
    expected = reference.sequence(model, tokens, reference.start(model, 3))
    for capture in (True, False):
        network = TorchTransformer(model, "cuda", capture=capture)
        state = network.start(3)
        found = [network.step(row, state).cpu().numpy() for row in tokens]
        assert (np.stack(found) == expected).all()
        assert state.replay.captured == capture
    assert not recwarn.list
