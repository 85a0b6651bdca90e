"""The stage of a rehearsal: Kaggle's folders, the run on them, and what became of it."""

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
from arc_lab.publish.bundle import METADATA
from arc_lab.publish.interpreter import OWN, offline
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import read_metadata
from arc_ttt.bootstrap.mounts import CHALLENGES
from arc_ttt.errors import InputError, SubmissionError, TaskFileError
from arc_ttt.run.submission import check_submission
from arc_ttt.tasks.files import load_tasks

GRACE_S = 30.0  # after the limit: a run that is still going then has failed, and is killed
SEEN = "CUDA_VISIBLE_DEVICES"
MODEL_PARTS = 4  # model, framework, variation and version, of a model's mount in the old layout
# Inside the namespaces: a root that is this machine's but for /kaggle, the read-only mounts, then the script.
INSIDE = """
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
    """The folders of a rehearsal. root: what becomes /kaggle. isolated: by namespaces, else by overrides."""

    root: Path
    isolated: bool
    notes: list[str] = field(default_factory=list)

    @property
    def working(self) -> Path:
        return self.root / "working"


@dataclass(slots=True)
class Rehearsal:
    """How it went. problems: empty if Kaggle would have taken the submission."""

    seconds: float
    limit_s: float
    returncode: int
    log: str
    problems: list[str]

    @property
    def slack_s(self) -> float:
        return self.limit_s - self.seconds


def set_stage(
    root: Path, *, bundle: Path, tasks: dict[str, Any], layout: str, kernel: Path, model: Path | None = None
) -> None:
    """Make the folders of /kaggle below `root`: src, input, working, temp. model: mounted where `model.path` of the
    kernel's SETTINGS says. Raises InputError."""
    slug, owner = "arc-ttt-wheels", "owner"
    if (bundle / METADATA).is_file():
        owner, _, slug = str(read_metadata(bundle / METADATA)["id"]).partition("/")
    new = layout == "new"
    competition = root / "input" / ("competitions/arc-prize-2026-arc-agi-2" if new else "arc-prize-2026-arc-agi-2")
    dataset = root / "input" / (f"datasets/{owner}/{slug}" if new else slug)
    for folder in (root / "src", root / "working", root / "temp", competition, dataset):
        folder.mkdir(parents=True)
    shutil.copyfile(kernel, root / "src" / "script.py")
    (competition / CHALLENGES).write_text(json.dumps(tasks), encoding="utf-8")
    for path in sorted(bundle.iterdir()):
        if path.is_file() and path.name != METADATA:  # kaggle keeps that one for itself
            shutil.copyfile(path, dataset / path.name)
    if model is not None:
        wanted = str(read_settings(kernel).get("model.path", ""))
        if not wanted:
            raise InputError("--model: SETTINGS in kernel.py name no model.path, so no mounted model would be used")
        place = root / "input" / model_mount(wanted, layout, owner)
        if place.exists() or dataset in place.parents:
            raise InputError(f"--model: {wanted} is the bundle's own mount: put the model in, by `bundle --model`")
        shutil.copytree(model, place)


def perform(
    stage: Stage, python: Path, *, limit_s: float, rerun: bool, disk_kib: int = -1, gpu: bool = False
) -> Rehearsal:
    """Run the script and judge what it leaves. disk_kib: size of /kaggle/working; -1 for this disk's own,
    0 for one that cannot be written (both need namespaces). gpu: the script sees the GPUs that this process sees, else
    none."""
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(stage.root / "temp"),
        "LANG": "C.UTF-8",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        **({name: text for name, text in os.environ.items() if name == SEEN} if gpu else {SEEN: ""}),
        **({"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}),
    }
    if stage.isolated:
        fresh = stage.root.with_name("root")
        fresh.mkdir(exist_ok=True)
        words = [*OWN, sys.executable, "-c", INSIDE, str(stage.root), str(fresh)]
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
    return Rehearsal(seconds, limit_s, process.returncode, log, problems)


def judge(submission: Path, root: Path) -> list[str]:
    """What Kaggle would refuse in a submission for the tasks mounted below `root`."""
    try:
        counts = load_tasks(next((root / "input").rglob(CHALLENGES))).test_counts
        check_submission(json.loads(submission.read_text(encoding="utf-8")), counts)
    except StopIteration:
        return ["no tasks are mounted"]
    except OSError as error:
        return [f"no submission.json: {error.strerror}"]
    except (ValueError, SubmissionError, TaskFileError) as error:
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
    """Where below /kaggle/input the model of `model.path` is mounted in a layout. owner: of a path that names none.

    Raises:
        InputError: no Kaggle model or dataset is mounted there.
    """
    parts = PurePosixPath(wanted).parts
    if parts[:3] != ("/", "kaggle", "input") or len(parts) < 4:
        raise InputError(f"--model: model.path in SETTINGS is {wanted!r}; it has to lead into /kaggle/input")
    below = parts[3:]
    if below[0] not in ("models", "datasets"):
        below = ("models" if len(below) >= MODEL_PARTS else "datasets", owner, *below)
    if len(below) < 3:
        raise InputError(f"--model: model.path in SETTINGS, {wanted}, names an owner but no model")
    return PurePosixPath(*(below if layout == "new" else below[2:]))


def some_tasks(name: str, count: int) -> dict[str, Any]:
    """Challenges as the competition's file has them. Raises InputError."""
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
