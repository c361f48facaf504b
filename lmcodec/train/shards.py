"""Token shards: the corpora segmented once, so that a machine that trains never segments text.

`prepare` writes them, `load` reads them into memory, `Reader` samples windows from them. `deal` and `write`
cut them into parts for a machine to which little can be brought at a time.

A shard is an xz stream of: magic ``LMSHARD1`` · header length (uint32, little-endian) · header (JSON:
category, vocab_id, vocab_size, n_document, n_token, n_byte) · document lengths in tokens (n_document uint32)
· validation flags (n_document uint8) · tokens (n_token uint16). At most `MAX_SHARD_TOKENS` tokens keep a
shard below 55 MB even if xz gains nothing.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lmcodec.errors import BadMagic, ConfigError, Corrupt, LimitExceeded, ModelNotFound, Truncated
from lmcodec.lm.vocab import Vocabulary
from lmcodec.train.corpus import CATEGORIES, VALIDATION_SHARE, category_files, document_hash, documents

MAGIC = b"LMSHARD1"
SUFFIX = ".lms.xz"
MAX_SHARD_TOKENS = 24_000_000
MAX_SHARD_NBYTES = 55_000_000  # unpacked; a document of more than that many bytes has no place in a corpus
_MAX_FILE_NBYTES = MAX_SHARD_NBYTES + (1 << 20)  # xz adds little to what it cannot pack
_MAX_HEADER_NBYTES = 1 << 16
_XZ_NBYTES = 68 << 20  # what unpacking takes at most; the largest preset asks for 65 MiB


@dataclass
class Documents:
    """The documents of one category.

    Attributes:
        tokens: (n_token,) uint16, all documents one after another.
        start: (n_document + 1,) int64, where each document begins.
        validation: (n_document,) bool, held out of training.
        n_byte: bytes of text in all.
    """

    tokens: np.ndarray
    start: np.ndarray
    validation: np.ndarray
    n_byte: int

    @property
    def bytes_per_token(self) -> float:
        return self.n_byte / max(len(self.tokens), 1)

    def fingerprint(self) -> str:
        """Of the text and its validation choice, for telling whether a checkpoint was made with the same."""
        state = zlib.crc32(self.start.tobytes(), zlib.crc32(np.packbits(self.validation).tobytes()))
        return f"{len(self.tokens)}-{zlib.crc32(self.tokens.tobytes(), state):08x}"


def prepare(
    vocabulary: Vocabulary,
    out: Path,
    *,
    corpora: Path | None = None,
    preset: int = 0,
    processes: int | None = None,
) -> Iterator[str]:
    """Segment every category and write its shards to `out`; yields a line of report per category.

    Raises:
        ModelNotFound: if a corpus is missing; nothing is written then.
    """
    for category in CATEGORIES:
        category_files(category, corpora)
    out.mkdir(parents=True, exist_ok=True)
    n_process = processes or os.cpu_count() or 1
    with ProcessPoolExecutor(n_process) as pool:
        jobs = [pool.submit(_prepare_category, vocabulary, c, out, corpora, preset) for c in CATEGORIES]
        for job in jobs:
            yield job.result()


def _prepare_category(
    vocabulary: Vocabulary, category: str, out: Path, corpora: Path | None, preset: int
) -> str:
    parts: list[np.ndarray] = []
    flags: list[bool] = []
    n_shard = n_byte = total_byte = total_token = n_held = 0

    def write() -> int:
        nonlocal parts, flags, n_byte
        header = {
            "category": category,
            "vocab_id": vocabulary.vocab_id,
            "vocab_size": len(vocabulary),
            "n_document": len(parts),
            "n_token": sum(map(len, parts)),
            "n_byte": n_byte,
        }
        body = pack_shard(header, parts, flags)
        temporary = out / f"{category}-{n_shard:02d}.tmp"
        temporary.write_bytes(lzma.compress(body, preset=preset))
        parts, flags, n_byte = [], [], 0
        return temporary.stat().st_size

    compressed = 0
    waiting = 0
    for path in category_files(category, corpora):
        for document in documents(path):
            tokens = vocabulary.segment(document)
            if len(tokens) > MAX_SHARD_TOKENS:
                raise LimitExceeded(
                    f"{path}: a document has {len(tokens):,} tokens, at most {MAX_SHARD_TOKENS:,}"
                )
            if waiting + len(tokens) > MAX_SHARD_TOKENS:
                compressed += write()
                n_shard += 1
                waiting = 0
            parts.append(tokens)
            flags.append(document_hash(document) < VALIDATION_SHARE)
            n_held += flags[-1]
            n_byte += len(document)
            total_byte += len(document)
            total_token += len(tokens)
            waiting += len(tokens)
    if not total_token:
        raise Corrupt(f"{category_files(category, corpora)[0]}: no document in category '{category}'")
    compressed += write()
    # The old shards stay until the new ones are complete.
    for stale in out.glob(f"{category}-*{SUFFIX}"):
        stale.unlink()
    for i in range(n_shard + 1):
        (out / f"{category}-{i:02d}.tmp").replace(out / f"{category}-{i:02d}{SUFFIX}")
    return (
        f"{category:14s} {total_byte:>11,} bytes {total_token:>11,} tokens "
        f"{total_byte / total_token:5.3f} bytes/token {n_held:>4} documents held out "
        f"{n_shard + 1} shards {compressed:>11,} bytes"
    )


def pack_shard(header: Mapping[str, Any], parts: list[np.ndarray], validation: list[bool]) -> bytes:
    """The bytes of a shard before xz."""
    head = json.dumps(dict(header), sort_keys=True).encode()
    lengths = np.array([len(p) for p in parts], dtype="<u4")
    tokens = np.concatenate(parts).astype("<u2") if parts else np.zeros(0, "<u2")
    return b"".join(
        (
            MAGIC,
            struct.pack("<I", len(head)),
            head,
            lengths.tobytes(),
            np.array(validation, dtype=np.uint8).tobytes(),
            tokens.tobytes(),
        )
    )


def parse_shard(path: Path, vocabulary: Vocabulary) -> tuple[str, Documents]:
    """Category and documents of the shard at `path`.

    Raises:
        BadMagic, Corrupt, Truncated: the file is no shard, or a damaged one.
        ModelNotFound: the shard was segmented with another vocabulary.
    """
    data = _decompress(path)
    if data[: len(MAGIC)] != MAGIC:
        raise BadMagic(f"{path}: not a token shard: begins with {data[:8]!r}, expected {MAGIC!r}")
    try:
        (n_head,) = struct.unpack_from("<I", data, len(MAGIC))
        if n_head > _MAX_HEADER_NBYTES:
            raise ValueError(f"{n_head} bytes, at most {_MAX_HEADER_NBYTES}")
        offset = len(MAGIC) + 4 + n_head
        header = json.loads(data[len(MAGIC) + 4 : offset])
        n_document, n_token, n_byte = (_count(header[k]) for k in ("n_document", "n_token", "n_byte"))
        category, vocab_id = str(header["category"]), str(header["vocab_id"])
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{path}: unreadable shard header: {error!r}") from None
    if vocab_id != vocabulary.vocab_id:
        raise ModelNotFound(
            f"{path}: shard of vocabulary {vocab_id}, but the vocabulary in use is {vocabulary.vocab_id}; "
            "run 'lmcodec train prepare' with it"
        )
    if len(data) != offset + 5 * n_document + 2 * n_token:
        raise Truncated(f"{path}: shard has {len(data)} bytes, its header promises another number")
    lengths = np.frombuffer(data, "<u4", n_document, offset)
    flags = np.frombuffer(data, np.uint8, n_document, offset + 4 * n_document)
    tokens = np.frombuffer(data, "<u2", n_token, offset + 5 * n_document)
    start = np.zeros(n_document + 1, dtype=np.int64)
    np.cumsum(lengths, out=start[1:])
    if start[-1] != n_token or (n_document and int(lengths.min()) < 1):
        raise Corrupt(f"{path}: the shard's document lengths do not add up")
    if n_token and int(tokens.max()) >= len(vocabulary):
        raise Corrupt(f"{path}: the shard holds a token outside the vocabulary")
    if int(vocabulary.nbytes[tokens].sum(dtype=np.int64)) != n_byte:
        raise Corrupt(f"{path}: the shard's tokens do not have the {n_byte} bytes that its header promises")
    return category, Documents(tokens, start, flags.astype(bool), n_byte)


def _decompress(path: Path) -> bytes:
    """The bytes of the one xz stream in `path`, at most what a shard may have."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_NBYTES)
    with open(path, "rb") as file:
        packed = file.read(_MAX_FILE_NBYTES + 1)
    if len(packed) > _MAX_FILE_NBYTES:
        raise LimitExceeded(f"{path}: a shard has at most {_MAX_FILE_NBYTES} bytes, this file has more")
    try:
        data = decompressor.decompress(packed, MAX_SHARD_NBYTES + 1)
    except lzma.LZMAError as error:
        raise Corrupt(f"{path}: damaged shard: {error}; run 'lmcodec train prepare' again") from None
    if len(data) > MAX_SHARD_NBYTES:
        raise LimitExceeded(f"{path}: a shard unpacks to at most {MAX_SHARD_NBYTES} bytes, this one to more")
    if not decompressor.eof:
        raise Truncated(f"{path}: the shard ends early; run 'lmcodec train prepare' again")
    if decompressor.unused_data:
        raise Corrupt(f"{path}: {len(decompressor.unused_data)} bytes follow the shard's xz stream")
    return data


