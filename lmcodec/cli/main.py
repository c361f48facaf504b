"""The `lmcodec` command: a group whose subcommands load what they need when they are called."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from lmcodec import __version__
from lmcodec.cli.bench import bench
from lmcodec.cli.corpus import corpus
from lmcodec.cli.explain import explain
from lmcodec.cli.lmz import subcommands
from lmcodec.cli.measure import measure
from lmcodec.cli.model import model
from lmcodec.cli.train import train
from lmcodec.errors import LmcodecError, one_line


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="lmcodec %(version)s")
def group() -> None:
    """Lossless text compression with a language model."""


for command in [*subcommands(), bench, corpus, explain, measure, model, train]:
    group.add_command(command)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: errors of the package become one line on stderr and exit status 1."""
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_: print(f"lmcodec: {message}", file=sys.stderr)
    try:
        return group.main(args=arguments, prog_name="lmcodec", standalone_mode=True)
    except (LmcodecError, OSError) as error:
        print(f"lmcodec: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        warnings.showwarning = show
