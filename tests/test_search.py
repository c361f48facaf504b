"""lmzgrep, lmzless and lmzdiff as their users call them; manual pages, completion, the entry for file(1)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lmcodec
from lmcodec.cli import man
from lmcodec.cli.grep import parse
from lmcodec.errors import ConfigError

if os.name != "posix":
    pytest.skip("needs POSIX", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
TEXT = b"alpha\nBeta\ngamma delta\nalphabet\n"


def run(
    entry: str, folder: Path, *arguments: str | bytes, stdin: bytes | None = None
) -> tuple[int, bytes, str]:
    """Exit status, output and errors of an installed command, or of the function that it is."""
    code = f"import sys; from lmcodec.cli.entry import {entry}; sys.argv[0] = '{entry}'; {entry}()"
    options: Any = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    command = [*map(os.fsencode, (sys.executable, "-c", code, *arguments))]
    done: Any = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        timeout=120,
        **options,
    )
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_bytes(TEXT)
    for name in ("packed.lmz", "-dash.lmz", "a b\nc'.lmz", "deep/er/x.txt.lmz", "deep/other.log.lmz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lmcodec.compress(TEXT, level=1))
    (tmp_path / "deep" / "er" / "loop").symlink_to(tmp_path)
    return tmp_path


# lmzgrep


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_grep_as_grep(folder: Path) -> None:
    """What it prints is what grep prints of the originals."""
    for options in (
        ["alpha"],
        ["-n", "alpha"],
        ["-ic", "beta"],
        ["-v", "-e", "a$"],
        ["-A1", "Beta"],
        ["-o", "a"],
    ):
        expected = subprocess.run(["grep", *options, "plain"], cwd=folder, capture_output=True)
        assert run("lmzgrep", folder, *options, "packed.lmz")[:2] == (expected.returncode, expected.stdout)
        assert run("lmzgrep", folder, *options, "plain")[:2] == (expected.returncode, expected.stdout)
        packed = (folder / "packed.lmz").read_bytes()
        assert run("lmzgrep", folder, *options, stdin=packed)[:2] == (expected.returncode, expected.stdout)


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_grep_in_files_of_any_name(folder: Path) -> None:
    status, out, _ = run("lmzgrep", folder, "-c", "alpha", "--", "-dash.lmz", "a b\nc'.lmz", "plain")
    assert (status, out) == (0, b"-dash.lmz:2\na b\nc'.lmz:2\nplain:2\n")
    assert run("lmzgrep", folder, "-l", "alpha", "packed.lmz", "plain")[1] == b"packed.lmz\nplain\n"
    assert run("lmzgrep", folder, "-h", "Beta", "packed.lmz", "plain")[1] == b"Beta\nBeta\n"
    assert run("lmzgrep", folder, "-H", "Beta", "packed.lmz")[1] == b"packed.lmz:Beta\n"
    shutil.copy(folder / "plain", folder / os.fsdecode(b"\xff.txt"))
    assert run("lmzgrep", folder, "-H", "Beta", b"\xff.txt")[1] == b"\xff.txt:Beta\n"


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_grep_in_folders(folder: Path) -> None:
    """Links are not followed: a loop ends."""
    assert run("lmzgrep", folder, "-rl", "Beta", "deep")[1] == b"deep/other.log.lmz\ndeep/er/x.txt.lmz\n"
    assert run("lmzgrep", folder, "-rl", "--include=*.txt", "Beta", "deep")[1] == b"deep/er/x.txt.lmz\n"
    assert run("lmzgrep", folder, "-rl", "--exclude", "*.txt", "Beta", "deep")[1] == b"deep/other.log.lmz\n"
    assert run("lmzgrep", folder, "-rl", "--exclude-dir=er", "Beta", "deep")[1] == b"deep/other.log.lmz\n"
    assert b"plain\n" in run("lmzgrep", folder, "-rl", "Beta")[1]
    status, _, said = run("lmzgrep", folder, "Beta", "deep")
    assert (status, "is a folder" in said) == (2, True)


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_exit_statuses_of_grep(folder: Path) -> None:
    assert run("lmzgrep", folder, "-q", "alpha", "packed.lmz")[:2] == (0, b"")
    assert run("lmzgrep", folder, "nothing", "packed.lmz", "plain")[0] == 1
    status, out, said = run("lmzgrep", folder, "alpha", "missing", "packed.lmz")
    assert (status, len(said.splitlines())) == (2, 1)
    assert b"packed.lmz:alpha\n" in out
    assert run("lmzgrep", folder, "-s", "alpha", "missing")[1:] == (b"", "")
    assert run("lmzgrep", folder, "-q", "alpha", "packed.lmz", "missing")[0] == 0
    assert run("lmzgrep", folder)[0] == 2
    assert run("lmzgrep", folder, "-e")[0] == 2
    assert run("lmzgrep", folder, "[", "packed.lmz")[0] == 2
    data = (folder / "packed.lmz").read_bytes()
    (folder / "bad.lmz").write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    status, _, said = run("lmzgrep", folder, "alpha", "bad.lmz")
    assert (status, said.startswith("lmzgrep: bad.lmz: ")) == (2, True)


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_grep_that_has_seen_enough(folder: Path) -> None:
    (folder / "long.lmz").write_bytes(lmcodec.compress(b"alpha\n" * 400_000, level=1))
    assert run("lmzgrep", folder, "-m1", "alpha", "long.lmz") == (0, b"alpha\n", "")
    assert (
        run("lmzgrep", folder, "-f", "-", "packed.lmz", stdin=b"Beta\ndelta\n")[1] == b"Beta\ngamma delta\n"
    )


def test_options_of_grep_are_told_from_files() -> None:
    found = parse(["-in", "-A", "3", "--regexp", "x", "-m2", "file", "--color=always", "--", "-e"])
    assert found.files == ["file", "-e"]
    assert found.options == ["-i", "-n", "-A", "3", "--regexp=x", "-m", "2", "--color=always"]
    assert parse(["-5", "word", "f"]).options == ["-5", "-e", "word"]
    assert parse(["-ie", "word", "f"]).files == ["f"]
    assert parse(["-d", "recurse", "word"]).recursive
    with pytest.raises(ConfigError):
        parse(["--exclude-from=x", "word"])


# lmzless, lmzdiff


@pytest.mark.skipif(shutil.which("less") is None, reason="needs less")
def test_less_shows_what_is_compressed(folder: Path) -> None:
    for name in ("packed.lmz", "plain", "a b\nc'.lmz"):
        assert run("lmzless", folder, name)[1] == TEXT
    assert run("lmzless", folder, stdin=(folder / "packed.lmz").read_bytes())[1] == TEXT


@pytest.mark.skipif(shutil.which("diff") is None, reason="needs diff")
@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs /dev/fd")
def test_diff(folder: Path) -> None:
    (folder / "other").write_bytes(TEXT.replace(b"Beta", b"beta"))
    (folder / "other.lmz").write_bytes(lmcodec.compress(b"x", level=1))
    assert run("lmzdiff", folder, "packed.lmz", "plain") == (0, b"", "")
    status, out, _ = run("lmzdiff", folder, "-U", "0", "packed.lmz", "other")
    assert (status, out) == (1, b"--- packed.lmz\n+++ other\n@@ -2 +2 @@\n-Beta\n+beta\n")
    assert (
        run("lmzdiff", folder, "-q", "other", "--", "-dash.lmz")[1] == b"Files other and -dash.lmz differ\n"
    )
    assert run("lmzdiff", folder, "other.lmz")[0] == 1  # with what it is called without .lmz
    assert run("lmzdiff", folder, "packed.lmz", "-", stdin=TEXT)[0] == 0
    for arguments in ((), ("a", "b", "c"), ("missing", "plain"), ("deep", "plain"), ("-", "-")):
        status, _, said = run("lmzdiff", folder, *arguments)
        assert (status, len(said.splitlines())) == (2, 1)
    data = (folder / "packed.lmz").read_bytes()
    (folder / "bad.lmz").write_bytes(data[: len(data) // 2])
    assert run("lmzdiff", folder, "bad.lmz", "plain")[0] == 2


@pytest.mark.parametrize("entry", ["lmzgrep", "lmzless", "lmzdiff"])
def test_help_and_version(entry: str, tmp_path: Path) -> None:
    assert run(entry, tmp_path, "--help")[1].startswith(f"Usage: {entry} ".encode())
    assert run(entry, tmp_path, "--version")[1] == f"{entry} {lmcodec.__version__}\n".encode()


# Manual pages, completion, file(1)


@pytest.mark.parametrize("name", man.PAGES)
def test_manual_pages_are_what_the_commands_say(name: str) -> None:
    """Made again by `python -m lmcodec.cli.man lmcodec/man`."""
    kept = ROOT / "lmcodec" / "man" / f"{name}.1"
    if not kept.parent.is_dir():
        pytest.skip("not a checkout")
    assert kept.read_text("utf-8") == man.page(name)


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
@pytest.mark.parametrize("name", man.PAGES)
def test_manual_pages_can_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.1").write_text(man.page(name), "utf-8")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", str(tmp_path / "page.1")]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    )
    if b"minimized" in done.stdout or done.returncode:
        pytest.skip("man is not all there")
    assert done.stderr == b""
    assert name.encode() in done.stdout


def test_completion() -> None:
    code = "from lmcodec.cli.entry import lmz; lmz()"
    environment = {
        **os.environ,
        "_LMZ_COMPLETE": "bash_complete",
        "COMP_WORDS": "lmz --mem",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, encoding="utf-8"
    )
    assert done.stdout == "plain,--memlimit\n"


@pytest.mark.skipif(shutil.which("file") is None, reason="needs file")
def test_the_entry_for_file_in_the_documents(tmp_path: Path) -> None:
    page = (ROOT / "lmcodec" / "docs" / "COMMANDS.md").read_text("utf-8")
    entry = re.search(r"^```magic\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert entry is not None
    (tmp_path / "magic").write_text(entry[1], "utf-8")
    (tmp_path / "x").write_bytes(lmcodec.compress(b"text", level=1))
    command = ["file", "-b", "-m", str(tmp_path / "magic")]
    shown = subprocess.run([*command, "x"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    assert shown.stdout == "lmcodec compressed data, version 1\n"
    mime = subprocess.run(
        [*command, "-i", "x"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    assert mime.stdout.startswith("application/x-lmcodec")
