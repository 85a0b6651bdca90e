"""Which job runs where, and which messages belong to it. No process is started."""

from __future__ import annotations

import pytest

from arc_ttt.protocol.jobs import BASE, CallBack, Job
from arc_ttt.run.board import LATE_PART, OVERDUE_S, JobBoard, RunningJob

JOB = Job(BASE, "t", 10.0)


@pytest.fixture
def board() -> JobBoard:
    board = JobBoard()
    board.begin(3, RunningJob(JOB, board.next_number(), 100.0, 110.0, 160.0))
    return board


def test_a_message_belongs_to_the_job_whose_number_it_names(board: JobBoard) -> None:
    running = board.find(3, 1)
    assert running is not None
    assert running.job == JOB
    assert board.find(3, None) is running  # a line that names no job
    assert board.find(3, 2) is None  # a late one
    assert board.find(0, 1) is None
    assert board.end(3) is running
    assert board.find(3, None) is None
    assert board.end(3) is None
    assert len(board) == 0


def test_numbers_are_never_used_twice(board: JobBoard) -> None:
    board.end(3)
    assert [board.next_number() for _ in range(3)] == [2, 3, 4]


def test_a_job_is_called_back_once(board: JobBoard) -> None:
    assert board.call_back(3, CallBack.OVERDUE) is not None
    assert board.call_back(3, CallBack.SUPERSEDED) is None
    running = board.find(3, 1)
    assert running is not None
    assert running.called_back is CallBack.OVERDUE


def test_a_job_is_overdue_long_after_its_worker_was_asked_to_end_it(board: JobBoard) -> None:
    assert board.overdue(160.0 + OVERDUE_S) == []
    assert board.overdue(160.1 + OVERDUE_S) == [3]
    board.begin(4, RunningJob(JOB, board.next_number(), 0.0, 10.0))  # one that ends by itself
    assert board.overdue(1e9) == [3]


def test_a_late_job_needs_part_of_what_it_has_taken(board: JobBoard) -> None:
    running = board.find(3, 1)
    assert running is not None
    assert running.left_s(104.0) == 6.0
    assert running.left_s(110.0) == 0.0
    assert running.left_s(130.0) == LATE_PART * 30.0
