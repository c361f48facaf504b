"""Frames as bytes: packs and parses frame headers, block headers, index and footer (FORMAT.md section 2).

It does no I/O and decodes nothing. A parser is given the bytes that have come so far: it returns None while
they are too few to tell, and raises as soon as they show that something is wrong. `FrameWalk` holds the rules
that go beyond one header: order, sums, index. In messages offsets count from the start of the data, blocks
from 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from lmcodec import models
from lmcodec.errors import BadMagic, Corrupt, TrailingData, Unsupported

MAGIC = b"\xb5LMZ"
COMPACT_MAGIC = 0xC1  # the first byte of a compact frame: no text in UTF-8 has it
FOOTER_MAGIC = b"ZML\xb5"
VERSION = 1
PROFILES = {number: name for number, (name, _) in models.PROFILES.items()}  # FORMAT.md section 5

MAX_BLOCK_NBYTES = 1 << 24  # of the original
MAX_ENLARGE = 3
MIN_TABLES_LOG2, MAX_TABLES_LOG2 = 10, 24  # of the block that a chain's tables are sized for
CHAIN_SPARE_NBYTES = 16  # a block of such a chain may have a payload larger than itself by so much
MAX_EXTENSIONS_NBYTES = 1 << 16  # of the fields of a frame header
COMPACT_HEADER_NBYTES = 3
PLAIN_FRAME_HEADER_NBYTES = 4 + 1 + 9 + 9 + 1  # at most, of one without extension fields
MAX_FRAME_HEADER_NBYTES = PLAIN_FRAME_HEADER_NBYTES + 3 + MAX_EXTENSIONS_NBYTES + 4
MAX_BLOCK_HEADER_NBYTES = 1 + 1 + 1 + 1 + 4 + 4 + 4
MIN_BLOCK_NBYTES = 1 + 4  # an end block
FOOTER_NBYTES = 4 + 4 + 4
INDEX_HEAD_NBYTES = 9 + 9
MAX_ENTRY_NBYTES = 4 + 4  # of an index: a block and its original have less than 2^28 bytes

_NEWER = "a newer lmcodec wrote this, or the data is damaged"
_DAMAGED = "the data is damaged"


class Method(IntEnum):
    END = 0
    STORED = 1
    CM = 2
    LM_CM = 3
    LM = 4
    TENSOR = 5

    @property
    def is_coded(self) -> bool:
        """Whether its payload is another than the original."""
        return self >= Method.CM

    @property
    def has_streams(self) -> bool:
        """Whether it codes decisions of streams, by a profile."""
        return Method.CM <= self <= Method.LM

    @property
    def needs_model(self) -> bool:
        """Whether it codes by the frame's language model."""
        return self in (Method.LM_CM, Method.LM)

    @property
    def label(self) -> str:
        """What people call it: `stored`, `cm`, `lm+cm`, `lm`, `tensor`."""
        return self.name.lower().replace("_", "+")


class Flag(IntFlag):
    """Bits 4-7 of a frame header's fifth byte."""

    CONTENT_SIZE = 0x10
    MODEL = 0x20
    INDEX = 0x40
    EXTENSIONS = 0x80


class ExtensionType(IntEnum):
    """What types of extension fields are allotted for. FORMAT.md section 2.4."""

    ENVIRONMENT = 1
    PRIOR = 2
    RECORDS = 3
    TENSORS = 4
    CHAIN_TABLES = 5
    BASE = 6

    @property
    def label(self) -> str:
        return _EXTENSION_LABELS[self]


_EXTENSION_LABELS = {
    ExtensionType.ENVIRONMENT: "fingerprint of an environment-bound model",
    ExtensionType.PRIOR: "id of a prior",
    ExtensionType.RECORDS: "index of records",
    ExtensionType.TENSORS: "tensors",
    ExtensionType.CHAIN_TABLES: "tables of chains",
    ExtensionType.BASE: "base",
}
# Those that this version can do what they ask for.
_KNOWN_EXTENSIONS: frozenset[int] = frozenset({ExtensionType.ENVIRONMENT, ExtensionType.BASE})


