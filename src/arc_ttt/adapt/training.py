"""The test-time training loop. Stops at a Deadline.

A step is a list of sequences. They pass through the model in micro-batches of similar length under a token budget;
logits are computed at targets only; gradients are those of the mean cross-entropy over all targets of the step.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch

from arc_ttt.adapt.batches import collate, cross_entropy_sum, micro_batches
from arc_ttt.deadline import Deadline
from arc_ttt.errors import TrainingDiverged
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import TttSettings


class TrainingEnd(StrEnum):
    """Why a training ended."""

    FINISHED = "finished"
    """All its steps are done."""
    LEARNED = "learned"
    """The loss is so low that more steps would change nothing."""
    DEADLINE = "deadline"
    """Its time was over."""
    FAILED = "failed"
    """It diverged, or did not fit the memory; the adapter is the untrained one."""


@dataclass(slots=True)
class TrainingReport:
    """What a training did.

    Args:
        steps: optimizer steps that it did.
        tokens: tokens that it trained on.
        losses: one for each step that counted, nats a target.
        stopped_by: why it ended.
        error: what went wrong, if it failed.
        seconds: of the whole training.
        restores: how often it went back to earlier weights at half the learning rate.
        preparing_s: those of its seconds in which steps were recorded.
        planned: steps that it was given.
    """

    steps: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    stopped_by: TrainingEnd = TrainingEnd.FINISHED
    error: str = ""
    seconds: float = 0.0
    restores: int = 0
    preparing_s: float = 0.0
    planned: int = 0

    @property
    def share(self) -> float:
        """Part of the planned steps that it did, 0 to 1; all of them where it had learned before their end."""
        return 1.0 if self.stopped_by is TrainingEnd.LEARNED else self.steps / max(1, self.planned)


def learning_rate_factor(step: int, total: int, settings: TttSettings) -> float:
    """Share of the learning rate at `step` (from 0) of `total`: linear warm-up, then linear to 0.1 or cosine to 0."""
    warmup = max(1, round(settings.warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 - 0.9 * progress


class StepGradients(Protocol):
    """What computes gradients of a micro-batch faster than the plain pass (`recording.RecordedGradients`).

    preparing_s: seconds that it has spent so far on getting ready for new shapes.
    """

    preparing_s: float

    def clear(self) -> None:
        """Set all gradients to 0."""

    def add(self, rows: Sequence[TokenSequence], count: int, scale: float) -> torch.Tensor | None:
        """Add the gradients of `rows`, their loss summed over targets, times `scale`, divided by `count`.

        Returns the loss over `count` (without the scale), good until the next call; None where it cannot.
        """


MOST_RESTORES = 2
"""A training that has gone back to earlier weights this often has diverged when it fails again."""
KEEP_EVERY = 8
"""Steps between copies of the weights to go back to."""
MOST_SKIPPED = 10
"""Steps in a row that a loss scaler may pass over."""


def train(
    base: LoadedModel,
    parameters: Sequence[torch.nn.Parameter],
    steps: Sequence[list[TokenSequence]],
    settings: TttSettings,
    deadline: Deadline,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    recorded: StepGradients | None = None,
) -> TrainingReport:
    """Train `parameters` over `steps` with AdamW; one report, also when the deadline cuts it short.

    A step whose loss or gradients are not finite, or whose loss is far above the first one, does not count: the weights
    go back to those of the last copy, the learning rate is halved, and training goes on with the next step.

    recorded: what computes the gradients of the same parameters on a GPU, where that is faster.

    Raises:
        TrainingDiverged: that happened more than `MOST_RESTORES` times or at every step. The caller resets the adapter.
    """
    report = TrainingReport(planned=len(steps))
    start_s = deadline.clock.now()
    rate = settings.learning_rate
    optimizer, scaler = _optimizer(base, parameters, settings)
    kept = _copies(parameters)
    skipped, fault = 0, ""
    base.training()
    recorded = None if settings.checkpointing else recorded
    _clear(parameters, recorded)
    prepared_s = recorded.preparing_s if recorded is not None else 0.0
    try:
        with _checkpointing(base, settings.checkpointing):
            for number, step in enumerate(steps):
                if deadline.passed():
                    report.stopped_by = TrainingEnd.DEADLINE
                    break
                for group in optimizer.param_groups:
                    group["lr"] = rate * learning_rate_factor(number, len(steps), settings)
                loss = accumulate(base, step, settings.micro_batch_tokens, scaler, recorded, deadline.remaining)
                norm = float(clip_gradients([optimizer], parameters, scaler, settings.clip_norm))
                skipped = skipped + 1 if scaler.is_enabled() and not math.isfinite(norm) else 0
                fault = _fault(number + 1, loss, norm, report.losses, skipped, scales=scaler.is_enabled())
                if fault:
                    if report.restores == MOST_RESTORES:
                        raise TrainingDiverged(fault)
                    report.restores += 1
                    rate, skipped = rate / 2, 0
                    _restore(parameters, kept)
                    _clear(parameters, recorded)
                    optimizer, scaler = _optimizer(base, parameters, settings)
                    continue
                if number % KEEP_EVERY == 0:  # the loss has just shown that these weights are good
                    kept = _copies(parameters)
                update_weights([optimizer], scaler)
                _clear(parameters, recorded)
                report.steps += 1
                report.tokens += sum(len(sequence) for sequence in step)
                report.losses.append(loss)
                on_step(number + 1, loss)
                if report.steps > 3 and sum(report.losses[-4:]) / 4 < settings.stop_loss:
                    report.stopped_by = TrainingEnd.LEARNED
                    break
            if report.restores and not report.steps:
                raise TrainingDiverged(fault)
    finally:
        base.inference()
        report.seconds = deadline.clock.now() - start_s
        report.preparing_s = recorded.preparing_s - prepared_s if recorded is not None else 0.0
    return report


# The parts of a step that pretraining shares (`arc_lab.pretraining.loop`); none of them waits for a GPU


def add_gradients(
    base: LoadedModel, loss_sum: Callable[[], torch.Tensor], count: int, scaler: torch.amp.GradScaler
) -> torch.Tensor:
    """Add the gradients of a micro-batch. Returns the loss over `count`, a detached scalar on the device.

    Args:
        loss_sum: its loss summed over targets, computed when called.
        count: targets of the whole step.
    """
    with torch.autocast(base.device.type, dtype=base.dtype, enabled=base.autocast):
        loss = loss_sum() / max(1, count)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def clip_gradients(
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Iterable[torch.nn.Parameter],
    scaler: torch.amp.GradScaler,
    most: float,
) -> torch.Tensor:
    """Undo the loss scale and scale gradients to a norm of at most `most`, all together. Returns the norm before, a
    scalar on the device."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    return torch.nn.utils.clip_grad_norm_(parameters, most)


