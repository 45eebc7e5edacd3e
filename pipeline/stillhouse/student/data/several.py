"""Rows of several datasets as one source, and rows drawn at random from a dataset.

rows = JoinedRows([rollouts, DrawnRows(labelled, 512, seed=[3])])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stillhouse.dataset.reader import RowGroup
from stillhouse.student.data.rows import Example, RowLengths, Rows


class SameRows:
    """The rows of another source; subclasses change a part of them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        return self._rows.groups

    @property
    def unrendered(self) -> int:
        return self._rows.unrendered

    def lengths(self) -> RowLengths:
        """Return the token counts of every row."""
        return self._rows.lengths()

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group."""
        return self._rows.example(group, row)


class DrawnRows(SameRows):
    """Some rows of a source, drawn at random without replacement; all of them if it has no more."""

    def __init__(self, rows: Rows, count: int, seed: Sequence[int]) -> None:
        super().__init__(rows)
        self._count = count
        self._seed = seed

    def lengths(self) -> RowLengths:
        """Return the token counts of every row, and which rows are drawn."""
        found = super().lengths()
        drawn = np.zeros(len(found.prompt), dtype=np.bool_)
        order = np.random.default_rng(self._seed).permutation(len(drawn))
        drawn[order[: self._count]] = True
        return replace(found, drawn=drawn)


class JoinedRows:
    """The rows of several sources, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._places: list[tuple[Rows, int]] = []  # of each row group: its source, and its number there
        groups: list[RowGroup] = []
        first = 0
        for part in parts:
            for number, group in enumerate(part.groups):
                groups.append(replace(group, first=first))
                self._places.append((part, number))
                first += group.rows
        self.groups: tuple[RowGroup, ...] = tuple(groups)

    @property
    def unrendered(self) -> int:
        return sum(part.unrendered for part in self._parts)

    def lengths(self) -> RowLengths:
        """Return the token counts of every row, in the order of the sources."""
        found = [part.lengths() for part in self._parts]
        return RowLengths(
            prompt=np.concatenate([one.prompt for one in found]),
            completion=np.concatenate([one.completion for one in found]),
            cut_off=np.concatenate([one.cut_off for one in found]),
            drawn=np.concatenate([one.is_drawn for one in found]),
        )

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group."""
        part, number = self._places[group]
        return part.example(number, row)
