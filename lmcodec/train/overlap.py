"""Is text of a file in the training corpora? Looks for random windows of the file, byte for byte.

Every window of 200 bytes of the corpora is hashed by a polynomial modulo 2^64 (Karp and Rabin, 1987), by
prefix sums over whole pieces at once; what has the hash of a wanted window is compared with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lmcodec.train.corpus import CATEGORIES, category_files, documents

WINDOW = 200
_PIECE = 1 << 20
_BASE = 0x9E3779B97F4A7C15  # odd: its powers have inverses modulo 2^64
_FILTER_BITS = 20


class Windows:
    """Random windows of files, to be found in other text.

    Args:
        files: content by name; one of less than 200 bytes has no window.
        per_file: windows of each, at most.
        seed: of the choice.

    Attributes:
        count: windows of each file.
    """

    def __init__(self, files: Mapping[str, bytes], per_file: int = 100, seed: int = 1) -> None:
        rng = random.Random(seed)
        self._wanted: dict[int, list[tuple[str, int, bytes]]] = {}
        self.count: dict[str, int] = {}
        n = _PIECE + WINDOW
        self._powers = np.full(n, _BASE, np.uint64)
        self._powers[0] = 1
        np.multiply.accumulate(self._powers, out=self._powers)
        self._inverses = np.full(n, pow(_BASE, -1, 1 << 64), np.uint64)
        self._inverses[0] = 1
        np.multiply.accumulate(self._inverses, out=self._inverses)
        for name, content in files.items():
            places = range(max(len(content) - WINDOW + 1, 0))
            chosen = sorted(rng.sample(places, min(per_file, len(places))))
            # A window of one byte repeated is in everything.
            kept = [at for at in chosen if len(set(content[at : at + WINDOW])) > 8]
            self.count[name] = len(kept)
            for at in kept:
                text = content[at : at + WINDOW]
                self._wanted.setdefault(int(self._hashes(text)[0]), []).append((name, at, text))
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        for value in self._wanted:
            self._filter[value >> (64 - _FILTER_BITS)] = True

    def _hashes(self, text: bytes) -> np.ndarray:
        """(n - 199,) uint64 hashes of all windows of n bytes, 200 to 2^20 + 200."""
        data = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
        prefix = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(data * self._powers[: len(data)], out=prefix[1:])
        hashes: np.ndarray = (prefix[WINDOW:] - prefix[:-WINDOW]) * self._inverses[: len(data) - WINDOW + 1]
        return hashes

    def found_in(self, text: bytes) -> Iterator[tuple[str, int]]:
        """Name and offset of every window that `text` holds, as often as it does."""
        for begin in range(0, len(text) - WINDOW + 1, _PIECE):
            piece = text[begin : begin + _PIECE + WINDOW - 1]
            hashes = self._hashes(piece)
            for at in np.nonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])[0].tolist():
                for name, offset, wanted in self._wanted.get(int(hashes[at]), []):
                    if piece[at : at + WINDOW] == wanted:
                        yield name, offset


def find_overlap(
    files: Mapping[str, bytes], folder: Path | None = None, per_file: int = 100, seed: int = 1
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Windows of files that occur in the training corpora.

    Args:
        files: content by name.
        folder: of the corpora (default: `LMCODEC_CORPORA`).
        per_file, seed: as for `Windows`.

    Returns:
        windows of each file; for each file, how many of them each category holds (those that hold none are
        left out).

    Raises:
        ModelNotFound, Corrupt: as `corpus.category_files`, `corpus.documents`.
    """
    windows = Windows(files, per_file, seed)
    found: dict[str, dict[str, set[int]]] = {}
    for category in CATEGORIES:
        for path in category_files(category, folder):
            for text in _joined(documents(path)):
                for name, offset in windows.found_in(text):
                    found.setdefault(name, {}).setdefault(category, set()).add(offset)
    counts = {name: {c: len(offsets) for c, offsets in by.items()} for name, by in found.items()}
    return windows.count, counts


def _joined(texts: Iterable[bytes]) -> Iterator[bytes]:
    """Documents put together to pieces worth the trouble, a zero byte between them."""
    held: list[bytes] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _PIECE:
            yield b"\0".join(held)
            held, size = [], 0
    yield b"\0".join(held)
