"""Training sequences packed into rows and batches of few shapes."""

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
    """ids: (B, T) uint8. positions: (B, T) int32. places: (N,) int64, targets in the flat ids. tokens, sequences: how
    many real ones there are. squares: sum of the squared lengths of the sequences. starts: (K,) int32 for a packed row
    (B = 1), where its sequences start, then pieces of its padding, then T until K."""

    ids: NDArray[np.uint8]
    positions: NDArray[np.int32]
    places: NDArray[np.int64]
    tokens: int
    sequences: int
    squares: int
    starts: NDArray[np.int32] | None = None

    def row_of_targets(self) -> NDArray[np.int64]:
        """(N,) the number of the sequence, from 0, that each target belongs to."""
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
    """Whole sequences one after the other in one row of `length` tokens, padding at its end.

    longest: tokens that nothing in the row exceeds; padding is cut to it, because attention is told so.
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
    """Most sequences of a packed row: fixed, so that every row has the same shapes."""
    return max(1, length // 64)


def packed_rows(sequences: Sequence[TokenSequence], length: int) -> list[list[TokenSequence]]:
    """Sequences, in their order, cut into rows that each hold at most `length` tokens."""
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
    """Full batches of a few shapes: as many rows of a length as the budget allows, at least one.

    What does not fill a batch of its length goes on with the next length; of the longest, the rest is dropped.
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
