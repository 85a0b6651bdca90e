"""Gradients of training steps by CUDA graphs: for small models, whose steps are mostly launches of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from arc_ttt.adapt.batches import padded
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.attention import attend_without_mask, hidden_states
from arc_ttt.model.cuda import recording_failed, warm_up
from arc_ttt.model.loaded import LoadedModel

RECORDED_TOKENS = 16_384
"""Tokens of a micro-batch whose step is recorded."""
MOST_RECORDINGS = 48
"""Recordings kept at once."""


class RecordedGradients:
    """Gradients of micro-batches on a GPU: forward and backward pass are recorded as a CUDA graph for each of a few
    shapes and replayed from then on, task after task. Small models spend most of a step launching kernels otherwise.

    parameters: what is trained; their values may change in place, their tensors must stay. Micro-batches are padded to
    a shape; those of more than RECORDED_TOKENS are left to the plain pass, which they keep busy enough.
    """

    def __init__(self, base: LoadedModel, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.base = base
        self.parameters = list(parameters)
        self.gradients = [torch.zeros_like(weight) for weight in parameters]
        self.scale = torch.ones((), device=base.device)
        self.preparing_s = 0.0
        self._recordings: dict[tuple[int, int], _Recording | None] = {}
        self._pool = torch.cuda.graph_pool_handle()
        attend_without_mask(base.llama)

    def clear(self) -> None:
        """Set all gradients to 0."""
        torch._foreach_zero_(self.gradients)
        for weight, gradient in zip(self.parameters, self.gradients, strict=True):
            weight.grad = gradient

    def add(self, rows: Sequence[TokenSequence], count: int, scale: float) -> torch.Tensor | None:
        """As `training.StepGradients.add`; None where the shape is too large."""
        shape = recorded_shape(len(rows), max(map(len, rows)))
        if not self.base.record or shape[0] * shape[1] > RECORDED_TOKENS:
            return None
        self.scale.fill_(scale)
        if shape not in self._recordings:
            if len(self._recordings) >= MOST_RECORDINGS:
                self._recordings.pop(next(iter(self._recordings)))
            start_s = REAL_CLOCK.now()
            self._recordings[shape] = self._record(shape)
            self.preparing_s += REAL_CLOCK.now() - start_s
        recording = self._recordings[shape] = self._recordings.pop(shape)  # the one used last goes last
        return recording.replay(rows, count) if recording is not None else None

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        self._recordings.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def _record(self, shape: tuple[int, int]) -> _Recording | None:
        """A recording that leaves the gradients as they are; None where it cannot be made: for this shape where memory
        does not suffice, for all where a kernel cannot be recorded. The plain pass does it then."""
        kept = [gradient.clone() for gradient in self.gradients]
        made: _Recording | None = None
        try:
            made = _Recording(self, *shape, self._pool)
        except RuntimeError as error:
            recording_failed(self.base, error)  # raises where nothing works on the device any more
        torch._foreach_copy_(self.gradients, kept)
        return made


class _Recording:
    """Forward and backward pass of one shape (B, T)."""

    def __init__(self, owner: RecordedGradients, rows: int, length: int, pool: Any) -> None:
        self.pad, device = owner.base.form.pad, owner.base.device
        self.ids = torch.zeros((rows, length), dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.weights = torch.zeros((rows, length), device=device)  # 1 / count at targets
        self.graph = torch.cuda.CUDAGraph()
        base, llama = owner.base, owner.base.llama

        def run() -> torch.Tensor:
            with torch.autocast(device.type, dtype=base.dtype, enabled=base.autocast, cache_enabled=False):
                hidden = hidden_states(llama, self.ids, self.positions)[:, :-1]
                logits = llama.lm_head(hidden).float()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), self.ids[:, 1:].flatten(), reduction="none"
            )
            loss = (losses * self.weights[:, 1:].flatten()).sum()
            (loss * owner.scale).backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        warm_up(device, run)
        with torch.cuda.graph(self.graph, pool=pool):
            self.loss = run()

    def replay(self, rows: Sequence[TokenSequence], count: int) -> torch.Tensor:
        ids, positions, targets = padded(rows, self.pad, *self.ids.shape)
        self.ids.copy_(torch.from_numpy(ids))
        self.positions.copy_(torch.from_numpy(positions))
        self.weights.copy_(torch.from_numpy(targets.astype(np.float32) / max(1, count)))
        self.graph.replay()
        return self.loss


def recorded_shape(rows: int, length: int) -> tuple[int, int]:
    """The shape that a micro-batch is padded to: as many rows, lengths in steps of about an eighth."""
    step = max(32, 1 << max(0, length.bit_length() - 4))
    return rows, -(-length // step) * step
