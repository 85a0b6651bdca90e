"""JSON to tasks, with errors that name file, task, pair and row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from arc_ttt.errors import TaskFileError, TaskFormatError
from arc_ttt.tasks.grids import COLOURS, MAX_SIDE, Example, Grid, LoadedTasks, Task, freeze, test_count


def parse_grid(rows: object, *, where: str, task_id: str) -> Grid:
    """Return `rows` as a Grid.

    Args:
        rows: parsed JSON, not trusted.
        where: how to name this grid in an error, e.g. "tasks.json: task 7b5033c1: test 2: input".

    Raises:
        TaskFormatError: names the row (counted from 1) that breaks a rule.
    """

    def bad(what: str) -> TaskFormatError:
        return TaskFormatError(f"{where}: {what}", task_id=task_id)

    if not isinstance(rows, list) or not rows:
        raise bad(f"is not a non-empty list of rows but {_short(rows)}")
    if len(rows) > MAX_SIDE:
        raise bad(f"has {len(rows)} rows; at most {MAX_SIDE} are allowed")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or not row:
            raise bad(f"row {number} is not a non-empty list of cells but {_short(row)}")
        if len(row) > MAX_SIDE:
            raise bad(f"row {number} has {len(row)} cells; at most {MAX_SIDE} are allowed")
        if len(row) != len(rows[0]):
            raise bad(f"row {number} has {len(row)} cells, row 1 has {len(rows[0])}")
        for column, cell in enumerate(row, 1):
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise bad(f"row {number}, cell {column} is {_short(cell)}; a cell is an integer from 0 to 9")
    return freeze(np.array(rows))


def parse_task(task_id: str, body: object, *, where: str) -> Task:
    """Return one task of a challenges file. Answers that the file may hold are not read.

    Raises:
        TaskFormatError: names task, pair (counted from 1) and row.
    """

    def bad(what: str) -> TaskFormatError:
        return TaskFormatError(f"{where}: {what}", task_id=task_id)

    if not isinstance(body, dict):
        raise bad(f'is not an object with "train" and "test" but {_short(body)}')
    pairs = {}
    for part in ("train", "test"):
        if part not in body:
            raise bad(f'has no "{part}"')
        if not isinstance(body[part], list):
            raise bad(f'"{part}" is not a list but {_short(body[part])}')
        for number, pair in enumerate(body[part], 1):
            if not isinstance(pair, dict):
                raise bad(f"{part} {number} is not an object but {_short(pair)}")
            for side in ("input", "output") if part == "train" else ("input",):
                if side not in pair:
                    raise bad(f'{part} {number} has no "{side}"')
                at = f"{where}: {part} {number}: {side}"
                pairs[part, number, side] = parse_grid(pair[side], where=at, task_id=task_id)
    if not body["test"]:
        raise bad('"test" is empty: there is nothing to answer')
    train = tuple(
        Example(pairs["train", n, "input"], pairs["train", n, "output"]) for n in range(1, len(body["train"]) + 1)
    )
    return Task(task_id, train, tuple(pairs["test", n, "input"] for n in range(1, len(body["test"]) + 1)))


def parse_tasks(document: object, *, source: str, repeated: Iterable[str] = ()) -> LoadedTasks:
    """Check a whole challenges document ({task_id: {"train": [...], "test": [...]}}).

    Raises:
        TaskFileError: the document is no object at all.
    """
    if not isinstance(document, dict):
        raise TaskFileError(f"{source}: is not an object of tasks by id but {_short(document)}")
    tasks: list[Task] = []
    problems: list[TaskFormatError] = []
    twice = set(repeated)
    for task_id, body in document.items():
        where = f"{source}: task {_short(task_id).strip(chr(39))}"
        try:
            if task_id in twice:
                raise TaskFormatError(f"{where}: the id stands in the file more than once", task_id=task_id)
            tasks.append(parse_task(task_id, body, where=where))
        except TaskFormatError as error:
            problems.append(error)
    counts = {task_id: test_count(body) for task_id, body in document.items()}
    return LoadedTasks(tuple(tasks), tuple(problems), counts)


def _short(thing: object) -> str:
    """A bounded, printable form of anything, for error messages."""
    text = ascii(thing) if isinstance(thing, str | int | float | bool | None) else type(thing).__name__
    return text if len(text) <= 60 else text[:57] + "..."
