"""What a terminal is given, and what options and the environment hold: the cases that users met."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

import lmcodec
from lmcodec import _kernel
from lmcodec.cli.progress import Progress, clipped, named_line, printable, width_of
from lmcodec.cli.table import table

LMZ = [sys.executable, "-I", "-m", "lmcodec.cli.lmz"]
LMCODEC = [sys.executable, "-I", "-m", "lmcodec"]
TEXT = b"a line of a text that is compressed\n" * 300


def environment(**changes: str) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("LMCODEC_") and k != "COLUMNS"}
    return ours | {"TERM": "xterm"} | changes


NAMES = {
    "ASCII": ("name.txt", 8),
    "Chinese": ("中文文件名.txt", 14),
    "Korean": ("한국어.txt", 10),
    "full-width forms": ("ＡＢＣ", 6),
    "half-width forms": ("ｱｲｳ", 3),
    "Cyrillic, Greek, box drawing": ("имя ωμέγα ─", 11),
    "combining": ("e\u0301tude", 5),
    "Hebrew with points": ("שָׁלוֹם", 4),
    "Devanagari": (unicodedata.normalize("NFD", "कि"), 2),
    "emoji": ("😀🎉", 4),
    "emoji by a selector": ("❤\ufe0f", 2),
    "flag": ("🇩🇪", 4),
    "skin colour": ("👍🏽", 4),
}


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_names(name: str) -> None:
    text, width = NAMES[name]
    assert width_of(text) == width
    for most in range(width + 3):
        assert width_of(clipped(text, most)) <= most
        assert text.startswith(clipped(text, most))
    assert clipped(text, width) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("repeat", [1, 20])
def test_a_line_of_progress_fits_any_terminal(name: str, repeat: int) -> None:
    progress = Progress(NAMES[name][0] * repeat, 1000, decoding=False)
    for width in range(130):
        assert width_of(progress.line(width)) <= width
    wide = progress.line(300 * repeat)
    assert NAMES[name][0] in wide
    assert "0 B of 1000 B (0%)" in wide or "(0%)" in wide


def test_a_long_name_keeps_its_end() -> None:
    line = named_line("文" * 50 + "-最後.txt", "10%", 40)
    assert line.endswith("-最後.txt  10%")
    assert line.startswith("…文")
    assert 39 <= width_of(line) <= 40
    # What is drawn over a sign does not lose it.
    cut = named_line("e\u0301" * 50, "10%", 20)
    assert not any(unicodedata.combining(cut[i]) and not cut[i - 1].isalpha() for i in range(1, len(cut)))
    assert width_of(cut) == 20


def test_narrow_terminals_see_what_matters_most() -> None:
    progress = Progress("name", 1000, decoding=False)
    assert [progress.line(n) for n in (2, 3, 7, 11, 12)] == ["0%", "0%", "0%", "0%  0:00:00", "0%  0:00:00"]


def test_control_characters_are_escaped_in_columns_too() -> None:
    name = "a\x1b[31m\u202e\x9b2J\udc9b\n\u2028\u200b.txt"
    shown = printable(name)
    assert shown == r"a\x1b[31m\u202e\x9b2J\x9b\n\u2028\u200b.txt"
    assert width_of(shown) == len(shown)


def test_tables_of_wide_names_are_aligned() -> None:
    rows = [("name", "size"), ("文件", "1"), ("e\u0301", "22")]
    lines = table([(*row, "|") for row in rows], right=[1]).splitlines()
    assert {width_of(line) for line in lines} == {width_of(lines[0])}


# On a terminal

if os.name == "posix":
    import pty
    import termios


def on_terminal(folder: Path, name: str, columns: int, **variables: str) -> tuple[str, int]:
    """What `lmz` draws on a terminal of so many columns while it waits for the second half of a pipe."""
    import fcntl

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.mkfifo(folder / name)
    process = subprocess.Popen(
        [sys.executable, "-m", "lmcodec.cli.lmz", "-1f", "-o", "out", name],
        cwd=folder,
        stderr=slave,
        env=environment(**variables),
    )
    os.close(slave)
    with open(folder / name, "wb") as pipe:
        pipe.write(TEXT)
        pipe.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    seen = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(master)
    return seen.decode(variables.get("PYTHONIOENCODING", "utf-8")), process.wait(60)


TERMINALS = [
    ("中文文件名" * 10, 80, {}, 79),
    ("e\u0301" * 60, 40, {}, 39),
    ("🎉" * 30, 10, {}, 9),
    ("name", 1, {}, 0),
    ("name", 0, {}, 79),
    ("name", 80, {"COLUMNS": "10"}, 9),
    ("name", 80, {"COLUMNS": "0"}, 79),
    ("name", 40, {"COLUMNS": "200"}, 39),
    ("name", 80, {"COLUMNS": "ten"}, 79),
    ("name", 80, {"COLUMNS": "-5"}, 79),
    ("中文" * 30, 60, {"PYTHONIOENCODING": "ascii"}, 59),
]


@pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals")
@pytest.mark.parametrize(("name", "columns", "variables", "most"), TERMINALS)
def test_no_line_is_longer_than_the_terminal(
    name: str, columns: int, variables: dict[str, str], most: int, tmp_path: Path
) -> None:
    seen, status = on_terminal(tmp_path, name, columns, **variables)
    assert status == 0
    lines = [line for line in re.split(r"\r\x1b\[K", seen) if line]
    assert bool(lines) == (most > 0)
    assert all(width_of(line) <= most for line in lines), lines
    assert not {c for line in lines for c in line if not c.isprintable()}


@pytest.mark.skipif(os.name != "posix", reason="needs pseudo-terminals")
@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_no_escape_sequences(term: str, tmp_path: Path) -> None:
    seen, status = on_terminal(tmp_path, "name", 80, TERM=term)
    assert (seen, status) == ("", 0)


# Options


EMPTY = [
    [*LMZ, "-o", ""],
    [*LMZ, "--output="],
    [*LMZ, "-S", ""],
    [*LMZ, "--model", ""],
    [*LMZ, "--method", ""],
    [*LMZ, "-T", ""],
    [*LMZ, "--block-size", ""],
    [*LMZ, "-d", "--max-output", ""],
    [*LMZ, "-d", "--memlimit", ""],
    [*LMCODEC, "compress", "-o", ""],
    [*LMCODEC, "decompress", "--model", ""],
    [*LMCODEC, "measure", "--model", ""],
    [*LMCODEC, "explain", "-o", ""],
    [*LMCODEC, "model", "export", "-o", ""],
    [*LMCODEC, "train", "prepare", "--out", ""],
    [*LMCODEC, "train", "run", "--set", ""],
]


@pytest.mark.parametrize("command", EMPTY, ids=lambda command: " ".join(command[3:]))
def test_an_empty_argument_is_an_error(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    run = subprocess.run(
        [*command, "text"], cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", timeout=60
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "''" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


# The environment

WRONG = {
    "LMCODEC_LEVEL": "zz",
    "LMCODEC_THREADS": "abc",
    "LMCODEC_MODEL": "/no/such/model",
    "LMCODEC_ISA": "sse9",
}


def run_lmz(*arguments: str, data: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*LMZ, *arguments], input=data, env=environment(**variables), capture_output=True, timeout=60
    )


@pytest.fixture(scope="module")
def frames() -> list[bytes]:
    return [
        lmcodec.compress(TEXT[:3000], level, method=m) for level, m in ((1, "auto"), (6, "lm+cm"), (6, "lm"))
    ]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variable_stops_compressing_and_never_decoding(name: str, frames: list[bytes]) -> None:
    wrong = {name: WRONG[name]}
    refused = run_lmz("-c", data=TEXT, **wrong)
    assert (refused.returncode, refused.stdout) == (1, b"")
    message = refused.stderr.decode()
    assert message.count("\n") == 1
    assert name in message
    assert WRONG[name] in message
    for frame in frames:
        run = run_lmz("-dc", data=frame, **wrong)
        assert (run.returncode, run.stdout, run.stderr) == (0, TEXT[:3000], b"")
        assert run_lmz("-t", data=frame, **wrong).returncode == 0


def test_the_library_decodes_in_any_environment(frames: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WRONG.items():
        monkeypatch.setenv(name, value)
    for frame in frames:
        assert lmcodec.decompress(frame) == TEXT[:3000]
        with lmcodec.open(io.BytesIO(frame)) as file:
            assert file.read() == TEXT[:3000]
    with pytest.raises(lmcodec.LmcodecError, match="LMCODEC_ISA=sse9"):
        lmcodec.compress(TEXT, 1)
    monkeypatch.setenv("LMCODEC_ISA", _kernel.mixing_isas()[-1])
    with pytest.raises(lmcodec.ModelNotFound, match=r"/no/such/model: .*LMCODEC_MODEL in the environment"):
        lmcodec.compress(TEXT, 6)
    assert lmcodec.decompress(lmcodec.compress(TEXT, 1)) == TEXT


def test_a_frame_whose_model_is_missing_is_named_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lmcodec.frame import Block, FrameHeader, Method

    block = Block(Method.LM, 100, 10, 0, 1, 1, last=True).pack(b"", bytes(10))
    monkeypatch.setenv("LMCODEC_MODEL", "/no/such/model")
    with pytest.raises(lmcodec.ModelNotFound, match=r"needs model 0102030405060708.*/no/such/model"):
        lmcodec.decompress(FrameHeader(model_id=bytes(range(1, 9))).pack() + block)
