"""Decision trees whose leaves are expressions: each cell's colour is that of one expression, chosen by conditions.

The tree is ours, in the spirit of decision-tree induction with functions at the leaves: a node is a leaf when one
expression is right on all its cells; otherwise it is split where the best expressions of both sides are right most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.budget import Budget

SPLIT_PENALTY = 0.25
"""Cells that a split of cost 1 must gain."""
EXPRESSION_PENALTY = 0.01


@dataclass(frozen=True, slots=True)
class Leaf:
    expression: int


@dataclass(frozen=True, slots=True)
class Split:
    condition: int
    yes: Leaf | Split
    no: Leaf | Split


Tree = Leaf | Split


@dataclass(frozen=True, slots=True)
class CellTable:
    """Cells of all grids with what rules may use.

    Args:
        expressions: (cells, E) colours.
        conditions: (cells, P) truth values.
        target: (n,) colours of the first n cells, the known ones.
        owner: (n,) demonstration of each known cell. Names and costs belong to the columns.
    """

    expressions: NDArray[np.int8]
    conditions: NDArray[np.bool_]
    target: NDArray[np.int8]
    owner: NDArray[np.int16]
    expression_names: list[str]
    condition_names: list[str]
    expression_costs: NDArray[np.float32]
    condition_costs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fitted:
    """tree, number of its splits, and known cells on which it is wrong."""

    tree: Tree
    splits: int
    errors: int


class Grower:
    """Grows trees on some of the known cells; what different trees have in common is computed once."""

    def __init__(self, table: CellTable, rows: NDArray[np.intp], budget: Budget) -> None:
        self.table = table
        self.budget = budget
        right = table.expressions[rows] == table.target[rows, None]
        order = np.argsort(table.expression_costs, kind="stable")
        _, first = np.unique(np.packbits(right[:, order], axis=0), axis=1, return_index=True)
        self.columns = order[np.sort(first)]
        self.right = right[:, self.columns].astype(np.float32)
        self.conditions = table.conditions[rows].astype(np.float32)
        self.expression_costs = table.expression_costs[self.columns]
        self.products: dict[bytes, NDArray[np.float32]] = {}

    def grow(self, max_splits: int, rng: np.random.Generator, dropout: float) -> Fitted:
        """One tree. dropout: share of conditions that it may not use."""
        allowed = np.ones(self.conditions.shape[1], dtype=bool)
        costs = self.expression_costs * EXPRESSION_PENALTY
        if dropout:
            allowed = rng.random(len(allowed)) >= dropout
            costs = costs * rng.uniform(0.5, 2.0, len(costs)).astype(np.float32)
        growth = _Growth(self, allowed, costs + 1e-6 * np.arange(len(costs), dtype=np.float32), max_splits)
        tree = growth.node(np.arange(len(self.right)), None)
        return Fitted(tree, growth.splits, growth.errors)

    def product(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """For each condition, on how many of the rows where it holds is each expression right; (P, E)."""
        key = rows.tobytes()
        if key not in self.products:
            made: NDArray[np.float32] = self.conditions[rows].T @ self.right[rows]
            if not self.budget.store(made.nbytes):
                return made
            self.products[key] = made
        return self.products[key]

    def close(self) -> None:
        """Give the memory of shared results back."""
        self.budget.release(sum(made.nbytes for made in self.products.values()))
        self.products.clear()


class _Growth:
    def __init__(self, grower: Grower, allowed: NDArray[np.bool_], costs: NDArray[np.float32], max_splits: int) -> None:
        self.grower = grower
        self.allowed = allowed
        self.costs = costs
        self.max_splits = max_splits
        self.splits = 0
        self.errors = 0

    def node(self, rows: NDArray[np.intp], product: NDArray[np.float32] | None) -> Tree:
        """The tree of these rows. product: `Grower.product` of them where it is known."""
        grower = self.grower
        totals = grower.right[rows].sum(axis=0)
        best = int((totals - self.costs).argmax())
        leaf = Leaf(int(grower.columns[best]))
        wrong = len(rows) - int(totals[best])
        if not wrong or self.splits >= self.max_splits or grower.budget.spent():
            self.errors += wrong
            return leaf
        if product is None:
            product = grower.product(rows)
        counts = grower.conditions[rows].sum(axis=0)
        score = product.max(axis=1) + (totals - product).max(axis=1) - SPLIT_PENALTY * grower.table.condition_costs
        score[(counts == 0) | (counts == len(rows)) | ~self.allowed] = -1
        at = int(score.argmax())
        if score[at] <= 0:
            self.errors += wrong
            return leaf
        self.splits += 1
        holds = grower.conditions[rows, at] > 0
        yes, no = rows[holds], rows[~holds]
        if len(yes) <= len(no):
            part = grower.product(yes)
            return Split(at, self.node(yes, part), self.node(no, product - part))
        part = grower.product(no)
        return Split(at, self.node(yes, product - part), self.node(no, part))


def predict(tree: Tree, table: CellTable, rows: NDArray[np.intp]) -> NDArray[np.int8]:
    """The colour that the tree gives each of these cells; -1 where its expression has none."""
    if isinstance(tree, Leaf):
        shown: NDArray[np.int8] = table.expressions[rows, tree.expression]
        return shown
    answer = np.empty(len(rows), dtype=np.int8)
    holds = table.conditions[rows, tree.condition]
    answer[holds] = predict(tree.yes, table, rows[holds])
    answer[~holds] = predict(tree.no, table, rows[~holds])
    return answer


def describe(tree: Tree, table: CellTable) -> str:
    """The tree as text for people."""
    if isinstance(tree, Leaf):
        return f"[{table.expression_names[tree.expression]}]"
    name = table.condition_names[tree.condition]
    return f"if {name}: {describe(tree.yes, table)} else: {describe(tree.no, table)}"
