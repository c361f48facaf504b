"""Whether a language model keeps what the codec needs of it: for tests of packages that bring one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmcodec.errors import LmcodecError
from lmcodec.lm import decisions
from lmcodec.lm.interface import LOGIT_MAX, LanguageModel, Session
from lmcodec.lm.vocab import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TEXTS", "check_model"]

# What is cut into tokens and compressed: text, other alphabets, all bytes, runs, line ends, nothing.
TEXTS: tuple[bytes, ...] = (
    b"The quick brown fox jumps over the lazy dog. " * 9,
    "Ein Fluß, ein naïver Café-Gast, 東京, Привет, \U0001f642.\r\n".encode() * 4,
    bytes(range(256)),
    b"\0" * 60 + b"\xff\xfe" * 20 + b"\xf0\x9f\x99",
    b"a",
    b"",
)


def check_model(
    model: LanguageModel,
    *,
    streams: Sequence[int] = (1, 2, 5),
    steps: int = 12,
    texts: Sequence[bytes] = TEXTS,
    frames: bool = True,
) -> None:
    """Check a language model: shapes and types, the same integers however they are asked for, round trips.

    A model in floats (`exact` is False) is held to what it promises: the same integers for the same steps of
    as many streams.

    Args:
        model: what is checked.
        streams: numbers of streams to run at once.
        steps: tokens of each stream.
        texts: what is cut into tokens and compressed.
        frames: compress and decompress, too; only a model with a `model_id` can.

    Raises:
        AssertionError: it does not keep something; the message says what was found and what was expected.
    """
    if not isinstance(model, LanguageModel):
        raise AssertionError(f"{type(model).__name__} does not derive from lmcodec.LanguageModel")
    _check_attributes(model)
    tokens = _tokens(model, max(streams), steps)
    alone = [_stepped(model, tokens[:, s : s + 1], [s > 0])[:, 0] for s in range(max(streams))]
    for n in streams:
        cuts = [s > 0 for s in range(n)]
        given = tokens[:, :n]
        stepped = _stepped(model, given, cuts)
        _require_same(
            stepped, _stepped(model, given, cuts), f"{n} streams, the same steps in a second session"
        )
        if not model.exact:
            continue
        _require_same(stepped, _run(model, given, cuts), f"{n} streams: run() against as many step()s")
        _check_sums(model, given, cuts, stepped)
        for s in range(n):
            _require_same(stepped[:, s], alone[s], f"stream {s} among {n} against the same stream alone")
        _check_begin(model, given, cuts, stepped)
    for text in texts:
        _check_segment(model, text)
        if frames and model.model_id:
            _check_frames(model, text)


def _check_attributes(model: LanguageModel) -> None:
    vocabulary = getattr(model, "vocabulary", None)
    if not isinstance(vocabulary, Vocabulary):
        raise AssertionError(f"vocabulary is {type(vocabulary).__name__}, expected a Vocabulary")
    v = len(vocabulary)
    start = getattr(model, "start_tokens", None)
    is_pair = isinstance(start, tuple) and len(start) == 2 and all(type(t) is int for t in start)
    if not is_pair or not all(v <= t < 1 << 32 for t in start or ()):
        raise AssertionError(f"start_tokens is {start!r}, expected two ints from {v} (the tokens) on")
    if not isinstance(model.model_id, str):
        raise AssertionError(f"model_id is {type(model.model_id).__name__}, expected a str")
    for name in ("nbytes", "stream_nbytes", "macs_per_token"):
        if type(value := getattr(model, name)) is not int or value < 0:
            raise AssertionError(f"{name} is {value!r}, expected an int from 0 on")
    if type(model.steps_at_once) is not int or model.steps_at_once < 1:
        raise AssertionError(f"steps_at_once is {model.steps_at_once!r}, expected an int from 1 on")


def _tokens(model: LanguageModel, n_stream: int, steps: int) -> np.ndarray:
    """(T, B) uint32: start tokens, then any."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, len(model.vocabulary), (steps, n_stream), np.uint32)
    tokens[0] = model.start_tokens[1]
    tokens[0, 0] = model.start_tokens[0]
    return tokens


def _session(model: LanguageModel, cuts: Sequence[bool]) -> Session:
    session = model.session(len(cuts))
    for stream, cut in enumerate(cuts):
        session.begin(stream, cut)
    return session


