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

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arc_lab.data.packs import Pack, read_pack
from arc_lab.folders import make_folder
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.held import apart, held_pairs, measuring_sequences
from arc_lab.pretraining.loop import Trainer
from arc_lab.pretraining.processes import join_processes
from arc_lab.pretraining.rearc.known_pairs import evaluation_pairs
from arc_lab.pretraining.settings import PretrainSettings, RunOptions


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
