"""Find Kaggle's mounts by the names of their files, in any layout.

Everything that is decided here is returned with its reason, so that the run can record it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from arc_ttt.bootstrap.wheels import normalized_name

CHALLENGES = "arc-agi_test_challenges.json"
SAMPLE = "sample_submission.json"
MANIFEST = "arc_ttt_manifest.json"


@dataclass(slots=True)
class Mounts:
    """What was found below the input folder.

    Args:
        challenges, sample: the competition's files, None where there are none.
        others: further files of challenges.
        wheels: every .whl.
        unpacked: folders that hold an unpacked wheel, by distribution.
        models: folders with a config.json.
        digests: sha256 by name of file, as the bundle's manifest tells them.
        problems: what could not be read.
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
            mounts.unpacked.setdefault(normalized_name(here.name.split("-")[0]), here.parent)
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
