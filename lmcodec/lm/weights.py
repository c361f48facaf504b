"""The model file: an integer model with its weights entropy-coded. FORMAT.md section 7.

The coding of weights: interleaved rANS (Duda, arXiv:1311.2540; interleaving: Giesen, arXiv:1402.3392) with
static tables. What a weight is conditioned on is the sum of a class of its row and a class of its column: the
logarithms of the scales of a rank-one fit of |w|. It is known before the first weight is decoded, so that all
lanes go on side by side, and static tables over it cost what an adaptive model over the neighbouring weights
does (benchmarks/model_file.py). `decode_reference` is the definition; the kernel gives the same weights and
refuses the same files.

Knows neither how a model was trained nor how it runs: that an executor answers `known` is for it to see.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from lmcodec.errors import (
    BadMagic,
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    Truncated,
    Unsupported,
)
from lmcodec.lm import tables
from lmcodec.lm.config import NetConfig
from lmcodec.lm.model import ARITHMETIC, SHAPE, IntegerModel, Layer, Linear, shapes
from lmcodec.lm.reference import compute_known_answer
from lmcodec.lm.vocab import MAX_STRINGS_NBYTES, MAX_TOKEN_NBYTES, Vocabulary

MAGIC = b"\xb5LMMODEL"
VERSION = 1
MAX_FILE_NBYTES = 256 << 20
MAX_HEADER_NBYTES = 1 << 20
MAX_WEIGHTS = 64 << 20
MAX_MIXER_NBYTES = 16 << 20

LANES = 32  # rANS states of a chunk; weight i belongs to lane i % 32
PRECISION = 12  # bits of a probability
SYMBOLS = 128  # symbol s stands for weight s - 64
MAX_CONTEXTS = 16  # of a tensor
MAX_CLASS = 63
CHUNK = 1 << 19  # weights of every chunk of a tensor but its last
LEAST_STATE = 1 << 16  # a state lies in [2^16, 2^32); where encoding begins and decoding ends
MAX_CODE = 96  # of a frequency
SECTIONS = ("vocabulary", "tables", "vectors", "mixer", "weights")

_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST_NBYTES = 32
_STATE_NBYTES = 4 * LANES
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, "lc": 0, "pb": 0}]
_STEPS = (0.125, 0.25, 0.5)  # of a class, in binary logarithms of the scale: what the encoder tries


@dataclass(frozen=True)
class CodedTensors:
    """Weights of several tensors as the file holds them.

    Attributes:
        shapes: rows, columns and contexts of each tensor.
        row_class: (sum of rows,) int8.
        column_class: (sum of columns,) int8.
        codes: (sum of contexts, 128) uint8, the frequencies' codes.
        n_word: for each tensor the number of 16-bit words of each of its chunks.
        data: (n,) uint8: of each chunk 32 states, then its words.
    """

    shapes: list[tuple[int, int, int]]
    row_class: np.ndarray
    column_class: np.ndarray
    codes: np.ndarray
    n_word: list[list[int]]
    data: np.ndarray


@dataclass(frozen=True)
class Header:
    """What a model file says of itself; its weights need not be decoded for it.

    Attributes:
        config: the network's shape.
        card: data, steps, bits per byte, licence: JSON values.
        model_id: 16 hexadecimal digits.
        known: what the self-test answers (lmcodec.lm.reference.known_answer).
        sections: bytes of each section.
        shifts: of each tensor.
        n_context: of each tensor.
        n_word: for each tensor the number of 16-bit words of each of its chunks.
        nbytes: of the whole file.
    """

    config: NetConfig
    card: dict[str, Any]
    model_id: str
    known: str
    sections: dict[str, int]
    shifts: list[int]
    n_context: list[int]
    n_word: list[list[int]]
    nbytes: int

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the canonical order."""
        return list(shapes(self.config))

    @property
    def n_weight(self) -> int:
        """Of all tensors."""
        return sum(n * k for n, k, _ in shapes(self.config).values())

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Of each tensor: its states and words, without its tables."""
        return {
            name: 8 * (_STATE_NBYTES * len(n_word) + 2 * sum(n_word)) / (n * k)
            for (name, (n, k, _)), n_word in zip(shapes(self.config).items(), self.n_word, strict=True)
        }


@dataclass(frozen=True)
class ModelFile:
    """A model file whose checksum and header hold; what its sections hold is not decoded yet.

    Attributes:
        where: what error messages begin with.
        header: what it says of itself.
    """

    where: str
    header: Header
    _sections: dict[str, memoryview] = field(repr=False)

    @property
    def mixer(self) -> bytes:
        """`IntegerModel.mixer`."""
        return bytes(self._sections["mixer"])

    def decode(self, n_thread: int = 2) -> LoadedModel:
        """The model.

        Args:
            n_thread: threads that decode weights, 1 to 64.

        Raises:
            Corrupt: a check, a bound or an order rule does not hold.
        """
        with _named(self.where):
            return _decode(self.header, self._sections, n_thread)


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its file says of it."""

    model: IntegerModel
    header: Header

    @property
    def known(self) -> str:
        """What an executor's self-test must answer."""
        return self.header.known


