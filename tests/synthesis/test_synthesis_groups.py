"""Cutting, choosing and joining parts, sized primitives, and pieces that depend on the task, by hand and by property.

Images are written as rows of digits with a dot for 0, followed by @row,column unless they lie at the corner; parts are
separated by bars.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arc_ttt.synthesis import pieces
from arc_ttt.synthesis.frames import Problem
from arc_ttt.synthesis.images import Image, Size, compose, embed
from arc_ttt.synthesis.primitives import others, sized
from arc_ttt.synthesis.primitives import parts as groups
from arc_ttt.synthesis.primitives.parts import KEYS, MAX_PARTS, SELECTION_NAMES, Parts, cutters, joiners, selections
from arc_ttt.synthesis.primitives.sized import sized_primitives
from support.images import cells, images

CUTTERS = {cutter.name: cutter for cutter in cutters()}
JOINERS = {joiner.name: joiner for joiner in joiners()}
SIZED = {primitive.name: primitive for primitive in sized_primitives()}


def read(text: str) -> Image:
    rows, _, place = text.partition("@")
    y, x = map(int, place.split(",")) if place else (0, 0)
    return Image(cells(rows), y, x)


def read_parts(text: str) -> Parts:
    return tuple(map(read, text.split("|")))


def shown(image: Image | None) -> str | None:
    if image is None:
        return None
    rows = " ".join("".join(map(str, row)) for row in image.cells.tolist()).replace("0", ".")
    return f"{rows}@{image.y},{image.x}" if image.y or image.x else rows


def shown_parts(parts: Sequence[Image] | None) -> str | None:
    return None if parts is None else "|".join(str(shown(part)) for part in parts)


def problem(inputs: Sequence[str], outputs: Sequence[str]) -> Problem:
    return Problem(tuple(read(text).cells for text in inputs), tuple(read(text).cells for text in outputs), ())


CUTS: list[tuple[str, str, str | None]] = [
    ("lines rows", "1 " * (MAX_PARTS + 1), None),
    ("lines columns", "1" * (MAX_PARTS + 1), None),
    ("square_panels", "1" * (MAX_PARTS + 1), None),
    ("colour_layers", "21", "1@0,1|2"),
    ("objects 8", "1..4 2..4 .3..", "1. 2. .3|4 4@0,3"),
    ("objects 4", "1..4 2..4 .3..", "1 2|4 4@0,3|3@2,1"),
    ("objects 4", "..1 .11 2..@3,4", ".1 11@3,5|2@5,4"),
    ("objects 8", "... ...", None),
    ("colour_objects 8", "1.2 .11 2..", "1.. .11|2@0,2|2@2,0"),
    ("colour_objects 4", "1.2 .11 2..", "1|2@0,2|11@1,1|2@2,0"),
    ("colour_objects 4", "..", None),
    ("colour_layers", "1.2 .11 2..", "1.. .11|..2 ... 2.."),
    ("colour_layers", ".1.3 .13.@2,2", "1 1@2,3|.3 3.@2,4"),
    ("colour_layers", "..", None),
    ("boxes", "1.1 1.. 111", "1.1 1.. 111|1@0,2"),
    ("boxes", "111.. 121.. 111.. ....1@1,1", "111 121 111@1,1|1@4,5"),
    ("boxes", "..", None),
    ("holes", "111.. 1.1.. 11122 ..2.2 ..222", "1@1,1|1@3,3"),
    ("holes", "1111 1..1 1111@5,5", "11@6,6"),
    ("holes", "1111 1.11 11.1 1111", "1@1,1|1@2,2"),
    ("holes", "11. 1.1 111", "1@1,1"),
    ("holes", "1.1 1.1 111", None),
    ("regions", ".1. 11. ...", "1|..1 ..1 111"),
    ("regions", "1. 11 ..@2,2", "1@2,3|11@4,2"),
    ("regions", "1. .1", "1@0,1|1@1,0"),
    ("regions", "12", None),
    ("panels", "12 55 3.@1,1", "12@1,1|3.@3,1"),
    ("panels", "1512543 252154.", "1 2|12 21@0,2|43 4.@0,5"),
    ("panels", "12 3.", None),
    ("panels", "12 55", None),
    ("square_panels", "1234 5678", "12 56|34 78@0,2"),
    ("square_panels", "12 34 56 78@1,1", "12 34@1,1|56 78@3,1"),
    ("square_panels", "12 34", None),
    ("square_panels", "12 34 56", None),
    ("square_panels", "123 456", None),
    ("lines rows", "12 3.@1,1", "12@1,1|3.@2,1"),
    ("lines columns", "12 3.@1,1", "1 3@1,1|2 .@1,2"),
    ("equal_panels 1x2", "1122 3344@1,1", "11 33@1,1|22 44@1,3"),
    ("equal_panels 1x2", "123", None),
    ("equal_panels 2x1", "12 34", "12|34@1,0"),
    ("equal_panels 2x1", "1 2 3", None),
    ("equal_panels 1x3", "123 456", "1 4|2 5@0,1|3 6@0,2"),
    ("equal_panels 3x1", "12 34 56", "12|34@1,0|56@2,0"),
    ("equal_panels 2x2", "1122 3344", "11|22@0,2|33@1,0|44@1,2"),
    ("equal_panels 3x3", "123 456 789", "1|2@0,1|3@0,2|4@1,0|5@1,1|6@1,2|7@2,0|8@2,1|9@2,2"),
    ("equal_panels 1x4", "1234 5678", "1 5|2 6@0,1|3 7@0,2|4 8@0,3"),
    ("equal_panels 4x1", "12 34 56 78", "12|34@1,0|56@2,0|78@3,0"),
]

JOINS: list[tuple[str, str, str | None]] = [
    ("colours across by order", "2|.", "2."),
    ("colours down by size", "2|.", "2 ."),
    ("colours in order", "2|.@0,1", "2."),
    ("summary all", "1|2|3@0,1|4@1,0", None),
    ("grow", "3@1,1|222 222 222", "222 232 222"),
    ("grow", "44@1,3|1 1 1@1,1", "1.44 1... 1...@1,1"),
    ("grow", "22|333@0,1|5@0,1", "2533"),
    ("shrink", "3@1,1|222 222 222", "222 222 222"),
    ("shrink", "22|333@0,1|5@0,1", "2333"),
    ("stack down by order", "12@3,3|34", "12 34"),
    ("stack down by order", "12|3", None),
    ("stack down by order", "12", None),
    ("stack down by size", "1.|22 22|33", "22 22 33 1."),
    ("stack across by order", "1 2@3,3|3. 4.", "13. 24."),
    ("stack across by order", "1 2|3", None),
    ("stack across by size", "1 .|3. 4.|55 5.", "553.1 5.4.."),
    ("colours down by order", "11 12@7,7|3|2 2", "1 3 2"),
    ("colours down by axis", "1@5,0|2@2,3|3@0,7", "3 2 1"),
    ("colours down by size", "1|22|333", "3 2 1"),
    ("colours across by order", "11 12@7,7|3|2 2", "132"),
    ("colours across by axis", "1@0,5|2@3,2|3@7,1", "321"),
    ("colours across by size", "1|22|333", "321"),
    ("lay_over first", "1..4@2,2|22..|333.", "1234"),
    ("lay_over last", "1..4@2,2|22..|333.", "3334"),
    ("lay_over last", "12|3", None),
    ("lay_over first", "12", None),
    ("lay_over and", "11. ...@2,2|1.1 ...", "1.. ..."),
    ("lay_over nor", "11. 1..@2,2|1.1 ...", "... .11"),
    ("lay_over xor", "11. ...@2,2|1.1 ...", ".11 ..."),
    ("lay_over and", "11|1.|.1", ".."),
    ("lay_over nor", "11.|1..|.1.", "..1"),
    ("colours in order", "44@9,0|21 22@0,1|3@5,2", "2 3 4"),
    ("colours in order", "44@0,9|21 22@1,0|3@2,5", "234"),
    ("colours in order", "1@2,2|2@0,0", None),
    ("product", "1. .1@4,4|23 2.", "23.. 2... ..23 ..2."),
    ("product", "1|2|3", None),
    ("centred grow", "222@4,4|1 1 1 1 1", ".1. .1. 222 .1. .1."),
    ("centred shrink", "222@4,4|1 1 1 1 1", ".1. .1. 212 .1. .1."),
    ("summary all", "1. 11@2,2|.. ..@2,5|3. ..@6,2|4. 44@6,5", "1. 34"),
    ("summary fullest", "1. 11@2,2|.. ..@2,5|3. ..@6,2|4. 44@6,5", "1. .4"),
    ("summary whole", "1. 11@2,2|.. ..@2,5|3. ..@6,2|4. 44@6,5", ".. .."),
    ("summary all", "11 11|22 2.@0,2|3 3@2,0|.. ..@2,2", "12 3."),
    ("summary fullest", "11 11|22 2.@0,2|3 3@2,0|.. ..@2,2", "1. .."),
    ("summary whole", "11 11|22 2.@0,2|3 3@2,0|.. ..@2,2", "1. 3."),
    ("summary all", "112|332@0,4", "13"),
    ("summary all", "1|2@0,1|3@1,0", None),
    ("summary whole", "1", None),
]

CHOICES: list[tuple[str, str, str, str]] = [  # key, parts, those with most of it, those with least
    ("neighbours", "11 11|2. .2|3", "0", "12"),
    ("colour", "1|2|3", "2", "0"),
    ("same colour", "..|22|2.|3", "12", "03"),
    ("cells", "111|2 2|3", "0", "2"),
    ("cells", "11|2|3", "0", "12"),
    ("cells", "1|23|34|5", "12", "03"),
    ("area", "1.. ..1|22 22|3", "0", "2"),
    ("colours", "12|333|4", "0", "12"),
    ("top", "1@3,0|2@0,5|3@1,0", "1", "0"),
    ("bottom", "1 1 1|2@1,0|3@5,0", "2", "1"),
    ("leftmost", "1@0,3|2@5,0|3@0,1", "1", "0"),
    ("rightmost", "111|2@0,1|3@0,5", "2", "1"),
    ("symmetric", "1.1 .2. 1.1|11 22|1. 22", "0", "2"),
    ("symmetric", "1|12|1. 22", "0", "2"),
    ("holes", "11111 1.1.1 11111|222 2.2 222|333 3.3", "0", "2"),
    ("holes", "11111 1.1.1 11111|2222 2..2 2222|333 333 333", "0", "2"),
    ("background", "1.. ..1|2. 22|33", "0", "2"),
    ("copies", "11|22|1|11@4,4", "03", "12"),
    ("shapes", "11|22|3|4 4", "01", "23"),
    ("same colour", "1|1 1|2|3", "01", "23"),
    ("height", "1 1 1|22|3", "0", "12"),
    ("width", "111|2 2|3", "0", "12"),
    ("density", "11|2. 22|3. .3", "0", "2"),
    ("minority", "11122|23|444", "0", "2"),
    ("square", "11 11|22|3 3 3", "0", "12"),
    ("solid", "11 11|2. 22|3. .3", "0", "12"),
    *((f"colour {c}", f"{c}{c}|{c}{c % 9 + 1}|{c % 9 + 1}", "0", "2") for c in range(1, 10)),
]

IN_SIZE: list[tuple[str, str, Size, str | None]] = [
    ("place_in_output", "12@1,2", (2, 3), "... ..1"),
    ("place_in_output", "12 34@-1,-1", (2, 2), "4. .."),
    ("broadcast", "12 34@1,1", (4, 2), "12 12 34 34"),
    ("broadcast", "12 34", (4, 4), "1122 1122 3344 3344"),
    ("broadcast", "12", (2, 3), None),
    ("tile", "12 34@1,1", (3, 3), "121 343 121"),
    ("tile", "123 456", (1, 2), "12"),
    ("tile anchored", "12 34@1,2", (3, 4), "3434 1212 3434"),
    ("tile anchored", "123@0,1", (1, 5), "31231"),
    ("tile anchored", "1 2 3@-1,0", (4, 1), "2 3 1 2"),
    ("tile anchored", "12@0,3", (1, 2), "21"),
    ("tile mirrored", "12 34@1,1", (4, 5), "12211 34433 34433 12211"),
    ("window top left", "1234 5678 9123", (2, 3), "123 567"),
    ("window top right", "1234 5678 9123@5,5", (2, 3), "234 678@5,6"),
    ("window bottom left", "1234 5678 9123@5,5", (2, 3), "567 912@6,5"),
    ("window bottom right", "1234 5678 9123", (2, 3), "678 123@1,1"),
    ("window middle", "1234 5678 9123@5,5", (1, 2), "67@6,6"),
    ("window top left", "12 34", (2, 2), None),
    ("window bottom right", "12 34", (1, 3), None),
    ("colour_everywhere", "1.22", (2, 1), "2 2"),
    ("colour_everywhere", "..", (2, 1), None),
    ("histogram top", "331 312", (4, 4), "312. 31.. 3... ...."),
    ("histogram top", "331 312", (3, 2), None),
    ("histogram top", "331 312", (2, 3), None),
    ("histogram left", "331 312", (4, 4), "333. 11.. 2... ...."),
    ("histogram left", "331 312", (3, 2), None),
    ("histogram left", "..", (3, 3), None),
    ("colour_bar", "331 312", (2, 2), "31 2."),
    ("colour_bar", "331 312", (3, 1), "3 1 2"),
    ("count cells", "1.2 22.", (2, 3), "222 2.."),
    ("count cells", "111", (1, 2), None),
    ("count cells", "..", (1, 2), None),
    ("count components", "1.22 ...2 3...", (2, 2), "22 2."),
    ("count components", "1. .1", (1, 2), "1."),
    ("count components", "1.1", (1, 1), None),
    ("count components by column", "1.22 ...2 3...", (2, 3), "22. 2.."),
    ("count components by column", "..", (2, 2), None),
    ("reading_order", "1.2 .3.", (2, 2), "12 3."),
    ("reading_order", "1.2 .3.", (1, 2), None),
    ("reading_order", "..", (1, 2), None),
    ("reading_order by column", "1.2 .3.", (2, 2), "13 2."),
]

HIDDEN: list[tuple[str, str, str | None, str | None]] = [  # way of repair, picture with # hidden, whole, part
    ("period", "123123 231231 312312 123#23@1,1", "123123 231231 312312 123123@1,1", "1@4,4"),
    ("period", "1#3123 2312#1 312312 123123", "123123 231231 312312 123123", "2312 3123@0,1"),
    ("period", "##4431 2#7762 158851 342243", None, None),
    ("period", "#221#221# #554#554# #336#336#", None, None),
    ("symmetry", "##4431 2#7762 158851 342243@1,1", "134431 267762 158851 342243@1,1", "13 26@1,1"),
    ("symmetry", "123123 231231 312312 123#23", None, None),
    ("symmetry", "#221#221# #554#554# #336#336#", None, None),
    ("both", "123123 231231 312312 123#23", "123123 231231 312312 123123", "1@3,3"),
    ("both", "##4431 2#7762 158851 342243", "134431 267762 158851 342243", "13 26"),
    ("both", "#221#221# #554#554# #336#336#", "122112211 455445544 633663366", "122112211 455445544 633663366"),
    ("both", "123123 231231 312312 123123", None, None),
]
REPAIRED = [
    (f"{name} {colour} by {how}", before.replace("#", str(colour)), after)
    for how, before, whole, part in HIDDEN
    for colour in (0, 9)
    for name, after in (("repair", whole), ("repaired_part", part))
]

ABOUT_THREE: list[tuple[str, str, str | None]] = [
    ("symmetric_about 3 rows", "4.... 23... ..... .....@1,1", "4.... 23... 4.... .....@1,1"),
    ("symmetric_about 3 columns", "4.... 23... ..... .....", "4.4.. 232.. ..... ....."),
    ("symmetric_about 3 columns", "133...", "1331.."),
    ("symmetric_about 3 both", "4.... 23... ..... .....", "4.4.. 232.. 4.4.. ....."),
    ("symmetric_about 3 all", "4.... 23... ..... .....", "424.. 232.. 424.. ....."),
    ("attract objects to 3", "3.... ..... 12... ..... ...4.", "3.... 12... ..... ..... ....."),
    ("attract objects to 3", "1..3.24@1,1", "..1324.@1,1"),
    ("attract colour objects to 3", "3.... ..... 12... ..... ...4.", "3.... 1.... ..... ..... ....."),
]

EACH_PART: list[tuple[str, str, str]] = [
    ("hull", "1.... 11.2. ....2", "11... 11.22 ...22"),
    ("fill 4", "111.. 1.1.. 111.2", "111 111 111"),
    ("smear right+left", "2... .3.. ...4", "22.. 33.. ...4"),
    ("smear down+up", "2... .3.. ...4", "23.. 23.. ...4"),
    ("mirror columns", "111.. 1.... 1...2", "111.. 1.1.. 1.1.2"),
    ("mirror rows", "111.. 1.... 1...2", "111.. 1.... 111.2"),
    ("mirror both", "111.. 1.... 1...2", "111.. 1.1.. 111.2"),
    ("mirror all", "11... .1... .11.2", "111.. 111.. 111.2"),
    ("mirror all", "11... .1..2 .11.2", "111 111 111"),
    ("halo 8", "2... .2.. ...3", ".1 1."),
]

ALIKE: list[tuple[str, str, str, str]] = [  # property, two inputs with the same value, one with another
    ("number of objects", "1.1 ...", "2.2 ..2", "11. ..."),
    ("number of cells", "11 ..", ".2 3.", "1. .."),
    ("number of colours", "12 ..", "34 3.", "11 .."),
    ("colours", "12 ..", "21 2.", "13 .."),
    ("main colour", "112", "1 1", "122"),
    ("size", "12", ".3", "1 2"),
    ("filled cells", "12 .3", "31 .1", "12 3."),
    ("shape of the largest object", "11.. ...2", "2... .... ..33", "1... 1..2"),
    ("symmetries", "1.2 ...", "3.4 5.5 .2.", "11. ..."),
    ("symmetries", "1. 1.", "23. .2. 23.", "1. .."),
    ("symmetries", "1.. ..1", "22. .33", "1.. ..."),
]
LIKE: list[tuple[str, str, str, str]] = [  # likeness, two inputs that are much alike, one that is not
    ("its cells", "12 34", "12 35", "43 21"),
    ("its cells", "12 34", "12 35", "12 34 12"),
    ("filled cells", "12 ..", "34 ..", ".. 11"),
    ("its colour counts", "123 ...", "... 321", "444 ..."),
]


@pytest.mark.parametrize(("name", "before", "after"), CUTS)
def test_parts_by_hand(name: str, before: str, after: str | None) -> None:
    assert shown_parts(CUTTERS[name].apply(read(before))) == after


@pytest.mark.parametrize(("name", "parts", "after"), JOINS)
def test_joined_by_hand(name: str, parts: str, after: str | None) -> None:
    assert shown(JOINERS[name].apply(read_parts(parts))) == after


def numbers(chosen: int) -> str:
    """The numbers of the chosen parts, at most ten."""
    return "".join(str(number) for number in range(10) if chosen >> number & 1)


def check_choice(key: str, parts: str, most: str, least: str) -> None:
    found = read_parts(parts)
    chosen = dict(zip(SELECTION_NAMES, map(numbers, selections(found)), strict=True))
    for word, best in (("most", most), ("least", least)):
        rest = "".join(str(number) for number in range(len(found)) if str(number) not in best)
        assert chosen[f"the one with {word} {key}"] == (best if len(best) == 1 else "")
        assert chosen[f"all with {word} {key}"] == best
        assert chosen[f"all but those with {word} {key}"] == rest


@pytest.mark.parametrize(("key", "parts", "most", "least"), CHOICES)
def test_chosen_by_hand(key: str, parts: str, most: str, least: str) -> None:
    check_choice(key, parts, most, least)


@pytest.mark.parametrize(("name", "before", "size", "after"), IN_SIZE)
def test_sized_by_hand(name: str, before: str, size: Size, after: str | None) -> None:
    assert shown(SIZED[name].apply(read(before), size)) == after


def test_histograms_may_stand_on_any_side() -> None:
    assert shown(sized.histogram(read("331 312"), (4, 4), side="bottom")) == ".... 3... 31.. 312."
    assert shown(sized.histogram(read("331 312"), (4, 4), side="right")) == ".333 ..11 ...2 ...."


@pytest.mark.parametrize(("name", "before", "after"), REPAIRED)
def test_repaired_by_hand(name: str, before: str, after: str | None) -> None:
    found = {primitive.name: primitive for primitive in pieces.repairs(problem(["9"], []))}
    assert shown(found[name].apply(read(before))) == after


@pytest.mark.parametrize(("name", "before", "after"), ABOUT_THREE)
def test_about_a_colour_by_hand(name: str, before: str, after: str | None) -> None:
    found = {primitive.name: primitive for primitive in pieces.about_colours(problem(["3"], []))}
    assert shown(found[name].apply(read(before))) == after


@pytest.mark.parametrize(("name", "before", "after"), EACH_PART)
def test_every_part_is_changed_in_its_box_or_left_out(name: str, before: str, after: str) -> None:
    found = {primitive.name: primitive for primitive in pieces.part_primitives()}
    parts = CUTTERS["objects 8"].apply(read(before))
    assert parts is not None
    mapped = groups.map_parts(parts, found[name].apply)
    assert mapped is not None
    assert shown(JOINERS["grow"].apply(mapped)) == after


def test_no_parts_are_left_where_a_primitive_applies_to_none() -> None:
    fill = next(primitive for primitive in pieces.part_primitives() if primitive.name == "fill 4")
    assert groups.map_parts(read_parts("11|2"), fill.apply) is None


def test_everything_has_a_case_by_hand() -> None:
    assert {row[0] for row in CUTS} == set(CUTTERS)
    assert {row[0] for row in JOINS} == set(JOINERS)
    assert {row[0] for row in IN_SIZE} == set(SIZED)
    keys = {row[0] for row in CHOICES}
    assert keys == set(KEYS)
    hows = ("the one with", "all with", "all but those with")
    assert {" ".join(row) for row in itertools.product(hows, ("most", "least"), keys)} == set(SELECTION_NAMES)
    assert {row[0] for row in REPAIRED} == {primitive.name for primitive in pieces.repairs(problem(["9"], []))}
    assert {row[0] for row in ABOUT_THREE} == {primitive.name for primitive in pieces.about_colours(problem(["3"], []))}
    assert {row[0] for row in EACH_PART} == {primitive.name for primitive in pieces.part_primitives()}
    assert {row[0] for row in ALIKE} == set(others.PROPERTIES)
    assert {row[0] for row in LIKE} == set(others.LIKENESSES)


def test_every_table_of_names_has_each_name_once() -> None:
    for made in (cutters(), joiners(), sized_primitives(), pieces.part_primitives()):
        names = [entry.name for entry in made]
        assert len(set(names)) == len(names)
    assert len(set(SELECTION_NAMES)) == len(SELECTION_NAMES)


def test_a_lone_part_can_only_be_the_one() -> None:
    for name, chosen in zip(SELECTION_NAMES, selections(read_parts("12")), strict=True):
        assert chosen == name.startswith("the one with"), name


def test_equal_parts_are_not_told_apart() -> None:
    assert not any(selections(read_parts("12|12|12")))


def test_choices_are_made_alike_in_all_groups() -> None:
    parts = [read_parts("1|22@0,1"), read_parts("33|4@1,0|5@2,0")]
    found = {name: [shown(image) for image in state] for state, name in pieces.choose(parts)}
    assert found["the one with most cells"] == ["22@0,1", "33"]
    assert found["all but those with most cells"] == ["1", "4 5@1,0"]
    assert "the one with least cells" not in found
    assert "all with most cells" not in found


def test_joiners_that_fail_for_one_group_are_left_out() -> None:
    parts = [read_parts("1|2"), read_parts("3|44@1,0")]
    found = {name: [shown(image) for image in state] for state, name in pieces.join(parts, joiners())}
    assert found["stack across by order"] == ["12", "344"]
    assert found["grow"] == ["2", "3. 44"]
    assert "stack down by order" not in found


def test_images_are_cut_when_all_can_be_and_one_falls_apart() -> None:
    rows = CUTTERS["objects 4"]
    cut = pieces.cut_all(rows, (read("1.2"), read("3")))
    assert cut is not None
    assert [shown_parts(parts) for parts in cut] == ["1|2@0,2", "3"]
    assert pieces.cut_all(rows, (read("1.2"), read("."))) is None
    assert pieces.cut_all(rows, (read("1"), read("3"))) is None


def test_a_primitive_applies_to_a_state_when_it_applies_to_all_images() -> None:
    fill = next(primitive for primitive in pieces.part_primitives() if primitive.name == "fill 4").apply
    ring = read("111 1.1 111")
    made = pieces.apply_to_all(fill, (ring, ring))
    assert made is not None
    assert [shown(image) for image in made] == ["111 111 111"] * 2
    assert pieces.apply_to_all(fill, (ring, read("1"))) is None


def test_primitives_are_made_for_the_colours_that_all_inputs_show() -> None:
    made = problem(["1234", "43.1", "113"], ["1", "4"])
    assert pieces.shared_colours(made) == (1, 3)
    assert {name.split()[1] for name in (entry.name for entry in pieces.repairs(made))} == {"0", "1", "3"}
    about = {entry.name for entry in pieces.about_colours(made)}
    assert about == {row[0].replace("3", colour) for row in ABOUT_THREE for colour in "13"}
    assert pieces.about_colours(problem(["1", "2"], ["1"])) == []


def started(made: Problem, sizes: list[Size] | None) -> dict[str, list[str | None]]:
    return {name: [shown(image) for image in state] for state, _, name in pieces.starts(made, sizes)}


def test_programs_start_from_inputs_an_empty_output_and_what_outputs_share() -> None:
    made = problem(["12", "2 1", "3"], ["1.3 22.", "1.4 2.5"])
    found = started(made, [(2, 3)] * 3)
    assert found["input"] == ["12", "2 1", "3"]
    assert found["empty output"] == ["... ..."] * 3
    assert found["what all outputs share"] == ["1.. 2.."] * 3
    assert list(started(made, None)) == ["input"]
    assert "what all outputs share" not in started(problem(["1", "2"], ["12"]), [(1, 2)] * 2)
    assert "what all outputs share" not in started(made, [(2, 3), (2, 3), (1, 1)])
    uneven = started(problem(["12", "2 1"], ["12", "2 1"]), [(1, 2), (2, 1)])
    assert uneven["empty output"] == ["..", ". ."]
    assert "what all outputs share" not in uneven


@pytest.mark.parametrize(
    ("name", "one", "near", "far"),
    [(f"output with the same {row[0]}", *row[1:]) for row in ALIKE]
    + [(f"output of the input most alike in {row[0]}", *row[1:]) for row in LIKE],
)
def test_outputs_of_others_by_hand(name: str, one: str, near: str, far: str) -> None:
    made = problem([one, near, far, far, one, far], ["12", "12", "34", "34"])
    found = started(made, [(1, 2)] * 6)
    assert found[name] == ["12", "12", "34", "34", "12", "34"]


def test_outputs_of_others_are_left_out_when_they_do_not_help() -> None:
    name, inputs = "output with the same number of cells", ["1", "2", "12", "21", "3"]
    sizes: list[Size] = [(1, 1)] * 5
    assert started(problem(inputs, ["1", "1", "5", "5"]), sizes)[name] == ["1", "1", "5", "5", "1"]
    assert started(problem(inputs, ["1", "1", "5", "6"]), sizes)[name] == ["1", "1", "6", "5", "1"]
    assert name not in started(problem(inputs, ["1", "2", "5", "6"]), sizes)
    assert name not in started(problem(inputs, ["1", "1", "1", "1"]), sizes)
    assert name not in started(problem([*inputs[:4], "123"], ["1", "1", "5", "5"]), sizes)
    assert name not in started(problem([*inputs[:3], "3"], ["1", "1", "5"]), sizes[:4])
    assert list(others.other_outputs(problem(["1", "2"], ["1"]), sizes[:2])) == []


def test_outputs_of_others_have_the_size_of_the_own() -> None:
    made = problem(["1", "2", "3", "4", "5", "6"], ["12", "12", "5 6", "5 6"])
    found = started(made, [(1, 2), (1, 2), (2, 1), (2, 1), (2, 1), (1, 2)])
    assert found["output with the same number of cells"] == ["12", "12", "5 6", "5 6", "5 6", "12"]


def test_of_equally_good_demonstrations_the_first_gives_its_output() -> None:
    made = problem(["1", "2", "3", "12", "21", "4"], ["7", "7", "8", "5", "5"])
    found = started(made, [(1, 1)] * 6)
    assert found["output with the same number of cells"] == ["7", "7", "7", "5", "5", "7"]


ONCE = ("objects 8", "objects 4", "colour_objects 8", "colour_objects 4", "colour_layers")


def lying(part: Image, whole: Image) -> NDArray[np.int8]:
    """`part` on an empty grid of the size of `whole`, where it lies in it."""
    rows, columns = whole.cells.shape
    return embed(Image(part.cells, part.y - whole.y, part.x - whole.x), (rows, columns)).cells


@settings(max_examples=60, deadline=None)
@given(images())
def test_parts_cover_what_they_should_and_lie_where_they_were(before: Image) -> None:
    cells = before.cells
    for name, cutter in CUTTERS.items():
        parts = cutter.apply(before)
        if parts is None:
            continue
        assert 0 < len(parts) <= MAX_PARTS, name
        source = (cells == 0).astype(np.int8) if name in ("holes", "regions") else cells
        covered, boxes = np.zeros(cells.shape, dtype=int), np.zeros(cells.shape, dtype=int)
        for part in parts:
            here = lying(part, before)
            assert np.count_nonzero(here) == np.count_nonzero(part.cells), name
            assert (here[here != 0] == source[here != 0]).all(), name
            covered += here != 0
            boxes += lying(Image(np.ones_like(part.cells), part.y, part.x), before)
        if name in ONCE or name == "regions":
            assert (covered == (source != 0)).all(), name
        elif name.startswith(("lines", "equal_panels", "square_panels")):
            assert (boxes == 1).all(), name
        elif name == "boxes":
            assert ((covered > 0) == (cells != 0)).all(), name
        else:
            assert boxes.max() == 1 or name == "holes", name
            assert covered.max() <= 1, name


@settings(max_examples=60, deadline=None)
@given(images())
def test_parts_come_in_reading_order(before: Image) -> None:
    for name, cutter in CUTTERS.items():
        parts = cutter.apply(before) or ()
        if name in ("objects 8", "objects 4", "holes", "regions"):
            firsts = [int(lying(part, before).ravel().nonzero()[0][0]) for part in parts]
            assert firsts == sorted(firsts), name
        elif name not in ("colour_layers", "boxes"):
            places = [(part.y, part.x) for part in parts]
            assert places == sorted(places), name


@settings(max_examples=40, deadline=None)
@given(images())
def test_colour_parts_are_of_one_colour_and_fit_tightly(before: Image) -> None:
    for name in ONCE:
        for part in CUTTERS[name].apply(before) or ():
            full = part.cells != 0
            assert full.any(axis=0)[[0, -1]].all(), name
            assert full.any(axis=1)[[0, -1]].all(), name
            assert name.startswith("objects") or len(np.unique(part.cells[full])) == 1, name


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *((name, ["1."]) for name in ("objects 8", "objects 4", "colour_objects 8", "colour_objects 4", "boxes")),
        ("regions", ["1."]),
        ("holes", ["11", ".1", "11"]),
        ("panels", ["15", "25"]),
    ],
)
def test_an_image_of_too_many_parts_is_not_cut(name: str, rows: list[str]) -> None:
    cut, uncut = (read(" ".join("1" * (name == "holes") + row * number for row in rows)) for number in (40, 41))
    assert len(CUTTERS[name].apply(cut) or ()) == MAX_PARTS == 40
    assert CUTTERS[name].apply(uncut) is None


@settings(max_examples=60, deadline=None)
@given(images())
def test_divisions_are_undone_by_stacks_and_summaries(before: Image) -> None:
    whole = before.cells.tolist()
    for name, joiner in (("lines rows", "stack down by order"), ("lines columns", "stack across by order")):
        parts = CUTTERS[name].apply(before)
        assert parts is not None
        made = JOINERS[joiner].apply(parts)
        assert (made is None) == (len(parts) == 1)
        assert made is None or made.cells.tolist() == whole
    for rows, columns in itertools.product(range(1, 5), repeat=2):
        parts = groups.equal_panels(before, rows, columns)
        assert (parts is None) == (before.cells.shape[0] % rows > 0 or before.cells.shape[1] % columns > 0)
        if parts is not None:
            assert len(parts) == rows * columns
            assert len({part.cells.shape for part in parts}) == 1
            assert compose(parts).cells.tolist() == whole
    single = groups.equal_panels(before, *before.cells.shape)
    assert (single is None) == (before.cells.size > MAX_PARTS)
    if single is None:
        return
    summed = groups.summary(single, how="all")
    assert (summed is None) == (len(single) == 1)
    assert summed is None or summed.cells.tolist() == whole


@settings(max_examples=40, deadline=None)
@given(images(), st.sampled_from(sorted(CUTTERS)))
def test_joined_parts_are_well_formed_and_show_no_new_colours(before: Image, cutter: str) -> None:
    parts = CUTTERS[cutter].apply(before)
    if parts is None or not all(part.cells.any() for part in parts):
        return
    raw = [part.cells.copy() for part in parts]
    counts = np.sum([np.bincount(cells.ravel(), minlength=10) for cells in raw], axis=0)
    for name, joiner in JOINERS.items():
        made = joiner.apply(parts)
        if made is None:
            continue
        assert made.cells.ndim == 2, name
        assert made.cells.dtype == np.int8, name
        new = {1} if name == "lay_over nor" else set()
        assert set(made.cells.ravel().tolist()) <= {0, *counts.nonzero()[0].tolist()} | new, name
        if name.startswith(("stack", "colours", "lay_over", "product", "summary")):
            assert (made.y, made.x) == (0, 0), name
        if name.startswith("colours"):
            assert sorted(made.cells.shape) == [1, len(parts)], name
        if name.startswith("stack"):
            assert np.bincount(made.cells.ravel(), minlength=10).tolist() == counts.tolist(), name
    for part, grid in zip(parts, raw, strict=True):
        assert (part.cells == grid).all()
    grown, shrunk = JOINERS["grow"].apply(parts), JOINERS["shrink"].apply(parts)
    assert grown is not None
    assert shrunk is not None
    assert ((grown.cells != 0) == (shrunk.cells != 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=2, max_size=4))
def test_layers_show_the_first_or_the_last_and_obey_logic(rows: list[list[int]]) -> None:
    parts = tuple(Image(np.array(row, dtype=np.int8).reshape(2, 3), 1, 2) for row in rows)
    made = {how: JOINERS[f"lay_over {how}"].apply(parts) for how in ("first", "last", "and", "nor", "xor")}
    flat = {how: image.cells.ravel().tolist() for how, image in made.items() if image is not None}
    for place, column in enumerate(zip(*rows, strict=True)):
        coloured = [colour for colour in column if colour]
        assert flat["first"][place] == (coloured[0] if coloured else 0)
        assert flat["last"][place] == (coloured[-1] if coloured else 0)
        assert bool(flat["and"][place]) == (len(coloured) == len(column))
        assert bool(flat["nor"][place]) == (not coloured)
        if len(column) == 2:
            assert bool(flat["xor"][place]) == (len(coloured) == 1)
    assert shown(JOINERS["lay_over last"].apply(parts[::-1])) == shown(made["first"])


@settings(max_examples=40, deadline=None)
@given(st.lists(images(), min_size=4, max_size=4), st.permutations(range(4)))
def test_choices_do_not_depend_on_the_order_of_parts(parts: list[Image], order: list[int]) -> None:
    chosen, turned = (
        dict(zip(SELECTION_NAMES, map(numbers, selections(tuple(some))), strict=True))
        for some in (parts, [parts[number] for number in order])
    )
    for name in SELECTION_NAMES:
        assert "".join(sorted(str(order[int(number)]) for number in turned[name])) == chosen[name], name
    for rest in itertools.product(("most", "least"), KEYS):
        one, some, others_of_it = (
            chosen[" ".join((how, *rest))] for how in ("the one with", "all with", "all but those with")
        )
        assert one == (some if len(some) == 1 else ""), rest
        assert "".join(sorted(some + others_of_it)) in ("", "0123"), rest


@settings(max_examples=60, deadline=None)
@given(images(), st.integers(1, 9), st.integers(1, 9))
def test_sized_primitives_show_no_new_colours_and_keep_what_they_keep(before: Image, rows: int, columns: int) -> None:
    size, cells = (rows, columns), before.cells
    made = {name: primitive.apply(before, size) for name, primitive in SIZED.items()}
    for name, image in made.items():
        if image is not None:
            assert image.cells.shape == size, name
            assert set(image.cells.ravel().tolist()) <= {0, *cells.ravel().tolist()}, name
            if not name.startswith("window"):
                assert (image.y, image.x) == (0, 0), name
    for name in ("place_in_output", "broadcast", "tile", "tile anchored", "colour_everywhere"):
        once = made[name]
        assert once is None or shown(SIZED[name].apply(once, size)) == shown(once), name
    anchored, placed = made["tile anchored"], made["place_in_output"]
    assert anchored is not None
    assert placed is not None
    assert (anchored.cells[placed.cells != 0] == placed.cells[placed.cells != 0]).all()
    for at in sized.WINDOWS:
        image = made[f"window {at}"]
        larger = cells.shape != size and cells.shape[0] >= rows and cells.shape[1] >= columns
        assert (image is not None) == larger, at
        if image is not None:
            y, x = image.y - before.y, image.x - before.x
            assert image.cells.tolist() == cells[y : y + rows, x : x + columns].tolist(), at
    read_out = made["reading_order"]
    if read_out is not None:
        line = read_out.cells.ravel()
        assert line[line != 0].tolist() == cells[cells != 0].tolist()
