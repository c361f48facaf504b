"""Profile files: packed and parsed, damaged, unknown; and that the frozen ones are what they were."""

from __future__ import annotations

import copy
import hashlib
import json
import lzma
import re
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_token_loop import coding

from lmcodec import _kernel, codec, frame, profile
from lmcodec.engine import Engine
from lmcodec.errors import Corrupt, LmcodecError, Unsupported

SPEC: dict[str, Any] = {
    "contexts": [["order1"], ["order3", "column"], ["word"]],
    "selectors": ["match", "zero"],
    "maps": ["zero"],
    "matches": [4],
    "numbers": {"table_log2": 14, "match_log2": 10, "final_selector": 0, "map_limit": 200, "weight_rate": 9},
}
TEXT = b"a profile, and the same profile again, and another profile\n" * 8


def learned_of(loaded: profile.Profile) -> np.ndarray:
    """What a coder's state begins with."""
    block = _kernel.BlockLoop(loaded.kernel)
    block.begin(1)
    return block.learned


def trained(spec: dict[str, Any] = SPEC) -> np.ndarray:
    """A state that has seen some text."""
    loaded = profile.build(spec)
    block = _kernel.BlockLoop(loaded.kernel)
    block.begin(len(TEXT))
    block.encode(np.frombuffer(TEXT, np.uint8), np.empty(10**4, np.uint8), np.empty(10**4, np.uint16))
    return block.learned


PACKED = profile.pack(SPEC, trained())


def rebuilt(spec: Any, body: bytes | None = None) -> bytes:
    """A file with that specification and, if given, that learned state."""
    n_text = struct.unpack_from("<I", PACKED, 5)[0]
    packed = PACKED[13 + n_text :] if body is None else lzma.compress(body, preset=0)
    text = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
    return PACKED[:5] + struct.pack("<II", len(text), len(packed)) + text + packed


def changed(**parts: Any) -> dict[str, Any]:
    """SPEC with other parts, or without those that are None; `numbers` are added to its own."""
    spec = copy.deepcopy(SPEC)
    spec["numbers"].update(parts.pop("numbers", {}))
    spec.update(parts)
    return {key: value for key, value in spec.items() if value is not None}


def check_works(loaded: profile.Profile) -> None:
    """Whatever its numbers are, what it encodes it decodes."""
    coder = Engine(loaded)
    payload = coder.encode(TEXT)
    coder.reset()
    assert coder.decode(payload, len(TEXT)) == TEXT


def check_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match=r"here\.lmp: not a profile of this version .*reinstall"):
        profile.parse(data, "here.lmp")


def test_what_is_packed_is_parsed() -> None:
    parsed = profile.parse(PACKED)
    assert parsed.spec == SPEC
    assert parsed.table_nbytes == 1 << 14
    learned, exact = learned_of(parsed), trained()
    n_map = parsed.kernel.weights_at
    # Kept are 16 bits of a probability, its count up to 255, a weight's 12 bits behind the point.
    assert np.abs((learned[:n_map] >> 10).astype(int) - (exact[:n_map] >> 10)).max() <= 1 << 6
    assert (learned[:n_map] & 1023 == np.minimum(exact[:n_map] & 1023, 255)).all()
    assert np.abs(learned[n_map:].view(np.int32) - exact[n_map:].view(np.int32)).max() <= 8
    check_works(parsed)
    # What was rounded once stays.
    assert profile.pack(SPEC, learned) == PACKED
    assert (learned_of(profile.parse(profile.pack(SPEC, learned))) == learned).all()


def test_extreme_values_are_packed() -> None:
    """The largest weights either way, certain probabilities, full counts: the bounds hold on both sides."""
    kernel = profile.build(SPEC).kernel
    learned = trained()
    n_map = kernel.weights_at
    half = 1 << 31
    for maps, weight in ((0xFFFFFFFF, (1 << 19) - 1), (1023, -(1 << 19) + 1)):
        learned[:n_map] = maps
        learned[: 256 * len(SPEC["contexts"]) : 256] = half
        learned[n_map:].view(np.int32)[:] = weight
        kernel.set_learned(learned)
        parsed = profile.parse(profile.pack(SPEC, learned))
        back = learned_of(parsed)
        assert np.abs(back[n_map:].view(np.int32) - weight).max() <= 16
        check_works(parsed)


def test_the_count_limit() -> None:
    parsed = profile.parse(profile.pack(SPEC, trained(), count_limit=30))
    counts = learned_of(parsed)[: parsed.kernel.weights_at] & 1023
    assert counts.max() == 30


def test_learning_pays() -> None:
    """The file's state is what coding begins with."""
    sizes = [len(Engine(p).encode(TEXT)) for p in (profile.build(SPEC), profile.parse(PACKED))]
    assert sizes[1] < sizes[0]