def update_weights(optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> None:
    """Step all optimizers, but under a loss scale only where their gradients are finite; then adapt the scale."""
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


def _optimizer(
    base: LoadedModel, parameters: Sequence[torch.nn.Parameter], settings: TttSettings
) -> tuple[torch.optim.AdamW, torch.amp.GradScaler]:
    fused = base.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )
    scales = base.dtype == torch.float16
    scaler = torch.amp.GradScaler(base.device.type, init_scale=settings.loss_scale, enabled=scales)
    scaler.scale(torch.zeros((), device=base.device))  # recorded gradients are scaled elsewhere, and it must exist
    return optimizer, scaler


def _fault(number: int, loss: float, norm: float, losses: Sequence[float], skipped: int, *, scales: bool) -> str:
    """What is wrong with step `number`, or nothing. A loss scaler may pass over some infinite gradients by itself."""
    first = losses[0] if losses else loss
    if not math.isfinite(loss) or loss > 3 * first + 3:
        return f"loss {loss:.3g} at step {number}, {first:.3g} at step 1"
    if (not scales and not math.isfinite(norm)) or skipped > MOST_SKIPPED:
        return f"gradients are not finite at step {number}, loss {loss:.3g}"
    return ""


def _copies(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The weights, on the host: a device has no memory to spare."""
    return [weight.detach().to("cpu", copy=True) for weight in parameters]


@torch.no_grad()
def _restore(parameters: Sequence[torch.nn.Parameter], kept: Sequence[torch.Tensor]) -> None:
    for weight, copy in zip(parameters, kept, strict=True):
        weight.copy_(copy)


def _clear(parameters: Sequence[torch.nn.Parameter], recorded: StepGradients | None) -> None:
    if recorded is not None:
        recorded.clear()
        return
    for weight in parameters:
        weight.grad = None


@contextlib.contextmanager
def _checkpointing(base: LoadedModel, wanted: bool) -> Iterator[None]:
    """Inside, activations are computed again for the backward pass instead of kept; on large models they always are."""
    wanted = wanted and not base.llama.is_gradient_checkpointing
    if wanted:
        base.llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            base.llama.gradient_checkpointing_disable()


def accumulate(
    base: LoadedModel,
    step: Iterable[TokenSequence],
    budget_tokens: int,
    scaler: torch.amp.GradScaler,
    recorded: StepGradients | None = None,
    beat: Callable[[], object] = lambda: None,
) -> float:
    """Add the gradients of one step; returns its mean loss in nats a target. beat: called before each micro-batch, of
    which one of a large model may take a minute."""
    sequences = list(step)
    count = sum(int(sequence.loss_mask[1:].sum()) for sequence in sequences)
    total = torch.zeros((), device=base.device)
    scale = scaler.get_scale() if recorded is not None else 1.0
    for rows in micro_batches(sequences, budget_tokens):
        beat()
        done = recorded.add(rows, count, scale) if recorded is not None else None
        if done is not None:
            total += done
            continue
        batch = collate(rows, base.form.pad, base.device)
        total += add_gradients(base, functools.partial(cross_entropy_sum, base.llama, batch), count, scaler)
    return float(total)
