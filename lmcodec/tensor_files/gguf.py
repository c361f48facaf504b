"""The tensor infos of a GGUF file: names, types, shapes and places. Values of its metadata are passed over.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; sizes of blocks as in ggml-common.h.
"""

from __future__ import annotations

from itertools import pairwise

from lmcodec.errors import Corrupt, LimitExceeded, Truncated, Unsupported
from lmcodec.tensor_files.layout import (
    MAX_NBYTES,
    Field,
    Layout,
    ReadAt,
    Tensor,
    check_places,
    element_count,
    element_of,
    record_nbytes,
)

MAGIC = b"GGUF"
MAX_HEADER_NBYTES = 64 << 20
_CHUNK_NBYTES = 1 << 20
_MAX_TENSORS = 1 << 20
_MAX_KEYS = 1 << 16
_MAX_STRING_NBYTES = 1 << 24

# Types of values: bytes of those of fixed size.
_VALUE_NBYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAX_DEPTH = 4  # of arrays of arrays


def _bytes(count: int) -> Field:
    return Field(1, length=count)


_F16, _F32 = Field(2, is_float=True), Field(4, is_float=True)
# Types of tensors by number: name, elements of a block, and the block as fields.
TYPES: dict[int, tuple[str, int, Layout]] = {
    2: ("Q4_0", 32, (_F16, _bytes(16))),
    3: ("Q4_1", 32, (_F16, _F16, _bytes(16))),
    6: ("Q5_0", 32, (_F16, _bytes(4), _bytes(16))),
    7: ("Q5_1", 32, (_F16, _F16, _bytes(4), _bytes(16))),
    8: ("Q8_0", 32, (_F16, _bytes(32))),
    10: ("Q2_K", 256, (_bytes(16), _bytes(64), _F16, _F16)),
    11: ("Q3_K", 256, (_bytes(32), _bytes(64), _bytes(12), _F16)),
    12: ("Q4_K", 256, (_F16, _F16, _bytes(12), _bytes(128))),
    13: ("Q5_K", 256, (_F16, _F16, _bytes(12), _bytes(32), _bytes(128))),
    14: ("Q6_K", 256, (_bytes(128), _bytes(64), _bytes(16), _F16)),
    15: ("Q8_K", 256, (_F32, _bytes(256), Field(2, length=16))),
    16: ("IQ2_XXS", 256, (_F16, _bytes(64))),
    17: ("IQ2_XS", 256, (_F16, _bytes(64), _bytes(8))),
    18: ("IQ3_XXS", 256, (_F16, _bytes(64), _bytes(32))),
    19: ("IQ1_S", 256, (_F16, _bytes(32), _bytes(16))),
    20: ("IQ4_NL", 32, (_F16, _bytes(16))),
    21: ("IQ3_S", 256, (_F16, _bytes(64), _bytes(8), _bytes(32), _bytes(4))),
    22: ("IQ2_S", 256, (_F16, _bytes(64), _bytes(8), _bytes(8))),
    23: ("IQ4_XS", 256, (_F16, _bytes(2), _bytes(4), _bytes(128))),
    29: ("IQ1_M", 256, (_bytes(32), _bytes(16), _bytes(8))),
    34: ("TQ1_0", 256, (_bytes(48), _bytes(4), _F16)),
    35: ("TQ2_0", 256, (_bytes(64), _F16)),
    39: ("MXFP4", 32, (_bytes(1), _bytes(16))),
}
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
for _number, _name in _PLAIN.items():
    _element = element_of(_name)
    assert _element is not None
    TYPES[_number] = (_name, 1, _element[1])


