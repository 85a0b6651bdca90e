"""When the successors of a dead worker do without something, and when the model is given up. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from enum import Enum

from arc_ttt.protocol.jobs import DeathKind

MODEL_DEATHS = 3
"""Give a model up after this many workers died while they loaded it and none succeeded ..."""
MODEL_TRIES = 2
"""... provided that every device has tried this often."""


class Remedy(Enum):
    """What the next workers do without."""

    KEEP = "nothing"
    NO_TRIALS = "trying out steps before the first job"
    NO_RECORDING = "recorded steps"
    GIVE_UP = "the model"


class ModelTrust:
    """Deaths and refusals of device workers while they load one model, counted until one has loaded it.

    has_fallback: whether there is another model to go on with. Without one, deaths never give the model up.
    """

    def __init__(self, *, has_fallback: bool) -> None:
        self.has_fallback = has_fallback
        self.generation = 0
        """How many models were given up before this one."""
        self._loaded = False
        self._refused: set[int] = set()
        self._deaths: Counter[int] = Counter()

    def next_model(self) -> None:
        """The model was given up: begin anew with the last one."""
        self.generation += 1
        self.has_fallback = False
        self._loaded = False
        self._refused.clear()
        self._deaths.clear()

    def loaded(self) -> None:
        """A worker has loaded the model."""
        self._loaded = True

    def refused(self, slot: int, devices: Collection[int]) -> Remedy:
        """A worker says that it cannot load the model. If another one can, or may, that is this worker's own trouble.

        devices: slots of devices that have a worker, or may get one again.
        """
        self._refused.add(slot)
        return Remedy.GIVE_UP if not self._loaded and self._refused.issuperset(devices) else Remedy.KEEP

    def died(self, slot: int, kind: DeathKind, devices: Collection[int], *, was_ready: bool) -> Remedy:
        """A device worker died. Its successors do without what may have caused it."""
        if not kind.is_its_own:
            return Remedy.KEEP
        if not was_ready and not self._loaded and self.has_fallback:
            self._deaths[slot] += 1
            fewest = min((self._deaths[device] for device in devices), default=MODEL_DEATHS)
            if self._deaths.total() >= MODEL_DEATHS and fewest >= MODEL_TRIES:
                return Remedy.GIVE_UP
        if kind is DeathKind.DEVICE_LOST:
            return Remedy.NO_RECORDING
        return Remedy.KEEP if was_ready else Remedy.NO_TRIALS