# FORMAT.md section 1: conventions


def pack_varint(value: int) -> bytes:
    """The shortest form of 0 <= `value` < 2^63."""
    assert 0 <= value < 1 << 63
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_varint(data: bytes | bytearray, at: int, where: str, max_nbytes: int = 9) -> tuple[int, int] | None:
    """The varint at `data[at:]` and where it ends, or None if it is cut.

    Raises:
        Corrupt: if it is not the shortest form, or longer than `max_nbytes`.
    """
    value = 0
    for i in range(max_nbytes):
        if at + i >= len(data):
            return None
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if i and not byte:
                raise Corrupt(f"{where}: a number of {i + 1} bytes that fits {i}; {_DAMAGED}")
            return value, at + i + 1
    raise Corrupt(f"{where}: a number of more than {max_nbytes} bytes; {_DAMAGED}")


def crc8(data: bytes | bytearray) -> int:
    """CRC-8/SMBUS: polynomial 0x07, start 0, not reflected."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value << 1 ^ (0x107 if value & 0x80 else 0)
    return value


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


# FORMAT.md section 2.1: frame header


@dataclass(frozen=True)
class Extension:
    """An extension field of a frame header.

    Attributes:
        type: one of `ExtensionType`, or another number from 1 that this version does not know.
        data: what it holds, the type's own business.
        critical: a decoder that does not know the type must refuse the frame; otherwise it passes over it.
    """

    type: int
    data: bytes = b""
    critical: bool = False

    def pack(self) -> bytes:
        return b"".join((pack_varint(self.type << 1 | self.critical), pack_varint(len(self.data)), self.data))


def environment_of(extensions: Iterable[Extension]) -> bytes | None:
    """The data of the field that binds a frame to an environment, None if there is none."""
    return next((each.data for each in extensions if each.type == ExtensionType.ENVIRONMENT), None)


def base_of(extensions: Iterable[Extension]) -> bytes | None:
    """The data of the field that names the file that numbers are coded against, None if there is none."""
    return next((each.data for each in extensions if each.type == ExtensionType.BASE), None)


def pack_extensions(extensions: Iterable[Extension]) -> bytes:
    """Size and fields, in the order of their types.

    Raises:
        ValueError: two are of one type, a type is out of range, or they are too long together.
    """
    fields = sorted(extensions, key=lambda extension: extension.type)
    types = [extension.type for extension in fields]
    if len({*types}) < len(types) or not all(0 < type < 1 << 27 for type in types):
        raise ValueError(f"extension fields have types of their own, 1 to 2^27 - 1, not {types}")
    packed = b"".join(extension.pack() for extension in fields)
    if len(packed) > MAX_EXTENSIONS_NBYTES:
        raise ValueError(f"extension fields have at most {MAX_EXTENSIONS_NBYTES} bytes, not {len(packed)}")
    return pack_varint(len(packed)) + packed


# FORMAT.md section 2.6: compact frames

# What the coding number of a compact frame stands for: the method, and which of the prior's profiles for it.
CODINGS = ((Method.CM, 0), (Method.CM, 1), (Method.LM_CM, 0))
PRIOR_ID_NBYTES = 8


def short_prior_id(prior_id: bytes) -> int:
    """The part of a prior's id that compact frames name it by: 12 bits, three hexadecimal digits."""
    return (prior_id[0] << 8 | prior_id[1]) >> 4


@dataclass(frozen=True)
class Compact:
    """What the header of a compact frame says.

    Attributes:
        short_id: of its prior, 12 bits (`short_prior_id`).
        coding: an index of CODINGS.
        short_check: the block's check has 16 bits.
    """

    short_id: int
    coding: int
    short_check: bool = False

    @property
    def check_nbytes(self) -> int:
        return 2 if self.short_check else 4

    def pack(self) -> bytes:
        first = self.short_check | self.coding << 1 | self.short_id >> 8 << 4
        return bytes([COMPACT_MAGIC, first, self.short_id & 0xFF])


