"""The run's journal: one JSON object a line, one writer, append only.

Each line ends with a checksum of what stands before it, so that a torn or damaged one is known for what it is, and
what is read back from a journal that was cut anywhere is what had been written up to there.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections import deque
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from arc_ttt.deadline import REAL_CLOCK, Clock

SYNC_EVERY_S = 1.0
"""The disk is asked at most this often to keep what it has."""
SYNC_SHARE = 0.02
"""Part of the time that may go into asking, however slow the disk is."""
RETRY_EVERY_S = 1.0
"""A disk that refused is tried again this often."""
MOST_WAITING = 16 * 1024 * 1024
"""Bytes that wait in memory for such a disk."""
_CHECKSUM = b', "crc": "'


@dataclass(slots=True)
class Journal:
    """Append events to `path`. A full disk degrades to memory: the run never stops for its journal.

    Every event is in the file, for other processes to read, before `append` returns; the disk is asked to keep it at
    most once a second.
    """

    path: Path
    clock: Clock = REAL_CLOCK
    start_s: float = 0.0
    dropped: int = 0
    """Events that will never be in the file."""
    _file: FileIO | None = None
    _torn: bool = False  # the file may end inside a line
    _waiting: deque[bytes] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _retry_s: float = float("-inf")
    _sync_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.start_s = self.start_s or self.clock.now()

    @property
    def lost_lines(self) -> int:
        """Events that are not in the file, or not yet."""
        return self.dropped + len(self._waiting)

    def append(self, event: str, **fields: Any) -> None:
        """Write one event with the seconds since the start of the run."""
        seconds = round(self.clock.now() - self.start_s, 3)
        line = checked_line({"t": seconds, "event": event, **fields})
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        while self._waiting_bytes > MOST_WAITING:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.dropped += 1
        if self.clock.now() >= self._retry_s:
            self._write()

    def close(self) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._torn = self.path.is_file() and self.path.stat().st_size > 0
                self._file = FileIO(self.path, "a")
            while self._waiting:
                whole = (b"\n" if self._torn else b"") + self._waiting[0]
                self._torn = self._file.write(whole) < len(whole)
                if self._torn:
                    raise OSError("the disk took a part")
                self._waiting_bytes -= len(self._waiting.popleft())
        except OSError:
            self._retry_s = self.clock.now() + RETRY_EVERY_S
            return
        if self.clock.now() >= self._sync_s:
            self._sync(self._file)

    def _sync(self, file: FileIO) -> None:
        began_s = self.clock.now()
        with contextlib.suppress(OSError):  # not every kind of file can
            os.fdatasync(file.fileno())
        now_s = self.clock.now()
        self._sync_s = now_s + max(SYNC_EVERY_S, (now_s - began_s) / SYNC_SHARE)


def checked_line(event: dict[str, Any]) -> bytes:
    """One event as a line of JSON whose last member is the CRC-32 of all before it."""
    body = json.dumps(event, default=str).encode()[:-1]
    return b'%s%s%08x"}\n' % (body, _CHECKSUM, zlib.crc32(body))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, without their checksums; a torn or damaged line is passed over."""
    return [event for line in path.read_bytes().split(b"\n") if (event := _checked(line)) is not None]


def _checked(line: bytes) -> dict[str, Any] | None:
    body, found, checksum = line.rpartition(_CHECKSUM)
    if not found or checksum != b'%08x"}' % zlib.crc32(body):
        return None
    try:
        event = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None
