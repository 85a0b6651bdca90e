"""What a training of a task is expected to gain, and what is known of a task so far."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_LEAST, FIRST_MOST = 0.04, 0.25  # part of a full training that a short one has
GAINS = (0.36, 0.14, 0.06)
"""Expected rise in solved tasks by the first, second, third training. The first two are measured (embedded XS, 28 tasks
of held-out generators: 10 right after 10 steps, 14 after 40); the third is a guess."""
LATER = 0.7  # gain of each further training against the one before; a guess
SURE_DOUBT = 0.06  # share of wrong programs among those taken for right: 9 of 160 training tasks, cross-validated
LEAST_DOUBT = 0.05  # no vote of views is ever quite decided
FIRST_SEQUENCES = 80
"""Sequences below which a training is not worth its start. Measured with embedded XS only: 80 sequences, in 10 steps,
solve 10 of 28 tasks and 160 solve 13."""


def least_share(sequences: int) -> float:
    """The smallest part of a full training, of so many sequences with repetitions, that is worth its start."""
    return min(1.0, max(FIRST_LEAST, FIRST_SEQUENCES / max(1, sequences)))


@dataclass(slots=True)
class TaskState:
    """Where a task stands with its trainings."""

    next_number: int = 0
    again: list[int] = field(default_factory=list)  # numbers of passes whose worker died
    kills: int = 0
    failures: int = 0
    agreement: float = 0.0
    sure: bool = False
    rate: float = 0.0  # under which it stands in the ranking

    @property
    def number(self) -> int:
        """Of the pass that comes next."""
        return self.again[0] if self.again else self.next_number

    @property
    def doubt(self) -> float:
        """How far its votes are from decided, 1 to 0."""
        return SURE_DOUBT if self.sure else max(LEAST_DOUBT, 1 - self.agreement)
