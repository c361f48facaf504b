"""The file that a frame's numbers are coded against: its bytes, its digest, where its tensors lie."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING

from lmcodec import frame
from lmcodec.errors import ConfigError, Corrupt, LmcodecError, ModelNotFound
from lmcodec.frame import Extension, ExtensionType

if TYPE_CHECKING:
    from lmcodec.tensor_files.layout import Tensor

BasePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_DIGEST_NBYTES = 32
_HASHED_NBYTES = 8 << 20


class Base:
    """A file of tensors that is not compressed, mapped into memory.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened.
        ConfigError: it is empty, or compressed.
    """

    def __init__(self, path: BasePath) -> None:
        self.path = os.fsdecode(path)
        with open(path, "rb") as file:
            self.nbytes = os.fstat(file.fileno()).st_size
            if not self.nbytes:
                raise ConfigError(f"the base {self.path} is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._data[: len(frame.MAGIC)] == frame.MAGIC:
            raise ConfigError(f"the base {self.path} is compressed: decompress it first")
        self._lock = threading.Lock()

    @classmethod
    def of(cls, base: BasePath | Base | None) -> Base | None:
        """The base at a path; one that is open, and None, as they are."""
        return base if base is None or isinstance(base, Base) else cls(base)

    def read_at(self, at: int, nbytes: int) -> bytes:
        return self._data[at : at + nbytes]

    def view(self, at: int, nbytes: int) -> memoryview:
        """Its bytes from `at` on.

        Raises:
            Corrupt: it has fewer.
        """
        if at + nbytes > self.nbytes:
            raise Corrupt(f"its base has {self.nbytes} bytes, not {at + nbytes}; the data is damaged")
        return memoryview(self._data)[at : at + nbytes]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name.

        Raises:
            LmcodecError: it is no file of tensors, or its header is damaged.
        """
        from lmcodec.tensor_files.recognise import parse

        try:
            _, tensors = parse(self.read_at, self.nbytes)
        except LmcodecError as error:
            raise type(error)(f"the base {self.path}: {error}") from None
        return {tensor.name: tensor for tensor in tensors}

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for at in range(0, self.nbytes, _HASHED_NBYTES):
            digest.update(self.view(at, min(_HASHED_NBYTES, self.nbytes - at)))
        return digest.digest()

    @property
    def digest(self) -> bytes:
        """SHA-256 of all its bytes."""
        with self._lock:
            return self._digest

    @property
    def extension(self) -> Extension:
        """The field of a frame's header that names it."""
        return Extension(ExtensionType.BASE, self.digest + frame.pack_varint(self.nbytes), critical=True)


def describe(data: bytes) -> str:
    """What a frame's field says of its base.

    Raises:
        Corrupt: it is not of the form.
    """
    digest, size = data[:_DIGEST_NBYTES], frame.parse_varint(data, _DIGEST_NBYTES, "the field of the base")
    if len(digest) < _DIGEST_NBYTES or size is None or size[1] != len(data):
        raise Corrupt(f"the field of the base has {len(data)} bytes; the data is damaged")
    return f"{size[0]:,} bytes, SHA-256 {digest.hex()}"


def for_frame(data: bytes, given: Base | None) -> Base:
    """The base that a frame's field names.

    Raises:
        ModelNotFound: none is given, or another.
        Corrupt: the field is damaged.
    """
    wanted = describe(data)
    if given is None:
        raise ModelNotFound(f"the frame is coded against another file ({wanted}); name it with base=FILE")
    if data[_DIGEST_NBYTES:] != frame.pack_varint(given.nbytes) or data[:_DIGEST_NBYTES] != given.digest:
        raise ModelNotFound(f"{given.path} is not the file that the frame is coded against ({wanted})")
    return given
