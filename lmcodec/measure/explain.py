"""Where the bits of a text go: what each piece of it costs and what was expected instead, as numbers.

It traces the text as `compress` codes it and cuts the part that is shown into units that can be looked at;
`page` and `picture` show what it finds. Knows nothing of HTML and of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lmcodec.codec import AUTO, DEFAULT_BLOCK_NBYTES, DEFAULT_LEVEL, byte_view
from lmcodec.errors import ConfigError
from lmcodec.lm.store import FilePath, Model
from lmcodec.measure import visible
from lmcodec.measure.trace import Trace, TracedBlock, likeliest, trace

SHOWN_NBYTES = 20_000  # of the text, unless a range is asked for
MAX_SHOWN_NBYTES = 1 << 20  # a page of more is too much for a browser
ALTERNATIVES = 5
PASSAGE_FACTOR = 1.5  # a passage is what costs so many times the mean
MAX_PASSAGES = 10
MAX_BINS = 240
MIN_BIN_NBYTES = 16
_MARGIN_NBYTES = 512  # longer than a token: units at the borders of the range are found whole


class Unit(NamedTuple):
    """A piece of text that is shown and coloured as one: a token, or a character where tokens split one.

    Attributes:
        begin, end: offsets in the text, in bytes.
        first, last: its tokens are first to last - 1 of the explanation's; none where no network coded it.
        bits: as coded.
        lm_bits: under the network alone; NaN where it took no part.
    """

    begin: int
    end: int
    first: int
    last: int
    bits: float
    lm_bits: float


class Passage(NamedTuple):
    """A run of units that costs more than the text around it.

    Attributes:
        first, last: it is units first to last - 1.
        begin, end: offsets in the text, in bytes.
        bits: as coded.
    """

    first: int
    last: int
    begin: int
    end: int
    bits: float


class Series(NamedTuple):
    """Bits per byte by position.

    Attributes:
        edges: (k + 1,) int64, offsets in the text, in bytes.
        coded: (k,) float64, bits per byte as coded.
        network: (k,) float64, under the network alone; NaN where it did not see every byte.
    """

    edges: np.ndarray
    coded: np.ndarray
    network: np.ndarray


class Totals(NamedTuple):
    """Sums over a range.

    Attributes:
        begin, end: the range, in bytes.
        n_token: tokens that begin in it.
        bits: as coded.
        lm_bits: of the bytes that the network saw, under it alone.
        lm_nbytes: how many these are.
    """

    begin: int
    end: int
    n_token: int
    bits: float
    lm_bits: float
    lm_nbytes: int

    @property
    def bpb(self) -> float | None:
        """Bits per byte as coded; None of nothing."""
        return self.bits / (self.end - self.begin) if self.end > self.begin else None

    @property
    def lm_bpb(self) -> float | None:
        """Bits per byte under the network alone, where it took part; None if nowhere."""
        return self.lm_bits / self.lm_nbytes if self.lm_nbytes else None


@dataclass(frozen=True)
class Tokens:
    """Tokens in ascending order, n of them.

    Attributes:
        begin, end: (n,) int64, offsets in the text, in bytes.
        ids: (n,) uint32.
        bits: (n,) float64, of their bytes as coded.
        lm_bits: (n,) float64, of their bytes under the network alone.
        p: (n,) float64, the network's probabilities of these tokens.
        alternative_id: (n, k) uint32, what the network held likeliest in each one's place, likeliest first.
        alternative_p: (n, k) float64, their probabilities.
        strings: the vocabulary.
    """

    begin: np.ndarray
    end: np.ndarray
    ids: np.ndarray
    bits: np.ndarray
    lm_bits: np.ndarray
    p: np.ndarray
    alternative_id: np.ndarray
    alternative_p: np.ndarray
    strings: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What there is to say of a text.

    Attributes:
        name: of the text.
        nbytes: of the whole text.
        level: it was coded at.
        model: that the level can use; None if it uses none.
        begin, end: what is shown, whole units.
        data: the bytes that are shown.
        line: number of the first line shown, from 1.
        bits, lm_bits: (end - begin,) float64, of each byte: as coded; under the network alone, NaN where
            it took no part.
        tokens: those that are shown, at least in part.
        units: what is shown, in order and without gaps.
        passages: the costliest of what is shown, the costliest first.
        shown, coded: sums over what is shown, and over the blocks that it lies in, which were coded.
        shown_series, coded_series: bits per byte over the same ranges.
        blocks: that were coded.
        frame_nbytes: of the frame of the whole text; None if it has several blocks.
    """

    name: str
    nbytes: int
    level: int
    model: Model | None = field(repr=False)
    begin: int
    end: int
    data: bytes = field(repr=False)
    line: int
    bits: np.ndarray = field(repr=False)
    lm_bits: np.ndarray = field(repr=False)
    tokens: Tokens = field(repr=False)
    units: list[Unit] = field(repr=False)
    passages: list[Passage]
    shown: Totals
    coded: Totals
    shown_series: Series = field(repr=False)
    coded_series: Series = field(repr=False)
    blocks: list[TracedBlock]
    frame_nbytes: int | None

    @property
    def is_whole(self) -> bool:
        """Whether all of the text is shown."""
        return (self.begin, self.end) == (0, self.nbytes)


