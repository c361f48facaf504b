"""A toy kind of language model, as ARCHITECTURE.md's recipe makes one: static, of order 1.

The logits after token t are row t of a table of weights, in steps of 2^-2 of a binary logarithm; two rows
more are for the two ways in which a stream begins. Its arithmetic is this sentence, so that NumPy outside the
kernel is its only executor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmcodec.errors import ConfigError, Corrupt
from lmcodec.lm import container, kinds, sections, weight_coding
from lmcodec.lm.container import Container, check_members, integer, named
from lmcodec.lm.interface import LanguageModel, Session, external
from lmcodec.lm.vocab import Vocabulary

if TYPE_CHECKING:
    from lmcodec import _kernel

MAX_TOKENS = 4096
LIMITS = {"vocabulary": 1 << 20, "tables": 1 << 20, "mixer": sections.MAX_MIXER_NBYTES, "weights": 1 << 28}


@dataclass(frozen=True, kw_only=True)
class Header(kinds.Header):
    v: int
    n_context: int
    n_word: list[int]

    n_token = property(lambda self: self.v)
    n_weight = property(lambda self: (self.v + 2) * self.v)
    macs_per_token = property(lambda self: 0)
    memory_nbytes = property(lambda self: 2 * self.n_weight)
    stream_nbytes = property(lambda self: 16 * self.v)

    def describe(self) -> str:
        return f"{self.v} tokens, order 1"


@dataclass(frozen=True)
class ModelFile(kinds.ModelFile):
    header: Header

    def decode(self, n_thread: int = 2) -> Loaded:
        with named(self.where):
            header, parts = self.header, self._sections
            vocabulary = sections.parse_large_vocabulary(parts["vocabulary"], header.v)
            shapes = [(header.v + 2, header.v, header.n_context)]
            n_side = weight_coding.tables_nbytes(shapes)
            side = sections.decompress("tables", parts["tables"], n_side, n_side)
            coded = weight_coding.parse_tables(side, shapes, [header.n_word], parts["weights"])
            (table,) = weight_coding.decode_weights(coded, n_thread)
            if model_id(vocabulary, table) != header.model_id:
                raise Corrupt("content is that of another model")
            return Loaded(header, vocabulary, table)


class Loaded(kinds.LoadedModel):
    def __init__(self, header: Header, vocabulary: Vocabulary, table: np.ndarray) -> None:
        self.header = header
        self._vocabulary = vocabulary
        self._table = table

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def network(self) -> tuple[_kernel.LanguageModel, str]:
        return external(self.outside("numpy")), "numpy"

    def outside(self, executor: str) -> LanguageModel:
        if executor != "numpy":
            raise ConfigError(f"executor {executor!r}: an order-1 model has numpy")
        if known_answer(self._table) != self.known:
            raise Corrupt("another answer than the file's")
        return Order1(self._vocabulary, self._table)

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        return [("definition", lambda: void(self.outside("numpy")))]


def void(_: object) -> None:
    pass


class Order1(LanguageModel):
    def __init__(self, vocabulary: Vocabulary, table: np.ndarray) -> None:
        self.vocabulary = vocabulary
        self.start_tokens = len(vocabulary), len(vocabulary) + 1
        self._table = table

    def session(self, n_stream: int) -> Session:
        return Order1Session(self._table)


class Order1Session(Session):
    def __init__(self, table: np.ndarray) -> None:
        self._table = table

    def begin(self, stream: int, cut: bool) -> None:
        pass

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._table[tokens].astype(np.int32) << 6


def model_id(vocabulary: Vocabulary, table: np.ndarray) -> str:
    return hashlib.sha256(b"order1\0" + vocabulary.pack() + table.tobytes()).hexdigest()[:16]


def known_answer(table: np.ndarray) -> str:
    return hashlib.sha256(Order1Session(table).step(np.arange(len(table))).tobytes()).hexdigest()


def open_container(opened: Container) -> ModelFile:
    with named(opened.where):
        content = opened.content
        check_members("header", content, (*container.COMMON, "kind", "n_token", "contexts", "words"))
        v = integer("n_token", content["n_token"], 256, MAX_TOKENS)
        weight_coding.check_shapes([(v + 2, v)])
        sizes = opened.sizes(LIMITS)
        header = Header(
            kind=opened.kind,
            model_id=opened.model_id,
            known=opened.known,
            card=opened.card,
            sections=sizes,
            nbytes=opened.nbytes,
            v=v,
            n_context=integer("contexts", content["contexts"], 1, weight_coding.MAX_CONTEXTS),
            n_word=weight_coding.parse_words("table", content["words"], (v + 2) * v),
        )
        if weight_coding.coded_nbytes([header.n_word]) != sizes["weights"]:
            raise Corrupt("section weights has another size than its chunks")
        return ModelFile(opened.where, header, opened.cut(sizes))


def pack(vocabulary: Vocabulary, text: bytes, mixer: bytes = b"") -> bytes:
    """The file of a model that has counted the pairs of tokens in `text`."""
    v = len(vocabulary)
    counts = np.full((v + 2, v), 0.05)
    tokens = vocabulary.segment(text)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    counts[v:] += counts[:v].sum(axis=0)
    log2 = np.log2(counts / counts.max(axis=1, keepdims=True))
    table = np.maximum(np.rint(4 * log2) + 63, -63).astype(np.int8)
    coded = weight_coding.encode_weights([table])
    parts = {
        "vocabulary": sections.compress(sections.pack_large_vocabulary(vocabulary)),
        "tables": sections.compress(weight_coding.pack_tables(coded)),
        "mixer": mixer,
        "weights": coded.data.tobytes(),
    }
    content = {
        "card": {"name": "toy"},
        "contexts": coded.shapes[0][2],
        "known": known_answer(table),
        "model_id": model_id(vocabulary, table),
        "n_token": v,
        "words": coded.n_word[0],
    }
    return b"".join(container.pack(content, parts, "order1"))  # type: ignore[arg-type]
