"""Free memory: the least of what the machine has and what the container may take, under cgroups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_ttt.machine import available_memory

GIB = 1 << 30
MEMINFO = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8388608 kB\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V2 = {"memory_DOT_max": f"{10 * GIB}", "memory_DOT_current": f"{9 * GIB}"}
V1 = {"memory__memory_DOT_limit_in_bytes": f"{10 * GIB}", "memory__memory_DOT_usage_in_bytes": f"{9 * GIB}"}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        (V2, 1),
        ({**V2, "memory_DOT_stat": f"anon 5\ninactive_file {3 * GIB}\nfile 7"}, 4),
        ({**V2, "memory_DOT_max": "max\n"}, 8),
        ({**V2, "memory_DOT_max": f"{100 * GIB}"}, 8),
        ({**V2, "memory_DOT_current": f"{11 * GIB}"}, 0),
        (V1, 1),
        ({**V1, "memory__memory_DOT_stat": f"total_inactive_file {2 * GIB}\n"}, 3),
        ({**V1, "memory__memory_DOT_limit_in_bytes": "9223372036854771712\n"}, 8),
        ({}, 8),
        ({"memory_DOT_max": "garbage", "memory_DOT_current": ""}, 8),
    ],
    ids=["v2", "v2 cache", "v2 no limit", "v2 wide limit", "v2 over", "v1", "v1 cache", "v1 no limit", "none", "odd"],
)
def test_the_least_of_machine_and_container(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    proc = write(tmp_path / "proc", meminfo=MEMINFO)
    assert available_memory(proc, write(tmp_path / "cgroup", **files)) == gib * GIB


def test_where_nothing_tells(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None
    assert available_memory(tmp_path, write(tmp_path / "cgroup", **V2)) == GIB
