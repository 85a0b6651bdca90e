"""Settings that can be used: those asked for, or what stands in for them."""

from __future__ import annotations

from typing import Any

from arc_ttt.bootstrap.mounts import Mounts, find_model
from arc_ttt.bootstrap.packages import Packages
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import check_format, model_folder
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.deadline import format_duration
from arc_ttt.errors import ModelError, SettingsError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.kaggle.record import Setup
from arc_ttt.machine import available_memory, count_gpus, gpu_memory_bytes
from arc_ttt.settings import Settings

LIMIT_S = 11.5 * 3600
"""The limit where SETTINGS name none that can be used; Kaggle ends a run after 12 hours."""
HEADROOM = 1.25
"""Memory of adapters and activations, as a factor of the weights."""


def chosen_settings(chosen: dict[str, Any], setup: Setup) -> tuple[Settings, dict[str, Any]]:
    """The settings chosen, or of wrong ones only the limit; and what they were made from, without the preset."""
    try:
        preset = str(chosen.pop("preset", "embedded"))
        row = FORMATS.get(str(chosen.get("model.format", "")))
        if preset == "embedded" and row is not None and (other := row.preset) != preset:
            setup.fall_back(
                f"SETTINGS: preset embedded trains no model of format {chosen['model.format']}; {other} does"
            )
            preset = other
        preset = embedded_preset() if preset == "embedded" else preset
        return Settings.of(preset).override(chosen.items()), chosen
    except SettingsError as error:
        setup.fall_back(f"SETTINGS: {error}; the embedded model and its defaults instead")
    limits = {name: value for name, value in chosen.items() if name == "run.limit_s"}
    try:
        return Settings.of(embedded_preset()).override(limits.items()), limits
    except SettingsError as error:
        setup.fall_back(f"SETTINGS: {error}; {format_duration(LIMIT_S)} instead")
    limits = {"run.limit_s": LIMIT_S}
    return Settings.of(embedded_preset()).override(limits.items()), limits


def embedded_preset() -> str:
    """The preset of the embedded model that suits the machine."""
    return "embedded-gpu" if count_gpus() else "embedded"


def is_large(settings: Settings) -> bool:
    """Whether the model is too large for its steps to be recorded as CUDA graphs."""
    try:
        return not Checkpoint.of_path(settings.model.path, gpu=count_gpus() > 0).shape.is_small
    except ModelError:
        return False


def usable_settings(
    settings: Settings, embedded: Settings, mounts: Mounts, packages: Packages, setup: Setup
) -> Settings:
    """The settings with what this machine has: the model where it is mounted, 16-bit weights where 4-bit ones do not
    work and memory allows, transformers where unsloth does not work; `embedded` where the model cannot be used."""
    changes: list[tuple[str, Any]] = []
    if settings.model.backend == "unsloth" and not packages.unsloth:
        changes.append(("model.backend", "transformers"))
    try:
        check_format(settings.model.path, settings.model.format)
        folder = model_folder(settings.model.path, gpu=count_gpus() > 0)
        if settings.model.path:
            found, other = find_model(settings.model.path, mounts) or (folder, "")
            if found != folder:
                setup.note(f"model: {settings.model.path} is mounted as {found}")
            if other:
                setup.fall_back(other)
            folder = found
            changes.append(("model.path", str(folder)))
        checkpoint = Checkpoint.read(folder)
        if not packages.four_bit and settings.model.quantize != "none":
            _check_memory(checkpoint.shape, settings)
            setup.note("the model's weights are held in 16 bits (32 on a CPU)")
            changes.append(("model.quantize", "none"))
    except ModelError as error:
        setup.fall_back(f"{error}; using the embedded model instead")
        return embedded
    return settings.override(changes)


def _check_memory(shape: LlamaShape, settings: Settings) -> None:
    """Raises ModelError if the weights do not fit without 4 bits: on a GPU in 16, else for each process in 32."""
    on_gpu = gpu_memory_bytes() if count_gpus() else 0
    held = on_gpu or (available_memory() or 0) // (settings.run.workers or 2)
    needed = shape.matrix_weights * (2 if on_gpu else 4) * HEADROOM
    if held and needed > held:
        raise ModelError(f"without 4-bit weights the model needs {needed / 2**30:.1f} GiB of {held / 2**30:.1f}")


def belongs_to_run(name: str) -> bool:
    """Whether a setting is about the run and not about a particular model."""
    return name.partition(".")[0] in ("run", "synthesis", "vote") or name == "ttt.passes"
