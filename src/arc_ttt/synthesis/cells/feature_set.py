"""Features of the cells of a grid: named arrays, one value for each cell."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.images import Cells, colour_counts

Numbers = NDArray[np.int16]

NONE = -1


@dataclass(slots=True)
class Features:
    """Features of one grid, each (H, W)."""

    expressions: dict[str, Cells] = field(default_factory=dict)
    conditions: dict[str, Numbers] = field(default_factory=dict)


def constant(grid: Cells, value: int) -> NDArray[np.int16]:
    return np.full(grid.shape, value, dtype=np.int16)


def colour_everywhere(grid: Cells, colour: int) -> Cells:
    return np.full(grid.shape, colour, dtype=np.int8)


def most_and_least(cells: Cells) -> tuple[int, int]:
    counts = colour_counts(cells)
    counts[0] = 0
    present = counts.nonzero()[0]
    if not len(present):
        return NONE, NONE
    return int(counts.argmax()), int(present[counts[present].argmin()])
