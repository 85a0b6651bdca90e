"""The journal: every whole line is read back, and neither a torn line nor a full disk stops the run."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.deadline import VirtualClock
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.run import journal as events_module
from arc_ttt.run.journal import Journal, checked_line, read_journal
from support.disk import file_size_limit

fuzz = settings(max_examples=60, deadline=None, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("journals")


def journal(path: Path, clock: VirtualClock | None = None) -> Journal:
    return Journal(path, clock or VirtualClock(50.0))


def test_events_come_back_in_order_with_seconds_since_the_start(tmp_path: Path) -> None:
    clock = VirtualClock(50.0)
    written = journal(tmp_path / "deep" / "run.jsonl", clock)
    written.append("start", seed=1)
    clock.advance(2.5)
    written.append("job", task="a\nb", outcome=Outcome.CUT, grids=[[1, 2]])
    written.close()
    assert read_journal(written.path) == [
        {"t": 0.0, "event": "start", "seed": 1},
        {"t": 2.5, "event": "job", "task": "a\nb", "outcome": "cut", "grids": [[1, 2]]},
    ]


def test_an_event_is_in_the_file_before_the_next_one(tmp_path: Path) -> None:
    """A killed run keeps all it has said; nothing waits in a buffer."""
    written = journal(tmp_path / "run.jsonl")
    written.append("start")
    assert [event["event"] for event in read_journal(written.path)] == ["start"]
    written.close()


def test_a_closed_journal_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = journal(path)
    first.append("one")
    first.close()
    first.append("two")
    first.close()
    second = journal(path)
    second.append("three")
    second.close()
    assert [event["event"] for event in read_journal(path)] == ["one", "two", "three"]


def test_a_journal_cut_at_any_byte_gives_what_was_written_up_to_there(tmp_path: Path) -> None:
    written = journal(tmp_path / "run.jsonl")
    for number in range(12):
        written.append("found", number=number, text='a"}\n' * number, grid=[[number % 10]])
    written.close()
    whole, every = written.path.read_bytes(), read_journal(written.path)
    assert len(every) == 12
    cut_path = tmp_path / "cut.jsonl"
    for cut in range(len(whole) + 1):
        cut_path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n") + (whole[cut : cut + 1] == b"\n")  # a line without its end is whole too
        assert read_journal(cut_path) == every[:lines]


@given(st.integers(0, 10_000), st.integers(0, 7))
@fuzz
def test_a_bit_that_turns_costs_its_line_and_no_other(folder: Path, place: int, bit: int) -> None:
    lines = [checked_line({"t": i, "event": "number"}) for i in range(5)]
    whole = bytearray(b"".join(lines))
    place %= len(whole)
    whole[place] ^= 1 << bit
    path = folder / "turned.jsonl"
    path.write_bytes(whole)
    line = next(i for i in range(5) if place < sum(map(len, lines[: i + 1])))
    found = [event["t"] for event in read_journal(path)]
    at_end = place == sum(map(len, lines[: line + 1])) - 1  # the end of a line is gone: two have become one
    lost = {line, line + 1} if at_end else {line}
    assert found == [i for i in range(5) if i not in lost]


def test_what_follows_a_torn_line_is_not_lost_with_it(tmp_path: Path) -> None:
    """A run that starts again on the journal of a killed one must not glue its first event to the torn end."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(checked_line({"t": 0, "event": "start"}) + b'{"t": 1, "eve')
    again = journal(path)
    again.append("again")
    again.close()
    assert [event["event"] for event in read_journal(path)] == ["start", "again"]


@given(st.binary(max_size=200))
@fuzz
def test_a_damaged_journal_is_read_as_far_as_it_goes(folder: Path, noise: bytes) -> None:
    path = folder / "damaged.jsonl"
    path.write_bytes(checked_line({"event": "first"}) + noise + b"\n" + checked_line({"event": "last"}))
    events = [event.get("event") for event in read_journal(path)]
    assert events == ["first", "last"]


@pytest.mark.parametrize("line", ["1" * 5000, "[" * 100_000, "[1]", "null", '"text"', "\x00", "NaN", '{"event": "x"}'])
def test_lines_that_are_no_event_are_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(checked_line({"event": "a"}) + line.encode() + b"\n" + checked_line({"event": "b"}))
    assert [event["event"] for event in read_journal(path)] == ["a", "b"]


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    full = journal(Path("/dev/full"))
    for number in range(3):
        full.append("job", number=number, text="x" * 10_000)
    assert full.lost_lines == 3
    full.close()


def test_a_folder_that_cannot_be_made_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    blocked = journal(tmp_path / "file" / "run.jsonl")
    blocked.append("start")
    blocked.close()
    assert blocked.lost_lines == 1


def test_events_wait_in_memory_for_a_disk_that_is_full(tmp_path: Path) -> None:
    path, clock = tmp_path / "run.jsonl", VirtualClock(50.0)
    written = journal(path, clock)
    written.append("before")
    with file_size_limit(path.stat().st_size + 20):
        written.append("waits", text="x" * 100)
        assert written.lost_lines == 1
        clock.advance(10.0)
        written.append("waits too")
    assert [event["event"] for event in read_journal(path)] == ["before"]
    clock.advance(10.0)
    written.append("after")
    written.close()
    assert written.lost_lines == 0
    assert [event["event"] for event in read_journal(path)] == ["before", "waits", "waits too", "after"]


def test_memory_that_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_WAITING", 10_000)
    full = journal(Path("/dev/full"))
    for _ in range(100):
        full.append("job", text="x" * 1000)
    assert full._waiting_bytes <= 10_000
    assert full.lost_lines == 100
    full.close()


@pytest.mark.parametrize("failing", range(1, 8))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_write_that_fails_at_any_call_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, code: int
) -> None:
    calls = 0

    class Failing(events_module.FileIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(code, "injected")
            return super().write(data[: len(data) // 2 if calls == failing + 2 else None])

    monkeypatch.setattr(events_module, "FileIO", Failing)
    clock = VirtualClock()
    written = journal(tmp_path / "run.jsonl", clock)
    for number in range(8):
        written.append("number", number=number)
        clock.advance(2.0)
    written.close()
    assert [event["number"] for event in read_journal(written.path)] == list(range(8))


def test_a_slow_disk_is_asked_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = VirtualClock(), []

    def slow(descriptor: int) -> None:
        asked.append(clock.now())
        clock.advance(0.5)

    monkeypatch.setattr(events_module.os, "fdatasync", slow)
    written = journal(tmp_path / "run.jsonl", clock)
    for _ in range(200):
        written.append("number")
        clock.advance(0.5)
    assert len(asked) <= 5
    written.close()


def test_values_that_json_does_not_know_do_not_stop_the_run(tmp_path: Path) -> None:
    written = journal(tmp_path / "run.jsonl")
    written.append("odd", loss=np.float32(0.5), path=tmp_path, nan=float("nan"), text="\ud800")
    written.append("next")
    written.close()
    assert [event["event"] for event in read_journal(written.path)] == ["odd", "next"]
