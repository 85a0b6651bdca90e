"""How long workers may be silent, and how often they may die."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a worker may be silent in each phase, how long it may take to go, and how often it may die.

    Source: Erlang supervisors for the restart window; the seconds are ours.
    """

    load_s: float = 600.0
    """From its start until it is ready, in a slot where no load has taken longer: see `loading_s`."""
    first_s: float = 600.0
    """The first round of a phase, in which kernels are compiled."""
    step_s: float = 120.0
    """A micro-batch of a training step, or `times` the median of this worker's where that is longer."""
    round_s: float = 120.0
    """The same for a round of anything else."""
    times: float = 10.0
    cancel_s: float = 10.0
    """From `cancel` until SIGTERM, or twice the median of its silences in the same phase where that is longer."""
    term_s: float = 5.0
    """From that SIGTERM until SIGKILL."""
    hang_s: float = 1.0
    """From the SIGTERM for a silent worker, which lets it log where it stands, until SIGKILL."""
    close_s: float = 0.3
    """From the end of its output until its own end."""
    gone_s: float = 30.0
    """From SIGKILL until a slot whose process will not go (stuck in the kernel) is given up with its device."""
    stop_s: float = 0.8
    """From the SIGKILL for all workers at the end of a run until they are left to themselves."""
    deaths: int = 5
    """So many deaths within `window_s`, none of its jobs finished in between, retire a slot; where a job was finished
    before them, it first rests once for `window_s`."""
    window_s: float = 600.0
    backoff_s: float = 0.25
    """Wait before the second start; doubles with each death in the window."""
    refused_s: float = 10.0
    """The same where the system refused to start a process."""

    def loading_s(self, slow_loads: int) -> float:
        """How long a worker may load where so many loads before had taken too long: a large model on a slow disk must
        not be killed again and again."""
        return self.load_s * (1, 2, 4, 8)[min(3, slow_loads)]


PATIENCE = Patience()
