"""What a training of a task is expected to gain, and what is known of a task so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_LEAST = 0.04
"""The first, short training of a task is at least this fraction of a full one."""
FIRST_MOST = 0.25
"""The first, short training of a task is at most this fraction of a full one."""
FIRST_SEQUENCES = 80
"""A training on fewer sequences than this is not worth its start. Measured with embedded XS only: 80 sequences, in 10
steps, solve 10 of 28 tasks and 160 solve 13."""
GAINS = (0.36, 0.14, 0.06)
"""Expected rise in solved tasks by the first, second and third training. The first two are measured (embedded XS, 28
tasks of held-out generators: 10 right after 10 steps, 14 after 40); the third is a guess."""
LATER = 0.7
"""The gain of each further training, as a fraction of the one before; a guess."""
SURE_DOUBT = 0.06
"""Share of wrong programs among those taken for right: 9 of 160 training tasks, cross-validated."""
LEAST_DOUBT = 0.05
"""No vote of views is ever quite decided."""
DOUBT_AFTER_FAILURE = 0.25
"""Each failed training of a task leaves this fraction of its expected gain; a guess."""


KILLS = 2
"""A task is left alone after this many workers died under it, each another process."""
FAILURES = 2
"""A task is not trained again after this many of its trainings failed."""


def least_share(sequences: int) -> float:
    """The smallest part of a full training that is worth its start.

    sequences: of the full training, repetitions counted.
    """
    return min(1.0, max(FIRST_LEAST, FIRST_SEQUENCES / max(1, sequences)))


def first_share(predict_s: Callable[[float], float], usable_s: float, least: float) -> float:
    """The largest size of short trainings at which all that wait fit their part of the time.

    Args:
        predict_s: seconds of all of them, by their share of a full training.
        usable_s: seconds that they may take.
        least: below this share a training is not worth its start.
    """
    share, least = max(FIRST_MOST, least), max(FIRST_LEAST, least)
    while share > least:
        if predict_s(share) <= usable_s:
            return share
        share *= 0.8
    return least


@dataclass(slots=True)
class TaskState:
    """Where a task stands with its trainings."""

    next_number: int = 0
    again: list[int] = field(default_factory=list)
    """Numbers of passes whose worker died."""
    kills: int = 0
    failures: int = 0
    agreement: float = 0.0
    sure: bool = False
    """A program is taken for right."""
    rate: float = 0.0
    """The value by which it stands in the ranking."""

    def wanted(self, passes: int) -> bool:
        """Whether the task has a training left, of `passes` that it may have."""
        left = bool(self.again) or self.next_number < passes
        return left and self.kills < KILLS and self.failures < FAILURES

    @property
    def number(self) -> int:
        """The number of the pass that comes next."""
        return self.again[0] if self.again else self.next_number

    @property
    def doubt(self) -> float:
        """How far its votes are from decided, 1 to 0."""
        return SURE_DOUBT if self.sure else max(LEAST_DOUBT, 1 - self.agreement)

    @property
    def gain(self) -> float:
        """Expected rise in solved tasks by its next training."""
        beyond = self.number - len(GAINS) + 1
        gain = GAINS[self.number] if beyond <= 0 else GAINS[-1] * LATER**beyond
        return gain * self.doubt * DOUBT_AFTER_FAILURE**self.failures
