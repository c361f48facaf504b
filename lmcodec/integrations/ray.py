"""Ray Data: compress, decompress and measure a large corpus on the workers of a cluster.

Files are cut into parts. A part of a file to compress becomes a frame with its own index; frames follow one
another in a file, so that a large file is made of what several workers wrote. A worker is an actor that keeps
its model and its engines from part to part, reads its part from the file system that fsspec knows, and writes
what it makes of it into a folder of this run beside the outputs. A file that is complete is moved to its
name, of several parts by an actor that joins them. What a worker that died has left stays in that folder and
goes with it; Ray gives its part to another one. The bytes do not depend on the number of workers, on their
order or on what failed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import posixpath
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, BinaryIO, Literal, cast

import fsspec
import ray
import ray.data

from lmcodec.codec import DEFAULT_BLOCK_NBYTES, Compressor, Decompressor, scan
from lmcodec.codec.arguments import available_cpus
from lmcodec.errors import ConfigError, LmcodecError, Truncated, one_line, reason_of
from lmcodec.file import LMFile
from lmcodec.measure.bpb import Measurement, Meter

SUFFIX = ".lmz"
PART_NBYTES = 16 << 20  # of an original
_PIECE_NBYTES = 4 << 20  # read and written at once
_BLOCKS = 50_000  # of Ray Data, at most: what it gives out, and repeats, at once
_WORKERS_OF_A_JOINER = 16  # whose parts it puts together
_STORE_NBYTES = 100 << 20  # of a cluster of our own: what goes through it are counters
_SCANNED_NBYTES = 1 << 20  # of a compressed file whose frames are worth to be looked for

Work = Literal["compress", "decompress", "measure"]


@dataclass(frozen=True)
class _Part:
    """What a worker does at once: bytes `begin` to `end` of a file, part `number` of its `n_part`."""

    file: int
    path: str
    number: int
    n_part: int
    begin: int
    end: int
    scratch: str = ""  # the folder that it is written into; empty: nothing is written
    output: str = ""  # the file's, in the end


@dataclass(frozen=True)
class FileResult:
    """What came of a file.

    Attributes:
        path, output: where it is, and where its result is; output is empty when measuring.
        nbytes: of the original.
        read_nbytes, written_nbytes: that workers read and wrote, over the network where the files are there.
        seconds, cpu_seconds: that its parts took, all together, and of processor time.
        peak_nbytes: of memory, the most that a worker ever had that did a part of it; 0 if unknown.
        measurement: of its parts together; only when measuring.
        error: why there is no output, a line; None if all went well.
        workers: that did its parts, as HOST:PID.
    """

    path: str
    output: str = ""
    nbytes: int = 0
    read_nbytes: int = 0
    written_nbytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_nbytes: int = 0
    measurement: Measurement | None = None
    error: str | None = None
    workers: tuple[str, ...] = ()


@dataclass
class Result:
    """What came of a run.

    Attributes:
        files: in the order of their names.
        seconds: that the whole run took.
        n_left: files left out since their output was there.
    """

    files: list[FileResult] = field(default_factory=list)
    seconds: float = 0.0
    n_left: int = 0

    @property
    def failed(self) -> list[FileResult]:
        return [found for found in self.files if found.error is not None]

    def total(self) -> FileResult:
        """The counters of all files that went well, added up."""
        return _added("", "", [found for found in self.files if found.error is None])


Progress = Callable[[dict[str, Any]], object]


def compress(
    source: str, target: str, *, part_size: int = PART_NBYTES, suffix: str = SUFFIX, **options: Any
) -> Result:
    """Compress the files of `source` into the folder `target`, each under its name and `suffix`.

    Args:
        source: a file, a folder or a pattern, wherever fsspec reaches.
        target: a folder there.
        part_size: original bytes that a worker takes at once, each part a frame; whole blocks of it.
        suffix: of the outputs.
        options: `workers`, `overwrite`, `resume`, `address` and `progress` of `run`; the others are those of
            `Compressor`.

    Returns:
        What came of each file. What failed is there with its error.

    Raises:
        ConfigError, ValueError, TypeError: an argument is out of range, or there are outputs already.
        LmcodecError: the model is not there.
        OSError: the files cannot be listed.
    """
    return run(
        "compress", source, target, part_nbytes=_blocks_of(part_size, options), suffix=suffix, **options
    )


def decompress(
    source: str, target: str, *, part_size: int = PART_NBYTES, suffix: str = SUFFIX, **options: Any
) -> Result:
    """Decompress the files of `source` that end in `suffix` into the folder `target`, under names without it.

    Frames of a file are decoded by several workers where they hold more than `part_size` bytes together.

    Args: as for `compress`; options of reading are those of `Decompressor`.

    Returns, Raises: as `compress`.
    """
    return run("decompress", source, target, part_nbytes=part_size, suffix=suffix, **options)


def measure(source: str, *, part_size: int = PART_NBYTES, **options: Any) -> Result:
    """Measure the files of `source`, by the frames that `compress` would make of them.

    Args: as for `compress`; options are those of `lmcodec.bits_per_byte`.

    Returns, Raises: as `compress`.
    """
    return run("measure", source, None, part_nbytes=_blocks_of(part_size, options), **options)


def _blocks_of(part_size: int, options: dict[str, Any]) -> int:
    """`part_size` in whole blocks, one at least."""
    block_nbytes = int(options.get("block_size") or DEFAULT_BLOCK_NBYTES)
    return max(part_size // block_nbytes, 1) * block_nbytes


def run(
    work: Work,
    source: str,
    target: str | None,
    *,
    part_nbytes: int,
    suffix: str = "",
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    address: str | None = None,
    progress: Progress = lambda done: None,
    **options: Any,
) -> Result:
    """Do `work` for the files of `source`; `compress`, `decompress` and `measure` call it.

    Args:
        work: what to do.
        source, target: see `compress`; no target when measuring.
        part_nbytes: of an original that a worker takes at once.
        suffix: of compressed files.
        workers: actors of one CPU each; None for one for every CPU of the cluster.
        overwrite: replace outputs that are there.
        resume: leave out files whose outputs are there: outputs are complete or not there.
        address: of a cluster; None for the one that this process knows, that RAY_ADDRESS names, or else one
            of its own on this machine.
        progress: called in this process with the counters of each part that is done.
        options: of the worker.
    """
    started = time.monotonic()
    if part_nbytes < 1:
        raise ConfigError(f"part_size is {part_nbytes}, expected 1 or more")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}, expected 1 or more")
    options = {"threads": 1, **options}
    _Worker.check(work, options)
    system, root = _file_system(source)
    found = _files(system, root, source, suffix if work == "decompress" else None)
    result = Result()
    outputs = ["" for _ in found]
    output_system, scratch = None, ""
    if target is not None:
        output_system, folder = _file_system(target)
        ending = "" if work == "decompress" else suffix
        names = [name.removesuffix(suffix) if not ending else name + ending for _, name, _ in found]
        outputs = [posixpath.join(folder, name) for name in names]
        there = set() if overwrite else {output for output in outputs if output_system.exists(output)}
        if there and not resume:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise ConfigError(f"{min(there)}{more}: already there (overwrite or resume)")
        kept = [i for i, output in enumerate(outputs) if output not in there]
        result.n_left = len(there)
        found, outputs = [found[i] for i in kept], [outputs[i] for i in kept]
        scratch = posixpath.join(folder, f".lmcodec-{uuid.uuid4().hex}")
        output_system.makedirs(scratch, exist_ok=True)
    try:
        parts = _cut(system, work, found, part_nbytes, scratch, outputs)
        connected = bool(parts) and _connect(address, workers)
        try:
            worker = {"work": work, "system": system, "output_system": output_system, "options": options}
            rows, failed = _collect(parts, progress, workers, worker)
        finally:
            if connected:
                ray.shutdown()
    finally:
        if output_system is not None:
            with suppress(FileNotFoundError):
                output_system.rm(scratch, recursive=True)
    for number, (path, _, _) in enumerate(found):
        here = sorted(rows.get(number, []), key=lambda row: row["number"])
        result.files.append(_file_result(path, outputs[number], here, failed.get(number)))
    result.seconds = time.monotonic() - started
    return result


def _collect(
    parts: list[_Part],
    progress: Progress,
    workers: int | None,
    worker: dict[str, Any],
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, str]]:
    """What came of the parts of each file, and of files whose output could not be made, why."""
    rows: dict[int, list[dict[str, Any]]] = {}
    joining: dict[int, Any] = {}
    failed: dict[int, str] = {}
    system = worker["output_system"]
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Joiner)
    joiners: list[Any] = []
    n_worker = n_joiner = 0
    if parts:
        n_worker = min(workers or max(int(ray.cluster_resources().get("CPU", 1)), 1), len(parts))
        n_joiner = -(-n_worker // _WORKERS_OF_A_JOINER)
    try:
        for row in _rows(parts, n_worker, worker) if parts else ():
            file = row["file"]
            rows.setdefault(file, []).append(row)
            progress(row)
            if system is not None and row["n_part"] > 1 and len(rows[file]) == row["n_part"]:
                here = sorted(rows[file], key=lambda row: row["number"])
                if all(row["error"] is None for row in here):
                    joiners = joiners or [actor.remote(system) for _ in range(n_joiner)]
                    joiner = joiners[len(joining) % len(joiners)]
                    joining[file] = joiner.join.remote([row["target"] for row in here], row["output"])
        for file, reference in joining.items():
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as died:
                error = reason_of(died)
            if error is not None:
                failed[file] = error
    except ray.exceptions.RayError as error:
        raise LmcodecError(f"the cluster gave up: {reason_of(error)}") from None
    return rows, failed


def _rows(parts: list[_Part], n_worker: int, worker: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What came of each part, in the order in which they are done."""
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    tasks = ray.data.from_items(
        [{"part": json.dumps(asdict(part))} for part in parts], override_num_blocks=min(len(parts), _BLOCKS)
    )
    done = tasks.map(
        _Worker,
        fn_constructor_kwargs=worker,
        compute=ray.data.ActorPoolStrategy(size=n_worker),
        num_cpus=1,
    )
    for row in done.iter_rows():
        yield json.loads(row["done"])


