"""Views of divided inputs: panels as layers on each other, and one cell for each panel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arc_ttt.synthesis.cells.rules import View
from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import Cells, Image
from arc_ttt.synthesis.primitives.parts import Cutter, Parts, cutters, summary
from arc_ttt.tasks.grids import MAX_SIDE

MAX_LAYERS = 9


def panel_views(problem: Problem, seen: set[bytes]) -> Iterator[View]:
    """Views by every way to divide the inputs into panels that are not yet in `seen`."""
    for cutter in cutters():
        if "panels" in cutter.name:
            groups = [cutter.apply(Image(cells, 0, 0)) for cells in problem.inputs]
            whole = [parts for parts in groups if parts is not None]
            if len(whole) == len(groups):
                for view in (_layered(problem, cutter, whole), _summed_up(problem, cutter, whole)):
                    if view is not None and view.name.encode() not in seen:
                        seen.add(view.name.encode())
                        yield view


def _layered(problem: Problem, cutter: Cutter, groups: list[Parts]) -> View | None:
    """The first panel, with the others as layers."""
    number = len(groups[0])
    if number > MAX_LAYERS or any(len(parts) != number for parts in groups):
        return None
    if any(part.cells.shape != parts[0].cells.shape for parts in groups for part in parts):
        return None
    if any(parts[0].cells.shape != output.shape for parts, output in zip(groups, problem.outputs, strict=False)):
        return None
    layers = tuple({f"layer {n}": part.cells for n, part in enumerate(parts)} for parts in groups)
    return View(f"{cutter.name} as layers", tuple(parts[0].cells for parts in groups), layers)


def _summed_up(problem: Problem, cutter: Cutter, groups: list[Parts]) -> View | None:
    """The majority colour of every panel, with counts as layers."""
    images = [summary(parts, how="all") for parts in groups]
    pictures = tuple(image.cells for image in images if image is not None)
    if len(pictures) < len(images) or any(max(cells.shape) > MAX_SIDE for cells in pictures):
        return None
    if any(cells.shape != output.shape for cells, output in zip(pictures, problem.outputs, strict=False)):
        return None
    layers = tuple(_counts(parts, cells) for parts, cells in zip(groups, pictures, strict=True))
    return View(f"{cutter.name} summed up", pictures, layers)


def _counts(parts: Parts, picture: Cells) -> dict[str, Cells]:
    """How many cells (up to 9) and colours the panels have, and whether a panel has most or fewest; (H, W) each."""
    numbers = np.array([int((part.cells != 0).sum()) for part in parts])
    colours = np.array([len(np.unique(part.cells[part.cells != 0])) for part in parts])
    looks = [part.cells.tobytes() for part in parts]
    alike = np.array([looks.count(look) for look in looks])
    order = np.lexsort(([part.x for part in parts], [part.y for part in parts]))

    def lay(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Cells:
        return np.minimum(values[order], 9).astype(np.int8).reshape(picture.shape)

    return {
        "layer count": lay(numbers),
        "layer colours": lay(colours),
        "layer alike": lay(alike),
        "layer fullest": lay((numbers == numbers.max()).astype(np.int64)),
        "layer emptiest": lay((numbers == numbers.min()).astype(np.int64)),
    }
