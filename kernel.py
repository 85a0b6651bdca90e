"""Test-time training for ARC: one script for Kaggle and for a dry run at home.

On Kaggle (no arguments, no network) it finds the mounted competition, wheels and model, and writes submission.json.
Anywhere else it runs public ARC tasks with the embedded model under a simulated time limit: `python kernel.py --help`.
"""

import ctypes
import io
import json
import math
import os
import select
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

START_S = time.monotonic()
SIGNALS: list[int] = []  # noted from here on; the run looks at them once its first submission is on the disk

# What a competitor edits before `kaggle kernels push`: the names of `--set`, explained in src/arc_ttt/settings.py.
SETTINGS: dict[str, object] = {
    "preset": "embedded",  # embedded, llama-1b-3b or llama-8b: with a mounted model choose the one of its size
    # "model.path": "/kaggle/input/models/OWNER/MODEL/transformers/VARIATION/1",
    # "model.format": "architects",
    "run.limit_s": 11.5 * 3600,
    "ttt.passes": 64,  # trainings of one task, as long as there is time
}
COMMIT_TASKS = 4  # tasks of the public commit run; the scoring rerun always takes all
COMMIT_STRICT = True  # a commit run that had to do with less than SETTINGS ask for ends as an error, before it counts

RESTARTS = 3  # of a scoring rerun that was killed and has this much time left to go on:
RESTART_S = 600.0
ROOT = Path(os.environ.get("ARC_KAGGLE_ROOT", "/kaggle"))


class LastingStream(io.FileIO):
    """What stdout or stderr writes to. Once nobody can take it any more (the reader is gone, the disk is full, the
    terminal hung up), all further text goes nowhere, and so does what a reader that has stalled leaves no room for: no
    run is lost because of what it says."""

    PATIENCE_S = 2.0  # for a reader that has stalled, once until it reads again
    stalled = False

    def write(self, text):  # type: ignore[no-untyped-def]
        rest = memoryview(text).cast("B")
        try:
            while rest:
                room = select.select([], [self.fileno()], [], 0.0 if self.stalled else self.PATIENCE_S)[1]
                self.stalled = not room
                taken = super().write(rest[: select.PIPE_BUF]) if room else None
                if taken is None:
                    break
                rest = rest[taken:]
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return len(text)


def last(name: str, number: int) -> None:
    """Let sys.stdout or sys.stderr outlive its reader. Those of a notebook stay as they are."""
    stream, how = getattr(sys, name), {"encoding": "utf-8"}
    if stream is None:  # closed from the start
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
    elif type(stream) is io.TextIOWrapper and stream.fileno() == number:
        how = {n: getattr(stream, n) for n in ("encoding", "errors", "line_buffering", "write_through")}
    else:
        return
    raw = LastingStream(number, "w", closefd=False)
    how["errors"] = "backslashreplace"  # names of tasks and files may hold what no encoding takes
    buffer = raw if how.get("write_through") else io.BufferedWriter(raw)  # python -u
    setattr(sys, name, io.TextIOWrapper(buffer, **how))


def make_importable() -> str:
    """Put arc_ttt on the path: from src/ beside this file, or from the mounted inputs. Returns why not, or nothing."""
    source = Path(__file__).resolve().parent / "src"
    if (source / "arc_ttt").is_dir():
        sys.path.insert(0, str(source))
        return ""
    for package in sorted((ROOT / "input").rglob("arc_ttt/__init__.py")):
        sys.path.insert(0, str(package.parent.parent))
        return ""
    why = "neither src/arc_ttt beside this file nor an arc_ttt wheel among the inputs"
    for wheel in sorted((ROOT / "input").rglob("arc_ttt-*.whl")):
        for scratch in (ROOT / "temp", Path(tempfile.gettempdir())):
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(scratch / "arc_ttt_code")
            except Exception as error:  # damage shows as many kinds of errors, zlib's own among them
                why = f"{wheel.name} cannot be unpacked: {error}"
                continue
            sys.path.insert(0, str(scratch / "arc_ttt_code"))
            return ""
    return why


def leave_fillers() -> None:
    """Write a valid submission without arc_ttt, the same one-cell answer for every test input, or say why not."""
    try:
        write_fillers()
    except Exception as error:
        print(f"FALLBACK: kernel.py: no submission could be written: {type(error).__name__}: {error}", flush=True)


