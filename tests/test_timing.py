"""Where the time goes: the parts are the whole, and what is coded does not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lm_codec import NOISE, TEXT, _nothing_shipped, model_file  # noqa: F401
from test_token_loop import ROOM, array, new_coder, tokens_of

from lmcodec import _kernel, codec, coder, engine, profile
from lmcodec.codec import Compressor, compress, frame_info
from lmcodec.errors import ConfigError, LmcodecError
from lmcodec.lm import store
from lmcodec.measure import timing
from lmcodec.measure.synthetic import generate
from lmcodec.measure.timing import MAX_NBYTES, STAGES, BlockTiming, time_block

ALWAYS = {"rest"}
CODED = ALWAYS | {"predict", "update", "byte", "coder", "tables"}
NETWORK = {"products", "elements", "frequencies", "sums"}
# What takes time when encoding; decoding takes the same but for the last two.
EXPECTED = {
    "stored": ALWAYS,
    "cm": CODED | {"lookup"},
    "lm": CODED - {"update"} | NETWORK | {"segment"},
    "lm+cm": CODED | NETWORK | {"lookup", "segment"},
}
ONLY_ENCODING = {"segment", "choice"}


def check_parts(found: BlockTiming, also: set[str]) -> None:
    """The stages that should take time do, no other does, and together they are the whole."""
    for way in (found.encode, found.decode):
        expected = EXPECTED[found.method] | also
        expected -= ONLY_ENCODING if way is found.decode else set()
        assert way.stages.keys() == STAGES.keys()
        assert {name for name, seconds in way.stages.items() if seconds} == expected
        # The rest is what the clocks leave, so it shows where one of them counts too much.
        assert min(way.stages.values()) > -0.02 * way.seconds
        assert sum(way.stages.values()) == pytest.approx(way.seconds)
        assert way.plain_seconds > 0


@pytest.mark.parametrize(
    ("method", "level", "also"),
    [
        ("cm", 1, set()),
        ("cm", 2, set()),
        ("lm", 6, set()),
        ("lm+cm", 6, set()),
        ("auto", 6, {"choice"}),
        ("auto", 1, set()),
    ],
)
@pytest.mark.parametrize("streams", [1, 9])
def test_the_parts_are_the_whole(
    method: str,
    level: int,
    also: set[str],
    streams: int,
    model_file: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = codec.LEVELS[level]._replace(stream_nbytes=len(TEXT) // streams, streams=streams)
    monkeypatch.setitem(codec.LEVELS, level, plan)
    monkeypatch.setenv(store.MODEL_VARIABLE, str(model_file))
    found = time_block(TEXT, level, method=method)
    packed = compress(TEXT, level, method=method)
    (block,) = frame_info(packed).blocks or ()
    assert (found.packed_nbytes, found.nbytes) == (len(packed), len(TEXT))
    assert (found.profile, found.streams, found.groups) == (block.profile, block.streams, block.groups)
    check_parts(found, also)
    if found.method == "cm":
        assert (found.n_decision, found.n_token, found.model_id) == (8 * len(TEXT), 0, None)
        assert found.product_rate(found.encode) is None
        return
    model = store.load(store.find(model_file))
    made = engine.LmEngine(model, block.profile or None, block.streams, block.groups)
    assert found.n_token == sum(map(len, made.tokens(TEXT)))
    assert found.n_decision == sum(len(d.bits) for d in made.trace(TEXT))
    assert (found.model_id, found.isa) == (model.model_id, model.isa)
    macs = model.macs_per_token * found.n_token
    assert found.macs_per_byte == macs / len(TEXT)
    assert found.product_rate(found.decode) == macs / found.decode.stages["products"]


def test_what_is_stored_was_tried() -> None:
    found = time_block(NOISE, 1)
    assert (found.method, found.n_decision, found.streams) == ("stored", 0, 0)
    check_parts(found, {"choice"})


def new_block_coder(streams: int, groups: int) -> _kernel.BlockLoop:
    return _kernel.BlockLoop(profile.load(1).kernel, streams, groups)


@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("network", [False, True])
def test_a_clock_changes_nothing_that_is_coded(streams: int, groups: int, network: bool) -> None:
    """A chain of blocks, in pieces, with the clock on for some of them only."""
    texts = [TEXT[:900], NOISE[:200] + TEXT[900:1400], bytes(300)]

    def encode(clocks: list[bool]) -> list[bytes]:
        made = new_coder(streams, groups) if network else new_block_coder(streams, groups)
        payloads = []
        for data, timed in zip(texts, clocks, strict=True):
            made.timed = timed
            assert made.timed == timed
            writer, bits, p16 = coder.Encoder(), np.empty(257, np.uint8), np.empty(257, np.uint16)
            if isinstance(made, _kernel.TokenLoop):
                made.begin_encode(array(data), tokens_of(data, streams), True)
                while n := made.encode(bits, p16):
                    writer.encode(bits[:n], p16[:n])
            else:
                made.begin(len(data))
                while n := made.encode(array(data), bits, p16):
                    writer.encode(bits[:n], p16[:n])
            assert bool(made.times) == bool(made.clock_times) == timed
            payloads.append(writer.finish())
        return payloads

    def decode(payloads: list[bytes], clocks: list[bool]) -> list[bytes]:
        made = new_coder(streams, groups) if network else new_block_coder(streams, groups)
        originals = []
        for data, payload, timed in zip(texts, payloads, clocks, strict=True):
            made.timed = timed
            out = np.zeros(len(data), np.uint8)
            if isinstance(made, _kernel.TokenLoop):
                made.begin_decode(out, array(payload), True)
                while not made.done:
                    assert made.decode(100)
            else:
                made.begin(len(data))
                made.load(array(payload))
                while not made.done:
                    assert made.decode(out, 100)
            originals.append(out.tobytes())
        return originals

    plain = encode([False] * 3)
    for clocks in ([True] * 3, [False, True, False]):
        assert encode(clocks) == plain
        assert decode(plain, clocks) == texts


def test_the_clock_goes_right() -> None:
    """All of a long call is in its phases; they are of the last block only."""
    data = generate("prose", 20_000, 1)
    made = new_block_coder(1, 1)
    made.timed = True
    bits, p16 = np.empty(8 * len(data), np.uint8), np.empty(8 * len(data), np.uint16)
    for nbytes in (len(data), 10_000):
        shares: list[float] = []
        while not any(0.8 < share < 1.02 for share in shares):
            assert len(shares) < 5, shares  # other programs disturb a call now and then, not always
            made.begin(nbytes)
            began = time.perf_counter()
            assert made.encode(array(data[:nbytes]), bits, p16) == 8 * nbytes
            shares.append(sum(made.times.values()) / (time.perf_counter() - began))


def test_decoding_marks_every_phase() -> None:
    made, data = new_coder(2, 2), generate("prose", 3000, 1)
    bits, p16 = np.empty(9 * len(data), np.uint8), np.empty(9 * len(data), np.uint16)
    made.begin_encode(array(data), tokens_of(data, 2))
    n = made.encode(bits, p16)
    writer = coder.Encoder()
    writer.encode(bits[:n], p16[:n])
    made.reset()
    made.timed = True
    made.begin_decode(np.zeros(len(data), np.uint8), array(writer.finish()))
    began = time.perf_counter()
    while not made.done:
        assert made.decode(n)
    spent = time.perf_counter() - began
    phases = [made.times[name] for name in timing._PHASES]
    assert min(phases) > 0
    assert 0.8 * spent < sum(phases) < 1.02 * spent
    network = [made.times[name] for name in ("products", "elements", "frequencies")]
    assert 0.1 * made.times["network"] < sum(network) < 1.02 * made.times["network"]


@pytest.mark.parametrize(("plain", "seconds"), [(20, 10), (9.5, 9.5), (9, 9), (8, 8), (5, 8)])
def test_what_measuring_takes_is_taken_off(plain: float, seconds: float) -> None:
    """As much as the measured run took longer, but no more than the clock can have taken."""
    stages = {"lookup": 3.0, "predict": 2.0, "coder": 1.0}
    tried = timing._Call(b"tried", 1.5, 0, 0, {"lookup": 1.5}, {"lookup": 0.5})
    kept = timing._Call(b"kept", 7.0, 0, 0, stages, {"lookup": 0.5, "predict": 1.0})
    runs = [timing._Run(b"", n, 0.0, [tried, kept]) for n in (10.0, 11.0)]
    way, found = timing._direction([timing._Run(b"", plain, 1.0, [])], runs, b"kept")
    share = (10 - seconds) / 2
    assert found is kept
    assert (way.seconds, way.plain_seconds) == (seconds, plain)
    expected = {"lookup": 3 - 0.5 * share, "predict": 2 - share, "coder": 1, "choice": 1.5 - 0.5 * share}
    assert {k: v for k, v in way.stages.items() if v} == pytest.approx({**expected, "rest": 2.5})


def test_the_clock_knows_what_it_takes() -> None:
    text = generate("prose", 20_000, 1)
    began = time.perf_counter()
    run = timing._run(partial(timing._compress, data=text, level=1, block_nbytes=1 << 16), watched=True)
    spent = time.perf_counter() - began
    assert 0.5 * spent < run.seconds < spent
    (call,) = run.calls
    assert 0 < call.clock_seconds < 0.6 * run.seconds
    assert all(0 < call.clock[name] < call.stages[name] for name in ("lookup", "predict", "update", "byte"))


@pytest.mark.parametrize("network", [False, True])
def test_a_block_under_way_is_not_timed_from_its_middle_on(network: bool) -> None:
    made = new_coder() if network else new_block_coder(1, 1)
    if isinstance(made, _kernel.TokenLoop):
        made.begin_encode(array(TEXT), tokens_of(TEXT, 1))
        made.encode(np.empty(ROOM, np.uint8)[:10], np.empty(ROOM, np.uint16)[:10])
    else:
        made.begin(len(TEXT))
        made.encode(array(TEXT), np.empty(10, np.uint8), np.empty(10, np.uint16))
    with pytest.raises(ValueError, match="a block is under way"):
        made.timed = True
    made.reset()
    made.timed = True


def test_runs_take_turns_and_the_fastest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1, 100))
    ran: list[tuple[str, bool]] = []
    plain_run = timing._run

    def run(work: Any, *, watched: bool) -> timing._Run:
        made = plain_run(work, watched=watched)
        ran.append(("in" if made.result != TEXT else "out", watched))
        made.seconds = 100.0 - next(seconds)
        return made

    monkeypatch.setattr(timing, "_run", run)
    steps: list[tuple[int, int]] = []
    found = time_block(TEXT, 1, runs=2, on_step=lambda *step: steps.append(step))
    assert ran == [("in", False), ("in", True), ("out", False), ("out", True)] * 2
    assert steps == [(n, 8) for n in range(9)]
    assert (found.encode.plain_seconds, found.encode.seconds) == (95, 94)
    assert (found.decode.plain_seconds, found.decode.seconds) == (93, 92)


def test_what_else_is_coded_meanwhile_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are watched that the measured calls make, and no others."""
    made: list[type] = []
    plain = timing._compress

    def and_another(make: Any, **options: Any) -> bytes:
        compressor = Compressor(1)
        compressor.compress(TEXT, Compressor.FLUSH_FRAME)
        made.extend(type(each) for seat in compressor._pipeline._seats for each in seat._engines.values())
        return plain(make, **options)

    monkeypatch.setattr(timing, "_compress", and_another)
    found = time_block(TEXT, 1)
    assert made == [engine.Engine] * 2
    assert found.encode.stages["choice"] == 0


