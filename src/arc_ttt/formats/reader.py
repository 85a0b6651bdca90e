"""Read a grid from generated tokens: the automaton of allowed tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arc_ttt.tasks.grids import MAX_SIDE, Grid, freeze

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GridSyntax:
    """How a format writes a grid: `start`, cells with `cell_gap` between, rows with `row_gap` between, `stop`.

    No cell, gap plus cell, or stop may be a prefix of another, so that reading is unambiguous.
    """

    cells: tuple[str, ...]
    start: str
    cell_gap: str
    row_gap: str
    stop: str

    def write(self, grid: Grid) -> str:
        rows = (self.cell_gap.join(self.cells[c] for c in row) for row in grid.tolist())
        return self.start + self.row_gap.join(rows) + self.stop


DIGITS = tuple("0123456789")
STATE = tuple[str, bool, int, int, int]
"""Pending text, whether this is the first row, cells left in the row, rows left, width."""


@dataclass(slots=True)
class AnswerReader:
    """Reads an answer character by character and knows what may follow.

    limits: most rows and most columns. `done` once `stop` was read; then `grid()` is the answer.
    """

    syntax: GridSyntax
    limits: tuple[int, int] = (MAX_SIDE, MAX_SIDE)
    rows: list[list[int]] = field(default_factory=lambda: [[]])
    pending: str = ""
    done: bool = False

    def options(self) -> dict[str, int]:
        """Texts that may come next, each with the cell it adds, -1 for a row's end plus cell (cell - 100), or stop."""
        syntax, row = self.syntax, self.rows[-1]
        if not row:
            return {syntax.start + cell: value for value, cell in enumerate(syntax.cells)}
        width = len(self.rows[0]) if len(self.rows) > 1 else self.limits[1]
        found: dict[str, int] = {}
        if len(row) < width:
            found.update({syntax.cell_gap + cell: value for value, cell in enumerate(syntax.cells)})
        if len(self.rows) == 1 or len(row) == width:
            found[syntax.stop] = _STOP
            if len(self.rows) < self.limits[0]:
                found.update({syntax.row_gap + cell: _NEW_ROW + value for value, cell in enumerate(syntax.cells)})
        return found

    def push(self, text: str) -> bool:
        """Read `text`. False, and nothing read, if it cannot follow here."""
        rows, pending, done = [list(row) for row in self.rows], self.pending, self.done
        for character in text:
            if self.done or not self._step(character):
                self.rows, self.pending, self.done = rows, pending, done
                return False
        return True

    def _step(self, character: str) -> bool:
        candidate = self.pending + character
        options = self.options()
        value = options.get(candidate)
        if value is None:
            self.pending = candidate
            return any(text.startswith(candidate) for text in options)
        self.pending = ""
        if value == _STOP:
            self.done = True
        elif value >= _NEW_ROW:
            self.rows.append([value - _NEW_ROW])
        else:
            self.rows[-1].append(value)
        return True

    def copy(self) -> AnswerReader:
        return AnswerReader(self.syntax, self.limits, [list(row) for row in self.rows], self.pending, self.done)

    def state(self, longest: int) -> STATE:
        """All that decides which tokens of at most `longest` characters may follow. Counts are capped at `longest`, as
        no token reaches further, so that few states exist and their masks can be kept."""
        row, first = self.rows[-1], len(self.rows) == 1
        width = self.limits[1] if first else len(self.rows[0])
        started = 0 if not row else 1
        return (
            self.pending,
            first,
            min(width - len(row), longest),
            started * (1 + min(self.limits[0] - len(self.rows), longest)),
            min(len(self.rows[0]), longest),
        )

    def grid(self) -> Grid | None:
        """The answer, (H, W), or None before `stop` was read."""
        return freeze(np.array(self.rows)) if self.done else None


_STOP = -1
_NEW_ROW = 100
