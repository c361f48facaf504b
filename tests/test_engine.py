"""The engine: what it encodes it decodes, the same bytes by every way there is, and garbage does no harm."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcodec import _kernel, coder, profile
from lmcodec.engine import Engine, memory_nbytes
from lmcodec.errors import ConfigError, Corrupt, Unsupported

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]  # streams, groups


def covering_specs() -> dict[str, dict[str, Any]]:
    """Profiles that together use every feature and every selector but those of language models, and most of
    what there can be most of."""
    wide = [name for name in profile.SELECTORS if name == "order1" or name.startswith("hash")]  # 65,536 rows
    narrow = [name for name in profile.SELECTORS if name not in [*wide, *profile.LM_SELECTORS]]
    features = [name for name in profile.FEATURES if name not in ["none", *profile.LM_FEATURES]]
    rng = random.Random(1)
    several = [rng.sample(features, 2 + i % 3) for i in range(64 - len(features))]
    numbers = {"match_log2": 12, "weight_rate": 10, "final_rate": 3, "apm_rate": 5, "map_limit": 1023}
    return {
        "features": {
            "contexts": [[name] for name in features] + several,
            "selectors": narrow[-12:],
            "maps": ["order0", "above", "match_byte", "known", "nest", "zero"],
            "matches": [5, 12, 32],
            "numbers": {**numbers, "table_log2": 18, "final_selector": 1},
        },
        "selectors": {
            "contexts": [["order2"], ["word", "classes"]],
            "selectors": [*wide, *narrow[:-12]],
            "maps": [],
            "matches": [1],
            "numbers": {**numbers, "table_log2": 12, "final_selector": 0, "apm_weight": 0},
        },
    }


PROFILES: list[int | str] = [*profile.FROZEN, *covering_specs()]


@cache
def loaded(which: int | str) -> profile.Profile:
    return profile.build(covering_specs()[which]) if isinstance(which, str) else profile.load(which)


@cache
def engine(which: int | str, streams: int = 1, groups: int = 1) -> Engine:
    """One engine for all examples: that a reset forgets is a part of what they test."""
    return Engine(loaded(which), streams, groups)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    with mock.patch.dict(os.environ, variables):
        yield


def check_roundtrip(blocks: list[bytes], which: int | str, streams: int = 1, groups: int = 1) -> list[bytes]:
    """A chain of blocks comes back; returns the payloads."""
    coder = engine(which, streams, groups)
    coder.reset()
    payloads = [coder.encode(block) for block in blocks]
    coder.reset()
    for i, (block, payload) in enumerate(zip(blocks, payloads, strict=True)):
        assert coder.decode(payload, len(block)) == block, f"block {i}"
    return payloads


def text(nbytes: int, seed: int = 1) -> bytes:
    """Prose, rows, brackets and tags that repeat themselves, with some noise between."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(60)]
    lines: list[bytes] = []
    while sum(map(len, lines)) < nbytes:
        some = rng.choices(words, k=rng.randrange(3, 9))
        row = b"%d,%s,%d,%s" % (len(lines), some[0], rng.randrange(99), some[1])
        item = b'  {"%s": [%d, "%s"]},' % (some[0], rng.randrange(9999), b" ".join(some[1:]))
        tag = b'<%s id="%d">%s</%s>' % (some[0], rng.randrange(99), some[1], some[0])
        odd = rng.randbytes(12) + "Grüße 中文 \U0001f600".encode()
        lines += [
            rng.choice([b" ".join(some).capitalize() + b". ", row, item, tag, odd]) + b"\n"
        ] * rng.randrange(1, 4)
    return b"".join(lines)[:nbytes]


