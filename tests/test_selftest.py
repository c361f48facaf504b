"""`lmcodec selftest`: one hash for all that can run a model, and what it says where something is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import order1_kind
import pytest

import lmcodec
from lmcodec import _kernel
from lmcodec.cli import lmz as front
from lmcodec.cli.main import main
from lmcodec.errors import ConfigError
from lmcodec.lm import executor, kinds, store
from lmcodec.measure import selftest

MODEL = Path(__file__).with_name("golden") / "network.lmm"


@pytest.fixture(scope="module")
def tested() -> selftest.SelfTest:
    return selftest.run([MODEL], everything=True)


def test_everything_gives_one_hash(tested: selftest.SelfTest) -> None:
    (found,) = tested.models
    assert tested.agrees
    for what in ("network", "frame"):
        assert len({row.hash for row in found.rows if row.what == what}) == 1
    kernel = [row for row in found.rows if row.executor == executor.KERNEL]
    assert {row.isa for row in kernel} == set(_kernel.network_isas())
    assert {row.batch for row in kernel} >= {1, 4, 5, 8}
    assert {row.threads for row in kernel} == {1, 2}
    run = {row.executor for row in found.rows}
    told = {what for what, _ in tested.left_out}
    assert run | told >= set(executor.EXECUTORS)
    assert all(why for _, why in tested.left_out)
    assert told >= {
        f"kernel, {isa}" for isa in selftest.INSTRUCTION_SETS if isa not in _kernel.network_isas()
    }


def test_hashes_of_shipped_models_are_known() -> None:
    """Whoever makes another model of the same number, or another arithmetic, sees it here."""
    assert set(selftest.KNOWN) == {shipped.model_id for shipped in store.SHIPPED.values()}
    for shipped in store.SHIPPED.values():
        model = store.load(store.find(shipped.name))
        found = selftest._network(model, selftest.TEXT, 3, 2), selftest._frame(model, selftest.TEXT, 2)
        assert found == selftest.KNOWN[shipped.model_id]


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["selftest", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def only_one(monkeypatch: pytest.MonkeyPatch) -> str:
    """One instruction set, no other executor."""
    isa = _kernel.network_isas()[0]
    monkeypatch.setattr(executor, "EXECUTORS", {executor.KERNEL: None})
    monkeypatch.setattr(selftest._kernel, "network_isas", lambda: [isa])
    return isa


def test_the_command(only_one: str, capfd: pytest.CaptureFixture[str], tested: selftest.SelfTest) -> None:
    (found,) = tested.models
    assert run_command("--model", str(MODEL)) == 0
    out = capfd.readouterr().out
    network, frame = found.expected("network"), found.expected("frame")
    assert f"network {found.model_id} {network[:16]}-{frame[:16]}: all 6 agree" in out.splitlines()[-1]
    assert "not run: kernel, " in out
    assert run_command("--model", str(MODEL), "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["agrees"]
    assert report["models"][0]["network"] == network
    assert {row["isa"] for row in report["models"][0]["rows"]} == {only_one}


def test_what_differs_is_an_error(
    only_one: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = kinds.read_header(MODEL).model_id
    monkeypatch.setitem(selftest.KNOWN, model_id, ("0" * 64, "0" * 64))
    assert run_command("--model", str(MODEL)) == 1
    printed = capfd.readouterr()
    assert printed.out.count("WRONG") == 7
    assert "the self-test failed" in printed.err
    monkeypatch.delitem(selftest.KNOWN, model_id)
    real = selftest._network

    def wrong(model: Any, text: bytes, batch: int, threads: int) -> str:
        return "1" * 64 if batch == 5 else real(model, text, batch, threads)

    monkeypatch.setattr(selftest, "_network", wrong)
    assert run_command("--model", str(MODEL), "--json") == 1
    report = json.loads(capfd.readouterr().out)
    assert not report["agrees"]
    assert [row["batch"] for row in report["models"][0]["rows"] if not row["right"]] == [5]


def test_a_kind_without_an_executor_in_the_kernel(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kind has not is left out; what it has agrees."""
    monkeypatch.setitem(kinds.MODULES, "order1", "order1_kind")
    path = tmp_path / "toy.lmm"
    strings = sorted({bytes([b]) for b in range(256)} | {b"the ", b"ing "})
    path.write_bytes(order1_kind.pack(lmcodec.Vocabulary(strings), selftest.TEXT))
    assert run_command("--model", str(path)) == 0
    out = capfd.readouterr().out
    assert "WRONG" not in out
    assert "toy " in out.splitlines()[-1]
    assert "all 3 agree" in out.splitlines()[-1]
    assert out.count("not run: toy: kernel: kind order1 has none there\n") == 1
    if importlib.util.find_spec("torch"):
        assert "not run: toy: torch: executor 'torch': an order-1 model has numpy\n" in out


class Ahead(lmcodec.LanguageModel, lmcodec.Session):
    """Many positions at once give other integers than steps."""

    vocabulary = lmcodec.Vocabulary(bytes([b]) for b in range(256))
    start_tokens = 256, 256
    model_id = "ahead 1"

    def session(self, n_stream: int) -> lmcodec.Session:
        return self

    def begin(self, stream: int, cut: bool) -> None:
        pass

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return np.tile(np.arange(256, dtype=np.int32), (len(tokens), 1))

    def run(self, tokens: np.ndarray) -> np.ndarray:
        return super().run(tokens)[..., ::-1]


def test_steps_are_held_to_many_positions_at_once() -> None:
    found = selftest.run([Ahead()])
    assert not found.agrees
    assert any("step by step" in row.error or "no words" in row.error for row in found.models[0].rows)


def test_models_in_floats_have_no_hash() -> None:
    class Floating(Ahead):
        exact = False
        fingerprint = None

    with pytest.raises(ConfigError, match="runs in floats"):
        selftest.run([Floating()])


def test_torch_writes_the_kernels_frames_from_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--executor torch` on the CPU: the same frame, which either restores."""
    pytest.importorskip("torch")
    text = tmp_path / "t.txt"
    text.write_bytes(b"the fox jumps over the dog and the dog sleeps. " * 9)

    def lmz(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            front.main([*arguments])
        return int(ended.value.code or 0)

    made = {}
    for name in ("kernel", "torch"):
        made[name] = tmp_path / f"{name}.lmz"
        options = ("--model", "small", "--model-only", "--method", "lm", "--executor", name)
        assert lmz(*options, "-o", str(made[name]), str(text)) == 0, capfd.readouterr().err
    assert made["kernel"].read_bytes() == made["torch"].read_bytes()
    assert lmcodec.frame_info(made["torch"].read_bytes()).model_id is not None
    capfd.readouterr()
    assert lmz("-dc", "--executor", "torch", str(made["kernel"])) == 0
    assert capfd.readouterr().out.encode() == text.read_bytes()
