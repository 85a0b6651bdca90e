"""The dead-man: ends a run that cannot end itself, nobody else, and itself when the run is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from arc_ttt.deadline import REAL_CLOCK, Deadline, RunDeadlines
from arc_ttt.run import deadman
from arc_ttt.run.deadman import BEAT, BYE, Deadman, children, kill_run, start_ticks

FAMILY = """
import subprocess, sys, time
child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
[subprocess.Popen([sys.executable, "-S", "-c", child + "; time.sleep(600)"], start_new_session=True) for _ in range(2)]
print("up", flush=True)
time.sleep(600)
"""
WAIT_S = 20.0


@pytest.fixture
def coordinator() -> Iterator[subprocess.Popen[bytes]]:
    """A process with two children that lead groups of their own, each with a child itself."""
    process = subprocess.Popen([sys.executable, "-S", "-c", FAMILY], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def until(true: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + WAIT_S
    while not true() and time.monotonic() < end_s:
        time.sleep(0.02)
    return true()


def watch(pid: int, kill_in_s: float, stop_in_s: float, say: Callable[[int], None]) -> int:
    """Exit code of a dead-man over `pid` in a process of its own; `say` writes to it."""
    reading, writing = os.pipe()
    now_s = REAL_CLOCK.now()
    watcher = os.fork()
    if watcher == 0:
        os.dup2(reading, 0)
        os.close(writing)
        os._exit(deadman.main([str(pid), str(now_s + kill_in_s), str(now_s + stop_in_s)]))
    os.close(reading)
    say(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1])
    os.close(writing)
    return code


def test_a_run_that_goes_on_past_its_time_is_ended_with_all_it_started(
    coordinator: subprocess.Popen[bytes],
) -> None:
    os.kill(coordinator.pid, signal.SIGSTOP)
    assert until(lambda: all(children(child) for child in children(coordinator.pid)))
    family = children(coordinator.pid)
    family += [grandchild for child in family for grandchild in children(child)]
    assert len(family) == 4
    assert watch(coordinator.pid, 0.3, 600.0, lambda pipe: None) == 1
    assert coordinator.wait(WAIT_S) == -signal.SIGKILL
    assert until(lambda: all(start_ticks(pid) is None for pid in family))


def test_silence_after_the_stop_counts_as_the_end_and_heartbeats_do_not(
    coordinator: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadman, "SILENCE_S", 0.5)
    monkeypatch.setattr(deadman, "LOOK_EVERY_S", 0.05)

    def beat(pipe: int) -> None:
        for _ in range(20):
            os.write(pipe, BEAT)
            time.sleep(0.05)
        assert start_ticks(coordinator.pid) is not None  # a second of beats, then silence

    assert watch(coordinator.pid, 600.0, 0.0, beat) == 1
    assert coordinator.wait(WAIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("end", ["said so", "is gone"])
def test_a_run_that_ends_itself_is_left_alone(coordinator: subprocess.Popen[bytes], end: str) -> None:
    def say(pipe: int) -> None:
        if end == "said so":
            os.write(pipe, BEAT + BYE)
        else:
            coordinator.kill()
            coordinator.wait()

    assert watch(coordinator.pid, 600.0, 600.0, say) == 0
    assert (start_ticks(coordinator.pid) is not None) == (end == "said so")


def test_a_process_that_has_got_the_number_of_another_is_not_killed(coordinator: subprocess.Popen[bytes]) -> None:
    born = start_ticks(coordinator.pid)
    assert born is not None
    kill_run(coordinator.pid, born - 1)
    assert start_ticks(coordinator.pid) == born
    assert len(children(coordinator.pid)) == 2


def test_a_process_that_is_not_there_has_no_start() -> None:
    assert start_ticks(2**22 + 1) is None


def test_the_coordinator_starts_tells_and_ends_it() -> None:
    guard = Deadman(RunDeadlines(Deadline.after(600.0), 3.0))
    pid = guard.pid
    assert pid is not None
    for _ in range(100_000):  # far more than a pipe holds: none of them waits
        guard.beat()
    guard.stop()
    assert start_ticks(pid) is None
    guard.beat()
    guard.stop()


def test_without_it_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    guard = Deadman(RunDeadlines(Deadline.after(600.0), 3.0))
    assert guard.pid is None
    guard.beat()
    guard.stop()


def test_where_nobody_is_to_watch_nobody_does() -> None:
    """In one process with the work, a job silences the loop for as long as it takes."""
    before = set(children(os.getpid()))
    idle = Deadman(RunDeadlines(Deadline(REAL_CLOCK.now() + 5.0), 2.0), watch=False)
    assert idle.pid is None
    assert set(children(os.getpid())) <= before
    idle.beat()
    idle.stop()
