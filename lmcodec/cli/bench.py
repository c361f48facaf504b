"""`lmcodec bench`: compressors side by side."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.console import Console
from lmcodec.cli.lmz import Size
from lmcodec.cli.progress import clipped, printable
from lmcodec.cli.safe_file import die_by, write_file
from lmcodec.cli.table import table
from lmcodec.errors import ConfigError, LmcodecError, one_line

if TYPE_CHECKING:
    from lmcodec.measure.bench import Failure, Input, Report

_QUICK_NBYTES = 32 << 10
_QUICK_PEERS = ("gzip", "bzip2", "xz", "zstd", "brotli", "bzip3", "ppmd")
_QUICK_KINDS = ("prose", "json", "log")
_PLOTS = (".png", ".svg")
_MAX_TIMEOUT_S = 1_000_000


class _Levels(click.ParamType):
    """Levels of lmcodec: 1,2,6 or none."""

    name = "levels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if value == "none" or isinstance(value, tuple):
            return () if value == "none" else value
        parts = str(value).split(",")
        if not all(re.fullmatch("[1-9]", part) for part in parts):
            self.fail(f"{value!r} is not a list of levels such as 1,2,6", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


class _Sizes(click.ParamType):
    """Sizes, as `Size` has them: 1K,16K,128K."""

    name = "size[,size]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        one = Size(1, 1 << 50)
        return tuple(dict.fromkeys(one.convert(part, param, ctx) for part in str(value).split(",")))


def _number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # which is in every range
        raise click.BadParameter("it is not a number")
    return value


def _output(*names: str, help: str) -> Callable[[Any], Any]:
    return click.option(*names, type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE", help=help)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path(readable=False))
@click.option(
    "--levels",
    type=_Levels(),
    default="1,2,3,6",
    show_default=True,
    help="Levels of lmcodec, or none.",
)
@click.option(
    "--peers",
    metavar="NAME[:LEVEL],...",
    help="Other compressors: gzip, bzip2, xz, zstd, brotli, bzip3, ppmd, zpaq, lrzip, paq8px, cmix,"
    " lstm-compress, each at its strongest level unless told otherwise; or none.  [default: all there are]",
)
@click.option(
    "--command",
    "commands",
    multiple=True,
    metavar="NAME=COMPRESS;DECOMPRESS",
    help="A compressor of your own: two commands, {in} and {out} stand for files, <{in} and >{out} make them"
    " standard input and output. No shell.",
)
@click.option(
    "--nbytes", type=_Sizes(), metavar="SIZE[,SIZE]", help="Take only the first bytes of each file."
)
@click.option("--runs", type=click.IntRange(1, 1000), help="Runs; medians count.  [default: 3]")
@click.option(
    "-T",
    "--threads",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="For the programs that take them.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, _MAX_TIMEOUT_S, min_open=True),
    callback=_number,
    metavar="SECONDS",
    help="Most for one command.",
)
@click.option(
    "--quick", is_flag=True, help="One run of few compressors on little text; without PATH on generated text."
)
@click.option("--files", is_flag=True, help="A table for each file, too.")
@click.option(
    "--profile",
    is_flag=True,
    help="Show instead where the time of coding a file's first block goes, both ways, at --levels"
    " (6 by default). Takes the first MiB, or --nbytes up to 16M, and the fastest of --runs (1 by default).",
)
@_output("--csv", help="Write lzbench's CSV, one line a compressor and file.")
@_output("--markdown", help="Write Markdown tables.")
@_output("--json", help="Write all figures.")
@_output("--plot", help="Draw bits per byte against speed and file size, as FILE.png or FILE.svg.")
@click.pass_context
def bench(
    ctx: click.Context,
    paths: tuple[str, ...],
    levels: tuple[int, ...],
    peers: str | None,
    commands: tuple[str, ...],
    nbytes: tuple[int, ...] | None,
    runs: int | None,
    threads: int,
    timeout: float | None,
    quick: bool,
    files: bool,
    profile: bool,
    csv: str | None,
    markdown: str | None,
    json: str | None,
    plot: str | None,
) -> None:
    """Measure sizes, speeds and memory of compressors on files and folders.

    Every compressor is a process of its own, ours too, on one thread, and takes its turn; all that is
    decompressed is compared with the original. The exit status is 1 if anything failed; the rest has been
    measured then.
    """
    from tempfile import TemporaryDirectory

    from lmcodec.measure import bench as measure
    from lmcodec.measure import peers as known

    outputs = {"csv": csv, "markdown": markdown, "json": json, "plot": plot}
    _check_outputs(outputs)
    if profile:
        from lmcodec.cli import profile as where

        given = {name for name in ctx.params if _is_given(ctx, name)}
        where.run(
            ctx, paths, given, levels=levels, nbytes=nbytes, runs=runs or 1, json=json, markdown=markdown
        )
        return
    if quick:
        if not _is_given(ctx, "levels"):
            levels = (1, 6)
        runs, nbytes = runs or 1, nbytes or (_QUICK_NBYTES,)
    elif not paths:
        raise ConfigError("name files or folders to measure on, or use --quick (-h helps)")
    asked = _split(peers, _QUICK_PEERS if quick else tuple(known.FAMILIES))
    own, wrong = [], []
    for text in commands:
        try:
            own.append(known.own_command(text))
        except ConfigError as error:
            wrong.append(measure.Failure("", "", str(error)))
    found = known.find(asked, threads)
    compressors = [*(known.own_level(level, threads) for level in levels), *found.compressors, *own]
    if not compressors:
        raise ConfigError(wrong[0].message if wrong else "there is no compressor to measure")
    known.check_names(compressors)

    console = Console("lmcodec", progress=True)
    progress = Progress(console)
    with _interruptible() as interrupts, TemporaryDirectory(prefix="lmcodec-text-") as folder:
        names = paths or _generate(Path(folder), max(nbytes or (_QUICK_NBYTES,)))
        inputs, failures = measure.gather(names, nbytes or (None,))
        failures = [*wrong, *failures]
        for failure in failures:
            progress.say(failure)
        if not inputs:
            raise LmcodecError("there is no file to measure on")
        _keep_inputs(outputs, inputs)
        report = measure.run(
            compressors,
            inputs,
            runs=runs or 3,
            threads=threads,
            timeout=timeout,
            on_failure=progress.say,
            on_step=progress.step,
        )
    console.end()
    report.missing = found.missing
    report.failures[:0] = failures
    if report.interrupted:
        console.error(None, "interrupted")
        if report.measurements:
            _write(report, outputs, console, files=files)
        die_by(interrupts[0] if interrupts else signal.SIGINT)
    written = _write(report, outputs, console, files=files)
    if report.failures or not written:
        ctx.exit(1)


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: compressors have a session of their own and would go on.

    Which of them came is put into the list.
    """
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored (nohup) stays ignored.
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield came
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _split(peers: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if peers is None:
        return default
    return () if peers == "none" else tuple(dict.fromkeys(peers.split(",")))


def _generate(folder: Path, nbytes: int) -> tuple[str, ...]:
    from lmcodec.measure.synthetic import generate

    for kind in _QUICK_KINDS:
        (folder / f"{kind} (generated)").write_bytes(generate(kind, nbytes))
    return (str(folder),)


def _check_outputs(outputs: dict[str, str | None]) -> None:
    """Find out before the work whether its results can be kept."""
    for option, name in outputs.items():
        if name is None or name == "-":
            continue
        folder = Path(name).parent
        if not folder.is_dir():
            raise LmcodecError(f"--{option} {name}: the folder {folder} is not there")
    places = ["-" if name == "-" else os.path.realpath(name) for name in outputs.values() if name is not None]
    if places.count("-") > 1:
        raise ConfigError("only one result fits on standard output")
    if len(set(places)) < len(places):
        raise ConfigError("two results cannot be in one file: give each a file of its own")
    plot = outputs["plot"]
    if plot is not None:
        if not plot.lower().endswith(_PLOTS):
            raise ConfigError(f"--plot {plot}: the name must end in {' or '.join(_PLOTS)}")
        from lmcodec.measure.picture import require_matplotlib

        require_matplotlib()


def _keep_inputs(outputs: dict[str, str | None], inputs: list[Input]) -> None:
    """Refuse to write results over what is measured."""
    for option, name in outputs.items():
        if name is not None and name != "-" and os.path.isfile(name):
            for source in inputs:
                if os.path.samefile(name, source.path):
                    raise ConfigError(f"--{option} {name}: is one of the files to measure on")


def _write(report: Report, outputs: dict[str, str | None], console: Console, *, files: bool) -> bool:
    """Write and print the results; whether all could be written. Who leaves what is printed loses no file."""
    from lmcodec.measure import bench as measure

    def plot() -> bytes:
        from lmcodec.measure.plots import render

        return render(report, str(outputs["plot"])[-3:].lower())

    # Bytes of a file's name that are no text are "\\udc80" to "\\udcff".
    forms: dict[str, Callable[[], bytes]] = {
        "csv": lambda: measure.as_csv(report).encode("utf-8", "backslashreplace"),
        "markdown": lambda: measure.as_markdown(report, files=files).encode("utf-8", "backslashreplace"),
        "json": lambda: measure.as_json(report).encode(),
        "plot": plot,
        "": lambda: _as_text(report, files=files).encode("utf-8", "backslashreplace"),
    }
    written, printed = True, ""
    for option, name in outputs.items():
        if name == "-":
            printed = option
        elif name is not None:
            try:
                write_file(name, [forms[option]()], overwrite=True)
            except (LmcodecError, OSError) as error:
                written = False
                console.error(None, f"--{option}: {one_line(error)}")
    click.echo(forms[printed](), nl=False)
    return written


def _as_text(report: Report, *, files: bool) -> str:
    """The tables in columns, for a terminal."""
    from lmcodec.measure import bench as measure

    lines = []
    for title, measurements in measure.sections(report, files=files):
        rows = measure.rows(report, measurements)
        lines += [printable(title), table(rows, right=range(1, len(rows[0])))]
    return "\n".join([*lines, *measure.notes(report)]) + "\n"


class Progress:
    """What is being run, as a line on a terminal, and failures as they happen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""

    @property
    def seconds(self) -> float:
        return math.inf  # nothing draws it again: it is shown at once

    def line(self, width: int) -> str:
        return clipped(self._line, width)

    def step(self, text: str, done: int, total: int) -> None:
        self._line = f"{done / total:4.0%}  {printable(text)}"
        self._console.follow(self)
        self._console.draw()

    def say(self, failure: Failure) -> None:
        self._console.error(None, str(failure))
