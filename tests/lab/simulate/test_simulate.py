"""The product's coordinator and policy in virtual time: no run may miss its limit, and the time must be used.

The same check that passes for the product fails for three mutants of it, so it can fail.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_lab.simulate import simulation
from arc_lab.simulate.command import main
from arc_lab.simulate.faults import MIXES, Faults
from arc_lab.simulate.scenarios import Scenario, loaded_from, made_up_tasks, random_scenario
from arc_lab.simulate.simulation import SimulatedRun, random_runs, simulate
from arc_lab.simulate.tables import summary_lines
from arc_lab.simulate.virtual_fleet import VirtualFleet, VirtualMachine
from arc_ttt import settings as settings_module
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.deadline import KILL_S, TURN_S, WRITE_S, Deadline, VirtualClock, least_reserve
from arc_ttt.fleet.patience import PATIENCE
from arc_ttt.fleet.workers import Death, Message
from arc_ttt.protocol.jobs import CallBack
from arc_ttt.protocol.messages import Done, Programs
from arc_ttt.protocol.orders import SearchOrder
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.report import ACCOUNTS, Ledger
from arc_ttt.run.spec import POLL_S
from arc_ttt.schedule.cost import CostModel
from arc_ttt.settings import RunSettings, Settings

RUNS = 500


def cruel(seed: int) -> Scenario:
    """A small random scenario whose disk and workers fail far more often, so that few runs show what many would."""
    scenario = random_scenario(seed, limits_h=(1, 12))
    rng = random.Random(seed)
    faults = dataclasses.replace(scenario.faults, stall=0.2, slow_kill=0.2, hangs=0.3, outlier=0.1, deaf=0.5)
    tasks = loaded_from(rng.sample(made_up_tasks(400), rng.randint(5, 25)))
    return dataclasses.replace(scenario, faults=faults, tasks=tasks, load=rng.uniform(1.0, 5.0))


def any_misses(**classes: type) -> bool:
    """Whether any of the cruel runs misses its limit."""
    return any(simulate(_mutated(cruel(seed), classes), **classes).missed for seed in range(RUNS))


def _mutated(scenario: Scenario, classes: dict[str, type]) -> Scenario:
    return dataclasses.replace(scenario, cuts=classes.get("coordinator") is not WaitsForJobs)


class WaitsForJobs(Coordinator):
    """A mutant that looks at the clock between jobs only; its workers have no deadline either."""

    def _over(self) -> bool:
        while self.state.deadlines.stop.passed() and self.board:
            for event in self.workers.poll(60.0):
                if isinstance(event, Death):
                    self._died(event)
                else:
                    self._heard(event)
        return super()._over()


class JoinsWorkers(VirtualFleet):
    """A mutant that ends only when its workers have, and lets them be silent for as long as they like."""

    def __init__(self, *args: object, **more: object) -> None:
        patience = dataclasses.replace(PATIENCE, round_s=1e7, first_s=1e7)
        super().__init__(*args, **more, patience=patience)  # type: ignore[arg-type]

    def stop(self) -> None:
        while any(device.working for device in self.devices):
            self.poll(1e7)


def test_no_run_misses_its_limit() -> None:
    assert not any_misses()


def test_a_reserve_of_ten_seconds_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "least_reserve", lambda limit_s: 0.0)
    monkeypatch.setattr(RunSettings, "reserve", 10.0)
    assert any_misses()


def test_a_coordinator_that_waits_for_jobs_is_caught() -> None:
    assert any_misses(coordinator=WaitsForJobs)


def test_a_fleet_that_joins_its_workers_is_caught() -> None:
    assert any_misses(workers=JoinsWorkers)


@pytest.mark.slow
def test_many_random_runs_and_the_rates_at_which_mutants_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source of the rates: 50, 1000 and 1000 of 10,000."""
    outcomes = random_runs(range(10_000), most_tasks=80)
    print("", *summary_lines(outcomes), sep="\n")
    assert [seed for seed, outcome in enumerate(outcomes) if outcome.missed] == []
    assert max(outcome.unaccounted for outcome in outcomes) < 1e-3
    scenarios = [random_scenario(seed, most_tasks=80) for seed in range(1000)]
    waits = (simulate(dataclasses.replace(one, cuts=False), coordinator=WaitsForJobs) for one in scenarios)
    missed = [sum(outcome.missed for outcome in waits)]
    missed.append(sum(simulate(one, workers=JoinsWorkers).missed for one in scenarios))
    monkeypatch.setattr(RunSettings, "reserve", 10.0)
    missed.append(sum(simulate(one).missed for one in scenarios))
    print(f"of 1000, waits for jobs, joins workers, ten seconds of reserve: {missed} missed")
    assert missed[0] >= 100
    assert missed[1] >= 100
    assert missed[2] >= 5


