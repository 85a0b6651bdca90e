"""A run: tasks -> fleet -> votes -> submission. Owns the clock; ends in time whatever the workers do.

The submission is complete and on the disk before the first worker starts, and is replaced whenever an answer changes.
What runs next is decided in `schedule`, how processes live and die in `fleet`; here the two meet.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from arc_ttt.cost import BASE, SYNTHESIS, TTT, CostModel
from arc_ttt.deadline import REAL_CLOCK, Deadline, format_duration
from arc_ttt.events import Journal, Outcome
from arc_ttt.findings import Findings
from arc_ttt.fleet import Death, Message
from arc_ttt.grids import LoadedTasks, Task
from arc_ttt.launch import make_fleet, make_hello, work_until
from arc_ttt.report import COMPILE, DECODE, IDLE, KILLED, LOAD, RESERVE, TRAIN, Ledger, RunResult
from arc_ttt.schedule import JOINT, Job, Plan
from arc_ttt.settings import Settings
from arc_ttt.submission import Submission

POLL_S = 0.2
WRITE_EVERY_S = 0.5
WRITE_SHARE = 0.05  # of the coordinator's time at most goes into writing, however slow the disk is


class Workers(Protocol):
    """What a run needs of its fleet. `fleet.Fleet` has it with real processes; a simulation has it in virtual time."""

    @property
    def slots(self) -> list[int]: ...

    def ready(self, slot: int) -> bool: ...

    def alive(self, slot: int) -> bool: ...

    def start(self, slot: int) -> bool: ...

    def send(self, slot: int, body: Mapping[str, Any]) -> None: ...

    def poll(self, timeout_s: float) -> list[Message | Death]: ...

    def forgive(self, slot: int) -> None: ...

    def retire(self, slot: int) -> None: ...

    def greet(self, hello: Mapping[str, Any]) -> None: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class Status:
    """A moment of a run, for a progress line."""

    elapsed_s: float
    limit_s: float
    base_done: int
    ttt_done: int
    programs_done: int
    tasks: int
    running: list[str]

    def line(self) -> str:
        """One line for a log."""
        time = f"{format_duration(self.elapsed_s)} of {format_duration(self.limit_s)}"
        now = ", ".join(self.running) or "workers loading"
        done = f"programs {self.programs_done}, base {self.base_done}, adapted {self.ttt_done} of {self.tasks}"
        return f"{time} | {done} | {now}"


class Coordinator:
    """One run. `start_s` is the moment, on the clock of `deadline`, from which the limit counts.

    program_slots: slots of the fleet whose workers synthesize. cores: where these share cores with the devices, how
    many jobs may run at once; 0 where they do not. fallback: settings to go on with when the model cannot be loaded.
    submission, journal: where answers and events go if not into files below `out`. poll_s: longest wait for an event.
    """

    def __init__(
        self,
        loaded: LoadedTasks,
        settings: Settings,
        out: Path,
        *,
        start_s: float,
        fleet: Workers,
        deadline: Deadline,
        program_slots: Collection[int] = (),
        cores: int = 0,
        fallback: Settings | None = None,
        submission: Submission | None = None,
        journal: Journal | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self.loaded, self.settings, self.out = loaded, settings, out
        self.start_s, self.fleet = start_s, fleet
        self.clock, self.poll_s = deadline.clock, poll_s
        self.limit = deadline
        self.stop_at = deadline.minus(settings.run.reserve)
        self.work_until = work_until(settings, deadline)
        self.tasks = {task.task_id: task for task in loaded.tasks}
        self.cost = CostModel(settings)
        self.fallback = fallback
        self.program_slots, self.cores = frozenset(program_slots), cores
        self.devices = [slot for slot in fleet.slots if slot not in self.program_slots]
        scope = settings.ttt.scope
        self.plan = Plan(
            loaded.tasks,
            self.cost.predict,
            budget_s=max(1.0, self.stop_at.remaining()) * max(1, len(self.devices)),
            joint=scope if scope in ("shared", "joint") else "",
            base_share=settings.decode.base_share if settings.decode.base_views > 0 else 0.0,
            synthesis_share=settings.synthesis.share if cores else 1.0,
            synthesis_passes=len(settings.synthesis.cpu_limits_s) if self.program_slots else 0,
            predict_program=self.cost.predict_program,
        )
        self.findings = Findings(loaded)
        self.submission = submission or Submission(out / "submission.json", loaded)
        self.journal = journal or Journal(out / "events.jsonl", self.clock, start_s)
        self.ledger = Ledger(self.devices, start_s)
        self.result = RunResult(
            results=self.findings.results,
            limit_s=settings.run.limit_s,
            reserve_s=settings.run.reserve,
            workers=len(self.devices),
            ledger=self.ledger,
        )
        self._task_json = {task_id: _task_json(task) for task_id, task in self.tasks.items()}
        self._ended: Counter[str] = Counter()
        self._jobs: dict[int, Job] = {}
        self._job_number = 0
        self._dirty = True
        self._next_write_s = -math.inf
        self._joint_path = ""
        self._signal = 0

    # The loop

    def run(self, on_status: Callable[[Status], None] = lambda status: None) -> RunResult:
        """Run to the end: all jobs done, the deadline less the reserve, or a signal."""
        self.journal.append("start", tasks=len(self.tasks), problems=len(self.loaded.problems))
        for problem in self.loaded.problems:
            self.journal.append("bad task", task_id=problem.task_id, reason=str(problem))
        for stale in self.out.glob(".submission.json.*.part"):  # a write that a kill cut short
            stale.unlink(missing_ok=True)
        self._write()
        with self._signals():
            try:
                if self.tasks:
                    self._loop(on_status)
            finally:
                self._end()
        return self.result

    def _loop(self, on_status: Callable[[Status], None]) -> None:
        """No turn takes longer than a poll and a write: nothing here waits for a worker."""
        while not self._over():
            self._start_missing()
            self._dispatch()
            if not self._jobs and not self._anything_coming():
                return
            for event in self.fleet.poll(min(self.poll_s, max(0.0, self.stop_at.remaining()))):
                if isinstance(event, Death):
                    self._died(event)
                else:
                    self._heard(event)
            if not self.stop_at.passed() and self.clock.now() >= self._next_write_s:
                self._write()
            on_status(self._status())

    def _over(self) -> bool:
        if self._signal:
            self.result.stopped_by = f"signal {signal.Signals(self._signal).name}"
        elif self.stop_at.passed():
            self.result.stopped_by = "deadline"
        else:
            return False
        return True

    def _end(self) -> None:
        """The last answers to the disk first, then the workers' end, which is not waited for."""
        stopped_s = self.clock.now()
        for slot in self.devices:
            working, loading = slot in self._jobs, self.fleet.alive(slot) and not self.fleet.ready(slot)
            self.ledger.spend(slot, stopped_s, KILLED if working else LOAD if loading else IDLE)
            self.ledger.spend(slot, max(stopped_s, self.limit.at_s), RESERVE)
        self._write()
        self.fleet.stop()
        self.result.seconds = self.clock.now() - self.start_s
        self.journal.append("end", stopped_by=self.result.stopped_by, seconds=round(self.result.seconds, 3))
        self.journal.close()

    def _anything_coming(self) -> bool:
        """Whether a job that waits could still start. Asked when none runs: a ready worker found none that fits."""
        if not self.fleet.slots:
            self.result.stopped_by = self.result.fatal or "all workers lost"
            return False
        for synthesizes, waiting in ((False, self.plan.left), (True, len(self.plan.waiting[SYNTHESIS]))):
            slots = [slot for slot in self.fleet.slots if (slot in self.program_slots) == synthesizes]
            if waiting and not slots and not synthesizes:
                self.result.fatal = self.result.fatal or "all device workers were lost; see the logs"
            if slots and waiting:
                if not any(self.fleet.ready(slot) for slot in slots):
                    return True  # its workers are still loading
                self.result.stopped_by = "nothing left that fits the time"
        if self.result.fatal:
            self.result.stopped_by = self.result.fatal
        return False

    # Jobs out

    def _start_missing(self) -> None:
        """Start workers that are not there, but none any more once one has found that the model cannot be loaded."""
        for slot in self.fleet.slots:
            if not self.fleet.alive(slot):
                if self.result.fatal and slot not in self.program_slots:
                    self.fleet.retire(slot)
                else:
                    self.ledger.spend(slot, self.clock.now(), IDLE)
                    self.fleet.start(slot)

    def _dispatch(self) -> None:
        """Give jobs to idle workers: programs within their share, devices, then programs with what cores are left."""
        left_s = self.work_until.remaining()
        free = [slot for slot in self.fleet.slots if slot not in self._jobs and self.fleet.ready(slot)]
        programs = [slot for slot in free if slot in self.program_slots]
        self._give(programs, lambda: self.plan.next_program(left_s, within_share=True))
        self._give([slot for slot in free if slot not in self.program_slots], lambda: self.plan.next_job(left_s))
        self._give(programs, lambda: self.plan.next_program(left_s, within_share=False))

    def _give(self, slots: Sequence[int], next_job: Callable[[], Job | None]) -> None:
        for slot in slots:
            if slot in self._jobs or (self.cores and len(self._jobs) >= self.cores):
                continue
            job = next_job()
            if job is None:
                return
            self._job_number += 1
            self._jobs[slot] = job
            self.ledger.spend(slot, self.clock.now(), IDLE)
            self.fleet.send(slot, {"type": "job", "id": self._job_number, "kind": job.kind, **self._body(job)})
            self.journal.append(
                "job",
                slot=slot,
                kind=job.kind,
                task_id=job.task_id,
                number=job.number,
                predicted_s=round(job.predicted_s, 2),
            )

    def _body(self, job: Job) -> dict[str, Any]:
        if job.kind == JOINT:
            path = self.out / "joint.safetensors"
            share = 0.5 if self.settings.ttt.scope == "shared" else 0.2
            until = self.clock.now() + share * max(0.0, self.stop_at.remaining())
            return {"tasks": self._task_json, "path": str(path), "until": until}
        body: dict[str, Any] = {"task_id": job.task_id, "task": self._task_json[job.task_id]}
        if job.kind == SYNTHESIS:
            body["cpu_limit_s"] = self.settings.synthesis.cpu_limit_s(job.number)
        if job.kind == TTT:
            body |= {"share": job.share, "decode_s": self.cost.decoding(self.tasks[job.task_id])}
            body["programs"] = self.findings.programs_for(job.task_id)
            if self._joint_path:
                body["joint"] = self._joint_path
        return body

    # Events in

    def _heard(self, message: Message) -> None:
        body = message.body
        job = self._jobs.get(message.slot)
        if body["type"] == "fatal":
            self._model_failed(message.slot, str(body.get("reason", "")), str(body.get("model", "")))
        elif body["type"] == "ready" and job is None:
            self.ledger.spend(message.slot, self.clock.now(), LOAD)
            self.journal.append("ready", slot=message.slot, device=body.get("device"), dtype=body.get("dtype"))
        elif body["type"] in ("candidates", "programs") and job is not None and body.get("task_id") == job.task_id:
            self._take(job, body)
        elif body["type"] == "done" and job is not None:
            self._done(message.slot, job, body)

    def _model_failed(self, slot: int, reason: str, model: str) -> None:
        """A worker cannot load the model: go on with the fallback, or without devices where there is none."""
        self.journal.append("fatal", slot=slot, reason=reason)
        if model != self.settings.model.path:
            return  # of the model that has been given up already
        if self.fallback is None:
            self.result.fatal = reason
            return
        self.settings, self.fallback = self.fallback, None
        self.cost.settings = self.settings
        self.fleet.greet(make_hello(self.settings, self.limit))
        self.journal.append("fallback", model=self.settings.model.path or "embedded")

    def _take(self, job: Job, body: Mapping[str, Any]) -> None:
        """Let what a worker found for a test input change its attempts."""
        dropped = self.findings.take(job.kind, job.task_id, job.number, job.share, body)
        if dropped:
            self.journal.append("dropped", task_id=job.task_id, reason=dropped)
            return
        index = body["test_index"]
        both = self.findings.attempts(job.task_id, index, self.settings)
        if both is not None:
            self.submission.set(job.task_id, index, both)
            self._dirty = True

    def _done(self, slot: int, job: Job, body: Mapping[str, Any]) -> None:
        del self._jobs[slot]
        self.fleet.forgive(slot)
        parts = {TRAIN: _number(body, "train_s"), COMPILE: _number(body, "compile_s")}
        self.ledger.spend(slot, self.clock.now(), DECODE, parts)
        names = ("outcome", "reason", "seconds", "steps", "loss", "tokens", "train_s")
        known = {name: body[name] for name in names if name in body}
        self.journal.append("done", slot=slot, kind=job.kind, task_id=job.task_id, number=job.number, **known)
        if job.kind == JOINT:
            self.plan.joint_done()
            if body.get("outcome") == Outcome.FINISHED:
                self._joint_path = str(self.out / "joint.safetensors")
            return
        seconds = _number(body, "seconds")
        outcome = self._outcome(job, str(body.get("outcome")), str(body.get("reason", "")), seconds)
        if job.kind == SYNTHESIS:
            self.cost.observe_program(job.number, seconds)
            self.plan.program_done(job, sure=self.findings.sure(job.task_id))
            return
        self.result.train_tokens += int(_number(body, "train_tokens"))
        self.result.train_s += parts[TRAIN]
        if outcome == Outcome.FINISHED and job.share == 1.0:
            self.result.ratios.setdefault(job.kind, []).append(seconds / max(1e-3, job.predicted_s))
            self.cost.observe(self.tasks[job.task_id], job.kind, seconds)

    def _outcome(self, job: Job, outcome: str, reason: str, seconds: float = 0.0) -> str:
        """Note how a job ended."""
        result = self.findings.of(job.kind, job.task_id)
        self._ended[job.kind] += not result.outcome
        result.outcome, result.reason, result.seconds = outcome, reason, seconds
        if outcome == Outcome.CUT:
            self.result.cut.append(job.task_id)
        elif outcome != Outcome.FINISHED and job.kind != SYNTHESIS:
            self.result.degraded.append(job.task_id)
        return outcome

    def _died(self, death: Death) -> None:
        self.result.deaths.append(death.cause)
        job = self._jobs.pop(death.slot, None)
        self.ledger.spend(death.slot, self.clock.now(), KILLED if job is not None else LOAD)
        again = self.plan.lost(job) if job is not None else False
        if job is not None and job.kind != JOINT and not again:
            self._outcome(job, Outcome.LOST, death.cause)
        self.journal.append(
            "death",
            slot=death.slot,
            cause=death.cause,
            task_id=job.task_id if job else "",
            again=again,
            final=death.final,
        )

    def _write(self) -> None:
        """Replace the submission if something changed. The next write comes later the slower the disk is."""
        if not self._dirty:
            return
        start_s = self.clock.now()
        try:
            self.submission.write()
            self._dirty = False
        except OSError as error:
            self.result.write_errors += 1
            self.journal.append("write failed", reason=str(error))
        now_s = self.clock.now()
        self._next_write_s = now_s + max(WRITE_EVERY_S, (now_s - start_s) / WRITE_SHARE)

    def _status(self) -> Status:
        running = [f"{job.kind} {job.task_id or 'all tasks'}" for job in self._jobs.values()]
        counts = (self._ended[BASE], self._ended[TTT], self._ended[SYNTHESIS])
        return Status(self.clock.now() - self.start_s, self.result.limit_s, *counts, len(self.tasks), running)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT only set a flag; the loop sees it within one poll."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._signal = number

        try:
            old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: a test or a notebook
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _number(body: Mapping[str, Any], name: str) -> float:
    """A number of a worker's message; 0 for what is none."""
    value = body.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _task_json(task: Task) -> dict[str, Any]:
    return {
        "train": [{"input": e.input.tolist(), "output": e.output.tolist()} for e in task.train],
        "test": [{"input": grid.tolist()} for grid in task.tests],
    }


def start_run(
    loaded: LoadedTasks,
    settings: Settings,
    out: Path,
    *,
    start_s: float,
    on_status: Callable[[Status], None] = lambda status: None,
    fallback: Settings | None = None,
) -> RunResult:
    """Run `loaded` under `settings`, with the limit counted from `start_s` on the monotonic clock."""
    deadline = Deadline(start_s + settings.run.limit_s, REAL_CLOCK)
    fleet, programs, cores = make_fleet(settings, out, deadline)
    coordinator = Coordinator(
        loaded,
        settings,
        out,
        start_s=start_s,
        fleet=fleet,
        deadline=deadline,
        program_slots=programs,
        cores=cores,
        fallback=fallback,
    )
    return coordinator.run(on_status)
