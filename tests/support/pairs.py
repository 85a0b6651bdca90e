"""Pairs of random grids, and task files with pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from arc_lab.data.packs import Pair, pair_bytes
from arc_ttt.tasks.grids import freeze


def some_pair(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    sides = rng.integers(1, 6, 4)
    return freeze(rng.integers(0, 10, sides[:2])), freeze(rng.integers(0, 10, sides[2:]))


def some_groups(pairs: int = 6) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [
        (
            {"name": f"rearc/{number}", "family": str(number), "split": split, "held_pairs": held},
            [pair_bytes(some_pair(100 * number + i)) for i in range(pairs)],
        )
        for number, (split, held) in enumerate([("train", 2), ("held-out", 0)])
    ]


def write_task(path: Path, pairs: list[Pair]) -> str:
    shown = [{"input": first.tolist(), "output": second.tolist()} for first, second in pairs]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"train": shown, "test": [{"input": [[1]]}]}))
    return str(path.parent)
