"""Models that no model file holds: objects of the caller, models of other packages, models behind a prefix.

`hf:PATH_OR_ID` is a causal model that transformers can load (`lm.hugging_face`). The entry point group
`lmcodec.models` is where a package registers what `--model NAME` means: a `LanguageModel`, what makes one
when it is called without arguments, or a kind of model files (`lm.kinds`). Nothing of a package is imported
until its name is asked for. Importing this module imports neither NumPy nor the kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from lmcodec.errors import ConfigError, LimitExceeded, LmcodecError, ModelNotFound, reason_of
from lmcodec.lm.executor import EXECUTORS, KERNEL
from lmcodec.lm.kinds import Header

if TYPE_CHECKING:
    from lmcodec.lm.bound import BoundModel
    from lmcodec.lm.interface import LanguageModel

GROUP = "lmcodec.models"  # of entry points
# Of what follows a prefix and a colon: each module has a function `open_model(reference, device, **options)`.
PREFIXES = {"hf": "lmcodec.lm.hugging_face.model"}


@dataclass(frozen=True, kw_only=True)
class OutsideHeader(Header):
    """What is known of a model without a file.

    Attributes:
        v: tokens of its vocabulary.
        macs: multiply-accumulates of one step of one stream.
        each_nbytes: that a stream takes, without logits.
        shape: in a line.
    """

    v: int
    macs: int
    each_nbytes: int
    shape: str

    @property
    def n_token(self) -> int:
        return self.v

    @property
    def n_weight(self) -> int:
        return self.macs

    @property
    def macs_per_token(self) -> int:
        return self.macs

    @property
    def memory_nbytes(self) -> int:
        return self.nbytes

    @property
    def outside_memory_nbytes(self) -> int:
        return self.nbytes

    @property
    def block_nbytes(self) -> int:
        return self.outside_block_nbytes

    @property
    def stream_nbytes(self) -> int:
        return self.each_nbytes + 16 * self.v

    @property
    def bits_each(self) -> float:
        return 0.0

    def describe(self) -> str:
        return self.shape


def prefix_of(asked: object) -> str | None:
    """The prefix of what is asked for, if it is one that is known here."""
    prefix, colon, rest = asked.partition(":") if isinstance(asked, str) else ("", "", "")
    return prefix if colon and rest and prefix in PREFIXES else None


def load_model(name: str, *, device: str = "cpu", **options: Any) -> LanguageModel:
    """The model that `hf:PATH_OR_ID` names, or that a package has registered, as an object.

    It can be given for `model=` of `compress` and `decompress`, and of what measures.

    Args:
        name: with the prefix hf:, or registered.
        device: "cpu" or "cuda", of a model of the prefix hf.
        options: of a model of the prefix hf: dtype ("float32", "bfloat16", "float16"), window (tokens that
            its cache holds), download (fetch a model of the hub; otherwise only its local cache is looked
            into), memory_limit (bytes that its weights may take).

    Raises:
        ModelNotFound: there is none of that name.
        ConfigError: a package or a device is missing, or it cannot be loaded.
    """
    if prefix_of(name) is not None:
        prefix, _, reference = name.partition(":")
        module = import_module(PREFIXES[prefix])
        return cast("BoundModel", module.open_model(reference, device, **options))
    if options or device != "cpu":
        raise TypeError(
            f"{name}: device and {', '.join(options) or 'options'} are for models of the prefix hf:"
        )
    found = open_registered(name)
    if found is None:
        raise ModelNotFound(f"{name}: no package registers a model of that name, and it has no prefix hf:")
    return found


def open_prefixed(asked: str, executor: str = KERNEL, **options: Any) -> BoundModel:
    """The model that `PREFIX:REFERENCE` names.

    Args:
        asked: with a prefix that is known.
        executor: whose device it runs on.
        options: the prefix's own.

    Raises:
        ConfigError: there is no such model, or a package or a device is missing.
        LmcodecError: it cannot be used.
    """
    if executor == "numpy":
        raise ConfigError(f"{asked}: runs in floats in PyTorch; executor numpy cannot compute it")
    return cast("BoundModel", load_model(asked, device=EXECUTORS[executor] or "cpu", **options))


def stamp(asked: str) -> tuple[object, ...]:
    """What changes when the files of a model change, as far as that can be seen without reading them."""
    prefix, _, reference = asked.partition(":")
    if prefix_of(asked) is None:
        return ()
    return cast("tuple[object, ...]", import_module(PREFIXES[prefix]).stamp(reference))


def registered(name: str) -> Any:
    """What a package has registered under a name; None if no package has.

    Raises:
        ConfigError: it cannot be imported.
    """
    from importlib.metadata import entry_points

    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        return None
    try:
        return found[0].load()
    except LmcodecError:
        raise
    except Exception as error:  # whatever a package does when it is imported
        raise ConfigError(
            f"{name}: {_package(found[0])} registers it and cannot be loaded: {reason_of(error)}"
        ) from None


def names() -> list[tuple[str, str]]:
    """Names that packages have registered, and what registers each."""
    from importlib.metadata import entry_points

    return sorted((entry.name, _package(entry)) for entry in entry_points(group=GROUP))


def _package(entry: Any) -> str:
    dist = getattr(entry, "dist", None)
    return f"package {dist.name}" if dist is not None else f"entry point {entry.value}"


def is_kind(found: object) -> bool:
    """Whether what a package has registered is a kind of model files."""
    return hasattr(found, "open_container")


def open_registered(name: str) -> LanguageModel | None:
    """The model that a package has registered under a name; None if no package has.

    Raises:
        ConfigError: it is none, or making it fails.
    """
    from lmcodec.lm.interface import LanguageModel

    found = registered(name)
    if found is None or is_kind(found):
        return None
    if not isinstance(found, LanguageModel) and callable(found):
        try:
            found = cast(Callable[[], object], found)()
        except LmcodecError:
            raise
        except Exception as error:  # of the package
            raise ConfigError(f"{name}: making the model fails: {reason_of(error)}") from None
    if not isinstance(found, LanguageModel):
        raise ConfigError(
            f"{name}: is registered as a model and is {type(found).__name__}, expected a LanguageModel"
        )
    return found


def frame_id(model: LanguageModel, mixer: bytes) -> str:
    """What frames call the model: 16 hexadecimal digits.

    Args:
        model: with a `model_id`.
        mixer: profiles of the context models beside it.

    Raises:
        ConfigError: it has none, and so makes no frames.
    """
    if not isinstance(model.model_id, str) or not model.model_id:
        raise ConfigError(
            f"{type(model).__name__}: a model that makes frames has a model_id, a text that names what it "
            "computes"
        )
    digest = hashlib.sha256()
    kind = b"exact" if model.exact else b"bound"
    named = b"lmcodec outside 1\0" + kind, model.model_id.encode(), model.vocabulary.pack(), mixer
    for part in named:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def header_of(model: LanguageModel, model_id: str) -> OutsideHeader:
    """What is known of the model."""
    v = len(model.vocabulary)
    return OutsideHeader(
        kind=type(model).__name__,
        model_id=model_id,
        known="",
        card={},
        sections={"weights": model.nbytes, "tables": 0},
        nbytes=model.nbytes,
        v=v,
        macs=model.macs_per_token,
        each_nbytes=model.stream_nbytes,
        shape=f"{type(model).__name__}, {v} tokens",
    )


def require_memory(model: LanguageModel, memory_limit: int | None) -> None:
    """Refuse a model that takes more than a limit.

    Raises:
        LimitExceeded
    """
    if memory_limit is not None and model.nbytes > memory_limit:
        raise LimitExceeded(
            f"loading model {model.model_id} takes at least {model.nbytes} bytes of memory, the limit is "
            f"{memory_limit}; raise memory_limit"
        )


def mixer() -> bytes:
    """Profiles of the context models that stand beside a model without a file: those of imported ones."""
    from pathlib import Path

    from lmcodec import models

    return Path(models.__file__).with_name(models.IMPORTED_PROFILE).read_bytes()
