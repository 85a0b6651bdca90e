"""Test-time training for ARC: one script for Kaggle and for a dry run at home.

On Kaggle (no arguments, no network) it finds the mounted competition, wheels and model, and writes submission.json.
Anywhere else it runs public ARC tasks with the embedded model under a simulated time limit: `python kernel.py --help`.
"""

import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# What a competitor edits before `kaggle kernels push`: the names of `--set`; `python kernel.py --list-settings`.
SETTINGS: dict[str, object] = {
    "preset": "embedded",  # embedded, llama-1b-3b or llama-8b: with a mounted model choose the one of its size
    # "model.path": "/kaggle/input/models/OWNER/MODEL/transformers/VARIATION/1",
    # "model.format": "architects",
    "run.limit_s": 11.5 * 3600,
    "ttt.passes": 64,  # trainings of one task, as long as there is time
}
COMMIT_TASKS = 4  # tasks of the public commit run; the scoring rerun always takes all
COMMIT_STRICT = True  # a commit run that had to do with less than SETTINGS ask for ends as an error, before it counts
MOST_RESTARTS = 3  # of a scoring rerun that was killed, each with RESTART_NEEDS_S seconds left at least
RESTART_NEEDS_S = 600.0
START_S = time.monotonic()
SIGNALS: list[int] = []  # noted from here on; the run looks at them once its first submission is on the disk
ROOT = Path(os.environ.get("ARC_KAGGLE_ROOT", "/kaggle"))
RERUN = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))  # this is the scoring rerun


def make_importable() -> str:
    """Put arc_ttt on the path: from src/ beside this file, or from the mounted inputs. Returns why not, or nothing."""
    mounted = (file.parents[1] for file in sorted((ROOT / "input").rglob("arc_ttt/__init__.py")))
    beside = Path(__file__).resolve().parent / "src"
    if found := beside if (beside / "arc_ttt").is_dir() else next(mounted, None):
        sys.path.insert(0, str(found))
        return ""
    why = "neither src/arc_ttt beside this file nor an arc_ttt wheel among the inputs"
    for wheel in sorted((ROOT / "input").rglob("arc_ttt-*.whl")):
        for scratch in (ROOT / "temp", Path(tempfile.gettempdir())):
            try:
                zipfile.ZipFile(wheel).extractall(scratch / "arc_ttt_code")
                sys.path.insert(0, str(scratch / "arc_ttt_code"))
                return ""
            except Exception as error:  # damage shows as many kinds of errors, zlib's own among them
                why = f"{wheel.name} cannot be unpacked: {error}"
    return why


def leave_fillers() -> None:
    """Write a valid submission without arc_ttt, the same one-cell answer for every test input, or say why not."""
    try:
        mounted = (ROOT / "input").rglob("arc-agi_test_challenges.json")
        likely = max(mounted, key=lambda p: ("competitions" in p.parts, "/arc-prize" in str(p), str(p)), default=None)
        tasks = json.loads(likely.read_text(encoding="utf-8")) if likely is not None else {}
        tests = {i: task.get("test") if isinstance(task, dict) else None for i, task in tasks.items()}
        counts = {i: len(listed) if isinstance(listed, list) and listed else 1 for i, listed in tests.items()}
        submission = {i: [{"attempt_1": [[0]], "attempt_2": [[0]]}] * count for i, count in counts.items()}
        (ROOT / "working" / "submission.json").write_text(json.dumps(submission), encoding="utf-8")
    except Exception as error:
        say(f"no submission could be written: {type(error).__name__}: {error}")


def say(problem: str) -> None:
    """Print what goes wrong here, unless nobody takes it: no run is lost because of what it says."""
    with contextlib.suppress(Exception):
        if select.select([], [1], [], 2.0)[1]:
            os.write(1, f"FALLBACK: kernel.py: {problem}\n".encode(errors="backslashreplace")[: select.PIPE_BUF])


def on_kaggle(guard: int = 0) -> int:
    """The run on Kaggle, in a child of the process `guard`. In the scoring rerun it never ends with an error."""
    try:
        why = make_importable()
        if not why:
            from arc_ttt.kaggle.run import begin

            return begin(ROOT, SETTINGS, COMMIT_TASKS, START_S, SIGNALS, strict=COMMIT_STRICT, guard=guard)
    except Exception as error:
        why = f"arc_ttt cannot be used: {type(error).__name__}: {error}"
    say(f"{why}; the submission holds no answers")
    leave_fillers()
    return 0 if RERUN else 1


def guarded() -> int:
    """Run `on_kaggle` in a child, so that a killed or hung run (the search of mounts may hang) does not end this script
    with an error. In the scoring rerun, start it again while there is time; it resumes from its journal."""
    limit_s, guard = 11.5 * 3600, os.getpid()  # the limit where settings.py refuses the one chosen
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        chosen_s = float(SETTINGS.get("run.limit_s"))  # type: ignore[arg-type]
        limit_s = chosen_s if 5 <= chosen_s < float("inf") else limit_s
    ends_s = START_S + limit_s
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if whoever started this ignored it, children leave no status
    for number in range(1 + MOST_RESTARTS if RERUN else 1):
        os.environ["ARC_TTT_STARTS"], child = str(number + 1), -1
        with contextlib.suppress(OSError):
            child = os.fork()
        if child < 0:
            del os.environ["ARC_TTT_STARTS"]
        if child <= 0:
            return on_kaggle(guard if child == 0 else 0)
        how = watch(child, ends_s)
        if how == 0 or (how > 0 and not RERUN):
            return how
        say(f"the run was ended by {f'signal {-how}' if how < 0 else f'exit code {how}'}")
        if SIGNALS or ends_s - time.monotonic() < RESTART_NEEDS_S:
            break
    if not (ROOT / "working" / "submission.json").exists():
        leave_fillers()
    return 0 if RERUN or not COMMIT_STRICT else 1


def watch(child: int, ends_s: float) -> int:
    """Wait for a child until `ends_s`, then kill it; pass signals on. Returns its exit code, or minus its signal."""
    passed, killed = 0, False
    while time.monotonic() < ends_s + 5.0:  # a killed child may be stuck in the system
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        for number in SIGNALS[passed:]:
            os.kill(child, number)
            passed += 1
        if time.monotonic() > ends_s and not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.1)
    return -signal.SIGKILL


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: SIGNALS.append(number))
    if ("KAGGLE_KERNEL_RUN_TYPE" in os.environ or (ROOT / "input").is_dir()) and len(sys.argv) == 1:
        try:
            code = guarded()
        except Exception as error:
            say(f"the guard failed: {type(error).__name__}: {error}")
            code = 0 if RERUN else 1
        sys.exit(code)
    if problem := make_importable():
        sys.exit(f"kernel.py: {problem}")
    from arc_lab.evaluate.dry_run import begin

    sys.exit(begin(sys.argv[1:], START_S, SIGNALS))
