"""A run: tasks -> fleet -> votes -> submission. Owns the clock; ends in time whatever the workers do.

The submission is complete and on the disk before the first worker starts, and is replaced whenever an answer changes.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from arc_ttt.cost import BASE, SYNTHESIS, TTT, CostModel
from arc_ttt.deadline import REAL_CLOCK, Deadline, format_duration
from arc_ttt.errors import ArcError
from arc_ttt.events import Journal, Outcome
from arc_ttt.fleet import Death, Fleet, Message
from arc_ttt.grids import Grid, LoadedTasks, Task, parse_grid
from arc_ttt.launch import make_fleet, make_hello, work_until
from arc_ttt.schedule import JOINT, Job, Plan
from arc_ttt.settings import Settings
from arc_ttt.submission import Submission
from arc_ttt.votes import (
    Candidate,
    Program,
    ScoredCandidate,
    attempts,
    fallback_grids,
    merge,
    rank,
    strength,
)

POLL_S = 0.2
WRITE_EVERY_S = 0.5


@dataclass(slots=True)
class TaskResult:
    """All that was found for one task in one stage ("base", "ttt" or "synthesis")."""

    candidates: list[Candidate] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class RunResult:
    """What a run leaves behind for a report."""

    results: dict[tuple[str, str], TaskResult] = field(default_factory=dict)  # by stage and task id
    seconds: float = 0.0
    limit_s: float = 0.0
    workers: int = 0
    stopped_by: str = "all done"
    deaths: list[str] = field(default_factory=list)
    fatal: str = ""
    train_tokens: int = 0
    train_s: float = 0.0
    write_errors: int = 0


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


def rank_result(result: TaskResult, test_index: int, rule: str, *, with_programs: bool = False) -> list[Grid]:
    """Distinct grids of one test input, best first. with_programs: also those that only synthesis found."""
    return rank(
        [c for c in result.candidates if c.test_index == test_index],
        [s for s in result.scored if s.test_index == test_index and (with_programs or s.stage != SYNTHESIS)],
        rule=rule,
    )


def merged(results: Mapping[tuple[str, str], TaskResult], task: Task, index: int, settings: Settings) -> list[Grid]:
    """Grids of one test input, best first, from all stages: adapted before base, joined with the programs."""
    neural: list[Grid] = []
    agreement = 0.0
    for stage in (TTT, BASE):
        result = results.get((stage, task.task_id))
        if result is not None:
            found = rank_result(result, index, settings.vote.rule, with_programs=True)
            if found and not neural and stage == TTT:
                agreement = strength([c for c in result.candidates if c.test_index == index])
            neural += found
    synthesis = results.get((SYNTHESIS, task.task_id))
    programs = [p for p in synthesis.programs if p.test_index == index] if synthesis is not None else []
    return merge(neural, agreement, programs, rule=settings.synthesis.merge)


class Coordinator:
    """One run. `start_s` is the moment, on the clock of `deadline`, from which the limit counts.

    program_slots: slots of the fleet whose workers synthesize. cores: where these share cores with the devices, how
    many jobs may run at once; 0 where they do not. fallback: settings to go on with when the model cannot be loaded.
    """

    def __init__(
        self,
        loaded: LoadedTasks,
        settings: Settings,
        out: Path,
        *,
        start_s: float,
        fleet: Fleet,
        deadline: Deadline,
        program_slots: Collection[int] = (),
        cores: int = 0,
        fallback: Settings | None = None,
    ) -> None:
        self.loaded, self.settings, self.out = loaded, settings, out
        self.start_s, self.fleet = start_s, fleet
        self.clock = deadline.clock
        self.limit = deadline
        self.stop_at = deadline.minus(settings.run.reserve)
        self.work_until = work_until(settings, deadline)
        self.tasks = {task.task_id: task for task in loaded.tasks}
        self.cost = CostModel(settings)
        self.fallback = fallback
        self.program_slots, self.cores = frozenset(program_slots), cores
        devices = [slot for slot in fleet.slots if slot not in self.program_slots]
        scope = settings.ttt.scope
        self.plan = Plan(
            loaded.tasks,
            self.cost.predict,
            budget_s=max(1.0, self.stop_at.remaining()) * max(1, len(devices)),
            joint=scope if scope in ("shared", "joint") else "",
            base_share=settings.decode.base_share if settings.decode.base_views > 0 else 0.0,
            synthesis_share=settings.synthesis.share if cores else 1.0,
            synthesis_passes=len(settings.synthesis.cpu_limits_s) if self.program_slots else 0,
            predict_program=self.cost.predict_program,
        )
        self.submission = Submission(out / "submission.json", loaded)
        self.journal = Journal(out / "events.jsonl", self.clock, start_s)
        self.result = RunResult(limit_s=settings.run.limit_s, workers=len(devices))
        self._jobs: dict[int, Job] = {}
        self._job_number = 0
        self._dirty = True
        self._written_s = -1e9
        self._joint_path = ""
        self._signal = 0

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
                self._write(final=True)
                self.fleet.stop()
                self.result.seconds = self.clock.now() - self.start_s
                self.journal.append("end", stopped_by=self.result.stopped_by, seconds=round(self.result.seconds, 3))
                self.journal.close()
        return self.result

    def _loop(self, on_status: Callable[[Status], None]) -> None:
        while True:
            if self._signal:
                self.result.stopped_by = f"signal {signal.Signals(self._signal).name}"
                return
            if self.stop_at.passed():
                self.result.stopped_by = "deadline"
                return
            self._start_missing()
            self._dispatch()
            if not self._jobs and not self._anything_coming():
                return
            for event in self.fleet.poll(min(POLL_S, max(0.0, self.stop_at.remaining()))):
                if isinstance(event, Death):
                    self._died(event)
                else:
                    self._heard(event)
            self._write()
            on_status(self._status())

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

    def _start_missing(self) -> None:
        """Start workers that are not there, but none any more once one has found that the model cannot be loaded."""
        for slot in self.fleet.slots:
            if not self.fleet.alive(slot):
                if self.result.fatal and slot not in self.program_slots:
                    self.fleet.retire(slot)
                else:
                    self.fleet.start(slot)

    def _dispatch(self) -> None:
        """Give jobs to idle workers: programs within their share, devices, then programs with what cores are left."""
        left_s = self.work_until.remaining()
        programs = [slot for slot in self.fleet.slots if slot in self.program_slots]
        devices = [slot for slot in self.fleet.slots if slot not in self.program_slots]
        self._give(programs, lambda: self.plan.next_program(left_s, within_share=True))
        self._give(devices, lambda: self.plan.next_job(left_s))
        self._give(programs, lambda: self.plan.next_program(left_s, within_share=False))

    def _give(self, slots: Sequence[int], next_job: Callable[[], Job | None]) -> None:
        for slot in slots:
            if slot in self._jobs or not self.fleet.ready(slot) or (self.cores and len(self._jobs) >= self.cores):
                continue
            job = next_job()
            if job is None:
                return
            self._job_number += 1
            self._jobs[slot] = job
            self.fleet.send(slot, {"type": "job", "id": self._job_number, "kind": job.kind, **self._body(job)})
            self.journal.append(
                "job", slot=slot, kind=job.kind, task_id=job.task_id, predicted_s=round(job.predicted_s, 2)
            )

    def _body(self, job: Job) -> dict[str, Any]:
        if job.kind == JOINT:
            path = self.out / "joint.safetensors"
            share = 0.5 if self.settings.ttt.scope == "shared" else 0.2
            until = self.clock.now() + share * max(0.0, self.stop_at.remaining())
            return {"tasks": {i: _task_json(t) for i, t in self.tasks.items()}, "path": str(path), "until": until}
        body: dict[str, Any] = {"task_id": job.task_id, "task": _task_json(self.tasks[job.task_id])}
        if job.kind == SYNTHESIS:
            body["cpu_limit_s"] = self.settings.synthesis.cpu_limit_s(job.number)
        if job.kind == TTT:
            body |= {"share": job.share, "decode_s": self.cost.decoding(self.tasks[job.task_id])}
            body["programs"] = self._programs(job.task_id)
            if self._joint_path:
                body["joint"] = self._joint_path
        return body

    def _programs(self, task_id: str) -> dict[int, list[list[list[int]]]]:
        """By test input, the grids that synthesis has found so far."""
        found = self.result.results.get((SYNTHESIS, task_id), TaskResult()).programs
        indices = sorted({p.test_index for p in found})
        return {index: [p.grid.tolist() for p in found if p.test_index == index] for index in indices}

    def _heard(self, message: Message) -> None:
        body = message.body
        job = self._jobs.get(message.slot)
        if body["type"] == "fatal":
            self._model_failed(message.slot, str(body.get("reason", "")), str(body.get("model", "")))
        elif body["type"] == "ready":
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

    def _take(self, job: Job, body: dict[str, Any]) -> None:
        """Check the candidates of a test input and let them change its attempts. Malformed ones are dropped."""
        task, index = self.tasks[job.task_id], body.get("test_index")
        if not isinstance(index, int) or not 0 <= index < len(task.tests):
            self.journal.append("dropped", task_id=job.task_id, reason="no such test input")
            return
        result = self.result.results.setdefault((job.kind, job.task_id), TaskResult())
        candidates: list[Candidate] = []
        scored: list[ScoredCandidate] = []
        try:
            where = f"candidate of {job.task_id}"
            if body["type"] == "programs":
                self._take_programs(result, index, body["programs"], job.task_id)
                body = {"candidates": [], "scored": []}
            for c in body["candidates"]:
                grid = parse_grid(c["grid"], where=where, task_id=job.task_id)
                candidates.append(Candidate(job.task_id, index, grid, str(c["group"]), _finite(c["nll"]), job.kind))
            for c in body["scored"]:
                grid = parse_grid(c["grid"], where=where, task_id=job.task_id)
                nlls = tuple(_finite(v) for v in c["nll_by_view"])
                scored.append(ScoredCandidate(job.task_id, index, grid, nlls, str(c.get("stage", job.kind))))
        except (ArcError, KeyError, TypeError, ValueError) as error:
            self.journal.append("dropped", task_id=job.task_id, reason=f"malformed candidate: {error}")
        if candidates:  # a second try of a job takes the place of the first, else its votes would count twice
            result.candidates = [c for c in result.candidates if c.test_index != index] + candidates
            result.scored = [c for c in result.scored if c.test_index != index]
        result.scored += scored
        self._vote(task, index)

    def _take_programs(self, result: TaskResult, index: int, rows: list[dict[str, Any]], task_id: str) -> None:
        """Programs of a test input from the latest pass take the place of those of earlier ones."""
        fresh = [
            Program(
                index,
                parse_grid(row["grid"], where=f"program for {task_id}", task_id=task_id),
                str(row["text"]),
                _finite(row["confidence"]),
                bool(row["fits_all"]),
            )
            for row in rows
        ]
        if fresh:
            result.programs = [p for p in result.programs if p.test_index != index] + fresh

    def _vote(self, task: Task, index: int) -> None:
        """Attempts from all that is known about a test input."""
        ranked = merged(self.result.results, task, index, self.settings)
        if ranked:
            self.submission.set(task.task_id, index, attempts(ranked, fallback_grids(task, index)))
            self._dirty = True

    def _done(self, slot: int, job: Job, body: dict[str, Any]) -> None:
        del self._jobs[slot]
        self.fleet.forgive(slot)
        seconds = _number(body, "seconds")
        known = {
            k: body[k] for k in ("outcome", "reason", "seconds", "steps", "loss", "tokens", "train_s") if k in body
        }
        self.journal.append("done", slot=slot, kind=job.kind, task_id=job.task_id, **known)
        if job.kind == JOINT:
            self.plan.joint_done()
            if body.get("outcome") == Outcome.FINISHED:
                self._joint_path = str(self.out / "joint.safetensors")
            return
        result = self.result.results.setdefault((job.kind, job.task_id), TaskResult())
        result.outcome, result.reason, result.seconds = str(body.get("outcome")), str(body.get("reason", "")), seconds
        if job.kind == SYNTHESIS:
            self.cost.observe_program(job.number, seconds)
            firsts = {p.test_index: p.sure for p in reversed(result.programs)}
            tests = range(len(self.tasks[job.task_id].tests))
            self.plan.program_done(job, sure=all(firsts.get(index, False) for index in tests))
            return
        self.result.train_tokens += int(_number(body, "train_tokens"))
        self.result.train_s += _number(body, "train_s")
        if result.outcome == Outcome.FINISHED and job.share == 1.0:
            self.cost.observe(self.tasks[job.task_id], job.kind, seconds)

    def _died(self, death: Death) -> None:
        self.result.deaths.append(death.cause)
        job = self._jobs.pop(death.slot, None)
        again = self.plan.lost(job) if job is not None else False
        if job is not None and job.kind != JOINT and not again:
            result = self.result.results.setdefault((job.kind, job.task_id), TaskResult())
            result.outcome, result.reason = Outcome.LOST, death.cause
        self.journal.append(
            "death",
            slot=death.slot,
            cause=death.cause,
            task_id=job.task_id if job else "",
            again=again,
            final=death.final,
        )

    def _write(self, *, final: bool = False) -> None:
        """Replace the submission if something changed; at most twice a second, and always at the end."""
        if not self._dirty or (not final and self.clock.now() - self._written_s < WRITE_EVERY_S):
            return
        try:
            self.submission.write()
            self._dirty = False
        except OSError as error:
            self.result.write_errors += 1
            self.journal.append("write failed", reason=str(error))
        self._written_s = self.clock.now()

    def _status(self) -> Status:
        done = [kind for (kind, _), result in self.result.results.items() if result.outcome]
        running = [f"{job.kind} {job.task_id or 'all tasks'}" for job in self._jobs.values()]
        elapsed = self.clock.now() - self.start_s
        counts = (done.count(BASE), done.count(TTT), done.count(SYNTHESIS))
        return Status(elapsed, self.result.limit_s, *counts, len(self.tasks), running)

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


def _finite(value: Any) -> float:
    """A number that can be ranked. Raises ValueError for NaN and infinities."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no likelihood")
    return number


def _number(body: dict[str, Any], name: str) -> float:
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
