"""What all demonstrations of a task have in common, and how much of it an answer breaks (ours).

A program can reproduce every demonstration and still do something else on the test input. Then the answer often breaks
a simple property that every demonstration has: no new colours, nothing covered, a symmetric output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from arc_ttt.synthesis.images import colour_counts, label
from arc_ttt.tasks.grids import COLOURS, Task

Cells = NDArray[np.generic]


def properties(before: Cells, after: Cells) -> Iterator[tuple[str, object]]:
    """Named values of one pair of grids; a value that all demonstrations share is an invariant of the task."""
    old, new = colour_counts(before), colour_counts(after)
    yield "no new colour", not (new[old == 0]).any()
    yield "no colour lost", not (old[new == 0]).any()
    yield "same counts", bool((old == new).all())
    yield "colours", tuple((new > 0).tolist())
    yield "number of colours", int((new > 0).sum())
    yield "new colours", tuple(((new > 0) & (old == 0)).tolist())
    yield "counts", tuple(new.tolist())
    yield "mirrored columns", bool((after == after[:, ::-1]).all())
    yield "mirrored rows", bool((after == after[::-1]).all())
    square = after.shape[0] == after.shape[1]
    yield "transposed", square and bool((after == after.T).all())
    yield "parts", label(after != 0, eight=True)[1]
    yield "parts kept", label(after != 0, eight=True)[1] == label(before != 0, eight=True)[1]
    for axis in (0, 1):
        yield f"equal lines {axis}", bool((np.diff(after.astype(np.int8), axis=axis) == 0).all())
    if before.shape == after.shape:
        changed = before != after
        yield "changed", bool(changed.any())
        yield "changed cells", int(changed.sum())
        for colour in range(COLOURS):
            mine = before == colour
            if mine.any():
                yield f"{colour} kept", not changed[mine].any()
                yield f"{colour} gone", bool(changed[mine].all())
            made = after[changed] == colour
            yield f"{colour} added", bool(made.any())


def broken(task: Task, answers: Sequence[Cells]) -> int:
    """How many invariants of the demonstrations the answers, one for each test input, break.

    Only properties of which every demonstration has the same value count, each once.
    """
    pairs = [dict(properties(example.input, example.output)) for example in task.train]
    shared = {name: value for name, value in pairs[0].items() if all(pair.get(name) == value for pair in pairs)}
    wrong = {
        name
        for test, answer in zip(task.tests, answers, strict=True)
        for name, value in properties(test, answer)
        if name in shared and shared[name] != value
    }
    return len(wrong)
