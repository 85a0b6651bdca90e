"""kernel.py as Kaggle runs it, with everything that can be wrong there: each time a valid submission if one is
possible, exit status 0 in the scoring rerun, and one line that says why.

The limit is so short that the workers are still loading: what is looked at is everything around them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab.publish import interpreter, rehearse
from arc_lab.publish.bundle import METADATA, Build, _digest, build_bundle, build_wheel, outdated
from arc_lab.publish.interpreter import can_isolate, clean_interpreter
from arc_lab.publish.kaggle_image import WHEELS, read_image
from arc_lab.publish.kernel_file import kernel_with, read_settings
from arc_lab.publish.rehearse import main, ready_bundle, report
from arc_lab.publish.stage import Rehearsal, Stage, judge, model_mount, perform, read_fallbacks, set_stage
from arc_lab.publish.wheels import Wheel, defect, members, read_lock
from arc_ttt.bootstrap.mounts import CHALLENGES, find_model, find_mounts
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.errors import InputError
from arc_ttt.settings import Settings
from support.wheels import make_wheel

ROOT = Path(__file__).resolve().parents[3]
PAIR = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
TASKS = {f"t{i}": {"train": [PAIR] * 3, "test": [{"input": [[1, i], [0, 3]]}] * (1 + i % 2)} for i in range(4)}
LIMIT_S = 6.0

namespaces = pytest.mark.skipif(not can_isolate(), reason="this machine does not permit namespaces with mounts")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own wheel and no other: the interpreter of the tests has what the image lacks."""
    folder = tmp_path_factory.mktemp("bundle")
    build_wheel(folder, Build("0.1.0", "abc", False))
    (folder / METADATA).write_text(json.dumps({"id": "me/arc-ttt-wheels"}))
    return folder


def stage_of(tmp_path: Path, bundle: Path, *, isolated: bool, layout: str = "new", **changes: Any) -> Stage:
    text = kernel_with((ROOT / "kernel.py").read_text(), {"run.limit_s": LIMIT_S, **changes})
    (tmp_path / "kernel.py").write_text(text)
    stage = Stage(tmp_path / "kaggle", isolated)
    set_stage(stage.root, bundle=bundle, tasks=TASKS, layout=layout, kernel=tmp_path / "kernel.py")
    return stage


def run(stage: Stage, *, rerun: bool = True, disk_kib: int = -1) -> Rehearsal:
    return perform(stage, Path(sys.executable), limit_s=60.0, rerun=rerun, disk_kib=disk_kib)


def told(result: Rehearsal, *words: str) -> bool:
    """Whether one line of the log has all the words."""
    return any(all(word in line for word in words) for line in result.log.splitlines())


@pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=namespaces)])
@pytest.mark.parametrize(
    ("own", "gpu", "seen"), [("1", True, "1"), (None, True, None), ("1", False, ""), (None, False, "")]
)
def test_the_script_sees_gpus_only_where_it_is_lent_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool, own: str | None, gpu: bool, seen: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    stage = Stage(tmp_path / "kaggle", isolated)
    for name in ("src", "input", "working", "temp"):
        (stage.root / name).mkdir(parents=True)
    (stage.root / "src" / "script.py").write_text("import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))")
    assert perform(stage, Path(sys.executable), limit_s=60.0, rerun=True, gpu=gpu).log.strip() == repr(seen)


def test_a_gpu_that_is_not_there_is_not_pretended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--bundle", str(tmp_path), "--gpu"]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err


def test_a_bundle_is_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Path, str]] = []
    monkeypatch.setattr(rehearse, "make_bundle", lambda into, chosen: made.append((into, chosen)))
    line = ready_bundle(tmp_path / "bundle", "unsloth")
    assert line == f"there is no bundle in {tmp_path / 'bundle'}: made it, with the unsloth set"
    assert made == [(tmp_path / "bundle", "unsloth")]


