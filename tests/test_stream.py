"""Data that comes bit by bit: flushes, readers that keep up, what nobody closes, what follows a frame."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import select
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lmcodec
from lmcodec import codec, frame
from lmcodec.cli import lmz
from lmcodec.codec import Compressor, Decompressor, compress, decompress, frame_info
from lmcodec.codec.pipeline import Pipeline, Seat
from lmcodec.codec.spec import EngineSpec
from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, TrailingData, Truncated
from lmcodec.file import LMFile
from lmcodec.frame import Block, Method

EVENTS = [b'{"event": %d, "name": "something happened", "value": %d}\n' % (i, i * i) for i in range(12)]
PATIENCE = 60  # seconds after which a test fails that waits for something


def log_records(n: int) -> list[str]:
    rng = random.Random(7)
    levels, names = ["INFO", "DEBUG", "WARNING"], ["auth", "db", "http.server", "worker.queue"]
    messages: list[Callable[[], str]] = [
        lambda: f"GET /api/v1/users/{rng.randrange(500)} HTTP/1.1 200 {rng.randrange(5000)}",
        lambda: f"connection from 10.0.0.{rng.randrange(256)} closed after {rng.randrange(100) / 10} s",
        lambda: f"cache miss for key user:{rng.randrange(500)}:profile, asking the database",
    ]
    return [
        f"2026-03-01 12:{i // 60:02}:{i % 60:02},{rng.randrange(1000):03} {rng.choice(levels)} "
        f"{rng.choice(names)}: {rng.choice(messages)()}"
        for i in range(n)
    ]


def flushed(pieces: list[bytes], **options: Any) -> bytes:
    """A frame that was flushed after each piece."""
    compressor = Compressor(**{"level": 1, **options})
    packed = b"".join(compressor.compress(piece, Compressor.FLUSH_BLOCK) for piece in pieces)
    return packed + compressor.flush()


def blocks_of(packed: bytes) -> tuple[Block, ...]:
    info = frame_info(packed)
    assert info.blocks is not None
    return tuple(block for block in info.blocks if block.method != Method.END)


# Flushed blocks go on from what was learned


@pytest.mark.parametrize("level", [1, 2])
def test_a_log_compresses_although_every_record_is_flushed(tmp_path: Path, level: int) -> None:
    records, path = log_records(1000), tmp_path / "log.lmz"
    with lmcodec.open(path, "wt", encoding="utf-8", level=level) as file:
        handler = logging.StreamHandler(file)
        logger = logging.Logger("test")
        logger.addHandler(handler)
        for i, record in enumerate(records):
            logger.info(record)
            if i % 250 == 0:  # each record can be read at once
                read: list[bytes] = []
                with lmcodec.open(path, "rb") as written, contextlib.suppress(EOFError):
                    read.extend(iter(written.read1, b""))
                assert b"".join(read) == "".join(f"{record}\n" for record in records[: i + 1]).encode()
    text = "".join(f"{record}\n" for record in records).encode()
    packed = path.read_bytes()
    assert decompress(packed) == text
    assert len(text) > 80_000
    assert len(packed) <= 16_384
    assert len(packed) <= len(compress(text, level)) + 11 * len(records)


@pytest.mark.parametrize(
    ("pieces", "options", "continues"),
    [
        ([b"an event\n"] * 4, {}, [0, 1, 1, 1]),
        ([b"x"] * 4, {}, [0, 1, 1, 1]),  # payloads of such blocks are no smaller than they are
        ([random.Random(n).randbytes(100) for n in range(4)], {}, [0, 1, 1, 1]),
        ([b"an event\n" * 50] * 4, {"block_size": 1024}, [0, 1, 0, 1]),  # a chain holds no more than a block
        ([b"an event\n" * 100] * 3, {"block_size": 1024}, [0, 0, 0]),
        (
            [b"an event\n", random.Random(1).randbytes(5000), b"an event\n"],
            {},
            [0, 0, 0],
        ),  # the second is stored
        ([b"an event\n"] * 3, {"method": "stored"}, [0, 0, 0]),
        (
            [b"an event\n"] * 3,
            {"method": "lm", "level": 3},
            [0, 0, 0],
        ),  # it keeps nothing from block to block
        ([b"an event\n"] * 3, {"method": "lm", "level": 3, "solid": True}, [0, 1, 1]),
        ([b"an event\n"] * 3, {"method": "lm+cm", "level": 3}, [0, 1, 1]),
        ([b"an event\n" * 9] * 3, {"streams": 4, "groups": 2}, [0, 1, 1]),
        ([b"an event\n" * 9, b"no\n", b"an event\n" * 9], {"streams": 4}, [0, 0, 0]),  # too few for 4 streams
        ([b"an event\n"] * 3, {"solid": True}, [0, 1, 1]),
    ],
)
def test_what_continues_what(pieces: list[bytes], options: dict[str, Any], continues: list[int]) -> None:
    packed = flushed(pieces, **options)
    blocks = blocks_of(packed)
    assert [int(block.continues) for block in blocks] == continues
    assert all(block.chained for block in blocks if block.continues and block.method != Method.LM)
    data = b"".join(pieces)
    assert decompress(packed) == data
    with LMFile(io.BytesIO(packed)) as file:
        for offset in range(len(data) - 1, -1, -max(len(data) // 7, 1)):
            file.seek(offset)
            assert file.read(50) == data[offset : offset + 50]


_rng = random.Random(3)
NUMBERS = b"".join(b"%x;%d," % (_rng.getrandbits(60), _rng.randrange(9)) for _ in range(40))[:300]


@pytest.mark.parametrize("nbytes", [40, 200, 900])
@pytest.mark.parametrize("first", [b"\n", NUMBERS], ids=["a byte", "numbers"])
def test_a_chain_does_not_keep_the_method_of_an_odd_first_event(first: bytes, nbytes: int) -> None:
    """With the model of the level, which a first event of no text would have kept out."""
    text = (Path(lmcodec.__file__).parent / "docs" / "FORMAT.md").read_bytes()[2000:6000]
    pieces = [text[at : at + nbytes] for at in range(0, len(text), nbytes)]
    good, odd = flushed(pieces, level=6), flushed([first, *pieces], level=6)
    blocks = blocks_of(odd)
    assert blocks[0].method in (Method.STORED, Method.CM)
    assert blocks[-1].method == Method.LM_CM
    assert len(odd) - blocks[0].nbytes <= 1.25 * len(good)
    assert sum(not block.continues for block in blocks) <= 3
    assert decompress(odd) == first + text


def test_what_was_flushed_goes_on_without_a_flush() -> None:
    compressor = Compressor(1, block_size=2048)
    packed = compressor.compress(b"an event\n" * 20, Compressor.FLUSH_BLOCK)
    packed += compressor.compress(b"an event\n" * 700)  # more than a block
    packed += compressor.compress(b"an event\n", Compressor.FLUSH_BLOCK)
    packed += compressor.compress(b"an event\n" * 20)
    packed += compressor.flush()
    assert [block.continues for block in blocks_of(packed)] == [False] * 5 + [True]
    assert decompress(packed) == b"an event\n" * 741


def test_a_frame_that_was_flushed_does_not_depend_on_threads() -> None:
    pieces = [b"".join(EVENTS[i % 5 :]) * (1 + i % 7) for i in range(40)]
    assert len({flushed(pieces, threads=n, block_size=4096) for n in (None, 1, 2, 8)}) == 1


def test_bytes_of_blocks_in_a_chain() -> None:
    first = Block(Method.CM, 300, 310, 2, 3, 2, chained=True, tables_log2=20)
    assert first.head().hex(" ") == "22 02 82 14 ab 02 b6 02"
    more = Block(Method.CM, 5, 6, 2, 3, 2, chained=True, continues=True)
    assert more.head().hex(" ") == "32 04 06"
    check = bytes(4)
    assert frame.parse_block(first.head() + check, "") == first
    assert frame.parse_block(more.head() + check, "", previous=first) == more
    for cut in range(len(first.head()) + 4):
        assert frame.parse_block((first.head() + check)[:cut], "") is None


@pytest.mark.parametrize(
    ("data", "previous", "text"),
    [
        ("20", None, "method end in a chain"),
        ("28", None, "method end in a chain"),
        ("21", None, "method stored in a chain"),
        ("24", None, "method lm in a chain"),
        ("3400", None, "method lm in a chain"),
        ("22020009", None, "tables for 2.9 bytes, expected 2.10 to 2.24"),
        ("22020019", None, "tables for 2.25 bytes"),
        ("2202000a8008", None, "tables for 2.10 bytes, original size 1025"),
        ("2202001409 1a", None, "payload size 26, original size 10"),
        ("32", None, "continues a chain that is not there"),
        ("32", Block(Method.CM, 9, 8, 2, 1, 1), "continues a chain that is not there"),
        ("32", Block(Method.LM_CM, 9, 8, 1, 1, 1, chained=True), "continues a chain that is not there"),
        ("32 01", Block(Method.CM, 9, 8, 2, 3, 1, chained=True), "original size 2, expected 3"),
    ],
)
def test_chains_that_are_refused(data: str, previous: Block | None, text: str) -> None:
    with pytest.raises(Corrupt, match=f"block 9.*{text}"):
        frame.parse_block(bytes.fromhex(data), "block 9", has_model=True, previous=previous)


def test_tables_of_a_chain_are_checked_against_limits_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressor = Compressor(1)
    small = compressor.compress(b"an event\n" * 9, Compressor.FLUSH_BLOCK)
    at = frame.parse_header(small).nbytes  # type: ignore[union-attr]
    block = frame.parse_block(small[at:], "")
    assert block is not None
    assert block.tables_log2 == 20
    payload = small[at + block.header_nbytes :]
    assert Decompressor(memory_limit=100 << 20).decompress(small) == b"an event\n" * 9
    limit = EngineSpec(Method.CM, block.profile, 1, 1, enlarge=3).memory_nbytes(9, False)
    huge = Block(Method.CM, 9, 8, block.profile, 1, 1, chained=True, tables_log2=24, enlarge=3)
    monkeypatch.setattr(Seat, "engine", lambda *_: pytest.fail("an engine was made"))
    with pytest.raises(LimitExceeded, match="raise memory_limit"):
        Decompressor(memory_limit=limit).decompress(small[:at] + huge.pack(b"", payload))


def test_a_small_block_of_a_chain_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    start = threading.Thread.start

    def noted(self: threading.Thread) -> None:
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", noted)
    assert decompress(flushed(EVENTS)) == b"".join(EVENTS)
    assert not started
    decompress(compress(b"".join(EVENTS), 1))
    assert started


# Readers that keep up


class OnlyRead:
    """A file object of which nothing but `read` is there; it gives less than it is asked for."""

    def __init__(self, fd: int, kind: Callable[[bytes], Any] = bytes) -> None:
        self._fd, self._kind = fd, kind
        self.close = lambda: os.close(fd)

    def read(self, nbytes: int) -> Any:
        return self._kind(os.read(self._fd, min(nbytes, 1000)))


class Unready(io.BufferedIOBase):
    """As OnlyRead, of the class whose read1 says that it is not there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def readable(self) -> bool:
        return True

    def read(self, nbytes: int | None = -1) -> bytes:
        return os.read(self._fd, 1000)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def lines_of(file: Any) -> Iterator[bytes]:
    return iter(file)


