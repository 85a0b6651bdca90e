"""A whole run: complete from the start, better as results come, ended in time, and valid whatever dies.

Most workers here are small scripts that speak the protocol; a few tests start the real script.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arc_lab.evaluate.dry_run import main
from arc_ttt.deadline import REAL_CLOCK, Deadline, VirtualClock
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.fleet.launch import make_fleet, make_hello
from arc_ttt.fleet.patience import PATIENCE, Patience
from arc_ttt.kaggle import usable_settings
from arc_ttt.kaggle.run import kaggle_run
from arc_ttt.protocol.jobs import BASE, SYNTHESIS, TTT, Outcome
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.journal import read_journal
from arc_ttt.run.report import RunResult, Status
from arc_ttt.run.spec import RunSpec
from arc_ttt.run.submission import check_submission
from arc_ttt.schedule.gains import FAILURES
from arc_ttt.schedule.shapes import work
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import LoadedTasks
from arc_ttt.tasks.parse import parse_tasks
from support.scripted_fleet import InstantFleet, answer_all, worker_script

pytestmark = pytest.mark.usefixtures("environment_as_before")

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}
DOCUMENT: dict[str, Any] = {
    "a": {"train": [PAIR, PAIR], "test": [{"input": [[5, 6]]}]},
    "b": {"train": [PAIR, PAIR], "test": [{"input": [[7, 8], [7, 8]]}, {"input": [[9]]}]},
    "c": {"train": [PAIR], "test": [{"input": [[1, 1, 1], [1, 1, 1]]}]},
}
COUNTS = {"a": 1, "b": 2, "c": 1}
NO_SYNTHESIS = Settings.of("embedded").override([("synthesis.enabled", False), ("ttt.passes", 1)])


class Bench:
    """Coordinators over fake workers, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.folder = folder
        self.statuses: list[Status] = []
        self.documents: list[dict[str, Any]] = []

    def run(
        self,
        behaviour: str,
        *,
        start: str = "",
        workers: int = 2,
        limit_s: float = 60.0,
        loaded: LoadedTasks | None = None,
        fallback: Settings | None = None,
        programs: int = 0,
        patience: Patience = PATIENCE,
        **changes: Any,
    ) -> RunResult:
        settings = NO_SYNTHESIS.override([("run.limit_s", limit_s), *changes.items()])
        command = worker_script(self.folder / "worker.py", behaviour, start)
        start_s = REAL_CLOCK.now()
        spec = RunSpec(
            loaded if loaded is not None else parse_tasks(DOCUMENT, source="tests"),
            settings,
            self.out,
            start_s,
            Deadline(start_s + limit_s, REAL_CLOCK),
            searchers=range(workers - programs, workers),
            cores=workers - programs if programs else 0,
            fallback=fallback,
        )
        hello = make_hello(settings, spec.deadlines.work)
        fleet = Fleet([command] * workers, hello, [{}] * workers, self.out / "logs", patience=patience)
        result = Coordinator(spec, fleet).run(self._look)
        self.check()
        return result

    def _look(self, status: Status) -> None:
        self.statuses.append(status)
        document = self.check()
        if not self.documents or document != self.documents[-1]:
            self.documents.append(document)

    def check(self) -> dict[str, Any]:
        """The submission, which must be valid and complete whenever anybody looks."""
        document: dict[str, Any] = json.loads((self.out / "submission.json").read_text())
        check_submission(document, COUNTS)
        return document

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_journal(self.out / "events.jsonl") if event["event"] == name]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Coordinator


def test_the_submission_is_complete_at_once_and_gets_better(bench: Bench) -> None:
    result = bench.run("time.sleep(0.3); answer(job)", start="time.sleep(0.5)")
    assert result.stopped_by == "all done"
    assert not result.deaths
    assert bench.documents[0]["a"] == [{"attempt_1": [[5, 6]], "attempt_2": [[2, 1], [4, 3]]}]  # fallbacks
    assert len(bench.documents) > 1
    final = bench.check()
    want = [{"attempt_1": [[2, i]], "attempt_2": [[1, i]]} for i in (0, 1)]  # adapted first, then base
    assert final == {"a": want[:1], "b": want, "c": want[:1]}
    assert {key for key, found in result.results.items() if found.outcome == Outcome.FINISHED} == {
        (kind, task_id) for kind in (BASE, TTT) for task_id in COUNTS
    }
    assert bench.events("end")[-1]["stopped_by"] == "all done"


