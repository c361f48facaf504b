"""Compressors side by side: sizes, speeds both ways, peak memory, with every round trip verified.

Every compressor, ours included, is a child process, so start-up counts for all of them alike. In each run all
compressors take their turns file by file, so that what else the machine does hits them alike; medians of the
runs are reported. What fails is reported and the rest goes on. Draws nothing and knows no options.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcodec.errors import LmcodecError
from lmcodec.measure import visible
from lmcodec.measure.machine import describe
from lmcodec.measure.peers import Command, Compressor, locate, stored_name
from lmcodec.measure.texts import Problem, in_folder

# Columns of lzbench -o4 (https://github.com/inikep/lzbench); speeds in MB/s, the ratio in percent.
LZBENCH_COLUMNS = (
    "Compressor name",
    "Compression speed",
    "Decompression speed",
    "Original size",
    "Compressed size",
    "Ratio",
    "Filename",
)
_CHUNK_NBYTES = 1 << 20
_LAUNCHER_TIMEOUT_S = 30  # what the process between may take on top of the command's own limit
_MESSAGE_LENGTH = 200
# Settings of the programs that would change what is measured.
_UNSET = (
    *("LMCODEC_LEVEL", "LMCODEC_THREADS", "GZIP", "BZIP", "BZIP2", "XZ_DEFAULTS", "XZ_OPT"),
    *("ZSTD_CLEVEL", "ZSTD_NBTHREADS", "LRZIP"),
)


@dataclass(frozen=True)
class Input:
    """A file, or its beginning.

    Attributes:
      path: of the file.
      name: in results.
      limit: take at most so many bytes of it, None for all.
    """

    path: Path
    name: str
    limit: int | None = None


@dataclass(frozen=True)
class Execution:
    """What one child process took.

    Attributes:
      seconds: from its start to its end, start-up included.
      peak_nbytes: its largest resident set, None if the system does not tell.
    """

    seconds: float
    peak_nbytes: int | None


@dataclass(frozen=True)
class Measurement:
    """One compressor on one file, or on several (`files`), once the round trips were verified.

    Attributes:
      nbytes, packed_nbytes: original and compressed size.
      compress_seconds, decompress_seconds: medians of the runs; sums of them for several files.
      compress_peak, decompress_peak: bytes of memory, the largest of all runs; None if unknown.
    """

    compressor: str
    file: str
    limit: int | None
    nbytes: int
    packed_nbytes: int
    compress_seconds: float
    decompress_seconds: float
    compress_peak: int | None
    decompress_peak: int | None
    files: int = 1

    @property
    def bpb(self) -> float:
        return 8 * self.packed_nbytes / self.nbytes

    @property
    def ratio(self) -> float:
        """Compressed size in percent of the original, as lzbench has it."""
        return 100 * self.packed_nbytes / self.nbytes

    @property
    def compress_speed(self) -> float:
        """MB/s."""
        return self.nbytes / 1e6 / self.compress_seconds

    @property
    def decompress_speed(self) -> float:
        """MB/s."""
        return self.nbytes / 1e6 / self.decompress_seconds


@dataclass(frozen=True)
class Failure:
    """What went wrong: with a compressor on a file, or with a file or folder alone (compressor is empty)."""

    compressor: str
    file: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.compressor, self.file, self.message) if part)


class _Failed(Exception):
    """A command did not do what it should; the message says what."""


@dataclass
class Report:
    """All that a benchmark found.

    Attributes:
      measurements: file by file, those of one file together.
      floor_nbytes: peaks up to here cannot be told apart (see child.py), None if there are none.
      interrupted: the runs were cut short; what had been measured is there.
    """

    compressors: list[Compressor]
    runs: int
    threads: int
    machine: dict[str, str] = field(default_factory=describe)
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    floor_nbytes: int | None = None
    interrupted: bool = False

    def limits(self) -> list[int | None]:
        """The limits of the inputs, ascending, whole files last."""
        return sorted({m.limit for m in self.measurements}, key=lambda n: (n is None, n or 0))

    def totals(self, limit: int | None) -> list[Measurement]:
        """Sums over the files at one limit, for the compressors that did every one of them."""
        at_limit = [m for m in self.measurements if m.limit == limit]
        n_file = len({m.file for m in at_limit})
        sums = []
        for compressor in self.compressors:
            own = [m for m in at_limit if m.compressor == compressor.name]
            if own and len(own) == n_file:
                sums.append(_total(own, own[0].file if n_file == 1 else f"{n_file} files"))
        return sums


def _total(parts: Sequence[Measurement], name: str) -> Measurement:
    return Measurement(
        parts[0].compressor,
        name,
        parts[0].limit,
        sum(m.nbytes for m in parts),
        sum(m.packed_nbytes for m in parts),
        sum(m.compress_seconds for m in parts),
        sum(m.decompress_seconds for m in parts),
        _largest(m.compress_peak for m in parts),
        _largest(m.decompress_peak for m in parts),
        len(parts),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def gather(paths: Sequence[str], limits: Sequence[int | None] = (None,)) -> tuple[list[Input], list[Failure]]:
    """The files that are named, and those in named folders by their names; links in folders are left out.

    Returns:
      the inputs, each file at each limit, and what could not be taken.
    """
    files: list[Path] = []
    failures: list[Failure] = []
    for name in paths:
        path = Path(name)
        if name == "-":
            failures.append(Failure("", name, "standard input cannot be measured: name a file"))
            continue
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                for found in in_folder(name):
                    if isinstance(found, Problem):
                        failures.append(Failure("", found.name, found.message))
                    else:
                        files.append(Path(found))
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                failures.append(Failure("", name, "not a regular file"))
        except OSError as error:
            failures.append(Failure("", str(error.filename or name), error.strerror or str(error)))
    inputs = []
    unique = list(dict.fromkeys(files))
    names = [path.name for path in unique]
    for path in unique:
        label = path.name if names.count(path.name) == 1 else str(path)
        inputs += [Input(path, label, limit) for limit in limits]
    return inputs, failures


def run(
    compressors: Sequence[Compressor],
    inputs: Sequence[Input],
    *,
    runs: int = 3,
    threads: int = 1,
    timeout: float | None = None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    on_step: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Report:
    """Measure every compressor on every input.

    Args:
      runs: how often; all take turns, run by run.
      threads: for the record; the compressors' commands know it.
      timeout: seconds that one command may take.
      on_failure: told of each failure when it happens.
      on_step: told what comes next, and how many of how many steps are done.

    Returns:
      what was found, also after Ctrl-C.
    """
    report = Report(list(compressors), runs, threads)
    samples: dict[tuple[str, int], list[tuple[int, int, Execution, Execution]]] = {}
    failed: set[tuple[str, int]] = set()  # compressor, input; the whole input under an empty name
    done, total = 0, runs * len(inputs) * len(compressors)

    def fail(name: str, i: int, message: str) -> None:
        failed.add((name, i))
        report.failures.append(Failure(name, inputs[i].name, message))
        on_failure(report.failures[-1])

    with tempfile.TemporaryDirectory(prefix="lmcodec-bench-") as folder:
        trial = _Trial(Path(folder), timeout)
        try:
            for n in range(runs):
                for i, source in enumerate(inputs):
                    if ("", i) in failed:
                        continue
                    try:
                        trial.take(source)
                        if not trial.nbytes:
                            raise _Failed("an empty file has nothing to compress, left out")
                    except (OSError, _Failed) as error:
                        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                        fail("", i, reason)
                        continue
                    for compressor in compressors:
                        step = f"run {n + 1} of {runs}: {compressor.name}: {source.name}"
                        on_step(step, done, total)
                        done += 1
                        key = compressor.name, i
                        if key in failed:
                            continue
                        try:
                            samples.setdefault(key, []).append((trial.nbytes, *trial.round_trip(compressor)))
                        except _Failed as error:
                            fail(compressor.name, i, str(error))
        except KeyboardInterrupt:
            report.interrupted = True
        report.floor_nbytes = trial.floor_nbytes
    for i, source in enumerate(inputs):
        for compressor in compressors:
            taken = samples.get((compressor.name, i))
            if taken and (compressor.name, i) not in failed:
                report.measurements.append(_measurement(compressor, source, taken))
    return report


def _measurement(
    compressor: Compressor, source: Input, taken: list[tuple[int, int, Execution, Execution]]
) -> Measurement:
    packs, unpacks = [t[2] for t in taken], [t[3] for t in taken]
    return Measurement(
        compressor.name,
        source.name,
        source.limit,
        taken[0][0],
        round(statistics.median(t[1] for t in taken)),
        statistics.median(e.seconds for e in packs),
        statistics.median(e.seconds for e in unpacks),
        _largest(e.peak_nbytes for e in packs),
        _largest(e.peak_nbytes for e in unpacks),
    )


class _Trial:
    """A folder with a copy of the input, in which compressors have their turns."""

    def __init__(self, folder: Path, timeout: float | None) -> None:
        self._folder, self._timeout = folder, timeout
        self._text = folder / stored_name()
        self._source: Input | None = None
        self._digest = b""
        self.nbytes = 0
        self.floor_nbytes: int | None = None
        self._environment = {key: value for key, value in os.environ.items() if key not in _UNSET}

    def take(self, source: Input) -> None:
        """Copy the input.

        Raises:
          OSError: it cannot be read, or the copy not be written.
        """
        self._source = source
        digest, left = hashlib.sha256(), source.limit
        self._text.unlink(missing_ok=True)
        with open(source.path, "rb") as file, open(self._text, "xb") as copy:
            while chunk := file.read(_CHUNK_NBYTES if left is None else min(left, _CHUNK_NBYTES)):
                copy.write(chunk)
                digest.update(chunk)
                left = None if left is None else left - len(chunk)
            self.nbytes = copy.tell()
        self._text.chmod(0o444)
        self._digest = digest.digest()

    def round_trip(self, compressor: Compressor) -> tuple[int, Execution, Execution]:
        """Compress, decompress, compare; returns the compressed size and what both commands took.

        Raises:
          _Failed: a command failed or took too long, or other bytes came back.
        """
        packed = self._folder / f"packed{compressor.suffix}"
        restored = self._folder / "restored"
        try:
            pack = self._execute("compress", compressor, compressor.compress, self._text, packed)
            packed = locate(packed)
            if not packed.is_file():
                raise _Failed("compressing wrote no file")
            packed_nbytes = packed.stat().st_size
            # Where the original is not to be found, nobody can pass it off as restored.
            self._text.rename(hidden := self._folder / "hidden")
            try:
                unpack = self._execute("decompress", compressor, compressor.decompress, packed, restored)
            finally:
                hidden.rename(self._text)
            if not restored.is_file():
                raise _Failed("decompressing wrote no file")
            self._compare(restored)
            return packed_nbytes, pack, unpack
        except OSError as error:
            raise _Failed(f"{error.filename or ''}: {error.strerror or error}") from None
        finally:
            self._clean()

    def _compare(self, restored: Path) -> None:
        nbytes, digest = _digest_of(restored)
        if nbytes != self.nbytes:
            raise _Failed(f"corrupts data: {self.nbytes:,} bytes became {nbytes:,}")
        if digest != self._digest:
            raise _Failed(f"corrupts data: other bytes came back, as many as before ({nbytes:,})")

    def _clean(self) -> None:
        """Leave the copy of the input alone; make it again if a compressor touched it."""
        for entry in os.scandir(self._folder):
            if entry.path == str(self._text):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        try:
            intact = _digest_of(self._text)[1] == self._digest
        except OSError:
            intact = False
        if not intact and self._source is not None:
            with contextlib.suppress(OSError):
                self.take(self._source)

    def _execute(
        self, verb: str, compressor: Compressor, command: Command, source: Path, target: Path
    ) -> Execution:
        if compressor.in_folder:
            words = command.fill(source.name, target.name)
        else:
            words = command.fill(str(source), str(target))
        stdin = str(source) if command.reads_stdin else ""
        stdout = str(target) if command.writes_stdout else ""
        errors = self._folder / "stderr"
        try:
            status, execution, floor = execute(
                words,
                stdin,
                stdout,
                str(errors),
                result=str(self._folder / "result"),
                cwd=self._folder if compressor.in_folder else None,
                timeout=self._timeout,
                environment=self._environment,
            )
        except subprocess.TimeoutExpired:
            raise _Failed(f"took longer than {self._timeout:g} s to {verb}") from None
        except LmcodecError as error:
            raise _Failed(str(error)) from None
        self.floor_nbytes = _largest((self.floor_nbytes, floor))
        if status:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise _Failed(f"failed to {verb}: {how}{_last_line(errors)}")
        return execution


def _digest_of(path: Path) -> tuple[int, bytes]:
    digest = hashlib.sha256()
    nbytes = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            digest.update(chunk)
            nbytes += len(chunk)
    return nbytes, digest.digest()


def _last_line(path: Path) -> str:
    """What a program said last, for the end of a message."""
    try:
        text = path.read_bytes()[-4096:].decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = "".join(c if c.isprintable() else "?" for c in lines[-1])
    return ": " + (line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…")


def execute(
    words: Sequence[str],
    stdin: str,
    stdout: str,
    stderr: str,
    *,
    result: str,
    cwd: Path | None,
    timeout: float | None,
    environment: dict[str, str],
) -> tuple[int, Execution, int | None]:
    """Run a command to its end, or kill it and all that it started.

    Returns:
      its exit status as subprocess has it, what it took, and the floor under its peak memory (see child.py).

    Raises:
      subprocess.TimeoutExpired: it took longer than `timeout` seconds.
      LmcodecError: the process between could not be run.
    """
    if not hasattr(os, "fork"):
        return _execute_plainly(words, stdin, stdout, stderr, cwd, timeout, environment)
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]
    process = subprocess.Popen(
        [*launcher, result, stdin, stdout, stderr, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )
    try:
        message = process.communicate(timeout=timeout)[1]
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=_LAUNCHER_TIMEOUT_S)
        raise
    if process.returncode:
        last = message.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise LmcodecError(f"a command could not be run: {' '.join(last)}")
    with open(result, encoding="utf-8") as file:
        took = json.load(file)
    floor = took["floor_nbytes"]
    return took["status"], Execution(took["seconds"], max(took["peak_nbytes"], floor)), floor


def _execute_plainly(
    words: Sequence[str],
    stdin: str,
    stdout: str,
    stderr: str,
    cwd: Path | None,
    timeout: float | None,
    environment: dict[str, str],
) -> tuple[int, Execution, None]:
    """Where processes do not fork: no peak memory."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(stdin or os.devnull, "rb"))
        target = stack.enter_context(open(stdout or os.devnull, "wb"))
        errors = stack.enter_context(open(stderr, "wb"))
        began = time.perf_counter()
        done = subprocess.run(
            list(words),
            stdin=source,
            stdout=target,
            stderr=errors,
            cwd=cwd,
            timeout=timeout,
            env=environment,
            check=False,
        )
        return done.returncode, Execution(time.perf_counter() - began, None), None


