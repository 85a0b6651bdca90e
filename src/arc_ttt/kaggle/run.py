"""The whole of a run on Kaggle: mounts in, submission out, never an exception."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arc_ttt.atomic import write_atomically
from arc_ttt.bootstrap.environment import is_rerun, owns_container, scratch_folder, set_environment, starts
from arc_ttt.bootstrap.mounts import find_mounts
from arc_ttt.bootstrap.packages import BITSANDBYTES, prepare_packages
from arc_ttt.bootstrap.process import die_with_parent, outlive_readers
from arc_ttt.checkpoints.folders import is_embedded
from arc_ttt.deadline import REAL_CLOCK, run_start
from arc_ttt.errors import SubmissionError
from arc_ttt.kaggle.first_answers import load_mounted, write_first
from arc_ttt.kaggle.record import RECORD, Setup
from arc_ttt.kaggle.usable_settings import (
    belongs_to_run,
    chosen_settings,
    embedded_preset,
    is_large,
    usable_settings,
)
from arc_ttt.protocol.jobs import TTT
from arc_ttt.run.provenance import build_stamp, provenance
from arc_ttt.run.report import RunResult, Status, report_lines, run_report
from arc_ttt.run.signals import on_signals
from arc_ttt.run.spec import Started
from arc_ttt.run.start import start_run
from arc_ttt.run.submission import check_file
from arc_ttt.schedule.shapes import work
from arc_ttt.settings import TRANSDUCTIVE, Settings
from arc_ttt.tasks.grids import LoadedTasks

LONG_S = 600.0
"""A run of this many seconds has time to train something."""
COMMIT_PASSES = 2
"""Trainings of a task in the public commit run, to save quota."""
START_AGAIN = 75
"""The exit code for a failure that may pass."""
PACKAGES_SHARE = 0.2
"""Part of the limit that installing and trying out packages may take."""
MOST_PACKAGES_S = 1200.0
"""The most seconds for that."""


class _Signalled(BaseException):
    """SIGTERM or SIGINT came while there was nothing to save and nobody to look at a flag."""


def begin(
    root: Path,
    chosen: Mapping[str, Any],
    commit_tasks: int,
    seen_s: float,
    signals: list[int],
    *,
    strict: bool,
    guard: int,
) -> int:
    """What kernel.py calls: `kaggle_run` in a process that outlives its readers and ends with its guard.

    Args:
        seen_s: when the process first looked at the clock.
        guard: the guard's process id; 0 without one.
    """
    outlive_readers()
    if guard:
        die_with_parent(guard)
    start_s = run_start(seen_s, container=owns_container())
    return kaggle_run(root, chosen, commit_tasks, start_s, signals, strict=strict)


def kaggle_run(
    root: Path,
    chosen: Mapping[str, Any],
    commit_tasks: int,
    start_s: float,
    signals: list[int] | None = None,
    *,
    strict: bool = False,
) -> int:
    """The whole of a Kaggle run. Leaves a submission if any can be written; never raises.

    Args:
        root: /kaggle, or where a rehearsal has its mounts.
        chosen: settings by dotted name, and `preset`.
        commit_tasks: how many tasks, the cheapest ones, the public commit run works on; the scoring rerun takes all.
        signals: SIGTERM and SIGINT that have come already; they end the run, with its submission, as soon as it can
            end.
        strict: the commit run returns 1 if it could not do what `chosen` asks for. The scoring rerun returns 0, for an
            error would lose the day; only to kernel.py's guard, which starts it again, it returns START_AGAIN after an
            error.
    """
    out = root / "working"
    setup, failed = Setup(), False
    try:
        _kaggle_run(root, out, dict(chosen), commit_tasks, start_s, signals if signals is not None else [], setup)
    except _Signalled as error:
        print(f"ended by signal {error}; the first submission stands", flush=True)
        return 0
    except Exception as error:  # the last line of defence, and the only place that catches everything
        traceback.print_exc()
        setup.fall_back(f"the run failed: {type(error).__name__}: {error}")
        failed = True
        if not (out / "submission.json").exists():
            with contextlib.suppress(OSError):
                write_atomically(out / "submission.json", "{}\n")
    if failed and is_rerun() and starts():
        return START_AGAIN
    if is_rerun() or not strict or not setup.fallbacks:
        return 0
    reasons = "; ".join(setup.fallbacks)
    print(f"this commit run is not what was asked for, and ends as an error (COMMIT_STRICT): {reasons}", flush=True)
    return 1


def _kaggle_run(
    root: Path,
    out: Path,
    chosen: dict[str, Any],
    commit_tasks: int,
    start_s: float,
    signals: list[int],
    setup: Setup,
) -> None:
    if stamp := build_stamp():
        setup.note(f"arc_ttt {stamp.get('version', '')} of commit {stamp.get('commit', '')}")
    mounts = find_mounts(root)
    loaded = load_mounted(mounts, setup)
    if not write_first(out / "submission.json", loaded, setup):
        return
    scratch = scratch_folder(root)
    if not scratch.is_relative_to(root / "temp"):
        setup.note(f"{root / 'temp'} cannot be written: scratch files go to {scratch}")
    set_environment(scratch)
    settings, chosen = chosen_settings(chosen, setup)
    left_s = start_s + settings.run.limit_s - REAL_CLOCK.now()  # of a run that was started again less than the whole
    seconds = min(MOST_PACKAGES_S, PACKAGES_SHARE * max(0.0, left_s))
    unsloth = settings.model.backend == "unsloth"
    if signals:
        _end(signals[0])
    with on_signals(_end):
        packages = prepare_packages(mounts, scratch, unsloth=unsloth, seconds=seconds)
    for line in (*mounts.problems, *packages.notes):
        setup.note(line)
    for package, line in packages.fallbacks.items():
        (setup.note if package == BITSANDBYTES and is_embedded(settings.model.path) else setup.fall_back)(line)
    embedded = Settings.of(embedded_preset()).override(
        (name, value) for name, value in chosen.items() if belongs_to_run(name)
    )
    if settings.model.path in ("", "embedded-M"):  # what has failed once would fail again
        longest = Settings.of("embedded").ttt.max_sequence_tokens  # as long as XS has seen
        embedded = embedded.override([("model.path", "embedded-XS"), ("ttt.max_sequence_tokens", longest)])
    if not packages.four_bit:
        embedded = embedded.override([("model.quantize", "none")])
    settings = usable_settings(settings, embedded, mounts, packages, setup)
    if is_large(settings):  # tensors of many sizes; small models record their steps instead
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if settings.run.reserve_raised:
        setup.note(settings.run.reserve_raised)
    asked = dict(loaded.test_counts)
    if not is_rerun():
        few = sorted(loaded.tasks, key=lambda task: work(task, TTT, settings))[:commit_tasks]
        loaded = LoadedTasks(tuple(few), (), loaded.test_counts)
        passes = min(COMMIT_PASSES, settings.ttt.passes)
        settings = settings.override([("ttt.passes", passes)])
        embedded = embedded.override([("ttt.passes", min(passes, embedded.ttt.passes))])
        setup.note(f"commit run: {len(few)} of {len(asked)} tasks")
    if settings.ttt.transductive:
        setup.note(f"ttt.scope={settings.ttt.scope}: {TRANSDUCTIVE}")
    setup.write(out / RECORD, settings)
    shown = start_s

    def show(status: Status) -> None:
        nonlocal shown
        if REAL_CLOCK.now() - shown >= 60:
            shown = REAL_CLOCK.now()
            print(status.line(), flush=True)

    result = start_run(
        loaded,
        settings,
        out,
        Started(start_s, signals, again=starts() > 1),
        on_status=show,
        fallback=embedded,
    )
    adapted = sum(1 for kind, _ in result.results if kind == TTT)
    report = run_report(result)
    report["run"] = provenance(settings.run.seed, result.devices)
    report["by_task"] = result.by_task(settings.ttt.scope)
    print("\n".join([f"{adapted} tasks adapted", *report_lines(report)]), flush=True)
    with contextlib.suppress(OSError):
        write_atomically(out / "report.json", json.dumps(report, indent=1) + "\n")
    _look_back(out, asked, result, settings, setup)
    setup.write(out / RECORD, settings)


def _end(number: int) -> None:
    """End the run at once on a signal that comes while something is waited for that nobody could tell to stop."""
    raise _Signalled(number)


def _look_back(out: Path, asked: Mapping[str, int], result: RunResult, settings: Settings, setup: Setup) -> None:
    """Whether the run ended with the model it began with, had tasks trained, and left a valid file."""
    trains = asked and settings.ttt.scope != "none" and settings.run.limit_s >= LONG_S
    if trains and not result.train_tokens and not result.resumed:
        setup.fall_back("no task was trained; logs/worker-0.log says why")
    if result.fell_back:
        setup.fall_back(f"the model could not be loaded: {result.fell_back}; the embedded model answered")
    if result.fatal:
        setup.fall_back(result.fatal)
    if result.lost_devices:
        setup.fall_back(f"device {', '.join(map(str, result.lost_devices))} was given up; logs/ says why")
    for note in result.notes:
        (setup.fall_back if note.less else setup.note)(note.text)
    if not asked:
        return
    try:
        check_file(out / "submission.json", asked)
        setup.note("submission.json is valid")
    except (OSError, SubmissionError) as error:
        setup.fall_back(f"submission.json is not valid: {error}")
