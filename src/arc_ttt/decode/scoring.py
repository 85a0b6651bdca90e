"""Negative log-likelihood of given grids under many views, on prompts that were passed through the model once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from arc_ttt.deadline import Deadline
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.protocol.jobs import SYNTHESIS
from arc_ttt.settings import VoteSettings
from arc_ttt.tasks.grids import Grid, grid_bytes
from arc_ttt.tasks.views import View
from arc_ttt.votes.candidates import Candidate, ScoredCandidate


def score_candidates(
    found: Sequence[Candidate],
    programs: Sequence[Grid],
    prompts: Sequence[tuple[PromptBatch, list[View]]],
    vote: VoteSettings,
    deadline: Deadline,
) -> list[ScoredCandidate]:
    """The distinct answers to one test input, most frequent first, scored on prompts that are in the cache already.

    Grids that only a program found are scored too, under the stage "synthesis". Nothing comes back where the deadline
    cuts it short or a score is no number: unequal sums do not compare, and then the count of answers decides.

    Args:
        found: answers of the model, at least one.
        programs: grids that synthesis found.
        prompts: batches of prompts with the view of each row.
        vote: how many candidates and views to score.
    """
    grids: dict[bytes, Grid] = {}
    for candidate in found:
        grids.setdefault(grid_bytes(candidate.grid), candidate.grid)
    counts = Counter(grid_bytes(candidate.grid) for candidate in found)
    chosen = sorted(grids, key=lambda g: -counts[g])[: vote.max_scored]
    for grid in programs:
        if grid_bytes(grid) not in chosen:
            grids[grid_bytes(grid)] = grid
            chosen.append(grid_bytes(grid))
    columns: list[list[float]] = [[] for _ in chosen]
    left = vote.scoring_views
    for batch, views in prompts:
        part = batch.first_rows(left) if len(views) > left else batch
        scores = score(part, views[:left], [grids[g] for g in chosen], deadline)
        if len(scores) < len(chosen):
            return []
        for column, values in zip(columns, scores, strict=True):
            column += values
        left -= len(part.prompts)
    if not all(math.isfinite(value) for column in columns for value in column):
        return []
    first = found[0]
    return [
        ScoredCandidate(
            first.task_id, first.test_index, grids[g], tuple(column), first.stage if counts[g] else SYNTHESIS
        )
        for g, column in zip(chosen, columns, strict=True)
    ]


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
        cache = batch.rewind_with_room(longest)
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
