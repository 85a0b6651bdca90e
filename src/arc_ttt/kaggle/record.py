"""setup.json: what a run on Kaggle found and what it did otherwise than asked."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

from arc_ttt.atomic import write_atomically
from arc_ttt.run.provenance import build_stamp
from arc_ttt.settings import Settings

RECORD = "setup.json"


@dataclass(slots=True)
class Setup:
    """What the run found and decided, line by line; `fallbacks` are those that gave it less than was asked for."""

    notes: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)
        print(line, flush=True)

    def fall_back(self, line: str) -> None:
        self.fallbacks.append(line)
        print(f"FALLBACK: {line}", flush=True)

    def write(self, path: Path, settings: Settings) -> None:
        """Leave a record beside the submission. It names packages and folders, and no value of the environment."""
        with contextlib.suppress(Exception):  # only a record; other people's packages may be odd
            found = set[tuple[str, str]]()
            with contextlib.suppress(Exception):
                for item in importlib.metadata.distributions():
                    found.add((item.metadata["Name"], item.version))
            names = sorted(found, key=lambda item: str(item).lower())
            record = {
                "build": build_stamp(),
                "python": platform.python_version(),
                "glibc": platform.libc_ver()[1],
                "notes": self.notes,
                "fallbacks": self.fallbacks,
                "settings": json.loads(settings.to_json()),
                "packages": {name: version for name, version in names if name},
            }
            write_atomically(path, json.dumps(record, indent=1) + "\n")
