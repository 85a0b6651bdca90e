"""The feed: windows, batches and rows depend on seed and number alone, and no held pair reaches training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_lab.data.datasets import load_dataset
from arc_lab.data.packs import Pack, pair_bytes, pair_tokens, read_pack, write_pack
from arc_lab.pretraining.batches import fixed_shapes, most_packed, packed_row, packed_rows
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.held import apart, held_pairs, measuring_sequences
from arc_lab.pretraining.pretrain import _Avoided
from arc_lab.pretraining.windows import WindowMaker, composed
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.formats.format import TokenSequence
from arc_ttt.tasks.grids import Example, freeze, same_grid
from support.generators import WHEEL, needs_generators
from support.pretraining import DATA, rule_pairs


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
