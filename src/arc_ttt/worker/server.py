"""One job at a time, answered for whatever happens."""

from __future__ import annotations

import traceback
from typing import Any

from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import device_lost
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.settings import Settings
from arc_ttt.worker.pulse import Inbox, JobDeadline, Progress, Pulse, Send


class Server:
    """Does one job at a time and answers for it, whatever happens."""

    about: dict[str, Any]

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        self.settings, self.send, self.inbox = settings, send, inbox
        self.deadline_s = float(hello["deadline"])

    def work(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        """Do the job and return what its last line says."""
        raise NotImplementedError

    def serve(self, message: dict[str, Any]) -> None:
        """Do one job and answer for it.

        Raises:
            RuntimeError: the device is lost (`errors.device_lost`); every other error is that of the job.
        """
        start_s = REAL_CLOCK.now()
        pulse = Pulse(self.send, self.inbox, message["id"])
        deadline = JobDeadline(min(self.deadline_s, message.get("until", self.deadline_s)), pulse=pulse)
        body: dict[str, Any] = {"type": "done", "job": message["id"]}
        try:
            body |= self.work(message, deadline, pulse.progress)
        except Exception as error:  # a bad task costs only itself
            if device_lost(error):
                raise
            traceback.print_exc()
            body |= {"outcome": Outcome.FAILED, "reason": f"{type(error).__name__}: {error}"[:500]}
        body["seconds"] = round(REAL_CLOCK.now() - start_s, 3)
        self.send(body)
