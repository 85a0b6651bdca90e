"""What a run needs of its workers, and the two kinds of events that come from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Message:
    """One JSON line of a worker."""

    slot: int
    body: dict[str, Any]


@dataclass(slots=True)
class Death:
    """A worker that ended. cause: exit code, signal, silence, or a broken line; final: it will not be started again."""

    slot: int
    cause: str
    final: bool


class Workers(Protocol):
    """What a run needs of its fleet. `Fleet` has it with real processes; a simulation has it in virtual time."""

    @property
    def slots(self) -> list[int]: ...

    def ready(self, slot: int) -> bool: ...

    def alive(self, slot: int) -> bool: ...

    def start(self, slot: int) -> bool: ...

    def send(self, slot: int, body: Mapping[str, Any]) -> None: ...

    def poll(self, timeout_s: float) -> list[Message | Death]: ...

    def forgive(self, slot: int) -> None: ...

    def retire(self, slot: int) -> None: ...

    def cancel(self, slot: int, cause: str) -> None: ...

    def kill(self, slot: int, cause: str) -> Death: ...

    def greet(self, hello: Mapping[str, Any]) -> None: ...

    def stop(self) -> None: ...
