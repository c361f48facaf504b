"""Blocks of numbers: a block of method `tensor` to its payload and back (FORMAT.md section 12).

The kernel does the work (native/planes.h). Knows nothing of files, nor of which bytes are numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec import _kernel, frame
from lmcodec.errors import Corrupt

if TYPE_CHECKING:
    from lmcodec.tensor_files.layout import Layout

# What coding a block takes beside the block: tables of up to eight contexts, their counts, samples.
_TABLES_NBYTES = 2 << 20
_DIFFERENCE = 0x10  # of a payload's first byte: places of a base follow
_DECODE_NBYTES = 3  # a byte of the block: the block, its planes, contexts of one
_ENCODE_NBYTES = 8  # likewise: planes, contexts, words, the payload and its copy


class PlaneEngine:
    """Codes blocks of numbers. Nothing carries over from one to the next.

    Attributes:
        helped, between_calls: as for `engine.LmEngine`; a block takes milliseconds, and one thread.
        position: bytes of the block at hand that are done.
        cancel: the flag that ends the work.

    Args:
        layout: fields of a record; None to decode, since a payload says it.
        row_nbytes: bytes of a matrix's row, 0 if there are none.
        base_at: where bytes that the block's are near lie in the base; None to code them by themselves.
        base: gives bytes of the base by place and number; None if there is none.
        contexts: look for contexts that pay.
        portable: take no instructions but those that every machine has. It changes no byte.
    """

    between_calls: Callable[[], object] | None = None
    helped = False
    cancel: _kernel.Cancel | None = None

    def __init__(
        self,
        layout: Layout | None = None,
        row_nbytes: int = 0,
        base_at: int | None = None,
        *,
        contexts: bool = True,
        base: Callable[[int, int], memoryview] | None = None,
        portable: bool = False,
    ) -> None:
        self._layout, self._row_nbytes, self._contexts, self._portable = (
            layout,
            row_nbytes,
            contexts,
            portable,
        )
        self._base_at, self._base = base_at, base
        self.position = 0

    def reset(self, tables_nbytes: int = 0) -> None:
        """As `engine.Engine.reset`; there is nothing to forget."""
        self.position = 0

    def encode(self, data: bytes | memoryview) -> bytes:
        """The payload of a block that holds `data`, one record to 16 MiB."""
        assert self._layout is not None
        fields = [tuple(field) for field in self._layout]
        block, near, base_at = np.frombuffer(data, np.uint8), None, self._base_at
        if base_at is not None:
            assert self._base is not None
            near = np.frombuffer(self._base(base_at, len(data)), np.uint8)
        payload = _kernel.encode_planes(
            block, near, fields, self._row_nbytes, self._contexts, self._portable, base_at or 0, self.cancel
        )
        self.position = len(data)
        return payload

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytes:
        """The `nbytes` bytes that `encode` made `payload` of.

        Raises:
            Corrupt: no encoder writes such a payload.
        """
        words = np.frombuffer(payload, np.uint8)
        near = self._near(payload, nbytes)
        out = _kernel.decode_planes_to_bytes(words, near, nbytes, self._portable, self.cancel)
        if isinstance(out, str):
            raise Corrupt(_wrong(out))
        self.position = nbytes
        return out

    def decode_into(self, payload: bytes | memoryview, out: Any) -> None:
        """As `decode`, to a buffer."""
        words, room = np.frombuffer(payload, np.uint8), np.frombuffer(out, np.uint8)
        near = self._near(payload, len(room))
        wrong = _kernel.decode_planes(words, near, room, self._portable, self.cancel)
        if wrong:
            raise Corrupt(_wrong(wrong))
        self.position = len(out)

    def _near(self, payload: bytes | memoryview, nbytes: int) -> np.ndarray | None:
        """The base's bytes that a payload names.

        Raises:
            Corrupt: they are not there, or the frame has no base.
        """
        if not payload or not payload[0] & _DIFFERENCE:
            return None
        if self._base is None:
            raise Corrupt(_wrong("they are near a base, and the frame names none"))
        place = frame.parse_varint(bytes(payload[:10]), 1, "the payload of numbers")
        if place is None:
            raise Corrupt(_wrong("it ends before its fields"))
        return np.frombuffer(self._base(place[0], nbytes), np.uint8)


def _wrong(reason: str) -> str:
    return f"the payload of numbers: {reason}; the block is damaged"


def memory_nbytes(block_nbytes: int, encoding: bool = False) -> int:
    """What coding a block of `block_nbytes` bytes takes at most, the block included."""
    return (_ENCODE_NBYTES if encoding else _DECODE_NBYTES) * block_nbytes + _TABLES_NBYTES
