"""Which format a file of tensors has, by what it holds, never by its name; and how its blocks are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lmcodec.errors import BadMagic, LmcodecError
from lmcodec.tensor_files import gguf, numpy_files, safetensors
from lmcodec.tensor_files.layout import Layout, ReadAt, Tensor, record_nbytes

HEAD_NBYTES = 16  # of a file, which are enough for `format_of`
# Neighbours of one type that are as small share a block, of up to so many bytes together.
_SMALL_NBYTES = 16 << 10
_SHARED_NBYTES = 64 << 10
_LEAST_NBYTES = 64  # smaller ones are bytes like others
_MOST_OF_A_ROW = 8  # a row is a whole if a block holds so many

_PARSERS: dict[str, Callable[[ReadAt, int | None], list[Tensor]]] = {
    "safetensors": safetensors.parse,
    "GGUF": gguf.parse,
    "npy": numpy_files.parse_npy,
    "npz": numpy_files.parse_npz,
}


def format_of(head: bytes) -> str | None:
    """The format that a file which begins with these bytes may have: safetensors, GGUF, npy, npz, pickle."""
    if head.startswith(gguf.MAGIC):
        return "GGUF"
    if head.startswith(numpy_files.NPY_MAGIC):
        return "npy"
    if head.startswith(numpy_files.ZIP_MAGIC):
        return "npz"
    if safetensors.header_nbytes(head) is not None:
        return "safetensors"
    # PROTO 2 to 5, and what a pickle that was written for torch or NumPy goes on with.
    if (
        head[:1] == b"\x80"
        and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
        and head[2:3] in (b"\x8a", b"\x95", b"}", b"c")
    ):
        return "pickle"
    return None


def parse(read_at: ReadAt, nbytes: int | None = None) -> tuple[str, list[Tensor]]:
    """Format and tensors of a file.

    Raises:
        BadMagic: it is of none of the formats.
        LmcodecError: its header is damaged, or of another version.
    """
    name = format_of(read_at(0, HEAD_NBYTES))
    if name not in _PARSERS:
        reason = (
            numpy_files.PICKLED
            if name == "pickle"
            else "the file begins like none of safetensors, GGUF, npy and npz"
        )
        raise BadMagic(f"no tensors: {reason}")
    return name, _PARSERS[name](read_at, nbytes)


class Region(NamedTuple):
    """Numbers of one layout that lie one after another.

    Attributes:
        offset, nbytes: where they lie.
        piece_nbytes: of the blocks that they are cut into, but for the last.
        layout: of their records.
        row_nbytes: of a matrix's row, 0 if they are none, or several tensors.
        name: of the tensor; empty for several.
        base_at: where bytes that they are near lie in a base; None without one.
    """

    offset: int
    nbytes: int
    piece_nbytes: int
    layout: Layout
    row_nbytes: int
    name: str
    base_at: int | None = None

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True)
class Recognised:
    """What a file of tensors is for the codec.

    Attributes:
        format: its name; empty if nothing was recognised.
        tensors: in the order of the file's header.
        reason: why tensors that may be there are coded as bytes; empty if they are not.
    """

    format: str = ""
    tensors: list[Tensor] = field(default_factory=list)
    reason: str = ""

    def regions(self, block_nbytes: int, base: Mapping[str, Tensor] | None = None) -> list[Region]:
        """Where numbers lie, in order, and how they are cut into blocks of up to `block_nbytes` bytes.

        Args:
            base: tensors of a base, by name.
        """
        regions: list[Region] = []
        last_is_small = False
        for tensor in sorted(self.tensors, key=lambda t: t.offset):
            if tensor.layout is None or not tensor.nbytes:
                continue
            near = (base or {}).get(tensor.name)
            if near is not None and (near.layout, near.nbytes) != (tensor.layout, tensor.nbytes):
                near = None
            is_small = tensor.nbytes <= _SMALL_NBYTES and base is None
            last = regions[-1] if regions and is_small and last_is_small else None
            last_is_small = is_small
            if last is not None and last.end == tensor.offset and last.layout == tensor.layout:
                both = last.nbytes + tensor.nbytes
                if both <= min(_SHARED_NBYTES, block_nbytes):
                    regions[-1] = Region(last.offset, both, both, last.layout, 0, "")
                    continue
            record, row = record_nbytes(tensor.layout), tensor.row_nbytes
            unit = row if 0 < row <= block_nbytes // _MOST_OF_A_ROW and row % record == 0 else record
            if unit > block_nbytes:
                continue
            # Pieces are of one length: so they take threads as long.
            n_piece = -(-tensor.nbytes // (block_nbytes // unit * unit))
            n_unit = -(-tensor.nbytes // unit)
            piece = -(-n_unit // n_piece) * unit
            row = row if unit == row else 0
            base_at = None if near is None else near.offset
            regions.append(
                Region(tensor.offset, tensor.nbytes, piece, tensor.layout, row, tensor.name, base_at)
            )
        return [r for r in regions if r.nbytes >= max(_LEAST_NBYTES, record_nbytes(r.layout))]

    def describe(self) -> str:
        """A line for people."""
        if not self.format:
            return f"no tensors: {self.reason}"
        types = (
            ", ".join(dict.fromkeys(t.dtype for t in self.tensors if t.layout is not None))
            or "none of a known type"
        )
        unknown = dict.fromkeys(t.dtype for t in self.tensors if t.layout is None)
        rest = f"; {', '.join(unknown)} as bytes" if unknown else ""
        return f"{self.format}: {len(self.tensors):,} tensors of {types}{rest}"


def recognise(read_at: ReadAt, nbytes: int | None = None) -> Recognised | None:
    """What of a file are tensors; None if nothing looks like it.

    Nothing that a file holds makes this fail: what is damaged is coded as bytes.
    """
    head = read_at(0, HEAD_NBYTES)
    name = format_of(head)
    if name is None:
        return None
    try:
        name, tensors = parse(read_at, nbytes)
    except LmcodecError as error:
        return Recognised(reason=str(error).removeprefix("no tensors: "))
    if name == "npz" and not tensors:
        return None  # an archive of other things
    return Recognised(name, tensors)
