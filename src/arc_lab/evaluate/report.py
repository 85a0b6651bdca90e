"""The report of a dry run: scores by way of answering, and where the answers came from."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arc_lab.command_line import print_table
from arc_lab.data.datasets import Dataset
from arc_lab.evaluate.scores import Summary, TaskScore, score_task, summarize
from arc_ttt.errors import TaskFileError
from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT
from arc_ttt.run.findings import TaskResult, rank_result
from arc_ttt.run.provenance import provenance
from arc_ttt.run.report import RunResult, report_lines, run_report
from arc_ttt.settings import Settings
from arc_ttt.tasks.files import read_json
from arc_ttt.tasks.grids import Grid, freeze, same_grid

JOINED = "joined"
"""The stage of the submission itself, into which all answers are joined."""

Attempts = dict[str, list[list[Grid]]]
"""By task id, for each test input, the two grids that count."""


def read_submission(path: Path) -> Attempts:
    """The attempts in a submission file; no attempts if it cannot be read."""
    try:
        document, _ = read_json(path)
        return {
            task_id: [[freeze(np.array(answer[f"attempt_{number}"])) for number in (1, 2)] for answer in answers]
            for task_id, answers in document.items()
        }
    except (TaskFileError, AttributeError, KeyError, TypeError, ValueError):
        return {}


def make_report(dataset: Dataset, settings: Settings, result: RunResult, submitted: Attempts) -> dict[str, Any]:
    """Everything that the run showed, as JSON: settings, score by stage, one row a task.

    "greedy" is the result of the first view alone, without a vote: a count of tasks in each stage's score, and for each
    test input of a task whether it is right. "both_engines" counts tasks that were both trained on and searched for:
    those that are right at two attempts by each engine alone, in the submission, and by the better engine of each task.

    Args:
        dataset: the tasks, with their answers where these are known.
        settings: the settings of the run.
        result: what the run found.
        submitted: the attempts in the submission that was written; the score of the whole is theirs.
    """
    rule = settings.vote.rule
    scores: dict[str, dict[str, TaskScore]] = {BASE: {}, TTT: {}, SYNTHESIS: {}, JOINED: {}}
    reasons = result.by_task(settings.ttt.scope)
    rows: dict[str, dict[str, Any]] = {task_id: dict(why) for task_id, why in reasons.items()}
    for (stage, task_id), found in result.results.items():
        row = rows.setdefault(task_id, {})
        row[stage] = {"outcome": found.outcome, "reason": found.reason, "seconds": found.seconds}
        row[stage]["candidates"] = len(found.candidates) + len(found.programs)
        if found.programs:
            row[stage]["programs"] = _programs(found)
        answers = dataset.solutions.by_task.get(task_id)
        if answers is not None and len(answers) == dataset.loaded.test_counts[task_id] and found.outcome:
            ranked = [
                [p.grid for p in found.programs if p.test_index == index]
                if stage == SYNTHESIS
                else rank_result(found, index, rule)
                for index in range(len(answers))
            ]
            score = dataclasses.replace(score_task(task_id, ranked, answers), one_view=_one_view(found, stage, answers))
            scores[stage][task_id] = score
            row[stage] |= {"ranks": score.ranks} | ({} if score.one_view is None else {"greedy": score.one_view})
    for task in dataset.loaded.tasks:
        answers = dataset.solutions.by_task.get(task.task_id)
        if answers is not None and len(answers) == len(task.tests):
            ranked = submitted.get(task.task_id, [[] for _ in answers])
            scores[JOINED][task.task_id] = score_task(task.task_id, ranked, answers)
    both = [task_id for task_id in scores[TTT] if task_id in scores[BASE]]
    engines = [task_id for task_id in scores[TTT] if task_id in scores[SYNTHESIS]]
    right = {stage: {i for i in engines if scores[stage][i].solved(2)} for stage in (TTT, SYNTHESIS, JOINED)}
    return {
        "tasks": dataset.name,
        "asked": len(dataset.loaded.test_counts),
        "answered": {stage: len(found) for stage, found in scores.items()},
        "score": {stage: dataclasses.asdict(summarize(found.values())) for stage, found in scores.items()},
        "paired": {stage: dataclasses.asdict(summarize(scores[stage][i] for i in both)) for stage in (BASE, TTT)},
        "both_engines": {
            "tasks": len(engines),
            "network": len(right[TTT]),
            "programs": len(right[SYNTHESIS]),
            "joined": len(right[JOINED]),
            "either": len(right[TTT] | right[SYNTHESIS]),
        },
        "transductive": settings.ttt.transductive,
        **run_report(result),
        "deaths": result.deaths,
        "train_tokens": result.train_tokens,
        "train_tokens_per_second": round(result.train_tokens / result.train_s) if result.train_s else 0,
        "peak_memory_mib": _peak_memory_mib(),
        "settings": json.loads(settings.to_json()),
        "run": provenance(settings.run.seed, result.devices),
        "by_task": rows,
    }


def _programs(found: TaskResult) -> list[dict[str, Any]]:
    """The best program of every test input that has one, in words."""
    firsts = {p.test_index: p for p in reversed(found.programs)}
    return [
        {"test_index": index, "program": p.text, "confidence": round(p.confidence, 3), "fits": p.fits_all}
        for index, p in sorted(firsts.items())
    ]


def _one_view(found: TaskResult, stage: str, answers: Sequence[Grid]) -> tuple[bool, ...] | None:
    """For each test input, whether the greedy answer under the first view is right: a submission without a vote.

    The pass with the most training counts; among equals, the first. None if the views of the answers are not known.
    """
    right = []
    for index, answer in enumerate(answers):
        best = max(found.of(index), key=lambda one: one.weight, default=None)
        candidates = best.candidates if best is not None else []
        if stage == SYNTHESIS or any(candidate.view is None for candidate in candidates):
            return None
        right.append(any(candidate.view == 0 and same_grid(candidate.grid, answer) for candidate in candidates))
    return tuple(right)


def _peak_memory_mib() -> dict[str, int]:
    """Peak resident memory of this process and of the largest worker that has ended."""
    return {
        "coordinator": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "largest_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def print_report(report: dict[str, Any], result: RunResult, settings: Settings, out: Path) -> None:
    """Print scores and the course of a run for a person."""
    if result.fatal:
        print(f"kernel.py: {result.fatal}", file=sys.stderr)
    paired = {stage: Summary(**report["paired"][stage]) for stage in (BASE, TTT)}
    trained = "with test-time training" if settings.ttt.scope != "none" else "without it, under more views"
    trained += ", transductive" if settings.ttt.transductive else ""
    rows = []
    for stage, name in ((BASE, "without test-time training"), (TTT, trained)):
        s = paired[stage]
        at_2 = f"{s.at_2} ± {s.standard_error:.1f}"
        greedy = s.greedy if s.greedy is not None else "unknown"
        rows.append((name, greedy, s.at_1, at_2, s.oracle, f"{s.inputs_2} of {s.inputs}"))
    if count := paired[TTT].tasks:
        columns = ("way", "one view", "1 attempt", "2 attempts", "any candidate", "test inputs, 2 attempts")
        print_table(f"{count} of {report['asked']} tasks tried in both ways", columns, rows)
    else:
        print("no task was tried in both ways with known answers: nothing to score")
    joined, programs = Summary(**report["score"][JOINED]), Summary(**report["score"][SYNTHESIS])
    if joined.tasks:
        right = f"{joined.at_2} ± {joined.standard_error:.1f} of {joined.tasks} tasks right"
        alone = f"program synthesis alone: {programs.at_2} of the {programs.tasks} it looked at"
        print(f"submission: {right}, {joined.inputs_2} of {joined.inputs} test inputs; {alone}")
    engines = dict(report["both_engines"])
    if count := engines.pop("tasks"):
        print(f"{count} tasks with both engines: {', '.join(f'{name} {n}' for name, n in engines.items())} right")
    print(
        f"programs sought for {report['answered'][SYNTHESIS]} tasks, base pass on {report['answered'][BASE]}, "
        f"adapters trained on {report['answered'][TTT]}"
    )
    print("\n".join(report_lines(report)))
    unusual = [
        (task_id, stage, row[stage])
        for task_id, row in report["by_task"].items()
        for stage in (BASE, TTT, SYNTHESIS)
        if stage in row and (row[stage]["reason"] or row[stage]["outcome"] not in ("finished", ""))
    ]
    for task_id, stage, body in unusual[:10]:
        print(f"  {ascii(task_id)[1:-1]} ({stage}): {body['outcome']}{': ' if body['reason'] else ''}{body['reason']}")
    if len(unusual) > 10:
        print(f"  and {len(unusual) - 10} more, in report.json")
    if result.deaths:
        print(f"see {out}/logs for what the lost workers said")
    print(f"files: {out}/submission.json, {out}/report.json, {out}/events.jsonl")
