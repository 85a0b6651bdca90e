"""`arc-lab rehearse`: run kernel.py as Kaggle would, on this machine.

The script is alone in a read-only /kaggle/src. Tasks and bundle are in a read-only /kaggle/input, in either layout, and
answers go to /kaggle/working. A clean interpreter runs it: it has the image's packages, as far as they are installed
here, and nothing else. The script gets no arguments, no network and few variables. Where this machine permits
namespaces, these are real mounts in a mount namespace, and the network namespace is empty. Elsewhere the folders are in
a scratch folder that ARC_KAGGLE_ROOT names, without write permission. The first line says which. The script sees no GPU
unless --gpu lends it the GPUs of this machine, whatever their kind. If the bundle is missing or holds other code than
the sources here, it is made first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from arc_lab.command_line import Parser, add_json, json_document, make_parser, reports_errors
from arc_lab.folders import ROOT
from arc_lab.publish.bundle import BUNDLE, PROJECT_WHEELS, make_bundle, outdated, put_project
from arc_lab.publish.interpreter import can_isolate, clean_interpreter, offline_words
from arc_lab.publish.kaggle_image import read_image
from arc_lab.publish.kernel_file import kernel_with, shortened
from arc_lab.publish.metadata import read_metadata
from arc_lab.publish.stage import Rehearsal, Stage, perform, set_stage, some_tasks
from arc_lab.publish.wheels import SETS
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.deadline import format_duration, parse_duration
from arc_ttt.errors import InputError
from arc_ttt.machine import count_gpus, device_name

LAYOUTS = ("new", "old")
"""How Kaggle mounts inputs: by kind and owner, or all in one folder."""

EXAMPLES = (
    "arc-lab rehearse --limit 20m",
    "arc-lab rehearse --commit --layout old",
    "arc-lab rehearse --model DIR --gpu --limit 1h",
)


def ready_bundle(bundle: Path, chosen: str) -> str:
    """Make a bundle if it is missing, and replace its code if that is not today's.

    Args:
        bundle: its folder.
        chosen: set of wheels of a new bundle.

    Returns:
        One line on what was done; empty if there was nothing to do.

    Raises:
        InputError: wheels have to be fetched first, or the folder holds other things.
    """
    why = outdated(bundle)
    if not why:
        return ""
    if not (bundle / MANIFEST).is_file():
        make_bundle(bundle, chosen)
        return f"{why}: made it, with the {chosen} set"
    held = read_metadata(bundle / MANIFEST).get("wheels") or []
    put_project(bundle, [row for row in held if not Path(row["file"]).match(PROJECT_WHEELS)])
    return f"{why}: made its arc_ttt wheel anew"


def _parser() -> Parser:
    parser = make_parser("rehearse", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add(
        "--bundle", type=Path, default=BUNDLE, metavar="DIR", help="the bundle, made if missing (default: build/bundle)"
    )
    add("--set", choices=SETS, default=SETS[0], help="wheels of a bundle that has to be made")
    add("--tasks", default="training", metavar="SET|PATH", help="tasks to mount")
    add("--count", type=int, default=240, metavar="N", help="how many of them")
    add("--layout", choices=LAYOUTS, default="new", help="how inputs are mounted: by kind, or all in one folder")
    add("--limit", default="10m", metavar="TIME", help="instead of the limit in kernel.py")
    add("--commit", action="store_true", help="the public commit run instead of the scoring rerun")
    add("--model", type=Path, metavar="DIR", help="a model folder, mounted where model.path in SETTINGS says")
    add("--gpu", action="store_true", help="let the script see this machine's GPUs; without it there are none")
    add("--overrides", action="store_true", help="use path overrides even where namespaces are possible")
    add_json(parser)
    return parser


@reports_errors("rehearse")
def main(argv: Sequence[str]) -> int:
    """Run the rehearse command. Returns 0 if Kaggle would have taken the submission, 1 if not, 2 for wrong use."""
    options = _parser().parse_args(argv)
    with json_document(options.json) as document:
        result = rehearse(options)
        status = report(result)
        document |= asdict(result) | {"log": result.log.splitlines()}
    return status


def rehearse(options: argparse.Namespace) -> Rehearsal:
    """Make the bundle ready, set the stage, run the script and print its log.

    Raises:
        InputError: the options, the bundle, the tasks or the model cannot be used.
    """
    limit_s = parse_duration(options.limit)
    text = kernel_with((ROOT / "kernel.py").read_text(encoding="utf-8"), shortened(limit_s))
    if options.gpu and not count_gpus():
        raise InputError("--gpu: this machine has no NVIDIA GPU to rehearse with, or CUDA_VISIBLE_DEVICES hides it")
    tasks = some_tasks(options.tasks, options.count)
    if done := ready_bundle(options.bundle, options.set):
        print(f"bundle: {done}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        base = Path(folder)
        kernel = base / "kernel.py"
        kernel.write_text(text, encoding="utf-8")
        python, notes = clean_interpreter(base / "python", read_image())
        stage = Stage(base / "kaggle", not options.overrides and can_isolate())
        set_stage(
            stage.root, bundle=options.bundle, tasks=tasks, layout=options.layout, kernel=kernel, model=options.model
        )
        _announce(options, stage, len(tasks))
        for note in notes:
            print(f"  not as on Kaggle: {note}")
        result = perform(stage, python, limit_s=limit_s, rerun=not options.commit, gpu=options.gpu)
        for line in result.log.splitlines():
            print(f"  | {line}")
    return result


def _announce(options: argparse.Namespace, stage: Stage, tasks: int) -> None:
    """Print what is rehearsed, and by which means."""
    how = "namespaces (users, mounts, network, processes)" if stage.isolated else f"path overrides, {offline_words()}"
    kind = "commit run" if options.commit else "scoring rerun"
    gpus = f"with {count_gpus()} GPUs ({device_name() or 'of unknown name'})" if options.gpu else "without a GPU"
    print(f"rehearsal of the {kind}: {tasks} tasks, {options.layout} layout, {gpus}, by {how}", flush=True)


def report(result: Rehearsal) -> int:
    """Print the outcome, and return the exit status."""
    used, limit = format_duration(result.seconds), format_duration(result.limit_s)
    print(f"{used} of {limit}, slack {max(0.0, result.slack_s):.0f} s, exit status {result.returncode}")
    if less := len(result.fallbacks):
        print(f"it ran with less than SETTINGS ask for: {less} lines with FALLBACK, above")
    for problem in result.problems:
        print(f"PROBLEM: {problem}")
    if not result.problems:
        print("submission.json is complete and valid")
    return 1 if result.problems else 0
