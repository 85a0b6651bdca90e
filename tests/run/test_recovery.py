"""A run that was interrupted goes on; one that ended, or that asked something else, is put aside."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from arc_ttt.protocol.messages import Done, Unreadable
from arc_ttt.run.journal import Journal, checked_line, read_journal
from arc_ttt.run.recovery import fingerprint, past_lines, take_over
from arc_ttt.tasks.grids import LoadedTasks
from arc_ttt.tasks.parse import parse_tasks
from support.scripted_fleet import answer_all, document, expected, instant_run, settings_of, valid

LOADED = parse_tasks(document(4), source="tests")


def journal_of(path: Path, *events: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(checked_line(event) for event in events))
    return path


START = {"event": "start", "mark": "m"}


@pytest.mark.parametrize(
    ("events", "goes_on"),
    [
        ([START], True),
        ([START, {"event": "end", "stopped_by": "signal SIGTERM"}], True),
        ([START, {"event": "end", "stopped_by": "signal SIGTERM"}, START], True),
        ([START, {"event": "end", "stopped_by": "error RuntimeError"}], True),
        ([START, {"event": "end", "stopped_by": "in other words", "stop": "signal"}], True),
        ([START, {"event": "end", "stopped_by": "signal in other words", "stop": "deadline"}], False),
        ([START, {"event": "end", "stopped_by": "all done"}], False),
        ([START, {"event": "end", "stopped_by": "deadline"}], False),
        ([{"event": "start", "mark": "other"}], False),
        ([START, {"event": "start", "mark": "other"}], False),
        ([{"event": "start"}], False),
        ([], False),
    ],
    ids=[
        "killed",
        "signal",
        "killed again",
        "error",
        "signal by kind",
        "deadline by kind",
        "done",
        "deadline",
        "other",
        "other later",
        "no mark",
        "empty",
    ],
)
def test_only_an_interrupted_run_of_the_same_kind_goes_on(
    tmp_path: Path, events: list[dict[str, Any]], goes_on: bool
) -> None:
    path = journal_of(tmp_path / "events.jsonl", *events)
    before = path.read_bytes()
    assert take_over(path, "m") == (events if goes_on else [])
    aside = tmp_path / "events.previous.jsonl"
    assert (path if goes_on else aside).read_bytes() == before
    assert (aside if goes_on else path).exists() is False


def test_a_run_can_be_told_to_start_clean(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "events.jsonl", START)
    assert take_over(path, "m", wanted=False) == []
    assert not path.exists()


def test_a_folder_without_a_journal_is_a_clean_start(tmp_path: Path) -> None:
    assert take_over(tmp_path / "none" / "events.jsonl", "m") == []


def test_the_fingerprint_is_that_of_the_question() -> None:
    """Not of the time or the machine that there is for it."""
    mark = fingerprint(LOADED, settings_of(60.0, {}))
    same = {"run.workers": 3, "run.threads": 2, "run.resume": False, "run.in_process": True, "run.reserve_s": 9.0}
    assert fingerprint(LOADED, settings_of(90.0, same)) == mark
    for other in ({"run.seed": 1}, {"ttt.rank": 4}, {"synthesis.enabled": True}):
        assert fingerprint(LOADED, settings_of(60.0, other)) != mark
    changed = document(4)
    changed["t3"]["test"][0]["input"][0][0] += 1
    for tasks in (document(3), document(5), changed):
        assert fingerprint(parse_tasks(tasks, source="tests"), settings_of(60.0, {})) != mark
    missing = LoadedTasks(LOADED.tasks, (), {**LOADED.test_counts, "unusable": 1})
    assert fingerprint(missing, settings_of(60.0, {})) != mark


def test_weights_of_one_size_are_told_apart_by_samples(tmp_path: Path) -> None:
    marks = set()
    for seed in (0, 0, 1, 2):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(random.Random(seed).randbytes(100_000))
        marks.add(fingerprint(LOADED, settings_of(60.0, {}), folder))
    (folder / "model.safetensors").write_bytes(b"short")
    marks.add(fingerprint(LOADED, settings_of(60.0, {}), folder))
    assert len(marks) == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of an unbroken run."""
    out = tmp_path_factory.mktemp("whole")
    instant_run(out, LOADED)
    assert valid(out, LOADED.test_counts) == expected(4)
    return (out / "events.jsonl").read_bytes()


def test_a_journal_cut_at_any_byte_holds_what_had_been_said_up_to_there(tmp_path: Path) -> None:
    instant_run(tmp_path, parse_tasks(document(1), source="tests"))
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    every = [(job, type(line)) for job, line in past_lines(read_journal(path))]
    assert len(every) == 4  # an answer and an end in two stages
    lengths = set()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = [(job, type(line)) for job, line in past_lines(read_journal(path))]
        assert kept == every[: len(kept)]
        lengths.add(len(kept))
    assert lengths == set(range(len(every) + 1))


