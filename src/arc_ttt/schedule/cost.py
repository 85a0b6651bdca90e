"""Predicted seconds and memory of a job: from the shapes of a task and the kind of device, corrected by what happened.

Predictions choose what runs; no deadline depends on them. Training is predictable, a + b*T + c*T^2 seconds a step for
sequences of T tokens; decoding is not, so it gets a factor and a cap.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arc_ttt.settings import Settings, TttSettings
from arc_ttt.tasks.grids import MAX_SIDE, Example, Task

BASE, TTT, SYNTHESIS = "base", "ttt", "synthesis"
OVERHEAD_S = 0.2  # of any job: views, prompts, messages
WRITE = 4.0  # a written token against a read one; measured on 2 CPU cores with the embedded model
ATTENTION_TOKENS = 3000.0  # length at which attention costs as much as the rest; same machine
DRIFT_JOBS = 50
LEAST_STEPS = 3  # of a training that was cut, for its speed to say something
CAP_TIMES, CAP_LEAST_S = 6.0, 120.0  # a job may take so many times its prediction, and at least so long
FIRST_CAP_TIMES, FIRST_CAP_LEAST_S = 20.0, 1800.0  # the same for the first three jobs of a device
GROWTHS = (((1, 1), 8), ((2, 1), 4), ((1, 2), 4), ((2, 2), 8))
"""By how much the identity and the paper's 23 augmenters multiply rows and columns, and how many of them do so."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the cost of a model depends on."""

    parameters: float = 2.7e6
    layers: int = 6
    width: int = 192
    vocabulary: int = 16

    @classmethod
    def of(cls, config: dict[str, Any]) -> Model:
        """From a Llama's config.json."""
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        vocabulary, inner = int(config["vocab_size"]), int(config["intermediate_size"])
        heads = max(1, int(config.get("num_attention_heads", 1)))
        shared = int(config.get("num_key_value_heads", heads)) / heads
        layer = width * width * (2 + 2 * shared) + 3 * width * inner
        return cls(layers * layer + width * vocabulary, layers, width, vocabulary)


@dataclass(frozen=True, slots=True)
class DeviceType:
    """Prior of a kind of device, until jobs have shown how fast it is.

    flops: sustained in training, a second. step_s: fixed time of an optimizer step. layer_s: time of one layer for one
    written token of all views that are decoded at once, where that does not depend on the work. load_s: from the start
    of a worker to its first job.
    """

    flops: float
    step_s: float = 0.02
    layer_s: float = 0.0
    load_s: float = 20.0


DEVICE_TYPES = {
    "cpu": DeviceType(40e9, step_s=0.005),  # measured: one core without AVX-512, embedded model
    # Guesses on the careful side, about a sixth of the data sheet's dense 16-bit peak; not measured.
    "t4": DeviceType(9e12, step_s=0.1, layer_s=2e-3, load_s=120.0),
    "p100": DeviceType(4e12, step_s=0.1, layer_s=2e-3, load_s=120.0),
    "l4": DeviceType(20e12, step_s=0.08, layer_s=1.5e-3, load_s=90.0),
    "a100": DeviceType(60e12, step_s=0.06, layer_s=1e-3, load_s=60.0),
    "h100": DeviceType(160e12, step_s=0.05, layer_s=7e-4, load_s=60.0),
}


def device_type(name: str) -> str:
    """The kind of a device by the name its driver gives it; the slowest known GPU for a name that says nothing."""
    words = name.lower().replace("-", " ").split()
    return next((kind for kind in DEVICE_TYPES if kind in words), "cpu" if "cpu" in words else "t4")


def prompt_tokens(task: Task) -> int:
    """Tokens of all demonstrations and the largest test input, one a cell plus row ends and markers."""
    grids = [grid for example in task.train for grid in (example.input, example.output)]
    question = max(task.tests, key=lambda grid: grid.size)
    return sum(int(grid.shape[0]) * (int(grid.shape[1]) + 1) + 1 for grid in (*grids, question))


def answer_tokens(task: Task) -> int:
    """Tokens of an answer as large as the largest output (or, without demonstrations, the largest test input)."""
    grids = [example.output for example in task.train] or list(task.tests)
    return max(int(grid.shape[0]) * (int(grid.shape[1]) + 1) for grid in grids)


def views_of(kind: str, share: float, settings: Settings) -> int:
    """Views that a pass answers under: a pass with little training gets few, but as many as the base pass or as are
    read at once. (Of 203 held-out tasks 69, 71 and 72 are right under 2, 3 and 8 views of the same trainings.)"""
    decode = settings.decode
    if kind == BASE:
        return decode.base_views
    return min(decode.views, max(2, min(decode.base_views, decode.batch_views), round(2 * share * decode.views)))


class TrainingShape(NamedTuple):
    """Sequences that a full training passes through, repetitions included, and their mean and largest length, in tokens
    of a cell or row end."""

    sequences: int
    length: float
    longest: float


