"""python -m arc_lab simulate: the product's policy and coordinator under virtual time, with workers that only pretend.

Answers, before a submission, whether so many tasks fit a limit on given devices and what each task gets; and, over many
random runs with faults, whether any run would miss its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from arc_lab.data.datasets import DATASETS, load_dataset
from arc_lab.simulate.virtual_fleet import MIXES, Faults, MemoryJournal, VirtualFleet, VirtualSubmission
from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.deadline import Deadline, VirtualClock, format_duration, parse_duration
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.fleet.launch import count_searchers, work_until
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.findings import Findings, TaskResult
from arc_ttt.run.report import DECODE, TRAIN, report_lines, run_report
from arc_ttt.run.submission import check_submission
from arc_ttt.schedule.cost import BASE, DEVICE_TYPES, SYNTHESIS, TTT, CostModel, Model
from arc_ttt.settings import Settings, parse_overrides
from arc_ttt.tasks.grids import Example, LoadedTasks, Task, freeze
from arc_ttt.votes.rules import SURE as SURE_CONFIDENCE

POLL_S = 60.0  # nothing happens in virtual time between two events
MODELS = {  # preset, and the published checkpoint's shape
    "embedded": ("embedded", None),
    "1b": ("llama-1b-3b", Model(1.24e9, 16, 2048, 128256)),
    "3b": ("llama-1b-3b", Model(3.21e9, 28, 3072, 128256)),
    "8b": ("llama-8b", Model(8.03e9, 32, 4096, 128256)),
}
SURE = 0.2  # in random runs; after 2 CPU seconds 102 of 419 public evaluation inputs of ARC-AGI-1 have a sure program
PRIOR_ERROR = 2.5  # random runs are up to so many times slower or faster than predicted at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulated run. load: sum of all full trainings over the devices' time; 0 takes the model's and device's own.

    load_s: seconds of a worker's start; 0 takes the device's. prior_error: how many times longer jobs take than is
    predicted at first. cores: of the machine; those that no GPU's worker needs synthesize, if the settings say so.
    sure: share of tasks for which one CPU second of that finds a program that is taken for right.
    """

    tasks: LoadedTasks
    settings: Settings
    model: Model
    device_type: str = "t4"
    devices: int = 2
    cores: int = 4
    sure: float = 0.0
    load: float = 0.0
    load_s: float = 0.0
    prior_error: float = 1.0
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    cuts: bool = True


@dataclass(slots=True)
class Outcome:
    """What a simulated run came to.

    sure: share of tasks with a program that is taken for right; answered, trained: of those with that, or with an
    answer, or a training, of the model. load: predicted seconds of one full training of every task, over devices x
    limit. utilisation: device time of jobs that ended by themselves, over the same.
    """

    load: float
    seconds: float
    limit_s: float
    valid: bool
    utilisation: float
    answered: float
    trained: float
    sure: float
    passes: Counter[int]
    report: dict[str, Any]
    journal: MemoryJournal
    unaccounted: float

    @property
    def missed(self) -> bool:
        return self.seconds > self.limit_s or not self.valid


def simulate(
    scenario: Scenario, coordinator: type[Coordinator] = Coordinator, workers: type[VirtualFleet] = VirtualFleet
) -> Outcome:
    """Run a scenario to its end in virtual time. The same scenario gives the same journal, byte for byte.

    coordinator, workers: other classes to put in their places, to see what would go wrong with them.
    """
    rng = random.Random(scenario.seed)
    settings, limit_s = scenario.settings, scenario.settings.run.limit_s
    tasks = {task.task_id: task for task in scenario.tasks.tasks}
    clock = VirtualClock()
    deadline = Deadline(limit_s, clock)
    cost = CostModel(settings, scenario.model, scenario.device_type)
    truth = CostModel(settings, scenario.model, scenario.device_type)
    load = sum(cost.predict(task, TTT) for task in tasks.values()) / (scenario.devices * limit_s)
    if scenario.load and load:
        cost.rescale(scenario.load / load)
        truth.rescale(scenario.load / load)
    truth.rescale(scenario.prior_error)
    gpus = 0 if scenario.device_type == "cpu" else scenario.devices
    searchers = count_searchers(settings, gpus, scenario.cores, scenario.devices)
    fleet = workers(
        scenario.devices,
        tasks,
        truth,
        clock,
        scenario.faults,
        rng,
        limit_s=limit_s,
        load_s=scenario.load_s or DEVICE_TYPES[scenario.device_type].load_s,
        cuts=scenario.cuts,
        searchers=searchers,
        sure=scenario.sure,
    )
    fleet.greet({"deadline": work_until(settings, deadline).at_s})
    submission = VirtualSubmission(scenario.tasks, clock, scenario.faults, rng, limit_s / 60)
    journal = MemoryJournal(clock)
    run = coordinator(
        scenario.tasks,
        settings,
        Path("simulated"),
        start_s=0.0,
        fleet=fleet,
        deadline=deadline,
        submission=submission,
        journal=journal,
        cost=cost,
        poll_s=POLL_S,
        device=scenario.device_type,
        program_slots=fleet.slots[scenario.devices :],
        cores=0 if gpus else scenario.devices,
    )
    result = run.run()
    if run.signals:  # meant for the person's command, not for the simulated run
        raise KeyboardInterrupt
    return _outcome(scenario, scenario.load or load, run, fleet, submission, journal, run_report(result))


