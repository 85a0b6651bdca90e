"""Worker processes: start, feed, watch and kill them.

Each slot has one plain subprocess in its own process group, with a private pair of pipes that carry JSON lines.
Nothing here ever blocks: reads and writes are bounded, and no kill waits for a death. A slot goes through

    (start) -> starting -> idle <-> busy -> cancelling -> ending -> gone -> (start again, later each time) or retired

where "ending" means that SIGTERM was sent and SIGKILL comes next.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import statistics
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

from arc_ttt.deadline import REAL_CLOCK, Clock
from arc_ttt.fleet.patience import PATIENCE, Patience, Record
from arc_ttt.fleet.pipes import WorkerPipe
from arc_ttt.fleet.workers import Death, Event, Message
from arc_ttt.protocol.jobs import CallBack, DeathKind
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST, EXIT_FATAL, Done, FromWorker, Progress, Ready, read_message
from arc_ttt.protocol.orders import PARENT, Cancel, Hello, Order

LOG_BYTES = 8 * 1024 * 1024
"""A worker's log is emptied when it is longer than this."""
LOG_EVERY_S = 1.0
"""How often the length of the logs is looked at."""

_EXITS = {EXIT_DEVICE_LOST: DeathKind.DEVICE_LOST, EXIT_FATAL: DeathKind.MODEL_REFUSED}
_EXIT_MEANS = {EXIT_DEVICE_LOST: "device lost", EXIT_FATAL: "could not load"}


class _State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    CANCELLING = "cancelling"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class _End:
    """Why a worker is being ended."""

    kind: DeathKind
    cause: str


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: WorkerPipe
    heard_s: float
    state: _State = _State.STARTING
    until_s: float = float("inf")
    """When the next step of its end is due."""
    end: _End | None = None
    job: int | None = None
    """The number of its last job."""
    phase: str = ""
    """The phase of that job, as the worker last said."""
    gaps_s: dict[str, deque[float]] = field(default_factory=dict)
    """Seconds of its last silences, by the phase that was under way."""

    def follow(self, message: FromWorker, now_s: float) -> None:
        """Change the state by what the worker says."""
        if isinstance(message, Ready) and self.state is _State.STARTING:
            self.state = _State.IDLE
        elif isinstance(message, Done) and self.state in (_State.BUSY, _State.CANCELLING):
            if message.job in (None, self.job):  # another number is that of a job that ended long ago
                self.state, self.until_s, self.end = _State.IDLE, float("inf"), None
        elif isinstance(message, Progress):
            self.gaps_s.setdefault(self.phase, deque(maxlen=50)).append(now_s - self.heard_s)
            self.phase, self.heard_s = message.phase, now_s

    def usual_gap_s(self) -> float | None:
        """The median of its silences in the phase that is under way; None before the first."""
        gaps_s = self.gaps_s.get(self.phase)
        return statistics.median(gaps_s) if gaps_s else None


@dataclass(slots=True)
class _Slot:
    record: Record
    not_before_s: float = float("-inf")
    leaving: subprocess.Popen[bytes] | None = None
    """A process that was killed and has not gone away yet."""
    leaving_since_s: float = 0.0
    slow_loads: int = 0


