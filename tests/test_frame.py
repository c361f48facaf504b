"""Headers, blocks and indexes byte by byte, as FORMAT.md has them."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcodec import frame
from lmcodec.errors import BadMagic, Corrupt, LmcodecError, Unsupported
from lmcodec.frame import Block, Extension, Flag, FrameHeader, FrameWalk, Method

sizes = st.integers(0, 2**63 - 1) | st.integers(0, 300)
headers = st.builds(
    FrameHeader,
    st.none() | sizes,
    st.none() | st.integers(1, 127) | st.binary(min_size=8, max_size=8),
    st.booleans(),
    st.lists(
        st.builds(Extension, st.integers(1, 9) | st.integers(1, 2**27 - 1), st.binary(max_size=300)),
        unique_by=lambda extension: extension.type,
        max_size=4,
    ).map(lambda found: tuple(sorted(found, key=lambda extension: extension.type))),
)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Block headers that FORMAT.md section 2.2 allows."""
    method = draw(st.sampled_from(Method))
    if method == Method.END:
        return Block(method, last=True)
    last, check = draw(st.booleans()), draw(st.integers(0, 2**32 - 1))
    if method == Method.STORED:
        nbytes = draw(st.integers(1, 2**24))
        return Block(method, nbytes, nbytes, last=last, check=check)
    if method == Method.TENSOR:
        nbytes = draw(st.integers(1, 2**24))
        return Block(method, nbytes, draw(st.integers(0, nbytes - 1)), last=last, check=check)
    streams = draw(st.integers(1, 4 if method == Method.CM else 128))
    nbytes = draw(st.integers(streams, 2**24))
    return Block(
        method,
        nbytes,
        draw(st.integers(0, nbytes - 1)),
        draw(st.sampled_from(sorted(frame.PROFILES))) if method != Method.LM else 0,
        streams,
        draw(st.integers(1, min(2, streams))),
        last,
        draw(st.booleans()),
        check,
        draw(st.integers(0, frame.MAX_ENLARGE)) if method != Method.LM else 0,
    )


# Section 1


@pytest.mark.parametrize(
    ("value", "packed"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**63 - 1, "ff" * 8 + "7f")],
)
def test_varint_bytes(value: int, packed: str) -> None:
    assert frame.pack_varint(value).hex() == packed
    assert frame.parse_varint(bytes.fromhex(packed), 0, "") == (value, len(packed) // 2)


@given(sizes, st.binary(max_size=3), st.binary(max_size=3))
def test_varint_roundtrip(value: int, before: bytes, after: bytes) -> None:
    packed = frame.pack_varint(value)
    assert frame.parse_varint(before + packed + after, len(before), "") == (value, len(before + packed))
    for cut in range(len(packed)):
        assert frame.parse_varint(packed[:cut], 0, "") is None


@pytest.mark.parametrize("packed", ["8000", "ff8000", "80" * 9, "ff" * 9 + "01"])
def test_varint_has_one_form(packed: str) -> None:
    """The encoding MUST be the shortest, of a value below 2^63."""
    with pytest.raises(Corrupt, match="here"):
        frame.parse_varint(bytes.fromhex(packed), 0, "here")


def test_crc8_is_smbus() -> None:
    assert frame.crc8(b"123456789") == 0xF4


# Section 2.1


def test_frame_header_bytes() -> None:
    packed = FrameHeader(300, 7, True).pack()
    assert packed[:4] == bytes.fromhex("b5 4c 4d 5a")  # magic
    assert packed[4] & 0x0F == 1  # version
    assert packed[4] >> 4 == 0b111  # CONTENT_SIZE, MODEL, INDEX
    assert packed[5] == 7  # model
    assert packed[6:8] == bytes.fromhex("ac02")  # content size
    assert packed[8] == frame.crc8(packed[:8])
    assert len(packed) == 9
    assert FrameHeader().pack()[4:5] == b"\x01"
    assert FrameHeader().nbytes == 6
    assert FrameHeader(model_id=b"12345678").pack()[5:14] == b"\xff12345678"
    flags = [FrameHeader(0).flags, FrameHeader(model_id=1).flags, FrameHeader(has_index=True).flags]
    assert flags == [Flag.CONTENT_SIZE, Flag.MODEL, Flag.INDEX] == [1 << 4, 1 << 5, 1 << 6]


@given(headers, st.binary(max_size=4))
def test_frame_header_roundtrip(header: FrameHeader, after: bytes) -> None:
    packed = header.pack()
    assert len(packed) == header.nbytes <= frame.MAX_FRAME_HEADER_NBYTES
    assert frame.parse_header(packed + after) == header
    for cut in range(len(packed)):
        assert frame.parse_header(packed[:cut]) is None


def sealed(text: str) -> bytes:
    """A frame header of these bytes, its crc8 right."""
    data = bytes.fromhex(text)
    return data + bytes([frame.crc8(data)])


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\x1f\x8b\x08\x00", BadMagic, "1F 8B 08 00"),
        (b"\xb6", BadMagic, "B5 4C 4D 5A"),
        (b"\xb5LMX\x02", BadMagic, "58"),  # the magic is looked at before the version
        (bytes.fromhex("b54c4d5a0200"), Unsupported, "version 2"),  # the version before the crc8
        (bytes.fromhex("b54c4d5a8100"), Corrupt, "check"),  # the crc8 before the reserved flag
        (sealed("b54c4d5a81") + b"\1", Corrupt, "1 bytes of extension fields, expected 2 to 65536"),
        (sealed("b54c4d5a2100"), Unsupported, "model number 0"),
        (sealed("b54c4d5a2180"), Unsupported, "model number 128"),
        (sealed("b54c4d5a21fe"), Unsupported, "model number 254"),
        (sealed("b54c4d5a118000"), Corrupt, "2 bytes that fits 1"),
        (sealed("b54c4d5a11" + "ff" * 9 + "01"), Corrupt, "more than 9 bytes"),
    ],
)
def test_frame_header_errors(data: bytes, error: type[LmcodecError], text: str) -> None:
    with pytest.raises(error, match=text):
        frame.parse_header(data)


