"""Where models are: those shipped with the package, those in the models folder, and model files.

A model is loaded once a process and proves itself before it is used. Nothing is ever downloaded, nothing but
`container` reads a file, and what kind a model is only `kinds` knows. Importing this module imports neither
NumPy nor the kernel.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lmcodec.errors import (
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    Unsupported,
    clear_frames,
)
from lmcodec.lm import folder
from lmcodec.lm.executor import KERNEL, require

if TYPE_CHECKING:
    import numpy as np

    from lmcodec import _kernel
    from lmcodec.lm.bound import BoundModel, Fingerprint
    from lmcodec.lm.interface import LanguageModel
    from lmcodec.lm.kinds import Header, LoadedModel, ModelFile
    from lmcodec.lm.vocab import Buffer, Vocabulary
    from lmcodec.profile import Profile

    # What names a model: a name, an id or a path; or the model itself.
    FilePath = str | os.PathLike[str] | LanguageModel
else:
    FilePath = str | os.PathLike[str]

MODEL_VARIABLE = "LMCODEC_MODEL"
_KEPT = 4  # models that stay loaded
LARGE_MACS = (
    16_000_000  # a token: of a model that takes most of the time of coding, whatever stands beside it
)


class Shipped(NamedTuple):
    """A model in the package: its name, its file in lmcodec/models and its id (16 hexadecimal digits)."""

    name: str
    file: str
    model_id: str


class Retired(NamedTuple):
    """A model that was shipped: its name, the last version of lmcodec that had it and its id."""

    name: str
    version: str
    model_id: str


# A number, 1 to 127, means one model for ever. Before version 1.0 a model may be replaced: its successor gets
# a number of its own, and it goes to RETIRED; `python tests/golden/hashes.py --write` then renews the hashes.
SHIPPED: dict[int, Shipped] = {
    3: Shipped("small", "small.lmm", "1f79d9220e0a6e29"),
    5: Shipped("base", "base.lmm", "a2691df586ee855a"),
}
RETIRED: dict[int, Retired] = {
    1: Retired("small", "0.1.0.dev0", "f4c70f6296846784"),
    2: Retired("base", "0.1.0.dev0", "7b62a11ffc96a64b"),
    4: Retired("base", "0.1.0.dev0", "4b7bd2c31f821c2c"),
}


@dataclass(frozen=True)
class Source:
    """A model that was found, not read yet.

    Attributes:
        path: of its file.
        number: of a shipped one, None for others.
        model_id: of a shipped one, None for others: the file says it.
        name: of a model that has no file (`lm.outside`), as it was asked for; its path is only what people
            see.
        model: the model itself, where the caller gave it.
    """

    path: Path
    number: int | None = None
    model_id: str | None = None
    name: str | None = None
    model: LanguageModel | None = field(default=None, repr=False, compare=False)

    @property
    def has_file(self) -> bool:
        """Whether a model file holds it."""
        return self.name is None and self.model is None


@dataclass(frozen=True, eq=False)
class Model:
    """A model as loaded: laid out for this machine, with its vocabulary and its profiles.

    Attributes:
        path: of its file.
        number: of a shipped one, None for others.
        model_id: 16 hexadecimal digits.
        header: what its file says of it.
        vocabulary: what it predicts.
        segment: makes (m,) uint32 tokens of bytes: some tokens that spell them.
        isa: the instruction set that its products use; where they are computed outside the kernel, that of
            the sums of frequencies.
        network: laid out in the kernel, or what calls the executor.
        coding: the network and the trie of its vocabulary, in the kernel.
        profiles: of the context models beside it; a block of method lm+cm names the first of them 1.
        nbytes: that it takes in memory, at most, while it is loaded too.
        executor: what computes its steps, of `lm.executor.EXECUTORS`.
        session_nbytes: that computing them takes for each block at work, beside what the kernel counts.
        outside: what computes it, where no model file holds it; None for others.
        called: how it was asked for, where no model file holds it.
    """

    path: Path
    number: int | None
    model_id: str
    header: Header
    vocabulary: Vocabulary
    segment: Callable[[Buffer], np.ndarray] = field(repr=False)
    isa: str
    network: _kernel.LanguageModel = field(repr=False)
    coding: _kernel.TokenCoding = field(repr=False)
    profiles: tuple[Profile, ...] = field(repr=False)
    nbytes: int
    executor: str = KERNEL
    session_nbytes: int = 0
    outside: LanguageModel | None = field(default=None, repr=False)
    called: str = ""

    @property
    def may_be_helped(self) -> bool:
        """Whether a second thread can help with a block: with steps that the kernel computes."""
        return self.executor == KERNEL and self.outside is None

    @property
    def is_exact(self) -> bool:
        """Whether every machine computes the same integers; of others, frames hold a fingerprint."""
        return self.outside is None or self.outside.exact

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What frames say of the environment; None where it does not matter."""
        return None if self.is_exact else cast("BoundModel", self.outside).fingerprint

    @property
    def name(self) -> str:
        """What users call it: a shipped one's name, or its file's without the suffix."""
        if self.outside is not None:
            return self.called
        return SHIPPED[self.number].name if self.number in SHIPPED else self.path.stem

    @property
    def kind(self) -> str:
        """Of model (`lmcodec.lm.kinds`)."""
        return self.header.kind

    @property
    def n_weight(self) -> int:
        """Weights of all tensors."""
        return self.header.n_weight

    @property
    def macs_per_token(self) -> int:
        """Multiply-accumulates of one step of one stream."""
        return self.header.macs_per_token

    @property
    def is_large(self) -> bool:
        """Whether its steps take most of the time of coding, so that no block is coded with it on trial."""
        return self.macs_per_token > LARGE_MACS

    @property
    def stream_nbytes(self) -> int:
        """What a session takes for each stream at most."""
        return self.header.stream_nbytes

    def describe(self) -> str:
        """The shape, in a line."""
        return self.header.describe()

    @property
    def frame_id(self) -> int | bytes:
        """What a frame's header calls it."""
        return bytes.fromhex(self.model_id) if self.number is None else self.number

    def profile(self, number: int) -> Profile:
        """The profile that blocks name by `number`.

        Raises:
            Unsupported: there is none.
        """
        if not self.profiles:
            raise Unsupported(
                f"{self.path}: model {self.model_id} holds no profile of the context models beside it: only "
                "method lm compresses with it (lmcodec model export --mixer adds one)"
            )
        if not 1 <= number <= len(self.profiles):
            raise Unsupported(
                f"profile {number} is unknown to model {self.model_id}, which has 1 to {len(self.profiles)}"
            )
        return self.profiles[number - 1]


