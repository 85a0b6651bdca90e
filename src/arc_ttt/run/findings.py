"""What a run has found so far, and the attempts that follow from it.

All of it is a function of the workers' messages alone, so that a journal of them gives the same findings again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, Job
from arc_ttt.protocol.messages import Found, Programs
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Grid, LoadedTasks, Task, grid_bytes
from arc_ttt.votes.attempts import attempts, fallback_grids, merge
from arc_ttt.votes.candidates import Candidate, Program, ScoredCandidate, strength
from arc_ttt.votes.rules import pass_shares, rank, rank_passes


@dataclass
class PassResult:
    """Answers of one pass over a task to one test input.

    Args:
        weight: its say beside other passes: the share of a full training that it had.
        candidates: the grids that it wrote.
        scored: the grids that it scored.
        failed: the base model answered in place of a trained one.
    """

    weight: float
    candidates: list[Candidate]
    scored: list[ScoredCandidate]
    failed: bool = False

    @functools.cached_property
    def shares(self) -> dict[bytes, float]:
        """How it shares its weight out among the grids that it scored."""
        return pass_shares(self.scored, self.weight)


@dataclass(slots=True)
class TaskResult:
    """All that was found for one task in one stage ("base", "ttt" or "synthesis"), by test input and number of pass."""

    passes: dict[int, dict[int, PassResult]] = field(default_factory=dict)
    counts: dict[int, dict[bytes, float]] = field(default_factory=dict)  # by test input and grid, weight of answers
    programs: list[Program] = field(default_factory=list)
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0
    steps: int = 0
    out_of_memory: bool = False
    ranked: dict[int, list[Grid]] = field(default_factory=dict)  # by test input, programs included; until it changes

    @property
    def candidates(self) -> list[Candidate]:
        """Of all passes, in the order of their numbers: not of their ends, which depends on the workers."""
        return [
            c for _, found in sorted(self.passes.items()) for _, one in sorted(found.items()) for c in one.candidates
        ]

    def of(self, test_index: int) -> list[PassResult]:
        """The passes that answered a test input, in the order of their numbers."""
        return [one for _, one in sorted(self.passes.get(test_index, {}).items())]

    def put(self, test_index: int, number: int, one: PassResult) -> None:
        """Take in a pass. It takes the place of an earlier try of itself: else its votes would count twice."""
        self.ranked.pop(test_index, None)
        passes, counts = self.passes.setdefault(test_index, {}), self.counts.setdefault(test_index, {})
        changes = [(passes[number], -1), (one, 1)] if number in passes else [(one, 1)]
        for taken, sign in changes:
            for candidate in taken.candidates:
                identity = grid_bytes(candidate.grid)
                counts[identity] = counts.get(identity, 0.0) + sign * taken.weight
        passes[number] = one

    def agreement(self, test_index: int) -> float:
        """Share of all answers to a test input, by the weight of their passes, that agree on the foremost, 0 to 1."""
        return strength(self.counts.get(test_index, {}))


LEAST_TRAINED = 0.02
"""A pass counts as this part of a training at least. A pass that was cut short, or in which the base model answered
after all, must not stand against a training that went well, but may be the only one."""

Results = dict[tuple[str, str], TaskResult]  # by stage and task id


def rank_result(result: TaskResult, test_index: int, rule: str) -> list[Grid]:
    """Distinct grids of one test input that the model itself wrote, best first."""
    own = [
        PassResult(one.weight, one.candidates, [s for s in one.scored if s.stage != SYNTHESIS], one.failed)
        for one in result.of(test_index)
    ]
    return rank_passes_of(own, rule)


def rank_passes_of(passes: list[PassResult], rule: str) -> list[Grid]:
    """Distinct grids of one test input from its passes, best first; the likelihoods of a single one compare as they
    are. A failed pass counts where no other answered."""
    passes = [one for one in passes if one.candidates and not one.failed] or passes
    if len(passes) == 1:
        return rank(passes[0].candidates, passes[0].scored, rule=rule)
    return rank_passes(passes, rule=rule) if passes else []


def merged(results: Mapping[tuple[str, str], TaskResult], task: Task, index: int, settings: Settings) -> list[Grid]:
    """Grids of one test input, best first, from all stages: adapted before base, joined with the programs."""
    neural: list[Grid] = []
    agreement = 0.0
    for stage in (TTT, BASE):
        result = results.get((stage, task.task_id))
        if result is not None:
            if index not in result.ranked:
                result.ranked[index] = rank_passes_of(result.of(index), settings.vote.rule)
            found = result.ranked[index]
            if found and not neural and stage == TTT:
                agreement = result.agreement(index)
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

    def take(self, job: Job, message: Found | Programs) -> str:
        """Take in what a pass over a task has found for a test input. Returns why it was dropped, or nothing."""
        index, task_id = message.test_index, job.task_id
        if index >= len(self.tasks[task_id].tests):
            return "no such test input"
        result = self.of(job.kind, task_id)
        if isinstance(message, Programs):
            known = [p for p in result.programs if p.test_index == index]
            fresh = list(message.programs)
            if fresh:
                others = [p for p in result.programs if p.test_index != index]
                result.programs = others + (_best_of(known, fresh) if message.cut else fresh)
            return ""
        candidates = [Candidate(task_id, index, c.grid, c.group, c.nll, job.kind, c.view) for c in message.candidates]
        scored = [ScoredCandidate(task_id, index, s.grid, s.nll_by_view, s.stage or job.kind) for s in message.scored]
        weight = job.share * min(1.0, max(LEAST_TRAINED, message.trained))
        if candidates or scored:
            failed = weight <= LEAST_TRAINED * job.share
            result.put(index, job.number, PassResult(weight, candidates, scored, failed=failed))
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
        return min(result.agreement(index) for index in range(len(self.tasks[task_id].tests)))

    def sure(self, task_id: str) -> bool:
        """Whether every test input of a task has a program that is taken for right."""
        firsts = {p.test_index: p.sure for p in reversed(self.of(SYNTHESIS, task_id).programs)}
        return all(firsts.get(index, False) for index in range(len(self.tasks[task_id].tests)))

    def programs_for(self, task_id: str) -> dict[int, list[Grid]]:
        """By test input, the grids that synthesis has found so far."""
        found = self.results.get((SYNTHESIS, task_id), TaskResult()).programs
        indices = sorted({p.test_index for p in found})
        return {index: [p.grid for p in found if p.test_index == index] for index in indices}


def _best_of(known: list[Program], fresh: list[Program]) -> list[Program]:
    """Programs for one test input, best first, where a search was cut that may not have come as far as the one before:
    each answer by its more confident program. Those of a whole search stand for the task instead."""
    found: dict[bytes, Program] = {}
    for program in sorted([*known, *fresh], key=lambda p: -p.confidence):
        found.setdefault(grid_bytes(program.grid), program)
    return list(found.values())
