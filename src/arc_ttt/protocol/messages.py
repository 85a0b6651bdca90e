"""The lines between coordinator and workers, checked where they arrive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from arc_ttt.tasks.grids import Grid, Task
from arc_ttt.tasks.parse import parse_grid, parse_task
from arc_ttt.votes.candidates import SEARCHED, Candidate, Program, ScoredCandidate

READ_BYTES = 1 << 16
PARENT = "ARC_TTT_COORDINATOR"  # its process id, in the environment of its workers
EXIT_DEVICE_LOST = 10  # the device's context is broken and only a new process gets another
EXIT_FATAL = 13  # the model cannot be loaded: starting again would not help
REFUSED, STUCK = "not started", "its process does not go away"  # causes that are no fault of what a worker did
EXIT_MEANS = {EXIT_DEVICE_LOST: "device lost", EXIT_FATAL: "could not load"}


def parse_candidate(row: Mapping[str, Any], kind: str, index: int, where: str, task_id: str) -> Candidate:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    view = row.get("view")  # none in the journals of earlier versions
    if view is not None and (type(view) is not int or view < SEARCHED):
        raise ValueError(f"{view!r} is no number of a view")
    return Candidate(task_id, index, grid, str(row["group"]), finite(row["nll"]), kind, view)


def parse_scored(row: Mapping[str, Any], kind: str, index: int, where: str, task_id: str) -> ScoredCandidate:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    nlls = tuple(finite(value) for value in row["nll_by_view"])
    return ScoredCandidate(task_id, index, grid, nlls, str(row.get("stage", kind)))


def parse_program(row: Mapping[str, Any], index: int, where: str, task_id: str) -> Program:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    return Program(index, grid, str(row["text"]), finite(row["confidence"]), bool(row["fits_all"]))


def finite(value: Any) -> float:
    """A number that can be ranked. Raises ValueError for NaN and infinities."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no likelihood")
    return number


def number_of(body: Mapping[str, Any], name: str) -> float:
    """A number of a worker's message; 0 for what is none."""
    value = body.get(name)
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    except OverflowError:  # JSON's whole numbers have no end
        return 0.0


def task_json(task: Task) -> dict[str, Any]:
    return {
        "train": [{"input": e.input.tolist(), "output": e.output.tolist()} for e in task.train],
        "test": [{"input": grid.tolist()} for grid in task.tests],
    }


def job_task(task_id: str, body: dict[str, Any]) -> Task:
    return parse_task(task_id, body, where=f"job {task_id}")


def job_grid(rows: object) -> Grid:
    return parse_grid(rows, where="program", task_id="")


_FOUND = ("type", "test_index", "candidates", "scored", "trained", "programs", "cut")
_ENDED = (
    "outcome",
    "reason",
    "seconds",
    "steps",
    "loss",
    "tokens",
    "train_s",
    "compile_s",
    "train_tokens",
    "degraded",
)


def found_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a line of answers is needed to take it in once more."""
    return {name: body[name] for name in _FOUND if name in body}


def ended_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a line "done" is needed to take it in once more, or tells of the pass."""
    return {name: body[name] for name in _ENDED if name in body}
