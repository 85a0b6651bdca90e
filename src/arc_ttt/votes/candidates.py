"""Candidates, scores and programs: what votes are counted over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arc_ttt.tasks.grids import Grid, grid_bytes

SEARCHED = -1
"""The view of a candidate that a search found: a less likely answer under some view."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One answer to one test input, already undone.

    Args:
        group: name of the symmetry it was read under.
        nll: its negative log-likelihood under that view, in nats, lower is better.
        stage: "base" before test-time training, "ttt" after it.
        view: number of the view whose greedy answer it is, 0 for the first one, the identity; SEARCHED for a less
            likely answer under some view; None where it is not known.
    """

    task_id: str
    test_index: int
    grid: Grid
    group: str
    nll: float
    stage: str
    view: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCandidate:
    """A distinct answer with its negative log-likelihood under each scoring view, in nats; the views are the same for
    all candidates of a test input, so sums compare."""

    task_id: str
    test_index: int
    grid: Grid
    nll_by_view: tuple[float, ...]
    stage: str


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One synthesized answer to one test input.

    Args:
        text: the program, for a person.
        confidence: calibrated chance of being right, 0 to 1.
        fits_all: it reproduces all demonstrations.
    """

    test_index: int
    grid: Grid
    text: str
    confidence: float
    fits_all: bool

    @property
    def sure(self) -> bool:
        return self.fits_all and self.confidence >= SURE


SURE = 0.85
"""Confidence from which a program is taken for right: no more effort goes into its task before others."""
TAKES = 0.17
"""Confidence from which a program takes an attempt.

Both are read off one rising (isotonic) curve of the share of best programs that are right: 336 answers to the training
tasks, each judged by weights fitted without the task's family, and 162 answers to tasks of the ReARC generators, judged
by the weights before these. The curve passes 3/4 at 0.84 and 1/3, a strict bar for what a vote's second grid is worth,
at 0.165; 19 of the 54 programs from there to 0.4 were right. No evaluation task entered, but both bars were chosen by
people who had seen the public evaluation's curve; earlier values, 0.75 and 0.15, had been set with it in sight.
"""


def strength(counts: Mapping[bytes, float]) -> float:
    """Share of the answers to one test input, by number or weight, that agree on the foremost grid, 0 to 1."""
    total = sum(counts.values())
    return max(counts.values()) / total if total > 0 else 0.0


def mean_nll(nlls: Sequence[float]) -> float:
    """Mean of `nlls`; infinite where there is none or one is NaN, which would compare with nothing."""
    mean = sum(nlls) / len(nlls) if nlls else math.inf
    return math.inf if math.isnan(mean) else mean


def distinct(grids: Sequence[Grid]) -> dict[bytes, Grid]:
    """Grids by identity, in the order first seen."""
    found: dict[bytes, Grid] = {}
    for grid in grids:
        found.setdefault(grid_bytes(grid), grid)
    return found


def flattened(candidates: Sequence[Candidate]) -> list[Grid]:
    """Most frequent first over all views; ties by frequency under the identity, then by mean nll, then first seen."""
    grids = distinct([c.grid for c in candidates])
    counts = Counter(grid_bytes(c.grid) for c in candidates)
    identity = Counter(grid_bytes(c.grid) for c in candidates if c.group == "identity")
    nlls: dict[bytes, list[float]] = {}
    for candidate in candidates:
        nlls.setdefault(grid_bytes(candidate.grid), []).append(candidate.nll)
    order = sorted(grids, key=lambda g: (-counts[g], -identity[g], mean_nll(nlls[g])))
    return [grids[g] for g in order]
