"""The rules that rank candidates. To add one: a function, and a row in RULES at the end.

All rules are deterministic in the order of the candidates. Ties never waste an attempt, except under `paper`, which
keeps the official code's behaviour for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from arc_ttt.errors import SettingsError
from arc_ttt.tasks.grids import Grid, grid_bytes
from arc_ttt.votes.candidates import Candidate, ScoredCandidate, flattened, mean_nll
from arc_ttt.votes.paper import hierarchical, paper


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to rank the answers to one test input.

    Args:
        rank: distinct grids, best first, from candidates and scores.
        about: one line for people.
        needs_scores: it reads likelihoods under many views, which take time to compute.
    """

    rank: Callable[[Sequence[Candidate], Sequence[ScoredCandidate]], list[Grid]]
    about: str
    needs_scores: bool = False


def rank(candidates: Sequence[Candidate], scored: Sequence[ScoredCandidate], *, rule: str) -> list[Grid]:
    """Distinct grids of one test input, best first.

    Raises:
        SettingsError: no such rule.
    """
    if rule not in RULES:
        raise SettingsError(f"vote.rule is {rule!r}; it must be one of {', '.join(RULES)}")
    return RULES[rule].rank(candidates, scored)


class Pass(Protocol):
    """One training's answers to a test input, with its say beside others (`weight`, `shares`; see `pass_shares`)."""

    @property
    def weight(self) -> float: ...

    @property
    def candidates(self) -> list[Candidate]: ...

    @property
    def scored(self) -> list[ScoredCandidate]: ...

    @property
    def shares(self) -> dict[bytes, float]: ...


def pass_shares(scored: Sequence[ScoredCandidate], weight: float) -> dict[bytes, float]:
    """`weight` shared out among distinct grids in proportion to exp(-mean nll)."""
    means: dict[bytes, float] = {}
    for item in scored:
        identity = grid_bytes(item.grid)
        means[identity] = min(means.get(identity, math.inf), mean_nll(item.nll_by_view))
    lowest = min(means.values(), default=math.inf)
    if lowest == math.inf:
        return {}
    parts = {identity: math.exp(lowest - mean) for identity, mean in means.items()}
    total = sum(parts.values())
    return {identity: weight * part / total for identity, part in parts.items()}


def rank_passes(passes: Sequence[Pass], *, rule: str) -> list[Grid]:
    """Distinct grids of one test input from several trainings, best first.

    Likelihoods of different adapters do not compare by themselves. So under the rule `product` each training shares
    out its weight among its grids, and the shares add up; the other rules vote over all candidates together. Source:
    ours, a mixture of the trainings' products of experts.
    """
    candidates = [c for one in passes for c in one.candidates]
    if not RULES[rule].needs_scores:
        return rank(candidates, (), rule=rule)
    total: dict[bytes, float] = {}
    for one in passes:
        for identity, share in one.shares.items():
            total[identity] = total.get(identity, 0.0) + share
    grids = {grid_bytes(item.grid): item.grid for one in passes for item in one.scored}
    ranked = [grids[identity] for identity in sorted(total, key=lambda identity: -total[identity])]
    return ranked + flattened([c for c in candidates if grid_bytes(c.grid) not in total])


def _product(candidates: Sequence[Candidate], scored: Sequence[ScoredCandidate]) -> list[Grid]:
    """Highest product of probabilities over the scoring views first; what was not scored follows by count.

    Source: product of experts over views (The ARChitects 2024, "sum log p"; 54.5 against 51.0 for the best single
    score on 400 public evaluation tasks in their table 6).
    """
    best: dict[bytes, tuple[float, Grid]] = {}
    for item in scored:
        mean = mean_nll(item.nll_by_view)
        identity = grid_bytes(item.grid)
        if identity not in best or mean < best[identity][0]:
            best[identity] = (mean, item.grid)
    ranked = [grid for _, grid in sorted(best.values(), key=lambda pair: pair[0])]
    return ranked + flattened([c for c in candidates if grid_bytes(c.grid) not in best])


RULES: dict[str, Rule] = {
    "product": Rule(_product, "log-likelihood summed over scoring views", needs_scores=True),
    "hierarchical": Rule(lambda candidates, _: hierarchical(candidates), "the paper's vote, made sound"),
    "paper": Rule(lambda candidates, _: paper(candidates), "the vote as the official code does it"),
    "flattened": Rule(lambda candidates, _: flattened(candidates), "one count over all views"),
}
"""All rules by the names that `vote.rule` takes. A new rule is one function and one row."""
