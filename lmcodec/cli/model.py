"""`lmcodec model`: what models there are, what is in one, making one from a training run, proof of one.

Knows no kind of model: what it shows and checks comes from `lm/kinds.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from lmcodec import models
from lmcodec.cli.safe_file import write_file
from lmcodec.cli.table import json_text, table, table_as_objects
from lmcodec.errors import ConfigError, LmcodecError, one_line
from lmcodec.lm import folder, store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def model() -> None:
    """The language models that levels 3 to 9 use."""


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@model.command("list")
@_JSON
def list_models(as_json: bool) -> None:
    """List the models that come with lmcodec, those of the models folder, and those that packages register.

    Nothing of a package is imported: of its models only the names are known here.
    """
    from lmcodec.lm import outside
    from lmcodec.lm.kinds import read_header

    rows = [("Name", "Id", "Kind", "Weights", "Bits each", "Bytes", "Source")]

    def add(name: str, path: Path, source: str) -> None:
        header = read_header(path)
        sizes = f"{header.n_weight:,}", f"{header.bits_each:.2f}", f"{header.nbytes:,}"
        rows.append((name, header.model_id, header.kind, *sizes, source))

    for number, shipped in store.SHIPPED.items():
        add(shipped.name, store.find(shipped.name).path, f"lmcodec, number {number}")
    damaged = []
    for path in folder.files():
        try:
            add(_visible(path.stem), path, _visible(str(path)))
        except LmcodecError as error:
            damaged.append(one_line(error))
    known = {row[0] for row in rows}
    rows += [(_visible(n), *"-----", _visible(package)) for n, package in outside.names() if n not in known]
    if as_json:  # an id of digits alone is no number
        objects = zip(table_as_objects(rows), rows[1:], strict=True)
        click.echo(json_text([row if row["id"] is None else {**row, "id": r[1]} for row, r in objects]))
    elif len(rows) > 1:
        click.echo(table(rows, right=(3, 4, 5)), nl=False)
    else:
        click.echo("no model is shipped with this version")
    for message in damaged:
        click.echo(f"lmcodec: warning: skipped: {_visible(message)}", err=True)


@model.command()
@click.argument("model", metavar="FILE|NAME|ID")
@_JSON
def show(model: str, as_json: bool) -> None:
    """Show what a model file says of itself, or what a model without one is."""
    from lmcodec.lm.kinds import open_file

    source = store.find(model)
    if not source.has_file:
        _show_outside(store.load(source), as_json)
        return
    header = open_file(source.path).header
    number = f", number {source.number} of this version" if source.number is not None else ""
    facts = [
        ("file", str(source.path)),
        ("id", header.model_id + number),
        ("kind", header.kind),
        ("bytes", f"{header.nbytes:,}"),
        ("weights", f"{header.n_weight:,}, {header.bits_each:.3f} bits each"),
        ("shape", header.describe()),
        ("work", f"{header.macs_per_token:,} multiply-accumulates a token"),
        (
            "memory",
            f"{header.memory_nbytes:,} bytes at most, without vocabulary and profiles, and "
            f"{header.stream_nbytes:,} a stream",
        ),
        *header.facts(),
        ("sections", ", ".join(f"{name} {nbytes:,}" for name, nbytes in header.sections.items()) + " bytes"),
        *((f"card: {key}", _plain(value)) for key, value in header.card.items()),
    ]
    rows = header.tensors()
    if as_json:
        shown = {
            "file": str(source.path),
            "id": header.model_id,
            "number": source.number,
            "kind": header.kind,
            "nbytes": header.nbytes,
            "n_weight": header.n_weight,
            "macs_per_token": header.macs_per_token,
            "memory_nbytes": header.memory_nbytes,
            "stream_nbytes": header.stream_nbytes,
            "facts": dict(header.facts()),
            "sections": dict(header.sections),
            "card": header.card,
            "tensors": table_as_objects(rows) if rows else [],
        }
        click.echo(json_text(shown))
        return
    click.echo(table([(_visible(name), _visible(fact)) for name, fact in facts], right=()), nl=bool(rows))
    if rows:
        click.echo(table(rows, right=range(1, len(rows[0]))), nl=False)


def _show_outside(loaded: store.Model, as_json: bool) -> None:
    """A model that a package has registered, or of transformers."""
    header = loaded.header
    if as_json:
        shown = {
            "file": None,
            "name": loaded.name,
            "id": loaded.model_id,
            "kind": header.kind,
            "exact": loaded.is_exact,
            "n_token": header.n_token,
            "macs_per_token": header.macs_per_token,
            "memory_nbytes": header.memory_nbytes,
            "stream_nbytes": header.stream_nbytes,
        }
        click.echo(json_text(shown))
        return
    facts = [
        ("name", loaded.name),
        ("id", loaded.model_id),
        ("kind", header.kind),
        ("frames", "restored everywhere" if loaded.is_exact else "bound to this environment"),
        ("shape", header.describe()),
        ("work", f"{header.macs_per_token:,} multiply-accumulates a token"),
        ("memory", f"{header.memory_nbytes:,} bytes, and {header.stream_nbytes:,} a stream"),
    ]
    click.echo(table([(_visible(name), _visible(fact)) for name, fact in facts], right=()), nl=False)


@model.command()
@click.argument("model", metavar="NAME|ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(model: str, yes: bool) -> None:
    """Remove a model from the models folder.

    Frames that were compressed with it cannot be decompressed without it.
    """
    source = store.find(model)
    if source.number is not None:
        raise ConfigError(f"{model}: comes with lmcodec and cannot be removed")
    if source.path not in folder.files():
        raise ConfigError(f"{model}: is not in {folder.shown()}; only what is there is removed")
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{model}: there is nobody to ask; --yes removes it without asking")
        if not click.confirm(f"Remove {_visible(str(source.path))}?"):
            raise ConfigError(f"{model}: not removed")
    source.path.unlink()
    click.echo(f"removed {_visible(str(source.path))}")


@model.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option(
    "--card", multiple=True, metavar="KEY=VALUE", help="What the model says of itself; VALUE is JSON."
)
@click.option(
    "--mixer",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.lmp",
    help="A profile of the context models beside it; the first is number 1.",
)
@click.option("--mixer-from", metavar="FILE|NAME", help="Take the profiles of another model.")
@click.option("--vocab", type=click.Path(path_type=Path), help="Vocabulary file (default: the shipped one).")
def export(
    checkpoint: Path,
    output: Path,
    card: tuple[str, ...],
    mixer: tuple[Path, ...],
    mixer_from: str | None,
    vocab: Path | None,
) -> None:
    """Make a model file of CHECKPOINT, the folder of a run or of its export."""
    entries = dict(map(_entry, card))
    profiles = _profiles(mixer, mixer_from)
    from lmcodec.lm import kinds

    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConfigError("export needs torch: pip install 'lmcodec[torch]'") from None
    from lmcodec.train.export import pack_export

    data = pack_export(checkpoint, vocab, entries, profiles)
    write_file(str(output), [data], overwrite=True)
    header = kinds.inspect(data)
    click.echo(
        f"{output}: {len(data):,} bytes, model {header.model_id}, {header.n_weight:,} weights of "
        f"{header.bits_each:.3f} bits"
    )
    if not profiles:
        click.echo("It holds no profile of the context models: only --method lm compresses with it.")


def _profiles(files: tuple[Path, ...], model: str | None) -> bytes:
    """Profiles of the context models: those in files, or those of a model.

    Raises:
        ConfigError: both are asked for.
        LmcodecError: one is not there, or is none.
    """
    if files and model:
        raise ConfigError("--mixer and --mixer-from exclude each other")
    from lmcodec.lm import kinds
    from lmcodec.lm.sections import MAX_MIXER_NBYTES
    from lmcodec.profile import parse_all

    if model:
        profiles = kinds.open_file(store.find(model).path).mixer
    else:
        profiles = b"".join(_read_profile(path, MAX_MIXER_NBYTES) for path in files)
    if profiles:
        parse_all(profiles, str(model) if model else "--mixer")
    return profiles


@model.command("import")
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Where it goes.")
@click.option("--name", metavar="NAME", help="Its name in the models folder (default: the source's).")
@click.option("--window", type=click.IntRange(16, 16368), help="Tokens that attention sees (default: 1024).")
@click.option("--sinks", type=click.IntRange(0, 16), help="First tokens that it sees always (default: 4).")
@click.option(
    "--mixer",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A profile of the context models beside it (default: the one shipped for imported models).",
)
@click.option("--mixer-from", metavar="FILE|NAME", help="Take the profiles of another model.")
@click.option("--download", is_flag=True, help="Fetch a model of the Hugging Face hub.")
@click.option("--revision", metavar="REVISION", help="Of a model of the hub.")
@click.option("--fast", is_flag=True, help="Round each weight by itself: sooner done, frames are larger.")
def import_model(
    source: str,
    output: Path | None,
    name: str | None,
    window: int | None,
    sinks: int | None,
    mixer: tuple[Path, ...],
    mixer_from: str | None,
    download: bool,
    revision: str | None,
    fast: bool,
) -> None:
    """Make a model of SOURCE: a folder of a Hugging Face model, a GGUF file, or a hub id, OWNER/NAME.

    A folder has config.json, *.safetensors and tokenizer.json. A hub id is looked for in the local cache;
    nothing is fetched without --download. The result goes to the models folder, or to FILE.
    """
    if output is not None and name is not None:
        raise ConfigError("--output and --name exclude each other")
    from lmcodec.lm import kinds

    if output is None:
        name = name or folder.name_of(source)
        folder.check_name(name, [shipped.name for shipped in store.SHIPPED.values()])
        output = folder.path() / f"{name}{folder.SUFFIX}"
    shipped_profile = Path(models.__file__).with_name(models.IMPORTED_PROFILE)
    profiles = _profiles(mixer or (() if mixer_from else (shipped_profile,)), mixer_from)
    shown = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if shown:
            click.echo(f"\r{done} of {total} matrices", nl=done == total, err=True)

    imported = kinds.importer().import_source(
        source,
        download=download,
        revision=revision,
        window=window,
        sinks=sinks,
        mixer=profiles,
        card={"name": name or output.stem},
        progress=progress,
        calibrated=not fast,
    )
    found = folder.find(name) if name else None
    if found is not None and _id_of(found) not in (None, imported.model_id):
        raise ConfigError(
            f"{found}: is model {_id_of(found)}, which frames may need; choose another --name, or remove it "
            f"(lmcodec model remove {name})"
        )
    folder.write(output, imported.pack())
    header = kinds.read_header(output)
    click.echo(
        f"{_visible(str(output))}: {header.nbytes:,} bytes, model {header.model_id}, {header.n_weight:,} "
        f"weights of {header.bits_each:.3f} bits"
    )
    if not imported.has_tokenizer:
        click.echo("Its tokenizer is not known: text is split by longest match, and frames are larger.")


def _id_of(path: Path) -> str | None:
    """The id that a file's header says; None if it is damaged."""
    from lmcodec.lm import container

    try:
        return container.read_header(path).model_id
    except LmcodecError:
        return None


