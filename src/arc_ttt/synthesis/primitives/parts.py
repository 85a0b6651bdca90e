"""Cutting an image into parts, choosing among the parts, and putting parts together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from arc_ttt.synthesis.images import MAX_CELLS, Image, Mask, colour_counts, compose, enclosed, label, majority, padded

MAX_PARTS = 40
"""An image that falls into more parts is not cut: such programs rarely generalize."""
Parts = tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Cutter:
    """A named function from an image to its parts, in reading order (layers of colours in that of colours); None when
    there are none or too many."""

    name: str
    apply: Callable[[Image], Parts | None]


@dataclass(frozen=True, slots=True)
class Joiner:
    """A named function from parts to one image."""

    name: str
    apply: Callable[[Parts], Image | None]


def _parts_of(image: Image, mask: Mask, *, eight: bool, show: NDArray[np.int8]) -> list[Image]:
    labels, count = label(mask, eight=eight)
    if count > MAX_PARTS:
        return []
    parts = []
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        cells = np.where(labels[window] == number, show[window], 0).astype(np.int8)
        parts.append(Image(cells, image.y + window[0].start, image.x + window[1].start))
    return parts


def objects(image: Image, *, eight: bool) -> Parts | None:
    """Connected parts of any colours."""
    return tuple(_parts_of(image, image.cells != 0, eight=eight, show=image.cells)) or None


def colour_objects(image: Image, *, eight: bool) -> Parts | None:
    """Connected parts of one colour each."""
    parts: list[Image] = []
    for colour in colour_counts(image.cells)[1:].nonzero()[0] + 1:
        found = _parts_of(image, image.cells == colour, eight=eight, show=image.cells)
        if not found or len(parts) + len(found) > MAX_PARTS:
            return None
        parts += found
    return tuple(sorted(parts, key=lambda part: (part.y, part.x))) or None


def colour_layers(image: Image) -> Parts | None:
    """One part for each colour: all cells of that colour."""
    parts = []
    for colour in colour_counts(image.cells)[1:].nonzero()[0] + 1:
        mask = image.cells == colour
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        cells = np.where(mask[window], image.cells[window], 0).astype(np.int8)
        parts.append(Image(cells, image.y + int(rows[0]), image.x + int(columns[0])))
    return tuple(parts) or None


def boxes(image: Image) -> Parts | None:
    """Connected parts of any colours, each with all that lies in its bounding box."""
    parts = []
    labels, count = label(image.cells != 0, eight=True)
    if not 0 < count <= MAX_PARTS:
        return None
    for window in ndimage.find_objects(labels):
        cells = np.ascontiguousarray(image.cells[window])
        parts.append(Image(cells, image.y + window[0].start, image.x + window[1].start))
    return tuple(parts)


def holes(image: Image) -> Parts | None:
    """Enclosed background regions, in colour 1."""
    inside = enclosed(image.cells != 0, eight=False)
    return tuple(_parts_of(image, inside, eight=False, show=np.ones_like(image.cells))) or None


def regions(image: Image) -> Parts | None:
    """All connected background regions, in colour 1."""
    return tuple(_parts_of(image, image.cells == 0, eight=False, show=np.ones_like(image.cells))) or None


def lines(image: Image, axis: str) -> Parts | None:
    """Single rows, or single columns."""
    cells = image.cells
    if cells.shape[axis == "columns"] > MAX_PARTS:
        return None
    if axis == "rows":
        return tuple(Image(cells[row : row + 1], image.y + row, image.x) for row in range(len(cells)))
    return tuple(
        Image(np.ascontiguousarray(cells[:, column : column + 1]), image.y, image.x + column)
        for column in range(cells.shape[1])
    )


def _segments(separator: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.diff(np.concatenate(([True], separator, [True])).astype(np.int8)).nonzero()[0]
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def panels(image: Image) -> Parts | None:
    """Parts between separators: full rows and columns of one colour that is not background.

    Of several such colours the one that divides the image into panels of one size counts, else the most frequent.
    """
    cells = image.cells
    rows = (cells[:, 0] != 0) & (cells == cells[:, :1]).all(axis=1)
    columns = (cells[0] != 0) & (cells == cells[:1]).all(axis=0)
    lines_of = np.bincount(np.concatenate((cells[rows, 0], cells[0, columns])), minlength=10)
    best: tuple[tuple[bool, int, int], list[tuple[int, int, int, int]]] | None = None
    for colour in lines_of.nonzero()[0].tolist():
        across, down = rows & (cells[:, 0] == colour), columns & (cells[0] == colour)
        spans = [(a, b, c, d) for a, b in _segments(across) for c, d in _segments(down)]
        alike = len({(b - a, d - c) for a, b, c, d in spans}) == 1
        score = alike, int(lines_of[colour]), -colour
        if 2 <= len(spans) <= MAX_PARTS and (best is None or score > best[0]):
            best = score, spans
    if best is None:
        return None
    return tuple(Image(np.ascontiguousarray(cells[a:b, c:d]), image.y + a, image.x + c) for a, b, c, d in best[1])


def equal_panels(image: Image, rows: int, columns: int) -> Parts | None:
    """A division into rows x columns equal parts."""
    height, width = image.cells.shape
    if height % rows or width % columns or rows * columns > MAX_PARTS:
        return None
    tall, wide = height // rows, width // columns
    return tuple(
        Image(np.ascontiguousarray(image.cells[y : y + tall, x : x + wide]), image.y + y, image.x + x)
        for y in range(0, height, tall)
        for x in range(0, width, wide)
    )


def square_panels(image: Image) -> Parts | None:
    """A long grid divided into squares of its short side."""
    rows, columns = image.cells.shape
    if rows > columns and rows % columns == 0:
        return equal_panels(image, rows // columns, 1)
    return equal_panels(image, 1, columns // rows) if columns > rows and columns % rows == 0 else None


KEYS = (
    "cells",
    "area",
    "colours",
    "top",
    "bottom",
    "leftmost",
    "rightmost",
    "symmetric",
    "holes",
    "background",
    "copies",
    "shapes",
    "same colour",
    "height",
    "width",
    "density",
    "minority",
    "square",
    "solid",
    "colour",
    "neighbours",
    *(f"colour {colour}" for colour in range(1, 10)),
)


def part_keys(parts: Parts) -> NDArray[np.float64]:
    """What parts can be compared by, (parts, len(KEYS)); larger means more of it."""
    shapes = [(part.cells.shape, (part.cells != 0).tobytes()) for part in parts]
    looks = [(part.cells.shape, part.cells.tobytes()) for part in parts]
    colours = [majority(part.cells) for part in parts]
    table = np.empty((len(parts), len(KEYS)))
    for row, part in enumerate(parts):
        cells = part.cells
        full = cells != 0
        counts = colour_counts(cells)
        number = int(np.count_nonzero(full))
        across, down = bool((cells == cells[:, ::-1]).all()), bool((cells == cells[::-1]).all())
        table[row] = (
            number,
            cells.size,
            (counts[1:] > 0).sum(),
            -part.y,
            part.y + cells.shape[0],
            -part.x,
            part.x + cells.shape[1],
            across + down,
            1 if min(cells.shape) < 3 or number == cells.size else label(padded(~full, True), eight=False)[1],
            cells.size - number,
            looks.count(looks[row]),
            shapes.count(shapes[row]),
            colours.count(colours[row]),
            cells.shape[0],
            cells.shape[1],
            number / cells.size,
            number - counts[1:].max(),
            cells.shape[0] == cells.shape[1],
            number == cells.size,
            colours[row],
            (full[1:] & full[:-1]).sum() + (full[:, 1:] & full[:, :-1]).sum(),
            *counts[1:],
        )
    return table


def selections(parts: Parts) -> list[int]:
    """Every way to choose parts by one key, as sets of bits (bit i: part i); 0 where it does not apply.

    The order is that of SELECTION_NAMES.
    """
    table = part_keys(parts)
    bit = 1 << np.arange(len(parts), dtype=np.int64)[:, None]
    everyone = (1 << len(parts)) - 1
    chosen = []
    for best in (table == table.max(axis=0), table == table.min(axis=0)):
        for some in (best * bit).sum(axis=0).tolist():
            part = some if some != everyone else 0
            chosen += [some if some & (some - 1) == 0 else 0, part, everyone & ~some]
    return chosen


SELECTION_NAMES = tuple(
    f"{how} {'most' if sign == 1 else 'least'} {key}"
    for sign in (1, -1)
    for key in KEYS
    for how in ("the one with", "all with", "all but those with")
)


def stack(parts: Parts, axis: int, *, by: str = "order") -> Image | None:
    """Parts side by side (axis 1) or on top of each other (axis 0), in reading order or by falling size."""
    if by == "size":
        parts = tuple(sorted(parts, key=lambda part: -int(np.count_nonzero(part.cells))))
    if len(parts) < 2 or len({part.cells.shape[1 - axis] for part in parts}) > 1:
        return None
    if sum(part.cells.size for part in parts) > 900:
        return None
    return Image(np.concatenate([part.cells for part in parts], axis=axis), 0, 0)


def colours_in_line(parts: Parts, axis: int, *, by: str) -> Image:
    """One cell for each part, in its majority colour: in reading order, along an axis, or by falling size."""
    if by == "size":
        parts = tuple(sorted(parts, key=lambda part: -int(np.count_nonzero(part.cells))))
    elif by == "axis":
        parts = tuple(sorted(parts, key=lambda part: part.x if axis else part.y))
    cells = np.array([[majority(part.cells) for part in parts]], dtype=np.int8)
    return Image(cells if axis else np.ascontiguousarray(cells.T), 0, 0)


def colours_in_order(parts: Parts) -> Image | None:
    """One cell for each part, in its majority colour, along the direction in which the parts' middles spread most."""
    middles = np.array([(2 * p.y + p.cells.shape[0], 2 * p.x + p.cells.shape[1]) for p in parts])
    spread = np.ptp(middles, axis=0)
    if spread[0] == spread[1]:
        return None
    axis = int(spread[1] > spread[0])
    ordered = tuple(parts[number] for number in np.argsort(middles[:, axis], kind="stable"))
    return colours_in_line(ordered, axis, by="order")


