"""The journal: every whole line is read back, and neither a torn line nor a full disk stops the run."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.deadline import VirtualClock
from arc_ttt.events import Journal, Outcome, read_journal

fuzz = settings(max_examples=60, deadline=None, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("journals")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Inside, no file of this process grows past `size` bytes: a disk that fills up in the middle of a line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@given(st.integers(0, 200))
@fuzz
def test_a_torn_end_costs_only_its_own_line(folder: Path, cut: int) -> None:
    lines = [json.dumps({"t": i, "event": f"number {i}"}) for i in range(6)]
    text = "\n".join(lines) + "\n"
    kept = text[: min(cut, len(text))]
    whole = [line for line in lines if line in kept.split("\n")]
    path = folder / "torn.jsonl"
    path.write_text(kept)
    assert [event["t"] for event in read_journal(path)] == [json.loads(line)["t"] for line in whole]


def test_what_follows_a_torn_line_is_not_lost_with_it(tmp_path: Path) -> None:
    """A run that starts again on the journal of a killed one must not glue its first event to the torn end."""
    path = tmp_path / "run.jsonl"
    path.write_text('{"t": 0, "event": "start"}\n{"t": 1, "eve')
    again = journal(path)
    again.append("again")
    again.close()
    assert [event["event"] for event in read_journal(path)] == ["start", "again"]


@given(st.binary(max_size=200))
@fuzz
def test_a_damaged_journal_is_read_as_far_as_it_goes(folder: Path, noise: bytes) -> None:
    path = folder / "damaged.jsonl"
    path.write_bytes(b'{"event": "first"}\n' + noise + b'\n{"event": "last"}\n')
    events = [event.get("event") for event in read_journal(path)]
    assert events[0] == "first"
    assert events[-1] == "last"


@pytest.mark.parametrize("line", ["1" * 5000, "[" * 100_000, "[1]", "null", '"text"', "\x00", "NaN"])
def test_lines_that_are_no_event_are_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(f'{{"event": "a"}}\n{line}\n{{"event": "b"}}\n')
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


def test_after_a_full_disk_the_next_events_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    written = journal(path)
    written.append("before")
    with file_size_limit(path.stat().st_size + 20):
        written.append("lost", text="x" * 100)
    written.append("after")
    written.close()
    assert written.lost_lines == 1
    assert [event["event"] for event in read_journal(path)] == ["before", "after"]


def test_values_that_json_does_not_know_do_not_stop_the_run(tmp_path: Path) -> None:
    written = journal(tmp_path / "run.jsonl")
    written.append("odd", loss=np.float32(0.5), path=tmp_path, nan=float("nan"), text="\ud800")
    written.append("next")
    written.close()
    assert [event["event"] for event in read_journal(written.path)] == ["odd", "next"]
