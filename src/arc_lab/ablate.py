"""`python -m arc_lab ablate`: the paper's ablation table with this kernel, on the same tasks and seed, paired.

    python -m arc_lab ablate --tasks ttt80 --limit 10m --out local/ablations
    python -m arc_lab ablate --tasks local/rearc.pack:100 --only full,no-augmentation --limit 20m --out local/ablations

Every variant is one dry run under the same limit, without program synthesis. A variant whose report stands in OUT
already, of the same options and weights, is not run again. A task counts as solved when all its test inputs are right
at two attempts. Differences are taken over the tasks that both the variant and the full method answered.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arc_lab import dry_run
from arc_ttt.checkpoints import model_folder
from arc_ttt.cost import BASE, TTT
from arc_ttt.deadline import REAL_CLOCK
from arc_ttt.errors import SettingsError
from arc_ttt.grids import LoadedTasks
from arc_ttt.launch import count_gpus
from arc_ttt.recovery import fingerprint
from arc_ttt.settings import Settings
from arc_ttt.submission import write_atomically

FULL = "full"


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
    Variant("shared", "one adapter for all tasks", ("ttt.scope=shared",), 22),
    Variant("no-demonstration-loss", "loss on the left-out pair alone", ("ttt.demonstration_loss=false",), 26),
    Variant(
        "16-bit", "16-bit weights (models below 200M parameters are expanded anyway)", ("model.quantize=none",), 26
    ),
    Variant("random-start", "the base not trained on ReARC", ("model.random_start=true",), 9),
    Variant("joint", "a short stage over all tasks first (transductive)", ("ttt.scope=joint",), None),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a variant: tasks answered and solved; and against the full method on the tasks that both answered."""

    variant: Variant
    answered: int
    solved: int
    common: int
    won: int
    lost: int

    @property
    def difference(self) -> float:
        """Share solved less that of the full method, over the common tasks."""
        return (self.won - self.lost) / self.common if self.common else 0.0

    @property
    def standard_error(self) -> float:
        """Of the difference, paired."""
        if not self.common:
            return 0.0
        return math.sqrt(max(0.0, (self.won + self.lost) / self.common - self.difference**2) / self.common)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.variant.name,
            "answered": self.answered,
            "solved": self.solved,
            "common": self.common,
            "won": self.won,
            "lost": self.lost,
            "difference": round(self.difference, 4),
            "standard_error": round(self.standard_error, 4),
            "paper_of_80": self.variant.paper,
        }


def solved_tasks(report: Mapping[str, Any]) -> dict[str, bool]:
    """For each task that was answered (after training, or by the base where nothing trains) whether it was solved."""
    found = {}
    for task_id, row in report["by_task"].items():
        stage = row.get(TTT) or (row.get(BASE) if report["settings"]["ttt"]["scope"] == "none" else None)
        if stage and "ranks" in stage:
            found[task_id] = all(1 <= rank <= 2 for rank in stage["ranks"])
    return found


def compare(variant: Variant, own: Mapping[str, bool], full: Mapping[str, bool]) -> Row:
    """The row of a variant from what it and the full method solved."""
    common = [task_id for task_id in own if task_id in full]
    won = sum(own[task_id] and not full[task_id] for task_id in common)
    lost = sum(full[task_id] and not own[task_id] for task_id in common)
    return Row(variant, len(own), sum(own.values()), len(common), won, lost)


def run_variant(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """The report of a variant's dry run: the one that stands in its folder if it is of the same run, else a new one.

    Raises:
        SettingsError: the dry run refused its arguments, was interrupted, or had no model.
    """
    out = options.out / variant.name
    argv = ["--tasks", options.tasks, "--limit", options.limit, "--out", str(out), "--seed", str(options.seed)]
    for name in ("model", "format", "first", "workers"):
        if getattr(options, name) is not None:
            argv += [f"--{name}", str(getattr(options, name))]
    for change in ("synthesis.enabled=false", *options.set, *variant.changes):
        argv += ["--set", change]
    asked = out / "asked.json"
    report = out / "report.json"
    weights = fingerprint(LoadedTasks((), (), {}), Settings(), model_folder(options.model or "", gpu=count_gpus() > 0))
    question = json.dumps([argv, weights])
    same = asked.is_file() and asked.read_text(encoding="utf-8") == question
    if not (same and report.is_file()):
        print(f"== {variant.name}: {variant.about}", flush=True)
        code = dry_run.main([*argv, "--set", "run.resume=false"], REAL_CLOCK.now())
        if code != 0:
            raise SettingsError(f"{variant.name}: the dry run ended with status {code}; the same command goes on here")
        write_atomically(asked, question)
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return document


def main(argv: Sequence[str]) -> int:
    """Run the ablate command."""
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [variant.name for variant in VARIANTS]
    add("--tasks", default="ttt80", help="as for kernel.py (default: the paper's subset)")
    add("--limit", default="10m", metavar="TIME", help="of each variant")
    add("--out", type=Path, default=Path("local/ablations"), metavar="DIR")
    add("--only", default="", metavar="NAME,NAME", help=f"of {', '.join(names)}")
    add("--model", metavar="PATH")
    add("--format")
    add("--first", type=int, metavar="N", help="only the N tasks that are predicted to be cheapest")
    add("--workers", type=int)
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting, for all variants")
    options = parser.parse_args(argv)
    asked = [name.strip() for name in options.only.split(",") if name.strip()] or names
    unknown = [name for name in asked if name not in names]
    if unknown:
        print(f"arc_lab ablate: --only {unknown[0]}: there are {', '.join(names)}", file=sys.stderr)
        return 2
    chosen = [variant for variant in VARIANTS if variant.name in {*asked, FULL}]
    try:
        solved = {variant.name: solved_tasks(run_variant(variant, options)) for variant in chosen}
    except SettingsError as error:
        print(f"arc_lab ablate: {error}", file=sys.stderr)
        return 2
    rows = [compare(variant, solved[variant.name], solved[FULL]) for variant in chosen]
    print(table_text(rows))
    document = {"tasks": options.tasks, "limit": options.limit, "seed": options.seed}
    document |= {"rows": [row.document() for row in rows]}
    write_atomically(options.out / "ablations.json", json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


def table_text(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| variant | solved of answered | against full, same tasks | won, lost | the paper, of 80 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        against = f"{row.difference:+.1%} ± {row.standard_error:.1%} (n = {row.common})"
        lines.append(
            f"| {row.variant.about} | {row.solved} of {row.answered} | {against if row.variant.name != FULL else ''} "
            f"| {f'{row.won}, {row.lost}' if row.variant.name != FULL else ''} | {row.variant.paper or ''} |"
        )
    return "\n".join(lines)
