"""What outlives its use: no engine after errors, no thread after the interpreter, no work after a limit."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stress
from test_lm_codec import TEXT, model, model_file  # noqa: F401

import lmcodec
from lmcodec import _kernel, codec, engine
from lmcodec.cli.lmz import main
from lmcodec.codec import Compressor, Decompressor, compress, decompress
from lmcodec.engine import Engine, LmEngine
from lmcodec.errors import Corrupt, LimitExceeded, LmcodecError, Truncated
from lmcodec.file import LMFile
from lmcodec.lm.store import Model
from lmcodec.measure.bpb import Meter, bits_per_byte

KIB = 1024
LONG = b"".join(b"%d bottles of beer on the wall\n" % (i * i) for i in range(40_000))  # 1.3 MB


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def block_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lmcodec block"]


# Engines that are still there


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[Any]]:
    """Those alive, while the garbage collector is off."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def watched(plain: Callable[..., None]) -> Callable[..., None]:
        def noted(self: Any, *arguments: Any) -> None:
            plain(self, *arguments)
            alive.add(self)

        return noted

    for kind in (engine.Engine, engine.LmEngine):
        monkeypatch.setattr(kind, "__init__", watched(kind.__init__))
    gc.collect()
    gc.disable()
    yield alive
    gc.enable()


def damaged(packed: bytes, at: float) -> bytes:
    changed = bytearray(packed)
    changed[int(at * len(changed))] ^= 0x55
    return bytes(changed)


def all_of(decompressor: Decompressor, packed: bytes) -> None:
    for at in range(0, len(packed), 100):
        while not decompressor.needs_input and not decompressor.eof:
            decompressor.decompress(b"", 50)
        if decompressor.eof:
            return
        decompressor.decompress(packed[at : at + 100], 50)
    while not decompressor.eof and not decompressor.needs_input:
        decompressor.decompress(b"", 1000)


def lines_of(packed: bytes, how: dict[str, Any]) -> None:
    for _ in lmcodec.open(io.BytesIO(packed), "rt", encoding="latin-1", **how):
        pass


