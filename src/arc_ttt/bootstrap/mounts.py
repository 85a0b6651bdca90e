"""Find Kaggle's mounts and make bundled wheels importable without a network. Standard library only, imports nothing of
ours; everything it decides is returned with its reason, so that the run can record it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHALLENGES = "arc-agi_test_challenges.json"
SAMPLE = "sample_submission.json"
MANIFEST = "arc_ttt_manifest.json"
PROJECT = "arc-ttt"
BASE = frozenset({"bitsandbytes"})
"""Distributions of the base set; every other wheel but the project's own belongs to the set of unsloth."""
NO_4_BIT = "no 4-bit weights"
NO_UNSLOTH = "transformers instead of unsloth"  # how a line says so, wherever it was found out
LEAST_PROBE_S = 60.0  # with less time than this, an import is not tried out before it is needed
MOST_PROBE_S = 300.0

PROBES = {
    "bitsandbytes": """
import torch
from bitsandbytes.nn import Linear4bit
gpu = torch.cuda.is_available()
modern = gpu and torch.cuda.get_device_capability() >= (8, 0)
dtype = torch.bfloat16 if modern else torch.float16 if gpu else torch.float32
layer = Linear4bit(512, 512, bias=False, quant_type="nf4", compute_dtype=dtype).to("cuda" if gpu else "cpu")
for rows in (1, 16, 2048) if gpu else (2,):  # each by another kernel
    given = torch.ones(rows, 512, device=layer.weight.device, dtype=dtype, requires_grad=gpu)
    product = layer(given)
    assert torch.isfinite(product).all()
    if gpu:
        product.float().sum().backward()
        assert torch.isfinite(given.grad).all()
        torch.cuda.synchronize()
""",
    "unsloth": "from unsloth import FastLanguageModel",
}
"""What a process of its own must get through before a package counts as working."""


@dataclass(slots=True)
class Mounts:
    """What was found below the input folder.

    challenges, sample: the competition's files, None where there are none. others: further files of challenges.
    wheels: every .whl. unpacked: folders that hold an unpacked wheel, by distribution. models: folders with a
    config.json. digests: sha256 by name of file, as the bundle's manifest tells them. problems: what could not be read.
    """

    challenges: Path | None = None
    sample: Path | None = None
    others: list[Path] = field(default_factory=list)
    wheels: list[Path] = field(default_factory=list)
    unpacked: dict[str, Path] = field(default_factory=dict)
    models: list[Path] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_mounts(root: Path) -> Mounts:
    """Look through `root`/input in any layout: everything is known by the names of files, not by where they lie.

    Kaggle has mounted inputs as /kaggle/input/<slug> and as /kaggle/input/competitions/<slug> and so on.
    """
    mounts = Mounts()
    challenges, samples = list[Path](), list[Path]()
    for folder, folders, files in os.walk(root / "input"):
        folders.sort()
        here = Path(folder)
        if here.name.endswith(".dist-info"):
            mounts.unpacked.setdefault(_normal(here.name.split("-")[0]), here.parent)
        for name in sorted(files):
            path = here / name
            if name == CHALLENGES:
                challenges.append(path)
            elif name == SAMPLE:
                samples.append(path)
            elif name.endswith(".whl"):
                mounts.wheels.append(path)
            elif name == "config.json":
                mounts.models.append(here)
            elif name == MANIFEST:
                _read_manifest(path, mounts)
    if challenges:
        *mounts.others, mounts.challenges = sorted(challenges, key=_likelihood)
        samples = [path for path in samples if path.parent == mounts.challenges.parent] or samples
    if samples:
        mounts.sample = max(samples, key=_likelihood)
    return mounts


def _likelihood(path: Path) -> tuple[bool, bool, str]:
    """How likely a file is the competition's own and not a copy in a dataset or that of an earlier year."""
    return "competitions" in path.parts, any(part.startswith("arc-prize") for part in path.parts), str(path)


def _read_manifest(path: Path, mounts: Mounts) -> None:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["wheels"]
        mounts.digests |= {str(wheel["file"]): str(wheel["sha256"]) for wheel in listed}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        mounts.problems.append(f"{path.name} cannot be read, wheels are not compared with it: {type(error).__name__}")


