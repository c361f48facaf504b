"""`lmcodec bench`: compressors side by side."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.lmz import Size
from lmcodec.errors import ConfigError, LmcodecError, one_line

if TYPE_CHECKING:
    from lmcodec.measure.bench import Failure, Report

_QUICK_NBYTES = 32 << 10
_QUICK_PEERS = ("gzip", "bzip2", "xz", "zstd", "brotli", "bzip3", "ppmd")
_QUICK_KINDS = ("prose", "json", "log")
_PLOTS = (".png", ".svg")


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
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Most for one command."
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
    own = [known.own_command(text) for text in commands]
    found = known.find(asked, threads)
    compressors = [*(known.own_level(level, threads) for level in levels), *found.compressors, *own]
    if not compressors:
        raise ConfigError("there is no compressor to measure")
    known.check_names(compressors)

    progress = Progress()
    with _interruptible(), TemporaryDirectory(prefix="lmcodec-text-") as folder:
        names = paths or _generate(Path(folder), max(nbytes or (_QUICK_NBYTES,)))
        inputs, failures = measure.gather(names, nbytes or (None,))
        for failure in failures:
            progress.say(failure)
        if not inputs:
            raise LmcodecError("there is no file to measure on")
        report = measure.run(
            compressors,
            inputs,
            runs=runs or 3,
            threads=threads,
            timeout=timeout,
            on_failure=progress.say,
            on_step=progress.step,
        )
    progress.end()
    report.missing = found.missing
    report.failures[:0] = failures
    written = _write(report, outputs, files=files)
    if report.interrupted:
        click.echo("lmcodec: interrupted", err=True)
        ctx.exit(130)
    if report.failures or not written:
        ctx.exit(1)


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: compressors have a session of their own and would go on."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored (nohup) stays ignored.
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
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
    if [*outputs.values()].count("-") > 1:
        raise ConfigError("only one result fits on standard output")
    plot = outputs["plot"]
    if plot is not None:
        if not plot.lower().endswith(_PLOTS):
            raise ConfigError(f"--plot {plot}: the name must end in {' or '.join(_PLOTS)}")
        from lmcodec.measure.plots import require

        require()


def _write(report: Report, outputs: dict[str, str | None], *, files: bool) -> bool:
    """Print and write the results; whether all could be written."""
    from lmcodec.measure import bench as measure

    if "-" not in outputs.values():
        click.echo(_as_text(report, files=files), nl=False)
    texts: dict[str, Callable[[], str]] = {
        "csv": lambda: measure.as_csv(report),
        "markdown": lambda: measure.as_markdown(report, files=files),
        "json": lambda: measure.as_json(report),
    }
    written = True
    for option, name in outputs.items():
        if name is None:
            continue
        try:
            if option == "plot":
                from lmcodec.measure.plots import draw

                draw(report, Path(name))
            elif name == "-":
                click.echo(texts[option](), nl=False)
            else:
                Path(name).write_text(texts[option](), encoding="utf-8", newline="\n")
        except BrokenPipeError:
            raise
        except (LmcodecError, OSError) as error:
            written = False
            click.echo(f"lmcodec: --{option}: {one_line(error)}", err=True)
    return written


def _as_text(report: Report, *, files: bool) -> str:
    """The tables in columns, for a terminal."""
    from lmcodec.cli.progress import printable
    from lmcodec.measure import bench as measure

    lines = []
    for title, measurements in measure.sections(report, files=files):
        table = [[printable(cell) for cell in row] for row in measure.rows(report, measurements)]
        width = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines.append(printable(title))
        for first, *rest in table:
            cells = [first.ljust(width[0]), *(c.rjust(w) for c, w in zip(rest, width[1:], strict=True))]
            lines.append("  ".join(cells))
        lines.append("")
    return "\n".join([*lines, *measure.notes(report)]) + "\n"


class Progress:
    """A line on a terminal that says what is being run, and failures as they happen."""

    def __init__(self) -> None:
        self._draws = sys.stderr.isatty()

    def step(self, text: str, done: int, total: int) -> None:
        if self._draws:
            from shutil import get_terminal_size

            from lmcodec.cli.progress import printable

            width = get_terminal_size().columns - 1
            line = f"{done / total:4.0%}  {printable(text)}"
            click.echo(f"\r\x1b[K{line[:width]}", nl=False, err=True)

    def end(self) -> None:
        if self._draws:
            click.echo("\r\x1b[K", nl=False, err=True)

    def say(self, failure: Failure) -> None:
        from lmcodec.cli.progress import printable

        self.end()
        click.echo(f"lmcodec: {printable(str(failure))}", err=True)
