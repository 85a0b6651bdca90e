"""The pretraining loop: batches to steps, measuring, checkpoints, the card. In one process or several (torchrun).

The gradient of a step is that of the mean cross-entropy over all its targets in all processes. Every process makes all
batches and trains on every n-th; data therefore costs each of n processes as much as one process with n batches a step.
The processes sum gradients, losses and counts, and share the clock of the first one; they exchange nothing else. Where
time limits decide about pairs (live generators), the batches of the processes may differ, and a batch may be trained
twice or never.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arc_lab.evaluate.speed import flops_per_token, matmul_peak
from arc_lab.folders import restore_folder
from arc_lab.pretraining.batches import Batch
from arc_lab.pretraining.card import write_card
from arc_lab.pretraining.checkpoints import STATE_NAMES, Trained, check_same, load, save
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.measure import measured_match, to_device
from arc_lab.pretraining.model import compile_layers, save_model, training_model
from arc_lab.pretraining.muon import Muon, matrices, others
from arc_lab.pretraining.processes import ProcessGroup
from arc_lab.pretraining.settings import PRESETS, PretrainSettings, RunOptions, settings_document
from arc_lab.pretraining.training_log import TrainingLog
from arc_ttt.adapt.batches import target_logits
from arc_ttt.adapt.training import add_gradients, clip_gradients, update_weights
from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.deadline import REAL_CLOCK, format_duration
from arc_ttt.errors import ArcError, InputError, TrainingDiverged
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.cuda import compute_dtype

AFTER_DIVERGENCE = (
    "what was saved before stays. Lower --muon-lr and --adam-lr, with another --out and --init for its weights"
)
"""Advice after a training has diverged."""

LOGGED = ("step", "seconds", "tokens", "squares")
"""Counters of which a line of the log reports the growth since the line before."""


def conditions(settings: PretrainSettings, options: RunOptions, group: ProcessGroup) -> dict[str, Any]:
    """Everything besides settings and packs that decides the batches or the rounding of a training, JSON-ready.

    Raises:
        ModelError: the model to start from has no config.
    """
    start = json.dumps(read_config(model_folder(settings.init)), sort_keys=True) if settings.init else ""
    return {
        "training processes": group.size,
        "live generators": Path(options.live).name,
        "device": group.device.type,
        "resolved dtype": str(compute_dtype(settings.dtype, group.device)).removeprefix("torch."),
        "compile": options.compile,
        "threads": torch.get_num_threads() if group.device.type == "cpu" else 0,
        "config of --init": hashlib.sha256(start.encode()).hexdigest()[:12] if start else "",
    }


class Trainer:
    """One training, from its start or last checkpoint to its end or an interruption."""

    def __init__(
        self,
        settings: PretrainSettings,
        options: RunOptions,
        feed: Feed,
        measured: Mapping[str, Sequence[TokenSequence]],
        packs: list[str],
        group: ProcessGroup,
        say: Callable[[str], None],
    ) -> None:
        """Load the last checkpoint, or a model to start from.

        Args:
            settings: everything that decides the result besides the packs.
            options: how the training runs.
            feed: makes the batches.
            measured: sequences on which exact match is measured, by their kind.
            packs: digests of the packs.
            group: the processes of the training.
            say: prints a line.

        Raises:
            InputError: a checkpoint does not belong to these settings and packs, or OUT holds a model without one.
        """
        self.settings, self.options, self.feed, self.group = settings, options, feed, group
        self.measured = measured
        self.document = settings_document(settings)
        self.conditions = conditions(settings, options, group)
        self.packs = packs
        self.log = TrainingLog(options.out / "log.jsonl", say, writes=group.first)
        self.state: dict[str, Any] = {**dict.fromkeys(STATE_NAMES, 0), "seconds": 0.0, "curve": [], "loss": 0.0}
        self.state["logged_at"] = dict.fromkeys(LOGGED, 0)
        stored = load(options.checkpoints)
        if stored is not None:
            check_same(stored[0], self.document, self.conditions, packs, options.checkpoints)
        else:
            restore_folder(options.out / "model")
            if (options.out / "model").exists():
                raise InputError(
                    f"{options.out / 'model'}: holds a model, but {options.checkpoints} no checkpoint to go on from; "
                    "give another --out (with --init for these weights)"
                )
        feed.start(stored[0]["feed"] if stored else None, settings.limit_tokens(0.0))
        self.base = training_model(
            PRESETS[settings.preset], settings.rope, settings.seed, settings.init, settings.dtype, group.device
        )
        self.trained = self._optimizers()
        half = self.base.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(group.device.type, init_scale=4096.0, enabled=half)
        if stored is not None:
            self.trained.restore(stored[1], options.checkpoints)
            self.state = {name: stored[0][name] for name in self.state}
            self.scaler.load_state_dict(stored[0]["loss_scaler"])
            self.log.say(f"going on after step {self.state['step']}, {format_duration(self.state['seconds'])}")
        self.log.restart(self.state["curve"])
        if options.compile:
            compile_layers(self.base.llama, max(1, len(settings.data.lengths)))
        self.peak = matmul_peak(group.device, self.base.dtype) if options.peak and group.first else 0.0
        self.loss = torch.tensor(
            self.state["loss"], device=group.device
        )  # sum of the steps' mean losses since the last line
        self.feed_state = feed.state()  # after the last whole step
        self.whole = True  # False while a step has changed only a part of the weights
        self.saved_step = self.state["step"]
        self.start_s = REAL_CLOCK.now() - self.state["seconds"]

    def _optimizers(self) -> Trained:
        """The model with its optimizers: Muon for matrices, AdamW for all other weights."""
        llama, settings = self.base.llama, self.settings
        named = others(llama)
        muon = Muon(matrices(llama), settings.muon_lr, settings.weight_decay)
        fused = self.group.device.type == "cuda"
        adamw = torch.optim.AdamW(
            [weight for _, weight in named], lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )
        return Trained(llama, muon, adamw, [name for name, _ in named])

    def run(self, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Train to the end, or until `stopped`, and return the card.

        Raises:
            TrainingDiverged: the loss is not finite; the last checkpoint stays.
            ArcError: anything else went wrong. All steps are in a checkpoint; with several processes, the steps up to
                the last checkpoint.
        """
        try:
            return self._end(finished=self._train(stopped))
        except TrainingDiverged:
            raise
        except Exception as error:
            text = self._rescue(error)
            if isinstance(error, (InputError, BrokenPipeError)):
                raise
            raise ArcError(text) from error

    def _train(self, stopped: Callable[[], bool]) -> bool:
        """Step until the end (True) or until `stopped` (False)."""
        state, options = self.state, self.options
        self.start_s = REAL_CLOCK.now() - state["seconds"]
        saved_s = measured_s = state["seconds"]
        limit = options.stop_after_steps or math.inf
        while True:
            self._update_clock()
            progress, stop = self.group.agree(self._progress(), stopped() or state["step"] >= limit)
            if progress >= 1.0 or stop:
                return progress >= 1.0
            self._step(progress)
            self._update_clock()
            if state["step"] % options.log_every == 0:
                self._log()
            if self.group.first and state["seconds"] - measured_s >= options.evaluate_every_s:
                measured_s = state["seconds"]
                self._measure()
            if self.group.first and state["seconds"] - saved_s >= options.checkpoint_every_s:
                saved_s = state["seconds"]
                self._save(finished=False)

    def _update_clock(self) -> None:
        """Bring the state's seconds up to date."""
        self.state["seconds"] = REAL_CLOCK.now() - self.start_s

    def _rescue(self, error: Exception) -> str:
        """Save the steps that were made before an error, and return what happened in one line."""
        first = [line for line in str(error).splitlines() if line.strip()][:1]
        text = first[0] if first and isinstance(error, ArcError) else ": ".join([type(error).__name__, *first])
        alone = self.group.size == 1  # otherwise the device may wait for processes that are gone
        if alone and self.whole and self.state["step"] > self.saved_step:
            try:
                self._save(finished=False)
            except Exception as second:  # the first error matters more
                text += f"; no checkpoint could be written: {type(second).__name__}"
        return f"{text}; the same command goes on after step {self.saved_step}" if self.group.first else text

    def _progress(self) -> float:
        """Share of the training that is done."""
        if self.settings.steps:
            return float(self.state["step"]) / self.settings.steps
        return float(self.state["seconds"]) / self.settings.seconds

    def _step(self, progress: float) -> None:
        """One step of both optimizers on this process's share of the next batches."""
        settings, state = self.settings, self.state
        limit = settings.limit_tokens(progress)
        batches = [self.feed.next(limit) for _ in range(settings.accumulate * self.group.size)]
        own = batches[self.group.rank :: self.group.size]
        count, counts = self._count(own)
        loss = torch.zeros_like(self.loss)
        for batch in own:
            loss += add_gradients(self.base, functools.partial(self._loss, batch), count, self.scaler)
        self.group.sum_in_place([loss, *(w.grad for w in self.base.llama.parameters() if w.grad is not None)])
        optimizers, rate = (self.trained.muon, self.trained.adamw), settings.rate(state["step"], progress)
        for optimizer, lr in zip(optimizers, (settings.muon_lr, settings.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate
        clip_gradients(optimizers, self.base.llama.parameters(), self.scaler, settings.clip_norm)
        self.whole = False
        update_weights(optimizers, self.scaler)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        for name, number in counts.items():
            state[name] += number
        self.loss += loss
        self.feed_state = self.feed.state()
        self.whole = True

    def _count(self, own: Sequence[Batch]) -> tuple[int, dict[str, int]]:
        """Targets of a step, at least 1, and the growth of other counters, over all processes.

        Args:
            own: the batches of this process.
        """
        targets = sum(len(batch.places) for batch in own)
        rows = [(batch.tokens, batch.ids.size, batch.sequences, batch.squares) for batch in own]
        counts = self.group.sum_counts([targets, *(sum(column) for column in zip(*rows, strict=True))])
        return max(1, counts[0]), dict(zip(("tokens", "padded", "sequences", "squares"), counts[1:], strict=True))

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy of a batch, in nats."""
        ids, positions, places, attention = to_device(batch, self.group.device, self.settings.data.max_tokens)
        logits, wanted = target_logits(self.base.llama, ids, positions, places, **attention)
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")

    def _log(self) -> None:
        """Record loss and speed since the last line. Only here does the loop wait for the device.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        state, before = self.state, self.state["logged_at"]
        loss = float(self.loss) / max(1, state["step"] - before["step"])
        self._update_clock()
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss} at step {state['step']}; {AFTER_DIVERGENCE}")
        since = {name: state[name] - before[name] for name in LOGGED}
        speed = since["tokens"] / max(1e-6, since["seconds"])
        share = f", {self._share_of_peak(since):.1%} of peak" if self.peak else ""
        self.loss.zero_()
        state["logged_at"] = {name: state[name] for name in LOGGED}
        self._record(loss=round(loss, 5), tokens_s=round(speed))
        self.log.say(
            f"step {state['step']}  {state['tokens'] / 1e6:.2f}M tokens  loss {loss:.4f}  {speed:,.0f} tokens/s{share}"
            f"  {format_duration(state['seconds'])}  windows ready {self.feed.ready()}"
        )

    def _record(self, **figures: Any) -> None:
        """Add figures to the log, at the present step."""
        self.log.add(self.state["step"], self.state["seconds"], **figures)

    def _share_of_peak(self, done: Mapping[str, float]) -> float:
        """Model FLOP utilisation: useful FLOP/s over the rate of the best matrix product of this machine.

        Args:
            done: seconds, tokens and squares (the sum of the squared lengths of sequences).
        """
        length = done["squares"] / max(1, done["tokens"])  # of the sequence of a token, mean over tokens
        flops = done["tokens"] * flops_per_token(self.base, length)
        return flops / max(1e-6, done["seconds"]) / self.peak / self.group.size

    def _measure(self) -> dict[str, Any]:
        """Measure, record and print exact match on both kinds of held pairs."""
        figures = {}
        for name, sequences in self.measured.items():
            found = measured_match(self.base, sequences, min(65_536, self.settings.data.batch_tokens))
            figures[name] = {"exact": sum(found.right), "n": len(found.right), "loss": round(found.loss, 5)}
        self._record(exact_match=figures)
        text = ", ".join(f"{name} {f['exact']} of {f['n']} (loss {f['loss']:.4f})" for name, f in figures.items())
        self.log.say(f"step {self.state['step']}  exact match: {text}")
        return figures

    def _save(self, *, finished: bool) -> dict[str, Any]:
        """Write checkpoint, model and card, and return the card.

        Raises:
            TrainingDiverged: weights or losses are not finite; nothing is written.
        """
        largest = [weight.detach().abs().amax() for weight in self.base.llama.parameters()]
        if not bool(torch.stack([*largest, self.loss]).isfinite().all()):
            raise TrainingDiverged(f"not all is finite at step {self.state['step']}; {AFTER_DIVERGENCE}")
        state = {
            **self.state,
            "loss": float(self.loss),
            "feed": self.feed_state,
            "loss_scaler": self.scaler.state_dict(),
            "settings": self.document,
            "conditions": self.conditions,
            "packs": self.packs,
        }
        save(self.options.checkpoints, self.trained, state)
        self.saved_step = self.state["step"]
        dtype = torch.bfloat16 if self.options.save_dtype == "bfloat16" else torch.float32
        card = save_model(self.base.llama, self.options.out / "model", dtype, self._card(finished))
        write_card(card, self.options.out)
        return card

    def _card(self, finished: bool) -> dict[str, Any]:
        """The card of the training, JSON-ready."""
        state = self.state
        return {
            "finished": finished,
            "parameters": self.base.parameters,
            "packs": self.packs,
            "settings": self.document,
            "processes": self.group.size,
            "device": str(self.group.device),
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "live": bool(self.options.live),
            "steps": state["step"],
            "tokens": state["tokens"],
            "padding": round(1 - state["tokens"] / max(1, state["padded"]), 4),
            "sequences": state["sequences"],
            "seconds": round(state["seconds"], 1),
            "tokens_s": round(state["tokens"] / max(1e-6, state["seconds"])),
            "peak_flops": self.peak,
            "share_of_peak": round(self._share_of_peak(state), 4) if self.peak else None,
            "loss": self.log.last("loss"),
            "exact_match": self.log.last("exact_match"),
            "curve": state["curve"],
        }

    def _end(self, *, finished: bool) -> dict[str, Any]:
        """Write the last checkpoint and model, and the last figures if the training is finished; return the card."""
        if finished and self.state["step"] > self.state["logged_at"]["step"]:
            self._log()
        if not self.group.first:
            return {"finished": finished}
        if not finished and self.state["step"] == self.saved_step:  # nothing new to save
            return self._card(finished)
        if finished and self.log.last_step("exact_match") != self.state["step"]:  # else measured before a restart
            self._measure()
        return self._save(finished=finished)
