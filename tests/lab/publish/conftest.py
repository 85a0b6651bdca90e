"""A clone of the project with a bundle, as preflight checks it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from arc_lab.folders import ROOT
from arc_lab.publish.bundle import build_bundle
from arc_lab.publish.kaggle_image import read_image
from arc_lab.publish.preflight.checkup import Checkup
from support.preflight import DATASET, FOO, wheel_row
from support.wheels import make_wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose one foreign wheel is a stand-in."""
    folder = tmp_path_factory.mktemp("built")
    row = wheel_row(make_wheel(folder / "wheels", FOO))
    build_bundle(folder / "bundle", [row], dataset=DATASET, wheel_folder=folder / "wheels")
    return folder / "bundle"


@pytest.fixture
def checkup(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Checkup:
    """A clone with an owner's name and the settings that it came with, whatever has been edited here, and a bundle."""
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    shutil.copyfile(ROOT / "LICENSE", kernel / "LICENSE")
    settings = 'SETTINGS: dict[str, object] = {\n    "preset": "embedded",\n    "run.limit_s": 11.5 * 3600,\n}\n'
    text = (ROOT / "kernel.py").read_text()
    (kernel / "kernel.py").write_text(re.sub(r"SETTINGS: .*?\n}\n", settings, text, count=1, flags=re.DOTALL))
    body = json.loads((ROOT / "kernel-metadata.json").read_text())
    body |= {"id": "somebody/arc-ttt-kernel", "title": "ARC TTT kernel", "dataset_sources": [DATASET]}
    (kernel / "kernel-metadata.json").write_text(json.dumps(body | {"model_sources": [], "kernel_sources": []}))
    shutil.copytree(built, tmp_path / "bundle")
    monkeypatch.setattr("arc_lab.publish.preflight.bundle.read_lock", lambda: [wheel_row(built / FOO)])
    return Checkup(kernel, tmp_path / "bundle", read_image(), "base", None, True)