def find_model(wanted: str, mounts: Mounts) -> tuple[Path, str] | None:
    """The mounted model folder that `wanted` names, and what is different about it: nothing, or that it is another
    version. None if no folder is that model.

    It may be mounted in the other layout, .../input/models/OWNER/MODEL/FRAMEWORK/VARIATION/1 or
    .../input/MODEL/FRAMEWORK/VARIATION/1 (a dataset: .../input/datasets/OWNER/SLUG or .../input/SLUG), and may lie
    deeper than the path says where it is the only one there.
    """
    path = Path(wanted)
    if (path / "config.json").is_file():
        return path, ""
    owner, name = _source(path)
    mounted = [(folder, *_source(folder)) for folder in mounts.models]
    same = [(folder, other) for folder, by, other in mounted if not owner or not by or owner == by]
    for folder, other in same:
        if other == name:
            return folder, ""
    inside = [folder for folder, other in same if name and other[: len(name)] == name]
    if len(inside) == 1:
        return inside[0], ""
    if len(name) > 1 and name[-1].isdigit():
        versions = [folder for folder, other in same if other[:-1] == name[:-1] and other[-1].isdigit()]
        if versions:
            newest = max(versions, key=lambda folder: int(folder.name))
            return newest, f"version {newest.name} of the model instead of {name[-1]}"
    return None


def _source(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Owner, empty where the layout does not tell, and the rest of a mount's path, in lower case."""
    parts = [part.lower() for part in folder.parts]
    below = parts[len(parts) - parts[::-1].index("input") :] if "input" in parts else parts
    if below[:1] and below[0] in ("models", "datasets", "notebooks") and len(below) > 2:
        return below[1], tuple(below[2:])
    return "", tuple(below)


def is_rerun() -> bool:
    """Whether this is the scoring rerun on the hidden tasks."""
    return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


def starts() -> int:
    """How often kernel.py's guard has started this run; 0 without one."""
    count = os.environ.get("ARC_TTT_STARTS", "")
    return int(count) if count.isdecimal() else 0


def owns_container() -> bool:
    """Whether Kaggle started this container for this run, so that its limit counts from the container's start."""
    return is_rerun() or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"


def scratch_folder(root: Path) -> Path:
    """A folder for what no one keeps: `root`/temp, or another place that can be written.

    Raises:
        OSError: there is none.
    """
    for base in (root / "temp", Path(tempfile.gettempdir()), root / "working"):
        try:
            folder = base / "arc_ttt"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".written").write_bytes(b"1")
            return folder
        except OSError:
            continue
    raise OSError("no folder for scratch files can be written")


def set_environment(scratch: Path) -> None:
    """Tell libraries, before any is imported, that there is no network, and where their caches go.

    Workers inherit it. What is set already stays.
    """
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        "ARC_TTT_SCRATCH": str(scratch),
        "HF_HOME": str(scratch / "hf"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "PYTHONPYCACHEPREFIX": str(scratch / "pyc"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),
    }.items():
        os.environ.setdefault(name, value)


# Wheels


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(wheel: str) -> str:
    """The distribution that a wheel's file name tells, in the normal form (foo-bar)."""
    return _normal(wheel.split("-")[0])


