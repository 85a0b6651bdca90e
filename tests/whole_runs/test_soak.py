"""Runs under real clocks with everything going wrong at once: each ends before its limit with a complete submission."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arc_ttt.run.journal import read_journal
from arc_ttt.run.submission import check_submission
from support.scripted_fleet import ROOT, Process, worker_script

TROUBLE = """
import random
mood = random.SystemRandom().random()
if mood < 0.02: os.kill(os.getpid(), signal.SIGKILL)
elif mood < 0.03: os.kill(os.getpid(), signal.SIGSEGV)
elif mood < 0.04: os.kill(os.getpid(), signal.SIGSTOP)
elif mood < 0.05: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)
elif mood < 0.06:
    while True: say(type="tick", more="x" * 5000)
elif mood < 0.07:
    while True: sys.stderr.write("x" * 5000); progress(job)
elif mood < 0.08: os.write(1, b"Traceback: whatever a library prints\\n"); time.sleep(600)
elif mood < 0.09: os.write(1, b'{"type": "done", "job"'); os._exit(0)
elif mood < 0.10: candidates(job, 0, [[[99]], [], None]); done(job, outcome="failed")
elif mood < 0.11: sys.exit(10)
elif mood < 0.12:
    if os.fork() == 0: time.sleep(600)
    os._exit(7)
elif mood < 0.13: candidates(job, 0, [mine(job, 0)]); os.abort()
for _ in range(random.SystemRandom().randrange(1, 5)): time.sleep(0.1); progress(job, "decode")
answer(job)
"""


def soak(folder: Path, *, runs: int, at_once: int, limits_s: tuple[float, float], seed: int) -> list[dict[str, float]]:
    """Seconds to spare, deaths and passes of each run. Some runs have a disk that is full after a few kilobytes."""
    draws, figures, waiting = random.Random(seed), [], list(range(runs))
    running: list[tuple[Process, float]] = []
    ended_s: dict[int, float] = {}  # by process, noted the moment it ends: the checks of others take their time
    folder.mkdir(exist_ok=True)
    worker = folder / "worker.py"
    worker_script(worker, TROUBLE)
    while waiting or running:
        while waiting and len(running) < at_once:
            out, limit_s = folder / str(waiting.pop()), draws.uniform(*limits_s)
            full = draws.choice([0, 0, 0, 60_000])
            running.append((Process(out, worker, limit_s, tasks=400, file_bytes=full), limit_s))
            threading.Thread(target=note_end, args=(running[-1][0].process, ended_s), daemon=True).start()
        for process, limit_s in list(running):
            if process.process.pid not in ended_s:
                if process.process.poll() is None and time.monotonic() - process.began_s >= limit_s:
                    for late, _ in running:
                        late.process.kill()
                        late.end()
                    raise AssertionError(f"a run is past its limit of {limit_s:.1f} s")
                continue
            seconds = ended_s.pop(process.process.pid) - process.began_s
            assert process.end() == (0, "")
            assert seconds < limit_s
            process.valid()
            assert process.nothing_left()
            events = read_journal(process.out / "events.jsonl")
            names = [event["event"] for event in events]
            figures.append(
                {"spare_s": limit_s - seconds, "deaths": names.count("death"), "passes": names.count("done")}
            )
            running.remove((process, limit_s))
        time.sleep(0.02)
    return figures


def note_end(process: subprocess.Popen[bytes], ended_s: dict[int, float]) -> None:
    process.wait()
    ended_s[process.pid] = time.monotonic()


def test_a_few_short_runs_under_all_faults(tmp_path: Path) -> None:
    figures = soak(tmp_path, runs=2, at_once=2, limits_s=(12.0, 14.0), seed=0)  # importing is slow on a busy machine
    assert len(figures) == 2


@pytest.mark.slow
def test_two_hundred_runs_under_all_faults(tmp_path: Path) -> None:
    figures = soak(tmp_path, runs=200, at_once=8, limits_s=(20.0, 60.0), seed=1)
    spare = sorted(run["spare_s"] for run in figures)
    deaths, passes = (sum(run[name] for run in figures) for name in ("deaths", "passes"))
    print(f"{len(figures)} runs, {deaths} deaths, {passes} passes, to spare {spare[0]:.2f} s at least")
    assert len(figures) == 200


def real_run(out: Path, *, limit_s: float, tasks: int, seed: int, draws: random.Random) -> tuple[float, int, int]:
    """`kernel.py` with its embedded model, as a person calls it, while workers are killed at random instants.

    Returns the seconds to spare, the workers killed and the passes that ended.
    """
    command = [
        sys.executable,
        str(ROOT / "kernel.py"),
        "--limit",
        f"{limit_s}s",
        "--out",
        str(out),
        "--seed",
        str(seed),
    ]
    began_s, killed = time.monotonic(), 0
    with (out.parent / f"{out.name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--first", str(tasks)], stdout=log, stderr=log, start_new_session=True)
    while process.poll() is None:
        if time.monotonic() - began_s > limit_s:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"past its limit of {limit_s} s")
        time.sleep(0.05)
        if draws.random() < 0.05 / 40:  # one in forty seconds
            workers = children_of(process.pid)
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draws.choice(workers), signal.SIGKILL)
                killed += 1
    seconds = time.monotonic() - began_s
    assert process.returncode == 0
    document = json.loads((out / "submission.json").read_text())
    assert len(document) == tasks
    check_submission(document, {task_id: len(answers) for task_id, answers in document.items()})
    events = read_journal(out / "events.jsonl")
    return limit_s - seconds, killed, sum(event["event"] == "done" for event in events)


def children_of(pid: int) -> list[int]:
    """Worker processes of a coordinator, its dead-man left out."""
    workers = []
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"arc_ttt.worker" in Path(f"/proc/{number}/cmdline").read_bytes():
                workers.append(int(number))
    return workers


@pytest.mark.slow
def test_twenty_runs_of_the_embedded_model_while_workers_are_killed(tmp_path: Path) -> None:
    """Limits from 45 seconds to 5 minutes, sets of 1 to 400 evaluation tasks, two runs at once."""

    def one(number: int) -> int:
        draws = random.Random(number)
        limit_s = round(math.exp(draws.uniform(math.log(45), math.log(300))), 1)
        tasks = draws.choice([1, 12, 80, 400])
        figures = real_run(tmp_path / str(number), limit_s=limit_s, tasks=tasks, seed=number, draws=draws)
        print(f"limit {limit_s} s, {tasks} tasks: %.1f s to spare, %d workers killed, %d passes" % figures, flush=True)
        return figures[-1]

    with ThreadPoolExecutor(2) as pool:
        passes = list(pool.map(one, range(20)))
    assert len(passes) == 20
    assert sum(passes) > 0
