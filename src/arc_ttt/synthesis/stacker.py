"""Explain outputs by stacking pieces: a greedy decision list (the idea is icecuber's).

Each layer shows one piece where the piece is not background, where it is, or everywhere; in the piece's own colours or
in one colour. A layer may be used only where it is never wrong on cells that no earlier layer has settled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.budget import Budget
from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import Cells, Size, embed
from arc_ttt.synthesis.pieces import Piece

MAX_LAYERS = 7
MEMORY_FOR_RULES = 0.15
"""Share of the memory that pieces leave to cell rules."""
LAYER_COST = 5
Bits = NDArray[np.uint64]  # (rows, words): one bit for each output cell of the demonstrations


@dataclass(frozen=True, slots=True)
class Stack:
    """A solution in the frame of the problem.

    Args:
        answers: (H, W) for each test input.
        fits: demonstrations that it reproduces.
        cost: sum of its layers' costs.
        depth: cost of its deepest piece.
    """

    answers: tuple[Cells, ...]
    program: str
    fits: int
    cost: int
    depth: int
    layers: int


@dataclass(frozen=True, slots=True)
class _Layer:
    row: int
    where: str  # "not 0", "0" or "all"
    colour: int | None  # None: the piece's own colours


class Pieces:
    """All different pieces laid on the output grids, as a matrix of cells and as packed bits.

    At least the first piece is kept, the others as far as memory and time allow.
    """

    def __init__(self, problem: Problem, sizes: list[Size], pieces: Sequence[Piece], budget: Budget) -> None:
        self.sizes = sizes
        self.demonstrations = len(problem.outputs)
        self.target = np.concatenate([cells.ravel() for cells in problem.outputs])
        self.ends = np.cumsum([rows * columns for rows, columns in sizes])
        self.stored_bytes = 0
        kept: dict[bytes, tuple[NDArray[np.int8], int, str]] = {}
        for piece in pieces:
            if kept and budget.spent():
                break
            for line, name in laid_out(piece, sizes):
                key = line.tobytes()
                size = 3 * len(key) + 300  # the line, its key, and its row of the matrix
                if key in kept:
                    continue
                if budget.store(size, leave=MEMORY_FOR_RULES):
                    self.stored_bytes += size
                elif kept:
                    continue
                kept[key] = (line, piece.cost, name)
        rows = sorted(kept.values(), key=lambda row: row[1])
        self.cells = np.stack([row[0] for row in rows])  # (rows, all output cells)
        self.costs = np.array([row[1] for row in rows])
        self.names = [row[2] for row in rows]
        shown = self.cells[:, : len(self.target)]
        self.full = pack(shown != 0)
        self.wrong = pack(shown != self.target)
        self.colours = np.unique(self.target)
        self.not_colour = {int(c): pack((self.target != c)[None])[0] for c in self.colours}
        self.everything: Bits = pack(np.ones((1, len(self.target)), dtype=bool))[0]

    def close(self, budget: Budget) -> None:
        """Give the booked memory back; the pieces must not be used any more."""
        budget.release(self.stored_bytes)
        self.stored_bytes = 0

    def cells_of(self, demonstrations: Sequence[int]) -> Bits:
        """The bits of the outputs of these demonstrations, (words,)."""
        mask = np.zeros((1, len(self.target)), dtype=bool)
        for number in demonstrations:
            mask[0, self.ends[number - 1] if number else 0 : self.ends[number]] = True
        bits: Bits = pack(mask)[0]
        return bits

    def helpful(self, pictures: Sequence[Cells], number: int) -> list[int]:
        """Rows that may help to turn these pictures (of the outputs' sizes) into the outputs, up to 2 x `number`.

        Half of them show the right colours where the pictures are wrong, half mark the place of those cells.
        """
        shown = np.concatenate([cells.ravel() for cells in pictures])[: len(self.target)]
        changed = pack((shown != self.target)[None])[0]
        total = max(1, int(np.bitwise_count(changed).sum()))
        right = np.bitwise_count(~self.wrong & changed).sum(axis=1, dtype=np.int64) / total
        rest = np.bitwise_count(self.wrong & ~changed).sum(axis=1, dtype=np.int64) / len(self.target)
        both = np.bitwise_count(self.full & changed).sum(axis=1, dtype=np.int64)
        either = np.bitwise_count(self.full | changed).sum(axis=1, dtype=np.int64)
        price = self.costs * 0.002
        chosen: dict[bytes, int] = {}
        for score, bits in (
            (right - 0.3 * rest - price, self.wrong),
            (both / np.maximum(either, 1) - price, self.full),
        ):
            seen: set[bytes] = set()
            for row in np.argsort(-score, kind="stable")[: 4 * number]:
                if len(seen) < number and bits[row].tobytes() not in seen:
                    seen.add(bits[row].tobytes())
                    chosen.setdefault(self.cells[row].tobytes(), int(row))
        return list(chosen.values())

    def split(self, line: NDArray[np.int8]) -> list[Cells]:
        """A row of cells as one grid for each input."""
        return [part.reshape(size) for part, size in zip(np.split(line, self.ends[:-1]), self.sizes, strict=True)]


def laid_out(piece: Piece, sizes: list[Size]) -> Iterator[tuple[NDArray[np.int8], str]]:
    """The piece on the output grids: where it lies, and at the corner when its sizes are those of the outputs."""
    yield np.concatenate([embed(i, s).cells.ravel() for i, s in zip(piece.state, sizes, strict=True)]), piece.program
    moved = any(image.y or image.x for image in piece.state)
    if moved and all(image.cells.shape == size for image, size in zip(piece.state, sizes, strict=True)):
        yield np.concatenate([image.cells.ravel() for image in piece.state]), f"{piece.program} > to_origin"


def pack(bits: NDArray[np.bool_]) -> Bits:
    """(rows, cells) as (rows, words of 64 cells); missing cells are 0."""
    packed = np.packbits(bits, axis=1)
    padded = np.zeros((len(bits), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def stacks(pieces: Pieces, caps: Sequence[int], wanted: Sequence[int], budget: Budget) -> list[Stack]:
    """Decision lists that reproduce the wanted demonstrations, with pieces up to each of these costs."""
    found: list[Stack] = []
    goal = pieces.cells_of(wanted)
    for cap in caps:
        count = int(np.searchsorted(pieces.costs, cap, side="right"))
        if not count or budget.spent():
            continue
        banned: frozenset[int] = frozenset()
        for _ in range(2):
            layers = greedy(pieces, goal, count, banned, budget)
            if not layers:
                break
            found.append(finish(pieces, layers))
            banned |= {layers[0].row}
    return found


def greedy(pieces: Pieces, goal: Bits, count: int, banned: frozenset[int], budget: Budget) -> list[_Layer] | None:
    """Layers that settle all cells of `goal` rightly, each settling as many as it can; None when that fails."""
    left = goal.copy()
    full, wrong = pieces.full[:count], pieces.wrong[:count]
    layers: list[_Layer] = []
    while left.any():
        if len(layers) == MAX_LAYERS or budget.spent():
            return None
        best: tuple[float, _Layer] | None = None
        for where, colour, active, bad in _variants(pieces, full, wrong):
            valid = np.atleast_1d(~(bad & left).any(axis=1))
            if banned and not layers:
                valid[list(banned)] = False
            rows = np.flatnonzero(valid)
            if not len(rows):
                continue
            gains = np.bitwise_count(active[rows] & left).sum(axis=1, dtype=np.int64)
            score = gains - pieces.costs[rows] * 1e-3 - (colour is not None) * 1e-3
            at = int(score.argmax())
            if gains[at] and (best is None or score[at] > best[0]):
                best = float(score[at]), _Layer(int(rows[at]), where, colour)
        if best is None:
            return None
        layers.append(best[1])
        left &= ~_active(pieces, best[1])
    return layers


def _variants(pieces: Pieces, full: Bits, wrong: Bits) -> Iterator[tuple[str, int | None, Bits, Bits]]:
    empty = ~full
    yield "all", None, np.broadcast_to(pieces.everything, full.shape), wrong
    yield "not 0", None, full, full & wrong
    for colour, other in pieces.not_colour.items():
        yield "not 0", colour, full, full & other
        yield "0", colour, empty, empty & other


def _active(pieces: Pieces, layer: _Layer) -> Bits:
    if layer.where == "all":
        return pieces.everything
    full: Bits = pieces.full[layer.row]
    return full if layer.where == "not 0" else ~full


def finish(pieces: Pieces, layers: list[_Layer]) -> Stack:
    """Lay the layers on all outputs; cells that none settles become background."""
    line = np.full(pieces.cells.shape[1], -1, dtype=np.int8)
    steps = []
    for layer in layers:
        cells = pieces.cells[layer.row]
        where = {"all": np.ones_like(cells, dtype=bool), "not 0": cells != 0, "0": cells == 0}[layer.where]
        np.copyto(line, cells if layer.colour is None else np.int8(layer.colour), where=where & (line == -1))
        colours = "" if layer.colour is None else f" in colour {layer.colour}"
        steps.append(f"where [{pieces.names[layer.row]}] is {layer.where}: show it{colours}")
    line[line == -1] = 0
    right = line[: len(pieces.target)] == pieces.target
    starts = np.concatenate(([0], pieces.ends[: pieces.demonstrations - 1]))
    fits = int(np.logical_and.reduceat(right, starts).sum())
    costs = [int(pieces.costs[layer.row]) for layer in layers]
    answers = tuple(pieces.split(line)[pieces.demonstrations :])
    return Stack(answers, "; else ".join(steps), fits, sum(costs) + LAYER_COST * len(layers), max(costs), len(layers))
