"""Worker processes: messages both ways, and every way a worker can fail gives one death and stops nobody else.

The workers here are small scripts that speak the protocol.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.fleet import fleet as fleet_module
from arc_ttt.fleet import pipes
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.fleet.patience import PATIENCE, Patience
from arc_ttt.fleet.pipes import READ_BYTES, READS_A_POLL
from arc_ttt.fleet.workers import Death, Message
from arc_ttt.protocol.jobs import BASE, CallBack, DeathKind
from arc_ttt.protocol.messages import Unreadable
from arc_ttt.protocol.orders import AnswerOrder, Hello
from arc_ttt.tasks.grids import Task

PREAMBLE = """
import json, os, signal, sys, time
def say(**body):
    os.write(1, json.dumps(body).encode() + b"\\n")
hello = json.loads(sys.stdin.readline())
say(type="born", pid=os.getpid(), hello=hello, extra=os.environ.get("EXTRA", ""))
say(type="ready")
"""
ECHO = """
for line in sys.stdin:
    say(type="echo", body=json.loads(line))
"""
WAIT_S = 20.0  # for things that come within moments unless the machine is very busy

HELLO = Hello("{}", Deadline.never(VirtualClock()))
Make = Callable[..., Fleet]


def order(number: int = 1, task_id: str = "t") -> AnswerOrder:
    """A job that these workers only read."""
    return AnswerOrder(id=number, kind=BASE, task=Task(task_id, (), ()), deadline=Deadline.after(600.0))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A fleet of scripts, each started; stopped at the end."""
    fleets: list[Fleet] = []

    def made(*scripts: str, preamble: str = PREAMBLE, **patience: float) -> Fleet:
        commands = []
        for number, script in enumerate(scripts):
            path = tmp_path / f"worker{number}.py"
            path.write_text(preamble + script)
            commands.append([sys.executable, "-S", "-E", str(path)])
        environments = [{"EXTRA": f"slot {i}"} for i in range(len(scripts))]
        limits = dataclasses.replace(PATIENCE, **{"backoff_s": 0.0, **patience})  # type: ignore[arg-type]
        fleet = Fleet(commands, HELLO, environments, tmp_path / "logs", patience=limits)
        fleets.append(fleet)
        for slot in range(len(scripts)):
            assert fleet.start(slot)
        return fleet

    yield made
    for fleet in fleets:
        fleet.stop()


def events_until(fleet: Fleet, enough: Callable[[list[Message | Death]], bool]) -> list[Message | Death]:
    """What happens until `enough` is true; no single poll may take much longer than it was given."""
    events: list[Message | Death] = []
    end = time.monotonic() + WAIT_S
    while not enough(events) and time.monotonic() < end:
        events += fleet.poll(0.05)
    assert enough(events), events
    return events


def deaths(events: list[Message | Death]) -> list[Death]:
    return [event for event in events if isinstance(event, Death)]


def bodies(events: list[Message | Death], slot: int, kind: str) -> list[dict[str, Any]]:
    """Lines of a kind that a slot's worker has sent: as they came if the protocol does not know them."""
    found = [event.body for event in events if isinstance(event, Message) and event.slot == slot]
    lines = [body.line if isinstance(body, Unreadable) else body.to_json() for body in found]
    return [dict(line) for line in lines if line["type"] == kind]


def ready_pids(fleet: Fleet, count: int) -> list[int]:
    """Wait until all are ready; their process ids by slot."""
    events = events_until(fleet, lambda seen: all(bodies(seen, slot, "ready") for slot in range(count)))
    return [int(str(bodies(events, slot, "born")[0]["pid"])) for slot in range(count)]


