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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from arc_ttt.protocol.jobs import BASE, JOINT, SYNTHESIS, TTT, Job, JobKind
from arc_ttt.schedule.gains import FIRST_LEAST, FIRST_MOST, KILLS, TaskState, first_share, least_share
from arc_ttt.schedule.searches import SearchQueue
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Task

FIRST_PART = 0.6
"""Short trainings may take this part of the devices' time before longer ones are weighed against them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the model is used, which changes when another model takes its place.

    Args:
        passes: trainings of a task, the first of them short; 1 means a single full one.
        least_share: below this part of a full training a training is not worth its start.
        base_share: part of the budget that base passes may take first; 0 for no base passes.
        joint: scope of the stage over all tasks that must come before any adapter; empty for none.
        order: "rungs", or to compare with: "shortest" or "first-come", one full training of each task in that order
            and no base passes.
    """

    passes: int = 1
    least_share: float = FIRST_LEAST
    base_share: float = 0.2
    joint: str = ""
    order: str = "rungs"

    def __post_init__(self) -> None:
        if self.order != "rungs":
            object.__setattr__(self, "passes", 1)
            object.__setattr__(self, "base_share", 0.0)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """The policy that settings ask for."""
        ttt, decode = settings.ttt, settings.decode
        return cls(
            passes=ttt.passes if ttt.scope in ("per-task", "joint") else 1,
            least_share=least_share(ttt.max_sequences * ttt.epochs),
            base_share=decode.base_share if decode.base_views > 0 else 0.0,
            joint=ttt.scope if ttt.scope in ("shared", "joint") else "",
            order=settings.run.order,
        )


