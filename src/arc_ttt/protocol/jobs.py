"""Jobs: what a worker is asked to do, and how a job ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MOST_FREE = 0.6
"""Training leaves time for answering, but at most this fraction of the job's remaining time."""

OnProgress = Callable[[str, int, int], None]
"""Called with the phase of a job, the rounds that are done, and the rounds that there are."""


class JobKind(StrEnum):
    """What a job is about."""

    BASE = "base"
    """The model as it is answers one task."""
    TTT = "ttt"
    """An adapter is trained on one task, then the model answers it."""
    SYNTHESIS = "synthesis"
    """Programs are searched for one task."""
    JOINT = "joint"
    """One adapter is trained over the demonstrations of all tasks."""


BASE = JobKind.BASE
TTT = JobKind.TTT
SYNTHESIS = JobKind.SYNTHESIS
JOINT = JobKind.JOINT


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for a worker.

    Args:
        kind: what it is about.
        task_id: the task; empty for a job over all tasks.
        predicted_s: seconds that it is predicted to take on a device of average speed.
        share: part of a full training's sequences that it trains on, 0 to 1.
        number: which pass over the task it is, from 0; each has a seed of its own.
    """

    kind: JobKind
    task_id: str
    predicted_s: float
    share: float = 1.0
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        """Its fields by name, as a line of the journal holds them."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Job | None:
        """The job that a line of the journal is about; None if it names none."""
        try:
            return cls(JobKind(event["kind"]), *(event[name] for name in cls.__slots__[1:]))
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of a training a pass gets.

    Args:
        number: which training of its task it is; each has sequences, an order and views of its own.
        share: part of the training sequences to use, 0 to 1.
        views: how many views to answer under; 0 for the setting.
        longest: tokens of the longest training sequence, if that is less than the setting; 0 for the setting.
        decode_s: seconds that training leaves for answering, but never more than MOST_FREE of those left.
    """

    number: int = 0
    share: float = 1.0
    views: int = 0
    longest: int = 0
    decode_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Effort:
        return cls(*(line[name] for name in cls.__slots__))


FULL_EFFORT = Effort()


class Outcome(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    CUT = "cut"
    """The deadline came first; what was found counts."""
    FAILED = "failed"
    """An error of this task; recorded with its reason."""
    DIVERGED = "diverged"
    """Training lost its way; the base model answered."""
    LOST = "lost"
    """The worker died under it."""


class CallBack(StrEnum):
    """Why a job is asked to end before it is done."""

    OVERDUE = "goes on beyond its time"
    SUPERSEDED = "a program is taken for right"


class DeathKind(StrEnum):
    """What a worker died of."""

    CRASHED = "crashed"
    """It ended by itself, by an error or by a signal."""
    DEVICE_LOST = "device lost"
    """The device's context is broken; only a new process gets another."""
    MODEL_REFUSED = "model refused"
    """It could not load the model, and said so."""
    SILENT = "silent"
    """It gave no sign of life for too long."""
    UNREADABLE = "unreadable"
    """It sent what is no message, or a flood of output, or it closed its output."""
    CALLED_BACK = "called back"
    """It did not end a job that was called back."""
    NOT_STARTED = "not started"
    """The system refused to start it."""
    STUCK = "stuck"
    """Its process does not go away after it was killed."""
    NO_MEMORY = "memory runs low"
    """It was killed to give the machine memory."""
    REPLACED = "another model is loaded instead"
    """It was killed because another model is loaded instead."""
    STOPPED = "stopped"
    """It was killed at the end of the run."""

    @property
    def is_its_own(self) -> bool:
        """Whether what the worker did may be why it died."""
        return self not in _OF_OTHERS


_OF_OTHERS = {DeathKind.NOT_STARTED, DeathKind.STUCK, DeathKind.NO_MEMORY, DeathKind.REPLACED, DeathKind.STOPPED}
