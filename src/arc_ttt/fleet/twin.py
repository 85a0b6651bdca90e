"""The fleet's twin in one process, for debuggers and tests: the same servers and messages, no processes.

A job runs to its end inside `poll`, so nothing guards against one that hangs or takes the process with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from arc_ttt.deadline import REAL_CLOCK, Clock
from arc_ttt.errors import device_lost
from arc_ttt.fleet.workers import Death, Message
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST
from arc_ttt.worker.serve import load_server
from arc_ttt.worker.server import Server


class Twin:
    """Slots whose workers live here. names: "device" or "synthesis" for each slot. hello: as for a worker process."""

    def __init__(self, names: Sequence[str], hello: Mapping[str, Any], clock: Clock = REAL_CLOCK) -> None:
        self._names, self._hello, self._clock = names, dict(hello), clock
        self._servers: dict[int, Server] = {}
        self._jobs: dict[int, dict[str, Any]] = {}
        self._retired: set[int] = set()
        self._events: list[Message | Death] = []

    @property
    def slots(self) -> list[int]:
        return [slot for slot in range(len(self._names)) if slot not in self._retired]

    def ready(self, slot: int) -> bool:
        return slot in self._servers

    def alive(self, slot: int) -> bool:
        return slot in self._servers

    def greet(self, hello: Mapping[str, Any]) -> None:
        self._hello = dict(hello)

    def forgive(self, slot: int) -> None:
        """Nothing is counted here: a second failure would be like the first."""

    def retire(self, slot: int) -> None:
        self._retired.add(slot)

    def start(self, slot: int) -> bool:
        """Load what the slot's worker would load, now."""
        if slot in self._retired:
            return False
        server = load_server(self._names[slot], self._hello, lambda body: self._say(slot, body), None)
        if isinstance(server, int):
            self._die(slot, server)
            return False
        self._servers[slot] = server
        self._say(slot, {"type": "ready", **server.about})
        return True

    def send(self, slot: int, body: Mapping[str, Any]) -> None:
        if body.get("type") == "job":
            self._jobs[slot] = json.loads(json.dumps(dict(body)))

    def cancel(self, slot: int, cause: str) -> None:
        """Take back a job that has not begun; none ever is under way when this is called."""
        job = self._jobs.pop(slot, None)
        if job is not None:
            self._say(slot, {"type": "done", "job": job["id"], "outcome": Outcome.CUT, "reason": cause})

    def kill(self, slot: int, cause: str) -> Death:
        """Forget the worker of a slot, between jobs."""
        self._servers.pop(slot, None)
        self._jobs.pop(slot, None)
        return Death(slot, cause, final=False)

    def poll(self, timeout_s: float) -> list[Message | Death]:
        """Do one of the jobs that wait, and return all that happened since the last poll."""
        if not self._jobs and not self._events:
            self._clock.sleep(timeout_s)
        if self._jobs:
            slot = next(iter(self._jobs))
            job = self._jobs.pop(slot)
            try:
                self._servers[slot].serve(job)
            except Exception as error:
                if not device_lost(error):
                    raise
                self._die(slot, EXIT_DEVICE_LOST)
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._jobs.clear()
        self._servers.clear()

    def _say(self, slot: int, body: Mapping[str, Any]) -> None:
        self._events.append(Message(slot, json.loads(json.dumps(dict(body)))))

    def _die(self, slot: int, code: int) -> None:
        """In this process a device that is lost stays lost, and so does a model that cannot be loaded."""
        self._servers.pop(slot, None)
        final = code == EXIT_DEVICE_LOST
        if final:
            self._retired.add(slot)
        self._events.append(Death(slot, f"exit code {code}", final=final))
