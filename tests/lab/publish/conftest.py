"""A clone of the project with a bundle, and a Kaggle that is played."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import arc_lab.publish.push as push
from arc_lab.folders import ROOT
from arc_lab.publish.bundle import build_bundle
from arc_lab.publish.kaggle_cli import find_cli
from arc_lab.publish.kaggle_image import read_image
from arc_lab.publish.preflight.checkup import Checkup
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.errors import InputError
from support.fake_kaggle import CODE, METADATA, FakeKaggle
from support.preflight import DATASET, FOO, wheel_row
from support.wheels import make_wheel


@pytest.fixture(scope="module")
def cli() -> str:
    try:
        return find_cli()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKaggle]:
    server = FakeKaggle()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name in ("no_proxy", "NO_PROXY", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {
        "HOME": str(home),
        "KAGGLE_CONFIG_DIR": str(home),
        "KAGGLE_USERNAME": "me",
        "KAGGLE_KEY": "k",
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": server.url,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(push, "READY_EVERY_S", 0.01)
    monkeypatch.setattr(push, "READY_LIMIT_S", 20.0)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    folder = tmp_path / "kernel"
    folder.mkdir()
    (folder / "kernel.py").write_text(CODE)
    (folder / "kernel-metadata.json").write_text(json.dumps(METADATA))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "arc_ttt-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / MANIFEST).write_text("{}")
    about = {"title": "arc ttt wheels", "id": "me/arc-ttt-wheels", "licenses": [{"name": "other"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(about))
    return folder


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
