"""`arc-lab pretrain`: train a small stock Llama on packs of pairs, or continue a training.

The same command continues where it was interrupted, with as many processes of torchrun and on the same kind of device.
`--init DIR` starts a new training from a checkpoint's weights. The schedule follows the clock with `--for` and the
number of steps with `--steps`. With `--steps`, without `--live` and on a CPU, the result is the same bit for bit
however often a signal or an error interrupted the run. OUT gets model/ (a stock checkpoint with its card, which names
the hashes of its weights), card.json, card.md, log.jsonl, and the state of the training.

How to train on one GPU for 22 minutes
--------------------------------------
First, on any CPU, build the pack (once; about half an hour of CPU time and 14 MB). Then try the model on the path that
a GPU takes, which shows bugs before the GPU costs time (some minutes and 6 GB of memory; by default batches and windows
of M are smaller on a CPU):

    arc-lab rearc --wheel installed --out local/big.pack --pairs-per-generator 1000 --training-tasks
    arc-lab pretrain --pack local/big.pack --preset M --steps 3 --compile --rows packed --live installed \\
        --log-every 1 --save-dtype bfloat16 --out local/dry

On the GPU machine, with the repository, the pack and the wheel of reasoning-gym:

    arc-lab pretrain --pack big.pack --preset M --for 22m --compile --processes 14 \\
        --save-dtype bfloat16 --checkpoints /tmp/checkpoints --out OUT
    arc-lab pretrain --pack big.pack --preset M --for 22m --compile --processes 14 \\
        --live reasoning_gym-0.1.25-py3-none-any.whl --seed 1 --init OUT/model --save-dtype bfloat16 --out OUT2

The second command continues from the weights of the first with fresh pairs. OUT/model holds bfloat16 shards under 14 MB
each, rewritten at every checkpoint. /tmp/checkpoints (weights and both optimizers, 310 MB for M) need not be kept. With
several GPUs use `torchrun --nproc-per-node N -m arc_lab pretrain ...`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from arc_lab.command_line import Parser, add_json, json_document, make_parser, resumable
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

CPU_MOST = {"batch_tokens": 8192, "window_sequences": 512, "windows_ahead": 3}
"""Upper bounds of defaults on a CPU; they lower those of preset M alone."""

GPU_LENGTHS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Lengths to which rows are padded on a GPU, in tokens."""

SUMMARY = ("finished", "steps", "tokens", "seconds", "loss", "exact_match")
"""The entries of a card that the command prints."""

EXAMPLES = (
    "arc-lab pretrain --pack local/rearc.pack --preset XS --for 150m --out local/xs",
    "arc-lab pretrain --pack local/rearc.pack --init embedded-XS --steps 2000 --out local/more",
)


def make_settings(options: argparse.Namespace, device: torch.device) -> PretrainSettings:
    """Settings from the command line. Missing values come from the preset, lowered on a CPU to CPU_MOST.

    Raises:
        SettingsError: a value is out of bounds.
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
    """Run the pretrain command."""
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
        with json_document(options.json) as document:
            card = pretrain(options.pack, settings, run, stopped=lambda: asked)
            if "steps" in card:  # in the first of several processes
                document |= {name: card[name] for name in SUMMARY}
                shown = {name: value for name, value in document.items() if not isinstance(value, dict)}
                print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in shown.items()))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not card["finished"]:
        raise KeyboardInterrupt
    return 0


def _parser() -> Parser:
    parser = make_parser("pretrain", __doc__, examples=EXAMPLES)
    add, base = parser.add_argument, PretrainSettings(steps=1)
    add("--pack", type=Path, action="append", required=True, help="a pack of `arc-lab rearc`; may be repeated")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of model, card and log")
    add("--checkpoints", type=Path, metavar="DIR", help="where the training's state is kept (default: OUT/checkpoint)")
    add("--preset", help=f"size: {', '.join(PRESETS)} (default: XS, or that of --init)")
    add(
        "--init",
        default="",
        metavar="DIR|embedded-XS|embedded-M",
        help="start from these weights; their size replaces the preset's",
    )
    add("--for", dest="seconds", default="", metavar="TIME", help="length of the training, as 150m")
    add("--steps", type=int, default=0, metavar="N", help="length of the training in steps, instead of --for")
    add("--rope", default=base.rope, help=f"rotary positions of a fresh model: {', '.join(ROPES)}")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    add("--max-tokens", type=int, metavar="N", help="longest sequence (default: the preset's)")
    add("--muon-lr", type=float, metavar="RATE", help="learning rate of Muon (default: the preset's)")
    add("--adam-lr", type=float, metavar="RATE", help="learning rate of AdamW (default: the preset's)")
    for name, what in (
        ("batch-tokens", "tokens of a batch"),
        ("window-sequences", "sequences that are sorted by length at once"),
        ("windows-ahead", "windows that are made ahead"),
    ):
        add(f"--{name}", type=int, metavar="N", help=f"{what} (default: the preset's; lower for M on a CPU)")
    add("--accumulate", type=int, default=base.accumulate, metavar="N", help="batches of a step")
    add("--weight-decay", type=float, default=base.weight_decay, metavar="X", help="weight decay of Muon")
    add("--warmup-steps", type=int, default=base.warmup_steps, metavar="N", help="steps until full learning rates")
    add(
        "--decay-share", type=float, default=base.decay_share, metavar="X", help="last part, over which rates fall to 0"
    )
    add("--clip-norm", type=float, default=base.clip_norm, metavar="X", help="largest norm of the gradient")
    add("--upscale", type=float, default=base.data.upscale, metavar="X", help="share of enlarged sequences")
    add("--tasks-weight", type=float, default=base.data.tasks_weight, metavar="X", help="share of tasks' own pairs")
    add("--compose", type=float, default=base.data.compose, metavar="X", help="share of tasks made from two rules")
    add(
        "--rows",
        default="auto",
        choices=("auto", "packed", "padded"),
        help="batches of whole sequences in one row, or of one sequence a row; auto packs where the GPU is fast at it",
    )
    add("--no-curriculum", action="store_true", help="sequences of full length from the start")
    add("--dtype", default=base.dtype, choices=("auto", "float32", "bfloat16", "float16"), help="compute type")
    add("--compile", action="store_true", help="torch.compile the layers; batches then have a few fixed shapes")
    add("--threads", type=int, default=1, metavar="N", help="numeric threads on a CPU")
    add("--processes", type=int, default=1, metavar="N", help="background processes that make data")
    add("--live", default="", metavar="WHEEL", help="also fresh pairs from the generators of this wheel")
    add("--save-dtype", default="float32", choices=("float32", "bfloat16"), help="type of the weights in OUT/model")
    add("--checkpoint-every-s", type=float, default=300.0, metavar="S", help="seconds between checkpoints")
    add("--evaluate-every-s", type=float, default=300.0, metavar="S", help="seconds between measurements")
    add(
        "--eval-sequences",
        type=int,
        metavar="N",
        help=f"sequences measured of each kind (default: {MEASURED}; {CPU_MEASURED} for M on a CPU)",
    )
    add("--log-every", type=int, default=50, metavar="N", help="steps between lines of the log")
    add_json(parser)
    return parser
