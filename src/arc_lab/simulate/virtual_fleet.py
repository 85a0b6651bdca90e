"""Workers in virtual time: they take time, find answers and fail, and do no work. A stand-in for `fleet.Fleet`.

The coordinator and the policy above it are those of a real run. Everything random comes from one generator.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from arc_lab.simulate.faults import Faults
from arc_ttt.deadline import TURN_S, VirtualClock
from arc_ttt.fleet.patience import PATIENCE, Patience, Record
from arc_ttt.fleet.workers import Death, Event, Message
from arc_ttt.protocol.jobs import MOST_FREE, TTT, CallBack, DeathKind, JobKind, Outcome
from arc_ttt.protocol.messages import Done, Found, FoundGrid, Programs, Ready, ScoredGrid
from arc_ttt.protocol.orders import AnswerOrder, Hello, JointOrder, Order, SearchOrder
from arc_ttt.schedule.cost import CostModel
from arc_ttt.schedule.shapes import prompt_tokens, training_shape
from arc_ttt.tasks.grids import Grid, Task, freeze
from arc_ttt.votes.candidates import Program

LONG_LOAD_S = 1200.0
"""Seconds of a load from a slow disk."""
SLOW_KILL_S = 30.0
"""The longest that a killed process takes to go away."""
SEARCH_LOAD_S = 1.0
"""From the start of a searcher until it is ready: NumPy and SciPy."""
MORE_BY_TIME = 0.1
"""The share of tasks with a sure program grows with this power of the CPU seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """What workers run on.

    Args:
        devices: how many devices there are.
        limit_s: of the run; within it devices get lost.
        searchers: workers that synthesize, in the slots behind the devices. They crash and hang like devices, but are
            never lost or slow.
        load_s: seconds of a device worker's start.
        cuts: workers end a job at its deadline; without it they go on, as one that is stuck in a long call would.
        sure: share of tasks for which one CPU second finds a program that is taken for right.
    """

    devices: int
    limit_s: float
    searchers: int = 0
    load_s: float = 60.0
    cuts: bool = True
    sure: float = 0.0


@dataclass(slots=True)
class _Device:
    """One slot: its worker, if it has one, and its luck."""

    record: Record
    slowness: float = 1.0
    lost_s: float = math.inf
    generation: int = 0
    """Of its worker; what belongs to an earlier one no longer happens."""
    alive: bool = False
    ready: bool = False
    not_before_s: float = 0.0
    begun_s: float = 0.0
    """When it began what it does now."""
    working: bool = False
    hangs_s: float = math.inf
    """From this moment on it is silent."""
    kept_s: float = 0.0
    """Seconds of jobs that ended by themselves."""
    slow_loads: int = 0
    killed_s: float = 0.0
    loaded_s: float = 0.0


