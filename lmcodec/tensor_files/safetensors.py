"""The header of a safetensors file, checked as strictly as the format asks for.

Source: https://github.com/huggingface/safetensors, its README on the format.
"""

from __future__ import annotations

import json
from typing import Any

from lmcodec.errors import Corrupt, LimitExceeded, Truncated
from lmcodec.tensor_files.layout import MAX_NBYTES, ReadAt, Tensor, check_places, element_count, element_of

MAX_HEADER_NBYTES = 16 << 20
_HEAD_NBYTES = 8


def header_nbytes(head: bytes) -> int | None:
    """Bytes of the JSON that a file which begins with these 9 bytes would have; None if it is none."""
    if len(head) <= _HEAD_NBYTES or head[_HEAD_NBYTES] != ord("{"):
        return None
    nbytes = int.from_bytes(head[:_HEAD_NBYTES], "little")
    return nbytes if 2 <= nbytes < 1 << 40 else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Corrupt(f"safetensors header: {name[:80]!r} is there twice")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NBYTES


def parse(read_at: ReadAt, nbytes: int | None = None) -> list[Tensor]:
    """The tensors of a safetensors file, in the order of its header.

    Args:
        nbytes: of the file; None if that is not known.

    Raises:
        Corrupt, Truncated, LimitExceeded: the header is none, tensors overlap, leave gaps or do not fit their
            shapes; or it has more than 16 MiB.
    """
    where = "safetensors header"
    size = header_nbytes(read_at(0, _HEAD_NBYTES + 1))
    if size is None:
        raise Corrupt(f"{where}: the file does not begin with the size of one, and a brace")
    if size > MAX_HEADER_NBYTES:
        raise LimitExceeded(f"{where}: it has {size} bytes, at most {MAX_HEADER_NBYTES} are read")
    data = read_at(_HEAD_NBYTES, size)
    if len(data) < size:
        raise Truncated(f"{where}: it has {size} bytes, of which {len(data)} are there")
    try:
        header = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = (
            str(error).splitlines()[0][:100] if isinstance(error, ValueError) else "it is nested too deep"
        )
        raise Corrupt(f"{where}: it is not JSON: {reason}") from None
    begin = _HEAD_NBYTES + size
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors.append(_tensor(name, entry, begin, where))
    check_places(tensors, nbytes, where)
    at = begin
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.end)):
        if tensor.offset != at:
            raise Corrupt(
                f"{where}: {tensor.offset - at} bytes before tensor {tensor.name[:80]!r} are no tensor's"
            )
        at = tensor.end
    if nbytes is not None and at != nbytes:
        raise Corrupt(f"{where}: the tensors end at byte {at}, the file has {nbytes} bytes")
    return tensors


def _tensor(name: str, entry: Any, begin: int, where: str) -> Tensor:
    where = f"{where}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or {*entry} != {"dtype", "shape", "data_offsets"}:
        raise Corrupt(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not dtype or len(dtype) > 32:
        raise Corrupt(f"{where}: its dtype is not a name")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise Corrupt(f"{where}: its shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise Corrupt(f"{where}: its data_offsets are not two places")
    first, end = offsets
    if first > end:
        raise Corrupt(f"{where}: it ends at {end}, before its begin at {first}")
    try:
        count = element_count(tuple(shape))
    except ValueError as error:
        raise Corrupt(f"{where}: {error}") from None
    element = element_of(dtype)
    if element is not None and count * element[0] != end - first:
        raise Corrupt(
            f"{where}: {count} elements of {dtype} take {count * element[0]} bytes, not {end - first}"
        )
    layout = None if element is None else element[1]
    return Tensor(name, dtype, tuple(shape), begin + first, end - first, layout)