def gone(pid: int) -> bool:
    """Whether a process has ended and been waited for."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_messages_go_both_ways_in_order(make: Make) -> None:
    fleet = make(ECHO, ECHO)
    assert not fleet.ready(0)
    events = events_until(fleet, lambda seen: len(seen) == 4)
    for slot in (0, 1):
        (born,) = bodies(events, slot, "born")
        assert born["hello"] == json.loads(json.dumps(HELLO.to_json()))
        assert born["extra"] == f"slot {slot}"
        assert fleet.ready(slot)
        for number in range(50):
            fleet.send(slot, order(number, f"slot {slot}"))
    events = events_until(fleet, lambda seen: len(seen) == 100)
    for slot in (0, 1):
        echoed = [(body["body"]["id"], body["body"]["task_id"]) for body in bodies(events, slot, "echo")]
        assert echoed == [(number, f"slot {slot}") for number in range(50)]


def test_a_message_larger_than_the_pipe_arrives_whole(make: Make) -> None:
    fleet = make(ECHO)
    ready_pids(fleet, 1)
    fleet.send(0, order(1, "x" * 3_000_000))
    (echo,) = bodies(events_until(fleet, lambda seen: len(seen) == 1), 0, "echo")
    assert echo["body"]["task_id"] == "x" * 3_000_000


def test_a_long_message_does_not_wait_for_the_time_out_of_a_poll(make: Make) -> None:
    """The pipe takes 64 KiB at a time; each piece goes out as soon as there is room."""
    fleet = make("size = len(sys.stdin.readline()); say(type='read', size=size)")
    ready_pids(fleet, 1)
    fleet.send(0, order(1, "x" * 3_000_000))
    events: list[Message | Death] = []
    for _ in range(200):
        events += fleet.poll(30.0)
        if events:
            break
    (body,) = bodies(events, 0, "read")
    assert int(str(body["size"])) > 3_000_000


FAILURES = {
    "exits": ("sys.exit(7)", "exit code 7"),
    "exits well": ("sys.exit(0)", "exit code 0"),
    "raises": ("raise ValueError('what a worker prints')", "exit code 1"),
    "closes its pipe, then exits": ("os.close(1); time.sleep(0.1); os._exit(9)", "exit code 9"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    "segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "garbage": ("os.write(1, b'Traceback, or whatever a library prints\\n'); time.sleep(600)", "no message"),
    "bytes": ("os.write(1, bytes(range(256)) + b'\\n'); time.sleep(600)", "no message"),
    "json, but no object": ("os.write(1, b'[1, 2]\\n'); time.sleep(600)", "no message"),
    "deep json": ("os.write(1, b'[' * 100000 + b'\\n'); time.sleep(600)", "no message"),
    "an object without a type": ("say(kind='ready'); time.sleep(600)", "no message"),
    "a line without end": ("while True: os.write(1, b'x' * 65536)", "a line without end"),
    "hangs": ("time.sleep(600)", "silent"),
    "hangs and ignores signals": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True: time.sleep(600)",
        "silent",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_worker_gives_one_death_with_its_cause_and_the_other_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    script, cause = FAILURES[name]
    monkeypatch.setattr(pipes, "MAX_LINE_BYTES", 1_000_000)
    # The failing worker is ready at once, so only it runs into this limit: the other one keeps talking.
    chatter = "while True: say(type='tick'); time.sleep(0.05)"
    fleet = make(script, chatter, first_s=1.5 if "hang" in name else 600.0, hang_s=0.2)
    if "hang" in name:
        fleet.send(0, order())
    events = events_until(fleet, lambda seen: bool(deaths(seen)))
    events += events_until(fleet, lambda seen: len(bodies(seen, 1, "tick")) >= 3)
    (death,) = deaths(events)
    assert death.slot == 0
    assert cause in death.cause
    assert not death.final
    assert not fleet.alive(0)
    assert fleet.ready(1)
    (born,) = bodies(events, 0, "born")
    for _ in range(3):
        fleet.poll(0.05)
    assert gone(int(str(born["pid"])))


def test_a_worker_without_a_job_may_be_silent(make: Make) -> None:
    """Synthesis waits for minutes while devices have the cores; its workers were killed for it once."""
    fleet = make("for line in sys.stdin: say(type='done')", first_s=0.3)
    ready_pids(fleet, 1)
    events: list[Message | Death] = []
    for _ in range(8):
        events += fleet.poll(0.1)
    fleet.send(0, order())
    events += events_until(fleet, lambda seen: bool(bodies(seen, 0, "done")))
    for _ in range(8):
        events += fleet.poll(0.1)
    assert not deaths(events)
    assert fleet.alive(0)


def test_what_a_worker_prints_goes_to_its_log(make: Make, tmp_path: Path) -> None:
    fleet = make("raise ValueError('what a worker prints')")
    events_until(fleet, lambda seen: bool(deaths(seen)))
    assert "what a worker prints" in (tmp_path / "logs" / "worker-0.log").read_text()


def test_a_worker_that_never_gets_ready_is_silent_too(make: Make) -> None:
    fleet = make("import time; time.sleep(600)", preamble="", load_s=0.5)
    (death,) = deaths(events_until(fleet, lambda seen: bool(seen)))
    assert "silent" in death.cause


def test_a_slot_that_loads_slowly_gets_more_time_at_each_start(make: Make) -> None:
    """Else a model that takes longer than that to load would never be ready, and its deaths too rare to count."""
    fleet = make("import sys, time\ntime.sleep(0.9)\n" + PREAMBLE + "time.sleep(600)", preamble="", load_s=0.3)
    for _ in range(4):
        events = events_until(fleet, lambda seen: bool(deaths(seen) or bodies(seen, 0, "ready")))
        if not deaths(events):
            break
        assert "silent" in deaths(events)[0].cause
        assert fleet.start(0)
    assert fleet.ready(0)


def test_a_worker_with_slow_rounds_has_longer_to_heed_a_cancel(make: Make) -> None:
    script = """
