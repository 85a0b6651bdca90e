"""Mechanism: start, feed, watch and kill worker processes.

One plain subprocess a device, in its own process group, with a private pair of pipes that carry JSON lines. Nothing
here ever blocks: reads and writes are non-blocking and bounded, and killing does not wait for death.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from arc_ttt.deadline import REAL_CLOCK, Clock

MAX_LINE_BYTES = 16 * 1024 * 1024
READ_BYTES = 1 << 16
READS_A_POLL = 8
PARENT = "ARC_TTT_COORDINATOR"  # its process id, in the environment of its workers
LOAD_TIMEOUT_S = 600.0
SILENCE_TIMEOUT_S = 300.0
EXIT_S = 0.3  # how long a worker that has closed its pipe may take to end by itself
RESTARTS = 3


@dataclass(slots=True)
class Message:
    """One JSON line of a worker."""

    slot: int
    body: dict[str, Any]


@dataclass(slots=True)
class Death:
    """A worker that ended. cause: exit code, signal, silence, or a broken line; final: it will not be started again."""

    slot: int
    cause: str
    final: bool


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    started_s: float
    heard_s: float
    ready: bool = False
    working: bool = False  # on a job: only then is silence a sign of trouble
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)


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
    ) -> None:
        self._commands, self._environments = commands, environments
        self._hello, self._log, self._clock = dict(hello), log, clock
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._starts = dict.fromkeys(range(len(commands)), 0)

    @property
    def slots(self) -> list[int]:
        """Slots that have, or may get again, a worker."""
        return [slot for slot in self._starts if slot in self._workers or self._starts[slot] <= RESTARTS]

    def forgive(self, slot: int) -> None:
        """Forget earlier deaths in this slot: its worker has finished a job, so it can work."""
        self._starts[slot] = min(self._starts[slot], 1)

    def greet(self, hello: Mapping[str, Any]) -> None:
        """Send `hello` as the first line to workers that are started from now on."""
        self._hello = dict(hello)

    def ready(self, slot: int) -> bool:
        return slot in self._workers and self._workers[slot].ready

    def alive(self, slot: int) -> bool:
        return slot in self._workers

    def retire(self, slot: int) -> None:
        """Never start a worker in this slot again."""
        self._starts[slot] = RESTARTS + 1

    def start(self, slot: int) -> bool:
        """Start the worker of a slot. False if the system refuses or the slot has used up its restarts."""
        if self._starts[slot] > RESTARTS:
            return False
        self._starts[slot] += 1
        with contextlib.suppress(OSError):  # no log folder: the worker prints to nowhere
            self._log.mkdir(parents=True, exist_ok=True)
        output: IO[bytes] | int = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            output = (self._log / f"worker-{slot}.log").open("ab")
        try:
            process = subprocess.Popen(
                list(self._commands[slot]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, PARENT: str(os.getpid()), **self._environments[slot]},
                start_new_session=True,
            )
        except OSError:
            return False
        finally:
            if not isinstance(output, int):
                output.close()
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        now = self._clock.now()
        self._workers[slot] = _Worker(process, now, now)
        self._selector.register(process.stdout, selectors.EVENT_READ, slot)
        self.send(slot, self._hello)
        return True

    def send(self, slot: int, body: Mapping[str, Any]) -> None:
        """Queue one line for a worker; it goes out as far as the pipe takes it, the rest at later polls.

        From a line of type "job" until the worker's "done" it must not be silent for SILENCE_TIMEOUT_S.
        """
        if body.get("type") == "job":
            self._workers[slot].working, self._workers[slot].heard_s = True, self._clock.now()
        self._workers[slot].outgoing += json.dumps(dict(body)).encode() + b"\n"
        self._flush(slot)

    def _flush(self, slot: int) -> None:
        worker = self._workers[slot]
        assert worker.process.stdin is not None
        try:
            while worker.outgoing:
                sent = os.write(worker.process.stdin.fileno(), worker.outgoing[:READ_BYTES])
                del worker.outgoing[:sent]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it has ended, or reads no more: its death or its silence will tell
            worker.outgoing.clear()

    def poll(self, timeout_s: float) -> list[Message | Death]:
        """What happened, waiting at most `timeout_s` for something to happen."""
        events: list[Message | Death] = []
        if not self._workers:
            self._clock.sleep(timeout_s)
            return events
        full = [worker.process.stdin for worker in self._workers.values() if worker.outgoing]
        for slot, worker in self._workers.items():
            if worker.outgoing:
                self._selector.register(worker.process.stdin, selectors.EVENT_WRITE, slot)  # type: ignore[arg-type]
        selected = self._selector.select(timeout_s)
        for pipe in full:
            self._selector.unregister(pipe)  # type: ignore[arg-type]
        for found, mask in selected:
            if mask & selectors.EVENT_WRITE:
                self._flush(found.data)
        for found, mask in selected:
            if mask & selectors.EVENT_READ:
                events += self._read(found.data)
        for slot, worker in list(self._workers.items()):
            if _has_ended(worker.process):  # a child of its own may hold its pipe open
                events += self._read(slot)
                if slot in self._workers:
                    events.append(self._bury(slot, ""))
        now = self._clock.now()
        for slot, worker in list(self._workers.items()):
            limit = SILENCE_TIMEOUT_S if worker.ready else LOAD_TIMEOUT_S
            if (worker.working or not worker.ready) and now - worker.heard_s > limit:
                events.append(self._bury(slot, f"silent for {limit:.0f} s"))
        return events

    def _read(self, slot: int) -> list[Message | Death]:
        worker = self._workers[slot]
        assert worker.process.stdout is not None
        events: list[Message | Death] = []
        ended = False
        for _ in range(READS_A_POLL):
            try:
                piece = os.read(worker.process.stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            if not piece:
                ended = True
                break
            worker.incoming += piece
        worker.heard_s = self._clock.now()
        *lines, rest = worker.incoming.split(b"\n")
        worker.incoming = bytearray(rest)
        for line in lines:
            body = _parse(bytes(line))
            if body is None:
                return [*events, self._bury(slot, "a line that is no message")]
            worker.ready = worker.ready or body["type"] == "ready"
            worker.working = worker.working and body["type"] != "done"
            events.append(Message(slot, body))
        if len(worker.incoming) > MAX_LINE_BYTES:
            return [*events, self._bury(slot, "a line without end")]
        if ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the pipe closes a moment before the process ends
                worker.process.wait(timeout=EXIT_S)
            events.append(self._bury(slot, ""))
        return events

    def kill(self, slot: int, cause: str) -> Death:
        """Kill the worker of a slot now."""
        return self._bury(slot, cause)

    def _bury(self, slot: int, cause: str) -> Death:
        worker = self._workers.pop(slot)
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        _kill_group(worker.process, signal.SIGKILL)
        try:
            code: int | None = worker.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = None  # stuck in the kernel: left behind, it dies with this process
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
        worker.process.stdout.close()
        reason = cause or (f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")
        return Death(slot, reason, final=self._starts[slot] > RESTARTS)

    def stop(self) -> None:
        """Kill all workers and everything they started. Waits a moment for each, never longer."""
        for worker in self._workers.values():
            _kill_group(worker.process, signal.SIGKILL)
        for slot in list(self._workers):
            self._bury(slot, "stopped")
        self._selector.close()


def _kill_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without waiting for it: until then no other process group can get its number."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def _parse(line: bytes) -> dict[str, Any] | None:
    """A message, or None for anything else."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and isinstance(body.get("type"), str) else None
