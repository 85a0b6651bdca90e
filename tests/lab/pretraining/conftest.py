"""Packs of easy pairs, and a preset of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_lab.data.packs import Pack, read_pack, write_pack
from arc_lab.pretraining.settings import PRESETS
from support.pretraining import TINY, rule_pairs


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of three rules: two to train on, one held out; and the pairs of one task."""
    path = tmp_path_factory.mktemp("packs") / "easy.pack"
    groups = [
        ({"name": f"rearc/{rule}", "family": rule, "split": split, "held_pairs": held}, rule_pairs(rule, 120, seed))
        for seed, (rule, split, held) in enumerate(
            [("copy", "train", 40), ("flip", "train", 12), ("twice", "held-out", 0)]
        )
    ]
    own = {"name": "tasks/own", "family": "own", "split": "train", "held_pairs": 0}
    write_pack(path, {"settings": {}}, [*groups, (own, rule_pairs("copy", 4, 9))])
    return path


@pytest.fixture(scope="module")
def pack(pack_file: Path) -> Pack:
    return read_pack(pack_file)
