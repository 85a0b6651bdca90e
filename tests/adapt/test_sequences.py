"""Training sequences: what they are made of, how many there are, and which tokens carry loss."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arc_ttt.adapt.augmenters import paper_augmenters
from arc_ttt.adapt.sequences import fit_sequence, joint_sequences, leave_out, loss_mask, ttt_sequences
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import TokenSequence
from arc_ttt.settings import TttSettings
from arc_ttt.tasks.grids import Example, Grid, Task, freeze, grid_bytes

fuzz = hypothesis_settings(max_examples=25, deadline=None, database=None)

FORM = CompactFormat()
PAPER = TttSettings(augment="paper", max_sequences=250, max_sequence_tokens=8192, first_output_loss=False)
ALL = replace(PAPER, max_sequences=100_000)


def random_grid(rng: np.random.Generator, height: int, width: int) -> Grid:
    return freeze(rng.integers(0, 10, (height, width)))


def make_task(demonstrations: int, seed: int = 0, side: int = 3, task_id: str = "t") -> Task:
    """A task of random grids (so no two are equal, nor symmetric) with one test input."""
    rng = np.random.default_rng([seed, demonstrations])
    train = tuple(
        Example(random_grid(rng, side, side + 1), random_grid(rng, side + 1, side)) for _ in range(demonstrations)
    )
    return Task(task_id, train, (random_grid(rng, side, side + 2),))


def grids_of(sequence: TokenSequence) -> list[list[list[int]]]:
    """All grids of a compact sequence, inputs and outputs in turn, read back from its tokens."""
    found: list[list[list[int]]] = []
    for token in sequence.ids.tolist():
        if token in (FORM.IN, FORM.OUT):
            assert token == (FORM.OUT if len(found) % 2 else FORM.IN)
            found.append([[]])
        elif token == FORM.NL:
            found[-1].append([])
        elif token != FORM.END:
            found[-1][-1].append(token)
    assert len(found) % 2 == 0
    return found


def pairs_of(sequence: TokenSequence) -> list[tuple[bytes, bytes]]:
    grids = [grid_bytes(freeze(np.array(grid))) for grid in grids_of(sequence)]
    return list(zip(grids[::2], grids[1::2], strict=True))


def shape_up_to_colours(grid: Grid) -> tuple[Any, ...]:
    """A name of a grid that is the same under every permutation of colours: cells numbered as first seen."""
    numbers: dict[int, int] = {}
    return (grid.shape, tuple(numbers.setdefault(cell, len(numbers)) for cell in grid.ravel().tolist()))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("count", range(6))
def test_leaving_one_out_gives_each_pair_its_turn_as_the_question(count: int) -> None:
    train = make_task(count).train
    variants = leave_out(train, 1)
    assert len(variants) == count
    for index, variant in enumerate(variants):
        assert variant[-1] is train[index]
        assert [train.index(example) for example in variant[:-1]] == [i for i in range(count) if i != index]


@pytest.mark.parametrize("count", range(6))
def test_leaving_two_out_drops_each_other_pair_once(count: int) -> None:
    train = make_task(count).train
    variants = leave_out(train, 2)
    assert len(variants) == count * (count - 1)
    names = [tuple(train.index(example) for example in variant) for variant in variants]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) == count - 1
        assert name[-1] not in name[:-1]
        assert list(name[:-1]) == sorted(name[:-1])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_paper_data_set_is_every_augmentation_and_one_recoloured_copy(count: int) -> None:
    """Small grids, so that no augmentation exceeds 30 cells: K x (1 + 23) leave-one-out tasks and a copy of each,
    topped up by the same of K (K - 1) leave-two-out tasks. A translation that comes back to its start, and a copy
    that equals another, are counted once."""
    sequences = ttt_sequences(make_task(count), FORM, ALL, rng())
    base = count + count * (count - 1)
    assert 0.9 * 2 * 24 * base <= len(sequences) <= 2 * 24 * base
    shown = [len(sequence.outputs) - 1 for sequence in sequences]
    first = shown.count(count - 1)
    assert shown == [count - 1] * first + [count - 2] * (len(shown) - first)
    assert 0.9 * 2 * 24 * count <= first <= 2 * 24 * count
    assert len({sequence.ids.tobytes() for sequence in sequences}) == len(sequences)


def test_without_the_copies_the_counts_are_exact() -> None:
    """With no augmentation only the order changes: 3 pairs give 3 leave-one-out tasks of 2 orders each at most."""
    settings = replace(ALL, augment="none", permutations=20)
    sequences = ttt_sequences(make_task(3), FORM, settings, rng())
    assert len(sequences) == 3 * 2 + 6
    task = make_task(3)
    known = {grid_bytes(grid) for e in task.train for grid in (e.input, e.output)}
    assert {grid for s in sequences for pair in pairs_of(s) for grid in pair} == known


def test_two_pairs_give_leave_two_out_sequences_without_demonstrations() -> None:
    shown = {len(sequence.outputs) - 1 for sequence in ttt_sequences(make_task(2), FORM, ALL, rng())}
    assert shown == {0, 1}


@pytest.mark.parametrize(("count", "cap"), [(3, 30), (3, 144), (3, 250), (5, 200), (2, 60)])
def test_the_cap_holds_and_leave_one_out_goes_first(count: int, cap: int) -> None:
    task, settings = make_task(count), replace(PAPER, max_sequences=cap)
    sequences = ttt_sequences(task, FORM, settings, rng())
    assert len(sequences) == min(cap, len(ttt_sequences(task, FORM, ALL, rng())))
    whole = sum(len(s.outputs) == count for s in ttt_sequences(task, FORM, ALL, rng()))
    assert sum(len(s.outputs) == count for s in sequences) == min(cap, whole)


def test_over_the_cap_a_random_part_is_kept_and_not_the_first() -> None:
    task = make_task(4)
    everything = [s.ids.tobytes() for s in ttt_sequences(task, FORM, ALL, rng())]
    kept = [s.ids.tobytes() for s in ttt_sequences(task, FORM, replace(PAPER, max_sequences=40), rng())]
    places = [everything.index(ids) for ids in kept]
    assert places == sorted(places)
    assert places != list(range(40))


def test_what_tops_up_is_a_random_part_too() -> None:
    """Every pair is asked about as often; the first ones would be of one pair only, without recoloured copies."""
    task = make_task(3)
    whole = [s for s in ttt_sequences(task, FORM, ALL, rng()) if len(s.outputs) == 2]
    cap = len(ttt_sequences(task, FORM, ALL, rng())) - len(whole) // 2
    kept = [s for s in ttt_sequences(task, FORM, replace(PAPER, max_sequences=cap), rng()) if len(s.outputs) == 2]
    everything = [s.ids.tobytes() for s in whole]
    places = [everything.index(s.ids.tobytes()) for s in kept]
    assert places == sorted(places)
    thirds = np.bincount([3 * place // len(whole) for place in places], minlength=3)
    assert min(thirds) > 0.2 * len(places)


def test_no_leave_one_out_sequence_fits_so_the_shorter_ones_are_capped_too() -> None:
    """The official code then keeps all leave-two-out sequences, however many."""
    task = make_task(5, side=6)
    lengths = sorted(
        {len(s.outputs): len(s) for s in ttt_sequences(task, FORM, replace(ALL, augment="none"), rng())}.values()
    )
    settings = replace(PAPER, augment="none", max_sequence_tokens=lengths[0], max_sequences=7)
    sequences = ttt_sequences(task, FORM, settings, rng())
    assert [len(s.outputs) for s in sequences] == [4] * 7


@pytest.mark.parametrize("augment", ["paper", "dihedral", "none"])
@pytest.mark.parametrize("in_context", [True, False])
def test_no_sequence_is_longer_than_its_cap(augment: str, in_context: bool) -> None:
    settings = replace(PAPER, augment=augment, in_context=in_context, max_sequence_tokens=100, max_sequences=50)
    sequences = ttt_sequences(make_task(4), FORM, settings, rng())
    assert 0 < len(sequences) <= 50
    assert max(len(sequence) for sequence in sequences) <= 100


def test_a_variant_that_is_too_long_loses_its_first_demonstrations() -> None:
    train = make_task(4).train
    whole = FORM.encode(train[:-1], train[-1].input, train[-1].output)
    fits = fit_sequence(train, FORM, replace(PAPER, max_sequence_tokens=len(whole)))
    assert fits is not None
    assert fits.ids.tolist() == whole.ids.tolist()
    less = fit_sequence(train, FORM, replace(PAPER, max_sequence_tokens=len(whole) - 1))
    assert less is not None
    assert pairs_of(less) == pairs_of(whole)[1:]
    assert fit_sequence(train, FORM, replace(PAPER, max_sequence_tokens=16)) is None


def augmented(examples: Iterable[Example]) -> set[tuple[Any, Any]]:
    """Every pair that the paper's augmenters can make of the examples, up to colours, under all translations."""
    steps = {}
    for seed in range(200):
        made = paper_augmenters(np.random.default_rng(seed))
        steps.update({name: step for name, step in made.items() if name != "translate"})
        spot = np.arange(900, dtype=np.uint16).reshape(30, 30)
        steps[f"translate {int(made['translate'](spot)[0, 0])}"] = made["translate"]  # type: ignore[arg-type]
    assert len(steps) == 22 + 16
    pairs = [(e.input, e.output) for e in examples]
    pairs += [(freeze(step(a)), freeze(step(b))) for a, b in pairs for step in steps.values()]
    return {joined(a, b) for a, b in pairs}


