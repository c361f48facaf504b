"""`lmcodec prior`: priors for small messages, made of samples."""

from __future__ import annotations

import sys
from typing import Any

import click

from lmcodec.cli.lmz import DEFAULT_LEVEL, Size
from lmcodec.cli.samples import read_samples, split_options
from lmcodec.cli.table import json_text
from lmcodec.errors import ConfigError, LmcodecError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def prior() -> None:
    """Priors: what small messages of one kind begin with."""


@prior.command()
@click.argument("samples", nargs=-1, required=True, type=click.Path(allow_dash=True, readable=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(readable=False), metavar="FILE", help="The prior."
)
@click.option(
    "--size",
    type=Size(1 << 10, 1 << 20),
    default="100K",
    show_default=True,
    help="Bytes of its text at most.",
)
@click.option(
    "--level",
    type=click.IntRange(1, 9),
    default=DEFAULT_LEVEL,
    show_default=True,
    metavar="N",
    help="Level whose language model it is for; levels 1 and 2 always go with it.",
)
@click.option(
    "--model", metavar="NAME|FILE", help="Another recurrent model than the level's, which decoders must have."
)
@split_options
def train(
    samples: tuple[str, ...], output: str, size: int, level: int, model: str | None, split: str | None
) -> None:
    """Make a prior of SAMPLES, messages like those that it is for: files, or what is in them.

    A tenth of the samples is kept aside; what helps these most is chosen.
    """
    from lmcodec.codec.prior import Prior

    try:
        made = Prior.train(read_samples(samples, split), size=size, level=level, model=model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    made.save(output)
    card = made.card
    before, after, n = (
        card["held_out_coded_without_nbytes"],
        card["held_out_coded_nbytes"],
        max(card["held_out"], 1),
    )
    click.echo(
        f"{output}: prior {made.id.hex()}, {len(made.text):,} bytes of text ({card['choice']}); of {n} "
        f"samples kept aside, each {card['held_out_nbytes'] / n:.0f} bytes, level 1 makes {after / n:.1f} "
        f"bytes, without it {before / n:.1f}"
    )


@prior.command()
@click.argument("file", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--text", "as_text", is_flag=True, help="Print the text itself.")
def show(file: str, as_json: bool, as_text: bool) -> None:
    """Show what the prior in FILE is for and how it was made."""
    from lmcodec.codec.prior import Prior

    found = Prior.load(file)
    if as_text:
        sys.stdout.buffer.write(found.text)
        return
    facts: dict[str, Any] = {
        "id": found.id.hex(),
        "text_nbytes": len(found.text),
        "levels": found.levels,
        "model": None if found.model is None else found.model.model_id,
        "tables_log2": found.tables_log2,
        "card": found.card,
    }
    if as_json:
        click.echo(json_text(facts), nl=False)
        return
    click.echo(f"prior {facts['id']}, for {found.describe_levels()}")
    click.echo(f"text: {len(found.text):,} bytes")
    for key, value in found.card.items():
        click.echo(f"{_visible(key)}: {_visible(str(value))}")


def _visible(text: str) -> str:
    """Text of a file as a terminal may show it: in one line, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def loaded(paths: tuple[str, ...]) -> tuple[Any, ...]:
    """The priors in files.

    Raises:
        LmcodecError
    """
    from lmcodec.codec.prior import Prior

    try:
        return tuple(map(Prior.load, paths))
    except OSError as error:
        raise LmcodecError(f"{error.filename}: {error.strerror}") from None
