"""Bytes to frames and back: compress, decompress, Compressor, Decompressor, frame_info, scan.

It cuts the original into blocks, hands them to engines, chooses each block's method and keeps the order;
what the bytes of a frame mean is in `frame`, how a block is coded in `engine`. The surface is that of
compression.zstd in Python 3.14.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from operator import index as as_int
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple

from lmcodec import ending, frame
from lmcodec.errors import (
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    TrailingData,
    Truncated,
)
from lmcodec.frame import Block, Flag, FrameHeader, FrameWalk, Method
from lmcodec.lm import store
from lmcodec.lm.store import FilePath, Model

if TYPE_CHECKING:
    from types import TracebackType

    from lmcodec import _kernel
    from lmcodec.engine import Engine, LmEngine


class Level(NamedTuple):
    """How a level codes a block that the caller says nothing else about.

    Attributes:
        profile: of method cm.
        models: shipped models by name; the first that is there competes with method cm.
        model_profile: of the model's profiles, the last one if it has fewer.
        enlarge: slot tables take up to 2^enlarge times the profile's size.
        stream_nbytes: with a language model, a block has a stream for so many bytes, a power of two of
            streams. Streams make decoding faster and cost a little size.
        streams: with a language model, at most.
        second_stream_nbytes: without one, a block of so many bytes has a second stream: while the processor
            waits for what one needs, it works on the other. 0: none has.
    """

    profile: int
    models: tuple[str, ...] = ()
    model_profile: int = 1
    enlarge: int = 0
    stream_nbytes: int = 64 << 10
    streams: int = 16
    second_stream_nbytes: int = 0


LEVELS = (
    {1: Level(3, second_stream_nbytes=512 << 10), 2: Level(2)}
    | {level: Level(2, ("small",)) for level in range(3, 6)}
    | {
        6: Level(2, ("base", "small"), 2),
        7: Level(2, ("base", "small"), 2, enlarge=1, stream_nbytes=256 << 10, streams=4),
        8: Level(2, ("base", "small"), 2, enlarge=2, stream_nbytes=1 << 20, streams=2),
        9: Level(2, ("base", "small"), 2, enlarge=3, streams=1),
    }
)
DEFAULT_LEVEL = 6

# With a language model, a block of as many streams has two groups: while the network steps one, the other is
# coded. Fewer streams a group would waste more of the products than that gains.
LM_GROUPED_STREAMS = 8

# What a caller may ask for instead of what makes a block smallest.
METHODS = {"stored": Method.STORED, "cm": Method.CM, "lm+cm": Method.LM_CM, "lm": Method.LM}
AUTO = "auto"

DEFAULT_BLOCK_NBYTES = 4 << 20
MIN_BLOCK_NBYTES = 1 << 10
MAX_STREAMS = {Method.STORED: 128, Method.CM: 4, Method.LM_CM: 128, Method.LM: 128}

# Which of two methods makes a block smaller is seen by coding it with both, which takes longer than decoding
# it. Pieces of a larger block than SAMPLED_NBYTES, one after another, a sixteenth of it but not more than
# SAMPLES of them, tell first. They favour the language model, which knows at once what context models learn
# in time: where these need LM_CLEAR times its bytes or more (LM_CLEAR_LARGE in a block of more than
# LARGE_NBYTES, which gives them longer) they never caught up, and where they need at most CM_CLEAR times as
# many they always won (benchmarks/NOTES.md). In between both are tried, and text that context models get
# below REPETITIVE_BPB in the pieces (records, logs) has a quarter of the streams: it repeats what came just
# before, which lockstep streams cannot see of each other.
SAMPLED_NBYTES = 64 << 10
SAMPLE_SHARE = 16
SAMPLE_NBYTES = 4 << 10
SAMPLES = 16
LM_CLEAR = 1.28
LM_CLEAR_LARGE = 1.35
LARGE_NBYTES = 1 << 20
CM_CLEAR = 1.03
REPETITIVE_BPB = 1.6

# A flush ends a block. Where that is small, the blocks after it continue it, so that nothing of what was
# learned is lost. Such a chain has the tables of a block of CHAIN_NBYTES. It ends before it holds more than
# that, or more than a block may: what lies in it is decoded from its start. In a chain a block of up to
# CHAIN_GROWS_NBYTES is coded even where that makes it a little larger: to store it would end the chain.
CHAIN_NBYTES = 1 << 20
CHAIN_GROWS_NBYTES = 1 << 10

# A block of a chain that is as small is coded at once: a thread would take longer to start.
SMALL_NBYTES = 1 << 10

# What the engines of one object may take together where the caller sets neither threads nor a limit.
ENCODE_BUDGET_NBYTES = 1 << 30
DECODE_BUDGET_NBYTES = 100 << 20

READ_NBYTES = 128 << 10


def _number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` if it is a whole number in range.

    Raises:
        TypeError, ValueError
    """
    try:
        value = as_int(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be {bounds}, not {value}")
    return value


def _optional(name: str, value: Any, low: int, high: int | None = None) -> int | None:
    return None if value is None else _number(name, value, low, high)


def _positive(name: str, value: Any) -> float:
    """`value` if it is a number above 0.

    Raises:
        TypeError, ValueError
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return float(value)


def byte_view(data: Any) -> memoryview:
    """The bytes of any object with the buffer protocol, in C order; copied only if they are not contiguous.

    Raises:
        TypeError: if `data` is not such an object.
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is needed, not {type(data).__name__}") from None
    if view.nbytes == 0:
        return memoryview(b"")  # cast refuses a shape with a zero
    try:
        return view.cast("B")
    except (TypeError, NotImplementedError):
        return memoryview(view.tobytes())


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Blocks at work


class _Coder(NamedTuple):
    """How a block is coded: what makes an engine."""

    method: Method
    profile: int
    streams: int
    groups: int
    model: Model | None = None
    enlarge: int = 0
    may_thin: bool = False

    def thinned(self) -> _Coder:
        """With a quarter of the streams, where their number is the codec's choice."""
        if not self.may_thin:
            return self
        streams = max(self.streams // 4, 1)
        return self._replace(streams=streams, groups=min(self.groups, lm_groups(streams)))

    def block(
        self,
        original_nbytes: int,
        payload_nbytes: int,
        last: bool,
        continues: bool,
        chain: _Chain | None = None,
    ) -> Block:
        """The header of a block that is coded so."""
        return Block(
            self.method,
            original_nbytes,
            payload_nbytes,
            self.profile,
            self.streams,
            self.groups,
            last=last,
            continues=continues,
            enlarge=self.enlarge,
            chained=chain is not None,
            tables_log2=chain.tables_log2 if chain is not None and not continues else 0,
        )

    def memory_nbytes(
        self, block_nbytes: int, chained: bool, encoding: bool = False, tables_nbytes: int = 0
    ) -> int:
        from lmcodec import engine

        nbytes, streams = block_nbytes, self.streams
        if self.model is None:
            return engine.memory_nbytes(self.profile, nbytes, streams, chained, self.enlarge, tables_nbytes)
        profile = self.profile or None
        return engine.lm_memory_nbytes(
            self.model, profile, nbytes, streams, chained, encoding, self.enlarge, tables_nbytes
        )

    def engine(self) -> Engine | LmEngine:
        from lmcodec import engine
        from lmcodec.lm import isa

        shape = self.streams, self.groups, self.enlarge
        instead: dict[str, Any] = {} if isa.is_usable() else {"isa": ""}
        if self.model is None:
            return engine.Engine(self.profile, *shape, **instead)
        return engine.LmEngine(self.model, self.profile or None, *shape, **instead)


_Key = tuple[_Coder, ...]


class _Chain(NamedTuple):
    """Blocks that a flush ended, of which each continues the one before."""

    tables_log2: int


_Encoded = tuple[Block, bytes]  # and what its header and its payload are, packed

# A block that is the same as the one before it is not coded again if its payload is so much smaller than
# itself: where bytes repeat that long, blocks may.
REPEAT_SHARE = 64


# What a byte costs with a language model, where one without costs 1: for how far a block is, nothing else.
LM_COST = 3.0


class _Meter:
    """What part of a block's work is done, trials included; any thread may ask, and it never falls."""

    def __init__(self) -> None:
        self._total = self._done = self._share = 0.0
        self._parts: list[tuple[Engine | LmEngine, float]] = []  # engines at work, what a byte costs them

    def expect(self, key: _Key, nbytes: int) -> None:
        """From here on, these coders are to code so many bytes each, and no more."""
        for engine, cost in self._parts:
            self._done += engine.position * cost
        self._parts = []  # an engine that made a trial is kept no longer than that
        self._total = self._done + nbytes * sum(map(self._cost, key))

    @staticmethod
    def _cost(coder: _Coder) -> float:
        return 1.0 if coder.model is None else LM_COST

    def follow(self, coder: _Coder, engine: Engine | LmEngine) -> None:
        engine.position = 0
        self._parts.append((engine, self._cost(coder)))

    @property
    def share(self) -> float:
        """From 0 to 1."""
        if self._total:
            done = self._done + sum(engine.position * cost for engine, cost in self._parts)
            self._share = max(self._share, min(done / self._total, 1.0))
        return self._share


class _Seat:
    """Engines of the coders in `key`; each is made in the thread that first uses it.

    A block that continues no other is coded the same wherever it is. Where one comes again right after
    itself, the engines are in the state that coding it leaves already, for one that continues it.

    Attributes:
        cancel: the flag of the job that uses the engines, which stops them; None outside of a job.
        encoded: what the last block was encoded from, and the result; None if it is not kept.
        meter: of the block at work.
    """

    def __init__(self, key: _Key, cancel: _kernel.Cancel | None = None, meter: _Meter | None = None) -> None:
        self.key = key
        self.cancel = cancel
        self.meter = meter or _Meter()
        self._engines: dict[_Coder, Engine | LmEngine] = {}
        self.encoded: tuple[tuple[object, ...], _Encoded] | None = None
        self._decoded: tuple[tuple[object, ...], bytes] | None = None

    def engine(
        self, coder: _Coder, continues: bool, alone: bool = False, tables_nbytes: int = 0
    ) -> Engine | LmEngine:
        engine = self._engines.get(coder)
        if engine is None:
            for other in [c for c in list(self._engines) if c.method == coder.method]:
                del self._engines[other]  # of other streams: its tables are not counted twice
            engine = self._engines[coder] = coder.engine()
            if tables_nbytes and not continues:
                engine.reset(tables_nbytes)
        elif not continues:
            engine.reset(tables_nbytes)
        engine.helped = alone
        engine.cancel = self.cancel
        self.meter.follow(coder, engine)
        return engine

    def decode(
        self,
        coder: _Coder,
        block: Block,
        payload: bytes,
        alone: bool,
        allowance: Allowance | None = None,
    ) -> bytes | bytearray:
        """The original of a payload.

        Raises:
            Corrupt
            LimitExceeded: it took more processor time than the allowance had left.
        """
        nbytes, continues = block.original_nbytes, block.continues
        source = coder, nbytes, block.tables_log2, payload
        if not continues and self._decoded is not None and self._decoded[0] == source:
            return self._decoded[1]
        self._decoded = None
        spend = None if allowance is None else allowance.meter()
        self.meter.expect((coder,), nbytes)
        engine = self.engine(coder, continues, alone, block.tables_nbytes)
        engine.between_calls = spend
        original = engine.decode(payload, nbytes)
        if spend is not None:
            spend()
        if not continues and len(payload) * REPEAT_SHARE <= nbytes:
            self._decoded = source, bytes(original)
        return original


class Allowance:
    """Processor time that decoding may take, of all threads that decode blocks together.

    Args:
        seconds: of processor time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._left = seconds, seconds
        self._lock = threading.Lock()

    def meter(self) -> Callable[[], None]:
        """For one thread, which calls the result now and then: it takes what has been spent since.

        The result raises LimitExceeded once nothing is left.
        """
        last = time.thread_time()

        def spend() -> None:
            nonlocal last
            now = time.thread_time()
            with self._lock:
                self._left -= now - last
                exceeded = self._left < 0
            last = now
            if exceeded:
                raise LimitExceeded(
                    f"decoding took more than the limit of {self._seconds:g} seconds of processor time; "
                    "raise max_cpu_seconds if you trust the data"
                )

        return spend


class BlockError(Exception):
    """Where an error in a block's thread came from: its cause, as text, for whoever looks for our bug."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _without_frames(error: BaseException) -> BaseException:
    """`error`, no longer tied to the calls it came through.

    An error's traceback keeps alive all that these calls worked with, engines of many megabytes among them,
    for as long as the error is kept. Errors that input causes say where they are; of others, which are bugs,
    a text is kept.
    """
    if not isinstance(error, (LmcodecError, MemoryError, KeyboardInterrupt)):
        import traceback

        lines = traceback.format_exception(type(error), error, error.__traceback__)
        error.__cause__ = BlockError("".join(lines).rstrip())
    else:
        error.__cause__ = None
    error.__context__ = None
    return error.with_traceback(None)


def _outcome(work: Callable[..., Any], seat: _Seat | None) -> tuple[Any, BaseException | None]:
    """What `work` returns, or what it raises."""
    try:
        return (work() if seat is None else work(seat)), None
    except BaseException as error:
        return None, _without_frames(error)


class _Job:
    """One block at work, in a thread of its own if it has a seat and there can be a thread.

    The thread is a daemon, so that the interpreter does not wait for a block's tens of seconds when it ends:
    it waits for the short time that the thread takes to see that it is cancelled (`end_all`).

    Args:
        cancel: the flag of the job that this one is a part of.
        threaded: whether a thread of its own is worth its while.
    """

    _at_work: ClassVar[dict[threading.Thread, Any]] = {}  # and their flags; some have ended
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _closed: ClassVar[bool] = False  # the interpreter ends: no more threads

    def __init__(
        self,
        work: Callable[..., Any],
        nbytes: int,
        seat: _Seat | None,
        cancel: _kernel.Cancel | None = None,
        threaded: bool = True,
    ) -> None:
        self.nbytes, self.seat = nbytes, seat
        self._work: Callable[..., Any] | None = work
        self.meter: _Meter | None = None if seat is None else seat.meter
        self.original_nbytes = self.coded_nbytes = 0  # of the block, for how far it is
        self._value: Any = None
        self._error: BaseException | None = None
        self.failed = False
        self._ended = threading.Event()  # joining a thread is not safe against KeyboardInterrupt
        self._thread: threading.Thread | None = None
        self._cancel: _kernel.Cancel | None = cancel
        if seat is not None and cancel is None:
            from lmcodec import _kernel

            seat.cancel = self._cancel = _kernel.Cancel()
        if seat is None or not threaded or not self._start():
            self._run()

    def _start(self) -> bool:
        """Start the thread; False if there can be none.

        Raises:
            RuntimeError: if the interpreter ends, and this is a thread of ours. A program's daemon thread
                does not return then.
        """
        thread = threading.Thread(target=self._run, name="lmcodec block", daemon=True)
        self._stay_if_ending()
        with self._lock:
            if self._closed:
                if threading.current_thread() is threading.main_thread():
                    return False
                raise RuntimeError("lmcodec cannot code a block while the interpreter ends")
            for ended in [other for other in self._at_work if not other.is_alive()]:
                del self._at_work[ended]
            try:
                thread.start()
            except RuntimeError:
                return False
            self._at_work[thread] = self._cancel
        self._thread = thread
        return True

    def _run(self) -> None:
        assert self._work is not None
        self._value, self._error = _outcome(self._work, self.seat)
        self.failed = self._error is not None
        self._work = None
        self._ended.set()

    @property
    def done(self) -> bool:
        # In the child of a fork there is no thread that could say so.
        return self._ended.is_set() or (self._thread is not None and not self._thread.is_alive())

    def cancel(self) -> None:
        """Let the work end soon, with an error, if it has not ended."""
        if self._cancel is not None:
            self._cancel.set()

    def wait_for(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def wait(self) -> None:
        while not self.done:
            self._ended.wait(1.0)  # Windows lets Ctrl-C through only between timed waits

    def result(self) -> Any:
        """What the work returned, or its error raised; to be asked for once."""
        self.wait()
        self.seat = self.meter = None
        if not self._ended.is_set():
            raise RuntimeError(
                "the block was at work when the process was forked: it goes on in the parent only"
            )
        error, self._error = self._error, None
        if error is not None:
            self._stay_if_ending()
            try:
                raise error
            finally:
                del error
        value, self._value = self._value, None
        return value

    def _stay_if_ending(self) -> None:
        """Hold a program's daemon thread whose block was cancelled because the interpreter ends.

        Its work is over, and an error of ours would be printed by a program that ends as it should.
        """
        if not self._closed or threading.current_thread() is threading.main_thread():
            return
        if threading.current_thread() not in self._at_work:
            while True:
                time.sleep(3600)

    @classmethod
    def end_all(cls) -> None:
        """Cancel all threads and wait for their end, before the interpreter's.

        A thread that came back from the kernel later would end the process in the midst of its own end.
        """
        with cls._lock:
            cls._closed = True
            at_work = dict(cls._at_work)
        for cancel in at_work.values():
            cancel.set()
        for thread in at_work:
            thread.join()

    @classmethod
    def after_fork(cls) -> None:
        """In the child of a fork, where no other thread is."""
        cls._lock = threading.Lock()
        cls._at_work = {}


ending.register(_Job.end_all, _Job.after_fork, first=True)


class _Pipeline:
    """Blocks at work, oldest first, and the engines they use.

    Args:
        threads: blocks at work at once, at most; None for the CPUs there are.
        budget: bytes that the blocks at work may need together; one may always be.
    """

    def __init__(self, threads: int | None, budget: int | None) -> None:
        self.threads = threads or available_cpus()
        self._budget = budget
        self._jobs: deque[_Job] = deque()
        self._seats: list[_Seat] = []
        self._latest: _Seat | None = None
        self._ahead = self.threads  # blocks at work at once for the moment
        self.allowance: Allowance | None = None  # of all frames that are decoded with these engines
        self._position_lock = threading.Lock()
        self._begun_original = self._begun_coded = 0  # bytes of all blocks that were started

    def __del__(self) -> None:
        for job in self._jobs:  # nobody wants them any more
            job.cancel()

    @property
    def n_at_work(self) -> int:
        return len(self._jobs)

    @property
    def oldest_done(self) -> bool:
        return self._jobs[0].done

    @property
    def oldest_failed(self) -> bool:
        """Waits for the oldest block's end."""
        self._jobs[0].wait()
        return self._jobs[0].failed

    def wait(self, seconds: float) -> None:
        """Wait until the oldest block is done, but no longer than that."""
        self._jobs[0].wait_for(seconds)

    def _limit(self, nbytes: int) -> int:
        """How many blocks may be at work if one of them needs `nbytes`."""
        if self._budget is None:
            return self._ahead
        most = max([nbytes, 1, *(job.nbytes for job in self._jobs)])
        return max(1, min(self._ahead, self._budget // most))

    def room(self, nbytes: int, continues: bool = False, has_model: bool = False) -> bool:
        """Whether a block that needs `nbytes` may start; one that continues another waits for its end.

        A block with a language model has work for two threads: two such blocks on two threads would be no
        faster, and take twice the memory.
        """
        if not self._jobs:
            return True
        return (
            not continues and not (has_model and self.threads == 2) and len(self._jobs) < self._limit(nbytes)
        )

    @property
    def idle(self) -> bool:
        """Whether the next block finds no other at work, and threads that could help with it."""
        return self.threads > 1 and not self._jobs

    def start(
        self,
        work: Callable[..., Any],
        nbytes: int = 0,
        key: _Key | None = None,
        continues: bool = False,
        original_nbytes: int = 0,
        coded_nbytes: int = 0,
        threaded: bool = True,
    ) -> None:
        """Call `work` with a seat for `key`, or without one if that is None, and then at once.

        Args:
            original_nbytes, coded_nbytes: of the block, for `position`.
            threaded: in a thread of its own; otherwise at once as well.
        """
        if key is not None and not continues:
            self._latest = self._free_seat(key, nbytes)
        elif key is not None and self._latest is None:
            raise LmcodecError("a block continues one whose engine was dropped after an error; start anew")
        if key is not None and self._latest is not None:
            self._latest.meter = _Meter()
        job = _Job(work, nbytes, self._latest if key is not None else None, threaded=threaded)
        job.original_nbytes, job.coded_nbytes = original_nbytes, coded_nbytes
        with self._position_lock:
            self._jobs.append(job)
            self._begun_original += original_nbytes
            self._begun_coded += coded_nbytes

    def pass_over(self, coded_nbytes: int) -> None:
        """Count bytes of the coded side that are no block to decode."""
        with self._position_lock:
            self._begun_coded += coded_nbytes

    @property
    def position(self) -> tuple[int, int]:
        """Original and coded bytes that are done, of the blocks at work in part; any thread may ask."""
        with self._position_lock:
            original, coded = float(self._begun_original), float(self._begun_coded)
            for job in self._jobs.copy():
                meter = job.meter
                rest = 0.0 if job.done or meter is None else 1.0 - meter.share
                original -= rest * job.original_nbytes
                coded -= rest * job.coded_nbytes
        return math.floor(original), math.floor(coded)

    def _free_seat(self, key: _Key, nbytes: int) -> _Seat:
        """A seat for `key`; drops those of no use, and those too many beside a block that needs `nbytes`."""
        busy = [job.seat for job in self._jobs if job.seat]
        free = [seat for seat in self._seats if seat.key == key and seat not in busy] or [_Seat(key)]
        self._seats = [*busy, *free[: max(self._limit(nbytes) - len(busy), 1)]]
        return free[0]

    def take(self) -> Any:
        """The oldest block's result. If its work failed, raises that error."""
        self._jobs[0].wait()
        result = self._jobs.popleft().result()
        self._ahead = min(self.threads, 2 * self._ahead)
        return result

    def clear(self) -> None:
        """Drop all blocks, and look less far ahead until some have been wanted: the caller jumps about."""
        for job in self._jobs:
            job.cancel()
        while self._jobs:
            job = self._jobs[0]
            job.wait()
            if job.failed and job.seat in self._seats:
                self._seats.remove(job.seat)  # its engine was stopped anywhere
            job.seat = job.meter = None
            self._jobs.popleft()
        self._ahead = 1

    def abandon(self) -> None:
        """Drop all blocks and all engines: what they hold is free, and no thread is at work, on return."""
        self._latest = None
        self._seats.clear()
        self.clear()


def _unless_repeated(encode: Callable[..., _Encoded]) -> Callable[..., _Encoded]:
    """`encode`, whose last argument is the seat, but for a block that is the same as the one before."""

    @wraps(encode)
    def encode_or_repeat(
        data: bytes,
        key: _Key,
        model_nbytes: int,
        last: bool,
        continues: bool,
        chain: _Chain | None,
        *more: Any,
    ) -> _Encoded:
        seat: _Seat = more[-1]
        source = data, key, model_nbytes, chain
        if not continues and seat.encoded is not None and seat.encoded[0] == source:
            block, packed = seat.encoded[1]
            block = replace(block, last=last)
            return block, block.pack(data, packed[len(packed) - block.payload_nbytes :])
        seat.encoded = None
        block, packed = encode(data, key, model_nbytes, last, continues, chain, *more)
        if not continues and block.payload_nbytes * REPEAT_SHARE <= len(data):
            seat.encoded = source, (block, packed)
        return block, packed

    return encode_or_repeat


@_unless_repeated
def _encode(
    data: bytes,
    key: _Key,
    model_nbytes: int,
    last: bool,
    continues: bool,
    chain: _Chain | None,
    alone: bool,
    seat: _Seat,
) -> tuple[Block, bytes]:
    """A block by the method of `key` that makes it smallest, or stored.

    Args:
        model_nbytes: what naming the model would cost the frame.
        chain: that the block begins or, if it continues another, is in.
        alone: no other block was at work when this one began: further threads may help. Changes no byte.
    """
    if len(key) > 1 and len(data) > SAMPLED_NBYTES:
        seat.meter.expect(key, len(data) + _sample_pieces(len(data)) * SAMPLE_NBYTES)
        key = _candidates(data, key, alone, seat)
    seat.meter.expect(key, len(data))
    block, payload, best = Block(Method.STORED, len(data), len(data), last=last), data, len(data)
    if chain is not None and len(data) <= CHAIN_GROWS_NBYTES:
        best += frame.CHAIN_SPARE_NBYTES
    tables_nbytes = 1 << chain.tables_log2 if chain else 0
    payloads = _payloads(data, key, continues, alone, seat, tables_nbytes)
    for coder, coded in zip(key, payloads, strict=True):
        cost = len(coded) + (model_nbytes if coder.model else 0)
        if cost < best:
            block, payload, best = coder.block(len(data), len(coded), last, continues, chain), coded, cost
    return block, block.pack(data, payload)


def _payloads(
    data: bytes, key: _Key, continues: bool, alone: bool, seat: _Seat, tables_nbytes: int = 0
) -> list[bytes]:
    """What each coder makes of `data`."""

    def payload(coder: _Coder, seat: _Seat) -> bytes:
        return seat.engine(coder, continues, alone, tables_nbytes).encode(data)

    if not alone:
        return [payload(coder, seat) for coder in key]
    others = [_Job(partial(payload, coder), 0, seat, seat.cancel) for coder in key[1:]]
    try:
        return [payload(key[0], seat), *(job.result() for job in others)] if key else []
    except BaseException:
        for job in others:
            job.cancel()
        for job in others:
            job.wait()
        raise


def _sample_pieces(nbytes: int) -> int:
    return min(max(nbytes // SAMPLE_SHARE // SAMPLE_NBYTES, 2), SAMPLES)


def _candidates(data: bytes, key: _Key, alone: bool, parent: _Seat) -> _Key:
    """Of two coders, the second with a model, those that may be the better one for a large block."""
    n_piece = _sample_pieces(len(data))
    last = len(data) - SAMPLE_NBYTES
    starts = [i * last // (n_piece - 1) for i in range(n_piece)]
    sample = b"".join(data[at : at + SAMPLE_NBYTES] for at in starts)
    key_of_sample = tuple(coder._replace(streams=1, groups=1, enlarge=0) for coder in key)
    seat = _Seat(key_of_sample, parent.cancel, parent.meter)
    without, beside = map(len, _payloads(sample, key_of_sample, False, alone, seat))
    if without <= CM_CLEAR * beside:
        return key[:1]
    if without >= (LM_CLEAR if len(data) <= LARGE_NBYTES else LM_CLEAR_LARGE) * beside:
        return key[1:]
    return tuple(coder.thinned() for coder in key) if 8 * without < REPETITIVE_BPB * len(sample) else key


def _decode(
    block: Block,
    payload: bytes,
    where: str,
    coder: _Coder | None = None,
    alone: bool = False,
    allowance: Allowance | None = None,
    seat: _Seat | None = None,
) -> bytes | bytearray:
    """The original of a block, checked."""
    original: bytes | bytearray
    if seat is None or coder is None:
        original = payload
    else:
        try:
            original = seat.decode(coder, block, payload, alone, allowance)
        except (Corrupt, LimitExceeded) as error:
            raise type(error)(f"{where}: {error}") from None
    check = block.compute_check(original, payload)
    if check != block.check or len(original) != block.original_nbytes:
        raise Corrupt(
            f"{where}: its check is {block.check:08X}, its data give {check:08X}; the data is damaged"
        )
    return original


class _Reusable:
    """What Compressor and Decompressor share: after an exception they refuse to go on."""

    _failure: str | None = None
    _pipeline: _Pipeline

    def _require_usable(self) -> None:
        if self._failure is not None:
            name = type(self).__name__
            raise ValueError(f"this {name} failed and cannot go on ({self._failure}); make another one")

    @property
    def usable(self) -> bool:
        """False after an exception."""
        return self._failure is None

    def unusable_if_this_fails(self) -> _UnusableAfterError:
        return _UnusableAfterError(self)

    def fail(self, error: BaseException) -> None:
        """Refuse to go on after `error`, and keep nothing: whoever keeps the error keeps this object."""
        self._failure = f"{type(error).__name__}: {error}".rstrip(": ")
        self._release()
        self._pipeline.abandon()

    def _release(self) -> None:
        """Drop the data that is held."""
        raise NotImplementedError


class _UnusableAfterError:
    """A context whose exceptions make an object unusable."""

    def __init__(self, owner: _Reusable) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._owner.fail(error)


# Compressing


class Compressor(_Reusable):
    """Compresses data that comes in pieces; the frame does not depend on where these are cut.

    A frame's header is written with its first block: what fits one block gets neither index nor content size.
    After an exception the object is unusable. Not for several threads at once.

    Args:
        level: 1 (fast) to 9.
        block_size: bytes of the original in a block, 1 KiB to 16 MiB; 4 MiB if None.
        threads: blocks coded at once; None for one a CPU, fewer if their memory would exceed 1 GiB. Two
            share a block with a language model. The frame does not depend on it.
        solid: let each block continue the one before it: smaller, but one thread and no random access.
        content_size: bytes that the first frame will hold, to be said in its header if it has several blocks.
        streams: lockstep streams a block, 1 to 4, with a language model to 128; by the block's size if None.
        groups: 1 or 2, at most `streams`; None for what the level does. With a language model, two can be
            decoded in two threads.
        model: the language model of levels 3 to 9, by a shipped model's name or as a model file; by default
            the one that LMCODEC_MODEL names, else the level's.
        method: `auto` for the one that makes a block smallest of those that the level has; or the only one to
            use: `cm` (context models), `lm+cm` (a language model beside them), `lm` (a language model alone)
            or `stored`. What it does not make smaller is stored.

    Raises:
        TypeError, ValueError: if an argument is out of range, or a model is given for, or a method asks for
            one of, a level or method that uses none.
        ModelNotFound: if there is no such model.
        ConfigError: if LMCODEC_ISA names no instruction set of this machine.
    """

    CONTINUE = 0
    FLUSH_BLOCK = 1
    FLUSH_FRAME = 2

    def __init__(
        self,
        level: int = DEFAULT_LEVEL,
        *,
        block_size: int | None = None,
        threads: int | None = None,
        solid: bool = False,
        content_size: int | None = None,
        streams: int | None = None,
        groups: int | None = None,
        model: FilePath | None = None,
        method: str = AUTO,
    ) -> None:
        if os.environ.get("LMCODEC_ISA"):
            from lmcodec.lm import isa

            isa.require()
        self._plan = LEVELS[_number("level", level, min(LEVELS), max(LEVELS))]
        self._method = _method(method)
        if not self._plan.models and (self._method or Method.END) >= Method.LM_CM:
            raise ValueError(f"level {as_int(level)} uses no language model: it cannot use method {method}")
        uses_model = bool(self._plan.models) and self._method not in (Method.STORED, Method.CM)
        if model is not None and not uses_model:
            which = f"method {method}" if self._plan.models else f"level {as_int(level)}"
            raise ValueError(f"{which} uses no language model: model makes no sense with it")
        self._source = store.default(model, self._plan.models) if uses_model else None
        if self._source is None and (self._method or Method.END) >= Method.LM_CM:
            raise ModelNotFound(f"method {method} needs a language model, and none is shipped or given")
        most = MAX_STREAMS[self._method or (Method.LM_CM if self._source else Method.CM)]
        self._streams = _optional("streams", streams, 1, most)
        self._groups = _optional("groups", groups, 1, 2)
        if groups is not None and groups > (self._streams or 1):
            raise ValueError(f"groups must be at most streams, not {groups} of {self._streams or 1}")
        self._block_nbytes = (
            _optional("block_size", block_size, MIN_BLOCK_NBYTES, frame.MAX_BLOCK_NBYTES)
            or DEFAULT_BLOCK_NBYTES
        )
        self._solid = bool(solid)
        threads = _optional("threads", threads, 1)
        if self._solid:
            threads = 1  # what a block continues is known when the one before it is coded
        self._pipeline = _Pipeline(threads, ENCODE_BUDGET_NBYTES if threads is None else None)
        self._begin(_optional("content_size", content_size, 0, (1 << 63) - 1))
        self._last_mode = self.FLUSH_FRAME

    def _begin(self, content_size: int | None = None) -> None:
        self._content_size = content_size
        self._taken_nbytes = 0
        self._pending = bytearray()
        self._walk: FrameWalk | None = None  # once the header is written
        self._chain: _Chain | None = None  # that the last block is in, if a flush began it
        self._chain_nbytes = 0  # of the block that the last one's chain began with; of all of `_chain`
        self._chain_key: _Key = ()  # what it had the choice of
        self._out: list[bytes] = []

    def _release(self) -> None:
        self._pending = bytearray()
        self._out = []

    @property
    def position(self) -> int:
        """Original bytes that are coded, of blocks at work the part that is done; any thread may ask."""
        return self._pipeline.position[0]

    @property
    def last_mode(self) -> int:
        """The mode of the last call; FLUSH_FRAME before the first, so that it means "no frame is open"."""
        return self._last_mode

    def compress(self, data: Any, mode: int = CONTINUE) -> bytes:
        """Take `data` (any buffer) and return what of the frame is ready.

        Args:
            mode: CONTINUE; FLUSH_BLOCK or FLUSH_FRAME for what `flush` does.

        Raises:
            ValueError: if there is more data than `content_size` said.
        """
        self._require_usable()
        if mode not in (self.CONTINUE, self.FLUSH_BLOCK, self.FLUSH_FRAME):
            raise ValueError(f"mode must be CONTINUE, FLUSH_BLOCK or FLUSH_FRAME, not {mode!r}")
        with byte_view(data) as view, self.unusable_if_this_fails():
            return self._compress(view, mode)

    def flush(self, mode: int = FLUSH_FRAME) -> bytes:
        """End the frame, or (FLUSH_BLOCK) the block so that all data so far decodes; return what is left.

        A block that a flush ended costs some ten bytes more than its data would have taken; the next one
        goes on from what was learned, until they hold 1 MiB or `block_size` together.

        Raises:
            ValueError: if the frame ends with less data than `content_size` said.
        """
        if mode not in (self.FLUSH_BLOCK, self.FLUSH_FRAME):
            raise ValueError(f"mode must be FLUSH_BLOCK or FLUSH_FRAME, not {mode!r}")
        return self.compress(b"", mode)

    def end_chain(self) -> None:
        """Let the next block be independent of the flushed ones before it."""
        self._chain = None

    def _compress(self, view: memoryview, mode: int) -> bytes:
        self._taken_nbytes += len(view)
        pledged, taken = self._content_size, self._taken_nbytes
        if pledged is not None and (taken > pledged or (mode == self.FLUSH_FRAME and taken < pledged)):
            raise ValueError(f"content_size said {pledged} bytes, got {taken}")
        at = 0
        # A full block waits until more data comes: it may be the last.
        while len(self._pending) + len(view) - at > self._block_nbytes:
            end = at + self._block_nbytes - len(self._pending)
            self._pending += view[at:end]
            at = end
            self._cut(last=False)
        self._pending += view[at:]
        if mode == self.FLUSH_BLOCK and self._pending:
            self._cut(last=False, flushed=True)
        if mode == self.FLUSH_FRAME:
            self._end()
        elif mode == self.FLUSH_BLOCK:
            self._drain()
        out = b"".join(self._out)
        if mode == self.FLUSH_FRAME:
            self._begin()
        else:
            self._out.clear()
        self._last_mode = mode
        return out

    @property
    def _model(self) -> Model | None:
        return None if self._source is None else store.load(self._source)

    def _header(self, several: bool, needs_model: bool = False) -> FrameWalk:
        """Write the header of a frame that has one block or several, unless it is there."""
        if self._walk is None:
            content_size = self._content_size if several else None
            model_id = self._model.frame_id if needs_model and self._model else None
            self._walk = FrameWalk(FrameHeader(content_size, model_id, has_index=several))
            self._out.append(self._walk.header.pack())
        return self._walk

    def _key(self, nbytes: int) -> _Key:
        """The coders to choose from for a block that continues no other."""
        plan, methods = self._plan, [self._method] if self._method else [Method.CM, Method.LM_CM]
        key: _Key = ()
        for method in methods:
            enlarge = plan.enlarge
            if method == Method.CM:
                wanted = self._streams or (2 if 0 < plan.second_stream_nbytes <= nbytes else 1)
                model, profile, streams = None, plan.profile, min(wanted, MAX_STREAMS[method])
            elif method == Method.STORED or self._model is None:
                continue
            else:
                model, profile = self._model, 0
                streams = self._streams or lm_streams(nbytes, plan)
                if method == Method.LM:
                    enlarge = 0
                else:
                    model.profile(1)  # refuses a model without one
                    profile = min(plan.model_profile, len(model.profiles))
            streams = min(streams, nbytes)
            groups = self._groups or (lm_groups(streams) if model else 1)
            may_thin = method == Method.LM_CM and self._streams is None and self._groups is None
            key += (_Coder(method, profile, streams, min(groups, streams), model, enlarge, may_thin),)
        return key

    def _cut(self, last: bool, flushed: bool = False) -> None:
        """Set the pending bytes to work as one block."""
        data = bytes(self._pending)
        self._pending.clear()
        key = self._key(len(data))
        if not last:
            self._header(several=True, needs_model=True)
        chained = self._solid or self._chain is not None
        tables_nbytes = self._tables_nbytes(len(data)) if flushed else 0
        nbytes = sum(c.memory_nbytes(len(data), chained, True, tables_nbytes) for c in key)
        while not self._pipeline.room(nbytes, has_model=any(coder.model for coder in key)):
            self._take()
        previous = self._continued(len(data), key)
        if previous is not None:
            key = (previous,)
            self._chain_nbytes += len(data) if self._chain and not self._solid else 0
        else:
            self._chain = _Chain(tables_nbytes.bit_length() - 1) if tables_nbytes else None
            self._chain_nbytes = tables_nbytes if self._solid and tables_nbytes else len(data)
            self._chain_key = key
        continues, chain = previous is not None, self._chain
        model_nbytes = 0 if self._walk is not None or self._source is None else _model_field_nbytes(key)
        small = chain is not None and len(data) <= SMALL_NBYTES
        alone = self._pipeline.idle and not small
        work = partial(_encode, data, key, model_nbytes, last, continues, chain, alone)
        self._pipeline.start(work, nbytes, key, continues, original_nbytes=len(data), threaded=not small)
        if not flushed and not self._solid:
            self._chain = None  # a block that no flush ended may still be at work when the next one begins

    def _tables_nbytes(self, nbytes: int) -> int:
        """What the tables of a chain are sized for that a flush begins with so many bytes; 0 for no chain."""
        if self._method in (Method.STORED, Method.LM):
            return 0  # they have no tables
        most = self._block_nbytes if self._solid else min(self._block_nbytes, CHAIN_NBYTES)
        return 1 << (most - 1).bit_length() if 2 * nbytes <= most else 0

    def _continued(self, nbytes: int, key: _Key) -> _Coder | None:
        """What coded the block before, if one of so many bytes, which by itself had `key`, continues it."""
        if not self._solid and self._chain is None:
            return None
        previous = self._previous_coder()
        if previous is None or previous.streams > nbytes:
            return None
        if self._solid:
            # A chain's tables are as large as its first block asks for.
            return previous if nbytes <= 4 * self._chain_nbytes else None
        if self._chain_nbytes + nbytes > min(self._block_nbytes, CHAIN_NBYTES):
            return None
        fits = [other.streams for c in key for other in (c, c.thinned()) if c.method == previous.method]
        return previous if previous.streams in fits else None

    def _previous_coder(self) -> _Coder | None:
        """What the block before was coded by, if another one may continue it."""
        previous = None if self._walk is None else self._walk.previous
        if previous is None:
            return None
        coders = [variant for coder in self._chain_key for variant in (coder, coder.thinned())]
        return next((c for c in coders if c.block(0, 0, False, False).coder == previous.coder), None)

    def _take(self) -> None:
        block, packed = self._pipeline.take()
        walk = self._header(several=False, needs_model=block.method >= Method.LM_CM)
        walk.admit(block, f"block {walk.n_block + 1}")
        self._out.append(packed)

    def _drain(self) -> None:
        while self._pipeline.n_at_work:
            self._take()

    def _end(self) -> None:
        if self._pending:
            self._cut(last=True)
            self._drain()
        else:
            self._drain()
            walk = self._header(several=False)
            end = Block(Method.END, last=True)
            walk.admit(end, "end block")
            self._out.append(end.pack())
        assert self._walk is not None
        self._out.append(self._walk.tail())


def lm_streams(nbytes: int, plan: Level = LEVELS[DEFAULT_LEVEL]) -> int:
    """Lockstep streams of a block of `nbytes` bytes with a language model."""
    return min(1 << max(nbytes // plan.stream_nbytes, 1).bit_length() - 1, plan.streams)


def lm_groups(streams: int) -> int:
    """Groups of a block of so many lockstep streams with a language model."""
    return 2 if streams >= LM_GROUPED_STREAMS else 1


def _method(name: Any) -> Method | None:
    """The method of that name, None for `auto`.

    Raises:
        TypeError, ValueError
    """
    if not isinstance(name, str):
        raise TypeError(f"method must be a str, not {type(name).__name__}")
    if name != AUTO and name not in METHODS:
        raise ValueError(f"method must be {AUTO}, {', '.join(METHODS)}, not {name!r}")
    return METHODS.get(name)


def _model_field_nbytes(key: _Key) -> int:
    """Bytes of the field of a frame's header that names the model."""
    return max((1 if c.model is None or c.model.number is not None else 9 for c in key), default=0)


def compress(
    data: Any,
    level: int = DEFAULT_LEVEL,
    *,
    block_size: int | None = None,
    threads: int | None = None,
    solid: bool = False,
    streams: int | None = None,
    groups: int | None = None,
    model: FilePath | None = None,
    method: str = AUTO,
) -> bytes:
    """Compress `data` (any buffer) to one frame.

    Args: see `Compressor`.

    Raises:
        TypeError, ValueError: as `Compressor`.
        LmcodecError: if the model is not there, damaged or not one to compress with.
    """
    with byte_view(data) as view:
        compressor = Compressor(
            level,
            block_size=block_size,
            threads=threads,
            solid=solid,
            content_size=len(view),
            streams=streams,
            groups=groups,
            model=model,
            method=method,
        )
        return compressor.compress(view, Compressor.FLUSH_FRAME)


# Decompressing


class Decompressor(_Reusable):
    """Decompresses one frame that comes in pieces; the result does not depend on where these are cut.

    After an exception the object is unusable. Not for several threads at once.

    Args:
        max_output: refuse a frame that holds more bytes.
        memory_limit: refuse a block that takes more bytes of memory to decode; use fewer threads to keep it.
        max_ratio: refuse a block by whose end the data would have grown to more than so many times the bytes
            that were read. Text seldom exceeds 10, logs and tables 100; 53 bytes can hold 4 MiB of zeros.
        max_cpu_seconds: give up when decoding has taken more processor time, that of all threads together. A
            helper thread's share of a block counts by the time that the block's thread works beside it.
        threads: blocks decoded at once; None for one a CPU, fewer where their memory would exceed 100 MiB.
            Two share a block with a language model.
        model: a model file, or a shipped model's name, for a frame whose model is not a shipped one; by
            default what LMCODEC_MODEL names. A frame that needs another model is refused.

    Raises:
        TypeError, ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        max_output: int | None = None,
        memory_limit: int | None = None,
        max_ratio: float | None = None,
        max_cpu_seconds: float | None = None,
        threads: int | None = None,
        model: FilePath | None = None,
    ) -> None:
        self._given_model = model
        self._model: Model | None = None  # once a block needed it
        self._max_output = _optional("max_output", max_output, 0)
        self._memory_limit = _optional("memory_limit", memory_limit, 0)
        threads = _optional("threads", threads, 1)
        budget = self._memory_limit
        if budget is None and threads is None:
            budget = DECODE_BUDGET_NBYTES
        self._pipeline = _Pipeline(threads, budget)
        if max_cpu_seconds is not None:
            self._pipeline.allowance = Allowance(_positive("max_cpu_seconds", max_cpu_seconds))
        self._max_ratio = None if max_ratio is None else _positive("max_ratio", max_ratio)
        self._lazy = False  # give out what is ready and wait for no block while there is room for another
        self._offset = 0  # of the next unread byte, in the data as the caller sees it
        self._before_nbytes = 0  # of output, in frames before this one
        self._input = bytearray()
        self._walk: FrameWalk | None = None  # once the header is read
        self._block: Block | None = None  # whose payload is not all there
        self._tail: bytes | None = None  # what must come, once the last block is read
        self._done = False  # nothing is left to parse
        self._starved = True  # nothing can be parsed without more input
        self._ready: deque[memoryview] = deque()
        self._ready_nbytes = 0
        self._eof = False
        self._unused = b""

    def _release(self) -> None:
        self._input = bytearray()
        self._ready.clear()
        self._ready_nbytes = 0

    @property
    def position(self) -> tuple[int, int]:
        """Bytes of the original and bytes of the input that are decoded; any thread may ask.

        Of blocks at work the part that is done counts.
        """
        return self._pipeline.position

    @property
    def eof(self) -> bool:
        """Whether the frame has ended and all of it has been given out."""
        return self._eof

    @property
    def needs_input(self) -> bool:
        """Whether `decompress` can give out nothing more before it gets more input."""
        blocked = self._pipeline.n_at_work and not self._lazy
        return not (self._eof or self._ready_nbytes or blocked) and self._starved and not self._done

    @property
    def unused_data(self) -> bytes:
        """What came after the end of the frame; empty before `eof`."""
        return self._unused

    def decompress(self, data: Any, max_length: int = -1) -> bytes:
        """Take `data` (any buffer); return up to `max_length` bytes of the original, or all if negative.

        What is not given out is kept: while `needs_input` is False, call again with b"".

        Raises:
            EOFError: after the frame's end.
            LmcodecError: if the data is not a frame, damaged, of another version, or beyond a limit. Nothing
                that the frame's checks do not cover is given out before.
        """
        self._require_usable()
        max_length = _number("max_length", max_length, -sys.maxsize)
        if self._eof:
            raise EOFError("the frame has ended; unused_data holds what came after it")
        with byte_view(data) as view, self.unusable_if_this_fails():
            self._input += view
            self._starved = False
            return self._produce(max_length)

    def _produce(self, max_length: int) -> bytes:
        want = sys.maxsize if max_length < 0 else max_length
        while self._ready_nbytes < want and (self._step() or self._take(max_length >= 0)):
            pass
        out = self._give(want)
        while not self._ready_nbytes and self._step(start=False):
            pass
        if self._done and not self._ready_nbytes and not self._pipeline.n_at_work:
            self._eof = True
            self._unused = bytes(self._input)
            self._input.clear()
        return out

    def _give(self, want: int) -> bytes:
        want = min(want, self._ready_nbytes)
        self._ready_nbytes -= want
        pieces = []
        while want:
            piece = self._ready.popleft()
            if len(piece) > want:
                self._ready.appendleft(piece[want:])
                piece = piece[:want]
            pieces.append(piece)
            want -= len(piece)
        return b"".join(pieces)

    def _take(self, called_again: bool) -> bool:
        """Wait for the oldest block at work; False if there is none or, lazily, no need yet.

        If it failed, and the caller will call again anyway, what is before it is given out first.
        """
        if not self._pipeline.n_at_work or (self._lazy and self._starved and not self._pipeline.oldest_done):
            return False
        if called_again and self._ready_nbytes and self._pipeline.oldest_failed:
            return False
        original = self._pipeline.take()
        self._ready.append(memoryview(original))
        self._ready_nbytes += len(original)
        return True

    def _step(self, start: bool = True) -> bool:
        """Parse one item; False if it needs more input, or is a block that may not start yet."""
        if self._done or self._starved:
            return False
        try:
            return self._parse(start)
        except LmcodecError as error:
            # It is raised when the blocks before it have been given out.
            self._pipeline.start(partial(_raise, _without_frames(error)))
            self._done = True
            return True

    def _parse(self, start: bool) -> bool:
        if self._walk is None:
            header = frame.parse_header(bytes(self._input[: frame.MAX_FRAME_HEADER_NBYTES]), self._offset)
            if header is not None:
                self._require_output(header.content_size or 0)
                self._walk = FrameWalk(header)
                self._consume(header.nbytes)
                return True
        elif self._tail is not None:
            found = bytes(self._input[: len(self._tail)])
            if found != self._tail[: len(found)]:
                raise Corrupt(
                    f"index at offset {self._offset}: does not agree with the blocks; the data is damaged"
                )
            if len(found) == len(self._tail):
                self._consume(len(found))
                self._done = True
                return True
        elif self._block is None:
            head = bytes(self._input[: frame.MAX_BLOCK_HEADER_NBYTES])
            has_model = self._walk.header.model_id is not None
            previous = self._walk.previous
            block = frame.parse_block(head, self._where(), has_model=has_model, previous=previous)
            if block is not None:
                self._admit(block)
                return True
        elif len(self._input) >= self._block.nbytes:
            return (start or self._block.method == Method.END) and self._start()
        self._starved = True
        return False

    def _where(self) -> str:
        assert self._walk is not None
        return f"block {self._walk.n_block + 1} at offset {self._offset}"

    def _require_output(self, nbytes: int) -> None:
        nbytes += self._before_nbytes
        if self._max_output is not None and nbytes > self._max_output:
            raise LimitExceeded(
                f"offset {self._offset}: the data holds at least {nbytes} bytes, the limit is "
                f"{self._max_output}; raise max_output if you trust it"
            )

    def _require_ratio(self, block: Block) -> None:
        assert self._walk is not None
        output = self._before_nbytes + self._walk.original_nbytes + block.original_nbytes
        taken = self._offset + block.nbytes
        if self._max_ratio is not None and output > self._max_ratio * taken:
            raise LimitExceeded(
                f"{self._where()}: the data up to its end holds {output} bytes in {taken}, the limit is "
                f"{self._max_ratio:g} times as many; raise max_ratio if you trust it"
            )

    def _admit(self, block: Block) -> None:
        assert self._walk is not None
        where = self._where()
        self._require_output(self._walk.original_nbytes + block.original_nbytes)
        self._require_ratio(block)
        try:
            need = self._need(block)
        except LmcodecError as error:
            raise type(error)(f"{where}: {error}") from None
        if self._memory_limit is not None and need > self._memory_limit:
            raise LimitExceeded(
                f"{where}: decoding it takes {need} bytes of memory, the limit is {self._memory_limit}; "
                "raise memory_limit"
            )
        self._walk.admit(block, where)
        self._block = block

    def _coder(self, block: Block) -> _Coder | None:
        """What decodes the block; None if nothing is needed.

        Raises:
            ModelNotFound: it needs a model that is neither shipped nor given.
            Unsupported: it is of an unknown method or profile.
        """
        if block.method < Method.CM:
            return None
        if block.method >= Method.LM_CM and self._model is None:
            assert self._walk is not None
            assert self._walk.header.model_id is not None
            self._model = store.for_frame(self._walk.header.model_id, self._given_model, self._memory_limit)
        model = self._model if block.method >= Method.LM_CM else None
        return _Coder(block.method, block.profile, block.streams, block.groups, model, block.enlarge)

    def _need(self, block: Block) -> int:
        coder = self._coder(block)
        if coder is None:
            return block.original_nbytes
        return coder.memory_nbytes(block.original_nbytes, block.continues, tables_nbytes=block.tables_nbytes)

    def _start(self) -> bool:
        """Set the block that is all there to work, if there is room."""
        block, walk = self._block, self._walk
        assert block is not None
        assert walk is not None
        need = self._need(block)
        if not self._pipeline.room(need, block.continues, block.method >= Method.LM_CM):
            return False
        payload = bytes(memoryview(self._input)[block.header_nbytes : block.nbytes])
        where = f"block {walk.n_block} at offset {self._offset}"
        coder = self._coder(block)
        key = None if coder is None else (coder,)
        self._consume(block.nbytes, is_block=True)
        self._block = None
        if walk.ended:
            self._tail = walk.tail()
        if block.method == Method.END:
            _decode(block, payload, where)
            self._pipeline.pass_over(block.nbytes)
        else:
            small = block.chained and block.original_nbytes <= SMALL_NBYTES
            alone = self._pipeline.idle and not small
            work = partial(_decode, block, payload, where, coder, alone, self._pipeline.allowance)
            sizes = {"original_nbytes": block.original_nbytes, "coded_nbytes": block.nbytes}
            self._pipeline.start(work, need, key, block.continues, threaded=not small, **sizes)
        return True

    def _consume(self, nbytes: int, is_block: bool = False) -> None:
        del self._input[:nbytes]
        self._offset += nbytes
        if not is_block:
            self._pipeline.pass_over(nbytes)

    def _truncated(self) -> Truncated:
        """The error to raise if no more input comes."""
        if self._walk is None:
            what = "a frame header"
        elif self._tail is not None:
            what = "the index"
        else:
            what = f"block {self._walk.n_block + (self._block is None)}"
        end = self._offset + len(self._input)
        return Truncated(f"the data ends at offset {end}, inside {what}; the rest of the file is missing")


def _raise(error: BaseException) -> None:
    raise error


class FrameReader:
    """Pulls frames from a source, one after another, and decodes them: what decompress and LMFile share.

    Args:
        read: called with a number of bytes, returns that many or fewer (any buffer), b"" at the end.
        ready: whether `read` returns without waiting for somebody to write. Where it does not, every block
            that is all there is given out before; where it does, blocks are read ahead. None: it always does.
        max_output, memory_limit, max_ratio, max_cpu_seconds, threads, model: as for `Decompressor`, but for
            all frames together.
    """

    def __init__(
        self,
        read: Callable[[int], Any],
        *,
        ready: Callable[[], bool] | None = None,
        max_output: int | None = None,
        memory_limit: int | None = None,
        max_ratio: float | None = None,
        max_cpu_seconds: float | None = None,
        threads: int | None = None,
        model: FilePath | None = None,
    ) -> None:
        self._read, self._ready = read, ready
        self._limits: dict[str, Any] = {
            "max_output": max_output,
            "memory_limit": memory_limit,
            "max_ratio": max_ratio,
            "max_cpu_seconds": max_cpu_seconds,
            "threads": threads,
            "model": model,
        }
        self._frame = self._open(0, 0)
        self._fresh = True  # not a byte of the frame has been read
        self._first = True  # no frame has ended
        self.original_offset = 0

    def _open(self, offset: int, original_offset: int, pipeline: _Pipeline | None = None) -> Decompressor:
        decompressor = Decompressor(**self._limits)
        if pipeline is not None:  # with its engines
            decompressor._pipeline = pipeline
        decompressor._offset, decompressor._before_nbytes = offset, original_offset
        decompressor._lazy = True
        return decompressor

    def jump(
        self,
        offset: int,
        original_offset: int,
        header: FrameHeader | None = None,
        entries: Collection[tuple[int, int]] | None = None,
    ) -> None:
        """Go on from elsewhere: the source stands at `offset`, the original there at `original_offset`.

        That is the start of a frame if `header` is None; otherwise of a block that continues no other, in a
        frame with this header, the blocks before it being those of `entries`.
        """
        pipeline = self._frame._pipeline
        pipeline.clear()
        before = sum(original_nbytes for _, original_nbytes in entries or [])
        self._frame = self._open(offset, original_offset - before, pipeline)
        self._first = offset == 0
        self._fresh = True
        if header is not None:
            self._frame._walk = FrameWalk.resumed(header, entries or [])
            self._fresh = False
        self.original_offset = original_offset

    @property
    def position(self) -> tuple[int, int]:
        """As `Decompressor.position`, of all frames."""
        return self._frame.position

    def _feed(self, data: bytes | memoryview, size: int) -> bytes:
        """Give data to the frame, without what is padding before it."""
        if self._fresh and not self._first:
            n_zero = len(data) - len(bytes(data).lstrip(b"\0"))
            self._frame._offset += n_zero
            data = data[n_zero:]
        if not len(data):
            return b""
        self._fresh = False
        return self._frame.decompress(data, size)

    def _must_wait(self) -> bool:
        """Whether a block at work must be given out before more is read, which could take for ever.

        Waits for the block then.
        """
        pipeline = self._frame._pipeline
        if self._ready is None:
            return False
        while pipeline.n_at_work and not pipeline.oldest_done:
            if self._ready():
                return False
            pipeline.wait(0.01)
        return pipeline.n_at_work > 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that are left if negative; b"" only at the end.

        Zero bytes after a frame are padding.

        Raises:
            Truncated: if the source ends where no frame does.
            TrailingData: if something else than a frame follows one, once all before it has been read.
            LmcodecError: as `Decompressor.decompress`.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(sys.maxsize), b""))
        try:
            return self._read_some(size)
        except Truncated:
            self.close()  # whoever keeps the error keeps this object
            raise

    def close(self) -> None:
        """Drop the engines and all blocks at work."""
        self._frame._pipeline.abandon()

    def _read_some(self, size: int) -> bytes:
        out = b""
        while size and not out:
            decompressor = self._frame
            if decompressor.eof:
                rest = decompressor.unused_data
                self._frame = self._open(
                    decompressor._offset, self.original_offset, pipeline=decompressor._pipeline
                )
                self._first, self._fresh = False, True
                out = self._feed(rest, size)
            elif not decompressor.needs_input or self._must_wait():
                out = decompressor.decompress(b"", size)
            else:
                data = self._read(READ_NBYTES)
                if data is None:
                    raise BlockingIOError("the file has no data now: LMFile needs one that waits for it")
                with byte_view(data) as view:
                    out, ended = self._feed(view, size), not len(view)
                if not ended:
                    continue
                if self._fresh and not self._first:
                    break
                if not decompressor._pipeline.n_at_work:
                    raise decompressor._truncated()
                decompressor._lazy = False
        self.original_offset += len(out)
        return out


def decompress(
    data: Any,
    *,
    max_output: int | None = None,
    threads: int | None = None,
    memory_limit: int | None = None,
    max_ratio: float | None = None,
    max_cpu_seconds: float | None = None,
    model: FilePath | None = None,
) -> bytes:
    """Decompress `data` (any buffer): one frame, or several one after another.

    Args: see `Decompressor`; all frames together are limited.

    Raises:
        BadMagic: if something else than a frame is there at the start.
        TrailingData: if something else than a frame or zero bytes follow a frame; it is a BadMagic, too.
        Truncated, Corrupt, Unsupported, LimitExceeded, ModelNotFound: as `Decompressor.decompress`.
    """
    with byte_view(data) as view:
        at = 0

        def read(nbytes: int) -> memoryview:
            nonlocal at
            at += nbytes
            return view[at - nbytes : at]

        reader = FrameReader(
            read,
            max_output=max_output,
            memory_limit=memory_limit,
            max_ratio=max_ratio,
            max_cpu_seconds=max_cpu_seconds,
            threads=threads,
            model=model,
        )
        try:
            return reader.read()
        except BaseException:
            reader.close()  # whoever keeps the error keeps the reader
            raise


# What frames hold, without decoding them


@dataclass(frozen=True)
class FrameInfo:
    """A frame's header and, where the whole frame is there, its blocks.

    Attributes:
        offset: of the frame, in bytes.
        version: of the format.
        flags: of the header.
        model_id: see `frame.FrameHeader`.
        content_size: original bytes as the header says; None if it does not.
        header_nbytes: of the frame header.
        blocks: every block's header, an end block included; None if the frame is cut.
        nbytes: of the whole frame; None if it is cut.
    """

    offset: int
    version: int
    flags: Flag
    model_id: int | bytes | None
    content_size: int | None
    header_nbytes: int
    blocks: tuple[Block, ...] | None = field(default=None, repr=False)
    nbytes: int | None = None

    @property
    def original_nbytes(self) -> int | None:
        """Original bytes as the blocks say, or else the header."""
        if self.blocks is None:
            return self.content_size
        return sum(block.original_nbytes for block in self.blocks)


def _survey(read_at: Callable[[int, int], bytes], start: int, end: int) -> FrameInfo:
    """The frame at `start` of data that ends at `end`, from its headers and index; payloads are not read."""
    header = frame.parse_header(read_at(start, frame.MAX_FRAME_HEADER_NBYTES), start)
    if header is None:
        raise Truncated(
            f"the data ends at offset {end}, inside a frame header; the rest of the file is missing"
        )
    walk = FrameWalk(header)
    blocks = []
    at = start + header.nbytes
    info = FrameInfo(start, frame.VERSION, header.flags, header.model_id, header.content_size, header.nbytes)
    while not walk.ended:
        where = f"block {walk.n_block + 1} at offset {at}"
        head, has_model = read_at(at, frame.MAX_BLOCK_HEADER_NBYTES), header.model_id is not None
        block = frame.parse_block(head, where, has_model=has_model, previous=walk.previous)
        if block is None:
            return info
        walk.admit(block, where)
        blocks.append(block)
        at += block.nbytes
    tail = walk.tail()
    if at + len(tail) > end:
        return info
    if read_at(at, len(tail)) != tail:
        raise Corrupt(f"index at offset {at}: does not agree with the blocks before it; the data is damaged")
    return replace(info, blocks=tuple(blocks), nbytes=at + len(tail) - start)


def frame_info(data: Any) -> FrameInfo:
    """What the frame at the start of `data` (any buffer) says; its header is enough.

    Raises:
        BadMagic, Truncated, Corrupt, Unsupported: if the header, or a block header that is there, is not one.
    """
    with byte_view(data) as view:
        return _survey(lambda at, nbytes: bytes(view[at : at + nbytes]), 0, len(view))


def scan(fileobj: BinaryIO) -> list[FrameInfo]:
    """The frames of a file that can seek, from where it stands; it stands there again afterwards.

    Block headers are read and payloads skipped: the time depends on the number of blocks, and damage inside
    payloads is not seen.

    Raises:
        BadMagic, Truncated, Corrupt, Unsupported: if the frames do not follow one another to the end.
    """
    frames, trailing = scan_to_trailing(fileobj)
    if trailing is not None:
        raise trailing
    return frames


def scan_to_trailing(fileobj: BinaryIO) -> tuple[list[FrameInfo], TrailingData | None]:
    """As `scan`, but where something else than a frame follows the frames, that error is returned as well."""
    base = fileobj.tell()
    end = fileobj.seek(0, os.SEEK_END) - base

    def read_at(at: int, nbytes: int) -> bytes:
        fileobj.seek(base + at)
        return read_fully(fileobj.read, nbytes)

    try:
        frames: list[FrameInfo] = []
        at = 0
        while at < end or not frames:
            try:
                info = _survey(read_at, at, end)
            except TrailingData as error:
                return frames, error
            if info.nbytes is None:
                raise Truncated(
                    f"the data ends at offset {end}, inside the frame at {at}; the rest is missing"
                )
            frames.append(info)
            at += info.nbytes
            while at < end:
                piece = read_at(at, READ_NBYTES)
                n_zero = len(piece) - len(piece.lstrip(b"\0"))
                at += n_zero
                if not piece or n_zero < len(piece):
                    break
        return frames, None
    finally:
        fileobj.seek(base)


def read_fully(read: Callable[[int], Any], nbytes: int) -> bytes:
    """`nbytes` bytes of what may give fewer at a time; fewer only where it ends."""
    data = bytes(read(nbytes))
    while len(data) < nbytes and (more := read(nbytes - len(data))):
        data += more
    return data
