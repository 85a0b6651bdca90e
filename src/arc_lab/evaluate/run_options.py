"""The command line of `kernel.py`, and the settings that it asks for."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from arc_lab.command_line import Parser, add_set, make_parser
from arc_lab.data.datasets import DATASETS_HELP
from arc_lab.evaluate.settings_text import read_config_file
from arc_ttt.checkpoints.folders import SIZES
from arc_ttt.deadline import parse_duration
from arc_ttt.errors import SettingsError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.machine import count_gpus
from arc_ttt.presets import PRESETS
from arc_ttt.settings import Settings, parse_overrides

EXAMPLES = (
    "python kernel.py --first 40 --limit 10m",
    "python kernel.py --tasks training --set ttt.rank=64 --set vote.rule=hierarchical",
    "python kernel.py --model DIR --format architects --limit 12h",
    "python kernel.py --config out/report.json --seed 1 --out out-1",
)


def make_run_parser() -> Parser:
    """The parser of `kernel.py` away from Kaggle."""
    parser = make_parser(
        "",
        "Dry run of the Kaggle kernel: train one adapter a task at test time, vote, write\n"
        "submission.json under a simulated time limit, and score it. On Kaggle the script takes no arguments.",
        examples=EXAMPLES,
        prog="kernel.py",
    )
    add = parser.add_argument
    add(
        "--tasks",
        default="evaluation",
        metavar="SET|PATH",
        help=f"{DATASETS_HELP}, or a challenges file, a task file or a "
        "folder of task files, or PACK:N for N tasks of a training pack's held-out generators",
    )
    add("--ids", default="", metavar="ID,ID|FILE", help="only these tasks; or a file with their ids")
    add("--first", type=int, metavar="N", help="only the N tasks that are predicted to be cheapest")
    add("--limit", metavar="TIME", help="simulated time limit: 90s, 20m, 12h (default: 5m)")
    add("--workers", type=int, metavar="N", help="worker processes (default: one a GPU, or two on a CPU)")
    add(
        "--model",
        metavar="PATH",
        help="folder of a Llama checkpoint, embedded-XS or embedded-M (default: M with a GPU, XS without)",
    )
    add("--format", choices=tuple(FORMATS), help="how that checkpoint reads tasks; needed with --model")
    add("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    add("--out", default="out", metavar="DIR", help="folder for submission.json, report and logs")
    add("--preset", metavar="NAME", help=f"settings to start from: {', '.join(PRESETS)} (default: by the format)")
    add("--config", type=Path, metavar="FILE", help="settings from a TOML file or a run's report.json, over the preset")
    add_set(parser, "any setting, over all else; may be repeated")
    add("--list-settings", action="store_true", help="print every setting with its default and meaning, and exit")
    return parser


def make_settings(options: argparse.Namespace) -> Settings:
    """Settings from the command line: the preset, then --config, then single options, then --set.

    Raises:
        SettingsError: a name or value is wrong, or two options contradict each other.
    """
    config = read_config_file(options.config) if options.config else {}
    preset = options.preset or config.pop("preset", "")
    config.pop("preset", None)
    if options.model in SIZES:
        options.format = options.format or "compact"
    of_preset = PRESETS[_known_preset(preset)].get("model.format") if preset else None
    form = options.format or (of_preset if options.model else None)
    if bool(options.model) != bool(form):
        raise SettingsError("--model and --format go together: a checkpoint and the format it was trained with")
    row = FORMATS.get(form or str(config.get("model.format", "compact")))
    preset = preset or (row.preset if row is not None else "embedded")
    settings = Settings.of("embedded-gpu" if preset == "embedded" and count_gpus() else preset)
    changes: list[tuple[str, Any]] = list(config.items())
    if options.limit is not None:
        changes.append(("run.limit_s", parse_duration(options.limit)))
    if options.model:
        changes += [("model.path", options.model), ("model.format", form)]
    if options.workers is not None:
        changes.append(("run.workers", options.workers))
    if options.seed is not None:
        changes.append(("run.seed", options.seed))
    return settings.override([*changes, *parse_overrides(options.set)])


def _known_preset(name: object) -> str:
    """The name of a preset.

    Raises:
        SettingsError: there is no such preset; names the nearest.
    """
    if isinstance(name, str) and name in PRESETS:
        return name
    near = difflib.get_close_matches(str(name), PRESETS, 3, 0.5) or list(PRESETS)
    raise SettingsError(f"no preset {name!r}; nearest: {', '.join(near)}")
