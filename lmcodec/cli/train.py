"""`lmcodec train`: vocabulary, shards and training runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lmcodec.cli.lmz import Size


class _TrainGroup(click.Group):
    """A group in which `train CONFIG.toml` means `train run CONFIG.toml`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_TrainGroup, context_settings={"help_option_names": ["-h", "--help"]})
def train() -> None:
    """Train the codec's networks.

    `lmcodec train CONFIG.toml` runs a configuration; `vocab` and `prepare` make what it reads.
    """


@train.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--shards", metavar="FOLDER", help="Of token shards; or several, joined as those of PATH.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run (default: runs/NAME).")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the file.")
@click.option("--validate", is_flag=True, help="Only report the validation of the run's weights.")
def run(
    config: Path, shards: str | None, run_dir: Path | None, assignments: tuple[str, ...], validate: bool
) -> None:
    """Run CONFIG, a TOML file, or continue it where it stopped."""
    started = time.monotonic()  # before torch is loaded, which takes seconds
    from lmcodec.train.start import start

    start(
        config,
        shards_dir=shards,
        run_dir=run_dir,
        assignments=list(assignments),
        validate=validate,
        started=started,
    )


@train.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("exports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--vocab", type=click.Path(path_type=Path), help="Vocabulary file (default: the shipped one).")
@click.option("--shares", metavar="A,B,…", help="Of each export, in their order.  [default: equal]")
def average(out: Path, exports: tuple[Path, ...], vocab: Path | None, shares: str | None) -> None:
    """Write the mean of the weights of EXPORTS to OUT, an export that runs begin from.

    Runs that began from the same weights (run.init), or such a run and its beginning.
    """
    from lmcodec.errors import ConfigError
    from lmcodec.lm.vocab import Vocabulary
    from lmcodec.train.average import average as average_exports

    try:
        parts = None if shares is None else [float(share) for share in shares.split(",")]
    except ValueError:
        raise ConfigError(f"--shares {shares}, expected numbers with commas between") from None
    average_exports(exports, out, Vocabulary.load(vocab), parts)
    click.echo(f"{out}: the mean of {len(exports)} exports")


@train.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("shards"), show_default=True)
@click.option("--vocab", type=click.Path(path_type=Path), help="Vocabulary file (default: the shipped one).")
@click.option(
    "--corpora", type=click.Path(path_type=Path), help="Folder with train/ (default: LMCODEC_CORPORA)."
)
@click.option("--preset", type=click.IntRange(0, 9), default=0, show_default=True, help="Of xz.")
@click.option("--processes", type=click.IntRange(1), help="Default: one a core.")
def prepare(out: Path, vocab: Path | None, corpora: Path | None, preset: int, processes: int | None) -> None:
    """Segment the training corpora into token shards."""
    from lmcodec.lm.vocab import Vocabulary
    from lmcodec.train.shards import prepare as prepare_shards

    vocabulary = Vocabulary.load(vocab)
    click.echo(f"{len(vocabulary)} tokens, vocabulary {vocabulary.vocab_id}")
    for line in prepare_shards(vocabulary, out, corpora=corpora, preset=preset, processes=processes):
        click.echo(line)


@train.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(257, 65_536), default=6144, show_default=True)
@click.option("--sample-mb", type=click.IntRange(1), default=100, show_default=True, help="Text to learn on.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--corpora", type=click.Path(path_type=Path), help="Folder with train/ (default: LMCODEC_CORPORA)."
)
def vocab(out: Path, size: int, sample_mb: int, seed: int, corpora: Path | None) -> None:
    """Learn a vocabulary on the mixture and write it to OUT."""
    from lmcodec.train.corpus import DEFAULT_WEIGHTS
    from lmcodec.train.vocab_learn import bytes_per_token, learn

    vocabulary = learn(
        size,
        DEFAULT_WEIGHTS,
        folder=corpora,
        sample_nbytes=sample_mb * 1_000_000,
        seed=seed,
        report=click.echo,
    )
    out.write_bytes(vocabulary.pack())
    click.echo(
        f"{out}: {len(vocabulary)} tokens, vocabulary {vocabulary.vocab_id}; bytes per token, held out:"
    )
    for category, value in bytes_per_token(vocabulary, corpora).items():
        click.echo(f"  {category:14s} {value:.3f}")


