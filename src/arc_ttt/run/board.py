"""Which job runs where, since when, and why it was called back."""

from __future__ import annotations

from dataclasses import dataclass

from arc_ttt.protocol.jobs import Job

OVERDUE, SUPERSEDED = "goes on beyond its time", "a program is taken for right"  # why a job is called back
OVERDUE_S = 120.0  # beyond its time, after which a job that still shows progress is called back


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job on a worker.

    number: tells a late message from one of this job. ends_s: when it should end by its prediction. until_s: when the
    worker was told to end it. called_back: why it was asked to end before, once it was.
    """

    job: Job
    number: int
    begun_s: float
    ends_s: float
    until_s: float
    called_back: str = ""

    def left_s(self, now_s: float) -> float:
        """Seconds that it still needs; of one that is late, half as long again as it has taken."""
        return max(self.ends_s - now_s, 0.5 * (now_s - self.begun_s) if now_s > self.ends_s else 0.0)
