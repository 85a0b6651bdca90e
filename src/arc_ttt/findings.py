"""What a run has found so far, and the attempts that follow from it.

A worker's message is checked here before anything else sees it; a malformed one changes nothing. All of it is a
function of the messages alone, so that a journal of them gives the same findings again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arc_ttt.cost import BASE, SYNTHESIS, TTT
from arc_ttt.errors import ArcError
from arc_ttt.grids import Grid, LoadedTasks, Task, parse_grid
from arc_ttt.settings import Settings
from arc_ttt.votes import (
    Candidate,
    Program,
    ScoredCandidate,
    attempts,
    fallback_grids,
    merge,
    rank,
    rank_passes,
    strength,
)


@dataclass(slots=True)
class PassResult:
    """Answers of one pass over a task. weight: its say beside other passes, the share of the training it had."""

    weight: float = 1.0
    candidates: list[Candidate] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)


@dataclass(slots=True)
class TaskResult:
    """All that was found for one task in one stage ("base", "ttt" or "synthesis"), by the number of the pass."""

    passes: dict[int, PassResult] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def candidates(self) -> list[Candidate]:
        """Of all passes, in the order of their numbers: not of their ends, which depends on the workers."""
        return [c for number in sorted(self.passes) for c in self.passes[number].candidates]


Results = dict[tuple[str, str], TaskResult]  # by stage and task id


def rank_result(result: TaskResult, test_index: int, rule: str, *, with_programs: bool = False) -> list[Grid]:
    """Distinct grids of one test input, best first. with_programs: also those that only synthesis found."""
    found = []
    for _, one in sorted(result.passes.items()):
        candidates = [c for c in one.candidates if c.test_index == test_index]
        scored = [s for s in one.scored if s.test_index == test_index and (with_programs or s.stage != SYNTHESIS)]
        if candidates or scored:
            found.append((one.weight, candidates, scored))
    if len(found) == 1:
        return rank(found[0][1], found[0][2], rule=rule)
    return rank_passes(found, rule=rule) if found else []


def merged(results: Mapping[tuple[str, str], TaskResult], task: Task, index: int, settings: Settings) -> list[Grid]:
    """Grids of one test input, best first, from all stages: adapted before base, joined with the programs."""
    neural: list[Grid] = []
    agreement = 0.0
    for stage in (TTT, BASE):
        result = results.get((stage, task.task_id))
        if result is not None:
            found = rank_result(result, index, settings.vote.rule, with_programs=True)
            if found and not neural and stage == TTT:
                agreement = strength([c for c in result.candidates if c.test_index == index])
            neural += found
    synthesis = results.get((SYNTHESIS, task.task_id))
    programs = [p for p in synthesis.programs if p.test_index == index] if synthesis is not None else []
    return merge(neural, agreement, programs, rule=settings.synthesis.merge)


class Findings:
    """What was found for each task of a run."""

    def __init__(self, loaded: LoadedTasks) -> None:
        self.tasks = {task.task_id: task for task in loaded.tasks}
        self.results: Results = {}

    def of(self, kind: str, task_id: str) -> TaskResult:
        """The result of a stage, made when it is asked for the first time."""
        return self.results.setdefault((kind, task_id), TaskResult())

    def take(self, kind: str, task_id: str, number: int, weight: float, body: Mapping[str, Any]) -> str:
        """Take in a line "candidates" or "programs" of a pass. Returns what was dropped as malformed, or nothing.

        A second try of a pass takes the place of the first: else its votes would count twice because a worker died.
        """
        index = body.get("test_index")
        if type(index) is not int or not 0 <= index < len(self.tasks[task_id].tests):
            return "no such test input"
        result = self.of(kind, task_id)
        where = f"{kind} of {task_id}"
        try:
            if body["type"] == "programs":
                fresh = [_program(row, index, where, task_id) for row in body["programs"]]
                if fresh:  # those of the latest pass stand for the task
                    result.programs = [p for p in result.programs if p.test_index != index] + fresh
                return ""
            candidates = [_candidate(row, kind, index, where, task_id) for row in body["candidates"]]
            scored = [_scored(row, kind, index, where, task_id) for row in body["scored"]]
        except (ArcError, KeyError, TypeError, ValueError) as error:
            return f"malformed candidate: {error}"
        if candidates or scored:
            one = result.passes.setdefault(number, PassResult())
            one.weight = weight
            one.candidates = [c for c in one.candidates if c.test_index != index] + candidates
            one.scored = [c for c in one.scored if c.test_index != index] + scored
        return ""

    def attempts(self, task_id: str, index: int, settings: Settings) -> tuple[Grid, Grid] | None:
        """The two attempts of a test input from all that is known about it; None while nothing is."""
        task = self.tasks[task_id]
        ranked = merged(self.results, task, index, settings)
        return attempts(ranked, fallback_grids(task, index)) if ranked else None

    def agreement(self, task_id: str) -> float:
        """How far the votes over a task are decided, 0 to 1: the smallest vote strength of its test inputs."""
        result = self.results.get((TTT, task_id))
        if result is None:
            return 0.0
        candidates = result.candidates
        tests = range(len(self.tasks[task_id].tests))
        return min(strength([c for c in candidates if c.test_index == index]) for index in tests)

    def sure(self, task_id: str) -> bool:
        """Whether every test input of a task has a program that is taken for right."""
        firsts = {p.test_index: p.sure for p in reversed(self.of(SYNTHESIS, task_id).programs)}
        return all(firsts.get(index, False) for index in range(len(self.tasks[task_id].tests)))

    def programs_for(self, task_id: str) -> dict[int, list[list[list[int]]]]:
        """By test input, the grids that synthesis has found so far."""
        found = self.results.get((SYNTHESIS, task_id), TaskResult()).programs
        indices = sorted({p.test_index for p in found})
        return {index: [p.grid.tolist() for p in found if p.test_index == index] for index in indices}


def _candidate(row: Mapping[str, Any], kind: str, index: int, where: str, task_id: str) -> Candidate:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    return Candidate(task_id, index, grid, str(row["group"]), _finite(row["nll"]), kind)


def _scored(row: Mapping[str, Any], kind: str, index: int, where: str, task_id: str) -> ScoredCandidate:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    nlls = tuple(_finite(value) for value in row["nll_by_view"])
    return ScoredCandidate(task_id, index, grid, nlls, str(row.get("stage", kind)))


def _program(row: Mapping[str, Any], index: int, where: str, task_id: str) -> Program:
    grid = parse_grid(row["grid"], where=where, task_id=task_id)
    return Program(index, grid, str(row["text"]), _finite(row["confidence"]), bool(row["fits_all"]))


def _finite(value: Any) -> float:
    """A number that can be ranked. Raises ValueError for NaN and infinities."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no likelihood")
    return number
