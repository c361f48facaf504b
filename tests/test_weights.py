"""The model file: what is packed comes back to the bit, what is damaged is refused by name.

    python tests/test_weights.py --write

makes tests/golden/model.lmm anew, which only another version of the format may do.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_models import random_model

from lmcodec import _kernel
from lmcodec.errors import (
    BadMagic,
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    Truncated,
    Unsupported,
)
from lmcodec.lm import container, sections, weight_coding
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent.file import inspect, pack, parse
from lmcodec.lm.recurrent.model import SHAPE, IntegerModel, Layer, Linear
from lmcodec.lm.recurrent.reference import compute_known_answer
from lmcodec.lm.weight_coding import CodedTensors, decode_reference, encode_reference, encode_weights

GOLDEN = Path(__file__).with_name("golden") / "model.lmm"
GOLDEN_SHA256 = "1f464ade645b3583d3ee8fc3d4391240ada7845a4658dbe452e3a3e7130829e8"
CARD = {"data": ["books", "code"], "steps": 7000, "bpb": 1.25, "licence": "Apache-2.0", "note": "é\n\u2028"}
PREFIX = struct.Struct("<8sIIQ")


# --- models and tensors ---


def laplace(rng: np.random.Generator, n: int, k: int, spread: float, uneven: float = 0.0) -> np.ndarray:
    """(n, k) int8 weights; `uneven` is the spread of the logarithms of rows' and columns' scales."""
    scale = spread * np.exp(rng.normal(0, uneven, (n, 1)) + rng.normal(0, uneven, k)) if uneven else spread
    return np.clip(np.rint(rng.laplace(0, 1, (n, k)) * scale), -63, 63).astype(np.int8)


def with_weights(model: IntegerModel, change: Callable[[np.ndarray], np.ndarray]) -> IntegerModel:
    def of(linear: Linear) -> Linear:
        return replace(linear, weight=change(linear.weight))

    layers = tuple(
        Layer(
            of(layer.into),
            of(layer.out),
            layer.up and of(layer.up),
            layer.down and of(layer.down),
        )
        for layer in model.layers
    )
    return replace(model, embed=of(model.embed), layers=layers, head=of(model.head))


@cache
def tiny() -> IntegerModel:
    """The smallest shape, with weights as training leaves them."""
    rng = np.random.default_rng(1)
    model = random_model(5, vocab_size=256, dim=16, n_layer=1, recurrent=16, mlp=3, card=CARD)
    return with_weights(model, lambda w: laplace(rng, len(w), w.shape[1], 2, 0.4))


@cache
def packed() -> bytes:
    return pack(tiny())


MODELS: dict[str, Callable[[], IntegerModel]] = {
    "tiny": tiny,
    "uniform weights": lambda: random_model(1),
    "every bound": lambda: random_model(2, extreme=True),
    "no MLP, odd shape": lambda: random_model(3, vocab_size=301, dim=31, n_layer=3, recurrent=17, mlp=0),
    "all zero": lambda: with_weights(random_model(4), np.zeros_like),
    "no mixer": lambda: replace(random_model(6), mixer=b""),
}


def pruned(w: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.where(rng.random(w.shape) < share, 0, w).astype(np.int8)


def tensor_sets() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(2)
    return {
        "one weight": [np.array([[-63]], np.int8)],
        "one row": [laplace(rng, 1, 77, 3)],
        "one column": [laplace(rng, 77, 1, 3)],
        "around a group": [laplace(rng, 1, k, 5) for k in (31, 32, 33, 63, 64, 65)],
        "around a block": [laplace(rng, 1, k, 5) for k in (2047, 2048, 2049)],
        "around chunks": [laplace(rng, n, k, 1) for n, k in ((1024, 512), (1025, 512), (1048, 1001))],
        "uneven": [laplace(rng, 200, 170, 2, 1.0), laplace(rng, 170, 200, 0.3, 2.0)],
        "uniform": [rng.integers(-63, 64, (100, 99)).astype(np.int8)],
        "zero": [np.zeros((64, 100), np.int8), laplace(rng, 20, 20, 3), np.zeros((1, 1), np.int8)],
        "constant": [np.full((30, 50), -63, np.int8), np.full((30, 50), 63, np.int8)],
        "pruned": [pruned(laplace(rng, 300, 320, 3, 0.3), 0.7)],
        "rows and columns of zeros": [laplace(rng, 90, 80, 4) * (np.arange(80) % 3 > 0).astype(np.int8)],
        "two values": [rng.choice(np.array([-63, 63], np.int8), (70, 70))],
        "one rare value": [np.eye(300, dtype=np.int8) * 63],
    }


TENSORS = tensor_sets()


# --- the coding of weights ---


def outcome(decode: Callable[[CodedTensors], list[np.ndarray]], coded: CodedTensors) -> list[bytes] | None:
    """The weights' bytes, None if they are refused."""
    try:
        return [w.tobytes() for w in decode(coded)]
    except Corrupt:
        return None


