"""The kernel's loop over blocks with a language model: one result by every way, no harm by what is wrong."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, make_vocabulary
from integer_models import random_model
from test_kernel_builds import BUILDS, NATIVE, SOURCES, WARNINGS, Build
from test_native_network import model_bytes

from lmcodec import _kernel, coder, profile
from lmcodec.lm import decisions
from lmcodec.lm.recurrent import reference, tables
from lmcodec.lm.recurrent.model import IntegerModel
from lmcodec.lm.recurrent.native import NativeNetwork
from lmcodec.lm.vocab import Vocabulary

# Streams, groups.
SHAPES = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (8, 1), (8, 2), (128, 1), (128, 2)]
ROOM = 777  # decisions a call: no divisor of what there is

# Every feature, selector, list and number that a language model adds.
SPEC: dict[str, Any] = {
    "contexts": [
        *(["order1", "begun"], ["order2"], ["order3"], ["word", "order1", "token"], ["column", "above"]),
        *(["token1", "token2"], ["token2", "begun", "order1"], ["token"], ["token1", "token", "order1"]),
    ],
    "selectors": ["order0", "match", "known", "lm", "lm_match", "token", "tokens"],
    "maps": ["lm", "lm_match", "order1", "tokens"],
    "lm_maps": ["order1", "tokens", "hash2", "hash_word", "match_byte", "lm_match", "token", "lm"],
    "matches": [5, 12],
    "numbers": {
        "lm": 1,
        "table_log2": 14,
        "match_log2": 11,
        "weight_rate": 12,
        "final_selector": 1,
        "n_end": 8,
        "end_log2": 11,
        "lm_map_rate": 6,
    },
}
CM_SPEC = {
    "contexts": [["order1"], ["order2"], ["word", "order1"]],
    "selectors": ["order0", "match"],
    "maps": [],
    "matches": [5, 12],
    "numbers": {"table_log2": 14},
}
# As many of everything as there can be, the fastest rates.
LARGEST: dict[str, Any] = {
    "contexts": [
        [f"order{1 + i % 8}", *profile.LM_FEATURES[i % 4 : min(i // 8, i % 4 + 3)]] for i in range(64)
    ],
    "selectors": [
        *("order0", "match", "known", "lm", "lm_match", "token"),
        *("word", "field", "nest", "match_byte", "byte1", "column"),
    ],
    "maps": ["lm", "lm_match", "token", "tokens", "order1", "zero"],
    "lm_maps": ["tokens", "order1", "hash2", "hash3", "hash_word", "lm", "lm_match", "match_byte"],
    "matches": [5, 12, 1],
    "numbers": {
        "lm": 1,
        "table_log2": 14,
        "match_log2": 11,
        "final_selector": 1,
        "n_direct": 4,
        "apm_weight": 16,
        "weight_rate": 64,
        "final_rate": 64,
        "apm_rate": 1,
        "lm_map_rate": 1,
        "map_limit": 1023,
        "n_end": 64,
        "end_log2": 10,
    },
}


@cache
def words() -> Vocabulary:
    """Tokens that go on through strings that are none, long ones, and some that end inside a character."""
    text = [w for w in WORDS if len(w) > 1] + [b" " + w for w in WORDS] + [b"walrus", "überzählig".encode()]
    bytes_only = [b"\0" * 2, b"\0" * 40, b"\xff\xfe", b"\xff" * 255, "文字".encode(), "文".encode()[:2]]
    return make_vocabulary([*text, *bytes_only])


@cache
def model(extreme: bool = False) -> IntegerModel:
    made = random_model(11, len(words()), dim=24, n_layer=1, recurrent=19, mlp=20, extreme=extreme)
    return replace(made, vocabulary=words())


def offsets_of(vocabulary: Vocabulary) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(vocabulary.nbytes, dtype=np.uint32)]).astype(np.uint32)


@cache
def coding(isa: str | None = None, extreme: bool = False) -> _kernel.TokenCoding:
    network = NativeNetwork(model(extreme), isa).kernel
    strings = np.frombuffer(b"".join(words().strings), np.uint8)
    return _kernel.TokenCoding(network, strings, offsets_of(words()), tables.log2())


@cache
def neutral() -> profile.Profile:
    return profile.build(SPEC)


@cache
def extreme_profile(sign: int, certain: int) -> profile.Profile:
    """Every weight at its bound, maps and cells at an end, the most inputs and the fastest rates."""
    made = profile.build(LARGEST)
    learned = np.empty(made.kernel.n_learned, np.uint32)
    n_map, n_weight = made.kernel.weights_at, made.kernel.cells_at
    learned[:n_map] = 0xFFFFFFFF if certain else 1023
    learned[: 256 * len(LARGEST["contexts"]) : 256] = 1 << 31
    learned[n_map - 256 * LARGEST["numbers"]["n_end"] : n_map : 256] = 1 << 31
    learned[n_map:n_weight].view(np.int32)[:] = sign * ((1 << 19) - 1)
    learned[n_weight:] = 65535 if certain else 0
    made.kernel.set_learned(learned)
    return made


def new_coder(streams: int = 1, groups: int = 1, **how: Any) -> _kernel.TokenLoop:
    return _kernel.TokenLoop(coding(), neutral().kernel, streams, groups, **how)


def tokens_of(data: bytes, streams: int) -> np.ndarray:
    borders = [s * len(data) // streams for s in range(streams + 1)]
    return np.concatenate([words().segment(data[a:b]) for a, b in pairwise(borders)])


def array(data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def begin(token_loop: _kernel.TokenLoop, data: bytes, streams: int) -> None:
    token_loop.begin_encode(array(data), tokens_of(data, streams))


def decisions_of(token_loop: _kernel.TokenLoop, data: bytes, streams: int) -> tuple[np.ndarray, np.ndarray]:
    """bits and p16 of a block."""
    begin(token_loop, data, streams)
    bits, p16 = np.empty(ROOM, np.uint8), np.empty(ROOM, np.uint16)
    parts = []
    while n := token_loop.encode(bits, p16):
        parts.append((bits[:n].copy(), p16[:n].copy()))
    assert token_loop.done
    return np.concatenate([b for b, _ in parts]), np.concatenate([p for _, p in parts])


def payload_of(bits: np.ndarray, p16: np.ndarray) -> bytes:
    encoder = coder.Encoder()
    encoder.encode(bits, p16)
    return encoder.finish()


def restore(token_loop: _kernel.TokenLoop, payload: bytes, nbytes: int) -> bytes | None:
    """What a payload decodes to; None if it is corrupt."""
    out = bytearray(nbytes)
    token_loop.begin_decode(array(out), array(payload))
    while not token_loop.done:
        if not token_loop.decode(ROOM):
            return None
    return bytes(out) if token_loop.decode(0) else None


def text(seed: int, n_word: int = 700) -> bytes:
    rng = random.Random(seed)
    odd = ["überzählig".encode(), "文字".encode(), b"\xff" * 300, bytes(90), b"\xff\xfe\xf0", b"walruwal\n"]
    return b" ".join(rng.choices([*WORDS, *odd], [4] * len(WORDS) + [1] * len(odd), k=n_word))


def blocks() -> list[bytes]:
    """A chain, and its last block has a byte a stream and little more."""
    again = text(1)
    return [again, again[:700] + text(2, 60), random.Random(3).randbytes(300), again[100:230]]


def check_roundtrip(chain: list[bytes], streams: int, groups: int) -> None:
    """Blocks that continue one another come back, and a block after a reset is as the first was."""
    encoder, decoder = new_coder(streams, groups), new_coder(streams, groups)
    made = [decisions_of(encoder, block, streams) for block in chain]
    for block, (bits, p16) in zip(chain, made, strict=True):
        assert restore(decoder, payload_of(bits, p16), len(block)) == block
    encoder.reset()
    for then, now in zip(made[0], decisions_of(encoder, chain[0], streams), strict=True):
        assert (then == now).all()


def test_the_specification_covers_what_a_language_model_adds() -> None:
    assert {*profile.LM_FEATURES} <= {name for context in SPEC["contexts"] for name in context}
    assert {*profile.LM_SELECTORS} <= {*SPEC["selectors"]}
    assert {*profile.LM_SELECTORS} <= {*SPEC["maps"], *SPEC["lm_maps"]}


@pytest.mark.parametrize(("streams", "groups"), SHAPES)
def test_roundtrip_of_a_chain(streams: int, groups: int) -> None:
    check_roundtrip(blocks(), streams, groups)


@pytest.mark.parametrize(("streams", "groups"), SHAPES)
def test_small_blocks(streams: int, groups: int) -> None:
    """One byte a stream and a few more; streams that are much shorter in tokens than others."""
    zeros = bytes(160 * streams)
    lengths = [streams, streams + 1, 2 * streams - 1, 2 * streams]
    check_roundtrip([text(4)[:n] for n in lengths] + [zeros + b"ab" * 40 * streams], streams, groups)


def test_continuing_differs_from_beginning() -> None:
    one = new_coder()
    first, second = (decisions_of(one, blocks()[0], 1) for _ in range(2))
    assert (first[0] == second[0]).all()
    assert len(payload_of(*second)) < len(payload_of(*first)) / 2


@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (3, 2), (128, 1)])
def test_one_decision_at_a_time(streams: int, groups: int) -> None:
    """p and push offer the decisions that encode lists, in either direction."""
    data = blocks()[0]
    bits, p16 = decisions_of(new_coder(streams, groups), data, streams)
    encoding, decoding = new_coder(streams, groups), new_coder(streams, groups)
    begin(encoding, data, streams)
    out = bytearray(len(data))
    decoding.begin_decode(array(out), array(b""))
    for bit, p in zip(bits.tolist(), p16.tolist(), strict=True):
        assert encoding.p == decoding.p == p
        encoding.push(bit)
        decoding.push(bit)
    assert encoding.done
    assert decoding.done
    assert out == data


@pytest.mark.parametrize("n_by_encode", [0, 1, 100])
def test_encode_and_push_take_turns(n_by_encode: int) -> None:
    data = blocks()[0][:400]
    bits, p16 = decisions_of(new_coder(2), data, 2)
    mixed = new_coder(2)
    begin(mixed, data, 2)
    some = np.empty(n_by_encode, np.uint8), np.empty(n_by_encode, np.uint16)
    assert mixed.encode(*some) == n_by_encode
    assert mixed.p == p16[n_by_encode]
    mixed.push(int(bits[n_by_encode]))
    assert mixed.p == p16[n_by_encode + 1]


def test_decisions_have_two_sides() -> None:
    """No decision of the first token is coded that the vocabulary leaves no choice in."""
    data = b"walrus"
    bits, _ = decisions_of(new_coder(), data, 1)
    open_bits = 0
    for i, byte in enumerate(data):
        next_bytes = {s[i] for s in words().strings if s[:i] == data[:i] and len(s) > i}
        for k in range(7, -1, -1):
            sides = {b >> k & 1 for b in next_bytes}
            open_bits += len(sides) == 2
            next_bytes = {b for b in next_bytes if b >> k & 1 == byte >> k & 1}
        strings = [s for s in words().strings if s.startswith(data[: i + 1])]
        is_last = i + 1 == len(data)
        open_bits += data[: i + 1] in strings and len(strings) > 1 and not is_last
    assert len(bits) == open_bits


def test_the_stretch_of_the_first_decision() -> None:
    """With a mixer of the language model alone the first probability is that of FORMAT.md section 6.5."""
    spec = {
        **SPEC,
        "selectors": ["zero"],
        "maps": [],
        "lm_maps": [],
        "numbers": {"lm": 1, "apm_weight": 0, "table_log2": 14},
    }
    only_lm = profile.build({**spec, "numbers": {**spec["numbers"], "final_selector": 0}})
    learned = np.zeros(only_lm.kernel.n_learned, np.uint32)
    learned[: only_lm.kernel.weights_at] = 1 << 31
    n_before = 2 * (len(SPEC["contexts"]) + 2 + len(SPEC["matches"]))  # inputs before the language model's
    learned[only_lm.kernel.weights_at + n_before] = 1 << 16
    learned[only_lm.kernel.weights_at + only_lm.kernel.n_input] = 1 << 16
    only_lm.kernel.set_learned(learned)
    one = _kernel.TokenLoop(coding(), only_lm.kernel)
    begin(one, b"a", 1)
    made = model()
    state = reference.start(made, np.array([False]))
    logits = reference.step(made, np.array([made.config.bos]), state)
    sums = decisions.cumulate(decisions.frequencies(logits))[0]
    middle, end = words().prefix_range(b"\x80")[0], len(words())
    stretched = int(decisions.stretch(sums[end] - sums[middle], sums[middle]))
    expected = 65536 / (1 + np.exp(-stretched / 256))
    assert abs(one.p - expected) < 2
    assert abs(stretched) > 20


def test_every_instruction_set() -> None:
    data = blocks()[0]
    expected = decisions_of(new_coder(8, 2), data, 8)
    for network_isa in _kernel.network_isas():
        for isa in _kernel.mixing_isas():
            one = _kernel.TokenLoop(coding(network_isa), neutral().kernel, 8, 2, isa)
            for a, b in zip(decisions_of(one, data, 8), expected, strict=True):
                assert (a == b).all(), (network_isa, isa)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("certain", [0, 1])
@pytest.mark.parametrize("streams", [1, 3])
def test_extreme_weights(sign: int, certain: int, streams: int) -> None:
    chosen = extreme_profile(sign, certain).kernel
    assert chosen.n_input == 160
    coders = [_kernel.TokenLoop(coding(extreme=True), chosen, streams) for _ in range(2)]
    for block in blocks():
        bits, p16 = decisions_of(coders[0], block, streams)
        assert p16.min() >= 1
        assert restore(coders[1], payload_of(bits, p16), len(block)) == block


# What is wrong


def test_damaged_payloads_end() -> None:
    """Any words decode to something or are corrupt; a coder that met them codes after a reset as ever."""
    rng = random.Random(5)
    data = blocks()[0]
    for streams, groups in ((1, 1), (3, 2), (8, 1)):
        used = new_coder(streams, groups)
        fresh = decisions_of(new_coder(streams, groups), data, streams)
        payload = payload_of(*fresh)
        flipped = bytearray(payload)
        flipped[len(payload) // 3] ^= 16
        cases = [bytes(flipped), payload[: len(payload) // 2], b"", b"\xff" * 300, bytes(300)]
        cases += [rng.randbytes(300) for _ in range(10)]
        outcomes = []
        for case in cases:
            used.reset()
            outcomes.append(restore(used, case, len(data)))
            assert outcomes[-1] is None or len(outcomes[-1]) == len(data)
        assert data not in outcomes
        used.reset()
        for a, b in zip(decisions_of(used, data, streams), fresh, strict=True):
            assert (a == b).all()


def test_a_stream_that_ends_inside_a_token_is_corrupt() -> None:
    """Two bytes of a token of six, where no token of two is."""
    bits, p16 = decisions_of(new_coder(), b"wa", 1)  # two tokens
    long_bits, long_p16 = decisions_of(new_coder(), b"walrus", 1)
    assert (long_bits != np.resize(bits, len(long_bits))).any()
    assert restore(new_coder(), payload_of(bits, p16), 2) == b"wa"
    assert restore(new_coder(), payload_of(long_bits, long_p16), 2) is None


def test_a_block_left_half_way() -> None:
    """It must be forgotten before another begins, and leaves nothing then."""
    data = blocks()[0]
    expected = decisions_of(new_coder(2), data, 2)
    left = new_coder(2)
    for push in range(9):
        begin(left, data, 2)
        for _ in range(push):
            left.push(int(expected[0][_]))
        with pytest.raises(ValueError, match="reset"):
            begin(left, data, 2)
        with pytest.raises(ValueError, match="reset"):
            left.begin_decode(array(bytearray(9)), array(b""))
        assert not left.done
        left.reset()
        assert left.done
    for a, b in zip(decisions_of(left, data, 2), expected, strict=True):
        assert (a == b).all()


def test_no_decision_without_a_block() -> None:
    idle, room = new_coder(), (np.empty(8, np.uint8), np.empty(8, np.uint16))

    def check_idle() -> None:
        assert idle.done
        for call in (
            lambda: idle.p,
            lambda: idle.push(0),
            lambda: idle.decode(1),
            lambda: idle.encode(*room),
        ):
            with pytest.raises(ValueError):
                call()

    check_idle()
    begin(idle, b"abc", 1)
    idle.reset()
    check_idle()


def test_a_direction_is_kept() -> None:
    """encode wants a block to encode, decode one to decode; push takes no other bit than the block's."""
    one = new_coder()
    begin(one, b"the walrus", 1)
    with pytest.raises(ValueError, match="decoded"):
        one.decode(1)
    bits, p16 = decisions_of(new_coder(), b"the walrus", 1)
    with pytest.raises(ValueError, match="another bit"):
        one.push(1 - int(bits[0]))
    assert one.p == p16[0]
    one.reset()
    one.begin_decode(array(bytearray(10)), array(b""))
    with pytest.raises(ValueError, match="encoded"):
        one.encode(np.empty(8, np.uint8), np.empty(8, np.uint16))


