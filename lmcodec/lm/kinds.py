"""Kinds of language models: what a kind gives the codec, and the registry of kinds.

A kind is a way to compute logits, with its own model file. Its package in `lm/` derives from the classes
here and has one line in `MODULES`; nothing else in lmcodec names it. A kind's module is imported when a file
of the kind is opened. Importing this one imports neither NumPy nor the kernel.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from lmcodec.errors import Corrupt, LimitExceeded, LmcodecError, Unsupported

if TYPE_CHECKING:
    import numpy as np

    from lmcodec import _kernel
    from lmcodec.lm.container import Container
    from lmcodec.lm.interface import LanguageModel
    from lmcodec.lm.vocab import Buffer, Vocabulary

# Each module has a function `open_container` (`Kind` below says what it does).
MODULES: dict[str, str] = {
    "recurrent": "lmcodec.lm.recurrent.file",
    "transformer": "lmcodec.lm.transformer.file",
}


# What makes models of those that other programs have trained.
IMPORTER = "lmcodec.lm.transformer.importing.build"
# What their tokenizers spell, and segmentation by them.
TOKENS = "lmcodec.lm.transformer.importing.tokens"
SEGMENT = "lmcodec.lm.transformer.segment"


class ImportedFile(Protocol):
    """A model that was imported.

    Attributes:
        model_id: 16 hexadecimal digits.
        has_tokenizer: whether it holds what segments text as the model was trained; without, longest match.
    """

    @property
    def model_id(self) -> str: ...

    @property
    def has_tokenizer(self) -> bool: ...

    def pack(self) -> list[Any]:
        """The parts of its file, one after another."""


class Importer(Protocol):
    """What the importer's module has."""

    def import_source(
        self,
        source: str,
        *,
        download: bool = False,
        revision: str | None = None,
        window: int | None = None,
        sinks: int | None = None,
        mixer: bytes = b"",
        card: dict[str, Any] | None = None,
        progress: Callable[[int, int], None] = ...,
        calibrated: bool = True,
    ) -> ImportedFile:
        """Import a pretrained model.

        Args:
            source: a folder, a GGUF file or a hub id, OWNER/NAME.
            download: fetch a hub model; otherwise only the local cache is looked into.
            revision: of a hub model.
            window: tokens that attention sees; None for the default.
            sinks: first tokens that it sees always; None for the default.
            mixer: profiles' files that mixing with context models begins with; may be empty.
            card: further members of the model's card.
            progress: called with the matrices that are done, and how many there are.
            calibrated: weights are rounded with regard to what goes into the model's products.

        Raises:
            ConfigError: there is no such source, or a package is missing.
            Unsupported: the format or the model is not known.
            Corrupt: it is damaged.
        """


def importer() -> Importer:
    """The module that imports pretrained models."""
    return cast(Importer, import_module(IMPORTER))


class Kind(Protocol):
    """What a kind's module has."""

    def open_container(self, opened: Container) -> ModelFile:
        """The model file in a container of this kind.

        Its header is checked, every bound of the kind included. Nothing is decoded, and nothing allocated
        that grows with a number of the header. Of a container of which only the header was read, `header` is
        all that the result is used for.

        Raises:
            Corrupt: a member or a bound does not hold.
            Unsupported: it is of another arithmetic or shape than this lmcodec computes.
        """


