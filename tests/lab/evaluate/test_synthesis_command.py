"""`arc-lab synthesize`, as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arc_lab import __main__ as lab
from arc_lab.evaluate import synthesize
from arc_ttt.synthesis.solver import ProgramCandidate
from arc_ttt.tasks.grids import Task, freeze


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """One task: mirror the columns."""
    grids = [[[1, 0, 2], [0, 3, 0]], [[4, 4, 0], [0, 1, 2]], [[0, 7, 7], [3, 0, 0]], [[5, 0, 0], [0, 5, 2]]]
    pairs = [{"input": grid, "output": [row[::-1] for row in grid]} for grid in grids]
    path = tmp_path / "mirror.json"
    path.write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    return path


def test_a_run_writes_results_and_ends_with_figures(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["synthesize", "--tasks", str(task_file), "--out", str(out), "--cpu-limit", "5"]
    assert lab.main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    figures, shown = json.loads(printed.out), printed.err.splitlines()
    assert figures["tasks"] == figures["together@1"] == 1
    assert figures["cpu_s"]["max"] < 10
    assert json.loads((out / "results.json").read_text()) == figures
    candidates = json.loads((out / "candidates.json").read_text())["mirror"]["candidates"]
    assert candidates[0]["right"] is True
    assert "mirror test 1" in (out / "programs.txt").read_text()
    rows = (
        "together",
        "by pieces",
        "by cell rules",
        "by both, same answer",
        "both (steps of the pieces)",
        "wall seconds",
    )
    rows += ("CPU seconds per task, mean", "CPU seconds per task, median", "CPU seconds per task, p99")
    rows += ("CPU seconds per task, max", "peak memory, MB", "sure, 0.85 or more")
    for row in rows:
        assert any(line.startswith(f"| {row} ") for line in shown), row


def candidate(test_index: int, colour: int, engine: str, depth: int, confidence: float) -> ProgramCandidate:
    grid = freeze(np.full((1, 1), colour))
    return ProgramCandidate("made up", test_index, grid, "a program", engine, True, confidence, depth)


def made_up(cpu_s: float, answers: list[int], *candidates: ProgramCandidate) -> synthesize.SearchedTask:
    """The result of a task whose answers are single cells of these colours."""
    grids = tuple(freeze(np.full((1, 1), colour)) for colour in answers)
    return synthesize.SearchedTask(Task("made up", (), grids), candidates, cpu_s, grids)


def test_figures_by_engine_depth_and_confidence() -> None:
    results = [
        made_up(1.0, [1], candidate(0, 1, "both", 0, 0.95)),
        made_up(2.0, [1], candidate(0, 2, "pieces", 1, 0.9), candidate(0, 1, "cells", 6, 0.3)),
        made_up(3.0, [1, 2], candidate(0, 1, "pieces", 1, 0.5), candidate(1, 2, "pieces", 3, 0.5)),
        made_up(4.0, [1, 2], candidate(0, 1, "cells", 2, 0.5)),
        made_up(
            5.0,
            [1],
            candidate(0, 3, "cells", 2, 0.2),
            candidate(0, 4, "pieces", 2, 0.1),
            candidate(0, 1, "both", 2, 0.1),
        ),
        made_up(9.0, [1]),
    ]
    figures = synthesize.figures_of(results)
    assert (figures["together@1"], figures["together@2"]) == (2, 3)
    assert (figures["pieces@1"], figures["pieces@2"]) == (2, 3)
    assert (figures["cells@1"], figures["cells@2"]) == (2, 3)
    assert (figures["agreed@1"], figures["agreed@2"]) == (2, 2)
    assert figures["by_depth@2"] == {
        "pieces": {"1": 0, "2": 0, "3": 1, "more": 0},
        "cells": {"1": 0, "2": 0, "3": 0, "more": 1},
        "both": {"1": 1, "2": 0, "3": 0, "more": 0},
    }
    assert figures["cpu_s"] == {"mean": 4.0, "median": 3.5, "p99": pytest.approx(8.8), "max": 9.0}
    assert figures["test_inputs"] == 8
    assert (figures["confident"], figures["confident_right"], figures["confident_right_share"]) == (2, 1, 0.5)
    assert figures["confident_share"] == 0.25
    assert sum(count for count, _, _ in figures["reliability"].values()) == 6


def test_figures_without_answers_or_candidates() -> None:
    nothing = synthesize.SearchedTask(Task("made up", (), ()), (), 0.5, None)
    figures = synthesize.figures_of([nothing]) | {"wall_s": 0.5, "tasks_of": "nothing"}
    assert (figures["tasks"], figures["scored"], figures["together@2"]) == (1, 0, 0)
    assert figures["confident_right_share"] is None
    synthesize.print_tables(figures)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tasks", "no such set", "--out", "OUT"],
        ["--tasks", "FILE", "--out", "OUT", "--ids", "unknown"],
        ["--tasks", "FILE", "--out", "OUT", "--cpu-limit", "0"],
        ["--tasks", "FILE", "--out", "OUT", "--cpu-limit", "nan"],
        ["--tasks", "FILE", "--out", "OUT", "--first", "-1"],
        ["--tasks", "FILE", "--out", "OUT", "--first", "many"],
        ["--tasks", "FILE", "--out", "FILE"],
        ["--tasks", "FILE"],
        ["--unknown"],
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    arguments: list[str], task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"OUT": str(tmp_path / "out"), "FILE": str(task_file)}
    assert synthesize.main([names.get(argument, argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("arc-lab synthesize: ")
    assert len(printed.err.strip().splitlines()) == 1
