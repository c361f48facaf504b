"""The model file of the transformer kind: its header, its sections, its bounds. FORMAT.md section 9.

Knows neither how a model was imported nor how it runs: that an executor answers `known` is for it to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, LimitExceeded, Unsupported
from lmcodec.lm import container, kinds, sections, weight_coding
from lmcodec.lm.container import Container, check_members, integer, named
from lmcodec.lm.executor import EXECUTORS
from lmcodec.lm.transformer.model import (
    ARITHMETIC,
    Linear,
    TransformerModel,
    layers,
    shapes,
    vector_shapes,
)
from lmcodec.lm.transformer.reference import compute_known_answer
from lmcodec.lm.transformer.shape import ALWAYS, TransformerConfig
from lmcodec.lm.vocab import Vocabulary

if TYPE_CHECKING:
    from lmcodec import _kernel
    from lmcodec.lm.interface import LanguageModel
    from lmcodec.lm.transformer.native import NativeTransformer
    from lmcodec.lm.vocab import Buffer

KIND = "transformer"
MAX_TOKENIZER_NBYTES = 1 << 27
_MAX_NBYTES = container.MAX_NBYTES[container.VERSION]
# The sections in the order of the file, and the most bytes of each. `tokenizer` is no part of the identity:
# only how text is segmented depends on it.
SECTIONS = {
    "vocabulary": 1 << 26,
    "tables": _MAX_NBYTES,
    "vectors": _MAX_NBYTES,
    "mixer": sections.MAX_MIXER_NBYTES,
    "weights": _MAX_NBYTES,
    "tokenizer": MAX_TOKENIZER_NBYTES,
}
_MEMBERS = (*container.COMMON, "arithmetic", "config", "kind", "tensors", "tokenizer_nbytes")
_OPTIONS = tuple(member.name for member in fields(TransformerConfig) if member.name not in ALWAYS)


@dataclass(frozen=True, kw_only=True)
class Header(kinds.Header):
    """What a model file says of itself; its weights need not be decoded for it.

    Attributes:
        config: the network's shape.
        n_context: of each coded tensor.
        n_word: for each coded tensor the number of 16-bit words of each of its chunks.
        tokenizer_nbytes: of the tokenizer's JSON; 0 for none.
    """

    config: TransformerConfig
    n_context: list[int]
    n_word: list[list[int]]
    tokenizer_nbytes: int

    @property
    def n_token(self) -> int:
        """As `kinds.Header.n_token`."""
        return self.config.vocab_size

    @property
    def n_weight(self) -> int:
        """As `kinds.Header.n_weight`."""
        return self.config.n_weight

    @property
    def macs_per_token(self) -> int:
        """As `kinds.Header.macs_per_token`."""
        return self.config.macs_per_token

    @property
    def memory_nbytes(self) -> int:
        """As `kinds.Header.memory_nbytes`: coded, as decoded, and as the kernel lays the model out."""
        from lmcodec.lm.transformer.native import memory_nbytes

        return self.sections["weights"] + self.n_weight + memory_nbytes(self.config)

    @property
    def stream_nbytes(self) -> int:
        """As `kinds.Header.stream_nbytes`."""
        from lmcodec.lm.transformer.native import session_bound

        return session_bound(self.config)[1]

    @property
    def block_nbytes(self) -> int:
        """As `kinds.Header.block_nbytes`: many positions on their way through the layers."""
        from lmcodec.lm.transformer.native import session_bound

        return session_bound(self.config)[0]

    @property
    def outside_memory_nbytes(self) -> int:
        """As `kinds.Header.outside_memory_nbytes`: coded, as decoded, and in float32."""
        return self.sections["weights"] + 5 * self.n_weight

    @property
    def outside_block_nbytes(self) -> int:
        """As `kinds.Header.outside_block_nbytes`: logits and what comes of them, scores of a window."""
        c = self.config
        return 1024 * (24 * c.vocab_size + 40 * c.n_head * (c.window + c.sinks))

    def describe(self) -> str:
        """As `kinds.Header.describe`."""
        c = self.config
        return (
            f"{c.vocab_size} tokens, width {c.dim}, {c.n_layer} layers of {c.n_head} heads ({c.n_kv_head} of "
            f"keys and values) of {c.head_dim}, {c.mlp} hidden units, window {c.window}, {c.sinks} sinks"
        )

    def facts(self) -> list[tuple[str, str]]:
        """As `kinds.Header.facts`."""
        facts = [("cache", f"{self.config.cache_nbytes:,} bytes a stream at most")]
        if n := self.config.n_position:
            facts.append(("positions", f"{n} learned ones; a stream restarts with its last {n // 2} tokens"))
        if sliding := self.config.sliding:
            what = f"{len(sliding)} layers see {self.config.sliding_window} tokens"
            facts.append(("sliding", what))
        return facts

    def tensors(self) -> list[tuple[str, ...]]:
        """As `kinds.Header.tensors`."""
        rows: list[tuple[str, ...]] = [("Tensor", "Rows", "Columns", "Contexts", "Bits each")]
        for (name, (n, k)), contexts, n_word in zip(
            coded_shapes(self.config).items(), self.n_context, self.n_word, strict=True
        ):
            each = 8 * weight_coding.coded_nbytes([n_word]) / (n * k)
            rows.append((name, str(n), str(k), str(contexts), f"{each:.3f}"))
        return rows


@dataclass(frozen=True)
class ModelFile(kinds.ModelFile):
    """A model file whose checksum and header hold; what its sections hold is not decoded yet."""

    header: Header

    def decode(self, n_thread: int = 2) -> LoadedModel:
        """As `kinds.ModelFile.decode`."""
        with named(self.where):
            model = _decode(self.header, self._sections, n_thread)
            # Unpacked when text is segmented, which decoding a frame does not.
            return LoadedModel(model, self.header, bytes(self._sections["tokenizer"]), self.where)


@dataclass(frozen=True)
class LoadedModel(kinds.LoadedModel):
    """A model and what its file says of it."""

    model: TransformerModel
    header: Header
    packed_tokenizer: bytes
    where: str = "model"

    @property
    def vocabulary(self) -> Vocabulary:
        """As `kinds.LoadedModel.vocabulary`."""
        return self.model.vocabulary

    def segmenter(self) -> Callable[[Buffer], np.ndarray]:
        """As `kinds.LoadedModel.segmenter`."""
        from lmcodec.lm.transformer.segment import Segmenter

        packed, nbytes, where = self.packed_tokenizer, self.header.tokenizer_nbytes, self.where

        def unpack() -> bytes:
            with named(where):
                return sections.decompress("tokenizer", memoryview(packed), nbytes, nbytes) if nbytes else b""

        return Segmenter(self.vocabulary, unpack)

    def network(self) -> tuple[_kernel.LanguageModel, str]:
        """As `kinds.LoadedModel.network`; it warns where the best instruction set answers wrongly."""
        return kinds.proved_network(self._native, self.known)

    def outside(self, executor: str) -> LanguageModel:
        """As `kinds.LoadedModel.outside`."""
        from lmcodec.lm.transformer.executors import Reference, Torch

        device = EXECUTORS[executor]
        return Reference(self.model, self.known) if device is None else Torch(self.model, device, self.known)

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        """As `kinds.LoadedModel.checks`."""
        from lmcodec.lm.transformer.executors import Torch

        return kinds.executor_checks(
            self._check_definition,
            self._native,
            lambda device: Torch(self.model, device, self.known),
            self.known,
        )

    def _native(self, isa: str) -> NativeTransformer:
        from lmcodec.lm.transformer.native import NativeTransformer

        return NativeTransformer(self.model, isa)

    def _check_definition(self) -> None:
        self.outside("numpy")


def coded_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of every matrix that a file holds: a tied head is the embedding."""
    return {
        name: (n, k) for name, (n, k, _) in shapes(config).items() if not (name == "head" and config.tied)
    }


