"""torch computes the integers of the definition, for any batch, thread count, split and caller's setting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from integer_models import (
    GOLDEN,
    alternate_cuts,
    golden_expected,
    golden_hashes,
    golden_input,
    random_model,
    random_tokens,
)
from replaying import Launches, RecordedReplay

import lmcodec
from lmcodec.errors import ConfigError, Unsupported
from lmcodec.lm import decisions, interface, store, torch_device
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import reference, torch_backend
from lmcodec.lm.recurrent.executors import Torch
from lmcodec.lm.recurrent.model import IntegerModel, Linear
from lmcodec.lm.recurrent.shape import MAX_FAN_IN
from lmcodec.lm.recurrent.torch_backend import TorchNetwork, TorchState, _TorchLinear
from lmcodec.testing import check_model

# Device and kind of product.
BACKENDS = [
    ("cpu", "float32"),
    ("cpu", "int8"),
    *(
        pytest.param(
            "cuda",
            products,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        )
        for products in ("float32", "int8")
    ),
]
backends = pytest.mark.parametrize(("device", "products"), BACKENDS)

SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "odd": {"dim": 37, "n_layer": 3, "recurrent": 19, "mlp": 53, "vocab_size": 301},
    "least": {"dim": 16, "n_layer": 1, "recurrent": 16, "mlp": 1, "vocab_size": 256},
    "no-mlp": {"dim": 29, "n_layer": 2, "recurrent": 41, "mlp": 0},
    "extreme": {"extreme": True},
    "extreme-odd": {"dim": 131, "n_layer": 3, "recurrent": 67, "mlp": 35, "extreme": True},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_same(network: TorchNetwork, tokens: np.ndarray, cut: np.ndarray) -> None:
    """Law: logits, frequencies and states of a run are the definition's."""
    expected = reference.start(network.model, cut)
    logits = reference.sequence(network.model, tokens, expected)
    state = network.start(cut)
    found = network.sequence(tokens, state)
    freq = network.frequencies(found)
    assert found.dtype == freq.dtype == state.h.dtype == torch.int32
    assert found.device == freq.device == state.h.device
    assert (found.cpu().numpy() == logits).all()
    assert (freq.cpu().numpy() == decisions.frequencies(logits)).all()
    assert (state.h.cpu().numpy() == expected.h).all()


@shapes
@backends
def test_is_the_definition(device: str, products: str, shape: str) -> None:
    model = random_model(20, **SHAPES[shape])
    network = TorchNetwork(model, device, products)
    assert network.products == products
    for n_position, n_stream in ((1, 1), (9, 1), (3, 7), (1, 64), (2, 33)):
        check_same(network, random_tokens(n_stream, model, n_position, n_stream), alternate_cuts(n_stream))


def frozen(tokens: np.ndarray) -> np.ndarray:
    return np.frombuffer(tokens.tobytes(), tokens.dtype).reshape(tokens.shape)


@backends
def test_any_split_is_the_sequence(device: str, products: str) -> None:
    model = random_model(21)
    network = TorchNetwork(model, device, products)
    tokens, cut = random_tokens(22, model, 12, 7), alternate_cuts(7)
    state = network.start(cut)
    logits = network.sequence(tokens, state)
    stepped = network.start(cut)
    assert all(torch.equal(network.step(row, stepped), logits[t]) for t, row in enumerate(tokens))
    assert torch.equal(stepped.h, state.h)
    # Parts of uneven length; tokens as a vocabulary gives them, read-only, and as a tensor.
    split = network.start(cut)
    parts = np.split(tokens, [1, 4, 5])
    kinds: list[Callable[[np.ndarray], Any]] = [np.uint16, torch.from_numpy, frozen, torch.tensor]
    found = [network.sequence(kind(part), split) for kind, part in zip(kinds, parts, strict=True)]
    assert torch.equal(torch.cat(found), logits)
    assert torch.equal(split.h, state.h)
    # Streams do not see one another.
    alone = network.start(cut[[5]])
    assert torch.equal(network.sequence(tokens[:, [5]], alone), logits[:, [5]])


