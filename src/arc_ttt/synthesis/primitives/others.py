"""Outputs of other demonstrations as pieces: for every grid, the output of a demonstration that is not its own.

That icecuber's solver offers other demonstrations' outputs gave the idea; choosing them by what inputs share is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import Cells, Image, Mask, Size, State, bounding_box, colour_counts, label, majority

Key = tuple[int, ...] | bytes


def other_outputs(problem: Problem, sizes: Sequence[Size]) -> Iterator[tuple[State, str]]:
    """Every way to give each grid another demonstration's output of the size of its own, with a name.

    By a property: the output of the first other demonstration whose input has the same value. By likeness: of the
    other demonstration whose input is most alike, the first of equals. Ways that leave a grid without an output, give
    all grids the same one, or are right for fewer than half of the demonstrations are left out.
    """
    if len(problem.outputs) < 2:
        return
    known = problem.inputs[: len(problem.outputs)]
    for name, key in PROPERTIES.items():
        values = [key(cells) for cells in problem.inputs]
        equal = np.array([[float(one == other) for other in values[: len(known)]] for one in values])
        yield from _laid(problem, givers(problem, sizes, equal, 1.0), f"output with the same {name}")
    for name, likeness in LIKENESSES.items():
        alike = np.array([[likeness(one, other) for other in known] for one in problem.inputs])
        yield from _laid(problem, givers(problem, sizes, alike, -np.inf), f"output of the input most alike in {name}")


def givers(
    problem: Problem, sizes: Sequence[Size], score: NDArray[np.float64], least: float
) -> NDArray[np.intp] | None:
    """For every grid, the other demonstration of the highest score among those whose output has the grid's output size.

    score: (grids, demonstrations), finite. Returns None when a grid has no score of at least `least`.
    """
    allowed = np.array([[output.shape == size for output in problem.outputs] for size in sizes])
    np.fill_diagonal(allowed, False)
    allowed &= score >= least
    if not allowed.any(axis=1).all():
        return None
    chosen: NDArray[np.intp] = np.where(allowed, score, -np.inf).argmax(axis=1)
    return chosen


def _laid(problem: Problem, chosen: NDArray[np.intp] | None, name: str) -> Iterator[tuple[State, str]]:
    if chosen is None:
        return
    shown = [problem.outputs[number] for number in chosen]
    right = sum(bool((one == output).all()) for one, output in zip(shown, problem.outputs, strict=False))
    if 2 * right >= len(problem.outputs) and len({(cells.shape, cells.tobytes()) for cells in shown}) > 1:
        yield tuple(Image(cells, 0, 0) for cells in shown), name


def _shape_of_largest(cells: Cells) -> Key:
    """Rows, columns and cells of the largest object, whatever its colour and place."""
    labels, count = label(cells != 0, eight=True)
    if not count:
        return b""
    mask: Mask = labels == int(np.bincount(labels.ravel())[1:].argmax()) + 1
    top, bottom, left, right = bounding_box(mask) or (0, 0, 0, 0)
    return bytes((bottom - top, right - left)) + mask[top:bottom, left:right].tobytes()


def _symmetries(cells: Cells) -> Key:
    """Whether mirrored columns, mirrored rows, and a half turn leave the non-background cells as they are."""
    full = cells != 0
    return tuple(int((full == other).all()) for other in (full[:, ::-1], full[::-1], full[::-1, ::-1]))


PROPERTIES: dict[str, Callable[[Cells], Key]] = {
    "number of objects": lambda cells: (label(cells != 0, eight=True)[1],),
    "number of cells": lambda cells: (int(np.count_nonzero(cells)),),
    "number of colours": lambda cells: (int((colour_counts(cells)[1:] > 0).sum()),),
    "colours": lambda cells: tuple((colour_counts(cells) > 0).astype(int).tolist()),
    "main colour": lambda cells: (majority(cells),),
    "size": lambda cells: cells.shape,
    "filled cells": lambda cells: bytes(cells.shape) + (cells != 0).tobytes(),
    "shape of the largest object": _shape_of_largest,
    "symmetries": _symmetries,
}


def _equal_cells(one: Cells, other: Cells) -> float:
    """Share of equal cells, -1 for grids of different sizes."""
    return float((one == other).mean()) if one.shape == other.shape else -1.0


def _equal_counts(one: Cells, other: Cells) -> float:
    """How near the counts of all colours are, at most 0."""
    return -float(np.abs(colour_counts(one) - colour_counts(other)).sum())


LIKENESSES: dict[str, Callable[[Cells, Cells], float]] = {
    "its cells": _equal_cells,
    "filled cells": lambda one, other: _equal_cells(one != 0, other != 0),
    "its colour counts": _equal_counts,
}
