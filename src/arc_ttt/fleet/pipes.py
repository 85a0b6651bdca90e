"""Lines of JSON over the pipes of a worker process: never blocking, bounded, and refused when they flood."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from typing import IO, Any

READ_BYTES = 1 << 16
"""The most bytes that one read or write moves."""
READS_A_POLL = 8
"""Reads of one worker in one poll, so that a worker that never stops talking holds nobody up."""
MAX_LINE_BYTES = 16 * 1024 * 1024
FLOOD_S = 10.0
"""Bytes and lines of a worker are counted over windows of this many seconds."""
FLOOD_BYTES = 64 * 1024 * 1024
"""More bytes than this in a window are no answer."""
FLOOD_LINES = 10_000
"""More lines than this in a window are no answer."""


class WorkerPipe:
    """Both pipes of a worker process, as lines of JSON. Touches file descriptors only."""

    def __init__(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process has no pipes")
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)
        self.open = True
        """The worker has not closed its output."""
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._window_s = now_s
        self._bytes = 0
        self._lines = 0

    @property
    def has_outgoing(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._outgoing)

    def send(self, line: Mapping[str, Any]) -> None:
        """Queue one line. It goes out as far as the pipe takes it, the rest with later calls of `flush`."""
        self._outgoing += json.dumps(dict(line)).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the pipe takes it."""
        try:
            while self._outgoing:
                sent = os.write(self.stdin.fileno(), self._outgoing[:READ_BYTES])
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:  # the worker has ended or reads no more: its death or its silence will show it
            self._outgoing.clear()

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """The whole lines that have come, a bounded amount, and what is wrong with the next one (empty if nothing)."""
        found: list[dict[str, Any]] = []
        for _ in range(READS_A_POLL):
            try:
                piece = os.read(self.stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            if not piece:
                self.open = False
                break
            self._bytes += len(piece)
            *lines, rest = piece.split(b"\n")
            for line in lines:
                body = parse_line(bytes(self._incoming) + line)
                self._incoming.clear()
                if body is None:
                    return found, "a line that is no message"
                self._lines += 1
                if self._lines > FLOOD_LINES:
                    return found, "a flood of output"
                found.append(body)
            self._incoming += rest
            if len(self._incoming) > MAX_LINE_BYTES:
                return found, "a line without end"
        return found, ""

    def floods(self, now_s: float) -> bool:
        """Whether the worker has written more in this window than any answer needs."""
        if now_s - self._window_s > FLOOD_S:
            self._window_s, self._bytes, self._lines = now_s, 0, 0
        return self._bytes > FLOOD_BYTES

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stdin.close()
        self.stdout.close()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A JSON object with a `type`, or None for anything else."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and isinstance(body.get("type"), str) else None
