"""The compact format of the embedded models: one token a cell, two-dimensional positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_ttt.formats.format import AnswerCursor, Format, TokenSequence
from arc_ttt.formats.reader import DIGITS, AnswerReader, GridSyntax, Ids
from arc_ttt.tasks.grids import MAX_SIDE, Example, Grid


class CompactFormat(Format):
    """The embedded model's own format: 16 tokens, one a cell, 2-D positions.

    `IN rows OUT rows` for each pair; NL after a row, END after a grid's last row. A token's position is
    4096 * grid + 64 * row + column, rows and columns counted from 1, grid = 2 * pair + is_output; a marker stands at
    row 1, column 0, and NL and END at column 0 of the next row. Source: ours.
    """

    NL, IN, OUT, END, PAD = 10, 11, 12, 13, 14
    GRID_STEP, ROW_STEP = 4096, 64

    def __init__(self) -> None:
        super().__init__()
        self.name = "compact"
        self.syntax = GridSyntax(DIGITS, "", "", "\n", "#")
        self.vocabulary, self.pad = 16, self.PAD
        self.texts = [*DIGITS, "\n", None, None, "#", None, None]

    def encode(self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None = None) -> TokenSequence:
        ids: list[Ids] = []
        positions: list[Ids] = []
        outputs: list[tuple[int, int]] = []
        grids = [grid for example in demonstrations for grid in (example.input, example.output)]
        grids += [query] if answer is None else [query, answer]
        length = 0
        for index, grid in enumerate(grids):
            tokens, places = self._grid(grid, index)
            ids.append(tokens)
            positions.append(places)
            if index % 2:
                outputs.append((length + 1, length + len(tokens)))
            length += len(tokens)
        if answer is None:
            ids.append(np.array([self.OUT]))
            positions.append(np.array([self.GRID_STEP * len(grids) + self.ROW_STEP]))
            length += 1
        mask = np.zeros(length, dtype=np.bool_)
        if answer is not None:
            mask[slice(*outputs[-1])] = True
        return TokenSequence(np.concatenate(ids), np.concatenate(positions), tuple(outputs), mask)

    def _grid(self, grid: Grid, index: int) -> tuple[Ids, Ids]:
        """Marker, cells and row ends of one grid: ids and positions, (1 + H * (W + 1),) each."""
        height, width = grid.shape
        body = np.full((height, width + 1), self.NL, dtype=np.int64)
        body[:, :width] = grid
        body[-1, width] = self.END
        rows = np.arange(1, height + 1)[:, None]
        places = self.ROW_STEP * rows + np.arange(1, width + 2)
        places[:, width] = self.ROW_STEP * (rows[:, 0] + 1)
        marker = self.OUT if index % 2 else self.IN
        ids = np.concatenate(([marker], body.ravel()))
        return ids, np.concatenate(([self.ROW_STEP], places.ravel())) + self.GRID_STEP * index

    def cursor(self, prompt: TokenSequence, limits: tuple[int, int] = (MAX_SIDE, MAX_SIDE)) -> AnswerCursor:
        place = int(prompt.positions[-1])
        return AnswerCursor(self, AnswerReader(self.syntax, limits), place // self.GRID_STEP, place + 1)

    def answer_position(self, cursor: AnswerCursor, token: int) -> int:
        """A cell stands behind the last one, or first in the row that NL has opened; NL and END open the next row."""
        reader, base = cursor.reader, self.GRID_STEP * cursor.grid_index
        row = len(reader.rows) + (1 if reader.pending else 0)
        if token in (self.NL, self.END):
            return base + self.ROW_STEP * (row + 1)
        column = 1 if reader.pending else len(reader.rows[-1]) + 1
        return base + self.ROW_STEP * row + column

    def answer_ids(self, prompt: TokenSequence, answer: Grid) -> tuple[Ids, Ids]:
        ids, positions = self._grid(answer, int(prompt.positions[-1]) // self.GRID_STEP)
        return ids[1:], positions[1:]
