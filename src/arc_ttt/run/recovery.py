"""Go on from the journal that an interrupted run of the same tasks and settings has left in the folder.

A run that ended by itself, or one with other tasks or settings, is nothing to go on from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_ttt.checkpoints.folders import weights_fingerprint
from arc_ttt.protocol.jobs import Job
from arc_ttt.protocol.messages import Done, Found, Programs, Unreadable, read_message
from arc_ttt.run.journal import read_journal
from arc_ttt.run.report import StopKind
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks

_OF_THE_MACHINE = ("limit_s", "reserve_s", "workers", "threads", "in_process", "resume")
"""Settings of `run` that may differ between a run and the one that it goes on from."""
_INTERRUPTED = (StopKind.SIGNAL, StopKind.ERROR)


@dataclass(frozen=True, slots=True)
class PastDeath:
    """A worker died under a job. blamed: the job may be why."""

    cause: str
    blamed: bool


def fingerprint(loaded: LoadedTasks, settings: Settings, model: Path | None = None) -> str:
    """A text that two runs share if they ask the same questions in the same way, however long and on what.

    model: the checkpoint's folder, which `weights_fingerprint` tells from others.
    """
    asked = json.loads(settings.to_json())
    asked["run"] = {name: value for name, value in asked["run"].items() if name not in _OF_THE_MACHINE}
    digest = hashlib.sha256(json.dumps([asked, list(loaded.test_counts.items())]).encode())
    if model is not None:
        try:
            digest.update(weights_fingerprint(model).encode())
        except OSError as error:  # the workers will say what is wrong with it
            digest.update(f"unreadable: {error.errno}".encode())
    for task in loaded.tasks:
        digest.update(json.dumps(task.task_id).encode())
        for grid in (*task.tests, *(grid for e in task.train for grid in (e.input, e.output))):
            digest.update(bytes(grid.shape) + grid.tobytes())
    return digest.hexdigest()[:32]


def take_over(journal: Path, run_fingerprint: str, *, wanted: bool = True) -> list[dict[str, Any]]:
    """Events of the interrupted run with this fingerprint, to go on from.

    With none, or if none are wanted, an old journal is put aside as NAME.previous.jsonl.
    """
    with contextlib.suppress(OSError):
        events = read_journal(journal)
        if wanted and _was_interrupted(events, run_fingerprint):
            return events
        journal.replace(journal.with_suffix(".previous.jsonl"))
    return []


def _was_interrupted(events: Sequence[Mapping[str, Any]], run_fingerprint: str) -> bool:
    ends = [event for event in events if event.get("event") in ("start", "end")]
    starts = [event for event in ends if event["event"] == "start"]
    if not starts or starts[-1].get("mark") != run_fingerprint:
        return False
    return ends[-1]["event"] == "start" or StopKind.of_journal(ends[-1]) in _INTERRUPTED


def past_lines(
    events: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Job, Found | Programs | Done | PastDeath | Unreadable]]:
    """What workers had said, with the jobs they were on, in order: what they found, and how their jobs ended."""
    for event in events:
        job = Job.from_json(event) if event.get("event") in ("found", "done", "death") else None
        if job is None:
            continue
        if event["event"] == "death":
            yield job, PastDeath(str(event.get("cause")), bool(event.get("blamed")))
            continue
        message = read_message({**event, "type": event.get("type", event["event"])})
        if isinstance(message, Found | Programs | Done | Unreadable):
            yield job, message