def _count(value: object) -> int:
    """A number of things from a header: a plain integer from 0 to 2^40."""
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} is no count")
    return value


def load(
    folders: Path | Sequence[Path], vocabulary: Vocabulary, categories: Mapping[str, float]
) -> dict[str, Documents]:
    """All shards of the named categories.

    Args:
        folders: one, or several that hold parts of the text; their documents follow in this order.
        vocabulary: that the shards were segmented with.
        categories: that are wanted. One folder may lack a category, not all of them.

    Raises:
        ModelNotFound: if a category has no shard there, or one of another vocabulary.
        ConfigError: if no folder is named, or one twice.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    where = ", ".join(map(str, folders))
    if not folders:
        raise ConfigError("no folder of token shards is named")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"{where}: a folder of token shards is named twice")
    paths: dict[str, list[Path]] = {}
    for category in categories:
        paths[category] = [p for f in folders for p in sorted(f.glob(f"{category}-*{SUFFIX}"))]
        if not paths[category]:
            raise ModelNotFound(
                f"{where}: no shards of category '{category}'; run 'lmcodec train prepare --out {folders[0]}'"
            )
    result = {}
    # Most of the time goes into xz, which lets other threads run.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = {c: [pool.submit(parse_shard, path, vocabulary) for path in paths[c]] for c in categories}
        try:
            for category in categories:
                pieces = []
                for path, job in zip(paths[category], jobs[category], strict=True):
                    found, piece = job.result()
                    if found != category:
                        raise Corrupt(f"{path}: shard holds category '{found}', its name says '{category}'")
                    pieces.append(piece)
                del jobs[category]
                result[category] = _join(pieces)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return result


def _join(pieces: Sequence[Documents]) -> Documents:
    starts = [np.zeros(1, dtype=np.int64)]
    for piece in pieces:
        starts.append(piece.start[1:] + starts[-1][-1])
    return Documents(
        np.concatenate([p.tokens for p in pieces]),
        np.concatenate(starts),
        np.concatenate([p.validation for p in pieces]),
        sum(p.n_byte for p in pieces),
    )


def deal(documents: Documents, shares: Sequence[float]) -> list[np.ndarray]:
    """Deal the documents that are not held out into parts at random.

    Their order is that of a hash of their content, so a part does not depend on where a document lies.

    Args:
        documents: of one category.
        shares: of the tokens, for each part. They may add up to less than 1: the rest goes nowhere.

    Returns:
        for each part the numbers of its documents, ascending.
    """
    numbers = np.flatnonzero(~documents.validation)
    bounds = documents.start[numbers], documents.start[numbers + 1]
    hashes = [zlib.crc32(documents.tokens[a:b].tobytes()) for a, b in zip(*bounds, strict=True)]
    order = np.argsort(np.array(hashes, dtype=np.int64), kind="stable")
    numbers, lengths = numbers[order], (bounds[1] - bounds[0])[order]
    ends = np.cumsum(shares)
    if len(ends) and ends[-1] > 1 - 1e-9:
        ends[-1] = np.inf
    # A document belongs to the part in which its middle lies.
    middle = (np.cumsum(lengths) - lengths / 2) / max(int(lengths.sum()), 1)
    part = np.searchsorted(ends, middle, side="right")
    return [np.sort(numbers[part == k]) for k in range(len(ends))]


def select(documents: Documents, numbers: np.ndarray, vocabulary: Vocabulary) -> Documents:
    """The documents of these numbers, in this order."""
    pieces = [documents.tokens[documents.start[i] : documents.start[i + 1]] for i in numbers]
    start = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(p) for p in pieces], out=start[1:])
    tokens = np.concatenate(pieces) if pieces else documents.tokens[:0]
    n_byte = int(vocabulary.nbytes[tokens].sum(dtype=np.int64))
    return Documents(tokens, start, documents.validation[numbers], n_byte)


def write(
    folder: Path, category: str, documents: Documents, vocabulary: Vocabulary, preset: int = 6
) -> list[Path]:
    """Write the documents of a category to `folder`, which must be there, as shards; none if there are none.

    Returns:
        the files, whose names are numbered from 00.
    """
    paths: list[Path] = []
    first = 0
    while first < len(documents.validation):
        # As many documents as a shard may have tokens, one at least.
        most = int(documents.start[first]) + MAX_SHARD_TOKENS
        end = max(first + 1, int(np.searchsorted(documents.start, most, side="right")) - 1)
        bounds = documents.start[first : end + 1].tolist()
        parts = [documents.tokens[a:b] for a, b in pairwise(bounds)]
        header = {
            "category": category,
            "vocab_id": vocabulary.vocab_id,
            "vocab_size": len(vocabulary),
            "n_document": len(parts),
            "n_token": bounds[-1] - bounds[0],
            "n_byte": int(vocabulary.nbytes[documents.tokens[bounds[0] : bounds[-1]]].sum(dtype=np.int64)),
        }
        body = pack_shard(header, parts, documents.validation[first:end].tolist())
        paths.append(folder / f"{category}-{len(paths):02d}{SUFFIX}")
        paths[-1].write_bytes(lzma.compress(body, preset=preset))
        first = end
    return paths


@dataclass
class Window:
    """T consecutive positions of B lanes.

    Attributes:
        inputs: (T, B) int32, the token before each target; `bos` or `mid` where a piece begins.
        targets: (T, B) int32.
        begins: (T, B) bool, where a piece begins: state from before must not pass.
        category: (T, B) uint8, number of the category in the order of the weights.
    """

    inputs: np.ndarray
    targets: np.ndarray
    begins: np.ndarray
    category: np.ndarray


@dataclass
class _Lane:
    category: int
    position: int  # next target, in the category's tokens
    end: int
    begin: int  # 0 inside a piece, else 1 + (1 if it begins a document)


class Reader:
    """Windows of training text for B lanes: deterministic, and resumable at any window.

    Each epoch of a category visits every token once: documents are cut at random into pieces of 512 to 16,384
    tokens (log-uniform), the pieces are shuffled. A lane that has finished its piece takes the next one of
    the category that is furthest behind its weight, counted in bytes.

    Args:
        corpus: documents of each category.
        weights: share of each category, in bytes of text; need not sum to 1.
        bos, mid: inputs that begin a document, or a piece from inside one.
        n_lane: B.
        n_position: T.
        seed: of cuts and shuffles.
    """

    def __init__(
        self,
        corpus: Mapping[str, Documents],
        weights: Mapping[str, float],
        *,
        bos: int,
        mid: int,
        n_lane: int,
        n_position: int,
        seed: int,
    ) -> None:
        self._corpus = [corpus[c] for c in weights]
        total = sum(weights.values())
        self._share = [w / total for w in weights.values()]
        self._begin_token = (0, mid, bos)
        self._n_position = n_position
        self._seed = seed
        self._epoch = [0] * len(self._corpus)
        self._next = [0] * len(self._corpus)
        self._given = [0.0] * len(self._corpus)  # bytes handed out so far
        self._pieces: list[Any] = [None] * len(self._corpus)  # (n, 3) int64 each, from _cut
        self._lanes = [self._take() for _ in range(n_lane)]

    def _cut(self, category: int) -> np.ndarray:
        """(n, 3) int64: first token, end, whether a document begins, of this epoch's shuffled pieces."""
        rng = np.random.default_rng([self._seed, category, self._epoch[category]])
        docs = self._corpus[category]
        rows = []
        for i in np.flatnonzero(~docs.validation):
            first, end = int(docs.start[i]), int(docs.start[i + 1])
            position = first
            while position < end:
                length = int(math.exp(rng.uniform(math.log(512), math.log(16384))))
                cut = min(position + length, end)
                rows.append((position, cut, position == first))
                position = cut
        pieces = np.array(rows, dtype=np.int64).reshape(-1, 3)
        if not len(pieces):
            raise ConfigError("a category has no training documents: all of them are held out")
        return pieces[rng.permutation(len(pieces))]

    def _take(self) -> _Lane:
        total = 1 + sum(self._given)
        category = max(range(len(self._corpus)), key=lambda c: self._share[c] * total - self._given[c])
        pieces = self._pieces[category]
        if pieces is not None and self._next[category] == len(pieces):
            self._epoch[category] += 1
            self._next[category] = 0
            pieces = None
        if pieces is None:
            pieces = self._pieces[category] = self._cut(category)
        first, end, begins_document = pieces[self._next[category]].tolist()
        self._next[category] += 1
        self._given[category] += (end - first) * self._corpus[category].bytes_per_token
        return _Lane(category, first, end, 1 + begins_document)

    def next(self) -> Window:
        """The next window."""
        n_position, n_lane = self._n_position, len(self._lanes)
        inputs = np.empty((n_position, n_lane), dtype=np.int32)
        targets = np.empty((n_position, n_lane), dtype=np.int32)
        begins = np.zeros((n_position, n_lane), dtype=bool)
        category = np.empty((n_position, n_lane), dtype=np.uint8)
        for b in range(n_lane):
            t = 0
            while t < n_position:
                lane = self._lanes[b]
                n = min(n_position - t, lane.end - lane.position)
                tokens = self._corpus[lane.category].tokens
                targets[t : t + n, b] = tokens[lane.position : lane.position + n]
                inputs[t + 1 : t + n, b] = targets[t : t + n - 1, b]
                inputs[t, b] = self._begin_token[lane.begin] if lane.begin else tokens[lane.position - 1]
                begins[t, b] = lane.begin > 0
                category[t : t + n, b] = lane.category
                lane.begin = 0
                lane.position += n
                t += n
                if lane.position == lane.end:
                    self._lanes[b] = self._take()
        return Window(inputs, targets, begins, category)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue with the same windows; plain numbers and lists."""
        return {
            "epoch": list(self._epoch),
            "next": list(self._next),
            "given": list(self._given),
            "lanes": [[ln.category, ln.position, ln.end, ln.begin] for ln in self._lanes],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, with the same corpus, weights and seed."""
        n_category = len(self._corpus)
        if len(state["lanes"]) != len(self._lanes) or len(state["epoch"]) != n_category:
            raise ConfigError("the checkpoint was made with another number of lanes or categories")
        lanes = [_Lane(*lane) for lane in state["lanes"]]
        sound = len(state["next"]) == len(state["given"]) == n_category and all(
            0 <= lane.category < n_category
            and 0 <= lane.position < lane.end <= len(self._corpus[lane.category].tokens)
            and lane.begin in (0, 1, 2)
            for lane in lanes
        )
        self._epoch = list(state["epoch"])
        self._pieces = [self._cut(c) for c in range(n_category)]
        if not sound or not all(0 <= n <= len(p) for n, p in zip(state["next"], self._pieces, strict=True)):
            raise Corrupt("the checkpoint's place in the text is out of range")
        self._next = list(state["next"])
        self._given = list(state["given"])
        self._lanes = lanes


