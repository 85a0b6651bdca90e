"""Primitives: functions from one image to one image. A primitive that does not apply returns None.

The families follow what solvers before found useful (icecuber 2020 for filter, fill, smear, halves, borders; Hodel's
DSL for mirrors and gravity). The choice among them was made on the 400 training tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from arc_ttt.synthesis.images import (
    MAX_CELLS,
    Image,
    Mask,
    colour_counts,
    crop_to,
    enclosed,
    fill_towards,
    like,
    majority,
    padded,
)
from arc_ttt.synthesis.primitives.scaling import (
    enlarge,
    enlarge_by_colours,
    half,
    join_mirror,
    outer_product,
    outer_product_majority,
    overlay_mirror,
    shrink,
)


@dataclass(frozen=True, slots=True)
class Primitive:
    """A named function of one image. cost: what it adds to a program's depth, 10 for an ordinary step."""

    name: str
    apply: Callable[[Image], Image | None]
    cost: int = 10


def keep_colour(image: Image, colour: int) -> Image | None:
    """Only the cells of `colour`."""
    kept = np.where(image.cells == colour, image.cells, 0)
    return like(image, kept) if kept.any() else None


def drop_colour(image: Image, colour: int) -> Image:
    """Cells of `colour` become background."""
    return like(image, np.where(image.cells == colour, 0, image.cells))


def keep_majority(image: Image) -> Image | None:
    """Only the most frequent colour."""
    return keep_colour(image, majority(image.cells) or -1)


def keep_minority(image: Image) -> Image | None:
    """Only the rarest colour."""
    counts = colour_counts(image.cells)
    counts[0] = 0
    present = counts.nonzero()[0]
    return keep_colour(image, int(present[counts[present].argmin()])) if len(present) > 1 else None


def crop(image: Image) -> Image | None:
    """The bounding box of all that is not background."""
    return crop_to(image, image.cells != 0)


def to_origin(image: Image) -> Image:
    """Move to the top left corner of the grid."""
    return Image(image.cells, 0, 0)


def squeeze(image: Image) -> Image | None:
    """Remove rows and columns that are all background."""
    full = image.cells != 0
    return Image(np.ascontiguousarray(image.cells[full.any(axis=1)][:, full.any(axis=0)]), 0, 0) if full.any() else None


def merge_repeats(image: Image) -> Image:
    """Keep one of neighbouring rows (and columns) that are equal."""
    cells = image.cells
    rows = np.concatenate(([True], (cells[1:] != cells[:-1]).any(axis=1)))
    cells = cells[rows]
    columns = np.concatenate(([True], (cells[:, 1:] != cells[:, :-1]).any(axis=0)))
    return Image(np.ascontiguousarray(cells[:, columns]), 0, 0)


def fill(image: Image, *, eight: bool) -> Image | None:
    """Enclosed background takes the majority colour."""
    inside = enclosed(image.cells != 0, eight=eight)
    return like(image, np.where(inside, majority(image.cells), image.cells)) if inside.any() else None


def interior(image: Image, *, eight: bool) -> Image | None:
    """Enclosed background only, in the majority colour."""
    inside = enclosed(image.cells != 0, eight=eight)
    return like(image, np.where(inside, majority(image.cells), 0)) if inside.any() else None


def outside(image: Image) -> Image | None:
    """Background that is not enclosed, in the majority colour."""
    free = (image.cells == 0) & ~enclosed(image.cells != 0, eight=False)
    return like(image, np.where(free, majority(image.cells) or 1, 0)) if free.any() else None


def border(image: Image) -> Image | None:
    """Cells that touch the background around the image, or the image's edge."""
    full = image.cells != 0
    free = padded(~full & ~enclosed(full, eight=True), True)
    near = free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
    return like(image, np.where(near, image.cells, 0))


def inner(image: Image) -> Image | None:
    """Cells all of whose eight neighbours are not background."""
    deep = ~grown(padded(image.cells == 0, True), eight=True)[1:-1, 1:-1]
    return like(image, np.where(deep, image.cells, 0)) if deep.any() else None


