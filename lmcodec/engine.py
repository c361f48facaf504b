"""One loop for both directions: language model, context models, mixer and coder over the streams of a block.

The loops themselves run in the kernel (native/lockstep.h, native/token_lockstep.h); here they meet the coder:
encoding collects decisions and codes them in bulk, decoding runs in the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmcodec import _kernel, coder
from lmcodec.errors import ConfigError, Corrupt, Unsupported
from lmcodec.profile import Profile, load

if TYPE_CHECKING:
    from lmcodec.lm.store import Model

_DECISIONS_PER_CALL = 1 << 13  # 12 bytes each on the way to constriction: the second cache is the models'
# What Python and the coder take beside the kernel.
_BUFFER_NBYTES = 3 << 20  # the range encoder, and decisions on their way to it
_BLOCK_NBYTES = 2  # a byte of the block: the block, its payload
_TOKEN_NBYTES = 4  # a byte of the block that is encoded with a language model: its token at most
# A byte of a block that does not get smaller: words in a buffer that doubles as it grows, copies in the
# machine's order and in the format's, the whole block.
_ENCODE_NBYTES = 6


class Decisions(NamedTuple):
    """Some decisions of a block in the order of coding; the arrays hold until the next ones are asked for.

    Attributes:
      bits: (n,) uint8, what was decided.
      p16: (n,) uint16, the probability of a 1 in 65536ths under which it is coded.
      offset: (n,) uint32, the byte of the block that each belongs to; whether a token ends, to the next byte.
      network_p16: (n,) uint16, the probability that the language model alone gives; None without one.
    """

    bits: np.ndarray
    p16: np.ndarray
    offset: np.ndarray
    network_p16: np.ndarray | None


class _Engine:
    """What engines share: encoding, and being watched, and stopped, by the thread that wants their work.

    Attributes:
      between_calls: called between the calls of the kernel, some milliseconds of work each, while a block is
        decoded; what it raises ends the work. None: nothing is.
      few: whether the blocks have few decisions, as for `coder.Encoder`; it changes no byte.
    """

    between_calls: Callable[[], object] | None = None
    few = False
    _loop: _kernel.BlockLoop | _kernel.TokenLoop
    position: int
    _cancel: _kernel.Cancel | None = None

    @property
    def cancel(self) -> _kernel.Cancel | None:
        """The flag that ends the work once it is set: `_kernel.Cancelled` is raised within milliseconds."""
        return self._cancel

    @cancel.setter
    def cancel(self, flag: _kernel.Cancel | None) -> None:
        self._cancel = flag
        self._loop.use_cancel(flag)

    def reset(self, tables_nbytes: int = 0) -> None:
        raise NotImplementedError

    def _begin_encode(self, data: bytes | memoryview) -> Callable[[np.ndarray, np.ndarray], int]:
        """Begin a block; what fills bits and their p16 and returns how many, 0 at the block's end."""
        raise NotImplementedError

    def encode(self, data: bytes | memoryview) -> bytes:
        """The payload of a block that holds `data`, 1 byte a stream to 16 MiB."""
        decisions = self._begin_encode(data)
        bits, p16 = _room(np.uint8), _room(np.uint16)
        encoder = coder.Encoder(self.few)
        while n := decisions(bits, p16):
            encoder.encode(bits[:n], p16[:n])
            self._advance()
        return encoder.finish()

    def prime(self, text: bytes, tables_nbytes: int) -> None:
        """Code a text as the first block of a chain, and go on from there: now, and after each `rewind`.

        Args:
            text: at most `tables_nbytes` bytes; the engine has a single stream.
            tables_nbytes: as for `reset`.

        Raises:
          Unsupported: the language model's state cannot be kept.
        """
        self.reset(tables_nbytes)
        decisions = self._begin_encode(text)
        bits, p16 = _room(np.uint8), _room(np.uint16)
        while decisions(bits, p16):
            pass
        if not self._loop.mark():
            raise Unsupported("this language model's state cannot be kept: it takes no prior")

    def rewind(self) -> bool:
        """Take back all that was coded since `prime`, errors included; False if that is not possible."""
        return self._loop.rewind()

    def _advance(self) -> None:
        self.position = self._loop.position

    def _look_up(self) -> None:
        """To be called between calls of the kernel."""
        if self.between_calls is not None:
            self.between_calls()
        if self._cancel is not None and self._cancel.is_set:
            raise _kernel.Cancelled("the work was cancelled")


