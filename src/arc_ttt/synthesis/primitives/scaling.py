"""Primitives that mirror, halve, enlarge, shrink and repeat images."""

from __future__ import annotations

import numpy as np

from arc_ttt.synthesis.images import MAX_CELLS, Image, colour_counts, like, majority


def half(image: Image, side: str) -> Image | None:
    """The left, right, top or bottom half, or the first along the longer side; a middle line belongs to neither."""
    rows, columns = image.cells.shape
    if side == "first":
        side = "left" if columns > rows else "top"
    if (columns if side in ("left", "right") else rows) < 2:
        return None
    if side == "left":
        return like(image, image.cells[:, : columns // 2])
    if side == "right":
        return Image(np.ascontiguousarray(image.cells[:, (columns + 1) // 2 :]), image.y, image.x + (columns + 1) // 2)
    if side == "top":
        return like(image, image.cells[: rows // 2])
    return Image(np.ascontiguousarray(image.cells[(rows + 1) // 2 :]), image.y + (rows + 1) // 2, image.x)


def overlay_mirror(image: Image, how: str) -> Image | None:
    """Background takes what its mirror image shows: across columns, rows, both, or the diagonals of a square."""
    cells = image.cells
    mirrored = [cells[:, ::-1], cells[::-1], cells[::-1, ::-1]]
    if how in ("diagonals", "all") and cells.shape[0] != cells.shape[1]:
        return None
    chosen = {"columns": mirrored[:1], "rows": mirrored[1:2], "turn": mirrored[2:], "both": mirrored}.get(how)
    if chosen is None:
        turned = [cells.T, cells[::-1, ::-1].T, *mirrored[2:]]
        chosen = turned if how == "diagonals" else [*mirrored, *turned, np.rot90(cells), np.rot90(cells, 3)]
    for other in chosen:
        cells = np.where(cells == 0, other, cells)
    return like(image, cells)


def join_mirror(image: Image, how: str) -> Image | None:
    """The image beside its own copy or mirror image: right, left, below, above, or all four quarters."""
    cells = image.cells
    if cells.size * (4 if how in ("quarters", "turns") else 2) > MAX_CELLS:
        return None
    if how == "turns":
        if cells.shape[0] != cells.shape[1]:
            return None
        grid = np.block([[cells, np.rot90(cells, 3)], [np.rot90(cells), np.rot90(cells, 2)]])
        return Image(grid, 0, 0)
    parts = {
        "right": [[cells, cells[:, ::-1]]],
        "left": [[cells[:, ::-1], cells]],
        "below": [[cells], [cells[::-1]]],
        "above": [[cells[::-1]], [cells]],
        "quarters": [[cells, cells[:, ::-1]], [cells[::-1], cells[::-1, ::-1]]],
        "quarters reversed": [[cells[::-1, ::-1], cells[::-1]], [cells[:, ::-1], cells]],
        "copy right": [[cells, cells]],
        "copy below": [[cells], [cells]],
    }
    if cells.size * len(parts[how]) * len(parts[how][0]) > MAX_CELLS:
        return None
    return Image(np.block(parts[how]), 0, 0)


def enlarge(image: Image, factor: int) -> Image | None:
    """Every cell becomes a block of `factor` x `factor`."""
    if image.cells.size * factor * factor > MAX_CELLS:
        return None
    return Image(image.cells.repeat(factor, axis=0).repeat(factor, axis=1), 0, 0)


def enlarge_by_colours(image: Image) -> Image | None:
    """Every cell becomes a block whose side is the number of colours."""
    return enlarge(image, int((colour_counts(image.cells)[1:] > 0).sum()) or 1)


def shrink(image: Image) -> Image | None:
    """Undo the largest enlargement: the greatest block side that divides all runs."""
    cells = image.cells
    rows = np.concatenate(([0], (cells[1:] != cells[:-1]).any(axis=1).nonzero()[0] + 1, [cells.shape[0]]))
    columns = np.concatenate(([0], (cells[:, 1:] != cells[:, :-1]).any(axis=0).nonzero()[0] + 1, [cells.shape[1]]))
    side = int(np.gcd(np.gcd.reduce(np.diff(rows)), np.gcd.reduce(np.diff(columns))))
    return Image(np.ascontiguousarray(cells[::side, ::side]), 0, 0) if side > 1 else None


def outer_product(image: Image, *, inverted: bool) -> Image | None:
    """A copy of the image at every cell that is (or, inverted, is not) background: a fractal."""
    if image.cells.size**2 > MAX_CELLS:
        return None
    places = image.cells == 0 if inverted else image.cells != 0
    return Image(np.kron(places, image.cells).astype(np.int8), 0, 0)


def outer_product_majority(image: Image) -> Image | None:
    """A copy of the image at every cell of the majority colour."""
    if image.cells.size**2 > MAX_CELLS:
        return None
    return Image(np.kron(image.cells == majority(image.cells), image.cells).astype(np.int8), 0, 0)
