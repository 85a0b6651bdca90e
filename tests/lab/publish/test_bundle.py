"""The lock of wheels, the bundle, and the preflight that looks them over."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab.publish import bundle as bundles
from arc_lab.publish.bundle import METADATA, Build, build_bundle, build_wheel, current_build, outdated
from arc_lab.publish.kaggle_image import CLASHES, WHEELS, read_image
from arc_lab.publish.kernel_file import read_settings
from arc_lab.publish.metadata import dataset_problems, model_path_problem, source_of
from arc_lab.publish.preflight import command as preflight
from arc_lab.publish.preflight import imports, trial_run
from arc_lab.publish.preflight.bundle import check_bundle, check_wheels
from arc_lab.publish.preflight.checkup import Plan
from arc_lab.publish.preflight.command import findings
from arc_lab.publish.preflight.findings import FAIL, OK, SKIPPED, WARN
from arc_lab.publish.preflight.metadata import check_settings, check_sources
from arc_lab.publish.preflight.model import check_memory, check_model
from arc_lab.publish.stage import Rehearsal
from arc_lab.publish.wheels import NEVER, Wheel, conflicts, fetch, members, read_lock, state
from arc_ttt.bootstrap.mounts import MANIFEST, find_mounts
from arc_ttt.bootstrap.packages import choose_wheels
from arc_ttt.bootstrap.wheels import misfit
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.errors import InputError
from arc_ttt.run.journal import Journal
from arc_ttt.settings import Settings
from support.llamas import LLAMA_1B
from support.wheels import make_wheel

ROOT = Path(__file__).resolve().parents[3]
IMAGE = read_image()
DATASET = "somebody/arc-ttt-wheels"
FOO = "foo-1.0-py3-none-any.whl"


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
    assert (tmp_path / "site" / "arc_ttt" / "checkpoints" / "embedded" / "xs" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "site" / "arc_ttt" / "build.json").read_text())["commit"] == "abc+changes"
    assert not (tmp_path / "site" / "arc_lab").exists()


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


def change_inside(wheel: Path) -> None:
    """Give a wheel other code under the same stamp, as a further edit of a changed tree does."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, body in files.items():
            changed = name == "arc_ttt/kaggle/run.py" or name.endswith("/RECORD")
            archive.writestr(name, body + b"# changed\n" if changed else body)


def test_a_bundle_is_known_to_hold_other_code_although_its_stamp_is_the_same(plan: Plan) -> None:
    assert outdated(plan.bundle) == ""
    (wheel,) = plan.bundle.glob("arc_ttt-*.whl")
    content = wheel.read_bytes()
    change_inside(wheel)
    assert "not made from the sources here: arc_ttt/kaggle/run.py differs" in outdated(plan.bundle)
    wheel.write_bytes(content[:-1000])
    assert "is damaged" in outdated(plan.bundle)
    wheel.write_bytes(content)
    shutil.copyfile(wheel, wheel.with_name("arc_ttt-0.0.9-py3-none-any.whl"))  # the first one found would run
    assert outdated(plan.bundle) == ""
    change_inside(wheel.with_name("arc_ttt-0.0.9-py3-none-any.whl"))
    assert "arc_ttt-0.0.9" in outdated(plan.bundle)


