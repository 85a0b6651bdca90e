"""Answers to one task with the weights as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from arc_ttt.adapt.training import TrainingReport
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.votes.candidates import Candidate, ScoredCandidate

Found = Callable[[int, "Answers"], None]  # a test input, and all answers so far: its own are complete


@dataclass(slots=True)
class Answers:
    """What one pass over a task found. `tokens` counts what the model read and wrote; `degraded` names what was done
    with less than the settings ask for, because memory did not suffice; `spoiled` counts answers that were no numbers.
    `trained` is the part of its training that the adapter had, 0 where the base model answers in its place.
    """

    candidates: list[Candidate] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)
    outcome: Outcome = Outcome.FINISHED
    reason: str = ""
    training: TrainingReport | None = None
    tokens: int = 0
    degraded: list[str] = field(default_factory=list)
    spoiled: int = 0
    trained: float = 1.0
