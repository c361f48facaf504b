"""Golden frames: small files of every kind, as this version's frames.

    python tests/golden/make.py [--force] [--out FOLDER]

Writes a frame for each of CASES. test_golden.py decodes and encodes them on every run: a frame that a
release has written decodes forever, so what lies here changes only with a version of the format, by --force.
The originals are not kept: `Source` makes them again, by random.Random.random, which no Python changes.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")

HERE = Path(__file__).parent
WORDS = [
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "a",
        "is",
        "that",
        "it",
        "was",
        "for",
        "on",
        "with",
        "as",
        "at",
        "from",
    ),
    *("river", "stone", "morning", "letter", "house", "winter", "garden", "between", "against", "walked"),
    *("remembered", "nothing", "answered", "slowly", "green", "seven", "open", "under", "light", "water"),
]
NAMES = ["Aalto", "Brandão", "Çelik", "Dvořák", "Ebner", "Fjeld", "小林", "Иванов"]
KEYS = ["id", "name", "price", "count", "city", "active", "tags"]


class Source:
    """A seeded maker of texts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def noise(self, nbytes: int) -> bytes:
        return bytes(self.below(256) for _ in range(nbytes))

    def words(self, n: int) -> str:
        return " ".join(self.pick(WORDS) for _ in range(n))

    def text(self) -> str:
        sentences = (self.words(4 + self.below(9)).capitalize() + self.pick(".,!?;") for _ in range(22))
        return "".join(s + self.pick([" ", " ", "\n\n"]) for s in sentences) + self.pick(NAMES) + "\n"

    def csv(self) -> str:
        rows = (
            f"{i},{self.pick(NAMES)},{self.below(90)}.{self.below(9)}0,{self.below(50)},{self.pick(WORDS)}"
            for i in range(60)
        )
        return "\r\n".join(["id,name,price,count,city", *rows, ""])

    def json(self) -> str:
        items = (
            f'  {{"id": {i}, "name": "{self.pick(NAMES)}", "tags": ["{self.pick(WORDS)}"], '
            f'"size": {{"x": {self.below(999)}, "y": -{self.below(99)}.5}}, "{self.pick(KEYS)}": null}}'
            for i in range(20)
        )
        return "[\n" + ",\n".join(items) + "\n]\n"

    def xml(self) -> str:
        items = (
            f'  <item id="{i}" kind="{self.pick(WORDS)}">\n    <name>{self.pick(NAMES)}</name>\n'
            f"    <note>{self.words(4)} &amp; {self.words(2)}</note>\n    <empty/>\n  </item>\n"
            for i in range(12)
        )
        return '<?xml version="1.0"?>\n<list>\n' + "".join(items) + "</list>\n"

    def yaml(self) -> str:
        items = (
            f"- name: {self.pick(NAMES)}\n  {self.pick(KEYS)}: {self.below(999)}\n  nested:\n"
            f"    deeper: '{self.words(3)}'\n    list: [{self.below(9)}, {self.below(9)}]\n"
            for _ in range(16)
        )
        return "---\n" + "".join(items)

    def code(self) -> str:
        functions = (
            f"int {self.pick(WORDS)}_{i}(const char *{self.pick(KEYS)}, int n) {{\n"
            f"\tif (n > {self.below(99)}) {{\n\t\treturn {self.pick(WORDS)}({self.below(9)}, n - 1);\n\t}}\n"
            f'\tprintf("{self.words(3)}: %d\\n", n); /* {self.words(4)} */\n\treturn n;\n}}\n\n'
            for i in range(10)
        )
        return "#include <stdio.h>\n\n" + "".join(functions)


@dataclass(frozen=True)
class Case:
    """A frame: what is in it, and the arguments of `lmcodec.compress` or, with flushes, of `Compressor`."""

    original: Callable[[], bytes]
    options: dict[str, Any] = field(default_factory=dict)
    former: int = 0  # the profile in place of the level's
    flush_nbytes: int = 0  # a flush ends a block after so many bytes each; 0: none does
    base: Callable[[], bytes] | None = None  # the file that its tensors are coded against


def _original(seed: int, **parts: int) -> Callable[[], bytes]:
    """Texts of these kinds one after another, each cut (perhaps inside a character) to so many bytes."""

    def make() -> bytes:
        source = Source(seed)
        made = (
            source.noise(nbytes) if kind == "noise" else getattr(source, kind.strip("_"))().encode()[:nbytes]
            for kind, nbytes in parts.items()
        )
        return b"".join(made)

    return make


