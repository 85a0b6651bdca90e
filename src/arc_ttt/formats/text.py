"""Formats of published checkpoints: architects, marc and barc, byte for byte, cut by the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_ttt.errors import ModelError
from arc_ttt.formats.format import DIGITS, Format, GridSyntax, Ids, TextTokenizer, TokenSequence
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


def _array(grid: Grid) -> str:
    """NumPy's default print of a small integer array: [[0 1] newline, space, [2 3]]."""
    return "[[" + "]\n [".join(" ".join(map(str, row)) for row in grid.tolist()) + "]]"


def _chat(role: str, content: str) -> str:
    """One finished turn of the Llama 3 chat template."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"


_ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"


class MarcFormat(TextFormat):
    """NumPy-printed arrays, demonstrations in the system turn, each output closed by `#`.

    Source: the paper's code with --new_format, as its 8B checkpoint was trained (Llama 3 chat template).
    """

    SYSTEM = (
        "Figure out the underlying transformation in the following examples and apply it to the test case. Here are "
        "some examples from this transformation, your answer must follow the format.\n"
        "The input-output grids are provided as python arrays:\n"
    )

    def __init__(self, tokenizer: TextTokenizer, *, pad: int, bos: str = "<|begin_of_text|>") -> None:
        self.name, self.bos = "marc", bos
        self.syntax = GridSyntax(DIGITS, "[[", " ", "]\n [", "]]#")
        super().__init__(tokenizer, pad=pad)

    def text(
        self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None
    ) -> tuple[str, list[tuple[int, int]]]:
        head = f"{self.bos}<|start_header_id|>system<|end_header_id|>\n\n"
        text, spans = head + self.SYSTEM, []
        for example in demonstrations:
            text += f"{_array(example.input)} ->"
            output = f" {_array(example.output)}#\n"
            spans.append((len(text), len(text) + len(output) - 1))
            text += output
        text = text.rstrip() + "<|eot_id|>" + _chat("user", f"{_array(query)} ->") + _ASSISTANT
        if answer is not None:
            written = self.syntax.write(answer)
            spans.append((len(text), len(text) + len(written)))
            text += written + "<|eot_id|>"
        return text, spans


class BarcFormat(TextFormat):
    """Colour words, one a cell, all demonstrations in the user turn; the answer between fences.

    Source: BARC's transduction checkpoint, in the spelling of the paper's code (a colon behind the example's number,
    one newline between examples, the Llama 3.1 date header).
    """

    WORDS = ("Black", "Blue", "Red", "Green", "Yellow", "Gray", "Pink", "Orange", "Purple", "Brown")
    DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    SYSTEM = (
        "You are a world-class puzzle solver with exceptional pattern recognition skills. Your task is to analyze "
        "puzzles, spot patterns, and provide direct solutions."
    )
    INTRO = (
        "Given input-output grid pairs as reference examples, carefully observe the patterns to predict the output "
        "grid for new test input. Each pair follows the same transformation rule. Grids are 2D arrays represented as "
        "strings, with cells (colors) separated by spaces and rows by newlines.\n"
        "Here are the input and output grids for the reference examples:\n"
    )
    REQUEST = (
        "\n\n\nDirectly provide the output grids corresponding to the given test input grids, based on the patterns "
        "observed in the reference examples."
    )
    REPLY = "The output grid for the test input grid is:\n\n```\n"

    def __init__(self, tokenizer: TextTokenizer, *, pad: int, bos: str = "<|begin_of_text|>") -> None:
        self.name, self.bos = "barc", bos
        self.syntax = GridSyntax(self.WORDS, "", " ", "\n", "\n```")
        super().__init__(tokenizer, pad=pad)

    def text(
        self, demonstrations: Sequence[Example], query: Grid, answer: Grid | None
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self.bos + _chat("system", self.DATE + self.SYSTEM)
        text += "<|start_header_id|>user<|end_header_id|>\n\n" + self.INTRO
        spans = []
        for number, example in enumerate(demonstrations, 1):
            text += f"Example {number}:\nInput:\n{self._words(example.input)}\n\nOutput:\n"
            output = self._words(example.output)
            spans.append((len(text), len(text) + len(output) + 1))
            text += output + "\n"
        text += f"\n\nHere is the input grid for the test example:\nInput:\n{self._words(query)}{self.REQUEST}"
        text += "<|eot_id|>" + _ASSISTANT + self.REPLY
        if answer is not None:
            written = self.syntax.write(answer)
            spans.append((len(text), len(text) + len(written)))
            text += written + "<|eot_id|>"
        return text, spans

    def _words(self, grid: Grid) -> str:
        return "\n".join(" ".join(self.WORDS[cell] for cell in row) for row in grid.tolist())