def default(name_or_path: FilePath | None = None, names: tuple[str, ...] = ()) -> Source | None:
    """The model to compress with.

    Args:
        name_or_path: what the caller asks for; if None, what LMCODEC_MODEL names.
        names: shipped models, the first that is there is taken if neither says anything.

    Raises:
        ModelNotFound: what was asked for is not there.
    """
    asked = os.environ.get(MODEL_VARIABLE)
    if name_or_path is not None:
        return find(name_or_path)
    if asked:
        try:
            return find(asked)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error} ({MODEL_VARIABLE} in the environment names it)") from None
    return own(names)


def own(names: tuple[str, ...]) -> Source | None:
    """The first shipped model of these names that is there."""
    numbers = {shipped.name: number for number, shipped in SHIPPED.items()}
    return next((_shipped(numbers[name]) for name in names if name in numbers), None)


def find(name_or_path: FilePath) -> Source:
    """The model of that name or id, or in that file; or the model that is given.

    Names of shipped models come first, then those of the models folder, then paths, then names that packages
    have registered: `./NAME` is a file even if there is a model of that name. An id is 16 hexadecimal digits.
    `hf:PATH_OR_ID` is a model that transformers can load.

    Raises:
        ModelNotFound: there is none.
        TypeError: something else is given.
    """
    from lmcodec.lm import outside

    if not isinstance(name_or_path, (str, os.PathLike)):
        from lmcodec.lm.interface import LanguageModel

        if not isinstance(name_or_path, LanguageModel):
            given = type(name_or_path).__name__
            raise TypeError(f"model must be a name, a path or a LanguageModel, not {given}")
        return Source(Path(type(name_or_path).__name__), model=name_or_path)
    asked = os.fspath(name_or_path)
    if outside.prefix_of(asked) is not None:
        return Source(Path(asked), name=asked)
    for number, shipped in SHIPPED.items():
        if asked in (shipped.name, shipped.model_id):
            return _shipped(number)
    if os.path.basename(asked) == asked:
        if found := folder.find(asked):
            return Source(found)
        if re.fullmatch("[0-9a-f]{16}", asked) and (files := folder.with_id(asked)):
            return Source(files[0])
    path = Path(asked)
    if path.is_file():
        return Source(path)
    if os.path.basename(asked) == asked and outside.registered(asked) is not None:
        return Source(Path(asked), name=asked)
    names = ", ".join(shipped.name for shipped in SHIPPED.values()) or "none"
    if path.exists():
        raise ModelNotFound(f"{asked}: not a model file; the shipped models are: {names}")
    raise ModelNotFound(
        f"{asked}: neither a shipped model ({names}) nor one in {folder.shown()} nor a model file"
    )


