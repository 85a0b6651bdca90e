"""submission.json: complete from the start, never a part of a file, never an invalid grid."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.atomic import write_atomically
from arc_ttt.errors import SubmissionError
from arc_ttt.run.submission import Submission, check_submission
from arc_ttt.tasks.grids import Grid, LoadedTasks, freeze
from arc_ttt.tasks.parse import parse_tasks
from support.disk import file_size_limit

fuzz = settings(max_examples=80, deadline=None, database=None)

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
DOCUMENT: dict[str, Any] = {
    "one": {"train": [PAIR], "test": [{"input": [[5]]}]},
    "two": {"train": [PAIR], "test": [{"input": [[6]]}, {"input": [[7, 7]]}]},
    "no demonstrations": {"train": [], "test": [{"input": [[8]]}]},
    "ragged": {"train": [], "test": [{"input": [[8], [8, 8]]}, {"input": [[1]]}, {"input": [[1]]}]},
    "empty": {},
    "../odd\n\x00\ud800": {"train": [], "test": [{"input": [[3]]}]},
}


def loaded() -> LoadedTasks:
    return parse_tasks(DOCUMENT, source="challenges.json")


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


def read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def test_a_submission_is_complete_and_valid_before_anything_is_solved(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "out" / "submission.json", loaded())
    submission.write()
    document = read(submission.path)
    check_submission(document, loaded().test_counts)
    assert {task_id: len(answers) for task_id, answers in document.items()} == {
        "one": 1,
        "two": 2,
        "no demonstrations": 1,
        "ragged": 3,
        "empty": 1,
        "../odd\n\x00\ud800": 1,
    }
    assert document["one"][0] == {"attempt_1": [[5]], "attempt_2": [[2, 1]]}
    assert [answer["attempt_1"] for answer in document["two"]] == [[[6]], [[7, 7]]]
    for answers in document.values():
        assert all(answer["attempt_1"] != answer["attempt_2"] for answer in answers)


def test_no_file_appears_outside_the_folder_of_the_submission(tmp_path: Path) -> None:
    """A task id is never a file name."""
    Submission(tmp_path / "out" / "submission.json", loaded()).write()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/submission.json",
    ]


def test_a_submission_without_tasks_is_an_empty_object(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.json", LoadedTasks((), (), {}))
    submission.write()
    assert read(submission.path) == {}
    check_submission({}, {})


def test_an_answer_to_the_second_test_input_stays_the_second(tmp_path: Path) -> None:
    """A file built from found answers alone shifts the second answer into the first place."""
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.set("two", 1, (grid("99"), grid("88")))
    submission.write()
    document = read(submission.path)
    check_submission(document, loaded().test_counts)
    assert document["two"][0]["attempt_1"] == [[6]]
    assert document["two"][1] == {"attempt_1": [[9, 9]], "attempt_2": [[8, 8]]}
    assert [found.tolist() for found in submission.get("two", 1)] == [[[9, 9]], [[8, 8]]]


def test_a_later_answer_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.write()
    before = read(submission.path)
    submission.set("ragged", 2, (grid("1"), grid("2")))
    submission.set("ragged", 2, (grid("34", "56"), grid("2")))
    submission.write()
    after = read(submission.path)
    assert after["ragged"][2] == {"attempt_1": [[3, 4], [5, 6]], "attempt_2": [[2]]}
    after["ragged"][2] = before["ragged"][2]
    assert after == before


INVALID_GRIDS = {
    "flat": np.array([1, 2], np.uint8),
    "cube": np.zeros((1, 1, 1), np.uint8),
    "no rows": np.zeros((0, 3), np.uint8),
    "no columns": np.zeros((3, 0), np.uint8),
    "31 rows": np.zeros((31, 1), np.uint8),
    "31 columns": np.zeros((1, 31), np.uint8),
    "colour 10": np.array([[10]], np.uint8),
    "colour 255": np.array([[255]], np.uint8),
    "negative": np.array([[-1]]),
    "float": np.array([[1.0]]),
    "bool": np.array([[True]]),
    "text": np.array([["1"]]),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("bad", INVALID_GRIDS.values(), ids=INVALID_GRIDS)
def test_an_invalid_grid_is_refused_and_changes_nothing(bad: Any, place: int, tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.write()
    before = submission.path.read_text()
    both = (bad, grid("1")) if place == 0 else (grid("1"), bad)
    with pytest.raises(SubmissionError, match="two"):
        submission.set("two", 0, both)
    submission.write()
    assert submission.path.read_text() == before
    assert submission.get("two", 0)[0].tolist() == [[6]]


@pytest.mark.parametrize(("task_id", "index"), [("two", 2), ("two", -1), ("three", 0), ("", 0)])
def test_an_answer_to_a_test_input_that_is_not_there_is_refused(task_id: str, index: int, tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    with pytest.raises(SubmissionError):
        submission.set(task_id, index, (grid("1"), grid("2")))


GRIDS = st.builds(
    lambda height, width, seed: freeze(np.random.default_rng(seed).integers(0, 10, (height, width))),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 2**32),
)


@given(
    st.lists(st.tuples(st.sampled_from([("one", 0), ("two", 0), ("two", 1), ("ragged", 1)]), GRIDS, GRIDS), max_size=5)
)
@fuzz
def test_the_file_holds_the_last_answer_to_each_test_input(
    folder: Path, answers: list[tuple[tuple[str, int], Grid, Grid]]
) -> None:
    submission = Submission(folder / "submission.json", loaded())
    last = {}
    for (task_id, index), first, second in answers:
        submission.set(task_id, index, (first, second))
        last[task_id, index] = {"attempt_1": first.tolist(), "attempt_2": second.tolist()}
    submission.write()
    document = read(submission.path)
    check_submission(document, loaded().test_counts)
    for (task_id, index), wanted in last.items():
        assert document[task_id][index] == wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("submissions")


def write_for_ever(submission: Submission) -> None:
    """Change every answer and write the file, again and again."""
    for number in range(10**9):
        side = 1 + number % 30
        for task_id, count in submission.test_counts.items():
            for index in range(count):
                submission.set(task_id, index, (freeze(np.full((side, side), number % 10)), grid("0")))
        submission.write()


def test_a_writer_killed_at_any_moment_leaves_a_whole_and_valid_file(tmp_path: Path) -> None:
    """A real process that rewrites the file without end, killed without warning at 40 random moments."""
    tasks = parse_tasks({f"task {i}": DOCUMENT["two"] for i in range(25)}, source="challenges.json")
    submission = Submission(tmp_path / "submission.json", tasks)
    submission.write()
    moments = random.Random(0)
    seen = set()
    for _ in range(40):
        writer = os.fork()
        if writer == 0:
            try:
                write_for_ever(submission)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0.001, 0.06))
        os.kill(writer, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
        text = submission.path.read_text()
        check_submission(json.loads(text), tasks.test_counts)
        seen.add(text)
    assert len(seen) > 2, "the writer was killed before it wrote anything"


def test_a_reader_beside_a_writer_never_sees_a_part(tmp_path: Path) -> None:
    tasks = parse_tasks({f"task {i}": DOCUMENT["two"] for i in range(25)}, source="challenges.json")
    submission = Submission(tmp_path / "submission.json", tasks)
    submission.write()
    writer = os.fork()
    if writer == 0:
        try:
            write_for_ever(submission)
        finally:
            os._exit(1)
    try:
        for _ in range(60):
            check_submission(read(submission.path), tasks.test_counts)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.write()
    before = submission.path.read_text()
    submission.set("one", 0, (freeze(np.ones((30, 30))), grid("1")))
    with file_size_limit(1000), pytest.raises(OSError, match="too large"):
        submission.write()
    assert submission.path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["submission.json"]
    submission.write()
    assert len(read(submission.path)["one"][0]["attempt_1"]) == 30


class FullDisk:
    """`os.fsync` of a disk that is full while the ballast is there, or that fails at the k-th call."""

    def __init__(self, folder: Path, code: int, at: int | None = None) -> None:
        self.folder, self.code, self.at, self.calls = folder, code, at, 0

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        full = (self.folder / ".ballast").exists() if self.at is None else self.calls == self.at
        if full:
            raise OSError(self.code, "injected")


def test_a_full_disk_gets_the_ballast_back_and_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.take_ballast()
    assert (tmp_path / ".ballast").stat().st_size > 2_500_000  # 400 tasks of two full grids
    monkeypatch.setattr("arc_ttt.run.submission.os.fsync", FullDisk(tmp_path, errno.ENOSPC))
    submission.write()
    submission.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["submission.json"]
    assert not submission.drop_ballast()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_disk_that_fails_at_any_call_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, at: int
) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.write()
    monkeypatch.setattr("arc_ttt.run.submission.os.fsync", FullDisk(tmp_path, code, at))
    texts = {submission.path.read_text()}
    for number in range(4):
        submission.set("one", 0, (grid("1"), grid(str(number))))
        with contextlib.suppress(OSError):
            submission.write()
        submission.verify()
        texts.add(submission.path.read_text())
        assert [path.name for path in tmp_path.iterdir()] == ["submission.json"]
    assert len(texts) >= 4


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"one": []}'])
def test_a_file_that_was_damaged_is_found_out(tmp_path: Path, text: str) -> None:
    submission = Submission(tmp_path / "submission.json", loaded())
    submission.write()
    submission.verify()
    submission.path.write_text(text)
    with pytest.raises(SubmissionError):
        submission.verify()
    submission.path.unlink()
    with pytest.raises(OSError, match="No such file"):
        submission.verify()


def test_an_atomic_write_follows_the_old_file_in_one_step(tmp_path: Path) -> None:
    """Who has the old file open goes on reading the old text: it was replaced, not written over."""
    path = tmp_path / "file.json"
    write_atomically(path, "old text")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old text"
    assert path.read_text() == "new"


VALID = {"a": [{"attempt_1": [[1, 2]], "attempt_2": [[0]]}, {"attempt_1": [[3]], "attempt_2": [[4]]}], "b": []}
COUNTS = {"a": 2, "b": 0}


def change(*steps: str | int, to: Any) -> Callable[[], Any]:
    def make() -> Any:
        document = copy.deepcopy(VALID)
        place: Any = document
        for step in steps[:-1]:
            place = place[step]
        place[steps[-1]] = to
        return document

    return make


def drop(*steps: str | int) -> Callable[[], Any]:
    def make() -> Any:
        document = copy.deepcopy(VALID)
        place: Any = document
        for step in steps[:-1]:
            place = place[step]
        del place[steps[-1]]
        return document

    return make


MALFORMED: dict[str, Callable[[], Any]] = {
    "a list": lambda: [VALID],
    "null": lambda: None,
    "task missing": drop("a"),
    "task not asked for": change("c", to=[]),
    "answers are an object": change("a", to={"0": 1}),
    "answers are null": change("a", to=None),
    "answer missing": drop("a", 1),
    "answer too many": change("a", to=[*VALID["a"], VALID["a"][0]]),
    "answer where none belongs": change("b", to=[VALID["a"][0]]),
    "answer is a grid": change("a", 0, to=[[1]]),
    "answer is null": change("a", 1, to=None),
    "first attempt missing": drop("a", 0, "attempt_1"),
    "second attempt missing": drop("a", 1, "attempt_2"),
    "attempt is null": change("a", 0, "attempt_1", to=None),
    "attempt is empty": change("a", 0, "attempt_1", to=[]),
    "row is empty": change("a", 0, "attempt_2", to=[[]]),
    "row is a number": change("a", 0, "attempt_2", to=[1, 2]),
    "ragged": change("a", 0, "attempt_1", to=[[1, 2], [1]]),
    "31 rows": change("a", 0, "attempt_1", to=[[1]] * 31),
    "31 columns": change("a", 0, "attempt_1", to=[[1] * 31]),
    "colour 10": change("a", 0, "attempt_1", to=[[10]]),
    "colour -1": change("a", 0, "attempt_1", to=[[-1]]),
    "colour 1.0": change("a", 0, "attempt_1", to=[[1.0]]),
    "colour true": change("a", 0, "attempt_1", to=[[True]]),
    "colour as text": change("a", 0, "attempt_1", to=[["1"]]),
    "colour null": change("a", 0, "attempt_1", to=[[None]]),
}


def test_a_valid_document_passes_the_check() -> None:
    check_submission(VALID, COUNTS)
    check_submission(change("a", 0, "attempt_1", to=[[9] * 30] * 30)(), COUNTS)


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_document_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(SubmissionError):
        check_submission(make(), COUNTS)


def test_a_refusal_says_where() -> None:
    with pytest.raises(SubmissionError, match=r"'a', answer 2: attempt_2"):
        check_submission(change("a", 1, "attempt_2", to=[[10]])(), COUNTS)
    with pytest.raises(SubmissionError, match=r"1 tasks are missing, the first is 'a'"):
        check_submission(drop("a")(), COUNTS)


def test_answers_of_a_file_stay_until_there_are_others(tmp_path: Path) -> None:
    loaded = parse_tasks({name: {"train": [], "test": [{"input": [[5]]}] * 2} for name in ("a", "b")}, source="tests")
    first = Submission(tmp_path / "submission.json", loaded)
    one, two, three = (freeze(np.array([[n]])) for n in (1, 2, 3))
    first.set("a", 1, (one, two))
    first.write()
    text = first.path.read_text()
    again = Submission(first.path, loaded)
    assert again.adopt()
    again.write()
    assert first.path.read_text() == text
    again.set("a", 1, (three, one))
    again.write()
    assert json.loads(first.path.read_text())["a"][1] == {"attempt_1": [[3]], "attempt_2": [[1]]}
    first.path.write_text(text[:-9])
    assert not Submission(first.path, loaded).adopt()
    assert not Submission(tmp_path / "none.json", loaded).adopt()
