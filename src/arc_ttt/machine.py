"""What the machine, or the container on it, has: memory that is left, GPUs and their names. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (  # limit, used, statistics and the name of the page cache in them; of versions 2 and 1
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
UNLIMITED = 1 << 60
"""Version 1 of cgroups writes a number near 2**63 for no limit."""


def available_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that processes may still take before the kernel kills one; None where nothing tells.

    The least of what the machine has available and what the container's limit leaves, page cache that can be dropped
    not counted as used. Reads cgroups of both versions.
    """
    found = [bytes_ for bytes_ in (_available(proc), _left_of_limit(cgroup)) if bytes_ is not None]
    return min(found) if found else None


def _available(proc: Path) -> int | None:
    kilobytes = _fields(proc / "meminfo").get("MemAvailable:")
    return kilobytes * 1024 if kilobytes is not None else None


def _left_of_limit(cgroup: Path) -> int | None:
    for limit_name, used_name, stat_name, cache_name in _CGROUP_FILES:
        limit, used = _number(cgroup / limit_name), _number(cgroup / used_name)
        if limit is not None and used is not None and limit < UNLIMITED:
            return max(0, limit - used + _fields(cgroup / stat_name).get(cache_name, 0))
    return None


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _fields(path: Path) -> dict[str, int]:
    """Lines "name number ..." of a file; empty if it cannot be read."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            parts = line.split()
            if len(parts) > 1 and parts[1].isdigit():
                found[parts[0]] = int(parts[1])
    return found


def count_gpus() -> int:
    """Visible NVIDIA GPUs, without importing torch: one folder of the driver or one device file for each."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    with contextlib.suppress(OSError):
        listed = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
        if listed:
            return listed
    return len(list(Path("/dev").glob("nvidia[0-9]*")))  # some containers hide the driver's folder


def device_name() -> str:
    """What the driver calls the first GPU; "cpu" without one, "" where the driver does not tell."""
    if not count_gpus():
        return "cpu"
    with contextlib.suppress(OSError):
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            for line in file.read_text().splitlines():
                if line.startswith("Model:"):
                    return line.partition(":")[2].strip()
    return ""


def gpu_memory_bytes() -> int:
    """Memory of the smallest GPU, 0 without a driver that tells."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return min((int(line) for line in done.stdout.split() if line.isdigit()), default=0) * 2**20
