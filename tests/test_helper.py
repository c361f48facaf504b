"""A second thread that shares short loops (native/helper.h), by a driver of its own, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_kernel_builds import NATIVE, WARNINGS

BUILDS = {
    "O2": ["-O2"],
    "thread sanitizer": ["-O1", "-g", "-fsanitize=thread"],
    "sanitizers": ["-O1", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"],
}

Run = Callable[..., str]


@pytest.fixture(scope="module", params=BUILDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or sys.platform == "win32" or not NATIVE.is_dir():
        pytest.skip("needs a checkout and a C++ compiler that takes the options of g++")
    binary = tmp_path_factory.mktemp("helper") / "driver"
    flags = ["-std=c++17", "-pthread", *WARNINGS, f"-I{NATIVE}", *BUILDS[request.param]]
    source = Path(__file__).with_name("helper_driver.cpp")
    built = subprocess.run([compiler, *flags, source, "-o", binary], capture_output=True, encoding="utf-8")
    if "sanitize" in " ".join(flags) and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr

    def run(*arguments: str | int) -> str:
        command = [str(binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("the thread sanitizer does not know this system's memory")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_index_is_done_once(run: Run) -> None:
    """Of short and long loops, one soon after another or after the helper fell asleep."""
    for seed in (1, 2, 3):
        run("loops", seed, 3000)


def test_a_thread_that_waits_lends_its_time(run: Run) -> None:
    # Where other programs have the processors, a thread seldom finds anything to take.
    assert any(int(run("lent", seed, 1000)) > 0 for seed in range(1, 31))


def test_jobs_are_done_once_here_or_there(run: Run) -> None:
    assert sum(int(run("jobs", seed, 2000)) for seed in (1, 2, 3)) > 0


def test_the_helper_takes_part(run: Run) -> None:
    assert run("meets", 20) == "1\n"


def test_it_ends_at_any_moment(run: Run) -> None:
    run("ends", 200)
