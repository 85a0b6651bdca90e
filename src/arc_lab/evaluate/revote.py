"""`arc-lab revote`: count a finished run's answers again, under fewer views and other rules.

A run's journal holds every answer with the view under which it was read, and its likelihood under the scoring views. It
therefore shows, without a second run, what other values of `decode.views`, `vote.scoring_views` and `vote.rule` would
have made of the same trainings. Only answers of the model count, not those of programs. A task counts as solved when
all its test inputs are right at two attempts. Differences are paired, against the run's own rule over everything that
its model found. A run scores at most the `vote.max_scored` most frequent grids, under `vote.scoring_views` views: set
both high in a run that is to be counted again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arc_lab.command_line import add_json, json_document, make_parser, print_table, reports_errors
from arc_lab.data.datasets import Dataset, load_dataset
from arc_lab.evaluate.scores import Paired, Summary, TaskScore, score_task, summarize
from arc_ttt.errors import SettingsError
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.protocol.messages import Found
from arc_ttt.run.findings import Findings, PassResult, TaskResult, rank_passes_of
from arc_ttt.run.journal import read_journal
from arc_ttt.run.recovery import past_lines
from arc_ttt.tasks.grids import Grid, grid_bytes
from arc_ttt.votes.candidates import SEARCHED, Candidate, ScoredCandidate
from arc_ttt.votes.rules import RULES

ALL = 10**9
"""As a number of views: everything that a run found."""

AS_IT_WAS = "as it was"
"""Name of the run's own way to count."""

EXAMPLES = (
    "arc-lab revote out --tasks evaluation",
    "arc-lab revote held --tasks local/big.pack:800 --views 4,16 --scoring 8 --rules product,flattened",
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to count: a rule over the first `views` views, scored under the first `scoring` scoring views."""

    rule: str
    views: int
    scoring: int


@dataclass(frozen=True, slots=True)
class Row:
    """The tasks that one way to count solves, and its comparison with the run's own way."""

    about: str
    solved: Summary
    against: Paired

    def cells(self) -> tuple[object, ...]:
        """A row of the table; columns as in COLUMNS."""
        return self.about, self.solved.at_1, self.solved.at_2, self.solved.oracle, self.against.text()

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        return {"way": self.about, **asdict(self.solved), "against": asdict(self.against)}


def load_findings(run: Path, dataset: Dataset) -> Findings:
    """What the run in the folder `run` found for the tasks of `dataset`.

    Raises:
        SettingsError: there is no journal, or it holds no answer to a task of `dataset`.
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
    """The pass that would have come of answering under the first `views` views and scoring under `scoring` of them.

    Answers of a search count with `ALL` only, because a journal does not keep their views. Where a candidate's view is
    not known, its position counts as its view.
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


def score(result: TaskResult, answers: Sequence[Grid], task_id: str, way: Way) -> TaskScore:
    """The score of a task when its passes are counted in this way."""
    ranked = [
        rank_passes_of([with_views(one, way.views, way.scoring) for one in result.of(index)], way.rule)
        for index in range(len(answers))
    ]
    return score_task(task_id, ranked, answers)


def count(findings: Findings, dataset: Dataset, stage: str, ways: Mapping[str, Way]) -> dict[str, dict[str, TaskScore]]:
    """For each way to count, by its name, the scores of every task that has answers in `stage`."""
    results = {i: result for (kind, i), result in findings.results.items() if kind == stage and result.passes}
    answers = dataset.solutions.by_task
    return {
        about: {i: score(result, answers[i], i, way) for i, result in results.items() if i in answers}
        for about, way in ways.items()
    }


def most_scoring_views(findings: Findings, stage: str) -> int:
    """The most views under which the run scored any candidate."""
    results = [result for (kind, _), result in findings.results.items() if kind == stage]
    passes = [one for result in results for index in result.passes for one in result.of(index)]
    return max((len(scored.nll_by_view) for one in passes for scored in one.scored), default=0)


def make_ways(rules: Sequence[str], views: Sequence[int], scoring: int | None, most: int) -> dict[str, Way]:
    """Ways to count, by their names.

    Args:
        rules: rules of the vote.
        views: numbers of views.
        scoring: number of scoring views; None for as many as answer. The name mentions it where it differs from them.
        most: the number of views under which the run scored; there are no more.
    """
    ways = {}
    for rule in rules:
        for number in views:
            scored = min(scoring or number, most)
            other = f", scoring: {scored}" if rule == "product" and scored != number else ""
            ways[f"{rule}, views: {number}{other}"] = Way(rule, number, scored)
    return ways


def rows_of(scores: Mapping[str, Mapping[str, TaskScore]], own: Mapping[str, TaskScore]) -> list[Row]:
    """A row for each way to count, compared with `own`, the scores of the run's own way."""

    def solved(by_task: Mapping[str, TaskScore]) -> dict[str, bool]:
        return {task_id: score.solved(2) for task_id, score in by_task.items()}

    return [
        Row(about, summarize(by_task.values()), Paired.of(solved(by_task), solved(own)))
        for about, by_task in scores.items()
    ]


COLUMNS = ("way to count", "right at 1 attempt", "at 2", "any candidate", "against the run's own, at 2")


@reports_errors("revote")
def main(argv: Sequence[str]) -> int:
    """Run the revote command."""
    parser = make_parser("revote", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("run", type=Path, help="the folder of a run: its --out")
    add("--tasks", default="evaluation", metavar="SET|PATH", help="the run's tasks, as for kernel.py")
    add("--stage", default=TTT, choices=(TTT, BASE), help="answers after training or of the base model")
    add("--views", default="1,2,4,8,16", metavar="N,N", help="count the answers under the first N views")
    add("--scoring", type=int, metavar="N", help="score under the first N views (default: those that answer)")
    add("--rules", default=",".join(RULES), metavar="RULE,RULE", help="rules of the vote")
    add_json(parser)
    options = parser.parse_args(argv)
    rules = [name.strip() for name in options.rules.split(",")]
    for name in rules:
        if name not in RULES:
            raise SettingsError(f"--rules {name}: there are {', '.join(RULES)}")
    views = [int(text) if text.strip().isdecimal() else 0 for text in options.views.split(",")]
    if min(views) < 1 or (options.scoring is not None and options.scoring < 1):
        raise SettingsError("--views and --scoring take numbers above 0")
    dataset = load_dataset(options.tasks)
    findings = load_findings(options.run, dataset)
    everything = {AS_IT_WAS: Way(_rule_of(options.run), ALL, ALL)}
    own = count(findings, dataset, options.stage, everything)
    if not own[AS_IT_WAS]:
        raise SettingsError(f"{options.run}: no task with a known solution in stage {options.stage}")
    ways = make_ways(rules, views, options.scoring, most_scoring_views(findings, options.stage))
    scores = count(findings, dataset, options.stage, ways)
    rows = rows_of({**own, **scores}, own[AS_IT_WAS])
    title = f"{len(own[AS_IT_WAS])} tasks of {dataset.name}, stage {options.stage}"
    with json_document(options.json) as document:
        document |= {"tasks": dataset.name, "stage": options.stage, "rows": [row.document() for row in rows]}
        print_table(title, COLUMNS, [row.cells() for row in rows])
    return 0


def _rule_of(run: Path) -> str:
    """The vote rule of a run.

    Raises:
        SettingsError: the run's report cannot be read.
    """
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        return str(report["settings"]["vote"]["rule"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{run / 'report.json'}: not the report of a run: {error!r}") from error
