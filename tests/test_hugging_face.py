"""Causal models of transformers in floats: frames bound to an environment, and measuring in windows."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import format_reference
import numpy as np
import pytest
from hugging_face_models import KINDS, POSITIONS, write_model

import lmcodec
from lmcodec import load_model, model_bits_per_byte
from lmcodec.cli import lmz as front
from lmcodec.cli.main import main
from lmcodec.codec.salvage import Gap, salvage
from lmcodec.errors import ConfigError, Corrupt, LimitExceeded, LmcodecError, ModelNotFound, Unsupported
from lmcodec.frame import Extension, ExtensionType, Flag, FrameHeader
from lmcodec.lm.bound import Fingerprint
from lmcodec.lm.hugging_face import model as hf
from lmcodec.measure.causal import CausalMeter, windows
from lmcodec.testing import check_model

torch = pytest.importorskip("torch")
for package in ("transformers", "tokenizers", "safetensors"):
    pytest.importorskip(package)

TEXT = b"".join(b"The quick brown fox jumps over the lazy dog, %d times.\r\n" % i for i in range(24))
ODD = bytes(range(256)) + "Größe, 東京 <|endoftext|>".encode() + b"\xff\xfe\0"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("hugging-face")
    made = {kind: write_model(base / kind, kind) for kind in KINDS}
    made["other"] = write_model(base / "other", "llama", seed=2)
    made["holes"] = write_model(base / "holes", "llama", whole=False)
    return made


@pytest.fixture(scope="session")
def llama(folders: dict[str, Path]) -> hf.HuggingFaceModel:
    model = load_model(f"hf:{folders['llama']}", window=16)
    assert isinstance(model, hf.HuggingFaceModel)
    return model


@pytest.fixture(scope="session")
def frame(llama: hf.HuggingFaceModel) -> bytes:
    return lmcodec.compress(TEXT, model=llama, method="lm+cm", streams=8)


def rewritten(frame: bytes, fingerprint: Fingerprint | bytes) -> bytes:
    """The frame with another fingerprint."""
    info = lmcodec.frame_info(frame)
    data = fingerprint if isinstance(fingerprint, bytes) else fingerprint.pack()
    extension = Extension(ExtensionType.ENVIRONMENT, data, critical=True)
    header = FrameHeader(info.content_size, info.model_id, bool(info.flags & Flag.INDEX), (extension,))
    return header.pack() + frame[info.header_nbytes :]


def elsewhere(frame: bytes) -> bytes:
    """The frame as if an older torch had written it."""
    found = lmcodec.frame_info(frame).environment
    assert found is not None
    return rewritten(frame, replace(found, environment={**found.environment, "torch": "1.0"}))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_back(kind: str, folders: dict[str, Path]) -> None:
    model = f"hf:{folders[kind]}"
    packed = lmcodec.compress(TEXT, model=model, method="lm+cm", streams=8, block_size=1024)
    info = lmcodec.frame_info(packed)
    assert info.blocks is not None
    assert {block.method.label for block in info.blocks} <= {"lm+cm", "stored"}
    assert info.blocks[0].method.label == "lm+cm"
    found = info.environment
    assert found is not None
    assert found.name == folders[kind].name
    assert found.settings["cache"] == "static"
    assert found.settings["window"] == (0 if kind == "mamba" else POSITIONS)
    assert set(found.environment) >= {"device", "isa", "processor", "system", "torch", "transformers"}
    assert lmcodec.decompress(packed, model=model) == TEXT
    assert lmcodec.decompress(packed * 2, model=model) == TEXT * 2


def direct(network: Any, ids: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Logits after (n,) ids, all at once, as integers; columns: (V,) ids."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor(ids)[None]).logits[0, -1].double().numpy()[columns]
    return np.rint((logits - logits.max()) * 256 / math.log(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["static", "dynamic", "none"])
def test_steps_are_the_models_logits(kind: str, cache: str, folders: dict[str, Path]) -> None:
    """Against all tokens at once, to a rounding: before the cache is full and after it began anew."""
    opened = load_model(f"hf:{folders[kind]}", window=None if kind == "mamba" else 16)
    assert isinstance(opened, hf.HuggingFaceModel)
    model = opened.with_settings({**opened.settings, "cache": cache})
    assert isinstance(model, hf.HuggingFaceModel)
    n, v = 26, len(model.vocabulary)
    tokens = np.random.default_rng(1).integers(0, v, (n, 2), np.uint32)
    tokens[0] = model.start_tokens
    fed = model.inputs(tokens)
    session = model.session(2)
    begin = 0  # of what the cache holds
    for t in range(n):
        logits = session.step(tokens[t])
        assert logits.dtype == np.int32
        assert logits.shape == (2, v)
        if kind != "mamba" and t - begin == 16:
            begin += 9  # the last 7 are fed again, then this one
        for s in range(2):
            expected = direct(model.torch_model, fed[begin : t + 1, s], model.ids)
            assert np.abs(logits[s] - expected).max() <= 1, (t, s)


def test_what_is_promised_is_kept(llama: hf.HuggingFaceModel, folders: dict[str, Path]) -> None:
    check_model(llama, streams=(1, 3), steps=20, texts=(ODD[200:], TEXT[:40]))
    assert llama.steps_at_once == 1
    holes = load_model(f"hf:{folders['holes']}")
    assert isinstance(holes, hf.HuggingFaceModel)
    assert (holes.ids < 0).sum() > 100
    check_model(holes, streams=(2,), steps=4, texts=(ODD, b""), frames=False)
    repeated = ODD[256:] * 60  # which is worth a frame with the model
    packed = lmcodec.compress(repeated, model=holes, method="lm+cm", streams=3)
    assert lmcodec.frame_info(packed).environment is not None
    assert lmcodec.decompress(packed, model=holes) == repeated
    lacking = holes.session(1).step(np.array([3], np.uint32))[0, holes.ids < 0]
    assert set(lacking.tolist()) == {hf.LEAST}


def test_control_tokens_are_text(llama: hf.HuggingFaceModel) -> None:
    assert b"<|endoftext|>" not in llama.vocabulary.index
    assert llama.vocabulary.restore(llama.segment(ODD)) == ODD


def test_another_environment_is_refused_or_tried(frame: bytes, llama: hf.HuggingFaceModel) -> None:
    other = elsewhere(frame)
    with pytest.raises(Unsupported) as raised:
        lmcodec.decompress(other, model=llama)
    text = str(raised.value)
    assert "written in another environment" in text
    assert "torch 1.0" in text
    assert f"torch {torch.__version__}" in text
    assert "\n" not in text
    assert lmcodec.decompress(other, model=llama, any_environment=True) == TEXT
    with lmcodec.open(io.BytesIO(other), model=llama, any_environment=True) as file:
        assert file.read() == TEXT
    damaged = bytearray(other)
    damaged[-20] ^= 1
    with pytest.raises(Corrupt, match=r"or this environment computes otherwise.*torch 1\.0"):
        lmcodec.decompress(damaged, model=llama, any_environment=True)
    damaged = bytearray(frame)
    damaged[-20] ^= 1
    with pytest.raises(Corrupt) as plain:
        lmcodec.decompress(damaged, model=llama)
    assert "environment" not in str(plain.value)


def test_salvage_knows_what_a_frame_is_bound_to(llama: hf.HuggingFaceModel) -> None:
    narrow = llama.with_settings({**llama.settings, "window": 16})
    frame = lmcodec.compress(TEXT, model=narrow, method="lm+cm", block_size=1024)
    at = lmcodec.frame_info(frame).header_nbytes + 30
    damaged = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]

    def salvaged(data: bytes, **options: Any) -> list[bytes | Gap]:
        return list(salvage(lambda at, n: data[at : at + n], len(data), model=llama, **options))

    assert salvaged(frame) == [TEXT[:1024], TEXT[1024:]]
    gap, sound = salvaged(damaged)
    assert isinstance(gap, Gap)
    assert sound == TEXT[1024:]
    with pytest.raises(Unsupported, match="written in another environment"):
        salvaged(elsewhere(frame))
    found = salvaged(elsewhere(frame), any_environment=True)  # its index knows the other header
    assert [item for item in found if not isinstance(item, Gap)] == [TEXT[:1024], TEXT[1024:]]


def test_a_wrong_model_is_refused(frame: bytes, folders: dict[str, Path]) -> None:
    found = lmcodec.frame_info(frame).environment
    assert found is not None
    with pytest.raises(ModelNotFound, match="runs in floats.*weights " + found.model[:16] + ".*; name it"):
        lmcodec.decompress(frame)
    with pytest.raises(ModelNotFound, match=r"the one given, hf:.*other, is [0-9a-f]{16} \(weights "):
        lmcodec.decompress(frame, model=f"hf:{folders['other']}", any_environment=True)
    with pytest.raises(ModelNotFound, match="the one given, small, is a model file"):
        lmcodec.decompress(frame, model="small")


def test_the_writer_decodes_what_it_wrote(
    llama: hf.HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is not the same twice fails when it is written with, not years later."""
    step, n = hf._Session.step, 0

    def drifting(self: Any, tokens: np.ndarray) -> np.ndarray:
        nonlocal n
        n += 1
        return np.roll(step(self, tokens), n // 40, axis=1)

    monkeypatch.setattr(hf._Session, "step", drifting)
    with pytest.raises(Unsupported, match="what was written does not decode to the original"):
        lmcodec.compress(TEXT, model=llama, method="lm+cm", streams=8)


def test_flushed_frames_are_proved_as_they_go(llama: hf.HuggingFaceModel) -> None:
    compressor = lmcodec.Compressor(model=llama, method="lm+cm", streams=4)
    packed = compressor.compress(TEXT[:700]) + compressor.flush(compressor.FLUSH_BLOCK)
    packed += compressor.compress(TEXT[700:]) + compressor.flush()
    assert compressor.last_fingerprint == llama.fingerprint
    assert lmcodec.decompress(packed, model=llama) == TEXT
    with pytest.raises(Unsupported, match="one group of streams"):
        lmcodec.compress(TEXT, model=llama, streams=4, groups=2)


def test_the_fingerprint_has_one_form(frame: bytes, llama: hf.HuggingFaceModel) -> None:
    found = lmcodec.frame_info(frame).environment
    assert found is not None
    assert Fingerprint.parse(found.pack()) == found
    assert json.loads(found.pack())["layout"] == 1
    content = json.loads(found.pack())
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda c: c.pop("name"),
        lambda c: c.update(more=1),
        lambda c: c.update(layout=2),
        lambda c: c.update(layout=True),
        lambda c: c.update(model="00"),
        lambda c: c.update(name=7),
        lambda c: c.update(settings=[]),
        lambda c: c["settings"].update(window={}),
        lambda c: c["environment"].update(torch=2),
    ]
    for change in changes:
        other = json.loads(json.dumps(content))
        change(other)
        data = json.dumps(other, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(Corrupt, match="fingerprint of an environment-bound model"):
            lmcodec.decompress(rewritten(frame, data), model=llama)
    for data in (b"", b"{", b"[" * 9000, b"\xff", b"{}" + b" " * 20_000, b" " + found.pack(), b"NaN"):
        with pytest.raises(Corrupt, match="fingerprint"):
            Fingerprint.parse(data)
    for settings in ({"steps": 2}, {"window": 3}, {"dtype": "int8"}, {"threads": 0}, {"cache": "x"}):
        other_settings = replace(found, settings={**found.settings, **settings})
        with pytest.raises(Unsupported):
            lmcodec.decompress(rewritten(frame, other_settings), model=llama)
    with pytest.raises(format_reference.FormatError, match=r"unsupported extensions \[1\]"):
        format_reference.decode(frame)


def test_the_frame_decides_how_the_model_is_run(folders: dict[str, Path]) -> None:
    """Type, window and threads are the writer's; the reader names the weights alone."""
    written = load_model(f"hf:{folders['llama']}", dtype="bfloat16", window=20)
    packed = lmcodec.compress(TEXT, model=written, method="lm+cm", streams=8)
    found = lmcodec.frame_info(packed).environment
    assert found is not None
    assert (found.settings["dtype"], found.settings["window"]) == ("bfloat16", 20)
    assert lmcodec.decompress(packed, model=f"hf:{folders['llama']}") == TEXT
    read = load_model(f"hf:{folders['llama']}")
    assert lmcodec.decompress(packed, model=read) == TEXT


def test_what_cannot_be_loaded_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def changed(name: str, change: Callable[[Path], object]) -> str:
        folder = shutil.copytree(folders["llama"], tmp_path / name)
        change(folder)
        return f"hf:{folder}"

    def without_a_tensor(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.norm.weight")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def with_code(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "code.py").write_text("raise SystemExit('this must not run')", encoding="utf-8")

    cases = [
        (changed("lacking", without_a_tensor), Corrupt, "missing keys: model.norm.weight"),
        (changed("pickled", pickled), Unsupported, "pickled"),
        (changed("code", with_code), ConfigError, "transformers cannot load it"),
        (f"hf:{tmp_path / 'nowhere'}", ConfigError, "no such folder"),
        ("hf:nobody/nothing", ConfigError, "--download fetches it"),
        (f"hf:{folders['llama'] / 'config.json'}", ConfigError, "is a file"),
    ]
    for asked, error, text in cases:
        with pytest.raises(error, match=text) as raised:
            load_model(asked)
        assert "\n" not in str(raised.value)
    with pytest.raises(LimitExceeded, match="raise memory_limit"):
        load_model(f"hf:{folders['llama']}", memory_limit=1000)
    with pytest.raises(ConfigError, match="window is 99"):
        load_model(f"hf:{folders['llama']}", window=99)
    with pytest.raises(ConfigError, match="executor numpy cannot compute it"):
        lmcodec.compress(TEXT, model=f"hf:{folders['llama']}", executor="numpy")
    with pytest.raises(ConfigError, match="is no device of torch"):
        load_model(f"hf:{folders['llama']}", device="tpu")


def test_the_identity_is_the_content(folders: dict[str, Path], tmp_path: Path) -> None:
    """How tensors are spread over files, and where the folder is, does not matter; a weight does."""
    from safetensors.torch import load_file, save_file

    def sha256(folder: Path) -> str:
        model = load_model(f"hf:{folder}")
        assert isinstance(model, hf.HuggingFaceModel)
        return model.fingerprint.model

    copy = shutil.copytree(folders["llama"], tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for name, inside in shards.items():
        save_file({each: tensors[each] for each in inside}, copy / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {each: name for name, inside in shards.items() for each in inside}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert sha256(copy) == sha256(folders["llama"])
    tensors["model.norm.weight"][3] += 1
    changed = shutil.copytree(folders["llama"], tmp_path / "changed")
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    assert sha256(changed) != sha256(folders["llama"])


def lmz(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        front.main([*arguments])
    return int(ended.value.code or 0)


def test_commands(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, packed, model = tmp_path / "t.txt", tmp_path / "t.txt.lmz", f"hf:{folders['llama']}"
    text.write_bytes(TEXT)
    assert lmz("-v", "--model", model, "--method", "lm+cm", "--dtype", "float32", str(text)) == 0
    assert "environment-bound: llama, weights " in capfd.readouterr().err
    assert lmz("-l", str(packed)) == 0
    assert "lm+cm:1,environment-bound" in capfd.readouterr().out
    assert lmz("-lv", str(packed)) == 0
    assert "environment-bound: llama" in capfd.readouterr().out
    assert lmz("-l", "--json", str(packed)) == 0
    listed = json.loads(capfd.readouterr().out)[0]["frames"][0]["environment_bound"]
    assert listed["settings"]["dtype"] == "float32"
    assert lmz("-t", str(packed)) == 1
    message = capfd.readouterr().err
    assert "runs in floats" in message
    assert message.count("\n") == 1
    other = tmp_path / "other.lmz"
    other.write_bytes(elsewhere(packed.read_bytes()))
    assert lmz("-t", "--model", model, str(other)) == 1
    message = capfd.readouterr().err
    assert "another environment" in message
    assert "--force tries it" in message
    assert message.count("\n") == 1
    assert lmz("-dcf", "--model", model, str(other)) == 0
    assert capfd.readouterr().out.encode() == TEXT
    assert lmz("--dtype", "float16", "-o", str(tmp_path / "x"), str(text)) == 1
    assert "--dtype is for --model hf:" in capfd.readouterr().err
    assert lmz("--executor", "torch", "--device", "cpu", str(text)) == 1
    assert "exclude each other" in capfd.readouterr().err


# Measuring


def harness_windows(ids: list[int], prefix: int, most: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations as lm-evaluation-harness makes them for a rolling log likelihood."""
    found = []
    first = min(most, len(ids))
    found.append(([prefix, *ids[: first - 1]], ids[:first]))
    done = first
    while done < len(ids):
        n = min(len(ids) - done, most)
        end = done + n
        found.append((ids[end - most - 1 : end - 1], ids[end - n : end]))
        done += n
    return [(a[: len(a) - (len(b) - 1)], b) for a, b in found]


def log_likelihood(network: Any, context: list[int], continuation: list[int]) -> float:
    """In bits, by one pass over both."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([(context + continuation)[:-1]])).logits[0]
    rows = torch.log_softmax(logits.double(), dim=-1)[len(context) - 1 :]
    return float(rows[range(len(continuation)), continuation].sum()) / math.log(2)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_a_direct_computation(kind: str, folders: dict[str, Path]) -> None:
    data = TEXT[:400] + "Größe 東京 <|endoftext|> end".encode()
    model = load_model(f"hf:{folders[kind]}")
    assert isinstance(model, hf.HuggingFaceModel)
    found = model_bits_per_byte(data, model, window=24, stride=8)
    ids = model.ids[model.segment(data)].tolist()
    assert found.n_token == len(ids)
    assert found.nbytes == len(data)
    inputs = [model.begin_id, *ids]
    total = log_likelihood(model.torch_model, inputs[:1], ids[:24])
    for end in range(24, len(ids), 8):
        last = min(end + 8, len(ids))
        total += log_likelihood(model.torch_model, inputs[max(0, last - 24) : end + 1], ids[end:last])
    assert found.bits == pytest.approx(-total, rel=1e-5)
    assert found.bpb == pytest.approx(-total / len(data), rel=1e-5)
    encode, prefix = model.own_tokenizer()
    assert encode is not None
    own = list(encode(data.decode()))
    assert own != ids  # the control token is one token there
    pairs = harness_windows(own, int(prefix or 0), 24)
    expected = sum(log_likelihood(model.torch_model, *pair) for pair in pairs)
    assert found.harness_bits == pytest.approx(-expected, rel=1e-5)
    assert found.harness_n_token == len(own)


def test_windows_predict_every_token_once() -> None:
    for n, window, stride in ((0, 4, 2), (1, 4, 2), (4, 4, 4), (9, 4, 3), (30, 7, 7), (30, 7, 1)):
        done = 0
        for a, b, k in windows(n, window, stride):
            assert b - a <= window
            assert b - k == done
            assert b - k - a >= (window - stride if done + k == b and done >= window and b < n else 0)
            done = b
        assert done == n


def test_texts_that_are_no_text(folders: dict[str, Path]) -> None:
    meter = CausalMeter(f"hf:{folders['holes']}", window=16)
    assert (meter.window, meter.stride) == (16, 8)
    found = meter.measure(ODD)
    assert found.harness_bits is None
    assert found.n_lacking > 50
    assert found.bits > 24 * found.n_lacking
    empty = meter.measure(b"")
    assert (empty.nbytes, empty.bits, empty.harness_bits) == (0, 0, 0)
    both = found + found
    assert (both.nbytes, both.bits, both.harness_bpb) == (2 * len(ODD), 2 * found.bits, None)
    for wrong in ({"window": 0}, {"window": POSITIONS + 1}, {"window": 8, "stride": 9}):
        with pytest.raises(ConfigError, match="expected 1 to"):
            CausalMeter(f"hf:{folders['llama']}", **wrong)
    with pytest.raises(LmcodecError, match="no package registers"):
        CausalMeter("small")


def test_the_command_measures(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["measure", *arguments])
        return capfd.readouterr().out

    text = tmp_path / "t.txt"
    text.write_bytes(TEXT[:300] + b"\0" + TEXT[300:500])
    options = ("--model", f"hf:{folders['llama']}", "--window", "16", "--stride", "4", str(text))
    report = json.loads(run("--json", "--split-documents", *options))
    documents = report["files"][0]["documents"]
    assert [each["nbytes"] for each in documents] == [300, 200]
    assert report["total"]["bits"] == pytest.approx(sum(each["bits"] for each in documents), abs=0.01)
    settings = report["settings"]
    assert (settings["window"], settings["stride"], settings["dtype"]) == (16, 4, "float32")
    assert settings["harness_begin_id"] == 0
    assert "windows of 16 tokens, 4 new ones each" in report["context"]
    rows = list(csv.DictReader(io.StringIO(run("--csv", *options))))
    assert [row["kind"] for row in rows] == ["file", "total"]
    assert rows[0]["stride"] == "4"
    table = run(*options)
    assert "Harness" in table.splitlines()[0]
    assert "each document begins with token" in table
    assert run("--window", "4", str(text)) == ""
    records = tmp_path / "t.jsonl"
    texts = ["", TEXT[:300].decode(), None, TEXT[300:500].decode()]
    records.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts), "utf-8")
    by_row = json.loads(run("--json", "--field", "text", *options[:-1], str(records)))
    rows_measured = [(each["row"], each["bits"]) for each in by_row["files"][0]["documents"]]
    assert rows_measured == [(2, documents[0]["bits"]), (4, documents[1]["bits"])]
