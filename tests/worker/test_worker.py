"""The main loop of a worker process, and its twin in one process, around a device that is made up."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_ttt.deadline import REAL_CLOCK, Deadline, VirtualClock
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.fleet.launch import make_hello
from arc_ttt.fleet.twin import Twin
from arc_ttt.fleet.workers import Death, Event, Message
from arc_ttt.protocol.jobs import TTT, CallBack, Outcome
from arc_ttt.protocol.messages import Done, Fatal, Found, Note, Progress, Ready, read_message
from arc_ttt.protocol.orders import AnswerOrder, Order, SearchOrder
from arc_ttt.run import start
from arc_ttt.run.deadman import Deadman
from arc_ttt.run.journal import read_journal
from arc_ttt.run.spec import Started
from arc_ttt.run.start import start_run
from arc_ttt.tasks.grids import Task, freeze
from arc_ttt.tasks.parse import parse_tasks
from arc_ttt.worker import program_server, serve, server
from arc_ttt.worker.pulse import JobDeadline, Pulse
from support.scripted_fleet import QUICK, answer_all, document, expected, python_path, run, settings_of, valid

SERVER = """
import sys, time
sys.path[:0] = {path!r}
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import Done, Ready
from arc_ttt.worker import serve
from arc_ttt.worker.server import Server
class Made(Server):
    ready = Ready("made up")
    def work(self, order, deadline, progress):
        progress("train", 0, 1)
        print("whatever a library prints")
        begun, name = time.monotonic(), order.task.task_id
        while name == "stuck" or not deadline.minus(1.0).passed():
            time.sleep(0.01)
            if name == "short" and time.monotonic() - begun > 2.5: break
        return Done(Outcome.CUT if deadline.passed() else Outcome.FINISHED)
