"""Jobs of one model on one device."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.errors import DeviceLost, device_lost
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import job_grid, job_task
from arc_ttt.settings import Settings
from arc_ttt.worker.pulse import Inbox, JobDeadline, Progress, Send
from arc_ttt.worker.server import Server

if TYPE_CHECKING:
    from arc_ttt.decode.answerer import Answers

CALIBRATE_S = 120.0  # at most, before the first job


class ModelServer(Server):
    """One model on one device.

    Raises:
        ModelError: the model cannot be loaded.
        DeviceLost: there should be a GPU and there is none.
    """

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        import torch

        from arc_ttt.model.cuda import pick_device
        from arc_ttt.worker.calibrate import calibrate
        from arc_ttt.worker.ready import ready_solver

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
        task = job_task(message["task_id"], message["task"])
        joint = message.get("joint", "")
        if joint and joint != self._joint_loaded and self.solver.adapter is not None:
            self.solver.adapter.load(Path(joint))
            self.solver.adapter.rebase()
            self._joint_loaded = joint
        self.solver.on_found = lambda index, answers: self._send_found(message["id"], task.task_id, index, answers)
        if message["kind"] == "base":
            answers = self.solver.answer(task, deadline, progress)
        else:
            programs = {int(index): [job_grid(rows) for rows in grids] for index, grids in message["programs"].items()}
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
        tasks = [job_task(task_id, body) for task_id, body in message["tasks"].items()]
        report = self.solver.adapt_jointly(tasks, replace(deadline, at_s=message["until"]), progress)
        assert self.solver.adapter is not None
        self.solver.adapter.save(Path(message["path"]))
        self._joint_loaded = message["path"]
        return {"outcome": Outcome.FINISHED, "steps": report.steps, "train_tokens": report.tokens, "reason": ""}