@dataclass(frozen=True, kw_only=True)
class Header(ABC):
    """What a model file says of itself.

    Attributes:
        kind: of model.
        model_id: 16 hexadecimal digits.
        known: the known answer: 64 hexadecimal digits.
        card: data, steps, bits per byte, licence: JSON values.
        sections: bytes of each section.
        nbytes: of the whole file.
    """

    kind: str
    model_id: str
    known: str
    card: dict[str, Any]
    sections: dict[str, int]
    nbytes: int

    @property
    @abstractmethod
    def n_token(self) -> int:
        """Tokens of the vocabulary."""

    @property
    @abstractmethod
    def n_weight(self) -> int:
        """Weights of all tensors."""

    @property
    @abstractmethod
    def macs_per_token(self) -> int:
        """Multiply-accumulates of one step of one stream."""

    @property
    @abstractmethod
    def memory_nbytes(self) -> int:
        """What the model takes in memory at most, while it is loaded too; without vocabulary and profiles."""

    @property
    def block_nbytes(self) -> int:
        """What a session takes for each block at work, whatever its streams, beside a few MB."""
        return 0

    @property
    def outside_memory_nbytes(self) -> int:
        """As `memory_nbytes` where another executor computes: float32 in torch, int32 while NumPy multiplies.

        On a GPU it is counted as if it were in memory.
        """
        return self.memory_nbytes + 4 * self.n_weight

    @property
    def outside_block_nbytes(self) -> int:
        """What computing outside the kernel takes for each block at work, beside what the kernel counts."""
        return 256 * 48 * self.n_token

    @property
    @abstractmethod
    def stream_nbytes(self) -> int:
        """What a session takes for each stream at most: state or cache, logits, frequencies."""

    @property
    def bits_each(self) -> float:
        """Bits that a weight takes in the file, tables included."""
        return 8 * (self.sections["weights"] + self.sections["tables"]) / self.n_weight

    @abstractmethod
    def describe(self) -> str:
        """The shape, in a line."""

    def facts(self) -> list[tuple[str, str]]:
        """Further facts for `lmcodec model show`: their names and what they are."""
        return []

    def tensors(self) -> list[tuple[str, ...]]:
        """A table of the tensors for `lmcodec model show`, its first row the headings; empty for none."""
        return []


@dataclass(frozen=True)
class ModelFile(ABC):
    """A model file whose digest and header hold; what its sections hold is not decoded yet.

    Attributes:
        where: what error messages begin with.
        header: what it says of itself.
    """

    where: str
    header: Header
    _sections: dict[str, memoryview] = field(repr=False)

    @property
    def mixer(self) -> bytes:
        """Profiles of the context models beside the model (lmcodec.profile); may be empty."""
        return bytes(self._sections["mixer"])

    @abstractmethod
    def decode(self, n_thread: int = 2) -> LoadedModel:
        """The model in memory.

        Args:
            n_thread: threads that decode weights, 1 to 64.

        Raises:
            Corrupt: a check, a bound or an order rule does not hold, or the content has another id.
        """


class LoadedModel(ABC):
    """A model in memory, as its file holds it; what can run it is made from here.

    Attributes:
        header: what its file says of it.
    """

    header: Header

    @property
    def model_id(self) -> str:
        """16 hexadecimal digits; those of the content, which decoding has compared."""
        return self.header.model_id

    @property
    def known(self) -> str:
        """What an executor's self-test must answer."""
        return self.header.known

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """V byte strings, sorted."""

    def segmenter(self) -> Callable[[Buffer], np.ndarray]:
        """What makes tokens of bytes, any that spell them; it must not keep the weights in memory."""
        return self.vocabulary.segment

    @abstractmethod
    def network(self) -> tuple[_kernel.LanguageModel, str]:
        """The model laid out in the kernel, in the best instruction set that gives the known answer.

        Returns:
            The model, and the name of the instruction set.

        Raises:
            Corrupt: no instruction set of this machine gives the known answer.
        """

    @abstractmethod
    def outside(self, executor: str) -> LanguageModel:
        """The model as an executor other than the kernel computes it, proved by the known answer.

        Args:
            executor: of `lm.executor.EXECUTORS`, but the kernel.

        Raises:
            ConfigError: the kind has no such executor, or torch finds no such device.
            Corrupt: it gives another answer.
        """

    @abstractmethod
    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        """Names and proofs of all that can run the model here; a proof raises LmcodecError where it fails."""


def get(name: str) -> Kind:
    """The kind's module; that of a package, where one registers the kind (`lm.outside`).

    Raises:
        Unsupported: this lmcodec knows no such kind.
    """
    module = MODULES.get(name)
    if module is None:
        from lmcodec.lm import outside

        found = outside.registered(name)
        if found is not None and outside.is_kind(found):
            return cast(Kind, found)
        raise Unsupported(
            f"model of kind {name!r}, which this lmcodec does not know; a newer one, or a package, may "
            f"(known: {', '.join(MODULES)})"
        )
    return cast(Kind, import_module(module))


