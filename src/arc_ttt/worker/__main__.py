"""Main of one worker process: load the model once, or with the argument "synthesis" none, then one job after another.

Lines in: hello {settings, deadline}, job {id, kind, task...}, cancel, stop. Lines out: ready, progress, candidates,
programs, done, fatal. The protocol has a file descriptor of its own: whatever libraries print goes to the log.

Every loop of the work asks its deadline whether it has passed. Here that question is also the heartbeat, sent by the
working thread itself: a worker that is stuck anywhere falls silent.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import random
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from arc_ttt.deadline import REAL_CLOCK, Deadline, cpu_seconds
from arc_ttt.errors import ModelError
from arc_ttt.faults import DeviceLost, device_lost
from arc_ttt.fleet.fleet import EXIT_DEVICE_LOST, EXIT_FATAL, PARENT, READ_BYTES
from arc_ttt.run.journal import Outcome
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Grid, Task, parse_grid, parse_task

if TYPE_CHECKING:  # importing it needs torch, which a worker of synthesis does without
    from arc_ttt.worker.solver import Answers

NICENESS = 10  # of synthesis: device workers go first
AUTOGROUP_TRIES = 20
OOM_SCORES = {"device": "500", "synthesis": "900"}  # who goes first when the machine runs out of memory
MEMORY_BYTES = 3 * 1024**3  # address space of a synthesis worker; it uses less than 500 MB
CPU_SLACK_S, CPU_TIMES = 10, 3  # a job of synthesis that uses so many more CPU seconds than its limit is ended
MAX_PROGRAMS = 4  # sent for each test input
CALIBRATE_S = 120.0  # at most, before the first job
PROGRESS_EVERY_S = 1.0
Send = Callable[[dict[str, Any]], None]
Progress = Callable[[str, int, int], None]


def main() -> int:
    """Serve jobs until the input ends."""
    _die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # a worker that hangs leaves in its log where
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # from here on, prints go to the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # also those of a process that is killed
    send: Send = lambda body: _write(channel, body)  # noqa: E731
    inbox = Inbox(0)
    hello = inbox.next() or {}
    name = "synthesis" if sys.argv[1:] == ["synthesis"] else "device"
    _offer_to_the_oom_killer(OOM_SCORES[name])
    server = load_server(name, hello, send, inbox)
    if isinstance(server, int):
        return server
    send({"type": "ready", **server.about})
    while (message := inbox.next()) is not None and message["type"] != "stop":
        if message["type"] == "job":  # a cancel comes too late here: its job is done
            try:
                server.serve(message)
            except Exception as error:
                if not device_lost(error):
                    raise
                traceback.print_exc()
                return EXIT_DEVICE_LOST
    return 0


def load_server(name: str, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> Server | int:
    """The server of a worker, or the exit code when it cannot be had."""
    path = ""
    try:
        settings = Settings.from_json(hello["settings"])
        path = settings.model.path
        kind = ProgramServer if name == "synthesis" else ModelServer
        return kind(settings, hello, send, inbox)
    except Exception as error:  # whatever a library raises while it loads a model: the coordinator decides how to go on
        traceback.print_exc()
        if device_lost(error):
            return EXIT_DEVICE_LOST
        reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        send({"type": "fatal", "reason": reason, "model": path, "generation": hello.get("generation")})
        return EXIT_FATAL


class Inbox:
    """Lines of the coordinator: waited for between jobs, looked for during one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = bytearray()
        self._ended = False

    def next(self) -> dict[str, Any] | None:
        """The next message; None at the end of the input."""
        while b"\n" not in self._bytes:
            if self._ended:
                return None
            self._read()
        line, _, rest = self._bytes.partition(b"\n")
        self._bytes = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        return message

    def cancelled(self) -> bool:
        """Whether a message waits: during a job only one that ends it can come."""
        while not self._ended and select.select([self._descriptor], [], [], 0)[0]:
            self._read()
        return self._ended or b"\n" in self._bytes

    def _read(self) -> None:
        piece = os.read(self._descriptor, READ_BYTES)
        self._ended = not piece
        self._bytes += piece


