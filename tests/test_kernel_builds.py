"""The kernel under other compiler flags and under sanitizers: the integers that the installed one gives.

native_driver.cpp is compiled with the kernel's sources. The installed kernel, called from here, is right.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import SHAPES, TEXTS, covering_specs, text

from lmcodec import _kernel, coder, profile

# The checkout's sources: an installed package has none.
NATIVE = Path(__file__).parents[1] / "lmcodec" / "native"
SOURCES = [
    *sorted(p for p in NATIVE.glob("*.cpp") if not p.name.startswith("module")),
    Path(__file__).with_name("native_driver.cpp"),
]
# A newer compiler has newer warnings, which make nothing wrong: only our own checks take them for errors.
WARNINGS = ["-Wall", "-Wextra", *(["-Werror"] if os.environ.get("LMCODEC_WERROR") else [])]
BUILDS = {
    "O0": ["-O0"],
    "O3": ["-O3"],
    "O3, this machine's": ["-O3", "-march=native"],
    "sanitizers": [
        *("-O1", "-g", "-D_GLIBCXX_ASSERTIONS", "-fno-omit-frame-pointer"),
        *("-fsanitize=undefined,address", "-fno-sanitize-recover=all"),
    ],
}


class Build:
    """A build of a driver, and the files it reads."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder, self._n_file = binary, folder, 0

    def file(self, content: bytes) -> str:
        self._n_file += 1
        path = self._folder / str(self._n_file)
        path.write_bytes(content)
        return str(path)

    def __call__(self, *arguments: str | int) -> bytes:
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        runner = os.environ.get("LMCODEC_TEST_RUNNER", "").split()
        command = [*runner, str(self._binary), *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, env=environment)
        assert run.returncode == 0, run.stderr.decode(errors="replace")
        return run.stdout


class Driver(Build):
    """A build of native_driver.cpp."""

    def profile(self, spec: dict[str, Any]) -> str:
        lists = [
            *([profile.FEATURES.index(name) for name in context] for context in spec["contexts"]),
            [profile.SELECTORS.index(name) for name in spec["selectors"]],
            [profile.SELECTORS.index(name) for name in spec["maps"]],
            spec["matches"],
        ]
        words = [len(spec["contexts"])] + [word for each in lists for word in (len(each), *each)]
        words += [word for pair in spec["numbers"].items() for word in pair]
        return self.file(" ".join(map(str, words)).encode())


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "O0" else pytest.mark.slow) for name in BUILDS],
)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or sys.platform == "win32":
        pytest.skip("no C++ compiler that takes the options of g++")
    if not NATIVE.is_dir():
        pytest.skip(f"{NATIVE} is missing: the tests of a checkout")
    folder = tmp_path_factory.mktemp("build")
    binary = folder / "driver"
    numbers = re.findall(r"set\(p\.(\w+),", (NATIVE / "module.cpp").read_text(encoding="utf-8"))
    flags = ["-std=c++17", *WARNINGS, f"-I{NATIVE}", *BUILDS[request.param]]
    flags.append(f"-DLMCODEC_NUMBERS={' '.join(f'NUMBER({name})' for name in numbers)}")
    run = subprocess.run([compiler, *flags, *SOURCES, "-o", binary], capture_output=True, encoding="utf-8")
    if "sanitize" in " ".join(flags) and "cannot find" in run.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert run.returncode == 0, run.stderr
    return Driver(binary, folder)


def loaded(which: str | int) -> profile.Profile:
    return profile.build(covering_specs()[which]) if isinstance(which, str) else profile.load(which)


def extreme(sign: int, certain: int) -> profile.Profile:
    """The features' profile with every weight at its bound and every map at an end."""
    spec = covering_specs()["features"]
    extreme = profile.build({**spec, "numbers": {**spec["numbers"], "weight_rate": 64, "final_rate": 64}})
    learned = np.empty(extreme.kernel.n_learned, np.uint32)
    n_map = extreme.kernel.weights_at
    learned[:n_map] = 0xFFFFFFFF if certain else 1023
    learned[: 256 * len(spec["contexts"]) : 256] = 1 << 31
    learned[n_map:].view(np.int32)[:] = sign * ((1 << 19) - 1)
    extreme.kernel.set_learned(learned)
    return extreme


PROFILES: dict[str, Callable[[], profile.Profile]] = {
    **{f"covering {name}": partial(loaded, name) for name in covering_specs()},
    **{f"profile {number}": partial(loaded, number) for number in profile.FROZEN},
    **{
        f"weights {sign:+d}, maps {certain}": partial(extreme, sign, certain)
        for sign in (1, -1)
        for certain in (0, 1)
    },
}
NAMES = [
    pytest.param(name, marks=[] if name == "covering features" else pytest.mark.slow) for name in PROFILES
]


