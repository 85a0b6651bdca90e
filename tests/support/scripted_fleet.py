"""Runs over workers that are made up: small scripts that speak the protocol, or none at all.

A run started with this file as a program (`python scripted_fleet.py OUT WORKER.py LIMIT_S [SETTING=VALUE ...]`) is
the product's coordinator, dead-man and all, over two processes of WORKER.py; tests kill, stop and starve it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT / "src"),) if path not in sys.path]

from arc_ttt.deadline import REAL_CLOCK, Clock, Deadline, VirtualClock, run_start  # noqa: E402
from arc_ttt.fleet.fleet import Fleet  # noqa: E402
from arc_ttt.fleet.launch import make_hello  # noqa: E402
from arc_ttt.fleet.patience import PATIENCE, Patience  # noqa: E402
from arc_ttt.fleet.workers import Death, Event, Message  # noqa: E402
from arc_ttt.protocol.jobs import CallBack, DeathKind  # noqa: E402
from arc_ttt.protocol.messages import read_message  # noqa: E402
from arc_ttt.protocol.orders import Hello, Order  # noqa: E402
from arc_ttt.run.coordinator import Coordinator  # noqa: E402
from arc_ttt.run.journal import read_journal  # noqa: E402
from arc_ttt.run.report import RunResult, Status  # noqa: E402
from arc_ttt.run.spec import RunSpec, Started  # noqa: E402
from arc_ttt.run.start import start_run  # noqa: E402
from arc_ttt.run.submission import check_submission  # noqa: E402
from arc_ttt.settings import Settings  # noqa: E402
from arc_ttt.tasks.grids import LoadedTasks  # noqa: E402
from arc_ttt.tasks.parse import parse_tasks  # noqa: E402

PAIR = {"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}
ONE_PASS: dict[str, Any] = {  # and short predictions, as such workers keep them
    "synthesis.enabled": False,
    "ttt.passes": 1,
    "ttt.max_sequences": 8,
    "decode.base_share": 1.0,
    "decode.base_views": 1,
    "decode.views": 1,
}
QUICK = dataclasses.replace(
    PATIENCE, first_s=2.0, step_s=1.0, round_s=1.0, cancel_s=0.5, term_s=0.5, hang_s=0.2, gone_s=1.0, backoff_s=0.05
)


def document(count: int) -> dict[str, Any]:
    """Tasks t0, t1, ...; every third has two test inputs."""
    tests = [[{"input": [[5, 6]]}], [{"input": [[7]]}], [{"input": [[8, 8]]}, {"input": [[9]]}]]
    return {f"t{i}": {"train": [PAIR, PAIR], "test": tests[i % 3]} for i in range(count)}


SCRIPT = """
import ctypes, json, os, signal, sys, time
sys.path.insert(0, {support!r})
import scripted_worker
from scripted_worker import *
hello = begin({marks!r})
folder = scripted_worker.folder
{start}
for job in jobs():
{behaviour}
"""


def expected(count: int) -> dict[str, Any]:
    """The submission after `answer` was given to every pass of `document(count)`."""

    def both(number: int, index: int) -> dict[str, Any]:
        return {f"attempt_{2 - (stage == 2)}": [[stage, index, number % 10]] for stage in (2, 1)}

    return {f"t{i}": [both(i, index) for index in range(2 if i % 3 == 2 else 1)] for i in range(count)}


def worker_script(path: Path, behaviour: str, start: str = "") -> list[str]:
    """Command of a worker that does `start` before it is ready, and `behaviour` for each `job`.

    Both are Python text over the functions of `scripted_worker`.
    """
    support = str(Path(__file__).parent)
    body = textwrap.indent(behaviour, "    ")
    path.write_text(SCRIPT.format(support=support, marks=str(path.parent), start=start, behaviour=body))
    return [sys.executable, "-S", "-E", str(path)]


def python_path() -> list[str]:
    return [str(ROOT / "src"), str(Path(__import__("numpy").__file__).parent.parent)]


def settings_of(limit_s: float, changes: Mapping[str, Any]) -> Settings:
    return Settings.of("embedded").override([("run.limit_s", limit_s), *{**ONE_PASS, **changes}.items()])


def fleet_maker(
    commands: Iterable[list[str]], patience: Patience, programs: int, made: list[Fleet]
) -> Callable[[Settings, Path, Deadline], tuple[Fleet, Collection[int], int]]:
    """Makes a fleet of these commands, the last `programs` of which synthesize, and keeps it in `made`."""

    def make(settings: Settings, out: Path, deadline: Deadline) -> tuple[Fleet, Collection[int], int]:
        every = list(commands)
        hello = make_hello(settings, deadline)
        made.append(Fleet(every, hello, [{}] * len(every), out / "logs", patience=patience))
        return made[-1], range(len(every) - programs, len(every)), 0

    return make


@dataclasses.dataclass
class Ran:
    """What a run left behind."""

    result: RunResult
    document: dict[str, Any]
    events: list[dict[str, Any]]
    seconds: float

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


def run(
    folder: Path,
    behaviours: str | list[str],
    *,
    commands: list[list[str]] | None = None,
    start: str = "",
    tasks: int = 6,
    loaded: LoadedTasks | None = None,
    workers: int = 2,
    programs: int = 0,
    limit_s: float = 30.0,
    patience: Patience = QUICK,
    on_status: Callable[[Status, Fleet], None] = lambda status, fleet: None,
    **changes: Any,
) -> Ran:
    """The product's run over scripts, in this process. The submission is checked at every turn of the loop.

    behaviours: what the scripts do for a job, one for all or one each. commands: programs to run instead.
    """
    scripts = [behaviours] * workers if isinstance(behaviours, str) else behaviours
    folder.mkdir(parents=True, exist_ok=True)
    commands = commands or [worker_script(folder / f"worker{i}.py", text, start) for i, text in enumerate(scripts)]
    loaded = loaded or parse_tasks(document(tasks), source="tests")
    out, made, began_s = folder / "out", list[Fleet](), time.monotonic()
    fleet_of = fleet_maker(commands, patience, programs, made)

    def look(status: Status) -> None:
        valid(out, loaded.test_counts)
        on_status(status, made[0])

    settings = settings_of(limit_s, changes)
    result = start_run(loaded, settings, out, Started(REAL_CLOCK.now()), on_status=look, fleet_of=fleet_of)
    seconds = time.monotonic() - began_s
    return Ran(result, valid(out, loaded.test_counts), read_journal(out / "events.jsonl"), seconds)


def valid(out: Path, counts: Mapping[str, int]) -> dict[str, Any]:
    """The submission on the disk, which must be complete whenever anybody looks."""
    found: dict[str, Any] = json.loads((out / "submission.json").read_text())
    check_submission(found, counts)
    return found


class InstantFleet:
    """Workers that answer within the same turn, without processes.

    answer: lines to a job, as a worker would say them; after a line "die" the worker is dead.
    """

    def __init__(self, slots: int, answer: Callable[[dict[str, Any]], Iterable[dict[str, Any]]], clock: Clock) -> None:
        self._slots, self._answer, self._clock = list(range(slots)), answer, clock
        self._alive: set[int] = set()
        self._events: list[Event] = []

    @property
    def slots(self) -> list[int]:
        return self._slots

    def ready(self, slot: int) -> bool:
        return slot in self._alive

    alive = ready

    def start(self, slot: int) -> bool:
        self._alive.add(slot)
        return True

    def send(self, slot: int, order: Order) -> None:
        for line in self._answer(json.loads(json.dumps(order.to_json()))):
            if line["type"] == "die":
                self._alive.discard(slot)
                self._events.append(Death(slot, DeathKind.CRASHED, "signal 9", final=False))
                return
            self._events.append(Message(slot, read_message(json.loads(json.dumps({"job": order.id, **line})))))

    def poll(self, timeout_s: float) -> list[Event]:
        self._clock.sleep(timeout_s if not self._events else 0.001)
        events, self._events = self._events, []
        return events

    def cancel(self, slot: int, cause: CallBack) -> None: ...

    def kill(self, slot: int, kind: DeathKind) -> Death:
        self._alive.discard(slot)
        return Death(slot, kind, str(kind), final=False)

    def clear_deaths(self, slot: int) -> None: ...

    def retire(self, slot: int) -> None:
        self._slots = [number for number in self._slots if number != slot]

    def set_hello(self, hello: Hello) -> None: ...

    def stop(self) -> None: ...


def answer_all(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What a good worker says to a job: one answer to each test input, as `expected` has them, and the end."""
    stage, lines = 1 if job["kind"] == "base" else 2, []
    for index in range(len(job["task"]["test"])):
        grid = [[stage, index, int(job["task_id"][1:]) % 10]]
        found = [{"grid": grid, "group": "identity", "nll": 1.0}]
        where = {"task_id": job["task_id"], "test_index": index}
        lines.append({"type": "candidates", **where, "candidates": found, "scored": []})
    return [*lines, {"type": "done", "seconds": 0.01, "outcome": "finished", "reason": ""}]


