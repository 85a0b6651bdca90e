"""A run: tasks -> workers -> votes -> submission. Owns the clock; ends in time whatever the workers do.

The submission is complete and on the disk before the first worker starts, and is replaced whenever an answer changes.
What runs next is decided in `schedule`, how processes live and die in `fleet`; here the two meet.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arc_ttt.deadline import Clock
from arc_ttt.fleet.launch import make_hello
from arc_ttt.fleet.workers import Death, Message, Workers
from arc_ttt.protocol.jobs import JOINT, CallBack, DeathKind, Job, Outcome
from arc_ttt.protocol.messages import Done, Fatal, Found, Programs, Ready, Unreadable
from arc_ttt.run.board import JobBoard, RunningJob
from arc_ttt.run.crew import Crew
from arc_ttt.run.dispatcher import Dispatcher
from arc_ttt.run.endings import conclude, end_pass, learn
from arc_ttt.run.journal import Journal
from arc_ttt.run.model_trust import ModelTrust, Remedy
from arc_ttt.run.recovery import PastDeath, past_lines
from arc_ttt.run.report import COMPILE, DECODE, IDLE, KILLED, LOAD, RESERVE, TRAIN, RunResult, Status, StopKind
from arc_ttt.run.signals import on_signals
from arc_ttt.run.spec import RunSpec
from arc_ttt.run.state import RunState
from arc_ttt.run.submission import Submission
from arc_ttt.run.writer import SubmissionWriter
from arc_ttt.schedule.cost import CostModel


class Coordinator:
    """The loop of one run: poll, hear, dispatch, end.

    Args:
        spec: the inputs of the run.
        workers: the fleet.
        submission: where answers go, if not into a file below `spec.out`.
        journal: where events go, if not into a file below `spec.out`.
        cost: predictions, if there are any already.
        signals: SIGTERM and SIGINT that have come already; more are added.
        free_memory: bytes that the machine has left, None where nobody knows.
    """

    def __init__(
        self,
        spec: RunSpec,
        workers: Workers,
        *,
        submission: Submission | None = None,
        journal: Journal | None = None,
        cost: CostModel | None = None,
        signals: list[int] | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.spec, self.workers = spec, workers
        self.clock: Clock = spec.limit.clock
        self.crew = Crew(workers, spec.searchers, self.clock, free_memory)
        self.state = RunState(spec, self.crew.all_devices, cost)
        self.board = JobBoard()
        self.trust = ModelTrust(has_fallback=spec.fallback is not None)
        self.journal = journal or Journal(spec.out / "events.jsonl", self.clock, spec.start_s)
        self.writer = SubmissionWriter(
            submission or Submission(spec.out / "submission.json", spec.loaded), self.journal, self.clock
        )
        self.dispatcher = Dispatcher(self.state, self.board, self.crew, self.journal)
        self.signals = signals if signals is not None else []
        self._calibrates = True

    @property
    def result(self) -> RunResult:
        return self.state.result

    # The loop

    def run(
        self, on_status: Callable[[Status], None] = lambda status: None, past: Sequence[Mapping[str, Any]] = ()
    ) -> RunResult:
        """Run to the end: all jobs done, the deadline less the reserve, or a signal.

        Args:
            on_status: called at every turn of the loop.
            past: the journal of an interrupted run to go on from.
        """
        loaded = self.spec.loaded
        self.journal.append("start", tasks=len(loaded.tasks), problems=len(loaded.problems), mark=self.spec.fingerprint)
        for problem in loaded.problems:
            self.journal.append("bad task", task_id=problem.task_id, reason=str(problem))
        for stale in self.spec.out.glob(".submission.json.*.part"):  # a write that a kill cut short
            stale.unlink(missing_ok=True)
        self.resume(past)
        past = ()  # a long run's journal would stay in memory
        self.writer.write()
        with on_signals(self.signals.append):  # the loop sees it within one poll
            try:
                if loaded.tasks:
                    self._loop(on_status)
            except BaseException as error:
                self.result.stop(StopKind.ERROR, f"error {type(error).__name__}")
                raise
            finally:
                self._end()
        return self.result

    def resume(self, past: Sequence[Mapping[str, Any]]) -> None:
        """Take in what an interrupted run of the same tasks and settings had found, and what it blamed for deaths.

        Passes that it had not ended wait again; their messages are replaced when they come anew.
        """
        answered = dict[tuple[str, int], None]()
        given_up = [str(event.get("reason")) for event in past if event.get("event") == "fallback"]
        if given_up and self.trust.has_fallback:
            self._give_model_up(given_up[0])
        for job, line in past_lines(past):
            if job.task_id not in self.state.tasks and job.kind != JOINT:
                continue
            if isinstance(line, PastDeath):
                if line.blamed and not self.state.plan.past_death(job):
                    end_pass(self.state, job, Done(Outcome.LOST, line.cause))
            elif not isinstance(line, Done):
                if self._store(job, line) and not isinstance(line, Unreadable):
                    answered[job.task_id, line.test_index] = None
            elif job.kind != JOINT or self.state.joint_file.is_file():
                self.state.plan.past(job)
                conclude(self.state, job, line)
        for task_id, index in answered:
            self._update_attempts(task_id, index)
        if past:
            self.result.resumed = sum(self.result.ended.values())
            self.journal.append("resumed", passes=self.result.resumed)

    def _loop(self, on_status: Callable[[Status], None]) -> None:
        """No turn takes longer than a poll and a write: nothing here waits for a worker."""
        stop = self.state.deadlines.stop
        while not self._over():
            if death := self.crew.watch_memory():
                self._died(death)
            self.dispatcher.turn()
            if not self.board and not self._anything_coming():
                return
            for event in self.workers.poll(min(self.spec.poll_s, max(0.0, stop.remaining()))):
                if isinstance(event, Death):
                    self._died(event)
                else:
                    self._heard(event)
            if not stop.passed() and self.writer.due:
                self.writer.write()
            on_status(self._status())

    def _over(self) -> bool:
        if self.signals:
            self.result.stop(StopKind.SIGNAL, f"signal {signal.Signals(self.signals[0]).name}")
        elif self.state.deadlines.stop.passed():
            self.result.stop(StopKind.DEADLINE, "deadline")
        else:
            return False
        return True

    def _end(self) -> None:
        """The last answers to the disk first, then the workers' end, which is not waited for."""
        stopped_s, ledger = self.clock.now(), self.result.ledger
        for slot in self.crew.all_devices:
            loading = self.workers.alive(slot) and not self.crew.has_loaded(slot)
            ledger.spend(slot, stopped_s, KILLED if slot in self.board else LOAD if loading else IDLE)
            ledger.spend(slot, max(stopped_s, self.spec.limit.at_s), RESERVE)
        self.writer.write()
        self.writer.write()  # a disk that refused may take it now
        self.workers.stop()
        result = self.result
        result.write_errors = self.writer.errors
        result.quarantined = list(self.state.plan.quarantined)
        result.seconds = self.clock.now() - self.spec.start_s
        seconds = round(result.seconds, 3)
        self.journal.append("end", stopped_by=result.stopped_by, stop=result.stop_kind, seconds=seconds)
        self.journal.close()

    def _anything_coming(self) -> bool:
        """Whether a job that waits could still start. Asked when none runs: a ready worker found none that fits."""
        result, plan = self.result, self.state.plan
        if not self.workers.slots:
            result.stop(StopKind.NO_WORKERS, result.fatal or "all workers lost")
            return False
        if plan.left and not self.crew.devices:
            result.fatal = result.fatal or "all device workers were lost; see the logs"
        for slots, waiting in ((self.crew.devices, plan.left), (self.crew.searchers, len(plan.searches))):
            if slots and waiting:
                if self.crew.none_ready(slots):
                    return True  # its workers are still loading
                result.stop(StopKind.NOTHING_FITS, "nothing left that fits the time")
        if result.fatal:
            result.stop(StopKind.NO_WORKERS, result.fatal)
        return False

    # Events in

    def _heard(self, event: Message) -> None:
        slot, message = event.slot, event.body
        if isinstance(message, Fatal):
            self._refused(slot, message)
        elif isinstance(message, Ready):
            self._ready(slot, message)
        elif (running := self.board.find(slot, getattr(message, "job", None))) is None:
            return  # a late message of another job
        elif isinstance(message, Done):
            self._done(slot, running, message)
        elif isinstance(message, Unreadable):
            if message.known:
                self.journal.append("dropped", task_id=running.job.task_id, reason=message.reason)
        elif isinstance(message, Found | Programs):
            self._found(running.job, message)

    def _found(self, job: Job, message: Found | Programs) -> None:
        """Answers have come: let the attempts follow, unless they belong to another task or to none."""
        if message.task_id == job.task_id and self._store(job, message):
            self._update_attempts(message.task_id, message.test_index)
            self.journal.append("found", **job.to_json(), **message.record())

    def _ready(self, slot: int, message: Ready) -> None:
        if not self.crew.note_loaded(slot):
            return
        if not self.crew.searches(slot):
            self.trust.loaded()
            self.result.devices[slot] = f"{message.device} {message.dtype}".strip()
        self.result.ledger.spend(slot, self.clock.now(), LOAD)
        self.journal.append("ready", slot=slot, device=message.device, dtype=message.dtype)
        for note in message.notes:
            if self.result.keep(note):
                self.journal.append("note", text=note.text, less=note.less)
        if message.calibration:  # workers that are started later need not try again
            self.journal.append("calibrated", rows=[trial.to_json() for trial in message.calibration])
            self.state.cost.calibrate(message.calibration)
            self._set_hello(calibrate=False)
        if self.state.cost.observations == 0:
            self.state.replan(self.crew.devices)

    def _set_hello(self, *, calibrate: bool) -> None:
        """Change what workers hear that are started from now on."""
        self._calibrates = self._calibrates and calibrate
        deadline, generation = self.state.deadlines.work, self.trust.generation
        hello = make_hello(self.state.settings, deadline, calibrate=self._calibrates, generation=generation)
        self.workers.set_hello(hello)

    def _refused(self, slot: int, message: Fatal) -> None:
        """A worker says that it cannot load the model. Its end follows, as one of its deaths."""
        self.journal.append("fatal", slot=slot, reason=message.reason)
        if message.model != self.state.settings.model.path or message.generation not in (None, self.trust.generation):
            return  # it means the model that has been given up already
        if self.trust.refused(slot, self.crew.devices) is Remedy.GIVE_UP:
            self._give_model_up(message.reason)

    def _give_model_up(self, reason: str) -> None:
        """No worker can load the model: go on with the fallback, or without devices where there is none."""
        if self.spec.fallback is None or not self.trust.has_fallback:
            self.result.fatal = f"the model could not be loaded: {reason}"
            return
        self.result.fell_back = reason
        self.state.use(self.spec.fallback)
        self.trust.next_model()
        self._calibrates = True
        self._set_hello(calibrate=True)
        self.journal.append("fallback", model=self.state.settings.model.path or "embedded", reason=reason)
        for slot in self.crew.all_devices:
            self.workers.clear_deaths(slot)
            if self.workers.alive(slot):
                self._died(self.workers.kill(slot, DeathKind.REPLACED))
        self.state.replan(self.crew.devices)

    def _store(self, job: Job, message: Found | Programs | Unreadable) -> bool:
        """Add what a worker found to the findings. Returns whether it fits the task."""
        problem = message.reason if isinstance(message, Unreadable) else self.state.findings.take(job, message)
        if problem:
            self.journal.append("dropped", task_id=job.task_id, reason=problem)
        return not problem

    def _update_attempts(self, task_id: str, index: int) -> None:
        """Let the attempts of a test input follow from the findings."""
        attempts = self.state.findings.attempts(task_id, index, self.state.settings)
        if attempts is not None:
            self.writer.set(task_id, index, attempts)

    def _done(self, slot: int, running: RunningJob, done: Done) -> None:
        job = running.job
        self.board.end(slot)
        self.workers.clear_deaths(slot)
        self.result.ledger.spend(slot, self.clock.now(), DECODE, {TRAIN: done.train_s, COMPILE: done.compile_s})
        self.journal.append("done", slot=slot, **job.to_json(), **done.record())
        superseded = running.called_back is CallBack.SUPERSEDED
        if conclude(self.state, job, done, superseded=superseded):
            self.dispatcher.call_back_superseded(job.task_id)
        if learn(self.state, slot, job, done):
            self.state.replan(self.crew.devices)

    def _died(self, death: Death) -> None:
        slot, now_s = death.slot, self.clock.now()
        self.result.deaths.append(death.cause)
        running, was_ready = self.board.end(slot), self.crew.note_death(slot)
        self.result.ledger.spend(slot, now_s, KILLED if running else IDLE if was_ready else LOAD)
        if not self.crew.searches(slot):
            self._be_careful(death, was_ready)
        job = running.job if running is not None else None
        superseded = running is not None and running.called_back is CallBack.SUPERSEDED
        blamed = death.kind is not DeathKind.NO_MEMORY and not superseded
        again = job is not None and not superseded and self.state.plan.lost(job, blamed=blamed)
        if death.final and slot in self.crew.all_devices and slot not in self.workers.slots:
            self.result.lost_devices.append(slot)
            self.state.replan(self.crew.devices)
        if job is not None and superseded:  # its worker did not listen, which is not the task's fault
            conclude(self.state, job, Done(Outcome.CUT), superseded=True)
        elif job is not None and job.kind != JOINT and not again:
            end_pass(self.state, job, Done(Outcome.LOST, death.cause))
        what = job.to_json() if job else {"task_id": ""}
        how = {"cause": death.cause, "death": death.kind, "blamed": blamed, "again": again, "final": death.final}
        self.journal.append("death", slot=slot, **what, **how)

    def _be_careful(self, death: Death, was_ready: bool) -> None:
        """After a device worker's death its successors do without what may have caused it."""
        remedy = self.trust.died(death.slot, death.kind, self.crew.devices, was_ready=was_ready)
        model = self.state.settings.model
        if remedy is Remedy.GIVE_UP:
            self._give_model_up(f"its workers died while they loaded it: {death.cause}")
        elif remedy is Remedy.NO_RECORDING and model.record:
            self.state.settings = replace(self.state.settings, model=replace(model, record=False))
            self._set_hello(calibrate=False)
        elif remedy is not Remedy.KEEP and not was_ready and self._calibrates:
            self._set_hello(calibrate=False)

    def _status(self) -> Status:
        jobs = [running.job for _, running in self.board]
        running = [f"{job.kind} {job.task_id or 'all tasks'}" for job in jobs]
        return self.result.status(self.clock.now() - self.spec.start_s, len(self.state.tasks), running)