def test_base_passes_run_before_training_and_the_cheapest_task_first(bench: Bench) -> None:
    bench.run("answer(job)", workers=1, limit_s=3000.0)
    jobs = [(event["kind"], event["task_id"]) for event in bench.events("job")]
    assert [kind for kind, _ in jobs] == [BASE] * 3 + [TTT] * 3
    tasks = sorted(parse_tasks(DOCUMENT, source="tests").tasks, key=lambda t: work(t, TTT, Settings.of("embedded")))
    assert [task_id for _, task_id in jobs] == [task.task_id for task in tasks] * 2


def test_the_job_of_a_killed_worker_is_tried_again(bench: Bench) -> None:
    kill = 'if job["task_id"] == "b" and first_time(job["kind"]): os.kill(os.getpid(), signal.SIGKILL)\nanswer(job)'
    result = bench.run(kill, workers=1)  # two would sometimes have both passes of "b" at once, and lose both
    assert result.deaths == ["signal 9", "signal 9"]
    assert result.results[TTT, "b"].outcome == Outcome.FINISHED
    assert bench.check()["b"][1] == {"attempt_1": [[2, 1]], "attempt_2": [[1, 1]]}
    assert [event["again"] for event in bench.events("death")] == [True, True]


def test_a_job_that_kills_twice_is_given_up_and_the_others_are_done(bench: Bench) -> None:
    kill = 'if job["task_id"] == "b" and job["kind"] == "ttt": os.kill(os.getpid(), signal.SIGSEGV)\nanswer(job)'
    result = bench.run(kill)
    assert result.stopped_by == "all done"
    assert result.deaths == ["signal 11", "signal 11"]
    assert result.results[TTT, "b"].outcome == Outcome.LOST
    final = bench.check()
    assert final["b"][0]["attempt_1"] == [[1, 0]]  # the base pass still counts
    assert final["a"][0]["attempt_1"] == final["c"][0]["attempt_1"] == [[2, 0]]


def test_what_a_worker_said_before_it_died_counts_once(bench: Bench) -> None:
    """Else a candidate would have two votes because its worker died."""
    behaviour = (
        "if job['task_id'] == 'a' and job['kind'] == 'ttt':\n"
        "    candidates(job, 0, [[[3]], [[4]]])\n"
        "    if first_time('a'): time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done(job)\n"
        "else:\n"
        "    answer(job)"
    )
    result = bench.run(behaviour)
    assert len(result.deaths) == 1
    assert [c.grid.tolist() for c in result.results[TTT, "a"].candidates] == [[[3]], [[4]]]


def test_when_all_workers_die_the_run_ends_with_a_valid_submission(bench: Bench) -> None:
    result = bench.run("sys.exit(3)", start="sys.exit(3)")
    assert result.stopped_by == "all workers lost"
    assert set(result.deaths) == {"exit code 3"}
    assert result.results == {}


def test_workers_that_die_under_every_job_end_the_run_too(bench: Bench) -> None:
    result = bench.run("sys.exit(4)")
    assert set(result.deaths) == {"exit code 4"}
    assert {found.outcome for found in result.results.values()} <= {Outcome.LOST}


def test_a_model_that_cannot_be_loaded_ends_the_run_at_once(bench: Bench) -> None:
    result = bench.run("pass", start="say(type='fatal', reason='no such weights'); sys.exit(13)", limit_s=600.0)
    assert result.fatal == "the model could not be loaded: no such weights"
    assert result.stopped_by == result.fatal
    assert 1 <= len(result.deaths) <= 4  # once both have said so none is started again


def test_a_model_that_cannot_be_loaded_gives_way_to_the_fallback(bench: Bench) -> None:
    """Good config, bad weights: only the worker finds out, and the run goes on with the embedded model."""
    start = """
if not hello["generation"]: say(type="fatal", reason="bad weights", model="/mounted"); sys.exit(13)
"""
    result = bench.run("answer(job)", start=start, fallback=NO_SYNTHESIS, **{"model.path": "/mounted"})
    assert result.fatal == ""
    assert result.stopped_by == "all done"
    assert bench.check()["a"][0]["attempt_1"] == [[2, 0]]
    assert [event["model"] for event in bench.events("fallback")] == ["embedded"]


def test_a_second_worker_that_fails_with_the_first_model_does_not_end_the_fallback(bench: Bench) -> None:
    """Both name the same path, the empty one of an embedded model: the generation tells the old from the new."""
    start = """
if not hello["generation"]:
    say(type="fatal", reason="bad weights", model="", generation=0); sys.exit(13)
"""
    result = bench.run("answer(job)", start=start, workers=2, fallback=NO_SYNTHESIS)
    assert len(bench.events("fatal")) == 2
    assert result.fatal == ""
    assert result.stopped_by == "all done"
    assert bench.check()["a"][0]["attempt_1"] == [[2, 0]]


