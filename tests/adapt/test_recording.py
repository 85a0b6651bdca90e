"""Shapes of recorded training steps. What they compute is tested on a GPU, in test_cuda.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arc_ttt.adapt.recording import recorded_shape
from arc_ttt.errors import DeviceLost
from arc_ttt.model.cuda import recording_failed


@given(st.integers(1, 64), st.integers(1, 8192))
def test_shapes_hold_the_batch_with_little_padding(rows: int, length: int) -> None:
    shape = recorded_shape(rows, length)
    assert shape[0] == rows
    assert length <= shape[1] <= max(length + 31, 1.15 * length)


def test_shapes_are_few() -> None:
    assert len({recorded_shape(8, length) for length in range(1, 4097)}) < 48


def test_what_a_failed_recording_means(capsys: pytest.CaptureFixture[str]) -> None:
    """Too little memory: this shape only. Broken off by CUDA: torch leaves the process in the middle of it, so another
    process must go on. A lost device: likewise. Anything else: the plain pass does it from now on."""
    base = SimpleNamespace(record=True)
    recording_failed(base, torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[arg-type]
    assert base.record
    broken_off = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    with pytest.raises(DeviceLost, match="during capture"):
        recording_failed(base, broken_off)  # type: ignore[arg-type]
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory"):
        recording_failed(base, lost)  # type: ignore[arg-type]
    assert base.record
    recording_failed(base, RuntimeError("a kernel that does not exist"))  # type: ignore[arg-type]
    assert not base.record
    assert "does not exist" in capsys.readouterr().err
