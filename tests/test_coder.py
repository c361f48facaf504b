"""The range coder: constriction, the kernel and a third coder written here from FORMAT.md section 4 agree.

`Interval` and `Reader` are that third coder. It works on integers without bounds, so that carries and wraps,
where fixed-width coders go wrong, take no code at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcodec import _kernel, coder, profile

Decision = tuple[int, int]  # bit, probability of a 1 in 65536ths

DECISION = st.tuples(
    st.integers(0, 1), st.integers(1, 65535) | st.sampled_from([1, 2, 32767, 32768, 65534, 65535])
)
EXTREMES = (1, 2, 255, 256, 32767, 32768, 32769, 65279, 65280, 65534, 65535)


def one_of(p16: int) -> int:
    """The size of a 1, in 2^24ths."""
    return 256 * p16 + (1 if p16 < 32768 else 0)


class Interval:
    """An encoder's interval [lower, lower + range) in units of 2^-(64 + 32 n_word)."""

    def __init__(self) -> None:
        self.lower, self.range, self.n_word = 0, 2**64 - 1, 0

    def split(self, p16: int) -> int:
        """The size of a 0's part."""
        return (self.range >> 24) * (2**24 - one_of(p16))

    def encode(self, bit: int, p16: int) -> None:
        zero = self.split(p16)
        if bit:
            self.lower += zero
            self.range = (self.range >> 24) * one_of(p16)
        else:
            self.range = zero
        if self.range < 2**32:
            self.lower <<= 32
            self.range <<= 32
            self.n_word += 1

    def holds(self, payload: bytes) -> bool:
        """Whether the payload, zeros behind it, is a number inside the interval."""
        nbytes = 8 + 4 * self.n_word
        if len(payload) > nbytes:  # the rest may only say where inside a unit
            payload = payload[:nbytes]
        value = int.from_bytes(payload.ljust(nbytes, b"\0"), "big")
        return self.lower <= value < self.lower + self.range

    @property
    def straddles(self) -> bool:
        """Whether a carry into the words before is still possible."""
        return (self.lower + self.range - 1) >> 64 != self.lower >> 64


class Reader:
    """A decoder that keeps the payload as one integer."""

    def __init__(self, payload: bytes) -> None:
        self._words = iter(payload[i : i + 4].ljust(4, b"\0") for i in range(0, len(payload), 4))
        self._offset = self._word() << 32 | self._word()
        self._range = 2**64 - 1

    def _word(self) -> int:
        return int.from_bytes(next(self._words, b""), "big")

    def decode(self, p16: int) -> int | None:
        """The next bit; None where no encoder's words lead."""
        scale = self._range >> 24
        zero = scale * (2**24 - one_of(p16))
        bit = int(self._offset >= zero)
        if bit:
            self._offset -= zero
        self._range = scale * one_of(p16) if bit else zero
        if self._offset >= self._range:
            return None
        if self._range < 2**32:
            self._range <<= 32
            self._offset = self._offset << 32 | self._word()
        return bit


def arrays(decisions: Iterable[Decision]) -> tuple[np.ndarray, np.ndarray]:
    """bits (n,) uint8 and p16 (n,) uint16."""
    table = np.array(list(decisions), np.uint16).reshape(-1, 2)
    return table[:, 0].astype(np.uint8), np.ascontiguousarray(table[:, 1])


def constriction_encoder(decisions: list[Decision]) -> Any:
    encoder = constriction.stream.queue.RangeEncoder()
    bits, p16 = arrays(decisions)
    if decisions:
        model = constriction.stream.model.Bernoulli(perfect=False)
        encoder.encode(bits.astype(np.int32), model, p16 / 65536.0)
    return encoder


def check_coder(decisions: list[Decision]) -> bytes:
    """All that holds for every sequence; returns the payload."""
    theirs, ours = constriction_encoder(decisions), Interval()
    for bit, p16 in decisions:
        ours.encode(bit, p16)
    n_word, (lower, range_) = theirs.pos()
    assert (n_word, lower, range_) == (ours.n_word, ours.lower % 2**64, ours.range)
    words = theirs.get_compressed()
    assert ours.holds(words.astype(">u4").tobytes())
    encoder = coder.Encoder()
    encoder.encode(*arrays(decisions))
    payload = encoder.finish()
    assert ours.holds(payload)
    assert len(payload) <= 4 * len(words)
    assert not payload.endswith(b"\0")
    # No shorter payload lies in the interval: the next multiple of 256^-k above lower, for one byte less.
    if payload and not ours.straddles:
        unit = 8 * (8 + 4 * ours.n_word - (len(payload) - 1))
        assert -(-ours.lower >> unit) << unit >= ours.lower + ours.range
    expected = [bit for bit, _ in decisions]
    reader, oracle = Reader(payload), coder.Decoder(payload)
    assert [reader.decode(p16) for _, p16 in decisions] == expected
    assert [oracle.decode(p16) for _, p16 in decisions] == expected
    return payload


