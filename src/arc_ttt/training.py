"""The training loop, for pretraining and for test-time training alike. Stops at a Deadline.

A step is a list of sequences. They pass through the model in micro-batches of similar length under a token budget;
logits are computed at targets only; gradients are those of the mean cross-entropy over all targets of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arc_ttt.deadline import Deadline
from arc_ttt.errors import TrainingDiverged
from arc_ttt.formats import TokenSequence
from arc_ttt.model import LoadedModel, attend_without_mask, hidden_states
from arc_ttt.settings import TttSettings

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, positions (B, T) int64; targets (B, T) bool


@dataclass(slots=True)
class TrainingReport:
    """What a training did. losses: one a step, nats a target. stopped_by: finished, learned or deadline."""

    steps: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    stopped_by: str = "finished"
    seconds: float = 0.0


def collate(sequences: Sequence[TokenSequence], pad: int, device: torch.device) -> Batch:
    """Right-padded tensors of some sequences."""
    ids, positions, targets = padded(sequences, pad, len(sequences), max(len(sequence) for sequence in sequences))
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(targets).to(device),
    )


def padded(
    sequences: Sequence[TokenSequence], pad: int, rows: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Ids, positions and targets, (rows, length) each, padded to the right and below."""
    ids = np.full((rows, length), pad, dtype=np.int64)
    positions = np.zeros((rows, length), dtype=np.int64)
    targets = np.zeros((rows, length), dtype=np.bool_)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence.ids
        positions[row, : len(sequence)] = sequence.positions
        targets[row, : len(sequence)] = sequence.loss_mask
    targets[:, 0] = False  # nothing stands before the first token to predict it
    return ids, positions, targets


def micro_batches(sequences: Sequence[TokenSequence], budget_tokens: int) -> list[list[TokenSequence]]:
    """Sequences sorted by length and cut so that rows x longest row stays within the budget (one row always may)."""
    batches: list[list[TokenSequence]] = []
    for sequence in sorted(sequences, key=len):
        if batches and (len(batches[-1]) + 1) * len(sequence) <= budget_tokens:
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


def cross_entropy_sum(llama: Any, batch: Batch) -> torch.Tensor:
    """Sum over targets of the negative log-likelihood, nats. Logits exist at targets only."""
    ids, positions, targets = batch
    logits, wanted = target_logits(llama, ids, positions, targets.flatten().nonzero()[:, 0])
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")


