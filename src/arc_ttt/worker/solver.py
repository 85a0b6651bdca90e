"""One task from Task to candidates. Read this first.

    task --ttt_sequences--> sequences --train--> adapter --greedy under views, undone--> candidates --score--> scored

`TaskSolver` holds one loaded model and its adapter and does two things for a task: `answer` it with the weights as they
are, and `adapt` to it first. `AdapterTrainer` trains, `Answerer` reads answers; each goes down a memory ladder of its
own. Here stands what happens when one of them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.adapter_trainer import AdapterTrainer, Fit
from arc_ttt.adapt.recording import RecordedGradients
from arc_ttt.adapt.training import TrainingEnd, TrainingReport
from arc_ttt.checkpoints.memory_plan import MemoryPlan
from arc_ttt.deadline import Deadline
from arc_ttt.decode.answerer import Answerer, Answers, Request
from arc_ttt.errors import OutOfDeviceMemory, TrainingDiverged
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import BASE, FULL_EFFORT, MOST_FREE, TTT, Effort, OnProgress, Outcome
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Grid, Task

NO_PROGRAMS: Mapping[int, Sequence[Grid]] = MappingProxyType({})


@dataclass(slots=True)
class PassAnswers(Answers):
    """What one pass over a task found.

    Args:
        training: the report of its training, if there was one.
        trained: part of its training that the adapter had; 0 where the base model answers in its place.
        out_of_memory: the training did not fit the device.
        shortened: the training was done on shorter sequences, because memory did not suffice.
    """

    training: TrainingReport | None = None
    trained: float = 1.0
    out_of_memory: bool = False
    shortened: bool = False


class TaskSolver:
    """One model on one device, for one task after another.

    Args:
        base: the model.
        settings: of the run, fitted to the device.
        on_found: called with a test input and all answers so far, so that they can leave at once.
        memory: of the device; it limits how many views are decoded at once.
    """

    def __init__(
        self,
        base: LoadedModel,
        settings: Settings,
        on_found: Callable[[int, PassAnswers], None] = lambda index, answers: None,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.base, self.settings, self.on_found = base, settings, on_found
        self.adapter = None if settings.ttt.scope == "none" else Adapter(base, settings.ttt, seed=settings.run.seed)
        self.recorded = None
        if self.adapter is not None and base.device.type == "cuda" and base.can_record:
            self.recorded = RecordedGradients(base, self.adapter.parameters())
        forget = self.recorded.forget if self.recorded is not None else lambda: None
        self.answerer = Answerer(base, settings, memory, forget)
        self.trainer = None if self.adapter is None else AdapterTrainer(base, settings, self.adapter, self.recorded)

    def answer(self, task: Task, deadline: Deadline, progress: OnProgress = lambda *_: None) -> PassAnswers:
        """Candidates of the base model under `decode.base_views` views."""
        if self.adapter is not None:
            self.adapter.reset(to_base=True)
        return self._answer(Request(task, BASE, self.settings.decode.base_views), deadline, progress)

    def adapt(
        self,
        task: Task,
        deadline: Deadline,
        progress: OnProgress = lambda *_: None,
        effort: Effort = FULL_EFFORT,
        programs: Mapping[int, Sequence[Grid]] = NO_PROGRAMS,
    ) -> PassAnswers:
        """Train the adapter on the task's own demonstrations, then answer under views.

        Without a trainable sequence, or when training diverges or does not fit the device, the base model answers, and
        the outcome says so.

        Args:
            task: the task.
            deadline: when the answers must be there.
            progress: called at every round of the work.
            effort: how much of a training it gets.
            programs: by test input, grids that synthesis found; they are scored along with the model's own.
        """
        request = Request(task, TTT, effort.views or self.settings.decode.views, effort.number, programs)
        if self.adapter is None or self.trainer is None:
            return self._answer(request, deadline, progress)
        outcome, reason, trained, fit = Outcome.FINISHED, "", 1.0, Fit()
        out_of_memory = False
        if self.settings.ttt.scope in ("per-task", "joint"):
            free_s = min(effort.decode_s, MOST_FREE * max(0.0, deadline.remaining()))
            try:
                self.trainer.fit(task, effort, deadline.minus(free_s), progress, fit)
                reason = "" if fit.report is not None else "no trainable sequence; the base model answers"
            except TrainingDiverged as error:
                outcome, reason = Outcome.DIVERGED, str(error)
            except OutOfDeviceMemory as error:
                out_of_memory = True
                outcome, reason = Outcome.FAILED, f"out of memory in training, the base model answers: {error}"
            trained = fit.report.share if fit.report is not None else 0.0
            if outcome is not Outcome.FINISHED:
                self.adapter.reset(to_base=True)
        else:
            self.adapter.reset()
        answers = self._answer(request, deadline, progress, trained)
        if answers.spoiled and not answers.candidates and fit.report is not None:
            self.adapter.reset(to_base=True)
            outcome, reason = Outcome.DIVERGED, "the adapted model writes no numbers; the base model answers"
            answers = self._answer(request, deadline, progress, trained=0.0)
        answers.training, answers.out_of_memory, answers.shortened = fit.report, out_of_memory, fit.shortened
        answers.degraded[:0] = fit.degraded
        if fit.report is not None:
            answers.tokens += fit.report.tokens
            if fit.report.stopped_by is TrainingEnd.DEADLINE:
                answers.outcome = Outcome.CUT
        if outcome is not Outcome.FINISHED:
            answers.outcome = outcome
        answers.reason = reason or answers.reason
        return answers

    def adapt_jointly(
        self, tasks: Sequence[Task], deadline: Deadline, progress: OnProgress = lambda *_: None
    ) -> TrainingReport:
        """Train one adapter over the demonstrations of all tasks; later resets return to it (scope shared or joint).

        Raises:
            ValueError: the settings ask for no adapter.
        """
        if self.trainer is None:
            raise ValueError("scope none has no adapter to train")
        return self.trainer.fit_jointly(tasks, deadline, progress)

    def _answer(self, request: Request, deadline: Deadline, progress: OnProgress, trained: float = 1.0) -> PassAnswers:
        answers = PassAnswers(trained=trained)
        self.answerer.answer(request, answers, deadline, progress, lambda index, _: self.on_found(index, answers))
        return answers
