"""`arc-lab wheels`: fetch the wheels that Kaggle's image lacks.

The wheels are compared with wheels/lock.json, and checked against the packages of the image (wheels/image.json).
"""

from __future__ import annotations

import contextlib
import email.parser
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from arc_lab.command_line import add_json, json_document, make_parser, print_table, reports_errors
from arc_lab.folders import make_folder
from arc_lab.publish.kaggle_image import IMAGE, IMAGE_HELP, WHEELS, Image, read_image
from arc_ttt.bootstrap.wheels import misfit
from arc_ttt.errors import InputError

SETS = ("base", "unsloth")
"""Sets of wheels; the first is the default."""

FETCH_LIMIT_S = 3600.0
"""Seconds after which a download is given up."""

NEVER_BUNDLED = ("torch", "triton", "numpy")
"""Packages that must stay the image's, like every nvidia-* and cuda-* package."""

GLIBC_TAGS = ("2_28", "2_27", "2_24", "2_17")
"""Versions of glibc in the tags of wheels. pip itself does not know that a newer glibc takes older tags."""

EXAMPLES = ("arc-lab wheels", "arc-lab wheels --set unsloth", "arc-lab wheels --check")


@dataclass(frozen=True, slots=True)
class Wheel:
    """One entry of the lock.

    Args:
        file: name of the wheel's file.
        name: name of the distribution.
        version: its version.
        sha256: digest of the file.
        size: bytes of the file.
        set: base or unsloth.
        python: versions of Python, as 3.12, that take this file.
        reason: why it is needed.
    """

    file: str
    name: str
    version: str
    sha256: str
    size: int
    set: str
    python: tuple[str, ...]
    reason: str


def read_lock(path: Path = WHEELS / "lock.json") -> list[Wheel]:
    """The wheels of a lock.

    Raises:
        InputError: the lock cannot be read, or names a package that must stay the image's.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["wheels"]
        wheels = [Wheel(**{**row, "python": tuple(row["python"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a lock of wheels: {type(error).__name__}: {error}") from error
    for wheel in wheels:
        if wheel.set not in SETS:
            raise InputError(f"{path}: {wheel.file}: no set {wheel.set!r}; there are {', '.join(SETS)}")
        if wheel.name in NEVER_BUNDLED or wheel.name.startswith(("nvidia-", "cuda-")):
            raise InputError(f"{path}: {wheel.name} must never be bundled: the image's own would stop working")
    return wheels


def members(lock: Iterable[Wheel], chosen: str, python: str) -> list[Wheel]:
    """Wheels of a set for a version of Python; unsloth includes base. Raises InputError if there are none."""
    sets = SETS if chosen == "unsloth" else (chosen,)
    found = [wheel for wheel in lock if wheel.set in sets and python in wheel.python]
    if not found:
        raise InputError(f"the lock has no wheel of set {chosen} for Python {python}: add them to wheels/lock.json")
    return found


def wheel_options(chosen: str, image: Path = IMAGE) -> str:
    """The options of `arc-lab wheels` and `arc-lab bundle` for a set and an image; empty for the defaults."""
    return (f" --set {chosen}" if chosen != SETS[0] else "") + (f" --image {image}" if image != IMAGE else "")


def defect(wheel: Wheel, folder: Path) -> str:
    """What is wrong with a wheel's file: missing, damaged, or nothing."""
    path = folder / wheel.file
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == wheel.sha256 else "damaged"


def fetch(wheels: Sequence[Wheel], folder: Path, python: str) -> list[str]:
    """Download with pip the wheels that are missing or damaged, within FETCH_LIMIT_S.

    Returns a line for each wheel that still differs from the lock.
    """
    wanted = [wheel for wheel in wheels if defect(wheel, folder)]
    if wanted:
        for wheel in wanted:
            (folder / wheel.file).unlink(missing_ok=True)
        short = "cp" + python.replace(".", "")
        command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps", "--require-hashes"]
        command += ["--disable-pip-version-check", "--quiet", "--implementation", "cp", "--python-version", python]
        command += [part for abi in (short, "abi3", "none") for part in ("--abi", abi)]
        tags = [*(f"manylinux_{version}_x86_64" for version in GLIBC_TAGS), "manylinux2014_x86_64", "linux_x86_64"]
        command += [part for tag in tags for part in ("--platform", tag)]
        with tempfile.TemporaryDirectory() as scratch:
            listed = Path(scratch) / "requirements.txt"
            rows = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wanted]
            listed.write_text("".join(rows), encoding="utf-8")
            words = [*command, "-d", str(folder), "-r", str(listed)]
            with contextlib.suppress(subprocess.TimeoutExpired):  # wheels that did not arrive are reported as missing
                subprocess.run(words, check=False, stdin=subprocess.DEVNULL, timeout=FETCH_LIMIT_S)
    problems = []
    for wheel in wheels:
        if wrong := defect(wheel, folder):
            (folder / wheel.file).unlink(missing_ok=True)
            problems.append(f"{wheel.file}: {wrong}")
    return problems


