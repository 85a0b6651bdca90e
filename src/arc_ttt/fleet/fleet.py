"""Mechanism: start, feed, watch and kill worker processes.

One plain subprocess a device, in its own process group, with a private pair of pipes that carry JSON lines. Nothing
here ever blocks: reads and writes are non-blocking and bounded, and no kill waits for a death. A slot goes through

    (start) -> starting -> idle <-> busy -> cancelling -> ending -> gone -> (start again, later each time) or retired

where ending means SIGTERM was sent and SIGKILL comes next.
"""

from __future__ import annotations

import contextlib
import json
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
from typing import IO, Any

from arc_ttt.deadline import REAL_CLOCK, Clock
from arc_ttt.fleet.patience import PATIENCE, Patience
from arc_ttt.fleet.pipes import FLOOD_BYTES, FLOOD_LINES, FLOOD_S, MAX_LINE_BYTES, READS_A_POLL, parse_line
from arc_ttt.fleet.workers import Death, Message
from arc_ttt.protocol.messages import EXIT_MEANS, PARENT, READ_BYTES, REFUSED, STUCK

LOG_BYTES, LOG_EVERY_S = 8 * 1024 * 1024, 1.0  # a longer log is emptied; how often that is looked at


class _State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    CANCELLING = "cancelling"
    ENDING = "ending"


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    heard_s: float
    state: _State = _State.STARTING
    until_s: float = float("inf")  # when the next step of its end is due
    cause: str = ""  # why it is being ended
    job: Any = None  # the number of its last one
    phase: str = ""  # of its job, as it last said
    gaps_s: dict[str, deque[float]] = field(default_factory=dict)  # of silence, by the phase that was under way
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    counted_s: float = 0.0
    counted_bytes: int = 0
    counted_lines: int = 0
    open: bool = True  # its output has not ended


@dataclass(slots=True)
class _Slot:
    deaths_s: deque[float] = field(default_factory=deque)
    retired: bool = False
    proved: bool = False  # a worker of it has finished a job since it last rested
    not_before_s: float = float("-inf")
    leaving: subprocess.Popen[bytes] | None = None  # killed, and not yet gone
    leaving_since_s: float = 0.0
    slow_loads: int = 0


