"""The container of every model file: prefix, header, sections, digest. FORMAT.md sections 7.1 and 7.2.

Knows no kind of model: what a header's members mean beyond those that all files share, and what the sections
hold, is for the kind's module (`kinds.py`). Nothing is allocated for a number that was not checked before.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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

Buffer = bytes | bytearray | memoryview | np.ndarray  # anything contiguous

MAGIC = b"\xb5LMMODEL"
RECURRENT_VERSION = 1  # names no kind: there was one
VERSION = 2  # names its kind
MAX_NBYTES = {RECURRENT_VERSION: 1 << 28, VERSION: 1 << 34}  # of a file
MAX_HEADER_NBYTES = 1 << 20
MAX_KIND_NBYTES = 40  # of a kind's name

COMMON = ("card", "known", "model_id", "sections")  # members of every header, whatever the kind
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST_NBYTES = 32
_PIECE_NBYTES = 1 << 26  # that are read at once
_HEXADECIMAL = set("0123456789abcdef")


@dataclass(frozen=True)
class Container:
    """A model file whose prefix and header have the right form; what they say is not known here.

    Attributes:
        where: what error messages begin with.
        version: of the container.
        kind: of model.
        content: members of the header.
        nbytes: of the whole file.
    """

    where: str
    version: int
    kind: str
    content: dict[str, Any]
    nbytes: int
    _sections_at: int
    _body: memoryview = field(repr=False)  # the whole file; empty if only its header was read

    @property
    def model_id(self) -> str:
        """16 hexadecimal digits."""
        return str(self.content["model_id"])

    @property
    def known(self) -> str:
        """What an executor must answer, 64 hexadecimal digits."""
        return str(self.content["known"])

    @property
    def card(self) -> dict[str, Any]:
        """What the model is: JSON values, free."""
        return dict(self.content["card"])

    @property
    def sections(self) -> dict[str, int]:
        """Bytes of each section, not checked."""
        return dict(self.content["sections"])

    def sizes(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Bytes of each section.

        Args:
            limits: names of the sections in the order of the file, and the most bytes each may have.

        Raises:
            Corrupt: a section is missing, unknown or too large, or they do not fill the file.
        """
        check_members("sections", self.content["sections"], limits)
        sizes = {
            name: integer(f"bytes of section {name}", self.content["sections"][name], 0, most)
            for name, most in limits.items()
        }
        end = self._sections_at + sum(sizes.values())
        if end + _DIGEST_NBYTES != self.nbytes:
            raise Corrupt(f"sections end at byte {end}, the digest begins at {self.nbytes - _DIGEST_NBYTES}")
        return sizes

    def cut(self, sizes: Mapping[str, int]) -> dict[str, memoryview]:
        """The sections themselves; of a file of which only the header was read, empty ones."""
        at, sections = self._sections_at, {}
        for name, size in sizes.items():
            sections[name] = self._body[at : at + size]
            at += size
        return sections


@contextmanager
def named(where: str) -> Iterator[None]:
    """Errors from within begin with `where`."""
    try:
        yield
    except LmcodecError as error:
        raise type(error)(f"{where}: {error}") from None


# --- writing ---


def pack(
    content: dict[str, Any], sections: Mapping[str, Buffer], kind: str = "", version: int = VERSION
) -> list[Buffer]:
    """The parts of a model file, one after another.

    Args:
        content: members of the header but `kind` and `sections`.
        sections: in the order of the file.
        kind: of model; version 1 names none.
        version: of the container.

    Raises:
        LimitExceeded: the header or the file is larger than it may be.
        ConfigError: the card holds what JSON has no form for.
    """
    content = {**content, "sections": {name: _nbytes(part) for name, part in sections.items()}}
    if version != RECURRENT_VERSION:
        content["kind"] = kind
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
    nbytes = _PREFIX.size + len(header) + sum(content["sections"].values()) + _DIGEST_NBYTES
    if nbytes > MAX_NBYTES[version]:
        raise LimitExceeded(f"model file of {nbytes} bytes, at most {MAX_NBYTES[version]}")
    prefix = _PREFIX.pack(MAGIC, version, len(header), nbytes)
    parts: list[Buffer] = [prefix, header, *sections.values()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part))  # type: ignore[arg-type]
    return [*parts, digest.digest()]


