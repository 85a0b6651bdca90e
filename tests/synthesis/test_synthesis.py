"""Program synthesis as a whole: search, stacks, cell rules, limits, and what comes out."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.synthesis import frames, gate, invariants, pieces, solver, stacker
from arc_ttt.synthesis.budget import Budget
from arc_ttt.synthesis.cells import rules as cells
from arc_ttt.synthesis.cells.panels import panel_views
from arc_ttt.synthesis.cells.tree import Leaf, predict
from arc_ttt.synthesis.images import MAX_CELLS, Image, State, state_key
from arc_ttt.synthesis.primitives import others
from arc_ttt.synthesis.primitives.parts import map_parts
from arc_ttt.synthesis.solver import synthesize
from arc_ttt.tasks.grids import Example, Task, freeze
from arc_ttt.votes.candidates import SURE

BIG = 200 * 1024 * 1024


def plenty(seconds: float = 60.0) -> Budget:
    return Budget(seconds, Deadline.never(), BIG)


def task_of(pairs: list[tuple[NDArray[np.int_], NDArray[np.int_]]], tests: list[NDArray[np.int_]]) -> Task:
    train = tuple(Example(freeze(before), freeze(after)) for before, after in pairs)
    return Task("made up", train, tuple(freeze(grid) for grid in tests))


def sparse(seed: int, rows: int = 5, columns: int = 6, colours: int = 4) -> NDArray[np.int_]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, colours + 1, (rows, columns)) * (rng.random((rows, columns)) < 0.4)


def made_by(rule: object, count: int = 3, **size: int) -> tuple[Task, list[NDArray[np.int_]]]:
    """A task whose outputs are `rule` of its inputs, and the answers."""
    grids = [sparse(seed, **size) for seed in range(count + 1)]
    done = [rule(grid) for grid in grids]  # type: ignore[operator]
    return task_of(list(zip(grids[:-1], done[:-1], strict=True)), grids[-1:]), done[-1:]


RULES = {
    "mirror": lambda grid: grid[:, ::-1],
    "keep a colour": lambda grid: np.where(grid == 2, 2, 0),
    "rename colours": lambda grid: np.where(grid == 1, 3, np.where(grid == 3, 1, grid)),
    "enlarge": lambda grid: np.kron(grid, np.ones((2, 2), dtype=int)),
    "four mirrored copies": lambda grid: np.block([[grid, grid[:, ::-1]], [grid[::-1], grid[::-1, ::-1]]]),
    "left half": lambda grid: grid[:, : grid.shape[1] // 2],
    "fill background": lambda grid: np.where(grid == 0, 7, grid),
    "fall": lambda grid: np.take_along_axis(grid, np.argsort(grid != 0, axis=0, kind="stable"), axis=0),
}


@pytest.mark.parametrize("name", RULES)
def test_simple_rules_are_found(name: str) -> None:
    task, answers = made_by(RULES[name])
    first = synthesize(task, cpu_limit_s=10)[0]
    assert first.grid.tolist() == answers[0].tolist()
    assert first.fits_all
    assert first.program


def test_logic_of_two_panels_is_found_by_cell_rules() -> None:
    def panels(seed: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        left, right = (np.random.default_rng(2 * seed + n).random((4, 5)) < 0.5 for n in range(2))
        bar = np.full((4, 1), 5)
        return np.hstack([left * 1, bar, right * 2]), (left != right) * 4

    pairs = [panels(seed) for seed in range(4)]
    problem = frames.plain(task_of(pairs[:3], [pairs[3][0]]))
    view = next(view for view in panel_views(problem, set()) if view.name == "panels as layers")
    rules = cells.learn(problem, view, plenty(), np.random.default_rng(0), turned=False)
    assert rules[0].answers[0].tolist() == pairs[3][1].tolist()
    assert "own as full as layer 1" in rules[0].program
    assert rules[0].splits == 1


def test_layers_of_a_panel_view_stay_when_pieces_join() -> None:
    rng = np.random.default_rng(1)
    grids = [np.hstack([rng.integers(0, 2, (3, 4)), np.full((3, 1), 5), rng.integers(0, 3, (3, 4))]) for _ in range(4)]
    problem = frames.plain(task_of([(grid, grid[:, :4] | grid[:, 5:]) for grid in grids[:3]], grids[3:]))
    sizes = frames.output_sizes(problem)
    assert sizes is not None
    laid = stacker.Pieces(problem, sizes, pieces.Search(problem, sizes, 10).run(5, plenty()), plenty())
    view = next(view for view in panel_views(problem, set()) if view.name == "panels as layers")
    joined = solver.with_layers(view, laid)
    for own, more in zip(view.layers, joined.layers, strict=True):
        assert own.items() <= more.items()
        assert len(more) > len(own) == 2


def test_outputs_of_other_demonstrations_by_what_inputs_share() -> None:
    def shape(seed: int, lit: int) -> NDArray[np.int_]:
        return np.random.default_rng(seed).permutation(np.arange(9) < lit).reshape(3, 3) * 4

    answers = {lit: sparse(lit, 3, 3) + 1 for lit in (2, 5)}  # as good as arbitrary
    lits = (2, 5, 5, 2, 5)
    task = task_of([(shape(n, lit), answers[lit]) for n, lit in enumerate(lits)], [shape(9, 2), shape(10, 5)])
    problem = frames.plain(task)
    sizes = frames.output_sizes(problem)
    assert sizes is not None
    found = {name: state for state, name in others.other_outputs(problem, sizes)}
    state = found["output with the same number of cells"]
    assert [image.cells.tolist() for image in state] == [answers[lit].tolist() for lit in (*lits, 2, 5)]
    assert list(others.other_outputs(problem.without(0).without(0).without(0).without(0), sizes)) == []
    firsts = [next(c for c in synthesize(task, cpu_limit_s=5) if c.test_index == n) for n in range(2)]
    assert [c.grid.tolist() for c in firsts] == [answers[lit].tolist() for lit in (2, 5)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from([0.0, 0.5]))
def test_no_demonstration_is_offered_its_own_output(seed: int, number: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(sparse(seed + n), sparse(seed + n, rows=int(rng.integers(2, 4)))) for n in range(number)]
    problem = frames.plain(task_of(pairs, [sparse(seed + 9)]))
    sizes = [cells.shape for cells in problem.outputs] + [problem.outputs[0].shape]
    score = rng.random((number + 1, number))
    chosen = others.givers(problem, sizes, score, least)  # type: ignore[arg-type]
    for grid, size in enumerate(sizes):
        open_to = [
            n for n in range(number) if n != grid and problem.outputs[n].shape == size and score[grid, n] >= least
        ]
        if chosen is not None:
            assert chosen[grid] == max(open_to, key=lambda n: score[grid, n])
    assert (chosen is None) == any(
        not any(n != grid and problem.outputs[n].shape == size and score[grid, n] >= least for n in range(number))
        for grid, size in enumerate(sizes)
    )


def test_both_engines_find_a_mirror_and_are_confident() -> None:
    task, _ = made_by(RULES["mirror"])
    first = synthesize(task, cpu_limit_s=10)[0]
    assert first.engine == "both"
    assert first.confidence >= SURE
    assert first.depth >= 1


def one_step(search: pieces.Search, state: State, cost: int) -> Iterator[tuple[State, int]]:
    """All that one more step makes of some images, said as plainly as can be."""
    for primitive in search.primitives + (search.on_inputs if cost <= pieces.PLACED else []):
        yield from whole([primitive.apply(image) for image in state], cost + primitive.cost)
    for sized in search.sized:
        placed = [sized.apply(image, size) for image, size in zip(state, search.sizes or [], strict=True)]
        yield from whole(placed, cost + sized.cost)
    for cutter in search.cutters:
        groups = [parts for image in state if (parts := cutter.apply(image)) is not None]
        if len(groups) < len(state) or all(len(parts) == 1 for parts in groups):
            continue
        for made, _ in (*pieces.choose(groups), *pieces.join(groups, search.joiners)):
            yield made, cost + 10
        for primitive in pieces.part_primitives() if cost == 0 and search.max_cost >= 15 else ():
            changed = [new for parts in groups if (new := map_parts(parts, primitive.apply)) is not None]
            if len(changed) == len(groups):
                yield from ((made, cost + 15) for made, _ in pieces.join(changed, search.joiners[:2]))


def whole(images: Sequence[Image | None], cost: int) -> Iterator[tuple[State, int]]:
    state = tuple(image for image in images if image is not None)
    if len(state) == len(images):
        yield state, cost


@pytest.mark.parametrize(("rule", "most", "every"), [("mirror", 10, 2), ("left half", 15, 4), ("left half", 20, 7)])
def test_search_finds_what_brute_force_finds_and_the_cheapest_program_for_it(rule: str, most: int, every: int) -> None:
    """Brute force tries every sequence of steps, also those that give images which others gave before."""
    task, _ = made_by(RULES[rule], rows=2, columns=4)
    problem = frames.plain(task)
    search = pieces.Search(problem, frames.output_sizes(problem), most)
    search.primitives, search.on_inputs = search.primitives[::every], search.on_inputs[::every]
    search.sized, search.cutters = search.sized[::every], search.cutters[::every]
    cheapest: dict[bytes, int] = {}
    programs = 0
    waiting = [(state, cost) for state, cost, _ in search.starts]
    while waiting:
        state, cost = waiting.pop()
        if cost > most or any(not 0 < image.cells.size <= MAX_CELLS for image in state):
            continue
        programs += 1
        cheapest[state_key(state)] = min(cost, cheapest.get(state_key(state), cost))
        waiting += one_step(search, state, cost)
    found = {state_key(piece.state): piece.cost for piece in search.run(most + 12, plenty())}
    assert found == cheapest
    assert len(found) == len(search.pieces) < programs


def test_greedy_stack_is_right_wherever_it_settles() -> None:
    task, answers = made_by(lambda grid: np.where(grid == 0, grid[:, ::-1], grid))
    problem = frames.plain(task)
    sizes = frames.output_sizes(problem)
    assert sizes is not None
    laid = stacker.Pieces(problem, sizes, pieces.Search(problem, sizes, 10).run(10, plenty()), plenty())
    found = stacker.stacks(laid, [10], range(3), plenty())
    assert found[0].fits == 3
    assert found[0].answers[0].tolist() == answers[0].tolist()
    partial = stacker.stacks(laid, [10], [0, 1], plenty())
    assert partial[0].fits >= 2


def test_packed_bits_count_as_booleans() -> None:
    bits = np.random.default_rng(3).random((4, 131)) < 0.5
    assert np.bitwise_count(stacker.pack(bits)).sum(axis=1).tolist() == bits.sum(axis=1).tolist()


def test_trees_reproduce_what_they_were_fitted_on() -> None:
    task, answers = made_by(lambda grid: np.where((grid == 0) & (np.arange(6) % 2 == 0), 5, grid))
    problem = frames.plain(task)
    view = cells.View("input", problem.inputs, ({},) * len(problem.inputs))
    rules = cells.learn(problem, view, plenty(), np.random.default_rng(0), turned=False)
    assert rules[0].answers[0].tolist() == answers[0].tolist()
    assert (rules[0].held_out or 0) > 0.5
    table, rows = cells.tabulate(problem, view, plenty(), turned=False) or pytest.fail("time ran out")
    own = table.expression_names.index("own")
    assert predict(Leaf(own), table, rows[0]).reshape(5, 6).tolist() == problem.inputs[-1].tolist()


def test_frames_undo_what_they_do() -> None:
    first, second = sparse(1), np.where(sparse(2) == 1, 8, sparse(2))
    task = task_of([(first + 1, first + 1), (second + 1, second + 1)], [sparse(3) + 1])
    for problem in (frames.plain(task), frames.by_rank(task)):
        if problem is not None:
            inputs = [example.input for example in task.train] + list(task.tests)
            for number, grid in enumerate(inputs):
                assert problem.undo(problem.inputs[number], number).tolist() == grid.tolist()


def test_order_is_best_first_and_no_grid_twice() -> None:
    task, _ = made_by(lambda grid: grid[:2, :2])
    found = synthesize(task, cpu_limit_s=4)
    assert [c.confidence for c in found] == sorted((c.confidence for c in found), reverse=True)
    grids = [c.grid.tobytes() + bytes(c.grid.shape) for c in found]
    assert len(grids) == len(set(grids))


def test_two_test_inputs_have_candidates_each() -> None:
    grids = [sparse(seed) for seed in range(5)]
    task = task_of([(grid, grid[::-1]) for grid in grids[:3]], grids[3:])
    found = synthesize(task, cpu_limit_s=10)
    assert [c.test_index for c in found] == sorted(c.test_index for c in found)
    firsts = [next(c for c in found if c.test_index == number) for number in range(2)]
    assert [c.grid.tolist() for c in firsts] == [grid[::-1].tolist() for grid in grids[3:]]


def test_same_call_same_candidates() -> None:
    task, _ = made_by(RULES["four mirrored copies"], rows=3, columns=3)
    first, second = (
        [(c.grid.tolist(), c.program, c.engine, c.confidence) for c in synthesize(task, cpu_limit_s=60)]
        for _ in range(2)
    )
    assert first == second


def exploding_task() -> Task:
    """Five demonstrations of 30 x 30 noise with unrelated outputs: everything applies and nothing fits."""
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 10, (30, 30)) * (rng.random((30, 30)) < 0.2) for _ in range(12)]
    return task_of(list(zip(grids[:5], grids[5:10], strict=True)), grids[10:])


def test_cpu_limit_really_limits() -> None:
    task = exploding_task()
    before = time.process_time()
    synthesize(task, cpu_limit_s=1.0)
    assert time.process_time() - before < 3.0


def test_memory_limit_really_limits() -> None:
    """Counted as Python's own allocations; the same task without a limit takes more."""
    task = exploding_task()
    solver.synthesize(task, cpu_limit_s=0.5)  # what is shared between calls exists before memory is counted
    peaks = []
    for limit in (8 * 1024 * 1024, 400 * 1024 * 1024):
        tracemalloc.start()
        try:
            synthesize(task, cpu_limit_s=3.0, max_memory_bytes=limit)
            peaks.append(tracemalloc.get_traced_memory()[1] / 1024 / 1024)
        finally:
            tracemalloc.stop()
    assert peaks[0] < 0.7 * peaks[1]


