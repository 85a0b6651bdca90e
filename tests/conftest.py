"""Two processes share the default run of the tests, file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two where everything is run; none, so that output and debuggers are as ever, where something is picked out."""
    whole = config.args == config.getini("testpaths") and config.option.markexpr == "not slow"
    picked = config.option.keyword or config.option.capture == "no" or config.option.usepdb
    return 2 if whole and not picked and (os.cpu_count() or 1) > 1 else 0


@pytest.fixture
def environment_as_before() -> Iterator[None]:
    """A run on Kaggle sets variables for its workers; other tests must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
