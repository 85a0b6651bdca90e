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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arc_ttt.grids import MAX_SIDE, Example, Task
from arc_ttt.settings import Settings, TttSettings

BASE, TTT, SYNTHESIS = "base", "ttt", "synthesis"
OVERHEAD_S = 0.2  # of any job: views, prompts, messages
WRITE = 4.0  # a written token against a read one; measured on 2 CPU cores with the embedded model
ATTENTION_TOKENS = 3000.0  # length at which attention costs as much as the rest; same machine
DRIFT_JOBS = 50
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
    """Views that a pass answers under: a pass with little training gets few, but as many as the base pass where these
    are read at once. (Of 203 held-out tasks 69, 71 and 72 are right under 2, 3 and 8 views of the same trainings.)"""
    decode = settings.decode
    if kind == BASE:
        return decode.base_views
    return min(decode.views, max(2, min(decode.base_views, decode.batch_views), round(2 * share * decode.views)))


def training_shape(task: Task, ttt: TttSettings) -> tuple[int, float]:
    """Sequences that a full training passes through, repetitions included, and their mean length in tokens of a cell or
    row end: what `sequences.ttt_sequences` makes, from shapes alone, so without knowing which augmentations are alike.
    """
    if ttt.scope not in ("per-task", "joint") or not task.train:
        return 0, 0.0
    pairs = [_pair_tokens(example, (1, 1)) for example in task.train]
    if not ttt.in_context:
        return ttt.max_sequences * ttt.epochs, min(sum(pairs) / len(pairs), ttt.max_sequence_tokens)
    if ttt.augment == "dihedral":
        return ttt.max_sequences * ttt.epochs, min(sum(pairs), ttt.max_sequence_tokens)
    few = _left_out(task.train, ttt, len(task.train))
    missing = ttt.max_sequences - sum(count for count, _ in few)
    if missing <= 0:
        return ttt.max_sequences * ttt.epochs, _mean_length(few)
    fewer = [
        row for i in range(len(task.train)) for row in _left_out(_without(task.train, i), ttt, len(task.train) - 1)
    ]
    count = min(missing, sum(count for count, _ in fewer))
    if count == 0:
        return sum(count for count, _ in few) * ttt.epochs, _mean_length(few)
    total = ttt.max_sequences - missing + count
    length = ((ttt.max_sequences - missing) * _mean_length(few) + count * _mean_length(fewer)) / total
    return total * ttt.epochs, length


def _left_out(shown: Sequence[Example], ttt: TttSettings, targets: int) -> list[tuple[int, int]]:
    """Number and length of the sequences of some pairs, each of `targets` pairs asked in turn, by growth."""
    rows = []
    for growth, count in GROWTHS if ttt.augment == "paper" else (((1, 1), 1),):
        sides = [
            side * by
            for e in shown
            for grid in (e.input, e.output)
            for side, by in zip(grid.shape, growth, strict=True)
        ]
        length = sum(_pair_tokens(example, growth) for example in shown)
        if shown and max(sides) <= MAX_SIDE and length <= ttt.max_sequence_tokens:
            rows.append((count * targets * (1 + ttt.permutations), length))
    return rows


def _pair_tokens(example: Example, growth: tuple[int, int]) -> int:
    """Tokens of a pair, one a cell plus row ends and markers."""
    return sum(
        growth[0] * grid.shape[0] * (growth[1] * grid.shape[1] + 1) + 1 for grid in (example.input, example.output)
    )


def _without(train: Sequence[Example], index: int) -> list[Example]:
    return [example for i, example in enumerate(train) if i != index]


def _mean_length(rows: Sequence[tuple[int, int]]) -> float:
    """Mean length of sequences by number and length; 0 for none."""
    return sum(count * length for count, length in rows) / max(1, sum(count for count, _ in rows))


def work(task: Task, kind: str, settings: Settings) -> float:
    """Work of a job in training-token equivalents, to order tasks by before any device is known."""
    shape = _Shape.of(task, settings)
    decoding = shape.read_work(views_of(kind, 1.0, settings)) + shape.write_work(views_of(kind, 1.0, settings))
    return decoding + (0.0 if kind == BASE else shape.sequences * shape.length * (1 + shape.length / ATTENTION_TOKENS))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the cost of a task depends on. length, sequences: of training, the latter with repetitions."""

    prompt: int
    answer: int
    tests: int
    length: float
    sequences: int
    scoring_views: int

    @classmethod
    def of(cls, task: Task, settings: Settings) -> _Shape:
        count, length = training_shape(task, settings.ttt)
        return cls(
            prompt_tokens(task), answer_tokens(task), len(task.tests), length, count, settings.vote.scoring_views
        )

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
        self.settled = False
        """Whether the last observation let the coefficients be found anew: 1, 2, 4, 8, ... of them, or of trainings."""

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
        before = self.trainings
        training = self._add_training(task, seen)
        seconds, train_s = max(1e-3, seen["seconds"]), seen.get("train_s", 0.0)
        decoding = self._decoding(task, views_of(kind, share, self.settings)) / self._decode_factor
        job = _Seen(training, decoding, max(1e-3, seconds - train_s), seconds)
        self._jobs.setdefault(device, deque(maxlen=DRIFT_JOBS)).append(job)
        self._ratios.setdefault(device, deque(maxlen=DRIFT_JOBS))
        self.observations += 1
        fresh = self.trainings > before and _is_power_of_two(self.trainings)
        self.settled = fresh or _is_power_of_two(self.observations)
        if self.settled:
            self._learn()
        else:
            self._ratios[device].append(seconds / self._restated(job))
            self._drift[device] = statistics.median(self._ratios[device])

    def observe_cut(self, task: Task, seen: Mapping[str, float]) -> None:
        """Learn the speed of training from a job that was cut, about whose other seconds nothing is known.

        Else a device on which every training is cut, being so much slower than predicted, would never be known.
        """
        before = self.trainings
        self._add_training(task, seen)
        self.settled = self.trainings > before and _is_power_of_two(self.trainings)
        if self.settled:
            self._learn()

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
        self._predicted.clear()

    def _learn(self) -> None:
        self._predicted.clear()
        self._train.solve()
        if self._stretches:
            self._stretch = statistics.median(self._stretches)
        ratios = [seen.decode_s / (OVERHEAD_S + seen.decoding) for jobs in self._jobs.values() for seen in jobs]
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
        count, length = share * shape.sequences, self._stretch * shape.length
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
            shape = self._shapes[task.task_id] = _Shape.of(task, self.settings)
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
        """Learn whether training on a task fitted. An out-of-memory error below what has fitted was something else."""
        length = min(round(self._stretch * self._shape(task).length), self.longest())
        if fitted:
            self._fits = max(self._fits, length)
            self._short = {task_id: short for task_id, short in self._short.items() if short > length}
        elif length > self._fits:
            self._short[task.task_id] = length