import select
for line in sys.stdin:
    for step in range(4):
        say(type="progress", phase="train")
        time.sleep(0.6)
    sys.stdin.readline()
    say(type="done")
"""
    fleet = make(script, cancel_s=0.1, term_s=0.1)
    ready_pids(fleet, 1)
    fleet.send(0, order())
    events_until(fleet, lambda seen: len(bodies(seen, 0, "progress")) == 4)
    fleet.cancel(0, CallBack.OVERDUE)
    events = events_until(fleet, lambda seen: bool(bodies(seen, 0, "done") or deaths(seen)))
    assert not deaths(events)


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    clock = VirtualClock()
    fleet = Fleet([["/no/such/program"]], HELLO, [{}], tmp_path, clock)
    for _ in range(PATIENCE.deaths):
        assert fleet.slots == [0]
        assert not fleet.start(0)
        assert not fleet.start(0)  # too early: the system may have room again in a moment
        clock.advance(PATIENCE.refused_s)
    assert fleet.slots == []
    cause = "not started: No such file or directory"
    refused = [Death(0, DeathKind.NOT_STARTED, cause, final=final) for final in [False] * 4 + [True]]
    assert fleet.poll(0.0) == refused
    assert fleet.poll(0.0) == []
    fleet.stop()


def test_a_slot_that_has_worked_rests_once_before_it_is_given_up(make: Make) -> None:
    script = """
if os.path.exists(sys.argv[0] + ".worked"): sys.exit(3)
for line in sys.stdin:
    open(sys.argv[0] + ".worked", "w").close()
    say(type="done")
    sys.exit(3)
