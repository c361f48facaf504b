"""Priors: text that coding begins with, for data that is too small to be learned from, and their files.

A prior stands for a state (tables, match history, mixer, network), that after its text. It is made once for
each coding, and taken back to after each message, so that a message costs its own bytes only. FORMAT.md
sections 2.6 and 10 say what the bytes of compact frames and of prior files are.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lmcodec import frame
from lmcodec.codec.arguments import available_cpus, byte_view, number
from lmcodec.codec.levels import DEFAULT_LEVEL, LEVELS
from lmcodec.codec.pipeline import Allowance
from lmcodec.codec.spec import EngineSpec, make_engine
from lmcodec.errors import (
    BadMagic,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    PriorNotFound,
    Truncated,
    Unsupported,
)
from lmcodec.frame import CODINGS, Block, Compact, Method, short_prior_id
from lmcodec.lm import store
from lmcodec.lm.folder import complete_file
from lmcodec.lm.store import FilePath, Model

if TYPE_CHECKING:
    from lmcodec.engine import Engine, LmEngine

MAGIC = b"\xb5LMPRIOR"
VERSION = 1
MAX_TEXT_NBYTES = 1 << 20
MAX_HEADER_NBYTES = 1 << 16
MAX_FILE_NBYTES = 4 << 20
DEFAULT_SIZE_NBYTES = 100 << 10
MIN_TABLES_LOG2, MAX_TABLES_LOG2 = 12, 24

# Larger data is coded without a prior: it brings its own.
MAX_MESSAGE_NBYTES = 256 << 10
_FEW_NBYTES = 4 << 10
# Room for a message beside the text in the tables.
_SPARE_NBYTES = 16 << 10

_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST_NBYTES = 32
_TEXT_PROFILE = 3  # that codes the text in the file
_DAMAGED = "the data is damaged"
_CODINGS_OF_METHOD = {method: [i for i, (m, _) in enumerate(CODINGS) if m == method] for method, _ in CODINGS}


class PriorModel(NamedTuple):
    """What coding with a language model takes: the model's id, 16 hexadecimal digits; its profile."""

    model_id: str
    profile: int


