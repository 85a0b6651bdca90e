"""The faults of a run, each injected into the product's own coordinator and fleet, with real processes really killed.

Workers are scripts that speak the protocol; what needs CUDA is played by what CUDA raises. Every run is looked at on
every turn of its loop: the submission on the disk must be complete and valid. What is not here stands elsewhere:

| fault | where |
|---|---|
| F5 a process that never dies | test_fleet |
| F6 out of memory, F11 no numbers | test_solver, test_training; here what a worker says of it |
| F12 slow-down, F24 slow start over hours | test_simulate, in virtual time |
| F16 each failing call | test_submission, test_journal; here a run whose disk is full |
| F21 a torn journal | test_journal, test_recovery |
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import SubmissionError
from arc_ttt.fleet import fleet as fleet_module
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST
from arc_ttt.run.journal import read_journal
from arc_ttt.run.report import Status
from arc_ttt.run.submission import Submission
from arc_ttt.schedule.cost import CostModel
from arc_ttt.tasks.parse import parse_tasks
from support.scripted_fleet import (
    QUICK,
    Process,
    Ran,
    document,
    expected,
    python_path,
    run,
    valid,
    worker_script,
)


def finished(ran: Ran, stage: str = "ttt") -> set[str]:
    """Tasks with a pass of a stage that ended well."""
    return {i for (kind, i), found in ran.result.results.items() if kind == stage and found.outcome == "finished"}


# F1, F2: workers that die


def kill_at_random(seed: int, kills: int, between_s: float) -> Any:
    """An `on_status` that starts a thread which kills a live worker now and then; at most `kills` in all."""
    moments, started = random.Random(seed), []

    def killer(fleet: Fleet) -> None:
        for _ in range(kills):
            time.sleep(moments.uniform(0.0, 2 * between_s))
            alive = [slot for slot in (0, 1) if fleet.alive(slot)]
            if alive:
                slot = moments.choice(alive)
                try:
                    os.kill(fleet.pid(slot), moments.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
                except (KeyError, ProcessLookupError):  # it died between the two lines
                    continue

    def on_status(status: Status, fleet: Fleet) -> None:
        if not started:
            started.append(threading.Thread(target=killer, args=(fleet,), daemon=True))
            started[0].start()

    return on_status


@pytest.mark.parametrize(("seed", "kills"), [(0, 25), pytest.param(1, 1000, marks=pytest.mark.slow)])
def test_f1_workers_killed_at_random_instants(tmp_path: Path, seed: int, kills: int) -> None:
    """Every task is answered in the end, except those under which two workers died one after the other."""
    count = kills * 2
    ran = run(
        tmp_path,
        "time.sleep(0.02); answer(job)",
        tasks=count,
        limit_s=60.0 + 2 * kills,
        patience=dataclasses.replace(QUICK, deaths=1000),
        on_status=kill_at_random(seed, kills, 0.1),
    )
    assert ran.result.stopped_by == "all done"
    assert len(ran.result.deaths) >= kills / 3
    left_alone = {i for (_, i), found in ran.result.results.items() if found.outcome == Outcome.LOST}
    assert left_alone <= set(ran.result.quarantined)
    want = expected(count)
    assert {i for i in want if ran.document[i] != want[i]} <= left_alone
    for result in ran.result.results.values():  # nothing was counted twice
        assert len(result.candidates) <= 2


CRASHES = {
    "null pointer": ("import ctypes; ctypes.string_at(0)", "signal 11"),
    "abort": ("os.abort()", "signal 6"),
    "exit": ("os._exit(3)", "exit code 3"),
    "exit well": ("sys.exit(0)", "exit code 0"),
    "exception": ("raise KeyError('x')", "exit code 1"),
    "bus error": ("os.kill(os.getpid(), signal.SIGBUS)", "signal 7"),
    "device lost": (f"os._exit({EXIT_DEVICE_LOST})", "exit code 10: device lost"),
    "out of file size": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "open(folder / 'x', 'wb').write(b'x' * 99)\nos._exit(4)",
        "signal 25",
    ),
    "recursion": ("def f(): f()\nf()", "exit code 1"),
    "closed pipe": ("os.close(1); os._exit(5)", "exit code 5"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_f2_a_crash_of_any_kind_costs_one_try(tmp_path: Path, name: str) -> None:
    code, cause = CRASHES[name]
    lines = "\n".join("    " + line for line in code.splitlines())
    start = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"  # Python itself ignores it
    ran = run(tmp_path, f"if job['task_id'] == 't1' and first_time('crash'):\n{lines}\nanswer(job)", start=start)
    assert ran.result.deaths == [cause]
    assert ran.result.stopped_by == "all done"
    assert ran.document == expected(6)
    (death,) = ran.named("death")
    assert death["again"]


# F3, F4: workers that hang


HANGS = {
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "C code that holds the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(600)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "reads for ever": "os.read(os.pipe()[0], 1)",
    "deaf to SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(600)",
    "busy": "while True: pass",
}


@pytest.mark.parametrize("name", HANGS)
def test_f3_f4_a_worker_that_hangs_is_ended_and_its_job_done_by_another(tmp_path: Path, name: str) -> None:
    lines = "\n".join("    " + line for line in HANGS[name].splitlines())
    ran = run(tmp_path, f"if job['task_id'] == 't1' and first_time('hang'):\n{lines}\nanswer(job)")
    assert ran.result.stopped_by == "all done"
    (cause,) = ran.result.deaths
    assert cause.startswith("silent for")
    assert ran.document == expected(6)


def test_f3_a_thread_that_says_it_lives_does_not_hide_a_hang() -> None:
    """Progress is what the working thread says; the worker's own code sends none from anywhere else."""
    files = sorted((Path(fleet_module.__file__).parents[1] / "worker").glob("*.py"))
    assert len(files) > 5
    for source in (path.read_text() for path in files):
        assert "import threading" not in source
        assert "Thread(" not in source