def _parse_compact(data: bytes | bytearray, where: str) -> Compact | None:
    if len(data) < COMPACT_HEADER_NBYTES:
        return None
    coding = data[1] >> 1 & 3
    if coding >= len(CODINGS) or data[1] & 8:
        raise Unsupported(
            f"{where}: flags {data[1] & 15:X} of a compact frame are unknown to this lmcodec; {_NEWER}"
        )
    return Compact(data[1] >> 4 << 8 | data[2], coding, bool(data[1] & 1))


def join_sizes(original_nbytes: int, payload_nbytes: int) -> int:
    """Both sizes as one number: pairs whose payload is at most the original are numbered without gaps."""
    return original_nbytes * (original_nbytes + 1) // 2 + payload_nbytes


def split_sizes(number: int) -> tuple[int, int]:
    """Original size and payload size of a number."""
    original_nbytes = (math.isqrt(8 * number + 1) - 1) // 2
    return original_nbytes, number - join_sizes(original_nbytes, 0)


def pack_sizes(original_nbytes: int, payload_nbytes: int) -> bytes:
    """Both sizes of a compact frame as one number; the payload's is at most the original's."""
    assert original_nbytes > 0
    assert 0 <= payload_nbytes <= original_nbytes
    return pack_varint(join_sizes(original_nbytes, payload_nbytes))


def parse_sizes(data: bytes | bytearray, at: int, where: str) -> tuple[int, int, int] | None:
    """Original size, payload size and where they end, or None if they are cut.

    Raises:
        Corrupt
    """
    parsed = parse_varint(data, at, where, 7)
    if parsed is None:
        return None
    number, at = parsed
    original_nbytes, payload_nbytes = split_sizes(number)
    if not 1 <= original_nbytes <= MAX_BLOCK_NBYTES:
        raise Corrupt(
            f"{where}: original size {original_nbytes}, expected 1 to {MAX_BLOCK_NBYTES} bytes; {_DAMAGED}"
        )
    return original_nbytes, payload_nbytes, at


@dataclass(frozen=True)
class FrameHeader:
    """What a frame header says.

    Attributes:
        content_size: original bytes in the frame, None if the header does not say.
        model_id: None, the number of a shipped model (1 to 127), or the 8 bytes that identify another one.
        has_index: an index and a footer follow the last block.
        extensions: fields of later versions and other programs, in the order of their types.
        compact: of a compact frame, which has none of these; else None.
    """

    content_size: int | None = None
    model_id: int | bytes | None = None
    has_index: bool = False
    extensions: tuple[Extension, ...] = ()
    compact: Compact | None = None

    @property
    def environment(self) -> bytes | None:
        """The fingerprint of what the frame is bound to (section 2.5), None if it is not."""
        return environment_of(self.extensions)

    @property
    def flags(self) -> Flag:
        flags = Flag(0)
        if self.content_size is not None:
            flags |= Flag.CONTENT_SIZE
        if self.model_id is not None:
            flags |= Flag.MODEL
        if self.has_index:
            flags |= Flag.INDEX
        if self.extensions:
            flags |= Flag.EXTENSIONS
        return flags

    @property
    def nbytes(self) -> int:
        return len(self.pack())

    def parse_block(self, data: bytes, where: str, previous: Block | None = None) -> Block | None:
        """As the function `parse_block`, of a block of this header's frame."""
        return parse_block(
            data, where, has_model=self.model_id is not None, previous=previous, compact=self.compact
        )

    def pack(self) -> bytes:
        if self.compact is not None:
            return self.compact.pack()
        out = MAGIC + bytes([VERSION | self.flags])
        if self.model_id is not None:
            out += bytes([self.model_id]) if isinstance(self.model_id, int) else b"\xff" + self.model_id
        if self.content_size is not None:
            out += pack_varint(self.content_size)
        out += bytes([crc8(out)])
        if self.extensions:
            out += pack_extensions(self.extensions)
            out += _u32(zlib.crc32(out))
        return out


