"""Models to train: attention, packed rows, rotary positions and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from arc_lab.data.packs import Pack
from arc_lab.pretraining.attention import without_waiting
from arc_lab.pretraining.batches import packed_row
from arc_lab.pretraining.measure import to_device
from arc_lab.pretraining.model import new_llama, rope_parameters, training_model
from arc_lab.pretraining.settings import PRESETS
from arc_ttt.adapt.batches import collate, cross_entropy_sum
from arc_ttt.errors import InputError
from arc_ttt.model.attention import hidden_states
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings
from support.pretraining import TINY
from support.trainings import compact

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.mark.parametrize("rope", ["longrope", "strided"])
def test_attention_without_a_mask_is_the_stock_one(pack: Pack, rope: str) -> None:
    stock, own = (new_llama(TINY, rope, seed=1) for _ in range(2))
    without_waiting(own)
    ids, positions, _ = collate(compact(pack, 4), 14, CPU)
    torch.testing.assert_close(hidden_states(own, ids, positions), hidden_states(stock, ids, positions))
    changed = ids.clone()
    changed[:, 0] = 3
    assert (hidden_states(own, changed, positions)[:, 40] != hidden_states(own, ids, positions)[:, 40]).any()


def test_a_packed_row_is_its_sequences_one_by_one(pack: Pack) -> None:
    own = new_llama(TINY, "longrope", seed=1)
    without_waiting(own)
    sequences = compact(pack, 5)
    length = sum(map(len, sequences)) + 7
    row = packed_row(sequences, length, 128)
    assert row.tokens == length - 7
    assert row.starts is not None
    ids, positions, _, attention = to_device(row, CPU, 256)
    hidden = hidden_states(own, ids, positions, **attention)[0]
    owners = row.row_of_targets()
    at = 0
    for number, sequence in enumerate(sequences):
        alone = hidden_states(own, *collate([sequence], 14, CPU)[:2])[0]
        torch.testing.assert_close(hidden[at : at + len(sequence)], alone)
        expected = at + np.flatnonzero(sequence.loss_mask)
        np.testing.assert_array_equal(row.places[owners == number], expected)
        at += len(sequence)


def test_the_table_is_that_of_the_embedded_model() -> None:
    config = json.loads((ROOT / "src" / "arc_ttt" / "checkpoints" / "embedded" / "xs" / "config.json").read_text())
    for name, value in rope_parameters("longrope", 32).items():
        assert config["rope_parameters"][name] == (pytest.approx(value) if name.endswith("_factor") else value)
    with pytest.raises(InputError, match="heads of 48"):
        rope_parameters("longrope", 48)


@pytest.mark.parametrize(("name", "millions"), [("XS", 2.7), ("S", 6.0), ("M", 26.2)])
def test_sizes_of_the_presets(name: str, millions: float) -> None:
    with torch.device("meta"):
        preset = PRESETS[name]
    count = preset.layers * (4 * preset.hidden**2 + 3 * preset.hidden * preset.feed_forward)
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_the_embedded_model_can_be_continued(pack: Pack) -> None:
    base = training_model(PRESETS["XS"], "longrope", 0, "embedded-XS", "float32", CPU)
    stock = load_model(ModelSettings(dtype="float32"), CPU)
    batch = collate(compact(pack, 3), 14, CPU)
    torch.testing.assert_close(cross_entropy_sum(base.llama, batch), cross_entropy_sum(stock.llama, batch))
    assert all(weight.requires_grad for weight in base.llama.parameters())
