"""Where the generators' wheel is, and a mark for tests that need it."""

from __future__ import annotations

import importlib.util
import os

import pytest

WHEEL = os.environ.get("REASONING_GYM", "installed")
HAVE_GENERATORS = WHEEL != "installed" or importlib.util.find_spec("reasoning_gym") is not None
needs_generators = pytest.mark.skipif(
    not HAVE_GENERATORS, reason="needs reasoning-gym: pip install --no-deps reasoning-gym==0.1.25"
)
