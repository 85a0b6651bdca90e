"""The cell-rule learner: every output cell's colour as a decision tree over what the cell sees in some picture.

The picture ("view") is any piece whose size is that of the output: the input itself, a crop, a tiling, a panel. Other
pieces of that size join as further expressions. Several trees vote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.budget import Budget
from arc_ttt.synthesis.cells.feature_set import Features
from arc_ttt.synthesis.cells.features import features
from arc_ttt.synthesis.cells.tree import CellTable, Fitted, Grower, describe, predict
from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import Cells, colour_counts

MAX_SPLITS = 14
DROPOUTS = (0.0, 0.3, 0.3, 0.3, 0.6, 0.6)
MAX_TABLE = 12_000_000
"""Truth values in one table of conditions."""
VALUES_OF_ONE_FEATURE = 10
EXPRESSION_COSTS = {"own": 0.0, "layer": 0.3, "by symmetry": 0.5, "by period": 0.5, "neighbour": 1.5, "seen": 1.2}


@dataclass(frozen=True, slots=True)
class View:
    """Pictures of the sizes of the outputs, for all demonstrations and test inputs, and further layers of that size."""

    name: str
    pictures: tuple[Cells, ...]
    layers: tuple[dict[str, Cells], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A solution in the frame of the problem.

    Args:
        answers: (H, W) for each test input.
        votes: summed weight of the trees that give it.
        splits: of the smallest.
        held_out: share of demonstrations that trees fitted without them got right, None where that was not tried.
    """

    answers: tuple[Cells, ...]
    program: str
    votes: float
    splits: int
    fits: int
    held_out: float | None


def learn(problem: Problem, view: View, budget: Budget, rng: np.random.Generator, *, turned: bool) -> list[Rule]:
    """Rules of one view, most votes first; each reproduces all demonstrations.

    turned: learn from mirrored and transposed copies of the demonstrations as well (same-size tasks only).
    """
    count = len(problem.outputs)
    tabulated = tabulate(problem, view, budget, turned=turned)
    if tabulated is None or not budget.store(table_bytes(tabulated[0])):
        return []
    table, test_rows = tabulated
    grower = Grower(table, np.arange(len(table.target)), budget)
    found: dict[bytes, tuple[float, Fitted, tuple[Cells, ...]]] = {}
    for number, dropout in enumerate(DROPOUTS[:3] if turned else DROPOUTS):
        if budget.spent():
            break
        fitted = grower.grow(MAX_SPLITS, rng, dropout)
        if fitted.errors:
            if not number and fitted.errors > 0.15 * len(table.target):
                break
            continue
        shapes = [picture.shape for picture in view.pictures[count:]]
        answers = tuple(
            predict(fitted.tree, table, rows).reshape(shape) for rows, shape in zip(test_rows, shapes, strict=True)
        )
        if any((answer < 0).any() for answer in answers):
            continue
        key = b"".join(answer.tobytes() for answer in answers)
        votes, best, _ = found.get(key, (0.0, fitted, answers))
        best = fitted if fitted.splits < best.splits else best
        found[key] = votes + 2.0 ** (-fitted.splits / 2), best, answers
    held_out = leave_one_out(table, budget, rng) if found and count > 1 else None
    grower.close()
    budget.release(table_bytes(table))
    rules = [
        Rule(answers, f"view [{view.name}]: {describe(fitted.tree, table)}", votes, fitted.splits, count, held_out)
        for votes, fitted, answers in found.values()
    ]
    return sorted(rules, key=lambda rule: -rule.votes)


def leave_one_out(table: CellTable, budget: Budget, rng: np.random.Generator) -> float | None:
    """Share of demonstrations that a tree fitted on the others reproduces; None when time ran out."""
    numbers = np.unique(table.owner)
    right = 0
    for number in numbers:
        if budget.spent():
            return None
        others, own = (table.owner != number).nonzero()[0], (table.owner == number).nonzero()[0]
        grower = Grower(table, others, budget)
        fitted = grower.grow(MAX_SPLITS, rng, 0.0)
        grower.close()
        right += bool((predict(fitted.tree, table, own) == table.target[own]).all())
    return right / len(numbers)


TURNS = ("as it is", "columns mirrored", "rows mirrored", "transposed")


def turn(cells: Cells, how: str) -> Cells:
    """One of the TURNS of a grid."""
    if how == "as it is":
        return cells
    if how == "transposed":
        return np.ascontiguousarray(cells.T)
    return np.ascontiguousarray(cells[:, ::-1] if how == "columns mirrored" else cells[::-1])


def tabulate(
    problem: Problem, view: View, budget: Budget, *, turned: bool
) -> tuple[CellTable, list[NDArray[np.intp]]] | None:
    """The table of a view and the rows of each test input; None when time runs out."""
    count = len(problem.outputs)
    colours = colours_to_watch(view.pictures)
    hidden = hidden_colour(problem)
    turns = TURNS if turned else TURNS[:1]
    known = [
        (turn(view.pictures[n], how), {name: turn(c, how) for name, c in view.layers[n].items()}, n, how)
        for how in turns
        for n in range(count)
    ]
    target = np.concatenate([turn(problem.outputs[n], how).ravel() for _, _, n, how in known])
    owner = np.concatenate([np.full(picture.size, n, dtype=np.int16) for picture, _, n, _ in known])
    tests = range(count, len(view.pictures))
    found = []
    for picture, layers in [(p, ls) for p, ls, _, _ in known] + [(view.pictures[n], view.layers[n]) for n in tests]:
        if budget.spent():
            return None
        found.append(features(picture, layers, colours, hidden))
    table = build_table(found, target, owner, budget)
    ends = np.cumsum([len(target), *(view.pictures[n].size for n in tests)])
    return table, [np.arange(start, end) for start, end in pairwise(ends.tolist())]


