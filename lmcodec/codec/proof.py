"""Proof that a frame of a model in floats comes back: it is decoded before its writer gives it out."""

from __future__ import annotations

import hashlib

from lmcodec.codec.base import Base
from lmcodec.codec.decompressor import Decompressor
from lmcodec.errors import Corrupt, Unsupported
from lmcodec.lm.store import FilePath


class Proof:
    """Takes what is compressed and what came of it, and decodes that.

    Args:
        model, executor, threads, base: as for `Decompressor`.
    """

    def __init__(
        self, model: FilePath | None, executor: str, threads: int | None, base: Base | None = None
    ) -> None:
        self._options = {"model": model, "executor": executor, "threads": threads, "base": base}
        self._decompressor: Decompressor | None = None
        self._original, self._decoded = hashlib.sha256(), hashlib.sha256()

    def read(self, data: memoryview) -> None:
        """Take some of the original."""
        self._original.update(data)

    def written(self, data: bytes, ends: bool) -> None:
        """Take some of the frame; `ends`: its rest.

        Raises:
            Unsupported: it does not decode to the original.
        """
        if self._decompressor is None:
            self._decompressor = Decompressor(**self._options)  # type: ignore[arg-type]
        try:
            self._decoded.update(self._decompressor.decompress(data))
        except Corrupt as error:
            raise Unsupported(f"{_WHY} ({error})") from None
        if ends and self._decoded.digest() != self._original.digest():
            raise Unsupported(_WHY)

    def close(self) -> None:
        """Drop what is at work."""
        if self._decompressor is not None:
            self._decompressor.fail(ValueError("closed"))


_WHY = (
    "what was written does not decode to the original: here, the model does not give the same floats twice; "
    "try another --dtype or device, or import the model (lmcodec model import)"
)