def test_learned_state_out_of_bounds_is_refused() -> None:
    kernel = profile.build(SPEC).kernel
    good = trained()
    kernel.set_learned(good)
    for at, value in ((0, 0), (256, 1 << 30), (kernel.weights_at, 1 << 19), (len(good) - 1, 1 << 31)):
        bad = good.copy()
        bad[at] = value
        with pytest.raises(ValueError, match="out of range"):
            kernel.set_learned(bad)
    for bad in (good[:-1], np.append(good, good[-1:])):
        with pytest.raises(ValueError, match="not as many"):
            kernel.set_learned(bad)


# Damage


def test_every_truncation_is_corrupt() -> None:
    for n in range(len(PACKED)):
        check_corrupt(PACKED[:n])
    for more in (b"\0", b"x", PACKED):
        check_corrupt(PACKED + more)


def test_every_changed_byte_is_corrupt_or_a_profile() -> None:
    """A file carries no check of its own (load has its SHA-256): another number may parse, but must work."""
    n_parsed = 0
    n_text = struct.unpack_from("<I", PACKED, 5)[0]
    for at in range(len(PACKED)):
        for flip in (1, 2, 4, 16, 32, 128, 255):
            data = bytearray(PACKED)
            data[at] ^= flip
            try:
                parsed = profile.parse(bytes(data), "here.lmp")
            except Corrupt:
                continue
            n_parsed += 1
            if parsed.spec == SPEC:
                assert (learned_of(parsed) == learned_of(profile.parse(PACKED))).all(), at
            else:
                assert 13 <= at < 13 + n_text, "only the specification can mean something else"
                if parsed.table_nbytes <= 1 << 20:
                    check_works(parsed)
    assert n_parsed < 300


BAD_FILES = {
    "empty": b"",
    "another kind of file": b"\x7fELF" + PACKED,
    "another version": b"LMZP\x02" + PACKED[5:],
    "sizes beyond the file": PACKED[:5] + struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF) + PACKED[13:],
    "no specification": rebuilt(b""),
    "no JSON": rebuilt(b"{'contexts': 1}"),
    "no UTF-8": rebuilt(b'{"contexts": "\xff"}'),
    "a list": rebuilt([1, 2]),
    "a number": rebuilt(7),
    "null": rebuilt(None),
    "deep brackets": rebuilt(b"[" * 100_000),
    "no contexts": rebuilt(changed(contexts=None)),
    "no numbers": rebuilt(changed() | {"numbers": None}),
    "numbers as a list": rebuilt(changed() | {"numbers": [1]}),
    "numbers as a string": rebuilt(changed() | {"numbers": "map_limit"}),
    "an unknown number": rebuilt(changed(numbers={"speed": 9})),
    "a number as a string": rebuilt(changed(numbers={"map_limit": "9"})),
    "a fraction": rebuilt(changed(numbers={"map_limit": 9.5})),
    "a huge number": rebuilt(changed(numbers={"map_limit": 10**30})),
    "infinity": rebuilt(changed(numbers={"map_limit": float("inf")})),
    "an unknown feature": rebuilt(changed(contexts=[["order1"], ["order99"], ["word"]])),
    "a feature as a list": rebuilt(changed(contexts=[["order1"], [["word"]], ["word"]])),
    "contexts as a string": rebuilt(changed(contexts="order1")),
    "matches as a number": rebuilt(changed(matches=4)),
    "an unknown selector": rebuilt(changed(selectors=["match", "order0x"])),
    "another profile's state": rebuilt(changed(contexts=[["order1"]])),
    "no state": rebuilt(SPEC, b""),
    "a state too short": rebuilt(SPEC, bytes(100)),
    "a state too large": rebuilt(SPEC, bytes(1 << 24)),
    "a state out of bounds": rebuilt(SPEC, b"\xff" * 65_536),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_corrupt(name: str) -> None:
    check_corrupt(BAD_FILES[name])


def test_no_xz_of_another_kind() -> None:
    """The old .lzma format and a raw stream have no check."""
    n_text = struct.unpack_from("<I", PACKED, 5)[0]
    body = lzma.decompress(PACKED[13 + n_text :])
    alone = lzma.compress(body, format=lzma.FORMAT_ALONE)
    data = PACKED[:5] + struct.pack("<II", n_text, len(alone)) + PACKED[13 : 13 + n_text] + alone
    check_corrupt(data)


# Specifications


