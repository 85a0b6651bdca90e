"""The log of a training: its curve, the file log.jsonl, and lines for a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arc_ttt.atomic import write_atomically


class TrainingLog:
    """The curve of a training, kept in step with log.jsonl."""

    def __init__(self, path: Path, say: Callable[[str], None], *, writes: bool) -> None:
        """Start with an empty curve.

        Args:
            path: the file log.jsonl.
            say: prints a line.
            writes: whether this process prints and writes; the first one does.
        """
        self.path, self.writes = path, writes
        self.say = say if writes else lambda text: None
        self.curve: list[dict[str, Any]] = []

    def restart(self, curve: list[dict[str, Any]]) -> None:
        """Bring curve and file back to a checkpoint's moment. The file of another training is renamed.

        Args:
            curve: the curve in the training's state; `add` appends to this list.
        """
        self.curve = curve
        if self.writes and not curve and self.path.exists():
            self.path.replace(self.path.with_suffix(".previous.jsonl"))
        elif self.writes and curve:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in curve))

    def add(self, step: int, seconds: float, **figures: Any) -> None:
        """Add figures to curve and file."""
        line = {"step": step, "seconds": round(seconds, 1), **figures}
        self.curve.append(line)
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def last(self, name: str) -> Any:
        """The newest value of a figure; None if there is none yet."""
        return next((line[name] for line in reversed(self.curve) if name in line), None)

    def last_step(self, name: str) -> int:
        """The step at which a figure was recorded last; -1 if it never was."""
        return max((line["step"] for line in self.curve if name in line), default=-1)
