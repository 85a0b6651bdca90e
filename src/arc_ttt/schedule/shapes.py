"""Tokens of prompts, answers and training sequences, counted without making them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from arc_ttt.protocol.jobs import BASE
from arc_ttt.settings import Settings, TttSettings
from arc_ttt.tasks.grids import MAX_SIDE, Example, Task

WRITE = 4.0
"""Cost of a written token against a read one; measured on 2 CPU cores with the embedded model."""
ATTENTION_TOKENS = 3000.0
"""Length at which attention costs as much as the rest; measured on that machine too."""
GROWTHS = (((1, 1), 8), ((2, 1), 4), ((1, 2), 4), ((2, 2), 8))
"""By how much the identity and the paper's 23 augmenters multiply rows and columns, and how many of them do so."""


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
    """What `sequences.ttt_sequences` makes of a task, from shapes alone.

    It does not know which augmentations are alike, and counts grids as turned as often as not.

    Args:
        stretch: tokens of the format for one counted here.
        longest: tokens of the longest sequence that devices are given now, where that is less than
            `ttt.max_sequence_tokens`; 0 means no less.
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
    shape = JobShape.of(task, settings)
    decoding = shape.read_work(views_of(kind, 1.0, settings)) + shape.write_work(views_of(kind, 1.0, settings))
    return decoding + (0.0 if kind == BASE else shape.sequences * shape.length * (1 + shape.length / ATTENTION_TOKENS))


@dataclass(frozen=True, slots=True)
class JobShape:
    """What the cost of a task depends on. length, longest, sequences: of training, the last with repetitions."""

    prompt: int
    answer: int
    tests: int
    length: float
    longest: float
    sequences: int
    scoring_views: int

    @classmethod
    def of(cls, task: Task, settings: Settings, *, stretch: float = 1.0, longest: int = 0) -> JobShape:
        count, mean, most = training_shape(task, settings.ttt, stretch=stretch, longest=longest)
        views = settings.vote.scoring_views
        return cls(prompt_tokens(task), answer_tokens(task), len(task.tests), mean, most, count, views)

    def read_work(self, views: int) -> float:
        """Prompts, without gradients a third of training, with attention that grows with their length."""
        return self.tests * views * self.prompt * (1 + self.prompt / ATTENTION_TOKENS) / 3

    def write_work(self, views: int) -> float:
        """Written tokens, which pass alone, and scored ones."""
        return self.tests * self.answer * (views * WRITE / 3 + min(views, self.scoring_views))
