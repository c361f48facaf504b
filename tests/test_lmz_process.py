"""The gzip-like front as a process: signals, pipes, terminals, limits, tar; on POSIX."""

from __future__ import annotations

import errno
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

if os.name != "posix":
    pytest.skip("needs POSIX", allow_module_level=True)
import pty

import lmcodec

TEXT = b"".join(b"line %d of a text that is compressed\n" % i for i in range(300))
NOISE = random.Random(1).randbytes(100_000)  # more than a pipe holds
LMZ = [sys.executable, "-I", "-m", "lmcodec.cli.lmz"]
ERASE = b"\r\x1b[K"


def environment() -> dict[str, str]:
    """Ours, less what changes the command or how Python writes; a level without a language model."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("LMCODEC_", "PYTHONUNBUFFERED"))}
    return ours | {"LMCODEC_LEVEL": "2", "TERM": "xterm"}


def lmz(folder: Path, *arguments: str, stdout: Any = PIPE) -> subprocess.CompletedProcess[bytes]:
    result: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*LMZ, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=PIPE,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in result.stderr
    return result


def start(
    folder: Path, *command: str, stdin: Any = PIPE, stdout: Any = PIPE, stderr: Any = PIPE
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=folder, env=environment(), stdin=stdin, stdout=stdout, stderr=stderr)


def in_shell(setup: str, *arguments: str) -> list[str]:
    """The command that runs lmz after `setup`, which `exec "$@"` ends."""
    return ["sh", "-c", setup, "sh", *LMZ, *arguments]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_output_and_kills(tmp_path: Path, signum: int) -> None:
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip("the suite was started so that it ignores the signal (nohup)")
    process = start(tmp_path, *LMZ, "-o", "out.lmz")
    assert process.stdin
    process.stdin.write(NOISE)
    process.stdin.flush()
    wait_for((tmp_path / "out.lmz").exists)
    process.send_signal(signum)
    process.wait(timeout=60)  # its input stays open until then
    out, err = process.communicate()
    assert (process.returncode, out, err) == (-signum, b"", b"")
    assert os.listdir(tmp_path) == []


def test_a_signal_keeps_what_was_to_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.lmz").write_bytes(b"precious")
    process = start(tmp_path, *LMZ, "-fo", "out.lmz")
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    process.communicate()
    assert process.returncode == -signal.SIGINT
    assert os.listdir(tmp_path) == ["out.lmz"]
    assert (tmp_path / "out.lmz").read_bytes() == b"precious"


def test_a_signal_need_not_wait_for_a_block(text: Path) -> None:
    """A block may take a minute, and the kernel does not look for signals."""
    code = (
        "import time, lmcodec.codec, lmcodec.cli.lmz as front\n"
        "lmcodec.codec.Compressor.flush = lambda self: time.sleep(60)\n"
        "front.main(['--rm', 'text'])"
    )
    process = start(text.parent, sys.executable, "-I", "-c", code)
    wait_for((text.parent / "text.lmz").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGTERM, b"")
    assert os.listdir(text.parent) == ["text"]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    process = start(tmp_path, *in_shell('trap "" HUP; exec "$@"', "-o", "out.lmz"))
    wait_for((tmp_path / "out.lmz").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    _, err = process.communicate(TEXT, timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert lmz(tmp_path, "-dc", "out.lmz").stdout == TEXT


# Pipes and standard streams


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(NOISE)
    assert lmz(tmp_path, "-1", "noise").returncode == 0
    for arguments in (["-dc", "noise.lmz"], ["-1c", "noise"], ["-l", "noise.lmz"]):
        process = start(tmp_path, *LMZ, *arguments)
        assert process.stdout
        assert process.stderr
        if arguments[0] == "-l":
            process.stdout.close()
        else:
            process.stdout.read(1)
            process.stdout.close()
        assert process.wait(timeout=30) == -signal.SIGPIPE
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.stdin
        process.stdin.close()


def test_closed_standard_streams(text: Path) -> None:
    """A file that took the number of a closed stream would be written into, or read."""
    for closed in ("<&-", "<&- >&- 2>&-"):
        process = start(text.parent, *in_shell(f'exec "$@" {closed}', "-f", "text"))
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, b"")
        assert lmz(text.parent, "-dc", "text.lmz").stdout == TEXT
    for closed, arguments, name in [(">&-", ["-c", "text"], b"(stdout)"), ("<&-", ["-d"], b"(stdin)")]:
        process = start(text.parent, *in_shell(f'exec "$@" {closed}', *arguments))
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert err == b"lmz: %s: %s\n" % (name, os.strerror(errno.EBADF).encode())
    assert text.read_bytes() == TEXT


def test_numbers_of_closed_streams_are_not_given_to_files(tmp_path: Path) -> None:
    code = (
        "import os; from lmcodec.cli.safe_file import reserve_standard_descriptors as reserve\n"
        "reserve()\n"
        "fd = os.open('seen', os.O_WRONLY | os.O_CREAT)\n"
        "for use in (lambda: os.read(0, 1), lambda: os.write(1, b'x'), lambda: os.write(2, b'x')):\n"
        "    try: use()\n"
        "    except OSError as error: os.write(fd, b'%d ' % error.errno)\n"
        "os.write(fd, b'%d' % fd)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-I", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True)
    assert (tmp_path / "seen").read_text(encoding="utf-8") == f"{errno.EBADF} {errno.EBADF} {errno.EBADF} 3"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output(text: Path) -> None:
    message = os.strerror(errno.ENOSPC)
    for arguments in (["-V"], ["-h"], ["-c", "text"], ["-c", "--rm", "text"]):
        with open("/dev/full", "wb") as full:
            result = lmz(text.parent, *arguments, stdout=full)
        assert result.returncode == 1
        assert result.stderr.decode().startswith("lmz: ")
        assert result.stderr.decode().endswith(f"{message}\n")
        assert result.stderr.count(b"\n") == 1
    assert text.read_bytes() == TEXT


def test_a_file_size_limit(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(NOISE)
    process = start(tmp_path, *in_shell('ulimit -f 100; exec "$@"', "-1", "--rm", "noise"))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.decode() == f"lmz: noise.lmz: {os.strerror(errno.EFBIG)}\n"
    assert os.listdir(tmp_path) == ["noise"]
    assert (tmp_path / "noise").read_bytes() == NOISE


def test_a_stream_that_does_not_block(tmp_path: Path) -> None:
    """Another process may have set the flag on a shared pipe."""
    (tmp_path / "noise").write_bytes(NOISE)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    process = start(tmp_path, *LMZ, "-dcf", "noise", "noise", stdout=write_end)
    os.close(write_end)
    time.sleep(0.2)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == 2 * NOISE
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")


# Terminals


class Terminal:
    """A pseudo-terminal: `slave` is for the child, `read` is what it wrote."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()

    def read(self, until: bytes | None = None) -> bytes:
        """What comes, to the end or until a text is there."""
        seen = b""
        while until is None or until not in seen:
            ready, _, _ = select.select([self.master], [], [], 20)
            assert ready, seen
            try:
                seen += os.read(self.master, 4096)
            except OSError:  # Linux: the slave is closed
                break
        return seen

    def close(self) -> None:
        os.close(self.master)