def test_what_is_refused() -> None:
    plain = profile.build(CM_SPEC).kernel
    for streams, groups in ((0, 1), (129, 1), (1, 2), (2, 3), (2, 0)):
        with pytest.raises(ValueError):
            new_coder(streams, groups)
    with pytest.raises(ValueError):
        _kernel.TokenLoop(coding(), plain)
    with pytest.raises(ValueError):
        new_coder(isa="no such thing")
    for nbytes in (0, 2, (1 << 24) + 1):
        with pytest.raises(ValueError):
            new_coder(3).begin_encode(np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint16))
        with pytest.raises(ValueError):
            new_coder(3).begin_decode(np.zeros(nbytes, np.uint8), array(b""))


def of(*strings: bytes) -> list[int]:
    return [words().index[s] for s in strings]


@pytest.mark.parametrize(
    ("streams", "tokens"),
    [
        (1, of(b"walrus")),  # too few
        (1, of(b"walrus", b"a", b"b", b"c")),  # too many
        (1, of(b"walrus", b"a", b"c")),  # of the right lengths, other bytes
        (1, of(b"walrus", b"in")),
        (1, [*of(b"walrus", b"a"), len(words())]),  # none of the vocabulary
        (2, of(b"walrus", b"a", b"b")),  # across the border of the streams
        (1, []),
    ],
)
def test_tokens_must_spell_the_streams(streams: int, tokens: list[int]) -> None:
    one = new_coder(streams)
    with pytest.raises(ValueError):
        one.begin_encode(array(b"walrusab"), np.array(tokens, np.uint16))
    assert one.done
    one.begin_encode(array(b"walrusab"), tokens_of(b"walrusab", streams))


