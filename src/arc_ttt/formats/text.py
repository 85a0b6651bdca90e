"""What the formats of published checkpoints share: one text, cut into tokens by the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_ttt.errors import ModelError
from arc_ttt.formats.format import Format, TextTokenizer, TokenSequence
from arc_ttt.formats.reader import Ids
from arc_ttt.tasks.grids import Example, Grid, freeze


class TextFormat(Format):
    """A format whose text a checkpoint's tokenizer cuts. Positions count from 0.

    Subclasses give `text`, which returns the whole text and the character spans of the output grids.
    """

    def __init__(self, tokenizer: TextTokenizer, *, pad: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.texts = tokenizer.token_texts()
        self.vocabulary = len(self.texts)
        self.pad = pad
        missing = sorted({c for c in self.syntax.write(freeze(np.zeros((2, 2)))) if not self._can_write(c)})
        if missing:
            raise ModelError(f"format {self.name}: the tokenizer has no token for {', '.join(map(repr, missing))}")

    def _can_write(self, character: str) -> bool:
        return any(text is not None and character in text for text in self.texts)

    def text(
        self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the character spans of the demonstrations' outputs and of the answer, closing text included."""
        raise NotImplementedError

    def encode(self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None = None) -> TokenSequence:
        text, spans = self.text(demonstrations, query, answer)
        ids, offsets = self.tokenizer.encode(text)
        starts = np.array([start for start, _ in offsets])
        stops = np.array([stop for _, stop in offsets])
        outputs = []
        for start, stop in spans:
            inside = np.flatnonzero((stops > start) & (starts < stop))
            outputs.append((int(inside[0]), int(inside[-1]) + 1))
        mask = np.zeros(len(ids), dtype=np.bool_)
        if answer is not None:
            mask[slice(*outputs[-1])] = True
        return TokenSequence(np.array(ids, dtype=np.int64), np.arange(len(ids)), tuple(outputs), mask)

    def answer_ids(self, prompt: TokenSequence, answer: Grid) -> tuple[Ids, Ids]:
        ids, _ = self.tokenizer.encode(self.syntax.write(answer))
        start = int(prompt.positions[-1]) + 1
        return np.array(ids, dtype=np.int64), np.arange(start, start + len(ids))


def chat_turn(role: str, content: str) -> str:
    """One finished turn of the Llama 3 chat template."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"


ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
"""Begin of the turn in which the model answers."""