def _parse_extensions(
    data: bytes | bytearray, at: int, where: str
) -> tuple[tuple[Extension, ...], int] | None:
    """The extension fields at `data[at:]` of a frame header and where their check ends, or None if it is cut.

    Raises:
        Corrupt
    """
    parsed = parse_varint(data, at, where, 3)
    if parsed is None:
        return None
    nbytes, begin = parsed
    if not 2 <= nbytes <= MAX_EXTENSIONS_NBYTES:
        bounds = f"2 to {MAX_EXTENSIONS_NBYTES}"
        raise Corrupt(f"{where}: {nbytes} bytes of extension fields, expected {bounds}; {_DAMAGED}")
    end = begin + nbytes
    if len(data) < end + 4:
        return None
    found, expected = int.from_bytes(data[end : end + 4], "little"), zlib.crc32(data[:end])
    if found != expected:
        raise Corrupt(
            f"{where}: the check of its extension fields is {found:08X}, its bytes give {expected:08X}; "
            f"{_DAMAGED}"
        )
    fields: list[Extension] = []
    area, at = bytes(data[begin:end]), 0
    while at < nbytes:
        key = parse_varint(area, at, where, 4)
        size = key and parse_varint(area, key[1], where, 3)
        if not key or not size or size[1] + size[0] > nbytes:
            raise Corrupt(f"{where}: its last extension field is cut; {_DAMAGED}")
        type, critical = key[0] >> 1, bool(key[0] & 1)
        if type <= (fields[-1].type if fields else 0):
            raise Corrupt(f"{where}: extension fields out of order; {_DAMAGED}")
        at = size[1] + size[0]
        fields.append(Extension(type, area[size[1] : at], critical))
    return tuple(fields), end + 4


def _require_known(extensions: Iterable[Extension], where: str) -> None:
    """Refuse critical extension fields that this version does not know.

    Raises:
        Unsupported
    """
    for extension in extensions:
        if extension.critical and extension.type not in _KNOWN_EXTENSIONS:
            allotted = extension.type in _EXTENSION_LABELS
            name = f" ({ExtensionType(extension.type).label})" if allotted else ""
            raise Unsupported(
                f"{where}: its extension field of type {extension.type}{name} must be understood, which this "
                f"lmcodec does not; {_NEWER}"
            )


def read_header(read_at: Callable[[int, int], bytes], offset: int) -> FrameHeader | None:
    """As `parse_header`, of what can be read anywhere: `read_at` is given where and how many bytes."""
    data = read_at(offset, PLAIN_FRAME_HEADER_NBYTES)
    header = parse_header(data, offset)
    if header is None and len(data) > 4 and data[4] & Flag.EXTENSIONS:
        header = parse_header(read_at(offset, MAX_FRAME_HEADER_NBYTES), offset)
    return header


def parse_header(data: bytes | bytearray, offset: int = 0) -> FrameHeader | None:
    """The header that `data` starts with, or None if it is cut.

    Args:
        data: `MAX_FRAME_HEADER_NBYTES` of them are enough.
        offset: where `data` lies, for messages.

    Raises:
        BadMagic, Unsupported, Corrupt: looked for in FORMAT.md's order. The first is a TrailingData if
            `offset` is not 0.
    """
    if data[:1] == bytes([COMPACT_MAGIC]):
        compact = _parse_compact(data, f"frame header at offset {offset}")
        return None if compact is None else FrameHeader(compact=compact)
    magic = bytes(data[:4])
    if magic != MAGIC[: len(magic)]:
        found, expected = magic.hex(" ").upper(), MAGIC.hex(" ").upper()
        if offset:
            raise TrailingData(
                f"offset {offset}: expected another frame ({expected}) or the end, found {found}; "
                f"the {offset} bytes before it are whole frames"
            )
        raise BadMagic(f"not lmcodec data: it starts with {found}, a frame with {expected}")
    if len(data) < 5:
        return None
    where = f"frame header at offset {offset}"
    if data[4] & 0x0F != VERSION:
        raise Unsupported(f"{where}: format version {data[4] & 0x0F}, this lmcodec reads {VERSION}; {_NEWER}")
    at = 5
    model: bytes | None = None
    if data[4] & Flag.MODEL:
        if len(data) <= at:
            return None
        model = bytes(data[at : at + (9 if data[at] == 0xFF else 1)])
        at += 9 if data[at] == 0xFF else 1
    content_size = None
    if data[4] & Flag.CONTENT_SIZE:
        parsed = parse_varint(data, at, where)
        if parsed is None:
            return None
        content_size, at = parsed
    if len(data) <= at:
        return None
    if data[at] != crc8(data[:at]):
        raise Corrupt(
            f"{where}: its check is {data[at]:02X}, its bytes give {crc8(data[:at]):02X}; {_DAMAGED}"
        )
    extensions: tuple[Extension, ...] = ()
    if data[4] & Flag.EXTENSIONS:
        fields = _parse_extensions(data, at + 1, where)
        if fields is None:
            return None
        extensions = fields[0]
    if model is not None and not 1 <= model[0] <= 127 and model[0] != 0xFF:
        raise Unsupported(f"{where}: model number {model[0]}, this lmcodec knows 1 to 127 and 255; {_NEWER}")
    _require_known(extensions, where)
    model_id = None if model is None else model[1:] if model[0] == 0xFF else model[0]
    return FrameHeader(content_size, model_id, bool(data[4] & Flag.INDEX), extensions)


