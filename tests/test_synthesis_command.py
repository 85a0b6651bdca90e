"""python -m arc_lab synthesize, as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_lab import __main__ as lab
from arc_lab import synthesize


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
    status = lab.main(["synthesize", "--tasks", str(task_file), "--out", str(out), "--cpu-limit", "5"])
    assert status == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["tasks"] == figures["together@1"] == 1
    assert figures["cpu_s"]["max"] < 10
    assert json.loads((out / "results.json").read_text()) == figures
    candidates = json.loads((out / "candidates.json").read_text())["mirror"]["candidates"]
    assert candidates[0]["right"] is True
    assert "mirror test 1" in (out / "programs.txt").read_text()


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
    assert printed.err.startswith("synthesize: ")
    assert len(printed.err.strip().splitlines()) == 1


def test_the_dispatcher_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["--help"]) == 0
    assert "synthesize" in capsys.readouterr().out
    assert lab.main([]) == 2
    assert lab.main(["no-such-command"]) == 2
    assert "no command 'no-such-command'" in capsys.readouterr().err