class _Header:
    """Takes the fields of a header, in chunks as they are asked for."""

    def __init__(self, read_at: ReadAt) -> None:
        self._read_at, self._data, self.at = read_at, b"", 0
        self._base = 0  # of the data that is held

    def take(self, nbytes: int) -> bytes:
        if self.at + nbytes > MAX_HEADER_NBYTES:
            raise LimitExceeded(
                f"GGUF header: it has more than {MAX_HEADER_NBYTES} bytes, which are not read"
            )
        if self.at + nbytes > self._base + len(self._data):
            self._base, self._data = self.at, self._read_at(self.at, max(nbytes, _CHUNK_NBYTES))
            if len(self._data) < nbytes:
                raise Truncated(
                    f"GGUF header: it ends at byte {self._base + len(self._data)}, within a field"
                )
        begin = self.at - self._base
        self.at += nbytes
        return self._data[begin : begin + nbytes]

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def string(self) -> bytes:
        nbytes = self.number(8)
        if nbytes > _MAX_STRING_NBYTES:
            raise Corrupt(f"GGUF header: a string of {nbytes} bytes at byte {self.at}")
        return self.take(nbytes)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if kind in _VALUE_NBYTES:
            self.take(_VALUE_NBYTES[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            of, count = self.number(4), self.number(8)
            if of in _VALUE_NBYTES:
                nbytes = _VALUE_NBYTES[of] * count
                while nbytes:
                    piece = min(nbytes, _CHUNK_NBYTES)
                    self.take(piece)
                    nbytes -= piece
                return
            # Each takes eight bytes at least, so that the header's end ends this.
            for _ in range(count):
                self.skip(of, depth + 1)
        else:
            raise Corrupt(f"GGUF header: a value of type {kind} at byte {self.at}")


def parse(read_at: ReadAt, nbytes: int | None = None) -> list[Tensor]:
    """The tensors of a GGUF file, in its order.

    Args:
        nbytes: of the file; None if that is not known.

    Raises:
        Corrupt, Truncated, LimitExceeded, Unsupported: it is damaged, of another version or too large.
    """
    header = _Header(read_at)
    if header.take(4) != MAGIC:
        raise Corrupt("GGUF header: the file does not begin with GGUF")
    version = header.number(4)
    if version not in (2, 3):
        raise Unsupported(
            f"GGUF header: version {version}, versions 2 and 3 (least significant byte first) are read"
        )
    n_tensor, n_key = header.number(8), header.number(8)
    if n_tensor > _MAX_TENSORS or n_key > _MAX_KEYS:
        raise Corrupt(f"GGUF header: {n_tensor} tensors and {n_key} keys, which no file has")
    alignment = 32
    for _ in range(n_key):
        key, kind = header.string(), header.number(4)
        if key == b"general.alignment" and kind == _UINT32:
            alignment = header.number(4)
            if not 1 <= alignment <= 1 << 20:
                raise Corrupt(f"GGUF header: an alignment of {alignment}")
        else:
            header.skip(kind)
    infos = [_info(header) for _ in range(n_tensor)]
    begin = -(-header.at // alignment) * alignment
    starts = sorted({begin + offset for _, _, _, offset in infos})
    following = dict(pairwise(starts))
    tensors = []
    for name, shape, kind, offset in infos:
        if offset > MAX_NBYTES:
            raise Corrupt(f"GGUF header: tensor {name[:80]!r} begins at {offset}")
        at = begin + offset
        try:
            count = element_count(shape)
        except ValueError as error:
            raise Corrupt(f"GGUF header: tensor {name[:80]!r}: {error}") from None
        if kind in TYPES:
            dtype, n_element, layout = TYPES[kind]
            if count % n_element or (count and n_element > 1 and shape[-1] % n_element):
                raise Corrupt(f"GGUF header: tensor {name[:80]!r}: its rows are no whole blocks of {dtype}")
            tensors.append(Tensor(name, dtype, shape, at, count // n_element * record_nbytes(layout), layout))
        else:  # up to the next tensor, or the end
            end = following.get(at, nbytes)
            size = 0 if end is None else max(end - at, 0)
            tensors.append(Tensor(name, f"type {kind}", shape, at, size))
    check_places(tensors, nbytes, "GGUF header")
    return tensors


def _info(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (slowest first), number of the type and offset of a tensor."""
    try:
        name = header.string().decode()
    except UnicodeDecodeError:
        raise Corrupt(f"GGUF header: a tensor's name at byte {header.at} is not UTF-8") from None
    n_dimension = header.number(4)
    if n_dimension > 8:
        raise Corrupt(f"GGUF header: tensor {name[:80]!r} has {n_dimension} dimensions")
    shape = tuple(header.number(8) for _ in range(n_dimension))[::-1]
    return name, shape, header.number(4), header.number(8)