def for_frame(
    model_id: int | bytes,
    given: FilePath | None = None,
    memory_limit: int | None = None,
    executor: str = KERNEL,
    bound_to: Fingerprint | None = None,
    any_environment: bool = False,
) -> Model:
    """The model that a frame's header names.

    Args:
        model_id: a shipped model's number, or 8 bytes.
        given: where it is if it is not a shipped one; by default what LMCODEC_MODEL names. The models folder
            is searched, too.
        memory_limit: bytes; a model that takes more is not loaded.
        executor: see `load`.
        bound_to: the environment that the frame is bound to, if it is.
        any_environment: try another environment, too.

    Raises:
        ModelNotFound: it is neither shipped, given nor in the models folder.
        Unsupported: the frame is bound to another environment.
        LimitExceeded: it takes more than `memory_limit`.
        LmcodecError: its file is damaged.
    """
    if bound_to is not None:
        return _for_bound_frame(model_id, given, memory_limit, executor, bound_to, any_environment)
    wanted = None if isinstance(model_id, int) else model_id.hex()
    if isinstance(model_id, int):
        if model_id in SHIPPED:
            return load(_shipped(model_id), memory_limit, executor)
        if model_id in RETIRED:
            wanted = RETIRED[model_id].model_id
    else:
        for number, shipped in SHIPPED.items():
            if shipped.model_id == wanted:
                return load(_shipped(number), memory_limit, executor)
    asked = given if given is not None else os.environ.get(MODEL_VARIABLE)
    offered = ""
    if asked:
        try:
            source = find(asked)
            found = id_of(source, memory_limit, executor)
            if found == wanted:
                return load(source, memory_limit, executor)
        except LimitExceeded:
            raise
        except LmcodecError as error:
            if given is not None:
                raise
            offered = f" (the environment's {MODEL_VARIABLE} gives none: {error})"
        else:
            offered = f" (the one given, {_called(asked)}, is {found})"
    if wanted is not None:
        failure: LmcodecError | None = None
        for file in folder.with_id(wanted):
            try:
                return load(Source(file), memory_limit, executor)
            except LimitExceeded:
                raise
            except LmcodecError as error:
                failure = error
        if failure is not None:
            raise failure
    raise ModelNotFound(f"needs {_advice(model_id)}{offered}")


def _called(asked: FilePath) -> str:
    return os.fspath(asked) if isinstance(asked, (str, os.PathLike)) else type(asked).__name__


def _for_bound_frame(
    model_id: int | bytes,
    given: FilePath | None,
    memory_limit: int | None,
    executor: str,
    bound_to: Fingerprint,
    any_environment: bool,
) -> Model:
    """As `for_frame`, of a frame that is bound to an environment."""
    if isinstance(model_id, int):
        raise Corrupt("it names a shipped model and is bound to an environment; the data is damaged")
    asked = given if given is not None else os.environ.get(MODEL_VARIABLE)
    needs = f"needs model {model_id.hex()}, which runs in floats ({bound_to.full()})"
    if not asked:
        raise ModelNotFound(
            f"{needs}; name it, hf:PATH or hf:OWNER/NAME (model=, or {MODEL_VARIABLE} in the environment)"
        )
    source = find(asked)
    if source.has_file:
        raise ModelNotFound(f"{needs}; the one given, {_called(asked)}, is a model file")
    model = load(source, memory_limit, executor, bound_to)
    found = model.fingerprint
    if found is None or model.model_id != model_id.hex():
        weights = "" if found is None else f" (weights {found.model[:16]})"
        raise ModelNotFound(f"{needs}; the one given, {_called(asked)}, is {model.model_id}{weights}")
    if dict(found.environment) != dict(bound_to.environment) and not any_environment:
        from lmcodec.lm.bound import OtherEnvironment

        raise OtherEnvironment(
            f"was written in another environment, and only that one is sure to restore it: there "
            f"{bound_to.describe()}; here {found.describe()}. --force (any_environment=True) tries it; its "
            "checks say whether that worked"
        )
    return model


