"""`lmcodec measure --model hf:…`: bits per byte of files under a causal model in floats, window by window."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from lmcodec.cli.console import Console
from lmcodec.cli.operate import ERROR, OK, WARNING
from lmcodec.cli.safe_file import Stdout, StdoutClosed
from lmcodec.cli.table import table
from lmcodec.errors import LmcodecError, one_line

if TYPE_CHECKING:
    from lmcodec.measure.causal import CausalMeasurement, CausalMeter


@dataclass
class _Report:
    """What was measured, and what was not.

    Attributes:
        settings: how, for programs.
        files: names and measurements of the documents in each.
        failed: names and reasons.
    """

    settings: dict[str, Any]
    context: str
    split: bool
    files: list[tuple[str, list[CausalMeasurement]]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def total(self) -> CausalMeasurement:
        return reduce(add, (text for _, texts in self.files for text in texts))


class CausalWork:
    """Measures operands one after another, in this process.

    Args:
        console: for messages.
        model: with the prefix hf:.
        options: of `CausalMeter`.
        split: measure what zero bytes separate apart.
        progress: made with the bytes there are, or None.
    """

    def __init__(
        self,
        console: Console,
        model: str,
        options: dict[str, Any],
        split: bool,
        progress: Callable[[int | None], Any],
    ) -> None:
        self._console, self._model, self._options = console, model, options
        self._split, self._progress = split, progress
        self._status = OK

    def run(self, paths: tuple[str, ...], form: str) -> int:
        """Measure and print; returns the exit status."""
        try:
            report = self._measure(paths)
            text = {"json": _as_json, "csv": _as_csv, "table": _as_table}[form](report)
            Stdout().write(text.encode("utf-8", "backslashreplace"))
        except StdoutClosed:
            raise
        except (LmcodecError, OSError) as error:
            self._fail(None, one_line(error))
        except MemoryError:
            self._fail(None, "out of memory")
        except Exception as error:  # our bug
            self._fail(None, f"internal error, please report it: {type(error).__name__}: {error}")
        return self._status

    def _fail(self, name: str | None, message: str) -> None:
        self._status = ERROR
        self._console.error("(stdin)" if name == "-" else name, message)

    def _measure(self, paths: tuple[str, ...]) -> _Report:
        from lmcodec.measure.causal import CausalMeter
        from lmcodec.measure.texts import Problem, find_files

        meter = CausalMeter(self._model, **self._options)
        report = _Report(_settings(meter, self._split), meter.context, self._split)
        names = []
        for found in find_files(paths):
            if isinstance(found, Problem):
                self._fail(found.name, found.message)
                report.failed.append((found.name, found.message))
            else:
                names.append(found)
        sizes = [os.path.getsize(name) if name != "-" and os.path.isfile(name) else None for name in names]
        known = [size for size in sizes if size is not None]
        progress = self._progress(sum(known) if len(known) == len(sizes) else None)
        self._console.follow(progress)
        for name in names:
            self._take(meter, name, report, progress)
        self._console.end()
        return report

    def _take(self, meter: CausalMeter, name: str, report: _Report, progress: Any) -> None:
        shown = "(stdin)" if name == "-" else name
        try:
            documents = _documents(name, self._split)
            texts = [meter.measure(document, progress.add) for document in documents]
        except (LmcodecError, OSError, MemoryError) as error:
            message = "out of memory" if isinstance(error, MemoryError) else one_line(error)
            if isinstance(error, OSError):
                message = error.strerror or str(error)
            self._fail(name, message)
            report.failed.append((shown, message))
            return
        if texts:
            report.files.append((shown, texts))
        else:
            self._console.warning(shown, "is empty, left out")
            self._status = self._status or WARNING


def _documents(name: str, split: bool) -> list[bytes]:
    """The documents of a file that hold something."""
    if name == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(name, "rb") as file:
            data = file.read()
    return [part for part in (data.split(b"\0") if split else [data]) if part]


def _settings(meter: CausalMeter, split: bool) -> dict[str, Any]:
    model = meter.model
    fingerprint = model.fingerprint
    return {
        "model": model.name,
        "model_sha256": fingerprint.model,
        "dtype": model.settings["dtype"],
        "device": model.device,
        "environment": dict(fingerprint.environment),
        "window": meter.window,
        "stride": meter.stride,
        "begin_id": meter.begin_id,
        "harness_begin_id": meter.harness_begin_id,
        "harness_window": meter.window,
        "split_documents": split,
    }


def _row(name: str, n_document: int, m: CausalMeasurement) -> tuple[str, ...]:
    harness = m.harness_bpb
    return (
        f"{n_document:,}",
        f"{m.nbytes:,}",
        f"{m.n_token:,}",
        f"{m.bpb:.4f}",
        "-" if harness is None else f"{harness:.4f}",
        name,
    )


def _as_table(report: _Report) -> str:
    """A line for every file and one for all, then how it was measured."""
    if not report.files:
        return ""
    rows: list[tuple[str, ...]] = [("Documents", "Bytes", "Tokens", "bpb", "Harness", "File")]
    rows += [_row(name, len(texts), reduce(add, texts)) for name, texts in report.files]
    n_document = sum(len(texts) for _, texts in report.files)
    if len(report.files) > 1:
        rows.append(_row(f"{len(report.files)} files", n_document, report.total()))
    if not report.split:
        rows = [row[1:] for row in rows]
    lines = [
        f"{report.settings['model']} in {report.settings['dtype']} on {report.settings['device']}: "
        f"{report.context}",
        f"Harness is lm-evaluation-harness's definition: the model's own tokenizer, begun with token "
        f"{report.settings['harness_begin_id']}, windows of {report.settings['harness_window']} tokens that "
        "do not overlap",
    ]
    lacking = report.total().n_lacking
    if lacking:
        lines.append(f"{lacking:,} bytes are none that the model has a token for: 24 bits each")
    return table(rows, right=range(len(rows[0]) - 1)) + "".join(f"{line}\n" for line in lines)


def _figures(m: CausalMeasurement) -> dict[str, Any]:
    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None or math.isnan(value) else round(value, digits)

    return {
        "nbytes": m.nbytes,
        "n_token": m.n_token,
        "bits": rounded(m.bits, 3),
        "bpb": rounded(m.bpb, 6),
        "n_lacking": m.n_lacking,
        "harness_n_token": m.harness_n_token,
        "harness_bits": rounded(m.harness_bits, 3),
        "harness_bpb": rounded(m.harness_bpb, 6),
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
    document = {
        "version": __version__,
        "settings": report.settings,
        "context": report.context,
        "files": files,
        "total": _figures(report.total()) if report.files else None,
        "failed": [{"file": name, "error": error} for name, error in report.failed],
    }
    return json.dumps(document, indent=1) + "\n"


def _as_csv(report: _Report) -> str:
    """A line for every file, before it one for each of its documents, then the total; settings in each."""
    from lmcodec.measure.causal import CausalMeasurement

    out = io.StringIO()
    named = ("model", "dtype", "device", "window", "stride", "begin_id", "harness_begin_id")
    columns = ["kind", "file", "document", *_figures(CausalMeasurement(0, 0, 0.0)), *named]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    settings = {name: report.settings[name] for name in named}

    def write(kind: str, name: str, number: int | None, m: CausalMeasurement) -> None:
        writer.writerow({"kind": kind, "file": name, "document": number, **_figures(m), **settings})

    for name, texts in report.files:
        for number, text in enumerate(texts if report.split else [], 1):
            write("document", name, number, text)
        write("file", name, None, reduce(add, texts))
    if report.files:
        write("total", "", None, report.total())
    return out.getvalue()
