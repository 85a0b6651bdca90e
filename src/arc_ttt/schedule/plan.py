"""Policy: what is waiting and how much time is left -> the next job. Pure: no clock, no processes.

On devices every task first gets a cheap pass with the base model, within a share of the run, then a short training, the
shortest predicted first; tasks with a program that is taken for right can wait. So every task has an answer early. Then
the pass with the largest expected gain a second comes next: longer trainings with new seeds, of the tasks whose votes
are not decided. There are no barriers between these rungs: a free device takes the best that is left. What no longer
fits the time is made smaller. Programs are searched for beside all this, cheapest task first.

Source: successive halving without barriers (ASHA), greedy by gain a second as for budgeted coverage.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from arc_ttt.protocol.jobs import BASE, JOINT, SYNTHESIS, TTT, Job
from arc_ttt.schedule.gains import FIRST_LEAST, FIRST_MOST, GAINS, LATER, TaskState
from arc_ttt.schedule.searches import MAX_TRIES
from arc_ttt.tasks.grids import Task

KILLS = 2  # workers that died under a task, each another process, after which it is left alone
FAILURES = 2  # trainings of a task that failed, after which it is not trained again
FIRST_SHARE = 0.6  # of the devices' time that short trainings may take before longer ones are weighed against them


@dataclass(slots=True)
class Plan:
    """State of all jobs, and the choice of the next. Each pass over a task is waiting, running, done or given up.

    predict: seconds of a job by task, kind and share. budget_s: device-seconds of the whole run. passes: trainings of a
    task, the first of them short; 1 means a single full one. least_share: below it a training is not worth its start.
    device_share: part of the budget that synthesis leaves to trainings.
    order: "rungs", or to compare with: "shortest" or "first-come", one full training of each task in that order and no
    base passes. joint: whether a stage over all tasks must come before any adapter ("" none, else its scope).
    base_share, synthesis_share: parts of the budget that base passes and, where it shares the devices' cores, synthesis
    may take first. synthesis_passes, predict_program: how many passes of rising effort there are (0: none), and their
    seconds.
    """

    tasks: Sequence[Task]
    predict: Callable[[Task, str, float], float]
    budget_s: float
    passes: int = 1
    least_share: float = FIRST_LEAST
    device_share: float = 1.0
    order: str = "rungs"
    joint: str = ""
    base_share: float = 0.2
    synthesis_share: float = 1.0
    synthesis_passes: int = 0
    predict_program: Callable[[int], float] = lambda number: 1.0
    first_share: float = FIRST_MOST
    quarantined: list[str] = field(default_factory=list)
    spent_s: dict[str, float] = field(default_factory=dict)
    joint_state: str = ""
    _tasks: dict[str, Task] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)  # of the tasks as they came
    _states: dict[str, TaskState] = field(default_factory=dict)
    _base: list[str] = field(default_factory=list)
    _first: list[str] = field(default_factory=list)
    _ranking: list[tuple[float, str]] = field(default_factory=list)
    _searches: list[str] = field(default_factory=list)
    _search_number: dict[str, int] = field(default_factory=dict)
    _search_tries: dict[tuple[str, int], int] = field(default_factory=dict)
    _first_spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._tasks = {task.task_id: task for task in self.tasks}
        self._places = {task_id: place for place, task_id in enumerate(self._tasks)}
        if self.order != "rungs":
            self.passes, self.base_share = 1, 0.0
        self._states = {task_id: TaskState() for task_id in self._tasks}
        self.spent_s = dict.fromkeys((BASE, TTT, SYNTHESIS), 0.0)
        self.joint_state = "waiting" if self.joint else "done"
        self._base = list(self._tasks) if self.base_share > 0 else []
        self._searches = self._by_cost(self._tasks) if self.synthesis_passes else []
        self.replan(self.budget_s)

    # Choosing

    def next_job(self, remaining_s: float) -> Job | None:
        """The next job for a free device with `remaining_s` until the run ends; None if nothing is worth starting."""
        if self.joint_state == "waiting":
            self.joint_state = "running"
            return Job(JOINT, "", 0.0)
        base = self._next_base(remaining_s)
        if base is not None and self.spent_s[BASE] + base.predicted_s <= self.base_share * self.budget_s:
            return self._take(base)
        if self.joint_state == "running":
            return self._take(base)
        first = self._next_first(remaining_s)
        if first is not None and self._first_spent_s + first.predicted_s <= self._first_budget_s:
            return self._take(first)
        return self._take(self._next_best(remaining_s) or base or self._shrunk(remaining_s))

    def _next_base(self, remaining_s: float) -> Job | None:
        for task_id in self._base:
            predicted = self.predict(self._tasks[task_id], BASE, 1.0)
            if predicted <= remaining_s:
                return Job(BASE, task_id, predicted)
        return None

    def _next_first(self, remaining_s: float) -> Job | None:
        """The cheapest short training that waits and fits."""
        for task_id in self._first:
            job = self._training(task_id)
            if job.predicted_s <= remaining_s:
                return job
        return None

    def _next_best(self, remaining_s: float) -> Job | None:
        """The training of largest expected gain a second that fits."""
        for _, task_id in self._ranking:
            job = self._training(task_id)
            if job.predicted_s <= remaining_s:
                return job
        return None

    def _shrunk(self, remaining_s: float) -> Job | None:
        """The largest part of the cheapest training that fits, with a tenth to spare, if that part is worth it."""
        until_s = 0.9 * remaining_s
        best: tuple[float, Job] | None = None
        for _, task_id in self._ranking:
            job = self._training(task_id)
            least_s = self.predict(self._tasks[task_id], TTT, self.least_share)
            if least_s <= until_s and job.share > self.least_share and (best is None or job.predicted_s < best[0]):
                part = (until_s - least_s) / (job.predicted_s - least_s)
                share = self.least_share + part * (job.share - self.least_share)
                predicted = self.predict(self._tasks[task_id], TTT, share)
                best = job.predicted_s, Job(TTT, task_id, predicted, share, job.number)
        return best[1] if best is not None else None

    def _training(self, task_id: str) -> Job:
        """The next training of a task, at its full size; after a death under the task at half, if more come later."""
        state, share = self._states[task_id], 1.0
        if self.passes > 1:
            share = self.first_share if state.number == 0 else 1.0
            share = max(min(share, self.least_share), share / 2**state.kills)
        return Job(TTT, task_id, self.predict(self._tasks[task_id], TTT, share), share, state.number)

    def _take(self, job: Job | None) -> Job | None:
        if job is None:
            return None
        self.spent_s[job.kind] += job.predicted_s
        if job.kind == BASE:
            self._base.remove(job.task_id)
            return job
        state = self._states[job.task_id]
        if state.again:
            state.again.pop(0)
        else:
            state.next_number += 1
        if job.number == 0:
            self._first_spent_s += job.predicted_s
            if job.task_id in self._first:
                self._first.remove(job.task_id)
        self._rank(job.task_id)
        return job

    # Order

    def replan(self, budget_s: float) -> None:
        """Order everything anew: at the start, when predictions have changed, or when devices were lost.

        budget_s: device-seconds of the whole run, those spent included.
        """
        self.budget_s = budget_s
        self._base = self._by_cost(self._base)
        self._first = [i for i, state in self._states.items() if self._comes_first(i)]
        self.first_share = self._choose_first_share()
        self._first = self._by_cost(self._first) if self.passes > 1 else []
        self._ranking = []
        for task_id, state in self._states.items():
            if self._wanted(task_id):
                state.rate = self._rate(task_id)
                self._ranking.append((state.rate, task_id))
        self._ranking.sort()

    @property
    def _first_budget_s(self) -> float:
        """Device-seconds for short trainings: their part of what synthesis leaves, whose last effort waits."""
        share = self.device_share
        if share < 1.0:
            share = max(share, 1.0 - self._early_searches_s / max(1e-6, self.budget_s))
        return FIRST_SHARE * share * self.budget_s

    @property
    def _early_searches_s(self) -> float:
        """Predicted seconds of all searches but those of the last effort: given out, waiting, or still to come."""
        efforts = range(max(1, self.synthesis_passes - 1))
        waiting = (self._search_number.get(task_id, 0) for task_id in self._searches)
        to_come = sum(self.predict_program(n) for number in waiting for n in efforts if n >= number)
        return self.spent_s[SYNTHESIS] + to_come

    def _choose_first_share(self) -> float:
        """The largest size of short trainings at which those that wait take no more than their part of the time."""
        usable_s = self._first_budget_s - self._first_spent_s
        share, least = max(FIRST_MOST, self.least_share), max(FIRST_LEAST, self.least_share)
        while share > least:
            if sum(self.predict(self._tasks[task_id], TTT, share) for task_id in self._first) <= usable_s:
                return share
            share *= 0.8
        return least

    def _by_cost(self, task_ids: Sequence[str] | dict[str, Task]) -> list[str]:
        """Cheapest training first; tasks with a sure program last."""
        return sorted(task_ids, key=lambda i: (self._states[i].sure, self.predict(self._tasks[i], TTT, 1.0)))

    def _wanted(self, task_id: str) -> bool:
        """Whether a task has a training left."""
        state = self._states[task_id]
        left = bool(state.again) or state.next_number < (self.passes if self._tasks[task_id].train else 1)
        return left and state.kills < KILLS and state.failures < FAILURES

    def _comes_first(self, task_id: str) -> bool:
        """Whether a task's short training comes before any are weighed: with a sure program it has little to gain."""
        state = self._states[task_id]
        return state.number == 0 and not state.sure and self._wanted(task_id)

    def _rank(self, task_id: str) -> None:
        """Give a task its place in the ranking after something has changed."""
        state = self._states[task_id]
        place = bisect.bisect_left(self._ranking, (state.rate, task_id))
        if place < len(self._ranking) and self._ranking[place] == (state.rate, task_id):
            del self._ranking[place]
        if self._wanted(task_id):
            state.rate = self._rate(task_id)
            bisect.insort(self._ranking, (state.rate, task_id))

    def _rate(self, task_id: str) -> float:
        """By which trainings are ranked, the lowest first: under rungs the expected gain a second, negative."""
        if self.order == "first-come":
            return self._places[task_id]
        if self.order == "shortest":
            return self._training(task_id).predicted_s
        state = self._states[task_id]
        beyond = state.number - len(GAINS) + 1
        gain = GAINS[state.number] if beyond <= 0 else GAINS[-1] * LATER**beyond
        return -gain * state.doubt * 0.25**state.failures / max(1e-6, self._training(task_id).predicted_s)

    # What happened

    def done(self, job: Job, *, failed: bool, agreement: float) -> None:
        """A pass over a task ended. agreement: how far its votes are decided now, 0 to 1."""
        if job.kind == JOINT:
            self.joint_state = "done"
            return
        state = self._states[job.task_id]
        state.agreement = agreement
        if state.kills < KILLS:  # one that is left alone stays so when another of its passes ends well
            state.kills = 0
        state.failures += failed and job.kind == TTT
        self._rank(job.task_id)

    def past(self, job: Job) -> None:
        """A pass was given out, and ended, by an interrupted run; `done` or `program_done` follows.

        Earlier passes over the task that had not ended wait again.
        """
        self._base = [i for i in self._base if job.kind != BASE or i != job.task_id]
        if job.kind == SYNTHESIS and job.task_id in self._searches:
            self._searches.remove(job.task_id)
        if job.kind != TTT:
            return
        state = self._states[job.task_id]
        open_numbers = {*state.again, *range(state.next_number, job.number)} - {job.number}
        state.again, state.next_number = sorted(open_numbers), max(state.next_number, job.number + 1)
        self._first = [i for i in self._first if i != job.task_id or 0 in open_numbers]
        self._rank(job.task_id)

    def past_death(self, job: Job) -> bool:
        """An interrupted run lost a worker and had `job` to blame. Returns whether it will be tried again."""
        if job.kind == JOINT:
            return True
        if job.kind == SYNTHESIS:
            tries = self._search_tries.get((job.task_id, job.number), 0) + 1
            self._search_tries[job.task_id, job.number] = tries
            if tries >= MAX_TRIES and job.task_id in self._searches:
                self._searches.remove(job.task_id)
            return tries < MAX_TRIES
        return self._spared(job.task_id, blamed=True)

    def lost(self, job: Job, *, blamed: bool = True) -> bool:
        """A worker died under `job`: put it back, or leave the task alone. Returns whether it will be tried again.

        blamed: whether the job may be why; only such deaths count against it.
        """
        if job.kind == JOINT:
            self.joint_state = "done"  # without its adapter the tasks train from the base
            return False
        if job.kind == SYNTHESIS:
            self._search_tries[job.task_id, job.number] -= not blamed
            if self._search_tries[job.task_id, job.number] < MAX_TRIES:
                self._searches.append(job.task_id)
                return True
            return False
        if not self._spared(job.task_id, blamed=blamed):
            return False
        if job.kind == BASE:
            self._base = self._by_cost([*self._base, job.task_id])
            return True
        self._states[job.task_id].again.append(job.number)
        if self._comes_first(job.task_id) and self.passes > 1:
            self._first = self._by_cost([*self._first, job.task_id])
        self._rank(job.task_id)
        return True

    def _spared(self, task_id: str, *, blamed: bool) -> bool:
        """Count a death under a task. Returns False if it is left alone from now on."""
        state = self._states[task_id]
        state.kills += blamed
        if state.kills < KILLS:
            return True
        if task_id not in self.quarantined:
            self.quarantined.append(task_id)
        self._base = [i for i in self._base if i != task_id]
        self._first = [i for i in self._first if i != task_id]
        self._rank(task_id)
        return False

    @property
    def left(self) -> int:
        """Tasks that still wait for a device, base passes and trainings apart."""
        return len(self._base) + len(self._ranking) + (self.joint_state == "waiting")

    # Programs

    def next_program(self, remaining_s: float, *, within_share: bool) -> Job | None:
        """The next synthesis job, or None. within_share: only what comes before trainings, which is while synthesis has
        not had its share of the budget; the last of several efforts waits for the first trainings of all tasks."""
        if within_share and self.spent_s[SYNTHESIS] >= self.synthesis_share * self.budget_s:
            return None
        last = self.synthesis_passes - 1
        not_yet = last if within_share and last > 0 and self._first_trainings_wait(remaining_s) else None
        for task_id in self._searches:
            number = self._search_number.get(task_id, 0)
            if number == not_yet:
                continue
            predicted = self.predict_program(number)
            if predicted <= remaining_s:
                self._searches.remove(task_id)
                self._search_tries[task_id, number] = self._search_tries.get((task_id, number), 0) + 1
                self.spent_s[SYNTHESIS] += predicted
                return Job(SYNTHESIS, task_id, predicted, number=number)
        return None

    def _first_trainings_wait(self, remaining_s: float) -> bool:
        """Whether a task without a sure program could still have its first training, within the part of those."""
        if self.passes > 1:
            first = self._next_first(remaining_s)
            return first is not None and self._first_spent_s + first.predicted_s <= self._first_budget_s
        waiting = (i for _, i in self._ranking if not self._states[i].sure)
        return any(self._training(i).predicted_s <= remaining_s for i in waiting)

    def program_done(self, job: Job, *, sure: bool) -> None:
        """A pass of synthesis ended: a task without a sure program waits for the next, with more effort."""
        if sure:
            self._states[job.task_id].sure = True
            self._base = self._by_cost(self._base)
            self._first = [i for i in self._first if i != job.task_id]
            self._rank(job.task_id)
        elif job.number + 1 < self.synthesis_passes:
            self._search_number[job.task_id] = job.number + 1
            self._searches.append(job.task_id)

    def superseded(self, job: Job, remaining_s: float) -> bool:
        """Whether the time that a running job still needs has better uses: a program that is taken for right has come
        for its task since, and a training of a task without one waits that fits the `remaining_s` of the run."""
        if job.kind == JOINT or not self._states[job.task_id].sure:
            return False
        waiting = (task_id for _, task_id in self._ranking if not self._states[task_id].sure)
        return any(self.predict(self._tasks[i], TTT, self.least_share) <= remaining_s for i in waiting)

    @property
    def searches_left(self) -> int:
        """Tasks that wait for a search."""
        return len(self._searches)
