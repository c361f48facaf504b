"""What a level means: which methods compete for a block, with how many streams; and the choice among them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from lmcodec import frame
from lmcodec.codec.pipeline import REPEAT_SHARE, Encoded, Job, Seat
from lmcodec.codec.spec import Chain, EngineSpec, Key, Numbers
from lmcodec.frame import Block, Method
from lmcodec.lm.store import Model

if TYPE_CHECKING:
    from lmcodec.codec.base import Base


class Level(NamedTuple):
    """How a level codes a block that the caller says nothing else about.

    Attributes:
        profile: of method cm.
        models: shipped models by name; the first that is there competes with method cm.
        model_profile: of the model's profiles, the last one if it has fewer.
        enlarge: slot tables take up to 2^enlarge times the profile's size.
        stream_nbytes: with a language model, a block has a stream for so many bytes, a power of two of
            streams. Streams make decoding faster and cost a little size.
        streams: with a language model, at most.
        second_stream_nbytes: without one, a block of so many bytes has a second stream: while the processor
            waits for what one needs, it works on the other. 0: none has.
    """

    profile: int
    models: tuple[str, ...] = ()
    model_profile: int = 1
    enlarge: int = 0
    stream_nbytes: int = 64 << 10
    streams: int = 16
    second_stream_nbytes: int = 0


LEVELS = (
    {1: Level(3, second_stream_nbytes=512 << 10), 2: Level(2)}
    | {3: Level(2, ("small",), stream_nbytes=16 << 10, streams=32), 4: Level(2, ("small",))}
    | {5: Level(2, ("small",), 2)}
    | {
        6: Level(2, ("base", "small"), 2),
        7: Level(2, ("base", "small"), 2, enlarge=1, stream_nbytes=256 << 10, streams=4),
        8: Level(2, ("base", "small"), 2, enlarge=2, stream_nbytes=1 << 20, streams=2),
        9: Level(2, ("base", "small"), 2, enlarge=3, streams=1),
    }
)
DEFAULT_LEVEL = 6

# What a caller may ask for instead of what makes a block smallest.
METHODS = {"stored": Method.STORED, "cm": Method.CM, "lm+cm": Method.LM_CM, "lm": Method.LM}
AUTO = "auto"

DEFAULT_BLOCK_NBYTES = 4 << 20
MIN_BLOCK_NBYTES = 1 << 10
MAX_STREAMS = {Method.STORED: 128, Method.CM: 4, Method.LM_CM: 128, Method.LM: 128}

# Which of two methods makes a block smaller is seen by coding it with both, which takes longer than decoding
# it. Pieces of a larger block than SAMPLED_NBYTES, one after another, a sixteenth of it but not more than
# SAMPLES of them, tell first. They favour the language model, which knows at once what context models learn
# in time: where these need LM_CLEAR times its bytes or more (LM_CLEAR_LARGE in a block of more than
# LARGE_NBYTES, which gives them longer) they never caught up, and where they need at most CM_CLEAR times as
# many they always won (benchmarks/NOTES.md). In between both are tried, and text that context models get
# below REPETITIVE_BPB in the pieces (records, logs) has a quarter of the streams: it repeats what came just
# before, which lockstep streams cannot see of each other.
SAMPLED_NBYTES = 64 << 10
SAMPLE_SHARE = 16
SAMPLE_NBYTES = 4 << 10
SAMPLES = 16
LM_CLEAR = 1.28
LM_CLEAR_LARGE = 1.35
LARGE_NBYTES = 1 << 20
CM_CLEAR = 1.03
REPETITIVE_BPB = 1.6

# A large model (`Model.is_large`) takes most of the time wherever it is used: pieces alone tell, of every
# block that is not smaller than they are, and whether it is the frame's model at all or the level's own is.
# Its streams begin cold, but know a language from the start: a quarter of the bytes that a level gives the
# shipped models' is enough for them, as far as their keys and values have room.
LARGE_SAMPLED_NBYTES = 16 << 10
LARGE_CLEAR = 1.06
LARGE_STREAM_SHARE = 4
LARGE_STREAMS_NBYTES = 256 << 20

# In a chain (`spec.Chain`) a block of up to so many bytes is coded even where that makes it a little larger:
# to store it would end the chain.
CHAIN_GROWS_NBYTES = 1 << 10


# Numbers of a file of tensors are coded by planes, unless a dictionary makes pieces of the block clearly
# smaller: repetitions, which planes do not see, are for the other methods. Noise, which neither
# makes smaller, is stored: no other method would find anything.
DICTIONARY_LEVEL = 1
DICTIONARY_CLEAR = 0.9
SAMPLES_OF_NUMBERS = 8


class Judgement(NamedTuple):
    """How numbers are best coded, as pieces of them say.

    Attributes:
        by_planes: rather than by the other methods.
        by_base: as differences from a base.
    """

    by_planes: bool
    by_base: bool = False


def judge_numbers(data: bytes, numbers: Numbers, base: Base | None = None) -> Judgement:
    """How a block of a file of tensors is best coded; `numbers.base_at` is tried where it is known."""
    import zlib

    from lmcodec.planes import PlaneEngine
    from lmcodec.tensor_files.layout import record_nbytes

    record = record_nbytes(numbers.layout)
    if len(data) < record:
        return Judgement(False)
    each = max(SAMPLE_NBYTES // record, 1) * record
    n_piece = min(_sample_pieces(len(data)), SAMPLES_OF_NUMBERS)
    starts, each = [0], min(each, len(data))
    if len(data) > n_piece * each:
        last = (len(data) - each) // record
        starts = [i * last // (n_piece - 1) * record for i in range(n_piece)]
    else:
        each = len(data)
    sample = b"".join([data[at : at + each] for at in starts])
    planes = len(PlaneEngine(numbers.layout).encode(sample))
    if numbers.base_at is not None and base is not None:
        first = numbers.base_at
        near = memoryview(b"".join([base.view(first + at, each) for at in starts]))
        engine = PlaneEngine(numbers.layout, base_at=0, base=lambda at, nbytes: near[at : at + nbytes])
        if len(engine.encode(sample)) < planes:
            return Judgement(True, by_base=True)

    def beats_planes(piece: bytes, planes: int) -> bool:
        return len(zlib.compress(piece, DICTIONARY_LEVEL)) < DICTIONARY_CLEAR * min(planes, len(piece))

    if not beats_planes(sample, planes):
        return Judgement(True)
    # Pieces do not show what rows have in common: the whole block is asked before it takes a slow method.
    whole = PlaneEngine(numbers.layout, numbers.row_nbytes).encode(data)
    return Judgement(not beats_planes(data, len(whole)))


def lm_streams(nbytes: int, plan: Level = LEVELS[DEFAULT_LEVEL], model: Model | None = None) -> int:
    """Lockstep streams of a block of `nbytes` bytes with a language model."""
    each, most = plan.stream_nbytes, plan.streams
    if model is not None and model.is_large:
        each //= LARGE_STREAM_SHARE
        most = min(most, max(LARGE_STREAMS_NBYTES // model.stream_nbytes, 1))
    return 1 << min(max(nbytes // each, 1), most).bit_length() - 1


def method_named(name: Any) -> Method | None:
    """The method of that name, None for `auto`.

    Raises:
        TypeError, ValueError
    """
    if not isinstance(name, str):
        raise TypeError(f"method must be a str, not {type(name).__name__}")
    if name != AUTO and name not in METHODS:
        raise ValueError(f"method must be {AUTO}, {', '.join(METHODS)}, not {name!r}")
    return METHODS.get(name)


def encode_block(
    data: bytes,
    key: Key,
    model_nbytes: int,
    last: bool,
    continues: bool,
    chain: Chain | None,
    helped: bool,
    choice: ModelChoice | None,
    seat: Seat,
) -> Encoded:
    """A block by the method of `key` that makes it smallest, or stored.

    A block that is the same as the one before it in the same seat, and continues none, is not coded again.

    Args:
        model_nbytes: what naming the model would cost the frame.
        chain: that the block begins or, if it continues another, is in.
        helped: no other block was at work when this one began: further threads may help. Changes no byte.
        choice: of the frame's model, if this is the block that told.
    """
    source = data, key, model_nbytes, chain
    if not continues and seat.encoded is not None and seat.encoded[0] == source:
        block, packed = seat.encoded[1]
        block = replace(block, last=last)
        return block, block.pack(data, packed[len(packed) - block.payload_nbytes :])
    seat.encoded = None
    if len(key) > 1 and len(data) > _sampled_nbytes(key):
        seat.meter.expect(key, len(data) + _sample_pieces(len(data)) * SAMPLE_NBYTES)
        key = _candidates(data, key, helped, choice, seat)
    seat.meter.expect(key, len(data))
    block, payload, best = Block(Method.STORED, len(data), len(data), last=last), data, len(data)
    if chain is not None and len(data) <= CHAIN_GROWS_NBYTES:
        best += frame.CHAIN_SPARE_NBYTES
    tables_nbytes = 1 << chain.tables_log2 if chain else 0
    with _Trials(data, key, continues, helped, seat, tables_nbytes) as trials:
        for spec in key:
            if trials.has(spec):
                coded = trials.result(spec)
            else:
                coded = seat.engine(spec, continues, helped, tables_nbytes).encode(data)
            cost = len(coded) + (model_nbytes if spec.model else 0)
            if cost < best:
                block, payload, best = spec.block(len(data), len(coded), last, continues, chain), coded, cost
    packed = block.pack(data, payload)
    if not continues and len(payload) * REPEAT_SHARE <= len(data):
        seat.encoded = source, (block, packed)
    return block, packed


class _Trials:
    """All specs of a key but the first, coding the same data in threads of their own where there is a helper.

    Leaving the context with an error ends their work.
    """

    def __init__(
        self, data: bytes, key: Key, continues: bool, helped: bool, seat: Seat, tables_nbytes: int = 0
    ) -> None:
        def payload(spec: EngineSpec, seat: Seat) -> bytes:
            return seat.engine(spec, continues, helped, tables_nbytes).encode(data)

        self._jobs: dict[EngineSpec, Job] = {}
        if helped:
            self._jobs = {spec: Job(partial(payload, spec), 0, seat, seat.cancel) for spec in key[1:]}

    def has(self, spec: EngineSpec) -> bool:
        return spec in self._jobs

    def result(self, spec: EngineSpec) -> bytes:
        payload: bytes = self._jobs[spec].result()
        return payload

    def __enter__(self) -> _Trials:
        for job in self._jobs.values():
            job.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for job in self._jobs.values():
                job.cancel()
            for job in self._jobs.values():
                job.wait()


class ModelChoice(NamedTuple):
    """Which of two models a frame has, as pieces of its first block told.

    Attributes:
        asked: the model that was asked for, a large one.
        other: the level's own.
        asked_nbytes: what `asked` makes of the pieces.
        other_nbytes: what `other` makes of them.
        sample_nbytes: bytes of the pieces.
    """

    asked: Model
    other: Model
    asked_nbytes: int
    other_nbytes: int
    sample_nbytes: int

    @property
    def model(self) -> Model:
        """The better one."""
        return self.asked if self.asked_nbytes < self.other_nbytes else self.other

    @property
    def model_nbytes(self) -> int:
        """What `model` makes of the pieces."""
        return min(self.asked_nbytes, self.other_nbytes)

    def describe(self) -> str:
        """What was chosen and why, in a line."""
        better, worse = self.asked, self.other
        nbytes = self.asked_nbytes, self.other_nbytes
        if self.model is self.other:
            better, worse, nbytes = worse, better, nbytes[::-1]
        return (
            f"model {better.name}: of {self.sample_nbytes:,} bytes it makes {nbytes[0]:,}, "
            f"{worse.name} {nbytes[1]:,}"
        )


def choose_model(data: bytes, asked: EngineSpec, other: EngineSpec, seat: Seat) -> ModelChoice:
    """The model of a frame that begins with `data`.

    Args:
        asked: what would code it with the model that was asked for, a large one.
        other: what would code it with the level's own.
        seat: of the job that this is; its engines are not used.
    """
    sample = _sample(data)
    key = tuple(spec._replace(streams=1, groups=1, enlarge=0) for spec in (asked, other))

    def coded_nbytes(spec: EngineSpec) -> int:
        place = Seat((spec,), seat.make_engine, seat.cancel, seat.meter)
        return len(place.engine(spec, False, True).encode(sample))

    assert asked.model is not None
    assert other.model is not None
    asked_nbytes, other_nbytes = map(coded_nbytes, key)
    return ModelChoice(asked.model, other.model, asked_nbytes, other_nbytes, len(sample))


def _sampled_nbytes(key: Key) -> int:
    """Pieces tell of blocks that have more bytes; of none with a model in floats, whose steps are slow."""
    if any(spec.model is not None and not spec.model.is_exact for spec in key):
        return frame.MAX_BLOCK_NBYTES
    large = any(spec.model is not None and spec.model.is_large for spec in key)
    return LARGE_SAMPLED_NBYTES if large else SAMPLED_NBYTES


def _sample_pieces(nbytes: int) -> int:
    return min(max(nbytes // SAMPLE_SHARE // SAMPLE_NBYTES, 2), SAMPLES)


def _sample(data: bytes) -> bytes:
    """Pieces of a block, one after another; a block that is smaller than they are, whole."""
    n_piece = _sample_pieces(len(data))
    if len(data) <= n_piece * SAMPLE_NBYTES:
        return data
    last = len(data) - SAMPLE_NBYTES
    starts = [i * last // (n_piece - 1) for i in range(n_piece)]
    return b"".join(data[at : at + SAMPLE_NBYTES] for at in starts)


def _candidates(data: bytes, key: Key, helped: bool, choice: ModelChoice | None, parent: Seat) -> Key:
    """Of two specs, the second with a model, those that may be the better one for a large block."""
    sample = _sample(data)
    key_of_sample = tuple(spec._replace(streams=1, groups=1, enlarge=0) for spec in key)
    seat = Seat(key_of_sample, parent.make_engine, parent.cancel, parent.meter)
    tried = key_of_sample if choice is None else key_of_sample[:1]
    with _Trials(sample, tried, False, helped, seat) as trials:
        without = len(seat.engine(key_of_sample[0], False, helped).encode(sample))
        second = key_of_sample[1]
        if choice is not None:  # which coded the same pieces with the model
            beside = choice.model_nbytes
        elif trials.has(second):
            beside = len(trials.result(second))
        else:
            beside = len(seat.engine(second, False, helped).encode(sample))
    if second.model is not None and second.model.is_large:
        return key[:1] if without <= LARGE_CLEAR * beside else key[1:]
    if without <= CM_CLEAR * beside:
        return key[:1]
    if without >= (LM_CLEAR if len(data) <= LARGE_NBYTES else LM_CLEAR_LARGE) * beside:
        return key[1:]
    return tuple(spec.thinned() for spec in key) if 8 * without < REPETITIVE_BPB * len(sample) else key
