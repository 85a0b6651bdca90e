"""Checks of the wheels and of the bundle."""

from __future__ import annotations

from collections.abc import Iterator

from arc_lab.folders import current_build
from arc_lab.publish.bundle import METADATA, SAFE_NAME, outdated
from arc_lab.publish.metadata import dataset_names, dataset_problems, read_metadata
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.preflight.findings import Finding, Level
from arc_lab.publish.wheels import conflicts, defect, members, read_lock


def check_wheels(checkup: Checkup) -> Iterator[Finding]:
    """The bundle's wheels are as locked, and fit the image."""
    checkup.need_bundle()
    wheels = members(read_lock(), checkup.set, checkup.image.python)
    wrong = [(wheel, why) for wheel in wheels if (why := defect(wheel, checkup.bundle))]
    for wheel, why in wrong:
        yield Finding(Level.FAIL, wheel.file, f"{why} in the bundle: {checkup.refetch}")
    problems = [] if wrong else conflicts(wheels, checkup.bundle, checkup.image)
    yield from (Finding(Level.FAIL, "wheels", text) for text in problems)
    if not wrong and not problems:
        image = f"Python {checkup.image.python}, torch {checkup.image.packages.get('torch')}"
        yield Finding(
            Level.OK, "wheels", f"set {checkup.set}: the image ({image}) has the versions that these wheels require"
        )


def check_bundle(checkup: Checkup) -> Iterator[Finding]:
    """The bundle can be uploaded, is named by the kernel, and holds today's code."""
    checkup.need_bundle()
    body = read_metadata(checkup.bundle / METADATA)
    problems = dataset_problems(body)
    if body.get("id") not in dataset_names(checkup.metadata):
        problems.append(f"the dataset {body.get('id')} is not among dataset_sources: {checkup.rebuild}")
    folders = [path.name for path in checkup.bundle.iterdir() if path.is_dir()]
    unsafe = [path.name for path in checkup.bundle.iterdir() if not SAFE_NAME.fullmatch(path.name)]
    problems += [f"{name}: folders are not uploaded" for name in folders]
    problems += [f"{name}: an upload may refuse this name" for name in unsafe]
    if why := outdated(checkup.bundle):
        problems.append(f"{why}: {checkup.rebuild}")
    yield from (Finding(Level.FAIL, "bundle", text) for text in problems)
    if not problems:
        yield Finding(Level.OK, "bundle", f"{body['id']}, made from commit {current_build().stamp}")