def test_terminals_get_and_give_no_compressed_data(text: Path) -> None:
    for arguments, stream in [
        (["-c", "text"], "stdout"), ([], "stdout"),
        (["-d"], "stdin"), (["-t"], "stdin"), (["-dc", "-"], "stdin"),
    ]:  # fmt: skip
        terminal = Terminal()
        process = start(text.parent, *LMZ, *arguments, **{stream: terminal.slave})
        os.close(terminal.slave)
        _, err = process.communicate(timeout=30)
        terminal.close()
        assert process.returncode == 1
        assert err.count(b"\n") == 1
        assert b"terminal" in err
    # A file is not the terminal, and who forces it gets it.
    assert lmz(text.parent, "text").returncode == 0
    terminal = Terminal()
    process = start(text.parent, *LMZ, "-dc", "text.lmz", stdin=terminal.slave)
    os.close(terminal.slave)
    out, _ = process.communicate(timeout=30)
    terminal.close()
    assert (process.returncode, out) == (0, TEXT)
    terminal = Terminal()
    process = start(text.parent, *LMZ, "-cf", "text", stdout=terminal.slave)
    os.close(terminal.slave)
    assert terminal.read().startswith(b"\xb5LMZ")
    process.communicate(timeout=30)
    terminal.close()
    assert process.returncode == 0


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal()
    process = start(tmp_path, *LMZ, "-1", "--block-size", "1K", "-o", "out", stderr=terminal.slave)
    os.close(terminal.slave)
    assert process.stdin
    process.stdin.write(TEXT)
    process.stdin.flush()
    line = terminal.read(until=b"/s")
    assert line.startswith(ERASE)
    assert b"(stdin)  " in line
    process.communicate(timeout=30)
    assert terminal.read().endswith(ERASE), "the line has to be erased"
    terminal.close()
    assert process.returncode == 0


