"""The range coder: constriction, the kernel and a third coder written here from FORMAT.md section 4 agree.

Where constriction is not installed the other two do.

`Interval` and `Reader` are that third coder. It works on integers without bounds, so that carries and wraps,
where fixed-width coders go wrong, take no code at all.
"""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmcodec
from lmcodec import _kernel, coder, profile
from lmcodec.errors import ConfigError

try:
    import constriction
except ImportError:
    constriction = None

needs_constriction = pytest.mark.skipif(constriction is None, reason="constriction is not installed")

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
    """constriction's, or the kernel's where it is not installed."""
    if constriction is None:
        return kernel_encoder(decisions)
    encoder = constriction.stream.queue.RangeEncoder()
    bits, p16 = arrays(decisions)
    if decisions:
        model = constriction.stream.model.Bernoulli(perfect=False)
        encoder.encode(bits.astype(np.int32), model, p16 / 65536.0)
    return encoder


def kernel_encoder(decisions: list[Decision]) -> _kernel.RangeEncoder:
    encoder = _kernel.RangeEncoder()
    encoder.encode(*arrays(decisions))
    return encoder


def payload_of(bits: np.ndarray, p16: np.ndarray, which: str = "") -> bytes:
    """What coder.Encoder makes, with the coder that LMCODEC_CODER names."""
    with mock.patch.dict(os.environ, LMCODEC_CODER=which):
        encoder = coder.Encoder()
    encoder.encode(bits, p16)
    return encoder.finish()


def check_coder(decisions: list[Decision]) -> bytes:
    """All that holds for every sequence; returns the payload."""
    ours = Interval()
    for bit, p16 in decisions:
        ours.encode(bit, p16)
    theirs, own = constriction_encoder(decisions), kernel_encoder(decisions)
    assert theirs.pos() == own.pos() == (ours.n_word, (ours.lower % 2**64, ours.range))
    words = theirs.get_compressed()
    assert own.get_compressed().tolist() == words.tolist()
    assert own.get_compressed().dtype == words.dtype
    assert ours.holds(words.astype(">u4").tobytes())
    payload = payload_of(*arrays(decisions))
    assert payload_of(*arrays(decisions), "kernel") == payload
    assert ours.holds(payload)
    assert len(payload) <= 4 * len(words)
    assert not payload.endswith(b"\0")
    # No shorter payload lies in the interval: the next multiple of 256^-k above lower, for one byte less.
    if payload and not ours.straddles:
        unit = 8 * (8 + 4 * ours.n_word - (len(payload) - 1))
        assert -(-ours.lower >> unit) << unit >= ours.lower + ours.range
    expected = [bit for bit, _ in decisions]
    for decoder in decoders(payload):
        assert [decoder.decode(p16) for _, p16 in decisions] == expected
    return payload


def decoders(payload: bytes) -> list[Any]:
    """Those outside the kernel."""
    return [Reader(payload), *([coder.Decoder(payload)] if constriction else [])]


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


