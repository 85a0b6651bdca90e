"""Measure what four bits cost a checkpoint: exact answers with and without them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arc_lab.data.datasets import held_out_tasks
from arc_lab.data.packs import Pack
from arc_lab.pretraining.held import measuring_sequences
from arc_lab.pretraining.measure import exact_match
from arc_ttt.atomic import write_atomically
from arc_ttt.checkpoints.folders import weights_fingerprint
from arc_ttt.deadline import REAL_CLOCK, Deadline, format_duration
from arc_ttt.decode.answerer import Answers
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.load import load_model
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Grid, Task, same_grid
from arc_ttt.votes.rules import rank
from arc_ttt.worker.solver import TaskSolver

WORTH_ACTING_ON = 0.02
"""A larger loss of exact match asks for straight-through NF4 in the decay, or for int8."""

PLAIN = "plain weights"
FOUR_BIT = "four bits"

WEIGHTS = {PLAIN: "none", FOUR_BIT: "nf4"}
"""The two kinds of weights, each with its value of model.quantize."""


@dataclass(frozen=True, slots=True)
class Cost:
    """For each question, whether the answer is right with plain and with 4-bit weights."""

    plain: tuple[bool, ...]
    four_bit: tuple[bool, ...]

    @property
    def difference(self) -> float:
        """Share right with four bits, minus share right without."""
        return float(np.mean(self._changes())) if self.plain else 0.0

    @property
    def standard_error(self) -> float:
        """Paired standard error of the difference over questions; if no question differs, as if one did."""
        changes = self._changes()
        count = len(changes)
        spread = float(np.std(changes)) if changes.any() else 1 / math.sqrt(max(1, count))
        return spread / math.sqrt(max(1, count))

    def _changes(self) -> np.typing.NDArray[np.float64]:
        changes: np.typing.NDArray[np.float64] = np.array(self.four_bit, float) - np.array(self.plain, float)
        return changes

    def document(self) -> dict[str, Any]:
        """The cost as JSON."""
        return {
            "n": len(self.plain),
            "plain": sum(self.plain),
            "four_bit": sum(self.four_bit),
            "difference": round(self.difference, 4),
            "standard_error": round(self.standard_error, 4),
        }


class KeptAnswers:
    """Which questions were answered right, part by part, in a file that outlives an interruption."""

    def __init__(self, path: Path | None, question: str) -> None:
        """Read the file, if it belongs to this question.

        Args:
            path: the file; None keeps nothing.
            question: a text that identifies weights, settings and data.
        """
        self.path, self.question = path, question
        self.parts: dict[str, list[bool]] = {}
        if path is not None and path.is_file():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                if document["question"] == question:
                    self.parts = {str(name): [bool(one) for one in right] for name, right in document["parts"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                self.parts = {}  # an unreadable file is measured again

    def part(self, name: str, compute: Callable[[], Iterable[bool]]) -> tuple[bool, ...]:
        """The part `name`: from the file, or else computed and written there."""
        if name not in self.parts:
            self.parts[name] = list(compute())
            if self.path is not None:
                document = {"question": self.question, "parts": self.parts}
                write_atomically(self.path, json.dumps(document, indent=1) + "\n")
        return tuple(self.parts[name])


class Measurement:
    """Measures the costs of four bits. Each of the two kinds of weights is loaded when it is first needed."""

    def __init__(
        self, folders: dict[str, Path], settings: Settings, kept: KeptAnswers, say: Callable[[str], None]
    ) -> None:
        self.folders, self.settings, self.kept, self.say = folders, settings, kept, say
        self.solver = functools.cache(self._solver)
        self.start_s = REAL_CLOCK.now()

    def of_pairs(self, pack: Pack, split: str, count: int) -> Cost:
        """The cost on `count` held pairs of a split (as in `measuring_sequences`), without test-time training."""
        drawn = measuring_sequences(
            [pack], split, 4 * count, self.settings.ttt.max_sequence_tokens
        )  # many are too long
        sequences = drawn[:: max(1, len(drawn) // count)][:count]
        right = {}
        for kind in WEIGHTS:
            name = f"{count} pairs, {split}, {kind}"
            right[kind] = self.kept.part(name, functools.partial(self._exact, kind, sequences))
            self._report(f"{name}: {sum(right[kind])} right")
        return Cost(right[PLAIN], right[FOUR_BIT])

    def of_tasks(self, tasks: Sequence[tuple[Task, Grid]]) -> tuple[Cost, Cost]:
        """The costs on tasks, before and after test-time training on each."""
        found: dict[str, list[tuple[bool, ...]]] = {kind: [] for kind in WEIGHTS}
        for number, (task, answer) in enumerate(tasks, 1):
            for kind in WEIGHTS:
                both = functools.partial(self._solved, kind, task, answer)
                found[kind].append(self.kept.part(f"task {task.task_id}, {kind}", both))
            counts = [
                f"{kind} {sum(before for before, _ in rows)} right before, {sum(after for _, after in rows)} after"
                for kind, rows in found.items()
            ]
            self._report(f"{number} of {len(tasks)} tasks: {'; '.join(counts)}")
        before, after = (
            Cost(*(tuple(rows[column] for rows in found[kind]) for kind in (PLAIN, FOUR_BIT))) for column in (0, 1)
        )
        return before, after

    def _solver(self, kind: str) -> TaskSolver:
        """A solver with one kind of weights."""
        own = self.settings.override([("model.path", str(self.folders[kind])), ("model.quantize", WEIGHTS[kind])])
        return TaskSolver(load_model(own.model, torch.device("cpu")), own)

    def _exact(self, kind: str, sequences: Sequence[TokenSequence]) -> list[bool]:
        """For each sequence, whether the base model writes its last output exactly."""
        solver = self.solver(kind)
        if solver.adapter is not None:
            solver.adapter.reset(to_base=True)
        return exact_match(solver.base, sequences)

    def _solved(self, kind: str, task: Task, answer: Grid) -> tuple[bool, bool]:
        """Whether the first attempt is right, before and after training on the task."""
        solver, never = self.solver(kind), Deadline.never()
        return (
            self._right(solver.answer(task, never), answer),
            self._right(solver.adapt(task, never), answer),
        )

    def _right(self, answers: Answers, answer: Grid) -> bool:
        """Whether the best answer is right."""
        ranked = rank(answers.candidates, answers.scored, rule=self.settings.vote.rule)
        return any(same_grid(grid, answer) for grid in ranked[:1])

    def _report(self, text: str) -> None:
        self.say(f"{format_duration(REAL_CLOCK.now() - self.start_s)}  {text}")


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked: `sequences` pairs of each kind, and `tasks` tasks, both held back in a pack."""

    pack: Pack
    sequences: int
    tasks: int


