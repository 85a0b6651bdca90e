"""Positioned images: the values that programs compute with.

An image is a small grid that remembers where it lies, so that a part cut out of a grid can be put back (an idea of
icecuber's solver of 2020). Colour 0 is background and counts as transparent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Cells: TypeAlias = NDArray[np.int8]  # (H, W), 0 to 9, never written to once it is part of an Image
Mask: TypeAlias = NDArray[np.bool_]  # (H, W)
Labels: TypeAlias = NDArray[np.int32]  # (H, W), 0 outside, 1 to n inside
Size: TypeAlias = tuple[int, int]  # rows, columns
EIGHT = np.ones((3, 3), dtype=bool)
MAX_CELLS = 1200
"""Larger images are dropped: a 30 x 30 grid with a border needs less."""


class Image(NamedTuple):
    """cells (H, W), and the row and column of its top left corner on the task's grid."""

    cells: Cells
    y: int
    x: int


State: TypeAlias = tuple[Image, ...]  # one image for each grid of a task: demonstrations first, then test inputs


def state_key(state: Sequence[Image]) -> bytes:
    """Bytes that are equal exactly when two states show the same images at the same places."""
    heads = [number for image in state for number in (image.y, image.x, *image.cells.shape)]
    return np.array(heads, dtype=np.int16).tobytes() + b"".join([image.cells.tobytes() for image in state])


def state_bytes(state: Sequence[Image]) -> int:
    """An upper estimate of what a stored state costs, array and tuple headers included."""
    return sum(image.cells.size + 250 for image in state) + 300


def like(image: Image, cells: NDArray[np.generic]) -> Image:
    """`cells` at the place of `image`."""
    return Image(np.ascontiguousarray(cells, dtype=np.int8), image.y, image.x)


