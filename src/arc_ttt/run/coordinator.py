"""A run: tasks -> fleet -> votes -> submission. Owns the clock; ends in time whatever the workers do.

The submission is complete and on the disk before the first worker starts, and is replaced whenever an answer changes.
What runs next is decided in `schedule`, how processes live and die in `fleet`; here the two meet.
"""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.checkpoints.shape import Model
from arc_ttt.deadline import Deadline
from arc_ttt.errors import ArcError
from arc_ttt.fleet.launch import make_hello, work_until
from arc_ttt.fleet.workers import Death, Message, Workers
from arc_ttt.protocol.jobs import BASE, JOINT, SYNTHESIS, TTT, Job, Outcome
from arc_ttt.protocol.messages import (
    EXIT_DEVICE_LOST,
    EXIT_MEANS,
    REFUSED,
    STUCK,
    ended_fields,
    found_fields,
    number_of,
    task_json,
)
from arc_ttt.run.board import OVERDUE, OVERDUE_S, SUPERSEDED, RunningJob
from arc_ttt.run.findings import Findings
from arc_ttt.run.journal import Journal
from arc_ttt.run.model_trust import LOAD_DEATHS, LOAD_TRIES
from arc_ttt.run.recovery import ERROR, past_lines
from arc_ttt.run.report import COMPILE, DECODE, IDLE, KILLED, LOAD, RESERVE, TRAIN, Ledger, RunResult, Status
from arc_ttt.run.signals import on_signals
from arc_ttt.run.submission import Submission
from arc_ttt.run.writer import WRITE_EVERY_S, WRITE_MOST_S, WRITE_SHARE
from arc_ttt.schedule.cost import CostModel
from arc_ttt.schedule.devices import DEVICE_TYPES
from arc_ttt.schedule.gains import least_share
from arc_ttt.schedule.plan import Plan
from arc_ttt.schedule.shapes import views_of
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks

POLL_S = 0.2
MOST_NOTES = 50  # of workers, while they load
MEMORY_EVERY_S, LOW_MEMORY = 1.0, 512 * 1024**2  # how often memory is looked at, and what is too little of it
NO_MEMORY = "memory runs low"  # why a worker of synthesis is killed
ANOTHER_MODEL = "another model is loaded instead"  # why a worker that still loads is killed