@given(st.lists(DECISION, max_size=400))
def test_any_decisions(decisions: list[Decision]) -> None:
    check_coder(decisions)


@given(st.integers(0, 1), st.integers(0, 2**32), st.integers(1, 3000))
def test_one_probability_for_long(bit: int, seed: int, n: int) -> None:
    """A range that shrinks by the least or the most at each step, with a rare bit of the other kind."""
    rng = random.Random(seed)
    p16 = rng.choice(EXTREMES)
    check_coder([(bit ^ (rng.random() < 0.01), p16) for _ in range(n)])


@pytest.mark.parametrize("likely", [False, True])
def test_extreme_probabilities(likely: bool) -> None:
    rng = random.Random(5)
    for n in (1, 2, 3, 4, 5, 8, 17, 64, 500):
        p16 = [rng.choice((1, 2, 65534, 65535)) for _ in range(n)]
        check_coder([(int((p > 32768) == likely), p) for p in p16])


def test_every_probability_has_the_size_that_the_format_says() -> None:
    """One decision's interval is seen whole in constriction's state."""
    model = constriction.stream.model.Bernoulli(perfect=False)
    scale = (2**64 - 1) >> 24
    wrong = []
    for p16 in range(1, 65536):
        probability = np.array([p16 / 65536])
        for bit in (0, 1):
            encoder = constriction.stream.queue.RangeEncoder()
            encoder.encode(np.array([bit], np.int32), model, probability)
            one = one_of(p16)
            zero = 2**24 - one
            expected = (scale * zero, scale * one) if bit else (0, scale * zero)
            if encoder.pos() != (0, expected):
                wrong.append((p16, bit))
    assert wrong == []


def test_every_probability_in_one_payload() -> None:
    decisions = [(bit, p16) for p16 in range(1, 65536) for bit in (0, 1)]
    random.Random(3).shuffle(decisions)
    check_coder(decisions)


