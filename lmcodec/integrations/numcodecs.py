"""numcodecs: a codec that zarr (version 2 of its format) and others find by its id.

An installed lmcodec is found by its entry point; nothing has to be called.
"""

from __future__ import annotations

from typing import Any, ClassVar

from numcodecs import registry
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy

import lmcodec

DEFAULT_LEVEL = 6


class LmcodecCodec(Codec):
    """Codes a chunk as one frame. Two with other arguments read each other's chunks.

    Args:
        level: 1 (fast) to 9.
        model: name of the language model of levels 3 to 9; None for the level's own.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    codec_id: ClassVar[str] = "lmcodec"

    def __init__(self, level: int = DEFAULT_LEVEL, model: str | None = None) -> None:
        lmcodec.Compressor(level, model=model)
        self.level, self.model = level, model

    def encode(self, buf: Any) -> bytes:
        return lmcodec.compress(ensure_contiguous_ndarray(buf), level=self.level, model=self.model)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk; into `out`, which then has exactly its size, if it is given.

        Raises:
            LmcodecError: it is no frame, damaged, or has more bytes than `out`.
        """
        buf = ensure_contiguous_ndarray(buf)
        if out is None:
            return ndarray_copy(lmcodec.decompress(buf, model=self.model), None)
        out = ensure_contiguous_ndarray(out)
        original = lmcodec.decompress(buf, max_output=out.nbytes, model=self.model)
        if len(original) != out.nbytes:
            raise ValueError(f"the chunk has {len(original)} bytes, the buffer given for it {out.nbytes}")
        return ndarray_copy(original, out)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"id": self.codec_id, "level": self.level}
        return config if self.model is None else {**config, "model": self.model}


def register() -> None:
    """Register the codec where the entry point is not seen, as from a source folder."""
    registry.register_codec(LmcodecCodec)