def grown(mask: Mask, *, eight: bool) -> Mask:
    """`mask` and all cells next to it, over four or eight neighbours; same shape."""
    wide = padded(mask, False)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    if eight:
        return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return rows[:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def outline(image: Image) -> Image | None:
    """A one-cell line in colour 1 around all that is not background, on a grid larger by one on each side."""
    if (image.cells.shape[0] + 2) * (image.cells.shape[1] + 2) > MAX_CELLS:
        return None
    full = padded(image.cells != 0, False)
    return Image((grown(full, eight=True) & ~full).astype(np.int8), image.y - 1, image.x - 1)


def halo(image: Image, *, eight: bool) -> Image | None:
    """Background next to something takes colour 1, all else is background; same grid."""
    full = image.cells != 0
    ring = grown(full, eight=eight) & ~full
    return like(image, ring) if ring.any() else None


def invert(image: Image) -> Image:
    """Background takes the majority colour, all else becomes background."""
    return like(image, np.where(image.cells == 0, majority(image.cells) or 1, 0))


def hull(image: Image) -> Image | None:
    """The whole rectangle in the majority colour."""
    colour = majority(image.cells)
    return like(image, np.full_like(image.cells, colour)) if colour else None


def hull_box(image: Image) -> Image | None:
    """The bounding box of what is not background, filled with the majority colour."""
    cropped = crop(image)
    return hull(cropped) if cropped else None


def background_in_box(image: Image) -> Image | None:
    """Background inside the bounding box of the rest, in colour 1."""
    cropped = crop(image)
    return like(cropped, cropped.cells == 0) if cropped else None


def rigid(image: Image, number: int) -> Image:
    """One of the seven turns and mirrors of the image, in its place: 1 to 3 turn, 4 transposes, 5 to 7 turn that."""
    return like(image, np.rot90(image.cells if number < 4 else image.cells.T, number % 4))


def smear(image: Image, directions: tuple[str, ...]) -> Image:
    """Colours run over background until they meet something."""
    cells = image.cells
    for direction in directions:
        cells = np.where(cells == 0, fill_towards(image.cells, direction), cells)
    return like(image, cells)


def connect(image: Image, axes: tuple[str, ...]) -> Image:
    """Background between two cells of one colour in a line takes that colour."""
    cells = image.cells
    for axis in axes:
        there, back = {
            "row": ("right", "left"),
            "column": ("down", "up"),
            "diagonal": ("down-right", "up-left"),
            "anti-diagonal": ("down-left", "up-right"),
        }[axis]
        first, second = fill_towards(image.cells, there), fill_towards(image.cells, back)
        cells = np.where((cells == 0) & (first == second), first, cells)
    return like(image, cells)


def spread(image: Image) -> Image | None:
    """Every background cell takes the colour of the nearest other cell."""
    if not image.cells.any():
        return None
    rows, columns = ndimage.distance_transform_edt(image.cells == 0, return_distances=False, return_indices=True)
    return like(image, image.cells[rows, columns])


def gravity(image: Image, direction: str) -> Image:
    """Single cells fall until they meet others or the edge."""
    cells = image.cells if direction in ("down", "up") else image.cells.T
    empty_first = cells != 0 if direction in ("down", "right") else cells == 0
    fallen = np.take_along_axis(cells, np.argsort(empty_first, axis=0, kind="stable"), axis=0)
    return like(image, fallen if direction in ("down", "up") else fallen.T)


def swap_colours(image: Image) -> Image | None:
    """Exchange the two colours of an image that has exactly two."""
    present = colour_counts(image.cells)[1:].nonzero()[0] + 1
    if len(present) != 2:
        return None
    return like(image, np.where(image.cells == 0, 0, int(present.sum()) - image.cells))


def move(image: Image, dy: int, dx: int) -> Image:
    """Shift by one cell."""
    return Image(image.cells, image.y + dy, image.x + dx)


def drop_noise(image: Image) -> Image | None:
    """Remove single cells (eight neighbours, any colour)."""
    full = image.cells != 0
    wide = padded(full, False).astype(np.int8)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    kept = np.where(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] > 1, image.cells, 0)
    return like(image, kept) if kept.any() else None


def edge_line(image: Image, side: str) -> Image | None:
    """The first or last row or column."""
    cells = image.cells
    part = {"top": cells[:1], "bottom": cells[-1:], "left": cells[:, :1], "right": cells[:, -1:]}[side]
    return Image(np.ascontiguousarray(part), 0, 0) if part.size < cells.size else None


def full_lines(image: Image) -> Image | None:
    """Only rows and columns that are of one colour from end to end."""
    cells = image.cells
    rows = (cells == cells[:, :1]).all(axis=1)[:, None]
    columns = (cells == cells[:1]).all(axis=0)[None]
    kept = np.where(rows | columns, cells, 0)
    return like(image, kept) if kept.any() else None


def marked_box(image: Image) -> Image | None:
    """Without its outermost ring of cells."""
    cells = image.cells
    if min(cells.shape) < 3:
        return None
    return Image(np.ascontiguousarray(cells[1:-1, 1:-1]), image.y + 1, image.x + 1)


