"""What a run did with its time: every second of every device in one account, predictions beside what happened.

Pure: the coordinator says what happened and when; nothing here asks for the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from arc_ttt.deadline import format_duration
from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, CallBack, JobKind
from arc_ttt.protocol.messages import Note
from arc_ttt.run.findings import Results
from arc_ttt.run.reasons import reasons

TRAIN = "train"
DECODE = "decode"
LOAD = "load"
COMPILE = "compile"
KILLED = "killed"
IDLE = "idle"
RESERVE = "reserve"
ACCOUNTS = (TRAIN, DECODE, LOAD, COMPILE, KILLED, IDLE, RESERVE)
"""What the seconds of a device were spent on."""


MOST_NOTES = 50
"""Notes of workers that a run keeps."""


class StopKind(StrEnum):
    """Why a run ended."""

    DONE = "done"
    """All jobs are done."""
    DEADLINE = "deadline"
    """The limit less the reserve has come."""
    NOTHING_FITS = "nothing fits"
    """No job that waits fits the time that is left."""
    NO_WORKERS = "no workers"
    """No worker is left for what waits."""
    SIGNAL = "signal"
    """SIGTERM or SIGINT came."""
    ERROR = "error"
    """The coordinator raised an exception."""

    @classmethod
    def of_journal(cls, event: Mapping[str, Any]) -> StopKind | None:
        """The kind that a line "end" of a journal names. Journals of earlier versions name it in words only."""
        try:
            return cls(event["stop"])
        except (KeyError, ValueError):
            first = str(event.get("stopped_by", "")).partition(" ")[0]
            return cls(first) if first in (cls.SIGNAL, cls.ERROR) else None


class Ledger:
    """Seconds of each device by account. They always add up to the time since the start of the run."""

    def __init__(self, devices: Iterable[int], start_s: float) -> None:
        self._since = dict.fromkeys(devices, start_s)
        self.seconds = {device: dict.fromkeys(ACCOUNTS, 0.0) for device in self._since}

    def spend(self, device: int, now_s: float, rest: str, parts: Mapping[str, float] | None = None) -> None:
        """Book the time since the last booking of `device`: `parts` as far as it goes, then `rest`."""
        if device not in self._since:
            return  # a worker of synthesis
        left, accounts = now_s - self._since[device], self.seconds[device]
        self._since[device] = now_s
        for account, seconds in (parts or {}).items():
            part = min(left, max(0.0, seconds))
            accounts[account] += part
            left -= part
        accounts[rest] += left


@dataclass(slots=True)
class Status:
    """A moment of a run, for a progress line."""

    elapsed_s: float
    limit_s: float
    base_done: int
    ttt_done: int
    programs_done: int
    tasks: int
    running: list[str]

    def line(self) -> str:
        """One line for a log."""
        time = f"{format_duration(self.elapsed_s)} of {format_duration(self.limit_s)}"
        now = ", ".join(self.running) or "workers loading"
        done = f"programs {self.programs_done}, base {self.base_done}, adapted {self.ttt_done} of {self.tasks}"
        return f"{time} | {done} | {now}"


@dataclass(slots=True)
class RunResult:
    """What a run leaves behind for a report."""

    results: Results = field(default_factory=dict)
    task_ids: tuple[str, ...] = ()
    """All tasks of the file, unusable ones among them."""
    problems: dict[str, str] = field(default_factory=dict)
    """By task id, why a task cannot be used."""
    seconds: float = 0.0
    limit_s: float = 0.0
    reserve_s: float = 0.0
    workers: int = 0
    stop_kind: StopKind = StopKind.DONE
    stopped_by: str = "all done"
    """Why the run ended, for people."""
    deaths: list[str] = field(default_factory=list)
    fatal: str = ""
    """Why devices did nothing more, from some time on."""
    fell_back: str = ""
    """Why another model than the one asked for was loaded."""
    lost_devices: list[int] = field(default_factory=list)
    """Slots of devices that were given up for good."""
    devices: dict[int, str] = field(default_factory=dict)
    """By slot, what its worker said of its device."""
    notes: list[Note] = field(default_factory=list)
    """What workers did otherwise than asked while they loaded."""
    train_tokens: int = 0
    train_s: float = 0.0
    write_errors: int = 0
    resumed: int = 0
    """Passes of an interrupted run that this one went on from."""
    ended: Counter[JobKind] = field(default_factory=Counter)
    """Tasks for which a pass has ended, by kind."""
    ratios: dict[str, list[float]] = field(default_factory=dict)
    """Actual by predicted seconds, by kind of job."""
    called_back: Counter[CallBack] = field(default_factory=Counter)
    """Jobs that were asked to end before they were done, by cause."""
    cut: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: Ledger((), 0.0))

    def stop(self, kind: StopKind, text: str) -> None:
        """Note why the run ends."""
        self.stop_kind, self.stopped_by = kind, text

    def keep(self, note: Note) -> bool:
        """Keep what a worker did otherwise than asked, once for all that did so. Returns whether it is news."""
        if note in self.notes or len(self.notes) >= MOST_NOTES:
            return False
        self.notes.append(note)
        return True

    def status(self, elapsed_s: float, tasks: int, running: list[str]) -> Status:
        """This moment of the run."""
        base, trained, searched = (self.ended[kind] for kind in (BASE, TTT, SYNTHESIS))
        return Status(elapsed_s, self.limit_s, base, trained, searched, tasks, running)

    def by_task(self, scope: str) -> dict[str, dict[str, str]]:
        """By task id, what every task got and why. scope: of the test-time training, as in `ttt.scope`."""
        return reasons(
            self.task_ids,
            self.results,
            left_alone=set(self.quarantined),
            scope=scope,
            problems=self.problems,
            stopped_by=self.stopped_by,
        )


def run_report(result: RunResult) -> dict[str, Any]:
    """The report of a run as JSON."""
    accounts = {str(device): _rounded(parts) for device, parts in result.ledger.seconds.items()}
    total = {name: sum(parts[name] for parts in result.ledger.seconds.values()) for name in ACCOUNTS}
    whole = max(1e-9, sum(total.values()))
    return {
        "seconds": round(result.seconds, 2),
        "limit_s": result.limit_s,
        "reserve_s": round(result.reserve_s, 2),
        "slack_s": round(result.limit_s - result.seconds, 2),
        "stopped_by": result.stopped_by,
        "stop": result.stop_kind,
        "workers": result.workers,
        "device_seconds": accounts,
        "shares": {name: round(seconds / whole, 4) for name, seconds in total.items()},
        "actual_by_predicted": {kind: _quantiles(ratios) for kind, ratios in sorted(result.ratios.items())},
        "restarts": dict(Counter(result.deaths).most_common()),
        "called_back": dict(result.called_back),
        "notes": [note.text for note in result.notes],
        "cut": sorted(set(result.cut)),
        "degraded": sorted(set(result.degraded)),
        "quarantined": sorted(set(result.quarantined)),
        "write_errors": result.write_errors,
        "resumed": result.resumed,
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The closing table of a run for a person."""
    spent, limit = report["seconds"], report["limit_s"]
    lines = [
        f"{format_duration(spent)}, {spent / limit:.0%} of the limit, ended by: {report['stopped_by']}; "
        f"{format_duration(report['slack_s'])} to spare, reserve {format_duration(report['reserve_s'])}"
    ]
    if report["device_seconds"]:
        lines.append(f"{'device':>8}" + "".join(f"{name:>9}" for name in ACCOUNTS))
        for device, parts in report["device_seconds"].items():
            lines.append(f"{device:>8}" + "".join(f"{format_duration(parts[name]):>9}" for name in ACCOUNTS))
        lines.append(f"{'share':>8}" + "".join(f"{report['shares'][name]:>9.1%}" for name in ACCOUNTS))
    for kind, row in report["actual_by_predicted"].items():
        lines.append(
            f"{kind}: {row['jobs']} jobs, actual by predicted seconds {row['p50']:.2f}, 9 of 10 {row['p90']:.2f}"
        )
    if report["restarts"]:
        causes = ", ".join(f"{cause} ({count})" for cause, count in report["restarts"].items())
        lines.append(f"workers lost: {sum(report['restarts'].values())}: {causes}")
    if report["called_back"]:
        causes = ", ".join(f"{cause} ({count})" for cause, count in report["called_back"].items())
        lines.append(f"jobs called back: {causes}")
    for name in ("cut", "degraded", "quarantined"):
        if report[name]:
            few = ", ".join(ascii(task_id)[1:-1] for task_id in report[name][:5])
            lines.append(f"{name}: {len(report[name])} tasks ({few}{', ...' if len(report[name]) > 5 else ''})")
    if report["resumed"]:
        lines.append(f"went on from an interrupted run, which had ended {report['resumed']} passes in its own time")
    if report["write_errors"]:
        lines.append(f"submission.json could not be replaced {report['write_errors']} times; the last good one stands")
    return lines


def _rounded(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in parts.items()}


def _quantiles(ratios: list[float]) -> dict[str, float]:
    p50, p90, p99 = (round(float(value), 3) for value in np.quantile(ratios, [0.5, 0.9, 0.99]))
    return {"jobs": len(ratios), "p50": p50, "p90": p90, "p99": p99}
