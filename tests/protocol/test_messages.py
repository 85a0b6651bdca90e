"""Every line between coordinator and workers: what goes in comes out, and what breaks a rule changes nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.deadline import Deadline
from arc_ttt.protocol.jobs import BASE, TTT, Effort, Job, JobKind, Outcome
from arc_ttt.protocol.messages import (
    Done,
    Fatal,
    Found,
    FoundGrid,
    Note,
    Programs,
    Progress,
    Ready,
    ScoredGrid,
    Trial,
    Unreadable,
    read_message,
)
from arc_ttt.protocol.orders import AnswerOrder, Cancel, Hello, JointOrder, Order, SearchOrder, read_order
from arc_ttt.tasks.grids import Example, Grid, Task, freeze
from arc_ttt.votes.candidates import Program

numbers = st.floats(0, 1e6, allow_nan=False)
texts = st.text(max_size=8)
counts = st.integers(0, 1000)
grids = st.builds(
    lambda rows, columns, colour: freeze(np.full((rows, columns), colour)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 9),
)
jobs = st.none() | counts
some = st.integers(0, 3)


def listed(strategy: Any) -> Any:
    return st.lists(strategy, max_size=3)


messages = st.one_of(
    st.builds(Ready, texts, texts, counts, listed(st.builds(Note, texts, st.booleans())),
              listed(st.builds(Trial, numbers, numbers, numbers, numbers))),
    st.builds(Fatal, texts, texts, jobs),
    st.builds(Progress, jobs, texts, counts, counts),
    st.builds(
        Found, texts, some, listed(st.builds(FoundGrid, grids, texts, numbers, st.none() | st.integers(-1, 9))),
        listed(st.builds(ScoredGrid, grids, st.tuples(numbers, numbers), texts)), numbers, jobs,
    ),
    st.integers(0, 3).flatmap(
        lambda index: st.builds(
            Programs, texts, st.just(index),
            listed(st.builds(Program, st.just(index), grids, texts, numbers, st.booleans())), st.booleans(), jobs,
        )
    ),
    st.builds(Done, st.sampled_from(Outcome), texts, numbers, counts, st.tuples(numbers), counts, numbers, numbers,
              counts, st.tuples(texts), st.booleans(), st.booleans(), jobs),
)  # fmt: skip


def through_a_pipe(line: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(line))
    return read


@settings(max_examples=200, deadline=None)
@given(messages)
def test_a_message_is_read_as_it_was_written(message: Any) -> None:
    again = read_message(through_a_pipe(message.to_json()))
    assert type(again) is type(message)
    assert again.to_json() == message.to_json()


ONE = Example(freeze(np.ones((2, 3))), freeze(np.zeros((1, 1))))
TASK = Task("t", (ONE,), (freeze(np.full((2, 2), 7)),))
SOON = Deadline.after(86_400.0)
"""Far enough: it is made when the tests are collected."""
PROGRAMS: dict[int, list[Grid]] = {0: [freeze(np.full((1, 2), 3))]}
ORDERS: list[Order] = [
    AnswerOrder(id=1, kind=BASE, task=TASK, deadline=SOON),
    AnswerOrder(
        id=2, kind=TTT, task=TASK, deadline=SOON, effort=Effort(3, 0.5, 4, 900, 1.5), programs=PROGRAMS, joint="file"
    ),
    SearchOrder(id=3, task=TASK, deadline=SOON, cpu_limit_s=2.0),
    JointOrder(id=4, tasks=[TASK], deadline=SOON, path="file"),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_an_order_is_read_as_it_was_written_and_its_moment_as_seconds_left(order: Order) -> None:
    line = through_a_pipe(order.to_json())
    again = read_order(line)
    assert 0 < line["left_s"] <= 86_400.0
    assert type(again) is type(order)
    assert not isinstance(again, Cancel)
    assert abs(again.deadline.at_s - order.deadline.at_s) < 5.0
    same = {name: value for name, value in again.to_json().items() if name != "left_s"}
    assert same == {name: value for name, value in order.to_json().items() if name != "left_s"}


def test_a_hello_and_a_cancel_are_read_as_they_were_written() -> None:
    hello = Hello("{}", SOON, 0, True, 2)
    again = Hello.from_json(through_a_pipe(hello.to_json()))
    assert (again.settings, again.gpu, again.calibrate, again.generation) == ("{}", 0, True, 2)
    assert abs(again.deadline.at_s - SOON.at_s) < 5.0
    assert read_order(through_a_pipe(Cancel().to_json())) == Cancel()


GOOD = Found("t", 0, [FoundGrid(TASK.tests[0], "identity", 1.0, 0)], job=5).to_json()
GRID = GOOD["candidates"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"test_index": -1},
        {"test_index": "0"},
        {"test_index": True},
        {"candidates": None},
        {"candidates": [{**GRID, "grid": [[10]]}]},
        {"candidates": [{**GRID, "grid": []}]},
        {"candidates": [{**GRID, "nll": float("nan")}]},
        {"candidates": [{**GRID, "view": 1.5}]},
        {"candidates": [7]},
        {"scored": [{"grid": [[1]], "nll_by_view": [float("inf")]}]},
        {"trained": "much"},
        {"type": "tick"},
    ],
    ids=str,
)
def test_a_line_that_breaks_a_rule_is_unreadable_and_says_why(change: dict[str, Any]) -> None:
    found = read_message({**GOOD, **change})
    assert isinstance(found, Unreadable)
    assert found.reason
    assert found.job == 5
    assert found.known == ("type" not in change)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["ready", "fatal", "progress", "candidates", "programs", "done", "tick"]),
    st.dictionaries(
        st.sampled_from([*GOOD, "outcome", "seconds", "steps", "loss", "degraded", "notes", "programs", "phase"]),
        st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | texts, listed, max_leaves=5),
    ),
)
def test_no_line_whatever_raises(kind: str, fields: dict[str, Any]) -> None:
    message = read_message({**fields, "type": kind})
    assert isinstance(message, Ready | Fatal | Progress | Found | Programs | Done | Unreadable)


def test_an_end_without_an_outcome_is_a_failure() -> None:
    assert read_message({"type": "done", "seconds": 10**400}) == Done(
        Outcome.FAILED, "its worker named no outcome: None"
    )


@given(st.sampled_from(JobKind), texts, numbers, numbers, counts)
def test_a_job_of_the_journal_is_read_as_it_was_written(
    kind: JobKind, task_id: str, predicted_s: float, share: float, number: int
) -> None:
    job = Job(kind, task_id, predicted_s, share, number)
    assert Job.from_json(through_a_pipe(job.to_json())) == job
    assert Job.from_json({"kind": "other"}) is None