def test_a_bundle_of_other_sources_gets_those_of_today_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "input" / "bundle"
    other = make_wheel(tmp_path / "wheels", "foo-1.0-py3-none-any.whl")
    row = Wheel(other.name, "foo", "1.0", _digest(other), other.stat().st_size, "base", ("3.12",), "for a test")
    build_bundle(folder, [row], dataset="me/arc-ttt-wheels", model=EMBEDDED, wheel_folder=other.parent)
    assert ready_bundle(folder, "base") == ""
    (wheel,) = folder.glob("arc_ttt-*.whl")
    wheel.rename(folder / "arc_ttt-0.0.9-py3-none-any.whl")
    (folder / "arc_ttt-0.0.9-py3-none-any.whl").write_bytes(b"old")
    assert "arc_ttt-0.0.9-py3-none-any.whl is damaged" in ready_bundle(folder, "base")
    assert outdated(folder) == ""
    mounts = find_mounts(tmp_path)
    assert {path.name for path in mounts.wheels} == mounts.digests.keys() == {wheel.name, other.name}
    assert mounts.models == [folder]


OWNED, BARE = "models/Them/llama/transformers/1b/2", "llama/transformers/1b/2"


@pytest.mark.parametrize(
    ("path", "new", "old"),
    [
        (OWNED, OWNED, BARE),
        (BARE, f"models/me/{BARE}", BARE),
        ("datasets/Them/weights", "datasets/Them/weights", "weights"),
        ("weights", "datasets/me/weights", "weights"),
        ("datasets/Them/weights/nf4", "datasets/Them/weights/nf4", "weights/nf4"),
    ],
)
def test_a_model_is_mounted_where_the_settings_look_for_it(
    tmp_path: Path, bundle: Path, path: str, new: str, old: str
) -> None:
    model = tmp_path / "of any name"
    model.mkdir()
    (model / "config.json").write_text("{}")
    wanted = f"/kaggle/input/{path}"
    text = kernel_with((ROOT / "kernel.py").read_text(), {"model.path": wanted})
    (tmp_path / "kernel.py").write_text(text)
    for layout, place in (("new", new), ("old", old)):
        root = tmp_path / layout
        set_stage(root, bundle=bundle, tasks=TASKS, layout=layout, kernel=tmp_path / "kernel.py", model=model)
        assert find_model(wanted, find_mounts(root)) == (root / "input" / place, "")


@pytest.mark.parametrize("path", ["embedded-M", "/data/llama", "/kaggle/input", "/kaggle/input/models/Them"])
def test_a_model_that_the_settings_do_not_look_for_is_not_mounted(tmp_path: Path, bundle: Path, path: str) -> None:
    with pytest.raises(InputError, match=re.escape(path)):
        model_mount(path, "new", "me")
    kernel = {"bundle": bundle, "tasks": TASKS, "layout": "new", "kernel": ROOT / "kernel.py"}
    with pytest.raises(InputError, match=r"no model\.path"):
        set_stage(tmp_path / "kaggle", **kernel, model=EMBEDDED)


@pytest.mark.parametrize("below", ["", "/model"])
def test_the_bundle_s_own_mount_is_not_written_over(tmp_path: Path, bundle: Path, below: str) -> None:
    path = f"/kaggle/input/datasets/me/arc-ttt-wheels{below}"
    text = kernel_with((ROOT / "kernel.py").read_text(), {"model.path": path})
    (tmp_path / "kernel.py").write_text(text)
    with pytest.raises(InputError, match=r"bundle --model"):
        set_stage(
            tmp_path / "kaggle", bundle=bundle, tasks=TASKS, layout="new", kernel=tmp_path / "kernel.py", model=EMBEDDED
        )


