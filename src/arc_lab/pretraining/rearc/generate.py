"""Make the pairs of all generators in a pool of processes, and keep the answers on the disk."""

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
from arc_lab.pretraining.rearc.generators import package_folder, source_fingerprint
from arc_lab.pretraining.rearc.settings import PackSettings
from arc_ttt.errors import InputError


class Answered:
    """Answers of generators on the disk, so that an interrupted build continues: request, answer and hash a line."""

    def __init__(self, path: Path) -> None:
        """Read the file. A line that was cut by an interruption, or changed, is ignored."""
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
        """The known answer to a request; None if there is none."""
        return self.known.get(json.dumps(request))

    def add(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Write an answer to the file."""
        with self._lock, self.path.open("a") as file:
            file.write("\n" + json.dumps([request, answer, self._digest(request, answer)]) + "\n")


def generate(
    wheel: str,
    settings: PackSettings,
    processes: int,
    answered: Answered,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[str], list[dict[str, Any]], dict[str, str]]:
    """Ask every generator for its pairs.

    Args:
        wheel: the package of the generators.
        settings: what is asked, and of which generators.
        processes: number of processes.
        answered: earlier answers, which are not asked for again.
        progress: called with the numbers of finished and of all generators.

    Returns:
        Ids of all generators; the answers, in the order of ids; and for each generator whose process ended, how.

    Raises:
        InputError: the package is not there, an id in `settings.only` is unknown, or a process ended at its start.
    """
    source = source_fingerprint(package_folder(wheel))
    with ThreadPoolExecutor(processes) as threads, closing(GeneratorPool(wheel)) as workers:
        ids = workers.start(processes)
        wanted = sorted(set(settings.only or ids))
        unknown = sorted(set(wanted) - set(ids))
        if unknown:
            raise InputError(f"--only: there is no generator {', '.join(unknown[:5])}")

        def ask(task_id: str) -> dict[str, Any] | str:
            request = settings.request(task_id) | {"source": source}  # answers of another version do not count
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