# FORMAT.md section 2.2: blocks


@dataclass(frozen=True)
class Block:
    """What a block header says.

    Attributes:
        method: how the original is coded.
        original_nbytes: 0 for an end block.
        payload_nbytes: the original's size if stored, 0 for an end block.
        profile, streams, groups: 0 for methods that have none. The profile is one of PROFILES, or (method
            lm_cm) one of the model's, counted from 1, or (method lm) 0.
        last: the frame's last block.
        continues: coded with what the block before it left; not a point to start decoding from.
        check: crc32 of original, header before the check, payload.
        enlarge: the slot table is of up to 2^enlarge times the profile's size, 0 to MAX_ENLARGE.
        chained: one of a chain of blocks that may be small. The first says how large the tables are; the
            others, which continue it, leave out what they have in common with the block before.
        tables_log2: the tables are as large as a block of 2^tables_log2 bytes would ask for; 0 if they are
            sized for this block, or made already.
        compact: of the block of a compact frame, its header; else None. Profile, streams and groups are 0
            then: the prior has them.
        prior_id: the whole id of that prior, which its check covers; the header alone does not say it.
    """

    method: Method
    original_nbytes: int = 0
    payload_nbytes: int = 0
    profile: int = 0
    streams: int = 0
    groups: int = 0
    last: bool = False
    continues: bool = False
    check: int = 0
    enlarge: int = 0
    chained: bool = False
    tables_log2: int = 0
    compact: Compact | None = None
    prior_id: bytes = b""

    @property
    def tables_nbytes(self) -> int:
        """The bytes that the tables are sized for; 0 if that is for this block, or one before, to say."""
        return 1 << self.tables_log2 if self.tables_log2 else 0

    @property
    def engine(self) -> tuple[Method, int, int, int, int]:
        """What a block and one that continues it have in common."""
        return self.method, self.profile, self.streams, self.groups, self.enlarge

    @property
    def header_nbytes(self) -> int:
        return len(self.head()) + (4 if self.compact is None else self.compact.check_nbytes)

    @property
    def nbytes(self) -> int:
        """Header and payload."""
        return self.header_nbytes + self.payload_nbytes

    def head(self) -> bytes:
        """The header before the check."""
        if self.compact is not None:
            return pack_sizes(self.original_nbytes, self.payload_nbytes)
        out = bytes([self.method | self.last << 3 | self.continues << 4 | self.chained << 5])
        if self.method.has_streams and not (self.chained and self.continues):
            out += bytes([self.profile | self.enlarge << 5, self.streams - 1 | self.groups - 1 << 7])
            if self.chained:
                out += bytes([self.tables_log2])
        if self.method != Method.END:
            out += pack_varint(self.original_nbytes - 1)
        if self.method.is_coded:
            out += pack_varint(self.payload_nbytes)
        return out

    def compute_check(self, original: bytes | bytearray, payload: bytes) -> int:
        head, crc32 = self.head(), zlib.crc32
        if self.compact is None:
            if self.method == Method.TENSOR:  # whose blocks are coded in less time than zlib takes for this
                from lmcodec._kernel import crc32  # type: ignore[assignment]
            return crc32(payload, crc32(head, crc32(original)))
        head = self.compact.pack() + self.prior_id + head
        check = crc32(payload, crc32(head, crc32(original)))
        return check & 0xFFFF if self.compact.short_check else check

    def pack(self, original: bytes = b"", payload: bytes = b"") -> bytes:
        """The whole block, its check computed."""
        nbytes = 4 if self.compact is None else self.compact.check_nbytes
        check = self.compute_check(original, payload).to_bytes(nbytes, "little")
        return b"".join((self.head(), check, payload))