def test_a_copied_state_stays() -> None:
    network = TorchNetwork(random_model(23))
    state = network.start(np.array([True, False]))
    assert torch.equal(state.h, torch.from_numpy(reference.start(network.model, np.array([True, False])).h))
    copy, same = state.copy(), TorchState(state.h)
    before = state.h.clone()
    assert copy.h.data_ptr() != state.h.data_ptr()
    network.step(np.array([1, 2]), state)
    assert torch.equal(copy.h, before)
    assert torch.equal(same.h, before)
    assert not torch.equal(state.h, before)


@backends
@pytest.mark.parametrize("k", [1, 7, 8, MAX_FAN_IN])
@pytest.mark.parametrize("n_row", [1, 16, 17, 40])
def test_products_at_the_extremes(device: str, products: str, n_row: int, k: int) -> None:
    """Sums that reach 2^24, in every alignment of an int8 product's padding."""
    rng = np.random.default_rng(k * 100 + n_row)
    for n in (1, 8, 13):
        weight = rng.choice(np.array([-63, 63], np.int8), (n, k))
        weight[0] = 63
        bias = rng.choice(np.array([-(1 << 24), (1 << 24) - 1], np.int32), n)
        multiplier = rng.integers(65_000, 65_536, n).astype(np.uint16)
        u = rng.choice(np.array([-127, 127]), (n_row, k))
        u[0], u[-1] = 127, -127
        for shift, b in ((12, bias), (13, None), (40, bias)):
            linear = Linear(weight, b, multiplier, shift)
            found = _TorchLinear(linear, torch.device(device), products)(torch.tensor(u, device=device))
            assert (found.cpu().numpy() == reference.product(u, linear)).all()


@pytest.mark.parametrize("n_thread", [1, 2])
def test_thread_counts(n_thread: int) -> None:
    model = random_model(24, dim=256, recurrent=256, mlp=512, n_layer=1, vocab_size=1024)
    torch.set_num_threads(n_thread)
    assert torch.get_num_threads() == n_thread
    for products in ("float32", "int8"):
        network = TorchNetwork(model, products=products)
        check_same(network, random_tokens(25, model, 4, 16), alternate_cuts(16))


# Settings of the caller


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def precision(choose: Callable[[], None]) -> Iterator[None]:
    """What a caller chose must be there afterwards, by every way to read it."""
    choose()
    try:
        before = chosen()
        yield
        assert chosen() == before
    finally:
        torch.set_float32_matmul_precision("highest")


MATMULS = [
    backend.matmul
    for backend in (torch.backends.mkldnn, torch.backends.cuda)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")  # from torch 2.9 on
]


def chosen() -> list[object]:
    return [summary(), *(m.fp32_precision for m in MATMULS)]


def summary() -> str:
    """The setting for all backends; unreadable where a caller chose another for one of them."""
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return "contradictory"


def choose_by_backend() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def choose_for_cuda() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast-bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast-float16": lambda: torch.autocast("cpu", torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "no-grad": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "highest": lambda: precision(lambda: torch.set_float32_matmul_precision("highest")),
    "high": lambda: precision(lambda: torch.set_float32_matmul_precision("high")),
    "medium": lambda: precision(lambda: torch.set_float32_matmul_precision("medium")),
    "by-backend": lambda: precision(choose_by_backend),
    "cuda-alone": lambda: precision(choose_for_cuda),
}


def settings(names: Iterable[str]) -> list[Any]:
    """Test parameters for settings by their names."""
    older = pytest.mark.skipif(not MATMULS, reason="this torch has one precision for all backends")
    return [pytest.param(n, marks=older if n in ("by-backend", "cuda-alone") else ()) for n in names]


