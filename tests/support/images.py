"""Grids and images from short texts, and strategies that draw them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_ttt.synthesis.images import Image


def cells(text: str) -> NDArray[np.int8]:
    """A grid from rows of digits separated by spaces, a dot for 0."""
    return np.array([[int(c) for c in row.replace(".", "0")] for row in text.split()], dtype=np.int8)


def image(text: str) -> Image:
    return Image(cells(text), 0, 0)


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Sparse and dense grids of up to 8 x 8 at any place."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    colours = draw(st.sampled_from([(0, 1), (0, 0, 0, 2), (0, 1, 2, 3), tuple(range(10))]))
    values = draw(st.lists(st.sampled_from(colours), min_size=rows * columns, max_size=rows * columns))
    grid = np.array(values, dtype=np.int8).reshape(rows, columns)
    return Image(grid, draw(st.integers(0, 3)), draw(st.integers(0, 3)))
