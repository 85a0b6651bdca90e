"""CPU program synthesis: programs that reproduce a task's demonstrations, found by search, without any model.

`synthesize` is all that the rest of the project needs. Reading order: solver.py, then pieces.py and stacker.py (search
for pieces and decision lists of them), cells.py and tree.py (rules for single cells), gate.py (how sure to be).
"""

from __future__ import annotations

from arc_ttt.deadline import Deadline
from arc_ttt.grids import Task
from arc_ttt.synthesis.solver import ProgramCandidate, solve

__all__ = ["ProgramCandidate", "synthesize"]

_NEVER = Deadline.never()


def synthesize(
    task: Task,
    cpu_limit_s: float = 2.0,
    *,
    deadline: Deadline = _NEVER,
    max_memory_bytes: int | None = None,
) -> tuple[ProgramCandidate, ...]:
    """Candidates for all test inputs of `task`, test inputs in order, best first for each of them.

    The answer depends on the task and, where the limit cuts work short, on the speed of the machine; nothing else.

    Args:
        cpu_limit_s: CPU seconds of this process (user + system) that the call may take; a call that finds a sure
            answer early takes less. 2 is a good first limit; 10 and 60 find a few tasks more.
        deadline: work also ends when this moment has passed.
        max_memory_bytes: bound on what is stored of images and tables, default 200 MiB. What is just being made comes
            on top, at most 60 MB in one table; the process as a whole stays below 500 MB with the default.

    Raises:
        ValueError: a limit is not positive.
    """
    if cpu_limit_s <= 0 or (max_memory_bytes is not None and max_memory_bytes <= 0):
        raise ValueError(f"limits must be more than 0: cpu_limit_s={cpu_limit_s}, max_memory_bytes={max_memory_bytes}")
    return solve(task, cpu_limit_s=cpu_limit_s, deadline=deadline, max_memory_bytes=max_memory_bytes)