def pack(
    model: TransformerModel, tokenizer: dict[str, Any] | None = None, known: str | None = None
) -> list[Any]:
    """The file of a model, as buffers one after another.

    Args:
        model: what to pack.
        tokenizer: JSON for the package `tokenizers`, as `importing.tokens.reduce` leaves it; None for none.
        known: its known answer; computed by the definition if it is None.

    Raises:
        LimitExceeded: the mixer, the tokenizer or the card is larger than a file may hold.
        ConfigError: the card holds what JSON has no form for.
    """
    if len(model.mixer) > sections.MAX_MIXER_NBYTES:
        raise LimitExceeded(
            f"mixer has {len(model.mixer)} bytes, a file holds at most {sections.MAX_MIXER_NBYTES}"
        )
    text = b""
    if tokenizer is not None:
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    if len(text) > MAX_TOKENIZER_NBYTES:
        raise LimitExceeded(f"tokenizer of {len(text)} bytes, a file holds at most {MAX_TOKENIZER_NBYTES}")
    linears = model.linears()
    names = coded_shapes(model.config)
    coded = weight_coding.encode_weights([linears[name].weight for name in names])
    parts: dict[str, Any] = {
        "vocabulary": sections.compress(sections.pack_large_vocabulary(model.vocabulary)),
        "tables": sections.compress(weight_coding.pack_tables(coded)),
        "vectors": sections.compress(_pack_vectors(model)),
        "mixer": model.mixer,
        "weights": coded.data,
        "tokenizer": sections.compress(text) if text else b"",
    }
    content = {
        "arithmetic": ARITHMETIC,
        "card": model.card,
        "config": model.config.as_json(),
        "known": known or compute_known_answer(model),
        "model_id": model.model_id,
        "tensors": [
            {"contexts": shape[2], "words": n_word}
            for shape, n_word in zip(coded.shapes, coded.n_word, strict=True)
        ],
        "tokenizer_nbytes": len(text),
    }
    return container.pack(content, parts, KIND)


