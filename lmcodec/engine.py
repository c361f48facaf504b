"""One loop for both directions: context models, mixer and coder over the streams of a block.

The loop itself runs in the kernel (native/lockstep.h); here it meets the coder: encoding collects
decisions and codes them in bulk, decoding runs in the kernel.
"""

from __future__ import annotations

import os

import numpy as np

from lmcodec import _kernel, coder
from lmcodec.errors import ConfigError, Corrupt
from lmcodec.profile import Profile, load

_DECISIONS_PER_CALL = 1 << 17
_FIXED_NBYTES = 17 << 20  # maps, weights, counters, match tables and buffers of the larger profile
_STREAM_NBYTES = 5 << 20  # what a second stream and each further one adds: match tables, its view of the text
_CHAIN_NBYTES = 48 << 20  # the window that blocks which continue one another keep, while it grows


class Engine:
    """Codes blocks; its tables and history carry over from one call to the next until `reset`.

    One thread at a time may use it. After an exception it must be reset.

    Args:
      profile: number of a frozen profile (FORMAT.md section 5), 1 `fast` or 2 `strong`, or a Profile.
      streams: B, lockstep streams a block, 1 to 4.
      groups: G, 1 or 2, at most B.

    Raises:
      Unsupported: no such profile.
      ConfigError: `LMCODEC_ISA` names an instruction set that this machine lacks.
    """

    def __init__(self, profile: int | Profile, streams: int = 1, groups: int = 1) -> None:
        loaded = load(profile) if isinstance(profile, int) else profile
        isa = os.environ.get("LMCODEC_ISA", "")
        if isa and isa not in _kernel.mixing_isas():
            raise ConfigError(
                f"LMCODEC_ISA={isa}: not an instruction set of this machine, which has "
                f"{', '.join(_kernel.mixing_isas())}; unset it to let lmcodec choose"
            )
        self._coder = _kernel.BlockCoder(loaded.kernel, streams, groups, isa)

    def reset(self) -> None:
        """Forget everything: the next block is independent."""
        self._coder.reset()

    def encode(self, data: bytes | memoryview) -> bytes:
        """The payload of a block that holds `data`, 1 byte a stream to 16 MiB."""
        block = np.frombuffer(data, np.uint8)
        self._coder.begin(len(block))
        bits = np.empty(_DECISIONS_PER_CALL, np.uint8)
        p16 = np.empty(_DECISIONS_PER_CALL, np.uint16)
        encoder = coder.Encoder()
        while n := self._coder.encode(block, bits, p16):
            encoder.encode(bits[:n], p16[:n])
        return encoder.finish()

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        """The `nbytes` bytes that `encode` made `payload` of.

        Raises:
          Corrupt: no encoder writes such a payload. (Most damage shows only in the block's check.)
        """
        self._coder.begin(nbytes)
        out = bytearray(nbytes)
        if coder.use_constriction():
            self._decode_outside(payload, out)
            return out
        self._coder.load(np.frombuffer(payload, np.uint8))
        block = np.frombuffer(out, np.uint8)
        while not self._coder.done:
            if not self._coder.decode(block, _DECISIONS_PER_CALL):
                raise Corrupt(coder.NO_WORDS)
        return out

    def _decode_outside(self, payload: bytes | memoryview, out: bytearray) -> None:
        decoder = coder.Decoder(payload)
        while not self._coder.done:
            at = self._coder.offset
            bit = decoder.decode(self._coder.p)
            out[at] = (out[at] << 1 | bit) & 255
            self._coder.push(bit)


def memory_nbytes(profile: int, block_nbytes: int, streams: int = 1, chained: bool = False) -> int:
    """What coding a block of `block_nbytes` bytes takes at most: tables, history, the block and its payload.

    Args:
      chained: the engine keeps what blocks before left (`continues`).
    """
    extra = (_STREAM_NBYTES * streams if streams > 1 else 0) + (_CHAIN_NBYTES if chained else 0)
    return load(profile).table_nbytes + _FIXED_NBYTES + extra + 4 * block_nbytes