def test_a_run_killed_after_any_line_ends_as_if_unbroken_and_does_nothing_twice(tmp_path: Path, whole: bytes) -> None:
    lines = whole.splitlines(keepends=True)
    for number in range(1, len(lines) + 1):
        out = tmp_path / str(number)
        out.mkdir()
        torn = lines[number][: len(lines[number]) // 2] if number < len(lines) else b""
        (out / "events.jsonl").write_bytes(b"".join(lines[:number]) + torn)
        past = read_journal(out / "events.jsonl")
        before = {(job.kind, job.task_id) for job, line in past_lines(past) if isinstance(line, Done)}
        given: set[tuple[str, str]] = set()

        def answer(job: dict[str, Any], given: set[tuple[str, str]] = given) -> list[dict[str, Any]]:
            given.add((job["kind"], job["task_id"]))
            return answer_all(job)

        result = instant_run(out, LOADED, answer, past=past)
        assert valid(out, LOADED.test_counts) == expected(4), number
        assert not given & before
        assert len(given | before) == 8
        assert result.resumed == len(before)
        assert all(found.outcome == "finished" for found in result.results.values())
        assert len(list(past_lines(read_journal(out / "events.jsonl")))) >= 18


def test_the_first_file_of_a_run_that_goes_on_is_as_good_as_the_last_of_the_one_before(
    tmp_path: Path, whole: bytes
) -> None:
    """Killed once more before any worker is up, it has lost nothing."""
    (tmp_path / "events.jsonl").write_bytes(whole)
    past = read_journal(tmp_path / "events.jsonl")
    instant_run(tmp_path, LOADED, lambda job: [{"type": "die"}], past=past)
    assert valid(tmp_path, LOADED.test_counts) == expected(4)


def test_a_task_that_killed_its_workers_is_left_alone_by_the_run_that_goes_on(tmp_path: Path) -> None:
    def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"type": "die"}] if job["task_id"] == "t1" else answer_all(job)

    first = instant_run(tmp_path, LOADED, answer)
    assert first.quarantined == ["t1"]
    given: list[str] = []

    def tell(job: dict[str, Any]) -> list[dict[str, Any]]:
        given.append(job["task_id"])
        return answer_all(job)

    second = instant_run(tmp_path, LOADED, tell, past=read_journal(tmp_path / "events.jsonl"))
    assert second.quarantined == ["t1"]
    assert given == []
    assert [run.results["base", "t1"].outcome for run in (first, second)] == ["lost", "lost"]


def test_a_death_of_the_run_before_counts_as_one(tmp_path: Path) -> None:
    deaths = []

    def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
        if job["task_id"] == "t1":
            deaths.append(job["kind"])
            return [{"type": "die"}]
        return answer_all(job)

    instant_run(tmp_path, LOADED, answer)
    assert len(deaths) == 2
    past = read_journal(tmp_path / "events.jsonl")
    seen = [number for number, event in enumerate(past) if event["event"] == "death"]
    instant_run(tmp_path, LOADED, answer, past=past[: seen[1]])
    assert len(deaths) == 3


def test_lines_of_an_older_kind_are_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    journal.append("found", kind="ttt", task_id="t0")
    journal.append("done", kind="ttt", task_id="gone", predicted_s=1.0, share=1.0, number=0, outcome="finished")
    journal.append("found", kind="ttt", task_id="t0", predicted_s=1.0, share=1.0, number=0, type="candidates")
    journal.close()
    past = read_journal(tmp_path / "events.jsonl")
    assert [type(line) for _, line in past_lines(past)] == [Done, Unreadable]
    instant_run(tmp_path, LOADED, past=past)
    assert valid(tmp_path, LOADED.test_counts) == expected(4)


def test_a_search_that_was_cut_adds_to_what_was_known_before_in_the_run_that_goes_on_too(tmp_path: Path) -> None:
    grids = iter([[[1]], [[2]]])

    def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
        if job["kind"] != "synthesis":
            return answer_all(job)
        row = {"grid": next(grids), "text": "p", "confidence": 0.5, "fits_all": True}
        body = {"type": "programs", "task_id": "t0", "test_index": 0, "programs": [row]}
        return [body | ({"cut": True} if row["grid"] == [[2]] else {}), {"type": "done", "outcome": "finished"}]

    loaded = parse_tasks(document(1), source="tests")
    changes = {"synthesis.enabled": True, "synthesis.cpu_limits_s": "1,5"}
    first = instant_run(tmp_path, loaded, answer, programs=1, **changes)
    found = [p.grid.tolist() for p in first.results["synthesis", "t0"].programs]
    assert found == [[[1]], [[2]]]
    past = read_journal(tmp_path / "events.jsonl")
    again = instant_run(tmp_path, loaded, answer, past=past, programs=1, **changes)
    assert [p.grid.tolist() for p in again.results["synthesis", "t0"].programs] == found
