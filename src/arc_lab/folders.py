"""Folders that commands make or replace as a whole, and the root of this checkout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from arc_ttt.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def part_of(folder: Path) -> Path:
    """Where a new `folder` is made beside the old one; nothing is there now."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    return beside


def replace_folder(beside: Path, folder: Path) -> None:
    """Put `beside` in the place of `folder`. Interrupted at any moment, one of them is whole and none is half."""
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
    """Make a folder to write to, where there is none.

    Raises:
        InputError: that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to")
