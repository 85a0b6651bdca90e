"""Errors of devices are told apart by what may help: less work, or a new process."""

from __future__ import annotations

import pytest

from arc_ttt.errors import DeviceLost, device_lost, out_of_memory


class OutOfMemoryError(RuntimeError):
    """Named as torch's own, which is a RuntimeError too."""


MEMORY = [
    OutOfMemoryError("whatever it says"),
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 14.76 GiB total capacity)"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
]
LOST = [
    DeviceLost("no CUDA device is available"),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    ValueError("CUDA error: in the text of something else"),
    KeyError("out of memory"),
    ValueError("grid"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_too_little_memory(error: Exception) -> None:
    assert out_of_memory(error)
    assert not device_lost(error)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_device_that_only_a_new_process_gets_back(error: Exception) -> None:
    assert device_lost(error)
    assert not out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_errors_that_are_those_of_a_job(error: Exception) -> None:
    assert not device_lost(error)
    assert not out_of_memory(error)
