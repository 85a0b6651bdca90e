"""What `by_task` says of a task, for every way in which a task ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT
from arc_ttt.run.findings import PassResult, TaskResult
from arc_ttt.run.reasons import Got, why
from arc_ttt.tasks.grids import freeze
from arc_ttt.votes.candidates import Candidate


def ended(outcome: str = "finished", *, steps: int = 0, answered: bool = False, reason: str = "") -> TaskResult:
    result = TaskResult(outcome=outcome, steps=steps, reason=reason)
    if answered:
        result.put(0, 0, PassResult(1.0, [Candidate("a", 0, freeze(np.ones((1, 1))), "identity", 1.0, TTT)], []))
    return result


FULL = ended(steps=4, answered=True)
BASE_ANSWERED = ended(answered=True)


@pytest.mark.parametrize(
    ("scope", "results", "got", "reason"),
    [
        ("per-task", {TTT: FULL}, Got.TRAINED, ""),
        ("per-task", {TTT: ended("cut", steps=2, answered=True)}, Got.TRAINED_IN_PART, "cut: its time ended first"),
        ("per-task", {BASE: BASE_ANSWERED}, Got.BASE_ONLY, "its training never started (deadline)"),
        ("per-task", {SYNTHESIS: ended()}, Got.PROGRAMS_ONLY, "its training never started (deadline)"),
        ("per-task", {}, Got.NOTHING, "never started (deadline)"),
        (
            "per-task",
            {TTT: ended(answered=True, reason="no trainable sequence; the base model answers")},
            Got.BASE_ONLY,
            "no trainable sequence; the base model answers",
        ),
        ("per-task", {TTT: ended(answered=True)}, Got.BASE_ONLY, "its worker had no adapter to train"),
        ("per-task", {TTT: ended("failed", reason="ValueError: no")}, Got.NOTHING, "failed: ValueError: no"),
        (
            "none",
            {BASE: BASE_ANSWERED, TTT: ended(answered=True)},
            Got.BASE_ONLY,
            "no test-time training was asked for",
        ),
        ("none", {BASE: BASE_ANSWERED}, Got.BASE_ONLY, "no test-time training was asked for"),
        ("none", {TTT: ended("failed", reason="ValueError: no")}, Got.NOTHING, "failed: ValueError: no"),
        ("shared", {TTT: ended(answered=True)}, Got.TRAINED, ""),
        ("joint", {TTT: FULL}, Got.TRAINED, ""),
    ],
)
def test_a_task_gets_what_happened_and_a_reason_unless_it_got_all(
    scope: str, results: dict[str, TaskResult], got: Got, reason: str
) -> None:
    found = {(stage, "a"): result for stage, result in results.items()}
    assert why("a", found, left_alone=False, scope=scope, problem="", stopped_by="deadline") == (got, reason)


def test_a_task_that_cannot_be_used_or_is_left_alone_says_so() -> None:
    one: dict[str, Any] = {"left_alone": True, "scope": "per-task", "stopped_by": "all done"}
    assert why("a", {}, problem="row 2 is short", **one) == (Got.NOTHING, "the task cannot be used: row 2 is short")
    found = {(TTT, "a"): ended("lost", reason="killed"), (BASE, "a"): BASE_ANSWERED}
    assert why("a", found, problem="", **one) == (Got.BASE_ONLY, "left alone after two deaths: killed")
