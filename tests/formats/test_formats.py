"""Formats: exact tokens and texts, spans, and the automaton that keeps every answer a grid."""

from __future__ import annotations

import random
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.errors import ModelError
from arc_ttt.formats.architects import ArchitectsFormat
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import Format, TokenSequence
from arc_ttt.formats.marc import MarcFormat
from arc_ttt.formats.reader import GridSyntax
from arc_ttt.formats.text import TextFormat
from arc_ttt.tasks.grids import Example, Grid, freeze
from support.small_tokenizers import BOS, NoTokenizer, make, random_grid, tokenizer_for

fuzz = settings(max_examples=40, deadline=None, database=None)


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


GRIDS = st.builds(random_grid, st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
SMALL_GRIDS = st.builds(random_grid, st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
EXAMPLES = st.lists(st.builds(Example, SMALL_GRIDS, SMALL_GRIDS), max_size=3)

DEMONSTRATION = Example(grid("01", "23"), grid("4"))
SECOND = Example(grid("5"), grid("67"))
QUERY, ANSWER = grid("8"), grid("90", "12")


@cache
def form_of(name: str) -> Format:
    """ "compact", or a text format with a kind of tokenizer: "marc-llama"."""
    if name == "compact":
        return CompactFormat()
    kind, _, tokenizer = name.partition("-")
    return make(kind, tokenizer_for(kind, tokenizer))


TEXT_FORMATS = [f"{name}-{kind}" for name in ("architects", "marc", "barc") for kind in ("characters", "llama")]
GREEDY = [f"{name}-greedy" for name in ("architects", "marc", "barc")]
FORMATS = ["compact", *TEXT_FORMATS]


def test_the_tokenizers_of_this_file_cut_as_they_should() -> None:
    """Guards this file: without tokens of several cells, and of several rows, the tests below would show little."""
    ids, offsets = tokenizer_for("architects", "llama").encode(f"{BOS}123\n12")
    assert len(ids) < 7
    assert offsets[0] == (0, len(BOS))
    texts = [text for text in tokenizer_for("architects", "greedy").token_texts() if text]
    assert any(re.fullmatch(r"\d+\n\d+", text) for text in texts)
    assert any(re.fullmatch(r"\d\d\d?", text or "") for text in tokenizer_for("architects", "llama").token_texts())
    assert len(tokenizer_for("barc", "llama").encode("Black Orange\nRed")[0]) == 4


# compact


def slow_compact(grids: list[Grid | None]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Ids, positions and output spans of grids, inputs and outputs in turn, cell by cell. None: only the marker."""
    ids, positions, spans = [], [], []
    for z, picture in enumerate(grids):
        ids.append(12 if z % 2 else 11)
        positions.append(4096 * z + 64)
        start = len(ids)
        if picture is None:
            continue
        height, width = picture.shape
        for r in range(1, height + 1):
            for c in range(1, width + 1):
                ids.append(int(picture[r - 1, c - 1]))
                positions.append(4096 * z + 64 * r + c)
            ids.append(13 if r == height else 10)
            positions.append(4096 * z + 64 * (r + 1))
        if z % 2:
            spans.append((start, len(ids)))
    return ids, positions, spans


def test_compact_written_out_by_hand() -> None:
    sequence = CompactFormat().encode([DEMONSTRATION], QUERY, ANSWER)
    expected = [
        (11, 64), (0, 65), (1, 66), (10, 128), (2, 129), (3, 130), (13, 192),
        (12, 4096 + 64), (4, 4096 + 65), (13, 4096 + 128),
        (11, 8192 + 64), (8, 8192 + 65), (13, 8192 + 128),
        (12, 12288 + 64), (9, 12288 + 65), (0, 12288 + 66), (10, 12288 + 128),
        (1, 12288 + 129), (2, 12288 + 130), (13, 12288 + 192),
    ]  # fmt: skip
    assert list(zip(sequence.ids.tolist(), sequence.positions.tolist(), strict=True)) == expected
    assert sequence.outputs == ((8, 10), (14, 20))
    assert np.flatnonzero(sequence.loss_mask).tolist() == list(range(14, 20))


@given(st.lists(st.builds(Example, GRIDS, GRIDS), max_size=3), GRIDS, st.none() | GRIDS)
@fuzz
def test_compact_is_the_obvious_cell_by_cell_writing(pairs: list[Example], query: Grid, answer: Grid | None) -> None:
    sequence = CompactFormat().encode(pairs, query, answer)
    ids, positions, spans = slow_compact([g for e in pairs for g in (e.input, e.output)] + [query, answer])
    assert sequence.ids.tolist() == ids
    assert sequence.positions.tolist() == positions
    assert list(sequence.outputs) == spans
    assert sequence.ids.dtype == sequence.positions.dtype == np.int64
    marked = np.flatnonzero(sequence.loss_mask).tolist()
    assert marked == ([] if answer is None else list(range(*spans[-1])))


@given(st.lists(st.builds(Example, GRIDS, GRIDS), max_size=3), GRIDS)
@fuzz
def test_compact_positions_are_distinct(pairs: list[Example], query: Grid) -> None:
    positions = CompactFormat().encode(pairs, query, query).positions.tolist()
    assert len(set(positions)) == len(positions)
    assert positions == sorted(positions)


# texts, written out by hand

ARCHITECTS = (
    "<|begin_of_text|>ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjklmnpqrstuvwxyz"
    "I01\n23\n+/-=O4\n<|end_of_text|>"
    "I5\n+/-=O67\n<|end_of_text|>"
    "I8\n+/-=O"
)
MARC = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Figure out the underlying transformation in the following examples and apply it to the test case. Here are some "
    "examples from this transformation, your answer must follow the format.\n"
    "The input-output grids are provided as python arrays:\n"
    "[[0 1]\n [2 3]] -> [[4]]#\n"
    "[[5]] -> [[6 7]]#<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n[[8]] -><|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
BARC = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    "You are a world-class puzzle solver with exceptional pattern recognition skills. Your task is to analyze puzzles, "
    "spot patterns, and provide direct solutions.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Given input-output grid pairs as reference examples, carefully observe the patterns to predict the output grid "
    "for new test input. Each pair follows the same transformation rule. Grids are 2D arrays represented as strings, "
    "with cells (colors) separated by spaces and rows by newlines.\n"
    "Here are the input and output grids for the reference examples:\n"
    "Example 1:\nInput:\nBlack Blue\nRed Green\n\nOutput:\nYellow\n"
    "Example 2:\nInput:\nGray\n\nOutput:\nPink Orange\n"
    "\n\nHere is the input grid for the test example:\nInput:\nPurple\n\n\n"
    "Directly provide the output grids corresponding to the given test input grids, based on the patterns observed in "
    "the reference examples.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nThe output grid for the test input grid is:\n\n```\n"
)
WRITTEN = {
    "architects": (ARCHITECTS, "90\n12\n<|end_of_text|>", ["4\n<|end_of_text|>", "67\n<|end_of_text|>"]),
    "marc": (MARC, "[[9 0]\n [1 2]]#<|eot_id|>", [" [[4]]#", " [[6 7]]#"]),
    "barc": (BARC, "Brown Black\nBlue Red\n```<|eot_id|>", ["Yellow\n", "Pink Orange\n"]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_text_of_a_prompt_and_of_a_sequence_is_exact(name: str) -> None:
    """The texts are the interface to released checkpoints; a byte more or less costs accuracy without an error."""
    form, (prompt, answer, _) = make(name, NoTokenizer()), WRITTEN[name]
    assert form.text([DEMONSTRATION, SECOND], QUERY, None)[0] == prompt
    assert form.text([DEMONSTRATION, SECOND], QUERY, ANSWER)[0] == prompt + answer


@pytest.mark.parametrize("name", WRITTEN)
def test_the_spans_of_a_text_are_its_outputs_with_their_closing(name: str) -> None:
    form, (_, answer, outputs) = make(name, NoTokenizer()), WRITTEN[name]
    text, spans = form.text([DEMONSTRATION, SECOND], QUERY, ANSWER)
    assert [text[slice(*span)] for span in spans] == [*outputs, answer.removesuffix("<|eot_id|>")]
    assert len(form.text([DEMONSTRATION, SECOND], QUERY, None)[1]) == 2


def test_the_text_of_a_task_without_demonstrations() -> None:
    assert make("architects", NoTokenizer()).text([], QUERY, None)[0] == (
        "<|begin_of_text|>ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjklmnpqrstuvwxyzI8\n+/-=O"
    )
    assert "as python arrays:<|eot_id|><|start_header_id|>user" in make("marc", NoTokenizer()).text([], QUERY, None)[0]
    assert "reference examples:\n\n\nHere is the input" in make("barc", NoTokenizer()).text([], QUERY, None)[0]


@given(GRIDS)
@fuzz
def test_marc_writes_a_grid_as_numpy_prints_it(picture: Grid) -> None:
    """The checkpoint saw the default print of an integer array, which breaks no line and elides nothing at 30 x 30."""
    text, _ = make("marc", NoTokenizer()).text([Example(picture, picture)], picture, picture)
    assert f"\n{np.asarray(picture, dtype=np.int64)} -> {np.asarray(picture, dtype=np.int64)}#<|eot_id|>" in text
    assert text.endswith(f"\n\n{np.asarray(picture, dtype=np.int64)}#<|eot_id|>")


def test_a_tokenizer_that_cannot_write_a_grid_is_refused() -> None:
    class Letters(NoTokenizer):
        def token_texts(self) -> list[str | None]:
            return [chr(i) for i in range(128) if chr(i) not in "#0"]

    with pytest.raises(ModelError, match="'#', '0'"):
        MarcFormat(Letters(), pad=0)
    with pytest.raises(ModelError, match="architects"):
        ArchitectsFormat(NoTokenizer(), pad=0, bos="", eos="")


# tokens


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_the_spans_of_a_sequence_hold_the_tokens_of_its_outputs(name: str) -> None:
    form = form_of(name)
    assert isinstance(form, TextFormat)
    sequence = form.encode([DEMONSTRATION, SECOND], QUERY, ANSWER)
    _, answer, outputs = WRITTEN[name.split("-")[0]]
    assert sequence.positions.tolist() == list(range(len(sequence)))
    found = ["".join(form.texts[i] or "?" for i in sequence.ids[slice(*span)].tolist()) for span in sequence.outputs]
    for text, wanted in zip(found, [*outputs, answer.removesuffix("<|eot_id|>")], strict=True):
        assert text.strip("\n") == wanted.strip("\n")
    assert np.flatnonzero(sequence.loss_mask).tolist() == list(range(*sequence.outputs[-1]))
    assert (
        "".join(form.texts[i] or "?" for i in sequence.ids.tolist())
        == form.text([DEMONSTRATION, SECOND], QUERY, ANSWER)[0]
    )


@pytest.mark.parametrize("name", FORMATS)
@given(EXAMPLES, GRIDS, GRIDS)
@settings(fuzz, max_examples=8)
def test_prompt_and_answer_are_the_whole_sequence(name: str, pairs: list[Example], query: Grid, answer: Grid) -> None:
    """What training sees is what decoding continues: the prompt is the start of the sequence, and the answer's ids and
    positions are its end, up to the token that closes the turn."""
    form = form_of(name)
    prompt, whole = form.encode(pairs, query), form.encode(pairs, query, answer)
    ids, positions = form.answer_ids(prompt, answer)
    stop = len(prompt) + len(ids)
    assert whole.ids.tolist()[:stop] == [*prompt.ids.tolist(), *ids.tolist()]
    assert whole.positions.tolist()[:stop] == [*prompt.positions.tolist(), *positions.tolist()]
    assert len(whole) - stop == (0 if name.startswith(("compact", "architects")) else 1)
    assert whole.outputs[-1] == (len(prompt), stop)
    assert whole.outputs[:-1] == prompt.outputs
    assert len(whole.outputs) == len(pairs) + 1


@pytest.mark.parametrize("name", FORMATS)
@given(EXAMPLES, GRIDS, GRIDS)
@settings(fuzz, max_examples=8)
def test_every_answer_can_be_read_token_by_token(name: str, pairs: list[Example], query: Grid, answer: Grid) -> None:
    form = form_of(name)
    prompt = form.encode(pairs, query)
    ids, positions = form.answer_ids(prompt, answer)
    cursor = form.cursor(prompt)
    for token, position in zip(ids.tolist(), positions.tolist(), strict=True):
        assert not cursor.done
        assert cursor.reader.grid() is None
        assert cursor.allowed()[token]
        before = cursor.copy()
        assert cursor.push(token) == position
        assert before.push(token) == position
    assert cursor.done
    assert not cursor.allowed().any()
    found = cursor.reader.grid()
    assert found is not None
    assert found.tolist() == answer.tolist()
    assert form.decode(ids.tolist())[0] is not None
    assert form.decode(ids.tolist())[0].tolist() == answer.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*FORMATS, *GREEDY])
@given(st.integers(0, 2**32), st.integers(0, 3))
@settings(fuzz, max_examples=8)
def test_a_walk_through_allowed_tokens_always_ends_in_a_grid(name: str, seed: int, hurry: int) -> None:
    """Rows of one width, at most 30 x 30, whatever the tokenizer merges; what is not allowed cannot be pushed."""
    form, chance = form_of(name), random.Random(seed)
    prompt = TokenSequence(np.array([0]), np.array([4096 + 64]), (), np.zeros(1, np.bool_))
    cursor = form.cursor(prompt)
    ids: list[int] = []
    while not cursor.done:
        allowed = cursor.allowed()
        choices = np.flatnonzero(allowed).tolist()
        assert choices, f"nothing may follow {form.texts[ids[-1]]!r}"
        for token in chance.sample(range(form.vocabulary), min(form.vocabulary, 12)):
            copy = cursor.copy()
            if allowed[token]:
                copy.push(token)
            else:
                with pytest.raises(ValueError, match="cannot follow"):
                    copy.push(token)
        ends = [t for t in choices if set(form.texts[t] or "") - set("0123456789 BREDGrlacknu")]
        pool = choices if hurry == 0 or not ends else ends if chance.random() < hurry / 20 else choices
        ids.append(chance.choice(pool))
        cursor.push(ids[-1])
    found = cursor.reader.grid()
    assert found is not None
    assert found.ndim == 2
    assert 1 <= min(found.shape) <= max(found.shape) <= 30
    assert found.max() <= 9
    text = "".join(form.texts[token] or "" for token in ids)
    assert text == form.syntax.write(found)
    decoded, reason = form.decode(ids)
    assert decoded is not None
    assert (decoded.tolist(), reason) == (found.tolist(), "")


@pytest.mark.parametrize("name", [*FORMATS, *GREEDY])
@given(GRIDS, st.integers(0, 2**32))
@settings(fuzz, max_examples=8)
def test_the_allowed_tokens_are_those_that_the_reader_can_read(name: str, answer: Grid, seed: int) -> None:
    """Masks are kept by state; a state that says too little gives one grid the mask of another. All tokens of the
    vocabulary are tried one by one at a random place of a random answer."""
    form, chance = form_of(name), random.Random(seed)
    cursor = form.cursor(TokenSequence(np.array([0]), np.array([4096 + 64]), (), np.zeros(1, np.bool_)))
    text = form.syntax.write(answer)
    at = chance.randrange(len(text) - len(form.end_token) or 1)  # the end token comes whole or not at all
    assert cursor.reader.push(text[:at])
    readable = [bool(t) and not form.spells_end(t or "") and cursor.reader.copy().push(t or "") for t in form.texts]
    known = set(form.answer_tokens())
    assert all(token in known for token, can in enumerate(readable) if can)
    assert cursor.allowed().tolist() == readable


def test_an_answer_wider_or_longer_than_its_limits_is_never_allowed() -> None:
    form = CompactFormat()
    prompt = form.encode([], QUERY)
    for height, width in [(1, 1), (2, 3), (30, 30)]:
        cursor = form.cursor(prompt, (height, width))
        for row in range(height):
            for _ in range(width):
                assert cursor.allowed()[5]
                cursor.push(5)
            assert np.flatnonzero(cursor.allowed()).tolist() == ([form.NL] if row + 1 < height else []) + (
                [form.END] if row >= 0 else []
            )
            cursor.push(form.NL if row + 1 < height else form.END)
        assert cursor.done


def test_a_token_of_no_text_cannot_be_pushed() -> None:
    class Blank(NoTokenizer):
        def token_texts(self) -> list[str | None]:
            return ["", None, *super().token_texts()]

    form = make("marc", Blank())
    cursor = form.cursor(TokenSequence(np.array([0]), np.array([0]), (), np.zeros(1, np.bool_)))
    for token in (0, 1):
        with pytest.raises(ValueError, match="cannot follow"):
            cursor.push(token)


def test_an_end_of_sequence_with_a_long_name_can_be_reached() -> None:
    class Long(NoTokenizer):
        def token_texts(self) -> list[str | None]:
            return [*super().token_texts(), "<|finetune_right_pad_id|>"]

    form = ArchitectsFormat(Long(), pad=0, bos="", eos="<|finetune_right_pad_id|>")
    cursor = form.cursor(TokenSequence(np.array([0]), np.array([0]), (), np.zeros(1, np.bool_)))
    cursor.push(ord("7"))
    cursor.push(ord("\n"))
    assert cursor.allowed()[form.vocabulary - 1]
    cursor.push(form.vocabulary - 1)
    assert cursor.done


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "unfinished in row 1"),
        ([1, 2], "unfinished in row 1"),
        ([1, 2, 10], "unfinished in row 1"),
        ([1, 2, 10, 3], "unfinished in row 2"),
        ([10], "token 1"),
        ([13], "token 1"),
        ([1, 10, 10], "token 3"),
        ([1, 2, 10, 3, 13], "token 5"),
        ([1, 2, 10, 3, 4, 5, 13], "token 6"),
        ([1, 12, 13], "token 2"),
        ([1, 99], "token 2"),
        ([1, -1], "token 2"),
        ([0] * 31 + [13], "token 31"),
        ([0, 10] * 30 + [0, 13], "token 60"),
    ],
)
def test_ids_that_spell_no_grid_come_back_with_the_reason(ids: list[int], reason: str) -> None:
    found, why = CompactFormat().decode(ids)
    assert found is None
    assert reason in why


def test_ids_behind_a_finished_answer_are_not_read() -> None:
    found, reason = CompactFormat().decode([1, 13, 99, 5])
    assert found is not None
    assert (found.tolist(), reason) == ([[1]], "")


@given(st.lists(st.integers(-1, 16), max_size=12))
@settings(fuzz, max_examples=200)
def test_any_ids_are_a_grid_or_have_a_reason(ids: list[int]) -> None:
    found, reason = CompactFormat().decode(ids)
    assert (found is None) == bool(reason)
    if found is not None:
        slow, _, _ = slow_compact([None, found])
        assert ids[: len(slow) - 2] == slow[2:]


@pytest.mark.parametrize("name", FORMATS)
@given(GRIDS)
@settings(fuzz, max_examples=8)
def test_reading_undoes_writing(name: str, picture: Grid) -> None:
    form = form_of(name)
    reader = form.cursor(form.encode([], QUERY)).reader
    assert reader.push(form.syntax.write(picture))
    found = reader.grid()
    assert found is not None
    assert found.tolist() == picture.tolist()
    assert not reader.push("0")


@pytest.mark.parametrize("name", ["compact", "architects", "marc", "barc"])
def test_no_part_of_a_syntax_is_the_beginning_of_another(name: str) -> None:
    """Reading character by character is unambiguous only then."""
    syntax: GridSyntax = CompactFormat().syntax if name == "compact" else make(name, NoTokenizer()).syntax
    inside = [syntax.cell_gap + cell for cell in syntax.cells] + [syntax.row_gap + cell for cell in syntax.cells]
    for options in ([syntax.start + cell for cell in syntax.cells], [*inside, syntax.stop]):
        for first in options:
            assert [second for second in options if second.startswith(first)] == [first]
