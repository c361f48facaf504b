"""open and LMFile: the same calls on gzip, seeking by the index, damage, files that fail."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corruption
import pytest
from corruption import DeflateEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lmcodec
from lmcodec import codec, engine
from lmcodec.codec import Compressor, compress, decompress, frame_info
from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, LmcodecError, Truncated
from lmcodec.file import LMFile
from lmcodec.lm import store

KIB = 1024
TEXT = b"".join(b"%d bottles of beer on the wall\n" % i for i in range(400))  # 12 KB
NOISE = random.Random(5).randbytes(1500)


@pytest.fixture(scope="module", autouse=True)
def _deflate() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Engine", DeflateEngine)
        patch.setattr(engine, "memory_nbytes", corruption.deflate_memory_nbytes)
        patch.setattr(store, "SHIPPED", {})
        patch.delenv(store.MODEL_VARIABLE, raising=False)
        yield


class Pipe(io.RawIOBase):
    """A file that can be read once and gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int = 100) -> None:
        self._source, self._most = io.BytesIO(data), most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), self._most))
        buffer[: len(data)] = data
        return len(data)


SHAPES = {
    "one block": lambda: compress(TEXT),
    "blocks": lambda: compress(TEXT, block_size=KIB),
    "solid": lambda: compress(TEXT, block_size=KIB, solid=True),
    "frames": lambda: (
        compress(TEXT[:3000], block_size=KIB)
        + compress(b"")
        + compress(TEXT[3000:3100])
        + compress(TEXT[3100:], block_size=2 * KIB, solid=True)
    ),
    "indexed frames": lambda: (
        compress(TEXT[:3000], block_size=KIB) + compress(TEXT[3000:], block_size=2 * KIB, solid=True)
    ),
    "flushed": lambda: (
        (c := Compressor()).compress(TEXT[:100], Compressor.FLUSH_BLOCK) + c.compress(TEXT[100:]) + c.flush()
    ),
}

step = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "readinto"]), st.integers(0, 2000)),
    st.tuples(st.just("seek"), st.integers(0, len(TEXT) + 100), st.just(0)),
    st.tuples(st.just("seek"), st.integers(-len(TEXT), 100), st.sampled_from([1, 2])),
    st.sampled_from([("tell",), ("readline",), ("next",), ("read",)]),
)


def do(file: Any, name: str, *arguments: int) -> Any:
    if name == "readinto":
        buffer = bytearray(arguments[0])
        return file.readinto(buffer), buffer
    if name == "next":
        return next(file, b"")
    if name == "seek" and arguments[1] == 1:
        # From here, but not before the start, where gzip stops and we complain.
        return file.seek(max(arguments[0], -file.tell()), 1)
    return getattr(file, name)(*arguments)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("shape", SHAPES)
@given(st.lists(step, max_size=12))
def test_reads_and_seeks_as_gzip_does(shape: str, steps: list[tuple[Any, ...]]) -> None:
    with LMFile(io.BytesIO(SHAPES[shape]())) as ours, gzip.open(io.BytesIO(gzip.compress(TEXT))) as theirs:
        for name, *arguments in steps:
            assert do(ours, name, *arguments) == do(theirs, name, *arguments)
            assert ours.tell() == theirs.tell()
            assert theirs.peek(1)[:1] == ours.peek(1)[:1]
        at = ours.tell()
        assert TEXT[at:].startswith(ours.read1(50))
        assert TEXT[ours.tell() :].startswith(ours.read1())
        buffer = bytearray(10)
        at = ours.tell()
        assert TEXT[at : at + ours.readinto1(buffer)] == buffer[: ours.tell() - at]


@pytest.mark.parametrize("shape", SHAPES)
def test_reads_from_what_cannot_seek(shape: str) -> None:
    for source in (Pipe(SHAPES[shape]()), io.BufferedReader(Pipe(SHAPES[shape](), 7))):
        with LMFile(source) as file:  # type: ignore[arg-type]
            assert not file.seekable()
            assert file.read(10) == TEXT[:10]
            with pytest.raises(io.UnsupportedOperation):
                file.seek(0)
            assert file.read() == TEXT[10:]
            assert file.tell() == len(TEXT)
            assert file.read() == file.read(5) == b""


