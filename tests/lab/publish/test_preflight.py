"""The checks of a submission: each fault is found, and reported with what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arc_lab.folders import current_build
from arc_lab.publish.bundle import METADATA
from arc_lab.publish.kaggle_image import read_image
from arc_lab.publish.preflight import command as preflight
from arc_lab.publish.preflight import imports, trial_run
from arc_lab.publish.preflight.bundle import check_bundle, check_wheels
from arc_lab.publish.preflight.checkup import Checkup
from arc_lab.publish.preflight.command import findings
from arc_lab.publish.preflight.findings import Level
from arc_lab.publish.preflight.metadata import check_settings, check_sources
from arc_lab.publish.preflight.model import check_memory, check_model
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.errors import InputError
from support.llamas import LLAMA_1B
from support.preflight import DATASET, FOO, MODEL_PATH, change_inside, edit, set_kernel, set_metadata, wheel_row

IMAGE = read_image()

EXPENSIVE = (trial_run.check_forecast, imports.check_imports, trial_run.check_run)
CHEAP = tuple(check for check in preflight.CHECKS if check not in EXPENSIVE)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the checks that start no program."""
    monkeypatch.setattr(preflight, "CHECKS", CHEAP)


@pytest.mark.usefixtures("cheap")
def test_a_good_setup_passes_and_every_kind_of_check_says_so(checkup: Checkup) -> None:
    found = list(findings(checkup))
    assert [str(finding) for finding in found if finding.level != Level.OK] == []
    subjects = {"LICENSE", "kernel-metadata.json", "SETTINGS", "bundle", "wheels", "model", "memory"}
    assert {finding.subject for finding in found} >= subjects


SOURCES = ["me/llama/Transformers/4bit/1"]


def owner_is_missing(checkup: Checkup) -> None:
    edit(checkup.kernel / "kernel-metadata.json", "somebody", "OWNER")


def metadata_are_missing(checkup: Checkup) -> None:
    (checkup.kernel / "kernel-metadata.json").unlink()


def internet_is_on(checkup: Checkup) -> None:
    edit(checkup.kernel / "kernel-metadata.json", '"enable_internet": false', '"enable_internet": true')


def machine_is_missing(checkup: Checkup) -> None:
    edit(checkup.kernel / "kernel-metadata.json", '"machine_shape": "NvidiaTeslaT4", ', "")


def another_bundle_is_named(checkup: Checkup) -> None:
    set_metadata(checkup, dataset_sources=["me/arc-ttt-wheels-old/2", DATASET])


def limit_is_too_long(checkup: Checkup) -> None:
    edit(checkup.kernel / "kernel.py", "11.5 * 3600", "12 * 3600")


def setting_is_unknown(checkup: Checkup) -> None:
    set_kernel(checkup, ttt__rang=3)


def settings_are_missing(checkup: Checkup) -> None:
    edit(checkup.kernel / "kernel.py", "SETTINGS: dict[str, object] =", "OTHER =")


def unsloth_is_chosen(checkup: Checkup) -> None:
    set_kernel(checkup, model__backend="unsloth")


def unsloth_refuses_the_adapter(checkup: Checkup) -> None:
    set_kernel(checkup, preset="llama-8b", model__backend="unsloth")


def model_path_has_placeholders(checkup: Checkup) -> None:
    set_kernel(checkup, model__path="/kaggle/input/models/OWNER/MODEL/transformers/VARIATION/1")


def model_is_of_no_source(checkup: Checkup) -> None:
    set_kernel(checkup, model__path=MODEL_PATH)


def another_model_is_a_source(checkup: Checkup) -> None:
    set_kernel(checkup, model__path=MODEL_PATH.replace("llama", "other"))
    set_metadata(checkup, model_sources=SOURCES)


def format_needs_another_preset(checkup: Checkup) -> None:
    set_kernel(checkup, model__format="marc")


def mounted_model_has_the_embedded_preset(checkup: Checkup) -> None:
    set_kernel(checkup, model__path=MODEL_PATH)
    set_metadata(checkup, model_sources=SOURCES)


def preset_is_of_a_model_that_is_not_named(checkup: Checkup) -> None:
    set_kernel(checkup, preset="llama-8b")


def bundle_has_no_model(checkup: Checkup) -> None:
    set_kernel(checkup, model__path=f"/kaggle/input/datasets/{DATASET}")


def licence_is_missing(checkup: Checkup) -> None:
    (checkup.kernel / "LICENSE").unlink()


