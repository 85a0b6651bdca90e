"""How sure to be of a candidate: from what the engines know about it to the chance that it is right.

The weights are a logistic regression on the candidates of 100 of the 400 training tasks, and of nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENT = 0.85  # from here on reports count a candidate as sure; 54 of 58 were right in 5-fold tests on training


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one answer of one task.

    fits: share of demonstrations reproduced. stack_cost, stack_depth: of the cheapest stack that gives it, None where
    no stack does. stack_held_out: share of demonstrations that stacks made without them got right. votes: of trees.
    cells_held_out: the same share for trees. share: of all weight that the engines gave to answers of this task.
    broken: properties that all demonstrations share and the answer has not.
    """

    fits: float
    stack_cost: int | None
    stack_depth: int | None
    stack_held_out: float
    votes: float
    cells_held_out: float
    share: float
    broken: int = 0

    @property
    def engine(self) -> str:
        if self.stack_cost is not None and self.votes:
            return "both"
        return "cells" if self.votes else "pieces"


WEIGHTS = {
    "constant": -5.82,
    "both": 0.55,
    "pieces": 0.77,
    "stack_cost": 0.68,
    "stack_held_out": 1.11,
    "votes": 1.60,
    "cells_held_out": 1.80,
    "share": 4.42,
    "partial": -0.41,
}


def signals(evidence: Evidence) -> dict[str, float]:
    """The numbers that the regression weighs, each about 0 to 1."""
    return {
        "constant": 1.0,
        "both": float(evidence.engine == "both"),
        "pieces": float(evidence.engine == "pieces"),
        "stack_cost": min(evidence.stack_cost if evidence.stack_cost is not None else 60, 120) / 60,
        "stack_held_out": evidence.stack_held_out,
        "votes": min(math.log2(1 + evidence.votes), 4.0) / 4,
        "cells_held_out": evidence.cells_held_out,
        "share": evidence.share,
        "partial": float(evidence.fits < 1),
    }


def confidence(evidence: Evidence) -> float:
    """The estimated chance, 0 to 1, that the answer is right."""
    total = sum(WEIGHTS[name] * value for name, value in signals(evidence).items())
    return 1.0 / (1.0 + math.exp(-total))
