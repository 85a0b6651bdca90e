"""`python -m arc_lab preflight`: everything about a submission that can be checked at home, one line each, and what to
do about what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from arc_lab.folders import ROOT
from arc_lab.publish.bundle import (
    BUNDLE,
)
from arc_lab.publish.kaggle_image import IMAGE, read_image
from arc_lab.publish.preflight.bundle import check_bundle, check_wheels
from arc_lab.publish.preflight.checkup import Plan
from arc_lab.publish.preflight.findings import FAIL, SKIPPED, Finding, NoModel
from arc_lab.publish.preflight.imports import check_imports
from arc_lab.publish.preflight.metadata import check_licence, check_metadata, check_settings, check_sources
from arc_lab.publish.preflight.model import check_memory, check_model
from arc_lab.publish.preflight.trial_run import check_forecast, check_run
from arc_lab.publish.wheels import SETS
from arc_ttt.errors import InputError, SettingsError

CHECKS: tuple[Callable[[Plan], Iterator[Finding]], ...] = (
    check_licence,
    check_metadata,
    check_settings,
    check_bundle,
    check_sources,
    check_wheels,
    check_model,
    check_memory,
    check_forecast,
    check_imports,
    check_run,
)


def findings(plan: Plan) -> Iterator[Finding]:
    """All checks; one that cannot be made is a finding too. What stops several is told once, the others are skipped."""
    told: set[str] = set()
    for check in CHECKS:
        subject = check.__name__.removeprefix("check_")
        try:
            for finding in check(plan):
                told |= {finding.text} if finding.grade == FAIL else set()
                yield finding
        except (InputError, OSError) as error:
            if isinstance(error, NoModel):
                yield Finding(SKIPPED, subject, f"{error}")
            elif f"{error}" in told:
                yield Finding(SKIPPED, subject, "it needs what failed above")
            else:
                yield Finding(FAIL, "SETTINGS" if isinstance(error, SettingsError) else subject, f"{error}")
            told.add(f"{error}")


def main(argv: Sequence[str]) -> int:
    """Run the command line. Returns 0 if nothing would fail, else 1."""
    parser = argparse.ArgumentParser(prog="python -m arc_lab preflight", description=__doc__)
    add = parser.add_argument
    add("--set", choices=SETS, default="base", help="wheels that the bundle has (default: base)")
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="folder of the bundle (default: build/bundle)")
    add("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel.py (default: this one)")
    add("--image", type=Path, default=IMAGE, metavar="FILE", help="an image's description or setup.json")
    add("--model", type=Path, metavar="DIR", help="folder here of the checkpoint that will be mounted")
    add("--short", action="store_true", help="leave out the run of two tasks")
    options = parser.parse_args(argv)
    try:
        image = read_image(options.image)
    except InputError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    plan = Plan(options.kernel, options.bundle, image, options.set, options.model, options.short, options.image)
    failed = skipped = 0
    for finding in findings(plan):
        failed += finding.grade == FAIL
        skipped += finding.grade == SKIPPED
        print(finding, flush=True)
    left = f"; {skipped} checks were skipped" if skipped else ""
    print((f"{failed} things to mend" if failed else "nothing left to mend at home") + left)
    return 1 if failed else 0