class Plan:
    """State of all jobs, and the choice of the next. Each pass over a task is waiting, running, done or given up.

    Args:
        tasks: in the order of the task file.
        predict: seconds of a job, by task, kind and share.
        budget_s: device-seconds of the whole run.
        policy: how the model is used.
        searches: passes of synthesis; without any if left out.
        device_share: part of the budget that synthesis leaves to trainings.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        predict: Callable[[Task, JobKind, float], float],
        budget_s: float,
        policy: Policy,
        searches: SearchQueue | None = None,
        device_share: float = 1.0,
    ) -> None:
        self.predict, self.budget_s, self.device_share = predict, budget_s, device_share
        self.searches = searches if searches is not None else SearchQueue()
        self.quarantined: list[str] = []
        """Tasks that are left alone, because workers died under them."""
        self.spent_s = dict.fromkeys((BASE, TTT, SYNTHESIS), 0.0)
        self.first_share = FIRST_MOST
        self._tasks = {task.task_id: task for task in tasks}
        self._places = {task_id: place for place, task_id in enumerate(self._tasks)}
        self._states = {task_id: TaskState() for task_id in self._tasks}
        self._first: list[str] = []
        self._ranking: list[tuple[float, str]] = []
        self._first_spent_s = 0.0
        self.set_policy(policy)
        self._base = list(self._tasks) if policy.base_share > 0 else []
        self.searches.fill(self._by_cost(self._tasks))
        self.replan(budget_s)

    def set_policy(self, policy: Policy) -> None:
        """Go on under another policy: another model has taken the place of the first."""
        self.policy = policy
        self.joint_state = "waiting" if policy.joint else "done"

    # Choosing

    def next_job(self, remaining_s: float) -> Job | None:
        """The next job for a free device with `remaining_s` until the run ends; None if nothing is worth starting."""
        if self.joint_state == "waiting":
            self.joint_state = "running"
            return Job(JOINT, "", 0.0)
        base = self._next_base(remaining_s)
        if base is not None and self.spent_s[BASE] + base.predicted_s <= self.policy.base_share * self.budget_s:
            return self._take(base)
        if self.joint_state == "running":
            return self._take(base)
        first = self._fitting(self._first, remaining_s)
        if first is not None and self._first_spent_s + first.predicted_s <= self._first_budget_s:
            return self._take(first)
        best = self._fitting(
            (task_id for _, task_id in self._ranking), remaining_s
        )  # of largest expected gain a second
        return self._take(best or base or self._shrunk(remaining_s))

    def _next_base(self, remaining_s: float) -> Job | None:
        for task_id in self._base:
            predicted = self.predict(self._tasks[task_id], BASE, 1.0)
            if predicted <= remaining_s:
                return Job(BASE, task_id, predicted)
        return None

    def _fitting(self, task_ids: Iterable[str], remaining_s: float) -> Job | None:
        """The training of the first of these tasks whose training fits."""
        jobs = (self._training(task_id) for task_id in task_ids)
        return next((job for job in jobs if job.predicted_s <= remaining_s), None)

    def _shrunk(self, remaining_s: float) -> Job | None:
        """The largest part of the cheapest training that fits, with a tenth to spare, if that part is worth it."""
        until_s, least = 0.9 * remaining_s, self.policy.least_share
        best: tuple[float, Job] | None = None
        for _, task_id in self._ranking:
            job = self._training(task_id)
            least_s = self.predict(self._tasks[task_id], TTT, least)
            if least_s <= until_s and job.share > least and (best is None or job.predicted_s < best[0]):
                part = (until_s - least_s) / (job.predicted_s - least_s)
                share = least + part * (job.share - least)
                predicted = self.predict(self._tasks[task_id], TTT, share)
                best = job.predicted_s, Job(TTT, task_id, predicted, share, job.number)
        return best[1] if best is not None else None

    def _training(self, task_id: str) -> Job:
        """The next training of a task, at its full size; after a death under the task at half, if more come later."""
        state, share = self._states[task_id], 1.0
        if self.policy.passes > 1:
            share = self.first_share if state.number == 0 else 1.0
            share = max(min(share, self.policy.least_share), share / 2**state.kills)
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
        first = [task_id for task_id in self._states if self._comes_first(task_id)] if self.policy.passes > 1 else []
        self.first_share = self._choose_first_share(first)
        self._first = self._by_cost(first)
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
            share = max(share, 1.0 - (self.spent_s[SYNTHESIS] + self.searches.early_s()) / max(1e-6, self.budget_s))
        return FIRST_PART * share * self.budget_s

    def _choose_first_share(self, waiting: Iterable[str]) -> float:
        """The largest size of short trainings at which those that wait take no more than their part of the time."""
        tasks = [self._tasks[task_id] for task_id in waiting]
        usable_s, least = self._first_budget_s - self._first_spent_s, self.policy.least_share
        return first_share(lambda share: sum(self.predict(task, TTT, share) for task in tasks), usable_s, least)

    def _by_cost(self, task_ids: Iterable[str]) -> list[str]:
        """Cheapest training first; tasks with a sure program last."""
        return sorted(task_ids, key=lambda i: (self._states[i].sure, self.predict(self._tasks[i], TTT, 1.0)))

    def _wanted(self, task_id: str) -> bool:
        """Whether a task has a training left."""
        return self._states[task_id].wanted(self.policy.passes if self._tasks[task_id].train else 1)

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
        if self.policy.order == "first-come":
            return self._places[task_id]
        if self.policy.order == "shortest":
            return self._training(task_id).predicted_s
        return -self._states[task_id].gain / max(1e-6, self._training(task_id).predicted_s)

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
        if job.kind == SYNTHESIS:
            self.searches.past(job.task_id)
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
            return self.searches.past_death(job)
        return self._spared(job.task_id, blamed=True)

    def lost(self, job: Job, *, blamed: bool = True) -> bool:
        """A worker died under `job`: put it back, or leave the task alone. Returns whether it will be tried again.

        blamed: whether the job may be why; only such deaths count against it.
        """
        if job.kind == JOINT:
            self.joint_state = "done"  # without its adapter the tasks train from the base
            return False
        if job.kind == SYNTHESIS:
            return self.searches.lost(job, blamed=blamed)
        if not self._spared(job.task_id, blamed=blamed):
            return False
        if job.kind == BASE:
            self._base = self._by_cost([*self._base, job.task_id])
            return True
        self._states[job.task_id].again.append(job.number)
        if self._comes_first(job.task_id) and self.policy.passes > 1:
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
        """The next synthesis job, or None.

        within_share: only what comes before trainings, which is while synthesis has not had its share of the budget.
        The last of several passes waits for the first trainings of all tasks.
        """
        if within_share and self.spent_s[SYNTHESIS] >= self.searches.share * self.budget_s:
            return None
        held_back = self.searches.last if within_share and self._first_trainings_wait(remaining_s) else None
        job = self.searches.next(remaining_s, held_back=held_back)
        if job is not None:
            self.spent_s[SYNTHESIS] += job.predicted_s
        return job

    def _first_trainings_wait(self, remaining_s: float) -> bool:
        """Whether a task without a sure program could still have its first training, within the part of those."""
        if self.policy.passes > 1:
            first = self._fitting(self._first, remaining_s)
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
        else:
            self.searches.ended(job)

    def superseded(self, job: Job, remaining_s: float) -> bool:
        """Whether the time that a running job still needs has better uses: a program that is taken for right has come
        for its task since, and a training of a task without one waits that fits the `remaining_s` of the run."""
        if job.kind == JOINT or not self._states[job.task_id].sure:
            return False
        waiting = (task_id for _, task_id in self._ranking if not self._states[task_id].sure)
        return any(self.predict(self._tasks[i], TTT, self.policy.least_share) <= remaining_s for i in waiting)
