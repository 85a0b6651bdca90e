"""What a check found: a level, a subject and a text."""

from __future__ import annotations

from dataclasses import dataclass

from arc_ttt.errors import InputError

OK, WARN, FAIL, SKIPPED = "ok", "warn", "FAIL", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how bad, what about, and what was found or is to be done."""

    grade: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.grade:7}  {self.subject}: {self.text}"


class NoModel(InputError):
    """A check needs a model that was not given."""
