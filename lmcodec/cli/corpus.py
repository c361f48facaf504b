"""`lmcodec corpus`: what corpora there are, proof of one on disk, synthetic text."""

from __future__ import annotations

from pathlib import Path

import click

from lmcodec.cli.console import Console, is_terminal
from lmcodec.cli.lmz import Size
from lmcodec.cli.progress import printable
from lmcodec.cli.safe_file import Stdout, reserve_standard_descriptors, write_file
from lmcodec.cli.table import json_text, table, table_as_objects
from lmcodec.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def corpus() -> None:
    """Corpora to measure on, and synthetic text."""


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@corpus.command("list")
@click.argument("name", required=False)
@_JSON
def list_corpora(name: str | None, as_json: bool) -> None:
    """List the corpora that there are manifests of, or what the manifest NAME says."""
    from lmcodec.measure import corpora

    if name is None:
        rows: list[tuple[str, ...]] = [("Name", "Files", "Bytes", "Seen by a model", "Title")]
        for found in map(corpora.load, corpora.names()):
            n = sum(not file.optional for file in found.files)
            rows.append((found.name, str(n), f"{found.nbytes:,}", found.seen, found.title))
        click.echo(json_text(table_as_objects(rows)) if as_json else table(rows, right=(1, 2)), nl=as_json)
        return
    found = corpora.load(name)
    facts = [
        ("title", found.title),
        ("published", found.published),
        ("licence", found.licence),
        ("seen by a shipped model", f"{found.seen}: {found.seen_note}"),
        *([("note", found.note)] if found.note else []),
        *(("source", source) for source in found.sources),
    ]
    if as_json:
        files = [
            {"file": f.name, "nbytes": f.nbytes, "checks": dict(f.checks), "optional": f.optional}
            for f in found.files
        ]
        sources = [str(source) for source in found.sources]
        shown = {key: value for key, value in facts if key != "source"}
        click.echo(json_text({"name": found.name, **shown, "sources": sources, "files": files}))
        return
    for key, value in facts:
        click.echo(f"{key}: {value}")
    click.echo()
    rows = [("File", "Bytes", "Digest")]
    for file in found.files:
        digest = next((f"{key} {file.checks[key]}" for key in corpora.CHECKS if key in file.checks), "none")
        rows.append((file.name, f"{file.nbytes:,}", digest + (" (optional)" if file.optional else "")))
    click.echo(table(rows, right=(1,)), nl=False)


@corpus.command()
@click.argument("folder", type=click.Path(readable=False, path_type=Path))
@click.option("--corpus", "name", metavar="NAME", help="The corpus that it should be (default: as it looks).")
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
@_JSON
@click.pass_context
def verify(ctx: click.Context, folder: Path, name: str | None, quiet: bool, as_json: bool) -> None:
    """Check that FOLDER holds a corpus: sizes, and the digests that are published.

    The exit status is 1 if a file is missing or differs, 2 if there are only files too many.
    """
    from lmcodec.measure import corpora

    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder" if folder.exists() else f"{folder}: no such folder")
    found = corpora.load(name) if name is not None else corpora.identify(folder)
    findings = corpora.verify(folder, found)
    shown = [f for f in findings if not quiet or f.kind not in ("sound", "size only")]
    if as_json:
        files = [{"file": f.name, "kind": f.kind, "text": f.text} for f in shown]
        click.echo(json_text({"corpus": found.name, "files": files}))
    for finding in [] if as_json else shown:
        click.echo(f"{printable(finding.name)}: {finding.kind} ({printable(finding.text)})")
    counts = {kind: sum(f.kind == kind for f in findings) for kind in corpora.KINDS}
    counted = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    if not as_json:
        click.echo(f"{found.name}: {counted}")
    if counts["missing"] or counts["differs"]:
        ctx.exit(1)
    if counts["extra"]:
        ctx.exit(2)


@corpus.command()
@click.option("--kind", required=True, help="prose, json, csv, log, code, random or repeated.")
@click.option("--nbytes", type=Size(), required=True, help="How much: 65536, 64K, 4M.")
@click.option("--seed", type=int, default=1, show_default=True, help="Other seeds, other text.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    required=True,
    metavar="FILE",
    help="Where to; - is standard output.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE.")
def generate(kind: str, nbytes: int, seed: int, output: str, force: bool) -> None:
    """Write synthetic text: the same bytes for the same kind, size and seed, on every machine."""
    from lmcodec.measure.synthetic import KINDS, pieces

    if kind not in KINDS:
        raise ConfigError(f"no kind of text is called {kind!r}: {', '.join(KINDS)}")
    if output == "-" and kind == "random" and is_terminal(1):
        raise ConfigError("random bytes are not written to a terminal: -o FILE")
    reserve_standard_descriptors()

    def work() -> int:
        text = pieces(kind, nbytes, seed)
        if output == "-":
            stdout = Stdout()
            for piece in text:
                stdout.write(piece)
        else:
            write_file(output, text, overwrite=force)
        return 0

    console = Console("lmcodec")
    click.get_current_context().exit(console.supervise(work))