def product(parts: Parts) -> Image | None:
    """Of two parts: a copy of the one with more colours at every coloured cell of the other."""
    if len(parts) != 2 or parts[0].cells.size * parts[1].cells.size > MAX_CELLS:
        return None
    first, second = sorted(parts, key=lambda part: int((colour_counts(part.cells)[1:] > 0).sum()))
    return Image(np.kron(first.cells != 0, second.cells).astype(np.int8), 0, 0)


def centred(parts: Parts, *, largest_first: bool) -> Image:
    """Parts laid over each other with their middles together, larger ones below smaller ones or the other way round."""
    rows, columns = (max(part.cells.shape[axis] for part in parts) for axis in (0, 1))
    return grow(
        tuple(Image(p.cells, (rows - p.cells.shape[0]) // 2, (columns - p.cells.shape[1]) // 2) for p in parts),
        largest_first=largest_first,
    )


def grow(parts: Parts, *, largest_first: bool) -> Image:
    """Parts in their places, larger ones below smaller ones or the other way round."""
    return compose(sorted(parts, key=lambda part: int(np.count_nonzero(part.cells)) * (-1 if largest_first else 1)))


def lay_over(parts: Parts, *, how: str) -> Image | None:
    """Parts of one size on top of each other at the corner.

    first, last: the first (last) part that is not background there shows; and, nor, xor: where all, none, exactly one
    of them are not background.
    """
    if len(parts) < 2 or len({part.cells.shape for part in parts}) > 1:
        return None
    layers = np.stack([part.cells for part in parts])
    full = layers != 0
    if how in ("first", "last"):
        ordered = layers if how == "first" else layers[::-1]
        show = np.take_along_axis(ordered, (ordered != 0).argmax(axis=0)[None], axis=0)[0]
        return Image(np.ascontiguousarray(show), 0, 0)
    mask = {"and": full.all(axis=0), "nor": ~full.any(axis=0), "xor": full.sum(axis=0) == 1}[how]
    return Image(np.where(mask, np.maximum(layers.max(axis=0), 1), 0).astype(np.int8), 0, 0)


def summary(parts: Parts, *, how: str) -> Image | None:
    """One cell for each part of a regular division, where it lies: its majority colour.

    how: "all"; "fullest": only for the parts with most coloured cells; "whole": only for parts without background.
    """
    rows, columns = sorted({part.y for part in parts}), sorted({part.x for part in parts})
    places = {(part.y, part.x) for part in parts}
    if len(parts) < 2 or not len(rows) * len(columns) == len(places) == len(parts):
        return None
    cells = np.zeros((len(rows), len(columns)), dtype=np.int8)
    numbers = [int(np.count_nonzero(part.cells)) for part in parts]
    for part, number in zip(parts, numbers, strict=True):
        if how == "all" or (number == max(numbers) if how == "fullest" else number == part.cells.size):
            cells[rows.index(part.y), columns.index(part.x)] = majority(part.cells)
    return Image(cells, 0, 0)


def cutters() -> list[Cutter]:
    """All ways to cut that the search tries."""
    found = [Cutter(f"objects {8 if eight else 4}", partial(objects, eight=eight)) for eight in (True, False)]
    found += [Cutter(f"colour_objects {8 if e else 4}", partial(colour_objects, eight=e)) for e in (True, False)]
    found += [Cutter("colour_layers", colour_layers), Cutter("boxes", boxes), Cutter("holes", holes)]
    found += [Cutter("regions", regions), Cutter("panels", panels), Cutter("square_panels", square_panels)]
    found += [Cutter(f"lines {axis}", partial(lines, axis=axis)) for axis in ("rows", "columns")]
    for rows, columns in ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (3, 3), (1, 4), (4, 1)):
        name = f"equal_panels {rows}x{columns}"
        found.append(Cutter(name, partial(equal_panels, rows=rows, columns=columns)))
    return found


def joiners() -> list[Joiner]:
    """All ways to put parts together that the search tries."""
    found = [Joiner("grow", partial(grow, largest_first=True)), Joiner("shrink", partial(grow, largest_first=False))]
    for axis, name in ((0, "down"), (1, "across")):
        found += [Joiner(f"stack {name} by {by}", partial(stack, axis=axis, by=by)) for by in ("order", "size")]
        for by in ("order", "axis", "size"):
            found.append(Joiner(f"colours {name} by {by}", partial(colours_in_line, axis=axis, by=by)))
    found += [Joiner(f"lay_over {how}", partial(lay_over, how=how)) for how in ("first", "last", "and", "nor", "xor")]
    found += [Joiner("colours in order", colours_in_order), Joiner("product", product)]
    found += [Joiner(f"centred {'grow' if f else 'shrink'}", partial(centred, largest_first=f)) for f in (True, False)]
    found += [Joiner(f"summary {how}", partial(summary, how=how)) for how in ("all", "fullest", "whole")]
    return found


def map_parts(parts: Parts, function: Callable[[Image], Image | None]) -> Parts | None:
    """`function` of every part; parts to which it does not apply are left out."""
    mapped = tuple(image for image in map(function, parts) if image is not None)
    return mapped or None


def compose_chosen(parts: Sequence[Image], chosen: int) -> Image:
    """The chosen parts (a set of bits) in their places."""
    return compose([part for number, part in enumerate(parts) if chosen >> number & 1])
