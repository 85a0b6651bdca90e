"""Grid, Example, Task, Solutions, and what loading a file gives.

A bad task costs only itself: `LoadedTasks` holds the tasks that can be used, what is wrong with the rest, and for every
id of the file how many answers the submission needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from arc_ttt.errors import TaskFormatError

Grid: TypeAlias = NDArray[np.uint8]  # (H, W), 1 <= H, W <= 30, values 0 to 9, read-only
MAX_SIDE = 30
COLOURS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One demonstration: an input grid and its output grid."""

    input: Grid
    output: Grid


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One ARC task: demonstrations, and test inputs without their outputs.

    Answers are never stored here. They live in `Solutions`, which only arc_lab loads, so no path exists by which a
    run could train on them.
    """

    task_id: str
    train: tuple[Example, ...]
    tests: tuple[Grid, ...]  # order is the order of the submission


@dataclass(frozen=True, slots=True, eq=False)
class Solutions:
    """Answers of test inputs by task id, in the order of `Task.tests`. Only arc_lab may hold one."""

    by_task: Mapping[str, tuple[Grid, ...]]


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """What a task file held.

    Args:
        tasks: usable tasks in file order.
        problems: one error for each task that is not usable.
        test_counts: for every id of the file, usable or not, the number of answers that the submission must have.
    """

    tasks: tuple[Task, ...]
    problems: tuple[TaskFormatError, ...]
    test_counts: Mapping[str, int]


def freeze(cells: NDArray[Any]) -> Grid:
    """A read-only contiguous uint8 copy of `cells`, (H, W)."""
    grid = np.array(cells, dtype=np.uint8, order="C")
    grid.flags.writeable = False
    return grid


def grid_bytes(grid: Grid) -> bytes:
    """A hashable identity of a grid: its shape and cells."""
    return bytes(grid.shape) + grid.tobytes()


def same_grid(first: Grid, second: Grid) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def test_count(body: object) -> int:
    """How many answers the submission needs for this task, whatever else is wrong with it: at least 1."""
    tests = body.get("test") if isinstance(body, dict) else None
    return max(1, len(tests)) if isinstance(tests, list) else 1


test_count.__test__ = False  # type: ignore[attr-defined]  # the name is the domain's, not pytest's
