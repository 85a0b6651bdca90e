"""What the environment of a run says, and what it must say before libraries are imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def is_rerun() -> bool:
    """Whether this is the scoring rerun on the hidden tasks."""
    return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


def starts() -> int:
    """How often kernel.py's guard has started this run; 0 without one."""
    count = os.environ.get("ARC_TTT_STARTS", "")
    return int(count) if count.isdecimal() else 0


def owns_container() -> bool:
    """Whether Kaggle started this container for this run, so that its limit counts from the container's start."""
    return is_rerun() or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch"


def scratch_folder(root: Path) -> Path:
    """A folder for what no one keeps: `root`/temp, or another place that can be written.

    Raises:
        OSError: there is none.
    """
    for base in (root / "temp", Path(tempfile.gettempdir()), root / "working"):
        try:
            folder = base / "arc_ttt"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".written").write_bytes(b"1")
            return folder
        except OSError:
            continue
    raise OSError("no folder for scratch files can be written")


def set_environment(scratch: Path) -> None:
    """Tell libraries, before any is imported, that there is no network, and where their caches go.

    Workers inherit it. What is set already stays.
    """
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        "ARC_TTT_SCRATCH": str(scratch),
        "HF_HOME": str(scratch / "hf"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "PYTHONPYCACHEPREFIX": str(scratch / "pyc"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),
    }.items():
        os.environ.setdefault(name, value)