# Arbitrary bytes, and arbitrary sequences of what the context models take note of.
PIECES = [
    *(bytes([c]) for c in b"aZ09 \t\n\r,;|.!?:='\"\\{}[]()<>/_-\0\x7f\x80\xff"),
    *(
        b"word",
        b"Word",
        b"\r\n",
        b"    ",
        b"<a>",
        b"</a>",
        b'<b c="',
        b"/>",
        b'"key": ',
        b"k = ",
        b"\n- ",
        b"1.5,",
    ),
    *("é".encode(), "中".encode(), "\U0001f600".encode(), b"\xf0\x9f", b"\xc3", b"\xef\xbb\xbf"),
]
DATA = st.one_of(
    st.binary(min_size=1, max_size=400),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=300).map(b"".join),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 300)).map(lambda pair: pair[0] * pair[1]),
)


@given(st.lists(DATA, min_size=1, max_size=3), st.sampled_from(PROFILES), st.sampled_from(SHAPES))
def test_roundtrip(blocks: list[bytes], which: int | str, shape: tuple[int, int]) -> None:
    check_roundtrip([block.ljust(shape[0], b".") for block in blocks], which, *shape)


@pytest.mark.parametrize("which", PROFILES)
@pytest.mark.parametrize(("streams", "groups"), SHAPES)
def test_every_shape(which: int | str, streams: int, groups: int) -> None:
    """Lengths of every remainder, down to one byte a stream, and a text."""
    blocks = [text(n, n) for n in range(streams, 3 * streams + 1)]
    check_roundtrip([*blocks, text(1500)], which, streams, groups)


def test_the_specs_cover_everything() -> None:
    specs = covering_specs().values()
    assert {f for spec in specs for context in spec["contexts"] for f in context} == {*profile.FEATURES} - {
        "none",
        *profile.LM_FEATURES,
    }
    assert {s for spec in specs for s in (*spec["selectors"], *spec["maps"])} == {*profile.SELECTORS} - {
        *profile.LM_SELECTORS
    }


def markup(depth: int) -> bytes:
    opened = b"".join(b"<n%d a='%d'>" % (i, i) for i in range(depth))
    return opened + b"x" + b"".join(b"</n%d>" % i for i in reversed(range(depth)))