@pytest.mark.parametrize("limit", [1, 20_000, 1_000_000])
def test_little_memory_gives_fewer_candidates_and_no_error(limit: int) -> None:
    task, _ = made_by(RULES["mirror"])
    for candidate in synthesize(task, cpu_limit_s=2.0, max_memory_bytes=limit):
        assert solver.well_formed(candidate.grid)
    synthesize(exploding_task(), cpu_limit_s=1.0, max_memory_bytes=limit)


def test_memory_is_given_back() -> None:
    task, _ = made_by(RULES["left half"])
    budget = plenty()
    solver._solve_framed(frames.plain(task), solver._Pool(task), budget, 1.0)
    assert budget.store(BIG)


def test_a_deadline_that_has_passed_ends_at_once() -> None:
    clock = VirtualClock()
    passed = Deadline(0.0, clock)
    task, _ = made_by(RULES["mirror"])
    assert synthesize(task, deadline=passed) == ()


def test_wrong_limits_are_refused() -> None:
    task, _ = made_by(RULES["mirror"])
    with pytest.raises(ValueError, match="more than 0"):
        synthesize(task, cpu_limit_s=0)
    with pytest.raises(ValueError, match="more than 0"):
        synthesize(task, max_memory_bytes=0)


def test_tasks_without_demonstrations_have_no_candidates() -> None:
    assert synthesize(task_of([], [sparse(0)])) == ()


