"""`python -m arc_lab preflight`: everything about a submission that can be checked at home, one line each, and what to
do about what is wrong."""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from arc_lab.bundle import BUNDLE, METADATA, PROJECT_WHEELS, SAFE_NAME, current_build, outdated
from arc_lab.metadata import (
    dataset_names,
    dataset_problems,
    kernel_problems,
    model_path_problem,
    read_metadata,
    source_of,
)
from arc_lab.rehearse import (
    Stage,
    can_isolate,
    clean_interpreter,
    kernel_with,
    offline,
    perform,
    read_settings,
    set_stage,
    some_tasks,
)
from arc_lab.simulate import Scenario, loaded_from, made_up_tasks, simulate
from arc_lab.wheels import IMAGE, ROOT, SETS, Image, conflicts, members, read_image, read_lock, state, told_again
from arc_ttt.checkpoints import SIZES, model_folder, parameter_count, read_config
from arc_ttt.cost import BASE, TTT, Model
from arc_ttt.deadline import format_duration
from arc_ttt.errors import InputError, ModelError, SettingsError
from arc_ttt.events import read_journal
from arc_ttt.grids import Example, freeze
from arc_ttt.memory import L4, SMALL_PARAMETERS, T4, Shape
from arc_ttt.memory import plan as memory_plan
from arc_ttt.settings import LINEAR_LAYERS, Settings
from arc_ttt.unsloth_backend import adapter_refusal

IMPORTS = "import arc_ttt.kaggle, arc_ttt.worker, arc_ttt.solve, arc_ttt.model, arc_ttt.synthesis"
DEVICES = {"NvidiaTeslaT4": ("t4", 2), "NvidiaL4": ("l4", 4), "NvidiaL4X1": ("l4", 1)}  # by machine_shape
MEMORY = {"t4": T4, "l4": L4}
HIDDEN_TASKS = 240
RUN_TASKS, RUN_LIMIT_S = 2, 120.0
OK, WARN, FAIL, SKIPPED = "ok", "warn", "FAIL", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how bad, what about, and what was found or is to be done."""

    grade: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.grade:7}  {self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be checked. kernel: folder of kernel.py and its metadata. set: base or unsloth. model: a folder here
    of the checkpoint that will be mounted, if there is one. image_file: where the image's description was read."""

    kernel: Path
    bundle: Path
    image: Image
    set: str
    model: Path | None
    short: bool
    image_file: Path = IMAGE

    @property
    def metadata(self) -> dict[str, Any]:
        """kernel-metadata.json. Raises InputError."""
        return read_metadata(self.kernel / "kernel-metadata.json")

    @property
    def has_model(self) -> bool:
        """Whether the bundle holds a model."""
        return (self.bundle / "config.json").is_file()

    @property
    def rebuild(self) -> str:
        """The advice to make the bundle anew, for this set and image, with a model where it has one."""
        model = " --model DIR" if self.has_model else ""
        return f"run python -m arc_lab bundle{told_again(self.set, self.image_file)}{model}"

    @property
    def refetch(self) -> str:
        """The same, where wheels have to be fetched before."""
        options = told_again(self.set, self.image_file)
        return f"run python -m arc_lab wheels{options}, then {self.rebuild.removeprefix('run ')}"

    def need_bundle(self) -> None:
        """Raises InputError where there is none, in the same words for every check that needs one."""
        if not self.bundle.is_dir():
            raise InputError(f"there is no {self.bundle}: {self.refetch}")


def check_licence(plan: Plan) -> Iterator[Finding]:
    path = plan.kernel / "LICENSE"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if text:
        yield Finding(OK, "LICENSE", text.split("\n")[0].strip())
    else:
        yield Finding(FAIL, "LICENSE", f"{'empty' if path.is_file() else 'missing'}; prizes ask for an open licence")


def check_metadata(plan: Plan) -> Iterator[Finding]:
    body = plan.metadata
    problems = kernel_problems(body, plan.kernel)
    yield from (Finding(FAIL, "kernel-metadata.json", text) for text in problems)
    if not problems:
        yield Finding(OK, "kernel-metadata.json", f"{body['id']}, {body['machine_shape']}, no internet, private")
        size = (plan.kernel / body["code_file"]).stat().st_size
        yield Finding(OK, body["code_file"], f"{size} bytes of 900000")