_METHODS = frozenset(Method)
# How many profiles a model has is for who has the model to see.
_KNOWN_PROFILES = {Method.CM: range(1, len(PROFILES) + 1), Method.LM_CM: range(1, 32), Method.LM: range(1)}


def continues(data: bytes) -> bool:
    """Whether the block header that `data` starts with is that of a block that continues another."""
    return bool(data and data[0] & 0x10)


def _parse_compact_block(data: bytes, where: str, compact: Compact) -> Block | None:
    sizes = parse_sizes(data, 0, where)
    if sizes is None or len(data) < sizes[2] + compact.check_nbytes:
        return None
    original_nbytes, payload_nbytes, at = sizes
    method = Method.STORED if payload_nbytes == original_nbytes else CODINGS[compact.coding][0]
    check = int.from_bytes(data[at : at + compact.check_nbytes], "little")
    return Block(method, original_nbytes, payload_nbytes, last=True, check=check, compact=compact)


def parse_block(
    data: bytes,
    where: str,
    *,
    has_model: bool = False,
    previous: Block | None = None,
    compact: Compact | None = None,
) -> Block | None:
    """The block header that `data` starts with, or None if it is cut.

    Args:
        data: `MAX_BLOCK_HEADER_NBYTES` of them are enough.
        where: names the block in messages.
        has_model: whether the frame header names a model.
        previous: the block before.
        compact: of a compact frame, its header.

    Raises:
        Unsupported, Corrupt: if a field, alone or with the others of this header, is not one to read.
    """
    if compact is not None:
        return _parse_compact_block(data, where, compact)
    if not data:
        return None
    first = data[0]
    last, continues, chained = bool(first & 0x08), bool(first & 0x10), bool(first & 0x20)
    if first & 0xC0 or first & 7 not in _METHODS:
        raise Unsupported(f"{where}: method and flags {first:02X} are unknown to this lmcodec; {_NEWER}")
    method = Method(first & 7)
    if method.needs_model and not has_model:
        raise Corrupt(f"{where}: needs a model, but the frame names none; {_DAMAGED}")
    if continues and not method.has_streams:
        raise Corrupt(f"{where}: a block of method {method.label} continues another; {_DAMAGED}")
    if chained and method not in (Method.CM, Method.LM_CM):
        raise Corrupt(f"{where}: a block of method {method.label} in a chain with tables; {_DAMAGED}")
    at, profile, enlarge, streams, groups, original_nbytes, payload_nbytes = 1, 0, 0, 0, 0, 0, 0
    tables_log2 = 0
    if method == Method.END and not last:
        raise Corrupt(f"{where}: an end block that is not the last one; {_DAMAGED}")
    if chained and continues:
        if previous is None or not previous.chained or previous.method != method:
            raise Corrupt(f"{where}: continues a chain that is not there; {_DAMAGED}")
        _, profile, streams, groups, enlarge = previous.engine
    elif method.has_streams:
        if len(data) <= at:
            return None
        profile, enlarge = data[at] & 0x1F, data[at] >> 5
        known = _KNOWN_PROFILES[method]
        if profile not in known or (enlarge and method == Method.LM):
            names = ", ".join(map(str, known)) if len(known) <= len(PROFILES) else "those from 1"
            raise Unsupported(f"{where}: profile {profile}, this lmcodec knows {names}; {_NEWER}")
        if enlarge > MAX_ENLARGE:
            raise Unsupported(
                f"{where}: a table of 2^{enlarge} times the profile's, this lmcodec knows up to "
                f"2^{MAX_ENLARGE}; {_NEWER}"
            )
        if len(data) <= at + 1:
            return None
        streams, groups = (data[at + 1] & 0x7F) + 1, (data[at + 1] >> 7) + 1
        if groups > streams or (method == Method.CM and streams > 4):
            raise Corrupt(f"{where}: {streams} streams in {groups} groups; {_DAMAGED}")
        at += 2
        if chained:
            if len(data) <= at:
                return None
            tables_log2 = data[at]
            if not MIN_TABLES_LOG2 <= tables_log2 <= MAX_TABLES_LOG2:
                bounds = f"2^{MIN_TABLES_LOG2} to 2^{MAX_TABLES_LOG2}"
                raise Corrupt(f"{where}: tables for 2^{tables_log2} bytes, expected {bounds}; {_DAMAGED}")
            at += 1
    if method != Method.END:
        parsed = parse_varint(data, at, where, 4)
        if parsed is None:
            return None
        original_nbytes, at = parsed[0] + 1, parsed[1]
        payload_nbytes = original_nbytes
        if not max(1, streams) <= original_nbytes <= MAX_BLOCK_NBYTES:
            bounds = f"{max(1, streams)} to {MAX_BLOCK_NBYTES}"
            raise Corrupt(f"{where}: original size {original_nbytes}, expected {bounds} bytes; {_DAMAGED}")
        if tables_log2 and original_nbytes > 1 << tables_log2:
            sizes = f"2^{tables_log2} bytes, original size {original_nbytes}"
            raise Corrupt(f"{where}: tables for {sizes}, expected a smaller block; {_DAMAGED}")
    if method.is_coded:
        parsed = parse_varint(data, at, where, 4)
        if parsed is None:
            return None
        payload_nbytes, at = parsed
        if payload_nbytes >= original_nbytes + (CHAIN_SPARE_NBYTES if chained else 0):
            sizes = f"payload size {payload_nbytes}, original size {original_nbytes}"
            raise Corrupt(f"{where}: {sizes}, expected a smaller payload; {_DAMAGED}")
    if len(data) < at + 4:
        return None
    check = int.from_bytes(data[at : at + 4], "little")
    return Block(
        method,
        original_nbytes,
        payload_nbytes,
        profile,
        streams,
        groups,
        last,
        continues,
        check=check,
        enlarge=enlarge,
        chained=chained,
        tables_log2=tables_log2,
    )