@pytest.mark.parametrize("end", ["sys.exit(10)", "os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(600)"])
def test_a_model_under_which_every_load_dies_gives_way_to_the_fallback(bench: Bench, end: str) -> None:
    """A kernel that the GPU lacks, a broken library, a disk that hangs: nobody lives to say so."""
    start = f'if not hello["generation"]: {end}'
    load_s = 1.0 if "sleep" in end else 20.0
    patience = dataclasses.replace(PATIENCE, load_s=load_s, backoff_s=0.05, hang_s=0.2)
    workers = 3
    result = bench.run("answer(job)", start=start, workers=workers, fallback=NO_SYNTHESIS, patience=patience)
    assert result.fell_back.startswith("its workers died while they loaded it: ")
    assert result.stopped_by == "all done"
    assert (
        len(result.deaths) >= 2 * workers
    )  # each is tried again, without what may be why, before the model is given up
    assert result.lost_devices == []
    assert bench.check()["a"][0]["attempt_1"] == [[2, 0]]
    assert [event["reason"] for event in bench.events("fallback")] == [result.fell_back]


def test_a_worker_that_alone_cannot_load_the_model_costs_only_itself(bench: Bench) -> None:
    """Its own trouble with memory, say: the other has loaded the same one."""
    start = """
if not first_time("good"):
    time.sleep(0.5)
    say(type="fatal", reason="out of memory", model=""); sys.exit(13)
"""
    result = bench.run("time.sleep(0.2); answer(job)", start=start, workers=2, fallback=NO_SYNTHESIS)
    assert bench.events("fatal")
    assert (result.fatal, result.fell_back, bench.events("fallback")) == ("", "", [])
    assert result.stopped_by == "all done"
    assert bench.check()["a"][0]["attempt_1"] == [[2, 0]]


def test_a_joint_adapter_of_a_model_given_up_is_not_loaded_into_the_next(bench: Bench) -> None:
    start = """
if not hello["generation"]: say(type="fatal", reason="bad weights", model=""); sys.exit(13)
"""
    behaviour = 'assert job["kind"] != "joint" and not job.get("joint")\nanswer(job)'
    result = bench.run(behaviour, start=start, workers=1, fallback=NO_SYNTHESIS, **{"ttt.scope": "joint"})
    assert result.fell_back == "bad weights"
    assert result.stopped_by == "all done"
    assert result.deaths == ["another model is loaded instead"]


def test_trainings_without_a_step_are_not_tried_for_ever(bench: Bench) -> None:
    """A task whose pairs are too long to train on has the base model's answer each time."""
    body = 'if job["kind"] == "ttt" and job["task_id"] != "b": done(job, steps=0)\nelse: answer(job)'
    counted = body.replace("answer(job)", "done(job, steps=4)")
    result = bench.run(counted, **{"ttt.passes": 9})
    done = Counter(event["task_id"] for event in bench.events("done") if event["kind"] == "ttt")
    assert result.stopped_by == "all done"
    assert done["b"] == 9
    assert {done["a"], done["c"]} == {FAILURES}


def test_what_searches_have_taken_of_shared_cores_stays_part_of_the_whole(bench: Bench) -> None:
    """Else the shares of the budget would shrink with every search."""
    tasks = parse_tasks(DOCUMENT, source="tests")
    clock = VirtualClock()
    settings = NO_SYNTHESIS.override([("synthesis.enabled", True), ("run.limit_s", 1000.0)])
    fleet = InstantFleet(4, answer_all, clock)
    deadline = Deadline(1000.0, clock)
    spec = RunSpec(tasks, settings, bench.out, 0.0, deadline, searchers=range(2, 4), cores=2)
    state = Coordinator(spec, fleet).state
    whole_s = state.plan.budget_s
    clock.advance(100.0)
    state.plan.spent_s[SYNTHESIS] += 150.0
    state.plan.spent_s[BASE] += 50.0
    state.replan([0, 1])
    assert state.plan.budget_s == pytest.approx(whole_s)


