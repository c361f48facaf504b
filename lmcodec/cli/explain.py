"""`lmcodec explain`: where the bits of a file go, as a page, a picture or numbers."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.console import Console, is_terminal
from lmcodec.cli.lmz import BLOCK_SIZE, DEFAULT_LEVEL, METHOD, MODEL, Size, from_environment
from lmcodec.cli.operate import check_model
from lmcodec.cli.progress import first_that_fits, named_line, printable, size_text, time_text
from lmcodec.cli.safe_file import Source, Stdout, reserve_standard_descriptors, write_file
from lmcodec.errors import ConfigError, LmcodecError

if TYPE_CHECKING:
    from lmcodec.measure.explain import Explanation

_STDOUT = ("-", "/dev/stdout")


class Range(click.ParamType):
    """Bytes from A up to, not including, B: 1000:5000, 1M:, :64K."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        begin, colon, end = str(value).partition(":")
        if not colon:
            self.fail(f"{value!r} is not a range such as 1000:5000, 1M: or :64K", param, ctx)
        first = Size().convert(begin, param, ctx) if begin else 0
        last = Size().convert(end, param, ctx) if end else None
        if last is not None and last <= first:
            self.fail(f"{value!r} is empty: it ends before it begins", param, ctx)
        return first, last


@dataclass(frozen=True)
class _Settings:
    """What to make of FILE."""

    file: str
    output: str | None
    png: str | None
    as_json: bool
    range: tuple[int, int | None] | None
    level: int
    model: str | None
    method: str
    block_nbytes: int | None
    alternatives: int
    force: bool
    quiet: bool


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(allow_dash=True, readable=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    metavar="PAGE",
    help="Write the page to PAGE; - is standard output.",
)
@click.option(
    "--range",
    "range_",
    type=Range(),
    metavar="A:B",
    help="Show bytes A to B; A: shows 20,000 from A on.  [default: 0:20000]",
)
@click.option(
    "--level", type=click.IntRange(1, 9), help=f"Explain what this level does.  [default: {DEFAULT_LEVEL}]"
)
@click.option("--model", **MODEL)
@click.option("--method", **METHOD)
@click.option("--block-size", "block_nbytes", **BLOCK_SIZE)
@click.option(
    "--alternatives",
    type=click.IntRange(0, 256),
    default=5,
    show_default=True,
    help="Likeliest tokens to show for each that came.",
)
@click.option(
    "--png",
    type=click.Path(allow_dash=True),
    metavar="PICTURE",
    help="Draw bits per byte along the whole file, or the range.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the numbers as JSON instead of the page.")
@click.option("-f", "--force", is_flag=True, help="Overwrite PAGE and PICTURE.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notices.")
def explain(
    file: str,
    range_: tuple[int, int | None] | None,
    level: int | None,
    method: str | None,
    **options: Any,
) -> None:
    """Show where the bits of FILE go: how much every piece of its text costs when it is compressed.

    PAGE is a self-contained HTML file: the text coloured by bits, and for every piece its probability and
    what the network expected instead. FILE is - for standard input. The blocks that the range lies in are
    coded.

    \b
    lmcodec explain book.txt -o book.html
    lmcodec explain log.txt --range 1M:1100K -o log.html
    lmcodec explain book.txt --png book.png
    lmcodec explain book.txt --json | jq .passages
    """
    settings = _Settings(
        file=file,
        range=range_,
        level=level or from_environment("LMCODEC_LEVEL", 1, 9) or DEFAULT_LEVEL,
        method=method or "auto",
        **options,
    )
    check_model(f"--level {settings.level}", settings.level, settings.method, settings.model)
    reserve_standard_descriptors()
    console = Console("lmcodec", -1 if settings.quiet else 0, progress=not settings.quiet)
    click.get_current_context().exit(console.supervise(lambda: _explain(settings, console)))