"""
    fleet = make(script, deaths=2, backoff_s=0.01, window_s=3.0)
    events_until(fleet, lambda seen: bool(bodies(seen, 0, "ready")))
    fleet.send(0, order())
    seen: list[Any] = []
    end_s = time.monotonic() + 60
    while fleet.slots and time.monotonic() < end_s:
        if not fleet.alive(0):
            fleet.start(0)
        seen += [event for event in fleet.poll(0.02) if isinstance(event, Death)]
    assert [death.final for death in seen] == [False] * 3 + [True]


def test_a_flood_of_messages_blocks_nobody(make: Make) -> None:
    """Each poll reads a bounded amount, so a worker that never stops talking cannot hold the coordinator."""
    fleet = make('while True: os.write(1, b\'{"type": "tick"}\\n\' * 1000)', ECHO)
    events_until(fleet, lambda seen: bool(bodies(seen, 1, "ready")))
    fleet.send(1, order())
    polls = [fleet.poll(0.01) for _ in range(10)]
    assert any(bodies(events, 1, "echo") for events in polls)
    assert max(len(events) for events in polls) <= READS_A_POLL * READ_BYTES // len('{"type": "tick"}\n') + 3


def test_a_worker_that_never_reads_holds_nobody(make: Make) -> None:
    fleet = make("time.sleep(600)", ECHO)
    pids = ready_pids(fleet, 2)
    fleet.send(0, order(1, "x" * 3_000_000))  # far more than the pipe takes: the rest stays queued
    fleet.send(1, order())
    events = events_until(fleet, lambda seen: bool(bodies(seen, 1, "echo")))
    assert not deaths(events)
    assert fleet.kill(0, DeathKind.REPLACED) == Death(0, DeathKind.REPLACED, str(DeathKind.REPLACED), final=False)
    fleet.poll(0.2)  # a kill does not wait; the process is taken away later
    fleet.poll(0.2)
    assert gone(pids[0])


def test_a_slot_is_restarted_a_few_times_and_then_given_up(make: Make) -> None:
    fleet = make("sys.exit(3)", ECHO)
    finals = []
    while fleet.slots == [0, 1]:
        (death,) = deaths(events_until(fleet, lambda seen: bool(deaths(seen))))
        finals.append(death.final)
        fleet.start(0)
    assert finals == [False] * (PATIENCE.deaths - 1) + [True]
    assert not fleet.start(0)
    assert fleet.slots == [1]


def test_deaths_count_within_a_window_and_until_a_job_is_done(tmp_path: Path) -> None:
    """A whole run has room for more deaths than a window: a count over its life would retire every slot in time."""
    clock = VirtualClock()
    patience = Patience(deaths=3, window_s=100.0, backoff_s=1.0, refused_s=1.0)
    fleet = Fleet([["/no/such/program"]], HELLO, [{}], tmp_path, clock, patience)
    for _ in range(20):  # one every 60 s: never three in a window
        fleet.start(0)
        clock.advance(60.0)
    assert fleet.slots == [0]
    for _ in range(20):  # many at once, but each time a job was done
        fleet.start(0)
        fleet.clear_deaths(0)
        clock.advance(1.0)
    assert fleet.slots == [0]
    for _ in range(3):
        fleet.start(0)
        clock.advance(5.0)
    assert fleet.slots == []


def test_kills_that_the_coordinator_orders_are_no_fault_of_the_slot(make: Make) -> None:
    fleet = make("")
    for _ in range(2 * PATIENCE.deaths):
        assert not fleet.kill(0, DeathKind.NO_MEMORY).final
        while not fleet.start(0):  # the last one is still going
            fleet.poll(0.01)
    assert fleet.slots == [0]


def test_restarts_wait_longer_each_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    fleet = Fleet(
        [["/no/such/program"]], HELLO, [{}], tmp_path, clock, Patience(deaths=9, backoff_s=1.0, refused_s=0.0)
    )
    tries = []
    for second in range(16):
        before = len(fleet._slots[0].record._deaths_s)
        fleet.start(0)
        if len(fleet._slots[0].record._deaths_s) > before:
            tries.append(second)
        clock.advance(1.0)
    assert tries == [0, 1, 3, 7, 15]


TALKER = """
import select
if mode == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    job = json.loads(line)
    say(type="progress", phase="train")
    while True:
        say(type="progress", phase="train")
        if select.select([0], [], [], 0.02)[0] and mode == "polite":
            say(type="cancelled", body=json.loads(sys.stdin.readline()))
            say(type="done")
            break
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("mode", "cause"),
    [("polite", ""), ("busy", CallBack.OVERDUE), ("deaf", CallBack.OVERDUE)],
    ids=["asks", "SIGTERM", "SIGKILL"],
)
def test_cancel_asks_then_terminates_then_kills(make: Make, mode: str, cause: str) -> None:
    fleet = make(f"mode = {mode!r}\n" + TALKER, cancel_s=1.0 if mode == "polite" else 0.2, term_s=0.3)
    (pid,) = ready_pids(fleet, 1)
    fleet.send(0, order())
    events_until(fleet, lambda seen: bool(bodies(seen, 0, "progress")))
    began_s = time.monotonic()
    fleet.cancel(0, CallBack.OVERDUE)
    assert not fleet.ready(0)
    if cause:
        (death,) = deaths(events_until(fleet, lambda seen: bool(deaths(seen))))
        assert death.cause == cause
        assert time.monotonic() - began_s >= (0.5 if mode == "deaf" else 0.2)
        for _ in range(3):
            fleet.poll(0.05)
        assert gone(pid)
    else:
        events = events_until(fleet, lambda seen: bool(bodies(seen, 0, "done")))
        assert bodies(events, 0, "cancelled")[0]["body"] == {"type": "cancel"}
        assert fleet.ready(0)
        assert not deaths(events + [e for _ in range(30) for e in fleet.poll(0.05)])


def test_a_worker_that_died_in_the_same_poll_can_still_be_cancelled(make: Make) -> None:
    fleet = make("for line in sys.stdin: sys.exit(3)")
    ready_pids(fleet, 1)
    fleet.send(0, order())
    events_until(fleet, lambda seen: bool(deaths(seen)))
    fleet.cancel(0, CallBack.OVERDUE)
    assert not fleet.alive(0)


def test_each_phase_has_its_own_time_and_the_first_round_the_most(make: Make) -> None:
    """Silent for longer than a step may take: allowed while kernels compile, not once steps have been seen."""
    script = """
for line in sys.stdin:
    say(type="progress", phase="train")
    time.sleep(0.8)
    for step in range(20): say(type="progress", phase="train"); time.sleep(0.01)
    say(type="settled")
    time.sleep(600)
"""
    fleet = make(script, first_s=30.0, step_s=0.4, round_s=30.0, hang_s=0.2)
    ready_pids(fleet, 1)
    fleet.send(0, order())
    events = events_until(fleet, lambda seen: bool(deaths(seen)))
    assert bodies(events, 0, "settled")
    assert deaths(events)[0].cause == "silent for 0 s in train"