def joined(first: Grid, second: Grid) -> tuple[Any, Any]:
    """A pair up to one permutation of colours for both of its grids."""
    row = np.concatenate((first.ravel(), second.ravel()))[None]
    return (first.shape, second.shape), shape_up_to_colours(freeze(row))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_pair_of_every_sequence_is_an_augmented_demonstration(count: int) -> None:
    """Nothing of a test input, nor of another task, is ever trained on: each pair, read back from the tokens, is an
    augmentation of a demonstration, and no grid of a sequence is an augmented test input."""
    task = make_task(count)
    known = augmented(task.train)
    tests = {shape_up_to_colours(a) for a in [freeze(step(task.tests[0])) for step in paper_augmenters(rng()).values()]}
    tests.add(shape_up_to_colours(task.tests[0]))
    sequences = ttt_sequences(task, FORM, ALL, rng())
    assert len(sequences) > 40
    for sequence in sequences:
        for grids in zip(*[iter(grids_of(sequence))] * 2, strict=True):
            first, second = (freeze(np.array(grid)) for grid in grids)
            assert joined(first, second) in known
            assert not {shape_up_to_colours(first), shape_up_to_colours(second)} & tests


@pytest.mark.parametrize("changes", [{}, {"augment": "dihedral"}, {"augment": "none"}, {"in_context": False}])
def test_a_test_input_has_no_influence_on_the_sequences(changes: dict[str, Any]) -> None:
    task = make_task(3)
    other = Task("t", task.train, (random_grid(rng(9), 7, 7), random_grid(rng(8), 2, 2)))
    settings = replace(PAPER, max_sequences=60, **changes)
    first, second = (ttt_sequences(t, FORM, settings, rng()) for t in (task, other))
    assert [s.ids.tolist() for s in first] == [s.ids.tolist() for s in second]


