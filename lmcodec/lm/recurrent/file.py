"""The model file of the recurrent kind: its header, its sections, its bounds. FORMAT.md section 7.

Knows neither how a model was trained nor how it runs: that an executor answers `known` is for it to see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcodec.errors import ConfigError, Corrupt, LimitExceeded, Unsupported
from lmcodec.lm import container, kinds, sections, weight_coding
from lmcodec.lm.container import Container, check_members, integer, named
from lmcodec.lm.recurrent import tables
from lmcodec.lm.recurrent.model import ARITHMETIC, SHAPE, IntegerModel, Layer, Linear, shapes
from lmcodec.lm.recurrent.reference import compute_known_answer
from lmcodec.lm.recurrent.shape import RecurrentConfig
from lmcodec.lm.vocab import Vocabulary

if TYPE_CHECKING:
    from lmcodec import _kernel
    from lmcodec.lm.interface import LanguageModel
    from lmcodec.lm.recurrent.native import NativeNetwork

MAX_FILE_NBYTES = container.MAX_NBYTES[container.RECURRENT_VERSION]
MAX_WEIGHTS = 64 << 20
# The sections in the order of the file, and the most bytes of each.
SECTIONS = {
    "vocabulary": MAX_FILE_NBYTES,
    "tables": MAX_FILE_NBYTES,
    "vectors": MAX_FILE_NBYTES,
    "mixer": sections.MAX_MIXER_NBYTES,
    "weights": MAX_FILE_NBYTES,
}
_MEMBERS = ("arithmetic", "card", "config", "known", "model_id", "sections", "tables", "tensors")
_STREAM_NBYTES = 64 << 10  # of a session: states and frequencies


@dataclass(frozen=True, kw_only=True)
class Header(kinds.Header):
    """What a model file says of itself; its weights need not be decoded for it.

    Attributes:
        config: the network's shape.
        shifts: of each tensor.
        n_context: of each tensor.
        n_word: for each tensor the number of 16-bit words of each of its chunks.
    """

    config: RecurrentConfig
    shifts: list[int]
    n_context: list[int]
    n_word: list[list[int]]

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the canonical order."""
        return list(shapes(self.config))

    @property
    def n_token(self) -> int:
        """As `kinds.Header.n_token`."""
        return self.config.vocab_size

    @property
    def n_weight(self) -> int:
        """As `kinds.Header.n_weight`."""
        return sum(n * k for n, k, _ in shapes(self.config).values())

    @property
    def macs_per_token(self) -> int:
        """As `kinds.Header.macs_per_token`."""
        return self.config.macs_per_token

    @property
    def memory_nbytes(self) -> int:
        """As `kinds.Header.memory_nbytes`: weights as the file is decoded, and as they are laid out."""
        return 2 * self.n_weight

    @property
    def outside_block_nbytes(self) -> int:
        """As `kinds.Header.outside_block_nbytes`."""
        from lmcodec.lm.recurrent.executors import outside_nbytes

        return outside_nbytes(self.config)

    @property
    def stream_nbytes(self) -> int:
        """As `kinds.Header.stream_nbytes`."""
        return _STREAM_NBYTES

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Of each tensor: its states and words, without its tables."""
        return {
            name: 8 * weight_coding.coded_nbytes([n_word]) / (n * k)
            for (name, (n, k, _)), n_word in zip(shapes(self.config).items(), self.n_word, strict=True)
        }

    def describe(self) -> str:
        """As `kinds.Header.describe`."""
        shape = self.config
        return (
            f"{shape.vocab_size} tokens, width {shape.dim}, {shape.n_layer} layers of {shape.recurrent} "
            f"channels and {shape.mlp} hidden units"
        )

    def tensors(self) -> list[tuple[str, ...]]:
        """As `kinds.Header.tensors`."""
        rows: list[tuple[str, ...]] = [("Tensor", "Rows", "Columns", "Contexts", "Shift", "Bits each")]
        for (name, (n, k, _)), contexts, shift, each in zip(
            shapes(self.config).items(),
            self.n_context,
            self.shifts,
            self.bits_per_weight.values(),
            strict=True,
        ):
            rows.append((name, str(n), str(k), str(contexts), str(shift), f"{each:.3f}"))
        return rows


@dataclass(frozen=True)
class ModelFile(kinds.ModelFile):
    """A model file whose checksum and header hold; what its sections hold is not decoded yet."""

    header: Header

    def decode(self, n_thread: int = 2) -> LoadedModel:
        """As `kinds.ModelFile.decode`."""
        with named(self.where):
            return LoadedModel(_decode(self.header, self._sections, n_thread), self.header)


@dataclass(frozen=True)
class LoadedModel(kinds.LoadedModel):
    """A model and what its file says of it."""

    model: IntegerModel
    header: Header

    @property
    def vocabulary(self) -> Vocabulary:
        """As `kinds.LoadedModel.vocabulary`."""
        return self.model.vocabulary

    def network(self) -> tuple[_kernel.LanguageModel, str]:
        """As `kinds.LoadedModel.network`; it warns where the best instruction set answers wrongly."""
        return kinds.proved_network(self._native, self.known)

    def outside(self, executor: str) -> LanguageModel:
        """As `kinds.LoadedModel.outside`."""
        from lmcodec.lm.recurrent import executors

        return executors.outside(self.model, executor, self.known)

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        """As `kinds.LoadedModel.checks`."""
        from lmcodec.lm.recurrent.executors import Torch

        return kinds.executor_checks(
            self._check_definition,
            self._native,
            lambda device: Torch(self.model, device, self.known),
            self.known,
        )

    def _native(self, isa: str) -> NativeNetwork:
        from lmcodec.lm.recurrent.native import NativeNetwork

        return NativeNetwork(self.model, isa)

    def _check_definition(self) -> None:
        if compute_known_answer(self.model) != self.known:
            raise Corrupt("another answer than the file's")


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
    if len(model.mixer) > sections.MAX_MIXER_NBYTES:
        raise LimitExceeded(
            f"mixer has {len(model.mixer)} bytes, a file holds at most {sections.MAX_MIXER_NBYTES}"
        )
    linears = list(model.tensors().values())
    coded = weight_coding.encode_weights([linear.weight for linear in linears])
    parts: dict[str, Any] = {
        "vocabulary": sections.compress(sections.pack_vocabulary(model.vocabulary)),
        "tables": sections.compress(weight_coding.pack_tables(coded)),
        "vectors": sections.compress(_pack_vectors(linears, model.start)),
        "mixer": model.mixer,
        "weights": coded.data,
    }
    content = {
        "arithmetic": ARITHMETIC,
        "card": model.card,
        "config": {name: getattr(model.config, name) for name in SHAPE},
        "known": known or compute_known_answer(model),
        "model_id": model.model_id,
        "tables": tables.digest(),
        "tensors": [
            {"contexts": shape[2], "shift": linear.shift, "words": n_word}
            for linear, shape, n_word in zip(linears, coded.shapes, coded.n_word, strict=True)
        ],
    }
    return b"".join(map(bytes, container.pack(content, parts, version=container.RECURRENT_VERSION)))


def inspect(data: bytes, where: str = "model") -> Header:
    """What a model file says of itself. Checks all but the sections' content.

    Raises:
        BadMagic, Unsupported, Truncated, Corrupt: as `parse`.
    """
    return open_container(container.parse(data, where)).header


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
    return open_container(container.parse(data, where)).decode(n_thread)


def open_file(path: str | os.PathLike[str]) -> ModelFile:
    """The file at `path`, to be decoded.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LmcodecError: as `parse`.
    """
    return open_container(container.read(path))


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


def open_container(opened: Container) -> ModelFile:
    """As `kinds.Kind.open_container`."""
    with named(opened.where):
        header = _read_header(opened)
        return ModelFile(opened.where, header, opened.cut(header.sections))


def _read_header(opened: Container) -> Header:
    if opened.version != container.RECURRENT_VERSION:
        raise Unsupported(
            f"recurrent model in a file of version {opened.version}; it is kept in version "
            f"{container.RECURRENT_VERSION}"
        )
    content = opened.content
    check_members("header", content, _MEMBERS)
    arithmetic = integer("arithmetic", content["arithmetic"], 0, 1 << 31)
    if arithmetic != ARITHMETIC:
        raise Unsupported(f"model of arithmetic {arithmetic}; this lmcodec computes arithmetic {ARITHMETIC}")
    if content["tables"] != tables.digest():
        raise Unsupported("model was made for other tables than this lmcodec's")
    check_members("config", content["config"], SHAPE)
    try:
        config = RecurrentConfig(**content["config"])
    except ConfigError as error:
        raise Corrupt(f"header: {error}") from None
    expected = shapes(config)
    n_weight = sum(n * k for n, k, _ in expected.values())
    if n_weight > MAX_WEIGHTS:
        raise Corrupt(f"header declares {n_weight} weights, at most {MAX_WEIGHTS}")
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
        shifts=[],
        n_context=[],
        n_word=[],
    )
    for tensor, (name, (n, k, _)) in zip(found, expected.items(), strict=True):
        check_members(f"tensor {name}", tensor, ("contexts", "shift", "words"))
        header.n_context.append(
            integer(f"{name}: contexts", tensor["contexts"], 1, weight_coding.MAX_CONTEXTS)
        )
        header.shifts.append(integer(f"{name}: shift", tensor["shift"], 0, 255))
        header.n_word.append(weight_coding.parse_words(name, tensor["words"], n * k))
    nbytes = weight_coding.coded_nbytes(header.n_word)
    if nbytes != header.sections["weights"]:
        raise Corrupt(f"section weights has {header.sections['weights']} bytes, its chunks have {nbytes}")
    return header


def _decode(header: Header, parts: dict[str, memoryview], n_thread: int) -> IntegerModel:
    expected = shapes(header.config)
    vocabulary = sections.parse_vocabulary(parts["vocabulary"], header.config.vocab_size)
    multipliers, biases, start = _parse_vectors(parts["vectors"], header.config)
    coded_shapes = [(n, k, c) for (n, k, _), c in zip(expected.values(), header.n_context, strict=True)]
    n_side = weight_coding.tables_nbytes(coded_shapes)
    side = sections.decompress("tables", parts["tables"], n_side, n_side)
    coded = weight_coding.parse_tables(side, coded_shapes, header.n_word, parts["weights"])
    weights = weight_coding.decode_weights(coded, n_thread)
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
        bytes(parts["mixer"]),
        header.card,
    )
    if model.model_id != header.model_id:
        raise Corrupt(f"content is that of model {model.model_id}, the header says {header.model_id}")
    return model


def _pack_vectors(linears: Sequence[Linear], start: np.ndarray) -> bytes:
    """Multipliers of all tensors, then their biases, then the start states; each as planes of bytes."""
    multipliers = np.concatenate([linear.multiplier for linear in linears]).astype("<u2")
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return sections.planes(multipliers) + b"".join(
        sections.planes(sections.zigzag(v)) for v in (np.concatenate(biases), start.ravel())
    )


def _parse_vectors(
    packed: memoryview, config: RecurrentConfig
) -> tuple[list[np.ndarray], list[np.ndarray | None], np.ndarray]:
    """Multipliers and biases of all tensors, and the start states."""
    expected = shapes(config).values()
    n_multiplier, n_bias = sum(n for n, _, _ in expected), sum(n for n, _, biased in expected if biased)
    n_start = 2 * config.n_layer * config.recurrent
    nbytes = 2 * n_multiplier + 4 * (n_bias + n_start)
    data = sections.decompress("vectors", packed, nbytes, nbytes)
    multiplier = sections.unplanes(data, np.uint16, n_multiplier, 0)
    bias = sections.unzigzag(sections.unplanes(data, np.uint32, n_bias, 2 * n_multiplier))
    start = sections.unzigzag(sections.unplanes(data, np.uint32, n_start, 2 * n_multiplier + 4 * n_bias))
    multipliers, biases, row, biased_row = [], [], 0, 0
    for n, _, biased in expected:
        multipliers.append(multiplier[row : row + n])
        biases.append(bias[biased_row : biased_row + n] if biased else None)
        row += n
        biased_row += n if biased else 0
    return multipliers, biases, start.reshape(2, config.n_layer, config.recurrent)
