"""A decoder written from FORMAT.md alone: slow, of Python's integers.

    python tests/format_reference.py FRAME [MODEL] > ORIGINAL

It shows that the page says everything; test_format.py holds the package to it. Headings are FORMAT.md's. Of
the package it takes the profiles' files and, for language models, `lm/recurrent/reference.py`, which is
section 6 as a program, and what reads model files. It does not know shipped models by their numbers, nor
chains longer than
the history.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import sys
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmcodec.lm import decisions
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.recurrent import reference as network
from lmcodec.lm.recurrent.model import IntegerModel

MODELS = Path(__file__).parents[1] / "lmcodec" / "models"
MASK32 = 2**32 - 1
MASK64 = 2**64 - 1
GOLDEN64 = 0x9E3779B97F4A7C15
GOLDEN32 = 0x9E3779B1
LF = 10


class FormatError(Exception):
    """The data is not a frame, or of what this decoder does not know."""


def require(true: bool, message: str) -> None:
    if not true:
        raise FormatError(message)


# 1. Conventions


class Reader:
    """Takes the fields of a frame from bytes."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, nbytes: int) -> bytes:
        require(self.at + nbytes <= len(self.data), "truncated")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                require(byte > 0 or shift == 7, "a varint is not the shortest")
                require(value < 2**63, "a varint is too large")
                return value


def crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x107 if crc & 128 else 0)) & 255
    return crc


# 5.1 stretch and squash


def _exponentials() -> list[int]:
    """E(x), x = 0 to 3072."""
    with localcontext() as context:
        context.prec = 40
        whole = [
            int((2**32 * Decimal(-k).exp()).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)) for k in range(13)
        ]
    fraction = [2**32]
    for _ in range(255):
        fraction.append(fraction[-1] * 4278222805 >> 32)
    return [whole[x >> 8] * fraction[x & 255] >> 32 for x in range(3073)]


_E = _exponentials()


def _logistic(x: int, n_bit: int) -> int:
    return (_E[x] << n_bit) // (2**32 + _E[x])


def _squash(x: int) -> int:
    if x < 0:
        return max(1, _logistic(-x, 16))
    return 65536 - _squash(-x) if x > 0 else 32768


def _stretch_cells() -> list[int]:
    lower = []
    for cell in range(2048):
        x = 0
        while x < 3072 and _logistic(x + 1, 22) >= 1024 * cell + 512:
            x += 1
        lower.append(-x)
    return lower + [-x for x in reversed(lower)]


SQUASH = [_squash(x) for x in range(-3072, 3073)]  # of x + 3072
STRETCH = _stretch_cells()  # of p >> 10


def clip(x: int) -> int:
    return min(max(x, -3072), 3072)


def squash(x: int) -> int:
    return SQUASH[clip(x) + 3072]


# 5.2 Counters and bit histories

