"""Bits per byte: of real frames, of the language model alone, of the mixture that is coded.

Sums only: what is kept does not grow with the text. Cross-entropies are ideal code lengths; what a frame
takes beyond that of its mixture (headers, checks, index, the coder's rounding) is the gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lmcodec.codec import (
    AUTO,
    DEFAULT_BLOCK_NBYTES,
    DEFAULT_LEVEL,
    LEVELS,
    Compressor,
    byte_view,
    lm_streams,
)
from lmcodec.engine import LmEngine
from lmcodec.lm.store import FilePath, Model
from lmcodec.measure.blocks import (
    CodedBlock,
    FrameWatch,
    Replay,
    coded_lengths,
    frees_on_error,
    model_of,
    network_lengths,
)


@dataclass(frozen=True)
class Measurement:
    """What a text takes, or several texts together (`+`).

    Attributes:
        nbytes: of the text.
        n_token: that the network cuts it into; None without a language model.
        frame_nbytes: of the frame that `compress` makes; None where the network alone was measured.
        mix_bits: cross-entropy of what is coded, the mixture of language model and context models or 8 bits a
            byte in stored blocks; None where the network alone was measured.
        network_bits: cross-entropy of the language model alone, over the whole text, blocks that are better
            coded without it too; None without a language model.
    """

    nbytes: int
    n_token: int | None
    frame_nbytes: int | None
    mix_bits: float | None
    network_bits: float | None

    @property
    def frame_bpb(self) -> float | None:
        """Bits per byte of the real frame; NaN for an empty text."""
        return self._bpb(None if self.frame_nbytes is None else 8 * self.frame_nbytes)

    @property
    def mix_bpb(self) -> float | None:
        """Bits per byte of what is coded, as cross-entropy."""
        return self._bpb(self.mix_bits)

    @property
    def network_bpb(self) -> float | None:
        """Bits per byte of the network alone, as cross-entropy."""
        return self._bpb(self.network_bits)

    @property
    def gap_bpb(self) -> float | None:
        """Bits per byte that the frame takes beyond the cross-entropy of what is coded."""
        if self.frame_nbytes is None or self.mix_bits is None:
            return None
        return self._bpb(8 * self.frame_nbytes - self.mix_bits)

    @property
    def bits_per_token(self) -> float | None:
        """Bits per token of the network alone."""
        if self.n_token is None or self.network_bits is None:
            return None
        return self.network_bits / self.n_token if self.n_token else math.nan

    def _bpb(self, bits: float | None) -> float | None:
        if bits is None:
            return None
        return bits / self.nbytes if self.nbytes else math.nan

    def __add__(self, other: Measurement) -> Measurement:
        """Both texts together. What either does not have, the sum has not."""
        return Measurement(
            self.nbytes + other.nbytes,
            _sum(self.n_token, other.n_token),
            _sum(self.frame_nbytes, other.frame_nbytes),
            _sum(self.mix_bits, other.mix_bits),
            _sum(self.network_bits, other.network_bits),
        )


def _sum(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


@frees_on_error
def bits_per_byte(
    data: Any,
    level: int = DEFAULT_LEVEL,
    *,
    model: FilePath | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    solid: bool = False,
    streams: int | None = None,
    groups: int | None = None,
    method: str = AUTO,
    network_only: bool = False,
) -> Measurement:
    """What `data` (any buffer) takes when `compress` with the same arguments codes it, and why.

    It is compressed for real, then each block is coded again to see its probabilities: about twice the time.

    Args:
        level, model, block_size, threads, solid, streams, groups, method: see `Compressor`.
        network_only: do not compress, measure the language model alone. It is so, too, for a model that holds
            no profile of the context models beside it, with which only method lm can compress.

    Raises:
        TypeError, ValueError: an argument is out of range, or a model or `network_only` is given for a level
            or a method that uses none.
        LmcodecError: the model is not there or damaged.
    """
    with byte_view(data) as view:
        meter = Meter(
            level,
            model=model,
            block_size=block_size,
            threads=threads,
            solid=solid,
            streams=streams,
            groups=groups,
            method=method,
            network_only=network_only,
        )
        return meter.measure(_pieces(view, meter.block_nbytes), content_size=len(view))


def _pieces(view: memoryview, nbytes: int) -> Iterator[memoryview]:
    return (view[at : at + nbytes] for at in range(0, len(view), nbytes))


class Meter:
    """Measures texts one after another, each as a frame of its own, with the same settings.

    One thread at a time may use it.

    Args: see `bits_per_byte`.

    Attributes:
        model: the language model of the level; None if it has none.
        block_nbytes: bytes of the original in a block.
        network_only: whether only the network is measured.

    Raises: see `bits_per_byte`.
    """

    def __init__(
        self,
        level: int = DEFAULT_LEVEL,
        *,
        model: FilePath | None = None,
        block_size: int | None = None,
        threads: int | None = None,
        solid: bool = False,
        streams: int | None = None,
        groups: int | None = None,
        method: str = AUTO,
        network_only: bool = False,
    ) -> None:
        self._level = level
        self._options: dict[str, Any] = {
            "model": model,
            "block_size": block_size,
            "threads": threads,
            "solid": solid,
            "streams": streams,
            "groups": groups,
            "method": method,
        }
        Compressor(level, **self._options)  # refuses what is wrong
        self.model = model_of(level, model, method)
        if network_only and self.model is None:
            which = f"method {method}" if LEVELS[level].models else f"level {level}"
            raise ValueError(f"{which} uses no language model: network_only makes no sense with it")
        needs_profiles = method != "lm"
        self.network_only = network_only or (
            needs_profiles and self.model is not None and not self.model.profiles
        )
        self.block_nbytes = DEFAULT_BLOCK_NBYTES if block_size is None else int(block_size)
        self._streams = streams
        self._compressor: Compressor | None = None
        self._replay = Replay(self.model)
        self._network: tuple[int, LmEngine] | None = None  # streams, engine

    @frees_on_error
    def measure(
        self,
        pieces: Iterable[Any],
        *,
        content_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Measurement:
        """One text.

        Args:
            pieces: bytes-like, together the text; taken when they are needed.
            content_size: bytes of the text, for the header of its frame: what `compress` knows and one who
                compresses a stream does not.
            progress: called with the bytes of each block that is done.

        Raises:
            ValueError: the text has not as many bytes as `content_size` says.
        """
        try:
            return self._measure(pieces, content_size, progress)
        except BaseException:
            # Engines that stopped anywhere are of no use.
            self._compressor, self._replay, self._network = None, Replay(self.model), None
            raise

    def _measure(
        self,
        pieces: Iterable[Any],
        content_size: int | None,
        progress: Callable[[int], object] | None,
    ) -> Measurement:
        if self.network_only:
            return self._measure_network(pieces, progress)
        compressor = self._compressor
        if compressor is None or content_size is not None:
            compressor = Compressor(self._level, **self._options, content_size=content_size)
        self._compressor = None  # one that stopped inside a frame is of no use
        watch = FrameWatch(compressor)
        sums = _Sums()

        def add(blocks: Iterator[CodedBlock]) -> None:
            for block in blocks:
                self._add(block, sums)
                if progress:
                    progress(len(block.data))

        for piece in pieces:
            add(watch.feed(piece))
        add(watch.finish())
        self._compressor = compressor
        has_model = self.model is not None
        return Measurement(
            sums.nbytes,
            sums.n_token if has_model else None,
            watch.nbytes,
            sums.mix_bits,
            sums.network_bits if has_model else None,
        )

    def _add(self, block: CodedBlock, sums: _Sums) -> None:
        engine = self._replay.engine(block)
        sums.nbytes += len(block.data)
        if engine is None:
            sums.mix_bits += 8 * len(block.data)
        else:
            for decisions in engine.trace(block.data):
                sums.mix_bits += float(coded_lengths(decisions).sum())
                if decisions.network_p16 is not None:
                    sums.network_bits += float(network_lengths(decisions).sum())
        if isinstance(engine, LmEngine):
            sums.n_token += sum(map(len, engine.tokens(block.data)))
        elif self.model is not None:
            self._add_network(self.model, block.data, sums)

    def _add_network(self, model: Model, data: bytes, sums: _Sums) -> None:
        """What the network says of a block that is coded without it."""
        streams = min(self._streams or lm_streams(len(data), LEVELS[self._level], model), len(data))
        if self._network is None or self._network[0] != streams:
            self._network = streams, LmEngine(model, None, streams)
        engine = self._network[1]
        engine.reset()
        for decisions in engine.trace(data):
            sums.network_bits += float(network_lengths(decisions).sum())
        sums.n_token += sum(map(len, engine.tokens(data)))

    def _measure_network(
        self, pieces: Iterable[Any], progress: Callable[[int], object] | None
    ) -> Measurement:
        assert self.model is not None
        sums = _Sums()
        for data in _recut(pieces, self.block_nbytes):
            sums.nbytes += len(data)
            self._add_network(self.model, data, sums)
            if progress:
                progress(len(data))
        return Measurement(sums.nbytes, sums.n_token, None, None, sums.network_bits)


@dataclass
class _Sums:
    nbytes: int = 0
    n_token: int = 0
    mix_bits: float = 0.0
    network_bits: float = 0.0


def _recut(pieces: Iterable[Any], nbytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of `nbytes`, the last one shorter."""
    pending = bytearray()
    for piece in pieces:
        pending += piece
        while len(pending) >= nbytes:
            yield bytes(pending[:nbytes])
            del pending[:nbytes]
    if pending:
        yield bytes(pending)
