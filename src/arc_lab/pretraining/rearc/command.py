"""`python -m arc_lab rearc`: build a training pack from the ReARC generators.

    pip install --no-deps reasoning-gym==0.1.25          # the one extra requirement of this command
    python -m arc_lab rearc --wheel installed --out local/rearc.pack --pairs-per-generator 1000

Every pair passes its generator's own verifier. A pack depends on its options alone: not on the number of processes, the
order in which they finish, or PYTHONHASHSEED. Only a CPU limit that bites can change it, and the end of a process over
a generator, for want of memory, say; such generators are named in the report and in the pack's header. An interrupted
build goes on when the same command is given again: what its generators made stands in OUT.partial until the pack is
written.

Some families of generators (`data.families`) are held out: the pack holds pairs of them to measure on, marked so
that no training ever sees them. Of every other generator the last few pairs are held back too. Pairs that any public
evaluation task of ARC-AGI-1 or ARC-AGI-2 holds, under any of the 8 symmetries, are dropped, and so are training tasks,
and the generators made for them, that share a pair with an evaluation task. A task of `--tasks` that shares a pair with
a training task of a held-out family is held out too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from arc_lab.command_line import resumable
from arc_lab.data.datasets import Dataset, load_dataset, select, usable_tasks
from arc_lab.data.families import family_of, held_out_families
from arc_lab.data.packs import Pair, make_folder, pair_bytes, pair_tokens, split_pairs, write_pack
from arc_lab.pretraining.rearc.generator_pool import GeneratorEnded, GeneratorPool
from arc_lab.pretraining.rearc.generators import package_folder, source_mark
from arc_ttt.deadline import REAL_CLOCK, format_duration
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.tasks.grids import Grid
from arc_ttt.tasks.views import dihedral

HELD_PAIRS = 12
Listed = tuple[dict[str, Any], list[bytes]]  # a group's entry in the header, and its pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSettings:
    """What a pack is made of. The same settings and version of the generators give the same pack."""

    pairs_per_generator: int = 1000
    held_pairs: int = HELD_PAIRS
    """Pairs of each training generator that are held back."""
    held_out_pairs: int = 40
    """Pairs of each generator of a held-out family."""
    max_side: int = 30
    """Longest side of a grid, in cells."""
    max_tokens: int = 1900
    """Longest pair, in tokens of the compact format."""
    difficulty: tuple[float, float] = (0.0, 1.0)
    attempts_per_pair: int = 6
    """At most so many attempts for each pair wanted."""
    cpu_s_per_generator: float = 300.0
    """CPU seconds after which a generator is cut."""
    seed: int = 0
    only: tuple[str, ...] = ()
    """Task ids of the generators to use; empty for all."""
    training_tasks: bool = False
    """Also the pairs of the ARC-AGI-1 training tasks themselves."""

    def __post_init__(self) -> None:
        low, high = self.difficulty
        if not 0 <= low <= high <= 1:
            raise SettingsError(f"--difficulty {low:g},{high:g}: two numbers from 0 to 1, the lower one first")
        limits = {
            "pairs_per_generator": (8, 1_000_000),
            "held_pairs": (0, self.pairs_per_generator // 2),
            "held_out_pairs": (4, 100_000),
            "max_side": (1, 30),
            "max_tokens": (8, 10_000),
            "attempts_per_pair": (1, 1000),
            "cpu_s_per_generator": (0.1, 1e6),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"--{name.replace('_', '-')} must be from {least} to {most}")

    def request(self, task_id: str) -> dict[str, Any]:
        """What a worker is asked for one generator."""
        held_out = family_of(task_id) in held_out_families()
        pairs = self.held_out_pairs if held_out else self.pairs_per_generator
        return {
            "generator": task_id,
            "pairs": pairs,
            "attempts": pairs * self.attempts_per_pair,
            "cpu_s": self.cpu_s_per_generator,
            "max_side": self.max_side,
            "max_tokens": self.max_tokens,
            "difficulty": list(self.difficulty),
            "seed": self.seed,
        }


class KnownPairs:
    """The pairs of sets of tasks under all 8 symmetries, to know them again."""

    def __init__(self, *datasets: Dataset) -> None:
        self.task_of: dict[bytes, str] = {}
        for dataset in datasets:
            for task_id, pair in dataset_pairs(dataset):
                for index in range(8):
                    turned = dihedral(pair[0], index), dihedral(pair[1], index)
                    self.task_of.setdefault(pair_bytes(turned), task_id)

    def task_with(self, pair: bytes) -> str | None:
        """Id of a task of the sets that holds this pair, seen through some symmetry."""
        return self.task_of.get(pair)


@cache
def evaluation_pairs() -> KnownPairs:
    """Those of the public evaluation tasks, 400 of ARC-AGI-1 and 120 of ARC-AGI-2, which no pack may hold."""
    return KnownPairs(load_dataset("evaluation"), load_dataset("evaluation2"))


@cache
def held_out_pairs() -> KnownPairs:
    """Those of the public training tasks of held-out families, which no training may see."""
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


class Answered:
    """Answers of workers on disk, a line each with the request and a hash, so that an interrupted build goes on."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that an interruption cut, or that was changed, is left out."""
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                request, answer, digest = json.loads(line)
            except (ValueError, TypeError):
                continue
            if digest == self._digest(request, answer):
                self.known[json.dumps(request)] = answer

    @staticmethod
    def _digest(request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([request, answer]).encode()).hexdigest()

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        return self.known.get(json.dumps(request))

    def add(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        with self._lock, self.path.open("a") as file:
            file.write("\n" + json.dumps([request, answer, self._digest(request, answer)]) + "\n")


def generate(
    wheel: str,
    settings: PackSettings,
    processes: int,
    answered: Answered,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[str], list[dict[str, Any]], dict[str, str]]:
    """Ids of all generators; the workers' answers for those asked for, in the order of ids; and by the ids of those
    whose process ended instead, how it ended.

    answered: what need not be asked again.

    Raises:
        InputError: the package is not there, an id of `settings.only` is unknown, or a worker ended at its start.
    """
    source = source_mark(package_folder(wheel))
    with ThreadPoolExecutor(processes) as threads, closing(GeneratorPool(wheel)) as workers:
        ids = workers.start(processes)
        wanted = sorted(set(settings.only or ids))
        unknown = sorted(set(wanted) - set(ids))
        if unknown:
            raise InputError(f"--only: there is no generator {', '.join(unknown[:5])}")

        def ask(task_id: str) -> dict[str, Any] | str:
            request = settings.request(task_id) | {"source": source}  # what other generators answered is not mixed in
            answer = answered.get(request)
            if answer is None:
                try:
                    answer = workers.ask(request)
                except GeneratorEnded as ended:
                    return f"its process {ended}"
                answered.add(request, answer)
            return answer

        answers: list[dict[str, Any]] = []
        ended: dict[str, str] = {}
        for task_id, answer in zip(wanted, threads.map(ask, wanted), strict=True):
            if isinstance(answer, str):
                ended[task_id] = answer
            else:
                answers.append(answer)
            progress(len(answers) + len(ended), len(wanted))
    return ids, answers, ended


def build(
    wheel: str,
    out: Path,
    settings: PackSettings,
    *,
    processes: int = 1,
    user_tasks: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Build a pack and write it; returns the report (JSON-ready).

    user_tasks: paths of task files to add (see `arc_lab.data.datasets.load_dataset`).

    Raises:
        InputError: reasoning-gym, a task file or `out` cannot be used.
    """
    start_s = REAL_CLOCK.now()
    evaluation = evaluation_pairs()
    users = [task_groups(_user_tasks(path), settings, evaluation) for path in user_tasks]
    own, own_dropped = task_groups(training_tasks(), settings, evaluation)
    shared = {task_id for task_id, why in own_dropped.items() if "evaluation" in why}
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    make_folder(out.parent)
    answered = Answered(out.with_name(out.name + ".partial"))
    ids, answers, ended = generate(wheel, settings, processes, answered, progress)
    groups, rejected = _generated_groups([a for a in answers if a["generator"] not in shared], evaluation)
    left_out = {f"rearc/{i}": why for i, why in ended.items()}
    left_out |= {f"rearc/{i}": own_dropped[i] for i in sorted(shared & set(ids))}
    if settings.training_tasks:
        groups += own
        left_out |= {f"tasks/{i}": why for i, why in own_dropped.items()}
    for more, dropped in users:
        groups += more
        left_out |= {f"tasks/{i}": why for i, why in dropped.items()}
    groups, repeated = _without_repeats(_named_apart(groups))
    groups = hold_back(groups, settings)
    too_few = {
        entry["name"]: f"fewer than {_least_pairs(entry)} pairs" for entry, pairs in groups if _too_few(entry, pairs)
    }
    groups = [(entry, pairs) for entry, pairs in groups if not _too_few(entry, pairs)]
    if not groups:
        why = "".join(f"; {task_id}: {how}" for task_id, how in list(ended.items())[:3])
        raise InputError(f"no generator gave enough pairs with these settings{why}")
    rejected.update({"also in a held-out group or in an earlier one": repeated} if repeated else {})
    header = {
        "settings": asdict(settings),
        "user_tasks": [Path(path).name for path in user_tasks],
        "rejected_pairs": dict(sorted(rejected.items())),
        "left_out": left_out | too_few,
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
    if re.search(r"\.pack(:\d+)?$", path):
        raise InputError(f"--tasks {path}: the tasks of a pack are there to measure on; name files of tasks")
    return usable_tasks(path)


def _least_pairs(entry: Mapping[str, Any]) -> int:
    """With how many pairs a group can fill one sequence (a task has but its own pairs)."""
    return 2 if entry["name"].startswith("tasks/") else 4


def _too_few(entry: Mapping[str, Any], pairs: Sequence[bytes]) -> bool:
    return len(pairs) - int(entry["held_pairs"]) < _least_pairs(entry)


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


def _generated_groups(
    answers: Sequence[Mapping[str, Any]], evaluation: KnownPairs
) -> tuple[list[Listed], Counter[str]]:
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


def _named_apart(groups: Sequence[Listed]) -> list[Listed]:
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


def _without_repeats(groups: Sequence[Listed]) -> tuple[list[Listed], int]:
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


@resumable
def main(argv: Sequence[str]) -> int:
    """Run the rearc command; 130 when it was interrupted and can go on."""
    options = _parser().parse_args(argv)
    settings = PackSettings(
        pairs_per_generator=options.pairs_per_generator,
        held_pairs=min(HELD_PAIRS, options.pairs_per_generator // 2)
        if options.held_pairs is None
        else options.held_pairs,
        held_out_pairs=options.held_out_pairs,
        max_side=options.max_side,
        max_tokens=options.max_tokens,
        difficulty=_two_numbers(options.difficulty),
        attempts_per_pair=options.attempts_per_pair,
        cpu_s_per_generator=options.cpu_s_per_generator,
        seed=options.seed,
        only=tuple(options.only.split(",")) if options.only else (),
        training_tasks=options.training_tasks,
    )
    start_s = REAL_CLOCK.now()

    def progress(done: int, of: int) -> None:
        if done % 20 == 0 or done == of:
            print(f"{done} of {of} generators, {format_duration(REAL_CLOCK.now() - start_s)}", file=sys.stderr)

    report = build(
        options.wheel,
        options.out,
        settings,
        processes=max(1, options.processes),
        user_tasks=options.tasks,
        progress=progress,
    )
    print_report(report)
    return 0


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--difficulty {text}: write two numbers, as in 0,0.5") from error
    return low, high


def print_report(report: Mapping[str, Any]) -> None:
    """What was made and what was rejected; the last line is the report as JSON."""
    size = report["bytes"]
    print(
        f"{report['pairs']:,} pairs in {report['training_groups']} training and {report['held_out_groups']} held-out "
        f"groups, {size:,} bytes ({size / report['pairs']:.1f} a pair), {report['attempts']:,} attempts, "
        f"{report['cpu_s']} CPU seconds, {report['seconds']} s"
    )
    for reason, count in sorted(report["rejected_pairs"].items(), key=lambda item: -item[1]):
        print(f"  {count:9,} rejected: {reason}")
    for why in sorted(set(report["left_out"].values())):
        names = [name for name, reason in report["left_out"].items() if reason == why]
        print(f"  {len(names):9,} left out, {why}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")
    if report["cut"]:
        print(f"  cut by a CPU limit (a rerun may differ there): {', '.join(report['cut'])}")
    print(json.dumps(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab rearc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--wheel", default="installed", help="'installed', a wheel of reasoning-gym, or a folder with it")
    add("--out", type=Path, required=True, help="the file to write")
    add("--pairs-per-generator", type=int, default=1000, metavar="N")
    add("--held-pairs", type=int, metavar="N", help=f"of each training generator, held back (default: {HELD_PAIRS})")
    add("--held-out-pairs", type=int, default=40, metavar="N", help="of each generator of a held-out family")
    add("--max-side", type=int, default=30, metavar="CELLS")
    add("--max-tokens", type=int, default=1900, metavar="N", help="longest pair in tokens of the compact format")
    add("--difficulty", default="0,1", metavar="LOW,HIGH")
    add(
        "--cpu-s-per-generator",
        type=float,
        default=300.0,
        metavar="S",
        help="cut a generator after so many CPU seconds",
    )
    add("--attempts-per-pair", type=int, default=6, metavar="N", help="at most so many for each pair wanted")
    add("--seed", type=int, default=0)
    add("--only", default="", metavar="ID,ID", help="only these generators")
    add("--training-tasks", action="store_true", help="also the ARC-AGI-1 training tasks' own pairs")
    add("--tasks", action="append", default=[], metavar="PATH", help="also the tasks of this JSON file or folder")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    return parser