def check_same_weights(coded: CodedTensors) -> list[bytes] | None:
    """The law: definition and kernel, whatever its instructions and threads, give the same or all refuse."""
    expected = outcome(decode_reference, coded)
    for portable in (True, False):
        for n_thread in (1, 3):
            decode = partial(weight_coding.decode_weights, n_thread=n_thread, portable=portable)
            found = outcome(decode, coded)
            assert found == expected, (portable, n_thread)
    return expected


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back(name: str) -> None:
    tensors = TENSORS[name]
    coded = encode_weights(tensors)
    assert [shape[:2] for shape in coded.shapes] == [w.shape for w in tensors]
    assert check_same_weights(coded) == [w.tobytes() for w in tensors]


@pytest.mark.parametrize("name", TENSORS)
def test_the_kernel_encodes_what_numpy_does(name: str) -> None:
    expected = encode_reference(TENSORS[name])
    for n_thread in (1, 3):
        found = encode_weights(TENSORS[name], n_thread)
        for part in ("row_class", "column_class", "codes", "data"):
            assert getattr(found, part).tobytes() == getattr(expected, part).tobytes()
        assert (found.shapes, found.n_word) == (expected.shapes, expected.n_word)


def test_large_tensors_are_fitted_by_some_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_coding, "_FITTED", 3000)
    tensors = [*TENSORS["uneven"], TENSORS["around a block"][2]]
    coded = encode_weights(tensors)
    assert check_same_weights(coded) == [w.tobytes() for w in tensors]
    assert sum(map(sum, coded.n_word)) * 16 < 0.87 * sum(map(order0_nbits, tensors))


def test_the_encoder_refuses_what_it_cannot_code() -> None:
    w = np.zeros((4, 5), np.int8)
    certain = np.zeros((1, 128), np.uint16)
    certain[0, 64] = 4096
    row, column = np.zeros(4, np.int8), np.zeros(5, np.int8)
    (chunk,) = _kernel.encode_weights(w, row, column, certain)
    assert chunk == np.full(32, 1 << 16, "<u4").tobytes()
    rare = w.copy()
    rare[2, 2] = 1
    for arguments in (
        (rare, row, column, certain),
        (np.full((4, 5), -65, np.int8), row, column, certain),
        (w, row, column, certain * 2),
        (w, row[1:], column, certain),
        (w, row, column[1:], certain),
        (w[:0], row[:0], column, certain),
        (w, row + 64, column, certain),
        (w, row, column, certain[:, :127].copy()),
        (w, row, column, certain[:0]),
        (w, row, column, np.repeat(certain, 17, axis=0)),
    ):
        with pytest.raises(ValueError, match=r"."):
            _kernel.encode_weights(*arguments)


def order0_nbits(w: np.ndarray) -> float:
    count = np.unique(w, return_counts=True)[1]
    return float(-(count * np.log2(count / w.size)).sum())


@pytest.mark.parametrize("name", ["around chunks", "uneven", "uniform", "zero", "pruned"])
def test_size(name: str) -> None:
    """At most the order-0 entropy, 0.3 % and the states of the chunks."""
    tensors = TENSORS[name]
    coded = encode_weights(tensors)
    for w, n_word in zip(tensors, coded.n_word, strict=True):
        assert 16 * sum(n_word) <= 1.003 * order0_nbits(w) + 8 * 128 * len(n_word)
    if name == "uneven":
        assert sum(map(sum, coded.n_word)) * 16 < 0.85 * sum(map(order0_nbits, tensors))


