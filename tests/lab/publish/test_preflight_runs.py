"""Checks of preflight that start programs: the trial run and the imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.preflight import imports, trial_run
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.preflight.findings import Level
from arc_lab.publish.stage import Rehearsal, read_fallbacks
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.run.journal import Journal
from arc_ttt.settings import Settings
from support.preflight import DATASET, MODEL_PATH, set_kernel


def test_a_run_without_the_project_is_no_good_run(checkup: Checkup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well and leaves a valid submission, of fillers."""
    next(checkup.bundle.glob("arc_ttt-*.whl")).unlink()
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", lambda *_: (Path(sys.executable), []))
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", lambda *_: (Path(sys.executable), []))
    (finding,) = trial_run.check_run(replace(checkup, short=False))
    assert (finding.level, "FALLBACK: kernel.py: neither src/arc_ttt" in finding.text) == (Level.FAIL, True)


@pytest.mark.parametrize(
    ("first_line", "found", "words"),
    [
        ("arc_ttt 0.1.0 of commit abc", {"base": 2}, ""),
        ("arc_ttt 0.1.0 of commit abc", {"base": 1, "ttt": 2}, ""),
        ("arc_ttt 0.1.0 of commit abc", {"base": 1}, "answered 1 of 2 tasks"),
        ("arc_ttt 0.1.0 of commit abc", {"synthesis": 2}, "answered 0 of 2 tasks"),
        ("arc_ttt 0.1.0 of commit abc\nFALLBACK: no 4-bit weights", {"base": 2}, "FALLBACK: no 4-bit"),
        ("submission.json is complete", {"base": 2}, "did not run the arc_ttt"),
    ],
)
def test_a_run_counts_when_the_model_looked_at_both_tasks(
    checkup: Checkup, monkeypatch: pytest.MonkeyPatch, first_line: str, found: dict[str, int], words: str
) -> None:
    play_run(monkeypatch, found, first_line)
    (finding,) = trial_run.check_run(replace(checkup, short=False))
    assert (finding.level, words in finding.text) == (Level.FAIL if words else Level.OK, True)


def play_run(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, int], first_line: str = "arc_ttt 0.1.0 of commit abc"
) -> list[tuple[dict[str, Any], list[Path]]]:
    """Let runs find so many answers of each kind. Returns what they are given: SETTINGS, and folders with a model."""
    given = []

    def perform(stage: Any, *_: Any, **__: Any) -> Rehearsal:
        models = [path.parent for path in (stage.root / "input").rglob("config.json")]
        given.append((read_settings(stage.root / "src" / "script.py"), models))
        journal = Journal(stage.working / "events.jsonl")
        for kind, count in found.items():
            for number in range(count):
                journal.append("found", kind=kind, task_id=f"t{number}")
        journal.close()
        log = f"{first_line}\nsubmission.json is valid\n"
        return Rehearsal(60.0, 120.0, 0, log, [], read_fallbacks(stage.working / "setup.json", log))

    task = {"train": [{"input": [[1]], "output": [[2]]}] * 2, "test": [{"input": [[1]]}]}
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.some_tasks", lambda *_: {"t0": task, "t1": task})
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.perform", perform)
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", lambda *_: (Path(sys.executable), []))
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", lambda *_: (Path(sys.executable), []))
    return given


def settings_of(given: dict[str, Any]) -> Settings:
    """As the run would read them: an error where it would fall back."""
    return Settings.of(given.pop("preset")).override(given.items())