class Engine(_Engine):
    """Codes blocks; its tables and history carry over from one call to the next until `reset`.

    One thread at a time may use it. After an exception it must be reset.

    Attributes:
      helped: as `LmEngine.helped`; here there is nothing that a second thread could do.
      position: bytes of the block at hand that are done; any thread may read it.

    Args:
      profile: number of a frozen profile (`lmcodec.profile.FROZEN`, FORMAT.md section 5), or a Profile.
      streams: B, lockstep streams a block, 1 to 4.
      groups: G, 1 or 2, at most B.
      enlarge: the slot table takes up to 2^enlarge times the profile's size, 0 to 3.
      isa: instruction set, "" for the best; None for what `LMCODEC_ISA` names.

    Raises:
      Unsupported: no such profile.
      ConfigError: `LMCODEC_ISA` names an instruction set that this machine lacks.
    """

    def __init__(
        self,
        profile: int | Profile,
        streams: int = 1,
        groups: int = 1,
        enlarge: int = 0,
        *,
        isa: str | None = None,
    ) -> None:
        loaded = load(profile) if isinstance(profile, int) else profile
        self._loop: _kernel.BlockLoop
        self.helped = False
        self.position = 0
        self._loop = _kernel.BlockLoop(loaded.kernel, streams, groups, _mixing_isa(isa), enlarge)

    def reset(self, tables_nbytes: int = 0) -> None:
        """Forget everything: the next block is independent.

        Args:
          tables_nbytes: make the tables as large as a block of so many bytes asks for, which the next one may
            not exceed; 0: as that block itself does.
        """
        self._loop.reset()
        self._loop.size_tables(tables_nbytes)

    def _begin_encode(self, data: bytes | memoryview) -> Callable[[np.ndarray, np.ndarray], int]:
        block = np.frombuffer(data, np.uint8)
        self._loop.begin(len(block))
        return partial(self._loop.encode, block)

    def trace(self, data: bytes | memoryview) -> Iterator[Decisions]:
        """The decisions that `encode` codes; afterwards the engine is as `encode` leaves it."""
        block = np.frombuffer(data, np.uint8)
        self._loop.begin(len(block))
        bits, p16, offset = _room(np.uint8), _room(np.uint16), _room(np.uint32)
        while n := self._loop.trace(block, bits, p16, offset):
            yield Decisions(bits[:n], p16[:n], offset[:n], None)

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        """The `nbytes` bytes that `encode` made `payload` of.

        Raises:
          Corrupt: no encoder writes such a payload. (Most damage shows only in the block's check.)
        """
        self._loop.begin(nbytes)
        out = bytearray(nbytes)
        if coder.use_constriction():
            self._decode_outside(payload, out)
            return out
        self._loop.load(np.frombuffer(payload, np.uint8))
        block = np.frombuffer(out, np.uint8)
        while not self._loop.done:
            self._look_up()
            if not self._loop.decode(block, _DECISIONS_PER_CALL):
                raise Corrupt(coder.NO_WORDS)
            self._advance()
        return out

    def _decode_outside(self, payload: bytes | memoryview, out: bytearray) -> None:
        decoder = coder.Decoder(payload)
        while not self._loop.done:
            self._look_up()
            at = self._loop.offset
            bit = decoder.decode(self._loop.p)
            out[at] = (out[at] << 1 | bit) & 255
            self._loop.push(bit)