def _safetensors(tensors: list[tuple[str, str, list[int], bytes]]) -> bytes:
    header, at = {}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors)


def _normal(source: Source, n: int, scale: float = 0.05) -> list[float]:
    """Nearly so: sums of random numbers, which every machine adds up alike."""
    return [(sum(source.below(1 << 16) for _ in range(8)) / (1 << 16) - 4) * scale for _ in range(n)]


def _bfloat16(values: list[float]) -> bytes:
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def _numbers() -> bytes:
    source = Source(60)
    float32 = struct.pack("<180f", *_normal(source, 180))
    return _safetensors(
        [
            ("small", "F8_E4M3", [64], bytes(40 + source.below(6) for _ in range(64))),
            ("same", "I32", [30], bytes(120)),
            ("noise", "U8", [100], source.noise(100)),
            ("weight", "F32", [12, 15], float32),
            ("half", "F16", [10, 20], struct.pack("<200e", *_normal(source, 200, 2.0))),
        ]
    )


def _later() -> bytes:
    """A checkpoint after that of `_numbers`: all its floats have changed a little."""
    source, data = Source(64), bytearray(_numbers())
    for at in range(len(data) - 1120, len(data) - 400, 4):
        value = struct.unpack_from("<f", data, at)[0]
        struct.pack_into("<f", data, at, value + source.below(1000) * 1e-7)
    return bytes(data)


def _rows() -> bytes:
    """A matrix whose rows and columns are of several sizes."""
    source, values = Source(61), []
    for row in range(120):
        scale = 0.01 * 4 ** (row % 4)
        values += [x * (8 if i % 7 == 3 else 1) for i, x in enumerate(_normal(source, 144, scale))]
    return _safetensors([("matrix", "BF16", [120, 144], _bfloat16(values))])


def _gguf() -> bytes:
    """Quantised blocks: scales and quanta."""
    source = Source(62)

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def nibbles(n: int) -> bytes:
        return bytes(sum(source.below(4) << 4 * k for k in (0, 1)) + 0x66 for _ in range(n))

    blocks = []
    for _ in range(60):
        scale = _normal(source, 1)[0]
        blocks.append(struct.pack("<ee", scale, -8 * scale) + nibbles(16))
    info = text("w") + struct.pack("<IQQIQ", 2, 320, 6, 3, 0)
    keys = text("general.alignment") + struct.pack("<II", 4, 64) + text("names")
    keys += struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + info
    return head + bytes(-len(head) % 64) + b"".join(blocks)


