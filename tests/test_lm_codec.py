"""Blocks with a language model: round trips, choice per block, models by name, number and file, damage."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_vocabulary
from corruption import check_corrupt, in_pieces
from integer_models import random_model

import lmcodec
from lmcodec import _kernel, codec, engine, frame, profile
from lmcodec.cli.main import main
from lmcodec.codec import Compressor, Decompressor, compress, decompress, frame_info, levels, lm_streams
from lmcodec.codec.pipeline import Seat
from lmcodec.codec.spec import EngineSpec
from lmcodec.engine import LmEngine, lm_memory_nbytes
from lmcodec.errors import Corrupt, LimitExceeded, LmcodecError, ModelNotFound, Unsupported
from lmcodec.frame import Block, FrameHeader, Method
from lmcodec.lm import store
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import native
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.lm.store import Model, Retired, Shipped
from lmcodec.lm.vocab import Vocabulary

KIB = 1024
SHIPPED, RETIRED = dict(store.SHIPPED), dict(store.RETIRED)
WORDS = ["the", "of", "and", "walrus", "überzählig", "наука", "文字", "ocean", "beer"]
TEXT = " ".join(random.Random(3).choices(WORDS, k=600)).encode()
NOISE = random.Random(5).randbytes(3000)

# Few contexts; every feature, input, selector and map that a language model adds.
SPECS: list[dict[str, Any]] = [
    {
        "contexts": [["order2", "begun"], ["word", "order1"], ["token", "token2"], ["order1", "token1"]],
        "selectors": ["order0", "match", "lm", "lm_match", "token"],
        "maps": ["lm", "lm_match", "order1"],
        "lm_maps": ["order1", "tokens", "hash_word", "match_byte"],
        "matches": [4],
        "numbers": {
            "lm": 1,
            "table_log2": 14,
            "match_log2": 10,
            "n_direct": 1,
            "weight_rate": 10,
            "n_end": 3,
            "end_log2": 21,
            "lm_map_rate": 4,
        },
    },
    {
        "contexts": [["order3"]],
        "selectors": ["zero", "token"],
        "maps": [],
        "matches": [5, 3],
        "numbers": {"lm": 1, "table_log2": 12, "match_log2": 10, "n_direct": 2},
    },
]


def vocabulary(size: int = 300) -> Vocabulary:
    """Strings of up to 12 bytes, some of which end inside a character or go on only through no token."""
    extra = [w.encode() for w in WORDS] + [(" " + w).encode() for w in WORDS]
    extra += [w.encode()[:3] for w in WORDS[4:]] + [b"\xff\xfe", b"\0\0\0\0", b"th", b"an", b"lrus"]
    filled = make_vocabulary(extra)
    extra += [bytes([97 + i, 98]) for i in range(26)][: size - len(filled)]
    return make_vocabulary(extra)


def tiny_model(seed: int = 7) -> IntegerModel:
    words = vocabulary()
    made = random_model(seed, vocab_size=len(words), dim=24, n_layer=1, recurrent=19, mlp=20)
    return replace(made, vocabulary=words, mixer=b"")


def with_profiles(model: IntegerModel) -> IntegerModel:
    """The model with profiles that learned on TEXT."""
    network = native.NativeNetwork(model)
    strings = b"".join(model.vocabulary.strings)
    offsets = np.concatenate([[0], np.cumsum(model.vocabulary.nbytes, dtype=np.uint32)]).astype(np.uint32)
    from lmcodec.lm.recurrent import tables

    coding = _kernel.TokenCoding(network.kernel, np.frombuffer(strings, np.uint8), offsets, tables.log2())
    packed = []
    for spec in SPECS:
        coder = _kernel.TokenLoop(coding, profile.build(spec).kernel)
        coder.begin_encode(np.frombuffer(TEXT, np.uint8), model.vocabulary.segment(TEXT))
        bits, p16 = np.empty(1 << 16, np.uint8), np.empty(1 << 16, np.uint16)
        while coder.encode(bits, p16):
            pass
        packed.append(profile.pack(spec, coder.learned))
    return replace(model, mixer=b"".join(packed))


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.lmm"
    path.write_bytes(recurrent_file.pack(with_profiles(tiny_model())))
    return path


@pytest.fixture(scope="session")
def model(model_file: Path) -> Model:
    return store.load(store.find(model_file))


@pytest.fixture(autouse=True)
def _nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHIPPED", {})
    monkeypatch.setattr(store, "RETIRED", {})
    for name in (store.MODEL_VARIABLE, "LMCODEC_ISA", "LMCODEC_CODER"):
        monkeypatch.delenv(name, raising=False)


class NeverSmaller(engine.Engine):
    """Method cm that never wins: what lm+cm cannot make smaller is stored."""

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(data)


@pytest.fixture
def _no_cm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Engine", NeverSmaller)


# Engines

INPUTS: dict[str, bytes] = {
    "one byte": b"a",
    "text": TEXT[:1500],
    "zeros": bytes(700),
    "bytes": bytes(range(256)) * 2,
    "noise": NOISE[:400],
    "not UTF-8": b"\xff\xfe\xf0\x9f\x98" * 60 + b"\xc3",
    "wide characters": "文字überzählig".encode() * 30,
}
SHAPES = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (8, 2), (128, 1), (128, 2)]


def check_roundtrip(
    model: Model, number: int | None, streams: int, groups: int, *blocks: bytes
) -> list[bytes]:
    """Blocks, each continuing the one before, come back from either decoder; returns the payloads."""
    encoder = LmEngine(model, number, streams, groups)
    payloads = [encoder.encode(block) for block in blocks]
    for coder in ("", "constriction") if find_spec("constriction") else ("",):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LMCODEC_CODER", coder)
            decoder = LmEngine(model, number, streams, groups)
            for block, payload in zip(blocks, payloads, strict=True):
                assert decoder.decode(payload, len(block)) == block
    return payloads


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", [1, 2, None])
def test_roundtrip_of_engines(model: Model, number: int | None, shape: tuple[int, int]) -> None:
    for data in INPUTS.values():
        if len(data) >= shape[0]:
            check_roundtrip(model, number, *shape, data, data[: len(data) // 2 + shape[0]])


def test_streams_cut_characters_and_tokens(model: Model) -> None:
    """A border in every place of a text of characters of one to three bytes."""
    for cut in range(20):
        for number in (1, None):
            check_roundtrip(model, number, 2, 1, "überzählig文字наука"[cut // 2 :].encode() + b"walrus" * cut)


def test_reset_forgets_everything(model: Model) -> None:
    coder = LmEngine(model, 1, 3)
    first = coder.encode(TEXT)
    assert coder.encode(TEXT) != first
    coder.reset()
    assert coder.encode(TEXT) == first


@pytest.mark.parametrize(("n_zero", "groups"), [(17, 1), (16, 2), (24, 2)])
def test_a_match_that_runs_past_the_block_leaves_no_trace(model: Model, n_zero: int, groups: int) -> None:
    """A stream may run ahead of another one that its match reads, up to where no byte of the block is.

    The first stream's zeros match the second's, and go on to match what that has not written yet.
    """
    first = b"xyz" + bytes(497)
    second = bytes(n_zero) + bytes(random.Random(1).choices(range(0x80, 0x90), k=500 - n_zero))
    used = LmEngine(model, 1, 2, groups)
    used.encode(b"\xfd" * 4096)  # lies where the next block ends
    used.reset()
    assert used.encode(first + second) == LmEngine(model, 1, 2, groups).encode(first + second)


def test_the_network_counts(model: Model) -> None:
    """Another network gives another payload: what it says reaches the coder."""
    other = tiny_model(8)
    network = native.NativeNetwork(other).kernel
    strings = b"".join(other.vocabulary.strings)
    offsets = np.concatenate([[0], np.cumsum(other.vocabulary.nbytes)]).astype(np.uint32)
    from lmcodec.lm.recurrent import tables

    coding = _kernel.TokenCoding(network, np.frombuffer(strings, np.uint8), offsets, tables.log2())
    changed = replace(model, coding=coding)
    assert LmEngine(changed).encode(TEXT) != LmEngine(model).encode(TEXT)


def test_every_instruction_set_writes_the_same(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = set()
    for isa in _kernel.network_isas():
        monkeypatch.setenv("LMCODEC_ISA", isa)
        loaded = store.load(store.find(model_file))
        assert loaded.isa == isa
        written.add(LmEngine(loaded, 1, 8, 2).encode(TEXT + NOISE[:500]))
        written.add(LmEngine(loaded, None, 8, 2).encode(TEXT + NOISE[:500]))
    assert len(written) == 2


def test_impossible_payloads_are_corrupt_or_something_else(model: Model) -> None:
    """Random words: never a crash, never more bytes; a stream that ends inside a token is corrupt."""
    outcomes = set()
    for seed in range(60):
        payload = random.Random(seed).randbytes(40)
        try:
            number = 1 if seed % 2 else None
            outcomes.add(len(LmEngine(model, number, 1 + seed % 3).decode(payload, 50)))
        except Corrupt:
            outcomes.add(-1)
    assert outcomes <= {50, -1}
    assert 50 in outcomes


def test_what_engines_refuse(model: Model) -> None:
    for streams, groups in ((0, 1), (129, 1), (1, 2), (2, 3)):
        with pytest.raises(ValueError):
            LmEngine(model, 1, streams, groups)
    for number in (0, 3):
        with pytest.raises(Unsupported, match=f"profile {number} is unknown to model .* has 1 to 2"):
            LmEngine(model, number)
    with pytest.raises(ValueError):
        LmEngine(model, profile.load(1))
    with pytest.raises(ValueError):
        engine.Engine(model.profile(1))


# Frames


@pytest.mark.usefixtures("_no_cm")
@pytest.mark.parametrize("level", [3, 6, 9])
def test_roundtrip_of_frames(model_file: Path, level: int, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"block_size": KIB},
        {"block_size": KIB, "solid": True, "streams": 8, "groups": 2},
    ]
    for data in (b"", *INPUTS.values(), TEXT):
        for how in ways:
            packed = compress(data, level, model=model_file, **how)
            assert decompress(packed, model=model_file, threads=2) == data
            assert compress(data, level, model=model_file, **how, threads=1) == packed
            info = frame_info(packed)
            assert info.nbytes == len(packed)
            uses = [block.method == Method.LM_CM for block in info.blocks or ()]
            if len(uses) == 1:
                assert (info.model_id is not None) == uses[0]
    streamed = Compressor(level, model=model_file, block_size=KIB, content_size=len(TEXT), threads=1)
    pieces = [streamed.compress(TEXT[at : at + 700]) for at in range(0, len(TEXT), 700)]
    packed = compress(TEXT, level, model=model_file, block_size=KIB)
    assert b"".join(pieces) + streamed.flush() == packed
    decoder = Decompressor(model=model_file)
    assert decoder.decompress(packed + b"after") == TEXT
    assert decoder.unused_data == b"after"
    with lmcodec.open(tmp_path / "x", "wb", level=level, model=model_file, block_size=KIB) as file:
        file.write(TEXT)
    with lmcodec.open(tmp_path / "x", model=model_file) as file:
        assert file.read(100) == TEXT[:100]
        for at in (3000, 50, len(TEXT) - 9):
            file.seek(at)
            assert file.read(200) == TEXT[at : at + 200]


@pytest.mark.usefixtures("_no_cm")
def test_solid_blocks_continue_with_what_the_first_chose(model_file: Path) -> None:
    info = frame_info(compress(TEXT, model=model_file, block_size=KIB, solid=True))
    blocks = info.blocks or ()
    assert [b.continues for b in blocks] == [False] + [True] * (len(blocks) - 1)
    assert {b.engine for b in blocks} == {(Method.LM_CM, 2, 1, 1, 0)}
    apart = compress(TEXT, model=model_file, block_size=KIB)
    assert sum(b.payload_nbytes for b in blocks) < sum(
        b.payload_nbytes for b in frame_info(apart).blocks or ()
    )
    # Noise is stored, which ends the chain.
    mixed = frame_info(
        compress(TEXT[:KIB] + NOISE[:KIB] + TEXT[:KIB], model=model_file, block_size=KIB, solid=True)
    )
    assert [b.method for b in mixed.blocks or ()] == [Method.LM_CM, Method.STORED, Method.LM_CM]
    assert not any(b.continues for b in mixed.blocks or ())


def test_solid_blocks_try_no_other_method(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cm, lm = Fixed(0.5), Fixed(0.4)
    monkeypatch.setattr(engine, "Engine", cm)
    monkeypatch.setattr(engine, "LmEngine", lm)
    compress(bytes(3 * KIB), model=model_file, block_size=KIB, solid=True)
    assert (cm.coded, lm.coded) == ([KIB], [KIB] * 3)


@pytest.mark.usefixtures("_no_cm")
def test_frames_name_their_model(model_file: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress(TEXT, model=model_file)
    assert frame_info(packed).model_id == bytes.fromhex(model.model_id)
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    assert compress(TEXT) == packed
    assert decompress(packed) == TEXT
    assert compress(TEXT, 2) == compress(TEXT, 2, model=None)
    monkeypatch.delenv(store.MODEL_VARIABLE)
    monkeypatch.setattr(store, "SHIPPED", {5: Shipped("small", str(model_file), model.model_id)})
    for level, number in ((2, None), (3, 5), (6, 5), (9, 5)):
        assert frame_info(compress(TEXT, level)).model_id == number
    numbered = compress(TEXT)
    assert len(numbered) == len(packed) - 8
    assert decompress(numbered) == decompress(packed) == TEXT
    assert compress(TEXT, model="small") == numbered
    # The level's first choice, where both are there.
    store.SHIPPED[6] = Shipped("base", str(model_file), model.model_id)
    assert [frame_info(compress(TEXT, level)).model_id for level in (3, 5, 6, 9)] == [5, 5, 6, 6]


def test_levels_choose_profiles_and_streams(model: Model) -> None:
    compressor = Compressor(3, model=model.path)
    assert [c.profile for c in compressor._key(100)] == [2, 1]
    assert [c.profile for c in Compressor(5, model=model.path)._key(100)] == [2, 2]
    assert [c.profile for c in Compressor(6, model=model.path)._key(100)] == [2, 2]
    cm, lm = Compressor(6, model=model.path, streams=100, groups=2)._key(50)
    assert (cm.streams, cm.groups, lm.streams, lm.groups) == (4, 2, 50, 2)
    sizes = [1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 300 * KIB, 512 * KIB, 16 << 20]
    assert [lm_streams(n) for n in sizes] == [1, 1, 1, 2, 4, 8, 16]
    assert [lm_streams(4 << 20, codec.LEVELS[level]) for level in range(3, 10)] == [32, 16, 16, 16, 4, 2, 1]
    for level in range(1, 10):
        key = Compressor(level, model=model.path if level > 2 else None)._key(4 << 20)
        assert {c.enlarge for c in key} == {max(level - 6, 0)}
        assert (key[-1].model is None) == (level < 3)
    (alone,) = Compressor(9, model=model.path, method="lm")._key(4 << 20)
    assert alone == EngineSpec(Method.LM, 0, 1, 1, model)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"level": 2}, "level 2 uses no language model"),
        ({"streams": 129}, "streams must be 1 to 128, not 129"),
        ({"groups": 2}, "groups must be at most streams"),
    ],
)
def test_arguments_out_of_range(model_file: Path, how: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compress(TEXT, model=model_file, **how)
    with pytest.raises(ValueError, match="streams must be 1 to 4"):
        compress(TEXT, streams=5)


# Choice


def test_never_larger_than_without_the_model(model_file: Path) -> None:
    methods = set()
    samples = (*INPUTS.values(), TEXT, TEXT + NOISE, *(TEXT[:n] for n in range(2, 60, 9)))
    for data in samples:
        packed, plain = compress(data, model=model_file), compress(data, 2)
        assert len(packed) <= len(plain)
        (block,) = frame_info(packed).blocks or ()
        methods.add(block.method)
        if block.method != Method.LM_CM:
            assert packed == plain
            assert decompress(packed) == data  # needs no model
    assert methods == {Method.STORED, Method.CM, Method.LM_CM}


class Fixed:
    """An engine whose payloads have a share of the original's size; counts what it coded."""

    def __init__(self, share: float) -> None:
        self._share = share
        self.seen: list[bytes] = []

    @property
    def coded(self) -> list[int]:
        return [len(data) for data in self.seen]

    def __call__(self, *_: Any) -> Fixed:
        return self

    def reset(self, tables_nbytes: int = 0) -> None: ...

    def encode(self, data: bytes) -> bytes:
        self.seen.append(data)
        return b"x" * int(len(data) * self._share)


