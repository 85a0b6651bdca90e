"""What a run did with its time: every second of every device in one account, predictions beside what happened.

Pure: the coordinator says what happened and when; nothing here asks for the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arc_ttt.deadline import format_duration
from arc_ttt.run.findings import Results

TRAIN, DECODE, LOAD, COMPILE, KILLED, IDLE, RESERVE = "train", "decode", "load", "compile", "killed", "idle", "reserve"
ACCOUNTS = (TRAIN, DECODE, LOAD, COMPILE, KILLED, IDLE, RESERVE)


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
    seconds: float = 0.0
    limit_s: float = 0.0
    reserve_s: float = 0.0
    workers: int = 0
    stopped_by: str = "all done"
    deaths: list[str] = field(default_factory=list)
    fatal: str = ""  # why devices did nothing more, from some time on
    fell_back: str = ""  # why another model than the one asked for was loaded
    lost_devices: list[int] = field(default_factory=list)  # slots given up for good
    notes: list[str] = field(default_factory=list)  # what workers did otherwise than asked while they loaded
    train_tokens: int = 0
    train_s: float = 0.0
    write_errors: int = 0
    resumed: int = 0  # passes of an interrupted run that this one went on from
    ratios: dict[str, list[float]] = field(default_factory=dict)  # actual by predicted seconds, by kind of job
    called_back: Counter[str] = field(default_factory=Counter)  # jobs that were asked to end before, by cause
    cut: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=lambda: Ledger((), 0.0))


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
        "workers": result.workers,
        "device_seconds": accounts,
        "shares": {name: round(seconds / whole, 4) for name, seconds in total.items()},
        "actual_by_predicted": {kind: _quantiles(ratios) for kind, ratios in sorted(result.ratios.items())},
        "restarts": dict(Counter(result.deaths).most_common()),
        "called_back": dict(result.called_back),
        "notes": result.notes,
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
