"""The kernel cross-compiled for aarch64 and run under qemu: the integers of the one installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["test_kernel_builds", "test_native_network", "test_token_loop", "test_transformer_kernel"]
)
def test_same_integers(name: str) -> None:
    missing = [tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-k", "O3 and not machine"]
    environment = {
        **os.environ,
        "CXX": COMPILER,
        "LMCODEC_TEST_RUNNER": f"{EMULATOR} -L /usr/aarch64-linux-gnu",
    }
    path = Path(__file__).with_name(f"{name}.py")
    run = subprocess.run([*command, path], env=environment, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
