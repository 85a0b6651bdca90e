"""Clock, Deadline and durations, on a clock that moves only when told."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt import deadline as deadline_module
from arc_ttt.deadline import (
    Deadline,
    MonotonicClock,
    VirtualClock,
    format_duration,
    least_reserve,
    parse_duration,
    run_start,
)
from arc_ttt.errors import SettingsError

fuzz = settings(max_examples=100, deadline=None, database=None)


def test_a_deadline_counts_down_with_its_clock_and_passes_at_its_moment() -> None:
    clock = VirtualClock(100.0)
    deadline = Deadline.after(30, clock)
    assert (deadline.at_s, deadline.remaining(), deadline.passed()) == (130.0, 30.0, False)
    clock.sleep(29)
    assert (deadline.remaining(), deadline.passed()) == (1.0, False)
    clock.advance(1)
    assert (deadline.remaining(), deadline.passed()) == (0.0, True)
    clock.advance(5)
    assert (deadline.remaining(), deadline.passed()) == (-5.0, True)


def test_minus_gives_the_level_below_less_time_on_the_same_clock() -> None:
    clock = VirtualClock()
    outer = Deadline.after(60, clock)
    inner = outer.minus(10)
    clock.advance(50)
    assert inner.passed()
    assert not outer.passed()
    assert inner.minus(5).at_s == 45


def test_a_deadline_that_never_comes() -> None:
    clock = VirtualClock(1e9)
    never = Deadline.never(clock)
    assert never.remaining() == math.inf
    assert not never.minus(1e6).passed()


def test_deadlines_compare_by_moment_so_that_a_child_can_rebuild_one_from_the_number() -> None:
    clock = VirtualClock(7.0)
    assert Deadline.after(3, clock) == Deadline(10.0)
    assert Deadline(10.0) != Deadline(11.0)


def test_virtual_time_never_goes_back() -> None:
    clock = VirtualClock(5.0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)
    clock.sleep(-3)
    assert clock.now() == 5.0


def test_the_real_clock_is_the_same_for_all_processes() -> None:
    """A deadline crosses to a worker as a plain number; a clock that starts anew in each process would break it."""
    clock = MonotonicClock()
    before = clock.now()
    code = "from arc_ttt.deadline import REAL_CLOCK; print(repr(REAL_CLOCK.now()))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_env())
    assert before <= float(child.stdout) <= clock.now()


def child_env() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(p for p in sys.path if p)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("20m", 1200), ("12h", 43200), ("1.5h", 5400), ("1h30m", 5400), (" 2M ", 120)],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "-5", "-5m", "m", "5d", "1h30", "5 m 3", "1e3", "nan", "inf", "5,5m", "9" * 400, "1.m"]
)
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (42.4, "42s"), (59.7, "1m00s"), (250, "4m10s"), (3599.6, "1h00m"), (39900, "11h05m")],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_no_limit_at_all_can_be_shown() -> None:
    assert format_duration(Deadline.never(VirtualClock()).remaining()) == "no limit"


@given(st.integers(1, 10**8))
@fuzz
def test_parse_undoes_format_to_the_unit_shown(seconds: int) -> None:
    shown = format_duration(seconds)
    lost = 60 if seconds >= 3600 else 1
    assert 0 <= seconds - parse_duration(shown) < lost


@given(st.text(max_size=12))
@fuzz
def test_any_text_is_a_positive_duration_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except SettingsError:
        return
    assert 0 < seconds < 1e9


# Where a limit starts and where a run must stop


def test_the_limit_counts_from_the_start_of_the_process_not_from_its_first_look_at_the_clock() -> None:
    clock = MonotonicClock()
    before = clock.now()
    code = "import time; time.sleep(0.5)\nfrom arc_ttt.deadline import *\nprint(repr(run_start(REAL_CLOCK.now())))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_env())
    start_s, after = float(child.stdout), clock.now()
    assert before - 0.1 <= start_s <= after - 0.4  # the system counts in hundredths of a second


@pytest.mark.parametrize(("container", "counts"), [(False, False), (True, True)])
def test_what_a_shell_did_before_it_became_this_process_is_no_part_of_the_run(container: bool, counts: bool) -> None:
    """As in `bash -c "pip install ... && python kernel.py"`, whose last command takes over the process of the shell."""
    code = (
        "from arc_ttt.deadline import *\nfrom arc_ttt import deadline\nseen = REAL_CLOCK.now()\n"
        f"print(deadline._started_s('self') < seen - 0.4, run_start(seen, container={container}) < seen - 0.4)"
    )
    command = f"sleep 0.5 && {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=child_env())
    assert shell.stdout.split() == ["True", str(counts)]


@pytest.mark.parametrize(
    ("container_s", "counts", "expected"),
    [(850.0, True, 850.0), (850.0, False, 990.0), (-5000.0, True, 990.0), (math.inf, True, 990.0)],
    ids=["container's start", "not for this run", "older than any run", "unknown"],
)
def test_on_kaggle_the_limit_counts_from_the_start_of_the_container(
    container_s: float, counts: bool, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline_module, "_started_s", {"self": 990.0, "1": container_s}.__getitem__)
    monkeypatch.setattr(deadline_module.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=0))
    assert run_start(1000.0, container=counts) == expected


def test_where_the_system_does_not_tell_the_first_look_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline_module, "Path", lambda name: Path("/no/such/folder"))
    assert run_start(1000.0, container=True) == 1000.0


@pytest.mark.parametrize(("limit_s", "reserve_s"), [(43200.0, 62.1), (3600.0, 62.1), (600.0, 12.1), (60.0, 2.3)])
def test_the_reserve_covers_a_turn_a_write_the_kills_and_the_clock(limit_s: float, reserve_s: float) -> None:
    assert least_reserve(limit_s) == pytest.approx(reserve_s)
