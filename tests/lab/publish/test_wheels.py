"""The lock of wheels, their download, and whether they fit the image."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from arc_lab.publish.kaggle_image import CLASHES, WHEELS, read_image
from arc_lab.publish.wheels import NEVER_BUNDLED, conflicts, defect, fetch, members, read_lock
from arc_ttt.bootstrap.wheels import misfit
from arc_ttt.errors import InputError
from support.preflight import FOO, wheel_row
from support.wheels import make_wheel

IMAGE = read_image()


def test_the_lock_has_for_every_python_one_wheel_of_each_package_that_fits_it() -> None:
    lock = read_lock()
    for minor in (11, 12, 13):
        wheels = members(lock, "unsloth", f"3.{minor}")
        assert len({wheel.name for wheel in wheels}) == len(wheels) == len({wheel.name for wheel in lock})
        for wheel in wheels:
            assert misfit(wheel.file, (3, minor), 35) == ""
            assert len(wheel.reason) > 20
    assert [wheel.name for wheel in members(lock, "base", "3.12")] == ["bitsandbytes"]


@pytest.mark.parametrize("name", [*NEVER_BUNDLED, "nvidia-cublas-cu12", "cuda-bindings"])
def test_a_lock_that_would_replace_what_the_image_must_keep_is_refused(tmp_path: Path, name: str) -> None:
    rows = json.loads((WHEELS / "lock.json").read_text())["wheels"]
    (tmp_path / "lock.json").write_text(json.dumps({"wheels": [{**rows[0], "name": name}]}))
    with pytest.raises(InputError, match=f"{name} must never be bundled"):
        read_lock(tmp_path / "lock.json")


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("transformers==5.0.0", ""),
        ("transformers>5", "there is 5.0.0"),
        ("Hugging.Face_hub>=1", "which nothing brings"),
        ("huggingface_hub>=1", ""),
        ('missing; python_version < "3.12"', ""),
        ('missing; python_version >= "3.12" and sys_platform == "linux"', "which nothing brings"),
        ("missing; extra == 'all'", ""),
        ("not a requirement!", "cannot be understood"),
    ],
)
def test_requirements_are_held_against_the_image(tmp_path: Path, requirement: str, words: str) -> None:
    path = make_wheel(tmp_path, "foo-1.0-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("foo-1.0.dist-info/METADATA", f"Name: foo\nVersion: 1.0\nRequires-Dist: {requirement}\n")
    found = conflicts([wheel_row(path)], tmp_path, IMAGE)
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_a_download_that_does_not_end_leaves_its_wheels_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(words, timeout)

    row = wheel_row(make_wheel(tmp_path / "elsewhere", FOO))
    monkeypatch.setattr(subprocess, "run", run)
    assert fetch([row], tmp_path, "3.12") == [f"{FOO}: missing"]


@pytest.mark.parametrize(
    ("packages", "clashes"),
    [
        ({"peft": "0.19.1", "torchao": "0.10.0"}, True),
        ({"peft": "0.19.1", "torchao": "0.16.0"}, False),
        ({"peft": "0.18.1", "torchao": "0.10.0"}, False),
        ({"peft": "0.19.1"}, False),
    ],
)
def test_packages_that_clash_are_known_by_their_versions(packages: dict[str, str], clashes: bool) -> None:
    assert any(clash.found_in(packages) for clash in CLASHES) == clashes


def test_the_fetched_wheels_fit_the_image() -> None:
    """Only where they have been fetched; the lock's own versions were found by resolving against the image."""
    wheels = members(read_lock(), "unsloth", IMAGE.python)
    if any(defect(wheel, WHEELS) for wheel in wheels):
        pytest.skip("arc-lab wheels --set unsloth has not been run")
    assert conflicts(wheels, WHEELS, IMAGE) == []