OUT_OF_RANGE: dict[str, dict[str, Any]] = {
    "no context": {"contexts": []},
    "65 contexts": {"contexts": [["order1"]] * 65},
    "a context of nothing": {"contexts": [[]]},
    "a context of none": {"contexts": [["none"]]},
    "five features": {"contexts": [["order1"] * 5]},
    "no selector": {"selectors": []},
    "13 selectors": {"selectors": ["zero"] * 13},
    "seven maps": {"maps": ["zero"] * 7},
    "no match model": {"matches": []},
    "four match models": {"matches": [4] * 4},
    "a match of nothing": {"matches": [0]},
    "a match too long": {"matches": [33]},
    **{
        f"{name} {value}": {"numbers": {name: value}}
        for name, low, high in (
            ("final_selector", 0, 1),
            ("table_log2", 12, 28),
            ("match_log2", 10, 24),
            ("map_limit", 1, 1023),
            ("n_direct", 1, 4),
            ("direct_limit", 1, 1023),
            ("weight_rate", 0, 64),
            ("final_rate", 0, 64),
            ("apm_rate", 1, 15),
            ("apm_weight", 0, 16),
        )
        for value in (low - 1, high + 1, -(1 << 31))
    },
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_specifications_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        profile.build(changed(**copy.deepcopy(OUT_OF_RANGE[name])))
    check_corrupt(rebuilt(changed(**copy.deepcopy(OUT_OF_RANGE[name]))))


# A profile for a language model, and what is out of bounds there.
LM_SPEC: dict[str, Any] = {
    **SPEC,
    "contexts": [["order1"], ["token", "order3"], ["token1", "begun", "token2"]],
    "selectors": ["tokens", "zero"],
    "lm_maps": ["lm", "order0"],
    "numbers": {**SPEC["numbers"], "lm": 1, "n_end": 2, "end_log2": 11, "lm_map_rate": 6},
}
LM_OUT_OF_RANGE: dict[str, dict[str, Any]] = {
    "nine of the model's maps": {"lm_maps": ["zero"] * 9},
    **{
        f"{name} {value}": {"numbers": {**LM_SPEC["numbers"], name: value}}
        for name, low, high in (("lm", 0, 1), ("n_end", 0, 3), ("end_log2", 10, 24), ("lm_map_rate", 1, 15))
        for value in (low - 1, high + 1)
    },
}


@pytest.mark.parametrize("name", LM_OUT_OF_RANGE)
def test_specifications_for_a_language_model_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        profile.build({**LM_SPEC, **LM_OUT_OF_RANGE[name]})


@pytest.mark.parametrize(
    "parts",
    [
        *({"contexts": [["order1"], [name]]} for name in profile.LM_FEATURES),
        *({"selectors": [name]} for name in profile.LM_SELECTORS),
        *({"maps": [name]} for name in profile.LM_SELECTORS),
        {"lm_maps": ["zero"]},
        {"numbers": {"n_end": 1}},
    ],
)
def test_what_needs_a_language_model(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a language model: lm must be 1"):
        profile.build(changed(**parts))
    numbers = {"lm": 1, **parts.get("numbers", {})}
    profile.build(changed(**{**parts, "numbers": numbers}))


def lm_values() -> np.ndarray:
    """Every value another one, each within its bounds."""
    kernel = profile.build(LM_SPEC).kernel
    rng = np.random.default_rng(1)
    n_map, n_weight = kernel.weights_at, kernel.cells_at
    learned = np.empty(kernel.n_learned, np.uint32)
    learned[:n_map] = rng.integers(1, 65536, n_map) << 16 | rng.integers(0, 256, n_map)
    for empty in (0, 256, 512, n_map - 512, n_map - 256):  # histories of contexts, of those of token ends
        learned[empty] = 1 << 31
    learned[n_map:n_weight].view(np.int32)[:] = rng.integers(-(1 << 14), 1 << 14, n_weight - n_map) << 4
    learned[n_weight:] = rng.integers(0, 4096, len(learned) - n_weight) << 4
    return learned


def test_learned_state_of_token_ends() -> None:
    """Maps, match maps, maps of token ends; weights, among them those of token ends; cells of final maps."""
    kernel = profile.build(LM_SPEC).kernel
    n_end, n_input, n_end_input = 2, kernel.n_input, 32  # 2 * 2 + 15 of 32
    assert kernel.weights_at == 256 * 3 + 1024 + 256 * n_end
    n_weight = (65536 + 1) * n_input + 16 + (24 + 24 + 16 + 64) * n_end_input + 24 * 16
    assert kernel.cells_at - kernel.weights_at == n_weight
    assert kernel.n_learned - kernel.cells_at == 25
    learned = lm_values()
    kernel.set_learned(learned)
    last = kernel.n_learned - 1
    for at, value in (
        *((0, 0), (512, 1023), (kernel.weights_at - 512, 0), (kernel.weights_at - 256, (1 << 31) + 1)),
        *((kernel.weights_at, 1 << 19), (kernel.cells_at - 1, 1 << 19), (kernel.cells_at - 1, 1 << 31)),
        *((kernel.cells_at, 65536), (last, 65536), (last, 0xFFFFFFFF)),
    ):
        bad = learned.copy()
        bad[at] = value
        with pytest.raises(ValueError, match="out of range"):
            kernel.set_learned(bad)


def lm_learned_of(loaded: profile.Profile) -> np.ndarray:
    """What a coder's state begins with."""
    one = _kernel.TokenLoop(coding(), loaded.kernel)
    one.begin_encode(np.zeros(1, np.uint8), np.zeros(1, np.uint32))
    return one.learned


def test_what_is_packed_for_a_language_model_is_parsed() -> None:
    packed = profile.pack(LM_SPEC, lm_values())
    parsed = profile.parse(packed)
    assert parsed.spec == LM_SPEC
    assert (lm_learned_of(parsed) == lm_values()).all()
    n_text, n_packed = struct.unpack_from("<II", packed, 5)
    assert len(packed) == 13 + n_text + n_packed
    # A file whose counter for the empty history of token ends is another.
    body = bytearray(lzma.decompress(packed[13 + n_text :]))
    body[2 * (parsed.kernel.weights_at - 256) + 1] ^= 1
    damaged = lzma.compress(bytes(body), preset=0)
    check_corrupt(packed[:9] + struct.pack("<I", len(damaged)) + packed[13 : 13 + n_text] + damaged)


def test_unknown_names() -> None:
    for parts in ({"contexts": [["order0"]]}, {"selectors": ["word1"]}, {"maps": ["nothing"]}):
        with pytest.raises(KeyError):
            profile.build(changed(**parts))
    with pytest.raises(ValueError, match="no number called speed"):
        profile.build(changed(numbers={"speed": 1}))


@pytest.mark.parametrize(
    "parts",
    [
        {
            "contexts": [["order1"] * 4] * 64,
            "selectors": ["zero"] * 12,
            "maps": ["zero"] * 6,
            "matches": [32] * 3,
        },
        {"contexts": [["word"]], "selectors": ["zero"], "maps": [], "matches": [1]},
        {"numbers": {"weight_rate": 64, "final_rate": 64, "apm_rate": 1, "apm_weight": 16, "map_limit": 1}},
        {"numbers": {"weight_rate": 0, "final_rate": 0, "apm_rate": 15, "apm_weight": 0, "map_limit": 1023}},
    ],
)
def test_the_bounds_themselves(parts: dict[str, Any]) -> None:
    check_works(profile.build(changed(**copy.deepcopy(parts))))


# The frozen ones


def test_names_come_from_the_kernel() -> None:
    """One list: a name is its enumerator's, so that no two can be exchanged unseen."""
    native = Path(profile.__file__).parent / "native"
    if not native.is_dir():
        pytest.skip("the tests of a checkout")
    for file, macro, prefix, names in (
        ("features.def", "FEATURE", "k", profile.FEATURES),
        ("selectors.def", "SELECTOR", "kSelect", profile.SELECTORS),
    ):
        pattern = rf'^{macro}\({prefix}(\w+), "(\w+)"'
        listed = re.findall(pattern, (native / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert [name for _, name in listed] == names
        for enumerator, name in listed:
            assert re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enumerator).lower() == name
        assert len(set(names)) == len(names)
    assert profile.LM_FEATURES == ["begun", "token", "token1", "token2"]
    assert profile.LM_SELECTORS == ["lm", "lm_match", "token", "tokens"]


def test_one_table_of_profiles() -> None:
    assert {number: name for number, (name, _) in profile.FROZEN.items()} == frame.PROFILES
    assert {level.profile for level in codec.LEVELS.values()} <= {*profile.FROZEN}


@pytest.mark.parametrize("number", profile.FROZEN)
def test_frozen_profiles(number: int) -> None:
    """Frames name them: their files never change, once a digest stands in profile.py."""
    name, digest = profile.FROZEN[number]
    data = resources.files("lmcodec.models").joinpath(f"profile-{number}.lmp").read_bytes()
    assert hashlib.sha256(data).hexdigest().startswith(digest)
    assert len(digest) in (0, 20)
    loaded = profile.load(number)
    assert loaded is profile.load(number)
    assert loaded.spec == profile.parse(data).spec
    assert name
    check_works(loaded)


def test_an_unknown_number() -> None:
    for number in (0, 4, 99, 255):
        with pytest.raises(Unsupported, match=f"profile {number} is unknown .*upgrade"):
            profile.load(number)


def test_a_changed_file_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profile.FROZEN, 1, ("fast-1", "00" * 10))
    with pytest.raises(LmcodecError, match=r"profile-1\.lmp: not the 'fast-1' profile"):
        profile.load.__wrapped__(1)