READERS: dict[str, Callable[[bytes, dict[str, Any]], object]] = {
    "decompress": lambda packed, how: decompress(packed, **how),
    "Decompressor": lambda packed, how: all_of(Decompressor(**how), packed),
    "LMFile": lambda packed, how: LMFile(io.BytesIO(packed), **how).read(),
    "seek": lambda packed, how: LMFile(io.BytesIO(packed), **how).seek(0, io.SEEK_END),
    "lines": lines_of,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", ["cm", "lm+cm"])
def test_no_engine_outlives_an_error_of_reading(
    engines: weakref.WeakSet[Any],
    model_file: Path,  # noqa: F811
    reader: str,
    threads: int,
    method: str,
) -> None:
    """Although the errors are kept, with all that their tracebacks know."""
    how: dict[str, Any] = {"model": model_file, "threads": threads}
    packed = compress(
        TEXT * 3, method=method, model=model_file if "lm" in method else None, block_size=2 * KIB
    )
    kept = []
    assert len(engines) == 0
    frames = [damaged(packed, at) for at in (0.2, 0.5, 0.9, 0.999)]
    frames += [packed[: len(packed) // 2], packed + b"no frame"]
    for frame in frames:
        try:
            READERS[reader](frame, how)
        except LmcodecError as error:
            kept.append(error)
        assert len(engines) == 0
    limits: list[dict[str, Any]] = [{"max_output": 3 * KIB}, {"max_ratio": 1.01}, {"max_cpu_seconds": 1e-9}]
    for limit in limits:
        try:
            READERS[reader](packed, how | limit)
        except LimitExceeded as error:
            kept.append(error)
        assert len(engines) == 0
    assert len(kept) >= 7 or reader == "seek"  # which finds the end by the index
    wait_for(lambda: not block_threads())


class Full(io.RawIOBase):
    """A file that takes one piece."""

    n = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.n += 1
        if self.n > 1:
            raise OSError(28, "No space left on device")
        return len(data)


def write_to_full() -> None:
    with LMFile(Full(), "w", level=2, block_size=KIB, threads=2) as file:  # type: ignore[arg-type]
        for _ in range(20):
            file.write(TEXT)


def write_too_much() -> None:
    compressor = Compressor(2, block_size=KIB, threads=3, content_size=len(TEXT))
    compressor.compress(TEXT)
    compressor.compress(TEXT)


def leave() -> None:
    with LMFile(io.BytesIO(), "w", level=2, block_size=KIB, threads=3) as file:
        file.write(TEXT)
        raise KeyError("the caller's own")


WRITERS: dict[str, Callable[[], object]] = {
    "full disk": write_to_full,
    "content_size": write_too_much,
    "the caller's own": leave,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_engine_outlives_an_error_of_writing(engines: weakref.WeakSet[Any], writer: str) -> None:
    with pytest.raises((OSError, ValueError, KeyError)) as raised:
        WRITERS[writer]()
    assert raised.value.__traceback__ is not None
    assert len(engines) == 0
    wait_for(lambda: not block_threads())


class OutOfMemoryError(MemoryError):
    pass


@pytest.mark.parametrize(
    "call", ["compress", "decompress", "surprisal", "bits_per_byte", "Meter", "network only"]
)
def test_no_engine_outlives_an_error_from_within(
    engines: weakref.WeakSet[Any],
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    packed = compress(TEXT, method="lm+cm", model=model_file)
    text_bits = {"model": model_file, "block_size": 2 * KIB}
    meter = Meter(6, **text_bits)  # type: ignore[arg-type]
    calls: dict[str, Callable[[], object]] = {
        "compress": lambda: compress(TEXT, 6, **text_bits),  # type: ignore[arg-type]
        "decompress": lambda: decompress(packed, model=model_file),
        "surprisal": lambda: lmcodec.surprisal(TEXT, 6, **text_bits),  # type: ignore[arg-type]
        "bits_per_byte": lambda: bits_per_byte(TEXT, 6, **text_bits),  # type: ignore[arg-type]
        "Meter": lambda: meter.measure([TEXT]),
        "network only": lambda: bits_per_byte(TEXT, 6, network_only=True, **text_bits),  # type: ignore[arg-type]
    }

    def fails(*_: Any) -> Any:
        raise OutOfMemoryError("no room")

    kept = []
    for name in ("encode", "decode", "trace"):
        with monkeypatch.context() as patch:
            patch.setattr(engine.LmEngine, name, fails)
            try:
                calls[call]()
            except OutOfMemoryError as error:
                kept.append(error)
                assert len(engines) == 0
    assert kept
    wait_for(lambda: not block_threads())


def test_an_error_of_ours_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(engine.Engine, "encode", fails)
    with pytest.raises(ZeroDivisionError) as raised:
        compress(TEXT, 2)
    assert "in fails" in str(raised.value.__cause__)


def test_who_drops_an_object_stops_its_threads() -> None:
    started = [Compressor(2, block_size=512 * KIB, threads=2) for _ in range(2)]
    for compressor in started:
        compressor.compress(LONG)
    assert block_threads()
    began = time.thread_time()
    started.clear()
    del compressor
    wait_for(lambda: not block_threads())
    assert time.thread_time() - began < 60


MEMORY = """
import gc, os, sys, lmcodec
gc.disable()
level, n = int(sys.argv[1]), int(sys.argv[2])
text = b"".join(b"%d bottles of beer on the wall, %d of wine\\n" % (i * i, i) for i in range(60))
packed = lmcodec.compress(text, level)
kept = []

def decode(i):
    changed = bytearray(packed)
    at = 20 + i % (len(changed) - 20)
    changed[at] ^= 1 + i % 255
    try: lmcodec.decompress(changed[: len(changed) - i % 3 * 20], threads=2)
    except lmcodec.LmcodecError as error: kept.append(error)

def state():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20, len(os.listdir("/proc/self/task"))

for i in range(5): decode(i)
first, most = state(), [0, 0]
for i in range(5, 5 + n):
    decode(i)
    most = [max(pair) for pair in zip(most, state())]
assert len(kept) > 0.9 * n
print(most[0] - first[0], most[1] - first[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("n", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_decodes_take_constant_memory(level: int, n: int) -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-c", MEMORY, str(level), str(n)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    grown, threads = map(int, run.stdout.split())
    assert grown < 20 + n // 50  # MiB; an engine of these levels has 20 to 70
    assert threads <= 1  # one that is ending


@pytest.mark.parametrize("direction", ["compress", "decompress"])
@pytest.mark.parametrize("at", ["before", "after"])
def test_an_interrupt_while_a_thread_starts_leaves_nothing(
    engines: weakref.WeakSet[Any], monkeypatch: pytest.MonkeyPatch, direction: str, at: str
) -> None:
    """Although the thread may be there and nobody was told; the error is kept."""
    data = LONG[: 256 * KIB]
    packed = compress(data, 2, block_size=64 * KIB)
    start = threading.Thread.start
    begun: list[threading.Thread] = []

    def interrupted(self: threading.Thread) -> None:
        if len(begun) == 1:
            begun.append(self)
            if at == "after":
                start(self)
            raise KeyboardInterrupt
        begun.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    began = time.monotonic()
    work: Callable[[], object] = partial(compress, data, 2, block_size=64 * KIB, threads=2)
    if direction == "decompress":
        work = partial(decompress, packed, threads=2)
    with pytest.raises(KeyboardInterrupt) as raised:
        work()
    monkeypatch.undo()
    assert raised.value.__traceback__ is not None
    for thread in begun[: 1 + (at == "after")]:
        thread.join(30)
    assert not block_threads()
    assert len(engines) == 0
    assert time.monotonic() - began < 30
    known = [codec.pipeline.Job._at_work[thread] for thread in begun if thread in codec.pipeline.Job._at_work]
    assert all(flag.is_set for flag in known)  # it is waited for at the interpreter's end


def test_kept_errors_keep_no_readers() -> None:
    packed = compress(TEXT * 3, 1, block_size=2 * KIB)
    kept = []
    gc.disable()
    try:
        alive: weakref.WeakSet[Any] = weakref.WeakSet()
        init = Decompressor.__init__
        for at in (0.2, 0.5, 0.9):
            with pytest.MonkeyPatch.context() as patch:

                def noted(self: Decompressor, **how: Any) -> None:
                    init(self, **how)
                    alive.add(self)

                patch.setattr(Decompressor, "__init__", noted)
                try:
                    decompress(damaged(packed, at), threads=2)
                except LmcodecError as error:
                    kept.append(error)
        assert len(kept) == 3
        assert len(alive) == 0
    finally:
        gc.enable()


# Cancelling

ENGINES: dict[str, Callable[[Model], Engine | LmEngine]] = {
    "cm": lambda m: Engine(2),
    "cm, 2 streams": lambda m: Engine(1, 2, 2),
    "lm+cm": lambda m: LmEngine(m, 1),
    "lm+cm, 8 streams": lambda m: LmEngine(m, 1, 8, 2),
    "lm": lambda m: LmEngine(m, None, 3),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("helped", [False, True], ids=["alone", "helped"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_cancelled_engine_stops(model: Model, name: str, helped: bool, direction: str) -> None:  # noqa: F811
    """In the midst of a call of the kernel, and it can be used again after a reset."""
    made = ENGINES[name](model)
    made.helped = helped
    payload = made.encode(TEXT)
    made.reset()
    flag = made.cancel = _kernel.Cancel()
    coder = made._loop
    if direction == "decode":
        out = np.zeros(len(TEXT), np.uint8)
        words = np.frombuffer(payload, np.uint8)
        if isinstance(coder, _kernel.TokenLoop):
            coder.begin_decode(out, words, helped)
        else:
            coder.begin(len(TEXT))
            coder.load(words)
    elif isinstance(made, LmEngine):
        made._begin_encode(TEXT)
    else:
        made._loop.begin(len(TEXT))
    flag.set()
    bits, p16 = np.zeros(1 << 20, np.uint8), np.zeros(1 << 20, np.uint16)
    code: Callable[[], object]
    if isinstance(coder, _kernel.TokenLoop):
        code = partial(coder.decode, 1 << 20) if direction == "decode" else partial(coder.encode, bits, p16)
    elif direction == "decode":
        code = partial(coder.decode, out, 1 << 20)
    else:
        code = partial(coder.encode, np.frombuffer(TEXT, np.uint8), bits, p16)
    with pytest.raises(_kernel.Cancelled):
        code()
    made.reset()
    with pytest.raises(_kernel.Cancelled):
        made.encode(TEXT) if direction == "encode" else made.decode(payload, len(TEXT))
    made.reset()
    made.cancel = None
    assert made.encode(TEXT) == payload
    made.reset()
    assert made.decode(payload, len(TEXT)) == TEXT


@pytest.mark.parametrize("helped", [False, True], ids=["alone", "helped"])
def test_an_engine_is_cancelled_from_another_thread(model: Model, helped: bool) -> None:  # noqa: F811
    for make in ENGINES.values():
        made = make(model)
        made.helped = helped
        flag = made.cancel = _kernel.Cancel()
        outcome: list[object] = []

        def work(made: Engine | LmEngine = made, outcome: list[object] = outcome) -> None:
            try:
                for _ in range(1000):
                    made.reset()
                    made.encode(LONG)
            except _kernel.Cancelled as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)
        flag.set()
        thread.join(30)
        assert len(outcome) == 1


# The interpreter's end


@pytest.mark.parametrize("name", stress.PROGRAMS)
def test_a_program_ends_in_the_midst_of_its_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(LONG[: 30 * KIB])
    code = f"DATA = open('data', 'rb').read(); LEVEL = 1; DELAY = 0.1\n{stress.PROGRAMS[name]}"
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-I", "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            encoding="utf-8",
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


AFTERWARDS = """
import atexit, sys
def work():
    packed = lmcodec.compress(b"end " * 2000, 2, threads=3, block_size=1024)
    print(lmcodec.decompress(packed)[:4].decode())
atexit.register(work)  # runs after all that the package registers
import lmcodec, lmcodec.codec
if sys.argv[1] == "used": work()

"""


@pytest.mark.parametrize("before", ["unused", "used"])
def test_blocks_are_coded_while_the_interpreter_ends(before: str) -> None:
    """By exit handlers that run after the package's own."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", AFTERWARDS, before],
        capture_output=True,
        text=True,
        timeout=60,
        encoding="utf-8",
    )
    times = {"unused": 1, "used": 2}[before]
    assert (run.returncode, run.stdout, run.stderr) == (0, "end \n" * times, "")


FORKED = """
import os, sys, lmcodec
left = lmcodec.Compressor(2, block_size=1 << 17, threads=2)
begun = left.compress(bytes(range(256)) * 4096)  # blocks are at work
child = os.fork()
data = b"in both " * 2000
assert lmcodec.decompress(lmcodec.compress(data, 2, block_size=1024, threads=2)) == data
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert lmcodec.decompress(begun + left.flush()) == bytes(range(256)) * 4096
else:
    try: left.flush()
    except RuntimeError as error: assert "forked" in str(error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_ends_too() -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-c", FORKED], capture_output=True, text=True, timeout=60, encoding="utf-8"
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_without_a_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be none, blocks are coded in the thread that asks."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    expected = compress(TEXT, 2, block_size=KIB)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert compress(TEXT, 2, block_size=KIB, threads=3) == expected
    assert decompress(expected, threads=3) == TEXT


@pytest.mark.slow
def test_stress() -> None:
    folder = Path(stress.__file__).parent
    run = subprocess.run(
        [sys.executable, str(folder / "stress.py"), "--minutes", "5"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout + run.stderr


# Limits of work

DEAR = compress(bytes(200_000), 2)  # few bytes that hold many


def test_max_ratio() -> None:
    ratio = 200_000 / len(DEAR)
    for decode in READERS.values():
        decode(DEAR, {"max_ratio": 1.01 * ratio})
    for decode in (READERS[name] for name in ("decompress", "Decompressor", "LMFile", "lines")):
        with pytest.raises(
            LimitExceeded, match=r"block 1 at offset \d+: .* 200000 bytes in .*raise max_ratio"
        ):
            decode(DEAR, {"max_ratio": 0.9 * ratio})
    ordinary = compress(TEXT, 2)
    # Of all frames so far together, so that a long text may hold some zeros.
    assert decompress(ordinary * 20 + DEAR, max_ratio=0.2 * ratio) == TEXT * 20 + bytes(200_000)
    with pytest.raises(LimitExceeded, match="max_ratio"):
        decompress(DEAR + ordinary * 20, max_ratio=0.2 * ratio)


def test_max_ratio_is_looked_at_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Engine", None)
    with pytest.raises(LimitExceeded):
        decompress(DEAR, max_ratio=100)


def test_max_cpu_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decompress(DEAR, max_cpu_seconds=1000) == bytes(200_000)
    for decode in (READERS[name] for name in ("decompress", "Decompressor", "LMFile", "lines")):
        with pytest.raises(LimitExceeded, match=r"block 1 at offset \d+: .* 0.001 seconds .*max_cpu_seconds"):
            decode(DEAR, {"max_cpu_seconds": 0.001})
    # It is one limit for all frames and threads.
    n_slice = 0

    def thread_time() -> float:
        nonlocal n_slice
        n_slice += 1
        return n_slice / 1000

    monkeypatch.setattr(time, "thread_time", thread_time)
    packed = compress(TEXT, 2)
    decompress(packed, max_cpu_seconds=0.5)
    spent = n_slice / 1000
    assert decompress(packed * 5, max_cpu_seconds=6 * spent)
    with pytest.raises(LimitExceeded, match="block 1 at offset"):
        decompress(packed * 5, max_cpu_seconds=3 * spent)


@pytest.mark.parametrize("name", ["max_ratio", "max_cpu_seconds"])
def test_limits_that_make_no_sense(name: str) -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            decompress(DEAR, **{name: wrong})  # type: ignore[arg-type]
    for other in ("1", True, b""):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            Decompressor(**{name: other})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["--max-ratio", "--max-cpu-seconds"])
def test_limits_of_the_command(option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zeros.lmz"
    path.write_bytes(DEAR)
    for arguments, status in (([option, "1e6"], 0), ([option, "1e-3"], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["-t", *arguments, str(path)])
        assert ended.value.code == status
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"raise {option} if you trust" in said


def test_a_limit_hit_by_a_block_that_was_looked_ahead() -> None:
    """Bytes before it are given out first, where they are asked for in pieces."""
    compressor = Compressor(2, block_size=4 * KIB)
    packed = compressor.compress(LONG[: 20 * KIB]) + compressor.flush()
    decompressor = Decompressor(threads=2, max_output=10 * KIB)
    out = b""
    while len(out) < 8 * KIB:
        out += decompressor.decompress(packed if not out else b"", 100)
    assert out == LONG[: 8 * KIB]
    with pytest.raises(LimitExceeded):
        decompressor.decompress(b"", 100)
    with pytest.raises(ValueError, match="failed and cannot go on"):
        decompressor.decompress(b"")


def test_a_chain_that_lost_its_engine_is_refused() -> None:
    packed = compress(LONG[: 24 * KIB], 2, block_size=4 * KIB, solid=True)
    end = len(packed) // 2
    source = io.BytesIO(packed[:end])
    reader = codec.FrameReader(source.read, threads=1)
    with pytest.raises(Truncated):
        reader.read()
    source = io.BytesIO(packed[end:])
    reader._read = source.read
    with pytest.raises(LmcodecError) as raised:
        reader.read()
    assert not isinstance(raised.value, Corrupt)