def open_container(opened: Container) -> ModelFile:
    """As `kinds.Kind.open_container`."""
    with named(opened.where):
        header = _read_header(opened)
        return ModelFile(opened.where, header, opened.cut(header.sections))


def _read_header(opened: Container) -> Header:
    content = opened.content
    check_members("header", content, _MEMBERS)
    arithmetic = integer("arithmetic", content["arithmetic"], 0, 1 << 31)
    if arithmetic != ARITHMETIC:
        raise Unsupported(f"model of arithmetic {arithmetic}; this lmcodec computes arithmetic {ARITHMETIC}")
    shape = content["config"]
    if not isinstance(shape, dict):
        raise Corrupt("header: config is no object")
    check_members("config", {**dict.fromkeys(_OPTIONS), **shape}, (*ALWAYS, *_OPTIONS))
    try:
        config = TransformerConfig.from_json(shape)
    except ConfigError as error:
        raise Corrupt(f"header: {error}") from None
    expected = coded_shapes(config)
    weight_coding.check_shapes(list(expected.values()))
    found = content["tensors"]
    if not isinstance(found, list) or len(found) != len(expected):
        raise Corrupt(f"header: the tensors are not a list of {len(expected)}")
    header = Header(
        kind=opened.kind,
        model_id=opened.model_id,
        known=opened.known,
        card=opened.card,
        sections=opened.sizes(SECTIONS),
        nbytes=opened.nbytes,
        config=config,
        n_context=[],
        n_word=[],
        tokenizer_nbytes=integer("tokenizer_nbytes", content["tokenizer_nbytes"], 0, MAX_TOKENIZER_NBYTES),
    )
    for tensor, (name, (n, k)) in zip(found, expected.items(), strict=True):
        check_members(f"tensor {name}", tensor, ("contexts", "words"))
        header.n_context.append(
            integer(f"{name}: contexts", tensor["contexts"], 1, weight_coding.MAX_CONTEXTS)
        )
        header.n_word.append(weight_coding.parse_words(name, tensor["words"], n * k))
    nbytes = weight_coding.coded_nbytes(header.n_word)
    if nbytes != header.sections["weights"]:
        raise Corrupt(f"section weights has {header.sections['weights']} bytes, its chunks have {nbytes}")
    if bool(header.tokenizer_nbytes) != bool(header.sections["tokenizer"]):
        raise Corrupt("section tokenizer is empty where its content is not, or the other way round")
    return header