def target_logits(
    llama: Any, ids: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, **attention: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, V) in float32 at some targets, and the targets themselves (N,).

    places: (N,) int64, where the targets stand in `ids` (B, T) laid out flat; none is first in its row. With places
    that the host has counted, nothing here waits for a GPU. attention: as for `hidden_states`.
    """
    hidden = hidden_states(llama, ids, positions, **attention).flatten(0, 1)[places - 1]
    return llama.lm_head(hidden).float(), ids.flatten()[places]


def shuffled_steps(
    sequences: Sequence[TokenSequence], *, epochs: int, batch_sequences: int, rng: np.random.Generator
) -> list[list[TokenSequence]]:
    """Steps of `batch_sequences` sequences, newly shuffled each epoch; the last step of an epoch may be smaller."""
    steps = []
    for _ in range(epochs):
        order = rng.permutation(len(sequences))
        for start in range(0, len(order), batch_sequences):
            steps.append([sequences[int(i)] for i in order[start : start + batch_sequences]])
    return steps


def learning_rate_factor(step: int, total: int, settings: TttSettings) -> float:
    """Share of the learning rate at `step` (from 0) of `total`: linear warm-up, then linear to 0.1 or cosine to 0."""
    warmup = max(1, round(settings.warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 - 0.9 * progress


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
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        attend_without_mask(base.llama)

    def clear(self) -> None:
        """Set all gradients to 0."""
        torch._foreach_zero_(self.gradients)
        for weight, gradient in zip(self.parameters, self.gradients, strict=True):
            weight.grad = gradient

    def add(self, rows: Sequence[TokenSequence], count: int, scale: float) -> torch.Tensor | None:
        """Add the gradients of `rows`, their loss summed over targets, times `scale`, divided by `count`.

        Returns the loss over `count` (without the scale), good until the next call; None where the shape is too large.
        """
        shape = recorded_shape(len(rows), max(map(len, rows)))
        if shape[0] * shape[1] > RECORDED_TOKENS:
            return None
        recording = self._recordings.get(shape)
        self.scale.fill_(scale)
        if recording is None:
            recording = self._recordings[shape] = _Recording(self, *shape, self._pool)
        return recording.replay(rows, count)


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

        kept = [gradient.clone() for gradient in owner.gradients]
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # what libraries set up at their first call must not be recorded
            run()
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(self.graph, pool=pool):
            self.loss = run()
        torch._foreach_copy_(owner.gradients, kept)

    def replay(self, rows: Sequence[TokenSequence], count: int) -> torch.Tensor:
        ids, positions, targets = padded(rows, self.pad, *self.ids.shape)
        self.ids.copy_(torch.from_numpy(ids))
        self.positions.copy_(torch.from_numpy(positions))
        self.weights.copy_(torch.from_numpy(targets.astype(np.float32) / max(1, count)))
        self.graph.replay()
        return self.loss


def recorded_shape(rows: int, length: int) -> tuple[int, int]:
    """The shape that a micro-batch is padded to: rows a power of two, lengths in steps of about an eighth."""
    step = max(32, 1 << max(0, length.bit_length() - 4))
    return 1 << (rows - 1).bit_length(), -(-length // step) * step


RECORDED_TOKENS = 16_384  # of a micro-batch


def train(
    base: LoadedModel,
    parameters: Sequence[torch.nn.Parameter],
    steps: Sequence[list[TokenSequence]],
    settings: TttSettings,
    deadline: Deadline,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    recorded: RecordedGradients | None = None,
) -> TrainingReport:
    """Train `parameters` over `steps` with AdamW; one report, also when the deadline cuts it short.

    recorded: what computes the gradients of the same parameters on a GPU, where that is faster.

    Raises:
        TrainingDiverged: a loss is NaN, or far above the first one. The caller resets the adapter.
    """
    report = TrainingReport()
    start_s = deadline.clock.now()
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=base.device.type == "cuda"
    )
    scaler = torch.amp.GradScaler(base.device.type, init_scale=settings.loss_scale, enabled=base.dtype == torch.float16)
    base.llama.train()
    if recorded is not None:
        recorded.clear()
    try:
        for number, step in enumerate(steps):
            if deadline.passed():
                report.stopped_by = "deadline"
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(number, len(steps), settings)
            loss = accumulate(base, step, settings.micro_batch_tokens, scaler, recorded)
            scaler.unscale_(optimizer)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm))
            if not scaler.is_enabled() and not math.isfinite(norm):  # a scaler passes over such steps by itself
                raise TrainingDiverged(f"gradients are not finite at step {number + 1}, loss {loss:.3g}")
            scaler.step(optimizer)
            scaler.update()
            if recorded is not None:
                recorded.clear()
            else:
                optimizer.zero_grad(set_to_none=True)
            report.steps += 1
            report.tokens += sum(len(sequence) for sequence in step)
            report.losses.append(loss)
            if not math.isfinite(loss) or loss > 3 * report.losses[0] + 3:
                raise TrainingDiverged(f"loss {loss:.3g} at step {number + 1}, {report.losses[0]:.3g} at step 1")
            on_step(number + 1, loss)
            if number >= 3 and sum(report.losses[-4:]) / 4 < settings.stop_loss:
                report.stopped_by = "learned"
                break
    finally:
        base.llama.eval()
        report.seconds = deadline.clock.now() - start_s
    return report


def accumulate(
    base: LoadedModel,
    step: Iterable[TokenSequence],
    budget_tokens: int,
    scaler: torch.amp.GradScaler,
    recorded: RecordedGradients | None = None,
) -> float:
    """Add the gradients of one step; returns its mean loss in nats a target."""
    sequences = list(step)
    count = sum(int(sequence.loss_mask[1:].sum()) for sequence in sequences)
    total = torch.zeros((), device=base.device)
    scale = scaler.get_scale() if recorded is not None else 1.0
    for rows in micro_batches(sequences, budget_tokens):
        done = recorded.add(rows, count, scale) if recorded is not None else None
        if done is not None:
            total += done
            continue
        batch = collate(rows, base.form.pad, base.device)
        with torch.autocast(base.device.type, dtype=base.dtype, enabled=base.autocast):
            loss = cross_entropy_sum(base.llama, batch) / max(1, count)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)
