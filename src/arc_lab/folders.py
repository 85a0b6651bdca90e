"""This checkout and the commit of its code, and folders that commands make or replace as a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arc_ttt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
"""The folder of this checkout."""

SHIPPED = ("src/arc_ttt", "pyproject.toml", "LICENSE")
"""Everything from which the wheel for Kaggle is made."""

CODE = ("src", "kernel.py", "pyproject.toml")
"""Everything that decides what a command does."""

GIT_LIMIT_S = 20.0
"""Seconds after which a question to git is given up."""


@dataclass(frozen=True, slots=True)
class Build:
    """Version and commit of some files of this checkout.

    Args:
        version: version of the project.
        commit: the last commit that changed any of the files.
        dirty: whether the files differ from that commit.
    """

    version: str
    commit: str
    dirty: bool

    @property
    def stamp(self) -> str:
        """The commit, followed by "+changes" where the files differ from it."""
        return self.commit + ("+changes" if self.dirty else "")


def current_build(root: Path = ROOT, sources: Sequence[str] = SHIPPED) -> Build:
    """Version of a source tree and the last commit of `sources` in it; "unknown" outside a git checkout.

    Raises:
        OSError: there is no pyproject.toml.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changed = _git(root, "status", "--porcelain", "--", *sources)
    commit = _git(root, "log", "-1", "--format=%h", "--abbrev=12", "--", *sources)
    return Build(str(project["version"]), commit or "unknown", bool(changed))


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=GIT_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def part_of(folder: Path) -> Path:
    """The path beside `folder` at which its successor is made. What an interrupted attempt left there is removed."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    return beside


def replace_folder(beside: Path, folder: Path) -> None:
    """Put `beside` in the place of `folder`. Whenever this is interrupted, one of the two is left whole."""
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Bring back what an interruption within `replace_folder` has left under another name."""
    if _old(folder).exists() and not folder.exists():
        _old(folder).replace(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def make_folder(folder: Path) -> None:
    """Make a folder if it is missing.

    Raises:
        InputError: it cannot be made, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to")