def test_a_reserve_that_was_chosen_for_hours_does_not_spoil_a_rehearsal(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused beside the short limit, it would take all other settings with it."""
    given = []

    def perform(stage: Stage, *_: Any, **__: Any) -> Rehearsal:
        given.append(read_settings(stage.root / "src" / "script.py"))
        return Rehearsal(5.0, 60.0, 0, "", [])

    text = kernel_with((ROOT / "kernel.py").read_text(), {"run.reserve_s": 600.0})
    (tmp_path / "kernel.py").write_text(text)
    monkeypatch.setattr(rehearse, "ROOT", tmp_path)
    monkeypatch.setattr(rehearse, "perform", perform)
    monkeypatch.setattr(rehearse, "ready_bundle", lambda *_: "")
    monkeypatch.setattr(rehearse, "some_tasks", lambda *_: TASKS)
    monkeypatch.setattr(rehearse, "clean_interpreter", lambda *_: (Path(sys.executable), []))
    assert main(["--bundle", str(bundle), "--limit", "1m"]) == 0
    run = Settings.of(given[0].pop("preset")).override(given[0].items()).run
    assert (run.limit_s, run.reserve_s, run.reserve < 60) == (60, 0, True)


@pytest.mark.parametrize("fault", [FileNotFoundError("unshare"), subprocess.TimeoutExpired("unshare", 20)])
def test_a_probe_for_namespaces_that_fails_or_hangs_means_that_there_are_none(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def run(*_: Any, timeout: float, **__: Any) -> Any:
        assert timeout < 60
        raise fault

    monkeypatch.setattr(interpreter.subprocess, "run", run)
    assert interpreter.offline() == []
    assert not can_isolate()


def test_a_rehearsal_that_ran_with_less_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(Rehearsal(5.0, 60.0, 0, "a\n", [], ["no four bits", "no model"])) == 0
    assert "2 lines with FALLBACK" in capsys.readouterr().out
    assert report(Rehearsal(5.0, 60.0, 0, "a\n", [])) == 0
    assert "FALLBACK" not in capsys.readouterr().out


def test_fallbacks_are_read_from_the_record_and_others_from_the_log(tmp_path: Path) -> None:
    log = "a\nFALLBACK: no four bits\nFALLBACK: kernel.py: the run was ended by signal 9\nno FALLBACK: here\n"
    killed = "kernel.py: the run was ended by signal 9"
    record = tmp_path / "setup.json"
    assert read_fallbacks(record, log) == ["no four bits", killed]
    record.write_text(json.dumps({"fallbacks": ["no four bits", "no model"]}))
    assert read_fallbacks(record, log) == ["no four bits", "no model", killed]
    for damage in ("{", "[]", '{"fallbacks": 3}'):
        record.write_text(damage)
        assert read_fallbacks(record, log) == ["no four bits", killed]


def test_the_notes_tell_the_python_that_runs_in_place_of_the_image_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(folder: Path, **_: Any) -> None:
        (folder / "lib" / "python3" / "site-packages").mkdir(parents=True)

    monkeypatch.setattr(interpreter.venv, "create", create)
    own = ".".join(map(str, sys.version_info[:3]))
    _, notes = clean_interpreter(tmp_path / "other", replace(read_image(), python="3.99"))
    assert notes[0] == f"Python {own}, 3.99 in the image"
    _, notes = clean_interpreter(tmp_path / "same", replace(read_image(), python=own.rpartition(".")[0]))
    assert not any(note.startswith("Python") for note in notes)


@namespaces
@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_run_in_either_layout_leaves_a_valid_submission(tmp_path: Path, bundle: Path, layout: str) -> None:
    stage = stage_of(tmp_path, bundle, isolated=True, layout=layout)
    result = run(stage)
    assert result.problems == [], result.log
    assert "FALLBACK" not in result.log
    assert told(result, "arc_ttt 0.1.0 of commit abc")
    assert told(result, "4 tasks of /kaggle/input/")
    record = json.loads((stage.working / "setup.json").read_text())
    assert record["build"] == {"version": "0.1.0", "commit": "abc"}
    assert record["fallbacks"] == []
    assert "numpy" in record["packages"]


@pytest.mark.parametrize("rerun", [True, False])
def test_by_path_overrides_too_and_the_commit_run_takes_few_tasks(tmp_path: Path, bundle: Path, rerun: bool) -> None:
    text = (ROOT / "kernel.py").read_text().replace("COMMIT_TASKS = 4", "COMMIT_TASKS = 2")
    stage = stage_of(tmp_path, bundle, isolated=False)
    (stage.root / "src" / "script.py").write_text(kernel_with(text, {"run.limit_s": LIMIT_S}))
    result = run(stage, rerun=rerun)
    assert result.problems == [], result.log
    assert told(result, "commit run: 2 of 4 tasks") == (not rerun)


@namespaces
def test_tasks_in_an_unknown_layout_are_found_by_their_name(tmp_path: Path, bundle: Path) -> None:
    stage = stage_of(tmp_path, bundle, isolated=True)
    odd = stage.root / "input" / "somewhere" / "else" / "entirely"
    shutil.move(stage.root / "input" / "competitions" / "arc-prize-2026-arc-agi-2", odd)
    result = run(stage)
    assert result.problems == [], result.log
    assert told(result, "/kaggle/input/somewhere/else/entirely")


@pytest.mark.parametrize("fault", ["missing", "cut", "damaged inside"])
@pytest.mark.parametrize("rerun", [True, False])
def test_without_the_wheel_of_the_project_the_script_writes_fillers(
    tmp_path: Path, bundle: Path, fault: str, rerun: bool
) -> None:
    stage = stage_of(tmp_path, bundle, isolated=False)
    (wheel,) = (stage.root / "input").rglob("arc_ttt-*.whl")
    if fault == "missing":
        wheel.unlink()
    elif fault == "cut":
        wheel.write_bytes(wheel.read_bytes()[:1000])
    else:  # compressed data that cannot be: zlib's own error, not zipfile's
        content = bytearray(wheel.read_bytes())
        with zipfile.ZipFile(wheel) as archive:
            body = next(info for info in archive.infolist() if info.compress_size > 2000)
        start = body.header_offset + 200
        content[start : start + 400] = bytes(byte ^ 0xFF for byte in content[start : start + 400])
        wheel.write_bytes(content)
    result = run(stage, rerun=rerun)
    assert result.returncode == (0 if rerun else 1)
    assert judge(stage.working / "submission.json", stage.root) == []
    assert told(result, "FALLBACK: kernel.py:", "arc_ttt" if fault == "missing" else "cannot be unpacked", "no answers")


@pytest.mark.parametrize("rerun", [True, False])
def test_a_missing_model_gives_way_to_the_embedded_one_and_fails_the_commit_run(
    tmp_path: Path, bundle: Path, rerun: bool
) -> None:
    changes = {"preset": "llama-1b-3b", "model.path": "/kaggle/input/models/me/llama/transformers/4bit/1"}
    result = run(stage_of(tmp_path, bundle, isolated=False, **changes), rerun=rerun)
    assert result.returncode == (0 if rerun else 1), result.log
    assert told(result, "FALLBACK", "/kaggle/input/models/me/llama", "no readable config.json", "embedded")
    assert rerun or told(result, "not what was asked for")


@namespaces
def test_a_working_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path, bundle: Path) -> None:
    result = run(stage_of(tmp_path, bundle, isolated=True), disk_kib=0)
    assert result.returncode == 0, result.log
    assert told(result, "no submission can be written into /kaggle/working", "Read-only")
    assert "Traceback" not in result.log


@namespaces
def test_on_a_full_disk_the_smallest_answers_are_written_if_they_fit(tmp_path: Path, bundle: Path) -> None:
    """A page of disk: too little for the usual first answers of these tasks, enough for the smallest ones."""
    stage = stage_of(tmp_path, bundle, isolated=True)
    wide, other = [[1] * 30] * 30, [[2] * 30] * 30
    tasks = {"big": {"train": [{"input": wide, "output": other}] * 2, "test": [{"input": wide}] * 2}}
    next((stage.root / "input").rglob(CHALLENGES)).write_text(json.dumps(tasks))
    result = run(stage, disk_kib=4)
    assert result.problems == [], result.log
    assert told(result, "FALLBACK", "No space left", "smallest answers")
    assert "Traceback" not in result.log


@namespaces
def test_on_a_disk_too_full_for_any_answer_the_script_still_ends_well(tmp_path: Path, bundle: Path) -> None:
    stage = stage_of(tmp_path, bundle, isolated=True)
    tasks = {f"task{i}": TASKS["t1"] for i in range(200)}
    next((stage.root / "input").rglob(CHALLENGES)).write_text(json.dumps(tasks))
    result = run(stage, disk_kib=4)
    assert result.returncode == 0, result.log
    assert told(result, "no submission can be written", "No space left")


def test_no_variable_is_printed(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens stand in the environment on Kaggle, and logs may become public."""
    stage = stage_of(tmp_path, bundle, isolated=False)
    script = stage.root / "src" / "script.py"
    script.write_text('import os\nos.environ["KAGGLE_USER_SECRETS_TOKEN"] = "s3cret"\n' + script.read_text())
    result = run(stage)
    assert "s3cret" not in result.log
    for path in stage.working.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes()


def test_a_rehearsal_that_takes_too_long_or_fails_is_a_problem(tmp_path: Path, bundle: Path) -> None:
    stage = stage_of(tmp_path, bundle, isolated=False)
    script = stage.root / "src" / "script.py"
    script.write_text("raise SystemExit(3)")
    result = run(stage)
    assert any("ended with 3" in problem for problem in result.problems)
    assert any("no submission.json" in problem for problem in result.problems)
    script.chmod(0o644)
    script.write_text("import time\ntime.sleep(1)")
    assert "it took" in perform(stage, Path(sys.executable), limit_s=0.5, rerun=True).problems[0]


def without_weights_library() -> Path | None:
    """The locked wheel of bitsandbytes, if it has been fetched."""
    wheel = next(w for w in members(read_lock(), "base", read_image().python) if w.name == "bitsandbytes")
    return None if defect(wheel, WHEELS) else WHEELS / wheel.file


@pytest.mark.slow
@namespaces
@pytest.mark.parametrize("four_bit", [True, False])
def test_two_tasks_run_offline_in_a_clean_interpreter_with_and_without_four_bits(
    tmp_path: Path, bundle: Path, four_bit: bool
) -> None:
    """The base set installed without a network, the stored 4-bit model loaded, two tasks adapted; then the same without
    the wheel, the weights read by our own reader."""
    whole = tmp_path / "bundle"
    shutil.copytree(bundle, whole)
    wheel = without_weights_library()
    if four_bit:
        if wheel is None:
            pytest.skip("arc-lab wheels has not been run")
        shutil.copyfile(wheel, whole / wheel.name)
    python, _ = clean_interpreter(tmp_path / "python", read_image())
    changes: dict[str, Any] = {"run.limit_s": 600.0, "ttt.max_sequences": 16, "synthesis.enabled": False}
    stage = stage_of(tmp_path, whole, isolated=True, **changes)
    tasks = {name: TASKS[name] for name in ("t0", "t1")}
    next((stage.root / "input").rglob(CHALLENGES)).write_text(json.dumps(tasks))
    result = perform(stage, python, limit_s=600.0, rerun=True)
    assert result.problems == [], result.log
    assert told(result, "2 tasks adapted")
    assert told(result, "bitsandbytes: works") == four_bit
    assert told(result, "FALLBACK: no 4-bit weights") == (not four_bit)
