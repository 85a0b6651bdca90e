"""Main of one worker process: load the model once, or with the argument "synthesis" none, then one job after another.

Lines in: hello {settings, deadline}, job {id, kind, task...}, cancel, stop. Lines out: ready, progress, candidates,
programs, done, fatal. The protocol has a file descriptor of its own: whatever libraries print goes to the log.

Every loop of the work asks its deadline whether it has passed. Here that question is also the heartbeat, sent by the
working thread itself: a worker that is stuck anywhere falls silent.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from arc_ttt.errors import device_lost
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST, PARENT

if TYPE_CHECKING:  # importing it needs torch, which a worker of synthesis does without
    pass
from arc_ttt.worker.pulse import Inbox, Send
from arc_ttt.worker.serve import load_server

OOM_SCORES = {"device": "500", "synthesis": "900"}  # who goes first when the machine runs out of memory


def main() -> int:
    """Serve jobs until the input ends."""
    _die_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # a worker that hangs leaves in its log where
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # from here on, prints go to the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # also those of a process that is killed
    send: Send = lambda body: _write(channel, body)  # noqa: E731
    inbox = Inbox(0)
    hello = inbox.next() or {}
    name = "synthesis" if sys.argv[1:] == ["synthesis"] else "device"
    _offer_to_the_oom_killer(OOM_SCORES[name])
    server = load_server(name, hello, send, inbox)
    if isinstance(server, int):
        return server
    send({"type": "ready", **server.about})
    while (message := inbox.next()) is not None and message["type"] != "stop":
        if message["type"] == "job":  # a cancel comes too late here: its job is done
            try:
                server.serve(message)
            except Exception as error:
                if not device_lost(error):
                    raise
                traceback.print_exc()
                return EXIT_DEVICE_LOST
    return 0


def _write(channel: IO[bytes], body: dict[str, Any]) -> None:
    line = memoryview(json.dumps(body).encode() + b"\n")
    while line:
        line = line[channel.write(line) :]


def _offer_to_the_oom_killer(score: str) -> None:
    """Go before the coordinator when the machine runs out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(score)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the coordinator dies; end at once if it is dead already."""
    parent = int(os.environ.get(PARENT, os.getppid()))  # it may have died before this line
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux: the end of the input ends the worker
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
