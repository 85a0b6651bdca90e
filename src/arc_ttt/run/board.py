"""Which job runs where, since when, and why it was called back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from arc_ttt.protocol.jobs import CallBack, Job

OVERDUE_S = 120.0
"""A job that still shows progress this long after its end was due is called back."""
LATE_PART = 0.5
"""A job that is later than predicted is expected to need this part of the time it has taken so far."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job on a worker.

    Args:
        job: what it is about.
        number: tells a late message from one of this job.
        begun_s: when it was given out.
        ends_s: when it should end by its prediction.
        until_s: when its worker was asked to end it.
        called_back: why it was asked to end before, if it was.
    """

    job: Job
    number: int
    begun_s: float
    ends_s: float
    until_s: float = math.inf
    called_back: CallBack | None = None

    def left_s(self, now_s: float) -> float:
        """Seconds that it still needs."""
        return max(self.ends_s - now_s, LATE_PART * (now_s - self.begun_s) if now_s > self.ends_s else 0.0)


class JobBoard:
    """The jobs under way, by slot, each with a number of its own."""

    def __init__(self) -> None:
        self._running: dict[int, RunningJob] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, slot: int) -> bool:
        return slot in self._running

    def __iter__(self) -> Iterator[tuple[int, RunningJob]]:
        return iter(list(self._running.items()))

    def next_number(self) -> int:
        """The number of the next job."""
        self._number += 1
        return self._number

    def begin(self, slot: int, running: RunningJob) -> None:
        self._running[slot] = running

    def find(self, slot: int, number: int | None) -> RunningJob | None:
        """The job of a slot, if a message with this job number belongs to it. None as a number fits any job."""
        running = self._running.get(slot)
        return running if running is not None and number in (None, running.number) else None

    def end(self, slot: int) -> RunningJob | None:
        """Take the job of a slot off the board."""
        return self._running.pop(slot, None)

    def call_back(self, slot: int, cause: CallBack) -> RunningJob | None:
        """Note that a job was asked to end. None if it was asked before."""
        running = self._running[slot]
        if running.called_back is not None:
            return None
        self._running[slot] = replace(running, called_back=cause)
        return running

    def overdue(self, now_s: float) -> list[int]:
        """Slots whose jobs go on long after their workers were asked to end them."""
        return [slot for slot, running in self._running.items() if now_s > running.until_s + OVERDUE_S]
