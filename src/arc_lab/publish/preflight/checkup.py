"""What all checks look at: folders, settings, model and image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.publish.bundle import METADATA
from arc_lab.publish.kaggle_image import IMAGE, Image
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import read_metadata, source_of
from arc_lab.publish.preflight.findings import NoModel
from arc_lab.publish.wheels import wheel_options
from arc_ttt.checkpoints.folders import is_embedded, model_folder
from arc_ttt.errors import InputError
from arc_ttt.settings import Settings

DEVICES = {"NvidiaTeslaT4": ("t4", 2), "NvidiaL4": ("l4", 4), "NvidiaL4X1": ("l4", 1)}
"""Kind and number of GPUs, by machine_shape in kernel-metadata.json."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """What is to be checked.

    Args:
        kernel: folder of kernel.py and its metadata.
        bundle: folder of the bundle.
        image: the description of Kaggle's image.
        set: the set of wheels, base or unsloth.
        model: folder on this machine of the checkpoint that will be mounted, if there is one.
        short: whether to leave out the run of two tasks.
        image_file: file of the image's description.
    """

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
        """Advice to make the bundle anew, for this set and image, with a model if it has one."""
        model = " --model DIR" if self.has_model else ""
        return f"run arc-lab bundle{wheel_options(self.set, self.image_file)}{model}"

    @property
    def refetch(self) -> str:
        """Advice to fetch the wheels and then make the bundle anew."""
        options = wheel_options(self.set, self.image_file)
        return f"run arc-lab wheels{options}, then {self.rebuild.removeprefix('run ')}"

    def need_bundle(self) -> None:
        """Raise InputError if there is no bundle. Only the first check that needs one reports it."""
        if not self.bundle.is_dir():
            raise InputError(f"there is no {self.bundle}: {self.refetch}")


def leads_into_bundle(checkup: Checkup, path: str, body: dict[str, Any]) -> bool:
    """Whether `path` on Kaggle leads into the bundle's dataset; `body` is kernel-metadata.json."""
    held = checkup.bundle / METADATA
    source = "/".join(source_of(path, body).split("/")[:2])
    return held.is_file() and bool(source) and source == read_metadata(held).get("id")


def chosen_settings(checkup: Checkup) -> Settings:
    """The settings in kernel.py, as a machine with GPUs reads them. Raises InputError."""
    chosen = read_settings(checkup.kernel / "kernel.py")
    preset = str(chosen.pop("preset", "embedded"))
    return Settings.of("embedded-gpu" if preset == "embedded" else preset).override(chosen.items())


def machine(checkup: Checkup) -> tuple[str, int] | None:
    """Kind and number of the GPUs that kernel-metadata.json asks for; None where their speed is not known."""
    return DEVICES.get(checkup.metadata.get("machine_shape", ""))


def model_here(checkup: Checkup) -> Path:
    """The folder on this machine of the model that will run. Raises NoModel if it is not known."""
    path = chosen_settings(checkup).model.path
    if checkup.model is not None:
        return checkup.model
    if is_embedded(path):
        return model_folder(path, gpu=True)
    if checkup.has_model and leads_into_bundle(checkup, path, checkup.metadata):
        return checkup.bundle
    raise NoModel("give --model DIR, the folder of the checkpoint here")
