"""Clock and Deadline. The only module that asks for the time.

The clock is monotonic and, on Linux, the same for all processes of a machine, so the dead-man gets moments as plain
numbers. Lines to workers carry the seconds left. A change of the wall clock has no effect.
"""

from __future__ import annotations

import os
import re
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from arc_ttt.errors import SettingsError


class Clock(Protocol):
    """Source of time: seconds on some monotonic axis."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


@dataclass(slots=True)
class VirtualClock:
    """A clock for tests and simulations. It moves only by `sleep` and `advance`."""

    at_s: float = 0.0

    def now(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        """Move forward. Raises ValueError for a negative step: time never goes back."""
        if seconds < 0:
            raise ValueError(f"time cannot go back: {seconds} s")
        self.at_s += seconds


REAL_CLOCK = MonotonicClock()


def wall_date() -> str:
    """The date and time now in UTC, for a report; no decision depends on it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def cpu_seconds() -> float:
    """CPU seconds (user + system) that this process has used."""
    return time.process_time()


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on `clock` by which work must have ended.

    Hand on the Deadline, never the seconds left: seconds grow stale in a queue. Only a message to another process
    holds seconds, counted when it is sent and when it is read. `minus(reserve_s)` gives an earlier
    one to the level below, so that the level above can still write when the one below is late.
    """

    at_s: float
    clock: Clock = field(default=REAL_CLOCK, compare=False)

    @classmethod
    def after(cls, seconds: float, clock: Clock = REAL_CLOCK) -> Deadline:
        """The moment `seconds` from now."""
        return cls(clock.now() + seconds, clock)

    @classmethod
    def never(cls, clock: Clock = REAL_CLOCK) -> Deadline:
        """A moment that does not come."""
        return cls(float("inf"), clock)

    def remaining(self) -> float:
        """Seconds left; negative when the moment has passed."""
        return self.at_s - self.clock.now()

    def passed(self) -> bool:
        return self.remaining() <= 0

    def minus(self, reserve_s: float) -> Deadline:
        return Deadline(self.at_s - reserve_s, self.clock)


TURN_S = 1.0
"""Seconds of a turn of the coordinator's loop without a write: a poll, what it read, votes."""
WRITE_S = 60.0
"""Seconds of the longest stall of a disk that a run is to survive; a second a minute for runs under an hour."""
KILL_S = 1.0
"""Seconds for killing all workers; nobody waits longer for that."""
CLOCK_ERROR_S = 0.1


def least_reserve(limit_s: float) -> float:
    """Seconds before a limit of `limit_s` at which a run must stop to have ended by then, whatever its workers do.

    The bound is turn + write + kill + clock error: at worst the stop is noticed a turn late, the last write takes the
    longest it may, then come the kills. A write that is under way at that moment is the last one. No term depends on a
    prediction. Runs of less than a few minutes are tried out at home, and bear shorter stalls.
    """
    short = min(1.0, limit_s / 100)
    return TURN_S * short + min(WRITE_S, limit_s / 60) + KILL_S * short + CLOCK_ERROR_S


HEAD_START_S = 2.0
"""Seconds by which workers stop before the coordinator does, so that what a cut job found still arrives."""


@dataclass(frozen=True, slots=True)
class RunDeadlines:
    """The ends of a run, one behind the other, each for the case that the one before it fails.

        work      workers end their jobs by themselves; no job is started any more    stop - min(2 s, reserve / 2)
        stop      the coordinator writes, kills its workers and ends                  limit - reserve
        dead-man  another process kills the coordinator (`run.deadman`)               limit - reserve / 2
        limit     what the user asked for; on Kaggle half an hour before its own      start + run.limit_s
        guard     the parent process kills the run and leaves the file (`kernel.py`)  limit

    Args:
        limit: the end of the run.
        reserve_s: seconds before it at which the coordinator stops.
    """

    limit: Deadline
    reserve_s: float

    @property
    def stop(self) -> Deadline:
        return self.limit.minus(self.reserve_s)

    @property
    def work(self) -> Deadline:
        return self.stop.minus(min(HEAD_START_S, self.reserve_s / 2))

    @property
    def deadman(self) -> Deadline:
        """A run that was started late keeps half of its reserve, so that it may still write."""
        half_s = self.reserve_s / 2
        return Deadline(max(self.limit.at_s - half_s, self.limit.clock.now() + half_s), self.limit.clock)


CONTAINER_MAX_AGE_S = 3600.0
"""A container older than this was not started for this run."""


def run_start(seen_s: float, *, container: bool = False) -> float:
    """The moment from which a limit counts: the start of this process, or of its container where that is earlier.

    A process that has had children by then was another program before: a shell that became its last command. What it
    did before, such as installing packages, is no part of the run, unless all that the container does is.

    Args:
        seen_s: when this process first looked at the clock, before it had children.
        container: whether the container was started for this run, so that its start counts; that of a home machine's
            first process does not.
    """
    starts = [seen_s]
    if container or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss == 0:
        starts.append(_started_s("self"))
    if container and seen_s - _started_s("1") < CONTAINER_MAX_AGE_S:
        starts.append(_started_s("1"))
    return min(starts)


def _started_s(process: str) -> float:
    """When a process started, on the monotonic clock; infinity where the system does not tell."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return float("inf")
    return time.monotonic() - max(0.0, age_s)


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "20m", "1.5h" or "1h30m".

    Raises:
        SettingsError: not a positive duration.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise SettingsError(f"{text!r} is not a duration: write 90s, 20m or 12h")
    if len(parts) > 1 and any(unit == "" for _, unit in parts):
        raise SettingsError(f"{text!r} is not a duration: give every part a unit, as in 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e9:
        raise SettingsError(f"{text!r}: a duration must be more than 0")
    return seconds


def format_duration(seconds: float) -> str:
    """A short text for people: 42s, 4m10s, 11h05m."""
    if seconds == float("inf"):
        return "no limit"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
