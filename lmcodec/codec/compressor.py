"""Compressor and compress: cuts the original into blocks, sets them to work and writes the frame in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from operator import index as as_int
from typing import TYPE_CHECKING, Any

from lmcodec import frame
from lmcodec.codec.arguments import byte_view, number, optional
from lmcodec.codec.base import Base, BasePath
from lmcodec.codec.levels import (
    AUTO,
    DEFAULT_BLOCK_NBYTES,
    DEFAULT_LEVEL,
    LEVELS,
    MAX_STREAMS,
    MIN_BLOCK_NBYTES,
    Judgement,
    ModelChoice,
    choose_model,
    encode_block,
    judge_numbers,
    lm_streams,
    method_named,
)
from lmcodec.codec.pipeline import SMALL_NBYTES, Job, Pipeline, Reusable, Seat
from lmcodec.codec.prior import MAX_MESSAGE_NBYTES, Prior
from lmcodec.codec.proof import Proof
from lmcodec.codec.spec import Chain, EngineSpec, Key, Numbers, lm_groups
from lmcodec.errors import ModelNotFound, Unsupported
from lmcodec.frame import Block, Extension, ExtensionType, FrameHeader, FrameWalk, Method, pack_extensions
from lmcodec.lm import store
from lmcodec.lm.executor import KERNEL, checked, require
from lmcodec.lm.store import FilePath, Model

if TYPE_CHECKING:
    from lmcodec.lm.bound import Fingerprint
    from lmcodec.tensor_files.layout import ReadAt
    from lmcodec.tensor_files.recognise import Recognised, Region

# A flush ends a block. Where that is small, the blocks after it continue it, so that nothing of what was
# learned is lost. Such a chain has the tables of a block of CHAIN_NBYTES. It ends before it holds more than
# that, or more than a block may: what lies in it is decoded from its start.
CHAIN_NBYTES = 1 << 20

# A chain keeps the method of its first block, which may be a single byte. Each time that it has doubled,
# another method codes what came last, from nothing; where that is clearly smaller, a new chain begins.
CHAIN_SAMPLE_NBYTES = 1 << 9
CHAIN_CLEAR = 0.9

# Bytes of the data that say whether it may begin with a file of tensors.
_HEAD_NBYTES = 16

# What the engines of one object may take together where the caller sets neither threads nor a limit.
ENCODE_BUDGET_NBYTES = 1 << 30


class Compressor(Reusable):
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
            the one that LMCODEC_MODEL names, else the level's. A large one (an imported model) is a
            candidate: where pieces of a frame's first block say that the level's own makes it smaller, that
            one is used.
        model_only: use the model that `model` or LMCODEC_MODEL names, without asking whether it pays.
        method: `auto` for the one that makes a block smallest of those that the level has; or the only one to
            use: `cm` (context models), `lm+cm` (a language model beside them), `lm` (a language model alone)
            or `stored`. What it does not make smaller is stored. With `auto`, tensors of a file that the data
            begins with (safetensors, GGUF, `.npy`, `.npz`) are blocks of their own, of method `tensor`.
        prior: what a frame of one block of at most 256 KiB begins with (`lmcodec.Prior`); larger ones are
            coded without it.
        short_check: with a prior, a check of 16 bits in place of 32: of 65,536 damaged messages one is
            expected to pass.
        executor: what computes the language model: `kernel`, `numpy` (the definition, very slow), `torch` on
            the CPU or `torch-cuda`. The frame does not depend on it.
        base: a file of tensors, not compressed, as a checkpoint before this one: tensors of the same name,
            type and size are coded as differences from it where that is smaller. The frame is decoded with
            the same file and with no other.

    Raises:
        TypeError, ValueError: if an argument is out of range, or a model or an executor is given for, or a
            method asks for one of, a level or method that uses no model.
        ModelNotFound: if there is no such model.
        ConfigError: if LMCODEC_ISA names no instruction set of this machine, or the executor cannot run here.
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
        model_only: bool = False,
        method: str = AUTO,
        executor: str = KERNEL,
        prior: Prior | None = None,
        short_check: bool = False,
        base: BasePath | Base | None = None,
    ) -> None:
        if os.environ.get("LMCODEC_ISA"):
            from lmcodec.lm import isa

            isa.require()
        self._plan = LEVELS[number("level", level, min(LEVELS), max(LEVELS))]
        self._method = method_named(method)
        if not self._plan.models and (self._method or Method.END).needs_model:
            raise ValueError(f"level {as_int(level)} uses no language model: it cannot use method {method}")
        uses_model = bool(self._plan.models) and self._method not in (Method.STORED, Method.CM)
        if model is not None and not uses_model:
            which = f"method {method}" if self._plan.models else f"level {as_int(level)}"
            raise ValueError(f"{which} uses no language model: model makes no sense with it")
        if base is not None and self._method is not None:
            raise ValueError(f"method {method} codes no differences: base makes no sense with it")
        self._base = Base.of(base)
        if self._base is not None:
            _ = self._base.tensors  # or it is refused
        self._executor = checked(executor)
        if executor != KERNEL and not uses_model:
            which = f"method {method}" if self._plan.models else f"level {as_int(level)}"
            raise ValueError(f"{which} uses no language model: executor {executor} has nothing to compute")
        require(executor)
        self._source = store.default(model, self._plan.models) if uses_model else None
        own = store.own(self._plan.models) if uses_model and not model_only and self._method is None else None
        self._own = None if own == self._source else own
        if self._source is None and (self._method or Method.END).needs_model:
            raise ModelNotFound(f"method {method} needs a language model, and none is shipped or given")
        most = MAX_STREAMS[self._method or (Method.LM_CM if self._source else Method.CM)]
        self._streams = optional("streams", streams, 1, most)
        self._groups = optional("groups", groups, 1, 2)
        if groups is not None and groups > (self._streams or 1):
            raise ValueError(f"groups must be at most streams, not {groups} of {self._streams or 1}")
        self._block_nbytes = (
            optional("block_size", block_size, MIN_BLOCK_NBYTES, frame.MAX_BLOCK_NBYTES)
            or DEFAULT_BLOCK_NBYTES
        )
        self._solid = bool(solid)
        self._prior, self._short_check = prior, bool(short_check)
        if prior is None:
            if short_check:
                raise ValueError("a check of 16 bits is for messages with a prior: prior is None")
        else:
            self._coding = _prior_coding(prior, level, self._method, model, executor, streams)
        threads = optional("threads", threads, 1)
        if self._solid:
            threads = 1  # what a block continues is known when the one before it is coded
        self._pipeline = Pipeline(threads, ENCODE_BUDGET_NBYTES if threads is None else None)
        self._last_choice: ModelChoice | None = None
        self._last_recognised: Recognised | None = None
        self._last_fingerprint: Fingerprint | None = None
        self._begin(optional("content_size", content_size, 0, (1 << 63) - 1))
        self._last_mode = self.FLUSH_FRAME

    def _begin(self, content_size: int | None = None) -> None:
        self._content_size = content_size
        self._taken_nbytes = 0
        self._pending = bytearray()
        self._begun_nbytes = 0  # of the blocks before the one that is pending
        self._regions: list[Region] | None = None  # of numbers, in order; None until it was looked for them
        self._judged = -1, Judgement(False)  # a region by its place, and how its first piece is best coded
        self._walk: FrameWalk | None = None  # once the header is written
        self._choice: ModelChoice | None = None  # of the frame's model, where there was one
        self._chain: Chain | None = None  # that the last block is in, if a flush began it
        self._chain_nbytes = 0  # of the block that the last one's chain began with; of all of `_chain`
        self._chain_key: Key = ()  # what it had the choice of
        self._chain_asks_at = 0  # bytes of it at which other methods are tried next
        self._chain_last = b"", 1  # what its last block begins with, and all bytes of that
        self._chain_sample, self._chain_sample_cost = b"", 0.0  # of several, and what that became
        self._last_payload_nbytes = 0  # of the block that was finished last
        self._out: list[bytes] = []
        # Of what no model file holds: it may be a model in floats.
        source = self._source
        self._proof: Proof | None = None
        if source is not None and not source.has_file:
            self._proof = Proof(
                source.model or source.name, self._executor, self._pipeline.threads, self._base
            )

    def _release(self) -> None:
        if self._proof is not None:
            self._proof.close()
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
        with byte_view(data) as view:
            try:
                if self._proof is not None:
                    self._proof.read(view)
                for original, last, flushed, region in self._cut(view, mode):
                    if region is None and self._begins_with_prior(original, last):
                        self._add_compact(original)
                        continue
                    self._pipeline.start(**self._prepared(original, last, flushed, region))
                if mode == self.FLUSH_FRAME:
                    self._end()
                elif mode == self.FLUSH_BLOCK:
                    self._drain()
                out = b"".join(self._out)
                self._prove(out, mode)
                if mode == self.FLUSH_FRAME:
                    self._begin()
                else:
                    self._out.clear()
                self._last_mode = mode
            except BaseException as error:
                self.fail(error)
                raise
        return out

    def _prove(self, out: bytes, mode: int) -> None:
        """Decode what was written with a model in floats, before the caller gets it.

        Raises:
            Unsupported: it does not come back.
        """
        walk = self._walk
        if self._proof is not None and walk is not None and walk.header.environment is not None and out:
            self._proof.written(out, mode == self.FLUSH_FRAME)

    def _begins_with_prior(self, data: bytes, last: bool) -> bool:
        return (
            self._prior is not None
            and last
            and self._walk is None
            and len(data) <= MAX_MESSAGE_NBYTES
            and not self._pipeline.n_at_work
        )

    def _add_compact(self, data: bytes) -> None:
        """A whole frame of one block that begins with the prior."""
        assert self._prior is not None
        block, payload = self._prior.block(data, self._coding, self._short_check)
        self._walk = FrameWalk(FrameHeader(compact=block.compact))
        self._walk.admit(block, "block 1")
        self._pipeline.count(len(data))
        self._out += [self._walk.header.pack(), block.pack(data, payload)]

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

    def _cut(self, view: memoryview, mode: int) -> Iterator[tuple[bytes, bool, bool, Region | None]]:
        """Take `view` in; the blocks that are full or end here.

        Of each: its bytes, whether it is the last, whether a flush ends it, and the numbers that it is of.

        Raises:
            ValueError: as `compress`.
        """
        self._taken_nbytes += len(view)
        pledged, taken = self._content_size, self._taken_nbytes
        if pledged is not None and (taken > pledged or (mode == self.FLUSH_FRAME and taken < pledged)):
            raise ValueError(f"content_size said {pledged} bytes, got {taken}")
        if self._regions is None and (
            len(self._pending) + len(view) > self._block_nbytes or mode != self.CONTINUE
        ):
            self._look_for_tensors(view, mode == self.FLUSH_FRAME)
        at = 0
        # A full block waits until more data comes: it may be the last.
        while len(self._pending) + len(view) - at > (room := self._room())[0]:
            if self._pending:
                missing = max(room[0] - len(self._pending), 0)
                self._pending += view[at : at + missing]
                data = self._taken(room[0])
            else:
                missing = room[0]
                data = bytes(view[at : at + missing])
                self._begun_nbytes += missing
            at += missing
            yield data, False, False, room[1]
        self._pending += view[at:]
        if self._pending and mode != self.CONTINUE:
            region = self._room()[1]
            yield self._taken(len(self._pending)), mode == self.FLUSH_FRAME, mode == self.FLUSH_BLOCK, region

    def _room(self) -> tuple[int, Region | None]:
        """Bytes that the block which begins here holds at most, and the numbers that they are of."""
        at, most = self._begun_nbytes, self._block_nbytes
        regions = self._regions
        while regions and regions[0].end <= at:
            del regions[0]
        if not regions:
            return most, None
        region = regions[0]
        if at < region.offset:
            return min(most, region.offset - at), None
        done, left = at - region.offset, region.end - at
        if done % region.piece_nbytes:  # a flush ended a piece
            return min(most, left, region.piece_nbytes - done % region.piece_nbytes), None
        return min(region.piece_nbytes, left), region

    def _taken(self, nbytes: int) -> bytes:
        """The first of the pending bytes, which are a block now."""
        data = bytes(memoryview(self._pending)[:nbytes])
        del self._pending[:nbytes]
        self._begun_nbytes += len(data)
        return data

    def look_ahead(self, read_at: ReadAt, nbytes: int | None) -> None:
        """Look for tensors in all of what will come: otherwise what fills a block must tell.

        Args:
            read_at: gives bytes of the data, by place and number.
            nbytes: of the data; None if that is not known.
        """
        self._regions = []
        head = read_at(0, _HEAD_NBYTES) if self._method is None else b""
        if _may_hold_tensors(head):
            from lmcodec.tensor_files.recognise import recognise

            self._last_recognised = found = recognise(read_at, nbytes)
            if found is not None:
                base = None if self._base is None else self._base.tensors
                self._regions = found.regions(self._block_nbytes, base)

    def _look_for_tensors(self, view: memoryview, is_all: bool) -> None:
        """As `look_ahead`, in what has come."""
        n_pending = len(self._pending)

        def read_at(at: int, nbytes: int) -> bytes:
            end = at + nbytes
            return bytes(self._pending[at:end]) + bytes(
                view[max(at - n_pending, 0) : max(end - n_pending, 0)]
            )

        self.look_ahead(read_at, n_pending + len(view) if is_all else self._content_size)

    @property
    def last_choice(self) -> ModelChoice | None:
        """The last frame's model, where the one that was asked for was a candidate; else None."""
        return self._last_choice

    @property
    def last_recognised(self) -> Recognised | None:
        """What of the last frame are tensors; None where nothing looked like them."""
        return self._last_recognised

    @property
    def last_fingerprint(self) -> Fingerprint | None:
        """What the last frame is bound to, if it is (a model in floats)."""
        return self._last_fingerprint

    @property
    def _model(self) -> Model | None:
        if self._choice is not None:
            return self._choice.model
        return None if self._source is None else store.load(self._source, executor=self._executor)

    def _choose_model(self, data: bytes) -> ModelChoice | None:
        """Which model a frame has, if it begins with `data` and there are two candidates."""
        if (
            self._own is None
            or self._choice is not None
            or self._walk is not None
            or self._pipeline.n_at_work
        ):
            return None
        asked = self._model
        if asked is None or not asked.is_large or not asked.is_exact:
            return None
        own = store.load(self._own, executor=self._executor)
        first, second = (self._spec(Method.LM_CM, model, len(data)) for model in (asked, own))
        job = Job(partial(choose_model, data, first, second), 0, Seat((first, second)))
        self._choice = self._last_choice = job.start_and_wait()
        return self._choice

    def _header(self, several: bool, needs_model: bool = False) -> FrameWalk:
        """Write the header of a frame that has one block or several, unless it is there."""
        if self._walk is None:
            content_size = self._content_size if several else None
            model = self._model if needs_model else None
            bound_to = None if model is None else model.fingerprint
            self._last_fingerprint = bound_to
            extensions: tuple[Extension, ...] = () if bound_to is None else (_bound(bound_to),)
            if self._base is not None and any(region.base_at is not None for region in self._regions or ()):
                extensions += (self._base.extension,)
            model_id = None if model is None else model.frame_id
            self._walk = FrameWalk(FrameHeader(content_size, model_id, several, extensions))
            self._out.append(self._walk.header.pack())
        return self._walk

    def _key(self, nbytes: int) -> Key:
        """The specs to choose from for a block that continues no other."""
        key: Key = ()
        for method in [self._method] if self._method else [Method.CM, Method.LM_CM]:
            model = None if method == Method.CM else self._model
            if method == Method.CM or (method != Method.STORED and model is not None):
                key += (self._spec(method, model, nbytes),)
        return key

    def _spec(self, method: Method, model: Model | None, nbytes: int) -> EngineSpec:
        """How a block of `nbytes` bytes is coded by method cm, or with a model by another one."""
        plan = self._plan
        enlarge = plan.enlarge
        if model is None:
            wanted = self._streams or (2 if 0 < plan.second_stream_nbytes <= nbytes else 1)
            profile, streams = plan.profile, min(wanted, MAX_STREAMS[method])
        else:
            profile = 0
            streams = self._streams or lm_streams(nbytes, plan, model)
            if method == Method.LM:
                enlarge = 0
            else:
                model.profile(1)  # refuses a model without one
                profile = min(plan.model_profile, len(model.profiles))
        streams = min(streams, nbytes)
        groups = self._groups or (lm_groups(streams, model) if model else 1)
        if model is not None and not model.is_exact:
            if groups > 1 and self._groups:
                raise Unsupported(f"{model.name}: a model in floats has one group of streams")
            groups = 1  # both directions take the same steps of all streams
        may_thin = method == Method.LM_CM and self._streams is None and self._groups is None
        return EngineSpec(method, profile, streams, min(groups, streams), model, enlarge, may_thin)

    def _prepared(
        self, data: bytes, last: bool, flushed: bool, region: Region | None = None
    ) -> dict[str, Any]:
        """Wait for room; what `Pipeline.start` is to be called with to code `data` as one block."""
        if region is not None:
            at = self._begun_nbytes - len(data) - region.offset
            base_at = None if region.base_at is None else region.base_at + at
            numbers = Numbers(region.layout, region.row_nbytes, base_at)
            if region.offset != self._judged[0]:
                self._judged = region.offset, judge_numbers(data, numbers, self._base)
            if self._judged[1].by_planes:
                if not self._judged[1].by_base:
                    numbers = numbers._replace(base_at=None)
                return self._prepared_numbers(data, last, numbers)
        choice = None if region is not None else self._choose_model(data)
        key = self._key(len(data))
        if region is not None:  # a language model knows nothing of numbers, and takes most of the time
            key = tuple(spec for spec in key if spec.model is None)
        if not last:
            self._header(several=True, needs_model=True)
        chained = self._solid or self._chain is not None
        tables_nbytes = self._tables_nbytes(len(data)) if flushed else 0
        nbytes = sum(c.memory_nbytes(len(data), chained, True, tables_nbytes) for c in key)
        while not self._pipeline.room(nbytes, may_be_helped=any(spec.may_be_helped for spec in key)):
            self._take()
        previous = self._continued(len(data), key)
        if previous is not None and self._chain is not None and not self._solid:
            better = self._better_than_chain(key, previous)
            if better is not None:
                previous, key = None, (better,)
        if previous is not None:
            key = (previous,)
            self._chain_nbytes += len(data) if self._chain and not self._solid else 0
        else:
            self._chain = Chain(tables_nbytes.bit_length() - 1) if tables_nbytes else None
            self._chain_nbytes = tables_nbytes if self._solid and tables_nbytes else len(data)
            self._chain_key = key
            self._chain_asks_at = 2 * len(data)
            self._chain_sample, self._chain_sample_cost = b"", 0.0
        self._chain_last = data[:CHAIN_SAMPLE_NBYTES], len(data)
        continues, chain = previous is not None, self._chain
        model_nbytes = 0 if self._walk is not None or self._source is None else _model_field_nbytes(key)
        small = chain is not None and len(data) <= SMALL_NBYTES
        helped = self._pipeline.helped and not small
        work = partial(encode_block, data, key, model_nbytes, last, continues, chain, helped, choice)
        if not flushed and not self._solid:
            self._chain = None  # a block that no flush ended may still be at work when the next one begins
        return {
            "work": work,
            "nbytes": nbytes,
            "key": key,
            "continues": continues,
            "original_nbytes": len(data),
            "threaded": not small,
        }

    def _prepared_numbers(self, data: bytes, last: bool, numbers: Numbers) -> dict[str, Any]:
        """As `_prepared`, of a block that is coded by method tensor, or stored."""
        base = self._base if numbers.base_at is not None else None
        key = (EngineSpec(Method.TENSOR, 0, 0, 0, numbers=numbers, base=base),)
        if not last:
            self._header(several=True, needs_model=True)
        nbytes = key[0].memory_nbytes(len(data), False, encoding=True)
        while not self._pipeline.room(nbytes):
            self._take()
        self._chain, self._chain_key = None, ()  # no block continues this one
        return {
            "work": partial(encode_block, data, key, 0, last, False, None, False, None),
            "nbytes": nbytes,
            "key": key,
            "original_nbytes": len(data),
        }

    def _tables_nbytes(self, nbytes: int) -> int:
        """What the tables of a chain are sized for that a flush begins with so many bytes; 0 for no chain."""
        if self._method in (Method.STORED, Method.LM):
            return 0  # they have no tables
        most = self._block_nbytes if self._solid else min(self._block_nbytes, CHAIN_NBYTES)
        return 1 << (most - 1).bit_length() if 2 * nbytes <= most else 0

    def _continued(self, nbytes: int, key: Key) -> EngineSpec | None:
        """What coded the block before, if one of so many bytes, which by itself had `key`, continues it."""
        if not self._solid and self._chain is None:
            return None
        previous = self._previous_spec()
        if previous is None or previous.streams > nbytes:
            return None
        if self._solid:
            # A chain's tables are as large as its first block asks for.
            return previous if nbytes <= 4 * self._chain_nbytes else None
        if self._chain_nbytes + nbytes > min(self._block_nbytes, CHAIN_NBYTES):
            return None
        fits = [other.streams for c in key for other in (c, c.thinned()) if c.method == previous.method]
        return previous if previous.streams in fits else None

    def _better_than_chain(self, key: Key, previous: EngineSpec) -> EngineSpec | None:
        """What the block is to begin a new chain with, if the chain is coded by the wrong method."""
        piece, nbytes = self._chain_last
        if len(self._chain_sample) + len(piece) > CHAIN_SAMPLE_NBYTES:
            self._chain_sample, self._chain_sample_cost = b"", 0.0
        self._chain_sample += piece
        self._chain_sample_cost += self._last_payload_nbytes * len(piece) / nbytes
        others = [spec for spec in key if spec.method != previous.method]
        if not others or self._chain_nbytes < self._chain_asks_at:
            return None
        self._chain_asks_at = 2 * self._chain_nbytes
        other = others[0]._replace(streams=1, groups=1, enlarge=0)
        seat = Seat((other,), self._pipeline.make_engine)
        coded_nbytes = Job(partial(_coded_nbytes, self._chain_sample, other), 0, seat).start_and_wait()
        return others[0] if coded_nbytes < CHAIN_CLEAR * self._chain_sample_cost else None

    def _previous_spec(self) -> EngineSpec | None:
        """What the block before was coded by, if another one may continue it."""
        previous = None if self._walk is None else self._walk.previous
        if previous is None:
            return None
        specs = [variant for spec in self._chain_key for variant in (spec, spec.thinned())]
        return next((c for c in specs if c.block(0, 0, False, False).engine == previous.engine), None)

    def _take(self) -> None:
        block, packed = self._pipeline.take()
        walk = self._header(several=False, needs_model=block.method.needs_model)
        walk.admit(block, f"block {walk.n_block + 1}")
        self._out.append(packed)
        self._last_payload_nbytes = block.payload_nbytes

    def _drain(self) -> None:
        while self._pipeline.n_at_work:
            self._take()

    def _end(self) -> None:
        self._drain()
        if self._walk is None or not self._walk.ended:
            walk = self._header(several=False)
            end = Block(Method.END, last=True)
            walk.admit(end, "end block")
            self._out.append(end.pack())
        assert self._walk is not None
        self._out.append(self._walk.tail())