def _outcome(
    scenario: Scenario,
    load: float,
    run: Coordinator,
    fleet: VirtualFleet,
    submission: VirtualSubmission,
    journal: MemoryJournal,
    report: dict[str, Any],
) -> Outcome:
    valid = True
    try:
        check_submission(submission.document(), scenario.tasks.test_counts)
    except ValueError:
        valid = False
    found = {
        kind: {i for (k, i), result in run.findings.results.items() if k == kind and result.passes}
        for kind in (BASE, TTT)
    }
    sure = {i for i in run.findings.tasks if run.findings.sure(i)}
    count = max(1, len(scenario.tasks.tasks))
    whole_s = scenario.devices * run.result.limit_s
    accounts = run.ledger.seconds
    by_fleet = [device.kept_s + device.killed_s + device.loaded_s for device in fleet.devices]
    by_ledger = [
        sum(parts[name] for name in ("train", "decode", "compile", "killed", "load")) for parts in accounts.values()
    ]
    open_s = sum(
        run.result.seconds - device.begun_s
        for device in fleet.devices
        if device.working or (device.alive and not device.ready)
    )
    total = sum(sum(parts.values()) for parts in accounts.values())
    off = abs(total - max(whole_s, scenario.devices * run.result.seconds))
    off += max(0.0, abs(sum(by_fleet) - sum(by_ledger)) - max(0.0, open_s))
    return Outcome(
        load=load,
        seconds=run.result.seconds,
        limit_s=run.result.limit_s,
        valid=valid,
        utilisation=sum(parts[TRAIN] + parts[DECODE] for parts in accounts.values()) / whole_s,
        answered=len(found[BASE] | found[TTT] | sure) / count,
        trained=len(found[TTT] | sure) / count,
        sure=len(sure) / count,
        passes=Counter(_trainings(run.findings, i) for i in run.findings.tasks),
        report=report,
        journal=journal,
        unaccounted=off / whole_s,
    )


def _trainings(findings: Findings, task_id: str) -> int:
    """Trainings of a task that answered."""
    passes = findings.results.get((TTT, task_id), TaskResult()).passes
    return max((len(found) for found in passes.values()), default=0)


# Scenarios


@functools.lru_cache(maxsize=4)
def made_up_tasks(count: int, seed: int = 0) -> tuple[Task, ...]:
    """Tasks of no meaning, in sizes like those of the public sets: 2 to 5 demonstrations, sides to 30, some with two
    test inputs."""
    rng = random.Random(seed)
    tasks = []
    for number in range(count):
        side = min(30, max(2, round(rng.lognormvariate(math.log(11), 0.5))))
        shapes = [(min(30, max(1, side + rng.randint(-2, 2))), side) for _ in range(2)]
        grids = [freeze(np.zeros(shape)) for shape in shapes]
        train = tuple(Example(grids[0], grids[1]) for _ in range(rng.choice([2, 3, 3, 3, 4, 4, 5])))
        tasks.append(Task(f"task{number:04d}", train, (grids[0],) * rng.choice([1, 1, 1, 1, 2])))
    return tuple(tasks)


def loaded_from(tasks: Sequence[Task]) -> LoadedTasks:
    return LoadedTasks(tuple(tasks), (), {task.task_id: len(task.tests) for task in tasks})


def random_scenario(
    seed: int, faults: Faults | None = None, limits_h: Sequence[float] = (1, 3, 9, 12), most_tasks: int = 400
) -> Scenario:
    """A scenario at random: tasks, devices, limit, load, workers of synthesis and, unless given, faults."""
    rng = random.Random(seed)
    tasks = rng.sample(made_up_tasks(400), round(math.exp(rng.uniform(math.log(20), math.log(most_tasks)))))
    if faults is None:
        rates = {"crashes": rng.choice([0.0, 0.2, 2.0]), "hangs": rng.choice([0.0, 0.1, 1.0])}
        faults = dataclasses.replace(MIXES["harsh"], **rates)
    settings = Settings.of("llama-1b-3b").override(
        [("run.limit_s", rng.choice(limits_h) * 3600.0), ("ttt.passes", 64), ("synthesis.enabled", False)]
    )
    devices = rng.choice([1, 2, 4])
    scenario = Scenario(
        tasks=loaded_from(tasks),
        settings=settings,
        model=MODELS["3b"][1] or Model(),
        devices=devices,
        load=math.exp(rng.uniform(math.log(0.2), math.log(5.0))),
        load_s=60.0,
        prior_error=math.exp(rng.uniform(-1, 1) * math.log(PRIOR_ERROR)),
        faults=faults,
        seed=seed,
    )
    searchers = rng.choice([0, 1, 4])
    changes = {"synthesis.enabled": searchers > 0, "synthesis.workers": searchers}
    return dataclasses.replace(scenario, settings=settings.override(list(changes.items())), sure=SURE)