@given(st.integers(0, 2**32), st.integers(1, 4))
@fuzz
def test_dihedral_sequences_show_all_demonstrations_once_under_one_view(seed: int, count: int) -> None:
    task = make_task(count, seed)
    settings = TttSettings(max_sequences=6)
    for sequence in ttt_sequences(task, FORM, settings, rng(seed)):
        grids = [freeze(np.array(grid)) for grid in grids_of(sequence)]
        assert len(grids) == 2 * count
        found = [(np.bincount(g.ravel(), minlength=10).tolist()) for g in grids]
        own = [np.bincount(g.ravel(), minlength=10) for e in task.train for g in (e.input, e.output)]
        assert sorted(map(sorted, found)) == sorted(sorted(counts.tolist()) for counts in own)
        assert len({grid.shape for grid in grids[::2]}) == 1


@pytest.mark.parametrize("augment", ["paper", "dihedral", "none"])
def test_direct_sequences_show_no_demonstration(augment: str) -> None:
    settings = replace(PAPER, augment=augment, in_context=False, max_sequences=30)
    sequences = ttt_sequences(make_task(3), FORM, settings, rng())
    assert len(sequences) == 30
    assert {len(sequence.outputs) for sequence in sequences} == {1}
    assert [s.ids[s.loss_mask].tolist() for s in sequences] == [s.ids[slice(*s.outputs[0])].tolist() for s in sequences]


@pytest.mark.parametrize("changes", [{}, {"augment": "dihedral"}, {"augment": "none"}, {"in_context": False}])
def test_a_task_without_demonstrations_has_no_sequence(changes: dict[str, Any]) -> None:
    assert ttt_sequences(make_task(0), FORM, replace(PAPER, **changes), rng()) == []