def conflicts(wheels: Iterable[Wheel], folder: Path, image: Image) -> list[str]:
    """Requirements of the wheels that neither they nor the image fulfil, and files that do not fit; a line each.

    Raises:
        InputError: a file is missing or is no wheel.
    """
    listed = list(wheels)
    have = {**image.packages, **{str(canonicalize_name(wheel.name)): wheel.version for wheel in listed}}
    major, minor = (int(part) for part in image.python.split("."))
    environment = {"python_version": image.python, "python_full_version": f"{image.python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": ""}
    found = []
    for wheel in listed:
        if why := misfit(wheel.file, (major, minor), int(image.glibc.split(".")[1])):
            found.append(f"{wheel.file}: {why}")
        for text in _requirements(folder / wheel.file):
            try:
                requirement = Requirement(text)
                if requirement.marker is not None and not requirement.marker.evaluate(environment):
                    continue
                version = have.get(canonicalize_name(requirement.name))
                if version is None:
                    found.append(f"{wheel.name} {wheel.version} needs {requirement}, which nothing brings")
                elif not requirement.specifier.contains(version, prereleases=True):
                    found.append(f"{wheel.name} {wheel.version} needs {requirement}, there is {version}")
            except (InvalidRequirement, InvalidVersion) as error:
                found.append(f"{wheel.name}: cannot be understood: {error}")
    return found


def _requirements(path: Path) -> list[str]:
    """The requirements of a wheel. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            message = email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError) as error:
        raise InputError(f"{path}: not a wheel: {error!r}") from error
    return [str(text) for text in message.get_all("Requires-Dist", [])]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


@reports_errors("wheels")
def main(argv: Sequence[str]) -> int:
    """Run the wheels command. Returns 0 if every wheel is there, as locked, and fits; else 1; 2 for wrong use."""
    parser = make_parser("wheels", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--set", choices=SETS, default=SETS[0], help="base, or unsloth with base")
    add("--python", metavar="3.N", help="version of Python on Kaggle (default: that of the image's description)")
    add("--image", type=Path, default=IMAGE, metavar="FILE", help=IMAGE_HELP)
    add("--into", type=Path, default=WHEELS, metavar="DIR", help="folder of the wheels (default: wheels)")
    add("--check", action="store_true", help="download nothing")
    add_json(parser)
    options = parser.parse_args(argv)
    image = read_image(options.image)
    python = options.python or image.python
    wheels = members(read_lock(), options.set, python)
    if options.check:
        problems = [f"{wheel.file}: {wrong}" for wheel in wheels if (wrong := defect(wheel, options.into))]
    else:
        make_folder(options.into)
        problems = fetch(wheels, options.into, python)
    if not problems and python == image.python:
        problems = conflicts(wheels, options.into, image)
    with json_document(options.json) as document:
        document |= {"set": options.set, "python": python, "problems": problems}
        document["bytes"] = {wheel.file: wheel.size for wheel in wheels}
        rows = [(wheel.file, f"{wheel.size / 1e6:.1f}", wheel.reason) for wheel in wheels]
        print_table(f"Wheels of set {options.set} for Python {python}", ("file", "MB", "reason"), rows)
        for line in problems:
            print(f"PROBLEM: {line}")
        result = _counted(len(problems), "problem") if problems else "all as locked"
        print(f"{_counted(len(wheels), 'wheel')}, {sum(wheel.size for wheel in wheels) / 1e6:.0f} MB, {result}")
    return 1 if problems else 0