def test_what_follows_a_frame_is_named_by_its_offset() -> None:
    with pytest.raises(BadMagic, match=r"offset 77: .* found 00 00"):
        frame.parse_header(b"\0\0", 77)


# Section 2.2


def test_block_header_bytes() -> None:
    block = Block(Method.CM, 300, 200, profile=2, streams=4, groups=2, last=True, continues=True)
    packed = block.pack(b"original", b"payload")
    assert replace(block, enlarge=3).head() == packed[:1] + bytes([2 | 3 << 5]) + packed[2:7]
    assert packed[0] == 2 | 1 << 3 | 1 << 4  # method, LAST, CONTINUES
    assert packed[1] == 2  # profile
    assert packed[2] == 3 | 1 << 7  # B - 1, G - 1
    assert packed[3:5] == frame.pack_varint(299)
    assert packed[5:7] == frame.pack_varint(200)
    assert packed[7:11] == zlib.crc32(b"original" + packed[:7] + b"payload").to_bytes(4, "little")
    assert packed[11:] == b"payload"
    assert block.header_nbytes == 11
    assert block.nbytes == 211

    stored = Block(Method.STORED, 3, 3).pack(b"abc", b"abc")
    assert stored[:2] == b"\x01\x02"
    assert stored[2:6] == zlib.crc32(b"abc\x01\x02abc").to_bytes(4, "little")
    assert stored[6:] == b"abc"

    end = Block(Method.END, last=True).pack()
    assert end == b"\x08" + zlib.crc32(b"\x08").to_bytes(4, "little")


@given(blocks(), st.binary(max_size=4))
def test_block_header_roundtrip(block: Block, after: bytes) -> None:
    packed = block.head() + block.check.to_bytes(4, "little")
    assert len(packed) == block.header_nbytes <= frame.MAX_BLOCK_HEADER_NBYTES
    assert frame.parse_block(packed + after, "", has_model=True) == block
    for cut in range(len(packed)):
        assert frame.parse_block(packed[:cut], "", has_model=True) is None


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        ("06", Unsupported, "06"),  # methods 6 and 7
        ("07", Unsupported, "07"),
        ("41", Unsupported, "41"),  # reserved bits
        ("82", Unsupported, "82"),
        ("03", Corrupt, "model"),  # a frame without the MODEL field
        ("04", Corrupt, "model"),
        ("00", Corrupt, "not the last"),  # LAST MUST be set in an end block
        ("18", Corrupt, "end continues"),
        ("11", Corrupt, "stored continues"),
        ("15", Corrupt, "tensor continues"),
        ("25", Corrupt, "tensor in a chain"),
        ("05 09 0a", Corrupt, "payload size 10, original size 10"),
        ("0200", Unsupported, "profile 0"),
        ("02ff", Unsupported, "profile 31"),
        ("0281", Unsupported, "2\\^4 times the profile's, .* 2\\^3"),
        ("0201 04", Corrupt, "5 streams"),  # method cm allows B <= 4
        ("0201 80", Corrupt, "2 groups"),  # G <= B
        ("01 80808008", Corrupt, "16777217, expected 1 to 16777216"),
        ("01 ffffffff", Corrupt, "more than 4 bytes"),
        ("01 8000", Corrupt, "2 bytes that fits 1"),
        ("0201 03 02", Corrupt, "size 3, expected 4"),  # section 3: B MUST NOT exceed n
        ("0201 00 09 0a", Corrupt, "payload size 10, original size 10"),
        ("0201 00 09 8000", Corrupt, "2 bytes that fits 1"),
    ],
)
def test_block_header_errors_are_raised_as_soon_as_they_show(
    start: str, error: type[LmcodecError], text: str
) -> None:
    data = bytes.fromhex(start)
    with pytest.raises(error, match=f"block 9.*{text}"):
        frame.parse_block(data, "block 9")
    for cut in range(len(data)):
        assert frame.parse_block(data[:cut], "") is None