def test_a_reserve_that_was_chosen_for_hours_does_not_spoil_the_short_run(
    checkup: Checkup, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = play_run(monkeypatch, {"base": 2})
    set_kernel(checkup, run__reserve_s=600.0)
    assert [finding.level for finding in trial_run.check_run(replace(checkup, short=False))] == [Level.OK]
    run = settings_of(given[0][0]).run
    assert (run.limit_s, run.reserve_s) == (trial_run.RUN_LIMIT_S, 0)


@pytest.mark.parametrize(
    ("model", "asked", "answers"),
    [
        ("", "", "answered by embedded XS, valid submission, slack 60 s of 120"),
        ("mounted", MODEL_PATH, "answered by my-llama in format compact, valid"),
        (
            "in the bundle",
            f"/kaggle/input/datasets/{DATASET}",
            "by the bundle's model in format compact, valid",
        ),
        ("not here", MODEL_PATH, "slack 60 s of 120; your model: arc-lab rehearse --model DIR [--gpu]"),
        ("too large", MODEL_PATH, "by embedded XS, valid submission, slack 60 s of 120; your model: arc-lab"),
    ],
)
def test_the_run_says_which_model_answered_and_takes_the_one_asked_for_where_it_can(
    checkup: Checkup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, asked: str, answers: str
) -> None:
    given = play_run(monkeypatch, {"base": 2})
    if asked:
        set_kernel(checkup, model__path=asked, model__backend="unsloth")
    if model == "too large":
        monkeypatch.setattr("arc_lab.publish.preflight.trial_run.MOST_MODEL_BYTES", 1000)
    if model == "in the bundle":
        for path in EMBEDDED.iterdir():
            shutil.copyfile(path, checkup.bundle / path.name)
    shutil.copytree(EMBEDDED, tmp_path / "my-llama")
    here = tmp_path / "my-llama" if model in ("mounted", "too large") else None
    (finding,) = trial_run.check_run(replace(checkup, short=False, model=here))
    assert finding.level == Level.OK
    assert answers in finding.text
    settings, models = given[0]
    used = asked if model in ("mounted", "in the bundle") else ""
    assert settings["model.path"] == used
    assert len(models) == bool(used)
    assert settings["model.backend"] == "transformers"


def empty_interpreter(folder: Path, *_: Any) -> tuple[Path, list[str]]:
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python", []


@pytest.mark.parametrize("failure", ["", "ImportError: an incompatible version of torchao"])
def test_the_adapter_is_tried_beside_what_the_image_has_and_peft_refuses(
    checkup: Checkup, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    programs = []

    def run(words: list[str], limit_s: float) -> str:
        programs.append(words[-1])
        version = "import importlib.metadata, torchao; assert importlib.metadata.version('torchao') == '0.10.0'"
        return (program_failure([*words[:-1], version], limit_s) or failure) if words[-1] == imports.ATTACH else ""

    program_failure = imports._failure
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", empty_interpreter)
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", empty_interpreter)
    monkeypatch.setattr("arc_lab.publish.preflight.imports.offline", list)
    monkeypatch.setattr("arc_lab.publish.preflight.imports._failure", run)
    works, image = imports.check_imports(checkup)
    assert (works.level, "WITH a network" in works.text) == (Level.WARN, True)
    assert programs[1:] == [imports.IMPORTS, imports.ATTACH]
    assert image.level == (Level.FAIL if failure else Level.OK)
    assert "peft 0.19.1 and torchao 0.10.0" in image.text
    assert failure in image.text


@pytest.mark.parametrize(
    ("program", "limit_s", "words"),
    [
        ("print(1)", 60.0, ""),
        ("input()", 60.0, "EOFError"),
        ("import time; time.sleep(60)", 1.0, "it had not ended after 1s"),
        ("import sys; sys.exit(3)", 60.0, "no message"),
    ],
)
def test_a_program_in_the_clean_interpreter_asks_nothing_and_ends(program: str, limit_s: float, words: str) -> None:
    told = imports._failure([sys.executable, "-S", "-c", program], limit_s)
    assert (words in told, bool(told)) == (True, bool(words))


def test_a_stand_in_takes_the_place_of_the_package_that_is_there(tmp_path: Path) -> None:
    python, _ = empty_interpreter(tmp_path / "python")
    site = next((tmp_path / "python" / "lib").glob("python3*")) / "site-packages"
    for name in ("torchao", "torchao-0.99.0.dist-info"):
        (tmp_path / name).mkdir()
        (site / name).symlink_to(tmp_path / name)
    imports.stand_in(python, "torchao", "0.10.0")
    program = "import importlib.metadata, torchao; print(importlib.metadata.version('torchao'))"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.10.0\n"
