"""An explanation as a picture: bits per byte along the text. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import io
import warnings

from lmcodec.errors import ConfigError
from lmcodec.measure import visible
from lmcodec.measure.explain import Explanation

_DPI = 130


def require_matplotlib() -> None:
    """Refuse what cannot be drawn.

    Raises:
        ConfigError: there is no matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'lmcodec[plot]'") from None


def draw(explanation: Explanation, *, coded: bool = True) -> bytes:
    """Bits per byte by position, as a PNG.

    Args:
        explanation: to be drawn.
        coded: over all that was coded; otherwise over what is shown.

    Raises:
        ConfigError: there is no matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    e = explanation
    series, totals = (e.coded_series, e.coded) if coded else (e.shown_series, e.shown)
    figure = Figure(figsize=(10, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Without a colour map of many colours and in two dash patterns: readable in grey, too.
    if totals.end > totals.begin:
        if totals.lm_bpb is not None:
            axes.stairs(
                series.network,
                series.edges,
                baseline=None,
                color="#0b6bcb",
                linestyle=(0, (3, 1.5)),
                linewidth=1,
                label=f"network alone, mean {totals.lm_bpb:.3f}",
            )
        axes.stairs(
            series.coded,
            series.edges,
            baseline=None,
            color="#8a0f57",
            linewidth=1.4,
            label=f"as coded, mean {totals.bpb:.3f}",
        )
        for block in e.blocks[1:] if coded else ():
            axes.axvline(block.offset, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlim(totals.begin, totals.end)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", ncols=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    mean_nbytes = (totals.end - totals.begin) / len(series.coded)
    axes.set_xlabel(f"byte; means of {mean_nbytes:,.0f} bytes")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    title = axes.set_title(visible.title(e.name, 80))
    title.set_parse_math(False)  # a dollar sign is a dollar sign
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of names that the font lacks
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
