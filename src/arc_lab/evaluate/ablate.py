"""`arc-lab ablate`: the paper's ablation table with this kernel, paired on the same tasks and seed.

Every variant is one dry run under the same limit, without program synthesis. A variant whose report is in OUT already,
made with the same options and weights, is not run again. A task counts as solved when all its test inputs are right at
two attempts, and under "any candidate" when the right grids are among everything that the model wrote. Differences are
taken over the tasks that both the variant and the full method answered. Seconds are those of a task's passes on the
device, training and decoding together, mean over the answered tasks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab.command_line import (
    Parser,
    add_json,
    add_set,
    json_document,
    make_parser,
    print_table,
    resumable,
)
from arc_lab.data.datasets import DATASETS_HELP, read_ids, usable_tasks
from arc_lab.evaluate import dry_run
from arc_lab.evaluate.run_options import make_run_parser, make_settings
from arc_lab.evaluate.scores import Paired, TaskScore, summarize
from arc_ttt.atomic import write_atomically
from arc_ttt.checkpoints.folders import model_folder, weights_fingerprint
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import ArcError, SettingsError
from arc_ttt.machine import count_gpus
from arc_ttt.protocol.jobs import BASE, TTT

FULL = "full"
"""The full method, against which every variant is compared."""

NONE = "none"
"""As `--only none`: of the built-in variants, run the full method alone."""

EXAMPLES = (
    "arc-lab ablate --tasks ttt80 --limit 10m --out local/ablations",
    "arc-lab ablate --tasks local/rearc.pack:100 --only full,no-augmentation --limit 20m --out local/ablations",
    'arc-lab ablate --tasks local/rearc.pack:100 --only none --variant "rank-64 ttt.rank=64 ttt.alpha=64"',
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Args:
        name: also the name of its folder.
        about: what it changes, in words.
        changes: settings, each as section.field=value.
        paper: of 80 tasks, how many the paper solved this way; None if it did not try. Source: its ablation table, 1B.
    """

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


