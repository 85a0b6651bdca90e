"""What an exception of a device means: too little memory, or a context that only a new process can replace.

Told by names and texts, so that torch need not be imported; CUDA's own errors reach Python as plain RuntimeErrors.
"""

from __future__ import annotations

_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "launch failure",
    "cuda error",
    "cublas_status_execution_failed",
    "uncorrectable ecc",
    "no cuda-capable device",
    "no cuda gpus are available",
    "fallen off the bus",
    "nvml",
    "device is lost",
)


class DeviceLost(RuntimeError):
    """The device that a worker should use is not there."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory: less work may succeed in the same process."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"OutOfMemoryError", "MemoryError"}) or _says(error, _NO_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Whether every later call on the device would fail too: the process must end and another take its place."""
    lost = isinstance(error, DeviceLost) or (isinstance(error, RuntimeError) and _says(error, _LOST))
    return lost and not out_of_memory(error)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in said for text in texts)
