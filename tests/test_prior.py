"""`lmcodec train profile`: starting values learned on text make a profile that codes such text better."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lmcodec.cli.main import group
from lmcodec.engine import Engine
from lmcodec.errors import ConfigError
from lmcodec.profile import build, parse
from lmcodec.train import prior
from lmcodec.train.config import read_toml

CONFIGS = Path(prior.__file__).parent / "configs"
SPEC = """
contexts = [["order2"], ["order4"], ["word", "order1"]]
selectors = ["order0", "match"]
maps = ["order1"]
matches = [5]
[numbers]
table_log2 = 20
"""


def test_profile_is_made_from_a_specification(tmp_path: Path, tiny_corpora: Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "out.lmp"
    spec.write_text(SPEC, encoding="utf-8")
    arguments = ["train", "profile", str(spec), str(out), "--corpora", str(tiny_corpora)]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert "SHA-256" in result.output
    first = out.read_bytes()
    CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert out.read_bytes() == first  # the same text, the same file
    text = prior.sample(tiny_corpora, seed=3)[0]
    learned, neutral = Engine(parse(first)), Engine(build(read_toml(spec)))
    payload = learned.encode(text)
    assert len(payload) < 0.95 * len(neutral.encode(text))
    assert Engine(parse(first)).decode(payload, len(text)) == text


def test_pieces_are_as_long_as_promised(tiny_corpora: Path) -> None:
    pieces = prior.sample(tiny_corpora)
    assert pieces == prior.sample(tiny_corpora) != prior.sample(tiny_corpora, seed=12)
    assert all(0 < len(piece) <= 128 << 10 for piece in pieces)


@pytest.mark.parametrize("name", ["fast", "strong"])
def test_shipped_specifications_are_those_of_the_profiles(name: str) -> None:
    from lmcodec.profile import FROZEN, load

    number = next(n for n, (known, _) in FROZEN.items() if known == name)
    assert load(number).spec == read_toml(CONFIGS / f"profile-{name}.toml")


def test_wrong_specification_is_named(tmp_path: Path, tiny_corpora: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.replace("order4", "order44"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"spec\.toml: not a profile .*order44"):
        CliRunner().invoke(
            group,
            ["train", "profile", str(spec), str(tmp_path / "o"), "--corpora", str(tiny_corpora)],
            catch_exceptions=False,
        )


def test_pieces_of_a_size_and_in_all(tiny_corpora: Path) -> None:
    everything = prior.sample(tiny_corpora, 3)
    some = prior.sample(tiny_corpora, 3, nbytes=5000, piece_nbytes=1500)
    assert some == [piece[:1500] for piece in everything[: len(some)]]
    assert sum(map(len, some[:-1])) < 5000 <= sum(map(len, some))


def test_a_state_is_learned_on(tmp_path: Path) -> None:
    """Two texts at once, or the second after what the first has left."""
    path = tmp_path / "spec.toml"
    path.write_text(SPEC, encoding="utf-8")
    spec = read_toml(path)
    texts = [b"one two three four five six seven eight. " * 40, b"<a href='x'>y</a>\n" * 60]
    both = prior.learn(spec, texts)
    assert (prior.learn(spec, texts[1:], begin=prior.learn(spec, texts[:1])) == both).all()
    assert (prior.learn(spec, texts[1:]) != both).any()
