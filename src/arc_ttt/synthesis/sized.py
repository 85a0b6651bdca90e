"""Primitives that also need the size of the output grid: tilings, counts, and placing an image on the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from arc_ttt.synthesis.images import Image, Size, colour_counts, embed, label, majority


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


def sized_primitives() -> list[SizedPrimitive]:
    """All primitives that need the size of the output."""
    return [
        SizedPrimitive("place_in_output", place_in_output, 2),
        SizedPrimitive("broadcast", broadcast),
        SizedPrimitive("tile", tile),
        SizedPrimitive("tile anchored", partial(tile, anchored=True)),
        SizedPrimitive("tile mirrored", partial(tile, how="mirrored")),
        SizedPrimitive("colour_bar", colour_bar),
        SizedPrimitive("count cells", partial(count_cells, what="cells")),
        SizedPrimitive("count components", partial(count_cells, what="components")),
        SizedPrimitive("count components by column", partial(count_cells, what="components", column_major=True)),
        SizedPrimitive("reading_order", reading_order),
        SizedPrimitive("reading_order by column", partial(reading_order, column_major=True)),
    ]