def check_settings(plan: Plan) -> Iterator[Finding]:
    settings, body = chosen_settings(plan), plan.metadata
    hours, path, unsloth = settings.run.limit_s / 3600, settings.model.path, settings.model.backend == "unsloth"
    problems = []
    if hours > 11.9:
        problems.append(f"a limit of {hours:.2f} h leaves Kaggle's 12 h no room: write 11.5 * 3600")
    if unsloth and plan.set != "unsloth":
        problems.append("model.backend is unsloth: bundle and check with --set unsloth")
    if unsloth and (refusal := adapter_refusal(settings.ttt)):
        problems.append(refusal)
    if unsloth and settings.model.format == "compact":
        problems.append("unsloth is for mounted checkpoints: set model.path and model.format")
    if path and path not in SIZES:
        problems += filter(None, [model_path_problem(path, body), _bundled_model_problem(plan, path, body)])
    yield from (Finding(FAIL, "SETTINGS", text) for text in problems)
    if not path and plan.has_model:
        held = f"/kaggle/input/datasets/{read_metadata(plan.bundle / METADATA).get('id')}"
        text = f"the bundle holds a model that is not used: set model.path to {held}, and preset and model.format"
        yield Finding(WARN, "SETTINGS", text)
    if not problems:
        told = path or "the embedded model"
        yield Finding(OK, "SETTINGS", f"{told}, {settings.model.backend}, limit {hours:.2f} h")


def _bundled_model_problem(plan: Plan, path: str, body: dict[str, Any]) -> str:
    """What is wrong with a path into the bundle's dataset."""
    if plan.has_model or not _is_bundle(plan, path, body):
        return ""
    return f"model.path {path} is the bundle, which holds no model: {plan.rebuild} --model DIR"


def _is_bundle(plan: Plan, path: str, body: dict[str, Any]) -> bool:
    """Whether a path on Kaggle leads into the bundle's dataset."""
    held = plan.bundle / METADATA
    source = "/".join(source_of(path, body).split("/")[:2])
    return held.is_file() and bool(source) and source == read_metadata(held).get("id")


def chosen_settings(plan: Plan) -> Settings:
    """The settings that kernel.py asks for, as a machine with GPUs reads them. Raises InputError."""
    chosen = read_settings(plan.kernel / "kernel.py")
    preset = str(chosen.pop("preset", "embedded"))
    return Settings.of("embedded-gpu" if preset == "embedded" else preset).override(chosen.items())


def machine(plan: Plan) -> tuple[str, int]:
    """Kind and number of the GPUs that kernel-metadata.json asks for."""
    return DEVICES.get(plan.metadata.get("machine_shape", ""), ("t4", 2))


def check_wheels(plan: Plan) -> Iterator[Finding]:
    plan.need_bundle()
    wheels = members(read_lock(), plan.set, plan.image.python)
    wrong = [(wheel, told) for wheel in wheels if (told := state(wheel, plan.bundle))]
    for wheel, told in wrong:
        yield Finding(FAIL, wheel.file, f"{told} in the bundle: {plan.refetch}")
    problems = [] if wrong else conflicts(wheels, plan.bundle, plan.image)
    yield from (Finding(FAIL, "wheels", text) for text in problems)
    if not wrong and not problems:
        text = f"set {plan.set} fits the image (Python {plan.image.python}, torch {plan.image.packages.get('torch')})"
        yield Finding(OK, "wheels", text)


def check_bundle(plan: Plan) -> Iterator[Finding]:
    plan.need_bundle()
    body = read_metadata(plan.bundle / METADATA)
    problems = dataset_problems(body)
    if body.get("id") not in dataset_names(plan.metadata):
        problems.append(f"the dataset {body.get('id')} is not among dataset_sources: {plan.rebuild}")
    folders = [path.name for path in plan.bundle.iterdir() if path.is_dir()]
    unsafe = [path.name for path in plan.bundle.iterdir() if not SAFE_NAME.fullmatch(path.name)]
    problems += [f"{name}: folders are not uploaded" for name in folders]
    problems += [f"{name}: an upload may refuse this name" for name in unsafe]
    if why := outdated(plan.bundle):
        problems.append(f"{why}: {plan.rebuild}")
    yield from (Finding(FAIL, "bundle", text) for text in problems)
    if not problems:
        yield Finding(OK, "bundle", f"{body['id']}, made from commit {current_build().stamp}")