class Coordinator:
    """One run. `start_s` is the moment, on the clock of `deadline`, from which the limit counts.

    program_slots: slots of the fleet whose workers synthesize. cores: where these share cores with the devices, how
    many jobs may run at once; 0 where they do not. fallback: settings to go on with when the model cannot be loaded.
    submission, journal: where answers and events go if not into files below `out`. poll_s: longest wait for an event.
    device: one of `cost.DEVICE_TYPES`, for predictions until jobs have ended. cost: predictions made already. past: the
    journal of an interrupted run to go on from; mark: tells such a run from others. signals: SIGTERM and SIGINT that
    have come already. free_memory: bytes the machine has left, None where nobody knows.
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
        device: str = "cpu",
        cost: CostModel | None = None,
        past: Sequence[Mapping[str, Any]] = (),
        mark: str = "",
        signals: list[int] | None = None,
        free_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.loaded, self.settings, self.out = loaded, settings, out
        self.start_s, self.fleet = start_s, fleet
        self.clock, self.poll_s = deadline.clock, poll_s
        self.limit = deadline
        self.stop_at = deadline.minus(settings.run.reserve)
        self.work_until = work_until(settings, deadline)
        self.tasks = {task.task_id: task for task in loaded.tasks}
        self.device = device
        self.cost = cost or self._make_cost()
        self.fallback = fallback
        self.program_slots, self.cores = frozenset(program_slots), cores
        self.devices = [slot for slot in fleet.slots if slot not in self.program_slots]
        self.plan = self._make_plan()
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
        self._task_json: dict[str, dict[str, Any]] = {}
        self._ended: Counter[str] = Counter()
        self._ready: set[int] = set()
        self._jobs: dict[int, RunningJob] = {}  # by slot
        self._job_number = 0
        self._dirty = True
        self._next_write_s = -math.inf
        self._joint_path = ""
        self.past, self.mark = past, mark
        self.signals = signals if signals is not None else []
        self.free_memory = free_memory
        self._memory_looked_at_s = -math.inf
        self._short_of_memory = False
        self._generation, self._calibrates = 0, True  # of the model, and whether workers try out steps first
        self._loaded = False  # by a worker of a device, in this generation
        self._refused: set[int] = set()  # slots whose worker said that it cannot load this generation's model
        self._load_deaths: Counter[int] = Counter()  # by slot, of this generation while none has loaded it

    def _make_cost(self) -> CostModel:
        try:
            model = Model.of(read_config(model_folder(self.settings.model.path, gpu=self.device != "cpu")))
        except (ArcError, KeyError, TypeError, ValueError):
            model = Model()  # the workers will say what is wrong with it
        return CostModel(self.settings, model, self.device)

    def _make_plan(self) -> Plan:
        ttt, decode = self.settings.ttt, self.settings.decode
        shared = bool(self.cores and self.program_slots)
        return Plan(
            self.loaded.tasks,
            lambda task, kind, share: self.cost.predict(task, kind, share),
            budget_s=max(1.0, self.stop_at.remaining()) * max(1, len(self.devices)),
            passes=ttt.passes if ttt.scope in ("per-task", "joint") else 1,
            least_share=least_share(ttt.max_sequences * ttt.epochs),
            device_share=1 - self.settings.synthesis.share if shared else 1.0,
            order=self.settings.run.order,
            joint=ttt.scope if ttt.scope in ("shared", "joint") else "",
            base_share=decode.base_share if decode.base_views > 0 else 0.0,
            synthesis_share=self.settings.synthesis.share if self.cores else 1.0,
            synthesis_passes=len(self.settings.synthesis.cpu_limits_s) if self.program_slots else 0,
            predict_program=lambda number: self.cost.predict_program(number),
        )

    def _replan(self) -> None:
        """Let the plan know what the devices that are left can still do. Where searches share their cores, what those
        have taken is part of the whole too."""
        left_s = max(0.0, self.stop_at.remaining())
        usable_s = sum(left_s / self.cost.drift(slot) for slot in self._device_slots())
        spent_s = sum(seconds for kind, seconds in self.plan.spent_s.items() if kind != SYNTHESIS or self.cores)
        self.plan.replan(spent_s + usable_s)

    # The loop

    def run(self, on_status: Callable[[Status], None] = lambda status: None) -> RunResult:
        """Run to the end: all jobs done, the deadline less the reserve, or a signal."""
        self.journal.append("start", tasks=len(self.tasks), problems=len(self.loaded.problems), mark=self.mark)
        for problem in self.loaded.problems:
            self.journal.append("bad task", task_id=problem.task_id, reason=str(problem))
        for stale in self.out.glob(".submission.json.*.part"):  # a write that a kill cut short
            stale.unlink(missing_ok=True)
        self._resume()
        self._write()
        with on_signals(self.signals.append):  # the loop sees it within one poll
            try:
                if self.tasks:
                    self._loop(on_status)
            except BaseException as error:
                self.result.stopped_by = f"{ERROR} {type(error).__name__}"
                raise
            finally:
                self._end()
        return self.result

    def _resume(self) -> None:
        """Take in what an interrupted run of the same tasks and settings had found, and what it blamed for deaths.
        Passes that it had not ended wait again; their messages are replaced when they come anew."""
        answered = dict[tuple[str, int], None]()
        given_up = [str(event.get("reason")) for event in self.past if event.get("event") == "fallback"]
        if given_up and self.fallback is not None:
            self._give_model_up(given_up[0])
        for job, body in past_lines(self.past):
            if job.task_id not in self.tasks and job.kind != JOINT:
                continue
            if body["type"] == "death":
                if body.get("blamed") and not self.plan.past_death(job):
                    self._outcome(job, Outcome.LOST, str(body.get("cause")))
            elif body["type"] != "done":
                if self._take_in(job, body):
                    answered[job.task_id, body["test_index"]] = None
            elif job.kind != JOINT or Path(self._joint_file).is_file():
                self.plan.past(job)
                self._conclude(job, body)
        for task_id, index in answered:
            self._answer(task_id, index)
        if self.past:
            self.result.resumed = sum(self._ended.values())
            self.journal.append("resumed", passes=self.result.resumed)
            self.past = ()  # a long run's journal would stay in memory

    def _loop(self, on_status: Callable[[Status], None]) -> None:
        """No turn takes longer than a poll and a write: nothing here waits for a worker."""
        while not self._over():
            self._watch_memory()
            self._start_missing()
            self._call_back_overdue()
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
        if self.signals:
            self.result.stopped_by = f"signal {signal.Signals(self.signals[0]).name}"
        elif self.stop_at.passed():
            self.result.stopped_by = "deadline"
        else:
            return False
        return True

    def _end(self) -> None:
        """The last answers to the disk first, then the workers' end, which is not waited for."""
        stopped_s = self.clock.now()
        for slot in self.devices:
            working, loading = slot in self._jobs, self.fleet.alive(slot) and slot not in self._ready
            self.ledger.spend(slot, stopped_s, KILLED if working else LOAD if loading else IDLE)
            self.ledger.spend(slot, max(stopped_s, self.limit.at_s), RESERVE)
        self._write()
        if self._dirty:  # a disk that refused may take it now
            self._write()
        self.fleet.stop()
        self.result.quarantined = list(self.plan.quarantined)
        self.result.seconds = self.clock.now() - self.start_s
        self.journal.append("end", stopped_by=self.result.stopped_by, seconds=round(self.result.seconds, 3))
        self.journal.close()

    def _anything_coming(self) -> bool:
        """Whether a job that waits could still start. Asked when none runs: a ready worker found none that fits."""
        if not self.fleet.slots:
            self.result.stopped_by = self.result.fatal or "all workers lost"
            return False
        for synthesizes, waiting in ((False, self.plan.left), (True, self.plan.searches_left)):
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
            if not self.fleet.alive(slot) and not (self._short_of_memory and slot in self.program_slots):
                if self.result.fatal and slot not in self.program_slots:
                    self.fleet.retire(slot)
                else:
                    self.ledger.spend(slot, self.clock.now(), IDLE)
                    self.fleet.start(slot)

    def _watch_memory(self) -> None:
        """While the machine's memory runs low, give up the workers of synthesis, one at a look, and start none."""
        if self.clock.now() - self._memory_looked_at_s < MEMORY_EVERY_S:
            return
        self._memory_looked_at_s = self.clock.now()
        free = self.free_memory()
        self._short_of_memory = free is not None and free < LOW_MEMORY
        alive = [slot for slot in self.fleet.slots if slot in self.program_slots and self.fleet.alive(slot)]
        if self._short_of_memory and alive:
            self._died(self.fleet.kill(alive[-1], NO_MEMORY))

    def _dispatch(self) -> None:
        """Give jobs to idle workers: programs within their share, devices, then programs with what cores are left."""
        left_s = self.work_until.remaining()
        free = [slot for slot in self.fleet.slots if slot not in self._jobs and self.fleet.ready(slot)]
        programs = [slot for slot in free if slot in self.program_slots]
        devices = [slot for slot in free if slot not in self.program_slots]
        self._give(programs, lambda slot: self.plan.next_program(left_s, within_share=True))
        self._give(devices, lambda slot: self.plan.next_job(left_s / self.cost.drift(slot)))
        self._give(programs, lambda slot: self.plan.next_program(left_s, within_share=False))

    def _give(self, slots: Sequence[int], next_job: Callable[[int], Job | None]) -> None:
        for slot in slots:
            if slot in self._jobs or (self.cores and len(self._jobs) >= self.cores):
                continue
            job = next_job(slot)
            if job is None:
                continue
            self._job_number += 1
            body, now_s = self._body(job, slot), self.clock.now()
            predicted_s = job.predicted_s * (1.0 if slot in self.program_slots else self.cost.drift(slot))
            until_s = body.get("until", math.inf)
            self._jobs[slot] = RunningJob(job, self._job_number, now_s, now_s + predicted_s, until_s)
            self.ledger.spend(slot, now_s, IDLE)
            self.fleet.send(slot, {"type": "job", "id": self._job_number, "kind": job.kind, **body})
            self.journal.append(
                "job",
                slot=slot,
                kind=job.kind,
                task_id=job.task_id,
                number=job.number,
                share=round(job.share, 4),
                predicted_s=round(predicted_s, 2),
            )

    def _call_back_overdue(self) -> None:
        """End jobs that show progress long after the time at which their workers were told to end them."""
        now_s = self.clock.now()
        for slot, running in self._jobs.items():
            if now_s > running.until_s + OVERDUE_S:
                self._call_back(slot, OVERDUE)

    def _call_back_superseded(self, task_id: str) -> None:
        """End jobs over a task that a program seems to have solved meanwhile, where others have more to gain. What is
        left of them must be worth the start of a new worker, in case this one does not listen."""
        now_s, remaining_s = self.clock.now(), self.work_until.remaining()
        for slot, running in self._jobs.items():
            if running.job.task_id != task_id or running.left_s(now_s) < DEVICE_TYPES[self.device].load_s:
                continue
            if self.plan.superseded(running.job, remaining_s):
                self._call_back(slot, SUPERSEDED)

    def _call_back(self, slot: int, cause: str) -> None:
        """Ask a worker to end its job with what it has; one that does not is killed."""
        running = self._jobs[slot]
        if running.called_back:
            return
        self._jobs[slot] = replace(running, called_back=cause)
        self.result.called_back[cause] += 1
        self.journal.append("cancel", slot=slot, task_id=running.job.task_id, cause=cause)
        self.fleet.cancel(slot, cause)

    def _body(self, job: Job, slot: int) -> dict[str, Any]:
        if job.kind == JOINT:
            share = 0.5 if self.settings.ttt.scope == "shared" else 0.2
            until = self.clock.now() + share * max(0.0, self.stop_at.remaining())
            return {"tasks": {i: self._json_of(i) for i in self.tasks}, "path": self._joint_file, "until": until}
        body: dict[str, Any] = {"task_id": job.task_id, "task": self._json_of(job.task_id)}
        if job.kind == SYNTHESIS:
            return body | {"cpu_limit_s": self.settings.synthesis.cpu_limit_s(job.number)}
        body["until"] = min(self.work_until.at_s, self.clock.now() + self.cost.cap(job.predicted_s, slot))
        if job.kind == TTT:
            body |= {"number": job.number, "share": job.share, "views": views_of(TTT, job.share, self.settings)}
            body["decode_s"] = self.cost.decoding(self.tasks[job.task_id], job.share) * self.cost.drift(slot)
            body["longest"] = self.cost.longest()
            body["programs"] = self.findings.programs_for(job.task_id)
            if self._joint_path:
                body["joint"] = self._joint_path
        return body

    @property
    def _joint_file(self) -> str:
        return str(self.out / "joint.safetensors")

    def _json_of(self, task_id: str) -> dict[str, Any]:
        if task_id not in self._task_json:
            self._task_json[task_id] = task_json(self.tasks[task_id])
        return self._task_json[task_id]

    # Events in

    def _heard(self, message: Message) -> None:
        body = message.body
        running = self._jobs.get(message.slot)
        job = running.job if running is not None and body.get("job", running.number) == running.number else None
        if body["type"] == "fatal":
            self._model_failed(message.slot, body)
        elif body["type"] == "ready" and message.slot not in self._ready and self.fleet.alive(message.slot):
            self._ready.add(message.slot)
            self._loaded = self._loaded or message.slot not in self.program_slots
            self.ledger.spend(message.slot, self.clock.now(), LOAD)
            self.journal.append("ready", slot=message.slot, device=body.get("device"), dtype=body.get("dtype"))
            self._noted(body.get("notes"))
            self._calibrated(body.get("calibration"))
            if self.cost.observations == 0:
                self._replan()
        elif body["type"] in ("candidates", "programs") and job is not None and body.get("task_id") == job.task_id:
            if self._take(job, body):
                self.journal.append("found", **job.to_json(), **found_fields(body))
        elif body["type"] == "done" and running is not None and job is not None:
            self._done(message.slot, running, body)

    def _calibrated(self, rows: Any) -> None:
        """Let predictions follow what a worker tried out; workers that are started later need not try again."""
        names = ("length", "sequences", "seconds", "fitted")
        rows = rows if isinstance(rows, list) else []
        rows = [{name: number_of(row, name) for name in names} for row in rows if isinstance(row, dict)]
        if rows:
            self.journal.append("calibrated", rows=rows)
            self.cost.calibrate(rows)
            self._greet(calibrate=False)

    def _greet(self, *, calibrate: bool) -> None:
        """What workers are told that are started from now on."""
        self._calibrates = self._calibrates and calibrate
        hello = make_hello(self.settings, self.limit, calibrate=self._calibrates, generation=self._generation)
        self.fleet.greet(hello)

    def _noted(self, notes: object) -> None:
        """What a worker did otherwise than asked while it loaded, once for all that did so."""
        for note in notes if isinstance(notes, list) else ():
            if isinstance(note, str) and note not in self.result.notes and len(self.result.notes) < MOST_NOTES:
                self.result.notes.append(note)
                self.journal.append("note", text=note)

    def _model_failed(self, slot: int, body: Mapping[str, Any]) -> None:
        """A worker says that it cannot load the model. Where another has loaded it, or still may, that is this worker's
        own trouble, and its end one of its deaths."""
        reason, generation = str(body.get("reason", "")), body.get("generation")
        self.journal.append("fatal", slot=slot, reason=reason)
        if body.get("model", "") != self.settings.model.path or generation not in (None, self._generation):
            return  # of the model that has been given up already
        self._refused.add(slot)
        if not self._loaded and self._refused.issuperset(self._device_slots()):
            self._give_model_up(reason)

    def _give_model_up(self, reason: str) -> None:
        """No worker can load the model: go on with the fallback, or without devices where there is none."""
        if self.fallback is None:
            self.result.fatal = f"the model could not be loaded: {reason}"
            return
        self.result.fell_back = reason
        self.settings, self.fallback = self.fallback, None
        self.cost, fresh = self._make_cost(), self._make_plan()
        for name in ("passes", "least_share", "base_share", "joint", "joint_state"):
            setattr(self.plan, name, getattr(fresh, name))
        self._joint_path = ""  # an adapter of the other model
        self._generation += 1
        self._loaded, self._calibrates = False, True
        self._refused, self._load_deaths = set(), Counter()
        self._greet(calibrate=True)
        self.journal.append("fallback", model=self.settings.model.path or "embedded", reason=reason)
        for slot in self.devices:
            self.fleet.forgive(slot)
            if self.fleet.alive(slot):
                self._died(self.fleet.kill(slot, ANOTHER_MODEL))
        self._replan()

    def _device_slots(self) -> list[int]:
        """Slots of devices that have a worker, or may get one again."""
        return [slot for slot in self.fleet.slots if slot not in self.program_slots]

    def _take(self, job: Job, body: Mapping[str, Any]) -> bool:
        """Let what a worker found for a test input change its attempts. Returns whether it was well-formed."""
        if not self._take_in(job, body):
            return False
        self._answer(job.task_id, body["test_index"])
        return True

    def _take_in(self, job: Job, body: Mapping[str, Any]) -> bool:
        """Add what a worker found to the findings. Returns whether it was well-formed."""
        dropped = self.findings.take(job.kind, job.task_id, job.number, job.share, body)
        if dropped:
            self.journal.append("dropped", task_id=job.task_id, reason=dropped)
        return not dropped

    def _answer(self, task_id: str, index: int) -> None:
        """Let the attempts of a test input follow from the findings."""
        both = self.findings.attempts(task_id, index, self.settings)
        if both is not None:
            self.submission.set(task_id, index, both)
            self._dirty = True

    def _done(self, slot: int, running: RunningJob, body: Mapping[str, Any]) -> None:
        job = running.job
        del self._jobs[slot]
        self.fleet.forgive(slot)
        parts = {TRAIN: number_of(body, "train_s"), COMPILE: number_of(body, "compile_s")}
        self.ledger.spend(slot, self.clock.now(), DECODE, parts)
        self.journal.append("done", slot=slot, **job.to_json(), **ended_fields(body))
        self._conclude(job, body, superseded=running.called_back == SUPERSEDED)
        if job.kind in (BASE, TTT):
            seen = {name: number_of(body, name) for name in ("seconds", "train_s", "train_tokens", "steps")}
            seen["seconds"] -= number_of(body, "compile_s")  # which the next job of its shape is spared
            self.result.train_tokens += int(seen["train_tokens"])
            self.result.train_s += seen["train_s"]
            self._learn(slot, job, body, seen)
        elif job.kind == JOINT:
            self.result.train_tokens += int(number_of(body, "train_tokens"))

    def _conclude(self, job: Job, body: Mapping[str, Any], *, superseded: bool = False) -> None:
        """Let what is known about a pass, its plan included, follow its end."""
        outcome = str(body.get("outcome"))
        if job.kind == JOINT:
            self.plan.done(job, failed=False, agreement=0.0)
            if outcome == Outcome.FINISHED:
                self._joint_path = self._joint_file
            return
        reason = SUPERSEDED if superseded and outcome == Outcome.CUT else str(body.get("reason", ""))
        self._outcome(job, outcome, reason, number_of(body, "seconds"))
        if job.kind == SYNTHESIS:
            if outcome == Outcome.FINISHED:
                self.cost.observe_program(job.number, number_of(body, "seconds"))
            sure = self.findings.sure(job.task_id)
            self.plan.program_done(job, sure=sure)
            if sure:
                self._call_back_superseded(job.task_id)
            return
        if body.get("degraded"):
            self.result.degraded.append(job.task_id)
        trained = self.settings.ttt.scope not in ("per-task", "joint") or number_of(body, "steps") > 0
        failed = outcome in (Outcome.FAILED, Outcome.DIVERGED) or (outcome == Outcome.FINISHED and not trained)
        self.plan.done(job, failed=failed, agreement=self.findings.agreement(job.task_id))

    def _learn(self, slot: int, job: Job, body: Mapping[str, Any], seen: Mapping[str, float]) -> None:
        """Let predictions follow a job that ended."""
        task, outcome = self.tasks[job.task_id], str(body.get("outcome"))
        too_large = str(body.get("reason", "")).startswith("out of memory in training")
        shortened = "shorter sequences" in str(body.get("degraded"))
        if job.kind == TTT and (too_large or (seen["steps"] > 0 and not shortened)):
            self.cost.observe_memory(task, fitted=not too_large)
        if outcome == Outcome.FINISHED:
            predicted_s = job.predicted_s * self.cost.drift(slot)
            self.result.ratios.setdefault(job.kind, []).append(seen["seconds"] / max(1e-3, predicted_s))
            self.cost.observe(task, job.kind, slot, job.share, seen)
        elif outcome == Outcome.CUT and job.kind == TTT:
            self.cost.observe_cut(task, slot, seen)
        else:
            return
        if self.cost.settled:
            self._replan()

    def _outcome(self, job: Job, outcome: str, reason: str, seconds: float = 0.0) -> None:
        """Note how a pass ended."""
        result = self.findings.of(job.kind, job.task_id)
        self._ended[job.kind] += not result.outcome
        result.seconds += seconds
        if result.outcome != Outcome.FINISHED:  # what one pass has finished stays so when a later one is cut
            result.outcome, result.reason = outcome, reason
        if reason == SUPERSEDED:
            return
        if outcome == Outcome.CUT:
            self.result.cut.append(job.task_id)
        elif outcome != Outcome.FINISHED and job.kind != SYNTHESIS:
            self.result.degraded.append(job.task_id)

    def _died(self, death: Death) -> None:
        self.result.deaths.append(death.cause)
        running = self._jobs.pop(death.slot, None)
        job = running.job if running is not None else None
        self.ledger.spend(death.slot, self.clock.now(), KILLED if job else IDLE if death.slot in self._ready else LOAD)
        if death.slot not in self.program_slots:
            self._be_careful(death)
        self._ready.discard(death.slot)
        superseded = running is not None and running.called_back == SUPERSEDED
        blamed = death.cause != NO_MEMORY and not superseded
        again = self.plan.lost(job, blamed=blamed) if job is not None and not superseded else False
        if death.final and death.slot in self.devices and death.slot not in self.fleet.slots:
            self.result.lost_devices.append(death.slot)
            self._replan()
        if job is not None and superseded:  # its worker did not listen, which is not the task's fault
            self._conclude(job, {"outcome": Outcome.CUT}, superseded=True)
        elif job is not None and job.kind != JOINT and not again:
            self._outcome(job, Outcome.LOST, death.cause)
        self.journal.append(
            "death",
            slot=death.slot,
            cause=death.cause,
            **(job.to_json() if job else {"task_id": ""}),
            blamed=blamed,
            again=again,
            final=death.final,
        )

    def _be_careful(self, death: Death) -> None:
        """After a device worker's death its successors do without what may have caused it: trying out steps, where it
        died while loading; recorded steps, where its device was lost; the model, where all die that load it."""
        if death.cause.startswith((ANOTHER_MODEL, REFUSED, STUCK)):
            return  # nothing that it did
        if EXIT_MEANS[EXIT_DEVICE_LOST] in death.cause and self.settings.model.record:
            self.settings = self.settings.override([("model.record", False)])
            self._greet(calibrate=False)
        elif death.slot not in self._ready and self._calibrates:
            self._greet(calibrate=False)
        if death.slot in self._ready or self._loaded or self.fallback is None:
            return
        self._load_deaths[death.slot] += 1
        each = [self._load_deaths[slot] for slot in self._device_slots()]
        if self._load_deaths.total() >= LOAD_DEATHS and min(each, default=LOAD_DEATHS) >= LOAD_TRIES:
            self._give_model_up(f"its workers died while they loaded it: {death.cause}")

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
        self._next_write_s = now_s + min(WRITE_MOST_S, max(WRITE_EVERY_S, (now_s - start_s) / WRITE_SHARE))

    def _status(self) -> Status:
        jobs = [running.job for running in self._jobs.values()]
        running = [f"{job.kind} {job.task_id or 'all tasks'}" for job in jobs]
        counts = (self._ended[BASE], self._ended[TTT], self._ended[SYNTHESIS])
        return Status(self.clock.now() - self.start_s, self.result.limit_s, *counts, len(self.tasks), running)