@cache
def wide_model() -> IntegerModel:
    """Sums of so many bits that bfloat16 and float16 would round them."""
    return random_model(26, dim=256, recurrent=64, mlp=64, n_layer=1)


@pytest.mark.parametrize("products", ["float32", "int8"])
@pytest.mark.parametrize("setting", settings(SETTINGS))
def test_settings_of_the_caller_change_nothing(setting: str, products: str) -> None:
    """Made and run inside a setting, made outside and run inside, and run across its end."""
    model = wide_model()
    tokens, cut = random_tokens(27, model, 4, 9), alternate_cuts(9)
    with SETTINGS[setting]():
        network = TorchNetwork(model, products=products)
        check_same(network, tokens, cut)
        state = network.start(cut)
        network.sequence(tokens[:2], state)
    rest = network.sequence(tokens[2:], state)
    assert not rest.requires_grad
    expected = reference.sequence(model, tokens, reference.start(model, cut))
    assert (rest.numpy() == expected[2:]).all()
    with SETTINGS[setting]():  # made outside, run inside
        check_same(network, tokens, cut)


@pytest.mark.parametrize("setting", settings(["high", "medium", "by-backend", "cuda-alone"]))
def test_products_run_in_full_precision(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What products see, and what is left if one of them fails: not every CPU would show it."""
    seen: list[list[object]] = []
    multiply = torch.mm

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append([*chosen(), a.dtype, b.dtype, torch.is_autocast_enabled("cpu")])
        if len(seen) > 4:
            raise MemoryError
        return multiply(a, b)

    network = TorchNetwork(random_model(28, n_layer=1, mlp=0))
    monkeypatch.setattr(torch, "mm", spy)
    with SETTINGS[setting](), torch.autocast("cpu", torch.bfloat16):
        network.step(np.array([3]), network.start(np.array([False])))
        with pytest.raises(MemoryError):
            network.sequence(np.array([[3], [4]]), network.start(np.array([False])))
    full = ["highest", *["ieee"] * len(MATMULS), torch.float32, torch.float32, False]
    assert seen == [full] * 5


# Committed hashes, self-test, errors, a trained model


@pytest.mark.parametrize("name", GOLDEN)
@backends
def test_golden_hashes(device: str, products: str, name: str) -> None:
    model, tokens, cut = golden_input(name)
    network = TorchNetwork(model, device, products)
    state = network.start(cut)
    freq = network.frequencies(network.sequence(tokens, state))
    found = golden_hashes(model, freq.cpu().numpy(), state.h.cpu().numpy(), network.known_answer())
    assert found == golden_expected(name)


@backends
def test_self_test(device: str, products: str) -> None:
    model = random_model(29)
    network = TorchNetwork(model, device, products)
    known = reference.compute_known_answer(model)
    network.self_test(known)
    # One weight in the head is another: what a device that computes wrong would look like.
    weight = model.head.weight.copy()
    weight[7, 11] ^= 1
    wrong = TorchNetwork(replace(model, head=replace(model.head, weight=weight)), device, products)
    with pytest.raises(Unsupported, match=r"torch .* on (cpu|cuda) computes model [0-9a-f]{16} wrong"):
        wrong.self_test(known)


@pytest.mark.parametrize(
    ("device", "products", "message"),
    [
        ("gpu", "auto", "'gpu' is no device of torch"),
        ("meta", "auto", "device meta is not supported, expected cpu or cuda"),
        ("cuda:99", "auto", "device cuda:99: torch .* finds no such device"),
        ("cpu", "int4", "products 'int4', expected one of auto, float32, int8"),
    ],
)
def test_errors(device: str, products: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchNetwork(random_model(30), device, products)


@pytest.mark.parametrize("error", [AttributeError("no _int_mm"), RuntimeError("not for this one\nlong text")])
def test_devices_without_int8_products(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "_int_mm", missing)
    with pytest.raises(ConfigError, match="device cpu has no int8 matrix product: no"):
        TorchNetwork(random_model(31), products="int8")
    assert TorchNetwork(random_model(31)).products == "float32"


def load_small() -> IntegerModel:
    return recurrent_file.load(store.find("small").path).model


@pytest.mark.parametrize("n_position", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_trained_model(n_position: int) -> None:
    model = load_small()
    text = (Path(lmcodec.__file__).parent / "docs" / "FORMAT.md").read_bytes()
    n_stream = 6
    cut = alternate_cuts(n_stream)
    tokens = model.vocabulary.segment_reference(text[:4000])[: (n_position - 1) * n_stream].astype(np.int64)
    first = np.where(cut, model.config.mid, model.config.bos)
    tokens = np.concatenate([first[None], tokens.reshape(n_stream, -1).T])
    for products in ("float32", "int8"):
        check_same(TorchNetwork(model, products=products), tokens, cut)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_are_those_of_its_frequencies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setitem(interface.SUM_ROWS, device, 40)
    model = random_model(4)
    check_model(Torch(model, device, reference.compute_known_answer(model)), frames=False)


# A step as one graph


@pytest.mark.parametrize("products", ["float32", "int8"])
@shapes
def test_a_step_is_a_graph_of_its_buffers(shape: str, products: str) -> None:
    """The operations of the fourth step give all later ones, whatever the caller makes of the state."""
    model = random_model(40, **SHAPES[shape])
    network = TorchNetwork(model, products=products)
    tokens, cut = random_tokens(41, model, 12, 3), alternate_cuts(3)
    expected_state, state = reference.start(model, cut), network.start(cut)
    network.step(tokens[0], state)
    expected = [reference.step(model, tokens[0], expected_state)]
    assert state.buffers is not None
    replay = state.buffers.replay = RecordedReplay([state.buffers.given, state.buffers.h])
    for row in tokens[1:]:
        copy, before = TorchState(state.h), state.h.clone()
        expected.append(reference.step(model, row, expected_state))
        assert (network.step(row, state).numpy() == expected[-1]).all()
        assert torch.equal(copy.h, before)
        assert (state.h.numpy() == expected_state.h).all()
    assert replay.n_replay == 11 - replay.WARM_UP


@pytest.mark.parametrize("products", ["float32", "int8"])
def test_a_step_needs_neither_data_nor_the_host(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(42)
    monkeypatch.setattr(torch_device, "find", torch.device)
    monkeypatch.setattr(torch_backend, "_products", lambda asked, device: asked)
    network = TorchNetwork(model, "meta", products)
    given = torch.zeros(2, dtype=torch.int64, device="meta")
    h = torch.zeros((model.config.n_layer, 2, model.config.recurrent), dtype=torch.int32, device="meta")
    with torch.no_grad(), Launches() as launches:
        logits = network.one_step(given, h)
    print(f"{launches.counts.total()} operations, {model.config.n_layer} layers")
    assert logits.shape == (2, model.config.vocab_size)
    assert launches.devices == {"meta"}
    assert launches.counts["scalar_tensor"] == launches.counts["lift_fresh"] == launches.n_read_back == 0
    assert launches.counts.total() <= 110 * model.config.n_layer + 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("products", ["float32", "int8"])
def test_cuda_captures_steps(products: str, recwarn: pytest.WarningsRecorder) -> None:
    model = random_model(43)
    tokens, cut = random_tokens(44, model, 20, 3), alternate_cuts(3)
    expected = reference.sequence(model, tokens, reference.start(model, cut))
    for capture in (True, False):
        network = TorchNetwork(model, "cuda", products, capture=capture)
        state = network.start(cut)
        found = [network.step(row, state).cpu().numpy() for row in tokens]
        assert (np.stack(found) == expected).all()
        assert state.buffers is not None
        assert state.buffers.replay.captured == capture
    assert not recwarn.list