TEXTS = {
    "one byte": b"a",
    "zeros": bytes(2000),
    "every byte": bytes(range(256)) * 8,
    "noise": random.Random(1).randbytes(3000),
    "invalid UTF-8": b"\xff\xfe\xc3(\xe2\x28\xa1\xf0\x28\x8c\xbc\xc0\xaf\xed\xa0\x80 text \x80\n" * 40,
    "CRLF": b"one line\r\nand another\r\n\r\n" * 60,
    "CR only": b"one line\rand another\r\r" * 60,
    "NULs": b"name\0value\0\0\0other\0" * 60,
    "no newline": b"no newline in all of this text, " * 100,
    "newlines": b"\n" * 2000,
    "four-byte characters": "\U0001f600\U0001f601\U00020000 ".encode() * 70,
    "64 levels of brackets": (b"[" * 64 + b"1" + b"]" * 64 + b"\n") * 8 + b"{" * 70 + b")" * 100,
    "closed, never opened": b"]})>" * 200 + b"</a></b>" * 50,
    "200 fields a row": (b",".join(b"%d" % (i * i) for i in range(200)) + b"\n") * 4,
    "64 fields": b"".join(b"|".join([b"ab"] * n) + b"\n" for n in (62, 63, 64, 65, 66, 65, 64, 63) * 3),
    "rows of changing delimiters": b"a,b,c,d\n" * 9
    + b"a;b;c;d\n" * 9
    + b"a\tb\tc\n" * 9
    + b"\n\n a b c\n" * 5,
    "deep XML": markup(80) * 2,
    "open quotes": b'\'"\'"\\"\'\\\\"\n' * 100 + b'"' + b"never closed " * 50,
    "deep indentation": b"".join(b" " * i + b"key%d:\n" % i for i in range(70)),
    "long word": b"w" * 1500 + b" " + b"7" * 1500,
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    data = TEXTS[name]
    check_roundtrip([data], 2)
    check_roundtrip([data.ljust(3), data[::-1].ljust(3)], "features", 3, 2)


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_characters_cut_at_every_border(streams: int) -> None:
    data = "\U0001f600".encode() * 5
    for n in range(streams, len(data)):
        check_roundtrip([data[:n], data[n:].ljust(streams)], 1, streams)


def test_a_run_costs_next_to_nothing() -> None:
    for byte in (b"a", b"\n"):
        (payload,) = check_roundtrip([byte * (1 << 17)], 1)
        assert len(payload) <= 64


@pytest.mark.slow
@pytest.mark.parametrize("number", profile.FROZEN)
def test_a_long_run_costs_next_to_nothing(number: int) -> None:
    for byte in (b"a", b"\0", b"\n"):
        (payload,) = check_roundtrip([byte * 1_000_000], number)
        assert len(payload) <= 64


def test_long_lines() -> None:
    """The line above, and fields in it, further away than most."""
    line = text(60_000).replace(b"\n", b",")
    check_roundtrip([line + b"\n" + line[:20_000]], 1)


# Continuing and forgetting


@pytest.mark.parametrize("which", PROFILES)
@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (3, 2)])
def test_a_reset_forgets_everything(which: int | str, streams: int, groups: int) -> None:
    block = text(2000)
    fresh = Engine(loaded(which), streams, groups).encode(block)
    used = engine(which, streams, groups)
    used.reset()
    assert used.encode(block) == fresh
    continued = used.encode(block)
    assert len(continued) < len(fresh) * 2 // 3
    used.reset()
    assert used.encode(block) == fresh
    assert used.encode(block) == continued
    for before in (text(40_000, 9), b"\xff" * 9000, random.Random(1).randbytes(5000)):
        used.reset()
        used.encode(before)
        used.reset()
        assert used.encode(block) == fresh, "what a larger block left shows"
    used.reset()
    assert used.decode(fresh, len(block)) == block
    assert used.decode(continued, len(block)) == block


def test_a_reset_in_the_middle_of_a_block() -> None:
    data = text(3000)
    used = engine(1, 2, 2)
    used.reset()
    expected = used.encode(data)
    block = used._loop
    block.reset()
    block.begin(len(data))
    block.encode(np.frombuffer(data, np.uint8), np.empty(1001, np.uint8), np.empty(1001, np.uint16))
    used.reset()
    assert used.encode(data) == expected


@pytest.mark.parametrize("streams", [1, 4])
def test_a_reset_after_a_chain_that_filled_the_window(streams: int) -> None:
    """The history is as empty as a new one's: no match with what lies before its beginning."""
    block = bytes(100) + text(500)
    used = Engine(1, streams)
    for _ in range(3):
        used._loop.begin(1 << 24)  # decides how much history there is; what is in it does not matter here
    used.reset()
    assert used.encode(block) == Engine(1, streams).encode(block)


def test_blocks_of_growing_size() -> None:
    """History grows under the streams; the table keeps the size that the first block asked for."""
    check_roundtrip([text(n, n) for n in (3, 700, 5000, 20, 30_000)], 1)
    check_roundtrip([text(n, n) for n in (3, 700, 5000, 20, 30_000)], "features", 3, 1)


@pytest.mark.slow
def test_history_beyond_the_window() -> None:
    """48 MiB in a chain: positions older than 32 MiB go, a line that began before that stays under way."""
    spec = {
        "contexts": [["order2"], ["order4"], ["above_next", "column"], ["field_above_next", "field_text"]],
        "selectors": ["match", "order0"],
        "maps": [],
        "matches": [12, 4],
        "numbers": {"table_log2": 22, "match_log2": 20, "final_selector": 1},
    }
    rng = random.Random(4)
    page = text(1 << 20, 3)
    flat = page.replace(b"\n", b",")
    blocks = [
        page * 4 + flat * 12,
        flat * 15,
        rng.randbytes(1000) + flat * 3 + b"\n" + page * 12,
        page + flat + b"\n",
    ]
    ahead, behind = (Engine(profile.build(spec)) for _ in range(2))
    for block in blocks:
        assert behind.decode(ahead.encode(block), len(block)) == block