def instant_run(
    out: Path,
    loaded: LoadedTasks,
    answer: Callable[[dict[str, Any]], Iterable[dict[str, Any]]] = answer_all,
    *,
    past: Iterable[Mapping[str, Any]] = (),
    programs: int = 0,
    **changes: Any,
) -> RunResult:
    """The product's coordinator over two workers, and `programs` that synthesize, that answer at once, under virtual
    time."""
    clock = VirtualClock()
    settings = settings_of(600.0, changes)
    fleet = InstantFleet(2 + programs, answer, clock)
    spec = RunSpec(
        loaded,
        settings,
        out,
        0.0,
        Deadline(600.0, clock),
        searchers=range(2, 2 + programs),
        fingerprint="mark",
    )
    return Coordinator(spec, fleet).run(past=list(past))


class Process:
    """This file as a program, in a process of its own, with a mark on it and on all that it starts."""

    def __init__(
        self, out: Path, worker: Path, limit_s: float, *settings: str, tasks: int = 12, file_bytes: int = 0
    ) -> None:
        self.out, self.counts = out, dict(parse_tasks(document(tasks), source="tests").test_counts)
        self.mark = f"ARC_TEST_MARK={out}"
        command = [sys.executable, str(Path(__file__).resolve()), str(out), str(worker), str(limit_s), str(tasks)]
        limits = {"ARC_TEST_FILE_BYTES": str(file_bytes)} if file_bytes else {}
        self.process = subprocess.Popen(
            [*command, *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "ARC_TEST_MARK": str(out), "CUDA_VISIBLE_DEVICES": "", **limits},
        )
        self.began_s = time.monotonic()

    def valid(self) -> dict[str, Any]:
        return valid(self.out, self.counts)

    def wait_for(self, text: str = "") -> None:
        """Wait for the submission, or for a text in the journal."""
        path = self.out / ("events.jsonl" if text else "submission.json")
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s and self.process.poll() is None:
            if path.exists() and text in path.read_text():
                return
            time.sleep(0.005)
        raise AssertionError(f"{path} did not come: {self.end()}")

    def end(self, timeout_s: float = 60.0) -> tuple[int, str]:
        """Exit code and what it printed on standard error, once it has ended; killed if it does not."""
        try:
            _, error = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, error = self.process.communicate()
            raise AssertionError(f"it did not end: {error.decode()[-500:]}") from None
        return self.process.returncode, error.decode()[-2000:]

    def left(self) -> list[int]:
        """Processes with the mark that still run, zombies aside."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
                except OSError:
                    continue
        return found

    def nothing_left(self, seconds: float = 10.0) -> bool:
        end_s = time.monotonic() + seconds
        while self.left() and time.monotonic() < end_s:
            time.sleep(0.05)
        return not self.left()


def main(arguments: list[str]) -> int:
    out, worker, limit_s, tasks = Path(arguments[0]), arguments[1], float(arguments[2]), int(arguments[3])
    changes = dict(text.split("=", 1) for text in arguments[4:])
    if size := int(os.environ.get("ARC_TEST_FILE_BYTES", "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    commands = [[sys.executable, "-S", "-E", worker]] * 2
    loaded = parse_tasks(document(tasks), source="tests")
    make = fleet_maker(commands, QUICK, 0, [])
    start_run(loaded, settings_of(limit_s, changes), out, Started(run_start(REAL_CLOCK.now())), fleet_of=make)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