def pack(model: IntegerModel, known: str | None = None) -> bytes:
    """The file of a model.

    Args:
        model: what to pack.
        known: its known answer; computed by the definition if it is None.

    Raises:
        LimitExceeded: the model, its mixer or its card is larger than a file may hold.
        ConfigError: the card holds what JSON has no form for.
    """
    if model.n_weight > MAX_WEIGHTS:
        raise LimitExceeded(f"model has {model.n_weight} weights, a file holds at most {MAX_WEIGHTS}")
    if len(model.mixer) > MAX_MIXER_NBYTES:
        raise LimitExceeded(f"mixer has {len(model.mixer)} bytes, a file holds at most {MAX_MIXER_NBYTES}")
    linears = list(model.tensors().values())
    coded = encode_weights([linear.weight for linear in linears])
    side = b"".join((coded.row_class.tobytes(), coded.column_class.tobytes(), coded.codes.tobytes()))
    sections = {
        "vocabulary": _compress(_pack_vocabulary(model.vocabulary)),
        "tables": _compress(side),
        "vectors": _compress(_pack_vectors(linears, model.start)),
        "mixer": model.mixer,
        "weights": coded.data.tobytes(),
    }
    content = {
        "arithmetic": ARITHMETIC,
        "card": model.card,
        "config": {name: getattr(model.config, name) for name in SHAPE},
        "known": known or compute_known_answer(model),
        "model_id": model.model_id,
        "sections": {name: len(section) for name, section in sections.items()},
        "tables": tables.digest(),
        "tensors": [
            {"contexts": shape[2], "shift": linear.shift, "words": n_word}
            for linear, shape, n_word in zip(linears, coded.shapes, coded.n_word, strict=True)
        ],
    }
    try:
        header = _canonical(content)
        faithful = json.loads(header) == content
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the model's card is not JSON: {error}") from None
    if not faithful:
        raise ConfigError("the model's card is not JSON: a key is no string, or a list is a tuple")
    if len(header) > MAX_HEADER_NBYTES:
        raise LimitExceeded(
            f"header of {len(header)} bytes, at most {MAX_HEADER_NBYTES}: the card is too large"
        )
    nbytes = _PREFIX.size + len(header) + sum(map(len, sections.values())) + _DIGEST_NBYTES
    if nbytes > MAX_FILE_NBYTES:
        raise LimitExceeded(f"model file of {nbytes} bytes, at most {MAX_FILE_NBYTES}")
    body = b"".join((_PREFIX.pack(MAGIC, VERSION, len(header), nbytes), header, *sections.values()))
    return body + hashlib.sha256(body).digest()


def inspect(data: bytes, where: str = "model") -> Header:
    """What a model file says of itself. Checks all but the sections' content.

    Raises:
        BadMagic, Unsupported, Truncated, Corrupt: as `parse`.
    """
    return _open(data, where).header


def parse(data: bytes, where: str = "model", n_thread: int = 2) -> LoadedModel:
    """The model in a file's bytes.

    Args:
        data: the whole file.
        where: what error messages begin with.
        n_thread: threads that decode weights, 1 to 64.

    Raises:
        BadMagic: the data is no model file.
        Truncated: it ends early.
        Corrupt: a check, a bound or an order rule does not hold.
        Unsupported: it is of another version, arithmetic or shape.
    """
    return _open(data, where).decode(n_thread)


def open_file(path: str | os.PathLike[str]) -> ModelFile:
    """The file at `path`, to be decoded.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LmcodecError: as `parse`.
    """
    return _open(_read(path), os.fspath(path))


def load(path: str | os.PathLike[str], n_thread: int = 2) -> LoadedModel:
    """The model in the file at `path`.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LmcodecError: as `parse`.
    """
    return open_file(path).decode(n_thread)


