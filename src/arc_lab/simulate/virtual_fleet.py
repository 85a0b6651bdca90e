"""Workers in virtual time: a stand-in for `fleet.Fleet` whose workers take time, find answers and fail, and do no work.

The coordinator and the policy above it are those of a real run. Everything random comes from one generator.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from arc_lab.simulate.faults import Faults
from arc_ttt.deadline import TURN_S, VirtualClock
from arc_ttt.fleet.patience import PATIENCE, Patience
from arc_ttt.fleet.workers import Death, Message
from arc_ttt.protocol.jobs import JOINT, MOST_FREE, SYNTHESIS, TTT, Outcome
from arc_ttt.schedule.cost import CostModel
from arc_ttt.schedule.shapes import prompt_tokens, training_shape
from arc_ttt.tasks.grids import Task

LONG_LOAD_S = 1200.0
SLOW_KILL_S = 30.0
SEARCH_LOAD_S = 1.0  # from the start of a worker of synthesis until it is ready: NumPy and SciPy
MORE_BY_TIME = 0.1  # power of the CPU seconds by which the share of tasks with a sure program grows


@dataclass(slots=True)
class _Device:
    """One slot: its worker, if it has one, and its luck."""

    slowness: float = 1.0
    lost_s: float = math.inf
    generation: int = 0  # of its worker; what belongs to an earlier one no longer happens
    alive: bool = False
    ready: bool = False
    retired: bool = False
    proved: bool = False  # a worker of it has finished a job since it last rested
    not_before_s: float = 0.0
    deaths_s: deque[float] = field(default_factory=deque)
    begun_s: float = 0.0  # of what it does now
    working: bool = False
    hangs_s: float = math.inf  # from when on it is silent
    kept_s: float = 0.0  # of jobs that ended by themselves
    slow_loads: int = 0
    killed_s: float = 0.0
    loaded_s: float = 0.0


class VirtualFleet:
    """Devices, and workers of synthesis in the slots behind them, that answer the coordinator in virtual time.

    truth: what jobs really take, before each device's slowness and noise. cuts: whether workers end a job at its
    deadline; without it they go on, as a worker stuck in a long call would. searchers: how many workers synthesize;
    they crash and hang like devices, but are never lost or slow. sure: share of tasks for which one CPU second finds a
    program that is taken for right.
    """

    def __init__(
        self,
        devices: int,
        tasks: Mapping[str, Task],
        truth: CostModel,
        clock: VirtualClock,
        faults: Faults,
        rng: random.Random,
        *,
        limit_s: float,
        load_s: float = 60.0,
        cuts: bool = True,
        searchers: int = 0,
        sure: float = 0.0,
        patience: Patience = PATIENCE,
    ) -> None:
        self.tasks, self.truth, self.clock, self.faults, self.rng = tasks, truth, clock, faults, rng
        self.load_s, self.cuts, self.patience, self.sure = load_s, cuts, patience, sure
        self.deadline_s = math.inf
        self.devices = [
            _Device(
                rng.uniform(1.2, 3.0) if rng.random() < faults.slow else 1.0,
                rng.uniform(0, limit_s) if rng.random() < faults.lost else math.inf,
            )
            for _ in range(devices)
        ]
        self._workers = self.devices + [_Device() for _ in range(searchers)]  # by slot
        by_length = sorted(tasks, key=lambda task_id: -prompt_tokens(tasks[task_id]))
        self.too_long = set(by_length[: round(faults.long_task * len(tasks))])
        self._stretch = rng.uniform(1.0, faults.stretch)
        self._talent = {task_id: rng.random() for task_id in tasks}  # how likely a view of a task answers right
        self._ease = {task_id: rng.random() if searchers else 1.0 for task_id in tasks}  # of a task for synthesis
        self._events: list[tuple[float, int, int, int, Message | Death | None]] = []
        self._order = itertools.count()

    # What the coordinator asks and orders

    @property
    def slots(self) -> list[int]:
        return [slot for slot, device in enumerate(self._workers) if device.alive or not device.retired]

    def ready(self, slot: int) -> bool:
        return self._workers[slot].ready

    def alive(self, slot: int) -> bool:
        return self._workers[slot].alive

    def greet(self, hello: Mapping[str, Any]) -> None:
        self.deadline_s = float(hello["deadline"])

    def forgive(self, slot: int) -> None:
        device = self._workers[slot]
        device.deaths_s.clear()
        device.retired = False

    def retire(self, slot: int) -> None:
        self._workers[slot].retired = True

    def start(self, slot: int) -> bool:
        device, now = self._workers[slot], self.clock.now()
        if device.retired or now < device.not_before_s:
            return False
        device.alive, device.begun_s = True, now
        device.generation += 1
        load_s = self.load_s if slot < len(self.devices) else SEARCH_LOAD_S
        seconds = load_s * self.rng.uniform(0.8, 1.3)
        if slot < len(self.devices) and self.rng.random() < self.faults.slow_load:
            seconds = LONG_LOAD_S
        if now >= device.lost_s:
            self._at(now + 2.0, slot, Death(slot, "exit code 10: device lost", final=False))
        elif seconds > (patience_s := self.patience.loading_s(device.slow_loads)):
            device.slow_loads += 1
            cause = f"silent for {patience_s:.0f} s"
            self._at(now + patience_s + self.patience.hang_s, slot, Death(slot, cause, final=False))
        else:
            self._at(now + seconds, slot, Message(slot, {"type": "ready", "device": "virtual", "dtype": "none"}))
        return True

    def send(self, slot: int, body: Mapping[str, Any]) -> None:
        if body["type"] == "job":
            device = self._workers[slot]
            device.working, device.begun_s, device.hangs_s = True, self.clock.now(), math.inf
            for after_s, event in self._work(slot, body):
                self._at(device.begun_s + after_s, slot, event)

    def cancel(self, slot: int, cause: str) -> None:
        """The job ends within a step or a row, or with a worker that does not listen."""
        device = self._workers[slot]
        if device.working:
            device.generation += 1  # what the job would still have said is not said
            seconds = self.clock.now() - device.begun_s
            done = {"type": "done", "outcome": Outcome.CUT, "reason": "", "seconds": seconds, "train_s": seconds}
            killed_s = self.clock.now() + self.patience.cancel_s + self.patience.term_s
            if self.cuts and self.clock.now() < device.hangs_s and self.rng.random() >= self.faults.deaf:
                self._at(self.clock.now() + self.rng.expovariate(1.0), slot, Message(slot, done))
            else:
                self._at(killed_s, slot, Death(slot, cause, final=False))

    def kill(self, slot: int, cause: str) -> Death:
        """The worker of a slot is dead from now on. It does not count as one of its deaths."""
        death, device = Death(slot, cause, final=False), self._workers[slot]
        device.generation += 1
        self._happen(device, death, counts=False)
        return death

    def poll(self, timeout_s: float) -> list[Message | Death]:
        """What happens next, at the latest after `timeout_s`, and what else does while the coordinator turns to it."""
        until_s = self.clock.now() + timeout_s
        happened: list[Message | Death] = []
        woken = False
        while self._events and self._events[0][0] <= (self.clock.now() if woken else until_s):
            at_s, _, slot, generation, event = heapq.heappop(self._events)
            device = self._workers[slot]
            if generation != device.generation and event is not None:
                continue
            self.clock.at_s = max(self.clock.at_s, at_s)
            if not woken:
                self._turn()
                woken = True
            if event is not None:
                self._happen(device, event)
                happened.append(event)
        if not woken:
            self.clock.at_s = max(self.clock.at_s, until_s)
            self._turn()
        return happened

    def stop(self) -> None:
        """Killing is waited for a moment only, even where a process does not go."""
        slow = self.rng.random() < self.faults.slow_kill
        self.clock.advance(self.patience.close_s if slow else 0.02)

    # How it is done

    def _at(self, at_s: float, slot: int, event: Message | Death | None) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), slot, self._workers[slot].generation, event))

    def _turn(self) -> None:
        """A turn of the coordinator's loop takes time too, now and then as long as it may."""
        self.clock.advance(TURN_S if self.rng.random() < 0.001 else 0.002)

    def _happen(self, device: _Device, event: Message | Death, *, counts: bool = True) -> None:
        now = self.clock.now()
        spent_s = now - device.begun_s
        if isinstance(event, Death):
            if device.working or not device.ready:
                device.killed_s += spent_s
            device.alive = device.ready = device.working = False
            while device.deaths_s and now - device.deaths_s[0] > self.patience.window_s:
                device.deaths_s.popleft()
            if counts:
                device.deaths_s.append(now)
            rest_s = 0.0
            if len(device.deaths_s) >= self.patience.deaths:
                if device.proved:
                    device.deaths_s.clear()
                    device.proved, rest_s = False, self.patience.window_s
                else:
                    device.retired = True
            leaving_s = self.rng.uniform(0, SLOW_KILL_S) if self.rng.random() < self.faults.slow_kill else 0.0
            backoff_s = self.patience.backoff_s * 2 ** max(0, len(device.deaths_s) - 1) if counts else 0.0
            device.not_before_s = now + max(leaving_s, backoff_s, rest_s)
            event.final = device.retired
            self._at(device.not_before_s, event.slot, None)
        elif event.body["type"] == "ready":
            device.ready = True
            device.loaded_s += spent_s
        elif event.body["type"] == "done":
            device.working, device.proved = False, True
            device.kept_s += spent_s

    def _work(self, slot: int, body: Mapping[str, Any]) -> Iterator[tuple[float, Message | Death]]:
        """What a worker says about a job, and after how many seconds; a fault ends it before it ends itself."""
        fault_s, seen_s, fault = self._fault(slot)
        kinds = {JOINT: self._join, SYNTHESIS: self._search}
        for after_s, event in kinds.get(body["kind"], self._do)(slot, body):
            if after_s >= fault_s:
                if seen_s > fault_s:
                    self._workers[slot].hangs_s = self.clock.now() + fault_s
                yield seen_s, fault
                return
            yield after_s, event

    def _fault(self, slot: int) -> tuple[float, float, Death]:
        """The next fault of a device: in how many seconds it comes, in how many it is seen, and as what."""
        faults, rng = self.faults, self.rng
        crash_s = rng.expovariate(faults.crashes / 3600) if faults.crashes else math.inf
        hang_s = rng.expovariate(faults.hangs / 3600) if faults.hangs else math.inf
        lost_s = self._workers[slot].lost_s - self.clock.now()
        first = min(crash_s, hang_s, lost_s)
        if first == hang_s:
            silence_s = self.patience.first_s if rng.random() < 0.05 else self.patience.round_s
            cause = f"silent for {silence_s:.0f} s"
            return hang_s, hang_s + silence_s + self.patience.hang_s, Death(slot, cause, final=False)
        cause = "signal 9" if first == crash_s else "device lost"
        return max(0.0, first), max(0.0, first), Death(slot, cause, final=False)

    def _left_s(self, body: Mapping[str, Any]) -> float:
        """How long a job may go on."""
        return min(body.get("until", math.inf), self.deadline_s) - self.clock.now() if self.cuts else math.inf

    def _join(self, slot: int, body: Mapping[str, Any]) -> Iterator[tuple[float, Message | Death]]:
        """A stage over all tasks takes the time that it is given."""
        seconds = min(body["until"], self.deadline_s) - self.clock.now()
        yield seconds, Message(slot, {"type": "done", "outcome": Outcome.FINISHED, "reason": "", "seconds": seconds})

    def _search(self, slot: int, body: Mapping[str, Any]) -> Iterator[tuple[float, Message | Death]]:
        """Programs for a task: sure ones come early, others at the end of the time."""
        task, limit_s = self.tasks[body["task_id"]], body["cpu_limit_s"]
        sure = self._ease[task.task_id] < self.sure * limit_s**MORE_BY_TIME
        seconds = limit_s * (self.rng.uniform(0.05, 0.9) if sure else self.rng.uniform(0.8, 1.1))
        for index in range(len(task.tests)):
            colour = 1 if self.rng.random() < (0.93 if sure else 0.2) else self.rng.randint(2, 9)
            program = {"grid": [[colour]], "text": "made up", "confidence": 0.95 if sure else 0.2, "fits_all": True}
            found = {"task_id": task.task_id, "test_index": index, "programs": [program]}
            yield seconds, Message(slot, {"type": "programs", **found})
        yield seconds, Message(slot, {"type": "done", "outcome": Outcome.FINISHED, "reason": "", "seconds": seconds})

    def _do(self, slot: int, body: Mapping[str, Any]) -> Iterator[tuple[float, Message | Death]]:
        task, kind, share = self.tasks[body["task_id"]], body["kind"], body.get("share", 1.0)
        train_s, decode_s = (part * self._workers[slot].slowness for part in self.truth.parts(task, kind, share))
        train_s *= self._stretch * self.rng.lognormvariate(0, self.faults.train_noise)
        decode_s *= self.rng.lognormvariate(0, self.faults.decode_noise)
        decode_s *= 5 if self.rng.random() < self.faults.outlier else 1
        outcome, reason, trained = Outcome.FINISHED, "", 1.0
        if kind == TTT and task.task_id in self.too_long:
            if self.rng.random() < 0.2:
                yield 0.1 * train_s, Death(slot, "signal 9", final=False)
                return
            outcome, reason, trained = Outcome.FAILED, "out of memory in training, the base model answers", 0.0
            train_s *= 0.05
        left_s = self._left_s(body)
        free_s = min(body.get("decode_s", 0.0), MOST_FREE * max(0.0, left_s))
        if train_s > left_s - free_s > 0:
            outcome, trained = Outcome.CUT, (left_s - free_s) / train_s
            train_s = left_s - free_s
        for index in range(len(task.tests)):
            after_s = train_s + decode_s * (index + 1) / len(task.tests)
            if after_s > left_s:
                outcome, decode_s = Outcome.CUT, max(0.0, left_s - train_s)
                break
            yield after_s, Message(slot, {"type": "candidates", **self._answers(task, index, kind, trained, share)})
        late_s = self.rng.expovariate(1.0) if outcome == Outcome.CUT else 0.1  # a step or a row more
        seen: dict[str, Any] = {"outcome": outcome, "reason": reason, "seconds": train_s + decode_s + late_s}
        if trained and train_s:
            ttt = self.truth.settings.ttt
            whole, length, _ = training_shape(task, ttt)
            count = trained * min(whole, share * ttt.max_sequences * ttt.epochs)
            tokens = count * length * self._stretch
            seen |= {"train_s": train_s, "train_tokens": tokens, "steps": count / ttt.batch_sequences}
        yield train_s + decode_s + late_s, Message(slot, {"type": "done", **seen})

    def _answers(self, task: Task, index: int, kind: str, trained: float, share: float) -> dict[str, Any]:
        """Two views' answers: the right one is colour 1; more training finds it more often."""
        chance = self._talent[task.task_id] * (0.2 if kind != TTT else 0.4 + 0.6 * min(1.0, trained * share))
        colours = [1 if self.rng.random() < chance else self.rng.randint(2, 9) for _ in range(2)]
        candidates = [
            {"grid": [[colour]], "group": "identity", "nll": 1.0, "view": view} for view, colour in enumerate(colours)
        ]
        scored = [{"grid": [[colour]], "nll_by_view": [colour / 10]} for colour in sorted(set(colours))]
        found = {"candidates": candidates, "scored": scored, "trained": trained}
        return {"task_id": task.task_id, "test_index": index, **found}
