"""Frames: ways to look at a task before it is solved, and how to undo them on an answer.

A frame renames colours grid by grid, so that the background is 0 and colours that play one part in different
demonstrations get one name (an idea of icecuber's solver).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.images import Cells, Size, colour_counts
from arc_ttt.tasks.grids import COLOURS, Task

Renaming = NDArray[np.int8]  # (10,): new name of each colour, a permutation


@dataclass(frozen=True, slots=True)
class Problem:
    """A task seen through a frame.

    Args:
        inputs: (H, W) each, demonstrations first, then test inputs.
        outputs: of the demonstrations.
        renamings: for each input, what was done to its colours.
        name: the same in words, or nothing if nothing was done.
    """

    inputs: tuple[Cells, ...]
    outputs: tuple[Cells, ...]
    renamings: tuple[Renaming, ...]
    name: str = ""

    def in_words(self, program: str) -> str:
        """A program of this frame, for a reader who sees the task as it is."""
        return f"with {self.name}: {program}" if self.name else program

    def undo(self, cells: NDArray[np.generic], number: int) -> NDArray[np.int8]:
        """Give an output of input `number` its own colours back."""
        back = np.empty(COLOURS, dtype=np.int8)
        back[self.renamings[number]] = np.arange(COLOURS)
        renamed: NDArray[np.int8] = back[cells]
        return renamed

    @property
    def same_size(self) -> bool:
        """Whether every output has the size of its input."""
        return all(i.shape == o.shape for i, o in zip(self.inputs, self.outputs, strict=False))

    def without(self, number: int) -> Problem:
        """The same with demonstration `number` moved behind the others, so that it counts as a test input."""
        count = len(self.outputs)
        order = [n for n in range(count) if n != number] + [number, *range(count, len(self.inputs))]
        return Problem(
            tuple(self.inputs[n] for n in order),
            tuple(self.outputs[n] for n in order[: count - 1]),
            tuple(self.renamings[n] for n in order),
            self.name,
        )


def background(task: Task) -> int:
    """0 where most inputs show it, else the most frequent colour of all inputs."""
    inputs = [*(example.input for example in task.train), *task.tests]
    if sum(bool((grid == 0).any()) for grid in inputs) >= 0.7 * len(inputs):
        return 0
    return int(np.sum([colour_counts(grid) for grid in inputs], axis=0).argmax())


def plain(task: Task) -> Problem:
    """Background becomes 0; all else keeps its colour."""
    renaming = np.arange(COLOURS, dtype=np.int8)
    colour = background(task)
    renaming[[0, colour]] = renaming[[colour, 0]]
    inputs = [*(example.input for example in task.train), *task.tests]
    return Problem(
        tuple(renaming[grid] for grid in inputs),
        tuple(renaming[example.output] for example in task.train),
        (renaming,) * len(inputs),
        f"colours 0 and {colour} exchanged" if colour else "",
    )


def by_rank(task: Task) -> Problem | None:
    """Colours that not all inputs share are renamed by how often they occur; None when that changes nothing."""
    base = plain(task)
    shown = [colour_counts(cells) > 0 for cells in base.inputs]
    kept = np.logical_and.reduce(shown)
    kept |= np.logical_and.reduce([colour_counts(cells) > 0 for cells in base.outputs])
    kept[0] = True
    free = (~kept).nonzero()[0]
    moves = []
    for cells in base.inputs:
        counts = colour_counts(cells)[free]
        moves.append(np.arange(COLOURS, dtype=np.int8))
        moves[-1][free[np.argsort(-counts, kind="stable")]] = free
    if all((move == moves[0]).all() for move in moves):
        return None
    renamings = tuple(move[first] for move, first in zip(moves, base.renamings, strict=True))
    ranks = f"colours {''.join(map(str, free))} of each input renamed in this order, most frequent first"
    return Problem(
        tuple(move[cells] for move, cells in zip(moves, base.inputs, strict=True)),
        tuple(move[cells] for move, cells in zip(moves, base.outputs, strict=False)),
        renamings,
        ", then ".join(filter(None, (base.name, ranks))),
    )


def output_sizes(problem: Problem) -> list[Size] | None:
    """The size of every output, test inputs included, where a simple rule gives it: same, constant or by factors."""
    sizes = [cells.shape for cells in problem.inputs]
    outputs = [cells.shape for cells in problem.outputs]
    if problem.same_size:
        return [(rows, columns) for rows, columns in sizes]
    if len(set(outputs)) == 1 and (len(outputs) > 1 or len(set(sizes)) == 1):
        return [(outputs[0][0], outputs[0][1])] * len(sizes)
    ratios = {(o[0] / s[0], o[1] / s[1]) for o, s in zip(outputs, sizes, strict=False)}
    if len(ratios) == 1:
        tall, wide = ratios.pop()
        found = [(round(rows * tall), round(columns * wide)) for rows, columns in sizes]
        if all(0 < rows <= 30 and 0 < columns <= 30 for rows, columns in found):
            return found
    added = {(o[0] - s[0], o[1] - s[1]) for o, s in zip(outputs, sizes, strict=False)}
    if len(added) == 1 and len(outputs) > 1:
        tall, wide = added.pop()
        found = [(rows + int(tall), columns + int(wide)) for rows, columns in sizes]
        if all(0 < rows <= 30 and 0 < columns <= 30 for rows, columns in found):
            return found
    return None