def model_here(plan: Plan) -> Path:
    """The folder here of the model that will run. Raises _NoModel where it is not known."""
    path = chosen_settings(plan).model.path
    if plan.model is not None:
        return plan.model
    if not path or path in SIZES:
        return model_folder(path, gpu=True)
    if plan.has_model and _is_bundle(plan, path, plan.metadata):
        return plan.bundle
    raise _NoModel("give --model DIR, the folder of the checkpoint here")


class _NoModel(InputError):
    """A check needs a model that was not given."""


def check_model(plan: Plan) -> Iterator[Finding]:
    settings, folder = chosen_settings(plan), model_here(plan)
    config = read_config(folder)
    count = parameter_count(config)
    problems = [*weight_problems(folder, Shape.of(config)), *format_problems(settings.model.format, folder, config)]
    yield from (Finding(FAIL, "model", f"{folder}: {text}") for text in problems)
    if not problems:
        text = f"{folder.name}: {count / 1e6:.0f}M weights, all there; format {settings.model.format} can be written"
        yield Finding(OK, "model", text)


def weight_problems(folder: Path, shape: Shape) -> list[str]:
    """What is wrong with a checkpoint's weight files, by their headers: damaged, cut short, not all that the config
    asks for, or of other sizes."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return ["no safetensors file; other weights are not read"]
    held: dict[str, int] = {}
    for file in files:
        try:
            with safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    part = opened.get_slice(name)
                    held[name] = math.prod(part.get_shape()) * (2 if part.get_dtype() == "U8" else 1)  # 4 bits each
        except (SafetensorError, OSError) as error:
            return [f"{file.name} is damaged or cut short: {error}"]
    wanted = {"model.embed_tokens.weight": shape.vocabulary * shape.hidden, "model.norm.weight": shape.hidden}
    if not shape.tied:
        wanted["lm_head.weight"] = shape.vocabulary * shape.hidden
    for layer in range(shape.layers):
        for name in LINEAR_LAYERS:
            part_of = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            wanted[f"model.layers.{layer}.{part_of}.{name}.weight"] = math.prod(shape.linear(name))
        for name in ("input_layernorm", "post_attention_layernorm"):
            wanted[f"model.layers.{layer}.{name}.weight"] = shape.hidden
    found = []
    if missing := [name for name in wanted if name not in held]:
        found.append(f"{len(missing)} weights are missing, the first is {missing[0]}")
    if other := [name for name, size in wanted.items() if held.get(name, size) != size]:
        found.append(f"{other[0]} has {held[other[0]]} numbers, config.json asks for {wanted[other[0]]}")
    return found


def format_problems(name: str, folder: Path, config: dict[str, Any]) -> list[str]:
    """What keeps a checkpoint's tokenizer from writing a task in a format."""
    from arc_ttt.model import format_of  # imports torch, which takes seconds

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # what transformers takes for Llama
    try:
        form = format_of(name, folder, SimpleNamespace(**{**tokens, **config}))
    except ModelError as error:
        return [str(error).removeprefix(f"{folder}: ")]
    grid = freeze(np.arange(10).reshape(2, 5))
    largest = int(form.encode([Example(grid, grid)], grid, grid).ids.max())
    if largest >= config["vocab_size"]:
        return [f"the tokenizer writes token {largest}, the model has {config['vocab_size']}"]
    return []


def check_memory(plan: Plan) -> Iterator[Finding]:
    """What of the model fits each kind of GPU. Only that of kernel-metadata.json must hold it."""
    settings, config = chosen_settings(plan), read_config(model_here(plan))
    model, ttt = settings.model, settings.ttt
    large = parameter_count(config) >= SMALL_PARAMETERS
    four_bit = model.quantize == "nf4" and (model.dequantize == "never" or (large and model.dequantize == "auto"))
    for kind, device in MEMORY.items():
        found = memory_plan(config, device, ttt, four_bit=four_bit, checkpointing=large, host_copies=large)
        weights = f"{found.weights / 2**30:.2f} GiB of weights in {4 if four_bit else 16} bits"
        usable = f"{device.usable / 2**30:.1f} GiB"
        longest = min(found.tokens, ttt.max_sequence_tokens)
        if longest:
            grade = OK if longest == ttt.max_sequence_tokens else WARN
            text = f"{weights} on {usable}, trains on sequences of up to {longest} of {ttt.max_sequence_tokens} tokens"
        else:
            grade = FAIL if kind == machine(plan)[0] else WARN
            advice = "take 4 bits, a lower ttt.rank or a smaller model"
            text = f"{weights}, with adapter and optimizer, leave no room to train on {usable}: {advice}"
        yield Finding(grade, "memory", f"{kind.upper()}: {text}")


