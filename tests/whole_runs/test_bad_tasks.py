"""Task files of every bad kind through a whole run: a bad task costs only itself, and every id is answered."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.errors import TaskFileError
from arc_ttt.kaggle.run import kaggle_run
from arc_ttt.tasks.files import MAX_FILE_BYTES, load_tasks
from arc_ttt.tasks.grids import LoadedTasks
from support.scripted_fleet import PAIR, answer_all, instant_run, valid

fuzz = settings(max_examples=60, deadline=None, database=None)
GOOD = {"train": [PAIR, PAIR], "test": [{"input": [[5, 6]]}]}


def answer_any(job: dict[str, Any]) -> list[dict[str, Any]]:
    """As a good worker answers, whatever the task is called."""
    return [
        {**line, "task_id": job["task_id"]} if "task_id" in line else line
        for line in answer_all({**job, "task_id": "t7"})
    ]


def run_file(folder: Path, content: bytes) -> tuple[LoadedTasks, dict[str, Any]]:
    """The submission of a run over a file with this content."""
    path = folder / "challenges.json"
    path.write_bytes(content)
    loaded = load_tasks(path)
    out = folder / "out"
    instant_run(out, loaded, answer_any)
    assert {path.name for path in folder.iterdir()} == {"challenges.json", "out"}
    assert {path.name for path in out.iterdir()} <= {"submission.json", "events.jsonl"}
    return loaded, valid(out, loaded.test_counts)


def grid_of(rows: int, columns: int) -> list[list[int]]:
    return [[(row * 7 + column) % 10 for column in range(columns)] for row in range(rows)]


def one(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **parts}


def asking(grid: Any) -> dict[str, Any]:
    return one(test=[{"input": grid}])


def showing(grid: Any) -> dict[str, Any]:
    return one(train=[PAIR, {"input": grid, "output": [[1]]}])


USABLE = {
    "one demonstration": one(train=[PAIR]),
    "no demonstration": one(train=[]),
    "four test inputs": one(test=[{"input": [[i]]} for i in range(4)]),
    "test with its output": one(test=[{"input": [[1]], "output": [[2]]}]),
    "extra keys": one(name="x", version=3, more={"a": [1]}),
    "1 x 1": asking([[0]]),
    "1 x 30": asking(grid_of(1, 30)),
    "30 x 30": asking(grid_of(30, 30)),
    "long": one(train=[{"input": grid_of(30, 30), "output": grid_of(30, 30)}] * 10),
    "demonstrations all alike": one(train=[PAIR] * 10),
    "input is output": one(train=[{"input": [[1, 2]], "output": [[1, 2]]}] * 3),
    "all ten colours": one(train=[{"input": [list(range(10))], "output": [list(range(9, -1, -1))]}] * 2),
}
UNUSABLE = {
    "not an object": [1],
    "null": None,
    "text": "task",
    "empty": {},
    "train missing": {"test": [{"input": [[1]]}]},
    "test missing": {"train": [PAIR]},
    "test empty": one(test=[]),
    "test an object": one(test={"input": [[1]]}),
    "train null": one(train=None),
    "train of numbers": one(train=[1, 2]),
    "output missing": one(train=[{"input": [[1]]}]),
    "input missing": one(test=[{}]),
    "ragged": asking([[1, 2], [3]]),
    "no rows": asking([]),
    "no columns": asking([[]]),
    "31 rows": asking(grid_of(31, 1)),
    "31 columns": asking(grid_of(1, 31)),
    "flat": asking([1, 2]),
    "cube": asking([[[1]]]),
    "cell -1": showing([[-1]]),
    "cell 10": showing([[10]]),
    "cell 255": showing([[255]]),
    "cell 3.0": showing([[3.0]]),
    "cell true": showing([[True]]),
    "cell null": showing([[None]]),
    "cell text": showing([["5"]]),
    "cell NaN": showing([[float("nan")]]),
    "cell infinite": showing([[float("inf")]]),
    "cell huge": showing([[10**400]]),
}


@pytest.mark.parametrize("name", [*USABLE, *UNUSABLE])
def test_an_odd_task_costs_at_most_itself(tmp_path: Path, name: str) -> None:
    body = {**USABLE, **UNUSABLE}[name]
    loaded, found = run_file(tmp_path, json.dumps({"good": GOOD, "odd": body, "last": GOOD}).encode())
    assert list(found) == ["good", "odd", "last"]
    assert found["good"][0]["attempt_1"] == found["last"][0]["attempt_1"] == [[2, 0, 7]]
    assert [problem.task_id for problem in loaded.problems] == (["odd"] if name in UNUSABLE else [])
    if name in USABLE:
        assert all(answers["attempt_1"] == [[2, i, 7]] for i, answers in enumerate(found["odd"]))


IDS = ["a/b", "../../etc/passwd", "/", "..", "nul\0", "new\nline", "x" * 300, "\u00e9\u4e2d\U0001f600", "__proto__", ""]
IDS += ["CON", "aux.json", "a\\b", "C:\\x", "'; rm -rf x; '", '"', "\ud800", " ", "-rf", "$HOME", "%s", "{0}"]


def test_ids_of_any_kind_come_back_and_become_no_path(tmp_path: Path) -> None:
    _, found = run_file(tmp_path, json.dumps(dict.fromkeys(IDS, GOOD)).encode())
    assert set(found) == set(IDS)
    assert all(answers[0]["attempt_1"] == [[2, 0, 7]] for answers in found.values())


TEXT = json.dumps({"a": GOOD, "b": GOOD})
ENCODINGS: dict[str, bytes] = {
    "byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "gzip": gzip.compress(TEXT.encode()),
    "an id twice": TEXT[:-1].encode() + b', "c": ' + json.dumps(GOOD).encode() + b', "c": {"train": [], "test": []}}',
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_files_that_are_written_in_another_way(tmp_path: Path, name: str) -> None:
    _, found = run_file(tmp_path, ENCODINGS[name])
    assert found["a"][0]["attempt_1"] == found["b"][0]["attempt_1"] == [[2, 0, 7]]


def test_a_thousand_tasks_and_none(tmp_path: Path) -> None:
    _, found = run_file(tmp_path, json.dumps({f"t{i}": GOOD for i in range(1000)}).encode())
    assert len(found) == 1000
    assert sum(answers[0]["attempt_1"] == [[2, 0, 7]] for answers in found.values()) > 100  # as many as fit the time
    assert run_file(tmp_path, b"{}")[1] == {}


def zeros() -> dict[str, Any]:
    return {"attempt_1": [[0, 0], [0, 0]], "attempt_2": [[0, 0], [0, 0]]}


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "cut": lambda: TEXT[:-20].encode(),
    "empty": lambda: b"",
    "blank": lambda: b" \n ",
    "binary": lambda: bytes(range(256)) * 4,
    "a list": lambda: b"[1]",
    "deep": lambda: b'{"a": ' * 20_000,
    "gzip cut": lambda: gzip.compress(TEXT.encode() * 50)[:-30],
    "huge": lambda: b"",  # made larger than may be read
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_on_kaggle_falls_back_to_the_ids_of_the_sample(tmp_path: Path, name: str) -> None:
    (tmp_path / "input" / "arc").mkdir(parents=True)
    (tmp_path / "working").mkdir()
    (tmp_path / "input" / "arc" / "arc-agi_test_challenges.json").write_bytes(UNREADABLE[name]())
    (tmp_path / "input" / "arc" / "sample_submission.json").write_text(json.dumps({"x": [zeros()], "y": [zeros()] * 2}))
    if name == "huge":
        os.truncate(tmp_path / "input" / "arc" / "arc-agi_test_challenges.json", MAX_FILE_BYTES + 1)
    assert kaggle_run(tmp_path, {"run.limit_s": 60.0}, 2, time.monotonic()) == 0
    valid(tmp_path / "working", {"x": 1, "y": 2})


# Anything at all


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
GRIDS = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=4), min_size=1, max_size=4) | JUNK
PAIRS = st.fixed_dictionaries({"input": GRIDS}, optional={"output": GRIDS}) | JUNK
PARTS = {"train": st.lists(PAIRS, max_size=3) | JUNK, "test": st.lists(PAIRS, max_size=3)}
BODIES = st.fixed_dictionaries({}, optional=PARTS)
DOCUMENTS = st.dictionaries(st.text(max_size=8), BODIES | st.just(GOOD) | JUNK, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("fuzz")


def odd_worker(moods: random.Random) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """A worker that dies, says nonsense or nothing, or answers well."""

    def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
        lines = answer_any(job)
        mood = moods.random()
        if mood < 0.1:
            return [*lines[: moods.randrange(len(lines))], {"type": "die"}]
        if mood < 0.3:
            for line in lines:
                for name in list(line):
                    if name != "type" and moods.random() < 0.3:
                        line[name] = moods.choice([None, -1, float("nan"), "x", [], {}, [[99]], True])
            return [line for line in lines if line["type"] != "done"] + [{"type": "done"}]
        return lines

    return answer


@given(DOCUMENTS, st.integers(0, 2**32))
@fuzz
def test_no_document_and_no_worker_breaks_a_run(folder: Path, tasks: dict[str, Any], seed: int) -> None:
    path = folder / "challenges.json"
    path.write_text(json.dumps(tasks))
    loaded = load_tasks(path)
    result = instant_run(folder / "out", loaded, odd_worker(random.Random(seed)))
    found = valid(folder / "out", loaded.test_counts)
    assert result.stopped_by in ("all done", "nothing left that fits the time")
    if loaded.test_counts.keys() == tasks.keys():  # the document is no single task's body
        assert list(found) == list(tasks)


@given(st.binary(max_size=300) | st.integers(0, len(TEXT)).map(lambda cut: TEXT[:cut].encode()))
@fuzz
def test_no_bytes_break_the_loading(folder: Path, content: bytes) -> None:
    path = folder / "bytes.json"
    path.write_bytes(content)
    try:
        loaded = load_tasks(path)
    except TaskFileError:
        return
    instant_run(folder / "out", loaded, answer_any)
    valid(folder / "out", loaded.test_counts)
