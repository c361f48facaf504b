"""NumPy's files: `.npy`, and `.npz`, which is a zip archive of them.

Of an archive, members that are stored as they are count; deflated ones are bytes like others. Headers are
read with `ast.literal_eval`, nothing is unpickled.

Source: numpy.lib.format; APPNOTE.TXT of PKWARE, section 4.3.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from lmcodec.errors import Corrupt, Truncated, Unsupported
from lmcodec.tensor_files.layout import (
    Field,
    Layout,
    ReadAt,
    Tensor,
    check_places,
    element_count,
    record_nbytes,
)

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER_NBYTES = 1 << 16
_MAX_MEMBERS = 1 << 16
_DESCR = re.compile(r"([<>|=])([biufcVSUmM])([0-9]{1,4})(?:\[[0-9a-zA-Z]{1,8}\])?")
_NAMES = {"f2": "F16", "f4": "F32", "f8": "F64", "b1": "BOOL", "c8": "C64", "c16": "C128"} | {
    f"{kind}{width}": f"{kind.upper()}{8 * width}" for kind in "iu" for width in (1, 2, 4, 8)
}


def _field(descr: Any) -> tuple[str, Layout | None, int]:
    """Name, layout and bytes of a type as NumPy writes it.

    Raises:
        Unsupported: it is of objects, or of another form.
    """
    if isinstance(descr, list):
        fields: Layout = ()
        for entry in descr:
            if not isinstance(entry, tuple) or len(entry) not in (2, 3):
                raise Unsupported(".npy header: a structured type of another form")
            _, layout, nbytes = _field(entry[1])
            shape = entry[2] if len(entry) == 3 else ()
            if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
                raise Unsupported(".npy header: a structured type of another form")
            count = element_count(shape)
            layout = layout or (Field(1, length=nbytes),)
            if len(layout) > 1 or not 1 <= count * layout[0].length <= 4096:
                raise Unsupported(".npy header: a structured type within another")
            fields += (layout[0]._replace(length=count * layout[0].length),)
        nbytes = record_nbytes(fields)
        return "V" + str(nbytes), fields if len(fields) <= 16 and 1 <= nbytes <= 4096 else None, nbytes
    match = _DESCR.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise Unsupported(f".npy header: type {str(descr)[:40]!r} is not one of numbers")
    order, kind, width = match[1], match[2], int(match[3])
    is_big = order == ">" and width > 1
    if kind == "c" and width in (8, 16):
        part = Field(width // 2, is_float=True, is_big=is_big)
        return _NAMES[f"c{width}"], (part, part), width
    if kind == "f" and width in (2, 4, 8):
        return _NAMES[f"f{width}"], (Field(width, is_float=True, is_big=is_big),), width
    if (kind in "iu" and width in (1, 2, 4, 8)) or (kind == "b" and width == 1):
        return _NAMES[f"{kind}{width}"], (Field(width, is_big=is_big),), width
    if kind in "mM" and width == 8:  # times, as whole numbers
        return f"{kind}8", (Field(8, is_big=is_big),), width
    if kind == "U":  # characters of four bytes
        return (
            f"U{width}",
            (Field(4, is_big=match[1] == ">", length=width),) if 0 < width <= 1024 else None,
            4 * width,
        )
    if kind in "SV" and 0 < width <= 4096:
        return f"{kind}{width}", (Field(1, length=width),), width
    return f"{kind}{width}", None, width


def _npy(read_at: ReadAt, begin: int, end: int | None, name: str) -> Tensor:
    """The array of the .npy file that lies from `begin` to `end`.

    Raises:
        Corrupt, Truncated, Unsupported
    """
    where = f".npy header{f' of {name[:80]!r}' if name else ''}"
    head = read_at(begin, 12)
    if head[:6] != NPY_MAGIC or len(head) < 12:
        raise Corrupt(f"{where}: it does not begin as one")
    if head[6] not in (1, 2, 3):
        raise Unsupported(f"{where}: version {head[6]}, versions 1 to 3 are read")
    n = 2 if head[6] == 1 else 4
    size, at = int.from_bytes(head[8 : 8 + n], "little"), begin + 8 + n
    if size > MAX_HEADER_NBYTES:
        raise Corrupt(f"{where}: it has {size} bytes, at most {MAX_HEADER_NBYTES} are read")
    data = read_at(at, size)
    if len(data) < size:
        raise Truncated(f"{where}: it has {size} bytes, of which {len(data)} are there")
    try:
        header = ast.literal_eval(data.decode("utf-8" if head[6] == 3 else "latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise Corrupt(f"{where}: it is no dictionary") from None
    if not isinstance(header, dict) or {*header} != {"descr", "fortran_order", "shape"}:
        raise Corrupt(f"{where}: expected descr, fortran_order and shape")
    descr, is_fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if type(is_fortran) is not bool or not is_shape:
        raise Corrupt(f"{where}: its shape or order is not one")
    try:
        dtype, layout, width = _field(descr)
        count = element_count(shape)
    except ValueError as error:
        raise Corrupt(f"{where}: {error}") from None
    nbytes = count * width
    if end is not None and at + size + nbytes > end:
        raise Corrupt(f"{where}: its array takes {nbytes} bytes, {end - at - size} are there")
    return Tensor(
        name, dtype, shape, at + size, nbytes, layout, is_fortran, descr if isinstance(descr, str) else ""
    )


def parse_npy(read_at: ReadAt, nbytes: int | None = None) -> list[Tensor]:
    """The one array of a .npy file; it is called `array`.

    Raises:
        Corrupt, Truncated, Unsupported: the header is damaged, or the array is none of numbers.
    """
    return [_npy(read_at, 0, nbytes, "array")]


def parse_npz(read_at: ReadAt, nbytes: int | None = None) -> list[Tensor]:
    """The arrays of a zip archive that are stored as they are, by their names without `.npy`.

    Where a local header does not say how long its member is, those after it are not looked for.

    Raises:
        Corrupt, Unsupported: members have one name or are beyond the end; or a member is a pickle.
    """
    tensors: list[Tensor] = []
    at = 0
    for _ in range(_MAX_MEMBERS):
        head = read_at(at, 30)
        if len(head) < 30 or head[:4] != ZIP_MAGIC:
            break
        flags, method = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
        packed, plain = int.from_bytes(head[18:22], "little"), int.from_bytes(head[22:26], "little")
        n_name, n_extra = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        rest = read_at(at + 30, n_name + n_extra)
        if len(rest) < n_name + n_extra or flags & 0x09:  # encrypted, or its length follows it
            break
        if (packed, plain) == (0xFFFFFFFF, 0xFFFFFFFF):
            sizes = _zip64(rest[n_name:])
            if sizes is None:
                break
            plain, packed = sizes
        name = rest[:n_name].decode("utf-8", "replace")
        if name.endswith("/data.pkl"):
            raise Unsupported(PICKLED)
        begin = at + 30 + n_name + n_extra
        at = begin + packed
        if nbytes is not None and at > nbytes:
            raise Corrupt(
                f".npz archive: member {name[:80]!r} ends at byte {at}, the file has {nbytes} bytes"
            )
        if method == 0 and read_at(begin, 6) == NPY_MAGIC:
            try:
                tensors.append(_npy(read_at, begin, at, name.removesuffix(".npy")))
            except (Corrupt, Truncated, Unsupported):
                continue  # of objects, or damaged: bytes like others
    check_places(tensors, nbytes, ".npz archive")
    return tensors


PICKLED = (
    "a pickled file: its tensors could only be found by unpickling it, which runs code; it is coded as bytes"
)


def _zip64(extra: bytes) -> tuple[int, int] | None:
    """Original and stored size as the field of type 1 has them."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = (
            int.from_bytes(extra[at : at + 2], "little"),
            int.from_bytes(extra[at + 2 : at + 4], "little"),
        )
        if kind == 1 and size >= 16 and at + 20 <= len(extra):
            return (
                int.from_bytes(extra[at + 4 : at + 12], "little"),
                int.from_bytes(extra[at + 12 : at + 20], "little"),
            )
        at += 4 + size
    return None
