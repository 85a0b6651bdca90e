"""The run's journal: one JSON object a line, one writer, append only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Any

from arc_ttt.deadline import REAL_CLOCK, Clock


class Outcome(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    CUT = "cut"  # the deadline came first; what was found counts
    FAILED = "failed"  # an error of this task; recorded with its reason
    DIVERGED = "diverged"  # training lost its way; the base model answered
    LOST = "lost"  # the worker died under it


@dataclass(slots=True)
class Journal:
    """Append events to `path`. A full disk degrades to memory: the run never stops for its journal."""

    path: Path
    clock: Clock = REAL_CLOCK
    start_s: float = 0.0
    _file: FileIO | None = None
    _torn: bool = False  # the file may end inside a line
    lost_lines: int = 0

    def __post_init__(self) -> None:
        self.start_s = self.start_s or self.clock.now()

    def append(self, event: str, **fields: Any) -> None:
        """Write one event with the seconds since the start of the run."""
        seconds = round(self.clock.now() - self.start_s, 3)
        line = json.dumps({"t": seconds, "event": event, **fields}, default=str) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._torn = self.path.is_file() and self.path.stat().st_size > 0
                self._file = FileIO(self.path, "a")
            whole = (("\n" if self._torn else "") + line).encode()
            self._torn = self._file.write(whole) < len(whole)
            self.lost_lines += self._torn
        except OSError:
            self.lost_lines += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal; a torn or damaged line is passed over."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
