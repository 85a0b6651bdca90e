"""Checks of licence, metadata, settings and sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arc_lab.publish.bundle import METADATA
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import (
    MOST_CODE_BYTES,
    dataset_names,
    kernel_problems,
    model_path_problem,
    read_metadata,
    source_of,
)
from arc_lab.publish.preflight.checkup import Checkup, chosen_settings, leads_into_bundle, model_here
from arc_lab.publish.preflight.findings import Finding, Level
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import check_format, is_embedded
from arc_ttt.errors import InputError, ModelError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.model.unsloth import adapter_refusal
from arc_ttt.settings import Settings


def check_licence(checkup: Checkup) -> Iterator[Finding]:
    """There is a licence."""
    path = checkup.kernel / "LICENSE"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if text:
        yield Finding(Level.OK, "LICENSE", text.split("\n")[0].strip())
    else:
        yield Finding(
            Level.FAIL, "LICENSE", f"{'empty' if path.is_file() else 'missing'}; prizes ask for an open licence"
        )


def check_metadata(checkup: Checkup) -> Iterator[Finding]:
    """Kaggle would take kernel-metadata.json and kernel.py."""
    body = checkup.metadata
    problems = kernel_problems(body, checkup.kernel)
    yield from (Finding(Level.FAIL, "kernel-metadata.json", text) for text in problems)
    if not problems:
        yield Finding(Level.OK, "kernel-metadata.json", f"{body['id']}, {body['machine_shape']}, no internet, private")
        size = (checkup.kernel / body["code_file"]).stat().st_size
        yield Finding(Level.OK, body["code_file"], f"{size} bytes of {MOST_CODE_BYTES}")


def check_settings(checkup: Checkup) -> Iterator[Finding]:
    """SETTINGS fit each other, the bundle, and the sources of the kernel."""
    settings, body = chosen_settings(checkup), checkup.metadata
    hours, path, unsloth = settings.run.limit_s / 3600, settings.model.path, settings.model.backend == "unsloth"
    problems = []
    if hours > 11.9:
        problems.append(f"a limit of {hours:.2f} h leaves Kaggle's 12 h no room: write 11.5 * 3600")
    if unsloth and checkup.set != "unsloth":
        problems.append("model.backend is unsloth: bundle and check with --set unsloth")
    if unsloth and (refusal := adapter_refusal(settings.ttt)):
        problems.append(refusal)
    if unsloth and settings.model.format == "compact":
        problems.append("unsloth is for mounted checkpoints: set model.path and model.format")
    try:
        check_format(path, settings.model.format)
    except ModelError as error:
        problems.append(f"{error}: set model.path, or name another preset")
    if not is_embedded(path):
        problems += filter(None, [model_path_problem(path, body), _bundled_model_problem(checkup, path, body)])
    if why := _preset_problem(checkup, settings):
        problems.append(why)
    yield from (Finding(Level.FAIL, "SETTINGS", text) for text in problems)
    if not path and checkup.has_model:
        held = f"/kaggle/input/datasets/{read_metadata(checkup.bundle / METADATA).get('id')}"
        text = f"the bundle holds a model that is not used: set model.path to {held}, and preset and model.format"
        yield Finding(Level.WARN, "SETTINGS", text)
    if not problems:
        model = path or "the embedded model"
        yield Finding(Level.OK, "SETTINGS", f"{model}, {settings.model.backend}, limit {hours:.2f} h")


def _bundled_model_problem(checkup: Checkup, path: str, body: dict[str, Any]) -> str:
    """What is wrong with `model.path` if it leads into the bundle's dataset; empty if nothing is."""
    if checkup.has_model or not leads_into_bundle(checkup, path, body):
        return ""
    return f"model.path {path} is the bundle, which holds no model: {checkup.rebuild} --model DIR"


def _preset_problem(checkup: Checkup, settings: Settings) -> str:
    """Why the preset does not suit the model; empty if it does.

    The learning rate of the embedded models' presets is 30 times that of a large model's.
    """
    chosen = read_settings(checkup.kernel / "kernel.py")
    preset, path, form = str(chosen.get("preset", "embedded")), settings.model.path, settings.model.format
    if not preset.startswith("embedded"):
        return ""
    if form != "compact":
        other = FORMATS[form].preset
        return f"preset {preset} has the wrong learning rate for a model of format {form}: name preset {other}"
    if is_embedded(path):
        return ""
    advice = "name preset llama-1b-3b or llama-8b, and model.format"
    try:
        large = not Checkpoint.read(model_here(checkup)).shape.is_small
    except InputError:
        large = "model.format" not in chosen
        advice += "; for a small model of your own write model.format compact"
    return f"preset {preset} has the wrong learning rate for a mounted model: {advice}" if large else ""


def check_sources(checkup: Checkup) -> Iterator[Finding]:
    """No other dataset could give kernel.py another arc_ttt wheel than the bundle's."""
    checkup.need_bundle()
    body, own = checkup.metadata, str(read_metadata(checkup.bundle / METADATA).get("id"))
    others = dataset_names(body)
    if own not in others:
        return  # check_bundle reports it
    others.remove(own)
    path = str(read_settings(checkup.kernel / "kernel.py").get("model.path", ""))
    model = "/".join(source_of(path, body).split("/")[:2])
    for other in others:
        danger = (
            f"dataset_sources names {other} beside {own}, and kernel.py takes the first arc_ttt wheel of all inputs"
        )
        if other.partition("/")[2].startswith(own.partition("/")[2]):
            yield Finding(Level.FAIL, "sources", f"{danger}: name one of the two")
        elif other != model:
            yield Finding(Level.WARN, "sources", f"{danger}: it must hold none")
