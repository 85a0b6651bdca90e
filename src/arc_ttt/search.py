"""Reading answers off the model: greedy over a batch of views, and depth-first for every answer above a probability.

Only tokens that can still lead to a grid are ever taken: rows of one width, at most 30 x 30. Probabilities are those of
the model over its whole vocabulary, not renormalized over the allowed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arc_ttt.deadline import Deadline
from arc_ttt.errors import SequenceTooLong
from arc_ttt.formats import AnswerCursor, TokenSequence
from arc_ttt.grids import MAX_SIDE, Grid
from arc_ttt.kv_cache import Decoder, KVCache

ROOM = 32  # new places a cache grows by while answers are read


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
    """The greedy answer of every row. Rows that end leave the batch. Cut rows have no grid and a reason."""
    decoder, form = batch.decoder, batch.decoder.base.form
    device = decoder.base.device
    rows = list(range(len(batch.prompts)))
    cursors = [form.cursor(prompt, limits) for prompt, limits in zip(batch.prompts, batch.limits, strict=True)]
    nll = [0.0] * len(rows)
    answers: dict[int, Answer] = {}
    cache = batch.rewind()
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
        if not going:
            break
        if deadline.passed():
            for place in going:
                answers[rows[place]] = Answer(rows[place], None, nll[rows[place]], "the deadline came first")
            break
        if len(going) < len(rows) or cache.longest + 1 > cache.capacity:
            room = cache.capacity if cache.longest + 1 <= cache.capacity else cache.capacity * 3 // 2
            cache = cache.select(going, room)
            rows = [rows[place] for place in going]
            tokens = [tokens[place] for place in going]
            positions = [positions[place] for place in going]
        hidden = decoder.forward(
            torch.tensor(tokens, device=device)[:, None],
            torch.tensor(positions, device=device)[:, None],
            torch.ones(len(rows), dtype=torch.long, device=device),
            cache,
            cache.longest + 1,
        )
        logp = decoder.log_probabilities(hidden[:, 0])
    return [answers[row] for row in range(len(batch.prompts))]


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
