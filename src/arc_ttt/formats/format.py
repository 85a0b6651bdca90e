"""Formats: a task as token ids, positions and output spans; generated ids back to a grid, or the reason why not.

Every format is a text. `compact` has its own alphabet of one character a token and 2-D positions; `architects`, `marc`
and `barc` are the texts that published checkpoints were trained with, byte for byte, cut into tokens by the
checkpoint's own tokenizer. One automaton over characters tells, for all of them, which tokens may come next in an
answer: rows of one width, at most 30 x 30.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arc_ttt.tasks.grids import COLOURS, MAX_SIDE, Example, Grid, freeze

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """Tokens of a prompt or of a training sequence.

    ids, positions: (T,) int64. outputs: half-open spans of token indices, one for each output grid that the sequence
    holds, in order; a span ends with the token that closes the grid. loss_mask: (T,) bool, True where the token is a
    target (its prediction, one place earlier, carries loss).
    """

    ids: Ids
    positions: Ids
    outputs: tuple[tuple[int, int], ...]
    loss_mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer(Protocol):
    """What a format needs of a checkpoint's tokenizer."""

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text`, special tokens recognised and none added, with the character span of each."""

    def token_texts(self) -> list[str | None]:
        """By id, the exact text that the token stands for; None where it is no plain text."""


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
_STATE = tuple[str, bool, int, int, int]  # pending text, first row?, cells left in the row, rows left, width


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

    def state(self, longest: int) -> _STATE:
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


_STOP, _NEW_ROW = -1, 100


@dataclass(slots=True)
class AnswerCursor:
    """Follows one generated answer token by token: what may come next, and where the next token stands.

    Make one with `Format.cursor`. `reason` tells, after a refused token, why there is no grid.
    """

    form: Format
    reader: AnswerReader
    grid_index: int
    next_position: int
    reason: str = "unfinished"

    def allowed(self) -> NDArray[np.bool_]:
        """(V,) bool: the tokens that may follow. All False once the answer is complete."""
        return self.form.allowed(self.reader)

    def push(self, token: int) -> int:
        """Take the next token and return its position. Afterwards `done` or `allowed` tell how to go on."""
        position = self.form.answer_position(self, token)
        text = self.form.texts[token]
        if not text or self.form.spells_end(text) or not self.reader.push(text):
            self.reason = f"token {token} cannot follow in row {len(self.reader.rows)}"
            raise ValueError(self.reason)
        self.next_position = position + 1
        return position

    @property
    def done(self) -> bool:
        return self.reader.done

    def copy(self) -> AnswerCursor:
        return AnswerCursor(self.form, self.reader.copy(), self.grid_index, self.next_position, self.reason)


class Format:
    """A way to write tasks for a model. Subclasses give the texts; this class cuts tokens, spans and masks.

    vocabulary: number of token ids of the model. pad: an id for padding that attention never reads.
    """

    name: str
    syntax: GridSyntax
    pad: int
    vocabulary: int
    texts: list[str | None]
    end_token = ""
    """Special token that an answer ends with, where it ends with one; it must come whole."""

    def __init__(self) -> None:
        self._allowed: dict[_STATE, Ids] = {}
        self._answer_tokens: list[int] | None = None
        self._longest = 0  # characters of the longest answer token

    def encode(self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None = None) -> TokenSequence:
        """Tokens of a prompt (no answer) or of a training sequence (with one).

        The loss mask marks the answer only; `sequences` widens it to the demonstrations' outputs.
        """
        raise NotImplementedError

    def answer_position(self, cursor: AnswerCursor, token: int) -> int:
        """Position of `token` when it comes next; text formats count on."""
        return cursor.next_position

    def cursor(self, prompt: TokenSequence, limits: tuple[int, int] = (MAX_SIDE, MAX_SIDE)) -> AnswerCursor:
        """A cursor for the answer to `prompt`, of at most `limits` rows and columns."""
        return AnswerCursor(self, AnswerReader(self.syntax, limits), 0, int(prompt.positions[-1]) + 1)

    def allowed(self, reader: AnswerReader) -> NDArray[np.bool_]:
        """(V,) bool: the tokens whose whole text may follow. Kept by state, so it costs a look-up."""
        mask = np.zeros(self.vocabulary, dtype=np.bool_)
        if reader.done:
            return mask
        tokens = self.answer_tokens()
        state = reader.state(self._longest)
        if state not in self._allowed:
            fitting = [token for token in tokens if reader.copy().push(self.texts[token] or "")]
            self._allowed[state] = np.array(fitting, dtype=np.int64)
        mask[self._allowed[state]] = True
        return mask

    def answer_tokens(self) -> list[int]:
        """Ids that can stand in an answer: every two neighbouring characters are neighbours in some answer."""
        if self._answer_tokens is None:
            pairs = [freeze(np.array([[a, b], [b, a]])) for a in range(COLOURS) for b in range(COLOURS)]
            answers = {self.syntax.write(pair) for pair in pairs}
            known = {text[i : i + size] for text in answers for size in (1, 2) for i in range(len(text))}
            self._answer_tokens = [
                token
                for token, text in enumerate(self.texts)
                if text and all(text[i : i + 2] in known for i in range(len(text))) and not self.spells_end(text)
            ]
            texts = [self.texts[token] or "" for token in self._answer_tokens]
            self._longest = max((len(text) for text in texts if text not in self.syntax.stop), default=1)
        return self._answer_tokens

    def spells_end(self, text: str) -> bool:
        """Whether plain tokens like this one would spell the end token letter by letter instead of being it."""
        return bool(self.end_token) and self.end_token not in text and bool(set(text) & set(self.end_token))

    def answer_ids(self, prompt: TokenSequence, answer: Grid) -> tuple[Ids, Ids]:
        """Ids and positions, (A,) each, of `answer` after `prompt`, closing token included."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> tuple[Grid | None, str]:
        """The grid that generated `ids` spell, or None and the reason why not."""
        reader = AnswerReader(self.syntax)
        for number, token in enumerate(ids, 1):
            text = self.texts[token] if 0 <= token < len(self.texts) else None
            if text is None or not reader.push(text):
                return None, f"token {number} ({text!r}) cannot follow in row {len(reader.rows)}"
            if reader.done:
                return reader.grid(), ""
        return None, f"ends unfinished in row {len(reader.rows)}"


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