def test_a_build_that_codes_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(timing, "_decompress", lambda *_, **__: b"another")
        with pytest.raises(LmcodecError, match="did not come back from its frame"):
            time_block(TEXT, 1)
    patch = monkeypatch
    patch.setattr(timing._TimedEngine, "encode", lambda *_: b"other words")
    with pytest.raises(LmcodecError, match="compressed otherwise while it was measured"):
        time_block(TEXT, 1)


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", bytes(MAX_NBYTES + 1)):
        with pytest.raises(ValueError, match="a block has 1 to 16777216 bytes"):
            time_block(data, 1)
    with pytest.raises(ValueError, match="runs must be at least 1, not 0"):
        time_block(TEXT, 1, runs=0)
    with pytest.raises(ValueError, match="level"):
        time_block(TEXT, 10)
    monkeypatch.setenv("LMCODEC_CODER", "constriction")
    with pytest.raises(ConfigError, match="unset LMCODEC_CODER"):
        time_block(TEXT, 1)


def cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "lmcodec", "bench", "--profile", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    (made / "a.txt").write_bytes(generate("prose", 3000, 1))
    (made / "empty").write_bytes(b"")
    (made / "noise").write_bytes(NOISE)
    return made


def test_the_command(folder: Path, tmp_path: Path, model_file: Path) -> None:  # noqa: F811
    target = tmp_path / "found.json"
    options = ["--nbytes", 2000, "--levels", "1,6", "--json", target, "--markdown", tmp_path / "found.md"]
    result = cli(folder, *options, LMCODEC_MODEL=str(model_file))
    assert result.returncode == 1  # because of the empty one
    assert result.stderr == "lmcodec: empty: an empty file has nothing to compress\n"
    document = json.loads(target.read_text(encoding="utf-8"))
    assert (document["runs"], "processor" in document["machine"]) == (1, True)
    blocks = document["blocks"]
    names = [(b["file"], b["level"], b["method"]) for b in blocks]
    assert names[:2] == [("a.txt[:2000]", 1, "cm"), ("a.txt[:2000]", 6, names[1][2])]
    assert names[2:] == [("noise[:2000]", 1, "stored"), ("noise[:2000]", 6, "stored")]
    for block in blocks:
        for way in ("encode", "decode"):
            assert sum(block[way]["stages"].values()) == pytest.approx(block[way]["seconds"])
    size = len(compress((folder / "a.txt").read_bytes()[:2000], 1))
    title = f"a.txt[:2000], 2,000 bytes, level 1 (cm, 1 stream): {size:,} bytes"
    lines = result.stdout.splitlines()
    assert lines[0] == title
    assert lines[1].split("  ")[-1] == "share, %"
    table = lines[2 : lines.index("")]
    assert [line[:20].strip() for line in table[:3]] == [
        "context models: look",
        "context models and m",
        "context models and m",
    ]
    # Shares as printed are the parts of a hundred.
    parts = [[float(cell) for cell in line.split()[-4:]] for line in table[:7]]
    for column in (1, 3):
        assert sum(row[column] for row in parts) == pytest.approx(100, abs=0.5)
    assert "A byte takes 8.00 decisions." in table
    assert result.stdout.count("Nothing is coded: no method makes the block smaller.") == 2
    markdown = (tmp_path / "found.md").read_text(encoding="utf-8")
    assert markdown.startswith(
        f"{title}:\n\n|  | in, µs/byte | share, % | out, µs/byte | share, % |\n|---|---:|"
    )
    assert "\n- processor: " in markdown


