"""zarr, version 3 of its format: a codec of bytes to bytes. Version 2 takes the one of `numcodecs`.

An installed lmcodec is found by its entry point; nothing has to be called.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec

import lmcodec

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

NAME = "lmcodec"
DEFAULT_LEVEL = 6


@dataclass(frozen=True)
class LmcodecCodec(BytesBytesCodec):
    """Codes a chunk as one frame. Two with other arguments read each other's chunks.

    Args:
        level: 1 (fast) to 9.
        model: name of the language model of levels 3 to 9; None for the level's own.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    is_fixed_size = False

    level: int = DEFAULT_LEVEL
    model: str | None = None

    def __post_init__(self) -> None:
        lmcodec.Compressor(self.level, model=self.model)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LmcodecCodec:
        if data.get("name") != NAME:
            raise ValueError(f"the codec is called {data.get('name')!r}, expected {NAME!r}")
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        configuration: dict[str, Any] = {"level": self.level}
        if self.model is not None:
            configuration["model"] = self.model
        return {"name": NAME, "configuration": configuration}

    def _encode(self, chunk: bytes) -> bytes:
        return lmcodec.compress(chunk, level=self.level, model=self.model)

    def _decode(self, chunk: bytes) -> bytes:
        return lmcodec.decompress(chunk, model=self.model)

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        coded = await asyncio.to_thread(self._encode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(coded)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        original = await asyncio.to_thread(self._decode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(original)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("the size of a compressed chunk is not known before")


def register() -> None:
    """Register the codec where the entry point is not seen, as from a source folder."""
    register_codec(NAME, LmcodecCodec)
