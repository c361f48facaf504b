"""Shards and reader: nothing is lost, every token once an epoch, the same windows after a resume."""

from __future__ import annotations

import lzma
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from lmcodec.errors import (
    BadMagic,
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    Truncated,
)
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train import shards
from lmcodec.train.corpus import CATEGORIES, VALIDATION_SHARE, category_files, document_hash, documents


@pytest.fixture(scope="module")
def folder(tiny_corpora: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    lines = list(shards.prepare(vocabulary, out, corpora=tiny_corpora, processes=2))
    assert len(lines) == len(CATEGORIES)
    assert all("bytes/token" in line for line in lines)
    return out


WEIGHTS = dict.fromkeys(CATEGORIES, 1.0)


def make_reader(
    folder: Path, vocabulary: Vocabulary, weights: dict[str, float], **changes: int
) -> shards.Reader:
    corpus = shards.load(folder, vocabulary, weights)
    size = len(vocabulary)
    options = {"n_lane": 4, "n_position": 64, "seed": 7} | changes
    return shards.Reader(corpus, weights, bos=size, mid=size + 1, **options)


def test_shards_hold_the_documents_and_their_place(
    folder: Path, tiny_corpora: Path, vocabulary: Vocabulary
) -> None:
    corpus = shards.load(folder, vocabulary, WEIGHTS)
    for category, docs in corpus.items():
        originals = [d for p in category_files(category, tiny_corpora) for d in documents(p)]
        assert docs.n_byte == sum(map(len, originals))
        for i, original in enumerate(originals):
            assert vocabulary.restore(docs.tokens[docs.start[i] : docs.start[i + 1]]) == original
            assert docs.validation[i] == (document_hash(original) < VALIDATION_SHARE)


def test_one_epoch_reads_every_training_token_once(folder: Path, vocabulary: Vocabulary) -> None:
    weights = {"tech_docs": 1.0}
    reader = make_reader(folder, vocabulary, weights, n_lane=1, n_position=50)
    docs = shards.load(folder, vocabulary, weights)["tech_docs"]
    expected = np.concatenate(
        [docs.tokens[docs.start[i] : docs.start[i + 1]] for i in np.flatnonzero(~docs.validation)]
    )
    seen: list[np.ndarray] = []
    while sum(map(len, seen)) < len(expected):
        seen.append(reader.next().targets[:, 0])
    counts = np.bincount(np.concatenate(seen)[: len(expected)], minlength=len(vocabulary))
    assert counts.tolist() == np.bincount(expected, minlength=len(vocabulary)).tolist()


def test_inputs_are_the_targets_before(folder: Path, vocabulary: Vocabulary) -> None:
    reader = make_reader(folder, vocabulary, WEIGHTS)
    size = len(vocabulary)
    last = None
    for _ in range(30):
        w = reader.next()
        inside = ~w.begins
        assert (w.inputs[1:][inside[1:]] == w.targets[:-1][inside[1:]]).all()
        assert np.isin(w.inputs[w.begins], (size, size + 1)).all()
        if last is not None:
            assert (w.inputs[0][inside[0]] == last[inside[0]]).all()
        last = w.targets[-1]


def test_categories_follow_their_weights(folder: Path, vocabulary: Vocabulary) -> None:
    weights = {"english_books": 3.0, "structured": 1.0}
    reader = make_reader(folder, vocabulary, weights)
    counts = np.zeros(2)
    for _ in range(400):
        w = reader.next()
        counts += np.bincount(w.category.reshape(-1), vocabulary.nbytes[w.targets.reshape(-1)], minlength=2)
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.02)


def test_restored_reader_gives_the_same_windows(folder: Path, vocabulary: Vocabulary) -> None:
    reader = make_reader(folder, vocabulary, WEIGHTS)
    for _ in range(137):  # past the first epoch of the tiny corpus
        reader.next()
    state = reader.state()
    other = make_reader(folder, vocabulary, WEIGHTS)
    other.restore(state)
    for _ in range(50):
        a, b = reader.next(), other.next()
        for name in ("inputs", "targets", "begins", "category"):
            assert (getattr(a, name) == getattr(b, name)).all()
    with pytest.raises(ConfigError, match="lanes"):
        make_reader(folder, vocabulary, WEIGHTS, n_lane=3).restore(state)


def test_validation_windows_cover_held_out_documents_only(folder: Path, vocabulary: Vocabulary) -> None:
    corpus = shards.load(folder, vocabulary, WEIGHTS)
    for docs in corpus.values():
        windows, counts = shards.validation_windows(
            docs, vocabulary.nbytes, bos=len(vocabulary), n_lane=2, n_position=32, n_byte=10**6, category=0
        )
        held = [docs.tokens[docs.start[i] : docs.start[i + 1]] for i in np.flatnonzero(docs.validation)]
        found = [w.targets[c] for w, c in zip(windows, counts, strict=True)]
        got = np.sort(np.concatenate([*found, np.zeros(0, int)]))
        assert got.tolist() == np.sort(np.concatenate([*held, np.zeros(0, int)])).tolist()


def test_shard_of_another_vocabulary_is_refused(folder: Path) -> None:
    other = Vocabulary([bytes([b]) for b in range(256)])
    with pytest.raises(ModelNotFound, match="shard of vocabulary"):
        shards.load(folder, other, WEIGHTS)


def test_missing_corpus_and_missing_shards_are_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(ModelNotFound, match="LMCODEC_CORPORA"):
        list(shards.prepare(vocabulary, tmp_path / "out", corpora=tmp_path))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelNotFound, match="lmcodec train prepare"):
        shards.load(tmp_path, vocabulary, WEIGHTS)


def test_damaged_shards_are_refused(folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    source = next(folder.glob("structured-*"))
    whole = source.read_bytes()
    path = tmp_path / source.name
    for i in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[i] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(LmcodecError):
            shards.parse_shard(path, vocabulary)
        path.write_bytes(whole[:i])
        with pytest.raises(LmcodecError):
            shards.parse_shard(path, vocabulary)
    body = lzma.decompress(whole)
    for name in ("n_document", "n_token", "n_byte"):
        for value in (b"-2", b"1e999", b"99999999999999", b"true", b"null"):
            head, rest = body[12:].split(b"}", 1)
            head = re.sub(rb'("%s": )\d+' % name.encode(), rb"\g<1>" + value, head) + b"}"
            path.write_bytes(lzma.compress(body[:8] + struct.pack("<I", len(head)) + head + rest))
            with pytest.raises(LmcodecError):
                shards.parse_shard(path, vocabulary)
    path.write_bytes(whole + b"more")
    with pytest.raises(Corrupt, match="4 bytes follow"):
        shards.parse_shard(path, vocabulary)
    path.write_bytes(lzma.compress(bytes(56_000_000), preset=0))
    with pytest.raises(LimitExceeded, match="unpacks to at most"):
        shards.parse_shard(path, vocabulary)
    for content, error in (
        (b"LMSHARD9" + body[8:], BadMagic),
        (body[:-2], Truncated),
        (body[:12] + b"{]" + body[14:], Corrupt),
        (body[:-2] + b"\xff\xff", Corrupt),
    ):
        path.write_bytes(lzma.compress(content))
        with pytest.raises(error):
            shards.parse_shard(path, vocabulary)


def test_damaged_corpus_is_named(tiny_corpora: Path, tmp_path: Path) -> None:
    source = category_files("html_pages", tiny_corpora)[0]
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(Corrupt, match=source.name):
        list(documents(path))