def by_read1(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read1(1000), b"")


def by_readline(file: Any) -> Iterator[bytes]:
    return iter(file.readline, b"")


SOURCES: dict[str, Callable[[int], Any]] = {
    "pipe": lambda fd: os.fdopen(fd, "rb"),
    "raw pipe": lambda fd: os.fdopen(fd, "rb", 0),
    "small buffer": lambda fd: os.fdopen(fd, "rb", 16),
    "only read": OnlyRead,
    "bytearray": lambda fd: OnlyRead(fd, bytearray),
    "memoryview": lambda fd: OnlyRead(fd, memoryview),
    "no read1": Unready,
}
READERS = {"iteration": lines_of, "read1": by_read1, "readline": by_readline}


def writing_to(fd: int) -> tuple[Callable[[bytes], object], Callable[[], object]]:
    return lambda data: os.write(fd, data), lambda: os.close(fd)


def check_keeps_up(
    write: Callable[[bytes], object],
    end: Callable[[], object],
    lines: Callable[[], Iterator[Any]],
    **options: Any,
) -> None:
    """Each event is handed out before the next one is written."""
    got, arrived = [], threading.Semaphore(0)

    def read() -> None:
        for line in lines():
            got.append(line)
            arrived.release()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    compressor = Compressor(**{"level": 1, **options})
    for n, event in enumerate(EVENTS):
        write(compressor.compress(event, Compressor.FLUSH_BLOCK))
        assert arrived.acquire(timeout=PATIENCE), f"event {n} came late"
        assert got[n] in (event, event.decode())
    write(compressor.flush())
    end()
    thread.join(PATIENCE)
    assert len(got) == len(EVENTS)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("source", SOURCES)
