"""Pictures of a benchmark: bits per byte against speed, with the Pareto front, and against file size.

Readable without colour: our levels are filled circles on a line, every other family has an open marker of its
own, curves differ in their dashes, and each is named where it is. Needs matplotlib (extra `plot`), loaded
when something is drawn.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmcodec.errors import ConfigError
from lmcodec.measure.bench import Measurement, Report
from lmcodec.measure.picture import require_matplotlib
from lmcodec.measure.visible import title

if TYPE_CHECKING:
    from matplotlib.transforms import Bbox

OWN_FAMILY = "lmcodec"
_OWN_COLOUR = "#b2182b"
# Distinct for eyes that confuse red and green, and of different lightness (after Wong, Nature Methods 2011).
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
_MARKERS = ("s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*", "d")
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)), (0, (8, 3)))
_FONT_SIZE = 8.5
_GAP_PX = 3.0  # between labels, and between labels and markers
_DPI = 130
_OCTAVE = 2.0  # files within a factor of two make one point of the size curves


class Style(NamedTuple):
    marker: str
    colour: str
    dashes: Any
    filled: bool


def styles(report: Report) -> dict[str, Style]:
    """The style of each compressor, by its name: one marker and colour a family, dashes within it."""
    markers, colours, dashes = cycle(_MARKERS), cycle(_COLOURS), cycle(_DASHES)
    families: dict[str, tuple[str, str]] = {}
    made = {}
    for compressor in report.compressors:
        if compressor.family == OWN_FAMILY:
            made[compressor.name] = Style("o", _OWN_COLOUR, "-", True)
            continue
        if compressor.family not in families:
            families[compressor.family] = next(markers), next(colours)
        made[compressor.name] = Style(*families[compressor.family], next(dashes), False)
    return made


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (speed, bpb) than which none is both as fast and as small, fastest last."""
    front: list[tuple[float, float]] = []
    for speed, bpb in sorted(set(points), key=lambda p: (-p[0], p[1])):
        if not front or bpb < front[-1][1]:
            front.append((speed, bpb))
    return front[::-1]


def draw(report: Report, path: Path) -> None:
    """Draw a report to a PNG or SVG file, as the name says: see `render`.

    Raises:
      ConfigError: as `render`.
      OSError: the file cannot be written.
    """
    path.write_bytes(render(report, path.suffix[1:].lower()))


