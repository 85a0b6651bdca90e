"""Scores: attempts, several test inputs, oracle, standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arc_lab.evaluate import TaskScore, score_submission, score_task, summarize
from arc_ttt.grids import Grid, Solutions, freeze


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


A, B, C, D = grid("1"), grid("2"), grid("12"), grid("1", "2")


def test_ranks_count_from_one_and_zero_means_not_found() -> None:
    score = score_task("t", [[A, B], [B, C, A], [], [C]], [A, A, A, D])
    assert score.ranks == (1, 3, 0, 0)  # the last: same cells, another shape


def test_a_task_is_solved_when_all_its_test_inputs_are() -> None:
    score = TaskScore("t", (1, 2))
    assert not score.solved(1)
    assert score.solved(2)
    assert score.share(1) == 0.5
    assert score.share(2) == 1.0
    assert not TaskScore("t", (1, 0)).solved(10**9)
    assert not TaskScore("t", (3, 1)).solved(2)


def test_ranked_lists_and_answers_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_task("t", [[A]], [A, B])


def test_a_summary_counts_tasks_and_test_inputs() -> None:
    scores = [TaskScore("a", (1,)), TaskScore("b", (2, 1)), TaskScore("c", (3,)), TaskScore("d", (0, 1))]
    summary = summarize(iter(scores))
    assert (summary.tasks, summary.at_1, summary.at_2, summary.oracle) == (4, 1, 2, 3)
    assert (summary.inputs, summary.inputs_2) == (6, 4)


@pytest.mark.parametrize(("solved", "tasks"), [(0, 10), (10, 10), (3, 10), (1, 400)])
def test_the_standard_error_is_that_of_a_share_in_tasks(solved: int, tasks: int) -> None:
    summary = summarize([TaskScore(str(i), (1 if i < solved else 0,)) for i in range(tasks)])
    share = solved / tasks
    assert summary.standard_error == pytest.approx(tasks * math.sqrt(share * (1 - share) / tasks))


def test_an_empty_summary_has_no_error() -> None:
    assert summarize([]).standard_error == 0.0


def test_a_submission_is_scored_on_the_tasks_with_known_answers() -> None:
    def row(first: Grid, second: Grid) -> dict[str, object]:
        return {"attempt_1": first.tolist(), "attempt_2": second.tolist()}

    document = {"a": [row(B, A), row(C, C)], "unknown": [row(A, A)], "short": [row(A, A)]}
    solutions = Solutions({"a": (A, D), "short": (A, A), "absent": (A,)})
    scores = {score.task_id: score.ranks for score in score_submission(document, solutions)}
    assert scores == {"a": (2, 0), "short": (0, 0)}  # too few answers are not solved; absent was not asked for
