"""Vocabulary: any bytes are restored, the kernel equals its definition, files are checked."""

from __future__ import annotations

import copy
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import make_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from lmcodec.errors import BadMagic, Corrupt, LimitExceeded, LmcodecError, ModelNotFound, Truncated
from lmcodec.lm.vocab import MAGIC, Vocabulary

# Strings that overlap, nest and leave gaps between a prefix and its longest extension.
TRICKY = make_vocabulary(
    [b"ab", b"abcde", b"bc", b"bcd", b"aaaa", b"\xff\xff", b"\xff\xff\xff", b"\x00\x00", b"e\xcc\x81"]
)
alphabet = st.sampled_from(list(b"abcde\xff\x00\xcc\x81"))
texts = st.binary(max_size=300) | st.lists(alphabet, max_size=300).map(bytes)


def check_segmentation(vocabulary: Vocabulary, data: bytes) -> None:
    tokens = vocabulary.segment(data)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == vocabulary.segment_reference(data).tolist()
    assert vocabulary.restore(tokens) == data


@given(texts)
def test_any_bytes_are_restored_and_kernel_equals_definition(data: bytes) -> None:
    check_segmentation(TRICKY, data)


@given(texts)
def test_shipped_vocabulary(data: bytes) -> None:
    check_segmentation(Vocabulary.load(), data)


def test_longest_match_backs_up_to_the_last_token() -> None:
    # "abcd" is a path of the trie towards "abcde" but no token: the longest token is "ab".
    assert [TRICKY.strings[t] for t in TRICKY.segment(b"abcdabcde")] == [b"ab", b"c", b"d", b"abcde"]


def test_real_files_are_restored(dev_corpus: Path) -> None:
    vocabulary = Vocabulary.load()
    for path in sorted(dev_corpus.iterdir()):
        data = path.read_bytes()
        assert vocabulary.restore(vocabulary.segment(data)) == data
        check_segmentation(vocabulary, data[:2000])


def test_any_buffer_is_accepted() -> None:
    expected = TRICKY.segment(b"abcabc").tolist()
    for buffer in (bytearray(b"abcabc"), memoryview(b"abcabc"), np.frombuffer(b"abcabc", np.uint8)):
        assert TRICKY.segment(buffer).tolist() == expected
    assert TRICKY.segment(b"").tolist() == []


@given(st.binary(max_size=4))
def test_prefix_range_is_the_span_of_tokens_with_the_prefix(prefix: bytes) -> None:
    low, high = TRICKY.prefix_range(prefix)
    assert [i for i, s in enumerate(TRICKY.strings) if s.startswith(prefix)] == list(range(low, high))


def test_restore_refuses_a_token_out_of_range() -> None:
    with pytest.raises(Corrupt, match="outside the vocabulary"):
        TRICKY.restore(np.array([len(TRICKY)], dtype=np.uint32))


def test_restore_refuses_a_negative_token() -> None:
    with pytest.raises(Corrupt, match="token -1 is outside"):
        TRICKY.restore(np.array([3, -1]))


def test_a_used_vocabulary_travels_to_other_processes() -> None:
    TRICKY.segment(b"x")
    assert copy.deepcopy(TRICKY).segment(b"abcde").tolist() == TRICKY.segment(b"abcde").tolist()


def test_the_shipped_vocabulary_is_frozen() -> None:
    """Models and frames depend on it: another one is another format."""
    assert (len(Vocabulary.load()), Vocabulary.load().vocab_id) == (6144, "e61c9cd8e8ed10b8")


def test_strings_beyond_the_limit_are_refused() -> None:
    strings = {bytes([b]) for b in range(256)} | {b"%05d" % i + b"x" * 8000 for i in range(2200)}
    with pytest.raises(LimitExceeded):
        Vocabulary(sorted(strings))


def test_pack_and_parse() -> None:
    parsed = Vocabulary.parse(TRICKY.pack())
    assert parsed == TRICKY
    assert parsed.vocab_id == TRICKY.vocab_id
    assert hash(parsed) == hash(TRICKY)


