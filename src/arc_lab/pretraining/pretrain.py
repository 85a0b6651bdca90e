"""`python -m arc_lab pretrain`: train a small stock Llama on a pack of pairs, or continue one.

    python -m arc_lab pretrain --pack local/rearc.pack --preset XS --for 150m --out local/xs

The same command again goes on where it was interrupted, with as many processes of torchrun and on the same kind of
device; `--init DIR` starts a new training from a checkpoint's weights.
The clock drives the schedule with `--for`, the number of steps with `--steps`; with the latter and without `--live` a
run on a CPU is the same bit for bit however often it is interrupted, by a signal or by an error on the way. OUT gets
model/ (a stock checkpoint with its card, which names the hashes of its weights), card.json, card.md, log.jsonl, and the
training's own checkpoint.

How to train on one GPU for 22 minutes
--------------------------------------
Beforehand, on any CPU (once; about half an hour of CPU time and 14 MB), and a dry run of the same model on the path
that a GPU takes, which shows bugs before the GPU costs time (some minutes and 6 GB of memory; by default batches and
windows of M are smaller on a CPU):

    python -m arc_lab rearc --wheel installed --out local/big.pack --pairs-per-generator 1000 --training-tasks
    python -m arc_lab pretrain --pack local/big.pack --preset M --steps 3 --compile --rows packed --live installed \\
        --log-every 1 --save-dtype bfloat16 --out local/dry

On the GPU machine, with the repository, the pack and the wheel of reasoning-gym beside it:

    PYTHONPATH=src python -m arc_lab pretrain --pack big.pack --preset M --for 22m --compile --processes 14 \\
        --save-dtype bfloat16 --checkpoints /tmp/checkpoints --out OUT
    PYTHONPATH=src python -m arc_lab pretrain --pack big.pack --preset M --for 22m --compile --processes 14 \\
        --live reasoning_gym-0.1.25-py3-none-any.whl --seed 1 --init OUT/model --save-dtype bfloat16 --out OUT2

The second line continues from the first one's weights with fresh pairs. OUT/model holds bfloat16 shards under 14 MB
each, rewritten at every checkpoint; /tmp/checkpoints (weights and both optimizers, 310 MB for M) need not be brought
back. With several GPUs put `torchrun --nproc-per-node N -m` in place of `python -m`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from arc_lab.command_line import resumable
from arc_lab.data.packs import Pack, make_folder, read_pack
from arc_lab.pretraining.feed import DataSettings, Feed, apart, held_pairs, measuring_sequences
from arc_lab.pretraining.loop import Trainer, join_processes
from arc_lab.pretraining.model import PRESETS, ROPES, can_pack, size_of
from arc_lab.pretraining.rearc.command import evaluation_pairs
from arc_ttt.checkpoints.folders import model_folder
from arc_ttt.deadline import parse_duration
from arc_ttt.errors import SettingsError
from arc_ttt.model.load import compute_dtype

CPU_MOST = {"batch_tokens": 8192, "window_sequences": 512, "windows_ahead": 3}  # defaults on a CPU; binds M alone
MEASURED, CPU_MEASURED = 120, 24  # sequences of each kind by default; and of a size that CPU_MOST binds
GPU_LENGTHS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """Everything that decides the result, besides the packs. A checkpoint goes on only under the same ones."""

    preset: str = "XS"
    rope: str = "longrope"
    init: str = ""
    """Folder of a checkpoint to start from, or embedded-XS or embedded-M; empty for a fresh model of the preset."""
    seed: int = 0
    seconds: float = 0.0
    """Training time; 0 when `steps` is given."""
    steps: int = 0
    accumulate: int = 1
    """Batches of a step (of each process)."""
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_share: float = 0.25
    """Last part of the training over which the learning rates fall linearly to 0."""
    clip_norm: float = 1.0
    curriculum: bool = True
    """Sequences of at most 0.4 of max_tokens in the first fifth, 0.65 until half; False: of any length at once."""
    dtype: str = "auto"
    data: DataSettings = dataclasses.field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SettingsError(f"--preset {self.preset}: there are {', '.join(PRESETS)}")
        if self.rope not in ROPES:
            raise SettingsError(f"--rope {self.rope}: there are {', '.join(ROPES)}")
        if (self.seconds > 0) == (self.steps > 0):
            raise SettingsError("give either --for (a duration) or --steps (a number above 0)")
        limits = {
            "accumulate": (self.accumulate, 1, 1024),
            "muon-lr": (self.muon_lr, 1e-9, 1.0),
            "adam-lr": (self.adam_lr, 1e-9, 1.0),
            "weight-decay": (self.weight_decay, 0.0, 1.0),
            "warmup-steps": (self.warmup_steps, 1, 1_000_000),
            "decay-share": (self.decay_share, 0.0, 1.0),
            "clip-norm": (self.clip_norm, 1e-6, 1e6),
            "max-tokens": (self.data.max_tokens, 64, 16_384),
            "batch-tokens": (self.data.batch_tokens, 64, 10_000_000),
            "window-sequences": (self.data.window_sequences, 1, 1_000_000),
            "windows-ahead": (self.data.windows_ahead, 0, 1000),
            "upscale": (self.data.upscale, 0.0, 1.0),
            "tasks-weight": (self.data.tasks_weight, 0.0, 1.0),
            "compose": (self.data.compose, 0.0, 1.0),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise SettingsError(f"--{name} is {value:g}; it must be from {least:g} to {most:g}")
        if self.data.packed and self.data.batch_tokens < self.data.max_tokens:
            raise SettingsError("--batch-tokens must be at least --max-tokens where rows are packed")
        longest_rows = self.data.batch_tokens // self.data.max_tokens
        if self.data.lengths and self.data.window_sequences < longest_rows:  # a window might fill no batch at all
            raise SettingsError(
                f"--window-sequences is {self.data.window_sequences}; where batches have fixed shapes it must be at "
                f"least --batch-tokens / --max-tokens = {longest_rows}"
            )

    def limit_tokens(self, progress: float) -> int:
        """Longest sequence of windows requested when this share of the training is done."""
        share = 1.0 if not self.curriculum or progress >= 0.5 else 0.65 if progress >= 0.2 else 0.4
        return max(min(260, self.data.max_tokens), round(share * self.data.max_tokens))

    def rate(self, step: int, progress: float) -> float:
        """Share of the learning rates at a step (from 0): linear warm-up, constant, linear decay to 0."""
        decay = min(1.0, (1 - progress) / self.decay_share) if self.decay_share else 1.0
        return min(1.0, (step + 1) / self.warmup_steps) * max(0.0, decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a training runs. A checkpoint goes on only with the same `live`, `compile` and, on a CPU, `threads`, which
    change its batches or its rounding; nothing else here changes the result."""

    out: Path
    checkpoints: Path
    processes: int = 1
    """Background processes that make data; 0 for none."""
    live: str = ""
    """Where reasoning-gym lies, for fresh pairs during the training (then batches depend on time limits too)."""
    compile: bool = False
    threads: int = 1
    save_dtype: str = "float32"
    checkpoint_every_s: float = 300.0
    evaluate_every_s: float = 300.0
    eval_sequences: int = MEASURED
    log_every: int = 50
    peak: bool = True
    """Measure the machine's peak, for the share of it that the training uses."""
    stop_after_steps: int = 0
    """Stop as if interrupted after this step; 0 never does."""

    def __post_init__(self) -> None:
        least = {"processes": 0, "threads": 1, "log_every": 1, "eval_sequences": 0, "stop_after_steps": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                told = name.replace("_", "-")
                raise SettingsError(f"--{told} is {getattr(self, name)}; it must be at least {value}")


def pretrain(
    packs: Sequence[Path],
    settings: PretrainSettings,
    options: RunOptions,
    *,
    say: Callable[[str], None] = functools.partial(print, flush=True),  # noqa: B008
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, or go on training; returns the card (JSON-ready), also when interrupted.

    stopped: asked after every step; True ends the training with a checkpoint.

    Raises:
        InputError: a pack, a checkpoint or settings that cannot be used.
        TrainingDiverged: the loss is not finite.
        ArcError: anything else went wrong; the steps until then are in a checkpoint (of several processes: those until
            the last one).
    """
    loaded = apart([read_pack(path) for path in packs])
    for folder in (options.out, options.checkpoints):
        make_folder(folder)
    avoid = _Avoided(loaded) if options.live else _nothing
    feed = Feed(loaded, settings.data, processes=options.processes, wheel=options.live, avoid=avoid)
    try:
        measured = {
            name: measuring_sequences(loaded, split, options.eval_sequences, settings.data.max_tokens)
            for name, split in (("seen", "train"), ("held-out", "held-out"))
        }
        with join_processes() as group:
            trainer = Trainer(settings, options, feed, measured, [pack.sha256 for pack in loaded], group, say)
            return trainer.run(stopped)
    finally:
        feed.close()


class _Avoided:
    """Pairs that no training may see: those of evaluation tasks, and those that the packs hold back to measure on."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.evaluation = evaluation_pairs()
        self.held = held_pairs(packs)

    def __call__(self, pair: bytes) -> str | None:
        return self.held.get(pair) or self.evaluation.task_with(pair)


def _nothing(pair: bytes) -> str | None:
    return None


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


@resumable
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


def settings_document(settings: PretrainSettings) -> dict[str, Any]:
    """Settings as they stand in a checkpoint: as JSON gives them back."""
    flat = asdict(settings)
    data = {f"data.{name}": value for name, value in flat.pop("data").items()}
    document: dict[str, Any] = json.loads(json.dumps(flat | data))
    return document
