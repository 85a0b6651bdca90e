"""What `python kernel.py` does away from Kaggle: public tasks, a simulated time limit, a score at the end."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arc_lab.command_line import print_table
from arc_lab.data.datasets import Dataset, load_dataset, read_ids, select
from arc_lab.evaluate.report import make_report, print_report, read_submission
from arc_lab.evaluate.run_options import make_run_parser, make_settings
from arc_lab.evaluate.settings_text import list_settings
from arc_ttt.atomic import write_atomically
from arc_ttt.bootstrap.environment import owns_container
from arc_ttt.bootstrap.process import outlive_readers
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import check_format
from arc_ttt.deadline import REAL_CLOCK, format_duration, run_start
from arc_ttt.errors import InputError, SettingsError, TaskFileError
from arc_ttt.machine import count_gpus
from arc_ttt.protocol.jobs import TTT
from arc_ttt.run.report import Status
from arc_ttt.run.spec import Started
from arc_ttt.run.start import start_run
from arc_ttt.schedule.shapes import work
from arc_ttt.settings import TRANSDUCTIVE, Settings
from arc_ttt.tasks.grids import LoadedTasks, Solutions

PLAIN_LINE_EVERY_S = 10.0
"""Seconds between lines of progress where stdout is no terminal."""


def begin(argv: Sequence[str], seen_s: float, signals: list[int]) -> int:
    """What kernel.py calls away from Kaggle: `main` in a process that outlives its readers.

    seen_s: when the process first looked at the clock.
    """
    outlive_readers()
    return main(argv, run_start(seen_s, container=owns_container()), signals)


def main(argv: Sequence[str], start_s: float, signals: list[int] | None = None) -> int:
    """Run the command line `argv` and return the exit status.

    Args:
        argv: the arguments of `kernel.py`.
        start_s: moment on the monotonic clock from which the limit counts.
        signals: SIGTERM and SIGINT as they arrive, and those that arrived earlier. A run that was ended by one of
            them returns 128 plus its number.
    """
    try:
        options = make_run_parser().parse_args(argv)
        if options.list_settings:
            rows = [(one.name, one.default, one.meaning) for one in list_settings()]
            print_table("Settings, for --set, --config and SETTINGS", ("setting", "default", "meaning"), rows)
            return 0
        settings = make_settings(options)
        check_format(settings.model.path, settings.model.format)
        Checkpoint.of_path(settings.model.path)
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
    (out / "report.json").unlink(missing_ok=True)  # an earlier run's
    _announce(dataset, settings, out)
    settings = _with_time_to_report(settings, start_s)
    signals = signals if signals is not None else []
    with _progress() as show, lock:
        result = start_run(loaded, settings, out, Started(start_s, signals), on_status=show)
    report = make_report(dataset, settings, result, read_submission(out / "submission.json"))
    write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
    print_report(report, result, settings, out)
    return 128 + signals[0] if signals else 3 if result.fatal else 0


def _with_time_to_report(settings: Settings, start_s: float) -> Settings:
    """Raise the reserve, so that it also covers scores and tables, which come after the run.

    They take less time than the start took, and both take longer on a busy machine. A reserve that the user chose stays
    as it is.
    """
    from rich import box, console, table  # noqa: F401  while the limit is far away

    run = settings.run
    if run.reserve_s > 0:
        return settings
    started_s = min(REAL_CLOCK.now() - start_s, 0.25 * run.limit_s)
    return settings.override([("run.reserve_s", min(run.reserve + started_s, 0.9 * run.limit_s))])


def _claim(out: Path) -> contextlib.ExitStack:
    """Lock the folder of a run until the stack is closed. The system releases the lock when this process dies.

    Raises:
        SettingsError: another run holds the lock.
    """
    stack = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # some file systems have no locks; the folder then stays unlocked
        file = stack.enter_context((out / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stack.close()
            raise SettingsError(f"--out {out}: another run is using it") from error
    return stack


def _dataset(options: argparse.Namespace, settings: Settings) -> Dataset:
    """The tasks to run. A file that cannot be read gives a run without tasks, which says so, as on Kaggle."""
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
    """A live line on a terminal, a plain line every PLAIN_LINE_EVERY_S elsewhere."""
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
