"""Policy: what is waiting and how much time is left -> the next job. Pure: no clock, no processes.

Every task first gets a cheap pass with the base model, cheapest first, as long as these passes take no more than a
fifth of the run; then adapters are trained, cheapest predicted task first, as long as one is expected to end in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from arc_ttt.cost import BASE, TTT
from arc_ttt.grids import Task

JOINT = "joint"
BASE_SHARE = 0.2
SMALLEST_SHARE = 0.3  # below it, training is not worth its start; a guess
MAX_TRIES = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker. task_id is empty for a joint stage over all tasks.

    share: part of the training sequences to use, less than 1 when the whole would not fit the time left.
    """

    kind: str
    task_id: str
    predicted_s: float
    share: float = 1.0


@dataclass(slots=True)
class Plan:
    """State of all jobs, and the choice of the next. Each (kind, task) is waiting, running, done or given up.

    predict: seconds of a job by task and kind. budget_s: worker-seconds of the whole run. joint: whether a stage over
    all tasks must come before any adapter ("" none, else its scope).
    """

    tasks: Sequence[Task]
    predict: Callable[[Task, str], float]
    budget_s: float
    joint: str = ""
    base_passes: bool = True
    waiting: dict[str, list[str]] = field(default_factory=dict)
    tries: dict[tuple[str, str], int] = field(default_factory=dict)
    spent_base_s: float = 0.0
    joint_state: str = ""
    _tasks: dict[str, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tasks = {task.task_id: task for task in self.tasks}
        ordered = sorted(self.tasks, key=lambda task: self.predict(task, TTT))
        ids = [task.task_id for task in ordered]
        self.waiting = {BASE: list(ids) if self.base_passes else [], TTT: list(ids)}
        self.joint_state = "waiting" if self.joint else "done"

    def next_job(self, remaining_s: float) -> Job | None:
        """The next job for a free worker with `remaining_s` until the run ends; None if nothing is worth starting."""
        if self.joint_state == "waiting":
            self.joint_state = "running"
            return Job(JOINT, "", 0.0)
        base = self._cheapest(BASE, remaining_s)
        if base is not None and self.spent_base_s + base.predicted_s <= BASE_SHARE * self.budget_s:
            return self._take(base)
        ttt = self._cheapest(TTT, remaining_s) if self.joint_state == "done" else None
        job = ttt or base or self._shrunk(remaining_s)
        return self._take(job) if job is not None else None

    def _cheapest(self, kind: str, remaining_s: float) -> Job | None:
        for task_id in self.waiting[kind]:
            predicted = self.predict(self._tasks[task_id], kind)
            if predicted <= remaining_s:
                return Job(kind, task_id, predicted)
        return None

    def _shrunk(self, remaining_s: float) -> Job | None:
        """The cheapest training that waits, cut down to the time left, if that is worth it."""
        if self.joint_state != "done" or not self.waiting[TTT]:
            return None
        task_id = self.waiting[TTT][0]
        predicted = self.predict(self._tasks[task_id], TTT)
        share = 0.9 * remaining_s / predicted
        return Job(TTT, task_id, predicted * share, share) if share >= SMALLEST_SHARE else None

    def _take(self, job: Job) -> Job:
        self.waiting[job.kind].remove(job.task_id)
        self.tries[job.kind, job.task_id] = self.tries.get((job.kind, job.task_id), 0) + 1
        if job.kind == BASE:
            self.spent_base_s += job.predicted_s
        return job

    def lost(self, job: Job) -> bool:
        """A worker died under `job`: put it back once, then give it up. Returns whether it will be tried again."""
        if job.kind == JOINT:
            self.joint_state = "done"  # without its adapter the tasks train from the base
            return False
        if self.tries[job.kind, job.task_id] >= MAX_TRIES:
            return False
        self.waiting[job.kind].append(job.task_id)
        return True

    def joint_done(self) -> None:
        self.joint_state = "done"

    @property
    def left(self) -> int:
        """Jobs that still wait."""
        return sum(len(ids) for ids in self.waiting.values()) + (self.joint_state == "waiting")