def test_any_segmentation_decodes() -> None:
    """Single bytes instead of the longest tokens: the encoder's choice."""
    data = b"the walrus and the walrus"
    one = new_coder()
    one.begin_encode(array(data), np.array([words().index[bytes([b])] for b in data], np.uint16))
    bits, p16 = np.empty(1000, np.uint8), np.empty(1000, np.uint16)
    n = one.encode(bits, p16)
    assert restore(new_coder(), payload_of(bits[:n], p16[:n]), len(data)) == data


def coding_of(strings: list[bytes], offsets: list[int] | None = None, n_log2: int = 1024) -> None:
    ends = np.cumsum([0, *map(len, strings)]) if offsets is None else np.array(offsets)
    table = np.zeros(n_log2, np.int32)
    network = NativeNetwork(model()).kernel
    _kernel.TokenCoding(network, array(b"".join(strings)), ends.astype(np.uint32), table)


def test_vocabularies_that_are_refused() -> None:
    good = list(words().strings)
    coding_of(good)
    swapped = [good[1], good[0], *good[2:]]
    doubled = [*good[:-2], good[-2], good[-2]]
    no_single = sorted({*good, b"aaa"} - {b"a"})
    too_long = [*good, b"\xff" * 65_536]
    for strings in (swapped, doubled, no_single, too_long, good[:-1], [*good, b"\xff" * 254 + b"\xfe"]):
        with pytest.raises(ValueError):
            coding_of(strings)
    ends = np.cumsum([0, *map(len, good)]).tolist()
    for offsets in (
        ends[1:] + ends[-1:],
        [1, *ends[1:]],
        [*ends[:-1], ends[-1] + 1],
        [0, ends[-1] + 9, *ends[2:]],
    ):
        with pytest.raises(ValueError):
            coding_of(good, offsets)
    with pytest.raises(ValueError):
        coding_of(good, n_log2=1023)