def random_runs(seeds: Iterable[int], faults: Faults | None = None, most_tasks: int = 400) -> list[Outcome]:
    """Runs of random scenarios, without their journals: many would fill the memory."""
    outcomes = []
    for seed in seeds:
        outcomes.append(simulate(random_scenario(seed, faults, most_tasks=most_tasks)))
        outcomes[-1].journal.events.clear()
    return outcomes


# What the command prints


def summary_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Misses, utilisation and coverage of many runs."""
    missed = sum(outcome.missed for outcome in outcomes)
    used = np.quantile([outcome.utilisation for outcome in outcomes], [0.05, 0.5])
    covered = [outcome.answered for outcome in outcomes]
    slack = min(outcome.limit_s - outcome.seconds for outcome in outcomes)
    return [
        f"{len(outcomes)} runs, {missed} missed their limit (95% sure of at most {_bound(missed, len(outcomes)):.1e})",
        f"utilisation p5 {used[0]:.3f}, p50 {used[1]:.3f}",
        f"tasks answered: mean {fmean(covered):.2%}, p5 {np.quantile(covered, 0.05):.2%}, worst {min(covered):.2%}; "
        f"trained: mean {fmean(outcome.trained for outcome in outcomes):.2%}",
        f"least slack {slack:.1f} s; largest part of the time not accounted for "
        f"{max(outcome.unaccounted for outcome in outcomes):.1e}",
    ]


def _bound(missed: int, runs: int) -> float:
    """Upper end of the 95% interval for the chance of a miss: the rule of three where none was seen."""
    return (missed + 3 + 2 * math.sqrt(missed)) / runs


def answer_lines(scenario: Scenario, outcome: Outcome) -> list[str]:
    """One run for a person: does it fit, and what does each task get?"""
    count, most = len(scenario.tasks.tasks), max(outcome.passes, default=0)
    programs = f" or one of the programs assumed for {outcome.sure:.1%}" if outcome.sure else ""
    verdict = "MISSED ITS LIMIT" if outcome.missed else "fits"
    return [
        f"{count} tasks on {scenario.devices} x {scenario.device_type}, "
        f"{format_duration(outcome.limit_s)}: {verdict}; {outcome.answered:.1%} of the tasks get an answer, "
        f"{outcome.trained:.1%} a training{programs}",
        f"one full training of every task is predicted to take {outcome.load:.2f} times the devices' time",
        "trainings a task: "
        + ", ".join(f"{n}: {outcome.passes[n]} tasks" for n in range(most + 1) if outcome.passes[n]),
        *report_lines(outcome.report),
        "",
        *timeline(scenario, outcome),
    ]


def timeline(scenario: Scenario, outcome: Outcome, rows: int = 12) -> list[str]:
    """How far the run was after each twelfth of its limit."""
    events = outcome.journal.events
    lines = [
        f"{'until':>8}{'search':>8}{'base':>7}{'short':>7}{'full':>7}{'more':>7}{'cut':>6}{'failed':>8}{'deaths':>8}{'answered':>10}"
    ]
    answered: set[str] = set()
    programs: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    at = 0
    for row in range(1, rows + 1):
        until_s = outcome.limit_s * row / rows
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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab simulate",
        description="Simulate a run in virtual time: will it fit its limit, and what does each task get? The seconds "
        "of a GPU are careful guesses until measured; see cost.py.",
    )
    add = parser.add_argument
    add("--tasks", default="240", metavar="N|SET|PATH", help="so many made-up tasks, or a set or file as for kernel.py")
    add("--devices", default="2", metavar="N,N", help="how many devices; several numbers make a sweep (default: 2)")
    add("--device-type", default="t4", choices=tuple(DEVICE_TYPES), help="(default: t4)")
    add("--model", default="3b", metavar="NAME|PATH", help=f"{', '.join(MODELS)}, or a checkpoint (default: 3b)")
    add("--limit", default="12h", metavar="TIME,TIME", help="one limit or several (default: 12h)")
    add(
        "--load",
        default="",
        metavar="X,X",
        help="full trainings of all tasks over the devices' time, instead of the model's",
    )
    add("--cores", default="4", metavar="N", help="of the machine; those without a device synthesize (default: 4)")
    add(
        "--sure",
        default="0",
        metavar="SHARE",
        help="of the tasks for which a CPU second finds a program that is taken for right; about 0.2 on ARC-AGI-1's "
        "public evaluation (default: 0)",
    )
    add("--faults", default="", metavar="MIX,MIX", help=f"of {', '.join(MIXES)} (default: mild; with --runs any rates)")
    add("--runs", type=int, default=0, metavar="N", help="N random runs with faults instead; exit 1 if any misses")
    add("--seed", type=int, default=0, metavar="N", help="seed, or the first seed of many (default: 0)")
    add("--journal", metavar="FILE", help="write the journal of a single run")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting; may be repeated")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, 1 if a run missed its limit, 2 for wrong use, 130 after a signal."""
    options = make_parser().parse_args(argv)
    try:
        if options.runs < 0:
            raise SettingsError(f"--runs {options.runs}: must be at least 1")
        if options.runs:
            faults = _mix(options.faults) if options.faults else None
            outcomes = random_runs(range(options.seed, options.seed + options.runs), faults)
            print("\n".join(summary_lines(outcomes)))
            missed = [options.seed + n for n, outcome in enumerate(outcomes) if outcome.missed]
            if missed:
                print(f"seeds that missed: {missed[:10]}")
            return 1 if missed else 0
        return _simulate_asked(options)
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        print(f"arc_lab simulate: {error}", file=sys.stderr)
        return 2


