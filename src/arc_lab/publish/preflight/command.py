"""`arc-lab preflight`: check everything about a submission that can be checked at home.

Every finding is one line, and says what to do if something is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from arc_lab.command_line import add_json, json_document, make_parser, reports_errors
from arc_lab.folders import ROOT
from arc_lab.publish.bundle import BUNDLE
from arc_lab.publish.kaggle_image import IMAGE, IMAGE_HELP, read_image
from arc_lab.publish.preflight.bundle import check_bundle, check_wheels
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.preflight.findings import AlreadyReported, Finding, Level, NoModel
from arc_lab.publish.preflight.imports import check_imports
from arc_lab.publish.preflight.metadata import check_licence, check_metadata, check_settings, check_sources
from arc_lab.publish.preflight.model import check_memory, check_model
from arc_lab.publish.preflight.trial_run import check_forecast, check_run
from arc_lab.publish.wheels import SETS
from arc_ttt.errors import InputError, SettingsError

Check = Callable[[Checkup], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
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
"""All checks, in the order in which they are printed."""

EXAMPLES = ("arc-lab preflight", "arc-lab preflight --set unsloth --model DIR", "arc-lab preflight --short --json")


def findings(checkup: Checkup) -> Iterator[Finding]:
    """What all checks find. A check that cannot be made is a finding too.

    The first check that cannot be made for some reason reports it; others that fail for that reason are skipped.
    """
    reported: set[str] = set()
    for check in CHECKS:
        subject = check.__name__.removeprefix("check_")
        try:
            for finding in check(checkup):
                reported |= {finding.text} if finding.level == Level.FAIL else set()
                yield finding
        except (InputError, OSError) as error:
            reason = str(error)
            if isinstance(error, NoModel):
                yield Finding(Level.SKIPPED, subject, reason)
            elif isinstance(error, AlreadyReported) or reason in reported:
                yield Finding(Level.SKIPPED, subject, "it needs what failed above")
            else:
                yield Finding(Level.FAIL, "SETTINGS" if isinstance(error, SettingsError) else subject, reason)
            reported.add(reason)


@reports_errors("preflight")
def main(argv: Sequence[str]) -> int:
    """Run the preflight command. Returns 0 if nothing would fail, 1 if something would, 2 for wrong use."""
    parser = make_parser("preflight", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--set", choices=SETS, default=SETS[0], help="wheels that the bundle has")
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="folder of the bundle (default: build/bundle)")
    add("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel.py (default: this one)")
    add("--image", type=Path, default=IMAGE, metavar="FILE", help=IMAGE_HELP)
    add("--model", type=Path, metavar="DIR", help="folder here of the checkpoint that will be mounted")
    add("--short", action="store_true", help="leave out the run of two tasks")
    add_json(parser)
    options = parser.parse_args(argv)
    image = read_image(options.image)
    checkup = Checkup(options.kernel, options.bundle, image, options.set, options.model, options.short, options.image)
    found = []
    with json_document(options.json) as document:
        for finding in findings(checkup):
            found.append(finding)
            print(finding, flush=True)
        failed, skipped = (sum(one.level == level for one in found) for level in (Level.FAIL, Level.SKIPPED))
        left = f"; {skipped} checks were skipped" if skipped else ""
        print((f"{failed} things to mend" if failed else "nothing left to mend at home") + left)
        document["findings"] = [asdict(finding) for finding in found]
    return 1 if failed else 0