def test_only_what_the_wheel_is_made_from_counts_as_a_change(tmp_path: Path) -> None:
    """Not kernel.py and kernel-metadata.json, which everybody edits before the first bundle."""
    names = ("pyproject.toml", "LICENSE", "kernel.py", "kernel-metadata.json", "src/arc_ttt/solve.py")
    (tmp_path / "src" / "arc_ttt").mkdir(parents=True)
    for name in names:
        (tmp_path / name).write_text('[project]\nversion = "0.1.0"\n')
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    made = current_build(tmp_path)
    for name in ("kernel.py", "kernel-metadata.json"):
        (tmp_path / name).write_text("edited")
    assert current_build(tmp_path) == made
    subprocess.run([*git, "commit", "-q", "-a", "-m", "second"], check=True)
    assert current_build(tmp_path) == made
    assert not made.dirty
    (tmp_path / "src" / "arc_ttt" / "solve.py").write_text("edited and committed")
    subprocess.run([*git, "commit", "-q", "-a", "-m", "third"], check=True)
    assert current_build(tmp_path).commit != made.commit
    assert not current_build(tmp_path).dirty
    for name in ("src/arc_ttt/solve.py", "src/arc_ttt/new.py"):
        (tmp_path / name).write_text("edited")
        assert current_build(tmp_path).stamp.endswith("+changes")
        subprocess.run([*git, "stash", "-q", "-u"], check=True)


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
    assert f"{lock[1].file} is missing: run python -m arc_lab wheels --image {image} first" in told
    image.write_text(json.dumps({"python": "3.14.0", "glibc": "2.35", "packages": {}}))
    assert bundles.main(["--into", str(tmp_path / "new"), "--image", str(image)]) == 2
    assert "no wheel of set base for Python 3.14" in capsys.readouterr().err


