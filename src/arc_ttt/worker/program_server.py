"""Jobs of program synthesis, within limits of CPU time and memory."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path
from typing import Any

from arc_ttt.deadline import REAL_CLOCK, cpu_seconds
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.protocol.messages import job_task
from arc_ttt.settings import Settings
from arc_ttt.worker.pulse import Inbox, JobDeadline, Progress, Send
from arc_ttt.worker.server import Server

NICENESS = 10  # of synthesis: device workers go first
AUTOGROUP_TRIES = 20
MEMORY_BYTES = 3 * 1024**3  # address space of a synthesis worker; it uses less than 500 MB
CPU_SLACK_S, CPU_TIMES = 10, 3  # a job of synthesis that uses so many more CPU seconds than its limit is ended
MAX_PROGRAMS = 4  # sent for each test input


class ProgramServer(Server):
    """CPU program synthesis; never imports torch. Limits of the process hold whatever the search does: it runs programs
    of its own making only, built from known primitives, so these guard against mistakes and not against malice."""

    def __init__(self, settings: Settings, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> None:
        super().__init__(settings, hello, send, inbox)
        if inbox is not None:  # a process of its own
            _give_way(NICENESS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.about = {"device": "synthesis"}

    def work(self, message: dict[str, Any], deadline: JobDeadline, progress: Progress) -> dict[str, Any]:
        from arc_ttt.synthesis.solver import synthesize

        task = job_task(message["task_id"], message["task"])
        progress("synthesis", 0, 1)
        if self.inbox is not None:
            limit_s = int(cpu_seconds() + CPU_TIMES * message["cpu_limit_s"] + CPU_SLACK_S)
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        found = synthesize(task, cpu_limit_s=message["cpu_limit_s"], deadline=deadline)
        cut = deadline.passed()
        for index in range(len(task.tests)):
            rows = [p for p in found if p.test_index == index][:MAX_PROGRAMS]
            programs = [
                {"grid": p.grid.tolist(), "text": p.program, "confidence": p.confidence, "fits_all": p.fits_all}
                for p in rows
            ]
            self.send(
                {
                    "type": "programs",
                    "job": message["id"],
                    "task_id": task.task_id,
                    "test_index": index,
                    "programs": programs,
                    "cut": cut,
                }
            )
        return {"outcome": Outcome.CUT if cut else Outcome.FINISHED, "reason": ""}


def _give_way(niceness: int) -> None:
    """Let other processes go first, also those of other sessions: where the kernel shares cores out among sessions
    (autogroups), the niceness of a process counts only within its own."""
    os.nice(niceness)
    for _ in range(AUTOGROUP_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:  # of all users but root it takes one change in a tenth of a second
            REAL_CLOCK.sleep(random.uniform(0.1, 0.3))
        except OSError:  # no such kernel
            return
        else:
            return
