"""One checkpoint folder, read once: its config, its shape, and what tells it from others."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_ttt.checkpoints.folders import model_folder, read_config, weights_fingerprint
from arc_ttt.checkpoints.shape import LlamaShape, ModelSize


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose config.json could be read.

    Args:
        folder: where it lies.
        config: its config.json.
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder.

        Raises:
            ModelError: the folder is missing, its config is unreadable, or it is no Llama.
        """
        return cls(folder, read_config(folder))

    @classmethod
    def of_path(cls, path: str, *, gpu: bool = False) -> Checkpoint:
        """The checkpoint that `model.path` names; an empty path means the embedded model that suits the device.

        Raises:
            ModelError: as for `read`.
        """
        return cls.read(model_folder(path, gpu=gpu))

    @functools.cached_property
    def shape(self) -> LlamaShape:
        """Its sizes.

        Raises:
            ModelError: a size is missing or no number.
        """
        return LlamaShape.of(self.config)

    @property
    def size(self) -> ModelSize:
        """What its cost depends on."""
        return ModelSize.of(self.shape)

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are stored in fewer than 16 bits."""
        return bool(self.config.get("quantization_config"))

    def fingerprint(self) -> str:
        """What tells it from other checkpoints."""
        return weights_fingerprint(self.folder)
