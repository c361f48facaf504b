"""The blocks of a frame as `compress` makes it, and the decisions that they are coded by.

A `FrameWatch` compresses for real and tells of every block what became of it, so that whatever the codec
chooses is what is measured. A `Replay` codes a block again the way its header says and lists the decisions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import wraps
from operator import index as as_int
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from lmcodec import coder, frame
from lmcodec.codec import AUTO, LEVELS, Compressor
from lmcodec.engine import Decisions, Engine, LmEngine
from lmcodec.errors import clear_frames
from lmcodec.frame import Block, FrameWalk, Method
from lmcodec.lm import store
from lmcodec.lm.store import FilePath, Model

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def frees_on_error(call: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """`call`, but the errors that it raises do not keep alive what it worked with, engines among it."""

    @wraps(call)
    def freeing(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
        try:
            return call(*arguments, **named)
        except BaseException as error:
            clear_frames(error)
            raise

    return freeing


def model_of(level: int, model: FilePath | None, method: str = AUTO) -> Model | None:
    """The language model that `compress` can use at a level, by a method; None if it uses none."""
    names = LEVELS[as_int(level)].models if method not in ("stored", "cm") else ()
    source = store.default(model, names) if names else None
    return None if source is None else store.load(source)


class CodedBlock(NamedTuple):
    """A block of a frame.

    Attributes:
        header: what the frame says of it.
        offset: of its first byte, in the data.
        data: the original.
    """

    header: Block
    offset: int
    data: bytes

    @property
    def method(self) -> str:
        return self.header.method.label


class FrameWatch:
    """Compresses data that comes in pieces to one frame, and gives out its blocks instead of its bytes.

    It keeps what is at work in the compressor: a few blocks.

    Args:
        compressor: a fresh one.
        offset: of the data's first byte, in what the caller counts from.

    Attributes:
        nbytes: of the frame so far; of the whole frame after `finish`.
    """

    def __init__(self, compressor: Compressor, offset: int = 0) -> None:
        self.nbytes = 0
        self._compressor = compressor
        self._walk: FrameWalk | None = None
        self._originals: deque[memoryview] = deque()
        self._offset = offset

    def feed(self, data: Any, mode: int = Compressor.CONTINUE) -> Iterator[CodedBlock]:
        """Compress `data` (bytes-like, kept until its block is given out); the blocks that are done."""
        if len(data):
            self._originals.append(memoryview(data))
        return self._parse(self._compressor.compress(data, mode))

    def end_chain(self) -> None:
        """Let the next block be independent of one that a flush ended."""
        self._compressor.end_chain()

    def finish(self) -> Iterator[CodedBlock]:
        """End the frame; the blocks that are left."""
        return self.feed(b"", Compressor.FLUSH_FRAME)

    def _parse(self, packed: bytes) -> Iterator[CodedBlock]:
        """The blocks in a compressor's output, which is always whole headers, blocks and indexes."""
        self.nbytes += len(packed)
        at = 0
        if self._walk is None and packed:
            header = frame.parse_header(packed)
            assert header is not None
            self._walk = FrameWalk(header)
            at = header.nbytes
        while at < len(packed) and self._walk is not None and not self._walk.ended:
            head = packed[at : at + frame.MAX_BLOCK_HEADER_NBYTES]
            block = self._walk.header.parse_block(head, "block", self._walk.previous)
            assert block is not None
            self._walk.admit(block, "block")
            at += block.nbytes
            if block.method != Method.END:
                data = self._take(block.original_nbytes)
                yield CodedBlock(block, self._offset - len(data), data)

    def _take(self, nbytes: int) -> bytes:
        pieces = []
        self._offset += nbytes
        while nbytes:
            piece = self._originals.popleft()
            if len(piece) > nbytes:
                self._originals.appendleft(piece[nbytes:])
                piece = piece[:nbytes]
            pieces.append(piece)
            nbytes -= len(piece)
        return b"".join(pieces)


class Replay:
    """Codes the blocks of a frame again, in their order.

    Args:
        model: of the frame's blocks with a language model; None if there is none.
    """

    def __init__(self, model: Model | None) -> None:
        self._model = model
        self._engine: Engine | LmEngine | None = None
        self._coded_by: tuple[int, ...] | None = None

    def engine(self, block: CodedBlock) -> Engine | LmEngine | None:
        """What codes the block, as it stands before the block; None if nothing codes its decisions."""
        header = block.header
        if not header.method.has_streams:
            self._engine = self._coded_by = None
        elif self._engine is None or header.engine != self._coded_by:
            assert not header.continues
            self._coded_by = header.engine
            if header.method == Method.CM:
                self._engine = Engine(header.profile, header.streams, header.groups, header.enlarge)
            else:
                assert self._model is not None
                profile = header.profile or None  # none of method lm
                self._engine = LmEngine(self._model, profile, header.streams, header.groups, header.enlarge)
        if self._engine is not None and not header.continues:
            self._engine.reset(header.tables_nbytes)
        return self._engine


def coded_lengths(decisions: Decisions) -> np.ndarray:
    """(n,) float64: bits that each decision takes as it is coded."""
    return _lengths(decisions.bits, decisions.p16)


def network_lengths(decisions: Decisions) -> np.ndarray:
    """(n,) float64: bits that each decision would take under the network's probability alone."""
    assert decisions.network_p16 is not None
    return _lengths(decisions.bits, decisions.network_p16)


def _lengths(bits: np.ndarray, p16: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = coder.code_lengths()[bits.astype(np.int32) << 16 | p16]
    return lengths
