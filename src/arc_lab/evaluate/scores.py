"""Scores: per task and per test input, at one and two attempts, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arc_ttt.tasks.grids import Grid, Solutions, same_grid


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How one task was answered.

    Args:
        task_id: the task.
        ranks: for each test input the rank of the right grid, 1 for the best, 0 if no answer is right.
        one_view: for each test input whether the greedy answer under the first view alone is right; None where the
            views of the answers are not known.
    """

    task_id: str
    ranks: tuple[int, ...]
    one_view: tuple[bool, ...] | None = None

    def solved(self, attempts: int) -> bool:
        """All test inputs right within this many attempts."""
        return all(1 <= rank <= attempts for rank in self.ranks)

    def share(self, attempts: int) -> float:
        """Share of test inputs right within this many attempts: the competition's measure."""
        return sum(1 <= rank <= attempts for rank in self.ranks) / len(self.ranks)


def score_task(task_id: str, ranked: Sequence[Sequence[Grid]], answers: Sequence[Grid]) -> TaskScore:
    """Compare the ranked grids of each test input with its answer."""
    ranks = []
    for grids, answer in zip(ranked, answers, strict=True):
        hits = [place for place, grid in enumerate(grids, 1) if same_grid(grid, answer)]
        ranks.append(hits[0] if hits else 0)
    return TaskScore(task_id, tuple(ranks))


def score_submission(document: Mapping[str, object], solutions: Solutions) -> list[TaskScore]:
    """Scores of a parsed submission.json on those of its tasks whose answers are known.

    A task with more or fewer answers than test inputs counts as not solved.
    """
    import numpy as np

    from arc_ttt.tasks.grids import freeze

    scores = []
    for task_id, answers in solutions.by_task.items():
        if task_id not in document:
            continue
        rows = document[task_id]
        ranked: list[list[Grid]] = [[] for _ in answers]
        if isinstance(rows, list) and len(rows) == len(answers):
            ranked = [[freeze(np.array(row[name])) for name in ("attempt_1", "attempt_2")] for row in rows]
        scores.append(score_task(task_id, ranked, answers))
    return scores


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over the scores of some tasks.

    Args:
        tasks: number of tasks.
        at_1: tasks solved at one attempt.
        at_2: tasks solved at two attempts.
        oracle: tasks whose right grids are among all candidates.
        inputs: number of test inputs.
        inputs_2: test inputs right at two attempts.
        greedy: tasks solved by one view alone, without a vote; None unless that is known of every task.
    """

    tasks: int
    at_1: int
    at_2: int
    oracle: int
    inputs: int
    inputs_2: int
    greedy: int | None = None

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the share solved at two attempts, in tasks (see `standard_error`)."""
        share = self.at_2 / self.tasks if self.tasks else 0.0
        return self.tasks * standard_error(share * (1 - share), self.tasks)


def standard_error(variance: float, count: int) -> float:
    """Standard error of the mean of a figure over `count` tasks, from the figure's variance over them.

    A variance of 0 (all tasks alike) does not prove that other tasks would be alike. It counts as 1 / count, as if one
    task differed from the rest; the error then is that task's share, 1 / count. Source: ours.
    """
    return math.sqrt((variance or 1 / count) / count) if count else 0.0


def summarize(scores: Iterable[TaskScore]) -> Summary:
    """The counts over some tasks' scores."""
    scores = list(scores)
    alone = [score.one_view for score in scores if score.one_view is not None]
    return Summary(
        tasks=len(scores),
        at_1=sum(score.solved(1) for score in scores),
        at_2=sum(score.solved(2) for score in scores),
        oracle=sum(score.solved(10**9) for score in scores),
        inputs=sum(len(score.ranks) for score in scores),
        inputs_2=sum(1 <= rank <= 2 for score in scores for rank in score.ranks),
        greedy=sum(all(right) for right in alone) if len(alone) == len(scores) else None,
    )


@dataclass(frozen=True, slots=True)
class Paired:
    """Two ways of solving, compared on the tasks that both tried.

    Args:
        common: number of these tasks.
        won: tasks that only the first way solves.
        lost: tasks that only the second way solves.
    """

    common: int
    won: int
    lost: int

    @classmethod
    def of(cls, own: Mapping[str, bool], other: Mapping[str, bool]) -> Paired:
        """Compare two ways by whether each solved its tasks (by task id)."""
        common = [task_id for task_id in own if task_id in other]
        won = sum(own[task_id] and not other[task_id] for task_id in common)
        return cls(len(common), won, sum(other[task_id] and not own[task_id] for task_id in common))

    @property
    def difference(self) -> float:
        """Share of tasks solved by the first way, minus the share solved by the second."""
        return (self.won - self.lost) / self.common if self.common else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the paired difference (see `standard_error`)."""
        different = (self.won + self.lost) / self.common if self.common else 0.0
        return standard_error(different - self.difference**2, self.common)

    def text(self) -> str:
        """As "+1.0% ± 2.0% (3 won, 1 lost)"."""
        return f"{self.difference:+.1%} ± {self.standard_error:.1%} ({self.won} won, {self.lost} lost)"
