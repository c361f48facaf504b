"""`lmcodec records`: files of small records that are coded one by one after a prior."""

from __future__ import annotations

import sys

import click

from lmcodec.cli.prior import loaded
from lmcodec.cli.samples import read_samples, split_options
from lmcodec.cli.table import json_text
from lmcodec.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def records() -> None:
    """Files of small records, each of which can be read by itself."""


_FILE = click.argument("file", type=click.Path(readable=False))
_PRIOR = click.option(
    "--prior",
    multiple=True,
    type=click.Path(readable=False),
    metavar="PRIOR",
    help="The prior's file, where the records' file does not hold it.",
)


@records.command()
@_FILE
@click.argument("inputs", nargs=-1, required=True, type=click.Path(allow_dash=True, readable=False))
@click.option("--prior", type=click.Path(readable=False), metavar="PRIOR", help="What records begin with.")
@click.option("--level", type=click.IntRange(1, 9), metavar="N", help="1 to 9.  [default: the prior's]")
@click.option("--no-embed", is_flag=True, help="Leave the prior out: who reads needs its file.")
@click.option("-a", "--append", is_flag=True, help="Append to FILE, which is there.")
@split_options
def make(
    file: str,
    inputs: tuple[str, ...],
    prior: str | None,
    level: int | None,
    no_embed: bool,
    append: bool,
    split: str | None,
) -> None:
    """Make FILE of the records in INPUTS: each a file, or what is in it."""
    from lmcodec.codec.records import RecordStore

    priors = loaded((prior,) if prior else ())
    if not append and not priors:
        raise ConfigError("--prior is needed to make a file of records")
    if append and (level is not None or no_embed):
        raise ConfigError("--level and --no-embed are for a new file, not for --append")
    try:
        store = RecordStore(file, "a" if append else "x", prior=priors, level=level, embed=not no_embed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with store:
        before = len(store)
        store.extend(read_samples(inputs, split))
        store.flush()
        click.echo(f"{file}: {len(store) - before} records added, {len(store)} in all")


@records.command(context_settings={"ignore_unknown_options": True})
@_FILE
@click.argument("k", type=int, metavar="K")
@_PRIOR
def get(file: str, k: int, prior: tuple[str, ...]) -> None:
    """Write record K of FILE, counted from 0 (-1 is the last), to standard output as it is."""
    from lmcodec.codec.records import RecordStore

    with RecordStore(file, prior=loaded(prior)) as store:
        try:
            record = store[k]
        except IndexError as error:
            raise ConfigError(f"{file}: {error}") from None
    sys.stdout.buffer.write(record)


@records.command("list")
@_FILE
@_PRIOR
@click.option("--each", is_flag=True, help="A line for every record: number, bytes, bytes in the file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_records(file: str, prior: tuple[str, ...], each: bool, as_json: bool) -> None:
    """Show how many records FILE holds and what they take, without decoding them."""
    from lmcodec.codec.records import RecordStore

    with RecordStore(file, prior=loaded(prior)) as store:
        sizes = [store.sizes(k) for k in range(len(store))]
        facts = {
            "file": file,
            "records": len(store),
            "original_nbytes": sum(original for original, _ in sizes),
            "coded_nbytes": sum(coded for _, coded in sizes),
            "prior": store.prior.id.hex(),
            "incomplete_nbytes": store.incomplete_nbytes,
        }
    if as_json:
        if each:
            facts["sizes"] = sizes
        click.echo(json_text(facts), nl=False)
        return
    if each:
        for k, (original, coded) in enumerate(sizes):
            click.echo(f"{k}\t{original}\t{coded}")
    click.echo(
        f"{facts['records']} records of {facts['original_nbytes']:,} bytes in {facts['coded_nbytes']:,}, "
        f"prior {facts['prior']}"
    )
    if facts["incomplete_nbytes"]:
        click.echo(f"{facts['incomplete_nbytes']} bytes at the end are of an unfinished flush")


@records.command()
@_FILE
@_PRIOR
def verify(file: str, prior: tuple[str, ...]) -> None:
    """Decode every record of FILE and compare all checks."""
    from lmcodec.codec.records import RecordStore

    with RecordStore(file, prior=loaded(prior)) as store:
        n = store.verify()
    click.echo(f"{file}: {n} records are sound")
