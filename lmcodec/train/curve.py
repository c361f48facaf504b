"""The learning curve as a picture; without matplotlib the CSV beside it has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(rows: Sequence[Mapping[str, float]], categories: Sequence[str], title: str, path: Path) -> bool:
    """Draw validation bpb per category against training text seen, to a PNG.

    Args:
        rows: of the curve: `trained_nbytes`, `train`, `valid_CATEGORY`.
        categories: in order.
        title: of the picture.
        path: of the PNG.

    Returns:
        whether there was a matplotlib to draw with.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    x = [row["trained_nbytes"] / 1e6 for row in rows]
    for category in categories:
        y = [row[f"valid_{category}"] for row in rows]
        axes.plot(x, y, marker=".", label=f"{category} {y[-1]:.3f}")
    axes.plot(x, [row["train"] for row in rows], "k:", label=f"training mixture {rows[-1]['train']:.3f}")
    axes.set_xlabel("training text, MB")
    axes.set_ylabel("bits per byte, network alone")
    top = max(row[f"valid_{c}"] for row in rows[-max(1, len(rows) * 9 // 10) :] for c in categories)
    axes.set_ylim(bottom=0.8, top=top * 1.05)
    axes.set_title(f"{title}: validation, averaged weights")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