def _nbytes(part: Buffer) -> int:
    return memoryview(part).nbytes  # type: ignore[arg-type]


# --- reading ---


def parse(data: Buffer, where: str = "model") -> Container:
    """The container in a file's bytes. Checks all but the kind's own members and the sections' content.

    Raises:
        BadMagic: the data is no model file.
        Truncated: it ends early.
        Corrupt: a check or a bound does not hold.
        Unsupported: it is of another version.
    """
    with named(where):
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        version, header_nbytes, nbytes = _check_prefix(view)
        if len(view) < nbytes:
            raise Truncated(f"file ends at byte {len(view)} of {nbytes}")
        if len(view) > nbytes:
            raise Corrupt(f"{len(view) - nbytes} bytes after the end of the file")
        if hashlib.sha256(view[:-_DIGEST_NBYTES]).digest() != view[-_DIGEST_NBYTES:]:
            raise Corrupt("file does not match its SHA-256 digest")
        text = bytes(view[_PREFIX.size : _PREFIX.size + header_nbytes])
        return _read_header(where, version, text, nbytes, view)


def read(
    path: str | os.PathLike[str],
    memory_limit: int | None = None,
    admit: Callable[[Container], None] | None = None,
) -> Container:
    """The container in the file at `path`, which is read once, as a whole, into memory.

    Args:
        path: of the file.
        memory_limit: bytes; a larger file is not read.
        admit: called with the header alone before the rest is read; what it refuses by LimitExceeded is not
            read. Other errors wait until it is known whether the digest holds.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LimitExceeded: as said above.
        LmcodecError: as `parse`.
    """
    return parse(_read(path, memory_limit, admit), os.fspath(path))


def read_header(path: str | os.PathLike[str]) -> Container:
    """What the file at `path` says of itself: only its header is read, and nothing but that is checked.

    Raises:
        ModelNotFound: there is no such file, or it cannot be read.
        LmcodecError: as `parse`.
    """
    where = os.fspath(path)
    with _readable(path), open(path, "rb") as file, named(where):
        version, header_nbytes, nbytes = _check_prefix(memoryview(file.read(_PREFIX.size)))
        text = file.read(header_nbytes)
        found = os.fstat(file.fileno()).st_size or nbytes  # a pipe's size is 0
        if len(text) < header_nbytes or found < nbytes:
            raise Truncated(f"file ends at byte {found} of {nbytes}")
        if found > nbytes:
            raise Corrupt(f"{found - nbytes} bytes after the end of the file")
        return _read_header(where, version, text, nbytes, memoryview(b""))


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ModelNotFound(f"{os.fspath(path)}: no such model file") from None
    except OSError as error:
        raise ModelNotFound(f"{os.fspath(path)}: cannot be read: {error.strerror}") from None


def _read(
    path: str | os.PathLike[str], memory_limit: int | None, admit: Callable[[Container], None] | None
) -> Buffer:
    where = os.fspath(path)
    with _readable(path), open(path, "rb", buffering=0) as file:
        # A file that is no model, or larger or smaller than it says, is not read to its end.
        prefix = _read_up_to(file, bytearray(_PREFIX.size))
        try:
            version, header_nbytes, nbytes = _check_prefix(prefix)
        except LmcodecError:
            return prefix
        if memory_limit is not None and nbytes > memory_limit:
            raise LimitExceeded(
                f"{where}: reading it takes {nbytes} bytes of memory, the limit is {memory_limit}; raise "
                "memory_limit"
            )
        text = _read_up_to(file, bytearray(header_nbytes))
        if admit is not None:
            try:
                admit(_read_header(where, version, bytes(text), nbytes, memoryview(b"")))
            except LimitExceeded:
                raise
            except LmcodecError:
                pass
        prefix = memoryview(bytes(prefix) + bytes(text))
        found = os.fstat(file.fileno()).st_size
        if found > nbytes:
            raise Corrupt(f"{where}: {found - nbytes} bytes after the end of the file")
        if not found:  # a pipe: memory is taken for what comes, not for what is announced
            piped = bytearray(prefix)
            while len(piped) < nbytes and (part := file.read(min(nbytes - len(piped), _PIECE_NBYTES))):
                piped += part
            return piped
        data = memoryview(np.empty(found, np.uint8))  # type: ignore[arg-type]
        data[: len(prefix)] = prefix
        return data[: len(prefix) + len(_read_up_to(file, data[len(prefix) :]))]