class Pulse:
    """What a job shows of itself: its progress, at most once a second and at each new phase; and whether it goes on."""

    def __init__(self, send: Send, inbox: Inbox | None, job: int) -> None:
        self._send, self._inbox = send, inbox
        self._body = {"type": "progress", "job": job, "phase": "start", "done": 0, "of": 0}
        self.next_s = 0.0
        self.cancelled = False
        self.beat(REAL_CLOCK.now())

    def progress(self, phase: str, done: int, of: int) -> None:
        """Note where the job stands; a new phase is told at once."""
        new = phase != self._body["phase"]
        self._body |= {"phase": phase, "done": done, "of": of}
        if new:
            self.beat(REAL_CLOCK.now())

    def beat(self, now_s: float) -> None:
        """Tell, and look whether the job is wanted any longer."""
        self.next_s = now_s + PROGRESS_EVERY_S
        self._send(self._body)
        self.cancelled = self.cancelled or (self._inbox is not None and self._inbox.cancelled())


@dataclass(frozen=True, slots=True)
class JobDeadline(Deadline):
    """The deadline of a job, which comes at once when the job is cancelled. Asking it is a heartbeat."""

    pulse: Pulse | None = None

    def remaining(self) -> float:
        """Seconds left; minus infinity for a cancelled job."""
        now_s = self.clock.now()
        if self.pulse is not None:
            if now_s >= self.pulse.next_s:
                self.pulse.beat(now_s)
            if self.pulse.cancelled:
                return float("-inf")
        return self.at_s - now_s

    def minus(self, reserve_s: float) -> JobDeadline:
        return replace(self, at_s=self.at_s - reserve_s)


