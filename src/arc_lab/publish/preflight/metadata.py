"""Checks of licence, metadata, settings and sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arc_lab.publish.bundle import METADATA
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import dataset_names, kernel_problems, model_path_problem, read_metadata, source_of
from arc_lab.publish.preflight.checkup import Plan, _is_bundle, chosen_settings, model_here
from arc_lab.publish.preflight.findings import FAIL, OK, WARN, Finding
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import SIZES
from arc_ttt.checkpoints.shape import SMALL_PARAMETERS
from arc_ttt.errors import InputError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.model.unsloth import adapter_refusal
from arc_ttt.settings import Settings


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
        other = FORMATS[form].preset
        return f"preset {preset} has the wrong learning rate for a model of format {form}: name preset {other}"
    if not path or path in SIZES:
        return ""
    advice = "name preset llama-1b-3b or llama-8b, and model.format"
    try:
        large = Checkpoint.read(model_here(plan)).shape.matrix_weights >= SMALL_PARAMETERS
    except InputError:
        large = "model.format" not in chosen
        advice += "; for a small model of your own write model.format compact"
    return f"preset {preset} has the wrong learning rate for a mounted model: {advice}" if large else ""


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
