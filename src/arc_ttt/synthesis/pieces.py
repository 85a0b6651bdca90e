"""Breadth-first search for pieces: programs that give an image for every grid of a task.

A program is evaluated on all demonstrations and test inputs together, so every piece is defined everywhere. Two
programs that give the same images everywhere are one piece (observational equivalence); the cheaper one is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from arc_ttt.synthesis.budget import Budget
from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import MAX_CELLS, Image, Size, State, colour_counts, state_bytes, state_key
from arc_ttt.synthesis.primitives.images import Primitive, fill, halo, hull, smear, unary_primitives
from arc_ttt.synthesis.primitives.others import other_outputs
from arc_ttt.synthesis.primitives.parts import (
    SELECTION_NAMES,
    Cutter,
    Joiner,
    Parts,
    compose_chosen,
    cutters,
    joiners,
    map_parts,
    selections,
)
from arc_ttt.synthesis.primitives.patterns import attract, pattern_primitives, symmetric_about
from arc_ttt.synthesis.primitives.repair import repair, repaired_part
from arc_ttt.synthesis.primitives.scaling import overlay_mirror
from arc_ttt.synthesis.primitives.sized import SizedPrimitive, sized_primitives

CUT_COST = 10
"""Cutting and choosing together count as one step."""
OTHERS_COST = 15
"""Cost of another demonstration's output: it comes late, and few steps follow it."""
PLACED = 2
"""Cost of an input that was only placed on the output."""
MEMORY_FOR_OTHERS = 0.35
"""Share of the memory that the search leaves to stacks and cell rules."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One program and what it gives.

    Args:
        state: an image for each grid.
        cost: 10 for each ordinary step.
        program: steps from the input on, for people.
    """

    state: State
    cost: int
    program: str


class Search:
    """All different pieces up to a cost, in the order in which they are made. Can be continued.

    sizes: of all outputs, test inputs included, or None when they are not known (no sized primitives then).
    """

    def __init__(self, problem: Problem, sizes: list[Size] | None, max_cost: int) -> None:
        self.sizes = sizes
        self.max_cost = max_cost
        self.pieces: list[Piece] = []
        self.numbers: dict[bytes, int] = {}  # of the piece that gives these images
        self.queue: list[tuple[int, int, int, int]] = []  # cost of what it makes, order, piece or ~piece, its own
        self.primitives = unary_primitives(shared_colours(problem))
        self.on_inputs = pattern_primitives() + repairs(problem) + about_colours(problem)
        self.sized: list[SizedPrimitive] = sized_primitives() if sizes else []
        self.cutters: list[Cutter] = cutters()
        self.joiners: list[Joiner] = joiners()
        self.starts = list(starts(problem, sizes))
        self.stored_bytes = 0
        self.full = False

    def run(self, until: int, budget: Budget) -> list[Piece]:
        """Expand pieces as long as what they make costs about `until` at most. Returns all pieces, cheapest first."""
        while self.starts:
            self.add(*self.starts.pop(0), budget)
        while self.queue and self.queue[0][0] <= until and not self.full and not budget.spent():
            _, _, number, cost = heapq.heappop(self.queue)
            piece = self.pieces[max(number, ~number)]
            if cost != piece.cost:
                continue  # a cheaper program was found for it since
            made = self.cut(piece, budget) if number < 0 else self.step(piece, budget)
            for state, cost, program in made:
                self.add(state, cost, program, budget)
                if self.full or budget.spent():
                    break
        return sorted(self.pieces, key=lambda piece: piece.cost)

    def close(self, budget: Budget) -> None:
        """Drop all pieces and give their memory back."""
        self.pieces, self.numbers, self.queue = [], {}, []
        budget.release(self.stored_bytes)
        self.stored_bytes = 0

    def add(self, state: State, cost: int, program: str, budget: Budget) -> None:
        """Keep a piece if it is new, or cheaper than the one that gives the same images, and fits in memory."""
        if any(not 0 < image.cells.size <= MAX_CELLS for image in state):
            return
        key = state_key(state)
        number = self.numbers.get(key, len(self.pieces))
        if number < len(self.pieces):
            if cost >= self.pieces[number].cost:
                return
            self.pieces[number] = Piece(self.pieces[number].state, cost, program)
        else:
            size = state_bytes(state) + len(key) + 100
            self.full = not budget.store(size, leave=MEMORY_FOR_OTHERS)
            if self.full:
                return
            self.stored_bytes += size
            self.numbers[key] = number
            self.pieces.append(Piece(state, cost, program))
        if cost + 2 <= self.max_cost:
            heapq.heappush(self.queue, (cost + 10, number, number, cost))
        if cost + CUT_COST <= self.max_cost:
            heapq.heappush(self.queue, (cost + 12, number, ~number, cost))

    def step(self, piece: Piece, budget: Budget) -> Iterator[tuple[State, int, str]]:
        """What all primitives make of one piece, until the time is up."""
        for primitive in self.primitives + (self.on_inputs if piece.cost <= PLACED else []):
            if budget.spent():
                return
            if piece.cost + primitive.cost <= self.max_cost:
                state = apply_to_all(primitive.apply, piece.state)
                if state is not None:
                    yield state, piece.cost + primitive.cost, f"{piece.program} > {primitive.name}"
        if self.sizes is None:
            return
        for sized in self.sized:
            if budget.spent():
                return
            if piece.cost + sized.cost <= self.max_cost:
                images = []
                for image, size in zip(piece.state, self.sizes, strict=True):
                    placed = sized.apply(image, size)
                    if placed is None:
                        break
                    images.append(placed)
                else:
                    yield tuple(images), piece.cost + sized.cost, f"{piece.program} > {sized.name}"

    def cut(self, piece: Piece, budget: Budget) -> Iterator[tuple[State, int, str]]:
        """All ways to cut one piece and to choose or join the parts, until the time is up."""
        for cutter in self.cutters:
            if budget.spent():
                return
            groups = cut_all(cutter, piece.state)
            if groups is None:
                continue
            name = f"{piece.program} > {cutter.name}"
            cost = piece.cost + CUT_COST
            yield from ((state, cost, f"{name} > {how}") for state, how in choose(groups))
            yield from ((state, cost, f"{name} > {how}") for state, how in join(groups, self.joiners))
            if piece.cost == 0 and cost + 5 <= self.max_cost:
                for primitive in part_primitives():
                    if budget.spent():
                        return
                    mapped = [map_parts(parts, primitive.apply) for parts in groups]
                    if all(mapped):
                        whole = [parts for parts in mapped if parts is not None]
                        for state, how in join(whole, self.joiners[:2]):
                            yield state, cost + 5, f"{name} > each {primitive.name} > {how}"


