"""Models that callers and packages bring: objects, names that are registered, what check_model finds."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import order1_kind
import pytest
from test_lm_codec import run

import lmcodec
from lmcodec import LanguageModel, Session, Vocabulary
from lmcodec.cli import lmz as front
from lmcodec.errors import ConfigError, LmcodecError, ModelNotFound, Unsupported
from lmcodec.lm import kinds, outside, store
from lmcodec.lm.bound import BoundModel, Fingerprint
from lmcodec.lm.interface import LOGIT_MAX
from lmcodec.testing import check_model

TEXT = b"the king and the thing and the ring, singing in the evening. " * 40


class Letters(LanguageModel, Session):
    """A static model of order 1 over 259 tokens."""

    vocabulary = Vocabulary(sorted({bytes([b]) for b in range(256)} | {b"the ", b"and ", b"ing "}))
    start_tokens = len(vocabulary), len(vocabulary) + 1
    model_id = "letters 1"
    table = np.random.default_rng(1).integers(0, 900, (261, 259), np.int32)
    table[:, [t.strip().isalpha() for t in vocabulary.strings]] += 1500

    def session(self, n_stream: int) -> Session:
        return self

    def begin(self, stream: int, cut: bool) -> None:
        pass

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self.table[tokens]


class Counting(LanguageModel):
    """Its streams have states: how many tokens there were."""

    vocabulary, start_tokens, model_id = Letters.vocabulary, Letters.start_tokens, "counting 1"

    class States(Session):
        def __init__(self, n: int) -> None:
            self.n = np.zeros(n, np.int64)

        def begin(self, stream: int, cut: bool) -> None:
            self.n[stream] = 0

        def step(self, tokens: np.ndarray) -> np.ndarray:
            self.n = self.n + 1
            return Letters.table[(tokens + self.n) % 261]

    def session(self, n_stream: int) -> Session:
        return self.States(n_stream)


def test_models_that_keep_their_promises() -> None:
    check_model(Letters())
    check_model(Counting())


def test_frames_of_an_object() -> None:
    for model in (Letters(), Counting()):
        for method in ("lm", "lm+cm", "auto"):
            packed = lmcodec.compress(TEXT, model=model, method=method, block_size=1024, model_only=True)
            assert lmcodec.decompress(packed, model=type(model)()) == TEXT
    packed = lmcodec.compress(TEXT, model=Letters(), method="lm")
    info = lmcodec.frame_info(packed)
    assert info.environment is None
    assert info.model_id == bytes.fromhex(store.load(store.find(Letters())).model_id)
    with pytest.raises(ModelNotFound, match=r"\(the one given, Counting, is [0-9a-f]{16}\)"):
        lmcodec.decompress(packed, model=Counting())
    with pytest.raises(ModelNotFound, match="a package brings"):
        lmcodec.decompress(packed)


def test_the_id_of_a_frame_is_of_what_is_computed() -> None:
    ids = {outside.frame_id(model, b"") for model in (Letters(), Letters(), Counting())}
    assert len(ids) == 2
    assert outside.frame_id(Letters(), b"x") not in ids
    assert outside.frame_id(Letters(), b"") == "dbc154a9f28ce063"  # frames hold it

    class Nameless(Letters):
        model_id = ""

    with pytest.raises(ConfigError, match="a model that makes frames has a model_id"):
        lmcodec.compress(TEXT, model=Nameless())


def test_objects_that_cannot_be_hashed_or_are_none() -> None:
    class Odd(Letters):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    packed = lmcodec.compress(TEXT, model=Odd(), method="lm")
    assert lmcodec.decompress(packed, model=Odd()) == TEXT
    with pytest.raises(TypeError, match="model must be a name, a path or a LanguageModel, not int"):
        lmcodec.compress(TEXT, model=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="computes itself; executor numpy"):
        lmcodec.compress(TEXT, model=Letters(), executor="numpy")


class _Wrong(Letters):
    states: dict[str, int]


def broken(**members: Any) -> LanguageModel:
    made: LanguageModel = type("Broken", (Letters,), members)()
    return made


class Forgetful(Counting):
    """A stream that begins anew goes on."""

    class States(Counting.States):
        def begin(self, stream: int, cut: bool) -> None:
            pass


class Together(Counting):
    """A stream depends on those beside it."""

    class States(Counting.States):
        def step(self, tokens: np.ndarray) -> np.ndarray:
            return super().step(tokens) + np.int32(tokens.sum() % 2)


class Ahead(Counting):
    """Many positions at once give other integers."""

    class States(Counting.States):
        def run(self, tokens: np.ndarray) -> np.ndarray:
            return super().run(tokens) + np.int32(len(tokens) > 1)


def drift() -> Any:
    n = 0

    def step(self: Letters, tokens: np.ndarray) -> np.ndarray:
        nonlocal n
        n += 1
        return self.table[tokens] + np.int32(n)

    return step


def spoil(self: Letters, tokens: np.ndarray) -> np.ndarray:
    logits = self.table[tokens]
    tokens[:] = 0
    return logits


WRONG: list[tuple[LanguageModel, str]] = [
    (broken(vocabulary=[b"a"]), "vocabulary is list"),
    (broken(start_tokens=(0, 259)), r"start_tokens is \(0, 259\), expected two ints from 259"),
    (broken(model_id=7), "model_id is int"),
    (broken(nbytes=-1), "nbytes is -1"),
    (broken(steps_at_once=0), "steps_at_once is 0"),
    (broken(step=lambda self, t: self.table[t].tolist()), "gives list"),
    (broken(step=lambda self, t: self.table[t].astype(np.int64)), "gives int64 of shape"),
    (broken(step=lambda self, t: self.table[t][:, :9]), r"of shape \(1, 9\), expected int32 of \(1, 259\)"),
    (broken(step=lambda self, t: self.table[t] - np.int32(LOGIT_MAX + 4000)), "a logit of size"),
    (broken(step=drift()), "the same steps in a second session"),
    (broken(step=spoil), "changes the tokens"),
    (Forgetful(), "2 streams that begin anew|1 streams that begin anew"),
    (Together(), "stream 0 among 2 against the same stream alone"),
    (Ahead(), r"run\(\) against as many step\(\)s"),
    (broken(segment=lambda self, data: np.zeros(len(bytes(data)), np.uint32)), "tokens that spell"),
    (broken(segment=lambda self, data: [1]), "does not give an array"),
]


@pytest.mark.parametrize(("model", "message"), WRONG)
def test_what_check_model_finds(model: LanguageModel, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_model(model)


def test_what_is_no_model() -> None:
    with pytest.raises(AssertionError, match="int does not derive from"):
        check_model(3)  # type: ignore[arg-type]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package as pip installs it, which registers models and a kind."""
    site = tmp_path / "site"
    info = site / "toy_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-models\nVersion: 1.0\n", encoding="utf-8"
    )
    entries = {
        "letters": "toy_models:Letters",
        "made": "toy_models:made",
        "nothing": "toy_models:nothing",
        "failing": "toy_models:failing",
        "absent": "toy_models_that_are_not_there:x",
        "order1": "order1_kind",
    }
    text = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[lmcodec.models]\n{text}", encoding="utf-8")
    (site / "toy_models.py").write_text(
        "from test_own_models import Letters\nmade = Letters()\nnothing = 7\n"
        "def failing():\n    raise OSError('the weights are gone')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield site
    for name in ("toy_models", "test_own_models"):
        sys.modules.pop(name, None)


def test_models_that_a_package_registers(
    package: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = lmcodec.compress(TEXT, model="letters", method="lm")
    assert lmcodec.decompress(packed, model="letters") == TEXT
    assert lmcodec.decompress(packed, model="made") == TEXT
    assert lmcodec.decompress(packed, model=Letters()) == TEXT
    assert type(lmcodec.load_model("letters")).__name__ == "Letters"
    assert store.load(store.find("letters")).name == "letters"
    assert ("letters", "package toy-models") in outside.names()
    file = tmp_path / "t.txt"
    file.write_bytes(TEXT)
    for arguments in (
        ["--model", "letters", "--model-only", "--method", "lm", "--rm", str(file)],
        ["-d", "--model", "letters", f"{file}.lmz"],
    ):
        with pytest.raises(SystemExit) as ended:
            front.main(arguments)
        assert ended.value.code == 0, capfd.readouterr().err
    assert file.read_bytes() == TEXT
    monkeypatch.setenv("LMCODEC_MODEL", "letters")
    assert lmcodec.decompress(packed) == TEXT


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of `lmcodec`."""
    status = run(*arguments)
    out, error = capfd.readouterr()
    return status, out, error


def test_commands_know_models_that_a_package_registers(
    package: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`model list` names them, `model show` says what they are, `model verify` that there is no file."""
    status, out, _ = command(capfd, "model", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.endswith("package toy-models")] == [
        *("absent", "failing", "letters", "made", "nothing", "order1")
    ]
    status, out, _ = command(capfd, "model", "list", "--json")
    row = next(row for row in json.loads(out) if row["name"] == "letters")
    assert row["id"] is None
    assert row["source"] == "package toy-models"
    expected = store.load(store.find("letters")).model_id
    status, out, _ = command(capfd, "model", "show", "letters")
    assert status == 0
    assert f"id      {expected}" in out
    assert "restored everywhere" in out
    status, out, _ = command(capfd, "model", "show", "letters", "--json")
    assert json.loads(out)["id"] == expected
    status, out, error = command(capfd, "model", "verify", "letters")
    assert (status, out) == (1, "")
    assert error.count("\n") == 1
    assert "no model file holds it" in error
    for verb in ("show", "verify"):
        status, _, error = command(capfd, "model", verb, "absent")
        assert status == 1
        assert "package toy-models registers it and cannot be loaded" in error


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", ConfigError, "nothing: is registered as a model and is int"),
        ("failing", ConfigError, "failing: making the model fails: OSError: the weights are gone"),
        ("absent", ConfigError, "absent: package toy-models registers it and cannot be loaded"),
        ("order1", ModelNotFound, "is registered as a kind of model files"),
        ("unknown", ModelNotFound, "neither a shipped model"),
    ],
)
def test_what_is_registered_and_cannot_be_used(
    package: Path, name: str, error: type[LmcodecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        lmcodec.compress(TEXT, model=name)


def test_a_kind_that_a_package_registers(package: Path, tmp_path: Path) -> None:
    vocabulary = Letters.vocabulary
    (tmp_path / "toy.lmm").write_bytes(order1_kind.pack(vocabulary, TEXT))
    model = str(tmp_path / "toy.lmm")
    packed = lmcodec.compress(TEXT, model=model, method="lm")
    assert lmcodec.decompress(packed, model=model) == TEXT
    assert kinds.read_header(model).kind == "order1"
    with pytest.raises(Unsupported, match="model of kind 'letters', which this lmcodec does not know"):
        kinds.get("letters")


def test_nothing_is_imported_before_it_is_asked_for(package: Path) -> None:
    lmcodec.compress(TEXT[:400], model="small")
    assert "toy_models" not in sys.modules


class Bound(Letters, BoundModel):
    """As Letters, but bound to where it runs."""

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint("letters", "5" * 64, {"dtype": "float32"}, {"here": "yes"})

    def with_settings(self, settings: Mapping[str, Any]) -> Bound:
        return Bound()


def test_a_model_that_is_kept_keeps_the_object_that_it_is_found_by() -> None:
    """Another object with its number would be taken for it."""
    given = Bound()
    alive = weakref.ref(given)
    bound_to = given.fingerprint
    loaded = store.load(store.find(given), bound_to=bound_to)
    assert store.load(store.find(given), bound_to=bound_to) is loaded
    del given
    gc.collect()
    assert alive() is not None