def test_a_run_that_goes_on_does_not_try_a_model_again_that_was_given_up(bench: Bench) -> None:
    clock = VirtualClock()
    first = NO_SYNTHESIS.override([("ttt.scope", "joint")])
    past = [{"event": "start"}, {"event": "fallback", "model": "embedded", "reason": "its loads hung"}]
    tasks = parse_tasks(DOCUMENT, source="tests")
    spec = RunSpec(tasks, first, bench.out, 0.0, Deadline(600.0, clock), fallback=NO_SYNTHESIS)
    coordinator = Coordinator(spec, InstantFleet(2, answer_all, clock))
    coordinator.resume(past)
    coordinator.journal.close()
    assert coordinator.state.settings == NO_SYNTHESIS
    assert (coordinator.trust.has_fallback, coordinator.result.fell_back) == (False, "its loads hung")
    assert coordinator.state.plan.joint_state == "done"


def test_an_error_of_the_coordinator_is_an_interruption(bench: Bench) -> None:
    bench.folder.mkdir(exist_ok=True)

    def fail(status: Status) -> None:
        raise RuntimeError("a mistake")

    bench._look = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a mistake"):
        bench.run("answer(job)")
    assert bench.events("end")[-1]["stopped_by"] == "error RuntimeError"


PROGRAMS = """
if job["kind"] == "synthesis":
    rows = [{"grid": grid, "text": "sevens", "confidence": 0.9, "fits_all": True} for grid in ([[7, 7]], [[8, 8], [8]])]
    rows = rows if job["task_id"] == "b" else rows[:1]
    for index in range(len(job["task"]["test"])):
        say(type="programs", job=job["id"], task_id=job["task_id"], test_index=index, programs=rows)
    done(job)
elif job["kind"] == "base": answer(job)
else:
    seen = job["programs"]
    candidates(job, 0, [[[2, len(seen)]]] * 4)
    done(job)
"""


def test_programs_join_the_votes_and_reach_the_scoring(bench: Bench) -> None:
    """Task a has a sure program for its test input: it takes an attempt beside the vote, and training comes last.
    Task b's programs are malformed and dropped as a whole; its vote stands alone."""
    result = bench.run(PROGRAMS, workers=3, programs=1, **{"synthesis.enabled": True, "synthesis.cpu_limits_s": "2"})
    document = bench.check()
    both = [document["a"][0][name] for name in ("attempt_1", "attempt_2")]
    assert [[7, 7]] in both
    assert [[2, 0]] in both or [[2, 1]] in both  # trained before or after the program was found
    assert document["b"][0]["attempt_1"] == [[2, 0]]  # no program of b was passed on
    assert "[[7, 7]]" not in str(document["b"])
    assert [p.text for p in result.results["synthesis", "a"].programs] == ["sevens"]
    assert any("malformed" in event["reason"] for event in bench.events("dropped"))


@pytest.mark.parametrize("behaviour", ["time.sleep(600)", "while True: say(type='progress', job=job['id'])"])
def test_the_run_ends_before_its_limit_whatever_the_workers_do(bench: Bench, behaviour: str) -> None:
    ignore = "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, signal.SIG_IGN)"
    start_s = time.monotonic()
    result = bench.run(behaviour, start=ignore, limit_s=6.0)
    assert time.monotonic() - start_s < 6.0
    assert result.stopped_by in ("deadline", "nothing left that fits the time")  # a flood costs the worker its life


def test_what_was_found_before_the_deadline_counts(bench: Bench) -> None:
    result = bench.run("if job['kind'] == 'ttt': time.sleep(600)\nanswer(job)", limit_s=6.0)
    assert result.stopped_by == "deadline"
    assert bench.check()["a"][0]["attempt_1"] == [[1, 0]]


MALFORMED = [
    "[]",
    "[[]]",
    "[[1, 2], [3]]",
    "[[10]]",
    "[[-1]]",
    "[[1.0]]",
    "[[True]]",
    "[['1']]",
    "'grid'",
    "None",
    "7",
    "[[0] * 31]",
    "[[0]] * 31",
    "{'0': [1]}",
]


