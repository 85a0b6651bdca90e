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
from arc_lab.publish.preflight.checkup import Plan
from arc_lab.publish.preflight.findings import FAIL, OK, WARN, Finding
from arc_ttt.deadline import format_duration
from arc_ttt.errors import InputError

INSTALL_LIMIT_S, IMPORT_LIMIT_S = 300.0, 600.0
IMPORTS = "import arc_ttt.kaggle.run, arc_ttt.worker, arc_ttt.worker.solver, arc_ttt.model.load, arc_ttt.synthesis"
ATTACH = """
import torch
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, TttSettings
base = load_model(ModelSettings(quantize="none", dtype="float32"), torch.device("cpu"))
Adapter(base, TttSettings(), seed=0)
"""


def check_imports(plan: Plan) -> Iterator[Finding]:
    """The bundle's own wheel in a clean interpreter without a network, and an adapter beside stand-ins of those of the
    image's packages that clash."""
    plan.need_bundle()
    wheel = next(plan.bundle.glob(PROJECT_WHEELS), None)
    if wheel is None:
        raise InputError(f"the bundle has no arc_ttt wheel: {plan.rebuild}")  # as check_bundle says it
    without = offline()
    where = f"in a clean interpreter {'without' if without else 'WITH'} a network"
    with tempfile.TemporaryDirectory() as folder:
        python, notes = clean_interpreter(Path(folder) / "python", plan.image)
        install = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
        run = [*without, str(python), "-I", "-c"]
        if failure := _failure(install, INSTALL_LIMIT_S) or _failure([*run, IMPORTS], IMPORT_LIMIT_S):
            yield Finding(FAIL, "imports", f"{where}: {failure}")
            return
        differ = f"; not the image's versions: {', '.join(note.split(',')[0] for note in notes)}" if notes else ""
        yield Finding(WARN if differ or not without else OK, "imports", f"work {where}{differ}")
        for clash in CLASHES:
            if told := clash.told(plan.image.packages):
                version = plan.image.packages[canonicalize_name(clash.other.name)]
                stand_in(python, clash.other.name, version)
                if failure := _failure([*run, ATTACH], IMPORT_LIMIT_S):
                    yield Finding(FAIL, "image", f"{told}; so it does here: {failure}")
                else:
                    beside = f"a stand-in of {clash.other.name} {version}"
                    yield Finding(OK, "image", f"{told}; embedded XS got its adapter all the same, beside {beside}")


def _failure(words: Sequence[str], limit_s: float) -> str:
    """The last line that a program which failed left, or that it took too long; empty if it ended well."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"it had not ended after {format_duration(limit_s)}"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


def stand_in(python: Path, name: str, version: str) -> None:
    """Give an interpreter of `clean_interpreter` an empty package in place of the one it may have."""
    site = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    for path in (site / name, *site.glob(f"{name}-*.dist-info")):
        if path.is_symlink():
            path.unlink()
    about = site / f"{name}-{version}.dist-info"
    for folder in (site / name, about):
        folder.mkdir()
    (site / name / "__init__.py").write_text("", encoding="utf-8")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
