"""Jobs: what a worker is asked to do, and how a job ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MOST_FREE = 0.6
"""Of the time that a job has left, the most that its training leaves free for answering."""
Progress = Callable[[str, int, int], None]  # phase, done, of
BASE, TTT, SYNTHESIS = "base", "ttt", "synthesis"
JOINT = "joint"


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker. task_id is empty for a joint stage over all tasks.

    share: part of the training sequences to use. number: which pass over the task, from 0; each has its own seed.
    """

    kind: str
    task_id: str
    predicted_s: float
    share: float = 1.0
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Outcome(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    CUT = "cut"  # the deadline came first; what was found counts
    FAILED = "failed"  # an error of this task; recorded with its reason
    DIVERGED = "diverged"  # training lost its way; the base model answered
    LOST = "lost"  # the worker died under it