def licence_is_empty(checkup: Checkup) -> None:
    (checkup.kernel / "LICENSE").write_text("\n")


def bundle_is_missing(checkup: Checkup) -> None:
    shutil.rmtree(checkup.bundle)


def bundle_is_old(checkup: Checkup) -> None:
    edit(checkup.bundle / MANIFEST, current_build().commit, "0123456789ab")


def code_has_changed_since(checkup: Checkup) -> None:
    change_inside(next(checkup.bundle.glob("arc_ttt-*.whl")))


def bundle_has_no_code(checkup: Checkup) -> None:
    next(checkup.bundle.glob("arc_ttt-*.whl")).unlink()


def bundle_is_for_another_dataset(checkup: Checkup) -> None:
    edit(checkup.bundle / METADATA, "somebody", "another")


def bundle_has_a_folder(checkup: Checkup) -> None:
    (checkup.bundle / "inner").mkdir()


def bundle_has_a_name_that_uploads_refuse(checkup: Checkup) -> None:
    (checkup.bundle / "a&b.txt").write_text("x")


def wheel_is_damaged(checkup: Checkup) -> None:
    (checkup.bundle / FOO).write_bytes(b"x")


@pytest.mark.parametrize(
    ("fault", "subject", "words"),
    [
        (owner_is_missing, "kernel-metadata.json", "replace OWNER"),
        (metadata_are_missing, "metadata", "cannot be read"),
        (internet_is_on, "kernel-metadata.json", "enable_internet"),
        (machine_is_missing, "kernel-metadata.json", 'machine_shape is missing: write "NvidiaTeslaT4"'),
        (another_bundle_is_named, "sources", "arc-ttt-wheels-old beside somebody/arc-ttt-wheels"),
        (limit_is_too_long, "SETTINGS", "no room"),
        (setting_is_unknown, "SETTINGS", "ttt.rang"),
        (settings_are_missing, "settings", "there are no SETTINGS"),
        (unsloth_is_chosen, "SETTINGS", "--set unsloth"),
        (unsloth_is_chosen, "SETTINGS", "unsloth is for mounted checkpoints"),
        (unsloth_refuses_the_adapter, "SETTINGS", "unsloth trains lm_head whole"),
        (model_path_has_placeholders, "SETTINGS", "replace OWNER, MODEL, VARIATION"),
        (model_is_of_no_source, "SETTINGS", "under model_sources as owner/model/framework/variation/version"),
        (another_model_is_a_source, "SETTINGS", f"write {MODEL_PATH}"),
        (format_needs_another_preset, "SETTINGS", "for a model of format marc: name preset llama-8b"),
        (mounted_model_has_the_embedded_preset, "SETTINGS", "for a mounted model: name preset llama-1b-3b or llama-8b"),
        (preset_is_of_a_model_that_is_not_named, "SETTINGS", "model.path names none: set model.path"),
        (bundle_has_no_model, "SETTINGS", "holds no model: run arc-lab bundle --model DIR"),
        (licence_is_missing, "LICENSE", "missing"),
        (licence_is_empty, "LICENSE", "empty"),
        (bundle_is_missing, "bundle", "run arc-lab wheels, then arc-lab bundle"),
        (bundle_is_old, "bundle", "run arc-lab bundle"),
        (code_has_changed_since, "bundle", "not made from the sources here"),
        (bundle_has_no_code, "bundle", "no arc_ttt wheel: run arc-lab bundle"),
        (bundle_is_for_another_dataset, "bundle", "not among dataset_sources"),
        (bundle_has_a_folder, "bundle", "folders are not uploaded"),
        (bundle_has_a_name_that_uploads_refuse, "bundle", "may refuse this name"),
        (wheel_is_damaged, FOO, "damaged"),
    ],
)
@pytest.mark.usefixtures("cheap")
def test_a_broken_setup_fails_with_what_to_do(
    checkup: Checkup, fault: Callable[[Checkup], None], subject: str, words: str
) -> None:
    fault(checkup)
    failed = [finding for finding in findings(checkup) if finding.level == Level.FAIL]
    assert any(finding.subject == subject and words in finding.text for finding in failed), [*map(str, failed)]
    assert len({finding.text for finding in failed}) == len(failed)