def measure(
    model: Path,
    nf4: Path,
    questions: Questions,
    settings: Settings,
    *,
    kept: Path | None = None,
    say: Callable[[str], None] = functools.partial(print, flush=True),  # noqa: B008
) -> dict[str, Any]:
    """Measure all costs, JSON-ready by name.

    Args:
        model: folder of the checkpoint with plain weights.
        nf4: folder of its NF4 form.
        questions: what is asked.
        settings: settings of test-time training and decoding.
        kept: a file from which an interrupted measurement continues.
        say: prints a line of progress.
    """
    pack = questions.pack
    question = json.dumps([settings.to_json(), pack.sha256, weights_fingerprint(model), weights_fingerprint(nf4)])
    folders = {PLAIN: model, FOUR_BIT: nf4}
    measurement = Measurement(folders, settings, KeptAnswers(kept, question), say)
    costs = {}
    if questions.sequences:
        for name, split in (("pairs of seen generators", "train"), ("pairs of held-out generators", "held-out")):
            costs[f"{name}, before"] = measurement.of_pairs(pack, split, questions.sequences)
    if questions.tasks:
        drawn = held_out_tasks(pack, questions.tasks, settings.ttt.max_sequence_tokens)
        name = "tasks of held-out generators"
        costs[f"{name}, before"], costs[f"{name}, after"] = measurement.of_tasks(drawn)
    return {name: cost.document() for name, cost in costs.items()}


def cost_lines(costs: dict[str, Any]) -> list[str]:
    """The costs for a person, with advice about a cost that is too high."""
    lines = []
    for name, cost in costs.items():
        lines.append(
            f"  {name} test-time training: {cost['plain']} of {cost['n']} with plain weights, {cost['four_bit']} with "
            f"four bits ({cost['difference']:+.1%} ± {cost['standard_error']:.1%})"
        )
        if cost["difference"] < -WORTH_ACTING_ON:
            lines.append("    more than 2 points: end the decay with straight-through NF4, or ship int8")
            if cost["difference"] > -2 * cost["standard_error"]:
                lines.append("    (within two standard errors of nothing: ask more questions first)")
    return lines
