"""How the package and its commands start: where there is no kernel, and when they are interrupted at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lmcodec

# What a package needs beside itself, without this one's installation: an editable one hides a source folder.
SITE = [path for path in sys.path if "site-packages" in path]
START = f"import os, signal, sys; sys.path[:0] = [sys.argv.pop(1)]; sys.path += {SITE!r}\n"


def python(code: str, package: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", START + code, package, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("LMCODEC_")},
    )


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a checkout has it: without the kernel that an installation builds."""
    folder = tmp_path_factory.mktemp("checkout")
    kernels = shutil.ignore_patterns("_kernel.*", "__pycache__", "native")
    shutil.copytree(Path(lmcodec.__file__).parent, folder / "lmcodec", ignore=kernels)
    return folder


@pytest.mark.parametrize(
    "statement",
    [
        "import lmcodec; lmcodec.compress(b'abc' * 100, 1)",
        "import lmcodec; lmcodec.bits_per_byte(b'abc' * 100, 1)",
        "from lmcodec import _kernel",
        "import lmcodec.engine",
        "import lmcodec.lm.recurrent.native",
        "from lmcodec.lm.vocab import Vocabulary; Vocabulary.load().segment(b'abc')",
    ],
)
def test_a_source_folder_says_why_it_cannot_run(source_folder: Path, statement: str) -> None:
    run = python(statement, source_folder, cwd=source_folder)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith(
        f"lmcodec.errors.KernelMissing: {source_folder / 'lmcodec'} has no native kernel: "
    )
    assert "pip install -e ." in last
    caught = python(
        f"try:\n    {statement}\nexcept ImportError: print('caught')", source_folder, cwd=source_folder
    )
    assert caught.stdout == "caught\n"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("lmz", ["-1", "text"]),
        ("lmz", ["text"]),
        ("lmz", ["-9", "text"]),
        ("lmcodec", ["measure", "text"]),
        ("lmcodec", ["compress", "text"]),
        ("lmcodec", ["model", "verify", "base"]),
    ],
)
def test_a_command_in_a_source_folder_prints_one_line(
    source_folder: Path, command: str, arguments: list[str]
) -> None:
    """Although models are loaded by two threads, either of which may see first that there is no kernel."""
    (source_folder / "text").write_bytes(b"some text " * 100)
    run = python(
        f"from lmcodec.cli.entry import {command}; {command}()", source_folder, *arguments, cwd=source_folder
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "has no native kernel: it is the source folder" in run.stderr
    assert not (source_folder / "text.lmz").exists()


def test_a_kernel_of_another_python_is_named(source_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(source_folder, tmp_path / "copy")
    (tmp_path / "copy" / "lmcodec" / "_kernel.py").write_text("import no_such_library", encoding="utf-8")
    run = python("import lmcodec.engine", tmp_path / "copy", cwd=tmp_path)
    assert "KernelMissing" in run.stderr.splitlines()[-1]


def test_what_needs_no_kernel_runs_without_it(source_folder: Path) -> None:
    code = "import lmcodec; lmcodec.decompress(lmcodec.compress(b'')); print(hasattr(lmcodec, 'nothing'))"
    assert python(code, source_folder, cwd=source_folder).stdout == "False\n"
    run = python("from lmcodec.cli.entry import lmz; lmz()", source_folder, "--version", cwd=source_folder)
    assert run.stdout.startswith("lmz ")


# An interrupt arrives while a module is looked for.
INTERRUPTED = """
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from lmcodec.cli.entry import {command}
{command}()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("command", ["lmz", "unlmz", "lmzcat", "lmcodec"])
@pytest.mark.parametrize(
    "module", ["lmcodec.cli.lmz", "click", "lmcodec.cli.operate", "lmcodec.cli.safe_file"]
)
def test_an_interrupt_while_a_command_starts_ends_it_quietly(
    command: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"text")
    package = Path(lmcodec.__file__).parents[1]
    arguments = ["compress", "text"] if command == "lmcodec" else ["-z", "text"]
    run = python(INTERRUPTED.format(module=module, command=command), package, *arguments, cwd=tmp_path)
    assert (run.returncode, run.stderr, run.stdout) == (-signal.SIGINT, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    package = Path(lmcodec.__file__).parents[1]
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED.format(
        module="click", command="lmz"
    )
    run = python(code, package, "--version", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")


def test_importing_the_package_leaves_signals_alone() -> None:
    code = "import signal, lmcodec, lmcodec.cli.entry; print(signal.getsignal(signal.SIGINT).__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout == "default_int_handler\n"


def test_the_commands_that_are_installed() -> None:
    """Every entry point of the installation is one of `entry`."""
    from importlib.metadata import entry_points

    found = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("lmcodec.")}
    names = ("lmcodec", "lmz", "unlmz", "lmzcat", "lmzdiff", "lmzgrep", "lmzless")
    assert found == {name: f"lmcodec.cli.entry:{name}" for name in names}
