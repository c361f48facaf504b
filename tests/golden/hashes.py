"""Golden hashes: what every instruction set and number of threads must compute, as SHA-256.

    python tests/golden/hashes.py            compares, and says what differs
    python tests/golden/hashes.py --write    writes hashes.json anew

hashes.json has three parts:

- fixed: decisions (bits and their p16) and payloads of blocks under each profile, and with golden/lm.lmm.
  They change only with a version of the format: --write refuses, but for --force.
- chosen: frames at levels 1 and 2, and at 3 and 6 with golden/lm.lmm. What an encoder chooses for a block may
  change with it.
- shipped: the same of frames with the shipped models. A new model changes them.

test_golden_hashes.py runs this file, as `--compute`, under each instruction set. golden/lm.lmm is a small
random network with two profiles that learned from texts like those here; --write makes it where it is
missing. It is kept as a file because xz, which is in it, may pack otherwise one day.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HASHES, MODEL = HERE / "hashes.json", HERE / "lm.lmm"
MAKE = runpy.run_path(str(HERE / "make.py"))

FIXED, CHOSEN, SHIPPED = "fixed", "chosen", "shipped"
SHAPES = [(1, 1), (2, 1), (4, 2)]  # streams, groups
LM_SHAPES = [(1, 1), (3, 2), (8, 1), (40, 2)]
WIDE = ["Ωκεανός", "наука", "文字", "überzählig", "한국어", "😀", "𠀀𠀁", "naïve", "ελληνικά", "🜁🜂"]

# Of lm.lmm: every feature, input, selector, map and number that a language model adds.
SPECS: list[dict[str, Any]] = [
    {
        "contexts": [
            ["order1", "begun"],
            ["order2"],
            ["word", "order1"],
            ["order3", "begun", "token2"],
            ["order1", "token", "token1"],
            ["token"],
            ["token1", "token2"],
            ["column", "above"],
            ["order4"],
        ],
        "selectors": ["order0", "match", "lm", "lm_match", "token"],
        "maps": ["lm", "lm_match", "order1", "tokens"],
        "lm_maps": ["order1", "tokens", "hash2", "hash_word", "match_byte", "lm_match"],
        "matches": [4, 12],
        "numbers": {
            "lm": 1,
            "table_log2": 14,
            "match_log2": 10,
            "n_direct": 1,
            "weight_rate": 10,
            "lm_map_rate": 4,
            "n_end": 9,
            "end_log2": 12,
        },
    },
    {
        "contexts": [["order2"], ["order4"]],
        "selectors": ["zero", "token", "tokens"],
        "maps": [],
        "lm_maps": ["hash3"],
        "matches": [5, 3],
        "numbers": {"lm": 1, "table_log2": 12, "match_log2": 10, "n_direct": 2, "n_end": 1},
    },
]


def texts(seed: int = 0) -> dict[str, bytes]:
    """About 1,500 bytes of each kind; the UTF-8 one ends inside a character."""
    source = MAKE["Source"](600 + seed)
    wide = " ".join(source.pick(WIDE) for _ in range(200))
    return {
        "english": source.text().encode()[:1500],
        "json": source.json().encode()[:1500],
        "utf-8": wide.encode()[:1501],
        "noise": source.noise(700),
    }


def make_model() -> bytes:
    """The file of golden/lm.lmm."""
    import numpy as np

    from lmcodec import _kernel, profile
    from lmcodec.lm.recurrent import file as recurrent_file
    from lmcodec.lm.recurrent import tables
    from lmcodec.lm.recurrent.native import NativeNetwork
    from lmcodec.lm.vocab import Vocabulary

    sys.path.insert(0, str(HERE.parent))
    from integer_models import random_model

    words = [word.encode() for word in (*MAKE["WORDS"], *MAKE["KEYS"], *WIDE)]
    strings = [*words, *(b" " + word for word in words), *(word[:3] for word in words), b'": ', b'", "']
    strings += [bytes([byte]) for byte in range(256)]
    vocabulary = Vocabulary(sorted({string for string in strings if string}))
    model = random_model(600, len(vocabulary), dim=28, n_layer=2, recurrent=37, mlp=50)
    model = replace(model, vocabulary=vocabulary, mixer=b"", card={"name": "golden"})
    coding = _kernel.TokenCoding(NativeNetwork(model).kernel, *vocabulary.flat(), tables.log2())
    packed = []
    for spec in SPECS:
        coder = _kernel.TokenLoop(coding, profile.build(spec).kernel)
        bits, p16 = np.empty(1 << 17, np.uint8), np.empty(1 << 17, np.uint16)
        for seed in range(1, 9):
            for name, text in texts(seed).items():
                if name != "noise":
                    coder.begin_encode(np.frombuffer(text, np.uint8), vocabulary.segment(text))
                    while coder.encode(bits, p16):
                        pass
        packed.append(profile.pack(spec, coder.learned))
    return recurrent_file.pack(replace(model, mixer=b"".join(packed)))


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _blocks() -> Iterator[tuple[str, str]]:
    """Names and hashes of decisions and payloads; each block comes back."""
    import numpy as np

    from lmcodec import coder, engine
    from lmcodec.lm import store

    listed: list[bytes] = []

    class Listing(coder.Encoder):
        def encode(self, bits: np.ndarray, p16: np.ndarray) -> None:
            listed.append((p16.astype("<u4") << 1 | bits).tobytes())
            super().encode(bits, p16)

    model = store.load(store.find(MODEL))
    engines: list[tuple[str, list[tuple[int, int]], Callable[..., Any]]] = [
        *((f"profile {n}", SHAPES, lambda *shape, n=n: engine.Engine(n, *shape)) for n in (1, 2, 3)),
        *(
            (f"lm profile {n}", LM_SHAPES, lambda *shape, n=n: engine.LmEngine(model, n, *shape))
            for n in (1, 2)
        ),
    ]
    encoder, coder.Encoder = coder.Encoder, Listing  # type: ignore[misc]
    try:
        for name, shapes, make in engines:
            for shape in shapes:
                for kind, text in texts().items():
                    listed.clear()
                    payload = make(*shape).encode(text)
                    if make(*shape).decode(payload, len(text)) != text:
                        raise AssertionError(f"{name} {shape} {kind}: decoded to something else")
                    where = f"{name}, {shape[0]} streams in {shape[1]}, {kind}"
                    yield f"{where}: decisions", _sha256(*listed)
                    yield f"{where}: payload", _sha256(payload)
    finally:
        coder.Encoder = encoder  # type: ignore[misc]


def _frame(text: bytes, level: int, most_threads: int = 1, **how: Any) -> str:
    """A frame's hash; it is the same with any number of threads, and comes back with each."""
    import lmcodec

    counts = range(1, most_threads + 1)
    frames = {lmcodec.compress(text, level, threads=n, **how) for n in counts}
    back = {lmcodec.decompress(frame, model=how.get("model"), threads=n) for frame in frames for n in counts}
    if len(frames) > 1 or back != {text}:
        raise AssertionError(f"level {level}, {how}: threads differ, or it decoded to something else")
    return _sha256(*frames)


