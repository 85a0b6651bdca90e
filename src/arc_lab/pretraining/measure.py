"""Measure how well a model predicts held-out answers, and how many it writes exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arc_lab.pretraining.batches import Batch, batch_of
from arc_ttt.adapt.batches import micro_batches, target_logits
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.loaded import LoadedModel


def to_device(
    batch: Batch, device: torch.device, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Copy a batch to the device without waiting.

    Args:
        batch: the batch.
        device: the device.
        longest: bound of the sequences' lengths in a packed row, in tokens.

    Returns:
        Ids and positions (B, T) and places (N,), all int64, and the arguments of its attention.
    """

    def on_device(array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    ids, positions, places = (on_device(array).long() for array in (batch.ids, batch.positions, batch.places))
    attention = {} if batch.starts is None else {"starts": on_device(batch.starts), "longest": longest}
    return ids, positions, places, attention


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on some sequences.

    Args:
        right: for each sequence, whether the most likely token is right at every target, as greedy decoding needs.
        loss: mean negative log-likelihood of all targets, in nats.
    """

    right: list[bool]
    loss: float


@torch.no_grad()
def measured_match(base: LoadedModel, sequences: Sequence[TokenSequence], batch_tokens: int = 8192) -> Measured:
    """Exact match and loss of sequences. It waits for the device, and uses no compiled layers."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    lists = micro_batches([sequences[i] for i in order], batch_tokens)
    training = base.llama.training
    base.llama.eval()
    right: list[bool] = []
    total, targets = 0.0, 0
    with torch.compiler.set_stance("force_eager"):
        for rows in lists:
            batch = batch_of(rows, len(rows), max(map(len, rows)))
            ids, positions, places, _ = to_device(batch, base.device, 0)
            with torch.autocast(base.device.type, dtype=base.dtype, enabled=base.autocast):
                logits, wanted = target_logits(base.llama, ids, positions, places)
            wrong = (logits.argmax(-1) != wanted).cpu().numpy()
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            targets += len(wrong)
            owners = batch.row_of_targets()
            right += [not bool(wrong[owners == row].any()) for row in range(batch.sequences)]
    base.llama.train(training)
    return Measured([right[int(place)] for place in np.argsort(order)], total / max(1, targets))


def exact_match(base: LoadedModel, sequences: Sequence[TokenSequence], batch_tokens: int = 8192) -> list[bool]:
    """`Measured.right` of sequences."""
    return measured_match(base, sequences, batch_tokens).right
