"""Ranked grids joined with programs into two attempts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_ttt.tasks.grids import Grid, Task, freeze, same_grid
from arc_ttt.votes.candidates import TAKES, Program, distinct


def merge(neural: Sequence[Grid], vote_strength: float, programs: Sequence[Program], *, rule: str) -> list[Grid]:
    """Grids of one test input, best first, from the ranked vote and the programs (best first).

    Source: `first` is the rule of Li et al. 2024 (BARC), equation 5; `confident` is ours: the best program and the
    vote's first grid share the attempts, in the order of the program's confidence and the share of views that agree.
    """
    vote = list(distinct(neural).values())
    grids = [p.grid for p in programs]
    if rule == "first":
        return list(distinct([*(p.grid for p in programs if p.fits_all), *vote, *grids]).values())
    likely = [p for p in programs if p.fits_all and p.confidence >= TAKES] if rule == "confident" else []
    if not likely:
        return list(distinct([*vote, *grids]).values())
    agreed = bool(vote) and same_grid(vote[0], likely[0].grid)
    program_first = agreed or likely[0].confidence > vote_strength
    leading = [likely[0].grid, *vote[:1]] if program_first else [*vote[:1], likely[0].grid]
    return list(distinct([*leading, *(p.grid for p in likely[1:]), *vote, *grids]).values())


def attempts(ranked: Sequence[Grid], fallbacks: Sequence[Grid]) -> tuple[Grid, Grid]:
    """The first two of `ranked`, filled up from `fallbacks` so that the two differ whenever they can."""
    both = [*ranked[:2], *fallbacks]
    first = both[0]
    second = next((grid for grid in both[1:] if not same_grid(grid, first)), first)
    return first, second


def fallback_grids(task: Task | None, test_index: int) -> list[Grid]:
    """Answers for a test input that nothing was found for: its own input, then outputs of the demonstrations.

    If no demonstration keeps its size, the outputs come first. Black squares come last, and alone for a task that
    cannot be used.
    """
    if task is None:
        return _BLACK
    outputs = [example.output for example in task.train]
    same_size = not outputs or any(e.input.shape == e.output.shape for e in task.train)
    question = task.tests[test_index]
    grids = [question, *outputs] if same_size else [*outputs, question]
    return [*grids, *_BLACK]


_BLACK = [freeze(np.zeros((side, side))) for side in (1, 2)]
