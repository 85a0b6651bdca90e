"""Where a run's figures come from: date, version, commit, command, seed, packages and devices."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arc_ttt.deadline import wall_date
from arc_ttt.machine import device_name

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "unsloth", "numpy", "scipy")
SOURCE = Path(__file__).resolve().parents[1]


def provenance(seed: int, devices: Mapping[int, str]) -> dict[str, Any]:
    """The `run` block of report.json.

    Args:
        seed: of the run.
        devices: by slot, what the worker said of its device.
    """
    return {
        "date": wall_date(),
        **(build_stamp() or source_stamp()),
        "argv": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "machine": device_name(),
        "devices": {str(slot): name for slot, name in sorted(devices.items())},
    }


def build_stamp() -> dict[str, str]:
    """Version and commit that the project's wheel was built from; empty in a source tree."""
    try:
        stamp = json.loads((SOURCE / "build.json").read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in stamp.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def source_stamp() -> dict[str, str]:
    """Version and commit of a source tree, "+changes" behind a commit that the files differ from."""
    commit = _git("log", "-1", "--format=%h", "--abbrev=12")
    changed = commit and _git("status", "--porcelain", "--", str(SOURCE))
    version = package_version("arc-ttt")
    return {"version": version, "commit": commit + ("+changes" if changed else "")}


def package_version(name: str) -> str:
    """The version of an installed package, without importing it; empty if it is not installed."""
    with contextlib.suppress(Exception):  # metadata of other people's packages may be odd
        return importlib.metadata.version(name)
    return ""


def _git(*words: str) -> str:
    """What git says about the source tree; empty where there is no git or no checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(SOURCE), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""