class Prior:
    """A text that messages are coded after, in memory.

    One object serves all threads; each has an engine of its own while it codes.

    Args:
        text: any buffer of 1 byte to 1 MiB, what is like the messages last.
        level: the highest level that the prior is to serve; one with a language model (3 to 9) fixes which.
        model: another recurrent model than the level's, by its name, id or file; whoever decompresses must
            have it. It serves levels 3 to 9.
        card: what people may read of it: strings, numbers, lists.

    Attributes:
        id: of text and codings, 8 bytes.
        text: the text.
        profiles: of method cm: that of level 1, that of the others.
        model: of method lm+cm; None for a prior that has none.
        tables_log2: the tables are as large as a block of 2^tables_log2 bytes asks for.
        card: as given.

    Raises:
        TypeError, ValueError: an argument is out of range.
        LmcodecError: the level's model is not there.
    """

    def __init__(
        self,
        text: Any,
        *,
        level: int = DEFAULT_LEVEL,
        model: FilePath | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        plan = LEVELS[number("level", level, min(LEVELS), max(LEVELS))]
        with byte_view(text) as view:
            if not 1 <= len(view) <= MAX_TEXT_NBYTES:
                raise ValueError(f"a prior's text has 1 byte to {MAX_TEXT_NBYTES}, not {len(view)}")
            data = bytes(view)
        if model is not None and not plan.models:
            raise ValueError(f"level {level} uses no language model: model makes no sense with it")
        loaded = None
        if plan.models:
            source = store.own(plan.models) if model is None else store.find(model)
            if source is None:
                raise Unsupported(
                    f"level {level} has no language model here: make the prior for level 1 or 2"
                )
            loaded = store.load(source)
            _require_carried(loaded)
            loaded.profile(1)  # refuses a model without one
        profiles = tuple(LEVELS[each].profile for each in (1, 2))
        of_model = None
        if loaded is not None:
            of_model = PriorModel(loaded.model_id, min(plan.model_profile, len(loaded.profiles)))
        tables_log2 = max((len(data) + _SPARE_NBYTES - 1).bit_length(), MIN_TABLES_LOG2)
        self._set(data, profiles, of_model, tables_log2, dict(card or {}))

    def _set(
        self,
        text: bytes,
        profiles: tuple[int, ...],
        model: PriorModel | None,
        tables_log2: int,
        card: dict[str, Any],
    ) -> None:
        self.text, self.profiles, self.model, self.tables_log2, self.card = (
            text,
            profiles,
            model,
            tables_log2,
            card,
        )
        described = _canonical(self._codings())
        content = b"".join((b"lmcodec prior 1\0", _sized(described), _sized(text)))
        self.id = hashlib.sha256(content).digest()[: frame.PRIOR_ID_NBYTES]
        self._idle: dict[int, deque[Engine | LmEngine]] = {i: deque() for i in range(len(CODINGS))}
        self._loaded: Model | None = None

    def _codings(self) -> dict[str, Any]:
        model = None if self.model is None else self.model._asdict()
        return {"model": model, "profiles": list(self.profiles), "tables_log2": self.tables_log2}

    def __repr__(self) -> str:
        return f"<Prior {self.id.hex()}: {len(self.text)} bytes for {self.describe_levels()}>"

    def describe_levels(self) -> str:
        """The levels that it serves, in words."""
        levels = ", ".join(map(str, self.levels))
        if self.model is None:
            return f"levels {levels} (no language model)"
        names = {shipped.model_id: shipped.name for shipped in store.SHIPPED.values()}
        return f"levels {levels} (model {names.get(self.model.model_id, self.model.model_id)})"

    @property
    def levels(self) -> list[int]:
        """The levels that it serves."""
        shipped = {each.model_id for each in store.SHIPPED.values()}
        served = []
        for level, plan in LEVELS.items():
            if not plan.models or (self.model is not None and self.model.model_id not in shipped):
                served.append(level)
            elif self.model is not None:
                source = store.own(plan.models)
                if source is not None and source.model_id == self.model.model_id:
                    served.append(level)
        return served

    # Codings

    def coding_of(self, level: int, method: Method | None = None) -> int:
        """The coding number (`frame.CODINGS`) of a level.

        Raises:
            ValueError: the prior was not made for it.
        """
        plan = LEVELS[level]
        if method not in (None, Method.CM, Method.LM_CM):
            raise ValueError(f"method {method.label} takes no prior")
        if method == Method.CM or not plan.models:
            return self.profiles.index(plan.profile) if plan.profile in self.profiles else 1
        served = method == Method.LM_CM and self.model is not None
        if not served and level not in self.levels:
            raise ValueError(
                f"prior {self.id.hex()} is for {self.describe_levels()}, not for level {level}: "
                f"choose one of them, or train a prior with --level {level}"
            )
        return _CODINGS_OF_METHOD[Method.LM_CM][0]

    def _spec(self, coding: int, memory_limit: int | None = None) -> EngineSpec:
        """What codes by that number.

        Raises:
            Unsupported, ModelNotFound
        """
        method, which = CODINGS[coding]
        if method == Method.CM:
            return EngineSpec(method, self.profiles[which], 1, 1)
        if self.model is None:
            raise Unsupported(f"prior {self.id.hex()} has no language model, the frame was coded with one")
        if self._loaded is None:
            model = store.for_frame(bytes.fromhex(self.model.model_id), None, memory_limit)
            _require_carried(model)
            self._loaded = model
        return EngineSpec(method, self.model.profile, 1, 1, self._loaded)

    def memory_nbytes(self, coding: int, nbytes: int, encoding: bool = False) -> int:
        """What coding a message of `nbytes` bytes takes at most, the prior's state included."""
        spec = self._spec(coding)
        tables_nbytes = 1 << self.tables_log2
        each = spec.memory_nbytes(max(nbytes, len(self.text)), False, encoding, tables_nbytes)
        shared = 0 if spec.model is None else spec.model.nbytes
        return 2 * (each - shared) + shared + len(self.text)  # tables, and what a message changes of them

    @contextmanager
    def engine(self, coding: int) -> Iterator[Engine | LmEngine]:
        """An engine that has just coded the text, for one message."""
        idle = self._idle[coding]
        try:
            engine = idle.pop()
        except IndexError:
            engine = cast("Engine | LmEngine", make_engine(self._spec(coding)))
            engine.prime(self.text, 1 << self.tables_log2)
        try:
            yield engine
        finally:
            engine.between_calls = None
            if len(idle) < available_cpus() and engine.rewind():
                idle.append(engine)

    def encode(self, data: bytes, coding: int) -> bytes:
        """The payload of a message."""
        with self.engine(coding) as engine:
            engine.few = len(data) <= _FEW_NBYTES
            return engine.encode(data)

    def decode(
        self, payload: bytes, nbytes: int, coding: int, allowance: Allowance | None = None
    ) -> bytearray:
        """The message of `nbytes` bytes that `encode` made `payload` of.

        Raises:
            Corrupt: there is none.
            LimitExceeded: it took more than the allowance.
        """
        with self.engine(coding) as engine:
            spend = None if allowance is None else allowance.meter()
            engine.between_calls = spend
            original = engine.decode(payload, nbytes)
            if spend is not None:
                spend()
            return original

    def block(self, data: bytes, coding: int, short_check: bool = False) -> tuple[Block, bytes]:
        """A message as the block of a compact frame, and its payload."""
        payload = self.encode(data, coding)
        method = CODINGS[coding][0]
        if len(payload) >= len(data):
            method, payload = Method.STORED, data
        compact = Compact(short_prior_id(self.id), coding, short_check)
        block = Block(method, len(data), len(payload), last=True, compact=compact, prior_id=self.id)
        return block, payload

    def frame(self, data: bytes, coding: int, short_check: bool = False) -> bytes:
        """A compact frame of a message of 1 byte to MAX_MESSAGE_NBYTES."""
        block, payload = self.block(data, coding, short_check)
        assert block.compact is not None
        return block.compact.pack() + block.pack(data, payload)

    # Files

    def pack(self) -> bytes:
        """The bytes of its file."""
        from lmcodec.engine import Engine

        engine = Engine(_TEXT_PROFILE)
        coded = engine.encode(self.text)
        header = {"card": self.card, "id": self.id.hex(), "text_nbytes": len(self.text)} | self._codings()
        packed = _canonical(header)
        if len(packed) > MAX_HEADER_NBYTES:
            raise ValueError(f"a prior's card takes {len(packed)} bytes, {MAX_HEADER_NBYTES} at most")
        nbytes = _PREFIX.size + len(packed) + len(coded) + _DIGEST_NBYTES
        body = _PREFIX.pack(MAGIC, VERSION, len(packed), nbytes) + packed + coded
        return body + hashlib.sha256(body).digest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write its file; one that was there is replaced at once, when all is written."""
        with complete_file(path) as file:
            file.write(self.pack())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prior:
        """Read a prior's file.

        Raises:
            OSError: it cannot be read.
            LmcodecError: it is no prior, damaged, of another version.
        """
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_NBYTES + 1)
        try:
            return cls.parse(data)
        except LmcodecError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def parse(cls, data: Any) -> Prior:
        """The prior in the bytes of a file.

        Raises:
            BadMagic, Truncated, Corrupt, Unsupported
        """
        with byte_view(data) as view:
            return cls._parse(bytes(view[: MAX_FILE_NBYTES + 1]))

    @classmethod
    def _parse(cls, data: bytes) -> Prior:
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise BadMagic(f"not a prior: it begins with {data[:8]!r}, a prior with {MAGIC!r}")
        if len(data) < _PREFIX.size:
            raise Truncated("the prior ends inside its first bytes; the rest is missing")
        _, version, header_nbytes, nbytes = _PREFIX.unpack_from(data)
        if version != VERSION:
            raise Unsupported(f"a prior of version {version}, this lmcodec reads {VERSION}")
        least = _PREFIX.size + header_nbytes + _DIGEST_NBYTES
        if header_nbytes > MAX_HEADER_NBYTES or not least <= nbytes <= MAX_FILE_NBYTES:
            raise Corrupt(f"a prior of {nbytes} bytes with a header of {header_nbytes}; {_DAMAGED}")
        if len(data) != nbytes:
            kind = Truncated if len(data) < nbytes else Corrupt
            raise kind(f"the prior should have {nbytes} bytes, {len(data)} are there; {_DAMAGED}")
        body, digest = data[:-_DIGEST_NBYTES], data[-_DIGEST_NBYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise Corrupt(f"the prior does not match its SHA-256; {_DAMAGED}")
        at = _PREFIX.size + header_nbytes
        try:
            header = json.loads(body[_PREFIX.size : at])
            canonical = _canonical(header)
        except (ValueError, RecursionError):
            header, canonical = None, b""
        if canonical != body[_PREFIX.size : at] or not isinstance(header, dict):
            raise Corrupt(f"the prior's header is not in canonical form; {_DAMAGED}")
        return cls._of_header(header, body[at:])

    @classmethod
    def _of_header(cls, header: dict[str, Any], coded: bytes) -> Prior:
        if header.keys() != {"card", "id", "model", "profiles", "tables_log2", "text_nbytes"}:
            raise Unsupported("the prior's header has other members than this lmcodec knows")
        model, profiles, text_nbytes = header["model"], header["profiles"], header["text_nbytes"]
        sound = (
            isinstance(header["card"], dict)
            and isinstance(header["id"], str)
            and type(text_nbytes) is int
            and 1 <= text_nbytes <= MAX_TEXT_NBYTES
            and type(header["tables_log2"]) is int
            and MIN_TABLES_LOG2 <= header["tables_log2"] <= MAX_TABLES_LOG2
            and text_nbytes <= 1 << header["tables_log2"]
            and isinstance(profiles, list)
            and len(profiles) == len(_CODINGS_OF_METHOD[Method.CM])
            and all(type(each) is int and each > 0 for each in profiles)
        )
        of_model = None
        if model is not None:
            sound = sound and isinstance(model, dict) and model.keys() == {"model_id", "profile"}
            if sound:
                of_model = PriorModel(model["model_id"], model["profile"])
                sound = (
                    type(of_model.profile) is int
                    and 1 <= of_model.profile <= 31
                    and _is_id(of_model.model_id)
                )
        if not sound:
            raise Corrupt(f"the prior's header holds a value out of range; {_DAMAGED}")
        unknown = [each for each in profiles if each not in frame.PROFILES]
        if unknown:
            raise Unsupported(f"the prior is for profile {unknown[0]}; a newer lmcodec wrote it")
        from lmcodec.engine import Engine

        text = bytes(Engine(_TEXT_PROFILE).decode(coded, text_nbytes))
        prior = cls.__new__(cls)
        prior._set(text, tuple(profiles), of_model, header["tables_log2"], header["card"])
        if prior.id.hex() != header["id"]:
            raise Corrupt(f"the prior's text is not that of its id {header['id'][:16]!r}; {_DAMAGED}")
        return prior

    @classmethod
    def train(
        cls,
        samples: Iterable[Any],
        *,
        size: int = DEFAULT_SIZE_NBYTES,
        level: int = DEFAULT_LEVEL,
        model: FilePath | None = None,
        card: dict[str, Any] | None = None,
    ) -> Prior:
        """A prior whose text is made of those of the samples that help others most.

        Args:
            samples: messages, any buffers; a tenth of them is kept aside to measure with.
            size: bytes of the text at most, 1 KiB to 1 MiB.
            level, model: as for `Prior`.
            card: beside what training says there.

        Raises:
            ValueError: there are too few samples.
        """
        from lmcodec.codec.cover import choose

        size = number("size", size, 1 << 10, MAX_TEXT_NBYTES)
        chosen = choose([bytes(byte_view(sample)) for sample in samples], size)
        return cls(chosen.text, level=level, model=model, card=chosen.card() | (card or {}))


def _require_carried(model: Model) -> None:
    """Refuse models whose state is not carried from the prior's text to a message."""
    if model.kind != "recurrent" or model.outside is not None:
        raise Unsupported(f"model {model.name}: a prior goes with recurrent models only, as those that ship")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and not set(value) - set("0123456789abcdef")


# One prior, some, or none.
Priors = Prior | Iterable[Prior] | None


def collected(priors: Any) -> tuple[Prior, ...]:
    """What a caller gives as `prior`, as a tuple.

    Raises:
        TypeError: something else is given.
        ValueError: two of them have the same short id, so that compact frames could not tell them apart.
    """
    given = () if priors is None else (priors,) if isinstance(priors, Prior) else tuple(priors)
    by_id: dict[int, Prior] = {}
    for each in given:
        if not isinstance(each, Prior):
            raise TypeError(f"prior must be a Prior or several, not {type(each).__name__}")
        other = by_id.setdefault(short_prior_id(each.id), each)
        if other.id != each.id:
            raise ValueError(f"priors {other.id.hex()} and {each.id.hex()} have the same short id")
    return given


def find(priors: Iterable[Prior], compact: Compact) -> Prior:
    """The prior that a compact frame names.

    Raises:
        PriorNotFound
    """
    given = tuple(priors)
    for each in given:
        if short_prior_id(each.id) == compact.short_id:
            return each
    those = ", ".join(each.id.hex() for each in given)
    offered = (
        f"the one given is {those}" if len(given) == 1 else f"given are {those}" if given else "none is given"
    )
    raise PriorNotFound(
        f"needs the prior whose id begins with {compact.short_id:03x}, and {offered} "
        "(lmz --prior FILE, or prior=)"
    )


def decompress_compact(data: memoryview, priors: Priors) -> bytes | None:
    """What a single compact frame holds that is all of the data; None if it is something else.

    The way of small messages: no objects but the block and what it says.

    Raises:
        LmcodecError: it cannot be decoded.
    """
    header = frame.parse_header(data[: frame.COMPACT_HEADER_NBYTES].tobytes())
    if header is None or header.compact is None:
        return None
    at = frame.COMPACT_HEADER_NBYTES
    where = f"block 1 at offset {at}"
    block = header.parse_block(data[at : at + frame.MAX_BLOCK_HEADER_NBYTES].tobytes(), where)
    if block is None or at + block.nbytes != len(data) or block.original_nbytes > MAX_MESSAGE_NBYTES:
        return None
    try:
        prior = find(collected(priors), header.compact)
    except PriorNotFound as error:
        raise PriorNotFound(f"{where}: {error}") from None
    return bytes(decode_compact(block, data[at + block.header_nbytes :].tobytes(), where, prior))


def decode_compact(
    block: Block, payload: bytes, where: str, prior: Prior, allowance: Allowance | None = None
) -> bytes | bytearray:
    """The original of a compact frame's block, checked.

    Raises:
        Corrupt, LimitExceeded
    """
    assert block.compact is not None
    original: bytes | bytearray = payload
    if block.method != Method.STORED:
        try:
            original = prior.decode(payload, block.original_nbytes, block.compact.coding, allowance)
        except (Corrupt, LimitExceeded) as error:
            raise type(error)(f"{where}: {error}") from None
    check = replace(block, prior_id=prior.id).compute_check(original, payload)
    if check != block.check:
        digits = 2 * block.compact.check_nbytes
        raise Corrupt(
            f"{where}: its check is {block.check:0{digits}X}, its data and prior {prior.id.hex()} give "
            f"{check:0{digits}X}; the data is damaged, or was coded with another prior"
        )
    return original
