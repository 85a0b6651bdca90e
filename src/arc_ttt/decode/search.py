"""Depth-first search for every answer above a probability.

Only tokens that can still lead to a grid are ever taken: rows of one width, at most 30 x 30. Probabilities are those of
the model over its whole vocabulary, not renormalized over the allowed tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from arc_ttt.checkpoints.memory_plan import ROOM
from arc_ttt.deadline import Deadline
from arc_ttt.decode.greedy import Answer
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.formats.format import AnswerCursor


@dataclass(slots=True)
class _Node:
    """An open place of the search: the tokens that may still be tried there, cheapest last."""

    depth: int
    cursor: AnswerCursor
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
    stack = [_Node(0, root, opened(batch.first[row], root, 0.0))]
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
        stack.append(_Node(node.depth + 1, cursor, opened(logp, cursor, nll)))
    return sorted(found, key=lambda answer: answer.nll), True
