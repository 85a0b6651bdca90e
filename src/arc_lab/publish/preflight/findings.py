"""What a check finds: a level, a subject and a text; and why a check cannot be made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from arc_ttt.errors import InputError


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a checkup.

    Args:
        level: how bad it is.
        subject: what it is about.
        text: what was found, and what to do about it.
    """

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:7}  {self.subject}: {self.text}"


class NoModel(InputError):
    """A check needs a model that was not given."""


class AlreadyReported(InputError):
    """A check cannot be made for a reason that another check reports."""
