"""Lay out Kaggle's folders, run kernel.py in them, and judge what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from arc_lab.data.datasets import load_dataset
from arc_lab.folders import ROOT
from arc_lab.publish.bundle import METADATA
from arc_lab.publish.interpreter import CONTAINER, offline
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import competition_of, read_metadata
from arc_ttt.bootstrap.mounts import CHALLENGES
from arc_ttt.errors import InputError, SubmissionError, TaskFileError
from arc_ttt.kaggle.record import RECORD
from arc_ttt.run.submission import check_file
from arc_ttt.tasks.files import load_tasks

GRACE_S = 30.0
"""Seconds after the limit at which a run that still goes on is killed; it has failed."""

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""The variable that hides GPUs from a process."""

OLD_MODEL_PARTS = 4
"""Folders of a model's mount in the old layout: model, framework, variation and version."""

FALLBACK = "FALLBACK: "
"""Start of a line in the log that reports a run with less than SETTINGS ask for."""

# A program that runs inside the namespaces: it makes a root that is this machine's except for /kaggle, mounts the
# inputs read-only, and starts the script.
IN_CONTAINER = """
import os, subprocess, sys
root, fresh, disk_kib, command = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("--make-rprivate", "/")
mount("-t", "tmpfs", "tmpfs", fresh)
for name in os.listdir("/"):
    here, there = f"/{name}", f"{fresh}/{name}"
    if os.path.islink(here):
        os.symlink(os.readlink(here), there)
    elif os.path.isdir(here) and name != "kaggle":
        os.mkdir(there)
        mount("--rbind", here, there)
kaggle = f"{fresh}/kaggle"
os.mkdir(kaggle)
mount("--bind", root, kaggle)
for name in ("src", "input"):
    mount("--bind", f"{kaggle}/{name}", f"{kaggle}/{name}")
    mount("-o", "remount,bind,ro", f"{kaggle}/{name}")
if disk_kib >= 0:
    mount("-t", "tmpfs", "-o", f"size={disk_kib or 4}k", "tmpfs", f"{kaggle}/working")
if disk_kib == 0:
    mount("-o", "remount,ro", f"{kaggle}/working")
os.chroot(fresh)
os.chdir("/kaggle/working")
code = subprocess.run(command).returncode
if disk_kib > 0:
    subprocess.run(["cp", "-r", "/kaggle/working", "/kaggle/temp/kept"])
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass(slots=True)
class Stage:
    """The folders of a rehearsal.

    Args:
        root: the folder that becomes /kaggle.
        isolated: whether namespaces make it /kaggle; otherwise ARC_KAGGLE_ROOT names it.
    """

    root: Path
    isolated: bool

    @property
    def working(self) -> Path:
        return self.root / "working"


@dataclass(slots=True)
class Rehearsal:
    """How a rehearsal went.

    Args:
        seconds: wall time of the script.
        limit_s: its limit.
        returncode: its exit status.
        log: what it printed.
        problems: why Kaggle would refuse the submission; empty if it would take it.
        fallbacks: where the run did with less than SETTINGS ask for, a line each.
    """

    seconds: float
    limit_s: float
    returncode: int
    log: str
    problems: list[str]
    fallbacks: list[str] = field(default_factory=list)

    @property
    def slack_s(self) -> float:
        return self.limit_s - self.seconds


def set_stage(
    root: Path, *, bundle: Path, tasks: dict[str, Any], layout: str, kernel: Path, model: Path | None = None
) -> None:
    """Make the folders of /kaggle below `root`: src, input, working, temp.

    Args:
        root: the folder that becomes /kaggle.
        bundle: folder of the bundle.
        tasks: the content of the challenges file.
        layout: "new" or "old", how Kaggle mounts inputs.
        kernel: the kernel.py to run.
        model: folder of a model, mounted where `model.path` in the kernel's SETTINGS says.

    Raises:
        InputError: a file cannot be read, or the model cannot be mounted where SETTINGS say.
    """
    slug, owner = "arc-ttt-wheels", "owner"
    if (bundle / METADATA).is_file():
        owner, _, slug = str(read_metadata(bundle / METADATA)["id"]).partition("/")
    new = layout == "new"
    competition = root / "input" / (f"competitions/{slug_of_competition()}" if new else slug_of_competition())
    dataset = root / "input" / (f"datasets/{owner}/{slug}" if new else slug)
    for folder in (root / "src", root / "working", root / "temp", competition, dataset):
        folder.mkdir(parents=True)
    shutil.copyfile(kernel, root / "src" / "script.py")
    (competition / CHALLENGES).write_text(json.dumps(tasks), encoding="utf-8")
    for path in sorted(bundle.iterdir()):
        if path.is_file() and path.name != METADATA:  # Kaggle does not mount this file
            shutil.copyfile(path, dataset / path.name)
    if model is not None:
        wanted = str(read_settings(kernel).get("model.path", ""))
        if not wanted:
            raise InputError("--model: SETTINGS in kernel.py name no model.path, so no mounted model would be used")
        place = root / "input" / model_mount(wanted, layout, owner)
        if place.exists() or dataset in place.parents:
            raise InputError(f"--model: {wanted} is the bundle's own mount: put the model in, by `bundle --model`")
        shutil.copytree(model, place)


def slug_of_competition() -> str:
    """The competition that kernel-metadata.json names. Raises InputError."""
    return competition_of(read_metadata(ROOT / "kernel-metadata.json"))


def perform(
    stage: Stage, python: Path, *, limit_s: float, rerun: bool, disk_kib: int = -1, gpu: bool = False
) -> Rehearsal:
    """Run the script and judge what it leaves.

    Args:
        stage: the folders.
        python: the interpreter.
        limit_s: seconds that the script may take.
        rerun: whether it is the scoring rerun; otherwise the commit run.
        disk_kib: size of /kaggle/working in KiB; -1 for that of this disk, 0 for a folder that cannot be written. Sizes
            other than -1 need namespaces.
        gpu: whether the script sees the GPUs that this process sees; otherwise it sees none.
    """
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(stage.root / "temp"),
        "LANG": "C.UTF-8",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        **({name: text for name, text in os.environ.items() if name == VISIBLE_GPUS} if gpu else {VISIBLE_GPUS: ""}),
        **({"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}),
    }
    if stage.isolated:
        fresh = stage.root.with_name("root")
        fresh.mkdir(exist_ok=True)
        words = [*CONTAINER, sys.executable, "-c", IN_CONTAINER, str(stage.root), str(fresh)]
        words.append(str(disk_kib))
        command = [*words, str(python), "/kaggle/src/script.py"]
    else:
        environment["ARC_KAGGLE_ROOT"] = str(stage.root)
        for name in ("src", "input"):
            _take_write_permission(stage.root / name)
        command = [*offline(), str(python), str(stage.root / "src" / "script.py")]
    start_s = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        cwd=stage.working, start_new_session=True,
    )  # fmt: skip
    problems = []
    try:
        log, _ = process.communicate(timeout=limit_s + GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        log, _ = process.communicate()
        problems.append(f"it was still running {GRACE_S:.0f} s after its limit")
    seconds = time.monotonic() - start_s
    for name in () if stage.isolated else ("src", "input"):
        _give_write_permission(stage.root / name)  # so that the folder can be removed
    if seconds > limit_s and not problems:
        problems.append(f"it took {seconds:.0f} s of {limit_s:.0f}")
    if process.returncode:
        problems.append(f"the script ended with {process.returncode}: Kaggle counts that as an error")
    kept = stage.root / "temp" / "kept" if disk_kib > 0 and stage.isolated else stage.working
    problems += judge(kept / "submission.json", stage.root)
    fallbacks = read_fallbacks(kept / RECORD, log)
    return Rehearsal(seconds, limit_s, process.returncode, log, problems, fallbacks)


def read_fallbacks(record: Path, log: str) -> list[str]:
    """Where a run did with less than SETTINGS ask for: the fallbacks in its setup.json, and others in its log.

    The log alone has the lines of kernel.py's guard, and those of a run that ended before it wrote the file again.

    Args:
        record: the run's setup.json; may be missing.
        log: what the script printed.
    """
    try:
        found = [str(line) for line in json.loads(record.read_text(encoding="utf-8"))["fallbacks"]]
    except (OSError, ValueError, KeyError, TypeError):
        found = []
    lines = [line.removeprefix(FALLBACK) for line in log.splitlines() if line.startswith(FALLBACK)]
    return [*found, *(line for line in lines if line not in found)]


def judge(submission: Path, root: Path) -> list[str]:
    """Why Kaggle would refuse a submission for the tasks that are mounted below `root`; empty if it would not."""
    try:
        counts = load_tasks(next((root / "input").rglob(CHALLENGES))).test_counts
        check_file(submission, counts)
    except StopIteration:
        return ["no tasks are mounted"]
    except OSError as error:
        return [f"no submission.json: {error.strerror}"]
    except (SubmissionError, TaskFileError) as error:
        return [f"submission.json: {error}"]
    return []


def _take_write_permission(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _give_write_permission(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def model_mount(wanted: str, layout: str, owner: str) -> PurePosixPath:
    """Where a model is mounted, relative to /kaggle/input.

    Args:
        wanted: `model.path` in SETTINGS.
        layout: "new" or "old".
        owner: the owner of a path that names none.

    Raises:
        InputError: no Kaggle model or dataset is ever mounted at this path.
    """
    parts = PurePosixPath(wanted).parts
    if parts[:3] != ("/", "kaggle", "input") or len(parts) < 4:
        raise InputError(f"--model: model.path in SETTINGS is {wanted!r}; it has to lead into /kaggle/input")
    below = parts[3:]
    if below[0] not in ("models", "datasets"):
        below = ("models" if len(below) >= OLD_MODEL_PARTS else "datasets", owner, *below)
    if len(below) < 3:
        raise InputError(f"--model: model.path in SETTINGS, {wanted}, names an owner but no model")
    return PurePosixPath(*(below if layout == "new" else below[2:]))


def some_tasks(name: str, count: int) -> dict[str, Any]:
    """The first `count` tasks of a data set, as the competition's challenges file holds them. Raises InputError."""
    loaded = load_dataset(name).loaded
    if not loaded.tasks:
        raise InputError(f"{name}: no tasks")
    return {
        task.task_id: {
            "train": [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.train],
            "test": [{"input": grid.tolist()} for grid in task.tests],
        }
        for task in loaded.tasks[:count]
    }
