"""Memory plan: what of a model, its adapter, its activations and its caches fits a device, from formulas.

    device = context + weights + adapter + optimizer + activations of a micro-batch     while it trains
    device = context + weights + adapter + caches of the views kept for scoring + one batch in decoding

`plan` solves both for what is free to choose: the tokens of a micro-batch, the longest training sequence, and how many
views are decoded at once and kept. All figures are bytes and tokens. Source: ours; the formulas count what the layers
of transformers and peft keep for their gradients under autocast, and the tests hold them against counted allocations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arc_ttt.checkpoints.memory_formulas import (
    Device,
    activation_bytes,
    adapter_weights,
    cache_bytes,
    forward_bytes,
    weight_bytes,
)
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.protocol.messages import Note
from arc_ttt.settings import Settings, TttSettings

MOST_FUSED = 0.25
"""The decoder's copy of plain layers may take this part of the usable memory."""
SCORING_PIECE = 1 << 25
"""Logits that exist at once in scoring."""
ROOM = 32
"""Places behind a prompt in its cache, and by which the cache grows."""
OPTIMIZER_BYTES = 12
"""Bytes of a trained weight's gradient and of its two moments in AdamW, all float32."""
SHORTEST = 256
"""A device that cannot train on this many tokens cannot train."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits.

    Args:
        weights, adapter, optimizer, fused: bytes; the last is the decoder's copy of plain layers, 0 where there is to
            be none.
        tokens: of a micro-batch, padding included, and so also the longest training sequence; 0 where nothing can be
            trained.
    """

    shape: LlamaShape
    device: Device
    weights: int
    adapter: int
    optimizer: int
    fused: int
    tokens: int

    def views(self, prompt_tokens: int, answer_tokens: int, batch_views: int, kept_views: int) -> tuple[int, int]:
        """Views decoded at once, and views whose prompts stay cached for scoring; at most those wanted, at least one.

        A batch in decoding takes its prompts' cache, and two copies half as long again while rows leave it and grow.
        A batch that is kept takes its cache alone. The largest batch wins that leaves room to keep what is wanted.
        """
        cache = cache_bytes(self.shape, 1, prompt_tokens + answer_tokens + ROOM, self.device.itemsize)
        row = 4 * cache + prompt_tokens * forward_bytes(self.shape, self.device)
        logits = SCORING_PIECE * (self.device.itemsize + 8)
        weights = self.optimizer // OPTIMIZER_BYTES  # of the adapter, of which the decoder has copies
        narrow = 0 if self.fused else weights * self.device.itemsize
        left = self.device.usable - self.weights - self.adapter - self.fused - narrow - logits
        best = 1, 1
        for batch in range(min(batch_views, left // row), 0, -1):
            kept = min(kept_views, batch * (1 + (left - batch * row) // (batch * cache)))
            if kept > best[1]:
                best = batch, kept
        return best


def plan(
    shape: LlamaShape,
    device: Device,
    ttt: TttSettings,
    *,
    four_bit: bool,
    checkpointing: bool,
    host_copies: bool = True,
) -> MemoryPlan:
    """The plan of a checkpoint on a device.

    host_copies: the adapter's fresh values are kept in host memory.
    """
    count = adapter_weights(shape, ttt) if ttt.scope != "none" else 0
    weights = weight_bytes(shape, four_bit=four_bit, itemsize=device.itemsize)
    if ttt.adapter == "full" and count:
        weights = 0  # they are the adapter
    adapter = count * (4 if host_copies else 8)
    optimizer = count * OPTIMIZER_BYTES
    left = device.usable - weights - adapter - optimizer
    fits = 0
    for bit in reversed(range(20)):  # the largest that fits, as activations only grow with the tokens
        tokens = fits + (1 << bit)
        if activation_bytes(shape, ttt, device, tokens, checkpointing=checkpointing, four_bit=four_bit) <= left:
            fits = tokens
    fused = 0 if four_bit else shape.linear_weights * device.itemsize
    fused = fused if fused <= MOST_FUSED * device.usable else 0
    return MemoryPlan(shape, device, weights, adapter, optimizer, fused, fits if fits >= SHORTEST else 0)


def fitted(settings: Settings, found: MemoryPlan) -> tuple[Settings, list[Note]]:
    """Settings that fit, and a line for each that had to change.

    Micro-batches never change results, so those are cut in silence, and 0 takes what fits. Shorter training sequences
    and no training do change results.
    """
    ttt, tokens = settings.ttt, found.tokens
    if ttt.scope == "none":
        return settings, []
    if tokens == 0:
        need = (found.weights + found.adapter + found.optimizer) / 1024**3
        note = Note(f"memory: {need:.1f} GiB before any activation; the base model answers alone", less=True)
        return replace(settings, ttt=replace(ttt, scope="none")), [note]
    notes = []
    longest = min(ttt.max_sequence_tokens, tokens)
    if longest < ttt.max_sequence_tokens:
        shorter = f"memory: training sequences of at most {longest} tokens instead of {ttt.max_sequence_tokens}"
        notes.append(Note(shorter))
    at_once = min(tokens, ttt.micro_batch_tokens or tokens)
    return replace(settings, ttt=replace(ttt, max_sequence_tokens=longest, micro_batch_tokens=at_once)), notes
