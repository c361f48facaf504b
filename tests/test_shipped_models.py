"""The models in the package: the same integers from every executor, in every way of calling it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from lmcodec import _kernel
from lmcodec.lm import store
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.native import NativeNetwork
from lmcodec.lm.vocab import Vocabulary

NUMBERS = sorted(store.SHIPPED)
TEXT = (
    b"It is a truth, said the clerk, that no man counts his own steps; he had come up the stairs of the "
    b"Registry three hundred times.\n"
    b'{"id": 17, "name": "Zo\xc3\xab"}\nfor (int i = 0; i < n; ++i) sum += x[i];\n'
)


@cache
def load(number: int) -> recurrent_file.LoadedModel:
    return recurrent_file.load(Path(str(resources.files("lmcodec.models"))) / store.SHIPPED[number].file)


def inputs(number: int, n_position: int, n_stream: int) -> np.ndarray:
    """(T, B) tokens: a stream's first one begins a document or (odd streams) a text cut out of one."""
    model = load(number).model
    text = model.vocabulary.segment(TEXT * 8).astype(np.int32)
    t, b = np.mgrid[:n_position, :n_stream]
    tokens = text[(t + 7 * b) % len(text)]
    tokens[0] = np.where(np.arange(n_stream) % 2, model.config.mid, model.config.bos)
    return tokens


@pytest.mark.parametrize("number", NUMBERS)
def test_file_is_the_one_that_is_named(number: int) -> None:
    model, header = load(number).model, load(number).header
    assert model.model_id == store.SHIPPED[number].model_id == header.model_id
    assert model.vocabulary == Vocabulary.load()
    assert header.nbytes <= 16 << 20
    assert {"name", "data", "licence", "trained_nbytes", "bpb"} <= header.card.keys()
    assert (
        recurrent_file.pack(model, load(number).known)
        == (Path(str(resources.files("lmcodec.models"))) / store.SHIPPED[number].file).read_bytes()
    )


@pytest.mark.parametrize("isa", _kernel.network_isas())
@pytest.mark.parametrize("number", NUMBERS)
def test_known_answer(number: int, isa: str) -> None:
    NativeNetwork(load(number).model, isa).self_test(load(number).known)


@pytest.mark.parametrize("number", NUMBERS)
def test_reference_gives_the_known_answer(number: int) -> None:
    assert reference.compute_known_answer(load(number).model) == load(number).known


@pytest.mark.parametrize("number", NUMBERS)
def test_batches_and_modes_give_the_same_integers(number: int) -> None:
    model = load(number).model
    tokens = inputs(number, 6, 64)
    cut = np.arange(64) % 2 == 1
    network = NativeNetwork(model)
    whole = network.start(cut).sequence(tokens)
    for n_stream in (1, 7, 64):
        session = network.start(cut[:n_stream])
        for t in range(len(tokens)):
            session.step(tokens[t, :n_stream])
            assert np.array_equal(session.logits(), whole[t, :n_stream]), (n_stream, t)
    state = reference.start(model, cut[:2])
    assert np.array_equal(reference.sequence(model, tokens[:, :2], state), whole[:, :2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("number", NUMBERS)
def test_torch_gives_the_same_integers(number: int, threads: int) -> None:
    torch = pytest.importorskip("torch")
    from lmcodec.lm.recurrent.torch_backend import TorchNetwork

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = TorchNetwork(load(number).model)
        network.self_test(load(number).known)
        tokens = inputs(number, 5, 7)
        cut = np.arange(7) % 2 == 1
        expected = NativeNetwork(load(number).model).start(cut).sequence(tokens)
        assert np.array_equal(network.sequence(tokens, network.start(cut)).numpy(), expected)
    finally:
        torch.set_num_threads(before)
