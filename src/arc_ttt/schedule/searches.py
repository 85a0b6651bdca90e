"""Passes of program synthesis: what is next, done and lost."""

from __future__ import annotations

MAX_TRIES = 2  # of a search for programs