COLUMNS = (
    "variant",
    "solved of answered",
    "at 1 attempt",
    "any candidate",
    "against full, same tasks",
    "won, lost",
    "seconds a task",
    "the paper, of 80",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a variant.

    Args:
        variant: the variant.
        answered: tasks that it answered.
        solved_1: tasks solved at one attempt.
        solved: tasks solved at two attempts.
        oracle: tasks whose right grids are among all candidates.
        seconds: device time of an answered task, mean.
        against: the comparison with the full method, at two attempts.
    """

    variant: Variant
    answered: int
    solved_1: int
    solved: int
    oracle: int
    seconds: float
    against: Paired

    def cells(self) -> tuple[object, ...]:
        """The row of the table; columns as in COLUMNS."""
        pair = self.against
        against = f"{pair.difference:+.1%} ± {pair.standard_error:.1%} (n = {pair.common})"
        compared = ("", "") if self.variant.name == FULL else (against, f"{pair.won}, {pair.lost}")
        solved = (f"{self.solved} of {self.answered}", self.solved_1, self.oracle)
        return self.variant.about, *solved, *compared, f"{self.seconds:.1f}", self.variant.paper

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
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
    """The tasks that were answered, after training or, where nothing trains, by the base model; by their ids."""
    found = {}
    for task_id, row in report["by_task"].items():
        stage = row.get(TTT) or (row.get(BASE) if report["settings"]["ttt"]["scope"] == "none" else None)
        if stage and "ranks" in stage:
            found[task_id] = Answer(TaskScore(task_id, tuple(stage["ranks"])), stage["seconds"])
    return found


def compare(variant: Variant, own: Mapping[str, Answer], full: Mapping[str, Answer]) -> Row:
    """The row of a variant, from its own answers and those of the full method."""
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
    """A variant that the user defines, from "NAME section.field=value ...".

    Raises:
        SettingsError: the name cannot name a folder or is a built-in variant's, or no change is given.
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
    """The full method and the variants to run, built-in ones first.

    Args:
        only: names separated by commas; empty for all, "none" for no built-in variant. The user's variants all run,
            unless it names some of them.
        own: the user's variants.

    Raises:
        SettingsError: a name is unknown, or two of the user's variants have the same name.
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
    """The arguments of a variant's dry run."""
    out = options.out / variant.name
    argv = ["--tasks", options.tasks, "--limit", options.limit, "--out", str(out), "--seed", str(options.seed)]
    for name in ("model", "format", "first", "workers", "ids"):
        if getattr(options, name) is not None:
            argv += [f"--{name}", str(getattr(options, name))]
    for change in ("synthesis.enabled=false", *options.set, *variant.changes):
        argv += ["--set", change]
    return argv


def run_variant(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """The report of a variant's dry run: the report in its folder if the same run made it, else a new run's.

    Raises:
        SettingsError: the dry run refused its arguments.
        ArcError: no model could be used.
        KeyboardInterrupt: the dry run was ended by a signal.
    """
    out = options.out / variant.name
    argv = arguments(variant, options)
    asked = out / "asked.json"
    report = out / "report.json"
    model = make_settings(make_run_parser().parse_args(argv)).model.path
    question = json.dumps([argv, weights_fingerprint(model_folder(model, gpu=count_gpus() > 0))])
    same = asked.is_file() and asked.read_text(encoding="utf-8") == question
    if not (same and report.is_file()):
        print(f"== {variant.name}: {variant.about}", flush=True)
        code = dry_run.main([*argv, "--set", "run.resume=false"], REAL_CLOCK.now())
        if code > 128:  # 128 plus the number of a signal
            raise KeyboardInterrupt
        if code != 0:
            kind = SettingsError if code == 2 else ArcError
            raise kind(f"{variant.name}: the dry run ended with status {code}")
        write_atomically(asked, question)
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return document


def check(variants: Iterable[Variant], options: argparse.Namespace) -> None:
    """Refuse wrong settings, and tasks that cannot be scored, before the first variant runs.

    Raises:
        InputError: a variant's settings are wrong (the message names it), or no task is usable or has a known solution.
    """
    for variant in variants:
        try:
            make_settings(make_run_parser().parse_args(arguments(variant, options)))
        except SettingsError as error:
            raise SettingsError(f"{variant.name}: {error}") from error
    dataset = usable_tasks(options.tasks, options.ids or "")
    if dataset.solutions.by_task.keys().isdisjoint(task.task_id for task in dataset.loaded.tasks):
        raise SettingsError(f"--tasks {options.tasks}: no task with a known solution")


def _parser() -> Parser:
    parser = make_parser("ablate", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    names = ", ".join(variant.name for variant in VARIANTS)
    add("--tasks", default="ttt80", metavar="SET|PATH", help=f"{DATASETS_HELP}, or a path, as for kernel.py")
    add("--ids", metavar="ID,ID|FILE", help="only these tasks, as for kernel.py")
    add("--limit", default="10m", metavar="TIME", help="time limit of each variant")
    add("--out", type=Path, default=Path("local/ablations"), metavar="DIR", help="folder with one folder a variant")
    add("--only", default="", metavar="NAME,NAME", help=f"of {names} and own variants; none: no built-in one")
    add(
        "--variant",
        action="append",
        default=[],
        metavar='"NAME CHANGE ..."',
        help="a variant of your own, each change as section.field=value; may be repeated",
    )
    add("--model", metavar="PATH", help="folder of a Llama checkpoint, as for kernel.py")
    add("--format", metavar="NAME", help="how that checkpoint reads tasks, as for kernel.py")
    add("--first", type=int, metavar="N", help="only the N tasks that are predicted to be cheapest")
    add("--workers", type=int, metavar="N", help="worker processes, as for kernel.py")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    add_set(parser, "any setting, for all variants; may be repeated")
    add_json(parser)
    return parser


@resumable("ablate")
def main(argv: Sequence[str]) -> int:
    """Run the ablate command."""
    options = _parser().parse_args(argv)
    if options.ids is not None:
        options.ids = ",".join(read_ids(options.ids))
    chosen = choose(options.only, [parse_variant(text) for text in options.variant])
    check(chosen, options)
    with json_document(options.json) as document:
        answered = {variant.name: answered_tasks(run_variant(variant, options)) for variant in chosen}
        rows = [compare(variant, answered[variant.name], answered[FULL]) for variant in chosen]
        print_table(f"Ablations on {options.tasks}, {options.limit} each", COLUMNS, [row.cells() for row in rows])
        document |= {"tasks": options.tasks, "limit": options.limit, "seed": options.seed}
        document |= {"rows": [row.document() for row in rows]}
        write_atomically(options.out / "ablations.json", json.dumps(document, indent=1) + "\n")
    return 0
