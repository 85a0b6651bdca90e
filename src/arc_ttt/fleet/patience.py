"""How long workers may be silent, and how often they may die."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a worker may be silent in each phase, how long it may take to go, and how often it may die.

    Source: Erlang supervisors for the restart window; the seconds are ours.
    """

    load_s: float = 600.0
    """From a worker's start until it is ready, in a slot where no load has taken longer; see `loading_s`."""
    first_s: float = 600.0
    """For the first round of a phase, in which kernels are compiled."""
    step_s: float = 120.0
    """For a micro-batch of a training step, or `times` the median of this worker's micro-batches if that is longer."""
    round_s: float = 120.0
    """For a round of anything else, or `times` the median of this worker's rounds if that is longer."""
    times: float = 10.0
    cancel_s: float = 10.0
    """From a call back until SIGTERM, or twice the median of the worker's silences in this phase if that is longer."""
    term_s: float = 5.0
    """From that SIGTERM until SIGKILL."""
    hang_s: float = 1.0
    """From the SIGTERM for a silent worker, which lets it log where it stands, until SIGKILL."""
    close_s: float = 0.3
    """From the end of a worker's output until its own end."""
    gone_s: float = 30.0
    """From SIGKILL until a slot is given up whose process does not go away (it is stuck in the kernel)."""
    stop_s: float = 0.8
    """From the SIGKILL for all workers at the end of a run until nobody waits for them any longer."""
    deaths: int = 5
    """A slot is retired after this many deaths within `window_s` with no finished job in between. A slot that has
    finished a job earlier gets one rest of `window_s` first."""
    window_s: float = 600.0
    backoff_s: float = 0.25
    """Wait before the second start; it doubles with each death in the window."""
    refused_s: float = 10.0
    """Wait after the system refused to start a process."""

    def loading_s(self, slow_loads: int) -> float:
        """Seconds that a worker may load after `slow_loads` loads of its slot took too long.

        They double up to eight times: a large model on a slow disk must not be killed again and again.
        """
        return self.load_s * (1, 2, 4, 8)[min(3, slow_loads)]

    def backoff(self, deaths: int) -> float:
        """Seconds to wait before the next start, after `deaths` in the window."""
        return float(self.backoff_s * 2 ** max(0, deaths - 1))


PATIENCE = Patience()


class Record:
    """Deaths in one slot, and whether they retire it. Shared by the fleet of processes and the simulated one."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._deaths_s: list[float] = []
        self.retired = False
        self.proved = False
        """A worker of this slot has finished a job since the slot last rested."""

    def clear(self) -> None:
        """Forget the deaths; a slot that was retired gets workers again."""
        self._deaths_s.clear()
        self.retired = False

    def count(self, now_s: float) -> float:
        """Count a death at `now_s`. Returns the seconds to wait before the next start."""
        limits = self._patience
        self._deaths_s = [at_s for at_s in self._deaths_s if now_s - at_s <= limits.window_s]
        self._deaths_s.append(now_s)
        wait_s = limits.backoff(len(self._deaths_s))
        if len(self._deaths_s) >= limits.deaths:
            if self.proved:
                self._deaths_s.clear()
                self.proved, wait_s = False, limits.window_s
            else:
                self.retired = True
        return wait_s
