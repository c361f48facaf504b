"""FORMAT.md says everything: a decoder made from it alone (format_reference.py) reads what lmcodec writes."""

from __future__ import annotations

import random
import runpy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import format_reference as reference
import numpy as np
import pytest
from conftest import WORDS, make_vocabulary
from integer_models import random_model

import lmcodec
from lmcodec import _kernel, engine, profile
from lmcodec.codec import METHODS
from lmcodec.lm import store
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent.model import IntegerModel

TESTS = Path(__file__).parent
GOLDEN = runpy.run_path(str(TESTS / "golden" / "make.py"))["CASES"]
LEVELS = {"fast": 1, "strong": 2}

# Golden frames small enough for every run; the others are slow.
QUICK_GOLDEN = ["empty", "one-byte", "stored", "bytes-fast", "text-fast", "streams-4-2-fast", "bytes-strong"]
QUICK_GOLDEN += ["network", "network-solid-3-2", "mixed", *(n for n in GOLDEN if n.startswith("tensors"))]


def check_reference_decodes(frame: bytes, original: bytes) -> None:
    assert reference.decode(frame) == original


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [name if name in QUICK_GOLDEN else slow(name) for name in GOLDEN])
def test_golden_frames(name: str) -> None:
    frame = (TESTS / "golden" / f"{name}.lmz").read_bytes()
    model = GOLDEN[name].options.get("model")
    models = [Path(model).read_bytes()] if model else []
    base = GOLDEN[name].base
    assert reference.decode(frame, models, b"" if base is None else base()) == GOLDEN[name].original()


# Inputs for the rules that the golden frames do not reach.


def nested(opening: list[str], closing: list[str], depth: int) -> str:
    """Opened so many times, closed a little less, opened and closed again: stacks hold 31."""

    def some(parts: list[str], n: int) -> str:
        return "".join(parts[i % len(parts)] for i in range(n))

    return (
        some(opening, depth) + "x" + some(closing, depth - 4) + "y\n" + some(opening, 9) + some(closing, 16)
    )


def indented(depth: int) -> str:
    down = [f"{' ' * i}{'abcd'[i % 4]}_{i % 3}:" for i in range(depth)]
    return "\n".join([*down, "", " \t", *down[12::-3], "  end", *down[:6], ""])


