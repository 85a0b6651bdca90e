"""What one task may spend: CPU seconds, wall time and bytes of stored images."""

from __future__ import annotations

import time

from arc_ttt.deadline import Deadline


class Budget:
    """Counts down while the engines work; every inner loop asks it.

    CPU seconds are those of the whole process (user + system), so give each process one task at a time and set the
    numeric libraries to one thread.
    """

    def __init__(self, cpu_limit_s: float, deadline: Deadline, max_bytes: int) -> None:
        self._ends_s = time.process_time() + cpu_limit_s
        self._limit_s = cpu_limit_s
        self._deadline = deadline
        self._bytes_left = max_bytes

    def spent(self) -> bool:
        """Whether the CPU limit, the deadline or the memory has run out."""
        return self._bytes_left <= 0 or time.process_time() >= self._ends_s or self._deadline.passed()

    def used_share(self) -> float:
        """Share of the CPU limit that has been used, 0 to 1 and above."""
        return 1.0 - (self._ends_s - time.process_time()) / self._limit_s if self._limit_s > 0 else 1.0

    def part(self, share: float) -> Budget:
        """A budget that ends when `share` of the whole CPU limit has been used, with the same deadline and memory."""
        inner = Budget(self._limit_s, self._deadline, self._bytes_left)
        inner._ends_s = self._ends_s - (1.0 - share) * self._limit_s
        return inner

    def store(self, size_bytes: int) -> bool:
        """Book memory. Returns False when it does not fit; nothing must be kept then."""
        if size_bytes > self._bytes_left:
            return False
        self._bytes_left -= size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give booked memory back."""
        self._bytes_left += size_bytes
