"""Groups of pairs from tasks and generators: which fit a pack, under which names, and what is held back."""

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

Listed = tuple[dict[str, Any], list[bytes]]  # a group's entry in the header, and its pairs


def task_groups(
    dataset: Dataset, settings: PackSettings, evaluation: KnownPairs
) -> tuple[list[Listed], dict[str, str]]:
    """Groups of a data set's own pairs, and by task id why a task was left out.

    The fitting pairs of a task are one group; a task of a held-out family is held out, and so is one, whatever its id,
    that shares a pair with such a training task under some symmetry.
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
    return max(pair[0].shape + pair[1].shape) <= settings.max_side and pair_tokens(pair) <= settings.max_tokens


def _entry(source: str, task_id: str, *, like: str = "") -> dict[str, Any]:
    """A group's entry in the header. like: the task whose family it has, if not its own."""
    family = family_of(like or task_id)
    split = "held-out" if family in held_out_families() else "train"
    return {"name": f"{source}/{task_id}", "family": family, "split": split, "held_pairs": 0}


def least_pairs(entry: Mapping[str, Any]) -> int:
    """With how many pairs a group can fill one sequence (a task has but its own pairs)."""
    return 2 if entry["name"].startswith("tasks/") else 4


def too_few(entry: Mapping[str, Any], pairs: Sequence[bytes]) -> bool:
    return len(pairs) - int(entry["held_pairs"]) < least_pairs(entry)


def count_pairs(groups: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]) -> dict[str, int]:
    """Pairs and groups by what they are for."""
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
    """Groups from the workers' answers, without evaluation pairs, and counts of rejected pairs by reason."""
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
    """Groups of one name that share no pair follow different rules: the first keeps the name, the next are called
    NAME-2, NAME-3 and so on, past names that are in use. One that shares a pair with several has the first one's name.
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
    """Every pair once in the whole pack; one that a held-out group has is kept there. Groups of one name are joined, to
    a held-out one if any of them is."""
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
    """Mark the last `held_pairs` pairs of each training generator, at most a quarter of them, as not for training."""
    marked = []
    for entry, pairs in groups:
        generated = entry["split"] == "train" and entry["name"].startswith("rearc/")
        held = min(settings.held_pairs, len(pairs) // 4) if generated else 0
        marked.append(({**entry, "held_pairs": held}, pairs))
    return marked