def damage(rng: random.Random, coded: CodedTensors) -> CodedTensors:
    """One part changed a little."""
    arrays = ["data", "data", "data", "row_class", "column_class", "codes"]
    part = rng.choice([*arrays, "n_word", "cut", "contexts"])
    if part in arrays:
        changed = getattr(coded, part).copy()
        flat = changed.reshape(-1).view(np.uint8)
        for _ in range(rng.choice([1, 1, 1, 5])):
            flat[rng.randrange(len(flat))] = rng.choice([0, 1, 63, 64, 127, 128, 255, rng.randrange(256)])
        return replace(coded, **{part: changed})
    if part == "n_word":
        n_word = [list(words) for words in coded.n_word]
        i, j = rng.randrange(len(n_word)), rng.randrange(len(n_word))
        n_word[i][-1] = max(0, n_word[i][-1] + rng.choice([-1, 1]))
        n_word[j][0] = max(0, n_word[j][0] + rng.choice([-1, 0, 1]))
        return replace(coded, n_word=n_word)
    if part == "cut":
        return replace(coded, data=coded.data[: -rng.randrange(1, 5)].copy())
    shapes = list(coded.shapes)
    i = rng.randrange(len(shapes))
    n, k, n_context = shapes[i]
    shapes[i] = (n, k, max(1, n_context + rng.choice([-1, 1])))
    return replace(coded, shapes=shapes)


def check_damaged_tensors(seed: int, n_case: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    tensors = [laplace(numbers, 90, 67, 2, 1.5), np.zeros((5, 40), np.int8), laplace(numbers, 40, 5, 20)]
    coded = encode_weights(tensors)
    assert coded.shapes[0][2] > 4
    good = check_same_weights(coded)
    outcomes = [check_same_weights(damage(rng, coded)) for _ in range(n_case)]
    refused = sum(found is None for found in outcomes)
    # The states at the end tell nearly always; a class may also change without consequence.
    assert 0.7 * n_case < refused < n_case
    assert sum(found is not None and found != good for found in outcomes) < 0.1 * n_case


def test_damaged_tensors() -> None:
    check_damaged_tensors(1, 200)


@pytest.mark.slow
def test_damaged_tensors_at_length() -> None:
    for seed in range(2, 22):
        check_damaged_tensors(seed, 1000)


KERNEL_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no context": ({"tensors": [(4, 5, 0)]}, "number of contexts"),
    "too many contexts": ({"tensors": [(4, 5, 17)]}, "number of contexts"),
    "no row": ({"tensors": [(0, 5, 1)]}, "number of rows"),
    "rows without classes": ({"tensors": [(5, 4, 1)]}, "number of rows"),
    "columns without classes": ({"tensors": [(2, 10, 1)]}, "number of columns"),
    "huge": ({"tensors": [(1 << 63, 1 << 63, 1)]}, "number of rows"),
    "more tensors": ({"tensors": [(4, 5, 1), (1, 1, 1)]}, "number of rows"),
    "no tensor": ({"tensors": []}, "number of classes"),
    "classes left": ({"row_class": np.zeros(5, np.int8)}, "number of classes"),
    "class too high": ({"row_class": np.array([0, 0, 0, 64], np.int8)}, "class"),
    "class too low": ({"column_class": np.array([0, 0, 0, 0, -64], np.int8)}, "class"),
    "contexts without tables": ({"tensors": [(4, 5, 2)]}, "number of tables"),
    "tables left": ({"freq": np.full((2, 128), 32, np.uint16)}, "number of tables"),
    "sum too low": ({"freq": np.full((1, 128), 31, np.uint16)}, "frequencies"),
    "symbol 0": ({"freq": np.full((1, 128), 32, np.uint16)}, "frequencies"),
    "out too long": ({"out": np.zeros(21, np.int8)}, "number of weights"),
    "out too short": ({"out": np.zeros(19, np.int8)}, "number of weights"),
    "no chunk": ({"n_word": []}, "number of chunks"),
    "chunks left": ({"n_word": [0, 0]}, "size of the chunks"),
    "words missing": ({"n_word": [1]}, "size of a chunk"),
    "huge number of words": ({"n_word": [0xFFFFFFFF]}, "size of a chunk"),
    "bytes left": ({"data": np.zeros(130, np.uint8)}, "size of the chunks"),
    "state too small": ({"data": np.zeros(128, np.uint8)}, "words"),
}


