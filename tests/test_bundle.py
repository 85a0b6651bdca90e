"""The lock of wheels, the bundle, and the preflight that looks them over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab import bundle as bundles
from arc_lab import preflight
from arc_lab.bundle import METADATA, Build, build_bundle, build_wheel, current_build
from arc_lab.metadata import dataset_problems
from arc_lab.preflight import FAIL, OK, Plan, check_bundle, check_metadata, check_settings, check_wheels, findings
from arc_lab.wheels import NEVER, WHEELS, Wheel, conflicts, members, read_image, read_lock, state
from arc_ttt.bootstrap import MANIFEST, choose_wheels, find_mounts, misfit
from arc_ttt.errors import InputError
from test_bootstrap import make_wheel

ROOT = Path(__file__).resolve().parents[1]
IMAGE = read_image()


def wheel_row(path: Path, **changes: Any) -> Wheel:
    name, version = path.name.split("-")[:2]
    row = Wheel(path.name, name, version, bundles._digest(path), path.stat().st_size, "base", ("3.12",), "for a test")
    return replace(row, **changes)


# Lock


def test_the_lock_has_for_every_python_one_wheel_of_each_package_that_fits_it() -> None:
    lock = read_lock()
    for minor in (11, 12, 13):
        wheels = members(lock, "unsloth", f"3.{minor}")
        assert len({wheel.name for wheel in wheels}) == len(wheels) == len({wheel.name for wheel in lock})
        for wheel in wheels:
            assert misfit(wheel.file, (3, minor), 35) == ""
            assert len(wheel.reason) > 20
    assert [wheel.name for wheel in members(lock, "base", "3.12")] == ["bitsandbytes"]


@pytest.mark.parametrize("name", [*NEVER, "nvidia-cublas-cu12", "cuda-bindings"])
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


# Bundle


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
    assert (tmp_path / "site" / "arc_ttt" / "embedded" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "site" / "arc_ttt" / "build.json").read_text())["commit"] == "abc+changes"
    assert not (tmp_path / "site" / "arc_lab").exists()


def test_a_bundle_is_flat_and_its_wheels_are_those_the_kernel_takes(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "wheels", "foo-1.0-py3-none-any.whl")
    model = ROOT / "src" / "arc_ttt" / "embedded"
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
    with pytest.raises(InputError, match="is damaged: run python -m arc_lab wheels"):
        build_bundle(into, [row], dataset="me/arc-wheels", wheel_folder=tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        build_bundle(into, [row], dataset="me/arc-wheels", wheel_folder=tmp_path)
    into.mkdir()
    (into / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        build_bundle(into, [], dataset="me/arc-wheels")
    assert (into / "thesis.txt").is_file()


# Preflight


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A clone with an owner's name and a bundle whose one foreign wheel is a stand-in."""
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    for name in ("kernel.py", "LICENSE"):
        shutil.copyfile(ROOT / name, kernel / name)
    text = (ROOT / "kernel-metadata.json").read_text().replace("OWNER", "somebody")
    (kernel / "kernel-metadata.json").write_text(text)
    path = make_wheel(tmp_path / "wheels", "foo-1.0-py3-none-any.whl")
    monkeypatch.setattr(preflight, "read_lock", lambda: [wheel_row(path)])
    dataset = "somebody/arc-ttt-wheels"
    build_bundle(tmp_path / "bundle", [wheel_row(path)], dataset=dataset, wheel_folder=path.parent)
    return Plan(kernel, tmp_path / "bundle", IMAGE, "base", None, True)


CHEAP = (check_metadata, check_settings, check_bundle, check_wheels, preflight.check_model)


def test_a_good_setup_passes_and_every_kind_of_check_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", CHEAP)
    found = list(findings(plan))
    assert [str(finding) for finding in found if finding.grade != OK] == []
    assert {finding.subject for finding in found} >= {"kernel-metadata.json", "SETTINGS", "bundle", "wheels", "model"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("fault", "subject", "words"),
    [
        ("owner", "kernel-metadata.json", "replace OWNER"),
        ("no metadata", "metadata", "cannot be read"),
        ("internet", "kernel-metadata.json", "enable_internet"),
        ("long", "SETTINGS", "no room"),
        ("unknown setting", "SETTINGS", "ttt.rang"),
        ("unsloth", "SETTINGS", "--set unsloth"),
        ("no settings", "settings", "there are no SETTINGS"),
        ("licence", "LICENSE", "missing"),
        ("old bundle", "bundle", "run arc_lab bundle again"),
        ("other dataset", "bundle", "not among dataset_sources"),
        ("folder", "bundle", "folders are not uploaded"),
        ("name", "bundle", "may refuse this name"),
        ("damaged wheel", "foo-1.0-py3-none-any.whl", "damaged"),
        ("no model", "model", "no readable config.json"),
    ],
)
def test_a_broken_setup_fails_with_what_to_do(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, fault: str, subject: str, words: str
) -> None:
    monkeypatch.setattr(preflight, "CHECKS", CHEAP)
    kernel, metadata = plan.kernel / "kernel.py", plan.kernel / "kernel-metadata.json"
    preset = '"preset": "embedded",'
    faults: dict[str, Any] = {
        "owner": lambda: edit(metadata, "somebody", "OWNER"),
        "no metadata": metadata.unlink,
        "internet": lambda: edit(metadata, '"enable_internet": false', '"enable_internet": true'),
        "long": lambda: edit(kernel, "11.5 * 3600", "12 * 3600"),
        "unknown setting": lambda: edit(kernel, preset, f'{preset} "ttt.rang": 3,'),
        "unsloth": lambda: edit(kernel, preset, f'{preset} "model.backend": "unsloth",'),
        "no settings": lambda: edit(kernel, "SETTINGS: dict[str, object] =", "OTHER ="),
        "licence": (plan.kernel / "LICENSE").unlink,
        "old bundle": lambda: edit(plan.bundle / MANIFEST, current_build().commit, "0123456789ab"),
        "other dataset": lambda: edit(plan.bundle / METADATA, "somebody", "another"),
        "folder": (plan.bundle / "inner").mkdir,
        "name": lambda: (plan.bundle / "a&b.txt").write_text("x"),
        "damaged wheel": lambda: (plan.bundle / "foo-1.0-py3-none-any.whl").write_bytes(b"x"),
        "no model": lambda: None,
    }
    faults[fault]()
    changed = replace(plan, model=plan.kernel / "nothing") if fault == "no model" else plan
    failed = [finding for finding in findings(changed) if finding.grade == FAIL]
    assert failed
    assert any(finding.subject == subject and words in finding.text for finding in failed), [*map(str, failed)]


def test_the_fetched_wheels_fit_the_image() -> None:
    """Only where they have been fetched; the lock's own versions were found by resolving against the image."""
    wheels = members(read_lock(), "unsloth", IMAGE.python)
    if any(state(wheel, WHEELS) for wheel in wheels):
        pytest.skip("python -m arc_lab wheels --set unsloth has not been run")
    assert conflicts(wheels, WHEELS, IMAGE) == []
