"""Decompressor, FrameReader, decompress: cut frames into blocks and give out their originals in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from lmcodec import frame
from lmcodec.codec.arguments import byte_view, number, optional, positive
from lmcodec.codec.base import Base, BasePath, for_frame
from lmcodec.codec.pipeline import SMALL_NBYTES, Allowance, Pipeline, Reusable, Seat, without_frames
from lmcodec.codec.prior import Prior, Priors, collected, decode_compact, decompress_compact, find
from lmcodec.codec.spec import EngineSpec
from lmcodec.errors import Corrupt, LimitExceeded, LmcodecError, Truncated, Unsupported, clear_frames
from lmcodec.frame import Block, FrameHeader, FrameWalk, Method
from lmcodec.lm import store
from lmcodec.lm.executor import KERNEL, checked, require
from lmcodec.lm.store import FilePath, Model

if TYPE_CHECKING:
    from lmcodec.lm.bound import Fingerprint

# What the engines of one object may take together where the caller sets neither threads nor a limit.
DECODE_BUDGET_NBYTES = 100 << 20

READ_NBYTES = 128 << 10


def decode_block(
    block: Block,
    payload: bytes,
    where: str,
    spec: EngineSpec | None = None,
    helped: bool = False,
    allowance: Allowance | None = None,
    elsewhere: str = "",
    seat: Seat | None = None,
) -> bytes | bytearray:
    """The original of a block, checked; `elsewhere` is added to what is wrong with it."""
    original: bytes | bytearray
    if seat is None or spec is None:
        original = payload
    else:
        try:
            original = seat.decode(spec, block, payload, helped, allowance)
        except Corrupt as error:
            raise Corrupt(f"{where}: {error}{elsewhere}") from None
        except LimitExceeded as error:
            raise LimitExceeded(f"{where}: {error}") from None
    check = block.compute_check(original, payload)
    if check != block.check or len(original) != block.original_nbytes:
        raise Corrupt(
            f"{where}: its check is {block.check:08X}, its data give {check:08X}; the data is damaged"
            f"{elsewhere}"
        )
    return original


class Decompressor(Reusable):
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
        executor: what computes language models, as for `Compressor`; any gives back any frame.
        any_environment: try a frame that is bound to another environment (a model in floats). What comes out
            is checked as always; if it is not right, the error says so.
        prior: a `Prior`, or some of them, for frames that begin with one.
        base: the file, not compressed, that a frame's tensors are coded against. A frame that needs another
            is refused.

    Raises:
        TypeError, ValueError: if an argument is out of range.
        ConfigError: if the executor cannot run here.
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
        executor: str = KERNEL,
        any_environment: bool = False,
        prior: Priors = None,
        base: BasePath | Base | None = None,
    ) -> None:
        self._priors = collected(prior)
        self._given_model = model
        self._given_base = Base.of(base)
        self._base: Base | None = None  # once a block needed it
        self._any_environment = bool(any_environment)
        self._bound_to: Fingerprint | None = None  # what the frame is bound to, once a block asked
        self._executor = checked(executor)
        require(executor)
        self._model: Model | None = None  # once a block needed it
        self._max_output = optional("max_output", max_output, 0)
        self._memory_limit = optional("memory_limit", memory_limit, 0)
        threads = optional("threads", threads, 1)
        budget = self._memory_limit
        if budget is None and threads is None:
            budget = DECODE_BUDGET_NBYTES
        self._pipeline = Pipeline(threads, budget)
        if max_cpu_seconds is not None:
            self._pipeline.allowance = Allowance(positive("max_cpu_seconds", max_cpu_seconds))
        self._max_ratio = None if max_ratio is None else positive("max_ratio", max_ratio)
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
        max_length = number("max_length", max_length, -sys.maxsize)
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
        whole = self._ready[0].obj if want and want == len(self._ready[0]) else None
        if isinstance(whole, bytes) and len(whole) == want:  # a block as it was decoded need not be copied
            self._ready.popleft()
            return whole
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
            self._pipeline.start(partial(_raise, without_frames(error)))
            self._done = True
            return True

    def _parse(self, start: bool) -> bool:
        if self._walk is None:
            header = frame.parse_header(self._input, self._offset)
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
            block = self._walk.header.parse_block(head, self._where(), self._walk.previous)
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

    def _spec(self, block: Block) -> EngineSpec | None:
        """What decodes the block; None if nothing is needed.

        Raises:
            ModelNotFound: it needs a model that is neither shipped nor given.
            Unsupported: it is of an unknown method or profile.
        """
        if not block.method.is_coded or block.compact is not None:
            return None
        if block.method.needs_model and self._model is None:
            assert self._walk is not None
            assert self._walk.header.model_id is not None
            self._model = store.for_frame(
                self._walk.header.model_id,
                self._given_model,
                self._memory_limit,
                self._executor,
                self._environment(),
                self._any_environment,
            )
        if block.method == Method.TENSOR:
            assert self._walk is not None
            data = frame.base_of(self._walk.header.extensions)
            if data is not None and self._base is None:
                self._base = for_frame(data, self._given_base)
            return EngineSpec(block.method, 0, 0, 0, base=self._base)
        if self._bound_to is not None and block.groups > 1 and block.method.needs_model:
            raise Corrupt("streams in two groups with a model in floats; the data is damaged")
        model = self._model if block.method.needs_model else None
        return EngineSpec(block.method, block.profile, block.streams, block.groups, model, block.enlarge)

    def _environment(self) -> Fingerprint | None:
        """What the frame is bound to; None if it is not.

        Raises:
            Corrupt: it does not say it in the form that it should.
        """
        assert self._walk is not None
        data = self._walk.header.environment
        if data is not None:
            from lmcodec.lm.bound import Fingerprint

            self._bound_to = Fingerprint.parse(data)
        return self._bound_to

    def _elsewhere(self) -> str:
        """What to add to an error of a block that is decoded elsewhere than it was written."""
        model, bound_to = self._model, self._bound_to
        here = None if model is None or bound_to is None else model.fingerprint
        if bound_to is None or here is None or dict(here.environment) == dict(bound_to.environment):
            return ""
        return (
            f"; or this environment computes otherwise ({here.describe()}) than the one that the frame is "
            f"bound to ({bound_to.describe()})"
        )

    def _prior(self, block: Block) -> Prior:
        """The prior that a compact frame's block begins with.

        Raises:
            PriorNotFound: it is not given.
            Unsupported: the executor has no state to carry.
        """
        assert block.compact is not None
        if self._executor != KERNEL:
            raise Unsupported(f"a frame with a prior is decoded by executor {KERNEL}, not {self._executor}")
        return find(self._priors, block.compact)

    def _need(self, block: Block) -> int:
        if block.compact is not None:
            prior = self._prior(block)
            if block.method == Method.STORED:
                return block.original_nbytes
            return prior.memory_nbytes(block.compact.coding, block.original_nbytes) + 2 * block.payload_nbytes
        spec = self._spec(block)
        if spec is None:
            return block.original_nbytes
        need = spec.memory_nbytes(block.original_nbytes, block.continues, tables_nbytes=block.tables_nbytes)
        return need + 2 * block.payload_nbytes  # as it was read, and what the engine reads

    def _start(self) -> bool:
        """Set the block that is all there to work, if there is room."""
        block, walk = self._block, self._walk
        assert block is not None
        assert walk is not None
        need, spec = self._need(block), self._spec(block)
        if not self._pipeline.room(need, block.continues, spec is not None and spec.may_be_helped):
            return False
        payload = bytes(memoryview(self._input)[block.header_nbytes : block.nbytes])
        where = f"block {walk.n_block} at offset {self._offset}"
        key = None if spec is None else (spec,)
        self._consume(block.nbytes, is_block=True)
        self._block = None
        if walk.ended:
            self._tail = walk.tail()
        if block.method == Method.END:
            decode_block(block, payload, where)
            self._pipeline.pass_over(block.nbytes)
        elif block.compact is not None:
            work = partial(
                decode_compact, block, payload, where, self._prior(block), self._pipeline.allowance
            )
            self._pipeline.start(work, need, original_nbytes=block.original_nbytes, coded_nbytes=block.nbytes)
        else:
            small = block.chained and block.original_nbytes <= SMALL_NBYTES
            helped = self._pipeline.helped and not small
            elsewhere = self._elsewhere() if spec is not None and spec.model is not None else ""
            work = partial(
                decode_block, block, payload, where, spec, helped, self._pipeline.allowance, elsewhere
            )
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
        max_output, memory_limit, max_ratio, max_cpu_seconds, threads, model, executor, any_environment,
            prior, base: as for `Decompressor`, but for all frames together.
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
        executor: str = KERNEL,
        any_environment: bool = False,
        prior: Priors = None,
        base: BasePath | Base | None = None,
    ) -> None:
        self._read, self._ready = read, ready
        self._limits: dict[str, Any] = {
            "max_output": max_output,
            "memory_limit": memory_limit,
            "max_ratio": max_ratio,
            "max_cpu_seconds": max_cpu_seconds,
            "threads": threads,
            "model": model,
            "executor": executor,
            "any_environment": any_environment,
            "prior": collected(prior),
            "base": Base.of(base),
        }
        self._frame = self._open(0, 0)
        self._fresh = True  # not a byte of the frame has been read
        self._first = True  # no frame has ended
        self.original_offset = 0

    def _open(self, offset: int, original_offset: int, pipeline: Pipeline | None = None) -> Decompressor:
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
            return b"".join(iter(partial(self.read, sys.maxsize), b""))
        try:
            return self._read_some(size)
        except Truncated as error:
            self.close()  # whoever keeps the error keeps this object
            clear_frames(error)
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
    executor: str = KERNEL,
    any_environment: bool = False,
    prior: Priors = None,
    base: BasePath | Base | None = None,
) -> bytes:
    """Decompress `data` (any buffer): one frame, or several one after another.

    Args: see `Decompressor`; all frames together are limited.

    Raises:
        BadMagic: if something else than a frame is there at the start.
        TrailingData: if something else than a frame or zero bytes follow a frame; it is a BadMagic, too.
        Truncated, Corrupt, Unsupported, LimitExceeded, ModelNotFound: as `Decompressor.decompress`.
    """
    with byte_view(data) as view:
        if len(view) and view[0] == frame.COMPACT_MAGIC and executor == KERNEL:
            limits = max_output, threads, memory_limit, max_ratio, max_cpu_seconds
            if all(limit is None for limit in limits):
                message = decompress_compact(view, prior)
                if message is not None:
                    return message
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
            executor=executor,
            any_environment=any_environment,
            prior=prior,
            base=base,
        )
        try:
            return reader.read()
        except BaseException as error:
            reader.close()
            clear_frames(error)
            raise
        finally:
            del reader  # whoever keeps the error keeps what this call holds
