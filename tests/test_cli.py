"""The command line: output, exit status, one line for every error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lmcodec
from lmcodec.lm.vocab import Vocabulary


def run(*arguments: str | int | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-m", "lmcodec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def check_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lmcodec: ")
    for text in parts:
        assert text in lines[0]


def test_version_and_help() -> None:
    assert run("-V").stdout == f"lmcodec {lmcodec.__version__}\n"
    assert "train" in run("--help").stdout
    assert "prepare" in run("train", "-h").stdout


def test_vocabulary_and_shards_from_a_corpus(tiny_corpora: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocab = tmp_path / "v.lmv"
    made = run("train", "vocab", vocab, "--size", 300, "--sample-mb", 1, "--corpora", tiny_corpora)
    assert made.returncode == 0, made.stderr
    vocabulary = Vocabulary.load(vocab)
    assert len(vocabulary) == 300
    assert b" that" in vocabulary.strings
    assert "english_books" in made.stdout
    prepared = run("train", "prepare", "--vocab", vocab, "--out", tmp_path / "s", "--corpora", tiny_corpora)
    assert prepared.returncode == 0, prepared.stderr
    assert len(prepared.stdout.splitlines()) == 9
    assert len(list((tmp_path / "s").iterdir())) == 8


def test_errors_are_one_line(tmp_path: Path) -> None:
    check_error(run("train", "prepare", "--corpora", tmp_path, "--out", tmp_path / "s"), "LMCODEC_CORPORA")
    check_error(run("train", tmp_path / "none.toml"), "none.toml", "No such file")
    config = tmp_path / "typo.toml"
    config.write_text('name = "x"\n[model]\ndimm = 3\n', encoding="utf-8")
    check_error(run("train", config), "typo.toml", "'model.dimm'", "did you mean 'model.dim'")
    check_error(run("train", "run", config, "--set", "x"), "KEY=VALUE")
    check_error(run("train", "vocab", tmp_path / "no" / "v.lmv", "--corpora", tmp_path), "missing")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["measure", "--level", "12"], "'--level': 12"),
        (["compress", "--nosuch"], "No such option '--nosuch'"),
        (["explain"], "Missing argument 'FILE'"),
        (["corpus", "generate", "--kind", "log"], "Missing option '--nbytes'"),
        (["model", "show"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line_and_no_warning(arguments: list[str], part: str) -> None:
    """Exit status 2 is left to warnings, as in `lmz`."""
    result = run(*arguments)
    check_error(result, part, "(-h helps)")
    assert result.stdout == ""


def test_a_group_without_a_command_says_what_there_is() -> None:
    for group in ([], ["corpus"], ["model"]):
        result = run(*group)
        assert result.returncode in (0, 1)  # 0 before click 8.2
        assert "Commands:" in result.stdout + result.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no such signal here")
@pytest.mark.parametrize("arguments", [["corpus", "list"], ["-h"], ["model", "list"]])
def test_a_standard_output_that_ends(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-I", "-m", "lmcodec", *arguments], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_standard_output_that_is_full() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-I", "-m", "lmcodec", "corpus", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "lmcodec: No space left on device\n")
