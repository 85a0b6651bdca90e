"""Wheel files: what their names say, whether they fit this Python, and whether they are damaged."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import zipfile
from pathlib import Path


def normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(wheel: str) -> str:
    """The distribution that a wheel's file name tells, in the normal form (foo-bar)."""
    return normalized_name(wheel.split("-")[0])


def misfit(wheel: str, python: tuple[int, int] = sys.version_info[:2], glibc: int = 0) -> str:
    """Why a wheel does not fit an interpreter on Linux, by its file name; empty if it does.

    Source: the packaging guide's platform compatibility tags, for CPython on glibc.

    Args:
        python: version of the interpreter.
        glibc: minor version of glibc 2, 0 for this machine's.
    """
    parts = wheel.removesuffix(".whl").split("-")
    if not wheel.endswith(".whl") or len(parts) not in (5, 6):
        return "its name is not that of a wheel"
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    pairs = [(tag, abi) for tag in pythons for abi in abis if _fits_python(tag, abi, python)]
    if not pairs:
        return f"it is for {parts[-3]}-{parts[-2]}, this is Python {python[0]}.{python[1]}"
    glibc = glibc or _glibc_minor()
    bare = any(abi == "none" for _, abi in pairs)
    if not any(_fits_platform(tag, glibc) and (bare or tag != "any") for tag in platforms):
        return f"it is for {parts[-1]}, this is {platform.machine()} with glibc 2.{glibc}"
    return ""


def _fits_python(tag: str, abi: str, python: tuple[int, int]) -> bool:
    found = re.fullmatch(r"(py|cp)(\d)(\d*)", tag)
    if found is None or int(found[2]) != python[0]:
        return False
    minor = int(found[3]) if found[3] else None
    if found[1] == "py":
        return abi == "none" and (minor is None or minor <= python[1])
    if minor == python[1]:
        return abi in ("none", "abi3", tag)
    return minor is not None and 2 <= minor < python[1] and abi == "abi3"


def _fits_platform(tag: str, glibc: int) -> bool:
    old = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17, "linux": 0}
    found = re.fullmatch(r"(manylinux_2_(\d+)|manylinux1|manylinux2010|manylinux2014|linux)_(\w+)", tag)
    if found is None:
        return tag == "any"
    needed = int(found[2]) if found[2] else old[found[1]]
    return found[3] == platform.machine() and needed <= glibc


def _glibc_minor() -> int:
    version = platform.libc_ver()[1].split(".")
    return int(version[1]) if len(version) > 1 and version[1].isdigit() else 0


def damage(wheel: Path, digest: str | None) -> str:
    """What is wrong with the bytes of a wheel, empty if nothing is: compared with `digest` (sha256), if one is known,
    else read through as a zip archive."""
    try:
        if digest is not None:
            with wheel.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == digest
            return "" if same else "it is damaged: its sha256 is not the one in the manifest"
        with zipfile.ZipFile(wheel) as archive:
            bad = archive.testzip()
            return f"it is damaged: {bad} inside it cannot be read" if bad else ""
    except Exception as error:  # damage shows as many kinds of errors, zlib's own among them
        return f"it is damaged: {error}"


def wheel_version(wheel: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", wheel.name.split("-")[1]))
