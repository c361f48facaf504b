"""`lmcodec model`: what models there are, what is in one, making one from a training run, proof of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmcodec.cli.safe_file import write_file
from lmcodec.cli.table import table
from lmcodec.errors import ConfigError, LmcodecError, one_line
from lmcodec.lm import store

if TYPE_CHECKING:
    from lmcodec.lm.weights import Header


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def model() -> None:
    """The language models that levels 3 to 9 use."""


@model.command("list")
def list_models() -> None:
    """List the models that are shipped with lmcodec."""
    from lmcodec.lm.weights import read_header

    rows = [("Number", "Name", "Id", "Weights", "Bits each", "Bytes")]
    for number, shipped in store.SHIPPED.items():
        header = read_header(store.find(shipped.name).path)
        n_weight, bits = _weights(header)
        rows.append(
            (
                str(number),
                shipped.name,
                header.model_id,
                f"{n_weight:,}",
                f"{bits:.2f}",
                f"{header.nbytes:,}",
            )
        )
    if store.SHIPPED:
        click.echo(table(rows, right=(0, 3, 4, 5)), nl=False)
    else:
        click.echo("no model is shipped with this version")


@model.command()
@click.argument("model", metavar="FILE|NAME")
def show(model: str) -> None:
    """Show what a model file says of itself."""
    from lmcodec.lm.model import shapes
    from lmcodec.lm.weights import read_header

    source = store.find(model)
    header = read_header(source.path)
    n_weight, bits = _weights(header)
    shape = header.config
    number = f", number {source.number} of this version" if source.number is not None else ""
    facts = [
        ("file", str(source.path)),
        ("id", header.model_id + number),
        ("bytes", f"{header.nbytes:,}"),
        ("weights", f"{n_weight:,}, {bits:.3f} bits each"),
        (
            "shape",
            f"{shape.vocab_size} tokens, width {shape.dim}, {shape.n_layer} layers of {shape.recurrent} "
            f"channels and {shape.mlp} hidden units",
        ),
        ("work", f"{shape.macs_per_token:,} multiply-accumulates a token"),
        ("sections", ", ".join(f"{name} {nbytes:,}" for name, nbytes in header.sections.items()) + " bytes"),
        *((f"card: {key}", _plain(value)) for key, value in header.card.items()),
    ]
    click.echo(table(facts, right=()))
    rows = [("Tensor", "Rows", "Columns", "Contexts", "Shift", "Bits each")]
    for (name, (n, k, _)), contexts, shift, each in zip(
        shapes(shape).items(), header.n_context, header.shifts, header.bits_per_weight.values(), strict=True
    ):
        rows.append((name, str(n), str(k), str(contexts), str(shift), f"{each:.3f}"))
    click.echo(table(rows, right=range(1, 6)), nl=False)


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
    if mixer and mixer_from:
        raise ConfigError("--mixer and --mixer-from exclude each other")
    entries = dict(map(_entry, card))
    from lmcodec.lm import weights

    profiles = b"".join(_read_profile(path, weights.MAX_MIXER_NBYTES) for path in mixer)
    if mixer_from:
        profiles = weights.load(store.find(mixer_from).path).model.mixer
    if profiles:
        from lmcodec.profile import parse_all

        parse_all(profiles, "--mixer" if mixer else str(mixer_from))
    data = weights.pack(_integer_model(checkpoint, vocab, entries, profiles))
    write_file(str(output), [data], overwrite=True)
    header = weights.inspect(data)
    n_weight, bits = _weights(header)
    click.echo(
        f"{output}: {len(data):,} bytes, model {header.model_id}, {n_weight:,} weights of {bits:.3f} bits"
    )
    if not profiles:
        click.echo("It holds no profile of the context models: only --method lm compresses with it.")


def _read_profile(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LmcodecError(f"{path}: a model's profiles have at most {most} bytes, this file has more")
    return data


def _integer_model(folder: Path, vocab: Path | None, card: dict[str, Any], mixer: bytes) -> Any:
    from dataclasses import replace

    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConfigError("export needs torch: pip install 'lmcodec[torch]'") from None
    from lmcodec.lm.vocab import Vocabulary
    from lmcodec.train.export import integer_model
    from lmcodec.train.exports import load_export

    if (folder / "export" / "manifest.json").is_file():
        folder = folder / "export"
    vocabulary = Vocabulary.load(vocab)
    net, document = load_export(folder, vocabulary)
    known = {key: document[key] for key in ("name", "step", "trained_nbytes") if key in document}
    return replace(integer_model(net, vocabulary, known | card), mixer=mixer)


@model.command()
@click.argument("model", metavar="FILE|NAME")
def verify(model: str) -> None:
    """Check a model file, and that whatever can run it here computes what it should."""
    from importlib.util import find_spec

    from lmcodec import _kernel
    from lmcodec.lm import reference, weights
    from lmcodec.lm.native import NativeNetwork
    from lmcodec.profile import parse_all

    source = store.find(model)
    loaded = weights.load(source.path)
    integer, known = loaded.model, loaded.known
    click.echo(f"file: sound, {loaded.header.nbytes:,} bytes, model {integer.model_id}")
    if source.model_id not in (None, integer.model_id):
        raise LmcodecError(f"{source.path}: model {source.number} of this version is {source.model_id}")

    def definition() -> None:
        if reference.compute_known_answer(integer) != known:
            raise LmcodecError("another answer than the file's")

    def native(isa: str) -> None:
        NativeNetwork(integer, isa).self_test(known)

    def torch(device: str) -> None:
        from lmcodec.lm.torch_backend import TorchNetwork

        TorchNetwork(integer, device).self_test(known)

    def profiles() -> None:
        if not parse_all(integer.mixer):
            raise LmcodecError("none: only --method lm compresses with the model")

    checks: list[tuple[str, Callable[[], None]]] = [("profiles", profiles), ("definition", definition)]
    checks += [(f"kernel, {isa}", lambda isa=isa: native(isa)) for isa in _kernel.network_isas()]  # type: ignore[misc]
    if find_spec("torch"):
        import torch as framework

        devices = ["cpu", *(["cuda"] if framework.cuda.is_available() else [])]
        checks += [(f"torch, {device}", lambda device=device: torch(device)) for device in devices]  # type: ignore[misc]
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


def _weights(header: Header) -> tuple[int, float]:
    """How many weights a model has, and the bits that each of them takes in its file."""
    from lmcodec.lm.model import shapes

    n_weight = sum(n * k for n, k, _ in shapes(header.config).values())
    return n_weight, 8 * (header.sections["weights"] + header.sections["tables"]) / n_weight
