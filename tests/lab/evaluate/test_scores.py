"""Scores: attempts, several test inputs, oracle, standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arc_lab.data.datasets import DATASETS
from arc_lab.evaluate import synthesize
from arc_lab.evaluate.scores import Paired, TaskScore, score_submission, score_task, standard_error, summarize
from arc_ttt.synthesis.solver import ProgramCandidate
from arc_ttt.tasks.grids import Grid, Solutions, Task, freeze


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


@pytest.mark.parametrize(("solved", "tasks"), [(5, 10), (3, 10), (1, 400)])
def test_the_standard_error_is_that_of_a_share_in_tasks(solved: int, tasks: int) -> None:
    summary = summarize([TaskScore(str(i), (1 if i < solved else 0,)) for i in range(tasks)])
    share = solved / tasks
    assert summary.standard_error == pytest.approx(tasks * math.sqrt(share * (1 - share) / tasks))


@pytest.mark.parametrize("tasks", [1, 12, 400])
def test_tasks_that_are_all_alike_leave_an_error_of_one_task(tasks: int) -> None:
    for rank in (0, 1):
        scores = [TaskScore(str(number), (rank,)) for number in range(tasks)]
        assert summarize(scores).standard_error == pytest.approx(1.0)
    for won, lost in ((0, 0), (tasks, 0), (0, tasks)):
        assert Paired(tasks, won, lost).standard_error == pytest.approx(1 / tasks)
    assert Paired(tasks + 1, 1, 0).standard_error < 1 / tasks  # one that differs is counted as it is


def test_figures_of_synthesis_have_the_same_error() -> None:
    def result(right: bool) -> synthesize.SearchedTask:
        found = ProgramCandidate("t", 0, A if right else B, "a program", "pieces", True, 0.5, 1)
        return synthesize.SearchedTask(Task("t", (), (A,)), (found,), 1.0, (A,))

    for hits in ([False] * 4, [True] * 4, [True, False, False, False]):
        share = sum(hits) / 4
        figures = synthesize.figures_of([result(right) for right in hits])
        assert figures["standard_error"] == round(standard_error(share * (1 - share), 4), 4) > 0


def test_help_of_synthesize_names_all_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthesize.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(DATASETS)} (" in shown


def test_nothing_has_no_error() -> None:
    assert summarize([]).standard_error == 0.0
    assert Paired(0, 0, 0).standard_error == 0.0


def test_a_submission_is_scored_on_the_tasks_with_known_answers() -> None:
    def row(first: Grid, second: Grid) -> dict[str, object]:
        return {"attempt_1": first.tolist(), "attempt_2": second.tolist()}

    document = {"a": [row(B, A), row(C, C)], "unknown": [row(A, A)], "short": [row(A, A)]}
    solutions = Solutions({"a": (A, D), "short": (A, A), "absent": (A,)})
    scores = {score.task_id: score.ranks for score in score_submission(document, solutions)}
    assert scores == {"a": (2, 0), "short": (0, 0)}  # too few answers are not solved; absent was not asked for