# Other builds


class Driver(Build):
    """A build of token_driver.cpp, and the files it reads."""

    def __init__(self, binary: Path, folder: Path, names: list[str]) -> None:
        super().__init__(binary, folder)
        self._names = names
        # Of the machine that runs the build, which LMCODEC_TEST_RUNNER may emulate.
        networks, mixers = self("isas").decode().split("\n")
        self.network_isas, self.mixing_isas = networks.split(), mixers.split()

    def profile(self, chosen: profile.Profile, learned: np.ndarray | None = None) -> str:
        spec = chosen.spec
        defaults = {
            "final_selector": 1,
            "table_log2": 22,
            "match_log2": 18,
            "map_limit": 255,
            "n_direct": 2,
            "direct_limit": 255,
            "weight_rate": 6,
            "final_rate": 2,
            "apm_rate": 6,
            "apm_weight": 8,
            "lm": 0,
            "lm_map_rate": 5,
            "n_end": 0,
            "end_log2": 22,
        }
        lists = [
            *([profile.FEATURES.index(name) for name in context] for context in spec["contexts"]),
            [profile.SELECTORS.index(name) for name in spec["selectors"]],
            [profile.SELECTORS.index(name) for name in spec["maps"]],
            spec["matches"],
            [profile.SELECTORS.index(name) for name in spec.get("lm_maps", [])],
        ]
        values = [len(spec["contexts"])] + [word for each in lists for word in (len(each), *each)]
        values += [{**defaults, **spec["numbers"]}[name] for name in self._names]
        state = b"" if learned is None else learned.tobytes()
        return self.file(np.array(values, np.int32).tobytes() + state)


