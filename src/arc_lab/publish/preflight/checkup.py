"""What all checks look at: folders, settings, model and image, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.publish.bundle import METADATA
from arc_lab.publish.kaggle_image import IMAGE, Image
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import read_metadata, source_of
from arc_lab.publish.preflight.findings import NoModel
from arc_lab.publish.wheels import told_again
from arc_ttt.checkpoints.folders import SIZES, model_folder
from arc_ttt.errors import InputError
from arc_ttt.settings import Settings

DEVICES = {"NvidiaTeslaT4": ("t4", 2), "NvidiaL4": ("l4", 4), "NvidiaL4X1": ("l4", 1)}  # by machine_shape


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


def model_here(plan: Plan) -> Path:
    """The folder here of the model that will run. Raises NoModel where it is not known."""
    path = chosen_settings(plan).model.path
    if plan.model is not None:
        return plan.model
    if not path or path in SIZES:
        return model_folder(path, gpu=True)
    if plan.has_model and _is_bundle(plan, path, plan.metadata):
        return plan.bundle
    raise NoModel("give --model DIR, the folder of the checkpoint here")
