"""When the submission is written."""

from __future__ import annotations

WRITE_EVERY_S, WRITE_MOST_S = 0.5, 60.0
WRITE_SHARE = 0.2  # of the coordinator's time at most goes into writing, however slow the disk is