@pytest.mark.parametrize("changes", [{}, {"augment": "dihedral"}, {"augment": "none"}, {"in_context": False}])
def test_a_task_of_one_demonstration_trains_on_it_without_context(changes: dict[str, Any]) -> None:
    sequences = ttt_sequences(make_task(1), FORM, replace(PAPER, **changes), rng())
    assert len(sequences) >= 1
    assert {len(sequence.outputs) for sequence in sequences} == {1}
    assert all(sequence.loss_mask.any() for sequence in sequences)


@pytest.mark.parametrize("demonstration_loss", [True, False])
@pytest.mark.parametrize("first_output_loss", [True, False])
@pytest.mark.parametrize("augment", ["paper", "dihedral", "none"])
@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_loss_lies_on_the_outputs_that_the_settings_name_and_nowhere_else(
    demonstration_loss: bool, first_output_loss: bool, augment: str, in_context: bool, count: int
) -> None:
    """Spans decide, never token values: the cells of inputs are the same tokens as the cells of outputs."""
    settings = replace(
        PAPER,
        demonstration_loss=demonstration_loss,
        first_output_loss=first_output_loss,
        augment=augment,
        in_context=in_context,
        max_sequences=40,
    )
    for sequence in ttt_sequences(make_task(count), FORM, settings, rng()):
        written, number, inside = [], -1, False
        for token in sequence.ids.tolist():  # the number of the output that each token belongs to, -1 for none
            if token in (FORM.IN, FORM.OUT):
                inside = token == FORM.OUT
                number += inside
                written.append(-1)
            else:
                written.append(number if inside else -1)
        outputs = number + 1
        wanted = {outputs - 1}
        if demonstration_loss:
            wanted = set(range(outputs)) - (set() if first_output_loss or outputs == 1 else {0})
        assert [place in wanted for place in written] == sequence.loss_mask.tolist()


def test_the_loss_mask_does_not_depend_on_the_values_of_tokens() -> None:
    ids = np.zeros(12, dtype=np.int64)
    sequence = TokenSequence(ids, np.arange(12), ((1, 3), (5, 8), (10, 12)), np.zeros(12, dtype=np.bool_))
    assert np.flatnonzero(loss_mask(sequence, PAPER)).tolist() == [5, 6, 7, 10, 11]
    everything = replace(PAPER, first_output_loss=True)
    assert np.flatnonzero(loss_mask(sequence, everything)).tolist() == [1, 2, 5, 6, 7, 10, 11]
    assert np.flatnonzero(loss_mask(sequence, replace(PAPER, demonstration_loss=False))).tolist() == [10, 11]


def test_joint_sequences_take_few_of_every_task_and_a_shared_adapter_takes_all() -> None:
    tasks = [make_task(3, seed, task_id=str(seed)) for seed in range(3)]

    def rng_of(task_id: str) -> np.random.Generator:
        return rng(int(task_id))

    joint = joint_sequences(tasks, FORM, replace(PAPER, scope="joint", joint_sequences=4), rng_of)
    assert len(joint) == 12
    shared = joint_sequences(tasks, FORM, replace(PAPER, scope="shared", max_sequences=50), rng_of)
    alone = [s for t in tasks for s in ttt_sequences(t, FORM, replace(PAPER, max_sequences=50), rng_of(t.task_id))]
    assert [s.ids.tolist() for s in shared] == [s.ids.tolist() for s in alone]


def fingerprint(seed: int, changes: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for sequence in ttt_sequences(make_task(3), FORM, replace(PAPER, **changes), rng(seed)):
        digest.update(sequence.ids.tobytes() + sequence.positions.tobytes() + sequence.loss_mask.tobytes())
    return digest.hexdigest()


CHANGES: list[dict[str, Any]] = [{}, {"max_sequences": 20}, {"augment": "dihedral"}, {"augment": "none"}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_sequences_depend_on_the_seed_and_on_nothing_else(changes: dict[str, Any]) -> None:
    assert fingerprint(1, changes) == fingerprint(1, changes)
    assert fingerprint(1, changes) != fingerprint(2, changes)


def fingerprints_of_a_process(hash_seed: str) -> list[str]:
    code = "import test_sequences as t; print(*[t.fingerprint(1, c) for c in t.CHANGES])"
    path = os.pathsep.join([os.path.dirname(__file__), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return child.stdout.split()


def test_sequences_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    """The official code de-duplicates through a set of hashed objects: one seed gives 192, 191 or 191 items and three
    different data sets for three hash seeds."""
    here = [fingerprint(1, changes) for changes in CHANGES]
    assert fingerprints_of_a_process("1") == here
    assert fingerprints_of_a_process("2") == here
