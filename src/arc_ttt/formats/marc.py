"""The format of the paper's checkpoints (MARC)."""

from __future__ import annotations

from collections.abc import Sequence

from arc_ttt.formats.format import TextTokenizer
from arc_ttt.formats.reader import DIGITS, GridSyntax
from arc_ttt.formats.text import ASSISTANT, TextFormat, chat_turn
from arc_ttt.tasks.grids import Example, Grid


def _array(grid: Grid) -> str:
    """NumPy's default print of a small integer array: [[0 1] newline, space, [2 3]]."""
    return "[[" + "]\n [".join(" ".join(map(str, row)) for row in grid.tolist()) + "]]"


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
        text = text.rstrip() + "<|eot_id|>" + chat_turn("user", f"{_array(query)} ->") + ASSISTANT
        if answer is not None:
            written = self.syntax.write(answer)
            spans.append((len(text), len(text) + len(written)))
            text += written + "<|eot_id|>"
        return text, spans
