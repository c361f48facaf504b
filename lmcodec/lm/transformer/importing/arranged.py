"""A source whose tensors have the names, the order of rows and the values that `build` asks for.

Families name the same parts differently, store several as one tensor, put a matrix on its side, or multiply
what a matrix gives. All of it is undone here, tensor by tensor, with at most one binary32 addition and one
multiplication a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lmcodec.errors import Corrupt
from lmcodec.lm.transformer.importing.source import Source
from lmcodec.lm.transformer.importing.tokens import Tokens


@dataclass(frozen=True)
class View:
    """What a tensor is made of.

    Attributes:
        names: of the source's tensor: the first that is there.
        rows: which of its rows, in which order; None for all. Of a matrix on its side, which columns.
        n_row: how many rows the source's tensor has if it is not all that is wanted; None for as many.
        on_its_side: the matrix is stored with inputs as rows.
        plus: what is added to each value.
        times: what each value, or each row, is then multiplied by, as binary32.
    """

    names: tuple[str, ...]
    rows: np.ndarray | None = None
    n_row: int | None = None
    on_its_side: bool = False
    plus: float = 0.0
    times: float | np.ndarray = 1.0


class Arranged(Source):
    """Another source by its views; a name that has none stands for itself."""

    def __init__(self, source: Source, views: Mapping[str, View]) -> None:
        self._source = source
        self._views = dict(views)
        self._upright: dict[str, np.ndarray] = {}
        self.where, self.config, self.card = source.where, source.config, source.card

    def sha256(self) -> str:
        """As `Source.sha256`."""
        return self._source.sha256()

    @property
    def names(self) -> set[str]:
        """As `Source.names`."""
        found = self._source.names
        viewed = {name for name, view in self._views.items() if not found.isdisjoint(view.names)}
        return (found - set(self._views)) | viewed

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Source.shape`."""
        view = self._view(name)
        shape = self._source.shape(self._name(view))
        if view.on_its_side:
            shape = shape[::-1]
        if view.n_row is not None and shape[:1] != (view.n_row,):
            raise Corrupt(f"tensor {self._name(view)} has the shape {shape}, expected {view.n_row} outputs")
        return shape if view.rows is None else (len(view.rows), *shape[1:])

    def read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """As `Source.read`."""
        view = self._view(name)
        own = self._name(view)
        if view.rows is not None:
            wanted: slice | np.ndarray = view.rows[rows]
        else:
            wanted = rows
        if view.on_its_side:
            # Asked for in parts; one is kept, which another thread's may replace at any time.
            matrix = self._upright.get(own)
            if matrix is None:
                matrix = np.ascontiguousarray(self._source.read(own, slice(None)).T)
                self._upright = {own: matrix}
            values = matrix[wanted]
        else:
            values = self._source.read(own, wanted)
        if view.plus:
            values = values + np.float32(view.plus)
        if isinstance(view.times, np.ndarray):
            times = view.times[rows].astype(np.float32)
            return values * (times[:, None] if values.ndim == 2 else times)
        return values if view.times == 1 else values * np.float32(view.times)

    def tokens(self) -> Tokens:
        """As `Source.tokens`."""
        return self._source.tokens()

    def _view(self, name: str) -> View:
        return self._views.get(name, View((name,)))

    def _name(self, view: View) -> str:
        return next((name for name in view.names if name in self._source.names), view.names[0])


def part_of(view: View, rows: np.ndarray, n_row: int) -> View:
    """Some rows of a view's tensor."""
    return replace(view, rows=rows, n_row=n_row)
