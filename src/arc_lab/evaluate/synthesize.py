"""`arc-lab synthesize`: solve a set of tasks by program synthesis, score the answers and report.

Writes to OUT: candidates.json (grids and programs of all tasks), programs.txt (for people), results.json (figures).
Engine "both": pieces and cell rules give the same answer. Depth: steps of the deepest piece, or splits of a cell rule.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from arc_lab.command_line import add_json, json_document, make_parser, print_table, reports_errors
from arc_lab.data.datasets import DATASETS_HELP, Dataset, usable_tasks
from arc_lab.evaluate.scores import standard_error
from arc_lab.folders import make_folder
from arc_ttt.errors import SettingsError
from arc_ttt.protocol.jobs import TTT
from arc_ttt.schedule.shapes import work
from arc_ttt.settings import Settings
from arc_ttt.synthesis.solver import ProgramCandidate, synthesize
from arc_ttt.tasks.grids import Grid, Task, same_grid
from arc_ttt.votes.candidates import SURE

GUESSES = 2
"""Attempts of the competition."""

PLAIN_LINE_EVERY_S = 10.0
"""Most seconds between lines of progress where stdout is no terminal."""

ENGINES = ("pieces", "cells", "both")
"""The values of a candidate's `engine`."""

DEPTHS = ("1", "2", "3", "more")
"""Columns of the table of depths."""

EXAMPLES = (
    "arc-lab synthesize --tasks evaluation --out local/programs",
    "arc-lab synthesize --tasks training --first 40 --cpu-limit 5 --out local/programs --json",
)

SOLVED_BY = {
    "together": "together",
    "pieces": "by pieces",
    "cells": "by cell rules",
    "agreed": "by both, same answer",
}
RIGHT_FROM = {
    "pieces": "pieces alone (steps)",
    "both": "both (steps of the pieces)",
    "cells": "cell rules alone (splits)",
}


@dataclass(frozen=True, slots=True)
class SearchedTask:
    """Candidates of one task, their cost in CPU seconds, and the task's answers where they are known."""

    task: Task
    candidates: tuple[ProgramCandidate, ...]
    cpu_s: float
    answers: tuple[Grid, ...] | None

    def guesses(self, test_index: int, engines: Iterable[str]) -> list[ProgramCandidate]:
        """Candidates of one test input by these engines, best first."""
        return [c for c in self.candidates if c.test_index == test_index and c.engine in engines]

    def solved(self, attempts: int, engines: Sequence[str] = ENGINES) -> bool:
        """Whether every test input is right within this many attempts."""
        return self.answers is not None and all(self.right(attempts, engines))

    def right(self, attempts: int, engines: Sequence[str] = ENGINES) -> list[ProgramCandidate | None]:
        """For every test input the first right candidate within this many attempts, or None."""
        return [
            next((guess for guess in self.guesses(n, engines)[:attempts] if same_grid(guess.grid, answer)), None)
            for n, answer in enumerate(self.answers or ())
        ]