# The bound


@settings(max_examples=200, deadline=None, database=None)
@given(st.floats(5.0, 1e6), st.floats(0.0, 1e6))
def test_the_reserve_is_never_less_than_its_bound(limit_s: float, reserve_s: float) -> None:
    run = RunSettings(limit_s=limit_s, reserve_s=min(reserve_s, 0.9 * limit_s))
    assert run.reserve >= least_reserve(limit_s) > 0
    assert run.reserve < limit_s
    assert least_reserve(limit_s) >= min(TURN_S, limit_s / 100) + min(WRITE_S, limit_s / 60)


def test_the_fleet_keeps_the_promises_that_the_bound_rests_on() -> None:
    assert POLL_S < TURN_S / 2
    assert PATIENCE.close_s < KILL_S


# Use of the time


@lru_cache(maxsize=8)
def run_of(limit_h: float, mix: str, load: float, seed: int = 0, tasks: int = 150, devices: int = 2) -> SimulatedRun:
    changes = [("run.limit_s", limit_h * 3600), ("ttt.passes", 64), ("synthesis.enabled", False)]
    return simulate(
        Scenario(
            tasks=loaded_from(made_up_tasks(400)[:tasks]),
            settings=Settings.of("llama-1b-3b").override(changes),
            model=ModelSize(3.2e9, 28, 3072, 128256),
            devices=devices,
            load=load,
            load_s=60.0,
            prior_error=1.3,
            faults=MIXES[mix],
            seed=seed,
        )
    )


@pytest.mark.parametrize(("limit_h", "least"), [(12, 0.97), (1, 0.93)])
@pytest.mark.parametrize("load", [0.5, 1.0, 5.0])
def test_without_faults_the_devices_work_nearly_all_the_time(limit_h: float, least: float, load: float) -> None:
    assert run_of(limit_h, "none", load).utilisation >= least


@pytest.mark.parametrize(("load", "least"), [(0.5, 0.995), (1.0, 0.995), (2.0, 0.995), (3.5, 0.97), (5.0, 0.8)])
def test_without_faults_every_task_gets_an_answer_and_most_a_training_worth_its_start(
    load: float, least: float
) -> None:
    """With five times as many full trainings as there is time for."""
    outcome = run_of(12, "none", load)
    assert outcome.answered == 1.0
    assert outcome.trained >= least


def test_with_mild_faults_little_is_lost() -> None:
    """Those that last the whole run, a lost or a slow device, are left out: they are not the policy's."""
    mild = dataclasses.replace(MIXES["mild"], lost=0.0)
    used = []
    for seed in range(8):
        tasks = loaded_from(made_up_tasks(400)[: 100 + 50 * (seed % 4)])
        scenario = dataclasses.replace(random_scenario(seed, mild, limits_h=(12,)), devices=2, tasks=tasks)
        alone = scenario.settings.override([("synthesis.enabled", False)])
        used.append(simulate(dataclasses.replace(scenario, settings=alone)).utilisation)
    assert min(used) >= 0.90
    assert np.median(used) >= 0.96


def test_every_second_of_every_device_is_accounted_for() -> None:
    for seed in range(6):
        outcome = simulate(cruel(seed))
        assert outcome.unaccounted < 1e-3
        assert sum(outcome.report["shares"].values()) == pytest.approx(1.0, abs=1e-3)


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.floats(0, 100),
            st.sampled_from(ACCOUNTS),
            st.dictionaries(st.sampled_from(ACCOUNTS), st.floats(-5, 50), max_size=2),
        ),
        max_size=30,
    )
)
def test_a_ledger_closes_whatever_is_booked(bookings: list[tuple[int, float, str, dict[str, float]]]) -> None:
    ledger, now_s, last_s = Ledger(range(3), 10.0), 10.0, dict.fromkeys(range(3), 10.0)
    for device, step_s, rest, parts in bookings:
        now_s += step_s
        ledger.spend(device, now_s, rest, parts)
        last_s[device] = now_s
    for device, accounts in ledger.seconds.items():
        assert sum(accounts.values()) == pytest.approx(last_s[device] - 10.0)
        assert min(accounts.values()) >= 0