class Undying(fleet_module.subprocess.Popen):  # type: ignore[misc, name-defined]
    """A process that no signal ends: the kernel keeps it in a call that waits for a broken disk or device."""

    stuck = True

    def poll(self) -> int | None:
        return None if self.stuck else super().poll()


def test_f5_a_worker_that_never_dies_costs_its_slot_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Undying] = []

    def popen(*arguments: Any, **named: Any) -> Any:
        made.append(Undying(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(fleet_module.subprocess, "Popen", popen)
    hang = "if sys.argv[0].endswith('worker0.py'): time.sleep(600)\ntime.sleep(0.1); answer(job)"
    try:
        ran = run(tmp_path, hang, tasks=12, limit_s=30.0)
    finally:
        for process in made:
            process.stuck = False
            process.poll()
    assert ran.result.stopped_by == "all done"
    assert ran.document == expected(12)
    assert len(ran.result.deaths) == 1  # nothing was started in its place: the device may still be taken


# F6, F7, F11: what devices do to a worker that runs the product's own loop


SERVER = """
import os, sys
sys.path[:0] = {path!r}
import numpy as np
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import Done, Found, FoundGrid, Ready
from arc_ttt.tasks.grids import freeze
from arc_ttt.worker import serve
from arc_ttt.worker.server import Server
class Made(Server):
    ready = Ready("cuda:0", "float16")
    lost = False
    def work(self, order, deadline, progress):
        progress("train", 0, 1)
        self.touch(order.task.task_id)
        for index in range(len(order.task.tests)):
            stage = 1 if order.kind == "base" else 2
            grid = freeze(np.array([[stage, index, int(order.task.task_id[1:]) % 10]]))
            self.send(Found(order.task.task_id, index, [FoundGrid(grid, "identity", 1.0)], job=order.id))
        return Done(Outcome.FINISHED)
    def touch(self, task_id):
        if self.lost: raise RuntimeError("CUDA error: device-side assert triggered")
{touch}
serve.ModelServer = Made
sys.exit(serve.main())
"""


def served(folder: Path, touch: str, **changes: Any) -> Ran:
    """A run whose workers are the product's own main loop around a device that is made up."""
    body = "\n".join("        " + line for line in touch.splitlines())
    worker = folder / "server.py"
    worker.write_text(SERVER.format(path=python_path(), touch=body))
    return run(folder, "", commands=[[sys.executable, "-S", "-E", str(worker)]] * 2, **changes)


def test_f7_a_lost_device_ends_the_process_and_another_takes_the_job(tmp_path: Path) -> None:
    """Under t1 the first process loses its context; every later call there would fail too."""
    touch = f"""
try:
    if task_id == "t1": os.close(os.open({str(tmp_path / "once")!r}, os.O_CREAT | os.O_EXCL)); self.lost = True
except FileExistsError: pass
if self.lost: raise RuntimeError("CUDA error: device-side assert triggered")
"""
    ran = served(tmp_path, touch)
    assert ran.result.deaths == ["exit code 10: device lost"]
    assert ran.result.stopped_by == "all done"
    assert ran.document == expected(6)


def test_f7_a_task_that_breaks_every_device_is_left_alone(tmp_path: Path) -> None:
    ran = served(tmp_path, 'if task_id == "t1": raise RuntimeError("CUDA error: an illegal memory access")')
    assert set(ran.result.deaths) == {"exit code 10: device lost"}
    assert ran.result.quarantined == ["t1"]
    assert {i for i, answers in expected(6).items() if ran.document[i] != answers} == {"t1"}


def test_f6_too_little_memory_for_a_task_costs_that_task_and_no_process(tmp_path: Path) -> None:
    """What is left when the whole ladder has failed: the process lives on."""
    ran = served(tmp_path, 'if task_id == "t1": raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")')
    assert ran.result.deaths == []
    assert ran.result.results["base", "t1"].outcome == Outcome.FAILED
    assert {i for i, answers in expected(6).items() if ran.document[i] != answers} == {"t1"}


@pytest.mark.parametrize("number", ["float('nan')", "float('inf')", "-float('inf')", "None", "'x'"])
def test_f11_answers_without_a_number_never_vote(tmp_path: Path, number: str) -> None:
    behaviour = f"""
if job["task_id"] == "t1" and job["kind"] == "ttt":
    found = [{{"grid": [[9, 9]], "group": "identity", "nll": {number}}}]
    say(type="candidates", job=job["id"], task_id="t1", test_index=0, candidates=found, scored=[])
    done(job, loss=[{number}, {number}], seconds={number})
else: answer(job)
"""
    ran = run(tmp_path, behaviour)
    assert ran.result.stopped_by == "all done"
    assert ran.document["t1"][0]["attempt_1"] == [[1, 0, 1]]  # the base pass stands
    assert len(ran.named("dropped")) == 1


# F8, F9, F10: tasks and devices that are bad


def test_f8_a_task_that_kills_every_worker_is_left_alone_and_the_others_are_done(tmp_path: Path) -> None:
    ran = run(tmp_path, 'if job["task_id"] == "t1": os.kill(os.getpid(), 9)\nanswer(job)')
    assert ran.result.stopped_by == "all done"
    assert ran.result.deaths == ["signal 9"] * 2
    assert ran.result.quarantined == ["t1"]
    assert {i for i, answers in expected(6).items() if ran.document[i] != answers} == {"t1"}


def test_f9_a_device_that_never_starts_is_retired_and_the_other_does_all(tmp_path: Path) -> None:
    start = "if sys.argv[0].endswith('worker0.py'): sys.exit(3)"
    ran = run(tmp_path, "time.sleep(0.03); answer(job)", start=start, tasks=20)
    assert ran.result.stopped_by == "all done"
    assert set(ran.result.deaths) == {"exit code 3"}
    assert len(ran.result.deaths) <= QUICK.deaths
    assert ran.document == expected(20)


PROGRAM = """
rows = [{"grid": mine(job, 0), "text": "p", "confidence": 0.9, "fits_all": True}]
for index in range(len(job["task"]["test"])):
    rows = [{"grid": mine(job, index), "text": "p", "confidence": 0.9, "fits_all": True}]
    say(type="programs", job=job["id"], task_id=job["task_id"], test_index=index, programs=rows)
done(job)
"""


def test_f9_when_all_devices_are_lost_synthesis_goes_on_alone(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        ["sys.exit(3)", "sys.exit(3)", PROGRAM],
        programs=1,
        **{"synthesis.enabled": True, "synthesis.cpu_limits_s": "1"},
    )
    assert ran.result.fatal.startswith("all device workers were lost")
    assert finished(ran, "synthesis") == {f"t{i}" for i in range(6)}
    assert all(answers[0]["attempt_1"] == [[2, 0, int(i[1:])]] for i, answers in ran.document.items())


CALLED_BACK = """
import select
while select.select([0], [], [], 0.05)[0] == []: progress(job)
assert json.loads(sys.stdin.readline()) == {"type": "cancel"}
done(job, outcome="cut")
"""


def only_if(condition: str, behaviour: str) -> str:
    """Good answers but under a condition."""
    return f"if {condition}:\n{textwrap.indent(behaviour, '    ')}\nelse: answer(job)"


DEAF = "while True: progress(job); time.sleep(0.05)"


@pytest.mark.parametrize(("behaviour", "deaths"), [(CALLED_BACK, 0), (DEAF, 1)])
def test_a_training_is_called_back_when_a_program_is_sure_meanwhile(
    tmp_path: Path, behaviour: str, deaths: int
) -> None:
    """The program stands, and other tasks, without one, get the device; a worker that does not listen is replaced."""
    device = only_if("job['task_id'] == 't1'", behaviour)
    doubt = PROGRAM.replace("0.9", "0.9 if job['task_id'] == 't1' else 0.1")
    changes = {"synthesis.enabled": True, "synthesis.cpu_limits_s": "1"}
    ran = run(
        tmp_path,
        [device, "time.sleep(0.5)\n" + doubt],
        programs=1,
        tasks=4,
        limit_s=300.0,
        **{**changes, "decode.base_share": 0.0, "ttt.max_sequences": 4000},
    )
    assert [(e["task_id"], e["cause"]) for e in ran.named("cancel")] == [("t1", "a program is taken for right")]
    assert dict(ran.result.called_back) == {"a program is taken for right": 1}
    assert len(ran.result.deaths) == deaths
    assert ran.result.cut == ran.result.degraded == ran.result.quarantined == []
    assert finished(ran, "ttt") == {"t0", "t2", "t3"}
    assert all(answers[0]["attempt_1"] == [[2, 0, int(i[1:])]] for i, answers in ran.document.items())


@pytest.mark.parametrize(("behaviour", "deaths"), [(CALLED_BACK, 0), (DEAF, 1)])
def test_f12_a_job_that_goes_on_beyond_its_time_is_called_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, deaths: int
) -> None:
    """It shows progress, so its silence would never end it; one that does not listen either is killed."""
    monkeypatch.setattr("arc_ttt.run.board.OVERDUE_S", 0.2)
    monkeypatch.setattr(CostModel, "cap", lambda self, predicted_s, device: 0.3)
    device = only_if("job['task_id'] == 't0' and first_time('t0')", behaviour)
    ran = run(tmp_path, device, workers=1, tasks=3, **{"decode.base_share": 0.0})
    assert [(e["task_id"], e["cause"]) for e in ran.named("cancel")] == [("t0", "goes on beyond its time")]
    assert len(ran.result.deaths) == deaths
    assert finished(ran, "ttt") >= {"t1", "t2"}
    assert ("t0" in finished(ran, "ttt")) == bool(deaths)  # tried again after a death; what is cut stays so


def test_f9_when_everything_is_lost_the_run_ends_with_a_valid_file(tmp_path: Path) -> None:
    ran = run(tmp_path, "pass", start="sys.exit(3)")
    assert ran.result.stopped_by == "all workers lost"
    assert ran.result.deaths == ["exit code 3"] * 2 * QUICK.deaths


def test_f10_a_device_that_goes_away_in_the_middle_leaves_its_work_to_the_other(tmp_path: Path) -> None:
    """It answers a few tasks; from then on no process on it comes up any more."""
    start = f"""
if sys.argv[0].endswith('worker0.py') and os.path.exists(str(folder / 'gone')): sys.exit({EXIT_DEVICE_LOST})
"""
    behaviour = f"""
if sys.argv[0].endswith('worker0.py') and job["task_id"] in ("t7", "t8", "t9"):
    open(str(folder / 'gone'), 'w').close(); os._exit({EXIT_DEVICE_LOST})
time.sleep(0.05); answer(job)
"""
    ran = run(tmp_path, behaviour, start=start, tasks=24)
    assert ran.result.stopped_by == "all done"
    assert set(ran.result.deaths) == {"exit code 10: device lost"}
    assert len(ran.result.deaths) <= QUICK.deaths
    assert ran.document == expected(24)


# F13, F14, F15: workers that talk nonsense


NONSENSE = {
    "garbage": "os.write(1, b'Traceback (most recent call last):\\n'); time.sleep(600)",
    "bytes": "os.write(1, bytes(range(256)) * 10 + b'\\n'); time.sleep(600)",
    "half a line": 'os.write(1, b\'{"type": "done", "job": \'); os._exit(0)',
    "a line of 100 MB": "for _ in range(1600): os.write(1, b'x' * 65536)\nos.write(1, b'\\n'); time.sleep(600)",
    "deep": "os.write(1, b'{\"type\": ' + b'[' * 200000 + b'\\n'); time.sleep(600)",
    "a flood of progress": "while True: progress(job, 'x' * 900)",
    "a flood of lines": 'while True: os.write(1, b\'{"type": "tick"}\\n\' * 4000)',
}


@pytest.mark.parametrize("name", NONSENSE)
def test_f13_f14_nonsense_and_floods_end_one_worker_and_hold_nobody(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker goes on meanwhile: each turn of the loop reads a bounded amount."""
    monkeypatch.setattr("arc_ttt.fleet.pipes.FLOOD_BYTES", 8_000_000)
    lines = "\n".join("    " + line for line in NONSENSE[name].splitlines())
    ran = run(tmp_path, f"if job['task_id'] == 't1' and first_time('x'):\n{lines}\ntime.sleep(0.02); answer(job)")
    assert ran.result.stopped_by == "all done"
    assert len(ran.result.deaths) == 1
    assert ran.document == expected(6)


def test_f14_endless_prints_fill_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "LOG_BYTES", 1_000_000)
    monkeypatch.setattr(fleet_module, "LOG_EVERY_S", 0.05)
    behaviour = "for _ in range(100): sys.stderr.write('x' * 10000); time.sleep(0.001)\nanswer(job)"
    sizes: list[int] = []

    def look(status: Status, fleet: Fleet) -> None:
        sizes.extend(path.stat().st_size for path in (tmp_path / "out" / "logs").glob("*.log"))

    ran = run(tmp_path, behaviour, on_status=look)
    assert ran.document == expected(6)
    assert max(sizes) < 5_000_000  # of 6 MB a worker


def test_f15_late_and_repeated_lines_change_nothing(tmp_path: Path) -> None:
    """After each job its worker says all of the last one again, as if it had come late, and then its own twice."""
    behaviour = """
def say_all(job):
    for index in range(len(job["task"]["test"])): candidates(job, index, [mine(job, index)] * 2)
last = globals().get("last")
if last:
    say_all(last); done(last, outcome="failed")
say_all(job); say_all(job)
done(job); done(job, outcome="failed")
last = job
"""
    ran = run(tmp_path, behaviour)
    assert ran.result.stopped_by == "all done"
    assert ran.document == expected(6)
    assert finished(ran) == finished(ran, "base") == {f"t{i}" for i in range(6)}
    for result in ran.result.results.values():
        tests = {c.test_index for c in result.candidates}
        assert len(result.candidates) == 2 * len(tests)
    assert len(ran.named("done")) == 12


def test_f15_a_requeued_job_that_is_answered_twice_counts_once(tmp_path: Path) -> None:
    behaviour = """
for index in range(len(job["task"]["test"])): candidates(job, index, [mine(job, index)])
if first_time(job["kind"] + job["task_id"]) and job["task_id"] in ("t1", "t4"): os.kill(os.getpid(), 9)
done(job)
"""
    ran = run(tmp_path, behaviour)
    assert len(ran.result.deaths) == 4
    assert ran.document == expected(6)
    assert all(len(result.candidates) <= 2 for result in ran.result.results.values())


# F16: the disk


def test_f16_a_disk_that_refuses_every_other_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    original = Submission.write

    def write(submission: Submission) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise OSError(28, "No space left on device")
        original(submission)

    monkeypatch.setattr(Submission, "write", write)
    monkeypatch.setattr("arc_ttt.run.writer.WRITE_EVERY_S", 0.0)
    ran = run(tmp_path, "time.sleep(0.05); answer(job)")
    assert ran.result.write_errors > 0
    assert ran.document == expected(6)


def test_f16_a_full_disk_ends_no_run_and_harms_no_file(tmp_path: Path) -> None:
    """No file of the process may grow past some bytes: the journal stops there, and so does a larger submission."""
    worker = tmp_path / "worker.py"
    worker_script(worker, "time.sleep(0.01); candidates(job, 0, [[[3] * 30] * 30, [[4] * 30] * 30]); done(job)")
    process = Process(tmp_path / "out", worker, 20.0, tasks=12, file_bytes=6000)
    assert process.end() == (0, "")
    before = process.valid()
    assert before["t0"][0]["attempt_1"] == [[5, 6]]  # the first one, with fallbacks: no larger one fitted
    assert (tmp_path / "out" / "events.jsonl").stat().st_size <= 6000
    assert not (tmp_path / "out" / ".ballast").exists()


# F17, F18, F19: the coordinator


def test_f17_a_killed_coordinator_leaves_a_valid_file_no_worker_and_a_way_on(tmp_path: Path) -> None:
    """Killed at random instants again and again and started again each time, it ends where an unbroken run ends."""
    kill_and_resume(tmp_path, seed=0, kills=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
def test_f17_three_hundred_instants(tmp_path: Path, seed: int) -> None:
    kill_and_resume(tmp_path, seed=seed + 1, kills=20)


def kill_and_resume(folder: Path, *, seed: int, kills: int) -> None:
    moments = random.Random(seed)
    worker, out, tasks = folder / "worker.py", folder / "out", 30
    worker_script(worker, "time.sleep(0.1); answer(job)")
    passes: list[int] = []
    for number in range(kills):
        process = Process(out, worker, 60.0, tasks=tasks)
        if number == 0:
            process.wait_for()
        time.sleep(moments.uniform(0.0, 0.9))  # while it imports, reads its journal, starts workers, works
        process.process.kill()
        process.end()
        process.valid()
        assert process.nothing_left()
        events = read_journal(out / "events.jsonl")
        if any(event["event"] == "end" for event in events):
            break  # it had ended by itself before the kill; another start would begin anew
        passes.append(sum(event["event"] == "done" for event in events))
    process = Process(out, worker, 60.0, tasks=tasks)
    assert process.end() == (0, "")
    assert process.valid() == expected(tasks)
    assert passes == sorted(passes)  # nothing that was done is done again
    events = read_journal(out / "events.jsonl")
    done = [(event["kind"], event["task_id"], event["number"]) for event in events if event["event"] == "done"]
    assert len(done) == len(set(done)) == 2 * tasks
    assert events[-1]["event"] == "end"


def test_f18_a_stopped_coordinator_is_ended_by_the_dead_man_in_time(tmp_path: Path) -> None:
    worker, out = tmp_path / "worker.py", tmp_path / "out"
    worker_script(worker, "candidates(job, 0, [mine(job, 0)])\nwhile True: time.sleep(0.1); progress(job)")
    process = Process(out, worker, 14.0, "run.reserve_s=6")  # stops at 8, is killed at 11
    process.wait_for('"found"')
    time.sleep(1.0)  # a write later
    os.kill(process.process.pid, signal.SIGSTOP)
    code, _ = process.end()
    assert code == -signal.SIGKILL
    assert time.monotonic() - process.began_s < 14.0
    assert process.nothing_left()
    answered = [pairs[0]["attempt_1"] for pairs in process.valid().values()]
    assert any(grid[0][0] in (1, 2) and len(grid[0]) == 3 for grid in answered)  # what was found before still stands


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f19_a_signal_ends_the_run_with_a_valid_file(tmp_path: Path, number: signal.Signals) -> None:
    worker, out = tmp_path / "worker.py", tmp_path / "out"
    worker_script(worker, "answer(job)\nwhile True: time.sleep(0.1); progress(job)")
    process = Process(out, worker, 600.0)
    process.wait_for('"done"')
    sent_s = time.monotonic()
    process.process.send_signal(number)
    assert process.end() == (0, "")
    assert time.monotonic() - sent_s < 2.0
    process.valid()
    assert process.nothing_left()
    assert read_journal(out / "events.jsonl")[-1]["stopped_by"] == f"signal {number.name}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f19_a_signal_before_the_first_write_still_leaves_a_file(tmp_path: Path, number: signal.Signals) -> None:
    """The real script, at home and as Kaggle starts it, signalled while it still imports."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    for name in ("challenges.json", "input/arc-agi_test_challenges.json"):
        (tmp_path / name).write_text(json.dumps(document(3)))
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONVERBOSE": ""}
    home = ["--tasks", str(tmp_path / "challenges.json"), "--out", str(tmp_path / "working"), "--limit", "10m"]
    counts = parse_tasks(document(3), source="tests").test_counts
    for arguments, extra, code in ((home, {}, 128 + number), ([], {"ARC_KAGGLE_ROOT": str(tmp_path)}, 0)):
        (tmp_path / "working" / "submission.json").unlink(missing_ok=True)
        # A module that is imported early sends the signal: no test can hit that moment from outside.
        hook = tmp_path / "hook"
        hook.mkdir(exist_ok=True)
        (hook / "numpy.py").write_text(
            f"import os, sys\nos.kill(os.getpid(), {int(number)})\nsys.path.remove({str(hook)!r})\n"
            "del sys.modules['numpy']\nimport numpy\nsys.modules['numpy'] = numpy\n"
        )
        done = subprocess.run(
            [sys.executable, str(root / "kernel.py"), *arguments],
            env={**env, **extra, "PYTHONPATH": str(hook)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        valid(tmp_path / "working", counts)


# F20, F22 to F25


def test_f20_the_wall_clock_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = random.Random(0)
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + jumps.choice([-3600.0, 0.0, 3600.0]))
    ran = run(tmp_path, "time.sleep(0.05); answer(job)", limit_s=30.0)
    assert ran.result.stopped_by == "all done"
    assert ran.document == expected(6)
    assert [event["t"] for event in ran.events] == sorted(event["t"] for event in ran.events)


def test_f22_workers_of_synthesis_go_first_when_memory_runs_low(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_s = REAL_CLOCK.now()

    def memory() -> int:
        return 100 if 0.7 < REAL_CLOCK.now() - began_s < 1.4 else 1 << 40

    monkeypatch.setattr("arc_ttt.run.start.available_memory", memory)
    monkeypatch.setattr("arc_ttt.run.crew.MEMORY_EVERY_S", 0.1)
    slow = "for _ in range(4): time.sleep(0.1); progress(job)\n"
    ran = run(
        tmp_path,
        [slow + "answer(job)", slow + PROGRAM, slow + PROGRAM],
        programs=2,
        tasks=4,
        **{"synthesis.enabled": True, "synthesis.cpu_limits_s": "1"},
    )
    assert ran.result.stopped_by == "all done"
    deaths = ran.named("death")
    assert {event["slot"] for event in deaths} == {1, 2}
    assert {event["cause"] for event in deaths} == {"memory runs low"}
    assert finished(ran) == finished(ran, "synthesis") == {f"t{i}" for i in range(4)}  # and they came back


@pytest.mark.parametrize("grids", ["[]", "[[]]", "[[[]]]", "[[[10]]]", "[[[0] * 31]]", "[None]", "[[[1], [1, 2]]]"])
def test_f23_empty_and_invalid_answers_leave_the_fallback(tmp_path: Path, grids: str) -> None:
    ran = run(tmp_path, f"candidates(job, 0, {grids})\ndone(job)", tasks=3)
    assert ran.result.stopped_by == "all done"
    assert ran.document["t0"] == [{"attempt_1": [[5, 6]], "attempt_2": [[2, 1], [4, 3]]}]


def test_f24_workers_that_take_most_of_the_time_to_load_still_answer(tmp_path: Path) -> None:
    ran = run(tmp_path, "time.sleep(0.02); answer(job)", start="time.sleep(3)", limit_s=10.0)
    assert not ran.result.deaths
    assert finished(ran) == {f"t{i}" for i in range(6)}


NASTY = """
import sys
sys.path[:0] = {path!r}
from arc_ttt.synthesis import solver
from arc_ttt.worker import program_server
from arc_ttt.worker.serve import main
def nasty(task, **limits):
    {code}
    return ()
real = solver.synthesize
solver.synthesize = lambda task, **limits: nasty(task, **limits) if task.task_id == "t1" else real(task, **limits)
program_server.CPU_SLACK_S = 1.4
sys.exit(main())
"""
NASTY_CODES = {
    "memory": ("import numpy; kept = [numpy.empty(2**27) for _ in range(64)]", []),
    "CPU, and deaf to its limit": ("while True: pass", ["signal 24"]),
    "hang": ("import time; time.sleep(600)", ["silent"]),
    "recursion": ("nasty(task)", []),
}


@pytest.mark.parametrize("name", NASTY_CODES)
def test_f25_a_search_that_breaks_its_limits_is_contained(tmp_path: Path, name: str) -> None:
    """Synthesis runs no code but its own, so these stand for mistakes in it: the process has limits of its own.
    The memory is 64 GiB of which it gets none; the CPU seconds are three times its limit and a bit."""
    code, causes = NASTY_CODES[name]
    nasty = tmp_path / "nasty.py"
    nasty.write_text(NASTY.format(path=python_path() + scipy_path(), code=code))
    ran = run(
        tmp_path,
        "",
        commands=[[sys.executable, "-S", "-E", str(nasty), "synthesis"]],
        programs=1,
        tasks=3,
        limit_s=150.0,
        patience=dataclasses.replace(QUICK, first_s=2.5 if name == "hang" else 50.0),
        **{"synthesis.enabled": True, "synthesis.cpu_limits_s": "0.2"},
    )
    assert bool(ran.result.deaths) == bool(causes)
    assert all(any(death.startswith(cause) for death in ran.result.deaths) for cause in causes)
    assert all(death.startswith((*causes, "silent")) for death in ran.result.deaths)  # that too on a busy machine
    assert {"t0", "t2"} <= finished(ran, "synthesis")
    assert ran.result.results["synthesis", "t1"].outcome == (Outcome.LOST if causes else Outcome.FAILED)


def scipy_path() -> list[str]:
    return [str(Path(__import__("scipy").__file__).parent.parent)]


def test_the_check_of_every_turn_can_fail(tmp_path: Path) -> None:
    """Guards this file: a run whose submission breaks is found out."""

    def breaking(status: Status, fleet: Fleet) -> None:
        (tmp_path / "out" / "submission.json").write_text("{}")

    with pytest.raises(SubmissionError):
        run(tmp_path, "time.sleep(0.1); answer(job)", on_status=breaking)
