"""What `python kernel.py` does away from Kaggle: public tasks, a simulated time limit, a score at the end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from arc_lab.data.datasets import DATASETS_HELP, Dataset, load_dataset, read_ids, select
from arc_lab.evaluate.scores import Summary, TaskScore, score_task, summarize
from arc_ttt.checkpoints.folders import SIZES, model_folder, read_config
from arc_ttt.deadline import REAL_CLOCK, format_duration, parse_duration
from arc_ttt.errors import InputError, SettingsError, TaskFileError
from arc_ttt.fleet.launch import count_gpus
from arc_ttt.run.coordinator import start_run
from arc_ttt.run.findings import TaskResult, rank_result
from arc_ttt.run.report import RunResult, Status, report_lines, run_report
from arc_ttt.run.submission import write_atomically
from arc_ttt.schedule.cost import BASE, SYNTHESIS, TTT, work
from arc_ttt.settings import TRANSDUCTIVE, Settings, parse_overrides
from arc_ttt.tasks.grids import Grid, LoadedTasks, Solutions, freeze, read_json, same_grid

JOINED = "joined"
PLAIN_LINE_EVERY_S = 10.0
PRESET_OF_FORMAT = {"compact": "embedded", "architects": "llama-1b-3b", "marc": "llama-8b", "barc": "llama-8b"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kernel.py",
        description="Dry run of the Kaggle kernel: trains one adapter a task at test time, votes, writes "
        "submission.json under a simulated time limit, and scores it. On Kaggle the script takes no arguments.",
        epilog="Settings for --set are listed, with their meaning, in src/arc_ttt/settings.py; for example "
        "--set ttt.rank=64 --set vote.rule=hierarchical --set ttt.scope=none.",
    )
    add = parser.add_argument
    add(
        "--tasks",
        default="evaluation",
        metavar="SET|PATH",
        help=f"{DATASETS_HELP}, or a challenges file, a task file or a "
        "folder of task files, or PACK:N for N tasks of a training pack's held-out generators (default: evaluation)",
    )
    add("--ids", default="", metavar="ID,ID|FILE", help="only these tasks; or a file with their ids")
    add("--first", type=int, metavar="N", help="only the N tasks that are predicted to be cheapest")
    add("--limit", default="5m", metavar="TIME", help="simulated time limit: 90s, 20m, 12h (default: 5m)")
    add("--workers", type=int, metavar="N", help="worker processes (default: one a GPU, or two on a CPU)")
    add(
        "--model",
        metavar="PATH",
        help="folder of a Llama checkpoint, embedded-XS or embedded-M (default: M with a GPU, XS without)",
    )
    add("--format", choices=tuple(PRESET_OF_FORMAT), help="how that checkpoint reads tasks; needed with --model")
    add("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    add("--out", default="out", metavar="DIR", help="folder for submission.json, report and logs (default: out)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting; may be repeated")
    return parser


def make_settings(options: argparse.Namespace) -> Settings:
    """Settings from the command line. Raises SettingsError for what contradicts itself."""
    if options.model in SIZES:
        options.format = options.format or "compact"
    if bool(options.model) != bool(options.format):
        raise SettingsError("--model and --format go together: a checkpoint and the format it was trained with")
    preset = PRESET_OF_FORMAT[options.format] if options.format else "embedded"
    settings = Settings.of("embedded-gpu" if preset == "embedded" and count_gpus() else preset)
    changes: list[tuple[str, Any]] = [("run.limit_s", parse_duration(options.limit))]
    if options.model:
        changes += [("model.path", options.model), ("model.format", options.format)]
    if options.workers is not None:
        changes.append(("run.workers", options.workers))
    if options.seed is not None:
        changes.append(("run.seed", options.seed))
    return settings.override([*changes, *parse_overrides(options.set)])


def main(argv: Sequence[str], start_s: float, signals: list[int] | None = None) -> int:
    """Run the command line `argv`; the limit counts from `start_s` on the monotonic clock. Returns the exit code.

    signals: SIGTERM and SIGINT, also those that came before. A run that one of them ended returns 128 and its number.
    """
    options = make_parser().parse_args(argv)
    try:
        settings = make_settings(options)
        read_config(model_folder(settings.model.path))
        if options.first is not None and options.first < 1:
            raise SettingsError(f"--first {options.first}: must be at least 1")
        dataset = _dataset(options, settings)
        out = Path(options.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--out {out}: cannot be made or is no folder: {error.strerror}") from error
        lock = _claim(out)
    except InputError as error:
        print(f"kernel.py: {error}", file=sys.stderr)
        return 2
    loaded = dataset.loaded
    (out / "report.json").unlink(missing_ok=True)  # of an earlier run
    _announce(dataset, settings, out)
    settings = _with_time_to_report(settings, start_s)
    signals = signals if signals is not None else []
    with _progress() as show, lock:
        result = start_run(loaded, settings, out, start_s=start_s, on_status=show, signals=signals)
    report = make_report(dataset, settings, result, read_submission(out / "submission.json"))
    write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
    _print_report(report, result, settings, out)
    return 128 + signals[0] if signals else 3 if result.fatal else 0


def _with_time_to_report(settings: Settings, start_s: float) -> Settings:
    """A reserve that also covers scores and tables, which come after the run: they take less than the start has taken,
    and both take longer on a busy machine. A reserve that was asked for stays as it is."""
    from rich import box, console, table  # noqa: F401  here, where the limit is far away

    run = settings.run
    if run.reserve_s > 0:
        return settings
    started_s = min(REAL_CLOCK.now() - start_s, 0.25 * run.limit_s)
    return settings.override([("run.reserve_s", min(run.reserve + started_s, 0.9 * run.limit_s))])


def _claim(out: Path) -> contextlib.ExitStack:
    """Hold the folder of a run until the stack is closed; the system lets go of it when this process dies.

    Raises:
        SettingsError: another run holds it.
    """
    stack = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # on file systems without locks there is none
        file = stack.enter_context((out / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stack.close()
            raise SettingsError(f"--out {out}: another run is using it") from error
    return stack


def _dataset(options: argparse.Namespace, settings: Settings) -> Dataset:
    """The tasks asked for. A file that cannot be read gives an empty run that says so, as it would on Kaggle."""
    try:
        dataset = load_dataset(options.tasks)
    except TaskFileError as error:
        print(f"kernel.py: {error}; there are no tasks to run", file=sys.stderr)
        dataset = Dataset(options.tasks, LoadedTasks((), (), {}), Solutions({}))
    if options.ids:
        dataset = select(dataset, read_ids(options.ids))
    if options.first is not None:
        cheapest = sorted(dataset.loaded.tasks, key=lambda task: work(task, TTT, settings))[: options.first]
        dataset = select(dataset, [task.task_id for task in cheapest]) if cheapest else dataset
    return dataset


def _announce(dataset: Dataset, settings: Settings, out: Path) -> None:
    model = settings.model.path or ("embedded model M" if count_gpus() else "embedded model XS")
    print(
        f"dry run: {len(dataset.loaded.tasks)} tasks of {dataset.name}, {model}, "
        f"limit {format_duration(settings.run.limit_s)}, seed {settings.run.seed}, into {out}/"
        + (f" ({TRANSDUCTIVE})" if settings.ttt.transductive else ""),
        flush=True,
    )
    if settings.run.reserve_raised:
        print(f"note: {settings.run.reserve_raised}", flush=True)
    for problem in dataset.loaded.problems:
        print(f"unusable: {problem}", flush=True)
    for task in dataset.loaded.tasks:
        if len(task.train) < 2:
            count = "no demonstration" if not task.train else "one demonstration"
            print(f"note: {dataset.name}: task {ascii(task.task_id)[1:-1]} has {count}", flush=True)


@contextmanager
def _progress() -> Iterator[Callable[[Status], None]]:
    """A live line on a terminal, a plain line every ten seconds elsewhere."""
    if not sys.stdout.isatty():
        last_s = REAL_CLOCK.now()

        def plain(status: Status) -> None:
            nonlocal last_s
            if REAL_CLOCK.now() - last_s >= PLAIN_LINE_EVERY_S:
                last_s = REAL_CLOCK.now()
                print(status.line(), flush=True)

        yield plain
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("workers loading", total=1.0)

        def live(status: Status) -> None:
            share = min(1.0, status.elapsed_s / status.limit_s)
            progress.update(bar, completed=share, description=status.line())

        yield live


Attempts = dict[str, list[list[Grid]]]  # by task id and test input, the two grids that count


def read_submission(path: Path) -> Attempts:
    """The attempts that a submission file holds; none of one that cannot be read."""
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

    submitted: what stands in the file that was written, from which the score of the whole is taken. "greedy" is what
    the first view alone gives, without a vote: by stage a count of tasks, by task whether each test input is right.
    "both_engines": of the tasks that were trained on and searched for, how many each alone, the submission, and the
    better of the two for each task have right at two attempts.
    """
    rule = settings.vote.rule
    scores: dict[str, dict[str, TaskScore]] = {BASE: {}, TTT: {}, SYNTHESIS: {}, JOINED: {}}
    rows: dict[str, dict[str, Any]] = {}
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
    """For each test input, whether the greedy answer under the first view is right: what a reader without a vote would
    submit. Of several passes that with the most training counts, of equal ones the first."""
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


def _print_report(report: dict[str, Any], result: RunResult, settings: Settings, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if result.fatal:
        print(f"kernel.py: {result.fatal}", file=sys.stderr)
    paired = {stage: Summary(**report["paired"][stage]) for stage in (BASE, TTT)}
    count = paired[TTT].tasks
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{count} of {report['asked']} tasks tried in both ways", title_justify="left"
    )
    for name in ("", "one view", "1 attempt", "2 attempts", "any candidate", "test inputs, 2 attempts"):
        table.add_column(name, justify="left" if not name else "right")
    trained = "with test-time training" if settings.ttt.scope != "none" else "without it, under more views"
    trained += ", transductive" if settings.ttt.transductive else ""
    for stage, name in ((BASE, "without test-time training"), (TTT, trained)):
        s = paired[stage]
        at_2 = f"{s.at_2} ± {s.standard_error:.1f}"
        greedy = str(s.greedy) if s.greedy is not None else "unknown"
        table.add_row(name, greedy, str(s.at_1), at_2, str(s.oracle), f"{s.inputs_2} of {s.inputs}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    if count:
        console.print(table)
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


__all__ = ["main", "make_parser", "make_report", "make_settings", "read_submission"]