def test_every_flipped_bit_and_truncation_is_refused() -> None:
    packed = TRICKY.pack()
    for i in range(len(packed)):
        damaged = bytearray(packed)
        damaged[i] ^= 1 << (i % 8)
        with pytest.raises(LmcodecError):
            Vocabulary.parse(bytes(damaged))
        with pytest.raises((Truncated, BadMagic)):
            Vocabulary.parse(packed[:i])
    with pytest.raises(Corrupt, match="after its digest"):
        Vocabulary.parse(packed + b"\0")


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ([bytes([b]) for b in range(255)] + [b"\xfe\xfe"], "single byte 0xff"),
        ([bytes([b]) for b in range(256)] + [b"\xff"], "does not come after"),
        ([bytes([b]) for b in range(256)] + [b"a"], "does not come after"),
    ],
)
def test_a_well_sealed_file_that_breaks_a_rule_is_refused(strings: list[bytes], message: str) -> None:
    body = MAGIC + struct.pack("<I", len(strings)) + bytes(map(len, strings)) + b"".join(strings)
    with pytest.raises(Corrupt, match=message):
        Vocabulary.parse(sealed(body))


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"none\.lmv"):
        Vocabulary.load(tmp_path / "none.lmv")
    path = tmp_path / "bad.lmv"
    path.write_bytes(b"something else entirely")
    with pytest.raises(BadMagic, match=r"bad\.lmv"):
        Vocabulary.load(path)


def test_the_kernel_checks_its_arguments() -> None:
    from lmcodec._kernel import Segmenter

    strings = np.arange(256, dtype=np.uint8)
    offsets = np.arange(257, dtype=np.uint32)
    segmenter = Segmenter(strings, offsets)
    with pytest.raises(ValueError, match="room"):
        segmenter.segment(np.zeros(4, np.uint8), np.zeros(3, np.uint32))
    bad = offsets.copy()
    bad[7] = bad[8]
    for wrong in (offsets[:-1], bad, offsets[:1], offsets + np.uint32(1)):
        with pytest.raises(ValueError, match=r"offsets|tokens|single byte"):
            Segmenter(strings, wrong)


def many_strings(n_token: int) -> list[bytes]:
    """All single bytes, and strings of three bytes."""
    more = (bytes([97 + i % 26, i // 26 % 256, i // 6656]) for i in range(n_token - 256))
    return sorted({bytes([b]) for b in range(256)} | set(more))


@pytest.mark.parametrize(
    "strings",
    [
        many_strings(65_537),
        sorted({*many_strings(300), b"x" * 256, b"y" * 65_535}),
        sorted({*many_strings(300), *(bytes([65 + i % 26]) * (2 + i // 26) for i in range(6000))}),
    ],
    ids=["more tokens", "longer ones", "more bytes"],
)
def test_large_vocabularies_have_a_layout_of_their_own(strings: list[bytes]) -> None:
    large = Vocabulary(strings)
    packed = large.pack()
    assert packed[:8] == b"LMVOCAB2"
    assert Vocabulary.parse(packed) == large
    text = b"".join(strings[-40:]) + b"yyxxab" + b"y" * 70_000
    tokens = large.segment(text)
    assert (tokens == large.segment_reference(text)).all()
    assert large.restore(tokens) == text
    for damaged, error in ((packed[:-1], Truncated), (packed + b"x", Corrupt), (packed[:300], Truncated)):
        with pytest.raises(error):
            Vocabulary.parse(damaged)


def test_a_small_vocabulary_has_one_layout() -> None:
    body = Vocabulary(many_strings(300)).pack()[:-32]
    count, lengths, strings = body[8:12], body[12:312], body[312:]
    wide = b"LMVOCAB2" + count + np.frombuffer(lengths, np.uint8).astype("<u2").tobytes() + strings
    with pytest.raises(Corrupt, match="large layout that fits the small one"):
        Vocabulary.parse(wide + hashlib.sha256(wide).digest())
