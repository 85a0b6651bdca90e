"""Candidates and the rules that rank them into two attempts.

All rules are deterministic in the order of the candidates. Ties never waste an attempt, except under `paper`, which
keeps the official code's behaviour for comparison.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from arc_ttt.errors import SettingsError
from arc_ttt.tasks.grids import Grid, Task, freeze, grid_bytes, same_grid

SEARCHED = -1  # for Candidate.view


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One answer to one test input, already undone.

    group: name of the symmetry it was read under. nll: its negative log-likelihood under that view, in nats, lower is
    better. stage: "base" before test-time training, "ttt" after it. view: number of the view whose greedy answer it is,
    0 for the first one, the identity; SEARCHED for a less likely answer under some view; None where it is not known.
    """

    task_id: str
    test_index: int
    grid: Grid
    group: str
    nll: float
    stage: str
    view: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCandidate:
    """A distinct answer with its negative log-likelihood under each scoring view, in nats; the views are the same for
    all candidates of a test input, so sums compare."""

    task_id: str
    test_index: int
    grid: Grid
    nll_by_view: tuple[float, ...]
    stage: str


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """One synthesized answer to one test input.

    text: the program, for a person. confidence: calibrated chance of being right, 0 to 1. fits_all: it reproduces all
    demonstrations.
    """

    test_index: int
    grid: Grid
    text: str
    confidence: float
    fits_all: bool

    @property
    def sure(self) -> bool:
        return self.fits_all and self.confidence >= SURE


SURE = 0.85
"""Confidence from which a program is taken for right: no more effort goes into its task before others."""
TAKES = 0.17
"""Confidence from which a program takes an attempt.

Both are read off one rising (isotonic) curve of the share of best programs that are right: 336 answers to the training
tasks, each judged by weights fitted without the task's family, and 162 answers to tasks of the ReARC generators, judged
by the weights before these. The curve passes 3/4 at 0.84 and 1/3, a strict bar for what a vote's second grid is worth,
at 0.165; 19 of the 54 programs from there to 0.4 were right. No evaluation task entered, but both bars were chosen by
people who had seen the public evaluation's curve; earlier values, 0.75 and 0.15, had been set with it in sight.
"""


def strength(counts: Mapping[bytes, float]) -> float:
    """Share of the answers to one test input, by number or weight, that agree on the foremost grid, 0 to 1."""
    total = sum(counts.values())
    return max(counts.values()) / total if total > 0 else 0.0


def merge(neural: Sequence[Grid], vote_strength: float, programs: Sequence[Program], *, rule: str) -> list[Grid]:
    """Grids of one test input, best first, from the ranked vote and the programs (best first).

    Source: `first` is the rule of Li et al. 2024 (BARC), equation 5; `confident` is ours: the best program and the
    vote's first grid share the attempts, in the order of the program's confidence and the share of views that agree.
    """
    vote = list(_distinct(neural).values())
    grids = [p.grid for p in programs]
    if rule == "first":
        return list(_distinct([*(p.grid for p in programs if p.fits_all), *vote, *grids]).values())
    likely = [p for p in programs if p.fits_all and p.confidence >= TAKES] if rule == "confident" else []
    if not likely:
        return list(_distinct([*vote, *grids]).values())
    agreed = bool(vote) and same_grid(vote[0], likely[0].grid)
    program_first = agreed or likely[0].confidence > vote_strength
    leading = [likely[0].grid, *vote[:1]] if program_first else [*vote[:1], likely[0].grid]
    return list(_distinct([*leading, *(p.grid for p in likely[1:]), *vote, *grids]).values())


def rank(candidates: Sequence[Candidate], scored: Sequence[ScoredCandidate], *, rule: str) -> list[Grid]:
    """Distinct grids of one test input, best first. `scored` is read by the rule `product` only.

    Raises:
        SettingsError: no such rule.
    """
    if rule == "product":
        return _product(candidates, scored)
    rules: Mapping[str, Callable[[Sequence[Candidate]], list[Grid]]] = {
        "hierarchical": _hierarchical,
        "paper": _paper,
        "flattened": _flattened,
    }
    if rule not in rules:
        raise SettingsError(f"vote.rule is {rule!r}; it must be one of product, {', '.join(rules)}")
    return rules[rule](candidates)


