"""Passes of program synthesis: which task is searched next, with what effort, and how often it is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from arc_ttt.protocol.jobs import SYNTHESIS, Job

MOST_TRIES = 2
"""A search is given up after this many workers died under it."""


class SearchQueue:
    """Tasks that wait for a search, each with the number of its next pass. Later passes take more effort.

    Args:
        passes: how many passes of rising effort there are; 0 for none.
        predict: predicted seconds of a search, by the number of its pass.
        share: part of the budget that searches may take before trainings.
    """

    def __init__(
        self, passes: int = 0, predict: Callable[[int], float] = lambda number: 1.0, share: float = 1.0
    ) -> None:
        self.passes, self.predict, self.share = passes, predict, share
        self._waiting: list[str] = []
        self._number: dict[str, int] = {}
        self._tries: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def fill(self, task_ids: Iterable[str]) -> None:
        """Let these tasks wait, in this order."""
        self._waiting = list(task_ids) if self.passes else []

    def next(self, remaining_s: float, *, held_back: int | None = None) -> Job | None:
        """Take the next search that fits into `remaining_s`; passes with the number `held_back` wait."""
        for task_id in self._waiting:
            number = self._number.get(task_id, 0)
            predicted_s = self.predict(number)
            if number != held_back and predicted_s <= remaining_s:
                self._waiting.remove(task_id)
                self._tries[task_id, number] = self._tries.get((task_id, number), 0) + 1
                return Job(SYNTHESIS, task_id, predicted_s, number=number)
        return None

    @property
    def last(self) -> int | None:
        """The number of the last pass, if it is not the first one too."""
        return self.passes - 1 if self.passes > 1 else None

    def early_s(self) -> float:
        """Predicted seconds of the searches that wait or are still to come, but for those of the last pass."""
        efforts = range(max(1, self.passes - 1))
        numbers = (self._number.get(task_id, 0) for task_id in self._waiting)
        return sum(self.predict(n) for number in numbers for n in efforts if n >= number)

    def ended(self, job: Job) -> None:
        """A search ended without a sure program: its task waits for the next pass."""
        if job.number + 1 < self.passes:
            self._number[job.task_id] = job.number + 1
            self._waiting.append(job.task_id)

    def lost(self, job: Job, *, blamed: bool) -> bool:
        """A worker died under a search. Returns whether it will be tried again; only deaths that count against it
        (`blamed`) use up a try."""
        self._tries[job.task_id, job.number] -= not blamed
        if self._tries[job.task_id, job.number] < MOST_TRIES:
            self._waiting.append(job.task_id)
            return True
        return False

    def past(self, task_id: str) -> None:
        """An interrupted run has given out the search that a task waits for."""
        if task_id in self._waiting:
            self._waiting.remove(task_id)

    def past_death(self, job: Job) -> bool:
        """An interrupted run lost a worker under a search. Returns whether it will be tried again."""
        tries = self._tries.get((job.task_id, job.number), 0) + 1
        self._tries[job.task_id, job.number] = tries
        if tries >= MOST_TRIES:
            self.past(job.task_id)
        return tries < MOST_TRIES
