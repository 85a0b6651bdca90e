"""Primitives that also need the size of the output grid: tilings, counts, and placing an image on the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from arc_ttt.synthesis.images import Image, Size, colour_counts, embed, label, majority

WINDOWS = ("top left", "top right", "bottom left", "bottom right", "middle")


@dataclass(frozen=True, slots=True)
class SizedPrimitive:
    """A named function of an image and the size of the output grid."""

    name: str
    apply: Callable[[Image, Size], Image | None]
    cost: int = 10


def broadcast(image: Image, size: Size) -> Image | None:
    """Enlarge by whole factors to the output size."""
    rows, columns = image.cells.shape
    if size[0] % rows or size[1] % columns:
        return None
    return Image(image.cells.repeat(size[0] // rows, axis=0).repeat(size[1] // columns, axis=1), 0, 0)


def tile(image: Image, size: Size, *, how: str = "copies", anchored: bool = False) -> Image:
    """Repeat over the output: copies, or mirrored so that neighbours touch; anchored keeps the image's own place."""
    cells = image.cells
    if how == "mirrored":
        cells = np.block([[cells, cells[:, ::-1]], [cells[::-1], cells[::-1, ::-1]]])
    y, x = (image.y, image.x) if anchored else (0, 0)
    rows = (np.arange(size[0]) - y) % cells.shape[0]
    columns = (np.arange(size[1]) - x) % cells.shape[1]
    return Image(cells[rows][:, columns], 0, 0)


def place_in_output(image: Image, size: Size) -> Image | None:
    """On an empty grid of the output size, in its place."""
    return embed(image, size)


def colour_bar(image: Image, size: Size) -> Image | None:
    """Colours by falling count, read into the output row by row."""
    counts = colour_counts(image.cells)
    counts[0] = 0
    order = [int(colour) for colour in np.argsort(-counts, kind="stable") if counts[colour]]
    cells = np.zeros(size[0] * size[1], dtype=np.int8)
    order = order[: cells.size]
    cells[: len(order)] = order
    return Image(cells.reshape(size), 0, 0)


def count_cells(image: Image, size: Size, *, what: str, column_major: bool = False) -> Image | None:
    """As many cells of the majority colour as there are cells or components, read into the output row by row."""
    colour = majority(image.cells)
    if not colour:
        return None
    full = image.cells != 0
    count = int(full.sum()) if what == "cells" else label(full, eight=True)[1]
    if count > size[0] * size[1]:
        return None
    cells = np.zeros(size[0] * size[1], dtype=np.int8)
    cells[:count] = colour
    return Image(np.ascontiguousarray(cells.reshape(size[::-1]).T) if column_major else cells.reshape(size), 0, 0)


def reading_order(image: Image, size: Size, *, column_major: bool = False) -> Image | None:
    """Cells that are not background, read in order and written into the output in order."""
    cells = image.cells.T if column_major else image.cells
    colours = cells[cells != 0]
    if not 0 < len(colours) <= size[0] * size[1]:
        return None
    line = np.zeros(size[0] * size[1], dtype=np.int8)
    line[: len(colours)] = colours
    return Image(line.reshape(size), 0, 0)


def window(image: Image, size: Size, *, at: str) -> Image | None:
    """The part of the output's size at a corner or in the middle of a larger image."""
    rows, columns = image.cells.shape
    spare_y, spare_x = rows - size[0], columns - size[1]
    if min(spare_y, spare_x) < 0 or max(spare_y, spare_x) == 0:
        return None
    y = {"top": 0, "bottom": spare_y, "middle": spare_y // 2}[at.split()[0]]
    x = {"left": 0, "right": spare_x, "middle": spare_x // 2}[at.split()[-1]]
    return Image(np.ascontiguousarray(image.cells[y : y + size[0], x : x + size[1]]), image.y + y, image.x + x)


def colour_everywhere(image: Image, size: Size) -> Image | None:
    """The majority colour in all of the output."""
    colour = majority(image.cells)
    return Image(np.full(size, colour, dtype=np.int8), 0, 0) if colour else None


def histogram(image: Image, size: Size, *, side: str) -> Image | None:
    """A bar for each colour, as long as the colour has cells, longest bar first; bars stand on a side of the output."""
    counts = colour_counts(image.cells)
    counts[0] = 0
    order = [int(colour) for colour in np.argsort(-counts, kind="stable") if counts[colour]]
    across = side in ("top", "bottom")
    bars, length = (size[1], size[0]) if across else size
    if not 0 < len(order) <= bars or counts[order[0]] > length:
        return None
    cells = np.zeros((bars, length), dtype=np.int8)
    for bar, colour in enumerate(order):
        cells[bar, : counts[colour]] = colour
    if side in ("bottom", "right"):
        cells = cells[:, ::-1]
    return Image(np.ascontiguousarray(cells.T if across else cells), 0, 0)


def sized_primitives() -> list[SizedPrimitive]:
    """All primitives that need the size of the output."""
    return [
        SizedPrimitive("place_in_output", place_in_output, 2),
        SizedPrimitive("broadcast", broadcast),
        SizedPrimitive("tile", tile),
        SizedPrimitive("tile anchored", partial(tile, anchored=True)),
        SizedPrimitive("tile mirrored", partial(tile, how="mirrored")),
        *(SizedPrimitive(f"window {at}", partial(window, at=at)) for at in WINDOWS),
        SizedPrimitive("colour_everywhere", colour_everywhere, 5),
        *(SizedPrimitive(f"histogram {side}", partial(histogram, side=side)) for side in ("top", "left")),
        SizedPrimitive("colour_bar", colour_bar),
        SizedPrimitive("count cells", partial(count_cells, what="cells")),
        SizedPrimitive("count components", partial(count_cells, what="components")),
        SizedPrimitive("count components by column", partial(count_cells, what="components", column_major=True)),
        SizedPrimitive("reading_order", reading_order),
        SizedPrimitive("reading_order by column", partial(reading_order, column_major=True)),
    ]
