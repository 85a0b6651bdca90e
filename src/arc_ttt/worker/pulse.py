"""What a job shows of itself while it runs, and whether it is still wanted."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.protocol.messages import Progress, Said

READ_BYTES = 1 << 16
PROGRESS_EVERY_S = 1.0
Send = Callable[[Said], None]


class Inbox:
    """Lines of the coordinator: waited for between jobs, looked for during one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = bytearray()
        self._ended = False

    def next(self) -> dict[str, Any] | None:
        """The next line; None at the end of the input."""
        while b"\n" not in self._bytes:
            if self._ended:
                return None
            self._read()
        line, _, rest = self._bytes.partition(b"\n")
        self._bytes = bytearray(rest)
        body: dict[str, Any] = json.loads(line)
        return body

    def cancelled(self) -> bool:
        """Whether a line waits: during a job only one that ends it can come."""
        while not self._ended and select.select([self._descriptor], [], [], 0)[0]:
            self._read()
        return self._ended or b"\n" in self._bytes

    def _read(self) -> None:
        piece = os.read(self._descriptor, READ_BYTES)
        self._ended = not piece
        self._bytes += piece


class Pulse:
    """What a job shows of itself: its progress, at most once a second and at each new phase; and whether it goes on."""

    def __init__(self, send: Send, inbox: Inbox | None, job: int) -> None:
        self._send, self._inbox = send, inbox
        self._stands = Progress(job, "start")
        self.next_s = 0.0
        self.cancelled = False
        self.beat(REAL_CLOCK.now())

    def progress(self, phase: str, done: int, of: int) -> None:
        """Note where the job stands, and send it at once if a new phase begins."""
        new = phase != self._stands.phase
        self._stands = replace(self._stands, phase=phase, done=done, of=of)
        if new:
            self.beat(REAL_CLOCK.now())

    def beat(self, now_s: float) -> None:
        """Send where the job stands, and look whether it is wanted any longer."""
        self.next_s = now_s + PROGRESS_EVERY_S
        self._send(self._stands)
        self.cancelled = self.cancelled or (self._inbox is not None and self._inbox.cancelled())


@dataclass(frozen=True, slots=True)
class JobDeadline(Deadline):
    """The deadline of a job, which comes at once when the job is cancelled. Asking it is a heartbeat."""

    pulse: Pulse | None = None

    def remaining(self) -> float:
        """Seconds left; minus infinity for a cancelled job."""
        now_s = self.clock.now()
        if self.pulse is not None:
            if now_s >= self.pulse.next_s:
                self.pulse.beat(now_s)
            if self.pulse.cancelled:
                return float("-inf")
        return self.at_s - now_s

    def minus(self, reserve_s: float) -> JobDeadline:
        return replace(self, at_s=self.at_s - reserve_s)