def as_csv(report: Report) -> str:
    """lzbench's CSV, one line a compressor and file; speeds with four figures, for slow ones too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LZBENCH_COLUMNS)
    for m in report.measurements:
        speeds = (f"{m.compress_speed:.4g}", f"{m.decompress_speed:.4g}")
        writer.writerow(
            [m.compressor, *speeds, m.nbytes, m.packed_nbytes, f"{m.ratio:.2f}", file_label(m.file, m.limit)]
        )
    return text.getvalue()


def file_label(name: str, limit: int | None) -> str:
    """A file's name, with the limit if its beginning was taken."""
    return name if limit is None else f"{name}[:{limit}]"


def as_json(report: Report) -> str:
    """All of a report."""
    document: dict[str, Any] = {
        "machine": report.machine,
        "runs": report.runs,
        "threads": report.threads,
        "interrupted": report.interrupted,
        "memory_floor": report.floor_nbytes,
        "compressors": [
            {
                "name": c.name,
                "version": c.version,
                "compress": list(c.compress.words),
                "decompress": list(c.decompress.words),
            }
            for c in report.compressors
        ],
        "missing": report.missing,
        "failures": [vars(failure) for failure in report.failures],
        "measurements": [_as_object(m) for m in report.measurements],
        "totals": [_as_object(m) for limit in report.limits() for m in report.totals(limit)],
    }
    return json.dumps(document, indent=1) + "\n"


