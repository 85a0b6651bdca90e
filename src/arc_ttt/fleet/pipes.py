"""Lines of JSON over pipes: never blocking, bounded, and refused when they flood."""

from __future__ import annotations

import json
from typing import Any

MAX_LINE_BYTES = 16 * 1024 * 1024
READS_A_POLL = 8
FLOOD_BYTES, FLOOD_LINES, FLOOD_S = 64 * 1024 * 1024, 10_000, 10.0  # more of either in so many seconds is no answer


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A message, or None for anything else."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and isinstance(body.get("type"), str) else None
