"""Mosaic repair: fill hidden cells of a symmetric or periodic picture from the cells that correspond to them.

The idea of "greedy fill" is icecuber's; this method, rules that no visible cell contradicts, is ours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from arc_ttt.synthesis.images import Cells, Image, Mask, like

HIDDEN = -1
MIN_AGREEING = 12
"""Visible pairs of cells that must support a symmetry."""


def repair(image: Image, colour: int, *, how: str) -> Image | None:
    """The picture with all cells of `colour` filled in, or None when not all of them can be.

    how: "period", "symmetry", or "both" (symmetry first, then what is left by period).
    """
    hidden = image.cells == colour
    if not hidden.any() or hidden.mean() > 0.8:
        return None
    cells = np.where(hidden, HIDDEN, image.cells).astype(np.int8)
    if how in ("symmetry", "both"):
        cells = by_symmetry(cells)
    if how in ("period", "both"):
        cells = by_period(cells)
    if (cells == HIDDEN).any():
        return None
    return like(image, cells)


def repaired_part(image: Image, colour: int, *, how: str) -> Image | None:
    """Only what was hidden, cut out."""
    whole = repair(image, colour, how=how)
    if whole is None:
        return None
    hidden = image.cells == colour
    rows, columns = hidden.any(axis=1).nonzero()[0], hidden.any(axis=0).nonzero()[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = np.ascontiguousarray(whole.cells[top:bottom, left:right])
    return Image(part, image.y + int(top), image.x + int(left))


def by_period(cells: Cells) -> Cells:
    """Fill hidden cells (-1) by the smallest period that no visible cell contradicts; (H, W)."""
    rows, columns = cells.shape
    visible = cells != HIDDEN
    number = int(visible.sum())
    if visible.all() or len(np.unique(cells)) < 3:
        return cells
    largest = cells.size if number * 3 >= cells.size else number // 2
    down = [_same_when_moved(cells, rows_moved, 0) for rows_moved in range(rows + 1)]
    across = [_same_when_moved(cells, 0, columns_moved) for columns_moved in range(columns + 1)]
    for row_period, column_period, slant in _periods(rows, columns):
        if row_period * column_period > largest:
            break
        if not across[column_period] or not (slant or down[row_period]):
            continue
        if slant and not _same_when_moved(cells, row_period, slant):
            continue
        block = (np.arange(rows)[:, None] // row_period) * slant
        at = (np.arange(rows)[:, None] % row_period) * column_period + (
            np.arange(columns)[None] - block
        ) % column_period
        known = np.full(row_period * column_period, HIDDEN, dtype=np.int8)
        known[at[visible]] = cells[visible]
        if (known[at[visible]] != cells[visible]).any():
            continue
        shown: Mask = known[at] != HIDDEN
        if shown.all():
            return np.where(visible, cells, known[at]).astype(np.int8)
    return cells


def _same_when_moved(cells: Cells, rows: int, columns: int) -> bool:
    """Whether visible cells that come to lie on visible cells are equal to them."""
    first = cells[rows:, columns:]
    second = cells[: cells.shape[0] - rows, : cells.shape[1] - columns]
    return not ((first != second) & (first != HIDDEN) & (second != HIDDEN)).any()


@lru_cache(maxsize=256)
def _periods(rows: int, columns: int) -> tuple[tuple[int, int, int], ...]:
    """Row period, column period, and the shift to the right from one block of rows to the next, smallest first."""
    plain = [(r, c, 0) for r in range(1, rows + 1) for c in range(1, columns + 1)]
    slanted = [(1, c, s) for c in range(2, columns + 1) for s in range(1, c)]
    fitting = [p for p in plain + slanted if p[0] * p[1] <= min(100, rows * columns // 2) and p[:2] != (1, 1)]
    return tuple(sorted(fitting, key=lambda p: (p[0] * p[1], p[2], p)))


def _axis_maps(length: int) -> list[int]:
    """Sums i + j of mirrored positions, most central first."""
    return sorted(
        range(length // 2, 2 * length - 1 - length // 2), key=lambda total: (abs(total - (length - 1)), total)
    )


def mirrored(cells: Cells, total: int, axis: int) -> Cells:
    """The mirror image about the line where positions i and j with i + j = total meet; hidden outside."""
    length = cells.shape[axis]
    at = total - np.arange(length)
    inside = (at >= 0) & (at < length)
    taken = np.take(cells, np.clip(at, 0, length - 1), axis=axis)
    where = inside[:, None] if axis == 0 else inside[None]
    return np.where(where, taken, HIDDEN).astype(np.int8)


def by_symmetry(cells: Cells) -> Cells:
    """Fill hidden cells (-1) from mirror images that agree wherever both are visible; (H, W)."""
    others: list[tuple[int, int]] = []
    for axis in (0, 1):
        for total in _axis_maps(cells.shape[axis]):
            if _agrees(cells, mirrored(cells, total, axis)):
                others.append((total, axis))
                break
    square = cells.shape[0] == cells.shape[1]
    for _ in range(3):
        before = cells
        for total, axis in others:
            cells = _take(cells, mirrored(cells, total, axis))
        if square and _agrees(cells, cells.T):
            cells = _take(cells, cells.T)
        if square and _agrees(cells, cells[::-1, ::-1].T):
            cells = _take(cells, cells[::-1, ::-1].T)
        if (cells == before).all():
            break
    return cells


def _agrees(cells: Cells, other: Cells) -> bool:
    both = (cells != HIDDEN) & (other != HIDDEN)
    number = int(both.sum())
    if number < max(MIN_AGREEING, cells.size // 3):
        return False
    return bool((cells[both] == other[both]).all()) and len(np.unique(cells[both])) > 1


def _take(cells: Cells, other: Cells) -> Cells:
    return np.where(cells == HIDDEN, other, cells).astype(np.int8)
