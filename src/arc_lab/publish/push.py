"""`arc-lab push`: upload the bundle and the kernel with the official kaggle command line, and check what arrived.

The command reads what the kaggle command line prints, because that ends with success after many failures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arc_lab.command_line import add_json, json_document, make_parser, reports_errors
from arc_lab.folders import ROOT
from arc_lab.publish.bundle import BUNDLE, METADATA, outdated
from arc_lab.publish.kaggle_cli import LOG_IN, NO_NETWORK, UPLOAD_LIMIT_S, KaggleError, find_cli, run_cli
from arc_lab.publish.metadata import dataset_names, dataset_problems, kernel_problems, read_metadata, source_differences
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.errors import InputError

PUSHED = re.compile(r"Kernel version (\d+) successfully pushed")
"""What the kaggle command line prints after a push."""

READY_LIMIT_S = 1800.0
"""Seconds until Kaggle must have unpacked a dataset."""

READY_EVERY_S = 5.0
"""Seconds between two questions whether it has."""

OLD_CODE = "the kernel would run the code that its dataset holds already: to push both, bundle and leave --only out"

ABSENT = re.compile(r"404 Client Error|[Nn]ot [Ff]ound|Permission 'datasets\.get' was denied")
"""What Kaggle says of a dataset that does not exist. It uses the words for one that you may not see as well."""

EXAMPLES = ("arc-lab push --dry-run", 'arc-lab push --message "longer training"', "arc-lab push --only kernel")


def _older(bundle: Path) -> str:
    """Why a bundle does not hold today's code, as far as that can be known; empty if it does."""
    try:
        return outdated(bundle)
    except InputError as error:
        return str(error)


def check_ready(bundle: Path, root: Path, only: str | None = None) -> None:
    """Check everything that can be checked before Kaggle is asked.

    Args:
        bundle: folder of the bundle.
        root: folder of kernel-metadata.json.
        only: "dataset" or "kernel" if only that part is pushed.

    Raises:
        InputError: something is wrong; the message says what to do.
    """
    asked = read_metadata(root / "kernel-metadata.json")
    if only != "dataset" and (problems := kernel_problems(asked, root)):
        raise InputError(f"kernel-metadata.json: {problems[0]}")
    if only == "kernel":
        return
    if why := outdated(bundle):
        raise InputError(f"{why}: run arc-lab bundle")
    body = read_metadata(bundle / METADATA)
    if problems := dataset_problems(body):
        raise InputError(f"{METADATA}: {problems[0]}")
    if body["id"] not in dataset_names(asked):
        where = "dataset_sources in kernel-metadata.json"
        raise InputError(f"the bundle is for {body['id']}, which is not among {where}: run arc-lab bundle")


def push_dataset(cli: str, folder: Path, message: str) -> str:
    """Create the bundle's dataset, or a new version of it, and wait until Kaggle has unpacked it. Returns its name.

    Raises:
        InputError: the folder is no bundle.
        KaggleError: a command failed.
    """
    body = read_metadata(folder / METADATA)
    if problems := dataset_problems(body):
        raise InputError(f"{METADATA}: {problems[0]}")
    if inner := [path.name for path in folder.iterdir() if path.is_dir()]:
        raise InputError(f"{folder}: the folder {inner[0]} would not be uploaded: the bundle must be flat")
    name = str(body["id"])
    there, before = dataset_state(cli, name)
    if there:
        run_cli(cli, "datasets", "version", "-p", str(folder.resolve()), "-m", message, limit_s=UPLOAD_LIMIT_S)
    else:
        run_cli(cli, "datasets", "create", "-p", str(folder.resolve()), limit_s=UPLOAD_LIMIT_S)
    end_s = time.monotonic() + READY_LIMIT_S
    while True:
        trouble = ""
        try:
            state, version = dataset_state(cli, name)
        except KaggleError as error:  # Kaggle has the upload: trouble that passes is no reason to give up
            if error.advice in (LOG_IN, NO_NETWORK):
                raise
            state, version, trouble = "", 0, f"; {error}"
        if state == "ready" and version > before:
            return name
        if state in ("failed", "deleted") or time.monotonic() > end_s:
            failure = f"dataset {name} is {state or 'not there'}{trouble}"
            raise KaggleError(failure, "its page on Kaggle gives the reason")
        time.sleep(READY_EVERY_S)


