"""What a device can do with a model, measured before its first task: seconds of training steps by length, and whether
they fit its memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.sequences import loss_mask
from arc_ttt.adapt.training import StepGradients, train
from arc_ttt.deadline import Deadline
from arc_ttt.errors import TrainingDiverged, out_of_memory
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.cuda import release_memory
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import TttSettings
from arc_ttt.tasks.grids import Example, freeze

PARTS = (8, 2, 1)
"""The longest allowed sequence divided by each of these gives the lengths that are tried."""
TRIES = 2
"""Steps at each length; the first one compiles kernels."""


def calibrate(
    base: LoadedModel,
    adapter: Adapter,
    settings: TttSettings,
    deadline: Deadline,
    recorded: StepGradients | None = None,
) -> list[dict[str, Any]]:
    """One row for each length, shortest first: tokens and sequences of a step, its seconds, whether it fitted.

    Ends with the first length that does not fit, or at the deadline. The adapter is as after a reset.
    """
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        sequence = made_up_sequence(base, settings.max_sequence_tokens // part, settings)
        step = [sequence] * settings.batch_sequences
        row: dict[str, Any] = {"length": len(sequence), "sequences": len(step), "fitted": True}
        try:
            reports = [
                train(base, adapter.parameters(), [step], settings, deadline, recorded=recorded) for _ in range(TRIES)
            ]
            row["seconds"] = round(min(report.seconds for report in reports), 4)
            if deadline.passed():
                break
        except TrainingDiverged:
            continue
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            row["fitted"] = False
            release_memory(base.device)
        finally:
            adapter.reset()
        rows.append(row)
        if not row["fitted"]:
            break
    return rows


def made_up_sequence(base: LoadedModel, tokens: int, settings: TttSettings) -> TokenSequence:
    """A training sequence of no meaning, at most `tokens` long unless a single pair of grids is longer."""
    side = max(2, min(20, math.isqrt(tokens // 8)))
    grid = freeze(np.random.default_rng(0).integers(0, 10, (side, side)))
    sequence, demonstrations = base.form.encode((), grid, grid), 1
    while len(longer := base.form.encode((Example(grid, grid),) * demonstrations, grid, grid)) <= tokens:
        sequence, demonstrations = longer, demonstrations + 1
    return TokenSequence(sequence.ids, sequence.positions, sequence.outputs, loss_mask(sequence, settings))