def test_no_progress_where_it_is_not_wanted(tmp_path: Path) -> None:
    begun = []
    for arguments in (["-o", "a", "-q"], ["-o", "b", "--no-progress"], []):
        terminal = Terminal()
        begun.append((terminal, start(tmp_path, *LMZ, *arguments, stderr=terminal.slave)))
        os.close(terminal.slave)
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    time.sleep(0.5)
    for terminal, process in begun:
        process.communicate(TEXT, timeout=30)
        assert process.returncode == 0
        assert terminal.read() == b""
        terminal.close()


# Other programs


def test_tar(tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if tar is None or b"GNU tar" not in subprocess.run([tar, "--version"], capture_output=True).stdout:
        pytest.skip("needs GNU tar")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "text").write_bytes(TEXT)
    (tmp_path / "d" / "more").write_bytes(TEXT[:5000])
    program = " ".join([*LMZ, "-1"])
    run: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "check": True, "capture_output": True}
    subprocess.run([tar, "-I", program, "-cf", "d.tar.lmz", "d"], **run)
    assert (tmp_path / "d.tar.lmz").read_bytes()[:4] == b"\xb5LMZ"
    shutil.rmtree(tmp_path / "d")
    listed = subprocess.run([tar, "-I", program, "-tf", "d.tar.lmz"], **run)
    assert {"d/text", "d/more"} <= set(listed.stdout.decode().split())
    subprocess.run([tar, "-I", program, "-xf", "d.tar.lmz"], **run)
    assert (tmp_path / "d" / "text").read_bytes() == TEXT
    assert (tmp_path / "d" / "more").read_bytes() == TEXT[:5000]


def test_completion() -> None:
    command = [sys.executable, "-I", "-c", "from lmcodec.cli.lmz import main; main()"]
    variables = environment() | {
        "_LMZ_COMPLETE": "bash_complete",
        "COMP_WORDS": "lmz --max",
        "COMP_CWORD": "1",
    }
    result = subprocess.run(command, env=variables, capture_output=True, check=True)
    assert b"--max-output" in result.stdout


def test_entry_points_exist() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    import lmcodec.cli.entry

    for script in ("lmcodec", "lmz", "unlmz", "lmzcat"):
        assert re.search(rf'^{script} = "lmcodec\.cli\.entry:{script}"$', project, re.MULTILINE)
        assert callable(getattr(lmcodec.cli.entry, script))