def test_a_further_dataset_must_hold_no_bundle_unless_it_is_the_model_s(checkup: Checkup) -> None:
    assert list(check_sources(checkup)) == []
    set_metadata(checkup, dataset_sources=[DATASET, "me/weights"])
    (warning,) = check_sources(checkup)
    assert (warning.level, "me/weights beside" in warning.text) == (Level.WARN, True)
    set_kernel(checkup, model__path="/kaggle/input/datasets/me/weights/nf4")
    assert list(check_sources(checkup)) == []
    set_metadata(checkup, dataset_sources=["somebody-else/arc-ttt-wheels"])  # the bundle's own is not named at all
    assert list(check_sources(checkup)) == []


@pytest.mark.parametrize(("form", "config", "level"), [("compact", LLAMA_1B, Level.FAIL), ("compact", None, Level.OK)])
def test_a_mounted_model_under_the_embedded_preset_is_judged_by_its_size_if_known(
    checkup: Checkup, tmp_path: Path, form: str, config: dict[str, Any] | None, level: str
) -> None:
    set_kernel(checkup, model__path=MODEL_PATH, model__format=form)
    set_metadata(checkup, model_sources=["me/llama/transformers/4bit/1"])
    folder = EMBEDDED
    if config:
        folder = tmp_path
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert [finding.level for finding in check_settings(replace(checkup, model=folder))] == [level]
    assert [finding.level for finding in check_settings(checkup)] == [Level.OK]  # not known: compact is believed


def test_a_machine_whose_speed_is_not_known_gets_no_forecast(checkup: Checkup) -> None:
    set_metadata(checkup, machine_shape="NvidiaH100")
    (finding,) = trial_run.check_forecast(checkup)
    assert (finding.level, "NvidiaH100" in finding.text) == (Level.SKIPPED, True)


