"""How sure to be of a candidate: from what the engines know about it to the chance that it is right.

The weights are a logistic regression on the candidates of the 400 training tasks, and of nothing else. In 10-fold tests
that leave whole families of tasks out, best answers that reproduce all demonstrations were right as follows:

    said        0-0.05  -0.1   -0.15  -0.25  -0.5   -0.75  -0.85  -0.9   -1
    right       4/55    6/25   3/11   7/12   10/25  26/35  10/13  17/19  134/141

The engine has changed in two ways since (layers of panels beside pieces, outputs of other demonstrations). The weights
were kept: on the 18 tasks with panels among every second training task no first answer became right or wrong, and on
the 8 training tasks where such outputs apply two first answers became right and none wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one answer of one task.

    Args:
        fits: share of demonstrations reproduced.
        stack_cost, stack_depth: of the cheapest stack that gives it, None where no stack does.
        stack_held_out: share of demonstrations that stacks made without them got right (though their outputs had a say
            in which outputs of others, and what all share, are pieces).
        votes: of trees.
        cells_held_out: the same share for trees.
        share: of all weight that the engines gave to answers of this task.
        broken: properties that all demonstrations share and the answer has not.
        broken_more: how many more these are than for the task's best answer in this respect.
    """

    fits: float
    stack_cost: int | None
    stack_depth: int | None
    stack_held_out: float
    votes: float
    cells_held_out: float
    share: float
    broken: int = 0
    broken_more: int = 0

    @property
    def engine(self) -> str:
        if self.stack_cost is not None and self.votes:
            return "both"
        return "cells" if self.votes else "pieces"


WEIGHTS = {
    "constant": -4.99,
    "both": 0.66,
    "pieces": 1.49,
    "stack_cost": 0.40,
    "stack_held_out": 0.86,
    "votes": 1.91,
    "cells_held_out": 1.67,
    "share": 3.87,
    "partial": -1.68,
    "broken": -0.79,
    "broken_more": -4.11,
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
        "broken": min(evidence.broken, 4) / 4,
        "broken_more": min(evidence.broken_more, 4) / 4,
    }


def confidence(evidence: Evidence) -> float:
    """The estimated chance, 0 to 1, that the answer is right."""
    total = sum(WEIGHTS[name] * value for name, value in signals(evidence).items())
    return 1.0 / (1.0 + math.exp(-total))
