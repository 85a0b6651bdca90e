"""Model folders: what their config.json says, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arc_ttt.errors import ModelError

EMBEDDED = Path(__file__).parent / "embedded"


def model_folder(path: str) -> Path:
    """The folder that `model.path` names; the embedded model for an empty one."""
    return Path(path).expanduser() if path else EMBEDDED


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
