"""`python -m arc_lab ablate`: the paper's ablation table with this kernel, on the same tasks and seed, paired.

    python -m arc_lab ablate --tasks ttt80 --limit 10m --out local/ablations
    python -m arc_lab ablate --tasks local/rearc.pack:100 --only full,no-augmentation --limit 20m --out local/ablations
    python -m arc_lab ablate --tasks local/rearc.pack:100 --only none --variant "rank-64 ttt.rank=64 ttt.alpha=64"

Every variant is one dry run under the same limit, without program synthesis. A variant whose report stands in OUT
already, of the same options and weights, is not run again. A task counts as solved when all its test inputs are right
at two attempts; "any candidate" counts it when the right grids are among all that the model wrote. Differences are
taken over the tasks that both the variant and the full method answered. Seconds are those of the task's passes on the
device, training and decoding together, mean over the answered tasks.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.data.datasets import DATASETS_HELP, read_ids, usable_tasks
from arc_lab.evaluate import dry_run
from arc_lab.evaluate.scores import Paired, TaskScore, summarize
from arc_ttt.atomic import write_atomically
from arc_ttt.checkpoints.folders import model_folder, weights_fingerprint
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import InputError, SettingsError
from arc_ttt.machine import count_gpus
from arc_ttt.protocol.jobs import BASE, TTT

FULL = "full"
NONE = "none"  # for --only: no built-in variant but the full method


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table. paper: tasks of 80 that the paper solved so (its ablation table; 1B model)."""

    name: str
    about: str
    changes: tuple[str, ...]
    paper: int | None


