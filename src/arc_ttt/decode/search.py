"""Reading answers off the model: greedy over a batch of views, and depth-first for every answer above a probability.

Only tokens that can still lead to a grid are ever taken: rows of one width, at most 30 x 30. Probabilities are those of
the model over its whole vocabulary, not renormalized over the allowed tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arc_ttt.adapt.recording import recording_failed
from arc_ttt.deadline import Deadline
from arc_ttt.decode.decoder import Decoder, KVCache, Recorded
from arc_ttt.errors import SequenceTooLong
from arc_ttt.formats.format import AnswerCursor, TokenSequence
from arc_ttt.tasks.grids import MAX_SIDE, Grid

ROOM = 32  # new places a cache grows by while answers are read
RECORDED_ROOM = 256  # places made at once where steps are recorded: a larger cache needs another recording


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One answer of one row of a prompt batch. nll: nats, closing token included. grid: None if it was cut."""

    row: int
    grid: Grid | None
    nll: float
    reason: str = ""


class PromptBatch:
    """Prompts passed through the model once; answers are read or scored from here as often as wanted.

    The cache keeps the prompts' keys and values; every use begins with a rollback to their lengths.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[TokenSequence],
        limits: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Prefill. limits: most rows and columns of each prompt's answer.

        Raises:
            SequenceTooLong: the prompts do not fit the memory of the device.
        """
        self.decoder = decoder
        self.prompts = list(prompts)
        self.limits = list(limits) if limits is not None else [(MAX_SIDE, MAX_SIDE)] * len(self.prompts)
        device = decoder.base.device
        lengths = [len(prompt) for prompt in prompts]
        self.longest = max(lengths)
        ids = np.full((len(prompts), self.longest), decoder.base.form.pad, dtype=np.int64)
        positions = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)], positions[row, : len(prompt)] = prompt.ids, prompt.positions
        self.lengths = torch.tensor(lengths, device=device)
        try:
            self.cache = decoder.new_cache(len(prompts), self.longest + ROOM)
            hidden = decoder.forward(_to(ids, device), _to(positions, device), self.lengths, self.cache, self.longest)
        except torch.OutOfMemoryError as error:
            raise SequenceTooLong(f"{len(prompts)} prompts of up to {self.longest} tokens: {error}") from error
        last = hidden[torch.arange(len(prompts), device=device), self.lengths - 1]
        self.first = decoder.log_probabilities(last)  # (B, V): of the first token of each answer

    def first_rows(self, count: int) -> PromptBatch:
        """The first `count` prompts as a batch of their own, with a copy of their part of the cache."""
        part = copy.copy(self)
        part.prompts, part.limits = self.prompts[:count], self.limits[:count]
        part.lengths, part.first = self.lengths[:count], self.first[:count]
        part.cache = self.rewind().select(range(count), self.cache.capacity)
        return part

    def rewind(self) -> KVCache:
        self.cache.rollback(self.lengths, self.longest)
        return self.cache

    def ensure(self, room: int) -> KVCache:
        """Rewind, with places for `room` more tokens behind every prompt."""
        cache = self.rewind()
        if cache.capacity < self.longest + room:
            self.cache = cache.select(range(len(self.prompts)), self.longest + room)
        return self.cache


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
        self.decoder, self.cache = batch.decoder, batch.ensure(min(longest, RECORDED_ROOM))
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


@dataclass(slots=True)
class _Node:
    """An open place of the search: the tokens that may still be tried there, cheapest last."""

    depth: int
    cursor: AnswerCursor
    nll: float
    open: list[tuple[float, int]]


def search(
    batch: PromptBatch, row: int, *, min_probability: float, deadline: Deadline, max_forwards: int = 20_000
) -> tuple[list[Answer], bool]:
    """Every answer of one row with at least `min_probability`, most probable first, and whether that is all.

    Depth-first with an explicit stack. A step back is a rollback of the cache, which costs nothing, so each edge of the
    tree is computed once. The bound prunes safely because a token never makes an answer more probable.
    Source: The ARChitects 2024; the automaton of allowed tokens is ours.
    """
    decoder, form = batch.decoder, batch.decoder.base.form
    device = decoder.base.device
    bound = -math.log(min_probability)
    start = len(batch.prompts[row])
    cache = batch.rewind().select([row], start + ROOM)
    one = torch.ones(1, dtype=torch.long, device=device)

    def opened(logp: torch.Tensor, cursor: AnswerCursor, nll: float) -> list[tuple[float, int]]:
        costs = (-logp).tolist()
        return sorted(((nll + costs[token], int(token)) for token in np.flatnonzero(cursor.allowed())), reverse=True)

    root = form.cursor(batch.prompts[row], batch.limits[row])
    stack = [_Node(0, root, 0.0, opened(batch.first[row], root, 0.0))]
    found: list[Answer] = []
    forwards = 0
    while stack:
        node = stack[-1]
        if not node.open or node.open[-1][0] > bound:
            stack.pop()
            continue
        nll, token = node.open.pop()
        cursor = node.cursor.copy()
        position = cursor.push(token)
        if cursor.done:
            found.append(Answer(row, cursor.reader.grid(), nll))
            continue
        if deadline.passed() or forwards >= max_forwards:
            return sorted(found, key=lambda answer: answer.nll), False
        length = start + node.depth
        if length + 1 > cache.capacity:
            cache = cache.select([0], cache.capacity * 3 // 2)
        cache.rollback(torch.tensor([length], device=device), length)
        hidden = decoder.forward(
            torch.tensor([[token]], device=device), torch.tensor([[position]], device=device), one, cache, length + 1
        )
        forwards += 1
        logp = decoder.log_probabilities(hidden[0, 0])
        stack.append(_Node(node.depth + 1, cursor, nll, opened(logp, cursor, nll)))
    return sorted(found, key=lambda answer: answer.nll), True


def _to(array: np.typing.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
