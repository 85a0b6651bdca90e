"""The report of a dry run: what one view alone would have answered, beside the vote; and the time that it takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_lab.data.datasets import Dataset
from arc_lab.evaluate.dry_run import main
from arc_lab.evaluate.report import make_report
from arc_ttt.deadline import REAL_CLOCK, VirtualClock
from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, Job, JobKind
from arc_ttt.protocol.messages import Found, FoundGrid, Programs, ScoredGrid, Unreadable, read_message
from arc_ttt.run.findings import Findings
from arc_ttt.run.report import RunResult
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Solutions, freeze
from arc_ttt.tasks.parse import parse_tasks
from arc_ttt.votes.candidates import Program

PAIR = {"input": [[1]], "output": [[2]]}
RIGHT = [[2]]
TASKS = parse_tasks({name: {"train": [PAIR, PAIR], "test": [{"input": [[1]]}]} for name in ("a", "b")}, source="made")
DATASET = Dataset("made", TASKS, Solutions({name: (freeze(np.array(RIGHT)),) for name in ("a", "b")}))


def reported(*said: tuple[str, str, float, dict[int | str, list[list[int]]]]) -> dict[str, Any]:
    """The report after these passes: stage, task, its share of the training, and the grids by number of their views."""
    findings = Findings(TASKS)
    for number, (stage, task_id, share, grids) in enumerate(said):
        rows = [
            FoundGrid(freeze(np.array(grid)), "identity", 1.0, None if view == "old" else int(view))
            for view, grid in grids.items()
        ]
        assert findings.take(Job(JobKind(stage), task_id, 1.0, share, number), Found(task_id, 0, rows)) == ""
        findings.of(stage, task_id).outcome = "finished"
    return make_report(DATASET, Settings.of("embedded"), RunResult(findings.results), {})


def test_the_first_view_alone_is_scored_beside_the_vote() -> None:
    report = reported(
        (BASE, "a", 1.0, {1: RIGHT, 2: RIGHT}),  # the first view gave no grid: the vote is right, one view is not
        (BASE, "b", 1.0, {0: RIGHT, 1: [[3]], 2: [[3]]}),
        (TTT, "a", 0.25, {0: [[7]], 1: RIGHT}),
        (TTT, "a", 1.0, {0: RIGHT, 1: [[7]]}),  # the pass with the most training counts
        (TTT, "b", 1.0, {0: [[7]], 1: RIGHT, -1: RIGHT}),
    )
    assert {i: (row[BASE]["greedy"], row[TTT]["greedy"]) for i, row in report["by_task"].items()} == {
        "a": ((False,), (True,)),
        "b": ((True,), (False,)),
    }
    assert [report[part][stage]["greedy"] for part in ("score", "paired") for stage in (BASE, TTT)] == [1, 1, 1, 1]
    assert report["paired"][BASE]["at_1"] == 1
    assert report["paired"][BASE]["at_2"] == 2


def test_a_transductive_run_says_so() -> None:
    for scope, expected in (("per-task", False), ("none", False), ("shared", True), ("joint", True)):
        settings = Settings.of("embedded").override([("ttt.scope", scope)])
        assert make_report(DATASET, settings, RunResult({}), {})["transductive"] == expected


def test_the_report_has_a_program_for_every_test_input() -> None:
    tasks = parse_tasks({"a": {"train": [PAIR, PAIR], "test": [{"input": [[1]]}] * 2}}, source="made")
    findings = Findings(tasks)
    for index, texts in enumerate((["p", "q"], ["r"])):
        rows = [Program(index, freeze(np.array([[n]])), text, 0.5, True) for n, text in enumerate(texts)]
        findings.take(Job(SYNTHESIS, "a", 1.0), Programs("a", index, rows))
    report = make_report(Dataset("made", tasks, Solutions({})), Settings(), RunResult(findings.results), {})
    programs = report["by_task"]["a"][SYNTHESIS]["programs"]
    assert [(row["test_index"], row["program"]) for row in programs] == [(0, "p"), (1, "r")]


def test_both_engines_and_their_union_are_counted_on_the_same_tasks() -> None:
    """Task a is the network's, task b the program's; the submission has b alone."""
    findings = Findings(TASKS)
    for number, (task_id, grid) in enumerate((("a", RIGHT), ("b", [[7]]))):
        rows = [FoundGrid(freeze(np.array(grid)), "identity", 1.0, 0)]
        findings.take(Job(TTT, task_id, 1.0, number=number), Found(task_id, 0, rows))
        program = Program(0, freeze(np.array([[7]] if task_id == "a" else RIGHT)), "p", 0.9, True)
        findings.take(Job(SYNTHESIS, task_id, 1.0), Programs(task_id, 0, [program]))
        for stage in (TTT, SYNTHESIS):
            findings.of(stage, task_id).outcome = "finished"
    submitted = {
        task_id: [[freeze(np.array([[7]])), freeze(np.array(grid))]] for task_id, grid in (("a", [[8]]), ("b", RIGHT))
    }
    report = make_report(DATASET, Settings.of("embedded"), RunResult(findings.results), submitted)
    assert report["both_engines"] == {"tasks": 2, "network": 1, "programs": 1, "joined": 1, "either": 2}


def test_answers_of_an_older_journal_are_scored_but_for_that() -> None:
    report = reported((TTT, "a", 1.0, {"old": RIGHT}), (TTT, "b", 1.0, {0: RIGHT}))
    assert report["score"][TTT]["at_1"] == 2
    assert report["score"][TTT]["greedy"] is None
    assert "greedy" not in report["by_task"]["a"][TTT]


def scored(*found: tuple[list[list[int]], float], trained: float = 1.0) -> Found:
    """Answers to the first test input, each with its mean nll."""
    grids = [(freeze(np.array(grid)), nll) for grid, nll in found]
    rows = [FoundGrid(grid, "identity", nll, view) for view, (grid, nll) in enumerate(grids)]
    return Found("a", 0, rows, [ScoredGrid(grid, (nll,)) for grid, nll in grids], trained)


def pass_of(number: int, share: float = 1.0) -> Job:
    return Job(TTT, "a", 1.0, share, number)


@pytest.mark.parametrize("trained", [0.0, 0.05])
def test_a_training_that_failed_does_not_outvote_one_that_went_well(trained: float) -> None:
    """A short training has the answer; then a full one runs out of memory, and the base model answers in its place."""
    findings, settings = Findings(TASKS), Settings.of("embedded")
    assert findings.take(pass_of(0, 0.1), scored(([[5]], 0.05), ([[3]], 3.0), trained=1.0)) == ""
    before = findings.attempts("a", 0, settings)
    assert findings.take(pass_of(1, 1.0), scored(([[3]], 0.5), ([[4]], 0.6), trained=trained)) == ""
    after = findings.attempts("a", 0, settings)
    assert before is not None
    assert after is not None
    assert [g.tolist() for g in before] == [g.tolist() for g in after] == [[[5]], [[3]]]
    findings.take(pass_of(1, 1.0), scored(([[3]], 0.5), ([[4]], 0.6)))  # an older journal does not say
    older = findings.attempts("a", 0, settings)
    assert older is not None
    assert older[0].tolist() == [[3]]


@pytest.mark.parametrize("rule", ["product", "flattened", "hierarchical", "paper"])
def test_a_training_that_failed_says_nothing_where_another_answered(rule: str) -> None:
    """Under every rule, also where the good one has no scores, and whichever came first."""
    settings = Settings.of("embedded").override([("vote.rule", rule)])
    failed = scored(*[([[3]], 0.5)] * 16, trained=0.0)
    good = dataclasses.replace(scored(*[([[5]], 0.1)] * 8), scored=[])
    for numbers in ((0, 1), (1, 0)):
        findings = Findings(TASKS)
        findings.take(pass_of(numbers[0], 0.1), good)
        findings.take(pass_of(numbers[1]), failed)
        both = findings.attempts("a", 0, settings)
        assert both is not None
        assert both[0].tolist() == [[5]]
        assert findings.agreement("a") > 0.6


def test_an_earlier_try_of_a_pass_leaves_nothing_in_the_agreement() -> None:
    findings = Findings(TASKS)
    findings.take(pass_of(0, 0.3), scored(([[3]], 0.5), ([[4]], 0.6)))
    assert findings.agreement("a") == pytest.approx(0.5)
    findings.take(pass_of(0, 0.3), scored(([[7]], 0.5), ([[7]], 0.5)))
    assert findings.agreement("a") == pytest.approx(1.0)


def test_a_training_that_failed_votes_where_there_is_no_other() -> None:
    findings = Findings(TASKS)
    findings.take(pass_of(0, 1.0), scored(([[3]], 0.5), ([[4]], 0.6), trained=0.0))
    both = findings.attempts("a", 0, Settings.of("embedded"))
    assert both is not None
    assert [g.tolist() for g in both] == [[[3]], [[4]]]


@pytest.mark.parametrize("trained", [float("nan"), float("inf"), "much"])
def test_a_part_of_a_training_that_is_no_number_is_refused(trained: object) -> None:
    line = {**scored(([[3]], 0.5)).to_json(), "trained": trained}
    message = read_message(line)
    assert isinstance(message, Unreadable)
    assert message.known


@pytest.mark.parametrize("view", ["0", 1.0, -2, True])
def test_a_view_that_is_no_number_is_refused(view: object) -> None:
    row = {"grid": RIGHT, "group": "identity", "nll": 1.0, "view": view}
    line = {"type": "candidates", "task_id": "a", "test_index": 0, "candidates": [row], "scored": []}
    message = read_message(line)
    assert isinstance(message, Unreadable)
    assert "number of a view" in message.reason


@pytest.mark.parametrize(("took_s", "reserve_s"), [(0.0, 8.8), (20.0, 28.8), (500.0, 108.8)])
def test_the_reserve_grows_with_the_time_that_the_start_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_s: float, reserve_s: float
) -> None:
    """Scores and tables come after the run; on a busy machine they take long, as the start has."""
    seen: list[float] = []

    def start_run(loaded: object, settings: Settings, *_: object, **__: object) -> RunResult:
        seen.append(settings.run.reserve)
        return RunResult({}, limit_s=settings.run.limit_s)

    monkeypatch.setattr("arc_lab.evaluate.dry_run.start_run", start_run)
    now_s = REAL_CLOCK.now()
    monkeypatch.setattr("arc_lab.evaluate.dry_run.REAL_CLOCK", VirtualClock(now_s))
    assert main(["--limit", "400s", "--out", str(tmp_path)], now_s - took_s) == 0
    assert seen == [pytest.approx(reserve_s, abs=0.1)]


@pytest.mark.parametrize(
    "argv",
    [
        ("--preset", "llama-8b"),
        ("--set", "model.format=architects"),
        ("--model", "embedded-XS", "--format", "barc"),
    ],
)
def test_a_format_of_another_model_than_the_embedded_one_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    assert main([*argv, "--out", str(tmp_path / "out")], REAL_CLOCK.now()) == 2
    assert "needs a checkpoint that was trained with it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
