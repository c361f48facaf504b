"""The command line: output, exit status, one line for every error."""

from __future__ import annotations

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
    config.write_text('name = "x"\n[model]\ndimm = 3\n')
    check_error(run("train", config), "typo.toml", "'model.dimm'", "did you mean 'model.dim'")
    check_error(run("train", "run", config, "--set", "x"), "KEY=VALUE")
    check_error(run("train", "vocab", tmp_path / "no" / "v.lmv", "--corpora", tmp_path), "missing")