def _read_up_to(file: Any, room: bytearray | memoryview) -> memoryview:
    """What fills `room`, less where the file ends before."""
    view, at = memoryview(room), 0
    while at < len(view) and (n := file.readinto(view[at : at + _PIECE_NBYTES])):
        at += n
    return view[:at]


def _check_prefix(view: memoryview) -> tuple[int, int, int]:
    """Version, bytes of the header and bytes of the file."""
    start = bytes(view[: len(MAGIC)])
    if start != MAGIC[: len(view)]:
        raise BadMagic(f"not an lmcodec model file: it begins with {start!r}, expected {MAGIC!r}")
    if len(view) < _PREFIX.size:
        raise Truncated(f"file ends at byte {len(view)}, inside its first {_PREFIX.size}")
    _, version, header_nbytes, nbytes = _PREFIX.unpack_from(view)
    if version not in MAX_NBYTES:
        known = " and ".join(map(str, MAX_NBYTES))
        raise Unsupported(f"model file of version {version}; this lmcodec reads versions {known}")
    if header_nbytes > MAX_HEADER_NBYTES:
        raise Corrupt(f"header of {header_nbytes} bytes, at most {MAX_HEADER_NBYTES}")
    if nbytes > MAX_NBYTES[version]:
        raise Corrupt(f"file of {nbytes} bytes, at most {MAX_NBYTES[version]}")
    if nbytes < _PREFIX.size + header_nbytes + _DIGEST_NBYTES:
        raise Corrupt(f"file of {nbytes} bytes with a header of {header_nbytes}")
    return version, header_nbytes, nbytes


def _read_header(where: str, version: int, text: bytes, nbytes: int, body: memoryview) -> Container:
    try:
        content = json.loads(text)
        canonical = _canonical(content) == text
    except (ValueError, RecursionError):
        raise Corrupt("header is not JSON") from None
    if not canonical:
        raise Corrupt("header is not in the canonical form of JSON")
    common = COMMON if version == RECURRENT_VERSION else (*COMMON, "kind")
    if not isinstance(content, dict):
        raise Corrupt("header: header is no object")
    if missing := set(common) - content.keys():
        raise Corrupt(f"header: header lacks {min(missing)!r}")
    kind = "recurrent" if version == RECURRENT_VERSION else content["kind"]
    if not isinstance(kind, str) or not 1 <= len(kind.encode(errors="replace")) <= MAX_KIND_NBYTES:
        raise Corrupt(f"header: the kind is no name of 1 to {MAX_KIND_NBYTES} bytes")
    if not isinstance(content["card"], dict):
        raise Corrupt("header: the card is no object")
    for name, length in (("known", 64), ("model_id", 16)):
        value = content[name]
        if not isinstance(value, str) or len(value) != length or set(value) - _HEXADECIMAL:
            raise Corrupt(f"header: {name} is not {length} hexadecimal digits")
    if not isinstance(content["sections"], dict):
        raise Corrupt("header: sections is no object")
    return Container(where, version, kind, content, nbytes, _PREFIX.size + len(text), body)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def check_members(what: str, value: Any, expected: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse what is no object of the header with exactly these members.

    Raises:
        Corrupt: it is not.
    """
    if not isinstance(value, dict):
        raise Corrupt(f"header: {what} is no object")
    if unknown := value.keys() - set(expected):
        raise Corrupt(f"header: {what} has an unknown member {min(unknown)[:40]!r}")
    if missing := set(expected) - value.keys():
        raise Corrupt(f"header: {what} lacks {min(missing)!r}")


def integer(what: str, value: Any, low: int, high: int) -> int:
    """A number of the header, `low` to `high`.

    Raises:
        Corrupt: it is none.
    """
    if type(value) is not int:
        raise Corrupt(f"header: {what}: {type(value).__name__}, expected an integer")
    if not low <= value <= high:
        found = str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
        raise Corrupt(f"header: {what}: {found}, expected {low} to {high}")
    return value
