"""Programs join the votes: the merge rules, and the policy of synthesis passes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, Job
from arc_ttt.protocol.messages import Programs
from arc_ttt.run.findings import Findings
from arc_ttt.schedule.plan import Plan, Policy
from arc_ttt.schedule.searches import SearchQueue
from arc_ttt.tasks.grids import Example, Grid, LoadedTasks, Task, freeze, grid_bytes, same_grid
from arc_ttt.votes.attempts import attempts, merge
from arc_ttt.votes.candidates import Program, strength


def grid(value: int) -> Grid:
    return freeze(np.full((2, 2), value))


def program(value: int, confidence: float = 0.9, *, fits: bool = True) -> Program:
    return Program(0, grid(value), f"fill with {value}", confidence, fits)


def values(grids: list[Grid]) -> list[int]:
    return [int(g[0, 0]) for g in grids]


@pytest.mark.parametrize(
    ("neural", "strong", "programs", "rule", "expected"),
    [
        ([1, 2], 0.95, [program(3)], "confident", [1, 3, 2]),  # a vote surer than the program keeps the first place
        ([1, 2], 0.2, [program(3)], "confident", [3, 1, 2]),  # a weaker one does not
        ([3, 2], 0.2, [program(3)], "confident", [3, 2]),  # both agree: the second attempt is the vote's next
        ([3, 2], 0.2, [program(3), program(4, 0.2)], "confident", [3, 4, 2]),  # or another likely program
        ([], 0.0, [program(3), program(4, 0.1)], "confident", [3, 4]),
        ([1, 2], 0.5, [program(3, 0.2)], "confident", [1, 3, 2]),  # likely enough for the second attempt
        ([1, 2], 0.0, [program(3, 0.1)], "confident", [1, 2, 3]),  # unlikely: only fills
        ([1], 0.9, [program(3, 0.1)], "confident", [1, 3]),
        ([1, 2], 0.2, [program(3, 0.9, fits=False)], "confident", [1, 2, 3]),  # must reproduce all demonstrations
        ([1, 2], 0.2, [program(3)], "fill", [1, 2, 3]),
        ([1, 2], 0.9, [program(3, 0.1), program(4, 0.1, fits=False)], "first", [3, 1, 2, 4]),
    ],
)
def test_merge_puts_grids_in_this_order(
    neural: list[int], strong: float, programs: list[Program], rule: str, expected: list[int]
) -> None:
    assert values(merge([grid(v) for v in neural], strong, programs, rule=rule)) == expected


@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.booleans()), max_size=5),
    st.sampled_from(["confident", "fill", "first"]),
)
def test_merge_keeps_every_grid_once_and_wastes_no_attempt(
    neural: list[int], strong: float, rows: list[tuple[int, float, bool]], rule: str
) -> None:
    programs = [program(value, confidence, fits=fits) for value, confidence, fits in rows]
    ranked = merge([grid(v) for v in neural], strong, programs, rule=rule)
    assert sorted(set(values(ranked))) == sorted({*neural, *(value for value, _, _ in rows)})
    assert len({grid_bytes(g) for g in ranked}) == len(ranked)
    first, second = attempts(ranked, [grid(0), freeze(np.zeros((1, 1)))])
    assert not same_grid(first, second)


@pytest.mark.parametrize(("cut", "expected"), [(False, [(3, 0.1), (4, 0.05)]), (True, [(1, 0.7), (3, 0.3), (4, 0.05)])])
def test_a_search_that_was_cut_takes_nothing_from_the_one_before(cut: bool, expected: list[tuple[int, float]]) -> None:
    """What a whole one finds takes the place of earlier programs, and of their confidence."""
    task = Task("t", (Example(grid(0), grid(1)),), (grid(2),))
    findings = Findings(LoadedTasks((task,), (), {"t": 1}))
    for rows, was_cut in (([(1, 0.7), (3, 0.3)], False), ([(3, 0.1), (4, 0.05)], cut), ([], cut)):
        programs = [Program(0, grid(v), "", c, True) for v, c in rows]
        assert findings.take(Job(SYNTHESIS, "t", 0.0), Programs("t", 0, programs, was_cut)) == ""
    kept = findings.of(SYNTHESIS, "t").programs
    assert [(int(p.grid[0, 0]), p.confidence) for p in kept] == expected


def test_strength_is_the_share_of_views_that_agree() -> None:
    assert strength(Counter([b"1", b"1", b"1", b"2"])) == 0.75
    assert strength(Counter()) == 0.0


def small_plan(count: int, *, share: float = 1.0, passes: int = 2, budget_s: float = 100.0) -> Plan:
    example = Example(grid(1), grid(2))
    tasks = [Task(f"t{i}", (example, example), (grid(i % 10),)) for i in range(count)]
    return Plan(
        tasks,
        lambda task, kind, share: 5.0,
        budget_s,
        Policy(base_share=0.0),
        SearchQueue(passes, lambda number: 2.0 * 5**number, share),
    )


def test_synthesis_stops_at_its_share_until_cores_are_left_over() -> None:
    plan = small_plan(10, share=0.06)
    taken = [plan.next_program(100.0, within_share=True) for _ in range(4)]
    assert [job is not None for job in taken] == [True, True, True, False]  # 3 x 2 s reach 6% of 100 s
    assert plan.next_program(100.0, within_share=False) is not None


def test_only_tasks_without_a_sure_program_get_another_pass() -> None:
    plan = small_plan(2)
    first, second = plan.next_program(100.0, within_share=True), plan.next_program(100.0, within_share=True)
    assert first is not None
    assert second is not None
    plan.program_done(first, sure=True)
    plan.program_done(second, sure=False)
    assert plan.next_program(100.0, within_share=True) is None  # the last effort comes behind the first trainings
    again = plan.next_program(100.0, within_share=False)
    assert again is not None
    assert (again.kind, again.task_id, again.number, again.predicted_s) == (SYNTHESIS, second.task_id, 1, 10.0)
    plan.program_done(again, sure=False)
    assert plan.next_program(100.0, within_share=True) is None  # there were two passes


def test_a_pass_that_does_not_fit_the_time_left_is_not_started() -> None:
    plan = small_plan(1)
    assert plan.next_program(1.9, within_share=True) is None
    assert plan.next_program(2.0, within_share=True) is not None


def test_tasks_with_a_sure_program_train_last() -> None:
    plan = small_plan(3)
    plan.program_done(Job(SYNTHESIS, "t0", 2.0), sure=True)
    order = [plan.next_job(100.0) for _ in range(3)]
    assert [job.task_id for job in order if job is not None] == ["t1", "t2", "t0"]
    assert {job.kind for job in order if job is not None} == {TTT}
    assert BASE not in {job.kind for job in order if job is not None}


def test_a_lost_pass_is_tried_once_more() -> None:
    plan = small_plan(1)
    job = plan.next_program(100.0, within_share=True)
    assert job is not None
    assert plan.lost(job)
    again = plan.next_program(100.0, within_share=True)
    assert again is not None
    assert not plan.lost(again)
    assert plan.next_program(100.0, within_share=True) is None