class Pass(Protocol):
    """One training's answers to a test input. weight: its say beside others; shares: see `pass_shares`."""

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
        means[identity] = min(means.get(identity, math.inf), _mean_nll(item.nll_by_view))
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
    if rule != "product":
        return rank(candidates, (), rule=rule)
    total: dict[bytes, float] = {}
    for one in passes:
        for identity, share in one.shares.items():
            total[identity] = total.get(identity, 0.0) + share
    grids = {grid_bytes(item.grid): item.grid for one in passes for item in one.scored}
    ranked = [grids[identity] for identity in sorted(total, key=lambda identity: -total[identity])]
    return ranked + _flattened([c for c in candidates if grid_bytes(c.grid) not in total])


def attempts(ranked: Sequence[Grid], fallbacks: Sequence[Grid]) -> tuple[Grid, Grid]:
    """The first two of `ranked`, filled up from `fallbacks` so that the two differ whenever they can."""
    both = [*ranked[:2], *fallbacks]
    first = both[0]
    second = next((grid for grid in both[1:] if not same_grid(grid, first)), first)
    return first, second


def fallback_grids(task: Task | None, test_index: int) -> list[Grid]:
    """Answers for a test input that nothing was found for: its own input, then outputs of the demonstrations.

    If no demonstration keeps its size, the outputs come first. Black squares come last, and alone for a task that
    cannot be used.
    """
    if task is None:
        return _BLACK
    outputs = [example.output for example in task.train]
    same_size = not outputs or any(e.input.shape == e.output.shape for e in task.train)
    question = task.tests[test_index]
    grids = [question, *outputs] if same_size else [*outputs, question]
    return [*grids, *_BLACK]


_BLACK = [freeze(np.zeros((side, side))) for side in (1, 2)]


def _mean_nll(nlls: Sequence[float]) -> float:
    """Mean of `nlls`; infinite where there is none or one is NaN, which would compare with nothing."""
    mean = sum(nlls) / len(nlls) if nlls else math.inf
    return math.inf if math.isnan(mean) else mean


def _distinct(grids: Sequence[Grid]) -> dict[bytes, Grid]:
    """Grids by identity, in the order first seen."""
    found: dict[bytes, Grid] = {}
    for grid in grids:
        found.setdefault(grid_bytes(grid), grid)
    return found


def _product(candidates: Sequence[Candidate], scored: Sequence[ScoredCandidate]) -> list[Grid]:
    """Highest product of probabilities over the scoring views first; what was not scored follows by count.

    Source: product of experts over views (The ARChitects 2024, "sum log p"; 54.5 against 51.0 for the best single
    score on 400 public evaluation tasks in their table 6).
    """
    best: dict[bytes, tuple[float, Grid]] = {}
    for item in scored:
        mean = _mean_nll(item.nll_by_view)
        identity = grid_bytes(item.grid)
        if identity not in best or mean < best[identity][0]:
            best[identity] = (mean, item.grid)
    ranked = [grid for _, grid in sorted(best.values(), key=lambda pair: pair[0])]
    return ranked + _flattened([c for c in candidates if grid_bytes(c.grid) not in best])


def _flattened(candidates: Sequence[Candidate]) -> list[Grid]:
    """Most frequent first over all views; ties by frequency under the identity, then by mean nll, then first seen."""
    grids = _distinct([c.grid for c in candidates])
    counts = Counter(grid_bytes(c.grid) for c in candidates)
    identity = Counter(grid_bytes(c.grid) for c in candidates if c.group == "identity")
    nlls: dict[bytes, list[float]] = {}
    for candidate in candidates:
        nlls.setdefault(grid_bytes(candidate.grid), []).append(candidate.nll)
    order = sorted(grids, key=lambda g: (-counts[g], -identity[g], _mean_nll(nlls[g])))
    return [grids[g] for g in order]


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """All candidates, then those of each symmetry in the order first seen, the identity before the others."""
    names = sorted({c.group: None for c in candidates}, key=lambda name: name != "identity")
    return [list(candidates), *([c for c in candidates if c.group == name] for name in names)]


