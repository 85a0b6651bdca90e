"""Policy: what is waiting and how much time is left -> the next job. Pure: no clock, no processes.

Programs are searched for first where they cost little, cheapest task first. On devices every task gets a cheap pass
with the base model, cheapest first, within a share of the run; then adapters are trained, cheapest predicted task
first, tasks with a sure program last, as long as one is expected to end in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from arc_ttt.cost import BASE, SYNTHESIS, TTT
from arc_ttt.grids import Task

JOINT = "joint"
SMALLEST_SHARE = 0.3  # below it, training is not worth its start; a guess
MAX_TRIES = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker. task_id is empty for a joint stage over all tasks.

    share: part of the training sequences to use, less than 1 when the whole would not fit the time left. number: which
    pass of synthesis, from 0.
    """

    kind: str
    task_id: str
    predicted_s: float
    share: float = 1.0
    number: int = 0


@dataclass(slots=True)
class Plan:
    """State of all jobs, and the choice of the next. Each (kind, task) is waiting, running, done or given up.

    predict: seconds of a job by task and kind. predict_program: seconds of a pass of synthesis by number. budget_s:
    worker-seconds of the whole run. joint: whether a stage over all tasks must come before any adapter ("" none, else
    its scope). base_share, synthesis_share: parts of the budget that cheap passes and, where it shares the devices'
    cores, synthesis may take first. synthesis_passes: how many passes of rising effort there are; 0 turns it off.
    """

    tasks: Sequence[Task]
    predict: Callable[[Task, str], float]
    budget_s: float
    joint: str = ""
    base_share: float = 0.2
    synthesis_share: float = 1.0
    synthesis_passes: int = 0
    predict_program: Callable[[int], float] = lambda number: 1.0
    waiting: dict[str, list[str]] = field(default_factory=dict)
    tries: dict[tuple[str, str, int], int] = field(default_factory=dict)
    spent_s: dict[str, float] = field(default_factory=dict)
    sure: set[str] = field(default_factory=set)
    joint_state: str = ""
    _tasks: dict[str, Task] = field(default_factory=dict)
    _passes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tasks = {task.task_id: task for task in self.tasks}
        ids = [task.task_id for task in sorted(self.tasks, key=lambda task: self.predict(task, TTT))]
        self.waiting = {
            BASE: list(ids) if self.base_share > 0 else [],
            TTT: list(ids),
            SYNTHESIS: list(ids) if self.synthesis_passes else [],
        }
        self.spent_s = dict.fromkeys(self.waiting, 0.0)
        self.joint_state = "waiting" if self.joint else "done"

    def next_program(self, remaining_s: float, *, within_share: bool) -> Job | None:
        """The next synthesis job, or None. within_share: only while synthesis has not had its share of the budget."""
        if within_share and self.spent_s[SYNTHESIS] >= self.synthesis_share * self.budget_s:
            return None
        for task_id in self.waiting[SYNTHESIS]:
            number = self._passes.get(task_id, 0)
            predicted = self.predict_program(number)
            if predicted <= remaining_s:
                return self._take(Job(SYNTHESIS, task_id, predicted, number=number))
        return None

    def next_job(self, remaining_s: float) -> Job | None:
        """The next job for a free device with `remaining_s` until the run ends; None if nothing is worth starting."""
        if self.joint_state == "waiting":
            self.joint_state = "running"
            return Job(JOINT, "", 0.0)
        base = self._cheapest(BASE, remaining_s)
        if base is not None and self.spent_s[BASE] + base.predicted_s <= self.base_share * self.budget_s:
            return self._take(base)
        ttt = self._cheapest(TTT, remaining_s) if self.joint_state == "done" else None
        job = ttt or base or self._shrunk(remaining_s)
        return self._take(job) if job is not None else None

    def _shrunk(self, remaining_s: float) -> Job | None:
        """The cheapest training that waits, cut down to the time left, if that is worth it."""
        if self.joint_state != "done" or not self.waiting[TTT]:
            return None
        task_id = self._order(TTT)[0]
        predicted = self.predict(self._tasks[task_id], TTT)
        share = 0.9 * remaining_s / predicted
        return Job(TTT, task_id, predicted * share, share) if share >= SMALLEST_SHARE else None

    def _order(self, kind: str) -> list[str]:
        """Tasks that wait for a kind of job, those with a sure program last."""
        return sorted(self.waiting[kind], key=lambda task_id: task_id in self.sure)

    def _cheapest(self, kind: str, remaining_s: float) -> Job | None:
        for task_id in self._order(kind):
            predicted = self.predict(self._tasks[task_id], kind)
            if predicted <= remaining_s:
                return Job(kind, task_id, predicted)
        return None

    def _take(self, job: Job) -> Job:
        self.waiting[job.kind].remove(job.task_id)
        attempt = (job.kind, job.task_id, job.number)
        self.tries[attempt] = self.tries.get(attempt, 0) + 1
        self.spent_s[job.kind] += job.predicted_s
        return job

    def lost(self, job: Job) -> bool:
        """A worker died under `job`: put it back once, then give it up. Returns whether it will be tried again."""
        if job.kind == JOINT:
            self.joint_state = "done"  # without its adapter the tasks train from the base
            return False
        if self.tries[job.kind, job.task_id, job.number] >= MAX_TRIES:
            return False
        waiting = self.waiting[job.kind]
        waiting.append(job.task_id)
        if job.kind != SYNTHESIS:
            waiting.sort(key=lambda task_id: self.predict(self._tasks[task_id], TTT))
        return True

    def joint_done(self) -> None:
        self.joint_state = "done"

    def program_done(self, job: Job, *, sure: bool) -> None:
        """A pass of synthesis ended: a task without a sure program waits for the next, with more effort."""
        if sure:
            self.sure.add(job.task_id)
        elif job.number + 1 < self.synthesis_passes:
            self._passes[job.task_id] = job.number + 1
            self.waiting[SYNTHESIS].append(job.task_id)

    @property
    def left(self) -> int:
        """Jobs that still wait for a device."""
        return len(self.waiting[BASE]) + len(self.waiting[TTT]) + (self.joint_state == "waiting")
