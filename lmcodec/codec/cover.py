"""The choice of a prior's text: which of many samples, in which order, help others like them most.

Candidates are samples, or pieces of long ones. Several choices compete: pieces spread evenly, and pieces
that cover what many samples have in common (strings of k bytes, weighed by how many samples have them, as
dictionaries are made by zstd's COVER; Liao, Petri, Moffat, Wirth: Effective construction of relative
Lempel-Ziv dictionaries, 2016). Coding samples that were kept aside after each text tells which is best, and
whether parts of the best are to be replaced by parts of another.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lmcodec.codec.levels import LEVELS
from lmcodec.codec.spec import EngineSpec, make_engine
from lmcodec.frame import Method

if TYPE_CHECKING:
    import numpy as np

    from lmcodec.engine import Engine

MIN_SAMPLES = 10
MAX_SAMPLES_NBYTES = 32 << 20  # of all; of more, some are taken
_PIECE_NBYTES = 2 << 10  # of a sample that is longer
_HELD_OUT_SHARE = 10
_HELD_OUT_NBYTES = 48 << 10
_HELD_OUT_SAMPLES = 200
_KMERS_LOG2 = 22  # strings of k bytes are told apart by so many bits of a hash
_PARTS = 4  # of a text, that may be replaced


@dataclass(frozen=True)
class Chosen:
    """A prior's text and how it came about.

    Attributes:
        text: the text.
        n_sample: samples that were given.
        samples_nbytes: of all of them.
        held_out: of these, that were kept aside and measured.
        held_out_nbytes: of them.
        without_nbytes: what they become without a prior, each alone, at level 1, without a frame.
        coded_nbytes: what they become after the text.
        choice: what was chosen, in words.
    """

    text: bytes
    n_sample: int
    samples_nbytes: int
    held_out: int
    held_out_nbytes: int
    without_nbytes: int
    coded_nbytes: int
    choice: str

    def card(self) -> dict[str, Any]:
        """What a prior's file says of it."""
        return {
            "samples": self.n_sample,
            "samples_nbytes": self.samples_nbytes,
            "held_out": self.held_out,
            "held_out_nbytes": self.held_out_nbytes,
            "held_out_coded_nbytes": self.coded_nbytes,
            "held_out_coded_without_nbytes": self.without_nbytes,
            "choice": self.choice,
        }


