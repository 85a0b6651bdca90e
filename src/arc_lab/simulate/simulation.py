"""One simulated run, or many random ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.simulate.faults import Faults
from arc_lab.simulate.scenarios import Scenario, random_scenario
from arc_lab.simulate.virtual_files import MemoryJournal, VirtualSubmission
from arc_lab.simulate.virtual_fleet import VirtualFleet, VirtualMachine
from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.fleet.launch import count_searchers, make_hello
from arc_ttt.protocol.jobs import BASE, TTT
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.findings import Findings, TaskResult
from arc_ttt.run.report import COMPILE, DECODE, KILLED, LOAD, TRAIN, run_report
from arc_ttt.run.spec import RunSpec
from arc_ttt.run.submission import check_submission
from arc_ttt.schedule.cost import CostModel
from arc_ttt.schedule.devices import DEVICE_TYPES

POLL_S = 60.0  # nothing happens in virtual time between two events


@dataclass(slots=True)
class SimulatedRun:
    """What a simulated run came to. Shares are from 0 to 1.

    Args:
        load: predicted seconds of one full training of every task, over devices x limit.
        seconds, limit_s: how long it took, and what it was allowed.
        valid: whether its submission is.
        utilisation: seconds of jobs that ended by themselves, over devices x limit.
        sure: share of tasks with a program that is taken for right.
        answered: share of tasks that are sure, or have an answer of the model.
        trained: share of tasks that are sure, or have a training that answered.
        passes: number of tasks by number of trainings.
        report: as in report.json.
        journal: its events.
        unaccounted: share of devices x limit that the report's accounts leave out or count twice.
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

    def document(self) -> dict[str, Any]:
        """Its figures, for machines."""
        names = ("seconds", "limit_s", "missed", "load", "utilisation", "answered", "trained", "sure")
        return {name: getattr(self, name) for name in names}


def simulate(
    scenario: Scenario, coordinator: type[Coordinator] = Coordinator, workers: type[VirtualFleet] = VirtualFleet
) -> SimulatedRun:
    """Run a scenario to its end in virtual time. The same scenario gives the same journal, byte for byte.

    coordinator, workers: other classes to put in their places, to see what would go wrong with them.
    """
    rng = random.Random(scenario.seed)
    settings, limit_s = scenario.settings, scenario.settings.run.limit_s
    tasks = {task.task_id: task for task in scenario.tasks.tasks}
    clock = VirtualClock()
    cost = CostModel(settings, scenario.model, scenario.device_type)
    truth = CostModel(settings, scenario.model, scenario.device_type)
    load = sum(cost.predict(task, TTT) for task in tasks.values()) / (scenario.devices * limit_s)
    if scenario.load and load:
        cost.rescale(scenario.load / load)
        truth.rescale(scenario.load / load)
    truth.rescale(scenario.prior_error)
    gpus = 0 if scenario.device_type == "cpu" else scenario.devices
    machine = VirtualMachine(
        devices=scenario.devices,
        limit_s=limit_s,
        searchers=count_searchers(settings, gpus, scenario.cores, scenario.devices),
        load_s=scenario.load_s or DEVICE_TYPES[scenario.device_type].load_s,
        cuts=scenario.cuts,
        sure=scenario.sure,
    )
    fleet = workers(machine, tasks, truth, clock, scenario.faults, rng)
    submission = VirtualSubmission(scenario.tasks, clock, scenario.faults, rng, limit_s / 60)
    journal = MemoryJournal(clock)
    spec = RunSpec(
        scenario.tasks,
        settings,
        Path("simulated"),
        0.0,
        Deadline(limit_s, clock),
        searchers=fleet.slots[scenario.devices :],
        cores=0 if gpus else scenario.devices,
        device=scenario.device_type,
        poll_s=POLL_S,
    )
    fleet.set_hello(make_hello(settings, spec.deadlines.work))
    run = coordinator(spec, fleet, submission=submission, journal=journal, cost=cost)
    result = run.run()
    if run.signals:  # meant for the person's command, not for the simulated run
        raise KeyboardInterrupt
    return _simulated_run(scenario, scenario.load or load, run, fleet, submission, journal, run_report(result))


def _simulated_run(
    scenario: Scenario,
    load: float,
    run: Coordinator,
    fleet: VirtualFleet,
    submission: VirtualSubmission,
    journal: MemoryJournal,
    report: dict[str, Any],
) -> SimulatedRun:
    valid = True
    try:
        check_submission(submission.document(), scenario.tasks.test_counts)
    except ValueError:
        valid = False
    found = {
        kind: {i for (k, i), result in run.state.findings.results.items() if k == kind and result.passes}
        for kind in (BASE, TTT)
    }
    sure = {i for i in run.state.findings.tasks if run.state.findings.sure(i)}
    count = max(1, len(scenario.tasks.tasks))
    whole_s = scenario.devices * run.result.limit_s
    accounts = run.result.ledger.seconds
    by_fleet = [device.kept_s + device.killed_s + device.loaded_s for device in fleet.devices]
    by_ledger = [sum(parts[name] for name in (TRAIN, DECODE, COMPILE, KILLED, LOAD)) for parts in accounts.values()]
    open_s = sum(
        run.result.seconds - device.begun_s
        for device in fleet.devices
        if device.working or (device.alive and not device.ready)
    )
    total = sum(sum(parts.values()) for parts in accounts.values())
    off = abs(total - max(whole_s, scenario.devices * run.result.seconds))
    off += max(0.0, abs(sum(by_fleet) - sum(by_ledger)) - max(0.0, open_s))
    return SimulatedRun(
        load=load,
        seconds=run.result.seconds,
        limit_s=run.result.limit_s,
        valid=valid,
        utilisation=sum(parts[TRAIN] + parts[DECODE] for parts in accounts.values()) / whole_s,
        answered=len(found[BASE] | found[TTT] | sure) / count,
        trained=len(found[TTT] | sure) / count,
        sure=len(sure) / count,
        passes=Counter(_trainings(run.state.findings, i) for i in run.state.findings.tasks),
        report=report,
        journal=journal,
        unaccounted=off / whole_s,
    )


def _trainings(findings: Findings, task_id: str) -> int:
    """Trainings of a task that answered."""
    passes = findings.results.get((TTT, task_id), TaskResult()).passes
    return max((len(found) for found in passes.values()), default=0)


def random_runs(seeds: Iterable[int], faults: Faults | None = None, most_tasks: int = 400) -> list[SimulatedRun]:
    """Runs of random scenarios, without their journals: many would fill the memory."""
    runs = []
    for seed in seeds:
        runs.append(simulate(random_scenario(seed, faults, most_tasks=most_tasks)))
        runs[-1].journal.events.clear()
    return runs