@pytest.mark.parametrize("name", KERNEL_REFUSALS)
def test_the_kernel_trusts_no_size(name: str) -> None:
    certain = np.zeros((1, 128), np.uint16)
    certain[0, 70] = 4096
    arguments: dict[str, Any] = {
        "data": np.full(32, 1 << 16, "<u4").view(np.uint8),
        "n_word": [0],
        "tensors": [(4, 5, 1)],
        "row_class": np.zeros(4, np.int8),
        "column_class": np.zeros(5, np.int8),
        "freq": certain,
        "out": np.zeros(20, np.int8),
    }
    assert _kernel.decode_weights(**arguments) == ""
    assert (arguments["out"] == 6).all()
    changed, message = KERNEL_REFUSALS[name]
    for n_thread in (1, 2, -5, 1 << 30):
        assert _kernel.decode_weights(**{**arguments, **changed}, n_thread=n_thread) == message


def test_frequencies() -> None:
    """Sums of 2^12, nothing that occurs without a slot, whatever the codes."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 97, (500, 128)).astype(np.uint8)
    codes[rng.random(codes.shape) < rng.random((500, 1))] = 0
    codes[:, 0] = 0
    codes[:, 64] = np.maximum(codes[:, 64], 1)
    freq = weight_coding.frequencies(codes)
    assert (freq.sum(axis=1) == 4096).all()
    assert ((freq > 0) == (codes > 0)).all()
    # The most and the least uneven ones.
    extremes = np.ones((3, 128), np.uint8)
    extremes[1] = 96
    extremes[2, 50] = 96
    extremes[:, 0] = 0
    assert (weight_coding.frequencies(extremes).sum(axis=1) == 4096).all()
    for at, code in ((0, 1), (5, 97), (5, 255)):
        bad = extremes.copy()
        bad[1, at] = code
        with pytest.raises(Corrupt, match="code is out of range"):
            weight_coding.frequencies(bad)
    extremes[1] = 0
    with pytest.raises(Corrupt, match="without symbols"):
        weight_coding.frequencies(extremes)


# --- the file ---


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back(name: str) -> None:
    model = MODELS[name]()
    known = compute_known_answer(model)
    data = pack(model, known)
    assert pack(model) == data
    loaded = parse(data, n_thread=2)
    assert loaded.model.sha256 == model.sha256
    assert loaded.model.card == model.card
    assert loaded.model.mixer == model.mixer
    assert loaded.known == known
    assert compute_known_answer(loaded.model) == known
    assert pack(loaded.model, known) == data
    header = inspect(data)
    assert header == loaded.header
    assert (header.config, header.card) == (model.config, model.card)
    assert (header.model_id, header.nbytes) == (model.model_id, len(data))
    assert list(header.bits_per_weight) == list(model.tensors())
    n_bit = sum(bits * model.tensors()[t].weight.size for t, bits in header.bits_per_weight.items())
    assert round(n_bit) == 8 * header.sections["weights"]


def test_golden() -> None:
    loaded = recurrent_file.load(GOLDEN)
    assert loaded.model.sha256 == GOLDEN_SHA256
    assert loaded.known == compute_known_answer(loaded.model)
    assert loaded.model.card == CARD
    assert recurrent_file.read_header(GOLDEN) == loaded.header


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def rebuild(
    change: Callable[[dict[str, Any]], Any] = lambda content: None,
    text: Callable[[bytes], bytes] = lambda header: header,
    replaced: dict[str, bytes] | None = None,
) -> bytes:
    """The packed tiny model with another header or other sections, all sizes and the digest made to fit."""
    data = packed()
    n_header = PREFIX.unpack_from(data)[2]
    content = json.loads(data[PREFIX.size : PREFIX.size + n_header])
    at, parts = PREFIX.size + n_header, {}
    for name in recurrent_file.SECTIONS:
        parts[name] = data[at : at + content["sections"][name]]
        at += content["sections"][name]
    parts |= replaced or {}
    content["sections"] = {name: len(part) for name, part in parts.items()}
    change(content)
    header = text(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    nbytes = PREFIX.size + len(header) + sum(map(len, parts.values())) + 32
    return seal(PREFIX.pack(container.MAGIC, 1, len(header), nbytes) + header + b"".join(parts.values()))


def put(*path: str | int, value: Any) -> Callable[[], bytes]:
    """The file with one value of the header changed."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return lambda: rebuild(change)