@needs_constriction
@given(
    st.integers(0, 2**32),
    st.integers(1, 50_000),
    st.sampled_from(["any", "extremes", "one", "likely", "unlikely"]),
)
def test_long_sequences_give_the_words_of_constriction(seed: int, n: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    p16 = rng.integers(1, 65536, n).astype(np.uint16)
    if kind == "extremes":
        p16 = rng.choice(np.array(EXTREMES, np.uint16), n)
    elif kind == "one":
        p16[:] = rng.choice(EXTREMES)
    bits = (rng.integers(0, 65536, n) < p16).astype(np.uint8)
    if kind == "likely":
        bits = (p16 > 32768).astype(np.uint8)
    elif kind == "unlikely":
        bits = (p16 < 32768).astype(np.uint8)
    theirs = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Bernoulli(perfect=False)
    theirs.encode(bits.astype(np.int32), model, p16 / 65536.0)
    own = _kernel.RangeEncoder()
    cut = int(rng.integers(0, n + 1))
    for part in (slice(cut), slice(cut, n)):
        own.encode(bits[part], p16[part])
    assert own.pos() == theirs.pos()
    assert np.array_equal(own.get_compressed(), theirs.get_compressed())
    assert payload_of(bits, p16) == payload_of(bits, p16, "kernel")


@needs_constriction
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


@pytest.mark.parametrize("n_word", [1, 2, 3, 7, 100])
def test_a_carry_through_many_words(n_word: int) -> None:
    """The half of the whole stays inside the interval until the last decision, which turns all words over."""
    rng, ours, decisions = random.Random(n_word), Interval(), []

    def gap(interval: Interval) -> int:
        """From lower to the half."""
        return (1 << 63 + 32 * interval.n_word) - interval.lower

    while ours.n_word < n_word or gap(ours) > ours.split(1):
        p16, after = rng.randrange(1, 65536), copy.copy(ours)
        bit = int(gap(ours) > ours.split(p16))
        after.encode(bit, p16)
        if 0 < gap(after) < after.range >> 24 << 24:  # what lies above is in no part
            decisions.append((bit, p16))
            ours = after
    assert ours.lower >> 64 == (1 << 32 * n_word - 1) - 1, "ones behind the first bit wait for a carry"
    check_coder([*decisions, (0, 1)])
    carried = [*decisions, (1, 1)]
    check_coder(carried)
    assert kernel_encoder(carried).get_compressed()[:n_word].tolist() == [1 << 31, *[0] * (n_word - 1)]


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
        for decoder in decoders(payload):
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
    for oracle in decoders(payload):
        for p16 in seen[:-1]:
            assert oracle.decode(p16) == 1


@pytest.mark.parametrize(
    ("bits", "p16"), [([0, 1], [5]), ([1], [0]), ([0] * 3, [7, 0, 9])], ids=["lengths", "zero", "a zero"]
)
def test_what_the_encoder_refuses(bits: list[int], p16: list[int]) -> None:
    with pytest.raises(ValueError, match=r"lengths|probability"):
        _kernel.RangeEncoder().encode(np.array(bits, np.uint8), np.array(p16, np.uint16))


# Without constriction

MISSING = "import sys; sys.modules['constriction'] = None; "


def run(code: str, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    result = subprocess.run([sys.executable, "-I", "-c", code, *arguments], input=stdin, capture_output=True)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout


FRAMES = """
import hashlib, lmcodec
data = sys.stdin.buffer.read()
data += data[::-1] + data
choices = [{"level": level} for level in range(1, 10)]
choices += [{"level": 6, "method": method} for method in ("stored", "cm", "lm+cm", "lm")]
choices += [{"level": 1, "block_size": 1024, "solid": True}, {"level": 2, "threads": 2, "block_size": 1024}]
for options in choices:
    frame = lmcodec.compress(data, **options)
    assert lmcodec.decompress(frame) == data, options
    print(options, len(frame), hashlib.sha256(frame).hexdigest())
"""


@needs_constriction
def test_frames_are_the_same_without_constriction() -> None:
    data = "It was in the year of überzählig 1812; the rain fell in torrents. ".encode() * 9 + bytes(
        range(256)
    )
    with_it = run("import sys" + FRAMES + "assert 'constriction' in sys.modules", stdin=data)
    assert with_it.count(b"\n") == 15
    assert run(MISSING + FRAMES, stdin=data) == with_it


def test_golden_frames_without_constriction() -> None:
    golden = Path(__file__).with_name("golden")
    code = MISSING + (
        "import pathlib, runpy; golden = pathlib.Path(sys.argv[1])\n"
        "make = runpy.run_path(str(golden / 'make.py'))\n"
        "for name, case in make['CASES'].items():\n"
        "    assert make['frame_of'](case) == (golden / f'{name}.lmz').read_bytes(), name\n"
        "    print(name)"
    )
    assert len(run(code, golden).split()) > 20


def test_commands_work_without_constriction(tmp_path: Path) -> None:
    text = b"A line of a file that is compressed.\n" * 50
    (tmp_path / "a.txt").write_bytes(text)
    lmz = MISSING + "from lmcodec.cli.lmz import main; main(sys.argv[1:])"
    run(lmz, "-q", tmp_path / "a.txt")
    assert (tmp_path / "a.txt.lmz").read_bytes() == lmcodec.compress(text)
    assert run(lmz, "-dc", tmp_path / "a.txt.lmz") == text


def test_decoding_by_constriction_without_it_is_one_clear_error() -> None:
    with (
        mock.patch.dict(sys.modules, {"constriction": None}),
        mock.patch.object(coder, "_stream", coder._stream.__wrapped__),
    ):
        assert isinstance(coder._words_encoder(), _kernel.RangeEncoder)
        with pytest.raises(ConfigError, match="not installed; unset LMCODEC_CODER"):
            coder.Decoder(b"")
