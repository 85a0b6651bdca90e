"""Counting a run's answers again: cut to fewer views it is as if only these had answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arc_lab.evaluate.revote import ALL, RULES, Way, main, score, with_views
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.run.findings import PassResult, TaskResult
from arc_ttt.run.journal import Journal
from arc_ttt.tasks.grids import freeze
from arc_ttt.votes.candidates import SEARCHED, Candidate, ScoredCandidate

RIGHT, WRONG, THIRD = [[1]], [[2]], [[3]]
PAIR = {"input": [[0, 0]], "output": [[5]]}


def candidate(grid: list[list[int]], view: int | None) -> Candidate:
    return Candidate("a", 0, freeze(grid), "identity" if view == 0 else "rot90", 1.0, "ttt", view)  # type: ignore[arg-type]


def test_a_pass_cut_to_fewer_views_has_only_what_these_answered_and_scored() -> None:
    scored = [
        ScoredCandidate("a", 0, freeze(grid), (float(n), 5.0, 6.0), "ttt")  # type: ignore[arg-type]
        for n, grid in enumerate((RIGHT, WRONG, THIRD))
    ]
    one = PassResult(0.5, [candidate(WRONG, 0), candidate(RIGHT, 2), candidate(THIRD, SEARCHED)], scored)
    few = with_views(one, 2, 1)
    assert few.candidates == one.candidates[:1]
    assert [(s.grid.tolist(), s.nll_by_view) for s in few.scored] == [(WRONG, (1.0,))]
    assert with_views(one, 3, 3).candidates == one.candidates[:2]
    everything = with_views(one, ALL, ALL)
    assert everything.candidates == one.candidates
    assert [(s.grid.tolist(), s.nll_by_view) for s in everything.scored] == [
        (s.grid.tolist(), s.nll_by_view) for s in scored
    ]
    old = PassResult(1.0, [candidate(WRONG, None), candidate(RIGHT, None)], [])  # of a journal without views
    assert with_views(old, 1, 1).candidates == old.candidates[:1]


@pytest.mark.parametrize("rule", RULES)
def test_a_failed_pass_counts_only_where_no_other_answered(rule: str) -> None:
    """Whatever its weight: most rules do not look at it."""
    result = TaskResult()
    result.put(0, 0, PassResult(0.02, [candidate(WRONG, view) for view in range(3)], [], failed=True))
    assert score(result, [freeze(WRONG)], "a", Way(rule, ALL, ALL)).ranks == (1,)  # type: ignore[arg-type]
    result.put(0, 1, PassResult(1.0, [candidate(RIGHT, 0)], []))
    for views in (1, 3, ALL):
        assert score(result, [freeze(RIGHT)], "a", Way(rule, views, ALL)).ranks == (1,)  # type: ignore[arg-type]
        assert score(result, [freeze(WRONG)], "a", Way(rule, views, ALL)).ranks == (0,)  # type: ignore[arg-type]


def make_run(folder: Path) -> tuple[Path, Path]:
    """Two tasks under four views. "a": views say wrong, right, right, right and the scores agree with the first. "b":
    right, wrong, third, third, of which the first view's scores prefer the right one, all together the third."""
    answers: dict[str, list[Any]] = {"a": [WRONG, RIGHT, RIGHT, RIGHT], "b": [RIGHT, WRONG, THIRD, THIRD]}
    nlls = {"a": [[9, 1, 1, 1], [1, 9, 9, 9]], "b": [[1, 9, 9, 9], [2, 8, 8, 8], [3, 1, 1, 1]]}
    run = folder / "out"
    journal = Journal(run / "events.jsonl", REAL_CLOCK, REAL_CLOCK.now())
    for task_id, grids in answers.items():
        distinct = [RIGHT, WRONG] + ([THIRD] if task_id == "b" else [])
        journal.append(
            "found",
            kind="ttt",
            task_id=task_id,
            predicted_s=1.0,
            share=1.0,
            number=0,
            type="candidates",
            test_index=0,
            candidates=[{"grid": g, "group": "identity", "nll": 1.0, "view": v} for v, g in enumerate(grids)],
            scored=[{"grid": g, "nll_by_view": n} for g, n in zip(distinct, nlls[task_id], strict=True)],
        )
    journal.close()
    (run / "report.json").write_text(json.dumps({"settings": {"vote": {"rule": "product"}}}))
    tasks = folder / "tasks.json"
    body = {"train": [PAIR], "test": [{"input": [[0, 0]], "output": RIGHT}]}
    tasks.write_text(json.dumps({"a": body, "b": body}))
    return run, tasks


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_table_of_a_run_counted_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tasks = make_run(tmp_path)
    assert main([str(run), "--tasks", str(tasks), "--views", "1,4", "--rules", "product,flattened"]) == 0
    found = cells(capsys.readouterr().out)
    assert found["as it was"][:3] == ["1", "1", "2"]  # "a" by its scores; in "b" third, wrong, right
    assert found["product, views: 1"][:3] == ["1", "1", "1"]  # the first views: wrong for "a", right for "b"
    assert found["product, views: 4"] == found["as it was"]
    assert found["flattened, views: 1"][:3] == ["1", "1", "1"]
    assert found["flattened, views: 4"][:3] == ["1", "2", "2"]  # "b": third twice, then the first seen
    assert found["flattened, views: 4"][3].endswith("(1 won, 0 lost)")
    assert found["product, views: 1"][3].endswith("(1 won, 1 lost)")
    assert main([str(run), "--tasks", str(tasks), "--views", "4", "--scoring", "1", "--rules", "product"]) == 0
    found = cells(capsys.readouterr().out)
    assert len(found) == 2
    assert found["product, views: 4, scoring: 1"][:3] == ["1", "2", "2"]  # "a" has wrong before right now


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--rules", "best"], "best"),
        (["--views", "0"], "--views"),
        (["--views", "many"], "--views"),
        (["--tasks", "ttt80"], "no answers to tasks of ttt80"),
        (["--stage", "base"], "stage base"),
    ],
)
def test_wrong_use_gets_one_clear_line(
    change: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, tasks = make_run(tmp_path)
    assert main([str(run), "--tasks", str(tasks), *change]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "give the folder of a run" in capsys.readouterr().err


def test_a_run_that_scored_under_fewer_views_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tasks = make_run(tmp_path)
    assert main([str(run), "--tasks", str(tasks), "--views", "4,8", "--rules", "product", "--scoring", "16"]) == 0
    assert set(cells(capsys.readouterr().out)) == {"as it was", "product, views: 4", "product, views: 8, scoring: 4"}