# FORMAT.md section 2.3: index and footer


def pack_index(header_nbytes: int, n_block: int, entries: bytes) -> bytes:
    """Index and footer; `entries` are two packed varints a block."""
    index = pack_varint(header_nbytes) + pack_varint(n_block) + entries
    return b"".join((index, _u32(zlib.crc32(index)), _u32(len(index)), FOOTER_MAGIC))


def parse_footer(data: bytes) -> int | None:
    """Bytes of the index that the footer `data` closes, or None if `data` is not a footer."""
    if len(data) != FOOTER_NBYTES or data[8:] != FOOTER_MAGIC:
        return None
    return int.from_bytes(data[4:8], "little")


def parse_index_head(data: bytes, offset: int = 0) -> tuple[int, int, int] | None:
    """Of an index: bytes of the frame's header, number of blocks, where the entries begin; None if it is cut.

    Args:
        data: `INDEX_HEAD_NBYTES` of the index are enough.

    Raises:
        Corrupt: a number has another form.
    """
    where = f"index at offset {offset}"
    first = parse_varint(data, 0, where)
    second = first and parse_varint(data, first[1], where)
    return None if not first or not second else (first[0], *second)


def parse_entries(data: bytes, offset: int = 0) -> Iterator[tuple[int, int]]:
    """The (bytes, original bytes) of every block, from a whole index with its footer, one after another.

    Raises:
        Corrupt: if anything about the index is wrong; what its numbers add up to is for the caller to check.
    """
    where = f"index at offset {offset}"
    index, footer = data[:-FOOTER_NBYTES], data[-FOOTER_NBYTES:]
    if parse_footer(footer) != len(index) or footer[:4] != _u32(zlib.crc32(index)):
        raise Corrupt(f"{where}: its check or size does not hold; {_DAMAGED}")
    head = parse_index_head(index, offset)
    if head is None:
        raise Corrupt(f"{where}: its first numbers are cut; {_DAMAGED}")
    _, n_block, at = head
    if not n_block or n_block > (len(index) - at) // 2:
        raise Corrupt(f"{where}: {len(index)} bytes do not make an index of {n_block} blocks; {_DAMAGED}")
    for _ in range(n_block):
        nbytes = parse_varint(index, at, where)
        original_nbytes = nbytes and parse_varint(index, nbytes[1], where)
        if not nbytes or not original_nbytes:
            raise Corrupt(f"{where}: its last number is cut; {_DAMAGED}")
        at = original_nbytes[1]
        yield nbytes[0], original_nbytes[0]
    if at != len(index):
        raise Corrupt(f"{where}: {len(index) - at} bytes after its last number; {_DAMAGED}")


