"""The `lmcodec` command: a group whose subcommands load what they need when they are called."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn

import click

from lmcodec import __version__
from lmcodec.cli.bench import bench
from lmcodec.cli.corpus import corpus
from lmcodec.cli.explain import explain
from lmcodec.cli.lmz import enter, refuse_empty, subcommands
from lmcodec.cli.measure import measure
from lmcodec.cli.model import model
from lmcodec.cli.prior import prior
from lmcodec.cli.ray import ray
from lmcodec.cli.records import records
from lmcodec.cli.selftest import selftest
from lmcodec.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="lmcodec %(version)s")
def group() -> None:
    """Lossless text compression with a language model."""


for command in [*subcommands(), bench, corpus, explain, measure, model, prior, ray, records, selftest, train]:
    group.add_command(command)
refuse_empty(group)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: errors are one line on stderr and exit status 1, as those of `lmz`."""
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_: print(f"lmcodec: {message}", file=sys.stderr)
    try:
        enter(group, arguments, "lmcodec")
    finally:
        warnings.showwarning = show