def _npy() -> bytes:
    """Numbers whose most significant byte is first."""
    source = Source(63)
    head = repr({"descr": ">f4", "fortran_order": True, "shape": (25, 9)}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return (
        b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + struct.pack(">225f", *_normal(source, 225))
    )


KINDS = ("text", "csv", "json", "xml", "yaml", "code")
LEVELS = {"fast-1": 1, "strong": 2, "fast": 1}  # name of the profile: level
FORMER = {"fast-1": 1}  # numbers of profiles that no level has any longer

# Name of the file without .lmz; what it shows is said where the name does not.
CASES: dict[str, Case] = {
    "empty": Case(lambda: b"", {"level": 1}),
    "one-byte": Case(lambda: b"\n", {"level": 1}),
    "stored": Case(_original(50, noise=500), {"level": 1}),
}
for _name, _level in LEVELS.items():
    _former = FORMER.get(_name, 0)
    for _seed, _kind in enumerate(KINDS):
        CASES[f"{_kind}-{_name}"] = Case(_original(_seed, **{_kind: 2000}), {"level": _level}, _former)
    _chain = {"level": _level, "block_size": 1024, "solid": True}
    CASES |= {
        # Every byte, runs, NULs, invalid UTF-8.
        f"bytes-{_name}": Case(
            lambda: bytes(range(256)) * 2 + bytes(400) + b"\xff\xfe\xc3(" * 50, {"level": _level}, _former
        ),
        # Two streams in one group; four in two, of uneven lengths.
        f"streams-2-1-{_name}": Case(_original(20, json=1900), {"level": _level, "streams": 2}, _former),
        f"streams-4-2-{_name}": Case(
            _original(21, csv=1499), {"level": _level, "streams": 4, "groups": 2}, _former
        ),
        # Independent blocks, with an index.
        f"blocks-{_name}": Case(
            _original(30, text=1000, code=1000), {"level": _level, "block_size": 1024}, _former
        ),
        # Blocks that continue those before them, the last one shorter.
        f"solid-{_name}": Case(_original(31, json=1500, json_=500), _chain, _former),
        f"solid-4-2-{_name}": Case(
            _original(33, xml=1300, yaml=602), {**_chain, "streams": 4, "groups": 2}, _former
        ),
        # A stored block breaks the chain.
        f"solid-stored-{_name}": Case(_original(32, xml=1024, noise=1024, xml_=300), _chain, _former),
    }
    # Blocks that flushes end; chains whose tables are larger than the first block asks for.
    if not _former:
        CASES |= {
            f"flushed-{_name}": Case(_original(34, json=600, noise=200), {"level": _level}, flush_nbytes=100),
            f"flushed-4-2-{_name}": Case(
                _original(35, text=1500),
                {"level": _level, "block_size": 1024, "streams": 4, "groups": 2},
                flush_nbytes=150,
            ),
        }

# The language model alone: one of random weights (network.lmm) whose vocabulary has WORDS.
_network = {"method": "lm", "model": str(HERE / "network.lmm")}
CASES |= {
    "network": Case(_original(40, text=1500), _network),
    "network-solid-3-2": Case(
        _original(41, text=1000, text_=900),
        {**_network, "block_size": 1024, "solid": True, "streams": 3, "groups": 2},
    ),
}

# Beside context models: lm.lmm (hashes.py makes it), whose profiles have all that a language model adds.
_mixed = {"method": "lm+cm", "model": str(HERE / "lm.lmm")}
CASES |= {
    "mixed": Case(_original(50, text=700), {**_mixed, "level": 3}),
    "mixed-flushed": Case(_original(53, text=500), {**_mixed, "level": 3}, flush_nbytes=70),
    "mixed-2-1": Case(_original(51, json=900), {**_mixed, "streams": 2}),
    "mixed-solid-3-2": Case(
        _original(52, json=1000, text=900),
        {**_mixed, "level": 3, "block_size": 1024, "solid": True, "streams": 3, "groups": 2},
    ),
}


# Tensors by planes; a flush within one, and rows and columns in contexts.
CASES |= {
    "tensors": Case(_numbers, {"level": 1}),
    "tensors-contexts": Case(_numbers, {"level": 2, "block_size": 1024}),
    "tensors-flushed": Case(_numbers, {"level": 1}, flush_nbytes=700),
    "tensors-base": Case(_later, {"level": 2}, base=_numbers),
    "tensors-rows": Case(_rows, {"level": 2}),
    "tensors-gguf": Case(_gguf, {"level": 2}),
    "tensors-npy": Case(_npy, {"level": 2}),
}


def frame_of(case: Case) -> bytes:
    import lmcodec
    from lmcodec import codec

    level = case.options.get("level", codec.DEFAULT_LEVEL)
    plan = codec.LEVELS[level]
    if case.base is not None:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            base.write_bytes(case.base())
            return lmcodec.compress(case.original(), base=base, **case.options)
    with mock.patch.dict(codec.LEVELS, {level: plan._replace(profile=case.former or plan.profile)}):
        if not case.flush_nbytes:
            return lmcodec.compress(case.original(), **case.options)
        compressor, original = lmcodec.Compressor(**case.options), case.original()
        pieces = [
            compressor.compress(original[at : at + case.flush_nbytes], compressor.FLUSH_BLOCK)
            for at in range(0, len(original), case.flush_nbytes)
        ]
        return b"".join([*pieces, compressor.flush()])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="replace frames that differ")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    frames = {options.out / f"{name}.lmz": frame_of(case) for name, case in CASES.items()}
    different = [path for path, frame in frames.items() if path.exists() and path.read_bytes() != frame]
    if different and not options.force:
        names = ", ".join(path.name for path in different)
        sys.exit(f"{names}: would change; golden frames change only with a format version, by --force")
    for path, frame in frames.items():
        path.write_bytes(frame)
    print(f"{len(frames)} frames, {sum(map(len, frames.values()))} bytes, {len(different)} changed")


if __name__ == "__main__":
    main()