class Fleet:
    """A fixed number of slots, each with at most one live worker process.

    commands: the command line of each slot. hello: the first line sent to each worker. environments: what each slot
    adds to the environment. log: a folder for what workers print (they speak on a pipe of their own).
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        hello: Mapping[str, Any],
        environments: Sequence[Mapping[str, str]],
        log: Path,
        clock: Clock = REAL_CLOCK,
        patience: Patience = PATIENCE,
    ) -> None:
        self._commands, self._environments = commands, environments
        self._hello, self._log, self._clock, self.patience = dict(hello), log, clock, patience
        self._workers: dict[int, _Worker] = {}
        self._slots = [_Slot() for _ in commands]
        self._unreported: list[Message | Death] = []
        self._selector = selectors.DefaultSelector()
        self._logs_looked_at_s = clock.now()

    # What the coordinator asks and orders

    @property
    def slots(self) -> list[int]:
        """Slots that have, or may get again, a worker."""
        return [number for number, slot in enumerate(self._slots) if number in self._workers or not slot.retired]

    def ready(self, slot: int) -> bool:
        """Whether the worker of a slot can take a job, or is on one that it may finish."""
        return slot in self._workers and self._workers[slot].state in (_State.IDLE, _State.BUSY)

    def alive(self, slot: int) -> bool:
        return slot in self._workers

    def pid(self, slot: int) -> int:
        """The process of a slot that is alive."""
        return self._workers[slot].process.pid

    def greet(self, hello: Mapping[str, Any]) -> None:
        """Send `hello` as the first line to workers that are started from now on."""
        self._hello = dict(hello)

    def forgive(self, slot: int) -> None:
        """Forget earlier deaths in this slot: its worker has finished a job, or what they came from is gone."""
        state = self._slots[slot]
        state.deaths_s.clear()
        state.retired = False

    def retire(self, slot: int) -> None:
        """Never start a worker in this slot again."""
        self._slots[slot].retired = True

    def start(self, slot: int) -> bool:
        """Start the worker of a slot. False if it is too early after a death, if the last one is not gone yet, if the
        system refuses, or if the slot is retired."""
        state, now = self._slots[slot], self._clock.now()
        if state.retired or state.leaving is not None or now < state.not_before_s:
            return False
        try:
            process = self._spawn(slot)
        except OSError as error:
            self._count_death(slot)
            state.not_before_s = max(state.not_before_s, now + self.patience.refused_s)
            self._unreported.append(Death(slot, f"{REFUSED}: {error.strerror or error}", final=state.retired))
            return False
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._workers[slot] = _Worker(process, now, counted_s=now)
        self._selector.register(process.stdout, selectors.EVENT_READ, slot)
        self.send(slot, self._hello)
        return True

    def send(self, slot: int, body: Mapping[str, Any]) -> None:
        """Queue one line for a worker; it goes out as far as the pipe takes it, the rest at later polls.

        From a line of type "job" until the worker's "done" it must not be silent for longer than `patience` says.
        """
        worker = self._workers[slot]
        if body.get("type") == "job":
            worker.state, worker.heard_s, worker.phase = _State.BUSY, self._clock.now(), ""
            worker.job = body.get("id")
        worker.outgoing += json.dumps(dict(body)).encode() + b"\n"
        self._flush(slot)

    def cancel(self, slot: int, cause: str) -> None:
        """Ask the worker to end its job, which leaves it alive; after `cancel_s` SIGTERM, after `term_s` SIGKILL."""
        worker = self._workers.get(slot)  # it may have died in the poll whose events are being handled
        if worker is not None and worker.state is _State.BUSY:
            self.send(slot, {"type": "cancel"})
            worker.state, worker.cause = _State.CANCELLING, cause
            gaps_s = worker.gaps_s.get(worker.phase)
            listens_s = max(self.patience.cancel_s, 2 * statistics.median(gaps_s) if gaps_s else 0.0)
            worker.until_s = self._clock.now() + listens_s

    def kill(self, slot: int, cause: str) -> Death:
        """Kill the worker of a slot now. It does not count as one of its deaths, for it is not its fault."""
        return self._bury(slot, cause, counts=False)

    def poll(self, timeout_s: float) -> list[Message | Death]:
        """What happened, waiting at most `timeout_s` for something to happen."""
        self._let_go()
        self._cap_logs()
        events, self._unreported = self._unreported, []
        if not self._workers:
            self._clock.sleep(timeout_s)
            return events
        for slot, selected in self._select(timeout_s):
            if selected & selectors.EVENT_WRITE:
                self._flush(slot)
            if selected & selectors.EVENT_READ:
                events += self._read(slot)
        for slot in list(self._workers):
            events += self._watch(slot)
        return events

    def stop(self) -> None:
        """Kill all workers and everything they started. Waits a moment for all of them together, never longer."""
        for slot in list(self._workers):
            self._bury(slot, "stopped")
        until_s = self._clock.now() + self.patience.stop_s
        while any(slot.leaving is not None for slot in self._slots) and self._clock.now() < until_s:
            self._clock.sleep(0.01)
            self._let_go()
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
        full = [(slot, worker.process.stdin) for slot, worker in self._workers.items() if worker.outgoing]
        for slot, pipe in full:
            self._selector.register(pipe, selectors.EVENT_WRITE, slot)  # type: ignore[arg-type]
        selected = self._selector.select(timeout_s)
        for _, pipe in full:
            self._selector.unregister(pipe)  # type: ignore[arg-type]
        ready: dict[int, int] = {}
        for found, mask in selected:
            ready[found.data] = ready.get(found.data, 0) | mask
        return list(ready.items())

    def _flush(self, slot: int) -> None:
        worker = self._workers[slot]
        assert worker.process.stdin is not None
        try:
            while worker.outgoing:
                sent = os.write(worker.process.stdin.fileno(), worker.outgoing[:READ_BYTES])
                del worker.outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:  # it has ended, or reads no more: its death or its silence will tell
            worker.outgoing.clear()

    def _read(self, slot: int) -> list[Message | Death]:
        """Take what a worker has said, a bounded amount at a time."""
        worker = self._workers[slot]
        assert worker.process.stdout is not None
        events: list[Message | Death] = []
        for _ in range(READS_A_POLL):
            try:
                piece = os.read(worker.process.stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            if not piece:
                self._selector.unregister(worker.process.stdout)
                worker.open, worker.until_s = False, self._clock.now() + self.patience.close_s
                break
            worker.counted_bytes += len(piece)
            *lines, rest = piece.split(b"\n")
            for line in lines:
                body = parse_line(bytes(worker.incoming) + line)
                worker.incoming.clear()
                if body is None:
                    return [*events, self._bury(slot, "a line that is no message")]
                worker.counted_lines += 1
                if worker.counted_lines > FLOOD_LINES:
                    return [*events, self._bury(slot, "a flood of output")]
                self._note(worker, body)
                self._slots[slot].proved |= body["type"] == "done"
                events.append(Message(slot, body))
            worker.incoming += rest
            if len(worker.incoming) > MAX_LINE_BYTES:
                return [*events, self._bury(slot, "a line without end")]
        worker.heard_s = self._clock.now()
        return events

    def _note(self, worker: _Worker, body: Mapping[str, Any]) -> None:
        """Follow the state of a worker by what it says."""
        if body["type"] == "ready" and worker.state is _State.STARTING:
            worker.state = _State.IDLE
        elif body["type"] == "done" and worker.state in (_State.BUSY, _State.CANCELLING):
            if body.get("job", worker.job) != worker.job:
                return  # a late one
            worker.state, worker.until_s, worker.cause = _State.IDLE, float("inf"), ""
        elif body["type"] == "progress":
            now = self._clock.now()
            worker.gaps_s.setdefault(worker.phase, deque(maxlen=50)).append(now - worker.heard_s)
            worker.phase, worker.heard_s = str(body.get("phase", ""))[:20], now

    def _watch(self, slot: int) -> list[Message | Death]:
        """See whether a worker has ended, floods, is silent for too long, or is due for the next step of its end."""
        worker, now = self._workers[slot], self._clock.now()
        if _has_ended(worker.process):
            events = self._read(slot) if worker.open else []  # a child of its own may hold its pipe open
            return [*events, self._bury(slot, worker.cause)] if slot in self._workers else events
        if now - worker.counted_s > FLOOD_S:
            worker.counted_s, worker.counted_bytes, worker.counted_lines = now, 0, 0
        if worker.counted_bytes > FLOOD_BYTES:
            return [self._bury(slot, "a flood of output")]
        if now >= worker.until_s:
            if not worker.open:
                return [self._bury(slot, worker.cause or "closed its output")]
            if worker.state is _State.ENDING:
                return [self._bury(slot, worker.cause)]
            self._terminate(worker, worker.cause, self.patience.term_s)
        elif worker.state in (_State.STARTING, _State.BUSY) and now - worker.heard_s > self._allowed_s(slot):
            place = f" in {worker.phase}" if worker.phase else ""
            cause = f"silent for {self._allowed_s(slot):.0f} s{place}"
            self._slots[slot].slow_loads += worker.state is _State.STARTING
            self._terminate(worker, cause, self.patience.hang_s)
        return []

    def _allowed_s(self, slot: int) -> float:
        """How long the worker of a slot may be silent now."""
        worker = self._workers[slot]
        if worker.state is _State.STARTING:
            return self.patience.loading_s(self._slots[slot].slow_loads)
        gaps_s = worker.gaps_s.get(worker.phase)
        if not gaps_s:
            return self.patience.first_s
        floor_s = self.patience.step_s if worker.phase == "train" else self.patience.round_s
        return max(floor_s, self.patience.times * statistics.median(gaps_s))

    def _terminate(self, worker: _Worker, cause: str, grace_s: float) -> None:
        _kill_group(worker.process, signal.SIGTERM)
        worker.state, worker.cause, worker.until_s = _State.ENDING, cause, self._clock.now() + grace_s

    def _bury(self, slot: int, cause: str, *, counts: bool = True) -> Death:
        """Kill what is left of a worker and its process group, and forget it without waiting for its end."""
        worker = self._workers.pop(slot)
        process = worker.process
        assert process.stdin is not None
        assert process.stdout is not None
        if worker.open:
            self._selector.unregister(process.stdout)
        _kill_group(process, signal.SIGKILL)
        code = process.poll()
        if code is None:
            self._slots[slot].leaving, self._slots[slot].leaving_since_s = process, self._clock.now()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        if counts:
            self._count_death(slot)
        return Death(slot, cause or _describe(code), final=self._slots[slot].retired)

    def _count_death(self, slot: int) -> None:
        state, now = self._slots[slot], self._clock.now()
        while state.deaths_s and now - state.deaths_s[0] > self.patience.window_s:
            state.deaths_s.popleft()
        state.deaths_s.append(now)
        state.not_before_s = now + self.patience.backoff_s * 2 ** (len(state.deaths_s) - 1)
        if len(state.deaths_s) < self.patience.deaths:
            return
        if state.proved:
            state.deaths_s.clear()
            state.proved = False
            state.not_before_s = now + self.patience.window_s
        else:
            state.retired = True

    def _let_go(self) -> None:
        """Forget killed processes that are gone, and give up the slots of those that do not go."""
        for slot, state in enumerate(self._slots):
            if state.leaving is not None:
                if state.leaving.poll() is not None:
                    state.leaving = None
                elif self._clock.now() - state.leaving_since_s > self.patience.gone_s and not state.retired:
                    state.retired = True
                    self._unreported.append(Death(slot, STUCK, final=True))


def _kill_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without waiting for it: until then no other process group can get its number."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def _describe(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"signal {-code}"
    meaning = EXIT_MEANS.get(code, "") if code is not None else ""
    return f"exit code {code}" + (f": {meaning}" if meaning else "")
