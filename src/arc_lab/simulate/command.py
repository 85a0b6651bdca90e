"""`arc-lab simulate`: the product's policy and coordinator in virtual time, with workers that only pretend.

It answers before a submission whether a number of tasks fits a limit on given devices, and what each task gets. Over
many random runs with faults it answers whether any run would miss its limit.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arc_lab.command_line import Parser, add_json, add_set, json_document, make_parser, print_table, reports_errors
from arc_lab.data.datasets import DATASETS, load_dataset
from arc_lab.simulate.faults import MIXES, Faults
from arc_lab.simulate.scenarios import MODELS, Scenario, loaded_from, made_up_tasks
from arc_lab.simulate.simulation import SimulatedRun, random_runs, simulate
from arc_lab.simulate.tables import answer_lines, summary_lines
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.deadline import format_duration, parse_duration
from arc_ttt.errors import SettingsError
from arc_ttt.schedule.devices import DEVICE_TYPES
from arc_ttt.settings import Settings, parse_overrides
from arc_ttt.tasks.grids import LoadedTasks

EXAMPLES = (
    "arc-lab simulate --tasks 240 --devices 2 --device-type t4 --model 3b --limit 12h",
    "arc-lab simulate --runs 100",
    "arc-lab simulate --devices 1,4,64 --limit 3h,12h --faults none,harsh",
)


def make_simulate_parser() -> Parser:
    """The parser of `arc-lab simulate`."""
    parser = make_parser(
        "simulate",
        "Simulate a run in virtual time: does it fit its limit, and what does each task get?\n"
        "The seconds of a GPU are careful guesses until they are measured.",
        examples=EXAMPLES,
    )
    add_json(parser)
    add = parser.add_argument
    add(
        "--tasks",
        default="240",
        metavar="N|SET|PATH",
        help="a number of made-up tasks, or a set or file",
    )
    add("--devices", default="2", metavar="N,N", help="how many devices; several numbers make a sweep")
    add("--device-type", default="t4", choices=tuple(DEVICE_TYPES), help="kind of device")
    add("--model", default="3b", metavar="NAME|PATH", help=f"{', '.join(MODELS)}, or a checkpoint")
    add("--limit", default="12h", metavar="TIME,TIME", help="one limit or several")
    add(
        "--load",
        default="",
        metavar="X,X",
        help="full trainings of all tasks over the devices' time, instead of the model's",
    )
    add("--cores", default="4", metavar="N", help="cores of the machine; those without a device synthesize")
    add(
        "--sure",
        default="0",
        metavar="SHARE",
        help="share of tasks for which a CPU second finds a program that is taken for right; about 0.2 on ARC-AGI-1's "
        "public evaluation",
    )
    add(
        "--faults",
        default="",
        metavar="MIX,MIX",
        help=f"some of {', '.join(MIXES)} (default: mild; with --runs any rates)",
    )
    add("--runs", type=int, default=0, metavar="N", help="N random runs with faults instead; exit 1 if any misses")
    add("--seed", type=int, default=0, metavar="N", help="seed, or the first seed of many")
    add("--journal", metavar="FILE", help="write the journal of a single run")
    add_set(parser, "any setting; may be repeated")
    return parser


@reports_errors("simulate")
def main(argv: Sequence[str]) -> int:
    """Exit status: 0, 1 if a run missed its limit, 2 for wrong use, 130 after a signal."""
    options = make_simulate_parser().parse_args(argv)
    if options.runs < 0:
        raise SettingsError(f"--runs {options.runs}: must be at least 1")
    with json_document(options.json) as document:
        document["runs"] = _random_runs(options) if options.runs else _simulate_asked(options)
    return int(any(run["missed"] for run in document["runs"]))


def _random_runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Simulate runs of random size under random faults. Returns a document of each."""
    faults = _mix(options.faults) if options.faults else None
    seeds = range(options.seed, options.seed + options.runs)
    runs = random_runs(seeds, faults)
    print("\n".join(summary_lines(runs)))
    missed = [seed for seed, run in zip(seeds, runs, strict=True) if run.missed]
    if missed:
        print(f"seeds that missed: {missed[:10]}")
    return [{"seed": seed, **run.document()} for seed, run in zip(seeds, runs, strict=True)]