def read_header(path: str | os.PathLike[str]) -> Header:
    """`inspect` of the file at `path`.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LmcodecError: as `parse`.
    """
    return open_file(path).header


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            # A file that is no model, or larger or smaller than it says, is not read to its end.
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
                return prefix
            _, _, header_nbytes, nbytes = _PREFIX.unpack(prefix)
            if header_nbytes > MAX_HEADER_NBYTES or nbytes > MAX_FILE_NBYTES:
                return prefix
            found = os.fstat(file.fileno()).st_size or nbytes  # a pipe's size is 0
            if found > nbytes:
                raise Corrupt(f"{os.fspath(path)}: {found - nbytes} bytes after the end of the file")
            return prefix + file.read(max(found - len(prefix), 0))
    except FileNotFoundError:
        raise ModelNotFound(f"{os.fspath(path)}: no such model file") from None
    except OSError as error:
        raise ModelNotFound(f"{os.fspath(path)}: cannot be read: {error.strerror}") from None


# --- the file ---


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except LmcodecError as error:
        raise type(error)(f"{where}: {error}") from None


def _open(data: bytes, where: str) -> ModelFile:
    with _named(where):
        return ModelFile(where, *_parse_header(data))


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parse_header(data: bytes) -> tuple[Header, dict[str, memoryview]]:
    """The header and the sections of a file whose checksum holds."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise BadMagic(f"not an lmcodec model file: it begins with {bytes(data[:8])!r}, expected {MAGIC!r}")
    if len(data) < _PREFIX.size:
        raise Truncated(f"file ends at byte {len(data)}, inside its first {_PREFIX.size}")
    _, version, header_nbytes, nbytes = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise Unsupported(f"model file of version {version}; this lmcodec reads version {VERSION}")
    if header_nbytes > MAX_HEADER_NBYTES:
        raise Corrupt(f"header of {header_nbytes} bytes, at most {MAX_HEADER_NBYTES}")
    if nbytes > MAX_FILE_NBYTES:
        raise Corrupt(f"file of {nbytes} bytes, at most {MAX_FILE_NBYTES}")
    if nbytes < _PREFIX.size + header_nbytes + _DIGEST_NBYTES:
        raise Corrupt(f"file of {nbytes} bytes with a header of {header_nbytes}")
    if len(data) < nbytes:
        raise Truncated(f"file ends at byte {len(data)} of {nbytes}")
    if len(data) > nbytes:
        raise Corrupt(f"{len(data) - nbytes} bytes after the end of the file")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_NBYTES]).digest() != view[-_DIGEST_NBYTES:]:
        raise Corrupt("file does not match its SHA-256 digest")
    header = _read_header(bytes(view[_PREFIX.size : _PREFIX.size + header_nbytes]), nbytes)
    at, sections = _PREFIX.size + header_nbytes, {}
    for name, size in header.sections.items():
        sections[name] = view[at : at + size]
        at += size
    if at + _DIGEST_NBYTES != nbytes:
        raise Corrupt(f"sections end at byte {at}, the digest begins at {nbytes - _DIGEST_NBYTES}")
    return header, sections


def _read_header(text: bytes, nbytes: int) -> Header:
    try:
        content = json.loads(text)
        canonical = _canonical(content) == text
    except (ValueError, RecursionError):
        raise Corrupt("header is not JSON") from None
    if not canonical:
        raise Corrupt("header is not in the canonical form of JSON")
    _check_keys(
        "header",
        content,
        ("arithmetic", "card", "config", "known", "model_id", "sections", "tables", "tensors"),
    )
    arithmetic = _integer("arithmetic", content["arithmetic"], 0, 1 << 31)
    if arithmetic != ARITHMETIC:
        raise Unsupported(f"model of arithmetic {arithmetic}; this lmcodec computes arithmetic {ARITHMETIC}")
    if content["tables"] != tables.digest():
        raise Unsupported("model was made for other tables than this lmcodec's")
    _check_keys("config", content["config"], SHAPE)
    try:
        config = NetConfig(**content["config"])
    except ConfigError as error:
        raise Corrupt(f"header: {error}") from None
    expected = shapes(config)
    n_weight = sum(n * k for n, k, _ in expected.values())
    if n_weight > MAX_WEIGHTS:
        raise Corrupt(f"header declares {n_weight} weights, at most {MAX_WEIGHTS}")
    if not isinstance(content["card"], dict):
        raise Corrupt("header: the card is no object")
    for name, length in (("known", 64), ("model_id", 16)):
        value = content[name]
        if not isinstance(value, str) or len(value) != length or set(value) - set("0123456789abcdef"):
            raise Corrupt(f"header: {name} is not {length} hexadecimal digits")
    _check_keys("sections", content["sections"], SECTIONS)
    limits = {"mixer": MAX_MIXER_NBYTES}
    sections = {
        name: _integer(
            f"bytes of section {name}", content["sections"][name], 0, limits.get(name, MAX_FILE_NBYTES)
        )
        for name in SECTIONS
    }
    found = content["tensors"]
    if not isinstance(found, list) or len(found) != len(expected):
        raise Corrupt(f"header: the tensors are not a list of {len(expected)}")
    header = Header(
        config, content["card"], content["model_id"], content["known"], sections, [], [], [], nbytes
    )
    for tensor, (name, (n, k, _)) in zip(found, expected.items(), strict=True):
        _check_keys(f"tensor {name}", tensor, ("contexts", "shift", "words"))
        header.n_context.append(_integer(f"{name}: contexts", tensor["contexts"], 1, MAX_CONTEXTS))
        header.shifts.append(_integer(f"{name}: shift", tensor["shift"], 0, 255))
        n_chunk = -(-n * k // CHUNK)
        if not isinstance(tensor["words"], list) or len(tensor["words"]) != n_chunk:
            raise Corrupt(f"header: {name}: the words are not a list of {n_chunk}")
        # A weight takes at most one word.
        header.n_word.append([_integer(f"{name}: words", words, 0, CHUNK) for words in tensor["words"]])
    coded_nbytes = sum(_STATE_NBYTES + 2 * words for tensor in header.n_word for words in tensor)
    if coded_nbytes != sections["weights"]:
        raise Corrupt(f"section weights has {sections['weights']} bytes, its chunks have {coded_nbytes}")
    return header


def _check_keys(what: str, value: Any, expected: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise Corrupt(f"header: {what} is no object")
    if unknown := value.keys() - set(expected):
        raise Corrupt(f"header: {what} has an unknown member {min(unknown)[:40]!r}")
    if missing := set(expected) - value.keys():
        raise Corrupt(f"header: {what} lacks {min(missing)!r}")


def _integer(what: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int:
        raise Corrupt(f"header: {what}: {type(value).__name__}, expected an integer")
    if not low <= value <= high:
        found = str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
        raise Corrupt(f"header: {what}: {found}, expected {low} to {high}")
    return value


def _decode(header: Header, sections: dict[str, memoryview], n_thread: int) -> LoadedModel:
    expected = shapes(header.config)
    vocabulary = _parse_vocabulary(sections["vocabulary"], header.config.vocab_size)
    multipliers, biases, start = _parse_vectors(sections["vectors"], header.config)
    coded = _parse_tables(sections["tables"], header)
    coded = replace(coded, data=np.frombuffer(sections["weights"], np.uint8))
    weights = decode_weights(coded, n_thread, portable=os.environ.get("LMCODEC_ISA") in _WITHOUT_AVX512)
    linears = [
        Linear(weight, bias, multiplier, shift)
        for weight, bias, multiplier, shift in zip(weights, biases, multipliers, header.shifts, strict=True)
    ]
    by_name = dict(zip(expected, linears, strict=True))
    layers = tuple(
        Layer(
            by_name[f"layers.{i}.in"],
            by_name[f"layers.{i}.out"],
            by_name.get(f"layers.{i}.up"),
            by_name.get(f"layers.{i}.down"),
        )
        for i in range(header.config.n_layer)
    )
    model = IntegerModel(
        header.config,
        vocabulary,
        by_name["embed"],
        layers,
        by_name["head"],
        start,
        bytes(sections["mixer"]),
        header.card,
    )
    if model.model_id != header.model_id:
        raise Corrupt(f"content is that of model {model.model_id}, the header says {header.model_id}")
    return LoadedModel(model, header)


def _compress(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_LZMA)


def _decompress(name: str, packed: memoryview, least: int, most: int) -> bytes:
    """The content of a section, `least` to `most` bytes. Memory: `most` and the dictionary of 1 MiB."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    try:
        data = decoder.decompress(packed, most + 1)
    except lzma.LZMAError:
        raise Corrupt(f"section {name} cannot be unpacked") from None
    if not decoder.eof or decoder.unused_data or not least <= len(data) <= most:
        raise Corrupt(f"section {name} does not unpack to {least}{f' to {most}' * (most > least)} bytes")
    return data


