"""What a cell-rule may look at: for every cell of a grid, colours (expressions) and numbers (conditions).

Expressions hold a colour 0 to 9, or -1 where there is none; a rule may answer with one. Conditions are small numbers
that a rule may only compare with constants. Background is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from arc_ttt.synthesis.cells.feature_set import NONE, Features, Numbers, colour_everywhere, constant, most_and_least
from arc_ttt.synthesis.cells.object_features import MAX_OBJECTS, add_object_features, labelled
from arc_ttt.synthesis.images import (
    DIRECTIONS,
    Cells,
    Image,
    bounding_box,
    colour_counts,
    enclosed,
    fill_towards,
    label,
    majority,
    shifted,
)
from arc_ttt.synthesis.primitives.parts import panels
from arc_ttt.synthesis.primitives.repair import HIDDEN, by_period, by_symmetry


def features(grid: Cells, layers: dict[str, Cells], colours: Sequence[int], hidden: int) -> Features:
    """All features of `grid`, (H, W).

    Args:
        layers: other pictures of the same size, added as expressions.
        colours: for these, features by colour are made.
        hidden: the colour that mosaic repair takes as hidden.
    """
    base = _features(grid.tobytes(), grid.shape, tuple(colours), hidden)
    return Features({"own": grid, **layers, **base.expressions}, base.conditions)


@lru_cache(maxsize=64)
def _features(raw: bytes, shape: tuple[int, int], colours: tuple[int, ...], hidden: int) -> Features:
    grid = np.frombuffer(raw, dtype=np.int8).reshape(shape)
    found = Features()
    _neighbours(found, grid)
    _rays(found, grid)
    _mirrors(found, grid, hidden)
    _lines(found, grid)
    _positions(found, grid)
    for colour in colours:
        _by_colour(found, grid, colour)
    _background(found, grid)
    _panels(found, grid)
    for name, eight, single in (("object", True, False), ("part", True, True), ("part4", False, True)):
        add_object_features(found, grid, name, *labelled(grid, eight=eight, single=single))
    return found


def _neighbours(found: Features, grid: Cells) -> None:
    full = (grid != 0).astype(np.int8)
    straight, diagonal, equal = constant(grid, 0), constant(grid, 0), constant(grid, 0)
    for name, (dy, dx) in DIRECTIONS.items():
        beside = shifted(grid, -dy, -dx, NONE)
        found.expressions[f"neighbour {name}"] = beside
        found.expressions[f"second {name}"] = shifted(grid, -2 * dy, -2 * dx, NONE)
        if dy == 0 or dx == 0:
            straight += shifted(full, -dy, -dx)
            equal += beside == grid
        else:
            diagonal += shifted(full, -dy, -dx)
    found.conditions |= {"straight neighbours": straight, "diagonal neighbours": diagonal, "equal neighbours": equal}
    found.conditions["neighbours"] = straight + diagonal
    _blocks(found, grid)


def _blocks(found: Features, grid: Cells) -> None:
    """Whether a cell lies in a square of one colour, 2 or 3 cells wide."""
    rows, columns = grid.shape
    for side in (2, 3):
        if min(rows, columns) < side:
            found.conditions[f"in block of {side}"] = constant(grid, 0)
            continue
        corner = grid[: rows - side + 1, : columns - side + 1]
        steps = [(y, x) for y in range(side) for x in range(side)]
        parts = [(slice(y, rows - side + 1 + y), slice(x, columns - side + 1 + x)) for y, x in steps]
        equal = np.logical_and.reduce([grid[part] == corner for part in parts])
        covered = constant(grid, 0)
        for part in parts:
            covered[part] |= equal
        found.conditions[f"in block of {side}"] = covered


def _rays(found: Features, grid: Cells) -> None:
    seen: dict[str, Cells] = {}
    for name, (dy, dx) in DIRECTIONS.items():
        back = next(other for other, step in DIRECTIONS.items() if step == (-dy, -dx))
        met = shifted(fill_towards(grid, back), -dy, -dx)
        seen[name] = np.where(met == 0, NONE, met).astype(np.int8)
        found.expressions[f"seen {name}"] = seen[name]
    for name, first, second in (
        ("row", "right", "left"),
        ("column", "down", "up"),
        ("diagonal", "down-right", "up-left"),
        ("anti-diagonal", "up-right", "down-left"),
    ):
        between = (seen[first] == seen[second]) & (seen[first] != NONE)
        found.conditions[f"between in {name}"] = between.astype(np.int16)
        found.expressions[f"between in {name}"] = np.where(between, seen[first], NONE).astype(np.int8)
    found.conditions["directions that see"] = sum((met != NONE).astype(np.int16) for met in seen.values())


def _mirrors(found: Features, grid: Cells, hidden: int) -> None:
    found.expressions["mirrored columns"] = grid[:, ::-1]
    found.expressions["mirrored rows"] = grid[::-1]
    found.expressions["turned by half"] = grid[::-1, ::-1]
    if grid.shape[0] == grid.shape[1]:
        found.expressions["transposed"] = grid.T
        found.expressions["anti-transposed"] = grid[::-1, ::-1].T
        found.expressions["turned left"] = np.rot90(grid)
        found.expressions["turned right"] = np.rot90(grid, 3)
    covered = np.where(grid == hidden, HIDDEN, grid).astype(np.int8)
    found.expressions["by symmetry"] = by_symmetry(covered)
    found.expressions["by period"] = by_period(covered)


def _lines(found: Features, grid: Cells) -> None:
    rows, columns = grid.shape
    most, least = most_and_least(grid)
    found.expressions["most frequent colour"] = colour_everywhere(grid, most)
    found.expressions["rarest colour"] = colour_everywhere(grid, least)
    shown = colour_counts(grid)
    found.conditions["colours"] = constant(grid, int((shown[1:] > 0).sum()))
    row_most = np.array([majority(line) or NONE for line in grid], dtype=np.int8)
    column_most = np.array([majority(line) or NONE for line in grid.T], dtype=np.int8)
    found.expressions["most in row"] = np.repeat(row_most[:, None], columns, axis=1)
    found.expressions["most in column"] = np.repeat(column_most[None], rows, axis=0)
    found.expressions["row start"] = np.repeat(grid[:, :1], columns, axis=1)
    found.expressions["row end"] = np.repeat(grid[:, -1:], columns, axis=1)
    found.expressions["column start"] = np.repeat(grid[:1], rows, axis=0)
    found.expressions["column end"] = np.repeat(grid[-1:], rows, axis=0)
    full = grid != 0
    one_row, one_column = (grid == grid[:, :1]).all(axis=1), (grid == grid[:1]).all(axis=0)
    for name, by_row, by_column in (
        ("filled", full.sum(axis=1), full.sum(axis=0)),
        ("uniform", one_row, one_column),
        ("rank", _rank(-full.sum(axis=1)), _rank(-full.sum(axis=0))),
    ):
        found.conditions[f"{name} in row"] = np.repeat(by_row[:, None], columns, axis=1).astype(np.int16)
        found.conditions[f"{name} in column"] = np.repeat(by_column[None], rows, axis=0).astype(np.int16)
    for name, direction in (("down", "down"), ("up", "up"), ("right", "right"), ("left", "left")):
        cells = grid if name in ("down", "up") else grid.T
        last = cells != 0 if direction in ("down", "right") else cells == 0
        fallen = np.take_along_axis(cells, np.argsort(last, axis=0, kind="stable"), axis=0)
        found.expressions[f"fallen {name}"] = fallen if name in ("down", "up") else fallen.T


def _rank(values: NDArray[np.intp]) -> NDArray[np.intp]:
    """0 for the smallest value; equal values in order."""
    return np.argsort(np.argsort(values, kind="stable"))


def _positions(found: Features, grid: Cells) -> None:
    rows, columns = grid.shape
    y, x = np.mgrid[:rows, :columns].astype(np.int16)
    from_edge_y, from_edge_x = np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x)
    found.conditions |= {
        "from top": y,
        "from left": x,
        "from bottom": (rows - 1 - y).astype(np.int16),
        "from right": (columns - 1 - x).astype(np.int16),
        "from edge": np.minimum(from_edge_y, from_edge_x),
        "from top or bottom": from_edge_y,
        "from left or right": from_edge_x,
        "on diagonal": (y == x).astype(np.int16),
        "on anti-diagonal": (y + x == columns - 1).astype(np.int16),
    }
    for name, value in (("row", y), ("column", x), ("row + column", x + y), ("row - column", y - x)):
        found.conditions[f"{name} mod 2"] = value % 2
        found.conditions[f"{name} mod 3"] = value % 3
    found.conditions["column from right mod 2"] = ((columns - 1 - x) % 2).astype(np.int16)
    found.conditions["row from bottom mod 2"] = ((rows - 1 - y) % 2).astype(np.int16)
    if (grid != 0).any():
        distance, (near_y, near_x) = ndimage.distance_transform_cdt(grid == 0, "chessboard", return_indices=True)
        found.expressions["nearest"] = grid[near_y, near_x]
        found.conditions["distance"] = np.minimum(distance, 12).astype(np.int16)
    else:
        found.expressions["nearest"] = colour_everywhere(grid, NONE)
        found.conditions["distance"] = constant(grid, 0)


def _by_colour(found: Features, grid: Cells, colour: int) -> None:
    mask = grid == colour
    rows, columns = grid.shape
    whole = mask.astype(np.int16)
    above = (np.cumsum(whole, axis=0) - whole > 0).astype(np.int16)
    below = (np.cumsum(whole[::-1], axis=0)[::-1] - whole > 0).astype(np.int16)
    left = (np.cumsum(whole, axis=1) - whole > 0).astype(np.int16)
    right = (np.cumsum(whole[:, ::-1], axis=1)[:, ::-1] - whole > 0).astype(np.int16)
    found.conditions[f"sides with {colour}"] = above + 2 * below + 4 * left + 8 * right
    found.conditions[f"number of sides with {colour}"] = above + below + left + right
    found.conditions[f"{colour} in row"] = np.repeat(whole.sum(axis=1, dtype=np.int16)[:, None], columns, axis=1)
    found.conditions[f"{colour} in column"] = np.repeat(whole.sum(axis=0, dtype=np.int16)[None], rows, axis=0)
    found.conditions[f"enclosed by {colour}"] = enclosed(mask, eight=False).astype(np.int16)
    found.conditions[f"enclosed by {colour}, 8"] = enclosed(mask, eight=True).astype(np.int16)
    inside = constant(grid, 0)
    box = bounding_box(mask)
    if box:
        inside[box[0] : box[1], box[2] : box[3]] = 1
    found.conditions[f"in box of {colour}"] = inside
    straight, diagonal = constant(grid, 0), constant(grid, 0)
    for dy, dx in DIRECTIONS.values():
        near = shifted(mask.astype(np.int8), -dy, -dx)
        if dy == 0 or dx == 0:
            straight += near
        else:
            diagonal += near
    found.conditions[f"straight neighbours {colour}"] = straight
    found.conditions[f"neighbours {colour}"] = straight + diagonal
    for name, other in (("object", grid != 0), ("background", grid == 0)):
        labels, count = label(other, eight=name == "object")
        source = mask if name == "object" else straight > 0
        touched = np.zeros(count + 1, dtype=np.int16)
        np.add.at(touched, labels[source], 1)
        touched[0] = 0
        found.conditions[f"{name} with {colour}"] = np.minimum(touched, 1)[labels]
        found.conditions[f"number of {colour} of {name}"] = touched[labels]


def _background(found: Features, grid: Cells) -> None:
    for name, eight in (("", False), (", 8", True)):
        labels, count = label(grid == 0, eight=eight)
        inside, size, box, ring = (np.zeros(count + 1, dtype=np.int16) for _ in range(4))
        around = np.full(count + 1, NONE, dtype=np.int8)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        windows = ndimage.find_objects(labels) if count <= MAX_OBJECTS else []
        for number, (tall, wide) in enumerate(windows, 1):
            if tall.start == 0 or wide.start == 0 or tall.stop == grid.shape[0] or wide.stop == grid.shape[1]:
                continue
            height, width = tall.stop - tall.start, wide.stop - wide.start
            inside[number], size[number] = 1, sizes[number]
            box[number] = 1 + (sizes[number] == height * width) + (height == width)
            edge = grid[tall.start - 1 : tall.stop + 1, wide.start - 1 : wide.stop + 1]
            around[number] = majority(edge) or NONE
            ring[number] = len(np.unique(edge[edge != 0]))
        found.conditions[f"enclosed{name}"] = inside[labels]
        found.conditions[f"enclosed size{name}"] = size[labels]
        found.conditions[f"enclosed box{name}"] = box[labels]
        found.conditions[f"enclosed rank{name}"] = _dense_rank(size)[labels]
        found.expressions[f"enclosing colour{name}"] = around[labels]


def _dense_rank(values: Numbers) -> Numbers:
    """0 for zeros; 1 for the largest, 2 for the next."""
    levels = np.unique(values[values > 0])
    ranks = len(levels) - np.searchsorted(levels, values)
    return np.where(values > 0, ranks, 0).astype(np.int16)


def _panels(found: Features, grid: Cells) -> None:
    """By panel, where separators divide the grid into panels of one size; else nothing."""
    parts = panels(Image(grid, 0, 0))
    if parts is None or len({part.cells.shape for part in parts}) > 1:
        return
    tall, wide = parts[0].cells.shape
    tops, lefts = sorted({part.y for part in parts}), sorted({part.x for part in parts})
    layers = np.stack([part.cells for part in parts])
    numbers = (layers != 0).sum(axis=(1, 2))
    colours = np.array([len(np.unique(layer[layer != 0])) for layer in layers])
    looks = [layer.tobytes() for layer in layers]
    values = {
        "row": [tops.index(part.y) for part in parts],
        "column": [lefts.index(part.x) for part in parts],
        "cells": numbers,
        "rank": _dense_rank(numbers.astype(np.int16)),
        "rank from below": _dense_rank((numbers.max() + 1 - numbers).astype(np.int16)),
        "colours": colours,
        "copies": [looks.count(look) for look in looks],
    }
    pictures = {
        "of fullest": layers[int(numbers.argmax())],
        "of most coloured": layers[int(colours.argmax())],
        "of any": layers.max(axis=0),
    }
    order = np.arange(len(parts)).reshape(len(tops), len(lefts))
    at, row_in, column_in = (constant(grid, NONE) for _ in range(3))
    for number, part in enumerate(parts):
        window = slice(part.y, part.y + tall), slice(part.x, part.x + wide)
        at[window] = number
        row_in[window], column_in[window] = np.mgrid[:tall, :wide]
    inside = at >= 0
    for name, of_panel in values.items():
        found.conditions[f"panel {name}"] = np.where(inside, np.asarray(of_panel)[at], NONE).astype(np.int16)
    found.conditions |= {"row in panel": row_in, "column in panel": column_in}
    main = np.array([majority(layer) or NONE for layer in layers])
    found.expressions["panel colour"] = np.where(inside, main[at], NONE).astype(np.int8)
    for name, picture in pictures.items():
        shown = np.where(inside, picture[row_in, column_in], NONE)
        found.expressions[f"panel cell {name}"] = shown.astype(np.int8)
        if picture.shape == order.shape:
            shown = np.where(inside, picture.ravel()[at], NONE)
            found.expressions[f"panel's own cell {name}"] = shown.astype(np.int8)