@pytest.fixture(scope="module", params=list(BUILDS))
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or sys.platform == "win32" or not NATIVE.is_dir():
        pytest.skip("needs a checkout and a C++ compiler that takes the options of g++")
    folder = tmp_path_factory.mktemp("build")
    names = re.findall(r"set\(p\.(\w+),", (NATIVE / "module.cpp").read_text(encoding="utf-8"))
    sources = [*SOURCES[:-1], Path(__file__).with_name("token_driver.cpp")]
    flags = ["-std=c++17", *WARNINGS, f"-I{NATIVE}", *BUILDS[request.param]]
    flags.append(f"-DLMCODEC_NUMBERS={' '.join(f'NUMBER({name})' for name in names)}")
    built = subprocess.run(
        [compiler, *flags, *sources, "-pthread", "-o", folder / "driver"],
        capture_output=True,
        encoding="utf-8",
    )
    if "sanitize" in " ".join(flags) and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    return Driver(folder / "driver", folder, names)


CASES: dict[str, tuple[bool, Callable[[], profile.Profile | None]]] = {
    "neutral": (False, neutral),
    "extreme, up": (True, lambda: extreme_profile(1, 1)),
    "extreme, down": (True, lambda: extreme_profile(-1, 1)),
    "extreme, both down": (True, lambda: extreme_profile(-1, 0)),
    "network alone": (False, lambda: None),
}


