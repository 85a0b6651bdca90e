"""The format of BARC's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from arc_ttt.formats.format import TextTokenizer
from arc_ttt.formats.reader import GridSyntax
from arc_ttt.formats.text import ASSISTANT, TextFormat, chat_turn
from arc_ttt.tasks.grids import Example, Grid


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
        text = self.bos + chat_turn("system", self.DATE + self.SYSTEM)
        text += "<|start_header_id|>user<|end_header_id|>\n\n" + self.INTRO
        spans = []
        for number, example in enumerate(demonstrations, 1):
            text += f"Example {number}:\nInput:\n{self._words(example.input)}\n\nOutput:\n"
            output = self._words(example.output)
            spans.append((len(text), len(text) + len(output) + 1))
            text += output + "\n"
        text += f"\n\nHere is the input grid for the test example:\nInput:\n{self._words(query)}{self.REQUEST}"
        text += "<|eot_id|>" + ASSISTANT + self.REPLY
        if answer is not None:
            written = self.syntax.write(answer)
            spans.append((len(text), len(text) + len(written)))
            text += written + "<|eot_id|>"
        return text, spans

    def _words(self, grid: Grid) -> str:
        return "\n".join(" ".join(self.WORDS[cell] for cell in row) for row in grid.tolist())
