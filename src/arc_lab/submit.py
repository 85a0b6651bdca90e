"""`python -m arc_lab submit`: hand a pushed version of the kernel to the competition, once its own run is complete."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from arc_lab.metadata import read_metadata
from arc_lab.push import KaggleError, find_cli, run_cli
from arc_lab.wheels import ROOT
from arc_ttt.errors import InputError

OUTPUT = "submission.json"  # the name of the file that the version wrote, not a path on this machine


def submit(cli: str, root: Path, version: int, message: str) -> str:
    """Submit, if the version has run through. Returns what kaggle printed.

    Raises:
        InputError: the kernel's run is not complete, or Kaggle refused.
    """
    body = read_metadata(root / "kernel-metadata.json")
    kernel, competitions = str(body.get("id")), body.get("competition_sources") or []
    if not competitions:
        raise InputError("kernel-metadata.json names no competition under competition_sources")
    told = run_cli(cli, "kernels", "status", f"{kernel}/{version}")
    state = re.search(r"KernelWorkerStatus\.(\w+)", told)
    if state is None or state[1] != "COMPLETE":
        advice = "wait for it" if state and state[1] in ("QUEUED", "RUNNING") else f"see kaggle kernels logs {kernel}"
        raise KaggleError(
            f"version {version} of {kernel} is {state[1] if state else 'unknown'}, not COMPLETE -> {advice}"
        )
    words = ("-f", OUTPUT, "-k", kernel, "-v", str(version), "-m", message)
    return run_cli(cli, "competitions", "submit", str(competitions[0]), *words).strip()


def main(argv: Sequence[str]) -> int:
    """Run the command line. Returns 0, or 1 if Kaggle refused, or 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m arc_lab submit", description=__doc__)
    parser.add_argument("--version", type=int, required=True, metavar="N", help="version that the push printed")
    parser.add_argument("--message", default="arc-ttt", help="description of the submission")
    parser.add_argument("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel-metadata.json")
    options = parser.parse_args(argv)
    try:
        print(submit(find_cli(), options.kernel, options.version, options.message))
    except InputError as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1 if isinstance(error, KaggleError) else 2
    return 0