def rows(delimiter: str, n_field: int, n_row: int) -> str:
    """Rows of as many fields, a few of which change."""
    values = ["1", "ab", "", "7x", '"q, r"', "-2.5"]
    return "".join(
        delimiter.join(values[(i * 7 + i // 5 + (row == i % 9)) % len(values)] for i in range(n_field)) + "\n"
        for row in range(n_row)
    )


def structure(seed: int, n_line: int) -> str:
    """Lines of the bytes that mean something, drawn with repetition."""
    rng = random.Random(seed)
    lines = [
        "".join(rng.choice("\"'\\:={}[]()<>/ab_1 \t,;|.-\r") for _ in range(rng.randrange(20)))
        for _ in range(8)
    ]
    return "\n".join(rng.choice(lines) for _ in range(n_line))


HTML = (
    '<!DOCTYPE html>\n<div class="a>b" id=\'c\'><p>One<br/>two<BR />\n<img src=x alt=""/></p>\n'
    '<ns:row-1 k_2="v">a < b <3 <> << c</ns:row-1><!-- no -- tag --></p></div></div>\n'
)
QUOTES = (
    'say "it\\"s \\\\" don\'t \'do\' it: "open\nline" = [\'a\', "b:c"]: "x": '
    '{"k\': 1}\nkey = "\n"key": value\n'
)
PYTHON = (
    "class Thing(Base):\n    def __init__(self, x: int = 10) -> None:\n        self.x = x\n\n"
    "    def value(self, *, deep=False):\n        if deep:\n            return [self.x for _ in range(3)]\n"
    "        return self.x\n\n\tdef tabs(): pass\n"
)
YAML = (
    "a:\n  - b: 1\n    c: [x, y]\n  - b: 22\n    c: |\n      text: here\n\n      more\n# end\na2: {k: 'v'}\n"
)
UTF8 = "Çelik, Привет мир. 小林さん!\r\nДом? «дом»; ΑΒΓ αβγ — été\r\nПривет, 小林.\r\n"
LONG_LINES = f"{'ab, ' * 80}\n{'ab, ' * 78}c, {'ab, ' * 3}\n"

INPUTS = {
    "html": HTML + HTML[20:130],
    "quotes": QUOTES * 2,
    "python": PYTHON + PYTHON[:150],
    "yaml": YAML + YAML[10:90],
    "utf8": UTF8 + UTF8[15:70],
    "structure": structure(1, 30),
    "delimiters": "".join(rows(d, 4, 5) for d in ",\t;|, ") + rows(";", 3, 3),
    "fields": rows(",", 66, 4) + rows(",", 90, 2) + rows(",", 63, 2) + rows(",", 65, 3),
    "brackets": nested(["{", '"k":[', "a=("], ["}", "],b:", ")"], 38) * 2,
    "tags": nested(["<a>", '<b c="d">', "<e/>", "<f-g:h_1>"], ["</a>", "</b>z", "<i/>"], 44),
    "indentation": indented(34),
    "long-lines": LONG_LINES,
    "long-repeats": "".join(chr(33 + i * i % 89) for i in range(67)) * 14 + "!" + "ab" * 20,
    "more-structure": structure(2, 60),
}


@dataclass(frozen=True)
class Shape:
    """How a text is cut into blocks and streams; at least so many bytes of it are needed."""

    nbytes: int = 0
    options: dict[str, Any] = field(default_factory=dict)


_CHAIN = {"block_size": 1024, "solid": True}
SHAPES = {
    "one": Shape(),
    "2-1": Shape(0, {"streams": 2}),
    "3-2": Shape(0, {"streams": 3, "groups": 2}),
    "chain": Shape(1300, _CHAIN),
    "chain-2-1": Shape(1300, {**_CHAIN, "streams": 2}),
    "chain-3-2": Shape(2200, {**_CHAIN, "streams": 3, "groups": 2}),
}
# (input, shape, level) for every run.
QUICK = {
    *(("html", shape, "fast") for shape in ("one", "2-1", "3-2")),
    *(
        (name, "one", "fast")
        for name in ("quotes", "delimiters", "fields", "brackets", "tags", "long-repeats")
    ),
    ("structure", "chain-2-1", "fast"),
    *((name, "one", "strong") for name in ("html", "python", "utf8")),
}


OWN = [(name, shape, level) for level in LEVELS for shape in SHAPES for name in INPUTS]


@pytest.mark.parametrize(("name", "shape", "level"), [own if own in QUICK else slow(*own) for own in OWN])
def test_own_inputs(name: str, shape: str, level: str) -> None:
    original = INPUTS[name].encode()
    original *= -(-SHAPES[shape].nbytes // len(original)) or 1
    frame = lmcodec.compress(original, LEVELS[level], **SHAPES[shape].options)
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    assert [block.continues for block in info.blocks] == [False] + [True] * (len(info.blocks) - 1)
    check_reference_decodes(frame, original)


# Features and selectors, those included that no profile has: probabilities, not frames.

_NUMBERS = {**profile.load(1).spec["numbers"], "table_log2": 14, "map_limit": 255, "n_direct": 2}


def spec_of(part: int, n_part: int) -> dict[str, Any]:
    """One of n_part specifications that together have every feature and every selector of method cm."""
    features = [name for name in profile.FEATURES[1:] if name not in profile.LM_FEATURES]
    selectors = [name for name in profile.SELECTORS if name not in profile.LM_SELECTORS]
    return {
        "contexts": [[name] for name in features[part::n_part]],
        "selectors": selectors[part::n_part],
        "maps": [selectors[-1 - part], selectors[part]],
        "matches": [[6], [8, 5], [1, 32, 12]][part % 3],
        "numbers": _NUMBERS,
    }


class Replay:
    """Stands for a range decoder: gives the bits that the kernel encoded, holds probabilities to its."""

    def __init__(self, bits: np.ndarray, p16: np.ndarray) -> None:
        self._decisions = zip(bits.tolist(), p16.tolist(), strict=True)

    def decode(self, p: int) -> int:
        bit, expected = next(self._decisions)
        assert p == expected
        return int(bit)


def check_probabilities(loaded: profile.Profile, blocks: list[bytes], n_stream: int, n_group: int) -> None:
    """The reference predicts what the kernel predicts, all along a chain of blocks."""
    kernel = _kernel.BlockLoop(loaded.kernel, n_stream, n_group)
    kernel.begin(1)
    learned, n_map = kernel.learned, loaded.kernel.weights_at
    kernel.reset()
    start = reference.Profile(
        loaded.spec,
        [(v >> 10, v & 1023) for v in learned[:n_map].tolist()],
        learned[n_map:].view(np.int32).tolist(),
    )
    mixer = reference.ContextMixer(start, len(blocks[0]), n_stream)
    for block in blocks:
        bits, p16 = np.empty(8 * len(block), np.uint8), np.empty(8 * len(block), np.uint16)
        kernel.begin(len(block))
        assert kernel.encode(np.frombuffer(block, np.uint8), bits, p16) == len(bits)
        assert mixer.decode(Replay(bits, p16), len(block), n_group) == block


N_PART = 6


@pytest.mark.parametrize(("n_stream", "n_group"), [(1, 1), slow(2, 1), slow(3, 2)])
@pytest.mark.parametrize("name", ["html", "structure", *map(slow, sorted({*INPUTS} - {"html", "structure"}))])
@pytest.mark.parametrize("part", range(N_PART))
def test_every_feature_and_selector(part: int, name: str, n_stream: int, n_group: int) -> None:
    loaded = profile.build(spec_of(part, N_PART))
    text = INPUTS[name].encode()
    middle = len(text) // 2
    check_probabilities(loaded, [text[:middle], text[middle:]], n_stream, n_group)


def test_known_is_seen_before_the_next_lookup() -> None:
    """A slot that a later context of the same lookup takes and clears still counts (section 5.5)."""
    spec = {
        "contexts": [["order2"], ["order1"], ["order3"], ["word"], ["gap"], ["above"], ["field_text"]],
        "selectors": ["known"],
        "maps": [],
        "matches": [6],
        "numbers": {**_NUMBERS, "table_log2": 12},
    }
    check_probabilities(profile.build(spec), [INPUTS["python"].encode()], 1, 1)


# Blocks with a language model (section 8).

LM_TEXT = " ".join(
    random.Random(1).choices(
        [w.decode() for w in WORDS] + ["überzählig", "walrus,", "文字", "walruwal\n"], k=110
    )
).encode()
LM_INPUTS = {
    "words": LM_TEXT,
    "html": INPUTS["html"].encode(),
    "noise": random.Random(2).randbytes(200) * 2,
    "runs": b"xyz" + bytes(250) + b"\xff" * 300 + bytes(50) + b"walrus" * 40,
    # Tokens of every length up to 20, and bits to decide within long ones.
    "ladder": b" ".join(b"-" * (7 * i % 41) + b"x" * (i % 3) for i in range(24)),
    # With two streams, the first one's match runs up to the block's end.
    "ahead": b"xyz" + bytes(497 + 17) + bytes(random.Random(1).choices(range(0x80, 0x90), k=483)),
    "counts": b"a" * 900,
    # The least of all tables, and after each byte the question whether the token ends.
    "short": bytes(random.Random(3).choices(b"awtbi", k=90)),
}
LM_SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2), (8, 1), (40, 2)]
LM_QUICK = [("words", (1, 1)), ("runs", (3, 2)), ("ladder", (8, 1)), ("ahead", (2, 1)), ("short", (1, 1))]


def lm_spec(part: int) -> dict[str, Any]:
    """Every feature, selector and list that a language model adds, and some that match models and lookups
    have a part in; the last one without what it may leave out."""
    contexts = [["order1"], ["order2"], ["order3", "column"], ["word"], ["match_byte"], ["above_next"]]
    if part == 2:
        contexts = contexts[1:2]  # few inputs for the rows of `tokens`
    placed = [
        [
            *(["order1", "begun"], ["token2", "order2", "begun"], ["token1", "token", "order1"]),
            *(["token"], ["token2"], ["token2", "token1", "token", "begun"], ["token1", "token1", "word"]),
        ],
        [["begun"], ["order3", "token1"], ["token", "order1"]],
        [],
    ][part]
    selectors = [
        ["order0", "known", "lm", "token"],
        ["match", "lm_match", "match_byte", "token"],
        ["zero", "tokens"],
    ]
    lm_maps = [
        {"lm_maps": ["order1", "tokens", "hash2", "hash3", "hash_word", "match_byte", "lm_match", "tokens"]},
        {"lm_maps": ["token", "lm", "zero", "classes", "field", "known"]},
        {},
    ]
    numbers: list[dict[str, int]] = [
        # More than seven contexts of token ends; few entries, so that they share them, and the check decides.
        {"n_end": len(contexts) + len(placed), "end_log2": 10, "lm_map_rate": 3},
        {"n_end": 8, "end_log2": 13},
        {},
    ]
    return {
        # The order of all: those of token ends are the first.
        "contexts": [*placed[:3], *contexts, *placed[3:]],
        "selectors": selectors[part],
        "maps": [["lm", "lm_match", "order1"], ["token", "tokens"], []][part],
        "matches": [[5, 2], [3], [4]][part],
        # The rest as a profile has it that does not say.
        "numbers": {"lm": 1, "table_log2": 13, "match_log2": 10, "weight_rate": 14, **numbers[part]},
        **lm_maps[part],
    }


N_LM_PART = 3


@cache
def lm_model() -> IntegerModel:
    """Of random weights; its profiles begin with what they learned on a text."""
    extra = [w.encode() for w in ("walrus", "überzählig", "文字", "zählig")] + [
        b"\0" * 4,
        b"\xff" * 20,
    ]
    extra += [b"-" * n for n in range(12, 21)] + [b"-" * n + b"x" for n in (13, 17)]
    words = make_vocabulary([w for w in WORDS if len(w) > 1] + [b" " + w for w in WORDS] + extra)
    made = random_model(21, len(words), dim=24, n_layer=2, recurrent=17, mlp=20)
    return replace(made, vocabulary=words, mixer=b"")


@cache
def lm_file() -> bytes:
    """Its file, with all profiles."""
    plain = b"".join(profile.pack(s, profile_start(s)) for s in map(lm_spec, range(N_LM_PART)))
    return recurrent_file.pack(replace(lm_model(), mixer=plain))


def profile_start(spec: dict[str, Any]) -> np.ndarray:
    """Values far from neutral, so that none can take another's place."""
    kernel = profile.build(spec).kernel
    rng = np.random.default_rng(5)
    n_map, n_cell = kernel.weights_at, kernel.cells_at
    learned = np.empty(kernel.n_learned, np.uint32)
    learned[:n_map] = rng.integers(1, 65536, n_map) << 16 | rng.integers(0, 255, n_map)
    learned[: 256 * len(spec["contexts"]) : 256] = 1 << 31
    learned[n_map - 256 * spec["numbers"].get("n_end", 0) : n_map : 256] = 1 << 31
    learned[n_map:n_cell].view(np.int32)[:] = rng.integers(-(1 << 13), 1 << 15, n_cell - n_map)
    learned[n_cell:] = rng.integers(0, 65536, len(learned) - n_cell)
    return learned


@pytest.fixture(scope="module")
def lm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.lmm"
    path.write_bytes(lm_file())
    return path


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape) if (name, shape) in LM_QUICK else slow(name, shape)
        for name in LM_INPUTS
        for shape in LM_SHAPES
    ],
)
@pytest.mark.parametrize("number", range(1, N_LM_PART + 1))
def test_token_decisions(lm_path: Path, number: int, name: str, shape: tuple[int, int]) -> None:
    """The reference predicts what the kernel predicts, along a chain of two blocks."""
    n_stream, n_group = shape
    loaded = store.load(store.find(lm_path))
    kernel = _kernel.TokenLoop(loaded.coding, loaded.profile(number).kernel, n_stream, n_group)
    (start,) = reference.read_profiles(lm_profile_file(number))
    text = LM_INPUTS[name]
    middle = 0 if name == "ahead" else len(text) // 3
    blocks = [text[middle:], text[:middle]] if middle else [text]
    mixer = reference.TokenMixer(lm_model(), start, len(blocks[0]), n_stream)
    for block in blocks:
        borders = [s * len(block) // n_stream for s in range(n_stream + 1)]
        tokens = [loaded.vocabulary.segment(block[a:b]) for a, b in pairwise(borders)]
        kernel.begin_encode(np.frombuffer(block, np.uint8), np.concatenate(tokens))
        bits, p16 = np.empty(9 * len(block), np.uint8), np.empty(9 * len(block), np.uint16)
        n = kernel.encode(bits, p16)
        assert kernel.done
        assert mixer.decode(Replay(bits[:n], p16[:n]), len(block), n_group) == block


def lm_profile_file(number: int) -> bytes:
    spec = lm_spec(number - 1)
    return profile.pack(spec, profile_start(spec))


class NeverSmaller(engine.Engine):
    """Method cm that never wins against another one."""

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(data)


@pytest.mark.parametrize(
    ("name", "level", "options"),
    [
        ("words", 6, {}),
        ("runs", 3, {"streams": 3, "groups": 2}),
        ("runs", 9, {"block_size": 1024, "solid": True, "streams": 2}),  # and an enlarged table
        ("words", 6, {"method": "lm"}),
        ("words", 3, {"method": "lm", "streams": 3, "groups": 2}),
        ("words", 9, {"method": "lm", "block_size": 1024, "solid": True, "streams": 2}),
        slow("html", 6, {"method": "lm", "streams": 128}),
        slow("words", 3, {"block_size": 1024, "solid": True, "streams": 8, "groups": 2}),
        slow("html", 6, {"streams": 128}),
        slow("html", 9, {"block_size": 1024}),
    ],
)
def test_lm_frames(
    name: str, level: int, options: dict[str, Any], lm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that name their model decode with its file, and with no other."""
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    original = LM_INPUTS[name]
    original *= -(-1300 // len(original)) if "block_size" in options else 1
    frame = lmcodec.compress(original, level, model=lm_path, **options)
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    assert {block.method for block in info.blocks} == {METHODS[options.get("method", "lm+cm")]}
    assert reference.decode(frame, [lm_file()]) == original
    with pytest.raises(reference.FormatError, match="missing"):
        reference.decode(frame)


def flushed(original: bytes, level: int, step: int, **options: Any) -> bytes:
    """A frame that is flushed every so many bytes; its tables are larger than its first block asks for."""
    compressor = lmcodec.Compressor(level, **options)
    packed = b""
    for at in range(0, len(original), step):
        packed += compressor.compress(original[at : at + step], compressor.FLUSH_BLOCK)
    packed += compressor.flush()
    info = lmcodec.frame_info(packed)
    assert info.blocks is not None
    coded = [block for block in info.blocks if block.original_nbytes]
    assert all(block.chained for block in coded)
    assert any(block.tables_nbytes > block.original_nbytes for block in coded)
    assert any(block.continues for block in coded)
    return packed


@pytest.mark.parametrize(
    ("name", "level", "step", "options"),
    [
        ("html", "fast", 70, {}),
        ("html", "strong", 200, {}),
        ("fields", "fast", 100, {"streams": 3, "groups": 2, "block_size": 2048}),
        ("utf8", "fast", 1, {"block_size": 1024}),
        ("html", "fast", 150, {"solid": True, "streams": 2}),
    ],
)
def test_flushed_chains(name: str, level: str, step: int, options: dict[str, Any]) -> None:
    original = INPUTS[name].encode()[: 400 if level == "fast" else 500]
    check_reference_decodes(flushed(original, LEVELS[level], step, **options), original)


@pytest.mark.parametrize("options", [{}, {"streams": 3, "groups": 2}])
def test_flushed_chains_with_a_model(
    options: dict[str, Any], lm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", NeverSmaller)
    original = LM_INPUTS["words"][:300]
    frame = flushed(original, 6, 60, model=lm_path, **options)
    assert reference.decode(frame, [lm_file()]) == original


def test_what_runs_every_time_is_there() -> None:
    assert set(QUICK_GOLDEN) <= set(GOLDEN)
    assert set(OWN) >= QUICK
