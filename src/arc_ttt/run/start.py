"""Start a run: deadline, dead-man, fleet, and what an interrupted run left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from arc_ttt.checkpoints.folders import model_folder
from arc_ttt.deadline import REAL_CLOCK, Deadline, RunDeadlines
from arc_ttt.errors import SubmissionError
from arc_ttt.fleet.launch import make_fleet
from arc_ttt.fleet.workers import Workers
from arc_ttt.machine import available_memory, device_name
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.deadman import Deadman
from arc_ttt.run.recovery import fingerprint, take_over
from arc_ttt.run.report import RunResult, Status
from arc_ttt.run.spec import RunSpec, Started
from arc_ttt.run.submission import Submission
from arc_ttt.schedule.devices import device_type
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks


def start_run(
    loaded: LoadedTasks,
    settings: Settings,
    out: Path,
    started: Started,
    *,
    on_status: Callable[[Status], None] = lambda status: None,
    fallback: Settings | None = None,
    fleet_of: Callable[[Settings, Path, Deadline], tuple[Workers, Collection[int], int]] = make_fleet,
) -> RunResult:
    """Run `loaded` under `settings`. It goes on where an interrupted run of the same tasks and settings ended.

    Args:
        loaded: the tasks.
        settings: what to do with them.
        out: the folder for all files of the run.
        started: what is known of the start of this process.
        on_status: called at every turn of the loop.
        fallback: settings to go on with when the model cannot be loaded.
        fleet_of: makes the workers from settings, folder and the moment when they stop; returns them with the slots
            that synthesize and the number of cores that both kinds share.
    """
    limit = Deadline(started.start_s + settings.run.limit_s, REAL_CLOCK)
    deadlines = RunDeadlines(limit, settings.run.reserve)
    deadman = Deadman(deadlines, watch=not settings.run.in_process)  # jobs in this process silence the loop
    device = device_type(device_name())
    run_fingerprint = fingerprint(loaded, settings, model_folder(settings.model.path, gpu=device != "cpu"))
    submission = Submission(out / "submission.json", loaded)
    if started.again:  # what was found may be lost with its journal, or belong to other settings
        submission.adopt()
    submission.take_ballast()
    workers, searchers, cores = fleet_of(settings, out, deadlines.work)
    spec = RunSpec(
        loaded,
        settings,
        out,
        started.start_s,
        limit,
        fallback=fallback,
        searchers=searchers,
        cores=cores,
        device=device,
        fingerprint=run_fingerprint,
    )
    coordinator = Coordinator(
        spec, workers, submission=submission, signals=started.signals, free_memory=available_memory
    )

    def each_turn(status: Status) -> None:
        deadman.beat()
        on_status(status)

    try:
        return coordinator.run(each_turn, take_over(out / "events.jsonl", run_fingerprint, wanted=settings.run.resume))
    finally:
        submission.drop_ballast()
        _verify(submission)
        deadman.stop()


def _verify(submission: Submission) -> None:
    """Read the file again, and write it once more if it is not what was written."""
    try:
        submission.verify()
    except (OSError, SubmissionError):
        with contextlib.suppress(OSError):
            submission.write()