# Preflight


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose one foreign wheel is a stand-in."""
    folder = tmp_path_factory.mktemp("built")
    row = wheel_row(make_wheel(folder / "wheels", FOO))
    build_bundle(folder / "bundle", [row], dataset=DATASET, wheel_folder=folder / "wheels")
    return folder / "bundle"


@pytest.fixture
def plan(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
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
    return Plan(kernel, tmp_path / "bundle", IMAGE, "base", None, True)


DEAR = (trial_run.check_forecast, imports.check_imports, trial_run.check_run)
CHEAP = tuple(check for check in preflight.CHECKS if check not in DEAR)


def test_a_good_setup_passes_and_every_kind_of_check_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", CHEAP)
    found = list(findings(plan))
    assert [str(finding) for finding in found if finding.grade != OK] == []
    subjects = {"LICENSE", "kernel-metadata.json", "SETTINGS", "bundle", "wheels", "model", "memory"}
    assert {finding.subject for finding in found} >= subjects


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def set_kernel(plan: Plan, **settings: Any) -> None:
    """Settings by name, with __ for the dot."""
    lines = "".join(f"    {name.replace('__', '.')!r}: {value!r},\n" for name, value in settings.items())
    edit(plan.kernel / "kernel.py", '    "preset": "embedded",\n', f'    "preset": "embedded",\n{lines}')


def set_metadata(plan: Plan, **values: Any) -> None:
    path = plan.kernel / "kernel-metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


MODEL_PATH = "/kaggle/input/models/me/llama/transformers/4bit/1"


@pytest.mark.parametrize(
    ("fault", "subject", "words"),
    [
        ("owner", "kernel-metadata.json", "replace OWNER"),
        ("no metadata", "metadata", "cannot be read"),
        ("internet", "kernel-metadata.json", "enable_internet"),
        ("long", "SETTINGS", "no room"),
        ("unknown setting", "SETTINGS", "ttt.rang"),
        ("unsloth", "SETTINGS", "--set unsloth"),
        ("what unsloth refuses", "SETTINGS", "unsloth trains lm_head whole"),
        ("unsloth without a model", "SETTINGS", "unsloth is for mounted checkpoints"),
        ("placeholders", "SETTINGS", "replace OWNER, MODEL, VARIATION"),
        ("model of no source", "SETTINGS", "under model_sources as owner/model/framework/variation/version"),
        ("other model", "SETTINGS", f"write {MODEL_PATH}"),
        ("format of another preset", "SETTINGS", "for a model of format marc: name preset llama-8b"),
        ("model under the embedded preset", "SETTINGS", "for a mounted model: name preset llama-1b-3b or llama-8b"),
        ("no machine", "kernel-metadata.json", 'machine_shape is missing: write "NvidiaTeslaT4"'),
        ("two bundles", "sources", "arc-ttt-wheels-old beside somebody/arc-ttt-wheels"),
        ("no model in the bundle", "SETTINGS", "holds no model: run python -m arc_lab bundle --model DIR"),
        ("no settings", "settings", "there are no SETTINGS"),
        ("licence", "LICENSE", "missing"),
        ("empty licence", "LICENSE", "empty"),
        ("no bundle", "bundle", "run python -m arc_lab wheels, then python -m arc_lab bundle"),
        ("old bundle", "bundle", "run python -m arc_lab bundle"),
        ("changed since", "bundle", "not made from the sources here"),
        ("no code", "bundle", "no arc_ttt wheel: run python -m arc_lab bundle"),
        ("other dataset", "bundle", "not among dataset_sources"),
        ("folder", "bundle", "folders are not uploaded"),
        ("name", "bundle", "may refuse this name"),
        ("damaged wheel", FOO, "damaged"),
    ],
)
def test_a_broken_setup_fails_with_what_to_do(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, fault: str, subject: str, words: str
) -> None:
    monkeypatch.setattr(preflight, "CHECKS", CHEAP)
    kernel, metadata = plan.kernel / "kernel.py", plan.kernel / "kernel-metadata.json"
    sources = ["me/llama/Transformers/4bit/1"]
    placeholders = "/kaggle/input/models/OWNER/MODEL/transformers/VARIATION/1"
    faults: dict[str, Any] = {
        "owner": lambda: edit(metadata, "somebody", "OWNER"),
        "no metadata": metadata.unlink,
        "internet": lambda: edit(metadata, '"enable_internet": false', '"enable_internet": true'),
        "long": lambda: edit(kernel, "11.5 * 3600", "12 * 3600"),
        "unknown setting": lambda: set_kernel(plan, ttt__rang=3),
        "unsloth": lambda: set_kernel(plan, model__backend="unsloth"),
        "what unsloth refuses": lambda: set_kernel(plan, preset="llama-8b", model__backend="unsloth"),
        "unsloth without a model": lambda: set_kernel(plan, model__backend="unsloth"),
        "placeholders": lambda: set_kernel(plan, model__path=placeholders),
        "model of no source": lambda: set_kernel(plan, model__path=MODEL_PATH),
        "other model": lambda: [
            set_kernel(plan, model__path=MODEL_PATH.replace("llama", "other")),
            set_metadata(plan, model_sources=sources),
        ],
        "no model in the bundle": lambda: set_kernel(plan, model__path=f"/kaggle/input/datasets/{DATASET}"),
        "format of another preset": lambda: set_kernel(plan, model__format="marc"),
        "model under the embedded preset": lambda: [
            set_kernel(plan, model__path=MODEL_PATH),
            set_metadata(plan, model_sources=sources),
        ],
        "no machine": lambda: edit(metadata, '"machine_shape": "NvidiaTeslaT4", ', ""),
        "two bundles": lambda: set_metadata(plan, dataset_sources=["me/arc-ttt-wheels-old/2", DATASET]),
        "no settings": lambda: edit(kernel, "SETTINGS: dict[str, object] =", "OTHER ="),
        "licence": (plan.kernel / "LICENSE").unlink,
        "empty licence": lambda: (plan.kernel / "LICENSE").write_text("\n"),
        "no bundle": lambda: shutil.rmtree(plan.bundle),
        "old bundle": lambda: edit(plan.bundle / MANIFEST, current_build().commit, "0123456789ab"),
        "changed since": lambda: change_inside(next(plan.bundle.glob("arc_ttt-*.whl"))),
        "no code": lambda: next(plan.bundle.glob("arc_ttt-*.whl")).unlink(),
        "other dataset": lambda: edit(plan.bundle / METADATA, "somebody", "another"),
        "folder": (plan.bundle / "inner").mkdir,
        "name": lambda: (plan.bundle / "a&b.txt").write_text("x"),
        "damaged wheel": lambda: (plan.bundle / FOO).write_bytes(b"x"),
    }
    faults[fault]()
    failed = [finding for finding in findings(plan) if finding.grade == FAIL]
    assert any(finding.subject == subject and words in finding.text for finding in failed), [*map(str, failed)]
    assert len({finding.text for finding in failed}) == len(failed)


def test_a_further_dataset_must_hold_no_bundle_unless_it_is_the_model_s(plan: Plan) -> None:
    assert list(check_sources(plan)) == []
    set_metadata(plan, dataset_sources=[DATASET, "me/weights"])
    (warning,) = check_sources(plan)
    assert (warning.grade, "me/weights beside" in warning.text) == (WARN, True)
    set_kernel(plan, model__path="/kaggle/input/datasets/me/weights/nf4")
    assert list(check_sources(plan)) == []
    set_metadata(plan, dataset_sources=["somebody-else/arc-ttt-wheels"])  # the bundle's own is not named at all
    assert list(check_sources(plan)) == []


@pytest.mark.parametrize(("form", "config", "grade"), [("compact", LLAMA_1B, FAIL), ("compact", None, OK)])
def test_a_mounted_model_under_the_embedded_preset_is_judged_by_its_size_where_that_is_known(
    plan: Plan, tmp_path: Path, form: str, config: dict[str, Any] | None, grade: str
) -> None:
    set_kernel(plan, model__path=MODEL_PATH, model__format=form)
    set_metadata(plan, model_sources=["me/llama/transformers/4bit/1"])
    folder = EMBEDDED
    if config:
        folder = tmp_path
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert [finding.grade for finding in check_settings(replace(plan, model=folder))] == [grade]
    assert [finding.grade for finding in check_settings(plan)] == [OK]  # not known: compact is believed


def test_what_stops_several_checks_is_told_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (*CHEAP, trial_run.check_forecast, trial_run.check_run))
    set_kernel(plan, ttt__rang=3)
    found = [finding for finding in findings(replace(plan, short=False)) if finding.grade != OK]
    assert [finding.grade for finding in found] == [FAIL, *[SKIPPED] * 4]
    assert [finding.subject for finding in found] == ["SETTINGS", "model", "memory", "forecast", "run"]
    assert str(found[1]) == "skipped  model: it needs what failed above"


def test_a_bundle_without_the_project_is_told_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (check_bundle, imports.check_imports))
    next(plan.bundle.glob("arc_ttt-*.whl")).unlink()
    assert [(finding.grade, finding.subject) for finding in findings(plan)] == [(FAIL, "bundle"), (SKIPPED, "imports")]


def test_checks_that_lack_something_say_that_they_were_skipped(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (check_settings, check_model, check_memory, trial_run.check_forecast))
    set_kernel(plan, preset="llama-1b-3b", model__path=MODEL_PATH)
    set_metadata(plan, model_sources=["me/llama/transformers/4bit/1"])
    grades = [(finding.grade, finding.subject) for finding in findings(plan)]
    assert grades == [(OK, "SETTINGS"), *((SKIPPED, name) for name in ("model", "memory", "forecast"))]
    (short,) = trial_run.check_run(plan)
    assert str(short) == "skipped  run of 2 tasks: --short was given"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (MODEL_PATH, "me/llama/Transformers/4bit/1"),
        (MODEL_PATH.upper().replace("/KAGGLE/INPUT", "/kaggle/input"), "me/llama/Transformers/4bit/1"),
        ("/kaggle/input/llama/transformers/4bit/1/merged", "me/llama/Transformers/4bit/1"),
        (f"{MODEL_PATH[:-1]}2", ""),
        (f"{MODEL_PATH}2", ""),
        ("/kaggle/input/datasets/me/weights", "me/weights/3"),
        ("/kaggle/input/weights/inner", "me/weights/3"),
        ("/kaggle/input/datasets/you/weights", ""),
        ("/kaggle/input/notebooks/me/trained", "me/trained"),
        ("../input/weights", ""),
    ],
)
def test_a_path_on_kaggle_is_held_against_the_sources_in_both_layouts(path: str, source: str) -> None:
    body = {"model_sources": ["me/llama/Transformers/4bit/1"], "dataset_sources": ["me/weights/3"]}
    body["kernel_sources"] = ["me/trained"]
    assert source_of(path, body) == source
    assert bool(model_path_problem(path, body)) == (not source)


def test_a_model_in_the_bundle_that_nothing_uses_is_told_with_its_path(plan: Plan) -> None:
    for path in EMBEDDED.iterdir():
        shutil.copyfile(path, plan.bundle / path.name)
    warning, fine = check_settings(plan)
    path = f"/kaggle/input/datasets/{DATASET}"
    assert (warning.grade, fine.grade) == (WARN, OK)
    assert f"set model.path to {path}" in warning.text
    set_kernel(plan, model__path=path)
    assert [finding.grade for finding in check_settings(plan)] == [OK]
    (model,) = check_model(plan)  # in the bundle, so no --model is needed
    assert (model.grade, "3M weights" in model.text) == (OK, True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("", ""),
        ("no folder", "no readable config.json"),
        ("no weights", "no safetensors file"),
        ("four bytes", "model.safetensors is damaged or cut short"),
        ("cut short", "model.safetensors is damaged or cut short"),
        ("more layers", "9 weights are missing, the first is model.layers.6.self_attn.q_proj.weight"),
        ("wider", "numbers, config.json asks for"),
        ("other format", "tokenizer.json is missing"),
        ("empty tokenizer", "tokenizer.json is missing or damaged"),
    ],
)
def test_a_model_is_opened_and_its_format_written(plan: Plan, tmp_path: Path, fault: str, words: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    body = json.loads(config.read_text())
    if fault == "no folder":
        shutil.rmtree(folder)
    elif fault == "no weights":
        weights.unlink()
    elif fault in ("four bytes", "cut short"):
        weights.write_bytes(b"fake" if fault == "four bytes" else weights.read_bytes()[:-1])
    elif fault == "more layers":
        config.write_text(json.dumps(body | {"num_hidden_layers": body["num_hidden_layers"] + 1}))
    elif fault == "wider":
        config.write_text(json.dumps(body | {"intermediate_size": body["intermediate_size"] * 2}))
    elif fault:
        set_kernel(plan, model__format="architects")
        if fault == "empty tokenizer":
            (folder / "tokenizer.json").write_text("{}")
    try:
        failed = [finding.text for finding in check_model(replace(plan, model=folder)) if finding.grade == FAIL]
    except InputError as error:
        failed = [str(error)]
    assert bool(failed) == bool(fault)
    assert any(words in text for text in failed) or not fault, failed


LLAMA_8B = {**LLAMA_1B, "hidden_size": 4096, "num_hidden_layers": 32, "head_dim": 128, "intermediate_size": 14336}
LLAMA_8B["tie_word_embeddings"] = False


@pytest.mark.parametrize(
    ("shape", "settings", "grades", "words"),
    [
        ("NvidiaTeslaT4", {}, [WARN, OK], ["T4: 5.31 GiB of weights in 4 bits on 13.1 GiB", "L4: 5.31 GiB"]),
        (
            "NvidiaTeslaT4",
            {"model__quantize": "none"},
            [FAIL, WARN],
            ["T4: 14.96 GiB of weights in 16 bits", "no room"],
        ),
        ("NvidiaL4", {"model__quantize": "none"}, [WARN, FAIL], ["take 4 bits", "L4: 14.96 GiB"]),
    ],
)
def test_memory_is_told_for_each_gpu_and_fails_only_on_the_one_asked_for(
    plan: Plan, tmp_path: Path, shape: str, settings: dict[str, str], grades: list[str], words: list[str]
) -> None:
    set_metadata(plan, machine_shape=shape)
    set_kernel(plan, preset="llama-8b", **settings)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "model_type": "llama"}))
    found = list(check_memory(replace(plan, model=tmp_path)))
    assert [finding.grade for finding in found] == grades
    for finding, word in zip(found, words, strict=True):
        assert word in finding.text
        assert bool(re.search(r"sequences of up to \d+ of 8192 tokens", finding.text)) == (not settings)


def test_another_image_wants_other_wheels_and_the_advice_names_the_commands(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(wheel_row(plan.bundle / FOO), file="foo-1.0-cp313-cp313-any.whl", python=("3.13",))
    monkeypatch.setattr("arc_lab.publish.preflight.bundle.read_lock", lambda: [row])
    image = Path("out/setup.json")
    other = replace(plan, image=replace(IMAGE, python="3.13"), set="unsloth", image_file=image)
    (finding,) = check_wheels(other)
    options = "--set unsloth --image out/setup.json"
    assert finding.text.endswith(f"run python -m arc_lab wheels {options}, then python -m arc_lab bundle {options}")
    with pytest.raises(InputError, match=r"no wheel of set base for Python 3\.12"):
        list(check_wheels(plan))


def test_a_run_without_the_project_is_no_good_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well and leaves a valid submission, of fillers."""
    next(plan.bundle.glob("arc_ttt-*.whl")).unlink()
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", lambda *_: (Path(sys.executable), []))
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", lambda *_: (Path(sys.executable), []))
    (finding,) = trial_run.check_run(replace(plan, short=False))
    assert (finding.grade, "FALLBACK: kernel.py: neither src/arc_ttt" in finding.text) == (FAIL, True)


