"""The vote of Akyürek et al. (2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from arc_ttt.tasks.grids import Grid, freeze, grid_bytes, same_grid
from arc_ttt.votes.candidates import Candidate, distinct, flattened


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """All candidates, then those of each symmetry in the order first seen, the identity before the others."""
    names = sorted({c.group: None for c in candidates}, key=lambda name: name != "identity")
    return [list(candidates), *([c for c in candidates if c.group == name] for name in names)]


def hierarchical(candidates: Sequence[Candidate]) -> list[Grid]:
    """The paper's two-level vote made sound: each group elects up to three different grids, one vote each.

    Source: the paper, section 4.2. Differences: a group never votes twice for one grid, a grid that nobody predicted
    (row or column majority) is only considered behind all predicted ones, and ties go to the identity, then to the
    frequency over all views, then to the lower nll.
    """
    if not candidates:
        return []
    votes: Counter[bytes] = Counter()
    for group in _groups(candidates):
        for grid in flattened(group)[:3]:
            votes[grid_bytes(grid)] += 1
    overall = flattened(candidates)
    place = {grid_bytes(grid): number for number, grid in enumerate(overall)}
    identity = Counter(grid_bytes(c.grid) for c in candidates if c.group == "identity")
    ranked = sorted(overall, key=lambda g: (-votes[grid_bytes(g)], -identity[grid_bytes(g)], place[grid_bytes(g)]))
    grids = [candidate.grid for candidate in candidates]
    made = [_row_majority(grids), _column_majority(grids)]
    return list(distinct([*ranked, *made]).values())


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
    found = distinct(grids)
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


def paper(candidates: Sequence[Candidate]) -> list[Grid]:
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
