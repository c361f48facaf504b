"""`lmcodec bench`: what works is measured, what does not is reported, and the rest goes on."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lmcodec.errors import ConfigError
from lmcodec.measure import bench, peers, stand_in
from lmcodec.measure.synthetic import generate

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the programs below are run as Unix does")

# How a compressor can go wrong, and what is to be said of it. `python peer.py WHAT pack|unpack IN OUT`.
PEER = """
import os, subprocess, sys, time, zlib
what, verb, source, target = sys.argv[1:]
data = open(source, "rb").read()
if what == "fails" and verb == "unpack":
    sys.exit("no such luck\\n")
if what == "picky" and b"GET" in data:
    sys.exit(1)
if what == "crashes":
    os.kill(os.getpid(), 9)
if what == "silent":
    sys.exit(0)
if what == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(os.environ["BENCH_PIDS"], "a").write(f"{child.pid}\\n")
    time.sleep(60)
if what == "large":
    ballast = bytearray(64 << 20)
if what == "vandal":
    os.chmod(source, 0o600)
    open(source, "wb").write(b"gone")
data = zlib.compress(data) if verb == "pack" else zlib.decompress(data)
if what == "corrupts" and verb == "unpack":
    data = data[:-1] + bytes([data[-1] ^ 1])
if what == "shortens" and verb == "unpack":
    data = data[:-1]
if what == "liar" and verb == "unpack":
    data = open(os.path.join(os.path.dirname(source), "text"), "rb").read()