def misfit(wheel: str, python: tuple[int, int] = sys.version_info[:2], glibc: int = 0) -> str:
    """Why a wheel does not fit an interpreter on Linux, by its file name; empty if it does.

    python: version of the interpreter. glibc: minor version of glibc 2, 0 for this machine's. Source: the packaging
    guide's platform compatibility tags, for CPython on glibc.
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


def _version(wheel: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", wheel.name.split("-")[1]))


def choose_wheels(mounts: Mounts) -> tuple[dict[str, Path], dict[str, str]]:
    """By distribution the newest mounted wheel that fits this interpreter and is whole; and why others have none."""
    chosen: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for wheel in mounts.wheels:
        name = distribution(wheel.name)
        why = misfit(wheel.name) or damage(wheel, mounts.digests.get(wheel.name))
        if why:
            refused[name] = f"{wheel.name} is not used: {why}"
        elif name not in chosen or _version(wheel) > _version(chosen[name]):
            chosen[name] = wheel
    return chosen, {name: why for name, why in refused.items() if name not in chosen}


# Packages


@dataclass(slots=True)
class Packages:
    """What can be imported after the installation.

    four_bit: bitsandbytes works, or was not tried out for lack of time. unsloth: likewise, where it was asked for.
    notes: a line for each thing done. fallbacks: those of them that tell of something less than was asked for.
    """

    four_bit: bool = True
    unsloth: bool = False
    notes: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)


def prepare_packages(mounts: Mounts, scratch: Path, *, unsloth: bool, seconds: float) -> Packages:
    """Make the base set importable and, if asked for, the set of unsloth; try each out; step back where one fails.

    pip runs in a process of its own, without index and dependencies, into folders of `scratch`, so that the image's
    torch and numpy stay untouched. `seconds` bounds the whole. Never raises for a bad wheel.
    """
    result = Packages()
    before = list(sys.path), os.environ.get("PYTHONPATH")
    wheels, refused = choose_wheels(mounts)
    result.notes += refused.values()
    share_s = seconds / (4 if unsloth else 2)  # installing and trying out, for one set or two
    why = _whatever_happens(
        lambda: (
            _install_set("bitsandbytes", BASE, wheels, refused, mounts, scratch, result.notes, share_s)
            or _try_out("bitsandbytes", result.notes, share_s)
        )
    )
    if why:
        result.four_bit = False
        _go_back(*before)  # what does not work must not be found by those who would use it
        result.fallbacks.append(f"{NO_4_BIT}: {why}")
    if unsloth:
        others = frozenset({*wheels, *mounts.unpacked}) - BASE - {PROJECT}
        before = list(sys.path), os.environ.get("PYTHONPATH")
        why = _whatever_happens(
            lambda: (
                _install_set("unsloth", others, wheels, refused, mounts, scratch, result.notes, share_s)
                or _try_out("unsloth", result.notes, share_s)
            )
        )
        result.unsloth = not why
        if why:
            _go_back(*before)
            result.fallbacks.append(f"{NO_UNSLOTH}: {why}")
    return result


def _whatever_happens(prepare: Callable[[], str]) -> str:
    """Why `prepare` did not make a set work, also where that is an error nobody thought of: the model can answer
    without any set."""
    try:
        return prepare()
    except Exception as error:
        return f"preparing it failed: {type(error).__name__}: {error}"


def _go_back(path: list[str], inherited: str | None) -> None:
    """Bring the path back to what it was, here and for workers."""
    sys.path[:] = path
    if inherited is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = inherited


def _install_set(
    package: str,
    members: Iterable[str],
    wheels: Mapping[str, Path],
    refused: Mapping[str, str],
    mounts: Mounts,
    scratch: Path,
    notes: list[str],
    seconds: float,
) -> str:
    """Make the set that `package` gives its name importable. Returns why that failed, empty if it did not."""
    if importlib.util.find_spec(package) is not None:
        notes.append(f"{package}: the image has it")
        return ""
    members = sorted(members)
    for folder in sorted({mounts.unpacked[item] for item in members if item in mounts.unpacked and item not in wheels}):
        _put_on_path(folder)
    files = [wheels[item] for item in members if item in wheels]
    if files:
        target = scratch / f"site-{package}-{os.getpid()}"  # one that was killed may have left its pip at work
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--quiet"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "--target", str(target), *map(str, files)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=max(seconds, 5.0), check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"pip did not install {files[0].name}: {type(error).__name__}"
        if done.returncode:
            return f"pip did not install {files[0].name}: {_last_line(done.stderr)}"
        _put_on_path(target)
        notes.append(f"installed {', '.join(file.name for file in files)}")
    importlib.invalidate_caches()
    if importlib.util.find_spec(package) is None:
        return f"{package} is not in the image, and {refused.get(package, 'no wheel of it is mounted')}"
    return ""


def _put_on_path(folder: Path) -> None:
    """First on the path of this process and of its workers."""
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def _try_out(package: str, notes: list[str], seconds: float) -> str:
    """Import and use a package in a process of its own. Returns why that failed; nothing if it was not tried out."""
    if seconds < LEAST_PROBE_S:
        notes.append(f"{package}: not tried out, the time limit is too short")
        return ""
    command = [sys.executable, "-c", PROBES[package]]
    limit_s = min(seconds, MOST_PROBE_S)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"{package} was still importing after {limit_s:.0f} s"
    except OSError as error:
        return f"{package} could not be tried out: {error}"
    if done.returncode:
        return f"{package} does not work here: {_last_line(done.stderr)}"
    notes.append(f"{package}: works")
    return ""


def _last_line(text: str) -> str:
    """The last line that says something, as short as a log wants it; a line with `error` in it goes before others."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
    return telling[-1][:300]


# Memory


def gpu_memory_bytes() -> int:
    """Memory of the smallest GPU, 0 without a driver that tells."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return min((int(line) for line in done.stdout.split() if line.isdigit()), default=0) * 2**20