def bounding_box(mask: Mask) -> tuple[int, int, int, int] | None:
    """Top, bottom, left, right (ends exclusive) of the true cells, or None when there are none."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def crop_to(image: Image, mask: Mask) -> Image | None:
    """The part of `image` inside the bounding box of `mask`, in its place."""
    box = bounding_box(mask)
    if box is None:
        return None
    top, bottom, left, right = box
    return Image(np.ascontiguousarray(image.cells[top:bottom, left:right]), image.y + top, image.x + left)


def embed(image: Image, size: Size) -> Image:
    """`image` on an empty grid of `size`; what lies outside is cut off."""
    rows, columns = image.cells.shape
    if (rows, columns) == size and image.y == 0 and image.x == 0:
        return image
    grid = np.zeros(size, dtype=np.int8)
    top, left = max(0, image.y), max(0, image.x)
    bottom, right = min(size[0], image.y + rows), min(size[1], image.x + columns)
    if bottom > top and right > left:
        grid[top:bottom, left:right] = image.cells[top - image.y : bottom - image.y, left - image.x : right - image.x]
    return Image(grid, 0, 0)


def compose(images: Sequence[Image]) -> Image:
    """All images in their places on the smallest grid that holds them; later ones cover earlier ones."""
    if len(images) == 1:
        return images[0]
    y = min(image.y for image in images)
    x = min(image.x for image in images)
    bottom = max(image.y + image.cells.shape[0] for image in images)
    right = max(image.x + image.cells.shape[1] for image in images)
    grid = np.zeros((bottom - y, right - x), dtype=np.int8)
    for image in images:
        rows, columns = image.cells.shape
        window = grid[image.y - y : image.y - y + rows, image.x - x : image.x - x + columns]
        np.copyto(window, image.cells, where=image.cells != 0)
    return Image(grid, y, x)


def label(mask: Mask, *, eight: bool) -> tuple[Labels, int]:
    """Connected components of the true cells, over four or eight neighbours, and their number.

    The labels are shared between equal calls: do not write to them.
    """
    return _label(mask.tobytes(), mask.shape, eight)


@lru_cache(maxsize=2048)
def _label(mask: bytes, shape: tuple[int, ...], eight: bool) -> tuple[Labels, int]:
    labels: Labels
    labels, count = ndimage.label(np.frombuffer(mask, dtype=bool).reshape(shape), EIGHT if eight else None)
    labels.flags.writeable = False
    return labels, int(count)


def colour_counts(cells: NDArray[np.generic]) -> NDArray[np.intp]:
    """How often each colour 0 to 9 occurs, (10,)."""
    return np.bincount(cells.ravel(), minlength=10)


def majority(cells: NDArray[np.generic]) -> int:
    """The most frequent colour other than 0 (the lowest of equals), or 0 when all is background."""
    counts = colour_counts(cells)
    counts[0] = 0
    best = int(counts.argmax())
    return best if counts[best] else 0


def padded(mask: Mask, outside: bool) -> Mask:
    """`mask` with one more row and column on each side; (H + 2, W + 2)."""
    made = np.full((mask.shape[0] + 2, mask.shape[1] + 2), outside, dtype=bool)
    made[1:-1, 1:-1] = mask
    return made


def enclosed(mask: Mask, *, eight: bool) -> Mask:
    """Cells outside `mask` that no path of free cells joins to the edge of the grid.

    `eight` lets paths also go diagonally, so that fewer cells are enclosed.
    """
    if min(mask.shape) < 3:
        return np.zeros(mask.shape, dtype=bool)
    free = padded(~mask, True)
    labels, _ = label(free, eight=eight)
    inside: Mask = (free & (labels != labels[0, 0]))[1:-1, 1:-1]
    return inside


@lru_cache(maxsize=4096)
def _row_numbers(rows: int) -> NDArray[np.intp]:
    return np.arange(rows)[:, None]


@lru_cache(maxsize=4096)
def _column_numbers(columns: int) -> NDArray[np.intp]:
    return np.arange(columns)[None]


def fill_down(cells: Cells) -> Cells:
    """Every 0 takes the nearest other colour above it in its column; (H, W)."""
    rows, columns = cells.shape
    at = np.maximum.accumulate(np.where(cells != 0, _row_numbers(rows), 0), axis=0)
    return cells[at, _column_numbers(columns)]


def skew(cells: Cells) -> Cells:
    """Shift row i right by i: anti-diagonals become columns, (H, W + H - 1)."""
    rows, columns = cells.shape
    padded = np.zeros((rows, columns + rows), dtype=np.int8)
    padded[:, :columns] = cells
    return padded.ravel()[: rows * (columns + rows - 1)].reshape(rows, columns + rows - 1)


def unskew(cells: Cells, columns: int) -> Cells:
    """Undo `skew` for a grid that had `columns` columns."""
    rows = cells.shape[0]
    padded = np.zeros(rows * (columns + rows), dtype=np.int8)
    padded[: cells.size] = cells.ravel()
    return padded.reshape(rows, columns + rows)[:, :columns]


DIRECTIONS: dict[str, tuple[int, int]] = {
    "down": (1, 0),
    "up": (-1, 0),
    "right": (0, 1),
    "left": (0, -1),
    "down-left": (1, -1),
    "up-right": (-1, 1),
    "down-right": (1, 1),
    "up-left": (-1, -1),
}


def fill_towards(cells: Cells, direction: str) -> Cells:
    """Every 0 takes the colour of the nearest other cell that it meets looking against `direction`; (H, W).

    The answer is shared between equal calls: do not write to it.
    """
    return _fill_towards(cells.tobytes(), cells.shape, direction)


@lru_cache(maxsize=2048)
def _fill_towards(raw: bytes, shape: tuple[int, ...], direction: str) -> Cells:
    cells = np.frombuffer(raw, dtype=np.int8).reshape(shape)
    columns = shape[1]
    if direction == "down":
        return fill_down(cells)
    if direction == "up":
        return fill_down(cells[::-1])[::-1]
    if direction == "right":
        return fill_down(cells.T).T
    if direction == "left":
        return fill_down(cells[:, ::-1].T).T[:, ::-1]
    if direction == "down-left":
        return unskew(fill_down(skew(cells)), columns)
    if direction == "up-right":
        return unskew(fill_down(skew(cells)[::-1])[::-1], columns)
    if direction == "down-right":
        return unskew(fill_down(skew(cells[:, ::-1])), columns)[:, ::-1]
    return unskew(fill_down(skew(cells[:, ::-1])[::-1])[::-1], columns)[:, ::-1]


def shifted(cells: NDArray[np.int8], dy: int, dx: int, outside: int = 0) -> Cells:
    """`cells` moved by (dy, dx); uncovered cells become `outside`; (H, W)."""
    rows, columns = cells.shape
    moved = np.full((rows, columns), outside, dtype=np.int8)
    if abs(dy) < rows and abs(dx) < columns:
        moved[max(0, dy) : rows + min(0, dy), max(0, dx) : columns + min(0, dx)] = cells[
            max(0, -dy) : rows + min(0, -dy), max(0, -dx) : columns + min(0, -dx)
        ]
    return moved