def id_of(source: Source, memory_limit: int | None = None, executor: str = KERNEL) -> str:
    """The id of a model; one without a file is loaded for it.

    Raises:
        LmcodecError: it cannot be read, or loaded.
    """
    if not source.has_file:
        return load(source, memory_limit, executor).model_id
    if source.model_id:
        return source.model_id
    from lmcodec.lm import container

    return container.read_header(source.path).model_id


def _advice(model_id: int | bytes) -> str:
    """Which model is missing, and what to do."""
    from lmcodec import __version__

    if not isinstance(model_id, int):
        return (
            f"model {model_id.hex()}, which is neither shipped with lmcodec {__version__} nor in "
            f"{folder.shown()}; import it (lmcodec model import), put its file there, or name it (model=, or "
            f"{MODEL_VARIABLE} in the environment), as one that a package brings must be"
        )
    if model_id in RETIRED:
        name, version, wanted = RETIRED[model_id]
        return (
            f"model {model_id}, {name!r} of lmcodec {version} (id {wanted}), which lmcodec {__version__} has "
            f"replaced; decompress with lmcodec {version}"
        )
    return f"model {model_id}, which lmcodec {__version__} does not have; a newer lmcodec may"


def _shipped(number: int) -> Source:
    from lmcodec import models

    shipped = SHIPPED[number]
    return Source(Path(models.__file__).parent / shipped.file, number, shipped.model_id)


_lock = threading.Lock()
_loaded: dict[tuple[object, ...], tuple[Source, Model]] = {}


def load(
    source: Source,
    memory_limit: int | None = None,
    executor: str = KERNEL,
    bound_to: Fingerprint | None = None,
) -> Model:
    """The model, from memory if it was loaded before and its file has not changed. Thread-safe.

    Args:
        source: where it is.
        memory_limit: bytes that loading it may take.
        executor: what is to compute its steps, of `lm.executor.EXECUTORS`.
        bound_to: of a frame, whose settings a model without an exact definition is to have.

    Raises:
        ModelNotFound: its file cannot be read.
        LimitExceeded: it takes more than `memory_limit`; its weights are not decoded then.
        ConfigError: there is no such executor or device.
        Corrupt: it is damaged, not the one that was shipped, or no instruction set of this machine gives its
            known answer.
        LmcodecError: as `kinds.open_file`.
    """
    key: tuple[object, ...]
    settings = None if bound_to is None else tuple(sorted(bound_to.settings.items()))
    if source.has_file:
        try:
            status = source.path.stat()
        except OSError as error:
            raise ModelNotFound(f"{source.path}: cannot be read: {error.strerror}") from None
        key = source, status.st_mtime_ns, status.st_size, os.environ.get("LMCODEC_ISA"), executor
    else:
        # The source is kept beside the model: it keeps the object, whose number no other one has meanwhile.
        key = source.name, id(source.model), os.environ.get("LMCODEC_ISA"), executor, settings
        if source.name is not None:
            from lmcodec.lm import outside

            key += outside.stamp(source.name)
    with _lock:
        kept = _loaded.pop(key, None)
        model = kept[1] if kept else None
        if model is None:
            while len(_loaded) >= _KEPT:
                del _loaded[next(iter(_loaded))]
            try:
                if source.has_file:
                    model = _load(source, memory_limit, executor)
                else:
                    model = _load_outside(source, memory_limit, executor, bound_to)
            except BaseException as error:
                clear_frames(error)  # which would keep the file's content
                raise
        _loaded[key] = source, model  # the most recent last
        return model


class _Profiles:
    """The profiles of a model file, unpacked in a thread of its own while the rest of the file is loaded.

    Either takes about as long as the other, most of it outside of Python.
    """

    def __init__(self, opened: ModelFile) -> None:
        self._opened = opened
        self._profiles: list[Profile] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._parse, name="lmcodec profiles")
        try:
            self._thread.start()
        except RuntimeError:  # there can be no further thread
            self._thread = None
            self._parse()

    def _parse(self) -> None:
        try:
            from lmcodec.profile import parse_all

            self._profiles = parse_all(self._opened.mixer, f"{self._opened.where}: mixer")
        except BaseException as error:
            error.__context__ = None
            self._error = error.with_traceback(None)  # which would keep the file's content with the error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def result(self) -> tuple[Profile, ...]:
        """The profiles.

        Raises:
            Corrupt: as `profile.parse_all`.
        """
        self.wait()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        return tuple(self._profiles)


