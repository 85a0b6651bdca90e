"""Views undo exactly, their names tell the truth, and the paper's augmenters act on all grids of a task alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.adapt.augmenters import examples_identity, map_examples, paper_augmenters
from arc_ttt.tasks.grids import Example, Grid, Task, freeze
from arc_ttt.tasks.views import (
    DIHEDRALS,
    IDENTITY_COLOURS,
    View,
    dihedral,
    identity_view,
    paper_views,
    random_colours,
    sample_views,
    undo_dihedral,
)

fuzz = settings(max_examples=120, deadline=None, database=None)

GRIDS = st.builds(
    lambda height, width, seed: freeze(np.random.default_rng(seed).integers(0, 10, (height, width))),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 2**32),
)
PALETTES = st.permutations(range(10)).map(tuple)
SEEDS = st.integers(0, 2**32)


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


SAMPLE = grid("012", "345")

# What each symmetry does to SAMPLE, written out by hand; quarter turns are counter-clockwise.
PICTURES = {
    "identity": grid("012", "345"),
    "rot90": grid("25", "14", "03"),
    "rot180": grid("543", "210"),
    "rot270": grid("30", "41", "52"),
    "transpose": grid("03", "14", "25"),
    "flip-rows": grid("345", "012"),
    "anti-transpose": grid("52", "41", "30"),
    "flip-columns": grid("210", "543"),
}


def test_every_symmetry_has_its_picture() -> None:
    assert set(PICTURES) == set(DIHEDRALS)
    assert len({picture.tobytes() + bytes(picture.shape) for picture in PICTURES.values()}) == 8


@pytest.mark.parametrize("name", DIHEDRALS)
def test_a_symmetry_does_what_its_name_says(name: str) -> None:
    assert dihedral(SAMPLE, DIHEDRALS.index(name)).tolist() == PICTURES[name].tolist()
    assert View(DIHEDRALS.index(name), IDENTITY_COLOURS, ()).group == name


@given(GRIDS, st.integers(0, 7))
@fuzz
def test_undoing_a_symmetry_gives_the_grid_back(picture: Grid, index: int) -> None:
    assert undo_dihedral(dihedral(picture, index), index).tolist() == picture.tolist()
    assert dihedral(undo_dihedral(picture, index), index).tolist() == picture.tolist()


@given(GRIDS, st.integers(0, 7), PALETTES)
@fuzz
def test_undoing_a_view_gives_the_grid_back(picture: Grid, index: int, palette: tuple[int, ...]) -> None:
    view = View(index, palette, ())
    assert view.undo(view.apply(picture)).tolist() == picture.tolist()
    assert view.apply(view.undo(picture)).tolist() == picture.tolist()
    assert view.apply(picture).dtype == np.uint8
    assert not view.apply(picture).flags.writeable


@given(st.integers(0, 7), PALETTES)
@fuzz
def test_a_view_recolours_cells_by_its_palette(index: int, palette: tuple[int, ...]) -> None:
    seen = View(index, palette, ()).apply(SAMPLE)
    assert seen.tolist() == [[palette[cell] for cell in row] for row in PICTURES[DIHEDRALS[index]].tolist()]


def example(seed: int, height: int = 3, width: int = 2) -> Example:
    rng = np.random.default_rng(seed)
    return Example(freeze(rng.integers(0, 10, (height, width))), freeze(rng.integers(0, 10, (width, height))))


def test_a_view_shows_its_demonstrations_in_its_order_all_seen_alike() -> None:
    task = Task("t", tuple(example(seed) for seed in range(4)), (SAMPLE,))
    view = View(3, (0, 2, 1, 3, 4, 5, 6, 7, 9, 8), (2, 0))
    shown = view.demonstrations(task)
    assert len(shown) == 2
    for seen, index in zip(shown, (2, 0), strict=True):
        assert view.undo(seen.input).tolist() == task.train[index].input.tolist()
        assert view.undo(seen.output).tolist() == task.train[index].output.tolist()


@given(SEEDS, st.booleans())
@fuzz
def test_random_colours_are_a_permutation(seed: int, keep_black: bool) -> None:
    """The official permutation never maps a used colour to a used one; a true one is a bijection of all ten."""
    palette = random_colours(np.random.default_rng(seed), keep_black=keep_black)
    assert sorted(palette) == list(range(10))
    assert not keep_black or palette[0] == 0


def test_random_colours_reach_every_colour_from_every_colour() -> None:
    rng = np.random.default_rng(0)
    seen = {(colour, became) for _ in range(500) for colour, became in enumerate(random_colours(rng))}
    assert len(seen) == 100
    kept = {pair for _ in range(500) for pair in enumerate(random_colours(rng, keep_black=True))}
    assert len(kept) == 82  # black stays, each of the nine others becomes any of the nine


@pytest.mark.parametrize("demonstrations", [0, 1, 3])
def test_sampled_views_walk_through_all_symmetries_and_begin_with_the_task_as_it_is(demonstrations: int) -> None:
    views = sample_views(17, demonstrations, np.random.default_rng(5))
    assert views[0] == identity_view(demonstrations)
    assert [view.dihedral for view in views] == [0, 1, 2, 3, 4, 5, 6, 7] * 2 + [0]
    assert all(sorted(view.order) == list(range(demonstrations)) for view in views)
    assert all(sorted(view.colours) == list(range(10)) for view in views)
    assert len({view.colours for view in views}) > 10
    assert views[:5] == sample_views(5, demonstrations, np.random.default_rng(5))


def test_sampled_views_can_keep_black() -> None:
    views = sample_views(17, 3, np.random.default_rng(5), keep_black=True)
    assert {view.colours[0] for view in views} == {0}
    assert len({view.colours for view in views}) > 10


def test_sampled_views_can_leave_the_colours_alone() -> None:
    views = sample_views(9, 2, np.random.default_rng(5), colours=False)
    assert {view.colours for view in views} == {IDENTITY_COLOURS}


@pytest.mark.parametrize("demonstrations", range(2, 8))
@pytest.mark.parametrize("permutations", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_paper_views_leave_one_demonstration_out_and_permute_no_colour(
    demonstrations: int, permutations: int, seed: int
) -> None:
    views = paper_views(demonstrations, np.random.default_rng(seed), permutations=permutations)
    assert len(set(views)) == len(views)
    for view in views:
        assert view.colours == IDENTITY_COLOURS
        assert len(view.order) == len(set(view.order)) == demonstrations - 1
        assert set(view.order) <= set(range(demonstrations))
    own = [view.order for view in views if view.group == "identity"]
    for left_out in range(demonstrations):
        kept = tuple(i for i in range(demonstrations) if i != left_out)
        assert kept in own
        orders = [order for order in own if left_out not in order]
        assert 1 <= len(orders) <= min(1 + permutations, math.factorial(demonstrations - 1))
    groups = [view.group for view in views if view.group != "identity"]
    assert set(groups) == {"transpose", "flip-rows", "flip-columns", "rot90", "rot180"}
    assert max(groups.count(name) for name in groups) <= permutations


@pytest.mark.parametrize("seed", range(6))
def test_the_number_of_paper_views_of_two_and_three_demonstrations(seed: int) -> None:
    """Two demonstrations: 2 identity prompts (a single order each), and one or two for each of 5 symmetries, as the
    two draws may agree. With one draw a symmetry: exactly 2 + 5. Three: 3 to 6 identity prompts."""
    assert len(paper_views(2, np.random.default_rng(seed), permutations=1)) == 7
    assert 7 <= len(paper_views(2, np.random.default_rng(seed))) <= 12
    three = paper_views(3, np.random.default_rng(seed))
    assert 3 <= sum(view.group == "identity" for view in three) <= 6
    assert 3 + 5 <= len(three) <= 6 + 10


def test_the_two_draws_of_a_symmetry_differ_now_and_then() -> None:
    counts = {len(paper_views(2, np.random.default_rng(seed))) for seed in range(40)}
    assert len(counts) >= 4


def test_paper_views_of_one_demonstration_or_none_leave_nothing_out() -> None:
    one = paper_views(1, np.random.default_rng(0))
    assert [view.order for view in one] == [(0,)] * 6
    none = paper_views(0, np.random.default_rng(0))
    assert [view.order for view in none] == [()] * 6
    assert {view.group for view in none} == {"identity", "transpose", "flip-rows", "flip-columns", "rot90", "rot180"}


# Each of the 23 augmenters on SAMPLE, written out by hand; the translation has a test of its own.
AUGMENTED = {
    "rot90": grid("25", "14", "03"),
    "rot270": grid("30", "41", "52"),
    "rot180": grid("543", "210"),
    "flip-rows": grid("345", "012"),
    "flip-columns": grid("210", "543"),
    "transpose": grid("03", "14", "25"),
    "reflect-up": grid("345", "012", "012", "345"),
    "reflect-down": grid("012", "345", "345", "012"),
    "reflect-left": grid("210012", "543345"),
    "reflect-right": grid("012210", "345543"),
    "double": grid("001122", "001122", "334455", "334455"),
    "double-height": grid("012", "012", "345", "345"),
    "double-width": grid("001122", "334455"),
    "rot90-double": grid("2255", "2255", "1144", "1144", "0033", "0033"),
    "rot270-double": grid("3300", "3300", "4411", "4411", "5522", "5522"),
    "rot180-double": grid("554433", "554433", "221100", "221100"),
    "flip-rows-double": grid("334455", "334455", "001122", "001122"),
    "flip-columns-double": grid("221100", "221100", "554433", "554433"),
    "transpose-double": grid("0033", "0033", "1144", "1144", "2255", "2255"),
    "tile-down": grid("012", "345", "012", "345"),
    "tile-right": grid("012012", "345345"),
    "tile-both": grid("012012", "345345", "012012", "345345"),
}


def test_the_paper_has_23_augmenters() -> None:
    names = list(paper_augmenters(np.random.default_rng(0)))
    assert len(names) == 23
    assert set(names) == set(AUGMENTED) | {"translate"}


@pytest.mark.parametrize("name", AUGMENTED)
def test_an_augmenter_does_what_its_name_says(name: str) -> None:
    assert paper_augmenters(np.random.default_rng(0))[name](SAMPLE).tolist() == AUGMENTED[name].tolist()


@given(SEEDS)
@fuzz
def test_a_translation_moves_inputs_and_outputs_by_the_same_step(seed: int) -> None:
    """The official translation draws anew for each grid, so that input and output shift apart and the rule is lost."""
    step = paper_augmenters(np.random.default_rng(seed))["translate"]
    first, second = np.zeros((12, 9), np.uint8), np.zeros((7, 11), np.uint8)
    first[0, 0] = second[0, 0] = 5
    mapped = map_examples([Example(freeze(first), freeze(second))], step)
    assert mapped is not None
    moved = tuple(int(axis[0]) for axis in np.nonzero(mapped[0].input))
    assert moved == tuple(int(axis[0]) for axis in np.nonzero(mapped[0].output))
    assert all(1 <= cells <= 4 for cells in moved)
    assert mapped[0].input.sum() == mapped[0].output.sum() == 5


def test_a_translation_is_random() -> None:
    """The official one draws the same step for every task."""
    spot = np.zeros((9, 9), np.uint8)
    spot[0, 0] = 1
    steps = {paper_augmenters(np.random.default_rng(seed))["translate"](freeze(spot)).tobytes() for seed in range(100)}
    assert len(steps) == 16


@given(st.lists(GRIDS, min_size=2, max_size=6), SEEDS)
@fuzz
def test_an_augmenter_maps_every_grid_alike_or_is_left_out(pictures: list[Grid], seed: int) -> None:
    examples = [Example(a, b) for a, b in zip(pictures[::2], pictures[1::2], strict=False)]
    for step in paper_augmenters(np.random.default_rng(seed)).values():
        plain = [(step(e.input), step(e.output)) for e in examples]
        fits = all(max(*a.shape, *b.shape) <= 30 for a, b in plain)
        mapped = map_examples(examples, step)
        assert (mapped is not None) == fits
        if mapped is not None:
            assert [(e.input.tolist(), e.output.tolist()) for e in mapped] == [
                (a.tolist(), b.tolist()) for a, b in plain
            ]


@given(st.lists(GRIDS, min_size=2, max_size=4), st.lists(GRIDS, min_size=2, max_size=4))
@fuzz
def test_examples_have_one_identity_exactly_when_they_are_equal(first: list[Grid], second: list[Grid]) -> None:
    def pairs(pictures: list[Grid]) -> list[Example]:
        return [Example(a, b) for a, b in zip(pictures[::2], pictures[1::2], strict=False)]

    def plain(pictures: list[Grid]) -> list[list[list[int]]]:
        return [g.tolist() for e in pairs(pictures) for g in (e.input, e.output)]

    equal = plain(first) == plain(second)
    assert (examples_identity(pairs(first)) == examples_identity(pairs(second))) == equal
    assert examples_identity(pairs(first)) == examples_identity(pairs([freeze(g) for g in first]))