class Fleet:
    """A fixed number of slots, each with at most one live worker process.

    Args:
        commands: the command line of each slot.
        hello: the first line sent to each worker.
        environments: what each slot adds to the environment.
        log: a folder for what workers print; they speak on a pipe of their own.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        hello: Hello,
        environments: Sequence[Mapping[str, str]],
        log: Path,
        clock: Clock = REAL_CLOCK,
        patience: Patience = PATIENCE,
    ) -> None:
        self._commands, self._environments = commands, environments
        self._hello, self._log, self._clock, self.patience = hello, log, clock, patience
        self._workers: dict[int, _Worker] = {}
        self._slots = [_Slot(Record(patience)) for _ in commands]
        self._unreported: list[Event] = []
        self._selector = selectors.DefaultSelector()
        self._logs_looked_at_s = clock.now()

    # What the coordinator asks and orders

    @property
    def slots(self) -> list[int]:
        """Slots that have a worker, or may get one again."""
        return [number for number, slot in enumerate(self._slots) if number in self._workers or not slot.record.retired]

    def ready(self, slot: int) -> bool:
        """Whether the worker of a slot can take a job, or is on one that it may finish."""
        return slot in self._workers and self._workers[slot].state in (_State.IDLE, _State.BUSY)

    def alive(self, slot: int) -> bool:
        return slot in self._workers

    def pid(self, slot: int) -> int:
        """The process of a slot that is alive."""
        return self._workers[slot].process.pid

    def set_hello(self, hello: Hello) -> None:
        """Send `hello` as the first line to workers that are started from now on."""
        self._hello = hello

    def clear_deaths(self, slot: int) -> None:
        """Forget earlier deaths in a slot: its worker has finished a job, or what they came from is gone."""
        self._slots[slot].record.clear()

    def retire(self, slot: int) -> None:
        """Never start a worker in this slot again."""
        self._slots[slot].record.retired = True

    def start(self, slot: int) -> bool:
        """Start the worker of a slot. False if it is too early after a death, if the last one is not gone yet, if the
        system refuses, or if the slot is retired."""
        state, now = self._slots[slot], self._clock.now()
        if state.record.retired or state.leaving is not None or now < state.not_before_s:
            return False
        try:
            process = self._spawn(slot)
        except OSError as error:
            wait_s = max(state.record.count(now), self.patience.refused_s)
            state.not_before_s = now + wait_s
            cause = f"{DeathKind.NOT_STARTED}: {error.strerror or error}"
            self._unreported.append(Death(slot, DeathKind.NOT_STARTED, cause, final=state.record.retired))
            return False
        worker = self._workers[slot] = _Worker(process, WorkerPipe(process, now), now)
        self._selector.register(worker.pipe.stdout, selectors.EVENT_READ, slot)
        worker.pipe.send(self._hello.to_json())
        return True

    def send(self, slot: int, order: Order) -> None:
        """Give the worker a job. Until its end it must not be silent for longer than `patience` says."""
        worker = self._workers[slot]
        worker.state, worker.heard_s, worker.phase, worker.job = _State.BUSY, self._clock.now(), "", order.id
        worker.pipe.send(order.to_json())

    def cancel(self, slot: int, cause: CallBack) -> None:
        """Ask the worker to end its job, which leaves it alive; after `cancel_s` SIGTERM, after `term_s` SIGKILL."""
        worker = self._workers.get(slot)  # it may have died in the poll whose events are being handled
        if worker is not None and worker.state is _State.BUSY:
            worker.pipe.send(Cancel().to_json())
            worker.state, worker.end = _State.CANCELLING, _End(DeathKind.CALLED_BACK, cause)
            listens_s = max(self.patience.cancel_s, 2 * (worker.usual_gap_s() or 0.0))
            worker.until_s = self._clock.now() + listens_s

    def kill(self, slot: int, kind: DeathKind) -> Death:
        """Kill the worker of a slot now. It does not count as one of its deaths, for it is not its fault."""
        return self._bury(slot, _End(kind, str(kind)), counts=False)

    def poll(self, timeout_s: float) -> list[Event]:
        """What happened, waiting at most `timeout_s` for something to happen."""
        self._forget_gone()
        self._cap_logs()
        events, self._unreported = self._unreported, []
        if not self._workers:
            self._clock.sleep(timeout_s)
            return events
        for slot, selected in self._select(timeout_s):
            if selected & selectors.EVENT_WRITE:
                self._workers[slot].pipe.flush()
            if selected & selectors.EVENT_READ:
                events += self._read(slot)
        for slot in list(self._workers):
            events += self._watch(slot)
        return events

    def stop(self) -> None:
        """Kill all workers and everything they started. Waits a moment for all of them together, never longer."""
        for slot in list(self._workers):
            self._bury(slot, _End(DeathKind.STOPPED, str(DeathKind.STOPPED)))
        until_s = self._clock.now() + self.patience.stop_s
        while any(slot.leaving is not None for slot in self._slots) and self._clock.now() < until_s:
            self._clock.sleep(0.01)
            self._forget_gone()
        self._selector.close()

    # How it is done

    def _spawn(self, slot: int) -> subprocess.Popen[bytes]:
        output: IO[bytes] | int = subprocess.DEVNULL
        with contextlib.suppress(OSError):  # no log folder: the worker prints to nowhere
            self._log.mkdir(parents=True, exist_ok=True)
            output = self._log_path(slot).open("ab")
        try:
            return subprocess.Popen(
                list(self._commands[slot]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, PARENT: str(os.getpid()), **self._environments[slot]},
                start_new_session=True,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _log_path(self, slot: int) -> Path:
        return self._log / f"worker-{slot}.log"

    def _cap_logs(self) -> None:
        """Empty logs that have grown too long; workers append, so they go on at the start."""
        if self._clock.now() - self._logs_looked_at_s < LOG_EVERY_S:
            return
        self._logs_looked_at_s = self._clock.now()
        for slot in self._workers:
            with contextlib.suppress(OSError):
                if self._log_path(slot).stat().st_size > LOG_BYTES:
                    os.truncate(self._log_path(slot), 0)

    def _select(self, timeout_s: float) -> list[tuple[int, int]]:
        """Slots whose pipes are ready, and for what."""
        full = [(slot, worker.pipe.stdin) for slot, worker in self._workers.items() if worker.pipe.has_outgoing]
        for slot, stdin in full:
            self._selector.register(stdin, selectors.EVENT_WRITE, slot)
        selected = self._selector.select(timeout_s)
        for _, stdin in full:
            self._selector.unregister(stdin)
        ready: dict[int, int] = {}
        for found, mask in selected:
            ready[found.data] = ready.get(found.data, 0) | mask
        return list(ready.items())

    def _read(self, slot: int) -> list[Event]:
        """Take what a worker has said, a bounded amount at a time."""
        worker, now = self._workers[slot], self._clock.now()
        lines, problem = worker.pipe.read()
        events: list[Event] = []
        for line in lines:
            message = read_message(line)
            worker.follow(message, now)
            self._slots[slot].record.proved |= isinstance(message, Done)
            events.append(Message(slot, message))
        if problem:
            return [*events, self._bury(slot, _End(DeathKind.UNREADABLE, problem))]
        if not worker.pipe.open:
            self._selector.unregister(worker.pipe.stdout)
            worker.until_s = now + self.patience.close_s
        worker.heard_s = self._clock.now()
        return events

    def _watch(self, slot: int) -> list[Event]:
        """See whether a worker has ended, floods, is silent for too long, or is due for the next step of its end."""
        worker, now = self._workers[slot], self._clock.now()
        if _has_ended(worker.process):
            events = self._read(slot) if worker.pipe.open else []  # a child of its own may hold its pipe open
            return [*events, self._bury(slot, worker.end)] if slot in self._workers else events
        if worker.pipe.floods(now):
            return [self._bury(slot, _End(DeathKind.UNREADABLE, "a flood of output"))]
        if now >= worker.until_s:
            if not worker.pipe.open:
                return [self._bury(slot, worker.end or _End(DeathKind.UNREADABLE, "closed its output"))]
            if worker.state is _State.ENDING:
                return [self._bury(slot, worker.end)]
            self._terminate(worker, self.patience.term_s)
        elif worker.state in (_State.STARTING, _State.BUSY) and now - worker.heard_s > self._allowed_s(slot):
            place = f" in {worker.phase}" if worker.phase else ""
            worker.end = _End(DeathKind.SILENT, f"silent for {self._allowed_s(slot):.0f} s{place}")
            self._slots[slot].slow_loads += worker.state is _State.STARTING
            self._terminate(worker, self.patience.hang_s)
        return []

    def _allowed_s(self, slot: int) -> float:
        """How long the worker of a slot may be silent now."""
        worker = self._workers[slot]
        if worker.state is _State.STARTING:
            return self.patience.loading_s(self._slots[slot].slow_loads)
        usual_s = worker.usual_gap_s()
        if usual_s is None:
            return self.patience.first_s
        floor_s = self.patience.step_s if worker.phase == "train" else self.patience.round_s
        return max(floor_s, self.patience.times * usual_s)

    def _terminate(self, worker: _Worker, grace_s: float) -> None:
        _kill_group(worker.process, signal.SIGTERM)
        worker.state, worker.until_s = _State.ENDING, self._clock.now() + grace_s

    def _bury(self, slot: int, end: _End | None, *, counts: bool = True) -> Death:
        """Kill what is left of a worker and its process group, and forget it without waiting for its end.

        end: why it is ended; None if it has ended by itself.
        """
        worker, state, now = self._workers.pop(slot), self._slots[slot], self._clock.now()
        if worker.pipe.open:
            self._selector.unregister(worker.pipe.stdout)
        _kill_group(worker.process, signal.SIGKILL)
        code = worker.process.poll()
        if code is None:
            state.leaving, state.leaving_since_s = worker.process, now
        worker.pipe.close()
        if counts:
            state.not_before_s = now + state.record.count(now)
        end = end or _end_of(code)
        return Death(slot, end.kind, end.cause, final=state.record.retired)

    def _forget_gone(self) -> None:
        """Forget killed processes that are gone, and give up the slots of those that do not go."""
        for slot, state in enumerate(self._slots):
            if state.leaving is not None:
                if state.leaving.poll() is not None:
                    state.leaving = None
                elif self._clock.now() - state.leaving_since_s > self.patience.gone_s and not state.record.retired:
                    state.record.retired = True
                    cause = "its process does not go away"
                    self._unreported.append(Death(slot, DeathKind.STUCK, cause, final=True))


def _kill_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without waiting for it: until then no other process group can get its number."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def _end_of(code: int | None) -> _End:
    """What a process died of that ended by itself."""
    if code is not None and code < 0:
        return _End(DeathKind.CRASHED, f"signal {-code}")
    meaning = _EXIT_MEANS.get(code, "") if code is not None else ""
    kind = _EXITS.get(code, DeathKind.CRASHED) if code is not None else DeathKind.CRASHED
    return _End(kind, f"exit code {code}" + (f": {meaning}" if meaning else ""))
