"""The server of a worker process."""

from __future__ import annotations

import traceback
from typing import Any

from arc_ttt.errors import ModelError, device_lost
from arc_ttt.protocol.messages import EXIT_DEVICE_LOST, EXIT_FATAL
from arc_ttt.settings import Settings
from arc_ttt.worker.model_server import ModelServer
from arc_ttt.worker.program_server import ProgramServer
from arc_ttt.worker.pulse import Inbox, Send
from arc_ttt.worker.server import Server


def load_server(name: str, hello: dict[str, Any], send: Send, inbox: Inbox | None) -> Server | int:
    """The server of a worker, or the exit code when it cannot be had."""
    path = ""
    try:
        settings = Settings.from_json(hello["settings"])
        path = settings.model.path
        kind = ProgramServer if name == "synthesis" else ModelServer
        return kind(settings, hello, send, inbox)
    except Exception as error:  # whatever a library raises while it loads a model: the coordinator decides how to go on
        traceback.print_exc()
        if device_lost(error):
            return EXIT_DEVICE_LOST
        reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        send({"type": "fatal", "reason": reason, "model": path, "generation": hello.get("generation")})
        return EXIT_FATAL
