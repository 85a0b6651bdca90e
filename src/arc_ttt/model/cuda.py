"""Devices, their number types, and what recording on them needs."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arc_ttt.errors import DeviceLost, device_lost, out_of_memory
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.presets import DEVICE_PRESETS, device_preset


def release_memory(device: torch.device) -> None:
    """Give back what an attempt that did not fit has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def pick_device(index: int | None) -> torch.device:
    """The worker's device: its one visible GPU, or the CPU."""
    if index is not None and torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type: as named, or by what the device does fast.

    torch.cuda.is_bf16_supported() is no guide: it is true on a T4, which only emulates bfloat16.
    """
    if name != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        name = str(DEVICE_PRESETS[device_preset(torch.cuda.get_device_capability(device))]["model.dtype"])
        return compute_dtype(name, device)
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware. Emulated, it is some fifty times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.cache
def side_stream(device: torch.device, purpose: str) -> Any:
    """The stream of a GPU for one purpose: libraries keep 32 MiB of workspace for every stream they have worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def warm_up(device: torch.device, run: Callable[[], object]) -> None:
    """Do once what is to be recorded, for what libraries set up at their first call must not be; on a stream that never
    records."""
    side = side_stream(device, "warming up")
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)


def recording_failed(base: LoadedModel, error: RuntimeError) -> None:
    """What a failed recording means: memory did not suffice, or nothing is to be recorded any more.

    Raises:
        DeviceLost: CUDA broke the recording off. torch then leaves the stream and the allocator of this process as they
            were within it; the next process records nothing.
        RuntimeError: the error itself, where the device is lost and the recording is not to blame.
    """
    if out_of_memory(error):
        return
    print(f"steps cannot be recorded on this device: {error}", file=sys.stderr)
    if "captur" in str(error).lower():
        raise DeviceLost(f"a recording of steps failed, and the device is lost to this process: {error}") from error
    if device_lost(error):
        raise error
    base.record = False
