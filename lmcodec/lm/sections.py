"""How sections of model files are packed: LZMA2, planes of bytes, vocabularies. FORMAT.md section 7.3.

What kinds of models share beside their weights (`weight_coding.py`); which sections a file has is the kind's.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

from lmcodec.errors import Corrupt
from lmcodec.lm.vocab import (
    MAX_STRINGS_NBYTES,
    MAX_TOKEN_NBYTES,
    SMALL_STRINGS_NBYTES,
    SMALL_TOKEN_NBYTES,
    Vocabulary,
)

MAX_MIXER_NBYTES = 16 << 20  # of a model's profiles (FORMAT.md section 5.7)

_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, "lc": 0, "pb": 0}]


def compress(data: bytes) -> bytes:
    """A section as LZMA2."""
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_LZMA)


def decompress(name: str, packed: memoryview, least: int, most: int) -> bytes:
    """The content of a section, `least` to `most` bytes. Memory: `most` and the dictionary of 1 MiB.

    Raises:
        Corrupt: it has another size, or is no LZMA2.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    try:
        data = decoder.decompress(packed, most + 1)
    except lzma.LZMAError:
        raise Corrupt(f"section {name} cannot be unpacked") from None
    if not decoder.eof or decoder.unused_data or not least <= len(data) <= most:
        raise Corrupt(f"section {name} does not unpack to {least}{f' to {most}' * (most > least)} bytes")
    return data


def pack_vocabulary(vocabulary: Vocabulary) -> bytes:
    """Bytes each string shares with the one before, bytes it adds, then these: numbers of one byte."""
    return _front_code(vocabulary, np.dtype("<u1"))


def parse_vocabulary(packed: memoryview, n_token: int) -> Vocabulary:
    """The vocabulary of `n_token` tokens that a section holds.

    Raises:
        Corrupt: a size or a rule of vocabularies does not hold.
    """
    most = 2 * n_token + SMALL_STRINGS_NBYTES
    return _front_decode(
        decompress("vocabulary", packed, 2 * n_token, most), n_token, "<u1", SMALL_TOKEN_NBYTES
    )


def pack_large_vocabulary(vocabulary: Vocabulary) -> bytes:
    """As `pack_vocabulary`, with numbers of two bytes: of any vocabulary."""
    return _front_code(vocabulary, np.dtype("<u2"))


def parse_large_vocabulary(packed: memoryview, n_token: int) -> Vocabulary:
    """As `parse_vocabulary`: of 2^20 tokens and 16 MiB of strings at most.

    Raises:
        Corrupt: a size or a rule of vocabularies does not hold.
    """
    most = 4 * n_token + MAX_STRINGS_NBYTES
    return _front_decode(
        decompress("vocabulary", packed, 4 * n_token, most), n_token, "<u2", MAX_TOKEN_NBYTES
    )


def _front_code(vocabulary: Vocabulary, width: np.dtype[Any]) -> bytes:
    shared, previous = [], b""
    for string in vocabulary.strings:
        same = (a == b for a, b in zip(previous, string, strict=False))
        shared.append(next((n for n, equal in enumerate(same) if not equal), min(len(previous), len(string))))
        previous = string
    added = [string[n:] for n, string in zip(shared, vocabulary.strings, strict=True)]
    numbers = np.array([shared, [len(string) for string in added]], width)
    return numbers.tobytes() + b"".join(added)


def _front_decode(data: bytes, n_token: int, width: str, longest: int) -> Vocabulary:
    numbers = np.frombuffer(data, width, 2 * n_token).reshape(2, n_token)
    strings: list[bytes] = []
    previous, begin = b"", numbers.nbytes
    at, total = begin, 0
    for shared, added in zip(*numbers.tolist(), strict=True):
        if shared > len(previous) or shared + added > longest:
            raise Corrupt(f"token {len(strings)} shares {shared} bytes and adds {added}")
        # What is shared is not in the section: it is counted before it is copied.
        if (total := total + shared + added) > MAX_STRINGS_NBYTES:
            raise Corrupt(f"vocabulary's strings have more than {MAX_STRINGS_NBYTES} bytes")
        previous = previous[:shared] + data[at : at + added]
        strings.append(previous)
        at += added
    if at != len(data):
        raise Corrupt(f"vocabulary's strings have {len(data) - begin} bytes, expected {at - begin}")
    return Vocabulary(strings)


def planes(values: np.ndarray) -> bytes:
    """(n,) unsigned integers: all lowest bytes, then all second bytes, ..."""
    little = values.astype(values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(len(values), -1).T).tobytes()


def unplanes(data: bytes, dtype: type[np.unsignedinteger[Any]], n: int, at: int) -> np.ndarray:
    """The n integers whose planes begin at byte `at`."""
    width = np.dtype(dtype).itemsize
    found = np.frombuffer(data, np.uint8, width * n, at).reshape(width, n)
    return np.ascontiguousarray(found.T).view(np.dtype(dtype).newbyteorder("<")).ravel().astype(dtype)


def zigzag(values: np.ndarray) -> np.ndarray:
    """int32 to uint32: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return ((values << 1) ^ (values >> 31)).view(np.uint32)


def unzigzag(values: np.ndarray) -> np.ndarray:
    """What `zigzag` was given."""
    return (values >> 1).view(np.int32) ^ -(values & 1).view(np.int32)
