"""Checks of the wheels and of the bundle."""

from __future__ import annotations

from collections.abc import Iterator

from arc_lab.publish.bundle import METADATA, SAFE_NAME, current_build, outdated
from arc_lab.publish.metadata import dataset_names, dataset_problems, read_metadata
from arc_lab.publish.preflight.checkup import Plan
from arc_lab.publish.preflight.findings import FAIL, OK, Finding
from arc_lab.publish.wheels import conflicts, members, read_lock, state


def check_wheels(plan: Plan) -> Iterator[Finding]:
    plan.need_bundle()
    wheels = members(read_lock(), plan.set, plan.image.python)
    wrong = [(wheel, told) for wheel in wheels if (told := state(wheel, plan.bundle))]
    for wheel, told in wrong:
        yield Finding(FAIL, wheel.file, f"{told} in the bundle: {plan.refetch}")
    problems = [] if wrong else conflicts(wheels, plan.bundle, plan.image)
    yield from (Finding(FAIL, "wheels", text) for text in problems)
    if not wrong and not problems:
        image = f"Python {plan.image.python}, torch {plan.image.packages.get('torch')}"
        yield Finding(OK, "wheels", f"set {plan.set}: the image ({image}) has the versions that these wheels require")


def check_bundle(plan: Plan) -> Iterator[Finding]:
    plan.need_bundle()
    body = read_metadata(plan.bundle / METADATA)
    problems = dataset_problems(body)
    if body.get("id") not in dataset_names(plan.metadata):
        problems.append(f"the dataset {body.get('id')} is not among dataset_sources: {plan.rebuild}")
    folders = [path.name for path in plan.bundle.iterdir() if path.is_dir()]
    unsafe = [path.name for path in plan.bundle.iterdir() if not SAFE_NAME.fullmatch(path.name)]
    problems += [f"{name}: folders are not uploaded" for name in folders]
    problems += [f"{name}: an upload may refuse this name" for name in unsafe]
    if why := outdated(plan.bundle):
        problems.append(f"{why}: {plan.rebuild}")
    yield from (Finding(FAIL, "bundle", text) for text in problems)
    if not problems:
        yield Finding(OK, "bundle", f"{body['id']}, made from commit {current_build().stamp}")