def training_shape(task: Task, ttt: TttSettings, *, stretch: float = 1.0, longest: int = 0) -> TrainingShape:
    """What `sequences.ttt_sequences` makes of a task, from shapes alone: so without knowing which augmentations are
    alike, and with grids turned as often as not.

    stretch: tokens of the format for one counted here. longest: tokens of the longest sequence that devices are given
    now, where that is less than `ttt.max_sequence_tokens`; 0 means no less.
    """
    limit = min(longest or ttt.max_sequence_tokens, ttt.max_sequence_tokens) / stretch
    pairs = [_pair_tokens(example, (1, 1)) for example in task.train]
    if ttt.scope not in ("per-task", "joint") or min(pairs, default=limit + 1) > limit:
        return TrainingShape(0, 0.0, 0.0)
    whole = ttt.max_sequences * ttt.epochs
    if not ttt.in_context:
        fits = [pair for pair in pairs if pair <= limit]
        return TrainingShape(round(whole * len(fits) / len(pairs)), sum(fits) / len(fits), max(fits))
    if ttt.augment == "dihedral":  # the first pairs of a sequence that is too long are left out
        mean = sum(pairs) / len(pairs)
        shown = min(len(pairs), max(1, int(limit / mean)))
        return TrainingShape(whole, min(shown * mean, limit), min(sum(pairs), limit))
    groups = [_left_out(task.train, ttt, len(task.train), limit)]
    if sum(count for count, _ in groups[0]) < ttt.max_sequences:
        dropped = range(len(task.train))
        groups.append([row for i in dropped for row in _left_out(_without(task.train, i), ttt, len(pairs) - 1, limit)])
    left, taken = ttt.max_sequences, list[tuple[float, int]]()
    for rows in groups:
        held = sum(count for count, _ in rows)
        taken += [(count * min(1.0, left / held), length) for count, length in rows]
        left -= min(left, held)
    total = sum(count for count, _ in taken)
    if not taken:
        return TrainingShape(0, 0.0, 0.0)
    mean = sum(count * length for count, length in taken) / total
    return TrainingShape(round(total) * ttt.epochs, mean, max(length for _, length in taken))


def _left_out(shown: Sequence[Example], ttt: TttSettings, targets: int, limit: float) -> list[tuple[int, int]]:
    """Number and length of the sequences of some pairs, each of `targets` pairs asked in turn, by growth."""
    rows = []
    grids = [grid for example in shown for grid in (example.input, example.output)]
    most = max((g.shape[0] for g in grids), default=0), max((g.shape[1] for g in grids), default=0)
    for growth, count in GROWTHS if ttt.augment == "paper" else (((1, 1), 1),):
        length = sum(_pair_tokens(example, growth) for example in shown)
        if shown and targets and max(most[0] * growth[0], most[1] * growth[1]) <= MAX_SIDE and length <= limit:
            rows.append((count * targets * (1 + ttt.permutations), length))
    return rows


def _pair_tokens(example: Example, growth: tuple[int, int]) -> int:
    """Tokens of a pair, one a cell plus row ends and markers; half of the time its grids lie on their sides."""
    tokens = 0
    for grid in (example.input, example.output):
        rows, columns = int(grid.shape[0]) * growth[0], int(grid.shape[1]) * growth[1]
        tokens += rows * columns + (rows + columns + 1) // 2 + 1
    return tokens


def _without(train: Sequence[Example], index: int) -> list[Example]:
    return [example for i, example in enumerate(train) if i != index]


