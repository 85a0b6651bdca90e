"""The paper's 23 test-time augmenters: its table 3, and three tilings of its code.

Each maps a grid to a grid, the same way for every grid of a task, so that the task's rule is kept. Unlike the official
code, a translation moves inputs and outputs by the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arc_ttt.tasks.grids import MAX_SIDE, Example, Grid, freeze, grid_bytes

Augmenter = Callable[[Grid], "np.typing.NDArray[np.uint8]"]


def paper_augmenters(rng: np.random.Generator) -> dict[str, Augmenter]:
    """The 23 augmenters by name; the translation is drawn from `rng` (1 to 4 cells along each axis, cyclic)."""
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    turn: dict[str, Augmenter] = {
        "rot90": lambda g: np.rot90(g, 1),
        "rot270": lambda g: np.rot90(g, 3),
        "rot180": lambda g: np.rot90(g, 2),
        "flip-rows": lambda g: g[::-1],
        "flip-columns": lambda g: g[:, ::-1],
        "transpose": lambda g: g.T,
    }
    basic: dict[str, Augmenter] = {
        "reflect-up": lambda g: np.concatenate((g[::-1], g), axis=0),
        "reflect-down": lambda g: np.concatenate((g, g[::-1]), axis=0),
        "reflect-left": lambda g: np.concatenate((g[:, ::-1], g), axis=1),
        "reflect-right": lambda g: np.concatenate((g, g[:, ::-1]), axis=1),
        "translate": lambda g: np.roll(g, (rows, columns), axis=(0, 1)),
    }
    size: dict[str, Augmenter] = {
        "double": _double,
        "double-height": lambda g: g.repeat(2, axis=0),
        "double-width": lambda g: g.repeat(2, axis=1),
    }
    chain = {f"{name}-double": _then_double(step) for name, step in turn.items()}
    repeat: dict[str, Augmenter] = {
        "tile-down": lambda g: np.tile(g, (2, 1)),
        "tile-right": lambda g: np.tile(g, (1, 2)),
        "tile-both": lambda g: np.tile(g, (2, 2)),
    }
    return {**turn, **basic, **size, **chain, **repeat}


def _double(grid: Grid) -> np.typing.NDArray[np.uint8]:
    return grid.repeat(2, axis=0).repeat(2, axis=1)


def _then_double(step: Augmenter) -> Augmenter:
    return lambda grid: _double(step(grid))


def map_examples(examples: Sequence[Example], step: Augmenter) -> tuple[Example, ...] | None:
    """Apply `step` to every grid, or None when a side would exceed 30 (the paper's filter)."""
    mapped = tuple(Example(freeze(step(e.input)), freeze(step(e.output))) for e in examples)
    return mapped if all(max(e.input.shape + e.output.shape) <= MAX_SIDE for e in mapped) else None


def examples_identity(examples: Sequence[Example]) -> bytes:
    """A hashable identity of a list of examples, for ordered de-duplication."""
    return b"".join(grid_bytes(e.input) + grid_bytes(e.output) for e in examples)
