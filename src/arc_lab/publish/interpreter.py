"""Make a clean Python interpreter, and run it without a network."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import venv
from pathlib import Path

from packaging.utils import canonicalize_name

from arc_lab.publish.kaggle_image import Image

PROBE_LIMIT_S = 20.0
"""Seconds after which a probe of this machine is given up."""

CONTAINER = ["unshare", "-rmnpf", "--mount-proc", "--kill-child"]
"""Start of a command line that runs in new namespaces of users, mounts, network and processes."""

EVERY_INTERPRETER_HAS = ("pip", "setuptools")
"""Packages that are never linked: a new interpreter brings them."""

IMPORTANT = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy", "scipy")
"""Packages whose other version a rehearsal reports."""


def can_isolate() -> bool:
    """Whether this machine permits the namespaces that a rehearsal uses, and mounts in them."""
    try:
        probe = [*CONTAINER, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def clean_interpreter(folder: Path, image: Image) -> tuple[Path, list[str]]:
    """Make an interpreter with the image's packages, as far as this interpreter has them, and nothing else.

    Returns its path and notes: one for Python and one for each important package if the version differs.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    own = platform.python_version()
    notes = [] if own.startswith(f"{image.python}.") else [f"Python {own}, {image.python} in the image"]
    for item in importlib.metadata.distributions():
        name = canonicalize_name(item.metadata["Name"] or "")
        if name not in image.packages or name in EVERY_INTERPRETER_HAS:
            continue
        if image.packages[name] != item.version.split("+")[0] and name in IMPORTANT:
            notes.append(f"{name} {item.version}, {image.packages[name]} in the image")
        for top in sorted({path.parts[0] for path in item.files or [] if path.parts and path.parts[0] != ".."}):
            source, link = Path(str(item.locate_file(top))), site / top
            if source.exists() and not link.exists() and top != "__pycache__":
                link.symlink_to(source.resolve())
    return folder / "bin" / "python", notes


def offline() -> list[str]:
    """Start of a command line whose process has no network; empty where this machine does not permit that."""
    for words in (CONTAINER, ["unshare", "-rn"]):
        try:
            probe = [*words, "true"]
            if subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0:
                return words
        except (OSError, subprocess.TimeoutExpired):
            break
    return []


def offline_words() -> str:
    """Whether `offline` works here, for a person."""
    return "without a network" if offline() else "WITH a network: this machine permits no namespaces"