def stored_frame(data: memoryview) -> bytes:
    """A frame that holds `data` as it is.

    It takes no engine, no thread and no import: there may be none while the interpreter is taken apart.
    """
    several = len(data) > frame.MAX_BLOCK_NBYTES
    walk = FrameWalk(FrameHeader(None, None, several))
    out = [walk.header.pack()]
    for at in range(0, len(data), frame.MAX_BLOCK_NBYTES):
        piece = bytes(data[at : at + frame.MAX_BLOCK_NBYTES])
        block = Block(Method.STORED, len(piece), len(piece), last=at + len(piece) == len(data))
        walk.admit(block, f"block {walk.n_block + 1}")
        out.append(block.pack(piece, piece))
    return b"".join([*out, walk.tail()])


def _may_hold_tensors(head: bytes) -> bool:
    """Whether data that begins so is to be looked at more closely, for which modules are loaded."""
    return head[:4] in (b"GGUF", b"PK\3\4", b"\x93NUM") or head[8:9] == b"{" or head[:1] == b"\x80"


def _coded_nbytes(data: bytes, spec: EngineSpec, seat: Seat) -> int:
    return len(seat.engine(spec, False).encode(data))


def _model_field_nbytes(key: Key) -> int:
    """Bytes of the field of a frame's header that names the model."""

    def nbytes(model: Model | None) -> int:
        if model is None or model.number is not None:
            return 1
        bound_to = model.fingerprint
        return 9 if bound_to is None else 9 + len(pack_extensions([_bound(bound_to)])) + 4

    return max((nbytes(spec.model) for spec in key), default=0)