class VirtualFleet:
    """Devices, and searchers in the slots behind them, that answer the coordinator in virtual time.

    Args:
        machine: what they run on.
        tasks: by their ids.
        truth: what jobs really take, before each device's slowness and noise.
        clock: the virtual time.
        faults: how often what goes wrong.
        rng: the one source of all chance.
        patience: limits of the workers.
    """

    def __init__(
        self,
        machine: VirtualMachine,
        tasks: Mapping[str, Task],
        truth: CostModel,
        clock: VirtualClock,
        faults: Faults,
        rng: random.Random,
        patience: Patience = PATIENCE,
    ) -> None:
        self.machine, self.tasks, self.truth, self.clock, self.faults = machine, tasks, truth, clock, faults
        self.rng, self.patience = rng, patience
        self.deadline_s = math.inf
        self.devices = [
            _Device(
                Record(patience),
                rng.uniform(1.2, 3.0) if rng.random() < faults.slow else 1.0,
                rng.uniform(0, machine.limit_s) if rng.random() < faults.lost else math.inf,
            )
            for _ in range(machine.devices)
        ]
        self._workers = self.devices + [_Device(Record(patience)) for _ in range(machine.searchers)]  # by slot
        by_length = sorted(tasks, key=lambda task_id: -prompt_tokens(tasks[task_id]))
        self.too_long = set(by_length[: round(faults.long_task * len(tasks))])
        self._stretch = rng.uniform(1.0, faults.stretch)
        self._talent = {task_id: rng.random() for task_id in tasks}  # how likely a view of a task answers right
        self._ease = {task_id: rng.random() if machine.searchers else 1.0 for task_id in tasks}  # for synthesis
        self._events: list[tuple[float, int, int, int, Event | None]] = []
        self._order = itertools.count()

    # What the coordinator asks and orders

    @property
    def slots(self) -> list[int]:
        return [slot for slot, device in enumerate(self._workers) if device.alive or not device.record.retired]

    def ready(self, slot: int) -> bool:
        return self._workers[slot].ready

    def alive(self, slot: int) -> bool:
        return self._workers[slot].alive

    def set_hello(self, hello: Hello) -> None:
        self.deadline_s = hello.deadline.at_s

    def clear_deaths(self, slot: int) -> None:
        self._workers[slot].record.clear()

    def retire(self, slot: int) -> None:
        self._workers[slot].record.retired = True

    def start(self, slot: int) -> bool:
        device, now = self._workers[slot], self.clock.now()
        if device.record.retired or now < device.not_before_s:
            return False
        device.alive, device.begun_s = True, now
        device.generation += 1
        load_s = self.machine.load_s if slot < len(self.devices) else SEARCH_LOAD_S
        seconds = load_s * self.rng.uniform(0.8, 1.3)
        if slot < len(self.devices) and self.rng.random() < self.faults.slow_load:
            seconds = LONG_LOAD_S
        if now >= device.lost_s:
            self._at(now + 2.0, slot, Death(slot, DeathKind.DEVICE_LOST, "exit code 10: device lost", final=False))
        elif seconds > (patience_s := self.patience.loading_s(device.slow_loads)):
            device.slow_loads += 1
            cause = f"silent for {patience_s:.0f} s"
            death = Death(slot, DeathKind.SILENT, cause, final=False)
            self._at(now + patience_s + self.patience.hang_s, slot, death)
        else:
            self._at(now + seconds, slot, Message(slot, Ready("virtual", "none")))
        return True

    def send(self, slot: int, order: Order) -> None:
        device = self._workers[slot]
        device.working, device.begun_s, device.hangs_s = True, self.clock.now(), math.inf
        for after_s, event in self._work(slot, order):
            self._at(device.begun_s + after_s, slot, event)

    def cancel(self, slot: int, cause: CallBack) -> None:
        """The job ends within a step or a row, or with a worker that does not listen."""
        device = self._workers[slot]
        if device.working:
            device.generation += 1  # what the job would still have said is not said
            seconds = self.clock.now() - device.begun_s
            killed_s = self.clock.now() + self.patience.cancel_s + self.patience.term_s
            if self.machine.cuts and self.clock.now() < device.hangs_s and self.rng.random() >= self.faults.deaf:
                done = Done(Outcome.CUT, seconds=seconds, train_s=seconds)
                self._at(self.clock.now() + self.rng.expovariate(1.0), slot, Message(slot, done))
            else:
                self._at(killed_s, slot, Death(slot, DeathKind.CALLED_BACK, cause, final=False))

    def kill(self, slot: int, kind: DeathKind) -> Death:
        """The worker of a slot is dead from now on. It does not count as one of its deaths."""
        death, device = Death(slot, kind, str(kind), final=False), self._workers[slot]
        device.generation += 1
        return self._bury(device, death, counts=False)

    def poll(self, timeout_s: float) -> list[Event]:
        """What happens next, at the latest after `timeout_s`, and what else does while the coordinator turns to it."""
        until_s = self.clock.now() + timeout_s
        happened: list[Event] = []
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
                happened.append(self._happen(device, event))
        if not woken:
            self.clock.at_s = max(self.clock.at_s, until_s)
            self._turn()
        return happened

    def stop(self) -> None:
        """Killing is waited for a moment only, even where a process does not go."""
        slow = self.rng.random() < self.faults.slow_kill
        self.clock.advance(self.patience.close_s if slow else 0.02)

    # How it is done

    def _at(self, at_s: float, slot: int, event: Event | None) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), slot, self._workers[slot].generation, event))

    def _turn(self) -> None:
        """A turn of the coordinator's loop takes time too, now and then as long as it may."""
        self.clock.advance(TURN_S if self.rng.random() < 0.001 else 0.002)

    def _happen(self, device: _Device, event: Event) -> Event:
        """Let a device follow what happens in it. Returns the event as the coordinator sees it."""
        spent_s = self.clock.now() - device.begun_s
        if isinstance(event, Death):
            return self._bury(device, event)
        if isinstance(event.body, Ready):
            device.ready = True
            device.loaded_s += spent_s
        elif isinstance(event.body, Done):
            device.working, device.record.proved = False, True
            device.kept_s += spent_s
        return event

    def _bury(self, device: _Device, death: Death, *, counts: bool = True) -> Death:
        now = self.clock.now()
        if device.working or not device.ready:
            device.killed_s += now - device.begun_s
        device.alive = device.ready = device.working = False
        wait_s = device.record.count(now) if counts else 0.0
        leaving_s = self.rng.uniform(0, SLOW_KILL_S) if self.rng.random() < self.faults.slow_kill else 0.0
        device.not_before_s = now + max(leaving_s, wait_s)
        self._at(device.not_before_s, death.slot, None)
        return replace(death, final=device.record.retired)

    def _work(self, slot: int, order: Order) -> Iterator[tuple[float, Event]]:
        """What a worker says about a job, and after how many seconds; a fault ends it before it ends itself."""
        fault_s, seen_s, fault = self._fault(slot)
        for after_s, event in self._lines(slot, order):
            if after_s >= fault_s:
                if seen_s > fault_s:
                    self._workers[slot].hangs_s = self.clock.now() + fault_s
                yield seen_s, fault
                return
            yield after_s, event

    def _lines(self, slot: int, order: Order) -> Iterator[tuple[float, Event]]:
        if isinstance(order, JointOrder):
            return self._join(slot, order)
        return self._search(slot, order) if isinstance(order, SearchOrder) else self._answer(slot, order)

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
            seen_s = hang_s + silence_s + self.patience.hang_s
            return hang_s, seen_s, Death(slot, DeathKind.SILENT, cause, final=False)
        if first == crash_s:
            death = Death(slot, DeathKind.CRASHED, "signal 9", final=False)
        else:
            death = Death(slot, DeathKind.DEVICE_LOST, "device lost", final=False)
        return max(0.0, first), max(0.0, first), death

    def _left_s(self, order: Order) -> float:
        """How long a job may go on."""
        return min(order.deadline.at_s, self.deadline_s) - self.clock.now() if self.machine.cuts else math.inf

    def _join(self, slot: int, order: JointOrder) -> Iterator[tuple[float, Event]]:
        """A stage over all tasks takes the time that it is given."""
        seconds = min(order.deadline.at_s, self.deadline_s) - self.clock.now()
        yield seconds, Message(slot, Done(Outcome.FINISHED, seconds=seconds))

    def _search(self, slot: int, order: SearchOrder) -> Iterator[tuple[float, Event]]:
        """Programs for a task: sure ones come early, others at the end of the time."""
        task, limit_s = order.task, order.cpu_limit_s
        sure = self._ease[task.task_id] < self.machine.sure * limit_s**MORE_BY_TIME
        seconds = limit_s * (self.rng.uniform(0.05, 0.9) if sure else self.rng.uniform(0.8, 1.1))
        for index in range(len(task.tests)):
            colour = 1 if self.rng.random() < (0.93 if sure else 0.2) else self.rng.randint(2, 9)
            program = Program(index, _cell(colour), "made up", 0.95 if sure else 0.2, fits_all=True)
            yield seconds, Message(slot, Programs(task.task_id, index, [program]))
        yield seconds, Message(slot, Done(Outcome.FINISHED, seconds=seconds))

    def _answer(self, slot: int, order: AnswerOrder) -> Iterator[tuple[float, Event]]:
        task, kind, share = order.task, order.kind, order.effort.share
        train_s, decode_s = (part * self._workers[slot].slowness for part in self.truth.parts(task, kind, share))
        train_s *= self._stretch * self.rng.lognormvariate(0, self.faults.train_noise)
        decode_s *= self.rng.lognormvariate(0, self.faults.decode_noise)
        decode_s *= 5 if self.rng.random() < self.faults.outlier else 1
        outcome, reason, trained = Outcome.FINISHED, "", 1.0
        if kind == TTT and task.task_id in self.too_long:
            if self.rng.random() < 0.2:
                yield 0.1 * train_s, Death(slot, DeathKind.CRASHED, "signal 9", final=False)
                return
            outcome, reason, trained = Outcome.FAILED, "out of memory in training, the base model answers", 0.0
            train_s *= 0.05
        left_s = self._left_s(order)
        free_s = min(order.effort.decode_s, MOST_FREE * max(0.0, left_s))
        if train_s > left_s - free_s > 0:
            outcome, trained = Outcome.CUT, (left_s - free_s) / train_s
            train_s = left_s - free_s
        for index in range(len(task.tests)):
            after_s = train_s + decode_s * (index + 1) / len(task.tests)
            if after_s > left_s:
                outcome, decode_s = Outcome.CUT, max(0.0, left_s - train_s)
                break
            yield after_s, Message(slot, self._answers(task, index, kind, trained, share))
        late_s = self.rng.expovariate(1.0) if outcome == Outcome.CUT else 0.1  # a step or a row more
        seen: dict[str, float] = {}
        if trained and train_s:
            ttt = self.truth.settings.ttt
            whole, length, _ = training_shape(task, ttt)
            count = trained * min(whole, share * ttt.max_sequences * ttt.epochs)
            tokens = count * length * self._stretch
            seen = {"train_s": train_s, "train_tokens": tokens, "steps": count / ttt.batch_sequences}
        seconds, no_room = train_s + decode_s + late_s, outcome == Outcome.FAILED
        yield seconds, Message(slot, Done(outcome, reason, seconds=seconds, out_of_memory=no_room, **seen))

    def _answers(self, task: Task, index: int, kind: JobKind, trained: float, share: float) -> Found:
        """Two views' answers: the right one is colour 1; more training finds it more often."""
        chance = self._talent[task.task_id] * (0.2 if kind != TTT else 0.4 + 0.6 * min(1.0, trained * share))
        colours = [1 if self.rng.random() < chance else self.rng.randint(2, 9) for _ in range(2)]
        candidates = [FoundGrid(_cell(colour), "identity", 1.0, view) for view, colour in enumerate(colours)]
        scored = [ScoredGrid(_cell(colour), (colour / 10,)) for colour in sorted(set(colours))]
        return Found(task.task_id, index, candidates, scored, trained)


def _cell(colour: int) -> Grid:
    return freeze(np.array([[colour]]))
