"""Faults of virtual workers, and named mixes of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong: rates an hour of a device, and chances from 0 to 1.

    lost: that a device is lost for good; slow: that one is 1.2 to 3 times slower; long_task: share of the longest tasks
    that run out of memory; stall: that a write of the submission takes up to a minute; slow_kill: that a killed worker
    takes up to half a minute to go; slow_load: that loading takes 20 minutes; deaf: that a worker does not listen when
    its job is called back; outlier: that answering takes five times as long. stretch: most tokens of a training
    sequence for one that its shape tells of, as in formats of text. train_noise, decode_noise: standard deviation of
    the logarithm of seconds.
    """

    crashes: float = 0.0
    hangs: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    long_task: float = 0.0
    stall: float = 0.0
    slow_kill: float = 0.0
    slow_load: float = 0.0
    deaf: float = 0.0
    outlier: float = 0.02
    stretch: float = 1.0
    train_noise: float = 0.06
    decode_noise: float = 0.35


_RARE = {
    "lost": 0.02,
    "slow": 0.1,
    "long_task": 0.03,
    "stall": 0.01,
    "slow_kill": 0.01,
    "slow_load": 0.01,
    "deaf": 0.05,
    "stretch": 2.2,
}
MIXES = {
    "none": Faults(),
    "mild": Faults(crashes=0.2, hangs=0.1, **_RARE),
    "harsh": Faults(crashes=2.0, hangs=1.0, **_RARE),
}