def prefix(**changed: int | bytes) -> Callable[[], bytes]:
    """The file with another prefix, its digest made to fit."""

    def make() -> bytes:
        names = ("magic", "version", "header_nbytes", "nbytes")
        values = dict(zip(names, PREFIX.unpack_from(packed()), strict=True)) | changed
        return seal(PREFIX.pack(*values.values()) + packed()[PREFIX.size : -32])

    return make


def vectors(change: Callable[[Linear], Linear], start: np.ndarray | None = None) -> Callable[[], bytes]:
    def make() -> bytes:
        linears = [change(linear) for linear in tiny().tensors().values()]
        planes = recurrent_file._pack_vectors(linears, tiny().start if start is None else start)
        return rebuild(replaced={"vectors": sections.compress(planes)})

    return make


def too_large_bias(linear: Linear) -> Linear:
    if linear.bias is None:
        return linear
    return replace(linear, bias=np.full_like(linear.bias, (1 << 24) + 1))


def other_config(**changed: Any) -> Callable[[], bytes]:
    return put("config", value={**{name: getattr(tiny().config, name) for name in SHAPE}, **changed})


def vocabulary(change: Callable[[bytearray], Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(sections.pack_vocabulary(tiny().vocabulary))
        change(data)
        return rebuild(replaced={"vocabulary": sections.compress(bytes(data))})

    return make


def side(at: int, value: int) -> Callable[[], bytes]:
    """The file with one byte of its classes and tables changed."""

    def make() -> bytes:
        coded = encode_weights([linear.weight for linear in tiny().tensors().values()])
        data = bytearray(coded.row_class.tobytes() + coded.column_class.tobytes() + coded.codes.tobytes())
        data[at] = value
        return rebuild(replaced={"tables": sections.compress(bytes(data))})

    return make


def with_words(change: Callable[[bytearray], Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(packed()[-32 - inspect(packed()).sections["weights"] : -32])
        change(data)
        return rebuild(replaced={"weights": bytes(data)})

    return make


BIG = 10**30
REFUSALS: dict[str, tuple[Callable[[], bytes], type[LmcodecError], str]] = {
    "empty": (lambda: b"", Truncated, "ends at byte 0"),
    "another file": (lambda: b"PK\x03\x04" + bytes(100), BadMagic, "not an lmcodec model file"),
    "inside the prefix": (lambda: packed()[:20], Truncated, "ends at byte 20"),
    "inside the header": (lambda: packed()[:100], Truncated, "ends at byte 100 of"),
    "without its last byte": (lambda: packed()[:-1], Truncated, "ends at byte"),
    "a byte more": (lambda: packed() + b"\0", Corrupt, "1 bytes after the end"),
    "version": (
        prefix(version=3),
        Unsupported,
        "model file of version 3; this lmcodec reads versions 1 and 2",
    ),
    "header too long": (prefix(header_nbytes=(1 << 20) + 1), Corrupt, "header of 1048577 bytes, at most"),
    "header longer than the file": (prefix(header_nbytes=1 << 20), Corrupt, "with a header of 1048576"),
    "file too long": (prefix(nbytes=(256 << 20) + 1), Corrupt, "file of 268435457 bytes, at most 268435456"),
    "file of 2^63 bytes": (prefix(nbytes=1 << 63), Corrupt, "at most 268435456"),
    "digest": (lambda: packed()[:-1] + bytes([packed()[-1] ^ 1]), Corrupt, "SHA-256"),
    "header empty": (lambda: rebuild(text=lambda _: b""), Corrupt, "header is not JSON"),
    "header of text": (lambda: rebuild(text=lambda _: b"\xff\xfe{"), Corrupt, "header is not JSON"),
    "header nested": (lambda: rebuild(text=lambda _: b"[" * 100_000), Corrupt, "header is not JSON"),
    "header a list": (lambda: rebuild(text=lambda _: b"[]"), Corrupt, "header is no object"),
    "header a long number": (lambda: rebuild(text=lambda _: b"9" * 5000), Corrupt, "header is not JSON"),
    "header with a space": (lambda: rebuild(text=lambda h: h + b" "), Corrupt, "canonical"),
    "header with a key twice": (
        lambda: rebuild(text=lambda h: b'{"arithmetic":1,' + h[1:]),
        Corrupt,
        "canonical",
    ),
    "unknown member": (put("extra", value=1), Corrupt, "header has an unknown member 'extra'"),
    "member missing": (lambda: rebuild(lambda c: c.pop("known")), Corrupt, "header lacks 'known'"),
    "arithmetic": (put("arithmetic", value=2), Unsupported, "model of arithmetic 2"),
    "arithmetic true": (put("arithmetic", value=True), Corrupt, "arithmetic: bool, expected an integer"),
    "other tables": (put("tables", value="0" * 64), Unsupported, "made for other tables"),
    "config: unknown member": (put("config", "heads", value=4), Corrupt, "config has an unknown member"),
    "config: member missing": (
        lambda: rebuild(lambda c: c["config"].pop("dim")),
        Corrupt,
        "config lacks 'dim'",
    ),
    "config: no object": (put("config", value=[]), Corrupt, "config is no object"),
    "config: bool": (other_config(n_layer=True), Corrupt, "model.n_layer is True"),
    "config: float": (other_config(dim=16.0), Corrupt, "model.dim is 16.0"),
    "config: out of range": (other_config(dim=2097), Corrupt, "model.dim is 2097"),
    "config: list": (other_config(dim=[1]), Corrupt, "model.dim"),
    "too many weights": (
        other_config(n_layer=64, dim=2096, recurrent=2096, mlp=2096, vocab_size=65_536),
        Corrupt,
        r"declares \d+ weights, at most 67108864",
    ),
    "more layers": (other_config(n_layer=2), Corrupt, "tensors are not a list of 10"),
    "more tokens": (other_config(vocab_size=257), Corrupt, "token 256 shares"),
    "card a list": (put("card", value=[]), Corrupt, "card is no object"),
    "known too short": (put("known", value="00"), Corrupt, "known is not 64 hexadecimal digits"),
    "known in capitals": (put("known", value="A" * 64), Corrupt, "known is not 64 hexadecimal digits"),
    "model_id no string": (put("model_id", value=1), Corrupt, "model_id is not 16 hexadecimal digits"),
    "another model_id": (put("model_id", value="0" * 16), Corrupt, "the header says 0000000000000000"),
    "section missing": (
        lambda: rebuild(lambda c: c["sections"].pop("mixer")),
        Corrupt,
        "sections lacks",
    ),
    "section too long": (put("sections", "tables", value=1 << 20), Corrupt, "sections end at byte"),
    "section negative": (put("sections", "tables", value=-1), Corrupt, "section tables: -1, expected 0 to"),
    "section huge": (put("sections", "tables", value=BIG), Corrupt, "a number of 100 bits, expected"),
    "section a float": (put("sections", "tables", value=1.5), Corrupt, "float, expected an integer"),
    "mixer too long": (put("sections", "mixer", value=(16 << 20) + 1), Corrupt, "mixer: 16777217, expected"),
    "tensors no list": (put("tensors", value={}), Corrupt, "tensors are not a list"),
    "tensor no object": (put("tensors", 0, value=[]), Corrupt, "tensor embed is no object"),
    "tensor: unknown member": (
        put("tensors", 0, "x", value=1),
        Corrupt,
        "embed has an unknown member",
    ),
    "no context": (put("tensors", 0, "contexts", value=0), Corrupt, "contexts: 0, expected 1 to 16"),
    "17 contexts": (
        put("tensors", 0, "contexts", value=17),
        Corrupt,
        "contexts: 17, expected 1 to 16",
    ),
    "shift too small": (put("tensors", 1, "shift", value=11), Corrupt, "layers.0.in: shift 11, expected 12"),
    "shift too large": (put("tensors", 0, "shift", value=41), Corrupt, "embed: shift 41, expected 0 to 40"),
    "shift negative": (put("tensors", 0, "shift", value=-1), Corrupt, "embed: shift: -1"),
    "words no list": (put("tensors", 0, "words", value=7), Corrupt, "embed: the words are not a list of 1"),
    "a chunk more": (put("tensors", 0, "words", value=[1, 1]), Corrupt, "the words are not a list of 1"),
    "words huge": (put("tensors", 0, "words", value=[BIG]), Corrupt, "embed: words: a number of 100 bits"),
    "words do not add up": (put("tensors", 0, "words", value=[0]), Corrupt, "its chunks have"),
    "bias": (vectors(too_large_bias), Corrupt, "a bias is 16777217, at most 16777216"),
    "start state": (
        vectors(lambda linear: linear, np.full((2, 1, 16), (1 << 26) + 1, np.int32)),
        Corrupt,
        "a start state is 67108865, at most 67108864",
    ),
    "vectors too short": (
        lambda: rebuild(replaced={"vectors": sections.compress(bytes(100))}),
        Corrupt,
        "section vectors does not unpack to",
    ),
    "vectors no LZMA": (
        lambda: rebuild(replaced={"vectors": b"\xff" * 50}),
        Corrupt,
        "section vectors cannot be unpacked",
    ),
    "vectors empty": (lambda: rebuild(replaced={"vectors": b""}), Corrupt, "vectors"),
    "bytes after the vectors": (
        lambda: rebuild(replaced={"vectors": sections.compress(_tiny_vectors()) + b"\0"}),
        Corrupt,
        "section vectors does not unpack to",
    ),
    "token shares too much": (vocabulary(lambda d: d.__setitem__(0, 1)), Corrupt, "token 0 shares 1 bytes"),
    "token too long": (
        vocabulary(lambda d: (d.__setitem__(1, 1), d.__setitem__(257, 255))),
        Corrupt,
        "token 1 shares 1 bytes and adds 255",
    ),
    "token empty": (
        vocabulary(lambda d: d.__setitem__(256, 0)),
        Corrupt,
        "strings have 256 bytes, expected 255",
    ),
    "tokens out of order": (vocabulary(lambda d: d.__setitem__(512, 9)), Corrupt, "does not come after"),
    "class out of range": (side(0, 64), Corrupt, "coded weights: wrong class"),
    "code out of range": (side(-1, 97), Corrupt, "frequency's code is out of range"),
    "weight -64": (side(-128, 1), Corrupt, "frequency's code is out of range"),
    "state out of range": (
        with_words(lambda d: d.__setitem__(slice(0, 4), bytes(4))),
        Corrupt,
        "coded weights: wrong words",
    ),
    "last word": (with_words(lambda d: d.__setitem__(-1, d[-1] ^ 255)), Corrupt, "wrong words"),
    "another mixer": (lambda: rebuild(replaced={"mixer": b"x"}), Corrupt, "content is that of model"),
}


def _tiny_vectors() -> bytes:
    return recurrent_file._pack_vectors(list(tiny().tensors().values()), tiny().start)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    make, error, message = REFUSALS[name]
    data = make()
    assert data != packed()
    with pytest.raises(LmcodecError, match=message) as caught:
        parse(data, "this.lmm")
    assert type(caught.value) is error
    assert str(caught.value).startswith("this.lmm: ")
    assert "\n" not in str(caught.value)


def test_rebuilding_changes_nothing() -> None:
    """What the refusals are made from is sound."""
    assert rebuild() == packed()
    assert prefix()() == packed()
    assert vectors(lambda linear: linear)() == packed()
    assert vocabulary(lambda d: None)() == packed()
    assert with_words(lambda d: None)() == packed()


def bombs() -> dict[str, Callable[[], bytes]]:
    def bomb(name: str) -> Callable[[], bytes]:
        return lambda: rebuild(replaced={name: sections.compress(bytes(16 << 20))})

    return {
        **{f"{name} of 16 MiB": bomb(name) for name in ("vocabulary", "tables", "vectors")},
        "many weights": REFUSALS["too many weights"][0],
        # 60 M weights, below the limit: refused before room for them is made.
        "weights without words": other_config(n_layer=32, dim=600, recurrent=600, mlp=300, vocab_size=256),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_by_what_is_checked(name: str) -> None:
    data = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def check_truncations(step: int) -> None:
    """Every cut is refused as truncated."""
    for n in [*range(300), *range(300, len(packed()), step), len(packed()) - 1]:
        for read in (parse, inspect):
            with pytest.raises(Truncated):
                read(packed()[:n])


def test_truncations() -> None:
    check_truncations(97)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, inserted, removed or copied from elsewhere; the prefix's sizes fit in half the cases."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # Half of all in the first kilobyte, where the header is.
        at = rng.randrange(min(len(changed), rng.choice([1100, len(changed)])))
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice([0, 1, 127, 128, 255, *b'0123456789"[]{},:-.e'])
        elif kind == 2:
            del changed[at : at + rng.choice([1, 1, 2, 30])]
        elif kind == 3:
            changed[at:at] = rng.choice([b"9", b"-", b"[", b'"', rng.randbytes(3), b"0" * 40])
        else:
            source = rng.randrange(len(changed))
            piece = changed[source : source + rng.randrange(1, 40)]
            changed[at : at + len(piece)] = piece
    if rng.random() < 0.5 and len(changed) > PREFIX.size:
        grown = len(changed) - len(data)
        magic, version, header_nbytes, _ = PREFIX.unpack_from(changed)
        header_nbytes = (header_nbytes + rng.choice([0, grown])) % (1 << 32)
        changed[: PREFIX.size] = PREFIX.pack(magic, version, header_nbytes, len(changed))
    return bytes(changed)


def is_refused_or_the_same(data: bytes) -> bool:
    """Whether a file whose digest fits is taken; then it holds the tiny model."""
    try:
        loaded = parse(data)
    except LmcodecError:
        return False
    assert loaded.model.sha256 == tiny().sha256
    return True


def check_mutations(seed: int, n_case: int) -> None:
    """The law: a damaged file is refused; with a digest that fits, it is refused or the model is the same."""
    rng = random.Random(seed)
    same = 0
    for _ in range(n_case):
        changed = mutate(rng, packed())
        if changed != packed():
            with pytest.raises(LmcodecError):
                parse(changed)
        same += is_refused_or_the_same(seal(changed[:-32]))
    assert same < n_case / 4  # no part of the identity: card and known answer


def test_mutations() -> None:
    check_mutations(1, 2000)


@pytest.mark.slow
def test_mutations_at_length() -> None:
    for seed in range(2, 12):
        check_mutations(seed, 10_000)


@pytest.mark.slow
def test_every_byte_and_cut() -> None:
    check_truncations(1)
    for at in range(len(packed())):
        changed = bytearray(packed())
        changed[at] ^= 0x55
        with pytest.raises(LmcodecError):
            parse(bytes(changed))
        is_refused_or_the_same(seal(bytes(changed[:-32])))


def test_what_cannot_be_packed() -> None:
    cards: list[Any] = [{"x": object()}, {"x": float("nan")}, {1: 2}, {"x": (1, 2)}]
    for card in cards:
        with pytest.raises(ConfigError, match="card is not JSON"):
            pack(replace(tiny(), card=card), "0" * 64)
    with pytest.raises(LimitExceeded, match="the card is too large"):
        pack(replace(tiny(), card={"x": "y" * (1 << 20)}), "0" * 64)
    with pytest.raises(LimitExceeded, match="mixer has 16777217 bytes"):
        pack(replace(tiny(), mixer=bytes((16 << 20) + 1)), "0" * 64)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "tiny.lmm"
    path.write_bytes(packed())
    assert recurrent_file.load(path).model.sha256 == tiny().sha256
    opened = recurrent_file.open_file(path)
    assert opened.header == recurrent_file.load(path).header
    assert opened.mixer == tiny().mixer
    assert opened.decode(1).model.sha256 == tiny().sha256
    with pytest.raises(ModelNotFound, match="no such model file"):
        recurrent_file.load(tmp_path / "none.lmm")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        recurrent_file.read_header(tmp_path)
    path.write_bytes(packed()[:-1])
    with pytest.raises(Truncated, match=r"tiny\.lmm: file ends"):
        recurrent_file.load(path)
    path.write_bytes(packed() + bytes(70_000))
    with pytest.raises(Corrupt, match=r"tiny\.lmm: 70000 bytes after the end"):
        recurrent_file.load(path)
    path.write_bytes(b"no model" * 1000)
    with pytest.raises(BadMagic, match=r"tiny\.lmm: not an lmcodec model file"):
        recurrent_file.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.lmm"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(packed(),))
    writer.start()
    assert recurrent_file.load(path).model.sha256 == tiny().sha256
    writer.join()


@pytest.mark.parametrize(
    ("isa", "portable"), [("scalar", True), ("avx2", True), ("avx512vnni", False), ("", False)]
)
def test_a_forced_instruction_set_holds_for_weights(
    isa: str, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def decode(*arguments: Any) -> str:
        found.append(arguments[-1])
        return genuine(*arguments)

    genuine = _kernel.decode_weights
    monkeypatch.setattr(_kernel, "decode_weights", decode)
    monkeypatch.setenv("LMCODEC_ISA", isa)
    parse(GOLDEN.read_bytes())
    assert found == [portable]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    GOLDEN.write_bytes(packed())
    print(tiny().sha256)
