"""Blocks at work: a thread for each, engines that are kept for the next ones, how far they are, their end."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from lmcodec import ending
from lmcodec.codec.arguments import available_cpus
from lmcodec.codec.spec import EngineSpec, Key, MakeEngine, make_engine
from lmcodec.errors import LimitExceeded, LmcodecError, clear_frames
from lmcodec.frame import Block

if TYPE_CHECKING:
    from types import TracebackType

    from lmcodec import _kernel
    from lmcodec.codec.spec import AnyEngine

# A block of a chain that is as small is coded at once: a thread would take longer to start.
SMALL_NBYTES = 1 << 10

Encoded = tuple[Block, bytes]  # and what its header and its payload are, packed

# A block that is the same as the one before it is not coded again if its payload is so much smaller than
# itself: where bytes repeat that long, blocks may.
REPEAT_SHARE = 64


# What a byte costs with a language model, where one without costs 1: for how far a block is, nothing else.
LM_COST = 3.0


class Meter:
    """What part of a block's work is done, trials included; any thread may ask, and it never falls."""

    def __init__(self) -> None:
        self._total = self._done = self._share = 0.0
        self._parts: list[tuple[AnyEngine, float]] = []  # engines at work, what a byte costs them

    def expect(self, key: Key, nbytes: int) -> None:
        """From here on, these specs are to code so many bytes each, and no more."""
        for engine, cost in self._parts:
            self._done += engine.position * cost
        self._parts = []  # an engine that made a trial is kept no longer than that
        self._total = self._done + nbytes * sum(map(self._cost, key))

    @staticmethod
    def _cost(spec: EngineSpec) -> float:
        return 1.0 if spec.model is None else LM_COST

    def follow(self, spec: EngineSpec, engine: AnyEngine) -> None:
        engine.position = 0
        self._parts.append((engine, self._cost(spec)))

    @property
    def share(self) -> float:
        """From 0 to 1."""
        if self._total:
            done = self._done + sum(engine.position * cost for engine, cost in self._parts)
            self._share = max(self._share, min(done / self._total, 1.0))
        return self._share


