"""Pairs of one generator, made by a pool of processes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from arc_lab.pretraining.rearc.generator_pool import GeneratorEnded, GeneratorPool
from arc_lab.pretraining.rearc.generators import package_folder, source_mark
from arc_lab.pretraining.rearc.settings import PackSettings
from arc_ttt.errors import InputError


class Answered:
    """Answers of workers on disk, a line each with the request and a hash, so that an interrupted build goes on."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that an interruption cut, or that was changed, is left out."""
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                request, answer, digest = json.loads(line)
            except (ValueError, TypeError):
                continue
            if digest == self._digest(request, answer):
                self.known[json.dumps(request)] = answer

    @staticmethod
    def _digest(request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([request, answer]).encode()).hexdigest()

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        return self.known.get(json.dumps(request))

    def add(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        with self._lock, self.path.open("a") as file:
            file.write("\n" + json.dumps([request, answer, self._digest(request, answer)]) + "\n")


def generate(
    wheel: str,
    settings: PackSettings,
    processes: int,
    answered: Answered,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[str], list[dict[str, Any]], dict[str, str]]:
    """Ids of all generators; the workers' answers for those asked for, in the order of ids; and by the ids of those
    whose process ended instead, how it ended.

    answered: what need not be asked again.

    Raises:
        InputError: the package is not there, an id of `settings.only` is unknown, or a worker ended at its start.
    """
    source = source_mark(package_folder(wheel))
    with ThreadPoolExecutor(processes) as threads, closing(GeneratorPool(wheel)) as workers:
        ids = workers.start(processes)
        wanted = sorted(set(settings.only or ids))
        unknown = sorted(set(wanted) - set(ids))
        if unknown:
            raise InputError(f"--only: there is no generator {', '.join(unknown[:5])}")

        def ask(task_id: str) -> dict[str, Any] | str:
            request = settings.request(task_id) | {"source": source}  # what other generators answered is not mixed in
            answer = answered.get(request)
            if answer is None:
                try:
                    answer = workers.ask(request)
                except GeneratorEnded as ended:
                    return f"its process {ended}"
                answered.add(request, answer)
            return answer

        answers: list[dict[str, Any]] = []
        ended: dict[str, str] = {}
        for task_id, answer in zip(wanted, threads.map(ask, wanted), strict=True):
            if isinstance(answer, str):
                ended[task_id] = answer
            else:
                answers.append(answer)
            progress(len(answers) + len(ended), len(wanted))
    return ids, answers, ended