def render(report: Report, form: str, size: tuple[float, float] | None = None) -> bytes:
    """A report as a picture.

    Speeds are those of the largest pieces measured (the whole files, or the largest limit); the curves over
    file size appear where there are files of different sizes.

    Args:
      form: png or svg.
      size: width and height in inches; None for what suits the report. Letters keep their size.

    Raises:
      ConfigError: there is no matplotlib, or no compressor did all files.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    totals = [m for limit in report.limits()[-1:] for m in report.totals(limit)]
    if not totals:
        raise ConfigError("no compressor did all of the files: there is nothing to draw")
    look = styles(report)
    curves = size_curves(report)
    with matplotlib.rc_context({"svg.hashsalt": "lmcodec", "font.size": 10, "axes.titlesize": 11}):
        width, height = size or (13.0, 12.0 if curves else 6.4)
        figure = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2 if curves else 1, 2, hspace=0.24, wspace=0.08)
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        _draw_speeds(left, "Compression", totals, [m.compress_speed for m in totals], look)
        _draw_speeds(right, "Decompression", totals, [m.decompress_speed for m in totals], look)
        left.set_ylabel("bits per byte (less is better)")
        right.tick_params(labelleft=False)
        edges = {"left": 0.78 / width, "right": 1 - 0.2 / width}
        figure.subplots_adjust(**edges, top=1 - 0.93 / height, bottom=0.71 / height)
        figure.suptitle(_title(report, totals), fontsize=11, y=0.985, linespacing=1.5)
        for axes, speeds in (
            (left, [m.compress_speed for m in totals]),
            (right, [m.decompress_speed for m in totals]),
        ):
            points = [(speed, m.bpb) for speed, m in zip(speeds, totals, strict=True)]
            place_labels(axes, points, [m.compressor for m in totals])
        if curves:
            _draw_sizes(figure, figure.add_subplot(grid[1, :]), curves, look)
        out = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # of names that the font lacks
            figure.savefig(out, format=form, dpi=_DPI, metadata={"Date": None} if form == "svg" else None)
        return out.getvalue()


def _title(report: Report, totals: Sequence[Measurement]) -> str:
    first = totals[0]
    begin = "" if first.limit is None else f"first {first.limit:,} bytes of "
    times = "one run" if report.runs == 1 else f"medians of {report.runs} runs"
    threads = "one thread" if report.threads == 1 else f"{report.threads} threads"
    what = f"{begin}{title(first.file, 80)}, {first.nbytes:,} bytes".replace("$", r"\$")
    machine = f"{report.machine.get('processor', '')}, {report.machine.get('date', '')[:10]}"
    return f"{what}\nwhole processes, {threads}, {times}; {machine}"


def _draw_speeds(
    axes: Any, title: str, totals: Sequence[Measurement], speeds: Sequence[float], look: dict[str, Style]
) -> None:
    """Markers, the line through our levels and the front."""
    bpb = [m.bpb for m in totals]
    axes.set_xscale("log")
    low, high = min(speeds), max(speeds)
    span = max(math.log10(high / low), 0.5)
    axes.set_xlim(low / 10 ** (0.1 * span), high * 10 ** (0.16 * span))
    height = max(max(bpb) - min(bpb), 0.05 * max(bpb))
    axes.set_ylim(min(bpb) - 0.1 * height, max(bpb) + 0.1 * height)
    front = pareto(list(zip(speeds, bpb, strict=True)))
    # Whoever is slower than the slowest or larger than the fastest of the front wins nothing.
    axes.plot(
        [front[0][0], *(x for x, _ in front)],
        [front[0][1], *(y for _, y in front)],
        color="#999999",
        linewidth=1,
        linestyle=(0, (2, 2)),
        zorder=1,
        label="best for its speed",
    )
    own = sorted((s, b) for s, b, m in zip(speeds, bpb, totals, strict=True) if look[m.compressor].filled)
    if len(own) > 1:
        axes.plot(*zip(*own, strict=True), color=_OWN_COLOUR, linewidth=1.4, zorder=2)
    for speed, value, m in zip(speeds, bpb, totals, strict=True):
        style = look[m.compressor]
        axes.plot(
            [speed],
            [value],
            linestyle="none",
            marker=style.marker,
            markersize=7,
            markeredgewidth=1.4,
            markeredgecolor=style.colour,
            markerfacecolor=style.colour if style.filled else "white",
            zorder=3,
        )
    axes.set_title(title)
    axes.set_xlabel("MB/s (logarithmic, more is better)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25, which="major")
    handles = [_handle("o", _OWN_COLOUR, True, "lmcodec's levels")] if own else []
    if any(not look[m.compressor].filled for m in totals):
        handles.append(_handle("s", "#555555", False, "others, a marker a family"))
    handles += [line for line in axes.get_lines() if line.get_label() == "best for its speed"]
    axes.legend(handles=handles, loc="upper left", fontsize=8, framealpha=1)


def _handle(marker: str, colour: str, filled: bool, label: str) -> Any:
    from matplotlib.lines import Line2D

    line = "-" if filled else "none"
    face = colour if filled else "white"
    return Line2D([], [], color=colour, linestyle=line, marker=marker, markerfacecolor=face, label=label)


def place_labels(axes: Any, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[Bbox]:
    """Write a text beside each point so that no text covers another, a marker, the legend or the frame.

    Each text takes the first free place of those around its point, near ones first; one that must stand apart
    gets a thin line to its point. Crowded points go first.

    Returns:
      the texts' boxes in pixels, in the order of the points.
    """
    from matplotlib.transforms import Bbox

    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    frame = axes.get_window_extent(renderer)
    pixels = axes.transData.transform(points)
    half = 0.5 * 9 * figure.dpi / 72  # of a marker with its edge
    taken = [Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half) for x, y in pixels]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent(renderer))
    for line in (line for line in axes.get_lines() if line.get_linestyle() == "-"):
        taken += _along(axes.transData.transform(line.get_xydata()))
    crowd = [sum(math.dist(p, q) < 90 for q in pixels) for p in pixels]
    boxes: dict[int, Bbox] = {}
    for i in sorted(range(len(points)), key=lambda i: (-crowd[i], i)):
        probe = axes.text(0, 0, texts[i].replace("$", r"\$"), fontsize=_FONT_SIZE, alpha=0)
        size = probe.get_window_extent(renderer)
        probe.remove()
        x, y = pixels[i]
        box = _free_place(x, y, size.width, size.height, half, frame, taken)
        taken.append(box)
        boxes[i] = box
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        near = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
        inverse = axes.transData.inverted()
        if math.dist(near, (x, y)) > 2.2 * half:
            line = inverse.transform([near, (x, y)])
            axes.plot(line[:, 0], line[:, 1], color="#777777", linewidth=0.6, zorder=2.5)
        axes.text(
            *inverse.transform(middle),
            texts[i].replace("$", r"\$"),
            fontsize=_FONT_SIZE,
            ha="center",
            va="center",
            zorder=4,
        )
    return [boxes[i] for i in range(len(points))]


def _along(pixels: Any) -> list[Bbox]:
    """Small boxes along the line through points, for labels to stay off."""
    from matplotlib.transforms import Bbox

    boxes = []
    for (x0, y0), (x1, y1) in pairwise(pixels):
        n = max(1, int(math.dist((x0, y0), (x1, y1)) / 4))
        boxes += [
            Bbox.from_bounds(x0 + (x1 - x0) * i / n - 1, y0 + (y1 - y0) * i / n - 1, 2, 2) for i in range(n)
        ]
    return boxes


def _free_place(
    x: float, y: float, width: float, height: float, half: float, frame: Bbox, taken: Sequence[Bbox]
) -> Bbox:
    """The nearest free box for a text of a size around a point; the least covered one if none is free."""
    from matplotlib.transforms import Bbox

    best, least = None, math.inf
    for distance in range(0, 240, 6):
        for step in range(16):
            angle = step * math.pi / 8
            # The box touches a circle around the marker, on the side that it lies on.
            reach_x, reach_y = half + _GAP_PX + distance, half + _GAP_PX + distance
            centre_x = x + math.cos(angle) * (reach_x + width / 2)
            centre_y = y + math.sin(angle) * (reach_y + height / 2)
            box = Bbox.from_bounds(centre_x - width / 2, centre_y - height / 2, width, height)
            if (
                box.x0 < frame.x0 + 2
                or box.x1 > frame.x1 - 2
                or box.y0 < frame.y0 + 2
                or box.y1 > frame.y1 - 2
            ):
                continue
            covered = sum(_overlap(box, other) for other in taken)
            if covered == 0:
                return box
            if covered < least:
                best, least = box, covered
    return best if best is not None else Bbox.from_bounds(x, y, width, height)


def _overlap(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share, the gap between them counted to it."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0) + _GAP_PX / 2
    height = min(a.y1, b.y1) - max(a.y0, b.y0) + _GAP_PX / 2
    return max(width, 0.0) * max(height, 0.0)


def size_curves(report: Report) -> dict[str, list[tuple[float, float]]]:
    """Bits per byte over file size, of compressors that did all files: sums over the files of an octave.

    Returns:
      by compressor, (bytes of a file, geometric mean; bpb), ascending; empty if all sizes are of one octave.
    """
    complete = {m.compressor for limit in report.limits() for m in report.totals(limit)}
    octaves = sorted({_octave(m.nbytes) for m in report.measurements})
    if len(octaves) < 2:
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in (c.name for c in report.compressors if c.name in complete):
        for octave in octaves:
            own = [m for m in report.measurements if m.compressor == name and _octave(m.nbytes) == octave]
            if own:
                size = math.exp(sum(math.log(m.nbytes) for m in own) / len(own))
                bpb = 8 * sum(m.packed_nbytes for m in own) / sum(m.nbytes for m in own)
                curves.setdefault(name, []).append((size, bpb))
    return curves


def _octave(nbytes: int) -> int:
    return math.floor(math.log(nbytes, _OCTAVE))


def _draw_sizes(
    figure: Any, axes: Any, curves: dict[str, list[tuple[float, float]]], look: dict[str, Style]
) -> None:
    """Curves, each named at its right end."""
    axes.set_xscale("log", base=2)
    for name, curve in curves.items():
        style = look[name]
        axes.plot(
            *zip(*curve, strict=True),
            color=style.colour,
            linestyle=style.dashes,
            linewidth=1.6 if style.filled else 1.1,
            marker=style.marker,
            markersize=5,
            markerfacecolor=style.colour if style.filled else "white",
            markeredgecolor=style.colour,
        )
    values = [bpb for curve in curves.values() for _, bpb in curve]
    height = max(max(values) - min(values), 0.05 * max(values))
    axes.set_ylim(max(0, min(values) - 0.06 * height), max(values) + 0.06 * height)
    low = min(curve[0][0] for curve in curves.values())
    high = max(curve[-1][0] for curve in curves.values())
    axes.set_xlim(low / 1.1, high * (high / low) ** 0.16)
    axes.set_title("File size (files of sizes within a factor of two are one point)")
    axes.set_xlabel("bytes of a file (logarithmic)")
    axes.set_ylabel("bits per byte")
    axes.xaxis.set_major_formatter(lambda value, _: _size_text(value))
    axes.grid(alpha=0.25)
    _name_ends(figure, axes, curves, look)


def _size_text(nbytes: float) -> str:
    for unit in ("", " KiB", " MiB"):
        if nbytes < 1024:
            return f"{nbytes:g}{unit}"
        nbytes /= 1024
    return f"{nbytes:g} GiB"


def _name_ends(
    figure: Any, axes: Any, curves: dict[str, list[tuple[float, float]]], look: dict[str, Style]
) -> list[float]:
    """Names to the right of the curves' ends, moved apart, with lines to the ends; returns their heights."""
    figure.draw_without_rendering()
    ends = sorted((curve[-1], name) for name, curve in curves.items())
    ends.sort(key=lambda end: end[0][1])
    frame = axes.get_window_extent(figure.canvas.get_renderer())
    line = 1.25 * _FONT_SIZE * figure.dpi / 72
    wanted = [axes.transData.transform(point)[1] for point, _ in ends]
    line = min(line, frame.height / max(len(ends), 1))
    heights = spread(wanted, line, frame.y0 + line / 2, frame.y1 - line / 2)
    inverse = axes.transData.inverted()
    right = max(axes.transData.transform(point)[0] for point, _ in ends) + 28
    for (point, name), height in zip(ends, heights, strict=True):
        x, y = inverse.transform((right, height))
        axes.plot([point[0], x], [point[1], y], color="#999999", linewidth=0.5, zorder=1)
        label = axes.text(x, y, " " + name.replace("$", r"\$"), fontsize=_FONT_SIZE, va="center", ha="left")
        label.set_color(look[name].colour if look[name].filled else "black")
    return heights


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights at least `gap` apart between `low` and `high`, near the wanted ones, which ascend.

    Neighbours that would collide share their mean, as in isotonic regression (pool adjacent violators).
    """
    groups: list[tuple[float, int]] = []  # mean of wanted[i] − i·gap, how many
    for i, height in enumerate(wanted):
        mean, count = height - i * gap, 1
        while groups and groups[-1][0] > mean:
            other, n = groups.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        groups.append((mean, count))
    flat = [mean for mean, count in groups for _ in range(count)]
    top = high - gap * (len(flat) - 1)
    return [max(low, min(value, top)) + i * gap for i, value in enumerate(flat)]