@reports_errors("synthesize")
def main(argv: Sequence[str]) -> int:
    """Run the synthesize command."""
    options = _options(argv)
    dataset = usable_tasks(options.tasks, options.ids)
    make_folder(options.out)
    tasks: Sequence[Task] = dataset.loaded.tasks
    if options.first:
        tasks = sorted(tasks, key=lambda task: work(task, TTT, Settings()))[: options.first]
    with json_document(options.json) as document:
        begun_s = time.monotonic()
        results = solve_all(dataset, tasks, options.cpu_limit)
        figures = figures_of(results) | {
            "wall_s": round(time.monotonic() - begun_s, 1),
            "tasks_of": dataset.name,
            "cpu_limit_s": options.cpu_limit,
        }
        _write(options.out, results, figures)
        print_tables(figures)
        document |= figures
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed and checked arguments.

    Raises:
        SettingsError: they are wrong.
    """
    parser = make_parser("synthesize", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--tasks", default="evaluation", metavar="SET|PATH", help=f"{DATASETS_HELP}, or a path of tasks or of a pack")
    add("--ids", default="", metavar="ID,ID|FILE", help="only these tasks, as for kernel.py")
    add("--first", type=int, default=0, metavar="N", help="only the N cheapest tasks; 0 for all")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for results; made if missing")
    add("--cpu-limit", type=float, default=2.0, metavar="SECONDS", help="CPU seconds for each task")
    add_json(parser)
    options = parser.parse_args(argv)
    if options.first < 0:
        raise SettingsError(f"--first {options.first}: must not be negative")
    if not 0 < options.cpu_limit < 1e6:
        raise SettingsError(f"--cpu-limit {options.cpu_limit}: must be a number of seconds above 0")
    return options


class _Progress(Protocol):
    def __call__(self, done: int, solved: int) -> None: ...


@contextmanager
def progress(total: int) -> Iterator[_Progress]:
    """A progress bar on a terminal; elsewhere a line for every 20th task, and at least every PLAIN_LINE_EVERY_S."""
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress() as bar:
            row = bar.add_task("synthesize", total=total)
            yield lambda done, solved: bar.update(row, completed=done, description=f"synthesize, {solved} solved")
        return

    last_s = time.monotonic()

    def line(done: int, solved: int) -> None:
        nonlocal last_s
        if done % 20 == 0 or done == total or time.monotonic() - last_s >= PLAIN_LINE_EVERY_S:
            last_s = time.monotonic()
            print(f"{done}/{total} tasks, {solved} solved", flush=True)

    yield line


def solve_all(dataset: Dataset, tasks: Sequence[Task], cpu_limit_s: float) -> list[SearchedTask]:
    """Candidates of all tasks, one task after the other in this process."""
    results: list[SearchedTask] = []
    with progress(len(tasks)) as show:
        for task in tasks:
            before = time.process_time()
            candidates = synthesize(task, cpu_limit_s=cpu_limit_s)
            cpu_s = time.process_time() - before
            results.append(SearchedTask(task, candidates, cpu_s, dataset.solutions.by_task.get(task.task_id)))
            show(len(results), sum(result.solved(GUESSES) for result in results))
    return results


def figures_of(results: Sequence[SearchedTask]) -> dict[str, Any]:
    """All figures of a run as one flat JSON object."""
    known = [result for result in results if result.answers is not None]
    seconds = np.array([result.cpu_s for result in results])
    figures: dict[str, Any] = {"tasks": len(results), "scored": len(known)}
    for name, engines in (
        ("together", ENGINES),
        ("pieces", ("pieces", "both")),
        ("cells", ("cells", "both")),
        ("agreed", ("both",)),
    ):
        for attempts in (1, GUESSES):
            figures[f"{name}@{attempts}"] = sum(result.solved(attempts, engines) for result in known)
    share = figures[f"together@{GUESSES}"] / max(1, len(known))
    figures["share@2"] = round(share, 4)
    figures["standard_error"] = round(standard_error(share * (1 - share), len(known)), 4)
    figures["by_depth@2"] = _by_depth(known)
    figures["cpu_s"] = {
        "mean": round(float(seconds.mean()), 3),
        "median": round(float(np.median(seconds)), 3),
        "p99": round(float(np.quantile(seconds, 0.99)), 3),
        "max": round(float(seconds.max()), 3),
    }
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return figures | _gate_figures(known)


def _by_depth(known: Sequence[SearchedTask]) -> dict[str, dict[str, int]]:
    """Solved tasks by engine and depth of the deepest right candidate; a program without steps counts as depth 1."""
    counts = {engine: dict.fromkeys(DEPTHS, 0) for engine in ENGINES}
    for result in known:
        right = [guess for guess in result.right(GUESSES) if guess is not None]
        if result.answers and len(right) == len(result.answers):
            deepest = max(right, key=lambda guess: guess.depth)
            counts[deepest.engine][DEPTHS[min(max(deepest.depth, 1), len(DEPTHS)) - 1]] += 1
    return counts


def _gate_figures(known: Sequence[SearchedTask]) -> dict[str, Any]:
    """How often a first candidate is confident, how many of the confident ones are right, and the reliability curve."""
    firsts = [
        (guess.confidence, same_grid(guess.grid, answer))
        for result in known
        for number, answer in enumerate(result.answers or ())
        for guess in result.guesses(number, ENGINES)[:1]
    ]
    sure = [right for chance, right in firsts if chance >= SURE]
    curve = {}
    for low in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9):
        high = {0.0: 0.1, 0.1: 0.25, 0.25: 0.5, 0.5: 0.75, 0.75: 0.9, 0.9: 1.01}[low]
        within = [(chance, right) for chance, right in firsts if low <= chance < high]
        if within:
            mean = sum(chance for chance, _ in within) / len(within)
            curve[f"{low:g}-{min(high, 1.0):g}"] = [len(within), round(mean, 3), sum(r for _, r in within)]
    test_inputs = sum(len(result.answers or ()) for result in known)
    return {
        "test_inputs": test_inputs,
        "confident": len(sure),
        "confident_share": round(len(sure) / test_inputs, 4) if test_inputs else None,
        "confident_right": sum(sure),
        "confident_right_share": round(sum(sure) / len(sure), 4) if sure else None,
        "reliability": curve,
    }


def print_tables(figures: dict[str, Any]) -> None:
    """Print tables for people: solved tasks by engine and by depth, costs, and how often confidence was justified."""
    attempts = f"{GUESSES} attempts"
    print_table(
        f"Program synthesis, {figures['scored']} scored tasks of {figures['tasks_of']}",
        ("solved", "1 attempt", attempts),
        [(label, figures[f"{name}@1"], figures[f"{name}@{GUESSES}"]) for name, label in SOLVED_BY.items()],
    )
    by_depth = figures[f"by_depth@{GUESSES}"]
    counts = [(label, [by_depth[engine][name] for name in DEPTHS]) for engine, label in RIGHT_FROM.items()]
    counts.append(("together", [sum(column) for column in zip(*(row for _, row in counts), strict=True)]))
    print_table(
        f"Solved at {attempts}, by depth",
        ("right answer from", *DEPTHS, "all"),
        [(label, *row, sum(row)) for label, row in counts],
    )
    seconds = [(f"CPU seconds per task, {name}", f"{figure:.2f}") for name, figure in figures["cpu_s"].items()]
    others = [("wall seconds", f"{figures['wall_s']:.1f}"), ("peak memory, MB", figures["peak_mb"])]
    print_table("Cost", ("what", "figure"), [*seconds, *others])
    share, right_share = figures["confident_share"], figures["confident_right_share"]
    of_all = "" if share is None else f" ({share:.1%} of all)"
    right = f"{figures['confident_right']}" + ("" if right_share is None else f" ({right_share:.1%})")
    print_table(
        f"Confidence of first candidates, {figures['test_inputs']} test inputs",
        ("confidence", "mean", "n", "right"),
        [
            *((name, f"{mean:.2f}", number, hits) for name, (number, mean, hits) in figures["reliability"].items()),
            (f"sure, {SURE:g} or more", "", f"{figures['confident']}{of_all}", right),
        ],
    )


def _write(out: Path, results: Sequence[SearchedTask], figures: dict[str, Any]) -> None:
    """Write the three files of results."""
    document = {
        result.task.task_id: {
            "cpu_s": round(result.cpu_s, 3),
            "solved": result.solved(GUESSES) if result.answers is not None else None,
            "candidates": [_as_json(candidate, result) for candidate in result.candidates],
        }
        for result in results
    }
    (out / "candidates.json").write_text(json.dumps(document))
    (out / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    with (out / "programs.txt").open("w") as file:
        for result in results:
            for number in range(len(result.task.tests)):
                for guess in result.guesses(number, ENGINES)[:GUESSES]:
                    file.write(f"{guess.task_id} test {number + 1} ({guess.confidence:.2f}): {guess.program}\n")


def _as_json(candidate: ProgramCandidate, result: SearchedTask) -> dict[str, Any]:
    answers = result.answers
    return {
        "test_index": candidate.test_index,
        "grid": candidate.grid.tolist(),
        "program": candidate.program,
        "engine": candidate.engine,
        "fits_all": candidate.fits_all,
        "confidence": round(candidate.confidence, 4),
        "depth": candidate.depth,
        "right": None if answers is None else same_grid(candidate.grid, answers[candidate.test_index]),
    }
