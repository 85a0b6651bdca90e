"""Primitives that look at the whole picture: templates, frames, falling objects, symmetry and period of sparse parts.

They are dearer than others, so the search applies them to the inputs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from arc_ttt.synthesis.images import Cells, Image, Labels, Mask, bounding_box, colour_counts, label, like
from arc_ttt.synthesis.primitives.images import Primitive

MAX_OBJECTS = 30
MAX_TEMPLATES = 3
MAX_MARKERS = 60


def stamp_templates(image: Image, *, turned: bool) -> Image | None:
    """Complete every partial copy of a many-coloured object.

    A copy is partial when the object's cells of one colour, or of all its colours but one, are there and nothing else
    is. turned: copies may be turned and mirrored.
    """
    labels, count = label(image.cells != 0, eight=True)
    if not 1 < count <= MAX_OBJECTS:
        return None
    cells = image.cells.copy()
    for template in _templates(image.cells, labels):
        for shape in _turns(template) if turned else [template]:
            for marker in _markers(shape):
                _stamp(image.cells, cells, shape, marker)
    return like(image, cells) if (cells != image.cells).any() else None


def _templates(cells: Cells, labels: Labels) -> list[Cells]:
    found = []
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        shape = np.where(labels[window] == number, cells[window], 0).astype(np.int8)
        if (colour_counts(shape)[1:] > 0).sum() > 1:
            found.append(shape)
    return sorted(found, key=lambda shape: -int((shape != 0).sum()))[:MAX_TEMPLATES]


def _turns(shape: Cells) -> list[Cells]:
    turns = [np.ascontiguousarray(np.rot90(base, k)) for base in (shape, shape.T) for k in range(4)]
    return list({(turn.shape, turn.tobytes()): turn for turn in turns}.values())


def _markers(shape: Cells) -> Iterator[Mask]:
    colours = (colour_counts(shape)[1:].nonzero()[0] + 1).tolist()
    for colour in colours:
        yield shape == colour
    if len(colours) > 2:
        for colour in colours:
            yield (shape != colour) & (shape != 0)


def _stamp(before: Cells, after: Cells, shape: Cells, marker: Mask) -> None:
    """Write `shape` into `after` wherever `before` shows exactly its marked cells."""
    spots = np.argwhere(marker)
    colours = shape[marker]
    anchors = np.argwhere(before == colours[0]) - spots[0]
    rest = np.argwhere((shape != 0) & ~marker)
    if not 0 < len(anchors) <= MAX_MARKERS:
        return
    for anchor in anchors:
        there = spots + anchor
        if (there < 0).any() or (there >= before.shape).any() or (before[there[:, 0], there[:, 1]] != colours).any():
            continue
        filled = rest + anchor
        filled = filled[((filled >= 0) & (filled < before.shape)).all(axis=1)]
        if (before[filled[:, 0], filled[:, 1]] == 0).all():
            from_shape = filled - anchor
            after[filled[:, 0], filled[:, 1]] = shape[from_shape[:, 0], from_shape[:, 1]]


def framed(image: Image, *, inside: bool) -> Image | None:
    """The largest rectangle whose edge is of one colour; inside: without the edge."""
    best: tuple[int, int, int, int, int] | None = None
    for colour in colour_counts(image.cells)[1:].nonzero()[0] + 1:
        found = largest_frame(image.cells == colour)
        if found and (best is None or found[0] > best[0]):
            best = found
    if best is None:
        return None
    _, top, bottom, left, right = best
    margin = int(inside)
    part = image.cells[top + margin : bottom + 1 - margin, left + margin : right + 1 - margin]
    return Image(np.ascontiguousarray(part), image.y + top + margin, image.x + left + margin)


def largest_frame(mask: Mask) -> tuple[int, int, int, int, int] | None:
    """Area, top, bottom, left, right (inclusive) of the largest frame of true cells, at least 3 x 3, or None."""
    rows, columns = mask.shape
    down = np.zeros((rows + 1, columns), dtype=np.int16)
    np.cumsum(mask, axis=0, out=down[1:])
    across = np.zeros((rows, columns + 1), dtype=np.int16)
    np.cumsum(mask, axis=1, out=across[:, 1:])
    best: tuple[int, int, int, int, int] | None = None
    useful = (mask.sum(axis=1) >= 3).nonzero()[0].tolist()
    for top, bottom in combinations(useful, 2):
        if bottom - top < 2 or (best and (bottom - top + 1) * columns <= best[0]):
            continue
        sides = (down[bottom + 1] - down[top] == bottom - top + 1).nonzero()[0]
        for left, right in combinations(sides.tolist(), 2):
            wide = right - left + 1
            if wide < 3 or (best and (bottom - top + 1) * wide <= best[0]):
                continue
            if all(across[row, right + 1] - across[row, left] == wide for row in (top, bottom)):
                best = (bottom - top + 1) * wide, top, bottom, left, right
    return best


def _down(cells: Cells, direction: str) -> Cells:
    """Turn so that `direction` points down; its own inverse for up and down, undone by `_undo_down`."""
    return {"down": cells, "up": cells[::-1], "right": cells.T, "left": cells[:, ::-1].T}[direction]


def _undo_down(cells: Cells, direction: str) -> Cells:
    return {"down": cells, "up": cells[::-1], "right": cells.T, "left": cells.T[:, ::-1]}[direction]


def fall(image: Image, direction: str, *, single: bool) -> Image | None:
    """Whole objects fall until they meet the edge or another. single: an object is of one colour.

    The lowest falls first; where that would let one fall into another, there is no answer.
    """
    cells = np.ascontiguousarray(_down(image.cells, direction))
    layers = [cells == colour for colour in colour_counts(cells)[1:].nonzero()[0] + 1] if single else [cells != 0]
    masks = [
        labels == number for labels, count in (label(m, eight=True) for m in layers) for number in range(1, count + 1)
    ]
    if not 0 < len(masks) <= MAX_OBJECTS:
        return None
    masks.sort(key=lambda mask: -int(np.flatnonzero(mask.any(axis=1))[-1]))
    landed = np.zeros_like(cells)
    for mask in masks:
        drop = _free_rows(mask, landed != 0)
        if drop:
            moved = np.zeros_like(mask)
            moved[drop:] = mask[:-drop]
            landed[moved] = cells[mask]
        else:
            landed[mask] = cells[mask]
    if np.count_nonzero(landed) < np.count_nonzero(cells):
        return None
    return like(image, _undo_down(landed, direction))


def _free_rows(mask: Mask, taken: Mask) -> int:
    """How many rows `mask` can move down before it meets `taken` or the edge."""
    last = int(np.flatnonzero(mask.any(axis=1))[-1])
    drop = 0
    for rows in range(1, len(mask) - last):
        if (mask[: len(mask) - rows] & taken[rows:]).any():
            break
        drop = rows
    return drop


def attract(image: Image, *, single: bool, colour: int | None = None) -> Image | None:
    """Objects move straight towards the largest object until they touch it.

    Args:
        single: objects are of one colour.
        colour: they move towards the cells of this colour instead. Objects that are in line with it in no direction, or
            in two, vanish.
    """
    cells = image.cells
    anchor = cells == colour
    free = np.where(anchor, 0, cells) if colour else cells
    layers = [free == c for c in colour_counts(free)[1:].nonzero()[0] + 1] if single else [free != 0]
    masks = [
        labels == number for labels, count in (label(m, eight=True) for m in layers) for number in range(1, count + 1)
    ]
    if not 0 < len(masks) <= MAX_OBJECTS or (colour is not None and not anchor.any()):
        return None
    masks.sort(key=lambda mask: -int(mask.sum()))
    if colour is None:
        anchor = masks.pop(0)
    result = np.where(anchor, cells, 0).astype(np.int8)
    rows, columns = anchor.any(axis=1), anchor.any(axis=0)
    for mask in masks:
        y, x = int(np.argwhere(mask).mean(axis=0)[0]), int(np.argwhere(mask).mean(axis=0)[1])
        if columns[x] and not rows[y]:
            direction = "down" if y < rows.nonzero()[0][0] else "up"
        elif rows[y] and not columns[x]:
            direction = "right" if x < columns.nonzero()[0][0] else "left"
        else:
            continue
        turned, target = _down(mask.view(np.int8), direction) != 0, _down(result, direction) != 0
        drop = _free_rows(turned, target)
        moved = np.zeros(turned.shape, dtype=np.int8)
        moved[drop:] = np.where(turned, _down(cells, direction), 0)[: len(turned) - drop]
        result = np.where(result == 0, _undo_down(moved, direction), result)
    return like(image, result)


def complete_symmetry(image: Image, how: str) -> Image | None:
    """Add the mirror image about the line on which most coloured cells already agree and none disagrees.

    how: "columns" (left to right), "rows", "both", or "all" (also the diagonals through the crossing point).
    """
    cells = image.cells
    totals: list[int] = []
    for axis in (0, 1):
        total = best_axis(cells, axis)
        if total is None and how in ("both", "all", ("rows", "columns")[axis]):
            return None
        totals.append(total if total is not None else 0)
    if how in ("rows", "both", "all"):
        cells = _overlay(cells, _reflect(cells, totals[0], 0))
    if how in ("columns", "both", "all"):
        cells = _overlay(cells, _reflect(cells, totals[1], 1))
    if how == "all":
        cells = _overlay(cells, _transpose_about(cells, totals[0], totals[1]))
    return like(image, cells) if (cells != image.cells).any() else None


def symmetric_about(image: Image, colour: int, how: str) -> Image | None:
    """Add the mirror image about the middle of the cells of one colour; see `complete_symmetry`."""
    box = bounding_box(image.cells == colour)
    if box is None:
        return None
    cells = image.cells
    row_total, column_total = box[0] + box[1] - 1, box[2] + box[3] - 1
    if how in ("rows", "both", "all"):
        cells = _overlay(cells, _reflect(cells, row_total, 0))
    if how in ("columns", "both", "all"):
        cells = _overlay(cells, _reflect(cells, column_total, 1))
    if how == "all":
        cells = _overlay(cells, _transpose_about(cells, row_total, column_total))
    return like(image, cells) if (cells != image.cells).any() else None


def best_axis(cells: Cells, axis: int) -> int | None:
    """The sum i + j of mirrored positions under which most coloured cells agree and none disagrees, or None."""
    length = cells.shape[axis]
    full = cells != 0
    coloured = int(full.sum())
    best, best_total = max(3, coloured * 0.3), None
    for total in range(1, 2 * length - 2):
        mirror = _reflect(cells, total, axis)
        both = full & (mirror != 0)
        agreeing = int(both.sum())
        if agreeing > best and (cells[both] == mirror[both]).all():
            best, best_total = agreeing, total
    return best_total


def _reflect(cells: Cells, total: int, axis: int) -> Cells:
    at = total - np.arange(cells.shape[axis])
    inside = (at >= 0) & (at < cells.shape[axis])
    taken = np.take(cells, np.where(inside, at, 0), axis=axis)
    return np.where(inside[:, None] if axis == 0 else inside[None], taken, 0).astype(np.int8)


def _transpose_about(cells: Cells, row_total: int, column_total: int) -> Cells:
    """Transpose about the point where the two mirror lines cross."""
    turned = np.zeros_like(cells)
    shift = row_total - column_total
    if shift % 2:
        return turned
    y, x = np.nonzero(cells)
    to_y, to_x = x + shift // 2, y - shift // 2
    inside = (to_y >= 0) & (to_y < cells.shape[0]) & (to_x >= 0) & (to_x < cells.shape[1])
    turned[to_y[inside], to_x[inside]] = cells[y[inside], x[inside]]
    return turned


def _overlay(cells: Cells, other: Cells) -> Cells:
    return np.where(cells == 0, other, cells).astype(np.int8)


def continue_lines(image: Image, axis: str) -> Image | None:
    """Rows (or columns) go on with the smallest period that fits the coloured cells of all of them."""
    cells = image.cells if axis == "rows" else image.cells.T
    length = cells.shape[1]
    for period in range(1, length // 2 + 1):
        whole = np.zeros((len(cells), -(-length // period) * period), dtype=np.int8)
        whole[:, :length] = cells
        blocks = whole.reshape(len(cells), -1, period)
        most = blocks.max(axis=1)
        if ((blocks == 0) | (blocks == most[:, None])).all():
            filled = np.tile(most, (1, blocks.shape[1]))[:, :length]
            if (filled == cells).all():
                return None
            return like(image, filled if axis == "rows" else filled.T)
    return None


def denoise(image: Image) -> Image | None:
    """Every cell takes the most frequent colour of its 3 x 3 surroundings."""
    padded = np.pad(image.cells, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*image.cells.shape, 9)
    counts = np.stack([(windows == colour).sum(axis=2) for colour in range(10)], axis=2)
    return like(image, counts.argmax(axis=2))


def rays_through(image: Image, direction: str) -> Image:
    """Full lines through every coloured cell, also behind others: rows, columns, or both, rarest colours on top."""
    cells = image.cells
    result = cells.copy()
    counts: NDArray[np.intp] = colour_counts(cells)
    order = [colour for colour in np.argsort(counts, kind="stable").tolist() if colour and counts[colour]]
    for colour in order:
        mask = cells == colour
        rows, columns = mask.any(axis=1)[:, None], mask.any(axis=0)[None]
        lines = {"rows": rows & np.ones_like(columns), "columns": columns & np.ones_like(rows)}
        where = lines["rows"] | lines["columns"] if direction == "both" else lines[direction]
        result = np.where((result == 0) & where, colour, result)
    return like(image, result)


def pattern_primitives() -> list[Primitive]:
    """All primitives of this module."""
    found = [
        Primitive(f"stamp_templates{' turned' if t else ''}", partial(stamp_templates, turned=t)) for t in (False, True)
    ]
    found += [Primitive(f"framed{' inside' if i else ''}", partial(framed, inside=i)) for i in (False, True)]
    for single in (False, True):
        what = "colour objects" if single else "objects"
        found += [
            Primitive(f"fall {what} {way}", partial(fall, direction=way, single=single))
            for way in ("down", "up", "left", "right")
        ]
        found.append(Primitive(f"attract {what}", partial(attract, single=single)))
    found += [
        Primitive(f"complete_symmetry {how}", partial(complete_symmetry, how=how))
        for how in ("rows", "columns", "both", "all")
    ]
    found += [Primitive(f"continue_lines {axis}", partial(continue_lines, axis=axis)) for axis in ("rows", "columns")]
    found += [
        Primitive(f"rays_through {way}", partial(rays_through, direction=way)) for way in ("rows", "columns", "both")
    ]
    return [*found, Primitive("denoise", denoise)]
