"""Predicted seconds and memory of a job: from the shapes of a task and the kind of device, corrected by what happened.

Predictions choose what runs; no deadline depends on them. Training is predictable, a + b*T + c*T^2 seconds a step for
sequences of T tokens; decoding is not, so it gets a factor and a cap.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.protocol.jobs import TTT
from arc_ttt.protocol.messages import Trial
from arc_ttt.schedule.devices import DEVICE_TYPES
from arc_ttt.schedule.shapes import JobShape, views_of
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Task

OVERHEAD_S = 0.2
"""Seconds of any job for views, prompts and messages."""
DRIFT_JOBS = 50
"""A device's drift is the median over this many of its last jobs."""
LEAST_STEPS = 3
"""A training that was cut says something of a device's speed after this many steps."""
CAP_TIMES = 6.0
"""A job is cut after this many times its predicted seconds."""
CAP_LEAST_S = 120.0
"""A job is not cut for its predicted time before this many seconds."""
FIRST_JOBS = 3
"""The first jobs of a device get more patience, because little is known of it."""
FIRST_CAP_TIMES = 20.0
"""CAP_TIMES for the first jobs of a device."""
FIRST_CAP_LEAST_S = 1800.0
"""CAP_LEAST_S for the first jobs of a device."""
PROGRAM_PART = 0.7
"""Part of its CPU limit that a search is expected to take before any has ended."""


@dataclass(frozen=True, slots=True)
class Took:
    """What a job that is over has taken, recordings of steps not counted."""

    seconds: float
    train_s: float = 0.0
    train_tokens: float = 0.0
    steps: float = 0.0


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@dataclass(slots=True)
class _Fit:
    """Three coefficients >= 0 of step seconds: a step, a token, a token times the length of its sequence.

    Ridge regression of relative errors towards the prior times one factor, so few observations change only that.
    """

    prior: NDArray[np.float64]
    now: tuple[float, float, float] = field(init=False)
    rows: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=100))

    def __post_init__(self) -> None:
        self.now = tuple(self.prior.tolist())

    def add(self, steps: float, tokens: float, squares: float, seconds: float) -> None:
        self.rows.append(np.array([steps, tokens, squares]) / max(1e-6, seconds))

    def solve(self) -> None:
        if not self.rows:
            return
        shares = np.stack(list(self.rows)) * self.prior  # of the actual seconds, that the prior gives to each term
        factor = 1 / float(np.median(shares.sum(axis=1)))
        ridge = 0.05 * np.eye(3)
        left = shares.T @ shares * factor**2 + ridge
        found = np.linalg.solve(left, shares.sum(axis=0) * factor + ridge.sum(axis=0))
        self.now = tuple((self.prior * factor * np.clip(found, 0.05, 20.0)).tolist())


@dataclass(frozen=True, slots=True)
class _Seen:
    """A job that is over.

    Args:
        training: steps, tokens, tokens times length.
        decoding: seconds by the prior.
    """

    training: tuple[float, float, float]
    decoding: float
    decode_s: float
    seconds: float


