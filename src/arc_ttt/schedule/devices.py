"""Kinds of devices and their assumed speed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceType:
    """Prior of a kind of device, until jobs have shown how fast it is.

    Args:
        flops: sustained in training, a second.
        step_s: fixed time of an optimizer step.
        layer_s: time of one layer for one written token of all views that are decoded at once, where that does not
            depend on the work.
        load_s: from the start of a worker to its first job.
    """

    flops: float
    step_s: float = 0.02
    layer_s: float = 0.0
    load_s: float = 20.0


DEVICE_TYPES = {
    "cpu": DeviceType(40e9, step_s=0.005),  # measured: one core without AVX-512, embedded model
    # Guesses on the careful side, about a sixth of the data sheet's dense 16-bit peak; not measured.
    "t4": DeviceType(9e12, step_s=0.1, layer_s=2e-3, load_s=120.0),
    "p100": DeviceType(4e12, step_s=0.1, layer_s=2e-3, load_s=120.0),
    "l4": DeviceType(20e12, step_s=0.08, layer_s=1.5e-3, load_s=90.0),
    "a100": DeviceType(60e12, step_s=0.06, layer_s=1e-3, load_s=60.0),
    "h100": DeviceType(160e12, step_s=0.05, layer_s=7e-4, load_s=60.0),
}


def device_type(name: str) -> str:
    """The kind of a device by the name its driver gives it; the slowest known GPU for a name that says nothing."""
    words = name.lower().replace("-", " ").split()
    return next((kind for kind in DEVICE_TYPES if kind in words), "cpu" if "cpu" in words else "t4")
