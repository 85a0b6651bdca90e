"""`python -m arc_lab revote`: count a finished run's answers again, under fewer views and other rules.

    python -m arc_lab revote out --tasks evaluation
    python -m arc_lab revote held --tasks local/big.pack:800 --views 4,16 --scoring 8 --rules product,flattened

A run's journal holds every answer with the view that it was read under, and its likelihood under the scoring views. So
what other settings of `decode.views`, `vote.scoring_views` and `vote.rule` would have made of the same trainings needs
no second run. Only answers of the model count, no programs. A task counts as solved when all its test inputs are right
at two attempts; differences are paired, against the run's own rule over everything that its model found. A run scores
under `vote.scoring_views` views at most, and the `vote.max_scored` most frequent grids of all its views: set both high
in the run that is to be counted again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arc_lab.data.datasets import Dataset, load_dataset
from arc_lab.evaluate.scores import Paired, Summary, TaskScore, score_task, summarize
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.protocol.messages import Found
from arc_ttt.run.findings import Findings, PassResult, TaskResult, rank_passes_of
from arc_ttt.run.journal import read_journal
from arc_ttt.run.recovery import past_lines
from arc_ttt.tasks.grids import Grid, grid_bytes
from arc_ttt.votes.candidates import SEARCHED, Candidate, ScoredCandidate
from arc_ttt.votes.rules import RULES

ALL = 10**9  # views: everything that a run found


@dataclass(frozen=True, slots=True)
class Row:
    """One way to count: the tasks solved by it, and against the run's own way."""

    about: str
    solved: Summary
    against: Paired

    def text(self) -> str:
        cells = (self.about, self.solved.at_1, self.solved.at_2, self.solved.oracle, self.against.text())
        return "| " + " | ".join(map(str, cells)) + " |"


def load_findings(run: Path, dataset: Dataset) -> Findings:
    """What the run in the folder `run` had found for the tasks of `dataset`.

    Raises:
        SettingsError: no journal, or no answer in it is to a task of `dataset`.
    """
    journal = run / "events.jsonl"
    findings = Findings(dataset.loaded)
    try:
        events = read_journal(journal)
    except OSError as error:
        raise SettingsError(f"{journal}: {error.strerror}; give the folder of a run") from error
    known = 0
    for job, line in past_lines(events):
        if job.task_id in findings.tasks and isinstance(line, Found):
            findings.take(job, line)
            known += 1
    if not known:
        raise SettingsError(f"{journal}: no answers to tasks of {dataset.name}; name the run's tasks by --tasks")
    return findings


def with_views(one: PassResult, views: int, scoring: int) -> PassResult:
    """A pass as if it had answered under its first `views` views and scored what these found under `scoring` of them.

    Answers of a search count with `ALL` only: which view they came from is not kept. Where a candidate's view is not
    known, its place stands for it.
    """
    kept: list[Candidate] = []
    for place, candidate in enumerate(one.candidates):
        view = place if candidate.view is None else candidate.view
        if views == ALL or SEARCHED < view < views:
            kept.append(candidate)
    found = {grid_bytes(candidate.grid) for candidate in kept}
    scored = [
        ScoredCandidate(s.task_id, s.test_index, s.grid, s.nll_by_view[:scoring], s.stage)
        for s in one.scored
        if grid_bytes(s.grid) in found
    ]
    return PassResult(one.weight, kept, scored, failed=one.failed)


def score(result: TaskResult, answers: Sequence[Grid], task_id: str, rule: str, views: int, scoring: int) -> TaskScore:
    """How a task is answered when its passes are cut down so."""
    ranked = [
        rank_passes_of([with_views(one, views, scoring) for one in result.of(index)], rule)
        for index in range(len(answers))
    ]
    return score_task(task_id, ranked, answers)


