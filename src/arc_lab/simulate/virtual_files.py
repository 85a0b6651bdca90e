"""A submission and a journal that are kept in memory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from arc_lab.simulate.faults import Faults
from arc_ttt.deadline import WRITE_S, VirtualClock
from arc_ttt.run.journal import Journal, checked_line
from arc_ttt.run.submission import Submission
from arc_ttt.tasks.grids import LoadedTasks


class VirtualSubmission(Submission):
    """A submission whose writes take virtual time and now and then stall. `stall_s`: the longest stall."""

    def __init__(self, loaded: LoadedTasks, clock: VirtualClock, faults: Faults, rng: random.Random, stall_s: float):
        self.clock, self.faults, self.rng, self.stall_s = clock, faults, rng, min(WRITE_S, stall_s)
        self.writes = 0
        super().__init__(Path("submission.json"), loaded)

    def _text(self, task_id: str) -> str:
        return ""  # made once, at the end

    def document(self) -> Any:
        """What the file would hold."""
        return json.loads("{" + ",".join(Submission._text(self, task_id) for task_id in self.test_counts) + "}")

    def write(self) -> None:
        self.writes += 1
        stalls = self.rng.random() < self.faults.stall
        self.clock.advance(self.rng.uniform(1.0, self.stall_s) if stalls else 0.03)


class MemoryJournal(Journal):
    """A journal whose events stay in memory."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(Path("events.jsonl"), clock, clock.now())
        self.events: list[dict[str, Any]] = []

    def append(self, event: str, **fields: Any) -> None:
        self.events.append({"t": round(self.clock.now() - self.start_s, 3), "event": event, **fields})

    def close(self) -> None:
        """Nothing to close."""

    def text(self) -> bytes:
        """What the file would hold."""
        return b"".join(checked_line(event) for event in self.events)