def colours_to_watch(pictures: Sequence[Cells]) -> list[int]:
    """Up to four colours other than background that all pictures show."""
    shared = np.logical_and.reduce([colour_counts(cells) > 0 for cells in pictures])
    return [int(colour) for colour in shared.nonzero()[0] if colour][:4]


def hidden_colour(problem: Problem) -> int:
    """The one colour that all inputs and no output show, else background."""
    shown = np.logical_and.reduce([colour_counts(cells) > 0 for cells in problem.inputs])
    gone = shown & ~np.logical_or.reduce([colour_counts(cells) > 0 for cells in problem.outputs])
    return int(gone.argmax()) if gone.sum() == 1 else 0


def build_table(
    found: Sequence[Features], target: NDArray[np.int8], owner: NDArray[np.int16], budget: Budget
) -> CellTable:
    """Put the features of all grids into columns; conditions that say the same about known cells are one."""
    expression_names = [n for n in found[0].expressions if all(n in f.expressions for f in found)]
    number_names = [n for n in found[0].conditions if all(n in f.conditions for f in found)]
    expressions = np.stack([np.concatenate([f.expressions[n].ravel() for f in found]) for n in expression_names])
    numbers = [np.concatenate([f.conditions[n].ravel() for f in found]) for n in number_names]
    known = len(target)
    columns: dict[bytes, tuple[NDArray[np.bool_], str, float]] = {}
    limit = MAX_TABLE // expressions.shape[1]
    for block in _conditions(expression_names, expressions, number_names, numbers, known):
        if budget.spent() or len(columns) >= limit:
            break
        counts = np.count_nonzero(block.truths[:, :known], axis=1).tolist()
        keys = np.packbits(block.truths[:, :known], axis=1)
        for row, (value, count) in enumerate(zip(block.values, counts, strict=True)):
            if 0 < count < known and (key := keys[row].tobytes()) not in columns:
                columns[key] = block.truths[row], block.text.format(value), block.cost
    if not columns:
        columns[b""] = np.zeros(expressions.shape[1], dtype=bool), "never", 1.0
    constants = np.unique(target)
    fixed = np.repeat(constants[:, None], expressions.shape[1], axis=1).astype(np.int8)
    costs = [expression_cost(name) for name in expression_names] + [0.6] * len(constants)
    return CellTable(
        np.ascontiguousarray(np.concatenate([expressions, fixed]).T),
        np.stack([column for column, _, _ in columns.values()], axis=1),
        target,
        owner,
        [*expression_names, *(f"colour {colour}" for colour in constants)],
        [name for _, name, _ in columns.values()],
        np.array(costs, dtype=np.float32),
        np.array([cost for _, _, cost in columns.values()], dtype=np.float32),
    )


@dataclass(frozen=True, slots=True)
class _Conditions:
    """Conditions of one kind.

    Args:
        truths: (values, cells).
        text: has a place for the value.
    """

    truths: NDArray[np.bool_]
    values: list[int]
    text: str
    cost: float


def _conditions(
    expression_names: list[str],
    expressions: NDArray[np.int8],
    number_names: list[str],
    numbers: list[NDArray[np.int16]],
    known: int,
) -> Iterator[_Conditions]:
    for name, colours in zip(expression_names, expressions, strict=True):
        shown = np.bincount(colours[:known] + 1, minlength=11).nonzero()[0] - 1
        yield _Conditions(colours == shown[:, None], shown.tolist(), f"{name} = {{}}", expression_cost(name))
    for name, values in zip(number_names, numbers, strict=True):
        lowest = int(values.min())
        counts = np.bincount(values[:known] - lowest)
        present = counts.nonzero()[0]
        levels = present[np.argsort(-counts[present], kind="stable")[:VALUES_OF_ONE_FEATURE]] + lowest
        yield _Conditions(values == levels[:, None], levels.tolist(), f"{name} = {{}}", 1.0)
        if 3 <= len(present) <= 12:
            ordered = present[1:] + lowest
            yield _Conditions(values >= ordered[:, None], ordered.tolist(), f"{name} >= {{}}", 1.2)
    own = expressions[:1]
    for name, colours in zip(expression_names[1:], expressions[1:], strict=True):
        if not name.startswith(("neighbour", "second", "fallen")):
            yield _Conditions(own == colours, [0], f"own = {name}", 1.0)
            if name.startswith(("layer", "piece")):
                yield _Conditions((own != 0) == (colours != 0), [0], f"own as full as {name}", 1.0)


def expression_cost(name: str) -> float:
    """How unlikely an expression is as the reason of a colour."""
    return next((cost for start, cost in EXPRESSION_COSTS.items() if name.startswith(start)), 1.0)


def table_bytes(table: CellTable) -> int:
    """What a table and the numeric copies of a grower take."""
    return table.conditions.size * 5 + table.expressions.size * 5