def pieces(data: bytes, n_piece: int, nbytes: int) -> bytes:
    """Pieces spread over data, its first and last bytes among them."""
    return b"".join(data[i * (len(data) - nbytes) // (n_piece - 1) :][:nbytes] for i in range(n_piece))


@pytest.mark.parametrize(
    ("nbytes", "n_piece"), [(4000, 0), (4001, 2), (100 * 16 * 3 - 1, 2), (100 * 16 * 3, 3), (99_999, 5)]
)
@pytest.mark.parametrize(
    ("cm_share", "lm_share", "clear"),
    [
        (0.5, 0.39, Method.LM_CM),  # 1.28 times as many bytes and more
        (0.5, 0.395, None),
        (0.5, 0.48, None),
        (0.5, 0.49, Method.CM),  # less than 1.03 times as many
        (0.5, 0.6, Method.CM),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_blocks_are_decided_on_samples_where_these_are_clear(
    nbytes: int,
    n_piece: int,
    cm_share: float,
    lm_share: float,
    clear: Method | None,
    threads: int,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(levels, "SAMPLED_NBYTES", 4000)
    monkeypatch.setattr(levels, "SAMPLE_NBYTES", 100)
    monkeypatch.setattr(levels, "SAMPLES", 5)
    data = random.Random(nbytes).randbytes(nbytes)
    cm, lm = Fixed(cm_share), Fixed(lm_share)
    monkeypatch.setattr(engine, "Engine", cm)
    monkeypatch.setattr(engine, "LmEngine", lm)
    (block,) = frame_info(compress(data, model=model_file, threads=threads)).blocks or ()
    sample = [pieces(data, n_piece, 100)] if n_piece else []
    clear = clear if n_piece else None
    assert cm.seen == sample + [data] * (clear != Method.LM_CM)
    assert lm.seen == sample + [data] * (clear != Method.CM)
    assert block.method == (clear or (Method.LM_CM if lm_share < cm_share else Method.CM))
    assert block.payload_nbytes == int(nbytes * (cm_share if block.method == Method.CM else lm_share))


@pytest.mark.parametrize(
    ("nbytes", "lm_share", "n_trial"), [(5000, 0.385, 0), (5001, 0.385, 1), (5001, 0.365, 0)]
)
def test_large_blocks_give_context_models_longer(
    nbytes: int, lm_share: float, n_trial: int, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample's 1.3 is clear only up to LARGE_NBYTES, 1.37 above, too."""
    monkeypatch.setattr(levels, "SAMPLED_NBYTES", 4000)
    monkeypatch.setattr(levels, "SAMPLE_NBYTES", 1000)
    monkeypatch.setattr(levels, "LARGE_NBYTES", 5000)
    cm, lm = Fixed(0.5), Fixed(lm_share)
    monkeypatch.setattr(engine, "Engine", cm)
    monkeypatch.setattr(engine, "LmEngine", lm)
    compress(bytes(nbytes), model=model_file)
    assert cm.coded == [2000] + [nbytes] * n_trial
    assert lm.coded == [2000, nbytes]


@pytest.mark.parametrize(
    ("cm_share", "lm_share", "streams", "groups", "given"),
    [
        (0.19, 0.16, 2, 1, {}),  # less than 1.6 bits a byte
        (0.21, 0.17, 8, 2, {}),
        (0.19, 0.14, 8, 2, {}),  # clear
        (0.19, 0.16, 8, 1, {"streams": 8}),
    ],
)
def test_records_have_fewer_streams(
    cm_share: float,
    lm_share: float,
    streams: int,
    groups: int,
    given: dict[str, Any],
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "Engine", Fixed(cm_share))
    monkeypatch.setattr(engine, "LmEngine", Fixed(lm_share))
    data = random.Random(1).randbytes(512 * KIB)
    given = {**given, "groups": 1} if given else {}
    compressor = Compressor(6, model=model_file, solid=True, block_size=len(data), **given)
    packed = compressor.compress(data + data[: 100 * KIB]) + compressor.flush()
    first, second = frame_info(packed).blocks or ()
    assert (first.method, first.streams, first.groups) == (Method.LM_CM, streams, groups)
    assert second.continues
    assert second.engine == first.engine


def test_a_seat_keeps_one_engine_of_a_method(model_file: Path) -> None:
    cm, lm = Compressor(6, model=model_file)._key(512 * KIB)
    seat = Seat((cm, lm))
    assert lm.thinned() != lm
    for coder in (cm, lm, lm.thinned(), lm.thinned(), cm, lm):
        made = seat.engine(coder, False)
        assert seat.engine(coder, False) is made
        assert sum(kept.method == coder.method for kept in seat._engines) == 1
    assert set(seat._engines) == {cm, lm}


def test_two_methods_are_tried_at_the_same_time(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads each engine sees the other at work; with one, none does."""
    barrier = threading.Barrier(2)

    class Meets(Fixed):
        def encode(self, data: bytes) -> bytes:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(20 if expected else 0)
                met.append(len(data))
            return super().encode(data)

    monkeypatch.setattr(engine, "Engine", Meets(0.5))
    monkeypatch.setattr(engine, "LmEngine", Meets(0.4))
    for expected, how in ((True, {"threads": 2}), (False, {"threads": 1})):
        met: list[int] = []
        barrier.reset()
        packed = compress(TEXT, model=model_file, **how)  # type: ignore[arg-type]
        assert met == ([len(TEXT)] * 2 if expected else [])
        assert [b.method for b in frame_info(packed).blocks or ()] == [Method.LM_CM]


def test_a_trial_that_fails_in_its_thread_fails_the_block(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(Fixed):
        def encode(self, data: bytes) -> bytes:
            raise MemoryError("no room")

    for name in ("Engine", "LmEngine"):
        with monkeypatch.context() as patch:
            patch.setattr(engine, name, Fails(0.5))
            compressor = Compressor(model=model_file, threads=2)
            with pytest.raises(MemoryError, match="no room"):
                compressor.compress(TEXT, Compressor.FLUSH_FRAME)
            assert not compressor.usable


# Methods asked for


def test_methods_asked_for(model_file: Path, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"block_size": KIB},
        {"block_size": KIB, "solid": True, "streams": 3, "groups": 2},
    ]
    for name, method in codec.METHODS.items():
        given: dict[str, Any] = {} if name in ("cm", "stored") else {"model": model_file}
        for how in ways:
            packed = compress(TEXT, 6, method=name, **given, **how)
            blocks = frame_info(packed).blocks or ()
            assert {b.method for b in blocks} == {method}
            assert (frame_info(packed).model_id is None) == (not given)
            assert decompress(packed, **given, threads=2) == TEXT
            assert compress(TEXT, 6, method=name, **given, **how, threads=2) == packed
        with lmcodec.open(tmp_path / name, "wb", method=name, **given) as file:
            file.write(TEXT)
        assert (tmp_path / name).read_bytes() == compress(TEXT, method=name, **given)
    for data in INPUTS.values():
        packed = compress(data, method="lm", model=model_file)
        assert decompress(packed, model=model_file) == data
        assert len(packed) <= len(compress(data, method="stored")) + 9
    assert compress(TEXT, 6, method="cm") == compress(TEXT, 2)


def test_methods_that_make_no_sense(model_file: Path) -> None:
    for level, name in ((1, "lm"), (2, "lm+cm")):
        with pytest.raises(ValueError, match=rf"level {level} uses no .*: it cannot use method {name[:2]}"):
            compress(TEXT, level, method=name)
    for name in ("cm", "stored"):
        with pytest.raises(ValueError, match=f"method {name} uses no language model"):
            compress(TEXT, model=model_file, method=name)
    for name in ("lm", "lm+cm"):
        with pytest.raises(ModelNotFound, match="needs a language model"):
            compress(TEXT, method=name)
    with pytest.raises(ValueError, match=r"method must be auto, stored, cm, lm\+cm, lm, not 'LM'"):
        compress(TEXT, method="LM")
    with pytest.raises(TypeError, match="method must be a str, not int"):
        compress(TEXT, method=4)  # type: ignore[arg-type]


def test_models_without_profiles_code_alone(tmp_path: Path) -> None:
    path = tmp_path / "bare.lmm"
    path.write_bytes(recurrent_file.pack(tiny_model()))
    packed = compress(TEXT, model=path, method="lm", block_size=KIB)
    assert {b.method for b in frame_info(packed).blocks or ()} == {Method.LM}
    assert decompress(packed, model=path) == TEXT


def test_alone_is_what_the_network_says(model: Model) -> None:
    """A payload is as long as the definition's probabilities ask for: nothing adapts, nothing is mixed."""
    payload = LmEngine(model, None).encode(TEXT)
    again = LmEngine(model, None, 1)
    assert again.encode(TEXT) == payload
    continued = again.encode(TEXT)  # differs by the start of the network only
    assert abs(len(continued) - len(payload)) < 20
    assert LmEngine(model, None).decode(payload, len(TEXT)) == TEXT
    with pytest.raises(ValueError, match="learns nothing"):
        _ = again._loop.learned


# Which model


def test_missing_and_wrong_models(
    model_file: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    packed = compress(TEXT, model=model_file)
    other = tmp_path / "other.lmm"
    other.write_bytes(recurrent_file.pack(with_profiles(tiny_model(9))))
    other_id = store.load(store.find(other)).model_id
    with pytest.raises(
        ModelNotFound, match=f"^block 1 at offset 15: needs model {model.model_id}, which is neither"
    ):
        decompress(packed)
    with pytest.raises(
        ModelNotFound, match=rf"needs model {model.model_id}.*\(the one given, .*{other_id}\)"
    ):
        decompress(packed, model=other)
    monkeypatch.setenv(store.MODEL_VARIABLE, str(other))
    with pytest.raises(ModelNotFound, match=other_id):
        decompress(packed)
    assert decompress(packed, model=model_file) == TEXT
    assert frame_info(compress(TEXT)).model_id == bytes.fromhex(other_id)
    calls: list[Callable[[], Any]] = [
        lambda: compress(TEXT, model="none.lmm"),
        lambda: Compressor(model="none.lmm"),
        lambda: decompress(packed, model="none.lmm"),
    ]
    for call in calls:
        with pytest.raises(ModelNotFound, match=r"none\.lmm: neither a shipped model \(none\) nor"):
            call()
    with pytest.raises(ModelNotFound, match="not a model file"):
        compress(TEXT, model=tmp_path)


@pytest.mark.usefixtures("_no_cm")
def test_numbers_of_models(model_file: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHIPPED", {5: Shipped("small", str(model_file), model.model_id)})
    packed = compress(TEXT)
    monkeypatch.setattr(store, "SHIPPED", {})
    with pytest.raises(
        ModelNotFound, match=r"needs model 5, which lmcodec .* does not have; a newer lmcodec may"
    ):
        decompress(packed)
    monkeypatch.setattr(store, "RETIRED", {5: Retired("small", "0.0.9", model.model_id)})
    with pytest.raises(
        ModelNotFound, match=r"needs model 5, 'small' of lmcodec 0\.0\.9 .*has replaced; decompress"
    ):
        decompress(packed)
    assert decompress(packed, model=model_file) == TEXT  # its file will do
    monkeypatch.setattr(store, "SHIPPED", {5: Shipped("small", str(model_file), "0" * 16)})
    with pytest.raises(Corrupt, match=f"is model {model.model_id}, model 5 of this version is 0000"):
        decompress(packed)


def test_what_is_shipped() -> None:
    """A number means one model for ever, and the files are the ones that belong to the numbers."""
    numbers, ids = [*SHIPPED, *RETIRED], [s.model_id for s in SHIPPED.values()]
    ids += [retired.model_id for retired in RETIRED.values()]
    assert all(1 <= number <= 127 for number in numbers)
    assert len(set(numbers)) == len(set(ids)) == len(numbers)
    assert len({shipped.name for shipped in SHIPPED.values()}) == len(SHIPPED)
    for shipped in SHIPPED.values():
        header = recurrent_file.read_header(Path(profile.__file__).parent / "models" / shipped.file)
        assert header.model_id == shipped.model_id


def test_damaged_model_files(model_file: Path, tmp_path: Path) -> None:
    data = model_file.read_bytes()
    path = tmp_path / "m.lmm"
    rng = random.Random(1)
    for _ in range(20):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(LmcodecError, match=r"m\.lmm: "):
            compress(TEXT, model=path)
    path.write_bytes(data)
    assert decompress(compress(TEXT, model=path), model=path) == TEXT


def test_loading_without_a_further_thread(
    model_file: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [profile.spec for profile in model.profiles]

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = store.find(model_file)
    for cannot in (False, True):
        if cannot:
            monkeypatch.setattr(threading.Thread, "start", start)
        monkeypatch.setattr(store, "_loaded", {})
        assert [profile.spec for profile in store.load(source).profiles] == expected


def test_models_without_profiles_only_measure(tmp_path: Path) -> None:
    path = tmp_path / "bare.lmm"
    path.write_bytes(recurrent_file.pack(tiny_model()))
    with pytest.raises(Unsupported, match="holds no profile of the context models"):
        compress(TEXT, model=path)
    path.write_bytes(recurrent_file.pack(replace(tiny_model(), mixer=b"LMZP")))
    with pytest.raises(Corrupt, match=r"bare\.lmm: mixer: not a profile"):
        compress(TEXT, model=path)
    packed = (Path(profile.__file__).parent / "models" / "profile-1.lmp").read_bytes()
    path.write_bytes(recurrent_file.pack(replace(tiny_model(), mixer=packed)))
    with pytest.raises(Corrupt, match="for blocks without a language model"):
        compress(TEXT, model=path)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Instruction sets that compute wrongly; models are loaded afresh."""
    broken: set[str] = set()

    class Wrong(native.NativeNetwork):
        def self_test(self, known: str) -> None:
            super().self_test("0" * 64 if self.isa in broken else known)

    monkeypatch.setattr(native, "NativeNetwork", Wrong)
    monkeypatch.setattr(store, "_loaded", {})
    return broken


def test_an_executor_that_fails_its_test_is_not_used(model_file: Path, wrong: set[str]) -> None:
    first, *others = _kernel.network_isas()
    wrong.add(first)
    if others:
        with pytest.warns(RuntimeWarning, match=rf"\({first}\) answers .*; {others[0]} is used instead"):
            assert store.load(store.find(model_file)).isa == others[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once
            assert store.load(store.find(model_file)).isa == others[0]
    wrong.update(others)
    store._loaded.clear()
    with pytest.raises(Corrupt, match="fails its self-test"):
        store.load(store.find(model_file))


def test_models_are_loaded_once_unless_their_file_changes(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_loaded", {})
    path = tmp_path / "m.lmm"
    path.write_bytes(model_file.read_bytes())
    first = store.load(store.find(path))
    assert store.load(store.find(path)) is first
    path.write_bytes(recurrent_file.pack(with_profiles(tiny_model(11))))
    assert store.load(store.find(path)).model_id != first.model_id
    for i in range(2 * store._KEPT):
        copy = tmp_path / f"{i}.lmm"
        copy.write_bytes(path.read_bytes())
        kept = store.load(store.find(copy))
        assert store.load(store.find(path)) is store.load(store.find(path))  # in use, it stays
    assert store.load(store.find(copy)) is kept
    assert len(store._loaded) <= store._KEPT


# Limits, damage


MEASURE = """
import sys
from lmcodec.engine import LmEngine, lm_memory_nbytes
from lmcodec.lm import store

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

path, number, streams, nbytes = sys.argv[1], *map(int, sys.argv[2:])
data = bytes(range(97, 123)) * (nbytes // 26)
before = status("VmRSS")
model = store.load(store.find(path))
coder = LmEngine(model, number or None, streams)
payload = coder.encode(data)
coder.reset()
assert coder.decode(payload, len(data)) == data
print(status("VmHWM") - before, lm_memory_nbytes(model, number or None, len(data), streams, encoding=True))
"""


def check_memory(path: Path, number: int, streams: int, nbytes: int) -> None:
    arguments = [sys.executable, "-I", "-c", MEASURE, str(path), *map(str, (number, streams, nbytes))]
    run = subprocess.run(arguments, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    used, most = map(int, run.stdout.split())
    assert used <= most


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.parametrize(("streams", "nbytes"), [(1, 1 << 12), (128, 1 << 12), (4, 1 << 19)])
def test_memory_without_context_models(streams: int, nbytes: int, model_file: Path) -> None:
    check_memory(model_file, 0, streams, nbytes)


@linux
@pytest.mark.parametrize(
    ("number", "streams", "nbytes"), [(1, 1, 1 << 12), (1, 3, 1 << 18), (2, 128, 1 << 12)]
)
def test_memory_with_context_models(number: int, streams: int, nbytes: int, model_file: Path) -> None:
    check_memory(model_file, number, streams, nbytes)


@linux
def test_memory_of_large_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most there can be of rows: maps of the language model, final maps, entries of token ends."""
    spec = {
        "contexts": [["order1"], ["token"]] * 32,
        "selectors": ["zero"],
        "maps": ["tokens", "order1"] * 3,
        "lm_maps": ["tokens", "order1"] * 4,
        "matches": [5],
        "numbers": {"lm": 1, "table_log2": 12, "n_end": 64, "end_log2": 24},
    }
    monkeypatch.setitem(globals(), "SPECS", [spec])
    path = tmp_path / "large.lmm"
    path.write_bytes(recurrent_file.pack(with_profiles(tiny_model())))
    check_memory(path, 1, 1, 1 << 17)


def test_the_kernel_says_what_a_loop_takes(model: Model) -> None:
    """What Python adds is the model's, and its own by the byte: it knows no size of the kernel's."""
    n_token, stream_nbytes = len(model.vocabulary), model.stream_nbytes
    for number in (0, 1, 2):
        kernel = model.profile(number).kernel if number else None
        for encoding in (False, True):
            added = set()
            for streams, chained, enlarge in (
                (1, False, 0),
                (128, False, 0),
                (4, number > 0, 3 * (number > 0)),
            ):
                whole = lm_memory_nbytes(
                    model, number or None, 1 << 20, streams, chained, encoding, enlarge, 1 << 22
                )
                added.add(
                    whole
                    - _kernel.token_loop_memory_nbytes(
                        kernel, n_token, stream_nbytes, 1 << 20, streams, chained, encoding, enlarge, 1 << 22
                    )
                )
            assert len(added) == 1
    # A session of two streams may take less than one of one stream, whose buffers are longer.
    least = _kernel.token_loop_memory_nbytes(None, n_token, 0, 1000, 2)
    assert _kernel.token_loop_memory_nbytes(None, n_token, -1000, 1000, 2) == least
    with pytest.raises(ValueError, match="1 to 128"):
        _kernel.token_loop_memory_nbytes(None, n_token, stream_nbytes, 1000, 129)


@pytest.mark.usefixtures("_no_cm")
def test_memory_limit(model_file: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress(TEXT, model=model_file, streams=8)
    (block,) = frame_info(packed).blocks or ()
    need = lm_memory_nbytes(model, 2, len(TEXT), 8) + 2 * block.payload_nbytes
    assert decompress(packed, model=model_file, memory_limit=need) == TEXT
    monkeypatch.setattr(engine, "LmEngine", None)  # nothing is allocated
    with pytest.raises(LimitExceeded, match=f"takes {need} bytes of memory"):
        decompress(packed, model=model_file, memory_limit=need - 1)


@pytest.mark.parametrize("method", ["lm+cm", "lm"])
def test_damage_is_never_silent(method: str, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    data = b"the walrus and the walrus of the ocean"
    packed = compress(data, 3, method=method)
    assert [b.method for b in frame_info(packed).blocks or ()] == [codec.METHODS[method]]
    check_corrupt((packed, data))


@pytest.mark.parametrize("method", ["lm+cm", "lm"])
def test_damage_of_several_blocks_is_never_silent(
    method: str, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    packed = compress(TEXT, 6, block_size=KIB, solid=True, streams=3, groups=2, method=method)
    rng = random.Random(2)
    for _ in range(150):
        damaged = bytearray(packed)
        damaged[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        with pytest.raises(LmcodecError) as raised:
            decompress(damaged, max_output=1 << 20, threads=1)
        assert "\n" not in str(raised.value)
    for cut in rng.sample(range(len(packed)), 60):
        with pytest.raises(LmcodecError):
            in_pieces(packed[:cut], piece=99)


def test_headers_that_are_refused(model_file: Path, model: Model) -> None:
    header = FrameHeader(model_id=bytes.fromhex(model.model_id)).pack()

    def check(error: type[LmcodecError], text: str, *fields: Any, named: bool = True) -> None:
        block = replace(Block(*fields), last=True).pack(b"0123456789", b"01234")
        with pytest.raises(error, match=text):
            decompress((header if named else FrameHeader().pack()) + block, model=model_file)

    check(Unsupported, "profile 3 is unknown to model", Method.LM_CM, 10, 5, 3, 1, 1)
    check(Unsupported, "profile 0", Method.LM_CM, 10, 5, 0, 1, 1)
    check(Unsupported, "profile 1, this lmcodec knows 0", Method.LM, 10, 5, 1, 1, 1)
    check(Unsupported, "profile 0, this lmcodec knows 0", Method.LM, 10, 5, 1 << 5, 1, 1)
    check(Corrupt, "names none", Method.LM, 10, 5, 0, 1, 1, named=False)
    check(Corrupt, "1 streams in 2 groups", Method.LM, 10, 5, 0, 1, 2)
    check(Corrupt, "1 streams in 2 groups", Method.LM_CM, 10, 5, 1, 1, 2)
    check(Corrupt, "original size 10, expected 11", Method.LM_CM, 10, 5, 1, 11, 1)
    check(Corrupt, "names none", Method.LM_CM, 10, 5, 1, 1, 1, named=False)
    assert frame.parse_block(Block(Method.LM_CM, 200, 5, 31, 128, 2).head() + bytes(4), "", has_model=True)


# Command line


def run(*arguments: Any) -> int:
    """Exit status of `lmcodec`."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in arguments])
    return int(exit.value.code or 0)


@pytest.mark.usefixtures("_no_cm")
def test_commands_take_a_model(
    model_file: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, packed = tmp_path / "text", tmp_path / "text.lmz"
    path.write_bytes(TEXT)
    assert run("compress", "--verify", "--model", model_file, path) == 0
    assert packed.read_bytes() == compress(TEXT, model=model_file)
    assert run("list", "-v", packed) == 0
    out = capfd.readouterr().out
    assert "lm+cm:2" in out
    assert model.model_id in out
    assert run("list", packed) == 0
    assert model.model_id not in capfd.readouterr().out
    assert run("test", packed) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"needs model {model.model_id}" in line
    assert "--model" in line
    assert run("test", "--model", model_file, packed) == 0
    assert run("decompress", "-c", "--model", model_file, packed) == 0
    assert capfd.readouterr().out.encode() == TEXT
    assert run("compress", "-2", "-c", "--model", model_file, path) == 1
    assert "--model does not go together with -2" in capfd.readouterr().err


def test_commands_take_a_method(
    model_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, packed = tmp_path / "text", tmp_path / "text.lmz"
    path.write_bytes(TEXT)
    for name, listed in (("lm", "lm"), ("lm+cm", "lm+cm:2"), ("cm", "cm:strong"), ("stored", "stored")):
        given = ["--model", model_file] if name.startswith("lm") else []
        assert run("compress", "-f", "--verify", "--method", name, *given, path) == 0
        assert run("list", packed) == 0
        assert capfd.readouterr().out.splitlines()[1].split()[-2] == listed
        assert run("decompress", "-c", *given, packed) == 0
        assert capfd.readouterr().out.encode() == TEXT
    for arguments, part in (
        (["--method", "lm", "-2"], "--method lm does not go together with -2"),
        (["--method", "cm", "--model", model_file], "--model does not go together with --method cm"),
        (["--method", "stored", "-1", "--model", model_file], "--model does not go together with -1"),
        (["--method", "lm"], "method lm needs a language model, and none is shipped or given"),
    ):
        assert run("compress", "-c", *arguments, path) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert part in line
    assert run("compress", "-c", "--method", "huffman", path) == 1
    assert "'huffman' is not one of 'auto'" in capfd.readouterr().err


def test_commands_on_models(
    model_file: Path,
    model: Model,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("model", "list") == 0
    assert "no model is shipped" in capfd.readouterr().out
    monkeypatch.setattr(store, "SHIPPED", {5: Shipped("small", str(model_file), model.model_id)})
    assert run("model", "list") == 0
    assert ["small", model.model_id, "recurrent"] == capfd.readouterr().out.splitlines()[1].split()[:3]
    assert run("model", "show", "small") == 0
    out = capfd.readouterr().out
    for part in (f"{model.model_id}, number 5", "300 tokens, width 24", "layers.0.in", "head"):
        assert part in out
    assert run("model", "verify", model_file) == 0
    lines = capfd.readouterr().out.splitlines()
    assert all("sound" in line for line in lines)
    assert {f"kernel, {isa}: sound" for isa in _kernel.network_isas()} < set(lines)
    lying = tmp_path / "lying.lmm"
    lying.write_bytes(recurrent_file.pack(tiny_model(), known="0" * 64))
    assert run("model", "verify", lying) == 1
    out, err = capfd.readouterr()
    assert "definition: FAILED" in out
    assert "profiles: FAILED" in out
    assert err.startswith("lmcodec: ")
    for arguments in (["show", "none"], ["verify", tmp_path / "none"], ["show", Path(__file__)]):
        assert run("model", *arguments) == 1
        assert len(capfd.readouterr().err.splitlines()) == 1


def test_export(tmp_path: Path, model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from lmcodec.train import checkpoint
    from lmcodec.train.net import Net
    from lmcodec.train.net_config import NetConfig

    words = vocabulary()
    (tmp_path / "v.lmv").write_bytes(words.pack())
    shape = NetConfig(len(words), 16, 1, 16, 16)
    document = {
        "model": dataclasses.asdict(shape),
        "vocab_id": words.vocab_id,
        "name": "toy",
        "step": 3,
        "rounded_activations": True,
        "weight_levels": 63,
    }
    checkpoint.save(tmp_path / "run" / "export", dict(Net(shape).named_parameters()), document)
    checkpoint.save(tmp_path / "run" / "checkpoint", {}, {"step": 3})
    out = tmp_path / "toy.lmm"
    common = ["-o", out, "--vocab", tmp_path / "v.lmv"]
    assert (
        run("model", "export", tmp_path / "run", *common, "--card", "x=[1]", "--mixer-from", model_file) == 0
    )
    made = recurrent_file.load(out)
    assert made.header.card == {"name": "toy", "step": 3, "x": [1]}
    assert made.model.mixer == recurrent_file.load(model_file).model.mixer
    before = out.read_bytes()
    assert decompress(compress(TEXT, model=out), model=out) == TEXT
    capfd.readouterr()
    for arguments, part in (
        ([tmp_path / "run" / "checkpoint", *common], "the state of a run"),
        ([tmp_path, *common], "no checkpoint there"),
        ([tmp_path / "run", *common, "--card", "x"], "expected KEY=VALUE"),
        ([tmp_path / "run", *common, "--mixer", model_file], "--mixer: not a profile"),
    ):
        assert run("model", "export", *arguments) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert part in line
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "toy.lmm", "v.lmv"]
