"""Where the time of coding a block goes, in both directions, on one thread.

The codec runs as it always does, its choice of the method included; it is given engines that are watched.
In the kernel a clock is switched on (native/phase_clock.h), which gives the time since its last mark to the
part of a round that has just ended. Calls from Python are timed around it, so that all parts together are the
whole. A run with nothing measured is timed beside it: by what the measured one took longer, each part is
lowered as it has marks, but at most by what a mark takes by itself, which the clock knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from lmcodec import coder, engine, frame
from lmcodec.codec import DEFAULT_LEVEL, MIN_BLOCK_NBYTES, Compressor, Decompressor, compress, frame_info
from lmcodec.codec.spec import MakeEngine, make_engine
from lmcodec.errors import ConfigError, LmcodecError
from lmcodec.lm.store import FilePath
from lmcodec.measure.blocks import frees_on_error, model_of

STAGES = {
    "choice": "choice of the method: samples, trials",
    "segment": "segmentation",
    "products": "network: products",
    "elements": "network: element work",
    "frequencies": "network: exp2 and frequencies",
    "sums": "sums and stretches of decisions",
    "lookup": "context models: look-up",
    "predict": "context models and mixer: prediction",
    "update": "context models and mixer: update",
    "byte": "ends of bytes: text, matches, trie",
    "coder": "coder",
    "tables": "tables and start states",
    "rest": "Python and the rest",
}
MAX_NBYTES = frame.MAX_BLOCK_NBYTES
_WARM_NBYTES = 4 << 10
_PHASES = ("network", "lookup", "sums", "predict", "coder", "update", "byte")  # of the kernel's clock
_NETWORK = ("products", "elements", "frequencies")
_BEGINNING = ("begin", "begin_encode", "begin_decode", "load")
_CODING = ("encode", "decode")


@dataclass(frozen=True)
class Direction:
    """What coding a block in one direction took.

    Attributes:
      seconds: of the whole call, what measuring took aside; `plain_seconds`, unless the machine was busier
        with one of the two runs than with the other.
      plain_seconds: of the same call with nothing measured.
      cpu_seconds: that the process had a processor during the plain call.
      stages: seconds by the names of STAGES, all of them; their sum is `seconds`.
    """

    seconds: float
    plain_seconds: float
    cpu_seconds: float
    stages: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class BlockTiming:
    """Where the time of a block goes.

    Attributes:
      nbytes, packed_nbytes: of the original and of the frame.
      level: of `compress`.
      method: that the codec chose: `stored`, `cm`, `lm+cm`, `lm` or `tensor`.
      profile, streams, groups: how the block is coded; 0 if stored.
      model_id, isa: of the network and the instruction set of its products; None for methods without one.
      macs_per_token: multiply-accumulates of the network's products for a token.
      n_token: of the block; 0 without a network.
      n_decision: that were coded.
      encode, decode: the fastest of the runs.
    """

    nbytes: int
    packed_nbytes: int
    level: int
    method: str
    profile: int
    streams: int
    groups: int
    model_id: str | None
    isa: str | None
    macs_per_token: int
    n_token: int
    n_decision: int
    encode: Direction
    decode: Direction

    @property
    def macs_per_byte(self) -> float:
        return self.macs_per_token * self.n_token / self.nbytes

    def product_rate(self, direction: Direction) -> float | None:
        """Multiply-accumulates a second that the network's products reach; None without a network."""
        seconds = direction.stages["products"]
        return self.macs_per_token * self.n_token / seconds if self.n_token and seconds else None


