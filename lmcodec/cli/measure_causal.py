"""`lmcodec measure --model hf:…`: bits per byte of files under a causal model in floats, window by window."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmcodec.cli.console import Console
from lmcodec.cli.measured import Measuring, Report, bits, bpb, together, total_nbytes
from lmcodec.cli.table import table
from lmcodec.errors import LmcodecError, one_line

if TYPE_CHECKING:
    from lmcodec.measure.causal import CausalMeasurement, CausalMeter


@dataclass
class _Report(Report["CausalMeasurement"]):
    """What was measured.

    Attributes:
        context: what a token sees, for people.
    """

    context: str


class CausalWork(Measuring[_Report]):
    """Measures operands one after another, in this process.

    Args:
        console: for messages.
        model: with the prefix hf:.
        options: of `CausalMeter`.
        split: measure what zero bytes separate apart.
        field: measure apart the texts in this field of records; None for whole files.
        progress: made with the bytes there are, or None.
    """

    def __init__(
        self,
        console: Console,
        model: str,
        options: dict[str, Any],
        split: bool,
        field: str | None,
        progress: Callable[[int | None], Any],
    ) -> None:
        super().__init__(console)
        self._model, self._options = model, options
        self._split, self._field, self._progress = split, field, progress

    def _measure(self, paths: tuple[str, ...]) -> _Report:
        from lmcodec.measure.causal import CausalMeter

        meter = CausalMeter(self._model, **self._options)
        by_row = self._field is not None
        settings = _settings(meter, self._split) | {"field": self._field}
        report = _Report(settings, self._split or by_row, meter.context, by_row=by_row)
        sizes = self._find(paths, report)
        progress = self._progress(None if by_row else total_nbytes(nbytes for _, nbytes in sizes))
        self.console.follow(progress)
        for name, _ in sizes:
            self._take(meter, name, report, progress)
        self.console.end()
        return report

    def _take(self, meter: CausalMeter, name: str, report: _Report, progress: Any) -> None:
        texts: dict[int, CausalMeasurement] = {}
        n_without = 0
        message = None
        try:
            for number, document in _documents(name, self._split, self._field):
                if document:
                    texts[number] = meter.measure(document, progress.add)
                else:
                    n_without += 1
        except OSError as error:
            message = error.strerror or str(error)
        except LmcodecError as error:
            message = one_line(error)
        except MemoryError:
            message = "out of memory"
        self._keep(name, texts, message, report, n_without)


def _documents(name: str, split: bool, field: str | None) -> Iterator[tuple[int, bytes | None]]:
    """The documents of a file with their numbers from 1 on: those that hold something, or every record's."""
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        if field is not None:
            from lmcodec.measure.records import field_texts

            for row, text in field_texts(file, field):
                yield row + 1, text
            return
        data = file.read()
    yield from enumerate((part for part in (data.split(b"\0") if split else [data]) if part), 1)


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
    rows += [_row(name, len(texts), together(texts.values())) for name, texts in report.files]
    n_document = report.documents()
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
    return {
        "nbytes": m.nbytes,
        "n_token": m.n_token,
        "bits": bits(m.bits),
        "bpb": bpb(m.bpb),
        "n_lacking": m.n_lacking,
        "harness_n_token": m.harness_n_token,
        "harness_bits": bits(m.harness_bits),
        "harness_bpb": bpb(m.harness_bpb),
    }


def _as_json(report: _Report) -> str:
    """One object. Bytes of a name that are no text are "\\udc80" to "\\udcff"."""
    from lmcodec import __version__

    document = {
        "version": __version__,
        "settings": report.settings,
        "context": report.context,
        "files": report.entries(_figures),
        "total": _figures(report.total()) if report.files else None,
        "failed": report.failures(),
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

    for kind, name, number, m in report.rows():
        writer.writerow({"kind": kind, "file": name, "document": number, **_figures(m), **settings})
    return out.getvalue()


FORMS = {"table": _as_table, "json": _as_json, "csv": _as_csv}