def test_what_needs_no_codec_loads_none() -> None:
    code = (
        "import sys\nfrom lmcodec.cli.lmz import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    for argument in ("-V", "-h", "--unknown"):
        run = subprocess.run(
            [sys.executable, "-I", "-c", code, argument], capture_output=True, encoding="utf-8", check=True
        )
        loaded = set(run.stdout.splitlines()[-1].split())
        assert "lmcodec.cli.lmz" in loaded
        assert not loaded & {
            "numpy",
            "constriction",
            "lmcodec._kernel",
            "lmcodec.codec",
            "lmcodec.cli.operate",
        }


# Faults at every system call


def traced_calls(log: Path) -> list[tuple[str, int]]:
    """Name and occurrence of every call in a log of strace."""
    seen: dict[str, int] = {}
    calls = []
    for name in re.findall(r"^\d+ +(\w+)\(", log.read_text(encoding="utf-8"), re.MULTILINE):
        seen[name] = seen.get(name, 0) + 1
        calls.append((name, seen[name]))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error=ENOSPC", "error=EIO", "error=EINTR", "signal=KILL", "signal=TERM"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_fault_at_any_system_call_loses_nothing(tmp_path: Path, fault: str, overwrite: bool) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    folder, log = tmp_path / "d", tmp_path / "log"
    folder.mkdir()
    source, output = folder / "text", folder / "text.lmz"
    temporary = folder / f".lmz-{bytes(8).hex()}"
    code = "import os, lmcodec.cli.lmz as front; os.urandom = bytes; front.main()"
    options = ["--rm", "--verify", *(["-f"] if overwrite else [])]
    arguments = [sys.executable, "-I", "-c", code, *options, os.fspath(source)]
    # Calls on the two files and their folder: those of the interpreter's start are not ours.
    trace = [strace, "-f", "-o", os.fspath(log)]
    trace += [part for path in (source, output, temporary, folder) for part in ("-P", os.fspath(path))]

    def run(*inject: str) -> int:
        for path in folder.iterdir():
            path.unlink()
        source.write_bytes(TEXT)
        if overwrite:
            output.write_bytes(b"old")
        result = subprocess.run(
            [*trace, *inject, *arguments], cwd="/", env=environment(), capture_output=True, check=False
        )
        assert b"Traceback" not in result.stderr
        return result.returncode

    if run() != 0:
        pytest.skip("strace may not trace here")
    assert not source.exists()
    complete = output.read_bytes()
    calls = traced_calls(log)
    assert {"openat", "write", "fsync", "unlink"} <= {name for name, _ in calls}
    for name, occurrence in calls:
        status = run("-e", f"inject={name}:{fault}:when={occurrence}")
        where = f"{fault} at {name} {occurrence}, exit status {status}"
        written = output.read_bytes() if output.exists() else None
        if source.exists():
            assert source.read_bytes() == TEXT, where
            assert status != 0 or "stat" in name or name == "access", where
        else:
            assert written == complete, where
        if fault.startswith("error"):
            assert status in (0, 1, 2), where
            assert written in ((b"old", complete) if overwrite else (None, complete)), where
            assert set(os.listdir(folder)) <= {"text", "text.lmz"}, where
        elif overwrite:
            assert written in (b"old", complete), where
        if fault == "signal=TERM":
            assert set(os.listdir(folder)) <= {"text", "text.lmz"}, where
            assert written in ((b"old", complete) if overwrite else (None, complete)), where


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has no further threads")
def test_no_thread_of_a_library_waits() -> None:
    """A pool for linear algebra, which waits busily, would take a tenth of a second of every start."""
    golden = Path(__file__).with_name("golden")
    code = """
import atexit, os, sys, time
from lmcodec.cli.lmz import main

def report():
    end = time.monotonic() + 5  # those that are ending need a moment
    while (n := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    print("numpy" in sys.modules, n)

atexit.register(report)
main()
"""
    files = ["-t", str(golden / "network.lmz"), "--model", str(golden / "network.lmm")]
    ours = {k: v for k, v in environment().items() if k != "OPENBLAS_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, *files], capture_output=True, encoding="utf-8", env=ours
    )
    assert (run.stdout, run.stderr, run.returncode) == ("True 1\n", "", 0)


def test_flush_timeout(tmp_path: Path) -> None:
    """What came is in the file before the pipe is closed."""
    with start(tmp_path, *LMZ, "-1", "--flush-timeout", "0.2", "-o", "log.lmz") as process:
        assert process.stdin is not None
        for n in (1, 2):
            process.stdin.write(b"a line\n")
            process.stdin.flush()
            wait_for(lambda n=n: written(tmp_path / "log.lmz") == b"a line\n" * n)  # type: ignore[misc]
        process.stdin.close()
        assert process.wait(60) == 0
    assert lmcodec.decompress((tmp_path / "log.lmz").read_bytes()) == b"a line\n" * 2


def written(path: Path) -> bytes:
    """What can be read of a file that is being written."""
    return lmcodec.Decompressor().decompress(path.read_bytes()) if path.exists() else b""


def test_a_pipe_cannot_be_listed(tmp_path: Path) -> None:
    process = start(tmp_path, *LMZ, "-l")
    out, err = process.communicate(b"something")
    assert (process.returncode, out) == (1, b"")
    assert b"(stdin): cannot be listed: it is a pipe" in err