@dataclass(frozen=True)
class Index:
    """What an index says: `entries` holds (bytes, original bytes) of every block."""

    header_nbytes: int
    entries: list[tuple[int, int]]


def parse_index(data: bytes, offset: int = 0) -> Index:
    """Parse a whole index with its footer.

    Raises:
        Corrupt: if anything about it is wrong.
    """
    entries = list(parse_entries(data, offset))
    head = parse_index_head(data, offset)
    assert head is not None
    return Index(head[0], entries)


# Rules between blocks


@dataclass
class FrameWalk:
    """A frame's blocks seen in order: checks what one header cannot show and knows the index they must have.

    Attributes:
        n_block: blocks admitted so far.
        original_nbytes: of these, together.
        previous: the block admitted last.
    """

    header: FrameHeader
    n_block: int = 0
    original_nbytes: int = 0
    previous: Block | None = None
    _entries: bytearray = field(default_factory=bytearray, repr=False)

    @classmethod
    def resumed(cls, header: FrameHeader, entries: Iterable[tuple[int, int]]) -> FrameWalk:
        """A walk that starts after the blocks that `entries` of an index tell of."""
        walk = cls(header)
        for nbytes, original_nbytes in entries:
            walk._count(nbytes, original_nbytes)
        return walk

    @property
    def ended(self) -> bool:
        return self.previous is not None and self.previous.last

    def admit(self, block: Block, where: str) -> None:
        """Take the next block in.

        Raises:
            Corrupt: if it may not follow the others, or the sizes do not add up to the frame's content size.
        """
        previous = self.previous
        if block.continues and (previous is None or previous.engine != block.engine):
            raise Corrupt(f"{where}: continues a block that is not there or coded otherwise; {_DAMAGED}")
        self._count(block.nbytes, block.original_nbytes)
        self.previous = block
        declared, summed = self.header.content_size, self.original_nbytes
        if declared is not None and (summed > declared or (block.last and summed != declared)):
            raise Corrupt(
                f"{where}: blocks so far hold {summed} bytes, the frame header says {declared}; {_DAMAGED}"
            )

    def _count(self, nbytes: int, original_nbytes: int) -> None:
        self.n_block += 1
        self.original_nbytes += original_nbytes
        if self.header.has_index:
            self._entries += pack_varint(nbytes) + pack_varint(original_nbytes)

    def tail(self) -> bytes:
        """What must follow the last block, to the byte: index and footer, or nothing."""
        if not self.header.has_index:
            return b""
        return pack_index(self.header.nbytes, self.n_block, bytes(self._entries))