@pytest.mark.parametrize(
    ("first_line", "found", "words"),
    [
        ("arc_ttt 0.1.0 of commit abc", {"base": 2}, ""),
        ("arc_ttt 0.1.0 of commit abc", {"base": 1, "ttt": 2}, ""),
        ("arc_ttt 0.1.0 of commit abc", {"base": 1}, "answered 1 of 2 tasks"),
        ("arc_ttt 0.1.0 of commit abc", {"synthesis": 2}, "answered 0 of 2 tasks"),
        ("arc_ttt 0.1.0 of commit abc\nFALLBACK: no 4-bit weights", {"base": 2}, "FALLBACK: no 4-bit"),
        ("submission.json is complete", {"base": 2}, "did not run the arc_ttt"),
    ],
)
def test_a_run_counts_when_the_model_looked_at_both_tasks(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, first_line: str, found: dict[str, int], words: str
) -> None:
    play_run(monkeypatch, found, first_line)
    (finding,) = trial_run.check_run(replace(plan, short=False))
    assert (finding.grade, words in finding.text) == (FAIL if words else OK, True)


def play_run(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, int], first_line: str = "arc_ttt 0.1.0 of commit abc"
) -> list[tuple[dict[str, Any], list[Path]]]:
    """Let runs find so many answers of each kind. Returns what they are given: SETTINGS, and folders with a model."""
    given = []

    def perform(stage: Any, *_: Any, **__: Any) -> Rehearsal:
        models = [path.parent for path in (stage.root / "input").rglob("config.json")]
        given.append((read_settings(stage.root / "src" / "script.py"), models))
        journal = Journal(stage.working / "events.jsonl")
        for kind, count in found.items():
            for number in range(count):
                journal.append("found", kind=kind, task_id=f"t{number}")
        journal.close()
        return Rehearsal(60.0, 120.0, 0, f"{first_line}\nsubmission.json is valid\n", [])

    task = {"train": [{"input": [[1]], "output": [[2]]}] * 2, "test": [{"input": [[1]]}]}
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.some_tasks", lambda *_: {"t0": task, "t1": task})
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.perform", perform)
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", lambda *_: (Path(sys.executable), []))
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", lambda *_: (Path(sys.executable), []))
    return given