def _stepped(model: LanguageModel, tokens: np.ndarray, cuts: Sequence[bool]) -> np.ndarray:
    """(T, B, V) logits of as many steps."""
    session = _session(model, cuts)
    found = []
    for row in tokens:
        given = row.copy()
        logits = session.step(given)
        _check_logits(model, logits, (len(row), len(model.vocabulary)), "step()")
        if not np.array_equal(given, row):
            raise AssertionError("step() changes the tokens that it is given")
        found.append(logits.copy())
    return np.stack(found)


def _run(model: LanguageModel, tokens: np.ndarray, cuts: Sequence[bool]) -> np.ndarray:
    """The same by `run`, in pieces."""
    session = _session(model, cuts)
    found = []
    at = 0
    for n in (1, 3, len(tokens)):
        piece = tokens[at : at + n]
        if len(piece):
            logits = session.run(piece.copy())
            _check_logits(model, logits, (*piece.shape, len(model.vocabulary)), "run()")
            found.append(logits.copy())
        at += n
    return np.concatenate(found)


def _check_sums(model: LanguageModel, tokens: np.ndarray, cuts: Sequence[bool], logits: np.ndarray) -> None:
    """Where a session gives sums, they are those of the logits' frequencies."""
    session = _session(model, cuts)
    n_stream, v = len(cuts), len(model.vocabulary)
    if not session.sum_rows:
        return
    draw = np.random.default_rng(2)
    most = max(1, session.sum_rows // n_stream)
    below = decisions.cumulate(decisions.frequencies(logits)).reshape(-1, v + 1)
    for at in range(0, len(tokens), most):
        piece = tokens[at : at + most]
        low = draw.integers(0, v, (3 * piece.size,))
        high = draw.integers(low, v) + 1
        row = np.repeat(np.arange(piece.size), 3)
        found = session.sums(piece.copy(), np.stack((row, low, high), axis=1).astype(np.uint32))
        row += at * n_stream
        expected = below[row, high] - below[row, low]
        if found.dtype != np.uint64 or found.shape != expected.shape or (found != expected).any():
            raise AssertionError(
                f"sums() gives {found.dtype} of shape {found.shape} that are not sums of frequencies of "
                f"run()'s logits, expected uint64 of {expected.shape}"
            )


def _check_logits(model: LanguageModel, logits: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(logits, np.ndarray):
        raise AssertionError(f"{what} gives {type(logits).__name__}, expected an array of int32")
    if logits.dtype != np.int32 or logits.shape != shape:
        raise AssertionError(
            f"{what} gives {logits.dtype} of shape {logits.shape}, expected int32 of {shape}"
        )
    most = max(-int(logits.min()), int(logits.max()))
    if most > LOGIT_MAX:
        raise AssertionError(f"{what} gives a logit of size {most}, expected at most 2^24")


def _require_same(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    wrong = np.argwhere(found != expected)
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{what}: {len(wrong)} of {found.size} logits differ, the first at {first} "
            f"({found[first]}, expected {expected[first]})"
        )


def _check_begin(
    model: LanguageModel, tokens: np.ndarray, cuts: Sequence[bool], expected: np.ndarray
) -> None:
    """A stream that begins anew forgets all; the others go on."""
    session = _session(model, cuts)
    for row in tokens:
        session.step(row.copy())
    for stream, cut in enumerate(cuts):
        session.begin(stream, cut)
    found = np.stack([session.step(row.copy()).copy() for row in tokens])
    _require_same(found, expected, f"{len(cuts)} streams that begin anew in one session")


def _check_segment(model: LanguageModel, text: bytes) -> None:
    tokens = model.segment(text)
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.uint32 or tokens.ndim != 1:
        raise AssertionError("segment() does not give an array (m,) of uint32")
    try:
        spelt = model.vocabulary.restore(tokens)
    except LmcodecError as error:
        raise AssertionError(f"segment() of {text[:40]!r}: {error}") from None
    if spelt != text:
        raise AssertionError(f"segment() of {text[:40]!r} gives tokens that spell {spelt[:40]!r}")


def _check_frames(model: LanguageModel, text: bytes) -> None:
    from lmcodec.codec import compress, decompress

    for method in ("lm", "lm+cm"):
        for n in {1, min(3, max(len(text), 1))}:
            try:
                packed = compress(text, model=model, model_only=True, method=method, streams=n)
                found = decompress(packed, model=model)
            except LmcodecError as error:
                raise AssertionError(
                    f"a round trip of {text[:40]!r} by method {method} in {n} streams fails: {error}"
                ) from error
            if found != text:
                raise AssertionError(f"a round trip of {text[:40]!r} by method {method} gives other bytes")
