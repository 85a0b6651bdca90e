"""Task files: single tasks, challenges, folders, all with full checks."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from arc_ttt.errors import TaskFileError, TaskFormatError
from arc_ttt.tasks.grids import LoadedTasks, Task
from arc_ttt.tasks.parse import parse_tasks

MAX_FILE_BYTES = 512 * 1024 * 1024


def load_tasks(path: Path) -> LoadedTasks:
    """Read a challenges file, one task's own file, or a folder of the latter.

    Accepts UTF-8 with or without a byte order mark, UTF-16, UTF-32, and gzip.

    Raises:
        TaskFileError: nothing of it can be read; names the file.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise TaskFileError(f"{path}: the folder has no .json file")
        tasks: list[Task] = []
        problems: list[TaskFormatError] = []
        counts: dict[str, int] = {}
        for file in files:
            try:
                part = load_tasks(file)
            except TaskFileError as error:
                problems.append(TaskFormatError(str(error), task_id=file.stem))
                counts.setdefault(file.stem, 1)
                continue
            fresh = [task for task in part.tasks if task.task_id not in counts]
            if len(fresh) < len(part.tasks):
                problems.append(
                    TaskFormatError(f"{file}: task ids of another file again; the first is kept", task_id=file.stem)
                )
            tasks.extend(fresh)
            problems.extend(part.problems)
            counts = {**part.test_counts, **counts}
        return LoadedTasks(tuple(tasks), tuple(problems), counts)
    document, repeated = read_json(path)
    if is_one_task(document):
        document = {path.name.split(".")[0]: document}
    return parse_tasks(document, source=path.name, repeated=repeated)


def is_one_task(document: object) -> bool:
    """Whether a document is the body of one task and not an object of tasks by id: it has a list of pairs, and nothing
    in it has one itself."""
    if not isinstance(document, dict):
        return False
    bodies = [body for body in document.values() if isinstance(body, dict)]
    return any(isinstance(document.get(part), list) for part in ("train", "test")) and not any(
        isinstance(body.get("train"), list) or isinstance(body.get("test"), list) for body in bodies
    )


def read_json(path: Path) -> tuple[Any, list[str]]:
    """Parse a JSON file without trusting it. Returns the document, and the names that stand twice in it on top.

    Raises:
        TaskFileError: names the file and what is wrong with it.
    """
    repeated: list[str] = []

    def keep_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        names = Counter(name for name, _ in pairs) if len(made) < len(pairs) else {}
        repeated[:] = [name for name, count in names.items() if count > 1]  # the outermost object comes last
        return made

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TaskFileError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                raw = stream.read(MAX_FILE_BYTES)
        if not raw.strip():
            raise TaskFileError(f"{path}: the file is empty")
        text = raw.decode(json.detect_encoding(raw))
        document = json.loads(text, object_pairs_hook=keep_last, parse_int=_bounded_int)
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise TaskFileError(f"{path}: is not text: {error}") from error
    except RecursionError as error:
        raise TaskFileError(f"{path}: is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise TaskFileError(f"{path}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    return document, repeated


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else math.inf
