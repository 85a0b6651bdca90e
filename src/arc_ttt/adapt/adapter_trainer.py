"""Train the adapter within a deadline and within the memory of its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import shuffled_steps
from arc_ttt.adapt.recording import RecordedGradients
from arc_ttt.adapt.sequences import joint_sequences, ttt_sequences
from arc_ttt.adapt.training import TrainingEnd, TrainingReport, train
from arc_ttt.deadline import Deadline
from arc_ttt.errors import OutOfDeviceMemory, TrainingDiverged, out_of_memory
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.cuda import release_memory
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import Effort, OnProgress
from arc_ttt.settings import Settings, TttSettings
from arc_ttt.tasks.grids import Task
from arc_ttt.tasks.views import purpose_of, task_rng

SHORTER_SEQUENCES = "shorter sequences"


@dataclass(slots=True)
class Fit:
    """What a training came to.

    Args:
        report: of the training; None if there was nothing to train on, or if the training failed.
        degraded: names of the rungs of the memory ladder that were taken.
    """

    report: TrainingReport | None = None
    degraded: list[str] = field(default_factory=list)

    @property
    def shortened(self) -> bool:
        """Whether it trained on shorter sequences than asked for, because memory did not suffice."""
        return SHORTER_SEQUENCES in self.degraded


class AdapterTrainer:
    """Trains one adapter of one model, for one task after another. It never decodes.

    Args:
        base: the model.
        settings: `ttt` and the seed.
        adapter: what is trained.
        recorded: recorded steps of a small model on a GPU, if there are any.
    """

    def __init__(
        self, base: LoadedModel, settings: Settings, adapter: Adapter, recorded: RecordedGradients | None = None
    ) -> None:
        self.base, self.settings, self.adapter, self.recorded = base, settings, adapter, recorded

    def fit(self, task: Task, effort: Effort, deadline: Deadline, progress: OnProgress, fit: Fit) -> None:
        """Train a fresh adapter on a task's own demonstrations. `fit` receives what happens, also before an error.

        Raises:
            TrainingDiverged: the loss was no number, or exploded, more often than can be mended.
            OutOfDeviceMemory: not even the last rung of the memory ladder fitted.
        """
        whole = self.settings.ttt
        count = min(whole.max_sequences, max(whole.batch_sequences, round(effort.share * whole.max_sequences)))

        def sequences(ttt: TttSettings) -> list[TokenSequence]:
            rng = task_rng(self.settings.run.seed, task.task_id, purpose_of("sequences", effort.number))
            tokens = min(effort.longest or ttt.max_sequence_tokens, ttt.max_sequence_tokens)
            fewer = replace(ttt, max_sequences=min(count, ttt.max_sequences), max_sequence_tokens=tokens)
            return ttt_sequences(task, self.base.form, fewer, rng)

        order = task.task_id, purpose_of("order", effort.number)
        self._within_memory(sequences, order, deadline, progress, fit)

    def fit_jointly(self, tasks: Sequence[Task], deadline: Deadline, progress: OnProgress) -> TrainingReport:
        """Train over the demonstrations of all tasks; later resets return to this adapter (scope shared or joint).

        Where training diverges or does not fit the memory it is the untrained one, and the report says so.
        """
        seed = self.settings.run.seed

        def sequences(ttt: TttSettings) -> list[TokenSequence]:
            return joint_sequences(tasks, self.base.form, ttt, lambda task_id: task_rng(seed, task_id, "joint"))

        fit = Fit()
        try:
            self._within_memory(sequences, ("", "joint order"), deadline, progress, fit, to_base=True)
            report = fit.report or TrainingReport()
        except (TrainingDiverged, OutOfDeviceMemory) as error:
            self.adapter.reset(to_base=True)
            report = TrainingReport(stopped_by=TrainingEnd.FAILED, error=f"{type(error).__name__}: {error}")
        self.adapter.rebase()
        return report

    def _within_memory(
        self,
        sequences: Callable[[TttSettings], list[TokenSequence]],
        order: tuple[str, str],
        deadline: Deadline,
        progress: OnProgress,
        fit: Fit,
        *,
        to_base: bool = False,
    ) -> None:
        """Train; while memory does not suffice, again from the start with the next rung of the ladder.

        Args:
            sequences: what to train on under given settings.
            order: task id and purpose of the random order.
            to_base: start from the untrained adapter, also after a joint training.
        """
        message = ""
        for name, ttt in memory_ladder(self.settings.ttt, sequences):
            self.adapter.reset(to_base=to_base)
            if name:
                if self.recorded is not None:
                    self.recorded.forget()
                release_memory(self.base.device)
                fit.degraded.append(name)
            made = sequences(ttt)
            if not made:
                return
            rng = task_rng(self.settings.run.seed, *order)
            steps = shuffled_steps(made, epochs=ttt.epochs, batch_sequences=ttt.batch_sequences, rng=rng)
            try:
                fit.report = self._train(steps, ttt, deadline, progress)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                message = str(error)[:200]
            else:
                return
        release_memory(self.base.device)
        fit.degraded.append("base model only")
        raise OutOfDeviceMemory(message)

    def _train(
        self, steps: list[list[TokenSequence]], ttt: TttSettings, deadline: Deadline, progress: OnProgress
    ) -> TrainingReport:
        progress("train", 0, len(steps))
        return train(
            self.base,
            self.adapter.parameters(),
            steps,
            ttt,
            deadline,
            lambda step, loss: progress("train", step, len(steps)),
            self.recorded,
        )


def memory_ladder(
    ttt: TttSettings, sequences: Callable[[TttSettings], list[TokenSequence]]
) -> Iterator[tuple[str, TttSettings]]:
    """Settings to train under, each with less memory than the one before, and what was taken away ("" at first).

    The first rung changes no gradient, the second loses the longest sequences, the third costs time. A rung that would
    leave nothing to train on is passed over. Source: ours.

    Args:
        ttt: the settings asked for.
        sequences: what would be trained on under given settings.
    """
    yield "", ttt
    ttt = replace(ttt, micro_batch_tokens=16)
    yield "one sequence at a time", ttt
    shorter = replace(ttt, max_sequence_tokens=max(16, max(map(len, sequences(ttt))) // 2))
    if sequences(shorter):
        ttt = shorter
        yield SHORTER_SEQUENCES, ttt
    if not ttt.checkpointing:
        yield "checkpointing", replace(ttt, checkpointing=True)
