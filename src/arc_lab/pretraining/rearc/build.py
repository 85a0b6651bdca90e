"""Build a training pack from generators and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arc_lab.data.datasets import Dataset, usable_tasks
from arc_lab.data.packs import pair_bytes, write_pack
from arc_lab.folders import make_folder
from arc_lab.pretraining.rearc.generate import Answered, generate
from arc_lab.pretraining.rearc.groups import (
    count_pairs,
    generated_groups,
    hold_back,
    least_pairs,
    named_apart,
    task_groups,
    too_few,
    without_repeats,
)
from arc_lab.pretraining.rearc.known_pairs import dataset_pairs, evaluation_pairs, training_tasks
from arc_lab.pretraining.rearc.settings import PackSettings
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import InputError


def build(
    wheel: str,
    out: Path,
    settings: PackSettings,
    *,
    processes: int = 1,
    user_tasks: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Build a pack, write it, and return the report (JSON-ready).

    Args:
        wheel: the package of the generators.
        out: the file.
        settings: everything that decides the pack.
        processes: number of processes that generate.
        user_tasks: paths of task files to add (see `arc_lab.data.datasets.load_dataset`).
        progress: called with the numbers of finished and of all generators.

    Raises:
        InputError: reasoning-gym, a task file or `out` cannot be used.
    """
    start_s = REAL_CLOCK.now()
    evaluation = evaluation_pairs()
    users = [task_groups(_user_tasks(path), settings, evaluation) for path in user_tasks]
    own, own_dropped = task_groups(training_tasks(), settings, evaluation)
    shared = {task_id for task_id, pair in dataset_pairs(training_tasks()) if evaluation.task_with(pair_bytes(pair))}
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    make_folder(out.parent)
    answered = Answered(out.with_name(out.name + ".partial"))
    ids, answers, ended = generate(wheel, settings, processes, answered, progress)
    groups, rejected = generated_groups([a for a in answers if a["generator"] not in shared], evaluation)
    left_out = {f"rearc/{i}": why for i, why in ended.items()}
    left_out |= {f"rearc/{i}": own_dropped[i] for i in sorted(shared & set(ids))}
    if settings.training_tasks:
        groups += own
        left_out |= {f"tasks/{i}": why for i, why in own_dropped.items()}
    for more, dropped in users:
        groups += more
        left_out |= {f"tasks/{i}": why for i, why in dropped.items()}
    groups, repeated = without_repeats(named_apart(groups))
    groups = hold_back(groups, settings)
    short = {
        entry["name"]: f"fewer than {least_pairs(entry)} pairs" for entry, pairs in groups if too_few(entry, pairs)
    }
    groups = [(entry, pairs) for entry, pairs in groups if not too_few(entry, pairs)]
    if not groups:
        why = "".join(f"; {task_id}: {how}" for task_id, how in list(ended.items())[:3])
        raise InputError(f"no generator gave enough pairs with these settings{why}")
    rejected.update({"also in a held-out group or in an earlier one": repeated} if repeated else {})
    header = {
        "settings": asdict(settings),
        "user_tasks": [Path(path).name for path in user_tasks],
        "rejected_pairs": dict(sorted(rejected.items())),
        "left_out": left_out | short,
        "cut": sorted(a["generator"] for a in answers if a["cut"]),
        "generators": {a["generator"]: {k: a[k] for k in ("attempts", "reasons")} for a in answers},
    }
    digest = write_pack(out, header, groups)
    answered.path.unlink(missing_ok=True)
    return {
        "pack": str(out),
        "sha256": digest,
        "bytes": out.stat().st_size,
        "seconds": round(REAL_CLOCK.now() - start_s, 1),
        "cpu_s": round(sum(a["cpu_s"] for a in answers), 1),
        "attempts": sum(a["attempts"] for a in answers),
        **count_pairs(groups),
        **{name: header[name] for name in ("rejected_pairs", "left_out", "cut", "settings")},
    }


def _user_tasks(path: str) -> Dataset:
    """The tasks of a file. Raises InputError, also for a pack."""
    if re.search(r"\.pack(:\d+)?$", path):
        raise InputError(f"--tasks {path}: the tasks of a pack are kept to measure on; name files of tasks")
    return usable_tasks(path)
