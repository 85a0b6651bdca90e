"""Formats: a task as token ids, positions and output spans; generated ids back to a grid, or the reason why not.

Every format is a text. `compact` has its own alphabet of one character a token and 2-D positions; `architects`, `marc`
and `barc` are the texts that published checkpoints were trained with, byte for byte, cut into tokens by the
checkpoint's own tokenizer. One automaton over characters tells, for all of them, which tokens may come next in an
answer: rows of one width, at most 30 x 30.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arc_ttt.formats.reader import STATE, AnswerReader, GridSyntax, Ids
from arc_ttt.tasks.grids import COLOURS, MAX_SIDE, Example, Grid, freeze


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """Tokens of a prompt or of a training sequence.

    Args:
        ids, positions: (T,) int64.
        outputs: half-open spans of token indices, one for each output grid that the sequence holds, in order; a span
            ends with the token that closes the grid.
        loss_mask: (T,) bool, True where the token is a target (its prediction, one place earlier, carries loss).
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

    Args:
        vocabulary: number of token ids of the model.
        pad: an id for padding that attention never reads.
    """

    name: str
    syntax: GridSyntax
    pad: int
    vocabulary: int
    texts: list[str | None]
    end_token = ""
    """Special token that an answer ends with, where it ends with one; it must come whole."""

    def __init__(self) -> None:
        self._allowed: dict[STATE, Ids] = {}
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