def test_the_same_seed_gives_the_same_journal_and_another_one_another() -> None:
    first, second, other = (simulate(cruel(seed)).journal.text() for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_a_device_that_is_lost_leaves_its_tasks_to_the_other() -> None:
    class LosesOne(VirtualFleet):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[arg-type]
            self.devices[0].lost_s = 3600.0

    scenario = dataclasses.replace(cruel(1), faults=Faults(), devices=2, load=2.0)
    outcome = simulate(scenario, workers=LosesOne)
    assert not outcome.missed
    assert outcome.answered == outcome.trained == 1.0
    assert outcome.report["device_seconds"]["0"]["idle"] > 0.5 * scenario.settings.run.limit_s - 3600.0


def test_jobs_whose_task_gets_a_sure_program_are_called_back_and_the_deaf_are_killed() -> None:
    scenario = random_scenario(0, MIXES["none"], limits_h=(1,))
    changes = [("synthesis.enabled", True), ("synthesis.cpu_limits_s", "300"), ("synthesis.workers", 4)]
    settings_ = scenario.settings.override([*changes, ("decode.base_views", 0)])
    tasks = loaded_from(made_up_tasks(400)[:40])
    scenario = dataclasses.replace(scenario, settings=settings_, tasks=tasks, load=40.0, devices=4, sure=0.2)
    causes = []
    for deaf in (0.0, 1.0):
        outcome = simulate(dataclasses.replace(scenario, faults=dataclasses.replace(scenario.faults, deaf=deaf)))
        assert not outcome.missed
        assert outcome.unaccounted < 1e-3
        assert 0.1 < outcome.sure < 0.6
        called_back = {e["task_id"] for e in outcome.journal.events if e["event"] == "cancel"}
        assert called_back
        lost = {e["task_id"]: e["cause"] for e in outcome.journal.events if e["event"] == "death"}
        causes.append({lost.get(task_id) for task_id in called_back})
        assert not outcome.report["quarantined"]
    assert causes == [{None}, {CallBack.SUPERSEDED}]


def test_without_gpus_devices_and_programs_share_the_cores() -> None:
    scenario = dataclasses.replace(
        cruel(3), device_type="cpu", devices=2, load=0.0, model=ModelSize(), tasks=loaded_from(made_up_tasks(400)[:50])
    )
    settings_ = Settings.of("embedded").override([("run.limit_s", 300.0)])
    outcome = simulate(dataclasses.replace(scenario, settings=settings_, faults=MIXES["none"], load_s=10.0))
    assert not outcome.missed
    assert outcome.sure > 0
    running = Counter[str]()
    for event in outcome.journal.events:
        running[event["event"]] += 1
        assert running["job"] - running["done"] <= 2
    assert running["job"] > 50


def test_a_joint_stage_takes_its_part_of_the_time() -> None:
    scenario = cruel(5)
    settings_ = scenario.settings.override([("ttt.scope", "joint")])
    outcome = simulate(dataclasses.replace(scenario, settings=settings_, faults=MIXES["none"]))
    assert not outcome.missed
    kinds = {name: [e["kind"] for e in outcome.journal.events if e["event"] == name] for name in ("job", "done")}
    assert next(kind for kind in kinds["job"] if kind != "synthesis") == "joint"
    assert kinds["done"].count("joint") == 1
    assert "ttt" not in kinds["done"][: kinds["done"].index("joint")]


def test_trainings_are_counted_by_task_and_not_by_test_input() -> None:
    tasks = loaded_from(made_up_tasks(400)[:20])
    scenario = dataclasses.replace(cruel(3), tasks=tasks, faults=Faults(), load=0.2, devices=2)
    outcome = simulate(scenario)
    numbers: dict[str, set[int]] = {task.task_id: set() for task in tasks.tasks}
    for event in outcome.journal.events:
        if event["event"] == "found" and event["kind"] == "ttt":
            numbers[event["task_id"]].add(event["number"])
    assert outcome.passes == Counter(map(len, numbers.values()))
    assert max(outcome.passes) > 2


@pytest.mark.parametrize("stretch", [1.0, 3.0])
def test_texts_of_more_tokens_than_cells_are_learned(stretch: float) -> None:
    """Each training takes up to three times as long as its shape tells, and every task still gets one."""
    tasks = loaded_from(made_up_tasks(400)[:60])
    scenario = dataclasses.replace(cruel(2), tasks=tasks, faults=Faults(stretch=stretch), load=1.0, devices=2)
    outcome = simulate(scenario)
    assert not outcome.missed
    assert outcome.trained == 1.0
    assert 0.8 < outcome.report["actual_by_predicted"]["ttt"]["p50"] < 1.25


def test_what_happens_while_the_coordinator_turns_comes_with_the_next_poll() -> None:
    clock = VirtualClock()
    tasks = {task.task_id: task for task in made_up_tasks(3)}
    settings_ = Settings.of("llama-1b-3b")
    machine = VirtualMachine(devices=1, limit_s=3600.0, searchers=1)
    fleet = VirtualFleet(machine, tasks, CostModel(settings_, ModelSize(), "t4"), clock, Faults(), random.Random(0))
    assert fleet.slots == [0, 1]
    for slot in fleet.slots:
        fleet.start(slot)
    ready = [fleet.poll(100.0), fleet.poll(100.0)]
    assert [[message.slot for message in batch] for batch in ready] == [[1], [0]]
    fleet.send(1, SearchOrder(id=1, task=tasks["task0000"], deadline=Deadline(3600.0, clock), cpu_limit_s=5.0))
    batch = fleet.poll(10.0)
    assert [type(message.body) for message in batch if isinstance(message, Message)] == [Programs, Done]
    assert not fleet.poll(10.0)


def test_a_start_that_takes_twenty_minutes_shrinks_the_first_rung() -> None:
    tasks = loaded_from(made_up_tasks(400)[:60])
    scenario = dataclasses.replace(cruel(2), tasks=tasks, faults=Faults(), load=2.5, devices=2)
    shares = []
    for load_s in (10.0, 590.0):
        settings_ = scenario.settings.override([("run.limit_s", 3600.0)])
        outcome = simulate(dataclasses.replace(scenario, settings=settings_, load_s=load_s))
        events = outcome.journal.events
        shares.append(next(e["share"] for e in events if e["event"] == "job" and e["kind"] == "ttt"))
        assert outcome.trained == 1.0
    assert shares[1] < shares[0]


# The command


def words(capsys: pytest.CaptureFixture[str], *arguments: str) -> Iterator[str]:
    assert main(list(arguments)) == 0
    return iter(capsys.readouterr().out.splitlines())


def test_the_command_says_whether_so_many_tasks_fit_and_what_each_gets(capsys: pytest.CaptureFixture[str]) -> None:
    lines = words(capsys, "--tasks", "60", "--devices", "2", "--device-type", "t4", "--model", "3b", "--limit", "3h")
    text = "\n".join(lines)
    assert "60 tasks on 2 x t4, 3h00m: fits" in text
    assert "trainings a task:" in text
    assert "times the devices' time" in text
    for word in (*ACCOUNTS, "answered", "deaths"):
        assert word in text


def test_the_command_sweeps_and_runs_at_random(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", "30", "--devices", "1,16", "--limit", "1h", "--load", "0.5,3", "--faults", "none,harsh"]
    assert len([line for line in words(capsys, *arguments) if line.startswith("| 1")]) == 8
    lines = words(capsys, "--runs", "3", "--seed", "5")
    assert next(lines).startswith("3 runs, 0 missed")


def test_the_command_fails_when_a_run_misses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "Coordinator", WaitsForJobs)
    monkeypatch.setattr(SimulatedRun, "missed", True)
    assert main(["--runs", "2"]) == 1
    assert "seeds that missed: [0, 1]" in capsys.readouterr().out


def test_a_signal_ends_the_command_and_not_only_the_run_that_it_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def interrupted(self: VirtualFleet, timeout_s: float) -> list[object]:
        turns.append(timeout_s)
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(VirtualFleet, "poll", interrupted)
    assert main(["--runs", "5"]) == 130
    assert len(turns) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--tasks", "/no/such/file"], "/no/such/file"),
        (["--limit", "soon"], "soon"),
        (["--faults", "unheard"], "unheard"),
        (["--model", "/no/model"], "/no/model"),
        (["--devices", "0"], "--devices"),
        (["--devices", "two"], "--devices"),
        (["--load", "-1"], "--load"),
        (["--sure", "2"], "--sure"),
        (["--runs", "-1"], "--runs"),
        (["--set", "ttt.rang=3"], "ttt.rang"),
    ],
)
def test_wrong_use_gets_one_clear_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert word in error
