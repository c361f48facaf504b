"""Tables in columns, for people, and as JSON, for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

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


def table_as_objects(rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """An object for every row below the first, whose cells, in small letters, are the keys."""
    keys = [cell.lower().replace(" ", "_") for cell in rows[0]]
    return [dict(zip(keys, map(_value, row), strict=True)) for row in rows[1:]]


def _value(cell: str) -> int | float | str | None:
    """The number that a cell shows; None for one that shows nothing."""
    if cell in ("", "-"):
        return None
    plain = cell.replace(",", "")
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+|0|[1-9][0-9]*", cell) and len(plain) < 16:
        return int(plain)
    return float(plain) if re.fullmatch(r"(0|[1-9][0-9,]*)\.[0-9]+", cell) else cell


def json_text(value: Any) -> str:
    """JSON as the commands print it; bytes of a name that are no text are "\\udc80" to "\\udcff"."""
    return json.dumps(value, indent=1)