def choose(samples: list[bytes], size: int) -> Chosen:
    """A text of at most `size` bytes for what is like the samples.

    Raises:
        ValueError: there are fewer than ten samples that hold something, or they are too long to be pieces.
    """
    samples = [sample for sample in samples if sample]
    n_sample, samples_nbytes = len(samples), sum(map(len, samples))
    if n_sample < MIN_SAMPLES:
        raise ValueError(f"a prior is trained on {MIN_SAMPLES} samples or more, {n_sample} are given")
    samples = _spread(samples, MAX_SAMPLES_NBYTES)
    # Kept aside: evenly spread, so that a change in the course of time is in both parts.
    aside = samples[_HELD_OUT_SHARE // 2 :: _HELD_OUT_SHARE]
    kept = [sample for i, sample in enumerate(samples) if (i - _HELD_OUT_SHARE // 2) % _HELD_OUT_SHARE]
    held_out = [sample[:_PIECE_NBYTES] for sample in _spread(aside, _HELD_OUT_NBYTES)][:_HELD_OUT_SAMPLES]
    candidates = [piece for sample in kept for piece in _pieces(sample)]
    bench = _Bench(held_out)
    texts = {"spread": _joined(_spread(candidates, size), size)}
    if sum(map(len, candidates)) > size:
        for k, fade in ((6, 0.5), (12, 0.5), (12, 0.0)):
            texts[f"cover of {k} bytes, {fade:g}"] = _joined(_covering(candidates, size, k, fade), size)
    costs = {name: bench.cost(text) for name, text in texts.items()}
    first, *others = sorted(texts, key=lambda name: costs[name])
    text, cost, choice = texts[first], costs[first], first
    for other in others[:1]:
        text, cost, n_replaced = _improved(text, cost, texts[other], size, bench)
        if n_replaced:
            choice += f"; {n_replaced} of {_PARTS} parts from {other}"
    return Chosen(
        text,
        n_sample,
        samples_nbytes,
        len(held_out),
        sum(map(len, held_out)),
        bench.cost(b""),
        cost,
        choice,
    )


class _Bench:
    """What samples become after a text."""

    def __init__(self, held_out: list[bytes]) -> None:
        self._held_out = held_out
        self._engine = cast("Engine", make_engine(EngineSpec(Method.CM, LEVELS[1].profile, 1, 1)))

    def cost(self, text: bytes) -> int:
        """Bytes of all payloads."""
        total = 0
        if text:
            self._engine.prime(text, 1 << max((len(text) + (16 << 10)).bit_length(), 12))
        for sample in self._held_out:
            if not text:
                self._engine.reset()
            total += len(self._engine.encode(sample))
            if text:
                self._engine.rewind()
        return total


def _spread(samples: list[bytes], nbytes: int) -> list[bytes]:
    """Some of the samples, evenly spread, that have about so many bytes together; all, if they have fewer."""
    total = sum(len(sample) + 1 for sample in samples)
    if total <= nbytes:
        return samples
    n = max(1, len(samples) * nbytes // total)
    return [samples[i * len(samples) // n] for i in range(n)]


def _pieces(sample: bytes) -> list[bytes]:
    """A sample; of a long one pieces that end where lines do."""
    pieces, at = [], 0
    while len(sample) - at > _PIECE_NBYTES:
        end = sample.rfind(b"\n", at + _PIECE_NBYTES // 2, at + _PIECE_NBYTES) + 1 or at + _PIECE_NBYTES
        pieces.append(sample[at:end])
        at = end
    return [*pieces, sample[at:]]


def _joined(pieces: list[bytes], size: int) -> bytes:
    """The pieces, each on a line of its own, the last `size` bytes of them."""
    lines = [piece if piece.endswith(b"\n") else piece + b"\n" for piece in pieces]
    return b"".join(lines)[-size:]


def _kmers(piece: bytes, k: int) -> np.ndarray:
    """(n,) the numbers of the strings of k bytes in a piece, each once."""
    import numpy as np

    text = np.frombuffer(piece, np.uint8).astype(np.uint64)
    if len(text) < k:
        return np.zeros(0, np.int64)
    n = len(text) - k + 1
    value = np.zeros(n, np.uint64)
    for i in range(k):
        value = value * np.uint64(0x9E3779B97F4A7C15) + text[i : i + n] + np.uint64(1)
    numbers = (value >> np.uint64(64 - _KMERS_LOG2)).astype(np.int64)
    return np.unique(numbers)


def _covering(candidates: list[bytes], size: int, k: int, fade: float) -> list[bytes]:
    """Pieces that cover strings of k bytes; what is covered counts `fade` times as much for the next.

    The ones taken first, which say most, come last: right before a message.
    """
    import numpy as np

    numbers = [_kmers(piece, k) for piece in candidates]
    weight = np.zeros(1 << _KMERS_LOG2)
    for each in numbers:
        weight[each] += 1
    weight -= weight == 1  # what a single piece has helps no other

    def worth(i: int) -> float:
        return float(weight[numbers[i]].sum()) / (len(candidates[i]) + 1)

    heap = [(-worth(i), i) for i in range(len(candidates))]
    heapq.heapify(heap)
    taken, nbytes = [], 0
    while heap and nbytes < size:
        _, i = heapq.heappop(heap)
        now = -worth(i)
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, i))
            continue
        if now == 0:
            break
        taken.append(i)
        nbytes += len(candidates[i]) + 1
        weight[numbers[i]] *= fade
    left = {*range(len(candidates))} - {*taken}
    rest = _spread([candidates[i] for i in sorted(left)], max(size - nbytes, 0)) if nbytes < size else []
    return rest + [candidates[i] for i in reversed(taken)]


def _improved(text: bytes, cost: int, other: bytes, size: int, bench: _Bench) -> tuple[bytes, int, int]:
    """A text with those of its parts replaced by the end of another text that make messages smaller."""
    n_replaced = 0
    for part in range(_PARTS):
        nbytes = len(text) // _PARTS
        begin, end = part * nbytes, (part + 1) * nbytes
        begin = text.find(b"\n", begin) + 1 if begin else 0
        end = text.find(b"\n", end - 1) + 1
        room = end - begin
        if room <= 0 or len(other) <= room:
            break
        at = other.find(b"\n", len(other) - room) + 1
        changed = (text[:begin] + text[end:] + other[at:])[-size:]
        found = bench.cost(changed)
        if found < cost:
            text, cost, n_replaced = changed, found, n_replaced + 1
            other = other[:at]
    return text, cost, n_replaced