def _prior_coding(
    prior: Prior,
    level: int,
    method: Method | None,
    model: FilePath | None,
    executor: str,
    streams: int | None,
) -> int:
    """How a prior's messages are coded at a level.

    Raises:
        TypeError, ValueError: the other arguments do not go with a prior.
    """
    if not isinstance(prior, Prior):
        raise TypeError(f"prior must be a Prior, not {type(prior).__name__}")
    if model is not None or executor != KERNEL or (streams or 1) > 1:
        raise ValueError("a prior has its own model, a single stream and executor kernel: give no other")
    return prior.coding_of(as_int(level), method)


# What `compress` does without being told: block_size to executor.
_PLAIN = (None, None, None, None, None, False, AUTO, KERNEL)


def _bound(bound_to: Fingerprint) -> Extension:
    """The field that says what a frame is bound to."""
    return Extension(ExtensionType.ENVIRONMENT, bound_to.pack(), critical=True)


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
    model_only: bool = False,
    method: str = AUTO,
    executor: str = KERNEL,
    prior: Prior | None = None,
    short_check: bool = False,
    base: BasePath | Base | None = None,
) -> bytes:
    """Compress `data` (any buffer) to one frame.

    Args: see `Compressor`.

    Raises:
        TypeError, ValueError: as `Compressor`.
        LmcodecError: if the model is not there, damaged or not one to compress with.
    """
    with byte_view(data) as view:
        plain = (block_size, threads, streams, groups, model, solid, method, executor) == _PLAIN
        if prior is not None and plain and 0 < len(view) <= MAX_MESSAGE_NBYTES:
            # The way of small messages, without a Compressor.
            level = number("level", level, min(LEVELS), max(LEVELS))
            coding = _prior_coding(prior, level, None, None, executor, None)
            return prior.frame(view.tobytes(), coding, bool(short_check))
        compressor = Compressor(
            level,
            block_size=block_size,
            threads=threads,
            solid=solid,
            content_size=len(view),
            streams=streams,
            groups=groups,
            model=model,
            model_only=model_only,
            method=method,
            executor=executor,
            prior=prior,
            short_check=short_check,
            base=base,
        )
        try:
            return compressor.compress(view, Compressor.FLUSH_FRAME)
        finally:
            del compressor  # whoever keeps an error keeps what this call holds
