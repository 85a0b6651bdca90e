"""The mounted tasks, and a first submission for them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from arc_ttt.atomic import write_atomically
from arc_ttt.bootstrap.environment import starts
from arc_ttt.bootstrap.mounts import CHALLENGES, Mounts
from arc_ttt.errors import TaskFileError
from arc_ttt.kaggle.record import Setup
from arc_ttt.run.submission import Submission
from arc_ttt.tasks.files import load_tasks, read_json
from arc_ttt.tasks.grids import LoadedTasks


def load_mounted(mounts: Mounts, setup: Setup) -> LoadedTasks:
    """Tasks of the competition's file. If it cannot be read, the ids of the sample submission still get an answer."""
    try:
        if mounts.challenges is None:
            raise TaskFileError(f"no {CHALLENGES} among the inputs")
        loaded = load_tasks(mounts.challenges)
        setup.note(f"{len(loaded.test_counts)} tasks of {mounts.challenges}, {len(loaded.problems)} of them unusable")
        if mounts.others:
            left = ", ".join(map(str, mounts.others))
            said = f"there is more than one {CHALLENGES}: {mounts.challenges} is used, not {left}"
            kinds = ["competitions" in path.parts for path in (mounts.challenges, *mounts.others)]
            (setup.note if kinds[0] and not any(kinds[1:]) else setup.fall_back)(said)
        for problem in loaded.problems[:20]:
            setup.note(f"  {problem}")
        return loaded
    except TaskFileError as error:
        setup.fall_back(str(error))
    counts: dict[str, int] = {}
    if mounts.sample is not None:
        with contextlib.suppress(TaskFileError):
            document, _ = read_json(mounts.sample)
            if isinstance(document, dict):
                counts = {i: max(1, len(a)) if isinstance(a, list) else 1 for i, a in document.items()}
    return LoadedTasks((), (), counts)


def write_first(path: Path, loaded: LoadedTasks, setup: Setup) -> bool:
    """Write a complete submission before anything else; on a disk with little room one of the smallest answers. One
    that a killed run of the same tasks has left stays.

    Returns whether there is one. Without it there is nothing that a run could be for.
    """
    submission = Submission(path, loaded)
    if starts() > 1 and loaded.test_counts and submission.adopt():
        setup.note("submission.json is complete, by the run that was ended")
        return True
    try:
        submission.write()
        if loaded.test_counts:
            setup.note("submission.json is complete")
        else:
            setup.fall_back("no task is known; submission.json is empty")
        return True
    except OSError as error:
        why = error.strerror or str(error)
    answer = {"attempt_1": [[0]], "attempt_2": [[0]]}
    smallest = {task_id: [answer] * count for task_id, count in loaded.test_counts.items()}
    try:
        write_atomically(path, json.dumps(smallest, separators=(",", ":")))
        setup.fall_back(f"{path.parent}: {why}; submission.json holds only the smallest answers so far")
        return True
    except OSError as error:
        setup.fall_back(f"no submission can be written into {path.parent}: {error.strerror or error}")
        return False
