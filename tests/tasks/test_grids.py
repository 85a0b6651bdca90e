"""Loading of task files that cannot be trusted: a bad task costs only itself, and every id stays in the submission."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_lab.data.datasets import Dataset, load_dataset, select, ttt80_ids
from arc_ttt.errors import SettingsError, TaskFileError
from arc_ttt.tasks.files import load_tasks
from arc_ttt.tasks.grids import Grid, LoadedTasks, Task, grid_bytes, same_grid

fuzz = settings(max_examples=60, deadline=None, database=None)

GOOD: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3], [4]], "output": [[4], [3]]}],
    "test": [{"input": [[5, 6, 7]]}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("tasks")


def load(folder: Path, document: object, name: str = "challenges.json") -> LoadedTasks:
    path = folder / name
    path.write_text(json.dumps(document))
    return load_tasks(path)


def changed(*steps: str | int, to: object) -> dict[str, Any]:
    """GOOD with one value replaced."""
    task = copy.deepcopy(GOOD)
    place: Any = task
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = to
    return task


def without(*steps: str | int) -> dict[str, Any]:
    task = copy.deepcopy(GOOD)
    place: Any = task
    for step in steps[:-1]:
        place = place[step]
    del place[steps[-1]]
    return task


def beside_good(folder: Path, body: object, task_id: str = "odd") -> LoadedTasks:
    """Load a file with `body` between two good tasks, and check that those two are untouched by it."""
    loaded = load(folder, {"first": GOOD, task_id: body, "last": GOOD})
    assert [task.task_id for task in loaded.tasks if task.task_id != task_id] == ["first", "last"]
    assert set(loaded.test_counts) == {"first", task_id, "last"}
    return loaded


def wide(height: int, width: int, colour: int = 1) -> list[list[int]]:
    return [[colour] * width for _ in range(height)]


LEGAL_BODIES = {
    "extra keys": {**GOOD, "name": "x", "train": [{**GOOD["train"][0], "note": [1]}]},
    "no demonstrations": {**GOOD, "train": []},
    "one demonstration": {**GOOD, "train": GOOD["train"][:1]},
    "four tests": {**GOOD, "test": GOOD["test"] * 4},
    "1x1": changed("train", 0, "input", to=[[0]]),
    "1x30": changed("test", 0, "input", to=wide(1, 30)),
    "30x1": changed("test", 0, "input", to=wide(30, 1)),
    "30x30": changed("train", 1, "output", to=wide(30, 30, 9)),
    "identical demonstrations": {**GOOD, "train": GOOD["train"][:1] * 5},
    "input equals output": changed("train", 0, "output", to=[[1, 2]]),
    "ten colours": changed("train", 0, "input", to=[list(range(10))]),
    "output in test": changed("test", 0, to={"input": [[5]], "output": [[6]]}),
    "garbage as output in test": changed("test", 0, to={"input": [[5]], "output": [[None], "x"]}),
    "more than 8192 tokens": {**GOOD, "train": [{"input": wide(30, 30), "output": wide(30, 30)}] * 10},
}


@pytest.mark.parametrize("body", LEGAL_BODIES.values(), ids=LEGAL_BODIES)
def test_unusual_tasks_are_usable(body: dict[str, Any], tmp_path: Path) -> None:
    loaded = beside_good(tmp_path, body)
    assert loaded.problems == ()
    task = next(task for task in loaded.tasks if task.task_id == "odd")
    assert loaded.test_counts["odd"] == len(task.tests) == len(body["test"])
    assert [e.input.tolist() for e in task.train] == [pair["input"] for pair in body["train"]]
    assert [e.output.tolist() for e in task.train] == [pair["output"] for pair in body["train"]]
    assert [grid.tolist() for grid in task.tests] == [pair["input"] for pair in body["test"]]


BAD_BODIES: dict[str, tuple[object, str]] = {
    "null": (None, "not an object"),
    "list": ([], "not an object"),
    "text": ("task", "not an object"),
    "empty": ({}, 'no "train"'),
    "no train": (without("train"), 'no "train"'),
    "no test": (without("test"), 'no "test"'),
    "train is an object": (changed("train", to={"0": 1}), '"train" is not a list'),
    "test is null": (changed("test", to=None), '"test" is not a list'),
    "no tests": (changed("test", to=[]), '"test" is empty'),
    "pair is a list": (changed("train", 1, to=[[1]]), "train 2 is not an object"),
    "test pair is null": (changed("test", 0, to=None), "test 1 is not an object"),
    "no input": (without("train", 1, "input"), 'train 2 has no "input"'),
    "no output": (without("train", 0, "output"), 'train 1 has no "output"'),
    "no test input": (without("test", 0, "input"), 'test 1 has no "input"'),
    "grid is null": (changed("train", 0, "output", to=None), "train 1: output: is not a non-empty list"),
    "grid is text": (changed("test", 0, "input", to="12"), "test 1: input: is not a non-empty list"),
    "grid is empty": (changed("train", 1, "input", to=[]), "train 2: input: is not a non-empty list"),
    "row is empty": (changed("train", 1, "input", to=[[1], []]), "train 2: input: row 2 is not a non-empty list"),
    "first row is empty": (changed("train", 1, "input", to=[[]]), "train 2: input: row 1 is not a non-empty list"),
    "row is a number": (changed("test", 0, "input", to=[[1], 2]), "test 1: input: row 2 is not a non-empty list"),
    "ragged": (
        changed("train", 0, "input", to=[[1, 2], [1, 2], [1]]),
        "train 1: input: row 3 has 1 cells, row 1 has 2",
    ),
    "31 rows": (changed("train", 0, "input", to=wide(31, 1)), "train 1: input: has 31 rows"),
    "31 columns": (changed("test", 0, "input", to=wide(1, 31)), "test 1: input: row 1 has 31 cells"),
    "31x31": (changed("train", 1, "output", to=wide(31, 31)), "train 2: output: has 31 rows"),
    "a hundred thousand rows": (changed("test", 0, "input", to=[[1]] * 10**5), "test 1: input: has 100000 rows"),
}


@pytest.mark.parametrize(("body", "says"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_task_costs_only_itself_and_is_named(body: object, says: str, tmp_path: Path) -> None:
    loaded = beside_good(tmp_path, body)
    (problem,) = loaded.problems
    assert problem.task_id == "odd"
    assert str(problem).startswith("challenges.json: task odd: ")
    assert says in str(problem)
    tests = body.get("test") if isinstance(body, dict) else None
    assert loaded.test_counts["odd"] == (max(1, len(tests)) if isinstance(tests, list) else 1)


@pytest.mark.parametrize("literal", ["-1", "10", "255", "3.0", "1e0", "true", "null", '"5"', "NaN", "Infinity", "[1]"])
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_cell_that_is_no_colour_is_named_by_pair_row_and_cell(literal: str, place: str, tmp_path: Path) -> None:
    text = json.dumps({"first": GOOD, "odd": changed(place, 0, "input", to=[[0, 1], [2, 77]]), "last": GOOD})
    path = tmp_path / "challenges.json"
    path.write_text(text.replace("77", literal))
    loaded = load_tasks(path)
    assert [task.task_id for task in loaded.tasks] == ["first", "last"]
    (problem,) = loaded.problems
    assert f"challenges.json: task odd: {place} 1: input: row 2, cell 2 is " in str(problem)


@pytest.mark.parametrize("digits", [19, 400, 10_000])
def test_a_number_too_long_for_the_parser_costs_one_task(digits: int, tmp_path: Path) -> None:
    """Python refuses to convert more than 4300 digits with an error that is no JSON error."""
    path = tmp_path / "challenges.json"
    path.write_text(
        json.dumps({"good": GOOD, "odd": changed("test", 0, "input", to=[[77]])}).replace("77", "7" * digits)
    )
    loaded = load_tasks(path)
    assert [task.task_id for task in loaded.tasks] == ["good"]
    assert [problem.task_id for problem in loaded.problems] == ["odd"]


ODD_IDS = [
    "a/b",
    "../../etc/passwd",
    "..",
    "/",
    "",
    " ",
    "nul\x00byte",
    "new\nline",
    "x" * 300,
    "héllo 世界 🧩",
    "__proto__",
    "CON",
    "a:b*?.json",
    "'quoted'",
    '"',
    "\ud800",
    "-0",
    "train",
    "test",
]


@pytest.mark.parametrize("task_id", ODD_IDS, ids=ascii)
def test_any_text_is_a_task_id(task_id: str, tmp_path: Path) -> None:
    loaded = beside_good(tmp_path, GOOD, task_id)
    assert loaded.problems == ()
    assert task_id in {task.task_id for task in loaded.tasks}


@pytest.mark.parametrize("task_id", ODD_IDS, ids=ascii)
def test_a_bad_task_of_any_id_is_named_in_one_printable_line(task_id: str, tmp_path: Path) -> None:
    (problem,) = beside_good(tmp_path, {}, task_id).problems
    assert problem.task_id == task_id
    assert str(problem).isascii()
    assert str(problem).isprintable()
    assert len(str(problem)) < 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_unicode_encoding_of_a_file_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "challenges.json"
    path.write_text(json.dumps({"héllo": GOOD}, ensure_ascii=False), encoding=encoding)
    assert [task.task_id for task in load_tasks(path).tasks] == ["héllo"]


def test_a_gzipped_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("challenges.json.gz", "challenges.json"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(json.dumps({"a": GOOD}).encode()))
        assert [task.task_id for task in load_tasks(path).tasks] == ["a"]


WHOLE = json.dumps({"a": GOOD, "b": GOOD}).encode()

UNREADABLE = {
    "empty": b"",
    "blank": b" \n\t ",
    "truncated": WHOLE[:-9],
    "cut in half": WHOLE[: len(WHOLE) // 2],
    "two documents": WHOLE + WHOLE,
    "list": b"[1, 2]",
    "number": b"5",
    "null": b"null",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "not text": bytes(range(128, 256)) * 4,
    "truncated gzip": gzip.compress(WHOLE)[:-20],
    "damaged gzip": gzip.compress(WHOLE)[:20] + b"\xff" * 40,
    "gzip of nothing": gzip.compress(b""),
    "single quotes": b"{'a': 1}",
    "web page": b"<!DOCTYPE html><html></html>",
    "latin-1": '{"é": 1}'.encode("latin-1"),
}


@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_holds_no_tasks_is_refused_by_name(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "challenges.json"
    path.write_bytes(raw)
    with pytest.raises(TaskFileError, match=r"challenges\.json"):
        load_tasks(path)


def test_a_file_that_is_not_there_or_a_folder_without_tasks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"nowhere\.json"):
        load_tasks(tmp_path / "nowhere.json")
    with pytest.raises(TaskFileError, match=tmp_path.name):
        load_tasks(tmp_path)


def test_a_repeated_id_is_refused_and_stays_in_the_submission(tmp_path: Path) -> None:
    path = tmp_path / "challenges.json"
    good = json.dumps(GOOD)
    path.write_text(f'{{"a": {good}, "twice": {good}, "b": {good}, "twice": {good}}}')
    loaded = load_tasks(path)
    assert [task.task_id for task in loaded.tasks] == ["a", "b"]
    assert [problem.task_id for problem in loaded.problems] == ["twice"]
    assert set(loaded.test_counts) == {"a", "b", "twice"}


def test_a_name_repeated_inside_one_task_costs_no_other_task(tmp_path: Path) -> None:
    """A repeated name deep in one task may be the id of another one."""
    path = tmp_path / "challenges.json"
    odd = json.dumps(GOOD)[:-1] + ', "notes": {"b": 1, "b": 2}}'
    path.write_text(f'{{"a": {odd}, "b": {json.dumps(GOOD)}}}')
    loaded = load_tasks(path)
    assert "b" in {task.task_id for task in loaded.tasks}


def test_no_task_and_a_thousand_tasks(tmp_path: Path) -> None:
    none = load(tmp_path, {})
    assert (none.tasks, none.problems, dict(none.test_counts)) == ((), (), {})
    many = load(tmp_path, {f"task {i}": GOOD if i % 10 else {} for i in range(1000)})
    assert (len(many.tasks), len(many.problems), len(many.test_counts)) == (900, 100, 1000)
    assert [task.task_id for task in many.tasks][:2] == ["task 1", "task 2"]


def test_an_answer_in_the_file_cannot_be_reached_from_its_task(tmp_path: Path) -> None:
    """The official prediction code reads test outputs with its tasks, and so leaks their size into its filter."""
    answer = [[8, 8, 8], [8, 9, 8]]
    (task,) = load(tmp_path, {"a": changed("test", 0, "output", to=answer)}).tasks
    assert [field.name for field in dataclasses.fields(Task)] == ["task_id", "train", "tests"]
    grids = [*task.tests, *(grid for e in task.train for grid in (e.input, e.output))]
    assert answer not in [grid.tolist() for grid in grids]
    assert len(grids) == 1 + 2 * len(GOOD["train"])
    with pytest.raises((AttributeError, TypeError)):
        task.answer = answer  # type: ignore[attr-defined]


def test_grids_cannot_be_changed(tmp_path: Path) -> None:
    (task,) = load(tmp_path, {"a": GOOD}).tasks
    for grid in (task.tests[0], task.train[0].input, task.train[0].output):
        assert grid.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            grid[0, 0] = 3


def test_a_single_task_file_is_named_by_its_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, {**GOOD, "name": "other"}, "7b5033c1.json")
    assert [task.task_id for task in loaded.tasks] == ["7b5033c1"]
    assert dict(loaded.test_counts) == {"7b5033c1": 1}


@pytest.mark.parametrize(
    "body", [changed("train", to=None), changed("test", to=None), without("train"), without("test"), {"test": []}]
)
def test_a_bad_single_task_file_keeps_its_id(body: dict[str, Any], tmp_path: Path) -> None:
    loaded = load(tmp_path, body, "7b5033c1.json")
    assert loaded.tasks == ()
    assert [problem.task_id for problem in loaded.problems] == ["7b5033c1"]
    assert list(loaded.test_counts) == ["7b5033c1"]


def test_a_folder_gives_the_tasks_of_its_files_and_a_bad_file_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps(changed("test", to=GOOD["test"] * 2)))
    (tmp_path / "d.json").mkdir()
    (tmp_path / "e.json").write_text(json.dumps(without("test")))
    (tmp_path / "notes.txt").write_text("not a task")
    loaded = load_tasks(tmp_path)
    assert [task.task_id for task in loaded.tasks] == ["a", "c"]
    assert sorted(problem.task_id for problem in loaded.problems) == ["b", "d", "e"]
    assert dict(loaded.test_counts) == {"a": 1, "b": 1, "c": 2, "d": 1, "e": 1}


def test_an_id_of_two_files_of_a_folder_is_loaded_once_and_said(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps({"a": GOOD, "b": GOOD}))
    (tmp_path / "2.json").write_text(json.dumps({"b": changed("test", to=GOOD["test"] * 2), "c": GOOD}))
    loaded = load_tasks(tmp_path)
    assert [task.task_id for task in loaded.tasks] == ["a", "b", "c"]
    assert dict(loaded.test_counts) == {"a": 1, "b": 1, "c": 1}
    assert len(loaded.problems) == 1
    assert "2.json" in str(loaded.problems[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["train", "test", "input", "output", "a", ""]) | st.text(max_size=5), inner)
    ),
    max_leaves=10,
)
CELLS = st.integers(0, 9) | st.sampled_from([-1, 10, 3.0, True, None, "5"])
GRIDS = st.lists(st.lists(CELLS, max_size=2), max_size=2) | JSON
PAIRS = st.fixed_dictionaries({}, optional={"input": GRIDS, "output": GRIDS, "extra": JSON}) | JSON
BODIES = (
    st.fixed_dictionaries({}, optional={"train": st.lists(PAIRS, max_size=3), "test": st.lists(PAIRS, max_size=3)})
    | JSON
)


def consistent(loaded: LoadedTasks) -> None:
    """What holds for anything that was loaded."""
    usable = {task.task_id for task in loaded.tasks}
    assert usable | {problem.task_id for problem in loaded.problems} == set(loaded.test_counts)
    assert usable & {problem.task_id for problem in loaded.problems} == set()
    assert min(loaded.test_counts.values(), default=1) >= 1
    for task in loaded.tasks:
        assert len(task.tests) == loaded.test_counts[task.task_id]
        for grid in (*task.tests, *(g for e in task.train for g in (e.input, e.output))):
            assert grid.ndim == 2
            assert 1 <= min(grid.shape) <= max(grid.shape) <= 30
            assert grid.max() <= 9


@given(st.dictionaries(st.text(max_size=8), BODIES, max_size=3))
@fuzz
def test_any_document_of_tasks_is_loaded_in_full(folder: Path, document: dict[str, Any]) -> None:
    loaded = load(folder, document)
    consistent(loaded)
    if not {"train", "test"} & set(document):
        assert set(loaded.test_counts) == set(document)


@given(JSON)
@fuzz
def test_any_json_is_loaded_or_refused(folder: Path, document: object) -> None:
    try:
        loaded = load(folder, document)
    except TaskFileError:
        assert not isinstance(document, dict)
        return
    consistent(loaded)


@given(
    st.binary(max_size=60),
    st.integers(0, len(WHOLE)),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08"]),
)
@fuzz
def test_any_bytes_are_loaded_or_refused(folder: Path, noise: bytes, at: int, head: bytes) -> None:
    path = folder / "noise.json"
    path.write_bytes(head + WHOLE[:at] + noise + WHOLE[at:])
    try:
        loaded = load_tasks(path)
    except TaskFileError:
        return
    consistent(loaded)


GRID = st.builds(
    lambda height, width, seed: np.random.default_rng(seed).integers(0, 10, (height, width)).astype(np.uint8),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 2**32),
)


@given(GRID, GRID)
@fuzz
def test_the_identity_of_a_grid_is_its_shape_and_cells(first: Grid, second: Grid) -> None:
    assert (grid_bytes(first) == grid_bytes(second)) == (first.tolist() == second.tolist()) == same_grid(first, second)
    assert grid_bytes(first) == grid_bytes(first.copy())
    assert grid_bytes(np.zeros((2, 3), np.uint8)) != grid_bytes(np.zeros((3, 2), np.uint8))


def dataset_of(folder: Path, challenges: object, solutions: str | None) -> Dataset:
    path = folder / "arc_challenges.json"
    path.write_text(json.dumps(challenges))
    if solutions is not None:
        (folder / "arc_solutions.json").write_text(solutions)
    return load_dataset(str(path))


def test_solutions_are_found_in_the_sibling_file_and_in_the_test_pairs(tmp_path: Path) -> None:
    inside = changed("test", 0, "output", to=[[1]])
    beside = dataset_of(tmp_path, {"a": GOOD, "b": inside, "c": GOOD}, '{"a": [[[2]]]}')
    found = {task_id: [grid.tolist() for grid in grids] for task_id, grids in beside.solutions.by_task.items()}
    assert found == {"a": [[[2]]], "b": [[[1]]]}


@pytest.mark.parametrize(
    "solutions", ['{"a": null, "b": [[[2]]]}', '{"a": 5, "b": [[[2]]]}', '{"a": [[[]]], "b": [[[2]]]}']
)
def test_a_bad_solution_costs_only_its_own_task(solutions: str, tmp_path: Path) -> None:
    found = dataset_of(tmp_path, {"a": GOOD, "b": GOOD}, solutions)
    assert set(found.solutions.by_task) == {"b"}


def test_named_data_sets_hold_what_their_names_say() -> None:
    """Sizes of the public sets, and the paper's subset inside the evaluation set."""
    evaluation = load_dataset("evaluation")
    assert (len(evaluation.loaded.tasks), sum(evaluation.loaded.test_counts.values())) == (400, 419)
    assert evaluation.loaded.problems == ()
    assert set(evaluation.solutions.by_task) == set(evaluation.loaded.test_counts)
    subset = load_dataset("ttt80")
    assert sorted(subset.loaded.test_counts) == sorted(set(ttt80_ids()))
    assert len(subset.loaded.tasks) == 80
    chosen = select(evaluation, [ttt80_ids()[3], ttt80_ids()[1]])
    assert {task.task_id for task in chosen.loaded.tasks} == {ttt80_ids()[3], ttt80_ids()[1]}
    with pytest.raises(SettingsError, match="nonsense"):
        select(evaluation, ["nonsense"])
    with pytest.raises(SettingsError, match="nowhere"):
        load_dataset("nowhere")
