"""The gzip-like front: options, exit status, what happens to files; in this process, on real descriptors."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lmcodec
from lmcodec.cli import lmz as front
from lmcodec.cli import safe_file
from lmcodec.cli.operate import Settings
from lmcodec.cli.progress import BlockEnds, Progress, printable, size_text, time_text
from lmcodec.errors import Corrupt
from lmcodec.lm import store

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
TEXT = b"".join(b"line %d of a text that is compressed\n" % i for i in range(3000))
NOISE = random.Random(1).randbytes(300_000)


class QuickEngine:
    """Takes the engine's place: what the front does depends on nothing but the codec's frames."""

    def __init__(self, profile: int, streams: int = 1, groups: int = 1, enlarge: int = 0) -> None: ...

    def reset(self, tables_nbytes: int = 0) -> None: ...

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, payload: bytes, nbytes: int) -> bytes:
        try:
            return zlib.decompress(payload)
        except zlib.error as error:
            raise Corrupt(str(error)) from None


@pytest.fixture(autouse=True)
def quick_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ModuleType("lmcodec.engine")
    vars(engine).update(Engine=QuickEngine, memory_nbytes=lambda profile, block_nbytes, *_: 48 << 20)
    monkeypatch.setitem(sys.modules, "lmcodec.engine", engine)
    monkeypatch.setattr(lmcodec, "engine", engine, raising=False)
    monkeypatch.setattr(store, "SHIPPED", {})


@dataclass
class Result:
    status: int
    out: bytes
    err: str

    def check(self, status: int, *parts: str) -> Result:
        """The status, and a message of one line that holds `parts` if it is not 0."""
        assert self.status == status, self.err
        assert len(self.err.splitlines()) == (1 if status else 0), self.err
        for part in parts:
            assert part in self.err
        return self


Front = Callable[..., Result]


@pytest.fixture
def lmz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Front]:
    """Calls a front in `tmp_path`, standard input from bytes; checks what holds for every call."""
    monkeypatch.chdir(tmp_path)
    for name in ("LMCODEC_LEVEL", "LMCODEC_THREADS", store.MODEL_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    saved = os.dup(0)

    def call(*arguments: str | Path, stdin: bytes = b"", program: str = "lmz") -> Result:
        entry = {"lmz": front.main, "unlmz": front.unlmz, "lmzcat": front.lmzcat}[program]
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            os.dup2(file.fileno(), 0)
        try:
            with pytest.raises(SystemExit) as exit:
                entry([os.fspath(a) for a in arguments])
        finally:
            os.dup2(saved, 0)
        out, err = capfdbinary.readouterr()
        result = Result(exit.value.code or 0, out, err.decode())  # type: ignore[arg-type]
        assert "Traceback" not in result.err
        assert all(line.startswith(f"{program}: ") for line in result.err.splitlines())
        assert not list(tmp_path.glob("**/.lmz-*")), "a temporary file was left"
        return result

    yield call
    os.close(saved)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


def packed(lmz: Front, data: bytes = TEXT, *arguments: str) -> bytes:
    return lmz("-c", *arguments, stdin=data).check(0).out


def test_a_file_there_and_back(lmz: Front, text: Path) -> None:
    assert lmz("text").check(0) == Result(0, b"", "")
    assert text.read_bytes() == TEXT
    text.unlink()
    lmz("-d", "text.lmz").check(0)
    assert text.read_bytes() == TEXT
    assert lmz("-t", "text.lmz").check(0).out == b""
    assert sorted(p.name for p in text.parent.iterdir()) == ["text", "text.lmz"]


@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE])
def test_pipes(lmz: Front, data: bytes) -> None:
    assert lmz("-d", stdin=packed(lmz, data)).check(0).out == data
    assert lmz("-dc", "-", stdin=packed(lmz, data)).out == data
    assert lmz("-t", stdin=packed(lmz, data)).check(0).out == b""
    assert lmz("-dcf", stdin=packed(lmz, data)).out == data


def test_unlmz_and_lmzcat(lmz: Front, text: Path) -> None:
    lmz("--rm", "text").check(0)
    lmz("text.lmz", program="unlmz").check(0)
    assert text.read_bytes() == TEXT
    assert lmz("text.lmz", "text", program="lmzcat").check(0).out == TEXT + TEXT
    assert lmz("-z", "-c", stdin=TEXT, program="unlmz").out.startswith(b"\xb5LMZ")
    assert lmz("-V", program="lmzcat").out.decode() == f"lmzcat {lmcodec.__version__}\n"
    assert "lmz -d" in lmz("-h", program="unlmz").out.decode()


def test_concatenated_frames_are_one_file(lmz: Front, tmp_path: Path) -> None:
    (tmp_path / "a.lmz").write_bytes(packed(lmz, b"one ") + packed(lmz, b"") + packed(lmz, b"two"))
    assert lmz("-dc", "a.lmz").check(0).out == b"one two"
    many = packed(lmz, b"x") * 5000
    assert lmz("-dc", stdin=many).check(0).out == b"x" * 5000


def test_several_files_join_on_stdout(lmz: Front, text: Path) -> None:
    (text.parent / "more").write_bytes(b"more")
    out = lmz("-c", "more", "text", "-", stdin=b"from the pipe").check(0).out
    assert lmz("-d", stdin=out).out == b"more" + TEXT + b"from the pipe"


def test_options_in_any_order_and_grouped(lmz: Front, text: Path) -> None:
    lmz("text", "-k9f").check(0)
    assert lmz("-dck", "text.lmz").check(0).out == TEXT
    assert lmz("text.lmz", "-c", "-d").check(0).out == TEXT
    (text.parent / "-9").write_bytes(b"a file with an odd name")
    lmz("-k", "--", "-9").check(0)
    assert lmz("-dc", "--", "-9.lmz").check(0).out == b"a file with an odd name"
    lmz("--no-such-option").check(1, "--no-such-option", "-h")
    lmz("-S", "").check(1, "''")
    lmz("-S", "a/b").check(1, "'a/b'")


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    """What options come to."""
    seen: list[Settings] = []

    def operate(settings: Settings, operands: tuple[str, ...]) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("lmcodec.cli.operate.operate", operate)
    with pytest.raises(SystemExit):
        front.main([*arguments])
    return seen[0]


def test_the_last_of_several_levels_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, level in [
        ((), 6), (("-1",), 1), (("-9",), 9), (("-19",), 9), (("-9", "-1"), 1), (("-1", "-9", "-k3"), 3),
        (("--fast",), 1), (("-2", "--best"), 9), (("--best", "-2"), 2),
    ]:  # fmt: skip
        assert settings_of(monkeypatch, *arguments).level == level, arguments
    for n in range(1, 10):
        assert settings_of(monkeypatch, f"-{n}").level == n


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(name: str, *arguments: str) -> Any:
        return getattr(settings_of(monkeypatch, *arguments), name)

    assert [get("mode", *a) for a in [(), ("-d",), ("-d", "-z"), ("-t",), ("-d", "-l")]] == [
        "compress", "decompress", "compress", "test", "list",
    ]  # fmt: skip
    assert [get("remove", *a) for a in [(), ("--rm",), ("--rm", "-k"), ("-k", "--rm")]] == [
        False, True, False, True,
    ]  # fmt: skip
    sizes = {
        "65536": 1 << 16,
        "64K": 1 << 16,
        "64k": 1 << 16,
        "4M": 1 << 22,
        "16MiB": 1 << 24,
        "1MB": 1 << 20,
    }
    for text, nbytes in sizes.items():
        assert get("block_nbytes", "--block-size", text) == nbytes
        assert get("memory_limit", "--memlimit", text) == nbytes
        assert get("max_output", "--max-output", text) == nbytes
    assert get("max_output", "--max-output", "0") == 0
    assert get("threads") is None
    assert get("threads", "-T3") == 3
    assert get("threads", "--threads", "0") >= 1
    assert get("solid", "--solid")
    assert get("verify", "--verify")
    assert get("recursive", "-r")
    assert get("force", "-f")
    assert get("json", "--json", "-l")
    assert get("suffix", "-S", ".x") == ".x"
    assert [get("verbosity", *a) for a in [(), ("-vv",), ("-q", "-q"), ("-vq",)]] == [0, 2, -2, 0]
    assert not get("progress", "--no-progress")
    assert (get("output", "-o", "f"), get("output", "-o", "-"), get("to_stdout", "-o", "-")) == (
        "f",
        None,
        True,
    )


def test_bad_sizes_and_numbers(lmz: Front) -> None:
    for text in ("", "x", "-1", "1.5M", "64KX", "K", "9" * 40):
        lmz("--block-size", text).check(1, "block-size", repr(text))
    lmz("-T", "-1").check(1, "threads")
    lmz("-T", "many").check(1, "threads", "many")


def test_environment(lmz: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCODEC_LEVEL", "12")
    lmz(stdin=b"").check(1, "LMCODEC_LEVEL", "'12'", "1 to 9")
    for level in ("x", "0", "٣", "-1"):
        monkeypatch.setenv("LMCODEC_LEVEL", level)
        lmz("-c", stdin=b"").check(1, "LMCODEC_LEVEL")
    # Neither a level that is given nor decoding asks for it.
    frame = packed(lmz, TEXT, "-2")
    assert lmz("-d", stdin=frame).check(0).out == TEXT
    monkeypatch.setenv("LMCODEC_LEVEL", "")
    monkeypatch.setenv("LMCODEC_THREADS", "two")
    lmz("-c", stdin=b"").check(1, "LMCODEC_THREADS", "'two'")
    assert lmz("-d", stdin=frame).check(0).out == TEXT
    assert "LMCODEC_THREADS is 'two', expected 0 to 1024; it is ignored" in lmz("-dv", stdin=frame).err
    assert lmz("-d", "-T1", stdin=frame).check(0).out == TEXT


def test_environment_sets_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCODEC_LEVEL", "3")
    monkeypatch.setenv("LMCODEC_THREADS", "2")
    assert (settings_of(monkeypatch).level, settings_of(monkeypatch, "-7").level) == (3, 7)
    assert (settings_of(monkeypatch).threads, settings_of(monkeypatch, "-T5").threads) == (2, 5)


# Outputs


@posix
def test_mode_and_times_are_kept(lmz: Front, text: Path) -> None:
    for mode in (0o600, 0o644, 0o750, 0o444):
        text.chmod(mode)
        os.utime(text, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
        lmz("-f", "text").check(0)
        lmz("-f", "-d", "-o", "back", "text.lmz").check(0)
        for name in ("text.lmz", "back"):
            status = (text.parent / name).stat()
            assert stat.S_IMODE(status.st_mode) == mode
            assert status.st_mtime_ns == 1_100_000_000_987_654_321
    assert os.stat(text.parent / "back").st_size == len(TEXT)


@posix
def test_an_output_is_private_until_it_is_complete(lmz: Front, text: Path) -> None:
    old = os.umask(0)
    try:
        source = safe_file.Source(os.fspath(text))
        target = safe_file.Target("text.lmz", source)
        assert stat.S_IMODE(os.stat("text.lmz").st_mode) == 0o600
        target.discard()
        source.close()
        assert not os.path.exists("text.lmz")
        os.umask(0o027)
        lmz("-o", "out.lmz", stdin=TEXT).check(0)
        assert stat.S_IMODE(os.stat("out.lmz").st_mode) == 0o640
    finally:
        os.umask(old)


@posix
def test_owner_is_kept_as_root(lmz: Front, text: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(text, 1234, 2345)
    lmz("text").check(0)
    status = os.stat("text.lmz")
    assert (status.st_uid, status.st_gid) == (1234, 2345)


@posix
def test_a_group_that_cannot_be_set_gets_no_more_than_others(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text.chmod(0o764)

    def fchown(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    other_group = type("Stat", (), {"st_uid": os.getuid(), "st_gid": os.getgid() + 1, "st_mode": 0o100764})
    source = safe_file.Source("text")
    for name in ("st_atime_ns", "st_mtime_ns"):
        setattr(other_group, name, getattr(source.status, name))
    target = safe_file.Target("out", source)
    source.status = other_group  # type: ignore[assignment]
    assert target.copy_metadata() == ["cannot set the group: Operation not permitted"]
    target.finish()
    source.close()
    assert stat.S_IMODE(os.stat("out").st_mode) == 0o744


def test_existing_outputs_are_kept_unless_forced(lmz: Front, text: Path) -> None:
    (text.parent / "text.lmz").write_bytes(b"precious")
    lmz("--rm", "text").check(1, "text.lmz", "-f")
    assert (text.parent / "text.lmz").read_bytes() == b"precious"
    lmz("-f", "text").check(0)
    lmz("-d", "text.lmz").check(1, "text: ", "-f")
    lmz("-df", "text.lmz").check(0)
    assert text.read_bytes() == TEXT


def test_a_failed_overwrite_keeps_the_old_file(lmz: Front, text: Path) -> None:
    (text.parent / "text.lmz").write_bytes(packed(lmz, NOISE)[:-20])
    lmz("-df", "text.lmz").check(1, "text.lmz")
    assert text.read_bytes() == TEXT


@posix
def test_what_overwriting_replaces(lmz: Front, text: Path) -> None:
    os.mkdir("text.lmz")
    lmz("-f", "text").check(1, "text.lmz", "not a regular file")
    os.rmdir("text.lmz")
    os.mkfifo("text.lmz")
    lmz("-f", "text").check(1, "text.lmz", "not a regular file")
    os.unlink("text.lmz")
    (text.parent / "victim").write_bytes(b"victim")
    os.symlink("victim", "text.lmz")
    lmz("text").check(1, "exists")
    lmz("-f", "text").check(0)
    assert not os.path.islink("text.lmz")
    assert (text.parent / "victim").read_bytes() == b"victim"
    lmz("-f", "-o", "text", "text").check(1, "text", "itself")
    assert text.read_bytes() == TEXT


def test_output_option(lmz: Front, text: Path) -> None:
    lmz("-o", "out", "text").check(0)
    lmz("-d", "-o", "back", "out").check(0)  # whatever the suffix
    assert (text.parent / "back").read_bytes() == TEXT
    lmz("-o", "out", "text").check(1, "out", "exists")
    lmz("-o", "x", "text", "back").check(1, "-o", "2 inputs")
    for other in ("-c", "-r", "-t", "-l"):
        lmz("-o", "x", other, "text").check(1, "-o")
    lmz("-o", "x").check(0)
    assert lmz("-do", "-", "x").check(0).out == b""
    lmz("-o", os.path.join("none", "x"), "text").check(1, "none", "No such file")
    lmz("-d", "--rm", "-o", "third", "out").check(0)
    assert not os.path.exists("out")


@posix
def test_output_option_writes_into_devices(lmz: Front, text: Path) -> None:
    lmz("-o", "/dev/null", "text").check(0)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    lmz("-f", "--rm", "-o", "/dev/null", "text").check(2, "text", "not removed")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert text.exists()
    assert lmz("-o", "/dev/stdout", "text").check(0).out[:4] == b"\xb5LMZ"


def raising(error: int) -> Callable[..., Any]:
    def function(*arguments: object, **options: object) -> None:
        raise OSError(error, os.strerror(error))

    return function


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        (safe_file, "_read", errno.EIO),
        (safe_file, "_write", errno.ENOSPC),
        (safe_file, "_write", errno.EIO),
        (safe_file, "_sync_folder", errno.EIO),
        (os, "fsync", errno.EIO),
    ],
)
def test_errors_of_the_system_keep_the_source(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, raising(error))
        result = lmz("--rm", "text").check(1, "text", os.strerror(error))
    assert ("text.lmz" in result.err) == (name != "_read")
    assert os.listdir() == ["text"]
    assert text.read_bytes() == TEXT


@posix
def test_the_source_goes_when_the_output_is_on_the_disk(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def record(name: str, of: Callable[[Any], str]) -> None:
        real = getattr(os, name)

        def function(*arguments: Any, **options: Any) -> Any:
            if seen := of(arguments[0]):
                calls.append(f"{name} {seen}")
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, function)

    def kind(fd: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    record("fsync", kind)
    record("utime", kind)
    record("replace", lambda _: "file")
    record("unlink", os.path.basename)
    lmz("--rm", "text").check(0)
    assert calls == ["utime file", "fsync file", "fsync folder", "unlink text"]
    text.write_bytes(TEXT)
    calls.clear()
    lmz("--rm", "-f", "text").check(0)
    assert calls == ["utime file", "fsync file", "replace file", "fsync folder", "unlink text"]
    calls.clear()
    lmz("-d", "text.lmz").check(0)
    assert calls == ["utime file"]


@posix
def test_a_removal_that_fails_keeps_both(lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", raising(errno.EPERM))
        lmz("--rm", "text").check(1, "text", os.strerror(errno.EPERM))
    assert lmz("-dc", "text.lmz").out == TEXT == text.read_bytes()


@posix
def test_metadata_that_cannot_be_set_is_a_warning(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", raising(errno.EPERM))
        lmz("text").check(2, "text.lmz", "mode")
    assert stat.S_IMODE(os.stat("text.lmz").st_mode) == 0o600


@posix
def test_folders_that_cannot_be_synchronised(lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    lmz("--rm", "text").check(0)
    assert os.listdir() == ["text.lmz"]


def test_memory_and_our_own_bugs_are_one_line_too(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, message in [(MemoryError(), "out of memory"), (KeyError("a\nb"), "internal error"),
                           (RecursionError("deep"), "RecursionError: deep")]:  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(
                "lmcodec.codec.Compressor.flush", lambda self, error=error: (_ for _ in ()).throw(error)
            )
            lmz("--rm", "text").check(1, "text", message)
        assert os.listdir() == ["text"]


def test_no_thread_to_be_had(lmz: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread"))
        )
        lmz("-c", stdin=b"").check(1, "no thread")


# Sources


def test_sources_are_removed_on_request_only(lmz: Front, text: Path) -> None:
    lmz("-k", "text").check(0)
    assert text.exists()
    lmz("-c", "--rm", "text").check(0)
    assert text.exists()
    lmz("-t", "--rm", "text.lmz").check(0)
    lmz("-l", "--rm", "text.lmz")
    assert os.path.exists("text.lmz")
    lmz("--rm", "-f", "text").check(0)
    assert not text.exists()
    lmz("-d", "--rm", "text.lmz").check(0)
    assert os.listdir() == ["text"]
    assert text.read_bytes() == TEXT


def test_damage_keeps_the_source_and_no_output(lmz: Front, tmp_path: Path) -> None:
    frame = packed(lmz)
    for damaged in (
        frame[:-1],
        frame[:9],
        b"",
        b"\xb5",
        frame + b"\xb5",
        b"no frame at all",
    ):
        (tmp_path / "f.lmz").write_bytes(damaged)
        lmz("-d", "--rm", "f.lmz").check(1, "lmz: f.lmz: ")
        lmz("-t", "f.lmz").check(1, "lmz: f.lmz: ")
        lmz("-d", stdin=damaged).check(1, "(stdin)")
        assert os.listdir() == ["f.lmz"]
    flipped = bytearray(frame)
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "f.lmz").write_bytes(flipped)
    lmz("-d", "--rm", "f.lmz").check(1, "lmz: f.lmz: ")
    assert os.listdir() == ["f.lmz"]


def test_one_bad_file_does_not_stop_the_others(lmz: Front, text: Path) -> None:
    (text.parent / "other.lmz").write_bytes(b"")
    result = lmz("text", "missing", "other.lmz")
    assert result.status == 1
    assert [line.split(":")[1] for line in result.err.splitlines()] == [" missing", " other.lmz"]
    assert os.path.exists("text.lmz")


def before_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Call `change` once, when the source is open and nothing of it is read."""
    real = safe_file._read
    changes = [change]

    def read(fd: int, nbytes: int) -> bytes:
        while changes:
            changes.pop()()
        return real(fd, nbytes)

    monkeypatch.setattr(safe_file, "_read", read)


