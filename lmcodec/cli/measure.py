"""`lmcodec measure`: bits per byte of files, as a table for people, as JSON and as CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from dataclasses import dataclass, replace
from operator import itemgetter
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
from lmcodec.cli.measured import Measuring, Report, bits, bpb, together, total_nbytes
from lmcodec.cli.operate import check_model
from lmcodec.cli.progress import first_that_fits, size_text, time_text
from lmcodec.cli.safe_file import reserve_standard_descriptors
from lmcodec.cli.table import table

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
    "--field",
    metavar="NAME",
    help="Measure apart the texts in this field of records: JSON lines, Parquet, Arrow, datasets on disk.",
)
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
    field: str | None,
    jobs: int | None,
    as_json: bool,
    as_csv: bool,
    quiet: int,
    no_progress: bool,
) -> None:
    """Measure the bits per byte of PATHS: files, folders, patterns; standard input if there are none.

    With --field they hold records (JSON lines, Parquet, Arrow, what datasets saved on disk), and each row's
    text is a document.

    Nothing is written: each file is compressed for real, and each block coded once more to see why it takes
    what it takes. With --model hf:PATH or hf:OWNER/NAME, any causal model of transformers, nothing is
    compressed: its cross-entropy is measured in windows, beside the definition of lm-evaluation-harness.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv do not go together")
    if field is not None and split_documents:
        raise click.UsageError("--field and --split-documents do not go together: each row is a document")
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
        from lmcodec.cli.measure_causal import FORMS, CausalWork

        in_floats["device"] = device or "cpu"
        causal = CausalWork(console, str(asked), in_floats, split_documents, field, _Progress)
        write = FORMS["json" if as_json else "csv" if as_csv else "table"]
        click.get_current_context().exit(console.supervise(lambda: causal.run(paths or ("-",), write)))
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
    work = _Work(console, options, jobs or core_count(), split_documents, field)
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
class _Report(Report["Measurement"]):
    """What was measured.

    Attributes:
        model: the language model, None if the level has none.
        model_nbytes: of its file.
    """

    model: Model | None
    model_nbytes: int

    def total_with_model(self) -> Measurement | None:
        """The total with the bytes of the model's file among the frames', without frames the network's."""
        total = self.total()
        if self.model is None or total.network_bits is None:
            return None
        if total.frame_nbytes is None:
            return replace(total, network_bits=total.network_bits + 8 * self.model_nbytes)
        return replace(total, frame_nbytes=total.frame_nbytes + self.model_nbytes)


class _Work(Measuring[_Report]):
    def __init__(
        self, console: Console, options: dict[str, Any], jobs: int, split: bool, field: str | None
    ) -> None:
        super().__init__(console)
        self.options, self.jobs, self.split, self.field = options, jobs, split, field

    def _measure(self, paths: tuple[str, ...]) -> _Report:
        from lmcodec.measure.bpb import Meter
        from lmcodec.measure.processes import Task, measure_all

        meter = Meter(**self.options)  # refuses a model that is not there before the first file is read
        report = _report(meter, self.options, self.split, self.field)
        if meter.network_only and not self.options["network_only"]:
            message = "the model holds no profile of the context models beside it: it is measured alone"
            how = "--method lm makes frames with it, lmcodec model export --mixer adds a profile"
            self.console.warning(None, f"{message} ({how})")
        sizes = dict(self._find(paths, report))
        n_share = self.jobs if report.split and len(sizes) < self.jobs else 1
        tasks = [
            (name, Task(name, self.split, share, n, self.field))
            for name, nbytes in sizes.items()
            for n in [1 if name == "-" or (nbytes or 0) < _SEVERAL_NBYTES else n_share]
            for share in range(n)
        ]
        known = sum(nbytes or 0 for nbytes in sizes.values())
        n_process = min(self.jobs, len(tasks)) if known >= _SEVERAL_NBYTES else 1
        options = self.options | {"threads": max(self.jobs // max(n_process, 1), 1)}
        # What a file of records takes is not what its texts do.
        progress = _Progress(total_nbytes(sizes.values()) if self.field is None else None)
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
        found = sorted(
            ((n, m) for outcome in outcomes for n, m in outcome.texts if m.nbytes), key=itemgetter(0)
        )
        numbers = (n for n, _ in found) if report.by_row else range(len(found))
        texts = {n + 1: m for n, (_, m) in zip(numbers, found, strict=True)}
        self._keep(name, texts, error, report, sum(outcome.n_without for outcome in outcomes))


def _report(meter: Meter, options: dict[str, Any], split: bool, field: str | None) -> _Report:
    settings = {
        "level": options["level"],
        "block_nbytes": meter.block_nbytes,
        "solid": options["solid"],
        "method": options["method"],
        "network_only": meter.network_only,
        "split_documents": split,
        "field": field,
    }
    nbytes = 0 if meter.model is None else os.path.getsize(meter.model.path)
    by_row = field is not None
    return _Report(settings, split or by_row, meter.model, nbytes, by_row=by_row)


# What is printed


def _as_table(report: _Report) -> str:
    """A line for every file, one for all, one with the model's bytes."""
    if not report.files:
        return ""
    rows = [_row(name, len(texts), together(texts.values())) for name, texts in report.files]
    n_document = report.documents()
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

    def short(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return {
        "Documents": count(n_document),
        "Bytes": count(m.nbytes),
        "Tokens": count(m.n_token),
        "Frame": count(m.frame_nbytes),
        "bpb": short(m.frame_bpb),
        "Mix": short(m.mix_bpb),
        "Gap": short(m.gap_bpb),
        "Network": short(m.network_bpb),
        "File": name,
    }


def _figures(m: Measurement) -> dict[str, int | float | None]:
    return {
        "nbytes": m.nbytes,
        "n_token": m.n_token,
        "frame_nbytes": m.frame_nbytes,
        "frame_bpb": bpb(m.frame_bpb),
        "mix_bits": bits(m.mix_bits),
        "mix_bpb": bpb(m.mix_bpb),
        "gap_bpb": bpb(m.gap_bpb),
        "network_bits": bits(m.network_bits),
        "network_bpb": bpb(m.network_bpb),
    }


def _as_json(report: _Report) -> str:
    """One object. Bytes of a name that are no text are "\\udc80" to "\\udcff"."""
    from lmcodec import __version__

    with_model = report.total_with_model() if report.files else None
    model = report.model
    document = {
        "version": __version__,
        "settings": report.settings,
        "model": None
        if model is None
        else {"id": model.model_id, "file": str(model.path), "nbytes": report.model_nbytes},
        "files": report.entries(_figures),
        "total": _figures(report.total()) if report.files else None,
        "total_with_model": None if with_model is None else _figures(with_model),
        "failed": report.failures(),
    }
    return json.dumps(document, indent=1) + "\n"


def _as_csv(report: _Report) -> str:
    """A line for every file, before it one for each of its documents, then the totals."""
    from lmcodec.measure.bpb import Measurement

    out = io.StringIO()
    columns = ["kind", "file", "document", *_figures(Measurement(0, None, None, None, None))]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()

    rows = list(report.rows())
    with_model = report.total_with_model() if rows else None
    if with_model is not None:
        rows.append(("total_with_model", "", None, with_model))
    for kind, name, number, m in rows:
        writer.writerow({"kind": kind, "file": name, "document": number, **_figures(m)})
    return out.getvalue()
