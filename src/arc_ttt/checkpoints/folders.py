"""Model folders: what their config.json says, and which weights they hold, read without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from arc_ttt.errors import ModelError

EMBEDDED = Path(__file__).parent / "embedded" / "xs"
"""Size XS, 2.7 million parameters."""
EMBEDDED_M = Path(__file__).parent / "embedded" / "m"
"""Size M, 26 million parameters."""
SAMPLES = 64
"""Samples of a file of weights that its fingerprint reads."""
SAMPLE_BYTES = 256
SIZES = {"embedded-XS": EMBEDDED, "embedded-M": EMBEDDED_M}


def model_folder(path: str, *, gpu: bool = False) -> Path:
    """The folder that `model.path` names: an embedded model by name, or for an empty path the one that suits the
    device, size M on a GPU and XS on a CPU; else a folder."""
    if not path:
        return EMBEDDED_M if gpu else EMBEDDED
    return SIZES.get(path) or Path(path).expanduser()


def is_embedded(path: str) -> bool:
    """Whether `model.path` names a model of this project."""
    return not path or path in SIZES


def check_format(path: str, form: str) -> None:
    """Check that the model of `model.path` can have been trained with `model.format`.

    Raises:
        ModelError: an embedded model, which reads the format compact alone, was given another one.
    """
    if is_embedded(path) and form != "compact":
        raise ModelError(f"format {form} needs a checkpoint that was trained with it, and model.path names none")


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json.

    Raises:
        ModelError: the folder is missing, its config is unreadable, or it is no Llama.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder}: no readable config.json: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder}/config.json is not JSON: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "llama":
        raise ModelError(f"{folder}: model_type is {kind!r}; this kernel runs llama checkpoints")
    return dict(config)


def weights_fingerprint(folder: Path) -> str:
    """A hash of the config, and of names, sizes and samples of the weight files.

    Training changes weights everywhere, so samples tell; reading all of an 8B would take a minute. Source: ours.
    """
    total = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.name == "config.json":
            total.update(file.read_bytes())
        elif file.suffix == ".safetensors":
            size = file.stat().st_size
            total.update(f"{file.name} {size}".encode())
            with file.open("rb") as opened:
                for number in range(SAMPLES):
                    opened.seek(number * max(SAMPLE_BYTES, size // SAMPLES))
                    total.update(opened.read(SAMPLE_BYTES))
    return total.hexdigest()
