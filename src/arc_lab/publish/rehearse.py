"""`python -m arc_lab rehearse`: run kernel.py as Kaggle would, on this machine.

The script lies alone in a read-only /kaggle/src, tasks and bundle in a read-only /kaggle/input in either layout, and
answers go to /kaggle/working. It runs in a clean interpreter that has those of the image's packages that are installed
here and nothing else, without arguments, without a network, and with few variables. Where the machine lets users make
namespaces, these are real mounts in a mount namespace and there is no network but a dead one; elsewhere the folders
stand below a scratch folder that ARC_KAGGLE_ROOT names, with write permission taken away. The first line says which.
The script sees no GPU unless --gpu lends it this machine's, of whatever kind: no other is pretended. A bundle that is
missing, or holds other code than the sources here, is made first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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


def ready_bundle(bundle: Path, chosen: str) -> str:
    """Make a bundle where there is none, and put today's code into one that has other code.

    chosen: set of wheels of a new one. Returns one line on what was done, empty if nothing had to be.

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


def main(argv: Sequence[str]) -> int:
    """Run the command line. Returns 0 if Kaggle would have taken the submission, 1 if not, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m arc_lab rehearse", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--bundle", type=Path, default=BUNDLE, metavar="DIR", help="the bundle, made if missing (default: build/bundle)"
    )
    add("--set", choices=SETS, default="base", help="wheels of a bundle that has to be made (default: base)")
    add("--tasks", default="training", metavar="SET|PATH", help="tasks to mount (default: training)")
    add("--count", type=int, default=240, metavar="N", help="how many of them (default: 240)")
    add("--layout", choices=LAYOUTS, default="new", help="how inputs are mounted: by kind, or all in one folder")
    add("--limit", default="10m", metavar="TIME", help="instead of the limit in kernel.py (default: 10m)")
    add("--commit", action="store_true", help="the public commit run instead of the scoring rerun")
    add("--model", type=Path, metavar="DIR", help="a model folder, mounted where model.path in SETTINGS says")
    add("--gpu", action="store_true", help="let the script see this machine's GPUs; without it there are none")
    add("--overrides", action="store_true", help="use path overrides even where namespaces are possible")
    options = parser.parse_args(argv)
    try:
        limit_s = parse_duration(options.limit)
        text = kernel_with((ROOT / "kernel.py").read_text(encoding="utf-8"), shortened(limit_s))
        if options.gpu and not count_gpus():
            raise InputError("--gpu: this machine has no NVIDIA GPU to rehearse with, or CUDA_VISIBLE_DEVICES hides it")
        tasks = some_tasks(options.tasks, options.count)
        if done := ready_bundle(options.bundle, options.set):
            print(f"bundle: {done}", flush=True)
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
            base = Path(folder)
            (base / "kernel.py").write_text(text, encoding="utf-8")
            python, notes = clean_interpreter(base / "python", read_image())
            stage = Stage(base / "kaggle", not options.overrides and can_isolate())
            set_stage(
                stage.root,
                bundle=options.bundle,
                tasks=tasks,
                layout=options.layout,
                kernel=base / "kernel.py",
                model=options.model,
            )
            how = (
                "namespaces (users, mounts, network, processes)"
                if stage.isolated
                else f"path overrides, {offline_words()}"
            )
            kind = "commit run" if options.commit else "scoring rerun"
            seen = (
                f"with {count_gpus()} GPUs ({device_name() or 'of unknown name'})" if options.gpu else "without a GPU"
            )
            what = f"{len(tasks)} tasks, {options.layout} layout, {seen}, by {how}"
            print(f"rehearsal of the {kind}: {what}", flush=True)
            for note in notes:
                print(f"  not as on Kaggle: {note}")
            result = perform(stage, python, limit_s=limit_s, rerun=not options.commit, gpu=options.gpu)
            for line in result.log.splitlines():
                print(f"  | {line}")
    except InputError as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 2
    return report(result)


def report(result: Rehearsal) -> int:
    """Print the outcome; returns the exit status."""
    used, limit = format_duration(result.seconds), format_duration(result.limit_s)
    print(f"{used} of {limit}, slack {max(0.0, result.slack_s):.0f} s, exit status {result.returncode}")
    if less := result.log.count("FALLBACK: "):
        print(f"it ran with less than SETTINGS ask for: {less} lines with FALLBACK, above")
    for problem in result.problems:
        print(f"PROBLEM: {problem}")
    if not result.problems:
        print("submission.json is complete and valid")
    return 1 if result.problems else 0