def explain(
    data: Any,
    level: int | None = None,
    *,
    name: str = "",
    model: FilePath | None = None,
    block_size: int | None = None,
    method: str = AUTO,
    begin: int | None = None,
    end: int | None = None,
    whole: bool = False,
    alternatives: int = ALTERNATIVES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """Explain `data` (any buffer) as `compress` with the same arguments codes it.

    The blocks that the range lies in are coded. Memory: 16 bytes a byte of a block and a few kilobytes a byte
    shown.

    Args:
        level: 6 if None.
        name: what the text is called.
        model, block_size, method: see `Compressor`.
        begin, end: the range to show, as in data[begin:end]; the first SHOWN_NBYTES bytes, or as many from
            `begin` on, if `end` is None.
        whole: code all blocks, so that sums and series are over the whole text.
        alternatives: likeliest tokens to give for each, 0 to 256.
        progress: is told how many bytes were traced, and of how many.

    Raises:
        TypeError, ValueError: an argument is out of range, or a model is given for a level or
            a method that uses none.
        ConfigError: the range is too large.
        LmcodecError: the model is not there, damaged or not one to compress with.
    """
    with byte_view(data) as view:
        n = len(view)
        first, last = _range(n, begin, end)
        # What stands in the margins completes the units at the range's borders.
        low, high = max(first - _MARGIN_NBYTES, 0), min(last + _MARGIN_NBYTES, n)
        window = _Window(view, low, high, alternatives)
        size = block_size or DEFAULT_BLOCK_NBYTES
        coded_from = 0 if whole else first // size * size
        coded_to = n if whole else min(max(-(-last // size) * size, coded_from + 1), n)
        coded = _Sums(coded_from, coded_to)
        blocks: list[TracedBlock] = []
        progress(0, coded_to - coded_from)
        traced: Trace | None = None
        for at in range(coded_from, max(coded_to, coded_from + 1), size):
            traced = trace(
                view,
                level,
                model=model,
                block_size=block_size,
                method=method,
                begin=at,
                end=min(at + size, coded_to),
            )
            coded.add(traced)
            window.add(traced)
            blocks += traced.blocks
            progress(traced.end - coded_from, coded_to - coded_from)
        assert traced is not None
        tokens = window.tokens(traced.model)
        units = [
            unit for unit in _units(window, tokens) if unit.end > first and (unit.begin < last or n == 0)
        ]
        if units:
            first, last = units[0].begin, units[-1].end
        inside = slice(first - low, last - low)
        bits, lm_bits = window.bits[inside], window.lm_bits[inside]
        shown = _Sums(first, last)
        shown.add_bits(first, bits, lm_bits)
        shown.n_token = int(np.count_nonzero((tokens.begin >= first) & (tokens.begin < last)))
        totals = shown.totals()
        return Explanation(
            name,
            n,
            DEFAULT_LEVEL if level is None else level,
            traced.model,
            first,
            last,
            bytes(view[first:last]),
            _count_lines(view[:first]) + 1,
            bits,
            lm_bits,
            tokens,
            units,
            _passages(units, totals),
            totals,
            coded.totals(),
            shown.series(),
            coded.series(),
            blocks,
            traced.frame_nbytes,
        )


def _range(n: int, begin: int | None, end: int | None) -> tuple[int, int]:
    """The range to show of `n` bytes.

    Raises:
        ConfigError: it is too large.
    """
    first = slice(begin, None).indices(n)[0]
    last = min(first + SHOWN_NBYTES, n) if end is None else max(slice(None, end).indices(n)[1], first)
    if last - first > MAX_SHOWN_NBYTES:
        raise ConfigError(
            f"the range of {last - first:,} bytes is too large for a page; at most {MAX_SHOWN_NBYTES:,} can "
            "be shown at a time"
        )
    return first, last


def _count_lines(view: memoryview) -> int:
    """Line feeds, without a copy of all of it."""
    step = 1 << 20
    return sum(bytes(view[at : at + step]).count(b"\n") for at in range(0, len(view), step))


class _Sums:
    """Adds up what bytes cost, in total and by position."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end
        self.n_token = 0
        self._bits = self._lm_bits = 0.0
        self._lm_nbytes = 0
        k = max(min(MAX_BINS, (end - begin) // MIN_BIN_NBYTES), 1)
        self._edges = begin + np.arange(k + 1, dtype=np.int64) * (end - begin) // k
        self._coded, self._network = np.zeros(k), np.zeros(k)

    def add(self, traced: Trace) -> None:
        self.n_token += len(traced.token_id)
        self.add_bits(traced.begin, traced.bits, traced.lm_bits)

    def add_bits(self, begin: int, bits: np.ndarray, lm_bits: np.ndarray) -> None:
        """Add bytes from `begin` on: (n,) as coded; (n,) under the network."""
        seen = ~np.isnan(lm_bits)
        self._bits += float(bits.sum())
        self._lm_bits += float(lm_bits[seen].sum())
        self._lm_nbytes += int(np.count_nonzero(seen))
        k = len(self._coded)
        where = np.searchsorted(self._edges, begin + np.arange(len(bits)), side="right") - 1
        self._coded += np.bincount(where, bits, k)
        self._network += np.bincount(where, lm_bits, k)

    def totals(self) -> Totals:
        return Totals(self._begin, self._end, self.n_token, self._bits, self._lm_bits, self._lm_nbytes)

    def series(self) -> Series:
        nbytes = np.maximum(np.diff(self._edges), 1)
        return Series(self._edges, self._coded / nbytes, self._network / nbytes)


class _Window:
    """Collects what traces say of the bytes `begin` to `end` - 1.

    Attributes:
        data: these bytes.
        bits, lm_bits: (end - begin,) float64, of them.
    """

    def __init__(self, view: memoryview, begin: int, end: int, k: int) -> None:
        self.begin, self.end, self._k = begin, end, k
        self._view = view
        self.data = bytes(view[begin:end])
        self.bits = np.zeros(end - begin)
        self.lm_bits = np.full(end - begin, np.nan)
        self._tokens: list[tuple[np.ndarray, ...]] = []

    def add(self, traced: Trace) -> None:
        low, high = max(self.begin, traced.begin), min(self.end, traced.end)
        if low >= high:
            return
        there, here = (
            slice(low - traced.begin, high - traced.begin),
            slice(low - self.begin, high - self.begin),
        )
        self.bits[here], self.lm_bits[here] = traced.bits[there], traced.lm_bits[there]
        for block in traced.blocks:
            if block.method.startswith("lm"):
                self._add_block(traced, block)

    def _add_block(self, traced: Trace, block: TracedBlock) -> None:
        """Add the tokens of a block that lie in the window, at least in part."""
        assert traced.model is not None
        sizes = traced.model.vocabulary.nbytes
        for s in range(block.streams):
            low, high = (block.offset + t * block.nbytes // block.streams for t in (s, s + 1))
            first, last = np.searchsorted(traced.token_begin, [low, high])
            begin, ids = traced.token_begin[first:last], traced.token_id[first:last]
            end = begin + sizes[ids]
            a, b = np.searchsorted(end, self.begin, "right"), np.searchsorted(begin, self.end)
            if a < b:
                found = likeliest(traced.model, ids[:b], s > 0 or block.continues, int(a), self._k)
                self._tokens.append((begin[a:b], end[a:b], ids[a:b], *found))

    def tokens(self, model: Model | None) -> Tokens:
        k = self._k
        nothing = (
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.uint32),
            np.empty(0),
            np.empty((0, k), np.uint32),
            np.empty((0, k)),
        )
        columns = zip(nothing, *self._tokens, strict=True)
        begin, end, ids, p, alternative_id, alternative_p = map(np.concatenate, columns)
        sums = [np.concatenate([[0.0], np.cumsum(bits)]) for bits in (self.bits, np.nan_to_num(self.lm_bits))]
        low, high = (np.clip(at - self.begin, 0, len(self.data)) for at in (begin, end))
        strings = () if model is None else model.vocabulary.strings
        return Tokens(
            begin,
            end,
            ids,
            sums[0][high] - sums[0][low],
            sums[1][high] - sums[1][low],
            p,
            alternative_id,
            alternative_p,
            strings,
        )


def _units(window: _Window, tokens: Tokens) -> list[Unit]:
    """The units of a window.

    A token is a unit if it begins and ends where text may be cut. Between two such cuts that have several
    tokens between them, and where there are no tokens, every character is one.
    """
    n = len(window.data)
    if not n:
        return []
    owner = np.full(n, -1)
    at = window.begin + np.arange(n)
    if len(tokens):
        owner = np.searchsorted(tokens.begin, at, side="right") - 1
        owner[(owner < 0) | (at >= tokens.end[owner])] = -1
    cuts = visible.cluster_begins(window.data)
    borders = np.append(cuts[(cuts == 0) | (owner[cuts - 1] != owner[cuts]) | (owner[cuts] < 0)], n)
    begins: list[int] = []
    for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        is_split = owner[a] != owner[b - 1]
        begins += cuts[np.searchsorted(cuts, a) : np.searchsorted(cuts, b)].tolist() if is_split else [a]
    ends = [*begins[1:], n]
    coded = np.add.reduceat(window.bits, begins).tolist()
    network = np.add.reduceat(window.lm_bits, begins).tolist()
    units = []
    for a, b, bits, lm_bits in zip(begins, ends, coded, network, strict=True):
        mine = owner[a:b][owner[a:b] >= 0]
        first, last = (int(mine[0]), int(mine[-1]) + 1) if len(mine) else (0, 0)
        units.append(Unit(window.begin + a, window.begin + b, first, last, bits, lm_bits))
    return units


def _passages(units: Sequence[Unit], totals: Totals) -> list[Passage]:
    """The runs of units that exceed PASSAGE_FACTOR times the mean by most, the largest excess first.

    They are the maximal scoring subsequences of Ruzzo and Tompa (ISMB 1999), a unit's score being its bits
    less what it may cost; found in linear time.
    """
    allowed = PASSAGE_FACTOR * (totals.bpb or 0.0)
    # Candidates: first unit, last unit + 1, sum of scores before the first, sum up to the last, and which
    # candidate is the nearest one before it whose sum before is smaller (-1: none).
    found: list[tuple[int, int, float, float, int]] = []
    total = 0.0
    for i, unit in enumerate(units):
        left, total = total, total + unit.bits - allowed * (unit.end - unit.begin)
        if total <= left:
            continue
        first = i
        while True:
            j = len(found) - 1
            while j >= 0 and found[j][2] >= left:
                j = found[j][4]
            if j < 0 or found[j][3] >= total:
                break
            first, left = found[j][0], found[j][2]
            del found[j:]
        found.append((first, i + 1, left, total, j))
    best = sorted(found, key=lambda c: (c[2] - c[3], c[0]))[:MAX_PASSAGES]
    return [
        Passage(
            first,
            last,
            units[first].begin,
            units[last - 1].end,
            sum(unit.bits for unit in units[first:last]),
        )
        for first, last, *_ in best
    ]


def as_json_object(explanation: Explanation) -> dict[str, Any]:
    """The numbers of an explanation, for `json.dumps`; what is not there is None."""
    e, tokens = explanation, explanation.tokens
    return {
        "file": e.name,
        "nbytes": e.nbytes,
        "level": e.level,
        "model": None if e.model is None else {"id": e.model.model_id, "file": e.model.path.name},
        "frame_nbytes": e.frame_nbytes,
        "shown": _totals_object(e.shown),
        "coded": _totals_object(e.coded),
        "blocks": [
            {
                "offset": block.offset,
                "nbytes": block.nbytes,
                "method": block.method,
                "profile": block.profile,
                "streams": block.streams,
                "frame_nbytes": block.frame_nbytes,
            }
            for block in e.blocks
        ],
        "passages": [
            {"begin": p.begin, "end": p.end, "bits": round(p.bits, 3)}
            | _text_object(e.data[p.begin - e.begin : p.end - e.begin])
            for p in e.passages
        ],
        "series": {"shown": _series_object(e.shown_series), "coded": _series_object(e.coded_series)},
        "bits": _rounded(e.bits),
        "network_bits": _rounded(e.lm_bits),
        "tokens": [
            {
                "begin": int(tokens.begin[i]),
                "end": int(tokens.end[i]),
                "id": int(tokens.ids[i]),
                **_text_object(tokens.strings[tokens.ids[i]]),
                "bits": round(float(tokens.bits[i]), 4),
                "network_bits": round(float(tokens.lm_bits[i]), 4),
                "network_p": float(tokens.p[i]),
                "alternatives": [
                    {"id": other, **_text_object(tokens.strings[other]), "p": p}
                    for other, p in zip(
                        tokens.alternative_id[i].tolist(), tokens.alternative_p[i].tolist(), strict=True
                    )
                ],
            }
            for i in range(len(tokens))
            if tokens.end[i] > e.begin and tokens.begin[i] < e.end
        ],
    }


def _totals_object(totals: Totals) -> dict[str, Any]:
    return {
        "begin": totals.begin,
        "end": totals.end,
        "tokens": totals.n_token,
        "bits": totals.bits,
        "bpb": totals.bpb,
        "network_bits": totals.lm_bits if totals.lm_nbytes else None,
        "network_nbytes": totals.lm_nbytes,
        "network_bpb": totals.lm_bpb,
    }


def _series_object(series: Series) -> dict[str, Any]:
    return {
        "edges": series.edges.tolist(),
        "coded": _rounded(series.coded),
        "network": _rounded(series.network),
    }


def _text_object(data: bytes) -> dict[str, str]:
    """Bytes as text, or in hexadecimal if they are not UTF-8."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.tolist()]