def test_a_result_on_standard_output_is_alone_there(folder: Path) -> None:
    result = cli(folder / "a.txt", "--levels", 1, "--runs", 2, "--json", "-")
    assert (result.returncode, result.stderr) == (0, "")
    (block,) = json.loads(result.stdout)["blocks"]
    assert (block["file"], block["nbytes"]) == ("a.txt", 3000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name files to profile (-h helps)"),
        (["TEXT", "--peers", "none"], "--peers makes no sense with --profile"),
        (["TEXT", "--command", "a=b {in};b {in}"], "--command makes no sense with --profile"),
        (["TEXT", "--threads", "1"], "--threads makes no sense with --profile"),
        (["TEXT", "--quick"], "--quick makes no sense with --profile"),
        (["TEXT", "--plot", "TEXT.png"], "--plot makes no sense with --profile"),
        (["TEXT", "--levels", "none"], "--levels none: there is nothing to profile"),
        (
            ["TEXT", "--nbytes", "1K,2K"],
            "--nbytes: --profile takes one size, 16M at most, which is one block",
        ),
        (["TEXT", "--nbytes", "17M"], "--nbytes: --profile takes one size, 16M at most, which is one block"),
        (["TEXT", "--json", "-", "--markdown", "-"], "only one result fits on standard output"),
        (["TEXT", "--json", "TEXT/no/x"], "the folder"),
        (["-"], "-: standard input cannot be measured: name a file"),
        (["TEXT.none"], "TEXT.none: No such file or directory"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, folder: Path) -> None:
    text = str(folder / "a.txt")
    result = cli(*(argument.replace("TEXT", text) for argument in arguments))
    assert (result.returncode, result.stdout) == (1, "")
    assert message.replace("TEXT", text) in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr


def test_a_missing_model_is_one_line(folder: Path) -> None:
    result = cli(folder / "a.txt", LMCODEC_MODEL="/none.lmm")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("lmcodec: /none.lmm: neither a shipped model")
    assert result.stderr.count("\n") == 1