def write_fillers() -> None:
    counts: dict[str, int] = {}
    mounted = (ROOT / "input").rglob("arc-agi_test_challenges.json")
    likely = max(mounted, key=lambda p: ("competitions" in p.parts, "/arc-prize" in str(p), str(p)), default=None)
    if likely is not None:
        tasks = json.loads(likely.read_text(encoding="utf-8"))
        tests = {i: task.get("test") if isinstance(task, dict) else None for i, task in tasks.items()}
        counts = {i: len(listed) if isinstance(listed, list) and listed else 1 for i, listed in tests.items()}
    answer = {"attempt_1": [[0]], "attempt_2": [[0]]}
    submission = {task_id: [answer] * count for task_id, count in counts.items()}
    (ROOT / "working" / "submission.json").write_text(json.dumps(submission), encoding="utf-8")


def on_kaggle() -> int:
    """The run on Kaggle. In the scoring rerun nothing may end this script with an error: the day would be lost."""
    try:
        why = make_importable()
        if not why:
            from arc_ttt.bootstrap.environment import owns_container
            from arc_ttt.deadline import run_start
            from arc_ttt.kaggle.run import kaggle_run

            start_s = run_start(START_S, container=owns_container())
            return kaggle_run(ROOT, SETTINGS, COMMIT_TASKS, start_s, SIGNALS, strict=COMMIT_STRICT)
    except Exception as error:
        why = f"arc_ttt cannot be used: {type(error).__name__}: {error}"
    print(f"FALLBACK: kernel.py: {why}; the submission holds no answers", flush=True)
    leave_fillers()
    return 0 if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else 1


def guarded() -> int:
    """`on_kaggle` in a child: one that is killed, by the system for its memory or by its own watchdog, or that hangs
    beyond the limit, does not end this script with an error. In the scoring rerun it is started again while there is
    time, and goes on from its journal."""
    rerun, parent = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN")), os.getpid()
    ends_s = START_S + guarded_s(SETTINGS.get("run.limit_s"))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by whoever started this, children would leave no status
    for number in range(1 + RESTARTS if rerun else 1):
        sys.stdout.flush()
        os.environ["ARC_TTT_STARTS"] = str(number + 1)
        try:
            child = os.fork()
        except OSError:
            del os.environ["ARC_TTT_STARTS"]
            return on_kaggle()
        if child == 0:
            die_with(parent)
            return on_kaggle()
        how = watch(child, ends_s)
        if how == 0 or (how > 0 and not rerun):
            return how
        told = f"signal {-how}" if how < 0 else f"exit code {how}"
        print(f"FALLBACK: kernel.py: the run was ended by {told}", flush=True)
        if SIGNALS or ends_s - time.monotonic() < RESTART_S:
            break
    if not (ROOT / "working" / "submission.json").exists():
        leave_fillers()
    return 0 if rerun or not COMMIT_STRICT else 1


def guarded_s(limit_s: object) -> float:
    """Seconds until the guard ends a run: its limit, or for one that settings.py would refuse the usual one."""
    try:
        seconds = float(limit_s)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 11.5 * 3600
    return seconds if 5 <= seconds < math.inf else 11.5 * 3600


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, however that happens."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)


def watch(child: int, ends_s: float) -> int:
    """Wait for a child until `ends_s` on the monotonic clock, then kill it; signals to this process are passed on.
    Returns its exit status, or the number of the signal that ended it, negative."""
    passed, killed_s = 0, math.inf
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now_s = time.monotonic()
        for number in SIGNALS[passed:]:
            os.kill(child, number)
            passed += 1
        if now_s > ends_s and killed_s == math.inf:
            os.kill(child, signal.SIGKILL)
            killed_s = now_s
        if now_s > killed_s + 5.0:  # it is stuck in the system
            return -signal.SIGKILL
        time.sleep(0.1)


def at_home() -> int:
    """The dry run."""
    why = make_importable()
    if why:
        sys.exit(f"kernel.py: {why}")
    from arc_lab.evaluate.dry_run import main
    from arc_ttt.bootstrap.environment import owns_container
    from arc_ttt.deadline import run_start

    return main(sys.argv[1:], run_start(START_S, container=owns_container()), SIGNALS)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: SIGNALS.append(number))
    last("stdout", 1)
    last("stderr", 2)
    mounted = "KAGGLE_KERNEL_RUN_TYPE" in os.environ or (ROOT / "input").is_dir()
    if not mounted or len(sys.argv) > 1:
        sys.exit(at_home())
    try:
        code = guarded()
    except Exception as error:
        print(f"FALLBACK: kernel.py: the guard failed: {type(error).__name__}: {error}", flush=True)
        code = 0 if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else 1
    sys.exit(code)
