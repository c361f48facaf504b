"""Typed extension fields of frame headers (FORMAT.md section 2.1): written, read, passed over, refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import format_reference
import pytest

import lmcodec
from lmcodec import frame
from lmcodec.cli.progress import BlockEnds
from lmcodec.codec import Decompressor, compress, decompress, frame_info, scan
from lmcodec.errors import Corrupt, LmcodecError, TrailingData, Truncated, Unsupported
from lmcodec.frame import Extension, ExtensionType, FrameHeader, FrameWalk

TEXT = b"A frame may say more than this version understands. " * 60
IGNORABLE = Extension(ExtensionType.RECORDS, b"places"), Extension(99), Extension(70_000, b"\0\xff" * 99)
CRITICAL = Extension(ExtensionType.PRIOR, b"01234567", critical=True)


def extended(packed: bytes, extensions: tuple[Extension, ...]) -> bytes:
    """The frame with extension fields in its header, and an index that knows of them."""
    info = frame_info(packed)
    assert info.blocks is not None
    header = FrameHeader(
        info.content_size, info.model_id, bool(info.flags & frame.Flag.INDEX), extensions=extensions
    )
    walk = FrameWalk(header)
    for block in info.blocks:
        walk.admit(block, "block")
    begin = info.header_nbytes
    blocks = packed[begin : begin + sum(block.nbytes for block in info.blocks)]
    return header.pack() + blocks + walk.tail()


FRAMES = {
    "one block": compress(TEXT, 1),
    "several blocks, with an index": compress(TEXT, 1, block_size=1024),
    "empty": compress(b""),
}
CONTENTS = {"one block": TEXT, "several blocks, with an index": TEXT, "empty": b""}


def test_bytes_of_the_fields() -> None:
    """As FORMAT.md has them."""
    plain = FrameHeader(5).pack()
    packed = FrameHeader(5, extensions=(Extension(3, b"abc"), Extension(200, b"", critical=True))).pack()
    head = plain[:4] + bytes([plain[4] | 1 << 7]) + plain[5:6]
    assert packed[:6] == head
    assert packed[6] == frame.crc8(head)
    assert packed[7:15] == bytes.fromhex("08 06 03") + b"abc" + bytes.fromhex("91 03")
    assert packed[15:16] == b"\0"
    assert packed[16:] == zlib.crc32(packed[:16]).to_bytes(4, "little")


@pytest.mark.parametrize("name", FRAMES)
def test_what_may_be_ignored_is_passed_over(name: str, tmp_path: Path) -> None:
    packed, data = extended(FRAMES[name], IGNORABLE), CONTENTS[name]
    assert decompress(packed * 2 + bytes(3)) == data * 2
    info = frame_info(packed)
    assert info.extensions == IGNORABLE
    assert info.flags & frame.Flag.EXTENSIONS
    assert info.nbytes == len(packed)
    assert frame_info(FRAMES[name]).extensions == ()
    assert [each.extensions for each in scan(io.BytesIO(packed * 2))] == [IGNORABLE] * 2
    pieces = Decompressor()
    assert b"".join(pieces.decompress(packed[i : i + 1]) for i in range(len(packed))) == data
    assert pieces.eof
    with lmcodec.open(io.BytesIO(packed * 2)) as file:  # by the index, where there is one
        if data:
            file.seek(-7, 2)
            assert file.read() == data[-7:]
        file.seek(0)
        assert file.read() == data * 2
    ends = BlockEnds()
    for i in range(len(packed)):
        ends.feed(packed[i : i + 1])
    assert ends.ends[-1][1] == len(data)
    assert format_reference.decode(packed + FRAMES[name]) == data * 2


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_critical_and_unknown_is_refused(name: str) -> None:
    packed = extended(FRAMES[name], (CRITICAL, IGNORABLE[1]))
    readers: list[Any] = [
        decompress,
        frame_info,
        lambda data: scan(io.BytesIO(data)),
        lambda data: lmcodec.open(io.BytesIO(data)).read(),
    ]
    for read in readers:
        with pytest.raises(Unsupported) as raised:
            read(packed)
        assert str(raised.value) == (
            "frame header at offset 0: its extension field of type 2 (id of a prior) must be understood, "
            "which this lmcodec does not; a newer lmcodec wrote this, or the data is damaged"
        )
    with pytest.raises(Unsupported, match=r"extension field of type 70000 must be understood"):
        decompress(extended(FRAMES[name], (Extension(70_000, b"", critical=True),)))
    with pytest.raises(format_reference.FormatError, match=r"unsupported extensions \[2\]"):
        format_reference.decode(packed)


def test_every_allotted_type_has_a_name() -> None:
    assert [int(each) for each in ExtensionType] == [1, 2, 3, 4, 5, 6]
    assert len({each.label for each in ExtensionType}) == 6
    page = (Path(lmcodec.__file__).parent / "docs" / "FORMAT.md").read_text("utf-8")
    for each in ExtensionType:
        assert f"| {int(each)} | {each.label} |" in page


def sealed(fields: bytes, size: int | None = None) -> bytes:
    """A header with these bytes as its extension fields, every check right."""
    head = frame.MAGIC + b"\x81"
    head += bytes([frame.crc8(head)]) + frame.pack_varint(len(fields) if size is None else size) + fields
    return head + zlib.crc32(head).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (sealed(b""), "0 bytes of extension fields, expected 2 to 65536"),
        (sealed(b"\2"), "1 bytes of extension fields"),
        (sealed(bytes(65_537)), "65537 bytes of extension fields"),
        (sealed(bytes(99), 1 << 21), "a number of more than 3 bytes"),
        (sealed(b"\0\0"), "out of order"),  # type 0
        (sealed(b"\4\0\2\0"), "out of order"),
        (sealed(b"\4\0\5\0"), "out of order"),  # twice the same
        (sealed(b"\4\1"), "is cut"),
        (sealed(b"\4\0\6"), "is cut"),
        (sealed(b"\4\x80\0"), "2 bytes that fits 1"),
        (sealed(b"\xff\xff\xff\xff\1\0"), "more than 4 bytes"),
    ],
)
def test_wrong_fields(header: bytes, text: str) -> None:
    with pytest.raises(Corrupt, match=text):
        frame.parse_header(header)
    with pytest.raises(format_reference.FormatError):
        format_reference.decode(header + FRAMES["empty"][6:])


def test_fields_that_cannot_be_written() -> None:
    for extensions, text in (
        ([Extension(1), Extension(1, b"a")], r"types of their own, 1 to 2\^27 - 1, not \[1, 1\]"),
        ([Extension(0)], "types of their own"),
        ([Extension(1 << 27)], "types of their own"),
        ([Extension(1, bytes(40_000)), Extension(2, bytes(30_000))], "at most 65536 bytes, not 70008"),
    ):
        with pytest.raises(ValueError, match=text):
            frame.pack_extensions(extensions)
    most = (Extension((1 << 27) - 1, bytes(65_000), True),)
    header = FrameHeader(extensions=most, has_index=True)
    assert len(header.pack()) <= frame.MAX_FRAME_HEADER_NBYTES
    with pytest.raises(Unsupported, match="type 134217727 must"):
        frame.parse_header(header.pack())
    long = Extension(7, bytes(65_000))
    assert decompress(extended(FRAMES["one block"], (long,))) == TEXT


@pytest.mark.parametrize("name", ["one block", "several blocks, with an index"])
def test_damage_is_seen(name: str) -> None:
    """Of every bit of a header, and where it is cut."""
    packed = extended(FRAMES[name], (Extension(1, b"id"), IGNORABLE[0]))
    n_header = frame_info(packed).header_nbytes
    for at in range(n_header):
        for bit in range(8):
            changed = bytearray(packed)
            changed[at] ^= 1 << bit
            with pytest.raises(LmcodecError):
                decompress(changed)
            with pytest.raises(LmcodecError):
                frame_info(changed)
            with pytest.raises((format_reference.FormatError, IndexError)):
                format_reference.decode(bytes(changed))
        assert frame.parse_header(packed[:at]) is None
        with pytest.raises(Truncated, match="inside a frame header"):
            decompress(packed[:at])
    with pytest.raises(TrailingData):
        decompress(packed + b"more")


def test_a_decoder_of_before_says_unsupported() -> None:
    """One that knows no extension fields finds the flag behind a check that holds where it looks for it."""
    packed = extended(FRAMES["one block"], IGNORABLE)
    plain = frame_info(FRAMES["one block"]).header_nbytes
    assert packed[4] == FRAMES["one block"][4] | 1 << 7
    assert packed[plain - 1] == frame.crc8(packed[: plain - 1])
