"""A small training: its settings, its pairs, and a run of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arc_lab.data.packs import pair_bytes
from arc_lab.pretraining.pretrain import pretrain
from arc_lab.pretraining.settings import DataSettings, Preset, PretrainSettings, RunOptions
from arc_ttt.tasks.grids import freeze

TINY = Preset(64, 2, 2, 64, 256, 512, 0.02, 4e-3, 24, 1)


def rule_pairs(rule: str, count: int, seed: int) -> list[bytes]:
    """Pairs of an easy rule on grids of up to 3 x 3."""
    rng = np.random.default_rng(seed)
    found: dict[bytes, None] = {}
    while len(found) < count:
        grid = freeze(rng.integers(0, 10, rng.integers(2, 4, 2)))
        output = {"copy": grid, "flip": grid[::-1], "twice": np.concatenate((grid, grid), axis=1)}[rule]
        found[pair_bytes((grid, freeze(output)))] = None
    return list(found)


DATA = DataSettings(max_tokens=128, batch_tokens=512, window_sequences=24, windows_ahead=1)


def settings_of(**changes: Any) -> PretrainSettings:
    return PretrainSettings(**{"preset": "tiny", "steps": 8, "warmup_steps": 2, "data": DATA, **changes})


def options_of(folder: Path, **changes: Any) -> RunOptions:
    quiet = {"processes": 0, "peak": False, "eval_sequences": 6, "log_every": 2}
    return RunOptions(**{"out": folder, "checkpoints": folder / "checkpoint", **quiet, **changes})


def run(pack_file: Path, settings: PretrainSettings, options: RunOptions) -> dict[str, Any]:
    return pretrain([pack_file], settings, options, say=lambda text: None)
