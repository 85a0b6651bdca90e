"""The fleet's twin in one process, for debuggers and tests: the same servers and messages, no processes.

A job runs to its end inside `poll`, so nothing guards against one that hangs or takes the process with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from arc_ttt.deadline import REAL_CLOCK, Clock
from arc_ttt.errors import device_lost
from arc_ttt.fleet.workers import Death, Event, Message
from arc_ttt.protocol.jobs import CallBack, DeathKind, Outcome
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST, Done, Said, read_message
from arc_ttt.protocol.orders import Cancel, Hello, Order, read_order
from arc_ttt.worker.serve import load_server
from arc_ttt.worker.server import Server


class Twin:
    """Slots whose workers live here.

    Args:
        names: "device" or "synthesis" for each slot.
        hello: the first line to each worker.
    """

    def __init__(self, names: Sequence[str], hello: Hello, clock: Clock = REAL_CLOCK) -> None:
        self._names, self._hello, self._clock = names, hello, clock
        self._servers: dict[int, Server] = {}
        self._jobs: dict[int, Order] = {}
        self._retired: set[int] = set()
        self._events: list[Event] = []

    @property
    def slots(self) -> list[int]:
        return [slot for slot in range(len(self._names)) if slot not in self._retired]

    def ready(self, slot: int) -> bool:
        return slot in self._servers

    def alive(self, slot: int) -> bool:
        return slot in self._servers

    def set_hello(self, hello: Hello) -> None:
        self._hello = hello

    def clear_deaths(self, slot: int) -> None:
        """Nothing is counted here: a second failure would be like the first."""

    def retire(self, slot: int) -> None:
        self._retired.add(slot)

    def start(self, slot: int) -> bool:
        """Load what the slot's worker would load, now."""
        if slot in self._retired:
            return False
        server = load_server(self._names[slot], self._hello, lambda message: self._say(slot, message), None)
        if isinstance(server, int):
            self._die(slot, server)
            return False
        self._servers[slot] = server
        self._say(slot, server.ready)
        return True

    def send(self, slot: int, order: Order) -> None:
        """Keep a job for the next poll, as it looks to a process that reads it from a pipe."""
        read = read_order(json.loads(json.dumps(order.to_json())))
        if not isinstance(read, Cancel):
            self._jobs[slot] = read

    def cancel(self, slot: int, cause: CallBack) -> None:
        """Take back a job that has not begun; none ever is under way when this is called."""
        order = self._jobs.pop(slot, None)
        if order is not None:
            self._say(slot, Done(Outcome.CUT, cause, job=order.id))

    def kill(self, slot: int, kind: DeathKind) -> Death:
        """Forget the worker of a slot, between jobs."""
        self._servers.pop(slot, None)
        self._jobs.pop(slot, None)
        return Death(slot, kind, str(kind), final=False)

    def poll(self, timeout_s: float) -> list[Event]:
        """Do one of the jobs that wait, and return all that happened since the last poll."""
        if not self._jobs and not self._events:
            self._clock.sleep(timeout_s)
        if self._jobs:
            slot = next(iter(self._jobs))
            order = self._jobs.pop(slot)
            try:
                self._servers[slot].serve(order)
            except Exception as error:
                if not device_lost(error):
                    raise
                self._die(slot, EXIT_DEVICE_LOST)
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._jobs.clear()
        self._servers.clear()

    def _say(self, slot: int, message: Said) -> None:
        """Send a message, as it looks to a process that reads it from a pipe."""
        self._events.append(Message(slot, read_message(json.loads(json.dumps(message.to_json())))))

    def _die(self, slot: int, code: int) -> None:
        """In this process a device that is lost stays lost, and so does a model that cannot be loaded."""
        self._servers.pop(slot, None)
        final = code == EXIT_DEVICE_LOST
        if final:
            self._retired.add(slot)
        kind = DeathKind.DEVICE_LOST if final else DeathKind.MODEL_REFUSED
        self._events.append(Death(slot, kind, f"exit code {code}", final=final))
