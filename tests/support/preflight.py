"""A clone of the project that can be broken in known ways, for the checks of preflight."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from arc_lab.publish import bundle as bundles
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.wheels import Wheel

DATASET = "somebody/arc-ttt-wheels"
FOO = "foo-1.0-py3-none-any.whl"


MODEL_PATH = "/kaggle/input/models/me/llama/transformers/4bit/1"


def wheel_row(path: Path, **changes: Any) -> Wheel:
    name, version = path.name.split("-")[:2]
    row = Wheel(path.name, name, version, bundles._digest(path), path.stat().st_size, "base", ("3.12",), "for a test")
    return replace(row, **changes)


def change_inside(wheel: Path) -> None:
    """Give a wheel other code under the same stamp, as a further edit of a changed tree does."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, body in files.items():
            changed = name == "arc_ttt/kaggle/run.py" or name.endswith("/RECORD")
            archive.writestr(name, body + b"# changed\n" if changed else body)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def set_kernel(checkup: Checkup, **settings: Any) -> None:
    """Settings by name, with __ for the dot."""
    lines = "".join(f"    {name.replace('__', '.')!r}: {value!r},\n" for name, value in settings.items())
    edit(checkup.kernel / "kernel.py", '    "preset": "embedded",\n', f'    "preset": "embedded",\n{lines}')


def set_metadata(checkup: Checkup, **values: Any) -> None:
    path = checkup.kernel / "kernel-metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
