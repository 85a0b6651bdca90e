"""What one task may spend: CPU seconds, wall time and bytes of stored images."""

from __future__ import annotations

from arc_ttt.deadline import REAL_CLOCK, Deadline, cpu_seconds

LONGEST_SKIP_S = 0.05
"""The CPU clock is read at least this often."""


class Budget:
    """Counts down while the engines work; every inner loop asks it.

    CPU seconds are those of the whole process (user + system), so give each process one task at a time and set the
    numeric libraries to one thread. Parts of a budget share its memory.

    Reading the CPU clock can cost as much as a primitive does (50 us were measured under a sandboxed kernel), so it is
    not read again before as much wall time has passed as CPU time was left.
    """

    def __init__(self, cpu_limit_s: float, deadline: Deadline, max_bytes: int) -> None:
        self._begun_s = cpu_seconds()
        self._ends_s = self._begun_s + cpu_limit_s
        self._limit_s = cpu_limit_s
        self._deadline = deadline
        self._memory = [max_bytes]  # bytes left
        self._max_bytes = max_bytes
        self._read_again_s = 0.0

    def spent(self) -> bool:
        """Whether the CPU limit or the deadline has passed."""
        if self._deadline.passed():
            return True
        now_s = REAL_CLOCK.now()
        if now_s < self._read_again_s:
            return False
        left_s = self._ends_s - cpu_seconds()
        self._read_again_s = now_s + min(left_s, LONGEST_SKIP_S)
        return left_s <= 0

    def used_share(self) -> float:
        """Share of the CPU limit that has been used, 0 to 1 and a little above."""
        return (cpu_seconds() - self._begun_s) / self._limit_s if self._limit_s > 0 else 1.0

    def left_s(self) -> float:
        """CPU seconds left."""
        return self._ends_s - cpu_seconds()

    def part(self, share: float) -> Budget:
        """The same budget, ending when `share` of the CPU limit has been used."""
        inner = Budget(self._limit_s, self._deadline, self._max_bytes)
        inner._begun_s = self._begun_s
        inner._ends_s = min(self._ends_s, self._begun_s + share * self._limit_s)
        inner._memory = self._memory
        return inner

    def store(self, size_bytes: int, *, leave: float = 0.0) -> bool:
        """Book memory. Returns False when less than the share `leave` of all would be left; keep nothing then."""
        if self._memory[0] - size_bytes < leave * self._max_bytes:
            return False
        self._memory[0] -= size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give booked memory back."""
        self._memory[0] += size_bytes
