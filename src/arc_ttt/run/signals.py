"""SIGTERM and SIGINT noted instead of obeyed, for a run that ends with its answers on the disk."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT do nothing but call `act` with their number."""

    def handle(number: int, _frame: FrameType | None) -> None:
        act(number)

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: a test or a notebook
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