@st.composite
def odd_tasks(draw: st.DrawFn) -> Task:
    """Tasks of unrelated grids of any sizes, 1 x 1 and 30 x 30 among them."""
    side = st.sampled_from([1, 2, 3, 5, 7, 30])

    def grid() -> NDArray[np.int_]:
        rng = np.random.default_rng(draw(st.integers(0, 10_000)))
        return rng.integers(0, draw(st.integers(1, 10)), (draw(side), draw(side)))

    pairs = [(grid(), grid()) for _ in range(draw(st.integers(1, 3)))]
    return task_of(pairs, [grid() for _ in range(draw(st.integers(1, 2)))])


@settings(max_examples=12, deadline=None)
@given(odd_tasks())
def test_malformed_grids_never_come_out(task: Task) -> None:
    for candidate in synthesize(task, cpu_limit_s=0.6):
        assert solver.well_formed(candidate.grid)
        assert candidate.grid.dtype == np.uint8
        assert not candidate.grid.flags.writeable
        assert 0 <= candidate.test_index < len(task.tests)
        assert 0.0 <= candidate.confidence <= 1.0
        assert candidate.engine in ("pieces", "cells", "both")


def test_malformed_answers_are_refused_where_answers_meet() -> None:
    task, _ = made_by(RULES["mirror"])
    problem = frames.plain(task)
    pool = solver._Pool(task)
    bad = [np.full((31, 2), 1), np.full((2, 2), 10), np.full((2, 2), -1), np.zeros((0, 3)), np.zeros(4)]
    for grid in bad:
        assert pool.at(problem, [grid.astype(np.int8)]) is None
    assert not pool.answers


