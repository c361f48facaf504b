"""Borders that the text itself says (`--rsyncable`): a change moves those near it and no others.

The manner is that of rsync and of content-defined chunking (Muthitacharoen et al., LBFS, 2001): a border is
where a hash of the last bytes has a certain value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

WINDOW_NBYTES = 32  # a power of two
MIN_NBYTES, MAX_NBYTES = 1 << 18, 1 << 22
_MEAN_LOG2 = 20  # of what comes after MIN_NBYTES
_FACTOR = 0x9E3779B1  # odd


def _borders(data: bytes) -> np.ndarray:
    """Where in `data` borders may be, in bytes from its start: (n,) int64, in order."""
    # The hash of a window is the sum of its bytes times powers of a number, modulo 2^32; windows are doubled.
    hashes = np.frombuffer(data, np.uint8).astype(np.uint32) + np.uint32(1)
    n, factor = 1, _FACTOR
    while n < WINDOW_NBYTES:
        hashes[n:] = hashes[n:] + hashes[:-n] * np.uint32(factor)
        n, factor = 2 * n, factor * factor & 0xFFFFFFFF
    hashes *= np.uint32(_FACTOR)
    return np.flatnonzero(hashes >> np.uint32(32 - _MEAN_LOG2) == 0) + 1


def chunks(pieces: Iterator[bytes], max_nbytes: int = MAX_NBYTES) -> Iterator[bytes]:
    """What `pieces` hold together, cut where its bytes say; none is larger than `max_nbytes`."""
    smallest, held = min(MIN_NBYTES, max_nbytes), bytearray()
    ended = False
    while not ended or held:
        while not ended and len(held) < max_nbytes:
            piece = next(pieces, b"")
            ended = not piece
            held += piece
        if not held:
            return
        data = bytes(held[:max_nbytes])
        borders = _borders(data)
        borders = borders[borders >= max(smallest, WINDOW_NBYTES)]
        size = int(borders[0]) if len(borders) else len(data)
        del held[:size]
        yield data[:size]
