"""One task from demonstrations to ranked candidates: READ THIS FIRST.

frame -> output sizes -> pieces -> stacks, and views of pieces -> cell rules; then answers are pooled and judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from arc_ttt.deadline import Deadline
from arc_ttt.synthesis.budget import Budget
from arc_ttt.synthesis.cells.panels import panel_views
from arc_ttt.synthesis.cells.rules import Rule, View, learn
from arc_ttt.synthesis.frames import Problem, by_rank, output_sizes, plain
from arc_ttt.synthesis.gate import Evidence, confidence
from arc_ttt.synthesis.images import Size
from arc_ttt.synthesis.invariants import broken
from arc_ttt.synthesis.pieces import Piece, Search
from arc_ttt.synthesis.stacker import Pieces, Stack, stacks
from arc_ttt.tasks.grids import COLOURS, MAX_SIDE, Grid, Task, freeze

CAPS = (5, 10, 15, 20, 25, 30, 40)
"""Costs of the pieces that a stack may use, tried in turn."""
LAYERS = 12
"""Pieces of each kind that a cell rule may look at."""
SETTLED = 0.9
"""Work on a task ends early at this confidence."""
SHARE_OF_PLAIN = 0.75
"""Part of the CPU limit for the plain frame, where renaming colours by rank gives a second one."""
DEFAULT_MEMORY = 200 * 1024 * 1024
SEED = 20200526
_NEVER = Deadline.never()


@dataclass(frozen=True, slots=True)
class Effort:
    """One round of work.

    Args:
        max_cost: of its pieces, 10 for each ordinary step.
        until: cost up to which pieces are made now; a cut counts 2 more, so it comes after cheaper steps.
        search, stack: shares of the limit at which these end.
        views: for cell rules.
        needs_s: CPU seconds that must be left for it to begin.
    """

    max_cost: int
    until: int
    search: float
    stack: float
    views: int
    needs_s: float = 0.0


EFFORTS = (
    Effort(max_cost=20, until=12, search=0.3, stack=0.4, views=4),
    Effort(max_cost=20, until=22, search=0.8, stack=0.9, views=3),
    Effort(max_cost=30, until=32, search=0.9, stack=0.95, views=3, needs_s=3.0),
)


@dataclass(frozen=True, slots=True, eq=False)
class ProgramCandidate:
    """One answer to one test input, with the program that gives it.

    Args:
        engine: "pieces", "cells" or "both".
        fits_all: reproduces all demonstrations.
        confidence: calibrated chance of being right, 0 to 1.
        depth: steps of the deepest piece of a stack, or splits of a cell rule.
    """

    task_id: str
    test_index: int
    grid: Grid
    program: str
    engine: str
    fits_all: bool
    confidence: float
    depth: int


@dataclass(slots=True)
class _Answer:
    """What is known about one answer (a grid for each test input) from all engines and frames."""

    grids: tuple[NDArray[np.int8], ...]
    stack: Stack | None = None
    rule: Rule | None = None
    votes: float = 0.0
    stack_held_out: float = 0.0
    cells_held_out: float = 0.0
    fits: float = 0.0
    broken: int = 0


@dataclass(slots=True)
class _Pool:
    task: Task
    answers: dict[bytes, _Answer] = field(default_factory=dict)

    def at(self, problem: Problem, parts: Sequence[NDArray[np.int8]]) -> _Answer | None:
        """The entry of an answer given in the frame of `problem`; None when it is malformed."""
        first = len(problem.outputs)
        if not all(well_formed(cells) for cells in parts):
            return None
        grids = tuple(problem.undo(cells, first + number) for number, cells in enumerate(parts))
        key = b"".join(bytes(grid.shape) + grid.tobytes() for grid in grids)
        if key not in self.answers:
            self.answers[key] = _Answer(grids, broken=broken(self.task, grids))
        return self.answers[key]


def well_formed(cells: NDArray[np.int8] | Grid) -> bool:
    """Whether this is a grid of 1 to 30 rows and columns with colours 0 to 9."""
    if cells.ndim != 2 or not all(1 <= side <= MAX_SIDE for side in cells.shape):
        return False
    return int(cells.min()) >= 0 and int(cells.max()) < COLOURS


def synthesize(
    task: Task,
    cpu_limit_s: float = 2.0,
    *,
    deadline: Deadline = _NEVER,
    max_memory_bytes: int = DEFAULT_MEMORY,
) -> tuple[ProgramCandidate, ...]:
    """Candidates for all test inputs of `task`, test inputs in order, best first for each of them.

    The answer depends on the task and, where the limit cuts work short, on the speed of the machine; nothing else.

    Args:
        cpu_limit_s: CPU seconds of this process (user + system) that the call may take, in steps of one primitive; a
            call that finds a sure answer early takes less. 2 is a good first limit; 10 and 60 find a few tasks more.
        deadline: work also ends when this moment has passed.
        max_memory_bytes: bound on what is stored of images and tables. What is just being made comes on top, at most
            60 MB in one table; the process as a whole stays below 500 MB with the default.

    Raises:
        ValueError: a limit is not positive.
    """
    if cpu_limit_s <= 0 or max_memory_bytes <= 0:
        raise ValueError(f"limits must be more than 0: cpu_limit_s={cpu_limit_s}, max_memory_bytes={max_memory_bytes}")
    if not task.train:
        return ()
    budget = Budget(cpu_limit_s, deadline, max_memory_bytes)
    pool = _Pool(task)
    ranked = by_rank(task)
    _solve_framed(plain(task), pool, budget, 1.0 if ranked is None else SHARE_OF_PLAIN)
    if ranked is not None and not budget.spent() and not _settled(pool):
        _solve_framed(ranked, pool, budget, 1.0)
    return tuple(_candidates(task, pool))


def _settled(pool: _Pool) -> bool:
    return any(confidence(evidence) >= SETTLED for _, evidence in _judged(pool))


def _solve_framed(problem: Problem, pool: _Pool, budget: Budget, share: float) -> None:
    start = budget.used_share()

    def until(part: float) -> Budget:
        return budget.part(start + (share - start) * part)

    sizes = output_sizes(problem)
    if sizes is None:
        first = Search(problem, None, 15)
        sizes = sizes_of_a_piece(problem, first.run(15, until(0.2)))
        first.close(budget)
    if sizes is None:
        return
    search = Search(problem, sizes, EFFORTS[0].max_cost)
    rng = np.random.default_rng(SEED)
    seen: set[bytes] = set()
    for effort in EFFORTS:
        if budget.left_s() < effort.needs_s:
            break
        if effort.max_cost != search.max_cost:
            if search.full:
                break  # it would only be full sooner
            search.close(budget)
            search = Search(problem, sizes, effort.max_cost)
        found = search.run(effort.until, until(effort.search))
        if not found:
            break
        laid = Pieces(problem, sizes, found, until(effort.stack))
        _stack(problem, laid, pool, until(effort.stack))
        for view in chain(panel_views(problem, seen), islice(views(problem, found, seen), effort.views)):
            if budget.spent():
                break
            _learn(problem, with_layers(view, laid), pool, until(1.0), rng, turned=False)
            if view.name == "input" and not _settled(pool):
                _learn(problem, view, pool, until(1.0), rng, turned=True)
        laid.close(budget)
        if _settled(pool):
            break
    search.close(budget)


def sizes_of_a_piece(problem: Problem, pieces: Sequence[Piece]) -> list[Size] | None:
    """The sizes of the cheapest piece whose sizes are those of all known outputs."""
    for piece in pieces:
        shapes = [(image.cells.shape[0], image.cells.shape[1]) for image in piece.state]
        known = zip(shapes, problem.outputs, strict=False)
        if all(shape == cells.shape for shape, cells in known) and max(max(shape) for shape in shapes) <= MAX_SIDE:
            return shapes
    return None


def views(problem: Problem, pieces: Sequence[Piece], seen: set[bytes]) -> Iterator[View]:
    """Every set of pictures with the sizes of the outputs that is not yet in `seen`, cheapest piece first."""
    for piece in pieces:
        pictures = tuple(image.cells for image in piece.state)
        known = zip(pictures, problem.outputs, strict=False)
        if any(cells.shape != output.shape for cells, output in known):
            continue
        key = b"".join(cells.tobytes() for cells in pictures)
        if key not in seen and max(max(cells.shape) for cells in pictures) <= MAX_SIDE:
            seen.add(key)
            yield View(piece.program, pictures, ({},) * len(pictures))


def with_layers(view: View, pieces: Pieces) -> View:
    """The view with helpful pieces as further layers beside its own."""
    layers = [dict(own) for own in view.layers]
    if all(cells.shape == size for cells, size in zip(view.pictures, pieces.sizes, strict=True)):
        for row in pieces.helpful(view.pictures, LAYERS):
            for layer, cells in zip(layers, pieces.split(pieces.cells[row]), strict=True):
                layer[f"piece [{pieces.names[row]}]"] = cells
    return View(view.name, view.pictures, tuple(layers))


def _stack(problem: Problem, pieces: Pieces, pool: _Pool, budget: Budget) -> None:
    everyone = range(len(problem.outputs))
    whole = stacks(pieces, CAPS, everyone, budget)
    parts = []
    right = 0
    for number in everyone if len(everyone) > 1 else ():
        others = [n for n in everyone if n != number]
        found = stacks(pieces, CAPS[:4], others, budget)
        right += any(stack.fits == len(everyone) for stack in found[:1])
        parts += found
    for number, made in enumerate([*whole, *parts]):
        answer = pool.at(problem, made.answers)
        if answer is None:
            continue
        stack = replace(made, program=problem.in_words(made.program))
        if answer.stack is None or (-stack.fits, stack.cost) < (-answer.stack.fits, answer.stack.cost):
            answer.stack = stack
        answer.fits = max(answer.fits, stack.fits / len(everyone))
        if number < len(whole):
            answer.stack_held_out = max(answer.stack_held_out, right / len(everyone))


def _learn(
    problem: Problem, view: View, pool: _Pool, budget: Budget, rng: np.random.Generator, *, turned: bool
) -> None:
    for learnt in learn(problem, view, budget, rng, turned=turned):
        answer = pool.at(problem, learnt.answers)
        if answer is None:
            continue
        rule = replace(learnt, program=problem.in_words(learnt.program))
        if answer.rule is None or rule.splits < answer.rule.splits:
            answer.rule = rule
        answer.votes += rule.votes
        answer.fits = 1.0
        answer.cells_held_out = max(answer.cells_held_out, rule.held_out or 0.0)


def _judged(pool: _Pool) -> list[tuple[_Answer, Evidence]]:
    """Every answer with its evidence."""
    weights = [_weight(answer) for answer in pool.answers.values()]
    total = sum(weights) or 1.0
    least = min((answer.broken for answer in pool.answers.values()), default=0)
    return [
        (
            answer,
            Evidence(
                answer.fits,
                answer.stack.cost if answer.stack else None,
                answer.stack.depth if answer.stack else None,
                answer.stack_held_out,
                answer.votes,
                answer.cells_held_out,
                weight / total,
                answer.broken,
                answer.broken - least,
            ),
        )
        for answer, weight in zip(pool.answers.values(), weights, strict=True)
    ]


def _weight(answer: _Answer) -> float:
    from_stack = 2.0 ** (-answer.stack.cost / 10) * 4 if answer.stack else 0.0
    return (answer.votes + from_stack) * (1.0 if answer.fits == 1.0 else 0.1)


def _candidates(task: Task, pool: _Pool) -> Iterator[ProgramCandidate]:
    judged = [(confidence(evidence), evidence, answer) for answer, evidence in _judged(pool)]
    judged.sort(key=lambda entry: -entry[0])
    for test_index in range(len(task.tests)):
        seen: set[bytes] = set()
        for chance, evidence, answer in judged:
            grid = freeze(answer.grids[test_index])
            key = bytes(grid.shape) + grid.tobytes()
            if key in seen:
                continue
            seen.add(key)
            yield ProgramCandidate(
                task.task_id,
                test_index,
                grid,
                "; or ".join(found.program for found in (answer.stack, answer.rule) if found),
                evidence.engine,
                evidence.fits == 1.0,
                chance,
                _depth(answer),
            )


def _depth(answer: _Answer) -> int:
    if answer.stack is not None:
        return -(-answer.stack.depth // 10)
    return answer.rule.splits if answer.rule else 0
