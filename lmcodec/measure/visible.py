"""Bytes as something to look at: what is text, where it may be cut, and names for what cannot be seen.

Text is UTF-8. A byte that is none stands for itself, as two hexadecimal digits; a character that has no
picture of its own, or that would change how others look (controls, bidirectional formatting, private use), is
named. So what is shown is never less than what is there. Knows nothing of HTML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np

ZERO_WIDTH_NON_JOINER, ZERO_WIDTH_JOINER = "\u200c", "\u200d"
_JOINERS = ZERO_WIDTH_NON_JOINER + ZERO_WIDTH_JOINER
_MAX_CLUSTER = 16  # characters: without a bound a file of accents would be one cluster

# ISO 646 and Unicode's abbreviations (NameAliases.txt).
_C0 = re.findall(
    r"\w+",
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI "
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US",
)
_NAMES = {chr(i): name for i, name in enumerate(_C0)} | {
    "\x7f": "DEL",
    "\x85": "NEL",
    "\xad": "SHY",
    "\u061c": "ALM",
    "\u200b": "ZWSP",
    "\u200c": "ZWNJ",
    "\u200d": "ZWJ",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u2028": "LS",
    "\u2029": "PS",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2060": "WJ",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\ufeff": "BOM",
}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_UNSEEN_LETTERS = "\u115f\u1160\u3164\uffa0"  # Hangul fillers: letters of no ink


class Kind(Enum):
    """What a piece of bytes is."""

    TEXT = "text"  # characters that show themselves
    SPACE = "space"  # one or more spaces
    TAB = "tab"
    LINE_END = "line end"  # LF, CR LF, or CR alone
    NAMED = "named"  # a character that cannot be seen
    BYTE = "byte"  # a byte that is not UTF-8


class Piece(NamedTuple):
    """Bytes of one kind.

    Attributes:
        kind: of them.
        text: the characters; a NAMED one's name; a BYTE's two digits.
    """

    kind: Kind
    text: str


def is_stray(c: str) -> bool:
    """Whether Python's "surrogateescape" made `c` of a byte that is not UTF-8."""
    return "\udc80" <= c <= "\udcff"


def decode(data: bytes) -> str:
    """Text of `data`; a byte that is not UTF-8 is one surrogate (PEP 383)."""
    return data.decode("utf-8", "surrogateescape")


def widths(text: str) -> np.ndarray:
    """(len(text),) int64: bytes of each character that `decode` gave."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    width = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    width[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1
    return width.astype(np.int64)


def cluster_begins(data: bytes) -> np.ndarray:
    """Where text may be cut without changing how it looks: between user-perceived characters, about.

    A simplification of Unicode's grapheme clusters (UAX #29): a base with its marks, joiners, emoji modifiers
    and conjoining jamo, and pairs of regional indicators, at most _MAX_CLUSTER characters.

    Returns:
        (k,) int64 offsets in bytes, increasing, the first 0; empty if `data` is.
    """
    text = decode(data)
    ends = np.cumsum(widths(text))
    begins = []
    previous, length = "", 0
    in_flag = False  # after the first of two regional indicators
    for i, c in enumerate(text):
        is_indicator = "\U0001f1e6" <= c <= "\U0001f1ff"
        joins = (
            length < _MAX_CLUSTER
            and previous != ""
            and (extends(previous, c) or (is_indicator and in_flag) or (previous == "\r" and c == "\n"))
        )
        in_flag = is_indicator and not (joins and in_flag)
        if joins:
            length += 1
        else:
            begins.append(int(ends[i - 1]) if i else 0)
            length = 1
        previous = c
    return np.array(begins, np.int64)


def extends(previous: str, c: str) -> bool:
    """Whether `c` changes the look of the character before it, so that the two belong together."""
    if c < "\u0300" or is_stray(previous) or unicodedata.category(previous)[0] in "CZ":
        # What follows a joiner belongs to it, in emoji; in Persian it need not.
        return previous == ZERO_WIDTH_JOINER and unicodedata.category(c) == "So"
    return (
        unicodedata.category(c)[0] == "M"
        or c in _JOINERS
        or "\U0001f3fb" <= c <= "\U0001f3ff"
        or "\u1161" <= c <= "\u11ff"
    )


def is_seen(previous: str, c: str) -> bool:
    """Whether `c` after `previous` can be shown as it is; white space can."""
    if c in _JOINERS:  # Persian words and emoji need them
        return previous != "" and not is_stray(previous) and unicodedata.category(previous)[0] in "LMS"
    return not (is_stray(c) or c in _UNSEEN_LETTERS or unicodedata.category(c) in _UNSEEN)


def name_of(c: str) -> str:
    """A short name of a character that cannot be seen: ESC, ZWSP, U+E000."""
    return _NAMES.get(c) or f"U+{ord(c):04X}"


def pieces(data: bytes, previous: str = "") -> Iterator[Piece]:
    """`data` as pieces, in order, the longest possible of TEXT and SPACE.

    Args:
        data: to be shown.
        previous: the character before it, if it is known.
    """
    text = decode(data)
    i = 0
    while i < len(text):
        c = text[i]
        if c in "\r\n":
            end = i + 2 if text.startswith("\r\n", i) else i + 1
            yield Piece(Kind.LINE_END, text[i:end])
        elif c == "\t":
            end = i + 1
            yield Piece(Kind.TAB, c)
        elif unicodedata.category(c) == "Zs":
            end = i + 1
            while end < len(text) and unicodedata.category(text[end]) == "Zs":
                end += 1
            yield Piece(Kind.SPACE, text[i:end])
        elif is_stray(c):
            end = i + 1
            yield Piece(Kind.BYTE, f"{ord(c) - 0xDC00:02X}")
        elif not is_seen(previous, c):
            end = i + 1
            yield Piece(Kind.NAMED, name_of(c))
        else:
            end = i + 1
            while (
                end < len(text)
                and is_seen(text[end - 1], text[end])
                and unicodedata.category(text[end]) != "Zs"
            ):
                end += 1
            yield Piece(Kind.TEXT, text[i:end])
        previous = text[end - 1]
        i = end


_LINE_ENDS = {"\n": "↵", "\r\n": "␍↵", "\r": "␍"}


def label(data: bytes, limit: int = 60) -> str:
    """One line that shows `data`: spaces, tabs and line ends as signs, the rest that is unseen named in ⟨⟩.

    Args:
        data: to be shown.
        limit: characters, about; what is beyond is left out, for an ellipsis.
    """
    shown = ""
    for kind, text in pieces(data[: 4 * limit + 4]):
        if kind is Kind.SPACE:
            text = "".join("␣" if c == " " else f"⟨{name_of(c)}⟩" for c in text)
        elif kind is Kind.TAB:
            text = "⇥"
        elif kind is Kind.LINE_END:
            text = _LINE_ENDS[text]
        elif kind is not Kind.TEXT:
            text = f"⟨{text}⟩"
        elif extends("a", text[0]):
            text = "◌" + text  # a mark without its base
        shown += text
        if len(shown) > limit:
            return shown[:limit] + "…"
    return shown + ("…" if len(data) > 4 * limit + 4 else "")


def title(name: str, limit: int) -> str:
    """A file's name as one line of about `limit` characters at most; see `label`."""
    return label(name.encode("utf-8", "surrogateescape"), limit).replace("␣", " ")