def test_every_module_of_a_run_is_imported_but_the_one_that_starts_a_worker() -> None:
    program = """
import importlib, pkgutil, sys
for name in sys.argv[1:]: importlib.import_module(name)
import arc_ttt
print(*(one.name for one in pkgutil.walk_packages(arc_ttt.__path__, "arc_ttt.") if one.name not in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *imports.IMPORTED], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["arc_ttt.worker.__main__"]


def test_what_stops_several_checks_is_told_once(checkup: Checkup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (*CHEAP, trial_run.check_forecast, trial_run.check_run))
    set_kernel(checkup, ttt__rang=3)
    found = [finding for finding in findings(replace(checkup, short=False)) if finding.level != Level.OK]
    assert [finding.level for finding in found] == [Level.FAIL, *[Level.SKIPPED] * 4]
    assert [finding.subject for finding in found] == ["SETTINGS", "model", "memory", "forecast", "run"]
    assert str(found[1]) == "skipped  model: it needs what failed above"


def test_a_bundle_without_the_project_is_told_once(checkup: Checkup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (check_bundle, imports.check_imports))
    next(checkup.bundle.glob("arc_ttt-*.whl")).unlink()
    assert [(finding.level, finding.subject) for finding in findings(checkup)] == [
        (Level.FAIL, "bundle"),
        (Level.SKIPPED, "imports"),
    ]


def test_checks_that_lack_something_say_that_they_were_skipped(
    checkup: Checkup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "CHECKS", (check_settings, check_model, check_memory, trial_run.check_forecast))
    set_kernel(checkup, preset="llama-1b-3b", model__path=MODEL_PATH)
    set_metadata(checkup, model_sources=["me/llama/transformers/4bit/1"])
    levels = [(finding.level, finding.subject) for finding in findings(checkup)]
    assert levels == [(Level.OK, "SETTINGS"), *((Level.SKIPPED, name) for name in ("model", "memory", "forecast"))]
    (short,) = trial_run.check_run(checkup)
    assert str(short) == "skipped  run of 2 tasks: --short was given"


def test_a_model_in_the_bundle_that_nothing_uses_is_told_with_its_path(checkup: Checkup) -> None:
    for path in EMBEDDED.iterdir():
        shutil.copyfile(path, checkup.bundle / path.name)
    warning, fine = check_settings(checkup)
    path = f"/kaggle/input/datasets/{DATASET}"
    assert (warning.level, fine.level) == (Level.WARN, Level.OK)
    assert f"set model.path to {path}" in warning.text
    set_kernel(checkup, model__path=path)
    assert [finding.level for finding in check_settings(checkup)] == [Level.OK]
    (model,) = check_model(checkup)  # in the bundle, so no --model is needed
    assert (model.level, "3M weights" in model.text) == (Level.OK, True)


def nothing_is_wrong(folder: Path) -> None:
    assert (folder / "config.json").is_file()


def folder_is_missing(folder: Path) -> None:
    shutil.rmtree(folder)


def weights_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def weights_are_four_bytes(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"fake")


def weights_are_cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def change_config(folder: Path, name: str, change: Callable[[int], int]) -> None:
    config = folder / "config.json"
    body = json.loads(config.read_text())
    config.write_text(json.dumps(body | {name: change(body[name])}))


def config_has_more_layers(folder: Path) -> None:
    change_config(folder, "num_hidden_layers", lambda layers: layers + 1)


def config_is_wider(folder: Path) -> None:
    change_config(folder, "intermediate_size", lambda size: size * 2)


def tokenizer_is_empty(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("fault", "form", "words"),
    [
        (nothing_is_wrong, "compact", ""),
        (folder_is_missing, "compact", "no readable config.json"),
        (weights_are_missing, "compact", "no safetensors file"),
        (weights_are_four_bytes, "compact", "model.safetensors is damaged or cut short"),
        (weights_are_cut_short, "compact", "model.safetensors is damaged or cut short"),
        (
            config_has_more_layers,
            "compact",
            "9 weights are missing, the first is model.layers.6.self_attn.q_proj.weight",
        ),
        (config_is_wider, "compact", "numbers, config.json asks for"),
        (nothing_is_wrong, "architects", "tokenizer.json is missing"),
        (tokenizer_is_empty, "architects", "tokenizer.json is missing or damaged"),
    ],
)
def test_a_model_is_opened_and_its_format_written(
    checkup: Checkup, tmp_path: Path, fault: Callable[[Path], None], form: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    fault(folder)
    if form != "compact":
        set_kernel(checkup, model__format=form)
    try:
        found = check_model(replace(checkup, model=folder))
        failed = [finding.text for finding in found if finding.level == Level.FAIL]
    except InputError as error:
        failed = [str(error)]
    assert bool(failed) == bool(words)
    assert any(words in text for text in failed) or not words, failed


LLAMA_8B = {**LLAMA_1B, "hidden_size": 4096, "num_hidden_layers": 32, "head_dim": 128, "intermediate_size": 14336}


LLAMA_8B["tie_word_embeddings"] = False


@pytest.mark.parametrize(
    ("shape", "settings", "levels", "words"),
    [
        (
            "NvidiaTeslaT4",
            {},
            [Level.WARN, Level.OK],
            ["T4: 5.31 GiB of weights in 4 bits on 13.1 GiB", "L4: 5.31 GiB"],
        ),
        (
            "NvidiaTeslaT4",
            {"model__quantize": "none"},
            [Level.FAIL, Level.WARN],
            ["T4: 14.96 GiB of weights in 16 bits", "no room"],
        ),
        ("NvidiaL4", {"model__quantize": "none"}, [Level.WARN, Level.FAIL], ["take 4 bits", "L4: 14.96 GiB"]),
    ],
)
def test_memory_is_told_for_each_gpu_and_fails_only_on_the_one_asked_for(
    checkup: Checkup, tmp_path: Path, shape: str, settings: dict[str, str], levels: list[str], words: list[str]
) -> None:
    set_metadata(checkup, machine_shape=shape)
    set_kernel(checkup, preset="llama-8b", **settings)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "model_type": "llama"}))
    found = list(check_memory(replace(checkup, model=tmp_path)))
    assert [finding.level for finding in found] == levels
    for finding, word in zip(found, words, strict=True):
        assert word in finding.text
        assert bool(re.search(r"sequences of up to \d+ of 8192 tokens", finding.text)) == (not settings)


def test_another_image_wants_other_wheels_and_the_advice_names_the_commands(
    checkup: Checkup, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(wheel_row(checkup.bundle / FOO), file="foo-1.0-cp313-cp313-any.whl", python=("3.13",))
    monkeypatch.setattr("arc_lab.publish.preflight.bundle.read_lock", lambda: [row])
    image = Path("out/setup.json")
    other = replace(checkup, image=replace(IMAGE, python="3.13"), set="unsloth", image_file=image)
    (finding,) = check_wheels(other)
    options = "--set unsloth --image out/setup.json"
    assert finding.text.endswith(f"run arc-lab wheels {options}, then arc-lab bundle {options}")
    with pytest.raises(InputError, match=r"no wheel of set base for Python 3\.12"):
        list(check_wheels(checkup))
