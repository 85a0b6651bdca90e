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
from packaging.utils import canonicalize_name
from safetensors import SafetensorError, safe_open

from arc_lab.publish.bundle import (
    BUNDLE,
    METADATA,
    MOST_MODEL_BYTES,
    PROJECT_WHEELS,
    SAFE_NAME,
    current_build,
    model_files,
    outdated,
)
from arc_lab.publish.metadata import (
    dataset_names,
    dataset_problems,
    kernel_problems,
    model_path_problem,
    read_metadata,
    source_of,
)
from arc_lab.publish.rehearse import (
    Stage,
    can_isolate,
    clean_interpreter,
    kernel_with,
    offline,
    perform,
    read_settings,
    set_stage,
    shortened,
    some_tasks,
)
from arc_lab.publish.wheels import (
    CLASHES,
    IMAGE,
    ROOT,
    SETS,
    Image,
    conflicts,
    members,
    read_image,
    read_lock,
    state,
    told_again,
)
from arc_lab.simulate.command import Scenario, loaded_from, made_up_tasks, simulate
from arc_ttt.checkpoints.folders import SIZES, model_folder, parameter_count, read_config
from arc_ttt.checkpoints.memory_plan import L4, SMALL_PARAMETERS, T4, Shape
from arc_ttt.checkpoints.memory_plan import plan as memory_plan
from arc_ttt.deadline import format_duration
from arc_ttt.errors import InputError, ModelError, SettingsError
from arc_ttt.kaggle.run import PRESETS
from arc_ttt.model.unsloth import adapter_refusal
from arc_ttt.run.journal import read_journal
from arc_ttt.schedule.cost import BASE, TTT, Model
from arc_ttt.settings import LINEAR_LAYERS, Settings
from arc_ttt.tasks.grids import Example, freeze

INSTALL_LIMIT_S, IMPORT_LIMIT_S = 300.0, 600.0
IMPORTS = "import arc_ttt.kaggle.run, arc_ttt.worker, arc_ttt.worker.solver, arc_ttt.model.load, arc_ttt.synthesis"
ATTACH = """
import torch
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, TttSettings
base = load_model(ModelSettings(quantize="none", dtype="float32"), torch.device("cpu"))
Adapter(base, TttSettings(), seed=0)
"""
DEVICES = {"NvidiaTeslaT4": ("t4", 2), "NvidiaL4": ("l4", 4), "NvidiaL4X1": ("l4", 1)}  # by machine_shape
MEMORY = {"t4": T4, "l4": L4}
HIDDEN_TASKS = 240
RUN_TASKS, RUN_LIMIT_S = 2, 120.0
MODEL_RUN_LIMIT_S = 590.0  # so short that a base pass is answer enough; for a model of up to MOST_MODEL_BYTES on a CPU
RUN_SETTINGS: dict[str, object] = {
    "model.backend": "transformers",
    "ttt.passes": 1,
    "ttt.max_sequences": 16,
    "synthesis.cpu_limits_s": "1",
}
EMBEDDED_XS: dict[str, object] = {"preset": "embedded", "model.path": "", "model.format": "compact"}
FEW_VIEWS: dict[str, object] = {
    "decode.base_views": 2,
    "decode.base_share": 0.5,
    "decode.views": 2,
    "vote.scoring_views": 2,
    "ttt.max_sequences": 4,
}
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
    if told := _preset_problem(plan, settings):
        problems.append(told)
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


def _preset_problem(plan: Plan, settings: Settings) -> str:
    """Why a preset of the embedded model, whose learning rate is 30 times that of a large one, is not for the model."""
    chosen = read_settings(plan.kernel / "kernel.py")
    preset, path, form = str(chosen.get("preset", "embedded")), settings.model.path, settings.model.format
    if not preset.startswith("embedded"):
        return ""
    if form != "compact":
        return f"preset {preset} has the wrong learning rate for a model of format {form}: name preset {PRESETS[form]}"
    if not path or path in SIZES:
        return ""
    advice = "name preset llama-1b-3b or llama-8b, and model.format"
    try:
        large = parameter_count(read_config(model_here(plan))) >= SMALL_PARAMETERS
    except InputError:
        large = "model.format" not in chosen
        advice += "; for a small model of your own write model.format compact"
    return f"preset {preset} has the wrong learning rate for a mounted model: {advice}" if large else ""


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
        image = f"Python {plan.image.python}, torch {plan.image.packages.get('torch')}"
        yield Finding(OK, "wheels", f"set {plan.set}: the image ({image}) has the versions that these wheels require")


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


