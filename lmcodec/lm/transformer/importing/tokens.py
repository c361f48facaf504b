"""What a tokenizer's ids spell, as bytes, and the tokenizer itself as far as segmentation needs it.

Three ways to spell are known: the byte-level alphabet of GPT-2, the pieces of sentencepiece (a space is
U+2581, `<0xHH>` is a byte), and both for added tokens, which are plain text. Control tokens spell nothing.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from lmcodec.errors import Corrupt, Unsupported

MAX_TOKENS = 1 << 20
SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Tokens:
    """A vocabulary as its source has it.

    Attributes:
        strings: of each id what it spells; empty for what is left out.
        weak: ids that merely stand for single bytes; another id of the same string is preferred.
        begin: ids whose rows begin a document, and a text from the middle of one.
        tokenizer: JSON for the package `tokenizers`, reduced to what makes ids of plain text; None if
            it is not known.
    """

    strings: list[bytes]
    weak: set[int]
    begin: tuple[int, int]
    tokenizer: dict[str, Any] | None


@cache
def byte_level() -> dict[str, int]:
    """The byte that each character of the byte-level alphabet stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(b): b for b in plain}
    others = (b for b in range(256) if b not in found.values())
    return found | {chr(256 + n): b for n, b in enumerate(others)}


def from_byte_level(text: str) -> bytes:
    """What a token of the byte-level alphabet spells; empty if it is none."""
    try:
        return bytes(map(byte_level().__getitem__, text))
    except KeyError:
        return b""


def from_piece(text: str) -> bytes:
    """What a piece of sentencepiece spells."""
    if byte := _BYTE.fullmatch(text):
        return bytes([int(byte[1], 16)])
    return plain(text.replace(SPACE, " "))


def plain(text: str) -> bytes:
    """Text as UTF-8; empty if it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b""


def from_json(found: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]) -> Tokens:
    """The vocabulary of a tokenizer.json.

    Args:
        found: its content.
        settings: that of tokenizer_config.json; may be empty.
        config: that of config.json.

    Raises:
        Unsupported: it is of another kind than BPE.
        Corrupt: it has not the form of one.
    """
    vocabulary = _vocabulary(found)
    listed = found.get("added_tokens")
    if listed is not None and not isinstance(listed, list):
        raise Corrupt("tokenizer.json: added_tokens is no list")
    added = [entry for entry in listed or [] if isinstance(entry, dict)]
    ids: list[Any] = [*vocabulary.values(), *(entry.get("id") for entry in added)]
    if not all(type(i) is int and 0 <= i < MAX_TOKENS for i in ids):
        raise Corrupt(f"tokenizer.json has an id that is no number from 0 to {MAX_TOKENS - 1}")
    if not all(isinstance(entry.get("content"), str) for entry in added):
        raise Corrupt("tokenizer.json has an added token without content")
    reduced = reduce(found)
    is_byte_level = uses_byte_level(reduced)
    strings = [b""] * (max(ids, default=-1) + 1)
    for text, i in vocabulary.items():
        strings[i] = from_byte_level(text) if is_byte_level else from_piece(text)
    weak = set() if is_byte_level else {i for text, i in vocabulary.items() if _BYTE.fullmatch(text)}
    for entry in added:
        strings[entry["id"]] = b"" if entry.get("special") else plain(entry["content"])
    if type(unknown := _id_of(found["model"].get("unk_token"), vocabulary, added)) is int:
        strings[unknown] = b""
    begin = _begin(found, settings, config, vocabulary, added, strings)
    return Tokens(strings, weak, (begin, begin), reduced)


def reduce(found: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without what changes text.

    Added tokens go, so that their strings are text; so do what adds tokens, cuts or fills up; of normalizers
    stays what writes spaces as U+2581.
    """
    reduced = copy.deepcopy({name: found.get(name) for name in ("pre_tokenizer", "model")})
    reduced |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    reduced["version"], reduced["added_tokens"] = "1.0", []
    before = reduced["pre_tokenizer"]
    parts = before.get("pretokenizers") if isinstance(before, dict) else None
    parts = parts if isinstance(parts, list) else []
    for part in [before, *parts]:
        if isinstance(part, dict):
            if part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
            if part.get("type") == "Metaspace":
                part["prepend_scheme"] = "never"
                part.pop("add_prefix_space", None)
    normalizer = json.dumps(found.get("normalizer"), ensure_ascii=False)
    is_written = not uses_byte_level(reduced) and SPACE in normalizer
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    reduced["normalizer"] = replace if is_written else None
    return reduced


def uses_byte_level(found: dict[str, Any]) -> bool:
    """Whether a reduced tokenizer.json writes bytes in the byte-level alphabet."""
    return '"ByteLevel"' in json.dumps(found["pre_tokenizer"])


def strings_of(reduced: dict[str, Any]) -> dict[int, bytes]:
    """What the ids of a reduced tokenizer.json spell.

    Raises:
        Corrupt, Unsupported: it is none.
    """
    spell = from_byte_level if uses_byte_level(reduced) else from_piece
    return {i: spell(text) for text, i in _vocabulary(reduced).items()}


def _vocabulary(found: dict[str, Any]) -> dict[str, int]:
    model = found.get("model")
    if not isinstance(model, dict):
        raise Corrupt("tokenizer.json has no model")
    kind = model.get("type") or ("BPE" if "merges" in model else "?")
    if kind != "BPE":
        raise Unsupported(f"tokenizer of kind {str(kind)[:40]}; only BPE is known")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        raise Corrupt("tokenizer.json has no vocabulary")
    return vocabulary


def _id_of(name: Any, vocabulary: dict[str, int], added: list[dict[str, Any]]) -> int | None:
    """The id of a token by its text; settings give it as a string, or as an object with its content."""
    text = name.get("content") if isinstance(name, dict) else name
    by_text = {**vocabulary, **{entry["content"]: entry["id"] for entry in added}}
    return by_text.get(text) if isinstance(text, str) else None


def _begin(
    found: dict[str, Any],
    settings: dict[str, Any],
    config: dict[str, Any],
    vocabulary: dict[str, int],
    added: list[dict[str, Any]],
    strings: list[bytes],
) -> int:
    """The token that begins a text: BOS if the tokenizer adds it, so that the model was trained with it.

    Else a newline: texts cost less after it than after <|endoftext|>, whole ones and cut ones
    (benchmarks/NOTES.md). Else <|endoftext|>, EOS or BOS.
    """
    bos = _id_of(settings.get("bos_token"), vocabulary, added)
    if bos is None and type(config.get("bos_token_id")) is int:
        bos = config["bos_token_id"]
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    named = _id_of(settings.get("eos_token"), vocabulary, added)
    end = _id_of("<|endoftext|>", vocabulary, added)
    adds = settings.get("add_bos_token")
    if adds is None:
        text = (settings.get("bos_token") or {}) if isinstance(settings.get("bos_token"), dict) else {}
        token = text.get("content") if text else settings.get("bos_token")
        adds = isinstance(token, str) and json.dumps(token) in json.dumps(found.get("post_processor"))
    newline = strings.index(b"\n") if b"\n" in strings else None
    order = [bos if adds else None, newline, end, named, eos, bos]
    chosen = next((i for i in order if type(i) is int and i >= 0), None)
    if chosen is None:
        raise Unsupported("its tokenizer names no token that begins or ends a text")
    return chosen