def sort_lines(image: Image, axis: str) -> Image:
    """Rows (or columns) ordered by how many cells are not background, fewest first."""
    cells = image.cells if axis == "rows" else image.cells.T
    ordered = cells[np.argsort((cells != 0).sum(axis=1), kind="stable")]
    return like(image, ordered if axis == "rows" else ordered.T)


def bounce(image: Image) -> Image | None:
    """A diagonal line from a single cell that is mirrored at the side edges, upwards."""
    places = np.argwhere(image.cells != 0)
    if len(places) != 1:
        return None
    (row, column), (_, columns) = places[0], image.cells.shape
    if columns < 2:
        return None
    cells = image.cells.copy()
    step = 1 if column < columns - 1 else -1
    for y in range(int(row) - 1, -1, -1):
        column += step
        if not 0 <= column < columns:
            step, column = -step, column - 2 * step
        cells[y, column] = cells[row, places[0][1]]
    return like(image, cells)


STRAIGHT = ("down", "up", "right", "left")
DIAGONAL = ("down-right", "up-left", "down-left", "up-right")
SMEARS: tuple[tuple[str, ...], ...] = (
    *((direction,) for direction in (*STRAIGHT, *DIAGONAL)),
    ("right", "left"),
    ("down", "up"),
    STRAIGHT,
    DIAGONAL[:2],
    DIAGONAL[2:],
    DIAGONAL,
    STRAIGHT + DIAGONAL,
)
CONNECTS: tuple[tuple[str, ...], ...] = (("row",), ("column",), ("row", "column"), ("diagonal", "anti-diagonal"))


def unary_primitives(colours: tuple[int, ...]) -> list[Primitive]:
    """All primitives of one image; `colours` are the arguments that keep_colour and drop_colour may take."""
    plain: list[tuple[Callable[[Image], Image | None], int]] = [
        (crop, 5),
        (to_origin, 3),
        (keep_majority, 10),
        (keep_minority, 10),
        (squeeze, 10),
        (merge_repeats, 10),
        (outside, 10),
        (border, 10),
        (inner, 10),
        (outline, 10),
        (invert, 10),
        (hull, 10),
        (hull_box, 10),
        (background_in_box, 10),
        (spread, 10),
        (swap_colours, 10),
        (drop_noise, 10),
        (full_lines, 10),
        (marked_box, 10),
        (enlarge_by_colours, 10),
        (shrink, 10),
        (outer_product_majority, 10),
        (bounce, 10),
    ]
    found = [Primitive(f"keep_colour {colour}", partial(keep_colour, colour=colour)) for colour in colours]
    found += [Primitive(f"drop_colour {colour}", partial(drop_colour, colour=colour)) for colour in colours]
    found += [Primitive(function.__name__, function, cost) for function, cost in plain]
    found += [Primitive(f"rigid {number}", partial(rigid, number=number)) for number in range(1, 8)]
    found += [Primitive(f"smear {'+'.join(ways)}", partial(smear, directions=ways)) for ways in SMEARS]
    found += [Primitive(f"connect {'+'.join(axes)}", partial(connect, axes=axes)) for axes in CONNECTS]
    for name, function in (("fill", fill), ("interior", interior), ("halo", halo)):
        for eight in (False, True):
            found.append(Primitive(f"{name} {8 if eight else 4}", partial(function, eight=eight)))
    found += [
        Primitive(f"half {side}", partial(half, side=side)) for side in ("left", "right", "top", "bottom", "first")
    ]
    found += [Primitive(f"edge_line {s}", partial(edge_line, side=s)) for s in ("left", "right", "top", "bottom")]
    found += [Primitive(f"gravity {way}", partial(gravity, direction=way)) for way in STRAIGHT]
    found += [
        Primitive(f"overlay_mirror {how}", partial(overlay_mirror, how=how))
        for how in ("columns", "rows", "turn", "both", "diagonals", "all")
    ]
    joins = ("right", "left", "below", "above", "quarters", "quarters reversed", "copy right", "copy below", "turns")
    found += [Primitive(f"join {how}", partial(join_mirror, how=how)) for how in joins]
    found += [Primitive(f"enlarge {factor}", partial(enlarge, factor=factor)) for factor in (2, 3)]
    found += [Primitive(f"sort_lines {axis}", partial(sort_lines, axis=axis)) for axis in ("rows", "columns")]
    for inverted in (False, True):
        name = "outer_product inverted" if inverted else "outer_product"
        found.append(Primitive(name, partial(outer_product, inverted=inverted)))
    found += [
        Primitive(f"move {name}", partial(move, dy=dy, dx=dx))
        for name, (dy, dx) in {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}.items()
    ]
    return found