VARIANTS = (
    Variant(FULL, "test-time training as it is", (), 29),
    Variant("fine-tuned", "the base model alone", ("ttt.scope=none",), 5),
    Variant("no-augmentation", "leave-one-out tasks without transformations", ("ttt.augment=none",), 13),
    Variant("direct", "each pair alone, not in context", ("ttt.in_context=false",), 18),
    Variant("shared", "one adapter for all tasks (transductive)", ("ttt.scope=shared",), 22),
    Variant("no-demonstration-loss", "loss on the left-out pair alone", ("ttt.demonstration_loss=false",), 26),
    Variant(
        "16-bit",
        "16-bit weights (the paper: 26 with 4 bits; models below 200M parameters are expanded anyway)",
        ("model.quantize=none",),
        29,
    ),
    Variant("random-start", "the base not trained on ReARC", ("model.random_start=true",), 9),
    Variant("joint", "a short stage over all tasks first (transductive)", ("ttt.scope=joint",), None),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a variant: tasks answered and solved; and against the full method on the tasks that both answered.

    solved: at two attempts. solved_1: at one. oracle: with any candidate. seconds: of an answered task, mean.
    """

    variant: Variant
    answered: int
    solved_1: int
    solved: int
    oracle: int
    seconds: float
    against: Paired

    def document(self) -> dict[str, Any]:
        return {
            "name": self.variant.name,
            "answered": self.answered,
            "solved_at_1": self.solved_1,
            "solved": self.solved,
            "solved_by_any_candidate": self.oracle,
            "seconds_a_task": round(self.seconds, 2),
            "common": self.against.common,
            "won": self.against.won,
            "lost": self.against.lost,
            "difference": round(self.against.difference, 4),
            "standard_error": round(self.against.standard_error, 4),
            "paper_of_80": self.variant.paper,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """How a variant answered one task, and in how many seconds on the device."""

    score: TaskScore
    seconds: float

    @property
    def solved(self) -> bool:
        return self.score.solved(2)


def answered_tasks(report: Mapping[str, Any]) -> dict[str, Answer]:
    """The tasks that were answered (after training, or by the base where nothing trains), by their ids."""
    found = {}
    for task_id, row in report["by_task"].items():
        stage = row.get(TTT) or (row.get(BASE) if report["settings"]["ttt"]["scope"] == "none" else None)
        if stage and "ranks" in stage:
            found[task_id] = Answer(TaskScore(task_id, tuple(stage["ranks"])), stage["seconds"])
    return found


def compare(variant: Variant, own: Mapping[str, Answer], full: Mapping[str, Answer]) -> Row:
    """The row of a variant from how it and the full method answered."""
    solved = ({task_id: answer.solved for task_id, answer in answers.items()} for answers in (own, full))
    summary = summarize(answer.score for answer in own.values())
    return Row(
        variant,
        answered=len(own),
        solved_1=summary.at_1,
        solved=summary.at_2,
        oracle=summary.oracle,
        seconds=sum(answer.seconds for answer in own.values()) / max(1, len(own)),
        against=Paired.of(*solved),
    )


def parse_variant(text: str) -> Variant:
    """A variant of the user's own from "NAME section.field=value ...".

    Raises:
        SettingsError: no name that can be a folder's, one of the built-in variants, or no change.
    """
    name, *changes = text.split() or [""]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise SettingsError(f"--variant {text!r}: begin with a name of letters, digits, dots and dashes")
    if name in (NONE, *(variant.name for variant in VARIANTS)):
        raise SettingsError(f"--variant {name}: is the name of a built-in variant")
    if not changes:
        raise SettingsError(f"--variant {name}: name at least one setting to change, as section.field=value")
    return Variant(name, f"{name}: {' '.join(changes)}", tuple(changes), None)


def choose(only: str, own: Sequence[Variant]) -> list[Variant]:
    """The full method and the variants asked for, built-in ones first.

    only: names by commas; empty for all, "none" for no built-in one. Own variants are left out only where it names
    others of them.

    Raises:
        SettingsError: a name is unknown, or two own variants have the same one.
    """
    names = [variant.name for variant in (*VARIANTS, *own)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SettingsError(f"--variant {repeated[0]}: given twice")
    asked = {name.strip() for name in only.split(",") if name.strip()}
    for name in sorted(asked - {*names, NONE}):
        raise SettingsError(f"--only {name}: there are {', '.join(names)}")
    own_asked = asked & {variant.name for variant in own}
    built_in = [variant for variant in VARIANTS if not asked or variant.name in {*asked, FULL}]
    return built_in + [variant for variant in own if not own_asked or variant.name in own_asked]


def arguments(variant: Variant, options: argparse.Namespace) -> list[str]:
    """What the dry run of a variant is called with."""
    out = options.out / variant.name
    argv = ["--tasks", options.tasks, "--limit", options.limit, "--out", str(out), "--seed", str(options.seed)]
    for name in ("model", "format", "first", "workers", "ids"):
        if getattr(options, name) is not None:
            argv += [f"--{name}", str(getattr(options, name))]
    for change in ("synthesis.enabled=false", *options.set, *variant.changes):
        argv += ["--set", change]
    return argv


def run_variant(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """The report of a variant's dry run: the one that stands in its folder if it is of the same run, else a new one.

    Raises:
        SettingsError: the dry run refused its arguments, was interrupted, or had no model.
    """
    out = options.out / variant.name
    argv = arguments(variant, options)
    asked = out / "asked.json"
    report = out / "report.json"
    model = dry_run.make_settings(dry_run.make_parser().parse_args(argv)).model.path
    question = json.dumps([argv, weights_fingerprint(model_folder(model, gpu=count_gpus() > 0))])
    same = asked.is_file() and asked.read_text(encoding="utf-8") == question
    if not (same and report.is_file()):
        print(f"== {variant.name}: {variant.about}", flush=True)
        code = dry_run.main([*argv, "--set", "run.resume=false"], REAL_CLOCK.now())
        if code != 0:
            again = "; the same command goes on here" if code > 128 else ""
            raise SettingsError(f"{variant.name}: the dry run ended with status {code}{again}")
        write_atomically(asked, question)
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return document


def check(variants: Iterable[Variant], options: argparse.Namespace) -> None:
    """Refuse wrong settings, and tasks that cannot be scored, before the first variant runs.

    Raises:
        InputError: of a variant, named; or no task is usable or has a known solution.
    """
    for variant in variants:
        try:
            dry_run.make_settings(dry_run.make_parser().parse_args(arguments(variant, options)))
        except SettingsError as error:
            raise SettingsError(f"{variant.name}: {error}") from error
    dataset = usable_tasks(options.tasks, options.ids or "")
    if dataset.solutions.by_task.keys().isdisjoint(task.task_id for task in dataset.loaded.tasks):
        raise SettingsError(f"--tasks {options.tasks}: no task with a known solution")


def main(argv: Sequence[str]) -> int:
    """Run the ablate command."""
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(variant.name for variant in VARIANTS)
    add("--tasks", default="ttt80", help=f"{DATASETS_HELP}, or a path, as for kernel.py (default: ttt80)")
    add("--ids", metavar="ID,ID|FILE", help="only these tasks, as for kernel.py")
    add("--limit", default="10m", metavar="TIME", help="of each variant")
    add("--out", type=Path, default=Path("local/ablations"), metavar="DIR")
    add("--only", default="", metavar="NAME,NAME", help=f"of {names} and own variants; none: no built-in one")
    add(
        "--variant",
        action="append",
        default=[],
        metavar='"NAME CHANGE ..."',
        help="one of your own, each change as section.field=value; may be repeated",
    )
    add("--model", metavar="PATH")
    add("--format")
    add("--first", type=int, metavar="N", help="only the N tasks that are predicted to be cheapest")
    add("--workers", type=int)
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting, for all variants")
    options = parser.parse_args(argv)
    try:
        if options.ids is not None:
            options.ids = ",".join(read_ids(options.ids))
        chosen = choose(options.only, [parse_variant(text) for text in options.variant])
        check(chosen, options)
        answered = {variant.name: answered_tasks(run_variant(variant, options)) for variant in chosen}
    except InputError as error:
        print(f"arc_lab ablate: {error}", file=sys.stderr)
        return 2
    rows = [compare(variant, answered[variant.name], answered[FULL]) for variant in chosen]
    print(table_text(rows))
    document = {"tasks": options.tasks, "limit": options.limit, "seed": options.seed}
    document |= {"rows": [row.document() for row in rows]}
    write_atomically(options.out / "ablations.json", json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


def table_text(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| variant | solved of answered | at 1 attempt | any candidate | against full, same tasks | won, lost "
        "| seconds a task | the paper, of 80 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pair = row.against
        against = f"{pair.difference:+.1%} ± {pair.standard_error:.1%} (n = {pair.common})"
        lines.append(
            f"| {row.variant.about} | {row.solved} of {row.answered} | {row.solved_1} | {row.oracle} "
            f"| {against if row.variant.name != FULL else ''} "
            f"| {f'{pair.won}, {pair.lost}' if row.variant.name != FULL else ''} "
            f"| {row.seconds:.1f} | {row.variant.paper or ''} |"
        )
    return "\n".join(lines)
