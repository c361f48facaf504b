"""The AMX kernel: the integers of the definition, in an emulation of tiles and on tiles where there are some.

amx_emulation.h takes the place of the intrinsics in native/gemm_amx.cpp. What is no product of tiles is
AVX-512's, which the machine must have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_transformer_kernel
from test_kernel_builds import BUILDS, NATIVE, WARNINGS
from test_native_network import (
    DRIVER_SOURCES,
    EXTREMES,
    ISAS,
    SHAPES,
    check_same_bits,
    cuts,
    extreme_model,
    model_bytes,
    random_model,
    random_tokens,
)
from transformer_models import SHAPES as TRANSFORMERS
from transformer_models import random_model as random_transformer
from transformer_models import random_tokens as transformer_tokens

from lmcodec.lm import decisions
from lmcodec.lm.recurrent import reference
from lmcodec.lm.recurrent.model import IntegerModel

FEW_ROWS = 8  # from so many on, products go through tiles
AVX512 = "avx512vnni"


class Emulated:
    """network_driver.cpp, or another driver, with the kernel over emulated tiles."""

    def __init__(self, folder: Path, flags: list[str], sources: list[Path] = DRIVER_SOURCES) -> None:
        self._binary, self._folder = folder / "driver", folder
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        if not compiler or not NATIVE.is_dir():
            pytest.skip("needs a checkout and a C++ compiler that takes the options of g++")
        emulation = Path(__file__).with_name("amx_emulation.h")
        flags = ["-std=c++17", "-pthread", *WARNINGS, f"-I{NATIVE}", *flags]
        command: list[str | Path] = [
            compiler,
            *flags,
            "-include",
            emulation,
            *sources,
            "-o",
            self._binary,
        ]
        built = subprocess.run(command, capture_output=True, encoding="utf-8")
        if "sanitize" in " ".join(flags) and "cannot find" in built.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert built.returncode == 0, built.stderr

    def __call__(self, *arguments: str | Path, lacks: str = "") -> tuple[bytes, int]:
        """What the driver writes, and how many products of tiles it took."""
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "AMX_EMULATION_LACKS": lacks}
        done = subprocess.run([self._binary, *arguments], capture_output=True, env=environment)
        errors = done.stderr.decode(errors="replace")
        assert done.returncode == 0, errors
        counted = re.fullmatch(r"products (\d+)\n", errors)
        assert counted, errors
        return done.stdout, int(counted[1])

    def check_same_bits(self, model: IntegerModel, t: int, b: int) -> None:
        """Frequencies, sums and states of the definition, all positions at once and step by step."""
        tokens = random_tokens(model, t, b)
        state = reference.start(model, cuts(b))
        freq = decisions.frequencies(reference.sequence(model, tokens, state))
        expected = 2 * freq.tobytes() + decisions.cumulate(freq).tobytes() + 2 * state.h.tobytes()
        (self._folder / "model").write_bytes(model_bytes(model))
        head = np.array([t, b, *cuts(b)], np.uint32)
        (self._folder / "tokens").write_bytes(head.tobytes() + tokens.astype(np.uint32).tobytes())
        found, n_product = self("run", self._folder / "model", self._folder / "tokens", "amx")
        assert found == expected, (model.config, t, b)
        assert (n_product > 0) == (t * b >= FEW_ROWS), (t, b)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "O0" else pytest.mark.slow) for name in BUILDS],
)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if not sys.platform.startswith("linux") or AVX512 not in ISAS:
        pytest.skip("emulated tiles need Linux and a processor with AVX-512 VNNI")
    return Emulated(tmp_path_factory.mktemp("amx"), BUILDS[request.param])


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "O0" else pytest.mark.slow) for name in BUILDS],
)
def emulated_transformer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Emulated:
    if not sys.platform.startswith("linux") or AVX512 not in ISAS:
        pytest.skip("emulated tiles need Linux and a processor with AVX-512 VNNI")
    flags = [*BUILDS[request.param], *test_transformer_kernel.EXACT]
    return Emulated(tmp_path_factory.mktemp("amx"), flags, test_transformer_kernel.DRIVER_SOURCES)


def test_which_machines_have_it(emulated: Emulated) -> None:
    assert emulated("isas")[0].decode().split()[:2] == ["amx", AVX512]
    for part in ("osxsave", "tile", "int8", "palette", "states", "permission"):
        isas = emulated("isas", lacks=part)[0].decode().split()
        # Without the operating system's word that it keeps registers there are no vectors at all.
        assert isas[0] == ("scalar" if part == "osxsave" else AVX512), part
        assert "amx" not in isas, part


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_models(emulated: Emulated, shape: tuple[int, int, int, int, int]) -> None:
    """Inputs and outputs that fill no tile, and whole ones."""
    for t, b in ((3, 7), (2, 16)):
        emulated.check_same_bits(random_model(*shape), t, b)


def test_every_number_of_rows(emulated: Emulated) -> None:
    """No tile, one, a pair, and what is left of them; 70 steps of 4 streams are several pieces."""
    for b in range(1, 41):
        emulated.check_same_bits(random_model(*SHAPES[0]), 1, b)
    for t, b in ((2, 128), (70, 4)):
        emulated.check_same_bits(random_model(*SHAPES[2]), t, b)


@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes(emulated: Emulated, kind: str) -> None:
    """Sums at their bounds, of the longest rows there may be."""
    emulated.check_same_bits(extreme_model(kind), 2, 9)


@pytest.mark.parametrize("shape", TRANSFORMERS)
def test_transformers(emulated_transformer: Emulated, shape: str, tmp_path: Path) -> None:
    model = random_transformer(**TRANSFORMERS[shape])
    (tmp_path / "model").write_bytes(test_transformer_kernel.model_bytes(model))
    for t, b in ((2 * model.config.window + 5, 2), (3, 9), (1, 41)):
        tokens = transformer_tokens(model, t, b)
        (tmp_path / "tokens").write_bytes(test_transformer_kernel.tokens_bytes(tokens))
        found, n_product = emulated_transformer("run", tmp_path / "model", tmp_path / "tokens", "amx")
        assert found == test_transformer_kernel.expected_bytes(model, tokens), (t, b)
        assert n_product > 0


def test_on_tiles() -> None:
    """The kernel as installed; test_native_network.py's cases run on it as well, where it is offered."""
    if "amx" not in ISAS:
        pytest.skip("this processor has no AMX, or the system does not let programs use it")
    for b in range(1, 41):
        check_same_bits(random_model(*SHAPES[0]), "amx", 2, b)
