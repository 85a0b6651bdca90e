"""Make bundled wheels importable, try them out, and step back where one fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from arc_ttt.bootstrap.mounts import Mounts
from arc_ttt.bootstrap.wheels import damage, distribution, misfit, wheel_version

PROJECT = "arc-ttt"
BASE = frozenset({"bitsandbytes"})
"""Distributions of the base set; every other wheel but the project's own belongs to the set of unsloth."""
BITSANDBYTES = "bitsandbytes"
UNSLOTH = "unsloth"
LEAST_PROBE_S = 60.0
"""With less time than this, an import is not tried out before it is needed."""
MOST_PROBE_S = 300.0
"""The most seconds for trying out an import."""
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


def choose_wheels(mounts: Mounts) -> tuple[dict[str, Path], dict[str, str]]:
    """By distribution the newest mounted wheel that fits this interpreter and is whole; and why others have none."""
    chosen: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for wheel in mounts.wheels:
        name = distribution(wheel.name)
        why = misfit(wheel.name) or damage(wheel, mounts.digests.get(wheel.name))
        if why:
            refused[name] = f"{wheel.name} is not used: {why}"
        elif name not in chosen or wheel_version(wheel) > wheel_version(chosen[name]):
            chosen[name] = wheel
    return chosen, {name: why for name, why in refused.items() if name not in chosen}


@dataclass(slots=True)
class Packages:
    """What can be imported after the installation.

    Args:
        four_bit: bitsandbytes works, or was not tried out for lack of time.
        unsloth: unsloth was asked for and works, or was not tried out for lack of time.
        notes: a line for each thing done.
        fallbacks: by package that cannot be used, a line that says what runs instead and why.
    """

    four_bit: bool = True
    unsloth: bool = False
    notes: list[str] = field(default_factory=list)
    fallbacks: dict[str, str] = field(default_factory=dict)


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
        result.fallbacks[BITSANDBYTES] = f"no 4-bit weights: {why}"
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
            result.fallbacks[UNSLOTH] = f"transformers instead of unsloth: {why}"
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
