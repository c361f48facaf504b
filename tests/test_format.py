"""FORMAT.md is complete and exact: a decoder written from it alone (format_reference.py) reads what is written."""

from __future__ import annotations

import random
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import lmcodec

TESTS = Path(__file__).parent
REFERENCE = runpy.run_path(str(TESTS / "format_reference.py"))
GOLDEN = runpy.run_path(str(TESTS / "golden" / "make.py"))["CASES"]
LEVELS = {"fast": 1, "strong": 2}

# Golden frames small enough for every run; the others are slow.
QUICK_GOLDEN = ["empty", "one-byte", "stored", "bytes-fast", "text-fast", "streams-4-2-fast", "bytes-strong"]


def check_reference_decodes(frame: bytes, original: bytes) -> None:
    assert REFERENCE["decode"](frame) == original


def golden(name: str, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize(
    "name", [golden(name, *([] if name in QUICK_GOLDEN else [pytest.mark.slow])) for name in GOLDEN]
)
def test_golden_frames(name: str) -> None:
    frame = (TESTS / "golden" / f"{name}.lmz").read_bytes()
    check_reference_decodes(frame, GOLDEN[name].original())


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
    'say "it\\"s \\\\" don\'t \'do\' it: "open\nline" = [\'a\', "b:c"]: "x": {"k\': 1}\nkey = "\n"key": value\n'
    * 2
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
    "quotes": QUOTES,
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


def own(name: str, shape: str, level: str) -> Any:
    quick = (name, shape, level) in QUICK
    return pytest.param(
        name, shape, level, id=f"{name}-{shape}-{level}", marks=[] if quick else [pytest.mark.slow]
    )


@pytest.mark.parametrize(
    ("name", "shape", "level"), [own(n, s, level) for level in LEVELS for s in SHAPES for n in INPUTS]
)
def test_own_inputs(name: str, shape: str, level: str) -> None:
    original = INPUTS[name].encode()
    original *= -(-SHAPES[shape].nbytes // len(original)) or 1
    frame = lmcodec.compress(original, LEVELS[level], **SHAPES[shape].options)
    info = lmcodec.frame_info(frame)
    assert info.blocks is not None
    assert [block.continues for block in info.blocks] == [False] + [True] * (len(info.blocks) - 1)
    check_reference_decodes(frame, original)


def test_what_runs_every_time_is_there() -> None:
    assert set(QUICK_GOLDEN) <= set(GOLDEN)
    assert {(n, s, level) for n in INPUTS for s in SHAPES for level in LEVELS} >= QUICK
