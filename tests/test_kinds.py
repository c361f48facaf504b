"""Kinds of models: the registry, version 2 of the container, a toy kind of one module; the models folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import order1_kind
import pytest
from test_lm_codec import TEXT, run, tiny_model, vocabulary

from lmcodec.codec import compress, decompress, frame_info
from lmcodec.engine import LmEngine
from lmcodec.errors import (
    ConfigError,
    Corrupt,
    LimitExceeded,
    LmcodecError,
    ModelNotFound,
    Truncated,
    Unsupported,
)
from lmcodec.lm import container, folder, kinds, sections, store, weight_coding
from lmcodec.lm.recurrent import file as recurrent_file
from lmcodec.lm.vocab import Vocabulary

PREFIX = struct.Struct("<8sIIQ")


@pytest.fixture(autouse=True)
def models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The toy kind is registered, the models folder is one of the test's own."""
    monkeypatch.setitem(kinds.MODULES, "order1", "order1_kind")
    monkeypatch.setenv(folder.VARIABLE, str(tmp_path / "models"))
    for name in (store.MODEL_VARIABLE, "LMCODEC_ISA", "LMCODEC_CODER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def packed() -> bytes:
    return order1_kind.pack(vocabulary(), TEXT)


@pytest.fixture
def toy(tmp_path: Path, packed: bytes) -> Path:
    path = tmp_path / "toy.lmm"
    path.write_bytes(packed)
    return path


def test_a_kind_takes_one_module_and_one_line(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe of ARCHITECTURE.md: a model of the kind compresses, from the library and the commands."""
    frame = compress(TEXT, model=toy, method="lm")
    assert frame_info(frame).model_id == bytes.fromhex(store.load(store.find(toy)).model_id)
    assert decompress(frame, model=toy) == TEXT
    assert len(frame) < len(TEXT) / 3
    text, frame_path = tmp_path / "text", tmp_path / "text.lmz"
    text.write_bytes(TEXT)
    assert run("compress", "--method", "lm", "--model", toy, text) == 0
    assert frame_path.read_bytes() == frame
    assert run("test", "--model", toy, frame_path) == 0
    assert run("model", "show", toy) == 0
    out = capfd.readouterr().out
    for part in ("order1", f"{len(vocabulary())} tokens, order 1", "card: name"):
        assert part in out
    assert run("model", "verify", toy) == 1  # it has no profiles
    assert "definition: sound" in capfd.readouterr().out


def test_executors_of_a_kind(toy: Path) -> None:
    model = store.load(store.find(toy), executor="numpy")
    assert (model.kind, model.executor, model.n_weight) == ("order1", "numpy", model.header.n_weight)
    assert model.segment(TEXT).tolist() == vocabulary().segment(TEXT).tolist()
    with pytest.raises(ConfigError, match="executor 'torch'"):
        store.load(store.find(toy), executor="torch")


@pytest.mark.parametrize("executor", ["numpy", "torch"])
def test_executors_of_the_recurrent_kind_write_the_same_frames(executor: str, tmp_path: Path) -> None:
    if executor == "torch":
        pytest.importorskip("torch")
    path = tmp_path / "tiny.lmm"
    path.write_bytes(recurrent_file.pack(tiny_model()))
    source = store.find(path)
    expected = LmEngine(store.load(source), None, streams=2).encode(TEXT[:500])
    other = store.load(source, executor=executor)
    assert other.executor == executor
    assert LmEngine(other, None, streams=2).encode(TEXT[:500]) == expected
    assert LmEngine(other, None, streams=2).decode(expected, 500) == TEXT[:500]
    assert other.nbytes > store.load(source).nbytes


def test_unknown_kinds_are_refused_by_name(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(kinds.MODULES, "order1")
    with pytest.raises(
        Unsupported, match=r"toy\.lmm: model of kind 'order1', which this lmcodec does not know"
    ):
        store.load(store.find(toy))


# --- the container ---


def rebuild(data: bytes, change: Callable[[dict[str, Any]], Any], version: int = 2) -> bytes:
    """The file with another header, its sizes and digest made to fit."""
    n_header = PREFIX.unpack_from(data)[2]
    content = json.loads(data[PREFIX.size : PREFIX.size + n_header])
    change(content)
    header = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    body = data[PREFIX.size + n_header : -32]
    prefix = PREFIX.pack(container.MAGIC, version, len(header), PREFIX.size + len(header) + len(body) + 32)
    whole = prefix + header + body
    return whole + hashlib.sha256(whole).digest()


REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[LmcodecError], str]] = {
    "no kind": (lambda c: c.pop("kind"), Corrupt, "header lacks 'kind'"),
    "kind no name": (lambda c: c.update(kind=1), Corrupt, "kind is no name"),
    "kind empty": (lambda c: c.update(kind=""), Corrupt, "kind is no name"),
    "kind long": (lambda c: c.update(kind="x" * 41), Corrupt, "kind is no name"),
    "another kind": (lambda c: c.update(kind="x" * 40), Unsupported, "model of kind 'xxx"),
    "recurrent in version 2": (lambda c: c.update(kind="recurrent"), Unsupported, "kept in version 1"),
    "a member more": (lambda c: c.update(extra=1), Corrupt, "unknown member 'extra'"),
    "no card": (lambda c: c.pop("card"), Corrupt, "lacks 'card'"),
    "card a list": (lambda c: c.update(card=[]), Corrupt, "card is no object"),
    "no id": (lambda c: c.update(model_id="x" * 16), Corrupt, "model_id is not 16"),
    "another id": (lambda c: c.update(model_id="0" * 16), Corrupt, "content is that of another model"),
    "sections a list": (lambda c: c.update(sections=[]), Corrupt, "sections is no object"),
    "a section more": (lambda c: c["sections"].update(x=0), Corrupt, "sections has an unknown member"),
    "section huge": (lambda c: c["sections"].update(mixer=1 << 60), Corrupt, "expected 0 to"),
    "section longer": (lambda c: c["sections"].update(mixer=9), Corrupt, "sections end at byte"),
    "tokens": (lambda c: c.update(n_token=1 << 40), Corrupt, "n_token: 1099511627776, expected 256 to"),
    "words": (lambda c: c.update(words=[]), Corrupt, "words are not a list of 1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_version_2_refusals(name: str, packed: bytes, toy: Path) -> None:
    assert rebuild(packed, lambda c: None) == packed
    change, error, message = REFUSALS[name]
    toy.write_bytes(rebuild(packed, change))
    with pytest.raises(LmcodecError, match=message) as caught:
        kinds.open_file(toy).decode()
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{toy}: ")
    assert str(caught.value).count(str(toy)) == 1


def test_version_1_names_no_kind(packed: bytes, toy: Path) -> None:
    toy.write_bytes(rebuild(packed, lambda c: None, version=1))
    with pytest.raises(Corrupt, match="unknown member"):
        kinds.open_file(toy)


def test_damaged_files_of_version_2(packed: bytes, toy: Path) -> None:
    """Whatever is cut or changed, the file is refused; its header alone gives an error at most."""
    rng = random.Random(3)
    for n in [*range(0, 400, 7), *(rng.randrange(len(packed)) for _ in range(40)), len(packed) - 1]:
        toy.write_bytes(packed[:n])
        for read in (kinds.open_file, kinds.read_header):
            with pytest.raises(Truncated):
                read(toy)
    for _ in range(200):
        changed = bytearray(packed)
        changed[rng.randrange(rng.choice([400, len(packed)]))] ^= 1 << rng.randrange(8)
        toy.write_bytes(changed)
        with pytest.raises(LmcodecError):
            kinds.open_file(toy)
        with contextlib.suppress(LmcodecError):
            kinds.read_header(toy)


def test_the_limit_holds_before_a_file_is_read(toy: Path, packed: bytes) -> None:
    need = kinds.read_header(toy).memory_nbytes
    with pytest.raises(
        LimitExceeded, match=f"takes at least {need} bytes of memory, the limit is {need - 1}"
    ):
        store.load(store.find(toy), memory_limit=need - 1)
    assert store.load(store.find(toy), memory_limit=need).model_id == kinds.read_header(toy).model_id
    # A file of 1 GiB, of which only some pages exist: it is not read.
    head = bytearray(packed)
    head[16:24] = (1 << 30).to_bytes(8, "little")
    with open(toy, "wb") as file:
        file.write(head)
        file.truncate(1 << 30)
    with pytest.raises(LimitExceeded, match="reading it takes 1073741824 bytes"):
        store.load(store.find(toy), memory_limit=1 << 20)


def test_bounds_of_all_kinds() -> None:
    assert weight_coding.check_shapes([(1 << 17, 1 << 16)]) == 1 << 33
    assert weight_coding.check_shapes([]) == 0
    for shapes in (
        [(1 << 17, 1 << 16), (1, 1)],
        [(1 << 40, 1)],
        [(1, (1 << 16) + 1)],
        [(0, 1)],
        [(1, 0)],
        [(-1, -1)],
    ):
        with pytest.raises(Corrupt, match="weights"):
            weight_coding.check_shapes(shapes)
    # 2^47 weights that follow from nothing: there is no such memory.
    n, k = 1 << 31, 1 << 16
    classes, codes = np.zeros(1, np.int8), np.zeros((1, 128), np.uint8)
    empty = weight_coding.CodedTensors([(n, k, 1)], classes, classes, codes, [], np.empty(0, np.uint8))
    with pytest.raises(LimitExceeded, match="more memory than there is"):
        weight_coding.decode_weights(empty)


def test_large_vocabularies_come_back() -> None:
    words = {bytes([b]) for b in range(256)} | {b"a" * n for n in (300, 65_535)}
    words |= {i.to_bytes(3, "big") for i in range(70_000)}
    made = Vocabulary(sorted(words))
    part = sections.compress(sections.pack_large_vocabulary(made))
    assert sections.parse_large_vocabulary(memoryview(part), len(made)) == made
    with pytest.raises(Corrupt):
        sections.parse_large_vocabulary(memoryview(part), len(made) - 1)
    # Strings of 65,535 bytes that share all but one: 17 GB out of little.
    n = 1 << 18
    lengths = np.array([[0, *[65_534] * (n - 1)], [65_535, *[1] * (n - 1)]], "<u2")
    bomb = sections.compress(lengths.tobytes() + bytes(65_535 + n - 1))
    with pytest.raises(Corrupt, match="more than 16777216 bytes"):
        sections.parse_large_vocabulary(memoryview(bomb), n)


# --- the models folder ---


def test_models_of_the_folder_are_found(
    models_folder: Path, packed: bytes, toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = compress(TEXT, model=toy, method="lm")
    model_id = kinds.read_header(toy).model_id
    with pytest.raises(ModelNotFound) as missing:
        decompress(frame)
    for part in (model_id, "neither shipped", str(models_folder)):
        assert part in str(missing.value)
    assert "\n" not in str(missing.value)
    folder.write(models_folder / "toy.lmm", [packed[:1000], packed[1000:]])
    (models_folder / "broken.lmm").write_bytes(packed[:-1])
    (models_folder / "note.txt").write_bytes(b"no model")
    assert decompress(frame) == TEXT
    assert decompress(frame, model="small") == TEXT  # a frame says what it needs
    assert compress(TEXT, model="toy", method="lm") == compress(TEXT, model=model_id, method="lm") == frame
    assert run("model", "list") == 0
    out, err = capfd.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("toy "))
    assert line.split()[1:3] == [model_id, "order1"]
    assert str(models_folder / "toy.lmm") in line
    assert "broken" not in out
    assert err.count("\n") == 1
    assert err.startswith("lmcodec: warning: skipped: ")
    assert "broken.lmm" in err
    assert run("model", "show", "broken") == 1
    assert "file ends at byte" in capfd.readouterr().err


def test_a_damaged_copy_stands_in_nobodys_way(models_folder: Path, packed: bytes) -> None:
    folder.write(models_folder / "b.lmm", [packed])
    frame = compress(TEXT, model="b", method="lm")
    changed = bytearray(packed)
    changed[-40] ^= 1  # its header is sound
    (models_folder / "a.lmm").write_bytes(changed)
    assert decompress(frame) == TEXT
    (models_folder / "b.lmm").unlink()
    with pytest.raises(Corrupt, match=r"a\.lmm: file does not match its SHA-256"):
        decompress(frame)


class TerminalInput(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_removing_a_model(
    models_folder: Path, packed: bytes, toy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    folder.write(models_folder / "toy.lmm", [packed])
    for arguments, part in (
        (["small"], "comes with lmcodec and cannot be removed"),
        ([toy], "is not in the models folder"),
        (["none"], "neither a shipped model"),
    ):
        assert run("model", "remove", "--yes", *arguments) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert part in line
    assert run("model", "remove", "toy") == 1
    assert "there is nobody to ask" in capfd.readouterr().err
    monkeypatch.setattr("sys.stdin", TerminalInput("n\n"))
    assert run("model", "remove", "toy") == 1
    assert "toy: not removed" in capfd.readouterr().err
    assert (models_folder / "toy.lmm").exists()
    assert run("model", "remove", "toy", "--yes") == 0
    assert not (models_folder / "toy.lmm").exists()
    assert toy.exists()


def test_shipped_names_come_first(models_folder: Path, packed: bytes) -> None:
    folder.write(models_folder / "small.lmm", [packed])
    assert store.find("small").number == 3
    for name in (
        "small",
        "Base",
        "",
        ".x",
        "a/b",
        "x.lmm",
        "X.LMM",
        "a b",
        "é",
        "0123456789abcdef",
        "a" * 65,
        "a\n",
    ):
        with pytest.raises(ConfigError, match="name"):
            folder.check_name(name, (shipped.name for shipped in store.SHIPPED.values()))
    folder.check_name("SmolLM2-135M_q.1+x", ("small",))


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(folder.VARIABLE)
    monkeypatch.setattr(folder.Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    expected = {
        "linux": tmp_path / ".local" / "share",
        "darwin": tmp_path / "Library" / "Application Support",
        "win32": tmp_path / "AppData" / "Local",
    }
    for platform, data in expected.items():
        monkeypatch.setattr(folder.sys, "platform", platform)
        assert folder.path() == data / "lmcodec" / "models"
    monkeypatch.setattr(folder.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert folder.path() == expected["linux"] / "lmcodec" / "models"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "x"))
    assert folder.path() == tmp_path / "x" / "lmcodec" / "models"
    monkeypatch.setenv(folder.VARIABLE, "")
    assert folder.path() == tmp_path / "x" / "lmcodec" / "models"
    assert folder.files() == []


def test_a_file_is_written_whole_or_not_at_all(models_folder: Path) -> None:
    target = models_folder / "a.lmm"
    folder.write(target, [b"before"])

    def failing() -> Any:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(target, failing())
    assert target.read_bytes() == b"before"
    assert [path.name for path in models_folder.iterdir()] == ["a.lmm"]
