"""Main of one worker process: load the model once, or with the argument "synthesis" none, then one job after another.

Lines in: hello {settings, deadline}, job {id, kind, task...}, stop. Lines out: ready, progress, candidates,
programs, done, fatal. The protocol has a file descriptor of its own: whatever libraries print goes to the log.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.errors import ArcError, ModelError
from arc_ttt.events import Outcome
from arc_ttt.grids import Grid, Task, parse_grid, parse_task
from arc_ttt.settings import Settings

if TYPE_CHECKING:  # importing it needs torch, which a worker of synthesis does without
    from arc_ttt.solve import Answers

EXIT_FATAL = 13
NICENESS = 10  # of synthesis: device workers go first
MEMORY_BYTES = 3 * 1024**3  # address space of a synthesis worker; it uses less than 500 MB
MAX_PROGRAMS = 4  # sent for each test input
PROGRESS_EVERY_S = 1.0
Send = Callable[[dict[str, Any]], None]


def main() -> int:
    """Serve jobs until the input ends."""
    _die_with_parent()
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # from here on, prints go to the log
    send: Send = lambda body: _write(channel, body)  # noqa: E731
    hello = json.loads(sys.stdin.readline() or "{}")
    try:
        settings = Settings.from_json(hello["settings"])
        kind = _ProgramServer if sys.argv[1:] == ["synthesis"] else _ModelServer
        server = kind(settings, hello, send)
    except Exception as error:  # whatever a library raises while it loads a model: the coordinator decides how to go on
        traceback.print_exc()
        reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        send({"type": "fatal", "reason": reason, "model": settings.model.path})
        return EXIT_FATAL
    send({"type": "ready", **server.about})
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "stop":
            break
        server.serve(message)
    return 0


class _Server:
    """Does one job at a time and answers for it, whatever happens."""

    about: dict[str, Any]

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send) -> None:
        self.settings, self.send = settings, send
        self.deadline = Deadline(hello["deadline"])

    def work(self, message: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Do the job and return what its last line says."""
        raise NotImplementedError

    def serve(self, message: dict[str, Any]) -> None:
        """Do one job and answer for it."""
        start_s, last_s = REAL_CLOCK.now(), 0.0

        def progress(phase: str, done: int, of: int) -> None:
            nonlocal last_s
            if REAL_CLOCK.now() - last_s > PROGRESS_EVERY_S:
                last_s = REAL_CLOCK.now()
                self.send({"type": "progress", "job": message["id"], "phase": phase, "done": done, "of": of})

        body: dict[str, Any] = {"type": "done", "job": message["id"]}
        try:
            body |= self.work(message, progress)
        except (ArcError, MemoryError, RuntimeError, ValueError) as error:  # RuntimeError: torch's, out of memory too
            traceback.print_exc()
            body |= {"outcome": Outcome.FAILED, "reason": f"{type(error).__name__}: {error}"[:500]}
        body["seconds"] = round(REAL_CLOCK.now() - start_s, 3)
        self.send(body)


class _ProgramServer(_Server):
    """CPU program synthesis; never imports torch."""

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send) -> None:
        super().__init__(settings, hello, send)
        os.nice(NICENESS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        self.about = {"device": "synthesis"}

    def work(self, message: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        from arc_ttt.synthesis import synthesize

        task = _task(message["task_id"], message["task"])
        found = synthesize(task, cpu_limit_s=message["cpu_limit_s"], deadline=self.deadline)
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
                }
            )
        return {"outcome": Outcome.FINISHED, "reason": ""}


class _ModelServer(_Server):
    """One model on one device.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send) -> None:
        super().__init__(settings, hello, send)
        import torch

        from arc_ttt.loading import ready_solver
        from arc_ttt.solve import pick_device

        torch.set_num_threads(settings.run.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        device = pick_device(hello.get("gpu"))
        self.solver, notes = ready_solver(settings, device)
        for note in notes:
            print(note, file=sys.stderr)
        base = self.solver.base
        dtype = str(base.dtype).removeprefix("torch.")
        self.about = {"device": str(device), "dtype": dtype, "parameters": base.parameters, "notes": notes}
        self._joint_loaded = ""

    def work(self, message: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        return self._joint(message, progress) if message["kind"] == "joint" else self._one(message, progress)

    def _one(self, message: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        task = _task(message["task_id"], message["task"])
        joint = message.get("joint", "")
        if joint and joint != self._joint_loaded and self.solver.adapter is not None:
            self.solver.adapter.load(Path(joint))
            self.solver.adapter.rebase()
            self._joint_loaded = joint
        self.solver.on_found = lambda index, answers: self._send_found(message["id"], task.task_id, index, answers)
        if message["kind"] == "base":
            answers = self.solver.answer(task, self.deadline, progress)
        else:
            share, decode_s = message.get("share", 1.0), message.get("decode_s", 0.0)
            programs = {int(index): [_grid(rows) for rows in grids] for index, grids in message["programs"].items()}
            answers = self.solver.adapt(
                task, self.deadline, progress, share=share, decode_s=decode_s, programs=programs
            )
        body = {"outcome": answers.outcome, "reason": answers.reason, "tokens": answers.tokens}
        if answers.training is not None:
            report = answers.training
            body |= {"train_s": round(report.seconds, 3), "train_tokens": report.tokens, "steps": report.steps}
            body |= {"loss": [round(report.losses[0], 4), round(report.losses[-1], 4)] if report.losses else []}
        return body

    def _send_found(self, job: int, task_id: str, index: int, answers: Answers) -> None:
        """Send what was found for one test input."""
        candidates = [
            {"grid": c.grid.tolist(), "group": c.group, "nll": c.nll}
            for c in answers.candidates
            if c.test_index == index
        ]
        scored = [
            {"grid": c.grid.tolist(), "nll_by_view": c.nll_by_view, "stage": c.stage}
            for c in answers.scored
            if c.test_index == index
        ]
        where = {"job": job, "task_id": task_id, "test_index": index}
        self.send({"type": "candidates", **where, "candidates": candidates, "scored": scored})

    def _joint(self, message: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        tasks = [_task(task_id, body) for task_id, body in message["tasks"].items()]
        report = self.solver.adapt_jointly(tasks, Deadline(message["until"]), progress)
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


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the coordinator dies; end at once if it is dead already."""
    parent = int(os.environ.get("ARC_TTT_COORDINATOR", os.getppid()))  # it may have died before this line
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux: the end of the input ends the worker
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
