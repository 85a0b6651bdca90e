"""The format of The ARChitects' checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from arc_ttt.errors import ModelError
from arc_ttt.formats.format import TextTokenizer
from arc_ttt.formats.reader import DIGITS, GridSyntax
from arc_ttt.formats.text import TextFormat
from arc_ttt.tasks.grids import Example, Grid


class ArchitectsFormat(TextFormat):
    """One token a cell, rows ended by a newline, a scratch line of letters first.

    Source: The ARChitects, 2024 winning kernel (prompt texts of its released checkpoints).
    """

    PREFACE = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjklmnpqrstuvwxyz"

    def __init__(self, tokenizer: TextTokenizer, *, pad: int, bos: str, eos: str) -> None:
        if not eos:
            raise ModelError("format architects: the tokenizer has no text for the end of a sequence")
        self.name, self.bos, self.end_token = "architects", bos, eos
        self.syntax = GridSyntax(DIGITS, "", "", "\n", "\n" + eos)
        super().__init__(tokenizer, pad=pad)

    def text(
        self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None
    ) -> tuple[str, list[tuple[int, int]]]:
        text, spans = self.bos + self.PREFACE, []
        pairs: list[tuple[Grid, Grid | None]] = [(e.input, e.output) for e in demonstrations]
        for question, reply in [*pairs, (query, answer)]:
            text += "I" + _rows(question) + "\n+/-=O"
            if reply is not None:
                written = self.syntax.write(reply)
                spans.append((len(text), len(text) + len(written)))
                text += written
        return text, spans


def _rows(grid: Grid) -> str:
    return "\n".join("".join(map(str, row)) for row in grid.tolist())