def _as_object(m: Measurement) -> dict[str, Any]:
    derived = {
        "bpb": m.bpb,
        "compress_speed": m.compress_speed,
        "decompress_speed": m.decompress_speed,
    }
    return vars(m) | {key: round(value, 6) for key, value in derived.items()}


# What the table shows: heading of lzbench -o1 or ours, cell.
_COLUMNS: tuple[tuple[str, Callable[[Measurement, int | None], str]], ...] = (
    ("Compressor name", lambda m, _: m.compressor),
    ("Compression, MB/s", lambda m, _: speed_text(m.compress_speed)),
    ("Decompress., MB/s", lambda m, _: speed_text(m.decompress_speed)),
    ("Compr. size", lambda m, _: f"{m.packed_nbytes:,}"),
    ("Ratio", lambda m, _: f"{m.ratio:.2f}"),
    ("Bits per byte", lambda m, _: f"{m.bpb:.3f}"),
    ("Memory, MB", lambda m, floor: memory_text(m, floor)),
)


def speed_text(speed: float) -> str:
    """MB/s with three figures."""
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def memory_text(m: Measurement, floor: int | None) -> str:
    """Peaks in MB, to compress and to decompress; `<` where only the floor is known."""
    texts = []
    for peak in (m.compress_peak, m.decompress_peak):
        if peak is None:
            texts.append("?")
        elif floor is not None and peak <= floor:
            texts.append(f"<{floor / 1e6:.0f}")
        else:
            texts.append(f"{peak / 1e6:.0f}")
    return ", ".join(texts)


