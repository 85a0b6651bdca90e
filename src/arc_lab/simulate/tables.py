"""What a simulation prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from arc_lab.simulate.scenarios import Scenario
from arc_lab.simulate.simulation import SimulatedRun
from arc_ttt.deadline import format_duration
from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT
from arc_ttt.run.report import report_lines
from arc_ttt.votes.candidates import SURE as SURE_CONFIDENCE


def summary_lines(runs: Sequence[SimulatedRun]) -> list[str]:
    """Misses, utilisation and coverage of many runs."""
    missed = sum(run.missed for run in runs)
    used = np.quantile([run.utilisation for run in runs], [0.05, 0.5])
    covered = [run.answered for run in runs]
    slack = min(run.limit_s - run.seconds for run in runs)
    return [
        f"{len(runs)} runs, {missed} missed their limit (95% sure of at most {_bound(missed, len(runs)):.1e})",
        f"utilisation p5 {used[0]:.3f}, p50 {used[1]:.3f}",
        f"tasks answered: mean {fmean(covered):.2%}, p5 {np.quantile(covered, 0.05):.2%}, worst {min(covered):.2%}; "
        f"trained: mean {fmean(run.trained for run in runs):.2%}",
        f"least slack {slack:.1f} s; largest part of the time not accounted for "
        f"{max(run.unaccounted for run in runs):.1e}",
    ]


def _bound(missed: int, runs: int) -> float:
    """Upper end of the 95% interval for the chance of a miss: the rule of three where none was seen."""
    return (missed + 3 + 2 * math.sqrt(missed)) / runs


def answer_lines(scenario: Scenario, run: SimulatedRun) -> list[str]:
    """One run for a person: does it fit, and what does each task get?"""
    count, most = len(scenario.tasks.tasks), max(run.passes, default=0)
    programs = f" or one of the programs assumed for {run.sure:.1%}" if run.sure else ""
    verdict = "MISSED ITS LIMIT" if run.missed else "fits"
    return [
        f"{count} tasks on {scenario.devices} x {scenario.device_type}, "
        f"{format_duration(run.limit_s)}: {verdict}; {run.answered:.1%} of the tasks get an answer, "
        f"{run.trained:.1%} a training{programs}",
        f"one full training of every task is predicted to take {run.load:.2f} times the devices' time",
        "trainings a task: " + ", ".join(f"{n}: {run.passes[n]} tasks" for n in range(most + 1) if run.passes[n]),
        *report_lines(run.report),
        "",
        *timeline(scenario, run),
    ]


def timeline(scenario: Scenario, run: SimulatedRun, rows: int = 12) -> list[str]:
    """How far the run was after each twelfth of its limit."""
    events = run.journal.events
    lines = [
        f"{'until':>8}{'search':>8}{'base':>7}{'short':>7}{'full':>7}{'more':>7}{'cut':>6}{'failed':>8}{'deaths':>8}{'answered':>10}"
    ]
    answered: set[str] = set()
    programs: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    at = 0
    for row in range(1, rows + 1):
        until_s = run.limit_s * row / rows
        while at < len(events) and events[at]["t"] <= until_s:
            event = events[at]
            at += 1
            if event["event"] == "death":
                counts["deaths"] += 1
            elif event["event"] == "done" and event["kind"] == SYNTHESIS:
                counts["search"] += 1
            elif event["event"] == "found" and event["kind"] == SYNTHESIS:
                programs[event["task_id"]] += event["programs"][0]["confidence"] >= SURE_CONFIDENCE
                if programs[event["task_id"]] >= scenario.tasks.test_counts[event["task_id"]]:
                    answered.add(event["task_id"])
            elif event["event"] == "done" and event["kind"] in (BASE, TTT):
                answered.add(event["task_id"])
                rung = "base" if event["kind"] == BASE else ("short", "full", "more")[min(2, event["number"])]
                counts[rung] += 1
                counts[event["outcome"]] += 1
        numbers = [counts[name] for name in ("search", "base", "short", "full", "more", "cut", "failed", "deaths")]
        widths = (8, 7, 7, 7, 7, 6, 8, 8)
        share = len(answered) / max(1, len(scenario.tasks.tasks))
        cells = "".join(f"{number:>{width}}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{format_duration(until_s):>8}{cells}{share:>10.1%}")
    return lines