def count(
    findings: Findings, dataset: Dataset, stage: str, ways: Mapping[str, tuple[str, int, int]]
) -> dict[str, dict[str, TaskScore]]:
    """The scores of every task that has answers in `stage`, for each way to count: a rule, views, scoring views."""
    results = {i: result for (kind, i), result in findings.results.items() if kind == stage and result.passes}
    answers = dataset.solutions.by_task
    return {
        about: {i: score(result, answers[i], i, *way) for i, result in results.items() if i in answers}
        for about, way in ways.items()
    }


def most_scoring_views(findings: Findings, stage: str) -> int:
    """Under how many views a run has scored at most."""
    results = [result for (kind, _), result in findings.results.items() if kind == stage]
    passes = [one for result in results for index in result.passes for one in result.of(index)]
    return max((len(scored.nll_by_view) for one in passes for scored in one.scored), default=0)


def make_ways(
    rules: Sequence[str], views: Sequence[int], scoring: int | None, most: int
) -> dict[str, tuple[str, int, int]]:
    """Ways to count by what they are called. The rule `product` scores under the views that answer, or `scoring`, of
    the `most` under which the run scored; where that is another number it is said."""
    ways = {}
    for rule in rules:
        for number in views:
            scored = min(scoring or number, most)
            said = f", scoring: {scored}" if rule == "product" and scored != number else ""
            ways[f"{rule}, views: {number}{said}"] = rule, number, scored
    return ways


def rows_of(scores: Mapping[str, Mapping[str, TaskScore]], own: Mapping[str, TaskScore]) -> list[Row]:
    """A row for each way to count. own: the scores of the run's own way."""

    def solved(by_task: Mapping[str, TaskScore]) -> dict[str, bool]:
        return {task_id: score.solved(2) for task_id, score in by_task.items()}

    return [
        Row(about, summarize(by_task.values()), Paired.of(solved(by_task), solved(own)))
        for about, by_task in scores.items()
    ]


def main(argv: Sequence[str]) -> int:
    """Run the revote command."""
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab revote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="the folder of a run: its --out")
    add("--tasks", default="evaluation", help="the tasks that it ran on, as for kernel.py (default: evaluation)")
    add("--stage", default=TTT, choices=(TTT, BASE), help="answers after training or of the base model (default: ttt)")
    add("--views", default="1,2,4,8,16", metavar="N,N", help="(default: 1,2,4,8,16)")
    add("--scoring", type=int, metavar="N", help="score under the first N views (default: those that answer)")
    add("--rules", default=",".join(RULES), metavar="RULE,RULE", help=f"(default: {', '.join(RULES)})")
    options = parser.parse_args(argv)
    try:
        rules = [name.strip() for name in options.rules.split(",")]
        for name in rules:
            if name not in RULES:
                raise SettingsError(f"--rules {name}: there are {', '.join(RULES)}")
        views = [int(text) if text.strip().isdecimal() else 0 for text in options.views.split(",")]
        if min(views) < 1 or (options.scoring is not None and options.scoring < 1):
            raise SettingsError("--views and --scoring take numbers above 0")
        dataset = load_dataset(options.tasks)
        findings = load_findings(options.run, dataset)
        report = json.loads((options.run / "report.json").read_text(encoding="utf-8"))
        own_rule = report["settings"]["vote"]["rule"]
    except (InputError, OSError, KeyError, ValueError) as error:
        print(f"arc_lab revote: {error}", file=sys.stderr)
        return 2
    everything = {"as it was": (own_rule, ALL, ALL)}
    own = count(findings, dataset, options.stage, everything)
    if not own["as it was"]:
        print(f"arc_lab revote: {options.run}: no task with a known solution in stage {options.stage}", file=sys.stderr)
        return 2
    ways = make_ways(rules, views, options.scoring, most_scoring_views(findings, options.stage))
    scores = count(findings, dataset, options.stage, ways)
    print(f"{len(own['as it was'])} tasks of {dataset.name}, stage {options.stage}")
    print("| way to count | right at 1 attempt | at 2 | any candidate | against the run's own, at 2 |")
    print("|---|---|---|---|---|")
    for row in rows_of({**own, **scores}, own["as it was"]):
        print(row.text())
    return 0
