"""Pictures of a benchmark: nothing covers anything, the front is the front."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmcodec.errors import ConfigError
from lmcodec.measure import bench, plots
from lmcodec.measure.peers import Command, Compressor

pytest.importorskip("matplotlib")


def report_of(n: int, seed: int, sizes: tuple[int, ...] = (100_000,)) -> bench.Report:
    """n compressors, three of them ours, in two clusters."""
    rng = random.Random(seed)
    command = Command(("x", "{in}", "{out}"))
    report = bench.Report([], 1, 1, {"processor": "P$rocessor", "date": "2026-01-01"})
    for i in range(n):
        family = "lmcodec" if i < 3 else f"family {i % 15}"
        name = f"lmz -{i}" if i < 3 else f"compressor-{i} -$9"
        report.compressors.append(Compressor(name, family, command, command))
        bpb, speed = rng.choice((1.5, 2.2)) + rng.gauss(0, 0.05), 10 ** rng.gauss(rng.choice((-1, 1)), 0.4)
        for size in sizes:
            packed = int(size * bpb / 8 * (1 + 30 / size**0.5))
            seconds = size / 1e6 / speed
            report.measurements.append(
                bench.Measurement(name, f"f{size}", None, size, packed, seconds, seconds / 3, None, 1)
            )
    return report


@pytest.mark.parametrize("n", [1, 5, 20])
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_cover_nothing(n: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[Any, list[Any]]] = []
    place = plots.place_labels

    def record(axes: Any, points: Any, texts: Any) -> Any:
        boxes = place(axes, points, texts)
        placed.append((axes, [*boxes, *map(list, axes.transData.transform(points))]))
        return boxes

    monkeypatch.setattr(plots, "place_labels", record)
    plots.draw(report_of(n, seed), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(placed) == 2
    for axes, found in placed:
        boxes, markers = found[:n], found[n:]
        frame, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
        for i, box in enumerate(boxes):
            assert frame.x0 < box.x0 < box.x1 < frame.x1
            assert frame.y0 < box.y0 < box.y1 < frame.y1
            assert not box.overlaps(legend)
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert not any(box.contains(*marker) for marker in markers)


def test_pictures_are_reproducible(tmp_path: Path) -> None:
    report = report_of(8, 3, (1000, 30_000, 1_000_000))
    for name in ("a.svg", "b.svg"):
        plots.draw(report, tmp_path / name)
    first = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert first == (tmp_path / "b.svg").read_text(encoding="utf-8")
    # Both speeds and the sizes; text stays text or becomes paths, titles are comments then.
    for text in ("Compression", "Decompression", "File size", "lmz -1"):
        assert text in first
    assert first.count("compressor-5") >= 3


def test_curves_over_size() -> None:
    curves = plots.size_curves(report_of(4, 1, (1000, 1020, 5000)))
    assert curves.keys() == {"lmz -0", "lmz -1", "lmz -2", "compressor-3 -$9"}
    (first, second) = curves["lmz -0"]
    assert 1000 < first[0] < 1020
    assert round(second[0]) == 5000
    assert first[1] > second[1]
    assert plots.size_curves(report_of(4, 1, (1024, 1025, 2047))) == {}
    incomplete = report_of(4, 1, (1000, 5000))
    del incomplete.measurements[0]
    assert "lmz -0" not in plots.size_curves(incomplete)


def test_the_front() -> None:
    rng = random.Random(4)
    for _ in range(50):
        points = [
            (float(rng.randrange(1, 8)), float(rng.randrange(1, 8))) for _ in range(rng.randrange(1, 12))
        ]
        wanted = {
            (s, b) for s, b in points if not any((t >= s and c <= b) and (t, c) != (s, b) for t, c in points)
        }
        front = plots.pareto(points)
        assert set(front) == wanted
        assert front == sorted(front)


def test_names_at_the_ends_stand_apart() -> None:
    rng = random.Random(5)
    for n in (1, 2, 20):
        for _ in range(20):
            wanted = sorted(rng.uniform(0, 100) for _ in range(n))
            heights = plots.spread(wanted, 4.0, 2.0, 98.0)
            assert all(b - a > 4.0 - 1e-9 for a, b in pairwise(heights))
            assert heights[0] >= 2.0
            assert heights[-1] <= 98.0 + 1e-9
    assert plots.spread([10.0, 50.0, 90.0], 4.0, 2.0, 98.0) == [10.0, 50.0, 90.0]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmcodec\[plot\]'"):
        plots.draw(report_of(3, 1), tmp_path / "p.png")


def test_nothing_to_draw(tmp_path: Path) -> None:
    empty = bench.Report([], 1, 1, {})
    with pytest.raises(ConfigError, match="nothing to draw"):
        plots.draw(empty, tmp_path / "p.png")
