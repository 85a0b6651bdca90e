"""Checks that the packages import, and that peft works beside the image's packages."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from arc_lab.publish.bundle import PROJECT_WHEELS
from arc_lab.publish.interpreter import clean_interpreter, offline
from arc_lab.publish.kaggle_image import CLASHES
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.preflight.findings import AlreadyReported, Finding, Level
from arc_ttt.deadline import format_duration

INSTALL_LIMIT_S = 300.0
"""Seconds for the installation of the project's wheel."""

IMPORT_LIMIT_S = 600.0
"""Seconds for the imports, and for attaching an adapter."""

IMPORTED = (
    "arc_ttt.kaggle.run",
    "arc_ttt.worker.serve",
    "arc_ttt.worker.ready",
    "arc_ttt.worker.calibrate",
    "arc_ttt.synthesis.solver",
)
"""Modules that import all others of a run, in the coordinator and in workers of both kinds."""
IMPORTS = f"import {', '.join(IMPORTED)}"
ATTACH = """
import torch
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, TttSettings
base = load_model(ModelSettings(quantize="none", dtype="float32"), torch.device("cpu"))
Adapter(base, TttSettings(), seed=0)
"""


def check_imports(checkup: Checkup) -> Iterator[Finding]:
    """The project's wheel imports in a clean interpreter without a network.

    Where packages of the image clash, a model must get its adapter beside a stand-in for the clashing package.
    """
    checkup.need_bundle()
    wheel = next(checkup.bundle.glob(PROJECT_WHEELS), None)
    if wheel is None:
        raise AlreadyReported("the bundle has no arc_ttt wheel")
    without = offline()
    where = f"in a clean interpreter {'without' if without else 'WITH'} a network"
    with tempfile.TemporaryDirectory() as folder:
        python, notes = clean_interpreter(Path(folder) / "python", checkup.image)
        install = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
        run = [*without, str(python), "-I", "-c"]
        if failure := _failure(install, INSTALL_LIMIT_S) or _failure([*run, IMPORTS], IMPORT_LIMIT_S):
            yield Finding(Level.FAIL, "imports", f"{where}: {failure}")
            return
        differ = f"; not the image's versions: {', '.join(note.split(',')[0] for note in notes)}" if notes else ""
        yield Finding(Level.WARN if differ or not without else Level.OK, "imports", f"work {where}{differ}")
        for clash in CLASHES:
            if text := clash.found_in(checkup.image.packages):
                version = checkup.image.packages[canonicalize_name(clash.other.name)]
                stand_in(python, clash.other.name, version)
                if failure := _failure([*run, ATTACH], IMPORT_LIMIT_S):
                    yield Finding(Level.FAIL, "image", f"{text}; so it does here: {failure}")
                else:
                    beside = f"a stand-in of {clash.other.name} {version}"
                    yield Finding(
                        Level.OK, "image", f"{text}; embedded XS got its adapter all the same, beside {beside}"
                    )


def _failure(words: Sequence[str], limit_s: float) -> str:
    """Why a program failed: the last line of its stderr, or that it exceeded `limit_s`; empty if it succeeded."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"it had not ended after {format_duration(limit_s)}"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


def stand_in(python: Path, name: str, version: str) -> None:
    """Replace a package of an interpreter that `clean_interpreter` made by an empty package of some version."""
    site = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    for path in (site / name, *site.glob(f"{name}-*.dist-info")):
        if path.is_symlink():
            path.unlink()
    about = site / f"{name}-{version}.dist-info"
    for folder in (site / name, about):
        folder.mkdir()
    (site / name / "__init__.py").write_text("", encoding="utf-8")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
