"""Why each task got what it got, in one word for programs and one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, Outcome
from arc_ttt.run.findings import Results, TaskResult


class Got(StrEnum):
    """What a task got of a run."""

    TRAINED = "trained"
    """An adapter was trained on it, and the model answered."""
    TRAINED_IN_PART = "trained in part"
    """The time ended before its training or its answers did; what was there counts."""
    BASE_ONLY = "base model only"
    """The model answered as it is."""
    PROGRAMS_ONLY = "programs only"
    """Only program synthesis looked at it."""
    NOTHING = "nothing"
    """Nobody answered it; its attempts are the fallback."""


def why(
    task_id: str, results: Results, *, left_alone: bool, scope: str, problem: str, stopped_by: str
) -> tuple[Got, str]:
    """What a task got, and why it was not more (empty for a task that was trained in full).

    Args:
        task_id: the task.
        results: of the whole run.
        left_alone: workers died under it, and it was not tried again.
        scope: of the run's test-time training, as in `ttt.scope`.
        problem: what is wrong with the task itself; empty if nothing.
        stopped_by: why the run ended.
    """
    if problem:
        return Got.NOTHING, f"the task cannot be used: {problem}"
    base, trained, searched = (results.get((stage, task_id), TaskResult()) for stage in (BASE, TTT, SYNTHESIS))
    got = _got(base, trained, searched, shared=scope == "shared")
    if got is Got.TRAINED:
        return got, ""
    if left_alone:
        return got, f"left alone after two deaths: {trained.reason or base.reason}"
    if scope == "none" and trained.outcome in ("", Outcome.FINISHED):
        return got, "no test-time training was asked for"
    if trained.outcome:
        return got, _of_training(trained)
    return got, f"{'never' if got is Got.NOTHING else 'its training never'} started ({stopped_by})"


def _got(base: TaskResult, trained: TaskResult, searched: TaskResult, *, shared: bool) -> Got:
    """shared: all tasks have one adapter, whose steps belong to no task."""
    if trained.passes and (trained.steps > 0 or shared):
        return Got.TRAINED if trained.outcome == Outcome.FINISHED else Got.TRAINED_IN_PART
    if trained.passes or base.passes:
        return Got.BASE_ONLY
    return Got.PROGRAMS_ONLY if searched.outcome or searched.programs else Got.NOTHING


def _of_training(trained: TaskResult) -> str:
    """Why a training did not end as a full one."""
    if trained.out_of_memory:
        return trained.reason
    if trained.outcome == Outcome.FINISHED and trained.steps == 0:
        return trained.reason or "its worker had no adapter to train"
    if trained.outcome == Outcome.CUT:
        return trained.reason or "cut: its time ended first"
    return f"{trained.outcome}: {trained.reason}"


def reasons(
    task_ids: tuple[str, ...],
    results: Results,
    *,
    left_alone: set[str],
    scope: str,
    problems: Mapping[str, str],
    stopped_by: str,
) -> dict[str, dict[str, str]]:
    """By task id, `got` and `reason` of every task of a run, those that were never started among them.

    Arguments as for `why`, for all tasks.
    """
    found = {}
    for task_id in task_ids:
        got, reason = why(
            task_id,
            results,
            left_alone=task_id in left_alone,
            scope=scope,
            problem=problems.get(task_id, ""),
            stopped_by=stopped_by,
        )
        found[task_id] = {"got": str(got), "reason": reason}
    return found
