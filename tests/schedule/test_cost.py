"""Predictions: they grow with the task, find true costs from a few jobs, and follow each device."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.schedule.cost import CostModel, Took
from arc_ttt.schedule.devices import DEVICE_TYPES, device_type
from arc_ttt.schedule.shapes import training_shape, views_of
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, Grid, Task, freeze

EMBEDDED_SETTINGS = Settings.of("embedded")
LLAMA = Settings.of("llama-1b-3b")


def make_task(task_id: str, side: int, demonstrations: int = 3, tests: int = 1) -> Task:
    grid = freeze(np.zeros((side, side)))
    return Task(task_id, (Example(grid, grid),) * demonstrations, (grid,) * tests)


TASKS = [make_task(f"t{side}", side, 2 + side % 4) for side in range(1, 31)]


def seen_of(cost: CostModel, task: Task, train_s: float, decode_s: float, stretch: float = 1.0) -> Took:
    """A full training that took so long, on sequences `stretch` times as long as their shapes say."""
    count, length, _ = training_shape(task, cost.settings.ttt)
    return Took(train_s + decode_s, train_s, stretch * count * length, count / cost.settings.ttt.batch_sequences)


def tenth(took: Took, train_s: float) -> Took:
    """A tenth of a training, which took `train_s`."""
    return Took(took.seconds / 10, train_s, took.train_tokens / 10, took.steps / 10)


def observe(cost: CostModel, task: Task, train_s: float, decode_s: float, device: int = 0) -> None:
    """A full training that took so long."""
    cost.observe(task, TTT, device, 1.0, seen_of(cost, task, train_s, decode_s))


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(1, 29), st.integers(1, 5), st.sampled_from(sorted(DEVICE_TYPES)), st.sampled_from([BASE, TTT]))
def test_predictions_grow_with_the_task_and_the_share(side: int, demonstrations: int, device: str, kind: str) -> None:
    """Not where the longest sequence allowed binds: larger grids then leave fewer of them, as under the paper's
    augmentations, of which there are fewer where doubled grids would be too large."""
    free = LLAMA.override([("ttt.augment", "dihedral"), ("ttt.max_sequence_tokens", 32_768)])
    cost = CostModel(free, ModelSize(3.2e9, 28, 3072, 128256), device)
    small, large = make_task("small", side, demonstrations), make_task("large", side + 1, demonstrations)
    assert 0 < cost.predict(small, kind) < cost.predict(large, kind)
    assert cost.predict(large, kind) < cost.predict(make_task("two", side + 1, demonstrations, 2), kind)
    assert cost.predict(small, TTT, 0.1) < cost.predict(small, TTT, 0.5) < cost.predict(small, TTT)


def test_the_embedded_model_costs_what_was_measured_on_one_core() -> None:
    """2306 to 2535 tokens a second in training, on two cores of the machine that the prior is from."""
    model = Checkpoint.read(EMBEDDED).size
    assert model.parameters == pytest.approx(2.7e6, rel=0.05)
    task = make_task("t", 6)
    train_s, _ = CostModel(EMBEDDED_SETTINGS, model).parts(task, TTT)
    count, length, _ = training_shape(task, EMBEDDED_SETTINGS.ttt)
    assert count * length / train_s == pytest.approx(2300, rel=0.2)


@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
def test_twenty_jobs_are_enough_for_trainings_to_within_fifteen_percent(slower: float) -> None:
    """Nine of ten, on a device whose steps, tokens and attention each differ from the prior in another way."""
    rng = random.Random(7)
    cost = CostModel(LLAMA, ModelSize(3.2e9, 28, 3072, 128256), "t4")
    prior = CostModel(LLAMA, ModelSize(3.2e9, 28, 3072, 128256), "t4")
    a, b, c = prior._train.now

    def true_s(task: Task) -> float:
        count, length, _ = training_shape(task, LLAMA.ttt)
        steps = count / LLAMA.ttt.batch_sequences
        step_s = 3 * a + 2 * length * (b + 2 * c * length)
        return slower * steps * step_s * rng.lognormvariate(0, 0.06)

    for task in rng.sample(TASKS, 20):
        observe(cost, task, true_s(task), 2 * prior.parts(task, TTT)[1] * rng.lognormvariate(0, 0.3))
    errors = sorted(abs(cost.parts(task, TTT)[0] * cost.drift(0) / true_s(task) - 1) for task in TASKS)
    assert errors[int(0.9 * len(errors))] <= 0.15


def test_one_job_corrects_the_scale_and_one_that_hung_does_not() -> None:
    cost = CostModel(EMBEDDED_SETTINGS)
    small, large = TASKS[4], TASKS[20]
    train_s, decode_s = cost.parts(small, TTT)
    before = cost.predict(large, TTT)
    for _ in range(5):
        observe(cost, small, 4 * train_s, 4 * decode_s)
    after = cost.predict(large, TTT) * cost.drift(0)
    assert after == pytest.approx(4 * before, rel=0.15)
    observe(cost, small, 1000 * train_s, 4 * decode_s)
    assert cost.predict(large, TTT) * cost.drift(0) == pytest.approx(after, rel=0.15)


def test_each_device_has_a_drift_of_its_own() -> None:
    cost = CostModel(EMBEDDED_SETTINGS)
    for task in TASKS[:20]:
        train_s, decode_s = cost.parts(task, TTT)
        observe(cost, task, train_s, decode_s, device=0)
        observe(cost, task, 2 * train_s, 2 * decode_s, device=1)
    assert cost.drift(1) / cost.drift(0) == pytest.approx(2.0, rel=0.1)
    assert cost.drift(2) == 1.0


def test_a_job_is_cut_late_until_its_device_is_known() -> None:
    cost = CostModel(EMBEDDED_SETTINGS)
    assert (cost.cap(10.0, 0), cost.cap(1000.0, 0)) == (1800.0, 20_000.0)
    for task in TASKS[:5]:
        observe(cost, task, *cost.parts(task, TTT))
    assert cost.cap(1.0, 0) >= 60.0
    assert 1000.0 < cost.cap(1000.0, 0) < 10_000.0


def test_passes_with_little_training_answer_under_few_views() -> None:
    views = [views_of(TTT, share, LLAMA) for share in (0.04, 0.12, 0.25, 0.5, 1.0)]
    assert views == [8, 8, 8, 16, 16]  # eight are read at once, as in the base pass
    few = LLAMA.override([("decode.batch_views", 1), ("decode.base_views", 4)])
    assert [views_of(TTT, share, few) for share in (0.04, 0.12, 0.25, 0.5, 1.0)] == [2, 4, 8, 16, 16]
    assert views_of(BASE, 1.0, LLAMA) == LLAMA.decode.base_views


def test_the_longest_sequence_is_found_from_what_fitted_and_what_did_not() -> None:
    """Halfway between the two, so every report that contradicts it halves what is open."""
    cost = CostModel(LLAMA, ModelSize(8e9, 32, 4096, 128256), "t4")
    true_limit, tried = 3000, []
    for number in range(24):
        task = make_task(f"large {number % 3}", 12)  # doubled in both directions it has 3600 tokens
        length = round(training_shape(task, cost.settings.ttt, longest=cost.longest()).longest)
        tried.append(length)
        cost.observe_memory(task, fitted=length <= true_limit)
    assert 0.5 * true_limit <= cost.longest() <= 1.1 * true_limit
    assert sum(length > true_limit for length in tried) <= 8


def test_one_task_that_runs_out_of_memory_does_not_shorten_the_others() -> None:
    cost = CostModel(EMBEDDED_SETTINGS, ModelSize(8e9, 32, 4096, 128256), "t4")
    for _ in range(3):
        cost.observe_memory(make_task("first", 3), fitted=False)
    assert cost.longest() == EMBEDDED_SETTINGS.ttt.max_sequence_tokens
    cost.observe_memory(make_task("second", 5), fitted=False)
    assert cost.longest() < EMBEDDED_SETTINGS.ttt.max_sequence_tokens
    cost.observe_memory(make_task("third", 4, 6), fitted=True)  # so it was something else
    assert cost.longest() == EMBEDDED_SETTINGS.ttt.max_sequence_tokens


@pytest.mark.parametrize("preset", ["embedded", "llama-1b-3b"])
@pytest.mark.parametrize("changes", [(), (("ttt.augment", "none"),), (("ttt.in_context", False),)])
def test_the_shape_of_a_training_is_that_of_its_sequences(preset: str, changes: tuple[tuple[str, Any], ...]) -> None:
    """Of random grids, no two of which are alike, so that no augmentation repeats another."""
    ttt = Settings.of(preset).override([("ttt.max_sequence_tokens", 900), *changes]).ttt
    rng = np.random.default_rng(5)

    def grid(rows: int, columns: int) -> Grid:
        return freeze(rng.integers(0, 10, (rows, columns)))

    for sides, count in (((3, 4), 3), ((9, 6), 2), ((5, 16), 4), ((12, 3), 1), ((4, 4), 6), ((2, 29), 3), ((2, 14), 5)):
        train = tuple(Example(grid(*sides), grid(*sides)) for _ in range(count))
        task = Task("t", train, (grid(*sides),))
        made = ttt_sequences(task, CompactFormat(), ttt, rng)
        number, length, longest = training_shape(task, ttt)
        assert longest == pytest.approx(max(len(sequence) for sequence in made), rel=0.4)
        if ttt.augment != "none":  # else new orders, of which there are few, repeat
            assert number == pytest.approx(len(made) * ttt.epochs, rel=0.12)
        turned = 0.15 if ttt.augment != "none" else 0.25  # taken for turned half of the time, whereas none is
        assert length == pytest.approx(np.mean([len(sequence) for sequence in made]), rel=turned)
    assert training_shape(Task("t", (), (grid(2, 2),)), ttt) == (0, 0.0, 0.0)


@pytest.mark.parametrize("preset", ["embedded", "llama-1b-3b"])
@pytest.mark.parametrize("tokens", [60, 300, 1000])
def test_the_shape_of_a_training_knows_what_is_too_long(preset: str, tokens: int) -> None:
    """Whole pairs are left out where all are too long together, and augmentations that no sequence can hold."""
    ttt = Settings.of(preset).override([("ttt.max_sequence_tokens", tokens)]).ttt
    rng = np.random.default_rng(6)
    for side, count in ((2, 3), (5, 4), (9, 5), (14, 3), (26, 2)):
        train = tuple(Example(*(freeze(rng.integers(0, 10, (side, side))) for _ in range(2))) for _ in range(count))
        made = ttt_sequences(Task("t", train, (train[0].input,)), CompactFormat(), ttt, rng)
        number, length, _ = training_shape(Task("t", train, (train[0].input,)), ttt)
        assert number == pytest.approx(len(made) * ttt.epochs, rel=0.15)
        if made:
            assert length == pytest.approx(np.mean([len(sequence) for sequence in made]), rel=0.12)


def test_a_share_of_a_training_is_one_of_the_most_sequences_it_may_have() -> None:
    """As the solver cuts it: a task that makes few sequences has them all in a short training."""
    cost = CostModel(LLAMA, ModelSize(3.2e9, 28, 3072, 128256), "t4")
    few = make_task("few", 20, 2)  # its grids cannot be doubled, so it has 64 sequences of 250
    count, _, _ = training_shape(few, LLAMA.ttt)
    assert count < 0.5 * LLAMA.ttt.max_sequences * LLAMA.ttt.epochs
    assert cost.parts(few, TTT, 0.5)[0] == cost.parts(few, TTT, 1.0)[0]
    assert cost.parts(few, TTT, 0.1)[0] < cost.parts(few, TTT, 1.0)[0]


def test_the_length_of_text_is_learned_from_trainings() -> None:
    """Formats with two tokens a cell: the rate of a token is what it was, and there are twice as many."""
    cost = CostModel(EMBEDDED_SETTINGS)
    before = {task.task_id: cost.parts(task, TTT)[0] for task in TASKS}
    a, b, c = cost._train.now
    for task in TASKS[:16]:
        count, length, _ = training_shape(task, cost.settings.ttt)
        train_s = a * count / 8 + 2 * count * length * (b + c * 2 * length)
        cost.observe(task, TTT, 0, 1.0, seen_of(cost, task, train_s, cost.parts(task, TTT)[1], stretch=2.0))
    assert cost.drift(0) == pytest.approx(1.0, rel=0.05)
    fits = [t for t in TASKS if 2 * training_shape(t, cost.settings.ttt).longest < cost.longest()]
    assert len(fits) > 10
    for task in fits:
        assert 1.7 * before[task.task_id] < cost.parts(task, TTT)[0] < 3.5 * before[task.task_id]


def test_trainings_that_are_all_cut_still_teach_how_slow_the_device_is() -> None:
    cost, prior = CostModel(EMBEDDED_SETTINGS), CostModel(EMBEDDED_SETTINGS)

    def cut(task: Task, slower: float, device: int) -> None:
        """A tenth of a training, in the time that slower / 10 of it should take."""
        train_s = 0.1 * slower * prior.parts(task, TTT)[0]
        cost.observe_cut(task, device, tenth(seen_of(cost, task, 0.0, 0.0), train_s))

    for task in TASKS[:8]:
        cut(task, 12.0, 0)
    assert cost.parts(TASKS[20], TTT)[0] == pytest.approx(12 * prior.parts(TASKS[20], TTT)[0], rel=0.15)
    assert cost.settled  # at the eighth
    cut(TASKS[8], 12.0, 0)
    assert not cost.settled
    cost.observe_cut(TASKS[0], 0, Took(3.0))  # it had not come to a step
    assert not cost.settled


def test_a_slow_device_is_known_by_its_cut_trainings_beside_a_quick_one() -> None:
    cost, prior = CostModel(EMBEDDED_SETTINGS), CostModel(EMBEDDED_SETTINGS)
    for task in TASKS[:20]:
        train_s, decode_s = prior.parts(task, TTT)
        observe(cost, task, train_s, decode_s, device=0)
        cost.observe_cut(task, 1, tenth(seen_of(cost, task, 0.0, 0.0), train_s))
    train_s, _ = cost.parts(TASKS[20], TTT)
    assert cost.drift(1) / cost.drift(0) == pytest.approx(10.0, rel=0.15)
    assert cost.drift(0) * train_s == pytest.approx(prior.parts(TASKS[20], TTT)[0], rel=0.5)


def test_a_small_model_on_a_large_device_is_not_shortened() -> None:
    assert CostModel(LLAMA, ModelSize(1.2e9, 16, 2048, 128256), "h100").longest() == LLAMA.ttt.max_sequence_tokens
    assert CostModel(EMBEDDED_SETTINGS).longest() == EMBEDDED_SETTINGS.ttt.max_sequence_tokens


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("cpu", "cpu"),
        ("", "t4"),
        ("NVIDIA GeForce RTX 9090", "t4"),
    ],
)
def test_devices_are_known_by_the_names_of_their_drivers(name: str, kind: str) -> None:
    assert device_type(name) == kind
