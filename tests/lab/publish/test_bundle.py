"""The bundle: what it holds, and whether it holds today's code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from arc_lab.folders import ROOT, Build
from arc_lab.publish import bundle as bundles
from arc_lab.publish.bundle import METADATA, build_bundle, build_wheel, outdated
from arc_lab.publish.metadata import dataset_problems
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.wheels import Wheel
from arc_ttt.bootstrap.mounts import find_mounts
from arc_ttt.bootstrap.packages import choose_wheels
from arc_ttt.errors import InputError
from support.preflight import change_inside, wheel_row
from support.wheels import make_wheel


def test_the_wheel_of_the_project_is_the_same_for_the_same_sources_and_can_be_installed(tmp_path: Path) -> None:
    build = Build("0.1.0", "abc", True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = build_wheel(tmp_path / "one", build), build_wheel(tmp_path / "two", build)
    assert first.read_bytes() == second.read_bytes()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
    ]
    assert subprocess.run([*command, str(first)], check=False).returncode == 0
    for source in (ROOT / "src" / "arc_ttt").rglob("*.py"):
        assert (tmp_path / "site" / source.relative_to(ROOT / "src")).read_bytes() == source.read_bytes()
    assert (tmp_path / "site" / "arc_ttt" / "checkpoints" / "embedded" / "xs" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "site" / "arc_ttt" / "build.json").read_text())["commit"] == "abc+changes"
    assert not (tmp_path / "site" / "arc_lab").exists()


def test_the_wheel_of_the_project_holds_arc_ttt_alone(tmp_path: Path) -> None:
    """arc_lab knows solutions; and a console script would name a module that is not there."""
    with zipfile.ZipFile(build_wheel(tmp_path, Build("0.1.0", "abc", False))) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"arc_ttt", "arc_ttt-0.1.0.dist-info"}
    held = {name.partition("/")[2] for name in names if ".dist-info/" in name}
    assert held == {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}


def test_a_bundle_is_flat_and_its_wheels_are_those_the_kernel_takes(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "wheels", "foo-1.0-py3-none-any.whl")
    model = ROOT / "src" / "arc_ttt" / "checkpoints" / "embedded" / "xs"
    into = tmp_path / "input" / "bundle"
    files = build_bundle(into, [wheel_row(path)], dataset="me/arc-wheels", model=model, wheel_folder=path.parent)
    assert all(file.parent == into and file.is_file() for file in files)
    assert dataset_problems(json.loads((into / METADATA).read_text())) == []
    mounts = find_mounts(tmp_path)
    assert mounts.digests.keys() == {wheel.name for wheel in mounts.wheels}
    assert choose_wheels(mounts)[0].keys() == {"foo", "arc-ttt"}
    assert mounts.models == [into]
    build_bundle(into, [], dataset="me/arc-wheels")  # made anew: nothing of the first one stays
    assert not (into / path.name).exists()


def test_a_bundle_is_not_built_from_what_is_missing_damaged_or_in_the_way(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "foo-1.0-py3-none-any.whl")
    row, into = wheel_row(path), tmp_path / "bundle"
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="is damaged: run arc-lab wheels"):
        build_bundle(into, [row], dataset="me/arc-wheels", wheel_folder=tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        build_bundle(into, [row], dataset="me/arc-wheels", wheel_folder=tmp_path)
    into.mkdir()
    (into / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        build_bundle(into, [], dataset="me/arc-wheels")
    assert (into / "thesis.txt").is_file()


def test_a_bundle_is_known_to_hold_other_code_although_its_stamp_is_the_same(checkup: Checkup) -> None:
    assert outdated(checkup.bundle) == ""
    (wheel,) = checkup.bundle.glob("arc_ttt-*.whl")
    content = wheel.read_bytes()
    change_inside(wheel)
    assert "not made from the sources here: arc_ttt/kaggle/run.py differs" in outdated(checkup.bundle)
    wheel.write_bytes(content[:-1000])
    assert "is damaged" in outdated(checkup.bundle)
    wheel.write_bytes(content)
    shutil.copyfile(wheel, wheel.with_name("arc_ttt-0.0.9-py3-none-any.whl"))  # the first one found would run
    assert outdated(checkup.bundle) == ""
    change_inside(wheel.with_name("arc_ttt-0.0.9-py3-none-any.whl"))
    assert "arc_ttt-0.0.9" in outdated(checkup.bundle)


def test_a_bundle_is_built_for_the_python_of_the_image_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Wheel("", "foo", "1.0", "0", 1, "base", (), "for a test")
    lock = [replace(row, file=f"foo-1.0-cp31{n}-cp31{n}-linux_x86_64.whl", python=(f"3.1{n}",)) for n in (2, 3)]
    monkeypatch.setattr(bundles, "read_lock", lambda: lock)
    image = tmp_path / "setup.json"
    image.write_text(json.dumps({"python": "3.13.2", "glibc": "2.35", "packages": {}}))
    assert bundles.main(["--into", str(tmp_path / "new"), "--image", str(image)]) == 2
    told = capsys.readouterr().err
    assert f"{lock[1].file} is missing: run arc-lab wheels --image {image} first" in told
    image.write_text(json.dumps({"python": "3.14.0", "glibc": "2.35", "packages": {}}))
    assert bundles.main(["--into", str(tmp_path / "new"), "--image", str(image)]) == 2
    assert "no wheel of set base for Python 3.14" in capsys.readouterr().err