def shared_colours(problem: Problem) -> tuple[int, ...]:
    """Colours other than 0 that all inputs show."""
    shared = np.logical_and.reduce([colour_counts(cells) > 0 for cells in problem.inputs])
    return tuple(int(colour) for colour in shared.nonzero()[0] if colour)


def starts(problem: Problem, sizes: list[Size] | None) -> Iterator[tuple[State, int, str]]:
    """The pieces that programs begin with: inputs, an empty output, what known outputs share, and outputs of others."""
    yield tuple(Image(cells, 0, 0) for cells in problem.inputs), 0, "input"
    if sizes is None:
        return
    yield tuple(Image(np.zeros(size, dtype=np.int8), 0, 0) for size in sizes), 10, "empty output"
    if len(problem.outputs) > 1 and len({cells.shape for cells in problem.outputs}) == 1 and len(set(sizes)) == 1:
        first = problem.outputs[0]
        shared = np.where(np.logical_and.reduce([cells == first for cells in problem.outputs]), first, 0)
        yield (Image(shared.astype(np.int8), 0, 0),) * len(sizes), 10, "what all outputs share"
    yield from ((state, OTHERS_COST, name) for state, name in other_outputs(problem, sizes))


def repairs(problem: Problem) -> list[Primitive]:
    """Mosaic repairs, for every colour that all inputs show and for the background."""
    found = []
    for colour in (0, *shared_colours(problem)):
        for how in ("both", "period", "symmetry"):
            found.append(Primitive(f"repair {colour} by {how}", partial(repair, colour=colour, how=how)))
            part = partial(repaired_part, colour=colour, how=how)
            found.append(Primitive(f"repaired_part {colour} by {how}", part))
    return found


def about_colours(problem: Problem) -> list[Primitive]:
    """Symmetry about, and attraction towards, the cells of every colour that all inputs show."""
    found = []
    for colour in shared_colours(problem):
        for how in ("rows", "columns", "both", "all"):
            mirror = partial(symmetric_about, colour=colour, how=how)
            found.append(Primitive(f"symmetric_about {colour} {how}", mirror))
        for single in (False, True):
            what = "colour objects" if single else "objects"
            towards = partial(attract, single=single, colour=colour)
            found.append(Primitive(f"attract {what} to {colour}", towards))
    return found


def part_primitives() -> list[Primitive]:
    """What may be done to every part before the parts are put back."""
    found = [Primitive("hull", hull), Primitive("fill 4", partial(fill, eight=False))]
    found += [
        Primitive(f"smear {'+'.join(w)}", partial(smear, directions=w)) for w in (("right", "left"), ("down", "up"))
    ]
    found += [
        Primitive(f"mirror {how}", partial(overlay_mirror, how=how)) for how in ("columns", "rows", "both", "all")
    ]
    return [*found, Primitive("halo 8", partial(halo, eight=True))]


def apply_to_all(function: Callable[[Image], Image | None], state: State) -> State | None:
    """`function` of every image, or None when it does not apply to one of them."""
    images = []
    for image in state:
        made = function(image)
        if made is None:
            return None
        images.append(made)
    return tuple(images)


def cut_all(cutter: Cutter, state: State) -> list[Parts] | None:
    """The parts of every image, or None when one cannot be cut or none falls into more than one part."""
    groups: list[Parts] = []
    for image in state:
        parts = cutter.apply(image)
        if parts is None:
            return None
        groups.append(parts)
    return groups if any(len(parts) > 1 for parts in groups) else None


def choose(groups: list[Parts]) -> Iterator[tuple[State, str]]:
    """Every different choice of parts by one key, made alike in all groups."""
    tables = [selections(parts) for parts in groups]
    seen: set[tuple[int, ...]] = set()
    known: list[dict[int, Image]] = [{} for _ in groups]
    for name, chosen in zip(SELECTION_NAMES, zip(*tables, strict=True), strict=True):
        if all(chosen) and chosen not in seen:
            seen.add(chosen)
            for parts, which, images in zip(groups, chosen, known, strict=True):
                if which not in images:
                    images[which] = compose_chosen(parts, which)
            yield tuple(images[which] for images, which in zip(known, chosen, strict=True)), name


def join(groups: list[Parts], how: list[Joiner]) -> Iterator[tuple[State, str]]:
    """Every way to put all parts together, made alike in all groups."""
    for joiner in how:
        images = []
        for parts in groups:
            image = joiner.apply(parts)
            if image is None:
                break
            images.append(image)
        else:
            yield tuple(images), joiner.name
