"""Frozen, checked settings with units. `Settings.of("embedded")` and its sisters are the presets; `override` changes
single values by their dotted names and refuses names that it does not know."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, get_type_hints

from arc_ttt.deadline import least_reserve
from arc_ttt.errors import SettingsError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.presets import DEVICE_PRESETS, LINEAR_LAYERS, PRESETS, device_preset
from arc_ttt.votes.rules import RULES


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _within(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        bound = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise SettingsError(f"{name} is {value:g}; it must be {bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which Llama, and how its weights are held."""

    path: str = ""
    """Folder of the checkpoint; embedded-XS or embedded-M for an embedded model; empty for the embedded one that suits
    the device: M on a GPU, XS on a CPU."""
    format: str = "compact"
    """How a task becomes tokens: compact, architects, marc or barc. Must be the one the checkpoint was trained with."""
    backend: str = "transformers"
    """transformers (with bitsandbytes) anywhere, or unsloth on CUDA."""
    quantize: str = "nf4"
    """nf4: linear weights in 4 bits, double quantized. none: 16-bit weights, stored 4-bit ones expanded while loading
    without bitsandbytes; the paper's ablation the other way."""
    dequantize: str = "auto"
    """Expand 4-bit weights after loading: always, never, or auto (models below 200M parameters, where 4 bits save
    no memory that matters and cost speed)."""
    dtype: str = "auto"
    """Compute type: float32, float16, bfloat16, or auto (bfloat16 from compute capability 8, float16 below, and on a
    CPU float32 unless it has bfloat16 instructions)."""
    max_tokens: int = 8192
    """Longest prompt plus answer, in tokens; longer ones drop demonstrations from the front of the prompt."""
    record: bool = True
    """On a GPU, record the steps of small models as CUDA graphs and replay them."""
    random_start: bool = False
    """Ignore the checkpoint's weights and start from random ones: the ablation of the base stage."""

    def __post_init__(self) -> None:
        _one_of("model.format", self.format, tuple(FORMATS))
        _one_of("model.backend", self.backend, ("transformers", "unsloth"))
        _one_of("model.quantize", self.quantize, ("nf4", "none"))
        _one_of("model.dequantize", self.dequantize, ("auto", "always", "never"))
        _one_of("model.dtype", self.dtype, ("auto", "float32", "float16", "bfloat16"))
        _within("model.max_tokens", self.max_tokens, 64)


