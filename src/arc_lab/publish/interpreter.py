"""A clean Python interpreter without a network, as the rehearsal and preflight need it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import venv
from pathlib import Path

from packaging.utils import canonicalize_name

from arc_lab.publish.kaggle_image import Image

PROBE_LIMIT_S = 20.0
OWN = ["unshare", "-rmnpf", "--mount-proc", "--kill-child"]  # users, mounts, network, processes: a container of its own
ALSO = ("pip", "setuptools")


def can_isolate() -> bool:
    """Whether this machine lets us make namespaces of all kinds that a rehearsal uses, and mount in them."""
    try:
        probe = [*OWN, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def clean_interpreter(folder: Path, image: Image) -> tuple[Path, list[str]]:
    """An interpreter with those of the image's packages that this one has, and nothing else.

    Returns its path and a note on Python and on each important package, where the version is another.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    own = platform.python_version()
    notes = [] if own.startswith(f"{image.python}.") else [f"Python {own}, {image.python} in the image"]
    for item in importlib.metadata.distributions():
        name = canonicalize_name(item.metadata["Name"] or "")
        if name not in image.packages or name in ALSO:
            continue
        if image.packages[name] != item.version.split("+")[0] and name in IMPORTANT:
            notes.append(f"{name} {item.version}, {image.packages[name]} in the image")
        for top in sorted({path.parts[0] for path in item.files or [] if path.parts and path.parts[0] != ".."}):
            source, link = Path(str(item.locate_file(top))), site / top
            if source.exists() and not link.exists() and top != "__pycache__":
                link.symlink_to(source.resolve())
    return folder / "bin" / "python", notes


IMPORTANT = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy", "scipy")


def offline() -> list[str]:
    """The start of a command line whose process shall have no network; empty where this machine does not permit it."""
    for words in (OWN, ["unshare", "-rn"]):
        try:
            probe = [*words, "true"]
            if subprocess.run(probe, capture_output=True, check=False, timeout=PROBE_LIMIT_S).returncode == 0:
                return words
        except (OSError, subprocess.TimeoutExpired):
            break
    return []


def offline_words() -> str:
    return "without a network" if offline() else "WITH a network: this machine permits no namespaces"
