"""When a model is given up."""

from __future__ import annotations

LOAD_DEATHS = 3  # of workers that load a model that none has loaded yet, after which another is taken, where
LOAD_TRIES = 2  # so many of them were of each device
