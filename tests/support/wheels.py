"""Wheels made up for tests."""

from __future__ import annotations

import zipfile
from pathlib import Path

NAME = "bitsandbytes-1.0-py3-none-any.whl"


def make_wheel(folder: Path, name: str = NAME, code: str = "") -> Path:
    """A wheel with one module of the distribution's name."""
    folder.mkdir(parents=True, exist_ok=True)
    package, version = name.split("-")[:2]
    info, tag = f"{package}-{version}.dist-info", name[:-4].split("-", 2)[2]
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path