class _Watch:
    """Stands for a loop of the kernel and times the calls it gets.

    Attributes:
      begin_seconds, coding_seconds: spent in calls that begin a block, and in those that code it.
      coding_began: when the first of the latter was called.
      n_decision: that `encode` gave out.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.begin_seconds = self.coding_seconds = 0.0
        self.coding_began: float | None = None
        self.n_decision = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kernel, name)
        return self._timed(name, value) if name in _BEGINNING or name in _CODING else value

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = call(*arguments)
            spent = time.perf_counter() - began
            if name in _BEGINNING:
                self.begin_seconds += spent
            else:
                self.coding_seconds += spent
                self.coding_began = began if self.coding_began is None else self.coding_began
                self.n_decision += result if name == "encode" else 0
            return result

        return timed


@dataclass
class _Call:
    """One call of an engine that was watched.

    Attributes:
      payload: of the block, given or made.
      seconds: that it took.
      stages: seconds of the stages that are known; the rest is what is left of `seconds`.
      clock: how much of these the clock took at most.
    """

    payload: bytes
    seconds: float
    n_token: int
    n_decision: int
    stages: dict[str, float]
    clock: dict[str, float]

    @property
    def clock_seconds(self) -> float:
        return sum(self.clock.values())


_AnyEngine = TypeVar("_AnyEngine", "_TimedEngine", "_TimedLmEngine")


def _watched(
    timed: _AnyEngine, work: Callable[[], bytes | bytearray], payload: bytes | memoryview | None = None
) -> bytes | bytearray:
    """What `work`, a call of an engine, returns, with an entry in the engine's list of calls.

    Args:
      payload: that is decoded; None if it encodes.
    """
    kernel = timed._loop
    kernel.timed = True
    timed.segment_seconds, timed.n_token = 0.0, 0
    watch = _Watch(kernel)
    timed._loop = cast(Any, watch)
    began = time.perf_counter()
    try:
        result = work()
    finally:
        ended = time.perf_counter()
        timed._loop = kernel
    times, clock = kernel.times, kernel.clock_times
    kernel.timed = False
    stages = {name: times[name] for name in _PHASES[1:]}
    clock["sums"] += clock.pop("network")
    network = {name: times.get(name, 0.0) for name in _NETWORK}
    stages |= network
    # Encoding answers decisions between two pieces of the network's work.
    stages["sums"] += max(times["network"] - sum(network.values()), 0.0)
    in_kernel = watch.begin_seconds + watch.coding_seconds
    stages["tables"] = in_kernel - sum(times[name] for name in _PHASES)
    stages["segment"] = timed.segment_seconds
    if payload is None and watch.coding_began is not None:
        stages["coder"] += ended - watch.coding_began - watch.coding_seconds
    coded = bytes(result if payload is None else payload)
    timed.calls.append(_Call(coded, ended - began, timed.n_token, watch.n_decision, stages, clock))
    return result


class _TimedEngine(engine.Engine):
    segment_seconds = 0.0
    n_token = 0

    def __init__(self, calls: list[_Call], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls = calls

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(_watched(self, lambda: super(_TimedEngine, self).encode(data)))

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        return bytearray(
            _watched(self, lambda: super(_TimedEngine, self).decode(payload, nbytes), payload=payload)
        )


class _TimedLmEngine(engine.LmEngine):
    segment_seconds = 0.0
    n_token = 0

    def __init__(self, calls: list[_Call], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls = calls

    def tokens(self, data: bytes | memoryview) -> list[np.ndarray]:
        began = time.perf_counter()
        tokens = super().tokens(data)
        self.segment_seconds = time.perf_counter() - began
        self.n_token = sum(map(len, tokens))
        return tokens

    def encode(self, data: bytes | memoryview) -> bytes:
        return bytes(_watched(self, lambda: super(_TimedLmEngine, self).encode(data)))

    def decode(self, payload: bytes | memoryview, nbytes: int) -> bytearray:
        return bytearray(
            _watched(self, lambda: super(_TimedLmEngine, self).decode(payload, nbytes), payload=payload)
        )


@dataclass
class _Run:
    """One call of the codec: what came out and what it took."""

    result: bytes
    seconds: float
    cpu_seconds: float
    calls: list[_Call]


def _run(work: Callable[[MakeEngine], bytes], *, watched: bool) -> _Run:
    """Call `work` with what makes its engines, which note their calls if they are watched."""
    calls: list[_Call] = []
    make = make_engine
    if watched:
        make = partial(make_engine, cm=partial(_TimedEngine, calls), lm=partial(_TimedLmEngine, calls))
    cpu, began = time.process_time(), time.perf_counter()
    result = work(make)
    return _Run(result, time.perf_counter() - began, time.process_time() - cpu, calls)


def _compress(make: MakeEngine, data: bytes, level: int, block_nbytes: int, **options: Any) -> bytes:
    compressor = Compressor(level, block_size=block_nbytes, threads=1, content_size=len(data), **options)
    compressor.make_engines_by(make)
    return compressor.compress(data, Compressor.FLUSH_FRAME)


def _decompress(make: MakeEngine, packed: bytes, model: FilePath | None) -> bytes:
    decompressor = Decompressor(threads=1, model=model)
    decompressor.make_engines_by(make)
    return decompressor.decompress(packed)


def _direction(plain: list[_Run], watched: list[_Run], payload: bytes) -> tuple[Direction, _Call | None]:
    """The fastest runs, and the call in them that coded `payload`."""
    best, fastest = (min(runs, key=lambda run: run.seconds) for runs in (watched, plain))
    kept = next((call for call in reversed(best.calls) if call.payload == payload), None)
    others = [call for call in best.calls if call is not kept]
    stages = dict.fromkeys(STAGES, 0.0) | (kept.stages if kept else {})
    stages["choice"] = sum(call.seconds for call in others)
    stages["rest"] = best.seconds - sum(stages.values())
    clock = dict(kept.clock) if kept else {}
    clock["choice"] = sum(call.clock_seconds for call in others)
    most = sum(clock.values())
    share = min(max((best.seconds - fastest.seconds) / most, 0.0), 1.0) if most else 0.0
    for name, seconds in clock.items():
        stages[name] -= share * seconds
    return Direction(best.seconds - share * most, fastest.seconds, fastest.cpu_seconds, stages), kept


@frees_on_error
def time_block(
    data: Any,
    level: int = DEFAULT_LEVEL,
    *,
    model: FilePath | None = None,
    method: str = "auto",
    runs: int = 1,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> BlockTiming:
    """Compress `data` as one block and decompress it, on one thread, and tell where the time goes.

    The frame is the same, byte for byte, as with nothing measured; that is checked.

    Args:
      data: any buffer of 1 byte to 16 MiB.
      level, model, method: as for `compress`.
      runs: how often, plain and watched in turn; the fastest count.
      on_step: told how many of how many runs of the codec are done.

    Raises:
      ValueError: an argument is out of range, or `data` is empty or too long.
      ConfigError: LMCODEC_CODER asks for another decoder than the kernel's own.
      LmcodecError: the model is not there, damaged or not one to compress with.
    """
    data = bytes(data)
    if not 0 < len(data) <= MAX_NBYTES:
        raise ValueError(f"a block has 1 to {MAX_NBYTES} bytes, not {len(data)}")
    if runs < 1:
        raise ValueError(f"runs must be at least 1, not {runs}")
    if coder.use_constriction():
        raise ConfigError(
            "LMCODEC_CODER=constriction: only the kernel's own decoder can be timed; unset LMCODEC_CODER"
        )
    options: dict[str, Any] = {"model": model, "method": method}
    block_nbytes = max(len(data), MIN_BLOCK_NBYTES)

    pack = partial(_compress, data=data, level=level, block_nbytes=block_nbytes, **options)
    # What is loaded once a process is there, and its code warm, before the first run.
    compress(data[:_WARM_NBYTES], level, **options)
    network = model_of(level, model)
    encode_runs: tuple[list[_Run], list[_Run]] = ([], [])
    decode_runs: tuple[list[_Run], list[_Run]] = ([], [])
    done, total = 0, 4 * runs
    for _ in range(runs):
        packed = b""
        for watched in (False, True):
            on_step(done, total)
            run = _run(pack, watched=watched)
            _require(not packed or run.result == packed, "compressed otherwise while it was measured")
            packed = run.result
            encode_runs[watched].append(run)
            done += 1
        for watched in (False, True):
            on_step(done, total)
            run = _run(partial(_decompress, packed=packed, model=model), watched=watched)
            _require(run.result == data, "did not come back from its frame")
            decode_runs[watched].append(run)
            done += 1
    on_step(done, total)

    info = frame_info(packed)
    assert info.blocks is not None
    block = info.blocks[0]
    at = info.header_nbytes + block.header_nbytes
    payload = packed[at : at + block.payload_nbytes]
    encode, kept = _direction(*encode_runs, payload)
    decode, _ = _direction(*decode_runs, payload)
    assert (kept is None) == (not block.method.has_streams)
    uses_network = network is not None and block.method.needs_model
    return BlockTiming(
        nbytes=len(data),
        packed_nbytes=len(packed),
        level=level,
        method=block.method.label,
        profile=block.profile,
        streams=block.streams,
        groups=block.groups,
        model_id=network.model_id if uses_network and network else None,
        isa=network.isa if uses_network and network else None,
        macs_per_token=network.macs_per_token if uses_network and network else 0,
        n_token=kept.n_token if kept else 0,
        n_decision=kept.n_decision if kept else 0,
        encode=encode,
        decode=decode,
    )


def _require(good: bool, what: str) -> None:
    if not good:
        raise LmcodecError(f"the text {what}: this build of lmcodec is broken, please report it")
