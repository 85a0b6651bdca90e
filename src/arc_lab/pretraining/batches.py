"""Put training sequences into padded batches, packed rows, and batches of few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arc_ttt.adapt.batches import padded
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import TokenSequence


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences of tokens, padded or packed, for one pass through the model.

    Args:
        ids: (B, T) uint8 tokens.
        positions: (B, T) int32 positions of the tokens.
        places: (N,) int64 indices of the targets in the flattened ids.
        tokens: number of tokens without padding.
        sequences: number of sequences.
        squares: sum of the squared lengths of the sequences.
        starts: None, or for a packed row (B = 1) (K,) int32: where its sequences start, then where pieces of its
            padding start, then T up to the end.
    """

    ids: NDArray[np.uint8]
    positions: NDArray[np.int32]
    places: NDArray[np.int64]
    tokens: int
    sequences: int
    squares: int
    starts: NDArray[np.int32] | None = None

    def row_of_targets(self) -> NDArray[np.int64]:
        """For each target the number of its sequence, from 0: (N,) int64."""
        if self.starts is None:
            return self.places // self.ids.shape[1]
        return np.searchsorted(self.starts, self.places, side="right").astype(np.int64) - 1


def batch_of(sequences: Sequence[TokenSequence], rows: int, length: int) -> Batch:
    """A padded batch of compact sequences."""
    ids, positions, targets = padded(sequences, CompactFormat.PAD, rows, length)
    tokens = sum(len(sequence) for sequence in sequences)
    places = np.flatnonzero(targets).astype(np.int64)
    return Batch(ids.astype(np.uint8), positions.astype(np.int32), places, tokens, len(sequences), _squares(sequences))


def packed_row(sequences: Sequence[TokenSequence], length: int, longest: int) -> Batch:
    """Put whole sequences one after the other into one row, with padding at its end.

    Args:
        sequences: the sequences, which must fit.
        length: tokens of the row.
        longest: bound of the sequences' lengths in tokens. Attention relies on it, so padding is cut into pieces of
            this length.
    """
    ids = np.full((1, length), CompactFormat.PAD, dtype=np.uint8)
    positions = np.zeros((1, length), dtype=np.int32)
    targets = np.zeros(length, dtype=np.bool_)
    starts = np.full(most_packed(length) - -length // longest + 1, length, dtype=np.int32)
    at = 0
    for number, sequence in enumerate(sequences):
        stop = at + len(sequence)
        ids[0, at:stop], positions[0, at:stop] = sequence.ids, sequence.positions
        targets[at:stop], targets[at] = sequence.loss_mask, False
        starts[number] = at
        at = stop
    padding = range(at, length, longest)
    starts[len(sequences) : len(sequences) + len(padding)] = padding
    places = np.flatnonzero(targets).astype(np.int64)
    return Batch(ids, positions, places, at, len(sequences), _squares(sequences), starts)


def _squares(sequences: Sequence[TokenSequence]) -> int:
    return sum(len(sequence) ** 2 for sequence in sequences)


def most_packed(length: int) -> int:
    """Most sequences in a packed row of `length` tokens: fixed, so that all rows have the same shapes."""
    return max(1, length // 64)


def packed_rows(sequences: Sequence[TokenSequence], length: int) -> list[list[TokenSequence]]:
    """Divide sequences, in their order, into rows of at most `length` tokens each."""
    rows: list[list[TokenSequence]] = []
    free = 0
    for sequence in sequences:
        if not rows or len(sequence) > free or len(rows[-1]) >= most_packed(length):
            rows.append([])
            free = length
        rows[-1].append(sequence)
        free -= len(sequence)
    return rows


def fixed_shapes(
    sequences: Sequence[TokenSequence], lengths: Sequence[int], batch_tokens: int
) -> list[tuple[list[TokenSequence], tuple[int, int]]]:
    """Divide sequences into full batches of a few shapes: for each length as many rows as the budget allows.

    Sequences that do not fill a batch of their length are padded to the next one. The rest of the longest is dropped.

    Args:
        sequences: the sequences.
        lengths: tokens of the rows, ascending.
        batch_tokens: tokens of a batch; a batch has at least one row.

    Returns:
        For each batch its sequences, and rows and length of its shape.
    """
    batches = []
    waiting: list[TokenSequence] = []
    for below, length in zip((0, *lengths), lengths, strict=False):
        waiting += [s for s in sequences if below < len(s) <= length]
        rows = max(1, batch_tokens // length)
        while len(waiting) >= rows:
            batches.append((waiting[:rows], (rows, length)))
            waiting = waiting[rows:]
    return batches
