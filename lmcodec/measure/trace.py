"""What every byte of a text costs: as it is coded, and under the language model alone.

A byte's bits are -log2 of the probability under which its decisions are coded, and a ten-thousandth of a bit
each for the coder's rounding; a block's together are its payload, up to how its coder words end.
The decision whether a token ends belongs to the byte that follows it; where a stream ends there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import index as as_int
from typing import Any, NamedTuple

import numpy as np

from lmcodec.codec import AUTO, DEFAULT_BLOCK_NBYTES, DEFAULT_LEVEL, Compressor, byte_view
from lmcodec.coder import SpentBits
from lmcodec.engine import LmEngine
from lmcodec.lm.store import FilePath, Model
from lmcodec.measure.blocks import CodedBlock, FrameWatch, Replay, frees_on_error, model_of, network_lengths

MAX_ALTERNATIVES = 256  # every vocabulary has as many tokens
_ROWS = 64  # tokens whose frequencies are looked at together


@dataclass(frozen=True)
class TracedBlock:
    """A block that lies in a trace's range, at least in part.

    Attributes:
        offset: of its first byte, in the data.
        nbytes: of the original.
        method: `stored`, `cm`, `lm+cm`, `lm` or `tensor`.
        profile, streams, groups: how it is coded; 0 if stored.
        continues: whether it is coded with what the block before left.
        payload_nbytes: the coder's words, or the original if stored.
        frame_nbytes: header and payload.
    """

    offset: int
    nbytes: int
    method: str
    profile: int
    streams: int
    groups: int
    continues: bool
    payload_nbytes: int
    frame_nbytes: int


@dataclass(frozen=True, eq=False)
class Trace:
    """The cost of the bytes `begin` to `end` - 1 of a text, n of them.

    Offsets of tokens and blocks count from the start of the text, not of the range. Tokens are those that
    begin in the range, in ascending order; blocks coded without a network have none.

    Attributes:
        nbytes: n.
        begin, end: the range.
        total_nbytes: of the whole text.
        bits: (n,) float64, bits that each byte takes as it is coded; 8 in stored blocks, the
            mean in those of method tensor. Those of a block,
            divided by 8, are the bytes of its payload to within 8.
        lm_bits: (n,) float64, bits under the network alone; NaN in blocks coded without it.
        token_begin: (n_token,) int64, offset of each token's first byte.
        token_id: (n_token,) uint32.
        blocks: those with bytes in the range.
        frame_nbytes: of the frame of the whole text; None where blocks outside the range were left out.
        model: the language model that the level can use; None if it uses none. `model.vocabulary.strings`
            are the tokens' bytes.
        token_p: (n_token,) float64, the network's probability of each token; None unless `alternatives`.
        alternative_id: (n_token, k) uint32, the tokens that the network held likeliest in each token's place,
            the likeliest first, and of equal ones that with the lower id; None unless `alternatives`.
        alternative_p: (n_token, k) float64, their probabilities.
    """

    nbytes: int
    begin: int
    end: int
    total_nbytes: int
    bits: np.ndarray = field(repr=False)
    lm_bits: np.ndarray = field(repr=False)
    token_begin: np.ndarray = field(repr=False)
    token_id: np.ndarray = field(repr=False)
    blocks: tuple[TracedBlock, ...]
    frame_nbytes: int | None
    model: Model | None = field(default=None, repr=False)
    token_p: np.ndarray | None = field(default=None, repr=False)
    alternative_id: np.ndarray | None = field(default=None, repr=False)
    alternative_p: np.ndarray | None = field(default=None, repr=False)


@frees_on_error
def trace(
    data: Any,
    level: int | None = None,
    *,
    model: FilePath | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    solid: bool = False,
    streams: int | None = None,
    groups: int | None = None,
    method: str = AUTO,
    begin: int | None = None,
    end: int | None = None,
    alternatives: int = 0,
) -> Trace:
    """What the bytes of `data` (any buffer) cost when `compress` with the same arguments codes them.

    Blocks without a byte in the range are not looked at, unless `solid`, where those before it are coded.
    Memory: 16 bytes a byte of the range, and what coding a few blocks takes.

    Args:
        level: 6 if None.
        model, block_size, threads, solid, streams, groups, method: see `Compressor`.
        begin, end: the range, as in data[begin:end].
        alternatives: k, how many likeliest tokens to give for each, 0 to 256. The network runs once more.

    Raises:
        TypeError, ValueError: an argument is out of range, or a model is given for a level or
            a method that uses none.
        LmcodecError: the model is not there, damaged or not one to compress with.
    """
    level = DEFAULT_LEVEL if level is None else level
    k = as_int(alternatives)
    if not 0 <= k <= MAX_ALTERNATIVES:
        raise ValueError(f"alternatives must be 0 to {MAX_ALTERNATIVES}, not {k}")
    options: dict[str, Any] = {
        "block_size": block_size,
        "threads": threads,
        "solid": solid,
        "streams": streams,
        "groups": groups,
        "model": model,
        "method": method,
    }
    Compressor(level, **options)  # refuses what is wrong
    with byte_view(data) as view:
        first, last, _ = slice(begin, end).indices(len(view))
        last = max(first, last)
        block_nbytes = DEFAULT_BLOCK_NBYTES if block_size is None else as_int(block_size)
        coded_from = 0 if solid else first // block_nbytes * block_nbytes
        coded_to = min(-(-last // block_nbytes) * block_nbytes, len(view))
        is_whole = (coded_from, coded_to) == (0, len(view))
        compressor = Compressor(level, content_size=len(view) if is_whole else None, **options)
        network = model_of(level, model, method)
        traced = _Traced(first, last, network, k)
        replay = Replay(network)
        if is_whole:
            watch = FrameWatch(compressor)
            blocks = _whole(watch, view, block_nbytes)
        else:
            watch = FrameWatch(compressor, offset=max(coded_from - 1, 0))
            blocks = _part(watch, view, coded_from, coded_to, block_nbytes)
        for block in blocks:
            traced.add(block, replay)
        return traced.result(len(view), watch.nbytes if is_whole else None)


def surprisal(
    data: Any,
    level: int = DEFAULT_LEVEL,
    *,
    model: FilePath | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    solid: bool = False,
    streams: int | None = None,
    groups: int | None = None,
    method: str = AUTO,
) -> np.ndarray:
    """Bits that each byte of `data` (any buffer) takes when `compress` with the same arguments codes it.

    The sum over a block, divided by 8, is the size of its payload to within 8 bytes; headers are not in it.

    Args:
        level, model, block_size, threads, solid, streams, groups, method: see `Compressor`.

    Returns:
        (n,) float64, -log2 of each byte's probability; 8 in blocks that are stored, and one
        number, the mean, in those of method tensor.

    Raises:
        TypeError, ValueError: an argument is out of range, or a model is given for a level or
            a method that uses none.
        LmcodecError: the model is not there, damaged or not one to compress with.
    """
    return trace(
        data,
        level,
        model=model,
        block_size=block_size,
        threads=threads,
        solid=solid,
        streams=streams,
        groups=groups,
        method=method,
    ).bits


def _whole(watch: FrameWatch, view: memoryview, piece_nbytes: int) -> Iterator[CodedBlock]:
    """All blocks of the frame of `view`."""
    for at in range(0, len(view), piece_nbytes):
        yield from watch.feed(view[at : at + piece_nbytes])
    yield from watch.finish()


def _part(
    watch: FrameWatch, view: memoryview, begin: int, end: int, piece_nbytes: int
) -> Iterator[CodedBlock]:
    """The blocks from `begin` to `end`, borders of blocks, as they are in the frame of all of `view`."""
    # In a frame of several blocks the choice of a method is free of the cost of naming a model. A byte more,
    # a block of its own, makes this one of them.
    if begin:
        yield from (b for b in watch.feed(view[:1], Compressor.FLUSH_BLOCK) if b.offset >= begin)
        watch.end_chain()
    for at in range(begin, end, piece_nbytes):
        yield from watch.feed(view[at : min(at + piece_nbytes, end)])
    if not begin:
        yield from watch.feed(view[end : end + 1])
    yield from (b for b in watch.finish() if b.offset < end)


class _Traced:
    """Collects what blocks say of the bytes `begin` to `end` - 1."""

    def __init__(self, begin: int, end: int, model: Model | None, k: int) -> None:
        self._begin, self._end, self._model, self._k = begin, end, model, k
        self._bits = np.empty(end - begin)
        self._lm_bits = np.full(end - begin, np.nan)
        self._blocks: list[TracedBlock] = []
        self._tokens: list[_Tokens] = []

    def add(self, block: CodedBlock, replay: Replay) -> None:
        header, n = block.header, len(block.data)
        engine = replay.engine(block)
        low, high = max(self._begin - block.offset, 0), min(self._end - block.offset, n)
        bits = np.full(n, 8.0 * header.payload_nbytes / n) if engine is None else np.zeros(n)
        network = np.zeros(n) if isinstance(engine, LmEngine) else None
        spent = SpentBits()
        for decisions in () if engine is None else engine.trace(block.data):
            np.add.at(bits, decisions.offset, spent(decisions.bits, decisions.p16))
            if network is not None:
                np.add.at(network, decisions.offset, network_lengths(decisions))
        if low >= high:  # of a chain, before the range
            return
        here = slice(block.offset + low - self._begin, block.offset + high - self._begin)
        self._bits[here] = bits[low:high]
        if network is not None:
            self._lm_bits[here] = network[low:high]
        self._blocks.append(
            TracedBlock(
                block.offset,
                n,
                block.method,
                header.profile,
                header.streams,
                header.groups,
                header.continues,
                header.payload_nbytes,
                header.nbytes,
            )
        )
        if isinstance(engine, LmEngine):
            assert self._model is not None
            self._tokens += _tokens(block, engine, self._model, low, high, self._k)

    def result(self, total_nbytes: int, frame_nbytes: int | None) -> Trace:
        def joined(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.concatenate([np.empty(shape, dtype), *(getattr(t, name) for t in self._tokens)])

        k = self._k
        return Trace(
            self._end - self._begin,
            self._begin,
            self._end,
            total_nbytes,
            self._bits,
            self._lm_bits,
            joined("begin", (0,), np.int64),
            joined("ids", (0,), np.uint32),
            tuple(self._blocks),
            frame_nbytes,
            self._model,
            joined("p", (0,), np.float64) if k else None,
            joined("alternative_id", (0, k), np.uint32) if k else None,
            joined("alternative_p", (0, k), np.float64) if k else None,
        )


class _Tokens(NamedTuple):
    """Tokens of a stream that begin in the range; the last three only where alternatives are asked for."""

    begin: np.ndarray  # (n,) int64
    ids: np.ndarray  # (n,) uint32
    p: np.ndarray | None  # (n,) float64
    alternative_id: np.ndarray | None  # (n, k) uint32
    alternative_p: np.ndarray | None  # (n, k) float64


def _tokens(
    block: CodedBlock, engine: LmEngine, model: Model, low: int, high: int, k: int
) -> Iterator[_Tokens]:
    """What begins at the block's bytes `low` to `high` - 1, stream by stream."""
    n = len(block.data)
    sizes = model.vocabulary.nbytes
    for s, ids in enumerate(engine.tokens(block.data)):
        ends = s * n // block.header.streams + np.cumsum(sizes[ids], dtype=np.int64)
        begins = ends - sizes[ids]
        first, last = np.searchsorted(begins, [low, high]).tolist()
        if first == last:
            continue
        found: tuple[np.ndarray | None, ...] = (None, None, None)
        if k:
            cut = s > 0 or block.header.continues
            found = likeliest(model, ids[:last], cut, first, k)
        yield _Tokens(begins[first:last] + block.offset, ids[first:last], *found)


