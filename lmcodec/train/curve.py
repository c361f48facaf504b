"""The learning curve as a picture; without matplotlib the CSV beside it has to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(
    rows: Sequence[Mapping[str, float | None]], categories: Sequence[str], title: str, path: Path
) -> bool:
    """Draw validation bpb per category against training text seen, to a PNG.

    Args:
        rows: of the curve: `trained_nbytes`, `train`, `valid_CATEGORY` (None where there was no text).
        categories: in order.
        title: of the picture.
        path: of the PNG.

    Returns:
        whether there was a matplotlib to draw with.
    """
    try:
        import matplotlib
    except Exception:  # a run must not end for the lack of a picture, however matplotlib is broken
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")

    def column(key: str) -> list[float]:
        return [math.nan if (value := row[key]) is None else value for row in rows]

    x = [nbytes / 1e6 for nbytes in column("trained_nbytes")]
    seen = []
    for category in categories:
        y = column(f"valid_{category}")
        axes.plot(x, y, marker=".", label=f"{category} {y[-1]:.3f}")
        seen += y[len(y) // 10 :]
    y = column("train")
    axes.plot(x, y, "k:", label=f"training mixture {y[-1]:.3f}")
    axes.set_xlabel("training text, MB")
    axes.set_ylabel("bits per byte, network alone")
    finite = [v for v in seen if math.isfinite(v)]
    if finite:
        axes.set_ylim(bottom=min(0.8, min(finite)), top=max(finite) * 1.05)
    axes.set_title(f"{title}: validation, averaged weights")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
