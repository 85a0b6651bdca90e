"""Make groups of pairs from tasks and generators: choose, name, join and hold back."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from arc_lab.data.datasets import Dataset
from arc_lab.data.families import family_of, held_out_families
from arc_lab.data.packs import Pair, pair_bytes, pair_tokens, split_pairs
from arc_lab.pretraining.rearc.known_pairs import KnownPairs, dataset_pairs, held_out_pairs
from arc_lab.pretraining.rearc.settings import PackSettings

Listed = tuple[dict[str, Any], list[bytes]]
"""A group: its entry in the pack's header, and its pairs."""


def task_groups(
    dataset: Dataset, settings: PackSettings, evaluation: KnownPairs
) -> tuple[list[Listed], dict[str, str]]:
    """Make a group of every task of a data set, from those of its pairs that fit.

    A task of a held-out family is held out. A task with any id is held out too if it shares a pair, under some
    symmetry, with a training task of a held-out family.

    Returns:
        The groups, and by task id why a task was left out.
    """
    by_task: dict[str, dict[bytes, Pair]] = {}
    for task_id, pair in dataset_pairs(dataset):
        by_task.setdefault(task_id, {})[pair_bytes(pair)] = pair
    groups = []
    dropped = {problem.task_id: "is no usable task" for problem in dataset.loaded.problems}
    for task_id, pairs in by_task.items():
        shared = next((t for t in map(evaluation.task_with, pairs) if t), None)
        fitting = [raw for raw, pair in pairs.items() if fits(pair, settings)]
        if shared:
            dropped[task_id] = f"shares a pair with evaluation task {shared}"
        elif len(fitting) < 2:
            dropped[task_id] = "fewer than 2 pairs are small enough"
        else:
            copied = next((t for t in map(held_out_pairs().task_with, pairs) if t), task_id)
            groups.append((_entry("tasks", task_id, like=copied), fitting))
    return groups, dropped


def fits(pair: Pair, settings: PackSettings) -> bool:
    """Whether a pair is small enough for the pack."""
    return max(pair[0].shape + pair[1].shape) <= settings.max_side and pair_tokens(pair) <= settings.max_tokens


def _entry(source: str, task_id: str, *, like: str = "") -> dict[str, Any]:
    """A group's entry in the header; its family is that of the task `like`, if that is given."""
    family = family_of(like or task_id)
    split = "held-out" if family in held_out_families() else "train"
    return {"name": f"{source}/{task_id}", "family": family, "split": split, "held_pairs": 0}


def least_pairs(entry: Mapping[str, Any]) -> int:
    """The least number of pairs that a group needs. A task has few pairs, so two are enough."""
    return 2 if entry["name"].startswith("tasks/") else 4


def too_few(entry: Mapping[str, Any], pairs: Sequence[bytes]) -> bool:
    """Whether a group has too few pairs besides those that are held back."""
    return len(pairs) - int(entry["held_pairs"]) < least_pairs(entry)


def count_pairs(groups: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]) -> dict[str, int]:
    """Numbers of pairs and groups, by their use."""
    train = [(entry, pairs) for entry, pairs in groups if entry["split"] == "train"]
    held = [(entry, pairs) for entry, pairs in groups if entry["split"] != "train"]
    back = sum(entry["held_pairs"] for entry, _ in train)
    return {
        "pairs": sum(len(pairs) for _, pairs in groups),
        "training_pairs": sum(len(pairs) for _, pairs in train) - back,
        "held_pairs_of_seen": back,
        "held_out_pairs": sum(len(pairs) for _, pairs in held),
        "training_groups": len(train),
        "held_out_groups": len(held),
    }


def generated_groups(answers: Sequence[Mapping[str, Any]], evaluation: KnownPairs) -> tuple[list[Listed], Counter[str]]:
    """Groups from the generators' answers, without evaluation pairs, and counts of rejected pairs by reason."""
    groups: list[Listed] = []
    rejected: Counter[str] = Counter()
    for answer in answers:
        rejected.update(answer["reasons"])
        made = split_pairs(base64.b64decode(answer["packed"]))
        kept = [pair for pair in made if evaluation.task_with(pair) is None]
        rejected["in an evaluation task"] += len(made) - len(kept)
        groups.append((_entry("rearc", answer["generator"]), kept))
    return groups, +rejected


def named_apart(groups: Sequence[Listed]) -> list[Listed]:
    """Give groups of one name different names if they share no pair, because they then follow different rules.

    The first keeps the name; the next are called NAME-2, NAME-3 and so on, except for names that are in use. A group
    that shares pairs with several others gets the name of the first of them.
    """
    taken = {entry["name"] for entry, _ in groups}
    known: dict[str, dict[str, set[bytes]]] = {}  # by the name given, the names of its rules and their pairs
    named = []
    for entry, pairs in groups:
        given = entry["name"]
        rules = known.setdefault(given, {})
        name = next((name for name, rule in rules.items() if not rule.isdisjoint(pairs)), None)
        if name is None:
            free = (f"{given}-{number}" for number in itertools.count(2) if f"{given}-{number}" not in taken)
            name = next(free) if rules else given
            taken.add(name)
        rules.setdefault(name, set()).update(pairs)
        named.append(({**entry, "name": name}, pairs))
    return named


def without_repeats(groups: Sequence[Listed]) -> tuple[list[Listed], int]:
    """Keep every pair once in the whole pack, in a held-out group if one has it.

    Groups of one name are joined; the joined group is held out if any of them is.

    Returns:
        The groups, and the number of repeated pairs.
    """
    seen: set[bytes] = set()
    kept: dict[str, list[bytes]] = {}
    total = 0
    for entry, pairs in sorted(groups, key=lambda group: group[0]["split"] == "train"):
        total += len(pairs)
        fresh = [pair for pair in dict.fromkeys(pairs) if pair not in seen]
        seen.update(fresh)
        kept.setdefault(entry["name"], []).extend(fresh)
    entries: dict[str, dict[str, Any]] = {}
    for entry, _ in groups:
        if entry["name"] not in entries or entry["split"] != "train":
            entries[entry["name"]] = entry
    return [(entry, kept[name]) for name, entry in entries.items()], total - len(seen)


def hold_back(groups: Sequence[Listed], settings: PackSettings) -> list[Listed]:
    """Hold back the last `held_pairs` pairs of each training generator, but at most a quarter of them."""
    found = []
    for entry, pairs in groups:
        generated = entry["split"] == "train" and entry["name"].startswith("rearc/")
        held = min(settings.held_pairs, len(pairs) // 4) if generated else 0
        found.append(({**entry, "held_pairs": held}, pairs))
    return found
