"""Tables in columns, for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lmcodec.cli.progress import printable, width_of


def table(rows: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    """Lines of the rows' cells, in columns; those in `right` are aligned to the right.

    Every cell becomes printable.
    """
    rows = [[printable(cell) if cell else "" for cell in row] for row in rows]
    width = [max(map(width_of, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = []
        for i, cell in enumerate(row):
            blanks = " " * (width[i] - width_of(cell))
            cells.append(blanks + cell if i in right else cell + blanks)
        return "  ".join(cells).rstrip() + "\n"

    return "".join(map(line, rows))
