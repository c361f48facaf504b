"""Text of a file is found in the training corpora, and nothing else."""

from __future__ import annotations

import lzma
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmcodec.cli.train import train
from lmcodec.train.overlap import WINDOW, Windows


def words(seed: int, n: int) -> bytes:
    rng = random.Random(seed)
    return b" ".join(bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(n))


@pytest.mark.parametrize("before", [0, 1, 199, 200, (1 << 20) - 100, 1 << 20, (1 << 20) + 57])
def test_every_window_is_found_wherever_it_lies(before: int) -> None:
    text = words(1, 200)
    windows = Windows({"a": text, "b": words(2, 200)}, per_file=20)
    assert windows.count == {"a": 20, "b": 20}
    filler = words(3, 250_000)
    held = filler[:before] + text + filler[before : before + 500]
    found = list(windows.found_in(held))
    assert [name for name, _ in found] == ["a"] * 20
    assert len({offset for _, offset in found}) == 20


def test_one_byte_off_is_not_found() -> None:
    text = words(1, 100)[: WINDOW + 40]
    changed = bytearray(text)
    changed[100] ^= 1
    assert list(Windows({"a": text}).found_in(bytes(changed))) == []


def test_short_and_monotonous_files_have_no_windows() -> None:
    windows = Windows({"short": b"x" * (WINDOW - 1), "zeros": bytes(5000), "none": b""})
    assert windows.count == {"short": 0, "zeros": 0, "none": 0}
    assert list(windows.found_in(bytes(10_000))) == []
    assert list(windows.found_in(b"")) == []


def test_command(tiny_corpora: Path, tmp_path: Path) -> None:
    path = next((tiny_corpora / "train").glob("tech_docs*.xz"))
    document = max(lzma.decompress(path.read_bytes()).split(b"\0"), key=len)
    (tmp_path / "seen").write_bytes(document)
    (tmp_path / "unseen").write_bytes(words(9, 300))
    arguments = ["overlap", "--corpora", str(tiny_corpora), str(tmp_path / "unseen")]
    result = CliRunner().invoke(train, arguments)
    assert result.exit_code == 0, result.output
    assert "none in the training text" in result.output
    result = CliRunner().invoke(train, [*arguments, str(tmp_path / "seen")])
    assert result.exit_code == 1
    assert "in tech_docs" in result.output