def work(task: Task, kind: str, settings: Settings) -> float:
    """Work of a job in training-token equivalents, to order tasks by before any device is known."""
    shape = _Shape.of(task, settings)
    decoding = shape.read_work(views_of(kind, 1.0, settings)) + shape.write_work(views_of(kind, 1.0, settings))
    return decoding + (0.0 if kind == BASE else shape.sequences * shape.length * (1 + shape.length / ATTENTION_TOKENS))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the cost of a task depends on. length, longest, sequences: of training, the last with repetitions."""

    prompt: int
    answer: int
    tests: int
    length: float
    longest: float
    sequences: int
    scoring_views: int

    @classmethod
    def of(cls, task: Task, settings: Settings, *, stretch: float = 1.0, longest: int = 0) -> _Shape:
        count, mean, most = training_shape(task, settings.ttt, stretch=stretch, longest=longest)
        views = settings.vote.scoring_views
        return cls(prompt_tokens(task), answer_tokens(task), len(task.tests), mean, most, count, views)

    def read_work(self, views: int) -> float:
        """Prompts, without gradients a third of training, with attention that grows with their length."""
        return self.tests * views * self.prompt * (1 + self.prompt / ATTENTION_TOKENS) / 3

    def write_work(self, views: int) -> float:
        """Written tokens, which pass alone, and scored ones."""
        return self.tests * self.answer * (views * WRITE / 3 + min(views, self.scoring_views))


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
    """A job that is over. training: steps, tokens, tokens times length. decoding: seconds by the prior."""

    training: tuple[float, float, float]
    decoding: float
    decode_s: float
    seconds: float


class CostModel:
    """Seconds of jobs, learned from jobs that ended; one drift factor for each device."""

    def __init__(self, settings: Settings, model: Model | None = None, device: str = "cpu") -> None:
        self.settings, self.model = settings, model or Model()
        self.device = DEVICE_TYPES[device]
        token_s = 6 * self.model.parameters / self.device.flops
        square_s = 6 * self.model.layers * self.model.width / self.device.flops
        self._train = _Fit(np.array([self.device.step_s, token_s, square_s]))
        self._token_s, self._square_s = token_s, square_s
        self._decode_factor = 1.0
        self._shapes: dict[str, _Shape] = {}
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
        if len(self._ratios.get(device, ())) < 3:
            return max(FIRST_CAP_LEAST_S, FIRST_CAP_TIMES * predicted_s)
        return max(CAP_LEAST_S, CAP_TIMES * predicted_s * self.drift(device))

    def drift(self, device: int) -> float:
        """How much slower than predicted a device is now: the median of its last jobs."""
        return self._drift.get(device, 1.0)

    def observe(self, task: Task, kind: str, device: int, share: float, seen: Mapping[str, float]) -> None:
        """Learn from a job that ended by itself. seen: seconds, train_s, train_tokens, steps."""
        training = self._add_training(task, seen)
        seconds, train_s = max(1e-3, seen["seconds"]), seen.get("train_s", 0.0)
        decoding = self._decoding(task, views_of(kind, share, self.settings)) / self._decode_factor
        self.observations += 1
        self._note(device, _Seen(training, decoding, max(1e-3, seconds - train_s), seconds))

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

    def observe_cut(self, task: Task, device: int, seen: Mapping[str, float]) -> None:
        """Learn how fast a device trains from a job that was cut, about whose other seconds nothing is known.

        Else a device on which every training is cut, being so much slower than predicted, would never be known. Of a
        job that had hardly begun nothing is learned.
        """
        self.settled = False
        if seen.get("steps", 0.0) < LEAST_STEPS:
            return
        training = self._add_training(task, seen)
        if training[0] > 0:
            self._note(device, _Seen(training, 0.0, 0.0, max(1e-3, seen["train_s"])))

    def _add_training(self, task: Task, seen: Mapping[str, float]) -> tuple[float, float, float]:
        """Take in how long steps took: steps, tokens and tokens times length of a training, zeros if there was none."""
        steps, tokens, train_s = seen.get("steps", 0.0), seen.get("train_tokens", 0.0), seen.get("train_s", 0.0)
        if min(steps, tokens, train_s) <= 0:
            return 0.0, 0.0, 0.0
        sequences = steps * self.settings.ttt.batch_sequences
        training = steps, tokens, tokens * tokens / sequences
        self._train.add(*training, train_s)
        if (length := self._shape(task).length) > 0:
            self._stretches.append(tokens / sequences / length)
        self.trainings += 1
        return training

    def calibrate(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Learn from training steps that a device has tried out: length, sequences, seconds, fitted of each."""
        for row in rows:
            tokens = row["length"] * row["sequences"]
            if row["fitted"] and row["seconds"] > 0:
                self._train.add(1, tokens, tokens * row["length"], row["seconds"])
                self._fits = max(self._fits, int(row["length"]))
            elif not row["fitted"]:
                self._too_long = min(self._too_long, row["length"])
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

    def _shape(self, task: Task) -> _Shape:
        shape = self._shapes.get(task.task_id)
        if shape is None:
            shape = _Shape.of(task, self.settings, stretch=self._stretch, longest=self.longest())
            self._shapes[task.task_id] = shape
        return shape

    def rescale(self, factor: float) -> None:
        """Make all predictions so many times longer."""
        self._predicted.clear()
        self._train.prior = self._train.prior * factor
        self._train.now = tuple(self._train.prior.tolist())
        self._decode_factor *= factor

    # Programs

    def predict_program(self, number: int) -> float:
        """Mean seconds of a task in pass `number` of synthesis; most of the limit before any has ended."""
        seen = self._programs.get(number)
        return statistics.fmean(seen) if seen else 0.7 * self.settings.synthesis.cpu_limit_s(number)

    def observe_program(self, number: int, seconds: float) -> None:
        self._programs.setdefault(number, deque(maxlen=100)).append(seconds)

    # Memory

    def longest(self) -> int:
        """Longest training sequence that devices are given: the setting, which each worker's memory plan lowers to what
        fits its device (`memory.plan`); or halfway between the longest that fitted and the shortest that did not. One
        task alone that ran out of memory says nothing: the device may have been short of it for another reason."""
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