def _pack_vocabulary(vocabulary: Vocabulary) -> bytes:
    """Bytes each string shares with the one before, bytes it adds, then these."""
    shared, previous = [], b""
    for string in vocabulary.strings:
        same = (a == b for a, b in zip(previous, string, strict=False))
        shared.append(next((n for n, equal in enumerate(same) if not equal), min(len(previous), len(string))))
        previous = string
    added = [string[n:] for n, string in zip(shared, vocabulary.strings, strict=True)]
    return bytes(shared) + bytes(map(len, added)) + b"".join(added)


def _parse_vocabulary(packed: memoryview, n_token: int) -> Vocabulary:
    data = _decompress("vocabulary", packed, 2 * n_token, 2 * n_token + MAX_STRINGS_NBYTES)
    strings: list[bytes] = []
    previous, at = b"", 2 * n_token
    for shared, added in zip(data[:n_token], data[n_token : 2 * n_token], strict=True):
        if shared > len(previous) or shared + added > MAX_TOKEN_NBYTES:
            raise Corrupt(f"token {len(strings)} shares {shared} bytes and adds {added}")
        previous = previous[:shared] + data[at : at + added]
        strings.append(previous)
        at += added
    if at != len(data):
        raise Corrupt(
            f"vocabulary's strings have {len(data) - 2 * n_token} bytes, expected {at - 2 * n_token}"
        )
    return Vocabulary(strings)


