"""Segmentation by a model's own tokenizer, as far as it spells the bytes; by longest match for the rest.

Any tokens that spell the bytes are a right answer; those that the model was trained with make small frames.
The package `tokenizers` is used where it is installed, and nothing that it gives is trusted: what its ids
spell was frozen at import.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec.errors import LmcodecError, reason_of
from lmcodec.lm.transformer.importing import tokens
from lmcodec.lm.vocab import Vocabulary

if TYPE_CHECKING:
    from lmcodec.lm.vocab import Buffer

_PIECE = 1 << 17  # characters that the tokenizer takes at once: its memory is some hundred times that
_LEAST = 48  # characters below which text that it does not spell is not tried in halves
_warned = False


class Segmenter:
    """Makes tokens of bytes. The tokenizer is built when it is first needed; it holds no weights.

    Args:
        vocabulary: the model's.
        tokenizer: gives its JSON, as `importing.tokens.reduce` leaves it; empty for none.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Callable[[], bytes]) -> None:
        self._vocabulary = vocabulary
        self._json: Callable[[], bytes] | None = tokenizer
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._token_of = np.zeros(0, np.int64)
        self._apart: re.Pattern[str] | None = None

    def __call__(self, data: Buffer) -> np.ndarray:
        """Tokens of n bytes: (m,) uint32, m <= n."""
        with self._lock:
            self._build()
        if self._tokenizer is None:
            return self._vocabulary.segment(data)
        found: list[np.ndarray] = []
        for span, is_text in _spans(bytes(data)):
            if is_text:
                self._text(span.decode(), found)
            else:
                found.append(self._vocabulary.segment(span))
        return np.concatenate(found).astype(np.uint32) if found else np.zeros(0, np.uint32)

    def _build(self) -> None:
        if self._json is None:  # built, or not to be had
            return
        text, self._json = self._json(), None
        if not text:
            return
        try:
            from tokenizers import Tokenizer
        except ImportError:
            self._without("the package tokenizers is not installed (pip install 'lmcodec[hf]')")
            return
        try:
            reduced = json.loads(text)
            strings = tokens.strings_of(reduced)
            built = Tokenizer.from_str(text.decode())
        except Exception as error:  # another version of the package may not take it
            reason = str(error) if isinstance(error, LmcodecError) else reason_of(error)
            self._without(f"the model's tokenizer cannot be used ({reason})")
            return
        self._token_of = np.full(max(strings, default=0) + 1, -1, np.int64)
        index = self._vocabulary.index
        for i, string in strings.items():
            self._token_of[i] = index.get(string, -1)
        known = set(strings.values())
        lacking = [chr(b) for b in range(128) if bytes([b]) not in known]
        if not tokens.uses_byte_level(reduced):
            lacking.append(tokens.SPACE)
        self._apart = re.compile(f"([{re.escape(''.join(lacking))}]+)") if lacking else None
        self._tokenizer = built

    def _without(self, reason: str) -> None:
        global _warned
        if not _warned:
            _warned = True
            warnings.warn(
                f"{reason}: text is split by longest match; frames are right, but larger",
                RuntimeWarning,
                stacklevel=4,
            )

    def _text(self, text: str, found: list[np.ndarray]) -> None:
        """Tokens of text: what the tokenizer has no token for is cut out before."""
        parts = self._apart.split(text) if self._apart is not None else [text]
        for n, part in enumerate(parts):
            if n % 2:
                found.append(self._vocabulary.segment(part.encode()))
                continue
            for at in range(0, len(part), _PIECE):
                self._piece(part[at : at + _PIECE], found)

    def _piece(self, text: str, found: list[np.ndarray]) -> None:
        if not text:
            return
        data = text.encode()
        try:
            ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        except Exception:  # of the package
            ids = np.full(1, -1)
        if len(ids) and ids.min() >= 0 and ids.max() < len(self._token_of):
            made = self._token_of[ids]
            if made.min() >= 0 and self._vocabulary.restore(made) == data:
                found.append(made)
                return
        if len(text) < _LEAST:
            found.append(self._vocabulary.segment(data))
            return
        self._piece(text[: len(text) // 2], found)
        self._piece(text[len(text) // 2 :], found)


def _spans(data: bytes) -> list[tuple[bytes, bool]]:
    """The data in spans that are valid UTF-8, and spans that are not."""
    spans = []
    at = 0
    while at < len(data):
        try:
            data[at:].decode()
        except UnicodeDecodeError as error:
            if error.start:
                spans.append((data[at : at + error.start], True))
            spans.append((data[at + error.start : at + error.end], False))
            at += error.end
        else:
            spans.append((data[at:], True))
            break
    return spans
