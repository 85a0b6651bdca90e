"""`arc-lab pretrain`: the command line of a training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from arc_lab.command_line import resumable
from arc_lab.pretraining.attention import can_pack
from arc_lab.pretraining.model import size_of
from arc_lab.pretraining.pretrain import pretrain
from arc_lab.pretraining.settings import (
    CPU_MEASURED,
    MEASURED,
    PRESETS,
    ROPES,
    DataSettings,
    PretrainSettings,
    RunOptions,
)
from arc_ttt.checkpoints.folders import model_folder
from arc_ttt.deadline import parse_duration
from arc_ttt.errors import SettingsError
from arc_ttt.model.cuda import compute_dtype

CPU_MOST = {"batch_tokens": 8192, "window_sequences": 512, "windows_ahead": 3}  # defaults on a CPU; binds M alone
GPU_LENGTHS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def make_settings(options: argparse.Namespace, device: torch.device) -> PretrainSettings:
    """Settings from the command line; what is not given comes from the preset, less of it where a CPU has no room.

    Raises:
        SettingsError: a value that cannot be.
    """
    size = options.preset or (size_of(model_folder(options.init)) if options.init else "XS")
    if size not in PRESETS:
        raise SettingsError(f"--preset {size}: there are {', '.join(PRESETS)}")
    preset = PRESETS[size]
    chosen = {}
    for name in ("max_tokens", "batch_tokens", "muon_lr", "adam_lr", "window_sequences", "windows_ahead"):
        most = CPU_MOST.get(name, math.inf) if device.type == "cpu" else math.inf
        given = getattr(options, name)
        chosen[name] = min(getattr(preset, name), most) if given is None else given
    if options.rows == "auto":
        packed = can_pack(device, compute_dtype(options.dtype, device))
    else:
        packed = options.rows == "packed"
    fixed = not packed and (device.type == "cuda" or options.compile)
    lengths = (*(length for length in GPU_LENGTHS if length < chosen["max_tokens"]), chosen["max_tokens"])
    data = DataSettings(
        seed=options.seed,
        max_tokens=chosen["max_tokens"],
        batch_tokens=chosen["batch_tokens"],
        window_sequences=chosen["window_sequences"],
        windows_ahead=chosen["windows_ahead"],
        lengths=lengths if fixed else (),
        upscale=options.upscale,
        tasks_weight=options.tasks_weight,
        compose=options.compose,
        packed=packed,
    )
    return PretrainSettings(
        preset=size,
        rope=options.rope,
        init=options.init,
        seed=options.seed,
        seconds=parse_duration(options.seconds) if options.seconds else 0.0,
        steps=options.steps,
        accumulate=options.accumulate,
        muon_lr=chosen["muon_lr"],
        adam_lr=chosen["adam_lr"],
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        decay_share=options.decay_share,
        clip_norm=options.clip_norm,
        curriculum=not options.no_curriculum,
        dtype=options.dtype,
        data=data,
    )


@resumable("pretrain")
def main(argv: Sequence[str]) -> int:
    """Run the pretrain command; 130 when it was interrupted and can go on, 1 after an error on the way."""
    options = _parser().parse_args(argv)
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = make_settings(options, device)
        if options.eval_sequences is None:
            large = PRESETS[settings.preset].batch_tokens > CPU_MOST["batch_tokens"]
            options.eval_sequences = CPU_MEASURED if large and device.type == "cpu" else MEASURED
        names = {field.name for field in dataclasses.fields(RunOptions)} - {"peak", "checkpoints", "stop_after_steps"}
        given = {name: getattr(options, name) for name in names}
        run = RunOptions(**given, checkpoints=options.checkpoints or options.out / "checkpoint")
        torch.set_num_threads(run.threads)
        card = pretrain(options.pack, settings, run, stopped=lambda: asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if "steps" in card:  # the first process, where there are several
        told = ("finished", "steps", "tokens", "seconds", "loss", "exact_match")
        print(json.dumps({name: card[name] for name in told}))
    if not card["finished"]:
        raise KeyboardInterrupt
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, base = parser.add_argument, PretrainSettings(steps=1)
    add("--pack", type=Path, action="append", required=True, help="a pack of `arc_lab rearc`; may be given again")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--checkpoints", type=Path, metavar="DIR", help="where the training's own state is kept (OUT/checkpoint)")
    add("--preset", help=f"size: {', '.join(PRESETS)} (default: XS, or that of --init)")
    add(
        "--init",
        default="",
        metavar="DIR|embedded-XS|embedded-M",
        help="start from these weights; their size replaces the preset's",
    )
    add("--for", dest="seconds", default="", metavar="TIME", help="train so long, as in 150m")
    add("--steps", type=int, default=0, help="train so many steps")
    add("--rope", default=base.rope, help=f"rotary positions of a fresh model: {', '.join(ROPES)}")
    add("--seed", type=int, default=0)
    for name, kind in (("max-tokens", int), ("muon-lr", float), ("adam-lr", float)):
        add(f"--{name}", type=kind, help="default: the preset's")
    for name in ("batch-tokens", "window-sequences", "windows-ahead"):
        add(f"--{name}", type=int, help="default: the preset's; less of M on a CPU")
    add("--accumulate", type=int, default=base.accumulate, help="batches of a step")
    add("--weight-decay", type=float, default=base.weight_decay)
    add("--warmup-steps", type=int, default=base.warmup_steps)
    add("--decay-share", type=float, default=base.decay_share)
    add("--clip-norm", type=float, default=base.clip_norm)
    add("--upscale", type=float, default=base.data.upscale, help="share of enlarged sequences")
    add("--tasks-weight", type=float, default=base.data.tasks_weight, help="share of tasks' own pairs")
    add("--compose", type=float, default=base.data.compose, help="share of sequences of tasks made from two rules")
    add(
        "--rows",
        default="auto",
        choices=("auto", "packed", "padded"),
        help="batches of whole sequences in one row, or of one sequence a row; auto packs where the GPU is fast at it",
    )
    add("--no-curriculum", action="store_true", help="sequences of full length from the start")
    add("--dtype", default=base.dtype, choices=("auto", "float32", "bfloat16", "float16"))
    add("--compile", action="store_true", help="torch.compile the layers; batches then have a few fixed shapes")
    add("--threads", type=int, default=1, help="numeric threads on a CPU")
    add("--processes", type=int, default=1, help="background processes that make data")
    add("--live", default="", metavar="WHEEL", help="also fresh pairs from the generators of this wheel")
    add("--save-dtype", default="float32", choices=("float32", "bfloat16"), help="type of the weights in OUT/model")
    add("--checkpoint-every-s", type=float, default=300.0)
    add("--evaluate-every-s", type=float, default=300.0)
    add("--eval-sequences", type=int, help=f"sequences measured of each kind (default: {MEASURED}; less of M on a CPU)")
    add("--log-every", type=int, default=50, metavar="STEPS")
    return parser
