"""Run processes of generators. Each request goes to an idle process; a process that ends is replaced."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from arc_ttt.errors import InputError

ENDS_WITHIN_S = 5.0
"""Seconds within which a process ends after it has closed its output."""

Kind = TypeVar("Kind", dict[str, Any], list[str])


class GeneratorEnded(Exception):
    """A generator process ended, or wrote no answer. The text continues the words "the process"."""


class GeneratorPool:
    """Generator processes with a fixed hash seed. A process that ended is replaced. Ctrl-C does not reach them."""

    def __init__(self, wheel: str) -> None:
        self._command = [sys.executable, "-m", "arc_lab.pretraining.rearc.generators", wheel]
        self._started: list[subprocess.Popen[str]] = []
        self._idle: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        self._closed = False
        self._lock = threading.Lock()

    def start(self, count: int) -> list[str]:
        """Start `count` processes, and return the ids of the generators that they have.

        Raises:
            InputError: a process ended at its start.
        """
        ids: list[str] = []
        for process in [self._open() for _ in range(count)]:
            ids = self._read_ids(process)
            self._idle.put(process)
        return ids

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for an idle process, and return its answer.

        If the process ends over the request, its replacement is asked once more: other processes may have used the
        memory for which it was killed.

        Raises:
            GeneratorEnded: both processes ended over this request.
            InputError: a replacement ended at its start.
        """
        process = self._idle.get()
        try:
            for again in (True, False):
                try:
                    return _exchange(process, json.dumps(request), dict)
                except GeneratorEnded:
                    other = self._open()
                    self._read_ids(other)
                    process = other
                    if not again:
                        raise
        finally:
            self._idle.put(process)
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        """Kill all processes, and start no other."""
        with self._lock:
            self._closed = True
        for process in self._started:
            process.kill()
            process.communicate()

    def _open(self) -> subprocess.Popen[str]:
        """Start a process. Raises InputError after `close`."""
        source = str(Path(__file__).resolve().parents[3])
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        with self._lock:
            if self._closed:
                raise InputError("the generators were stopped")
            process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._started.append(process)
        return process

    @staticmethod
    def _read_ids(process: subprocess.Popen[str]) -> list[str]:
        """The first line of a process: ids of its generators. Raises InputError."""
        try:
            return _exchange(process, None, list)
        except GeneratorEnded as ended:
            raise InputError(f"a generator process {ended} at its start") from ended


def _exchange(process: subprocess.Popen[str], line: str | None, kind: type[Kind]) -> Kind:
    """Write a line to a generator process, unless it is None, and read the answer, a line of JSON.

    Raises:
        GeneratorEnded: there is no answer of this kind.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError, ValueError):
        if line is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        if isinstance(answer, kind):
            return answer
    raise GeneratorEnded(_how_it_ended(process))


def _how_it_ended(process: subprocess.Popen[str]) -> str:
    """How a process that does not answer ended. A process that still runs is killed."""
    try:
        code = process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return "wrote no answer"
    names = {number.value: number.name for number in signal.Signals}
    return f"ended with status {code}" if code >= 0 else f"was killed by {names.get(-code, f'signal {-code}')}"