def test_confidence_grows_with_evidence() -> None:
    weak = gate.Evidence(1.0, 60, 20, 0.0, 0.1, 0.0, 0.3)
    strong = gate.Evidence(1.0, 10, 10, 1.0, 6.0, 1.0, 1.0)
    partial = gate.Evidence(0.5, 60, 20, 0.0, 0.0, 0.0, 0.3)
    order = [gate.confidence(evidence) for evidence in (partial, weak, strong)]
    assert order == sorted(order)
    assert strong.engine == "both"
    assert order[2] >= SURE > order[1]


def test_output_sizes_by_rule() -> None:
    def sizes(pairs: list[tuple[tuple[int, int], tuple[int, int]]], test: tuple[int, int]) -> object:
        shown = [(np.ones(before, dtype=int), np.ones(after, dtype=int)) for before, after in pairs]
        return frames.output_sizes(frames.plain(task_of(shown, [np.ones(test, dtype=int)])))

    assert sizes([((3, 4), (3, 4)), ((5, 5), (5, 5))], (6, 7)) == [(3, 4), (5, 5), (6, 7)]
    assert sizes([((3, 4), (2, 2)), ((5, 5), (2, 2))], (6, 7)) == [(2, 2)] * 3
    assert sizes([((3, 4), (6, 8)), ((5, 5), (10, 10))], (6, 7)) == [(6, 8), (10, 10), (12, 14)]
    assert sizes([((3, 4), (5, 6)), ((5, 5), (7, 7))], (6, 7)) == [(5, 6), (7, 7), (8, 9)]
    assert sizes([((3, 4), (1, 2)), ((5, 5), (4, 2))], (6, 7)) is None


def test_all_programs_can_be_printed() -> None:
    task, _ = made_by(RULES["rename colours"])
    for candidate in itertools.islice(synthesize(task, cpu_limit_s=10), 5):
        assert candidate.program.isprintable()


def test_an_answer_breaks_what_all_demonstrations_share() -> None:
    grids = [sparse(seed) for seed in range(4)]
    task = task_of([(grid, grid[:, ::-1]) for grid in grids[:3]], grids[3:])
    right = grids[3][:, ::-1]
    by_chance = invariants.broken(task, [right])
    recoloured = np.where(right == 1, 9, right)
    assert invariants.broken(task, [recoloured]) >= by_chance + 3
    assert invariants.broken(task, [np.vstack([right, right])]) > by_chance


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_demonstrations_break_none_of_their_own_invariants(seed: int, number: int) -> None:
    pairs = [(sparse(seed + n), sparse(seed + n + 50, rows=3)) for n in range(number)]
    task = task_of(pairs, [before for before, _ in pairs])
    assert invariants.broken(task, [freeze(after) for _, after in pairs]) == 0