def test_seek_decodes_only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = DeflateEngine.decode

    def noted(self: DeflateEngine, payload: bytes, nbytes: int) -> bytes:
        data = decode(self, payload, nbytes)
        decoded.append(TEXT.index(data) // KIB)
        return data

    monkeypatch.setattr(DeflateEngine, "decode", noted)
    monkeypatch.setattr("lmcodec.file.READ_NBYTES", 10)
    monkeypatch.setattr("lmcodec.codec.decompressor.READ_NBYTES", 10)
    plain: dict[int, list[int]] = {
        9000: [8],
        9001: [],
        3: [0],
        5 * KIB: [5],
        5 * KIB + 20: [],
        6 * KIB + 5: [6],
    }
    solid = {3000: [0, 1, 2], 9 * KIB + 3: [3, 4, 5, 6, 7, 8, 9], 7000: [0, 1, 2, 3, 4, 5, 6]}
    for seeks in (plain, solid):
        with LMFile(io.BytesIO(compress(TEXT, block_size=KIB, solid=seeks is solid)), threads=1) as file:
            assert file.seek(0, 2) == len(TEXT)
            assert file.read() == b""
            assert decoded == []
            for offset, blocks in seeks.items():
                assert file.seek(offset) == offset
                assert file.read(2) == TEXT[offset : offset + 2]
                assert decoded == blocks
                decoded.clear()

    def slow(self: DeflateEngine, payload: bytes, nbytes: int) -> bytes:
        decoded.append(0)
        time.sleep(0.005)
        return decode(self, payload, nbytes)

    # Several threads look ahead, but not while the reader jumps about.
    monkeypatch.setattr(DeflateEngine, "decode", slow)
    with LMFile(io.BytesIO(compress(TEXT, block_size=KIB)), threads=8) as file:
        for offset in [9000, 100, 5000] * 5:
            file.seek(offset)
            assert file.read(2) == TEXT[offset : offset + 2]
    assert len(decoded) <= 2 * 15


def test_seek_past_damage() -> None:
    """A damaged block is no obstacle to reading others, where an index tells where they are."""
    packed = bytearray(compress(TEXT, block_size=KIB))
    info = frame_info(packed)
    assert info.blocks is not None
    packed[info.header_nbytes + info.blocks[0].nbytes + 30] ^= 1  # in the second block
    with LMFile(io.BytesIO(packed)) as file:
        with pytest.raises(Corrupt, match="block 2"):
            file.read()
        with pytest.raises(ValueError, match="failed and cannot go on"):
            file.read()
        file.seek(2 * KIB)
        assert file.read() == TEXT[2 * KIB :]
        file.seek(0)
        assert file.read1(KIB) == TEXT[:KIB]


def test_a_damaged_index_is_not_followed() -> None:
    packed = bytearray(compress(TEXT, block_size=KIB))
    packed[-14] ^= 1
    with LMFile(io.BytesIO(packed)) as file:
        file.seek(5 * KIB)
        assert file.read(5) == TEXT[5 * KIB :][:5]
        with pytest.raises(Corrupt, match="index"):
            file.seek(0, 2)


def test_an_index_inside_a_stored_block_is_not_followed() -> None:
    """A compressed file compressed again ends like one that has an index."""
    inner = compress(NOISE, block_size=KIB)
    outer = compress(inner)
    (block,) = frame_info(outer).blocks or ()
    assert block.method == 1
    for packed, content in ((outer, inner), (compress(TEXT, block_size=KIB) + outer, TEXT + inner)):
        with LMFile(io.BytesIO(packed)) as file:
            assert file.seek(0, 2) == len(content)
            file.seek(7)
            assert file.read() == content[7:]


def test_frames_that_start_inside_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcodec.file.READ_NBYTES", 10)
    for packed in (compress(TEXT, block_size=KIB), compress(TEXT)):
        source = io.BytesIO(b"something else" + packed)
        source.seek(14)
        with LMFile(source) as file:
            assert file.read(5) == TEXT[:5]
            for offset in (5000, 0):
                file.seek(offset)
                assert file.read(5) == TEXT[offset : offset + 5]


def test_seek_arguments() -> None:
    with LMFile(io.BytesIO(compress(TEXT))) as file:
        for offset, whence in ((-1, 0), (-1, 1), (-len(TEXT) - 1, 2)):
            with pytest.raises(ValueError, match="before the start"):
                file.seek(offset, whence)
        with pytest.raises(ValueError):
            file.seek(0, 5)
        assert file.seek(10**9) == len(TEXT)


# Writing


@pytest.mark.parametrize("mode", ["w", "wb", "x", "xb", "a", "ab"])
def test_modes_that_write(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.lmz"
    for name in (path, str(path), os.fsencode(path)):
        with LMFile(name, mode) as file:
            assert file.writable()
            assert not file.readable()
            assert not file.seekable()
            assert file.mode == "wb"
            assert os.fspath(file.name) == os.fspath(name)
            assert file.fileno() > 2
            assert file.write(memoryview(TEXT)[:100]) == 100
            assert file.tell() == 100
            for call in (
                file.read,
                file.readline,
                file.peek,
                file.read1,
                lambda f=file: f.seek(0),
                file.__next__,
            ):
                with pytest.raises(io.UnsupportedOperation):
                    call()
            with pytest.raises(TypeError, match="bytes-like object is needed, not str"):
                file.write("text")
            file.writelines([b"a\n", b"b\n"])
        assert path.read_bytes() == compress(TEXT[:100] + b"a\nb\n")
        path.unlink()
    with LMFile(path, mode):
        pass
    assert path.read_bytes() == compress(b"")
    if mode[0] == "x":
        with pytest.raises(FileExistsError):
            LMFile(path, mode)
    elif mode[0] == "a":
        with LMFile(path, mode) as file:
            file.write(b"more")
        assert decompress(path.read_bytes()) == b"more"


@given(st.lists(st.binary(max_size=2000) | st.sampled_from(["block", "frame"]), max_size=8), st.booleans())
def test_writes_and_flushes(steps: list[bytes | str], solid: bool) -> None:
    target, data = io.BytesIO(), b""
    with LMFile(target, "w", block_size=KIB, solid=solid) as file:
        for step in steps:
            if isinstance(step, bytes):
                file.write(step)
                data += step
            elif step == "block":
                file.flush()
                assert read_cut(target.getvalue()) == data
            else:
                file.flush(LMFile.FLUSH_FRAME)
                assert not data or decompress(target.getvalue()) == data
    assert decompress(target.getvalue()) == data
    if "block" not in steps and "frame" not in steps:
        unsized = Compressor(block_size=KIB, solid=solid)
        assert target.getvalue() == unsized.compress(data) + unsized.flush()


def read_cut(packed: bytes) -> bytes:
    """What can be read of a file that is still being written."""
    pieces: list[bytes] = []
    with LMFile(io.BytesIO(packed)) as file, contextlib.suppress(EOFError):
        pieces.extend(iter(lambda: file.read1(500), b""))
    return b"".join(pieces)


def test_flush_writes_nothing_where_nothing_is_new() -> None:
    target = io.BytesIO()
    file = LMFile(target, "w")
    file.flush()
    file.write(b"")
    file.flush()
    assert target.getvalue() == b""
    file.write(b"abc")
    file.flush()
    before = target.getvalue()
    file.flush()
    assert target.getvalue() == before
    file.flush(LMFile.FLUSH_FRAME)
    before = target.getvalue()
    file.flush(LMFile.FLUSH_FRAME)
    file.write(b"")
    file.close()
    assert target.getvalue() == before
    assert decompress(before) == b"abc"


def test_an_exception_in_a_with_block_ends_the_frame_as_gzip_does() -> None:
    def fail(file: Any) -> None:
        with file:
            file.write(b"so far")
            raise KeyError

    ours, theirs = io.BytesIO(), io.BytesIO()
    for file in (LMFile(ours, "w"), gzip.GzipFile(fileobj=theirs, mode="w")):
        with pytest.raises(KeyError):
            fail(file)
    assert decompress(ours.getvalue()) == gzip.decompress(theirs.getvalue()) == b"so far"


class Full(io.RawIOBase):
    """A raw file that takes a few bytes at a time, and fails once when it has taken some."""

    def __init__(self, room: int) -> None:
        self.taken, self.room = bytearray(), room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.room <= 0:
            self.room = 10**9
            raise OSError(errno.ENOSPC, "No space left on device")
        n_written = min(7, len(data))
        self.taken += data[:n_written]
        self.room -= n_written
        return n_written


def test_a_raw_file_may_take_less_than_it_is_given() -> None:
    target = Full(10**9)
    with LMFile(target, "w") as file:  # type: ignore[arg-type]
        file.write(TEXT)
    assert decompress(target.taken) == TEXT


def test_a_failed_write_leaves_a_cut_file() -> None:
    target = Full(100)
    file = LMFile(target, "w", block_size=KIB)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space"):
        file.write(TEXT)
    with pytest.raises(ValueError, match=r"cannot go on \(OSError.*No space"):
        file.write(TEXT)
    file.close()
    with pytest.raises(Truncated):
        decompress(target.taken)


def test_a_failed_encoder_leaves_a_cut_file(monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.BytesIO()
    with LMFile(target, "w", block_size=KIB) as file:
        file.write(TEXT)
        monkeypatch.setattr(DeflateEngine, "encode", None)
        with pytest.raises(TypeError):
            file.write(TEXT)
    with pytest.raises(Truncated):
        decompress(target.getvalue())


# Opening and closing


def test_closing() -> None:
    for mode in ("r", "w"):
        inner = io.BytesIO(compress(b"abc"))
        file = LMFile(inner, mode)
        assert not file.closed
        file.close()
        file.close()
        assert file.closed
        assert not inner.closed
        for call in (
            file.read,
            file.tell,
            file.flush,
            file.readable,
            file.seekable,
            file.fileno,
        ):
            with pytest.raises(ValueError, match="closed file"):
                call()
        with pytest.raises(ValueError, match="closed file"):
            _ = file.name
        with pytest.raises(ValueError, match="closed file"):
            file.write(b"")
        with pytest.raises(ValueError, match="closed file"), file:
            pass


def test_files_opened_here_are_closed_here(tmp_path: Path) -> None:
    path = tmp_path / "a.lmz"
    path.write_bytes(compress(TEXT))
    for mode in ("r", "a"):
        file = LMFile(path, mode)
        descriptor = file.fileno()
        file.close()
        with pytest.raises(OSError):
            os.fstat(descriptor)
    with path.open("rb") as inner:
        with LMFile(inner) as file:
            assert file.name == str(path)
            assert file.fileno() == inner.fileno()
        assert not inner.closed


def test_wrong_arguments(tmp_path: Path) -> None:
    for mode in ("", "rw", "rt", "r+", "br", "z"):
        with pytest.raises(ValueError, match="mode must be"):
            LMFile(io.BytesIO(), mode)
    for what in (5, None, object()):
        with pytest.raises(TypeError, match="file must be a path"):
            LMFile(what)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level must be"):
        LMFile(tmp_path / "a.lmz", "w", level=10)
    assert not (tmp_path / "a.lmz").exists()
    path = tmp_path / "b.lmz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="max_output must be"):
        LMFile(path, max_output=-1)
    with pytest.raises(FileNotFoundError):
        LMFile(tmp_path / "none.lmz")
    for arguments in ({"encoding": "utf-8"}, {"errors": "strict"}, {"newline": "\n"}):
        with pytest.raises(ValueError, match="makes no sense in binary mode"):
            lmcodec.open(path, "rb", **arguments)
    with pytest.raises(ValueError, match="not both"):
        lmcodec.open(path, "rbt")
    with pytest.raises(TypeError):
        lmcodec.open(path, "r", max_outptu=1)


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "a.lmz"
    lines = "Größe\nтекст\n"
    with lmcodec.open(path, "wt", encoding="utf-8", newline="\n") as file:
        file.write(lines)
    # Closing text must not cost a block.
    assert path.read_bytes() == compress(lines.encode())
    with lmcodec.open(path, "at", encoding="utf-16-le", newline="\r\n", level=1) as file:
        file.write("a\n")
    assert lmcodec.open(path).read() == lines.encode() + "a\r\n".encode("utf-16-le")
    with lmcodec.open(path, "rt", encoding="utf-8", errors="replace") as file:
        assert [next(file), next(file)] == ["Größe\n", "текст\n"]
    with pytest.raises(LookupError):
        lmcodec.open(path, "rt", encoding="no such")


def test_the_surface_of_gzip() -> None:
    ours = set(dir(LMFile))
    not_ours = {"filename", "fileobj", "myfileobj", "mtime", "max_read_chunk", "rewind"}
    assert {name for name in dir(gzip.GzipFile) if not name.startswith("_")} - ours <= not_ours


# Damage and limits


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_file_is_an_eoferror(shape: str) -> None:
    packed = SHAPES[shape]()
    ends = {info.offset for info in codec.scan(io.BytesIO(packed))}
    for length in [*range(0, len(packed), 13), len(packed) - 1]:
        with LMFile(io.BytesIO(packed[:length])) as file:
            if length in ends and length:
                file.read()
                continue
            with pytest.raises(EOFError, match=f"ends at offset {length}, inside") as caught:
                file.read()
            assert isinstance(caught.value, Truncated)
            with pytest.raises(EOFError):
                file.read()


def test_every_flipped_bit_shows_or_does_not_matter() -> None:
    data = TEXT[: 2 * KIB] + NOISE[:50]
    packed = compress(data, block_size=KIB)
    for bit in range(0, 8 * len(packed), 3):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        for offset in (0, KIB + 5):
            with LMFile(io.BytesIO(damaged)) as file, contextlib.suppress(LmcodecError):
                file.seek(offset)
                at = file.tell()
                assert data[at:].startswith(file.read1(700))
                assert file.read() == data[file.tell() :] or file.tell() == len(data)


def test_what_is_no_frame() -> None:
    with LMFile(io.BytesIO(gzip.compress(TEXT))) as file, pytest.raises(BadMagic, match="1F 8B 08"):
        file.read()
    packed = compress(TEXT)
    with LMFile(io.BytesIO(packed + b"garbage")) as file:
        assert file.read(len(TEXT)) == TEXT
        with pytest.raises(BadMagic, match=f"offset {len(packed)}"):
            file.read()


def test_limits() -> None:
    packed = compress(TEXT, block_size=KIB)
    with LMFile(io.BytesIO(packed), max_output=len(TEXT) - 1) as file, pytest.raises(LimitExceeded):
        file.read()
    with LMFile(io.BytesIO(packed * 2), max_output=2 * len(TEXT)) as file:
        for offset in (0, len(TEXT) + 5000, 100):
            file.seek(offset)
            assert file.read() == (TEXT * 2)[offset:]
    with LMFile(io.BytesIO(packed), memory_limit=KIB) as file, pytest.raises(LimitExceeded):
        file.read()


def test_a_nonblocking_source_is_refused() -> None:
    class Empty(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> None:
            return None

    with LMFile(Empty()) as file, pytest.raises(BlockingIOError):  # type: ignore[arg-type]
        file.read()
