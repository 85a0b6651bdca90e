"""Jobs out: start workers, give them jobs, and call jobs back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from arc_ttt.protocol.jobs import CallBack, Job
from arc_ttt.run.board import JobBoard, RunningJob
from arc_ttt.run.crew import Crew
from arc_ttt.run.journal import Journal
from arc_ttt.run.orders import order_of
from arc_ttt.run.report import IDLE
from arc_ttt.run.state import RunState
from arc_ttt.schedule.devices import DEVICE_TYPES


class Dispatcher:
    """Gives the jobs of the plan to the workers of the crew."""

    def __init__(self, state: RunState, board: JobBoard, crew: Crew, journal: Journal) -> None:
        self._state, self._board, self._crew, self._journal = state, board, crew, journal
        self._workers, self._clock = crew.workers, state.spec.limit.clock

    def turn(self) -> None:
        """Start workers that are missing, call back jobs that are overdue, and give jobs to idle workers."""
        self._start_missing()
        for slot in self._board.overdue(self._clock.now()):
            self._call_back(slot, CallBack.OVERDUE)
        self._dispatch()

    def call_back_superseded(self, task_id: str) -> None:
        """End jobs over a task that a program seems to have solved meanwhile, where others have more to gain.

        What is left of a job must be worth the start of a new worker, in case this one does not listen.
        """
        now_s, remaining_s = self._clock.now(), self._state.deadlines.work.remaining()
        start_s = DEVICE_TYPES[self._state.spec.device].load_s
        for slot, running in self._board:
            worth = running.job.task_id == task_id and running.left_s(now_s) >= start_s
            if worth and self._state.plan.superseded(running.job, remaining_s):
                self._call_back(slot, CallBack.SUPERSEDED)

    def _start_missing(self) -> None:
        """Start workers that are not there, but no devices once the model is known not to load."""
        result = self._state.result
        for slot in self._crew.missing():
            if result.fatal and not self._crew.searches(slot):
                self._workers.retire(slot)
            else:
                result.ledger.spend(slot, self._clock.now(), IDLE)
                self._workers.start(slot)

    def _dispatch(self) -> None:
        """Programs within their share first, then devices, then programs with what cores are left."""
        plan, left_s = self._state.plan, self._state.deadlines.work.remaining()
        free = [slot for slot in self._workers.slots if slot not in self._board and self._workers.ready(slot)]
        searchers = [slot for slot in free if self._crew.searches(slot)]
        devices = [slot for slot in free if not self._crew.searches(slot)]
        self._give(searchers, lambda slot: plan.next_program(left_s, within_share=True))
        self._give(devices, lambda slot: plan.next_job(left_s / self._state.cost.drift(slot)))
        self._give(searchers, lambda slot: plan.next_program(left_s, within_share=False))

    def _give(self, slots: Sequence[int], next_job: Callable[[int], Job | None]) -> None:
        cores = self._state.spec.cores
        for slot in slots:
            if slot in self._board or (cores and len(self._board) >= cores):
                continue
            job = next_job(slot)
            if job is not None:
                self._begin(slot, job)

    def _begin(self, slot: int, job: Job) -> None:
        """Give a worker its job. Only devices are held to the end of their order: a search ends by its CPU limit."""
        now_s, searches = self._clock.now(), self._crew.searches(slot)
        predicted_s = job.predicted_s * (1.0 if searches else self._state.cost.drift(slot))
        order = order_of(self._state, job, slot, self._board.next_number())
        until_s = math.inf if searches else order.deadline.at_s
        self._board.begin(slot, RunningJob(job, order.id, now_s, now_s + predicted_s, until_s))
        self._state.result.ledger.spend(slot, now_s, IDLE)
        self._workers.send(slot, order)
        what = {"kind": job.kind, "task_id": job.task_id, "number": job.number, "share": round(job.share, 4)}
        self._journal.append("job", slot=slot, **what, predicted_s=round(predicted_s, 2))

    def _call_back(self, slot: int, cause: CallBack) -> None:
        """Ask a worker to end its job with what it has; one that does not is killed."""
        running = self._board.call_back(slot, cause)
        if running is not None:
            self._state.result.called_back[cause] += 1
            self._journal.append("cancel", slot=slot, task_id=running.job.task_id, cause=cause)
            self._workers.cancel(slot, cause)