def test_flushed_events_are_handed_out_at_once(source: str, reader: str) -> None:
    read_fd, write_fd = os.pipe()
    with contextlib.closing(SOURCES[source](read_fd)) as opened, LMFile(opened) as file:
        check_keeps_up(*writing_to(write_fd), lambda: READERS[reader](file))


# Blocks of their own, in threads: what is large, or stored.
@pytest.mark.parametrize(
    "options", [{"method": "stored"}, {"block_size": 1024, "threads": 1}, {"threads": 2}]
)
def test_flushed_blocks_are_handed_out_at_once(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("compressor", "decompressor"):
        monkeypatch.setattr(f"lmcodec.codec.{module}.SMALL_NBYTES", 0)
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as opened, LMFile(opened) as file:
        check_keeps_up(*writing_to(write_fd), lambda: iter(file), **options)


def test_flushed_events_come_through_a_socket_as_text() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as source, lmcodec.open(source, "rt", encoding="utf-8") as file:
        check_keeps_up(ours.sendall, lambda: ours.shutdown(socket.SHUT_WR), lambda: iter(file.readline, ""))


@pytest.mark.parametrize("arguments", [["-dc"], ["-dcf"], ["-d"]])
def test_flushed_events_come_through_the_command(arguments: list[str]) -> None:
    command = [sys.executable, "-I", "-m", "lmcodec.cli.lmz", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        compressor = Compressor(1)
        for event in EVENTS:
            process.stdin.write(compressor.compress(event, Compressor.FLUSH_BLOCK))
            assert select.select([process.stdout], [], [], PATIENCE)[0], "an event came late"
            assert process.stdout.read(1000) == event
        process.stdin.write(compressor.flush())
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_blocks_of_a_file_are_still_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for blocks is for what may have to wait for its writer."""
    most = 0
    start = Pipeline.start

    def started(self: Pipeline, *arguments: Any, **named: Any) -> None:
        nonlocal most
        start(self, *arguments, **named)
        most = max(most, self.n_at_work)

    packed = compress(b"".join(log.encode() for log in log_records(2000)), 1, block_size=8192)
    monkeypatch.setattr(Pipeline, "start", started)
    with LMFile(io.BytesIO(packed), threads=4) as file:
        file.read()
    assert most == 4


# Minimal file objects


def member_of_a_tar_stream(packed: bytes) -> Any:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("member")
        member.size = len(packed)
        tar.addfile(member, io.BytesIO(packed))
    archive.seek(0)
    opened = tarfile.open(fileobj=archive, mode="r|")  # noqa: SIM115
    return opened.extractfile(next(iter(opened)))


class Minimal:
    """`read`, and what else is given."""

    def __init__(self, packed: bytes, **attributes: Any) -> None:
        self._source = io.BytesIO(packed)
        vars(self).update(attributes)

    def read(self, nbytes: int = -1) -> bytes:
        return self._source.read(min(nbytes, 7))


def raising(error: type[Exception]) -> Callable[[], Any]:
    def method(*_: Any) -> Any:
        raise error("not here")

    return method


@pytest.mark.parametrize(
    "source",
    [
        Minimal,
        member_of_a_tar_stream,
        lambda packed: Minimal(packed, seekable=raising(AttributeError)),
        lambda packed: Minimal(packed, seekable=raising(io.UnsupportedOperation)),
        lambda packed: Minimal(packed, seekable=lambda: True),  # and no tell
        lambda packed: Minimal(packed, seekable=lambda: True, tell=raising(OSError)),
        lambda packed: Minimal(packed, seekable=lambda: None),
        lambda packed: Minimal(packed, fileno=raising(io.UnsupportedOperation)),
        lambda packed: Minimal(packed, fileno=lambda: None),
        lambda packed: Minimal(packed, read1=raising(NotImplementedError)),
    ],
)
def test_minimal_files_to_read(source: Callable[[bytes], Any]) -> None:
    data = b"".join(EVENTS)
    for packed in (compress(data, 1), flushed(EVENTS), compress(data, 1, block_size=1024) + bytes(9)):
        with LMFile(source(packed)) as file:
            assert not file.seekable()
            assert file.read() == data
        with lmcodec.open(source(packed), "rt", encoding="utf-8") as text:
            assert list(text) == [event.decode() for event in EVENTS]


def test_files_that_give_less_than_they_are_asked_for_can_be_searched() -> None:
    class Short(io.BytesIO):
        def read(self, nbytes: int | None = -1) -> bytes:
            return super().read(min(nbytes or 0, 5))

        read1 = read

    data = b"".join(EVENTS) * 9
    packed = compress(data, 1, block_size=1024)
    with LMFile(Short(packed)) as file:
        assert file.seek(0, 2) == len(data)
        file.seek(3000)
        assert file.read(9) == data[3000:3009]
    assert [info.original_nbytes for info in codec.scan(Short(packed))] == [len(data)]


class OnlyWrite:
    """A file object with nothing but `write`, which takes at most `most` bytes and says `says`."""

    def __init__(self, most: int, says: Callable[[int], Any]) -> None:
        self.taken, self._most, self._says = b"", most, says

    def write(self, data: Any) -> Any:
        taken = bytes(data)[: self._most]
        self.taken += taken
        return self._says(len(taken))


def test_minimal_files_to_write() -> None:
    packed = flushed(EVENTS)
    for most, says in ((10**9, lambda n: n), (10**9, lambda n: None), (3, lambda n: n), (1, lambda n: n)):
        target = OnlyWrite(most, says)
        with LMFile(target, "w", level=1) as file:  # type: ignore[arg-type]
            for event in EVENTS:
                file.write(event)
                file.flush()
        assert target.taken == packed
    file = LMFile(OnlyWrite(0, lambda n: n), "w", level=1)  # type: ignore[arg-type]
    file.write(b"data")
    with pytest.raises(OSError, match="took 0 of"):
        file.close()


# What follows a frame

DATA = b"".join(EVENTS)
WHOLE = {
    "one block": compress(DATA, 1),
    "indexed": compress(DATA, 1, block_size=1024, threads=1)
    if len(DATA) > 1024
    else flushed([*EVENTS[:-1], b"\n"]),
    "flushed": flushed(EVENTS),
    "empty": compress(b"", 1),
}
PADDINGS = [1, 3, 4, 511, 512, 300_000]
GARBAGE = [b"\n", b"garbage", b"\0\0\0\0x", bytes(200_000) + b"x", b"\x1f\x8b\x08\0", b"\xb5LMX" + bytes(30)]


@pytest.mark.parametrize("nbytes", PADDINGS)
@pytest.mark.parametrize("name", WHOLE)
def test_padding_behind_and_between_frames(name: str, nbytes: int) -> None:
    packed, data = WHOLE[name], decompress(WHOLE[name])
    for n_frame in (1, 2):
        padded = (packed + bytes(nbytes)) * n_frame
        assert decompress(padded) == data * n_frame
        assert [info.offset for info in codec.scan(io.BytesIO(padded))] == [
            i * (len(packed) + nbytes) for i in range(n_frame)
        ]
        with LMFile(io.BytesIO(padded)) as file:
            assert file.read() == data * n_frame
            assert file.read() == b""
            assert file.seek(0, 2) == len(data) * n_frame
            assert file.read(1) == b""
            for offset in range(0, len(data) * n_frame, 150):
                file.seek(offset)
                assert file.read(99) == (data * n_frame)[offset : offset + 99]
        with LMFile(Minimal(padded)) as file:  # type: ignore[arg-type]
            assert file.read() == data * n_frame


def test_the_command_takes_padding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.lmz"
    path.write_bytes((WHOLE["one block"] + bytes(511)) * 2)
    for arguments in (["-dc"], ["-t"], ["-l"], ["-d"], ["-dcf"], ["-d", "-f", "--rm"]):
        with pytest.raises(SystemExit) as end:
            lmz.main([*arguments, str(path)])
        stdout, stderr = capfd.readouterr()
        assert (end.value.code, stderr) == (0, "")
        if "-c" in arguments[0]:
            assert stdout == 2 * DATA.decode()
    assert (tmp_path / "a").read_bytes() == 2 * DATA
    assert not path.exists()


def test_zeros_alone_are_no_frame() -> None:
    with pytest.raises(BadMagic, match="not lmcodec data"):
        decompress(bytes(100))
    with pytest.raises(Truncated):
        decompress(WHOLE["one block"] + bytes(5) + WHOLE["one block"][:-1])


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", WHOLE)
def test_garbage_is_reported_after_what_comes_before(name: str, garbage: bytes) -> None:
    packed, data = WHOLE[name] + garbage, decompress(WHOLE[name])
    with pytest.raises(TrailingData, match=r"offset \d+: expected another frame"):
        decompress(packed)
    with pytest.raises(TrailingData):
        codec.scan(io.BytesIO(packed))
    decompressor = Decompressor()
    assert decompressor.decompress(packed) == data
    assert decompressor.unused_data == garbage
    for size in (1 << 20, 100):
        pieces: list[bytes] = []
        with LMFile(io.BytesIO(packed)) as file:
            with pytest.raises(TrailingData):
                pieces.extend(iter(partial(file.read, size), b""))
            assert b"".join(pieces) == data
            with pytest.raises(TrailingData):
                file.readline()
            file.seek(0)
            if data:
                assert file.read(10) == data[:10]
    with LMFile(io.BytesIO(packed)) as file, pytest.raises(TrailingData):
        file.read()
    lines: list[str] = []
    with lmcodec.open(io.BytesIO(packed), "rt", encoding="utf-8") as text, pytest.raises(TrailingData):
        lines.extend(iter(text))
    assert "".join(lines).encode() == data


@pytest.mark.parametrize("garbage", [b"garbage", b"\0\0\0\0x"])
def test_the_command_keeps_what_comes_before_garbage(
    garbage: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "a.lmz", tmp_path / "out"
    for arguments in (["-d", "-o", str(out)], ["-dc"], ["-dcf"], ["-t"], ["-l"], ["-d", "--rm"]):
        path.write_bytes(WHOLE["one block"] + garbage)
        with pytest.raises(SystemExit) as end:
            lmz.main([*arguments, str(path)])
        stdout, stderr = capfd.readouterr()
        assert end.value.code == 2
        assert "what follows the frames is ignored: offset" in stderr
        assert len(stderr.splitlines()) == 1
        if "-c" in arguments[0]:
            assert stdout == DATA.decode()
        assert path.exists()
    assert out.read_bytes() == (tmp_path / "a").read_bytes() == DATA


# Text

TEXT = "first\nzweite Zeile: äöü\n日本\n"
ENCODINGS = [
    "utf-8",
    "utf-16",
    "utf-32",
    "utf-8-sig",
    "utf-16-le",
    "utf-7",
    "iso2022_jp_ext",
    "hz",
    "cp1252",
]


def text_for(encoding: str) -> str:
    if encoding == "cp1252":
        return "first\nzweite Zeile\n"
    return "first\nzweite\n日本" if encoding == "hz" or encoding.startswith("iso") else TEXT


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_written_as_by_open(encoding: str, tmp_path: Path) -> None:
    """To the byte, but for what Python's own files leave out: the end of a shift state."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    text = text_for(encoding)
    for n, mode in enumerate(["wt", "at", "at"], 1):
        with (
            lmcodec.open(ours, mode, encoding=encoding, level=1) as file,
            open(theirs, mode, encoding=encoding, newline="") as plain,
        ):
            for piece in (text[:3], text[3:]):
                assert file.write(piece) == plain.write(piece)
        if encoding not in ("hz", "iso2022_jp_ext"):
            assert decompress(ours.read_bytes()) == theirs.read_bytes()
        with lmcodec.open(ours, "rt", encoding=encoding) as file:
            assert file.read() == text * n


@pytest.mark.parametrize("before", ["nothing", "an empty frame", "empty frames", "data"])
@pytest.mark.parametrize("given", ["path", "file"])
def test_a_byte_order_mark_begins_a_text_once(before: str, given: str, tmp_path: Path) -> None:
    path = tmp_path / "a.lmz"
    empty = {"nothing": 0, "an empty frame": 1, "empty frames": 3}
    path.write_bytes(
        compress(b"", 1) * empty[before] if before in empty else compress("ä".encode("utf-16"), 1)
    )
    with contextlib.ExitStack() as stack:
        target = path if given == "path" else stack.enter_context(open(path, "ab"))
        with lmcodec.open(target, "at", encoding="utf-16", level=1) as file:
            assert not file.seekable()
            file.write("text")
    written = decompress(path.read_bytes())
    if given == "file" and before in ("an empty frame", "empty frames"):
        return  # what is in a file object is not looked at
    assert written.decode("utf-16") == ("text" if before in empty else "ätext")


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("errors", ["replace", "xmlcharrefreplace", "backslashreplace"])
def test_newlines_and_errors_are_those_of_open(newline: str | None, errors: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options: dict[str, Any] = {"encoding": "ascii", "errors": errors, "newline": newline}
    with lmcodec.open(ours, "wt", level=1, **options) as file, open(theirs, "w", **options) as plain:
        for each in (file, plain):
            each.writelines(["ä\n", "b\r\n", "c\rd\n\n"])
    assert decompress(ours.read_bytes()) == theirs.read_bytes()
    options["errors"] = "replace"
    with lmcodec.open(ours, "rt", **options) as file, open(theirs, **options) as plain:
        assert file.readlines() == plain.readlines()


def test_text_is_passed_on_at_once() -> None:
    target = io.BytesIO()
    with lmcodec.open(target, "wt", encoding="utf-8", level=1) as file:
        file.write("abc")
        assert file.buffer.tell() == 3  # type: ignore[attr-defined]
        file.write("")
        file.flush()
        before = target.getvalue()
        file.flush()
        assert target.getvalue() == before
    assert decompress(target.getvalue()) == b"abc"


def test_a_warning_of_the_encoding_names_the_line_that_opened_the_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import lmcodec\nlmcodec.open({str(tmp_path / 'a')!r}, 'wt').close()\n", encoding="utf-8"
    )
    options = ["-X", "warn_default_encoding", "-W", "always::EncodingWarning"]
    run = subprocess.run(
        [sys.executable, *options, str(script)], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    warnings = [line for line in run.stderr.splitlines() if "EncodingWarning" in line and "lmcodec" in line]
    assert not warnings
    assert f"{script}:2: EncodingWarning" in run.stderr


EVENT_MEMORY = """
import re, lmcodec
compressor = lmcodec.Compressor(9)
compressor.compress(b"an event of some bytes\\n", lmcodec.Compressor.FLUSH_BLOCK)
status = open("/proc/self/status", encoding="ascii").read()  # ru_maxrss also counts what forked it
print(int(re.search(r"VmHWM:\\s+(\\d+)", status).group(1)) >> 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_first_event_does_not_wait_for_huge_pages() -> None:
    """A chain's tables at level 9 have hundreds of megabytes, and an event touches some pages of these."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", EVENT_MEMORY],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert int(run.stdout) < 300  # MiB; in huge pages 627


# What nobody closes

_BEGIN = """
import atexit, gc, io, logging, logging.handlers, os, sys, threading, time
import lmcodec
path = sys.argv[1]
def new(mode="wb", **options):
    return lmcodec.open(path, mode, level=1, **options)
"""
UNCLOSED = {
    "global": "f = new(); f.write(b'data')",
    "nothing written": "f = new()",
    "flushed": "f = new(); f.write(b'da'); f.flush(); f.write(b'ta')",
    "text": "f = new('wt', encoding='utf-8'); f.write('data')",
    "shift state": "f = new('wt', encoding='iso2022_jp'); f.write('data')",
    "wrapper": "f = io.TextIOWrapper(new(), encoding='utf-8'); f.write('data')",
    "wrappers": "f = io.TextIOWrapper(io.BufferedWriter(new()), encoding='utf-8'); f.write('data')",
    "wrapper, and a reference": "f = new(); g = io.TextIOWrapper(f, encoding='utf-8'); g.write('data')",
    "dropped": """
f = new(); f.write(b'data'); del f
with open(path, 'rb') as written: assert lmcodec.decompress(written.read()) == b'data'
""",
    "cycle": "f = new(); f.write(b'data'); f.me = f; del f",
    "cycle, collected": "f = new(); f.write(b'data'); f.me = f; del f; gc.collect(); os._exit(0)",
    "cycle with its file": """
raw = open(path, 'wb')
f = lmcodec.LMFile(raw, 'wb', level=1); f.write(b'data')
class Owner: pass
owner = Owner(); owner.raw, owner.file, owner.me = raw, f, owner
del raw, f, owner
gc.collect()
""",
    "wrapper in a cycle": "f = io.TextIOWrapper(new(), encoding='utf-8'); f.write('data'); f.me = f; del f",
    "wrapper in a cycle, collected": """
f = io.TextIOWrapper(new(), encoding='utf-8'); f.write('data'); f.me = f; del f
gc.collect()
with open(path, 'rb') as written: assert lmcodec.decompress(written.read()) == b'data'
""",
    "buffer in a cycle with it, collected": """
f = new(); g = io.BufferedWriter(f); g.write(b'data'); f.outer = g; del f, g
gc.collect()
with open(path, 'rb') as written: assert lmcodec.decompress(written.read()) == b'data'
""",
    "wrapper that is collected in the midst of a write": """
g = new(); f = io.TextIOWrapper(g, encoding='utf-8'); f.write('ta'); f.me = f; del f
compress = lmcodec.Compressor.compress
def collecting(self, *arguments):
    gc.collect()
    return compress(self, *arguments)
lmcodec.Compressor.compress = collecting
g.write(b'da')
""",
    "from a signal handler in the midst of a write": """
import signal
f = new(); compress = lmcodec.Compressor.compress
signal.signal(signal.SIGINT, lambda *_: (f.write(b'ta'), f.flush()))
def interrupted(self, data, *mode):
    if data == b'da': signal.raise_signal(signal.SIGINT)
    return compress(self, data, *mode)
lmcodec.Compressor.compress = interrupted
f.write(b'da')
""",
    "collector off": "gc.disable(); f = new(); f.write(b'data'); f.me = f",
    "frozen": "f = new(); f.write(b'data'); gc.freeze()",
    "file of the caller": "raw = open(path, 'wb'); f = lmcodec.LMFile(raw, 'wb', level=1); f.write(b'data')",
    "raw file of the caller": "f = lmcodec.LMFile(open(path, 'wb', 0), 'wb', level=1); f.write(b'data')",
    "BytesIO": """
raw = io.BytesIO()
atexit.register(lambda: None)
f = lmcodec.LMFile(raw, 'wb', level=1); f.write(b'data')
class Last:
    def __del__(self, raw=raw, path=path, open=os.open, write=os.write, flags=os.O_CREAT | os.O_WRONLY):
        write(open(path, flags), raw.getvalue())
last = Last()
""",
    "exit": "f = new(); f.write(b'data'); sys.exit(0)",
    "exception": "f = new(); f.write(b'data'); 1 / 0",
    "local of an exception": "def g():\n    f = new(); f.write(b'data'); 1 / 0\ng()",
    "thread": """
def g():
    f = new(); f.write(b'data'); time.sleep(0.2)
threading.Thread(target=g).start()
""",
    "daemon": """
began = threading.Event()
def g():
    f = new(); f.write(b'data'); began.set(); time.sleep(100)
threading.Thread(target=g, daemon=True).start()
began.wait()
""",
    "thread's local": "l = threading.local(); l.f = new(); l.f.write(b'data')",
    "default argument": "def g(f=new()): f.write(b'data')\ng()",
    "module": "import json; json.f = new(); json.f.write(b'data')",
    "logger": """
f = new('wt', encoding='utf-8')
handler = logging.StreamHandler(f); handler.terminator = ''
logging.getLogger().addHandler(handler); logging.getLogger().warning('data')
""",
    "logger with a memory": """
target = logging.StreamHandler(new('wt', encoding='utf-8')); target.terminator = ''
logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=target)); logging.warning('data')
""",
    "written at exit": "f = new(); f.write(b'da'); atexit.register(f.write, b'ta')",
    "written after": """
import lmcodec.file
atexit.unregister(lmcodec.file._Output.end_all)
@atexit.register
def later():
    f.write(b'ta'); f.write(b'')
atexit.register(lmcodec.file._Output.end_all)
f = new(); f.write(b'da')
""",
    "closed at exit": "f = new(); f.write(b'data'); atexit.register(f.close)",
    "no more threads": """
f = new(); f.write(b'data')
def refuse(self): raise RuntimeError("can't create new thread at interpreter shutdown")
atexit.register(setattr, threading.Thread, 'start', refuse)
""",
    "several": "f, g = new(), lmcodec.LMFile(io.BytesIO(), 'w', level=1); f.write(b'data'); g.write(b'x')",
    "after one that fails": """
raw = open(path + '.closed', 'wb'); g = lmcodec.LMFile(raw, 'wb', level=1); g.write(b'lost'); raw.close()
f = new(); f.write(b'data')
""",
    "fork": """
f = new(); f.write(b'da')
if not (pid := os.fork()): sys.exit(0)
os.waitpid(pid, 0); f.write(b'ta')
""",
    "fork of what was flushed": """
f = new(); f.write(b'd'); f.flush(); f.write(b'a')
if not (pid := os.fork()): sys.exit(0)
os.waitpid(pid, 0); f.write(b'ta')
""",
    "fork in a with block": """
with new() as f:
    f.write(b'da')
    if not (pid := os.fork()): sys.exit(0)
    os.waitpid(pid, 0); f.write(b'ta')
""",
    "fork of a logger": """
handler = logging.StreamHandler(new('wt', encoding='utf-8')); handler.terminator = ''
logging.getLogger().addHandler(handler); logging.warning('da')
if not (pid := os.fork()): sys.exit(0)
os.waitpid(pid, 0); logging.warning('ta')
""",
    "fork of a wrapper": """
f = io.TextIOWrapper(new(), encoding='utf-8'); f.write('da')
if not (pid := os.fork()): sys.exit(0)
os.waitpid(pid, 0); f.write('ta')
""",
    "fork of a shift state": """
f = new('wt', encoding='iso2022_jp'); f.write('da日')
if not (pid := os.fork()):
    f.close()
    sys.exit(0)
os.waitpid(pid, 0); f.write('ta')
""",
    "fork that drops it": """
f = new(); f.write(b'da')
if not (pid := os.fork()):
    del f
    os._exit(0)
os.waitpid(pid, 0); f.write(b'ta')
""",
    "daemon process": """
f = new(); f.write(b'da')
if os.fork(): os._exit(0)
f.write(b'ta')
""",
    "multiprocessing": """
import multiprocessing
f = new(); f.write(b'da')
p = multiprocessing.get_context('fork').Process(target=print); p.start(); p.join()
f.write(b'ta')
""",
    "fork of multiprocessing": """
import multiprocessing
def work():
    global f
    f = new(); f.write(b'data')
p = multiprocessing.get_context('fork').Process(target=work); p.start(); p.join()
assert p.exitcode == 0
""",
    "worker of a pool": """
import concurrent.futures, multiprocessing
def work(text):
    handler = logging.StreamHandler(f := new('at', encoding='utf-8')); handler.terminator = ''
    logging.getLogger().addHandler(handler); logging.warning(text)
with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:
    pool.submit(work, 'data').result()
""",
    "fork of multiprocessing that goes on": """
import multiprocessing
f = new(); f.write(b'da'); f.flush(f.FLUSH_FRAME)
p = multiprocessing.get_context('fork').Process(target=f.write, args=(b'ta',)); p.start(); p.join()
""",
    "finalizer of a global": """
class Late:
    def __del__(self): self.file.write(b't'); self.file.write(b'a')
late = Late(); late.file = new(); late.file.write(b'da')
""",
    "finalizer, and nothing before": """
class Late:
    def __del__(self): self.file.write(b'data')
late = Late(); late.file = new()
""",
    "finalizer, large": """
class Late:
    def __del__(self): self.file.write(bytes(17 << 20)); self.file.write(b'data')
late = Late(); late.file = new()
""",
    "subclass that holds data": """
class Held(lmcodec.LMFile):
    held = b''
    def write(self, data): self.held += bytes(data); return len(data)
    def close(self):
        if not self.closed: super().write(self.held)
        super().close()
held = Held(path, 'wb'); held.write(b'data')
""",
    "object that compresses": """
class Late:
    def __del__(self, open=os.open, write=os.write, path=path, flags=os.O_CREAT | os.O_WRONLY):
        write(open(path, flags), lmcodec.compress(b'data', 2))
lmcodec.compress(b'data', 2)
late = Late()
""",
}


@pytest.mark.parametrize("name", UNCLOSED)
def test_what_nobody_closes_is_written(name: str, tmp_path: Path) -> None:
    if "fork" in UNCLOSED[name] and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    path = tmp_path / "a.lmz"
    run = subprocess.run(
        [sys.executable, "-I", "-c", _BEGIN + UNCLOSED[name], str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        encoding="utf-8",
    )
    deadline = time.monotonic() + PATIENCE
    data = b""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, lmcodec.LmcodecError):
            data = decompress(path.read_bytes())
            break
        assert name == "daemon process", f"{path.read_bytes()!r} {run.stderr}"
        time.sleep(0.1)
    expected = {"nothing written": b"", "fork of a shift state": "da日ta".encode("iso2022_jp")}
    expected["finalizer, large"] = bytes(17 << 20) + b"data"
    assert data == expected.get(name, b"data"), run.stderr
    error = {"exception": "ZeroDivisionError", "local of an exception": "ZeroDivisionError"}
    error["after one that fails"] = "could not be completed: ValueError"
    assert error.get(name, "") in run.stderr
    assert bool(run.stderr) == (name in error), run.stderr
    assert run.returncode == (1 if "exception" in name else 0)


def test_an_error_of_what_nobody_closes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    script = "import lmcodec; f = lmcodec.open('/dev/full', {}, level=1); f.write({}); del f; print('on')"
    for arguments in (("'wb'", "b'x'"), ("'wt', encoding='ascii'", "'x'")):
        run = subprocess.run(
            [sys.executable, "-I", "-c", script.format(*arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert "No space left on device" in run.stderr
        assert run.stdout == "on\n"
