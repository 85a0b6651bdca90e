"""The policy: what runs next, what is put back, and what is never started."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.protocol.jobs import BASE, JOINT, SYNTHESIS, TTT, Job
from arc_ttt.schedule.gains import FAILURES, FIRST_MOST, least_share
from arc_ttt.schedule.plan import FIRST_PART, Plan, Policy
from arc_ttt.schedule.searches import SearchQueue
from arc_ttt.tasks.grids import Example, Task, freeze

ONE = freeze(np.zeros((1, 1)))


def make_task(task_id: str) -> Task:
    return Task(task_id, (Example(ONE, ONE),), (ONE,))


def make_plan(
    seconds: dict[str, float],
    *,
    budget_s: float = 1e9,
    joint: str = "",
    base: bool = True,
    base_s: float = 1.0,
    searches: int = 0,
    passes: int = 1,
    order: str = "rungs",
) -> Plan:
    """A plan in which training task i takes `seconds[i]` times its share, its base pass `base_s` of that, and pass n of
    synthesis 10 * (n + 1) seconds."""

    def predict(task: Task, kind: str, share: float) -> float:
        return seconds[task.task_id] * (base_s if kind == BASE else share)

    return Plan(
        [make_task(i) for i in seconds],
        predict,
        budget_s,
        Policy(passes=passes, least_share=0.25, order=order, joint=joint, base_share=0.2 if base else 0.0),
        SearchQueue(searches, lambda number: 10.0 * (number + 1), 0.5),
    )


def drain(plan: Plan, remaining_s: float = 1e9) -> list[Job]:
    jobs = []
    while (job := plan.next_job(remaining_s)) is not None:
        jobs.append(job)
    return jobs


def test_the_cheapest_task_comes_first_whatever_the_order_of_the_file() -> None:
    plan = make_plan({"c": 30.0, "a": 10.0, "b": 20.0})
    kinds = [(job.kind, job.task_id) for job in drain(plan)]
    assert kinds == [(BASE, "a"), (BASE, "b"), (BASE, "c"), (TTT, "a"), (TTT, "b"), (TTT, "c")]
    assert plan.left == 0


def test_base_passes_take_no_more_than_their_share_before_training_starts() -> None:
    plan = make_plan({f"t{i}": 10.0 for i in range(10)}, budget_s=200.0)
    jobs = drain(plan)
    first_training = [job.kind for job in jobs].index(TTT)
    assert first_training == 0.2 * 200.0 / 10.0
    assert Counter(job.kind for job in jobs) == {BASE: 10, TTT: 10}  # the other base passes come when training is done
    assert [job.kind for job in jobs[-6:]] == [BASE] * 6


def test_without_base_passes_only_adapters_are_trained() -> None:
    assert [job.kind for job in drain(make_plan({"a": 1.0, "b": 2.0}, base=False))] == [TTT, TTT]


def test_what_does_not_fit_is_passed_over_and_taken_when_time_allows() -> None:
    plan = make_plan({"a": 10.0, "b": 100.0}, base=False)
    assert plan.next_job(50.0) == Job(TTT, "a", 10.0)
    assert plan.next_job(20.0) is None  # b would need five times the time left
    assert plan.left == 1
    assert plan.next_job(100.0) == Job(TTT, "b", 100.0)


def test_a_base_pass_fills_time_that_no_training_fits() -> None:
    plan = make_plan({"a": 100.0}, budget_s=10.0, base_s=0.1)
    assert plan.next_job(20.0) == Job(BASE, "a", 10.0)


def test_training_shrinks_to_the_time_left_but_not_to_nothing() -> None:
    job = make_plan({"a": 100.0, "b": 300.0}, base=False).next_job(50.0)
    assert job is not None
    assert (job.kind, job.task_id) == (TTT, "a")
    assert job.share == pytest.approx(0.45)
    assert job.predicted_s == pytest.approx(45.0)
    just_too_small = 100.0 * 0.25 / 0.9 - 0.1
    assert make_plan({"a": 100.0, "b": 300.0}, base=False).next_job(just_too_small) is None


def test_a_lost_job_is_tried_once_more_and_then_given_up() -> None:
    plan = make_plan({"a": 1.0}, base=False)
    job = plan.next_job(10.0)
    assert job is not None
    assert plan.lost(job)
    again = plan.next_job(10.0)
    assert again == job
    assert not plan.lost(again)
    assert plan.next_job(10.0) is None
    assert plan.left == 0


def test_the_joint_stage_comes_first_and_training_waits_for_it() -> None:
    plan = make_plan({"a": 1.0}, joint="joint")
    assert plan.next_job(10.0) == Job(JOINT, "", 0.0)
    assert plan.next_job(10.0) == Job(BASE, "a", 1.0)
    assert plan.next_job(10.0) is None
    plan.done(Job(JOINT, "", 0.0), failed=False, agreement=0.0)
    assert plan.next_job(10.0) == Job(TTT, "a", 1.0)


def test_a_lost_joint_stage_lets_the_tasks_train_from_the_base() -> None:
    plan = make_plan({"a": 1.0}, joint="shared", base=False)
    job = plan.next_job(10.0)
    assert job is not None
    assert not plan.lost(job)
    assert plan.next_job(10.0) == Job(TTT, "a", 1.0)


SECONDS = st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=5)
STEPS = st.lists(st.tuples(st.sampled_from(["take", "take", "finish", "lose"]), st.floats(0.0, 1500.0)), max_size=60)


@settings(max_examples=150, deadline=None, database=None)
@given(SECONDS, STEPS, st.floats(1.0, 3000.0), st.sampled_from(["", "joint"]), st.booleans(), st.integers(1, 4))
def test_every_history_keeps_the_rules(
    seconds: list[float], steps: list[tuple[str, float]], budget_s: float, joint: str, base: bool, passes: int
) -> None:
    plan = make_plan(
        {f"t{i}": s for i, s in enumerate(seconds)}, budget_s=budget_s, joint=joint, base=base, passes=passes
    )
    running: list[Job] = []
    taken: Counter[tuple[str, str, int]] = Counter()
    finished: set[tuple[str, str, int]] = set()
    joint_over = not joint
    for action, value in [*steps, *[("take", 1e9)] * 60]:
        if action == "take":
            job = plan.next_job(value)
            if job is None:
                continue
            running.append(job)
            if job.kind == JOINT:
                assert not taken
                taken[JOINT, "", 0] += 1
                continue
            assert job.predicted_s <= value
            assert 0 < job.share <= 1
            assert job.kind == BASE or joint_over
            assert base or job.kind == TTT
            assert 0 <= job.number < passes
            assert (job.kind, job.task_id, job.number) not in finished
            assert job.task_id not in plan.quarantined
            taken[job.kind, job.task_id, job.number] += 1
        elif running:
            job = running.pop(int(value) % len(running))
            if job.kind == JOINT:
                joint_over = True
            if action == "lose":
                plan.lost(job)
                continue
            plan.done(job, failed=False, agreement=value % 1)
            if job.kind != JOINT:
                finished.add((job.kind, job.task_id, job.number))
    assert taken[JOINT, "", 0] == (1 if joint else 0)
    kinds = [(BASE, 0)] * base + [(TTT, number) for number in range(passes)] * joint_over
    tasks = [f"t{i}" for i in range(len(seconds)) if f"t{i}" not in plan.quarantined]
    assert all(taken[kind, task_id, number] >= 1 for kind, number in kinds for task_id in tasks)  # nothing is forgotten
    assert plan.left == (joint != "" and not joint_over) * len(tasks)


# Rungs


def finish(plan: Plan, job: Job, agreement: float = 0.0, *, failed: bool = False) -> None:
    plan.done(job, failed=failed, agreement=agreement)


def test_every_task_gets_a_short_training_before_any_gets_a_full_one() -> None:
    plan = make_plan({"c": 30.0, "a": 10.0, "b": 20.0}, passes=2, base=False)
    jobs = []
    while (job := plan.next_job(1e9)) is not None:
        jobs.append(job)
        finish(plan, job)
    assert [(job.task_id, job.number, job.share) for job in jobs] == [
        *[(task_id, 0, FIRST_MOST) for task_id in "abc"],
        *[(task_id, 1, 1.0) for task_id in "abc"],
    ]


@pytest.mark.parametrize(("budget_s", "share"), [(1e6, FIRST_MOST), (417.0, FIRST_MOST), (300.0, 0.16), (10.0, 0.06)])
def test_the_size_of_the_first_rung_follows_the_load(budget_s: float, share: float) -> None:
    """Short trainings of all tasks take no more than six tenths of the devices' time, down to the least that is worth
    its start: sixty percent of 300 s for full trainings of 1000 s."""
    seconds = {f"t{i}": 100.0 for i in range(10)}
    plan = Plan(
        [make_task(i) for i in seconds],
        lambda task, kind, share: 100.0 * share,
        budget_s,
        Policy(passes=3, least_share=0.06, base_share=0.0),
    )
    assert plan.first_share == pytest.approx(share)
    if share > 0.06:
        assert sum(100.0 * plan.first_share for _ in seconds) <= FIRST_PART * budget_s


def test_beyond_their_part_short_trainings_compete_with_full_ones_by_gain_a_second() -> None:
    """Task b is so long that even its short training gains less a second than the full one of task a."""
    plan = make_plan({"a": 1.0, "b": 1000.0}, passes=2, base=False, budget_s=100.0)
    jobs = [plan.next_job(1e9) for _ in range(3)]
    assert [(job.task_id, job.number) for job in jobs if job is not None] == [("a", 0), ("a", 1), ("b", 0)]


def test_a_decided_vote_comes_after_an_open_one() -> None:
    plan = make_plan({"a": 10.0, "b": 11.0}, passes=2, base=False)
    for agreement in (0.9, 0.4):
        job = plan.next_job(1e9)
        assert job is not None
        finish(plan, job, agreement)
    assert [job.task_id for job in drain(plan)] == ["b", "a"]


def test_later_trainings_gain_less_and_are_numbered() -> None:
    plan = make_plan({"a": 10.0, "b": 15.0}, passes=4, base=False)
    order = [(job.task_id, job.number) for job in drain(plan)]
    assert sorted(order) == [(task_id, number) for task_id in "ab" for number in range(4)]
    assert [number for task_id, number in order if task_id == "a"] == [0, 1, 2, 3]
    assert order.index(("b", 1)) < order.index(("a", 2))  # though it takes longer


def test_a_full_training_that_no_longer_fits_is_made_smaller() -> None:
    plan = make_plan({"a": 100.0}, passes=2, base=False)
    assert plan.next_job(30.0) == Job(TTT, "a", 25.0, 0.25, 0)
    job = plan.next_job(60.0)
    assert job is not None
    assert (job.number, job.predicted_s) == (1, pytest.approx(54.0))
    assert plan.next_job(1e9) is None


def test_a_task_that_kills_two_workers_is_left_alone_and_the_others_are_not() -> None:
    plan = make_plan({"a": 10.0, "b": 20.0}, passes=3)
    base = plan.next_job(1e9)
    assert base is not None
    assert plan.lost(base)
    again = plan.next_job(1e9)
    assert again == base
    assert not plan.lost(again)
    assert plan.quarantined == ["a"]
    assert {job.task_id for job in drain(plan)} == {"b"}


def test_a_task_that_worked_in_between_has_not_killed_twice() -> None:
    plan = make_plan({"a": 10.0}, passes=4, base=False)
    for number in range(3):
        job = plan.next_job(1e9)
        assert job is not None
        assert plan.lost(job)
        again = plan.next_job(1e9)
        assert again is not None
        assert (again.number, again.share) == (number, max(0.25, 0.5 * job.share))
        finish(plan, again)
    assert plan.quarantined == []


def test_a_task_that_is_left_alone_stays_so_when_another_of_its_passes_ends_well() -> None:
    plan = make_plan({"a": 10.0}, passes=5)
    base, first, second = (plan.next_job(1e9) for _ in range(3))
    assert base is not None
    assert first is not None
    assert second is not None
    plan.lost(first)
    plan.lost(second)
    finish(plan, base)
    assert plan.quarantined == ["a"]
    assert plan.next_job(1e9) is None


def test_a_task_whose_trainings_fail_is_not_trained_for_ever() -> None:
    plan = make_plan({"a": 10.0}, passes=8, base=False)
    for _ in range(FAILURES):
        job = plan.next_job(1e9)
        assert job is not None
        finish(plan, job, failed=True)
    assert plan.next_job(1e9) is None


def test_a_task_without_demonstrations_is_answered_once() -> None:
    plan = Plan([Task("a", (), (ONE,))], lambda task, kind, share: 1.0, 1e9, Policy(passes=8, base_share=0.0))
    assert len(drain(plan)) == 1


# Synthesis


def test_programs_are_searched_for_with_rising_effort_until_one_is_sure() -> None:
    plan = make_plan({"b": 2.0, "a": 1.0}, searches=2)
    first = plan.next_program(100.0, within_share=False)
    assert first == Job(SYNTHESIS, "a", 10.0, number=0)
    plan.program_done(first, sure=False)
    second = plan.next_program(100.0, within_share=False)
    assert second == Job(SYNTHESIS, "b", 10.0, number=0)
    plan.program_done(second, sure=True)
    assert plan.next_program(15.0, within_share=False) is None  # the second pass takes twenty seconds
    third = plan.next_program(100.0, within_share=False)
    assert third == Job(SYNTHESIS, "a", 20.0, number=1)
    plan.program_done(third, sure=False)
    assert plan.next_program(100.0, within_share=False) is None
    assert [job.task_id for job in drain(plan) if job.kind == TTT] == ["a", "b"]


def test_tasks_with_a_sure_program_are_trained_last() -> None:
    plan = make_plan({"a": 1.0, "b": 2.0, "c": 3.0}, searches=1, base=False)
    job = plan.next_program(100.0, within_share=False)
    assert job is not None
    plan.program_done(job, sure=True)
    assert [job.task_id for job in drain(plan)] == ["b", "c", "a"]


def test_a_running_job_is_superseded_by_a_sure_program_while_others_have_more_to_gain() -> None:
    plan = make_plan({"a": 20.0, "b": 30.0}, searches=1, base=False)
    running, search = plan.next_job(100.0), plan.next_program(100.0, within_share=False)
    assert running is not None
    assert search is not None
    assert running.task_id == search.task_id == "a"
    assert not plan.superseded(running, 100.0)
    plan.program_done(search, sure=True)
    assert plan.superseded(running, 100.0)
    assert not plan.superseded(running, 7.0)  # a quarter of b's training does not fit that
    other = plan.next_job(100.0)
    assert other is not None
    assert not plan.superseded(other, 100.0)  # without a program
    assert not plan.superseded(running, 100.0)  # nothing else waits any more


@pytest.mark.parametrize(("order", "expected"), [("first-come", "cab"), ("shortest", "abc")])
def test_orders_to_compare_with_give_each_task_one_full_training(order: str, expected: str) -> None:
    plan = make_plan({"c": 3.0, "a": 1.0, "b": 2.0}, passes=8, order=order)
    jobs = drain(plan)
    assert "".join(job.task_id for job in jobs) == expected
    assert {(job.kind, job.share, job.number) for job in jobs} == {(TTT, 1.0, 0)}


def test_synthesis_keeps_to_its_share_where_it_shares_the_cores() -> None:
    plan = make_plan({f"t{i}": 1.0 for i in range(9)}, searches=1, budget_s=60.0)
    taken = 0
    while plan.next_program(100.0, within_share=True) is not None:
        taken += 1
    assert taken == 3  # half of sixty seconds
    assert plan.next_program(100.0, within_share=False) is not None


def test_the_last_effort_for_programs_waits_for_the_first_trainings() -> None:
    plan = make_plan({"a": 1.0}, searches=3, passes=2, base=False)
    for number in range(2):
        search = plan.next_program(100.0, within_share=True)
        assert search is not None
        assert search.number == number
        plan.program_done(search, sure=False)
    assert plan.next_program(100.0, within_share=True) is None
    training = plan.next_job(100.0)
    assert training is not None
    last = plan.next_program(100.0, within_share=True)  # which waits for no second training
    assert last is not None
    assert last.number == 2


@pytest.mark.parametrize("passes", [1, 8])
def test_the_last_effort_does_not_wait_for_trainings_that_cannot_come(passes: int) -> None:
    plan = make_plan({"a": 1.0, "huge": 1e6, "sure": 2.0}, searches=2, passes=passes, base=False, budget_s=2000.0)
    for task_id in ("a", "sure", "huge"):
        search = plan.next_program(100.0, within_share=True)
        assert search is not None
        assert search.task_id == task_id
        plan.program_done(search, sure=task_id == "sure")
    assert plan.next_program(100.0, within_share=True) is None
    training = plan.next_job(100.0)
    assert training is not None
    assert training.task_id == "a"
    last = plan.next_program(100.0, within_share=True)  # the huge one does not fit, the sure one can wait
    assert last is not None
    assert last.number == 1


def test_short_trainings_have_what_the_early_searches_leave() -> None:
    def plan_of(budget_s: float) -> Plan:
        return Plan(
            [make_task(f"t{i}") for i in range(10)],
            lambda task, kind, share: 100.0 * share,
            budget_s,
            Policy(passes=4, least_share=0.05, base_share=0.0),
            SearchQueue(3, lambda number: (1.0, 4.0, 50.0)[number]),
            device_share=0.2,
        )

    assert plan_of(200.0).first_share == pytest.approx(0.08, abs=0.01)  # 60% of the 150 s beside 10 x 5 s of searches
    assert plan_of(60.0).first_share == 0.05  # a fifth of the time is left all the same, and the least size
    assert plan_of(1000.0).first_share == FIRST_MOST


def test_a_task_with_a_sure_program_is_not_among_the_short_trainings_that_come_first() -> None:
    plan = make_plan({"a": 200.0, "b": 100.0}, passes=3, searches=1, base=False, budget_s=1e6)
    plan.program_done(Job(SYNTHESIS, "a", 10.0), sure=True)
    jobs = [plan.next_job(1e6) for _ in range(6)]
    order = [(job.task_id, job.number) for job in jobs if job is not None]
    assert order == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1), ("a", 2)]


def test_a_lost_search_is_tried_once_more() -> None:
    plan = make_plan({"a": 1.0}, searches=3)
    job = plan.next_program(100.0, within_share=False)
    assert job is not None
    assert plan.lost(job)
    assert plan.next_program(100.0, within_share=False) == job
    assert not plan.lost(job)
    assert plan.next_program(100.0, within_share=False) is None


def test_a_job_whose_worker_had_to_go_for_others_is_tried_as_often_as_that_happens() -> None:
    plan = make_plan({"a": 1.0}, searches=3, base=False)
    for _ in range(5):
        search, training = plan.next_program(100.0, within_share=False), plan.next_job(100.0)
        assert search is not None
        assert training is not None
        assert plan.lost(search, blamed=False)
        assert plan.lost(training, blamed=False)
    assert not plan.quarantined


def test_a_training_too_short_to_be_worth_its_start() -> None:
    assert least_share(320) == 0.25  # of the embedded model: ten steps of eight
    assert least_share(500) == 0.16  # of the Llamas: forty steps of two
    assert least_share(10_000) == 0.04
    assert least_share(2) == 1.0
