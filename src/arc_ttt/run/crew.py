"""The workers of a run by their roles: devices, and searchers beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from arc_ttt.deadline import Clock
from arc_ttt.fleet.workers import Death, Workers
from arc_ttt.protocol.jobs import DeathKind

MEMORY_EVERY_S = 1.0
"""How often the machine's memory is looked at."""
LOW_MEMORY = 512 * 1024**2
"""Bytes; with less memory left, searchers are given up."""


class Crew:
    """Slots with their roles, and what is known of the workers in them.

    Args:
        workers: the fleet.
        searchers: slots whose workers synthesize; all others are devices.
        clock: of the run.
        free_memory: bytes that the machine has left, None where nobody knows.
    """

    def __init__(
        self, workers: Workers, searchers: Collection[int], clock: Clock, free_memory: Callable[[], int | None]
    ) -> None:
        self.workers = workers
        self._searchers = frozenset(searchers)
        self._clock, self._free_memory = clock, free_memory
        self.all_devices = [slot for slot in workers.slots if slot not in self._searchers]
        """Slots of devices at the start of the run."""
        self._loaded: set[int] = set()
        self._memory_looked_at_s = -math.inf
        self._short_of_memory = False

    def searches(self, slot: int) -> bool:
        """Whether the worker of a slot synthesizes."""
        return slot in self._searchers

    @property
    def devices(self) -> list[int]:
        """Slots of devices that have a worker, or may get one again."""
        return [slot for slot in self.workers.slots if not self.searches(slot)]

    @property
    def searchers(self) -> list[int]:
        """Slots of searchers that have a worker, or may get one again."""
        return [slot for slot in self.workers.slots if self.searches(slot)]

    def has_loaded(self, slot: int) -> bool:
        """Whether the worker of a slot has said that it is ready, and lives."""
        return slot in self._loaded

    def note_loaded(self, slot: int) -> bool:
        """A worker says that it is ready. Returns whether that is news from a worker that lives."""
        if slot in self._loaded or not self.workers.alive(slot):
            return False
        self._loaded.add(slot)
        return True

    def note_death(self, slot: int) -> bool:
        """A worker has died. Returns whether it had been ready."""
        was_ready = slot in self._loaded
        self._loaded.discard(slot)
        return was_ready

    def missing(self) -> list[int]:
        """Slots that should get a worker now. While memory runs low, searchers are not started."""
        return [
            slot
            for slot in self.workers.slots
            if not self.workers.alive(slot) and not (self._short_of_memory and self.searches(slot))
        ]

    def watch_memory(self) -> Death | None:
        """While the machine's memory runs low, kill one searcher at each look."""
        now_s = self._clock.now()
        if now_s - self._memory_looked_at_s < MEMORY_EVERY_S:
            return None
        self._memory_looked_at_s = now_s
        free = self._free_memory()
        self._short_of_memory = free is not None and free < LOW_MEMORY
        alive = [slot for slot in self.searchers if self.workers.alive(slot)]
        return self.workers.kill(alive[-1], DeathKind.NO_MEMORY) if self._short_of_memory and alive else None

    def none_ready(self, slots: Collection[int]) -> bool:
        """Whether the workers of these slots are all still loading, or not there."""
        return not any(self.workers.ready(slot) for slot in slots)
