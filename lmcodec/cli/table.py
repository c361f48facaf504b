"""Tables in columns, for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lmcodec.cli.progress import printable


def table(rows: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    """Lines of the rows' cells, in columns; those in `right` are aligned to the right.

    Every cell becomes printable.
    """
    rows = [[printable(cell) if cell else "" for cell in row] for row in rows]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [c.rjust(width[i]) if i in right else c.ljust(width[i]) for i, c in enumerate(row)]
        return "  ".join(cells).rstrip() + "\n"

    return "".join(map(line, rows))