def likeliest(
    model: Model, ids: np.ndarray, cut: bool, first: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of the tokens of a stream from `first` on, ids and probabilities of the k likeliest.

    Args:
        ids: the stream's tokens, from its first to the last one to look at.
        cut: the stream begins in the middle of a document.
    """
    size = len(model.vocabulary)
    inputs = np.empty((len(ids), 1), np.uint32)
    inputs[0], inputs[1:, 0] = model.network.start_token(cut), ids[:-1]
    session = model.network.session(1)
    session.begin(0, cut)
    if first:
        session.run(inputs[:first], None)
    p = np.empty(len(ids) - first)
    best, best_p = np.empty((len(p), k), np.uint32), np.empty((len(p), k))
    lower_first = np.arange(size - 1, -1, -1, dtype=np.uint64)
    for at in range(first, len(ids), _ROWS):
        to = min(at + _ROWS, len(ids))
        freq = np.empty((to - at, size), np.uint32)
        session.run(inputs[at:to], freq[:, None])
        total = freq.sum(axis=1, dtype=np.uint64)[:, None]
        here = slice(at - first, to - first)
        p[here] = (np.take_along_axis(freq, ids[at:to, None].astype(np.int64), axis=1) / total)[:, 0]
        rank = freq.astype(np.uint64) << np.uint64(20) | lower_first
        top = np.argpartition(rank, size - k, axis=1)[:, size - k :]
        order = np.argsort(np.take_along_axis(rank, top, axis=1), axis=1)[:, ::-1]
        best[here] = top = np.take_along_axis(top, order, axis=1)
        best_p[here] = np.take_along_axis(freq, top, axis=1) / total
    return p, best, best_p