open(target, "wb").write(data)
"""
WRONG = {
    "fails": "failed to decompress: exit status 1: no such luck",
    "crashes": "failed to compress: signal 9",
    "silent": "compressing wrote no file",
    "hangs": "took longer than 2 s to compress",
    "corrupts": "corrupts data: other bytes came back, as many as before",
    "shortens": "corrupts data: 3,000 bytes became 2,999",
    "liar": "failed to decompress: exit status 1: FileNotFoundError",
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "peer.py"
    path.write_text(PEER, encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_bytes(generate("prose", 3000, 1))
    (folder / "b.log").write_bytes(generate("log", 3000, 2))
    return folder


def command(what: str, script: Path) -> str:
    run = f"'{sys.executable}' -I -S '{script}' {what}"
    return f"{what}={run} pack {{in}} {{out}};{run} unpack {{in}} {{out}}"


def cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "lmcodec", "bench", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=os.environ | environment,
    )


def test_what_goes_wrong_is_reported_and_the_rest_goes_on(
    text: Path, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("BENCH_PIDS", str(pids))
    (text / "empty").write_bytes(b"")
    order = ["vandal", *WRONG, "good"]
    compressors = [peers.own_command(command(what, script)) for what in order]
    inputs, _ = bench.gather([str(text)])
    unreadable = bench.Input(tmp_path / "gone", "gone")
    told: list[bench.Failure] = []
    report = bench.run(compressors, [unreadable, *inputs], runs=2, timeout=2, on_failure=told.append)
    assert told == report.failures
    found = {(f.compressor, f.file): f.message for f in told}
    for what, message in WRONG.items():
        for file in ("a.txt", "b.log"):
            assert found.pop((what, file)).startswith(message)
    assert found == {
        ("", "gone"): "No such file or directory",
        ("", "empty"): "an empty file has nothing to compress, left out",
    }
    # The vandal's own results are right, and it spoiled nobody else's.
    sizes = {(m.compressor, m.file): m.packed_nbytes for m in report.measurements}
    assert sizes == {
        (what, path.name): len(zlib.compress(path.read_bytes()))
        for what in ("vandal", "good")
        for path in (text / "a.txt", text / "b.log")
    }
    # Nothing that was started goes on.
    for pid in map(int, pids.read_text(encoding="utf-8").split()):
        assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that was killed may stay a zombie until somebody asks for it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


def test_unreadable_files_and_folders(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none" / "deep").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")
    (text / "sub").mkdir()
    (text / "sub" / "a.txt").write_bytes(b"another")
    (text / "link").symlink_to(text / "a.txt")
    names = [str(tmp_path / n) for n in ("none", "fifo", "absent")]
    inputs, failures = bench.gather([*names, str(text), str(text / "b.log")], (5, None))
    assert [str(f) for f in failures] == [
        f"{names[0]}: holds no file",
        f"{names[1]}: not a regular file",
        f"{names[2]}: No such file or directory",
    ]
    # Each once, at each size; names that occur twice are paths.
    labels = [str(text / "a.txt"), "b.log", str(text / "sub" / "a.txt")]
    assert [(i.name, i.limit) for i in inputs] == [(n, limit) for n in labels for limit in (5, None)]
    # A folder that cannot be listed takes along only what is in it.
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path == str(text / "sub"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    inputs, failures = bench.gather([str(text)])
    assert [str(f) for f in failures] == [f"{text / 'sub'}: Permission denied"]
    assert [i.name for i in inputs] == ["a.txt", "b.log"]


def test_reading_fails_in_the_middle(script: Path) -> None:
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("no file here can be opened and not be read")
    compressors = [peers.own_command(command("good", script))]
    report = bench.run(compressors, [bench.Input(memory, "mem")], runs=1)
    assert [f.message for f in report.failures] == ["Input/output error"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x {in} {out};y {in} {out}", (("x", "{in}", "{out}"), False, False)),
        ("x -9 <{in} >{out};y {in} {out}", (("x", "-9"), True, True)),
        ("x -o={out} {in};y {in} {out}", (("x", "-o={out}", "{in}"), False, False)),
        ("'a b' 'c;d' \"<\"{in} {out};y {in} {out}", (("a b", "c;d", "{out}"), True, False)),
    ],
)
def test_commands(words: str, expected: tuple[tuple[str, ...], bool, bool]) -> None:
    first, second = peers.parse_commands(words)
    assert (first.words, first.reads_stdin, first.writes_stdout) == expected
    assert second == peers.Command(("y", "{in}", "{out}"))


def test_places_are_filled_as_they_are() -> None:
    filled = peers.Command(("x", "--a={in}", "{out}")).fill("/a {out} b", "; rm -rf $HOME")
    assert filled == ["x", "--a=/a {out} b", "; rm -rf $HOME"]


BAD_COMMANDS = {
    "": "expected NAME=",
    "x": "expected NAME=",
    "=a {in} {out};b {in} {out}": "expected NAME=",
    "x=gzip {in} {out}": "expected two commands",
    "x=gzip {in} {out};a;b": "expected two commands",
    "x=;gzip {in} {out}": "compress is empty",
    "x=gzip {in} {out};": "decompress is empty",
    "x=gzip 'a {in} {out};gzip {in} {out}": "no closing quotation",
    "x=gzip {in};gzip {in} {out}": "name {out} once",
    "x=gzip {in} {out};gzip {out}": "name {in} once",
    "x=gzip {in} {in} {out};gzip {in} {out}": "name {in} once",
    "x=gzip {input} {out};gzip {in} {out}": "holds {input}",
    "x=gzip <{in} > {out};gzip {in} {out}": "there is no shell",
    "x={in} {out};gzip {in} {out}": "begins with a file",
    "x=<{in} >{out};gzip {in} {out}": "begins with a file",
    "x=gzip <{in} | cat >{out};gzip {in} {out}": "there is no shell",
    "x=no-such-program {in} {out};gzip {in} {out}": "no program 'no-such-program'",
}


@pytest.mark.parametrize("bad", BAD_COMMANDS)
def test_wrong_commands(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"^--command ") as caught:
        peers.own_command(bad)
    assert BAD_COMMANDS[bad] in str(caught.value)


def test_a_wrong_command_is_reported_and_the_rest_goes_on(text: Path) -> None:
    commands = ["x=gzip {in};gzip {in} {out}", "y=no-such-program {in} {out};gzip {in} {out}"]
    messages = [
        f"--command {command!r}: {reason}"
        for command, reason in zip(
            commands,
            ("the command to compress must name {out} once", "no program 'no-such-program' is there"),
            strict=True,
        )
    ]
    given = [argument for command in commands for argument in ("--command", command)]
    result = cli(text, "--peers", "none", "--levels", "1", "--runs", "1", "--json", "-", *given)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"lmcodec: {message}" for message in messages]
    found = json.loads(result.stdout)
    assert [failure["message"] for failure in found["failures"]] == messages
    assert "lmz -1" in result.stdout
    # Where nothing is left to measure, the first of them is the error.
    result = cli(text, "--peers", "none", "--levels", "none", *given)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"lmcodec: {messages[0]}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name files or folders"),
        (["TEXT", "--peers", "pigz"], "no compressor is called 'pigz'"),
        (["TEXT", "--peers", "zstd:23"], "zstd has no level '23'"),
        (["TEXT", "--peers", "gzip:"], "gzip has no level ''"),
        (["TEXT", "--peers", "none", "--levels", "none"], "no compressor"),
        (["TEXT", "--csv", "TEXT/no/x.csv"], "is not there"),
        (["TEXT", "--csv", "-", "--json", "-"], "only one result"),
        (["TEXT", "--plot", "x.pdf"], "must end in .png or .svg"),
        (["TEXT/none", "--peers", "none"], "No such file"),
        (["-", "--peers", "none"], "standard input cannot be measured"),
        (["TEXT", "--levels", "0"], "'0' is not a list of levels"),
        (["TEXT", "--timeout", "nan"], "is not a number"),
        (["TEXT", "--timeout", "inf"], "inf is not in the range"),
        (["TEXT", "--csv", "TEXT/x", "--json", "TEXT/./x"], "two results cannot be in one file"),
        (["TEXT", "--markdown", "TEXT/a.txt"], "is one of the files to measure on"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, text: Path) -> None:
    before = {path.name: path.read_bytes() for path in text.iterdir()}
    result = cli(*(argument.replace("TEXT", str(text)) for argument in arguments))
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in text.iterdir()} == before


def test_two_compressors_of_one_name(script: Path) -> None:
    compressor = peers.own_command(command("good", script))
    with pytest.raises(ConfigError, match="2 compressors are called 'good'"):
        peers.check_names([compressor, compressor])


def test_memory_is_the_childs_own(text: Path, script: Path) -> None:
    ballast = random.Random(1).randbytes(100 << 20)
    compressors = [peers.own_command(command(what, script)) for what in ("good", "large")]
    report = bench.run(compressors, bench.gather([str(text / "a.txt")])[0], runs=1)
    small, large = (m.compress_peak for m in report.measurements)
    assert small is not None
    assert large is not None
    assert report.floor_nbytes is not None
    assert report.floor_nbytes <= small < 60 << 20 < len(ballast)
    assert 60 << 20 < large - small < 70 << 20


def test_totals_csv_and_tables(text: Path, script: Path) -> None:
    compressors = [peers.own_command(command(what, script)) for what in ("good", "picky")]
    report = bench.run(compressors, bench.gather([str(text)], (1000, 3000))[0], runs=1)
    parts = [m for m in report.measurements if m.limit == 1000 and m.compressor == "good"]
    assert report.limits() == [1000, 3000]
    assert [m.nbytes for m in parts] == [1000, 1000]
    (total,) = report.totals(1000)
    assert (total.compressor, total.file, total.nbytes) == ("good", "2 files", 2000)
    assert total.packed_nbytes == sum(m.packed_nbytes for m in parts)
    assert total.compress_seconds == sum(m.compress_seconds for m in parts)
    assert total.bpb == 8 * total.packed_nbytes / 2000
    assert total.ratio == 100 * total.packed_nbytes / 2000

    rows = list(csv.reader(io.StringIO(bench.as_csv(report))))
    assert ",".join(rows[0]) == (
        "Compressor name,Compression speed,Decompression speed,Original size,Compressed size,Ratio,Filename"
    )
    assert len(rows) == 7
    for row, m in zip(rows[1:], report.measurements, strict=True):
        assert row[0] == m.compressor
        assert [float(row[1]), float(row[2])] == [
            float(f"{m.nbytes / 1e6 / s:.4g}") for s in (m.compress_seconds, m.decompress_seconds)
        ]
        assert row[3:6] == [str(m.nbytes), str(m.packed_nbytes), f"{m.ratio:.2f}"]
        assert row[6] == f"{m.file}[:{m.limit}]"

    markdown = bench.as_markdown(report)
    assert "the first 1,000 bytes of 2 files, 2,000 bytes:\n\n| Compressor name |" in markdown
    assert f"| {total.packed_nbytes:,} | {total.ratio:.2f} | {total.bpb:.3f} |" in markdown
    assert "Not on all files, so not in the totals: picky." in markdown
    document = json.loads(bench.as_json(report))
    assert [f["compressor"] for f in document["failures"]] == ["picky"] * 2
    assert document["totals"][0]["packed_nbytes"] == total.packed_nbytes


def test_runs_take_turns_and_medians_count(text: Path, script: Path) -> None:
    compressors = [peers.own_command(f"{n}{command('good', script)[4:]}") for n in ("x", "y")]
    steps: list[tuple[str, int, int]] = []
    bench.run(compressors, bench.gather([str(text)])[0], runs=2, on_step=lambda *step: steps.append(step))
    assert steps == [
        (f"run {run} of 2: {name}: {file}", 4 * (run - 1) + 2 * i + j, 8)
        for run in (1, 2)
        for i, file in enumerate(("a.txt", "b.log"))
        for j, name in enumerate("xy")
    ]
    execution = [bench.Execution(seconds, peak) for seconds, peak in ((3.0, 5), (1.0, None), (2.0, 9))]
    taken = [(1000, 10, a, b) for a, b in zip(execution, reversed(execution), strict=True)]
    m = bench._measurement(compressors[0], bench.Input(text, "f"), taken)
    assert (m.compress_seconds, m.decompress_seconds, m.compress_peak) == (2.0, 2.0, 9)


def test_peers_that_are_here(text: Path) -> None:
    found = peers.find(list(peers.FAMILIES), 1)
    compressors = [peers.own_level(1, 1), *found.compressors]
    assert len(found.compressors) + len(found.missing) == len(peers.FAMILIES)
    report = bench.run(compressors, bench.gather([str(text / "a.txt")])[0], runs=1)
    assert report.failures == []
    assert all(40 < m.packed_nbytes < 3000 for m in report.measurements)


def test_python_stands_in(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    found = peers.find(["gzip", "bzip2:1", "xz", "zstd", "brotli", "ppmd", "cmix"], 1)
    labels = {"zstd": "zstd -22", "brotli": "brotli -q 11", "ppmd": "PPMd o16 (7z)"}
    absent = {label for name, label in labels.items() if not stand_in.available(name)}
    assert found.missing.keys() == {"cmix", *absent}
    assert [c.name for c in found.compressors][:3] == [
        "gzip -9 (Python)",
        "bzip2 -1 (Python)",
        "xz -9e (Python)",
    ]
    report = bench.run(found.compressors, bench.gather([str(text / "b.log")])[0], runs=1)
    assert report.failures == []
    sizes = {m.compressor: m.packed_nbytes for m in report.measurements}
    assert sizes["gzip -9 (Python)"] == len(zlib.compress((text / "b.log").read_bytes(), 9)) + 12


def test_the_command(text: Path, script: Path, tmp_path: Path) -> None:
    names = {name: tmp_path / f"result.{name}" for name in ("csv", "json", "markdown")}
    options = [part for name, path in names.items() for part in (f"--{name}", path)]
    arguments = ["--levels", "1", "--peers", "gzip,cmix", "--command", command("corrupts", script)]
    result = cli(
        text, tmp_path / "absent", *arguments, "--runs", "1", "--nbytes", "2K", *options, PATH=os.defpath
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0] == f"lmcodec: {tmp_path / 'absent'}: No such file or directory"
    assert [line.split(": corrupts data")[0] for line in lines[1:]] == [
        "lmcodec: corrupts: a.txt",
        "lmcodec: corrupts: b.log",
    ]
    assert "Missing: cmix (github.com/byronknoll/cmix)." in result.stdout
    document = json.loads(names["json"].read_text(encoding="utf-8"))
    assert document["missing"].keys() == {"cmix"}
    assert {m["compressor"] for m in document["measurements"]} == {
        "lmz -1",
        document["compressors"][1]["name"],
    }
    assert names["csv"].read_text(encoding="utf-8").count("\n") == 5
    assert "lmz -1" in names["markdown"].read_text(encoding="utf-8")


def test_quick_needs_no_file() -> None:
    result = cli("--quick", "--levels", "1", "--peers", "none", "--nbytes", "1K", "--csv", "-")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["Filename"] for row in rows] == [
        f"{kind} (generated)[:1024]" for kind in ("json", "log", "prose")
    ]
    assert {row["Original size"] for row in rows} == {"1024"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_keep_what_they_have(
    number: signal.Signals, text: Path, script: Path, tmp_path: Path
) -> None:
    pids, folder = tmp_path / "pids", tmp_path / "tmp"
    folder.mkdir()
    arguments = ["--levels", "none", "--peers", "none", "--runs", "1"]
    for what in ("good", "hangs"):
        arguments += ["--command", command(what, script)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "lmcodec", "bench", str(text / "a.txt"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"BENCH_PIDS": str(pids), "TMPDIR": str(folder)},
    )
    deadline = time.monotonic() + 60
    while (
        not (pids.exists() and pids.read_text(encoding="utf-8").endswith("\n"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -number
    assert err == "lmcodec: interrupted\n"
    assert "good" in out
    assert "Interrupted: only what had been measured by then." in out
    assert not alive(int(pids.read_text(encoding="utf-8")))
    assert list(folder.iterdir()) == []


def test_results_outlive_a_reader_that_leaves_and_failures(text: Path, tmp_path: Path) -> None:
    """Files are written before anything is printed, and what was there stays until they are complete."""
    result = tmp_path / "result.csv"
    result.write_text("old", encoding="utf-8")
    command = [sys.executable, "-I", "-m", "lmcodec", "bench", str(text / "a.txt"), "--csv", str(result)]
    command += ["--levels", "1", "--peers", "none", "--runs", "1"]
    limited = ["sh", "-c", "ulimit -f 0; trap '' XFSZ; exec \"$@\"", "sh", *command[:6]]
    limited += ["--csv", str(result), "--levels", "none", "--peers", "none", "--runs", "1"]
    limited += ["--command", "true=true {in} {out};true {in} {out}"]
    done = subprocess.run(limited, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (result.read_text(encoding="utf-8"), sorted(os.listdir(tmp_path))) == (
        "old",
        ["result.csv", "text"],
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")
    assert result.read_text(encoding="utf-8").startswith("Compressor name,")


def test_an_interrupt_before_the_first_result_keeps_the_old_one(
    text: Path, script: Path, tmp_path: Path
) -> None:
    pids, result = tmp_path / "pids", tmp_path / "result.csv"
    result.write_text("old", encoding="utf-8")
    arguments = ["--levels", "none", "--peers", "none", "--command", command("hangs", script)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "lmcodec", "bench", str(text), "--csv", str(result), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"BENCH_PIDS": str(pids)},
    )
    deadline = time.monotonic() + 60
    while (
        not (pids.exists() and pids.read_text(encoding="utf-8").endswith("\n"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "lmcodec: interrupted\n")
    assert process.returncode == -signal.SIGINT
    assert result.read_text(encoding="utf-8") == "old"


def test_odd_names(tmp_path: Path) -> None:
    names = [b"line\nbreak", b"no \xff text", b"a|b<i>"]
    try:
        for name in names:
            Path(os.fsdecode(tmp_path / os.fsdecode(name))).write_bytes(b"some text, some text\n" * 9)
    except OSError:
        pytest.skip("the file system refuses such names")
    out = {form: tmp_path.parent / f"{tmp_path.name}.{form}" for form in ("csv", "json", "markdown", "png")}
    options = [part for form in ("csv", "json", "markdown") for part in (f"--{form}", out[form])]
    if find_spec("matplotlib"):
        options += ["--plot", out["png"]]
    arguments = ["--levels", "1", "--peers", "none", "--runs", "1", "--files"]
    done = cli(tmp_path, *arguments, *options, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    shown = ["line\\nbreak", "no \\xff text", "a|b<i>"]
    assert all(f"{name}, 189 bytes\n" in done.stdout for name in shown)
    with open(out["csv"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["Filename"] for row in rows} == {"line\nbreak", "no \\udcff text", "a|b<i>"}
    document = json.loads(out["json"].read_text(encoding="utf-8"))
    assert {os.fsencode(m["file"]) for m in document["measurements"]} == set(names)
    text = out["markdown"].read_text(encoding="utf-8")
    assert all(f"\n{name}, 189 bytes:\n" in text for name in ("line↵break", "no ⟨FF⟩ text", "a\\|b\\<i>"))


def test_the_environment_changes_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> list[int]:
        found = peers.find(["xz:0", "zstd:3"], 1)
        report = bench.run(found.compressors, bench.gather([str(text / "a.txt")])[0], runs=1)
        return [m.packed_nbytes for m in report.measurements]

    plain = sizes()
    monkeypatch.setenv("XZ_DEFAULTS", "--check=none")
    monkeypatch.setenv("XZ_OPT", "-9e")
    monkeypatch.setenv("ZSTD_NBTHREADS", "nonsense")
    assert sizes() == plain


def test_suffixes_that_programs_append(tmp_path: Path) -> None:
    assert peers.locate(tmp_path / "packed.bin") == tmp_path / "packed.bin"
    (tmp_path / "packed.bin.paq8px").touch()
    assert peers.locate(tmp_path / "packed.bin") == tmp_path / "packed.bin.paq8px"
    (tmp_path / "packed.bin").touch()
    assert peers.locate(tmp_path / "packed.bin") == tmp_path / "packed.bin"
    with contextlib.suppress(OSError):
        (tmp_path / "packed.bin").unlink()
    (tmp_path / "packed.bin.two").touch()
    assert peers.locate(tmp_path / "packed.bin") == tmp_path / "packed.bin"
