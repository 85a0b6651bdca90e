"""The ablation table: pairing, resuming, and a real run of two variants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_lab.ablate import VARIANTS, compare, main, solved_tasks

GRIDS = [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 0], [1, 1]]]


def test_differences_are_paired_over_common_tasks() -> None:
    full = {"a": True, "b": True, "c": False, "d": True}
    own = {"a": True, "b": False, "c": True, "e": True}
    row = compare(VARIANTS[1], own, full)
    assert (row.answered, row.solved, row.common, row.won, row.lost) == (4, 3, 3, 1, 1)
    assert row.difference == 0
    assert row.standard_error == pytest.approx((2 / 3 / 3) ** 0.5)


def test_the_base_answers_count_only_where_nothing_trains() -> None:
    rows = {"a": {"base": {"ranks": [1]}}, "b": {"base": {"ranks": [0]}, "ttt": {"ranks": [2, 1]}}}
    assert solved_tasks({"by_task": rows, "settings": {"ttt": {"scope": "per-task"}}}) == {"b": True}
    assert solved_tasks({"by_task": rows, "settings": {"ttt": {"scope": "none"}}}) == {"a": True, "b": True}


def test_two_variants_are_run_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"train": [{"input": g, "output": g} for g in GRIDS[:2]], "test": [{"input": GRIDS[2], "output": GRIDS[2]}]}
    (tmp_path / "easy.json").write_text(json.dumps(task))
    out = tmp_path / "out"
    quick = ["ttt.max_sequences=8", "decode.views=2", "decode.base_views=1", "ttt.rank=4"]
    argv = ["--tasks", str(tmp_path / "easy.json"), "--limit", "90s", "--out", str(out), "--only", "fine-tuned"]
    argv += ["--workers", "1", *(word for change in quick for word in ("--set", change))]
    assert main(argv) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in figures["rows"]] == ["full", "fine-tuned"]
    assert all(row["answered"] == 1 for row in figures["rows"])
    assert main(argv) == 0
    again = capsys.readouterr().out
    assert "dry run" not in again
    assert json.loads(again.splitlines()[-1]) == figures


def test_wrong_use_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "everything", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("arc_lab ablate: --only everything: there are full,")