def check_sources(plan: Plan) -> Iterator[Finding]:
    """Datasets beside the bundle's own, out of which kernel.py could take another arc_ttt wheel."""
    plan.need_bundle()
    body, own = plan.metadata, str(read_metadata(plan.bundle / METADATA).get("id"))
    others = dataset_names(body)
    if own not in others:
        return  # which check_bundle tells
    others.remove(own)
    path = str(read_settings(plan.kernel / "kernel.py").get("model.path", ""))
    model = "/".join(source_of(path, body).split("/")[:2])
    for other in others:
        told = f"dataset_sources names {other} beside {own}, and kernel.py takes the first arc_ttt wheel of all inputs"
        if other.partition("/")[2].startswith(own.partition("/")[2]):
            yield Finding(FAIL, "sources", f"{told}: name one of the two")
        elif other != model:
            yield Finding(WARN, "sources", f"{told}: it must hold none")


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
    from arc_ttt.model.load import format_of  # imports torch, which takes seconds

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
    """The bundle's own wheel in a clean interpreter without a network, and an adapter beside stand-ins of those of the
    image's packages that clash."""
    plan.need_bundle()
    wheel = next(plan.bundle.glob(PROJECT_WHEELS), None)
    if wheel is None:
        raise InputError(f"the bundle has no arc_ttt wheel: {plan.rebuild}")  # as check_bundle says it
    without = offline()
    where = f"in a clean interpreter {'without' if without else 'WITH'} a network"
    with tempfile.TemporaryDirectory() as folder:
        python, notes = clean_interpreter(Path(folder) / "python", plan.image)
        install = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
        run = [*without, str(python), "-I", "-c"]
        if failure := _failure(install, INSTALL_LIMIT_S) or _failure([*run, IMPORTS], IMPORT_LIMIT_S):
            yield Finding(FAIL, "imports", f"{where}: {failure}")
            return
        differ = f"; not the image's versions: {', '.join(note.split(',')[0] for note in notes)}" if notes else ""
        yield Finding(WARN if differ or not without else OK, "imports", f"work {where}{differ}")
        for clash in CLASHES:
            if told := clash.told(plan.image.packages):
                version = plan.image.packages[canonicalize_name(clash.other.name)]
                stand_in(python, clash.other.name, version)
                if failure := _failure([*run, ATTACH], IMPORT_LIMIT_S):
                    yield Finding(FAIL, "image", f"{told}; so it does here: {failure}")
                else:
                    beside = f"a stand-in of {clash.other.name} {version}"
                    yield Finding(OK, "image", f"{told}; embedded XS got its adapter all the same, beside {beside}")


def _failure(words: Sequence[str], limit_s: float) -> str:
    """The last line that a program which failed left, or that it took too long; empty if it ended well."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"it had not ended after {format_duration(limit_s)}"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


def stand_in(python: Path, name: str, version: str) -> None:
    """Give an interpreter of `clean_interpreter` an empty package in place of the one it may have."""
    site = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    for path in (site / name, *site.glob(f"{name}-*.dist-info")):
        if path.is_symlink():
            path.unlink()
    about = site / f"{name}-{version}.dist-info"
    for folder in (site / name, about):
        folder.mkdir()
    (site / name / "__init__.py").write_text("", encoding="utf-8")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Answering:
    """Which model answers in the run of two tasks. changes: to SETTINGS. mounted: its folder here, if it is to be
    mounted. left: what to do about the model that SETTINGS ask for, if it is another."""

    name: str
    changes: dict[str, object]
    limit_s: float
    mounted: Path | None = None
    left: str = ""


def answering(plan: Plan) -> Answering:
    """The model that SETTINGS ask for, where it is here and small enough for a CPU; else embedded XS."""
    model = chosen_settings(plan).model
    if not model.path or model.path in SIZES:
        return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S)
    bundled = _is_bundle(plan, model.path, plan.metadata)
    if bundled and plan.has_model:
        return Answering(f"the bundle's model in format {model.format}", FEW_VIEWS, MODEL_RUN_LIMIT_S)
    if plan.model is not None and not bundled and 0 < model_files(plan.model)[1] <= MOST_MODEL_BYTES:
        name = f"{plan.model.resolve().name} in format {model.format}"
        return Answering(name, FEW_VIEWS, MODEL_RUN_LIMIT_S, plan.model)
    left = f"; your model: python -m arc_lab rehearse --model {plan.model or 'DIR'} [--gpu]"
    return Answering("embedded XS", EMBEDDED_XS, RUN_LIMIT_S, left=left)


def check_run(plan: Plan) -> Iterator[Finding]:
    """Two tasks, as the scoring rerun would do them."""
    if plan.short:
        yield Finding(SKIPPED, "run of 2 tasks", "--short was given")
        return
    plan.need_bundle()
    chosen = answering(plan)
    limit_s = chosen.limit_s
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        changes = {**shortened(limit_s), **RUN_SETTINGS, **chosen.changes}
        text = kernel_with((plan.kernel / "kernel.py").read_text(encoding="utf-8"), changes)
        (base / "kernel.py").write_text(text, encoding="utf-8")
        python, _ = clean_interpreter(base / "python", plan.image)
        stage = Stage(base / "kaggle", can_isolate())
        cheapest = sorted(some_tasks("training", 400).items(), key=lambda item: len(json.dumps(item[1])))
        mounted = None
        if chosen.mounted is not None:
            mounted = base / "model"  # without what else lies in the folder
            mounted.mkdir()
            for path in model_files(chosen.mounted)[0]:
                (mounted / path.name).symlink_to(path.resolve())
        set_stage(
            stage.root,
            bundle=plan.bundle,
            tasks=dict(cheapest[:RUN_TASKS]),
            layout="new",
            kernel=base / "kernel.py",
            model=mounted,
        )
        result = perform(stage, python, limit_s=limit_s, rerun=True)
        events = read_journal(stage.working / "events.jsonl") if (stage.working / "events.jsonl").is_file() else []
    problems = [*result.problems, *(line for line in result.log.splitlines() if line.startswith("FALLBACK"))]
    looked = {event["task_id"] for event in events if event["event"] == "found" and event["kind"] in (BASE, TTT)}
    if not problems and not re.search(r"^arc_ttt \S+ of commit \S+$", result.log, re.MULTILINE):
        problems.append("kernel.py did not run the arc_ttt of the bundle")
    if not problems and len(looked) < RUN_TASKS:
        problems.append(
            f"{chosen.name} answered {len(looked)} of {RUN_TASKS} tasks: run it again with nothing else running"
        )
    yield from (Finding(FAIL, "run of 2 tasks", text) for text in problems)
    if not problems:
        slack = f"slack {result.slack_s:.0f} s of {limit_s:.0f}"
        yield Finding(OK, "run of 2 tasks", f"answered by {chosen.name}, valid submission, {slack}{chosen.left}")


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
    check_sources,
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
