"""Negative log-likelihood of given grids under many views, on prompts that were passed through the model once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from arc_ttt.deadline import Deadline
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.tasks.grids import Grid
from arc_ttt.tasks.views import View


def score(batch: PromptBatch, views: Sequence[View], grids: Sequence[Grid], deadline: Deadline) -> list[list[float]]:
    """For each grid its nll under each row of `batch`, nats, closing token included; lower is better.

    views: the view of each row; a grid is seen through it before it is scored. Each grid passes behind the cached
    prompts of all rows at once, then the cache is rolled back. Stops early at the deadline: fewer lists come back.
    """
    decoder, form = batch.decoder, batch.decoder.base.form
    device = decoder.base.device
    scores: list[list[float]] = []
    for grid in grids:
        if deadline.passed():
            break
        answers = [form.answer_ids(prompt, view.apply(grid)) for prompt, view in zip(batch.prompts, views, strict=True)]
        longest = max(len(ids) for ids, _ in answers)
        ids = np.full((len(answers), longest), form.pad, dtype=np.int64)
        positions = np.zeros_like(ids)
        real = np.zeros(ids.shape, dtype=np.bool_)
        for row, (tokens, places) in enumerate(answers):
            ids[row, : len(tokens)], positions[row, : len(tokens)] = tokens, places
            real[row, : len(tokens)] = True
        cache = batch.ensure(longest)
        tokens_in = torch.from_numpy(ids).to(device)
        counts = torch.from_numpy(real.sum(axis=1)).to(device)
        hidden = decoder.forward(
            tokens_in, torch.from_numpy(positions).to(device), counts, cache, batch.longest + longest
        )
        first = batch.first.gather(-1, tokens_in[:, :1])
        later = decoder.token_log_probabilities(hidden[:, :-1], tokens_in[:, 1:])
        chosen = torch.cat((first, later), dim=1)  # (B, A)
        nll = -torch.where(torch.from_numpy(real).to(device), chosen, 0.0).sum(dim=1)
        scores.append(nll.tolist())
    return scores
