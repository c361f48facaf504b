"""Vocabulary: byte strings in sorted order, and the segmentation of bytes into them by longest match.

A vocabulary is a strictly increasing list of non-empty byte strings that contains all 256 single bytes, so
that any input is representable. A token is the index of its string. At each position the longest token that
matches is taken; decoding is concatenation, so every input is restored whatever it holds. Because the list
is sorted, the tokens that share a prefix are contiguous: `prefix_range` gives the span that a node of the
byte trie stands for.

`segment_reference` is the definition; the kernel's segmenter gives the same tokens faster. The module knows
nothing of how a vocabulary is learned (`train/vocab_learn.py`) or what predicts its tokens.

File layout (all integers little-endian): magic ``LMVOCAB1`` (8 bytes) · token count (uint32) · one length
byte per token · the strings, one after another · SHA-256 of everything before it (32 bytes). A vocabulary
that does not fit (more than 65,536 tokens, a string of more than 255 bytes, or 512 KiB of strings) has the
magic ``LMVOCAB2`` and lengths of two bytes; one that fits never has.
"""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmcodec import models
from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, LmcodecError, ModelNotFound, Truncated

if TYPE_CHECKING:
    from lmcodec._kernel import Segmenter

Buffer = bytes | bytearray | memoryview | np.ndarray  # anything contiguous

MAGIC, LARGE_MAGIC = b"LMVOCAB1", b"LMVOCAB2"
MAX_TOKENS = 1 << 20
MAX_TOKEN_NBYTES = 65_535
MAX_STRINGS_NBYTES = 16 << 20  # of all strings together: bounds the trie that a hostile file can ask for
# What the first layout holds.
SMALL_TOKENS, SMALL_TOKEN_NBYTES, SMALL_STRINGS_NBYTES = 65_536, 255, 1 << 19
_DIGEST_NBYTES = 32
_MAX_FILE_NBYTES = len(MAGIC) + 4 + 2 * MAX_TOKENS + MAX_STRINGS_NBYTES + _DIGEST_NBYTES
SHIPPED = "vocab.lmv"