def test_malformed_candidates_never_reach_the_submission(bench: Bench) -> None:
    lines = [f"candidates(job, 0, [{grid}])" for grid in MALFORMED]
    lines += [f"candidates(job, {index}, [[[9]]])" for index in ("-1", "1", "99", "'0'", "None", "0.0", "True")]
    lines += [
        "say(type='candidates', task_id=job['task_id'], test_index=0)",
        "say(type='candidates', task_id=job['task_id'], test_index=0, candidates=7, scored=[])",
        "say(type='candidates', task_id=job['task_id'], test_index=0, candidates=[{}], scored=[])",
        "say(type='candidates', task_id='another', test_index=0, candidates=[], scored=[])",
        "say(type='candidates', task_id=[1], test_index=0, candidates=[], scored=[])",
        "candidates(job, 0, [], [{'grid': [[9]], 'nll_by_view': [float('nan')]}])",
        "candidates(job, 0, [], [{'grid': [[9]], 'nll_by_view': [float('inf')]}])",
        "candidates(job, 0, [], [{'grid': [[9]], 'nll_by_view': [10**400]}])",
        "candidates(job, 0, [[[10**400]]])",
        "candidates(job, 0, [], [{'grid': [[9]], 'nll_by_view': 'abc'}])",
        "candidates(job, 0, [], [{'grid': [[9, 9], [9]], 'nll_by_view': [1.0]}])",
        "say(type='unknown')",
        "say(type='ready')",
    ]
    one = (
        "if job['task_id'] == 'a':\n" + "".join(f"    {line}\n" for line in lines) + "    done(job)\nelse: answer(job)"
    )
    result = bench.run(one)
    assert not result.deaths
    assert result.stopped_by == "all done"
    final = bench.check()
    assert final["a"] == bench.documents[0]["a"]
    assert final["c"][0]["attempt_1"] == [[2, 0]]
    assert len(bench.events("dropped")) > 2 * len(MALFORMED)


@pytest.mark.parametrize(
    "more",
    [
        "seconds=None",
        "seconds='x'",
        "seconds=[]",
        "train_tokens=None",
        "train_s={}",
        "outcome=None",
        "reason=7",
        "steps=10**400",
    ],
)
def test_a_malformed_end_of_a_job_does_not_end_the_run(bench: Bench, more: str) -> None:
    result = bench.run(f"if job['task_id'] == 'a': done(job, {more})\nelse: answer(job)")
    assert result.stopped_by == "all done"
    assert bench.check()["c"][0]["attempt_1"] == [[2, 0]]


def test_an_answer_for_the_second_test_input_stays_second(bench: Bench) -> None:
    bench.run("if job['task_id'] == 'b': candidates(job, 1, [[[6]]])\ndone(job)")
    final = bench.check()
    assert final["b"][1]["attempt_1"] == [[6]]
    assert final["b"][0] == bench.documents[0]["b"][0]


def test_a_joint_stage_runs_once_and_its_adapter_goes_to_training_only(bench: Bench) -> None:
    behaviour = (
        "if job['kind'] == 'joint':\n"
        "    assert sorted(job['tasks']) == ['a', 'b', 'c'] and job['left_s'] > 0\n"
        "    time.sleep(0.3); open(job['path'], 'w').close(); done(job)\n"
        "else:\n"
        "    assert bool(job['joint']) == (job['kind'] == 'ttt')\n"
        "    answer(job)"
    )
    result = bench.run(behaviour, **{"ttt.scope": "joint"})
    assert result.deaths == []
    kinds = [event["kind"] for event in bench.events("job")]
    assert kinds.count("joint") == 1
    assert kinds[0] == "joint"
    assert bench.check()["a"][0]["attempt_1"] == [[2, 0]]


def test_problems_of_single_tasks_are_recorded_and_answered(bench: Bench) -> None:
    document = {**DOCUMENT, "b": {"train": [PAIR], "test": [{"input": [[1, 2], [3]]}, {"input": [[1]]}]}}
    result = bench.run("answer(job)", loaded=parse_tasks(document, source="tests"))
    assert {task_id for _, task_id in result.results} == {"a", "c"}
    assert [event["task_id"] for event in bench.events("bad task")] == ["b"]
    assert bench.check()["b"][0]["attempt_1"] == [[0]]


def test_a_run_without_tasks_starts_no_worker(bench: Bench, tmp_path: Path) -> None:
    settings = Settings.of("embedded")
    deadline = Deadline.after(60.0)
    fleet = Fleet([["/no/such/program"]], make_hello(settings, deadline), [{}], tmp_path)
    loaded = LoadedTasks((), (), dict(COUNTS))
    result = Coordinator(RunSpec(loaded, settings, bench.out, REAL_CLOCK.now(), deadline), fleet).run()
    bench.check()
    assert (result.stopped_by, result.deaths) == ("all done", [])


def test_a_part_that_a_kill_left_behind_is_cleared_away(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / ".submission.json.123.part").write_text("{")
    bench.run("answer(job)")
    assert not list(bench.out.glob(".*.part"))


