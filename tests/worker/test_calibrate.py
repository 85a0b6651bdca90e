"""Trying out a device: rows to learn from, an end at what does not fit, and no trace in the adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import TTT
from arc_ttt.protocol.messages import Trial
from arc_ttt.schedule.cost import CostModel
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, Task, freeze
from arc_ttt.worker import calibrate as calibrate_module
from arc_ttt.worker.calibrate import calibrate, made_up_sequence

SETTINGS = Settings.of("embedded").override(
    [("model.dtype", "float32"), ("ttt.max_sequence_tokens", 160), ("ttt.batch_sequences", 2), ("ttt.rank", 4)]
)


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(SETTINGS.model, torch.device("cpu"), seed=0)


def test_each_length_gets_a_row_and_the_adapter_stays_as_it_was(base: LoadedModel) -> None:
    adapter = Adapter(base, SETTINGS.ttt, seed=0)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    rows = calibrate(base, adapter, SETTINGS.ttt, Deadline.never())
    assert [row["length"] for row in rows] == sorted({row["length"] for row in rows})
    assert len(rows) == 3
    assert all(row["fitted"] and row["seconds"] > 0 and row["sequences"] == 2 for row in rows)
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters(), strict=True))


def test_it_ends_at_the_first_length_that_does_not_fit(base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = calibrate_module.train

    def small_device(base: LoadedModel, parameters: Any, steps: Any, *rest: Any, **more: Any) -> Any:
        if len(steps[0][0]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(base, parameters, steps, *rest, **more)

    monkeypatch.setattr(calibrate_module, "train", small_device)
    rows = calibrate(base, Adapter(base, SETTINGS.ttt, seed=0), SETTINGS.ttt, Deadline.never())
    assert [row["fitted"] for row in rows] == [True, False]
    cost = CostModel(SETTINGS)
    cost.calibrate([Trial(**{"seconds": 0.0, **row}) for row in rows])
    assert rows[0]["length"] <= cost.longest() < rows[1]["length"]


def test_it_keeps_to_its_deadline_and_passes_other_errors_on(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Adapter(base, SETTINGS.ttt, seed=0)
    clock = VirtualClock()
    assert calibrate(base, adapter, SETTINGS.ttt, Deadline(-1.0, clock)) == []

    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(calibrate_module, "train", lost)
    with pytest.raises(RuntimeError, match="device-side"):
        calibrate(base, adapter, SETTINGS.ttt, Deadline.never())


@pytest.mark.parametrize("tokens", [40, 100, 500, 2000])
def test_a_made_up_sequence_is_as_long_as_asked_and_not_longer(base: LoadedModel, tokens: int) -> None:
    sequence = made_up_sequence(base, tokens, SETTINGS.ttt)
    assert 0.5 * tokens <= len(sequence) <= tokens
    assert sequence.loss_mask.any()


def test_predictions_follow_what_was_tried_out(base: LoadedModel) -> None:
    """A device ten times slower than its prior, from three rows."""
    llama = Settings.of("llama-1b-3b")
    cost, prior = (CostModel(llama, ModelSize(3.2e9, 28, 3072, 128256), "t4") for _ in range(2))
    a, b, c = prior._train.now
    lengths = [(length, length * 2) for length in (1000, 4000, 8000)]
    cost.calibrate(Trial(t, 2, 10 * (a + n * b + n * t * c), True) for t, n in lengths)
    grid = freeze(np.zeros((15, 15)))
    task = Task("t", (Example(grid, grid),) * 3, (grid,))
    assert cost.parts(task, TTT)[0] == pytest.approx(10 * prior.parts(task, TTT)[0], rel=0.02)