def _simulate_asked(options: argparse.Namespace) -> int:
    tasks = _tasks(options.tasks)
    scenarios = [
        Scenario(
            tasks=tasks,
            settings=settings,
            model=model,
            device_type=options.device_type,
            devices=_number("--devices", devices, int, 1, 1024),
            cores=_number("--cores", options.cores, int, 1, 1024),
            sure=_number("--sure", options.sure, float, 0, 1),
            load=_number("--load", load or "0", float, 0, 1000),
            faults=_mix(mix),
            seed=options.seed,
        )
        for devices in options.devices.split(",")
        for limit in options.limit.split(",")
        for load in options.load.split(",")
        for mix in (options.faults or "mild").split(",")
        for settings, model in [_model(options, limit)]
    ]
    if len(scenarios) == 1:
        outcome = simulate(scenarios[0])
        print("\n".join(answer_lines(scenarios[0], outcome)))
        if options.journal:
            Path(options.journal).write_bytes(outcome.journal.text())
        return int(outcome.missed)
    print(
        f"{'devices':>8}{'limit':>8}{'load':>6}{'faults':>8}{'missed':>8}{'used':>7}{'answered':>10}{'trained':>9}{'slack':>8}"
    )
    missed = 0
    for scenario in scenarios:
        outcome = simulate(scenario)
        missed += outcome.missed
        name = next(name for name, faults in MIXES.items() if faults == scenario.faults)
        print(
            f"{scenario.devices:>8}{format_duration(outcome.limit_s):>8}{outcome.load:>6.2f}{name:>8}"
            f"{'yes' if outcome.missed else 'no':>8}{outcome.utilisation:>7.1%}{outcome.answered:>10.1%}"
            f"{outcome.trained:>9.1%}{format_duration(outcome.limit_s - outcome.seconds):>8}"
        )
    return 1 if missed else 0


def _tasks(text: str) -> LoadedTasks:
    if text.isdecimal():
        return loaded_from(made_up_tasks(int(text)))
    if text not in DATASETS and not Path(text).exists():
        raise SettingsError(f"--tasks {text}: neither a number, nor one of {', '.join(DATASETS)}, nor a file")
    return load_dataset(text).loaded


def _number(option: str, text: str, kind: type, low: float, high: float) -> Any:
    with contextlib.suppress(ValueError):
        if low <= kind(text) <= high:
            return kind(text)
    raise SettingsError(f"{option} {text}: it must be a number from {low} to {high}")


def _mix(name: str) -> Faults:
    if name not in MIXES:
        raise SettingsError(f"--faults {name}: it must be one of {', '.join(MIXES)}")
    return MIXES[name]


def _model(options: argparse.Namespace, limit: str) -> tuple[Settings, Model]:
    preset, model = MODELS.get(options.model, ("llama-1b-3b", None))
    path = "" if options.model in MODELS else options.model
    with contextlib.suppress(KeyError):
        model = model or Model.of(read_config(model_folder(path, gpu=options.device_type != "cpu")))
    changes = [("run.limit_s", str(parse_duration(limit)))]
    settings = Settings.of(preset).override([*changes, *parse_overrides(options.set)])
    return settings, model or Model()