def _simulate_asked(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Simulate every scenario that the options name. Returns a document of each."""
    tasks = _tasks(options.tasks)
    scenarios = [
        Scenario(
            tasks=tasks,
            settings=settings,
            model=model,
            device_type=options.device_type,
            devices=_number("--devices", devices, int, 1, 1024),
            cores=_number("--cores", options.cores, int, 1, 1024),
            sure=_number("--sure", options.sure, float, 0, 1),
            load=_number("--load", load or "0", float, 0, 1000),
            faults=_mix(mix),
            seed=options.seed,
        )
        for devices in options.devices.split(",")
        for limit in options.limit.split(",")
        for load in options.load.split(",")
        for mix in (options.faults or "mild").split(",")
        for settings, model in [_model(options, limit)]
    ]
    if len(scenarios) == 1:
        runs = [simulate(scenarios[0])]
        print("\n".join(answer_lines(scenarios[0], runs[0])))
        if options.journal:
            Path(options.journal).write_bytes(runs[0].journal.text())
    else:
        runs = [simulate(scenario) for scenario in scenarios]
        print_table("Simulated runs", SWEEP, [_row(*pair) for pair in zip(scenarios, runs, strict=True)])
    return [_asked(scenario) | run.document() for scenario, run in zip(scenarios, runs, strict=True)]


def _asked(scenario: Scenario) -> dict[str, Any]:
    """What tells a scenario from the others of a sweep, for machines."""
    return {
        "devices": scenario.devices,
        "device_type": scenario.device_type,
        "faults": _name_of(scenario.faults),
        "seed": scenario.seed,
    }


def _name_of(faults: Faults) -> str:
    return next(name for name, mix in MIXES.items() if mix == faults)


SWEEP = ("devices", "limit", "load", "faults", "missed", "used", "answered", "trained", "slack")


def _row(scenario: Scenario, run: SimulatedRun) -> list[object]:
    """A line of the table of a sweep."""
    return [
        scenario.devices,
        format_duration(run.limit_s),
        f"{run.load:.2f}",
        _name_of(scenario.faults),
        "yes" if run.missed else "no",
        f"{run.utilisation:.1%}",
        f"{run.answered:.1%}",
        f"{run.trained:.1%}",
        format_duration(run.limit_s - run.seconds),
    ]


def _tasks(text: str) -> LoadedTasks:
    if text.isdecimal():
        return loaded_from(made_up_tasks(int(text)))
    if text not in DATASETS and not Path(text).exists():
        raise SettingsError(f"--tasks {text}: neither a number, nor one of {', '.join(DATASETS)}, nor a file")
    return load_dataset(text).loaded


def _number(option: str, text: str, kind: type, low: float, high: float) -> Any:
    with contextlib.suppress(ValueError):
        if low <= kind(text) <= high:
            return kind(text)
    raise SettingsError(f"{option} {text}: it must be a number from {low} to {high}")


def _mix(name: str) -> Faults:
    if name not in MIXES:
        raise SettingsError(f"--faults {name}: it must be one of {', '.join(MIXES)}")
    return MIXES[name]


def _model(options: argparse.Namespace, limit: str) -> tuple[Settings, ModelSize]:
    preset, model = MODELS.get(options.model, ("llama-1b-3b", None))
    if model is None:
        path = "" if options.model in MODELS else options.model
        model = Checkpoint.of_path(path, gpu=options.device_type != "cpu").size
    changes = [("run.limit_s", str(parse_duration(limit)))]
    settings = Settings.of(preset).override([*changes, *parse_overrides(options.set)])
    return settings, model
