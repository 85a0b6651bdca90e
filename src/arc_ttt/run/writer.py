"""When the submission is written: at once, but never so often that a slow disk holds up the run."""

from __future__ import annotations

import math

from arc_ttt.deadline import Clock
from arc_ttt.run.journal import Journal
from arc_ttt.run.submission import Submission
from arc_ttt.tasks.grids import Grid

WRITE_EVERY_S = 0.5
"""The submission is written at most this often ..."""
WRITE_MOST_S = 60.0
"""... and, if it has changed, at least this often, however slow the disk is."""
WRITE_SHARE = 0.2
"""Writing takes at most this part of the coordinator's time."""


class SubmissionWriter:
    """The submission of a run, replaced on the disk when its answers have changed."""

    def __init__(self, submission: Submission, journal: Journal, clock: Clock) -> None:
        self._submission, self._journal, self._clock = submission, journal, clock
        self.changed = True
        self.errors = 0
        """Writes that the disk refused."""
        self._next_s = -math.inf

    def set(self, task_id: str, index: int, attempts: tuple[Grid, Grid]) -> None:
        """Change both attempts of a test input."""
        self._submission.set(task_id, index, attempts)
        self.changed = True

    @property
    def due(self) -> bool:
        return self._clock.now() >= self._next_s

    def write(self) -> None:
        """Replace the file if an answer has changed. The next write comes later the slower the disk is."""
        if not self.changed:
            return
        start_s = self._clock.now()
        try:
            self._submission.write()
            self.changed = False
        except OSError as error:
            self.errors += 1
            self._journal.append("write failed", reason=str(error))
        now_s = self._clock.now()
        self._next_s = now_s + min(WRITE_MOST_S, max(WRITE_EVERY_S, (now_s - start_s) / WRITE_SHARE))