@given(st.binary(max_size=30), st.booleans())
def test_what_is_parsed_is_what_is_packed(data: bytes, has_model: bool) -> None:
    """Every value has one representation, and no input makes a parser fail in another way."""
    try:
        header = frame.parse_header(frame.MAGIC + b"\x71" + data)
        assert header is None or (frame.MAGIC + b"\x71" + data).startswith(header.pack())
    except LmcodecError:
        pass
    try:
        block = frame.parse_block(data, "", has_model=has_model)
        assert block is None or data.startswith(block.head() + block.check.to_bytes(4, "little"))
    except LmcodecError:
        pass


# Rules between blocks


def cm(**changes: Any) -> Block:
    fields: dict[str, Any] = {
        "original_nbytes": 100,
        "payload_nbytes": 50,
        "profile": 2,
        "streams": 2,
        "groups": 1,
    }
    return Block(Method.CM, **(fields | changes))


@pytest.mark.parametrize(
    "before",
    [
        None,
        Block(Method.STORED, 100, 100),
        cm(profile=1),
        cm(streams=3),
        cm(groups=2),
        cm(enlarge=1),
    ],
)
def test_continues_needs_a_predecessor_coded_alike(before: Block | None) -> None:
    walk = FrameWalk(FrameHeader())
    if before is not None:
        walk.admit(before, "")
    with pytest.raises(Corrupt, match="block 2: continues"):
        walk.admit(cm(continues=True), "block 2")
    walk = FrameWalk(FrameHeader())
    walk.admit(cm(), "")
    walk.admit(cm(continues=True, original_nbytes=7), "")
    assert (walk.n_block, walk.original_nbytes, walk.ended) == (2, 107, False)


def test_content_size_is_checked_as_soon_as_it_is_exceeded() -> None:
    walk = FrameWalk(FrameHeader(content_size=150))
    walk.admit(cm(), "")
    with pytest.raises(Corrupt, match=r"200 bytes, .* 150"):
        walk.admit(cm(), "")
    with pytest.raises(Corrupt, match=r"100 bytes, .* 150"):
        FrameWalk(FrameHeader(content_size=150)).admit(cm(last=True), "")
    walk = FrameWalk(FrameHeader(content_size=100))
    walk.admit(cm(last=True), "")
    assert walk.ended


# Section 2.3


def test_index_bytes() -> None:
    walk = FrameWalk(FrameHeader(content_size=300, has_index=True))
    walk.admit(cm(original_nbytes=300), "")
    walk.admit(Block(Method.END, last=True), "")
    index = bytes([8, 2])  # size of the frame header, blocks
    index += bytes([60]) + frame.pack_varint(300)  # block: 10 and 50 bytes
    index += bytes([5, 0])  # end block
    assert walk.tail() == (
        index + zlib.crc32(index).to_bytes(4, "little") + len(index).to_bytes(4, "little") + b"ZML\xb5"
    )
    assert FrameWalk(FrameHeader()).tail() == b""
    resumed = FrameWalk.resumed(walk.header, [(60, 300)])
    resumed.admit(Block(Method.END, last=True), "")
    assert resumed.tail() == walk.tail()


@given(sizes, st.lists(st.tuples(sizes, sizes), min_size=1, max_size=5))
def test_index_roundtrip(header_nbytes: int, entries: list[tuple[int, int]]) -> None:
    packed = frame.pack_index(
        header_nbytes, len(entries), b"".join(frame.pack_varint(n) for pair in entries for n in pair)
    )
    assert frame.parse_footer(packed[-frame.FOOTER_NBYTES :]) == len(packed) - frame.FOOTER_NBYTES
    assert frame.parse_index(packed) == frame.Index(header_nbytes, entries)
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            frame.parse_index(bytes(damaged))


@pytest.mark.parametrize("numbers", [[], [8, 0], [8, 2, 61, 300], [8, 1, 61], [8, 1, 61, 300, 5]])
def test_index_of_another_shape(numbers: list[int]) -> None:
    index = b"".join(map(frame.pack_varint, numbers))
    footer = zlib.crc32(index).to_bytes(4, "little") + len(index).to_bytes(4, "little") + frame.FOOTER_MAGIC
    with pytest.raises(Corrupt, match="index at offset 3"):
        frame.parse_index(index + footer, 3)
