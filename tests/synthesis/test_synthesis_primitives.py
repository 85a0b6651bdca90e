"""Primitives of program synthesis: on small grids made by hand, and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from arc_ttt.synthesis.cells import features
from arc_ttt.synthesis.images import MAX_CELLS, Image, compose, crop_to, embed, enclosed, majority, skew, unskew
from arc_ttt.synthesis.primitives import images as primitives
from arc_ttt.synthesis.primitives import parts as groups
from arc_ttt.synthesis.primitives import patterns, repair
from arc_ttt.synthesis.primitives.images import unary_primitives
from arc_ttt.synthesis.primitives.sized import sized_primitives
from support.images import cells, image, images

ALL = {
    primitive.name: primitive for primitive in [*unary_primitives(tuple(range(1, 10))), *patterns.pattern_primitives()]
}
SIZED = {primitive.name: primitive for primitive in sized_primitives()}


BY_HAND = [
    ("keep_colour 2", "12 .2", ".2 .2"),
    ("drop_colour 2", "12 .2", "1. .."),
    ("keep_majority", "12 .2", ".2 .2"),
    ("keep_minority", "12 .2", "1. .."),
    ("crop", "... .3. ...", "3"),
    ("to_origin", "1", "1"),
    ("squeeze", "1.2 ... 3.4", "12 34"),
    ("merge_repeats", "112 112 334", "12 34"),
    ("fill 4", "222 2.2 222", "222 222 222"),
    ("fill 8", "222 2.2 222", "222 222 222"),
    ("interior 4", "222 2.2 222", "... .2. ..."),
    ("interior 8", "222 2.2 222", "... .2. ..."),
    ("outside", "3.. ... ...", ".33 333 333"),
    ("border", "111 111 111", "111 1.1 111"),
    ("inner", "111 111 111", "... .1. ..."),
    ("outline", "5", "111 1.1 111"),
    ("halo 4", "... .3. ...", ".1. 1.1 .1."),
    ("halo 8", "... .3. ...", "111 1.1 111"),
    ("invert", "3. ..", ".3 33"),
    ("hull", "3. ..", "33 33"),
    ("hull_box", ".... .3.. ..3. ....", "33 33"),
    ("background_in_box", ".... .3.. ..3. ....", ".1 1."),
    ("spread", "1..2", "1122"),
    ("swap_colours", "12 2.", "21 1."),
    ("drop_noise", "1... ..22", ".... ..22"),
    ("full_lines", "1.2 333", "... 333"),
    ("marked_box", "111 121 111", "2"),
    ("enlarge_by_colours", "12", "1122 1122"),
    ("shrink", "1122 1122", "12"),
    ("enlarge 2", "12", "1122 1122"),
    ("enlarge 3", "1", "111 111 111"),
    ("outer_product", "1. .2", "1... .2.. ..1. ...2"),
    ("outer_product inverted", "1. .2", "..1. ...2 1... .2.."),
    ("outer_product_majority", "11 .2", "1111 .2.2 .... ...."),
    ("bounce", "... ... ... 1..", ".1. ..1 .1. 1.."),
    ("rigid 1", "12 34", "24 13"),
    ("rigid 2", "12 34", "43 21"),
    ("rigid 3", "12 34", "31 42"),
    ("rigid 4", "12 34", "13 24"),
    ("rigid 5", "12 34", "34 12"),
    ("rigid 6", "12 34", "42 31"),
    ("rigid 7", "12 34", "21 43"),
    ("smear right", ".1..2.", ".11122"),
    ("smear left", ".1..2.", "11222."),
    ("smear down", "1 . .", "1 1 1"),
    ("smear up", ". . 1", "1 1 1"),
    ("smear down-right", "1.. ... ...", "1.. .1. ..1"),
    ("smear up-left", "... ... ..1", "1.. .1. ..1"),
    ("smear down-left", "..1 ... ...", "..1 .1. 1.."),
    ("smear up-right", "... ... 1..", "..1 .1. 1.."),
    ("connect row", "1..1.2", "1111.2"),
    ("connect column", "1 . 1", "1 1 1"),
    ("connect row+column", "1.1 ... 1..", "111 1.. 1.."),
    ("connect diagonal+anti-diagonal", "1.. ... ..1", "1.. .1. ..1"),
    ("half left", "123", "1"),
    ("half right", "123", "3"),
    ("half top", "1 2 3", "1"),
    ("half bottom", "1 2 3", "3"),
    ("half first", "123 456", "1 4"),
    ("edge_line left", "12 34", "1 3"),
    ("edge_line right", "12 34", "2 4"),
    ("edge_line top", "12 34", "12"),
    ("edge_line bottom", "12 34", "34"),
    ("gravity down", "1 . 2 .", ". . 1 2"),
    ("gravity up", ". 1 . 2", "1 2 . ."),
    ("gravity right", "1.2.", "..12"),
    ("gravity left", ".1.2", "12.."),
    ("overlay_mirror columns", "1..", "1.1"),
    ("overlay_mirror rows", "1 .", "1 1"),
    ("overlay_mirror turn", "1. ..", "1. .1"),
    ("overlay_mirror both", "1. ..", "11 11"),
    ("overlay_mirror diagonals", ".1 ..", ".1 1."),
    ("overlay_mirror all", ".1. ... ...", ".1. 1.1 .1."),
    ("join right", "12", "1221"),
    ("join left", "12", "2112"),
    ("join below", "1 2", "1 2 2 1"),
    ("join above", "1 2", "2 1 1 2"),
    ("join quarters", "12", "1221 1221"),
    ("join quarters reversed", "12", "2112 2112"),
    ("join copy right", "12", "1212"),
    ("join copy below", "12", "12 12"),
    ("join turns", "12 34", "1231 3442 2443 1321"),
    ("sort_lines rows", "111 1.. 11.", "1.. 11. 111"),
    ("sort_lines columns", "1.1 1..", ".11 ..1"),
    ("framed", "..... .333. .3.3. .333.", "333 3.3 333"),
    ("framed inside", "..... .3333 .3123 .3333", "12"),
    ("fall objects down", "12 .. ..", ".. .. 12"),
    ("fall colour objects down", "1. .. .2", ".. .. 12"),
    ("fall objects up", "... .3.", ".3. ..."),
    ("fall objects left", ".3.", "3.."),
    ("fall objects right", ".3.", "..3"),
    ("fall colour objects up", ". 2 1", "2 1 ."),
    ("fall colour objects left", ".12", "12."),
    ("fall colour objects right", "12.", ".12"),
    ("attract objects", "55... 55..1 55...", "55... 551.. 55..."),
    ("attract colour objects", "55... 55..1 55...", "55... 551.. 55..."),
    ("continue_lines rows", "1212.... 22......", "12121212 22222222"),
    ("continue_lines columns", "12 21 12 .. ..", "12 21 12 21 12"),
    ("rays_through rows", "... .1.", "... 111"),
    ("rays_through columns", "... .1.", ".1. .1."),
    ("rays_through both", "... .1. ...", ".1. 111 .1."),
    ("denoise", "1111 1211 1111", "1111 1111 1111"),
    ("complete_symmetry columns", "12.21 3.... 44.44", "12.21 3...3 44.44"),
    ("complete_symmetry rows", "134 2.4 ... 2.4 1.4", "134 2.4 ... 2.4 134"),
]


@pytest.mark.parametrize(("name", "before", "after"), BY_HAND, ids=[row[0] for row in BY_HAND])
def test_primitive_by_hand(name: str, before: str, after: str) -> None:
    made = ALL[name].apply(image(before))
    assert made is not None
    assert made.cells.tolist() == cells(after).tolist()


def test_every_primitive_has_a_case_or_a_property() -> None:
    shown = {row[0] for row in BY_HAND}
    combined = {name for name in ALL if name.startswith(("smear", "keep_colour", "drop_colour", "move"))}
    rest = {"complete_symmetry both", "complete_symmetry all", "stamp_templates", "stamp_templates turned"}
    assert set(ALL) - shown - combined == rest


def test_complete_symmetry_with_both_axes_and_diagonals() -> None:
    before = image("1...1 .234. .3.2. .1.2. 1...1")
    both = patterns.complete_symmetry(image("12.21 1...1 ..... ....1 1..21"), "both")
    assert both is not None
    assert both.cells.tolist() == cells("12.21 1...1 ..... 1...1 12.21").tolist()
    every = patterns.complete_symmetry(image("12..1 2...2 ..... 2...2 1...1"), "all")
    assert every is not None
    assert every.cells.tolist() == cells("12.21 2...2 ..... 2...2 12.21").tolist()
    assert patterns.complete_symmetry(before, "both") is None


def test_stamp_templates_completes_a_marker() -> None:
    before = image("12... 34... ..... ..... ...1.")
    made = patterns.stamp_templates(before, turned=False)
    assert made is not None
    assert made.cells.tolist() == cells("12... 34... ..... ..... ...12").tolist()
    assert patterns.stamp_templates(image("12 34"), turned=True) is None


def test_move_changes_only_the_place() -> None:
    made = ALL["move down"].apply(image("1"))
    assert made is not None
    assert (made.y, made.x) == (1, 0)


def test_sized_primitives_by_hand() -> None:
    def run(name: str, text: str, size: tuple[int, int]) -> list[list[int]]:
        made = SIZED[name].apply(image(text), size)
        assert made is not None
        return made.cells.tolist()

    assert run("broadcast", "12", (2, 4)) == cells("1122 1122").tolist()
    assert run("tile", "12", (2, 3)) == cells("121 121").tolist()
    assert run("tile mirrored", "12", (2, 3)) == cells("122 122").tolist()
    assert run("tile anchored", "12", (1, 3)) == cells("121").tolist()
    assert run("place_in_output", "12", (2, 3)) == cells("12. ...").tolist()
    assert run("colour_bar", "1222.33", (1, 3)) == cells("231").tolist()
    assert run("count cells", "1.1", (2, 2)) == cells("11 ..").tolist()
    assert run("count components", "11.1", (2, 2)) == cells("11 ..").tolist()
    assert run("count components by column", "1.1", (2, 2)) == cells("1. 1.").tolist()
    assert run("window top right", "123 456", (1, 2)) == [[2, 3]]
    assert run("window bottom left", "123 456", (1, 2)) == [[4, 5]]
    assert run("window middle", "123 456 789", (1, 1)) == [[5]]
    assert run("colour_everywhere", "1.22", (1, 2)) == [[2, 2]]
    assert run("histogram left", "1.22 2..3", (3, 4)) == cells("222. 1... 3...").tolist()
    assert run("histogram top", "1.22 2..3", (3, 4)) == cells("213. 2... 2...").tolist()
    assert run("reading_order", "1..2", (1, 3)) == cells("12.").tolist()
    assert run("reading_order by column", ".2 1.", (1, 2)) == cells("12").tolist()


@settings(max_examples=60, deadline=None)
@given(images())
def test_images_stay_well_formed(before: Image) -> None:
    raw = before.cells.copy()
    for name, primitive in ALL.items():
        made = primitive.apply(before)
        if made is not None:
            assert made.cells.ndim == 2, name
            assert made.cells.dtype == np.int8, name
            assert made.cells.size <= MAX_CELLS, name
            assert made.cells.size == 0 or 0 <= made.cells.min() <= made.cells.max() <= 9, name
        assert (before.cells == raw).all(), f"{name} wrote to its argument"


@settings(max_examples=60, deadline=None)
@given(images(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_sized_primitives_have_the_size(before: Image, size: tuple[int, int]) -> None:
    for name, primitive in SIZED.items():
        made = primitive.apply(before, size)
        if made is not None and not name.endswith("bar"):
            assert made.cells.shape == size, name


IDEMPOTENT = [
    *("crop", "to_origin", "squeeze", "merge_repeats", "hull", "hull_box", "spread", "full_lines"),
    *("fill 4", "fill 8", "keep_majority", "keep_colour 2", "drop_colour 2"),
    *("smear right", "smear up-left", "smear down+up", "connect row", "connect column"),
    *("gravity down", "gravity left", "overlay_mirror columns", "overlay_mirror rows", "sort_lines rows"),
    *("fall objects down", "rays_through rows", "rays_through columns"),
]


@pytest.mark.parametrize("name", IDEMPOTENT)
@settings(max_examples=30, deadline=None)
@given(before=images())
def test_idempotent(name: str, before: Image) -> None:
    once = ALL[name].apply(before)
    if once is None:
        return
    twice = ALL[name].apply(once)
    if twice is not None:
        assert twice.cells.tolist() == once.cells.tolist()


@settings(max_examples=50, deadline=None)
@given(images())
def test_rigid_keep_counts_and_four_turns_are_none(before: Image) -> None:
    turned = before
    for _ in range(4):
        turned = primitives.rigid(turned, 1)
    assert turned.cells.tolist() == before.cells.tolist()
    for number in range(1, 8):
        counts = np.bincount(primitives.rigid(before, number).cells.ravel(), minlength=10)
        assert counts.tolist() == np.bincount(before.cells.ravel(), minlength=10).tolist()


@settings(max_examples=50, deadline=None)
@given(images())
def test_parts_put_together_give_the_image(before: Image) -> None:
    whole = crop_to(before, before.cells != 0)
    for name in ("objects 8", "objects 4", "colour_objects 8", "colour_objects 4", "colour_layers"):
        cutter = next(c for c in groups.cutters() if c.name == name)
        parts = cutter.apply(before)
        if parts is not None:
            assert whole is not None
            made = compose(parts)
            assert (made.y, made.x, made.cells.tolist()) == (whole.y, whole.x, whole.cells.tolist())


def test_panels_and_joins() -> None:
    parts = groups.panels(image("1.5.1 55555 ..522"))
    assert parts is not None
    assert [part.cells.tolist() for part in parts] == [[[1, 0]], [[0, 1]], [[0, 0]], [[2, 2]]]
    summed = groups.summary(parts, how="fullest")
    assert summed is not None
    assert summed.cells.tolist() == [[0, 0], [0, 2]]
    first = groups.lay_over(parts, how="first")
    assert first is not None
    assert first.cells.tolist() == [[1, 1]]
    logic = {how: groups.lay_over(parts, how=how) for how in ("and", "nor", "xor")}
    assert {how: made.cells.tolist() for how, made in logic.items() if made} == {
        "and": [[0, 0]],
        "nor": [[0, 0]],
        "xor": [[0, 0]],
    }


def test_separators_are_the_lines_that_make_panels_alike() -> None:
    parts = groups.panels(image("2.2 ..2 444 222 .22"))
    assert parts is not None
    assert [part.cells.tolist() for part in parts] == [[[2, 0, 2], [0, 0, 2]], [[2, 2, 2], [0, 2, 2]]]


def joined(name: str, *parts: Image) -> list[list[int]] | None:
    made = next(joiner for joiner in groups.joiners() if joiner.name == name).apply(parts)
    return made.cells.tolist() if made else None


def test_joiners_by_hand() -> None:
    low, high = Image(cells("3"), 5, 0), Image(cells("2"), 1, 2)
    assert joined("colours in order", low, high) == [[2], [3]]
    assert joined("colours in order", Image(low.cells, 1, 7), high) == [[2, 3]]
    assert joined("colours in order", Image(low.cells, 3, 4), high) is None
    assert joined("product", image("1. .1"), image("23")) == [[2, 3, 0, 0], [0, 0, 2, 3]]
    assert joined("product", image("23"), image("1. .1")) == [[2, 3, 0, 0], [0, 0, 2, 3]]
    assert joined("product", image("1")) is None
    assert joined("centred grow", Image(cells("4"), 6, 6), image("111 111 111")) == [[1, 1, 1], [1, 4, 1], [1, 1, 1]]
    assert joined("centred shrink", Image(cells("4"), 6, 6), image("111 111 111")) == [[1, 1, 1]] * 3


def test_parts_are_chosen_by_their_count_of_a_colour() -> None:
    parts = groups.objects(image("133 ... 113 ... 222"), eight=True)
    assert parts is not None
    chosen = dict(zip(groups.SELECTION_NAMES, groups.selections(parts), strict=True))
    assert chosen["the one with most colour 3"] == 0b001
    assert chosen["the one with least colour 3"] == 0b100
    assert chosen["all but those with most colour 1"] == 0b101


def test_symmetric_about_a_colour() -> None:
    before = image(".1... .4... ..3.. ..... .....")
    assert patterns.symmetric_about(before, 3, "rows") == (pytest.approx(cells(".1... .4... ..3.. .4... .1...")), 0, 0)
    whole = patterns.symmetric_about(before, 3, "all")
    assert whole is not None
    assert whole.cells.tolist() == cells(".1.1. 14.41 ..3.. 14.41 .1.1.").tolist()
    assert patterns.symmetric_about(before, 5, "all") is None
    assert patterns.symmetric_about(whole, 3, "all") is None


def test_attract_to_a_colour_even_a_small_one() -> None:
    before = image("..3.. ..... ..... 1.... .222.")
    made = patterns.attract(before, single=True, colour=3)
    assert made is not None
    assert made.cells.tolist() == cells("..3.. .222. ..... ..... .....").tolist()
    assert patterns.attract(before, single=True, colour=7) is None


@settings(max_examples=50, deadline=None)
@given(images())
def test_grown_is_what_scipy_calls_dilation(before: Image) -> None:
    full = before.cells != 0
    for eight, structure in ((True, np.ones((3, 3))), (False, None)):
        assert primitives.grown(full, eight=eight).tolist() == ndimage.binary_dilation(full, structure).tolist()
    inner = primitives.inner(before)
    eroded = ndimage.binary_erosion(full, np.ones((3, 3)))
    assert (inner is not None) == eroded.any()
    if inner is not None:
        assert (inner.cells != 0).tolist() == eroded.tolist()


def test_features_of_panels_blocks_and_objects() -> None:
    grid = cells("1.5.1 ..5.. 55555 225.. 225..")
    found = features.features(grid, {}, (), 0)
    assert found.conditions["panel rank"].tolist()[0] == [2, 2, -1, 2, 2]
    assert found.conditions["panel rank"].tolist()[4] == [1, 1, -1, 0, 0]
    assert found.conditions["row in panel"][:, 0].tolist() == [0, 1, -1, 0, 1]
    assert found.expressions["panel cell of any"].tolist()[0] == [2, 2, -1, 2, 2]
    assert found.expressions["panel colour"].tolist()[4] == [2, 2, -1, -1, -1]
    assert found.expressions["panel's own cell of fullest"].tolist()[0] == [2, 2, -1, 2, 2]
    assert found.conditions["in block of 2"].tolist()[3:] == [[1, 1, 0, 1, 1]] * 2
    assert found.conditions["in block of 3"].sum() == 0
    turned = features.features(cells("12. 3.. ..."), {}, (), 0).expressions
    assert turned["object mirrored columns"].tolist() == [[2, 1, -1], [0, 3, -1], [-1, -1, -1]]
    assert turned["object transposed"].tolist() == [[1, 3, -1], [2, 0, -1], [-1, -1, -1]]


def test_selections_name_the_largest_part() -> None:
    parts = groups.objects(image("11... 11..2 ....."), eight=True)
    assert parts is not None
    chosen = dict(zip(groups.SELECTION_NAMES, groups.selections(parts), strict=True))
    assert chosen["the one with most cells"] == 0b01
    assert chosen["all but those with most cells"] == 0b10
    assert chosen["the one with least cells"] == 0b10
    assert chosen["the one with most shapes"] == 0


@settings(max_examples=50, deadline=None)
@given(images(), st.integers(1, 10), st.integers(1, 10))
def test_embed_keeps_cells_in_their_place(before: Image, rows: int, columns: int) -> None:
    placed = embed(before, (rows, columns)).cells
    assert placed.shape == (rows, columns)
    for (y, x), colour in np.ndenumerate(placed):
        inside = 0 <= y - before.y < before.cells.shape[0] and 0 <= x - before.x < before.cells.shape[1]
        assert colour == (before.cells[y - before.y, x - before.x] if inside else 0)


@settings(max_examples=50, deadline=None)
@given(images())
def test_unskew_undoes_skew(before: Image) -> None:
    assert unskew(skew(before.cells), before.cells.shape[1]).tolist() == before.cells.tolist()


def test_enclosed_by_four_and_by_eight() -> None:
    ring = cells(".1. 1.1 .1.") != 0
    assert enclosed(ring, eight=False).sum() == 1
    assert enclosed(ring, eight=True).sum() == 0


def test_repair_by_period_and_by_symmetry() -> None:
    pattern = np.fromfunction(lambda y, x: (y + 2 * x) % 3 + 1, (9, 9)).astype(np.int8)
    hidden = pattern.copy()
    hidden[3:6, 4:7] = 9
    whole = repair.repair(Image(hidden, 0, 0), 9, how="period")
    assert whole is not None
    assert whole.cells.tolist() == pattern.tolist()
    part = repair.repaired_part(Image(hidden, 0, 0), 9, how="period")
    assert part is not None
    assert part.cells.tolist() == pattern[3:6, 4:7].tolist()
    quarter = np.arange(16).reshape(4, 4) % 7 + 1
    mirrored = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]]).astype(np.int8)
    holed = mirrored.copy()
    holed[0:3, 0:3] = 9
    whole = repair.repair(Image(holed, 0, 0), 9, how="symmetry")
    assert whole is not None
    assert whole.cells.tolist() == mirrored.tolist()
    assert repair.repair(Image(mirrored, 0, 0), 9, how="both") is None


def test_a_period_is_found_from_few_cells() -> None:
    pattern = np.fromfunction(lambda y, x: (y + x) % 3 + 1, (7, 7)).astype(np.int8)
    sparse = np.where(np.fromfunction(lambda y, x: y + x >= 11, (7, 7)), pattern, 0).astype(np.int8)
    whole = repair.by_period(np.where(sparse == 0, repair.HIDDEN, sparse).astype(np.int8))
    assert (whole == repair.HIDDEN).any()  # three cells say too little
    sparse = np.where(np.fromfunction(lambda y, x: y + x >= 9, (7, 7)), pattern, 0).astype(np.int8)
    whole = repair.by_period(np.where(sparse == 0, repair.HIDDEN, sparse).astype(np.int8))
    assert whole.tolist() == pattern.tolist()


@settings(max_examples=40, deadline=None)
@given(images())
def test_outer_products_are_copies_at_chosen_cells(before: Image) -> None:
    rows, columns = before.cells.shape
    chosen = {
        "outer_product": before.cells != 0,
        "outer_product inverted": before.cells == 0,
        "outer_product_majority": before.cells == majority(before.cells),
    }
    for name, places in chosen.items():
        made = ALL[name].apply(before)
        assert (made is None) == (before.cells.size**2 > MAX_CELLS)
        for (y, x), here in np.ndenumerate(places):
            if made is not None:
                block = made.cells[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
                assert block.tolist() == (before.cells * here).tolist()


@settings(max_examples=40, deadline=None)
@given(images(), images())
def test_product_of_two_parts_is_copies_of_one_at_the_cells_of_the_other(first: Image, second: Image) -> None:
    made = joined("product", first, second)
    if first.cells.size * second.cells.size > MAX_CELLS:
        assert made is None
        return
    stamp, mask = (second, first) if _colours(first) <= _colours(second) else (first, second)
    rows, columns = stamp.cells.shape
    for (y, x), colour in np.ndenumerate(mask.cells):
        block = np.array(made)[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
        assert block.tolist() == (stamp.cells * (colour != 0)).tolist()


def _colours(picture: Image) -> int:
    return len(np.unique(picture.cells[picture.cells != 0]))


@settings(max_examples=40, deadline=None)
@given(images())
def test_what_falls_keeps_its_cells_in_their_lines(before: Image) -> None:
    for direction, axis in (("down", 0), ("up", 0), ("left", 1), ("right", 1)):
        made = primitives.gravity(before, direction).cells
        lines = zip(np.rollaxis(made, 1 - axis), np.rollaxis(before.cells, 1 - axis), strict=True)
        for fallen, line in lines:
            coloured = line[line != 0].tolist()
            empty = [0] * (len(line) - len(coloured))
            assert fallen.tolist() == (empty + coloured if direction in ("down", "right") else coloured + empty)
        for single in (False, True):
            whole = patterns.fall(before, direction, single=single)
            if whole is not None:
                assert (
                    np.bincount(whole.cells.ravel(), minlength=10).tolist()
                    == np.bincount(before.cells.ravel(), minlength=10).tolist()
                )


@settings(max_examples=40, deadline=None)
@given(images())
def test_counts_show_as_many_cells_as_there_are_cells_or_components(before: Image) -> None:
    numbers = {"cells": int((before.cells != 0).sum()), "components": ndimage.label(before.cells, np.ones((3, 3)))[1]}
    for name, number in numbers.items():
        made = SIZED[f"count {name}"].apply(before, (8, 8))
        assert (made is None) == (number == 0)
        if made is not None:
            assert made.cells.ravel().tolist() == [majority(before.cells)] * number + [0] * (64 - number)


@settings(max_examples=40, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_composed_images_show_the_last_that_is_coloured(parts: list[Image]) -> None:
    made = compose(parts)
    for (y, x), colour in np.ndenumerate(embed(made, (12, 12)).cells):
        shown = [int(embed(part, (12, 12)).cells[y, x]) for part in parts]
        assert colour == next((c for c in reversed(shown) if c), 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4), st.integers(0, 3), st.integers(0, 3))
def test_repair_gives_back_what_was_hidden(seed: int, tall: int, wide: int, top: int, left: int) -> None:
    rng = np.random.default_rng(seed)
    tile = rng.integers(1, 8, (tall, wide))
    periodic = np.tile(tile, (14, 7)).astype(np.int8)[:14, :14]
    quarter = rng.integers(1, 8, (6, 6)).astype(np.int8)
    symmetric = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]])
    for how, whole in (("period", periodic), ("symmetry", symmetric)):
        holed = whole.copy()
        window = slice(top, top + 3), slice(left, left + 3)
        holed[window] = 9
        if len(np.unique(whole)) > 1 and (holed != 9).mean() > 0.5:
            made = repair.repair(Image(holed, 2, 1), 9, how=how)
            assert made is not None
            assert (made.y, made.x, made.cells.tolist()) == (2, 1, whole.tolist())
            part = repair.repaired_part(Image(holed, 2, 1), 9, how=how)
            assert part is not None
            assert (part.y, part.x, part.cells.tolist()) == (2 + top, 1 + left, whole[window].tolist())