def _pack_vectors(linears: Sequence[Linear], start: np.ndarray) -> bytes:
    """Multipliers of all tensors, then their biases, then the start states; each as planes of bytes."""
    multipliers = np.concatenate([linear.multiplier for linear in linears]).astype("<u2")
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return _planes(multipliers) + b"".join(
        _planes(_zigzag(v)) for v in (np.concatenate(biases), start.ravel())
    )


def _parse_vectors(
    packed: memoryview, config: NetConfig
) -> tuple[list[np.ndarray], list[np.ndarray | None], np.ndarray]:
    """Multipliers and biases of all tensors, and the start states."""
    expected = shapes(config).values()
    n_multiplier, n_bias = sum(n for n, _, _ in expected), sum(n for n, _, biased in expected if biased)
    n_start = 2 * config.n_layer * config.recurrent
    nbytes = 2 * n_multiplier + 4 * (n_bias + n_start)
    data = _decompress("vectors", packed, nbytes, nbytes)
    multiplier = _unplanes(data, np.uint16, n_multiplier, 0)
    bias = _unzigzag(_unplanes(data, np.uint32, n_bias, 2 * n_multiplier))
    start = _unzigzag(_unplanes(data, np.uint32, n_start, 2 * n_multiplier + 4 * n_bias))
    multipliers, biases, row, biased_row = [], [], 0, 0
    for n, _, biased in expected:
        multipliers.append(multiplier[row : row + n])
        biases.append(bias[biased_row : biased_row + n] if biased else None)
        row += n
        biased_row += n if biased else 0
    return multipliers, biases, start.reshape(2, config.n_layer, config.recurrent)


def _planes(values: np.ndarray) -> bytes:
    """(n,) unsigned integers: all lowest bytes, then all second bytes, ..."""
    little = values.astype(values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(len(values), -1).T).tobytes()


def _unplanes(data: bytes, dtype: type[np.unsignedinteger[Any]], n: int, at: int) -> np.ndarray:
    width = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8, width * n, at).reshape(width, n)
    return np.ascontiguousarray(planes.T).view(np.dtype(dtype).newbyteorder("<")).ravel().astype(dtype)