# The same bytes by every way


@pytest.mark.parametrize("which", PROFILES)
def test_every_instruction_set(which: int | str) -> None:
    data = text(4000)
    payloads = set()
    for isa in _kernel.mixing_isas():
        with environment(LMCODEC_ISA=isa):
            chosen = Engine(loaded(which), 2, 1)
        assert chosen._loop.isa == isa
        payloads.add((chosen.encode(data), chosen.encode(data[::-1])))
        chosen.reset()
        (first, second) = min(payloads)
        assert chosen.decode(first, len(data)) == data
        assert chosen.decode(second, len(data)) == data[::-1]
    assert len(payloads) == 1


def test_unknown_instruction_set() -> None:
    for name in ("sse9", "AVX2", " scalar"):
        with environment(LMCODEC_ISA=name), pytest.raises(ConfigError, match=r"scalar.*unset"):
            Engine(1)
    with environment(LMCODEC_ISA=""):
        Engine(1)


@pytest.mark.parametrize("which", PROFILES)
def test_decoding_outside_the_kernel(which: int | str) -> None:
    pytest.importorskip("constriction")
    blocks = [text(700), text(300, 2), bytes(300)]
    for streams, groups in ((1, 1), (3, 2)):
        payloads = check_roundtrip(blocks, which, streams, groups)
        outside = engine(which, streams, groups)
        outside.reset()
        with environment(LMCODEC_CODER="constriction"):
            assert coder.use_constriction()
            for block, payload in zip(blocks, payloads, strict=True):
                assert outside.decode(payload, len(block)) == block


