"""Laws of frames that are cut or damaged, and the engine that tests of everything around engines use."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lmcodec.codec import Decompressor, decompress
from lmcodec.errors import Corrupt, LmcodecError, Truncated


class DeflateEngine:
    """Stands in for lmcodec.engine.Engine: deflate, with what was coded since `reset` as its dictionary.

    A block that is decoded without what it continues comes out wrong, as with the real engine.
    """

    def __init__(self, profile: int, streams: int = 1, groups: int = 1, enlarge: int = 0) -> None:
        assert profile in (1, 2, 3)
        assert 1 <= groups <= streams <= 4
        self._history = b""
        self._lock = threading.Lock()

    def reset(self, tables_nbytes: int = 0) -> None:
        self._history = b""

    def encode(self, data: bytes | memoryview) -> bytes:
        with self._alone():
            with_history = {"zdict": self._history} if self._history else {}
            deflate = zlib.compressobj(level=1, wbits=-15, **with_history)  # type: ignore[arg-type]
            self._history = (self._history + bytes(data))[-32768:]
            return deflate.compress(data) + deflate.flush()

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytes:
        with self._alone():
            with_history = {"zdict": self._history} if self._history else {}
            try:
                data = zlib.decompressobj(wbits=-15, **with_history).decompress(payload, nbytes)
            except zlib.error as error:
                raise Corrupt(str(error)) from None
            self._history = (self._history + data)[-32768:]
            return data

    @contextmanager
    def _alone(self) -> Iterator[None]:
        assert self._lock.acquire(blocking=False), "two threads in one engine"
        try:
            yield
        finally:
            self._lock.release()


def deflate_memory_nbytes(
    profile: int,
    block_nbytes: int,
    streams: int = 1,
    chained: bool = False,
    enlarge: int = 0,
    tables_nbytes: int = 0,
    encoding: bool = False,
) -> int:
    return (1 << 20) + 3 * block_nbytes


def in_pieces(data: bytes, *, piece: int, max_length: int = -1) -> bytes:
    """What Decompressor makes of frames that come `piece` bytes at a time.

    Raises:
        Truncated: if the data ends before the frame does.
        LmcodecError: with what had been given out before in `given_out`.
    """
    out = b""
    at = 0
    try:
        while at < len(data) or not out:
            decompressor = Decompressor(threads=2)
            while not decompressor.eof:
                got = b""
                if decompressor.needs_input:
                    got = data[at : at + piece]
                    at += len(got)
                    if not got:
                        raise Truncated("")
                given = decompressor.decompress(got, max_length)
                assert max_length < 0 or len(given) <= max_length
                out += given
            at -= len(decompressor.unused_data)
            if at == len(data):
                break
    except LmcodecError as error:
        error.given_out = out  # type: ignore[attr-defined]
        raise
    return out


def _outcome(decode: Callable[[bytes], bytes], data: bytes, original: bytes) -> bytes | None:
    """What `decode` returns, None for an error; in either case no byte it gave out is another one."""
    try:
        return decode(data)
    except LmcodecError as raised:
        error = raised
    assert original.startswith(getattr(error, "given_out", b""))
    assert "\n" not in str(error)
    return None


DECODERS: list[Callable[[bytes], bytes]] = [
    decompress,
    lambda data: in_pieces(data, piece=7, max_length=50),
]


def check_corrupt(
    *frames: tuple[bytes, bytes], decoders: Sequence[Callable[[bytes], bytes]] = DECODERS
) -> None:
    """The law: frames, one after another, each with its original, decode to nothing else when damaged.

    Every flipped bit gives an error or the original. Every cut gives an error, or, where a frame ends, what
    the frames before it hold.
    """
    data = b"".join(packed for packed, _ in frames)
    original = b"".join(content for _, content in frames)
    ends: dict[int, bytes] = {}
    for i in range(len(frames)):
        whole = frames[: i + 1]
        ends[sum(len(packed) for packed, _ in whole)] = b"".join(content for _, content in whole)
    for decode in decoders:
        assert decode(data) == original
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            assert _outcome(decode, bytes(damaged), original) in (None, original), f"bit {bit}"
        for length in range(len(data)):
            assert _outcome(decode, data[:length], original) == ends.get(length), f"cut at {length}"
