"""Model folders: what their config.json says, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arc_ttt.errors import ModelError

EMBEDDED = Path(__file__).parent / "embedded"  # size XS, 2.7 million parameters
EMBEDDED_M = Path(__file__).parent / "embedded_m"  # 26 million
SIZES = {"embedded-XS": EMBEDDED, "embedded-M": EMBEDDED_M}


def model_folder(path: str, *, gpu: bool = False) -> Path:
    """The folder that `model.path` names: an embedded model by name, or for an empty path the one that suits the
    device, size M on a GPU and XS on a CPU; else a folder."""
    if not path:
        return EMBEDDED_M if gpu else EMBEDDED
    return SIZES.get(path) or Path(path).expanduser()


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
