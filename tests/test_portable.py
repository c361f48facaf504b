"""What other systems and compilers ask of the code, as far as it can be seen here."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_kernel_builds import NATIVE

import lmcodec
from lmcodec.cli import safe_file

ROOT = Path(__file__).parents[1]
FOLDERS = [Path(lmcodec.__file__).parent, Path(__file__).parent, ROOT / "benchmarks"]
# Modules whose `open` has another meaning, or is binary unless told otherwise.
BINARY = {"lmcodec", "lzma", "gzip", "bz2", "tarfile", "fsspec", "file_module"}
RUNNERS = {"run", "Popen", "check_output", "check_call", "call"}


def text_without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that read or write text and name no encoding."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and lacks_encoding(node):
            yield node.lineno


def lacks_encoding(call: ast.Call) -> bool:
    function, owner = call.func, ""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if isinstance(function, ast.Attribute):
        value = function.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            value = value.func.value  # what a module's call gives is the module's
        owner = getattr(value, "id", "a file's path")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords or owner in BINARY or (owner, name) == ("os", "open"):
        return False
    if name in ("read_text", "write_text"):
        return not any(isinstance(value, ast.Constant) and value.value == "utf-8" for value in call.args)
    if owner == "subprocess" and name in RUNNERS:
        return bool({"text", "universal_newlines"} & keywords.keys())
    if name == "TextIOWrapper":
        return True
    if name not in ("open", "fdopen"):
        return False
    at = 1 if owner in ("", "os", "io", "builtins") else 0  # a path's method has no argument before the mode
    mode = keywords.get("mode", call.args[at] if len(call.args) > at else ast.Constant("r"))
    return isinstance(mode, ast.Constant) and "b" not in str(mode.value)


def test_text_has_an_encoding() -> None:
    """Files, and what programs print: on Windows the locale's encoding is seldom UTF-8."""
    wrong = []
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{path.name}:{line}" for line in text_without_encoding(tree)]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "n"),
    [
        ("open('x')", 1),
        ("open('x', 'w')", 1),
        ("open('x', mode='a')", 1),
        ("open('x', 'rb')", 0),
        ("open('x', encoding='utf-8')", 0),
        ("Path('x').open()", 1),
        ("path.read_text()", 1),
        ("path.read_text('utf-8')", 0),
        ("path.write_text('x')", 1),
        ("subprocess.run([], text=True)", 1),
        ("subprocess.run([], text=True, encoding='utf-8')", 0),
        ("io.TextIOWrapper(f)", 1),
        ("os.open('x', 0)", 0),
    ],
)
def test_the_check_of_encodings_sees(code: str, n: int) -> None:
    assert len(list(text_without_encoding(ast.parse(code)))) == n


# Warnings stop nobody from installing


def test_warnings_are_errors_only_where_asked_for() -> None:
    if not NATIVE.is_dir():
        pytest.skip("the tests of a checkout")
    build = (NATIVE / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"option\(LMCODEC_WERROR .* OFF\)", build)
    for flag in ("-Werror", "/WX"):
        assert re.findall(rf"(?:.*\n){{1}}.*APPEND LMCODEC_WARNINGS {flag}\)", build)
        assert build.count(flag) == 1
    for line in re.findall(r"if\(LMCODEC_WERROR\)\n\s+(.*)", build):
        assert line.startswith("list(APPEND LMCODEC_WARNINGS")
    assert "/wd4324" in build
    if (ROOT / ".ci" / "run").exists():
        assert "LMCODEC_WERROR=ON" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


CPU_TEST = """
#include "cpu.h"
int main() {
  const lmcodec::Cpu& has = lmcodec::cpu();
  __builtin_cpu_init();
  return has.avx2 == !!__builtin_cpu_supports("avx2") && has.avx512f == !!__builtin_cpu_supports("avx512f") &&
                 has.avx512dq == !!__builtin_cpu_supports("avx512dq") &&
                 has.avx512bw == !!__builtin_cpu_supports("avx512bw") &&
                 has.avx512vl == !!__builtin_cpu_supports("avx512vl") &&
                 has.avx512vnni == !!__builtin_cpu_supports("avx512vnni")
             ? 0 : 1;
}
"""


def test_the_processor_is_asked_as_compilers_ask_it(tmp_path: Path) -> None:
    """Clang in the place of MSVC has no __builtin_cpu_supports that links; elsewhere it says the same."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or os.uname().machine != "x86_64" or not NATIVE.is_dir():
        pytest.skip("needs x86-64, a compiler and a checkout")
    (tmp_path / "cpu.cpp").write_text(CPU_TEST, encoding="utf-8")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "cpu.cpp", "-o", "cpu"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "cpu"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", sorted(p.name for p in NATIVE.glob("*.cpp") if not p.name.startswith("module"))
)
def test_clang_compiles_the_kernel(source: str, tmp_path: Path) -> None:
    """GCC's options and attributes are not all clang's, which macOS and clang-cl are."""
    compiler = shutil.which("clang++")
    if not compiler:
        pytest.skip("needs clang++")
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-c", "-o", str(tmp_path / "object")]
    subprocess.run([compiler, *options, str(NATIVE / source)], check=True)


# Windows removes no file that is open


def test_an_unfinished_output_is_closed_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, object]] = []

    def recorded(name: str, function: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(argument: Any) -> None:
            calls.append((name, argument))
            function(argument)

        return call

    monkeypatch.setattr(os, "close", recorded("close", os.close))
    monkeypatch.setattr(os, "unlink", recorded("unlink", os.unlink))
    path = str(tmp_path / "out")
    target = safe_file.Target(path, None)
    fd = target.fd
    target.write(b"half")
    safe_file._unfinished.remove()  # what a fatal signal does
    assert calls == [("close", fd), ("unlink", path)]
    assert not os.path.exists(path)
    # A descriptor of the same number that was opened since is not closed.
    calls.clear()
    target = safe_file.Target(path, None)
    target.write(b"all")
    target.finish()
    other = os.open(path, os.O_RDONLY)
    calls.clear()
    safe_file._unfinished.remove()
    assert calls == []
    os.close(other)
    assert Path(path).read_bytes() == b"all"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_signal_leaves_no_output(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "lmcodec.cli.lmz", "-1", "-o", "out"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
    )
    while not (tmp_path / "out").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert process.stdin
    process.stdin.close()
    assert list(tmp_path.iterdir()) == []