def _explain(settings: _Settings, console: Console) -> int:
    """Do the work; returns the exit status."""
    from lmcodec.measure import picture
    from lmcodec.measure.explain import explain as explain_data

    page, png = _outputs(settings)
    if png is not None:
        picture.require_matplotlib()
    name = _name(settings)
    if settings.file != "-" and os.path.isdir(settings.file):
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it", settings.file)
    source = Source(None if settings.file == "-" else settings.file)
    try:
        if source.path is None and is_terminal(0):
            raise LmcodecError("standard input is a terminal: name a file, or send the text through a pipe")
        for path in (page, png):
            _check_output(path, source, settings.force)
        progress = _Progress(name)
        console.follow(progress)
        data = b"".join(iter(source.read, b""))
        begin, end = settings.range or (None, None)
        if begin is not None and begin >= max(len(data), 1):
            raise ConfigError(
                f"--range begins at byte {begin:,}, but {printable(name)} has {len(data):,} bytes"
            )
        explanation = explain_data(
            data,
            settings.level,
            name=name if source.path is None else os.path.basename(name),
            model=settings.model,
            method=settings.method,
            block_size=settings.block_nbytes,
            begin=begin,
            end=end,
            whole=png is not None and settings.range is None,
            alternatives=settings.alternatives,
            progress=progress.update,
        )
        console.end()
        if page is not None:
            _write(page, source, settings.force, _document(explanation, settings.as_json))
        if png is not None:
            _write(png, source, settings.force, picture.draw(explanation, coded=settings.range is None))
        if page is not None and not explanation.is_whole and settings.range is None:
            shown = explanation.end - explanation.begin
            console.warning(name, f"{shown:,} of {len(data):,} bytes are shown (--range chooses others)")
    finally:
        source.close()
    return 0


def _name(settings: _Settings) -> str:
    return "(stdin)" if settings.file == "-" else settings.file


def _outputs(settings: _Settings) -> tuple[str | None, str | None]:
    """Where the page (or the numbers) and the picture go; None: not asked for.

    Raises:
        ConfigError: the options contradict each other.
    """
    page, png = settings.output, settings.png
    if page is None and (png is None or settings.as_json):
        if not settings.as_json and is_terminal(1):
            raise ConfigError("a page is not written to a terminal: name a file (-o PAGE, -h helps)")
        page = "-"
    places = ["-" if path in _STDOUT else os.path.realpath(path) for path in (page, png) if path is not None]
    if len(set(places)) < len(places):
        raise ConfigError(f"{page} cannot hold both the page and the picture: give each a file of its own")
    if png in _STDOUT and is_terminal(1):
        raise ConfigError("a picture is not written to a terminal: name a file (--png PICTURE)")
    return page, png


def _check_output(path: str | None, source: Source, force: bool) -> None:
    """Refuse an output now that would be refused when the work is done."""
    if path is None or path in _STDOUT:
        return
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        os.stat(os.path.dirname(path) or ".")
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a directory", path)
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        if os.path.samestat(os.stat(path) if os.path.exists(path) else status, source.status):
            raise FileExistsError(errno.EEXIST, "is the input itself", path)
        if not force:
            raise FileExistsError(errno.EEXIST, "exists already (-f overwrites it)", path)


def _write(path: str, source: Source, force: bool, data: bytes) -> None:
    if path in _STDOUT:
        Stdout().write(data)
        return
    write_file(path, [data], source, overwrite=force)


def _document(explanation: Explanation, as_json: bool) -> bytes:
    if as_json:
        from lmcodec.measure.explain import as_json_object

        # Bytes of a name that are no text are "\\udc80" to "\\udcff".
        return (json.dumps(as_json_object(explanation)) + "\n").encode()
    from lmcodec.measure.page import render

    return render(explanation).encode()


class _Progress:
    """What a line of progress says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._done = self._total = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def update(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def line(self, width: int) -> str:
        amount, seconds = size_text(self._total), time_text(self.seconds)
        if self._done:
            amount = f"{size_text(self._done)} of {amount}"
        return named_line(self._name, first_that_fits([f"{amount}  {seconds}", amount], width), width)
