"""Features of the objects that a cell belongs to: size, place, shape and rank among the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from arc_ttt.synthesis.cells.feature_set import NONE, Features, Numbers, colour_everywhere, constant, most_and_least
from arc_ttt.synthesis.images import Cells, Labels, Mask, colour_counts, label, padded

MAX_OBJECTS = 60
"""Object features of a grid with more parts are left empty: they cost much and say little."""


def labelled(grid: Cells, *, eight: bool, single: bool) -> tuple[Labels, int]:
    if not single:
        return label(grid != 0, eight=eight)
    labels = np.zeros(grid.shape, dtype=np.int32)
    count = 0
    for colour in colour_counts(grid)[1:].nonzero()[0] + 1:
        found, number = label(grid == colour, eight=eight)
        labels[found > 0] = found[found > 0] + count
        count += number
    return labels, count


_OBJECT_NUMBERS = (
    "size",
    "size rank",
    "size rank from below",
    "at edge",
    "holes",
    "height",
    "width",
    "rectangle",
    "copies",
    "of its colour",
    "symmetry",
    "colours",
    "from the left",
    "from the top",
)


def add_object_features(found: Features, grid: Cells, name: str, labels: Labels, count: int) -> None:
    table = np.full((count + 1, len(_OBJECT_NUMBERS)), NONE, dtype=np.int16)
    most, least = (np.full(count + 1, NONE, dtype=np.int8) for _ in range(2))
    if name == "object":
        found.expressions |= {f"{name} {how}": np.full(grid.shape, NONE, dtype=np.int8) for how in _TURNS}
    from_edge, order, in_box = constant(grid, NONE), constant(grid, NONE), constant(grid, 0)
    box_colour = colour_everywhere(grid, NONE)
    if 0 < count <= MAX_OBJECTS:
        windows = ndimage.find_objects(labels)
        masks = [labels[window] == number for number, window in enumerate(windows, 1)]
        for number, (window, mask) in enumerate(zip(windows, masks, strict=True), 1):
            cells = grid[window]
            most[number], least[number] = most_and_least(np.where(mask, cells, 0).astype(np.int8))
            _inside_object(window, mask, from_edge, order)
            in_box[window] += 1
            if name == "object":
                for how, turned in _turned(cells):
                    found.expressions[f"{name} {how}"][window] = turned
            box_colour[window] = most[number]
        table[1:] = _object_table(grid, windows, masks, most[1:])
    for column, number_name in enumerate(_OBJECT_NUMBERS):
        found.conditions[f"{name} {number_name}"] = table[:, column][labels]
    found.conditions |= {f"{name} depth": from_edge, f"{name} order": order, f"{name} boxes": in_box}
    found.conditions[f"{name} count"] = constant(grid, min(count, 12))
    found.expressions[f"{name} box colour"] = box_colour
    if name == "object":
        found.expressions["object colour"], found.expressions["object other colour"] = most[labels], least[labels]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = int(most[int(sizes.argmax()) + 1]) if count else NONE
    smallest = int(most[int(sizes.argmin()) + 1]) if count else NONE
    found.expressions[f"colour of largest {name}"] = colour_everywhere(grid, largest)
    found.expressions[f"colour of smallest {name}"] = colour_everywhere(grid, smallest)


_TURNS = ("mirrored columns", "mirrored rows", "turned by half", "transposed")


def _turned(cells: Cells) -> list[tuple[str, Cells]]:
    turned = [cells[:, ::-1], cells[::-1], cells[::-1, ::-1]]
    return list(zip(_TURNS, [*turned, cells.T] if cells.shape[0] == cells.shape[1] else turned, strict=False))


def _inside_object(window: tuple[slice, slice], mask: Mask, from_edge: Numbers, order: Numbers) -> None:
    rows, columns = mask.shape
    y, x = np.mgrid[:rows, :columns]
    depth = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x))
    from_edge[window][mask] = depth[mask]
    order[window][mask] = ((y + x) % 2)[mask]


def _object_table(
    grid: Cells, windows: list[tuple[slice, slice]], masks: list[Mask], colours: NDArray[np.int8]
) -> NDArray[np.int16]:
    sizes = np.array([int(mask.sum()) for mask in masks])
    levels = np.unique(sizes)
    shapes = [(mask.shape, mask.tobytes()) for mask in masks]
    rows = []
    for at, ((tall, wide), mask, size) in enumerate(zip(windows, masks, sizes, strict=True)):
        height, width = mask.shape
        rank = int(np.searchsorted(levels, size))
        edge = tall.start == 0 or wide.start == 0 or tall.stop == grid.shape[0] or wide.stop == grid.shape[1]
        symmetry = int((mask == mask[:, ::-1]).all()) + 2 * int((mask == mask[::-1]).all())
        shown = grid[tall, wide][mask]
        rows.append(
            (
                size,
                len(levels) - 1 - rank,
                rank,
                edge,
                0 if min(mask.shape) < 3 else label(padded(~mask, True), eight=False)[1] - 1,
                height,
                width,
                int(size == height * width) + 2 * int(height == width),
                shapes.count(shapes[at]),
                int((colours == colours[at]).sum()),
                symmetry,
                len(np.unique(shown)),
                sum(other[1].start < wide.start for other in windows),
                sum(other[0].start < tall.start for other in windows),
            )
        )
    return np.array(rows, dtype=np.int16)
