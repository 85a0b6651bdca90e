"""Make batches ahead of the training, window by window, in background processes.

A window is a function of the seed and its number alone: sequences are drawn, sorted into batches of similar length and
shuffled. The state of the feed is the number of the next window and batch, and the length limits of the windows in
progress. An interrupted training therefore continues with exactly the batches that it would have had.
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

_MAKER: WindowMaker | InputError = InputError("this process makes no windows")
"""The maker of a background process, or why it has none."""


def _start(packs: Sequence[Pack], settings: DataSettings, wheel: str, avoid: Any) -> None:
    """Prepare a background process."""
    global _MAKER
    end_with_parent()
    try:
        live = LivePairs(load_generators(wheel), avoid) if wheel else None
        _MAKER = WindowMaker(packs, settings, live)
    except InputError as error:
        _MAKER = error


def _make(number: int, limit: int) -> list[Batch]:
    """The batches of a window, in a background process."""
    if isinstance(_MAKER, InputError):
        raise _MAKER
    return _MAKER(number, limit)


class Feed:
    """Batches in order, made ahead in background processes. `state` and `start` continue the order exactly."""

    def __init__(
        self,
        packs: Sequence[Pack],
        settings: DataSettings,
        *,
        processes: int = 0,
        wheel: str = "",
        avoid: Callable[[bytes], str | None] = lambda pair: None,
    ) -> None:
        """Start the background processes.

        Args:
            packs: where pairs come from.
            settings: everything that decides the batches.
            processes: number of background processes; with 0 this process makes windows when they are needed.
            wheel: the generators' package, for fresh pairs; the batches then depend on time limits too.
            avoid: why a fresh pair, given as bytes, must not be used; None if it may be.

        Raises:
            InputError: the packs have nothing to train on, or the wheel cannot be used.
        """
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
            self._pool.submit(int)  # starts all processes now, before this process has a device or threads
        self._pending: deque[tuple[int, int, Future[list[Batch]] | None]] = deque()
        self._window: list[Batch] = []
        self._index = 0

    def start(self, state: dict[str, Any] | None, limit: int) -> None:
        """Begin with window 0 and this length limit, or where `state` was taken."""
        if state is None:
            state = {"index": 0, "windows": [[n, limit] for n in range(self.settings.windows_ahead + 1)]}
        for number, own_limit in state["windows"]:
            self._request(number, own_limit)
        self._index = state["index"]

    def next(self, limit: int) -> Batch:
        """The next batch. `limit` is the longest sequence of windows that are requested by this call, in tokens.

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
                self._window = future.result() if future else self._maker(number, own_limit)
            except BrokenProcessPool as error:
                raise ArcError(DIED) from error
        batch = self._window[self._index]
        self._index += 1
        return batch

    def state(self) -> dict[str, Any]:
        """JSON-ready: the next batch, and the windows in progress with their limits."""
        return {"index": self._index, "windows": [[number, limit] for number, limit, _ in self._pending]}

    def ready(self) -> int:
        """Number of windows that are made and not yet used."""
        return sum(1 for _, _, future in self._pending if future is not None and future.done()) - bool(self._window)

    def close(self) -> None:
        """End the background processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _request(self, number: int, limit: int) -> None:
        """Ask for a window."""
        try:
            future = self._pool.submit(_make, number, limit) if self._pool is not None else None
        except BrokenProcessPool as error:
            raise ArcError(DIED) from error
        self._pending.append((number, limit, future))
