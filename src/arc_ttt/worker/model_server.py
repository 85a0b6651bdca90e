"""Jobs of one model on one device."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.errors import ArcError, DeviceLost, device_lost
from arc_ttt.protocol.jobs import BASE, OnProgress, Outcome
from arc_ttt.protocol.messages import Done, Found, FoundGrid, Ready, ScoredGrid, Trial
from arc_ttt.protocol.orders import AnswerOrder, Hello, JointOrder, Order
from arc_ttt.settings import Settings
from arc_ttt.worker.pulse import Inbox, JobDeadline, Send
from arc_ttt.worker.server import Server

if TYPE_CHECKING:
    from arc_ttt.worker.solver import PassAnswers

CALIBRATE_S = 120.0
"""The most seconds that training steps are tried out before the first job."""


class ModelServer(Server):
    """One model on one device.

    Raises:
        ModelError: the model cannot be loaded.
        DeviceLost: there should be a GPU and there is none.
    """

    def __init__(self, settings: Settings, hello: Hello, send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        import torch

        from arc_ttt.model.cuda import pick_device
        from arc_ttt.worker.ready import ready_solver

        torch.set_num_threads(settings.run.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new tensor is filled with NaN first, which nothing here needs.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if hello.gpu is not None and torch.version.cuda and not torch.cuda.is_available():
            raise DeviceLost("no CUDA device is available")
        device = pick_device(hello.gpu)
        self.solver, notes = ready_solver(settings, device)
        for note in notes:
            print(note.text, file=sys.stderr)
        base = self.solver.base
        trials = self._calibrate() if device.type == "cuda" and hello.calibrate else ()
        self.ready = Ready(str(device), str(base.dtype).removeprefix("torch."), base.parameters, notes, trials)
        self._joint_loaded = ""

    def _calibrate(self) -> list[Trial]:
        """Try out training steps. What goes wrong costs only the measurement, unless the device is lost."""
        from arc_ttt.worker.calibrate import calibrate

        solver = self.solver
        if solver.adapter is None:
            return []
        until = Deadline(min(self.deadline.at_s, REAL_CLOCK.now() + CALIBRATE_S))
        try:
            rows = calibrate(solver.base, solver.adapter, solver.settings.ttt, until, solver.recorded)
        except Exception as error:
            if device_lost(error):
                raise
            traceback.print_exc()
            solver.adapter.reset()
            return []
        return [Trial(row["length"], row["sequences"], row.get("seconds", 0.0), row["fitted"]) for row in rows]

    def work(self, order: Order, deadline: JobDeadline, progress: OnProgress) -> Done:
        if isinstance(order, JointOrder):
            return self._train_jointly(order, deadline, progress)
        if isinstance(order, AnswerOrder):
            return self._answer(order, deadline, progress)
        raise ArcError(f"a worker of a device does no {order.kind}")

    def _answer(self, order: AnswerOrder, deadline: JobDeadline, progress: OnProgress) -> Done:
        task = order.task
        if order.joint and order.joint != self._joint_loaded and self.solver.adapter is not None:
            self.solver.adapter.load(Path(order.joint))
            self.solver.adapter.rebase()
            self._joint_loaded = order.joint
        self.solver.on_found = lambda index, answers: self._send_found(order, index, answers)
        if order.kind == BASE:
            answers = self.solver.answer(task, deadline, progress)
        else:
            answers = self.solver.adapt(task, deadline, progress, order.effort, order.programs)
        done = Done(
            answers.outcome,
            answers.reason,
            tokens=answers.tokens,
            degraded=answers.degraded,
            out_of_memory=answers.out_of_memory,
            shortened=answers.shortened,
        )
        if answers.training is None:
            return done
        report = answers.training
        return replace(
            done,
            train_s=round(report.seconds - report.preparing_s, 3),
            compile_s=round(report.preparing_s, 3),
            train_tokens=report.tokens,
            steps=report.steps,
            loss=[round(report.losses[0], 4), round(report.losses[-1], 4)] if report.losses else [],
        )

    def _send_found(self, order: AnswerOrder, index: int, answers: PassAnswers) -> None:
        """Send what was found for one test input."""
        candidates = [FoundGrid(c.grid, c.group, c.nll, c.view) for c in answers.candidates if c.test_index == index]
        scored = [ScoredGrid(s.grid, s.nll_by_view, s.stage) for s in answers.scored if s.test_index == index]
        self.send(Found(order.task.task_id, index, candidates, scored, round(answers.trained, 4), order.id))

    def _train_jointly(self, order: JointOrder, deadline: JobDeadline, progress: OnProgress) -> Done:
        report = self.solver.adapt_jointly(order.tasks, deadline, progress)
        if self.solver.adapter is None:
            raise ArcError("without test-time training there is no adapter to share")
        self.solver.adapter.save(Path(order.path))
        self._joint_loaded = order.path
        return Done(Outcome.FINISHED, report.error, steps=report.steps, train_tokens=report.tokens)