def test_a_source_that_changes_is_not_removed(
    lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_reading(patch, lambda: os.utime(text, (1, 1)))
        lmz("--rm", "text").check(2, "text", "changed", "not removed")
    assert text.exists()
    with monkeypatch.context() as patch:
        before_reading(patch, lambda: os.utime(text, (2, 2)))
        lmz("-f", "text").check(2, "text", "changed")
    with monkeypatch.context() as patch:

        def another_file() -> None:
            text.unlink()
            text.write_bytes(b"somebody's file")

        before_reading(patch, another_file)
        lmz("--rm", "-f", "text").check(2, "text", "changed", "not removed")
    assert text.read_bytes() == b"somebody's file"
    assert lmz("-dc", "text.lmz").out == TEXT
    times = (text.stat().st_atime_ns, text.stat().st_mtime_ns)
    with monkeypatch.context() as patch:

        def another_like_it() -> None:
            text.unlink()
            text.write_bytes(b"someone's file.")
            os.utime(text, ns=times)

        before_reading(patch, another_like_it)
        lmz("--rm", "-f", "text").check(2, "text", "changed", "not removed")
    assert text.read_bytes() == b"someone's file."


def test_a_source_that_grows(lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before_reading(patch, lambda: os.truncate(text, len(TEXT) + 100))
        lmz("--rm", "text").check(2, "text", "changed", "not removed")
    assert lmz("-dc", "text.lmz").out == TEXT + bytes(100)


@posix
def test_links_and_special_files_are_skipped_unless_forced(lmz: Front, text: Path) -> None:
    os.symlink("text", "link")
    os.link("text", "hard")
    lmz("link").check(2, "link", "symbolic link")
    lmz("--rm", "text").check(2, "text", "2 links")
    assert sorted(os.listdir()) == ["hard", "link", "text"]
    assert lmz("-dc", stdin=lmz("-c", "link").check(0).out).out == TEXT
    lmz("-f", "link").check(0)
    assert lmz("-dc", "link.lmz").out == TEXT
    lmz("--rm", "-f", "link").check(0)
    assert not os.path.islink("link")
    assert text.exists()
    lmz("hard").check(0)
    lmz("--rm", "-f", "hard").check(0)
    assert not os.path.exists("hard")
    text.chmod(0o4755)
    lmz("--rm", "text").check(2, "text", "setuid")
    os.symlink("nowhere", "broken")
    lmz("broken").check(2, "broken")
    lmz("-f", "broken").check(1, "broken", "No such file")


@posix
def test_pipes_with_names(lmz: Front) -> None:
    os.mkfifo("pipe")
    lmz("pipe").check(2, "pipe", "not a regular file")

    def feed() -> None:
        time.sleep(0.2)  # until somebody writes, a pipe seems to be at its end
        Path("pipe").write_bytes(TEXT)

    for arguments in (("-c", "pipe"), ("-f", "--rm", "pipe")):
        feeder = threading.Thread(target=feed)
        feeder.start()
        result = lmz(*arguments).check(0)
        feeder.join()
        assert lmz("-d", stdin=result.out or Path("pipe.lmz").read_bytes()).out == TEXT
    assert os.path.exists("pipe")


def test_suffixes(lmz: Front, text: Path) -> None:
    lmz("text").check(0)
    lmz("text.lmz").check(2, "text.lmz", ".lmz already")
    lmz("-f", "text.lmz").check(0)
    lmz("-d", "text").check(2, "text", "does not end in .lmz")
    lmz("-df", "text").check(1, "text")
    os.rename("text.lmz", "frame")
    lmz("-df", "frame").check(0)
    assert (text.parent / "frame.out").read_bytes() == TEXT
    lmz("-S", ".x", "text").check(0)
    lmz("-S", ".x", "text.x").check(2, "text.x", ".x already")
    text.unlink()
    lmz("-d", "text.x").check(2)
    lmz("-d", "-S", ".x", "text.x").check(0)
    assert text.read_bytes() == TEXT
    os.rename("text.x", ".lmz")
    lmz("-d", ".lmz").check(2, ".lmz")


def test_folders(lmz: Front, tmp_path: Path) -> None:
    names = ["d/a", "d/b", "d/sub/c", "d/sub/deep/e"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    if os.name == "posix":
        os.symlink("a", "d/link")
        os.symlink(".", "d/loop")
        os.mkfifo("d/pipe")
    lmz("d").check(2, "d", "directory", "-r")
    lmz("-c", "d").check(2, "d", "directory")
    lmz("-r", "--rm", "d").check(0)
    assert all((tmp_path / f"{name}.lmz").is_file() and not (tmp_path / name).exists() for name in names)
    lmz("-r", "d").check(0)
    lmz("-rt", "d").check(0)
    assert lmz("-rdc", "d").check(0).out.decode() == "".join(names)
    (tmp_path / "d/sub/bad.lmz").write_bytes(b"bad")
    lmz("-rd", "d").check(1, "bad.lmz")
    assert all((tmp_path / name).read_bytes() == name.encode() for name in names)


@posix
def test_odd_names(lmz: Front, tmp_path: Path) -> None:
    for name, seen in [(b"\xff\xfe", r"\xff\xfe"), (b"new\nline", r"new\nline"), ("π €".encode(), "π €"),
                       (b"\x1b[31mred", r"\x1b[31mred"), (b"n" * 251, "nnn")]:  # fmt: skip
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.write_bytes(TEXT)
        local = os.fsdecode(name)
        lmz(local).check(0)
        lmz(local).check(1, seen)
        lmz("-df", f"{local}.lmz").check(0)
        assert path.read_bytes() == TEXT
    lmz("n" * 252).check(1, os.strerror(errno.ENOENT))
    (tmp_path / ("n" * 252)).write_bytes(TEXT)
    lmz("n" * 252).check(1, os.strerror(errno.ENAMETOOLONG))
    lmz("").check(1, "''")


# Decoding


def test_unknown_input_passes_through(lmz: Front, text: Path) -> None:
    assert lmz("-dcf", "text").check(0).out == TEXT
    for data in (b"", b"\xb5", b"\xb5LM", TEXT, NOISE, TEXT + packed(lmz)):
        assert lmz("-dcf", stdin=data).check(0).out == data
    # What began as a frame has to be frames up to its end.
    assert lmz("-dcf", stdin=packed(lmz) + TEXT).check(2).out == TEXT
    lmz("-dc", "text").check(1, "text")
    lmz("-tf", "text").check(1, "text")


def test_max_output(lmz: Front) -> None:
    frame = packed(lmz)
    assert lmz("-d", "--max-output", str(len(TEXT)), stdin=frame).check(0).out == TEXT
    lmz("-d", "--max-output", str(len(TEXT) - 1), stdin=frame).check(1, "(stdin)", "--max-output")
    lmz("-t", "--memlimit", "1M", stdin=frame).check(1, "(stdin)", "--memlimit")
    lmz("-t", "--memlimit", "1G", stdin=frame).check(0)
    lmz("-t", "--max-output", "1K", stdin=frame).check(1)
    lmz("-t", "--max-output", str(len(TEXT) + 1), stdin=frame + frame).check(1)
    lmz("-t", "--max-output", str(2 * len(TEXT)), stdin=frame + packed(lmz, b"") + frame).check(0)
    assert packed(lmz, b"") == lmz("-c", "--max-output", "0", stdin=b"").out


def test_block_size_and_solid(lmz: Front) -> None:
    for arguments in (("--block-size", "4K"), ("--block-size", "4K", "--solid"), ("--solid",)):
        assert lmz("-d", stdin=packed(lmz, TEXT, *arguments)).check(0).out == TEXT
    lmz("-c", "--block-size", "17M", stdin=b"").check(1, "block")
    lmz("-c", "--block-size", "0", stdin=b"").check(1, "block")


def test_verify(lmz: Front, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmz("--verify", "--rm", "text").check(0)
    assert not text.exists()
    lmz("-d", "text.lmz", "--rm").check(0)
    assert lmz("-d", stdin=packed(lmz, TEXT, "--verify")).out == TEXT
    real = safe_file._write

    def flip(fd: int, data: bytes) -> None:
        real(fd, data[:-1] + bytes([data[-1] ^ 1]) if data else data)

    with monkeypatch.context() as patch:
        patch.setattr(safe_file, "_write", flip)
        assert lmz("--verify", "--rm", "text").check(1, "text")
    assert os.listdir() == ["text"]
    other = packed(lmz, b"something else")
    with monkeypatch.context() as patch:
        patch.setattr("lmcodec.codec.Compressor.flush", lambda self: other)
        patch.setattr("lmcodec.codec.Compressor.compress", lambda self, data: b"")
        lmz("--verify", "--rm", "text").check(1, "text", "does not decode to what was read")
        assert os.listdir() == ["text"]
        lmz("--verify", "-c", "text").check(1, "text", "does not decode to what was read")


# Listing


def test_list(lmz: Front, text: Path) -> None:
    lmz("--block-size", "4K", "text").check(0)
    (text.parent / "two.lmz").write_bytes(packed(lmz, NOISE) + packed(lmz, b""))
    (text.parent / "empty.lmz").write_bytes(packed(lmz, b""))
    lines = lmz("-l", "text.lmz", "two.lmz", "empty.lmz").check(0).out.decode().splitlines()
    assert lines[0].split() == [
        "Frames", "Blocks", "Compressed", "Original", "Ratio", "bpb", "Methods", "File",
    ]  # fmt: skip
    size = os.stat("text.lmz").st_size
    n_block = -(-len(TEXT) // 4096)
    assert lines[1].split()[:6] == [
        "1", str(n_block), f"{size:,}", f"{len(TEXT):,}",
        f"{size / len(TEXT):.3f}", f"{8 * size / len(TEXT):.3f}",
    ]  # fmt: skip
    assert lines[1].split()[-1] == "text.lmz"
    assert lines[2].split()[:2] == ["2", "1"]
    assert lines[2].split()[-2:] == ["stored", "two.lmz"]
    assert lines[3].split() == ["1", "0", str(os.stat("empty.lmz").st_size), "0", "-", "-", "-", "empty.lmz"]
    assert lines[4].split()[-2:] == ["3", "files"]
    assert len(lmz("-l", "text.lmz").out.splitlines()) == 2


def test_list_as_json(lmz: Front, text: Path) -> None:
    lmz("--block-size", "64K", "text").check(0)
    name = "\udcff.lmz" if os.name == "posix" else "ü.lmz"
    (text.parent / name).write_bytes(packed(lmz, b"") * 2)
    listed = json.loads(lmz("-l", "--json", "text.lmz", name).check(0).out)
    assert [file["file"] for file in listed] == ["text.lmz", name]
    assert [file["original_nbytes"] for file in listed] == [len(TEXT), 0]
    assert listed[0]["compressed_nbytes"] == os.stat("text.lmz").st_size
    blocks = listed[0]["frames"][0]["blocks"]
    assert [block["original_nbytes"] for block in blocks] == [65536, len(TEXT) - 65536]
    assert len(listed[1]["frames"]) == 2
    assert json.loads(lmz("-lr", "--json", ".").out)[0]["file"] == os.path.join(".", "text.lmz")


def test_what_cannot_be_listed(lmz: Front, text: Path) -> None:
    lmz("-l").check(1, "(stdin)", "the data ends")
    lmz("-l", "-", stdin=TEXT).check(1, "(stdin)", "not lmcodec data")
    assert lmz("-l", "text").check(1, "lmz: text: ").out == b""
    assert json.loads(lmz("-l", "--json", "text", "missing").out) == []
    (text.parent / "cut.lmz").write_bytes(packed(lmz)[:-1])
    lmz("-l", "cut.lmz").check(1, "cut.lmz")
    os.mkdir("d")
    lmz("-l", "d").check(1, "lmz: d: ")
    if os.name == "posix":
        os.mkfifo("pipe")
        lmz("-l", "pipe").check(1, "pipe", "seek")


# Messages


def test_verbose(lmz: Front, text: Path) -> None:
    err = lmz("-v", "text").err
    size = os.stat("text.lmz").st_size
    assert err.startswith(
        f"lmz: text -> text.lmz: {len(TEXT):,} -> {size:,} bytes, {8 * size / len(TEXT):.3f} bpb"
    )
    assert f"{size:,} -> {len(TEXT):,} bytes" in lmz("-dvf", "text.lmz").err
    assert lmz("-tv", "text.lmz").err.startswith(f"lmz: text.lmz: {size:,} -> {len(TEXT):,} bytes")
    assert " 0 -> " in lmz("-cv", stdin=b"").err


def test_quiet(lmz: Front, text: Path) -> None:
    os.mkdir("d")
    assert lmz("-q", "d") == Result(2, b"", "")
    lmz("-q", "missing").check(1, "missing")
    assert lmz("-qq", "missing", "d") == Result(1, b"", "")


def test_progress_follows_the_blocks() -> None:
    data = TEXT[:60_000]
    frames = b"".join(lmcodec.compress(part, block_size=4096) for part in (data, b"", data[:3000]))
    blocks = BlockEnds()
    for i in range(0, len(frames), 7):
        blocks.feed(frames[i : i + 7])
    assert len(blocks.ends) == 15 + 1 + 1
    assert blocks.ends[0][1] == 4096
    assert blocks.ends[-1] == (len(frames), 63_000)
    whole = BlockEnds()
    whole.feed(frames)
    assert whole.ends == blocks.ends
    whole.feed(b"no frame")
    whole.feed(frames)
    assert whole.ends == blocks.ends


def test_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    data = NOISE[:80_000]
    frame = lmcodec.compress(data, block_size=40_000)
    encoding = Progress("some/file", 80_000, decoding=False)
    encoding.original(data)
    clock += 5
    assert encoding.line(100) == "some/file  0 B of 78.1 KiB (0%)  0:00:05"
    encoding.compressed(frame[:40_030])
    clock += 1
    assert encoding.line(100) == (
        "some/file  39.1 KiB of 78.1 KiB (50%)  8.003 bpb, 100.0%  7.8 KiB/s  0:00:04 left"
    )
    clock += 10
    assert encoding.line(100).endswith(" 0:00:00 left")
    assert all(len(encoding.line(width)) <= width for width in range(200))
    encoding.compressed(frame[40_030:])
    assert encoding.summary().startswith(f"80,000 -> {len(frame):,} bytes, 8.0")
    decoding = Progress("(stdin)", None, decoding=True)
    decoding.compressed(frame)
    assert "bpb" not in decoding.line(80)
    decoding.original(data[:50_000])
    assert decoding.line(80).startswith("(stdin)  39.1 KiB  8.003 bpb, 100.0%  ")
    assert decoding.summary().startswith(f"{len(frame):,} -> 50,000 bytes, ")


def test_figures_and_names_as_text() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1 << 20, 200 << 20, 5 << 40, 5 << 60)] == [
        "0 B", "999 B", "1.0 KiB", "1.0 MiB", "200 MiB", "5.0 TiB", "5242880 TiB",
    ]  # fmt: skip
    assert time_text(3 * 3600 + 25 * 60 + 7) == "3:25:07"
    assert printable("a\tb\u202e\ud800\udcff π") == r"a\tb\u202e\ud800\xff π"


# The group


def test_subcommands_of_the_group(lmz: Front, text: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from lmcodec.cli.main import main

    def call(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as exit:
            main([*arguments])
        out, err = capfdbinary.readouterr()
        return Result(exit.value.code or 0, out, err.decode())  # type: ignore[arg-type]

    call("compress", "-9", "--verify", "text").check(0)
    call("compress", "text").check(1, "lmcodec: text.lmz: exists")
    call("test", "text.lmz").check(0)
    assert call("decompress", "-c", "text.lmz").check(0).out == TEXT
    call("decompress", "-o", "x", "text.lmz", "text").check(1, "lmcodec: -o")
    assert b"text.lmz" in call("list", "text.lmz").check(0).out
    call("test", "text").check(1, "lmcodec: text: ")
    call("decompress", "text").check(2, "lmcodec: text: ")
    assert "--max-output" in call("decompress", "-h").out.decode()
    assert "--max-output" not in call("compress", "-h").out.decode()


# Where outputs go, and which files are taken


def test_output_folder(lmz: Front, tmp_path: Path) -> None:
    for name in ("a.txt", "in/a.txt", "in/er/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
    lmz("--output-dir", "out", "a.txt").check(0)
    assert lmcodec.decompress((tmp_path / "out/a.txt.lmz").read_bytes()) == TEXT
    lmz("-r", "--output-dir", "tree/of", "in").check(0)
    assert sorted(p.name for p in (tmp_path / "tree/of/in").rglob("*.lmz")) == ["a.txt.lmz", "b.txt.lmz"]
    lmz("-dr", "--output-dir", "back", "tree/of/in/").check(0)
    assert (tmp_path / "back/in/er/b.txt").read_bytes() == TEXT
    lmz("--output-dir", "out", "a.txt").check(1, "exists already")
    for arguments in (("-c",), ("-o", "x"), ("-t",), ("-l",)):
        lmz("--output-dir", "out", *arguments, "a.txt").check(1, "--output-dir")


def test_files_of_one_name_do_not_replace_each_other(lmz: Front, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a").write_bytes(TEXT)
    (tmp_path / "in/a").write_bytes(b"another")
    lmz("-f", "--rm", "--output-dir", "out", "a", "in/a").check(1, "in/a: ", "was made of a in this call")
    assert lmcodec.decompress((tmp_path / "out/a.lmz").read_bytes()) == TEXT
    assert (tmp_path / "in/a").read_bytes() == b"another"


def test_excluded_files(lmz: Front, tmp_path: Path) -> None:
    for name in ("a.txt", "b.gz", "skip/c.txt", "in/d.txt", "in/e.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
    lmz("-r", "--exclude", "*.gz", "--exclude=skip", ".", "b.gz").check(0)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.lmz"))
    assert found == ["a.txt.lmz", "in/d.txt.lmz"]


def test_files_from_lists(lmz: Front, tmp_path: Path) -> None:
    for name in ("a", "b c", "d\ne" if os.name == "posix" else "d", "f"):
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "list").write_bytes(b"a\n\nb c\n")
    lmz("--files-from", "list", "f").check(0)
    lmz("--files-from", "-", "--null", stdin=b"d\ne\0" if os.name == "posix" else b"d\0").check(0)
    assert len([*tmp_path.glob("*.lmz")]) == 4
    (tmp_path / "none").write_bytes(b"")
    lmz("--files-from", "none", stdin=b"not read").check(0)
    lmz("--files-from", "missing").check(1, "--files-from", "missing")
    lmz("--null", "a").check(1, "--null")


@posix
def test_links_in_folders_make_no_loop(lmz: Front, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(TEXT)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to("self")
    lmz("-rf", "in").check(0)
    assert [p.name for p in tmp_path.rglob("*.lmz")] == ["a.lmz"]
    lmz("-rf", "in/loop/loop").check(0)


def test_list_of_standard_input(lmz: Front) -> None:
    """A file that the shell opened (-l < file)."""
    for arguments in (("-l", "--json"), ("-l", "--json", "-")):
        listed = json.loads(lmz(*arguments, stdin=packed(lmz)).check(0).out)
        assert [(f["file"], f["original_nbytes"]) for f in listed] == [("(stdin)", len(TEXT))]


# Holes, borders, time


@posix
@pytest.mark.parametrize(
    "data", [bytes(3 << 20), b"x" + bytes(1 << 20) + b"y" * 5000 + bytes(70_000), b"abc"]
)
def test_sparse_output(lmz: Front, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    os.utime(tmp_path / "a", (10**9, 10**9))
    lmz("-1", "a").check(0)
    for option, name in (("", "sparse"), ("--no-sparse", "full")):
        lmz("-d", *([option] if option else []), "-o", name, "a.lmz").check(0)
        assert (tmp_path / name).read_bytes() == data
        assert os.stat(tmp_path / name).st_mtime == 10**9
    blocks = [os.stat(tmp_path / name).st_blocks for name in ("sparse", "full")]
    assert blocks[0] <= blocks[1]


def test_rsyncable(lmz: Front, tmp_path: Path) -> None:
    """A change at the start leaves most of the frames as they were."""
    rng = random.Random(2)
    text = b"".join(b"%d words of %d\n" % (rng.randrange(10**6), i) for i in range(300_000))
    frames = []
    for data in (text, b"new " + text):
        (tmp_path / "a").write_bytes(data)
        lmz("-1", "-f", "--rsyncable", "a").check(0)
        packed_file = (tmp_path / "a.lmz").read_bytes()
        assert lmcodec.decompress(packed_file) == data
        with open(tmp_path / "a.lmz", "rb") as file:
            infos = lmcodec.codec.scan(file)
        frames.append([packed_file[f.offset : f.offset + (f.nbytes or 0)] for f in infos])
    assert len(frames[0]) >= 4
    assert frames[0][1:] == frames[1][1:]
    assert lmz("-1", "-c", "--rsyncable", stdin=b"").check(0).out == packed(lmz, b"")
    lmz("--rsyncable", "--solid", "a").check(1, "--rsyncable")
    lmz("-d", "--rsyncable", "a.lmz").check(1, "--rsyncable is of compressing")


def test_flush_timeout_goes_with_compressing(lmz: Front, text: Path) -> None:
    lmz("-d", "--flush-timeout", "1", text.name).check(1, "--flush-timeout is of compressing")
    lmz("--flush-timeout", "1", "--verify", text.name).check(1, "--flush-timeout")
