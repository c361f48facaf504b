"""Whether everything that can run a model here computes what it should, as hashes that two people compare.

A fixed text is coded by the language model alone, in as many copies as a batch has streams, by each executor,
instruction set, batch and number of threads. The *network* hash is SHA-256 of the probabilities of the first
copy's decisions: the same for all of them, and on every machine. Coding runs the model over many positions at
once; what came of it is decoded, step by step. The *frame* hash is that of a whole frame of the same text,
context models included, for which the hash of a shipped model is known, too.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from lmcodec import _kernel, coder
from lmcodec.codec import available_cpus
from lmcodec.engine import LmEngine
from lmcodec.errors import ConfigError, Corrupt, LmcodecError, one_line
from lmcodec.lm import executor as executors
from lmcodec.lm import kinds, store
from lmcodec.lm.isa import VARIABLE
from lmcodec.lm.store import FilePath, Model, Source
from lmcodec.profile import parse_all

INSTRUCTION_SETS = ("amx", "avx512vnni", "avx2", "neon", "scalar")
SLOW = "scalar", "numpy"  # what takes minutes with a large model
TEXT = b'It is a truth universally acknowledged, {"id": 7, "x": -1e9}\r\n\tfor (; i < n; ++i)\n' + (
    "Größe, 東京\n".encode()
)
FRAME_STREAMS = 4
# Of shipped models by their ids: what this test gives, SHA-256 of network and frame.
KNOWN: dict[str, tuple[str, str]] = {
    "1f79d9220e0a6e29": (
        "0940a23e31fbd801528046d60e248289b46a3bc1891927570914fc9f16fd8be9",
        "3e9585ab41c7e5f5115fcc5c656b46d9bef001f756b69ceaa60a2c9c0d48f87a",
    ),
    "a2691df586ee855a": (
        "5d3ccf9b91197eae95fae2e9b5af17d581b2a0364d8809dee9089329ec2e0b88",
        "b204a74d9dc2f30883a245ee7076bdbb8f1253d4ca3cdc99ddb980d77f56a9ce",
    ),
}


@dataclass(frozen=True)
class Row:
    """One way to run a model.

    Attributes:
        executor: of `lm.executor.EXECUTORS`; "own" for a model that computes itself.
        isa: instruction set of the kernel.
        what: "network", or "frame" for all of a frame.
        batch: streams at once.
        threads: that may be used.
        hash: SHA-256 in hexadecimal; empty where it failed.
        error: why it failed; empty where it did not.
    """

    executor: str
    isa: str
    what: str
    batch: int
    threads: int
    hash: str
    error: str = ""


@dataclass
class Tested:
    """A model and all ways to run it here.

    Attributes:
        name, model_id: of the model.
        rows: what was run.
        known: hashes that are known of a shipped model, by what is hashed; empty for others.
    """

    name: str
    model_id: str
    rows: list[Row] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)

    def expected(self, what: str) -> str:
        """The known hash; else the first that came out."""
        found = (row.hash for row in self.rows if row.what == what and row.hash)
        return self.known.get(what) or next(found, "")

    def is_right(self, row: Row) -> bool:
        return bool(row.hash) and row.hash == self.expected(row.what)

    @property
    def agrees(self) -> bool:
        """Whether all that was run gave what it should."""
        return bool(self.rows) and all(map(self.is_right, self.rows))


@dataclass
class SelfTest:
    """What `run` found.

    Attributes:
        models: tested, in order.
        left_out: what was not run, and why.
    """

    models: list[Tested] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return bool(self.models) and all(tested.agrees for tested in self.models)


def run(
    models: list[FilePath] | None = None,
    everything: bool = False,
    told: Callable[[str], object] = lambda what: None,
) -> SelfTest:
    """Test models.

    Args:
        models: names, files or models; None for those that come with lmcodec.
        everything: also what takes minutes with a large model.
        told: called with what is run next.

    Raises:
        ConfigError: a model has no exact definition.
        LmcodecError: a model is not there, or its file is damaged.
    """
    asked = [shipped.name for shipped in store.SHIPPED.values()] if models is None else models
    result = SelfTest()
    for isa in INSTRUCTION_SETS:
        if isa not in _kernel.network_isas():
            result.left_out.append((f"kernel, {isa}", "this machine, or this build, does not have it"))
    missing = set()
    for name, device in executors.EXECUTORS.items():
        if device is not None:
            try:
                executors.require(name)
            except ConfigError as error:
                missing.add(name)
                result.left_out.append((name, one_line(error)))
    for each in asked:
        source = store.find(each)
        if source.has_file:
            result.models.append(_test_file(source, missing, everything, result.left_out, told))
        else:
            result.models.append(_test_outside(source, told))
    return result


def _test_file(
    source: Source,
    missing: set[str],
    everything: bool,
    left_out: list[tuple[str, str]],
    told: Callable[[str], object],
) -> Tested:
    opened = kinds.open_file(source.path)
    loaded = opened.decode()
    if source.model_id not in (None, loaded.model_id):
        raise Corrupt(f"{source.path}: is model {loaded.model_id}, expected {source.model_id}")
    profiles = tuple(parse_all(opened.mixer))
    shipped = store.SHIPPED.get(source.number or 0)
    tested = Tested(shipped.name if shipped else source.path.stem, loaded.model_id)
    network, frame = KNOWN.get(loaded.model_id, ("", ""))
    tested.known = {what: hash for what, hash in (("network", network), ("frame", frame)) if hash}
    is_large = loaded.header.macs_per_token > store.LARGE_MACS
    ways = [(executors.KERNEL, isa) for isa in _kernel.network_isas()]
    ways += [(name, "") for name in executors.EXECUTORS if name not in (executors.KERNEL, *missing)]
    none_in_kernel = False
    for name, isa in ways:
        if isa and none_in_kernel:
            continue
        if is_large and not everything and (isa or name) in SLOW:
            left_out.append(
                (f"{tested.name}: {', '.join(filter(None, (name, isa)))}", "takes minutes; --all")
            )
            continue
        told(f"{tested.name}: {', '.join(filter(None, (name, isa)))}")
        with _environment(isa):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of an instruction set that fails, which is told below
                    model = store.assemble(source, loaded, lambda: profiles, name)
                if isa and model.isa not in _kernel.network_isas():
                    none_in_kernel = True
                    left_out.append((f"{tested.name}: {name}", f"kind {loaded.header.kind} has none there"))
                    continue
                if isa and model.isa != isa:
                    raise Corrupt(f"fails the model's self-test: its known answer is {loaded.known[:16]}")
            except ConfigError as error:  # its kind has no such executor
                left_out.append((f"{tested.name}: {name}", one_line(error)))
                continue
            except LmcodecError as error:
                tested.rows.append(Row(name, isa, "network", 1, 1, "", one_line(error)))
                continue
            tested.rows += _rows(model, name, isa)
    return tested


def _test_outside(source: Source, told: Callable[[str], object]) -> Tested:
    model = store.load(source)
    if not model.is_exact:
        raise ConfigError(
            f"{model.name}: runs in floats, which no two machines need agree on; lmcodec model import makes "
            "an exact model of those of a known family"
        )
    told(model.name)
    tested = Tested(model.name, model.model_id)
    tested.rows += _rows(model, "own", "")
    return tested


def _rows(model: Model, executor: str, isa: str) -> Iterator[Row]:
    """All batches and numbers of threads."""
    most = max(available_cpus(), 2)
    slow = executor != executors.KERNEL or isa in SLOW
    for batch, threads in ((1, 1), (4, most)) if slow else ((1, 1), (1, 2), (5, 1), (8, 2)):
        row = Row(executor, isa, "network", batch, threads, "")
        yield _tried(row, partial(_network, model, TEXT, batch, threads))
    for threads in (most,) if slow else (1, 2):
        row = Row(executor, isa, "frame", FRAME_STREAMS, threads, "")
        yield _tried(row, partial(_frame, model, TEXT, threads))


def _tried(row: Row, work: Callable[[], str]) -> Row:
    try:
        with _torch_threads(row.threads if row.executor.startswith("torch") else 0):
            return replace(row, hash=work())
    except LmcodecError as error:
        return replace(row, error=one_line(error))


def _network(model: Model, text: bytes, batch: int, threads: int) -> str:
    """SHA-256 of the first copy's probabilities.

    Raises:
        Corrupt: the others, which begin in the midst of a text, are not all the same; or what was coded does
            not decode.
    """
    engine = LmEngine(model, None, batch, 1)
    engine.helped = threads > 1 and model.may_be_helped
    encoder = coder.Encoder()
    n = len(text)
    found: list[list[bytes]] = [[] for _ in range(batch)]
    for decisions in engine.trace(text * batch):
        encoder.encode(decisions.bits, decisions.p16)
        copy = decisions.offset // n
        # The end of a token belongs to the byte after it, which may be the next copy's: streams end first.
        for stream in np.unique(copy).tolist():
            found[stream].append(decisions.p16[copy == stream].astype("<u2").tobytes())
    hashes = [hashlib.sha256(b"".join(parts)).hexdigest() for parts in found]
    if len(set(hashes[1:])) > 1:
        raise Corrupt("streams with the same text get different probabilities")
    engine.reset()
    engine.helped = threads > 1 and model.may_be_helped
    if bytes(engine.decode(encoder.finish(), n * batch)) != text * batch:
        raise Corrupt("step by step the probabilities are others than those of many positions at once")
    return hashes[0]


def _frame(model: Model, text: bytes, threads: int) -> str:
    """SHA-256 of a frame."""
    from lmcodec.codec.pipeline import Seat
    from lmcodec.codec.spec import EngineSpec
    from lmcodec.frame import Method

    method = Method.LM_CM if model.profiles else Method.LM
    profile = len(model.profiles)
    spec = EngineSpec(method, profile, FRAME_STREAMS, 1, model)
    engine = Seat((spec,)).engine(spec, False, threads > 1 and model.may_be_helped)
    payload = engine.encode(text)
    block = spec.block(len(text), len(payload), True, False)
    packed = block.pack(text, payload)
    engine.reset()
    if bytes(engine.decode(payload, len(text))) != text:
        raise Corrupt("what was coded does not decode")
    return hashlib.sha256(packed).hexdigest()


@contextmanager
def _environment(isa: str) -> Iterator[None]:
    """LMCODEC_ISA is this; or is not set."""
    before = os.environ.pop(VARIABLE, None)
    if isa:
        os.environ[VARIABLE] = isa
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


@contextmanager
def _torch_threads(n: int) -> Iterator[None]:
    """torch uses so many threads; 0: it is not asked."""
    if not n:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
