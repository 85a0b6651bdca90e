"""The ablation table: pairing, resuming, and a real run of two variants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_lab.data.datasets import DATASETS, read_ids
from arc_lab.evaluate import dry_run
from arc_lab.evaluate.ablate import (
    FULL,
    VARIANTS,
    Answer,
    answered_tasks,
    choose,
    compare,
    main,
    parse_variant,
)
from arc_lab.evaluate.scores import TaskScore
from arc_ttt.errors import SettingsError

GRIDS = [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 0], [1, 1]]]


def answer(*ranks: int, seconds: float = 1.0) -> Answer:
    return Answer(TaskScore("", ranks), seconds)


def test_differences_are_paired_over_common_tasks() -> None:
    full = {"a": answer(1), "b": answer(2, 1), "c": answer(0), "d": answer(1)}
    own = {"a": answer(2), "b": answer(1, 3), "c": answer(1), "e": answer(2, 2, seconds=9.0)}
    row = compare(VARIANTS[1], own, full)
    assert (row.answered, row.solved, row.against.common, row.against.won, row.against.lost) == (4, 3, 3, 1, 1)
    assert (row.solved_1, row.oracle, row.seconds) == (1, 4, 3.0)
    assert row.against.difference == 0
    assert row.against.standard_error == pytest.approx((2 / 3 / 3) ** 0.5)
    assert row.cells()[1:] == ("3 of 4", 1, 4, "+0.0% ± 47.1% (n = 3)", "1, 1", "3.0", 5)


def test_the_paper_has_29_with_16_bits_and_what_sees_other_tasks_is_called_transductive() -> None:
    rows = {variant.name: variant for variant in VARIANTS}
    assert {name: row.paper for name, row in rows.items()} == {
        FULL: 29,
        "fine-tuned": 5,
        "no-augmentation": 13,
        "direct": 18,
        "shared": 22,
        "no-demonstration-loss": 26,
        "16-bit": 29,
        "random-start": 9,
        "joint": None,
    }
    assert [name for name, row in rows.items() if "transductive" in row.about] == ["shared", "joint"]


def test_the_base_answers_count_only_where_nothing_trains() -> None:
    base, ttt = {"ranks": [0], "seconds": 1.5}, {"ranks": [2, 1], "seconds": 20.0}
    rows = {"a": {"base": {**base, "ranks": [1]}}, "b": {"base": base, "ttt": ttt}}
    found = answered_tasks({"by_task": rows, "settings": {"ttt": {"scope": "per-task"}}})
    assert {task_id: (one.solved, one.seconds) for task_id, one in found.items()} == {"b": (True, 20.0)}
    found = answered_tasks({"by_task": rows, "settings": {"ttt": {"scope": "none"}}})
    assert {task_id: one.solved for task_id, one in found.items()} == {"a": True, "b": True}


def test_own_variants_stand_beside_the_built_in_ones() -> None:
    wide, small = parse_variant("wide ttt.rank=64 ttt.alpha=64"), parse_variant("small ttt.rank=4")
    assert wide.changes == ("ttt.rank=64", "ttt.alpha=64")
    assert wide.paper is None
    assert choose("", [wide]) == [*VARIANTS, wide]
    assert [variant.name for variant in choose("none", [wide, small])] == [FULL, "wide", "small"]
    assert [variant.name for variant in choose("direct", [wide])] == [FULL, "direct", "wide"]
    assert [variant.name for variant in choose("small", [wide, small])] == [FULL, "small"]
    with pytest.raises(SettingsError, match="twice"):
        choose("", [wide, wide])
    for wrong in ("", "ttt.rank=4", "direct ttt.rank=4", "none ttt.rank=4", "../out ttt.rank=4", "wide"):
        with pytest.raises(SettingsError, match="--variant"):
            parse_variant(wrong)


def test_two_variants_are_run_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"train": [{"input": g, "output": g} for g in GRIDS[:2]], "test": [{"input": GRIDS[2], "output": GRIDS[2]}]}
    (tmp_path / "easy.json").write_text(json.dumps({"easy": task, "other": task}))
    (tmp_path / "ids.txt").write_text("easy\n")
    out = tmp_path / "out"
    quick = ["ttt.max_sequences=8", "ttt.passes=1", "decode.views=2", "decode.base_views=1", "ttt.rank=4"]
    argv = ["--tasks", str(tmp_path / "easy.json"), "--limit", "10m", "--out", str(out), "--only", "fine-tuned"]
    argv += ["--ids", str(tmp_path / "ids.txt"), "--variant", "one-view decode.views=1"]
    argv += ["--workers", "1", *(word for change in quick for word in ("--set", change))]
    assert main([*argv, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in figures["rows"]] == ["full", "fine-tuned", "one-view"]
    assert all(row["answered"] == 1 and row["seconds_a_task"] > 0 for row in figures["rows"])
    assert main(argv) == 0
    again = capsys.readouterr().out
    assert "dry run" not in again
    assert "| test-time training as it is | " in again
    assert json.loads((out / "ablations.json").read_text()) == figures


def test_wrong_use_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "everything", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("arc-lab ablate: --only everything: there are full,")
    assert main(["--only", "none", "--variant", "odd ttt.rnk=4", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("arc-lab ablate: odd: ")
    assert not list(tmp_path.iterdir())


def test_tasks_that_cannot_be_scored_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"input": GRIDS[0], "output": GRIDS[1]}
    texts = {
        "none": "{}",
        "broken": '{"a": 3}',
        "half": "[1, 2",
        "unknown": json.dumps({"a": {"train": [pair, pair], "test": [{"input": GRIDS[2]}]}}),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    nothing = {"none": "no usable task", "broken": "no usable task: ", "unknown": "no task with a known solution"}
    for name, words in {**nothing, "half": "is not JSON", "gone": "nor an existing file"}.items():
        assert main(["--tasks", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("arc-lab ablate: ")
        assert f"{name}.json" in line
        assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("code", "status"), [(2, 2), (3, 1), (130, 130), (143, 130)])
def test_the_end_of_a_dry_run_is_the_end_of_the_command_which_goes_on_after_an_interruption(
    code: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "main", lambda *_: code)
    assert main(["--only", "none", "--out", str(tmp_path / "out")]) == status
    line = capsys.readouterr().err
    assert (f"arc-lab ablate: full: the dry run ended with status {code}" in line) == (status != 130)
    assert ("the same command goes on" in line) == (status == 130)


def test_help_names_all_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"{', '.join(DATASETS)} (" in " ".join(capsys.readouterr().out.split())


def test_ids_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    many = [f"task-{number}" for number in range(500)]  # more than a file name can hold
    assert read_ids(",".join(many)) == many
    (tmp_path / "ids").write_text("a, b\nc\n\n")
    assert read_ids(str(tmp_path / "ids")) == ["a", "b", "c"]
    (tmp_path / "empty").write_text("\n")
    for nothing in (",", str(tmp_path / "empty")):
        with pytest.raises(SettingsError, match="no task"):
            read_ids(nothing)
