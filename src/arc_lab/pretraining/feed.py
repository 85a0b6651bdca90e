"""Pretraining data: windows of batches from a pack, each a function of the seed and its number alone.

A window is drawn, made into sequences, cut into batches of similar length and shuffled, in background processes. The
feed's whole state is which window comes next, at which batch, and the length limits of the windows under way; so an
interrupted training goes on with exactly the batches that it would have had.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from arc_lab.data.packs import Pack
from arc_lab.pretraining.batches import Batch
from arc_lab.pretraining.rearc.generators import end_with_parent, load_generators, package_folder
from arc_lab.pretraining.settings import DataSettings
from arc_lab.pretraining.windows import LivePairs, WindowMaker
from arc_ttt.errors import ArcError, InputError

DIED = "a background process that makes data died (perhaps the system killed it for its memory)"


_MAKER: WindowMaker | InputError | None = None  # of a background process, or why it has none


def _start(packs: Sequence[Pack], settings: DataSettings, wheel: str, avoid: Any) -> None:
    global _MAKER
    end_with_parent()
    try:
        live = LivePairs(load_generators(wheel), avoid) if wheel else None
        _MAKER = WindowMaker(packs, settings, live)
    except InputError as error:
        _MAKER = error


def _make(number: int, limit: int) -> list[Batch]:
    assert _MAKER is not None
    if isinstance(_MAKER, InputError):
        raise _MAKER
    return _MAKER(number, limit)


class Feed:
    """Batches in order, made ahead in background processes; `state` and `start` continue it exactly.

    processes: 0 makes windows in this process when they are needed. wheel: where fresh pairs come from (live); then
    the batches depend on time limits too. avoid: tells of a fresh pair (as bytes) whether it must not be used.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        settings: DataSettings,
        *,
        processes: int = 0,
        wheel: str = "",
        avoid: Callable[[bytes], str | None] = lambda pair: None,
    ) -> None:
        """Raises InputError for packs without anything to train on, or a `wheel` that is none."""
        self.settings = settings
        if wheel:
            package_folder(wheel)
        self._maker = WindowMaker(packs, settings)
        self._pool: ProcessPoolExecutor | None = None
        if processes == 0:
            self._maker.live = LivePairs(load_generators(wheel), avoid) if wheel else None
        else:
            self._pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("fork"), _start, (packs, settings, wheel, avoid)
            )
            self._pool.submit(int)  # starts all processes now, before this one holds a device or threads
        self._pending: deque[tuple[int, int, Future[list[Batch]] | None]] = deque()
        self._window: list[Batch] = []
        self._index = 0

    def start(self, state: dict[str, Any] | None, limit: int) -> None:
        """Begin with window 0, or where `state` says."""
        if state is None:
            state = {"index": 0, "windows": [[n, limit] for n in range(self.settings.windows_ahead + 1)]}
        for number, own_limit in state["windows"]:
            self._request(number, own_limit)
        self._index = state["index"]

    def next(self, limit: int) -> Batch:
        """The next batch; `limit` is the longest sequence of windows that are requested now.

        Raises:
            ArcError: a background process died.
        """
        while not self._window or self._index >= len(self._window):
            if self._window:
                self._pending.popleft()
                self._request(self._pending[-1][0] + 1, limit)
                self._index = 0
            number, own_limit, future = self._pending[0]
            try:
                self._window = future.result() if future else self._make_here(number, own_limit)
            except BrokenProcessPool as error:
                raise ArcError(DIED) from error
        batch = self._window[self._index]
        self._index += 1
        return batch

    def state(self) -> dict[str, Any]:
        """JSON-ready: the next batch, and the windows under way with their limits."""
        return {"index": self._index, "windows": [[number, limit] for number, limit, _ in self._pending]}

    def ready(self) -> int:
        """Windows that are made and not yet used."""
        return sum(1 for _, _, future in self._pending if future is not None and future.done()) - bool(self._window)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _request(self, number: int, limit: int) -> None:
        try:
            future = self._pool.submit(_make, number, limit) if self._pool is not None else None
        except BrokenProcessPool as error:
            raise ArcError(DIED) from error
        self._pending.append((number, limit, future))

    def _make_here(self, number: int, limit: int) -> list[Batch]:
        return self._maker(number, limit)