def _load(source: Source, memory_limit: int | None, executor: str) -> Model:
    require(executor)
    from lmcodec.lm import kinds

    opened = kinds.open_file(source.path, memory_limit, outside=executor != KERNEL)
    profiles = _Profiles(opened)
    try:
        loaded = opened.decode()
    except BaseException:
        profiles.wait()
        raise
    try:
        return assemble(source, loaded, profiles.result, executor)
    finally:
        profiles.wait()


def assemble(
    source: Source, loaded: LoadedModel, profiles: Callable[[], tuple[Profile, ...]], executor: str = KERNEL
) -> Model:
    """The model of a file that is in memory, laid out for an executor and proved.

    Args:
        source: where it is.
        loaded: what its file holds.
        profiles: gives those of the context models beside it.
        executor: as for `load`.

    Raises:
        ConfigError, Corrupt: as `load`.
    """
    from lmcodec import _kernel
    from lmcodec.lm import tables

    header = loaded.header
    if source.model_id is not None and loaded.model_id != source.model_id:
        raise Corrupt(
            f"{source.path}: is model {loaded.model_id}, model {source.number} of this version is "
            f"{source.model_id}; reinstall lmcodec"
        )
    network, isa = _network(loaded, executor)
    vocabulary = loaded.vocabulary
    strings, offsets = vocabulary.flat()
    coding = _kernel.TokenCoding(network, strings, offsets, tables.log2())
    found = profiles()
    own_nbytes = header.memory_nbytes if executor == KERNEL else header.outside_memory_nbytes
    nbytes = own_nbytes + _NODE_NBYTES * len(strings) + 4 * sum(p.kernel.n_learned for p in found)
    session_nbytes = header.block_nbytes if executor == KERNEL else header.outside_block_nbytes
    return Model(
        source.path,
        source.number,
        loaded.model_id,
        header,
        vocabulary,
        loaded.segmenter(),
        isa,
        network,
        coding,
        found,
        nbytes,
        executor,
        session_nbytes,
    )


def _load_outside(
    source: Source, memory_limit: int | None, executor: str, bound_to: Fingerprint | None
) -> Model:
    """A model that no model file holds."""
    require(executor)
    from lmcodec import _kernel
    from lmcodec.lm import isa, outside, tables
    from lmcodec.lm.interface import external
    from lmcodec.profile import parse_all

    called = source.name or str(getattr(source.model, "name", "") or source.path)
    if source.name is not None and outside.prefix_of(source.name) is not None:
        options = {} if bound_to is None else {"settings": bound_to.settings}
        found: LanguageModel = outside.open_prefixed(
            source.name, executor, memory_limit=memory_limit, **options
        )
    else:
        if executor != KERNEL:
            raise ConfigError(f"{called}: computes itself; executor {executor} cannot compute it")
        named = source.model or (outside.open_registered(source.name) if source.name is not None else None)
        if named is None:
            raise ModelNotFound(f"{called}: is registered as a kind of model files, not as a model")
        found = named
        if bound_to is not None and not found.exact:
            found = cast("BoundModel", found).with_settings(bound_to.settings)
    outside.require_memory(found, memory_limit)
    mixer = outside.mixer()
    model_id = outside.frame_id(found, mixer)
    profiles = tuple(parse_all(mixer, "the profile of imported models"))
    chosen = isa.usable()
    network = external(found, chosen)
    strings, offsets = found.vocabulary.flat()
    header = outside.header_of(found, model_id)
    nbytes = header.nbytes + _NODE_NBYTES * len(strings) + 4 * sum(p.kernel.n_learned for p in profiles)
    return Model(
        source.path,
        None,
        model_id,
        header,
        found.vocabulary,
        found.segment,
        chosen,
        network,
        _kernel.TokenCoding(network, strings, offsets, tables.log2()),
        profiles,
        nbytes,
        executor,
        header.outside_block_nbytes,
        found,
        called,
    )


_NODE_NBYTES = 64  # of a vocabulary's two tries, for each byte of its strings


def _network(loaded: LoadedModel, executor: str) -> tuple[_kernel.LanguageModel, str]:
    """The model as the kernel's loop takes it, proved, and the name of the instruction set."""
    if executor == KERNEL:
        return loaded.network()
    from lmcodec.lm import isa
    from lmcodec.lm.interface import external

    chosen = isa.usable()
    return external(loaded.outside(executor), chosen), chosen