def check_imports(plan: Plan) -> Iterator[Finding]:
    """The bundle's own wheel in a clean interpreter without a network."""
    plan.need_bundle()
    wheel = next(plan.bundle.glob(PROJECT_WHEELS), None)
    if wheel is None:
        raise InputError(f"the bundle has no arc_ttt wheel: {plan.rebuild}")  # as check_bundle says it
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
        yield Finding(SKIPPED, "run of 2 tasks", "--short was given")
        return
    plan.need_bundle()
    chosen_settings(plan)  # with wrong ones the run would only say so again
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        changes = {"preset": "embedded", "model.path": "", "model.format": "compact", "model.backend": "transformers"}
        short = {"run.limit_s": RUN_LIMIT_S, "ttt.passes": 1, "ttt.max_sequences": 16, "synthesis.cpu_limits_s": "1"}
        text = kernel_with((plan.kernel / "kernel.py").read_text(encoding="utf-8"), {**changes, **short})
        (base / "kernel.py").write_text(text, encoding="utf-8")
        python, _ = clean_interpreter(base / "python", plan.image)
        stage = Stage(base / "kaggle", can_isolate())
        cheapest = sorted(some_tasks("training", 400).items(), key=lambda item: len(json.dumps(item[1])))
        tasks = dict(cheapest[:RUN_TASKS])
        set_stage(stage.root, bundle=plan.bundle, tasks=tasks, layout="new", kernel=base / "kernel.py")
        result = perform(stage, python, limit_s=RUN_LIMIT_S, rerun=True)
        events = read_journal(stage.working / "events.jsonl") if (stage.working / "events.jsonl").is_file() else []
    problems = [*result.problems, *(line for line in result.log.splitlines() if line.startswith("FALLBACK"))]
    looked = {event["task_id"] for event in events if event["event"] == "found" and event["kind"] in (BASE, TTT)}
    if not problems and not re.search(r"^arc_ttt \S+ of commit \S+$", result.log, re.MULTILINE):
        problems.append("kernel.py did not run the arc_ttt of the bundle")
    if not problems and len(looked) < RUN_TASKS:
        problems.append(
            f"the model answered {len(looked)} of {RUN_TASKS} tasks: run it again with nothing else running"
        )
    yield from (Finding(FAIL, "run of 2 tasks", text) for text in problems)
    if not problems:
        text = f"answered by the model, valid submission, slack {result.slack_s:.0f} s of {RUN_LIMIT_S:.0f}"
        yield Finding(OK, "run of 2 tasks", text)


def check_forecast(plan: Plan) -> Iterator[Finding]:
    """The real scheduler in virtual time over as many made-up tasks as the competition has."""
    device_type, devices = machine(plan)
    settings = chosen_settings(plan).override([("synthesis.enabled", False)])
    model = Model.of(read_config(model_here(plan)))
    tasks = loaded_from(made_up_tasks(HIDDEN_TASKS))
    outcome = simulate(Scenario(tasks=tasks, settings=settings, model=model, device_type=device_type, devices=devices))
    text = (
        f"{HIDDEN_TASKS} tasks on {devices} x {device_type}: {outcome.answered:.0%} answered, {outcome.trained:.0%} "
        f"trained, ends {format_duration(outcome.limit_s - outcome.seconds)} before the limit"
    )
    yield Finding(FAIL if outcome.missed else WARN if outcome.trained < 0.9 else OK, "forecast", text)


CHECKS: tuple[Callable[[Plan], Iterator[Finding]], ...] = (
    check_licence,
    check_metadata,
    check_settings,
    check_bundle,
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
            if isinstance(error, _NoModel):
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
