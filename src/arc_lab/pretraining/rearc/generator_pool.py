"""Processes of generators: each request goes to an idle one, and one that ends over its request is replaced."""

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

ENDS_WITHIN_S = 5.0  # a process that has closed its output
Kind = TypeVar("Kind", dict[str, Any], list[str])


class GeneratorEnded(Exception):
    """A generator process ended, or wrote what is no answer. The text goes on after "the process"."""


class GeneratorPool:
    """Generator processes with a fixed hash seed. One that ended is replaced by another. Ctrl-C does not reach them."""

    def __init__(self, wheel: str) -> None:
        self._command = [sys.executable, "-m", "arc_lab.pretraining.rearc.generators", wheel]
        self._started: list[subprocess.Popen[str]] = []
        self._idle: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        self._closed = False
        self._lock = threading.Lock()

    def start(self, count: int) -> list[str]:
        """Start so many and return the ids of the generators that they know.

        Raises:
            InputError: one of them ended at its start.
        """
        ids: list[str] = []
        for process in [self._open() for _ in range(count)]:
            ids = self._greet(process)
            self._idle.put(process)
        return ids

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of an idle worker; waits until one is idle. Where it ends, another takes its place and is asked
        too: it may have been killed for what others did.

        Raises:
            GeneratorEnded: both ended over this request.
            InputError: another ended at its start.
        """
        process = self._idle.get()
        try:
            for again in (True, False):
                try:
                    return _exchange(process, json.dumps(request), dict)
                except GeneratorEnded:
                    other = self._open()
                    self._greet(other)
                    process = other
                    if not again:
                        raise
        finally:
            self._idle.put(process)
        raise AssertionError("it has answered or ended")

    def close(self) -> None:
        """Kill all, and start no other."""
        with self._lock:
            self._closed = True
        for process in self._started:
            process.kill()
            process.communicate()

    def _open(self) -> subprocess.Popen[str]:
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
    def _greet(process: subprocess.Popen[str]) -> list[str]:
        try:
            return _exchange(process, None, list)
        except GeneratorEnded as ended:
            raise InputError(f"a generator process {ended} at its start") from ended


def _exchange(process: subprocess.Popen[str], line: str | None, kind: type[Kind]) -> Kind:
    """Write a line, if there is one, to a generator process and read the line of JSON that it answers.

    Raises:
        GeneratorEnded: there is no such line.
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
    """What became of a process that does not answer; one that lives on is killed."""
    try:
        code = process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return "wrote no answer"
    names = {number.value: number.name for number in signal.Signals}
    return f"ended with status {code}" if code >= 0 else f"was killed by {names.get(-code, f'signal {-code}')}"