def case_coder(name: str, streams: int, groups: int = 1) -> _kernel.TokenLoop:
    extreme, made = CASES[name][0], CASES[name][1]()
    kernel = None if made is None else made.kernel
    return _kernel.TokenLoop(coding(extreme=extreme), kernel, streams, groups)


def driver_setting(driver: Driver, name: str, streams: int) -> tuple[list[str], str]:
    """Its files, the best network's name."""
    extreme, chosen = CASES[name][0], CASES[name][1]()
    made = model(extreme)
    vocabulary = offsets_of(words()).tobytes() + tables.log2().tobytes() + b"".join(words().strings)
    learned = None
    if extreme:
        beside = case_coder(name, streams)
        begin(beside, bytes(streams), streams)
        learned = beside.learned
    profile_file = driver.profile(chosen, learned) if chosen else "-"
    return [driver.file(model_bytes(made)), driver.file(vocabulary), profile_file], driver.network_isas[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_builds_give_the_same_integers(driver: Driver, name: str) -> None:
    chain = blocks()
    for i, (streams, groups) in enumerate(SHAPES):
        files, isa = driver_setting(driver, name, streams)
        one = case_coder(name, streams, groups)
        inputs = [
            path
            for block in chain
            for path in (driver.file(block), driver.file(tokens_of(block, streams).tobytes()))
        ]
        made = [decisions_of(one, block, streams) for block in chain]
        expected = np.concatenate([p16.astype(np.uint32) << 1 | bits for bits, p16 in made])
        isas = [(n, m) for n in driver.network_isas for m in driver.mixing_isas]
        for network_isa, mixing_isa in isas if i == 4 else [(isa, driver.mixing_isas[0])]:
            out = driver("encode", *files, network_isa, mixing_isa, streams, groups, *inputs)
            assert (np.frombuffer(out, np.uint32) == expected).all(), (
                streams,
                groups,
                network_isa,
                mixing_isa,
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_builds_decode_and_survive_garbage(driver: Driver, name: str) -> None:
    """A chain, its last payload garbage: a build makes of it what the installed kernel makes of it."""
    rng = random.Random(6)
    data = text(7, 120)
    for streams, groups in ((1, 1), (3, 2), (128, 2)):
        files, isa = driver_setting(driver, name, streams)
        bits, p16 = decisions_of(case_coder(name, streams, groups), data, streams)
        payload = payload_of(bits, p16)
        garbage = [rng.randbytes(len(payload)) for _ in range(6)]
        for case in [payload, payload[: len(payload) // 2], b"", b"\xff" * 200, *garbage]:
            beside = case_coder(name, streams, groups)
            expected = b"\1" + data
            assert restore(beside, payload, len(data)) == data
            restored = restore(beside, case, len(data))
            expected += b"\0" if restored is None else b"\1" + restored
            arguments: list[str | int] = [driver.file(payload), len(data), driver.file(case), len(data)]
            mixing_isa = driver.mixing_isas[0]
            assert driver("decode", *files, isa, mixing_isa, streams, groups, *arguments) == expected


@pytest.mark.slow
def test_a_block_of_method_cm_left_inside_a_byte(driver: Driver) -> None:
    """The next one begins with a whole byte; sanitizers see it if not."""
    driver("abandon", driver.profile(profile.build(CM_SPEC)))
