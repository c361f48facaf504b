"""Tensors as files hold them: name, type, shape and place, and how their numbers lie in records.

A *layout* is what blocks of method `tensor` (FORMAT.md section 12) are told of numbers: the fields of a
record.
Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lmcodec.errors import Corrupt

ReadAt = Callable[[int, int], bytes]  # where, and how many bytes; fewer only at the end of what can be read

MAX_DIMENSIONS = 64
MAX_NBYTES = 1 << 62  # of a file, and so of a tensor


class Field(NamedTuple):
    """Elements of a record that lie one after another.

    Attributes:
        width: bytes of an element: 1, 2, 4 or 8.
        is_float: its highest bit is a sign, and a magnitude follows.
        is_big: its most significant byte is first.
        length: elements.
    """

    width: int
    is_float: bool = False
    is_big: bool = False
    length: int = 1


Layout = tuple[Field, ...]


def record_nbytes(layout: Layout) -> int:
    return sum(field.width * field.length for field in layout)


# Types as safetensors names them: bytes of an element, and the fields of one.
_FLOAT = {"F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_INTEGER = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
_ELEMENTS: dict[str, tuple[int, Layout]] = {
    **{name: (width, (Field(width, is_float=True),)) for name, width in _FLOAT.items()},
    **{name: (width, (Field(width),)) for name, width in _INTEGER.items()},
    "C64": (8, (Field(4, is_float=True), Field(4, is_float=True))),
    "C128": (16, (Field(8, is_float=True), Field(8, is_float=True))),
}


def element_of(dtype: str) -> tuple[int, Layout] | None:
    """Bytes and layout of an element of a type, by safetensors' name; None of a type that is not known."""
    return _ELEMENTS.get(dtype)


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
        name: as the file has it.
        dtype: its type as the file's format names it (F32, BF16, Q4_1, ...); as safetensors does for NumPy's.
        shape: of its elements, slowest first.
        offset, nbytes: where it lies in the file.
        layout: of its records; None where its type is not known, so that it is bytes.
        is_fortran: the first index is the fastest.
        descr: its type as NumPy writes it, where the file says it so.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    layout: Layout | None = None
    is_fortran: bool = False
    descr: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row of a matrix; 0 if it is none."""
        if len(self.shape) < 2 or not self.nbytes:
            return 0
        n_row = self.shape[-1] if self.is_fortran else self.shape[0]
        return self.nbytes // n_row if n_row and not self.nbytes % n_row else 0


def element_count(shape: tuple[int, ...]) -> int:
    """Elements of a shape.

    Raises:
        ValueError: more than a file can hold, or too many dimensions.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, at most {MAX_DIMENSIONS} are read")
    if any(not 0 <= n <= MAX_NBYTES for n in shape):
        raise ValueError("a dimension is out of range")
    count = 1
    for n in shape:
        count *= n
        if count > MAX_NBYTES and 0 not in shape:
            raise ValueError("more elements than a file can hold")
    return count


def check_places(tensors: list[Tensor], nbytes: int | None, where: str) -> None:
    """Refuse tensors of one name, those that share bytes, and those that lie beyond the file's end.

    Args:
        nbytes: of the file; None if that is not known.

    Raises:
        Corrupt
    """
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise Corrupt(f"{where}: two tensors are named {tensor.name[:80]!r}")
        names.add(tensor.name)
    last: Tensor | None = None
    for tensor in sorted((t for t in tensors if t.nbytes), key=lambda t: (t.offset, t.end)):
        if last is not None and tensor.offset < last.end:
            raise Corrupt(f"{where}: tensors {last.name[:80]!r} and {tensor.name[:80]!r} overlap")
        last = tensor
    if nbytes is not None and last is not None and last.end > nbytes:
        raise Corrupt(
            f"{where}: tensor {last.name[:80]!r} ends at byte {last.end}, the file has {nbytes} bytes"
        )