class Vocabulary:
    """An immutable vocabulary.

    Args:
        strings: the tokens' byte strings, strictly increasing, all 256 single bytes among them.

    Attributes:
        strings: tuple of V byte strings, strictly increasing.
        nbytes: (V,) uint16, the length of each token in bytes, >= 1.
        vocab_id: first 8 bytes of the SHA-256 of the packed vocabulary, as 16 hexadecimal digits.

    Raises:
        Corrupt: if the strings break one of the rules above; the message names the first that does.
    """

    def __init__(self, strings: Iterable[bytes]) -> None:
        self.strings: tuple[bytes, ...] = tuple(strings)
        _check(self.strings)
        self.nbytes = np.array([len(s) for s in self.strings], dtype=np.uint16)  # (V,)
        self.vocab_id = hashlib.sha256(self._body()).hexdigest()[:16]
        self._segmenter: Segmenter | None = None

    def __len__(self) -> int:
        return len(self.strings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.strings == other.strings

    def __hash__(self) -> int:
        return hash(self.vocab_id)

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[tuple[bytes, ...]]]:
        return Vocabulary, (self.strings,)  # the kernel's trie is built again where it is needed

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens, id {self.vocab_id})"

    @cached_property
    def index(self) -> dict[bytes, int]:
        """The token of each byte string."""
        return {s: token for token, s in enumerate(self.strings)}

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """For the kernel: (n,) uint8 strings, one after another; (V + 1,) uint32, where each begins."""
        offsets = np.zeros(len(self) + 1, dtype=np.uint32)
        np.cumsum(self.nbytes, out=offsets[1:])
        return np.frombuffer(b"".join(self.strings), dtype=np.uint8), offsets

    def segment(self, data: Buffer) -> np.ndarray:
        """Tokens of `data` by longest match, computed by the kernel.

        Args:
            data: any contiguous buffer of n bytes.

        Returns:
            (m,) uint32 tokens, m <= n; `restore` gives the n bytes back.
        """
        buffer = np.frombuffer(data, dtype=np.uint8)
        if self._segmenter is None:
            from lmcodec import _kernel

            self._segmenter = _kernel.Segmenter(*self.flat())
        out = np.empty(len(buffer), dtype=np.uint32)
        return out[: self._segmenter.segment(buffer, out)].copy()

    def segment_reference(self, data: Buffer) -> np.ndarray:
        """Tokens of `data` by longest match: the definition that the kernel follows.

        Returns:
            (m,) uint32 tokens, equal to those of `segment`.
        """
        view = bytes(data)
        longest = int(self.nbytes.max())
        tokens = []
        position = 0
        while position < len(view):
            for length in range(min(longest, len(view) - position), 0, -1):
                token = self.index.get(view[position : position + length])
                if token is not None:
                    tokens.append(token)
                    position += length
                    break
        return np.array(tokens, dtype=np.uint32)

    def restore(self, tokens: np.ndarray) -> bytes:
        """The bytes of (m,) tokens, each < V.

        Raises:
            Corrupt: if a token is out of range.
        """
        for extreme in (np.min, np.max) if len(tokens) else ():
            if not 0 <= (token := int(extreme(tokens))) < len(self):
                raise Corrupt(f"token {token} is outside the vocabulary of {len(self)} tokens")
        return b"".join(map(self.strings.__getitem__, np.asarray(tokens).tolist()))

    def prefix_range(self, prefix: bytes) -> tuple[int, int]:
        """The tokens that begin with `prefix`, as a half-open range [low, high) of the sorted list.

        The empty prefix spans the whole vocabulary; a prefix that no token has gives an empty range.
        """
        low = bisect_left(self.strings, prefix)
        successor = _successor(prefix)
        high = len(self.strings) if successor is None else bisect_left(self.strings, successor, lo=low)
        return low, high

    def pack(self) -> bytes:
        """The vocabulary as the bytes of its file."""
        body = self._body()
        return body + hashlib.sha256(body).digest()

    @property
    def _is_small(self) -> bool:
        return _fits(len(self), int(self.nbytes.max()), int(self.nbytes.sum(dtype=np.int64)))

    def _body(self) -> bytes:
        magic, dtype = (MAGIC, "<u1") if self._is_small else (LARGE_MAGIC, "<u2")
        lengths = self.nbytes.astype(dtype).tobytes()
        return b"".join((magic, struct.pack("<I", len(self)), lengths, *self.strings))

    @classmethod
    def parse(cls, data: bytes) -> Vocabulary:
        """The vocabulary that `pack` wrote.

        Raises:
            BadMagic: the data is not a vocabulary.
            Truncated: it ends early.
            Corrupt: its digest, sizes or order are wrong.
        """
        magic = bytes(data[: len(MAGIC)])
        if magic not in (MAGIC[: len(data)], LARGE_MAGIC[: len(data)]):
            raise BadMagic(f"not an lmcodec vocabulary: it begins with {data[:8]!r}, expected {MAGIC!r}")
        head_nbytes = len(MAGIC) + 4
        if len(data) < head_nbytes + _DIGEST_NBYTES:
            raise Truncated(f"vocabulary ends at byte {len(data)}, inside its header or digest")
        (count,) = struct.unpack_from("<I", data, len(MAGIC))
        if not 256 <= count <= MAX_TOKENS:
            raise Corrupt(f"vocabulary declares {count} tokens, expected 256 to {MAX_TOKENS}")
        if len(data) > _MAX_FILE_NBYTES:
            raise LimitExceeded(f"vocabulary of more than {_MAX_FILE_NBYTES} bytes")
        dtype = np.dtype("<u2" if magic == LARGE_MAGIC else "<u1")
        n_length = min(count, (len(data) - head_nbytes) // dtype.itemsize)
        lengths = np.frombuffer(data, dtype, offset=head_nbytes, count=n_length)
        head_nbytes += count * dtype.itemsize
        strings_nbytes = int(lengths.sum(dtype=np.int64))
        expected_nbytes = head_nbytes + strings_nbytes + _DIGEST_NBYTES
        if len(lengths) < count or len(data) < expected_nbytes:
            raise Truncated(f"vocabulary of {count} tokens ends at byte {len(data)}")
        if len(data) > expected_nbytes:
            raise Corrupt(f"vocabulary has {len(data) - expected_nbytes} bytes after its digest")
        if hashlib.sha256(data[:-_DIGEST_NBYTES]).digest() != data[-_DIGEST_NBYTES:]:
            raise Corrupt("vocabulary does not match its SHA-256 digest")
        if magic == LARGE_MAGIC and _fits(count, int(lengths.max()), strings_nbytes):
            raise Corrupt("vocabulary of the large layout that fits the small one")
        ends = head_nbytes + np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        return cls(data[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Vocabulary:
        """The vocabulary in the file at `path`, or the shipped one.

        Raises:
            ModelNotFound: if there is no such file.
            LmcodecError: if it is not a sound vocabulary; the message begins with the path.
        """
        if path is None:
            return cls.parse((Path(models.__file__).parent / SHIPPED).read_bytes())
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size > _MAX_FILE_NBYTES:
                    raise LimitExceeded(
                        f"{os.fspath(path)}: vocabulary of more than {_MAX_FILE_NBYTES} bytes"
                    )
                data = file.read(_MAX_FILE_NBYTES + 1)
        except FileNotFoundError:
            raise ModelNotFound(f"{os.fspath(path)}: no such vocabulary file") from None
        except OSError as error:
            raise ModelNotFound(f"{os.fspath(path)}: cannot be read: {error.strerror}") from None
        try:
            return cls.parse(data)
        except LmcodecError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None


def _fits(n_token: int, longest: int, strings_nbytes: int) -> bool:
    """Whether a vocabulary is written in the first layout."""
    return (
        n_token <= SMALL_TOKENS and longest <= SMALL_TOKEN_NBYTES and strings_nbytes <= SMALL_STRINGS_NBYTES
    )


def _successor(prefix: bytes) -> bytes | None:
    """The least byte string greater than every string that begins with `prefix`; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def _check(strings: tuple[bytes, ...]) -> None:
    if not 256 <= len(strings) <= MAX_TOKENS:
        raise Corrupt(f"a vocabulary has 256 to {MAX_TOKENS} tokens, found {len(strings)}")
    total_nbytes = sum(map(len, strings))
    if total_nbytes > MAX_STRINGS_NBYTES:
        raise LimitExceeded(f"a vocabulary's strings have {total_nbytes} bytes, at most {MAX_STRINGS_NBYTES}")
    previous = b""
    for token, s in enumerate(strings):
        if not 1 <= len(s) <= MAX_TOKEN_NBYTES:
            raise Corrupt(f"token {token} has {len(s)} bytes, expected 1 to {MAX_TOKEN_NBYTES}")
        if s <= previous:
            raise Corrupt(f"token {token} ({s!r}) does not come after token {token - 1} ({previous!r})")
        previous = s
    singles = {s for s in strings if len(s) == 1}
    if len(singles) != 256:
        missing = next(b for b in range(256) if bytes([b]) not in singles)
        raise Corrupt(f"single byte 0x{missing:02x} is not a token")
