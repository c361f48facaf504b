"""Samples and records of files: whole files, their lines, JSON lines, or what zero bytes separate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click

from lmcodec.errors import LmcodecError


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is one sample."""
    for name, value, help in (
        ("--zero-separated", "zero", "Samples are separated by zero bytes."),
        ("--json-lines", "json", "Every line is a sample, and JSON; blank lines are passed over."),
        ("--lines", "lines", "Every line is a sample, without its end; blank lines are passed over."),
    ):
        command = click.option(
            name, "split", flag_value=value, default=None, type=click.UNPROCESSED, help=help
        )(command)
    return command


def read_samples(paths: tuple[str, ...], split: str | None) -> Iterator[bytes]:
    """The samples in the files; `-` is standard input.

    Raises:
        OSError: a file cannot be read.
        LmcodecError: a line is not JSON that should be.
    """
    for path in paths:
        with click.open_file(path, "rb") as file:
            if split is None:
                yield file.read()
            elif split == "zero":
                yield from (piece for piece in file.read().split(b"\0") if piece)
            else:
                yield from _lines(path, file.read(), split)


def _lines(path: str, data: bytes, split: str) -> Iterator[bytes]:
    for at, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line.strip():
            continue
        if split == "json":
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                raise LmcodecError(f"{path}: line {at} is not JSON") from None
        yield line
