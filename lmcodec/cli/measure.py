"""`lmcodec measure`: bits per byte of files, as a table for people, as JSON and as CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.console import Console, is_terminal
from lmcodec.cli.lmz import (
    BLOCK_SIZE,
    DEFAULT_LEVEL,
    METHOD,
    MODEL,
    core_count,
    from_environment,
)
from lmcodec.cli.operate import ERROR, OK, WARNING, check_model
from lmcodec.cli.progress import first_that_fits, size_text, time_text
from lmcodec.cli.safe_file import Stdout, StdoutClosed, reserve_standard_descriptors
from lmcodec.cli.table import table
from lmcodec.errors import LmcodecError, one_line

if TYPE_CHECKING:
    from lmcodec.lm.store import Model
    from lmcodec.measure.bpb import Measurement, Meter
    from lmcodec.measure.processes import Outcome

_SEVERAL_NBYTES = 1 << 16  # of text that is worth starting a second process for


@click.command(
    epilog="Frame is what compress writes, bpb its bits per byte. Mix is the cross-entropy of what is coded,"
    " in bits per byte, Network that of the language model alone; Gap is what the frame takes beyond the mix."
    " LMCODEC_LEVEL and LMCODEC_MODEL in the environment set defaults. The exit status is 0 if all went well,"
    " 1 after an error, 2 after a warning.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("paths", nargs=-1, type=click.Path(allow_dash=True, readable=False))
@click.option("--level", type=click.IntRange(1, 9), help=f"Level, 1 to 9.  [default: {DEFAULT_LEVEL}]")
@click.option("--model", **MODEL)
@click.option("--method", **METHOD)
@click.option("--block-size", "block_nbytes", **BLOCK_SIZE)
@click.option("--solid", is_flag=True, help="Let blocks build on those before.")
@click.option("--network-only", is_flag=True, help="Measure the language model alone: faster, no frames.")
@click.option(
    "--window", type=click.IntRange(1, 1 << 22), metavar="N", help="Tokens of a window, for a model hf:."
)
@click.option(
    "--stride",
    type=click.IntRange(1, 1 << 22),
    metavar="N",
    help="New tokens of each window, for a model hf:.  [default: half a window]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of a model hf:.  [default: cpu]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the numbers of a model hf:.  [default: float32]",
)
@click.option("--download", is_flag=True, help="Fetch a model hf:OWNER/NAME that the local cache lacks.")
@click.option("--split-documents", is_flag=True, help="Measure what zero bytes separate apart.")
@click.option(
    "-j", "--jobs", type=click.IntRange(0, 1024), metavar="N", help="Processes; 0: one a core.  [default: 0]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("-q", "--quiet", count=True, help="No warnings; twice: no errors.")
@click.option("--no-progress", is_flag=True, help="No progress, on a terminal either.")
def measure(
    paths: tuple[str, ...],
    level: int | None,
    model: str | None,
    method: str | None,
    block_nbytes: int | None,
    solid: bool,
    network_only: bool,
    window: int | None,
    stride: int | None,
    device: str | None,
    dtype: str | None,
    download: bool,
    split_documents: bool,
    jobs: int | None,
    as_json: bool,
    as_csv: bool,
    quiet: int,
    no_progress: bool,
) -> None:
    """Measure the bits per byte of PATHS: files, folders, patterns; standard input if there are none.

    Nothing is written: each file is compressed for real, and each block coded once more to see why it takes
    what it takes. With --model hf:PATH or hf:OWNER/NAME, any causal model of transformers, nothing is
    compressed: its cross-entropy is measured in windows, beside the definition of lm-evaluation-harness.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv do not go together")
    level = level or from_environment("LMCODEC_LEVEL", 1, 9) or DEFAULT_LEVEL
    check_model(f"--level {level}", level, method or "auto", model)
    if network_only:
        check_model(f"--level {level}", level, method or "auto", "", "--network-only")
    if not paths and is_terminal(0):
        raise click.UsageError("name what to measure (- is standard input)")
    reserve_standard_descriptors()
    console = Console("lmcodec", -quiet, progress=not no_progress)
    from lmcodec.lm import outside

    asked = model or os.environ.get("LMCODEC_MODEL")
    in_floats = {"window": window, "stride": stride, "device": device, "dtype": dtype, "download": download}
    if outside.prefix_of(asked) is not None:
        if solid or method or block_nbytes:
            raise click.UsageError(
                "a model hf: is measured without frames: no --solid, --method, --block-size"
            )
        from lmcodec.cli.measure_causal import CausalWork

        in_floats["device"] = device or "cpu"
        causal = CausalWork(console, str(asked), in_floats, split_documents, _Progress)
        kind = "json" if as_json else "csv" if as_csv else "table"
        click.get_current_context().exit(console.supervise(lambda: causal.run(paths or ("-",), kind)))
    if given := next((name for name, value in in_floats.items() if value), None):
        raise click.UsageError(f"--{given} is for --model hf:PATH or hf:OWNER/NAME")
    options = {
        "level": level,
        "model": model,
        "block_size": block_nbytes,
        "solid": solid,
        "method": method or "auto",
        "network_only": network_only,
    }
    work = _Work(console, options, jobs or core_count(), split_documents)
    form = _as_json if as_json else _as_csv if as_csv else _as_table
    click.get_current_context().exit(console.supervise(lambda: work.run(paths or ("-",), form)))


