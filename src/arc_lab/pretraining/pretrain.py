"""Train a model on packs: read them, make the feed, and run the trainer.

`pretrain` may be called again after an interruption, with as many processes and on the same kind of device; it then
continues.
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
    """Train, or continue a training, and return its card (JSON-ready), also after an interruption.

    Args:
        packs: files of pairs.
        settings: everything that decides the result besides the packs.
        options: how the training runs.
        say: prints a line of progress.
        stopped: asked after every step; True ends the training with a checkpoint.

    Raises:
        InputError: a pack, a checkpoint or settings cannot be used.
        TrainingDiverged: the loss is not finite.
        ArcError: anything else went wrong. All steps are in a checkpoint; with several processes, the steps up to the
            last checkpoint.
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
    """Pairs that no training may see: pairs of evaluation tasks, and pairs that the packs hold back to measure on."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.evaluation = evaluation_pairs()
        self.held = held_pairs(packs)

    def __call__(self, pair: bytes) -> str | None:
        return self.held.get(pair) or self.evaluation.task_with(pair)


def _nothing(pair: bytes) -> str | None:
    return None
