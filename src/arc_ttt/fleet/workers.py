"""What a run needs of its workers, and the two kinds of events that come from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from arc_ttt.protocol.jobs import CallBack, DeathKind
from arc_ttt.protocol.messages import FromWorker
from arc_ttt.protocol.orders import Hello, Order


@dataclass(frozen=True, slots=True)
class Message:
    """A worker in `slot` has sent a line."""

    slot: int
    body: FromWorker


@dataclass(frozen=True, slots=True)
class Death:
    """The worker in `slot` has ended.

    Args:
        kind: what it died of.
        cause: exit code, signal, silence or a broken line, for people.
        final: whether the slot gets no other worker.
    """

    slot: int
    kind: DeathKind
    cause: str
    final: bool


Event = Message | Death


class Workers(Protocol):
    """Slots with at most one worker each. `Fleet` has them as processes; a simulation has them in virtual time."""

    @property
    def slots(self) -> list[int]:
        """Slots that have a worker, or may get one again."""
        ...

    def ready(self, slot: int) -> bool:
        """Whether the worker can take a job, or is on one that it may finish."""
        ...

    def alive(self, slot: int) -> bool: ...

    def start(self, slot: int) -> bool:
        """Start the worker of a slot; False if it cannot be started now."""
        ...

    def send(self, slot: int, order: Order) -> None:
        """Give the worker of a slot a job."""
        ...

    def poll(self, timeout_s: float) -> list[Event]:
        """What happened, waiting at most `timeout_s` for something to happen."""
        ...

    def clear_deaths(self, slot: int) -> None:
        """Forget earlier deaths in a slot: its worker has finished a job, or what they came from is gone."""
        ...

    def retire(self, slot: int) -> None:
        """Never start a worker in a slot again."""
        ...

    def cancel(self, slot: int, cause: CallBack) -> None:
        """Ask the worker to end its job; one that does not is killed."""
        ...

    def kill(self, slot: int, kind: DeathKind) -> Death:
        """Kill the worker of a slot now. This does not count as one of its deaths."""
        ...

    def set_hello(self, hello: Hello) -> None:
        """Send `hello` as the first line to workers that are started from now on."""
        ...

    def stop(self) -> None:
        """Kill all workers and everything they started."""
        ...
