"""Settings of a training: presets of models, data, optimizer and run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arc_ttt.errors import SettingsError

MEASURED = 120
"""Sequences of each kind that are measured by default."""

CPU_MEASURED = 24
"""Sequences of each kind that are measured by default for a large model on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Everything that decides the batches."""

    seed: int = 0
    max_tokens: int = 640
    """Longest sequence, in tokens."""
    batch_tokens: int = 4096
    """Tokens of a batch, padding included."""
    window_sequences: int = 384
    """Sequences that are drawn and sorted by length at once."""
    windows_ahead: int = 3
    """Windows that are requested before they are needed."""
    lengths: tuple[int, ...] = ()
    """Lengths, in tokens, to which batches are padded, each with a fixed number of rows; empty: no fixed lengths."""
    upscale: float = 0.15
    """Share of sequences whose grids are enlarged 2 or 3 times, if they stay within 30 x 30."""
    tasks_weight: float = 0.05
    """Share of sequences from tasks' own pairs instead of generated pairs, if the pack has both."""
    compose: float = 0.0
    """Share of sequences whose outputs, or inputs, all pass through one more rule: new tasks from known generators."""
    packed: bool = False
    """Whether a batch is one row of exactly batch_tokens, filled with whole sequences (see `attention`)."""


ROPES = ("longrope", "strided")
"""Kinds of rotary positions (see `model.rope_parameters`)."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of model, and the defaults of its training.

    Args:
        hidden: width of the model.
        layers: number of blocks.
        heads: attention heads of a block.
        feed_forward: width inside the feed-forward layers.
        max_tokens: longest sequence, in tokens.
        batch_tokens: tokens of a batch.
        muon_lr: learning rate of Muon.
        adam_lr: learning rate of AdamW.
        window_sequences: sequences that are sorted by length at once.
        windows_ahead: windows that are made ahead.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    max_tokens: int
    batch_tokens: int
    muon_lr: float
    adam_lr: float
    window_sequences: int
    windows_ahead: int

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads


PRESETS = {
    "XS": Preset(192, 6, 6, 512, 640, 4096, 0.02, 4e-3, 384, 3),  # 2.7M parameters
    "S": Preset(256, 8, 4, 640, 1024, 6144, 0.02, 3e-3, 512, 3),  # 6.0M
    "M": Preset(512, 10, 8, 1024, 4096, 65_536, 0.015, 2e-3, 2048, 24),  # 26M
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """Everything that decides the result besides the packs. A checkpoint is continued only under equal settings."""

    preset: str = "XS"
    rope: str = "longrope"
    init: str = ""
    """Folder of a checkpoint to start from, or embedded-XS or embedded-M; empty for a fresh model of the preset."""
    seed: int = 0
    seconds: float = 0.0
    """Training time in seconds; 0 if `steps` is given."""
    steps: int = 0
    accumulate: int = 1
    """Batches of a step, in each process."""
    muon_lr: float = 0.02
    adam_lr: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_share: float = 0.25
    """Last part of the training, over which the learning rates fall linearly to 0."""
    clip_norm: float = 1.0
    curriculum: bool = True
    """Whether sequences have at most 0.4 of max_tokens in the first fifth, and at most 0.65 in the first half."""
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
        if self.data.lengths and self.data.window_sequences < longest_rows:  # a window might fill no batch
            raise SettingsError(
                f"--window-sequences is {self.data.window_sequences}; where batches have fixed shapes it must be at "
                f"least --batch-tokens / --max-tokens = {longest_rows}"
            )

    def limit_tokens(self, progress: float) -> int:
        """Longest sequence, in tokens, of windows that are requested when this share of the training is done."""
        share = 1.0 if not self.curriculum or progress >= 0.5 else 0.65 if progress >= 0.2 else 0.4
        return max(min(260, self.data.max_tokens), round(share * self.data.max_tokens))

    def rate(self, step: int, progress: float) -> float:
        """Factor of the learning rates at a step (from 0): linear warm-up, constant, linear decay to 0."""
        decay = min(1.0, (1 - progress) / self.decay_share) if self.decay_share else 1.0
        return min(1.0, (step + 1) / self.warmup_steps) * max(0.0, decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a training runs.

    A checkpoint is continued only with the same `live`, `compile` and, on a CPU, `threads`, which change batches or
    rounding. Nothing else here changes the result.
    """

    out: Path
    checkpoints: Path
    processes: int = 1
    """Background processes that make data; 0 for none."""
    live: str = ""
    """The package of the generators, for fresh pairs; the batches then depend on time limits too. Empty for none."""
    compile: bool = False
    threads: int = 1
    save_dtype: str = "float32"
    checkpoint_every_s: float = 300.0
    evaluate_every_s: float = 300.0
    eval_sequences: int = MEASURED
    log_every: int = 50
    peak: bool = True
    """Whether to measure the machine's peak, and the share of it that the training uses."""
    stop_after_steps: int = 0
    """Stop as if interrupted after this step; 0 for never."""

    def __post_init__(self) -> None:
        least = {"processes": 0, "threads": 1, "log_every": 1, "eval_sequences": 0, "stop_after_steps": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                option = name.replace("_", "-")
                raise SettingsError(f"--{option} is {getattr(self, name)}; it must be at least {value}")


def settings_document(settings: PretrainSettings) -> dict[str, Any]:
    """Settings as a checkpoint holds them: as JSON gives them back."""
    flat = asdict(settings)
    data = {f"data.{name}": value for name, value in flat.pop("data").items()}
    document: dict[str, Any] = json.loads(json.dumps(flat | data))
    return document