def _decode(header: Header, parts: dict[str, memoryview], n_thread: int) -> TransformerModel:
    config = header.config
    expected = coded_shapes(config)
    vocabulary = sections.parse_large_vocabulary(parts["vocabulary"], config.vocab_size)
    scales, biases, vectors, rotary = _parse_vectors(parts["vectors"], config)
    coded_as = [(n, k, c) for (n, k), c in zip(expected.values(), header.n_context, strict=True)]
    n_side = weight_coding.tables_nbytes(coded_as)
    side = sections.decompress("tables", parts["tables"], n_side, n_side)
    coded = weight_coding.parse_tables(side, coded_as, header.n_word, parts["weights"])
    weights = dict(zip(expected, weight_coding.decode_weights(coded, n_thread), strict=True))
    if config.tied:
        weights["head"] = weights["embed"][: config.vocab_size]
        scales["head"] = scales["embed"][: config.vocab_size]
    linears = {name: Linear(weights[name], scales[name], biases.get(name)) for name in shapes(config)}
    model = TransformerModel(
        config,
        vocabulary,
        linears["embed"],
        layers(config, linears, vectors),
        vectors["norm"],
        linears["head"],
        rotary,
        bytes(parts["mixer"]),
        header.card,
        linears.get("position"),
        vectors.get("norm_bias"),
    )
    if model.model_id != header.model_id:
        raise Corrupt(f"content is that of model {model.model_id}, the header says {header.model_id}")
    return model


def _pack_vectors(model: TransformerModel) -> bytes:
    """Scales of all coded tensors, biases, norms, as planes of bytes of binary32; then the rotary angles."""
    linears = model.linears()
    singles: Sequence[np.ndarray] = [
        *(linears[name].scale for name in coded_shapes(model.config)),
        *(linear.bias for linear in linears.values() if linear.bias is not None),
        *model.vectors().values(),
    ]
    bits = np.concatenate(singles).astype("<f4").view("<u4")
    return sections.planes(bits) + sections.planes(model.rotary.ravel().astype("<f8").view("<u8"))


def _parse_vectors(
    packed: memoryview, config: TransformerConfig
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Scales and biases of tensors, norms, rotary angles."""
    scales = {name: n for name, (n, _) in coded_shapes(config).items()}
    biases = {name: n for name, (n, _, biased) in shapes(config).items() if biased}
    norms = vector_shapes(config)
    n_single = sum(scales.values()) + sum(biases.values()) + sum(norms.values())
    n_angle = config.n_rotary * config.head_dim // 2
    nbytes = 4 * n_single + 8 * n_angle
    data = sections.decompress("vectors", packed, nbytes, nbytes)
    singles = sections.unplanes(data, np.uint32, n_single, 0).view(np.float32)
    at = 0

    def taken(sizes: dict[str, int]) -> dict[str, np.ndarray]:
        nonlocal at
        found = {}
        for name, n in sizes.items():
            found[name] = singles[at : at + n]
            at += n
        return found

    parts = taken(scales), taken(biases), taken(norms)
    rotary = sections.unplanes(data, np.uint64, n_angle, 4 * n_single).view(np.float64)
    return (*parts, rotary.reshape(config.n_rotary, -1))
