"""Shapes of recorded training steps. What they compute is tested on a GPU, in test_cuda.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arc_ttt.recording import recorded_shape


@given(st.integers(1, 64), st.integers(1, 8192))
def test_shapes_hold_the_batch_with_little_padding(rows: int, length: int) -> None:
    shape = recorded_shape(rows, length)
    assert shape[0] == rows
    assert length <= shape[1] <= max(length + 31, 1.15 * length)


def test_shapes_are_few() -> None:
    assert len({recorded_shape(8, length) for length in range(1, 4097)}) < 48