def test_each_worker_sees_one_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    fleet, _, _ = make_fleet(NO_SYNTHESIS, tmp_path, Deadline.after(60.0))
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in fleet._environments] == ["2", "5"]
    assert fleet._hello.gpu == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fleet, _, _ = make_fleet(NO_SYNTHESIS.override([("run.workers", 3)]), tmp_path, Deadline.after(60.0))
    assert len(fleet.slots) == 3
    assert fleet._hello.gpu is None


# The real script


def challenges(folder: Path, document: Any = DOCUMENT) -> Path:
    path = folder / "challenges.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def survivors(marker: str) -> list[int]:
    """Processes, zombies aside, that have `marker` in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def none_survives(marker: str, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not survivors(marker):
            return True
        time.sleep(0.05)
    return False


class Script:
    """A running process with a mark on it and on all that it starts."""

    def __init__(self, command: list[str], out: Path, **environment: str) -> None:
        self.out = out
        self.marker = f"ARC_TEST_MARK={out}"
        env = {**os.environ, "ARC_TEST_MARK": str(out), "CUDA_VISIBLE_DEVICES": "", **environment}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT
        )

    def wait_for(self, path: Path, text: str = "") -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            if path.exists() and text in path.read_text():
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} did not come; {self.process.communicate()[0]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    started: list[Script] = []
    yield started
    for script in started:
        script.kill()


def kernel(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "kernel.py"), *map(str, arguments)]


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (signal.SIGTERM, '"start"'),
        (signal.SIGINT, '"start"'),
        pytest.param(signal.SIGTERM, '"kind": "base"', marks=pytest.mark.slow),
    ],
    ids=["SIGTERM while loading", "SIGINT while loading", "SIGTERM while working"],
)
def test_a_signal_ends_the_script_in_two_seconds_with_a_valid_submission(
    tmp_path: Path, scripts: list[Script], number: signal.Signals, event: str
) -> None:
    out = tmp_path / "out"
    command = kernel("--tasks", challenges(tmp_path), "--out", out, "--limit", "10m", "--set", "ttt.stop_loss=0")
    script = Script(command, out)
    scripts.append(script)
    script.wait_for(out / "events.jsonl", event)
    time.sleep(0.5)
    sent_s = time.monotonic()
    script.process.send_signal(number)
    output, _ = script.process.communicate(timeout=30)
    assert time.monotonic() - sent_s < 2.0
    assert number.name in output
    check_submission(json.loads((out / "submission.json").read_text()), COUNTS)
    assert none_survives(script.marker)


COORDINATOR = """
import json, sys
from pathlib import Path
sys.path[:0] = [{src!r}]
from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.fleet.launch import make_hello
from arc_ttt.tasks.parse import parse_tasks
from arc_ttt.run.coordinator import Coordinator
from arc_ttt.run.spec import RunSpec
from arc_ttt.settings import Settings
out = Path(sys.argv[1])
loaded = parse_tasks(json.loads({document!r}), source="tests")
deadline = Deadline.after(600.0)
settings = Settings.of("embedded")
fleet = Fleet([{command!r}] * 2, make_hello(settings, deadline), [{{}}] * 2, out / "logs")
Coordinator(RunSpec(loaded, settings, out, REAL_CLOCK.now(), deadline), fleet).run()
"""


def test_a_killed_coordinator_leaves_a_valid_submission_and_no_worker(tmp_path: Path, scripts: list[Script]) -> None:
    """At ten random moments, from the first submission to the last; its workers end with it."""
    document = {f"t{i}": {"train": [PAIR], "test": [{"input": [[1]]}]} for i in range(60)}
    start = f"sys.path[:0] = [{str(ROOT / 'src')!r}, {str(Path(__import__('numpy').__file__).parent.parent)!r}]\n"
    start += "from arc_ttt.bootstrap.process import die_with_parent\n"
    start += "die_with_parent(int(os.environ['ARC_TTT_COORDINATOR']))\n"
    start += "signal.signal(signal.SIGPIPE, signal.SIG_IGN)"
    command = worker_script(tmp_path / "worker.py", "time.sleep(0.05)\nanswer(job)", start)
    runner = tmp_path / "coordinator.py"
    runner.write_text(COORDINATOR.format(src=str(ROOT / "src"), document=json.dumps(document), command=command))
    moments = random.Random(5)
    for round_number in range(2):
        batch = [
            Script(
                [sys.executable, str(runner), str(tmp_path / f"{round_number}-{i}")], tmp_path / f"{round_number}-{i}"
            )
            for i in range(5)
        ]
        scripts += batch
        for script in batch:
            script.wait_for(script.out / "submission.json")
            time.sleep(moments.uniform(0.0, 0.6))
            script.kill()
            text = (script.out / "submission.json").read_text()
            check_submission(json.loads(text), dict.fromkeys(document, 1))
        for script in batch:
            assert none_survives(script.marker), script.out


def test_a_worker_whose_coordinator_is_dead_before_it_looks_ends(tmp_path: Path) -> None:
    """Trap: asking for a signal at the parent's death is too late when the parent has died already."""
    command = [sys.executable, "-c", "from arc_ttt.worker.serve import main; main()"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "ARC_TTT_COORDINATOR": "1"}  # not this process
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_script_does_its_main_job_on_tasks_of_all_kinds(tmp_path: Path) -> None:
    """Bad tasks next to good ones, one demonstration, none, several test inputs; and it says what it did."""
    document = {
        **DOCUMENT,
        "none": {"train": [], "test": [{"input": [[1]]}]},
        "ragged": {"train": [PAIR], "test": [{"input": [[1, 2], [3]]}]},
        "colours": {"train": [{"input": [[10]], "output": [[1]]}], "test": [{"input": [[1]]}, {"input": [[2]]}]},
        "empty": {},
    }
    out = tmp_path / "out"
    few = [
        f"--set={s}"
        for s in (
            "ttt.max_sequences=16",
            "ttt.passes=2",
            "decode.views=4",
            "decode.base_views=2",
            "synthesis.enabled=false",
        )
    ]
    command = kernel("--tasks", challenges(tmp_path, document), "--out", out, "--limit", "3m", *few)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    counts = {**COUNTS, "none": 1, "ragged": 1, "colours": 2, "empty": 1}
    check_submission(json.loads((out / "submission.json").read_text()), counts)
    for text in ("task ragged", "row 2", "task colours", "train 1", "task empty", "task none has no demonstration"):
        assert text in done.stdout, text
    assert "task c has one demonstration" in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["answered"]["base"] == report["answered"]["ttt"] == 0  # no solutions are known
    rows = {i: row for i, row in report["by_task"].items() if "base" in row}
    outcomes = {(i, stage): row[stage]["outcome"] for i, row in rows.items() for stage in ("base", "ttt")}
    assert outcomes == {(i, stage): "finished" for i in ("a", "b", "c", "none") for stage in ("base", "ttt")}
    assert report["stopped_by"] == "all done"
    assert "no trainable sequence" in report["by_task"]["none"]["ttt"]["reason"]


