"""`lmcodec ray`: compress, decompress and measure a large corpus on the workers of a Ray cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lmcodec.cli.console import Console
from lmcodec.cli.lmz import BLOCK_SIZE, DEFAULT_LEVEL, METHOD, MODEL, Size, from_environment
from lmcodec.cli.measured import bits, bpb
from lmcodec.cli.operate import ERROR, OK, SUFFIX, check_model
from lmcodec.errors import ConfigError

if TYPE_CHECKING:
    from lmcodec.integrations.ray import FileResult, Result
    from lmcodec.measure.bpb import Measurement

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def ray() -> None:
    """Compress, decompress and measure a large corpus on the workers of a Ray cluster.

    SOURCE is a file, a folder or a pattern, wherever fsspec reaches (s3://, gs://, hdfs://, a shared disk). A
    cluster is the one that --address or RAY_ADDRESS names, else one of this machine's own.
    """


_WORKERS = [
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        help="Workers, of one CPU each.  [default: one for every CPU of the cluster]",
    ),
    click.option("--address", metavar="ADDRESS", help="Of the cluster: HOST:PORT, ray://HOST:PORT or auto."),
    click.option(
        "--part-size",
        "part_size",
        type=Size(1),
        help="Original bytes that a worker takes at once.  [default: 16M]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the counters of every file as JSON."),
    click.option("-q", "--quiet", count=True, help="No summary; twice: no errors."),
]
_CODING = [
    click.option("--level", type=click.IntRange(1, 9), help=f"Level, 1 to 9.  [default: {DEFAULT_LEVEL}]"),
    click.option("--model", **MODEL),
    click.option("--method", **METHOD),
    click.option("--block-size", "block_size", **BLOCK_SIZE),
]
_OUTPUTS = [
    click.option("-S", "--suffix", default=SUFFIX, show_default=True, help="Of compressed files."),
    click.option("-f", "--force", "overwrite", is_flag=True, help="Replace files that are there."),
    click.option("--resume", is_flag=True, help="Leave out files whose outputs are there."),
]


def _with(*options: list[Any]) -> _Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([option for several in options for option in several]):
            command = option(command)
        return command

    return decorate


_CONTEXT = {"help_option_names": ["-h", "--help"]}


@ray.command(context_settings=_CONTEXT)
@click.argument("source")
@click.argument("target")
@_with(_CODING, _OUTPUTS, _WORKERS)
def compress(source: str, target: str, as_json: bool, quiet: int, **options: Any) -> None:
    """Compress the files of SOURCE into the folder TARGET.

    A large file is cut into parts, each a frame with its own index; frames follow one another in the output.
    """
    _coding(options)
    done = _integration().compress(source, target, **_given(options))
    _report(done, as_json, quiet)


@ray.command(context_settings=_CONTEXT)
@click.argument("source")
@click.argument("target")
@_with(_OUTPUTS, _WORKERS)
def decompress(source: str, target: str, as_json: bool, quiet: int, **options: Any) -> None:
    """Decompress the files of SOURCE that end in the suffix into the folder TARGET."""
    _report(_integration().decompress(source, target, **_given(options)), as_json, quiet)


@ray.command(context_settings=_CONTEXT)
@click.argument("source")
@click.argument("target", metavar="REPORT")
@_with(_CODING, _WORKERS)
def measure(source: str, target: str, as_json: bool, quiet: int, **options: Any) -> None:
    """Measure the bits per byte of the files of SOURCE, and write REPORT.

    REPORT is JSON, with the counters of every file and in total; - prints it. Nothing is compressed for good.
    """
    _coding(options)
    integration = _integration()
    done = integration.measure(source, **_given(options))
    if target == "-":
        as_json = True
    else:
        integration.write_report(target, _as_json(done))
    _report(done, as_json, quiet)


def _integration() -> Any:
    try:
        from lmcodec.integrations import ray as integration
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "fsspec", "pyarrow", "pandas"):
            raise
        raise ConfigError(f"needs Ray, {error.name} is missing: pip install 'lmcodec[ray]'") from None
    return integration


def _coding(options: dict[str, Any]) -> None:
    level = options["level"] or from_environment("LMCODEC_LEVEL", 1, 9) or DEFAULT_LEVEL
    check_model(f"--level {level}", level, options["method"] or "auto", options["model"])
    # Workers elsewhere do not have this process's environment.
    named = options["model"] or os.environ.get("LMCODEC_MODEL")
    uses_model = level >= 3 and options["method"] not in ("stored", "cm")
    options.update(level=level, model=named if uses_model else None)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _report(done: Result, as_json: bool, quiet: int) -> NoReturn:
    console = Console("lmcodec", -quiet)
    for failed in done.failed:
        console.error(failed.path, failed.error or "")
    if as_json:
        click.echo(_as_json(done), nl=False)
    elif not quiet:
        click.echo(_as_text(done), nl=False)
    click.get_current_context().exit(ERROR if done.failed else OK)


def _as_text(done: Result) -> str:
    total = done.total()
    n_done = len(done.files) - len(done.failed)
    lines = [f"{n_done:,} files, {total.nbytes:,} bytes"]
    if total.measurement is not None and total.nbytes:
        measured = total.measurement
        named = {"frame": measured.frame_bpb, "mix": measured.mix_bpb, "network": measured.network_bpb}
        shown = [f"{name} {value:.4f}" for name, value in named.items() if value is not None]
        lines.append(f"bits per byte: {', '.join(shown)}")
    if done.n_left:
        lines.append(f"{done.n_left:,} files left out, whose outputs were there")
    lines.append(f"read {total.read_nbytes:,} bytes, written {total.written_nbytes:,}")
    rate = total.nbytes / total.seconds / 1000 if total.seconds else 0
    lines.append(f"{done.seconds:.1f} s, {len(total.workers)} workers, {rate:,.0f} kB/s each while working")
    return "".join(f"{line}\n" for line in lines)


def _counters(found: FileResult) -> dict[str, Any]:
    figures = asdict(found)
    measured = found.measurement
    figures["measurement"] = None if measured is None else _figures(measured)
    figures |= {"seconds": round(found.seconds, 3), "cpu_seconds": round(found.cpu_seconds, 3)}
    return figures


def _figures(measured: Measurement) -> dict[str, Any]:
    return {
        "nbytes": measured.nbytes,
        "n_token": measured.n_token,
        "frame_nbytes": measured.frame_nbytes,
        "frame_bpb": bpb(measured.frame_bpb),
        "mix_bits": bits(measured.mix_bits),
        "mix_bpb": bpb(measured.mix_bpb),
        "network_bits": bits(measured.network_bits),
        "network_bpb": bpb(measured.network_bpb),
    }


def _as_json(done: Result) -> str:
    total = {
        key: value for key, value in _counters(done.total()).items() if key not in ("path", "output", "error")
    }
    document = {
        "files": [_counters(found) for found in done.files],
        "total": total,
        "n_left": done.n_left,
        "seconds": round(done.seconds, 3),
    }
    return json.dumps(document, indent=1) + "\n"
