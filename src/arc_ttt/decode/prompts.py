"""Prompts of test inputs under views, batched and passed through the model once."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch

from arc_ttt.checkpoints.memory_plan import ROOM
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.kv_cache import KVCache
from arc_ttt.errors import SequenceTooLong
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.tasks.grids import MAX_SIDE, Task
from arc_ttt.tasks.views import View

SHORTEST_PROMPT = 16
"""Tokens; below this length nothing is left to answer from."""


def fit_prompt(base: LoadedModel, task: Task, index: int, view: View, max_tokens: int) -> TokenSequence:
    """The prompt of a test input under a view, without its first demonstrations where it would not fit.

    Room is kept for an answer as large as the largest grid of the task, closing tokens included.

    Raises:
        SequenceTooLong: the test input alone does not fit.
    """
    demonstrations = view.demonstrations(task)
    query = view.apply(task.tests[index])
    grids = [task.tests[index], *(grid for e in task.train for grid in (e.input, e.output))]
    largest = view.apply(max(grids, key=lambda grid: grid.size))
    room = len(base.form.answer_ids(base.form.encode((), query), largest)[0]) + 8
    for start in range(len(demonstrations) + 1):
        prompt = base.form.encode(demonstrations[start:], query)
        if len(prompt) + room <= max_tokens:
            return prompt
    raise SequenceTooLong(f"test input {index + 1} alone needs {len(prompt) + room} tokens of {max_tokens}")


def answer_limits(task: Task, index: int) -> tuple[int, int]:
    """Most rows and columns that an answer is given room for: a model that has lost its way would write 30 x 30.

    Twice the largest output of a demonstration, or as much larger than the test input as any output is than its
    input, whichever is more. Source: ours; no answer of the 400 training tasks is larger.
    """
    if not task.train:
        return MAX_SIDE, MAX_SIDE
    limits = []
    for axis in (0, 1):
        largest = max(e.output.shape[axis] for e in task.train)
        growth = max(e.output.shape[axis] / e.input.shape[axis] for e in task.train)
        limits.append(min(MAX_SIDE, max(2 * largest, math.ceil(growth * task.tests[index].shape[axis]))))
    return limits[0], limits[1]


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
        """Pass the prompts through the model. limits: most rows and columns of each prompt's answer."""
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
        self.cache = decoder.new_cache(len(prompts), self.longest + ROOM)
        hidden = decoder.forward(_to(ids, device), _to(positions, device), self.lengths, self.cache, self.longest)
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

    def rewind_with_room(self, room: int) -> KVCache:
        """Rewind, with places for `room` more tokens behind every prompt."""
        cache = self.rewind()
        if cache.capacity < self.longest + room:
            self.cache = cache.select(range(len(self.prompts)), self.longest + room)
        return self.cache


def _to(array: np.typing.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
