"""How much memory this machine, or the container on it, has left."""

from __future__ import annotations

import contextlib
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_CGROUP_FILES = (  # limit, used, statistics and the name of the page cache in them; of versions 2 and 1
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
UNLIMITED = 1 << 60  # version 1 of cgroups writes a number near 2**63 for no limit


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
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
