"""Pretraining: data, optimizer, positions, exact resume, data parallel, the card, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from arc_lab.data.datasets import load_dataset
from arc_lab.data.packs import Pack, pair_bytes, pair_tokens, read_pack, write_pack
from arc_lab.pretraining.attention import without_waiting
from arc_lab.pretraining.batches import fixed_shapes, most_packed, packed_row, packed_rows
from arc_lab.pretraining.checkpoints import CheckpointError, _own_hash
from arc_lab.pretraining.command import _parser, main, make_settings
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.held import apart, held_pairs, measuring_sequences
from arc_lab.pretraining.loop import Trainer
from arc_lab.pretraining.measure import exact_match, moved
from arc_lab.pretraining.model import new_llama, rope_parameters, save_model, training_model
from arc_lab.pretraining.muon import Muon, orthogonalized
from arc_lab.pretraining.pretrain import _Avoided, pretrain
from arc_lab.pretraining.processes import Group
from arc_lab.pretraining.settings import PRESETS
from arc_lab.pretraining.windows import WindowMaker, composed
from arc_ttt.adapt.batches import collate, cross_entropy_sum
from arc_ttt.errors import ArcError, InputError, ModelError, SettingsError
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.attention import hidden_states
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings
from arc_ttt.tasks.grids import Example, freeze, same_grid
from support.generators import WHEEL, needs_generators
from support.pretraining import DATA, TINY, options_of, rule_pairs, run, settings_of

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# Data


def test_a_window_depends_on_seed_and_number_alone(pack: Pack) -> None:
    first, second = WindowMaker([pack], DATA), WindowMaker([pack], DATA)
    second(0, 128)
    for one, two in zip(first(3, 128), second(3, 128), strict=True):
        assert np.array_equal(one.ids, two.ids)
        assert np.array_equal(one.positions, two.positions)
        assert np.array_equal(one.places, two.places)
    other = WindowMaker([pack], replace(DATA, seed=1))(3, 128)
    assert not all(a.ids.shape == b.ids.shape and (a.ids == b.ids).all() for a, b in zip(first(3, 128), other))  # noqa: B905


def test_sequences_keep_the_limit_and_mask_the_first_output(pack: Pack) -> None:
    maker = WindowMaker([pack], DATA)
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        sequence = maker.sequence(rng, 100)
        counts.add(len(sequence.outputs))
        assert len(sequence) <= 100
        assert not sequence.loss_mask[: sequence.outputs[1][0]].any()
        assert sum(stop - start for start, stop in sequence.outputs[1:]) == sequence.loss_mask.sum()
    assert counts >= {2, 3, 4}


def test_no_held_pair_and_no_held_out_group_reaches_training(pack: Pack) -> None:
    maker = WindowMaker([pack], replace(DATA, upscale=0.0))
    assert {group.name for source in maker.sources for group in source} == {"rearc/copy", "rearc/flip", "tasks/own"}
    group = maker.sources[0][0]
    allowed = {pair_bytes(group.pair(index)) for index in group.training}
    rng = np.random.default_rng(0)
    for _ in range(300):
        examples = maker._examples(group, rng, 128) or []
        assert all(pair_bytes((e.input, e.output)) in allowed for e in examples)


def test_a_pack_gives_tasks_of_its_held_out_groups_with_answers(pack_file: Path) -> None:
    dataset = load_dataset(f"{pack_file}:5")
    assert len(dataset.loaded.tasks) == 5
    for task in dataset.loaded.tasks:
        assert task.task_id.startswith("rearc-twice")
        (answer,) = dataset.solutions.by_task[task.task_id]
        np.testing.assert_array_equal(answer, np.concatenate((task.tests[0], task.tests[0]), axis=1))
    with pytest.raises(SettingsError, match="no such file"):
        load_dataset(f"{pack_file.parent}/other.pack:3")


def test_what_never_fits_is_refused(pack: Pack) -> None:
    with pytest.raises(InputError, match="fit 10 tokens"):
        WindowMaker([pack], DATA).sequence(np.random.default_rng(0), 10)
    with pytest.raises(InputError, match="no group"):
        WindowMaker([Pack({}, (), "")], DATA)


def test_fixed_shapes_are_few_and_full(pack: Pack) -> None:
    maker = WindowMaker([pack], DATA)
    rng = np.random.default_rng(0)
    sequences = [maker.sequence(rng, 128) for _ in range(80)]
    batches = fixed_shapes(sequences, (48, 96, 128), 512)
    assert {shape for _, shape in batches} <= {(10, 48), (5, 96), (4, 128)}
    assert all(len(rows) == shape[0] and max(map(len, rows)) <= shape[1] for rows, shape in batches)
    assert sum(len(rows) for rows, _ in batches) > 80 - 4


def feed_ids(pack: Pack, processes: int, take: int, state: dict[str, Any] | None = None) -> tuple[list[bytes], Any]:
    feed = Feed([pack], DATA, processes=processes)
    try:
        feed.start(state, 100)
        taken = [feed.next(128).ids.tobytes() for _ in range(take)]
        return taken, feed.state()
    finally:
        feed.close()


def test_a_feed_goes_on_exactly_and_background_processes_change_nothing(pack: Pack) -> None:
    whole, _ = feed_ids(pack, 0, 40)
    begun, state = feed_ids(pack, 0, 17)
    rest, _ = feed_ids(pack, 1, 23, json.loads(json.dumps(state)))
    assert begun + rest == whole


def test_pairs_that_are_held_back_to_measure_on_are_avoided_too(pack_file: Path) -> None:
    pack = read_pack(pack_file)
    avoid = _Avoided([pack])
    groups = [group for group in pack.groups if len(group.training) and len(group.held)]
    assert groups
    for group in pack.groups:
        assert all(avoid(pair_bytes(group.pair(index))) == group.name for index in group.held)
    for group in groups:
        assert all(avoid(pair_bytes(group.pair(index))) is None for index in group.training)


@needs_generators
def test_live_pairs_are_fresh_verified_and_avoid_what_they_must(tmp_path: Path) -> None:
    group = {"name": "rearc/67a3c6ac", "family": "67a3c6ac", "split": "train", "held_pairs": 0}
    write_pack(tmp_path / "p.pack", {"settings": {}}, [(group, rule_pairs("copy", 4, 1))])
    packs = [read_pack(tmp_path / "p.pack")]
    state = None
    for avoid, fresh in ((lambda pair: None, True), (lambda pair: "some task", False)):
        feed = Feed(packs, replace(DATA, upscale=0.0), processes=1, wheel=WHEEL, avoid=avoid)
        try:
            feed.start(state, 128)
            found = [feed.next(128) for _ in range(6)]
        finally:
            feed.close()
        assert any((batch.positions % 64 > 4).any() for batch in found) == fresh  # the pack's own are at most 3 wide


def test_measured_sequences_are_fixed_and_ask_for_the_last_output(pack: Pack) -> None:
    for split in ("train", "held-out"):
        first, second = (measuring_sequences([pack], split, 10, 256) for _ in range(2))
        assert len(first) == 10
        for one, two in zip(first, second, strict=True):
            assert np.array_equal(one.ids, two.ids)
            assert np.flatnonzero(one.loss_mask)[0] == one.outputs[-1][0]
            assert len(one.outputs) == 4


# Model and optimizer


def compact(pack: Pack, count: int) -> list[TokenSequence]:
    return measuring_sequences([pack], "train", count, 256)


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
    ids, positions, _, attention = moved(row, CPU, 256)
    hidden = hidden_states(own, ids, positions, **attention)[0]
    owners = row.row_of_targets()
    at = 0
    for number, sequence in enumerate(sequences):
        alone = hidden_states(own, *collate([sequence], 14, CPU)[:2])[0]
        torch.testing.assert_close(hidden[at : at + len(sequence)], alone)
        expected = at + np.flatnonzero(sequence.loss_mask)
        np.testing.assert_array_equal(row.places[owners == number], expected)
        at += len(sequence)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=40), st.integers(0, 3000), st.integers(100, 600))
def test_nothing_in_a_packed_row_is_longer_than_attention_is_told(lengths: list[int], room: int, longest: int) -> None:
    """Padding too: a kernel leaves what is longer as it finds it."""
    sequences = [TokenSequence(np.zeros(n, np.int64), np.zeros(n, np.int64), (), np.ones(n, np.bool_)) for n in lengths]
    length = max(longest, sum(lengths), 64 * len(lengths)) + room
    row = packed_row(sequences, length, longest)
    assert row.starts is not None
    pieces = np.diff([*row.starts, length])
    assert (row.starts[0], row.starts[-1], pieces.sum()) == (0, length, length)
    assert 0 <= pieces.min() <= pieces.max() <= longest
    assert list(pieces[: len(lengths)]) == lengths
    assert len(row.starts) == len(packed_row([], length, longest).starts)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_packed_rows_lose_no_sequence(lengths: list[int]) -> None:
    sequences = [
        TokenSequence(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_), ()) for n in lengths
    ]
    rows = packed_rows(sequences, 256)
    assert [s for row in rows for s in row] == sequences
    assert all(sum(map(len, row)) <= 256 and len(row) <= most_packed(256) for row in rows)


def test_a_training_on_packed_rows_wastes_little(pack_file: Path, tmp_path: Path) -> None:
    data = replace(DATA, packed=True, compose=0.5)
    card = run(pack_file, settings_of(data=data, steps=3), options_of(tmp_path))
    assert card["finished"]
    assert card["padding"] < 0.25


@pytest.mark.parametrize("seed", range(40))
def test_a_composed_task_follows_the_same_two_rules(seed: int) -> None:
    """Equal pairs stay equal, one side of each pair stays as it was, and grids stay legal."""
    rng = np.random.default_rng(seed)
    grid, small = (freeze(rng.integers(0, 10, shape)) for shape in ((4, 7), (1, 3)))
    examples = [Example(grid, small), Example(small, grid), Example(grid, small)]
    changed = composed(examples, np.random.default_rng(seed))
    first, last = changed[0], changed[2]
    assert same_grid(first.input, last.input)
    assert same_grid(first.output, last.output)
    kept = same_grid(first.input, grid), same_grid(first.output, small)
    assert any(kept)
    assert all(1 <= side <= 30 for e in changed for g in (e.input, e.output) for side in g.shape)


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


def test_muon_is_that_of_torch() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 8), (8, 8), (24, 8), (8, 24))]
    steps = [[torch.randn_like(weight) for weight in start] for _ in range(3)]
    results = []
    for make in (
        lambda ws: Muon(ws, lr=0.02, weight_decay=0.1),
        lambda ws: torch.optim.Muon(ws, lr=0.02, weight_decay=0.1),
    ):
        own = [torch.nn.Parameter(weight.clone()) for weight in start]
        optimizer = make(own)
        for gradients in steps:
            for weight, gradient in zip(own, gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        results.append(own)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0.02, atol=2e-3)  # torch's own rounds to bfloat16
    values = torch.linalg.svdvals(orthogonalized(torch.randn(2, 16, 32)))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5


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


def test_the_embedded_model_can_be_continued(pack: Pack) -> None:
    base = training_model(PRESETS["XS"], "longrope", 0, "embedded-XS", "float32", CPU)
    stock = load_model(ModelSettings(dtype="float32"), CPU)
    batch = collate(compact(pack, 3), 14, CPU)
    torch.testing.assert_close(cross_entropy_sum(base.llama, batch), cross_entropy_sum(stock.llama, batch))
    assert all(weight.requires_grad for weight in base.llama.parameters())


# The training


def without_times(card: dict[str, Any]) -> dict[str, Any]:
    curve = [{name: line[name] for name in line if name not in ("seconds", "tokens_s")} for line in card["curve"]]
    return {**card, "curve": curve, "seconds": 0, "tokens_s": 0}


def test_an_interrupted_training_ends_with_the_same_weights_and_card(pack_file: Path, tmp_path: Path) -> None:
    settings = settings_of()
    whole = run(pack_file, settings, options_of(tmp_path / "whole", log_every=4))
    for stop in (3, 6):
        part = run(pack_file, settings, options_of(tmp_path / "parts", log_every=4, stop_after_steps=stop))
        assert not part["finished"]
        assert part["steps"] == stop
    last = run(pack_file, settings, options_of(tmp_path / "parts", log_every=4, processes=1))
    assert last["finished"]
    assert last["steps"] == whole["steps"] == 8
    assert [line["step"] for line in whole["curve"]] == [4, 8, 8]
    assert without_times(last) == without_times(whole)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "checkpoint").iterdir())) == 2


def test_accumulating_two_batches_differs_from_one(pack_file: Path, tmp_path: Path) -> None:
    one = run(pack_file, settings_of(steps=2), options_of(tmp_path / "one"))
    two = run(pack_file, settings_of(steps=2, accumulate=2), options_of(tmp_path / "two"))
    assert two["tokens"] > one["tokens"]


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


def test_learning_rates_warm_up_stay_and_decay() -> None:
    settings = settings_of(warmup_steps=10, decay_share=0.25)
    assert settings.rate(0, 0.0) == pytest.approx(0.1)
    assert settings.rate(50, 0.5) == 1.0
    assert settings.rate(50, 0.875) == pytest.approx(0.5)
    assert settings.rate(50, 1.0) == 0.0
    assert [settings.limit_tokens(p) for p in (0.0, 0.3, 0.6)] == [128, 128, 128]
    longer = settings_of(data=replace(DATA, max_tokens=1000))
    assert [longer.limit_tokens(p) for p in (0.0, 0.3, 0.6)] == [400, 650, 1000]


# Refusals


def test_a_checkpoint_of_other_settings_or_packs_is_refused(pack_file: Path, tmp_path: Path) -> None:
    run(pack_file, settings_of(steps=2), options_of(tmp_path))
    with pytest.raises(CheckpointError, match=r"muon_lr=0.02, now it is 0.01"):
        run(pack_file, settings_of(steps=2, muon_lr=0.01), options_of(tmp_path))
    other = tmp_path / "other.pack"
    group = {"name": "rearc/copy", "family": "copy", "split": "train", "held_pairs": 0}
    write_pack(other, {"settings": {}}, [(group, rule_pairs("copy", 20, 3))])
    with pytest.raises(CheckpointError, match="other packs"):
        run(other, settings_of(steps=2), options_of(tmp_path))


def test_a_model_whose_checkpoint_is_gone_is_never_trained_over(pack_file: Path, tmp_path: Path) -> None:
    """As after a restart that emptied the folder of --checkpoints."""
    options = options_of(tmp_path / "out", checkpoints=tmp_path / "scratch")
    run(pack_file, settings_of(steps=2), options)
    shutil.rmtree(tmp_path / "scratch")
    (tmp_path / "out" / "model").rename(tmp_path / "out" / ".model.old")  # and that within a replacement
    with pytest.raises(InputError, match="holds a model"):
        run(pack_file, settings_of(steps=2), options)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds a model, but .*scratch no checkpoint .* give another --out"):
        run(pack_file, settings_of(steps=2), options)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_training_stopped_before_its_first_step_leaves_no_model(pack_file: Path, tmp_path: Path) -> None:
    card = pretrain([pack_file], settings_of(), options_of(tmp_path), say=lambda text: None, stopped=lambda: True)
    assert (card["finished"], card["steps"]) == (False, 0)
    assert not (tmp_path / "model").exists()
    assert run(pack_file, settings_of(steps=1), options_of(tmp_path))["finished"]


def test_the_log_of_a_training_killed_before_its_first_checkpoint_starts_anew(pack_file: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2, "seconds": 1.0, "loss": 9.0}\n')
    card = run(pack_file, settings_of(steps=4), options_of(tmp_path))
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == card["curve"]
    assert '"loss": 9.0' in (tmp_path / "log.previous.jsonl").read_text()


def test_a_loss_scaler_goes_on_where_it_was(pack_file: Path, tmp_path: Path) -> None:
    """It counts good steps before it doubles its scale, which an interruption must not forget."""
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2000)
    scaler._init_growth_tracker = 1500
    trainer = a_trainer(pack_file, tmp_path / "one")
    trainer.scaler, trainer.state["step"] = scaler, 1
    trainer._save(finished=False)
    again = a_trainer(pack_file, tmp_path / "one", scaler=torch.amp.GradScaler("cpu"))
    assert again.scaler.state_dict() == scaler.state_dict()


def a_trainer(pack_file: Path, folder: Path, scaler: Any = None) -> Trainer:
    """One that has not begun; scaler: instead of the one of its type of numbers."""
    pack, options = read_pack(pack_file), options_of(folder)
    parts = (settings_of(), options, Feed([pack], DATA), {}, [pack.sha256], Group(0, 1, CPU))
    with pytest.MonkeyPatch.context() as patch:
        if scaler is not None:
            patch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
        return Trainer(*parts, say=lambda text: None)


def test_what_one_pack_holds_back_no_other_trains_on(pack_file: Path, pack: Pack, tmp_path: Path) -> None:
    other = tmp_path / "other.pack"
    groups = [
        ({"name": f"rearc/{rule}", "family": rule, "split": "train", "held_pairs": 5}, rule_pairs(rule, 60, seed))
        for rule, seed in (("copy", 0), ("twice", 2))  # pairs of the first pack, with fewer of them held back
    ]
    write_pack(other, {"settings": {}}, groups)
    both = apart([pack, read_pack(other)])
    held = set(held_pairs([pack, read_pack(other)]))
    trained = [pair_bytes(g.pair(i)) for p in both for g in p.groups for i in g.training]
    assert not held.intersection(trained)
    assert held == set(held_pairs(both))
    counts = {group.name: len(group.training) for group in both[1].groups}
    assert counts == {"rearc/copy": 55, "rearc/twice": 0}
    assert len(both[0].groups[0].training) == 75  # of 80, five of which the other holds back
    for group in both[1].groups:
        assert all(int(group.tokens[i]) == pair_tokens(group.pair(i)) for i in range(len(group)))


def test_a_damaged_checkpoint_is_refused(pack_file: Path, tmp_path: Path) -> None:
    options = options_of(tmp_path)
    run(pack_file, settings_of(steps=2), options)
    state = options.checkpoints / "checkpoint.json"
    tensors = next(options.checkpoints.glob("*.safetensors"))
    raw, text = tensors.read_bytes(), state.read_text()
    stored = json.loads(text)

    def without(*names: str) -> dict[str, Any]:
        return {name: value for name, value in stored.items() if name not in (*names, "own_sha256")}

    def whole(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"own_sha256": _own_hash(document)}

    for damaged in (raw[: len(raw) // 2], raw[:-1] + bytes([raw[-1] ^ 1]), b""):
        tensors.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            run(pack_file, settings_of(steps=2), options)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(pack_file, settings_of(steps=2), options)
    tensors.write_bytes(raw)
    for damaged_text, words in (
        (text[:40], "no training checkpoint"),
        (text.replace('"version": 3', '"version": 7'), "7"),
        (text.replace('"step": 2', '"step": 1'), "damaged"),
        (json.dumps(stored | {"curve": []}), "damaged"),
        (json.dumps(whole(without("feed", "packs"))), "lacks feed, packs"),
    ):
        assert damaged_text != text
        state.write_text(damaged_text)
        with pytest.raises(CheckpointError, match=words):
            run(pack_file, settings_of(steps=2), options)


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


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"size": 2}, "training processes=1, now it is 2"),
        ({"live": "/else/reasoning_gym-0.1.25.whl"}, "live generators=, now it is reasoning_gym-0.1.25.whl"),
        ({"compile": True}, "compile=False, now it is True"),
        ({"dtype": torch.float16}, "resolved dtype=float32, now it is float16"),
        ({"threads": 7}, r"threads=\d, now it is 7"),
    ],
)
def test_a_checkpoint_made_under_other_conditions_is_refused(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any], words: str
) -> None:
    """Whatever would change the batches or the rounding; the checkpoint stays as it was."""
    settings = settings_of(steps=3, dtype="float32")
    part = run(pack_file, settings, options_of(tmp_path, stop_after_steps=1))
    assert not part["finished"]
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    options = options_of(tmp_path, **{name: value for name, value in now.items() if name in ("live", "compile")})
    if "dtype" in now:
        monkeypatch.setattr("arc_lab.pretraining.loop.compute_dtype", lambda name, device: now["dtype"])
    if "threads" in now:
        monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    group, pack = Group(0, now.get("size", 1), CPU), read_pack(pack_file)
    with pytest.raises(CheckpointError, match=words):
        Trainer(settings, options, Feed([pack], DATA), {}, [pack.sha256], group, say=lambda text: None)
    assert files == {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}


def test_a_finished_training_that_is_started_again_changes_nothing(pack_file: Path, tmp_path: Path) -> None:
    first = run(pack_file, settings_of(steps=3), options_of(tmp_path))
    kept = weights(tmp_path)
    again = run(pack_file, settings_of(steps=3), options_of(tmp_path))
    assert again["curve"] == first["curve"]
    assert again["exact_match"] is not None
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(tmp_path).items())


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "XXL"},
        {"rope": "2d"},
        {"steps": 0},
        {"seconds": 5.0},
        {"muon_lr": 0.0},
        {"accumulate": 0},
        {"data": replace(DATA, lengths=(128,), window_sequences=3)},  # of which no batch of four could be filled
    ],
)
def test_settings_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        settings_of(**changes)


def test_wrong_use_is_told_in_one_line(pack_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["--pack", str(tmp_path / "no.pack"), "--steps", "1", "--out", out]) == 2
    assert main(["--pack", "x", "--steps", "1", "--out", out, "--preset", "XXL"]) == 2
    assert main(["--pack", "x", "--out", out]) == 2
    (tmp_path / "file").write_text("mine")
    beneath = ["--pack", str(pack_file), "--steps", "1", "--out", str(tmp_path / "file" / "out")]
    assert main(beneath) == 2
    assert main([*beneath[:-1], out, "--checkpoints", str(tmp_path / "file")]) == 2
    assert main([*beneath[:-1], out, "--live", "none.whl"]) == 2
    for wrong in (["--log-every", "0"], ["--threads", "0"], ["--processes", "-1"]):
        assert main([*beneath[:-1], out, *wrong]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("arc-lab pretrain: ") for line in lines)


def test_a_signal_ends_the_command_with_a_checkpoint(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arc_lab.pretraining.loop.matmul_peak", lambda device, dtype: 1e9)
    command = ["--pack", str(pack_file), "--preset", "tiny", "--steps", "100000", "--processes", "0"]
    step = Trainer._step

    def step_then_signal(trainer: Trainer, progress: float) -> None:
        step(trainer, progress)
        if trainer.state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_step", step_then_signal)
    assert main([*command, "--eval-sequences", "4", "--out", str(tmp_path)]) == 130
    state = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert state["step"] == 3
    assert not json.loads((tmp_path / "card.json").read_text())["finished"]


def test_after_a_data_process_was_killed_the_same_command_goes_on(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("arc_lab.pretraining.loop.matmul_peak", lambda device, dtype: 1e9)
    command = ["--pack", str(pack_file), "--preset", "tiny", "--steps", "40", "--eval-sequences", "4", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    step = Trainer._step

    def step_then_kill(trainer: Trainer, progress: float) -> None:
        step(trainer, progress)
        if trainer.state["step"] == 2:
            assert trainer.feed._pool is not None
            for number in list(trainer.feed._pool._processes):
                os.kill(number, signal.SIGKILL)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", step_then_kill)
        assert main([*command, str(tmp_path / "parts")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("arc-lab pretrain: a background process that makes data died")
    done = json.loads((tmp_path / "parts" / "checkpoint" / "checkpoint.json").read_text())["step"]
    assert 2 <= done < 40
    assert line.endswith(f"the same command goes on after step {done}")
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("owner", "where"), [(Trainer, "_loss"), (Group, "sum_in_place"), (Trainer, "_log")])
def test_any_other_error_leaves_the_last_whole_step(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, where: str
) -> None:
    run(pack_file, settings_of(), options_of(tmp_path / "whole", log_every=1))
    real, calls = getattr(owner, where), []

    def broken(self: object, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no luck\nand more")
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, where, broken)
        with pytest.raises(ArcError, match=r"^RuntimeError: no luck; the same command goes on after step [34]$"):
            run(pack_file, settings_of(), options_of(tmp_path / "parts", log_every=1))
    run(pack_file, settings_of(), options_of(tmp_path / "parts", log_every=1))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_cpu_has_smaller_batches_of_a_size_for_gpus_by_default(tmp_path: Path) -> None:
    command = ["--pack", "x", "--out", str(tmp_path), "--steps", "1", "--rows", "padded", "--dtype", "bfloat16"]
    found = {
        (size, kind): make_settings(_parser().parse_args([*command, "--preset", size]), torch.device(kind)).data
        for size in ("XS", "S", "M")
        for kind in ("cpu", "cuda")
    }
    for (size, kind), data in found.items():
        preset = PRESETS[size]
        own = (preset.batch_tokens, preset.window_sequences, preset.windows_ahead)
        expected = (8192, 512, 3) if (size, kind) == ("M", "cpu") else own
        assert (data.batch_tokens, data.window_sequences, data.windows_ahead) == expected
    options = _parser().parse_args([*command, "--preset", "M", "--batch-tokens", "70000"])
    assert make_settings(options, CPU).data.batch_tokens == 70_000


@pytest.mark.parametrize(
    ("arguments", "preset"), [([], "XS"), (["--init", "embedded-M"], "M"), (["--preset", "S"], "S")]
)
def test_the_preset_is_that_of_the_checkpoint_to_go_on_from(arguments: list[str], preset: str, tmp_path: Path) -> None:
    options = _parser().parse_args(["--pack", "x", "--out", str(tmp_path), "--steps", "1", *arguments])
    settings = make_settings(options, torch.device("cpu"))
    assert settings.preset == preset
    assert settings.muon_lr == PRESETS[preset].muon_lr
    assert settings.data.max_tokens == PRESETS[preset].max_tokens


# Several processes, real sizes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


SCRIPT = """
import sys
from pathlib import Path
import torch
from arc_lab.pretraining.settings import PRESETS
from support.pretraining import TINY, options_of, run, settings_of
torch.set_num_threads(1)
PRESETS["tiny"] = TINY
run(Path(sys.argv[1]), settings_of(steps=4), options_of(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batches(pack_file: Path, tmp_path: Path) -> None:
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(pack_file), str(tmp_path / "two")],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    run(pack_file, settings_of(steps=4, accumulate=2), options_of(tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_minute_of_training_solves_new_pairs_of_an_easy_generator(pack_file: Path, tmp_path: Path) -> None:
    data = replace(DATA, batch_tokens=2048, window_sequences=96, upscale=0.0)
    card = run(
        pack_file,
        settings_of(steps=0, seconds=60.0, warmup_steps=20, data=data),
        options_of(tmp_path, processes=1, eval_sequences=40),
    )
    losses = [line["loss"] for line in card["curve"] if "loss" in line]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]  # batches of one length each: single lines vary
    assert card["exact_match"]["seen"]["exact"] > 0


@pytest.mark.slow
def test_the_command_ends_well_under_torchrun(pack_file: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "arc_lab", "pretrain", "--pack", str(pack_file), "--steps", "3", "--batch-tokens", "1024"]
    small = ["--window-sequences", "8", "--windows-ahead", "1", "--eval-sequences", "2", "--processes", "1", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command, *small, "--out", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"finished"')]
    assert [(line["finished"], line["steps"]) for line in lines] == [(True, 3)]  # the first process alone tells
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["processes"] == 2


@pytest.mark.slow
@needs_generators
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at tensors that have none
def test_the_dry_path_of_the_large_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of a GPU: compiled layers, packed rows, live pairs."""
    groups = [
        ({"name": f"rearc/{name}", "family": name, "split": split, "held_pairs": 0}, rule_pairs("copy", 20, seed))
        for seed, (name, split) in enumerate([("67a3c6ac", "train"), ("a5313dff", "train"), ("x", "held-out")])
    ]
    write_pack(tmp_path / "p.pack", {"settings": {}}, groups)
    small = ["--max-tokens", "1024", "--batch-tokens", "1024", "--window-sequences", "12", "--windows-ahead", "1"]
    gpu = ["--compile", "--rows", "packed", "--live", WHEEL, "--save-dtype", "bfloat16", "--eval-sequences", "2"]
    command = ["--pack", str(tmp_path / "p.pack"), "--preset", "M", "--steps", "3", *small, *gpu]
    assert main([*command, "--log-every", "1", "--out", str(tmp_path)]) == 0
    shares = re.findall(r"([\d.]+)% of peak", capsys.readouterr().out)
    assert len(shares) == 3
    assert all(0 < float(share) < 100 for share in shares)
    shards = list((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) >= 4
    assert all(shard.stat().st_size < 14_500_000 for shard in shards)