@train.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--model", help="Name or file of the language model beside it, if the profile has one (lm = 1)."
)
@click.option(
    "--begin-from", metavar="FILE|NAME", help="Model whose first profile, of the same SPEC, is learned on."
)
@click.option("--nbytes", type=Size(1 << 10), help="Of text, at most, in pieces of 16 KiB (default: all).")
@click.option("--seed", type=int, default=11, show_default=True, help="Of the choice of documents.")
@click.option(
    "--corpora", type=click.Path(path_type=Path), help="Folder with train/ (default: LMCODEC_CORPORA)."
)
def profile(
    spec: Path,
    out: Path,
    model: str | None,
    begin_from: str | None,
    nbytes: int | None,
    seed: int,
    corpora: Path | None,
) -> None:
    """Learn what a profile of the context mixer begins with, and write its file to OUT.

    SPEC is a TOML file such as lmcodec/train/configs/profile-fast.toml. A profile for blocks with a language
    model (profile-lm-fast.toml) is learned with its --model, and goes into that model's file: lmcodec model
    export --mixer, or lmcodec model import --mixer. With a large model, --begin-from base and --nbytes 3M
    take minutes instead of hours.
    """
    from hashlib import sha256

    from lmcodec import _kernel
    from lmcodec.errors import ConfigError
    from lmcodec.lm import store
    from lmcodec.profile import build, pack
    from lmcodec.train.config import read_toml
    from lmcodec.train.prior import learn, sample

    wanted = read_toml(spec)
    try:
        build(wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{spec}: not a profile ({error})") from None
    if bool(wanted["numbers"].get("lm")) != (model is not None):
        raise ConfigError(
            f"{spec}: its number lm is {wanted['numbers'].get('lm', 0)}: "
            + ("--model is not for it" if model else "name the language model with --model")
        )
    loaded = store.load(store.find(model)) if model else None
    begin = None
    if begin_from is not None:
        beginning = store.load(store.find(begin_from))
        if not beginning.profiles or beginning.profiles[0].spec != wanted:
            raise ConfigError(f"--begin-from {begin_from}: has no first profile of this specification")
        begin = _kernel.TokenLoop(beginning.coding, beginning.profiles[0].kernel).learned
    pieces = sample(corpora, seed, nbytes, None if nbytes is None else 16 << 10)
    click.echo(f"{len(pieces)} pieces of text, {sum(map(len, pieces)):,} bytes")
    data = pack(wanted, learn(wanted, pieces, loaded, begin))
    out.write_bytes(data)
    click.echo(f"{out}: {len(data):,} bytes, SHA-256 {sha256(data).hexdigest()}")


@train.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--windows", type=click.IntRange(1), default=100, show_default=True, help="Of each file.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--corpora", type=click.Path(path_type=Path), help="Folder with train/ (default: LMCODEC_CORPORA)."
)
@click.pass_context
def overlap(
    ctx: click.Context, files: tuple[Path, ...], windows: int, seed: int, corpora: Path | None
) -> None:
    """Look for text of FILES in the training corpora.

    Random windows of 200 bytes of each file are searched for, byte for byte. Exits with 1 if one is there: a
    model trained on the corpora must not be measured on that file.
    """
    from lmcodec.train.overlap import find_overlap

    counts, found = find_overlap({str(path): path.read_bytes() for path in files}, corpora, windows, seed)
    for name, n in counts.items():
        by = found.get(name, {})
        where = ", ".join(f"{k} in {category}" for category, k in by.items())
        click.echo(f"{name}: {n} windows, " + (where or "none in the training text"))
    if found:
        ctx.exit(1)