class NativeExecutor(Protocol):
    """What a kind's executor in the kernel has."""

    @property
    def kernel(self) -> _kernel.LanguageModel: ...

    def self_test(self, known: str) -> None: ...


def proved_network(make: Callable[[str], NativeExecutor], known: str) -> tuple[_kernel.LanguageModel, str]:
    """As `LoadedModel.network`; it warns where the best instruction set answers wrongly.

    Args:
        make: the executor for an instruction set.
        known: what its self-test must answer.
    """
    from lmcodec import _kernel
    from lmcodec.lm import isa as environment

    chosen = environment.usable()
    failure: LmcodecError | None = None
    for isa in [chosen, *(other for other in _kernel.network_isas() if other != chosen)]:
        network = make(isa)
        try:
            network.self_test(known)
        except Corrupt as error:
            failure = error
            continue
        if failure is not None:
            warnings.warn(f"{failure}; {isa} is used instead", RuntimeWarning, stacklevel=3)
        return network.kernel, isa
    assert failure is not None
    raise failure


def executor_checks(
    definition: Callable[[], None],
    make: Callable[[str], NativeExecutor],
    torch: Callable[[str], object],
    known: str,
) -> list[tuple[str, Callable[[], None]]]:
    """As `LoadedModel.checks`.

    Args:
        definition: the proof of the definition.
        make: the executor in the kernel for an instruction set.
        torch: proves itself when it is made for a device.
        known: what self-tests must answer.
    """
    from lmcodec import _kernel

    def native(isa: str) -> None:
        make(isa).self_test(known)

    def outside(device: str) -> None:
        torch(device)

    found = [("definition", definition)]
    found += [(f"kernel, {isa}", partial(native, isa)) for isa in _kernel.network_isas()]
    return [*found, *((f"torch, {device}", partial(outside, device)) for device in torch_devices())]


def torch_devices() -> list[str]:
    """Where torch can run here: none without it, "cpu", "cuda"."""
    from importlib.util import find_spec

    if not find_spec("torch"):
        return []
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def open_file(
    path: str | os.PathLike[str], memory_limit: int | None = None, outside: bool = False
) -> ModelFile:
    """The model file at `path`, its digest and header checked.

    Args:
        path: of the file.
        memory_limit: bytes; a model that takes more, as its header says, is not read to its end.
        outside: what counts is what it takes where another executor than the kernel computes.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LimitExceeded: the model takes more than `memory_limit`.
        BadMagic, Truncated, Corrupt, Unsupported: it is no sound model file of a kind known here.
    """
    from lmcodec.lm import container

    def admit(opened: Container) -> None:
        header = _open(opened).header
        need = header.outside_memory_nbytes if outside else header.memory_nbytes
        if memory_limit is not None and need > memory_limit:
            raise LimitExceeded(
                f"loading model {opened.model_id} takes at least {need} bytes of memory, the limit is "
                f"{memory_limit}; raise memory_limit"
            )

    return _open(container.read(path, memory_limit, admit))


def inspect(data: bytes, where: str = "model") -> Header:
    """What a model file's bytes say of the model, digest and header checked.

    Raises:
        BadMagic, Truncated, Corrupt, Unsupported: as `open_file`.
    """
    from lmcodec.lm import container

    return _open(container.parse(data, where)).header


def read_header(path: str | os.PathLike[str]) -> Header:
    """What the model file at `path` says of itself. Only its header is read and checked, not its digest.

    Raises:
        ModelNotFound, LmcodecError: as `open_file`.
    """
    from lmcodec.lm import container

    return _open(container.read_header(path)).header


def _open(opened: Container) -> ModelFile:
    try:
        return get(opened.kind).open_container(opened)
    except LmcodecError as error:
        if str(error).startswith(f"{opened.where}: "):
            raise
        raise type(error)(f"{opened.where}: {error}") from None
