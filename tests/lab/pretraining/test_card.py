"""What a training leaves: model, card, log and figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arc_lab.data.packs import Pack, read_pack
from arc_lab.pretraining.batches import packed_row
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.loop import Trainer
from arc_lab.pretraining.measure import exact_match
from arc_lab.pretraining.model import save_model, training_model
from arc_lab.pretraining.settings import PRESETS
from arc_ttt.adapt.batches import collate, cross_entropy_sum
from arc_ttt.errors import ModelError
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings
from support.pretraining import DATA, TINY, options_of, run, settings_of
from support.trainings import compact

CPU = torch.device("cpu")


def test_exact_match_is_by_sequence_and_in_order(pack: Pack) -> None:
    base = training_model(TINY, "longrope", 0, "", "float32", CPU)
    rng = np.random.default_rng(0)
    sequences = []
    for sequence in compact(pack, 40):  # one target each, so that an untrained model gets some right
        mask = np.zeros(len(sequence), dtype=np.bool_)
        mask[rng.integers(1, len(sequence))] = True
        sequences.append(replace(sequence, loss_mask=mask))
    alone = [exact_match(base, [sequence])[0] for sequence in sequences]
    assert 0 < sum(alone) < 40
    assert exact_match(base, sequences, 300) == alone
    assert exact_match(base, []) == []


def test_a_saved_model_loads_as_a_stock_one(pack: Pack, tmp_path: Path) -> None:
    base = training_model(TINY, "longrope", 0, "", "float32", CPU)
    save_model(base.llama, tmp_path / "model", torch.float32)
    save_model(base.llama, tmp_path / "model", torch.float32)
    loaded = load_model(ModelSettings(path=str(tmp_path / "model"), quantize="none", dtype="float32"), CPU)
    batch = collate(compact(pack, 4), 14, CPU)
    torch.testing.assert_close(cross_entropy_sum(loaded.llama, batch), cross_entropy_sum(base.llama, batch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_training_lowers_the_loss_and_writes_a_card(pack_file: Path, tmp_path: Path) -> None:
    card = run(pack_file, settings_of(steps=40, accumulate=2), options_of(tmp_path, log_every=5))
    losses = [line["loss"] for line in card["curve"] if "loss" in line]
    assert losses[-1] < losses[0] - 0.3
    stored = json.loads((tmp_path / "card.json").read_text())
    assert stored["packs"] == [read_pack(pack_file).sha256]
    assert stored["settings"]["data.max_tokens"] == 128
    assert stored["exact_match"]["held-out"]["n"] == 6
    text = (tmp_path / "card.md").read_text()
    assert "| tokens/s |" in text
    assert "held-out generators" in text
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(card["curve"])


def test_times_hold_the_steps_that_they_are_told_of(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lines of the log, also the first one after a start or an interruption, and of checkpoints."""
    step, saved = Trainer._step, list[tuple[int, float]]()

    def slow_step(trainer: Trainer, progress: float) -> None:
        step(trainer, progress)
        time.sleep(0.1)

    monkeypatch.setattr(Trainer, "_step", slow_step)
    monkeypatch.setattr(
        "arc_lab.pretraining.loop.save", lambda _, __, state: saved.append((state["step"], state["seconds"]))
    )
    run(pack_file, settings_of(steps=2), options_of(tmp_path / "a", log_every=1, checkpoint_every_s=0.0))
    assert [number for number, _ in saved] == [1, 2, 2]
    assert all(seconds >= 0.1 * number for number, seconds in saved)
    monkeypatch.undo()
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(Trainer, "_step", slow_step)
    for stop in (1, 0):
        card = run(pack_file, settings_of(steps=3), options_of(tmp_path / "b", log_every=1, stop_after_steps=stop))
        assert all(line.get("tokens_s", 0) <= DATA.batch_tokens / 0.1 for line in card["curve"])


def test_useful_work_is_counted_over_tokens(
    pack: Pack, pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of a long sequence attends to more than one of a short one, and there are more of them."""
    seen: list[float] = []
    monkeypatch.setattr("arc_lab.pretraining.loop.matmul_peak", lambda device, dtype: 1e9)
    monkeypatch.setattr("arc_lab.pretraining.loop.flops_per_token", lambda base, length: seen.append(length) or 1.0)
    run(pack_file, settings_of(steps=1), options_of(tmp_path, peak=True))
    feed = Feed([pack], DATA)
    feed.start(None, settings_of().limit_tokens(0.0))
    lengths = (feed.next(128).ids != 14).sum(1)
    assert len(set(lengths)) > 1
    assert seen == [(lengths**2).sum() / lengths.sum()] * len(seen) != []
    row = packed_row(compact(pack, 5), 1000, 128)
    assert row.squares == sum(len(sequence) ** 2 for sequence in compact(pack, 5))


def test_the_clock_can_drive_the_schedule(pack_file: Path, tmp_path: Path) -> None:
    card = run(pack_file, settings_of(steps=0, seconds=2.0), options_of(tmp_path))
    assert card["finished"]
    assert 2.0 <= card["seconds"] < 6.0


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: raw[:-4] + bytes(4)])
def test_weights_to_start_from_must_be_those_of_their_card(
    pack_file: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    base = training_model(TINY, "longrope", 0, "", "float32", CPU)
    save_model(base.llama, tmp_path / "model", torch.float32, {"loss": 0.5})
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert (card["loss"], list(card["weights"])) == (0.5, ["model.safetensors"])
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    settings = settings_of(init=str(tmp_path / "model"), steps=1)
    with pytest.raises(ModelError, match=r"damaged: model\.safetensors"):
        run(pack_file, settings, options_of(tmp_path / "out"))
    (tmp_path / "model" / "card.json").unlink()
    assert run(pack_file, settings, options_of(tmp_path / "out"))["weights"]
