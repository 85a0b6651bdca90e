"""What a run is given and never changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from arc_ttt.deadline import Deadline, RunDeadlines
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Started:
    """What a process knows of its own start.

    Args:
        start_s: the moment, on the monotonic clock, from which the limit counts.
        signals: SIGTERM and SIGINT that have come since; more are added.
        again: an earlier process of this run was killed, and its file stands.
    """

    start_s: float
    signals: list[int] = field(default_factory=list)
    again: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The inputs of a run.

    Args:
        loaded: the tasks.
        settings: what to do with them.
        out: the folder of the submission, the journal and the joint adapter.
        start_s: the moment, on the clock of `limit`, from which the limit counts.
        limit: the end of the run.
        fallback: settings to go on with when the model cannot be loaded.
        searchers: slots of the fleet whose workers synthesize.
        cores: jobs that may run at once where devices and searchers share cores; 0 where they do not.
        device: one of `schedule.devices.DEVICE_TYPES`, for predictions until jobs have ended.
        fingerprint: what this run shares with an interrupted one that it may go on from.
        poll_s: longest wait for an event.
    """

    loaded: LoadedTasks
    settings: Settings
    out: Path
    start_s: float
    limit: Deadline
    fallback: Settings | None = None
    searchers: Collection[int] = ()
    cores: int = 0
    device: str = "cpu"
    fingerprint: str = ""
    poll_s: float = POLL_S

    @property
    def deadlines(self) -> RunDeadlines:
        return RunDeadlines(self.limit, self.settings.run.reserve)