def test_a_worker_with_slow_steps_has_ten_times_their_median(make: Make) -> None:
    script = """
for line in sys.stdin:
    for step in range(6): say(type="progress", phase="train"); time.sleep(0.2)
    time.sleep(0.8)
    say(type="done")
"""
    fleet = make(script, step_s=0.1, round_s=0.1)
    ready_pids(fleet, 1)
    fleet.send(0, order())
    events = events_until(fleet, lambda seen: bool(deaths(seen) or bodies(seen, 0, "done")))
    assert not deaths(events)


class Undying(subprocess.Popen):  # type: ignore[type-arg]
    """A process that no signal ends, as one is that waits for a broken disk or device."""

    stuck = True

    def poll(self) -> int | None:
        return None if self.stuck else super().poll()


def test_a_worker_that_never_dies_costs_its_slot_and_no_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module.subprocess, "Popen", Undying)
    fleet = make("time.sleep(600)", ECHO, gone_s=0.5)
    ready_pids(fleet, 2)
    began_s = time.monotonic()
    death = fleet.kill(0, DeathKind.REPLACED)
    assert time.monotonic() - began_s < 0.5
    assert not death.final
    assert not fleet.start(0)  # its device may still be taken
    for _ in range(30):
        fleet.poll(0.05)
    assert fleet.slots == [1]
    assert not fleet.start(0)
    fleet.send(1, order())
    events_until(fleet, lambda seen: bool(bodies(seen, 1, "echo")))
    Undying.stuck = False  # for whoever takes it away in the end
    fleet.poll(0.2)


def test_a_flood_ends_its_worker(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "FLOOD_BYTES", 5_000_000)
    fleet = make("while True: say(type='tick', more='x' * 1000)", ECHO)
    events = []
    while not deaths(events):
        events = fleet.poll(0.05)
    assert deaths(events)[0].cause == "a flood of output"


def test_a_log_that_grows_too_long_is_emptied(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleet_module, "LOG_BYTES", 100_000)
    monkeypatch.setattr(fleet_module, "LOG_EVERY_S", 0.05)
    fleet = make(
        "for n in range(400): sys.stderr.write('x' * 5000); time.sleep(0.002)\nsay(type='end')\ntime.sleep(60)"
    )
    events_until(fleet, lambda seen: bool(bodies(seen, 0, "end")))
    assert (tmp_path / "logs" / "worker-0.log").stat().st_size < 1_000_000


def test_a_retired_slot_is_not_started_again(make: Make) -> None:
    fleet = make(ECHO)
    fleet.kill(0, DeathKind.REPLACED)
    fleet.retire(0)
    assert not fleet.start(0)
    assert fleet.slots == []


def test_sending_to_a_worker_that_has_just_died_is_no_error(make: Make) -> None:
    fleet = make(ECHO)
    (pid,) = ready_pids(fleet, 1)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    fleet.send(0, order())
    (death,) = deaths(events_until(fleet, lambda seen: bool(seen)))
    assert death.cause == "signal 9"


def test_stop_leaves_no_process_and_no_zombie(make: Make, tmp_path: Path) -> None:
    """Also none that a worker started itself, whatever signals they ignore."""
    script = f"""
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
child = os.fork()
if child == 0:
    while True: time.sleep(600)
open({str(tmp_path)!r} + "/child" + str(os.getpid()), "w").write(str(child))
say(type="forked", child=child)
time.sleep(600)
"""
    fleet = make(script, script, ECHO)
    events = events_until(
        fleet, lambda seen: len(bodies(seen, 0, "forked") + bodies(seen, 1, "forked") + bodies(seen, 2, "ready")) == 3
    )
    pids = [int(str(bodies(events, slot, "born")[0]["pid"])) for slot in range(3)]
    children = [int(str(bodies(events, slot, "forked")[0]["child"])) for slot in range(2)]
    fleet.stop()
    assert all(gone(pid) for pid in pids)
    for child in children:  # orphans: whoever adopts them may be slow to wait for them
        status = Path(f"/proc/{child}/stat")
        end = time.monotonic() + WAIT_S
        while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z" and time.monotonic() < end:
            time.sleep(0.01)
        assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_worker_that_leaves_a_child_behind_is_still_seen_to_end(make: Make) -> None:
    """Trap: a child that holds the pipe open hides the end of the worker from whoever only reads."""
    fleet = make("child = os.fork()\nif child == 0: time.sleep(600)\nos._exit(5)")
    events = events_until(fleet, lambda seen: bool(deaths(seen)))
    (death,) = deaths(events)
    assert death.cause == "exit code 5"
