"""`arc-lab rearc`: build a training pack from the ReARC generators.

It needs reasoning-gym: pip install --no-deps reasoning-gym==0.1.25

Every pair passes the verifier of its generator. A pack depends on its options alone: not on the number of processes,
the order in which they finish, or PYTHONHASHSEED. Two things can change it: a CPU limit that is reached, and a process
that dies over a generator, for example for want of memory. The report and the pack's header name such generators. An
interrupted build continues when the same command is given again: until the pack is written, OUT.partial holds the pairs
of the generators that are done.

Some families of generators (`data.families`) are held out: the pack holds pairs of them to measure on, in groups that
no training reads. Of every other generator the last few pairs are held back as well. Pairs of any public evaluation
task of ARC-AGI-1 or ARC-AGI-2 are dropped, under any of the 8 symmetries. Training tasks that share a pair with an
evaluation task are dropped too, and so are the generators made for them. A task of `--tasks` that shares a pair with a
training task of a held-out family is held out as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arc_lab.command_line import Parser, add_json, json_document, make_parser, resumable
from arc_lab.pretraining.rearc.build import build
from arc_lab.pretraining.rearc.settings import HELD_PAIRS, PackSettings
from arc_ttt.deadline import REAL_CLOCK, format_duration
from arc_ttt.errors import SettingsError

EXAMPLES = (
    "arc-lab rearc --wheel installed --out local/rearc.pack --pairs-per-generator 1000",
    "arc-lab rearc --out local/mine.pack --tasks mine.json --training-tasks --json",
)


@resumable("rearc")
def main(argv: Sequence[str]) -> int:
    """Run the rearc command."""
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
    with json_document(options.json) as document:
        document |= report
        print_report(report)
    return 0


def _two_numbers(text: str) -> tuple[float, float]:
    """The two numbers of "LOW,HIGH". Raises SettingsError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--difficulty {text}: write two numbers, as in 0,0.5") from error
    return low, high


def print_report(report: Mapping[str, Any]) -> None:
    """Print for a person what was made and what was rejected."""
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


def _parser() -> Parser:
    parser = make_parser("rearc", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--wheel", default="installed", help="'installed', a wheel of reasoning-gym, or a folder with it")
    add("--out", type=Path, required=True, metavar="FILE", help="the pack to write")
    add("--pairs-per-generator", type=int, default=1000, metavar="N", help="pairs of each training generator")
    add("--held-pairs", type=int, metavar="N", help=f"of each training generator, held back (default: {HELD_PAIRS})")
    add("--held-out-pairs", type=int, default=40, metavar="N", help="of each generator of a held-out family")
    add("--max-side", type=int, default=30, metavar="CELLS", help="longest side of a grid")
    add("--max-tokens", type=int, default=1900, metavar="N", help="longest pair in tokens of the compact format")
    add("--difficulty", default="0,1", metavar="LOW,HIGH", help="bounds of the generators' difficulty")
    add("--cpu-s-per-generator", type=float, default=300.0, metavar="S", help="CPU seconds for each generator, at most")
    add("--attempts-per-pair", type=int, default=6, metavar="N", help="attempts for each wanted pair, at most")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    add("--only", default="", metavar="ID,ID", help="only these generators")
    add("--training-tasks", action="store_true", help="also the ARC-AGI-1 training tasks' own pairs")
    add("--tasks", action="append", default=[], metavar="PATH", help="also the tasks of this JSON file or folder")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="processes that generate")
    add_json(parser)
    return parser
