"""One job at a time, answered for whatever happens."""

from __future__ import annotations

import traceback
from dataclasses import replace

from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import device_lost
from arc_ttt.protocol.jobs import OnProgress, Outcome
from arc_ttt.protocol.messages import Done, Ready
from arc_ttt.protocol.orders import Hello, Order
from arc_ttt.settings import Settings
from arc_ttt.worker.pulse import Inbox, JobDeadline, Pulse, Send


class Server:
    """Does one job at a time and answers for it, whatever happens.

    Args:
        settings: of the run.
        hello: the first line to the worker.
        send: takes the messages of the worker.
        inbox: where orders come in; None for a worker inside the coordinator's process.
    """

    ready: Ready
    """What the worker says once it can take a job."""

    def __init__(self, settings: Settings, hello: Hello, send: Send, inbox: Inbox | None) -> None:
        self.settings, self.send, self.inbox = settings, send, inbox
        self.deadline = hello.deadline

    def work(self, order: Order, deadline: JobDeadline, progress: OnProgress) -> Done:
        """Do the job and return its end."""
        raise NotImplementedError

    def serve(self, order: Order) -> None:
        """Do one job and answer for it.

        Raises:
            RuntimeError: the device is lost (`errors.device_lost`); every other error is that of the job.
        """
        start_s = REAL_CLOCK.now()
        pulse = Pulse(self.send, self.inbox, order.id)
        deadline = JobDeadline(min(self.deadline.at_s, order.deadline.at_s), pulse=pulse)
        try:
            done = self.work(order, deadline, pulse.progress)
        except Exception as error:  # a bad task costs only itself
            if device_lost(error):
                raise
            traceback.print_exc()
            done = Done(Outcome.FAILED, f"{type(error).__name__}: {error}"[:500])
        self.send(replace(done, job=order.id, seconds=round(REAL_CLOCK.now() - start_s, 3)))
