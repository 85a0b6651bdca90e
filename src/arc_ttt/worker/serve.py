"""Serve jobs in a worker process: load the model once, or none for synthesis, then do one job after another.

The protocol has a file descriptor of its own: whatever libraries print goes to the log.

Every loop of the work asks its deadline whether it has passed. Here that question is also the heartbeat, sent by the
working thread itself: a worker that is stuck anywhere falls silent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO

from arc_ttt.bootstrap.process import die_with_parent
from arc_ttt.errors import ModelError, device_lost
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST, EXIT_FATAL, Fatal, Said
from arc_ttt.protocol.orders import PARENT, Cancel, Hello, read_order
from arc_ttt.settings import Settings
from arc_ttt.worker.model_server import ModelServer
from arc_ttt.worker.program_server import ProgramServer
from arc_ttt.worker.pulse import Inbox, Send
from arc_ttt.worker.server import Server

OOM_SCORES = {"device": "500", "synthesis": "900"}
"""When the machine runs out of memory, the kernel kills processes with a high score first."""


def main() -> int:
    """Serve jobs until the input ends. Returns the exit code."""
    die_with_parent(int(os.environ.get(PARENT, os.getppid())))  # it may have died before this line
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # a worker that hangs leaves in its log where
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # from here on, prints go to the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else a process that is killed takes its last prints with it
    send: Send = lambda message: _write(channel, message)  # noqa: E731
    inbox = Inbox(0)
    line = inbox.next()
    if line is None:
        return 0
    name = "synthesis" if sys.argv[1:] == ["synthesis"] else "device"
    _offer_to_the_oom_killer(OOM_SCORES[name])
    server = load_server(name, Hello.from_json(line), send, inbox)
    if isinstance(server, int):
        return server
    send(server.ready)
    while (line := inbox.next()) is not None:
        order = read_order(line)
        if isinstance(order, Cancel):
            continue  # it comes too late: its job is done
        try:
            server.serve(order)
        except Exception as error:
            if not device_lost(error):
                raise
            traceback.print_exc()
            return EXIT_DEVICE_LOST
    return 0


def load_server(name: str, hello: Hello, send: Send, inbox: Inbox | None) -> Server | int:
    """The server of a worker, or the exit code of the process if there can be none.

    Args:
        name: "device" or "synthesis".
        hello: the first line to the worker.
        send: takes the messages of the worker.
        inbox: where orders come in; None for a worker inside the coordinator's process.
    """
    path = ""
    try:
        settings = Settings.from_json(hello.settings)
        path = settings.model.path
        kind = ProgramServer if name == "synthesis" else ModelServer
        return kind(settings, hello, send, inbox)
    except Exception as error:  # whatever a library raises while it loads a model: the coordinator decides how to go on
        traceback.print_exc()
        if device_lost(error):
            return EXIT_DEVICE_LOST
        reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        send(Fatal(reason, path, hello.generation))
        return EXIT_FATAL


def _write(channel: IO[bytes], message: Said) -> None:
    line = memoryview(json.dumps(message.to_json()).encode() + b"\n")
    while line:
        line = line[channel.write(line) :]


def _offer_to_the_oom_killer(score: str) -> None:
    """Let the kernel kill this process before the coordinator when the machine runs out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(score)
