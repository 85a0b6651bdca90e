"""What keeps a process alive, and what ends it: streams that outlive their readers, and an end with the parent."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import select
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent ends, however that happens; end at once if it has ended already.

    parent: its process id, known before this process was started.
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != parent:
        os._exit(0)


def outlive_readers() -> None:
    """Let sys.stdout and sys.stderr outlive whoever reads them: no run is lost because of what it says."""
    outlive_reader("stdout", 1)
    outlive_reader("stderr", 2)


def outlive_reader(name: str, descriptor: int) -> None:
    """Let sys.stdout or sys.stderr outlive its reader. Streams of a notebook stay as they are."""
    stream = getattr(sys, name)
    how: dict[str, Any] = {"encoding": "utf-8"}
    if stream is None:  # closed from the start
        _lead_nowhere(descriptor)
    elif type(stream) is io.TextIOWrapper and stream.fileno() == descriptor:
        with contextlib.suppress(OSError):
            stream.flush()
        how = {n: getattr(stream, n) for n in ("encoding", "line_buffering", "write_through")}
    else:
        return
    how["errors"] = "backslashreplace"  # names of tasks and files may hold what no encoding takes
    raw = LastingStream(descriptor, "w", closefd=False)
    buffer: Any = raw if how.get("write_through") else io.BufferedWriter(raw)  # python -u
    setattr(sys, name, io.TextIOWrapper(buffer, **how))


class LastingStream(io.FileIO):
    """What stdout or stderr writes to.

    Once nobody can take text any more (the reader is gone, the disk is full, the terminal hung up), all further text
    goes nowhere, and so does what a reader that has stalled leaves no room for.
    """

    PATIENCE_S = 2.0
    """Seconds to wait for a reader that has stalled, once until it reads again."""
    stalled = False

    def write(self, text: Any) -> int:
        rest = memoryview(text).cast("B")
        try:
            while rest:
                room = select.select([], [self.fileno()], [], 0.0 if self.stalled else self.PATIENCE_S)[1]
                self.stalled = not room
                taken = super().write(rest[: select.PIPE_BUF]) if room else None
                if taken is None:
                    break
                rest = rest[taken:]
        except OSError:
            _lead_nowhere(self.fileno())
        return len(text)


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