class LmEngine(_Engine):
    """Codes blocks with a language model, which context models stand beside or not.

    Tables and history carry over as in `Engine`; the network begins anew with each block.

    One thread at a time may use it. After an exception it must be reset.

    Attributes:
      helped: whether a second thread may run the network beside the coding of the block that begins next.
        Where a single group is decoded, which waits for each step, it takes a part of the step. It changes no
        byte.
      position: as `Engine.position`.

    Args:
      model: the language model with its profiles.
      profile: number of one of these, from 1, or a Profile for a language model; None for the network alone.
      streams: B, lockstep streams a block, 1 to 128.
      groups: G, 1 or 2, at most B.
      enlarge: the slot table takes up to 2^enlarge times the profile's size, 0 to 3.
      isa: as for `Engine`.

    Raises:
      Unsupported: the model has no such profile.
      ConfigError: `LMCODEC_ISA` names an instruction set that this machine lacks.
    """

    def __init__(
        self,
        model: Model,
        profile: int | Profile | None = 1,
        streams: int = 1,
        groups: int = 1,
        enlarge: int = 0,
        *,
        isa: str | None = None,
    ) -> None:
        chosen = model.profile(profile) if isinstance(profile, int) else profile
        kernel = None if chosen is None else chosen.kernel
        self._loop: _kernel.TokenLoop
        self._segment, self._streams = model.segment, streams
        self.helped = False
        self.position = 0
        self._loop = _kernel.TokenLoop(model.coding, kernel, streams, groups, _mixing_isa(isa), enlarge)

    def reset(self, tables_nbytes: int = 0) -> None:
        """As `Engine.reset`."""
        self._loop.reset()
        self._loop.size_tables(tables_nbytes)

    def tokens(self, data: bytes | memoryview) -> list[np.ndarray]:
        """The tokens of a block's streams, (n,) uint32 each."""
        block = np.frombuffer(data, np.uint8)
        borders = [s * len(block) // self._streams for s in range(self._streams + 1)]
        return [self._segment(block[a:b]) for a, b in pairwise(borders)]

    def _begin_encode(self, data: bytes | memoryview) -> Callable[[np.ndarray, np.ndarray], int]:
        block, tokens = np.frombuffer(data, np.uint8), np.concatenate(self.tokens(data))
        self._loop.begin_encode(block, tokens, self.helped)
        return self._loop.encode

    def trace(self, data: bytes | memoryview) -> Iterator[Decisions]:
        """The decisions that `encode` codes; afterwards the engine is as `encode` leaves it."""
        self._begin_encode(data)
        bits, p16, offset, network_p16 = _room(np.uint8), _room(np.uint16), _room(np.uint32), _room(np.uint16)
        while n := self._loop.trace(bits, p16, offset, network_p16):
            yield Decisions(bits[:n], p16[:n], offset[:n], network_p16[:n])

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        """The `nbytes` bytes that `encode` made `payload` of.

        Raises:
          Corrupt: no encoder writes such a payload. (Most damage shows only in the block's check.)
        """
        out = bytearray(nbytes)
        block, words = np.frombuffer(out, np.uint8), np.frombuffer(payload, np.uint8)
        self._loop.begin_decode(block, words, self.helped)
        if coder.use_constriction():
            decoder = coder.Decoder(payload)
            while not self._loop.done:
                self._look_up()
                self._loop.push(decoder.decode(self._loop.p))
            return out
        while not self._loop.done:
            self._look_up()
            if not self._loop.decode(_DECISIONS_PER_CALL):
                raise Corrupt(coder.NO_WORDS)
            self._advance()
        return out


def _room(dtype: type[np.generic]) -> np.ndarray:
    return np.empty(_DECISIONS_PER_CALL, dtype)


def _mixing_isa(isa: str | None) -> str:
    """What `isa`, or LMCODEC_ISA, asks of the mixer, whose instruction sets are fewer than the network's."""
    isa, available = os.environ.get("LMCODEC_ISA", "") if isa is None else isa, _kernel.mixing_isas()
    if not isa or isa in available:
        return isa
    if isa in _kernel.network_isas():
        return next((name for name in available if isa.startswith(name)), available[0])
    raise ConfigError(
        f"LMCODEC_ISA={isa}: not an instruction set of this machine, which has "
        f"{', '.join(available)}; unset it to let lmcodec choose"
    )


def memory_nbytes(
    profile: int,
    block_nbytes: int,
    streams: int = 1,
    chained: bool = False,
    enlarge: int = 0,
    tables_nbytes: int = 0,
    encoding: bool = False,
) -> int:
    """What coding a block of `block_nbytes` bytes takes at most: tables, history, the block and its payload.

    Args:
      chained: the engine keeps what blocks before left (`continues`).
      encoding: the range encoder holds its words, and there are copies of them while it ends.
      enlarge: as for `Engine`.
      tables_nbytes: as for `Engine.reset`.
    """
    kernel = load(profile).kernel
    mixer = _kernel.mixer_memory_nbytes(kernel, block_nbytes, streams, chained, enlarge, tables_nbytes)
    each = _BLOCK_NBYTES + (_ENCODE_NBYTES if encoding else 0)
    return mixer + 4 * kernel.n_learned + _BUFFER_NBYTES + each * block_nbytes


def lm_memory_nbytes(
    model: Model,
    profile: int | None,
    block_nbytes: int,
    streams: int = 1,
    chained: bool = False,
    encoding: bool = False,
    enlarge: int = 0,
    tables_nbytes: int = 0,
) -> int:
    """What coding a block with a language model takes at most, the model included.

    Args:
      profile: None for the network alone.
      chained: the engine keeps what blocks before left (`continues`).
      encoding: the block's tokens are kept.
      enlarge: as for `LmEngine`.
      tables_nbytes: as for `Engine.reset`.

    Raises:
      Unsupported: the model has no such profile.
    """
    kernel = None if profile is None else model.profile(profile).kernel
    loop = _kernel.token_loop_memory_nbytes(
        kernel,
        len(model.vocabulary),
        model.stream_nbytes,
        block_nbytes,
        streams,
        chained,
        encoding,
        enlarge,
        tables_nbytes,
    )
    learned = 0 if kernel is None else 12 * kernel.n_learned  # what coding begins with, and how it is read
    each_byte = _BLOCK_NBYTES + (_TOKEN_NBYTES if encoding else 0)
    return model.nbytes + model.session_nbytes + loop + learned + _BUFFER_NBYTES + each_byte * block_nbytes
