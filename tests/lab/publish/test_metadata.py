"""The metadata of kernel and dataset: mistakes are found before Kaggle is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arc_lab.publish.metadata import FIELD_TYPES, kernel_problems, model_path_problem, source_differences, source_of
from support.fake_kaggle import METADATA
from support.preflight import MODEL_PATH


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(values)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (change(id="OWNER/arc-ttt-kernel"), "replace OWNER"),
        (change(id="me/arc", title="arc arc"), "at least 5"),
        (change(title="Other title"), "another slug"),
        (change(accelerator="NvidiaL4"), "machine_shape"),
        (change(enable_internet="false"), "enable_internet"),
        (lambda body: body.pop("enable_internet"), "missing value as true"),
        (change(enable_gpu=False), "enable_gpu"),
        (change(is_private=1), "bool"),
        (change(dataset_sources=None), "list"),
        (change(dataset_sources=["wheels"]), "user/slug"),
        (change(dataset_sources=[]), "without its own code"),
        (change(competition_sources=[]), "no tasks"),
        (change(competition_sources=["arc-prize-2025", "arc-prize-2026-arc-agi-2"]), "one competition only"),
        (change(model_sources=["me/llama/transformers/4bit"]), "version a number"),
        (change(model_sources=["me/MODEL/transformers/VARIATION/1"]), "replace MODEL, VARIATION"),
        (change(machine_shape="NvidiaTeslaP100"), "NvidiaTeslaT4"),
        (change(machine_shape="NvidiaL4X4"), "four L4"),
        (lambda body: body.pop("machine_shape"), 'missing: write "NvidiaTeslaT4", which is two T4'),
        (change(code_file="other.py"), "no such file"),
        (change(kernel_type="notebook"), "script"),
        (change(docker_image_pinning_type="newest"), "original"),
    ],
)
def test_mistakes_in_the_metadata_are_found_at_home(
    kernel: Path, edit: Callable[[dict[str, Any]], None], word: str
) -> None:
    body = json.loads(json.dumps(METADATA))
    assert kernel_problems(body, kernel) == []
    edit(body)
    problems = kernel_problems(body, kernel)
    assert word in problems[0]


def test_a_code_file_that_is_too_long_is_found_at_home(kernel: Path) -> None:
    (kernel / "kernel.py").write_text("#" * 900_000)
    assert "less than 1 MB" in kernel_problems(dict(METADATA), kernel)[0]


def test_what_kaggle_stores_is_compared_source_by_source() -> None:
    assert source_differences(METADATA, dict(METADATA)) == []
    stored = {**METADATA, "enable_internet": True, "dataset_sources": []}
    assert [line.split(":")[0].split(" ")[0] for line in source_differences(METADATA, stored)] == [
        "dataset_sources",
        "enable_internet",
    ]


def test_the_metadata_of_this_repository_need_only_an_owner() -> None:
    root = Path(__file__).resolve().parents[3]
    body = json.loads((root / "kernel-metadata.json").read_text())
    assert set(body) <= set(FIELD_TYPES)
    named = json.loads(json.dumps(body).replace("OWNER", "somebody"))
    assert kernel_problems(named, root) == []


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
