"""The policy: what runs next, what is put back, and what is never started."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.cost import BASE, SYNTHESIS, TTT, CostModel
from arc_ttt.grids import Example, Task, freeze
from arc_ttt.schedule import JOINT, MAX_TRIES, SMALLEST_SHARE, Job, Plan
from arc_ttt.settings import Settings

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
    passes: int = 0,
) -> Plan:
    """A plan in which training task i takes `seconds[i]`, its base pass `base_s` of that, and pass n of synthesis
    10 * (n + 1) seconds."""

    def predict(task: Task, kind: str) -> float:
        return seconds[task.task_id] * (base_s if kind == BASE else 1.0)

    return Plan(
        [make_task(i) for i in seconds],
        predict,
        budget_s,
        joint=joint,
        base_share=0.2 if base else 0.0,
        synthesis_share=0.5,
        synthesis_passes=passes,
        predict_program=lambda number: 10.0 * (number + 1),
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
    just_too_small = 100.0 * SMALLEST_SHARE / 0.9 - 0.1
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
    plan.joint_done()
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
@given(SECONDS, STEPS, st.floats(1.0, 3000.0), st.sampled_from(["", "joint"]), st.booleans())
def test_every_history_keeps_the_rules(
    seconds: list[float], steps: list[tuple[str, float]], budget_s: float, joint: str, base: bool
) -> None:
    plan = make_plan({f"t{i}": s for i, s in enumerate(seconds)}, budget_s=budget_s, joint=joint, base=base)
    running: list[Job] = []
    taken: Counter[tuple[str, str]] = Counter()
    finished: set[tuple[str, str]] = set()
    joint_over = not joint
    for action, value in [*steps, *[("take", 1e9)] * 25]:
        if action == "take":
            job = plan.next_job(value)
            if job is None:
                continue
            running.append(job)
            if job.kind == JOINT:
                assert not taken
                taken[JOINT, ""] += 1
                continue
            assert job.predicted_s <= value
            assert 0 < job.share <= 1
            assert job.kind == BASE or joint_over
            assert base or job.kind == TTT
            assert (job.kind, job.task_id) not in finished
            taken[job.kind, job.task_id] += 1
        elif running:
            job = running.pop(int(value) % len(running))
            if job.kind == JOINT:
                joint_over = True
            if action == "lose":
                plan.lost(job)
            elif job.kind == JOINT:
                plan.joint_done()
            else:
                finished.add((job.kind, job.task_id))
    assert max(taken.values()) <= MAX_TRIES
    assert taken[JOINT, ""] == (1 if joint else 0)
    kinds = [BASE] * base + [TTT] * joint_over
    assert all(taken[kind, f"t{i}"] >= 1 for kind in kinds for i in range(len(seconds)))  # nothing is forgotten


# Synthesis


def test_programs_are_searched_for_with_rising_effort_until_one_is_sure() -> None:
    plan = make_plan({"b": 2.0, "a": 1.0}, passes=2)
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
    plan = make_plan({"a": 1.0, "b": 2.0, "c": 3.0}, passes=1, base=False)
    job = plan.next_program(100.0, within_share=False)
    assert job is not None
    plan.program_done(job, sure=True)
    assert [job.task_id for job in drain(plan)] == ["b", "c", "a"]


def test_synthesis_keeps_to_its_share_where_it_shares_the_cores() -> None:
    plan = make_plan({f"t{i}": 1.0 for i in range(9)}, passes=1, budget_s=60.0)
    taken = 0
    while plan.next_program(100.0, within_share=True) is not None:
        taken += 1
    assert taken == 3  # half of sixty seconds
    assert plan.next_program(100.0, within_share=False) is not None


def test_a_lost_search_is_tried_once_more() -> None:
    plan = make_plan({"a": 1.0}, passes=3)
    job = plan.next_program(100.0, within_share=False)
    assert job is not None
    assert plan.lost(job)
    assert plan.next_program(100.0, within_share=False) == job
    assert not plan.lost(job)
    assert plan.next_program(100.0, within_share=False) is None


# Predictions


def test_predictions_grow_with_the_task_and_follow_what_was_measured() -> None:
    settings_ = Settings.of("embedded")
    wide = freeze(np.zeros((20, 20)))
    small, large = make_task("a"), Task("b", (Example(wide, wide), Example(wide, wide)), (wide, wide))
    cost = CostModel(settings_)
    for kind in (BASE, TTT):
        assert cost.predict(small, kind) < cost.predict(large, kind)
    assert cost.predict(large, BASE) < cost.predict(large, TTT)
    before = cost.predict(large, TTT)
    for _ in range(3):
        cost.observe(small, TTT, 4 * cost._prior(small, TTT))
    assert cost.predict(large, TTT) == pytest.approx(4 * before)
    cost.observe(small, TTT, 1000 * cost._prior(small, TTT))  # one that hung does not move the median
    assert cost.predict(large, TTT) == pytest.approx(4 * before)
    assert cost.predict(large, BASE) == CostModel(settings_).predict(large, BASE)