class Server:
    """Does one job at a time and answers for it, whatever happens."""

    about: dict[str, Any]

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        self.settings, self.send, self.inbox = settings, send, inbox
        self.deadline_s = float(hello["deadline"])

    def work(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        """Do the job and return what its last line says."""
        raise NotImplementedError

    def serve(self, message: dict[str, Any]) -> None:
        """Do one job and answer for it.

        Raises:
            RuntimeError: the device is lost (`faults.device_lost`); every other error is that of the job.
        """
        start_s = REAL_CLOCK.now()
        pulse = Pulse(self.send, self.inbox, message["id"])
        deadline = JobDeadline(min(self.deadline_s, message.get("until", self.deadline_s)), pulse=pulse)
        body: dict[str, Any] = {"type": "done", "job": message["id"]}
        try:
            body |= self.work(message, deadline, pulse.progress)
        except Exception as error:  # a bad task costs only itself
            if device_lost(error):
                raise
            traceback.print_exc()
            body |= {"outcome": Outcome.FAILED, "reason": f"{type(error).__name__}: {error}"[:500]}
        body["seconds"] = round(REAL_CLOCK.now() - start_s, 3)
        self.send(body)


class ProgramServer(Server):
    """CPU program synthesis; never imports torch. Limits of the process hold whatever the search does: it runs programs
    of its own making only, built from known primitives, so these guard against mistakes and not against malice."""

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        if inbox is not None:  # a process of its own
            _give_way(NICENESS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.about = {"device": "synthesis"}

    def work(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        from arc_ttt.synthesis.solver import synthesize

        task = _task(message["task_id"], message["task"])
        progress("synthesis", 0, 1)
        if self.inbox is not None:
            limit_s = int(cpu_seconds() + CPU_TIMES * message["cpu_limit_s"] + CPU_SLACK_S)
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        found = synthesize(task, cpu_limit_s=message["cpu_limit_s"], deadline=deadline)
        cut = deadline.passed()
        for index in range(len(task.tests)):
            rows = [p for p in found if p.test_index == index][:MAX_PROGRAMS]
            programs = [
                {"grid": p.grid.tolist(), "text": p.program, "confidence": p.confidence, "fits_all": p.fits_all}
                for p in rows
            ]
            self.send(
                {
                    "type": "programs",
                    "job": message["id"],
                    "task_id": task.task_id,
                    "test_index": index,
                    "programs": programs,
                    "cut": cut,
                }
            )
        return {"outcome": Outcome.CUT if cut else Outcome.FINISHED, "reason": ""}


class ModelServer(Server):
    """One model on one device.

    Raises:
        ModelError: the model cannot be loaded.
        DeviceLost: there should be a GPU and there is none.
    """

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        import torch

        from arc_ttt.worker.calibrate import calibrate
        from arc_ttt.worker.ready import ready_solver
        from arc_ttt.worker.solver import pick_device

        torch.set_num_threads(settings.run.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new tensor is filled with NaN first, which nothing here needs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if hello.get("gpu") is not None and torch.version.cuda and not torch.cuda.is_available():
            raise DeviceLost("no CUDA device is available")
        device = pick_device(hello.get("gpu"))
        self.solver, notes = ready_solver(settings, device)
        for note in notes:
            print(note, file=sys.stderr)
        base = self.solver.base
        dtype = str(base.dtype).removeprefix("torch.")
        self.about = {"device": str(device), "dtype": dtype, "parameters": base.parameters, "notes": notes}
        if device.type == "cuda" and hello.get("calibrate") and self.solver.adapter is not None:
            until = Deadline(min(self.deadline_s, REAL_CLOCK.now() + CALIBRATE_S))
            ttt, recorded = self.solver.settings.ttt, self.solver.recorded
            try:
                self.about["calibration"] = calibrate(base, self.solver.adapter, ttt, until, recorded)
            except Exception as error:  # only a measurement
                if device_lost(error):
                    raise
                traceback.print_exc()
                self.solver.adapter.reset()
        self._joint_loaded = ""

    def work(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        job = self._joint if message["kind"] == "joint" else self._one
        return job(message, deadline, progress)

    def _one(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        task = _task(message["task_id"], message["task"])
        joint = message.get("joint", "")
        if joint and joint != self._joint_loaded and self.solver.adapter is not None:
            self.solver.adapter.load(Path(joint))
            self.solver.adapter.rebase()
            self._joint_loaded = joint
        self.solver.on_found = lambda index, answers: self._send_found(message["id"], task.task_id, index, answers)
        if message["kind"] == "base":
            answers = self.solver.answer(task, deadline, progress)
        else:
            programs = {int(index): [_grid(rows) for rows in grids] for index, grids in message["programs"].items()}
            effort = {name: message[name] for name in ("number", "share", "views", "longest", "decode_s")}
            answers = self.solver.adapt(task, deadline, progress, programs=programs, **effort)
        body = {"outcome": answers.outcome, "reason": answers.reason, "tokens": answers.tokens}
        body |= {"degraded": answers.degraded} if answers.degraded else {}
        if answers.training is not None:
            report = answers.training
            seconds = {"train_s": report.seconds - report.preparing_s, "compile_s": report.preparing_s}
            body |= {name: round(value, 3) for name, value in seconds.items()}
            body |= {"train_tokens": report.tokens, "steps": report.steps}
            body |= {"loss": [round(report.losses[0], 4), round(report.losses[-1], 4)] if report.losses else []}
        return body

    def _send_found(self, job: int, task_id: str, index: int, answers: Answers) -> None:
        """Send what was found for one test input."""
        candidates = [
            {"grid": c.grid.tolist(), "group": c.group, "nll": c.nll, "view": c.view}
            for c in answers.candidates
            if c.test_index == index
        ]
        scored = [
            {"grid": c.grid.tolist(), "nll_by_view": c.nll_by_view, "stage": c.stage}
            for c in answers.scored
            if c.test_index == index
        ]
        where = {"job": job, "task_id": task_id, "test_index": index}
        found = {"candidates": candidates, "scored": scored, "trained": round(answers.trained, 4)}
        self.send({"type": "candidates", **where, **found})

    def _joint(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        tasks = [_task(task_id, body) for task_id, body in message["tasks"].items()]
        report = self.solver.adapt_jointly(tasks, replace(deadline, at_s=message["until"]), progress)
        assert self.solver.adapter is not None
        self.solver.adapter.save(Path(message["path"]))
        self._joint_loaded = message["path"]
        return {"outcome": Outcome.FINISHED, "steps": report.steps, "train_tokens": report.tokens, "reason": ""}


def _task(task_id: str, body: dict[str, Any]) -> Task:
    return parse_task(task_id, body, where=f"job {task_id}")


def _grid(rows: object) -> Grid:
    return parse_grid(rows, where="program", task_id="")


def _write(channel: IO[bytes], body: dict[str, Any]) -> None:
    line = memoryview(json.dumps(body).encode() + b"\n")
    while line:
        line = line[channel.write(line) :]


def _give_way(niceness: int) -> None:
    """Let other processes go first, also those of other sessions: where the kernel shares cores out among sessions
    (autogroups), the niceness of a process counts only within its own."""
    os.nice(niceness)
    for _ in range(AUTOGROUP_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:  # of all users but root it takes one change in a tenth of a second
            REAL_CLOCK.sleep(random.uniform(0.1, 0.3))
        except OSError:  # no such kernel
            return
        else:
            return


def _offer_to_the_oom_killer(score: str) -> None:
    """Go before the coordinator when the machine runs out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(score)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the coordinator dies; end at once if it is dead already."""
    parent = int(os.environ.get(PARENT, os.getppid()))  # it may have died before this line
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux: the end of the input ends the worker
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
