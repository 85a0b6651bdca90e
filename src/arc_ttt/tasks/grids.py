"""Grid, Example, Task, Solutions; loading of task files with full checks.

A bad task costs only itself: `load_tasks` returns what can be used, what is wrong with the rest, and for every id of
the file how many answers the submission needs.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from arc_ttt.errors import TaskFileError, TaskFormatError

Grid: TypeAlias = NDArray[np.uint8]  # (H, W), 1 <= H, W <= 30, values 0 to 9, read-only
MAX_SIDE = 30
COLOURS = 10
MAX_FILE_BYTES = 512 * 1024 * 1024


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


def test_count(body: object) -> int:
    """How many answers the submission needs for this task, whatever else is wrong with it: at least 1."""
    tests = body.get("test") if isinstance(body, dict) else None
    return max(1, len(tests)) if isinstance(tests, list) else 1


test_count.__test__ = False  # type: ignore[attr-defined]  # the name is the domain's, not pytest's


def load_tasks(path: Path) -> LoadedTasks:
    """Read a challenges file, one task's own file, or a folder of the latter.

    Accepts UTF-8 with or without a byte order mark, UTF-16, UTF-32, and gzip.

    Raises:
        TaskFileError: nothing of it can be read; names the file.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise TaskFileError(f"{path}: the folder has no .json file")
        tasks: list[Task] = []
        problems: list[TaskFormatError] = []
        counts: dict[str, int] = {}
        for file in files:
            try:
                part = load_tasks(file)
            except TaskFileError as error:
                problems.append(TaskFormatError(str(error), task_id=file.stem))
                counts.setdefault(file.stem, 1)
                continue
            fresh = [task for task in part.tasks if task.task_id not in counts]
            if len(fresh) < len(part.tasks):
                problems.append(
                    TaskFormatError(f"{file}: task ids of another file again; the first is kept", task_id=file.stem)
                )
            tasks.extend(fresh)
            problems.extend(part.problems)
            counts = {**part.test_counts, **counts}
        return LoadedTasks(tuple(tasks), tuple(problems), counts)
    document, repeated = read_json(path)
    if is_one_task(document):
        document = {path.name.split(".")[0]: document}
    return parse_tasks(document, source=path.name, repeated=repeated)


def is_one_task(document: object) -> bool:
    """Whether a document is the body of one task and not an object of tasks by id: it has a list of pairs, and nothing
    in it has one itself."""
    if not isinstance(document, dict):
        return False
    bodies = [body for body in document.values() if isinstance(body, dict)]
    return any(isinstance(document.get(part), list) for part in ("train", "test")) and not any(
        isinstance(body.get("train"), list) or isinstance(body.get("test"), list) for body in bodies
    )


def read_json(path: Path) -> tuple[Any, list[str]]:
    """Parse a JSON file without trusting it. Returns the document, and the names that stand twice in it on top.

    Raises:
        TaskFileError: names the file and what is wrong with it.
    """
    repeated: list[str] = []

    def keep_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        names = Counter(name for name, _ in pairs) if len(made) < len(pairs) else {}
        repeated[:] = [name for name, count in names.items() if count > 1]  # the outermost object comes last
        return made

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TaskFileError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                raw = stream.read(MAX_FILE_BYTES)
        if not raw.strip():
            raise TaskFileError(f"{path}: the file is empty")
        text = raw.decode(json.detect_encoding(raw))
        document = json.loads(text, object_pairs_hook=keep_last, parse_int=_bounded_int)
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise TaskFileError(f"{path}: is not text: {error}") from error
    except RecursionError as error:
        raise TaskFileError(f"{path}: is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise TaskFileError(f"{path}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    return document, repeated


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else math.inf


def _short(thing: object) -> str:
    """A bounded, printable form of anything, for error messages."""
    text = ascii(thing) if isinstance(thing, str | int | float | bool | None) else type(thing).__name__
    return text if len(text) <= 60 else text[:57] + "..."