TRANSDUCTIVE = "transductive: adapters learn from the demonstrations of all tasks of the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class TttSettings:
    """Test-time training: what it trains on, and how. The defaults are those of the embedded model."""

    scope: str = "per-task"
    """per-task: one adapter a task. shared: one adapter for all. joint: a short stage over all tasks, then per task.
    These two are transductive. none: the base model answers."""
    augment: str = "dihedral"
    """paper: the 23 augmenters, then colours and order. dihedral: fresh symmetry, colours and order for every
    sequence. none: only the order of demonstrations changes."""
    in_context: bool = True
    """False: every pair alone, without demonstrations (the paper's direct I/O ablation)."""
    demonstration_loss: bool = True
    """Loss on the outputs of the demonstrations too, not only on the left-out one."""
    first_output_loss: bool = True
    """Also on the first demonstration's output, which no earlier pair explains. The paper masks it (False)."""
    permutations: int = 1
    """Copies of each augmented sequence with new colours and order. Source: the official code's default."""
    max_sequences: int = 320
    """Cap of sequences for one task (the paper: 250)."""
    max_sequence_tokens: int = 2048
    """Longer sequences are left out of training (the paper: 8192)."""
    epochs: int = 1
    """Passes over the sequences (the paper: 2)."""
    passes: int = 8
    """Most trainings of one task while there is time: first a short one, then full ones, each from the base model with
    a seed and views of its own; all their answers vote. 1 means a single full one."""
    batch_sequences: int = 8
    """Sequences for one optimizer step (the paper: 2)."""
    micro_batch_tokens: int = 8192
    """Tokens, padding included, that pass through the model at once; memory grows with it, results do not change. 0
    means as many as the memory plan of the GPU allows, or without a GPU 8192. A GPU with less memory gets fewer."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower."""
    adapter: str = "lora"
    """lora: low-rank adapters. full: all weights; for models small enough."""
    rank: int = 32
    """Rank of the LoRA adapter (the paper: 128)."""
    alpha: float = 32.0
    """Scale of the adapter: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    rslora: bool = True
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    targets: tuple[str, ...] = LINEAR_LAYERS
    """Layers that get an adapter; lm_head may be named too."""
    learning_rate: float = 1.5e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup_fraction: float = 0.05
    """Part of the steps over which the learning rate rises linearly."""
    schedule: str = "linear"
    """linear or cosine, to a tenth of and to nothing of the learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    stop_loss: float = 0.005
    """Stop early once the mean loss of the last four steps is below this, in nats a target. 0 never stops early."""
    loss_scale: float = 1024.0
    """First loss scale under float16; low, so that the first steps count."""
    joint_sequences: int = 4
    """Sequences of each task in the joint stage."""

    @property
    def transductive(self) -> bool:
        """Whether answers to one task depend on the demonstrations of others."""
        return self.scope in ("shared", "joint")

    def __post_init__(self) -> None:
        _one_of("ttt.scope", self.scope, ("per-task", "shared", "joint", "none"))
        _one_of("ttt.augment", self.augment, ("paper", "dihedral", "none"))
        _one_of("ttt.adapter", self.adapter, ("lora", "full"))
        _one_of("ttt.schedule", self.schedule, ("linear", "cosine"))
        known = (*LINEAR_LAYERS, "lm_head", "embed_tokens")
        for name in self.targets:
            _one_of("ttt.targets", name, known)
        if not self.targets:
            raise SettingsError("ttt.targets is empty; name at least one layer")
        for name in ("permutations", "max_sequences", "epochs", "passes", "batch_sequences", "rank", "joint_sequences"):
            _within(f"ttt.{name}", getattr(self, name), 1)
        _within("ttt.max_sequence_tokens", self.max_sequence_tokens, 16)
        _within("ttt.micro_batch_tokens", self.micro_batch_tokens, 16 if self.micro_batch_tokens else 0)
        _within("ttt.learning_rate", self.learning_rate, 1e-9, 1.0)
        _within("ttt.warmup_fraction", self.warmup_fraction, 0.0, 1.0)
        _within("ttt.weight_decay", self.weight_decay, 0.0, 1.0)
        _within("ttt.stop_loss", self.stop_loss, 0.0)
        _within("ttt.alpha", self.alpha, 1e-6)
        _within("ttt.clip_norm", self.clip_norm, 1e-6)
        _within("ttt.loss_scale", self.loss_scale, 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """How answers are read off the model."""

    views: int = 16
    """Views of each test input; each gives one greedy answer."""
    rule: str = "dihedral"
    """dihedral: all demonstrations, 8 symmetries, colours and order. paper: leave-one-out prompts, five symmetries, no
    colours (the number of views then follows from the number of demonstrations)."""
    base_views: int = 8
    """Views of the first, cheap pass with the base model, which answers every task before any is trained."""
    base_share: float = 0.05
    """Part of the run's time that the first pass may take; the embedded model answers little without training."""
    batch_views: int = 16
    """Views decoded at once, at most: a GPU decodes as many as its memory holds for the prompts of a task."""
    min_probability: float = 0.0
    """Above 0, also search for every answer at least this probable, depth first. 0 means greedy only."""

    def __post_init__(self) -> None:
        _within("decode.views", self.views, 1, 1024)
        _within("decode.base_views", self.base_views, 0, 1024)
        _within("decode.base_share", self.base_share, 0.0, 1.0)
        _within("decode.batch_views", self.batch_views, 1)
        _one_of("decode.rule", self.rule, ("dihedral", "paper"))
        _within("decode.min_probability", self.min_probability, 0.0, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """CPU program synthesis beside the devices, and how its answers join the votes."""

    enabled: bool = True
    """Whether idle CPU cores search for programs."""
    cpu_limits_s: tuple[str, ...] = ("1", "5", "60")
    """CPU seconds for a task in the first, second, ... pass; later passes take tasks without a sure program."""
    share: float = 0.8
    """Where devices and synthesis use the same cores (no GPU): part of the CPU time that synthesis may have before
    adapters have had theirs."""
    workers: int = 0
    """Processes; 0 means the cores that no device worker needs, or without a GPU as many as there are of those."""
    merge: str = "confident"
    """confident: a likely program takes one attempt, the first if the vote agrees with it or is less sure. fill:
    programs only fill attempts that the vote leaves open. first: programs before the vote whenever they fit all
    demonstrations (how BARC joins its two halves)."""

    def __post_init__(self) -> None:
        _one_of("synthesis.merge", self.merge, ("confident", "fill", "first"))
        _within("synthesis.share", self.share, 0.0, 1.0)
        _within("synthesis.workers", self.workers, 0, 64)
        try:
            limits = [float(text) for text in self.cpu_limits_s]
        except ValueError as error:
            raise SettingsError(f"synthesis.cpu_limits_s is {self.cpu_limits_s}; it must be numbers") from error
        if not limits or min(limits) <= 0:
            raise SettingsError("synthesis.cpu_limits_s must hold at least one number above 0")

    def cpu_limit_s(self, number: int) -> float:
        """CPU seconds of pass `number`, from 0."""
        return float(self.cpu_limits_s[number])


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteSettings:
    """How candidates become two attempts."""

    rule: str = "product"
    """How candidates are ranked: product (log-likelihood summed over scoring views), hierarchical (the paper's vote,
    made sound), paper (the vote as the official code does it) or flattened (one count over all views)."""
    scoring_views: int = 8
    """Views under which each distinct candidate is scored for the product rule; their prompts are cached already."""
    max_scored: int = 12
    """The most candidates of a test input that are scored; the most frequent come first."""

    def __post_init__(self) -> None:
        _one_of("vote.rule", self.rule, tuple(RULES))
        _within("vote.scoring_views", self.scoring_views, 1, 256)
        _within("vote.max_scored", self.max_scored, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The run as a whole."""

    limit_s: float = 300.0
    """Seconds from the start of the process until the run must have ended."""
    reserve_s: float = 0.0
    """Seconds before the limit at which the run ends by itself; 0 means max(3, 2% of the limit), at most 300. What is
    less than `deadline.least_reserve` asks for is raised to that: a late end would lose the whole run."""
    workers: int = 0
    """Worker processes; 0 means one a GPU, or without a GPU one a core (two at most)."""
    threads: int = 1
    """Numeric threads of a worker on a CPU."""
    in_process: bool = False
    """Work in the coordinator's own process, one job after another: for debuggers. Nothing guards against a hang."""
    order: str = "rungs"
    """rungs: a cheap pass over every task, a short training of each, then what promises most. To compare with: shortest
    (predicted) or first-come, one full training of each task in that order."""
    resume: bool = True
    """Go on where a run with the same tasks and settings was killed in the same folder."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        _within("run.limit_s", self.limit_s, 5)
        _within("run.reserve_s", self.reserve_s, 0, self.limit_s * 0.9)
        _one_of("run.order", self.order, ("rungs", "shortest", "first-come"))
        _within("run.workers", self.workers, 0, 64)
        _within("run.threads", self.threads, 1, 256)
        _within("run.seed", self.seed, 0, 2**63 - 1)

    @property
    def reserve(self) -> float:
        """The reserve in force, in seconds."""
        asked = self.reserve_s if self.reserve_s > 0 else min(300.0, max(3.0, 0.02 * self.limit_s))
        return max(asked, least_reserve(self.limit_s))

    @property
    def reserve_raised(self) -> str:
        """A notice where the reserve that was asked for is too small to end in time; else empty."""
        if self.reserve_s == 0 or self.reserve == self.reserve_s:
            return ""
        return f"run.reserve_s={self.reserve_s:g} is too short to end in time for sure; {self.reserve:.0f} s are kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a run. Sections and fields are named as in `--set section.field=value`."""

    model: ModelSettings = field(default_factory=ModelSettings)
    ttt: TttSettings = field(default_factory=TttSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    vote: VoteSettings = field(default_factory=VoteSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def of(cls, preset: str) -> Settings:
        """The settings of a preset, by its name in `presets.PRESETS`.

        Raises:
            SettingsError: no such preset.
        """
        if preset not in PRESETS:
            raise SettingsError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        return cls().override(PRESETS[preset].items())

    def override(self, changes: Iterable[tuple[str, Any]]) -> Settings:
        """A copy with values changed by dotted name. Text is converted to the field's type.

        Raises:
            SettingsError: unknown name (with the nearest known one), or a value that does not fit.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in changes:
            section, _, leaf = name.partition(".")
            hints = _FIELDS.get(section, {})
            if leaf not in hints:
                known = [f"{s}.{f}" for s, fields in _FIELDS.items() for f in fields]
                near = difflib.get_close_matches(name, known, 3, 0.5) or known
                raise SettingsError(f"no setting {name!r}; nearest: {', '.join(near[:3])}")
            sections.setdefault(section, {})[leaf] = _convert(name, value, hints[leaf])
        changed = {s: dataclasses.replace(getattr(self, s), **fields) for s, fields in sections.items()}
        return dataclasses.replace(self, **changed)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def on_device(self, capability: tuple[int, int]) -> Settings:
        """With the device preset of a CUDA compute capability, where `model.dtype` is auto."""
        if self.model.dtype != "auto":
            return self
        return self.override(DEVICE_PRESETS[device_preset(capability)].items())

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The inverse of `to_json`. Raises SettingsError for anything that is not a set of settings."""
        try:
            sections = json.loads(text)
            return cls().override((f"{s}.{f}", v) for s, fields in sections.items() for f, v in fields.items())
        except (json.JSONDecodeError, AttributeError) as error:
            raise SettingsError(f"not a set of settings: {error}") from error


def parse_overrides(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Split "name=value" texts of the command line. Raises SettingsError for one without "="."""
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: write NAME=VALUE")
        pairs.append((name.strip(), value.strip()))
    return pairs


_FIELDS: dict[str, dict[str, Any]] = {
    "model": get_type_hints(ModelSettings),
    "ttt": get_type_hints(TttSettings),
    "decode": get_type_hints(DecodeSettings),
    "vote": get_type_hints(VoteSettings),
    "synthesis": get_type_hints(SynthesisSettings),
    "run": get_type_hints(RunSettings),
}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type of its field; text as a person writes it."""
    try:
        if kind is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        if kind is int:
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(value) if not isinstance(value, str) else int(float(value)) if "e" in value else int(value)
        if kind is float:
            return float(value)
        if kind is str:
            if not isinstance(value, str | PurePath):
                raise TypeError
            return str(value)
        return tuple(value.split(",")) if isinstance(value, str) else tuple(str(v) for v in value)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        wanted = getattr(kind, "__name__", "comma-separated list")
        raise SettingsError(f"{name} is {value!r}; it must be a value of type {wanted}") from error
