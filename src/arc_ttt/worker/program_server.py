"""Jobs of program synthesis, within limits of CPU time and memory."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

from arc_ttt.deadline import REAL_CLOCK, cpu_seconds
from arc_ttt.errors import ArcError
from arc_ttt.protocol.jobs import OnProgress, Outcome
from arc_ttt.protocol.messages import Done, Programs, Ready
from arc_ttt.protocol.orders import Hello, Order, SearchOrder
from arc_ttt.settings import Settings
from arc_ttt.votes.candidates import Program
from arc_ttt.worker.pulse import Inbox, JobDeadline, Send
from arc_ttt.worker.server import Server

NICENESS = 10
"""Device workers go before synthesis, whose processes are this much nicer."""
AUTOGROUP_TRIES = 20
MEMORY_BYTES = 3 * 1024**3
"""Address space of a synthesis worker; it uses less than 500 MB."""
CPU_FACTOR = 3
"""The kernel ends a synthesis job at CPU_FACTOR times its CPU limit plus CPU_SLACK_S."""
CPU_SLACK_S = 10
MOST_PROGRAMS = 4
"""Programs sent for each test input."""


class ProgramServer(Server):
    """CPU program synthesis; never imports torch.

    Limits of the process hold whatever the search does. It runs programs of its own making only, built from known
    primitives, so these limits guard against mistakes and not against malice.
    """

    ready = Ready("synthesis")

    def __init__(self, settings: Settings, hello: Hello, send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        if inbox is not None:  # a process of its own
            _give_way(NICENESS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def work(self, order: Order, deadline: JobDeadline, progress: OnProgress) -> Done:
        from arc_ttt.synthesis.solver import synthesize

        if not isinstance(order, SearchOrder):
            raise ArcError(f"a worker of synthesis does no {order.kind}")
        task = order.task
        progress("synthesis", 0, 1)
        if self.inbox is not None:
            limit_s = int(cpu_seconds() + CPU_FACTOR * order.cpu_limit_s + CPU_SLACK_S)
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        found = synthesize(task, cpu_limit_s=order.cpu_limit_s, deadline=deadline)
        cut = deadline.passed()
        for index in range(len(task.tests)):
            rows = [p for p in found if p.test_index == index][:MOST_PROGRAMS]
            programs = [Program(index, p.grid, p.program, p.confidence, p.fits_all) for p in rows]
            self.send(Programs(task.task_id, index, programs, cut, order.id))
        return Done(Outcome.CUT if cut else Outcome.FINISHED)


def _give_way(niceness: int) -> None:
    """Let other processes go first, also those of other sessions.

    Where the kernel shares cores out among sessions (autogroups), a process's niceness counts only within its session.
    """
    os.nice(niceness)
    for _ in range(AUTOGROUP_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:  # but for root it takes one change in a tenth of a second
            REAL_CLOCK.sleep(random.uniform(0.1, 0.3))
        except OSError:  # no such kernel
            return
        else:
            return
