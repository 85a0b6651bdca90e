"""python -m arc_lab synthesize: solve a set of tasks by program synthesis, score and report.

Writes to --out: candidates.json (grids and programs of all tasks), programs.txt (for people), results.json (figures).
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

from arc_lab.data.datasets import DATASETS_HELP, Dataset, usable_tasks
from arc_lab.evaluate.scores import standard_error
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.protocol.jobs import TTT
from arc_ttt.schedule.shapes import work
from arc_ttt.settings import Settings
from arc_ttt.synthesis.solver import ProgramCandidate, synthesize
from arc_ttt.tasks.grids import Grid, Task, same_grid
from arc_ttt.votes.candidates import SURE

GUESSES = 2
PLAIN_LINE_EVERY_S = 10.0
ENGINES = ("pieces", "cells", "both")
DEPTHS = ("1", "2", "3", "more")
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
class TaskResult:
    """Candidates of one task, what they cost, and its answers where they are known."""

    task: Task
    candidates: tuple[ProgramCandidate, ...]
    cpu_s: float
    answers: tuple[Grid, ...] | None

    def guesses(self, test_index: int, engines: Iterable[str]) -> list[ProgramCandidate]:
        """Candidates of one test input by these engines, best first."""
        return [c for c in self.candidates if c.test_index == test_index and c.engine in engines]

    def solved(self, attempts: int, engines: Sequence[str] = ENGINES) -> bool:
        """Whether every test input is right within so many attempts."""
        return self.answers is not None and all(self.right(attempts, engines))

    def right(self, attempts: int, engines: Sequence[str] = ENGINES) -> list[ProgramCandidate | None]:
        """The first right candidate of every test input within so many attempts, None where there is none."""
        return [
            next((guess for guess in self.guesses(n, engines)[:attempts] if same_grid(guess.grid, answer)), None)
            for n, answer in enumerate(self.answers or ())
        ]


def main(argv: list[str]) -> int:
    """Run the command. Returns 0, or 2 for wrong use with one line on stderr."""
    try:
        options = _parse(argv)
        dataset = usable_tasks(options.tasks, options.ids)
        options.out.mkdir(parents=True, exist_ok=True)
    except InputError as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"synthesize: --out {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    tasks: Sequence[Task] = dataset.loaded.tasks
    if options.first:
        tasks = sorted(tasks, key=lambda task: work(task, TTT, Settings()))[: options.first]
    begun_s = time.monotonic()
    results = solve_all(dataset, tasks, options.cpu_limit)
    figures = summarize(results) | {
        "wall_s": round(time.monotonic() - begun_s, 1),
        "tasks_of": dataset.name,
        "cpu_limit_s": options.cpu_limit,
    }
    _write(options.out, results, figures)
    print_tables(figures)
    print(json.dumps(figures))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(message)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m arc_lab synthesize", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--tasks", default="evaluation", help=f"{DATASETS_HELP}, or a path of tasks or of a pack (default: evaluation)"
    )
    parser.add_argument("--ids", default="", metavar="ID,ID|FILE", help="only these tasks, as for kernel.py")
    parser.add_argument("--first", type=int, default=0, help="only the N cheapest tasks (0: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; made if missing")
    parser.add_argument("--cpu-limit", type=float, default=2.0, help="CPU seconds per task")
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
    """A progress bar on a terminal; elsewhere a plain line for every 20th task, and after every ten seconds."""
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


def solve_all(dataset: Dataset, tasks: Sequence[Task], cpu_limit_s: float) -> list[TaskResult]:
    """Candidates of all tasks, one task after the other in this process."""
    results: list[TaskResult] = []
    with progress(len(tasks)) as show:
        for task in tasks:
            before = time.process_time()
            candidates = synthesize(task, cpu_limit_s=cpu_limit_s)
            cpu_s = time.process_time() - before
            results.append(TaskResult(task, candidates, cpu_s, dataset.solutions.by_task.get(task.task_id)))
            show(len(results), sum(result.solved(GUESSES) for result in results))
    return results


def summarize(results: Sequence[TaskResult]) -> dict[str, Any]:
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


def _by_depth(known: Sequence[TaskResult]) -> dict[str, dict[str, int]]:
    """Solved tasks by engine and depth of the deepest right candidate, 1 counting what needs no step at all."""
    counts = {engine: dict.fromkeys(DEPTHS, 0) for engine in ENGINES}
    for result in known:
        right = [guess for guess in result.right(GUESSES) if guess is not None]
        if result.answers and len(right) == len(result.answers):
            deepest = max(right, key=lambda guess: guess.depth)
            counts[deepest.engine][DEPTHS[min(max(deepest.depth, 1), len(DEPTHS)) - 1]] += 1
    return counts


def _gate_figures(known: Sequence[TaskResult]) -> dict[str, Any]:
    """How often a first candidate is confident, how many of those are right, and the reliability curve."""
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
        inside = [(chance, right) for chance, right in firsts if low <= chance < high]
        if inside:
            said = sum(chance for chance, _ in inside) / len(inside)
            curve[f"{low:g}-{min(high, 1.0):g}"] = [len(inside), round(said, 3), sum(r for _, r in inside)]
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
    """Tables for people: solved tasks by engine and depth, what they cost, and how confidence kept its word."""
    from rich.console import Console
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title)
        for number, column in enumerate(columns):
            made.add_column(column, justify="right" if number else "left")
        return made

    title = f"Program synthesis, {figures['scored']} scored tasks of {figures['tasks_of']}"
    solved = table(title, "solved", "1 attempt", f"{GUESSES} attempts")
    for name, label in SOLVED_BY.items():
        solved.add_row(label, str(figures[f"{name}@1"]), str(figures[f"{name}@{GUESSES}"]))
    by_depth = figures[f"by_depth@{GUESSES}"]
    depth = table(f"Solved at {GUESSES} attempts, by depth", "right answer from", *DEPTHS, "all")
    for engine, label in RIGHT_FROM.items():
        depth.add_row(label, *map(str, by_depth[engine].values()), str(sum(by_depth[engine].values())))
    sums = [sum(by_depth[engine][name] for engine in ENGINES) for name in DEPTHS]
    depth.add_row("together", *map(str, sums), str(sum(sums)))
    cost = table("Cost", "what", "figure")
    for name, seconds in figures["cpu_s"].items():
        cost.add_row(f"CPU seconds per task, {name}", f"{seconds:.2f}")
    cost.add_row("wall seconds", f"{figures['wall_s']:.1f}")
    cost.add_row("peak memory, MB", str(figures["peak_mb"]))
    sure = table(f"Confidence of first candidates, {figures['test_inputs']} test inputs", "said", "mean", "n", "right")
    for name, (count, said, right) in figures["reliability"].items():
        sure.add_row(name, f"{said:.2f}", str(count), str(right))
    share = figures["confident_right_share"]
    fires = "" if figures["confident_share"] is None else f" ({figures['confident_share']:.1%} of all)"
    right = f"{figures['confident_right']}" + ("" if share is None else f" ({share:.1%})")
    sure.add_row(f"sure, {SURE:g} or more", "", f"{figures['confident']}{fires}", right)
    console = Console(width=None if sys.stdout.isatty() else 110)
    for part in (solved, depth, cost, sure):
        console.print(part)


def _write(out: Path, results: Sequence[TaskResult], figures: dict[str, Any]) -> None:
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


def _as_json(candidate: ProgramCandidate, result: TaskResult) -> dict[str, Any]:
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