def _frames(levels: tuple[int, ...], shapes: list[tuple[int, int]], **how: Any) -> Iterator[tuple[str, str]]:
    for level in levels:
        for streams, groups in shapes:
            for kind, text in texts().items():
                name = f"level {level}, {streams} streams in {groups}, {kind}"
                yield name, _frame(text, level, streams=streams, groups=groups, **how)
        for solid in (False, True):
            text = b"".join(texts().values())
            name = f"level {level}, {'solid' if solid else 'independent'} blocks"
            yield name, _frame(text, level, 2, block_size=1024, solid=solid, **how)


def used() -> dict[str, str]:
    """The instruction sets of this process."""
    from lmcodec import engine
    from lmcodec.lm import store

    return {"network": store.load(store.find(MODEL)).isa, "mixer": engine.Engine(1)._loop.isa}


def compute() -> dict[str, dict[str, str]]:
    """All hashes, as this process computes them."""
    from lmcodec.lm import store

    shipped = {}
    for number in sorted(store.SHIPPED):
        name = store.SHIPPED[number].name
        for streams in (1, 9):
            frame = _frame(texts()["english"][:300], 6, streams=streams, model=name)
            shipped[f"{name}, {streams} streams"] = frame
    return {
        FIXED: dict(_blocks()),
        CHOSEN: dict([*_frames((1, 2), SHAPES), *_frames((3, 6), [(1, 1), (8, 2)], model=MODEL)]),
        SHIPPED: shipped,
    }


def differences(found: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]) -> list[str]:
    """Which hashes are others, are missing or are there no more, as "part: name"."""
    return [
        f"{part}: {name}"
        for part in found
        for name in sorted({*found[part], *expected.get(part, {})})
        if found[part].get(name) != expected.get(part, {}).get(name)
    ]


def main(arguments: list[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write what differs")
    parser.add_argument("--force", action="store_true", help="and fixed hashes, too")
    parser.add_argument("--compute", action="store_true", help="only print what this process computes")
    options = parser.parse_args(arguments)
    if options.write and not MODEL.exists():
        MODEL.write_bytes(make_model())
    found = compute()
    if options.compute:
        print(json.dumps({"used": used(), "hashes": found}))
        return
    expected = json.loads(HASHES.read_text(encoding="utf-8")) if HASHES.exists() else {}
    different = differences(found, expected)
    fixed = [name for name in different if name.startswith(FIXED) and FIXED in expected]
    print(f"{sum(map(len, found.values()))} hashes, {len(different)} differ")
    if different and not options.write:
        sys.exit("\n".join(different))
    if fixed and not options.force:
        sys.exit("\n".join([*fixed, "these change only with a format version, by --force"]))
    HASHES.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
