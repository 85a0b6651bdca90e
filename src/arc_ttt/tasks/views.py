"""View: a symmetry of the square, a permutation of colours and an order of demonstrations, with exact undo.

Views serve twice: they multiply test-time training sequences, and each is a separate look at a test input whose answer
is undone before the vote. Augmenters that change sizes have no undo; they are in `adapt.augmenters`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from arc_ttt.tasks.grids import COLOURS, Example, Grid, Task, freeze

DIHEDRALS = ("identity", "rot90", "rot180", "rot270", "transpose", "flip-rows", "anti-transpose", "flip-columns")
"""Index k: transpose if k >= 4, then k % 4 quarter turns counter-clockwise."""

IDENTITY_COLOURS = tuple(range(COLOURS))


def dihedral(grid: Grid, index: int) -> Grid:
    """Apply symmetry `index` (see DIHEDRALS) to an (H, W) grid; the result is (H, W) or (W, H)."""
    turned = grid.T if index >= 4 else grid
    return freeze(np.rot90(turned, index % 4))


def undo_dihedral(grid: Grid, index: int) -> Grid:
    """The grid whose `dihedral(..., index)` is `grid`."""
    turned = np.rot90(grid, -(index % 4))
    return freeze(turned.T if index >= 4 else turned)


def turns_sides(index: int) -> bool:
    """Whether symmetry `index` exchanges rows and columns."""
    return (index % 2 == 1) != (index >= 4)


@dataclass(frozen=True, slots=True)
class View:
    """One look at a task. `apply` and `undo` are exact inverses on grids.

    Args:
        dihedral: index into DIHEDRALS.
        colours: what each colour becomes; a permutation of 0 to 9.
        order: indices of the demonstrations shown, in order; some may be left out.
    """

    dihedral: int
    colours: tuple[int, ...]
    order: tuple[int, ...]

    def apply(self, grid: Grid) -> Grid:
        return freeze(np.asarray(self.colours, dtype=np.uint8)[dihedral(grid, self.dihedral)])

    def undo(self, grid: Grid) -> Grid:
        inverse = np.argsort(np.asarray(self.colours)).astype(np.uint8)
        return freeze(inverse[undo_dihedral(grid, self.dihedral)])

    def apply_example(self, example: Example) -> Example:
        return Example(self.apply(example.input), self.apply(example.output))

    def demonstrations(self, task: Task) -> tuple[Example, ...]:
        """The demonstrations of `task` that this view shows, seen through it."""
        return tuple(self.apply_example(task.train[index]) for index in self.order)

    @property
    def group(self) -> str:
        """Name of the geometric part, by which hierarchical voting groups answers."""
        return DIHEDRALS[self.dihedral]


def identity_view(demonstrations: int) -> View:
    return View(0, IDENTITY_COLOURS, tuple(range(demonstrations)))


def random_colours(rng: np.random.Generator, *, keep_black: bool = False) -> tuple[int, ...]:
    """A uniform permutation of the ten colours; with `keep_black`, of the nine others."""
    if keep_black:
        return (0, *(int(c) + 1 for c in rng.permutation(COLOURS - 1)))
    return tuple(int(c) for c in rng.permutation(COLOURS))


def sample_views(
    count: int, demonstrations: int, rng: np.random.Generator, *, colours: bool = True, keep_black: bool = False
) -> list[View]:
    """`count` views walking through the 8 symmetries; the first is the identity, the others permute colours and order.

    keep_black: colour 0 stays, for adapters that were trained so.

    Source: ours; 8 symmetries x colour and order variants as in the 2024 and 2025 winning kernels.
    """
    views = [identity_view(demonstrations)]
    for number in range(1, count):
        palette = random_colours(rng, keep_black=keep_black) if colours else IDENTITY_COLOURS
        order = tuple(int(i) for i in rng.permutation(demonstrations))
        views.append(View(number % 8, palette, order))
    return views[:count]


def paper_views(demonstrations: int, rng: np.random.Generator, *, permutations: int = 2) -> list[View]:
    """The paper's queries of one test input: leave-one-out prompts under the identity and five symmetries.

    Identity: each of the K leave-one-out prompts in its own order and in `permutations` random orders, without
    repeats. Transpose, two flips, quarter and half turn: `permutations` random leave-one-out prompts each.
    Source: the paper, section 4.1 (its code draws one per symmetry; the text says n = 2). With a single demonstration
    nothing is left out.
    """

    def leave_one(index: int) -> list[int]:
        kept = [i for i in range(demonstrations) if i != index]
        return kept if kept else list(range(demonstrations))

    def shuffled(kept: list[int]) -> tuple[int, ...]:
        return tuple(kept[int(i)] for i in rng.permutation(len(kept)))

    views: dict[View, None] = {}
    for left_out in range(max(1, demonstrations)):
        kept = leave_one(left_out)
        views[View(0, IDENTITY_COLOURS, tuple(kept))] = None
        for _ in range(permutations):
            views[View(0, IDENTITY_COLOURS, shuffled(kept))] = None
    for symmetry in ("transpose", "flip-rows", "flip-columns", "rot90", "rot180"):
        for _ in range(permutations):
            kept = leave_one(int(rng.integers(max(1, demonstrations))))
            views[View(DIHEDRALS.index(symmetry), IDENTITY_COLOURS, shuffled(kept))] = None
    return list(views)


def task_rng(seed: int, task_id: str, purpose: str) -> np.random.Generator:
    """A generator that depends on these three alone: not on the order of work, the worker or PYTHONHASHSEED."""
    digest = hashlib.sha256(f"{seed}\0{task_id}\0{purpose}".encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def purpose_of(purpose: str, number: int) -> str:
    """The purpose of a generator in training `number` of a task."""
    return f"{purpose} of {number}" if number else purpose