def validation_windows(
    docs: Documents,
    token_nbytes: np.ndarray,
    *,
    bos: int,
    n_lane: int,
    n_position: int,
    n_byte: int,
    category: int,
) -> tuple[list[Window], np.ndarray]:
    """Windows over the held-out documents of one category, each read from its beginning.

    No document gives more bytes than its share of `n_byte`, or 4,096 if that is more; documents are taken
    in order until `n_byte` bytes are there. Counting bytes, not tokens, keeps the text the same (to a token)
    under every vocabulary.

    Args:
        docs: of the category.
        token_nbytes: (V,) bytes of each token.
        bos: input that begins a document.
        n_lane: B.
        n_position: T.
        n_byte: bytes wanted.
        category: number of the category.

    Returns:
        the windows, and (n_window, T, B) bool, which of their positions count (lanes end unevenly).
    """
    lanes: list[list[np.ndarray]] = [[] for _ in range(n_lane)]
    sizes = [0] * n_lane
    held = np.flatnonzero(docs.validation)
    most = max(4096, n_byte // max(len(held), 1))
    taken = 0
    for i in held:
        if taken >= n_byte:
            break
        piece = docs.tokens[docs.start[i] : docs.start[i + 1]]
        ends = np.cumsum(token_nbytes[piece], dtype=np.int64)
        n_piece = int(np.searchsorted(ends, min(most, n_byte - taken), side="left")) + 1
        piece = piece[:n_piece]
        taken += int(ends[len(piece) - 1])
        b = int(np.argmin(sizes))
        lanes[b].append(piece)
        sizes[b] += len(piece)
    n_window = -(-max(sizes) // n_position)
    shape = (n_window * n_position, n_lane)
    inputs = np.zeros(shape, dtype=np.int32)
    targets = np.zeros(shape, dtype=np.int32)
    begins = np.zeros(shape, dtype=bool)
    counts = np.zeros(shape, dtype=bool)
    for b, pieces in enumerate(lanes):
        t = 0
        for piece in pieces:
            n = len(piece)
            targets[t : t + n, b] = piece
            inputs[t + 1 : t + n, b] = piece[:-1]
            inputs[t, b] = bos
            begins[t, b] = True
            counts[t : t + n, b] = True
            t += n
    split = (n_window, n_position, n_lane)
    windows = [
        Window(i, t, s, np.full((n_position, n_lane), category, np.uint8))
        for i, t, s in zip(inputs.reshape(split), targets.reshape(split), begins.reshape(split), strict=True)
    ]
    return windows, counts.reshape(split)