class _Progress:
    """Bytes measured of all texts together."""

    def __init__(self, total_nbytes: int | None) -> None:
        self._total_nbytes = total_nbytes
        self._nbytes = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._nbytes += nbytes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def line(self, width: int) -> str:
        done, total, seconds = self._nbytes, self._total_nbytes, self.seconds
        short, parts = size_text(done), [f"measured {size_text(done)}"]
        if total:
            short = f"{min(done / total, 1):.0%}"
            parts[0] += f" of {size_text(total)} ({short})"
        if done:
            parts.append(f"{size_text(done / seconds)}/s")
        if done and total:
            parts.append(f"{time_text(max(total - done, 0) * seconds / done)} left")
        else:
            parts.append(time_text(seconds))
        return first_that_fits(["  ".join(parts), f"{short}  {parts[-1]}", short], width)[:width]


@dataclass
class _Report:
    """What was measured, with which settings, and what was not.

    Attributes:
        settings: for programs.
        model: the language model, None if the level has none.
        model_nbytes: of its file.
        files: names and measurements of the texts in each: one, or with `split` one for every document.
        failed: names and reasons.
    """

    settings: dict[str, Any]
    model: Model | None
    model_nbytes: int
    split: bool
    files: list[tuple[str, list[Measurement]]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def total(self) -> Measurement:
        return reduce(add, (text for _, texts in self.files for text in texts))

    def total_with_model(self) -> Measurement | None:
        """The total with the bytes of the model's file among the frames', without frames the network's."""
        total = self.total()
        if self.model is None or total.network_bits is None:
            return None
        if total.frame_nbytes is None:
            return replace(total, network_bits=total.network_bits + 8 * self.model_nbytes)
        return replace(total, frame_nbytes=total.frame_nbytes + self.model_nbytes)


class _Work:
    def __init__(self, console: Console, options: dict[str, Any], jobs: int, split: bool) -> None:
        self.console, self.options, self.jobs, self.split = console, options, jobs, split
        self.status = OK

    def run(self, paths: tuple[str, ...], form: Callable[[_Report], str]) -> int:
        try:
            report = self._measure(paths)
            Stdout().write(form(report).encode("utf-8", "backslashreplace"))
        except StdoutClosed:
            raise
        except (LmcodecError, OSError) as error:
            self._fail(None, one_line(error))
        except MemoryError:
            self._fail(None, "out of memory")
        except Exception as error:  # our bug
            self._fail(None, f"internal error, please report it: {type(error).__name__}: {error}")
        return self.status

    def _fail(self, name: str | None, message: str) -> None:
        self.status = ERROR
        self.console.error("(stdin)" if name == "-" else name, message)

    def _measure(self, paths: tuple[str, ...]) -> _Report:
        from lmcodec.measure.bpb import Meter
        from lmcodec.measure.processes import Task, measure_all
        from lmcodec.measure.texts import Problem, find_files

        meter = Meter(**self.options)  # refuses a model that is not there before the first file is read
        report = _report(meter, self.options, self.split)
        if meter.network_only and not self.options["network_only"]:
            message = "the model holds no profile of the context models beside it: it is measured alone"
            how = "--method lm makes frames with it, lmcodec model export --mixer adds a profile"
            self.console.warning(None, f"{message} ({how})")
        sizes: dict[str, int | None] = {}
        for found in find_files(paths):
            if isinstance(found, Problem):
                self._fail(found.name, found.message)
                report.failed.append((found.name, found.message))
            else:
                sizes[found] = _size(found)
        n_share = self.jobs if self.split and len(sizes) < self.jobs else 1
        tasks = [
            (name, Task(name, self.split, share, n))
            for name, nbytes in sizes.items()
            for n in [1 if name == "-" or (nbytes or 0) < _SEVERAL_NBYTES else n_share]
            for share in range(n)
        ]
        known = [nbytes for nbytes in sizes.values() if nbytes is not None]
        n_process = min(self.jobs, len(tasks)) if sum(known) >= _SEVERAL_NBYTES else 1
        options = self.options | {"threads": max(self.jobs // max(n_process, 1), 1)}
        progress = _Progress(sum(known) if len(known) == len(sizes) else None)
        self.console.follow(progress)
        outcomes = measure_all(
            [task for _, task in tasks], options, n_process=n_process, progress=progress.add
        )
        self.console.end()
        by_name: dict[str, list[Outcome]] = {}
        for (name, _), outcome in zip(tasks, outcomes, strict=True):
            by_name.setdefault(name, []).append(outcome)
        for name in sizes:
            self._take(name, by_name[name], report)
        return report

    def _take(self, name: str, outcomes: list[Outcome], report: _Report) -> None:
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        texts = [m for _, m in sorted((n, m) for outcome in outcomes for n, m in outcome.texts) if m.nbytes]
        shown = "(stdin)" if name == "-" else name
        if error is not None:
            self._fail(name, error)
            report.failed.append((shown, error))
        elif texts:
            report.files.append((shown, texts))
        else:
            self.console.warning(shown, "is empty, left out")
            self.status = self.status or WARNING


def _size(name: str) -> int | None:
    """Bytes of a file; None if that is unknown, 0 if it cannot be read."""
    try:
        status = os.stat(name) if name != "-" else os.fstat(0)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _report(meter: Meter, options: dict[str, Any], split: bool) -> _Report:
    settings = {
        "level": options["level"],
        "block_nbytes": meter.block_nbytes,
        "solid": options["solid"],
        "method": options["method"],
        "network_only": meter.network_only,
        "split_documents": split,
    }
    nbytes = 0 if meter.model is None else os.path.getsize(meter.model.path)
    return _Report(settings, meter.model, nbytes, split)


# What is printed


def _as_table(report: _Report) -> str:
    """A line for every file, one for all, one with the model's bytes."""
    if not report.files:
        return ""
    rows = [_row(name, len(texts), reduce(add, texts)) for name, texts in report.files]
    n_document = sum(len(texts) for _, texts in report.files)
    if len(rows) > 1:
        rows.append(_row(f"{len(rows)} files", n_document, report.total()))
    with_model = report.total_with_model()
    if with_model is not None:
        row = _row(f"with the model's {report.model_nbytes:,} bytes", n_document, with_model)
        keep = ("Frame", "bpb") if with_model.frame_nbytes is not None else ("Network",)
        rows.append({key: value if key in (*keep, "File") else "" for key, value in row.items()})
    columns = [key for key in rows[0] if rows[0][key] != "-" and (key != "Documents" or report.split)]
    cells = [columns, *([row[key] for key in columns] for row in rows)]
    return table(cells, right=range(len(columns) - 1))


def _row(name: str, n_document: int, m: Measurement) -> dict[str, str]:
    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    def bpb(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return {
        "Documents": count(n_document),
        "Bytes": count(m.nbytes),
        "Tokens": count(m.n_token),
        "Frame": count(m.frame_nbytes),
        "bpb": bpb(m.frame_bpb),
        "Mix": bpb(m.mix_bpb),
        "Gap": bpb(m.gap_bpb),
        "Network": bpb(m.network_bpb),
        "File": name,
    }


_BITS, _BPB = 3, 6  # decimals for programs


def _figures(m: Measurement) -> dict[str, int | float | None]:
    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None or math.isnan(value) else round(value, digits)

    return {
        "nbytes": m.nbytes,
        "n_token": m.n_token,
        "frame_nbytes": m.frame_nbytes,
        "frame_bpb": rounded(m.frame_bpb, _BPB),
        "mix_bits": rounded(m.mix_bits, _BITS),
        "mix_bpb": rounded(m.mix_bpb, _BPB),
        "gap_bpb": rounded(m.gap_bpb, _BPB),
        "network_bits": rounded(m.network_bits, _BITS),
        "network_bpb": rounded(m.network_bpb, _BPB),
    }


def _as_json(report: _Report) -> str:
    """One object. Bytes of a name that are no text are "\\udc80" to "\\udcff"."""
    from lmcodec import __version__

    files = []
    for name, texts in report.files:
        entry: dict[str, Any] = {"file": name, **_figures(reduce(add, texts))}
        if report.split:
            entry["documents"] = [_figures(text) for text in texts]
        files.append(entry)
    with_model = report.total_with_model() if report.files else None
    model = report.model
    document = {
        "version": __version__,
        "settings": report.settings,
        "model": None
        if model is None
        else {"id": model.model_id, "file": str(model.path), "nbytes": report.model_nbytes},
        "files": files,
        "total": _figures(report.total()) if report.files else None,
        "total_with_model": None if with_model is None else _figures(with_model),
        "failed": [{"file": name, "error": error} for name, error in report.failed],
    }
    return json.dumps(document, indent=1) + "\n"


def _as_csv(report: _Report) -> str:
    """A line for every file, before it one for each of its documents, then the totals."""
    from lmcodec.measure.bpb import Measurement

    out = io.StringIO()
    columns = ["kind", "file", "document", *_figures(Measurement(0, None, None, None, None))]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()

    def write(kind: str, name: str, number: int | None, m: Measurement) -> None:
        writer.writerow({"kind": kind, "file": name, "document": number, **_figures(m)})

    for name, texts in report.files:
        if report.split:
            for number, text in enumerate(texts, 1):
                write("document", name, number, text)
        write("file", name, None, reduce(add, texts))
    if report.files:
        write("total", "", None, report.total())
        with_model = report.total_with_model()
        if with_model is not None:
            write("total_with_model", "", None, with_model)
    return out.getvalue()