def _connect(address: str | None, workers: int | None) -> bool:
    """Whether this call has connected the process to a cluster; it was before otherwise."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, **quiet)
        return True
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent from here
    ray.init(
        num_cpus=workers or available_cpus(),
        include_dashboard=False,
        object_store_memory=_STORE_NBYTES,
        **quiet,
    )
    return True


def _file_result(path: str, output: str, rows: list[dict[str, Any]], error: str | None) -> FileResult:
    error = error or next((row["error"] for row in rows if row["error"] is not None), None)
    if error is None and not rows:
        error = "was not worked on"
    found = _added(path, output, [_part_result(row) for row in rows])
    return found if error is None else replace(found, output="", measurement=None, error=error)


def _part_result(row: dict[str, Any]) -> FileResult:
    """What a worker says of a part."""
    names = ("nbytes", "read_nbytes", "written_nbytes", "seconds", "cpu_seconds", "peak_nbytes")
    measured = row["measurement"]
    return FileResult(
        row["path"],
        **{name: row[name] for name in names},
        measurement=None if measured is None else Measurement(**measured),
        workers=(row["worker"],),
    )


def _added(path: str, output: str, found: list[FileResult]) -> FileResult:
    """The counters of all these together."""
    measured = [each.measurement for each in found if each.measurement is not None]
    return FileResult(
        path,
        output,
        nbytes=sum(each.nbytes for each in found),
        read_nbytes=sum(each.read_nbytes for each in found),
        written_nbytes=sum(each.written_nbytes for each in found),
        seconds=sum(each.seconds for each in found),
        cpu_seconds=sum(each.cpu_seconds for each in found),
        peak_nbytes=max((each.peak_nbytes for each in found), default=0),
        measurement=reduce(add, measured) if measured else None,
        workers=tuple(sorted({worker for each in found for worker in each.workers})),
    )


def write_report(url: str, text: str) -> None:
    """A file wherever fsspec reaches, complete or not there."""
    system, path = fsspec.core.url_to_fs(url)
    system.makedirs(posixpath.dirname(path), exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex}"
    try:
        with system.open(unfinished, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            _sync(file)
        system.mv(unfinished, path)
    except BaseException:
        with suppress(FileNotFoundError):
            system.rm(unfinished)
        raise


# Files


def _file_system(url: str) -> tuple[Any, str]:
    system, root = fsspec.core.url_to_fs(url)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    if "memory" in protocols:
        raise ConfigError(f"{url}: is the memory of one process, which workers do not see")
    return system, root


def _files(system: Any, root: str, source: str, suffix: str | None) -> list[tuple[str, str, int]]:
    """The files of an operand in the order of their names: path, name in the folder or alone, bytes."""
    if system.isdir(root):
        base = root.rstrip("/") + "/"
        sizes = {path: entry["size"] for path, entry in system.find(root, detail=True).items()}
        found = [(path, path.removeprefix(base), size) for path, size in sizes.items()]
        # What is hidden is no text of a corpus, and may be what a run left that was killed.
        found = [each for each in found if not any(p.startswith(".") for p in each[1].split("/"))]
    elif system.isfile(root):
        found = [(root, posixpath.basename(root), system.size(root))]
    else:
        paths = [path for path in system.glob(root) if system.isfile(path)] if _has_magic(root) else []
        found = [(path, posixpath.basename(path), system.size(path)) for path in paths]
        if len({name for _, name, _ in found}) < len(found):
            raise ConfigError(f"{source}: matches files of the same name in several folders; name a folder")
    if suffix is not None:
        found = [each for each in found if each[1].endswith(suffix) and each[1] != suffix]
    if not found:
        ending = f" that ends in {suffix}" if suffix is not None else ""
        raise ConfigError(f"{source}: there is no file{ending}")
    return sorted(found, key=lambda each: each[1])


def _has_magic(path: str) -> bool:
    return any(c in path for c in "*?[")


def _cut(
    system: Any,
    work: Work,
    found: list[tuple[str, str, int]],
    part_nbytes: int,
    scratch: str,
    outputs: list[str],
) -> list[_Part]:
    """The parts of all files."""
    parts: list[_Part] = []
    for file, (path, _, nbytes) in enumerate(found):
        borders = [0, nbytes]
        if work != "decompress":
            borders = [*range(0, max(nbytes, 1), part_nbytes), nbytes]
        elif nbytes > _SCANNED_NBYTES:
            with suppress(LmcodecError, OSError):  # a worker says what is wrong with it
                borders = _frame_borders(system, path, nbytes, part_nbytes)
        for number, (begin, end) in enumerate(pairwise(borders)):
            parts.append(_Part(file, path, number, len(borders) - 1, begin, end, scratch, outputs[file]))
    return parts


def _frame_borders(system: Any, path: str, nbytes: int, part_nbytes: int) -> list[int]:
    """Where frames begin, so that those between two borders hold `part_nbytes` bytes or a frame more."""
    with system.open(path, "rb") as file:
        frames = scan(file)
    borders, held = [0], 0
    for info in frames:
        if held >= part_nbytes:
            borders.append(info.offset)
            held = 0
        held += info.original_nbytes or 0
    return [*borders, nbytes]


# On the workers


class _Range(io.RawIOBase):
    """Bytes `begin` to `end` of a file, read in their order."""

    def __init__(self, file: Any, begin: int, end: int) -> None:
        self._file, self._left, self.nbytes = file, end - begin, 0
        file.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise Truncated(f"the file ended {self._left:,} bytes before it should: it was changed meanwhile")
        buffer[: len(data)] = data
        self._left -= len(data)
        self.nbytes += len(data)
        return len(data)

    def pieces(self) -> Iterator[bytes]:
        while piece := self.read(_PIECE_NBYTES):
            yield piece


class _Worker:
    """What an actor runs: parts one after another, with the same model and engines.

    Args:
        work: what to do.
        system, output_system: of the files, and of what is written.
        options: of `Compressor`, `Decompressor` or `Meter`.
    """

    def __init__(self, work: Work, system: Any, output_system: Any, options: dict[str, Any]) -> None:
        self._work, self._system, self._output_system = work, system, output_system
        self._options = options
        self._compressor: Compressor | None = None
        self._meter = Meter(**options) if work == "measure" else None
        self._block_nbytes = int(options.get("block_size") or DEFAULT_BLOCK_NBYTES)

    @staticmethod
    def check(work: Work, options: dict[str, Any]) -> None:
        """Refuse at once what every worker would refuse."""
        kinds: dict[str, Any] = {"compress": Compressor, "decompress": Decompressor, "measure": Meter}
        kinds[work](**options)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        part = _Part(**json.loads(row["part"]))
        done: dict[str, Any] = {"nbytes": 0, "read_nbytes": 0, "written_nbytes": 0, "measurement": None}
        started, cpu_started, error = time.monotonic(), time.process_time(), None
        try:
            with self._system.open(part.path, "rb") as file:
                source = _Range(file, part.begin, part.end)
                self._do(part, source, done)
                done["read_nbytes"] = source.nbytes
        except MemoryError:
            error = "out of memory"
        except (LmcodecError, OSError) as wrong:
            error = one_line(wrong) if isinstance(wrong, LmcodecError) else wrong.strerror or reason_of(wrong)
        except Exception as wrong:  # of a file system, or our bug; the other files are still done
            error = reason_of(wrong)
        if error is not None:
            self._compressor = None  # one that stopped inside a frame is of no use
        done["seconds"] = time.monotonic() - started
        done["cpu_seconds"] = time.process_time() - cpu_started
        done["peak_nbytes"] = _peak_nbytes()
        done["worker"] = f"{socket.gethostname()}:{os.getpid()}"
        about = {name: getattr(part, name) for name in ("file", "path", "number", "n_part", "output")}
        return {"done": json.dumps({**about, **done, "error": error})}

    def _do(self, part: _Part, source: _Range, done: dict[str, Any]) -> None:
        nbytes = part.end - part.begin
        if self._meter is not None:
            size = nbytes if nbytes > self._block_nbytes else None
            done["measurement"] = asdict(self._meter.measure(source.pieces(), content_size=size))
            done["nbytes"] = nbytes
            return
        # Every attempt has a name of its own: one that died, or that still runs unseen, is in no way.
        done["target"] = posixpath.join(part.scratch, f"{part.file}-{part.number}-{uuid.uuid4().hex}")
        with self._output_system.open(done["target"], "wb") as output:
            made = self._compressed(source, nbytes) if self._work == "compress" else self._original(source)
            for piece in made:
                output.write(piece)
                done["written_nbytes"] += len(piece)
            _sync(output)
        if part.n_part == 1:
            self._output_system.makedirs(posixpath.dirname(part.output), exist_ok=True)
            self._output_system.mv(done["target"], part.output)
        done["nbytes"] = nbytes if self._work == "compress" else done["written_nbytes"]

    def _compressed(self, source: _Range, nbytes: int) -> Iterator[bytes]:
        # A frame of several blocks says how many bytes it holds, which a compressor is told when it is made.
        if nbytes > self._block_nbytes:
            compressor = Compressor(**self._options, content_size=nbytes)
        else:
            compressor = self._compressor = self._compressor or Compressor(**self._options)
        for piece in source.pieces():
            yield compressor.compress(piece)
        yield compressor.flush()

    def _original(self, source: _Range) -> Iterator[bytes]:
        with LMFile(cast("BinaryIO", source), "rb", **self._options) as file:
            while piece := file.read(_PIECE_NBYTES):
                yield piece


def _peak_nbytes() -> int:
    """Of this process's memory; 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _sync(file: Any) -> None:
    with suppress(AttributeError, OSError):  # not a file of this machine
        file.flush()
        os.fsync(file.fileno())


class _Joiner:
    """An actor that makes files of their parts."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def join(self, pieces: list[str], output: str) -> str | None:
        """Give a file its name when it is complete; returns what is wrong, or None."""
        system = self._system
        try:
            if not system.exists(pieces[-1]) and system.exists(output):
                return None  # done by an attempt that died afterwards
            system.makedirs(posixpath.dirname(output), exist_ok=True)
            whole = f"{pieces[0]}-{uuid.uuid4().hex}"
            with system.open(whole, "wb") as joined:
                for piece in pieces:
                    with system.open(piece, "rb") as part:
                        shutil.copyfileobj(part, joined, _PIECE_NBYTES)
                _sync(joined)
            system.mv(whole, output)
            for piece in reversed(pieces):
                system.rm(piece)
        except OSError as error:
            return error.strerror or reason_of(error)
        except Exception as error:  # of a file system
            return reason_of(error)
        return None
