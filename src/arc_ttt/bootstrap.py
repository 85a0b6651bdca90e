"""Find Kaggle's mounts and make bundled wheels importable without a network. Standard library only, imports nothing of
ours; everything it decides is returned, so that the run can record it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHALLENGES = "arc-agi_test_challenges.json"
SAMPLE = "sample_submission.json"


@dataclass(slots=True)
class Mounts:
    """What was found below the input folder. Paths are None where nothing was."""

    challenges: Path | None = None
    sample: Path | None = None
    wheels: list[Path] = field(default_factory=list)


def find_mounts(root: Path) -> Mounts:
    """Look through `root`/input in any layout: files are known by their names, wheels by their ending.

    Kaggle has mounted inputs as /kaggle/input/<slug> and as /kaggle/input/competitions/<slug> and so on.
    """
    mounts = Mounts()
    inputs = root / "input"
    for folder, folders, files in os.walk(inputs):
        folders.sort()
        for name in sorted(files):
            path = Path(folder) / name
            if name == CHALLENGES and mounts.challenges is None:
                mounts.challenges = path
            elif name == SAMPLE and mounts.sample is None:
                mounts.sample = path
            elif name.endswith(".whl"):
                mounts.wheels.append(path)
    return mounts


def is_kaggle(root: Path) -> bool:
    """Whether this process runs in Kaggle's container (or a rehearsal of it below `root`)."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ or (root / "input").is_dir()


def is_rerun() -> bool:
    """Whether this is the scoring rerun on the hidden tasks."""
    return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


def owns_container() -> bool:
    """Whether Kaggle started this container for this run, so that its limit counts from the container's start."""
    return is_rerun() or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"


def install_missing(
    wheels: Sequence[Path], modules: Sequence[str], target: Path, timeout_s: float = 300.0
) -> list[str]:
    """Install those wheels whose module is wanted and not importable into `target`, and put it first on the path.

    pip runs in a process of its own, without index and dependencies, so the image's torch and numpy stay untouched.
    Returns a line for each thing done or not done; never raises for a bad wheel.
    """
    notes: list[str] = []
    for module in modules:
        if importlib.util.find_spec(module) is not None:
            notes.append(f"{module}: the image has it")
            continue
        fitting = [
            wheel for wheel in wheels if wheel.name.split("-")[0].lower().replace("_", "-") == module.replace("_", "-")
        ]
        if not fitting:
            notes.append(f"{module}: missing, and no wheel for it is mounted")
            continue
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--quiet"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "--target", str(target), str(fitting[-1])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
            worked = done.returncode == 0
            notes.append(f"{module}: {'installed' if worked else 'not installed'} from {fitting[-1].name}")
            if not worked:
                notes.append(done.stderr.strip()[-300:])
        except (OSError, subprocess.TimeoutExpired) as error:
            notes.append(f"{module}: not installed: {error}")
    if target.is_dir() and str(target) not in sys.path:
        sys.path.insert(0, str(target))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    return notes
