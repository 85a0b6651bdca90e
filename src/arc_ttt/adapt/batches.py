"""Batches of token sequences, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arc_ttt.checkpoints.memory_formulas import PIECE
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.attention import hidden_states

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, positions (B, T) int64; targets (B, T) bool


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
    """Sum over targets of the negative log-likelihood, nats. Logits exist at targets only.

    With a large vocabulary they exist a piece at a time and are computed anew in the backward pass: at 128,000 tokens
    of vocabulary those of 3,000 targets would take 4.6 GB.
    """
    ids, positions, targets = batch
    places = targets.flatten().nonzero()[:, 0]
    rows = max(1, PIECE // llama.config.vocab_size)
    if len(places) <= rows:
        logits, wanted = target_logits(llama, ids, positions, places)
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    from torch.utils.checkpoint import checkpoint

    hidden = hidden_states(llama, ids, positions).flatten(0, 1)[places - 1]
    wanted = ids.flatten()[places]
    pieces = [
        checkpoint(_piece_loss, llama.lm_head, hidden[i : i + rows], wanted[i : i + rows], use_reentrant=False)
        for i in range(0, len(places), rows)
    ]
    return torch.stack(pieces).sum()


def _piece_loss(head: Any, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), wanted, reduction="sum")


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