def test_threads() -> None:
    """Two engines at once, each in its own thread, do what they do alone."""
    jobs = [(1, text(20_000, 1)), ("features", text(3000, 2)), (2, text(6000, 3)), (1, text(20_000, 4))]
    serial = [Engine(loaded(which)).encode(data) for which, data in jobs]
    results: dict[int, tuple[bytes, bytes]] = {}

    def work(i: int, which: int | str, data: bytes) -> None:
        own = Engine(loaded(which))
        payload = own.encode(data)
        own.reset()
        results[i] = payload, bytes(own.decode(payload, len(data)))

    threads = [threading.Thread(target=work, args=(i, *job)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(len(jobs))] == list(
        zip(serial, (data for _, data in jobs), strict=True)
    )


def test_a_table_may_be_enlarged() -> None:
    """It counts where the block asks for more than the profile has, up to eight times as much."""
    spec = covering_specs()["selectors"]
    small, data = loaded("selectors"), text(6000)
    payloads = []
    for enlarge in range(4):
        payload = Engine(small, enlarge=enlarge).encode(data)
        assert Engine(small, enlarge=enlarge).decode(payload, len(data)) == data
        payloads.append(payload)
        same = profile.build({**spec, "numbers": {**spec["numbers"], "table_log2": 12 + enlarge}})
        assert Engine(same).encode(data) == payload
    assert len(set(payloads)) == 4
    short = data[:8]
    assert len({Engine(small, enlarge=enlarge).encode(short) for enlarge in range(4)}) == 1
    for enlarge in (-1, 4):
        with pytest.raises(ValueError, match="0 to 3 powers of two"):
            Engine(small, enlarge=enlarge)
    # Of a frozen profile, 2^24 bytes: a block takes what it needs.
    assert memory_nbytes(1, 1000, enlarge=3) == memory_nbytes(1, 1000)
    assert memory_nbytes(1, 1 << 20, enlarge=3) - memory_nbytes(1, 1 << 20) == (1 << 27) - (1 << 24)
    assert memory_nbytes(1, 1000, chained=True, enlarge=1) - memory_nbytes(1, 1000, chained=True) == 1 << 24


def test_any_buffer() -> None:
    data = text(500)
    payload = check_roundtrip([data], 1)[0]
    used = engine(1)
    for buffer in (memoryview(bytearray(data)), memoryview(data), memoryview(b"xx" + data)[2:]):
        used.reset()
        assert used.encode(buffer) == payload
    used.reset()
    assert used.decode(memoryview(b"x" + payload)[1:], len(data)) == data


# Garbage


def outcome(payload: bytes, nbytes: int, which: int | str, streams: int, groups: int) -> bytes | None:
    """What decoding gives; None for Corrupt. Nothing else may come of it."""
    used = engine(which, streams, groups)
    used.reset()
    try:
        out = used.decode(payload, nbytes)
    except Corrupt:
        return None
    assert len(out) == nbytes
    return bytes(out)


@given(st.binary(max_size=300), st.integers(4, 600), st.sampled_from(PROFILES), st.sampled_from(SHAPES))
def test_garbage(payload: bytes, nbytes: int, which: int | str, shape: tuple[int, int]) -> None:
    outcome(payload, nbytes, which, *shape)


@pytest.mark.parametrize("which", PROFILES)
def test_damaged_payloads(which: int | str) -> None:
    """Flips, cuts and wrong lengths; afterwards the engine is as good as new."""
    rng = random.Random(7)
    data = text(600)
    (payload,) = check_roundtrip([data], which, 2, 1)
    for _ in range(12):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        outcome(bytes(damaged), 600, which, 2, 1)
        outcome(payload[: rng.randrange(len(payload))], 600, which, 2, 1)
        outcome(payload, rng.randrange(2, 900), which, 2, 1)
    assert outcome(b"\xff" * 700, 600, which, 2, 1) is None
    outcome(b"", 600, which, 2, 1)
    assert outcome(payload + bytes(9), 600, which, 2, 1) == data


def test_garbage_outside_the_kernel() -> None:
    """The oracle refuses what the kernel refuses, with the same exception."""
    pytest.importorskip("constriction")
    rng = random.Random(8)
    for payload in (b"\xff" * 300, b"", *(rng.randbytes(rng.randrange(40)) for _ in range(10))):
        expected = outcome(payload, 200, 1, 1, 1)
        with environment(LMCODEC_CODER="constriction"):
            assert outcome(payload, 200, 1, 1, 1) == expected


# Arguments


def test_arguments_out_of_range() -> None:
    for streams, groups in ((0, 1), (5, 1), (-1, 1), (1, 0), (1, 2), (3, 3)):
        with pytest.raises(ValueError, match="out of range"):
            Engine(1, streams, groups)
    with pytest.raises(Unsupported, match="profile 99"):
        Engine(99)
    used = engine(1, 3, 2)
    used.reset()
    for nbytes in (0, 2, (1 << 24) + 1):
        with pytest.raises(ValueError, match="16 MiB"):
            used.encode(bytes(nbytes))
        with pytest.raises(ValueError, match="16 MiB"):
            used.decode(b"1234", nbytes)
    check_roundtrip([b"abc"], 1, 3, 2)


def test_the_block_coder_refuses_misuse() -> None:
    block = _kernel.BlockLoop(loaded(1).kernel)
    bits, p16, three = np.empty(99, np.uint8), np.empty(99, np.uint16), np.zeros(3, np.uint8)
    for call in (
        lambda: block.p,
        lambda: block.offset,
        lambda: block.push(1),
        lambda: block.encode(three, bits, p16),
        lambda: block.decode(three.copy(), 9),
    ):
        assert block.done
        with pytest.raises(ValueError):
            call()
    block.begin(3)
    assert not block.done
    with pytest.raises(ValueError):
        block.encode(three[:2], bits, p16)
    assert block.encode(three, bits, p16) == 24
    assert block.encode(three, bits, p16) == 0
    assert block.done
    with pytest.raises(ValueError):
        block.push(0)
    with pytest.raises(ValueError):
        _kernel.BlockLoop(loaded(1).kernel, isa="sse9")


@pytest.mark.parametrize("which", profile.FROZEN)
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_parts_of_any_size_are_encoded_alike(which: int, streams: int) -> None:
    """The kernel looks ahead inside a call; bits that are pushed one by one are not known before."""
    data = np.frombuffer(text(3000), np.uint8)
    rng = random.Random(6)

    def encode(n_called: int, n_pushed: int) -> list[tuple[int, int, int]]:
        """Offset, bit and probability of all decisions: up to so many by one call, then pushed, in turns."""
        block = _kernel.BlockLoop(loaded(which).kernel, streams)
        block.begin(len(data))
        decisions: list[tuple[int, int, int]] = []
        n_bit = [0] * len(data)  # of each byte, so far
        while not block.done:
            size = rng.randrange(1, n_called + 1)
            bits, p16, offset = np.empty(size, np.uint8), np.empty(size, np.uint16), np.empty(size, np.uint32)
            n = block.trace(data, bits, p16, offset)
            decisions += zip(offset[:n].tolist(), bits[:n].tolist(), p16[:n].tolist(), strict=True)
            for at in offset[:n]:
                n_bit[at] += 1
            for _ in range(rng.randrange(n_pushed + 1)):
                if block.done:
                    break
                at = block.offset
                bit = int(data[at]) >> (7 - n_bit[at]) & 1
                decisions.append((at, bit, block.p))
                n_bit[at] += 1
                block.push(bit)
        return decisions

    assert encode(30, 0) == encode(30, 30) == encode(3, 3) == encode(8 * len(data), 0)


@pytest.mark.parametrize("which", profile.FROZEN)
def test_a_block_whose_bytes_change_while_it_is_encoded_is_lost(which: int) -> None:
    block = _kernel.BlockLoop(loaded(which).kernel)
    bits, p16 = np.empty(21, np.uint8), np.empty(21, np.uint16)
    data = np.frombuffer(b"abc", np.uint8)
    for changed in (data ^ 1, data ^ 16):
        block.begin(3)
        assert block.encode(data, bits[: 8 + 3], p16) == 11
        with pytest.raises(ValueError, match="foretold"):
            block.encode(changed, bits, p16)
        assert block.done
    block.begin(3)
    assert block.encode(data, bits, p16) == 21
    block.push(0)
    block.push(0)  # c is 0b01100011
    with pytest.raises(ValueError, match="foretold"):
        block.push(1)
    assert block.done
    block.begin(3)
    assert block.encode(data, np.empty(99, np.uint8), np.empty(99, np.uint16)) == 24


# Memory


MEASURE = """
import sys
from lmcodec import engine

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

number, streams, nbytes, n_block = map(int, sys.argv[1:])
rows = (b"%d,%x;" % (i, i * 0x9E3779B1 % 2**32) for i in range(nbytes // 16))
data = b"".join(rows).ljust(nbytes, b".")[:nbytes]
before = status("VmRSS")
coder = engine.Engine(number, streams)
for _ in range(n_block):
    payload = coder.encode(data)
if n_block == 1:
    coder.reset()
    assert coder.decode(payload, nbytes) == data
print(status("VmHWM") - before)
"""


def check_memory(number: int, streams: int, nbytes: int, n_block: int = 1) -> None:
    arguments = [sys.executable, "-I", "-c", MEASURE, *map(str, (number, streams, nbytes, n_block))]
    run = subprocess.run(arguments, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= memory_nbytes(number, nbytes, streams, n_block > 1)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


TABLES = """
import sys
from lmcodec import _kernel, profile

def data_nbytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))

number, nbytes, streams, enlarge = map(int, sys.argv[1:])
kernel = profile.load(number).kernel
before = data_nbytes()
coder = _kernel.BlockLoop(kernel, streams, 1, "", enlarge)
coder.begin(nbytes)
print(data_nbytes() - before, _kernel.mixer_memory_nbytes(kernel, nbytes, streams, False, enlarge))
"""


@linux
@pytest.mark.parametrize(
    ("number", "nbytes", "streams", "enlarge"),
    [
        (1, 1 << 12, 1, 0),
        (2, 1 << 16, 4, 0),
        (2, 1 << 20, 1, 0),
        (3, (1 << 20) + 1, 4, 3),
        (2, 9 << 20, 2, 1),
    ],
)
def test_the_kernel_says_what_its_tables_take(number: int, nbytes: int, streams: int, enlarge: int) -> None:
    """To the pages that are mapped, whether they are written to or not."""
    arguments = [sys.executable, "-I", "-c", TABLES, *map(str, (number, nbytes, streams, enlarge))]
    exact = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
    }  # no room that was freed before is used again
    run = subprocess.run(arguments, capture_output=True, text=True, env=exact, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    mapped, said = map(int, run.stdout.split())
    assert abs(mapped - said) <= 256 << 10


@linux
@pytest.mark.parametrize("number", profile.FROZEN)
@pytest.mark.parametrize("streams", [1, 4])
def test_memory_of_a_small_block(number: int, streams: int) -> None:
    check_memory(number, streams, 1 << 12)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", profile.FROZEN)
@pytest.mark.parametrize(
    ("streams", "nbytes", "n_block"), [(1, 1 << 20, 1), (4, 1 << 22, 1), (1, 1 << 22, 5)]
)
def test_memory(number: int, streams: int, nbytes: int, n_block: int) -> None:
    """One block and, in the last case, a chain for which the history takes its 32 MiB."""
    check_memory(number, streams, nbytes, n_block)


MEASURE_FRAME = """
import random, sys
from lmcodec.codec import Compressor, compress

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

level, nbytes = map(int, sys.argv[1:])
data = random.Random(1).randbytes(nbytes)
compress(data[:1000], level)  # what is loaded once
compressor = Compressor(level, block_size=1 << 24, threads=1)
before = status("VmRSS")
compressor.compress(data, Compressor.FLUSH_FRAME)
need = sum(spec.memory_nbytes(nbytes, False, True) for spec in compressor._key(nbytes))
print(status("VmHWM") - before, need)
"""


@linux
@pytest.mark.parametrize("level", [1, 2])
def test_memory_of_encoding_what_does_not_get_smaller(level: int) -> None:
    """The coder's words, and their copies, are as large as the block."""
    arguments = [sys.executable, "-I", "-c", MEASURE_FRAME, str(level), str(5 << 20)]
    run = subprocess.run(arguments, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    taken, promised = map(int, run.stdout.split())
    assert taken <= promised


MEASURE_LIMIT = """
import random, sys
from lmcodec.codec import Decompressor, compress, decompress
from lmcodec.errors import LimitExceeded

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

nbytes = int(sys.argv[1])
packed = compress(bytes(random.Random(1).choices(range(250), k=nbytes)), 1, block_size=1 << 24, threads=1)
decompress(compress(bytes(1000), 1))
try:
    decompress(packed, memory_limit=1)
except LimitExceeded as error:
    need = int(str(error).split(" takes ")[1].split()[0])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = status("VmRSS")
Decompressor(memory_limit=need, threads=1).decompress(packed)
print(status("VmHWM") - before, need)
"""


@linux
def test_memory_of_decoding_what_hardly_gets_smaller() -> None:
    """A payload that is as large as the block is there twice."""
    arguments = [sys.executable, "-I", "-c", MEASURE_LIMIT, str(10 << 20)]
    run = subprocess.run(arguments, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    taken, promised = map(int, run.stdout.split())
    assert taken <= promised