def _read_profile(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LmcodecError(f"{path}: a model's profiles have at most {most} bytes, this file has more")
    return data


@model.command()
@click.argument("model", metavar="FILE|NAME|ID")
def verify(model: str) -> None:
    """Check a model file, and that whatever can run it here computes what it should."""
    from lmcodec.lm.kinds import open_file
    from lmcodec.profile import parse_all

    source = store.find(model)
    if not source.has_file:
        raise ConfigError(
            f"{model}: no model file holds it; lmcodec selftest --model {model} runs it, and "
            "lmcodec.testing.check_model checks one"
        )
    opened = open_file(source.path)
    loaded = opened.decode()
    click.echo(f"file: sound, {loaded.header.nbytes:,} bytes, model {loaded.model_id}")
    if source.model_id not in (None, loaded.model_id):
        raise LmcodecError(f"{source.path}: model {source.number} of this version is {source.model_id}")

    def profiles() -> None:
        if not parse_all(opened.mixer):
            raise LmcodecError("none: only --method lm compresses with the model")

    checks = [("profiles", profiles), *loaded.checks()]
    failed = 0
    for name, check in checks:
        try:
            check()
            click.echo(f"{name}: sound")
        except LmcodecError as error:
            failed += 1
            click.echo(f"{name}: FAILED: {one_line(error)}")
    if failed:
        raise LmcodecError(f"{source.path}: {failed} of {len(checks)} checks failed")


def _entry(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--card {text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _visible(text: str) -> str:
    """Text of a file as a terminal may show it: in one line, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