def _hierarchical(candidates: Sequence[Candidate]) -> list[Grid]:
    """The paper's two-level vote made sound: each group elects up to three different grids, one vote each.

    Source: the paper, section 4.2. Differences: a group never votes twice for one grid, a grid that nobody predicted
    (row or column majority) is only considered behind all predicted ones, and ties go to the identity, then to the
    frequency over all views, then to the lower nll.
    """
    if not candidates:
        return []
    votes: Counter[bytes] = Counter()
    for group in _groups(candidates):
        for grid in _flattened(group)[:3]:
            votes[grid_bytes(grid)] += 1
    overall = _flattened(candidates)
    place = {grid_bytes(grid): number for number, grid in enumerate(overall)}
    identity = Counter(grid_bytes(c.grid) for c in candidates if c.group == "identity")
    ranked = sorted(overall, key=lambda g: (-votes[grid_bytes(g)], -identity[grid_bytes(g)], place[grid_bytes(g)]))
    grids = [candidate.grid for candidate in candidates]
    made = [_row_majority(grids), _column_majority(grids)]
    return list(_distinct([*ranked, *made]).values())


def _row_majority(grids: Sequence[Grid]) -> Grid:
    """The most common shape, filled with the most common row at each height. Source: the paper's code."""
    shape = Counter(grid.shape for grid in grids).most_common(1)[0][0]
    rows = []
    for index in range(shape[0]):
        found = Counter(g[index].tobytes() for g in grids if g.shape[0] > index and g.shape[1] == shape[1])
        rows.append(np.frombuffer(found.most_common(1)[0][0], dtype=np.uint8))
    return freeze(np.stack(rows))


def _column_majority(grids: Sequence[Grid]) -> Grid:
    return freeze(_row_majority([freeze(grid.T) for grid in grids]).T)


def _paper_top3(grids: Sequence[Grid]) -> list[Grid]:
    """The official code's three candidates of a list, its tie behaviour included: with equal top counts the second
    place repeats the first."""
    found = _distinct(grids)
    names = list(found)
    counts = np.array([sum(grid_bytes(g) == name for g in grids) for name in names])
    ascending = np.argsort(counts, kind="stable")
    first = found[names[int(np.argmax(counts))]]
    made = (_row_majority(grids), _column_majority(grids))
    if len(names) > 1:
        second = found[names[int(ascending[-2])]]
    else:
        second = made[0] if not same_grid(made[0], first) else made[1]
    third = found[names[int(ascending[-3])]] if len(names) > 2 else None
    if third is None or same_grid(third, first) or same_grid(third, second):
        fresh = not same_grid(made[0], first) and not same_grid(made[0], second)
        third = made[0] if fresh else made[1]
    return [first, second, third]


def _paper(candidates: Sequence[Candidate]) -> list[Grid]:
    """The vote as the official code does it: three candidates a group, repeats counted, then the same once more.

    A tie between the second and third place goes to the identity's own predictions, else to the third.
    """
    if not candidates:
        return []
    pool = [g for group in _groups(candidates) for g in _paper_top3([c.grid for c in group])]
    first, second, third = _paper_top3(pool)
    counts = Counter(grid_bytes(g) for g in pool)
    if counts[grid_bytes(second)] == counts[grid_bytes(third)]:
        own = Counter(grid_bytes(c.grid) for c in candidates if c.group == "identity")
        if own and own[grid_bytes(second)] <= own[grid_bytes(third)]:
            second = third
    return [first, second]