RATE = [131072 // (2 * n + 3) for n in range(1024)]


class Counter:
    """A probability of 22 bits and a count."""

    __slots__ = ("n", "p")

    def __init__(self, p: int = 2**21, n: int = 0) -> None:
        self.p = p
        self.n = n

    def train(self, bit: int, limit: int) -> None:
        self.p += ((2**22 - 1 if bit else 0) - self.p) * RATE[self.n] >> 16
        self.n = min(self.n + 1, limit)


BOUND = [39, 32, 20, 12, 8, 6]


def _after(n0: int, n1: int, bit: int) -> tuple[int, int]:
    """The counts of a bit history after another bit."""
    n = [n0, n1]
    n[bit] += 1
    other = n[1 - bit]
    if other > 2:
        n[1 - bit] = min(other, 2 + (other - 1).bit_length() - 1)
    while min(n) > 5 or max(n) > BOUND[min(n)]:
        larger = 1 - bit if n[0] == n[1] else n.index(max(n))
        n[larger] -= 1
    return n[0], n[1]


def _bit_histories() -> tuple[list[tuple[int, int]], list[int]]:
    """(state after 0, state after 1) and length of each state."""
    counts = [(0, 0)]  # of each state
    following: list[tuple[int, int]] = []
    for k in range(1, 4):
        counts += [(k - bits.bit_count(), bits.bit_count()) for bits in range(2**k)]
    for state in range(7):
        following.append((2 * state + 1, 2 * state + 2))
    numbers: dict[tuple[int, int, int], int] = {}
    while len(following) < len(counts):
        pair = []
        for bit in (0, 1):
            after = (*_after(*counts[len(following)], bit), bit)
            if after not in numbers:
                numbers[after] = len(counts)
                counts.append(after[:2])
            pair.append(numbers[after])
        following.append((pair[0], pair[1]))
    assert len(counts) <= 256
    return following, [sum(n) for n in counts]


NEXT, LENGTH = _bit_histories()


# 5.3 Contexts and slots


def mix(h: int) -> int:
    h &= MASK32
    h ^= h >> 15
    h = h * 0x2C1B3C6D & MASK32
    h ^= h >> 12
    h = h * 0x297A2D39 & MASK32
    return h ^ h >> 15


def context_hash(i: int, values: list[int]) -> int:
    x = (i + 1) * GOLDEN64 & MASK64
    for v in values:
        x = (x + v + 1) * 0xD6E8FEB86659FD93 & MASK64
        x ^= x >> 32
    return x >> 20 & MASK32


def power_of_two(least: int, nbytes: int, most: int) -> int:
    """The least power of two from `least` that is not less than nbytes, at most `most`."""
    size = least
    while size < min(nbytes, most):
        size *= 2
    return size


class SlotTable:
    """Lines of four slots; a slot is its check and its nodes 1 to 15."""

    def __init__(self, nbytes: int) -> None:
        self.n_line = nbytes // 64
        self.lines = defaultdict[int, list[list[int]]](lambda: [[0] * 16 for _ in range(4)])

    def lookup(self, a: int) -> list[int]:
        line = self.lines[a % self.n_line]
        check = a >> 24
        for slot in line:
            if slot[0] == check:
                return slot
        slot = min(line, key=lambda slot: LENGTH[slot[1]])
        slot[:] = [check] + [0] * 15  # in place: another context may hold the slot
        return slot


# 5.4 Features


def join(h: int, v: int) -> int:
    return (h + v + 1) * 0x2F0B4C47 & MASK32


def fold(v: int) -> int:
    return ((v ^ v >> 32) * GOLDEN64 & MASK64) >> 32


def is_letter(c: int) -> bool:
    return 65 <= c <= 90 or 97 <= c <= 122 or c >= 128


def is_digit(c: int) -> bool:
    return 48 <= c <= 57


def is_space(c: int) -> bool:
    return c in b" \t"


def class_of(c: int) -> int:
    if 97 <= c <= 122:
        return 1
    if 65 <= c <= 90:
        return 2
    if is_digit(c):
        return 3
    if c >= 128:
        return 4
    if is_space(c):
        return 5
    if c in b"\r\n":
        return 6
    return 7 if c in b".,;:!?" else 0


CLASS = [class_of(c) for c in range(256)]
DELIMITERS = b" ,;\t|"
PLACE = ["begun", "token", "token1", "token2"]
FIELD_MAX = 63


class Row:
    """A line and its fields; those from FIELD_MAX on are one, of which only the last is kept."""

    def __init__(self) -> None:
        self.data = bytearray()  # with the LF
        self.starts = [0]  # of the fields, in data
        self.texts: list[int] = []  # field_text at the end of each that has ended

    @property
    def number(self) -> int:
        """Of the last field."""
        return len(self.starts) - 1

    def end_field(self, text: int) -> None:
        self.texts[self.number :] = [text]

    def begin_field(self) -> None:
        self.starts[FIELD_MAX:] = []
        self.starts.append(len(self.data))


class TextState:
    """What the features say of one stream's bytes."""

    def __init__(self) -> None:
        self.last8 = 0  # the last eight bytes
        self.word = self.word1 = self.word2 = self.word3 = 0
        self.n_letter = 0  # of the word
        self.gap = 0
        self.identifier = self.identifier1 = 0
        self.shapes = 0  # 64 bits
        self.sentence = self.first_word = self.number = 0
        self.score = [0] * 5
        self.row_before_count = [0] * 5  # of each delimiter
        self.delimiter = 0
        self.following1 = defaultdict[int, int](int)  # the last two bytes
        self.following2 = defaultdict[int, int](int)
        self.following3 = defaultdict[int, int](int)
        # Quotes, keys, brackets, tags.
        self.quote = self.quote_text = self.last_text = 0
        self.key = self.key_before = self.path = 0
        self.stack: list[tuple[int, int]] = []  # (bracket, key)
        self.tag = ""  # what the next byte belongs to: "", "start", "name", "rest"
        self.tag_closes = False
        self.tag_name = 0
        self.value = 0
        self.indent = self.previous_indent = 0
        self.parent = 0
        self.parents: list[tuple[int, int]] = []  # (column, first identifier of the line)
        self.begin_line()

    def begin_line(self) -> None:
        """A new line without one before it."""
        self.row_before: Row | None = None
        self.fields_before: Row | None = None  # None as well where the delimiter changed
        self.row_begins()

    def row_begins(self) -> None:
        self.row = Row()
        self.line_start = 0
        self.indent = 0
        self.field_text = 0
        self.first_identifier = 0
        self.first_column = 0  # of a byte that is no space, from 1
        self.count = [0] * 5

    # Values

    def order(self, n: int) -> int:
        return self.last8 & 256**n - 1

    def byte(self, n: int) -> int:
        """c_n."""
        return self.last8 >> 8 * (n - 1) & 255

    def above(self, further: int = 0) -> int:
        at = len(self.row.data) + further
        if self.row_before is None or not 0 <= at < len(self.row_before.data):
            return 0
        return self.row_before.data[at]

    def above_next(self) -> int:
        before = self.row_before
        past = before is None or len(self.row.data) >= len(before.data)
        return self.above() | self.above(1) << 8 | (0 if past else self.above(-1) << 16)

    def row_length(self) -> int:
        return 0 if self.row_before is None else min(len(self.row_before.data) - 1, 255) + 1

    def field_above(self, further: int = 0) -> int:
        number, before = self.row.number, self.fields_before
        if before is None or number > before.number:
            return 0
        at = before.starts[number] + len(self.row.data) - self.row.starts[number] + further
        end = before.starts[number + 1] if number < before.number else len(before.data)
        return before.data[at] if at < end else 1

    def field_above_text(self) -> int:
        number, before = self.row.number, self.fields_before
        return 0 if before is None or number > before.number else before.texts[number]

    def bracket(self, n: int) -> int:
        """The n-th from the top of the stack, from 1."""
        return self.stack[-n][0] if n <= len(self.stack) else 0

    def features(self) -> dict[str, int]:
        return {
            **{f"order{n}": self.order(n) for n in range(1, 5)},
            **{f"order{n}": fold(self.order(n)) for n in range(5, 9)},
            "sparse2": self.byte(2),
            "sparse3": self.byte(3),
            "sparse23": self.order(3) >> 8,
            "sparse34": self.order(4) >> 16,
            "sparse234": self.order(4) >> 8,
            "word": self.word,
            "word1": self.word1,
            "word2": self.word2,
            "word3": self.word3,
            "gap": self.gap,
            "identifier": self.identifier,
            "identifier1": self.identifier1,
            "shape": self.shapes & 2**28 - 1,
            "shape_long": fold(self.shapes),
            "classes": sum(CLASS[self.byte(n + 1)] << 4 * n for n in range(4)),
            "column": min(len(self.row.data), 255),
            "above": self.above(),
            "above_next": self.above_next(),
            "row_length": self.row_length(),
            "line_start": self.line_start,
            "indent": self.indent,
            "previous_indent": self.previous_indent,
            "field": 8 * self.row.number + self.delimiter,
            "field_text": self.field_text,
            "field_above": self.field_above(),
            "field_above_next": self.field_above() | self.field_above(1) << 8,
            "field_above_text": self.field_above_text(),
            "field_before": self.row.texts[-1] if self.row.texts else 0,
            "key": self.key,
            "path": self.path,
            "nest": self.bracket(1) | self.quote << 8 | self.bracket(2) << 16,
            "indirect1": self.following1[self.order(1)] | self.order(1) << 16,
            "indirect2": self.following2[self.order(2)],
            "indirect3": self.following3[join(self.order(3), 0) >> 16],
            "sentence": self.sentence,
            "first_word": self.first_word,
            "number": self.number,
            "key_before": self.key_before,
            "value": self.value,
            "parent": self.parent,
            **dict.fromkeys(PLACE, 0),
        }

    # Update

    def end_byte(self, c: int) -> None:
        before = self.byte(1)
        for table, index in (
            (self.following1, before),
            (self.following2, self.order(2)),
            (self.following3, join(self.order(3), 0) >> 16),
        ):
            table[index] = (table[index] << 8 | c) & 0xFFFF
        self._words(c)
        if CLASS[c] == 0 or CLASS[c] != CLASS[before]:
            code = CLASS[c] or 8 + (c & 63)
            self.shapes = (self.shapes << 7 | code) & MASK64
        self.number = join(self.number, c) if is_digit(c) else join(c, 512)
        identifier_ends = self._identifiers(c)
        self._brackets(c, before, identifier_ends)
        self._tags(c, before)
        self._value(c)
        self._parents(c)
        self._rows(c)
        self.last8 = (self.last8 << 8 | c) & MASK64

    def _words(self, c: int) -> None:
        if is_letter(c):
            if not self.n_letter:
                self.gap = join(self.gap, 256)
            self.word = join(self.word, c + 32 if 65 <= c <= 90 else c)
            self.n_letter += 1
            return
        if self.n_letter:
            self.gap = 0
            self.word3, self.word2, self.word1 = self.word2, self.word1, self.word
            self.sentence = (self.sentence + self.word * GOLDEN32) & MASK32
            if not self.first_word:
                self.first_word = self.word
            self.word = self.n_letter = 0
        self.gap = join(self.gap, c)
        if c in b".!?:\n":
            self.sentence = 0
        if c == LF:
            self.first_word = 0

    def _identifiers(self, c: int) -> bool:
        """True if one ended before c."""
        if is_letter(c) or is_digit(c) or c == ord("_"):
            self.identifier = join(self.identifier, c)
            return False
        if not self.identifier:
            return False
        self.identifier1, self.identifier = self.identifier, 0
        if not self.first_identifier:
            self.first_identifier = self.identifier1
        return True

    def _push(self, bracket: int, key: int) -> None:
        if len(self.stack) < 31:
            self.stack.append((bracket, key))
        self.path = join(self.path, key ^ bracket)

    def _path_anew(self) -> None:
        self.path = 0
        for bracket, key in self.stack:
            self.path = join(self.path, key ^ bracket)

    def _brackets(self, c: int, before: int, identifier_ends: bool) -> None:
        if identifier_ends:
            self.last_text = self.identifier1
        if self.quote:
            if c == self.quote and before != ord("\\"):
                self.last_text = self.quote_text
                self.quote = 0
            elif c == LF:
                self.quote = 0
            else:
                self.quote_text = join(self.quote_text, c)
        elif c == ord('"') or (c == ord("'") and not is_letter(before)):
            self.quote, self.quote_text = c, 0
        elif c in b":=":
            self.key_before, self.key = self.key, self.last_text
        elif c in b"{[(":
            self._push(c, self.key)
            self.key = 0
        elif c in b"}])":
            if self.stack:
                self.stack.pop()
            self._path_anew()
            self.key = self.stack[-1][1] if self.stack else 0

    def _tags(self, c: int, before: int) -> None:
        if c == ord("<"):
            self.tag, self.tag_closes, self.tag_name = "start", False, 0
        elif self.tag == "start":
            if c == ord("/"):
                self.tag, self.tag_closes = "rest", True
            elif is_letter(c):
                self.tag, self.tag_name = "name", join(0, c)
            else:
                self.tag = ""
        elif self.tag and c == ord(">"):
            if self.tag_closes or before == ord("/"):
                if self.tag_closes and self.stack and self.stack[-1][0] == ord("<"):
                    self.stack.pop()
                self._path_anew()
                self.key = self.tag_name
            else:
                self._push(ord("<"), self.tag_name)
                self.key_before, self.key = self.key, self.tag_name
            self.tag = ""
            self.quote = 0
        elif self.tag == "name":
            if is_letter(c) or is_digit(c) or c in b":_-":
                self.tag_name = join(self.tag_name, c)
            else:
                self.tag = "rest"

    def _value(self, c: int) -> None:
        if c == LF or (not self.quote and c in b":=>,{}[]"):
            self.value = 0
        else:
            self.value = join(self.value, c)

    def _parents(self, c: int) -> None:
        if c == LF:
            if self.first_column and len(self.parents) < 31:
                self.parents.append((self.first_column, self.first_identifier))
        elif not self.first_column and not is_space(c):
            self.first_column = len(self.row.data) + 1
            while self.parents and self.parents[-1][0] >= self.first_column:
                self.parents.pop()
            self.parent = 0
            for _, identifier in self.parents[-2:]:
                self.parent = join(self.parent, identifier)

    def _rows(self, c: int) -> None:
        row = self.row
        if len(row.data) < 4:
            self.line_start = join(self.line_start, c)
        if c != LF and self.first_column in (0, len(row.data) + 1):
            self.indent = join(self.indent, c)
        row.data.append(c)
        if c in DELIMITERS:
            self.count[DELIMITERS.index(c)] += 1
        if c == LF:
            row.end_field(self.field_text)
            delimiter_before = self.delimiter
            for i, n in enumerate(self.count):
                if n and n == self.row_before_count[i]:
                    self.score[i] = min(self.score[i] + 1, 31)
                else:
                    self.score[i] -= (self.score[i] + 3) // 4
            self.row_before_count = self.count
            self.delimiter = self.score.index(max(self.score))
            self.row_before = row
            self.fields_before = row if self.delimiter == delimiter_before else None
            self.previous_indent = self.indent
            self.row_begins()
        elif c == DELIMITERS[self.delimiter]:
            row.end_field(self.field_text)
            row.begin_field()
            self.field_text = 0
        else:
            self.field_text = join(self.field_text, c)


# 5.5 Predict: the profile


@dataclass
class Profile:
    """A profile's specification and the values that state begins with."""

    spec: dict[str, Any]
    # (p, count): 256 for each context, 1024 for each match model, 256 for each context of token ends
    maps: list[tuple[int, int]]
    weights: list[int]  # Q16: rows of the first layer, selector by selector; rows of the second

    def number(self, name: str) -> int:
        return int(self.spec["numbers"].get(name, DEFAULTS[name]))

    @property
    def lm_maps(self) -> list[str]:
        return list(self.spec.get("lm_maps", []))

    @property
    def n_input(self) -> int:
        n = 2 * len(self.spec["contexts"]) + 2 * self.number("n_direct") + 2 * len(self.spec["matches"]) + 1
        n += 2 * self.number("lm") + len(self.lm_maps)
        return (n + 15) // 16 * 16


DEFAULTS = {
    "final_selector": 1,
    "table_log2": 22,
    "match_log2": 18,
    "map_limit": 255,
    "n_direct": 2,
    "direct_limit": 255,
    "weight_rate": 6,
    "final_rate": 2,
    "apm_rate": 6,
    "apm_weight": 8,
    "lm": 0,
    "lm_map_rate": 5,
    "n_end": 0,
    "end_log2": 22,
}


@cache
def profile(number: int) -> Profile:
    path = MODELS / f"profile-{number}.lmp"
    require(path.is_file(), f"unsupported: profile {number}")
    (only,) = read_profiles(path.read_bytes())
    return only


def read_profiles(data: bytes) -> list[Profile]:
    """Of profile files, one after another."""
    profiles = []
    while data:
        assert data[:5] == b"LMZP\x01"
        n_text, n_packed = struct.unpack_from("<II", data, 5)
        end = 13 + n_text + n_packed
        profiles.append(_read_profile(json.loads(data[13 : 13 + n_text]), data[13 + n_text : end]))
        data = data[end:]
    return profiles


def _read_profile(spec: dict[str, Any], packed: bytes) -> Profile:
    body = lzma.decompress(packed)
    n_end = spec["numbers"].get("n_end", DEFAULTS["n_end"])
    n_map = 256 * len(spec["contexts"]) + 1024 * len(spec["matches"]) + 256 * n_end
    n_weight = (len(body) - 3 * n_map) // 2
    p = struct.unpack_from(f"<{n_map}H", body)
    count = struct.unpack_from(f"<{n_map}B", body, 2 * n_map)
    low = struct.unpack_from(f"<{n_weight}B", body, 3 * n_map)
    high = struct.unpack_from(f"<{n_weight}b", body, 3 * n_map + n_weight)
    return Profile(
        spec,
        [(p << 6, n) for p, n in zip(p, count, strict=True)],
        [(h << 8 | b) << 4 for b, h in zip(low, high, strict=True)],
    )


SELECTOR_ROWS = {
    "zero": 1,
    "order0": 256,
    "byte1": 256,
    "byte2": 256,
    "match": 65,
    "known": 72,
    "classes": 512,
    "column": 256,
    "word": 128,
    "field": 640,
    "nest": 80,
    "match_byte": 257,
    "order1": 65536,
    "hash2": 16384,
    "above": 256,
    "hash_word": 16384,
    "hash3": 16384,
    "lm": 192,
    "lm_match": 216,
    "token": 128,
    "tokens": 65536,
}
FINAL_SELECTORS = {0: "zero", 1: "order0"}
WEIGHT_MAX = 2**19 - 1
CELLS = [squash(256 * (j - 12)) for j in range(25)]


def direct_line() -> list[Counter]:
    return [Counter() for _ in range(16)]


ORDERS = [f"order{n}" for n in range(1, 9)]


def bucket(length: int) -> int:
    if length < 8:
        return length
    if length < 16:
        return 8 + (length - 8) // 4
    if length < 32:
        return 10 + (length - 16) // 8
    if length < 64:
        return 12
    if length < 128:
        return 13
    return 14 if length < 512 else 15


@dataclass
class Match:
    """A match model of one stream."""

    shortest: int
    table: dict[int, int] = field(default_factory=dict)  # the stream's own
    at: int | None = None  # None: idle
    length: int = 0
    misses: int = 0  # a bit a byte, the last eight
    predicted: int = 0

    @property
    def row(self) -> int:
        """Of counters, without the bit."""
        return bucket(self.length) * 4 + min(self.misses.bit_count(), 3)

    def bit(self, c0: int, n_bit: int) -> int | None:
        """The predicted bit after the n_bit bits of c0, None without one."""
        if self.at is None or (self.predicted | 256) >> 8 - n_bit != c0:
            return None
        return self.predicted >> 7 - n_bit & 1

    def end_byte(self, c: int) -> None:
        if self.at is None:
            return
        hit = c == self.predicted
        self.length = min(self.length + 1, 65535) if hit else 0
        self.misses = (self.misses << 1 | (not hit)) & 255
        self.at += 1
        if self.misses.bit_count() > 7:
            self.at = None


class Stream:
    """What each stream has of its own, and between predict and update what it predicted."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.text = TextState()
        self.matches = [Match(m) for m in spec["matches"]]
        self.at = 0  # position
        self.end = 0
        self.c0 = 1
        self.n_bit = 0
        self.hashes: list[int] = []
        self.slots: list[list[int]] = []  # of each context
        self.direct: list[list[Counter]] = []  # lines
        self.known = 0
        # Left by predict for update.
        self.match_used: list[tuple[Counter, int] | None] = []  # (counter, predicted bit)
        self.inputs: list[tuple[int, int]] = []  # (index, x) of those that are not 0
        self.rows: list[list[int]] = []  # of the first layer
        self.d: list[int] = []
        self.final_row: list[int] = []
        self.p_final = 0
        self.cells: list[Cell] = []  # of the final maps


def train(row: list[int], inputs: list[tuple[int, int]], p: int, y: int, rate: int) -> None:
    """Weights, towards the bit that p was the probability of."""
    e = (65536 * y - p) * rate >> 4
    for i, x in inputs:
        w = row[i] + (x * e + 32768 >> 16)
        row[i] = w if -WEIGHT_MAX <= w <= WEIGHT_MAX else WEIGHT_MAX if w > 0 else -WEIGHT_MAX


@dataclass
class Cell:
    """Of a map over a stretch: what was read there, and what is trained."""

    cells: list[int]
    j: int
    f: int

    @property
    def q(self) -> int:
        return self.cells[self.j] * (256 - self.f) + self.cells[self.j + 1] * self.f >> 8

    def train(self, y: int, rate: int) -> None:
        j = self.j + (self.f >= 128)
        self.cells[j] += (65535 + 2**rate - 1 if y else 0) - self.cells[j] >> rate


def cell_of(cells: list[int], stretched: int) -> Cell:
    v = stretched + 3072
    j = min(v >> 8, 23)
    return Cell(cells, j, v - 256 * j)


class Coder(Protocol):
    def decode(self, p: int) -> int:
        """The next bit, 1 with probability p / 65536."""


class ContextMixer:
    """Section 5: a chain of blocks' tables, history and state."""

    def __init__(self, profile: Profile, nbytes: int, n_stream: int, enlarge: int = 0) -> None:
        """Tables for a chain whose first block has nbytes."""
        self.profile = profile
        self.spec = spec = profile.spec
        number = profile.number
        n_context = len(spec["contexts"])
        most = 2 ** (number("table_log2") + enlarge)
        self.table = SlotTable(power_of_two(2**12, 24 * n_context * nbytes, most))
        self.match_size = power_of_two(2**10, nbytes, 2 ** number("match_log2"))
        own_nbytes = -(-nbytes // n_stream) if number("lm") else nbytes
        self.own_match_size = power_of_two(2**10, own_nbytes, 2 ** number("match_log2"))
        self.match_tables: list[dict[int, int]] = [{} for _ in spec["matches"]]
        counters = [Counter(p, n) for p, n in profile.maps]
        self.maps = [counters[256 * i : 256 * (i + 1)] for i in range(n_context)]
        self.match_maps = [
            counters[256 * n_context + 1024 * i : 256 * n_context + 1024 * (i + 1)]
            for i in range(len(spec["matches"]))
        ]
        at = 0
        self.layers = []
        for name in spec["selectors"]:
            self.layers.append(self._matrix(at, SELECTOR_ROWS[name], profile.n_input))
            at += SELECTOR_ROWS[name] * profile.n_input
        self.final_selector = FINAL_SELECTORS[number("final_selector")]
        self.final = self._matrix(at, SELECTOR_ROWS[self.final_selector], 16)
        self.weights_end = at + SELECTOR_ROWS[self.final_selector] * 16  # what is left is of language models
        self.final_maps = [defaultdict[int, list[int]](CELLS.copy) for _ in spec["maps"]]
        self.direct = [defaultdict[int, list[Counter]](direct_line) for _ in range(number("n_direct"))]
        self.known = [i for i, names in enumerate(spec["contexts"]) if len(names) == 1 and names[0] in ORDERS]
        self.streams = [Stream(spec) for _ in range(n_stream)]
        self.history = bytearray()
        self.begin()

    def begin(self) -> None:
        assert self.weights_end == len(self.profile.weights)

    def _matrix(self, at: int, n_row: int, n: int) -> list[list[int]]:
        return [self.profile.weights[at + n * row : at + n * (row + 1)] for row in range(n_row)]

    def begin_block(self, nbytes: int) -> None:
        before = len(self.history)
        self.history += bytes(nbytes)
        require(len(self.history) <= 2**25, "more history than this decoder keeps")
        n_stream = len(self.streams)
        for s, stream in enumerate(self.streams):
            stream.at = before + s * nbytes // n_stream
            stream.end = before + (s + 1) * nbytes // n_stream
            if n_stream > 1:
                stream.text.begin_line()
                for match in stream.matches:
                    match.at, match.length, match.misses = None, 0, 0

    # Lookup

    def find_matches(self, stream: Stream) -> None:
        for match, table in zip(stream.matches, self.match_tables, strict=True):
            self._find(stream, match, table)

    def make_hashes(self, stream: Stream) -> None:
        """Once a byte."""
        if stream.hashes:
            return
        match = stream.matches[0]
        values = stream.text.features()
        values["match_byte"] = 0 if match.at is None else match.predicted + 1 + (bucket(match.length) << 9)
        stream.hashes = [
            context_hash(i, [values[name] for name in names]) for i, names in enumerate(self.spec["contexts"])
        ]

    def lookup(self, stream: Stream) -> None:
        self.make_hashes(stream)
        c0 = stream.c0 >> stream.n_bit - 4 if stream.n_bit >= 4 else 0
        stream.slots = []
        filled = []  # whether the slot's first node was not empty, before the next context's lookup
        for h, place in zip(stream.hashes, self.places(stream), strict=True):
            slot = self.table.lookup(mix(h + c0 * GOLDEN32 + place))
            stream.slots.append(slot)
            filled.append(slot[1] != 0)
        stream.known = [*(filled[i] for i in self.known), False].index(False)
        stream.direct = []
        for order, lines in enumerate(self.direct):
            v = 32 * stream.text.order(order) + c0
            line = v if order < 2 else mix(v) % 2**15
            stream.direct.append(lines[line])

    def _find(self, stream: Stream, match: Match, table: dict[int, int]) -> None:
        m = min(match.shortest, 8)
        v = stream.text.order(m) << 64 - 8 * m
        place = (v * GOLDEN64 & MASK64) >> 40
        tables = [(table, place % self.match_size)]
        if len(self.streams) > 1:
            tables.insert(0, (match.table, place % self.own_match_size))
        if match.at is None or match.length < match.shortest:
            for candidates, index in tables:
                at = candidates.get(index, 0)
                length = 0
                while (
                    length < min(40, at, stream.at)
                    and self.history[at - 1 - length] == self.history[stream.at - 1 - length]
                ):
                    length += 1
                if length >= match.shortest and at != stream.at:
                    match.at, match.length, match.misses = at, length, 0
                    break
        for candidates, index in tables:
            candidates[index] = stream.at
        if match.at is not None and match.at >= len(self.history):
            match.at = None
        if match.at is not None:
            match.predicted = self.history[match.at]

    # Predict

    def predict(self, stream: Stream) -> int:
        """The probability of a 1 in 65536ths."""
        c0, n_bit = stream.c0, stream.n_bit
        node = self._node(stream)
        x: list[int] = []
        for slot, counters in zip(stream.slots, self.maps, strict=True):
            x += self._pair(counters[slot[node]].p) if slot[node] else (0, 0)
        for line in stream.direct:
            x += self._pair(line[node].p)
        stream.match_used = []
        for match, counters in zip(stream.matches, self.match_maps, strict=True):
            bit = match.bit(c0, n_bit)
            if bit is None:
                stream.match_used.append(None)
                x += (0, 0)
                continue
            counter = counters[match.row * 8 + n_bit]
            stream.match_used.append((counter, bit))
            stretched, linear = self._pair(counter.p)
            x += (stretched, linear) if bit else (-stretched, -linear)
        x += [*self.lm_inputs(stream), 256]
        stream.inputs = [(i, value) for i, value in enumerate(x) if value]
        stream.rows = [
            layer[self.row(stream, name)]
            for layer, name in zip(self.layers, self.spec["selectors"], strict=True)
        ]
        stream.d = [clip(sum([row[i] * v >> 8 for i, v in stream.inputs]) >> 8) for row in stream.rows]
        stream.final_row = self.final[self.row(stream, self.final_selector)]
        d = clip(sum(w * v >> 8 for w, v in zip(stream.final_row, stream.d, strict=False)) >> 8)
        stream.p_final = p = squash(d)
        stream.cells = [
            cell_of(rows[self.row(stream, name)], d)
            for rows, name in zip(self.final_maps, self.spec["maps"], strict=True)
        ]
        if not stream.cells:
            return min(max(p, 1), 65535)
        average = sum(cell.q for cell in stream.cells) // len(stream.cells)
        weight = self.profile.number("apm_weight")
        p = p * (16 - weight) + average * weight >> 4
        return min(max(p, 1), 65535)

    def lm_inputs(self, stream: Stream) -> list[int]:
        return []

    def update_lm_maps(self, stream: Stream, y: int) -> None:
        pass

    def places(self, stream: Stream) -> list[int]:
        """Of each context: what section 8.4 adds to its hash."""
        return [0] * len(self.spec["contexts"])

    @staticmethod
    def _node(stream: Stream) -> int:
        """Within the nibble."""
        n_bit = stream.n_bit % 4
        return 1 << n_bit | stream.c0 & (1 << n_bit) - 1

    @staticmethod
    def _pair(p: int) -> tuple[int, int]:
        return STRETCH[p >> 10], p - 2**21 >> 11

    def row(self, stream: Stream, selector: str) -> int:
        text, match, bit = stream.text, stream.matches[0], stream.n_bit
        c1, class1 = text.byte(1), CLASS[text.byte(1)]
        matches = stream.match_used[0] is not None
        if selector == "zero":
            return 0
        if selector == "order0":
            return stream.c0
        if selector in ("byte1", "byte2"):
            return text.byte(int(selector[-1]))
        if selector == "match":
            return 1 + match.row if matches else 0
        if selector == "known":
            return 8 * min(stream.known, 8) + bit
        if selector == "classes":
            return class1 * 64 + CLASS[text.byte(2)] * 8 + CLASS[text.byte(3)]
        if selector == "column":
            return 8 * min(len(text.row.data), 31) + bit
        if selector == "word":
            return 8 * min(text.n_letter, 15) + bit
        if selector == "field":
            return 8 * (5 * min(text.row.number, 15) + text.delimiter) + CLASS[text.field_above()]
        if selector == "nest":
            return 8 * (2 * b"\0{[(<".index(text.bracket(1)) + (text.quote > 0)) + class1
        if selector == "match_byte":
            return 1 + match.predicted if matches else 0
        if selector == "order1":
            return c1 * 256 + stream.c0
        if selector == "above":
            return text.above()
        hashed = {"hash2": text.order(2), "hash3": text.order(3), "hash_word": text.word + c1}
        return (mix(hashed[selector]) + stream.c0 * 0x9E3B) % 2**14

    # 5.6 Update

    def update(self, stream: Stream, y: int) -> None:
        number = self.profile.number
        for row, d in zip(stream.rows, stream.d, strict=True):
            train(row, stream.inputs, squash(d), y, number("weight_rate"))
        train(stream.final_row, list(enumerate(stream.d)), stream.p_final, y, number("final_rate"))
        for cell in stream.cells:
            cell.train(y, number("apm_rate"))
        self.update_lm_maps(stream, y)
        node = self._node(stream)
        for slot, counters in zip(stream.slots, self.maps, strict=True):
            state = slot[node]  # others may share the slot and have changed it since predict
            if state:
                counters[state].train(y, number("map_limit"))
            slot[node] = NEXT[state][y]
        for line in stream.direct:
            line[node].train(y, number("direct_limit"))
        for used in stream.match_used:
            if used is not None:
                counter, bit = used
                counter.train(int(bit == y), 1023)
        stream.c0 = stream.c0 << 1 | y
        stream.n_bit += 1

    def end_byte(self, stream: Stream) -> None:
        c = stream.c0 & 255
        self.history[stream.at] = c
        stream.at += 1
        stream.text.end_byte(c)
        for match in stream.matches:
            match.end_byte(c)
        stream.c0, stream.n_bit, stream.hashes = 1, 0, []

    # 3. Streams, groups and the order of decisions

    def decode(self, coder: Coder, nbytes: int, n_group: int) -> bytes:
        self.begin_block(nbytes)
        n_first = -(-len(self.streams) // n_group)
        groups = [self.streams[:n_first], self.streams[n_first:]]
        while any(stream.at < stream.end for stream in self.streams):
            for group in groups:
                streams = [stream for stream in group if stream.at < stream.end]
                for bit in range(8):
                    if bit % 4 == 0:
                        for stream in streams:
                            if bit == 0:
                                self.find_matches(stream)
                            self.lookup(stream)
                    p = [self.predict(stream) for stream in streams]
                    bits = [coder.decode(p_of_1) for p_of_1 in p]
                    for stream, y in zip(streams, bits, strict=True):
                        self.update(stream, y)
                for stream in streams:
                    self.end_byte(stream)
        return bytes(self.history[-nbytes:])


# 8. Blocks with a language model


class TokenStream(Stream):
    """A stream, its network, and the token that it is in."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        self.before = self.before2 = 0  # the last complete token, the one before it
        self.begun = False  # the byte at hand, or the next one
        self.state: network.State | None = None
        self.cum = np.zeros(1, np.uint64)  # sums of the frequencies below each token
        # The token so far.
        self.u = b""
        self.within: list[int] = []  # range(u)
        self.left: list[int] = []  # of it, those longer than u that the bits of the byte allow
        # The open decision.
        self.at_end = False
        self.one: list[int] = []  # its sides, never empty
        self.zero: list[int] = []
        self.stretch = 0  # L
        self.nibble = -1  # that was looked up
        self.lm_cells: list[Cell] = []  # of the language model's maps
        self.entries: list[tuple[list[int], int]] = []  # of the token's end: entry, check
        self.question: Question | None = None


class TokenMixer(ContextMixer):
    """Section 8: what section 5 has, a network and its vocabulary."""

    def __init__(
        self, model: IntegerModel, profile: Profile, nbytes: int, n_stream: int, enlarge: int = 0
    ) -> None:
        self.model = model
        self.strings = model.vocabulary.strings
        self.nbytes = nbytes
        prefixes = {s[:n] for s in self.strings for n in range(len(s) + 1)}
        self.numbers = {s: i for i, s in enumerate(sorted(prefixes, key=lambda s: (len(s), s)))}
        self.lm_maps = [defaultdict[int, list[int]](CELLS.copy) for _ in profile.lm_maps]
        super().__init__(profile, nbytes, n_stream, enlarge)

    def begin(self) -> None:
        weights, at = self.profile.weights, self.weights_end
        n_end = self.profile.number("n_end")
        end_maps = [Counter(p, n) for p, n in self.profile.maps[len(self.profile.maps) - 256 * n_end :]]
        n = TokenEnd.n_weight(n_end)
        n_entry = power_of_two(2**10, n_end * self.nbytes, 2 ** self.profile.number("end_log2"))
        self.token_end = TokenEnd(n_end, end_maps, weights[at : at + n], n_entry.bit_length() - 1)
        at += n
        for rows, name in zip(self.final_maps, self.spec["maps"], strict=True):
            if SELECTOR_ROWS[name] > 1024:
                continue
            for row in range(SELECTOR_ROWS[name]):
                rows[row] = [min(w, 65535) for w in weights[at : at + 25]]
                at += 25
        assert at == len(weights)
        self.token_streams = [TokenStream(self.spec) for _ in self.streams]
        self.streams = list[Stream](self.token_streams)
        self.is_first = True

    # 8.1 Streams and token steps

    def decode(self, coder: Coder, nbytes: int, n_group: int, after_prior: bool = False) -> bytes:
        """after_prior: section 2.6: the network goes on where the text's last token but one left it."""
        self.begin_block(nbytes)
        for stream in self.token_streams if after_prior else []:
            stream.before2 = stream.before
        for s, stream in enumerate([] if after_prior else self.token_streams):
            cut = s > 0 or not self.is_first
            stream.state = network.start(self.model, np.array([cut]))
            stream.before = stream.before2 = len(self.strings) + cut
            stream.begun = False
        self.is_first = False
        n_first = -(-len(self.streams) // n_group)
        groups = [self.token_streams[:n_first], self.token_streams[n_first:]]
        while any(stream.at < stream.end for stream in self.streams):
            for group in groups:
                self._token_step([stream for stream in group if stream.at < stream.end], coder)
        return bytes(self.history[-nbytes:])

    def _token_step(self, streams: list[TokenStream], coder: Coder) -> None:
        for stream in streams:
            assert stream.state is not None
            logits = network.step(self.model, np.array([stream.before]), stream.state)
            stream.cum = decisions.cumulate(decisions.frequencies(logits))[0]
        for stream in streams:
            stream.u, stream.within = b"", list(range(len(self.strings)))
            self._begin_byte(stream)
        is_open = [stream for stream in streams if self._go_on(stream)]
        while is_open:
            for stream in is_open:
                if stream.at_end:
                    self.lookup_end(stream)
                elif stream.nibble != stream.n_bit // 4:
                    self.lookup(stream)
                    stream.nibble = stream.n_bit // 4
            p = [self._predict(stream) for stream in is_open]
            bits = [coder.decode(p_of_1) for p_of_1 in p]
            is_open = [stream for stream, y in zip(is_open, bits, strict=True) if self._take(stream, y)]

    # 8.2 Bytes

    def _begin_byte(self, stream: TokenStream) -> None:
        if not stream.begun:
            self.find_matches(stream)
            stream.begun = True
        stream.left = [t for t in stream.within if len(self.strings[t]) > len(stream.u)]
        stream.nibble = -1

    def _go_on(self, stream: TokenStream) -> bool:
        """To the next open decision; false at the end of the token."""
        while True:
            while stream.n_bit < 8:
                at, shift = len(stream.u), 7 - stream.n_bit
                stream.one = [t for t in stream.left if self.strings[t][at] >> shift & 1]
                stream.zero = [t for t in stream.left if not self.strings[t][at] >> shift & 1]
                if stream.one and stream.zero:
                    return True
                stream.c0 = stream.c0 << 1 | (not stream.zero)
                stream.n_bit += 1
            stream.u += bytes([stream.c0 & 255])
            stream.within = stream.left
            self.end_byte(stream)
            stream.begun = False
            is_token = self.strings[stream.within[0]] == stream.u
            if stream.at == stream.end:
                require(is_token, "corrupt: a stream ends inside a token")
                return self._end_token(stream)
            if is_token and len(stream.within) == 1:
                return self._end_token(stream)
            self._begin_byte(stream)
            if is_token:
                stream.at_end = True
                stream.one, stream.zero = stream.within[:1], stream.within[1:]
                return True

    @staticmethod
    def _end_token(stream: TokenStream) -> bool:
        stream.before2, stream.before = stream.before, stream.within[0]
        return False

    def _predict(self, stream: TokenStream) -> int:
        stream.stretch = self._stretch(stream)
        if not stream.at_end:
            return self.predict(stream)
        stream.question = self.token_end.ask(stream, self.history, self.strings)
        return stream.question.p

    def _take(self, stream: TokenStream, y: int) -> bool:
        """True if another decision is open."""
        if not stream.at_end:
            self.update(stream, y)
            stream.left = stream.one if y else stream.zero
            return self._go_on(stream)
        self._update_end(stream, y)
        stream.at_end = False
        if y:
            return self._end_token(stream)
        return self._go_on(stream)

    def lookup_end(self, stream: TokenStream) -> None:
        self.make_hashes(stream)
        stream.entries = self.token_end.lookup(stream.within[0], stream.hashes)

    def _update_end(self, stream: TokenStream, y: int) -> None:
        assert stream.question is not None
        self.token_end.update(stream.question, y)

    # 8.3 The language model's stretch

    @staticmethod
    def _stretch(stream: TokenStream) -> int:
        def total(tokens: list[int]) -> np.ndarray:
            assert tokens == list(range(tokens[0], tokens[-1] + 1))
            return stream.cum[tokens[-1] + 1] - stream.cum[tokens[0]]

        return int(decisions.stretch(np.array(total(stream.one)), np.array(total(stream.zero))))

    # 8.4 A bit

    def places(self, stream: Stream) -> list[int]:
        assert isinstance(stream, TokenStream)
        said = [int(stream.u != b""), self.numbers[stream.u], stream.before, stream.before2]
        places = []
        for names in self.spec["contexts"]:
            x = 0
            for name, v in zip(PLACE, said, strict=True):
                if name in names:
                    x = (x + v + 1) * 0xD6E8FEB86659FD93 & MASK64
                    x ^= x >> 32
            places.append(x >> 20 & MASK32)
        return places

    def lm_inputs(self, stream: Stream) -> list[int]:
        assert isinstance(stream, TokenStream)
        stream.lm_cells = [
            cell_of(rows[self.row(stream, name)], stream.stretch)
            for rows, name in zip(self.lm_maps, self.profile.lm_maps, strict=True)
        ]
        return [*lm_pair(stream.stretch), *(STRETCH[64 * cell.q >> 10] for cell in stream.lm_cells)]

    def update_lm_maps(self, stream: Stream, y: int) -> None:
        assert isinstance(stream, TokenStream)
        for cell in stream.lm_cells:
            cell.train(y, self.profile.number("lm_map_rate"))

    def row(self, stream: Stream, selector: str) -> int:
        assert isinstance(stream, TokenStream)
        step, k = stream.stretch + 3072 >> 8, stream.n_bit
        if selector == "lm":
            return 8 * step + k
        if selector == "token":
            return 8 * min(len(stream.u), 15) + k
        if selector == "lm_match":
            used = stream.match_used[0]
            return 9 * step + (1 + 4 * used[1] + bucket(stream.matches[0].length) // 4 if used else 0)
        if selector == "tokens":
            tokens = mix(self.numbers[stream.u] * GOLDEN32 + mix(stream.before))
            return (tokens + stream.c0 * 0x9E3B) % 2**16
        return super().row(stream, selector)


def lm_pair(stretched: int) -> tuple[int, int]:
    """The inputs that L gives."""
    return stretched, squash(stretched) * 64 - 2**21 >> 11


# 8.5 The end of a token


@dataclass
class Question:
    """Whether a token ends: what was predicted and from what."""

    counters: list[Counter]  # of tables 0 to 3
    of_match: Counter | None  # of table 4
    ends: int
    cells: list[Cell]
    entries: list[list[int]]  # (check, history) of the contexts
    inputs: list[tuple[int, int]]
    rows: list[list[int]]
    d: list[int]
    final_row: list[int]
    p: int


def empty_entry() -> list[int]:
    return [0, 0]


class TokenEnd:
    """Tables and mixer."""

    ROWS = 24, 24, 16, 64

    @staticmethod
    def n_input(n_end: int) -> int:
        return (2 * n_end + 15 + 15) // 16 * 16

    @classmethod
    def n_weight(cls, n_end: int) -> int:
        return sum(cls.ROWS) * cls.n_input(n_end) + 24 * 16

    def __init__(self, n_end: int, maps: list[Counter], weights: list[int], log2: int) -> None:
        n_input, at = self.n_input(n_end), 0
        self.layers = []
        for n_row in self.ROWS:
            self.layers.append([weights[at + n_input * i : at + n_input * (i + 1)] for i in range(n_row)])
            at += n_row * n_input
        self.final = [weights[at + 16 * i : at + 16 * (i + 1)] for i in range(24)]
        self.maps = [maps[256 * i : 256 * (i + 1)] for i in range(n_end)]
        self.log2 = log2
        self.entries = defaultdict[int, list[int]](empty_entry)
        self.tables = [defaultdict[int, Counter](Counter) for _ in range(4)]
        self.of_matches = [Counter(3 * 2**20) for _ in range(16)]
        self.cells = [defaultdict[int, list[int]](CELLS.copy) for _ in range(2)]

    def lookup(self, u: int, hashes: list[int]) -> list[tuple[list[int], int]]:
        """(entry, check) of each context."""
        a = [mix(h + u * GOLDEN32) for h, _ in zip(hashes, self.maps, strict=False)]
        return [(self.entries[x >> 32 - self.log2], x & 255) for x in a]

    def ask(self, stream: TokenStream, history: bytearray, strings: tuple[bytes, ...]) -> Question:
        u, before, n, stretched = stream.within[0], stream.before, len(stream.u), stream.stretch
        match, tail = stream.matches[0], stream.text.order(4)
        length = after = ends = 0
        counts = match.at is not None and match.length >= n and match.at >= n
        if counts:
            assert match.at is not None
            length, after = 1 + bucket(match.length) // 2, 1 + history[match.at]
            text = bytes(history[match.at - n :])
            ends = int(max(len(s) for s in strings if text.startswith(s)) == n)
        index = [
            u % 2**16,
            self._hash(u << (20 if len(strings) > 65_534 else 16) | before),
            self._hash(u << 16 | after),
            self._hash((u << 32 | tail) + 1),
        ]
        counters = [table[i] for table, i in zip(self.tables, index, strict=True)]
        of_match = self.of_matches[length]
        sign = 0 if not counts else 1 if ends else -1
        x = list(lm_pair(stretched))
        for counter, factor in (*((c, 1) for c in counters), (of_match, sign)):
            x += [factor * STRETCH[counter.p >> 10], factor * (counter.p - 2**21 >> 11)]
        seen = []
        for (entry, check), of_context in zip(stream.entries, self.maps, strict=True):
            if entry[0] != check:
                entry[:] = [check, 0]
            p = of_context[entry[1]].p
            x += [STRETCH[p >> 10], p - 2**21 >> 11]
            seen.append(entry[1] != 0)
        map_rows = [u % 2**13, mix(u * GOLDEN32 + tail) >> 16]
        cells = [cell_of(rows[i], stretched) for rows, i in zip(self.cells, map_rows, strict=True)]
        x += [STRETCH[64 * cell.q >> 10] for cell in cells]
        x.append(256)
        inputs = list(enumerate(x))
        chosen = 2 * length + ends if counts else 0
        orders = 8 * sum(seen[:7]) + 7 * sum(seen[7:]) // max(1, len(seen) - 7)
        numbers = [stretched + 3072 >> 8, chosen, min(n, 15), orders]
        rows = [layer[i] for layer, i in zip(self.layers, numbers, strict=True)]
        d = [clip(sum(row[i] * v >> 8 for i, v in inputs) >> 8) for row in rows]
        final_row = self.final[chosen]
        p = squash(clip(sum(final_row[i] * v >> 8 for i, v in enumerate(d)) >> 8))
        entries = [entry for entry, _ in stream.entries]
        return Question(
            counters, of_match if counts else None, ends, cells, entries, inputs, rows, d, final_row, p
        )

    @staticmethod
    def _hash(x: int) -> int:
        return (x * GOLDEN64 & MASK64) >> 48

    def update(self, asked: Question, y: int) -> None:
        for row, d in zip(asked.rows, asked.d, strict=True):
            train(row, asked.inputs, squash(d), y, 6)
        train(asked.final_row, list(enumerate(asked.d)), asked.p, y, 2)
        for cell in asked.cells:
            cell.train(y, 5)
        for counter in asked.counters:
            counter.train(y, 255)
        for entry, of_context in zip(asked.entries, self.maps, strict=True):
            state = entry[1]  # others may share the entry and have changed it since it was asked
            if state:
                of_context[state].train(y, 1023)
            entry[1] = NEXT[state][y]
        if asked.of_match:
            asked.of_match.train(int(y == asked.ends), 1023)


# 8.6 The language model alone


class NetworkAlone(TokenMixer):
    """What section 8 has without section 5."""

    def __init__(self, model: IntegerModel, n_stream: int) -> None:
        self.model = model
        self.strings = model.vocabulary.strings
        self.token_streams = [TokenStream({"matches": []}) for _ in range(n_stream)]
        self.streams = list[Stream](self.token_streams)
        self.history = bytearray()
        self.is_first = True

    def find_matches(self, stream: Stream) -> None:
        pass

    def lookup(self, stream: Stream) -> None:
        pass

    def lookup_end(self, stream: TokenStream) -> None:
        pass

    def _predict(self, stream: TokenStream) -> int:
        stream.stretch = self._stretch(stream)
        return squash(stream.stretch)

    def update(self, stream: Stream, y: int) -> None:
        stream.c0 = stream.c0 << 1 | y
        stream.n_bit += 1

    def _update_end(self, stream: TokenStream, y: int) -> None:
        pass


# 4. Payload: the range coder


class RangeDecoder:
    """Words of 32 bits, a state of 64, probabilities of 24."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.at = 0
        self.range = MASK64
        self.offset = self._word() << 32 | self._word()
        require(self.offset < self.range, "corrupt: no encoder's payload")

    def _word(self) -> int:
        self.at += 4
        return int.from_bytes(self.payload[self.at - 4 : self.at].ljust(4, b"\0"), "big")

    def decode(self, p: int) -> int:
        one = 256 * p + (p < 32768)
        scale = self.range >> 24
        zero = scale * (2**24 - one)
        bit = int(self.offset >= zero)
        if bit:
            self.offset -= zero
            self.range = scale * one
        else:
            self.range = zero
        require(self.offset < self.range, "corrupt: no encoder's payload")
        if self.range < 2**32:
            self.range <<= 32
            self.offset = self.offset << 32 | self._word()
        return bit


# 10. Numbers


def table_of(reader: Reader) -> list[tuple[int, int, int]]:
    """Of each of the 4096 slots: symbol, its frequency, the slot less the frequencies before it."""
    first, last = reader.byte(), reader.byte()
    require(first <= last, "corrupt: range of a table")
    slots: list[tuple[int, int, int]] = []
    for symbol in range(first, last + 1):
        f = reader.varint()
        require(f <= 4096 - len(slots), "corrupt: frequencies")
        slots += [(symbol, f, i) for i in range(f)]
    require(len(slots) == 4096, "corrupt: frequencies")
    return slots


def decode_words(reader: Reader, tables: list[list[tuple[int, int, int]]], context: list[int]) -> bytes:
    n_word, n_state = reader.varint(), 32 if len(context) >= 4096 else 4
    require(n_word <= len(context), "corrupt: number of words")
    states = [reader.u32() for _ in range(n_state)]
    words = Reader(reader.take(2 * n_word))
    require(all(x >= 2**16 for x in states), "corrupt: states")
    out = bytearray()
    for j, c in enumerate(context):
        x = states[j % n_state]
        symbol, f, rest = tables[c][x % 4096]
        x = f * (x // 4096) + rest
        if x < 2**16:
            x = 2**16 * x + int.from_bytes(words.take(2), "little")
        states[j % n_state] = x
        out.append(symbol)
    require(words.at == 2 * n_word and set(states) == {2**16}, "corrupt: words")
    return bytes(out)


def decode_plane(
    reader: Reader, m: int, above: bytes | None, most_mode: int = 5, base: bytes | None = None
) -> bytes:
    mode = reader.byte()
    require(mode <= most_mode, "corrupt: mode of a plane")
    if mode == 0:
        return reader.take(m)
    if mode == 1:
        return reader.take(1) * m
    n_context, context = 1, [0] * m
    if mode > 2:
        n_context = reader.byte()
        require(2 <= n_context <= 8, "corrupt: contexts")
    if mode == 3:
        length = reader.varint()
        require(1 <= length <= m, "corrupt: length of rows")
        rows = decode_plane(reader, -(-m // length), None, 2)
        columns = decode_plane(reader, length, None, 2)
        require(all(1 <= c <= 127 for c in rows + columns), "corrupt: classes")
        sums = [rows[j // length] + columns[j % length] - 128 for j in range(m)]
        context = [min(max(c, 0), n_context - 1) for c in sums]
    if mode > 3:
        above = base if mode == 5 else above
        borders = list(reader.take(n_context - 1))
        require([0, *borders] == sorted({0, *borders}), "corrupt: borders of contexts")
        require(above is not None, "corrupt: no plane above")
        context = [sum(t <= b for t in borders) for b in above or b""]
    return decode_words(reader, [table_of(reader) for _ in range(n_context)], context)


def in_order(x: int, bits: int, is_float: bool) -> int:
    """The numbers' own order; its own inverse."""
    return x ^ 2 ** (bits - 1) - 1 if is_float and x >> bits - 1 else x


def decode_numbers(payload: bytes, nbytes: int, base: bytes = b"") -> bytes:
    reader = Reader(payload)
    head = reader.byte()
    require(head < (32 if base else 16), "corrupt: first byte of numbers")
    place = reader.varint() if head & 16 else 0
    near = base[place : place + nbytes] if head & 16 else b""
    require(not head & 16 or len(near) == nbytes, "corrupt: bytes of the base")
    head &= 15
    fields = []
    for _ in range(head + 1):
        kind, n_element = reader.byte(), reader.varint()
        require(kind < 16 and 1 <= n_element <= 4096, "corrupt: a field")
        fields.append((1 << (kind & 3), bool(kind & 4), bool(kind & 8), n_element))
    record = sum(width * n_element for width, _, _, n_element in fields)
    require(1 <= record <= min(4096, nbytes), "corrupt: length of a record")
    n = nbytes // record
    out = bytearray(n * record) + reader.take(nbytes % record)
    begin, before, m_before = 0, None, 0
    for width, is_float, is_big, n_element in fields:
        m = n * n_element
        planes: list[bytes] = []
        order, bits = "big" if is_big else "little", 8 * width
        places = [j // n_element * record + begin + j % n_element * width for j in range(m)]
        ys = [int.from_bytes(near[at : at + width], order) for at in places] if near else []  # type: ignore[arg-type]
        tops = (
            bytes((y << 1 | y >> bits - 1 if is_float else y) >> bits - 8 & 255 for y in ys) if near else None
        )
        for b in range(width):
            above = planes[-1] if b else before if m_before == m else None
            planes.append(decode_plane(reader, m, above, base=tops))
        for j in range(m):
            x = int.from_bytes(bytes(plane[j] for plane in planes), "big")
            if near:
                d = x // 2 if x % 2 == 0 else 2**bits - (x + 1) // 2
                x = in_order((in_order(ys[j], bits, is_float) + d) % 2**bits, bits, is_float)
            elif is_float:
                x = x >> 1 | (x & 1) << bits - 1
            out[places[j] : places[j] + width] = x.to_bytes(width, order)  # type: ignore[arg-type]
        begin, before, m_before = begin + width * n_element, planes[0], m
    require(reader.at == len(payload), "corrupt: bytes after the planes")
    return bytes(out)


# 2. Frame

CONTENT_SIZE, MODEL, INDEX, EXTENSIONS = 16, 32, 64, 128  # flags
END, STORED, CM, LM_CM, LM, TENSOR = 0, 1, 2, 3, 4, 5  # methods


BASE = 6  # type of an extension field


def extensions(reader: Reader, start: int) -> dict[int, bytes]:
    """The critical extension fields of the header at start."""
    nbytes = reader.varint()
    require(2 <= nbytes <= 2**16, "corrupt: size of the extension fields")
    end, before = reader.at + nbytes, 0
    critical: dict[int, bytes] = {}
    fields = Reader(reader.data[: reader.at] + reader.take(nbytes))
    fields.at = end - nbytes
    require(reader.u32() == zlib.crc32(reader.data[start:end]), "corrupt: crc32 of the extension fields")
    while fields.at < end:
        key = fields.varint()
        data = fields.take(fields.varint())
        require(before < key >> 1 < 2**27, "corrupt: order of the extension fields")
        before = key >> 1
        if key & 1:
            critical[before] = data
    return critical


def decode_frame(reader: Reader, models: dict[bytes, IntegerModel], base: bytes = b"") -> bytes:
    start = reader.at
    require(reader.take(4) == b"\xb5LMZ", "not a frame")
    flags = reader.byte()
    require(flags & 15 == 1, "unsupported version")
    model = reader.byte() if flags & MODEL else 1
    model_id = reader.take(8 if model == 255 else 0)
    content_size = reader.varint() if flags & CONTENT_SIZE else None
    header = reader.data[start : reader.at]
    require(reader.byte() == crc8(header), "corrupt: crc8 of the frame header")
    critical = extensions(reader, start) if flags & EXTENSIONS else {}
    require({*critical} <= {BASE}, f"unsupported extensions {[*critical]}")
    if BASE in critical:
        named = Reader(critical[BASE])
        digest, size = named.take(32), named.varint()
        require(named.at == len(named.data), "corrupt: the field of a base")
        require((digest, size) == (hashlib.sha256(base).digest(), len(base)), "another base")
    else:
        base = b""
    require(model in range(1, 128) or model == 255, "unsupported model")
    sizes = [reader.at - start]  # what the index holds
    out = b""
    mixer: ContextMixer | None = None
    before: tuple[int, ...] = ()
    chain_before = False
    while True:
        start = reader.at
        first = reader.byte()
        method, last, continues, chain = first & 7, first & 8, first & 16, first & 32
        require(not first & 0xC0, "unsupported: reserved bits of a block")
        require(not chain or method in (CM, LM_CM), "corrupt: method of a chain")
        require(method in (END, STORED, CM, LM_CM, LM, TENSOR), f"unsupported method {method}")
        require(method not in (LM_CM, LM) or bool(flags & MODEL), "corrupt: no model")
        number = enlarge = n_stream = n_group = nbytes = payload_nbytes = tables_nbytes = 0
        if chain and continues:
            require(chain_before and method == before[0], "corrupt: continues no chain")
            _, number, enlarge, n_stream, n_group = before
        elif method in (CM, LM_CM, LM):
            tables, shape = reader.byte(), reader.byte()
            number, enlarge = tables & 31, tables >> 5
            require(enlarge <= 3 and (method != LM or not tables), "unsupported profile or table")
            n_stream, n_group = (shape & 127) + 1, (shape >> 7) + 1
            require(n_group <= n_stream <= (4 if method == CM else 128), "corrupt: streams")
            if chain:
                k = reader.byte()
                require(10 <= k <= 24, "corrupt: tables of a chain")
                tables_nbytes = 2**k
        if method != END:
            nbytes = payload_nbytes = reader.varint() + 1
            require(n_stream <= nbytes <= (tables_nbytes or 2**24), "corrupt: size")
        else:
            require(bool(last) and not continues, "corrupt: end block")
        if method in (CM, LM_CM, LM, TENSOR):
            payload_nbytes = reader.varint()
            require(payload_nbytes < nbytes + (16 if chain else 0), "corrupt: payload size")
        block_header = reader.data[start : reader.at]
        check = reader.u32()
        payload = reader.take(payload_nbytes)
        shape_now = (method, number, enlarge, n_stream, n_group)
        if continues:
            require(method in (CM, LM_CM, LM) and shape_now == before, "corrupt: continues nothing")
        original = payload
        if method == TENSOR:
            original = decode_numbers(payload, nbytes, base)
        if method in (CM, LM_CM, LM):
            if not continues and method == CM:
                mixer = ContextMixer(profile(number), tables_nbytes or nbytes, n_stream, enlarge)
            elif not continues:
                require(model_id in models, f"model {model}:{model_id.hex()} is missing")
            if not continues and method == LM:
                mixer = NetworkAlone(models[model_id], n_stream)
            elif not continues and method == LM_CM:
                profiles = read_profiles(models[model_id].mixer)
                require(1 <= number <= len(profiles), f"unsupported: profile {number} of the model")
                mixer = TokenMixer(
                    models[model_id], profiles[number - 1], tables_nbytes or nbytes, n_stream, enlarge
                )
            assert mixer is not None
            original = mixer.decode(RangeDecoder(payload), nbytes, n_group)
        require(check == zlib.crc32(original + block_header + payload), "corrupt: check of a block")
        before, chain_before = shape_now, bool(chain)
        out += original
        sizes += [reader.at - start, nbytes]
        if last:
            break
    require(content_size in (None, len(out)), "corrupt: content size")
    if flags & INDEX:
        sizes.insert(1, len(sizes) // 2)
        start = reader.at
        require([reader.varint() for _ in sizes] == sizes, "corrupt: index")
        index = reader.data[start : reader.at]
        require(reader.u32() == zlib.crc32(index), "corrupt: crc32 of the index")
        require(reader.u32() == len(index), "corrupt: size of the index")
        require(reader.take(4) == b"ZML\xb5", "corrupt: footer")
    return out


def decode_compact(data: bytes, prior: bytes, before: bytes, model_files: list[bytes]) -> bytes:
    """The content of a compact frame (section 2.6).

    Args:
        prior: the file of its prior (section 10).
        before: the payload of the prior's text as the first block of a chain, coded as the frame is.
    """
    magic, version, header_nbytes, file_nbytes = struct.unpack_from("<8sIIQ", prior)
    require(magic == b"\xb5LMPRIOR" and version == 1 and file_nbytes == len(prior), "not a prior")
    require(hashlib.sha256(prior[:-32]).digest() == prior[-32:], "corrupt: SHA-256 of the prior")
    header = json.loads(prior[24 : 24 + header_nbytes])
    text = ContextMixer(profile(3), header["text_nbytes"], 1).decode(
        RangeDecoder(prior[24 + header_nbytes : -32]), header["text_nbytes"], 1
    )
    codings = json.dumps(
        {name: header[name] for name in ("model", "profiles", "tables_log2")},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    parts = (len(part).to_bytes(8, "little") + part for part in (codings, text))
    prior_id = hashlib.sha256(b"lmcodec prior 1\0" + b"".join(parts)).digest()[:8]
    require(prior_id.hex() == header["id"], "corrupt: id of the prior")
    reader = Reader(data)
    require(reader.byte() == 0xC1, "not a compact frame")
    flags, low = reader.byte(), reader.byte()
    coding = flags >> 1 & 3
    require(not flags & 8 and coding < 3, "unsupported compact frame")
    require(f"{flags >> 4:x}{low:02x}" == header["id"][:3], "another prior")
    start = reader.at
    number, n = reader.varint(), 0
    while (n + 1) * (n + 2) // 2 <= number:
        n += 1
    m = number - n * (n + 1) // 2
    sizes = data[start : reader.at]
    check = reader.u32() if not flags & 1 else int.from_bytes(reader.take(2), "little")
    original = payload = reader.take(m)
    if m < n:
        k = 2 ** header["tables_log2"]
        if coding < 2:
            mixer = ContextMixer(profile(header["profiles"][coding]), k, 1)
            require(mixer.decode(RangeDecoder(before), len(text), 1) == text, "another text")
            original = mixer.decode(RangeDecoder(payload), n, 1)
        else:
            model = next(
                found
                for found in (recurrent_file.parse(file).model for file in model_files)
                if found.model_id == header["model"]["model_id"]
            )
            of_tokens = TokenMixer(model, read_profiles(model.mixer)[header["model"]["profile"] - 1], k, 1)
            require(of_tokens.decode(RangeDecoder(before), len(text), 1) == text, "another text")
            original = of_tokens.decode(RangeDecoder(payload), n, 1, after_prior=True)
    found = zlib.crc32(original + data[:3] + prior_id + sizes + payload)
    require(check == (found & 0xFFFF if flags & 1 else found), "corrupt: check")
    return original


def decode(data: bytes, model_files: list[bytes] | None = None, base: bytes = b"") -> bytes:
    """The contents of the frames in data, which may name the models in these files, and this base."""
    models = {}
    for file in model_files or []:
        model = recurrent_file.parse(file).model
        models[bytes.fromhex(model.model_id)] = model
    reader = Reader(data)
    out = decode_frame(reader, models, base)
    while reader.at < len(data):
        if data[reader.at]:
            out += decode_frame(reader, models, base)
        else:
            reader.at += 1  # padding
    return out


if __name__ == "__main__":
    _frame, *_models = [Path(path).read_bytes() for path in sys.argv[1:]]
    sys.stdout.buffer.write(decode(_frame, _models))
