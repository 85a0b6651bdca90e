"""What keeps kernel.py's own process alive on Kaggle: real children, really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"a": 1, "b": 2}

# kernel.py with another run inside: `{body}` sees `tries`, how often it has been started, and `ROOT`.
SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import kernel
kernel.SETTINGS["run.limit_s"], kernel.RESTART_NEEDS_S = {limit_s}, 1.0
def run():
    log = kernel.ROOT / "tries"
    tries = len(log.read_text()) if log.exists() else 0
    log.write_text("x" * (tries + 1))
    {body}
kernel.on_kaggle = lambda guard=0: (kernel.make_importable(), end_with(guard), run())[2]
def end_with(guard):
    from arc_ttt.bootstrap.process import die_with_parent
    if guard:
        die_with_parent(guard)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _frame: kernel.SIGNALS.append(number))
sys.exit(kernel.guarded())
"""


def script(root: Path, body: str, *, limit_s: object = 60.0) -> str:
    (root / "working").mkdir()
    (root / "input").mkdir()
    tasks = {name: {"train": [], "test": [{}] * count} for name, count in COUNTS.items()}
    (root / "input" / "arc-agi_test_challenges.json").write_text(json.dumps({**tasks, "odd": 7, "none": {"test": []}}))
    return SCRIPT.format(root=str(ROOT), limit_s=repr(limit_s), body=body)


def start(root: Path, body: str, *, rerun: bool = True, limit_s: object = 60.0) -> subprocess.Popen[str]:
    env = {**os.environ, "ARC_KAGGLE_ROOT": str(root)}
    env.pop("KAGGLE_IS_COMPETITION_RERUN", None)
    if rerun:
        env["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    command = [sys.executable, "-c", script(root, body, limit_s=limit_s)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tries(root: Path) -> int:
    return len((root / "tries").read_text())


def test_a_scoring_rerun_that_is_killed_is_started_again(tmp_path: Path) -> None:
    process = start(tmp_path, "return 0 if tries == 2 else os.kill(os.getpid(), signal.SIGKILL)")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert tries(tmp_path) == 3
    assert said.count("FALLBACK: kernel.py: the run was ended by signal 9") == 2


@pytest.mark.parametrize(("rerun", "code", "started"), [(True, 0, 4), (False, 1, 1)])
def test_one_that_dies_each_time_leaves_a_file_and_fails_the_commit_run_alone(
    tmp_path: Path, rerun: bool, code: int, started: int
) -> None:
    process = start(tmp_path, "os.abort()", rerun=rerun)
    process.communicate(timeout=60)
    assert (process.returncode, tries(tmp_path)) == (code, started)
    answer = {"attempt_1": [[0]], "attempt_2": [[0]]}
    found = json.loads((tmp_path / "working" / "submission.json").read_text())
    assert found == {"a": [answer], "b": [answer] * 2, "odd": [answer], "none": [answer]}


def test_the_exit_code_of_a_run_that_ends_by_itself_is_passed_on(tmp_path: Path) -> None:
    process = start(tmp_path, "return 1", rerun=False)
    process.communicate(timeout=60)
    assert (process.returncode, tries(tmp_path)) == (1, 1)


def test_one_that_hangs_beyond_the_limit_is_ended(tmp_path: Path) -> None:
    began_s = time.monotonic()
    process = start(tmp_path, "time.sleep(600)", limit_s=6.0)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - began_s > 5.0  # and far from the ten minutes
    assert (tmp_path / "working" / "submission.json").exists()


def test_a_submission_that_stands_is_not_touched(tmp_path: Path) -> None:
    process = start(tmp_path, "(kernel.ROOT / 'working' / 'submission.json').write_text('best'); os.abort()")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "working" / "submission.json").read_text() == "best"


def test_signals_reach_the_run(tmp_path: Path) -> None:
    body = "print('up', flush=True)\n    while not kernel.SIGNALS: time.sleep(0.02)\n    return kernel.SIGNALS[0]"
    process = start(tmp_path, body, rerun=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, tries(tmp_path)) == (signal.SIGTERM, 1)


def test_the_run_ends_with_its_guard(tmp_path: Path) -> None:
    process = start(tmp_path, "print('up', flush=True); time.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == ""  # which comes when nobody holds the other side any more


def lines_through(code: str) -> tuple[subprocess.Popen[bytes], list[Any]]:
    """A process whose stdout is a LastingStream, and where its exit status will stand."""
    lasting = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
    lasting += "from arc_ttt.bootstrap import process; process.outlive_reader('stdout', 1)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", lasting + code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""}
    )
    ended: list[Any] = []
    threading.Thread(target=lambda: ended.append(process.wait()), daemon=True).start()
    return process, ended


def test_a_reader_that_has_stalled_holds_nobody_up() -> None:
    """Far more than a pipe holds, and nobody reads: the writer waits a moment once and goes on to its end."""
    process, ended = lines_through("process.LastingStream.PATIENCE_S = 0.2\nfor i in range(3000): print('x' * 500)")
    end_s = time.monotonic() + 60
    while not ended and time.monotonic() < end_s:
        time.sleep(0.02)
    assert ended == [0]
    assert process.stdout is not None
    text = process.stdout.read()
    assert text.startswith(b"x" * 500 + b"\n")
    process.stdout.close()


def test_a_slow_reader_gets_every_line() -> None:
    process, _ = lines_through("process.LastingStream.PATIENCE_S = 60\nfor i in range(3000): print(i, 'y' * 100)")
    assert process.stdout is not None
    found = []
    while piece := process.stdout.read(50_000):
        found.append(piece)
        time.sleep(0.02)
    lines = b"".join(found).splitlines()
    assert [line.split()[0] for line in lines] == [str(i).encode() for i in range(3000)]
    process.stdout.close()


def test_a_restart_that_cannot_fork_runs_without_a_guard(tmp_path: Path) -> None:
    """Memory that a killed run has not given back yet is the likely reason."""
    body = """
    if tries == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    print("a run of its own guard", os.getpid() == main, flush=True)
    return 0
main, forks, fork = os.getpid(), [], os.fork
def fork_once():
    forks.append(1)
    if len(forks) > 1:
        raise OSError("no memory")
    return fork()
os.fork = fork_once"""
    process = start(tmp_path, body.strip())
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "a run of its own guard True" in said
    assert tries(tmp_path) == 2


@pytest.mark.parametrize("limit", ["6", 6.0, " 6 "])
def test_the_guard_takes_a_limit_as_the_settings_take_it(tmp_path: Path, limit: object) -> None:
    process = start(tmp_path, "time.sleep(600)", limit_s=limit)
    assert process.communicate(timeout=60)[0].count("ended by signal 9") == 1
    assert process.returncode == 0


def test_a_limit_that_no_float_holds_does_not_end_the_run(tmp_path: Path) -> None:
    process = start(tmp_path, "return 0", limit_s=10**400)
    process.communicate(timeout=60)
    assert (process.returncode, tries(tmp_path)) == (0, 1)