def test_weights_that_cannot_be_loaded_are_named_and_leave_a_valid_submission(tmp_path: Path) -> None:
    folder, out = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(ROOT / "src" / "arc_ttt" / "checkpoints" / "embedded" / "xs", folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    command = kernel("--tasks", challenges(tmp_path), "--out", out, "--model", folder, "--format", "compact")
    command += ["--set", "synthesis.cpu_limits_s=1"]  # synthesis goes on without the model
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)
    assert done.returncode == 3
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr
    check_submission(json.loads((out / "submission.json").read_text()), COUNTS)


# Task files that cannot be used


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", "\x00\xff", '{"a": ' * 5000],
    ids=["empty", "cut", "list", "number", "no task", "bytes", "deep"],
)
def test_a_task_file_that_cannot_be_used_gives_an_empty_run_that_says_so(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = challenges(tmp_path, text)
    assert main(["--tasks", str(path), "--out", str(tmp_path / "out")], time.monotonic()) == 0
    assert json.loads((tmp_path / "out" / "submission.json").read_text()) == {}
    output = "".join(capfd.readouterr())
    assert text == "{}" or str(path) in output or path.name in output
    assert "0 tasks" in output


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "soon"], ["soon"]),
        (["--limit", "-5m"], ["--limit"]),
        (["--limit", "1s"], ["run.limit_s"]),
        (["--format", "gpt"], ["gpt", "compact"]),
        (["--format", "compact"], ["--model"]),
        (["--model", "."], ["--format"]),
        (["--model", "/no/such/folder", "--format", "marc"], ["/no/such/folder"]),
        (["--first", "0"], ["--first 0"]),
        (["--first", "x"], ["--first"]),
        (["--ids", "nonsense"], ["nonsense"]),
        (["--tasks", "/no/such/file"], ["/no/such/file"]),
        (["--workers", "-1"], ["run.workers"]),
        (["--workers", "two"], ["two"]),
        (["--seed", "-1"], ["run.seed"]),
        (["--set", "ttt.rang=3"], ["ttt.rang", "ttt.rank"]),
        (["--set", "ttt.rank"], ["NAME=VALUE"]),
        (["--set", "ttt.rank=many"], ["ttt.rank", "many"]),
        (["--set", "ttt.adapter=soft"], ["soft", "lora"]),
        (["--set", "run.limit_s=nan"], ["run.limit_s"]),
        (["--set", "ttt.learning_rate=inf"], ["ttt.learning_rate"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--out", "FILE"], ["FILE"]),
        (["--out", "FILE/below"], ["FILE"]),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_wrong_use_gets_one_clear_line_and_exit_2(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = challenges(tmp_path)
    arguments = [argument.replace("FILE", str(file)) for argument in arguments]
    tasks = [] if "--tasks" in arguments else ["--tasks", str(file)]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    try:
        code: object = main([*tasks, *out, *arguments], time.monotonic())
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("kernel.py: ")
    for word in words:
        assert word.replace("FILE", str(file)) in captured.err
    assert not (tmp_path / "out").exists()


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"], time.monotonic())
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ["tasks", "ids", "first", "limit", "workers", "model", "format", "seed", "out", "set"]:
        assert f"--{option}" in text


# Kaggle

RERUN = "KAGGLE_IS_COMPETITION_RERUN"


def mount(root: Path, layout: str, **files: str) -> Path:
    folder = root / "input" / layout
    folder.mkdir(parents=True)
    (root / "working").mkdir()
    for name, text in files.items():
        (folder / f"{name.replace('_test_', '-agi_test_') if name.startswith('arc') else name}.json").write_text(text)
    return folder


@pytest.mark.parametrize("layout", ["arc-prize-2025", "competitions/arc-prize-2025"])
def test_a_kaggle_run_answers_every_task_of_the_mounted_file(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a limit so short that the workers are still loading; a model that is not there gives way to the embedded."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ARC_TEST_MARK", str(tmp_path))
    mount(tmp_path, layout, arc_test_challenges=json.dumps(DOCUMENT))
    start_s = time.monotonic()
    chosen = {"preset": "llama-1b-3b", "model.path": "/no/such/model", "run.limit_s": 6.0}
    assert kaggle_run(tmp_path, chosen, 2, start_s) == 0
    assert time.monotonic() - start_s < 6.0
    check_submission(json.loads((tmp_path / "working" / "submission.json").read_text()), COUNTS)
    output = capfd.readouterr().out
    assert "3 tasks" in output
    assert "/no/such/model" in output
    assert "embedded" in output
    assert none_survives(f"ARC_TEST_MARK={tmp_path}")


@pytest.mark.parametrize("challenges_text", ["", '{"a": ', None], ids=["empty", "cut", "missing"])
def test_without_readable_challenges_the_ids_of_the_sample_are_answered(
    tmp_path: Path, challenges_text: str | None
) -> None:
    """Through the script itself, as Kaggle starts it."""
    zeros = {"attempt_1": [[0, 0], [0, 0]], "attempt_2": [[0, 0], [0, 0]]}
    files = {"sample_submission": json.dumps({"x": [zeros], "y": [zeros, zeros]})}
    if challenges_text is not None:
        files["arc_test_challenges"] = challenges_text
    mount(tmp_path, "competitions/arc", **files)
    env = {**os.environ, "ARC_KAGGLE_ROOT": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", RERUN: "1"}
    command = [sys.executable, str(ROOT / "kernel.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "arc-agi_test_challenges.json" in done.stdout
    check_submission(json.loads((tmp_path / "working" / "submission.json").read_text()), {"x": 1, "y": 2})


def test_a_kaggle_run_without_any_input_still_leaves_a_file(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    assert kaggle_run(tmp_path, {"run.limit_s": 6.0}, 2, time.monotonic()) == 0
    assert json.loads((tmp_path / "working" / "submission.json").read_text()) == {}


@pytest.mark.parametrize("wrong", [{"ttt.rang": 3, "run.limit_s": 10.0}, {"run.limit_s": -5}, {"run.limit_s": "12h"}])
def test_wrong_settings_of_a_kaggle_run_still_leave_a_complete_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setattr(usable_settings, "LIMIT_S", 10.0)
    mount(tmp_path, "arc", arc_test_challenges=json.dumps(DOCUMENT))
    assert kaggle_run(tmp_path, wrong, 2, time.monotonic()) == 0
    check_submission(json.loads((tmp_path / "working" / "submission.json").read_text()), COUNTS)
    said = capfd.readouterr().out
    assert f"FALLBACK: SETTINGS: {'no setting' if len(wrong) == 2 else 'run.limit_s'}" in said
    assert "submission.json is valid" in said