serve.ModelServer = Made
sys.exit(serve.main())
"""


def order(number: int, name: str) -> AnswerOrder:
    """A job for such a worker, which goes by the name of its task."""
    return AnswerOrder(
        id=number, kind=TTT, task=Task(name, (), (freeze(np.zeros((1, 1))),)), deadline=Deadline.after(600.0)
    )


def poll_for(fleet: Fleet, what: type, seconds: float = 20.0) -> list[Event]:
    """Events up to a message of a type, or a death."""
    events: list[Event] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        events += fleet.poll(0.05)
        if any(isinstance(e, Death) or isinstance(e.body, what) for e in events):
            return events
    raise AssertionError(events)


def ends(events: list[Event]) -> list[Done]:
    """The ends of jobs among events."""
    return [e.body for e in events if isinstance(e, Message) and isinstance(e.body, Done)]


def test_what_workers_note_while_they_load_is_kept_once(tmp_path: Path) -> None:
    notes = [{"text": "shorter"}, 3, {"text": "other", "less": True}]
    ready = f'say(type="ready", device="cpu", dtype="float32", parameters=1, notes={notes})'
    ran = run(tmp_path, "answer(job)", start=ready, tasks=2)
    assert ran.result.notes == [Note("shorter"), Note("other", less=True)]
    assert [event["text"] for event in ran.named("note")] == ["shorter", "other"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_worker_of_synthesis_says_whether_its_search_was_cut(cut: bool) -> None:
    said: list[Any] = []
    settings, deadline = settings_of(60.0, {}), JobDeadline(-1.0 if cut else 10.0, VirtualClock())
    server = program_server.ProgramServer(settings, make_hello(settings, deadline), said.append, None)
    (task,) = parse_tasks(document(1), source="tests").tasks
    job = SearchOrder(id=1, task=task, deadline=deadline, cpu_limit_s=0.5)
    end = server.work(job, deadline, lambda *_: None)
    assert end.outcome == (Outcome.CUT if cut else Outcome.FINISHED)
    assert [line.cut for line in said] == [cut]


def test_a_worker_of_synthesis_gives_way_within_its_session_and_beyond(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arc_ttt.worker", "synthesis"]
    hello = make_hello(settings_of(600.0, {}), Deadline.after(600.0))
    made = Fleet([command], hello, [{"PYTHONPATH": python_path()[0]}], tmp_path / "logs", patience=QUICK)
    try:
        assert made.start(0)
        poll_for(made, Ready)
        process = Path("/proc") / str(made.pid(0))
        expected_nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + program_server.NICENESS)
        assert os.getpriority(os.PRIO_PROCESS, made.pid(0)) == expected_nice
        if (process / "autogroup").exists():
            assert (process / "autogroup").read_text().split()[-1] == str(program_server.NICENESS)
    finally:
        made.stop()


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    path = tmp_path / "server.py"
    path.write_text(SERVER.format(path=python_path()))
    hello = make_hello(settings_of(600.0, {}), Deadline.after(600.0))
    made = Fleet([[sys.executable, "-S", "-E", str(path)]], hello, [{}], tmp_path / "logs", patience=QUICK)
    made.start(0)
    poll_for(made, Ready)
    yield made
    made.stop()


def test_a_job_that_asks_for_its_time_lives_longer_than_silence_may_last(fleet: Fleet) -> None:
    """2.5 seconds of work in one phase, where 1.0 without a word would be the end after its first word."""
    fleet.patience = QUICK.__class__(step_s=1.7, round_s=1.7)
    fleet.send(0, order(1, "short"))
    events = poll_for(fleet, Done)
    beats = [e for e in events if isinstance(e, Message) and isinstance(e.body, Progress)]
    assert not any(isinstance(e, Death) for e in events)
    assert len(beats) >= 3
    assert ends(events)[-1].outcome == Outcome.FINISHED


def test_a_job_that_does_not_ask_is_taken_for_stuck_and_its_log_says_where(fleet: Fleet, tmp_path: Path) -> None:
    fleet.send(0, order(1, "stuck"))
    (death,) = [e for e in poll_for(fleet, Done) if isinstance(e, Death)]
    assert death.cause.startswith("silent for")
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    assert "in work" in log
    assert "whatever a library prints" in log


def test_a_cancelled_job_ends_with_what_it_has_and_the_process_stays(fleet: Fleet) -> None:
    fleet.patience = QUICK.__class__()
    fleet.send(0, order(1, "long"))
    poll_for(fleet, Progress)
    fleet.cancel(0, CallBack.OVERDUE)
    events = poll_for(fleet, Done)
    assert ends(events)[-1].outcome == Outcome.CUT
    fleet.send(0, order(2, "short"))  # the next one is not cancelled
    events = poll_for(fleet, Done)
    assert (ends(events)[-1].job, ends(events)[-1].outcome) == (2, "finished")


def test_a_deadline_beats_once_a_second_and_keeps_its_pulse_when_made_earlier() -> None:
    said: list[Any] = []
    clock = VirtualClock()
    pulse = Pulse(said.append, None, 7)
    pulse.next_s = 0.0
    deadline = JobDeadline(100.0, clock, pulse)
    for _ in range(100):
        assert not deadline.minus(5.0).minus(5.0).passed()
        clock.advance(0.1)
    assert 10 <= len(said) <= 12
    assert deadline.minus(30.0).remaining() == pytest.approx(60.0)
    pulse.cancelled = True
    assert deadline.passed()
    assert deadline.minus(1.0).passed()


class Made(server.Server):
    """A device that answers as `expected` has it."""

    broken = False

    ready = Ready("made up")

    def work(self, order: Order, deadline: JobDeadline, progress: Any) -> Done:
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        *found, end = (read_message({"job": order.id, **line}) for line in answer_all(order.to_json()))
        for message in found:
            assert isinstance(message, Found)
            self.send(message)
        assert isinstance(end, Done)
        return end


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_in_one_process_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """With a device that works, and with one that is lost: then synthesis goes on alone."""
    monkeypatch.setattr(serve, "ModelServer", Made)
    monkeypatch.setattr(Made, "broken", broken)
    loaded = parse_tasks(document(3), source="tests")
    watched: list[bool] = []
    monkeypatch.setattr(start, "Deadman", lambda *_, watch: watched.append(watch) or Deadman(*_, watch=watch))
    changes = {"run.in_process": True, "synthesis.enabled": broken, "synthesis.cpu_limits_s": "0.5"}
    result = start_run(loaded, settings_of(60.0, changes), tmp_path, Started(REAL_CLOCK.now()))
    found = valid(tmp_path, loaded.test_counts)
    assert (found == expected(3)) == (not broken)
    assert result.deaths == (["exit code 10"] if broken else [])
    searched = [i for (kind, i), one in result.results.items() if kind == "synthesis" and one.outcome == "finished"]
    assert len(searched) == (3 if broken else 0)
    assert read_journal(tmp_path / "events.jsonl")[-1]["event"] == "end"
    assert watched == [False]  # a job may take longer than the loop may be silent


def test_the_twin_gives_way_like_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise ValueError("no such weights")

    monkeypatch.setattr(serve, "ModelServer", refuse)
    twin = Twin(["device"], make_hello(settings_of(60.0, {}), Deadline.after(60.0)), VirtualClock())
    assert not twin.start(0)
    fatal, death = twin.poll(0.1)
    assert isinstance(fatal, Message)
    assert fatal.body == Fatal("ValueError: no such weights", "", 0)
    assert isinstance(death, Death)
    twin.retire(0)
    assert twin.slots == []
    assert not twin.start(0)