def straddling(seed: int) -> list[Decision]:
    """Decisions whose interval begins less than 2^32 below a number that has only zeros from some word on.

    The encoder cannot know yet whether the words before get a carry, and constriction's seal, which adds
    2^32 - 1 to the lower end, makes it happen.
    """
    rng = random.Random(seed)
    n_whole = rng.randrange(1, 5)
    target, target_word = rng.randrange(1, 2 ** (32 * n_whole)), n_whole
    ours, decisions = Interval(), []

    def gap() -> int:
        """From lower to the target."""
        shift = 64 + 32 * (ours.n_word - target_word)
        return (target << shift if shift >= 0 else target >> -shift) - ours.lower

    while ours.n_word < n_whole + 1 or not 0 < gap() < 2**32:
        # The part of a 1 that begins closest below the target, while there is one; else the least of a 0.
        fits = [
            p16
            for p16 in (65535 - (gap() * 65536 // ours.range) + d for d in range(-2, 3))
            if 1 <= p16 <= 65535
        ]
        ones = [p16 for p16 in fits if ours.split(p16) < gap()]
        if ones and gap() >= ours.split(65535) * 2:
            decision = (1, min(ones))
        else:
            decision = (0, max((p for p in range(65535, 65000, -1) if ours.split(p) > gap()), default=32768))
        ours.encode(*decision)
        decisions.append(decision)
        assert 0 < gap() < ours.range, "the search lost its target"
    return decisions


def test_carries() -> None:
    """A seal that runs over into words written before, with any number of words waiting for it."""
    waited = set()
    for seed in range(60):
        decisions = straddling(seed)
        words = constriction_encoder(decisions).get_compressed()
        n_word, (lower, _) = constriction_encoder(decisions).pos()
        tail = int.from_bytes(words[n_word:].astype(">u4").tobytes().ljust(8, b"\0"), "big")
        assert tail < lower, "constriction's seal was to carry"
        payload = check_coder(decisions)
        waited.add(n_word)
        # The same interval from inside: what follows decides after all that there was no carry.
        for extra in (0, 1):
            check_coder([*decisions, *((extra, 32768) for _ in range(40))])
        assert len(payload) <= 4 * n_word
    assert len(waited) > 1


def test_no_decisions() -> None:
    assert coder.Encoder().finish() == b""
    assert check_coder([]) == b""


def test_decisions_in_any_portions() -> None:
    rng = random.Random(2)
    bits, p16 = arrays((rng.randrange(2), rng.randrange(1, 65536)) for _ in range(1000))
    whole, parts = coder.Encoder(), coder.Encoder()
    whole.encode(bits, p16)
    for i in range(0, 1000, 77):
        parts.encode(bits[i : i + 77], p16[i : i + 77])
    parts.encode(bits[:0], p16[:0])
    assert parts.finish() == whole.finish()


# The kernel's decoder, which the block coder owns: the probabilities are those of its own models.

SMALL = profile.build(
    {
        "contexts": [["order1"], ["order2"]],
        "selectors": ["match", "order0"],
        "maps": [],
        "matches": [4],
        "numbers": {
            "table_log2": 16,
            "match_log2": 10,
            "final_selector": 1,
            "weight_rate": 24,
            "map_limit": 1023,
        },
    }
)


def stepwise(nbytes: int, decoder: Any) -> tuple[bytes, list[int], bool]:
    """The block as a decoder outside the kernel reads it, the probabilities met, whether it got through."""
    block = _kernel.BlockLoop(SMALL.kernel)
    block.begin(nbytes)
    out, seen = bytearray(nbytes), []
    while not block.done:
        seen.append(block.p)
        bit = decoder.decode(seen[-1])
        if bit is None:
            return bytes(out), seen, False
        out[block.offset] = (out[block.offset] << 1 | bit) & 255
        block.push(bit)
    return bytes(out), seen, True


def in_kernel(payload: bytes, nbytes: int) -> tuple[bytes, bool]:
    block = _kernel.BlockLoop(SMALL.kernel)
    block.begin(nbytes)
    out = np.zeros(nbytes, np.uint8)
    block.load(np.frombuffer(payload, np.uint8))
    good = block.decode(out, 8 * len(out))
    return out.tobytes(), good


def encoded(data: bytes) -> bytes:
    block, encoder = _kernel.BlockLoop(SMALL.kernel), coder.Encoder()
    block.begin(len(data))
    bits, p16 = np.empty(8 * len(data), np.uint8), np.empty(8 * len(data), np.uint16)
    encoder.encode(bits[: block.encode(np.frombuffer(data, np.uint8), bits, p16)], p16)
    return encoder.finish()


def surprises(seed: int) -> bytes:
    """Long runs, then bytes that are against all odds: probabilities near both ends with the unlikely bit."""
    rng = random.Random(seed)
    parts = []
    for _ in range(12):
        parts.append(bytes([rng.choice((0, 255, 65, 85))]) * rng.randrange(100, 1200))
        parts.append(rng.randbytes(rng.randrange(1, 5)))
    return b"".join(parts)


def test_kernel_reads_what_constriction_writes() -> None:
    probabilities: set[int] = set()
    for seed in range(3):
        data = surprises(seed)
        payload = encoded(data)
        assert in_kernel(payload, len(data)) == (data, True)
        for decoder in (Reader(payload), coder.Decoder(payload)):
            out, seen, good = stepwise(len(data), decoder)
            assert good
            assert out == data
        probabilities.update(seen)
    assert min(probabilities) < 4
    assert max(probabilities) > 65532


@given(st.binary(max_size=60), st.integers(1, 300))
def test_kernel_reads_garbage_as_the_format_says(payload: bytes, nbytes: int) -> None:
    """Equal to the byte in which it stops."""
    out, _, good = stepwise(nbytes, Reader(payload))
    theirs, theirs_good = in_kernel(payload, nbytes)
    assert theirs_good == good
    if good:
        assert theirs == out


def test_kernel_finds_an_offset_outside_the_range() -> None:
    """Ones only: beyond the last multiple of the scale. Every other decoder here stops at the same place."""
    payload = b"\xff" * 200
    _, seen, good = stepwise(100, Reader(payload))
    assert not good
    assert in_kernel(payload, 100)[1] is False
    oracle = coder.Decoder(payload)
    for p16 in seen[:-1]:
        assert oracle.decode(p16) == 1
