"""submission.json: complete from the start, filled as answers come, checked, replaced atomically."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arc_ttt.atomic import write_atomically
from arc_ttt.errors import SubmissionError
from arc_ttt.tasks.grids import COLOURS, MAX_SIDE, Grid, LoadedTasks, freeze
from arc_ttt.votes.attempts import attempts, fallback_grids

BALLAST_BYTES = 8 * 1024 * 1024
"""Three times the largest submission."""


class Submission:
    """Two attempts for every test input of a run, and the file that holds them.

    Made complete: each test input starts with its fallback grids. `set` changes one; `write` replaces the file. The
    text of a task is kept until it changes, so that a write costs little however many tasks there are. `take_ballast`
    occupies space beside the file, which a full disk gets back.
    """

    def __init__(self, path: Path, loaded: LoadedTasks) -> None:
        self.path = path
        self.test_counts = dict(loaded.test_counts)
        by_id = {task.task_id: task for task in loaded.tasks}
        self._attempts: dict[str, list[tuple[Grid, Grid]]] = {}
        self._texts: dict[str, str] = {}
        for task_id, count in self.test_counts.items():
            task = by_id.get(task_id)
            pairs = [attempts([], fallback_grids(task, i)) for i in range(count)]
            self._attempts[task_id] = pairs
            self._texts[task_id] = self._text(task_id)

    def set(self, task_id: str, test_index: int, both: tuple[Grid, Grid]) -> None:
        """Change the two attempts of one test input.

        Raises:
            SubmissionError: no such test input, or a grid that breaks a rule; nothing is changed.
        """
        if task_id not in self._attempts or not 0 <= test_index < len(self._attempts[task_id]):
            raise SubmissionError(f"task {task_id!r} has no test input {test_index}")
        for grid in both:
            sides = grid.shape if grid.ndim == 2 and grid.dtype == np.uint8 else (0,)
            if not 1 <= min(sides) <= max(sides) <= MAX_SIDE or grid.max() >= COLOURS:
                raise SubmissionError(f"task {task_id!r}, test input {test_index}: an attempt is no valid grid")
        self._attempts[task_id][test_index] = both
        self._texts[task_id] = self._text(task_id)

    def adopt(self) -> bool:
        """Begin with the answers that the file holds, where it is complete and valid. Returns whether it is."""
        try:
            document = check_file(self.path, self.test_counts)
        except (OSError, SubmissionError):
            return False
        for task_id, answers in document.items():
            names = ("attempt_1", "attempt_2")
            self._attempts[task_id] = [(freeze(np.array(a[names[0]])), freeze(np.array(a[names[1]]))) for a in answers]
            self._texts[task_id] = self._text(task_id)
        return True

    def get(self, task_id: str, test_index: int) -> tuple[Grid, Grid]:
        return self._attempts[task_id][test_index]

    def _text(self, task_id: str) -> str:
        rows = [{"attempt_1": a.tolist(), "attempt_2": b.tolist()} for a, b in self._attempts[task_id]]
        return f"{json.dumps(task_id)}: {json.dumps(rows, separators=(',', ':'))}"

    def write(self) -> None:
        """Replace the file in one step: readers see the old one or the new one, never a part.

        Raises:
            OSError: the disk refused, also after the ballast was given up; the old file is as it was.
        """
        text = "{" + ",\n".join(self._texts.values()) + "}\n"
        try:
            write_atomically(self.path, text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.drop_ballast():
                raise
            write_atomically(self.path, text)

    def verify(self) -> None:
        """Read the file again and check it.

        Raises:
            OSError: it cannot be read.
            SubmissionError: it does not hold what it should.
        """
        check_file(self.path, self.test_counts)

    def take_ballast(self) -> None:
        """Occupy disk space for a last submission; without it where the disk has none."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)

    def drop_ballast(self) -> bool:
        """Give the space back. Returns whether there was any."""
        with contextlib.suppress(OSError):
            self._ballast.unlink()
            return True
        return False

    @property
    def _ballast(self) -> Path:
        return self.path.with_name(".ballast")


def check_file(path: Path, test_counts: Mapping[str, int]) -> dict[str, Any]:
    """Read a submission and check it. Returns it parsed.

    Raises:
        OSError: it cannot be read.
        SubmissionError: it is damaged, or breaks a rule of the competition.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SubmissionError(f"{path} is damaged: {error}") from error
    check_submission(document, test_counts)
    return document


def check_submission(document: Any, test_counts: Mapping[str, int]) -> None:
    """Check a parsed submission against what the competition asks for.

    Raises:
        SubmissionError: names the first rule that is broken, and where.
    """
    if not isinstance(document, dict):
        raise SubmissionError("the submission is not an object of tasks by id")
    missing = [task_id for task_id in test_counts if task_id not in document]
    if missing:
        raise SubmissionError(f"{len(missing)} tasks are missing, the first is {missing[0]!r}")
    for task_id, answers in document.items():
        where = f"task {task_id!r}"
        if task_id not in test_counts:
            raise SubmissionError(f"{where} was not asked for")
        if not isinstance(answers, list) or len(answers) != test_counts[task_id]:
            raise SubmissionError(f"{where} needs a list of {test_counts[task_id]} answers")
        for number, answer in enumerate(answers, 1):
            for attempt in ("attempt_1", "attempt_2"):
                if not isinstance(answer, dict) or not _is_grid(answer.get(attempt)):
                    raise SubmissionError(f"{where}, answer {number}: {attempt} is missing or no valid grid")


def _is_grid(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and 1 <= len(rows) <= MAX_SIDE
        and all(isinstance(row, list) and 1 <= len(row) <= MAX_SIDE and len(row) == len(rows[0]) for row in rows)
        and all(type(cell) is int and 0 <= cell < COLOURS for row in rows for cell in row)
    )
