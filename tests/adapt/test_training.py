"""Training: the right loss, the right gradients, on time, and for real."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from arc_lab.data.datasets import load_dataset
from arc_ttt.adapt import training
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import collate, cross_entropy_sum, micro_batches, shuffled_steps
from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.adapt.training import accumulate, learning_rate_factor, train
from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.decode.answerer import Answers
from arc_ttt.errors import TrainingDiverged
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.settings import ModelSettings, Settings, TttSettings
from arc_ttt.tasks.grids import Task, grid_bytes
from arc_ttt.worker.solver import TaskSolver

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more would wait for each other where cores are shared
SMALL = TttSettings(rank=8, max_sequences=12, batch_sequences=4)
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(ModelSettings(dtype="float32"), CPU)


@pytest.fixture(scope="module")
def adapter(base: LoadedModel) -> Adapter:
    return Adapter(base, SMALL, seed=0)


@pytest.fixture(scope="module")
def task() -> Task:
    """A small real task: 6150a2bd, a half turn of a 3 x 3 grid."""
    found = [t for t in load_dataset("training").loaded.tasks if t.task_id == "6150a2bd"]
    return found[0]


@pytest.fixture
def sequences(base: LoadedModel, task: Task) -> list[TokenSequence]:
    return ttt_sequences(task, base.form, SMALL, np.random.default_rng(0))


def slow_loss(base: LoadedModel, sequence: TokenSequence) -> tuple[float, int]:
    """Sum of the loss of one sequence and the number of its targets, from the logits of all tokens, one by one."""
    ids = torch.from_numpy(sequence.ids)[None]
    with torch.no_grad():
        output = base.llama(
            input_ids=ids,
            position_ids=torch.from_numpy(sequence.positions)[None],
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        )
    logp = torch.log_softmax(output.logits[0].double(), dim=-1)
    total, count = 0.0, 0
    for place in range(1, len(sequence)):
        inside = any(start <= place < stop for start, stop in sequence.outputs)
        assert inside == bool(sequence.loss_mask[place])
        if inside:
            total -= float(logp[place - 1, sequence.ids[place]])
            count += 1
    return total, count


def test_the_loss_is_that_of_a_slow_and_obvious_computation(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    adapter.reset()
    slow = [slow_loss(base, sequence) for sequence in sequences]
    want = sum(loss for loss, _ in slow)
    got = cross_entropy_sum(base.llama, collate(sequences, base.form.pad, CPU)).item()
    assert got == pytest.approx(want, rel=1e-4)
    mean = accumulate(base, sequences, 10**6, NO_SCALER)
    assert mean == pytest.approx(want / sum(count for _, count in slow), rel=1e-4)
    adapter.reset()


def test_logits_in_pieces_change_neither_loss_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    batch = collate(sequences[:2], base.form.pad, CPU)
    found = []
    for piece in (1 << 24, 10 * base.llama.config.vocab_size):
        monkeypatch.setattr("arc_ttt.adapt.batches.PIECE", piece)
        assert (int(batch[2].sum()) * base.llama.config.vocab_size > piece) == (piece < 1 << 24)
        loss = cross_entropy_sum(base.llama, batch)
        found.append((loss.item(), torch.autograd.grad(loss, adapter.parameters(), allow_unused=True)))
    (loss, gradients), (pieced_loss, pieced_gradients) = found
    assert pieced_loss == pytest.approx(loss, rel=1e-6)
    for gradient, pieced in zip(gradients, pieced_gradients, strict=True):
        torch.testing.assert_close(pieced, gradient, rtol=1e-4, atol=1e-5)


def test_micro_batches_change_no_gradient(base: LoadedModel, adapter: Adapter, task: Task) -> None:
    settings = dataclasses.replace(SMALL, max_sequences=6)
    small = ttt_sequences(task, base.form, settings, np.random.default_rng(0))
    short = [base.form.encode((), e.input, e.output) for e in task.train]
    step = [*small, *short]  # of two lengths, so that some rows are padded

    def gradients(budget_tokens: int) -> dict[str, torch.Tensor]:
        adapter.reset()
        accumulate(base, step, budget_tokens, NO_SCALER)
        found = {name: w.grad.clone() for name, w in adapter.trainable.items() if w.grad is not None}
        adapter.reset()
        return found

    whole, single, some = gradients(10**9), gradients(1), gradients(3 * max(map(len, step)))
    assert len(micro_batches(step, 1)) == len(step)
    assert len(micro_batches(step, 10**9)) == 1
    assert any(gradient.abs().max() > 1e-4 for gradient in whole.values())
    for name, gradient in whole.items():
        scale = float(gradient.abs().max()) + 1e-8
        assert float((single[name] - gradient).abs().max()) < 1e-3 * scale + 1e-7, name
        assert float((some[name] - gradient).abs().max()) < 1e-3 * scale + 1e-7, name


def test_micro_batches_keep_every_sequence_and_the_budget(sequences: list[TokenSequence]) -> None:
    budget = 3 * len(sequences[0])
    batches = micro_batches(sequences, budget)
    assert sorted(id(s) for batch in batches for s in batch) == sorted(id(s) for s in sequences)
    assert all(len(batch) * max(map(len, batch)) <= budget or len(batch) == 1 for batch in batches)
    assert len(batches) < len(sequences)


def test_steps_show_every_sequence_once_an_epoch_in_new_orders(sequences: list[TokenSequence]) -> None:
    steps = shuffled_steps(sequences, epochs=3, batch_sequences=5, rng=np.random.default_rng(0))
    assert [len(step) for step in steps] == [5, 5, 2] * 3
    epochs = [[id(s) for step in steps[i : i + 3] for s in step] for i in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(map(id, sequences)) for epoch in epochs)
    assert epochs[0] != epochs[1]


# The learning rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_warms_up_and_falls(schedule: str) -> None:
    settings = dataclasses.replace(SMALL, schedule=schedule, warmup_fraction=0.1)
    factors = [learning_rate_factor(step, 100, settings) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(factors) == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))
    end = 0.0 if schedule == "cosine" else 0.1
    assert factors[-1] == pytest.approx(end, abs=0.02)
    assert factors[55] == pytest.approx((1 + end) / 2, abs=0.01)


def test_the_first_of_few_steps_is_not_wasted() -> None:
    assert learning_rate_factor(0, 1, SMALL) == 1.0
    assert learning_rate_factor(0, 8, SMALL) == 1.0


# Ends


def steps_of(sequences: list[TokenSequence], count: int) -> list[list[TokenSequence]]:
    return [sequences[:2]] * count


def test_a_passed_deadline_stops_between_steps(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    clock = VirtualClock()
    adapter.reset()
    report = train(
        base,
        adapter.parameters(),
        steps_of(sequences, 10),
        SMALL,
        Deadline.after(25.0, clock),
        lambda step, loss: clock.advance(10.0),
    )
    assert (report.steps, report.stopped_by, report.seconds) == (3, "deadline", 30.0)
    assert report.tokens == 3 * sum(len(s) for s in sequences[:2])
    assert len(report.losses) == 3
    none = train(base, adapter.parameters(), steps_of(sequences, 10), SMALL, Deadline.after(-1.0, clock))
    assert (none.steps, none.stopped_by) == (0, "deadline")
    assert not base.llama.training
    adapter.reset()


def test_training_stops_when_the_task_is_learned(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    adapter.reset()
    easy = dataclasses.replace(SMALL, stop_loss=100.0)
    report = train(base, adapter.parameters(), steps_of(sequences, 9), easy, Deadline.never())
    assert (report.steps, report.stopped_by) == (4, "learned")
    adapter.reset()
    never = dataclasses.replace(SMALL, stop_loss=0.0)
    report = train(base, adapter.parameters(), steps_of(sequences, 6), never, Deadline.never())
    assert (report.steps, report.stopped_by) == (6, "finished")
    adapter.reset()


def test_a_loss_that_is_no_number_ends_training(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    adapter.reset()
    with torch.no_grad():
        adapter.parameters()[0].fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="nan"):
        train(base, adapter.parameters(), steps_of(sequences, 3), SMALL, Deadline.never())
    assert not base.llama.training
    adapter.reset()


def test_gradients_that_are_no_numbers_end_training_even_at_the_last_step(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    """Trap: the loss is still fine then, and only the weights that it leaves behind are not."""
    adapter.reset()
    weight = adapter.parameters()[1]
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    try:
        with pytest.raises(TrainingDiverged):
            train(base, adapter.parameters(), steps_of(sequences, 1), SMALL, Deadline.never())
    finally:
        hook.remove()
        adapter.reset()


def test_a_loss_that_explodes_ends_training(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_RESTORES", 0)
    adapter.reset()
    wild = dataclasses.replace(SMALL, learning_rate=1.0, clip_norm=1e6)
    with pytest.raises(TrainingDiverged, match="at step"):
        train(base, adapter.parameters(), steps_of(sequences, 30), wild, Deadline.never())
    adapter.reset()


@pytest.mark.parametrize("what", ["loss", "gradients", "explosion"])
def test_after_a_bad_step_training_goes_back_and_on_at_half_the_rate(
    base: LoadedModel,
    adapter: Adapter,
    sequences: list[TokenSequence],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """The bad step leaves no trace in the weights: they are those of a run that stood still before it."""
    adapter.reset()
    calls, rates = itertools.count(1), []
    original, original_step = training.accumulate, torch.optim.AdamW.step

    def spoiling(*arguments: Any) -> float:
        loss = original(*arguments)
        if next(calls) != 4:
            return loss
        if what == "gradients":
            adapter.parameters()[0].grad.fill_(math.nan)  # type: ignore[union-attr]
        return {"loss": math.nan, "gradients": loss, "explosion": 1e4}[what]

    def noting(optimizer: Any, *arguments: Any, **named: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return original_step(optimizer, *arguments, **named)

    monkeypatch.setattr(training, "KEEP_EVERY", 1)
    monkeypatch.setattr(training, "accumulate", spoiling)
    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    settings = dataclasses.replace(SMALL, stop_loss=0.0)
    report = train(base, adapter.parameters(), steps_of(sequences, 6), settings, Deadline.never())
    assert (report.steps, report.restores, report.stopped_by) == (5, 1, "finished")
    assert all(math.isfinite(loss) for loss in report.losses)
    wanted = [SMALL.learning_rate * learning_rate_factor(i, 6, settings) for i in range(6)]
    assert rates == pytest.approx([*wanted[:3], wanted[4] / 2, wanted[5] / 2])
    assert all(bool(weight.isfinite().all()) for weight in adapter.parameters())
    adapter.reset()


def test_checkpointing_changes_no_gradient_and_leaves_the_model_as_it_was(
    base: LoadedModel, adapter: Adapter, sequences: list[TokenSequence]
) -> None:
    weights = []
    for checkpointing in (False, True):
        adapter.reset()
        settings = dataclasses.replace(SMALL, checkpointing=checkpointing)
        train(base, adapter.parameters(), steps_of(sequences, 2), settings, Deadline.never())
        weights.append([weight.detach().clone() for weight in adapter.parameters()])
        assert not base.llama.is_gradient_checkpointing
    for plain, again in zip(*weights, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)
    adapter.reset()


# For real


def run_settings(**changes: Any) -> Settings:
    values = {"decode.views": 4, "decode.base_views": 4, "vote.scoring_views": 2, "ttt.max_sequences": 16}
    return Settings.of("embedded").override([*values.items(), ("model.dtype", "float32"), *changes.items()])


def found(answers: Answers) -> list[tuple[bytes, str, float]]:
    return [(grid_bytes(c.grid), c.group, c.nll) for c in answers.candidates]


def test_training_lowers_the_loss_on_a_real_task_and_changes_the_answers(task: Task) -> None:
    settings = run_settings(**{"ttt.max_sequences": 96})
    model = load_model(settings.model, CPU)
    solver = TaskSolver(model, settings)
    held_out = ttt_sequences(task, model.form, SMALL, np.random.default_rng(99))  # other views than those trained on
    batch = collate(held_out, model.form.pad, CPU)
    with torch.no_grad():
        before = float(cross_entropy_sum(model.llama, batch))
    base_answers = solver.answer(task, Deadline.never())
    adapted = solver.adapt(task, Deadline.never())
    with torch.no_grad():
        after = float(cross_entropy_sum(model.llama, batch))
    assert after < 0.7 * before
    assert adapted.training is not None
    losses = adapted.training.losses
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert adapted.outcome == Outcome.FINISHED
    assert {c.stage for c in adapted.candidates} == {"ttt"}
    assert [n for _, _, n in found(adapted)] != [n for _, _, n in found(base_answers)]
    assert {g for g, _, _ in found(adapted)} != {g for g, _, _ in found(base_answers)}


def test_the_base_model_answers_when_training_diverges(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MOST_RESTORES", 0)
    settings = run_settings()
    solver = TaskSolver(load_model(settings.model, CPU), settings)
    want = found(solver.answer(task, Deadline.never()))
    wild = run_settings(**{"ttt.learning_rate": 1.0, "ttt.clip_norm": 1e6, "ttt.batch_sequences": 1})
    assert solver.trainer is not None
    solver.trainer.settings = wild
    answers = solver.adapt(task, Deadline.never())
    assert answers.outcome == Outcome.DIVERGED
    assert "step" in answers.reason
    assert found(answers) == want
    solver.trainer.settings = settings
    again = solver.adapt(task, Deadline.never())  # and the next task is not harmed
    assert again.outcome == Outcome.FINISHED


class _Scaled:
    """Gradients as a recording gives them: scaled by what it is told, never by the scaler itself."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        self.weights, self.scales, self.preparing_s = weights, [], 5.0

    def clear(self) -> None:
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)

    def add(self, rows: Any, count: int, scale: float) -> torch.Tensor:
        self.scales.append(scale)
        self.preparing_s += 0.25
        for weight in self.weights:
            assert weight.grad is not None
            weight.grad += 0.01 * scale
        return torch.tensor(1.0)


def test_recorded_gradients_pass_through_the_loss_scaler(base: LoadedModel, sequences: list[TokenSequence]) -> None:
    half = dataclasses.replace(base, dtype=torch.float16)
    weights = [torch.nn.Parameter(torch.ones(3))]
    recorded = _Scaled(weights)
    report = train(half, weights, steps_of(sequences, 3), SMALL, Deadline.never(), recorded=recorded)
    assert report.steps == 3
    assert report.preparing_s == 0.75  # of this training alone
    assert recorded.scales[0] == SMALL.loss_scale
    assert float(weights[0].detach().max()) < 1.0