def settings_of(given: dict[str, Any]) -> Settings:
    """As the run would read them: an error where it would fall back."""
    return Settings.of(given.pop("preset")).override(given.items())


def test_a_reserve_that_was_chosen_for_hours_does_not_spoil_the_short_run(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = play_run(monkeypatch, {"base": 2})
    set_kernel(plan, run__reserve_s=600.0)
    assert [finding.grade for finding in trial_run.check_run(replace(plan, short=False))] == [OK]
    run = settings_of(given[0][0]).run
    assert (run.limit_s, run.reserve_s) == (trial_run.RUN_LIMIT_S, 0)


@pytest.mark.parametrize(
    ("model", "asked", "answers"),
    [
        ("", "", "answered by embedded XS, valid submission, slack 60 s of 120"),
        ("mounted", MODEL_PATH, "answered by my-llama in format compact, valid"),
        (
            "in the bundle",
            f"/kaggle/input/datasets/{DATASET}",
            "by the bundle's model in format compact, valid",
        ),
        ("not here", MODEL_PATH, "slack 60 s of 120; your model: python -m arc_lab rehearse --model DIR [--gpu]"),
        ("too large", MODEL_PATH, "by embedded XS, valid submission, slack 60 s of 120; your model: python -m arc_lab"),
    ],
)
def test_the_run_says_which_model_answered_and_takes_the_one_asked_for_where_it_can(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, asked: str, answers: str
) -> None:
    given = play_run(monkeypatch, {"base": 2})
    if asked:
        set_kernel(plan, model__path=asked, model__backend="unsloth")
    if model == "too large":
        monkeypatch.setattr("arc_lab.publish.preflight.trial_run.MOST_MODEL_BYTES", 1000)
    if model == "in the bundle":
        for path in EMBEDDED.iterdir():
            shutil.copyfile(path, plan.bundle / path.name)
    shutil.copytree(EMBEDDED, tmp_path / "my-llama")
    here = tmp_path / "my-llama" if model in ("mounted", "too large") else None
    (finding,) = trial_run.check_run(replace(plan, short=False, model=here))
    assert finding.grade == OK
    assert answers in finding.text
    settings, models = given[0]
    used = asked if model in ("mounted", "in the bundle") else ""
    assert settings["model.path"] == used
    assert len(models) == bool(used)
    assert settings["model.backend"] == "transformers"


def empty_interpreter(folder: Path, *_: Any) -> tuple[Path, list[str]]:
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python", []


@pytest.mark.parametrize("failure", ["", "ImportError: an incompatible version of torchao"])
def test_the_adapter_is_tried_beside_what_the_image_has_and_peft_refuses(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    programs = []

    def run(words: list[str], limit_s: float) -> str:
        programs.append(words[-1])
        version = "import importlib.metadata, torchao; assert importlib.metadata.version('torchao') == '0.10.0'"
        return (program_failure([*words[:-1], version], limit_s) or failure) if words[-1] == imports.ATTACH else ""

    program_failure = imports._failure
    monkeypatch.setattr("arc_lab.publish.preflight.imports.clean_interpreter", empty_interpreter)
    monkeypatch.setattr("arc_lab.publish.preflight.trial_run.clean_interpreter", empty_interpreter)
    monkeypatch.setattr("arc_lab.publish.preflight.imports.offline", list)
    monkeypatch.setattr("arc_lab.publish.preflight.imports._failure", run)
    works, image = imports.check_imports(plan)
    assert (works.grade, "WITH a network" in works.text) == (WARN, True)
    assert programs[1:] == [imports.IMPORTS, imports.ATTACH]
    assert image.grade == (FAIL if failure else OK)
    assert "peft 0.19.1 and torchao 0.10.0" in image.text
    assert failure in image.text


@pytest.mark.parametrize(
    ("program", "limit_s", "words"),
    [
        ("print(1)", 60.0, ""),
        ("input()", 60.0, "EOFError"),
        ("import time; time.sleep(60)", 1.0, "it had not ended after 1s"),
        ("import sys; sys.exit(3)", 60.0, "no message"),
    ],
)
def test_a_program_in_the_clean_interpreter_asks_nothing_and_ends(program: str, limit_s: float, words: str) -> None:
    told = imports._failure([sys.executable, "-S", "-c", program], limit_s)
    assert (words in told, bool(told)) == (True, bool(words))


def test_a_stand_in_takes_the_place_of_the_package_that_is_there(tmp_path: Path) -> None:
    python, _ = empty_interpreter(tmp_path / "python")
    site = next((tmp_path / "python" / "lib").glob("python3*")) / "site-packages"
    for name in ("torchao", "torchao-0.99.0.dist-info"):
        (tmp_path / name).mkdir()
        (site / name).symlink_to(tmp_path / name)
    imports.stand_in(python, "torchao", "0.10.0")
    program = "import importlib.metadata, torchao; print(importlib.metadata.version('torchao'))"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.10.0\n"


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
    assert any(clash.told(packages) for clash in CLASHES) == clashes


def test_the_fetched_wheels_fit_the_image() -> None:
    """Only where they have been fetched; the lock's own versions were found by resolving against the image."""
    wheels = members(read_lock(), "unsloth", IMAGE.python)
    if any(state(wheel, WHEELS) for wheel in wheels):
        pytest.skip("python -m arc_lab wheels --set unsloth has not been run")
    assert conflicts(wheels, WHEELS, IMAGE) == []
