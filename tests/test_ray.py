"""Ray Data: a corpus on the workers of a local cluster, workers that die, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_trace import MIXED, ROWS

import lmcodec
from lmcodec.codec import scan
from lmcodec.errors import ConfigError
from lmcodec.measure.bpb import Meter

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.data", reason="ray[data] is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of ray and what it imports

LEVEL = {"level": 1}
TEXTS = [MIXED[: 50 + 13 * i] + b"%d" % i for i in range(40)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine, for all tests of this file."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def run(cluster: Any) -> Any:
    from lmcodec.integrations import ray as integration

    return integration


def corpus(folder: Path, texts: list[bytes]) -> Path:
    for i, text in enumerate(texts):
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i % 3}" / f"{i}.txt").write_bytes(text)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_go_there_and_back(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", [*TEXTS, b""])
    (source / ".hidden").write_bytes(b"no text")
    done = run.compress(str(source), str(tmp_path / "packed"), **LEVEL)
    assert done.failed == []
    originals = {name: data for name, data in files_in(source).items() if name != ".hidden"}
    packed = files_in(tmp_path / "packed")
    assert packed == {f"{name}.lmz": lmcodec.compress(data, 1) for name, data in originals.items()}
    total = done.total()
    assert (total.nbytes, total.read_nbytes) == (sum(map(len, originals.values())),) * 2
    assert total.written_nbytes == sum(map(len, packed.values()))
    assert [f.path for f in done.files] == [str(source / name) for name in sorted(originals)]
    back = run.decompress(str(tmp_path / "packed"), str(tmp_path / "back"), workers=2)
    assert back.failed == []
    assert files_in(tmp_path / "back") == originals
    assert back.total().nbytes == total.nbytes


def test_large_files_are_made_by_several_workers(run: Any, tmp_path: Path) -> None:
    """Parts are frames with an index, one after another in the order of the file."""
    text = (MIXED + ROWS) * (40_000 // len(MIXED + ROWS) + 1)
    source = corpus(tmp_path / "in", [text, b"short"])
    options = {**LEVEL, "block_size": 1024, "part_size": 5000}
    assert run.compress(str(source), str(tmp_path / "packed"), **options).failed == []
    path = tmp_path / "packed" / "0" / "0.txt.lmz"
    expected = [
        lmcodec.compress(text[at : at + 4096], 1, block_size=1024) for at in range(0, len(text), 4096)
    ]
    assert path.read_bytes() == b"".join(expected)
    with path.open("rb") as file:
        frames = scan(file)
    assert [f.original_nbytes for f in frames] == [*(4096 for _ in expected[:-1]), len(text) % 4096 or 4096]
    assert all(f.flags & lmcodec.frame.Flag.INDEX for f in frames[:-1])
    with lmcodec.open(path) as packed:
        packed.seek(20_000)
        assert packed.read(100) == text[20_000:20_100]
    monkey = pytest.MonkeyPatch()
    monkey.setattr(run, "_SCANNED_NBYTES", 100)
    done = run.decompress(str(path), str(tmp_path / "back"), part_size=9000)
    monkey.undo()
    assert done.failed == []
    assert (tmp_path / "back" / "0.txt").read_bytes() == text
    assert files_in(tmp_path / "back").keys() == {"0.txt"}


def test_measuring_adds_up(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", TEXTS[:6])
    done = run.measure(str(source), **LEVEL)
    expected = Meter(1).measure([TEXTS[0]])
    for text in TEXTS[1:6]:
        expected += Meter(1).measure([text])
    total = done.total().measurement
    assert total is not None
    assert (total.nbytes, total.frame_nbytes) == (expected.nbytes, expected.frame_nbytes)
    assert total.mix_bits == pytest.approx(expected.mix_bits)
    assert (
        total.frame_nbytes == run.compress(str(source), str(tmp_path / "p"), **LEVEL).total().written_nbytes
    )


def test_a_worker_that_is_killed_costs_nothing(run: Any, tmp_path: Path) -> None:
    """200 files; the worker that did the 20th is killed: the outputs are all there, and the same."""
    texts = [(MIXED * 30)[: 20_000 + 100 * i] for i in range(200)]
    source = corpus(tmp_path / "in", texts)
    killed: list[str] = []
    seen: list[str] = []

    def kill_once(row: dict[str, Any]) -> None:
        seen.append(row["worker"])
        if len(seen) == 20:
            killed.append(row["worker"])
            os.kill(int(row["worker"].rpartition(":")[2]), signal.SIGKILL)

    done = run.compress(str(source), str(tmp_path / "packed"), workers=2, progress=kill_once, **LEVEL)
    assert done.failed == []
    assert killed
    assert len(seen) == 200
    assert len(set(seen)) == 3  # another one in its place
    expected = {f"{name}.lmz": lmcodec.compress(data, 1) for name, data in files_in(source).items()}
    assert files_in(tmp_path / "packed") == expected
    assert done.total().written_nbytes == sum(map(len, expected.values()))


def test_what_fails_leaves_nothing_and_the_rest_is_done(run: Any, tmp_path: Path) -> None:
    folder = corpus(tmp_path / "packed", [])
    folder.mkdir()
    good = lmcodec.compress(ROWS, 1)
    damaged = bytearray(lmcodec.compress(MIXED * 3, 1, block_size=1024))
    damaged[len(damaged) // 2] ^= 1
    for name, data in {"a": good, "b": bytes(damaged), "c": good[:-9], "d": b"no frame", "e": good}.items():
        (folder / f"{name}.lmz").write_bytes(data)
    (folder / "f.txt").write_bytes(b"is passed over")
    done = run.decompress(str(folder), str(tmp_path / "back"))
    assert [Path(f.path).name for f in done.failed] == ["b.lmz", "c.lmz", "d.lmz"]
    assert all(f.error and "\n" not in f.error and not f.output for f in done.failed)
    assert files_in(tmp_path / "back") == {"a": ROWS, "e": ROWS}
    assert done.total().nbytes == 2 * len(ROWS)


def test_outputs_that_are_there(run: Any, tmp_path: Path) -> None:
    source, packed = corpus(tmp_path / "in", TEXTS[:4]), tmp_path / "packed"
    (packed / "0").mkdir(parents=True)
    (packed / "0" / "0.txt.lmz").write_bytes(b"old")
    with pytest.raises(ConfigError, match="already there"):
        run.compress(str(source), str(packed), **LEVEL)
    assert files_in(packed) == {"0/0.txt.lmz": b"old"}
    done = run.compress(str(source), str(packed), resume=True, **LEVEL)
    assert (done.n_left, len(done.files)) == (1, 3)
    assert files_in(packed)["0/0.txt.lmz"] == b"old"
    done = run.compress(str(source), str(packed), overwrite=True, **LEVEL)
    assert files_in(packed)["0/0.txt.lmz"] == lmcodec.compress(TEXTS[0], 1)
    assert len(files_in(packed)) == 4


def test_what_is_refused_before_anything_is_done(run: Any, tmp_path: Path) -> None:
    source, target = str(corpus(tmp_path / "in", TEXTS[:2])), str(tmp_path / "out")
    for call, kind in (
        (lambda: run.compress(str(tmp_path / "none"), target), ConfigError),
        (lambda: run.compress(source, "memory://out", **LEVEL), ConfigError),
        (lambda: run.compress(source, target, level=10), ValueError),
        (lambda: run.compress(source, target, colour=1), TypeError),
        (lambda: run.compress(source, target, model="none"), lmcodec.ModelNotFound),
        (lambda: run.compress(source, target, workers=0, **LEVEL), ConfigError),
        (lambda: run.decompress(source, target), ConfigError),
    ):
        with pytest.raises(kind):
            call()
    assert not Path(target).exists()


def test_patterns_and_single_files(run: Any, tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", TEXTS[:7])
    done = run.compress(f"{source}/0/*.txt", str(tmp_path / "a"), **LEVEL)
    assert files_in(tmp_path / "a").keys() == {"0.txt.lmz", "3.txt.lmz", "6.txt.lmz"}
    assert done.failed == []
    run.compress(str(source / "1" / "1.txt"), str(tmp_path / "b"), **LEVEL)
    assert files_in(tmp_path / "b").keys() == {"1.txt.lmz"}
    (source / "1" / "0.txt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="in several folders"):
        run.compress(f"{source}/*/*.txt", str(tmp_path / "c"), **LEVEL)


def test_the_command(cluster: Any, tmp_path: Path) -> None:
    """There and back and measured, by a process of its own on the cluster of this file's tests."""
    source = corpus(tmp_path / "in", TEXTS[:3])
    address = cluster.get_runtime_context().gcs_address
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LMCODEC")}

    def command(*arguments: str, status: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "lmcodec", "ray", *arguments, "--address", address],
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=300,
        )
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    packed, back = str(tmp_path / "packed"), str(tmp_path / "back")
    out, _ = command("compress", str(source), packed, "--level", "1", "--workers", "1")
    assert out.splitlines()[0] == f"3 files, {sum(map(len, TEXTS[:3])):,} bytes"
    (tmp_path / "packed" / "bad.lmz").write_bytes(b"no frame")
    out, err = command("decompress", packed, back, "--json", status=1)
    (line,) = [line for line in err.splitlines() if line.startswith("lmcodec: ")]
    assert "bad.lmz: " in line
    assert json.loads(out)["total"]["nbytes"] == sum(map(len, TEXTS[:3]))
    assert files_in(tmp_path / "back") == files_in(source)
    report = tmp_path / "reports" / "report.json"
    command("measure", str(source), str(report), "--level", "1")
    total = json.loads(report.read_text("utf-8"))["total"]["measurement"]
    assert total["frame_nbytes"] == sum(len(lmcodec.compress(text, 1)) for text in TEXTS[:3])


def test_without_ray_a_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from lmcodec.cli.main import main; "
        "main(['ray', 'compress', 'a', 'b', '--level', '1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr == "lmcodec: needs Ray, ray is missing: pip install 'lmcodec[ray]'\n"
