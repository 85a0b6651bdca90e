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
import ast
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name

from arc_lab.data.datasets import load_dataset
from arc_lab.publish.bundle import BUNDLE, METADATA, PROJECT_WHEELS, make_bundle, outdated, put_project
from arc_lab.publish.metadata import read_metadata
from arc_lab.publish.wheels import ROOT, SETS, Image, read_image
from arc_ttt.bootstrap.mounts import CHALLENGES, MANIFEST
from arc_ttt.deadline import format_duration, parse_duration
from arc_ttt.errors import InputError, SubmissionError, TaskFileError
from arc_ttt.fleet.launch import count_gpus, device_name
from arc_ttt.run.submission import check_submission
from arc_ttt.tasks.grids import load_tasks

GRACE_S = 30.0  # after the limit: a run that is still going then has failed, and is killed
PROBE_LIMIT_S = 20.0
OWN = ["unshare", "-rmnpf", "--mount-proc", "--kill-child"]  # users, mounts, network, processes: a container of its own
LAYOUTS = ("new", "old")
SEEN = "CUDA_VISIBLE_DEVICES"
ALSO = ("pip", "setuptools")
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


def can_isolate() -> bool:
    """Whether this machine lets us make namespaces of all kinds that a rehearsal uses, and mount in them."""
    try:
        probe = [*OWN, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def clean_interpreter(folder: Path, image: Image) -> tuple[Path, list[str]]:
    """An interpreter with those of the image's packages that this one has, and nothing else.

    Returns its path and a note on Python and on each important package, where the version is another.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    own = platform.python_version()
    notes = [] if own.startswith(f"{image.python}.") else [f"Python {own}, {image.python} in the image"]
    for item in importlib.metadata.distributions():
        name = canonicalize_name(item.metadata["Name"] or "")
        if name not in image.packages or name in ALSO:
            continue
        if image.packages[name] != item.version.split("+")[0] and name in IMPORTANT:
            notes.append(f"{name} {item.version}, {image.packages[name]} in the image")
        for top in sorted({path.parts[0] for path in item.files or [] if path.parts and path.parts[0] != ".."}):
            source, link = Path(str(item.locate_file(top))), site / top
            if source.exists() and not link.exists() and top != "__pycache__":
                link.symlink_to(source.resolve())
    return folder / "bin" / "python", notes


IMPORTANT = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy", "scipy")


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


def offline() -> list[str]:
    """The start of a command line whose process shall have no network; empty where this machine does not permit it."""
    for words in (OWN, ["unshare", "-rn"]):
        try:
            probe = [*words, "true"]
            if subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0:
                return words
        except (OSError, subprocess.TimeoutExpired):
            break
    return []


def offline_words() -> str:
    return "without a network" if offline() else "WITH a network: this machine permits no namespaces"


def _take_write_permission(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _give_write_permission(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def kernel_with(text: str, changes: dict[str, object]) -> str:
    """kernel.py with values of SETTINGS added after its own: the last of two equal names counts."""
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in changes.items())
    head, found, tail = text.partition("SETTINGS: dict[str, object] = {\n")
    end = tail.find("\n}\n")
    if not found or end < 0:
        raise InputError("kernel.py: SETTINGS is not where it should be")
    return f"{head}{found}{tail[: end + 1]}{lines}{tail[end + 1 :]}"


def shortened(limit_s: float) -> dict[str, object]:
    """The changes to SETTINGS for a run with a shorter limit. The reserve follows from it: one that was chosen for
    hours may be longer than the whole."""
    return {"run.limit_s": limit_s, "run.reserve_s": 0.0}


def read_settings(path: Path) -> dict[str, Any]:
    """SETTINGS of a kernel.py, read without running it. Raises InputError."""
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SETTINGS" and node.value is not None:
                assert isinstance(node.value, ast.Dict)
                pairs = zip(node.value.keys, node.value.values, strict=True)
                return {str(ast.literal_eval(k)): _number(v) for k, v in pairs if k is not None}
    except (OSError, SyntaxError, ValueError, AssertionError) as error:
        raise InputError(f"{path}: SETTINGS cannot be read: {error}") from error
    raise InputError(f"{path}: there are no SETTINGS")


def _number(node: ast.expr) -> Any:
    """A literal, or a product of literals."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _number(node.left) * _number(node.right)
    return ast.literal_eval(node)


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
