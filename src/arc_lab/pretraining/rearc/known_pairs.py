"""Know the pairs that no training may see. Only this module guards a pack against leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from arc_lab.data.datasets import Dataset, load_dataset, select
from arc_lab.data.families import family_of, held_out_families
from arc_lab.data.packs import Pair, pair_bytes
from arc_ttt.tasks.grids import Grid
from arc_ttt.tasks.views import dihedral


class KnownPairs:
    """The pairs of some sets of tasks, recognized under all 8 symmetries."""

    def __init__(self, *datasets: Dataset) -> None:
        self.task_of: dict[bytes, str] = {}
        for dataset in datasets:
            for task_id, pair in dataset_pairs(dataset):
                for index in range(8):
                    turned = dihedral(pair[0], index), dihedral(pair[1], index)
                    self.task_of.setdefault(pair_bytes(turned), task_id)

    def task_with(self, pair: bytes) -> str | None:
        """Id of a task of the sets that holds this pair under some symmetry; None if no task does."""
        return self.task_of.get(pair)


@cache
def evaluation_pairs() -> KnownPairs:
    """Pairs of the public evaluation tasks (400 of ARC-AGI-1, 120 of ARC-AGI-2), which no pack may hold."""
    return KnownPairs(load_dataset("evaluation"), load_dataset("evaluation2"))


@cache
def held_out_pairs() -> KnownPairs:
    """Pairs of the public training tasks of held-out families, which no training may see."""
    tasks = training_tasks()
    out = held_out_families()
    return KnownPairs(select(tasks, [task_id for task_id in tasks.loaded.test_counts if family_of(task_id) in out]))


@cache
def training_tasks() -> Dataset:
    """The 400 public training tasks."""
    return load_dataset("training")


def dataset_pairs(dataset: Dataset) -> Iterator[tuple[str, Pair]]:
    """All pairs of all tasks with a known output, demonstrations first."""
    for task in dataset.loaded.tasks:
        for example in task.train:
            yield task.task_id, (example.input, example.output)
        answers: Sequence[Grid] = dataset.solutions.by_task.get(task.task_id, ())
        for test, answer in zip(task.tests, answers, strict=False):
            yield task.task_id, (test, answer)