def decisions(block: _kernel.BlockLoop, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """bits and p16 of a block as the installed kernel codes it."""
    bits, p16 = np.empty(8 * len(data), np.uint8), np.empty(8 * len(data), np.uint16)
    block.begin(len(data))
    assert block.encode(np.frombuffer(data, np.uint8), bits, p16) == len(bits)
    return bits, p16


def learned_file(driver: Driver, name: str, chosen: profile.Profile) -> str:
    """The state that coding begins with; the driver makes the neutral one itself."""
    if name.startswith("covering"):
        return "-"
    block = _kernel.BlockLoop(chosen.kernel)
    block.begin(1)
    return driver.file(block.learned.tobytes())


def blocks() -> list[bytes]:
    """A chain with something for every feature."""
    rng = random.Random(3)
    shapes = [TEXTS[name] for name in ("64 fields", "deep XML", "64 levels of brackets", "invalid UTF-8")]
    return [
        text(1500),
        b"".join(part[:400] for part in shapes),
        bytes(200) + rng.randbytes(200),
        b"end of it",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_integers(driver: Driver, name: str) -> None:
    chosen = PROFILES[name]()
    spec, learned = driver.profile(chosen.spec), learned_file(driver, name, chosen)
    texts = blocks()
    files = [driver.file(part) for part in texts]
    isas = driver("isas").decode().split()
    for i, (streams, groups) in enumerate(SHAPES):
        block = _kernel.BlockLoop(chosen.kernel, streams, groups)
        parts = [decisions(block, part) for part in texts]
        expected = np.concatenate([p16.astype(np.uint32) << 1 | bits for bits, p16 in parts])
        for isa in isas if i == 0 else ["-"]:
            out = np.frombuffer(driver("encode", spec, learned, isa, streams, groups, *files), np.uint32)
            assert len(out) == len(expected)
            different = np.flatnonzero(out != expected)
            assert len(different) == 0, f"decision {different[0]} of {streams} streams, {isa}"


def test_instruction_sets(driver: Driver) -> None:
    """All that the machine has, another machine's under an emulator among them."""
    isas = driver("isas").decode().split()
    if not os.environ.get("LMCODEC_TEST_RUNNER"):
        assert isas == _kernel.mixing_isas()
    elif "aarch64" in os.environ["LMCODEC_TEST_RUNNER"]:
        assert isas == ["neon", "scalar"]


def test_progress_through_a_byte(driver: Driver) -> None:
    """The states are walked as the comment at the enum draws them: every arrow, and no other."""
    header = (NATIVE / "context_mixer.h").read_text(encoding="utf-8")
    states = re.findall(r"\bk\w+", header.split("enum class Progress")[1].split("}")[0])
    drawn = set(re.findall(r"// +(k\w+) +--(\w+)--> +(k\w+)", header))
    assert len(states) == 10
    assert {state for start, _, end in drawn for state in (start, end)} == set(states)
    spec = covering_specs()["features"]
    without = [context for context in spec["contexts"] if "match_byte" not in context]
    contexts = {"contexts": [["order1"], ["token1", "begun"]], "selectors": ["order0", "token"], "maps": []}
    lm = {**spec, **contexts, "numbers": {"lm": 1, "n_end": 1, "table_log2": 12}}
    walked = set()
    for chosen in (spec, {**spec, "contexts": without}, lm):
        out = driver("progress", driver.profile(chosen), driver.file(text(120)))
        for line in out.decode().splitlines():
            name, before, after = line.split()
            walked.add((states[int(before)], name, states[int(after)]))
    assert walked == drawn


@pytest.mark.parametrize("name", NAMES)
def test_decoding_and_garbage(driver: Driver, name: str) -> None:
    """What a build makes of payloads, good and bad, is what the installed kernel makes of them."""
    rng = random.Random(4)
    chosen = PROFILES[name]()
    spec, learned = driver.profile(chosen.spec), learned_file(driver, name, chosen)
    for streams, groups in ((1, 1), (3, 2)):
        block = _kernel.BlockLoop(chosen.kernel, streams, groups)
        data = text(500, streams)
        encoder = coder.Encoder()
        encoder.encode(*decisions(block, data))
        payload = encoder.finish()
        cases = [payload, payload[: len(payload) // 2], rng.randbytes(300), b"\xff" * 300, b""]
        for case in cases:
            out = np.zeros(len(data), np.uint8)
            block.reset()
            block.begin(len(data))
            block.load(np.frombuffer(case, np.uint8))
            good = block.decode(out, 8 * len(out))
            expected = b"\1" + out.tobytes() if good else b"\0"
            assert (
                driver("decode", spec, learned, "-", streams, groups, driver.file(case), len(data))
                == expected
            )
            assert case != payload or out.tobytes() == data


def test_blocks_of_numbers_whole_and_damaged(driver: Driver) -> None:
    assert sum(int(driver("planes", seed, 60)) for seed in (1, 2)) > 100


def test_the_range_coder_under_every_probability(driver: Driver) -> None:
    """Every p with both bits, in constriction's words; then ones without end, which no encoder writes."""
    p16 = np.repeat(np.arange(1, 65536, dtype=np.uint16), 2)
    order = np.random.default_rng(1).permutation(len(p16))
    bits = (np.arange(len(p16)) % 2).astype(np.uint8)[order]
    p16 = np.ascontiguousarray(p16[order])
    encoder = coder.Encoder()
    encoder.encode(bits, p16)
    probabilities = driver.file(p16.tobytes())
    own = _kernel.RangeEncoder()
    own.encode(bits, p16)
    words = own.get_compressed().astype(">u4").tobytes()
    assert driver("words", probabilities, driver.file(bits.tobytes())) == words
    out = driver("range", probabilities, driver.file(encoder.finish()))
    assert (np.frombuffer(out, np.uint8) == bits).all()
    out = driver("range", probabilities, driver.file(b"\xff" * 100))
    assert out[0] in (1, 3)
    assert out[-1] & 2