class CostModel:
    """Seconds of jobs, learned from jobs that ended; one drift factor for each device."""

    def __init__(self, settings: Settings, model: ModelSize | None = None, device: str = "cpu") -> None:
        self.settings, self.model = settings, model or ModelSize()
        self.device = DEVICE_TYPES[device]
        token_s = 6 * self.model.parameters / self.device.flops
        square_s = 6 * self.model.layers * self.model.width / self.device.flops
        self._train = _Fit(np.array([self.device.step_s, token_s, square_s]))
        self._token_s = token_s
        self._decode_factor = 1.0
        self._shapes: dict[str, JobShape] = {}
        self._predicted: dict[tuple[str, str, float], float] = {}  # until something is learned
        self._jobs: dict[int, deque[_Seen]] = {}  # by device
        self._ratios: dict[int, deque[float]] = {}  # actual by predicted seconds of these
        self._drift: dict[int, float] = {}
        self._programs: dict[int, deque[float]] = {}
        self._stretch = 1.0  # tokens of a training sequence for one that `training_shape` counts; text has more
        self._stretches: deque[float] = deque(maxlen=100)
        self._fits = 0  # longest sequence that has been trained on
        self._too_long = math.inf  # shortest one that ran out of memory when steps were tried out
        self._short: dict[str, int] = {}  # by task, the length at which it ran out of memory
        self.observations, self.trainings = 0, 0
        self.settled = False  # whether coefficients were found anew at the last one: after 1, 2, 4, 8, ... of either

    # Seconds

    def predict(self, task: Task, kind: str, share: float = 1.0) -> float:
        """Median seconds of a job on a device without drift; share: part of the training sequences."""
        asked = (task.task_id, kind, share)
        if asked not in self._predicted:
            self._predicted[asked] = OVERHEAD_S + sum(self.parts(task, kind, share))
        return self._predicted[asked]

    def parts(self, task: Task, kind: str, share: float = 1.0) -> tuple[float, float]:
        """Seconds of training and of answering."""
        return self._training(task, kind, share), self._decoding(task, views_of(kind, share, self.settings))

    def decoding(self, task: Task, share: float = 1.0) -> float:
        """Seconds that answering after training may take, with a margin of half as much again."""
        return 1.5 * (OVERHEAD_S + self._decoding(task, views_of(TTT, share, self.settings)))

    def cap(self, predicted_s: float, device: int) -> float:
        """Seconds after which a job is cut; many more while little is known of the device."""
        if len(self._ratios.get(device, ())) < FIRST_JOBS:
            return max(FIRST_CAP_LEAST_S, FIRST_CAP_TIMES * predicted_s)
        return max(CAP_LEAST_S, CAP_TIMES * predicted_s * self.drift(device))

    def drift(self, device: int) -> float:
        """How much slower than predicted a device is now: the median of its last jobs."""
        return self._drift.get(device, 1.0)

    def observe(self, task: Task, kind: str, device: int, share: float, took: Took) -> None:
        """Learn from a job that ended by itself."""
        training = self._add_training(task, took)
        seconds = max(1e-3, took.seconds)
        decoding = self._decoding(task, views_of(kind, share, self.settings)) / self._decode_factor
        self.observations += 1
        self._note(device, _Seen(training, decoding, max(1e-3, seconds - took.train_s), seconds))

    def _note(self, device: int, job: _Seen) -> None:
        """Take in a job that is over: find all coefficients anew now and then, else the device's drift alone."""
        self._jobs.setdefault(device, deque(maxlen=DRIFT_JOBS)).append(job)
        self._ratios.setdefault(device, deque(maxlen=DRIFT_JOBS))
        trained, answered = job.training[0] > 0, job.decoding > 0
        self.settled = trained and _is_power_of_two(self.trainings)
        self.settled = self.settled or (answered and _is_power_of_two(self.observations))
        if self.settled:
            self._learn()
        else:
            self._ratios[device].append(job.seconds / self._restated(job))
            self._drift[device] = statistics.median(self._ratios[device])

    def observe_cut(self, task: Task, device: int, took: Took) -> None:
        """Learn how fast a device trains from a job that was cut, about whose other seconds nothing is known.

        Else a device on which every training is cut, being so much slower than predicted, would never be known. Of a
        job that had hardly begun nothing is learned.
        """
        self.settled = False
        if took.steps < LEAST_STEPS:
            return
        training = self._add_training(task, took)
        if training[0] > 0:
            self._note(device, _Seen(training, 0.0, 0.0, max(1e-3, took.train_s)))

    def _add_training(self, task: Task, took: Took) -> tuple[float, float, float]:
        """Take in how long steps took: steps, tokens and tokens times length of a training, zeros if there was none."""
        steps, tokens, train_s = took.steps, took.train_tokens, took.train_s
        if min(steps, tokens, train_s) <= 0:
            return 0.0, 0.0, 0.0
        sequences = steps * self.settings.ttt.batch_sequences
        training = steps, tokens, tokens * tokens / sequences
        self._train.add(*training, train_s)
        if (length := self._shape(task).length) > 0:
            self._stretches.append(tokens / sequences / length)
        self.trainings += 1
        return training

    def calibrate(self, trials: Iterable[Trial]) -> None:
        """Learn from training steps that a device has tried out."""
        for trial in trials:
            tokens = trial.length * trial.sequences
            if trial.fitted and trial.seconds > 0:
                self._train.add(1, tokens, tokens * trial.length, trial.seconds)
                self._fits = max(self._fits, int(trial.length))
            elif not trial.fitted:
                self._too_long = min(self._too_long, trial.length)
        self._train.solve()
        self._shapes.clear()
        self._predicted.clear()

    def _learn(self) -> None:
        self._predicted.clear()
        self._train.solve()
        if self._stretches:
            self._stretch = statistics.median(self._stretches)
            self._shapes.clear()
        whole = [seen for jobs in self._jobs.values() for seen in jobs if seen.decoding > 0]
        ratios = [seen.decode_s / (OVERHEAD_S + seen.decoding) for seen in whole]
        self._decode_factor = statistics.median(ratios) if ratios else self._decode_factor
        for device, jobs in self._jobs.items():
            self._ratios[device] = deque((seen.seconds / self._restated(seen) for seen in jobs), maxlen=DRIFT_JOBS)
            self._drift[device] = statistics.median(self._ratios[device])

    def _restated(self, seen: _Seen) -> float:
        """Seconds that would now be predicted for a job that is over."""
        training = sum(a * b for a, b in zip(self._train.now, seen.training, strict=True))
        return OVERHEAD_S + self._decode_factor * seen.decoding + training

    def _training(self, task: Task, kind: str, share: float) -> float:
        shape = self._shape(task)
        if kind != TTT or shape.sequences == 0:
            return 0.0
        ttt, length = self.settings.ttt, self._stretch * shape.length
        count = min(shape.sequences, share * ttt.max_sequences * ttt.epochs)
        a, b, c = self._train.now
        steps = math.ceil(count / self.settings.ttt.batch_sequences)
        return a * steps + count * length * (b + c * length)

    def _decoding(self, task: Task, views: int) -> float:
        shape, layers = self._shape(task), self.model.layers
        rounds = math.ceil(views / self.settings.decode.batch_views)
        waiting = shape.tests * shape.answer * rounds * layers * self.device.layer_s
        working = self._token_s * (shape.read_work(views) + shape.write_work(views))
        return self._decode_factor * (working + waiting)

    def _shape(self, task: Task) -> JobShape:
        shape = self._shapes.get(task.task_id)
        if shape is None:
            shape = JobShape.of(task, self.settings, stretch=self._stretch, longest=self.longest())
            self._shapes[task.task_id] = shape
        return shape

    def rescale(self, factor: float) -> None:
        """Make all predictions `factor` times longer."""
        self._predicted.clear()
        self._train.prior = self._train.prior * factor
        self._train.now = tuple(self._train.prior.tolist())
        self._decode_factor *= factor

    # Programs

    def predict_program(self, number: int) -> float:
        """Mean seconds of a task in pass `number` of synthesis; most of the limit before any has ended."""
        seen = self._programs.get(number)
        return statistics.fmean(seen) if seen else PROGRAM_PART * self.settings.synthesis.cpu_limit_s(number)

    def observe_program(self, number: int, seconds: float) -> None:
        self._programs.setdefault(number, deque(maxlen=100)).append(seconds)

    # Memory

    def longest(self) -> int:
        """The longest training sequence to ask of a device, in tokens.

        It starts as `ttt.max_sequence_tokens`, which a worker's memory plan may lower further. Once a trial step or a
        second task has run out of memory, it is halfway between the longest length that fitted and the shortest that
        did not. A single task that ran out is ignored: something else may have held the memory.
        """
        most = self.settings.ttt.max_sequence_tokens
        second = sorted(self._short.values())[1] if len(self._short) > 1 else math.inf
        too_long = min(self._too_long, second)
        if too_long == math.inf:
            return most
        return min(most, int((self._fits + too_long) / 2) if self._fits < too_long else int(too_long / 2))

    def observe_memory(self, task: Task, *, fitted: bool) -> None:
        """Learn whether the longest training sequence of a task fitted. An out-of-memory error below what has fitted
        was something else."""
        before = self.longest()
        length = min(round(self._stretch * self._shape(task).longest), self.longest())
        if fitted:
            self._fits = max(self._fits, length)
            self._short = {task_id: short for task_id, short in self._short.items() if short > length}
        elif length > self._fits:
            self._short[task.task_id] = length
        if self.longest() != before:
            self._shapes.clear()
            self._predicted.clear()
