"""`python -m arc_lab preflight`: everything about a submission that can be checked at home, one line each, and what to
do about what is wrong."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.bundle import BUNDLE, METADATA, SAFE_NAME, current_build
from arc_lab.metadata import dataset_problems, kernel_problems, read_metadata
from arc_lab.rehearse import (
    Stage,
    can_isolate,
    clean_interpreter,
    kernel_with,
    offline,
    perform,
    set_stage,
    some_tasks,
)
from arc_lab.simulate import Scenario, loaded_from, made_up_tasks, simulate
from arc_lab.wheels import ROOT, WHEELS, Image, conflicts, members, read_image, read_lock, state
from arc_ttt.bootstrap import MANIFEST
from arc_ttt.checkpoints import model_folder, parameter_count, read_config
from arc_ttt.cost import Model
from arc_ttt.deadline import format_duration
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.settings import Settings

DEVICES_GIB = {"T4": 15.0, "L4": 22.5}
IMPORTS = "import arc_ttt.kaggle, arc_ttt.worker, arc_ttt.solve, arc_ttt.model, arc_ttt.synthesis"
DEVICES = {"NvidiaTeslaT4": ("t4", 2), "NvidiaL4": ("l4", 4), "NvidiaL4X1": ("l4", 1)}  # by machine_shape
HIDDEN_TASKS = 240
OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how bad, what about, and what was found or is to be done."""

    grade: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.grade:4}  {self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be checked. kernel: folder of kernel.py and its metadata. set: base or unsloth. model: a folder here
    of the checkpoint that will be mounted, if there is one."""

    kernel: Path
    bundle: Path
    image: Image
    set: str
    model: Path | None
    short: bool


def check_metadata(plan: Plan) -> Iterator[Finding]:
    body = read_metadata(plan.kernel / "kernel-metadata.json")
    problems = kernel_problems(body, plan.kernel)
    yield from (Finding(FAIL, "kernel-metadata.json", text) for text in problems)
    if not problems:
        yield Finding(OK, "kernel-metadata.json", f"{body['id']}, {body['machine_shape']}, no internet, private")
        size = (plan.kernel / body["code_file"]).stat().st_size
        yield Finding(OK, body["code_file"], f"{size} bytes of 900000")
    if not (plan.kernel / "LICENSE").is_file():
        yield Finding(FAIL, "LICENSE", "missing; prizes ask for an open licence")
    else:
        yield Finding(
            OK, "LICENSE", (plan.kernel / "LICENSE").read_text(encoding="utf-8").split("\n")[0].strip() or "there"
        )


def check_settings(plan: Plan) -> Iterator[Finding]:
    settings = chosen_settings(plan)
    hours = settings.run.limit_s / 3600
    model = settings.model.path or "the embedded model"
    yield Finding(OK, "SETTINGS", f"{model}, {settings.model.backend}, limit {hours:.2f} h")
    if hours > 11.9:
        yield Finding(FAIL, "SETTINGS", f"a limit of {hours:.2f} h leaves Kaggle's 12 h no room: write 11.5 * 3600")
    if settings.model.backend == "unsloth" and plan.set != "unsloth":
        yield Finding(FAIL, "SETTINGS", "model.backend is unsloth: bundle and check with --set unsloth")
    sources = read_metadata(plan.kernel / "kernel-metadata.json")
    if settings.model.path and not (sources.get("model_sources") or len(sources.get("dataset_sources") or []) > 1):
        yield Finding(WARN, "SETTINGS", f"{model} is under no model_sources: it must be in the bundle (bundle --model)")


def chosen_settings(plan: Plan) -> Settings:
    """The settings that kernel.py asks for. Raises InputError."""
    chosen = read_settings(plan.kernel / "kernel.py")
    return Settings.of(str(chosen.pop("preset", "embedded"))).override(chosen.items())


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


def check_wheels(plan: Plan) -> Iterator[Finding]:
    wheels = members(read_lock(), plan.set, plan.image.python)
    wrong = [(wheel, told) for wheel in wheels if (told := state(wheel, plan.bundle))]
    for wheel, told in wrong:
        yield Finding(FAIL, wheel.file, f"{told} in the bundle: run arc_lab wheels, then arc_lab bundle")
    problems = [] if wrong else conflicts(wheels, plan.bundle, plan.image)
    yield from (Finding(FAIL, "wheels", text) for text in problems)
    if not wrong and not problems:
        text = f"set {plan.set} fits the image (Python {plan.image.python}, torch {plan.image.packages.get('torch')})"
        yield Finding(OK, "wheels", text)


def check_bundle(plan: Plan) -> Iterator[Finding]:
    body = read_metadata(plan.bundle / METADATA)
    problems = dataset_problems(body)
    sources = read_metadata(plan.kernel / "kernel-metadata.json").get("dataset_sources") or []
    if body.get("id") not in ["/".join(str(source).split("/")[:2]) for source in sources]:
        problems.append(f"the dataset {body.get('id')} is not among dataset_sources: run arc_lab bundle again")
    folders = [path.name for path in plan.bundle.iterdir() if path.is_dir()]
    unsafe = [path.name for path in plan.bundle.iterdir() if not SAFE_NAME.fullmatch(path.name)]
    problems += [f"{name}: folders are not uploaded" for name in folders]
    problems += [f"{name}: an upload may refuse this name" for name in unsafe]
    yield from (Finding(FAIL, "bundle", text) for text in problems)
    held, here = read_metadata(plan.bundle / MANIFEST).get("commit"), current_build().stamp
    if held != here:
        yield Finding(FAIL, "bundle", f"made from commit {held}, the sources are at {here}: run arc_lab bundle again")
    elif not problems:
        yield Finding(OK, "bundle", f"{body['id']}, made from commit {held}")


def check_model(plan: Plan) -> Iterator[Finding]:
    settings = chosen_settings(plan)
    if settings.model.path and plan.model is None:
        yield Finding(WARN, "model", "give --model the checkpoint's folder here, and it will be checked")
        return
    folder = plan.model or model_folder("", gpu=True)
    config = read_config(folder)
    if settings.model.format != "compact" and not (folder / "tokenizer.json").is_file():
        yield Finding(FAIL, "model", f"{folder}: no tokenizer.json, which the format {settings.model.format} needs")
    if not list(folder.glob("*.safetensors")):
        yield Finding(FAIL, "model", f"{folder}: no safetensors file; other weights are not read")
    count = parameter_count(config)
    bits = 4 if settings.model.quantize == "nf4" or config.get("quantization_config") else 16
    held = count * bits / 8 * (1.15 if bits == 4 else 1.0) / 2**30
    yield Finding(OK, "model", f"{folder.name}: {count / 1e6:.0f}M weights, {held * 1024:.0f} MiB in {bits} bits")
    for name, gib in DEVICES_GIB.items():
        if held > 0.8 * gib:
            yield Finding(
                FAIL, "memory", f"the weights alone fill {held / gib:.0%} of a {name}: use 4 bits or a smaller one"
            )


def check_imports(plan: Plan) -> Iterator[Finding]:
    """The bundle's own wheel in a clean interpreter without a network."""
    wheel = next(plan.bundle.glob("arc_ttt-*.whl"), None)
    if wheel is None:
        yield Finding(FAIL, "imports", "the bundle has no arc_ttt wheel: run arc_lab bundle")
        return
    with tempfile.TemporaryDirectory() as folder:
        python, notes = clean_interpreter(Path(folder) / "python", plan.image)
        install = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
        command = [*offline(), str(python), "-I", "-c", IMPORTS]
        for words in (install, command):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                yield Finding(FAIL, "imports", f"in a clean interpreter without a network: {last}")
                return
    differ = f"; not the image's versions: {', '.join(note.split(',')[0] for note in notes)}" if notes else ""
    yield Finding(WARN if differ else OK, "imports", f"work in a clean interpreter without a network{differ}")


def check_run(plan: Plan) -> Iterator[Finding]:
    """Two tasks, as the scoring rerun would do them."""
    if plan.short:
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        changes = {"preset": "embedded", "run.limit_s": 120.0, "model.path": "", "model.format": "compact"}
        text = kernel_with((plan.kernel / "kernel.py").read_text(encoding="utf-8"), changes)
        (base / "kernel.py").write_text(text, encoding="utf-8")
        python, _ = clean_interpreter(base / "python", plan.image)
        stage = Stage(base / "kaggle", can_isolate())
        tasks = some_tasks("training", 2)
        set_stage(stage.root, bundle=plan.bundle, tasks=tasks, layout="new", kernel=base / "kernel.py")
        result = perform(stage, python, limit_s=120.0, rerun=True)
        fallbacks = [line for line in result.log.splitlines() if line.startswith("FALLBACK")]
    for text in (*result.problems, *fallbacks):
        yield Finding(FAIL, "run of 2 tasks", text)
    if not result.problems and not fallbacks:
        yield Finding(OK, "run of 2 tasks", f"valid submission, slack {result.slack_s:.0f} s of 120")


def check_forecast(plan: Plan) -> Iterator[Finding]:
    """The real scheduler in virtual time over as many made-up tasks as the competition has."""
    device_type, devices = DEVICES.get(
        read_metadata(plan.kernel / "kernel-metadata.json").get("machine_shape", ""), ("t4", 2)
    )
    settings = chosen_settings(plan)
    if settings.model.path and plan.model is None:
        return
    model = Model.of(read_config(plan.model or model_folder("", gpu=True)))
    tasks = loaded_from(made_up_tasks(HIDDEN_TASKS))
    settings = settings.override([("synthesis.enabled", False)])
    outcome = simulate(Scenario(tasks=tasks, settings=settings, model=model, device_type=device_type, devices=devices))
    text = (
        f"{HIDDEN_TASKS} tasks on {devices} x {device_type}: {outcome.answered:.0%} answered, {outcome.trained:.0%} "
        f"trained, ends {format_duration(outcome.limit_s - outcome.seconds)} before the limit"
    )
    yield Finding(FAIL if outcome.missed else WARN if outcome.trained < 0.9 else OK, "forecast", text)


CHECKS: tuple[Callable[[Plan], Iterator[Finding]], ...] = (
    check_metadata,
    check_settings,
    check_bundle,
    check_wheels,
    check_model,
    check_forecast,
    check_imports,
    check_run,
)


def findings(plan: Plan) -> Iterator[Finding]:
    """All checks; one that cannot be made is a finding too."""
    for check in CHECKS:
        try:
            yield from check(plan)
        except SettingsError as error:
            yield Finding(FAIL, "SETTINGS", f"{error}")
        except (InputError, OSError) as error:
            yield Finding(FAIL, check.__name__.removeprefix("check_"), f"{error}")


def main(argv: Sequence[str]) -> int:
    """Run the command line. Returns 0 if nothing would fail, else 1."""
    parser = argparse.ArgumentParser(prog="python -m arc_lab preflight", description=__doc__)
    add = parser.add_argument
    add("--set", choices=("base", "unsloth"), default="base", help="wheels that the bundle has (default: base)")
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="folder of the bundle (default: build/bundle)")
    add("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel.py (default: this one)")
    add(
        "--image", type=Path, default=WHEELS / "image.json", metavar="FILE", help="an image's description or setup.json"
    )
    add("--model", type=Path, metavar="DIR", help="folder here of the checkpoint that will be mounted")
    add("--short", action="store_true", help="leave out the run of two tasks")
    options = parser.parse_args(argv)
    try:
        image = read_image(options.image)
    except InputError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    plan = Plan(options.kernel, options.bundle, image, options.set, options.model, options.short)
    failed = 0
    for finding in findings(plan):
        failed += finding.grade == FAIL
        print(finding, flush=True)
    print(f"{failed} things to mend" if failed else "nothing left to mend at home")
    return 1 if failed else 0
