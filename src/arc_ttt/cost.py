"""Predicted seconds of a job: from the shapes of a task, corrected by what earlier jobs took.

Predictions choose what runs; no deadline depends on them.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from arc_ttt.grids import Task
from arc_ttt.settings import Settings

BASE, TTT, SYNTHESIS = "base", "ttt", "synthesis"


def prompt_tokens(task: Task) -> int:
    """Tokens of all demonstrations and the largest test input, one a cell plus row ends and markers."""
    grids = [grid for example in task.train for grid in (example.input, example.output)]
    question = max(task.tests, key=lambda grid: grid.size)
    return sum(int(grid.shape[0]) * (int(grid.shape[1]) + 1) + 1 for grid in (*grids, question))


def answer_tokens(task: Task) -> int:
    """Tokens of an answer as large as the largest output (or, without demonstrations, the largest test input)."""
    grids = [example.output for example in task.train] or list(task.tests)
    return max(int(grid.shape[0]) * (int(grid.shape[1]) + 1) for grid in grids)


def work(task: Task, kind: str, settings: Settings) -> float:
    """Work of a job in training-token equivalents.

    A token read without gradients costs a third of a trained one; a token written costs as much as `WRITE` read ones,
    for it passes alone. Attention adds work that grows with the length.
    """
    prompt, answer = prompt_tokens(task), answer_tokens(task)
    slope = 1 + prompt / ATTENTION_TOKENS
    views = settings.decode.base_views if kind == BASE else settings.decode.views
    decoding = len(task.tests) * (views * (prompt * slope + WRITE * answer) / 3 + settings.vote.scoring_views * answer)
    if kind == BASE or settings.ttt.scope in ("none", "shared") or not task.train:
        return decoding
    length = min(prompt, settings.ttt.max_sequence_tokens)
    return decoding + settings.ttt.max_sequences * settings.ttt.epochs * length * slope


OVERHEAD_S = 0.2  # of any job: views, prompts, messages
WRITE = 4.0  # a written token against a read one; measured on 2 CPU cores with the embedded model
ATTENTION_TOKENS = 3000.0  # length at which attention costs as much as the rest; same machine


@dataclass(slots=True)
class CostModel:
    """Seconds of jobs of one kind of device, learned from jobs that finished.

    tokens_per_second: prior speed in training tokens. For each kind of job the median of the last 30 ratios between
    actual and predicted seconds corrects the prior.
    """

    settings: Settings
    tokens_per_second: float = 2400.0
    _ratios: dict[str, deque[float]] = field(default_factory=dict)
    _programs: dict[int, deque[float]] = field(default_factory=dict)

    def predict_program(self, number: int) -> float:
        """Mean seconds of a task in pass `number` of synthesis; most of the limit before any has ended."""
        seen = self._programs.get(number)
        return statistics.fmean(seen) if seen else 0.7 * self.settings.synthesis.cpu_limit_s(number)

    def observe_program(self, number: int, seconds: float) -> None:
        self._programs.setdefault(number, deque(maxlen=100)).append(seconds)

    def predict(self, task: Task, kind: str) -> float:
        """Median seconds of a job."""
        return self._prior(task, kind) * self.factor(kind)

    def decoding(self, task: Task) -> float:
        """Seconds that answering after training may take, with a margin of half as much again."""
        settings = self.settings
        views = max(1, settings.decode.base_views)
        base = self.predict(task, BASE) if settings.decode.base_views else self._prior(task, BASE)
        return 1.5 * base * settings.decode.views / views

    def factor(self, kind: str) -> float:
        ratios = self._ratios.get(kind)
        return statistics.median(ratios) if ratios else 1.0

    def observe(self, task: Task, kind: str, seconds: float) -> None:
        """Learn from a job that finished."""
        ratio = max(1e-3, seconds) / self._prior(task, kind)
        self._ratios.setdefault(kind, deque(maxlen=30)).append(ratio)

    def _prior(self, task: Task, kind: str) -> float:
        return OVERHEAD_S + work(task, kind, self.settings) / self.tokens_per_second
