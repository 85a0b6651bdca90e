"""Greedy answers over a batch of prompts, by recorded steps where the device can record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arc_ttt.deadline import Deadline
from arc_ttt.decode.decoder import Decoder, any_kernel
from arc_ttt.decode.kv_cache import KVCache, Tensor
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.model.cuda import recording_failed, side_stream, warm_up
from arc_ttt.tasks.grids import Grid


class Recorded:
    """One-token steps of all rows of a cache, recorded once on the GPU: a replay launches in one go what would
    otherwise be hundreds of kernels, each of which takes longer to launch than to run.

    Needs `decoder.can_record`. Starts from the lengths that the cache has now. The cache must have room for every step.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        device, rows = decoder.base.device, len(cache.lengths)
        self.cache = cache
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.lengths = cache.lengths.clone()

        def step() -> Tensor:
            hidden = decoder.hidden(self.ids, self.positions, self.lengths, cache, cache.capacity, fresh=False)
            return decoder.log_probabilities(hidden[:, 0])

        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), any_kernel():
            warm_up(device, step)
            # A stream of its own: torch 2.12 and 2.13 drop the cuBLAS workspace of a stream with any graph of that
            # stream, and graphs of training steps outlive this one (pytorch issue 193402).
            with torch.cuda.graph(self.graph, stream=side_stream(device, "decoding")):
                self.log_probabilities = step()
                self.lengths += 1

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Append one token to every row. ids, positions: (B, 1) on the host. Returns log-probabilities (B, V), good
        until the next step."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        self.cache.longest += 1
        return self.log_probabilities


RECORDED_ROOM = 256
"""Places made at once where steps are recorded: a larger cache needs another recording."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One answer of one row of a prompt batch.

    Args:
        nll: nats, closing token included.
        grid: None if it was cut.
    """

    row: int
    grid: Grid | None
    nll: float
    reason: str = ""


def greedy(batch: PromptBatch, deadline: Deadline) -> list[Answer]:
    """The greedy answer of every row. Cut rows have no grid and a reason."""
    form = batch.decoder.base.form
    device = batch.decoder.base.device
    rows = list(range(len(batch.prompts)))
    cursors = [form.cursor(prompt, limits) for prompt, limits in zip(batch.prompts, batch.limits, strict=True)]
    nll = [0.0] * len(rows)
    answers: dict[int, Answer] = {}
    recorded = batch.decoder.can_record and batch.decoder.base.record
    steps = _RecordedSteps(batch) if recorded else _PlainSteps(batch.decoder, batch.rewind())
    logp = batch.first
    while rows:
        allowed = torch.from_numpy(np.stack([cursors[row].allowed() for row in rows])).to(device)
        best = torch.where(allowed, logp, -math.inf).max(dim=-1)
        tokens = best.indices.tolist()
        positions = []
        for row, token, value in zip(rows, tokens, best.values.tolist(), strict=True):
            positions.append(cursors[row].push(token))
            nll[row] -= value
            if cursors[row].done:
                answers[row] = Answer(row, cursors[row].reader.grid(), nll[row])
        going = [place for place, row in enumerate(rows) if row not in answers]
        if going and deadline.passed():
            for place in going:
                answers[rows[place]] = Answer(rows[place], None, nll[rows[place]], "the deadline came first")
            break
        rows = [rows[place] for place in going]
        if rows:
            logp = steps.step(going, [tokens[place] for place in going], [positions[place] for place in going])
    return [answers[row] for row in range(len(batch.prompts))]


class _PlainSteps:
    """One-token steps of the rows of a cache. Rows that end leave it."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder, self.cache = decoder, cache

    def step(self, going: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Log-probabilities (G, V) behind one more token of each row in `going`: places among those of the last
        step."""
        cache, device = self.cache, self.decoder.base.device
        full = cache.longest + 1 > cache.capacity
        if len(going) < len(cache.lengths) or full:
            cache = self.cache = cache.select(going, cache.capacity * 3 // 2 if full else cache.capacity)
        hidden = self.decoder.forward(
            torch.tensor(tokens, device=device)[:, None],
            torch.tensor(positions, device=device)[:, None],
            torch.ones(len(going), dtype=torch.long, device=device),
            cache,
            cache.longest + 1,
        )
        return self.decoder.log_probabilities(hidden[:, 0])


class _RecordedSteps:
    """The same on a GPU by a recording. Rows that have ended stay, and write on behind their answers.

    Where a recording cannot be made (too little memory, a kernel that cannot be recorded) plain steps go on.
    """

    def __init__(self, batch: PromptBatch) -> None:
        longest = max(rows * (columns + 1) + 2 for rows, columns in batch.limits)
        self.decoder, self.cache = batch.decoder, batch.rewind_with_room(min(longest, RECORDED_ROOM))
        self.places = list(range(len(batch.prompts)))
        self.recorded: Recorded | None = None
        self.plain: _PlainSteps | None = None

    def step(self, going: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """As `_PlainSteps.step`."""
        if self.plain is not None:
            return self.plain.step(going, tokens, positions)
        self.places = [self.places[place] for place in going]
        if self.recorded is None or self.cache.longest + 1 > self.cache.capacity:
            self._record()
        if self.plain is not None:
            return self.plain.step(range(len(going)), tokens, positions)
        assert self.recorded is not None
        ids = torch.zeros((len(self.cache.lengths), 2), dtype=torch.long)
        ids[self.places, 0] = torch.tensor(tokens)
        ids[self.places, 1] = torch.tensor(positions)
        logp = self.recorded.step(ids[:, :1], ids[:, 1:])
        return logp if len(self.places) == len(logp) else logp[self.places]

    def _record(self) -> None:
        """Record the steps, in a larger copy of the cache where it is full."""
        if self.recorded is not None:
            self.cache.lengths, self.recorded = self.recorded.lengths, None
        if self.cache.longest + 1 > self.cache.capacity:
            self.cache = self.cache.select(range(len(self.cache.lengths)), self.cache.capacity * 3 // 2)
        try:
            self.recorded = Recorded(self.decoder, self.cache)
        except RuntimeError as error:
            recording_failed(self.decoder.base, error)
            self.plain = _PlainSteps(self.decoder, self.cache.select(self.places, self.cache.capacity))
