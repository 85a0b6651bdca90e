"""Start a run: deadline, dead-man, fleet, and what an interrupted run left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from arc_ttt.checkpoints.folders import model_folder
from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.errors import SubmissionError
from arc_ttt.fleet.launch import make_fleet
from arc_ttt.fleet.workers import Workers
from arc_ttt.machine import device_name, free_memory
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.deadman import Deadman
from arc_ttt.run.recovery import fingerprint, take_over
from arc_ttt.run.report import RunResult, Status
from arc_ttt.run.submission import Submission
from arc_ttt.schedule.devices import device_type
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks


def start_run(
    loaded: LoadedTasks,
    settings: Settings,
    out: Path,
    *,
    start_s: float,
    on_status: Callable[[Status], None] = lambda status: None,
    fallback: Settings | None = None,
    signals: list[int] | None = None,
    adopt: bool = False,
    fleet_of: Callable[[Settings, Path, Deadline], tuple[Workers, Collection[int], int]] = make_fleet,
) -> RunResult:
    """Run `loaded` under `settings`, with the limit counted from `start_s` on the monotonic clock.

    Goes on where an interrupted run of the same tasks and settings had come to in the folder `out`. signals: SIGTERM
    and SIGINT that have come before. adopt: answers of the file as it stands stay until there are others. fleet_of:
    makes the workers, the slots that synthesize, and the shared cores.
    """
    deadline = Deadline(start_s + settings.run.limit_s, REAL_CLOCK)
    deadman = Deadman(deadline, settings.run.reserve, watch=not settings.run.in_process)  # its jobs silence the loop
    device = device_type(device_name())
    mark = fingerprint(loaded, settings, model_folder(settings.model.path, gpu=device != "cpu"))
    submission = Submission(out / "submission.json", loaded)
    if adopt:  # what was found may be lost with its journal, or belong to other settings
        submission.adopt()
    submission.take_ballast()
    fleet, programs, cores = fleet_of(settings, out, deadline)
    coordinator = Coordinator(
        loaded,
        settings,
        out,
        start_s=start_s,
        fleet=fleet,
        deadline=deadline,
        program_slots=programs,
        cores=cores,
        fallback=fallback,
        submission=submission,
        device=device,
        past=take_over(out / "events.jsonl", mark, wanted=settings.run.resume),
        mark=mark,
        signals=signals,
        free_memory=free_memory,
    )

    def each_turn(status: Status) -> None:
        deadman.beat()
        on_status(status)

    try:
        return coordinator.run(each_turn)
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
