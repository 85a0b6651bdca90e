"""The whole of a run on Kaggle: mounts in, submission out, never an exception."""

from __future__ import annotations

import contextlib
import json
import signal
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from arc_ttt import bootstrap
from arc_ttt.checkpoints import model_folder, read_config
from arc_ttt.cost import TTT, work
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import ModelError, SettingsError, TaskFileError
from arc_ttt.grids import LoadedTasks, load_tasks, read_json
from arc_ttt.report import report_lines, run_report
from arc_ttt.run import Status, start_run
from arc_ttt.settings import Settings
from arc_ttt.submission import Submission, write_atomically


class _Signalled(BaseException):
    """SIGTERM or SIGINT came while there was nothing to save and nobody to look at a flag."""


def kaggle_run(
    root: Path, chosen: Mapping[str, Any], commit_tasks: int, start_s: float, signals: list[int] | None = None
) -> int:
    """The whole of a Kaggle run. Always leaves a submission and returns 0: an exception would lose the day.

    root: /kaggle, or where a rehearsal has its mounts. chosen: settings by dotted name, and `preset`. commit_tasks:
    how many tasks, the cheapest ones, the public commit run works on; the scoring rerun takes all. signals: SIGTERM
    and SIGINT that have come already; they end the run, with its submission, as soon as it can end.
    """
    out = root / "working"
    try:
        return _kaggle_run(root, out, dict(chosen), commit_tasks, start_s, signals if signals is not None else [])
    except _Signalled as error:
        print(f"ended by signal {error}; the first submission stands", flush=True)
        return 0
    except Exception as error:  # the last line of defence, and the only place that catches everything
        traceback.print_exc()
        print(f"the run failed: {type(error).__name__}: {error}", flush=True)
        if not (out / "submission.json").exists():
            write_atomically(out / "submission.json", "{}\n")
        return 0


def _kaggle_run(
    root: Path, out: Path, chosen: dict[str, Any], commit_tasks: int, start_s: float, signals: list[int]
) -> int:
    mounts = bootstrap.find_mounts(root)
    loaded = _load_mounted(mounts)
    submission = Submission(out / "submission.json", loaded)
    submission.write()
    print(f"{len(loaded.test_counts)} tasks, {len(loaded.problems)} of them unusable; submission.json is complete")
    for problem in loaded.problems[:20]:
        print(f"  {problem}")
    try:
        settings = Settings.of(str(chosen.pop("preset", "embedded"))).override(chosen.items())
    except SettingsError as error:
        print(f"SETTINGS: {error}\nusing the embedded model and its defaults instead")
        limits = [(name, value) for name, value in chosen.items() if name == "run.limit_s"]
        settings, chosen = Settings.of("embedded").override(limits), dict(limits)
    with _ended_by_signals(signals):
        notes = bootstrap.install_missing(mounts.wheels, ("bitsandbytes",), root / "temp" / "site")
    print("\n".join(notes))
    embedded = Settings.of("embedded").override((name, value) for name, value in chosen.items() if _of_run(name))
    try:
        read_config(model_folder(settings.model.path))
    except ModelError as error:
        print(f"{error}\nusing the embedded model instead")
        settings = embedded
    if settings.run.reserve_raised:
        print(settings.run.reserve_raised)
    if not bootstrap.is_rerun():
        few = sorted(loaded.tasks, key=lambda task: work(task, TTT, settings))[:commit_tasks]
        loaded = LoadedTasks(tuple(few), (), loaded.test_counts)
    shown = start_s

    def show(status: Status) -> None:
        nonlocal shown
        if REAL_CLOCK.now() - shown >= 60:
            shown = REAL_CLOCK.now()
            print(status.line(), flush=True)

    result = start_run(loaded, settings, out, start_s=start_s, on_status=show, fallback=embedded, signals=signals)
    adapted = sum(1 for kind, _ in result.results if kind == TTT)
    report = run_report(result)
    print("\n".join([f"{adapted} tasks adapted", *report_lines(report)]), flush=True)
    with contextlib.suppress(OSError):
        write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def _ended_by_signals(signals: list[int]) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT end the run at once: for waiting of which nobody could be told to stop."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise _Signalled(number)

    if signals:
        raise _Signalled(signals[0])
    try:
        old = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _of_run(name: str) -> bool:
    """Whether a setting is about the run and not about a particular model."""
    return name.partition(".")[0] in ("run", "synthesis", "vote")


def _load_mounted(mounts: bootstrap.Mounts) -> LoadedTasks:
    """Tasks of the competition's file. If it cannot be read, the ids of the sample submission still get an answer."""
    try:
        if mounts.challenges is None:
            raise TaskFileError(f"no {bootstrap.CHALLENGES} among the inputs")
        return load_tasks(mounts.challenges)
    except TaskFileError as error:
        print(f"{error}")
    counts: dict[str, int] = {}
    if mounts.sample is not None:
        with contextlib.suppress(TaskFileError):
            document, _ = read_json(mounts.sample)
            if isinstance(document, dict):
                counts = {i: max(1, len(a)) if isinstance(a, list) else 1 for i, a in document.items()}
    return LoadedTasks((), (), counts)
