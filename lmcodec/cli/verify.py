"""Proof that what was written decodes to what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lmcodec.codec import Decompressor
from lmcodec.codec.base import Base
from lmcodec.codec.prior import Priors
from lmcodec.errors import Corrupt
from lmcodec.lm.store import FilePath

_OUTPUT_NBYTES = 1 << 18


class Verifier:
    """Takes what was read and the one frame that was written, in pieces, and compares by SHA-256."""

    def __init__(
        self,
        threads: int | None = None,
        model: FilePath | None = None,
        executor: str = "kernel",
        prior: Priors = None,
        base: Base | None = None,
    ) -> None:
        self._decompressor = Decompressor(
            threads=threads, model=model, executor=executor, prior=prior, base=base
        )
        self._original, self._decoded = hashlib.sha256(), hashlib.sha256()

    def position(self) -> tuple[int, int]:
        """As `Decompressor.position`."""
        return self._decompressor.position

    def read(self, data: bytes) -> None:
        self._original.update(data)

    def written(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece of the frame, not empty; yields what it decodes to.

        Raises:
          LmcodecError: it cannot be decoded.
        """
        if self._decompressor.eof:
            raise Corrupt("what was written goes on after the frame")
        while True:
            decoded = self._decompressor.decompress(data, _OUTPUT_NBYTES)
            self._decoded.update(decoded)
            yield decoded
            if self._decompressor.eof or self._decompressor.needs_input:
                return
            data = b""

    def finish(self) -> None:
        """Compare.

        Raises:
          Corrupt: what was written does not decode to what was read.
        """
        complete = self._decompressor.eof and not self._decompressor.unused_data
        if not complete or self._decoded.digest() != self._original.digest():
            raise Corrupt("what was written does not decode to what was read")