def rows(report: Report, measurements: Sequence[Measurement]) -> list[list[str]]:
    """A table with its heading."""
    head = [heading for heading, _ in _COLUMNS]
    return [head, *([cell(m, report.floor_nbytes) for _, cell in _COLUMNS] for m in measurements)]


def as_markdown(report: Report, *, files: bool = False) -> str:
    """Totals as Markdown tables in lzbench's columns and ours, with what was measured on.

    Args:
      files: a table for each file, too.
    """
    lines: list[str] = []
    for title, measurements in sections(report, files=files):
        lines += [f"{_as_plain(title)}:", ""]
        head, *body = rows(report, measurements)
        lines += ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += ["| " + " | ".join(map(_as_plain, row)) + " |" for row in body]
        lines.append("")
    lines += [*map(_as_plain, notes(report)), ""]
    lines += [f"- {key}: {value}" for key, value in report.machine.items()]
    lines += [f"- {c.name}: {c.version}" for c in report.compressors if c.version and c.family != "lmcodec"]
    return "\n".join(lines) + "\n"


def _as_plain(text: str) -> str:
    """What Markdown shows as `text`, whatever file names are in it."""
    return re.sub(r"([\\`*<|\[\]])", r"\\\1", visible.title(text, 10_000))


def sections(report: Report, *, files: bool = False) -> Iterator[tuple[str, list[Measurement]]]:
    """Titles and rows of the tables: totals for each limit, then each file if `files`."""
    for limit in report.limits():
        totals = report.totals(limit)
        if totals:
            first = totals[0]
            begin = "" if limit is None else f"the first {limit:,} bytes of "
            yield f"{begin}{first.file}, {first.nbytes:,} bytes", totals
    if files:
        names = dict.fromkeys((m.file, m.limit) for m in report.measurements)
        for name, limit in names if len(names) > 1 else ():
            own = [m for m in report.measurements if (m.file, m.limit) == (name, limit)]
            yield f"{file_label(name, limit)}, {own[0].nbytes:,} bytes", own


def notes(report: Report) -> list[str]:
    """What must be known to read the tables, one sentence or two a line."""
    times = "one run" if report.runs == 1 else f"medians of {report.runs} interleaved runs"
    threads = "one thread" if report.threads == 1 else f"{report.threads} threads"
    lines = [
        f"{times[0].upper()}{times[1:]}, {threads}; ratio in percent. Every time is a whole process, "
        "start-up included; every round trip was compared.",
    ]
    incomplete = [c.name for c in report.compressors if _is_incomplete(report, c.name)]
    if incomplete:
        lines.append(f"Not on all files, so not in the totals: {', '.join(incomplete)}.")
    lines += [f"Missing: {name} ({source})." for name, source in report.missing.items()]
    if report.interrupted:
        lines.append("Interrupted: only what had been measured by then.")
    return lines


def _is_incomplete(report: Report, name: str) -> bool:
    return any(all(m.compressor != name for m in report.totals(limit)) for limit in report.limits())