def _zigzag(values: np.ndarray) -> np.ndarray:
    """int32 to uint32: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return ((values << 1) ^ (values >> 31)).view(np.uint32)


def _unzigzag(values: np.ndarray) -> np.ndarray:
    return (values >> 1).view(np.int32) ^ -(values & 1).view(np.int32)


def _parse_tables(packed: memoryview, header: Header) -> CodedTensors:
    """All that decoding weights needs but the words."""
    sizes = [(n, k, c) for (n, k, _), c in zip(shapes(header.config).values(), header.n_context, strict=True)]
    n_row, n_column, n_context = (sum(column) for column in zip(*sizes, strict=True))
    n_side = n_row + n_column + SYMBOLS * n_context
    data = np.frombuffer(_decompress("tables", packed, n_side, n_side), np.uint8)
    row_class, column_class = data[:n_row].view(np.int8), data[n_row : n_row + n_column].view(np.int8)
    codes = data[n_row + n_column :].reshape(n_context, SYMBOLS)
    return CodedTensors(sizes, row_class, column_class, codes, header.n_word, np.empty(0, np.uint8))


# --- the coding of weights ---


def encode_weights(weights: Sequence[np.ndarray]) -> CodedTensors:
    """Code (N, K) int8 tensors, |w| <= 63.

    The choice of classes and tables is the encoder's own; any that obeys FORMAT.md section 7.4 decodes.
    """
    choices = [_choose(w) for w in weights]
    coded = CodedTensors(
        shapes=[(*w.shape, len(codes)) for w, (_, _, codes) in zip(weights, choices, strict=True)],
        row_class=np.concatenate([row for row, _, _ in choices]),
        column_class=np.concatenate([column for _, column, _ in choices]),
        codes=np.concatenate([codes for _, _, codes in choices]),
        n_word=[],
        data=np.empty(0, np.uint8),
    )
    freq = frequencies(coded.codes)
    start = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    chunks = list(_chunks(coded))
    index, active = _in_lanes([contexts for _, contexts in chunks])  # (T, C, 32)
    flat = [w.ravel() for w in weights]
    symbols, _ = _in_lanes(
        [flat[t][at : at + len(contexts)].astype(np.int64) + 64 for (t, at), contexts in chunks]
    )
    index *= SYMBOLS
    index += symbols
    f_of, start_of = freq.ravel().astype(np.uint64), start.ravel().astype(np.uint64)
    state = np.full(index.shape[1:], LEAST_STATE, np.uint64)  # (C, 32)
    words, emitted = np.empty(index.shape, np.uint16), np.zeros(index.shape, bool)
    for t in reversed(range(len(index))):
        f = np.where(active[t], f_of[index[t]], 1 << PRECISION)  # a certain symbol changes nothing
        s = np.where(active[t], start_of[index[t]], 0)
        # With x < f 2^20 the state after coding stays below 2^32.
        full = state >= f << 20
        words[t], emitted[t] = state.astype(np.uint16), full
        state = np.where(full, state >> 16, state)
        quotient = state // f
        state = (quotient << PRECISION) + (state - quotient * f) + s
    parts: list[np.ndarray] = []
    n_word: list[list[int]] = [[] for _ in weights]
    for c, ((t, _), _) in enumerate(chunks):
        # In the order of decoding: step by step, within a step lane by lane.
        own = words[:, c][emitted[:, c]].astype("<u2")
        parts += [state[c].astype("<u4").view(np.uint8), own.view(np.uint8)]
        n_word[t].append(len(own))
    return replace(coded, n_word=n_word, data=np.concatenate(parts))


_WITHOUT_AVX512 = (
    "avx2",
    "scalar",
)  # where LMCODEC_ISA asks for one of these, weights take no AVX-512 either


def decode_weights(coded: CodedTensors, n_thread: int = 1, portable: bool = False) -> list[np.ndarray]:
    """The (N, K) int8 tensors that were coded, by the kernel; by the definition where there is no kernel.

    Raises:
        Corrupt: the coded form breaks a rule.
    """
    try:
        from lmcodec import _kernel
    except ImportError:  # a machine that only trains, on which the package is a folder
        return decode_reference(coded)
    out = np.empty(sum(n * k for n, k, _ in coded.shapes), np.int8)
    wrong = _kernel.decode_weights(
        coded.data,
        [words for tensor in coded.n_word for words in tensor],
        coded.shapes,
        coded.row_class,
        coded.column_class,
        frequencies(coded.codes),
        out,
        n_thread,
        portable,
    )
    if wrong:
        raise Corrupt(f"coded weights: wrong {wrong}")
    return _split(out, coded)


def decode_reference(coded: CodedTensors) -> list[np.ndarray]:
    """The definition of `decode_weights`: all chunks side by side, one weight of each of their lanes a step.

    Raises:
        Corrupt: the coded form breaks a rule.
    """
    classes = np.concatenate([coded.row_class, coded.column_class]).astype(np.int64)
    if np.abs(classes).max() > MAX_CLASS:
        raise Corrupt("coded weights: wrong class")
    sizes = (len(coded.row_class), len(coded.column_class), len(coded.codes))
    if tuple(sum(column) for column in zip(*coded.shapes, strict=True)) != sizes:
        raise Corrupt("coded weights: wrong number of classes or tables")
    freq = frequencies(coded.codes)
    symbol_of = np.concatenate([np.repeat(np.arange(SYMBOLS), row) for row in freq])  # (contexts * 4096,)
    f_of = freq.ravel().astype(np.int64)
    start_of = (np.cumsum(freq, axis=1, dtype=np.int64) - freq).ravel()
    chunks = list(_chunks(coded))
    context, active = _in_lanes([contexts for _, contexts in chunks])  # (T, C, 32)
    n_word = np.array([words for tensor in coded.n_word for words in tensor])
    first = np.cumsum(_STATE_NBYTES + 2 * n_word) - 2 * n_word  # byte of each chunk's first word
    if len(n_word) != len(chunks) or first[-1] + 2 * n_word[-1] != len(coded.data):
        raise Corrupt("coded weights: wrong size of the chunks")
    state = np.stack([coded.data[at - _STATE_NBYTES : at].view("<u4") for at in first]).astype(np.int64)
    if state.min() < LEAST_STATE:
        raise Corrupt("coded weights: wrong words")
    read = np.zeros(len(chunks), np.int64)  # words, of each chunk
    decoded = np.empty(context.shape, np.int8)
    for t in range(len(context)):
        slot = state & (1 << PRECISION) - 1
        symbol = symbol_of[context[t] << PRECISION | slot]
        index = context[t] * SYMBOLS + symbol
        after = f_of[index] * (state >> PRECISION) + slot - start_of[index]
        state = np.where(active[t], after, state)
        few = state < LEAST_STATE
        order = np.cumsum(few, axis=1)
        if (read + order[:, -1] > n_word).any():
            raise Corrupt("coded weights: wrong words")
        at = (first[:, None] + 2 * (read[:, None] + order - 1))[few]
        state[few] = state[few] << 16 | coded.data[at] | coded.data[at + 1].astype(np.int64) << 8
        read += order[:, -1]
        decoded[t] = symbol - 64
    if (read != n_word).any() or (state != LEAST_STATE).any():
        raise Corrupt("coded weights: wrong words")
    out = [decoded[:, c].ravel()[: len(contexts)] for c, (_, contexts) in enumerate(chunks)]
    return _split(np.concatenate(out), coded)


def frequencies(codes: np.ndarray) -> np.ndarray:
    """Frequencies of codes: each a number with three bits behind its leading one, scaled to a sum of 2^12.

    Args:
        codes: (C, 128) uint8: 0 for a symbol that does not occur, else 1 + e for (8 + e % 8) 2^(e // 8).

    Returns:
        (C, 128) uint16, rows sum to 2^12, >= 1 for symbols that occur.

    Raises:
        Corrupt: a code is above 96, symbol 0 occurs, or a row is empty or too flat.
    """
    if codes.max(initial=0) > MAX_CODE or codes[:, 0].any():
        raise Corrupt("coded weights: a frequency's code is out of range")
    e = codes.astype(np.int64) - 1
    mantissa = np.where(codes > 0, (8 + (e & 7)) << np.maximum(e >> 3, 0), 0)
    total = mantissa.sum(axis=1, keepdims=True)  # < 128 * 15 * 2^11 < 2^22
    if not total.all():
        raise Corrupt("coded weights: a table without symbols")
    freq = np.where(codes > 0, np.maximum(1, ((mantissa << PRECISION + 1) + total) // (2 * total)), 0)
    # What rounding left over goes to the likeliest symbol, the first of equals.
    likeliest = np.argmax(freq, axis=1)
    rows = np.arange(len(freq))
    freq[rows, likeliest] += (1 << PRECISION) - freq.sum(axis=1)
    if freq[rows, likeliest].min() < 1:
        raise Corrupt("coded weights: a table is too flat")
    return freq.astype(np.uint16)


def _codes(counts: np.ndarray) -> np.ndarray:
    """(C, 128) uint8 codes of frequencies nearest to (C, 128) counts; one symbol for a row without any."""
    counts = counts.copy()
    counts[counts.sum(axis=1) == 0, 64] = 1
    share = counts * 2.0**15 / counts.sum(axis=1, keepdims=True)
    e = np.arange(MAX_CODE)
    values = (8 + (e & 7)) << (e >> 3)  # 8 = 2^-12 of the sum, to 30720
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, share)
    return np.where(counts > 0, nearest + 1, 0).astype(np.uint8)


def _context(row: np.ndarray, column: np.ndarray, n_context: int) -> np.ndarray:
    """(N, K) int64: the sum of the classes, held within 0 to n_context - 1."""
    return np.clip(row[:, None].astype(np.int64) + column, 0, n_context - 1)


def _choose(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row classes, column classes and frequencies' codes that make (N, K) weights small."""
    symbols = w.astype(np.int64) + 64
    magnitude = np.abs(w).astype(np.float64) + 1e-3
    rows = np.ones(len(w))
    for _ in range(3):
        columns = (magnitude / rows[:, None]).mean(axis=0)
        rows = (magnitude / columns).mean(axis=1)
    row_scale, column_scale = np.log2(rows), np.log2(columns)
    row_scale -= np.median(row_scale)
    column_scale -= np.median(column_scale)
    best, best_nbits = None, np.inf
    trials = [(0, 0, 1.0), *((r, c, s) for r, c in ((0, 1), (1, 0), (1, 1)) for s in _STEPS)]
    for row_share, column_share, step in trials:
        row = np.clip(np.rint(row_scale * (row_share / step)), -31, 31).astype(np.int64)
        column = np.clip(np.rint(column_scale * (column_share / step)), -31, 31).astype(np.int64)
        # The contexts that most weights fall into; what lies outside joins the outermost.
        row_count, column_count = np.bincount(row + 31, minlength=63), np.bincount(column + 31, minlength=63)
        mass = np.convolve(row_count, column_count)  # of the sum of the classes plus 62
        n_context = min(MAX_CONTEXTS, int(np.ptp(row) + np.ptp(column)) + 1)
        low = int(np.argmax(np.convolve(mass, np.ones(n_context), "valid"))) - 62
        row_class = row.astype(np.int8)
        column_class = np.clip(column - low, -MAX_CLASS, MAX_CLASS).astype(np.int8)
        index = _context(row_class, column_class, n_context)
        index *= SYMBOLS
        index += symbols
        counts = np.bincount(index.ravel(), minlength=n_context * SYMBOLS).reshape(n_context, SYMBOLS)
        codes = _codes(counts)
        nbits = -(counts * np.log2(np.maximum(frequencies(codes), 1) / (1 << PRECISION))).sum()
        nbits += _entropy(row_class) + _entropy(column_class) + 4.0 * np.count_nonzero(codes)
        if nbits < best_nbits:
            best, best_nbits = (row_class, column_class, codes), nbits
    assert best is not None
    return best


def _entropy(values: np.ndarray) -> float:
    """Bits of (n,) small integers under their own frequencies, and of these."""
    count = np.unique(values, return_counts=True)[1]
    return float(-(count * np.log2(count / count.sum())).sum()) + 8.0 * len(count)


def _chunks(coded: CodedTensors) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Of each chunk its tensor and first weight, and the (n,) rows of the table of frequencies it uses."""
    row_at = [0, *accumulate(n for n, _, _ in coded.shapes)]
    column_at = [0, *accumulate(k for _, k, _ in coded.shapes)]
    context_at = [0, *accumulate(c for _, _, c in coded.shapes)]
    for t, (n, k, n_context) in enumerate(coded.shapes):
        row = coded.row_class[row_at[t] : row_at[t] + n]
        column = coded.column_class[column_at[t] : column_at[t] + k]
        contexts = (_context(row, column, n_context) + context_at[t]).ravel()
        for at in range(0, n * k, CHUNK):
            yield (t, at), contexts[at : at + CHUNK]


def _in_lanes(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """C chunks of up to T * 32 values as (T, C, 32) int64, and which of these are values."""
    n_step = max(-(-len(part) // LANES) for part in parts)
    values = np.zeros((n_step, len(parts), LANES), np.int64)
    active = np.zeros(values.shape, bool)
    for c, part in enumerate(parts):
        full = len(part) // LANES
        values[:full, c] = part[: full * LANES].reshape(full, LANES)
        active[:full, c] = True
        if rest := len(part) % LANES:
            values[full, c, :rest] = part[full * LANES :]
            active[full, c, :rest] = True
    return values, active


def _split(flat: np.ndarray, coded: CodedTensors) -> list[np.ndarray]:
    at = [0, *accumulate(n * k for n, k, _ in coded.shapes)]
    return [flat[at[t] : at[t + 1]].reshape(n, k) for t, (n, k, _) in enumerate(coded.shapes)]