def dataset_state(cli: str, name: str) -> tuple[str, int]:
    """State of a dataset on Kaggle (ready, failed, ...) and its newest version; ("", 0) if it does not exist.

    Raises:
        KaggleError: another error, or an answer that cannot be read.
    """
    try:
        output = run_cli(cli, "datasets", "status", name, "--format", "json")
    except KaggleError as error:
        if ABSENT.search(error.failure):
            return "", 0
        raise
    try:
        body = json.loads(output[output.index("{") :])
        return str(body["status"]).lower(), int(body["current_version_number"] or 0)
    except (ValueError, KeyError, TypeError) as error:
        raise KaggleError(f"kaggle datasets status {name} printed {output.strip()[-200:]!r}") from error


def push_kernel(cli: str, root: Path) -> int:
    """Push the kernel of a folder, compare what Kaggle then holds with the metadata, and return its version.

    Raises:
        InputError: the metadata are wrong.
        KaggleError: a command failed, or Kaggle dropped something.
    """
    asked = read_metadata(root / "kernel-metadata.json")
    if problems := kernel_problems(asked, root):
        raise InputError(f"kernel-metadata.json: {problems[0]}")
    output = run_cli(cli, "kernels", "push", "-p", str(root.resolve()))
    found = PUSHED.search(output)
    if found is None:
        raise KaggleError(f"kaggle kernels push did not say that it pushed a version: {output.strip()[-300:]!r}")
    if problems := source_differences(asked, stored_metadata(cli, str(asked["id"]))):
        raise KaggleError(f"version {found[1]} was pushed, but not as asked: {'; '.join(problems)}")
    return int(found[1])


def stored_metadata(cli: str, kernel: str) -> dict[str, Any]:
    """The kernel's metadata as Kaggle holds them. Raises KaggleError, or InputError if they cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        run_cli(cli, "kernels", "pull", kernel, "-p", folder, "-m")
        return read_metadata(Path(folder) / "kernel-metadata.json")


def commands(bundle: Path, root: Path, only: str | None = None) -> list[str]:
    """The commands that a push would run, as a person would type them. Arguments as for `check_ready`."""
    lines = []
    if only != "kernel":
        dataset = read_metadata(bundle / METADATA)["id"]
        lines += [
            f"kaggle datasets status {dataset}",
            f"kaggle datasets create -p {bundle}    # or, if there is one: datasets version -p {bundle} -m MESSAGE",
            f"kaggle datasets status {dataset}    # until it says ready",
        ]
    if only != "dataset":
        kernel = read_metadata(root / "kernel-metadata.json")["id"]
        lines += [
            f"kaggle kernels push -p {root}",
            f"kaggle kernels pull {kernel} -p FOLDER -m    # to see which sources Kaggle kept",
        ]
    return lines


@reports_errors("push")
def main(argv: Sequence[str]) -> int:
    """Run the push command. Returns 0, or 1 if Kaggle refused or changed something, or 2 for wrong use."""
    parser = make_parser("push", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="folder of the bundle (default: build/bundle)")
    add("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel-metadata.json (default: this one)")
    add("--only", choices=("dataset", "kernel"), help="push only this")
    add("--message", default="new version", help="message of a new version of the dataset")
    add("--dry-run", action="store_true", help="check what can be checked here, print the commands and run none")
    add_json(parser)
    options = parser.parse_args(argv)
    with json_document(options.json) as document:
        document |= _push(options)
    return 0


def _push(options: argparse.Namespace) -> dict[str, Any]:
    """Check, and push unless it is a dry run. Returns what was pushed, or the commands of the dry run."""
    check_ready(options.bundle, options.kernel, options.only)
    if options.only == "kernel" and (why := _older(options.bundle)):
        print(f"arc-lab push: WARNING: {why}; {OLD_CODE}", file=sys.stderr)
    if options.dry_run:
        lines = commands(options.bundle, options.kernel, options.only)
        print("\n".join(lines))
        return {"commands": lines}
    cli = find_cli()
    document: dict[str, Any] = {}
    if options.only != "kernel":
        name = push_dataset(cli, options.bundle, options.message)
        manifest = read_metadata(options.bundle / MANIFEST)
        print(f"dataset {name} is ready, made from commit {manifest.get('commit')}", flush=True)
        document |= {"dataset": name, "commit": manifest.get("commit")}
    if options.only != "dataset":
        version = push_kernel(cli, options.kernel)
        kernel = read_metadata(options.kernel / "kernel-metadata.json")["id"]
        print(f"kernel {kernel} version {version} is pushed, with all its sources")
        print(f"when its run is complete: arc-lab submit --version {version}")
        document |= {"kernel": kernel, "version": version}
    return document
