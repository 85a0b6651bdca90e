"""The embedded model under the image's own versions of the packages that load, train and read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arc_lab.publish.kaggle_image import read_image
from arc_lab.publish.wheels import members, read_lock

SRC = Path(__file__).resolve().parents[2] / "src"
PINNED = (
    "numpy",
    "scipy",
    "huggingface-hub",
    "tokenizers",
    "safetensors",
    "transformers",
    "accelerate",
    "peft",
    "torchao",
)
SOLVE = """
import importlib.metadata, json, sys
import numpy as np, torch
from arc_ttt.deadline import Deadline
from arc_ttt.tasks.grids import Example, Task, freeze
from arc_ttt.model.load import load_model
from arc_ttt.settings import Settings
from arc_ttt.worker.solver import TaskSolver
def grid(*rows):
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))
pairs = Example(grid("12", "30"), grid("21", "03")), Example(grid("45"), grid("54")), Example(grid("67"), grid("76"))
task = Task("a", pairs, (grid("89"),))
small = [("ttt.max_sequences", 8), ("decode.views", 2), ("vote.scoring_views", 2), ("model.dtype", "float32")]
told = {"versions": {name: importlib.metadata.version(name) for name in sys.argv[1:]}}
for weights in ("always", "never"):
    settings = Settings.of("embedded").override([*small, ("model.dequantize", weights)])
    base = load_model(settings.model, torch.device("cpu"))
    answers = TaskSolver(base, settings).adapt(task, Deadline.never())
    outcome, losses = str(answers.outcome), answers.training.losses
    told[weights] = [base.four_bit, outcome, len(losses), all(np.isfinite(losses)), len(answers.candidates)]
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_task_is_trained_and_answered_under_the_image_s_versions(tmp_path: Path) -> None:
    """One step of training, on plain and on 4-bit layers. Torch is this interpreter's, the rest the image's and the
    lock's, from a folder before all others on the path."""
    image, lock = read_image(), members(read_lock(), "base", read_image().python)
    versions = {name: image.packages[name] for name in PINNED} | {wheel.name: wheel.version for wheel in lock}
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "image")]
    words = [*install, *(f"{name}=={version}" for name, version in versions.items())]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        pytest.skip(f"the image's versions cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join([str(tmp_path / "image"), str(SRC)])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SOLVE, *versions]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["versions"] == versions
    for weights in ("always", "never"):
        four_bit, outcome, steps, finite, answers = told[weights]
        assert (four_bit, outcome, steps, finite, answers > 0) == (weights == "never", "finished", 1, True, True)
