"""A solver made ready for its device: batches that its memory holds, checkpointing only where it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from arc_ttt.checkpoints.memory_formulas import L4, T4, Device
from arc_ttt.checkpoints.memory_plan import MemoryPlan, plan
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.deadline import Deadline
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, Task, freeze
from arc_ttt.worker.ready import CPU_TOKENS, choose_plan, ready_solver
from support.llamas import LLAMA, preset

CPU = torch.device("cpu")
torch.set_num_threads(1)


def grid(*rows: str) -> Any:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


TASK = Task("t", (Example(grid("012", "340"), grid("21", "04")), Example(grid("55"), grid("5"))), (grid("70", "07"),))


def test_a_cpu_needs_no_plan() -> None:
    changes = {"model.dtype": "float32", "ttt.micro_batch_tokens": 0, "ttt.scope": "none"}
    solver, notes = ready_solver(Settings().override(changes.items()), CPU)
    assert solver.answerer.memory is None
    assert solver.settings.ttt.micro_batch_tokens == CPU_TOKENS
    assert notes == []


def test_small_memory_means_smaller_batches_and_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"model.dtype": "float32", "ttt.scope": "none", "decode.views": 6, "decode.base_views": 6}
    changes |= {"decode.batch_views": 6, "vote.scoring_views": 6}
    solver, _ = ready_solver(Settings().override(changes.items()), CPU)
    sizes: list[int] = []
    prefill = PromptBatch.__init__

    def counted(self: PromptBatch, decoder: Any, prompts: Any, limits: Any = None) -> None:
        sizes.append(len(prompts))
        prefill(self, decoder, prompts, limits)

    monkeypatch.setattr(PromptBatch, "__init__", counted)
    whole = solver.answer(TASK, Deadline.never())
    config = solver.base.llama.config.to_dict()
    solver.answerer.memory = plan(LlamaShape.of(config), L4, solver.settings.ttt, four_bit=False, checkpointing=False)
    monkeypatch.setattr(MemoryPlan, "views", lambda self, prompt, answer, batch, kept: (min(batch, 2), min(kept, 4)))
    cut = solver.answer(TASK, Deadline.never())
    assert sizes == [6, 2, 2, 2]
    assert [(c.grid.tolist(), c.group) for c in cut.candidates] == [
        (c.grid.tolist(), c.group) for c in whole.candidates
    ]
    assert {len(row.nll_by_view) for row in whole.scored} == {6}
    assert {len(row.nll_by_view) for row in cut.scored} == {4}


class Checkpointed:
    def __init__(self) -> None:
        self.checkpoints = True

    def gradient_checkpointing_disable(self) -> None:
        self.checkpoints = False


@pytest.mark.parametrize(
    ("name", "device", "own", "checkpoints"),
    [("1B", L4, True, False), ("1B", L4, False, True), ("1B", T4, True, True), ("8B", L4, True, True)],
)
def test_layers_are_computed_twice_only_where_memory_asks_for_it(
    name: str, device: Device, own: bool, checkpoints: bool
) -> None:
    llama, settings = Checkpointed(), preset(name)
    found = choose_plan(llama, LlamaShape.of(LLAMA[name]), device, settings, four_bit=True, large=True, own=own)
    assert llama.checkpoints == checkpoints
    assert found == plan(LlamaShape.of(LLAMA[name]), device, settings.ttt, four_bit=True, checkpointing=checkpoints)
    assert found.tokens >= settings.ttt.max_sequence_tokens
