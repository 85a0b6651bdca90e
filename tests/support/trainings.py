"""The weights that trainings leave, and sequences to try a model on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from arc_lab.data.packs import Pack
from arc_lab.pretraining.held import measuring_sequences
from arc_ttt.formats.format import TokenSequence


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def compact(pack: Pack, count: int) -> list[TokenSequence]:
    """Sequences of a pack in the compact format."""
    return measuring_sequences([pack], "train", count, 256)