class Seat:
    """Engines of the specs in `key`; each is made in the thread that first uses it.

    A block that continues no other is coded the same wherever it is. Where one comes again right after
    itself, the engines are in the state that coding it leaves already, for one that continues it.

    Attributes:
        make_engine: what makes the engines.
        cancel: the flag of the job that uses the engines, which stops them; None outside of a job.
        encoded: what the last block was encoded from, and the result; None if it is not kept.
        meter: of the block at work.
    """

    def __init__(
        self,
        key: Key,
        make_engine: MakeEngine = make_engine,
        cancel: _kernel.Cancel | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.key = key
        self.make_engine = make_engine
        self.cancel = cancel
        self.meter = meter or Meter()
        self._engines: dict[EngineSpec, AnyEngine] = {}
        self.encoded: tuple[tuple[object, ...], Encoded] | None = None
        self._decoded: tuple[tuple[object, ...], bytes] | None = None

    def engine(
        self, spec: EngineSpec, continues: bool, helped: bool = False, tables_nbytes: int = 0
    ) -> AnyEngine:
        engine = self._engines.get(spec)
        if engine is None:
            for other in [c for c in list(self._engines) if c.method == spec.method]:
                del self._engines[other]  # of other streams: its tables are not counted twice
            engine = self._engines[spec] = self.make_engine(spec)
            if tables_nbytes and not continues:
                engine.reset(tables_nbytes)
        elif not continues:
            engine.reset(tables_nbytes)
        engine.helped = helped
        engine.cancel = self.cancel
        self.meter.follow(spec, engine)
        return engine

    def decode(
        self,
        spec: EngineSpec,
        block: Block,
        payload: bytes,
        helped: bool,
        allowance: Allowance | None = None,
    ) -> bytes | bytearray:
        """The original of a payload.

        Raises:
            Corrupt
            LimitExceeded: it took more processor time than the allowance had left.
        """
        nbytes, continues = block.original_nbytes, block.continues
        source = spec, nbytes, block.tables_log2, payload
        if not continues and self._decoded is not None and self._decoded[0] == source:
            return self._decoded[1]
        self._decoded = None
        spend = None if allowance is None else allowance.meter()
        self.meter.expect((spec,), nbytes)
        engine = self.engine(spec, continues, helped, block.tables_nbytes)
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


def without_frames(error: BaseException) -> BaseException:
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


@cache
def _cancel_class() -> type[_kernel.Cancel]:
    from lmcodec import _kernel

    return _kernel.Cancel


class Job:
    """One block at work, in a thread of its own if it has a seat and there can be a thread.

    The thread is a daemon, so that the interpreter does not wait for a block's tens of seconds when it ends:
    it waits for the short time that the thread takes to see that it is cancelled (`end_all`).

    Args:
        work: what is to be done; called with the seat, if there is one.
        nbytes: of memory that it needs.
        cancel: the flag of the job that this one is a part of.
    """

    _at_work: ClassVar[dict[threading.Thread, Any]] = {}  # and their flags; some have ended
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _closed: ClassVar[bool] = False  # the interpreter ends: no more threads

    def __init__(
        self,
        work: Callable[..., Any],
        nbytes: int,
        seat: Seat | None,
        cancel: _kernel.Cancel | None = None,
    ) -> None:
        self.nbytes, self.seat = nbytes, seat
        self._work: Callable[..., Any] | None = work
        self.meter: Meter | None = None if seat is None else seat.meter
        self.original_nbytes = self.coded_nbytes = 0  # of the block, for how far it is
        self._value: Any = None
        self._error: BaseException | None = None
        self.failed = False
        self._ended = threading.Event()  # joining a thread is not safe against KeyboardInterrupt
        self._thread: threading.Thread | None = None
        self._cancel: _kernel.Cancel | None = cancel
        if seat is not None and cancel is None:
            seat.cancel = self._cancel = _cancel_class()()

    def start(self, threaded: bool = True) -> None:
        """Start the thread; where there is none, the work is done on return.

        Args:
            threaded: whether a thread of its own is worth its while.

        An interrupt may come when the thread is there and this one does not know yet: the thread ends soon
        then, and holds all that is left of the work.

        Raises:
            RuntimeError: if the interpreter ends, and this is a thread of ours. A program's daemon thread
                does not return then.
        """
        if self.seat is not None and threaded:
            self._stay_if_ending()
            thread = threading.Thread(target=self._run, args=(self.seat,), name="lmcodec block", daemon=True)
            with self._lock:
                if self._closed and threading.current_thread() is not threading.main_thread():
                    raise RuntimeError("lmcodec cannot code a block while the interpreter ends")
                for ended in [other for other in self._at_work if other.ident and not other.is_alive()]:
                    del self._at_work[ended]
                if not self._closed:
                    self._at_work[thread] = self._cancel
                    try:
                        thread.start()
                        self._thread = thread
                        return
                    except RuntimeError:  # there can be no further thread
                        del self._at_work[thread]
                    except BaseException:
                        self.cancel()
                        self.seat = self.meter = None
                        raise
        self._run(self.seat)

    def _run(self, seat: Seat | None) -> None:
        assert self._work is not None
        try:
            self._value = self._work() if seat is None else self._work(seat)
        except BaseException as error:
            self._error = without_frames(error)
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

    def start_and_wait(self) -> Any:
        """What the work returned, or its error raised; an interrupt meanwhile ends it."""
        self.start()
        try:
            return self.result()
        except BaseException:
            self.cancel()
            self.wait()
            raise

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
            patience = time.monotonic() + 1
            # An interrupt came while it was started: it begins at once, or never.
            while thread.ident is None and time.monotonic() < patience:
                time.sleep(0.001)
            if thread.ident is not None:
                thread.join()

    @classmethod
    def after_fork(cls) -> None:
        """In the child of a fork, where no other thread is."""
        cls._lock = threading.Lock()
        cls._at_work = {}


ending.register(Job.end_all, Job.after_fork, first=True)


class Pipeline:
    """Blocks at work, oldest first, and the engines they use.

    Args:
        threads: blocks at work at once, at most; None for the CPUs there are.
        budget: bytes that the blocks at work may need together; one may always be.
    """

    def __init__(self, threads: int | None, budget: int | None) -> None:
        self.threads = threads or available_cpus()
        self._budget = budget
        self._jobs: deque[Job] = deque()
        self._seats: list[Seat] = []
        self._latest: Seat | None = None
        self.make_engine: MakeEngine = make_engine
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

    def room(self, nbytes: int, continues: bool = False, may_be_helped: bool = False) -> bool:
        """Whether a block that needs `nbytes` may start; one that continues another waits for its end.

        A block that uses a helper has work for two threads: two such blocks on two threads would be no
        faster, and take twice the memory.
        """
        if not self._jobs:
            return True
        return (
            not continues
            and not (may_be_helped and self.threads == 2)
            and len(self._jobs) < self._limit(nbytes)
        )

    @property
    def helped(self) -> bool:
        """Whether the block that starts next has helpers: no other is at work, and there are more threads."""
        return self.threads > 1 and not self._jobs

    def start(
        self,
        work: Callable[..., Any],
        nbytes: int = 0,
        key: Key | None = None,
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
            self._latest.meter = Meter()
        job = Job(work, nbytes, self._latest if key is not None else None)
        job.original_nbytes, job.coded_nbytes = original_nbytes, coded_nbytes
        job.start(threaded)
        with self._position_lock:
            self._jobs.append(job)
            self._begun_original += original_nbytes
            self._begun_coded += coded_nbytes

    def count(self, original_nbytes: int) -> None:
        """Count bytes of an original that were coded elsewhere."""
        with self._position_lock:
            self._begun_original += original_nbytes

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

    def _free_seat(self, key: Key, nbytes: int) -> Seat:
        """A seat for `key`; drops those of no use, and those too many beside a block that needs `nbytes`."""
        busy = [job.seat for job in self._jobs if job.seat]
        free = [seat for seat in self._seats if seat.key == key and seat not in busy] or [
            Seat(key, self.make_engine)
        ]
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


class Reusable:
    """What Compressor and Decompressor share: after an exception they refuse to go on."""

    _failure: str | None = None
    _pipeline: Pipeline

    def _require_usable(self) -> None:
        if self._failure is not None:
            name = type(self).__name__
            raise ValueError(f"this {name} failed and cannot go on ({self._failure}); make another one")

    @property
    def usable(self) -> bool:
        """False after an exception."""
        return self._failure is None

    def make_engines_by(self, make: MakeEngine) -> None:
        """Have all further engines made by `make`, in place of `spec.make_engine`: for measurements."""
        self._pipeline.make_engine = make

    def unusable_if_this_fails(self) -> UnusableAfterError:
        return UnusableAfterError(self)

    def fail(self, error: BaseException) -> None:
        """Refuse to go on after `error`, and keep nothing: whoever keeps the error keeps this object."""
        self._failure = f"{type(error).__name__}: {error}".rstrip(": ")
        self._release()
        self._pipeline.abandon()
        clear_frames(error)

    def _release(self) -> None:
        """Drop the data that is held."""
        raise NotImplementedError


class UnusableAfterError:
    """A context whose exceptions make an object unusable."""

    def __init__(self, owner: Reusable) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._owner.fail(error)
