"""`lmcodec bench --profile`: where the time of coding goes, as tables."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lmcodec.errors import ConfigError, LmcodecError

if TYPE_CHECKING:
    from lmcodec.measure.timing import BlockTiming, Direction

_NBYTES = 1 << 20
# Parameters of `bench` that have nothing to do here, as they are spelled.
_OTHERS = {
    "peers": "--peers",
    "commands": "--command",
    "threads": "--threads",
    "timeout": "--timeout",
    "quick": "--quick",
    "files": "--files",
    "csv": "--csv",
    "plot": "--plot",
}
_QUIET = 0.97  # share of the time that a process has a processor where nothing else asks for it


class _Timed(NamedTuple):
    """A file, named as in tables, and where its time goes at a level."""

    file: str
    timing: BlockTiming


def run(
    ctx: click.Context,
    paths: tuple[str, ...],
    given: set[str],
    *,
    levels: tuple[int, ...],
    nbytes: tuple[int, ...] | None,
    runs: int,
    json: str | None,
    markdown: str | None,
) -> None:
    """Time every file at every level and print the tables.

    Args:
      given: parameters that the caller set.

    Raises:
      ConfigError: they do not fit --profile.
      LmcodecError: there is nothing to time, or a result cannot be written.
    """
    from lmcodec.cli.bench import Progress
    from lmcodec.cli.console import Console
    from lmcodec.codec import DEFAULT_LEVEL
    from lmcodec.measure import bench as measure
    from lmcodec.measure.machine import describe
    from lmcodec.measure.timing import MAX_NBYTES, time_block

    for name in _OTHERS.keys() & given:
        raise ConfigError(f"{_OTHERS[name]} makes no sense with --profile")
    if not paths:
        raise ConfigError("name files to profile (-h helps)")
    levels = levels if "levels" in given else (DEFAULT_LEVEL,)
    if not levels:
        raise ConfigError("--levels none: there is nothing to profile")
    limits = nbytes or (_NBYTES,)
    if len(limits) > 1 or limits[0] > MAX_NBYTES:
        raise ConfigError(
            f"--nbytes: --profile takes one size, {MAX_NBYTES >> 20}M at most, which is one block"
        )
    machine = describe()
    console = Console("lmcodec", progress=True)
    progress = Progress(console)
    inputs, failures = measure.gather(paths, limits)
    found: list[_Timed] = []
    prints = "-" not in (json, markdown)
    interrupted = False
    try:
        for source in inputs:
            try:
                with open(source.path, "rb") as file:
                    data = file.read(limits[0])
                    label = measure.file_label(source.name, limits[0] if file.read(1) else None)
            except OSError as error:
                failures.append(measure.Failure("", source.name, error.strerror or str(error)))
                continue
            if not data:
                failures.append(measure.Failure("", source.name, "an empty file has nothing to compress"))
                continue
            for level in levels:

                def step(done: int, total: int, title: str = f"{label}, level {level}") -> None:
                    progress.step(title, done, total)

                timed = _Timed(label, time_block(data, level, runs=runs, on_step=step))
                found.append(timed)
                console.end()
                if prints:
                    click.echo(_as_text(timed))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        console.end()
    for failure in failures:
        progress.say(failure)
    if not found and not interrupted:
        raise LmcodecError("there is no file to profile")
    notes = list(_notes(found, runs))
    if prints and found:
        click.echo("\n".join(notes))
    texts = [(json, _as_json(found, machine, runs)), (markdown, _as_markdown(found, machine, notes))]
    for target, text in texts:
        if target == "-":
            click.echo(text, nl=False)
        elif target is not None:
            Path(target).write_text(text, encoding="utf-8", newline="\n")
    if interrupted:
        click.echo("lmcodec: interrupted", err=True)
        ctx.exit(130)
    if failures:
        ctx.exit(1)


def _title(timed: _Timed) -> str:
    t = timed.timing
    how = t.method
    if t.streams:
        plural = "" if t.streams == 1 else "s"
        how += f", {t.streams} stream{plural}" + (f" in {t.groups} groups" if t.groups > 1 else "")
    plural = "" if t.nbytes == 1 else "s"
    return f"{timed.file}, {t.nbytes:,} byte{plural}, level {t.level} ({how}): {t.packed_nbytes:,} bytes"


_HEAD = ("", "in, µs/byte", "share, %", "out, µs/byte", "share, %")


def _rows(t: BlockTiming) -> Iterator[tuple[str, ...]]:
    """The table of a block, without its heading."""
    from lmcodec.measure.timing import STAGES

    def per_byte(seconds: float) -> str:
        return f"{seconds / t.nbytes * 1e6:.3f}"

    ways = (t.encode, t.decode)
    for name, title in STAGES.items():
        if any(way.stages[name] for way in ways):
            row = [title]
            for way in ways:
                seconds = way.stages[name]
                row += [per_byte(seconds), f"{100 * seconds / way.seconds:.1f}"] if seconds else ["", ""]
            yield tuple(row)
    yield ("all", *(cell for way in ways for cell in (per_byte(way.seconds), "100.0")))
    yield ("all, nothing measured", *(cell for way in ways for cell in (per_byte(way.plain_seconds), "")))
    yield ("the same in KB/s", *(cell for way in ways for cell in (_speed(t, way), "")))


def _speed(t: BlockTiming, way: Direction) -> str:
    return f"{t.nbytes / way.plain_seconds / 1e3:.4g}"


def _work(t: BlockTiming) -> str:
    """What was counted, in a sentence."""
    if not t.n_decision:
        return "Nothing is coded: no method makes the block smaller."
    parts = []
    if t.n_token:
        parts.append(f"{t.macs_per_byte / 1e6:.3f} M multiply-accumulates")
        parts.append(f"{t.n_token / t.nbytes:.3f} tokens")
    parts.append(f"{t.n_decision / t.nbytes:.2f} decisions")
    text = "A byte takes " + ", ".join(parts)
    rates = [rate for way in (t.encode, t.decode) if (rate := t.product_rate(way))]
    if rates:
        reached = " and ".join(f"{rate / 1e9:.0f}" for rate in rates)
        text += f"; products reach {reached} G multiply-accumulates a second in and out ({t.isa})"
    return f"{text}."


def _notes(found: list[_Timed], runs: int) -> Iterator[str]:
    times = "One run" if runs == 1 else f"The fastest of {runs} runs"
    yield (
        f"{times} on one thread, by the clock on the wall; loading program and model is not in it, and what "
        "measuring takes is taken off."
    )
    shares = [w.cpu_seconds / w.plain_seconds for t in found for w in (t.timing.encode, t.timing.decode)]
    if shares and min(shares) < _QUIET:
        yield (
            f"The process had a processor for only {min(shares):.0%} of the time: repeat it when the machine "
            "has less to do, or at a higher priority."
        )


def _as_text(timed: _Timed) -> str:
    from lmcodec.cli.progress import printable

    table = [_HEAD, *_rows(timed.timing)]
    width = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
    lines = [printable(_title(timed))]
    for first, *rest in table:
        cells = [first.ljust(width[0]), *(c.rjust(w) for c, w in zip(rest, width[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, _work(timed.timing), ""])


def _as_markdown(found: list[_Timed], machine: dict[str, str], notes: list[str]) -> str:
    lines = []
    for timed in found:
        lines += [f"{_title(timed)}:", "", "| " + " | ".join(_HEAD) + " |", "|---" + "|---:" * 4 + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in _rows(timed.timing)]
        lines += ["", _work(timed.timing), ""]
    return "\n".join([*lines, *notes, "", *(f"- {key}: {value}" for key, value in machine.items())]) + "\n"


def _as_json(found: list[_Timed], machine: dict[str, str], runs: int) -> str:
    blocks: list[dict[str, Any]] = []
    for timed in found:
        values = vars(timed.timing)
        ways = {name: vars(values[name]) for name in ("encode", "decode")}
        blocks.append({"file": timed.file} | values | ways)
    return json_module.dumps({"machine": machine, "runs": runs, "blocks": blocks}, indent=1) + "\n"
