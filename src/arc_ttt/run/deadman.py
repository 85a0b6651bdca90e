"""The second line of defence: a process of its own that ends a run whose coordinator cannot end it.

The coordinator ends by itself at the limit less the reserve. Where it cannot (stopped, swapped out, stuck in the
kernel), this process kills its workers and it when half of the reserve is gone, so that the last complete submission
stays and the platform's limit is not reached. Standard library only.

    python -m arc_ttt.run.deadman PID KILL_AT STOP_AT      heartbeats come in as bytes; "." one more, "!" a regular end
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from arc_ttt.deadline import REAL_CLOCK, RunDeadlines

PROC = Path("/proc")
LOOK_EVERY_S = 1.0
EARLY_S = 60.0
"""Silence counts from this many seconds before the coordinator should stop."""
SILENCE_S = 120.0
"""Silence of this many seconds is taken for the coordinator's end."""
BEAT = b"."
"""A heartbeat: the coordinator's loop has come round."""
BYE = b"!"
"""The run has ended by itself."""


class Deadman:
    """The coordinator's side: starts the process, and tells it that all is well.

    Args:
        deadlines: the ends of the run.
        watch: False where nobody is to watch.
    """

    def __init__(self, deadlines: RunDeadlines, *, watch: bool = True) -> None:
        source = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-S", "-m", "arc_ttt.run.deadman", str(os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None
        if not watch:
            return
        with contextlib.suppress(OSError):  # without it the first line of defence stands alone
            self._process = subprocess.Popen(
                [*command, str(deadlines.deadman.at_s), str(deadlines.stop.at_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": source, "PATH": os.environ.get("PATH", "")},
                start_new_session=True,
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def beat(self) -> None:
        """The coordinator's loop has come round once more."""
        self._tell(BEAT)

    def stop(self) -> None:
        """The run has ended by itself. Does not wait for the process."""
        self._tell(BYE)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.2)
            if self._process.returncode is None:
                self._process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=0.2)

    def _tell(self, what: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it is gone, or has not read for a long time
                os.write(self._process.stdin.fileno(), what)


def main(argv: list[str]) -> int:
    """Watch the process `argv[0]`; times are those of the monotonic clock. Returns 1 after it had to kill it."""
    pid, kill_at_s, stop_at_s = int(argv[0]), float(argv[1]), float(argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # they are for the coordinator
        signal.signal(number, signal.SIG_IGN)
    born = start_ticks(pid)
    heard_s = REAL_CLOCK.now()
    while born is not None and start_ticks(pid) == born:
        now_s = REAL_CLOCK.now()
        silent = now_s > stop_at_s - EARLY_S and now_s - heard_s > SILENCE_S
        if now_s >= kill_at_s or silent:
            kill_run(pid, born)
            return 1
        if select.select([0], [], [], max(0.0, min(LOOK_EVERY_S, kill_at_s - now_s)))[0]:
            said = os.read(0, 1 << 16)
            if not said or BYE in said:
                return 0
            heard_s = REAL_CLOCK.now()
    return 0


def kill_run(pid: int, born: int) -> None:
    """SIGKILL to the process groups of a process's children, then to itself, if it is the one that was `born` then."""
    if start_ticks(pid) != born:
        return
    for child in children(pid):
        if child != os.getpid():
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)  # every worker leads a group
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields and int(fields[1]) == pid:
                found.append(int(folder.name))
    return found


def start_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None for one that is gone or a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if it cannot be read. The name before it may hold anything."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
